"""Trains the demonstration model on the corpus of corpus.py and exports it.

    python train.py --work DIR --steps N        trains and keeps a checkpoint in DIR
    python train.py --work DIR --export OUT     writes the Hugging Face files from the checkpoint

The network is exactly the Llama architecture of transformers (the export is read
back through LlamaForCausalLM); it is written out here because a plain loop is
faster on one processor core. The learning rate rises, stays level and falls over
the last --decay steps, so that a run can be taken up again with more steps.
"""

import argparse
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import corpus

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 192, 4, 6, 2, 32, 400
VOCAB, CONTEXT, THETA, EPS = 2048, 1024, 10000.0, 1e-5
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
                 "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
# Which mix of examples the blocks of data have, each up to (not with) the block named.
SCHEDULE = [("early", 10), ("usual", 40), ("drill", 49), ("usual", 52), ("late", 83), ("facts", math.inf)]
USER_SHARE = 0.3      # share of the tokens of prompts that are learned as text
ANSWER_WEIGHT = 2.0   # weight of the tokens of answers; stories weigh 1


# --------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------

def contents(item):
    return [item] if isinstance(item, str) else [content for _, content in item]


def train_tokenizer(seed):
    """A byte-level BPE, so that every text can be encoded; trained on the corpus."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END, START, STOP], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    texts = (text for item in corpus.examples(f"tokenizer/{seed}", 30000) for text in contents(item))
    # The words of the template and of questions are there as often as they are used.
    tok.train_from_iterator((f"{role}\n{text}" for text in texts for role in ("user", "assistant")), trainer)
    return tok


# --------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------

def encode(tok, item, rng):
    """Token ids of an example and the weight with which each is learned as a target."""
    ids, weights = [], []

    def add(tokens, weight):
        ids.extend(tokens)
        weights.extend([weight] * len(tokens))

    if isinstance(item, str):
        if rng.random() < 0.1:
            add([0], 0)   # so that a text can also be begun from nothing
        add(tok.encode(item).ids, 1)
        add([0], 1)
        return ids, weights
    for role, content in item:
        learned = 0
        if role == "assistant":
            learned = 1 if len(content) > 150 else ANSWER_WEIGHT
        add([1], 0)
        add(tok.encode(role + "\n").ids, 0)
        add(tok.encode(content).ids, learned)
        if role != "assistant":
            for i in range(len(ids) - 1, 0, -1):
                if ids[i] == 1:
                    break
                weights[i] = 1 if rng.random() < USER_SHARE else 0
        add([2], learned)
        add(tok.encode("\n").ids, 0)
    return ids, weights


def batches(tok, seed, tokens):
    """Endless batches of examples of like length, each row one example from position 0 on.

    Some of the blocks of 2,048 examples have more exercises in copying.
    """
    for block in range(10 ** 9):
        rng = random.Random(f"batches/{seed}/{block}")
        mix = next(name for name, last in SCHEDULE if block < last)
        rows = [encode(tok, item, rng) for item in corpus.examples(seed, 2048, block * 2048, mix)]
        rows = [row for row in rows if len(row[0]) <= 448]
        rows.sort(key=lambda row: len(row[0]))
        cuts, i = [], 0
        while i < len(rows):
            count = max(1, tokens // len(rows[min(len(rows) - 1, i + max(1, tokens // len(rows[i][0])) - 1)][0]))
            cuts.append(rows[i:i + count])
            i += count
        rng.shuffle(cuts)
        for part in cuts:
            width = max(len(ids) for ids, _ in part)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            weight = torch.zeros(len(part), width)
            for n, (row, w) in enumerate(part):
                ids[n, :len(row)] = torch.tensor(row)
                weight[n, :len(row)] = torch.tensor(w, dtype=torch.float)
            yield ids, weight


# --------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------

class Norm(nn.Module):
    """RMS norm."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        return F.rms_norm(x, (HIDDEN,), self.weight, EPS)


