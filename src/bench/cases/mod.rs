//! The measured cases: every operation of a forward pass.
//!
//! An operation is one entry of [`OPERATIONS`]: a function that lists its cases for a model, a number of rows and a
//! weight type. A case knows its cost without the device. Preparing it allocates buffers, and gives functions that
//! record one run, reset its inputs, and compare its outputs with the reference.

pub(super) mod attention;
mod experts;
mod helpers;
pub(super) mod products;
mod rows;
mod speech;
mod vocabulary;

use std::collections::HashMap;

use super::check::{Check, Worst};
use super::reference as exact;
use super::shapes::Shape;
use super::timer::Launch;
use crate::dtype::Dtype;
use crate::gpu::{Caps, Gpu, GpuError, Recorder, Tensor, Variant};
use crate::models::ModelShape;
use crate::ops::Rows;

/// Most decode rows: more rows are a prompt's.
pub(super) const MOST_DECODE: usize = 32;

/// Lists an operation's cases.
type List = fn(&Workload<'_>) -> Vec<Case>;

/// Every operation, by name.
const OPERATIONS: &[(&str, List)] = &[
    ("unfold", speech::unfold),
    ("embed", rows::embed),
    ("rms_norm", rows::rms_norm),
    ("layer_norm", rows::layer_norm),
    ("linear", products::linear),
    ("qkv", products::qkv),
    ("gate_up", products::gate_up),
    ("head_norm", rows::head_norm),
    ("rope_append", attention::rope_append),
    ("attention", attention::attention),
    ("attention_weights", speech::attention_weights),
    ("gate", rows::gate),
    ("route", experts::route),
    ("group", experts::group),
    ("combine", experts::combine),
    ("pool", rows::pool),
    ("softcap", vocabulary::softcap),
    ("softmax", vocabulary::softmax),
    ("token_logprob", vocabulary::token_logprob),
    ("top_k", vocabulary::top_k),
    ("penalize", vocabulary::penalize),
    ("speech_rules", speech::speech_rules),
    ("sample", vocabulary::sample),
];

/// Kernels that no forward pass runs, by name: checked, but not measured.
const HELPERS: &[(&str, List)] = &[
    ("fill_normal", helpers::fill_normal),
    ("quantize", helpers::quantize),
    ("count_prompt", helpers::count_prompt),
    ("probe_copy", helpers::probe_copy),
    ("probe_fma", helpers::probe_fma),
    ("probe_subgroups", helpers::probe_subgroups),
    ("probe_coop", helpers::probe_coop),
];

/// Operations with switches that the measured cases leave alone, which change what a kernel computes but little of what it
/// costs: checked, but not measured.
const SWITCHED: &[List] = &[
    rows::embed_switched,
    rows::rms_norm_switched,
    rows::layer_norm_switched,
    rows::head_norm_switched,
    products::linear_switched,
    products::qkv_switched,
    products::gate_up_switched,
    attention::rope_append_switched,
    attention::attention_switched,
    rows::gate_switched,
    experts::route_switched,
    experts::products_switched,
    rows::pool_switched,
    vocabulary::softcap_switched,
    vocabulary::softmax_switched,
];

/// The names of the kernels that no forward pass runs.
pub(super) fn helpers() -> Vec<&'static str> {
    HELPERS.iter().map(|(name, _)| *name).collect()
}

/// The names of all operations.
pub fn operations() -> Vec<&'static str> {
    OPERATIONS.iter().map(|(name, _)| *name).collect()
}

/// A model, number of rows and type to list cases for.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The device's capabilities, which decide the variants.
    pub caps: &'a Caps,
    /// The model.
    pub shape: &'a Shape,
    /// Rows of the batch: up to 32 are decode rows, more are prompt rows.
    pub n_rows: usize,
    /// Type of weights, and of the cache if it can have that type.
    pub dtype: Dtype,
    /// Whether this is the first type. Operations without weights are measured only with it.
    pub is_first_dtype: bool,
    /// Size in bytes that the copies of weights and caches exceed together.
    pub rotate_bytes: u64,
}

