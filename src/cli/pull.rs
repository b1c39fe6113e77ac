//! `wginfer pull`: downloads models of the hub.

use std::io::Write;

use serde_json::json;
use wginfer::hub::Hub;

use super::failure::Failure;
use super::names::Names;
use super::{download, json};

const EXAMPLES: &str = "Examples:
  wginfer pull Qwen/Qwen3-0.6B
  wginfer pull Qwen/Qwen3-4B-GGUF:Q4_K_M

Models are kept in the cache that Hugging Face's Python library and llama.cpp use: HF_HOME moves it. HF_TOKEN gives access to
gated models, HF_ENDPOINT names another hub, HF_HUB_OFFLINE=1 forbids downloads.";

/// Download models from the hub, or what is newer there; prints the path of each
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    names: Names,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let names = args.names.parse()?;
    let hub = Hub::from_env()?;
    for name in &names {
        let path = download::shown(name, |progress| hub.pull(name, progress))?;
        match args.names.json {
            true => {
                json::line(&json!({ "name": name.to_string(), "path": path.display().to_string() }), out)?
            }
            false => writeln!(out, "{}", path.display())?,
        }
        out.flush()?;
    }
    Ok(())
}
