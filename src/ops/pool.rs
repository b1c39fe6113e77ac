//! Pooling: the rows of a sequence to one row.

use super::{assert_rows, kernel};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n_seqs: u32,
        n4: u32,
        x_stride: u32,
        y_stride: u32,
        col0: u32,
    }
}

kernel!(POOL, "pool", Params, [Read, Read, ReadWrite]);

/// How the rows of a sequence are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first row, `[CLS]`.
    First,
    /// The last row.
    Last,
    /// The mean of all rows.
    Mean,
    /// The sum of all rows, divided by the square root of their number.
    MeanSqrtLen,
    /// The largest value of each column.
    Max,
    /// The mean of all rows with weights 1, 2, 3 …
    WeightedMean,
}

impl Pooling {
    /// Its name in the `Pooling` module of sentence-transformers.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::First => "cls",
            Pooling::Last => "lasttoken",
            Pooling::Mean => "mean",
            Pooling::MeanSqrtLen => "mean_sqrt_len_tokens",
            Pooling::Max => "max",
            Pooling::WeightedMean => "weightedmean",
        }
    }
}

/// Pools the rows of `n_seqs` sequences. `spans` `[n_seqs, 2]` U32 gives the rows of each sequence in `x` `[_, n_cols]`
/// F32 as (first row, rows), at least one row; the result goes to `y` `[n_seqs, _]` F32 from column `col0` on.
///
/// Reimers & Gurevych 2019, section 3.
///
/// # Panics
/// If the shapes disagree, or `col0` is not a multiple of 4.
pub fn pool(
    rec: &mut Recorder,
    pooling: Pooling,
    spans: &Tensor,
    x: &Tensor,
    y: &Tensor,
    col0: usize,
    n_seqs: usize,
) {
    // The last columns are written with their padding, which must not overlap other columns.
    let (n4, at_end) = (x.n_cols().div_ceil(4), col0 + x.n_cols() == y.n_cols());
    assert!(col0.is_multiple_of(4) && (at_end || x.n_cols().is_multiple_of(4)), "pool: column {col0}");
    assert!(col0 + x.n_cols() <= y.n_cols(), "pool: {x:?} at column {col0} of {y:?}");
    assert_eq!(spans.n_cols(), 2, "pool: {spans:?}");
    assert_rows("pool", spans, n_seqs);
    assert_rows("pool", y, n_seqs);
    let params = Params {
        n_seqs: n_seqs as u32,
        n4: n4 as u32,
        x_stride: (x.stride() / 4) as u32,
        y_stride: (y.stride() / 4) as u32,
        col0: (col0 / 4) as u32,
    };
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&POOL).set("WG", lanes).set("MODE", pooling as u32);
    let groups = rec.gpu().caps().spread(((n_seqs * n4) as u32).div_ceil(lanes));
    rec.dispatch(variant, &params, &[spans.view(), x.view(), y.view()], groups);
}
