//! The safetensors format: a length, a JSON header, the tensors' bytes.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Component, Path};

use safetensors::tensor::{Metadata, TensorInfo};

use super::{Entry, Order, ShardIndex, WeightsError};

/// Reads the index at `path` (`model.safetensors.index.json`).
pub(super) fn index(path: &Path, json: &[u8]) -> Result<ShardIndex, WeightsError> {
    let format = |message: String| WeightsError::Format { path: path.to_path_buf(), message };
    let json: serde_json::Value = serde_json::from_slice(json).map_err(|e| format(e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| format("no `weight_map`".into()))?;
    // A name with a path in it could reach outside the folder.
    let is_plain = |name: &str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    let shard = |(tensor, name): (&String, &serde_json::Value)| match name.as_str() {
        Some(name) if is_plain(name) => Ok((tensor.clone(), name.to_string())),
        Some(odd) => Err(format(format!("`{odd}` is not the name of a file in the folder"))),
        None => Err(format(format!("`{tensor}` has {name}, expected the name of a file"))),
    };
    Ok(ShardIndex { path: path.to_path_buf(), shards: map.iter().map(shard).collect::<Result<_, _>>()? })
}

/// Longest header in bytes: the limit of the `safetensors` library.
const MOST_HEADER: usize = 100_000_000;

/// The tensors of file number `file`, of `n_bytes`, from its header. `read` returns a range of its bytes.
pub(super) fn entries<'a>(
    path: &Path,
    read: impl Fn(Range<usize>) -> Result<Cow<'a, [u8]>, WeightsError>,
    n_bytes: usize,
    file: usize,
) -> Result<Vec<Entry>, WeightsError> {
    let format = |message: String| {
        let message = format!("{message} (the file has {n_bytes} bytes)");
        WeightsError::Format { path: path.to_path_buf(), message }
    };
    if n_bytes < 8 {
        return Err(format("no header, expected its length in 8 bytes".into()));
    }
    let length = read(0..8)?;
    let length = length.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let most = MOST_HEADER.min(n_bytes - 8);
    if length > most as u64 {
        return Err(format(format!("the header has {length} bytes, expected at most {most}")));
    }
    let data = 8 + length as usize;
    let header = read(8..data)?;
    // Checks that the tensors lie one after the other, and that their lengths match their shapes and types.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| format(e.to_string()))?;
    let tensors = metadata.tensors();
    let end = data + tensors.values().map(|info| info.data_offsets.1).max().unwrap_or(0);
    if end != n_bytes {
        return Err(format(format!("the tensors end at byte {end}, expected the end of the file")));
    }
    let entry = |(name, info): (String, &TensorInfo)| {
        let (start, end) = info.data_offsets;
        let dtype = format!("{:?}", info.dtype);
        Entry {
            stored_name: name.clone(),
            name,
            dtype,
            shape: info.shape.clone(),
            n_bytes: end - start,
            order: Order::Plain,
            file,
            start: data + start,
        }
    };
    Ok(tensors.into_iter().map(entry).collect())
}
