//! What can be asked for: every command and flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use wginfer::dtype::Dtype;

use super::sampling::SamplingArgs;

/// The package's version and that of the `wgpu` in `Cargo.lock`; a test compares them.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (wgpu 30.0.1)");

const EXAMPLES: &str = "Examples:
  wginfer generate \"Once upon a time\"
  wginfer chat --model ~/models/SmolLM2-360M-Instruct
  wginfer logits --token-ids 1,403,407 --top 5
  wginfer devices

MODEL is a folder in Hugging Face layout: `config.json`, `model.safetensors`, `tokenizer.json`.
Without one, the small demonstration model in the binary runs.";

/// Run language models on any GPU
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
    /// Show the logits after a prompt
    Logits(LogitsArgs),
    /// Show what a model holds and needs, without a GPU
    Inspect(InspectArgs),
    /// List the GPUs and what they can do
    Devices(DevicesArgs),
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
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", help_heading = "Model and device")]
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

#[derive(Clone, Copy, ValueEnum)]
pub enum KvType {
    F32,
    F16,
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

    /// How many of the best tokens to show
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
    }
}
