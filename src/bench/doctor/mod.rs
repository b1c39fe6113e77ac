//! Checks every kernel variant that a device can run against the reference: what a bug report needs to hold.

mod families;
mod report;

use std::collections::HashSet;
use std::sync::Arc;

use super::cases::{Case, MOST_DECODE, Pool, Prepared, Workload, helpers, operations};
use super::shapes::Shape;
use super::{BenchError, BenchProgress, Meta};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Gpu, GpuError, Recorder, Tuning, Variant};
use crate::ops;

pub use report::{DoctorDevice, DoctorReport, DoctorRow, Verdict};

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct DoctorOptions {
    /// Models to check at their own shapes, each with the types of its matrices.
    pub models: Vec<(Shape, Vec<Dtype>)>,
    /// Words that a case's label must contain. Default: all cases.
    pub filter: Option<String>,
    /// Added to one output of each case before the check, in units of the tolerance, to test that the check notices it.
    pub perturbation: f64,
}

/// Capabilities to switch off, by their names in [`DISABLE_ENV`](crate::gpu::DISABLE_ENV), so that variants run that
/// the device's own do not choose. The first takes what the device would run.
const DEVICES: [&str; 7] =
    ["", "subgroups", "limits", "cooperative-matrices", "int64", "software", "software,subgroups"];

/// Small models in odd shapes. Each has what the ones before it lack, and its own rows and types.
const ODD: &[Odd] = &[
    Odd {
        name: "odd llama",
        config: r#"{"model_type": "llama", "hidden_size": 99, "intermediate_size": 173, "num_hidden_layers": 1,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "vocab_size": 1009,
            "max_position_embeddings": 1100, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
        operations: &[
            "embed",
            "rms_norm",
            "layer_norm",
            "linear",
            "qkv",
            "gate_up",
            "rope_append",
            "attention",
            "gate",
            "pool",
            "softcap",
            "softmax",
            "token_logprob",
            "top_k",
            "penalize",
            "sample",
            "fill_normal",
            "quantize",
            "count_prompt",
            "probe_copy",
            "probe_fma",
            "probe_subgroups",
            "probe_coop",
        ],
        dtypes: &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K],
        n_rows: &[1, 2, 3, 7, 13, 37, 133],
    },
    // The types that weights only have as a file stores them: an odd number of blocks, and more than a superblock.
    Odd {
        name: "odd blocks",
        config: r#"{"model_type": "llama", "hidden_size": 99, "intermediate_size": 333, "num_hidden_layers": 1,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "vocab_size": 211,
            "max_position_embeddings": 1100, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
        operations: &["embed", "linear", "qkv", "gate_up"],
        dtypes: &[
            Dtype::Q4_1,
            Dtype::Q5_0,
            Dtype::Q5_1,
            Dtype::Q2_K,
            Dtype::Q3_K,
            Dtype::Q5_K,
            Dtype::Q6_K,
            Dtype::IQ4_NL,
            Dtype::IQ4_XS,
            Dtype::MXFP4,
        ],
        n_rows: &[1, 2, 3, 7, 37],
    },
    // Norms of heads, heads of whole blocks for a Q8_0 cache, one key-value head, more than 16,384 tokens.
    Odd {
        name: "odd qwen3",
        config: r#"{"model_type": "qwen3", "hidden_size": 77, "intermediate_size": 45, "num_hidden_layers": 1,
            "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 16411,
            "max_position_embeddings": 600, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}"#,
        operations: &["head_norm", "rope_append", "attention", "softmax", "token_logprob", "top_k", "sample"],
        dtypes: &[Dtype::F32, Dtype::F16, Dtype::Q8_0],
        n_rows: &[3, 37],
    },
    // Experts: more than one lane of a router has, not all of them chosen, few rows each and many.
    Odd {
        name: "odd experts",
        config: r#"{"model_type": "qwen3_moe", "hidden_size": 77, "moe_intermediate_size": 51, "num_hidden_layers": 1,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20, "vocab_size": 211, "num_experts": 67,
            "num_experts_per_tok": 3, "max_position_embeddings": 600}"#,
        operations: &["route", "group", "combine", "linear"],
        dtypes: &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K],
        n_rows: &[1, 3, 29, 133],
    },
    // And the types that weights only have as a file stores them.
    Odd {
        name: "odd experts blocks",
        config: r#"{"model_type": "qwen3_moe", "hidden_size": 77, "moe_intermediate_size": 256, "num_hidden_layers": 1,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20, "vocab_size": 211, "num_experts": 5,
            "num_experts_per_tok": 2, "max_position_embeddings": 600}"#,
        operations: &["linear"],
        dtypes: &[
            Dtype::Q4_1,
            Dtype::Q5_0,
            Dtype::Q5_1,
            Dtype::Q2_K,
            Dtype::Q3_K,
            Dtype::Q5_K,
            Dtype::Q6_K,
            Dtype::IQ4_NL,
            Dtype::IQ4_XS,
            Dtype::MXFP4,
        ],
        n_rows: &[1, 37],
    },
    // Layer norms, no gate.
    Odd {
        name: "odd gpt2",
        config: r#"{"model_type": "gpt2", "n_embd": 60, "n_layer": 1, "n_head": 3, "n_positions": 70, "n_inner": 91,
            "vocab_size": 523, "layer_norm_epsilon": 1e-5}"#,
        operations: &["layer_norm", "gate"],
        dtypes: &[Dtype::F32],
        n_rows: &[3, 37],
    },
    // Attention to both sides.
    Odd {
        name: "odd whisper",
        config: r#"{"model_type": "whisper", "vocab_size": 213, "num_mel_bins": 20, "d_model": 36,
            "encoder_layers": 1, "encoder_attention_heads": 3, "encoder_ffn_dim": 50, "decoder_layers": 1,
            "decoder_attention_heads": 3, "decoder_ffn_dim": 50, "max_source_positions": 75,
            "max_target_positions": 90}"#,
        operations: &["unfold", "attention", "attention_weights", "speech_rules"],
        dtypes: &[Dtype::F32, Dtype::F16],
        n_rows: &[3, 37],
    },
    // And heads of whole blocks, over more keys than one split has anywhere.
    Odd {
        name: "odd whisper blocks",
        config: r#"{"model_type": "whisper", "vocab_size": 213, "num_mel_bins": 20, "d_model": 96,
            "encoder_layers": 1, "encoder_attention_heads": 3, "encoder_ffn_dim": 50, "decoder_layers": 1,
            "decoder_attention_heads": 3, "decoder_ffn_dim": 50, "max_source_positions": 601,
            "max_target_positions": 90}"#,
        operations: &["attention", "attention_weights"],
        dtypes: &[Dtype::F32, Dtype::F16, Dtype::Q8_0],
        n_rows: &[3, 37],
    },
];

