//! Which files of a repository make a model: those of one container, and of one type.

use std::collections::BTreeSet;

use super::{HubError, HubName, RepoFile};

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A folder in Hugging Face layout. If there is an index, the files of weights are those that it names.
    Folder { files: Vec<RepoFile>, index: Option<RepoFile> },
    /// A GGUF file, or all its parts, the first of them first.
    Gguf(Vec<RepoFile>),
}

pub(super) const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// What is read of a folder beside the weights, where it is there.
const SETTINGS: [&str; 11] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    // Sentence embeddings.
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// GGUF files that are no models of their own: projectors for images, data for quantising, draft models. The list is
/// that of llama.cpp (common/download.cpp, `find_best_model`).
const SIDECARS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// Types to take where a name gives none, in this order, as llama.cpp does.
const DEFAULT_TAGS: [&str; 2] = ["Q4_K_M", "Q8_0"];

/// Chooses the model that `name` means.
pub(super) fn choose(name: &HubName, files: &[RepoFile]) -> Result<Choice, HubError> {
    let models = gguf_models(files);
    if let Some(pick) = &name.pick {
        let found =
            models.iter().copied().find(|file| is_file(&file.path, pick)).or_else(|| tagged(&models, pick));
        return match found {
            Some(first) => parts(name, first, files),
            None => Err(HubError::NoTag {
                id: name.id(),
                pick: pick.clone(),
                found: models.iter().map(|file| file.path.clone()).collect(),
                has_folder: files.iter().any(|file| file.path.ends_with(".safetensors")),
            }),
        };
    }
    let named = |wanted: &str| files.iter().find(|file| file.path == wanted);
    let index = named(INDEX).filter(|_| named(WEIGHTS).is_none());
    if named(CONFIG).is_some() && (named(WEIGHTS).is_some() || index.is_some()) {
        let is_part = |path: &str| path == WEIGHTS || SETTINGS.contains(&path) || is_of_module(path);
        let files = files.iter().filter(|file| is_part(&file.path)).cloned().collect();
        return Ok(Choice::Folder { files, index: index.cloned() });
    }
    let best = DEFAULT_TAGS.iter().find_map(|tag| tagged(&models, tag)).or(models.first().copied());
    match best {
        Some(first) => parts(name, first, files),
        None => Err(HubError::NoModel {
            id: name.id(),
            found: files.iter().map(|file| file.path.clone()).collect(),
        }),
    }
}

/// The GGUF files that are models, each once: of those in parts the first part.
pub(super) fn gguf_models(files: &[RepoFile]) -> Vec<&RepoFile> {
    let is_model = |path: &str| {
        let Some(stem) = stem(path) else { return false };
        let lower = path.to_ascii_lowercase();
        !SIDECARS.iter().any(|word| lower.contains(word)) && shard(stem).is_none_or(|(_, no, _)| no == 1)
    };
    files.iter().filter(|file| is_model(&file.path)).collect()
}

/// The files of weights that an index names.
pub(super) fn shards(
    name: &HubName,
    index_json: &[u8],
    files: &[RepoFile],
) -> Result<Vec<RepoFile>, HubError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let listing = |message: String| HubError::Listing { id: name.id(), message };
    let index: Index =
        serde_json::from_slice(index_json).map_err(|error| listing(format!("`{INDEX}`: {error}")))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(listing(format!("`{INDEX}` names no file")));
    }
    let find = |shard: &String| {
        let found = files.iter().find(|file| file.path == *shard).cloned();
        found.ok_or_else(|| listing(format!("`{INDEX}` names `{shard}`, which is not there")))
    };
    shards.iter().map(find).collect()
}

/// Whether `pick` is the name of a file, with its folders or without, in any case.
fn is_file(path: &str, pick: &str) -> bool {
    let (path, pick) = (&*path.to_ascii_lowercase(), &*pick.to_ascii_lowercase());
    path == pick
        || (stem(pick).is_some() && path.ends_with(pick) && path[..path.len() - pick.len()].ends_with('/'))
}

/// The first model whose path has the tag, followed by a dot or a hyphen, in any case: llama.cpp's rule. One where it
/// is a word of its own comes before one where it ends a longer word, as `Q4_NL` does in `IQ4_NL`.
fn tagged<'a>(models: &[&'a RepoFile], tag: &str) -> Option<&'a RepoFile> {
    let tag = tag.to_ascii_lowercase();
    let has = |path: &str, alone: bool| {
        let path = path.to_ascii_lowercase();
        path.match_indices(&tag).any(|(at, _)| {
            let before = path[..at].chars().next_back();
            let is_alone = before.is_none_or(|c| matches!(c, '.' | '-' | '_' | '/'));
            path[at + tag.len()..].starts_with(['.', '-']) && (is_alone || !alone)
        })
    };
    [true, false].iter().find_map(|alone| models.iter().find(|file| has(&file.path, *alone)).copied())
}

/// The model that begins with `first`: all its parts.
fn parts(name: &HubName, first: &RepoFile, files: &[RepoFile]) -> Result<Choice, HubError> {
    let Some((prefix, _, n)) = stem(&first.path).and_then(shard) else {
        return Ok(Choice::Gguf(vec![first.clone()]));
    };
    let part = |no: usize| {
        let path = format!("{prefix}-{no:05}-of-{n:05}.gguf");
        let found = files.iter().find(|file| file.path == path).cloned();
        found.ok_or_else(|| HubError::Listing {
            id: name.id(),
            message: format!("`{path}`, one of the {n} parts of the model, is not there"),
        })
    };
    Ok(Choice::Gguf((1..=n).map(part).collect::<Result<_, _>>()?))
}

