//! Layer 1: the device. The only layer that calls `wgpu`.
//!
//! [`Gpu`] is a device and queue, our own or the host's. [`Tensor`] is memory, [`Kernel`] a declaration, and
//! [`Recorder`] turns calls of operations into command buffers. This layer knows nothing of models.

mod adapter;
mod buffer;
mod cache;
mod caps;
mod cost;
mod error;
mod fault;
mod fields;
mod flight;
mod kernel;
mod measured;
mod memory;
mod meter;
mod probe;
mod profiles;
mod quirks;
mod readback;
mod recorder;
mod reopen;
mod subgroups;
mod tensor;
mod timing;
mod trace;
mod trust;
mod tuning;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

pub use adapter::{AdapterSummary, Choice, StandIn};
pub use caps::{Caps, DISABLE_ENV};
pub(crate) use cost::Load;
pub use error::GpuError;
pub use fields::{Field, Fields};
pub(crate) use flight::{Flight, Landed, MOST_IN_FLIGHT};
pub use kernel::{Access, Kernel, Part, Variant};
pub use measured::Measured;
pub(crate) use meter::{Meter, Place};
pub use profiles::{Profile, profiles};
pub use quirks::{QUIRKS, Quirk, Vendor, quirks};
pub use readback::{Arrived, Readback, ReadbackRing};
pub use recorder::Recorder;
#[cfg(feature = "bench")]
pub(crate) use recorder::Rehearsal;
pub(crate) use recorder::{Depths, Portable, Size};
pub use subgroups::{Probed, Subgroups};
pub use tensor::{ROW_ALIGN, Tensor, View};
pub use trust::{SelfTest, Trust, WrongVariant};
pub use tuning::{Product, Tunable, Tuning, fnv};

pub(crate) use fields::{FieldType, device_struct};
#[cfg(feature = "bench")]
pub(crate) use probe::SubgroupProbe;
pub(crate) use probe::{COOP_8, COOP_16, PROBE_COOP, PROBE_SUBGROUPS, coop};

use buffer::Buffer;
use fault::Fault;
use kernel::Pipeline;
use reopen::Successor;

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Adapter, by index (as `wginfer devices` lists them) or by a part of its name. Default: the best one.
    pub select: Option<String>,
    /// Capabilities to leave unused, in addition to those in the variable [`DISABLE_ENV`], with the same names.
    pub disable: String,
    /// Upper limit of a storage binding in bytes, to test the splitting of large tensors. Default: the device's limit.
    pub max_binding_bytes: Option<u64>,
    /// Range of subgroup widths that the driver is taken to report, to test devices where it is no fixed one. Default:
    /// what it reports.
    pub subgroup_range: Option<[u32; 2]>,
    /// Products keep F32 inputs ([`Caps::f32_products`]). Slower on devices that multiply F16 faster, but logits
    /// are within 1e-3 of the largest instead of 1e-2 of the reference's.
    pub f32_products: bool,
    /// Bytes of memory that count as free, to test what happens if there are few. Default: what the system says.
    pub free_bytes: Option<u64>,
    /// Folder where compiled pipelines, measured choices of variants and results of self-tests are kept between runs.
    /// Default: none are kept.
    pub cache_dir: Option<PathBuf>,
    /// When kernels are tested on a new driver. Default: unless it is a software device.
    pub self_test: SelfTest,
    /// The adapter that an adopted device was made of: its shapes of cooperative matrices are read from it. Default: none,
    /// and an adopted device uses no cooperative matrices. [`Gpu::open`] has an adapter already.
    pub adapter: Option<wgpu::Adapter>,
    /// Changes the WGSL of variants before it is compiled, to test what happens if a driver miscompiles it.
    pub rewrite: Option<fn(&Variant, String) -> String>,
    /// Changes what an adapter counts as, to test what happens if it is gone or another one is in its place.
    pub stand_in: Option<StandIn>,
}

/// Work submitted to our own queue.
#[derive(Debug, Clone)]
pub struct Submission(wgpu::SubmissionIndex);

/// Counters that the tests of the invariants read.
#[derive(Debug, Default)]
pub struct Counters {
    writes: AtomicU64,
    allocations: AtomicU64,
    allocated_bytes: AtomicU64,
    live_bytes: AtomicU64,
    peak_bytes: AtomicU64,
    submissions: AtomicU64,
    read_bytes: AtomicU64,
    dispatches: AtomicU64,
}

