//! What can be asked for: every command and flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use wginfer::dtype::Dtype;

use super::answer::AnswerArgs;
use super::classify::ClassifyArgs;
use super::embed::EmbedArgs;
use super::sampling::SamplingArgs;
use super::score::ScoreArgs;
use super::summarize::SummarizeArgs;
use super::transcribe::TranscribeArgs;

/// The package's version and that of the `wgpu` in `Cargo.lock`; a test compares them.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (wgpu 30.0.1)");

const EXAMPLES: &str = "Examples:
  wginfer generate \"Once upon a time\"
  wginfer chat --model ~/models/SmolLM2-360M-Instruct
  wginfer transcribe --model ~/models/whisper-small talk.mp3
  wginfer answer -f story.txt \"Who found the ball?\"
  wginfer embed --model ~/models/all-MiniLM-L6-v2 --similarity \"a cat\" \"a kitten\"
  wginfer devices

MODEL is a folder in Hugging Face layout: `config.json`, `model.safetensors`, `tokenizer.json`.
Without one, the small demonstration model in the binary runs.";

/// Run language models, Whisper and text encoders on any GPU
#[derive(Parser)]
#[command(name = "wginfer", version = VERSION, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,

    /// Say nothing but errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say more on standard error
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Continue a text
    Generate(Box<GenerateArgs>),
    /// Hold a conversation, with the model's own chat template
    Chat(Box<ChatArgs>),
    /// Answer a question from a document, and quote what the answer rests on
    Answer(Box<AnswerArgs>),
    /// Sum a document up
    Summarize(Box<SummarizeArgs>),
    /// Say which label a text has, and how probable each is
    Classify(Box<ClassifyArgs>),
    /// Measure how well a model knows a text, or how often its answers are right
    Score(Box<ScoreArgs>),
    /// Turn texts into vectors whose angles tell how alike they are
    Embed(EmbedArgs),
    /// Write down speech
    Transcribe(Box<TranscribeArgs>),
    /// Show the logits after a prompt, or of a classifier's labels
    Logits(LogitsArgs),
    /// Show what a model holds and needs, without a GPU
    Inspect(InspectArgs),
    /// List the GPUs and what they can do
    Devices(DevicesArgs),
    /// Measure kernels and models on this device, and compare runs
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Measure which variants of kernels are the fastest on this device, and keep the choice for later runs
    Tune(TuneArgs),
    /// Write a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which model.
#[derive(clap::Args)]
pub struct ModelArg {
    /// Folder in Hugging Face layout; the demonstration model in the binary without
    // Text of the system, not a path, so that an empty variable counts as none.
    #[arg(long, short, env = "WGINFER_MODEL", value_name = "MODEL", help_heading = "Model and device")]
    pub model: Option<OsString>,
}

/// Which device, and how much of it.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Quantise matrices to this type while loading; as they are stored without
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

    /// Tokens of context; what the model was made for, at most 4096, without
    #[arg(long, value_name = "N", help_heading = "Model and device")]
    pub ctx: Option<usize>,

    /// Inputs of products: `auto` takes F16 where the device has units for it, `f32` never
    #[arg(long, value_name = "PRECISION", default_value = "auto", help_heading = "Model and device")]
    pub precision: Precision,

    /// Adapter by index or by a part of its name, as `devices` lists them
    #[arg(long, env = "WGINFER_GPU", value_name = "NAME|INDEX", help_heading = "Model and device")]
    pub gpu: Option<String>,
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

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Precision {
    Auto,
    F32,
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

const GENERATE_EXAMPLES: &str = "Examples:
  wginfer generate \"Once upon a time\"
  echo \"Once upon a time\" | wginfer generate --max-tokens 50 --temperature 0.8 --seed 7
  wginfer generate -f prompt.txt --stop \"The end\"
  wginfer generate \"Once upon a time\" --n 3 --json
  wginfer generate \"Once upon a time\" --max-tokens 8 --explain";

#[derive(clap::Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub struct GenerateArgs {
    /// The text to continue; from standard input without
    #[arg(conflicts_with_all = ["file", "token_ids"])]
    pub prompt: Option<String>,

    /// Read the prompt from a file; `-` is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "token_ids")]
    pub file: Option<PathBuf>,

    /// Token ids instead of text, with commas between
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub token_ids: Option<Vec<u32>>,

    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,

    /// Text that ends the answer and is not part of it; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,

    /// Answers, in one batch; with a seed, each following one has the next seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub n: u32,

    /// Leave the prompt out of the text and write only what follows it, as `--json` does
    #[arg(long)]
    pub no_echo: bool,

    /// A line for each token: its probability and the best five, before and after temperature and filters
    #[arg(long)]
    pub explain: bool,

    /// Write an object with text, token ids, finish reason, usage and timings; an array with `--n`
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub model: ModelArg,

    #[command(flatten)]
    pub device: DeviceArgs,
}