impl Workload<'_> {
    /// Every case of every operation.
    pub fn cases(&self) -> Vec<Case> {
        OPERATIONS.iter().flat_map(|(_, list)| list(self)).collect()
    }

    /// The cases of an operation.
    pub(super) fn cases_of(&self, operation: &str) -> Vec<Case> {
        let list = OPERATIONS.iter().find(|(name, _)| *name == operation);
        list.map(|(_, list)| list(self)).unwrap_or_default()
    }

    /// Every case of the kernels that no forward pass runs.
    pub(super) fn helper_cases(&self) -> Vec<Case> {
        HELPERS.iter().flat_map(|(_, list)| list(self)).collect()
    }

    /// Every case with other switches than the measured ones.
    pub(super) fn switched_cases(&self) -> Vec<Case> {
        SWITCHED.iter().flat_map(|list| list(self)).collect()
    }

    fn model(&self) -> &ModelShape {
        &self.shape.model
    }

    fn rows(&self) -> Rows {
        rows_of(self.n_rows)
    }

    /// The case of an operation without weights, measured once.
    fn once(&self, case: Case) -> Vec<Case> {
        if self.is_first_dtype { vec![case] } else { Vec::new() }
    }

    fn case(
        &self,
        kernel: &'static str,
        what: String,
        dtype: Dtype,
        cost: Cost,
        prepare: impl Fn(&mut Pool<'_>) -> Result<Prepared, GpuError> + 'static,
    ) -> Case {
        Case {
            kernel,
            variant: None,
            shape: format!("{} {what}", self.shape.name),
            dtype,
            n_rows: self.n_rows,
            cost,
            prepare: Box::new(prepare),
        }
    }
}

fn rows_of(n_rows: usize) -> Rows {
    if n_rows <= MOST_DECODE {
        Rows { n_decode: n_rows, n_prompt: 0 }
    } else {
        Rows { n_decode: 0, n_prompt: n_rows }
    }
}

/// The least work of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Additions and multiplications.
    pub flops: f64,
    /// Bytes, if everything is read and written once.
    pub bytes: f64,
}

type Prepare = dyn Fn(&mut Pool<'_>) -> Result<Prepared, GpuError>;

/// One case to measure.
pub struct Case {
    /// The operation.
    pub kernel: &'static str,
    /// The variant, if the operation lets the caller choose one.
    pub variant: Option<String>,
    /// The model, and its part.
    pub shape: String,
    /// Type of weights or cache; F32 if there are only activations.
    pub dtype: Dtype,
    /// Rows of the batch.
    pub n_rows: usize,
    /// The work of a run.
    pub cost: Cost,
    prepare: Box<Prepare>,
}

impl Case {
    /// Allocates and fills the buffers of a run.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], [`GpuError::TooLarge`], [`GpuError::Compile`].
    pub fn prepare(&self, pool: &mut Pool<'_>) -> Result<Prepared, GpuError> {
        (self.prepare)(pool)
    }

    /// The label that a filter searches.
    pub fn label(&self) -> String {
        let variant = self.variant.as_deref().unwrap_or("");
        format!("{} {variant} {} {} {} rows", self.kernel, self.shape, self.dtype, self.n_rows)
    }
}

type Reset = dyn Fn(&mut Recorder);
type Verify = dyn Fn(&Gpu) -> Result<Check, GpuError>;

/// A case with its buffers.
pub struct Prepared {
    launch: Box<Launch<'static>>,
    reset: Box<Reset>,
    verify: Box<Verify>,
    /// The operation as a model records it, if the case forces a variant.
    default: Option<Box<Launch<'static>>>,
}

impl Prepared {
    fn new(
        launch: impl Fn(&mut Recorder, usize) + 'static,
        verify: impl Fn(&Gpu) -> Result<Check, GpuError> + 'static,
    ) -> Prepared {
        Prepared {
            launch: Box::new(launch),
            reset: Box::new(|_| {}),
            verify: Box::new(verify),
            default: None,
        }
    }

    /// Sets what a model records instead.
    fn with_default(self, default: impl Fn(&mut Recorder, usize) + 'static) -> Prepared {
        Prepared { default: Some(Box::new(default)), ..self }
    }

    /// The variants that a model runs by default, if the case forces one.
    pub fn default_variants(&self, rec: &mut Recorder) -> Option<Vec<Variant>> {
        self.default.as_ref().map(|launch| rec.variants(|rec| launch(rec, 0)))
    }

    /// Sets a function that resets, before the checked run, what runs change.
    fn reset(self, reset: impl Fn(&mut Recorder) + 'static) -> Prepared {
        Prepared { reset: Box::new(reset), ..self }
    }

    /// Records run number `i`. Consecutive runs use other copies of the weights.
    pub fn launch(&self, rec: &mut Recorder, i: usize) {
        (self.launch)(rec, i);
    }

    /// Runs once from fresh inputs and compares a sample of the outputs with the reference. Returns the largest error
    /// in units of the tolerance: above 1 the kernel is wrong.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn error(&self, gpu: &Gpu, rec: &mut Recorder, perturbation: f64) -> Result<f64, GpuError> {
        Ok(self.worst(gpu, rec, perturbation)?.error)
    }

    /// As [`Prepared::error`], with the value that has the largest error.
    pub(super) fn worst(&self, gpu: &Gpu, rec: &mut Recorder, perturbation: f64) -> Result<Worst, GpuError> {
        // Kernels on cooperative matrices, whose parts enable f16, round their factors.
        let variants = rec.variants(|rec| self.launch(rec, 0));
        let takes_f16 = variants.iter().flat_map(|v| v.parts()).any(|part| part.enables.contains(&"f16"));
        (self.reset)(rec);
        self.launch(rec, 0);
        gpu.submit(rec.finish()?)?;
        gpu.wait()?;
        let check = (self.verify)(gpu)?;
        let check = if takes_f16 { check.of_f16_inputs() } else { check };
        Ok(check.worst(perturbation))
    }
}

