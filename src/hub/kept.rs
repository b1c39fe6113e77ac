//! What the cache has: which models are whole there, a list of them, and their removal.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::cache::Repo;
use super::choose::{self, Choice};
use super::{CachedModel, Hub, HubError, HubName, Listing, RepoFile};

/// What the cache has of a model.
pub(super) enum Cached {
    /// Everything.
    Whole(PathBuf),
    /// Enough to open it, but nothing says whether there is more, or a better one.
    Perhaps(PathBuf),
    /// Too little.
    Not,
}

impl Hub {
    /// The models in the cache, by name.
    ///
    /// # Errors
    /// [`HubError::Io`] if the cache cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>, HubError> {
        let repos = Repo::all(&self.options.cache_dir)?;
        Ok(repos.iter().flat_map(|repo| self.cached_models(repo)).collect())
    }

    /// Removes a model from the cache: one GGUF model if the name has a type or a file after the colon, otherwise the
    /// whole repository with all its versions. Returns the number of bytes that are free now.
    ///
    /// # Errors
    /// [`HubError::NotCached`], [`HubError::NoTag`], [`HubError::Busy`], [`HubError::Io`].
    pub fn remove(&self, name: &HubName) -> Result<u64, HubError> {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let not_cached =
            || HubError::NotCached { name: name.to_string(), dir: self.options.cache_dir.clone() };
        if !repo.dir().is_dir() {
            return Err(not_cached());
        }
        if repo.is_busy() {
            return Err(HubError::Busy { name: name.id() });
        }
        let before = size(repo.dir());
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| HubError::Io { path, source }
        };
        if name.pick.is_none() {
            fs::remove_dir_all(repo.dir()).map_err(io(repo.dir()))?;
            return Ok(before);
        }
        let mut refused = None;
        let mut n_removed = 0;
        for commit in repo.commits() {
            let listing = known_files(&repo, &commit);
            let parts = match choose::choose(name, &listing.files) {
                Ok(Choice::Gguf(parts)) => parts,
                Ok(Choice::Folder { .. }) => continue,
                // That of the last download counts.
                Err(error) => {
                    refused.get_or_insert(error);
                    continue;
                }
            };
            for part in &parts {
                let (path, partial) = (repo.file(&commit, &part.path), repo.partial(part.hash));
                let blob = fs::canonicalize(&path).ok();
                for path in [path, partial] {
                    match fs::remove_file(&path) {
                        Ok(()) => n_removed += 1,
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(io(&path)(error)),
                    }
                }
                // Other versions of the repository may have the same content, and what is elsewhere is not ours.
                if let Some(blob) = blob.filter(|blob| repo.is_blob(blob) && blob.exists())
                    && !is_linked(&repo, &blob)
                {
                    fs::remove_file(&blob).map_err(io(&blob))?;
                }
            }
        }
        match (n_removed, refused) {
            (0, Some(error)) => Err(error),
            (0, None) => Err(not_cached()),
            _ => Ok(before - size(repo.dir()).min(before)),
        }
    }

    /// What the cache has of a model. The version of the last download comes first, but another file of the repository
    /// may have been pulled since.
    pub(super) fn cached(&self, name: &HubName) -> Cached {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let mut best = Cached::Not;
        for commit in repo.commits() {
            match (self.cached_at(name, &repo, &commit), &best) {
                (whole @ Cached::Whole(_), _) => return whole,
                (perhaps @ Cached::Perhaps(_), Cached::Not) => best = perhaps,
                _ => {}
            }
        }
        best
    }

    pub(super) fn cached_at(&self, name: &HubName, repo: &Repo, commit: &str) -> Cached {
        let on_disk = |index: &RepoFile| match repo.has(commit, index) {
            true => Ok(()),
            false => Err(HubError::NotCached { name: name.to_string(), dir: repo.dir().into() }),
        };
        let kept = repo.listing(commit);
        let is_listed = kept.is_some();
        let listing = kept.unwrap_or_else(|| present(repo, commit));
        let Ok(plan) = self.plan(name, &listing, on_disk) else { return Cached::Not };
        let missing: Vec<&RepoFile> = plan.files.iter().filter(|file| !repo.has(commit, file)).collect();
        // What is too short is not whole, whoever put it there; without weights and config there is no model.
        let is_needed = |file: &&RepoFile| {
            is_weights(&file.path) || file.path == "config.json" || repo.file(commit, &file.path).exists()
        };
        match is_listed {
            true if missing.is_empty() => Cached::Whole(plan.path(repo)),
            true if missing.iter().any(is_needed) => Cached::Not,
            // Downloaded by a program that keeps no listing: another file of this type might come first in the whole
            // repository, but it is the one that was chosen.
            false if name.pick.is_some() => Cached::Whole(plan.path(repo)),
            _ => Cached::Perhaps(plan.path(repo)),
        }
    }

    /// The models of a repository in the cache, each once, in the version of the last download.
    fn cached_models(&self, repo: &Repo) -> Vec<CachedModel> {
        let Some((owner, name)) = repo.id().split_once('/') else { return Vec::new() };
        let named = |pick| HubName { owner: owner.into(), name: name.into(), pick };
        let mut models: Vec<CachedModel> = Vec::new();
        for commit in repo.commits() {
            let listing = known_files(repo, &commit);
            let here = |file: &RepoFile| match repo.has(&commit, file) {
                true => file.n_bytes,
                false => repo.partial_bytes(file),
            };
            let begun: Vec<&RepoFile> =
                listing.files.iter().filter(|file| is_weights(&file.path) && here(file) > 0).collect();
            let mut names: Vec<HubName> = choose::gguf_models(&listing.files)
                .into_iter()
                .filter(|file| begun.contains(file))
                .map(|file| named(Some(file.path.clone())))
                .collect();
            if begun.iter().any(|file| file.path.ends_with(".safetensors")) {
                names.insert(0, named(None));
            }
            for name in names {
                let Ok(plan) = self.plan(&name, &listing, |_| Ok(())) else { continue };
                let name = name.to_string();
                if models.iter().any(|model| model.name == name && model.is_complete) {
                    continue;
                }
                let used =
                    |file: &RepoFile| fs::metadata(repo.file(&commit, &file.path)).ok()?.accessed().ok();
                models.retain(|model| model.name != name);
                models.push(CachedModel {
                    name,
                    path: plan.path(repo),
                    n_bytes: plan.files.iter().map(here).sum(),
                    last_used: plan.files.iter().filter_map(used).max(),
                    is_complete: plan.files.iter().all(|file| repo.has(&commit, file)),
                });
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }
}

/// The files of a version, as far as the cache knows them.
pub(super) fn known_files(repo: &Repo, commit: &str) -> Listing {
    repo.listing(commit).unwrap_or_else(|| present(repo, commit))
}

/// The files of a version that are there.
fn present(repo: &Repo, commit: &str) -> Listing {
    Listing { files: repo.present(commit), commit: commit.to_string() }
}

/// Whether a file holds weights.
fn is_weights(path: &str) -> bool {
    let extension = Path::new(path).extension().unwrap_or_default();
    extension == "safetensors" || extension.eq_ignore_ascii_case("gguf")
}

/// Bytes of the files in a folder; links count nothing.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match fs::symlink_metadata(entry.path()) {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) if found.is_file() => found.len(),
            _ => 0,
        })
        .sum()
}

/// Whether a file of any snapshot leads to a blob.
fn is_linked(repo: &Repo, blob: &Path) -> bool {
    fn any(dir: &Path, blob: &Path) -> bool {
        fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => any(&path, blob),
                _ => fs::canonicalize(&path).is_ok_and(|target| target == blob),
            }
        })
    }
    any(&repo.dir().join("snapshots"), blob)
}
