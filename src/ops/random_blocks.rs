//! Random weights of quantised types, made by the host: files have more types than the device quantises to.

use half::f16;

use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Gpu, Tensor};

/// Most bytes of different rows. They repeat after that, an odd number of rows.
const MOST_BYTES: usize = 4 << 20;

/// Writes random blocks to `w`, of a quantised type: quants and scales with all values that the type has, and factors with
/// which the weights have a standard deviation of about `scale`. Takes effect at the next submission.
pub fn random_blocks(gpu: &Gpu, w: &Tensor, seed: u32, scale: f32) {
    let n_different = (MOST_BYTES / w.row_bytes().max(1)).clamp(1, w.n_rows().max(1)) | 1;
    let mut random = Random(u64::from(seed).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let rows: Vec<u8> =
        (0..n_different).flat_map(|_| row(w.dtype(), w.stride(), scale, &mut random)).collect();
    for first in (0..w.n_rows()).step_by(n_different) {
        let n = n_different.min(w.n_rows() - first);
        w.write(gpu, first, &rows[..n * w.row_bytes()]);
    }
}

/// A row of `n` elements, a multiple of [`BLOCK`].
fn row(dtype: Dtype, n: usize, scale: f32, random: &mut Random) -> Vec<u8> {
    debug_assert!(n.is_multiple_of(BLOCK));
    let planes = dtype.planes(n);
    let starts = planes.starts();
    let mut row = vec![0; starts[5]];
    for (start, size) in [
        (starts[0], planes.quants),
        (starts[1], planes.pairs),
        (starts[2], planes.bits),
        (starts[3], planes.scales),
    ] {
        row[start..start + size].fill_with(|| random.bits() as u8);
    }
    if dtype == Dtype::MXFP4 {
        // The E2M1 values of all codes have a standard deviation of about 2.7.
        let exponent = ((scale / 2.7).log2().round() as i32 + 127).clamp(1, 253) as u8;
        row[starts[3]..][..planes.scales].fill_with(|| exponent - 1 + (random.bits() % 3) as u8);
        return row;
    }
    // Bytes from one factor to the next, what it is multiplied with at most weights, and the second factor in units of it.
    let (step, spread, second) = match dtype {
        Dtype::Q8_0 => (2, 74.0, None),
        Dtype::Q4_0 => (2, 4.6, None),
        Dtype::Q5_0 => (2, 9.2, None),
        Dtype::IQ4_NL => (2, 70.0, None),
        Dtype::Q4_1 => (4, 4.6, Some(-7.5)),
        Dtype::Q5_1 => (4, 9.2, Some(-15.5)),
        Dtype::Q4_K => (16, 4.6 * 36.0, Some(7.5)),
        Dtype::Q5_K => (16, 9.2 * 36.0, Some(15.5)),
        Dtype::Q2_K => (4, 1.1 * 8.8, Some(1.5)),
        Dtype::Q3_K => (2, 2.3 * 18.5, None),
        Dtype::Q6_K => (2, 18.5 * 74.0, None),
        Dtype::IQ4_XS => (8, 70.0 * 18.5, None),
        other => unreachable!("{other} has no factors"),
    };
    let (start, size) =
        if planes.factors > 0 { (starts[4], planes.factors) } else { (starts[3], planes.scales) };
    for at in row[start..start + size].chunks_exact_mut(step) {
        let factor = scale / spread * (0.5 + (random.bits() % 1024) as f32 / 1024.0);
        at[..2].copy_from_slice(&f16::from_f32(factor).to_le_bytes());
        if let Some(second) = second {
            at[2..4].copy_from_slice(&f16::from_f32(factor * second).to_le_bytes());
        }
    }
    row
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}
