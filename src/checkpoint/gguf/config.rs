//! From metadata to the keys of Hugging Face's `config.json`, so that one reader checks their ranges: what
//! architectures share.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::EmbeddingConfig;
use crate::ops::Pooling;
use crate::weights::gguf::Metadata;
use crate::weights::{Weights, WeightsError};

pub(super) type Read<T> = Result<T, WeightsError>;

/// The keys of `config.json`.
#[derive(Default)]
pub(super) struct Config {
    pub(super) keys: Map<String, Value>,
    /// For each key that was copied, the one of the metadata.
    pub(super) sources: BTreeMap<String, String>,
}

impl Config {
    pub(super) fn insert(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.insert(key.into(), value.into());
    }

    /// The contents of `config.json`.
    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(&self.keys).expect("a map of plain values")
    }

    /// The key of the metadata that `key` is a copy of.
    pub(super) fn source(&self, key: &str) -> Option<&str> {
        self.sources.get(key).map(String::as_str)
    }
}

/// The keys of an architecture, and the tensors.
pub(super) struct Keys<'a> {
    pub architecture: &'a str,
    pub metadata: &'a Metadata,
    pub weights: &'a Weights,
}

/// ggml's name of the architecture.
pub(super) fn architecture(metadata: &Metadata) -> Read<&str> {
    const KEY: &str = "general.architecture";
    metadata.text(KEY)?.ok_or_else(|| metadata.wrong(KEY, "the name of an architecture"))
}

/// What a model does with the rows of a text.
pub(super) enum Rows {
    /// Nothing that the file names.
    Any,
    /// They become an embedding.
    Embed(EmbeddingConfig),
    /// They become a score.
    Rank,
}

/// What the model does with the rows of a text.
pub(super) fn rows(metadata: &Metadata) -> Read<Rows> {
    let key = format!("{}.pooling_type", architecture(metadata)?);
    // `enum llama_pooling_type`.
    let pooling = match metadata.whole(&key)? {
        None | Some(0) => return Ok(Rows::Any),
        Some(1) => Pooling::Mean,
        Some(2) => Pooling::First,
        Some(3) => Pooling::Last,
        Some(4) => return Ok(Rows::Rank),
        Some(_) => return Err(metadata.wrong(&key, "0 to 4: mean, first or last row, or a score")),
    };
    let config = EmbeddingConfig { pooling: vec![pooling], is_declared: true, ..EmbeddingConfig::default() };
    Ok(Rows::Embed(config))
}

