//! `wginfer bench model`: tokens per second, latencies and memory of a model.

use std::io::Write;

use wginfer::bench::{self, ModelOptions, ModelReport, ModelRow, Report, Shape};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::gpu::GpuOptions;

use crate::cli::args::{DRAWN, GpuArg, KvType, ModelArg, Quantize, one_of};
use crate::cli::failure::Failure;
use crate::cli::measure::{FormatArgs, command_line, describe, number};
use crate::cli::output::Inputs;
use crate::cli::table::{Format, Table};
use crate::cli::{format, json, plot, terminal};

const EXAMPLES: &str = "Examples:
  wginfer bench model --shape smollm2-135m --type f16
  wginfer bench model -m ~/models/SmolLM2-360M-Instruct -p 512 -n 128 -d 0,2048
  wginfer bench model --shape llama-3.2-1b -p 0 -n 64 --pg 0 -b 1,4,16
  wginfer bench model --shape qwen3-30b-a3b --layers 4 --type Q4_0
  wginfer bench model --format md

Rows are named as llama-bench's: pp512 computes a prompt of 512 tokens, tg128 generates 128,
pp512+tg128 does both. With --shape the weights are random and made on the device.
Named shapes: llama-15m, smollm2-135m, gpt2, qwen2.5-0.5b, qwen3-0.6b, llama-3.2-1b, qwen3-4b,
smollm3-3b, ministral-3-3b, phi-4-mini, gemma-3-4b, llama-3.1-8b, qwen3-30b-a3b, gpt-oss-20b.";

/// Measure a model end to end: tokens per second, latencies, memory
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// A named shape or the path of a `config.json`, with random weights, instead of a model
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,

    /// Only the first layers of the shape, where memory is short
    #[arg(long, value_name = "N", requires = "shape")]
    layers: Option<usize>,

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

    /// Lengths of prompts in tokens, separated by commas; 0 skips this test
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,

    /// Lengths of answers in tokens, separated by commas; 0 skips this test
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,

    /// Lengths of a prompt and its answer in one test; can be repeated; 0 skips this test
    #[arg(long, value_name = "P,N", default_value = "512,128", value_parser = pair)]
    pg: Vec<(usize, usize)>,

    /// Positions in the cache before a test, separated by commas
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,

    /// Sequences in a batch, separated by commas
    #[arg(short = 'b', long, value_name = "N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,

    /// Repetitions of each test
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    repetitions: usize,

    /// Rows of a step: prompts are computed in chunks of this size
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_rows: usize,

    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", ignore_case = true, default_value = "f16")]
    kv_type: KvType,

    #[command(flatten)]
    format: FormatArgs,

    #[command(flatten)]
    gpu: GpuArg,
}

fn pair(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is not a number of tokens"));
    match text.split_once(',') {
        Some((p, n)) => Ok((number(p)?, number(n)?)),
        None if text.trim() == "0" => Ok((0, 0)),
        None => Err("expected two numbers separated by a comma, or 0".to_string()),
    }
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let plot = args.format.plot(&Inputs::default().model(&args.model).shapes(&args.shape))?;
    let open = |name| match (Shape::open(name)?, args.layers) {
        (shape, Some(n)) => shape.with_layers(n),
        (shape, None) => Ok(shape),
    };
    let shape = args.shape.as_deref().map(open).transpose()?;
    if shape.is_none() {
        // Reports errors early, and logs which model it is.
        args.model.open()?;
    }
    let none = |n: &Vec<usize>| -> Vec<usize> { n.iter().copied().filter(|n| *n > 0).collect() };
    let dtype = args.dtype;
    let quantized = (shape.is_some() && dtype.is_quantised()).then_some(dtype);
    let options = ModelOptions {
        prompts: none(&args.n_prompt),
        answers: none(&args.n_gen),
        both: args.pg.iter().copied().filter(|pair| *pair != (0, 0)).collect(),
        depths: args.depth.clone(),
        batches: args.batch.clone(),
        n_repetitions: args.repetitions,
        max_rows: args.max_rows,
        quantize: quantized.or(args.quantize.map(Quantize::dtype)),
        kv_dtype: args.kv_type.dtype(),
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
    let report = bench::model(&gpu, &open, &options, command_line(), &mut |step| {
        bar.set_message(step.to_string());
    });
    terminal::finish(&bar);
    let report = report?;
    describe(&report.meta, &report.limits, &[]);
    log_summary(&report);
    if let Some(target) = &plot {
        plot::save(target, &plot::model_bars(&report)?)?;
    }
    match args.format.format() {
        Format::Json => json::write(&Report::Model(report), out),
        format => table(&report, format).write(format, out),
    }
}

fn log_summary(report: &ModelReport) {
    let m = &report.model;
    log::info!(
        "loaded in {} ms; kernels compiled in {} ms, from our cache in {} ms",
        format::ms(m.load_ms),
        format::ms(m.compile_cold_ms),
        format::ms(m.compile_warm_ms),
    );
    let host = m.peak_host_bytes.map_or("unknown".to_string(), format::bytes);
    log::info!("peak memory: device {}, host {host}", format::bytes(m.peak_device_bytes));
    log::info!("{}", m.times_include);
}

fn table(report: &ModelReport, format: Format) -> Table {
    let mut table = Table::new(&[
        "model",
        " size",
        " params",
        "type",
        "backend",
        "test",
        " t/s",
        " first token ms",
        " ms/token p50",
        " p95",
        " p99",
        " % of limit",
        "limit",
    ]);
    let m = &report.model;
    let ms = |x: f64| if format == Format::Csv { x.to_string() } else { format::ms(x) };
    let (random, backend) = (if m.is_random { " (random)" } else { "" }, &report.meta.backend);
    for row in &report.rows {
        let [p50, p95, p99] = match row.time_per_output_token_ms {
            Some(all) => all.map(ms),
            None => [(); 3].map(|()| "–".to_string()),
        };
        table.push(vec![
            format!("{}{random}", m.name),
            format::bytes(m.weights_bytes),
            format::count(m.n_params),
            m.dtype.clone(),
            backend.clone(),
            ModelRow::label(row),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.sigma),
            ms(row.time_to_first_token_ms),
            p50,
            p95,
            p99,
            number(row.percent),
            row.limit.clone(),
        ]);
    }
    table
}
