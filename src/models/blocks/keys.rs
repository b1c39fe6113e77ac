//! The keys of `config.json` that Llama and its descendants share.

use serde::Deserialize;

use super::Rope;
use crate::models::{ModelError, ModelKind, ModelShape};
use crate::ops::{Act, Attention};

/// The keys that Llama and its descendants share.
#[derive(Clone, Debug, Deserialize)]
pub struct DecoderKeys {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads. Default: one for each query head.
    pub num_key_value_heads: Option<usize>,
    /// Elements per head. Default: `hidden_size / num_attention_heads`, unless the architecture has another default.
    pub head_dim: Option<usize>,
    /// Number of logits per row.
    pub vocab_size: usize,
    /// Longest sequence that the model supports.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Activation function of the gate. Default: `silu`.
    pub hidden_act: Option<String>,
    /// Whether the head shares the weights of the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Rotation.
    #[serde(flatten)]
    pub rope: Rope,
}

impl DecoderKeys {
    /// The model's shape. `window` gives the number of keys that a query of layer `i` sees; `None` is all.
    pub fn shape(&self, architecture: &'static str, window: impl Fn(usize) -> Option<usize>) -> ModelShape {
        let n_heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / n_heads.max(1));
        let attention = |i| Attention {
            n_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(n_heads),
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            causal: true,
            window: window(i),
            softcap: None,
        };
        ModelShape {
            architecture,
            kind: ModelKind::Decoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: (0..self.num_hidden_layers).map(attention).collect(),
            intermediate_size: self.intermediate_size,
            has_gate: true,
            has_layer_norm: false,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            audio: None,
        }
    }

    /// The activation function of the gate.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    pub fn act(&self) -> Result<Act, ModelError> {
        super::act("hidden_act", self.hidden_act.as_deref().unwrap_or("silu"))
    }
}
