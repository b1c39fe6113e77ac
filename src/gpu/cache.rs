//! The driver's pipeline cache, kept in a file between runs.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::file::{self, FileError};

/// Largest cache that is read. Drivers write some MB.
const MOST_BYTES: u64 = 256 << 20;

/// A pipeline cache and the file behind it.
pub(super) struct DriverCache {
    pub cache: wgpu::PipelineCache,
    path: PathBuf,
}

impl DriverCache {
    /// Loads the file, if there is one. `None` if the backend has no pipeline cache.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, dir: &Path) -> Option<Self> {
        let path = dir.join(wgpu::util::pipeline_cache_key(info)?);
        let data = match file::read(&path, MOST_BYTES) {
            Ok(data) => Some(data),
            Err(FileError::Io(error)) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                log::warn!("`{}` is not used, kernels are compiled: {error}", path.display());
                None
            }
        };
        // SAFETY: `save` wrote the file from `get_data`. wgpu compares its header with the driver, and `fallback`
        // starts with an empty cache on a mismatch. Whoever can write to the user's cache folder can run code as the
        // user anyway.
        #[allow(unsafe_code)]
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("wginfer"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Some(DriverCache { cache, path })
    }

    /// Writes the file, completely or not at all. A failure is only a warning: it costs time at the next start.
    pub fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let unchanged = std::fs::metadata(&self.path).is_ok_and(|m| m.len() == data.len() as u64);
        if unchanged {
            return;
        }
        if let Err(error) = write_whole(&self.path, &data) {
            log::warn!("compiled kernels are not kept in `{}`: {error}", self.path.display());
        }
    }
}

/// Writes a file completely or not at all; creates its folder.
pub(super) fn write_whole(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(data).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
