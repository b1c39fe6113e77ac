//! `wginfer bench`: kernels, models, and runs side by side.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use wginfer::bench::{
    self, BenchError, Comparison, KernelOptions, KernelReport, KernelRow, Limits, Meta, ModelOptions,
    ModelReport, ModelRow, Report, Shape,
};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuOptions};

use super::args::{
    BenchCommand, BenchCompareArgs, BenchKernelsArgs, BenchModelArgs, Format, FormatArgs, Quantize,
};
use super::failure::Failure;
use super::table::Table;
use super::{format, model, plot, terminal};

pub fn run(command: &BenchCommand, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        BenchCommand::Kernels(args) => kernels(args, out),
        BenchCommand::Model(args) => model(args, out),
        BenchCommand::Compare(args) => compare(args, out),
    }
}

/// The command as it was given, for the report.
pub fn command_line() -> String {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once("wginfer".to_string()).chain(args).collect::<Vec<_>>().join(" ")
}

/// Refuses a picture that is no SVG before hours are spent on it.
fn check_plot(args: &FormatArgs) -> Result<(), Failure> {
    match &args.plot {
        Some(path) if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) => {
            let message = format!("`{}` is no SVG file", path.display());
            Err(Failure::usage(message).with_hint("give a name that ends with `.svg`"))
        }
        _ => Ok(()),
    }
}

