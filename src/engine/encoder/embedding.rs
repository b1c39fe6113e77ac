//! From rows to embeddings: pooling, products, normalisation.

use crate::checkpoint::EmbeddingConfig;
use crate::dtype::Dtype;
use crate::gpu::{Gpu, Recorder, Tensor};
use crate::models::{Loader, ModelError, Upload};
use crate::ops::{self, Act, Affine, Pooling, RmsNorm, Rows};

/// The modules after the encoder, with tensors for their results.
pub(super) struct Embedding {
    pooling: Vec<Pooling>,
    /// `[max_seqs, ways·hidden_size]`.
    pooled: Tensor,
    dense: Vec<Dense>,
    /// A norm that scales to length 1, and a tensor for the result.
    normalize: Option<(RmsNorm, Tensor)>,
}

struct Dense {
    w: Tensor,
    bias: Option<Tensor>,
    act: Option<Act>,
    /// `[max_seqs, out_features]`: input of the activation, and output.
    up: Tensor,
    y: Tensor,
}

/// Added to the squared length before the division, so that zeros stay zeros: the square of torch's epsilon.
const EPS: f32 = 1e-24;

impl Embedding {
    /// Checks and allocates. The returned uploads fill the weights of the products.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn plan(
        gpu: &Gpu,
        config: &EmbeddingConfig,
        hidden_size: usize,
        max_seqs: usize,
    ) -> Result<(Embedding, Vec<Upload>), ModelError> {
        let rows = |label: &str, width| Tensor::zeros(gpu, label, [max_seqs, width], Dtype::F32);
        let (mut dense, mut uploads) = (Vec::new(), Vec::new());
        for module in &config.dense {
            let (n_out, n_in) = (module.out_features, module.in_features);
            let mut loader = Loader::new(gpu, module.weights.clone(), None);
            dense.push(Dense {
                w: loader.matrix(&format!("{}.weight", module.name), [n_out, n_in])?,
                bias: module
                    .bias
                    .then(|| loader.vector(&format!("{}.bias", module.name), n_out))
                    .transpose()?,
                act: module.act,
                up: rows("dense up", n_out)?,
                y: rows("dense", n_out)?,
            });
            uploads.push(loader.finish());
        }
        let width = config.width(hidden_size);
        let normalize = match config.normalize {
            false => None,
            true => {
                // x / √(mean(x²) + ε/n) · 1/√n = x / √(Σ x² + ε).
                let n = width as f32;
                let w = Tensor::from_f32(gpu, "length 1", [1, width], &vec![n.powf(-0.5); width])?;
                Some((RmsNorm { w, eps: EPS / n, offset: 0.0 }, rows("embedding", width)?))
            }
        };
        let pooled = rows("pooled", config.pooling.len() * hidden_size)?;
        Ok((Embedding { pooling: config.pooling.clone(), pooled, dense, normalize }, uploads))
    }

    /// Records the embeddings of `n_seqs` texts, whose rows of `x` are in `spans`, and returns their tensor `[max_seqs,
    /// width]` F32.
    pub fn record(&self, rec: &mut Recorder, x: &Tensor, spans: &Tensor, n_seqs: usize) -> Tensor {
        let n = Rows { n_decode: n_seqs, n_prompt: 0 };
        for (i, pooling) in self.pooling.iter().enumerate() {
            ops::pool(rec, *pooling, spans, x, &self.pooled, i * x.n_cols(), n_seqs);
        }
        let mut last = &self.pooled;
        for Dense { w, bias, act, up, y } in &self.dense {
            let product = Affine::new(last, w, bias.as_ref());
            match act {
                Some(act) => ops::gate_up(rec, *act, product, up, y, n),
                None => ops::linear(rec, product, false, y, n),
            }
            last = y;
        }
        match &self.normalize {
            None => last.clone(),
            Some((norm, y)) => {
                ops::rms_norm(rec, last, norm, None, false, y, 0..n_seqs);
                y.clone()
            }
        }
    }
}
