//! From metadata to the keys of Hugging Face's `config.json`, so that one reader checks their ranges.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::{CheckpointError, EmbeddingConfig};
use crate::models::ModelError;
use crate::models::settings::LAYERS;
use crate::ops::Pooling;
use crate::weights::gguf::{Metadata, Value as MetaValue};
use crate::weights::{Weights, WeightsError};

type Read<T> = Result<T, WeightsError>;

/// Reads the keys of an architecture into those of `config.json`.
type Reader = fn(&Keys<'_>, &mut Config) -> Read<()>;

/// Every architecture that runs: ggml's name, the `model_type` in Hugging Face's `config.json`, and the reader of its keys.
const ARCHITECTURES: &[(&str, &str, Reader)] = &[
    // RoBERTa and XLM-R, too, whose tables of positions have lost the rows before the first, and DistilBERT.
    ("bert", "bert", bert),
    ("gemma-embedding", "gemma3_text", gemma_embedding),
    ("gemma2", "gemma2", gemma2),
    ("gemma3", "gemma3_text", gemma3),
    ("gpt2", "gpt2", gpt2),
    ("gpt-oss", "gpt_oss", gpt_oss),
    ("gptneox", "gpt_neox", gpt_neox),
    ("granite", "granite", granite),
    // Mistral, and Mixtral if there are experts.
    ("llama", "llama", llama),
    ("mistral3", "ministral3", mistral3),
    ("modern-bert", "modernbert", modern_bert),
    ("olmo2", "olmo2", olmo2),
    // Phi-4-mini, too.
    ("phi3", "phi3", phi3),
    ("qwen2", "qwen2", qwen),
    ("qwen3", "qwen3", qwen),
    ("qwen3moe", "qwen3_moe", qwen3_moe),
    // Each fourth layer has no rotation: the config's default.
    ("smollm3", "smollm3", llama),
];

/// The keys of `config.json`.
#[derive(Default)]
pub(super) struct Config {
    keys: Map<String, Value>,
    /// For each key that was copied, the one of the metadata.
    sources: BTreeMap<String, String>,
}

impl Config {
    fn insert(&mut self, key: &str, value: impl Into<Value>) {
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
struct Keys<'a> {
    architecture: &'a str,
    metadata: &'a Metadata,
    weights: &'a Weights,
}

/// ggml's name of the architecture.
pub(super) fn architecture(metadata: &Metadata) -> Read<&str> {
    const KEY: &str = "general.architecture";
    metadata.text(KEY)?.ok_or_else(|| metadata.wrong(KEY, "the name of an architecture"))
}

/// Reads the keys of `config.json`. `weights` have ggml's names.
pub(super) fn read(metadata: &Metadata, weights: &Weights) -> Result<Config, CheckpointError> {
    let architecture = architecture(metadata)?;
    let Some((_, model_type, read)) = ARCHITECTURES.iter().find(|(name, ..)| *name == architecture) else {
        let known = ARCHITECTURES.iter().map(|(name, ..)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownArchitecture { found: architecture.into(), known }.into());
    };
    let keys = Keys { architecture, metadata, weights };
    let mut config = Config::default();
    config.insert("model_type", *model_type);
    read(&keys, &mut config)?;
    Ok(config)
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
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn whole(&self, key: &str) -> Read<Option<u64>> {
        self.metadata.whole(&self.key(key))
    }

    fn real(&self, key: &str) -> Read<Option<f64>> {
        self.metadata.real(&self.key(key))
    }

    fn wrong(&self, key: &str, expected: impl std::fmt::Display) -> WeightsError {
        self.metadata.wrong(&self.key(key), expected)
    }

    fn needed(&self, key: &str) -> Read<u64> {
        self.whole(key)?.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    fn needed_real(&self, key: &str) -> Read<f64> {
        self.real(key)?.ok_or_else(|| self.wrong(key, "a number"))
    }

    /// Notes that `to` is the value of `from`.
    fn put(&self, config: &mut Config, from: &str, to: &str, value: impl Into<Value>) {
        config.insert(to, value);
        config.sources.insert(to.into(), self.key(from));
    }

    /// Copies whole numbers, all of which must be there, to other keys.
    fn copy(&self, config: &mut Config, keys: &[(&str, &str)]) -> Read<()> {
        for (from, to) in keys {
            self.put(config, from, to, self.needed(from)?);
        }
        Ok(())
    }

    /// Copies numbers, all of which must be there, to other keys.
    fn copy_real(&self, config: &mut Config, keys: &[(&str, &str)]) -> Read<()> {
        for (from, to) in keys {
            self.put(config, from, to, self.needed_real(from)?);
        }
        Ok(())
    }

    fn has(&self, tensor: &str) -> bool {
        self.weights.get(tensor).is_some()
    }

    /// Rows of a tensor.
    fn n_rows(&self, tensor: &str) -> Read<usize> {
        let entry = self.weights.get(tensor).and_then(|entry| entry.shape.first());
        entry.copied().ok_or_else(|| {
            let found = format!("{} tensors", self.weights.entries().len());
            WeightsError::Missing { name: tensor.into(), found }
        })
    }

    /// Rows of the embedding.
    fn vocab_size(&self) -> Read<usize> {
        self.n_rows("token_embd.weight")
    }
}

/// Refuses a model whose rows see only those before them.
fn check_encoder(keys: &Keys<'_>) -> Read<()> {
    const KEY: &str = "attention.causal";
    match keys.metadata.flag(&keys.key(KEY))? {
        Some(true) => Err(keys.wrong(KEY, "`false`: only encoders run")),
        _ => Ok(()),
    }
}

fn bert(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    const TYPES: &str = "token_types.weight";
    const EPSILON: &str = "attention.layer_norm_epsilon";
    check_encoder(keys)?;
    config.insert("vocab_size", keys.vocab_size()?);
    keys.copy(config, &[("context_length", "max_position_embeddings")])?;
    if keys.has(TYPES) {
        labels(keys, config)?;
        config.insert("type_vocab_size", keys.n_rows(TYPES)?);
        keys.copy_real(config, &[(EPSILON, "layer_norm_eps")])?;
        return keys.copy(
            config,
            &[
                ("embedding_length", "hidden_size"),
                ("feed_forward_length", "intermediate_size"),
                ("block_count", "num_hidden_layers"),
                ("attention.head_count", "num_attention_heads"),
            ],
        );
    }
    config.insert("model_type", "distilbert");
    // Its config has no key for it.
    if keys.real(EPSILON)?.is_some_and(|eps| eps as f32 != 1e-12) {
        return Err(keys.wrong(EPSILON, format!("1e-12 without the tensor `{TYPES}`, as in DistilBERT")));
    }
    keys.copy(
        config,
        &[
            ("embedding_length", "dim"),
            ("feed_forward_length", "hidden_dim"),
            ("block_count", "n_layers"),
            ("attention.head_count", "n_heads"),
        ],
    )
}

/// The labels of a classification head, which is a product with an activation and another product. Converters leave the
/// first of BERT's out, and then the logits would be others.
fn labels(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    const OUT: &str = "cls.output.weight";
    if !(keys.has(OUT) && keys.has("cls.weight")) {
        return Ok(());
    }
    let n = keys.n_rows(OUT)?;
    config.insert("architectures", json!(["BertForSequenceClassification"]));
    let names = keys.metadata.texts(&keys.key("classifier.output_labels"))?.unwrap_or_default();
    let name = |i: usize| names.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
    let by_id: Map<String, Value> = (0..n).map(|i| (i.to_string(), json!(name(i)))).collect();
    config.insert("id2label", by_id);
    Ok(())
}

fn modern_bert(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    check_encoder(keys)?;
    config.insert("vocab_size", keys.vocab_size()?);
    keys.copy(
        config,
        &[
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("block_count", "num_hidden_layers"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.sliding_window", "local_attention"),
        ],
    )?;
    keys.copy_real(
        config,
        &[("attention.layer_norm_epsilon", "norm_eps"), ("rope.freq_base", "global_rope_theta")],
    )?;
    // Files of earlier converters lack the other three. These are the values of all models then.
    const PATTERN: &str = "attention.sliding_window_pattern";
    keys.put(config, PATTERN, "global_attn_every_n_layers", keys.whole(PATTERN)?.unwrap_or(3));
    const LOCAL: &str = "rope.freq_base_swa";
    keys.put(config, LOCAL, "local_rope_theta", keys.real(LOCAL)?.unwrap_or(10_000.0));
    const ACT: &str = "hidden_activation";
    let act = keys.metadata.text(&keys.key(ACT))?.unwrap_or("gelu");
    keys.put(config, ACT, "hidden_activation", act);
    Ok(())
}

fn gemma2(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    gemma(keys, config, 2, 46)?;
    const WINDOW: &str = "attention.sliding_window";
    keys.put(config, WINDOW, "sliding_window", keys.whole(WINDOW)?.unwrap_or(4096));
    const CAP: &str = "attn_logit_softcapping";
    if let Some(cap) = keys.real(CAP)? {
        keys.put(config, CAP, CAP, cap);
    }
    Ok(())
}

fn gemma3(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    // Without a window, all layers see all keys.
    const WINDOW: &str = "attention.sliding_window";
    let window = keys.whole(WINDOW)?.filter(|n| *n > 0);
    gemma(keys, config, if window.is_some() { 6 } else { 1 }, 62)?;
    if let Some(window) = window {
        keys.put(config, WINDOW, "sliding_window", window);
    }
    // The rotation so far is that of the layers that see all keys.
    const LOCAL: &str = "rope.freq_base_swa";
    let full = config.keys.remove("rope_parameters");
    let sliding = json!({ "rope_theta": keys.real(LOCAL)?.unwrap_or(10_000.0) });
    config.insert("rope_parameters", json!({ "full_attention": full, "sliding_attention": sliding }));
    for (from, to) in [
        ("rope.freq_base", "full_attention.rope_theta"),
        ("rope.scaling.factor", "full_attention.factor"),
        (LOCAL, "sliding_attention.rope_theta"),
    ] {
        config.sources.insert(format!("rope_parameters.{to}"), keys.key(from));
    }
    Ok(())
}

fn gemma_embedding(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    gemma3(keys, config)?;
    config.insert("use_bidirectional_attention", true);
    Ok(())
}

/// The products after the pooling: their names and shapes.
pub(super) fn dense(weights: &Weights) -> Vec<(&'static str, [usize; 2])> {
    let shape = |name: &'static str| match weights.get(&format!("{name}.weight"))?.shape[..] {
        [n_out, n_in] => Some((name, [n_out, n_in])),
        _ => None,
    };
    ["dense_2", "dense_3"].into_iter().filter_map(shape).collect()
}

/// What Gemma 2 and 3 share. Each `every`-th layer sees all keys, if no key says which. The largest model, of `n_largest`
/// layers, has another scale of scores than the others; no key has it.
fn gemma(keys: &Keys<'_>, config: &mut Config, every: u64, n_largest: u64) -> Read<()> {
    decoder(keys, config)?;
    let (width, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    let is_largest = keys.needed("block_count")? == n_largest;
    let of_width = width.checked_div(heads).filter(|_| is_largest);
    if let Some(scalar) = of_width.or(head_dim(keys)?) {
        config.insert("query_pre_attn_scalar", scalar);
    }
    const CAP: &str = "final_logit_softcapping";
    if let Some(cap) = keys.real(CAP)? {
        keys.put(config, CAP, CAP, cap);
    }
    config.insert("norm_offset", 0.0);
    config.insert("layer_types", layer_types(keys, every)?);
    Ok(())
}

/// The types of the layers, from a number or a list of switches. Each `every`-th layer sees all keys, if there is neither.
fn layer_types(keys: &Keys<'_>, every: u64) -> Read<Vec<&'static str>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let name = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
    let n_layers = keys.needed("block_count")?;
    match keys.metadata.values().get(&keys.key(PATTERN)) {
        Some(MetaValue::Numbers(slides)) => Ok(slides.iter().map(|slides| name(*slides != 0.0)).collect()),
        _ => {
            let every = keys.whole(PATTERN)?.unwrap_or(every);
            // As many as a config may have; more are refused with the number itself.
            let layers = 0..n_layers.min(*LAYERS.end() as u64);
            Ok(layers.map(|i| name(every == 0 || (i + 1) % every != 0)).collect())
        }
    }
}

fn olmo2(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    decoder(keys, config)?;
    const WINDOW: &str = "attention.sliding_window";
    if keys.whole(WINDOW)?.is_some_and(|n| n > 0) {
        return Err(keys.wrong(WINDOW, "none, as in OLMo 2: OLMo 3 does not run here"));
    }
    config.insert("attention_bias", keys.has("blk.0.attn_q.bias"));
    Ok(())
}

fn gpt2(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    keys.copy(
        config,
        &[
            ("context_length", "n_positions"),
            ("embedding_length", "n_embd"),
            ("feed_forward_length", "n_inner"),
            ("block_count", "n_layer"),
            ("attention.head_count", "n_head"),
        ],
    )?;
    keys.copy_real(config, &[("attention.layer_norm_epsilon", "layer_norm_epsilon")])?;
    config.insert("vocab_size", keys.vocab_size()?);
    // Most files have the embedding twice.
    config.insert("tie_word_embeddings", true);
    Ok(())
}

fn gpt_neox(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    keys.copy(
        config,
        &[
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("block_count", "num_hidden_layers"),
            ("attention.head_count", "num_attention_heads"),
        ],
    )?;
    keys.copy_real(config, &[("attention.layer_norm_epsilon", "layer_norm_eps")])?;
    const PARALLEL: &str = "use_parallel_residual";
    let is_parallel = keys.metadata.flag(&keys.key(PARALLEL))?;
    keys.put(
        config,
        PARALLEL,
        PARALLEL,
        is_parallel.ok_or_else(|| keys.wrong(PARALLEL, "`true` or `false`"))?,
    );
    config.insert("vocab_size", keys.vocab_size()?);
    config.insert("tie_word_embeddings", !keys.has("output.weight"));
    let has_bias = ["attn_qkv", "attn_output"].iter().any(|part| keys.has(&format!("blk.0.{part}.bias")));
    config.insert("attention_bias", has_bias);
    config.insert("rope_parameters", rope(keys)?);
    partial_rotation(keys, config)
}

fn llama(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    decoder(keys, config)?;
    if keys.whole("expert_count")?.unwrap_or(0) > 0 {
        config.insert("model_type", "mixtral");
        keys.copy(
            config,
            &[("expert_count", "num_local_experts"), ("expert_used_count", "num_experts_per_tok")],
        )?;
    }
    let head_dim = head_dim(keys)?;
    // The rows of queries and keys are put in order by whole heads.
    if keys.whole("rope.dimension_count")?.is_some_and(|n| Some(n) != head_dim) {
        let expected = head_dim.map_or("the size of a head".into(), |n| n.to_string());
        return Err(keys.wrong("rope.dimension_count", expected));
    }
    config.insert("attention_bias", keys.has("blk.0.attn_q.bias"));
    config.insert("mlp_bias", keys.has("blk.0.ffn_up.bias"));
    Ok(())
}

fn qwen(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    decoder(keys, config)?;
    partial_rotation(keys, config)
}

fn granite(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    llama(keys, config)?;
    const ROTATES: &str = "rope.scaling.finetuned";
    if keys.metadata.flag(&keys.key(ROTATES))? == Some(false) {
        return Err(keys.wrong(ROTATES, "`true`: it is `false` in models with no rotation, which do not run"));
    }
    for (from, to) in [
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("attention.scale", "attention_multiplier"),
    ] {
        // ggml takes no factor and the factor 0 for none.
        if let Some(factor) = keys.real(from)?.filter(|factor| *factor != 0.0) {
            keys.put(config, from, to, factor);
        }
    }
    if let (None, Some(head_dim)) = (config.keys.get("attention_multiplier"), head_dim(keys)?) {
        config.insert("attention_multiplier", (head_dim as f64).powf(-0.5));
    }
    Ok(())
}

fn mistral3(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    llama(keys, config)?;
    let mut add = |to: &str, value: f64| {
        if let Some(Value::Object(rope)) = config.keys.get_mut("rope_parameters") {
            rope.insert(to.into(), json!(value));
        }
    };
    if let Some(m) = keys.real("rope.scaling.yarn_log_multiplier")?.filter(|m| *m != 0.0) {
        // The converter takes the other one for 1.
        add("mscale", 1.0);
        add("mscale_all_dim", m);
    }
    const BETA: &str = "attention.temperature_scale";
    if let Some(beta) = keys.real(BETA)? {
        add("llama_4_scaling_beta", beta);
        config.sources.insert("rope_parameters.llama_4_scaling_beta".into(), keys.key(BETA));
    }
    Ok(())
}

fn phi3(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    decoder(keys, config)?;
    partial_rotation(keys, config)?;
    const ORIGINAL: &str = "rope.scaling.original_context_length";
    if let Some(n) = keys.whole(ORIGINAL)? {
        keys.put(config, ORIGINAL, "original_max_position_embeddings", n);
    }
    // 0 is none.
    const WINDOW: &str = "attention.sliding_window";
    if let Some(window) = keys.whole(WINDOW)?.filter(|n| *n > 0) {
        keys.put(config, WINDOW, "sliding_window", window);
    }
    Ok(())
}

/// The part of a head that is rotated.
fn partial_rotation(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    const ROTATED: &str = "rope.dimension_count";
    if let (Some(n_rot), Some(head_dim)) = (keys.whole(ROTATED)?, head_dim(keys)?) {
        let part = n_rot as f64 / head_dim as f64;
        // So that it times the size of a head, rounded down, is the number again.
        let part = if ((part * head_dim as f64) as u64) < n_rot { part.next_up() } else { part };
        keys.put(config, ROTATED, "partial_rotary_factor", part);
    }
    Ok(())
}

fn gpt_oss(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    decoder(keys, config)?;
    // Of the whole model, not only of what the file has keys for (`src/models/openai-moe.cpp`).
    if let Some(rope) = config.keys.get_mut("rope_parameters").and_then(Value::as_object_mut) {
        rope.insert("truncate".into(), json!(false));
    }
    config.insert("attention_bias", keys.has("blk.0.attn_q.bias"));
    keys.copy(
        config,
        &[
            ("attention.sliding_window", "sliding_window"),
            ("expert_count", "num_local_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "intermediate_size"),
        ],
    )
}

fn qwen3_moe(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    qwen(keys, config)?;
    // As llama.cpp computes it.
    config.insert("norm_topk_prob", true);
    keys.copy(
        config,
        &[
            ("expert_count", "num_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
        ],
    )
}

/// Elements of a head.
fn head_dim(keys: &Keys<'_>) -> Read<Option<u64>> {
    let named = keys.whole("attention.key_length")?;
    let (width, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    Ok(named.or_else(|| width.checked_div(heads)))
}

/// The keys that Llama and its descendants share.
fn decoder(keys: &Keys<'_>, config: &mut Config) -> Read<()> {
    keys.copy(
        config,
        &[
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("block_count", "num_hidden_layers"),
            ("attention.head_count", "num_attention_heads"),
        ],
    )?;
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

/// The rotation.
fn rope(keys: &Keys<'_>) -> Read<Map<String, Value>> {
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
