//! From ggml's names of tensors to those of Hugging Face's checkpoints, which the architectures load.

use super::config;
use crate::models::SCORE;
use crate::weights::gguf::Metadata;
use crate::weights::{Order, Weights, WeightsError};

/// How the rows of a tensor lie.
#[derive(Clone, Copy)]
enum Rows {
    Plain,
    /// Those of the query heads alternate.
    Queries,
    /// Those of the key heads alternate.
    Keys,
    /// Hugging Face's checkpoints have rows and columns exchanged.
    Transposed,
    /// Hugging Face's checkpoints have them by heads.
    Stacked,
}
use Rows::{Keys, Plain, Queries, Stacked, Transposed};

/// Names without `.weight` and `.bias`. `blk.N.` stands before those of a layer, and the second name of the layers there.
#[derive(Clone, Copy)]
pub(super) struct Names {
    model: &'static [(&'static str, &'static str)],
    layers: &'static str,
    layer: &'static [(&'static str, &'static str, Rows)],
}

const DECODER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Llama, Mistral, Mixtral, Ministral 3, SmolLM3 and Granite: ggml rotates neighbours.
pub(super) const LLAMA: Names = Names {
    model: DECODER,
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm", Plain),
        ("attn_q", "self_attn.q_proj", Queries),
        ("attn_k", "self_attn.k_proj", Keys),
        ("attn_v", "self_attn.v_proj", Plain),
        ("attn_output", "self_attn.o_proj", Plain),
        ("ffn_norm", "post_attention_layernorm", Plain),
        ("ffn_gate", "mlp.gate_proj", Plain),
        ("ffn_up", "mlp.up_proj", Plain),
        ("ffn_down", "mlp.down_proj", Plain),
        // Mixtral.
        ("ffn_gate_inp", "block_sparse_moe.gate", Plain),
        ("ffn_gate_exps", "block_sparse_moe.experts.w1", Plain),
        ("ffn_up_exps", "block_sparse_moe.experts.w3", Plain),
        ("ffn_down_exps", "block_sparse_moe.experts.w2", Plain),
    ],
};

pub(super) const PHI3: Names = Names {
    model: DECODER,
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm", Plain),
        ("attn_qkv", "self_attn.qkv_proj", Plain),
        ("attn_output", "self_attn.o_proj", Plain),
        ("ffn_norm", "post_attention_layernorm", Plain),
        ("ffn_up", "mlp.gate_up_proj", Plain),
        ("ffn_down", "mlp.down_proj", Plain),
    ],
};

pub(super) const QWEN: Names = Names {
    model: &[
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
        ("cls.output", SCORE),
    ],
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm", Plain),
        ("attn_q", "self_attn.q_proj", Plain),
        ("attn_q_norm", "self_attn.q_norm", Plain),
        ("attn_k", "self_attn.k_proj", Plain),
        ("attn_k_norm", "self_attn.k_norm", Plain),
        ("attn_v", "self_attn.v_proj", Plain),
        ("attn_output", "self_attn.o_proj", Plain),
        ("ffn_norm", "post_attention_layernorm", Plain),
        ("ffn_gate", "mlp.gate_proj", Plain),
        ("ffn_up", "mlp.up_proj", Plain),
        ("ffn_down", "mlp.down_proj", Plain),
        // Of mixtures of experts.
        ("ffn_gate_inp", "mlp.gate", Plain),
        ("ffn_gate_exps", "mlp.experts.gate_proj", Plain),
        ("ffn_up_exps", "mlp.experts.up_proj", Plain),
        ("ffn_down_exps", "mlp.experts.down_proj", Plain),
    ],
};

pub(super) const GPT_OSS: Names = Names {
    model: DECODER,
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm", Plain),
        ("attn_q", "self_attn.q_proj", Plain),
        ("attn_k", "self_attn.k_proj", Plain),
        ("attn_v", "self_attn.v_proj", Plain),
        ("attn_output", "self_attn.o_proj", Plain),
        ("attn_sinks", "self_attn.sinks", Plain),
        ("post_attention_norm", "post_attention_layernorm", Plain),
        ("ffn_gate_inp", "mlp.router", Plain),
        ("ffn_gate_exps", "mlp.experts.gate_proj", Plain),
        ("ffn_up_exps", "mlp.experts.up_proj", Plain),
        ("ffn_down_exps", "mlp.experts.down_proj", Plain),
    ],
};

