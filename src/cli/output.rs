//! Output: standard output, and the files that commands write.
//!
//! A file is checked before the work begins ([`plan`]): it must not be one that the command reads. It is written beside
//! its place, as `NAME.partial`, and renamed when it is whole, so that what stood there before stays until then. Of a
//! symbolic link, the target is replaced. Devices, pipes and open descriptors (`/dev/null`, `/dev/stdout`, `>(cmd)`) are
//! written as they are.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::args::ModelArg;
use super::failure::{Failure, WriteError};
use super::interrupt::{self, Hold};
use super::terminal::{Stdout, stdout};

// --- standard output ---

/// Whether the last line on standard output has no end yet, though it was flushed.
static IS_MID_LINE: AtomicBool = AtomicBool::new(false);

/// Standard output. From the first write to a flush, a signal waits: what is on it is whole at each flush.
pub struct Out {
    inner: Stdout,
    last: u8,
    hold: Option<Hold>,
}

impl Out {
    pub fn new() -> Out {
        Out { inner: stdout(), last: b'\n', hold: None }
    }

    /// Flushes it at the end of the command.
    pub fn finish(mut self) -> io::Result<()> {
        let hold = self.hold.take().unwrap_or_else(interrupt::hold);
        let flushed = self.inner.flush();
        interrupt::over(hold);
        flushed
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hold.get_or_insert_with(interrupt::hold);
        let n = self.inner.write(bytes)?;
        if n > 0 {
            self.last = bytes[n - 1];
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.inner.flush();
        IS_MID_LINE.store(self.last != b'\n', Ordering::SeqCst);
        self.hold = None;
        flushed
    }
}

/// Ends the line on standard output, for a program that ends in the middle of a text.
pub fn end_line() {
    if IS_MID_LINE.swap(false, Ordering::SeqCst) {
        // Nobody reads it if it fails.
        let _ = writeln!(io::stdout());
    }
}

// --- plans ---

/// The files that a command reads.
#[derive(Default)]
pub struct Inputs {
    /// With how they are called in messages.
    files: Vec<(String, Identity)>,
}

impl Inputs {
    /// Adds a file, if there is one; `-` is standard input.
    pub fn file(mut self, path: Option<&Path>) -> Inputs {
        let identity = match path {
            None => None,
            Some(path) if path == "-" => Identity::of_stdin(),
            Some(path) => Identity::of(path),
        };
        if let (Some(path), Some(identity)) = (path, identity) {
            let is_stdin = path == "-";
            let name =
                if is_stdin { "standard input".into() } else { format!("the input `{}`", path.display()) };
            self.files.push((name, identity));
        }
        self
    }

    /// Adds several files.
    pub fn files<'a>(self, paths: impl IntoIterator<Item = &'a PathBuf>) -> Inputs {
        paths.into_iter().fold(self, |inputs, path| inputs.file(Some(path)))
    }

    /// Adds the configs of shapes that are paths; others are names.
    pub fn shapes<'a>(self, shapes: impl IntoIterator<Item = &'a String>) -> Inputs {
        shapes.into_iter().map(Path::new).filter(|path| path.exists()).fold(self, |inputs, path| {
            let is_dir = path.is_dir();
            inputs.file(Some(&if is_dir { path.join("config.json") } else { path.to_path_buf() }))
        })
    }

    /// Adds the files of a model. Others may lie in its folder, too.
    pub fn model(mut self, model: &ModelArg) -> Inputs {
        let Some(dir) = model.model.as_deref().map(Path::new).filter(|dir| dir.is_dir()) else { return self };
        let children = |dir: &Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        // Pooling and dense layers of an embedder have folders of their own.
        let (dirs, files): (Vec<_>, Vec<_>) = children(dir).into_iter().partition(|path| path.is_dir());
        let files = files.into_iter().chain(dirs.iter().flat_map(|dir| children(dir)));
        for path in files.filter(|path| is_of_model(path)) {
            if let Some(identity) = Identity::of(&path) {
                self.files.push((format!("`{}` of the model", path.display()), identity));
            }
        }
        self
    }

    fn find(&self, identity: &Identity) -> Option<&str> {
        self.files.iter().find(|(_, known)| known == identity).map(|(name, _)| name.as_str())
    }
}

