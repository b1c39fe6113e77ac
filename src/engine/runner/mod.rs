//! The runner: the model with its tables on the device. Records the steps that the scheduler plans, and reads their
//! results.

mod clips;
mod tables;

use std::ops::Range;
use std::sync::Arc;

pub(super) use clips::Clips;
pub(super) use tables::{Results, SlotTables, StepTables};

use super::scheduler::{Admission, PAGE_SIZE, Step, StepResults};
use super::stepper::ReadRange;
use super::{SpeechRules, TokenLogprob};
use crate::gpu::{Gpu, ROW_ALIGN, Recorder, Tensor};
use crate::models::{Batch, Model, Scratch};
use crate::ops::{self, Draws, KvLayer, NOT_A_TOKEN, SpeechRecord};
use bytemuck::Zeroable;

/// A model with its activations, KV cache and the tables of its sequences.
pub(super) struct Runner {
    pub gpu: Gpu,
    pub model: Arc<dyn Model>,
    pub scratch: Scratch,
    /// The cache of each layer.
    pub kv: Vec<KvLayer>,
    pub steps: StepTables,
    pub slots: SlotTables,
    pub results: Results,
    /// If the model has an audio encoder.
    pub clips: Option<Clips>,
}

impl Runner {
    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.kv.len()
    }

    /// Writes a step's tables and records their update, before its first layer.
    pub fn begin(&mut self, rec: &mut Recorder, step: &Step) {
        self.write(step);
        self.steps.upload(&self.gpu, rec, step);
        rec.set_depths(step.depths());
    }

    /// Records some layers of a step; after the last one logits and draws.
    pub fn record(&mut self, rec: &mut Recorder, step: &Step, layers: Range<usize>) -> Vec<ReadRange> {
        let batch = batch(&self.kv, &self.steps, &self.slots, self.clips.as_ref(), step);
        if layers.start == 0 {
            self.model.embed(rec, &batch, &mut self.scratch);
        }
        for i in layers.clone() {
            self.model.layer(i, rec, &batch, &mut self.scratch);
        }
        if layers.end < self.n_layers() {
            return Vec::new();
        }
        let logits = (!step.sampled.is_empty()).then(|| self.model.outputs(rec, &batch, &mut self.scratch));
        self.draw(rec, step, logits)
    }

    /// Records some layers of the audio encoder over the clip at `place`, and after the last one the decoder's keys and
    /// values.
    pub fn encode_clip(&mut self, rec: &mut Recorder, place: usize, layers: Range<usize>) {
        if let Some(clips) = &self.clips {
            clips.record(rec, &*self.model, &mut self.scratch, place, layers);
        }
    }

    /// Writes the slots of admitted sequences, which nothing in flight uses, and page entries beyond the positions in
    /// flight. No pending recording reads either.
    fn write(&self, step: &Step) {
        for admission in &step.admitted {
            self.admit(admission);
        }
        for entry in &step.pages {
            let at = entry.slot * self.slots.pages.row_bytes() + 4 * entry.index;
            self.slots.pages.write_at(&self.gpu, at, bytemuck::bytes_of(&entry.page));
        }
    }

    fn admit(&self, admission: &Admission) {
        let Admission { slot, tokens, pages, sampling, seed, clip, .. } = admission;
        let (gpu, tables) = (&self.gpu, &self.slots);
        if let (Some(clips), Some((place, rules))) = (&self.clips, clip) {
            let rules = rules.as_ref().map_or(SpeechRecord::zeroed(), SpeechRules::record);
            clips.write(gpu, *slot, *place, &rules);
        }
        tables.tokens.write(gpu, *slot, bytemuck::cast_slice(tokens));
        tables.pages.write(gpu, *slot, bytemuck::cast_slice(pages));
        tables.sampling.write(gpu, *slot, bytemuck::bytes_of(&sampling.record(*seed)));
        let bias: Vec<[u32; 2]> =
            sampling.logit_bias.iter().map(|(token, b)| [*token, b.to_bits()]).collect();
        tables.bias.write(gpu, *slot, bytemuck::cast_slice(&bias));
    }

    /// Records draws from `logits`. Returns the byte ranges to read back: tokens, log-probabilities, logits,
    /// log-probabilities of prompts' tokens, alignments.
    fn draw(&self, rec: &mut Recorder, step: &Step, logits: Option<Tensor>) -> Vec<ReadRange> {
        let n_draws = step.draws.len();
        let Runner { steps, slots, results, .. } = self;
        let mut sources = Vec::new();
        for Admission { slot, tokens, n_prompt, sampling, .. } in &step.admitted {
            if sampling.counts() {
                ops::count_prompt(rec, &slots.tokens, &slots.counts, *slot, [*n_prompt, tokens.len()]);
            }
        }
        let Some(z) = logits else {
            self.aligned(step, &mut sources);
            return sources;
        };
        if n_draws > 0 {
            let logprobs = step.logprobs.and_then(|k| Some((k, results.logprobs.as_ref()?)));
            let (rows, index) = (&steps.rows, &steps.sampled);
            let SlotTables { sampling, tokens, counts, bias, .. } = slots;
            let draws = Draws { rows, index, sampling, counts };
            let penalize = |rec: &mut Recorder| {
                if step.penalizes {
                    ops::penalize(rec, draws, bias, &z, n_draws);
                }
            };
            // For transcripts, log-probabilities are among the allowed tokens, so the rules come first.
            if let Some(clips) = &self.clips {
                penalize(rec);
                if step.rules {
                    ops::speech_rules(rec, rows, index, &clips.rules, tokens, &z, n_draws);
                }
            }
            if let Some((_, tables)) = logprobs {
                ops::softmax(rec, &z, None, true, &tables.over_vocab, n_draws);
            }
            if self.clips.is_none() {
                penalize(rec);
            }
            let Results { chosen, filters, .. } = results;
            ops::sample(rec, draws, &z, tokens, chosen, filters, n_draws);
            sources.push((chosen.clone(), 0, 4 * n_draws as u64));
            if let Some((k, tables)) = logprobs {
                let (top, sampled_top) = (&tables.top, &tables.sampled_top);
                ops::top_k(rec, &tables.over_vocab, chosen, k, top, n_draws);
                ops::softmax(rec, &z, Some(filters), true, &tables.over_vocab, n_draws);
                ops::top_k(rec, &tables.over_vocab, chosen, k, sampled_top, n_draws);
                let n_bytes = (n_draws * top.row_bytes()) as u64;
                sources.extend([(top.clone(), 0, n_bytes), (sampled_top.clone(), 0, n_bytes)]);
            }
        }
        if !step.logits.is_empty() {
            let row = z.row_bytes() as u64;
            sources.push((z.clone(), n_draws as u64 * row, step.logits.len() as u64 * row));
        }
        if !step.scores.is_empty() {
            let range = n_draws + step.logits.len()..step.sampled.len();
            let (rows, index, scores) = (&steps.rows, &steps.sampled, &results.scores);
            ops::token_logprob(rec, rows, index, &slots.tokens, &z, range, scores);
            sources.push((scores.clone(), 0, 4 * step.scores.len() as u64));
        }
        if let Some(kept) = results.kept.as_ref().filter(|_| !step.kept.is_empty()) {
            if step.kept.iter().any(|(_, keep)| keep.softmax) {
                ops::softmax(rec, &z, None, false, &kept.softmax, step.sampled.len());
            }
            let first = step.sampled.len().saturating_sub(step.kept.len());
            for (i, (_, keep)) in (first..).zip(&step.kept) {
                let from = if keep.softmax { &kept.softmax } else { &z };
                let (row, n_bytes) = (kept.rows.row_bytes(), z.row_bytes());
                rec.copy(from, (i * n_bytes) as u64, &kept.rows, (keep.row * row) as u64, n_bytes as u64);
            }
        }
        self.aligned(step, &mut sources);
        sources
    }

    /// Adds the rows of the alignment to read back.
    fn aligned(&self, step: &Step, sources: &mut Vec<ReadRange>) {
        let Some((clips, weights)) = self.clips.as_ref().and_then(|c| Some((c, c.weights.as_ref()?))) else {
            return;
        };
        for (_, _, row) in &step.aligned {
            let at = (row * weights.row_bytes()) as u64;
            sources.push((weights.clone(), at, 4 * clips.alignment_width() as u64));
        }
    }

    /// Parses the bytes that [`Runner::step`] asked for.
    pub fn results(&self, step: &Step, bytes: &[u8]) -> StepResults {
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes[..bytes.len() / 4 * 4]);
        let mut words = &words[..];
        let mut take = |n: usize| {
            let (taken, rest) = words.split_at(n);
            words = rest;
            taken
        };
        let float = |words: &[u32]| words.iter().map(|w| f32::from_bits(*w)).collect::<Vec<f32>>();
        let n_draws = step.draws.len();
        let tokens = take(n_draws).iter().map(|token| (*token != NOT_A_TOKEN).then_some(*token)).collect();
        let mut logprobs = Vec::new();
        if let (Some(k), Some(tables), true) = (step.logprobs, &self.results.logprobs, n_draws > 0) {
            let width = tables.top.n_cols();
            let [top, sampled_top] = [take(n_draws * width), take(n_draws * width)];
            let pairs = |table: &[u32], i: usize| {
                let pair = |p: &[u32]| TokenLogprob { token: p[0], logprob: f32::from_bits(p[1]) };
                table[i * width..][..2 * (1 + k)].chunks(2).map(pair).collect::<Vec<_>>()
            };
            logprobs = (0..n_draws).map(|i| [pairs(top, i), pairs(sampled_top, i)]).collect();
        }
        let vocab = self.slots.counts.n_cols();
        let stride = vocab.next_multiple_of(ROW_ALIGN);
        let logits =
            take(step.logits.len() * stride).chunks(stride).map(|row| float(&row[..vocab])).collect();
        let scores = float(take(step.scores.len()));
        let width = self.clips.as_ref().map_or(0, Clips::alignment_width);
        let alignments = step.aligned.iter().map(|_| float(take(width))).collect();
        StepResults { tokens, logprobs, logits, scores, alignments }
    }
}

/// A step as the model's batch.
fn batch<'a>(
    kv: &'a [KvLayer],
    steps: &'a StepTables,
    slots: &'a SlotTables,
    clips: Option<&'a Clips>,
    step: &Step,
) -> Batch<'a> {
    Batch {
        n: step.n,
        n_sampled: step.sampled.len(),
        n_prompt_blocks: step.blocks.len() - step.n.n_decode,
        longest: step.longest,
        rows: &steps.rows,
        blocks: &steps.blocks,
        tokens: &slots.tokens,
        types: None,
        pages: &slots.pages,
        page_size: PAGE_SIZE,
        ends: None,
        clips: clips.map(|clips| clips.batch(!step.aligned.is_empty())),
        sampled: &steps.sampled,
        kv,
    }
}
