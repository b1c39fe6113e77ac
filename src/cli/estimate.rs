//! `wginfer estimate`: what models take on a device, whether they fit, and how fast they will run.

use std::ffi::OsString;
use std::io::Write;

use serde::Serialize;
use wginfer::bench::{Estimate, EstimateOptions, EstimatedRate, Estimator, Shape};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;

use super::args::{DRAWN, DeviceArgs, KvType, ModelArg, Quantize, one_of};
use super::failure::Failure;
use super::measure::number;
use super::model::Opened;
use super::table::{Format, Table};
use super::{format, json, terminal};

const EXAMPLES: &str = "Examples:
  wginfer estimate ~/models/SmolLM2-360M-Instruct
  wginfer estimate ~/models/qwen3-4b/*.gguf -c 8192
  wginfer estimate -m ~/models/SmolLM2-360M-Instruct --quantize Q4_0 --batch 4 --json
  wginfer estimate --shape llama-3.1-8b --type Q4_K

Only the config and the headers of weights are read. A folder of several GGUF files has a row for each.
Memory is what a load adds up before it allocates. The rates are those that `bench model` measures as
pp512 and tg128, and tg128 at the end of the context; the times of kernels that they are sums of
are measured once per device, driver and version, and kept in the cache folder (`WGINFER_CACHE_DIR`).
Named shapes: `wginfer bench model --help`.";

/// Show what models take in memory, whether they fit, and how fast they will run, before they are loaded
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Models. Default: that of `--model`
    #[arg(value_name = "MODEL")]
    models: Vec<OsString>,

    /// A named shape or the path of a `config.json` instead of a model; can be repeated
    #[arg(long, value_name = "NAME", conflicts_with_all = ["models", "model"])]
    shape: Vec<String>,

    /// Type of the shapes' weights
    #[arg(
        long = "type",
        value_name = "TYPE",
        requires = "shape",
        default_value = "F16",
        ignore_case = true,
        value_parser = one_of(&DRAWN)
    )]
    dtype: Dtype,

    /// Sequences at once; of an encoder, texts in a batch. Default: 1 sequence, 256 texts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: Option<u32>,

    /// Predict no rates, for which kernels are timed
    #[arg(long)]
    no_rates: bool,

    /// Time kernels again, instead of using the times that are kept
    #[arg(long, conflicts_with = "no_rates")]
    again: bool,

    /// Write an array of objects
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A model that cannot be estimated, as `--json` writes it.
#[derive(Serialize)]
struct Refused {
    name: String,
    error: String,
    hint: Option<String>,
}

/// An element of `--json`.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Estimated(Box<Estimate>),
    Refused(Refused),
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let mut rows = rows(args)?;
    if rows.len() == 1 && rows[0].1.is_err() {
        return rows.remove(0).1.map(|_| ());
    }
    let gpu = args.device.open()?;
    let mut estimator = Estimator::new(&gpu)?;
    if args.again {
        estimator.forget();
    }
    let options = options(args, rows.len());
    let (n_rows, mut outcomes, mut failures) = (rows.len(), Vec::with_capacity(rows.len()), Vec::new());
    for (name, files) in rows {
        match files.and_then(|files| estimate(&mut estimator, &files, &options)) {
            Ok(estimate) => outcomes.push(Outcome::Estimated(Box::new(estimate))),
            // Wrong usage is wrong for every model.
            Err(failure @ Failure::Usage { .. }) => return Err(failure),
            Err(failure) => {
                let (error, hint) = failure.lines();
                outcomes.push(Outcome::Refused(Refused { name: name.clone(), error, hint }));
                failures.push(if n_rows == 1 { failure } else { failure.at(&format!("`{name}`")) });
            }
        }
    }
    if n_rows > failures.len() || args.json && n_rows > 1 {
        match args.json {
            true => json::write(&outcomes, out)?,
            false => table(&outcomes).write(Format::Table, out)?,
        }
    }
    let n_failed = failures.len();
    match failures.pop() {
        None => Ok(()),
        Some(failure) if n_failed == 1 => Err(failure),
        Some(last) => {
            failures.iter().chain([&last]).for_each(terminal::error);
            Err(Failure::failed(format!("{n_failed} of {n_rows} models cannot be estimated")))
        }
    }
}

/// The models in the arguments, opened as far as an estimate needs.
fn rows(args: &Args) -> Result<Vec<Opened>, Failure> {
    if !args.shape.is_empty() {
        let drawn = if args.dtype.is_quantised() { Dtype::F16 } else { args.dtype };
        let row = |name: &String| {
            let shape = Shape::open(name)?;
            Ok((name.clone(), Ok(ModelFiles::random(&shape.name, &shape.config_json, drawn)?)))
        };
        return args.shape.iter().map(row).collect();
    }
    let named = args.models.iter().map(|model| ModelArg { model: Some(model.clone()) });
    let models = if args.models.is_empty() { vec![args.model.clone()] } else { named.collect() };
    let mut rows = Vec::new();
    for model in models {
        match model.headers() {
            Ok(all) => rows.extend(all),
            Err(failure) => {
                let name = model.model.unwrap_or_default().to_string_lossy().into_owned();
                rows.push((name, Err(failure)));
            }
        }
    }
    Ok(rows)
}

fn options(args: &Args, n_models: usize) -> EstimateOptions {
    let default = EstimateOptions::default();
    let quantized = (!args.shape.is_empty() && args.dtype.is_quantised()).then_some(args.dtype);
    EstimateOptions {
        ctx: args.device.ctx,
        batch: args.batch.map(|n| n as usize),
        quantize: args.device.quantize.map(Quantize::dtype).or(quantized),
        kv_dtype: KvType::dtype(args.device.kv_type),
        rates: !args.no_rates,
        // The files of a repository have many types, each with kernels of its own.
        budget: default.budget / n_models.clamp(1, 4) as u32,
    }
}

fn estimate(
    estimator: &mut Estimator<'_>,
    files: &ModelFiles,
    options: &EstimateOptions,
) -> Result<Estimate, Failure> {
    let bar = terminal::spinner();
    let mut is_said = false;
    let estimate = estimator.estimate(files, options, &mut |kernel| {
        if !std::mem::replace(&mut is_said, true) {
            log::info!("timing kernels on this device: their times are kept for later estimates");
        }
        bar.set_message(format!("timing {}", format::escaped(kernel)));
    });
    terminal::finish(&bar);
    // What was timed is of use even if this model is refused.
    if let Err(error) = estimator.save() {
        log::warn!("the times of kernels are not kept, they will be measured again: {error}");
    }
    let estimate = estimate?;
    if let Some(reason) = &estimate.not_predicted {
        log::info!("`{}`: {reason}", estimate.name);
    }
    Ok(estimate)
}

fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new(&[
        "model",
        "type",
        " params",
        " context",
        " weights",
        " cache",
        " scratch",
        " staging",
        " total",
        " free",
        " prompt t/s",
        " decode t/s",
        " at full context",
        "fits",
    ]);
    for outcome in outcomes {
        let e = match outcome {
            Outcome::Estimated(estimate) => estimate,
            Outcome::Refused(refused) => {
                let mut row = vec!["–".to_string(); 14];
                (row[0], row[13]) = (refused.name.clone(), "error".to_string());
                table.push(row);
                continue;
            }
        };
        let rate = |is: &dyn Fn(&EstimatedRate) -> bool| {
            let rate = e.rates.iter().find(|rate| is(rate));
            rate.map_or_else(|| "–".to_string(), |rate| number(rate.tokens_per_second))
        };
        // Texts of an encoder share a batch, with no cache of their own.
        let context = match e.batch {
            n if n > 1 && e.cache_bytes > 0 => format!("{n}×{}", e.ctx),
            _ => e.ctx.to_string(),
        };
        table.push(vec![
            e.name.clone(),
            e.dtype.clone(),
            format::count(e.n_params),
            context,
            format::bytes(e.weights_bytes),
            format::bytes(e.cache_bytes),
            format::bytes(e.scratch_bytes),
            format::bytes(e.staging_bytes),
            format::bytes(e.total_bytes),
            e.free_bytes.map_or_else(|| "unknown".to_string(), format::bytes),
            rate(&|rate| rate.test.starts_with("pp")),
            rate(&|rate| rate.test.starts_with("tg") && rate.depth == 0),
            rate(&|rate| rate.test.starts_with("tg") && rate.depth > 0),
            fits(e),
        ]);
    }
    table
}

/// Whether a model fits, or what is missing and with which flags it would fit.
fn fits(e: &Estimate) -> String {
    let ctx = e.fitting_ctx.map(|n| format!("--ctx {n}"));
    let quantize = e.fitting_quantize.as_ref().map(|dtype| format!("--quantize {dtype}"));
    let flags: Vec<String> = ctx.into_iter().chain(quantize).collect();
    match e.fits {
        None => "unknown".to_string(),
        Some(true) => "yes".to_string(),
        Some(false) if flags.is_empty() => format!("no, {} missing", format::bytes(e.missing_bytes)),
        Some(false) => {
            format!("no, {} missing; yes with {}", format::bytes(e.missing_bytes), flags.join(" "))
        }
    }
}
