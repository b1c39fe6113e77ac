//! The variants that are compiled: those that models of real shapes use on each of the program's device profiles.

use std::collections::HashSet;
use std::sync::Arc;

use wginfer::bench::SHAPES;
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{EncoderOptions, Engine, EngineOptions, TextEncoder};
use wginfer::gpu::{Gpu, Profile, Tuning, Variant, profiles};
use wginfer::models::ModelKind;
use wginfer::ops;

/// Types of the weights in the file, after quantisation, and of the cache.
type Types = (Dtype, Option<Dtype>, Dtype);

/// All types, for one model of each architecture.
const TYPES: [Types; 6] = [
    (Dtype::F32, None, Dtype::F32),
    (Dtype::F16, None, Dtype::F16),
    (Dtype::BF16, None, Dtype::F16),
    (Dtype::F16, Some(Dtype::Q8_0), Dtype::Q8_0),
    (Dtype::F32, Some(Dtype::Q4_0), Dtype::F16),
    (Dtype::BF16, Some(Dtype::Q4_K), Dtype::Q8_0),
];

/// Types of the cache for the other models, which differ in the shapes of heads and in the sizes of products.
const CACHE_TYPES: [Types; 3] =
    [(Dtype::F16, None, Dtype::F32), (Dtype::F16, None, Dtype::F16), (Dtype::F16, None, Dtype::Q8_0)];

/// The models with all types, and with every variant that measurements may choose.
const WHOLE: [&str; 10] = [
    "smollm2-135m",
    "gpt2",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "qwen3-30b-a3b",
    "whisper-tiny",
    "bert",
    "distilbert",
    "roberta",
    "modernbert",
];

/// The model with the quantised types that weights only have as a file stores them. They differ in one part.
const STORED: &str = "smollm2-135m";

/// Configurations beside the named shapes: architectures and features that these lack.
const OTHERS: [(&str, &str); 21] = [
    ("bert", include_str!("../golden/bert-classifier/config.json")),
    ("distilbert", include_str!("../golden/distilbert-classifier/config.json")),
    ("roberta", include_str!("../golden/roberta-classifier/config.json")),
    ("modernbert", include_str!("../golden/modernbert-classifier/config.json")),
    ("llama", include_str!("../golden/llama/config.json")),
    ("llama3-rope", include_str!("../golden/llama3-rope/config.json")),
    ("mistral-window", include_str!("../golden/mistral-window/config.json")),
    ("qwen2", include_str!("../golden/qwen2/config.json")),
    ("qwen3", include_str!("../golden/qwen3/config.json")),
    ("phi3", include_str!("../golden/phi3/config.json")),
    ("phi3-long", include_str!("../golden/phi3-long/config.json")),
    ("smollm3", include_str!("../golden/smollm3/config.json")),
    ("gpt-neox", include_str!("../golden/gpt-neox/config.json")),
    ("granite", include_str!("../golden/granite/config.json")),
    ("ministral3", include_str!("../golden/ministral3/config.json")),
    ("qwen3-moe", include_str!("../golden/qwen3-moe/config.json")),
    ("gpt-oss", include_str!("../golden/gpt-oss/config.json")),
    ("mixtral", include_str!("../golden/mixtral/config.json")),
    ("gemma2", include_str!("../golden/gemma2/config.json")),
    ("gemma3", include_str!("../golden/gemma3/config.json")),
    ("olmo2", include_str!("../golden/olmo2/config.json")),
];

/// The variants of the profiles with these names, each once; of all profiles if there are none.
pub fn of_profiles(gpu: &Gpu, names: &[&str]) -> Vec<Variant> {
    let mut profiles = profiles();
    profiles.retain(|profile| names.is_empty() || names.contains(&profile.name));
    // No variant depends on it, but some models would not fit.
    profiles.iter_mut().for_each(|profile| profile.caps.max_buffer_bytes = u64::MAX);
    let models: Vec<_> =
        SHAPES.iter().chain(&OTHERS).map(|(name, config)| (*name, few_layers(config))).collect();
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for profile in &profiles {
        for (name, config) in &models {
            let is_whole = WHOLE.contains(name);
            for types in if is_whole { &TYPES[..] } else { &CACHE_TYPES } {
                let mut variants = of_model(gpu, profile, name, config, *types, is_whole);
                if *name == STORED && types.1.is_some() {
                    let stored = Dtype::WEIGHTS.into_iter().filter(|dtype| dtype.is_quantised());
                    let with = |dtype| {
                        variants.iter().filter_map(move |v| ops::with_weights(v, dtype, &profile.caps))
                    };
                    let others = stored.flat_map(with);
                    variants = others.chain(variants.clone()).collect();
                }
                all.extend(variants.into_iter().filter(|variant| seen.insert(*variant)));
            }
        }
    }
    all
}

/// A config with four layers, so that a list takes little time: layers are alike, or alternate.
fn few_layers(config: &str) -> String {
    let mut config: serde_json::Value = serde_json::from_str(config).expect("a config");
    for key in ["num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"] {
        if let Some(n) = config.get(key).and_then(serde_json::Value::as_u64) {
            config[key] = n.min(4).into();
        }
    }
    if let Some(types) = config.get_mut("layer_types").and_then(serde_json::Value::as_array_mut) {
        types.truncate(4);
    }
    config.to_string()
}

fn of_model(
    gpu: &Gpu,
    profile: &Profile,
    name: &str,
    config: &str,
    (stored, quantize, kv_dtype): Types,
    tuned: bool,
) -> Vec<Variant> {
    let files = ModelFiles::random(name, config, stored).expect("a shape");
    let mut all = Vec::new();
    // What runs by default, and what measurements may choose: ways of prompts are those of decode rows, and others.
    let ways = if tuned { ops::product_variants(&profile.caps, true) } else { Vec::new() };
    let tuned = ways.into_iter().map(|way| Some(Arc::new(Tuning::same(way))));
    for tuning in std::iter::once(None).chain(tuned) {
        let variants = match files.kind() {
            ModelKind::Encoder => {
                let options = EncoderOptions { quantize, ..EncoderOptions::default() };
                TextEncoder::variants(gpu, &profile.caps, &files, options, tuning)
            }
            ModelKind::Decoder => {
                let shape = files.architecture.shape();
                let whole_blocks = shape.attention.iter().all(|a| a.head_dim.is_multiple_of(32));
                let kv_dtype = if whole_blocks { kv_dtype } else { Dtype::F16 };
                let alignment_heads = if shape.audio.is_some() { vec![[0, 0]] } else { Vec::new() };
                let options = EngineOptions {
                    quantize,
                    kv_dtype,
                    max_seqs: 16,
                    max_logprobs: 5,
                    prompt_logprobs: 16,
                    logits: true,
                    alignment_heads,
                    ..EngineOptions::default()
                };
                Engine::variants(gpu, &profile.caps, &files, options, tuning)
            }
        };
        all.extend(variants.unwrap_or_else(|e| panic!("{name} on {}: {e}", profile.name)));
    }
    all
}
