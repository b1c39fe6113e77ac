//! Finds the fastest variant of each product on this device.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cases::{Case, MOST_DECODE, Pool, Prepared, Workload, products};
use super::shapes::Shape;
use super::stats::{quantile, sorted};
use super::timer::Timer;
use super::{BenchError, BenchProgress, Limits, Meta, limits};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Product, Recorder, Tuning, Variant};
use crate::ops;

/// What to tune, and for how long.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// Models, each with the types of its matrices after loading.
    pub models: Vec<(Shape, Vec<Dtype>)>,
    /// Time per product.
    pub budget: Duration,
    /// Rows of a prompt; fewer if that would take too long.
    pub n_prompt: usize,
    /// Size in bytes that the copies of weights exceed together: at least twice the device's cache.
    pub rotate_bytes: u64,
    /// Added to one output of each variant before the check, in units of the tolerance, to test that the check notices
    /// it.
    pub perturbation: f64,
}

impl TuneOptions {
    /// For `models`, with prompts of the engine's default [`max_rows`](crate::engine::EngineOptions::max_rows).
    pub fn new(models: Vec<(Shape, Vec<Dtype>)>) -> TuneOptions {
        TuneOptions {
            models,
            budget: Duration::from_millis(400),
            n_prompt: crate::engine::EngineOptions::default().max_rows,
            rotate_bytes: 256 << 20,
            perturbation: 0.0,
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        let wrong = |name, found: String, expected| Err(BenchError::Parameter { name, found, expected });
        if self.budget.is_zero() || self.budget > Duration::from_secs(3600) {
            return wrong("time-ms", self.budget.as_millis().to_string(), "at least 1, at most an hour");
        }
        if !(LEAST_PROMPT..=1 << 16).contains(&self.n_prompt) {
            return wrong("n_prompt", self.n_prompt.to_string(), "numbers from 64 to 65536");
        }
        Ok(())
    }
}

/// One measured variant of a product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuneCandidate {
    /// Its name.
    pub variant: String,
    /// Microseconds per run: the median of the samples. `None` if it is wrong or does not compile.
    pub us: Option<f64>,
    /// The 10th percentile.
    pub us_low: f64,
    /// The 90th percentile.
    pub us_high: f64,
    /// Samples.
    pub n_samples: usize,
    /// Its fault, if there is one. Such a variant is not chosen.
    pub fault: Option<String>,
}

/// One product, and the choice for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuneRow {
    /// The operation.
    pub operation: String,
    /// The model, and its part.
    pub shape: String,
    /// Type of weights.
    pub dtype: String,
    /// Whether the rows are a prompt's or decode rows.
    pub is_prompt: bool,
    /// Number of rows in the measurement.
    pub n_rows: usize,
    /// The default variant.
    pub default: String,
    /// The variant that later runs use.
    pub chosen: String,
    /// Microseconds of the default.
    pub default_us: Option<f64>,
    /// Microseconds of the chosen one.
    pub chosen_us: Option<f64>,
    /// The chosen variant's share of the limit, in percent.
    pub percent: Option<f64>,
    /// `memory` or `arithmetic`: which limit.
    pub limit: String,
    /// All measured variants, the default first.
    pub candidates: Vec<TuneCandidate>,
}

impl TuneRow {
    /// Time of the default divided by that of the chosen variant.
    pub fn speedup(&self) -> Option<f64> {
        Some(self.default_us? / self.chosen_us?)
    }
}

/// The choices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuneReport {
    /// Circumstances.
    pub meta: Meta,
    /// What the device can do.
    pub limits: Limits,
    /// Products.
    pub rows: Vec<TuneRow>,
    /// Products that would have taken too long or did not fit, each with the reason.
    pub skipped: Vec<String>,
    /// The kept choices, updated with the new ones.
    #[serde(skip)]
    pub tuning: Tuning,
}

