//! The times of a model's kernels: known from an earlier run, or measured now.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::BenchError;
use super::super::cases::{Case, MOST_DECODE, Pool, Workload, attention, products};
use super::super::shapes::Shape;
use super::super::stats::{quantile, sorted};
use super::Estimator;
use crate::dtype::Dtype;
use crate::gpu::{Product, Recorder, Rehearsal, fnv};
use crate::ops::Attention;

/// Times as long as a kernel is timed, work before the first one is.
const WARM_UP: u32 = 4;
/// Kernels of products, which the engine names with their shapes.
const PRODUCTS: [&str; 5] = ["linear", "linear_tile", "linear_coop", "qkv", "gate_up"];
/// Contexts at which attention of decode rows is timed: within a split, at the length of one, and of several.
const CONTEXTS: [usize; 3] = [128, 512, 2048];
/// Rows of prompts at which attention is timed.
const PROMPTS: [usize; 2] = [128, 512];
/// Rows of prompts at which products are timed: those of a whole step.
const PROMPT_ROWS: usize = 256;

/// The time of an operation, and the kernels that it dispatches.
struct Time {
    us: f64,
    kernels: Vec<&'static str>,
}

/// The times of one model's kernels.
pub(super) struct Timed<'a, 'g, 'p> {
    pub all: &'a mut Estimator<'g>,
    pub shape: Shape,
    pub kv_dtype: Dtype,
    pub budget: Duration,
    pub progress: &'p mut dyn FnMut(&str),
}

