//! Layer 2: one file per operation, with its kernels' declarations, the choice of variant and the launch function.
//!
//! A launch function asserts the shapes, because a mismatch is a bug of the library, and records dispatches.
//! Activations are `F32`, with rows padded with zeros to [`ROW_ALIGN`](crate::gpu::ROW_ALIGN) elements. The order of a
//! row's sums depends on the device (and what was measured on it), on the weights' shape and type, and on the kind of
//! the row (decode or prompt), but never on the number of rows. So a row's result is the same in every batch.

mod attention;
mod attention_weights;
mod count_prompt;
mod embed;
mod experts;
mod fill_normal;
mod gate;
mod gate_up;
mod head_norm;
mod kv;
mod layer_norm;
mod linear;
mod penalize;
mod pool;
mod probe_copy;
mod probe_fma;
mod qkv;
mod quantize;
mod random_blocks;
mod rms_norm;
mod rope_append;
mod rows;
mod sample;
pub(crate) mod self_test;
mod softcap;
mod softmax;
mod speech_rules;
mod token_logprob;
mod top_k;
mod unfold;

use std::sync::LazyLock;

pub use attention::{Attention, AttentionPlan};
pub use attention_weights::{HeadWeights, attention_weights};
pub use count_prompt::count_prompt;
pub use embed::{Embed, Lookup, embed};
pub use experts::{
    ExpertInput, ExpertProduct, MOST_CHOSEN, MOST_EXPERTS, Routed, Routes, Scoring, combine, expert_linear,
    group, route,
};
pub use fill_normal::{fill_normal, fill_normal_rows};
pub use gate::{Act, gate};
pub use gate_up::gate_up;
pub use head_norm::{HeadNorm, head_norm};
pub use kv::KvLayer;
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{LinearVariant, linear, linear_variants};
pub use penalize::penalize;
pub use pool::{Pooling, pool};
pub use probe_copy::probe_copy;
pub use probe_fma::probe_fma;
pub use qkv::{Qkv, qkv};
pub use quantize::quantize;
pub use random_blocks::random_blocks;
pub use rms_norm::{RmsNorm, rms_norm};
pub use rope_append::{Places, RopeAppend, Rotary, Temperature, rope_append};
pub use rows::{Affine, Input, Rows};
pub use sample::{Draws, NOT_A_TOKEN, SamplingRecord, sample};
pub use softcap::softcap;
pub use softmax::softmax;
pub use speech_rules::{SpeechRecord, speech_rules};
pub use token_logprob::token_logprob;
pub use top_k::top_k;
pub use unfold::unfold;

use crate::dtype::Dtype;
use crate::gpu::{
    COOP_8, COOP_16, Caps, Gpu, Kernel, PROBE_COOP, PROBE_SUBGROUPS, Part, Recorder, Tensor, Tunable, Tuning,
    Variant, coop, fnv,
};
use kv::{append, kv, kv_words, pair};
use rows::{SHARES, Span, Way, most_shared, n_blocks, words};

/// Every kernel of the crate.
pub static KERNELS: &[&Kernel] = &[
    &attention::ATTENTION,
    &attention::ATTENTION_REG,
    &attention::ATTENTION_ROW,
    &attention::ATTENTION_COOP,
    &attention::ATTENTION_COMBINE,
    &attention_weights::ATTENTION_WEIGHTS,
    &count_prompt::COUNT_PROMPT,
    &embed::EMBED,
    &experts::COMBINE,
    &experts::GROUP,
    &experts::ROUTE,
    &fill_normal::FILL_NORMAL,
    &gate::GATE,
    &gate_up::GATE_UP,
    &head_norm::HEAD_NORM,
    &layer_norm::LAYER_NORM,
    &linear::LINEAR,
    &linear::LINEAR_COOP,
    &linear::LINEAR_TILE,
    &penalize::PENALIZE,
    &pool::POOL,
    &PROBE_COOP,
    &probe_copy::PROBE_COPY,
    &probe_fma::PROBE_FMA,
    &PROBE_SUBGROUPS,
    &qkv::QKV,
    &quantize::QUANTIZE,
    &rms_norm::RMS_NORM,
    &rope_append::ROPE_APPEND,
    &sample::SAMPLE,
    &softcap::SOFTCAP,
    &softmax::SOFTMAX,
    &speech_rules::SPEECH_RULES,
    &token_logprob::TOKEN_LOGPROB,
    &top_k::TOP_K,
    &unfold::UNFOLD,
];

