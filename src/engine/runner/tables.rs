//! The device's tables of steps, slots and results.

use crate::dtype::Dtype;
use crate::engine::sampling::MAX_BIAS;
use crate::engine::scheduler::Step;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::Capacity;
use crate::ops::SamplingRecord;

/// The tables that change with each step. The host keeps a mirror of them, so that a step like the last one uploads
/// nothing.
pub(in crate::engine) struct StepTables {
    pub rows: Tensor,
    pub blocks: Tensor,
    pub sampled: Tensor,
    /// Uploads go here first and are copied by the recording, because earlier recordings may not have run yet.
    staging: Tensor,
    next: usize,
    mirror: Mirror,
}

#[derive(Default)]
struct Mirror {
    rows: Vec<[u32; 2]>,
    blocks: Vec<[u32; 2]>,
    sampled: Vec<u32>,
}

/// Uploads that can be pending at once: more than the steps in flight and in recording.
const STAGES: usize = 4;

impl StepTables {
    pub fn new(gpu: &Gpu, max_rows: usize, max_sampled: usize) -> Result<Self, GpuError> {
        let table = |label: &str, shape| Tensor::zeros(gpu, label, shape, Dtype::U32);
        Ok(StepTables {
            rows: table("rows", [max_rows, 2])?,
            blocks: table("blocks", [max_rows, 2])?,
            sampled: table("sampled", [1, max_sampled])?,
            staging: table("staging", [STAGES, 4 * max_rows + max_sampled])?,
            next: 0,
            mirror: Mirror::default(),
        })
    }

    /// Records the upload of tables that differ from the device's.
    pub fn upload(&mut self, gpu: &Gpu, rec: &mut Recorder, step: &Step) {
        let stage = self.next * self.staging.row_bytes();
        let max_rows = self.rows.n_rows();
        let mut is_used = false;
        let mut put = |is_changed: bool, words: &[u32], table: &Tensor, at: usize| {
            if is_changed && !words.is_empty() {
                let offset = stage + 4 * at;
                self.staging.write_at(gpu, offset, bytemuck::cast_slice(words));
                rec.copy(&self.staging, offset as u64, table, 0, 4 * words.len() as u64);
                is_used = true;
            }
        };
        let mirror = &mut self.mirror;
        put(mirror.rows != step.rows, bytemuck::cast_slice(&step.rows), &self.rows, 0);
        put(mirror.blocks != step.blocks, bytemuck::cast_slice(&step.blocks), &self.blocks, 2 * max_rows);
        put(mirror.sampled != step.sampled, &step.sampled, &self.sampled, 4 * max_rows);
        if is_used {
            self.next = (self.next + 1) % STAGES;
        }
        mirror.rows.clone_from(&step.rows);
        mirror.blocks.clone_from(&step.blocks);
        mirror.sampled.clone_from(&step.sampled);
        // The draw advances the positions of its rows.
        for row in &step.sampled[..step.draws.len()] {
            mirror.rows[*row as usize][1] += 1;
        }
    }
}

/// The tables with a row for each slot. A slot's rows are written when a sequence is admitted to it, while nothing in
/// flight reads them. Pages are appended beyond the positions in flight.
pub(in crate::engine) struct SlotTables {
    /// Ids: `[max_seqs, ctx]`.
    pub tokens: Tensor,
    /// Pages of the cache: `[max_seqs, ctx / PAGE_SIZE]`.
    pub pages: Tensor,
    /// [`SamplingRecord`]s: `[max_seqs, 12]`.
    pub sampling: Tensor,
    /// Biases: `[max_seqs, 2·MAX_BIAS]`.
    pub bias: Tensor,
    /// Counts of tokens, for penalties: `[max_seqs, vocab_size]`.
    pub counts: Tensor,
}

impl SlotTables {
    pub fn new(
        gpu: &Gpu,
        max_seqs: usize,
        ctx: usize,
        seq_pages: usize,
        vocab: usize,
    ) -> Result<Self, GpuError> {
        let table = |label: &str, n_cols| Tensor::zeros(gpu, label, [max_seqs, n_cols], Dtype::U32);
        Ok(SlotTables {
            tokens: table("tokens", ctx)?,
            pages: table("pages", seq_pages)?,
            sampling: table("sampling", size_of::<SamplingRecord>() / 4)?,
            bias: table("bias", 2 * MAX_BIAS)?,
            counts: table("counts", vocab)?,
        })
    }
}

/// The results of a step.
pub(in crate::engine) struct Results {
    /// Drawn tokens: `[1, max_seqs]`.
    pub chosen: Tensor,
    /// `1 / temperature` and the smallest kept logit of each row: `[max_seqs, 2]`.
    pub filters: Tensor,
    /// If requests may ask for log-probabilities.
    pub logprobs: Option<LogprobTables>,
    /// Log-probabilities of prompts' tokens: `[1, max_sampled]`.
    pub scores: Tensor,
    /// If requests may leave logits on the device.
    pub kept: Option<KeptTables>,
}

pub(in crate::engine) struct KeptTables {
    /// For the host: `[kept_rows, vocab_size]`.
    pub rows: Tensor,
    /// The softmax of the rows of a step: `[max_sampled, vocab_size]`.
    pub softmax: Tensor,
}

pub(in crate::engine) struct LogprobTables {
    /// `[max_seqs, vocab_size]`, before the filters, then after.
    pub over_vocab: Tensor,
    /// The chosen and the best before the filters: `[max_seqs, 2·(1 + max_logprobs)]`.
    pub top: Tensor,
    /// The same after the filters.
    pub sampled_top: Tensor,
}

impl Results {
    pub fn new(
        gpu: &Gpu,
        capacity: Capacity,
        vocab: usize,
        max_logprobs: usize,
        kept_rows: usize,
    ) -> Result<Self, GpuError> {
        let Capacity { max_seqs, max_sampled, .. } = capacity;
        let kept = match kept_rows {
            0 => None,
            n => Some(KeptTables {
                rows: Tensor::zeros(gpu, "kept", [n, vocab], Dtype::F32)?,
                softmax: Tensor::zeros(gpu, "kept softmax", [max_sampled, vocab], Dtype::F32)?,
            }),
        };
        let table = |label: &str, shape| Tensor::zeros(gpu, label, shape, Dtype::U32);
        let logprobs = match max_logprobs {
            0 => None,
            n => Some(LogprobTables {
                over_vocab: Tensor::zeros(gpu, "logprobs", [max_seqs, vocab], Dtype::F32)?,
                top: table("top", [max_seqs, 2 * (1 + n)])?,
                sampled_top: table("sampled top", [max_seqs, 2 * (1 + n)])?,
            }),
        };
        Ok(Results {
            chosen: table("chosen", [1, max_seqs])?,
            filters: table("filters", [max_seqs, 2])?,
            logprobs,
            kept,
            scores: Tensor::zeros(gpu, "scores", [1, max_sampled], Dtype::F32)?,
        })
    }

    /// Most bytes that a step reads back, besides logits and alignments.
    pub fn step_bytes(&self) -> u64 {
        let logprobs = self.logprobs.as_ref().map_or(0, |l| 2 * l.top.size_bytes());
        self.chosen.size_bytes() + logprobs + self.scores.size_bytes()
    }
}
