//! The trials of the self-test: a variant that needs optional capabilities runs on small odd inputs, and so does the
//! portable variant of the same operation, from the same inputs on the same device. Their outputs may differ by
//! rounding.
//!
//! A trial knows nothing of what is right: it compares. [`TRIALS`] has an entry for every kernel whose variant depends on
//! what a driver may compute wrongly (subgroups, cooperative matrices).

mod attention;
mod compare;
mod products;
mod rows;
mod vocabulary;

use std::collections::BTreeSet;

use super::{
    Attention, PRODUCTS, attention as attend, attention_weights, embed, fill_normal, gate_up, head_norm,
    layer_norm, linear, qkv, quantize, rms_norm, sample, softmax, speech_rules, token_logprob, top_k,
};
use crate::dtype::{Dtype, SUPERBLOCK};
use crate::gpu::{Gpu, GpuError, Kernel, Portable, Recorder, Tensor, Variant};
pub(crate) use compare::Verdict;
use compare::{Tolerance, compare};

/// Allocates a trial's inputs and outputs, and returns how the operation is launched so that the variant runs.
type Make = fn(&mut Setup<'_>, &Variant) -> Result<Launch, GpuError>;
type Launch = Box<dyn Fn(&mut Recorder) + Send + Sync>;

/// Kernels with variants that need optional capabilities, and the operation that runs portable variants if one of them
/// is wrong. The three operations with weights are one: their parts are the same.
static TRIALS: &[(&Kernel, &str, Make)] = &[
    (&linear::LINEAR, PRODUCTS, products::linear),
    (&linear::LINEAR_COOP, PRODUCTS, products::linear),
    (&gate_up::GATE_UP, PRODUCTS, products::gate_up),
    (&qkv::QKV, PRODUCTS, products::qkv),
    (&attend::ATTENTION_REG, Attention::OPERATION, attention::attention),
    (&attend::ATTENTION_ROW, Attention::OPERATION, attention::attention),
    (&attend::ATTENTION_COOP, Attention::OPERATION, attention::attention),
    (&attention_weights::ATTENTION_WEIGHTS, attention_weights::ATTENTION_WEIGHTS.name, attention::weights),
    (&embed::EMBED, embed::EMBED.name, rows::embed),
    (&rms_norm::RMS_NORM, rms_norm::RMS_NORM.name, rows::rms_norm),
    (&layer_norm::LAYER_NORM, layer_norm::LAYER_NORM.name, rows::layer_norm),
    (&head_norm::HEAD_NORM, head_norm::HEAD_NORM.name, rows::head_norm),
    (&softmax::SOFTMAX, softmax::SOFTMAX.name, vocabulary::softmax),
    (&sample::SAMPLE, sample::SAMPLE.name, vocabulary::sample),
    (&top_k::TOP_K, top_k::TOP_K.name, vocabulary::top_k),
    (&token_logprob::TOKEN_LOGPROB, token_logprob::TOKEN_LOGPROB.name, vocabulary::token_logprob),
    (&speech_rules::SPEECH_RULES, speech_rules::SPEECH_RULES.name, vocabulary::speech_rules),
];

/// The operations that can be told to run portable variants.
pub(crate) fn operations() -> Vec<&'static str> {
    TRIALS.iter().map(|(_, operation, _)| *operation).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The operation that can run portable variants instead of a variant.
pub(crate) fn operation_of(variant: &Variant) -> Option<&'static str> {
    TRIALS.iter().find(|(kernel, ..)| kernel.name == variant.kernel.name).map(|(_, operation, _)| *operation)
}

/// One variant with small inputs of its own.
pub(crate) struct Trial {
    /// The operation.
    pub operation: &'static str,
    /// The variant that is tried.
    pub variant: Variant,
    fills: Vec<Fill>,
    outputs: Vec<Output>,
    launch: Launch,
    tolerance: Tolerance,
}

/// How an input gets its values, on the device.
enum Fill {
    Normal { to: Tensor, seed: u32, mean: f32, scale: f32 },
    Quantize { from: Tensor, to: Tensor },
}

