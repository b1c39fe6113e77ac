//! Norms of layers.

use super::Target;
use crate::gpu::{Recorder, Tensor};
use crate::models::{Activations, Loader, ModelError};
pub use crate::ops::LayerNorm;
use crate::ops::{self, Input, RmsNorm};

/// Loads the weights of an RMS norm, `name` with `n` elements.
///
/// # Errors
/// [`ModelError::Weights`].
pub fn load_rms_norm(loader: &mut Loader, name: &str, n: usize, eps: f32) -> Result<RmsNorm, ModelError> {
    Ok(RmsNorm { w: loader.vector(name, n)?, eps, offset: 0.0 })
}

/// The residual stream with an RMS norm, as the input of a product. The product's kernel computes the norm itself if it
/// can; otherwise another kernel writes it to `a.h`.
pub fn normed<'a>(norm: &'a RmsNorm, a: &'a Activations) -> Input<'a> {
    Input { x: &a.x, norm: Some((norm, &a.h)) }
}

/// The residual stream, to which the RMS norm of a block's result is added. Uses `a.h`.
pub fn added<'a>(norm: &'a RmsNorm, a: &'a Activations) -> Target<'a> {
    Target::AddNormed { to: &a.x, norm, result: &a.h }
}

impl LayerNorm {
    /// Loads `{name}.weight` and, if it has one, `{name}.bias`, with `n` elements each; or `gamma` and `beta`, the
    /// names in old checkpoints.
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

    /// Records `y = norm(x)` for `n_rows` rows, and returns `y`.
    pub fn record<'a>(&self, rec: &mut Recorder, x: &Tensor, y: &'a Tensor, n_rows: usize) -> &'a Tensor {
        ops::layer_norm(rec, x, self, None, y, n_rows);
        y
    }
}
