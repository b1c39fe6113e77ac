//! Signals that end the program: SIGINT (Ctrl-C), SIGTERM and SIGHUP. No command has to notice them.
//!
//! A thread of its own waits for them. At the first, it waits until output that is being written is whole ([`hold`]),
//! writes what the command has done so far ([`Unfinished`]), reports the signal, and ends the program with 128 plus the
//! signal's number. It does so whatever the other threads do: one may be inside a driver, or wait for standard input.
//! It takes less than a second, even if nobody reads the output, and longer only as long as output is being written. A
//! second signal ends the program at once.
//!
//! The exceptions are `chat`, where Ctrl-C stops the answer that is being written ([`Writing`]), and `serve`, where the
//! first signal lets open requests end ([`Serving`]).

use std::cell::Cell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::terminal;

/// How long a signal waits for output of which nothing is being written.
const PATIENCE: Duration = Duration::from_millis(400);
/// Time from a signal, or from the last byte of output, to the end of the program.
const DEADLINE: Duration = Duration::from_millis(800);
/// Most time from a signal to the end: who reads the output may be slow.
const MOST: Duration = Duration::from_secs(10);
/// Time for what may be stuck at the end.
const A_MOMENT: Duration = Duration::from_millis(50);
/// Signals within this time are one. `timeout` sends its signal to the program and then to its group, and when a
/// terminal closes, both the system and the shell send SIGHUP.
const SAME: Duration = Duration::from_millis(200);

/// The signal that ends the program; 0 before there is one, [`OVER`] if the command was over before.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
const OVER: i32 = -1;
/// Whether the signal has been reported.
static IS_REPORTED: AtomicBool = AtomicBool::new(false);
/// Held while output is being written.
static OUTPUT: Mutex<()> = Mutex::new(());
/// Writes what the command has done so far, and returns the file that it is in.
static UNFINISHED: Mutex<Option<Finish>> = Mutex::new(None);

type Finish = Box<dyn FnOnce() -> Option<PathBuf> + Send>;

thread_local! {
    /// Holds of this thread, one inside another.
    static N_HOLDS: Cell<usize> = const { Cell::new(0) };
}

/// What a signal does with output, before the program ends.
#[derive(Clone, Copy)]
pub struct Outputs {
    /// Ends the line on standard output.
    pub end_line: fn(),
    /// Cuts off what is not whole in files. Returns one that is left, if there is any.
    pub leave_all: fn() -> Option<PathBuf>,
    /// The bytes written so far.
    pub n_written: fn() -> u64,
}

/// Catches the signals from now on, except those that were ignored when the program started, as by `nohup`.
///
/// # Errors
/// Why signals cannot be caught. They end the program then, with nothing written.
pub fn init(outputs: Outputs) -> Result<(), String> {
    let mut first: Option<Instant> = None;
    let caught = catch(move |signal| {
        if Writing::stop(signal) || Serving::stop() {
            return;
        }
        match SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                first = Some(Instant::now());
                let ends: [fn(i32, Outputs) -> Infallible; 2] = [leave, leave_late];
                if ends
                    .map(|end| thread::Builder::new().spawn(move || end(signal, outputs)))
                    .iter()
                    .any(Result::is_err)
                {
                    exit(signal);
                }
            }
            Err(_) if first.is_some_and(|first| first.elapsed() < SAME) => {}
            Err(_) => {
                let _ = thread::Builder::new().spawn(move || {
                    (outputs.leave_all)();
                    exit(signal)
                });
                thread::sleep(A_MOMENT);
                exit(signal)
            }
        }
    });
    caught.map_err(|error| error.to_string())
}

