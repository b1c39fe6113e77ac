//! Sampling: the distribution, the exact draws, and what a draw writes.

mod common;

use common::reference::{self as exact, Sampling};
use common::*;
use wginfer::gpu::{Gpu, GpuOptions, Tensor, Variant};
use wginfer::ops::{self, Draws, NOT_A_TOKEN, SamplingRecord};

/// The tensors that a draw reads and writes. Rows of the batch are (sequence, position).
struct Draw {
    index: Tensor,
    sampling: Tensor,
    z: Tensor,
    rows: Tensor,
    tokens: Tensor,
    counts: Tensor,
    chosen: Tensor,
    filters: Tensor,
}

fn record(s: &Sampling) -> SamplingRecord {
    SamplingRecord {
        seed_low: s.seed as u32,
        seed_high: (s.seed >> 32) as u32,
        temperature: s.temperature as f32,
        top_k: s.top_k as u32,
        top_p: s.top_p as f32,
        min_p: s.min_p as f32,
        repetition_penalty: s.repetition_penalty as f32,
        presence_penalty: s.presence_penalty as f32,
        frequency_penalty: s.frequency_penalty as f32,
        n_bias: 0,
        counts: 0,
        pad: 0,
    }
}

impl Draw {
    /// A row of logits for each of `places`; `records` of the sequences; room for `ctx` tokens a sequence.
    fn new(gpu: &Gpu, z: &[Vec<f32>], places: &[[u32; 2]], records: &[SamplingRecord], ctx: usize) -> Draw {
        let (n, n_vocab, n_seqs) = (z.len(), z[0].len(), records.len());
        assert_eq!(places.len(), n);
        let index: Vec<u32> = (0..n as u32).collect();
        Draw {
            index: tensor_u32(gpu, [1, n], &index),
            sampling: tensor_u32(gpu, [n_seqs, 12], bytemuck::cast_slice(records)),
            z: tensor_f32(gpu, [n, n_vocab], &z.concat()),
            rows: tensor_u32(gpu, [n, 2], places.as_flattened()),
            tokens: tensor_u32(gpu, [n_seqs, ctx], &vec![5; n_seqs * ctx]),
            counts: tensor_u32(gpu, [n_seqs, n_vocab], &vec![0; n_seqs * n_vocab]),
            chosen: tensor_u32(gpu, [1, n], &vec![77; n]),
            filters: tensor_u32(gpu, [n, 2], &vec![0; 2 * n]),
        }
    }

    fn run(&self, gpu: &Gpu) -> Vec<u32> {
        let Draw { index, sampling, z, rows, tokens, counts, chosen, filters } = self;
        run(gpu, |rec| {
            let draws = Draws { rows, index, sampling, counts };
            ops::sample(rec, draws, z, tokens, chosen, filters, z.n_rows());
        });
        read_u32(gpu, chosen)
    }
}

/// Draws for rows (0, 0), (0, 1), … of one sequence.
fn draw(gpu: &Gpu, z: &[Vec<f32>], s: &Sampling) -> Vec<u32> {
    let places: Vec<[u32; 2]> = (0..z.len() as u32).map(|pos| [0, pos]).collect();
    Draw::new(gpu, z, &places, &[record(s)], 1).run(gpu)
}

/// Temperature 0.9 and no filter.
const PLAIN: Sampling = Sampling { seed: 0x1234_5678_9abc_def0, temperature: 0.9, ..Sampling::GREEDY };

