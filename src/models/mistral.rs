//! Mistral (Jiang et al. 2023): Llama whose queries see a window of keys.
//! Reference: transformers' `models/mistral/modeling_mistral.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderKeys, Variety};
use super::{Architecture, Loader, Model, ModelError, ModelShape};

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: DecoderKeys,
    sliding_window: Option<usize>,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("mistral", |_| self.sliding_window)
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let variety = Variety::default();
        Ok(Box::new(Decoder::load(loader, &self.shape(), &self.keys, variety, max_seq_len)?))
    }
}
