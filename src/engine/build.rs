//! Everything that an engine has on a device, while it is made: weights are uploaded in slices, and kernels compile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EngineError;
use super::self_test::{Tested, Trials};
use super::stepper::{Machine, ReadRange, Stepper};
use crate::gpu::{Gpu, GpuError, Recorder, Variant};
use crate::models::{LoadProgress, MOST_SLICE, ModelError, Upload};

/// The time that [`Build::pump`] waits for kernels that compile.
const A_MOMENT: Duration = Duration::from_millis(2);

/// Everything that an engine has on a device, `parts`, and what is still to be done for it.
pub struct Build<P> {
    gpu: Gpu,
    parts: P,
    /// The upload of its weights. Engines on one model share it, and each of them drives it.
    upload: Arc<Mutex<Uploading>>,
    compiler: JoinHandle<Result<Duration, GpuError>>,
    /// Begins once the kernels are compiled.
    self_test: Option<Trials>,
}

/// What a [`Build`] has become.
pub struct Built<P> {
    pub(super) parts: P,
    /// Time to compile the kernels.
    pub(super) compile_time: Duration,
    /// It may not have ended.
    pub(super) self_test: Option<Trials>,
}

impl<P> Build<P> {
    /// Starts to compile the variants of `parts`.
    pub(super) fn new(
        gpu: &Gpu,
        parts: P,
        upload: Arc<Mutex<Uploading>>,
        Tested { variants, self_test }: Tested,
    ) -> Build<P> {
        let (kernels, are_compiled) = {
            let upload = locked(&upload);
            (upload.kernels.clone(), upload.can_upload.clone())
        };
        let compiler = gpu.clone();
        let compile = move || {
            let begin = Instant::now();
            compiler.compile(&kernels)?;
            are_compiled.store(true, Ordering::Release);
            variants.compile(&compiler).map(|()| begin.elapsed())
        };
        Build { gpu: gpu.clone(), parts, upload, compiler: std::thread::spawn(compile), self_test }
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes uploaded, and the total.
    pub fn progress(&self) -> LoadProgress {
        locked(&self.upload).progress()
    }

    /// Whether the weights are on the device.
    pub fn is_uploaded(&self) -> bool {
        locked(&self.upload).is_done()
    }

    /// Whether [`Build::finish`] does not wait for the compiler.
    pub fn is_ready(&self) -> bool {
        self.is_uploaded() && self.compiler.is_finished()
    }

    /// Whether the self-test has ended, too.
    pub fn is_tested(&self) -> bool {
        self.self_test.as_ref().is_none_or(Trials::is_done)
    }

    /// Records uploads for about `budget` of the host's or the device's time, whichever takes longer, and returns the command
    /// buffers to submit: none until the kernels of uploads are compiled. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`], [`EngineError::Model`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        let mut buffers = match self.upload.try_lock() {
            // If the compiler ended early, the first recording finds its error, too.
            Ok(mut upload) if upload.can_upload.load(Ordering::Acquire) || self.compiler.is_finished() => {
                upload.advance(budget)?
            }
            Ok(_) => {
                self.gpu.check_alive()?;
                Vec::new()
            }
            Err(_) => Vec::new(), // another engine drives it at this moment
        };
        if let Some(test) = self.compiled_test() {
            buffers.extend(test.advance()?);
        }
        Ok(buffers)
    }

    /// Submits to our own queue, or waits for a moment.
    ///
    /// # Errors
    /// As [`Build::advance`].
    pub fn pump(&mut self) -> Result<(), EngineError> {
        let mut upload = locked(&self.upload);
        let is_uploaded = upload.is_done();
        if !is_uploaded {
            upload.pump()?;
        }
        drop(upload);
        if let Some(test) = self.compiled_test() {
            test.pump()?;
        } else if is_uploaded && !self.compiler.is_finished() {
            std::thread::sleep(A_MOMENT);
        }
        Ok(())
    }

    /// Writes the rest of the weights to the queue of an adopted device, for the host's next submission.
    ///
    /// # Errors
    /// [`EngineError::Model`]; [`GpuError::Adopted`] if only the host's submissions could complete it.
    pub fn write(&mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), EngineError> {
        let mut upload = locked(&self.upload);
        let Build { gpu, .. } = self;
        let each = |upload: &mut Upload| upload.run(gpu, progress);
        upload.uploads.uploads.iter_mut().try_for_each(each).map_err(ModelError::from)?;
        Ok(())
    }

    /// Device times of the slices that have finished since the last call.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        locked(&self.upload).stepper.as_mut().map(Stepper::slice_times).unwrap_or_default()
    }

    /// The longest time of what cannot be cut, as measured so far.
    pub fn smallest_slice(&self) -> Option<Duration> {
        locked(&self.upload).stepper.as_ref()?.smallest_slice()
    }

    /// What the last [`Build::advance`] left of its budget, as predicted.
    pub fn left(&self) -> Duration {
        locked(&self.upload).stepper.as_ref().map_or(Duration::ZERO, Stepper::left)
    }

    /// The self-test, if its kernels are compiled.
    fn compiled_test(&mut self) -> Option<&mut Trials> {
        self.self_test.as_mut().filter(|_| self.compiler.is_finished())
    }

    /// Waits for the thread that compiles kernels, and on a device of our own for the self-test.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] with a kernel that does not compile.
    pub fn finish(mut self) -> Result<Built<P>, EngineError> {
        let died = |_| Err(GpuError::Device { message: "the compiler's thread died".into() });
        // What does not compile on a lost device is no fault of a kernel.
        let compiled = self.compiler.join().unwrap_or_else(died);
        self.gpu.check_alive()?;
        let compile_time = compiled?;
        if let (Some(test), true) = (&mut self.self_test, self.gpu.is_owned()) {
            test.run()?;
        }
        Ok(Built { parts: self.parts, compile_time, self_test: self.self_test })
    }
}