/// A tensor that the operation writes, and where the first run's values are kept.
struct Output {
    tensor: Tensor,
    kept: Tensor,
    start: Start,
}

/// The content of an output before each run.
enum Start {
    Zero,
    Normal(u32),
    Copy(Tensor),
}

impl Trial {
    /// A trial of `variant`. `None` if none is known for its kernel.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn of(gpu: &Gpu, variant: &Variant) -> Result<Option<Trial>, GpuError> {
        let Some((_, operation, make)) = TRIALS.iter().find(|(k, ..)| k.name == variant.kernel.name) else {
            return Ok(None);
        };
        // Tiles in cooperative matrices are F16.
        let is_f16 = variant.parts().any(|part| part.enables.contains(&"f16"));
        let mut setup =
            Setup { gpu, fills: Vec::new(), outputs: Vec::new(), tolerance: Tolerance::new(1, 1.0), seed: 0 };
        let launch = make(&mut setup, variant)?;
        let Setup { fills, outputs, tolerance, .. } = setup;
        let tolerance = if is_f16 { tolerance.of_f16() } else { tolerance };
        Ok(Some(Trial { operation, variant: *variant, fills, outputs, launch, tolerance }))
    }

    /// Bytes of [`Trial::sources`].
    pub fn n_bytes(&self) -> u64 {
        self.outputs.iter().map(|output| 2 * output.tensor.size_bytes()).sum()
    }

    /// Records the variant, then the portable one. The recorder's portable operations change.
    pub fn record(&self, rec: &mut Recorder) {
        for fill in &self.fills {
            match fill {
                Fill::Normal { to, seed, mean, scale } => {
                    fill_normal::fill_normal(rec, to, *seed, *mean, *scale)
                }
                Fill::Quantize { from, to } => quantize::quantize(rec, from, to, 0, to.n_rows()),
            }
        }
        for is_portable in [false, true] {
            let operations = if is_portable { vec![self.operation] } else { Vec::new() };
            rec.set_portable(Portable::These(operations));
            for Output { tensor, start, .. } in &self.outputs {
                match start {
                    Start::Zero => rec.clear(tensor, 0, tensor.size_bytes()),
                    Start::Normal(seed) => fill_normal::fill_normal(rec, tensor, *seed, 0.0, 1.0),
                    Start::Copy(from) => rec.copy(from, 0, tensor, 0, tensor.size_bytes()),
                }
            }
            (self.launch)(rec);
            for Output { tensor, kept, .. } in self.outputs.iter().filter(|_| !is_portable) {
                rec.copy(tensor, 0, kept, 0, tensor.size_bytes());
            }
        }
    }

    /// Whether what the trial records has the variant in it.
    pub fn runs_its_variant(&self, rec: &mut Recorder) -> bool {
        rec.set_portable(Portable::default());
        rec.variants(|rec| (self.launch)(rec)).contains(&self.variant)
    }

    /// What to read back after it has run: byte ranges `(tensor, offset, bytes)`.
    pub fn sources(&self) -> Vec<(&Tensor, u64, u64)> {
        let both = self.outputs.iter().flat_map(|output| [&output.kept, &output.tensor]);
        both.map(|tensor| (tensor, 0, tensor.size_bytes())).collect()
    }

    /// Compares the bytes of [`Trial::sources`].
    pub fn judge(&self, mut bytes: &[u8]) -> Verdict {
        let mut verdicts = Vec::new();
        for Output { tensor, .. } in &self.outputs {
            let n = tensor.size_bytes() as usize;
            let (got, rest) = bytes.split_at(n);
            let (want, rest) = rest.split_at(n);
            bytes = rest;
            verdicts.push(compare(self.tolerance, tensor.dtype(), got, want));
        }
        Verdict::worst(verdicts)
    }
}

/// What a trial allocates. Values are random but the same on every run.
struct Setup<'a> {
    gpu: &'a Gpu,
    fills: Vec<Fill>,
    outputs: Vec<Output>,
    tolerance: Tolerance,
    seed: u32,
}

