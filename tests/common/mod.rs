//! Shared by the tests on a device: the device, random data, the comparison with the reference.
#![allow(dead_code)] // each test binary uses its own part of this

pub mod gguf;
#[path = "../../src/bench/reference/mod.rs"]
pub mod reference;
pub mod requests;

use std::io::Write;
use std::sync::OnceLock;

use half::{bf16, f16};
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuError, GpuOptions, Recorder, Tensor};

/// If set to `1`, tests that need a device are skipped if there is none, and print that.
const SKIP_ENV: &str = "WGINFER_SKIP_GPU_TESTS";

/// Writes a line to standard error that the test harness does not capture, unlike `eprintln!`'s.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A file to which a line is added for each check that was not run.
const NOT_RUN_ENV: &str = "WGINFER_NOT_RUN";

/// Says that a check was not run, on standard error and in the file for such lines.
pub fn not_run(check: &str, why: &str) {
    let line = format!("NOT RUN: {check}: {why}");
    say(&line);
    if let Some(path) = std::env::var_os(NOT_RUN_ENV) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        writeln!(file.expect("the file for checks that were not run"), "{line}").expect("it can be written");
    }
}

/// Opens a device. `None` if there is no adapter and the environment allows to skip.
///
/// # Panics
/// If there is no adapter and the environment does not allow to skip.
pub fn open(options: &GpuOptions) -> Option<Gpu> {
    match Gpu::open(options) {
        Ok(gpu) => Some(gpu),
        Err(GpuError::NoAdapter) if std::env::var(SKIP_ENV).is_ok_and(|v| v == "1") => {
            say(&format!("skipped, no adapter: {}", std::thread::current().name().unwrap_or("a test")));
            None
        }
        Err(error) => {
            let hint = error.hint().unwrap_or_default();
            panic!("{error}\nhint: {hint}\nhint: {SKIP_ENV}=1 skips the tests that need a device");
        }
    }
}

/// The device with all its capabilities. All tests of a binary share it.
pub fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    match GPU.get_or_init(|| open(&GpuOptions::default())) {
        Some(gpu) => Some(gpu.clone()),
        None => open(&GpuOptions::default()), // prints which test is skipped
    }
}

/// The device without subgroups, so that the portable variants run.
pub fn portable() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let options = GpuOptions { disable: "subgroups".into(), ..GpuOptions::default() };
    GPU.get_or_init(|| open(&options)).clone()
}

/// The device as if it were hardware, to test the variants that no software device runs by default.
pub fn hardware() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let options = GpuOptions { disable: "software".into(), ..GpuOptions::default() };
    GPU.get_or_init(|| open(&options)).clone()
}

/// The device as if it were hardware, if it has cooperative matrices that kernels can use; prints a line if not.
pub fn coop() -> Option<Gpu> {
    let gpu = hardware()?;
    if gpu.caps().coop_tile().is_none() {
        let test = std::thread::current().name().unwrap_or("a test").to_string();
        say(&format!("skipped, `{}` has no cooperative matrices for them: parts of {test}", gpu.info().name));
        return None;
    }
    Some(gpu)
}

/// The device with F32 products, for comparisons with another implementation in F32.
pub fn exact() -> Option<Gpu> {
    open(&GpuOptions { f32_products: true, ..GpuOptions::default() })
}

/// The device with its subgroups and without.
pub fn gpus() -> Vec<Gpu> {
    gpu().into_iter().chain(portable()).collect()
}

/// The device as if it were hardware with subgroups of no certain width.
pub fn any_width() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let options = GpuOptions {
        disable: "software,subgroup-probe".into(),
        // What lavapipe can have, whatever it has on this machine.
        subgroup_range: Some([4, 64]),
        ..GpuOptions::default()
    };
    GPU.get_or_init(|| open(&options)).clone()
}

/// The device with each part by which lanes reduce values: subgroups of a certain width, of any width, and none.
pub fn reducing() -> Vec<Gpu> {
    gpus().into_iter().chain(any_width()).collect()
}

/// Records, submits and waits.
pub fn run(gpu: &Gpu, record: impl FnOnce(&mut Recorder)) {
    let mut rec = Recorder::new(gpu).expect("a recorder");
    record(&mut rec);
    gpu.submit(rec.finish().expect("all kernels compile")).expect("submit");
    gpu.wait().expect("the device works");
}