/// A model in an odd shape, and what is checked at it.
struct Odd {
    name: &'static str,
    config: &'static str,
    operations: &'static [&'static str],
    dtypes: &'static [Dtype],
    n_rows: &'static [usize],
}

/// Rows at the shapes of models that somebody names: a few that decode, and a prompt.
const MODEL_ROWS: [usize; 4] = [1, 3, 13, 67];

/// Context of attention in bytes of keys and values: long enough for several splits.
const CONTEXT_BYTES: u64 = 32 << 20;

/// Runs every kernel variant that the device can run, and compares what it computes with the reference. `command` goes
/// into the report. A fault of a kernel or of the driver is a row of the report, not an error; if the device is lost,
/// nothing more is run on it.
///
/// # Errors
/// [`BenchError::NoKernel`], [`BenchError::Parameter`]; [`BenchError::Gpu`] if the device is the host's.
pub fn doctor(
    gpu: &Gpu,
    options: &DoctorOptions,
    command: String,
    progress: &mut dyn FnMut(BenchProgress<'_>),
) -> Result<DoctorReport, BenchError> {
    if !options.perturbation.is_finite() {
        let found = options.perturbation.to_string();
        return Err(BenchError::Parameter { name: "perturbation", found, expected: "a number" });
    }
    gpu.check_owned()?;
    let work = Work::list(options)?;
    let mut patient = Patient { perturbation: options.perturbation, ..Patient::default() };
    let all = devices(gpu.caps());
    let count = |caps: &Caps| work.iter().map(|work| work.cases(caps).len()).sum::<usize>();
    let n_total = all.iter().map(count).sum();
    if n_total == 0 {
        let known = [operations(), helpers()].concat();
        return Err(BenchError::no_kernel(options.filter.as_deref(), &known));
    }
    let report = DoctorReport::new(Meta::new(gpu, command), DoctorDevice::new(gpu));
    for (i, caps) in all.iter().enumerate() {
        let gpu = gpu.with_caps(caps.clone());
        patient.chooses = i == 0;
        let mut pool = Pool::thorough(&gpu, CONTEXT_BYTES);
        for case in work.iter().flat_map(|work| work.cases(gpu.caps())) {
            let label = case.label();
            progress(BenchProgress { n_done: patient.n_done, n_total, next: &label });
            patient.n_done += 1;
            if gpu.check_alive().is_ok() {
                patient.examine(&mut pool, &case, &label)?;
            }
        }
    }
    let operations: HashSet<&str> =
        work.iter().flat_map(|work| work.cases(gpu.caps())).map(|case| case.kernel).collect();
    Ok(report.with_rows(patient.rows, &operations, &all))
}

/// The variants that [`doctor`] would run on a device with `caps`, each once. Any device will do as `gpu`: nothing is
/// allocated, compiled or run.
///
/// # Errors
/// As [`doctor`], except for what only an allocation can show.
pub fn doctor_variants(gpu: &Gpu, options: &DoctorOptions, caps: &Caps) -> Result<Vec<Variant>, BenchError> {
    let work = Work::list(options)?;
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for caps in devices(caps) {
        let plan = gpu.plan_for(caps);
        let mut pool = Pool::thorough(&plan, CONTEXT_BYTES);
        let mut rec = Recorder::new(&plan)?;
        for case in work.iter().flat_map(|work| work.cases(plan.caps())) {
            let prepared = case.prepare(&mut pool)?;
            for tuning in tunings(plan.caps(), &case) {
                rec.set_tuning(tuning);
                let variants = rec.variants(|rec| prepared.launch(rec, 0));
                rec.finish()?;
                rec.reset_params();
                all.extend(variants.into_iter().filter(|variant| seen.insert(*variant)));
            }
        }
    }
    Ok(all)
}

/// The sets of capabilities that differ.
fn devices(caps: &Caps) -> Vec<Caps> {
    let mut all: Vec<Caps> = Vec::new();
    for names in DEVICES {
        let mut less = caps.clone();
        less.disable(names).expect("known names");
        if !all.contains(&less) {
            all.push(less);
        }
    }
    all
}

/// What decides among the ways of a case: the device, and each measurement that there could be.
fn tunings(caps: &Caps, case: &Case) -> Vec<Option<Arc<Tuning>>> {
    let is_open = ops::tunable().operations.contains(&case.kernel) && case.variant.is_none();
    let ways = if is_open { ops::product_variants(caps, case.n_rows > MOST_DECODE) } else { Vec::new() };
    std::iter::once(None).chain(ways.into_iter().map(|way| Some(Arc::new(Tuning::same(way))))).collect()
}

/// A model, and what is checked at it.
struct Work {
    shape: Shape,
    operations: Option<&'static [&'static str]>,
    dtypes: Vec<Dtype>,
    n_rows: Vec<usize>,
    words: Vec<String>,
}

