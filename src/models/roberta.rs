//! RoBERTa, XLM-R and CamemBERT (Liu et al. 2019): BERT with positions that begin after the padding's, and a head of
//! its own. Reference: transformers' `models/roberta/modeling_roberta.py`.

use serde::Deserialize;

use super::blocks::{ClassificationHead, HeadNames, PostNormEncoder, PostNormNames};
use super::{Architecture, Labels, Loader, Model, ModelError, ModelShape, bert};
use crate::ops::{Act, Pooling};

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    bert: bert::Config,
    #[serde(default = "one")]
    pad_token_id: usize,
}

fn one() -> usize {
    1
}

impl Config {
    /// Row of the position table that the first token has: those up to the padding's are not used.
    fn first_position(&self) -> usize {
        self.pad_token_id + 1
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let max_seq_len = self.bert.max_position_embeddings.saturating_sub(self.first_position());
        ModelShape { max_seq_len, ..self.bert.shape("roberta") }
    }

    fn labels(&self) -> Result<Option<Labels>, ModelError> {
        self.bert.labels.labels()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let keys = self.bert.keys(self.first_position())?;
        let root = if loader.has("roberta.embeddings.word_embeddings.weight") { "roberta." } else { "" };
        let head = match self.labels()? {
            None => None,
            Some(labels) => {
                let (dense, out) = ("classifier.dense", "classifier.out_proj");
                let names = HeadNames { dense, dense_bias: true, norm: None, out };
                let sizes = [self.bert.hidden_size, labels.names.len()];
                let (pooling, act) = (Pooling::First, Act::Tanh);
                Some(ClassificationHead::load(loader, names, pooling, act, sizes)?)
            }
        };
        let names = PostNormNames::bert(root);
        Ok(Box::new(PostNormEncoder::load(loader, &self.shape(), keys, &names, head, max_seq_len)?))
    }
}