const CHAT_EXAMPLES: &str = "Examples:
  wginfer chat
  wginfer chat --model ~/models/SmolLM2-360M-Instruct --system \"Answer in one sentence.\"
  printf '/set temperature 0\\nWhat is a tide?\\n' | wginfer chat --quiet";

#[derive(clap::Args)]
#[command(after_help = CHAT_EXAMPLES)]
pub struct ChatArgs {
    /// What the assistant shall be or do
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Most tokens of an answer; what the context holds without
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub model: ModelArg,

    #[command(flatten)]
    pub device: DeviceArgs,
}

const LOGITS_EXAMPLES: &str = "Examples:
  wginfer logits \"Once upon a\" --top 5
  wginfer logits --token-ids 1,403,407 --kv-type f32 --json";

#[derive(clap::Args)]
#[command(after_help = LOGITS_EXAMPLES)]
pub struct LogitsArgs {
    /// The prompt
    #[arg(required_unless_present = "token_ids", conflicts_with = "token_ids")]
    pub text: Option<String>,

    /// Token ids instead of text, with commas between
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub token_ids: Option<Vec<u32>>,

    /// Those after every position, not the last alone
    #[arg(long)]
    pub all: bool,

    /// How many of the best tokens or labels to show
    #[arg(long, value_name = "K", default_value_t = 10, conflicts_with = "json")]
    pub top: usize,

    /// Write token ids and all logits as an object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub model: ModelArg,

    #[command(flatten)]
    pub device: DeviceArgs,
}

const INSPECT_EXAMPLES: &str = "Examples:
  wginfer inspect
  wginfer inspect -m ~/models/SmolLM2-360M-Instruct --tensors";

#[derive(clap::Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct InspectArgs {
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// Write an object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub model: ModelArg,
}

#[derive(clap::Args)]
pub struct DevicesArgs {
    /// Write an array of objects
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum BenchCommand {
    /// Every operation of a forward pass at the shapes of named models: time, and percent of the device's limits
    Kernels(BenchKernelsArgs),
    /// A model end to end: tokens a second, latencies, memory
    Model(BenchModelArgs),
    /// Put reports side by side, and mark what lies outside the spread
    Compare(BenchCompareArgs),
}

/// How a report is written.
#[derive(clap::Args)]
pub struct FormatArgs {
    /// How standard output is written; `json` is what `bench compare` reads
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,

    /// Draw a picture, too
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Md,
    Csv,
    Json,
}

const BENCH_KERNELS_EXAMPLES: &str = "Examples:
  wginfer bench kernels --quick
  wginfer bench kernels linear --shape llama-3.2-1b --type f16 --rows 1,512
  wginfer bench kernels --format json > before.json
  WGINFER_DISABLE=subgroups wginfer bench kernels attention   # the portable variants

Each row's outputs are checked against a reference in f64: a wrong kernel is reported as wrong,
and the exit code is 1.
Named shapes: llama-15m, smollm2-135m, gpt2, qwen2.5-0.5b, qwen3-0.6b, llama-3.2-1b, qwen3-4b,
llama-3.1-8b.";

#[derive(clap::Args)]
#[command(after_help = BENCH_KERNELS_EXAMPLES)]
pub struct BenchKernelsArgs {
    /// Only rows whose kernel, variant, shape or type have all of these words in them
    pub filter: Vec<String>,

