//! The upload of weights: the same bytes in device memory whatever the slices, at once or late, submitted by us or by a
//! host.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, TensorView};
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuError, ReadbackRing, Recorder, Tensor};
use wginfer::models::{Loader, Upload};
use wginfer::ops;
use wginfer::weights::{Weights, WeightsError};
use wginfer::wgpu;

/// Name, type in the file, and shape.
const FILE: [(&str, Stored, &[usize]); 12] = [
    ("f32", Stored::F32, &[37, 50]),
    ("f16", Stored::F16, &[129, 96]),
    ("bf16", Stored::BF16, &[70, 33]),
    // 5.4 MB: two pieces, three where it is quantised.
    ("large", Stored::F16, &[5000, 544]),
    ("q", Stored::F16, &[20, 72]),
    ("k", Stored::F32, &[10, 72]),
    ("v", Stored::BF16, &[11, 72]),
    ("turned", Stored::F16, &[40, 300]),
    ("conv", Stored::F32, &[12, 5, 3]),
    ("norm", Stored::F16, &[77]),
    ("bias", Stored::BF16, &[11]),
    ("unused", Stored::F32, &[1000]),
];

/// Pieces that these are uploaded in: a stack has one for each part, vectors share theirs.
const N_PIECES: usize = 1 + 1 + 1 + 2 + 3 + 1 + 1 + 1 + 1;

type Values = BTreeMap<&'static str, Vec<f32>>;

