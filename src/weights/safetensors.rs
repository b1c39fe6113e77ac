//! The safetensors format: a length, a JSON header, the tensors' bytes.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::{Entry, WeightsError};

/// The names of the shards that the index at `path` (`model.safetensors.index.json`) lists.
pub(super) fn shards(path: &Path, json: &[u8]) -> Result<BTreeSet<String>, WeightsError> {
    let format = |message: String| WeightsError::Format { path: path.to_path_buf(), message };
    let json: serde_json::Value = serde_json::from_slice(json).map_err(|e| format(e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| format("no `weight_map`".into()))?;
    let names: BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    // A name with a path in it could reach outside the folder.
    let is_plain = |name: &str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    if let Some(odd) = names.iter().find(|name| !is_plain(name)) {
        return Err(format(format!("`{odd}` is not the name of a file in the folder")));
    }
    Ok(names.into_iter().map(str::to_string).collect())
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
