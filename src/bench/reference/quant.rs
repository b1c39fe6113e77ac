//! ggml's quantised types in plain arithmetic (ggml-quants.c), and the rows that kernels read. In f32 where ggml is,
//! because the choice of a quant is a rounding.

#![allow(dead_code)] // benchmarks and each test binary use their own part of this

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
    let half = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
    match dtype {
        "Q8_0" => {
            row.chunks(34).flat_map(|b| b[2..].iter().map(move |q| half(b) * f32::from(*q as i8))).collect()
        }
        "Q4_0" => {
            let block = |b: &[u8]| {
                let value = |q: u8| half(b) * (f32::from(q) - 8.0);
                let low: Vec<f32> = b[2..].iter().map(|q| value(q & 15)).collect();
                [low, b[2..].iter().map(|q| value(q >> 4)).collect()].concat()
            };
            row.chunks(18).flat_map(block).collect()
        }
        "Q4_K" => {
            let superblock = |b: &[u8]| {
                let (d, m, s) = (half(b), half(&b[2..]), &b[4..16]);
                let pair = |j: usize| match j {
                    0..4 => (s[j] & 63, s[j + 4] & 63),
                    _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
                };
                let block = |j: usize| {
                    let (scale, min) = pair(j);
                    // Two blocks share 32 bytes; the first one has the low nibbles.
                    let quants = b[16 + j / 2 * 32..].iter().take(32).map(move |q| q >> (j % 2 * 4) & 15);
                    quants
                        .map(move |q| d * f32::from(scale) * f32::from(q) - m * f32::from(min))
                        .collect::<Vec<_>>()
                };
                (0..8).flat_map(block).collect::<Vec<f32>>()
            };
            row.chunks(144).flat_map(superblock).collect()
        }
        other => unreachable!("{other} has no blocks"),
    }
}

/// The first `n` values of a row in the device's layout: the quants of all blocks, then 16 bytes per superblock.
pub fn decode(dtype: &str, row: &[u8], n: usize) -> Vec<f32> {
    let n_blocks = n.div_ceil(32);
    let block_bytes = if dtype == "Q8_0" { 32 } else { 16 };
    let heads = &row[n_blocks * block_bytes..];
    let half = |at: usize| half::f16::from_le_bytes([heads[at], heads[at + 1]]).to_f32();
    let value = |i: usize| {
        let (b, e) = (i / 32, i % 32);
        let block = &row[b * block_bytes..][..block_bytes];
        let (s, j) = (b / 8 * 16, b % 8);
        // The low nibbles of a word are four elements, the high nibbles the next four.
        let quant = || f32::from((block[e / 8 * 4 + e % 4] >> (e % 8 / 4 * 4)) & 15);
        match dtype {
            "Q8_0" => half(s + 2 * j) * f32::from(block[e] as i8),
            "Q4_0" => half(s + 2 * j) * (quant() - 8.0),
            _ => {
                // get_scale_min_k4
                let q = &heads[s + 4..s + 16];
                let (scale, min) = if j < 4 {
                    (q[j] & 63, q[j + 4] & 63)
                } else {
                    (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4)
                };
                half(s) * f32::from(scale) * quant() - half(s + 2) * f32::from(min)
            }
        }
    };
    (0..n).map(value).collect()
}
