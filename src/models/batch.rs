//! The batch of one forward pass: its rows, its tables, and the caches that it reads and writes.

use crate::gpu::Tensor;
use crate::ops::{AttentionPlan, KvLayer, Places, Rows};

/// The sizes that activations are allocated for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Most rows of a batch.
    pub max_rows: usize,
    /// Most sequences, and so most decode rows.
    pub max_seqs: usize,
    /// Most rows that get logits.
    pub max_sampled: usize,
    /// Most positions of a sequence.
    pub max_seq_len: usize,
}

impl Capacity {
    /// No rows at all.
    pub(super) const NONE: Capacity = Capacity { max_rows: 0, max_seqs: 0, max_sampled: 0, max_seq_len: 0 };

    /// For models without decode rows and logits over the vocabulary.
    pub(super) fn without_logits(self) -> Capacity {
        Capacity { max_seqs: 0, max_sampled: 0, ..self }
    }
}

/// The rows of one forward pass, as tables on the device, and the cache.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Numbers of decode rows and prompt rows.
    pub n: Rows,
    /// Rows that get logits.
    pub n_sampled: usize,
    /// Blocks of prompt rows in `blocks`.
    pub n_prompt_blocks: usize,
    /// Positions of the longest sequence with a decode row, including that row's.
    pub longest: usize,
    /// (sequence, position) of each row: `[_, 2]`.
    pub rows: &'a Tensor,
    /// (first row, rows) of each attention block: `[_, 2]`.
    pub blocks: &'a Tensor,
    /// Token ids: `[n_seqs, max_seq_len]`.
    pub tokens: &'a Tensor,
    /// Types of the tokens, if a model distinguishes the texts of a pair: `[n_seqs, max_seq_len]`.
    pub types: Option<&'a Tensor>,
    /// Pages of each sequence: `[n_seqs, _]`.
    pub pages: &'a Tensor,
    /// Positions per page.
    pub page_size: usize,
    /// Positions of each sequence, at least 1, for attention to both sides: `[1, n_seqs]`.
    pub ends: Option<&'a Tensor>,
    /// The sequences' audio clips, if the model has an audio encoder.
    pub clips: Option<BatchClips<'a>>,
    /// Row of the batch that each row of logits belongs to: `[1, _]`.
    pub sampled: &'a Tensor,
    /// The cache of each layer.
    pub kv: &'a [KvLayer],
}

/// The audio clips of a batch's sequences.
#[derive(Clone, Copy, Debug)]
pub struct BatchClips<'a> {
    /// Pages of each sequence's clip: `[n_seqs, _]`.
    pub pages: &'a Tensor,
    /// Number of keys of each sequence's clip: `[1, n_seqs]`.
    pub ends: &'a Tensor,
    /// Most keys of a clip.
    pub n_positions: usize,
    /// Keys and values of each layer's cross-attention.
    pub kv: &'a [KvLayer],
    /// Where to write weights of cross-attention, if they are requested.
    pub alignment: Option<Alignment<'a>>,
}

/// Weights of some heads of cross-attention, for the prompt rows of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Alignment<'a> {
    /// (layer, head) of each head.
    pub heads: &'a [[usize; 2]],
    /// `[max_rows, heads · n_positions]`.
    pub weights: &'a Tensor,
}

impl<'a> Batch<'a> {
    pub(super) fn places(&self) -> Places<'a> {
        Places { rows: self.rows, pages: self.pages, page_size: self.page_size }
    }

    pub(super) fn attention_plan(&self, partial: &'a Tensor) -> AttentionPlan<'a> {
        AttentionPlan {
            rows: self.rows,
            blocks: self.blocks,
            pages: self.pages,
            page_size: self.page_size,
            ends: self.ends,
            n: self.n,
            n_prompt_blocks: self.n_prompt_blocks,
            longest: self.longest,
            partial,
            max_seq_len: self.tokens.n_cols(),
        }
    }
}
