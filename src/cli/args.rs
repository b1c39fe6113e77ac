//! Arguments that several commands share: the model, the device, the types.

use std::ffi::OsString;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use wginfer::dtype::Dtype;

/// The model.
#[derive(Clone, clap::Args)]
pub struct ModelArg {
    /// A `.gguf` file, a folder in Hugging Face layout, or a name on the hub: `owner/name`, `owner/name:Q4_K_M`. Default:
    /// the demonstration model in the binary
    // Text of the system, not a path, so that an empty variable counts as none.
    #[arg(long, short, env = "WGINFER_MODEL", value_name = "MODEL", help_heading = "Model and device")]
    pub model: Option<OsString>,
}

/// The device, and the options of the engine on it.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Quantise matrices to this type while loading, unless they are quantised already. Default: the type they are stored in
    #[arg(long, value_name = "TYPE", ignore_case = true, help_heading = "Model and device")]
    pub quantize: Option<Quantize>,

    /// Type of the KV cache
    #[arg(
        long,
        value_name = "TYPE",
        ignore_case = true,
        default_value = "f16",
        help_heading = "Model and device"
    )]
    pub kv_type: KvType,

    /// Context length in tokens. Default: the model's maximum, capped at 4096
    #[arg(long, short, value_name = "N", help_heading = "Model and device")]
    pub ctx: Option<usize>,

    /// Inputs of matrix products: `auto` is F16 where the device has units for it, `f32` is F32 everywhere
    #[arg(long, value_name = "PRECISION", default_value = "auto", help_heading = "Model and device")]
    pub precision: Precision,

    /// Do not test kernels on a driver that was never seen before, and trust those that an earlier test found wrong
    #[arg(long, help_heading = "Model and device")]
    pub no_self_test: bool,

    /// Test kernels on a software device, too
    #[arg(long, conflicts_with = "no_self_test", help_heading = "Model and device")]
    pub self_test: bool,

    #[command(flatten)]
    pub gpu: GpuArg,
}

/// The device.
#[derive(clap::Args)]
pub struct GpuArg {
    /// Adapter: its index, or a part of its name, as `wginfer devices` lists them. Default: the first discrete one, or
    /// else integrated, or else software
    // An empty variable counts as none.
    #[arg(long, env = "WGINFER_GPU", value_name = "NAME|INDEX", help_heading = "Model and device")]
    gpu: Option<String>,
}

impl GpuArg {
    /// The adapter in the arguments, if any.
    pub fn name(&self) -> Option<String> {
        self.gpu.clone().filter(|name| !name.is_empty())
    }
}

/// ggml's names.
#[derive(Clone, Copy, ValueEnum)]
#[allow(non_camel_case_types)]
pub enum Quantize {
    #[value(name = "Q8_0")]
    Q8_0,
    #[value(name = "Q4_0")]
    Q4_0,
    #[value(name = "Q4_K")]
    Q4_K,
}

impl Quantize {
    pub fn dtype(self) -> Dtype {
        match self {
            Quantize::Q8_0 => Dtype::Q8_0,
            Quantize::Q4_0 => Dtype::Q4_0,
            Quantize::Q4_K => Dtype::Q4_K,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
#[allow(non_camel_case_types)]
pub enum KvType {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl KvType {
    pub fn dtype(self) -> Dtype {
        match self {
            KvType::F32 => Dtype::F32,
            KvType::F16 => Dtype::F16,
            KvType::Q8_0 => Dtype::Q8_0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Precision {
    Auto,
    F32,
}

/// The types that random weights of a model are drawn in or quantised to.
pub const DRAWN: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K];

/// Parses the name of one of `types`.
pub fn one_of(types: &[Dtype]) -> impl TypedValueParser<Value = Dtype> + use<> {
    PossibleValuesParser::new(types.iter().map(|dtype| dtype.name()))
        .map(|name| Dtype::from_name(&name).expect("a name that was listed"))
}
