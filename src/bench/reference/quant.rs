//! ggml's quantised types in plain arithmetic (ggml-quants.c), and the rows that kernels read. In f32 where ggml is,
//! because the choice of a quant is a rounding.

#![allow(dead_code)] // benchmarks and each test binary use their own part of this

use std::ops::Range;

fn f16(x: f32) -> f32 {
    half::f16::from_f32(x).to_f32()
}

/// A row of values after quantising to the type `name`. The length is a multiple of 32 (256 for Q4_K).
pub fn round(dtype: &str, x: &[f32]) -> Vec<f32> {
    match dtype {
        "Q8_0" => x.chunks(32).flat_map(q8_0).collect(),
        "Q4_0" => x.chunks(32).flat_map(q4_0).collect(),
        "Q4_K" => x.chunks(256).flat_map(q4_k).collect(),
        other => unreachable!("{other} is not quantised"),
    }
}

/// `quantize_row_q8_0_ref`
fn q8_0(x: &[f32]) -> Vec<f32> {
    let d = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    x.iter().map(|x| f16(d) * (x * inverse).round()).collect()
}

/// `quantize_row_q4_0_ref`
fn q4_0(x: &[f32]) -> Vec<f32> {
    let most = x.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    let d = most / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    x.iter().map(|x| f16(d) * ((x * inverse + 8.5).floor().min(15.0) - 8.0)).collect()
}

/// `quantize_row_q4_K_ref`
fn q4_k(x: &[f32]) -> Vec<f32> {
    let measured: Vec<(f32, f32)> = x.chunks(32).map(qkx2).collect();
    let most_scale = measured.iter().fold(0f32, |m, (scale, _)| m.max(*scale));
    let most_min = measured.iter().fold(0f32, |m, (_, min)| m.max(*min));
    let six_bits = |x: f32, most: f32| {
        if most > 0.0 { (63.0 / most * x).round_ties_even().clamp(0.0, 63.0) } else { 0.0 }
    };
    let (d, dmin) = (f16(most_scale / 63.0), f16(most_min / 63.0));
    let block = |(x, (scale, min)): (&[f32], &(f32, f32))| {
        let (d, m) = (d * six_bits(*scale, most_scale), dmin * six_bits(*min, most_min));
        let q = move |x: f32| if d > 0.0 { ((x + m) / d).round_ties_even().clamp(0.0, 15.0) } else { 0.0 };
        x.iter().map(move |x| d * q(*x) - m).collect::<Vec<f32>>()
    };
    x.chunks(32).zip(&measured).flat_map(block).collect()
}