impl Timed<'_, '_, '_> {
    /// Microseconds of a step without its attention, which depends on positions. `n_rows` is the number of its rows.
    pub fn us(&mut self, step: &Rehearsal, n_rows: usize) -> Result<f64, BenchError> {
        let mut kernels = BTreeMap::<&str, usize>::new();
        step.kernels.iter().for_each(|kernel| *kernels.entry(kernel).or_default() += 1);
        let mut products = BTreeMap::<(Product, usize), usize>::new();
        step.products.iter().for_each(|product| *products.entry(*product).or_default() += 1);
        let mut us = 0.0;
        for ((product, n_rows), n) in products {
            let time = self.product(&product, n_rows)?;
            us += n as f64 * time.us;
            for kernel in time.kernels {
                kernels.entry(kernel).and_modify(|left| *left = left.saturating_sub(n));
            }
        }
        for (kernel, n) in kernels {
            let is_summed = PRODUCTS.contains(&kernel) || kernel.starts_with(Attention::OPERATION);
            if n > 0 && !is_summed {
                us += n as f64 * self.other(kernel, n_rows)?;
            }
        }
        Ok(us)
    }

    /// The time of a product with weights.
    fn product(&mut self, product: &Product, n_rows: usize) -> Result<Time, BenchError> {
        let cuts = self.all.cuts;
        let n_timed = match product.is_prompt {
            true => PROMPT_ROWS,
            false => n_rows.min(MOST_DECODE),
        };
        let work = self.work(n_timed, product.dtype);
        let (case, share) =
            products::of_step(&work, product, cuts.most_weights[usize::from(product.is_prompt)]);
        let Time { us, kernels } = self.time(&case)?;
        Ok(Time { us: us * share * n_rows as f64 / n_timed as f64, kernels })
    }

    /// Microseconds of another kernel over `n_rows` rows.
    fn other(&mut self, kernel: &str, n_rows: usize) -> Result<f64, BenchError> {
        let mut shape = self.shape.clone();
        if kernel == "embed" {
            shape.model.vocab_size = shape.model.vocab_size.min(self.all.cuts.n_embeddings);
        }
        let timed = |n_rows| {
            // The type is that of the cache, for the kernel that appends to it; to others it makes no difference.
            let work = Workload { shape: &shape, ..self.work(n_rows, self.kv_dtype) };
            let mut cases = work.cases_of(kernel);
            // The engine's default draws from all tokens.
            let plain = cases.iter().position(|case| case.shape.ends_with(" plain")).unwrap_or(0);
            (plain < cases.len()).then(|| cases.swap_remove(plain))
        };
        match timed(n_rows).map(|case| (case, 1.0)).or_else(|| Some((timed(1)?, n_rows as f64))) {
            Some((case, share)) => Ok(share * self.time(&case)?.us),
            // No case of its own: a dispatch that does little.
            None => match if self.shape.model.has_layer_norm { "layer_norm" } else { "rms_norm" } {
                norm if norm != kernel => self.other(norm, 1),
                _ => Ok(0.0),
            },
        }
    }

    /// Microseconds of the attention of a step whose `n_seqs` sequences have `n_positions` positions each, of all layers.
    pub fn decode_attention_us(&mut self, n_seqs: usize, n_positions: usize) -> Result<f64, BenchError> {
        let n_timed = n_seqs.min(MOST_DECODE);
        let mut us = 0.0;
        for (attention, n_layers) in self.attentions() {
            let mut points = Vec::new();
            for context in CONTEXTS {
                let work = self.work(n_timed, Dtype::F32);
                let case = attention::of_step(&work, attention, context, self.kv_dtype);
                if !points.is_empty() && case.cost.bytes > self.all.cuts.rotate_bytes as f64 {
                    break;
                }
                points.push((context as f64, self.time(&case)?.us));
            }
            // Beyond a window nothing is read.
            let [.., last] = CONTEXTS;
            let n_seen = n_positions.min(attention.window.unwrap_or(usize::MAX).max(last));
            us += n_layers as f64 * along(&points, n_seen as f64);
        }
        Ok(us * n_seqs as f64 / n_timed as f64)
    }

    /// Microseconds of the attention over a prompt of one sequence, of all layers.
    pub fn prompt_attention_us(&mut self, n_prompt: usize) -> Result<f64, BenchError> {
        let mut us = 0.0;
        for (attention, n_layers) in self.attentions() {
            let n_seen = |n: usize| -> f64 {
                let window = attention.window.unwrap_or(usize::MAX);
                (1..=n).map(|seen| seen.min(window)).sum::<usize>() as f64
            };
            let mut times = [0.0; 2];
            for (time, n_rows) in times.iter_mut().zip(PROMPTS) {
                let work = self.work(n_rows, Dtype::F32);
                *time = self.time(&attention::of_step(&work, attention, n_rows, self.kv_dtype))?.us;
            }
            // A row costs something, and each key that it sees.
            let [few, many] = PROMPTS.map(|n| [n as f64, n_seen(n)]);
            let determinant = few[0] * many[1] - many[0] * few[1];
            // A window of one key makes both the same.
            let a_row = match determinant > 0.0 {
                true => ((times[0] * many[1] - times[1] * few[1]) / determinant).max(0.0),
                false => 0.0,
            };
            let a_key = ((times[1] - a_row * many[0]) / many[1]).max(0.0);
            us += n_layers as f64 * (a_row * n_prompt as f64 + a_key * n_seen(n_prompt));
        }
        Ok(us)
    }

    /// The different attentions of the layers, each with the number of its layers.
    fn attentions(&self) -> Vec<(Attention, usize)> {
        let mut all: Vec<(Attention, usize)> = Vec::new();
        for attention in &self.shape.model.attention {
            match all.iter_mut().find(|(known, _)| known == attention) {
                Some((_, n)) => *n += 1,
                None => all.push((*attention, 1)),
            }
        }
        all
    }

    fn work(&self, n_rows: usize, dtype: Dtype) -> Workload<'_> {
        let (caps, rotate_bytes) = (self.all.gpu.caps(), self.all.cuts.rotate_bytes);
        Workload { caps, shape: &self.shape, n_rows, dtype, is_first_dtype: true, rotate_bytes }
    }

    /// The time of a case, measured if it is not known.
    fn time(&mut self, case: &Case) -> Result<Time, BenchError> {
        let gpu = self.all.gpu;
        let plan = gpu.plan();
        let planned = case.prepare(&mut Pool::new(&plan, 0))?;
        let Rehearsal { variants, kernels, .. } =
            Recorder::new(&plan)?.rehearsal(|rec| planned.launch(rec, 0));
        // Another choice of variants has times of its own.
        let labels = variants.iter().map(|variant| variant.label()).collect::<Vec<_>>().join("\n");
        let what = format!("{}{} {} {} rows", case.kernel, case.shape, case.dtype, case.n_rows);
        let name = format!("{what}, {:016x}", fnv(0, labels.as_bytes()));
        if let Some(us) = self.all.measured.get(&name) {
            return Ok(Time { us, kernels });
        }
        (self.progress)(&what);
        let prepared = case.prepare(&mut self.all.pool)?;
        let mut rec = Recorder::new(gpu)?;
        rec.rehearse(|rec| prepared.launch(rec, 0))?;
        let launch = |rec: &mut Recorder, i: usize| prepared.launch(rec, i);
        if !std::mem::replace(&mut self.all.is_warm, true) {
            // A device raises its clocks, and the system moves a software device's threads apart, only after a while of
            // work: on llvmpipe the first kernel took twice as long in two of three runs.
            self.all.timer.samples(&mut rec, &launch, WARM_UP * self.budget)?;
        }
        let samples = self.all.timer.samples(&mut rec, &launch, self.budget)?;
        Ok(Time { us: self.keep(name, quantile(&samples, 0.5)), kernels })
    }

    /// Microseconds that a submission takes beside its work.
    pub fn submission_us(&mut self) -> Result<f64, BenchError> {
        const NAME: &str = "submission";
        if let Some(us) = self.all.measured.get(NAME) {
            return Ok(us);
        }
        (self.progress)(NAME);
        let gpu = self.all.gpu;
        let word = gpu.dummy()?;
        let mut rec = Recorder::new(gpu)?;
        let mut samples = Vec::new();
        let begin = Instant::now();
        while samples.len() < 3 || begin.elapsed() < self.budget {
            rec.clear(&word, 0, word.size_bytes());
            let commands = rec.finish()?;
            let begin = Instant::now();
            gpu.submit(commands)?;
            gpu.wait()?;
            samples.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        Ok(self.keep(NAME.into(), quantile(&sorted(samples), 0.5)))
    }

    /// Keeps a time, which no clock is so fine that it is 0.
    fn keep(&mut self, name: String, us: f64) -> f64 {
        let us = us.max(1e-3);
        self.all.measured.set(name, us);
        self.all.n_measured += 1;
        us
    }
}

/// The value at `x` of straight lines through `points`, the last of which goes on.
fn along(points: &[(f64, f64)], x: f64) -> f64 {
    let Some(&(first_x, first)) = points.first() else { return 0.0 };
    if points.len() == 1 {
        return first * x / first_x;
    }
    let pair = points.windows(2).find(|pair| x <= pair[1].0).unwrap_or(&points[points.len() - 2..]);
    let slope = ((pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0)).max(0.0);
    (pair[0].1 + slope * (x - pair[0].0)).max(first * 0.1)
}
