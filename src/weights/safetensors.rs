//! The safetensors format: a length, a JSON header, the tensors' bytes.

use std::path::{Component, Path};

use super::{Entry, ShardIndex, WeightsError};

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

/// The tensors of one file. The `safetensors` library compares the header with the file's length.
pub(super) fn entries(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<Entry>, WeightsError> {
    let format = |message: String| WeightsError::Format { path: path.to_path_buf(), message };
    let (header, metadata) = safetensors::SafeTensors::read_metadata(bytes)
        .map_err(|e| format(format!("{e} (the file has {} bytes)", bytes.len())))?;
    let data = header + 8;
    metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            if start > end || data + end > bytes.len() {
                return Err(format(format!(
                    "tensor `{name}` ends at byte {} of {}",
                    data + end,
                    bytes.len()
                )));
            }
            Ok(Entry {
                name,
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
                n_bytes: end - start,
                file,
                start: data + start,
            })
        })
        .collect()
}