/// SplitMix64 (Steele et al. 2014): small, and the same on every platform.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0 … n − 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in 0 … 1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Approximately normal, within ±6: the sum of twelve uniforms.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// `n` normal values times `scale`.
    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * scale).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// `[rows, cols]` values in f64, row by row.
pub fn rows_f64(data: &[f32], n_cols: usize) -> Vec<Vec<f64>> {
    data.chunks(n_cols).map(to_f64).collect()
}

pub fn to_f64(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| f64::from(x)).collect()
}

/// The tensor `[n_rows, n_cols]` of `data` in `dtype`, and the values as they were rounded. In a type that the device does
/// not quantise to, random blocks with the standard deviation of `data`, and their values.
pub fn upload(gpu: &Gpu, dtype: Dtype, [n_rows, n_cols]: [usize; 2], data: &[f32]) -> (Tensor, Vec<f32>) {
    assert_eq!(data.len(), n_rows * n_cols);
    let tensor = Tensor::weights(gpu, "test", [n_rows, n_cols], dtype).expect("it fits");
    if dtype.is_quantised() {
        return quantised(gpu, tensor, data);
    }
    let rounded: Vec<f32> = data.iter().map(|&x| round(dtype, x)).collect();
    let row_bytes = tensor.row_bytes();
    let mut bytes = vec![0; row_bytes * n_rows];
    for (to, from) in bytes.chunks_mut(row_bytes.max(1)).zip(data.chunks(n_cols)) {
        let packed: Vec<u8> = match dtype {
            Dtype::F16 => from.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => from.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => from.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        to[..packed.len()].copy_from_slice(&packed);
    }
    tensor.write(gpu, 0, &bytes);
    (tensor, rounded)
}

/// Quantises on the device, if it can, and decodes the result. Another test compares that with ggml's rules.
fn quantised(gpu: &Gpu, tensor: Tensor, data: &[f32]) -> (Tensor, Vec<f32>) {
    let n_cols = tensor.n_cols();
    if !Dtype::QUANTISED.contains(&tensor.dtype()) {
        let squares: f32 = data.iter().map(|x| x * x).sum();
        let seed = data.iter().fold(0u32, |seed, x| seed.wrapping_mul(31).wrapping_add(x.to_bits()));
        wginfer::ops::random_blocks(gpu, &tensor, seed, (squares / data.len() as f32).sqrt());
        return decoded(gpu, tensor);
    }
    for (view, rows) in tensor.ranges().zip(tensor.ranges().map(|view| view.rows)) {
        let piece = &data[rows.start * n_cols..rows.end * n_cols];
        // Row by row, for narrow bindings.
        let step = if tensor.ranges().count() > 1 { 1 } else { view.rows.len() };
        for (i, part) in piece.chunks(step * n_cols).enumerate() {
            let n = part.len() / n_cols;
            let source = tensor_f32(gpu, [n, n_cols], part);
            run(gpu, |rec| wginfer::ops::quantize(rec, &source, &tensor, rows.start + i * step, n));
        }
    }
    decoded(gpu, tensor)
}

/// A quantised tensor, and its values.
fn decoded(gpu: &Gpu, tensor: Tensor) -> (Tensor, Vec<f32>) {
    let n_cols = tensor.n_cols();
    let words = gpu.read_words(&tensor).expect("it reads back");
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    let rows = bytes.chunks(tensor.row_bytes()).take(tensor.n_rows());
    let padded = tensor.stride();
    let decode = |row| reference::quant::decode(tensor.dtype().name(), row, padded)[..n_cols].to_vec();
    let values = rows.flat_map(decode).collect();
    (tensor, values)
}

pub fn round(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

pub fn tensor_f32(gpu: &Gpu, shape: [usize; 2], data: &[f32]) -> Tensor {
    Tensor::from_f32(gpu, "test", shape, data).expect("it fits")
}

pub fn tensor_u32(gpu: &Gpu, shape: [usize; 2], data: &[u32]) -> Tensor {
    Tensor::from_u32(gpu, "test", shape, data).expect("it fits")
}

pub fn zeros(gpu: &Gpu, shape: [usize; 2], dtype: Dtype) -> Tensor {
    Tensor::zeros(gpu, "test", shape, dtype).expect("it fits")
}

/// A tensor filled with a value that marks elements that were not overwritten; the padding is zero.
pub fn filled(gpu: &Gpu, shape: [usize; 2], value: f32) -> Tensor {
    tensor_f32(gpu, shape, &vec![value; shape[0] * shape[1]])
}

pub fn read(gpu: &Gpu, tensor: &Tensor) -> Vec<f32> {
    gpu.read_f32(tensor).expect("it reads back")
}

pub fn read_u32(gpu: &Gpu, tensor: &Tensor) -> Vec<u32> {
    let mut words = gpu.read_words(tensor).expect("it reads back");
    words.truncate(tensor.n_rows() * tensor.n_cols());
    words
}

/// Asserts that the padding of a tensor's rows is still zero: kernels rely on it.
#[track_caller]
pub fn assert_padding_is_zero(gpu: &Gpu, tensor: &Tensor) {
    let words = gpu.read_words(tensor).expect("it reads back");
    for row in words.chunks(tensor.stride()).take(tensor.n_rows()) {
        // Minus zero is zero.
        assert!(row[tensor.n_cols()..].iter().all(|w| w << 1 == 0), "{tensor:?}: padding was written");
    }
}

/// The allowed error of a result: `C · eps · sqrt(n_terms) · scale`. Rounding errors of a sum grow like a
/// random walk; `scale` is the size of what is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Relative precision of the arithmetic or of the type that the result is stored in.
    pub eps: f32,
    /// Roundings that add up.
    pub n_terms: usize,
    /// Size of the values that are rounded.
    pub scale: f64,
}

/// Covers the few units in the last place that WGSL allows `exp`, `tanh` and division.
const C: f64 = 4.0;

impl Tolerance {
    pub fn f32(n_terms: usize, scale: f64) -> Tolerance {
        Tolerance { eps: f32::EPSILON, n_terms, scale }
    }

    pub fn value(self) -> f64 {
        C * f64::from(self.eps) * (self.n_terms as f64).sqrt() * self.scale
    }
}

/// The largest magnitude.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

fn compare(got: &[f32], want: &[f64], tolerance: f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} values, expected {}", got.len(), want.len()));
    }
    // NaN is never within the tolerance.
    let within = |i: &usize| (f64::from(got[*i]) - want[*i]).abs() <= tolerance;
    let wrong: Vec<usize> = (0..got.len()).filter(|i| !within(i)).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> =
        wrong.iter().take(5).map(|&i| format!("[{i}] {} expected {}", got[i], want[i])).collect();
    let (n, all, first) = (wrong.len(), got.len(), shown.join(", "));
    Err(format!("{n} of {all} differ by more than {tolerance:e}: {first}"))
}

