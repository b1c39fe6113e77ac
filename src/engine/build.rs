//! Everything that an engine has on a device, while it is made: weights are uploaded in slices, and kernels compile.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EngineError;
use super::self_test::{Tested, Trials};
use super::stepper::{Kind, Machine, ReadRange, Size, Stepper};
use crate::gpu::{Gpu, GpuError, Recorder};
use crate::models::{LoadProgress, MOST_SLICE, ModelError, PIECE, Upload};

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
        let compiler = gpu.clone();
        let compile = move || {
            let begin = Instant::now();
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

    /// Records uploads for about `budget` of device time, and returns the command buffers to submit. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`], [`EngineError::Model`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        let mut buffers = match self.upload.try_lock() {
            Ok(mut upload) => upload.advance(budget)?,
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
        upload.uploads.0.iter_mut().try_for_each(each).map_err(ModelError::from)?;
        Ok(())
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
    /// `None` once everything is on the device.
    stepper: Option<Stepper<Pieces>>,
}

impl Uploading {
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub(super) fn new(gpu: &Gpu, uploads: Vec<Upload>) -> Result<Arc<Mutex<Uploading>>, GpuError> {
        let stepper = Some(Stepper::new(gpu, 4, true)?);
        Ok(Arc::new(Mutex::new(Uploading { uploads: Uploads(uploads), stepper })))
    }

    /// Nothing to upload.
    pub(super) fn nothing() -> Arc<Mutex<Uploading>> {
        Arc::new(Mutex::new(Uploading { uploads: Uploads(Vec::new()), stepper: None }))
    }

    fn progress(&self) -> LoadProgress {
        let mut sum = LoadProgress { done_bytes: 0, total_bytes: 0 };
        for progress in self.uploads.0.iter().map(Upload::progress) {
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
struct Uploads(Vec<Upload>);

impl Uploads {
    fn is_done(&self) -> bool {
        self.0.iter().all(Upload::is_done)
    }
}

/// Some pieces of an upload.
struct Pieces {
    upload: usize,
    n: usize,
}

impl Machine for Uploads {
    type Work = Pieces;

    fn next(&mut self) -> Option<Pieces> {
        let upload = self.0.iter().position(|upload| !upload.is_done())?;
        let LoadProgress { done_bytes, total_bytes } = self.0[upload].progress();
        let n = total_bytes.saturating_sub(done_bytes).div_ceil(PIECE).clamp(1, MOST_SLICE / PIECE);
        Some(Pieces { upload, n })
    }

    fn size(&self, pieces: &Pieces) -> Size {
        Size { kind: Kind::Upload, n_layers: pieces.n, n_units: 1 }
    }

    fn record(
        &mut self,
        rec: &mut Recorder,
        pieces: &mut Pieces,
        range: Range<usize>,
    ) -> Result<Vec<ReadRange>, EngineError> {
        // Pieces of whole rows are not exactly so large: the last ones may have nothing left to do.
        self.0[pieces.upload].record(rec, range.len() * PIECE).map_err(ModelError::from)?;
        Ok(Vec::new())
    }

    fn landed(&mut self, _: Pieces, _: &[u8]) {}
}

fn locked(upload: &Mutex<Uploading>) -> MutexGuard<'_, Uploading> {
    // An upload that was interrupted by a panic goes on with the piece that was not written.
    upload.lock().unwrap_or_else(PoisonError::into_inner)
}
