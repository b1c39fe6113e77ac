//! Measured choices of variants for a device, kept in a file between runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Gpu, cache};
use crate::dtype::Dtype;
use crate::file;

/// Largest file that is read. A choice takes about 100 bytes.
const MOST_BYTES: u64 = 16 << 20;

/// A product with weights, with all that the choice of its variant may depend on. That excludes the number of rows, so
/// that a row's result does not depend on its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Product {
    /// The operation that contains the product.
    pub operation: &'static str,
    /// Whether the rows are a prompt's or decode rows.
    pub is_prompt: bool,
    /// Type of the weights.
    pub dtype: Dtype,
    /// Rows of the weights.
    pub n_out: usize,
    /// Columns of the weights.
    pub n_in: usize,
}

/// The chosen variants of products, by name. Default: the capabilities choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    choices: HashMap<Product, &'static str>,
    /// The choice for all other products.
    others: Option<&'static str>,
}

/// The names of the operations and their variants, and a hash of the shaders: a choice is valid only for the shaders
/// that it was measured with.
#[derive(Clone, Copy, Debug)]
pub struct Tunable {
    /// Operations.
    pub operations: &'static [&'static str],
    /// Variants.
    pub variants: &'static [&'static str],
    /// Hash of the shaders.
    pub shaders: u64,
}

/// What findings about a device are valid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    program: String,
    adapter: String,
    driver: String,
    backend: String,
    capabilities: String,
    shaders: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    measured_on: Origin,
    choices: Vec<Choice>,
}

#[derive(Serialize, Deserialize)]
struct Choice {
    operation: String,
    rows: String,
    #[serde(rename = "type")]
    dtype: String,
    n_out: usize,
    n_in: usize,
    variant: String,
}

/// Names of the kinds of rows in a file, indexed by [`Product::is_prompt`].
const ROWS: [&str; 2] = ["decode", "prompt"];

impl Tuning {
    /// The same variant for every product that can take it, to list what measurements may choose.
    pub fn same(variant: &'static str) -> Tuning {
        Tuning { choices: HashMap::new(), others: Some(variant) }
    }

    /// The choice for a product.
    pub fn get(&self, product: &Product) -> Option<&'static str> {
        self.choices.get(product).copied().or(self.others)
    }

    /// Sets the choice for a product. `None` restores the default.
    pub fn set(&mut self, product: Product, variant: Option<&'static str>) {
        match variant {
            Some(variant) => self.choices.insert(product, variant),
            None => self.choices.remove(&product),
        };
    }

    /// The number of choices.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether there are no choices, so that every product runs its default.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The file with the choices for this device. `None` if there is no cache folder.
    pub fn path(gpu: &Gpu, tunable: &Tunable) -> Option<PathBuf> {
        Origin::of(gpu, tunable).path(gpu, "tuning")
    }

    /// Reads the choices that are kept for this device. A file that cannot be used gives a warning and no choices.
    pub fn read(gpu: &Gpu, tunable: &Tunable) -> Tuning {
        let Some(path) = Tuning::path(gpu, tunable).filter(|path| path.exists()) else {
            return Tuning::default();
        };
        Tuning::parse(&path, &Origin::of(gpu, tunable), tunable).unwrap_or_else(|message| {
            log::warn!("`{}` is not used, default variants run: {message}", path.display());
            Tuning::default()
        })
    }

    fn parse(path: &Path, origin: &Origin, tunable: &Tunable) -> Result<Tuning, String> {
        let text = file::read(path, MOST_BYTES).map_err(|e| e.to_string())?;
        let kept: Kept = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        if kept.measured_on != *origin {
            return Err("it was measured on another device, or with another version".into());
        }
        let mut tuning = Tuning::default();
        for choice in kept.choices {
            match choice.known(tunable) {
                Ok((product, variant)) => tuning.set(product, Some(variant)),
                Err(word) => log::warn!("`{}`: `{word}` is not known and ignored", path.display()),
            }
        }
        Ok(tuning)
    }

    /// Keeps the choices for later runs on this device. The file is written completely or not at all.
    ///
    /// # Errors
    /// The system's, or `NotFound` if there is no cache folder.
    pub fn save(&self, gpu: &Gpu, tunable: &Tunable) -> std::io::Result<PathBuf> {
        let path = Tuning::path(gpu, tunable)
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "there is no cache folder"))?;
        let mut all: Vec<_> = self.choices.iter().collect();
        all.sort();
        let choice = |(product, variant): (&Product, &&'static str)| Choice {
            operation: product.operation.into(),
            rows: ROWS[usize::from(product.is_prompt)].into(),
            dtype: product.dtype.name().into(),
            n_out: product.n_out,
            n_in: product.n_in,
            variant: (*variant).into(),
        };
        let kept =
            Kept { measured_on: Origin::of(gpu, tunable), choices: all.into_iter().map(choice).collect() };
        cache::write_whole(&path, &serde_json::to_vec_pretty(&kept)?)?;
        Ok(path)
    }
}