/// An upload of weights on a stepper of its own.
pub struct Uploading {
    uploads: Uploads,
    /// `None` if there is nothing to upload.
    stepper: Option<Stepper<Pieces>>,
    /// The kernels of the upload, which are compiled before all others.
    kernels: Vec<Variant>,
    /// Set once they are. On an adopted device nothing is recorded before: a call would wait for the compiler.
    can_upload: Arc<AtomicBool>,
}

impl Uploading {
    /// # Errors
    /// [`EngineError::Gpu`].
    pub(super) fn new(gpu: &Gpu, mut uploads: Vec<Upload>) -> Result<Arc<Mutex<Uploading>>, EngineError> {
        let mut stepper = Stepper::new(gpu, 4, true)?;
        let kernels = match gpu.is_owned() {
            true => Vec::new(),
            false => variants_of(stepper.recorder(), &mut uploads, |_| {})?,
        };
        Ok(Arc::new(Mutex::new(Uploading {
            uploads: Uploads { uploads, pace: Pace::default() },
            stepper: Some(stepper),
            can_upload: Arc::new(AtomicBool::new(kernels.is_empty())),
            kernels,
        })))
    }

    /// Nothing to upload.
    pub(super) fn nothing() -> Arc<Mutex<Uploading>> {
        Arc::new(Mutex::new(Uploading {
            uploads: Uploads { uploads: Vec::new(), pace: Pace::default() },
            stepper: None,
            kernels: Vec::new(),
            can_upload: Arc::new(AtomicBool::new(true)),
        }))
    }

    fn progress(&self) -> LoadProgress {
        let mut sum = LoadProgress { done_bytes: 0, total_bytes: 0 };
        for progress in self.uploads.uploads.iter().map(Upload::progress) {
            sum.done_bytes += progress.done_bytes;
            sum.total_bytes += progress.total_bytes;
        }
        sum
    }

    fn is_done(&self) -> bool {
        self.uploads.is_done() && self.stepper.as_ref().is_none_or(Stepper::is_idle)
    }

    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        match &mut self.stepper {
            Some(stepper) => stepper.advance(&mut self.uploads, budget),
            None => Ok(Vec::new()),
        }
    }

    fn pump(&mut self) -> Result<(), EngineError> {
        self.stepper.as_mut().map_or(Ok(()), |stepper| stepper.pump(&mut self.uploads))
    }
}

/// Bytes of the stepper of an upload.
///
/// # Errors
/// [`GpuError::OutOfMemory`].
pub(super) fn upload_bytes(gpu: &Gpu) -> Result<u64, GpuError> {
    let plan = gpu.plan();
    let _stepper = Stepper::<Pieces>::new(&plan, 4, true)?;
    Ok(plan.counts().live_bytes)
}

