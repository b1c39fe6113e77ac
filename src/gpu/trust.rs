//! What self-tests found about the variants of kernels on a device, kept in a file between runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::tuning::Origin;
use super::{Gpu, GpuError, Tunable, Variant, cache, lock};
use crate::file;

/// Largest file that is read. A variant takes about 150 bytes.
const MOST_BYTES: u64 = 16 << 20;

/// When kernels are tested on a driver that was never seen before: variants that need optional capabilities, against
/// the portable ones on the same device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelfTest {
    /// On devices that are not software devices.
    #[default]
    Hardware,
    /// On every device.
    Always,
    /// Never. What earlier tests found is not used, either. A variant that does not compile is still replaced.
    Never,
}

/// Which variants have computed the same as the portable ones on this device, and which have not or do not compile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trust {
    /// Labels of variants that did.
    right: BTreeSet<String>,
    /// Variants that did not.
    wrong: Vec<WrongVariant>,
}

/// A variant that computed something else than the portable one, or does not compile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WrongVariant {
    /// The operation that runs its portable variants because of it.
    pub operation: String,
    /// Label of the variant.
    pub variant: String,
    /// Largest difference in units of the tolerance. `None` if it computed something that is not finite, or nothing.
    pub error: Option<f64>,
    /// The beginning of the compiler's words, if it does not compile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

impl WrongVariant {
    /// A variant that does not compile.
    pub(crate) fn refused(operation: &str, variant: &Variant, error: &GpuError) -> WrongVariant {
        let words = match error {
            GpuError::Compile { message, .. } => brief(message),
            other => brief(&other.to_string()),
        };
        WrongVariant {
            operation: operation.into(),
            variant: variant.label(),
            error: None,
            refusal: Some(words),
        }
    }
}

/// Characters of a compiler's message that are kept: a line of a terminal or two.
const MOST_WORDS: usize = 160;

/// The line of an error of `wgpu` that says what is wrong: the first after the kind of error and the call.
fn brief(message: &str) -> String {
    let is_frame = |line: &str| {
        line.is_empty() || line.ends_with(" Error") || line == "Caused by:" || line.starts_with("In Device::")
    };
    let line = message.lines().map(str::trim).find(|line| !is_frame(line)).unwrap_or(message.trim());
    line.chars().take(MOST_WORDS).collect()
}

#[derive(Serialize, Deserialize)]
struct Kept {
    tested_on: Origin,
    #[serde(flatten)]
    trust: Trust,
}

impl Trust {
    /// Whether `variant` was tested.
    pub fn knows(&self, variant: &Variant) -> bool {
        let label = variant.label();
        self.right.contains(&label) || self.wrong.iter().any(|wrong| wrong.variant == label)
    }

    /// Labels of the variants that computed the same.
    pub fn right(&self) -> impl Iterator<Item = &str> {
        self.right.iter().map(String::as_str)
    }

    /// The variants that computed something else, or do not compile.
    pub fn wrong(&self) -> &[WrongVariant] {
        &self.wrong
    }

    /// Whether `operation` should run its portable variants.
    pub fn is_wrong(&self, operation: &str) -> bool {
        self.wrong.iter().any(|wrong| wrong.operation == operation)
    }

    /// The file for this device. `None` if there is no cache folder.
    pub fn path(gpu: &Gpu, tunable: &Tunable) -> Option<PathBuf> {
        Origin::of(gpu, tunable).path(gpu, "self-test")
    }

    fn read(gpu: &Gpu, tunable: &Tunable) -> Trust {
        let Some(path) = Trust::path(gpu, tunable).filter(|path| path.exists()) else {
            return Trust::default();
        };
        Trust::parse(&path, &Origin::of(gpu, tunable)).unwrap_or_else(|message| {
            log::warn!("`{}` is not used, kernels are tested again: {message}", path.display());
            Trust::default()
        })
    }

    fn parse(path: &Path, origin: &Origin) -> Result<Trust, String> {
        let text = file::read(path, MOST_BYTES).map_err(|e| e.to_string())?;
        let kept: Kept = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        if kept.tested_on != *origin {
            return Err("it is of another device, driver or version".into());
        }
        Ok(kept.trust)
    }

