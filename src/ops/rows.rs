//! How the rows of a batch go through products: `shaders/parts/rows_*.wgsl`.

use std::ops::Range;

use super::{
    PORTABLE_LANES, REDUCE_SUBGROUP, REDUCE_WORKGROUP, ROWS_FEW, ROWS_REG, RmsNorm, SHARE_1, SHARE_2,
    SHARE_4, SHARE_8, SHARE_16, rms_norm,
};
use crate::gpu::{Caps, Kernel, Part, Recorder, Tensor, Variant, View};

/// The rows of a batch: first those that decode, one a sequence, then those of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rows {
    /// Rows that decode.
    pub n_decode: usize,
    /// Rows of prompts.
    pub n_prompt: usize,
}

impl Rows {
    /// Rows in all.
    pub fn count(self) -> usize {
        self.n_decode + self.n_prompt
    }
}

/// What goes into a product: `x` `[rows, n_in]` F32, normalised on the way if there is a norm.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The rows.
    pub x: &'a Tensor,
    /// Their norm, and room for normalised rows where a kernel cannot do it on the way: `[rows, n_in]` F32.
    pub norm: Option<(&'a RmsNorm, &'a Tensor)>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(x: &'a Tensor) -> Self {
        Input { x, norm: None }
    }
}

impl<'a> Input<'a> {
    /// The rows of a span, normalised: recorded if there is a norm.
    pub(super) fn normed(&self, rec: &mut Recorder, span: Span) -> &'a Tensor {
        let Some((norm, h)) = self.norm else { return self.x };
        rms_norm(rec, self.x, norm, None, h, span.rows());
        h
    }

    /// Tells a kernel that normalises on the way whether to do it.
    pub(super) fn set(&self, variant: Variant) -> Variant {
        variant.set("NORM", self.norm.is_some().into())
    }

    /// What such a kernel reads: weights, epsilon, offset.
    pub(super) fn norm_params(&self, rec: &Recorder) -> (View, f32, f32) {
        match self.norm {
            Some((norm, _)) => (norm.w.view(), norm.eps, norm.offset),
            None => (rec.unused(), 0.0, 0.0),
        }
    }
}

/// By the logarithm of how many rows share one reading of the weights.
static SHARES: [&Part; 5] = [&SHARE_1, &SHARE_2, &SHARE_4, &SHARE_8, &SHARE_16];

/// Most rows that share one reading: as many sums as lanes have registers for, fewer where they are the 32 of a
/// processor's vector unit (16 rows there take twice as long as twice 8).
fn most_shared(caps: &Caps) -> usize {
    if caps.cpu { 8 } else { 16 }
}
/// Lanes of `rows_reg`, which must be one subgroup: those of the vector units that software devices run on.
const REG_LANES: u32 = 8;
/// Consecutive rows that one dispatch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// Up to `n_shared` of them share the reading of weights.
    Sharing { row0: usize, n_rows: usize, n_shared: u32 },
    /// Rows of prompts, for kernels that work in tiles.
    Prompt { row0: usize, n_rows: usize },
}

impl Span {
    /// All rows of a batch. Decoding rows share the weights. So do those of prompts on software devices, where
    /// barriers cost more than reading the weights again for every few rows.
    pub fn all(caps: &Caps, n: Rows) -> Vec<Span> {
        let mut spans = Vec::with_capacity(2);
        if caps.cpu {
            // Whole groups, then what is left in as few rows as will do: the order of sums is the same.
            let whole = n.count() / most_shared(caps) * most_shared(caps);
            spans.extend([Span::sharing(caps, 0, whole), Span::sharing(caps, whole, n.count() - whole)]);
        } else {
            spans.extend([
                Span::sharing(caps, 0, n.n_decode),
                Span::Prompt { row0: n.n_decode, n_rows: n.n_prompt },
            ]);
        }
        spans.retain(|span| !span.rows().is_empty());
        spans
    }

    /// Rows that share the weights.
    pub fn sharing(caps: &Caps, row0: usize, n_rows: usize) -> Span {
        let n_shared = n_rows.next_power_of_two().clamp(1, most_shared(caps)) as u32;
        Span::Sharing { row0, n_rows, n_shared }
    }

    pub fn rows(self) -> Range<usize> {
        let (Span::Sharing { row0, n_rows, .. } | Span::Prompt { row0, n_rows }) = self;
        row0..row0 + n_rows
    }

    /// A variant for so many rows as share.
    pub fn of(self, variant: Variant) -> Variant {
        match self {
            Span::Sharing { n_shared, .. } => variant.part(SHARES[n_shared.ilog2() as usize]),
            Span::Prompt { .. } => variant,
        }
    }
}

/// The ways in which lanes can share a product of few rows on this device, the default one first.
pub(super) fn ways(kernel: &'static Kernel, caps: &Caps) -> Vec<(&'static str, Variant)> {
    let few = Variant::new(kernel).part(&ROWS_FEW);
    let few = match caps.subgroup {
        Some(width) => few.part(&REDUCE_SUBGROUP).set("WG", width),
        None => few.part(&REDUCE_WORKGROUP).set("WG", PORTABLE_LANES),
    };
    let mut ways = vec![("few", few)];
    if caps.subgroup == Some(REG_LANES) {
        ways.push(("reg", Variant::new(kernel).part(&ROWS_REG).set("WG", REG_LANES)));
    }
    if caps.cpu {
        ways.reverse();
    }
    ways
}

/// The default one of [`ways`].
pub(super) fn way(kernel: &'static Kernel, caps: &Caps) -> Variant {
    ways(kernel, caps)[0].1
}

/// Workgroups of such a kernel for `n_quads` quads of outputs and `n_rows` rows.
pub(super) fn groups(caps: &Caps, variant: &Variant, n_quads: u32, n_rows: usize) -> [u32; 3] {
    let has = |part: &Part| variant.parts().any(|p| p.name == part.name);
    let n_shared = 1 << SHARES.iter().position(|part| has(part)).unwrap_or(0);
    let [gx, gy, _] = caps.spread(if has(&ROWS_REG) { n_quads.div_ceil(REG_LANES) } else { n_quads });
    [gx, gy, (n_rows as u32).div_ceil(n_shared)]
}

/// Blocks of 32 inputs in a row of weights.
pub(super) fn n_blocks(w: &Tensor) -> u32 {
    (w.stride() / crate::dtype::BLOCK) as u32
}

/// 16-byte words in a row of weights.
pub(super) fn words(w: &Tensor) -> u32 {
    (w.row_bytes() / 16) as u32
}