/// Whether a file in a model's folder belongs to the model, by its name.
fn is_of_model(path: &Path) -> bool {
    const EXTENSIONS: [&str; 9] = ["safetensors", "gguf", "bin", "pt", "pth", "onnx", "h5", "model", "jinja"];
    const TEXTS: [&str; 9] =
        ["config", "token", "vocab", "merges", "modules", "template", "index", "normalizer", "preprocessor"];
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().to_lowercase();
    let (stem, extension) = (part(path.file_stem()), part(path.extension()));
    EXTENSIONS.contains(&&extension[..])
        || (["json", "txt"].contains(&&extension[..]) && TEXTS.iter().any(|text| stem.contains(text)))
}

/// Checks the files that a command will write, before it does any work. Existing ones are not touched.
///
/// # Errors
/// [`Failure::Usage`] for a file that is an input, or another output; [`Failure::Failed`] for one that cannot be
/// written.
pub fn plan<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
    inputs: &Inputs,
) -> Result<Vec<Target>, Failure> {
    let refused =
        |message: String| Err(Failure::usage(message).with_hint("choose another name for the output"));
    let mut targets: Vec<Target> = Vec::new();
    let mut known: Vec<(String, Identity)> = Vec::new();
    for path in paths {
        let target = Target::new(path)?;
        for (name, identity) in target.identities() {
            if let Some(input) = inputs.find(&identity) {
                return refused(format!("the output {name} is the same file as {input}"));
            }
            if let Some((other, _)) = known.iter().find(|(_, known)| *known == identity) {
                return refused(format!("two outputs are the same file: {other} and {name}"));
            }
            known.push((name, identity));
        }
        targets.push(target);
    }
    targets.iter().try_for_each(Target::check)?;
    Ok(targets)
}

/// A file that a command will write.
pub struct Target {
    path: PathBuf,
    place: Place,
}

enum Place {
    /// A regular file, or none yet: the end of all links.
    File(PathBuf),
    /// A device, a pipe or an open descriptor.
    Stream,
    Stdout,
}

/// Most links from one to the next, as in Linux.
const MAX_LINKS: usize = 40;

impl Target {
    fn new(path: &Path) -> Result<Target, Failure> {
        let place = Place::of(path).map_err(|e| cannot_write(path, &e))?;
        Ok(Target { path: path.to_path_buf(), place })
    }

    /// As the user called it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that it will write to, with how they are called in messages.
    fn identities(&self) -> Vec<(String, Identity)> {
        let of = |name: String, path: &Path| Some((name, Identity::of(path)?));
        let name = format!("`{}`", self.path.display());
        let all = match &self.place {
            Place::File(file) => {
                let partial = partial_path(file);
                let beside = format!("{name}, which is first written to `{}`,", partial.display());
                [of(name, file), of(beside, &partial)]
            }
            Place::Stream => [of(name, &self.path), None],
            Place::Stdout => [Identity::of_stdout().map(|identity| (name, identity)), None],
        };
        all.into_iter().flatten().collect()
    }

    /// Checks that it can be written.
    fn check(&self) -> Result<(), Failure> {
        let Place::File(file) = &self.place else { return Ok(()) };
        let failed = |e: io::Error| cannot_write(&self.path, &e);
        match OpenOptions::new().write(true).open(file) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let partial = partial_path(file);
        if !self.check_partial(&partial)? {
            // Created for a moment: an error comes before the work, not after it.
            OpenOptions::new().write(true).create_new(true).open(&partial).map_err(failed)?;
            std::fs::remove_file(&partial).map_err(failed)?;
        }
        Ok(())
    }

    /// Checks that nothing but a file that an earlier run left is where the output is written first. Returns whether it
    /// is there.
    fn check_partial(&self, partial: &Path) -> Result<bool, Failure> {
        let found = match std::fs::symlink_metadata(partial) {
            Ok(found) if found.is_file() => return Ok(true),
            Ok(found) if found.is_dir() => "a folder",
            Ok(found) if found.is_symlink() => "a link",
            Ok(_) => "no regular file",
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(cannot_write(&self.path, &e)),
        };
        let reason = format!("it is first written to `{}`, which is {found}", partial.display());
        Err(cannot_write(&self.path, &reason)
            .with_hint("move it away, or choose another name for the output"))
    }