/// Asserts that `got` equals `want` within the tolerance, that `want` is not trivial, and that the comparison
/// notices a single element moved by three tolerances.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: Tolerance) {
    let allowed = tolerance.value();
    if let Err(message) = compare(got, want, allowed) {
        panic!("{what}: {message}");
    }
    let (low, high) = want.iter().fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    assert!(largest(want) > 10.0 * allowed, "{what}: the reference is almost zero");
    assert!(want.len() < 3 || high - low > 10.0 * allowed, "{what}: the reference is all {low}");
    let mut moved = want.to_vec();
    moved[want.len() * 5 / 8] += 3.0 * allowed;
    assert!(compare(got, &moved, allowed).is_err(), "{what}: a wrong reference passes");
}

/// Asserts equality of bits.
#[track_caller]
pub fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = (0..a.len()).filter(|&i| a[i].to_bits() != b[i].to_bits()).collect::<Vec<_>>();
    if let Some(&i) = differ.first() {
        panic!("{what}: {} of {} differ, [{i}] {} and {}", differ.len(), a.len(), a[i], b[i]);
    }
    assert!(a.iter().any(|x| *x != 0.0), "{what}: all zeros");
}

/// The values of a safetensors tensor.
pub fn tensor_values(dtype: safetensors::Dtype, data: &[u8]) -> Vec<f32> {
    match dtype {
        safetensors::Dtype::F32 => {
            data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        safetensors::Dtype::F16 => {
            data.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        safetensors::Dtype::BF16 => {
            data.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Values as a safetensors tensor in F32, F16 or BF16.
pub fn tensor_bytes(dtype: Dtype, values: &[f32]) -> (safetensors::Dtype, Vec<u8>) {
    match dtype {
        Dtype::F32 => (safetensors::Dtype::F32, gguf::encoded(0, values)),
        Dtype::F16 => (safetensors::Dtype::F16, gguf::encoded(1, values)),
        Dtype::BF16 => (safetensors::Dtype::BF16, gguf::encoded(30, values)),
        other => panic!("{other}"),
    }
}
