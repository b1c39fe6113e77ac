//! The compilers that `.ci/compilers` installs, and what is said where one is missing.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use wginfer::gpu::{Variant, fnv};

use super::common;

/// If set to `1`, slow compilers get every variant instead of a sample.
const ALL_ENV: &str = "WGINFER_ALL_VARIANTS";

/// Whether slow compilers get every variant.
pub fn takes_all() -> bool {
    std::env::var(ALL_ENV).is_ok_and(|value| value == "1")
}

/// What slow compilers get: all of `variants` if that is asked for, else about a hundred, the same ones as long as they
/// exist. Each kernel with each part and with each value of an override is in at least one.
pub fn chosen(variants: &[Variant]) -> Vec<Variant> {
    if takes_all() {
        return variants.to_vec();
    }
    let mut by_hash: Vec<&Variant> = variants.iter().collect();
    by_hash.sort_by_key(|variant| fnv(0, variant.label().as_bytes()));
    let mut seen = HashSet::new();
    let mut sample = Vec::new();
    for variant in by_hash {
        let kernel = variant.kernel.name;
        let parts = variant.parts().map(|part| format!("{kernel}+{}", part.name));
        let values = variant.overrides().map(|(name, value)| format!("{kernel} {name}={value}"));
        let features: Vec<String> = parts.chain(values).chain([kernel.to_string()]).collect();
        if features.iter().any(|feature| !seen.contains(feature)) {
            seen.extend(features);
            sample.push(*variant);
        }
    }
    sample
}

/// The folder of the compilers, where `.ci/compilers` puts them.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/compilers")
}

/// An empty folder for the shaders of a check.
pub fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("backends").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a folder for shaders");
    dir
}

/// The first of `names` among the programs of the system.
pub fn program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps a Wine without 32-bit programs out of PATH.
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/lib/wine")]).collect();
    names.iter().flat_map(|name| folders.iter().map(move |dir| dir.join(name))).find(|path| path.is_file())
}

/// Calls `work` for each item, on every processor, and returns what it says of those that fail.
pub fn failures<T: Sync, E: IntoIterator<Item = String>>(
    items: &[T],
    work: impl Fn(&T) -> E + Sync,
) -> Vec<String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let messages = work(item);
                    failed.lock().expect("no worker panicked").extend(messages);
                }
            });
        }
    });
    failed.into_inner().expect("no worker panicked")
}

/// Fails with the first of `failed`, if there are any.
pub fn assert_none(what: &str, n: usize, failed: &[String]) {
    let first: Vec<&str> = failed.iter().take(5).map(String::as_str).collect();
    assert!(failed.is_empty(), "{what}: {} of {n} failed, for example\n{}", failed.len(), first.join("\n\n"));
    common::say(&format!("{what}: {n} compiled"));
}

/// Runs a command with `input`; returns its standard output. Standard error is not kept.
pub fn run(command: &mut Command, input: &str) -> std::io::Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
