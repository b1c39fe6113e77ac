//! The kernels in f64, in the order of a forward pass: what `shaders/` computes, in plain arithmetic.
//! Each function takes one row of the batch. `*` in a shape stands for several leading dimensions laid flat.
//!
//! Benchmarks and tests compare with it. The tests include this file by its path, so it imports nothing of the crate.
#![allow(dead_code)] // benchmarks and each test binary use their own part of this
#![allow(missing_docs)] // fields are named as in the equations

pub mod quant;

/// Row `id` of `table` [n_table, hidden], or zeros if `id` is outside the table.
pub fn embed(table: &[Vec<f64>], id: u32, scale: f64) -> Vec<f64> {
    match table.get(id as usize) {
        Some(row) => row.iter().map(|x| scale * x).collect(),
        None => vec![0.0; table[0].len()],
    }
}

/// `x` [n] divided by its root mean square, times `w + offset` [n].
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64, offset: f64) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean_square + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| x * scale * (w + offset)).collect()
}

/// `x` [n] minus its mean, divided by its standard deviation, times `w` [n] plus `b` [n].
pub fn layer_norm(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (0..x.len()).map(|i| (x[i] - mean) / (var + eps).sqrt() * w[i] + b[i]).collect()
}

/// `w` [n_out, n_in] times `x` [n_in] plus `b` [n_out].
pub fn linear(x: &[f64], w: &[Vec<f64>], b: Option<&[f64]>) -> Vec<f64> {
    let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    (0..w.len()).map(|o| dot(&w[o]) + b.map_or(0.0, |b| b[o])).collect()
}

/// The RMS norm of each query head with `q_w` [head_dim] and of each key head with `k_w` [head_dim], or of all of them
/// together with `q_w` [n_heads · head_dim] and `k_w` [n_kv_heads · head_dim]; `qkv` [(n_heads + 2·n_kv_heads) · head_dim].
pub fn head_norm(
    qkv: &[f64],
    q_w: &[f64],
    k_w: &[f64],
    [n_heads, n_kv_heads, head_dim]: [usize; 3],
    eps: f64,
    offset: f64,
) -> Vec<f64> {
    let (q, rest) = qkv.split_at(n_heads * head_dim);
    let (k, v) = rest.split_at(n_kv_heads * head_dim);
    let normed = |x: &[f64], w: &[f64]| -> Vec<f64> {
        x.chunks(w.len()).flat_map(|x| rms_norm(x, w, eps, offset)).collect()
    };
    [normed(q, q_w), normed(k, k_w), v.to_vec()].concat()
}

/// One head `x` [head_dim] rotated by `angles` [n_rot / 2]: pairs (i, i + n_rot/2), or (2i, 2i + 1) if interleaved.
pub fn rope(x: &[f64], angles: &[f64], interleaved: bool) -> Vec<f64> {
    let mut y = x.to_vec();
    for (i, angle) in angles.iter().enumerate() {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + angles.len()) };
        y[a] = x[a] * angle.cos() - x[b] * angle.sin();
        y[b] = x[b] * angle.cos() + x[a] * angle.sin();
    }
    y
}

/// The factor on queries at `pos`, of which the first `original` have 1.
pub fn temperature(pos: usize, beta: f64, original: usize) -> f64 {
    1.0 + beta * ((1 + pos / original) as f64).ln()
}

/// The parameters of attention.
#[derive(Clone, Copy)]
pub struct Attention {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub scale: f64,
    pub window: Option<usize>,
    pub softcap: Option<f64>,
}

/// The query at the last position, `q` [n_heads · head_dim], over `keys` and `values`
/// [pos + 1, n_kv_heads · head_dim], and each head's sink [n_heads], whose value is zero.
pub fn attention(
    shape: Attention,
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    sinks: Option<&[f64]>,
) -> Vec<f64> {
    let head_dim = q.len() / shape.n_heads;
    let first = keys.len().saturating_sub(shape.window.unwrap_or(keys.len()));
    let head = |(h, q): (usize, &[f64])| {
        let kv = h / (shape.n_heads / shape.n_kv_heads) * head_dim;
        let dot = |k: &Vec<f64>| q.iter().zip(&k[kv..]).map(|(q, k)| q * k).sum::<f64>();
        let score = |k: &Vec<f64>| softcap(dot(k), shape.scale, shape.softcap);
        let sink = sinks.map(|sinks| sinks[h]);
        let scores: Vec<f64> = keys[first..].iter().map(score).chain(sink).collect();
        let weights = softmax(&scores);
        let mix = |d| weights.iter().zip(&values[first..]).map(|(p, v)| p * v[kv + d]).sum::<f64>();
        (0..head_dim).map(mix).collect::<Vec<f64>>()
    };
    q.chunks(head_dim).enumerate().flat_map(head).collect()
}