/// The path of a GGUF file without its extension.
fn stem(path: &str) -> Option<&str> {
    let (stem, extension) = path.rsplit_once('.')?;
    extension.eq_ignore_ascii_case("gguf").then_some(stem)
}

/// What comes before the numbers of a part, its number from 1, and how many there are.
fn shard(stem: &str) -> Option<(&str, usize, usize)> {
    let (rest, n) = stem.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    let (no, n) = (number(no)?, number(n)?);
    (1..=n).contains(&no).then_some((prefix, no, n))
}

/// Whether a path is that of a module after the pooling: `1_Pooling/config.json`, `2_Dense/model.safetensors`.
fn is_of_module(path: &str) -> bool {
    let Some((folder, file)) = path.split_once('/') else { return false };
    let is_numbered = folder.split_once('_').is_some_and(|(no, _)| no.parse::<u8>().is_ok());
    is_numbered && (file == CONFIG || file == WEIGHTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hash;

    fn files(paths: &[&str]) -> Vec<RepoFile> {
        let file = |path: &&str| RepoFile { path: path.to_string(), n_bytes: 1, hash: Hash::Git([0; 20]) };
        paths.iter().map(file).collect()
    }

    fn chosen(name: &str, paths: &[&str]) -> Result<Vec<String>, HubError> {
        let name = HubName::parse(name).expect("a name");
        let files = match choose(&name, &files(paths))? {
            Choice::Folder { files, index } => files.into_iter().chain(index).collect(),
            Choice::Gguf(parts) => parts,
        };
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    const QUANTS: [&str; 9] = [
        ".gitattributes",
        "README.md",
        "config.json",
        "m-IQ4_NL.gguf",
        "m-Q4_K_M.gguf",
        "m-Q4_K_S.gguf",
        "m-Q8_0.gguf",
        "m-UD-Q4_K_XL.gguf",
        "mmproj-m-F16.gguf",
    ];

    #[test]
    fn gguf_files_by_tag() {
        let cases = [
            ("a/b", "m-Q4_K_M.gguf"),
            ("a/b:Q8_0", "m-Q8_0.gguf"),
            ("a/b:q4_k_s", "m-Q4_K_S.gguf"),
            ("a/b:IQ4_NL", "m-IQ4_NL.gguf"),
            ("a/b:Q4_NL", "m-IQ4_NL.gguf"),
            ("a/b:Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
            ("a/b:UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
            ("a/b:m-Q8_0.gguf", "m-Q8_0.gguf"),
            ("a/b:M-q8_0.GGUF", "m-Q8_0.gguf"),
        ];
        for (name, expected) in cases {
            assert_eq!(chosen(name, &QUANTS).expect("it is there"), [expected], "{name}");
        }
        // A part of a tag is none, a dot is no wildcard, and a projector is no model.
        for name in
            ["a/b:Q4_K", "a/b:Q4.K_M", "a/b:F16", "a/b:Q5_0", "a/b:Q8_0.gguf", "a/b:mmproj-m-F16.gguf"]
        {
            let Err(HubError::NoTag { found, .. }) = chosen(name, &QUANTS) else { panic!("{name} is there") };
            assert_eq!(found.len(), 5, "{found:?}");
        }
    }

    #[test]
    fn gguf_files_without_a_tag() {
        assert_eq!(chosen("a/b", &["m-Q2_K.gguf", "m-q8_0.gguf"]).expect("a model"), ["m-q8_0.gguf"]);
        assert_eq!(chosen("a/b", &["imatrix.gguf", "x.gguf", "y.gguf"]).expect("a model"), ["x.gguf"]);
        let folders = ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "m-Q4_0.gguf"];
        assert_eq!(chosen("a/b", &folders).expect("a model"), folders[..2]);
        assert_eq!(chosen("a/b:BF16", &folders).expect("a model"), folders[..2]);
        assert_eq!(chosen("a/b:m-Q4_0.gguf", &folders).expect("a model"), folders[2..]);
        let whole = "a/b:m-BF16-00001-of-00002.gguf";
        assert_eq!(chosen(whole, &folders).expect("a model"), folders[..2]);
        assert!(matches!(chosen("a/b:BF16", &folders[..1]), Err(HubError::Listing { .. })));
    }

    #[test]
    fn folders_have_each_tensor_once() {
        let both = [
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "config.json",
            "consolidated.safetensors",
            "m-Q4_K_M.gguf",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors",
            "model.safetensors.index.json",
            "onnx/config.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let expected = [both[0], both[1], both[3], both[8], both[13]];
        assert_eq!(chosen("a/b", &both).expect("a model"), expected);
        let sharded: Vec<&str> = both.iter().copied().filter(|path| *path != WEIGHTS).collect();
        assert_eq!(
            chosen("a/b", &sharded).expect("a model"),
            [both[0], both[1], both[3], both[13], "model.safetensors.index.json"]
        );
        let name = HubName::parse("a/b").expect("a name");
        let index = br#"{"metadata": {}, "weight_map": {"x": "model-00002-of-00002.safetensors"}}"#;
        let found = shards(&name, index, &files(&sharded)).expect("the shard is there");
        assert_eq!(found.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), [both[7]]);
        for wrong in [&br#"{"weight_map": {"x": "../secret"}}"#[..], br#"{"weight_map": {}}"#, b"{}", b"x"] {
            assert!(matches!(shards(&name, wrong, &files(&sharded)), Err(HubError::Listing { .. })));
        }
        for none in [&["pytorch_model.bin", "config.json"][..], &["model.safetensors"], &[]] {
            assert!(matches!(chosen("a/b", none), Err(HubError::NoModel { .. })), "{none:?}");
        }
    }
}
