//! Tables that rows of a batch look themselves up in: tokens, positions, types.

use crate::gpu::{Recorder, Tensor};
use crate::models::Batch;
use crate::ops::{self, Lookup};

/// A table, and what of a row picks a row of it.
#[derive(Debug)]
pub struct Embed {
    /// `[n, hidden_size]`.
    pub table: Tensor,
    /// By what, and whether the row is added to what is there.
    pub lookup: Lookup,
    /// The row is multiplied by it, unless it is added.
    pub scale: f32,
}

impl Embed {
    /// An embedding of tokens.
    pub fn tokens(table: Tensor) -> Self {
        Embed { table, lookup: Lookup::Token, scale: 1.0 }
    }

    /// A table whose rows are added to what is there.
    pub fn added(table: Tensor, lookup: Lookup) -> Self {
        Embed { table, lookup, scale: 1.0 }
    }

    /// Records the look-up of each row of the batch in `y`.
    pub fn record(&self, rec: &mut Recorder, b: &Batch<'_>, y: &Tensor) {
        ops::embed(rec, self.lookup, b.rows, b.tokens, &self.table, self.scale, y, b.n);
    }
}
