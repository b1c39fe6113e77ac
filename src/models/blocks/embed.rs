//! Embedding tables: tokens, positions, types.

use crate::gpu::{Recorder, Tensor};
use crate::models::Batch;
pub use crate::ops::Embed;
use crate::ops::{self, Lookup};

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
        ops::embed(rec, self, b.rows, b.tokens, y, b.n);
    }

    /// As [`Embed::record`] of a table of tokens' types, added to `y`. Default: the first type.
    pub fn record_types(&self, rec: &mut Recorder, b: &Batch<'_>, y: &Tensor) {
        let (lookup, types) = match b.types {
            Some(types) => (Lookup::AddToken, types),
            None => (Lookup::AddRow(0), b.tokens),
        };
        ops::embed(rec, &Embed { lookup, ..self.clone() }, b.rows, types, y, b.n);
    }
}
