//! BERT and what shares its shape: MiniLM, BGE, E5, GTE (Devlin et al. 2019).
//! Reference: transformers' `models/bert/modeling_bert.py`.

use serde::Deserialize;

use super::blocks::{ClassificationHead, HeadNames, LabelKeys, PostNormEncoder, PostNormKeys, PostNormNames};
use super::{Architecture, Labels, Loader, Model, ModelError, ModelKind, ModelShape};
use crate::ops::{Act, Attention, Pooling};

/// The keys of `config.json` that BERT and RoBERTa share.
#[derive(Deserialize)]
pub struct Config {
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "one")]
    pub(super) type_vocab_size: usize,
    #[serde(default = "eps")]
    pub(super) layer_norm_eps: f32,
    hidden_act: String,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(flatten)]
    pub(super) labels: LabelKeys,
}

fn one() -> usize {
    1
}

fn eps() -> f32 {
    1e-12
}

impl Config {
    pub(super) fn shape(&self, architecture: &'static str) -> ModelShape {
        let n_heads = self.num_attention_heads;
        let head_dim = self.hidden_size / n_heads.max(1);
        let scale = (head_dim as f32).powf(-0.5);
        let n_kv_heads = n_heads;
        let attention =
            Attention { n_heads, n_kv_heads, head_dim, scale, causal: false, window: None, softcap: None };
        ModelShape {
            architecture,
            kind: ModelKind::Encoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![attention; self.num_hidden_layers],
            intermediate_size: self.intermediate_size,
            has_gate: false,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: false,
            audio: None,
        }
    }

    /// What the encoder needs beyond its shape; `first_position` is the first row of the position table that is used.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    pub(super) fn keys(&self, first_position: usize) -> Result<PostNormKeys, ModelError> {
        let unsupported = |key, found: &str, expected: &str| {
            Err(ModelError::Unsupported { key, found: found.into(), expected: expected.into() })
        };
        if let Some(found) = self.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return unsupported("position_embedding_type", found, "`absolute`");
        }
        if self.is_decoder {
            return unsupported("is_decoder", "true", "an encoder");
        }
        Ok(PostNormKeys {
            act: super::blocks::act("hidden_act", &self.hidden_act)?,
            eps: self.layer_norm_eps,
            n_positions: self.max_position_embeddings,
            first_position,
            n_types: Some(self.type_vocab_size),
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        Config::shape(self, "bert")
    }

    fn labels(&self) -> Result<Option<Labels>, ModelError> {
        self.labels.labels()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let keys = self.keys(0)?;
        let root = if loader.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let head = match Architecture::labels(self)? {
            None => None,
            Some(labels) => {
                let dense = format!("{root}pooler.dense");
                let names = HeadNames { dense: &dense, dense_bias: true, norm: None, out: "classifier" };
                let sizes = [self.hidden_size, labels.names.len()];
                let (pooling, act) = (Pooling::First, Act::Tanh);
                Some(ClassificationHead::load(loader, names, pooling, act, sizes)?)
            }
        };
        let (shape, names) = (Architecture::shape(self), PostNormNames::bert(root));
        Ok(Box::new(PostNormEncoder::load(loader, &shape, keys, &names, head, max_seq_len)?))
    }
}