impl Origin {
    pub fn of(gpu: &Gpu, tunable: &Tunable) -> Origin {
        let (info, caps) = (gpu.info(), gpu.caps());
        let driver = format!("{} {}", info.driver, info.driver_info).trim().to_string();
        Origin {
            program: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
            adapter: info.name.clone(),
            driver,
            backend: info.backend.to_str().into(),
            // These can be disabled, and a measurement is valid only for the same set.
            capabilities: format!(
                "f16 {}, int64 {}, subgroups {:?}, software {}, matrices {:?}",
                caps.f16, caps.int64, caps.subgroups, caps.cpu, caps.cooperative_matrices
            ),
            shaders: format!("{:016x}", tunable.shaders),
        }
    }

    /// One for tests.
    #[cfg(test)]
    pub fn test(driver: &str, shaders: &str) -> Origin {
        Origin {
            program: "p".into(),
            adapter: "a".into(),
            driver: driver.into(),
            backend: String::new(),
            capabilities: String::new(),
            shaders: shaders.into(),
        }
    }

    /// The file with findings of the kind `what`. `None` if there is no cache folder.
    pub fn path(&self, gpu: &Gpu, what: &str) -> Option<PathBuf> {
        let dir = gpu.inner.cache_dir.as_deref()?;
        let Origin { program, adapter, driver, backend, capabilities, shaders } = self;
        let all = [program, adapter, driver, backend, capabilities, shaders].map(|text| &**text).join("\n");
        Some(dir.join(format!("{what}-{:016x}.json", fnv(0, all.as_bytes()))))
    }
}

impl Choice {
    /// The choice with known names, or the first unknown name.
    fn known(&self, tunable: &Tunable) -> Result<(Product, &'static str), &str> {
        let find = |known: &'static [&'static str], word| known.iter().copied().find(|k| *k == word);
        let operation = find(tunable.operations, &*self.operation).ok_or(&*self.operation)?;
        let variant = find(tunable.variants, &*self.variant).ok_or(&*self.variant)?;
        let is_prompt = ROWS.iter().position(|rows| *rows == self.rows).ok_or(&*self.rows)? == 1;
        let dtype = Dtype::from_name(&self.dtype).ok_or(&*self.dtype)?;
        Ok((Product { operation, is_prompt, dtype, n_out: self.n_out, n_in: self.n_in }, variant))
    }
}

/// The FNV-1a hash of `bytes`, continued from `hash` (0 to start). Every build gives the same value, unlike the
/// standard library's hashes.
pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    let begin = if hash == 0 { 0xcbf2_9ce4_8422_2325 } else { hash };
    bytes.iter().fold(begin, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNABLE: Tunable = Tunable { operations: &["linear"], variants: &["few", "tile"], shaders: 1 };

    fn origin() -> Origin {
        Origin::test("", "")
    }

    fn parse(text: &str) -> Result<Tuning, String> {
        let dir = tempfile::TempDir::new().expect("a temporary folder");
        let path = dir.path().join("tuning.json");
        std::fs::write(&path, text).expect("it can be written");
        Tuning::parse(&path, &origin(), &TUNABLE)
    }

    fn choice(operation: &str, rows: &str, dtype: &str, variant: &str) -> Choice {
        let [operation, rows, dtype, variant] = [operation, rows, dtype, variant].map(str::to_string);
        Choice { operation, rows, dtype, n_out: 3, n_in: 5, variant }
    }

    #[test]
    fn unknown_words_are_left_out_and_broken_files_refused() {
        let choices = vec![
            choice("linear", "prompt", "F16", "tile"),
            choice("linear", "prompt", "F16", "of tomorrow"),
            choice("lonely", "prompt", "F16", "tile"),
            choice("linear", "both", "F16", "tile"),
            choice("linear", "decode", "F12", "few"),
        ];
        let kept = serde_json::to_string(&Kept { measured_on: origin(), choices }).expect("JSON");
        let tuning = parse(&kept).expect("it can be read");
        let product = Product { operation: "linear", is_prompt: true, dtype: Dtype::F16, n_out: 3, n_in: 5 };
        assert_eq!((tuning.len(), tuning.get(&product)), (1, Some("tile")));
        assert_eq!(tuning.get(&Product { is_prompt: false, ..product }), None);
        for broken in ["", "[]", "{\"choices\": 3}", &kept[..kept.len() / 2]] {
            assert!(parse(broken).is_err(), "{broken}");
        }
        let dir = tempfile::TempDir::new().expect("a temporary folder");
        assert!(Tuning::parse(dir.path(), &origin(), &TUNABLE).is_err_and(|m| m.contains("a folder")));
        let foreign = Origin { adapter: "b".into(), ..origin() };
        let kept = serde_json::to_string(&Kept { measured_on: foreign, choices: vec![] }).expect("JSON");
        assert!(parse(&kept).is_err_and(|message| message.contains("another device")));
    }
}
