//! What one forward pass is about: its rows, its tables, the caches that it reads and writes.

use crate::gpu::Tensor;
use crate::ops::{AttentionPlan, KvLayer, Places, Rows};

/// How much a model shall be able to do at a time: what its activations are allocated for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Rows of a batch.
    pub max_rows: usize,
    /// Sequences, and so rows that decode.
    pub max_seqs: usize,
    /// Rows that get logits at a time.
    pub max_sampled: usize,
    /// Positions of a sequence.
    pub max_seq_len: usize,
}

impl Capacity {
    /// Nothing.
    pub(super) const NONE: Capacity = Capacity { max_rows: 0, max_seqs: 0, max_sampled: 0, max_seq_len: 0 };

    /// For activations of which no row decodes or gets logits over the vocabulary.
    pub(super) fn without_logits(self) -> Capacity {
        Capacity { max_seqs: 0, max_sampled: 0, ..self }
    }
}

/// One forward pass's rows, as tables on the device, and the cache.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Rows that decode and rows of prompts.
    pub n: Rows,
    /// Rows that get logits.
    pub n_sampled: usize,
    /// Blocks of prompt rows in `blocks`.
    pub n_prompt_blocks: usize,
    /// Positions of the longest decoding sequence, this one included.
    pub longest: usize,
    /// (sequence, position) of each row: `[_, 2]`.
    pub rows: &'a Tensor,
    /// (first row, rows) of each attention block: `[_, 2]`.
    pub blocks: &'a Tensor,
    /// Token ids: `[n_seqs, max_seq_len]`.
    pub tokens: &'a Tensor,
    /// Pages of each sequence: `[n_seqs, _]`.
    pub pages: &'a Tensor,
    /// Positions a page.
    pub page_size: usize,
    /// Positions of each sequence, at least 1, for attention to both sides: `[1, n_seqs]`.
    pub ends: Option<&'a Tensor>,
    /// What the sequences hear, if the model hears.
    pub clips: Option<Clips<'a>>,
    /// Row of the batch that each row of logits belongs to: `[1, _]`.
    pub sampled: &'a Tensor,
    /// The cache of each layer.
    pub kv: &'a [KvLayer],
}

/// The clips that a batch's sequences hear.
#[derive(Clone, Copy, Debug)]
pub struct Clips<'a> {
    /// Pages of the clip of each sequence: `[n_seqs, _]`.
    pub pages: &'a Tensor,
    /// Keys of the clip of each sequence: `[1, n_seqs]`.
    pub ends: &'a Tensor,
    /// Keys of a clip at most.
    pub n_positions: usize,
    /// Keys and values of each layer's cross-attention.
    pub kv: &'a [KvLayer],
    /// Where cross-attention shall show what it weighs by, if somebody wants to see it.
    pub alignment: Option<Alignment<'a>>,
}

/// Cross-attention weights of some heads, for the prompt rows of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Alignment<'a> {
    /// (layer, head) of each.
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
