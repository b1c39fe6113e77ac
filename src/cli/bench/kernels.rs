//! `wginfer bench kernels`: every operation of a forward pass at the shapes of models.

use std::io::Write;

use wginfer::bench::{self, KernelOptions, KernelReport, KernelRow, Report, Shape};
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuOptions};

use crate::cli::args::{GpuArg, one_of};
use crate::cli::failure::Failure;
use crate::cli::measure::{FormatArgs, command_line, describe, number, with_steps};
use crate::cli::output::Inputs;
use crate::cli::table::{Format, Table};
use crate::cli::{json, model, plot};

const EXAMPLES: &str = "Examples:
  wginfer bench kernels --quick
  wginfer bench kernels linear --shape llama-3.2-1b --type f16 --rows 1,512
  wginfer bench kernels --format json > before.json
  WGINFER_DISABLE=subgroups wginfer bench kernels attention   # the portable variants

Each row's outputs are checked against a reference in f64: a wrong kernel is reported as wrong,
and the exit code is 1.
Named shapes: llama-15m, smollm2-135m, gpt2, qwen2.5-0.5b, qwen3-0.6b, llama-3.2-1b, qwen3-4b,
smollm3-3b, ministral-3-3b, phi-4-mini, gemma-3-4b, llama-3.1-8b, qwen3-30b-a3b, gpt-oss-20b.";

/// Measure every operation of a forward pass: time, and percent of the device's limits
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only rows whose kernel, variant, shape and type together contain all of these words
    filter: Vec<String>,

    /// A named shape or the path of a `config.json`; can be repeated. Default: smollm2-135m on software devices,
    /// llama-3.2-1b on others
    #[arg(long, value_name = "NAME")]
    shape: Vec<String>,

    /// Types of weights, separated by commas. Default: all
    #[arg(
        long = "type",
        value_name = "TYPES",
        value_delimiter = ',',
        ignore_case = true,
        value_parser = one_of(&Dtype::WEIGHTS)
    )]
    dtype: Vec<Dtype>,

    /// Rows of the batch, separated by commas: up to 32 are decoding, more are a prompt
    #[arg(long, value_name = "N", value_delimiter = ',')]
    rows: Vec<usize>,

    /// Milliseconds per row of the report
    #[arg(long, value_name = "MS")]
    time_ms: Option<u64>,

    /// Measure less: F16 only, three batch sizes, smaller buffers, shorter times
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    format: FormatArgs,

    #[command(flatten)]
    gpu: GpuArg,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let plot = args.format.plot(&Inputs::default().shapes(&args.shape))?;
    let mut shapes = args.shape.iter().map(|name| Shape::open(name)).collect::<Result<Vec<_>, _>>()?;
    let options =
        GpuOptions { select: args.gpu.name(), cache_dir: model::cache_dir(), ..GpuOptions::default() };
    let gpu = Gpu::open(&options)?;
    if shapes.is_empty() {
        // A shape that fits the device and runs long enough to measure.
        shapes.push(Shape::open(if gpu.caps().cpu { "smollm2-135m" } else { "llama-3.2-1b" })?);
    }
    let mut options = if args.quick { KernelOptions::quick(shapes) } else { KernelOptions::new(shapes) };
    options.filter = Some(args.filter.join(" ")).filter(|words| !words.is_empty());
    if !args.dtype.is_empty() {
        options.dtypes.clear();
        for dtype in args.dtype.iter().copied() {
            if !options.dtypes.contains(&dtype) {
                options.dtypes.push(dtype);
            }
        }
    }
    if !args.rows.is_empty() {
        options.n_rows = args.rows.clone();
    }
    if let Some(ms) = args.time_ms {
        options.budget = std::time::Duration::from_millis(ms);
    }
    let report = with_steps(|progress| bench::kernels(&gpu, &options, command_line(), progress))?;
    describe(&report.meta, &report.limits, &report.skipped);
    if let Some(target) = &plot {
        plot::save(target, &plot::roofline(&report)?)?;
    }
    let wrong: Vec<String> = report.rows.iter().filter(|row| !row.is_right).map(KernelRow::key).collect();
    match args.format.format() {
        Format::Json => json::write(&Report::Kernels(report), out)?,
        format => table(&report, format).write(format, out)?,
    }
    out.flush()?;
    match wrong.first() {
        None => Ok(()),
        Some(first) => {
            let n = wrong.len();
            let message = format!("{n} {} wrong, first: {first}", if n == 1 { "row is" } else { "rows are" });
            Err(Failure::failed(message)
                .with_hint("a driver may miscompile it: `WGINFER_DISABLE=subgroups` runs other variants"))
        }
    }
}

fn table(report: &KernelReport, format: Format) -> Table {
    let mut table = Table::new(&[
        "kernel",
        "variant",
        "shape",
        "type",
        " rows",
        " µs",
        " ±%",
        " GFLOP/s",
        " GB/s",
        " % of limit",
        "limit",
        "check",
    ]);
    for row in &report.rows {
        let mark = if row.is_default { "" } else { " (not chosen)" };
        let spread = (row.us_high - row.us_low) / 2.0 / row.us * 100.0;
        // CSV is for programs: no rounding.
        let show = |x: f64| if format == Format::Csv { x.to_string() } else { number(x) };
        table.push(vec![
            row.kernel.clone(),
            format!("{}{mark}", row.variant),
            row.shape.clone(),
            row.dtype.clone(),
            row.n_rows.to_string(),
            show(row.us),
            show(spread),
            show(row.gflops),
            show(row.gbps),
            show(row.percent),
            row.limit.clone(),
            match (row.is_right, row.error) {
                (true, _) => "ok".to_string(),
                (false, Some(error)) => format!("WRONG by {} times rounding", number(error)),
                (false, None) => "WRONG, no number".to_string(),
            },
        ]);
    }
    table
}