/// A reading of the counters since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Queued writes to buffers.
    pub writes: u64,
    /// Buffers allocated.
    pub allocations: u64,
    /// Bytes of all buffers allocated.
    pub allocated_bytes: u64,
    /// Bytes of the buffers that exist now.
    pub live_bytes: u64,
    /// Largest value of `live_bytes` so far.
    pub peak_bytes: u64,
    /// Submissions to the queue.
    pub submissions: u64,
    /// Bytes copied back for the host.
    pub read_bytes: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
}

/// A device and queue, our own or the host's, with its capabilities and compiled kernels. Cheap to clone.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    counters: Arc<Counters>,
    is_plan: bool,
    /// Capabilities instead of the device's, so that other variants are recorded.
    instead: Option<Arc<Caps>>,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    caps: Caps,
    owned: bool,
    pipelines: RwLock<HashMap<Variant, Arc<Pipeline>>>,
    driver_cache: Option<cache::DriverCache>,
    cache_dir: Option<PathBuf>,
    /// The capabilities of the variants that run on every device.
    portable: Caps,
    self_test: SelfTest,
    trust: OnceLock<Mutex<Trust>>,
    rewrite: Option<fn(&Variant, String) -> String>,
    tuning: OnceLock<Tuning>,
    dummy: OnceLock<Tensor>,
    /// What all buffers of a plan are.
    stub: OnceLock<wgpu::Buffer>,
    /// Memory that counts as free, whatever the system says.
    free_bytes: Option<u64>,
    fault: Arc<Fault>,
    /// How it was opened.
    options: GpuOptions,
    successor: Mutex<Option<Successor>>,
}

impl Gpu {
    /// Opens a device of the adapter that `options` select, or of the best one.
    ///
    /// # Errors
    /// [`GpuError::NoAdapter`], [`GpuError::NoSuchAdapter`], [`GpuError::NoDevice`],
    /// [`GpuError::UnknownCapability`].
    pub fn open(options: &GpuOptions) -> Result<Gpu, GpuError> {
        Gpu::open_adapter(&adapter::choose(options.select.as_deref(), options.stand_in)?, options)
    }

    fn open_adapter(choice: &Choice, options: &GpuOptions) -> Result<Gpu, GpuError> {
        let fault = Arc::<Fault>::default();
        let (device, queue) = adapter::open(&choice.adapter, &fault)?;
        let gpu = Gpu::assemble(device, queue, Some(&choice.adapter), options, true, fault)?;
        log::info!("using {}: {}", choice.summary, choice.reason);
        Ok(gpu)
    }

    /// Uses a device and queue of the host as a guest: never submits, never blocks, and installs no device-wide
    /// callback. [`Gpu::required`] is what the host should request of its adapter.
    ///
    /// This is [`Gpu::adopt_with`] and nothing to go with it: kernels are compiled and tested again in every run of the
    /// program, and cooperative matrices are not used.
    ///
    /// # Errors
    /// [`GpuError::LimitTooSmall`].
    pub fn adopt(device: wgpu::Device, queue: wgpu::Queue) -> Result<Gpu, GpuError> {
        Gpu::adopt_with(device, queue, &GpuOptions::default())
    }

    /// As [`Gpu::adopt`], with all `options` but [`GpuOptions::select`]. What a device of our own has by itself, a host
    /// hands over:
    ///
    /// - [`GpuOptions::cache_dir`]: a folder for compiled pipelines, for what `wginfer tune` measured there, and for the
    ///   results of self-tests.
    /// - [`GpuOptions::adapter`]: for cooperative matrices, if the device was requested with them
    ///   ([`Gpu::required_with`]).
    ///
    /// On a driver that was never seen before, slower variants of kernels run until the results of the self-test
    /// ([`SelfTest`]) have arrived. An engine hands its recordings to the host along with its own work, or with the upload
    /// of weights if that is done in slices.
    ///
    /// One thing remains that only a device of our own has: where a driver chooses the width of subgroups by kernel, as
    /// AMD's and Intel's do, that is found by a submission when the device is opened, before any variant is chosen. An
    /// adopted device of such a driver runs the variants for any width, which are slower for prompts.
    ///
    /// # Errors
    /// [`GpuError::LimitTooSmall`], [`GpuError::OtherAdapter`], [`GpuError::UnknownCapability`].
    pub fn adopt_with(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &GpuOptions,
    ) -> Result<Gpu, GpuError> {
        if let Some(adapter) = &options.adapter {
            adapter::check_same(&device.adapter_info(), &adapter.get_info())?;
        }
        let needed = caps::MINIMUM;
        let limits = device.limits();
        for (limit, found) in [
            ("max_storage_buffers_per_shader_stage", u64::from(limits.max_storage_buffers_per_shader_stage)),
            (
                "max_compute_invocations_per_workgroup",
                u64::from(limits.max_compute_invocations_per_workgroup),
            ),
            ("max_compute_workgroup_storage_size", u64::from(limits.max_compute_workgroup_storage_size)),
            ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
        ] {
            let expected = needed.iter().find(|(name, _)| *name == limit).map_or(0, |(_, n)| *n);
            if found < expected {
                return Err(GpuError::LimitTooSmall { limit, expected, found });
            }
        }
        Gpu::assemble(device, queue, options.adapter.as_ref(), options, false, Arc::default())
    }

