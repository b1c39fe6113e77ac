//! The architectures that GGUF files hold: ggml's names, the keys of the metadata as those of Hugging Face's
//! `config.json`, and the names of the tensors.

use serde_json::{Map, Value, json};

use super::super::CheckpointError;
use super::config::{self, Config, Keys, Read, SIZES, decoder, head_dim, partial_rotation, rope};
use super::names::{
    BERT, DISTILBERT, GPT_NEOX, GPT_OSS, GPT2, LLAMA, MODERN_BERT, NORMS_AFTER, Names, PHI3, QWEN,
};
use crate::models::ModelError;
use crate::models::settings::LAYERS;
use crate::weights::Weights;
use crate::weights::gguf::{Metadata, Value as MetaValue};

/// Reads the keys of an architecture into those of `config.json`.
type Reader = fn(&Keys<'_>, &mut Config) -> Read<()>;

/// Every architecture that runs: ggml's name, the `model_type` in Hugging Face's `config.json`, the reader of its keys, and
/// the names of its tensors.
const ARCHITECTURES: &[(&str, &str, Reader, &Names)] = &[
    // RoBERTa and XLM-R, too, whose tables of positions have lost the rows before the first, and DistilBERT, whose
    // tensors have other names.
    ("bert", "bert", bert, &BERT),
    ("gemma-embedding", "gemma3_text", gemma_embedding, &NORMS_AFTER),
    ("gemma2", "gemma2", gemma2, &NORMS_AFTER),
    ("gemma3", "gemma3_text", gemma3, &NORMS_AFTER),
    ("gpt2", "gpt2", gpt2, &GPT2),
    ("gpt-oss", "gpt_oss", gpt_oss, &GPT_OSS),
    ("gptneox", "gpt_neox", gpt_neox, &GPT_NEOX),
    ("granite", "granite", granite, &LLAMA),
    // Mistral, and Mixtral if there are experts.
    ("llama", "llama", llama, &LLAMA),
    ("mistral3", "ministral3", mistral3, &LLAMA),
    ("modern-bert", "modernbert", modern_bert, &MODERN_BERT),
    ("olmo2", "olmo2", olmo2, &NORMS_AFTER),
    // Phi-4-mini, too.
    ("phi3", "phi3", phi3, &PHI3),
    ("qwen2", "qwen2", qwen, &QWEN),
    ("qwen3", "qwen3", qwen, &QWEN),
    ("qwen3moe", "qwen3_moe", qwen3_moe, &QWEN),
    // Each fourth layer has no rotation: the config's default.
    ("smollm3", "smollm3", llama, &LLAMA),
];

/// Reads the keys of `config.json`, and returns the names of the tensors, too. `weights` have ggml's.
pub(super) fn read(
    metadata: &Metadata,
    weights: &Weights,
) -> Result<(Config, &'static Names), CheckpointError> {
    let keys = Keys { architecture: config::architecture(metadata)?, metadata, weights };
    let Some((_, model_type, read, names)) =
        ARCHITECTURES.iter().find(|(name, ..)| *name == keys.architecture)
    else {
        let known = ARCHITECTURES.iter().map(|(name, ..)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownArchitecture { found: keys.architecture.into(), known }.into());
    };
    let mut config = Config::default();
    config.insert("model_type", *model_type);
    read(&keys, &mut config)?;
    let is_distilbert = config.keys.get("model_type") == Some(&json!("distilbert"));
    Ok((config, if is_distilbert { &DISTILBERT } else { names }))
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
    labels(keys, config)?;
    if keys.has(TYPES) {
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
/// first of BERT's out, and then the logits would be others. The activation is that of the model which was converted: of
/// DistilBERT the ReLU, where llama.cpp computes the hyperbolic tangent.
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
    labels(keys, config)?;
    config.insert("classifier_bias", keys.has("cls.bias"));
    // No key has the pooling before the head. It is the mean, as llama.cpp has it.
    config.insert("classifier_pooling", "mean");
    config.insert("vocab_size", keys.vocab_size()?);
    keys.copy(config, &SIZES)?;
    keys.copy(config, &[("attention.sliding_window", "local_attention")])?;
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
    keys.copy(config, &SIZES)?;
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
