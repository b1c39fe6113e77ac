//! A lost device is a state that an engine survives: it takes its work back, gets everything that it had on the device
//! on another one, and goes on.
//!
//! [`Recovery`] is that state: it waits for a device, opens it, has everything made there, and tries again. A device of
//! our own is opened again ([`Gpu::reopen`]), a host hands in its next one. Whatever takes time is done by another
//! thread, so that a guest never waits. The first load of an engine is a recovery, too: from nothing.
//!
//! [`Survivor`] is an engine: it gives its device's parts up, and takes others.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EngineError;
use super::build::{Build, Built};
use crate::gpu::{Gpu, GpuError};
use crate::models::LoadProgress;
use crate::ops::tunable;

/// Losses in a row after which an engine gives up, if nothing was computed between: the device is lost by the work that
/// it gets.
const MOST_LOSSES: usize = 3;

/// The time before the second try to open a device. It doubles with each try: drivers take some seconds for a reset.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MOST_DELAY: Duration = Duration::from_secs(2);

/// The longest time for which one call of [`Recovery::pump`] waits.
const A_MOMENT: Duration = Duration::from_millis(10);

/// Whether an engine has a device that works.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Health {
    /// It has.
    Well,
    /// The device was lost, and there is no other one yet: it is to be opened again, or the host is to hand in another
    /// one. Requests wait.
    Lost {
        /// Why, as far as the driver says.
        message: String,
    },
    /// There is another device, on which everything is being made. Requests wait.
    Rebuilding {
        /// How far the weights are.
        progress: LoadProgress,
    },
    /// The engine does no more work. Every request has ended.
    Broken {
        /// Why.
        message: String,
    },
}

/// What has happened to the device of an engine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// It was lost. Requests wait.
    Lost {
        /// Why, as far as the driver says.
        message: String,
    },
    /// The engine has everything on another device, and requests go on.
    Recovered {
        /// The adapter.
        adapter: String,
        /// The adapter of the lost device, if it is another one: the last bits of what is computed from now on may differ.
        instead_of: Option<String>,
    },
    /// The engine has given up: every request has failed.
    Broken {
        /// Why.
        message: String,
    },
}

/// Makes everything that an engine has on a device.
type Make<P> = dyn Fn(&Gpu) -> Result<Build<P>, EngineError> + Send + Sync;

/// How an engine gets from one device to the next.
pub struct Recovery<P> {
    /// The latest device on which everything was.
    gpu: Gpu,
    make: Arc<Make<P>>,
    /// How long to try. `None`: a loss ends everything.
    patience: Option<Duration>,
    state: State<P>,
    /// Whether everything was on a device before.
    has_begun: bool,
    /// Losses in a row, and how much had been computed at the first of them.
    n_losses: usize,
    n_computed: u64,
    /// The latest loss.
    since: Instant,
    message: String,
    delay: Duration,
    total_bytes: usize,
    events: Vec<DeviceEvent>,
}

enum State<P> {
    /// The engine has its parts.
    Well,
    /// Until the next try; on a host's device until there is another one.
    Waiting {
        next_try: Option<Instant>,
    },
    Opening(JoinHandle<Result<Build<P>, EngineError>>),
    Building(Box<Build<P>>),
    Broken(GpuError),
}