/// `x` times `scale`, smoothly kept between minus and plus `cap`.
pub fn softcap(x: f64, scale: f64, cap: Option<f64>) -> f64 {
    cap.map_or(scale * x, |cap| cap * (scale * x / cap).tanh())
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

pub fn relu(x: f64) -> f64 {
    x.max(0.0)
}

/// The rows `x` [n, hidden] of a text pooled to one row; `how` has sentence-transformers' names.
pub fn pool(how: &str, x: &[Vec<f64>]) -> Vec<f64> {
    let n = x.len() as f64;
    let sum = |i: usize| x.iter().map(|row| row[i]).sum::<f64>();
    let weighted = |i: usize| x.iter().zip(1..).map(|(row, w)| f64::from(w) * row[i]).sum::<f64>();
    let column = |i: usize| match how {
        "cls" => x[0][i],
        "lasttoken" => x[x.len() - 1][i],
        "mean" => sum(i) / n,
        "mean_sqrt_len_tokens" => sum(i) / n.sqrt(),
        "max" => x.iter().map(|row| row[i]).fold(f64::NEG_INFINITY, f64::max),
        "weightedmean" => weighted(i) / (1..=x.len()).map(|w| w as f64).sum::<f64>(),
        other => unreachable!("no pooling is called {other}"),
    };
    (0..x[0].len()).map(column).collect()
}

/// The error function by its series of positive terms, `2/√π · e^(−x²) · Σ 2ⁿx^(2n+1)/(2n+1)!!`
/// (Abramowitz & Stegun 7.1.6).
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// `act` of the left half of `x` [2 · n], times the right half.
pub fn gate(act: fn(f64) -> f64, x: &[f64]) -> Vec<f64> {
    let (left, right) = x.split_at(x.len() / 2);
    left.iter().zip(right).map(|(l, r)| act(*l) * r).collect()
}

/// gpt-oss's gate (transformers' `GptOssExperts`) of the left half of `x` [2 · n] and the right half.
pub fn clamped_gate(x: &[f64]) -> Vec<f64> {
    let (left, right) = x.split_at(x.len() / 2);
    let gated = |(gate, up): (&f64, &f64)| {
        let gate = gate.min(7.0);
        gate / (1.0 + (-1.702 * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
    };
    left.iter().zip(right).map(gated).collect()
}

/// The `k` experts with the largest of a router's `logits` [n_experts], each with its weight.
pub fn route(logits: &[f64], k: usize, sigmoid: bool, normalised: bool) -> Vec<(usize, f64)> {
    let scores = match sigmoid {
        true => logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
        false => softmax(logits),
    };
    let chosen = top_k(logits, k);
    let sum = if normalised { chosen.iter().map(|e| scores[*e]).sum() } else { 1.0 };
    chosen.iter().map(|e| (*e, scores[*e] / sum)).collect()
}

/// For each of `n_experts` experts the indices of its pairs in `ids`.
pub fn group(ids: &[u32], n_experts: usize) -> Vec<Vec<usize>> {
    let of = |e: usize| (0..ids.len()).filter(|p| ids[*p] as usize == e).collect();
    (0..n_experts).map(of).collect()
}

/// `x` [n] plus the rows `y` [k, n] times their `weights` [k].
pub fn combine(x: &[f64], weights: &[f64], y: &[Vec<f64>]) -> Vec<f64> {
    let sum = |i: usize| weights.iter().zip(y).map(|(w, y)| w * y[i]).sum::<f64>();
    x.iter().enumerate().map(|(i, x)| x + sum(i)).collect()
}

pub fn softmax(z: &[f64]) -> Vec<f64> {
    log_softmax(z).into_iter().map(f64::exp).collect()
}

pub fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().fold(f64::NEG_INFINITY, |m, z| m.max(*z));
    let log_sum = z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - top - log_sum).collect()
}

/// The log-probability that logits `z` give to `token`.
pub fn token_logprob(z: &[f64], token: usize) -> f64 {
    log_softmax(z)[token]
}

/// Columns of the `k` largest, largest first; on a tie, the smaller column first.
pub fn top_k(x: &[f64], k: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..x.len()).collect();
    columns.sort_by(|&a, &b| x[b].total_cmp(&x[a])); // a stable sort
    columns.truncate(k);
    columns
}