    /// The device that a host should request of `adapter` for [`Gpu::adopt`]: the features that make kernels faster, the
    /// adapter's limits, nothing experimental. A host adds the features of its own.
    ///
    /// ```no_run
    /// # async fn host(adapter: wgpu::Adapter) -> Result<(), Box<dyn std::error::Error>> {
    /// use wginfer::gpu::{Gpu, GpuOptions};
    ///
    /// let mut descriptor = Gpu::required(&adapter);
    /// descriptor.required_features |= wgpu::Features::DEPTH_CLIP_CONTROL;
    /// let (device, queue) = adapter.request_device(&descriptor).await?;
    /// let gpu = Gpu::adopt(device.clone(), queue.clone())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn required(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
        Gpu::required_with(adapter, wgpu::ExperimentalFeatures::disabled())
    }

    /// As [`Gpu::required`], with the host's word on what `wgpu` calls experimental. If that is allowed, cooperative
    /// matrices are requested where the adapter has them; they make prompts several times faster. They are used if the
    /// adapter is handed over, too ([`GpuOptions::adapter`]).
    pub fn required_with(
        adapter: &wgpu::Adapter,
        experimental: wgpu::ExperimentalFeatures,
    ) -> wgpu::DeviceDescriptor<'static> {
        adapter::descriptor(adapter, experimental)
    }

    /// The adapters of this machine, best first.
    pub fn adapters() -> Vec<AdapterSummary> {
        adapter::list()
    }

    fn assemble(
        device: wgpu::Device,
        queue: wgpu::Queue,
        adapter: Option<&wgpu::Adapter>,
        options: &GpuOptions,
        owned: bool,
        fault: Arc<Fault>,
    ) -> Result<Gpu, GpuError> {
        let mut info = device.adapter_info();
        if let (Some(stand_in), true) = (options.stand_in, owned) {
            info = stand_in(info.clone()).unwrap_or(info);
        }
        let matrices =
            adapter.map(|a| adapter::cooperative_matrices(a, device.features())).unwrap_or_default();
        let mut caps = Caps::new(device.features(), &device.limits(), &info, matrices);
        if let (Some(subgroups), Some([min, max])) = (&mut caps.subgroups, options.subgroup_range) {
            *subgroups = Subgroups::range(min, max);
        }
        caps.disable_with_env(&options.disable).map_err(|found| GpuError::UnknownCapability { found })?;
        caps.f32_products = options.f32_products;
        if let Some(most) = options.max_binding_bytes {
            caps.max_binding_bytes = caps.max_binding_bytes.min(most);
        }
        let driver_cache = options
            .cache_dir
            .as_deref()
            .filter(|_| caps.pipeline_cache)
            .and_then(|dir| cache::DriverCache::open(&device, &info, dir));
        let mut gpu = Gpu {
            inner: Arc::new(Inner {
                device,
                queue,
                info,
                portable: caps.portable(),
                caps,
                owned,
                pipelines: RwLock::default(),
                driver_cache,
                cache_dir: options.cache_dir.clone(),
                self_test: options.self_test,
                trust: OnceLock::new(),
                rewrite: options.rewrite,
                tuning: OnceLock::new(),
                dummy: OnceLock::new(),
                stub: OnceLock::new(),
                free_bytes: options.free_bytes,
                fault,
                options: options.clone(),
                successor: Mutex::default(),
            }),
            counters: Arc::default(),
            is_plan: false,
            instead: None,
        };
        gpu.probe_subgroups();
        for lost in gpu.caps().lost() {
            log::info!("`{}` has {lost}", gpu.info().name);
        }
        Ok(gpu)
    }

    /// The same device, as a guest has it, for tests and benchmarks of guests.
    ///
    /// # Errors
    /// As [`Gpu::adopt`].
    #[cfg(feature = "bench")]
    pub(crate) fn as_guest(&self) -> Result<Gpu, GpuError> {
        Gpu::adopt(self.inner.device.clone(), self.inner.queue.clone())
    }

    /// Makes certain what can be of the widths of subgroups, on a device of our own. If that fails, nothing is certain.
    fn probe_subgroups(&mut self) {
        let caps = self.caps();
        let range = caps.subgroups.clone().filter(|_| self.is_owned() && caps.subgroup_probe);
        let Some(range) = range.filter(|range| range.min < range.max) else { return };
        match probe::subgroups(self, range) {
            Ok(probed) => {
                let inner = Arc::get_mut(&mut self.inner).expect("the probe kept no copy of the device");
                inner.caps.subgroups = Some(probed);
            }
            Err(error) => log::warn!("the widths of subgroups stay unknown: {error}"),
        }
    }

    /// The same device, on which nothing is allocated or written: tensors have only sizes, which [`Gpu::counts`] adds
    /// up. Nothing can be recorded there.
    pub(crate) fn plan(&self) -> Gpu {
        Gpu { counters: Arc::default(), is_plan: true, ..self.clone() }
    }

    /// A plan of a device with other capabilities, to collect the variants that would run there. Nothing is measured
    /// on such a device, so timestamps and tuning are off.
    pub(crate) fn plan_for(&self, caps: Caps) -> Gpu {
        let caps = Caps { timestamps: false, tuning: false, ..caps };
        Gpu { instead: Some(Arc::new(caps)), ..self.plan() }
    }

    /// The same device, on which only `caps` are used, so that other variants run there. They must be fewer than the
    /// device's.
    #[cfg(feature = "bench")]
    pub(crate) fn with_caps(&self, caps: Caps) -> Gpu {
        Gpu { instead: Some(Arc::new(caps)), ..self.clone() }
    }

    /// Whether tensors have only sizes: then nothing need be computed to fill them.
    pub(crate) fn is_plan(&self) -> bool {
        self.is_plan
    }

    /// The capabilities and limits of the device.
    pub fn caps(&self) -> &Caps {
        self.instead.as_deref().unwrap_or(&self.inner.caps)
    }

    /// Name, driver and backend.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.inner.info
    }

    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub fn kind(&self) -> &'static str {
        adapter::kind(self.info().device_type)
    }

    /// The capabilities that an operation may use: all, or only those that every device has.
    pub(crate) fn caps_of(&self, is_portable: bool) -> &Caps {
        if is_portable { &self.inner.portable } else { self.caps() }
    }

    /// The driver's quirks.
    pub fn quirks(&self) -> Vec<&'static Quirk> {
        quirks(self.info())
    }

    /// The choices of variants that are kept for this device, read at the first call. Empty if [`Caps::tuning`] is
    /// off.
    pub fn tuning(&self, tunable: &Tunable) -> &Tuning {
        static NONE: LazyLock<Tuning> = LazyLock::new(Tuning::default);
        match self.caps().tuning {
            true => self.inner.tuning.get_or_init(|| Tuning::read(self, tunable)),
            false => &NONE,
        }
    }

    /// Whether we created the device. On an adopted device the library never submits or waits.
    pub fn is_owned(&self) -> bool {
        self.inner.owned
    }

    /// Checks that we created the device, before a call that submits or waits.
    ///
    /// # Errors
    /// [`GpuError::Adopted`].
    pub fn check_owned(&self) -> Result<(), GpuError> {
        if self.inner.owned { Ok(()) } else { Err(GpuError::Adopted) }
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The counters at this moment.
    pub fn counts(&self) -> Counts {
        let c = &self.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Counts {
            writes: get(&c.writes),
            allocations: get(&c.allocations),
            allocated_bytes: get(&c.allocated_bytes),
            live_bytes: get(&c.live_bytes),
            peak_bytes: get(&c.peak_bytes),
            submissions: get(&c.submissions),
            read_bytes: get(&c.read_bytes),
            dispatches: get(&c.dispatches),
        }
    }

    /// Submits command buffers to our own queue.
    ///
    /// # Errors
    /// [`GpuError::Adopted`]: on an adopted device only the host submits.
    pub fn submit(
        &self,
        buffers: impl IntoIterator<Item = wgpu::CommandBuffer>,
    ) -> Result<Submission, GpuError> {
        self.check_owned()?;
        self.count(|c| &c.submissions, 1);
        Ok(Submission(self.inner.queue.submit(buffers)))
    }

    /// Waits until a submission is done and its results are mapped. Only for a device of our own.
    ///
    /// # Errors
    /// [`GpuError::Adopted`], and as [`Gpu::poll`].
    pub fn wait_for(&self, submission: Submission) -> Result<(), GpuError> {
        self.check_owned()?;
        self.poll_device(wgpu::PollType::Wait { submission_index: Some(submission.0), timeout: None })
    }

    /// Runs the callbacks of finished work. Does not wait.
    ///
    /// # Errors
    /// [`GpuError::Lost`] and other faults of the device.
    pub fn poll(&self) -> Result<(), GpuError> {
        self.poll_device(wgpu::PollType::Poll)
    }

    /// Waits until all submitted work is done. Only for a device of our own.
    ///
    /// # Errors
    /// [`GpuError::Adopted`], and as [`Gpu::poll`].
    pub fn wait(&self) -> Result<(), GpuError> {
        self.check_owned()?;
        self.poll_device(wgpu::PollType::wait_indefinitely())
    }

    /// Reads an `F32` tensor back and waits for it: `n_rows · n_cols` values, row by row, without padding. For tests
    /// and benchmarks on a device of our own.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    ///
    /// # Panics
    /// If the tensor is not `F32`.
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>, GpuError> {
        assert_eq!(tensor.dtype(), crate::dtype::Dtype::F32, "{tensor:?} is not F32");
        let words = self.read_words(tensor)?;
        let floats: &[f32] = bytemuck::cast_slice(&words);
        let rows = floats.chunks(tensor.stride()).take(tensor.n_rows());
        Ok(rows.flat_map(|row| &row[..tensor.n_cols()]).copied().collect())
    }

    /// Reads the raw 32-bit words of a tensor back and waits for them, padding included.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn read_words(&self, tensor: &Tensor) -> Result<Vec<u32>, GpuError> {
        self.read_range(tensor, 0, tensor.size_bytes())
    }

    /// Reads the raw 32-bit words of row `row` of a tensor back and waits for them, padding included.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    ///
    /// # Panics
    /// If there is no such row, or a row is not a whole number of words.
    pub fn read_row(&self, tensor: &Tensor, row: usize) -> Result<Vec<u32>, GpuError> {
        assert!(row < tensor.n_rows(), "{tensor:?} has no row {row}");
        let bytes = tensor.row_bytes() as u64;
        self.read_range(tensor, row as u64 * bytes, bytes)
    }

    fn read_range(&self, tensor: &Tensor, offset: u64, size: u64) -> Result<Vec<u32>, GpuError> {
        self.check_owned()?;
        let mut ring = ReadbackRing::new(self, "read", 1, size)?;
        let mut encoder = self.inner.device.create_command_encoder(&Default::default());
        let pending = ring.record(&mut encoder, &[(tensor.buffer(), offset, size)], 0);
        self.submit([encoder.finish()])?;
        self.wait()?;
        // If another thread polled at the same time, that thread may still be running the callback that marks the slot.
        while pending.is_some_and(|p| !ring.is_ready(p)) {
            std::thread::yield_now();
            self.poll()?;
        }
        let arrived = pending.and_then(|p| ring.take(p)).ok_or_else(|| GpuError::Device {
            message: format!("`{}` could not be mapped", tensor.label()),
        })?;
        Ok(bytemuck::pod_collect_to_vec(&arrived.bytes))
    }

    /// Compiles `variants` in parallel. Those that are already compiled cost nothing.
    ///
    /// # Errors
    /// [`GpuError::Compile`] with the first kernel that fails.
    pub fn compile(&self, variants: &[Variant]) -> Result<(), GpuError> {
        self.compile_all(variants)?.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// As [`Gpu::compile`], but returns the variants that do not compile, in order, each with its error.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the compiler dies.
    pub(crate) fn compile_all(&self, variants: &[Variant]) -> Result<Vec<(Variant, GpuError)>, GpuError> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(variants.len());
        let work = || {
            let mut failed = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(variant) = variants.get(i) else { return failed };
                failed.extend(self.pipeline(variant).err().map(|error| (i, error)));
            }
        };
        let died = |_| GpuError::Device { message: "a compiler thread died".into() };
        let mut failed = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let failed = workers.into_iter().map(|worker| worker.join().map_err(died));
            failed.collect::<Result<Vec<_>, _>>()
        })?
        .concat();
        failed.sort_by_key(|(i, _)| *i);
        if let Some(cache) = &self.inner.driver_cache {
            cache.save();
        }
        Ok(failed.into_iter().map(|(i, error)| (variants[i], error)).collect())
    }

    fn pipeline(&self, variant: &Variant) -> Result<Arc<Pipeline>, GpuError> {
        let known = self.inner.pipelines.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = known.get(variant) {
            return Ok(pipeline.clone());
        }
        drop(known);
        static NEXT_ID: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let pipeline = Pipeline::compile(self, variant, NEXT_ID.fetch_add(1, Ordering::Relaxed))?;
        let mut known = self.inner.pipelines.write().unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(*variant).or_insert(pipeline).clone())
    }

    /// The WGSL of a variant that is compiled.
    fn source(&self, variant: &Variant) -> String {
        let source = variant.source();
        match self.inner.rewrite {
            Some(rewrite) => rewrite(variant, source),
            None => source,
        }
    }

    fn pipeline_cache(&self) -> Option<&wgpu::PipelineCache> {
        self.inner.driver_cache.as_ref().map(|c| &c.cache)
    }

    /// A small tensor for bindings that a variant declares but does not read.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn dummy(&self) -> Result<Tensor, GpuError> {
        if self.is_plan() || self.inner.dummy.get().is_none() {
            let tensor = Tensor::zeros(self, "unused binding", [1, 64], crate::dtype::Dtype::F32)?;
            if self.is_plan() {
                return Ok(tensor);
            }
            // Another thread may have been first. Either tensor will do.
            let _ = self.inner.dummy.set(tensor);
        }
        self.inner.dummy.get().cloned().ok_or(GpuError::NoAdapter)
    }

    fn create_buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> Result<Buffer, GpuError> {
        if !self.is_plan() {
            // On a lost device, `wgpu` makes buffers that cannot be used.
            self.check_alive()?;
        }
        let buffer = match self.is_plan() {
            false => self.allocate(label, size, usage)?,
            true => match self.inner.stub.get() {
                Some(stub) => stub.clone(),
                None => {
                    let stub = self.allocate("stub", 16, usage)?;
                    self.inner.stub.get_or_init(|| stub).clone()
                }
            },
        };
        self.count(|c| &c.allocations, 1);
        self.count(|c| &c.allocated_bytes, size);
        Ok(Buffer::new(buffer, size, self.counters.clone()))
    }

    fn allocate(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, GpuError> {
        let device = &self.inner.device;
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        for scope in [validation, memory, internal] {
            match pollster::block_on(scope.pop()) {
                Some(wgpu::Error::OutOfMemory { .. }) => {
                    return Err(GpuError::OutOfMemory {
                        what: label.to_string(),
                        bytes: size,
                        allocated_bytes: self.counts().allocated_bytes,
                    });
                }
                Some(error) => return Err(GpuError::Device { message: format!("`{label}`: {error}") }),
                None => {}
            }
        }
        Ok(buffer)
    }

    fn write_buffer(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        if self.is_plan() {
            return;
        }
        self.count(|c| &c.writes, 1);
        if bytes.len().is_multiple_of(4) {
            self.inner.queue.write_buffer(buffer, offset, bytes);
        } else {
            // The end of an F16 row of odd length. Rows are padded, so the extra bytes go to padding.
            let mut padded = bytes.to_vec();
            padded.resize(bytes.len().next_multiple_of(4), 0);
            self.inner.queue.write_buffer(buffer, offset, &padded);
        }
    }

    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64, n: u64) {
        counter(&self.counters).fetch_add(n, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("name", &self.inner.info.name).field("owned", &self.inner.owned).finish()
    }
}

/// Locks `mutex`. A poisoned lock is fine here: it guards plain data that is valid at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
