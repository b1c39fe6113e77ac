//! RoBERTa, XLM-R and CamemBERT (Liu et al. 2019): BERT with positions that begin after the padding's, and another
//! head. Reference: transformers' `models/roberta/modeling_roberta.py`.

use super::bert::{self, Bert};
use super::blocks::{ClassificationHead, HeadNames};
use super::settings::{ROWS, Read, Settings};
use super::{Architecture, FromSettings, Labels, Loader, Model, ModelError, ModelShape, Names};
use crate::ops::{Act, Lookup, Pooling};

pub struct Config {
    bert: bert::Config,
    pad_token_id: usize,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        // `RobertaConfig` has the vocabulary of its first model, `CamembertConfig` and `XLMRobertaConfig` that of BERT.
        let vocab_size = if s.written("model_type") == Some("\"roberta\"") { 50_265 } else { 30_522 };
        let config = Config {
            bert: bert::Config::read_with(s, vocab_size)?,
            pad_token_id: s.whole("pad_token_id", 0..=*ROWS.end(), 1)?,
        };
        let (positions, first) = (config.bert.max_position_embeddings, config.first_position());
        if positions <= first {
            let expected = format!("more than {first}, the rows up to `pad_token_id`");
            return Err(s.wrong_value("max_position_embeddings", positions, expected));
        }
        Ok(config)
    }
}

impl Config {
    /// The first token's row in the position table. The rows up to the padding's are not used.
    fn first_position(&self) -> usize {
        self.pad_token_id + 1
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let max_seq_len = self.bert.max_position_embeddings - self.first_position();
        ModelShape { max_seq_len, ..self.bert.shape("roberta") }
    }

    fn labels(&self) -> Option<&Labels> {
        self.bert.labels.as_ref()
    }

    fn names(&self) -> Names {
        self.bert.names("roberta.")
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let root = loader.root(&self.names());
        let head = |loader: &mut Loader| {
            let Some(labels) = self.labels() else { return Ok(None) };
            let (dense, out) = ("classifier.dense", "classifier.out_proj");
            let names = HeadNames { dense, dense_bias: true, norm: None, out };
            let sizes = [self.bert.hidden_size, labels.names.len()];
            ClassificationHead::load(loader, names, Pooling::First, Act::Tanh, sizes).map(Some)
        };
        let positions = Lookup::AddPositionAfter(self.first_position());
        Ok(Box::new(Bert::load(loader, &self.bert, shape, root, positions, head)?))
    }
}
