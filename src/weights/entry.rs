//! One tensor of a container: its name, type, shape and place, and how its rows lie there.

use std::ops::Range;

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name by which an architecture loads it.
    pub name: String,
    /// Its name in the file.
    pub stored_name: String,
    /// Type as the file names it.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub n_bytes: usize,
    /// How its rows lie in the file.
    pub order: Order,
    /// The number of the file in its container, from 0.
    pub(super) file: usize,
    /// The first byte in it.
    pub(super) start: usize,
}

/// How the rows of a matrix lie in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// One after the other.
    #[default]
    Plain,
    /// In each of so many heads the two halves of the rows alternate: 0, n/2, 1, n/2 + 1, … Files for llama.cpp have the
    /// queries and keys of Llama so, because it rotates neighbours.
    Alternating {
        /// Heads.
        n_heads: usize,
    },
    /// Rows and columns have changed places.
    Transposed,
    /// Queries, keys and values of one head after the other, for so many heads, where an architecture has the queries of
    /// all heads, then the keys, then the values. Checkpoints of GPT-NeoX have them so.
    ByHead {
        /// Heads.
        n_heads: usize,
    },
    /// One after the other, where the family's checkpoints have [`Order::ByHead`].
    Stacked,
}

impl Entry {
    /// Bytes of a row, or of an element of a vector, in the file.
    pub fn row_bytes(&self) -> usize {
        self.n_bytes / self.shape.first().copied().unwrap_or(1).max(1)
    }

    /// Part `i` along the first dimension, as a tensor of its own.
    ///
    /// # Panics
    /// If there is no such part.
    pub(crate) fn part(&self, i: usize) -> Entry {
        let n_bytes = self.row_bytes();
        assert!(i < self.shape[0], "part {i} of `{}`", self.name);
        Entry { shape: self.shape[1..].to_vec(), n_bytes, start: self.start + i * n_bytes, ..self.clone() }
    }

    /// The row of the file that is row `row` of the matrix.
    pub(crate) fn stored_row(&self, row: usize) -> usize {
        match self.order {
            Order::Alternating { n_heads } => {
                let head = self.shape[0] / n_heads;
                let (first, i) = (row / head * head, row % head);
                first + i % (head / 2) * 2 + i / (head / 2)
            }
            Order::ByHead { n_heads } => {
                let head = self.shape[0] / (3 * n_heads);
                let (part, h, i) = (row / (head * n_heads), row / head % n_heads, row % head);
                (3 * h + part) * head + i
            }
            _ => row,
        }
    }

    /// The first row of the file, and the one after the last, of those that are `rows` of the matrix.
    pub(crate) fn stored_rows(&self, rows: Range<usize>) -> (usize, usize) {
        let stored = rows.map(|row| self.stored_row(row));
        let (first, last) = stored.fold((usize::MAX, 0), |(a, b), row| (a.min(row), b.max(row)));
        if first > last { (0, 0) } else { (first, last + 1) }
    }
}