/// Gemma 2 and 3 and OLMo 2: norms after attention and MLP. OLMo 2 has none before.
pub(super) const NORMS_AFTER: Names = Names {
    model: DECODER,
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm", Plain),
        ("attn_q", "self_attn.q_proj", Plain),
        ("attn_q_norm", "self_attn.q_norm", Plain),
        ("attn_k", "self_attn.k_proj", Plain),
        ("attn_k_norm", "self_attn.k_norm", Plain),
        ("attn_v", "self_attn.v_proj", Plain),
        ("attn_output", "self_attn.o_proj", Plain),
        ("post_attention_norm", "post_attention_layernorm", Plain),
        ("ffn_norm", "pre_feedforward_layernorm", Plain),
        ("ffn_gate", "mlp.gate_proj", Plain),
        ("ffn_up", "mlp.up_proj", Plain),
        ("ffn_down", "mlp.down_proj", Plain),
        ("post_ffw_norm", "post_feedforward_layernorm", Plain),
    ],
};

pub(super) const GPT2: Names = Names {
    model: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    layers: "transformer.h.",
    layer: &[
        ("attn_norm", "ln_1", Plain),
        ("attn_qkv", "attn.c_attn", Transposed),
        ("attn_output", "attn.c_proj", Transposed),
        ("ffn_norm", "ln_2", Plain),
        ("ffn_up", "mlp.c_fc", Transposed),
        ("ffn_down", "mlp.c_proj", Transposed),
    ],
};

pub(super) const GPT_NEOX: Names = Names {
    model: &[
        ("token_embd", "gpt_neox.embed_in"),
        ("output_norm", "gpt_neox.final_layer_norm"),
        ("output", "embed_out"),
    ],
    layers: "gpt_neox.layers.",
    layer: &[
        ("attn_norm", "input_layernorm", Plain),
        ("attn_qkv", "attention.query_key_value", Stacked),
        ("attn_output", "attention.dense", Plain),
        ("ffn_norm", "post_attention_layernorm", Plain),
        ("ffn_up", "mlp.dense_h_to_4h", Plain),
        ("ffn_down", "mlp.dense_4h_to_h", Plain),
    ],
};