/// Pearson's statistic of `drawn` against `p`, in standard deviations above its mean, by Wilson and Hilferty's
/// approximation. Tokens that are expected fewer than five times share a bin.
fn chi_square(drawn: &[u32], p: &[f64]) -> f64 {
    let n = drawn.len() as f64;
    let mut counts = vec![0u32; p.len()];
    drawn.iter().for_each(|t| counts[*t as usize] += 1);
    let (mut statistic, mut bins) = (0.0, 0.0);
    let mut add = |count: f64, expected: f64| {
        statistic += (count - expected) * (count - expected) / expected;
        bins += 1.0;
    };
    let (mut rare, mut rare_expected) = (0.0, 0.0);
    for (count, p) in counts.iter().zip(p) {
        let (count, expected) = (f64::from(*count), p * n);
        if expected >= 5.0 {
            add(count, expected);
        } else {
            rare += count;
            rare_expected += expected;
        }
    }
    if rare_expected > 0.0 {
        add(rare, rare_expected);
    } else {
        assert_eq!(rare, 0.0, "a token was drawn that is not kept");
    }
    let k: f64 = bins - 1.0;
    let spread = 2.0 / (9.0 * k);
    ((statistic / k).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn draws_follow_the_distribution() {
    let Some(gpu) = gpu() else { return };
    let filters = [
        PLAIN,
        Sampling { temperature: 1.7, ..PLAIN },
        Sampling { top_k: 9, ..PLAIN },
        Sampling { top_p: 0.8, ..PLAIN },
        Sampling { min_p: 0.05, ..PLAIN },
        Sampling { temperature: 1.3, top_k: 20, top_p: 0.9, min_p: 0.03, ..PLAIN },
    ];
    for (i, s) in filters.iter().enumerate() {
        check_distribution(&gpu, &Rng::new(20 + i as u64).normals(37, 1.5), s, 100_000);
    }
    check_distribution(&gpu, &Rng::new(30).normals(1009, 2.5), &filters[0], 100_000);
    check_distribution(&gpu, &Rng::new(31).normals(1009, 2.5), &filters[5], 100_000);
    // A thousand tokens of probability 1e-6 each: top_p = 1 keeps every one.
    let rare = |t: usize| if t < 9 { (0.1 + t as f32 * 0.0025).ln() } else { 1e-6f32.ln() };
    let all = Sampling { temperature: 1.0, ..PLAIN };
    check_distribution(&gpu, &(0..1009).map(rare).collect::<Vec<f32>>(), &all, 100_000);
    // Without subgroups software devices are slow; that the draws are the same is tested below.
    let Some(gpu) = portable() else { return };
    check_distribution(&gpu, &Rng::new(32).normals(37, 1.5), &filters[5], 10_000);
}

/// Draws for rows of two sequences at different positions, which advance with each draw.
fn check_distribution(gpu: &Gpu, z: &[f32], s: &Sampling, n_draws: u32) {
    let n_rows = 5_000;
    let n_steps = n_draws / n_rows;
    let places: Vec<[u32; 2]> = (0..n_rows).map(|r| [r % 2, r / 2 * n_steps]).collect();
    let records = [record(s), record(&Sampling { seed: s.seed + 1, ..*s })];
    let draw = Draw::new(gpu, &vec![z.to_vec(); n_rows as usize], &places, &records, 1);
    let drawn: Vec<u32> = (0..n_steps).flat_map(|_| draw.run(gpu)).collect();
    let p = exact::distribution(&to_f64(z), *s);
    let deviation = chi_square(&drawn, &p);
    // One test in a million is further off by chance.
    assert!(deviation < 4.75, "{s:?} of {} tokens: {deviation} standard deviations", z.len());
    // The test must be able to see a fifth of the likeliest token's probability move to the next likeliest.
    let best = exact::top_k(&p, 2);
    let mut moved = p.clone();
    moved[best[0]] -= 0.2 * p[best[0]];
    moved[best[1]] += 0.2 * p[best[0]];
    let far = chi_square(&drawn, &moved);
    assert!(far > 4.75, "{s:?} of {} tokens: the test cannot tell {deviation} from {far}", z.len());
}

#[test]
fn draws_are_those_of_the_reference() {
    for gpu in reducing() {
        let mut rng = Rng::new(40);
        let (mut n, mut skipped) = (0, 0);
        // The last one is as large as real ones: some devices limit the iterations of an invocation.
        for n_vocab in [1, 2, 37, 300, 1031, 50_021] {
            for case in 0..12 {
                let pick = |on, value| if on { value } else { 0.0 };
                let s = Sampling {
                    seed: rng.bits(),
                    temperature: if case == 0 { 0.0 } else { 0.3 + f64::from(rng.uniform()) },
                    top_k: if case % 3 == 1 { 1 + rng.below(n_vocab + 3) } else { 0 },
                    top_p: 1.0 - pick(case % 4 == 2, f64::from(rng.uniform())),
                    min_p: pick(case % 5 == 3, f64::from(rng.uniform()) * 0.1),
                    ..Sampling::GREEDY
                };
                // Rounded as the device reads it.
                let s = Sampling {
                    temperature: f64::from(s.temperature as f32),
                    top_p: f64::from(s.top_p as f32),
                    min_p: f64::from(s.min_p as f32),
                    ..s
                };
                // Every other case has ties, some have tokens that cannot be drawn.
                let mut logit = || match case % 4 {
                    0 => rng.below(9) as f32 * 0.5 - 2.0,
                    3 if rng.below(4) == 0 => f32::NEG_INFINITY,
                    _ => rng.normal() * 3.0,
                };
                let z: Vec<Vec<f32>> = (0..if n_vocab < 10_000 { 29 } else { 1 })
                    .map(|_| (0..n_vocab).map(|_| logit()).collect::<Vec<f32>>())
                    .filter(|z| z.iter().any(|z| z.is_finite()))
                    .collect();
                let pos = 1000;
                let places: Vec<[u32; 2]> = (0..z.len() as u32).map(|r| [0, pos + r]).collect();
                let draw = Draw::new(&gpu, &z, &places, &[record(&s)], 1);
                let drawn = draw.run(&gpu);
                let filters = read_u32(&gpu, &draw.filters);
                for (r, z) in z.iter().enumerate() {
                    n += 1;
                    let z = to_f64(z);
                    // If rounding decides which tokens are kept or which score is the largest, either result is right.
                    let top_p = |f: f64| if s.top_p < 1.0 { (s.top_p * f).min(1.0) } else { 1.0 };
                    let nudged = |f: f64| Sampling { top_p: top_p(f), min_p: s.min_p * f, ..s };
                    let floors = [1.0, 1.0 - 1e-5, 1.0 + 1e-5].map(|f| exact::smallest_kept(&z, nudged(f)));
                    let kept = |floor: f64| z.iter().map(|z| *z >= floor).collect::<Vec<bool>>();
                    let (want, lead) = exact::sample(&z, s, pos + r as u32);
                    let close = s.temperature > 0.0 && lead < 1e-4;
                    if close || kept(floors[1]) != kept(floors[2]) {
                        skipped += 1;
                        continue;
                    }
                    let what = format!("row {r} of {n_vocab} tokens, {s:?}");
                    assert_eq!(drawn[r] as usize, want, "{what}");
                    let [inv_t, floor] = [0, 1].map(|i| f64::from(f32::from_bits(filters[2 * r + i])));
                    let t = if s.temperature > 0.0 { s.temperature } else { 1.0 };
                    assert!((inv_t * t - 1.0).abs() < 1e-6, "{what}: 1/T {inv_t}");
                    let masked = |keep: Vec<bool>| {
                        keep.iter().zip(&z).map(|(k, z)| *k && *z > f64::NEG_INFINITY).collect::<Vec<bool>>()
                    };
                    assert_eq!(masked(kept(floor)), masked(kept(floors[0])), "{what}: kept");
                }
            }
        }
        assert!(n > 1500 && skipped * 100 < n, "{skipped} of {n} were skipped");
    }
}

/// Makes a draw count, in the first token's count, how often it reads the first logits: once a pass.
fn counts_passes(variant: &Variant, source: String) -> String {
    if variant.kernel.name != "sample" {
        return source;
    }
    let counted = source.replace("return z[row + i];", "if i == 0u { counts[0] += 1u; } return z[row + i];");
    assert!(counted != source, "there is no pass to count");
    counted
}

#[test]
fn a_draw_reads_the_logits_at_most_six_times() {
    for disable in ["", "software", "subgroups"] {
        let options =
            GpuOptions { rewrite: Some(counts_passes), disable: disable.into(), ..GpuOptions::default() };
        let Some(gpu) = open(&options) else { return };
        let n = 49_152;
        // Like a model's; and all in one bin until the last digit of a threshold.
        let usual = Rng::new(80).normals(n, 3.0);
        let close: Vec<f32> = (0..n).map(|t| 100.0 + (t % 1009) as f32 * 8e-6).collect();
        let top_k = Sampling { top_k: 40, ..PLAIN };
        let top_p = Sampling { top_p: 0.95, ..PLAIN };
        let both = Sampling { top_k: 40, ..top_p };
        let many = Sampling { top_k: 20_000, ..top_p };
        for (what, z, s, most) in [
            ("greedy", &usual, Sampling::GREEDY, 1),
            ("no filter", &usual, PLAIN, 2),
            ("top-k", &usual, top_k, 2),
            ("top-p", &usual, top_p, 5),
            ("both", &usual, both, 2),
            ("many", &usual, many, 6),
            ("close, top-k", &close, top_k, 4),
            ("close, both", &close, both, 6),
            ("close, many", &close, many, 6),
        ] {
            let draw = Draw::new(&gpu, std::slice::from_ref(z), &[[0, 7]], &[record(&s)], 1);
            let token = draw.run(&gpu)[0] as usize;
            let passes = read_u32(&gpu, &draw.counts)[0];
            assert!(passes > 0 && passes <= most, "{what}: {passes} passes, expected {most}");
            assert_eq!(token, exact::sample(&to_f64(z), s, 7).0, "{what}");
        }
    }
}

#[test]
fn the_seed_decides() {
    for gpu in reducing() {
        let z: Vec<Vec<f32>> = (0..200).map(|r| Rng::new(r).normals(211, 1.0)).collect();
        let first = draw(&gpu, &z, &PLAIN);
        assert_eq!(draw(&gpu, &z, &PLAIN), first, "the same seed");
        let differ = |s: &Sampling| draw(&gpu, &z, s).iter().zip(&first).filter(|(a, b)| a != b).count();
        assert!(differ(&Sampling { seed: PLAIN.seed + 1, ..PLAIN }) > 150, "another seed");
        assert!(differ(&Sampling { seed: PLAIN.seed + (1 << 32), ..PLAIN }) > 150, "its high word");
        // The rest of the batch does not matter.
        assert_eq!(draw(&gpu, &z[..1], &PLAIN), first[..1], "alone");
    }
}

#[test]
fn logits_that_are_not_finite_give_no_token() {
    for gpu in reducing() {
        let good = Rng::new(50).normals(131, 1.0);
        let with = |t: usize, value: f32| {
            let mut z = good.clone();
            z[t] = value;
            z
        };
        let masked = vec![f32::NEG_INFINITY; 131];
        let z = [
            with(3, f32::NAN),
            with(130, f32::INFINITY),
            with(77, -f32::NAN),
            masked,
            with(9, f32::NEG_INFINITY),
        ];
        for s in [Sampling::GREEDY, PLAIN, Sampling { top_k: 5, top_p: 0.9, min_p: 0.1, ..PLAIN }] {
            let places: Vec<[u32; 2]> = (0..5).map(|seq| [seq, 2]).collect();
            let counting = SamplingRecord { counts: 1, ..record(&s) };
            let draw = Draw::new(&gpu, &z, &places, &[counting; 5], 4);
            let drawn = draw.run(&gpu);
            assert_eq!(drawn[..4], [NOT_A_TOKEN; 4], "{s:?}");
            assert!(drawn[4] < 131 && drawn[4] != 9, "{s:?}: minus infinity alone is no fault");
            let tokens = read_u32(&gpu, &draw.tokens);
            let column: Vec<u32> = tokens.iter().skip(3).step_by(4).copied().collect();
            assert_eq!(column, drawn, "the table shows the fault");
            assert_eq!(read_u32(&gpu, &draw.counts).iter().sum::<u32>(), 1, "only a token is counted");
        }
    }
}

#[test]
fn a_draw_moves_its_sequence_on() {
    for gpu in reducing() {
        // Three of the five rows of a batch draw, in another order; sequence 2 is at the end of its context;
        // sequence 0 does not count.
        let (n_vocab, ctx) = (53, 6);
        let places = [[3, 0], [2, 5], [1, 4], [0, 2], [4, 1]];
        let index = [2, 1, 3];
        let z: Vec<Vec<f32>> = (0..3).map(|r| Rng::new(60 + r).normals(n_vocab, 1.0)).collect();
        let records = [0, 1, 1, 1, 1].map(|counts| SamplingRecord { counts, ..record(&Sampling::GREEDY) });
        let draw = Draw {
            index: tensor_u32(&gpu, [1, 3], &index),
            rows: tensor_u32(&gpu, [5, 2], places.as_flattened()),
            ..Draw::new(&gpu, &z, &places[..3], &records, ctx)
        };
        let twice = [draw.run(&gpu), draw.run(&gpu)];
        let best: Vec<u32> = z.iter().map(|z| exact::top_k(&to_f64(z), 1)[0] as u32).collect();
        assert_eq!(twice, [best.clone(), best.clone()]);

        let mut want_rows = places;
        let mut want_tokens = vec![5; 5 * ctx];
        let mut want_counts = vec![0; 5 * n_vocab];
        for (row, token) in index.into_iter().zip(&best) {
            let [seq, pos] = places[row as usize];
            want_rows[row as usize][1] += 2;
            for next in [pos + 1, pos + 2] {
                if (next as usize) < ctx {
                    want_tokens[seq as usize * ctx + next as usize] = *token;
                }
            }
            want_counts[seq as usize * n_vocab + *token as usize] += 2 * records[seq as usize].counts;
        }
        assert_eq!(read_u32(&gpu, &draw.rows), want_rows.as_flattened());
        assert_eq!(read_u32(&gpu, &draw.tokens), want_tokens);
        assert_eq!(read_u32(&gpu, &draw.counts), want_counts);
    }
}

#[test]
fn temperature_zero_takes_the_first_of_equals() {
    for gpu in reducing() {
        for n_vocab in [1, 9, 64, 257, 1031] {
            let mut rng = Rng::new(70);
            let z: Vec<Vec<f32>> =
                (0..17).map(|_| (0..n_vocab).map(|_| rng.below(4) as f32 - 2.0).collect()).collect();
            let want: Vec<u32> = z.iter().map(|z| exact::top_k(&to_f64(z), 1)[0] as u32).collect();
            assert_eq!(draw(&gpu, &z, &Sampling::GREEDY), want, "{n_vocab} tokens");
        }
    }
}
