//! A batch of whole texts, and its tables on the device.

use super::{Output, Waiting};
use crate::dtype::Dtype;
use crate::engine::{PAGE_SIZE, RequestId};
use crate::gpu::{Gpu, GpuError, Tensor};

/// The texts of one forward pass, one after the other, with no padding between them.
///
/// A text's keys and values are in consecutive pages of its own. The number of the first one identifies the text, so
/// that page `i` of text `s` is `s + i`, and one constant page table serves every batch.
#[derive(Debug, Default)]
pub(super) struct TextBatch {
    pub ids: Vec<RequestId>,
    /// As they waited, in the order of `ids`: if the device is lost, they wait again.
    pub texts: Vec<Waiting>,
    /// (text, row of the table that stays on the device) of those whose output is kept there.
    pub kept: Vec<(usize, usize)>,
    pub output: Output,
    /// (first page of its text, position) of each row.
    pub rows: Vec<[u32; 2]>,
    /// (first row, rows) of each attention block.
    pub blocks: Vec<[u32; 2]>,
    /// Token ids, by page and position in it.
    pub tokens: Vec<[u32; PAGE_SIZE]>,
    /// The types of the tokens, like them.
    pub types: Vec<[u32; PAGE_SIZE]>,
    /// For each page, the length of the text that begins with it.
    pub ends: Vec<u32>,
    /// (first row, rows) of each text.
    pub spans: Vec<[u32; 2]>,
    /// Length of a result, and its padded length, once it is recorded.
    pub width: [usize; 2],
}

impl TextBatch {
    /// Adds a text; its attention has blocks of `block_rows` rows. Without types, all tokens have the first.
    pub fn push(&mut self, id: RequestId, text: Waiting, block_rows: usize) {
        let Waiting { token_ids, types, kept, .. } = &text;
        let (first_row, first_page, n) = (self.rows.len(), self.tokens.len(), token_ids.len());
        self.kept.extend(kept.map(|row| (self.ids.len(), row)));
        self.ids.push(id);
        self.rows.extend((0..n as u32).map(|pos| [first_page as u32, pos]));
        for at in (0..n).step_by(block_rows) {
            self.blocks.push([(first_row + at) as u32, block_rows.min(n - at) as u32]);
        }
        let page = |all: &[u32], at: usize| {
            let mut page = [0; PAGE_SIZE];
            let part = all.get(at..).unwrap_or_default();
            let part = &part[..part.len().min(PAGE_SIZE)];
            page[..part.len()].copy_from_slice(part);
            page
        };
        for at in (0..n).step_by(PAGE_SIZE) {
            self.tokens.push(page(token_ids, at));
            self.types.push(page(types, at));
        }
        self.ends.resize(self.tokens.len(), 1);
        self.ends[first_page] = n as u32;
        self.spans.push([first_row as u32, n as u32]);
        self.texts.push(text);
    }
}

/// Most pages that texts of `max_rows` rows in total need.
pub(super) fn n_pages(max_rows: usize, max_seqs: usize) -> usize {
    max_rows / PAGE_SIZE + max_seqs.min(max_rows)
}

/// The tables of one batch. There is a set for each batch that can be in flight, so they can be written directly:
/// nothing in flight reads them.
pub(super) struct Tables {
    /// `[max_rows, 2]`.
    pub rows: Tensor,
    /// `[max_rows, 2]`.
    pub blocks: Tensor,
    /// `[n_pages, PAGE_SIZE]`.
    pub tokens: Tensor,
    /// `[n_pages, PAGE_SIZE]`.
    pub types: Tensor,
    /// `[1, n_pages]`.
    pub ends: Tensor,
    /// `[max_seqs, 2]`.
    pub spans: Tensor,
}

impl Tables {
    pub fn new(gpu: &Gpu, max_rows: usize, max_seqs: usize) -> Result<Self, GpuError> {
        let table = |label: &str, shape| Tensor::zeros(gpu, label, shape, Dtype::U32);
        let n_pages = n_pages(max_rows, max_seqs);
        Ok(Tables {
            rows: table("rows", [max_rows, 2])?,
            blocks: table("blocks", [max_rows, 2])?,
            tokens: table("tokens", [n_pages, PAGE_SIZE])?,
            types: table("types", [n_pages, PAGE_SIZE])?,
            ends: table("ends", [1, n_pages])?,
            spans: table("spans", [max_seqs, 2])?,
        })
    }

    pub fn write(&self, gpu: &Gpu, batch: &TextBatch) {
        self.rows.write(gpu, 0, bytemuck::cast_slice(&batch.rows));
        self.blocks.write(gpu, 0, bytemuck::cast_slice(&batch.blocks));
        self.tokens.write(gpu, 0, bytemuck::cast_slice(&batch.tokens));
        self.types.write(gpu, 0, bytemuck::cast_slice(&batch.types));
        self.ends.write(gpu, 0, bytemuck::cast_slice(&batch.ends));
        self.spans.write(gpu, 0, bytemuck::cast_slice(&batch.spans));
    }
}
