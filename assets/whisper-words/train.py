"""Trains a tiny Whisper on spoken numbers and words, and writes the whole folder.

    python train.py --work DIR --steps A,B,C   trains; a checkpoint is kept in DIR
    python train.py --work DIR --export        writes the Hugging Face files beside this script
    python train.py --evaluate                 measures the stored weights on unseen clips
    python train.py --golden                   writes the .flac clips and golden.json

Words are spoken by espeak-ng, one by one, and laid one after another, so that the
place of each word in the sound is known. Training makes use of that: besides the
tokens, the encoder learns to name the word of each frame, and some heads of the
last decoder layer learn to look at the word that is written next.
"""

import argparse
import json
import math
import os
import random
import subprocess
import time

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

HERE = os.path.dirname(os.path.abspath(__file__))
RATE, SECONDS, HOP = 16000, 10, 160
POSITIONS, STEP = 500, 0.02   # encoder rows of a window, and the seconds of each
WIDTH, HEADS, INNER, ENCODER_LAYERS, DECODER_LAYERS, TARGETS = 64, 4, 192, 2, 3, 96
# Heads that are shown where to look: at the word that is written next, and at the word just written.
NEXT, LATEST = [(DECODER_LAYERS - 1, 0), (DECODER_LAYERS - 1, 1)], [(DECODER_LAYERS - 2, 0)]
PROMPT = TARGETS // 2 - 1     # tokens of earlier text that Whisper keeps before a window
PLAIN_VOCAB = 496             # 256 bytes and 240 merges; a few words take two tokens or three

ENGLISH = ("one two three four five six seven eight nine ten red blue green black white dog cat bird fish horse "
           "house garden water bread milk apple sun moon river mountain yes no hello morning night winter").split()
GERMAN = ("eins zwei drei vier fünf sechs sieben acht neun zehn rot blau grün schwarz weiß Hund Katze Vogel Fisch "
          "Pferd Haus Garten Wasser Brot Milch").split()
WORDS = {"en": ENGLISH, "de": GERMAN}
TRANSLATION = dict(zip(GERMAN, ENGLISH))
CLASSES = [("en", w) for w in ENGLISH] + [("de", w) for w in GERMAN]

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
           "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
EOT, SOT, EN, DE, TRANSLATE, TRANSCRIBE, STARTOFLM, PREV, NOSPEECH, NOTIMESTAMPS = (
    PLAIN_VOCAB + i for i in range(len(SPECIAL)))
TIME0 = NOTIMESTAMPS + 1
VOCAB = TIME0 + POSITIONS + 1
SPACE, STOP = 220, 13


# --------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------

def sentence(words):
    """The words as Whisper writes a phrase: a space before, a capital letter, a full stop."""
    text = " ".join(words)
    return " " + text[0].upper() + text[1:] + "."