/// The uploads that are not finished.
struct Uploads {
    uploads: Vec<Upload>,
    pace: Pace,
}

/// The speed of uploads: the time per byte of the host or the device, whichever takes longer.
#[derive(Debug, Default)]
pub(super) struct Pace {
    ms_per_byte: Option<f64>,
}

impl Pace {
    /// Bytes that `ms` are enough for, with some to spare.
    pub fn n_bytes(&self, ms: f64) -> usize {
        let n = self.ms_per_byte.map_or(FIRST_SLICE as f64, |each| SHARE * ms / each);
        (n as usize).clamp(LEAST_SLICE, MOST_SLICE)
    }

    /// Learns that `n_bytes` took `ms`. Slower is believed sooner than faster.
    pub fn learn(&mut self, ms: f64, n_bytes: usize) {
        if n_bytes > 0 {
            let found = ms / n_bytes as f64;
            let known = self.ms_per_byte.get_or_insert(found);
            *known += (found - *known) * if found > *known { 0.3 } else { 0.1 };
        }
    }
}

impl Uploads {
    fn is_done(&self) -> bool {
        self.uploads.iter().all(Upload::is_done)
    }
}

/// Some pieces of an upload: its index.
struct Pieces(usize);

/// The share of a budget that uploads aim at: one dispatch of a software device varies by a third.
const SHARE: f64 = 0.8;
/// Most bytes between two looks at the host's clock: it reads and copies so much in about a millisecond.
const A_PIECE: usize = 1 << 20;
/// Bytes of the first slice of an upload, of whose speed nothing is known.
const FIRST_SLICE: usize = 256 << 10;
/// Fewest bytes of a slice: less would take longer to submit than to copy.
const LEAST_SLICE: usize = 64 << 10;

impl Machine for Uploads {
    type Work = Pieces;

    const IS_WHOLE: bool = true;

    fn next(&mut self) -> Option<Pieces> {
        self.uploads.iter().position(|upload| !upload.is_done()).map(Pieces)
    }

    fn n_parts(&self, _: &Pieces) -> usize {
        1
    }

    fn begin(&mut self, _: &mut Recorder, _: &mut Pieces) {}

    /// Records as much as the frame has time for: the host reads and converts meanwhile, so its clock counts like the
    /// device's.
    fn record(
        &mut self,
        rec: &mut Recorder,
        Pieces(at): &mut Pieces,
        _: usize,
    ) -> Result<Vec<ReadRange>, EngineError> {
        let upload = &mut self.uploads[*at];
        let (begin, left_ms, spent_ms) = (Instant::now(), rec.meter().left_ms(), rec.meter().spent_ms());
        let passed_ms = || begin.elapsed().as_secs_f64() * 1e3;
        let done_before = upload.progress().done_bytes;
        let n_bytes = self.pace.n_bytes(left_ms);
        upload
            .record_while(rec, n_bytes, n_bytes.min(A_PIECE), || passed_ms() < left_ms)
            .map_err(ModelError::from)?;
        let (host_ms, device_ms) = (passed_ms(), rec.meter().spent_ms() - spent_ms);
        rec.meter().spend((host_ms - device_ms).max(0.0));
        let ms = host_ms.max(device_ms);
        self.pace.learn(ms, upload.progress().done_bytes - done_before);
        Ok(Vec::new())
    }

    fn landed(&mut self, _: Pieces, _: &[u8]) {}
}

/// The variants of uploads and of the work that `record` records.
///
/// # Errors
/// [`EngineError::Gpu`].
pub(super) fn variants_of(
    rec: &mut Recorder,
    uploads: &mut [Upload],
    record: impl FnOnce(&mut Recorder),
) -> Result<Vec<Variant>, EngineError> {
    let mut staged = Ok(());
    let variants = rec.variants(|rec| {
        staged = uploads.iter_mut().try_for_each(|upload| upload.rehearse(rec));
        record(rec);
    });
    staged?;
    rec.finish()?;
    Ok(variants)
}

fn locked(upload: &Mutex<Uploading>) -> MutexGuard<'_, Uploading> {
    // An upload that was interrupted by a panic goes on with the piece that was not written.
    upload.lock().unwrap_or_else(PoisonError::into_inner)
}