/// A sequence's sampling parameters, as OpenAI and Hugging Face name them.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    pub seed: u64,
    pub temperature: f64,
    pub top_k: usize,
    pub top_p: f64,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
}

impl Sampling {
    /// The most probable token, no penalties.
    pub const GREEDY: Sampling = Sampling {
        seed: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
    };
}

/// Logits `z` [n_vocab] after penalties and biases. `prompt` [n_vocab] marks the prompt's tokens, `counts` [n_vocab] is
/// how often each token was drawn.
pub fn penalize(z: &[f64], s: Sampling, prompt: &[bool], counts: &[u32], bias: &[(usize, f64)]) -> Vec<f64> {
    let mut z = z.to_vec();
    for t in 0..z.len() {
        if prompt[t] || counts[t] > 0 {
            z[t] = if z[t] > 0.0 { z[t] / s.repetition_penalty } else { z[t] * s.repetition_penalty };
        }
        if counts[t] > 0 {
            z[t] -= s.presence_penalty + s.frequency_penalty * f64::from(counts[t]);
        }
    }
    for (t, b) in bias {
        z[*t] += b;
    }
    z
}

/// The smallest logit that may be drawn, after top-k, then top-p, then min-p. Ties with the last one are kept.
pub fn smallest_kept(z: &[f64], s: Sampling) -> f64 {
    let mut sorted: Vec<f64> = z.iter().copied().filter(|z| *z > f64::NEG_INFINITY).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (top, last) = (sorted[0], sorted[sorted.len() - 1]);
    if s.temperature == 0.0 {
        return top;
    }
    let by_count = if s.top_k == 0 { last } else { sorted[s.top_k.min(sorted.len()) - 1] };
    sorted.retain(|z| *z >= by_count);

    let weight = |z: f64| ((z - top) / s.temperature).exp();
    let goal = s.top_p * sorted.iter().map(|z| weight(*z)).sum::<f64>();
    let mut mass = 0.0;
    let reaches = |z: &&f64| {
        mass += weight(**z);
        mass >= goal
    };
    let by_mass = if s.top_p < 1.0 { *sorted.iter().find(reaches).unwrap_or(&last) } else { last };

    // p ≥ min_p · p_top ⟺ z ≥ z_top + T ln min_p.
    by_count.max(by_mass).max(top + s.temperature * s.min_p.ln()).min(top)
}

/// The probabilities of tokens after the filters.
pub fn distribution(z: &[f64], s: Sampling) -> Vec<f64> {
    let floor = smallest_kept(z, s);
    let t = if s.temperature == 0.0 { 1.0 } else { s.temperature };
    let kept: Vec<f64> = z.iter().map(|z| if *z >= floor { z / t } else { f64::NEG_INFINITY }).collect();
    softmax(&kept)
}

/// The token drawn at `pos`, and the lead of its noisy score over the next one.
pub fn sample(z: &[f64], s: Sampling, pos: u32) -> (usize, f64) {
    let floor = smallest_kept(z, s);
    let noisy = |t: usize| match z[t] {
        z if z < floor => f64::NEG_INFINITY,
        z if s.temperature == 0.0 => z,
        z => z / s.temperature + gumbel(random(s.seed, pos, t as u32)),
    };
    let scores: Vec<f64> = (0..z.len()).map(noisy).collect();
    let best = top_k(&scores, 2);
    (best[0], best.get(1).map_or(f64::INFINITY, |second| scores[best[0]] - scores[*second]))
}

/// Gumbel noise from 32 random bits: `−ln(−ln(1 − u))`.
pub fn gumbel(bits: u32) -> f64 {
    let u = (f64::from(bits) + 0.5) / 4_294_967_296.0;
    -(-(-u).ln_1p()).ln()
}

/// 32 random bits of the seed's two words, the position and the token.
pub fn random(seed: u64, pos: u32, token: u32) -> u32 {
    let [x, _, _, w] = pcg4d([seed as u32, (seed >> 32) as u32, pos, token]);
    x ^ w
}

/// The hash pcg4d (Jarzynski & Olano 2020).
pub fn pcg4d(words: [u32; 4]) -> [u32; 4] {
    let lcg = |x: u32| x.wrapping_mul(1664525).wrapping_add(1013904223);
    let [mut x, mut y, mut z, mut w] = words.map(lcg);
    for round in 0..2 {
        x = x.wrapping_add(y.wrapping_mul(w));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        w = w.wrapping_add(y.wrapping_mul(z));
        if round == 0 {
            [x, y, z, w] = [x, y, z, w].map(|v| v ^ (v >> 16));
        }
    }
    [x, y, z, w]
}