/// Ends the program in an orderly way.
fn leave(signal: i32, outputs: Outputs) -> Infallible {
    // This thread may write.
    N_HOLDS.set(1);
    let mut flow = Flow::new(outputs);
    let _output = loop {
        match OUTPUT.try_lock() {
            Ok(guard) => break Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if flow.is_stuck(PATIENCE) => break None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    };
    restore_terminal();
    terminal::clear();
    (outputs.end_line)();
    let finish = lock(&UNFINISHED).take();
    let file = finish.and_then(|finish| finish());
    let left = (outputs.leave_all)();
    report(signal, file.or(left));
    exit(signal)
}

/// Whether output is being written.
struct Flow {
    outputs: Outputs,
    begin: Instant,
    n_written: u64,
    /// When it was more than before.
    last: Instant,
}

impl Flow {
    fn new(outputs: Outputs) -> Flow {
        let now = Instant::now();
        Flow { outputs, begin: now, n_written: (outputs.n_written)(), last: now }
    }

    /// Whether nothing was written for this time, or it takes too long.
    fn is_stuck(&mut self, patience: Duration) -> bool {
        let n_written = (self.outputs.n_written)();
        if n_written > self.n_written {
            (self.n_written, self.last) = (n_written, Instant::now());
        }
        self.last.elapsed() > patience || self.begin.elapsed() > MOST
    }
}

/// Ends the program if [`leave`] does not.
fn leave_late(signal: i32, outputs: Outputs) -> Infallible {
    let mut flow = Flow::new(outputs);
    while !flow.is_stuck(DEADLINE) {
        thread::sleep(Duration::from_millis(10));
    }
    let left = (outputs.leave_all)();
    // Standard error may be stuck, too.
    let _ = thread::Builder::new().spawn(move || report(signal, left));
    thread::sleep(A_MOMENT);
    exit(signal)
}

fn report(signal: i32, file: Option<PathBuf>) {
    if IS_REPORTED.swap(true, Ordering::SeqCst) {
        return;
    }
    let failure = Failure::failed(format!("interrupted by {}", name(signal)));
    terminal::error(&match file {
        Some(file) => failure.with_hint(format!("what was done is in `{}`", file.display())),
        None => failure,
    });
}

/// While it lives, output is being written, and a signal waits, but not long. After a signal, it cannot be had any
/// more: the thread that asks for it sleeps until the program ends.
pub struct Hold(#[allow(dead_code)] Option<MutexGuard<'static, ()>>);

/// Holds signals back.
pub fn hold() -> Hold {
    let is_first = N_HOLDS.replace(N_HOLDS.get() + 1) == 0;
    Hold(is_first.then(|| {
        let guard = lock(&OUTPUT);
        if SIGNAL.load(Ordering::SeqCst) > 0 {
            drop(guard);
            sleep();
        }
        guard
    }))
}

impl Drop for Hold {
    fn drop(&mut self) {
        N_HOLDS.set(N_HOLDS.get() - 1);
    }
}

/// Ends the command, whose output is whole: a later signal finds nothing to write. An earlier one ends the program here.
pub fn over(hold: Hold) {
    let earlier = SIGNAL.compare_exchange(0, OVER, Ordering::SeqCst, Ordering::SeqCst);
    drop(hold);
    if earlier.is_err() {
        sleep();
    }
}

/// Waits for the end of the program.
fn sleep() -> ! {
    loop {
        thread::park();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a command has done so far. If a signal ends the program, it is written. There is one at a time.
pub struct Unfinished<T>(Arc<Mutex<Option<T>>>);

impl<T: Send + 'static> Unfinished<T> {
    /// `finish` writes what is done, and returns the file that it is in, if it is in one.
    pub fn new(done: T, finish: impl FnOnce(T) -> Option<PathBuf> + Send + 'static) -> Unfinished<T> {
        let done = Arc::new(Mutex::new(Some(done)));
        let shared = done.clone();
        *lock(&UNFINISHED) = Some(Box::new(move || {
            // It is locked if an update is stuck: nobody reads the output.
            let done = shared.try_lock().ok()?.take()?;
            finish(done)
        }));
        Unfinished(done)
    }

    /// Adds to it, and writes as much of it as can be written: between two calls the output is whole.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let _hold = hold();
        match lock(&self.0).as_mut() {
            Some(done) => change(done),
            None => sleep(),
        }
    }

    /// Writes the end.
    pub fn finish<R>(self, end: impl FnOnce(T) -> R) -> R {
        let _hold = hold();
        lock(&UNFINISHED).take();
        let done = lock(&self.0).take();
        match done {
            Some(done) => end(done),
            None => sleep(),
        }
    }
}

impl<T> Drop for Unfinished<T> {
    fn drop(&mut self) {
        lock(&UNFINISHED).take();
    }
}

const IDLE: u8 = 0;
const WRITING: u8 = 1;
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// While this lives, Ctrl-C sets [`Writing::is_stopped`].
pub struct Writing(());

impl Writing {
    pub fn begin() -> Writing {
        STATE.store(WRITING, Ordering::SeqCst);
        Writing(())
    }

    pub fn is_stopped(&self) -> bool {
        STATE.load(Ordering::SeqCst) == STOPPING
    }

    /// Whether there was something to stop. A second Ctrl-C ends the program.
    fn stop(signal: i32) -> bool {
        signal == SIGINT
            && STATE.compare_exchange(WRITING, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}

/// Called by the first signal.
static STOP: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// While this lives, the first signal only calls a function. A second one ends the program.
#[cfg_attr(not(feature = "server"), allow(dead_code))]
pub struct Serving(());

#[cfg_attr(not(feature = "server"), allow(dead_code))]
impl Serving {
    pub fn begin(stop: impl FnOnce() + Send + 'static) -> Serving {
        *lock(&STOP) = Some(Box::new(stop));
        Serving(())
    }

    /// Whether there was something to stop.
    fn stop() -> bool {
        let stop = lock(&STOP).take();
        stop.map(|stop| stop()).is_some()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        lock(&STOP).take();
    }
}

#[cfg(unix)]
pub use unix::keep_terminal;
#[cfg(unix)]
use unix::{SIGINT, catch, exit, name, restore_terminal};

#[cfg(unix)]
mod unix {
    use std::io::Write;
    use std::mem::MaybeUninit;
    use std::sync::Mutex;
    use std::thread;

    pub use signal_hook::consts::SIGINT;
    use signal_hook::consts::{SIGHUP, SIGQUIT, SIGTERM};
    use signal_hook::iterator::SignalsInfo;
    use signal_hook::iterator::exfiltrator::WithRawSiginfo;

    use super::lock;

    /// Passes the signals to `on`, in a thread of its own.
    pub fn catch(mut on: impl FnMut(i32) + Send + 'static) -> std::io::Result<()> {
        // A shell without job control starts its background jobs so: Ctrl-C is not for them. What a process sends is.
        let is_background = cfg!(target_os = "linux") && is_ignored(SIGINT) && is_ignored(SIGQUIT);
        let is_caught = |signal: &i32| !is_ignored(*signal) || (*signal == SIGINT && is_background);
        let caught = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(is_caught);
        let mut signals = SignalsInfo::<WithRawSiginfo>::new(caught)?;
        let wait = move || {
            for info in signals.forever() {
                // Codes above 0 are the system's, here the terminal's.
                if !(info.si_signo == SIGINT && is_background && info.si_code > 0) {
                    on(info.si_signo);
                }
            }
        };
        thread::Builder::new().name("signals".to_string()).spawn(wait).map(drop)
    }

    fn is_ignored(signal: i32) -> bool {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: without a new action, `sigaction` only writes the present one; all zeros is a valid one.
        #[allow(unsafe_code)]
        let (status, action) =
            unsafe { (libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()), action.assume_init()) };
        status == 0 && action.sa_sigaction == libc::SIG_IGN
    }

    /// Ends the program without the destructors of drivers, whose threads still run.
    pub fn exit(signal: i32) -> ! {
        signal_hook::low_level::exit(128 + signal)
    }

    pub fn name(signal: i32) -> &'static str {
        signal_hook::low_level::signal_name(signal).unwrap_or("a signal")
    }

    /// The terminal's settings before the line editor changed them.
    static SETTINGS: Mutex<Option<libc::termios>> = Mutex::new(None);

    /// Keeps the settings of the terminal at standard input. A signal restores them.
    pub fn keep_terminal() {
        *lock(&SETTINGS) = settings();
    }

    fn settings() -> Option<libc::termios> {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `tcgetattr` writes all of it if it returns 0.
        #[allow(unsafe_code)]
        unsafe {
            (libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) == 0).then(|| settings.assume_init())
        }
    }

    /// Restores the terminal's settings if the line editor is at work.
    pub fn restore_terminal() {
        /// Ends bracketed paste, which the editor begins.
        const END_OF_PASTE: &str = "\x1b[?2004l";
        let Some(kept) = lock(&SETTINGS).take() else { return };
        if settings().is_none_or(|now| now.c_lflag == kept.c_lflag) {
            return;
        }
        // SAFETY: these read numbers, and settings that `tcgetattr` wrote.
        #[allow(unsafe_code)]
        unsafe {
            // A background job that sets a terminal is stopped.
            if libc::tcgetpgrp(libc::STDIN_FILENO) != libc::getpgrp() {
                return;
            }
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &kept);
        }
        let _ = writeln!(std::io::stdout(), "{END_OF_PASTE}");
    }
}

#[cfg(not(unix))]
pub use other::keep_terminal;
#[cfg(not(unix))]
use other::{SIGINT, catch, exit, name, restore_terminal};

#[cfg(not(unix))]
mod other {
    pub const SIGINT: i32 = 2;

    /// Passes Ctrl-C to `on`, in a thread of its own.
    pub fn catch(mut on: impl FnMut(i32) + Send + 'static) -> Result<(), ctrlc::Error> {
        ctrlc::set_handler(move || on(SIGINT))
    }

    pub fn exit(signal: i32) -> ! {
        std::process::exit(128 + signal)
    }

    pub fn name(_signal: i32) -> &'static str {
        "Ctrl-C"
    }

    pub fn keep_terminal() {}

    pub fn restore_terminal() {}
}
