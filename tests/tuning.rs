//! Measured choices of variants are kept, read, and used where they can be, but never trusted
//! further.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Rng, Tolerance, assert_close, filled, read, run, tensor_f32, upload};
use wginfer::bench::{self, Shape, TuneOptions};
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuOptions, Product, Recorder, Tensor, Tuning};
use wginfer::ops::{self, Act, Affine, Input, Rows};

/// The log of all tests.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().starts_with("wginfer")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LOG.0.lock().expect("no test fails in here").push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn listen() {
    let _ = log::set_logger(&LOG);
    log::set_max_level(log::LevelFilter::Warn);
}

/// The warnings that contain `word`.
fn heard(word: &str) -> Vec<String> {
    let all = LOG.0.lock().expect("no test fails in here");
    all.iter().filter(|line| line.contains(word)).cloned().collect()
}

/// A device whose choices are kept in `dir`.
fn open(dir: &tempfile::TempDir, disable: &str) -> Option<Gpu> {
    let cache_dir = Some(dir.path().to_path_buf());
    common::open(&GpuOptions { cache_dir, disable: disable.into(), ..GpuOptions::default() })
}

const N: [usize; 2] = [67, 203];

fn product(operation: &'static str, is_prompt: bool) -> Product {
    Product { operation, is_prompt, dtype: Dtype::F16, n_out: N[0], n_in: N[1] }
}

/// The kernels of a product of 3 decode rows and 70 prompt rows.
fn kernels(gpu: &Gpu) -> Vec<&'static str> {
    let (w, _) = upload(gpu, Dtype::F16, N, &vec![0.5; N[0] * N[1]]);
    let (x, y) = (filled(gpu, [73, N[1]], 1.0), filled(gpu, [73, N[0]], 0.0));
    let mut rec = Recorder::new(gpu).expect("a recorder");
    let n = Rows { n_decode: 3, n_prompt: 70 };
    let mut names: Vec<_> = rec
        .variants(|rec| ops::linear(rec, Affine::new(&x, &w, None), false, &y, n))
        .iter()
        .map(|v| v.kernel.name)
        .collect();
    names.dedup();
    names
}

#[test]
fn a_kept_choice_is_used() {
    let dir = tempfile::TempDir::new().expect("a temporary folder");
    let Some(gpu) = open(&dir, "") else { return };
    let by_default = kernels(&gpu);
    let is_tiled = by_default.contains(&"linear_tile");
    let mut tuning = Tuning::default();
    tuning.set(product("linear", true), Some(if is_tiled { "few" } else { "tile" }));
    let path = tuning.save(&gpu, ops::tunable()).expect("it can be kept");
    assert!(path.starts_with(dir.path()) && path.exists());
    assert_eq!(kernels(&gpu), by_default, "what is open has read already");

    let expected = if is_tiled { vec!["linear"] } else { vec!["linear", "linear_tile"] };
    assert_eq!(kernels(&open(&dir, "").expect("as before")), expected);
    assert_eq!(kernels(&open(&dir, "tuning").expect("as before")), by_default, "switched off");
    assert_eq!(Tuning::read(&gpu, ops::tunable()), tuning);
    // A measurement with all capabilities is not valid for the device without them.
    let less = open(&dir, "f16").expect("as before");
    assert_ne!(Tuning::path(&less, ops::tunable()), Some(path));
    assert!(Tuning::read(&less, ops::tunable()).is_empty());

    let nowhere = common::gpu().expect("as before");
    assert_eq!(Tuning::path(&nowhere, ops::tunable()), None);
    assert!(tuning.save(&nowhere, ops::tunable()).is_err());
}

