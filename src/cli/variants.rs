//! `wginfer variants`: the kernel variants that a model uses on a device, which need not be there.

use std::io::Write;

use clap::builder::{PossibleValue, PossibleValuesParser};
use wginfer::engine::{EncoderOptions, Engine, EngineOptions, TextEncoder};
use wginfer::gpu::{Caps, profiles};
use wginfer::models::ModelKind;

use super::args::{DeviceArgs, ModelArg, Precision};
use super::failure::Failure;
use super::json;

const EXAMPLES: &str = "Examples:
  wginfer variants
  wginfer variants -m ~/models/SmolLM2-360M-Instruct --quantize Q4_0 --on rdna3";

/// List the kernel variants that a model uses on a device, which need not be there; what `tune` and the self-test found on
/// this one is left out
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Kind of device; some device must be in this machine to plan on. Default: the device in this machine
    #[arg(long, value_name = "DEVICE", value_parser = kinds())]
    on: Option<String>,

    /// Write an array of strings
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

fn kinds() -> PossibleValuesParser {
    profiles().into_iter().map(|profile| PossibleValue::new(profile.name).help(profile.about)).into()
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let files = args.model.open_any()?;
    let gpu = args.device.open()?;
    let named = args.on.as_ref().and_then(|name| profiles().into_iter().find(|p| p.name == name));
    let caps = named.map_or_else(|| gpu.caps().clone(), |profile| profile.caps);
    let caps = Caps { f32_products: args.device.precision == Precision::F32, ..caps };
    let variants = match files.kind() {
        ModelKind::Encoder => {
            let options = args.device.encoder_options(EncoderOptions::default());
            TextEncoder::variants(&gpu, &caps, &files, options, None)?
        }
        ModelKind::Decoder => {
            // With all that requests may ask for.
            let all = EngineOptions {
                max_logprobs: 1,
                prompt_logprobs: 16,
                logits: true,
                ..EngineOptions::default()
            };
            Engine::variants(&gpu, &caps, &files, args.device.options(all), None)?
        }
    };
    let mut labels: Vec<String> = variants.iter().map(|variant| variant.label()).collect();
    labels.sort();
    if args.json {
        return json::write(&labels, out);
    }
    Ok(labels.iter().try_for_each(|label| writeln!(out, "{label}"))?)
}
