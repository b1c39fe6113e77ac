//! Comparison of runs.

use serde::Serialize;

use super::{BenchError, Report};

/// One run's value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Value {
    /// Microseconds for kernels, tokens per second for models.
    pub value: f64,
    /// Lower end of the spread.
    pub low: f64,
    /// Upper end of the spread.
    pub high: f64,
    /// How many times faster than the first run.
    pub speedup: Option<f64>,
    /// Whether the spreads of this run and of the first do not overlap: a difference beyond chance.
    pub is_outside: bool,
    /// Whether the outputs were right.
    pub is_right: bool,
}

/// One row of all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedRow {
    /// What was measured.
    pub label: String,
    /// The value of each run; `None` if it has no such row.
    pub values: Vec<Option<Value>>,
}

/// Runs side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Names of the runs.
    pub names: Vec<String>,
    /// The adapter of each run.
    pub adapters: Vec<String>,
    /// `µs` (less is better) or `tokens/s` (more is better).
    pub unit: &'static str,
    /// Rows in the order of the first run, then those that only later ones have.
    pub rows: Vec<ComparedRow>,
}

/// A model's spread, in standard deviations on each side of the mean.
const SIGMAS: f64 = 2.0;

/// Joins named reports in one table, relative to the first.
///
/// # Errors
/// [`BenchError::Parameter`] if there are fewer than two, [`BenchError::Kinds`] if they are of different kinds.
pub fn compare(reports: &[(String, Report)]) -> Result<Comparison, BenchError> {
    let (Some((first_name, first)), true) = (reports.first(), reports.len() > 1) else {
        let (found, expected) = (format!("{} given", reports.len()), "at least 2");
        return Err(BenchError::Parameter { name: "reports", found, expected });
    };
    if let Some((name, other)) = reports.iter().find(|(_, report)| report.kind() != first.kind()) {
        return Err(BenchError::Kinds {
            first: first_name.clone(),
            other: name.clone(),
            expected: first.kind(),
            found: other.kind(),
        });
    }
    let mut rows: Vec<ComparedRow> = Vec::new();
    for (i, (_, report)) in reports.iter().enumerate() {
        for (label, value) in values(report) {
            let at = rows.iter().position(|row| row.label == label).unwrap_or_else(|| {
                rows.push(ComparedRow { label, values: vec![None; reports.len()] });
                rows.len() - 1
            });
            rows[at].values[i] = Some(value);
        }
    }
    let less_is_better = matches!(first, Report::Kernels(_));
    for row in &mut rows {
        let Some(base) = row.values[0] else { continue };
        for value in row.values.iter_mut().skip(1).flatten() {
            let ratio = value.value / base.value;
            value.speedup = Some(if less_is_better { 1.0 / ratio } else { ratio });
            value.is_outside = value.low > base.high || value.high < base.low;
        }
    }
    Ok(Comparison {
        names: reports.iter().map(|(name, report)| named(name, report)).collect(),
        adapters: reports.iter().map(|(_, report)| report.meta().adapter.clone()).collect(),
        unit: if less_is_better { "µs" } else { "tokens/s" },
        rows,
    })
}

/// A report's name, with the type of a model's weights, because runs may differ in it.
fn named(name: &str, report: &Report) -> String {
    match report {
        Report::Kernels(_) => name.to_string(),
        Report::Model(report) => format!("{name}, {}", report.model.dtype),
    }
}

fn values(report: &Report) -> Vec<(String, Value)> {
    let value =
        |value, low, high, is_right| Value { value, low, high, speedup: None, is_outside: false, is_right };
    match report {
        Report::Kernels(report) => {
            let of =
                |row: &super::KernelRow| (row.key(), value(row.us, row.us_low, row.us_high, row.is_right));
            report.rows.iter().map(of).collect()
        }
        Report::Model(report) => {
            let of = |row: &super::ModelRow| {
                let (mean, spread) = (row.tokens_per_second, SIGMAS * row.sigma);
                let label = format!("{} · {}", report.model.name, row.label());
                (label, value(mean, mean - spread, mean + spread, true))
            };
            report.rows.iter().map(of).collect()
        }
    }
}