    fn save(&self, gpu: &Gpu, tunable: &Tunable) -> std::io::Result<()> {
        let Some(path) = Trust::path(gpu, tunable) else { return Ok(()) };
        let kept = Kept { tested_on: Origin::of(gpu, tunable), trust: self.clone() };
        cache::write_whole(&path, &serde_json::to_vec_pretty(&kept)?)
    }
}

impl Gpu {
    /// Whether kernels are tested on this device.
    pub(crate) fn wants_self_test(&self) -> bool {
        match self.inner.self_test {
            SelfTest::Hardware => self.info().device_type != wgpu::DeviceType::Cpu,
            SelfTest::Always => true,
            SelfTest::Never => false,
        }
    }

    /// What self-tests have found on this device so far, and what did not compile; the file is read at the first call. If
    /// there should be no self-test, only what this `Gpu` could not compile.
    pub fn trust(&self, tunable: &Tunable) -> Trust {
        lock(self.known_trust(tunable)).clone()
    }

    fn known_trust(&self, tunable: &Tunable) -> &Mutex<Trust> {
        let known = || if self.wants_self_test() { Trust::read(self, tunable) } else { Trust::default() };
        self.inner.trust.get_or_init(|| known().into())
    }

    /// Adds what was found, and keeps it for later runs if they are to believe it.
    pub(crate) fn add_trust(&self, tunable: &Tunable, right: Vec<String>, wrong: Vec<WrongVariant>) {
        let mut trust = lock(self.known_trust(tunable));
        trust.right.extend(right);
        trust.wrong.extend(wrong);
        if !self.wants_self_test() {
            return;
        }
        if let Err(error) = trust.save(self, tunable) {
            log::warn!("the self-test's result is not kept, kernels will be tested again: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_driver_or_shader_is_refused() {
        let dir = tempfile::TempDir::new().expect("a temporary folder");
        let path = dir.path().join("self-test.json");
        let wrong = |variant: &str, refusal: Option<&str>| WrongVariant {
            operation: "attention".into(),
            variant: variant.into(),
            error: None,
            refusal: refusal.map(str::to_string),
        };
        let wrong = vec![wrong("attention_reg", None), wrong("attention_coop", Some("no"))];
        let trust = Trust { right: BTreeSet::from(["linear WG=8".into()]), wrong };
        let [driver, shaders] = ["driver 1", "0123"].map(str::to_string);
        let origin = Origin::test(&driver, &shaders);
        let write = |text: &[u8]| std::fs::write(&path, text).expect("it can be written");
        let kept = Kept { tested_on: origin.clone(), trust: trust.clone() };
        let text = serde_json::to_vec(&kept).expect("JSON");
        write(&text);
        assert_eq!(Trust::parse(&path, &origin).as_ref(), Ok(&trust));
        assert!(trust.is_wrong("attention") && !trust.is_wrong("linear"));
        for other in [Origin::test("driver 2", &shaders), Origin::test(&driver, "0124")] {
            assert!(Trust::parse(&path, &other).is_err_and(|m| m.contains("another")));
        }
        for broken in [&b""[..], b"[]", b"{\"wrong\": 3}", &text[..text.len() / 2]] {
            write(broken);
            assert!(Trust::parse(&path, &origin).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_compiler_s_message_is_kept_in_a_line() {
        let message = "Validation Error\n\nCaused by:\n  In Device::create_shader_module, label = 'a b'\n    \n\
                       Shader 'a b' parsing error: no such type\n  ┌─ wgsl:3:1\n";
        assert_eq!(brief(message), "Shader 'a b' parsing error: no such type");
        assert_eq!(brief(" error X3663: barrier \n more"), "error X3663: barrier");
        assert_eq!(brief(&"ü".repeat(1000)).chars().count(), MOST_WORDS);
        assert_eq!(brief("Internal Error\n"), "Internal Error");
    }
}