    /// Begins to write it.
    pub fn create(&self) -> Result<Output, Failure> {
        let failed = |e: io::Error| cannot_write(&self.path, &e);
        let output = |sink, partial| Output {
            name: self.path.clone(),
            sink: BufWriter::new(sink),
            n_written: 0,
            partial,
        };
        let file = match &self.place {
            Place::File(file) => file,
            Place::Stdout => return Ok(output(Sink::Stdout(stdout()), None)),
            Place::Stream => {
                // A descriptor may stand for a file, which has what others wrote before.
                let is_file = std::fs::metadata(&self.path).map_err(failed)?.is_file();
                let file = OpenOptions::new().write(true).append(is_file).open(&self.path).map_err(failed)?;
                return Ok(output(Sink::File(file), None));
            }
        };
        let path = partial_path(file);
        if self.check_partial(&path)? {
            std::fs::remove_file(&path).map_err(failed)?;
        }
        let old = std::fs::metadata(file).ok();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if old.is_some() {
            // Nobody else reads it before it has the permissions of the old file.
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        let new = options.open(&path).map_err(failed)?;
        let created = new.metadata().ok().and_then(|found| system(&path, &found));
        let (n_whole, is_torn) = (AtomicU64::new(0), AtomicBool::new(false));
        let partial = Arc::new(Partial { path, file: file.clone(), created, n_whole, is_torn });
        lock(&PARTIALS).push(partial.clone());
        let output = output(Sink::File(new), Some(partial));
        if let (Some(old), Sink::File(new)) = (old, output.sink.get_ref()) {
            inherit(new, &old).map_err(failed)?;
        }
        Ok(output)
    }

    /// Writes all of it at once, which no signal interrupts unless it takes long.
    pub fn write(&self, write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
        let _hold = interrupt::hold();
        let mut output = self.create()?;
        write(&mut output)?;
        output.commit()
    }
}

/// Begins to write to a file, or to standard output if there is none.
pub fn create(target: Option<&Target>) -> Result<Output, Failure> {
    target.map_or_else(|| Ok(Output::stdout()), Target::create)
}

impl Place {
    fn of(path: &Path) -> io::Result<Place> {
        let is_folder = || io::Error::from(ErrorKind::IsADirectory);
        let ends = |at: &Path| at.as_os_str().to_string_lossy().ends_with(std::path::is_separator);
        if path == "-" {
            return Ok(Place::Stdout);
        }
        let mut at = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            match descriptor(&at) {
                Some(1) => return Ok(Place::Stdout),
                Some(_) => return std::fs::metadata(&at).map(|_| Place::Stream),
                None => {}
            }
            match std::fs::symlink_metadata(&at) {
                Ok(found) if found.is_symlink() => at = folder(&at).join(std::fs::read_link(&at)?),
                Ok(found) if found.is_dir() => return Err(is_folder()),
                Ok(found) if found.is_file() => return Ok(Place::File(at)),
                Ok(_) => return Ok(Place::Stream),
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                Err(_) if ends(&at) || at.file_name().is_none() => return Err(is_folder()),
                Err(_) if !std::fs::metadata(folder(&at))?.is_dir() => {
                    return Err(ErrorKind::NotADirectory.into());
                }
                Err(_) => return Ok(Place::File(at)),
            }
        }
        Err(io::Error::other("too many links"))
    }
}

/// The number of an open descriptor that a path stands for, such as `/dev/fd/63`.
fn descriptor(path: &Path) -> Option<u32> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let dir = folder(path).canonicalize().ok()?;
    let dir = dir.to_str()?;
    let own = format!("/proc/{}/fd", std::process::id());
    let is_other = dir.starts_with("/proc/") && dir.ends_with("/fd");
    match dir == own || dir == "/dev/fd" {
        true => Some(number),
        // Of another process, or of a thread: never our own standard output.
        false => is_other.then_some(u32::MAX),
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn partial_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_os_string();
    name.push(".partial");
    name.into()
}

/// Gives a new file the owner, as far as the system allows it, and the permissions of the file that it replaces.
#[cfg(unix)]
fn inherit(new: &File, old: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let own = new.metadata()?;
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        let _ = fchown(new, Some(old.uid()), Some(old.gid()));
    }
    new.set_permissions(old.permissions())
}

#[cfg(not(unix))]
fn inherit(_new: &File, _old: &Metadata) -> io::Result<()> {
    Ok(())
}

// --- the same file ---

