//! The buffers that recordings write, separate from the shared weights.

use super::{Capacity, ExpertsShape, ModelShape};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Tensor};
use crate::ops::{Attention, KvLayer, Routes};

/// All buffers that the recordings of a model write, from [`Model::scratch`](super::Model::scratch). Each engine has
/// its own.
///
/// A recording borrows it mutably, because two recordings with one scratch must run one after the other.
#[derive(Debug)]
pub struct Scratch {
    pub(super) a: Activations,
    /// If the model has a classification head.
    pub(super) labels: Option<LabelScratch>,
    /// If the model has an audio encoder.
    pub(super) audio: Option<AudioScratch>,
}

impl Scratch {
    /// The activations of the layers of `shape`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    ///
    /// # Panics
    /// If sequences may become longer than the positions that `shape` names.
    pub(super) fn new(gpu: &Gpu, shape: &ModelShape, capacity: Capacity) -> Result<Scratch, GpuError> {
        Ok(Scratch { a: Activations::new(gpu, shape, capacity)?, labels: None, audio: None })
    }
}

/// The buffers that all layers use. Each activation has its own buffer, because a dispatch may not read and write the
/// same one. F32, `[max_rows, width]`; the padding is zero and stays zero.
#[derive(Debug)]
pub struct Activations {
    /// The residual stream: `[max_rows, hidden_size]`.
    pub x: Tensor,
    /// The normalised residual stream: `[max_rows, hidden_size]`.
    pub h: Tensor,
    /// Queries, keys and values: `[max_rows, (n_heads + 2·n_kv_heads)·head_dim]`.
    pub qkv: Tensor,
    /// Rotated queries: `[max_rows, n_heads·head_dim]`.
    pub q: Tensor,
    /// The output of attention: `[max_rows, n_heads·head_dim]`.
    pub o: Tensor,
    /// Input of the activation function: `[max_rows, intermediate_size]`, or twice as wide if there is a gate.
    pub up: Tensor,
    /// Output of the activation function: `[max_rows, intermediate_size]`.
    pub act: Tensor,
    /// If the model has experts.
    pub experts: Option<ExpertScratch>,
    /// Partial sums of split attention.
    pub partial: Tensor,
    /// Rows that get logits, normalised: `[max_sampled, hidden_size]`.
    pub last: Tensor,
    /// `[max_sampled, vocab_size]`.
    pub logits: Tensor,
}

impl Activations {
    /// Allocates all of them.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    ///
    /// # Panics
    /// If sequences may become longer than the positions that `shape` names.
    pub(super) fn new(gpu: &Gpu, shape: &ModelShape, capacity: Capacity) -> Result<Self, GpuError> {
        let Capacity { max_rows, max_seqs, max_sampled, max_seq_len } = capacity;
        assert!(
            max_seq_len <= shape.max_seq_len,
            "a scratch for {max_seq_len} positions of a model that was loaded for {}",
            shape.max_seq_len
        );
        let most = |f: &dyn Fn(&Attention) -> usize| shape.attention.iter().map(f).max().unwrap_or(0);
        let rows = |label: &str, width| Tensor::zeros(gpu, label, [max_rows, width], Dtype::F32);
        let n_inner = shape.intermediate_size;
        let partial = most(&|a| a.partial_shape(gpu.caps(), max_seqs, max_seq_len)[1]);
        Ok(Activations {
            x: rows("x", shape.hidden_size)?,
            h: rows("h", shape.hidden_size)?,
            qkv: rows("qkv", most(&|a| (a.n_heads + 2 * a.n_kv_heads) * a.head_dim))?,
            q: rows("q", most(&|a| a.n_heads * a.head_dim))?,
            o: rows("o", most(&|a| a.n_heads * a.head_dim))?,
            up: rows("up", if shape.has_gate { 2 * n_inner } else { n_inner })?,
            act: rows("act", n_inner)?,
            experts: match &shape.experts {
                Some(experts) => Some(ExpertScratch::new(gpu, shape.hidden_size, experts, max_rows)?),
                None => None,
            },
            partial: Tensor::zeros(gpu, "partial", [1, partial], Dtype::F32)?,
            last: Tensor::zeros(gpu, "last", [max_sampled, shape.hidden_size], Dtype::F32)?,
            logits: Tensor::zeros(gpu, "logits", [max_sampled, shape.vocab_size], Dtype::F32)?,
        })
    }
}

