//! One file from the hub into the cache: resumed where an earlier attempt ended, and checked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::cache::{Repo, create_parent};
use super::client::{Client, Trouble, What, encode};
use super::hash::Hasher;
use super::{HubError, RepoFile};

/// The part of a file that is here.
struct Partial<'a> {
    expected: &'a RepoFile,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    n_bytes: u64,
}

/// Bytes that are read and written at once.
const PIECE: usize = 256 << 10;

impl<'a> Partial<'a> {
    /// Opens what an earlier attempt left, if it left something.
    fn open(path: PathBuf, expected: &'a RepoFile) -> Result<Partial<'a>, HubError> {
        create_parent(&path)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| HubError::Io { path: path.clone(), source })?;
        let mut partial = Partial {
            expected,
            path,
            file,
            hasher: Hasher::new(expected.hash, expected.n_bytes),
            n_bytes: 0,
        };
        partial.take_up()?;
        Ok(partial)
    }

    /// Hashes what is there.
    fn take_up(&mut self) -> Result<(), HubError> {
        if self.file.metadata().map_err(|source| self.io(source))?.len() > self.expected.n_bytes {
            return self.restart();
        }
        let mut piece = vec![0; PIECE];
        loop {
            match self.file.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hasher.update(&piece[..n]);
                    self.n_bytes += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        if let Err(source) = self.file.write_all(bytes) {
            // Some of it may have been written: the next attempt counts on whole pieces.
            let _ = self.file.set_len(self.n_bytes);
            return Err(self.io(source));
        }
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is there.
    fn restart(&mut self) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| self.io(source))?;
        self.hasher = Hasher::new(self.expected.hash, self.expected.n_bytes);
        self.n_bytes = 0;
        Ok(())
    }

    fn io(&self, source: std::io::Error) -> HubError {
        HubError::Io { path: self.path.clone(), source }
    }
}

/// Brings a file into the snapshot of `commit`. `on_bytes` gets the number of its bytes that are here, which falls when
/// it begins anew.
pub(super) fn fetch(
    client: &Client,
    repo: &Repo,
    commit: &str,
    file: &RepoFile,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    let blob = repo.blob(file.hash);
    let is_whole = |path: &Path| fs::metadata(path).is_ok_and(|found| found.len() == file.n_bytes);
    if !repo.has(commit, file) && !is_whole(&blob) {
        let _lock = lock(&repo.lock(file.hash), &file.path)?;
        // Another process may have brought it in the meantime.
        if !is_whole(&blob) && !repo.has(commit, file) {
            let path = blob.with_extension("incomplete");
            let mut partial = Partial::open(path.clone(), file)?;
            receive(client, repo.id(), commit, &mut partial, on_bytes)?;
            partial.file.sync_all().map_err(|source| partial.io(source))?;
            drop(partial);
            fs::rename(&path, &blob).map_err(|source| HubError::Io { path: blob, source })?;
        }
    }
    on_bytes(file.n_bytes);
    repo.link(commit, file)
}

/// Receives what is missing of a file, until its hash is right.
fn receive(
    client: &Client,
    id: &str,
    commit: &str,
    partial: &mut Partial<'_>,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    let expected = partial.expected;
    let what = What { id, file: Some(&expected.path) };
    let url = client.url(&format!("{id}/resolve/{commit}/{}", encode(&expected.path)));
    // What an earlier run left may be anything: its own content is tried once more.
    let mut n_left = if partial.n_bytes > 0 { 2 } else { 1 };
    loop {
        client.persist(what, |has_progress| {
            if partial.n_bytes == expected.n_bytes {
                return Ok(());
            }
            let before = partial.n_bytes;
            let received = receive_once(client, what, &url, partial, on_bytes);
            *has_progress = partial.n_bytes > before;
            received
        })?;
        let found = partial.hasher.clone().finish();
        if found == expected.hash {
            return Ok(());
        }
        partial.restart()?;
        if n_left == 0 {
            let _ = fs::remove_file(&partial.path);
            let (expected, file) = (expected.hash.to_string(), expected.path.clone());
            return Err(HubError::Corrupt { file, expected, found: found.to_string() });
        }
        n_left -= 1;
        log::warn!("`{}` is damaged: downloading it again", expected.path);
    }
}

/// One request for the rest of a file.
fn receive_once(
    client: &Client,
    what: What<'_>,
    url: &str,
    partial: &mut Partial<'_>,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), Trouble> {
    let total = partial.expected.n_bytes;
    let range = (partial.n_bytes > 0).then(|| format!("bytes={}-", partial.n_bytes));
    let response = client.get(what, url, range.as_deref())?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let passing = |message: String| Trouble::Passing { message, host: client.host(), wait: None };
    let n_coming = match response.status().as_u16() {
        206 => {
            let (from, of) = header("content-range").and_then(content_range).unwrap_or((u64::MAX, None));
            if from != partial.n_bytes || of.is_some_and(|of| of != total) {
                partial.restart()?;
                return Err(passing("the server sends another range than the one asked for".into()));
            }
            total - from
        }
        416 => {
            partial.restart()?;
            return Err(passing("the server does not have the range asked for".into()));
        }
        // The whole file, whether a part of it was asked for or not.
        _ => {
            if partial.n_bytes > 0 {
                partial.restart()?;
            }
            total
        }
    };
    let length: Option<u64> = header("content-length").and_then(|value| value.trim().parse().ok());
    if let Some(length) = length.filter(|length| *length != n_coming) {
        return Err(passing(format!("the server sends {length} bytes, expected {n_coming}")));
    }
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut piece = vec![0; PIECE];
    loop {
        let n = match body.read(&mut piece) {
            Ok(0) if partial.n_bytes == total => return Ok(()),
            Ok(0) => return Err(passing(format!("the connection ended at byte {}", partial.n_bytes))),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(passing(format!("{error}, at byte {}", partial.n_bytes))),
        };
        if partial.n_bytes + n as u64 > total {
            partial.restart()?;
            return Err(passing(format!("the server sends more than {total} bytes")));
        }
        partial.append(&piece[..n])?;
        on_bytes(partial.n_bytes);
    }
}

/// The first byte and the size in `bytes FIRST-LAST/SIZE` (RFC 9110, section 14.4).
pub(super) fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, size.trim().parse().ok()))
}

/// Waits until no other process downloads the same content. Python's library has the same locks.
fn lock(path: &Path, what: &str) -> Result<Option<File>, HubError> {
    create_parent(path)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|source| HubError::Io { path: path.into(), source })?;
    let locked = match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            log::info!("`{what}`: another process is downloading it: waiting");
            file.lock()
        }
        Err(TryLockError::Error(error)) => Err(error),
        Ok(()) => Ok(()),
    };
    match locked {
        Ok(()) => Ok(Some(file)),
        // Some file systems of networks have none. The hash is checked in any case.
        Err(error) => {
            log::warn!("`{}` cannot be locked: {error}", path.display());
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(content_range("bytes 10-19/20"), Some((10, Some(20))));
        assert_eq!(content_range("bytes 10-19/*"), Some((10, None)));
        for wrong in ["bytes */20", "10-19/20", "bytes -19/20", "bytes 10"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