/// Shortest measured prompt: whole tiles.
const LEAST_PROMPT: usize = 64;
/// A variant that reaches this share of the limit ends the search, because another could hardly be faster.
const NEAR_THE_LIMIT: f64 = 0.9;
/// Least speedup over the default: smaller ones are not reproducible.
const WORTH_IT: f64 = 1.05;
/// Variants slower than the best by this factor are not measured further.
const HOPELESS: f64 = 2.0;
/// Rounds before a decision.
const LEAST_ROUNDS: usize = 3;
/// A product is skipped if a single run is expected to take this many times the budget.
const TOO_LONG: f64 = 4.0;

/// Measures the variants of every product of the models, for decode rows and for prompt rows, and chooses the fastest.
/// `command` goes into the report. Devices that are opened after [`Tuning::save`] use the choices.
///
/// # Errors
/// [`BenchError::Parameter`], [`BenchError::Gpu`].
pub fn tune(
    gpu: &Gpu,
    options: &TuneOptions,
    command: String,
    progress: &mut dyn FnMut(BenchProgress<'_>),
) -> Result<TuneReport, BenchError> {
    options.check()?;
    let limits = limits(gpu, options.rotate_bytes, options.budget)?;
    let mut tuner =
        Tuner { gpu, options, limits, pool: Pool::new(gpu, options.rotate_bytes), timer: Timer::new(gpu)? };
    let mut report = TuneReport {
        meta: Meta::new(gpu, command),
        limits,
        rows: Vec::new(),
        skipped: Vec::new(),
        tuning: Tuning::read(gpu, ops::tunable()),
    };
    let all = tuner.products();
    for (i, todo) in all.iter().enumerate() {
        let label = todo.long.label();
        progress(BenchProgress { n_done: i, n_total: all.len(), next: &label });
        let seconds = tuner.least_us(&todo.long) * 1e-6;
        if seconds > options.budget.as_secs_f64() * TOO_LONG {
            report.skipped.push(format!("{label}: a run takes {seconds:.1} s at least"));
            continue;
        }
        match tuner.choose(todo) {
            Ok((row, choice)) => {
                report.tuning.set(todo.product, choice);
                report.rows.push(row);
            }
            Err(BenchError::Gpu(error @ (GpuError::TooLarge { .. } | GpuError::OutOfMemory { .. }))) => {
                report.skipped.push(format!("{label}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(report)
}

/// A product with the measured number of rows, and with another number of rows for which the choice must not be slower:
/// the choice cannot depend on the number of rows.
struct Todo {
    product: Product,
    long: Case,
    other: Case,
}

struct Tuner<'a> {
    gpu: &'a Gpu,
    options: &'a TuneOptions,
    limits: Limits,
    pool: Pool<'a>,
    timer: Timer,
}

/// A variant under measurement.
struct Candidate {
    name: &'static str,
    tuning: Arc<Tuning>,
    /// Runs per sample.
    n_runs: usize,
    us: Vec<f64>,
    fault: Option<String>,
    is_out: bool,
}

impl Candidate {
    fn at(&self, q: f64) -> f64 {
        quantile(&sorted(self.us.clone()), q)
    }

    fn median(&self) -> f64 {
        self.at(0.5)
    }
}

impl Tuner<'_> {
    /// Each product once, with decode rows and then with prompt rows.
    fn products(&self) -> Vec<Todo> {
        let mut all = Vec::new();
        let mut seen = HashSet::new();
        let models = self.options.models.iter();
        for (shape, dtype) in models.flat_map(|(shape, dtypes)| dtypes.iter().map(move |d| (shape, *d))) {
            let with = |n_rows| {
                products::tunable(&Workload {
                    caps: self.gpu.caps(),
                    shape,
                    n_rows,
                    dtype,
                    is_first_dtype: true,
                    rotate_bytes: self.options.rotate_bytes,
                })
            };
            // Fewer prompt rows if they take long: above a few tiles, the ratios between variants hardly change.
            let share_us = self.options.budget.as_secs_f64() * 1e6 / 16.0;
            let fits = |n: &usize| with(*n).iter().all(|(_, case)| self.least_us(case) <= share_us);
            let lengths = std::iter::successors(Some(self.options.n_prompt), |n| Some(n / 2));
            let n_prompt = lengths.take_while(|n| *n > LEAST_PROMPT).find(fits).unwrap_or(LEAST_PROMPT);
            let pairs = |long, other| with(long).into_iter().zip(with(other)).enumerate();
            let mut todo: Vec<(usize, Todo)> = pairs(1, 4)
                .chain(pairs(n_prompt, (n_prompt / 4).max(MOST_DECODE + 1)))
                .map(|(i, ((product, long), (_, other)))| (i, Todo { product, long, other }))
                .filter(|(_, todo)| seen.insert(todo.product))
                .collect();
            todo.sort_by_key(|(i, _)| *i);
            all.extend(todo.into_iter().map(|(_, todo)| todo));
        }
        all
    }

    fn least_us(&self, case: &Case) -> f64 {
        self.limits.least_us(case.cost.flops, case.cost.bytes).0
    }

    /// Measures a product's variants. The choice is `None` if the default stays.
    fn choose(&mut self, todo: &Todo) -> Result<(TuneRow, Option<&'static str>), BenchError> {
        let prepared = todo.long.prepare(&mut self.pool)?;
        let mut rec = Recorder::new(self.gpu)?;
        let names = ops::product_variants(self.gpu.caps(), todo.product.is_prompt);
        let mut candidates = self.candidates(&mut rec, todo.product, &names, &prepared)?;
        self.race(&mut rec, &prepared, &todo.long, &mut candidates)?;

        let right = |c: &&Candidate| c.fault.is_none() && !c.us.is_empty();
        let best = candidates.iter().filter(right).min_by(|a, b| a.median().total_cmp(&b.median()));
        let default = &candidates[0];
        let mut chosen = default;
        if let Some(best) = best.filter(|best| best.name != default.name) {
            let is_faster = default.median() >= WORTH_IT * best.median() && default.at(0.1) > best.at(0.9);
            if default.fault.is_some()
                || (is_faster && self.is_no_loss(&mut rec, &todo.other, default, best)?)
            {
                chosen = best;
            }
        }
        rec.set_tuning(None);

        let us = |c: &Candidate| Some(c.median()).filter(|_| right(&c));
        let (least_us, by_memory) = self.limits.least_us(todo.long.cost.flops, todo.long.cost.bytes);
        let row = TuneRow {
            operation: todo.product.operation.into(),
            shape: todo.long.shape.clone(),
            dtype: todo.product.dtype.to_string(),
            is_prompt: todo.product.is_prompt,
            n_rows: todo.long.n_rows,
            default: default.name.into(),
            chosen: chosen.name.into(),
            default_us: us(default),
            chosen_us: us(chosen),
            percent: us(chosen).map(|us| least_us / us * 100.0),
            limit: if by_memory { "memory" } else { "arithmetic" }.into(),
            candidates: candidates
                .iter()
                .map(|c| TuneCandidate {
                    variant: c.name.into(),
                    us: us(c),
                    us_low: c.at(0.1),
                    us_high: c.at(0.9),
                    n_samples: c.us.len(),
                    fault: c.fault.clone(),
                })
                .collect(),
        };
        let choice = (chosen.name != default.name).then_some(chosen.name);
        Ok((row, choice))
    }

    /// Those of `names` that dispatch other kernels than the ones before, compiled and checked.
    fn candidates(
        &mut self,
        rec: &mut Recorder,
        product: Product,
        names: &[&'static str],
        prepared: &Prepared,
    ) -> Result<Vec<Candidate>, BenchError> {
        let mut seen: Vec<Vec<Variant>> = Vec::new();
        let mut candidates = Vec::new();
        for name in names {
            let mut tuning = Tuning::default();
            tuning.set(product, Some(name));
            let tuning = Arc::new(tuning);
            rec.set_tuning(Some(tuning.clone()));
            let variants = rec.variants(|rec| prepared.launch(rec, 0));
            if seen.contains(&variants) {
                continue;
            }
            let fault = match self.gpu.compile(&variants) {
                Ok(()) => {
                    let error = prepared.error(self.gpu, rec, self.options.perturbation)?;
                    (error > 1.0).then(|| format!("wrong by {error:.1} times rounding"))
                }
                // Others may compile.
                Err(error @ GpuError::Compile { .. }) => Some(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            seen.push(variants);
            candidates.push(Candidate {
                name,
                tuning,
                n_runs: 1,
                us: Vec::new(),
                is_out: fault.is_some(),
                fault,
            });
        }
        Ok(candidates)
    }

    /// Samples in rounds, each candidate in turn, so that other load on the machine affects all of them equally.
    fn race(
        &mut self,
        rec: &mut Recorder,
        prepared: &Prepared,
        case: &Case,
        candidates: &mut [Candidate],
    ) -> Result<(), BenchError> {
        let begin = Instant::now();
        let least_us = self.least_us(case);
        let sample_ms = self.options.budget.as_secs_f64() * 1e3 / 16.0 / candidates.len().max(1) as f64;
        let launch = |rec: &mut Recorder, i: usize| prepared.launch(rec, i);
        for c in candidates.iter_mut().filter(|c| !c.is_out) {
            rec.set_tuning(Some(c.tuning.clone()));
            // The first run warms caches and clocks; the second gives the number of runs per sample.
            self.timer.time(rec, &launch, 1)?;
            let ms = self.timer.time(rec, &launch, 1)?;
            c.n_runs = (sample_ms / ms.max(1e-4)).clamp(1.0, 1024.0) as usize;
            c.us.push(ms * 1e3);
        }
        let first =
            candidates.iter().filter(|c| !c.is_out).map(Candidate::median).fold(f64::INFINITY, f64::min);
        for c in candidates.iter_mut().filter(|c| !c.is_out) {
            c.is_out = c.median() > 2.0 * HOPELESS * first;
        }
        // The default stays to the end, because others are compared with it.
        candidates[0].is_out = candidates[0].fault.is_some();
        for c in candidates.iter_mut().filter(|c| !c.is_out) {
            c.us.clear();
        }
        for round in 1.. {
            for c in candidates.iter_mut().filter(|c| !c.is_out) {
                rec.set_tuning(Some(c.tuning.clone()));
                c.us.push(self.timer.time(rec, &launch, c.n_runs)? * 1e3 / c.n_runs as f64);
            }
            let racing = || candidates.iter().filter(|c| !c.is_out);
            let best = racing().map(Candidate::median).fold(f64::INFINITY, f64::min);
            let is_over = begin.elapsed() >= self.options.budget || racing().count() == 0;
            if round >= LEAST_ROUNDS && (is_over || least_us >= NEAR_THE_LIMIT * best) {
                break;
            }
            for c in candidates.iter_mut().skip(1).filter(|c| !c.is_out) {
                c.is_out = round >= 2 && c.median() > HOPELESS * best;
            }
        }
        Ok(())
    }

    /// Whether `best` is right and not slower than the default with the other number of rows.
    fn is_no_loss(
        &mut self,
        rec: &mut Recorder,
        case: &Case,
        default: &Candidate,
        best: &Candidate,
    ) -> Result<bool, BenchError> {
        let prepared = case.prepare(&mut self.pool)?;
        let again = |c: &Candidate| Candidate {
            name: c.name,
            tuning: c.tuning.clone(),
            n_runs: 1,
            us: Vec::new(),
            fault: None,
            is_out: false,
        };
        let mut two = [again(default), again(best)];
        for c in &two {
            rec.set_tuning(Some(c.tuning.clone()));
            rec.rehearse(|rec| prepared.launch(rec, 0))?;
        }
        // The tuning of the last one, which is `best`, is still set.
        if prepared.error(self.gpu, rec, self.options.perturbation)? > 1.0 {
            return Ok(false);
        }
        self.race(rec, &prepared, case, &mut two)?;
        Ok(two[1].median() < WORTH_IT * two[0].median())
    }
}
