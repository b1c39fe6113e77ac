//! The device layer: choice of adapter, limits, compilation, the driver's cache, timing.

mod common;

use bytemuck::{Pod, Zeroable};
use wginfer::dtype::Dtype;
use wginfer::gpu::{
    Access, Fields, Gpu, GpuError, GpuOptions, Kernel, ReadbackRing, Recorder, SelfTest, Tensor, Trust,
    Tuning, Variant,
};
use wginfer::ops::{self, Act};
use wginfer::wgpu;

#[test]
fn an_adapter_is_chosen_by_name_or_index() {
    let Some(gpu) = common::gpu() else { return };
    let adapters = Gpu::adapters();
    let first = &adapters[0];
    assert_eq!(gpu.info().name, first.info.name, "without a choice the best one is taken");
    let by = |select: &str| Gpu::open(&GpuOptions { select: Some(select.into()), ..Default::default() });
    assert_eq!(by("0").expect("by index").info().name, first.info.name);
    let part: String = first.info.name.to_uppercase().chars().take(6).collect();
    assert!(by(&part).is_ok(), "by a part of the name, in any case");
    let error = by("no such card").expect_err("unknown").to_string();
    assert!(error.contains("`no such card`") && error.contains(&first.info.name), "{error}");
}

#[test]
fn capabilities_can_be_switched_off() {
    let Some(gpu) = common::gpu() else { return };
    let disable = |names: &str| Gpu::open(&GpuOptions { disable: names.into(), ..Default::default() });
    let less = disable("f16, subgroups,timestamps,pipeline-cache,cooperative-matrices").expect("known names");
    let caps = less.caps();
    assert!(!caps.f16 && caps.subgroups.is_none() && !caps.timestamps && !caps.pipeline_cache);
    assert!(caps.cooperative_matrices.is_empty() && !caps.f16_products());
    assert_eq!(caps.max_buffer_bytes, gpu.caps().max_buffer_bytes);
    let least = disable("limits").expect("a known name");
    let caps = least.caps();
    assert_eq!((caps.max_storage_buffers, caps.max_workgroup_size), (8, 256));
    assert_eq!((caps.max_workgroup_bytes, caps.max_binding_bytes), (16 << 10, 128 << 20));
    let error = disable("subgroups,warp").expect_err("unknown").to_string();
    assert!(error.contains("`warp`"), "{error}");
}

/// The variant of a kernel for subgroups of a certain width, of any width, or the portable one.
fn reducing(gpu: &Gpu) -> String {
    let [x, w] = [[3, 40], [1, 40]].map(|shape| common::zeros(gpu, shape, Dtype::F32));
    let norm = ops::RmsNorm { w, eps: 1e-5, offset: 0.0 };
    let mut rec = Recorder::new(gpu).expect("a recorder");
    let variants = rec.variants(|rec| ops::rms_norm(rec, &x, &norm, None, false, &x, 0..3));
    assert_eq!(variants.len(), 1);
    variants[0].label()
}

/// The variants of a product of one row, of a few and of many: pipelines for which a driver may choose different widths.
fn products(gpu: &Gpu) -> Vec<String> {
    let [x, y, w] = [[16, 40], [16, 8], [8, 40]].map(|shape| common::zeros(gpu, shape, Dtype::F32));
    let mut rec = Recorder::new(gpu).expect("a recorder");
    let variants = rec.variants(|rec| {
        for n_decode in [1, 4, 16] {
            let product = ops::Affine::new(&x, &w, None);
            ops::linear(rec, product, false, &y, ops::Rows { n_decode, n_prompt: 0 });
        }
    });
    variants.iter().map(wginfer::gpu::Variant::label).collect()
}