#[test]
fn what_cannot_be_used_is_named_and_defaults_run() {
    listen();
    let dir = tempfile::TempDir::new().expect("a temporary folder");
    let Some(gpu) = open(&dir, "") else { return };
    let by_default = kernels(&gpu);
    let mut tuning = Tuning::default();
    // Decode rows never take F16 inputs, and few devices can.
    tuning.set(product("linear", false), Some("coop small"));
    tuning.set(product("linear", true), Some("few"));
    let path = tuning.save(&gpu, ops::tunable()).expect("it can be kept");
    let name = path.display().to_string();
    let text = std::fs::read_to_string(&path).expect("it is there");
    assert!(heard(&name).is_empty(), "{:?}", heard(&name));

    std::fs::write(&path, text.replace("\"few\"", "\"of tomorrow\"")).expect("it can be written");
    assert_eq!(kernels(&open(&dir, "").expect("as before")), by_default);
    let said = heard(&name);
    assert!(said.len() == 1 && said[0].contains("`of tomorrow` is not known"), "{said:?}");

    for broken in [text[..text.len() / 2].to_string(), text.replace("wginfer", "another"), String::new()] {
        let before = heard(&name).len();
        std::fs::write(&path, broken).expect("it can be written");
        assert_eq!(kernels(&open(&dir, "").expect("as before")), by_default);
        let said = heard(&name);
        assert!(said.len() == before + 1 && said[before].contains("is not used"), "{said:?}");
    }
}

type Launch<'a> = dyn Fn(&mut Recorder, &Tensor, Rows) + 'a;

