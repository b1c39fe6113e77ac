//! The folder of downloaded files, which Hugging Face's Python library and llama.cpp share:
//!
//! ```text
//! models--owner--name/
//!   blobs/HASH                    the content of each file
//!   refs/main                     the commit that `main` was at the last download
//!   snapshots/COMMIT/PATH         links to blobs
//!   trees/COMMIT.json             the listing of the whole repository, as Python's library keeps it
//!   wginfer/COMMIT.json           the same, as we keep it: for Python's, every file of its own must be there
//! .locks/models--owner--name/HASH.lock
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{Hash, HubError, Listing, RepoFile};

/// The repository of one model in the cache.
pub(super) struct Repo {
    id: String,
    dir: PathBuf,
    locks: PathBuf,
}

/// The branch that is downloaded.
pub(super) const REVISION: &str = "main";
const PREFIX: &str = "models--";
/// Our folder in a repository's.
const OURS: &str = "wginfer";
/// The only format of `trees/COMMIT.json` so far.
const TREE_FORMAT: u32 = 1;
/// A listing has some 300 bytes a file.
const MOST_TREE: u64 = 64 << 20;

/// `trees/COMMIT.json`, as huggingface_hub's `_tree_cache.py` has it.
#[derive(Serialize, Deserialize)]
struct Tree {
    format_version: u32,
    files: std::collections::BTreeMap<String, TreeEntry>,
}