/// The keys of `generation_config.json`.
pub(super) fn generation(metadata: &Metadata) -> Read<String> {
    let mut config = Map::new();
    for (key, to) in [
        ("temp", "temperature"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("penalty_repeat", "repetition_penalty"),
    ] {
        if let Some(value) = metadata.real(&format!("general.sampling.{key}"))? {
            config.insert(to.into(), json!(value));
        }
    }
    if let Some(n) = metadata.whole("general.sampling.top_k")? {
        config.insert("top_k".into(), json!(n));
    }
    Ok(Value::Object(config).to_string())
}

impl Keys<'_> {
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub fn whole(&self, key: &str) -> Read<Option<u64>> {
        self.metadata.whole(&self.key(key))
    }

    pub fn real(&self, key: &str) -> Read<Option<f64>> {
        self.metadata.real(&self.key(key))
    }

    pub fn wrong(&self, key: &str, expected: impl std::fmt::Display) -> WeightsError {
        self.metadata.wrong(&self.key(key), expected)
    }

    pub fn needed(&self, key: &str) -> Read<u64> {
        self.whole(key)?.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    pub fn needed_real(&self, key: &str) -> Read<f64> {
        self.real(key)?.ok_or_else(|| self.wrong(key, "a number"))
    }

    /// Notes that `to` is the value of `from`.
    pub fn put(&self, config: &mut Config, from: &str, to: &str, value: impl Into<Value>) {
        config.insert(to, value);
        config.sources.insert(to.into(), self.key(from));
    }

    /// Copies whole numbers, all of which must be there, to other keys.
    pub fn copy(&self, config: &mut Config, keys: &[(&str, &str)]) -> Read<()> {
        for (from, to) in keys {
            self.put(config, from, to, self.needed(from)?);
        }
        Ok(())
    }

    /// Copies numbers, all of which must be there, to other keys.
    pub fn copy_real(&self, config: &mut Config, keys: &[(&str, &str)]) -> Read<()> {
        for (from, to) in keys {
            self.put(config, from, to, self.needed_real(from)?);
        }
        Ok(())
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.weights.get(tensor).is_some()
    }

    /// Rows of a tensor.
    pub fn n_rows(&self, tensor: &str) -> Read<usize> {
        let entry = self.weights.get(tensor).and_then(|entry| entry.shape.first());
        entry.copied().ok_or_else(|| {
            let found = format!("{} tensors", self.weights.entries().len());
            WeightsError::Missing { name: tensor.into(), found }
        })
    }

    /// Rows of the embedding.
    pub fn vocab_size(&self) -> Read<usize> {
        self.n_rows("token_embd.weight")
    }
}

/// The products after the pooling: their names and shapes.
pub(super) fn dense(weights: &Weights) -> Vec<(&'static str, [usize; 2])> {
    let shape = |name: &'static str| match weights.get(&format!("{name}.weight"))?.shape[..] {
        [n_out, n_in] => Some((name, [n_out, n_in])),
        _ => None,
    };
    ["dense_2", "dense_3"].into_iter().filter_map(shape).collect()
}

