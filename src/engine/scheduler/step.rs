//! What the scheduler asks of the runner, and what it gets back: plain data, the whole contract between the two.

use super::clips::ClipPlace;
use super::pages::PAGE_SIZE;
use crate::engine::{RequestId, Sampling, SpeechRules, TokenLogprob};
use crate::ops::Rows;

/// One forward pass over a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct Step {
    /// Sequences that get a slot with this step. Nothing in flight touches the slot.
    pub admitted: Vec<Admission>,
    /// Pages that running sequences get, beyond the positions in flight.
    pub pages: Vec<PageEntry>,
    /// How many of `rows` are computed one by one, as generated tokens, and how many as those of prompts.
    pub n: Rows,
    /// (slot, position) of each row: single rows first.
    pub rows: Vec<[u32; 2]>,
    /// (first row, rows) of each attention block: one for each single row, then those of prompts.
    pub blocks: Vec<[u32; 2]>,
    /// Rows that get logits: first those that draw, then those that only want logits, then those whose next token
    /// gets its log-probability.
    pub sampled: Vec<u32>,
    /// Requests that draw, in the order of `sampled`.
    pub draws: Vec<RequestId>,
    /// Requests and positions that want logits, in the order of the next ones of `sampled`.
    pub logits: Vec<(RequestId, usize)>,
    /// Requests and positions of tokens that get their log-probabilities, in the order of the rest of `sampled`.
    pub scores: Vec<(RequestId, usize)>,
    /// Requests, positions and rows that report what they attend to in a clip.
    pub aligned: Vec<(RequestId, usize, usize)>,
    /// Requests that have rows.
    pub members: Vec<RequestId>,
    /// Positions of the longest sequence that has a single row.
    pub longest: usize,
    /// Some row's logits are changed before the draw.
    pub penalizes: bool,
    /// Some row follows rules of speech.
    pub rules: bool,
    /// Most log-probabilities that a row wants.
    pub logprobs: Option<usize>,
}

/// A sequence that gets a slot: what the slot's rows of the tables hold from now on.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Admission {
    pub slot: usize,
    /// Ids of the prompt, and of what was generated before a preemption.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub n_prompt: usize,
    /// Pages that it has; more follow as [`PageEntry`]s.
    pub pages: Vec<u32>,
    pub sampling: Sampling,
    pub seed: u64,
    /// The clip that it attends to, and the rules that it follows.
    pub clip: Option<(ClipPlace, Option<SpeechRules>)>,
}

/// Page number `index` of the sequence in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct PageEntry {
    pub slot: usize,
    pub index: usize,
    pub page: u32,
}

/// What a step left, in the order of its lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct StepResults {
    /// Of `draws`; `None` where the logits were not finite.
    pub tokens: Vec<Option<u32>>,
    /// Of `draws`, where log-probabilities were wanted: the chosen token and the best ones, before the filters and after.
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
    /// Puts the rows together: single ones, then those of prompts in attention blocks of at most `block_rows`.
    pub(super) fn assemble(&mut self, single: &[Row], prompt: &[Row], block_rows: usize) {
        self.n = Rows { n_decode: single.len(), n_prompt: prompt.len() };
        let mut rows: Vec<(u32, &Row)> = (0..).zip(single.iter().chain(prompt)).collect();
        self.rows = rows.iter().map(|(_, row)| [row.slot as u32, row.pos as u32]).collect();
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.draw) {
            self.sampled.push(*i);
            self.draws.push(row.id);
        }
        // What is reported of a prompt comes in the order of its positions, whichever kinds its rows are of.
        rows.sort_by_key(|(_, row)| (row.id, row.pos));
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.logits) {
            self.sampled.push(*i);
            self.logits.push((row.id, row.pos));
        }
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.score) {
            self.sampled.push(*i);
            self.scores.push((row.id, row.pos + 1));
        }
        for (i, row) in rows.iter().filter(|(_, row)| row.wanted.alignment) {
            self.aligned.push((row.id, row.pos, *i as usize));
        }
        self.longest = single.iter().map(|row| row.pos + 1).max().unwrap_or(0);
        self.blocks = (0..single.len() as u32).map(|row| [row, 1]).collect();
        let mut first = single.len();
        // A block's rows are those of one sequence, one position after the other.
        for run in prompt.chunk_by(|a, b| a.slot == b.slot && a.pos + 1 == b.pos) {
            for block in run.chunks(block_rows) {
                self.blocks.push([first as u32, block.len() as u32]);
                first += block.len();
            }
        }
    }

    /// Pages that positions before `end` take.
    pub(super) fn n_pages(end: usize) -> usize {
        end.div_ceil(PAGE_SIZE)
    }
}
