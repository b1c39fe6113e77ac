//! Files that are read as a whole: regular ones, of bounded size. A pipe would be waited for, a device read for ever.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("it is {found}, expected a regular file")]
    NotAFile { found: &'static str },
    #[error("it has {found_bytes} bytes, expected at most {limit_bytes}")]
    TooLarge { found_bytes: u64, limit_bytes: u64 },
}

/// Opens the regular file at `path`. Links are followed.
pub(crate) fn open(path: &Path) -> Result<File, FileError> {
    let check = |metadata: &Metadata| match not_a_file(metadata) {
        Some(found) => Err(FileError::NotAFile { found }),
        None => Ok(()),
    };
    // Checked before it is opened: opening a pipe waits until somebody writes to it.
    check(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    // Checked again: the path may have been given to something else in between.
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads the regular file at `path`, of at most `limit_bytes`.
pub(crate) fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FileError> {
    let check = |found_bytes| match found_bytes > limit_bytes {
        true => Err(FileError::TooLarge { found_bytes, limit_bytes }),
        false => Ok(()),
    };
    let file = open(path)?;
    let n_bytes = file.metadata()?.len();
    check(n_bytes)?;
    let mut bytes = Vec::with_capacity(n_bytes as usize);
    // One byte beyond the limit: a file may hold more than its size says, those of `/proc` do.
    file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

/// What a path leads to, unless that is a regular file.
fn not_a_file(metadata: &Metadata) -> Option<&'static str> {
    if metadata.is_file() {
        return None;
    }
    if metadata.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let found = metadata.file_type();
        if found.is_fifo() {
            return Some("a named pipe");
        }
        if found.is_socket() {
            return Some("a socket");
        }
        if found.is_char_device() || found.is_block_device() {
            return Some("a device");
        }
    }
    Some("something else")
}
