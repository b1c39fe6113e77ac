//! `wginfer list`: the models of the hub that are in the cache.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use wginfer::checkpoint;
use wginfer::hub::{CachedModel, Hub};

use super::failure::Failure;
use super::table::{Format, Table};
use super::{format, json};

/// List the models in the cache, with their size, type, and when they were used last
#[derive(clap::Args)]
pub struct Args {
    /// Write an array of objects
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    path: String,
    bytes: u64,
    /// The type of most of its weights; `None` if they cannot be read.
    r#type: Option<String>,
    /// Seconds since 1970.
    last_used: Option<u64>,
    complete: bool,
}

impl Row {
    fn of(model: CachedModel) -> Row {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|t| t.as_secs());
        Row {
            r#type: if model.is_complete { main_type(&model) } else { None },
            name: model.name,
            path: model.path.display().to_string(),
            bytes: model.n_bytes,
            last_used: model.last_used.and_then(seconds),
            complete: model.is_complete,
        }
    }
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let hub = Hub::from_env()?;
    let rows: Vec<Row> = hub.list()?.into_iter().map(Row::of).collect();
    if args.json {
        return json::write(&rows, out);
    }
    if rows.is_empty() {
        log::info!("no models in `{}`: `wginfer pull NAME` downloads one", hub.options().cache_dir.display());
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let mut table = Table::new(&["name", "type", " size", "last used"]);
    for row in rows {
        let what = match (row.complete, row.r#type) {
            (false, _) => "incomplete".to_string(),
            (true, found) => found.unwrap_or_else(|| "unreadable".into()),
        };
        let used = row.last_used.map_or_else(String::new, |used| ago(now.saturating_sub(used)));
        table.push(vec![row.name, what, format::bytes(row.bytes), used]);
    }
    table.write(Format::Table, out)
}

/// The type of most of a model's weights.
fn main_type(model: &CachedModel) -> Option<String> {
    let weights = checkpoint::open_weights(&model.path).ok()?;
    let mut bytes: BTreeMap<String, usize> = BTreeMap::new();
    for entry in weights.entries() {
        *bytes.entry(entry.dtype.to_string()).or_default() += entry.n_bytes;
    }
    bytes.into_iter().max_by_key(|(_, n_bytes)| *n_bytes).map(|(name, _)| name)
}

/// How long ago something was, in its largest unit.
fn ago(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86400 * 7, "week"), (86400, "day"), (3600, "hour"), (60, "minute")];
    match UNITS.iter().find(|(size, _)| seconds >= *size) {
        Some((size, unit)) => {
            let n = seconds / size;
            format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
        }
        None => "now".into(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_have_their_largest_unit() {
        let cases =
            [(0, "now"), (59, "now"), (60, "1 minute ago"), (7199, "1 hour ago"), (86400 * 3, "3 days ago")];
        for (seconds, expected) in cases {
            assert_eq!(super::ago(seconds), expected);
        }
        assert_eq!(super::ago(86400 * 21), "3 weeks ago");
    }
}
