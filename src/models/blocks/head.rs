//! From the residual stream to logits over the vocabulary.

use crate::gpu::{Recorder, Tensor};
use crate::models::{Activations, Batch, Loader, ModelError};
use crate::ops::{self, Affine, LayerNorm, RmsNorm, Rows};

/// The norm after the last layer.
#[derive(Debug)]
pub enum FinalNorm {
    /// `x / rms(x) · w`
    Rms(RmsNorm),
    /// `(x − mean) / σ · w + b`
    Layer(LayerNorm),
}

/// The final norm and the head, for the rows that get logits.
#[derive(Debug)]
pub struct Head {
    /// The norm.
    pub norm: FinalNorm,
    /// `[vocab_size, hidden_size]`. `None` if the model reads whole texts.
    pub w: Option<Tensor>,
    /// Factor on the logits.
    pub scale: f32,
    /// Cap on the logits: `softcap · tanh(logit / softcap)`.
    pub softcap: Option<f32>,
}

impl Head {
    /// The head after `norm`, with no factor and no cap. `tables` are the names of the embedding and of the head, which
    /// have the same shape. If the head is `tied`, its weights are the embedding's, unless the checkpoint stores others:
    /// as in transformers 5, what is stored counts more than the config.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        tables: [&str; 2],
        norm: FinalNorm,
        embedding: &Tensor,
        tied: bool,
    ) -> Result<Self, ModelError> {
        let [embedding_name, head] = tables;
        if loader.omits_head() {
            loader.ignore(head);
            return Ok(Head { norm, w: None, scale: 1.0, softcap: None });
        }
        let is_shared = tied && !loader.differ(embedding_name, head)?;
        let w = if is_shared {
            loader.ignore(head);
            embedding.clone()
        } else {
            if tied && !loader.gpu().is_plan() {
                log::warn!(
                    "`tie_word_embeddings` is true, but `{head}` differs from `{embedding_name}`: used as stored"
                );
            }
            loader.table(head, [embedding.n_rows(), embedding.n_cols()])?
        };
        Ok(Head { norm, w: Some(w), scale: 1.0, softcap: None })
    }

    /// Records the logits of the rows in `b.sampled`, and returns their tensor `a.logits` `[max_sampled, vocab_size]`. Of
    /// a model that reads whole texts: all rows after the norm, `a.h` `[max_rows, hidden_size]`.
    pub fn record(&self, rec: &mut Recorder, b: &Batch<'_>, a: &Activations) -> Tensor {
        let (index, y, n_rows) = match &self.w {
            Some(_) => (Some(b.sampled), &a.last, b.n_sampled),
            None => (None, &a.h, b.n.count()),
        };
        match &self.norm {
            FinalNorm::Rms(norm) => ops::rms_norm(rec, &a.x, norm, index, false, y, 0..n_rows),
            FinalNorm::Layer(norm) => ops::layer_norm(rec, &a.x, norm, index, y, n_rows),
        }
        let Some(w) = &self.w else { return y.clone() };
        // As decode rows, whether they decode or end a prompt, so that their sums have the same order.
        let n = Rows { n_decode: n_rows, n_prompt: 0 };
        ops::linear(rec, Affine::new(&a.last, w, None), false, &a.logits, n);
        if self.scale != 1.0 || self.softcap.is_some() {
            ops::softcap(rec, &a.logits, self.scale, self.softcap, n_rows);
        }
        a.logits.clone()
    }
}
