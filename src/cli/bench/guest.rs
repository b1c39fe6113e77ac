//! `wginfer bench guest`: how well the slices of a guest keep the budget of a frame.

use std::io::Write;

use wginfer::bench::{self, GuestOptions, GuestReport, Shape};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::gpu::GpuOptions;

use crate::cli::args::{DRAWN, GpuArg, ModelArg, Quantize, one_of};
use crate::cli::failure::Failure;
use crate::cli::measure::{command_line, number};
use crate::cli::table::{Format, Table};
use crate::cli::{format, json, terminal};

const EXAMPLES: &str = "Examples:
  wginfer bench guest
  wginfer bench guest --shape smollm2-135m --budget 4,16
  wginfer bench guest -m ~/models/SmolLM2-360M-Instruct --quantize Q4_0 --format md

A guest records its work in the frames of an application, within some milliseconds of device time. Each
frame has a dispatch of constant work beside it, whose times show what the device itself varies.";

/// Measure how well a guest keeps the budget of a frame
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// A named shape or the path of a `config.json`, with random weights, instead of a model
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,

    /// Type of the random weights; for a quantised type, F16 weights are quantised on the device
    #[arg(
        long = "type",
        value_name = "TYPE",
        requires = "shape",
        default_value = "F16",
        ignore_case = true,
        value_parser = one_of(&DRAWN)
    )]
    dtype: Dtype,

    /// Quantise a model's matrices to this type while loading. Default: the type they are stored in
    #[arg(long, value_name = "TYPE", ignore_case = true, conflicts_with = "shape")]
    quantize: Option<Quantize>,

    /// Budgets of a frame in milliseconds, separated by commas
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "2,4,8,16")]
    budget: Vec<f64>,

    /// Frames of each test
    #[arg(long, value_name = "N", default_value_t = 1000)]
    frames: usize,

    /// Format of standard output
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,

    /// Same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,

    #[command(flatten)]
    gpu: GpuArg,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let shape = args.shape.as_deref().map(Shape::open).transpose()?;
    if shape.is_none() {
        // Reports errors early, and logs which model it is.
        args.model.open()?;
    }
    let dtype = args.dtype;
    let quantized = (shape.is_some() && dtype.is_quantised()).then_some(dtype);
    let options = GuestOptions {
        budgets_ms: args.budget.clone(),
        n_frames: args.frames,
        quantize: quantized.or(args.quantize.map(Quantize::dtype)),
    };
    let open = || match &shape {
        Some(shape) => {
            let drawn = if dtype.is_quantised() { Dtype::F16 } else { dtype };
            ModelFiles::random(&shape.name, &shape.config_json, drawn)
        }
        None => args.model.reopen(),
    };
    let gpu = GpuOptions { select: args.gpu.name(), ..GpuOptions::default() };
    let bar = terminal::spinner();
    let report = bench::guest(&gpu, &open, &options, command_line(), &mut |step| {
        bar.set_message(step.to_string());
    });
    terminal::finish(&bar);
    let report = report?;
    let meta = &report.meta;
    log::info!("{} {}; {}, {}", meta.program, meta.version, meta.adapter, meta.driver);
    log::info!("what cannot be cut takes up to {} ms", format::ms(report.smallest_slice_ms));
    match if args.json { Format::Json } else { args.format } {
        Format::Json => json::write(&report, out),
        format => table(&report, format).write(format, out),
    }
}

fn table(report: &GuestReport, format: Format) -> Table {
    let mut table = Table::new(&[
        "model",
        " budget ms",
        "work",
        " frames",
        " ms p50",
        " p95",
        " p99",
        " worst",
        " % over 1.2",
        " calibrated p95",
        " p99",
        " worst",
        " host ms p50",
        " p99",
        " worst",
        " tokens/s",
    ]);
    let ms = |x: f64| if format == Format::Csv { x.to_string() } else { format::ms(x) };
    for row in &report.rows {
        let device = row.device_ms.map_or([(); 4].map(|()| "–".to_string()), |all| all.map(ms));
        let [_, c95, c99, worst] = row.calibrated.map(|x| format!("{x:.2}"));
        let [h50, _, h99, h_worst] = row.host_ms.map(ms);
        let mut cells =
            vec![report.model.clone(), number(row.budget_ms), row.work.clone(), row.n_frames.to_string()];
        cells.extend(device);
        cells.push(number(row.percent_over));
        cells.extend([c95, c99, worst, h50, h99, h_worst]);
        cells.push(if row.work == "load" { "–".into() } else { number(row.per_second) });
        table.push(cells);
    }
    table
}