/// Random tensors, kept from one case to the next because most of them share weights.
pub struct Pool<'a> {
    gpu: &'a Gpu,
    rotate_bytes: u64,
    kept: HashMap<(usize, usize, Dtype, u32), Tensor>,
    kept_bytes: u64,
    most_copies: u64,
    /// Chooses the values of `0..n` that are compared with the reference, about `most` of them.
    some: fn(usize, usize) -> Vec<usize>,
}

/// Most copies. With so many small ones, a cache does not matter.
const MOST_COPIES: u64 = 64;

impl<'a> Pool<'a> {
    /// An empty pool. Copies of weights exceed `rotate_bytes` together.
    pub fn new(gpu: &'a Gpu, rotate_bytes: u64) -> Pool<'a> {
        let kept = HashMap::new();
        Pool { gpu, rotate_bytes, kept, kept_bytes: 0, most_copies: MOST_COPIES, some }
    }

    /// A pool of one copy each, for cases that are only checked, and more thoroughly.
    pub fn thorough(gpu: &'a Gpu, rotate_bytes: u64) -> Pool<'a> {
        Pool { most_copies: 1, some: |n, most| some(n, 4 * most), ..Pool::new(gpu, rotate_bytes) }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// The number of copies of a tensor of `bytes`.
    fn n_copies(&self, bytes: u64) -> usize {
        self.rotate_bytes.div_ceil(bytes.max(1)).clamp(1, self.most_copies) as usize
    }

    /// Approximately normal weights with standard deviation `scale`, in as many copies as exceed the cache. Reuses kept
    /// tensors, because nothing writes to weights.
    fn weights(&mut self, shape: [usize; 2], dtype: Dtype, scale: f32) -> Result<Vec<Tensor>, GpuError> {
        let n = self.n_copies((shape[0] * dtype.bytes(shape[1])) as u64);
        // Drops kept tensors that are probably not used again.
        if !self.kept.contains_key(&(shape[0], shape[1], dtype, 0)) && self.kept_bytes > 2 * self.rotate_bytes
        {
            self.kept.clear();
            self.kept_bytes = 0;
        }
        let mut copies = Vec::with_capacity(n);
        for seed in 0..n as u32 {
            let key = (shape[0], shape[1], dtype, seed);
            if let Some(tensor) = self.kept.get(&key) {
                copies.push(tensor.clone());
                continue;
            }
            let tensor = self.draw("weights", shape, dtype, seed, 0.0, scale)?;
            self.kept_bytes += tensor.size_bytes();
            self.kept.insert(key, tensor.clone());
            copies.push(tensor);
        }
        Ok(copies)
    }

    /// A new tensor with random values.
    fn draw(
        &self,
        label: &str,
        shape: [usize; 2],
        dtype: Dtype,
        seed: u32,
        mean: f32,
        scale: f32,
    ) -> Result<Tensor, GpuError> {
        self.drawn(Tensor::weights(self.gpu, label, shape, dtype)?, seed, mean, scale)
    }

    /// A new tensor, with random values.
    fn drawn(&self, tensor: Tensor, seed: u32, mean: f32, scale: f32) -> Result<Tensor, GpuError> {
        let (dtype, n_cols) = (tensor.dtype(), tensor.n_cols());
        if !dtype.is_quantised() {
            self.fill(&tensor, seed, mean, scale)?;
            return Ok(tensor);
        }
        // In a plan, there is nothing to fill.
        if self.gpu.is_plan() {
            return Ok(tensor);
        }
        let mut rec = Recorder::new(self.gpu)?;
        if !Dtype::QUANTISED.contains(&dtype) {
            crate::ops::random_blocks(self.gpu, &tensor, seed, scale);
            // The driver keeps a copy of what is written until the next submission.
            self.gpu.submit(rec.finish()?)?;
            return Ok(tensor);
        }
        for (i, view) in tensor.ranges().enumerate() {
            let source = Tensor::weights(self.gpu, "weights", [view.rows.len(), n_cols], Dtype::F16)?;
            crate::ops::fill_normal(&mut rec, &source, seed + i as u32, mean, scale);
            crate::ops::quantize(&mut rec, &source, &tensor, view.rows.start, view.rows.len());
            self.gpu.submit(rec.finish()?)?;
        }
        Ok(tensor)
    }

    /// Fills a tensor that is not quantised with approximately normal values.
    fn fill(&self, tensor: &Tensor, seed: u32, mean: f32, scale: f32) -> Result<(), GpuError> {
        if self.gpu.is_plan() {
            return Ok(());
        }
        let mut rec = Recorder::new(self.gpu)?;
        crate::ops::fill_normal(&mut rec, tensor, seed, mean, scale);
        self.gpu.submit(rec.finish()?)?;
        Ok(())
    }

    /// Approximately normal activations.
    fn activations(&self, label: &str, shape: [usize; 2], seed: u32) -> Result<Tensor, GpuError> {
        self.draw(label, shape, Dtype::F32, seed, 0.0, 1.0)
    }

    /// A tensor for outputs.
    fn output(&self, shape: [usize; 2]) -> Result<Tensor, GpuError> {
        Tensor::zeros(self.gpu, "output", shape, Dtype::F32)
    }

    /// A table of integers.
    fn table(&self, label: &str, shape: [usize; 2], data: &[u32]) -> Result<Tensor, GpuError> {
        Tensor::from_u32(self.gpu, label, shape, data)
    }
}

/// Clears an output.
fn clear(rec: &mut Recorder, output: &Tensor) {
    rec.clear(output, 0, output.size_bytes());
}

/// Up to `most` of `0..n`, the first and the last among them.
fn some(n: usize, most: usize) -> Vec<usize> {
    let most = most.min(n);
    (0..most).map(|i| if most == 1 { n - 1 } else { i * (n - 1) / (most - 1) }).collect()
}

/// Integers that look random: the multiples of a large prime.
fn scattered(i: usize, n: usize) -> u32 {
    ((i as u64 * 2_654_435_761) % n.max(1) as u64) as u32
}

/// The values of one row of a tensor of any type.
fn values(gpu: &Gpu, tensor: &Tensor, row: usize) -> Result<Vec<f64>, GpuError> {
    let mut values = padded_values(gpu, tensor, row)?;
    values.truncate(tensor.n_cols());
    Ok(values)
}

/// The values of one row of a tensor of any type, and of its padding.
fn padded_values(gpu: &Gpu, tensor: &Tensor, row: usize) -> Result<Vec<f64>, GpuError> {
    let words = gpu.read_row(tensor, row)?;
    Ok(match tensor.dtype() {
        Dtype::F16 => bytemuck::cast_slice::<_, half::f16>(&words).iter().map(|h| h.to_f64()).collect(),
        Dtype::BF16 => bytemuck::cast_slice::<_, half::bf16>(&words).iter().map(|h| h.to_f64()).collect(),
        Dtype::F32 => bytemuck::cast_slice::<_, f32>(&words).iter().map(|f| f64::from(*f)).collect(),
        Dtype::U32 => words.iter().map(|w| f64::from(*w)).collect(),
        _ => {
            let decoded =
                exact::quant::decode(tensor.dtype().name(), bytemuck::cast_slice(&words), tensor.stride());
            decoded.into_iter().map(f64::from).collect()
        }
    })
}
