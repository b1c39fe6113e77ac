"""Measures the exported model on unseen stories, as a user of transformers would load it.

    python evaluate.py [--model DIR] [--count 200] [--golden]

The stories come from another seed and from the tenth of all combinations (plot,
hero, main thing) that training leaves out. All answers are greedy. With --golden
the file golden.json is written, which tests of other runtimes compare with.
"""

import argparse
import collections
import json
import os
import random
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus

QUESTION = "Text:\n{t}\n\nQuestion: {q}"
SUMMARY = "Text:\n{t}\n\nSummarize the text in one sentence."
FEELING = "Text:\n{t}\n\nHow does this text feel: happy, sad, afraid or angry?"


class Runner:
    """The stored bf16 weights, computed with in f32."""

    def __init__(self, path):
        self.tok = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def extend(self, ids, limit, sample=False):
        """The ids that the model adds, greedy or drawn with the model's own settings."""
        more = {"do_sample": True, "temperature": 0.7, "top_p": 0.9} if sample else {
            "do_sample": False, "temperature": None, "top_p": None}
        with torch.no_grad():
            out = self.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                                      max_new_tokens=limit, **more)
        return out[0, len(ids):].tolist()

    def prompt(self, turns):
        return self.tok.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)

    def chat(self, turns, limit=60, sample=False):
        if isinstance(turns, str):
            turns = [{"role": "user", "content": turns}]
        return self.tok.decode(self.extend(self.prompt(turns), limit, sample), skip_special_tokens=True)

    def raw(self, text, limit=150, sample=False):
        return self.tok.decode(self.extend(self.tok(text)["input_ids"], limit, sample), skip_special_tokens=True)

    def loss(self, texts):
        """Mean loss per token of plain stories."""
        total, count = 0.0, 0
        for text in texts:
            ids = torch.tensor([self.tok(text)["input_ids"] + [0]])
            with torch.no_grad():
                logits = self.model(ids).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        return total / count


def right(key, answer):
    """Whether the key stands in the answer as whole words."""
    return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", answer) is not None


def judge(run, name, cases, log):
    """Share of right answers of (kind, key, expected, prompt) cases; the wrong ones go to the log."""
    good, exact, kinds = 0, 0, collections.Counter()
    for kind, key, expected, prompt in cases:
        got = run.chat(prompt)
        ok = right(key, got)
        good += ok
        exact += got == expected
        kinds[kind, ok] += 1
        if not ok:
            log.append(f"[{name}/{kind}] expected {expected!r} got {got!r}\n    {str(prompt)[-700:]}")
    print(f"{name}: {good}/{len(cases)} right, {exact}/{len(cases)} word for word", flush=True)
    bad = {k: f"{n} of {n + kinds[k, True]}" for (k, ok), n in kinds.items() if not ok}
    if bad:
        print("  wrong by kind:", bad)
    return good / len(cases)


def question_cases(seed, count, make=corpus.story, shapes=(QUESTION,)):
    cases = []
    for rng, st in corpus.unseen(seed, count, make):
        kind, key, answer, words = corpus.question(rng, st)
        cases.append((kind if key != "does not say" else "absent", key, answer, rng.choice(shapes).format(t=st.text, q=words)))
    return cases


def golden(run, path):
    """Figures for tests: exact ids and logits of one prompt, and what the model answers to 20 random cases."""
    ids = run.tok("Once upon a time")["input_ids"]
    with torch.no_grad():
        logits = run.model(torch.tensor([ids])).logits[0, -1].tolist()
    more = []
    with torch.no_grad():   # plain steps, over any end token, so that exactly 24 ids are there
        for _ in range(24):
            more.append(run.model(torch.tensor([ids + more])).logits[0, -1].argmax().item())
    cases = []
    for rng, st in corpus.unseen("golden", 20):
        _, _, answer, words = corpus.question(rng, st)
        turns = [{"role": "user", "content": QUESTION.format(t=st.text, q=words)}]
        cases.append({"text": st.text, "question": words, "expected": answer, "answer_greedy": run.chat(turns)})
    turns = [{"role": "user", "content": "Hello!"}]
    data = {"prompt": "Once upon a time", "token_ids": ids, "last_logits": [round(x, 5) for x in logits], "greedy": more,
            "greedy_text": run.tok.decode(more), "chat_messages": turns, "chat_token_ids": run.prompt(turns),
            "chat_text": run.tok.apply_chat_template(turns, add_generation_prompt=True, tokenize=False), "cases": cases}
    with open(os.path.join(path, "golden.json"), "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--golden", action="store_true", help="write golden.json into the model's folder")
    parser.add_argument("--log", help="write the wrong answers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    run, log = Runner(args.model), []

    print(f"loss of unseen stories: {run.loss([st.text for _, st in corpus.unseen('loss', args.count)]):.4f} per token")
    judge(run, "questions on unseen stories", question_cases("q", args.count), log)
    judge(run, "the same, other wordings of the prompt", question_cases("w", args.count // 2, shapes=corpus.ASK[5:]), log)
    judge(run, "questions on unseen plain facts", question_cases("f", args.count // 2, corpus.facts), log)
    judge(run, "feelings", [("feeling", st.feeling, st.feeling, FEELING.format(t=st.text))
                            for _, st in corpus.unseen("feel", args.count)], log)
    judge(run, "one-line summaries (all of it right)", [(st.plot, st.summary, st.summary, SUMMARY.format(t=st.text))
                                                        for _, st in corpus.unseen("sum", args.count // 2)], log)
    follow = []
    for rng, st in corpus.unseen("follow", args.count // 2):
        _, _, answer, words = corpus.question(rng, st, 0)
        kind, key, second, more = corpus.question(rng, st)
        system = [{"role": "system", "content": corpus.SYSTEM[0]}]
        follow.append((kind, key, second, system + [{"role": "user", "content": QUESTION.format(t=st.text, q=words)},
                                                    {"role": "assistant", "content": answer}, {"role": "user", "content": more}]))
    judge(run, "second questions, with a system message", follow, log)
    rng = random.Random("tell")
    for n in range(args.samples):
        ask = f"Tell me a story about {corpus.a(rng.choice(corpus.HEROES + corpus.TOYS))}." if n % 2 else None
        print(f"\n> {ask}\n{run.chat(ask, 200, True)}" if ask else f"\n> Once upon a time\nOnce upon a time{run.raw('Once upon a time', 200, True)}",
              flush=True)
    if args.golden:
        golden(run, args.model)
    if args.log:
        with open(args.log, "w") as file:
            file.write("\n".join(log) + "\n")


if __name__ == "__main__":
    main()
