//! RoBERTa, XLM-R and CamemBERT (Liu et al. 2019): BERT with positions that begin after the padding's, and another
//! head. Reference: transformers' `models/roberta/modeling_roberta.py`.

use serde::Deserialize;

use super::bert::{self, Bert};
use super::blocks::{ClassificationHead, HeadNames};
use super::{Architecture, Labels, Loader, Model, ModelError, ModelShape};
use crate::ops::{Act, Lookup, Pooling};

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
    /// The first token's row in the position table. The rows up to the padding's are not used.
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
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let root = if loader.has("roberta.embeddings.word_embeddings.weight") { "roberta." } else { "" };
        let head = |loader: &mut Loader| {
            let Some(labels) = self.labels()? else { return Ok(None) };
            let (dense, out) = ("classifier.dense", "classifier.out_proj");
            let names = HeadNames { dense, dense_bias: true, norm: None, out };
            let sizes = [self.bert.hidden_size, labels.names.len()];
            ClassificationHead::load(loader, names, Pooling::First, Act::Tanh, sizes).map(Some)
        };
        let positions = Lookup::AddPositionAfter(self.first_position());
        Ok(Box::new(Bert::load(loader, &self.bert, shape, root, positions, head)?))
    }
}