    /// A named model or the path of a `config.json`, may be given several times; smollm2-135m on software
    /// devices and llama-3.2-1b on others without
    #[arg(long, value_name = "NAME")]
    pub shape: Vec<String>,

    /// Types of weights, with commas between; all without
    #[arg(long = "type", value_name = "TYPES", value_delimiter = ',', ignore_case = true)]
    pub dtype: Vec<WeightType>,

    /// Rows of the batch, with commas between: up to 32 decode, more are a prompt's
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub rows: Vec<usize>,

    /// Milliseconds for each row
    #[arg(long, value_name = "MS")]
    pub time_ms: Option<u64>,

    /// A first look: F16, three numbers of rows, smaller buffers, shorter times
    #[arg(long)]
    pub quick: bool,

    #[command(flatten)]
    pub format: FormatArgs,

    /// Adapter by index or by a part of its name, as `devices` lists them
    #[arg(long, env = "WGINFER_GPU", value_name = "NAME|INDEX", help_heading = "Model and device")]
    pub gpu: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types)]
pub enum WeightType {
    F32,
    F16,
    Bf16,
    #[value(name = "Q8_0")]
    Q8_0,
    #[value(name = "Q4_0")]
    Q4_0,
    #[value(name = "Q4_K")]
    Q4_K,
}

impl WeightType {
    pub fn dtype(self) -> Dtype {
        match self {
            WeightType::F32 => Dtype::F32,
            WeightType::F16 => Dtype::F16,
            WeightType::Bf16 => Dtype::BF16,
            WeightType::Q8_0 => Dtype::Q8_0,
            WeightType::Q4_0 => Dtype::Q4_0,
            WeightType::Q4_K => Dtype::Q4_K,
        }
    }
}

const BENCH_MODEL_EXAMPLES: &str = "Examples:
  wginfer bench model --shape smollm2-135m --type f16
  wginfer bench model -m ~/models/SmolLM2-360M-Instruct -p 512 -n 128 -d 0,2048
  wginfer bench model --shape llama-3.2-1b -p 0 -n 64 --pg 0 -b 1,4,16
  wginfer bench model --format md

Rows are named as llama-bench's: pp512 computes a prompt of 512 tokens, tg128 generates 128,
pp512+tg128 does both. With --shape the weights are random and made on the device.
Named shapes: llama-15m, smollm2-135m, gpt2, qwen2.5-0.5b, qwen3-0.6b, llama-3.2-1b, qwen3-4b,
llama-3.1-8b.";

#[derive(clap::Args)]
#[command(after_help = BENCH_MODEL_EXAMPLES)]
pub struct BenchModelArgs {
    #[command(flatten)]
    pub model: ModelArg,

    /// A named model or the path of a `config.json`, with random weights instead of a model's
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub shape: Option<String>,

    /// Type of random weights; F16 ones are quantised on the device where it is a quantised type
    #[arg(long = "type", value_name = "TYPE", requires = "shape", default_value = "f16", ignore_case = true)]
    pub dtype: WeightType,

    /// Quantise a model's matrices to this type while loading; as they are stored without
    #[arg(long, value_name = "TYPE", ignore_case = true, conflicts_with = "shape")]
    pub quantize: Option<Quantize>,

    /// Tokens of prompts, with commas between; 0 leaves them out
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<usize>,

    /// Tokens of answers, with commas between; 0 leaves them out
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<usize>,

    /// A prompt and its answer in one test, may be given several times; 0 leaves them out
    #[arg(long, value_name = "P,N", default_value = "512,128", value_parser = pair)]
    pub pg: Vec<(usize, usize)>,

    /// Positions in the cache before a test, with commas between
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,

    /// Sequences at a time, with commas between
    #[arg(short = 'b', long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,

