//! `wginfer rm`: removes models of the hub from the cache.

use std::io::Write;

use serde_json::json;
use wginfer::hub::Hub;

use super::failure::Failure;
use super::names::Names;
use super::{format, json, terminal};

const EXAMPLES: &str = "Examples:
  wginfer rm Qwen/Qwen3-0.6B
  wginfer rm Qwen/Qwen3-4B-GGUF:Q4_K_M

Other programs that use the cache lose the model, too.";

/// Remove models from the cache; a name with a type removes only that
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    names: Names,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let names = args.names.parse()?;
    let hub = Hub::from_env()?;
    let mut failed: Option<Failure> = None;
    for name in &names {
        match hub.remove(name) {
            Ok(freed_bytes) if args.names.json => {
                json::line(&json!({ "name": name.to_string(), "freed_bytes": freed_bytes }), out)?;
            }
            Ok(freed_bytes) => log::info!("removed `{name}`: {}", format::bytes(freed_bytes)),
            // The others are removed in any case.
            Err(error) => {
                if let Some(earlier) = failed.replace(error.into()) {
                    terminal::error(&earlier);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}