/// Which file a path leads to, whatever it is called. That of a file which does not exist is its folder and name.
#[derive(PartialEq, Eq)]
struct Identity {
    file: System,
    name: Option<OsString>,
}

/// Device and inode.
#[cfg(unix)]
type System = (u64, u64);
/// The path without links.
#[cfg(not(unix))]
type System = PathBuf;

impl Identity {
    /// `None` if neither the file nor its folder exists, and for devices such as `/dev/null`, which may be both input and
    /// output.
    fn of(path: &Path) -> Option<Identity> {
        match std::fs::metadata(path) {
            Ok(found) => Some(Identity { file: system(path, &found)?, name: None }),
            Err(_) => {
                let dir = folder(path);
                let found = std::fs::metadata(dir).ok()?;
                Some(Identity { file: system(dir, &found)?, name: Some(path.file_name()?.to_os_string()) })
            }
        }
    }

    #[cfg(unix)]
    fn of_stdin() -> Option<Identity> {
        Identity::of_open(std::os::fd::AsFd::as_fd(&io::stdin()))
    }

    #[cfg(unix)]
    fn of_stdout() -> Option<Identity> {
        Identity::of_open(std::os::fd::AsFd::as_fd(&io::stdout()))
    }

    #[cfg(unix)]
    fn of_open(descriptor: std::os::fd::BorrowedFd<'_>) -> Option<Identity> {
        let found = File::from(descriptor.try_clone_to_owned().ok()?).metadata().ok()?;
        Some(Identity { file: system(Path::new(""), &found)?, name: None })
    }

    #[cfg(not(unix))]
    fn of_stdin() -> Option<Identity> {
        None
    }

    #[cfg(not(unix))]
    fn of_stdout() -> Option<Identity> {
        None
    }
}

#[cfg(unix)]
fn system(_path: &Path, found: &Metadata) -> Option<System> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    (!found.file_type().is_char_device()).then(|| (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn system(path: &Path, _found: &Metadata) -> Option<System> {
    path.canonicalize().ok()
}

// --- writing ---

/// Bytes written to all outputs.
static N_WRITTEN: AtomicU64 = AtomicU64::new(0);

/// The bytes written so far.
pub fn n_written() -> u64 {
    N_WRITTEN.load(Ordering::SeqCst)
}

/// The files that are being written.
static PARTIALS: Mutex<Vec<Arc<Partial>>> = Mutex::new(Vec::new());

/// A file that is written beside its place.
struct Partial {
    path: PathBuf,
    /// The place.
    file: PathBuf,
    created: Option<System>,
    /// Bytes up to the last flush, and whether it was written to since then.
    n_whole: AtomicU64,
    is_torn: AtomicBool,
}

impl Partial {
    /// Takes it from the list, and cuts off what was written since the last flush. Returns the path, unless nothing is
    /// left and the file is removed.
    fn leave(&self) -> Option<PathBuf> {
        self.forget();
        if !self.is_ours() {
            return None;
        }
        let n_whole = self.n_whole.load(Ordering::SeqCst);
        if self.is_torn.load(Ordering::SeqCst) && n_whole > 0 {
            let file = OpenOptions::new().write(true).open(&self.path);
            file.and_then(|file| file.set_len(n_whole)).ok()?;
        }
        if n_whole == 0 {
            // If it cannot be removed, the next run replaces it.
            let _ = std::fs::remove_file(&self.path);
            return None;
        }
        Some(self.path.clone())
    }

    /// Takes it from the list.
    fn forget(&self) {
        lock(&PARTIALS).retain(|other| !std::ptr::eq(&**other, self));
    }

    /// Whether it is still the file that was created: another run with the same output may have begun since.
    fn is_ours(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| system(&self.path, &found) == self.created)
    }
}

/// Cuts off what is not whole in the files that are being written. Returns one that is left, if there is any.
pub fn leave_all() -> Option<PathBuf> {
    let partials = std::mem::take(&mut *lock(&PARTIALS));
    partials.iter().filter_map(|partial| partial.leave()).fold(None, |_, path| Some(path))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An output that is being written. Whole at each flush; dropped before [`Output::commit`], it stays beside its place.
pub struct Output {
    name: PathBuf,
    sink: BufWriter<Sink>,
    n_written: u64,
    partial: Option<Arc<Partial>>,
}

enum Sink {
    File(File),
    Stdout(Stdout),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match self {
            Sink::File(file) => file.write(bytes),
            Sink::Stdout(out) => out.write(bytes),
        }?;
        N_WRITTEN.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::File(file) => file.flush(),
            Sink::Stdout(out) => out.flush(),
        }
    }
}

