//! The rows of one step, and their tables on the device.

use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::Rows;

use super::RequestId;

/// What one forward pass computes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub n: Rows,
    /// (slot, position) of each row: decoding rows first.
    pub rows: Vec<[u32; 2]>,
    /// (first row, rows) of each attention block: one for each decoding row, then those of prompts.
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
    /// Slots whose tokens are to be counted anew: admitted in this step, with their prompt's length.
    pub count: Vec<(usize, usize)>,
    /// Positions of the longest decoding sequence.
    pub longest: usize,
    /// Some row's logits are changed before the draw.
    pub penalizes: bool,
    /// Some row goes by rules of speech.
    pub rules: bool,
    /// Requests, positions and rows that show what they attend to in a clip.
    pub aligned: Vec<(RequestId, usize, usize)>,
    /// Most log-probabilities that a row wants.
    pub logprobs: Option<usize>,
}

/// The tables that change with the plan. What the device holds is mirrored here, so that a step that goes on
/// as the last one did uploads nothing.
pub(super) struct PlanTables {
    pub rows: Tensor,
    pub blocks: Tensor,
    pub sampled: Tensor,
    /// Where uploads wait for their turn in the recording: an earlier recording may not have run yet.
    staging: Tensor,
    next: usize,
    mirror: Plan,
}

/// Steps that can be in flight or being recorded at a time, and so uploads.
const STAGES: usize = 4;

impl PlanTables {
    pub fn new(gpu: &Gpu, max_rows: usize, max_sampled: usize) -> Result<Self, GpuError> {
        let table = |label: &str, shape| Tensor::zeros(gpu, label, shape, Dtype::U32);
        Ok(PlanTables {
            rows: table("rows", [max_rows, 2])?,
            blocks: table("blocks", [max_rows, 2])?,
            sampled: table("sampled", [1, max_sampled])?,
            staging: table("staging", [STAGES, 4 * max_rows + max_sampled])?,
            next: 0,
            mirror: Plan::default(),
        })
    }

    /// Records the upload of what differs from the device's tables.
    pub fn upload(&mut self, gpu: &Gpu, rec: &mut Recorder, plan: &Plan) {
        let stage = self.next;
        let mut used = false;
        let max_rows = self.rows.n_rows();
        let changed = [
            (self.mirror.rows != plan.rows, bytemuck::cast_slice(&plan.rows), &self.rows, 0),
            (
                self.mirror.blocks != plan.blocks,
                bytemuck::cast_slice(&plan.blocks),
                &self.blocks,
                2 * max_rows,
            ),
            (
                self.mirror.sampled != plan.sampled,
                bytemuck::cast_slice(&plan.sampled),
                &self.sampled,
                4 * max_rows,
            ),
        ];
        for (_, words, table, at) in changed.into_iter().filter(|(changed, ..)| *changed) {
            let words: &[u32] = words;
            if words.is_empty() {
                continue;
            }
            let offset = stage * self.staging.row_bytes() + 4 * at;
            self.staging.write_at(gpu, offset, bytemuck::cast_slice(words));
            rec.copy(&self.staging, offset as u64, table, 0, 4 * words.len() as u64);
            used = true;
        }
        if used {
            self.next = (stage + 1) % STAGES;
        }
        self.mirror = plan.clone();
        // The draw moves its rows one position on.
        for row in &plan.sampled[..plan.draws.len()] {
            self.mirror.rows[*row as usize][1] += 1;
        }
    }
}
