//! What the commands that measure share: the format of reports, and the log lines beside them.

use std::path::PathBuf;

use wginfer::bench::{self, BenchError, Limits, Meta, Shape};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;

use super::failure::Failure;
use super::output::{self, Inputs, Target};
use super::table::Format;
use super::{format, terminal};

/// The format of a report.
#[derive(clap::Args)]
pub struct FormatArgs {
    /// Format of standard output; `bench compare` reads `json`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,

    /// Same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Also draw a plot
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl FormatArgs {
    /// The format of the report.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }

    /// The file of the plot, if one is wanted. Refuses a name that is not an SVG's, and a file that cannot be written,
    /// before the measurement starts.
    pub fn plot(&self, inputs: &Inputs) -> Result<Option<Target>, Failure> {
        match &self.plot {
            Some(path) if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) => {
                let message = format!("`{}` is not the name of an SVG file", path.display());
                Err(Failure::usage(message).with_hint("give a name that ends with `.svg`"))
            }
            plot => Ok(output::plan(plot, inputs)?.pop()),
        }
    }
}

/// The command as it was given, for the report.
pub fn command_line() -> String {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once("wginfer".to_string()).chain(args).collect::<Vec<_>>().join(" ")
}

/// The shape of a model, and the types of its matrices: the stored ones, or `quantized`.
pub fn shape(files: ModelFiles, quantized: Option<Dtype>) -> (Shape, Vec<Dtype>) {
    let mut dtypes: Vec<Dtype> = match quantized {
        Some(dtype) => vec![dtype],
        None => {
            let matrices = files.weights.entries().iter().filter(|entry| entry.shape.len() == 2);
            matrices.filter_map(|entry| Dtype::from_name(&entry.dtype)).collect()
        }
    };
    dtypes.sort();
    dtypes.dedup();
    let model = files.architecture.shape();
    (Shape { name: files.name, config_json: String::new(), model }, dtypes)
}

/// Shows a bar while a measurement runs.
pub fn with_steps<T>(
    measure: impl FnOnce(&mut dyn FnMut(bench::BenchProgress<'_>)) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let bar = terminal::steps();
    let result = measure(&mut |p| {
        bar.set_length(p.n_total as u64);
        bar.set_position(p.n_done as u64);
        bar.set_message(format::escaped(p.next).into_owned());
    });
    terminal::finish(&bar);
    result
}

/// Logs the device, its limits and what was skipped.
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
        log::info!("skipped: {skipped}");
    }
}

/// A number with about three significant digits.
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