impl Output {
    /// Standard output, for a command whose work a signal finishes in another thread.
    pub fn stdout() -> Output {
        let sink = BufWriter::new(Sink::Stdout(stdout()));
        Output { name: PathBuf::new(), sink, n_written: 0, partial: None }
    }

    /// Puts the whole file in its place.
    pub fn commit(mut self) -> Result<(), Failure> {
        let _hold = interrupt::hold();
        self.flush()?;
        let Some(partial) = self.partial.take() else { return Ok(()) };
        let Sink::File(file) = self.sink.get_ref() else { return Ok(()) };
        // Until then, a signal finds it beside its place, and whole.
        let synced = file.sync_all();
        partial.forget();
        if !partial.is_ours() {
            let reason = format!("`{}` was replaced by another program", partial.path.display());
            return Err(cannot_write(&self.name, &reason));
        }
        let renamed = synced.and_then(|()| std::fs::rename(&partial.path, &partial.file));
        renamed.map_err(|e| {
            let hint = format!("the whole output is in `{}`", partial.path.display());
            cannot_write(&self.name, &e).with_hint(hint)
        })
    }

    /// Leaves what is written beside its place. Returns where, if there is anything.
    pub fn leave(mut self) -> Option<PathBuf> {
        // A file that cannot be flushed is torn.
        let _ = self.flush();
        self.close()
    }

    /// Closes it without what was written since the last flush.
    fn close(&mut self) -> Option<PathBuf> {
        let closed = BufWriter::with_capacity(0, Sink::Stdout(stdout()));
        drop(std::mem::replace(&mut self.sink, closed).into_parts());
        self.partial.take()?.leave()
    }

