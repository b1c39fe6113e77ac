//! `wginfer tune`: the fastest variants of matrix products on this device.

use std::io::Write;

use serde::Serialize;
use wginfer::bench::{self, Shape, TuneOptions, TuneReport, TuneRow};
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuOptions, Tuning};
use wginfer::ops;

use super::args::{GpuArg, ModelArg, Quantize, one_of};
use super::failure::Failure;
use super::measure::{command_line, describe, number, with_steps};
use super::table::{Format, Table};
use super::{json, measure, model};

const EXAMPLES: &str = "Examples:
  wginfer tune -m ~/models/SmolLM2-360M-Instruct
  wginfer tune -m ~/models/SmolLM2-360M-Instruct --quantize Q8_0 --dry-run
  wginfer tune --shape llama-3.2-1b --shape qwen3-0.6b --type f16,Q4_K
  wginfer tune --forget

Tuning is optional: by default, variants are chosen by the device's capabilities. Measured are the
products with weights, with one row that decodes and with a prompt's. Another variant is chosen
where it is right and faster by more than 5 % and than the spread. The choices are kept in the cache folder
(`WGINFER_CACHE_DIR`) for this adapter, driver and version; `WGINFER_DISABLE=tuning` leaves them unused.";

/// Measure which kernel variants are fastest on this device, and keep the choice for later runs
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// A named shape or the path of a `config.json` instead of a model; can be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Vec<String>,

    /// Types of the shapes' matrices, separated by commas. Default: F16
    #[arg(
        long = "type",
        value_name = "TYPES",
        value_delimiter = ',',
        requires = "shape",
        ignore_case = true,
        value_parser = one_of(&Dtype::WEIGHTS)
    )]
    dtype: Vec<Dtype>,

    /// Tune for the model quantised to this type. Default: the type it is stored in
    #[arg(long, value_name = "TYPE", ignore_case = true, conflicts_with = "shape")]
    quantize: Option<Quantize>,

    /// Milliseconds per product
    #[arg(long, value_name = "MS")]
    time_ms: Option<u64>,

    /// Write an object with all measurements
    #[arg(long)]
    json: bool,

    /// Measure, but keep nothing
    #[arg(long)]
    dry_run: bool,

    /// Remove the choices kept for this device, and measure nothing
    #[arg(long, conflicts_with_all = ["shape", "dtype", "quantize", "time_ms", "json", "dry_run"])]
    forget: bool,

    #[command(flatten)]
    gpu: GpuArg,
}

/// The object of `--json`.
#[derive(Serialize)]
struct Output<'a> {
    /// The file of the choices, if they are kept.
    kept_in: Option<String>,
    #[serde(flatten)]
    report: &'a TuneReport,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    // Errors of the model are reported before the device is opened.
    let models = if args.forget { Vec::new() } else { models(args)? };
    let options =
        GpuOptions { select: args.gpu.name(), cache_dir: model::cache_dir(), ..GpuOptions::default() };
    let gpu = Gpu::open(&options)?;
    if args.forget {
        return forget(&gpu);
    }
    let mut options = TuneOptions::new(models);
    if let Some(ms) = args.time_ms {
        options.budget = std::time::Duration::from_millis(ms);
    }
    let report = with_steps(|progress| bench::tune(&gpu, &options, command_line(), progress))?;
    describe(&report.meta, &report.limits, &report.skipped);
    for row in &report.rows {
        for candidate in &row.candidates {
            if let Some(fault) = &candidate.fault {
                log::warn!(
                    "`{}` is never chosen for {} {}: {fault}",
                    candidate.variant,
                    row.shape,
                    row.dtype
                );
            }
        }
    }
    let kept_in = if args.dry_run { None } else { keep(&gpu, &report.tuning) };
    if args.json {
        json::write(&Output { kept_in, report: &report }, out)?;
    } else {
        table(&report.rows).write(Format::Table, out)?;
    }
    let broken = report.rows.iter().find(|row| row.chosen_us.is_none());
    match broken {
        None => Ok(()),
        Some(row) => Err(Failure::failed(format!("no variant is right for {} {}", row.shape, row.dtype))
            .with_hint("a driver may miscompile them: `WGINFER_DISABLE=subgroups` runs other variants")),
    }
}

/// The models in the arguments, with the types of their matrices.
fn models(args: &Args) -> Result<Vec<(Shape, Vec<Dtype>)>, Failure> {
    if !args.shape.is_empty() {
        let dtypes = if args.dtype.is_empty() { vec![Dtype::F16] } else { args.dtype.clone() };
        let shape = |name: &String| Ok((Shape::open(name)?, dtypes.clone()));
        return args.shape.iter().map(shape).collect();
    }
    Ok(vec![measure::shape(args.model.open()?, args.quantize.map(Quantize::dtype))])
}

/// Keeps the choices and logs where. A failure is only a warning: the measurement stands.
fn keep(gpu: &Gpu, tuning: &Tuning) -> Option<String> {
    match tuning.save(gpu, ops::tunable()) {
        Ok(path) => {
            let n = tuning.len();
            let products = if n == 1 { "product takes" } else { "products take" };
            log::info!("{n} {products} another variant than the default, kept in `{}`", path.display());
            if !gpu.caps().tuning {
                log::warn!("`WGINFER_DISABLE` names `tuning`: the kept choices are not used");
            }
            Some(path.display().to_string())
        }
        Err(error) => {
            let path = Tuning::path(gpu, ops::tunable()).map(|path| format!(" in `{}`", path.display()));
            log::warn!("the choices are not kept{}: {error}", path.unwrap_or_default());
            None
        }
    }
}

fn forget(gpu: &Gpu) -> Result<(), Failure> {
    let Some(path) = Tuning::path(gpu, ops::tunable()) else {
        log::info!("nothing was kept: there is no cache folder");
        return Ok(());
    };
    match std::fs::remove_file(&path) {
        Ok(()) => log::info!("`{}` is removed, default variants run", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            log::info!("nothing was kept for `{}`", gpu.info().name);
        }
        Err(error) => {
            return Err(Failure::failed(format!("`{}` cannot be removed: {error}", path.display())));
        }
    }
    Ok(())
}

fn table(rows: &[TuneRow]) -> Table {
    let mut table = Table::new(&[
        "operation",
        "shape",
        "type",
        "rows",
        "default",
        " µs",
        "chosen",
        " µs",
        " times faster",
        " % of limit",
        "limit",
    ]);
    for row in rows {
        let show = |x: Option<f64>| x.map_or("wrong".to_string(), number);
        table.push(vec![
            row.operation.clone(),
            row.shape.clone(),
            row.dtype.clone(),
            format!("{} {}", row.n_rows, if row.is_prompt { "of a prompt" } else { "decoding" }),
            row.default.clone(),
            show(row.default_us),
            row.chosen.clone(),
            show(row.chosen_us),
            row.speedup().map_or("–".to_string(), |x| format!("{x:.2}")),
            row.percent.map_or("–".to_string(), number),
            row.limit.clone(),
        ]);
    }
    table
}
