//! The contract between scheduler and runner: plain data.

use super::clips::ClipPlace;
use super::pages::PAGE_SIZE;
use crate::engine::{RequestId, Sampling, SpeechRules, TokenLogprob};
use crate::gpu::Depths;
use crate::ops::Rows;

/// One forward pass over a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct Step {
    /// Sequences that get a slot with this step. Nothing in flight uses the slot.
    pub admitted: Vec<Admission>,
    /// Pages for running sequences, beyond the positions in flight.
    pub pages: Vec<PageEntry>,
    /// How many of `rows` are computed as generated tokens (single rows), and how many as prompt rows.
    pub n: Rows,
    /// (slot, position) of each row: single rows first.
    pub rows: Vec<[u32; 2]>,
    /// (first row, rows) of each attention block: one for each single row, then those of prompt rows.
    pub blocks: Vec<[u32; 2]>,
    /// Rows that get logits: first those that draw, then those whose logits are reported, then those whose next token's
    /// log-probability is reported, then those whose logits stay on the device.
    pub sampled: Vec<u32>,
    /// Requests that draw, in the order of `sampled`.
    pub draws: Vec<RequestId>,
    /// Requests and positions whose logits are reported, in the order of the next rows of `sampled`.
    pub logits: Vec<(RequestId, usize)>,
    /// Requests and positions of tokens whose log-probabilities are reported, in the order of the next rows of `sampled`.
    pub scores: Vec<(RequestId, usize)>,
    /// Requests whose logits stay on the device, in the order of the rest of `sampled`.
    pub kept: Vec<(RequestId, Keep)>,
    /// Requests, positions and rows whose attention to a clip is reported.
    pub aligned: Vec<(RequestId, usize, usize)>,
    /// Requests that have rows.
    pub members: Vec<RequestId>,
    /// Positions of the longest sequence that has a single row.
    pub longest: usize,
    /// Whether some row has penalties or biases.
    pub penalizes: bool,
    /// Whether some row follows the rules of a transcript.
    pub rules: bool,
    /// The largest number of log-probabilities that a row's request asks for.
    pub logprobs: Option<usize>,
}

/// A sequence that gets a slot: the new contents of the slot's rows of the tables.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Admission {
    pub slot: usize,
    /// Ids of the prompt, and of tokens generated before a preemption.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Its first pages. More follow as [`PageEntry`]s.
    pub pages: Vec<u32>,
    pub sampling: Sampling,
    pub seed: u64,
    /// The clip that it attends to, and the rules that it follows.
    pub clip: Option<(ClipPlace, Option<SpeechRules>)>,
}

/// Where logits stay on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Keep {
    /// Row of the table.
    pub row: usize,
    /// Whether their softmax is kept instead.
    pub softmax: bool,
}

/// Page number `index` of the sequence in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct PageEntry {
    pub slot: usize,
    pub index: usize,
    pub page: u32,
}

/// The results of a step, in the order of its lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct StepResults {
    /// Of `draws`; `None` if the logits are not finite.
    pub tokens: Vec<Option<u32>>,
    /// Of `draws`, if log-probabilities are needed: the chosen token and the best ones, before and after the filters.
    pub logprobs: Vec<[Vec<TokenLogprob>; 2]>,
    /// Of `logits`.
    pub logits: Vec<Vec<f32>>,
    /// Of `scores`.
    pub scores: Vec<f32>,
    /// Of `aligned`.
    pub alignments: Vec<Vec<f32>>,
}

/// A row before its step is complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub id: RequestId,
    pub slot: usize,
    pub pos: usize,
    pub wanted: super::sequence::Wanted,
}

impl Step {
    /// Fills the step from its rows: single ones, then prompt rows in attention blocks of at most `block_rows`.
    pub(super) fn assemble(&mut self, single: &[Row], prompt: &[Row], block_rows: usize) {
        self.n = Rows { n_decode: single.len(), n_prompt: prompt.len() };
        let mut rows: Vec<(u32, &Row)> = (0..).zip(single.iter().chain(prompt)).collect();
        self.rows = rows.iter().map(|(_, row)| [row.slot as u32, row.pos as u32]).collect();
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.draw) {
            self.sampled.push(*i);
            self.draws.push(row.id);
        }
        // Reports about a prompt are in the order of positions, whatever the kinds of its rows.
        rows.sort_by_key(|(_, row)| (row.id, row.pos));
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.logits) {
            self.sampled.push(*i);
            self.logits.push((row.id, row.pos));
        }
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.score) {
            self.sampled.push(*i);
            self.scores.push((row.id, row.pos + 1));
        }
        for (i, row) in &rows {
            if let Some(keep) = row.wanted.kept {
                self.sampled.push(*i);
                self.kept.push((row.id, keep));
            }
        }
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.alignment) {
            self.aligned.push((row.id, row.pos, *i as usize));
        }
        self.longest = single.iter().map(|row| row.pos + 1).max().unwrap_or(0);
        self.blocks = (0..single.len() as u32).map(|row| [row, 1]).collect();
        let mut first = single.len();
        // A block has consecutive positions of one sequence.
        for run in prompt.chunk_by(|a, b| a.slot == b.slot && a.pos + 1 == b.pos) {
            for block in run.chunks(block_rows) {
                self.blocks.push([first as u32, block.len() as u32]);
                first += block.len();
            }
        }
    }

    /// Keys that its rows see, on average.
    pub fn depths(&self) -> Depths {
        let mean = |rows: &[[u32; 2]]| {
            let sum: f64 = rows.iter().map(|[_, pos]| f64::from(*pos) + 1.0).sum();
            sum / rows.len().max(1) as f64
        };
        let (decode, prompt) = self.rows.split_at(self.n.n_decode);
        Depths { decode: mean(decode), prompt: mean(prompt), both_sides: 1.0 }
    }

    /// Pages for the positions before `end`.
    pub(super) fn n_pages(end: usize) -> usize {
        end.div_ceil(PAGE_SIZE)
    }
}
