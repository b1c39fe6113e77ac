//! From ggml's names of tensors to those of Hugging Face's checkpoints, which the architectures load.

use super::config;
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
}
use Rows::{Keys, Plain, Queries, Transposed};

/// Names without `.weight` and `.bias`. `blk.N.` stands before those of a layer, and the second name of the layers there.
struct Names {
    model: &'static [(&'static str, &'static str)],
    layers: &'static str,
    layer: &'static [(&'static str, &'static str, Rows)],
}

const DECODER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Llama and Mistral: ggml rotates neighbours.
const LLAMA: Names = Names {
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
    ],
};

const QWEN: Names = Names {
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
        ("ffn_norm", "post_attention_layernorm", Plain),
        ("ffn_gate", "mlp.gate_proj", Plain),
        ("ffn_up", "mlp.up_proj", Plain),
        ("ffn_down", "mlp.down_proj", Plain),
    ],
};

const GPT2: Names = Names {
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

/// Gives the tensors the names of Hugging Face's checkpoints. One that is not listed keeps its own.
pub(super) fn rename(metadata: &Metadata, weights: &mut Weights) -> Result<(), WeightsError> {
    let architecture = config::architecture(metadata)?;
    let names = match architecture {
        "gpt2" => GPT2,
        "llama" => LLAMA,
        _ => QWEN,
    };
    let heads = |key: &str| metadata.whole(&format!("{architecture}.attention.{key}"));
    let n_heads = heads("head_count")?.unwrap_or(0) as usize;
    let n_kv_heads = heads("head_count_kv")?.map_or(n_heads, |n| n as usize);
    weights.rename(metadata.path(), |name| {
        let (stem, suffix) =
            name.rsplit_once('.').filter(|(_, suffix)| ["weight", "bias"].contains(suffix))?;
        let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            let (_, to) = names.model.iter().find(|(from, _)| *from == stem)?;
            return Some((format!("{to}.{suffix}"), Order::Plain));
        };
        let (_, to, rows) = names.layer.iter().find(|(from, ..)| *from == part)?;
        let order = match rows {
            Plain => Order::Plain,
            Queries => Order::Alternating { n_heads },
            Keys => Order::Alternating { n_heads: n_kv_heads },
            Transposed => Order::Transposed,
        };
        Some((format!("{}{layer}.{to}.{suffix}", names.layers), order))
    })
}