impl<P: Send + 'static> Recovery<P> {
    /// Begins to make everything on `gpu`. The call allocates; a device that is lost at this moment is opened again.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn begin(
        gpu: &Gpu,
        patience: Option<Duration>,
        make: impl Fn(&Gpu) -> Result<Build<P>, EngineError> + Send + Sync + 'static,
    ) -> Result<Recovery<P>, EngineError> {
        let mut recovery = Recovery {
            gpu: gpu.current(),
            make: Arc::new(make),
            patience,
            state: State::Waiting { next_try: None },
            has_begun: false,
            n_losses: 0,
            n_computed: 0,
            since: Instant::now(),
            message: String::new(),
            delay: FIRST_DELAY,
            total_bytes: 0,
            events: Vec::new(),
        };
        match (recovery.make)(&recovery.gpu) {
            Ok(build) => recovery.build(build),
            Err(EngineError::Gpu(error)) if error.is_loss() => recovery.lost(error, 0)?,
            Err(error) => return Err(error),
        }
        Ok(recovery)
    }

    /// The device on which everything is, or was.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn health(&self) -> Health {
        match &self.state {
            // The engine has not noticed yet.
            State::Well => match self.gpu.check_alive() {
                Err(GpuError::Lost { message }) => Health::Lost { message },
                _ => Health::Well,
            },
            State::Waiting { .. } => Health::Lost { message: self.message.clone() },
            State::Opening(_) | State::Building(_) => Health::Rebuilding { progress: self.progress() },
            State::Broken(error) => Health::Broken { message: error.to_string() },
        }
    }

    /// What has happened since the last call.
    pub fn events(&mut self) -> Vec<DeviceEvent> {
        std::mem::take(&mut self.events)
    }

    /// Bytes uploaded, and the total.
    pub fn progress(&self) -> LoadProgress {
        match &self.state {
            State::Building(build) => build.progress(),
            State::Well => LoadProgress { done_bytes: self.total_bytes, total_bytes: self.total_bytes },
            _ => LoadProgress { done_bytes: 0, total_bytes: self.total_bytes },
        }
    }

    /// Device times of the slices of the build that have finished since the last call.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        if let State::Building(build) = &mut self.state { build.slice_times() } else { Vec::new() }
    }

    /// The longest time of what the build cannot cut.
    pub fn smallest_slice(&self) -> Option<Duration> {
        if let State::Building(build) = &self.state { build.smallest_slice() } else { None }
    }

    /// What the last [`Recovery::advance`] left of its budget, as predicted. Nothing if no more may follow.
    pub fn left(&self) -> Duration {
        if let State::Building(build) = &self.state { build.left() } else { Duration::ZERO }
    }

    /// Whether the weights are on the device.
    pub fn is_uploaded(&self) -> bool {
        matches!(&self.state, State::Building(build) if build.is_uploaded())
    }

    /// Whether everything is on the device, and tested.
    pub fn is_done(&self) -> bool {
        matches!(&self.state, State::Building(build) if build.is_ready() && build.is_tested())
    }

    /// Whether the engine has not given up.
    ///
    /// # Errors
    /// [`EngineError::Gpu`].
    pub fn check(&self) -> Result<(), EngineError> {
        let State::Broken(error) = &self.state else { return Ok(()) };
        // An earlier fault does not hide a loss.
        let loss = self.gpu.check_alive().err().filter(|found| found.is_loss() && !error.is_loss());
        Err(loss.unwrap_or_else(|| error.clone()).into())
    }

    /// The device has failed. If it was lost, another one is to follow. `n_computed` is how much had been computed so far.
    ///
    /// # Errors
    /// [`EngineError::Gpu`], if the engine gives up.
    pub fn lost(&mut self, error: GpuError, n_computed: u64) -> Result<(), EngineError> {
        let GpuError::Lost { message } = &error else { return Err(self.give_up(error)) };
        if self.patience.is_none() {
            return Err(self.give_up(error));
        }
        if self.n_computed != n_computed {
            (self.n_computed, self.n_losses) = (n_computed, 0);
            self.delay = FIRST_DELAY;
        }
        self.n_losses += 1;
        if self.n_losses > MOST_LOSSES {
            let message =
                format!("{message}; {} times in a row, with nothing computed in between", self.n_losses);
            return Err(self.give_up(GpuError::Lost { message }));
        }
        log::warn!("the device `{}` was lost ({message}): {}", self.gpu.info().name, self.what_follows());
        (self.since, self.message) = (Instant::now(), message.clone());
        self.events.push(DeviceEvent::Lost { message: message.clone() });
        match (self.gpu.is_owned(), self.n_losses) {
            (false, _) => self.state = State::Waiting { next_try: None },
            (true, 1) => self.open(None),
            (true, _) => self.wait(),
        }
        Ok(())
    }

    fn what_follows(&self) -> &'static str {
        match self.gpu.is_owned() {
            true => "it is opened again, and what was begun goes on",
            false => "what was begun goes on when the host hands in another one",
        }
    }

    /// Has everything made on another device, whether this one is lost or not.
    pub fn replace(&mut self, gpu: &Gpu) {
        (self.since, self.delay) = (Instant::now(), FIRST_DELAY);
        self.open(Some(gpu.clone()));
    }

    /// Opens the device again, or takes the host's, and has everything made there: in another thread, because drivers
    /// take their time.
    fn open(&mut self, gpu: Option<Gpu>) {
        let (lost, make) = (self.gpu.clone(), self.make.clone());
        self.state = State::Opening(std::thread::spawn(move || {
            let gpu = gpu.map_or_else(|| lost.reopen(), Ok)?;
            gpu.inherit(&lost, tunable());
            make(&gpu)
        }));
    }

    fn build(&mut self, build: Build<P>) {
        self.total_bytes = build.progress().total_bytes;
        self.state = State::Building(Box::new(build));
    }

    /// Waits before the next try.
    fn wait(&mut self) {
        self.state = State::Waiting { next_try: Some(Instant::now() + self.delay) };
        self.delay = (2 * self.delay).min(MOST_DELAY);
    }

    /// Gives up for good.
    pub fn give_up(&mut self, error: GpuError) -> EngineError {
        self.events.push(DeviceEvent::Broken { message: error.to_string() });
        self.state = State::Broken(error.clone());
        error.into()
    }

    /// Gives up after an error of [`Recovery::advance`], [`Recovery::pump`] or [`Recovery::ready`], unless the host may
    /// still hand in another device. Returns why requests end.
    fn end(&mut self, error: &EngineError) -> Option<GpuError> {
        match &self.state {
            State::Broken(error) => return Some(error.clone()),
            State::Waiting { .. } => return None,
            _ => {}
        }
        let error = match error {
            EngineError::Gpu(error) => error.clone(),
            error => GpuError::Lost { message: format!("{}; nothing replaces it: {error}", self.message) },
        };
        self.give_up(error.clone());
        Some(error)
    }

    /// Everything could not be made.
    fn failed(&mut self, error: EngineError) -> Result<(), EngineError> {
        match error {
            EngineError::Gpu(error) if error.is_loss() => self.lost(error, self.n_computed),
            error if may_pass(&error) && !self.gpu.is_owned() => {
                self.state = State::Waiting { next_try: None };
                Err(error)
            }
            error if may_pass(&error) && self.patience.is_some_and(|most| self.since.elapsed() < most) => {
                log::debug!("no device yet: {error}");
                self.wait();
                Ok(())
            }
            error => {
                let message = format!("{}; nothing replaces it: {error}", self.message);
                Err(self.give_up(GpuError::Lost { message }))
            }
        }
    }

    /// What can be done without waiting: the next try, or what has come of the last.
    fn turn(&mut self) -> Result<(), EngineError> {
        self.check()?;
        if matches!(&self.state, State::Waiting { next_try: Some(at) } if *at <= Instant::now()) {
            self.open(None);
        }
        if !matches!(&self.state, State::Opening(thread) if thread.is_finished()) {
            return Ok(());
        }
        let opened = std::mem::replace(&mut self.state, State::Waiting { next_try: None });
        let State::Opening(thread) = opened else { return Ok(()) };
        let died =
            |_| Err(GpuError::Device { message: "the thread that opened a device died".into() }.into());
        match thread.join().unwrap_or_else(died) {
            Ok(build) => self.build(build),
            Err(error) => self.failed(error)?,
        }
        Ok(())
    }

    /// What came of a step of the build: a loss begins it again.
    fn stepped<T: Default>(&mut self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        match result {
            Err(EngineError::Gpu(error)) if error.is_loss() => {
                self.lost(error, self.n_computed)?;
                Ok(T::default())
            }
            other => other,
        }
    }

    /// Goes on for about `budget` of device time, and returns the command buffers to submit. Never waits.
    ///
    /// # Errors
    /// Those of the build. The engine has given up if [`Recovery::check`] says so.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.turn()?;
        let State::Building(build) = &mut self.state else { return Ok(Vec::new()) };
        let advanced = build.advance(budget);
        self.stepped(advanced)
    }

    /// Goes on, on a device of our own, or waits for a moment.
    ///
    /// # Errors
    /// As [`Recovery::advance`].
    pub fn pump(&mut self) -> Result<(), EngineError> {
        self.turn()?;
        match &mut self.state {
            State::Building(build) => {
                let pumped = build.pump();
                self.stepped(pumped)
            }
            _ => {
                std::thread::sleep(A_MOMENT);
                Ok(())
            }
        }
    }

    /// Writes the weights to the queue of an adopted device ([`Build::write`]).
    ///
    /// # Errors
    /// As there; the loss, if it is lost.
    pub fn write(&mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), EngineError> {
        match &mut self.state {
            State::Building(build) => build.write(progress),
            _ => Err(GpuError::Lost { message: self.message.clone() }.into()),
        }
    }

    /// What was made, once it is complete. If it waits, then also for kernels to compile.
    ///
    /// # Errors
    /// Those of the build.
    pub fn ready(&mut self, waits: bool) -> Result<Option<Built<P>>, EngineError> {
        let is_ready = |build: &Build<P>| build.is_ready() || waits && build.is_uploaded();
        if !matches!(&self.state, State::Building(build) if is_ready(build)) {
            return Ok(None);
        }
        let State::Building(build) = std::mem::replace(&mut self.state, State::Well) else { return Ok(None) };
        let gpu = build.gpu().clone();
        let finished = build.finish().map(Some);
        let Some(built) = self.stepped(finished)? else { return Ok(None) };
        let instead_of = (!gpu.is_same_adapter(&self.gpu)).then(|| self.gpu.info().name.clone());
        let adapter = gpu.info().name.clone();
        if let Some(gone) = &instead_of {
            log::warn!("`{adapter}` computes instead of `{gone}`: the last bits of results may differ");
        }
        if self.has_begun || self.n_losses > 0 {
            log::debug!("everything is on `{adapter}` again after {:?}", self.since.elapsed());
            self.events.push(DeviceEvent::Recovered { adapter, instead_of });
        }
        (self.gpu, self.has_begun) = (gpu, true);
        Ok(Some(built))
    }
}

