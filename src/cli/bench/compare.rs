//! `wginfer bench compare`: reports side by side.

use std::io::Write;
use std::path::{Path, PathBuf};

use wginfer::bench::{self, Comparison, Report};

use crate::cli::failure::Failure;
use crate::cli::measure::{FormatArgs, number};
use crate::cli::output::Inputs;
use crate::cli::table::{Format, Table};
use crate::cli::{json, plot, prompt};

const EXAMPLES: &str = "Examples:
  wginfer bench kernels --format json > before.json
  wginfer bench compare before.json after.json

Ratios are speedups over the first report. `*` marks differences outside the spread: for
kernels from the 10th to the 90th percentile, for models two deviations around the mean.";

/// Compare reports, and mark differences outside the spread
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Reports that `bench kernels` or `bench model` wrote with `--format json`
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    reports: Vec<PathBuf>,

    #[command(flatten)]
    format: FormatArgs,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let plot = args.format.plot(&Inputs::default().files(&args.reports))?;
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
    if let Some(target) = &plot {
        plot::save(target, &plot::comparison_bars(&comparison)?)?;
    }
    match args.format.format() {
        Format::Json => json::write(&comparison, out),
        format => table(&comparison, format).write(format, out),
    }
}

fn read(path: &Path) -> Result<(String, Report), Failure> {
    let name = path.display().to_string();
    let report = Report::from_json(&name, &prompt::document(Some(path))?.text)?;
    Ok((name, report))
}

fn table(comparison: &Comparison, format: Format) -> Table {
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