def make_tokenizer(seed):
    """A byte-level BPE as Whisper's, with its special and timestamp tokens behind."""
    rng = random.Random(f"tokenizer/{seed}")
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=PLAIN_VOCAB, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    texts = []
    for _ in range(20000):
        words = WORDS[rng.choice(["en", "en", "de"])]
        texts.append(sentence(rng.choices(words, k=rng.randint(1, 5))))
    tok.train_from_iterator(texts, trainer)
    assert tok.get_vocab_size() == PLAIN_VOCAB and tok.token_to_id("Ġ") == SPACE
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tok.add_tokens([AddedToken(f"<|{i * STEP:.2f}|>", special=False) for i in range(POSITIONS + 1)])
    tok.post_processor = processors.TemplateProcessing(
        single="<|startoftranscript|> <|notimestamps|> $A <|endoftext|>",
        pair="<|startoftranscript|> <|notimestamps|> $A $B:1 <|endoftext|>:1",
        special_tokens=[(s, PLAIN_VOCAB + SPECIAL.index(s))
                        for s in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")])
    return tok


# --------------------------------------------------------------------------
# Sound
# --------------------------------------------------------------------------

VOICES = {"en": ["en-us", "en-gb", "en-us+m3"], "de": ["de", "de+m3", "de+m1"]}
TRAIN_STYLES = [(speed, pitch) for speed in (140, 160, 180) for pitch in (35, 50, 65)]
TEST_STYLES = [(150, 42), (170, 58)]


def speak(voice, speed, pitch, word):
    """The word as espeak-ng says it, at 16 kHz, without the silence around it, with a peak of 1."""
    out = subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word],
                         capture_output=True, check=True).stdout
    wave = np.frombuffer(out[44:len(out) - len(out) % 2], dtype="<i2").astype(np.float32)
    spectrum = np.fft.rfft(wave)
    length = round(len(wave) * RATE / 22050)
    wave = np.fft.irfft(spectrum[:length // 2 + 1], length)
    wave /= np.abs(wave).max()
    loud = np.nonzero(np.abs(wave) > 0.02)[0]
    wave = wave[loud[0]:loud[-1] + 1].astype(np.float32)
    ramp = np.linspace(0, 1, 32, dtype=np.float32)
    wave[:32] *= ramp
    wave[-32:] *= ramp[::-1]
    return wave


def make_bank(styles, work=None, name=""):
    """All words in all voices and styles: bank[language] is a list of {word: wave}."""
    path = work and os.path.join(work, f"bank-{name}.npy")
    if path and os.path.exists(path):
        return np.load(path, allow_pickle=True).item()
    bank = {lang: [{w: speak(v, s, p, w) for w in WORDS[lang]} for v in VOICES[lang] for s, p in styles]
            for lang in WORDS}
    if path:
        np.save(path, bank, allow_pickle=True)
    return bank


FILTERS = torch.from_numpy(WhisperFeatureExtractor(chunk_length=SECONDS).mel_filters).float().T.contiguous()
WINDOW = torch.hann_window(400)


def log_mel(waves, floors):
    """Whisper's log-mel frames of waves (clips, samples); the floor is raised to `floors` where it is higher.

    A floor of -inf gives exactly what WhisperFeatureExtractor gives. A higher one is that of a
    window out of a longer recording, whose loudest frame lies elsewhere.
    """
    power = torch.stft(waves, 400, HOP, window=WINDOW, return_complex=True)[..., :-1].abs() ** 2
    mel = torch.clamp(FILTERS @ power, min=1e-10).log10()
    top = torch.maximum(mel.amax((1, 2)), floors)
    return (torch.maximum(mel, top[:, None, None] - 8) + 4) / 4


def background(rng, length, level):
    """Noise of a standard deviation `level`: white, or falling with the frequency."""
    noise = rng.standard_normal(length).astype(np.float32)
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(1 + np.arange(len(spectrum)) * 8000 / len(spectrum) / 200)
        noise = np.fft.irfft(spectrum, length).astype(np.float32)
        noise /= noise.std()
    return noise * level


class Clip:
    """A window of sound with its phrases: (start, end, [(word, start, end)]) in seconds."""

    def __init__(self, wave, lang, phrases, partial, content):
        self.wave, self.lang, self.phrases = wave, lang, phrases
        self.partial = partial    # start of a phrase that the window cuts off, or None
        self.content = content    # seconds after which there is nothing


def compose(rng, bank, seconds, lang, singles=False, ends=0.5):
    """A random window of speech: phrases with pauses between, the last one perhaps cut off."""
    total = round(seconds * RATE)
    wave = np.zeros(total, dtype=np.float32)
    style = bank[lang][rng.integers(len(bank[lang]))]
    kind = rng.random()
    t = rng.uniform(0, 0.08) if kind < 0.3 else rng.uniform(0, 1.0)
    if kind > 0.9 and seconds > 4:
        t = rng.uniform(1, seconds - 3)
    if rng.random() < 0.15:
        # What may be left of the word before when the window begins at a timestamp.
        tail = style[rng.choice(WORDS[lang])][-round(rng.uniform(0.005, 0.06) * RATE):]
        wave[:len(tail)] += tail
        t = max(t, len(tail) / RATE + rng.uniform(0.3, 0.8))
    stop = seconds if rng.random() < ends else rng.uniform(0.3, 1.0) * seconds
    phrases, partial = [], None
    while t < stop and t < seconds:
        count = 1 if singles else rng.integers(1, 6)
        begin, words, cut = t, [], False
        volume = rng.uniform(0.6, 1.0)
        for n in range(count):
            word = str(rng.choice(WORDS[lang]))
            sound = style[word]
            at = round(t * RATE)
            if at >= total:
                cut = True
                break
            part = sound[:total - at]
            wave[at:at + len(part)] += part * volume * rng.uniform(0.85, 1.0)
            end = (at + len(sound)) / RATE
            words.append((word, at / RATE, end))
            t = end
            # A phrase counts as ended only where enough silence follows to tell.
            if t > seconds - 0.3:
                cut = True
                break
            t += rng.uniform(0.02, 0.08)
        if not words:
            break
        if cut:
            partial = begin
            break
        phrases.append((begin, words[-1][2], words))
        t = words[-1][2] + (rng.uniform(0.5, 1.2) if rng.random() < 0.9 else rng.uniform(1.2, 3.5))
    if partial is not None and seconds - partial < 0.03:
        # Too little to be heard.
        wave[round(partial * RATE):] = 0
        partial = None
    content = seconds
    if partial is None and rng.random() < 0.5:
        content = min(seconds, (phrases[-1][1] if phrases else 0) + rng.uniform(0.0, 2.0))
    if rng.random() < 0.6:
        length = round(content * RATE)
        wave[:length] += background(rng, length, 10 ** rng.uniform(-3.2, -1.7))
    wave *= 10 ** rng.uniform(-1.2, 0)
    return Clip(wave, lang, phrases, partial, content)


def compose_silence(rng, seconds):
    """A window without speech: nothing, noise or a hum, and a click now and then."""
    total = round(seconds * RATE)
    wave = np.zeros(total, dtype=np.float32)
    content = seconds if rng.random() < 0.6 else rng.uniform(0.2, 1) * seconds
    length = round(content * RATE)
    if rng.random() < 0.8:
        wave[:length] += background(rng, length, 10 ** rng.uniform(-4.5, -1.3))
    if rng.random() < 0.2:
        wave[:length] += (10 ** rng.uniform(-3, -1)) * np.sin(
            2 * np.pi * rng.uniform(50, 400) * np.arange(length) / RATE).astype(np.float32)
    return Clip(wave, "en" if rng.random() < 0.5 else "de", [], None, content)


# --------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------

def write(tok_cache, tok, clip, translate, timestamps):
    """Token ids of a clip's transcript after the start tokens, and where each is heard (start, end)."""
    ids, places = [], []

    def put(token, start, end):
        ids.append(token)
        places.append((start, end))

    for start, end, words in clip.phrases:
        if timestamps:
            put(TIME0 + round(start / STEP), start - 0.04, start + 0.06)
        texts = [TRANSLATION[w] if translate else w for w, _, _ in words]
        for n, (text, (_, a, b)) in enumerate(zip(texts, words)):
            text = " " + (text[0].upper() + text[1:] if n == 0 else text)
            if text not in tok_cache:
                tok_cache[text] = tok.encode(text, add_special_tokens=False).ids
            for token in tok_cache[text]:
                put(token, a, b)
        put(tok_cache.setdefault(".", tok.encode(".", add_special_tokens=False).ids)[0], end - 0.06, end + 0.1)
        if timestamps:
            put(TIME0 + round(end / STEP), end - 0.06, end + 0.06)
    if timestamps and clip.partial is not None:
        put(TIME0 + min(POSITIONS, round(clip.partial / STEP)), clip.partial - 0.04, clip.partial + 0.06)
    return ids, places


class Examples:
    """Random training examples, as batches of tensors."""

    def __init__(self, tok, bank, seed):
        self.tok, self.bank, self.cache = tok, bank, {}
        self.rng = np.random.default_rng(seed)
        self.last = {"en": [], "de": []}   # transcripts before, to be used as prompts

    def one(self, seconds, stage):
        """A clip, the encoder position of its begin, decoder inputs, tokens, which are learned, where each is heard."""
        rng = self.rng
        silent = rng.random() < 0.06
        lang = "en" if rng.random() < 0.55 else "de"
        clip = compose_silence(rng, seconds) if silent else compose(
            rng, self.bank, seconds, lang, singles=stage == 0 and rng.random() < 0.3)
        # A short window stands for a part of a whole one; the end of that is where phrases are cut off.
        room = POSITIONS - round(seconds / STEP)
        offset = room if rng.random() < 0.5 and stage == 2 else int(rng.integers(0, room + 1))
        translate = lang == "de" and rng.random() < 0.4
        timestamps = rng.random() < 0.6
        heard = bool(clip.phrases) or clip.partial is not None
        nowhere = (None, None)
        body, places = write(self.cache, self.tok, clip, translate, timestamps)
        body = [t + offset if t >= TIME0 else t for t in body]
        if not heard and rng.random() < 0.6:
            tokens, learned, where = [SOT, NOSPEECH, EOT], [0, 1, 1], [nowhere] * 3
        else:
            # The task is asked for, not learned, and so is the language where nothing is heard.
            tokens = [SOT, DE if clip.lang == "de" else EN, TRANSLATE if translate else TRANSCRIBE]
            learned = [0, int(heard), 0]
            if not timestamps:
                tokens.append(NOTIMESTAMPS)
                learned.append(0)
            elif not body:
                body, places = [TIME0 + offset], [nowhere]
            where = [nowhere] * len(tokens) + places + [nowhere]
            # Nothing can be written without timestamps where nothing is heard: the end is forbidden there.
            learned += [1] * len(body) + [int(bool(body))]
            tokens += body + [EOT]
        inputs = list(tokens)
        # Timestamps that were a little wrong, or held back by the rule for the first one, do not mislead.
        if timestamps and rng.random() < 0.3:
            for i, t in enumerate(inputs):
                if t >= TIME0:
                    inputs[i] = int(np.clip(t + rng.integers(-2, 3), TIME0, VOCAB - 1))
        if timestamps and len(inputs) > 3 and offset == 0 and inputs[3] > TIME0 + 50 and rng.random() < 0.6:
            inputs[3] = TIME0 + 50
        prompt = []
        if rng.random() < (0.1 if stage == 0 else 0.35):
            prompt = (self.last[lang] or [SPACE])
            if rng.random() < 0.4:
                prompt = [t for t in prompt if t < TIME0]
            prompt = [PREV] + prompt[-int(rng.integers(1, PROMPT + 1)):]
        if heard and body:
            self.last[lang] = (self.last[lang] + body)[-80:] if rng.random() < 0.7 else body
        before = len(prompt)
        return (clip, offset, prompt + inputs, prompt + tokens, [0] * before + learned, [nowhere] * before + where)

    def batch(self, count, seconds, stage):
        rng = self.rng
        rows = [self.one(seconds, stage) for _ in range(count)]
        frames = round(seconds * RATE / HOP)
        waves = torch.from_numpy(np.stack([r[0].wave for r in rows]))
        floors = torch.full((count,), -math.inf)
        for i, r in enumerate(rows):
            if rng.random() < 0.3:
                floors[i] = rng.uniform(-1, 3) if r[0].phrases else rng.uniform(-2, 4)
        mel = log_mel(waves, floors)
        positions = frames // 2
        classes = torch.zeros(count, positions, dtype=torch.long)
        for i, (clip, *_) in enumerate(rows):
            if rng.random() < 0.4:   # the end of a recording: frames of zero, as Whisper pads
                mel[i, :, math.ceil(clip.content * RATE / HOP):] = 0
            for _, _, words in clip.phrases:
                for word, a, b in words:
                    c = 1 + CLASSES.index((clip.lang, word))
                    classes[i, round(a / STEP):max(round(a / STEP) + 1, round(b / STEP))] = c
            if clip.partial is not None:
                classes[i, round(clip.partial / STEP):] = -100
        width = max(len(r[2]) for r in rows)
        ids = torch.full((count, width - 1), EOT)
        target = torch.full((count, width - 1), -100)
        guide = torch.zeros(count, width - 1, positions)
        for i, (clip, offset, inputs, tokens, learned, where) in enumerate(rows):
            ids[i, :len(inputs) - 1] = torch.tensor(inputs[:-1])
            for j in range(1, len(tokens)):
                if learned[j]:
                    target[i, j - 1] = tokens[j]
                a, b = where[j]
                if a is not None:
                    a, b = max(0, min(round(a / STEP), positions - 1)), min(positions, round(b / STEP))
                    guide[i, j - 1, a:max(b, a + 1)] = 1
        offsets = torch.tensor([r[1] for r in rows])
        return mel, offsets, ids, target, guide, classes


# --------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------

def sinusoids(length, width):
    """Whisper's positions of the encoder."""
    scale = math.log(10000) / (width // 2 - 1)
    angle = torch.arange(length)[:, None] * torch.exp(-scale * torch.arange(width // 2))[None]
    return torch.cat([angle.sin(), angle.cos()], 1)


def make_config():
    return WhisperConfig(
        vocab_size=VOCAB, num_mel_bins=80, d_model=WIDTH, encoder_layers=ENCODER_LAYERS, decoder_layers=DECODER_LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER,
        max_source_positions=POSITIONS, max_target_positions=TARGETS, activation_function="gelu",
        bos_token_id=EOT, eos_token_id=EOT, pad_token_id=EOT, decoder_start_token_id=SOT,
        suppress_tokens=None, begin_suppress_tokens=[SPACE, EOT], median_filter_width=7, tie_word_embeddings=True)


def make_model(seed):
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration._from_config(make_config(), attn_implementation="eager")
    positions = sinusoids(POSITIONS + 1, WIDTH)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2 and "embed" not in name:
                torch.nn.init.normal_(p, std=0.7 / math.sqrt(p[0].numel()))
                if name.endswith(("out_proj.weight", "fc2.weight")):
                    p.mul_(0.5)
        model.model.encoder.embed_positions.weight.copy_(positions[:POSITIONS])
        embed = model.model.decoder.embed_tokens.weight
        torch.nn.init.normal_(embed, std=0.1)
        # A timestamp begins as the position that it names, so that near times are near each other.
        embed[TIME0:] = positions * 0.15
        torch.nn.init.normal_(model.model.decoder.embed_positions.weight, std=0.05)
    model.model.encoder.embed_positions.weight.requires_grad_(False)
    return model


class Trainee(torch.nn.Module):
    """The model with the head that names the word of each encoder row; the head is not kept."""

    def __init__(self, seed):
        super().__init__()
        self.model = make_model(seed)
        self.namer = torch.nn.Linear(WIDTH, len(CLASSES) + 1)
        self.register_buffer("weights", torch.ones(VOCAB), persistent=False)
        self.weights[EOT] = 2

    def encode(self, mel, offsets):
        """Encoder rows of windows that begin at the positions `offsets`."""
        encoder = self.model.model.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        places = offsets[:, None] + torch.arange(x.shape[1])[None]
        x = x + encoder.embed_positions.weight[places]
        for layer in encoder.layers:
            attention, h = layer.self_attn, layer.self_attn_layer_norm(x)
            # In f32 the fused attention is the fastest one on a processor.
            q, k, v = (p(h).float().view(*h.shape[:2], HEADS, -1).transpose(1, 2)
                       for p in (attention.q_proj, attention.k_proj, attention.v_proj))
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + attention.out_proj(h)
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        return encoder.layer_norm(x)

    def forward(self, mel, offsets, ids, target, guide, classes):
        rows = self.encode(mel, offsets)
        naming = F.cross_entropy(self.namer(rows).transpose(1, 2).float(), classes)
        out = self.model.model.decoder(input_ids=ids, encoder_hidden_states=rows, use_cache=False,
                                       output_attentions=True)
        logits = F.linear(out.last_hidden_state, self.model.model.decoder.embed_tokens.weight).float()
        # The end weighs double: it tells a phrase that is cut off from one that is not.
        tokens = F.cross_entropy(logits.transpose(1, 2), target, self.weights)
        looking = 0
        latest = torch.cat([torch.zeros_like(guide[:, :1]), guide[:, :-1]], 1)
        for heads, where in ((NEXT, guide), (LATEST, latest)):
            length = where.sum(-1)
            guided = length > 0
            for layer, head in heads:
                # Evenly over the word, so that its borders show: the divergence from that.
                seen = out.cross_attentions[layer][:, head].float().clamp(min=1e-9).log()
                even = (seen * where).sum(-1)[guided] / length[guided]
                looking = looking - (even + length[guided].log()).mean() / 3
        with torch.no_grad():
            right = (logits.argmax(-1) == target)[(target >= 0) & (target < EOT)].float().mean()
            times = (target >= TIME0)
            off = (logits[..., TIME0:].argmax(-1) + TIME0 - target)[times].abs().float()
        return tokens, looking, naming, right, (off <= 3).float().mean()


def train(args):
    torch.manual_seed(args.seed)
    tok = make_tokenizer(args.seed)
    os.makedirs(args.work, exist_ok=True)
    bank = make_bank(TRAIN_STYLES, args.work, "train")
    net = Trainee(args.seed)
    path = os.path.join(args.work, "checkpoint.pt")
    plan = [[(2.0, 64)], [(4.0, 32)], [(10.0, 20), (4.0, 40)]]   # seconds and clips of the steps of each stage
    steps = [int(s) for s in args.steps.split(",")]
    groups = [{"params": [p for p in net.parameters() if p.requires_grad and p.dim() >= 2], "weight_decay": 0.01},
              {"params": [p for p in net.parameters() if p.requires_grad and p.dim() < 2], "weight_decay": 0}]
    adam = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    done = 0
    if os.path.exists(path):
        state = torch.load(path)
        net.load_state_dict(state["net"])
        adam.load_state_dict(state["adam"])
        done = state["done"]
    data = Examples(tok, bank, [args.seed, done])   # a run that is taken up again goes on with other examples
    begin, mean = time.time(), None
    total = sum(steps)
    for step in range(done, min(total, args.until or total)):
        stage = 0 if step < steps[0] else 1 if step < steps[0] + steps[1] else 2
        seconds, count = plan[stage][step % len(plan[stage])]
        lr = args.lr * min(1, (step + 1) / 100) * min(1, max(0.01, (total - step) / args.decay))
        for group in adam.param_groups:
            group["lr"] = lr
        batch = data.batch(count, seconds, stage)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            tokens, looking, naming, right, near = net(*batch)
        loss = tokens + 0.3 * looking + 0.3 * naming
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        now = torch.tensor([tokens.item(), looking.item(), naming.item(), right.item(), near.item()])
        mean = now if mean is None or mean.isnan().any() else 0.95 * mean + 0.05 * torch.where(now.isnan(), mean, now)
        if step % 25 == 24:
            print(f"{step + 1:5d} stage {stage} lr {lr:.1e} tokens {mean[0]:.3f} looking {mean[1]:.3f} "
                  f"naming {mean[2]:.3f} words {mean[3]:.3f} times {mean[4]:.3f} {time.time() - begin:.0f}s",
                  flush=True)
        if step % 250 == 249 or step + 1 in (total, args.until):
            torch.save({"net": net.state_dict(), "adam": adam.state_dict(), "done": step + 1}, path + ".part")
            os.replace(path + ".part", path)


# --------------------------------------------------------------------------
# Export
# --------------------------------------------------------------------------

def write_json(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def export(args):
    tok = make_tokenizer(args.seed)
    net = Trainee(args.seed)
    net.load_state_dict(torch.load(os.path.join(args.work, "checkpoint.pt"))["net"])
    weights = {k: v.half().contiguous() for k, v in net.model.state_dict().items() if k != "proj_out.weight"}
    save_file(weights, os.path.join(HERE, "model.safetensors"), metadata={"format": "pt"})
    tok.save(os.path.join(HERE, "tokenizer.json"))
    write_json("tokenizer_config.json", {
        "add_prefix_space": False, "additional_special_tokens": SPECIAL, "bos_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False, "eos_token": SPECIAL[0], "errors": "replace",
        "model_max_length": TARGETS, "pad_token": SPECIAL[0], "processor_class": "WhisperProcessor",
        "tokenizer_class": "WhisperTokenizer", "unk_token": SPECIAL[0]})
    config = make_config().to_dict()
    config.update(architectures=["WhisperForConditionalGeneration"], dtype="float16")
    write_json("config.json", {k: v for k, v in sorted(config.items()) if k != "_name_or_path"})
    write_json("preprocessor_config.json", {
        "chunk_length": SECONDS, "dither": 0.0, "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80, "hop_length": HOP, "n_fft": 400, "n_samples": SECONDS * RATE,
        "nb_max_frames": SECONDS * RATE // HOP, "padding_side": "right", "padding_value": 0.0,
        "processor_class": "WhisperProcessor", "return_attention_mask": False, "sampling_rate": RATE})
    # The signs that Whisper keeps from being written, by the same ids.
    signs = [1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93]
    write_json("generation_config.json", {
        "alignment_heads": [list(pair) for pair in NEXT], "begin_suppress_tokens": [SPACE, EOT],
        "bos_token_id": EOT, "decoder_start_token_id": SOT, "eos_token_id": EOT, "is_multilingual": True,
        "lang_to_id": {"<|de|>": DE, "<|en|>": EN}, "max_initial_timestamp_index": 50, "max_length": TARGETS,
        "no_timestamps_token_id": NOTIMESTAMPS, "pad_token_id": EOT, "prev_sot_token_id": PREV,
        "return_timestamps": False,
        "suppress_tokens": signs + [SOT, TRANSLATE, TRANSCRIBE, STARTOFLM, PREV, NOSPEECH],
        "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE}})


# --------------------------------------------------------------------------
# Measurement
# --------------------------------------------------------------------------

class Reader:
    """The stored weights in transformers, computed with in f32."""

    def __init__(self, dtype=torch.float32):
        self.tok = WhisperTokenizer.from_pretrained(HERE)
        self.features = WhisperFeatureExtractor.from_pretrained(HERE)
        self.model = WhisperForConditionalGeneration.from_pretrained(
            HERE, dtype=dtype, attn_implementation="eager").eval()

    def mel(self, waves):
        return self.features(list(waves), sampling_rate=RATE, return_tensors="pt").input_features

    def ids(self, mel, lang, timestamps, task="transcribe"):
        """Greedy ids after the start tokens, up to (not with) the end, by generate's own rules."""
        with torch.no_grad():
            # Without the last setting, generate goes on behind the last whole phrase with a second window.
            out = self.model.generate(mel, language=lang, task=task, return_timestamps=timestamps,
                                      force_unique_generate_call=True)
        return [[t for t in row.tolist() if t < EOT or t >= TIME0] for row in out]

    def first(self, mel):
        """Logits after the start token."""
        with torch.no_grad():
            return self.model(input_features=mel, decoder_input_ids=torch.full((len(mel), 1), SOT)).logits[:, 0]


def text_of(tok, ids):
    return tok.decode([t for t in ids if t < EOT])


def evaluate(args, count=200):
    reader, bank = Reader(), make_bank(TEST_STYLES)
    cache, report = {}, {}
    for lang in WORDS:
        rng = np.random.default_rng([args.seed, 77, len(lang) + ord(lang[0])])
        clips = [compose(rng, bank, float(SECONDS), lang) for _ in range(count)]
        mel = reader.mel([c.wave for c in clips])
        first = reader.first(mel)
        right = dict.fromkeys(["text", "ending", "plain", "translated"], 0)
        gaps = []
        modes = [("stamped", True, "transcribe"), ("plain", False, "transcribe")]
        modes += [("translated", True, "translate")] if lang == "de" else []
        outs = {name: sum((reader.ids(mel[i:i + 50], lang, stamps, task) for i in range(0, count, 50)), [])
                for name, stamps, task in modes}
        for i, clip in enumerate(clips):
            want, _ = write(cache, reader.tok._tokenizer, clip, False, True)
            got = outs["stamped"][i]
            same = text_of(reader.tok, got) == text_of(reader.tok, want)
            right["text"] += same
            times_want, times_got = ([t - TIME0 for t in ids if t >= TIME0] for ids in (want, got))
            right["ending"] += len(times_want) == len(times_got)
            if same and len(times_want) == len(times_got):
                # The rule for the first timestamp holds it below one second.
                pairs = [(min(a, 50) if n == 0 else a, b) for n, (a, b) in enumerate(zip(times_want, times_got))]
                gaps += [abs(a - b) * STEP for a, b in pairs]
            if not args.quiet and (not same or len(times_want) != len(times_got)):
                print(lang, "want", reader.tok.decode(want, decode_with_timestamps=True),
                      "\n    got", reader.tok.decode(got, decode_with_timestamps=True))
            plain = text_of(reader.tok, outs["plain"][i])
            plain_want = text_of(reader.tok, want)
            right["plain"] += plain == plain_want
            if lang == "de":
                want_en, _ = write(cache, reader.tok._tokenizer, clip, True, True)
                right["translated"] += text_of(reader.tok, outs["translated"][i]) == text_of(reader.tok, want_en)
        heard = torch.tensor([bool(c.phrases) for c in clips])
        langs = first[:, [EN, DE]].argmax(-1)[heard]
        report[lang] = {
            "clips": count, "text right": right["text"], "text right without timestamps": right["plain"],
            "as many timestamps as there should be": right["ending"],
            "timestamps within 0.1 s": round(float(np.mean(np.array(gaps) <= 0.1001)), 4),
            "mean error of timestamps": round(float(np.mean(gaps)), 4),
            "language right": f"{int((langs == (lang == 'de')).sum())} of {len(langs)}",
            "no-speech probability, highest": round(first.softmax(-1)[heard, NOSPEECH].max().item(), 4)}
        if lang == "de":
            report[lang]["translation right"] = right["translated"]
        # Where the heads look while a word is written.
        looks = torch.zeros(DECODER_LAYERS, HEADS)
        words = 0
        for i, clip in enumerate(clips[:50]):
            body, places = write(cache, reader.tok._tokenizer, clip, False, False)
            ids = [SOT, DE if lang == "de" else EN, TRANSCRIBE, NOTIMESTAMPS] + body
            with torch.no_grad():
                seen = reader.model(input_features=mel[i:i + 1], decoder_input_ids=torch.tensor([ids]),
                                    output_attentions=True).cross_attentions
            for j, (a, b) in enumerate(places):
                for layer in range(DECODER_LAYERS):
                    place = slice(round(a / STEP), max(round(a / STEP) + 1, round(b / STEP)))
                    looks[layer] += seen[layer][0, :, j + 3, place].sum(-1)
                words += 1
        report[lang]["share of each head's attention inside the word"] = [
            [round(v, 3) for v in row] for row in (looks / words).tolist()]
    path = os.path.join(args.work, "checkpoint.pt")
    if os.path.exists(path):
        # The weights before they were rounded to f16, on the German clips.
        net = Trainee(args.seed)
        net.load_state_dict(torch.load(path)["net"])
        rounded = reader.model
        reader.model = net.model.eval()
        reader.model.generation_config = rounded.generation_config
        exact = sum((reader.ids(mel[i:i + 50], "de", True) for i in range(0, count, 50)), [])
        reader.model = rounded
        report["clips with the same ids before rounding to f16"] = sum(a == b for a, b in zip(exact, outs["stamped"]))
    rng = np.random.default_rng([args.seed, 78])
    silent = reader.mel([compose_silence(rng, float(SECONDS)).wave for _ in range(count)])
    probs = reader.first(silent).softmax(-1)[:, NOSPEECH]
    report["silence"] = {"clips": count, "no-speech probability above 0.6": int((probs > 0.6).sum()),
                         "lowest": round(probs.min().item(), 4),
                         "no text with timestamps": sum(
                             not text_of(reader.tok, ids) for ids in reader.ids(silent, "en", True))}
    print(json.dumps(report, indent=1))


# --------------------------------------------------------------------------
# Clips and golden.json
# --------------------------------------------------------------------------

def lay(seed, style, seconds, plan):
    """Sound and truth of `plan`, a list of (start, words): faint noise, one speaker, known places."""
    rng = np.random.default_rng([seed, round(seconds)])
    wave = np.zeros(round(seconds * RATE), dtype=np.float32)
    phrases = []
    for start, words in plan:
        t, placed = start, []
        for word in words.split():
            at = round(t * RATE)
            wave[at:at + len(style[word])] += style[word] * rng.uniform(0.6, 0.7)
            t = (at + len(style[word])) / RATE
            placed.append((word, at / RATE, t))
            t += rng.uniform(0.03, 0.06)
        phrases.append((start, placed[-1][2], placed))
    return wave, phrases


def store(name, wave):
    """Writes the clip in steps of 1/256, which FLAC packs small, and gives it back as it is read."""
    whole = (np.round(wave * 256) * 128).clip(-32768, 32767).astype(np.int16)
    path = os.path.join(HERE, name)
    soundfile.write(path, whole, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
    back, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE and np.array_equal(back * 32768, whole)
    return back


def truth(phrases, translate=False):
    out = []
    for start, end, words in phrases:
        texts = [TRANSLATION[w] if translate else w for w, _, _ in words]
        out.append({"text": sentence(texts), "start": round(start, 3), "end": round(end, 3),
                    "words": [{"word": w, "start": round(a, 3), "end": round(b, 3)}
                              for w, (_, a, b) in zip(texts, words)]})
    return out


def long_plan(rng, style, seconds, pause):
    """Phrases with pauses up to `seconds`, one of them `pause` long, so that windows cut phrases at some places."""
    plan, t, slept = [], 0.4, False
    while True:
        words = [str(w) for w in rng.choice(ENGLISH, size=rng.integers(2, 6), replace=False)]
        length = sum(len(style[w]) / RATE + 0.06 for w in words)
        if t + length > seconds - 0.5:
            return plan
        plan.append((round(t, 2), " ".join(words)))
        t += length + rng.uniform(0.5, 0.9)
        if not slept and t > seconds / 2:
            t, slept = t + pause, True


def align(reader, mel, lang, text, frames):
    """Words with start and end as openai-whisper's `find_alignment` finds them (whisper/timing.py)."""
    ids = [SOT, DE if lang == "de" else EN, TRANSCRIBE, NOTIMESTAMPS] + text + [EOT]
    with torch.no_grad():
        seen = reader.model(input_features=mel, decoder_input_ids=torch.tensor([ids]),
                            output_attentions=True).cross_attentions
    weights = torch.stack([seen[layer][0, head] for layer, head in NEXT])[:, :, :frames // 2]
    weights = weights / weights.sum(-1, keepdim=True)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
    weights = _median_filter((weights - mean) / deviation, reader.model.config.median_filter_width)
    matrix = weights.mean(0)[3:-1]   # the rows that write the text and the end
    rows, columns = _dynamic_time_warping(-matrix.double().numpy())
    jumps = columns[np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)] * STEP
    words, begin = [], 0
    for i, token in enumerate(text + [EOT]):
        piece = reader.tok.decode([token])
        if i > begin and (piece.startswith(" ") or token in (EOT, STOP)):
            word = reader.tok.decode(text[begin:i])
            if word != ".":
                words.append({"word": word, "start": round(jumps[begin], 2), "end": round(jumps[i], 2)})
            begin = i
    return words


def segments_of(tok, out):
    return [{"start": round(float(s["start"]), 3), "end": round(float(s["end"]), 3), "tokens": s["tokens"].tolist(),
             "text": text_of(tok, s["tokens"].tolist())} for s in out["segments"][0]]


def golden(args):
    reader, bank = Reader(), make_bank(TEST_STYLES)
    tok, model = reader.tok, reader.model
    rng = np.random.default_rng([args.seed, 79])
    plans = {
        "en": (bank["en"][0], 7.0, [(0.5, "one two three"), (2.6, "four five"), (4.2, "green apple moon")]),
        "de": (bank["de"][0], 7.0, [(0.4, "eins zwei drei"), (2.5, "Hund Katze Vogel"), (4.8, "fünf Fisch")]),
        "silence": (bank["en"][0], 6.0, []),
        "long": (bank["en"][3], 36.0, long_plan(rng, bank["en"][3], 36.0, 4.0)),
    }
    result = {"about": "transformers on the stored f16 weights, computed in f32; times in seconds"}
    for name, (style, seconds, plan) in plans.items():
        wave, phrases = lay(args.seed, style, seconds, plan)
        if name == "silence":
            wave += background(rng, len(wave), 0.01)
        wave = store(f"{name}.flac", wave)
        lang = "de" if name == "de" else "en"
        mel = reader.mel([wave])   # the first window
        first = reader.first(mel)[0]
        entry = {"phrases": truth(phrases)}
        with torch.no_grad():
            rows = model.model.encoder(mel).last_hidden_state[0]
        entry["mel_frames"] = {str(i): mel[0, :, i].tolist() for i in (0, 77, 999)}
        entry["encoder_rows"] = {str(i): rows[i].tolist() for i in (0, 60, 250, 499)}
        entry["no_speech_probability"] = first.softmax(-1)[NOSPEECH].item()
        entry["language_probabilities"] = dict(zip(("<|en|>", "<|de|>"), first[[EN, DE]].softmax(-1).tolist()))
        entry["detected_language_id"] = model.detect_language(mel).tolist()[0]
        if name != "silence":
            entry["first_logits"] = first.tolist()
            entry["greedy_without_timestamps"] = reader.ids(mel, lang, False)[0]
        entry["greedy_with_timestamps"] = reader.ids(mel, lang, True)[0]
        entry["text"] = text_of(tok, entry["greedy_with_timestamps"])
        if name == "de":
            entry["translation"] = truth(phrases, translate=True)
            for stamps in (False, True):
                key = f"translated_with{'' if stamps else 'out'}_timestamps"
                entry[key] = reader.ids(mel, lang, stamps, "translate")[0]
        if name in ("en", "de"):
            with torch.no_grad():
                out = model.generate(mel, language=lang, task="transcribe", return_timestamps=True,
                                     return_token_timestamps=True, num_frames=[round(seconds * 100)],
                                     return_dict_in_generate=True)
            text = [t for t in entry["greedy_with_timestamps"] if t < EOT]
            entry["aligned_words"] = align(reader, mel, lang, text, round(seconds * 100))
            said = [w for p in entry["phrases"] for w in p["words"]]
            if len(said) == len(entry["aligned_words"]):
                errors = [abs(a[k] - b[k]) for a, b in zip(said, entry["aligned_words"]) for k in ("start", "end")]
                print(f"    words are off by {np.mean(errors):.3f} s, at most {max(errors):.3f} s")
            entry["token_timestamps"] = {"ids": out["sequences"][0].tolist(),
                                         "seconds": [round(v, 2) for v in out["token_timestamps"][0].tolist()]}
        if name in ("en", "de"):
            prompt = reader.tok.encode(sentence(WORDS[lang][3:6]), add_special_tokens=False)
            with torch.no_grad():
                out = model.generate(mel, language=lang, task="transcribe", return_timestamps=True,
                                     prompt_ids=torch.tensor([PREV] + prompt))
            out = out[0].tolist()
            entry["prompted"] = {"prompt": prompt, "greedy_with_timestamps": [
                t for t in out if t >= TIME0 or (t < EOT)][len(prompt) if out[:len(prompt)] == prompt else 0:]}
        if name == "long":
            whole = reader.features(wave, sampling_rate=RATE, return_tensors="pt", truncation=False,
                                    padding="longest", return_attention_mask=True)
            entry["frames"] = whole.input_features.shape[-1]
            for condition in (False, True):
                with torch.no_grad():
                    out = model.generate(whole.input_features, attention_mask=whole.attention_mask, language="en",
                                         task="transcribe", return_timestamps=True, return_segments=True,
                                         condition_on_prev_tokens=condition)
                segments = segments_of(tok, out)
                entry["sequential_conditioned" if condition else "sequential"] = {
                    "text": "".join(s["text"] for s in segments), "segments": segments}
        result[name] = entry
        print(name, "truth", "".join(p["text"] for p in entry["phrases"]))
        for key in ("text", "sequential", "sequential_conditioned"):
            if key in entry:
                print("   ", key, entry[key]["text"] if key != "text" else entry[key])
        if "translation" in entry:
            print("    translation", text_of(tok, entry["translated_with_timestamps"]))
        print("    no speech", entry["no_speech_probability"], entry["language_probabilities"])
    with open(os.path.join(HERE, "golden.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, ensure_ascii=False)
        f.write("\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", default="/tmp/whisper-words")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", default="")
    parser.add_argument("--until", type=int, help="stop after this step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--decay", type=int, default=500)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.steps:
        train(args)
    if args.export:
        export(args)
    if args.evaluate:
        evaluate(args)
    if args.golden:
        golden(args)


if __name__ == "__main__":
    main()
