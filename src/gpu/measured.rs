//! Measured times of kernels on a device, kept in a file between runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tuning::Origin;
use super::{Gpu, Tunable, cache};
use crate::file;

/// Largest file that is read. A time takes about 60 bytes.
const MOST_BYTES: u64 = 16 << 20;

/// Microseconds per run of kernels at shapes, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    us: BTreeMap<String, f64>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    measured_on: Origin,
    us: BTreeMap<String, f64>,
}

impl Measured {
    /// The microseconds of `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.us.get(name).copied()
    }

    /// Sets the microseconds of `name`.
    pub fn set(&mut self, name: String, us: f64) {
        self.us.insert(name, us);
    }

    /// The number of times.
    pub fn len(&self) -> usize {
        self.us.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.us.is_empty()
    }

    /// The file for this device. `None` if there is no cache folder.
    pub fn path(gpu: &Gpu, tunable: &Tunable) -> Option<PathBuf> {
        Origin::of(gpu, tunable).path(gpu, "times")
    }

    /// Reads the times that are kept for this device. A file that cannot be used gives a warning and no times.
    pub fn read(gpu: &Gpu, tunable: &Tunable) -> Measured {
        let Some(path) = Measured::path(gpu, tunable).filter(|path| path.exists()) else {
            return Measured::default();
        };
        Measured::parse(&path, &Origin::of(gpu, tunable)).unwrap_or_else(|message| {
            log::warn!("`{}` is not used, kernels are measured again: {message}", path.display());
            Measured::default()
        })
    }

    fn parse(path: &Path, origin: &Origin) -> Result<Measured, String> {
        let text = file::read(path, MOST_BYTES).map_err(|e| e.to_string())?;
        let kept: Kept = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        if kept.measured_on != *origin {
            return Err("it was measured on another device, or with another version".into());
        }
        match kept.us.iter().find(|(_, us)| **us <= 0.0) {
            Some((name, us)) => Err(format!("`{name}` takes {us} µs, expected more than 0")),
            None => Ok(Measured { us: kept.us }),
        }
    }

    /// Keeps the times for later runs on this device, if there is a cache folder. The file is written completely or not
    /// at all.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, gpu: &Gpu, tunable: &Tunable) -> std::io::Result<()> {
        let Some(path) = Measured::path(gpu, tunable) else { return Ok(()) };
        let kept = Kept { measured_on: Origin::of(gpu, tunable), us: self.us.clone() };
        cache::write_whole(&path, &serde_json::to_vec_pretty(&kept)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_device_or_with_no_times_is_refused() {
        let dir = tempfile::TempDir::new().expect("a temporary folder");
        let path = dir.path().join("times.json");
        let origin = Origin::test("driver 1", "0123");
        let text = |us: f64| {
            let kept = Kept { measured_on: origin.clone(), us: BTreeMap::from([("linear".into(), us)]) };
            serde_json::to_vec(&kept).expect("JSON")
        };
        let parse = |text: &[u8], origin: &Origin| {
            std::fs::write(&path, text).expect("it can be written");
            Measured::parse(&path, origin)
        };
        assert_eq!(parse(&text(2.5), &origin).map(|m| (m.get("linear"), m.len())), Ok((Some(2.5), 1)));
        let other = Origin::test("driver 2", "0123");
        assert!(parse(&text(2.5), &other).is_err_and(|message| message.contains("another device")));
        let none = parse(&text(-1.0), &origin);
        assert!(none.is_err_and(|message| message.contains("`linear` takes -1 µs")));
        for broken in [&b""[..], b"[]", b"{\"us\": 3}", &text(1.0)[..20]] {
            assert!(parse(broken, &origin).is_err(), "{broken:?}");
        }
    }
}