#[derive(Serialize, Deserialize)]
struct TreeEntry {
    size: u64,
    blob_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    /// Kept for others that read the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

impl Repo {
    /// The repository `owner/name` in the cache at `cache`.
    pub fn new(cache: &Path, id: &str) -> Repo {
        let folder = format!("{PREFIX}{}", id.replace('/', "--"));
        Repo { id: id.into(), dir: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// Every repository of the cache, by name.
    pub fn all(cache: &Path) -> Result<Vec<Repo>, HubError> {
        let entries = match fs::read_dir(cache) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(HubError::Io { path: cache.into(), source }),
        };
        let id = |entry: std::io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            let (owner, name) = name.to_str()?.strip_prefix(PREFIX)?.split_once("--")?;
            Some(format!("{owner}/{name}"))
        };
        let mut ids: Vec<String> = entries.filter_map(id).collect();
        ids.sort();
        Ok(ids.iter().map(|id| Repo::new(cache, id)).collect())
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The path of a file in a snapshot.
    pub fn file(&self, commit: &str, path: &str) -> PathBuf {
        self.snapshot(commit).join(path)
    }

    pub fn blob(&self, hash: Hash) -> PathBuf {
        self.dir.join("blobs").join(hash.to_string())
    }

    /// What has arrived of a blob.
    pub fn partial(&self, hash: Hash) -> PathBuf {
        self.blob(hash).with_extension("incomplete")
    }

    /// The bytes that have arrived of a file that is not whole.
    pub fn partial_bytes(&self, file: &RepoFile) -> u64 {
        fs::metadata(self.partial(file.hash)).map_or(0, |found| found.len()).min(file.n_bytes)
    }

    /// Whether a process downloads one of the repository's files.
    pub fn is_busy(&self) -> bool {
        let entries = fs::read_dir(&self.locks).into_iter().flatten().flatten();
        entries.filter_map(|entry| File::open(entry.path()).ok()).any(|file| {
            // It is unlocked again with the file.
            matches!(file.try_lock(), Err(TryLockError::WouldBlock))
        })
    }

    /// Whether a path, with its links followed, is a blob of this repository.
    pub fn is_blob(&self, path: &Path) -> bool {
        fs::canonicalize(self.dir.join("blobs")).is_ok_and(|blobs| path.starts_with(blobs))
    }

    pub fn lock(&self, hash: Hash) -> PathBuf {
        self.locks.join(format!("{hash}.lock"))
    }

    /// The commit of the last download.
    pub fn commit(&self) -> Option<String> {
        let commit = fs::read_to_string(self.dir.join("refs").join(REVISION)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    /// Remembers the commit of a download that is complete.
    pub fn set_commit(&self, commit: &str) -> Result<(), HubError> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        self.write_whole(&self.dir.join("refs").join(REVISION), commit.as_bytes())
    }

    /// Every commit of which there is something, that of the last download first, then the newest.
    pub fn commits(&self) -> Vec<String> {
        let names = |folder: &str| -> Vec<(std::time::SystemTime, String)> {
            let entries = fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten();
            let commit = |entry: fs::DirEntry| {
                let name = entry.file_name().to_str()?.trim_end_matches(".json").to_string();
                is_commit(&name).then_some((entry.metadata().ok()?.modified().ok()?, name))
            };
            entries.filter_map(commit).collect()
        };
        let mut all: Vec<_> = ["snapshots", "trees", OURS].into_iter().flat_map(names).collect();
        all.sort_by(|a, b| b.cmp(a));
        let mut commits: Vec<String> = self.commit().into_iter().collect();
        for (_, commit) in all {
            if !commits.contains(&commit) {
                commits.push(commit);
            }
        }
        commits
    }

    /// The listing of a commit, if it was kept.
    pub fn listing(&self, commit: &str) -> Option<Listing> {
        [self.tree(commit), self.dir.join("trees").join(format!("{commit}.json"))]
            .iter()
            .find_map(|path| Repo::read_listing(path, commit))
    }

    fn read_listing(path: &Path, commit: &str) -> Option<Listing> {
        let bytes = crate::file::read(path, MOST_TREE).ok()?;
        let tree: Tree = serde_json::from_slice(&bytes).ok()?;
        if tree.format_version != TREE_FORMAT {
            return None;
        }
        let file = |(path, entry): (String, TreeEntry)| {
            let hash = Hash::parse(entry.lfs_sha256.as_deref().unwrap_or(&entry.blob_id))?;
            let n_bytes = entry.lfs_size.unwrap_or(entry.size);
            is_path(&path).then_some(RepoFile { path, n_bytes, hash })
        };
        let files = tree.files.into_iter().map(file).collect::<Option<Vec<_>>>()?;
        Some(Listing { commit: commit.to_string(), files })
    }

    /// Keeps the listing of a commit.
    pub fn set_listing(&self, listing: &Listing) -> Result<(), HubError> {
        // A cache that cannot be written may be whole.
        if self.listing(&listing.commit).is_some_and(|kept| kept.files == listing.files) {
            return Ok(());
        }
        let entry = |file: &RepoFile| {
            let hash = file.hash.to_string();
            let is_large = matches!(file.hash, Hash::Sha256(_));
            let entry = TreeEntry {
                size: file.n_bytes,
                blob_id: hash.clone(),
                lfs_sha256: is_large.then_some(hash),
                lfs_size: is_large.then_some(file.n_bytes),
                xet_hash: None,
            };
            (file.path.clone(), entry)
        };
        let tree = Tree { format_version: TREE_FORMAT, files: listing.files.iter().map(entry).collect() };
        let json = serde_json::to_vec_pretty(&tree).expect("strings and numbers are JSON");
        self.write_whole(&self.tree(&listing.commit), &json)
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.dir.join(OURS).join(format!("{commit}.json"))
    }

    /// Writes a small file so that nobody sees half of it.
    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), HubError> {
        static N_WRITTEN: AtomicU64 = AtomicU64::new(0);
        // Other processes and threads may write the same file. What a killed one leaves lies where nobody looks.
        let no = N_WRITTEN.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(OURS).join(format!("{}-{no}.tmp", std::process::id()));
        create_parent(path)?;
        create_parent(&temporary)?;
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&temporary, path));
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            HubError::Io { path: path.into(), source }
        })
    }

    /// The files of a snapshot, which may be a part of the repository. Those of a name alone have no known hash, and are
    /// not to be downloaded by it.
    pub fn present(&self, commit: &str) -> Vec<RepoFile> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // Links are followed: a link to nothing is no file.
                let Ok(metadata) = fs::metadata(&path) else { continue };
                if metadata.is_dir() && !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                    folders.push(path);
                } else if metadata.is_file() {
                    let name = path.strip_prefix(&root).unwrap_or(&path);
                    let parts: Option<Vec<&str>> = name.iter().map(|part| part.to_str()).collect();
                    let Some(parts) = parts else { continue };
                    let hash = Hash::Git([0; 20]);
                    files.push(RepoFile { path: parts.join("/"), n_bytes: metadata.len(), hash });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Whether a file of a listing is in the snapshot, whole.
    pub fn has(&self, commit: &str, file: &RepoFile) -> bool {
        fs::metadata(self.file(commit, &file.path))
            .is_ok_and(|found| found.is_file() && found.len() == file.n_bytes)
    }

    /// Makes a blob a file of a snapshot.
    pub fn link(&self, commit: &str, file: &RepoFile) -> Result<(), HubError> {
        let (blob, path) = (self.blob(file.hash), self.file(commit, &file.path));
        if self.has(commit, file) {
            return Ok(());
        }
        create_parent(&path)?;
        let depth = file.path.matches('/').count() + 2;
        let target = PathBuf::from("../".repeat(depth)).join("blobs").join(file.hash.to_string());
        // Whatever was there before is not this file. Another process may be linking it, too.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(HubError::Io { path, source: error });
            }
            _ => {}
        }
        let linked = symlink(&target, &path).or_else(|error| match self.has(commit, file) {
            true => Ok(()),
            // A file system without links has the file itself in the snapshot, as Python's library does it.
            false if error.kind() != ErrorKind::NotFound => {
                fs::hard_link(&blob, &path).or_else(|_| fs::rename(&blob, &path))
            }
            false => Err(error),
        });
        linked.map_err(|source| HubError::Io { path: path.clone(), source })?;
        // Another process may have removed or replaced the blob.
        match self.has(commit, file) {
            true => Ok(()),
            false => Err(HubError::Io { path, source: ErrorKind::NotFound.into() }),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Windows lets few users make links.
#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target.to_string_lossy().replace('/', "\\"), path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Creates the folder that a file is in.
pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).map_err(|source| HubError::Io { path: dir.into(), source })
}