    /// An error that names the output.
    fn named(&self, source: io::Error) -> io::Error {
        match self.name.as_os_str().is_empty() {
            true => source,
            false => io::Error::new(source.kind(), WriteError { name: self.name.clone(), source }),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(partial) = &self.partial {
            partial.is_torn.store(true, Ordering::SeqCst);
        }
        let n = self.sink.write(bytes).map_err(|e| self.named(e))?;
        self.n_written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.sink.flush();
        flushed.map_err(|e| self.named(e))?;
        if let Some(partial) = &self.partial {
            partial.n_whole.store(self.n_written, Ordering::SeqCst);
            partial.is_torn.store(false, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}

fn cannot_write(path: &Path, error: &dyn fmt::Display) -> Failure {
    Failure::failed(format!("`{}` cannot be written: {error}", path.display()))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    fn folder() -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).expect("a file")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn planned(path: &Path, inputs: &[&PathBuf]) -> Result<Target, Failure> {
        let inputs = Inputs::default().files(inputs.iter().copied());
        let mut targets = plan([&path.to_path_buf()], &inputs)?;
        Ok(targets.pop().expect("one for each path"))
    }

    #[track_caller]
    fn refused(result: Result<Target, Failure>, what: &str) {
        let Err(failure) = result else { panic!("`{what}` is not refused") };
        let (message, _) = failure.lines();
        assert!(message.contains(what), "`{what}` is not in: {message}");
    }

    fn write(target: &Target, text: &str) -> Result<(), Failure> {
        target.write(|out| Ok(out.write_all(text.as_bytes())?))
    }

    #[test]
    fn what_stood_there_stays_until_the_new_file_is_whole() {
        let dir = folder();
        let (file, partial) = (dir.path().join("a.txt"), dir.path().join("a.txt.partial"));
        for before in [None, Some("before")] {
            if let Some(before) = before {
                fs::write(&file, before).expect("it can be written");
            }
            let target = planned(&file, &[]).expect("a good name");
            assert!(!partial.exists(), "a check leaves nothing");
            let there = || file.exists().then(|| text(&file));
            let mut out = target.create().expect("it can be created");
            out.write_all(b"first\n").and_then(|()| out.flush()).expect("it can be written");
            assert_eq!((there().as_deref(), text(&partial).as_str()), (before, "first\n"));
            out.write_all(b"torn").expect("it can be written");
            drop(out);
            assert_eq!(
                (there().as_deref(), text(&partial).as_str()),
                (before, "first\n"),
                "whole at the flush"
            );
            write(&target, "whole").expect("it can be written");
            assert_eq!((text(&file).as_str(), names(dir.path())), ("whole", vec!["a.txt".to_string()]));
            fs::remove_file(&file).expect("it is there");
        }
        // Nothing is left of a file that was never whole.
        let target = planned(&file, &[]).expect("a good name");
        target.create().expect("it can be created").write_all(b"torn").expect("it can be written");
        assert!(names(dir.path()).is_empty());
        target.write(|_| Err(Failure::failed("no"))).expect_err("it fails");
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn the_target_of_a_link_is_replaced() {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("real")).expect("a folder");
        fs::write(at("real/file"), "old").expect("it can be written");
        fs::set_permissions(at("real/file"), fs::Permissions::from_mode(0o640)).expect("it can be set");
        symlink("real/file", at("one")).expect("a link");
        symlink(at("one"), at("two")).expect("a link");
        symlink("real/new", at("dangling")).expect("a link");
        symlink("real", at("dir")).expect("a link");
        for (name, real, said) in [
            ("one", "real/file", "a"),
            ("two", "real/file", "b"),
            ("dangling", "real/new", "c"),
            ("dir/file", "real/file", "d"),
        ] {
            write(&planned(&at(name), &[]).expect("a good name"), said).expect("it can be written");
            assert_eq!(text(&at(real)), said, "{name}");
            assert!(name == "dir/file" || at(name).is_symlink(), "{name} is no link any more");
        }
        assert_eq!(fs::metadata(at("real/file")).expect("a file").mode() & 0o7777, 0o640);
        assert_eq!(names(&at("real")), ["file", "new"]);
        symlink("loop", at("loop")).expect("a link");
        refused(planned(&at("loop"), &[]), "loop` cannot be written");
        symlink("nowhere/file", at("lost")).expect("a link");
        refused(planned(&at("lost"), &[]), "lost` cannot be written");
    }

    #[test]
    fn an_input_is_no_output() {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("in"), "input").expect("it can be written");
        fs::write(at("out.partial"), "input").expect("it can be written");
        symlink("in", at("soft")).expect("a link");
        fs::hard_link(at("in"), at("hard")).expect("a link");
        symlink("hard", at("soft-to-hard")).expect("a link");
        symlink(".", at("here")).expect("a link");
        let same = "is the same file as the input";
        for name in ["in", "soft", "hard", "soft-to-hard", "here/in", "./here/./in"] {
            refused(planned(&at(name), &[&at("in")]), same);
            refused(planned(&at("in"), &[&at(name)]), same);
        }
        // It is written to its `.partial` first.
        refused(planned(&at("out"), &[&at("out.partial")]), same);
        // An input that does not exist is none that could be lost, but its name is its own.
        refused(planned(&at("missing"), &[&at("missing")]), same);
        assert!(planned(&at("other"), &[&at("in"), &at("missing")]).is_ok());
        let devices = PathBuf::from("/dev/null");
        assert!(planned(&devices, &[&devices]).is_ok(), "a device may be both");
        assert_eq!(text(&at("in")), "input");

        let two = |a: &str, b: &str| plan([&at(a), &at(b)], &Inputs::default());
        assert_eq!(two("a", "b").map(|all| all.len()).ok(), Some(2));
        for (a, b) in [("a", "a"), ("a", "here/a"), ("soft", "hard"), ("a", "a.partial"), ("a.partial", "a")]
        {
            let Err(failure) = two(a, b) else { panic!("{a} and {b} are two names of one file") };
            assert!(failure.lines().0.contains("two outputs are the same file"), "{failure:?}");
        }
    }

    #[test]
    fn only_the_files_of_a_model_are_its_own() {
        let dir = folder();
        let own = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "vocab.txt",
            "chat_template.jinja",
        ];
        let other = ["talk.json", "talk.txt", "talk.flac", "README.md"];
        fs::create_dir(dir.path().join("1_Pooling")).expect("a folder");
        let own = own.into_iter().chain(["1_Pooling/config.json"]);
        let model = ModelArg { model: Some(dir.path().as_os_str().to_os_string()) };
        for (name, is_own) in own.map(|name| (name, true)).chain(other.map(|name| (name, false))) {
            let path = dir.path().join(name);
            fs::write(&path, "").expect("it can be written");
            assert_eq!(plan([&path], &Inputs::default().model(&model)).is_err(), is_own, "{name}");
        }
    }

    #[test]
    fn places_that_cannot_be_written() {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").expect("it can be written");
        for name in ["not/there", "", "file/x", "new/", ".."] {
            refused(planned(&at(name), &[]), "cannot be written");
        }
        // What is where it is written first: a file that an earlier run left is replaced, and a hard link of that stays.
        fs::write(at("a.partial"), "left").expect("it can be written");
        fs::hard_link(at("a.partial"), at("kept")).expect("a link");
        write(&planned(&at("a"), &[]).expect("a good name"), "new").expect("it can be written");
        assert_eq!((text(&at("a")), text(&at("kept"))), ("new".to_string(), "left".to_string()));
        assert!(!at("a.partial").exists());
        fs::create_dir(at("b.partial")).expect("a folder");
        refused(planned(&at("b"), &[]), "b.partial`, which is a folder");
        symlink("file", at("c.partial")).expect("a link");
        refused(planned(&at("c"), &[]), "c.partial`, which is a link");
        // Two runs with one output: the later one keeps it.
        let target = planned(&at("d"), &[]).expect("a good name");
        let mut first = target.create().expect("it can be created");
        first.write_all(b"first").expect("it can be written");
        let mut second = target.create().expect("it can be created");
        second.write_all(b"second").expect("it can be written");
        let (message, _) = first.commit().expect_err("it is gone").lines();
        assert!(message.contains("was replaced by another program"), "{message}");
        second.commit().expect("it can be renamed");
        assert_eq!(text(&at("d")), "second");
    }

    #[test]
    fn devices_are_written_as_they_are() {
        let dir = folder();
        for device in ["/dev/null", "/dev/full"] {
            let link = dir.path().join("link");
            symlink(device, &link).expect("a link");
            for path in [PathBuf::from(device), link.clone()] {
                let target = planned(&path, &[]).expect("a good name");
                let result = write(&target, "text").map_err(|failure| failure.lines().0);
                match device {
                    "/dev/null" => assert_eq!(result, Ok(())),
                    _ => {
                        let message = result.expect_err("it is full");
                        assert!(
                            message.starts_with(&format!("`{}` cannot be written", path.display())),
                            "{message}"
                        );
                    }
                }
            }
            fs::remove_file(&link).expect("it is there");
        }
        assert!(names(dir.path()).is_empty());
    }

    /// A descriptor may stand for a file: what is in it stays.
    #[test]
    #[cfg(target_os = "linux")]
    fn descriptors_are_written_as_they_are() {
        use std::os::fd::AsRawFd;
        let dir = folder();
        let path = dir.path().join("file");
        fs::write(&path, "before, ").expect("it can be written");
        let open = OpenOptions::new().append(true).open(&path).expect("it can be opened");
        for folder in ["/dev/fd", "/proc/self/fd"] {
            let descriptor = PathBuf::from(format!("{folder}/{}", open.as_raw_fd()));
            write(&planned(&descriptor, &[]).expect("a good name"), "after, ").expect("it can be written");
            refused(planned(&descriptor, &[&path]), "is the same file as the input");
        }
        assert_eq!(text(&path), "before, after, after, ");
        let is_stdout = |name: &str| matches!(Place::of(Path::new(name)), Ok(Place::Stdout));
        assert!(is_stdout("/dev/stdout") && is_stdout("/dev/fd/1") && is_stdout("/proc/self/fd/1"));
        assert!(!is_stdout("/dev/stderr") && !is_stdout("/dev/null"));
        refused(planned(Path::new("/dev/fd/987"), &[]), "cannot be written");
    }

    #[test]
    fn pipes_are_written_as_they_are() {
        let dir = folder();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("`mkfifo` runs");
        assert!(made.success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || text(&pipe)
        });
        let target = planned(&pipe, &[]).expect("a good name");
        write(&target, "through a pipe").expect("it can be written");
        assert_eq!(reader.join().expect("it is read"), "through a pipe");
        refused(planned(&pipe, &[&pipe]), "is the same file as the input");
        assert_eq!(names(dir.path()), ["pipe"]);
    }
}