/// The buffers of a mixture of experts. A pair is a row with one of the experts that it takes.
#[derive(Debug)]
pub struct ExpertScratch {
    /// The router's: `[max_rows, n_experts]`.
    pub logits: Tensor,
    /// The experts of each row.
    pub routes: Routes,
    /// Input of the activation function: `[max_pairs, 2·intermediate_size]`.
    pub up: Tensor,
    /// Output of the activation function: `[max_pairs, intermediate_size]`.
    pub act: Tensor,
    /// The experts' outputs: `[max_pairs, hidden_size]`.
    pub y: Tensor,
}

impl ExpertScratch {
    fn new(
        gpu: &Gpu,
        hidden_size: usize,
        shape: &ExpertsShape,
        max_rows: usize,
    ) -> Result<ExpertScratch, GpuError> {
        let ExpertsShape { n_experts, n_chosen, intermediate_size, .. } = *shape;
        let pairs = |label: &str, width| Tensor::zeros(gpu, label, [max_rows * n_chosen, width], Dtype::F32);
        Ok(ExpertScratch {
            logits: Tensor::zeros(gpu, "router", [max_rows, n_experts], Dtype::F32)?,
            routes: Routes::new(gpu, max_rows, n_experts, n_chosen)?,
            up: pairs("experts' up", 2 * intermediate_size)?,
            act: pairs("experts' act", intermediate_size)?,
            y: pairs("experts' outputs", hidden_size)?,
        })
    }
}

/// The buffers of a classification head: `[max_seqs, hidden_size]` F32, except the logits.
#[derive(Debug)]
pub struct LabelScratch {
    /// The pooled row of each sequence.
    pub pooled: Tensor,
    /// Input of the activation function.
    pub up: Tensor,
    /// Output of the activation function.
    pub act: Tensor,
    /// Normalised, if the head has a norm.
    pub normed: Tensor,
    /// `[max_seqs, n_labels]`.
    pub logits: Tensor,
}

impl LabelScratch {
    /// Allocates all of them.
    ///
    /// # Errors
    /// As [`Scratch::new`].
    pub(super) fn new(
        gpu: &Gpu,
        hidden_size: usize,
        n_labels: usize,
        max_seqs: usize,
    ) -> Result<Self, GpuError> {
        let rows = |label: &str, width| Tensor::zeros(gpu, label, [max_seqs, width], Dtype::F32);
        Ok(LabelScratch {
            pooled: rows("pooled", hidden_size)?,
            up: rows("head up", hidden_size)?,
            act: rows("head act", hidden_size)?,
            normed: rows("head norm", hidden_size)?,
            logits: rows("label logits", n_labels)?,
        })
    }
}

/// The buffers of an audio encoder, for one clip.
#[derive(Debug)]
pub struct AudioScratch {
    /// Activations of its layers. Its output, the clip's rows, is in `h`.
    pub a: Activations,
    /// The unfolded inputs of the convolutions: `[n_frames, 3·n_mels]`, `[n_positions, 3·hidden_size]`.
    pub unfolded: [Tensor; 2],
    /// The first convolution's output, before and after the activation function: `[n_frames, hidden_size]`.
    pub frames: [Tensor; 2],
    /// Keys and values of the clip; all layers use the same.
    pub kv: Vec<KvLayer>,
    /// Keys and values for one layer of the decoder, before they go to the clip's pages: `[n_positions,
    /// 2·hidden_size]`.
    pub cross_kv: Tensor,
}