/// The operations whose variants measurements may choose, the variants, and a hash of their shaders.
pub fn tunable() -> &'static Tunable {
    static TUNABLE: LazyLock<Tunable> = LazyLock::new(|| {
        let kernels = KERNELS.iter().map(|kernel| kernel.source);
        let parts = PARTS.iter().flat_map(|parts| parts.iter()).map(|part| part.source);
        Tunable {
            operations: &["linear", "gate_up", "qkv"],
            variants: &Way::NAMES,
            shaders: kernels.chain(parts).fold(0, |hash, source| fnv(hash, source.as_bytes())),
        }
    });
    &TUNABLE
}

/// The kept choices of variants for this device.
fn tuning(gpu: &Gpu) -> &Tuning {
    gpu.tuning(tunable())
}

/// The names of the variants that measurements may choose for products of decode rows or of prompt rows, the default
/// first.
pub fn product_variants(caps: &Caps, is_prompt: bool) -> Vec<&'static str> {
    Way::open(caps, is_prompt).into_iter().map(Way::name).collect()
}

/// Every part, grouped by the kernels that need one of the group: a test assembles each kernel with them.
pub static PARTS: &[&[&Part]] = &[
    &[&WORDS_32, &WORDS_64],
    &[&INPUTS_32, &INPUTS_64],
    &[
        &WEIGHTS_F32,
        &WEIGHTS_F16,
        &WEIGHTS_BF16,
        &WEIGHTS_Q8_0,
        &WEIGHTS_Q4_0,
        &WEIGHTS_Q4_1,
        &WEIGHTS_Q5_0,
        &WEIGHTS_Q5_1,
        &WEIGHTS_Q2_K,
        &WEIGHTS_Q3_K,
        &WEIGHTS_Q4_K,
        &WEIGHTS_Q5_K,
        &WEIGHTS_Q6_K,
        &WEIGHTS_IQ4_NL,
        &WEIGHTS_IQ4_XS,
        &WEIGHTS_MXFP4,
    ],
    &[&KV_F32, &KV_F32_64, &KV_F16, &KV_F16_64, &KV_Q8_0],
    // As words.
    &[&KV_F32, &KV_F16, &KV_F16_WIDE, &KV_Q8_0],
    &[&APPEND_F32, &APPEND_F16, &APPEND_Q8_0],
    &[&PAIR_F32, &PAIR_F16],
    &[&QUANTIZE_Q8_0, &QUANTIZE_Q4_0, &QUANTIZE_Q4_K],
    &[&ROWS_FEW, &ROWS_REG],
    &[&SHARE_1, &SHARE_2, &SHARE_4, &SHARE_8],
    // Products have a pipeline for each number of rows: see `reduce_workgroup`.
    &[&REDUCE_WORKGROUP, &REDUCE_SUBGROUP],
    &[&REDUCE_WORKGROUP, &REDUCE_SUBGROUP, &REDUCE_ANY],
    &[&SAMPLING],
    &[&SELECT],
    &[&EXP_SUM],
    &[&PRODUCT],
    &[&ACT],
    &[&COOP_8, &COOP_16],
    &[&VISIBLE],
];

