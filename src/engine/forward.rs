//! The model with its tables: what a step's recording needs, and nothing of what a request is.

use std::sync::Arc;

use super::clips::Clips;
use super::plan::{Plan, PlanTables};
use super::sampling::MAX_BIAS;
use super::{ClipId, KvPages, PAGE_SIZE};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::{Batch, Capacity, Model, Scratch};
use crate::ops::{self, SamplingRecord};

pub(super) struct Forward {
    pub model: Arc<dyn Model>,
    pub pages: KvPages,
    pub plans: PlanTables,
    pub slots: SlotTables,
    pub results: Results,
    /// If the model hears.
    pub clips: Option<Clips>,
}

/// The tables in which each slot has a row. A slot's rows are written when a sequence is admitted to it, while
/// nothing in flight reads them.
pub(super) struct SlotTables {
    /// Ids: `[max_seqs, ctx]`.
    pub tokens: Tensor,
    /// Pages of the cache: `[max_seqs, ctx / PAGE_SIZE]`.
    pub pages: Tensor,
    /// [`SamplingRecord`]s: `[max_seqs, 12]`.
    pub sampling: Tensor,
    /// Biases: `[max_seqs, 2·MAX_BIAS]`.
    pub bias: Tensor,
    /// How often each token was seen: `[max_seqs, vocab_size]`.
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

/// Where a step leaves its results.
pub(super) struct Results {
    /// Tokens drawn: `[1, max_seqs]`.
    pub chosen: Tensor,
    /// What temperature and filters did: `[max_seqs, 2]`.
    filters: Tensor,
    /// If requests may ask for log-probabilities.
    pub logprobs: Option<LogprobTables>,
    /// Log-probabilities of prompts' tokens: `[1, max_sampled]`.
    scores: Tensor,
}

pub(super) struct LogprobTables {
    /// `[max_seqs, vocab_size]`, before the filters, then after.
    over_vocab: Tensor,
    /// The chosen and the best before the filters: `[max_seqs, 2·(1 + max_logprobs)]`.
    pub top: Tensor,
    /// The same after the filters.
    sampled_top: Tensor,
}

impl Results {
    pub fn new(gpu: &Gpu, capacity: Capacity, vocab: usize, max_logprobs: usize) -> Result<Self, GpuError> {
        let Capacity { max_seqs, max_sampled, .. } = capacity;
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
            scores: Tensor::zeros(gpu, "scores", [1, max_sampled], Dtype::F32)?,
        })
    }

    /// Bytes that a step reads back at most, without logits.
    pub fn step_bytes(&self) -> u64 {
        let logprobs = self.logprobs.as_ref().map_or(0, |l| 2 * l.top.size_bytes());
        self.chosen.size_bytes() + logprobs + self.scores.size_bytes()
    }
}

impl Forward {
    pub fn batch<'a>(&'a self, plan: &Plan) -> Batch<'a> {
        Batch {
            n: plan.n,
            n_sampled: plan.sampled.len(),
            n_prompt_blocks: plan.blocks.len() - plan.n.n_decode,
            longest: plan.longest,
            rows: &self.plans.rows,
            blocks: &self.plans.blocks,
            tokens: &self.slots.tokens,
            pages: &self.slots.pages,
            page_size: PAGE_SIZE,
            ends: None,
            clips: self.clips.as_ref().map(|clips| clips.batch(!plan.aligned.is_empty())),
            sampled: &self.plans.sampled,
            kv: self.pages.layers(),
        }
    }

    /// Records the encoder's layers from `first` to before `last` on a clip.
    pub fn hear(&self, rec: &mut Recorder, clip: Option<ClipId>, layers: [usize; 2], s: &mut Scratch) {
        if let (Some(clips), Some(encoder)) = (&self.clips, self.model.audio_encoder()) {
            clips.record(rec, &*self.model, encoder, clip, layers, s);
        }
    }

    /// Records logits and draws; returns the byte ranges that the host shall read: tokens, then
    /// log-probabilities, then logits, then log-probabilities of prompts' tokens, then what rows attend to.
    pub fn draw(&self, rec: &mut Recorder, plan: &Plan, s: &mut Scratch) -> Vec<(Tensor, u64, u64)> {
        let n_draws = plan.draws.len();
        let mut sources = Vec::new();
        let Forward { plans, slots, results, .. } = self;
        for (slot, n_tokens) in &plan.count {
            ops::count_prompt(rec, &slots.tokens, &slots.counts, *slot, *n_tokens);
        }
        if plan.sampled.is_empty() {
            self.aligned(plan, &mut sources);
            return sources;
        }
        let z = &self.model.logits(rec, &self.batch(plan), s);
        if n_draws > 0 {
            let logprobs = plan.logprobs.and_then(|k| Some((k, results.logprobs.as_ref()?)));
            let (rows, index) = (&plans.rows, &plans.sampled);
            let SlotTables { sampling, tokens, counts, .. } = slots;
            let penalize = |rec: &mut Recorder| {
                if plan.penalizes {
                    ops::penalize(rec, rows, index, sampling, &slots.bias, counts, z, n_draws);
                }
            };
            // A transcript's probabilities are those among the tokens that it may go on with.
            if let Some(clips) = &self.clips {
                penalize(rec);
                if plan.rules {
                    ops::speech_rules(rec, rows, index, &clips.rules, tokens, z, n_draws);
                }
            }
            if let Some((_, tables)) = logprobs {
                ops::softmax(rec, z, None, true, &tables.over_vocab, n_draws);
            }
            if self.clips.is_none() {
                penalize(rec);
            }
            let Results { chosen, filters, .. } = results;
            ops::sample(rec, index, sampling, z, rows, tokens, counts, chosen, filters, n_draws);
            sources.push((chosen.clone(), 0, 4 * n_draws as u64));
            if let Some((k, LogprobTables { over_vocab, top, sampled_top })) = logprobs {
                ops::top_k(rec, over_vocab, chosen, k, top, n_draws);
                ops::softmax(rec, z, Some(filters), true, over_vocab, n_draws);
                ops::top_k(rec, over_vocab, chosen, k, sampled_top, n_draws);
                let n_bytes = (n_draws * top.row_bytes()) as u64;
                sources.extend([top, sampled_top].map(|table| (table.clone(), 0, n_bytes)));
            }
        }
        if !plan.logits.is_empty() {
            let row = z.row_bytes() as u64;
            sources.push((z.clone(), n_draws as u64 * row, plan.logits.len() as u64 * row));
        }
        if !plan.scores.is_empty() {
            let range = n_draws + plan.logits.len()..plan.sampled.len();
            let (rows, index, scores) = (&plans.rows, &plans.sampled, &results.scores);
            ops::token_logprob(rec, rows, index, &slots.tokens, z, range, scores);
            sources.push((scores.clone(), 0, 4 * plan.scores.len() as u64));
        }
        self.aligned(plan, &mut sources);
        sources
    }

    /// Adds the rows of the alignment that the host shall read.
    fn aligned(&self, plan: &Plan, sources: &mut Vec<(Tensor, u64, u64)>) {
        let Some((clips, weights)) = self.clips.as_ref().and_then(|c| Some((c, c.weights.as_ref()?))) else {
            return;
        };
        for (_, _, row) in &plan.aligned {
            let (from, n_bytes) = (row * weights.row_bytes(), 4 * clips.alignment_width());
            sources.push((weights.clone(), from as u64, n_bytes as u64));
        }
    }
}
