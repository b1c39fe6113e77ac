//! Activations, optionally with a gate.

use std::ops::Range;

use super::{ACT, assert_rows, kernel};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        row0: u32,
        n_rows: u32,
        n_cols: u32,
        x_stride: u32,
        y_stride: u32,
    }
}

kernel!(GATE, "gate", Params, [Read, ReadWrite]);

/// An activation function, under the names of Hugging Face's `ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x·σ(x)`
    Silu,
    /// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`
    GeluTanh,
    /// `½x(1 + erf(x/√2))`
    Gelu,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
    /// Only with a gate: `g·σ(1.702·g)·(u + 1)`, the gate at most 7, the other half within ±7 (gpt-oss).
    Clamped,
}

impl Act {
    /// All of them.
    pub const ALL: [Act; 6] = [Act::Silu, Act::GeluTanh, Act::Gelu, Act::Relu, Act::Tanh, Act::Clamped];
    /// By the names that `config.json` has for them.
    pub const NAMES: [(&str, Act); 8] = [
        ("silu", Act::Silu),
        ("swish", Act::Silu),
        ("gelu", Act::Gelu),
        ("gelu_new", Act::GeluTanh),
        ("gelu_pytorch_tanh", Act::GeluTanh),
        ("gelu_fast", Act::GeluTanh),
        ("relu", Act::Relu),
        ("tanh", Act::Tanh),
    ];
}

/// `y = act(x)`, `[_, n_cols]`, for the rows of `range`; if `x` is `[_, 2·n_cols]`, `y = act(left half) · right half`.
///
/// Hendrycks & Gimpel 2016 for GELU, Shazeer 2020 for the gate.
///
/// # Panics
/// If the shapes disagree.
pub fn gate(rec: &mut Recorder, act: Act, x: &Tensor, y: &Tensor, range: Range<usize>) {
    let gated = x.n_cols() == 2 * y.n_cols();
    assert!(gated || x.n_cols() == y.n_cols() && act != Act::Clamped, "gate: {act:?}, {x:?} and {y:?}");
    assert_rows("gate", x, range.end);
    assert_rows("gate", y, range.end);
    let params = Params {
        row0: range.start as u32,
        n_rows: range.len() as u32,
        n_cols: y.n_cols() as u32,
        x_stride: x.stride() as u32,
        y_stride: y.stride() as u32,
    };
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&GATE).part(&ACT).set("WG", lanes);
    let variant = variant.set("ACT", act as u32).set("GATED", gated.into());
    let groups = rec.gpu().caps().spread(((range.len() * y.n_cols()) as u32).div_ceil(lanes));
    rec.dispatch(variant, &params, &[x.view(), y.view()], groups);
}