/// A folder with such a checkpoint, and what is in it.
fn checkpoint() -> (tempfile::TempDir, Values) {
    let mut rng = common::Rng::new(1);
    let mut values = Values::new();
    let mut bytes = Vec::new();
    for (name, stored, shape) in FILE {
        let exact = rng.normals(shape.iter().product(), 0.5);
        let (rounded, encoded): (Vec<f32>, Vec<u8>) = match stored {
            Stored::F16 => {
                let halves: Vec<f16> = exact.iter().map(|x| f16::from_f32(*x)).collect();
                let encoded = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
                (halves.iter().map(|x| x.to_f32()).collect(), encoded)
            }
            Stored::BF16 => {
                let halves: Vec<bf16> = exact.iter().map(|x| bf16::from_f32(*x)).collect();
                let encoded = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
                (halves.iter().map(|x| x.to_f32()).collect(), encoded)
            }
            _ => (exact.clone(), exact.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        values.insert(name, rounded);
        bytes.push(encoded);
    }
    let views = FILE.iter().zip(&bytes).map(|((name, stored, shape), bytes)| {
        (*name, TensorView::new(*stored, shape.to_vec(), bytes).expect("a view"))
    });
    let dir = tempfile::tempdir().expect("a folder");
    let file = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(dir.path().join("model.safetensors"), file).expect("write");
    (dir, values)
}

/// Plans all tensors but one.
fn plan(gpu: &Gpu, weights: &Arc<Weights>, quantize: Option<Dtype>) -> (Vec<Tensor>, Upload) {
    let mut loader = Loader::new(gpu, weights.clone(), quantize);
    let tensors = vec![
        loader.matrix("f32", [37, 50]),
        loader.matrix("f16", [129, 96]),
        loader.matrix("bf16", [70, 33]),
        loader.table("large", [5000, 544]),
        loader.stack(&[("q", 20), ("k", 10), ("v", 11)], 72),
        loader.transposed("turned", [300, 40]),
        loader.convolution("conv", [12, 5, 3]),
        loader.vector("norm", 77),
        loader.vectors(&[("bias", 11), ("", 20), ("norm", 77)]),
    ];
    let tensors: Vec<Tensor> = tensors.into_iter().collect::<Result<_, _>>().expect("all tensors are there");
    assert_eq!(loader.unused(), ["unused"]);
    // As stored, the stack has parts of three types.
    let parts =
        tensors.iter().flat_map(|tensor| tensor.ranges().map(|range| range.tensor).collect::<Vec<_>>());
    (parts.collect(), loader.finish())
}

/// What those tensors hold, from the values: `[n_rows, n_cols]` of a type, and the quantised type if it is another.
fn expected(gpu: &Gpu, values: &Values, quantize: Option<Dtype>) -> Vec<Vec<u32>> {
    let turned = (0..300 * 40).map(|i| values["turned"][(i % 40) * 300 + i / 40]).collect();
    let stacked = [&values["q"][..], &values["k"], &values["v"]].concat();
    let vectors = [&values["bias"][..], &[0.0; 20], &values["norm"]].concat();
    let of = |name: &str| values[name].clone();
    let table = quantize.map(|_| Dtype::Q8_0);
    let stack = match quantize {
        Some(_) => vec![(stacked, [41, 72], Dtype::F32, quantize)],
        None => vec![
            (of("q"), [20, 72], Dtype::F16, None),
            (of("k"), [10, 72], Dtype::F32, None),
            (of("v"), [11, 72], Dtype::BF16, None),
        ],
    };
    let before = [
        (of("f32"), [37, 50], Dtype::F32, quantize),
        (of("f16"), [129, 96], Dtype::F16, quantize),
        (of("bf16"), [70, 33], Dtype::BF16, quantize),
        (of("large"), [5000, 544], Dtype::F16, table),
    ];
    let after = [
        (turned, [300, 40], Dtype::F16, quantize),
        (of("conv"), [12, 15], Dtype::F32, None),
        (of("norm"), [1, 77], Dtype::F32, None),
        (vectors, [1, 108], Dtype::F32, None),
    ];
    let all = before.into_iter().chain(stack).chain(after);
    all.map(|(values, shape, dtype, quantised)| {
        let mut tensor = Tensor::zeros(gpu, "expected", shape, dtype).expect("it fits");
        for (row, values) in values.chunks(shape[1]).enumerate() {
            let bytes: Vec<u8> = match dtype {
                Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                Dtype::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            tensor.write(gpu, row, &bytes);
        }
        if let Some(dtype) = quantised {
            let whole = Tensor::zeros(gpu, "expected", shape, dtype).expect("it fits");
            common::run(gpu, |rec| ops::quantize(rec, &tensor, &whole, 0, shape[0]));
            tensor = whole;
        }
        gpu.read_words(&tensor).expect("it reads back")
    })
    .collect()
}

/// Who submits: we, or the owner of the queue.
struct Host {
    gpu: Gpu,
    queue: Option<wgpu::Queue>,
}

impl Host {
    fn ourselves() -> Option<Host> {
        common::gpu().map(|gpu| Host { gpu, queue: None })
    }

    fn another() -> Host {
        let instance = wgpu::Instance::default();
        let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
        let (device, queue) =
            pollster::block_on(adapter.request_device(&Gpu::required(&adapter))).expect("a device");
        let gpu = Gpu::adopt(device, queue.clone()).expect("large enough");
        Host { gpu, queue: Some(queue) }
    }

    fn submit(&self, buffer: Option<wgpu::CommandBuffer>) {
        match &self.queue {
            Some(queue) => drop(queue.submit(buffer)),
            None => drop(self.gpu.submit(buffer).expect("submit")),
        }
    }

    fn wait(&self) {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the device works");
    }

    /// Uploads in slices of `n_bytes`, each submitted once `n_late` more are recorded; returns how many there were.
    fn upload(&self, upload: &mut Upload, n_bytes: usize, n_late: usize) -> usize {
        let mut rec = Recorder::new(&self.gpu).expect("a recorder");
        let mut held = VecDeque::new();
        let mut n_slices = 0;
        while !upload.is_done() {
            upload.record(&mut rec, n_bytes).expect("record");
            held.push_back(rec.finish().expect("kernels compile"));
            n_slices += 1;
            if held.len() > n_late {
                self.submit(held.pop_front().flatten());
            }
        }
        held.into_iter().for_each(|buffer| self.submit(buffer));
        self.wait();
        n_slices
    }

    fn read(&self, tensor: &Tensor) -> Vec<u32> {
        let mut ring = ReadbackRing::new(&self.gpu, "read", 1, tensor.size_bytes()).expect("a ring");
        let mut rec = Recorder::new(&self.gpu).expect("a recorder");
        let pending = rec.read(&mut ring, &[(tensor, 0, tensor.size_bytes())]).expect("a slot");
        self.submit(rec.finish().expect("a copy"));
        while !ring.is_ready(pending) {
            self.wait();
        }
        bytemuck::pod_collect_to_vec(&ring.take(pending).expect("it arrived").bytes)
    }
}

/// The weights in a folder.
fn open(dir: &std::path::Path) -> Arc<Weights> {
    let path = dir.join("model.safetensors");
    let file = std::fs::File::open(&path).expect("a file");
    Arc::new(Weights::from_files([(path, file)]).expect("weights"))
}

const QUANTIZE: [Option<Dtype>; 4] = [None, Some(Dtype::Q8_0), Some(Dtype::Q4_0), Some(Dtype::Q4_K)];

#[test]
fn slices_of_any_size_and_late_ones_leave_the_same_bytes() {
    let Some(own) = Host::ourselves() else { return };
    let guest = Host::another();
    let (dir, values) = checkpoint();
    let weights = open(dir.path());
    for quantize in QUANTIZE {
        let expected = expected(&own.gpu, &values, quantize);
        let bytes = |host: &Host, n_bytes: usize, n_late: usize| {
            let (tensors, mut upload) = plan(&host.gpu, &weights, quantize);
            let n_slices = host.upload(&mut upload, n_bytes, n_late);
            (tensors.iter().map(|t| host.read(t)).collect::<Vec<_>>(), n_slices)
        };
        for n_bytes in [1, 4 << 20, usize::MAX] {
            for (host, n_late) in [(&own, 0), (&guest, 0), (&guest, 1)] {
                let (found, n_slices) = bytes(host, n_bytes, n_late);
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(
                        found == expected,
                        "{quantize:?}, {n_bytes} bytes, {n_late} late: tensor {i} differs"
                    );
                }
                match (n_bytes, quantize) {
                    (1, None) => assert_eq!(n_slices, N_PIECES, "a piece a slice"),
                    (1, Some(_)) => assert_eq!(n_slices, N_PIECES + 1, "a piece a slice"),
                    (usize::MAX, None) => assert_eq!(n_slices, 1, "what needs no stage comes at once"),
                    _ => assert!(n_slices <= N_PIECES + 1),
                }
            }
        }
        // The comparison sees a stage that is overwritten before it is read: of more slices than may be late.
        let (found, _) = bytes(&guest, usize::MAX, N_PIECES + 1);
        assert_eq!(found == expected, quantize.is_none(), "{quantize:?}: all slices late");
    }
    assert_eq!(guest.gpu.counts().submissions, 0, "the queue is the host's");
}

#[test]
fn planning_uploads_nothing_and_progress_counts_to_the_end() {
    let Some(gpu) = common::open(&Default::default()) else { return };
    let (dir, _) = checkpoint();
    let weights = open(dir.path());
    let mut rec = Recorder::new(&gpu).expect("a recorder");
    let before = gpu.counts();
    let (tensors, mut upload) = plan(&gpu, &weights, Some(Dtype::Q8_0));
    let planned = gpu.counts();
    assert_eq!((planned.writes, planned.submissions), (before.writes, before.submissions));
    assert_eq!(planned.allocations - before.allocations, tensors.len() as u64);
    let start = upload.progress();
    assert_eq!(
        (start.done_bytes, start.total_bytes),
        (4 * 1000 - 2 * 77, weights.n_bytes()),
        "one is not needed, one twice"
    );
    let mut last = start.done_bytes;
    while !upload.is_done() {
        upload.record(&mut rec, 1).expect("record");
        gpu.submit(rec.finish().expect("kernels compile")).expect("submit");
        gpu.wait().expect("wait");
        let now = upload.progress().done_bytes;
        assert!(now > last, "{now} after {last}");
        last = now;
    }
    assert_eq!(last, weights.n_bytes());
    let done = gpu.counts();
    // The recorder allocates its parameter blocks at its first dispatch.
    let with_params = planned.live_bytes + (2 << 20);
    assert_eq!(done.live_bytes, with_params, "stages are given back");
    assert!(done.peak_bytes - with_params <= 4 << 20, "two stages of 2 MiB");
}

#[test]
fn a_call_that_waits_loads_what_needs_no_submission_on_an_adopted_device() {
    let Some(own) = Host::ourselves() else { return };
    let guest = Host::another();
    let (dir, values) = checkpoint();
    let weights = open(dir.path());
    for host in [&own, &guest] {
        let (tensors, mut upload) = plan(&host.gpu, &weights, None);
        let mut heard = Vec::new();
        upload.run(&host.gpu, &mut |progress| heard.push(progress)).expect("run");
        assert!(upload.is_done());
        assert_eq!(heard.last().map(|p| p.done_bytes), Some(weights.n_bytes()));
        let found: Vec<_> = tensors.iter().map(|t| host.read(t)).collect();
        assert!(found == expected(&own.gpu, &values, None));
    }
    let writes = guest.gpu.counts().writes;
    for (weights, quantize) in [(weights, Some(Dtype::Q4_0)), (Arc::new(Weights::random(Dtype::F16)), None)] {
        let mut loader = Loader::new(&guest.gpu, weights, quantize);
        loader.matrix("f16", [129, 96]).expect("it fits");
        let error = loader.finish().run(&guest.gpu, &mut |_| {}).expect_err("only the host submits");
        assert!(matches!(error, WeightsError::Gpu(GpuError::Adopted)), "{error}");
    }
    assert_eq!(guest.gpu.counts().writes, writes, "nothing was begun");
}

#[test]
fn random_weights_are_the_same_in_any_slices() {
    let Some(own) = Host::ourselves() else { return };
    let guest = Host::another();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for quantize in [None, Some(Dtype::Q4_K)] {
            let drawn = |host: &Host, n_bytes: usize, n_late: usize| -> Vec<Vec<u32>> {
                let mut loader = Loader::new(&host.gpu, Arc::new(Weights::random(dtype)), quantize);
                let tensors = [
                    // Rows of an odd number of blocks: pieces keep to the alignment of bindings all the same.
                    loader.matrix("a", [5001, 544]).expect("it fits"),
                    loader.matrix("b", [5001, 544]).expect("it fits"),
                    loader.vector("norm.weight", 77).expect("it fits"),
                    loader.vector("norm.bias", 77).expect("it fits"),
                ];
                host.upload(&mut loader.finish(), n_bytes, n_late);
                tensors.iter().map(|t| host.read(t)).collect()
            };
            let expected = drawn(&own, usize::MAX, 0);
            assert!(expected[0] != expected[1] && expected[2] != expected[3], "each has values of its own");
            for words in &expected {
                let n_zeros = words.iter().filter(|word| **word == 0).count();
                assert!(n_zeros < words.len() / 4, "{dtype} {quantize:?}: they are drawn");
            }
            for (host, n_bytes, n_late) in [(&own, 1, 0), (&guest, 1, 1), (&guest, usize::MAX, 1)] {
                let found = drawn(host, n_bytes, n_late);
                assert!(found == expected, "{dtype} {quantize:?}, {n_bytes} bytes, {n_late} late");
            }
            if quantize.is_none() {
                let whole = Tensor::zeros(&own.gpu, "whole", [5001, 544], dtype).expect("it fits");
                common::run(&own.gpu, |rec| ops::fill_normal(rec, &whole, 0, 0.0, 544f32.powf(-0.5)));
                assert!(own.read(&whole) == expected[0], "{dtype}: in pieces as at once");
            }
        }
    }
    assert_eq!(guest.gpu.counts().submissions, 0, "the queue is the host's");
}

#[test]
fn a_recording_ends_before_parameter_blocks_do() {
    let Some(gpu) = common::gpu() else { return };
    // Each vector has a seed of its own, and so a block: more than a recorder has.
    let n = 9000;
    let mut loader = Loader::new(&gpu, Arc::new(Weights::random(Dtype::F16)), None);
    let tensors: Vec<Tensor> =
        (0..n).map(|i| loader.vector(&format!("{i}.bias"), 32).expect("it fits")).collect();
    let mut upload = loader.finish();
    let mut rec = Recorder::new(&gpu).expect("a recorder");
    let mut n_slices = 0;
    while !upload.is_done() {
        upload.record(&mut rec, usize::MAX).expect("record");
        gpu.submit(rec.finish().expect("kernels compile")).expect("submit");
        assert!(upload.is_done() || rec.params_are_low());
        gpu.wait().expect("wait");
        rec.reset_params();
        n_slices += 1;
    }
    assert_eq!(n_slices, 2);
    let mut seen = std::collections::HashSet::new();
    for i in (0..n).step_by(250).chain([n - 1]) {
        assert!(seen.insert(gpu.read_words(&tensors[i]).expect("it reads back")), "vector {i} is another's");
    }
}

#[test]
fn a_type_that_no_kernel_reads_is_refused_when_it_is_planned() {
    let Some(gpu) = common::gpu() else { return };
    let bytes = [0; 16];
    let view = TensorView::new(Stored::I32, vec![4], &bytes).expect("a view");
    let file = safetensors::serialize([("ids", view)], None).expect("safetensors");
    let weights = Arc::new(Weights::from_bytes(file).expect("weights"));
    let error = Loader::new(&gpu, weights, None).vector("ids", 4).expect_err("no type of weights");
    assert!(error.to_string().contains("`ids` has type `I32`, expected one of `F32`"), "{error}");
}

/// The weights of one matrix, `[4, 64]`, whose value at `at` is `value`.
fn with_value(stored: Stored, at: usize, value: f32) -> Arc<Weights> {
    let mut values = vec![0.5f32; 256];
    values[at] = value;
    let bytes: Vec<u8> = match stored {
        Stored::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Stored::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let view = TensorView::new(stored, vec![4, 64], &bytes).expect("a view");
    let file = safetensors::serialize([("odd.weight", view)], None).expect("safetensors");
    Arc::new(Weights::from_bytes(file).expect("weights"))
}

#[test]
fn values_that_cannot_be_quantised_are_found() {
    let Some(gpu) = common::gpu() else { return };
    let load = |weights: Arc<Weights>, dtype, transposed| {
        let mut loader = Loader::new(&gpu, weights, Some(dtype));
        let tensor = match transposed {
            true => loader.transposed("odd.weight", [64, 4]),
            false => loader.matrix("odd.weight", [4, 64]),
        };
        tensor.expect("it fits");
        loader.finish().run(&gpu, &mut |_| {})
    };
    for stored in [Stored::F32, Stored::F16, Stored::BF16] {
        for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K] {
            let odd = [(0, f32::NAN), (255, -f32::NAN), (77, f32::INFINITY), (130, f32::NEG_INFINITY)];
            for (at, value) in odd.into_iter().chain((stored != Stored::F16).then_some((31, 1e30))) {
                for transposed in [false, true] {
                    let error =
                        load(with_value(stored, at, value), dtype, transposed).expect_err("no number");
                    let WeightsError::Value { name, found, .. } = error else { panic!("{error}") };
                    assert_eq!(name, "odd.weight");
                    assert_eq!(found.is_nan(), value.is_nan(), "{found} for {value}");
                }
            }
            for value in [0.0, -65504.0, f32::MIN_POSITIVE] {
                load(with_value(stored, 9, value), dtype, false).expect("a number");
            }
        }
    }
    // What is not quantised is as stored.
    let mut loader = Loader::new(&gpu, with_value(Stored::F32, 9, f32::NAN), None);
    let tensor = loader.matrix("odd.weight", [4, 64]).expect("it fits");
    loader.finish().run(&gpu, &mut |_| {}).expect("as stored");
    assert!(f32::from_bits(gpu.read_words(&tensor).expect("it reads back")[9]).is_nan());
}

#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let Some(gpu) = common::gpu() else { return };
    for quantize in [None, Some(Dtype::Q4_K)] {
        for left in [0, 1000, 3_000_000] {
            let (dir, _) = checkpoint();
            let weights = open(dir.path());
            let (_, mut upload) = plan(&gpu, &weights, quantize);
            let path = dir.path().join("model.safetensors");
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("a file");
            assert!(file.metadata().expect("metadata").len() > left);
            file.set_len(left).expect("shorter");
            let error = upload.run(&gpu, &mut |_| {}).expect_err("it is shorter");
            assert!(
                error.to_string().contains("model.safetensors` cannot be read: it ends at byte"),
                "{error}"
            );
            assert!(error.hint().is_some_and(|hint| hint.contains("shorter")), "{error}");
            assert!(!upload.is_done());
        }
    }
}