/// Elements of a head.
pub(super) fn head_dim(keys: &Keys<'_>) -> Read<Option<u64>> {
    let named = keys.whole("attention.key_length")?;
    let (width, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    Ok(named.or_else(|| width.checked_div(heads)))
}

/// The sizes that most architectures have, with the names of `config.json`.
pub(super) const SIZES: [(&str, &str); 5] = [
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
];

/// The keys that Llama and its descendants share.
pub(super) fn decoder(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    keys.copy(config, &SIZES)?;
    const KV_HEADS: &str = "attention.head_count_kv";
    let n_kv_heads = keys.whole(KV_HEADS)?;
    let n_heads = keys.needed("attention.head_count")?;
    keys.put(config, KV_HEADS, "num_key_value_heads", n_kv_heads.unwrap_or(n_heads));
    let head_dim = head_dim(keys)?;
    if let (Some(value), Some(key)) = (keys.whole("attention.value_length")?, head_dim)
        && value != key
    {
        return Err(keys.wrong("attention.value_length", format!("{key}, as for keys")));
    }
    if let Some(head_dim) = head_dim {
        keys.put(config, "attention.key_length", "head_dim", head_dim);
    }
    keys.copy_real(config, &[("attention.layer_norm_rms_epsilon", "rms_norm_eps")])?;
    config.insert("vocab_size", keys.vocab_size()?);
    config.insert("tie_word_embeddings", !keys.has("output.weight"));
    config.insert("rope_parameters", rope(keys)?);
    for (from, to) in [("freq_base", "rope_theta"), ("scaling.factor", "factor")] {
        config.sources.insert(format!("rope_parameters.{to}"), keys.key(&format!("rope.{from}")));
    }
    Ok(())
}

/// The part of a head that is rotated.
pub(super) fn partial_rotation(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    const ROTATED: &str = "rope.dimension_count";
    if let (Some(n_rot), Some(head_dim)) = (keys.whole(ROTATED)?, head_dim(keys)?) {
        let part = n_rot as f64 / head_dim as f64;
        // So that it times the size of a head, rounded down, is the number again.
        let part = if ((part * head_dim as f64) as u64) < n_rot { part.next_up() } else { part };
        keys.put(config, ROTATED, "partial_rotary_factor", part);
    }
    Ok(())
}

/// The rotation.
pub(super) fn rope(keys: &Keys<'_>) -> Read<Map<String, Value>> {
    let mut rope = Map::new();
    rope.insert("rope_theta".into(), json!(keys.real("rope.freq_base")?.unwrap_or(10_000.0)));
    let factor = match keys.real("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // The key's earlier name.
        None => keys.real("rope.scale_linear")?,
    };
    const KIND: &str = "rope.scaling.type";
    let kind = keys.metadata.text(&keys.key(KIND))?;
    if let Some(factors) = factors(keys, FREQUENCY_FACTORS)? {
        if kind.is_some_and(|kind| kind != "none") {
            return Err(keys.wrong(KIND, "`none` beside the tensor `rope_freqs.weight`"));
        }
        rope.insert("rope_type".into(), json!("frequency_factors"));
        rope.insert("frequency_factors".into(), json!(factors));
        return Ok(rope);
    }
    if let (Some(short), Some(long)) = (factors(keys, SHORT_FACTORS)?, factors(keys, LONG_FACTORS)?) {
        if kind.is_some_and(|kind| !["none", "longrope"].contains(&kind)) {
            return Err(keys.wrong(KIND, format!("`longrope` beside the tensor `{LONG_FACTORS}`")));
        }
        rope.insert("rope_type".into(), json!("longrope"));
        rope.insert("short_factor".into(), json!(short));
        rope.insert("long_factor".into(), json!(long));
        if let Some(on_scores) = keys.real("rope.scaling.attn_factor")? {
            rope.insert("attention_factor".into(), json!(on_scores));
        }
        return Ok(rope);
    }
    match (kind, factor) {
        // ggml takes no factor and the factors 0 and 1 for none.
        (None | Some("linear" | "none"), None) => {}
        (Some("none"), _) => {}
        (_, Some(factor)) if kind != Some("yarn") && (factor == 0.0 || factor == 1.0) => {}
        (None | Some("linear"), Some(factor)) => {
            rope.insert("rope_type".into(), json!("linear"));
            rope.insert("factor".into(), json!(factor));
        }
        (Some("yarn"), Some(factor)) => {
            rope.insert("rope_type".into(), json!("yarn"));
            rope.insert("factor".into(), json!(factor));
            if let Some(n) = keys.whole("rope.scaling.original_context_length")? {
                rope.insert("original_max_position_embeddings".into(), json!(n));
            }
            if let Some(on_scores) = keys.real("rope.scaling.attn_factor")? {
                let scale = if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
                rope.insert("attention_factor".into(), json!(on_scores * scale));
            }
            for (from, to) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                if let Some(n) = keys.real(&format!("rope.scaling.{from}"))? {
                    rope.insert(to.into(), json!(n));
                }
            }
        }
        _ => return Err(keys.wrong(KIND, "`none`, `linear` with a factor, or `yarn` with a factor")),
    }
    Ok(rope)
}

/// The tensor by whose elements the frequencies are divided: Llama 3.1's scaling, as ggml stores it.
const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
/// Those of `longrope`, within the original context and beyond.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// The tensors that the config has.
pub(super) const FACTORS: [&str; 3] = [FREQUENCY_FACTORS, SHORT_FACTORS, LONG_FACTORS];

fn factors(keys: &Keys<'_>, name: &str) -> Read<Option<Vec<f32>>> {
    let Some(entry) = keys.weights.get(name) else { return Ok(None) };
    // Half of a head, which has at most 256 elements.
    if entry.dtype != "F32" || entry.shape.len() != 1 || entry.shape[0] > 128 {
        let (dtype, shape) = (&entry.dtype, &entry.shape);
        let message =
            format!("tensor `{name}` is {dtype} of shape {shape:?}, expected at most 128 elements in F32");
        return Err(WeightsError::Format { path: keys.metadata.path().to_path_buf(), message });
    }
    if keys.weights.has_only_headers() {
        // They change no size.
        return Ok(Some(vec![1.0; entry.shape[0]]));
    }
    let bytes = keys.weights.read_rows(entry, 0..entry.shape[0])?;
    Ok(Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
}