class Layer(nn.Module):
    """A Llama block; q, k, v and gate, up are joined for speed and parted at export."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x, cos, sin, mask):
        rows, width, _ = x.shape
        qkv = self.qkv(self.norm1(x)).float().view(rows, width, HEADS + 2 * KV_HEADS, HEAD_DIM).transpose(1, 2)
        qk, v = qkv[:, :HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS:]
        half = HEAD_DIM // 2
        qk = qk * cos + torch.cat((-qk[..., half:], qk[..., :half]), -1) * sin
        # The heads that share keys and values are laid one under another, and the plain
        # products are used: on one core they are several times faster than the fused attention.
        group, batch = HEADS // KV_HEADS, rows * KV_HEADS
        q = qk[:, :HEADS].reshape(batch, group * width, HEAD_DIM).bfloat16()
        k = qk[:, HEADS:].reshape(batch, width, HEAD_DIM).bfloat16()
        v = v.reshape(batch, width, HEAD_DIM).bfloat16()
        with torch.autocast("cpu", enabled=False):
            scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=HEAD_DIM ** -0.5)
            y = torch.bmm(scores.softmax(-1), v)
        y = y.view(rows, HEADS, width, HEAD_DIM)
        x = x + self.out(y.transpose(1, 2).reshape(rows, width, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        angle = torch.arange(CONTEXT)[:, None] * THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.03 / (math.sqrt(2 * LAYERS) if deep else 1))

    def forward(self, ids, keep):
        """The logits at the positions where keep is true."""
        x = self.embed(ids)
        width = ids.shape[1]
        cos, sin = self.cos[:width], self.sin[:width]
        mask = torch.full((width, width), float("-inf")).triu(1).repeat(HEADS // KV_HEADS, 1).bfloat16()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.norm(x[keep]), self.embed.weight).float()

    def hf_state(self):
        """The weights under the names of LlamaForCausalLM."""
        out = {"model.embed_tokens.weight": self.embed.weight, "model.norm.weight": self.norm.weight}
        for n, layer in enumerate(self.layers):
            q, k, v = layer.qkv.weight.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM])
            gate, up = layer.gate_up.weight.chunk(2)
            for name, w in [("input_layernorm", layer.norm1.weight), ("post_attention_layernorm", layer.norm2.weight),
                            ("self_attn.q_proj", q), ("self_attn.k_proj", k), ("self_attn.v_proj", v),
                            ("self_attn.o_proj", layer.out.weight), ("mlp.gate_proj", gate), ("mlp.up_proj", up),
                            ("mlp.down_proj", layer.down.weight)]:
                out[f"model.layers.{n}.{name}.weight"] = w
        return {name: w.detach().to(torch.bfloat16).contiguous() for name, w in out.items()}


# --------------------------------------------------------------------------
# Training and export
# --------------------------------------------------------------------------

def rate(step, args):
    """Warm-up, a level stretch, and a fall to nothing."""
    return args.lr * min(1, (step + 1) / 200, (args.steps - step) / max(1, args.decay))


def train(args, tok):
    torch.manual_seed(args.seed)
    model, path = Model(), os.path.join(args.work, "checkpoint.pt")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.95), fused=True)
    first = 0
    if os.path.exists(path):
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        first = saved["step"]
    print(sum(p.numel() for p in model.parameters()), "parameters, from step", first, flush=True)

    def save(step):
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step}, path + ".new")
        os.replace(path + ".new", path)

    total, count, seen, start = 0.0, 0, 0, time.time()
    data = batches(tok, f"train/{args.seed}", args.batch)
    for _ in range(first):   # a run that is taken up again goes on where it stopped in the data
        next(data)
    for step in range(first, args.steps):
        ids, weight = next(data)
        weight = weight[:, 1:]
        keep = weight > 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], keep)
        w = weight[keep]
        loss = (F.cross_entropy(logits, ids[:, 1:][keep], reduction="none") * w).sum() / w.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in opt.param_groups:
            group["lr"] = rate(step, args)
        opt.step()
        opt.zero_grad(set_to_none=True)
        total, count, seen = total + loss.item(), count + 1, seen + ids.numel()
        if count == 100:
            print(f"step {step + 1} loss {total / count:.4f} {seen / (time.time() - start):.0f} tokens/s "
                  f"{(time.time() - start) / 60:.1f} min", flush=True)
            total, count = 0.0, 0
        if (step + 1) % 250 == 0:
            save(step + 1)
    save(args.steps)


def export(args, tok):
    from safetensors.torch import save_file
    model = Model()
    model.load_state_dict(torch.load(os.path.join(args.work, "checkpoint.pt"))["model"])
    os.makedirs(args.export, exist_ok=True)
    save_file(model.hf_state(), os.path.join(args.export, "model.safetensors"), {"format": "pt"})
    tok.save(os.path.join(args.export, "tokenizer.json"))

    def write(name, data):
        with open(os.path.join(args.export, name), "w") as file:
            json.dump(data, file, indent=2)
            file.write("\n")

    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPS, "rope_theta": THETA, "rope_scaling": None, "hidden_act": "silu", "attention_bias": False,
        "attention_dropout": 0.0, "mlp_bias": False, "tie_word_embeddings": True, "initializer_range": 0.03,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": True, "torch_dtype": "bfloat16"})
    write("generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True,
                                     "temperature": 0.7, "top_p": 0.9})
    special = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, "bos_token": START, "eos_token": STOP,
        "pad_token": END, "add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": t, **special} for i, t in enumerate([END, START, STOP])},
        "chat_template": CHAT_TEMPLATE})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="/tmp/demo-model", help="folder for the tokenizer and the checkpoint")
    parser.add_argument("--export", help="write the Hugging Face files to this folder instead of training")
    parser.add_argument("--steps", type=int, default=5100)
    parser.add_argument("--decay", type=int, default=1850)
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    path = os.path.join(args.work, "tokenizer.json")
    if not os.path.exists(path):
        train_tokenizer(args.seed).save(path)
    tok = Tokenizer.from_file(path)
    export(args, tok) if args.export else train(args, tok)


if __name__ == "__main__":
    main()
