"""Writes tests/golden/blocks.json: blocks of ggml's quantised types, and their values by the Python package `gguf`.

    pip install gguf
    python tests/golden_blocks.py
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where F16 factors stand in a block.
HALVES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}

rng = np.random.default_rng(1)
golden = {}
for name, halves in HALVES.items():
    kind = GGMLQuantizationType[name]
    n, n_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (64 // n or 1, n_bytes), dtype=np.uint8)
    for block in blocks:
        for at in halves:
            # One in eight is subnormal, as in files of Q6_K.
            size = 1e-6 if rng.integers(8) == 0 else 0.01
            block[at : at + 2] = np.array([rng.normal() * size], np.float16).view(np.uint8)
    values = dequantize(blocks.reshape(1, -1), kind).astype("<f4")
    golden[name] = {"blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}

path = Path(__file__).parent / "golden/blocks.json"
lines = [f'  "{name}": {json.dumps(found)}' for name, found in golden.items()]
path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
