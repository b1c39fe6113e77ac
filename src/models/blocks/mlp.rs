//! The MLP of a layer.

use super::{Linear, Target};
use crate::gpu::Recorder;
use crate::models::settings::{Read, Settings};
use crate::models::{Activations, Loader, ModelError};
use crate::ops::{self, Act, Input, Rows};

/// `down(act(gate(h)) · up(h))`, or `down(act(up(h)))` if there is no gate.
#[derive(Debug)]
pub struct Mlp {
    /// The activation function.
    pub act: Act,
    /// Gate above up, `[2·intermediate_size, hidden_size]`; only up if there is no gate.
    pub up: Linear,
    /// `[hidden_size, intermediate_size]`.
    pub down: Linear,
}

impl Mlp {
    /// Loads `gate_proj` and `up_proj` as one product, and `down_proj`, all below `prefix`.
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
        let n = intermediate_size;
        let [gate, up, down] = ["gate_proj", "up_proj", "down_proj"].map(|part| format!("{prefix}.{part}"));
        Ok(Mlp {
            act,
            up: Linear::stack(loader, &[(&gate, n), (&up, n)], hidden_size, bias)?,
            down: Linear::load(loader, &down, [hidden_size, n], bias)?,
        })
    }

    /// Records the MLP for the rows of a batch. The target may be the input. Uses `up` and `act` of `a`.
    pub fn record<'a>(
        &'a self,
        rec: &mut Recorder,
        n: Rows,
        input: impl Into<Input<'a>>,
        y: Target<'_>,
        a: &Activations,
    ) {
        self.record_up(rec, n, input, a);
        self.record_down(rec, n, y, a);
    }

    /// Records the first half: `act(gate(h)) · up(h)`, or `act(up(h))`, to `act` of `a`.
    pub fn record_up<'a>(
        &'a self,
        rec: &mut Recorder,
        n: Rows,
        input: impl Into<Input<'a>>,
        a: &Activations,
    ) {
        ops::gate_up(rec, self.act, self.up.of(input), &a.up, &a.act, n);
    }

    /// Records the second half: the product of `act` of `a`.
    pub fn record_down(&self, rec: &mut Recorder, n: Rows, y: Target<'_>, a: &Activations) {
        self.down.record(rec, n, &a.act, y);
    }
}

/// Reads the key of an activation function.
pub(crate) fn act(s: &Settings<'_>, key: &str, default: &str) -> Read<Act> {
    s.one_of(key, &Act::NAMES, default)
}
