//! The buffers that one forward pass works in.

use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Tensor};
use crate::models::{Capacity, ModelShape};

/// Widths of a layer's activations, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// What goes into the activation: twice `intermediate_size` where there is a gate.
    pub up: usize,
    /// What comes out of it.
    pub intermediate: usize,
}

/// One buffer an activation, because a device refuses one buffer for reading and for writing in one
/// dispatch. Layers use them in turn. F32, `[max_rows, width]`, padding zero for ever.
#[derive(Debug)]
pub struct Activations {
    /// The residual stream: `[max_rows, hidden_size]`.
    pub x: Tensor,
    /// Normalised: `[max_rows, hidden_size]`.
    pub h: Tensor,
    /// Queries, keys and values: `[max_rows, (n_heads + 2·n_kv_heads)·head_dim]`.
    pub qkv: Tensor,
    /// Rotated queries: `[max_rows, n_heads·head_dim]`.
    pub q: Tensor,
    /// What attention found: `[max_rows, n_heads·head_dim]`.
    pub o: Tensor,
    /// Before the activation: `[max_rows, up]`.
    pub up: Tensor,
    /// After it: `[max_rows, intermediate]`.
    pub act: Tensor,
    /// Partial sums of split attention.
    pub partial: Tensor,
    /// Normalised rows that get logits: `[max_sampled, hidden_size]`.
    pub last: Tensor,
    /// `[max_sampled, vocab_size]`.
    pub logits: Tensor,
}

impl Activations {
    /// Allocates all of them.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, shape: &ModelShape, widths: Widths, capacity: Capacity) -> Result<Self, GpuError> {
        let most =
            |f: &dyn Fn(&crate::ops::Attention) -> usize| shape.attention.iter().map(f).max().unwrap_or(0);
        let rows = |label: &str, width| Tensor::zeros(gpu, label, [capacity.max_rows, width], Dtype::F32);
        let partial = most(&|a| a.partial_shape(capacity.max_seqs, capacity.max_seq_len)[1]);
        let last = [capacity.max_sampled, shape.hidden_size];
        let logits = [capacity.max_sampled, shape.vocab_size];
        Ok(Activations {
            x: rows("x", shape.hidden_size)?,
            h: rows("h", shape.hidden_size)?,
            qkv: rows("qkv", most(&|a| (a.n_heads + 2 * a.n_kv_heads) * a.head_dim))?,
            q: rows("q", most(&|a| a.n_heads * a.head_dim))?,
            o: rows("o", most(&|a| a.n_heads * a.head_dim))?,
            up: rows("up", widths.up)?,
            act: rows("act", widths.intermediate)?,
            partial: Tensor::zeros(gpu, "partial", [1, partial], Dtype::F32)?,
            last: Tensor::zeros(gpu, "last", last, Dtype::F32)?,
            logits: Tensor::zeros(gpu, "logits", logits, Dtype::F32)?,
        })
    }
}