impl Setup<'_> {
    fn seed(&mut self) -> u32 {
        self.seed += 1;
        self.seed
    }

    /// Approximately normal values.
    fn normal(&mut self, shape: [usize; 2], dtype: Dtype, mean: f32, scale: f32) -> Result<Tensor, GpuError> {
        let to = Tensor::zeros(self.gpu, "self-test", shape, dtype)?;
        let seed = self.seed();
        self.fills.push(Fill::Normal { to: to.clone(), seed, mean, scale });
        Ok(to)
    }

    /// Activations `[n_rows, n_cols]`, F32.
    fn activations(&mut self, shape: [usize; 2]) -> Result<Tensor, GpuError> {
        self.normal(shape, Dtype::F32, 0.0, 1.0)
    }

    /// Weights around 1 of a norm, `[1, n]` F32.
    fn norm(&mut self, n: usize) -> Result<Tensor, GpuError> {
        self.normal([1, n], Dtype::F32, 1.0, 0.3)
    }

    /// A matrix of any type.
    fn weights(&mut self, shape: [usize; 2], dtype: Dtype) -> Result<Tensor, GpuError> {
        let scale = (shape[1] as f32).powf(-0.5);
        if !dtype.is_quantised() {
            return self.normal(shape, dtype, 0.0, scale);
        }
        let to = Tensor::zeros(self.gpu, "self-test", shape, dtype)?;
        if !Dtype::QUANTISED.contains(&dtype) {
            super::random_blocks(self.gpu, &to, self.seed(), scale);
            return Ok(to);
        }
        let from = self.normal(shape, Dtype::F16, 0.0, scale)?;
        self.fills.push(Fill::Quantize { from, to: to.clone() });
        Ok(to)
    }

    /// A table of integers.
    fn table(&self, shape: [usize; 2], data: &[u32]) -> Result<Tensor, GpuError> {
        Tensor::from_u32(self.gpu, "self-test", shape, data)
    }

    fn output(&mut self, tensor: Tensor, start: Start) -> Result<Tensor, GpuError> {
        let shape = [tensor.n_rows(), tensor.n_cols()];
        let kept = Tensor::zeros(self.gpu, "self-test", shape, tensor.dtype())?;
        self.outputs.push(Output { tensor: tensor.clone(), kept, start });
        Ok(tensor)
    }

    /// An output `[n_rows, n_cols]` F32 that begins with random values, so that it shows what adds to it and what leaves
    /// it as it is.
    fn results(&mut self, shape: [usize; 2]) -> Result<Tensor, GpuError> {
        let tensor = Tensor::zeros(self.gpu, "self-test", shape, Dtype::F32)?;
        let seed = self.seed();
        self.output(tensor, Start::Normal(seed))
    }

    /// An output that begins with zeros.
    fn zeros(&mut self, shape: [usize; 2], dtype: Dtype) -> Result<Tensor, GpuError> {
        let tensor = Tensor::zeros(self.gpu, "self-test", shape, dtype)?;
        self.output(tensor, Start::Zero)
    }

    /// A table of integers that the operation changes.
    fn changed(&mut self, shape: [usize; 2], data: &[u32]) -> Result<Tensor, GpuError> {
        let (start, tensor) = (self.table(shape, data)?, self.table(shape, data)?);
        self.output(tensor, Start::Copy(start))
    }
}

/// The type of a variant's weights.
fn weights_dtype(variant: &Variant) -> Dtype {
    let dtype = Dtype::WEIGHTS.into_iter().find(|dtype| variant.has(super::weights(*dtype)));
    dtype.expect("a kernel with weights has a part for their type")
}

/// An odd number of inputs; for a type whose padding would not be zero, one without padding.
fn odd_width(dtype: Dtype) -> usize {
    let pads_with_zero = !dtype.is_quantised() || matches!(dtype, Dtype::Q8_0 | Dtype::Q4_0);
    if pads_with_zero { 203 } else { SUPERBLOCK }
}

/// Whether an override of a variant is set.
fn is_set(variant: &Variant, name: &str) -> bool {
    variant.value(name).is_some_and(|value| value != 0)
}