/// Whether `text` is the name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

/// Whether a path of a listing stays in its snapshot, on every system.
pub(super) fn is_path(path: &str) -> bool {
    let is_name = |part: &str| {
        !part.is_empty()
            && part.len() <= 255
            && !part.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
            && !part.ends_with(['.', ' '])
    };
    path.split('/').all(is_name)
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_snapshot() {
        for path in ["config.json", "1_Pooling/config.json", ".gitattributes", "a b/ü.gguf", "..a/b"] {
            assert!(is_path(path), "{path}");
        }
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/..",
            "a//b",
            "a/",
            "./a",
            "a\\..\\b",
            "C:x",
            "a\nb",
            "x.",
        ] {
            assert!(!is_path(path), "{path:?}");
        }
        assert!(is_commit(&"0a".repeat(20)));
        for commit in ["", "main", "../../x", &"0A".repeat(20), &"0a".repeat(21)] {
            assert!(!is_commit(commit), "{commit}");
        }
    }

    #[test]
    fn listings_are_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let repo = Repo::new(dir.path(), "a/b");
        let commit = "0123456789".repeat(4);
        let file = |path: &str, n_bytes, hash| RepoFile { path: path.into(), n_bytes, hash };
        let files = vec![
            file("config.json", 5, Hash::Git([7; 20])),
            file("sub/m.gguf", 5 << 32, Hash::Sha256([9; 32])),
        ];
        let listing = Listing { commit: commit.clone(), files };
        assert!(repo.listing(&commit).is_none());
        repo.set_listing(&listing).expect("it can be written");
        repo.set_commit(&commit).expect("it can be written");
        assert_eq!(repo.listing(&commit).expect("it was kept").files, listing.files);
        assert_eq!(repo.commits(), std::slice::from_ref(&commit));
        assert_eq!(repo.commit(), Some(commit.clone()));
        // What others may have put there.
        for wrong in [
            "",
            "{}",
            r#"{"format_version": 2, "files": {}}"#,
            r#"{"format_version": 1, "files": {"../x": {"size": 1, "blob_id": "0707070707070707070707070707070707070707"}}}"#,
            r#"{"format_version": 1, "files": {"x": {"size": 1, "blob_id": "../y"}}}"#,
        ] {
            fs::write(repo.tree(&commit), wrong).expect("it can be written");
            assert!(repo.listing(&commit).is_none(), "{wrong}");
        }
        fs::write(dir.path().join("models--a--b/refs/main"), "../../x").expect("it can be written");
        assert_eq!(repo.commit(), None);
    }
}