#[test]
fn only_certain_widths_of_subgroups_are_used() {
    let Some(gpu) = common::gpu() else { return };
    let Some(width) = gpu.caps().one_subgroup() else {
        common::say(&format!("skipped, `{}` has no subgroups of a certain width", gpu.info().name));
        return;
    };
    let claiming = |range, disable: &str| {
        let options =
            GpuOptions { subgroup_range: Some(range), disable: disable.into(), ..Default::default() };
        Gpu::open(&options).expect("the same device")
    };
    let subgroup = reducing(&gpu);
    assert!(subgroup.contains("reduce_subgroup"), "{subgroup}");
    // The driver leaves the width open; the probe finds it, in every workgroup and on matrices too.
    let found = claiming([width / 2, 4 * width], "");
    let probed = &found.caps().subgroups.as_ref().expect("subgroups").probed;
    assert!(probed.len() >= 4 && probed.iter().all(|p| p.width == width), "{probed:?}");
    let tile = |gpu: &Gpu| gpu.caps().coop_tile();
    assert_eq!((found.caps().one_subgroup(), tile(&found)), (Some(width), tile(&gpu)));
    assert_eq!(probed.iter().any(|p| p.matrices), tile(&gpu).is_some());
    assert_eq!(reducing(&found), subgroup);
    // It reports only widths that no kernel has, or the probe is switched off: nothing is certain.
    for unsure in [claiming([2 * width, 4 * width], ""), claiming([width, 4 * width], "subgroup-probe")] {
        assert_eq!((unsure.caps().one_subgroup(), tile(&unsure)), (None, None));
        assert!(reducing(&unsure).contains("reduce_any"), "{}", reducing(&unsure));
        // The order of a product's sums may depend on no width, because it must be the same in all its pipelines.
        let products = products(&unsure);
        let is_portable = |label: &String| label.contains("reduce_workgroup") && !label.contains("subgroup");
        assert!(products.len() > 1 && products.iter().all(is_portable), "{products:?}");
    }
    // Nothing is probed on the device of a host, because nothing may be submitted there.
    let (host, queue) = common::requests::host();
    let options = GpuOptions { subgroup_range: Some([width, 4 * width]), ..Default::default() };
    let guest = Gpu::adopt_with(host.device().clone(), queue, &options).expect("large enough");
    assert_eq!((guest.caps().one_subgroup(), guest.counts().submissions), (None, 0));
    assert!(reducing(&guest).contains("reduce_any"), "{}", reducing(&guest));
    // No part is made for less than WebGPU allows.
    assert!(reducing(&claiming([1, 4 * width], "subgroup-probe")).contains("reduce_workgroup"));
}

#[test]
fn an_adopted_device_has_what_our_own_has() {
    let Some(own) = common::gpu() else { return };
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
    // SAFETY: the only experimental feature that is requested is that of `Gpu::open`.
    let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
    let descriptor = Gpu::required_with(&adapter, experimental);
    let is_listed = |features: wgpu::Features| {
        features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) // where the adapter has them
    };
    assert_eq!(is_listed(descriptor.required_features), is_listed(adapter.features()));
    assert!(!is_listed(Gpu::required(&adapter).required_features), "only by the host's choice");
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
    let options = GpuOptions {
        adapter: Some(adapter),
        cache_dir: Some(folder.path().into()),
        self_test: SelfTest::Always,
        ..GpuOptions::default()
    };
    let guest = Gpu::adopt_with(device, queue, &options).expect("large enough");
    // But for what a probe found, which is a submission.
    let caps = |gpu: &Gpu| {
        let mut caps = gpu.caps().clone();
        caps.subgroups.iter_mut().for_each(|subgroups| subgroups.probed.clear());
        caps
    };
    assert_eq!(caps(&guest), caps(&own));
    assert!(!guest.is_owned() && guest.counts().submissions == 0);

    // Compiled pipelines, choices of variants and results of self-tests are in the folder, as our own device's are.
    let alike = GpuOptions { adapter: None, ..options };
    let own = common::open(&alike).expect("as before");
    let tunable = ops::tunable();
    assert!(Trust::path(&guest, tunable).is_some());
    assert_eq!(Trust::path(&guest, tunable), Trust::path(&own, tunable));
    assert_eq!(Tuning::path(&guest, tunable), Tuning::path(&own, tunable));
    let x = common::zeros(&guest, [3, 40], Dtype::F32);
    let norm = ops::RmsNorm { w: common::zeros(&guest, [1, 40], Dtype::F32), eps: 1e-5, offset: 0.0 };
    let mut rec = Recorder::new(&guest).expect("a recorder");
    let variants = rec.variants(|rec| ops::rms_norm(rec, &x, &norm, None, false, &x, 0..3));
    guest.compile(&variants).expect("it compiles");
    let is_kept = std::fs::read_dir(folder.path()).expect("a folder").next().is_some();
    assert_eq!(is_kept, guest.caps().pipeline_cache);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(gpu) = common::gpu() else { return };
    let limit = gpu.caps().max_binding_bytes as usize;
    let error = Tensor::zeros(&gpu, "wide", [2, limit / 4], Dtype::F32).expect_err("too large for a binding");
    assert!(matches!(error, GpuError::TooLarge { .. }) && error.to_string().contains("`wide`"), "{error}");
    assert!(Tensor::weights(&gpu, "row", [1, limit / 2], Dtype::F32).is_err(), "not even a row fits");
    let largest = gpu.caps().max_buffer_bytes as usize;
    assert!(Tensor::weights(&gpu, "large", [largest / 1024, 1024], Dtype::F32).is_err());
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n: u32,
}