/// Whether an error may be none at the next try: a driver is being reset, or memory is not free yet.
fn may_pass(error: &EngineError) -> bool {
    use GpuError::{NoAdapter, NoDevice, OutOfMemory};
    match error {
        EngineError::Gpu(error) => matches!(error, NoAdapter | NoDevice { .. } | OutOfMemory { .. }),
        error => matches!(error, EngineError::Memory { .. }),
    }
}

/// An engine that survives the loss of its device.
pub trait Survivor {
    /// What it has on a device.
    type Parts: Send + 'static;

    fn recovery(&self) -> &Recovery<Self::Parts>;
    fn recovery_mut(&mut self) -> &mut Recovery<Self::Parts>;
    /// Takes what it has on the device from now on.
    fn install(&mut self, built: Built<Self::Parts>);
    /// Drops what it has on the device, and takes back what has no results yet. Returns how much it has computed so far.
    fn uninstall(&mut self) -> u64;
    /// Ends everything that is open.
    fn abandon(&mut self, error: &GpuError);

    /// An error of the device is survived, or ends everything that is open.
    ///
    /// # Errors
    /// Other errors; [`EngineError::Gpu`] at the end.
    fn survive<T: Default>(&mut self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        match result {
            Err(EngineError::Gpu(error)) => {
                let n_computed = self.uninstall();
                let lost = self.recovery_mut().lost(error, n_computed);
                self.or_end(lost).map(|()| T::default())
            }
            other => other,
        }
    }

    /// Goes on without a device, and never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] at the end; what a host's device lacks.
    fn rebuild(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        let advanced = self.recovery_mut().advance(budget);
        let buffers = self.or_end(advanced)?;
        self.take_ready(false)?;
        Ok(buffers)
    }

    /// Goes on without a device, or waits for a moment.
    ///
    /// # Errors
    /// As [`Survivor::rebuild`].
    fn rebuild_pumping(&mut self) -> Result<(), EngineError> {
        let pumped = self.recovery_mut().pump();
        self.or_end(pumped)?;
        self.take_ready(false)
    }

    /// Takes what is complete. If it waits, then also for kernels to compile.
    ///
    /// # Errors
    /// As [`Survivor::rebuild`].
    fn take_ready(&mut self, waits: bool) -> Result<(), EngineError> {
        let ready = self.recovery_mut().ready(waits);
        if let Some(built) = self.or_end(ready)? {
            self.install(built);
        }
        Ok(())
    }

    /// Ends everything that is open if the engine gives up because of an error.
    ///
    /// # Errors
    /// The error.
    fn or_end<T>(&mut self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(error) = &result
            && let Some(error) = self.recovery_mut().end(error)
        {
            self.abandon(&error);
        }
        result
    }
}
