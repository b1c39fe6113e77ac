//! Embedding tables: tokens, positions, types.

use crate::gpu::{Recorder, Tensor};
use crate::models::Batch;
use crate::ops::{self, Lookup};

/// An embedding table, and how a row of the batch is looked up in it.
#[derive(Debug)]
pub struct Embed {
    /// `[n, hidden_size]`.
    pub table: Tensor,
    /// The index of a row, and whether the result is added.
    pub lookup: Lookup,
    /// Factor on the row, unless it is added.
    pub scale: f32,
}

impl Embed {
    /// An embedding of tokens.
    pub fn tokens(table: Tensor) -> Self {
        Embed { table, lookup: Lookup::Token, scale: 1.0 }
    }

    /// A table whose rows are added.
    pub fn added(table: Tensor, lookup: Lookup) -> Self {
        Embed { table, lookup, scale: 1.0 }
    }

    /// Records the look-up for each row of the batch, into `y`.
    pub fn record(&self, rec: &mut Recorder, b: &Batch<'_>, y: &Tensor) {
        ops::embed(rec, self.lookup, b.rows, b.tokens, &self.table, self.scale, y, b.n);
    }
}