/// The input [n_channels, 3] of output `t` of a convolution over the rows of `x` [n_rows][n_channels], of width 3 and
/// padded by one.
pub fn unfold(x: &[Vec<f64>], stride: usize, t: usize) -> Vec<f64> {
    let row = |k: usize| (stride * t + k).checked_sub(1).and_then(|r| x.get(r));
    (0..x[0].len()).flat_map(|c| (0..3).map(move |k| row(k).map_or(0.0, |r| r[c]))).collect()
}

/// The weights of one query head over all `keys` [head_dim].
pub fn attention_weights(scale: f64, q: &[f64], keys: &[Vec<f64>]) -> Vec<f64> {
    let score = |k: &Vec<f64>| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
    softmax(&keys.iter().map(score).collect::<Vec<_>>())
}

/// The rules for the next token of a transcript.
#[derive(Clone, Debug)]
pub struct SpeechRules {
    pub end: usize,
    pub suppress_first: Vec<usize>,
    pub timestamps: Option<TimestampRules>,
}

/// The rules for timestamps.
#[derive(Clone, Copy, Debug)]
pub struct TimestampRules {
    pub first: usize,
    pub no_timestamps: usize,
    pub max_initial: Option<usize>,
}

/// Logits `z` [n_vocab] after the rules, forbidden ones minus infinity, where `generated` are the tokens so far; in the
/// order of `SuppressBlank` and `ApplyTimestampRules` of openai/whisper's decoding.py.
pub fn speech_rules(z: &[f64], generated: &[usize], rules: &SpeechRules) -> Vec<f64> {
    let mut z = z.to_vec();
    let forbid = |z: &mut Vec<f64>, tokens: std::ops::Range<usize>| {
        tokens.for_each(|t| z[t] = f64::NEG_INFINITY);
    };
    if generated.is_empty() {
        rules.suppress_first.iter().for_each(|t| z[*t] = f64::NEG_INFINITY);
    }
    let Some(TimestampRules { first, no_timestamps, max_initial }) = rules.timestamps else { return z };
    z[no_timestamps] = f64::NEG_INFINITY;
    let is_time = |t: &usize| *t >= first;
    let last_was = generated.last().is_some_and(is_time);
    let penultimate_was = generated.len() < 2 || is_time(&generated[generated.len() - 2]);
    let n_vocab = z.len();
    if last_was {
        if penultimate_was {
            forbid(&mut z, first..n_vocab);
        } else {
            forbid(&mut z, 0..rules.end);
        }
    }
    if let Some(time) = generated.iter().rfind(|t| is_time(t)) {
        let least = if last_was && !penultimate_was { *time } else { time + 1 };
        forbid(&mut z, first..least);
    }
    if generated.is_empty() {
        forbid(&mut z, 0..first);
        if let Some(most) = max_initial {
            forbid(&mut z, first + most + 1..n_vocab);
        }
    }
    let log_p = log_softmax(&z);
    let times = log_p[first..].iter().map(|p| p.exp()).sum::<f64>().ln();
    if times > log_p[..first].iter().copied().fold(f64::NEG_INFINITY, f64::max) {
        forbid(&mut z, 0..first);
    }
    z
}

/// For each of `n_vocab` tokens, bit 31 if it is among the first `n_prompt` ids, plus how often it is among the others.
/// Ids outside the vocabulary do not count.
pub fn count_prompt(ids: &[u32], n_prompt: usize, n_vocab: usize) -> Vec<u32> {
    let mut counts = vec![0u32; n_vocab];
    for (i, id) in ids.iter().enumerate().filter(|(_, id)| (**id as usize) < n_vocab) {
        let count = &mut counts[*id as usize];
        *count = if i < n_prompt { *count | 1 << 31 } else { *count + 1 };
    }
    counts
}

/// Element (`row`, `col`) of random weights: the sum of four bytes of the hash pcg4d of (seed, row, col / 4), scaled to
/// this mean and standard deviation.
pub fn fill_normal(seed: u32, row: u32, col: u32, mean: f64, scale: f64) -> f64 {
    let bits = pcg4d([seed, row, col / 4, 0])[col as usize % 4];
    let sum: u32 = bits.to_le_bytes().into_iter().map(u32::from).sum();
    mean + scale * (f64::from(sum) - 510.0) / ((65536.0 - 1.0) / 12.0 * 4.0f64).sqrt()
}

/// `x` after `n_steps` times `v ↦ v·a + b`.
pub fn probe_fma(x: f64, n_steps: usize, [a, b]: [f64; 2]) -> f64 {
    (0..n_steps).fold(x, |v, _| v * a + b)
}