/// For every choice, a row's result is right, and has the same bits in every batch.
#[test]
fn rows_do_not_depend_on_the_batch_whatever_is_chosen() {
    let gpus = [common::gpu(), common::portable(), common::hardware(), common::coop()];
    for gpu in gpus.into_iter().flatten() {
        let mut rng = Rng::new(15);
        let (most, n_up, n_in) = (41, 2 * 34, N[1]);
        let x = tensor_f32(&gpu, [most, n_in], &rng.normals(most * n_in, 1.0));
        let (w, _) = upload(&gpu, Dtype::Q8_0, [n_up, n_in], &rng.normals(n_up * n_in, 0.1));
        let h = filled(&gpu, [most, n_in], f32::NAN);
        let norm =
            ops::RmsNorm { w: tensor_f32(&gpu, [1, n_in], &rng.normals(n_in, 1.0)), eps: 1e-5, offset: 0.0 };
        let open = |is_prompt| ops::product_variants(gpu.caps(), is_prompt);
        let mut first: [Option<Vec<f32>>; 2] = [None, None];
        for decode in open(false) {
            for prompt in open(true) {
                let mut tuning = Tuning::default();
                for operation in ["linear", "gate_up"] {
                    for (is_prompt, name) in [(false, decode), (true, prompt)] {
                        let product = Product { operation, is_prompt, dtype: w.dtype(), n_out: n_up, n_in };
                        tuning.set(product, Some(name));
                    }
                }
                let tuning = Arc::new(tuning);
                let input = Input { x: &x, norm: Some((&norm, &h)) };
                let product = Affine::new(input, &w, None);
                let linear = |rec: &mut Recorder, y: &Tensor, n| ops::linear(rec, product, false, y, n);
                let up = filled(&gpu, [most, n_up], f32::NAN);
                let gate_up =
                    |rec: &mut Recorder, y: &Tensor, n| ops::gate_up(rec, Act::Silu, product, &up, y, n);
                let launches: [(&Launch<'_>, usize); 2] = [(&linear, n_up), (&gate_up, n_up / 2)];
                for ((launch, n_out), first) in launches.into_iter().zip(&mut first) {
                    let of = |n_decode, n_prompt| {
                        let y = filled(&gpu, [most, n_out], f32::NAN);
                        run(&gpu, |rec| {
                            rec.set_tuning(Some(tuning.clone()));
                            launch(rec, &y, Rows { n_decode, n_prompt });
                        });
                        read(&gpu, &y)[..(n_decode + n_prompt) * n_out].to_vec()
                    };
                    let what = format!("{decode}, {prompt}, {n_out} outputs");
                    let (decoded, prompted) = (of(most, 0), of(0, most));
                    for (n_decode, n_prompt) in [(1, 3), (2, 39), (8, 11), (13, 1)] {
                        let both = of(n_decode, n_prompt);
                        let cut = n_decode * n_out;
                        assert!(both[..cut] == decoded[..cut], "{what}: {n_decode} rows that decode");
                        assert!(both[cut..] == prompted[cut..both.len()], "{what}: {n_prompt} of a prompt");
                    }
                    let want = first.get_or_insert_with(|| decoded.clone());
                    let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
                    let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                    assert!(largest > 0.1);
                    let eps =
                        if prompt.starts_with("coop") { half::f16::EPSILON.to_f32() } else { f32::EPSILON };
                    assert_close(&what, &decoded, &want, Tolerance::f32(n_in + 8, largest));
                    assert_close(
                        &what,
                        &prompted,
                        &want,
                        Tolerance { eps, n_terms: n_in + 8, scale: largest },
                    );
                }
            }
        }
    }
}

/// Two small models: one with norms of heads and a gate, one with layer norms and no gate.
const CONFIGS: [&str; 2] = [
    r#"{"model_type": "qwen3", "hidden_size": 72, "intermediate_size": 104, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 203,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0}"#,
    r#"{"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 256,
    "vocab_size": 131, "layer_norm_epsilon": 1e-5}"#,
];

#[test]
fn tuning_measures_every_product_once() {
    // As if it were hardware: on a software device, those defaults are rarely the best.
    let Some(gpu) = common::hardware() else { return };
    let shapes = CONFIGS.map(|config| {
        let file = tempfile::Builder::new().suffix(".json").tempfile().expect("a file");
        std::fs::write(file.path(), config).expect("it can be written");
        Shape::open(&file.path().to_string_lossy()).expect("a shape")
    });
    let mut models: Vec<_> = shapes.map(|shape| (shape, vec![Dtype::Q4_0])).into();
    models.push(models[0].clone());
    let mut options = TuneOptions::new(models);
    options.budget = Duration::from_millis(2);
    options.rotate_bytes = 1 << 20;
    options.n_prompt = 64;
    let report = bench::tune(&gpu, &options, "a test".into(), &mut |_| {}).expect("a report");
    assert!(report.skipped.is_empty(), "{:?}", report.skipped);
    // Four matrices twice and the head: each model has others.
    assert_eq!(report.rows.len(), 2 * 9);
    let heads = report.rows.iter().filter(|row| row.shape.contains(" head "));
    assert!(heads.into_iter().all(|row| row.dtype == "Q8_0" && !row.is_prompt), "as the loader has it");
    let n_qkv = report.rows.iter().filter(|row| row.operation == "qkv").count();
    assert_eq!(n_qkv, 2, "where heads are normalised, a product like others");
    for row in &report.rows {
        let expected = ops::product_variants(gpu.caps(), row.is_prompt);
        assert_eq!(row.default, expected[0]);
        assert!(expected.contains(&&*row.chosen) && row.candidates.len() <= expected.len(), "{row:?}");
        assert!(row.candidates.iter().all(|c| c.fault.is_none() && c.us.is_some()), "{row:?}");
        assert!(row.speedup().is_some_and(|x| x == 1.0 || x >= 1.05), "{row:?}");
    }
    let n_others = report.rows.iter().filter(|row| row.chosen != row.default).count();
    assert_eq!(report.tuning.len(), n_others);

    // A wrong variant is never chosen, however fast it is.
    options.models.truncate(1);
    options.perturbation = 3.0;
    let report = bench::tune(&gpu, &options, "a test".into(), &mut |_| {}).expect("a report");
    assert!(report.tuning.is_empty() && report.rows.len() == 9);
    for row in &report.rows {
        assert_eq!((&row.chosen, row.chosen_us), (&row.default, None));
        let faults = row.candidates.iter().map(|c| c.fault.as_deref().unwrap_or_default());
        assert!(faults.into_iter().all(|fault| fault.starts_with("wrong by")), "{row:?}");
    }

    options.budget = Duration::ZERO;
    let error = bench::tune(&gpu, &options, String::new(), &mut |_| {}).expect_err("no time").to_string();
    assert!(error.contains("`time-ms` is 0"), "{error}");
}
