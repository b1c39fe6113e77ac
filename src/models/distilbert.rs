//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler, half as deep.
//! Reference: transformers' `models/distilbert/modeling_distilbert.py`.

use serde::Deserialize;

use super::blocks::{ClassificationHead, HeadNames, LabelKeys, PostNormEncoder, PostNormKeys, PostNormNames};
use super::{Architecture, Labels, Loader, Model, ModelError, ModelKind, ModelShape};
use crate::ops::{Act, Attention, Pooling};

#[derive(Deserialize)]
pub struct Config {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    activation: String,
    #[serde(flatten)]
    labels: LabelKeys,
}

/// The epsilon of the norms, which the config does not say.
const EPS: f32 = 1e-12;

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let (n_heads, n_kv_heads) = (self.n_heads, self.n_heads);
        let head_dim = self.dim / n_heads.max(1);
        let scale = (head_dim as f32).powf(-0.5);
        let attention =
            Attention { n_heads, n_kv_heads, head_dim, scale, causal: false, window: None, softcap: None };
        ModelShape {
            architecture: "distilbert",
            kind: ModelKind::Encoder,
            hidden_size: self.dim,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![attention; self.n_layers],
            intermediate_size: self.hidden_dim,
            has_gate: false,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: false,
            audio: None,
        }
    }

    fn labels(&self) -> Result<Option<Labels>, ModelError> {
        self.labels.labels()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let keys = PostNormKeys {
            act: super::blocks::act("activation", &self.activation)?,
            eps: EPS,
            // Sinusoidal positions are stored as learned ones are.
            n_positions: self.max_position_embeddings,
            first_position: 0,
            n_types: None,
        };
        let is_prefixed = loader.has("distilbert.embeddings.word_embeddings.weight");
        let names = PostNormNames {
            root: if is_prefixed { "distilbert." } else { "" },
            layer: "transformer.layer",
            qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
            out: ["attention.out_lin", "sa_layer_norm"],
            mlp: ["ffn.lin1", "ffn.lin2"],
            norm: "output_layer_norm",
        };
        let head = match Architecture::labels(self)? {
            None => None,
            Some(labels) => {
                let (dense, out) = ("pre_classifier", "classifier");
                let names = HeadNames { dense, dense_bias: true, norm: None, out };
                let sizes = [self.dim, labels.names.len()];
                let (pooling, act) = (Pooling::First, Act::Relu);
                Some(ClassificationHead::load(loader, names, pooling, act, sizes)?)
            }
        };
        Ok(Box::new(PostNormEncoder::load(loader, &self.shape(), keys, &names, head, max_seq_len)?))
    }
}