pub(super) const BERT: Names = Names {
    model: &[
        ("token_embd", "embeddings.word_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
        ("cls", "pooler.dense"),
        ("cls.output", "classifier"),
    ],
    layers: "encoder.layer.",
    layer: &[
        ("attn_q", "attention.self.query", Plain),
        ("attn_k", "attention.self.key", Plain),
        ("attn_v", "attention.self.value", Plain),
        ("attn_output", "attention.output.dense", Plain),
        ("attn_output_norm", "attention.output.LayerNorm", Plain),
        ("ffn_up", "intermediate.dense", Plain),
        ("ffn_down", "output.dense", Plain),
        ("layer_output_norm", "output.LayerNorm", Plain),
    ],
};

pub(super) const DISTILBERT: Names = Names {
    model: &[
        ("token_embd", "embeddings.word_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
        ("cls", "pre_classifier"),
        ("cls.output", "classifier"),
    ],
    layers: "transformer.layer.",
    layer: &[
        ("attn_q", "attention.q_lin", Plain),
        ("attn_k", "attention.k_lin", Plain),
        ("attn_v", "attention.v_lin", Plain),
        ("attn_output", "attention.out_lin", Plain),
        ("attn_output_norm", "sa_layer_norm", Plain),
        ("ffn_up", "ffn.lin1", Plain),
        ("ffn_down", "ffn.lin2", Plain),
        ("layer_output_norm", "output_layer_norm", Plain),
    ],
};

pub(super) const MODERN_BERT: Names = Names {
    model: &[
        ("token_embd", "embeddings.tok_embeddings"),
        ("token_embd_norm", "embeddings.norm"),
        ("output_norm", "final_norm"),
        ("cls", "head.dense"),
        ("cls.norm", "head.norm"),
        ("cls.output", "classifier"),
    ],
    layers: "layers.",
    layer: &[
        ("attn_norm", "attn_norm", Plain),
        ("attn_qkv", "attn.Wqkv", Plain),
        ("attn_output", "attn.Wo", Plain),
        ("ffn_norm", "mlp_norm", Plain),
        ("ffn_up", "mlp.Wi", Plain),
        ("ffn_down", "mlp.Wo", Plain),
    ],
};

/// What the name of all experts' tensor ends with. Files from before April 2024 have a tensor for each expert:
/// `ffn_gate.3` in place of a part of `ffn_gate_exps`.
const EXPERTS: &str = "_exps";

impl Names {
    /// The name in Hugging Face's checkpoints, and how the rows lie.
    fn model_name(&self, stored: &str) -> Option<(String, Rows)> {
        let (stem, suffix) = stem(stored)?;
        let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            let (_, to) = self.model.iter().find(|(from, _)| *from == stem)?;
            return Some((format!("{to}.{suffix}"), Plain));
        };
        let layers = self.layers;
        if let Some((part, expert)) = part.split_once('.') {
            let (_, to, _) = self.layer.iter().find(|(from, ..)| from.strip_suffix(EXPERTS) == Some(part))?;
            let (before, to) = to.rsplit_once('.')?;
            return Some((format!("{layers}{layer}.{before}.{expert}.{to}.{suffix}"), Plain));
        }
        let (_, to, rows) = self.layer.iter().find(|(from, ..)| *from == part)?;
        Some((format!("{layers}{layer}.{to}.{suffix}"), *rows))
    }

    /// The name in a GGUF file, which may have a tensor for each expert.
    fn stored_name(&self, name: &str, has_each: bool) -> Option<String> {
        let (stem, suffix) = stem(name)?;
        let Some((layer, part)) = stem.strip_prefix(self.layers).and_then(|rest| rest.split_once('.')) else {
            let (from, _) = self.model.iter().find(|(_, to)| *to == stem)?;
            return Some(format!("{from}.{suffix}"));
        };
        if let Some((from, ..)) = self.layer.iter().find(|(_, to, _)| *to == part) {
            return Some(format!("blk.{layer}.{from}.{suffix}"));
        }
        // A tensor of one expert: in most files it is a part of that of all.
        let (before, to) = part.rsplit_once('.')?;
        let (before, expert) = before.rsplit_once('.')?;
        let joined = format!("{before}.{to}");
        let (from, ..) = self.layer.iter().find(|(_, to, _)| *to == joined)?;
        let own = from.strip_suffix(EXPERTS).filter(|_| has_each).map(|from| format!("{from}.{expert}"));
        Some(format!("blk.{layer}.{}.{suffix}", own.as_deref().unwrap_or(from)))
    }
}

/// A name without its last part, and that.
fn stem(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| ["weight", "bias"].contains(suffix))
}

/// Gives the tensors the names of Hugging Face's checkpoints. One that is not listed keeps its own.
pub(super) fn rename(
    names: &'static Names,
    metadata: &Metadata,
    weights: &mut Weights,
) -> Result<(), WeightsError> {
    let architecture = config::architecture(metadata)?;
    let heads = |key: &str| metadata.whole(&format!("{architecture}.attention.{key}"));
    let n_heads = heads("head_count")?.unwrap_or(0) as usize;
    let n_kv_heads = heads("head_count_kv")?.map_or(n_heads, |n| n as usize);
    let renamed = |stored: &str| {
        let (name, rows) = names.model_name(stored)?;
        let order = match rows {
            Plain => Order::Plain,
            Queries => Order::Alternating { n_heads },
            Keys => Order::Alternating { n_heads: n_kv_heads },
            Transposed => Order::Transposed,
            Stacked => Order::Stacked,
        };
        Some((name, order))
    };
    let has_each = weights.entries().iter().any(|entry| entry.name.starts_with("blk.0.ffn_gate."));
    weights.rename(metadata.path(), renamed, move |name| names.stored_name(name, has_each))
}
