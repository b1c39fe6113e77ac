//! The feed-forward part of a layer.

use crate::gpu::{Recorder, Tensor};
use crate::models::{Activations, Batch, Loader, ModelError};
use crate::ops::{self, Act, Input};

/// `down(act(gate(h)) · up(h))`, or `down(act(up(h)))` where there is no gate.
#[derive(Debug)]
pub struct Mlp {
    /// The activation.
    pub act: Act,
    /// Gate above up, `[2·intermediate_size, hidden_size]`; up alone without a gate.
    pub up: Tensor,
    /// `[1, rows of up]`.
    pub up_bias: Option<Tensor>,
    /// `[hidden_size, intermediate_size]`.
    pub down: Tensor,
    /// `[1, hidden_size]`.
    pub down_bias: Option<Tensor>,
}

impl Mlp {
    /// Loads `gate_proj` and `up_proj`, stacked, and `down_proj`.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load_gated(
        loader: &mut Loader,
        prefix: &str,
        act: Act,
        [hidden_size, intermediate_size]: [usize; 2],
        bias: bool,
    ) -> Result<Self, ModelError> {
        let name = |part: &str| format!("{prefix}.{part}");
        let n = intermediate_size;
        let up = [(&*name("gate_proj.weight"), n), (&*name("up_proj.weight"), n)];
        let up = loader.stack(&up, hidden_size)?;
        let down = loader.matrix(&name("down_proj.weight"), [hidden_size, n])?;
        let (mut up_bias, mut down_bias) = (None, None);
        if bias {
            up_bias = Some(loader.vectors(&[(&name("gate_proj.bias"), n), (&name("up_proj.bias"), n)])?);
            down_bias = Some(loader.vector(&name("down_proj.bias"), hidden_size)?);
        }
        Ok(Mlp { act, up, up_bias, down, down_bias })
    }

    /// Records it on `input`, added to `a.x`.
    pub fn record(&self, rec: &mut Recorder, batch: &Batch<'_>, input: Input<'_>, a: &Activations) {
        self.record_onto(rec, batch, input, a, &a.x);
    }

    /// Records it on `input`, added to `y`, which may be the input.
    pub fn record_onto(
        &self,
        rec: &mut Recorder,
        batch: &Batch<'_>,
        input: Input<'_>,
        a: &Activations,
        y: &Tensor,
    ) {
        ops::gate_up(rec, self.act, input, &self.up, self.up_bias.as_ref(), &a.up, &a.act, batch.n);
        ops::linear(rec, &a.act, &self.down, self.down_bias.as_ref(), true, y, batch.n);
    }
}
