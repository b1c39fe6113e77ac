#!/usr/bin/env python3
"""gguf_ids.py FOLDER: for each .gguf file of FOLDER a .json beside it, with texts in many scripts and the ids that llama.cpp has for
them. `WGINFER_GGUF_CASES=FOLDER cargo test --test gguf ids` compares. Needs `pip install xllamacpp`."""
import json, os, pathlib, random, subprocess, sys, urllib.request

# Not `</s>`: llama.cpp takes it for a special token even where a model has it as an ordinary one.
TEXTS = [
    "Hello world", "  leading and   inner   spaces ", "tabs\tand\nnew\n\n\nlines\r\n", "don't can't I'll WE'VE they'RE 'tis",
    "1234567890 3.14159 1,000,000 2²", "¿Qué tal? Años, niño, acción", "Straße, Größe, äöü ÄÖÜ", "Привет, мир! Как дела?",
    "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "বাংলা ভাষা", "தமிழ் மொழி", "తెలుగు", "ಕನ್ನಡ", "ไทยภาษา",
    "ລາວ", "မြန်မာ", "ქართული", "Հայերեն", "አማርኛ", "你好，世界！今天天气很好。", "漢字と仮名交じり文", "こんにちは世界", "カタカナ",
    "안녕하세요 세계", "Tiếng Việt có dấu", "🙂🙃👨‍👩‍👧‍👦🏳️‍🌈🇩🇪", "ﬁ ﬂ ligatures ½ ¼", "e\u0301 combining a\u0308",
    "zero\u200bwidth\u200djoin", "\u00a0nbsp\u2003em\u3000ideographic", "<|im_start|>user\nhi<|im_end|>", "<s> <unk> <0x0A>",
    'fn main() { println!("{}", x[0] + 1); }', "if (a && b || !c) return a->b;", "#include <stdio.h>\n\tint x=0;",
    "https://example.com/a?b=c&d=%20", "a" * 50, "ab " * 20, "    \n    \n", "\n", "\t\t", " ", "x", "É", "ſ 'ſ", "K\u212a",
    "ǅ ǆ", "Ⅷ ⅷ ④", "٠١٢٣ १२३ 一二三", "$100 €5 £3 ¥7", "…—–-‐", "“quotes” ‘single’ «guillemets»", "∑∫√∞≠≤ ≥",
    "CamelCaseWordsTogether snake_case_words kebab-case", "ALLCAPS mixed123numbers 12ab34",
]


def texts(n):
    chance, all = random.Random(7), list(TEXTS)
    while len(all) < n:
        text = "".join(chance.choice(TEXTS) + chance.choice(["", " ", "\n", "  ", "."]) for _ in range(chance.randint(2, 5)))
        if chance.random() < 0.4:
            first = chance.randint(0, len(text))
            text = text[first:chance.randint(first, len(text))]
        all.append(text)
    return all


def write(path):
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 128, False
    server = xllamacpp.Server(params)
    cases = []
    for text in texts(200):
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        cases.append((text, json.load(urllib.request.urlopen(request))["tokens"]))
    path.with_suffix(".json").write_text(json.dumps(cases))
    print(path.with_suffix(".json"), flush=True)
    os._exit(0)  # its threads would keep the process


if sys.argv[1].endswith(".gguf"):
    write(pathlib.Path(sys.argv[1]))
else:
    # A process for each: the server ends with its own.
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.gguf")):
        subprocess.run([sys.executable, __file__, path], check=True)