impl Work {
    fn list(options: &DoctorOptions) -> Result<Vec<Work>, BenchError> {
        let filter = options.filter.as_deref().unwrap_or_default().to_lowercase();
        let words: Vec<String> = filter.split_whitespace().map(str::to_string).collect();
        let odd = ODD.iter().map(|odd| {
            Ok(Work {
                shape: Shape::of_config(odd.name, odd.config)?,
                operations: Some(odd.operations),
                dtypes: odd.dtypes.to_vec(),
                n_rows: odd.n_rows.to_vec(),
                words: words.clone(),
            })
        });
        let models = options.models.iter().map(|(shape, dtypes)| {
            Ok(Work {
                shape: shape.clone(),
                operations: None,
                dtypes: dtypes.clone(),
                n_rows: MODEL_ROWS.to_vec(),
                words: words.clone(),
            })
        });
        odd.chain(models).collect()
    }

    /// The cases for a device with `caps`.
    fn cases(&self, caps: &Caps) -> Vec<Case> {
        let mut cases = Vec::new();
        for (i, dtype) in self.dtypes.iter().enumerate() {
            for n_rows in &self.n_rows {
                let work = Workload {
                    caps,
                    shape: &self.shape,
                    n_rows: *n_rows,
                    dtype: *dtype,
                    is_first_dtype: i == 0,
                    rotate_bytes: CONTEXT_BYTES,
                };
                cases.extend(work.cases());
                cases.extend(work.helper_cases());
                // At an odd shape, because there are many.
                if self.operations.is_some() {
                    cases.extend(work.switched_cases());
                }
            }
        }
        cases.retain(|case| {
            // The matrices of a layer have the same variants: at an odd shape, one of them will do.
            let is_wanted = self.operations.is_none_or(|known| {
                known.contains(&case.kernel) && (case.kernel != "linear" || case.shape.contains(" down "))
            });
            let label = case.label().to_lowercase();
            is_wanted && self.words.iter().all(|word| label.contains(word))
        });
        cases
    }
}

