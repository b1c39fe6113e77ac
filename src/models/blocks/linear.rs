//! A product with weights, and its target.

use crate::gpu::{Recorder, Tensor};
use crate::models::{Loader, ModelError};
use crate::ops::{self, Affine, Input, RmsNorm, Rows};

/// Where a block writes its result.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Overwrites the tensor.
    Set(&'a Tensor),
    /// Adds to the tensor: a residual connection.
    Add(&'a Tensor),
    /// Adds the norm of the result to a tensor: a residual connection around block and norm.
    AddNormed {
        /// The tensor.
        to: &'a Tensor,
        /// The norm.
        norm: &'a RmsNorm,
        /// Scratch for the result. May be the one for the norm of the block's input.
        result: &'a Tensor,
    },
}

/// `y = x·Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    /// `[n_out, n_in]`.
    pub w: Tensor,
    /// `[1, n_out]`.
    pub b: Option<Tensor>,
}

impl Linear {
    /// Loads `{name}.weight` and, if it has one, `{name}.bias`.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        name: &str,
        [n_out, n_in]: [usize; 2],
        bias: bool,
    ) -> Result<Self, ModelError> {
        Linear::stack(loader, &[(name, n_out)], n_in, bias)
    }

    /// Loads several products of one input as one, with the `parts` (name, n_out) one below the other.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn stack(
        loader: &mut Loader,
        parts: &[(&str, usize)],
        n_in: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let named = |suffix: &str| -> Vec<(String, usize)> {
            parts.iter().map(|(name, n_out)| (format!("{name}.{suffix}"), *n_out)).collect()
        };
        Ok(Linear {
            w: loader.stack(&borrowed(&named("weight")), n_in)?,
            b: if bias { Some(loader.vectors(&borrowed(&named("bias")))?) } else { None },
        })
    }

    /// As [`Linear::load`], but the weights are never quantised.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load_as_stored(
        loader: &mut Loader,
        name: &str,
        [n_out, n_in]: [usize; 2],
        bias: bool,
    ) -> Result<Self, ModelError> {
        Ok(Linear {
            w: loader.as_stored(&format!("{name}.weight"), [n_out, n_in])?,
            b: if bias { Some(loader.vector(&format!("{name}.bias"), n_out)?) } else { None },
        })
    }

    /// The product of `input` with these weights.
    pub fn of<'a>(&'a self, input: impl Into<Input<'a>>) -> Affine<'a> {
        Affine::new(input, &self.w, self.b.as_ref())
    }

    /// Records the product for the rows of a batch.
    pub fn record<'a>(&'a self, rec: &mut Recorder, n: Rows, input: impl Into<Input<'a>>, y: Target<'_>) {
        match y {
            Target::Set(y) => ops::linear(rec, self.of(input), false, y, n),
            Target::Add(y) => ops::linear(rec, self.of(input), true, y, n),
            Target::AddNormed { to, norm, result } => {
                ops::linear(rec, self.of(input), false, result, n);
                ops::rms_norm(rec, result, norm, None, true, to, 0..n.count());
            }
        }
    }
}

fn borrowed(named: &[(String, usize)]) -> Vec<(&str, usize)> {
    named.iter().map(|(name, n_out)| (name.as_str(), *n_out)).collect()
}
