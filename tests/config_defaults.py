"""Writes `config_defaults.json`: the defaults of the config classes of transformers 5, for the families that wginfer reads.

    python tests/config_defaults.py > tests/config_defaults.json
    python tests/config_defaults.py --check

The second compares the file with the installed transformers (no torch is needed). A test in `checkpoint.rs` holds
wginfer's defaults against the file, and needs neither.
"""

import dataclasses
import json
import os
import sys

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FAMILIES = [
    "bert", "camembert", "distilbert", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "granite", "llama", "ministral3",
    "mistral", "mistral3", "mixtral", "modernbert", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "roberta", "smollm3", "whisper",
    "xlm-roberta",
]


def family(name):
    config_class = CONFIG_MAPPING[name]
    whole = config = config_class()
    if "text_config" in config.sub_configs:
        config = config.text_config
        config_class = type(config)
    table = {field.name: field.default for field in dataclasses.fields(config_class)}
    # The head belongs to the whole model, not to its text model.
    table["tie_word_embeddings"] = whole.tie_word_embeddings
    # No field, but an attribute that the constructor sets.
    table["num_labels"] = config.num_labels
    if hasattr(config, "rope_parameters"):
        theta = getattr(config_class, "default_theta")
        if isinstance(theta, dict):
            table |= {f"{layers}_rope_theta": value for layers, value in theta.items()}
        else:
            table["rope_theta"] = theta
    plain = (bool, int, float, str, type(None))
    return {key: value for key, value in sorted(table.items()) if isinstance(value, plain)}


def main():
    text = json.dumps({"transformers": transformers.__version__} | {name: family(name) for name in FAMILIES}, indent=1)
    if "--check" not in sys.argv:
        print(text)
        return
    with open(os.path.join(os.path.dirname(__file__), "config_defaults.json"), encoding="utf-8") as file:
        stored, found = json.load(file), json.loads(text)
    differ = [(name, key) for name in FAMILIES for key in found[name] if stored[name].get(key) != found[name][key]]
    sys.exit(f"these differ: {differ}" if differ else 0)


main()