/// What was found so far.
#[derive(Default)]
struct Patient {
    rows: Vec<DoctorRow>,
    /// Cases with variants that were run already: other capabilities often choose the same ones.
    done: HashSet<(String, Vec<String>)>,
    perturbation: f64,
    /// Whether the capabilities are the device's own: what runs now would be chosen.
    chooses: bool,
    n_done: usize,
}

impl Patient {
    /// Runs one case, and notes what came of it under each of its variants.
    ///
    /// # Errors
    /// Errors of the library's own making: a tensor that is too large.
    fn examine(&mut self, pool: &mut Pool<'_>, case: &Case, label: &str) -> Result<(), BenchError> {
        let gpu = pool.gpu().clone();
        let prepared = match case.prepare(pool) {
            Ok(prepared) => prepared,
            // At the shapes of a large model. Others are checked.
            Err(GpuError::TooLarge { .. } | GpuError::OutOfMemory { .. }) => return Ok(()),
            Err(GpuError::Compile { kernel, message }) => {
                self.row(&kernel, &kernel, Dtype::F32, self.chooses).does_not_compile(&message);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut rec = Recorder::new(&gpu)?;
        for tuning in tunings(gpu.caps(), case) {
            let chooses = self.chooses && tuning.is_none();
            rec.set_tuning(tuning);
            self.examine_way(&mut rec, case, &prepared, label, chooses);
        }
        Ok(())
    }

    /// Runs a case as `rec` decides.
    fn examine_way(
        &mut self,
        rec: &mut Recorder,
        case: &Case,
        prepared: &Prepared,
        label: &str,
        chooses: bool,
    ) {
        let gpu = rec.gpu().clone();
        let variants = rec.variants(|rec| prepared.launch(rec, 0));
        let default = prepared.default_variants(rec);
        let chosen =
            |variant: &Variant| chooses && default.as_ref().is_none_or(|default| default.contains(variant));
        let chosen: Vec<bool> = variants.iter().map(chosen).collect();
        let labels: Vec<String> = variants.iter().map(Variant::label).collect();
        if !self.done.insert((label.to_string(), labels.clone())) {
            return;
        }
        let mut compiles = true;
        for (variant, chosen) in variants.iter().zip(&chosen) {
            if let Err(error) = gpu.compile(std::slice::from_ref(variant)) {
                let message = match error {
                    GpuError::Compile { message, .. } => message,
                    other => other.to_string(),
                };
                compiles = false;
                self.variant(variant, case.dtype, *chosen).does_not_compile(&message);
            }
        }
        if !compiles {
            return;
        }
        let found = prepared.worst(&gpu, rec, self.perturbation);
        for (variant, chosen) in variants.iter().zip(&chosen) {
            let others: Vec<&str> =
                labels.iter().map(String::as_str).filter(|other| *other != variant.label()).collect();
            let row = self.variant(variant, case.dtype, *chosen);
            match &found {
                Ok(worst) => row.checked(worst, label, &others),
                Err(error) => row.failed(&error.to_string(), label, &others),
            }
        }
    }

    fn variant(&mut self, variant: &Variant, dtype: Dtype, chosen: bool) -> &mut DoctorRow {
        let (label, family) = (variant.label(), families::family(variant));
        let row = self.row(&label, variant.kernel.name, dtype, chosen);
        row.family = family;
        row
    }

    fn row(&mut self, label: &str, kernel: &str, dtype: Dtype, chosen: bool) -> &mut DoctorRow {
        let at = match self.rows.iter().position(|row| row.variant == label) {
            Some(at) => at,
            None => {
                self.rows.push(DoctorRow::new(kernel, label));
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[at];
        row.is_chosen |= chosen;
        let dtype = dtype.to_string();
        if !row.dtypes.contains(&dtype) {
            row.dtypes.push(dtype);
        }
        row
    }
}