fn json(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

pub fn select(gpu: &Option<String>) -> Option<String> {
    gpu.clone().filter(|name| !name.is_empty())
}

/// Shows how far a measurement has come while it runs.
pub fn with_steps<T>(
    measure: impl FnOnce(&mut dyn FnMut(bench::Progress<'_>)) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let bar = terminal::steps();
    let result = measure(&mut |p| {
        bar.set_length(p.n_total as u64);
        bar.set_position(p.n_done as u64);
        bar.set_message(p.next.to_string());
    });
    terminal::finish(&bar);
    result
}

/// Says what the numbers were measured on, against what, and what was left out.
pub fn describe(meta: &Meta, limits: &Limits, skipped: &[String]) {
    log::info!(
        "{} {}, wgpu {}; {}, {}, {}",
        meta.program,
        meta.version,
        meta.wgpu_version,
        meta.adapter,
        meta.driver,
        meta.backend
    );
    log::info!(
        "limits: copy {} GB/s, multiply-add {} GFLOP/s (F32); times by the {} clock",
        number(limits.copy_gbps),
        number(limits.fma_gflops),
        limits.clock.as_str(),
    );
    for skipped in skipped {
        log::info!("left out: {skipped}");
    }
}

/// Three digits that count.
pub fn number(x: f64) -> String {
    let digits = if x == 0.0 || x.abs() >= 100.0 {
        0
    } else if x.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{x:.digits$}")
}

// --- kernels ---

fn kernels(args: &BenchKernelsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    check_plot(&args.format)?;
    let mut shapes = args.shape.iter().map(|name| Shape::open(name)).collect::<Result<Vec<_>, _>>()?;
    let options =
        GpuOptions { select: select(&args.gpu), cache_dir: model::cache_dir(), ..GpuOptions::default() };
    let gpu = Gpu::open(&options)?;
    if shapes.is_empty() {
        // What fits the device, and is not over before it began.
        shapes.push(Shape::open(if gpu.caps().cpu { "smollm2-135m" } else { "llama-3.2-1b" })?);
    }
    let mut options = if args.quick { KernelOptions::quick(shapes) } else { KernelOptions::new(shapes) };
    options.filter = Some(args.filter.join(" ")).filter(|words| !words.is_empty());
    if !args.dtype.is_empty() {
        options.dtypes.clear();
        for dtype in args.dtype.iter().map(|t| t.dtype()) {
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
    if let Some(path) = &args.format.plot {
        plot::save(path, &plot::roofline(&report)?)?;
    }
    let wrong: Vec<String> = report.rows.iter().filter(|row| !row.is_right).map(KernelRow::key).collect();
    match args.format.format {
        Format::Json => json(&Report::Kernels(report), out)?,
        format => kernel_table(&report, format).write(format, out)?,
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

fn kernel_table(report: &KernelReport, format: Format) -> Table {
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
        // A program that reads CSV wants no rounding.
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

// --- models ---

fn model(args: &BenchModelArgs, out: &mut dyn Write) -> Result<(), Failure> {
    check_plot(&args.format)?;
    let shape = args.shape.as_deref().map(Shape::open).transpose()?;
    if shape.is_none() {
        // Once, to say early what is wrong and which model it is.
        args.model.open()?;
    }
    let none = |n: &Vec<usize>| -> Vec<usize> { n.iter().copied().filter(|n| *n > 0).collect() };
    let dtype = args.dtype.dtype();
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
    let gpu = GpuOptions { select: select(&args.gpu), ..GpuOptions::default() };
    let bar = terminal::spinner();
    let report = bench::model(&gpu, &open, &options, command_line(), &mut |step| {
        bar.set_message(step.to_string());
    });
    terminal::finish(&bar);
    let report = report?;
    describe(&report.meta, &report.limits, &[]);
    say_summary(&report);
    if let Some(path) = &args.format.plot {
        plot::save(path, &plot::model_bars(&report)?)?;
    }
    match args.format.format {
        Format::Json => json(&Report::Model(report), out),
        format => model_table(&report, format).write(format, out),
    }
}

fn say_summary(report: &ModelReport) {
    let m = &report.model;
    log::info!(
        "loaded in {} ms; kernels compiled in {} ms, from our cache in {} ms",
        format::ms(m.load_ms),
        format::ms(m.compile_cold_ms),
        format::ms(m.compile_warm_ms),
    );
    let host = m.peak_host_bytes.map_or("not told".to_string(), format::bytes);
    log::info!("peak memory: device {}, host {host}", format::bytes(m.peak_device_bytes));
    log::info!("{}", m.times_include);
}

fn model_table(report: &ModelReport, format: Format) -> Table {
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

// --- side by side ---

fn compare(args: &BenchCompareArgs, out: &mut dyn Write) -> Result<(), Failure> {
    check_plot(&args.format)?;
    let reports = args.reports.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let comparison = bench::compare(&reports)?;
    for (name, report) in &reports {
        let meta = report.meta();
        log::info!(
            "{name}: {}, {}, {} {}, {}",
            meta.adapter,
            meta.driver,
            meta.program,
            meta.version,
            meta.date
        );
    }
    if let Some(path) = &args.format.plot {
        plot::save(path, &plot::comparison_bars(&comparison)?)?;
    }
    match args.format.format {
        Format::Json => json(&comparison, out),
        format => comparison_table(&comparison, format).write(format, out),
    }
}

fn read(path: &Path) -> Result<(String, Report), Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|source| BenchError::Io { path: path.to_path_buf(), source })?;
    let report = Report::from_json(&name, &text)?;
    Ok((name, report))
}

fn comparison_table(comparison: &Comparison, format: Format) -> Table {
    let unit = comparison.unit;
    let mut headers = vec!["row".to_string()];
    for (i, name) in comparison.names.iter().enumerate() {
        headers.push(format!(" {name} ({unit})"));
        if i > 0 {
            headers.push(" times faster".to_string());
        }
    }
    let mut table = Table::new(&headers);
    for row in &comparison.rows {
        let mut cells = vec![row.label.clone()];
        for (i, value) in row.values.iter().enumerate() {
            let show = |x: f64| if format == Format::Csv { x.to_string() } else { number(x) };
            cells.push(match value {
                Some(v) if v.is_right => show(v.value),
                Some(v) => format!("{} WRONG", show(v.value)),
                None => "–".to_string(),
            });
            if i > 0 {
                cells.push(match value.and_then(|v| v.speedup.map(|s| (s, v.is_outside))) {
                    Some((speedup, is_outside)) => {
                        format!("{speedup:.2}{}", if is_outside { " *" } else { "" })
                    }
                    None => "–".to_string(),
                });
            }
        }
        table.push(cells);
    }
    table
}
