//! Layer norms as layers have them.

use crate::gpu::{Recorder, Tensor};
use crate::models::{Loader, ModelError};
use crate::ops;

/// A layer norm with its weights.
#[derive(Debug)]
pub struct LayerNorm {
    /// `[1, n]`.
    pub w: Tensor,
    /// `[1, n]`, zeros where the norm has none.
    pub b: Tensor,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// Loads `{name}.weight` and, if it has one, `{name}.bias`, `n` values each; or `gamma` and `beta`, which old
    /// checkpoints call them.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(loader: &mut Loader, name: &str, n: usize, bias: bool, eps: f32) -> Result<Self, ModelError> {
        let (weight, old) = (format!("{name}.weight"), format!("{name}.gamma"));
        let is_old = !loader.has(&weight) && loader.has(&old);
        let w = loader.vector(if is_old { &old } else { &weight }, n)?;
        let b = match (bias, is_old) {
            (true, true) => loader.vector(&format!("{name}.beta"), n)?,
            (true, false) => loader.vector(&format!("{name}.bias"), n)?,
            (false, _) => Tensor::from_f32(loader.gpu(), name, [1, n], &vec![0.0; n])?,
        };
        Ok(LayerNorm { w, b, eps })
    }

    /// Records `y = norm(x)` for `n_rows` rows.
    pub fn record(&self, rec: &mut Recorder, x: &Tensor, y: &Tensor, n_rows: usize) {
        ops::layer_norm(rec, x, &self.w, &self.b, None, self.eps, y, n_rows);
    }
}