    /// Repetitions of each test
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,

    /// Rows of a step: prompts are computed in chunks of so many
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_rows: usize,

    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", ignore_case = true, default_value = "f16")]
    pub kv_type: KvType,

    #[command(flatten)]
    pub format: FormatArgs,

    /// Adapter by index or by a part of its name, as `devices` lists them
    #[arg(long, env = "WGINFER_GPU", value_name = "NAME|INDEX", help_heading = "Model and device")]
    pub gpu: Option<String>,
}

fn pair(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is not a number of tokens"));
    match text.split_once(',') {
        Some((p, n)) => Ok((number(p)?, number(n)?)),
        None if text.trim() == "0" => Ok((0, 0)),
        None => Err("expected two numbers with a comma between, or 0".to_string()),
    }
}

const BENCH_COMPARE_EXAMPLES: &str = "Examples:
  wginfer bench kernels --format json > before.json
  wginfer bench compare before.json after.json

Ratios are how many times faster than the first run. `*` marks what lies outside the spread: for
kernels from the 10th to the 90th percentile, for models two deviations around the mean.";

#[derive(clap::Args)]
#[command(after_help = BENCH_COMPARE_EXAMPLES)]
pub struct BenchCompareArgs {
    /// Reports that `bench kernels` or `bench model` wrote with `--format json`
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    pub reports: Vec<PathBuf>,

    #[command(flatten)]
    pub format: FormatArgs,
}

const TUNE_EXAMPLES: &str = "Examples:
  wginfer tune -m ~/models/SmolLM2-360M-Instruct
  wginfer tune -m ~/models/SmolLM2-360M-Instruct --quantize Q8_0 --dry-run
  wginfer tune --shape llama-3.2-1b --shape qwen3-0.6b --type f16,Q4_K
  wginfer tune --forget

Nothing needs tuning: without it variants are chosen by what the device can do. Measured are the
products with weights, with one row that decodes and with a prompt's. Another variant is chosen
where it is right and faster by more than 5 % and than the spread. The choices are kept in the cache folder
(`WGINFER_CACHE_DIR`) for this adapter, driver and version; `WGINFER_DISABLE=tuning` leaves them unused.";

#[derive(clap::Args)]
#[command(after_help = TUNE_EXAMPLES)]
pub struct TuneArgs {
    #[command(flatten)]
    pub model: ModelArg,

    /// A named model or the path of a `config.json` instead of a model, may be given several times
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub shape: Vec<String>,

    /// Types of the shapes' matrices, with commas between; F16 without
    #[arg(
        long = "type",
        value_name = "TYPES",
        value_delimiter = ',',
        requires = "shape",
        ignore_case = true
    )]
    pub dtype: Vec<WeightType>,

    /// Tune for a model that is quantised to this type while loading; as it is stored without
    #[arg(long, value_name = "TYPE", ignore_case = true, conflicts_with = "shape")]
    pub quantize: Option<Quantize>,

    /// Milliseconds for each product
    #[arg(long, value_name = "MS")]
    pub time_ms: Option<u64>,

    /// Write an object with all that was measured
    #[arg(long)]
    pub json: bool,

    /// Measure and keep nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Remove what is kept for this device instead
    #[arg(long, conflicts_with_all = ["shape", "dtype", "quantize", "time_ms", "json", "dry_run"])]
    pub forget: bool,

    /// Adapter by index or by a part of its name, as `devices` lists them
    #[arg(long, env = "WGINFER_GPU", value_name = "NAME|INDEX", help_heading = "Model and device")]
    pub gpu: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn version_names_the_wgpu_in_use() {
        let lock = include_str!("../../Cargo.lock");
        let (_, entry) = lock.split_once("name = \"wgpu\"\nversion = \"").expect("wgpu is locked");
        let (version, _) = entry.split_once('"').expect("a version");
        assert!(super::VERSION.ends_with(&format!("(wgpu {version})")), "{} is locked", version);
        assert_eq!(wginfer::bench::WGPU_VERSION, version, "what reports say");
    }
}