macro_rules! part {
    ($name:ident, $file:literal) => {
        static $name: Part = Part {
            name: $file,
            source: include_str!(concat!("../../shaders/parts/", $file, ".wgsl")),
            enables: &[],
        };
    };
}
part!(WORDS_32, "words_32");
part!(WORDS_64, "words_64");
part!(INPUTS_32, "inputs_32");
part!(INPUTS_64, "inputs_64");
part!(WEIGHTS_F32, "weights_f32");
part!(WEIGHTS_F16, "weights_f16");
part!(WEIGHTS_BF16, "weights_bf16");
part!(WEIGHTS_Q8_0, "weights_q8_0");
part!(WEIGHTS_Q4_0, "weights_q4_0");
part!(WEIGHTS_Q4_1, "weights_q4_1");
part!(WEIGHTS_Q5_0, "weights_q5_0");
part!(WEIGHTS_Q5_1, "weights_q5_1");
part!(WEIGHTS_Q2_K, "weights_q2_k");
part!(WEIGHTS_Q3_K, "weights_q3_k");
part!(WEIGHTS_Q4_K, "weights_q4_k");
part!(WEIGHTS_Q5_K, "weights_q5_k");
part!(WEIGHTS_Q6_K, "weights_q6_k");
part!(WEIGHTS_IQ4_NL, "weights_iq4_nl");
part!(WEIGHTS_IQ4_XS, "weights_iq4_xs");
part!(WEIGHTS_MXFP4, "weights_mxfp4");
part!(KV_F32, "kv_f32");
part!(KV_F16, "kv_f16");
part!(KV_F16_64, "kv_f16_64");
part!(KV_F32_64, "kv_f32_64");
part!(KV_F16_WIDE, "kv_f16_wide");
part!(KV_Q8_0, "kv_q8_0");
part!(APPEND_F32, "append_f32");
part!(APPEND_F16, "append_f16");
part!(APPEND_Q8_0, "append_q8_0");
part!(PAIR_F32, "pair_f32");
part!(PAIR_F16, "pair_f16");
part!(QUANTIZE_Q8_0, "quantize_q8_0");
part!(QUANTIZE_Q4_0, "quantize_q4_0");
part!(QUANTIZE_Q4_K, "quantize_q4_k");
part!(ROWS_FEW, "rows_few");
part!(ROWS_REG, "rows_reg");
part!(SHARE_1, "share_1");
part!(SHARE_2, "share_2");
part!(SHARE_4, "share_4");
part!(SHARE_8, "share_8");
part!(REDUCE_WORKGROUP, "reduce_workgroup");
part!(REDUCE_SUBGROUP, "reduce_subgroup");
part!(REDUCE_ANY, "reduce_any");
part!(SAMPLING, "sampling");
part!(SELECT, "select");
part!(EXP_SUM, "exp_sum");
part!(PRODUCT, "product");
part!(ACT, "act");
part!(VISIBLE, "visible");

/// Declares a kernel from its file: name, params struct, access of its bindings (`Records` with the struct that the
/// host writes), and `proven` if no index can be out of bounds, for a reason that the comment above gives.
macro_rules! kernel {
    ($name:ident, $file:literal, $params:ty, $bindings:tt) => {
        kernel!($name, $file, $params, $bindings, false);
    };
    ($name:ident, $file:literal, $params:ty, $bindings:tt, proven) => {
        kernel!($name, $file, $params, $bindings, true);
    };
    ($name:ident, $file:literal, $params:ty, [$($access:ident $(($record:ty))?),* $(,)?], $proven:literal) => {
        pub(super) static $name: $crate::gpu::Kernel = $crate::gpu::Kernel {
            name: $file,
            source: include_str!(concat!("../../shaders/", $file, ".wgsl")),
            params: &<$params>::FIELDS,
            bindings: &[$($crate::gpu::Access::$access $((&<$record>::FIELDS))?),*],
            proven: $proven,
        };
    };
}
use kernel;

/// The operation that the products with weights are together when they are told to run portable variants: they share
/// their parts.
const PRODUCTS: &str = "product";

/// Lanes per workgroup if no width of subgroups is certain: the widest common subgroup.
const PORTABLE_LANES: u32 = 64;

/// Whether loads of 64-bit words are the fastest: on software devices. Old versions of llvmpipe load each component of each
/// lane on its own, in about the same time whatever its size.
fn loads_64_bits(caps: &Caps) -> bool {
    caps.cpu && caps.int64
}

/// The part that loads the words of weights.
fn words_part(caps: &Caps) -> &'static Part {
    if loads_64_bits(caps) { &WORDS_64 } else { &WORDS_32 }
}

/// The part that loads the inputs of a product.
fn inputs_part(caps: &Caps) -> &'static Part {
    if loads_64_bits(caps) { &INPUTS_64 } else { &INPUTS_32 }
}