#[test]
fn a_kernel_that_does_not_compile_is_named() {
    static BROKEN: Kernel = Kernel {
        name: "broken",
        source: "struct Params { n: u32 }\n@group(0) @binding(0) var<uniform> params: Params;\n\
                 @group(0) @binding(1) var<storage, read_write> y: array<f32>;\n\
                 @compute @workgroup_size(1) fn broken() { y[0] = missing(params.n); }",
        params: &Fields { size_bytes: 4, fields: &[] },
        bindings: &[Access::ReadWrite],
        proven: false,
    };
    let Some(gpu) = common::gpu() else { return };
    let error = gpu.compile(&[Variant::new(&BROKEN)]).expect_err("it calls what is not there").to_string();
    assert!(error.contains("kernel `broken`") && error.contains("missing"), "{error}");

    // The same at first use: the recording fails, and the recorder remains usable.
    let mut rec = Recorder::new(&gpu).expect("recorder");
    let y = Tensor::zeros(&gpu, "y", [1, 8], Dtype::F32).expect("it fits");
    rec.dispatch(Variant::new(&BROKEN), &Params { n: 1 }, &[y.view()], [1, 1, 1]);
    assert!(matches!(rec.finish(), Err(GpuError::Compile { .. })));
    assert!(rec.finish().expect("nothing recorded").is_none());
}

#[test]
fn compiled_kernels_are_kept_and_a_bad_folder_is_no_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = |dir: &std::path::Path| {
        common::open(&GpuOptions { cache_dir: Some(dir.to_path_buf()), ..Default::default() })
    };
    let kept = dir.path().join("kept");
    let Some(gpu) = open(&kept) else { return };
    let use_it = |gpu: &Gpu| {
        let x = common::tensor_f32(gpu, [1, 8], &[1.0; 8]);
        let y = common::zeros(gpu, [1, 8], Dtype::F32);
        let mut rec = Recorder::new(gpu).expect("recorder");
        rec.rehearse(|rec| ops::gate(rec, Act::Silu, &x, &y, 0..1)).expect("compiles");
        common::run(gpu, |rec| ops::gate(rec, Act::Silu, &x, &y, 0..1));
        assert!((common::read(gpu, &y)[3] - 0.731_058_6).abs() < 1e-5);
    };
    use_it(&gpu);
    if gpu.caps().pipeline_cache {
        let files: Vec<_> = std::fs::read_dir(&kept).expect("the folder was made").collect();
        assert_eq!(files.len(), 1, "one file, and no temporary one left behind");
        // A file that is cut off or foreign is replaced.
        let path = files[0].as_ref().expect("entry").path();
        let bytes = std::fs::read(&path).expect("read");
        for content in [&bytes[..bytes.len() / 2], b"not a cache", b""] {
            std::fs::write(&path, content).expect("write");
            use_it(&open(&kept).expect("a device"));
        }
    }
    // A path below a file cannot be created: nothing is kept, and everything runs.
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("write");
    use_it(&open(&file.join("below")).expect("a device"));
}

#[test]
fn the_device_times_what_it_does() {
    let Some(gpu) = common::gpu() else { return };
    if !gpu.caps().timestamps {
        common::say("skipped, the device has no timestamps: the_device_times_what_it_does");
        return;
    }
    let n = 512;
    let x = common::zeros(&gpu, [n, n], Dtype::F32);
    let y = common::zeros(&gpu, [n, n], Dtype::F32);
    let mut ring = ReadbackRing::new(&gpu, "timing", 1, 4).expect("ring");
    let mut rec = Recorder::new(&gpu).expect("recorder");
    let mut elapsed = |n_times: usize, timed: bool| {
        if timed {
            rec.start_timing();
        }
        for _ in 0..n_times {
            ops::gate(&mut rec, Act::GeluTanh, &x, &y, 0..n);
        }
        let pending = rec.read(&mut ring, &[(&y, 0, 4)]).expect("a free slot");
        gpu.submit(rec.finish().expect("compiles")).expect("submit");
        gpu.wait().expect("wait");
        while !ring.is_ready(pending) {
            gpu.poll().expect("poll");
        }
        let arrived = ring.take(pending).expect("arrived");
        assert_eq!(arrived.bytes, [0; 4], "timestamps are not part of what was asked for");
        arrived.device_ms
    };
    assert_eq!(elapsed(1, false), None);
    let (little, much) = (elapsed(1, true).expect("timed"), elapsed(400, true).expect("timed"));
    // Four hundred times the work. This does not bound the speed; it only detects a clock that stands still.
    assert!(much > little && much > 0.0, "{little} ms and {much} ms");
}