/// `make_qkx2_quants(32, 15, x, |x| + rms, …, −1, 0.1, 20, false)`: scale and negated minimum.
fn qkx2(x: &[f32]) -> (f32, f32) {
    let rms = (x.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
    let weight: Vec<f32> = x.iter().map(|x| rms + x.abs()).collect();
    let low = x.iter().fold(0f32, |m, x| m.min(*x));
    let high = x.iter().fold(f32::MIN, |m, x| m.max(*x));
    if high == low {
        return (0.0, -low);
    }
    let total = |f: &dyn Fn(usize) -> f32| (0..x.len()).map(f).sum::<f32>();
    let sum = |f: &dyn Fn(usize) -> f32| total(&|i| weight[i] * f(i));
    let quants = |inverse: f32, start: f32| -> Vec<f32> {
        x.iter().map(|x| (inverse * (x - start)).round_ties_even().clamp(0.0, 15.0)).collect()
    };
    let error = |q: &[f32], scale: f32, min: f32| sum(&|i| (scale * q[i] + min - x[i]).powi(2));
    let (mut scale, mut min) = ((high - low) / 15.0, low);
    let mut best = error(&quants(15.0 / (high - low), low), scale, min);
    let (w, wx) = (sum(&|_| 1.0), sum(&|i| x[i]));
    for step in 0..=20 {
        // Starts from the best minimum so far.
        let q = quants((-1.0 + 0.1 * step as f32 + 15.0) / (high - min), min);
        let (l, l2, xl) = (
            total(&|i| weight[i] * q[i]),
            total(&|i| weight[i] * q[i] * q[i]),
            total(&|i| weight[i] * q[i] * x[i]),
        );
        let determinant = w * l2 - l * l;
        if determinant > 0.0 {
            let mut this = ((w * xl - wx * l) / determinant, (l2 * wx - l * xl) / determinant);
            if this.1 > 0.0 {
                this = (xl / l2, 0.0);
            }
            let found = error(&q, this.0, this.1);
            if found < best {
                best = found;
                (scale, min) = this;
            }
        }
    }
    (scale, -min)
}

/// The values of a row in ggml's blocks (`dequantize_row_*`).
pub fn stored(dtype: &str, row: &[u8]) -> Vec<f32> {
    // Bytes and elements of a block; bytes of its scales and of its other factors; the quant of an element.
    type Quant = fn(&[u8], usize) -> u8;
    let (n_bytes, n, scales, factors, quant): (usize, usize, Range<usize>, Range<usize>, Quant) = match dtype
    {
        "Q8_0" => (34, 32, 0..2, 0..0, |b, e| b[2 + e]),
        "Q4_0" | "IQ4_NL" => (18, 32, 0..2, 0..0, |b, e| nibble(&b[2..], e)),
        "Q4_1" => (20, 32, 0..4, 0..0, |b, e| nibble(&b[4..], e)),
        "Q5_0" => (22, 32, 0..2, 0..0, |b, e| nibble(&b[6..], e) | (b[2 + e / 8] >> (e % 8) & 1) << 4),
        "Q5_1" => (24, 32, 0..4, 0..0, |b, e| nibble(&b[8..], e) | (b[4 + e / 8] >> (e % 8) & 1) << 4),
        "MXFP4" => (17, 32, 0..1, 0..0, |b, e| nibble(&b[1..], e)),
        // Two blocks of 32 share 32 bytes; the first one has the low nibbles.
        "Q4_K" => (144, 256, 0..16, 0..0, |b, e| b[16 + e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15),
        "Q5_K" => (176, 256, 0..16, 0..0, |b, e| {
            b[48 + e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15 | (b[16 + e % 32] >> (e / 32) & 1) << 4
        }),
        // In each half of 128, two blocks of 32 share 32 bytes with the next but one.
        "Q6_K" => (210, 256, 192..208, 208..210, |b, e| {
            let low = b[e / 128 * 64 + e % 64] >> (e / 64 % 2 * 4) & 15;
            low | (b[128 + e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3) << 4
        }),
        "Q3_K" => (110, 256, 96..108, 108..110, |b, e| {
            b[32 + e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3 | (b[e % 32] >> (e / 32) & 1) << 2
        }),
        "Q2_K" => (84, 256, 0..16, 80..84, |b, e| b[16 + e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3),
        "IQ4_XS" => (136, 256, 0..8, 0..0, |b, e| nibble(&b[8 + e / 32 * 16..], e % 32)),
        other => unreachable!("{other} has no blocks"),
    };
    let block = |b: &[u8]| {
        let value = |e| value(dtype, quant(b, e), e, &b[scales.clone()], &b[factors.clone()]);
        (0..n).map(value).collect::<Vec<f32>>()
    };
    row.chunks(n_bytes).flat_map(block).collect()
}

/// Element `e` of 32 in 16 bytes: the low nibbles are the first half.
fn nibble(bytes: &[u8], e: usize) -> u8 {
    bytes[e % 16] >> (e / 16 * 4) & 15
}

/// The value of quant `q`, element `e` of a block or superblock with these scales and other factors.
fn value(dtype: &str, q: u8, e: usize, scales: &[u8], factors: &[u8]) -> f32 {
    let half = |bytes: &[u8], at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let number = f32::from(q);
    let (block, sixteen) = (e / 32, e / 16);
    match dtype {
        "Q8_0" => half(scales, 0) * f32::from(q as i8),
        "Q4_0" => half(scales, 0) * (number - 8.0),
        "Q5_0" => half(scales, 0) * (number - 16.0),
        "Q4_1" | "Q5_1" => half(scales, 0) * number + half(scales, 2),
        "IQ4_NL" => half(scales, 0) * f32::from(IQ4_NL[usize::from(q)]),
        "MXFP4" => 2f32.powi(i32::from(scales[0]) - 127) * E2M1[usize::from(q)],
        "Q4_K" | "Q5_K" => {
            // get_scale_min_k4
            let (s, j) = (&scales[4..], block);
            let (scale, min) = if j < 4 {
                (s[j] & 63, s[j + 4] & 63)
            } else {
                (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
            };
            half(scales, 0) * f32::from(scale) * number - half(scales, 2) * f32::from(min)
        }
        "Q6_K" => half(factors, 0) * f32::from(scales[sixteen] as i8) * (number - 32.0),
        "Q3_K" => {
            let low = scales[sixteen % 8] >> (sixteen / 8 * 4) & 15;
            let scale = low | (scales[8 + sixteen % 4] >> (sixteen / 4 * 2) & 3) << 4;
            half(factors, 0) * (f32::from(scale) - 32.0) * (number - 4.0)
        }
        "Q2_K" => {
            let (scale, min) = (scales[sixteen] & 15, scales[sixteen] >> 4);
            half(factors, 0) * f32::from(scale) * number - half(factors, 2) * f32::from(min)
        }
        "IQ4_XS" => {
            let low = scales[4 + block / 2] >> (block % 2 * 4) & 15;
            let scale = low | (scales[2 + block / 4] >> (block % 4 * 2) & 3) << 4;
            half(scales, 0) * (f32::from(scale) - 32.0) * f32::from(IQ4_NL[usize::from(q)])
        }
        other => unreachable!("{other} has no blocks"),
    }
}

/// `kvalues_iq4nl`
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The 4-bit floats of OCP Microscaling Formats 1.0: a sign, two bits of exponent, one of mantissa.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The first `n` values of a row in the device's layout.
pub fn decode(dtype: &str, row: &[u8], n: usize) -> Vec<f32> {
    let (n_blocks, n_superblocks) = (n.div_ceil(32), n.div_ceil(256));
    // Bytes of a block's quants, pairs of bits, bits; elements that share scales and their bytes; bytes of a
    // superblock's other factors.
    let (quants, pairs, bits, shared, scales, factors) = match dtype {
        "Q8_0" => (32, 0, 0, 32, 2, 0),
        "Q4_0" | "IQ4_NL" => (16, 0, 0, 32, 2, 0),
        "Q4_1" => (16, 0, 0, 32, 4, 0),
        "Q5_0" => (16, 0, 4, 32, 2, 0),
        "Q5_1" => (16, 0, 4, 32, 4, 0),
        "MXFP4" => (16, 0, 0, 32, 1, 0),
        "Q4_K" => (16, 0, 0, 256, 16, 0),
        "Q5_K" => (16, 0, 4, 256, 16, 0),
        "Q6_K" => (16, 8, 0, 256, 16, 2),
        "Q3_K" => (0, 8, 4, 256, 12, 2),
        "Q2_K" => (0, 8, 0, 256, 16, 4),
        "IQ4_XS" => (16, 0, 0, 256, 8, 0),
        other => unreachable!("{other} has no blocks"),
    };
    let pairs_at = (quants * n_blocks).next_multiple_of(16);
    let bits_at = pairs_at + (pairs * n_blocks).next_multiple_of(16);
    let scales_at = bits_at + (bits * n_blocks).next_multiple_of(16);
    let factors_at = scales_at + (scales * n.div_ceil(shared)).next_multiple_of(16);
    assert!(row.len() >= factors_at + factors * n_superblocks, "{dtype}: {} bytes for {n} values", row.len());
    let element = |i: usize| {
        let (b, e) = (i / 32, i % 32);
        let mut q = 0;
        let mut n_bits = 0;
        if quants == 32 {
            q = row[32 * b + e];
        } else if quants == 16 {
            // The low nibbles of four bytes are four elements, the high nibbles the next four.
            q = row[16 * b + e / 8 * 4 + e % 4] >> (e % 8 / 4 * 4) & 15;
            n_bits = 4;
        }
        if pairs > 0 {
            // Four bytes have the elements of even fours, the next four bytes those of odd ones.
            q |= (row[pairs_at + 8 * b + e / 4 % 2 * 4 + e % 4] >> (e / 8 * 2) & 3) << n_bits;
            n_bits += 2;
        }
        if bits > 0 {
            q |= (row[bits_at + 4 * b + e % 4] >> (e / 4) & 1) << n_bits;
        }
        let scales = &row[scales_at + i / shared * scales..][..scales];
        value(dtype, q, i % shared, scales, &row[factors_at + i / 256 * factors..][..factors])
    };
    (0..n).map(element).collect()
}