/// The part that unpacks weights of `dtype`.
fn weights(dtype: Dtype) -> &'static Part {
    match dtype {
        Dtype::F32 => &WEIGHTS_F32,
        Dtype::F16 => &WEIGHTS_F16,
        Dtype::BF16 => &WEIGHTS_BF16,
        Dtype::Q8_0 => &WEIGHTS_Q8_0,
        Dtype::Q4_0 => &WEIGHTS_Q4_0,
        Dtype::Q4_1 => &WEIGHTS_Q4_1,
        Dtype::Q5_0 => &WEIGHTS_Q5_0,
        Dtype::Q5_1 => &WEIGHTS_Q5_1,
        Dtype::Q2_K => &WEIGHTS_Q2_K,
        Dtype::Q3_K => &WEIGHTS_Q3_K,
        Dtype::Q4_K => &WEIGHTS_Q4_K,
        Dtype::Q5_K => &WEIGHTS_Q5_K,
        Dtype::Q6_K => &WEIGHTS_Q6_K,
        Dtype::IQ4_NL => &WEIGHTS_IQ4_NL,
        Dtype::IQ4_XS => &WEIGHTS_IQ4_XS,
        Dtype::MXFP4 => &WEIGHTS_MXFP4,
        Dtype::U32 => unreachable!("u32 tables are not weights"),
    }
}

/// The variant for weights of type `dtype` instead of another quantised type. `None` if it reads none of that, or if more
/// rows share a read than a device with `caps` lets share weights of that type.
pub fn with_weights(variant: &Variant, dtype: Dtype, caps: &Caps) -> Option<Variant> {
    let n_shared = SHARES.iter().position(|share| variant.has(share)).map_or(1, |log| 1 << log);
    if n_shared > most_shared(caps, dtype) {
        return None;
    }
    let others = Dtype::WEIGHTS.into_iter().filter(|dtype| dtype.is_quantised());
    let other = others.map(weights).find(|part| variant.has(part))?;
    let part = |part: &'static Part| if part.name == other.name { weights(dtype) } else { part };
    let same = variant.parts().fold(Variant::new(variant.kernel), |same, known| same.part(part(known)));
    Some(variant.overrides().fold(same, |same, (name, value)| same.set(name, value)))
}

/// The part that quantises to `dtype`.
fn quantizer(dtype: Dtype) -> &'static Part {
    match dtype {
        Dtype::Q8_0 => &QUANTIZE_Q8_0,
        Dtype::Q4_0 => &QUANTIZE_Q4_0,
        Dtype::Q4_K => &QUANTIZE_Q4_K,
        other => unreachable!("the device does not quantise to {other}"),
    }
}

/// A variant whose lanes reduce values: over one subgroup if its width is certain, else over a workgroup of subgroups of
/// any width, or through workgroup memory.
fn folding(kernel: &'static Kernel, rec: &Recorder) -> Variant {
    let caps = rec.caps(kernel.name);
    match caps.one_subgroup() {
        Some(width) => Variant::new(kernel).part(&REDUCE_SUBGROUP).set("WG", width),
        None if caps.any_subgroups() => Variant::new(kernel).part(&REDUCE_ANY).set("WG", PORTABLE_LANES),
        None => Variant::new(kernel).part(&REDUCE_WORKGROUP).set("WG", PORTABLE_LANES),
    }
}

/// Lanes of a workgroup that goes through a vocabulary, if the device has as many: a row has only one workgroup, whose
/// loads must hide each other's latency. More would not leave each enough registers on GCN.
const MOST_LANES: u32 = 512;

/// A variant that goes through a vocabulary of `n` several times in one workgroup. On software devices, where barriers cost
/// more than lanes gain, the workgroup is one subgroup; but not for large vocabularies, because llvmpipe ends an invocation's
/// loops after 65,535 iterations in total. A draw takes one for sixteen tokens, six times, and at worst one more for each of
/// them in five of these passes.
fn vocabulary(kernel: &'static Kernel, rec: &Recorder, n: usize) -> Variant {
    let caps = rec.caps(kernel.name);
    match caps.one_subgroup() {
        Some(width) if caps.cpu && n <= 11_000 * width as usize => {
            Variant::new(kernel).part(&REDUCE_SUBGROUP).set("WG", width)
        }
        _ if caps.any_subgroups() && !caps.cpu => {
            // A power of two, as the parts want it.
            let lanes = 1 << caps.max_workgroup_size.min(MOST_LANES).ilog2();
            Variant::new(kernel).part(&REDUCE_ANY).set("WG", lanes)
        }
        _ => Variant::new(kernel).part(&REDUCE_WORKGROUP).set("WG", 256),
    }
}

fn assert_rows(what: &str, tensor: &Tensor, n_rows: usize) {
    assert!(tensor.n_rows() >= n_rows, "{what}: {tensor:?} has fewer than {n_rows} rows");
}
