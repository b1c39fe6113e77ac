//! Layer 2: models of the Hugging Face hub, by name: found, downloaded, kept (feature `hub`).
//!
//! [`Hub::open`] finds a model in the cache or downloads it, [`Hub::pull`] downloads what is newer, [`Hub::list`] and
//! [`Hub::remove`] manage the cache. It is the cache of Hugging Face's Python library and of llama.cpp: what one of them
//! has downloaded, the others need not download again (`cache` describes it).
//!
//! A file counts as there only under its final name, and it gets that name once its hash is right: SHA-256 of large
//! files, git's SHA-1 of small ones. Until then it is `blobs/HASH.incomplete`, from which the next attempt goes on, in
//! this process or a later one. `listing` asks what a repository has, `choose` decides which of its files make a model,
//! `download` brings one of them through `client`, `cache` is the folder and `kept` what is whole in it. `remote` reads
//! headers without a download.

mod cache;
mod choose;
mod client;
mod download;
mod error;
mod hash;
mod kept;
mod listing;
mod name;
mod options;
mod remote;

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use cache::Repo;
use choose::Choice;
use client::Client;
pub use error::HubError;
use hash::Hash;
use kept::{Cached, known_files};
pub use name::HubName;
pub use options::HubOptions;
pub use remote::{RemoteFile, RemoteModel};

/// The hub and the cache.
pub struct Hub {
    client: Arc<Client>,
    options: HubOptions,
}

/// How far a download is.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    /// The file that is being downloaded.
    pub file: &'a str,
    /// Bytes of the model that are here.
    pub done_bytes: u64,
    /// Bytes of the model.
    pub total_bytes: u64,
}

/// A model in the cache.
#[derive(Clone, Debug)]
pub struct CachedModel {
    /// `owner/name`, or `owner/name:FILE.gguf`.
    pub name: String,
    /// The folder in Hugging Face layout, or the GGUF file.
    pub path: PathBuf,
    /// Size of its files.
    pub n_bytes: u64,
    /// When it was read last, as far as the file system knows.
    pub last_used: Option<SystemTime>,
    /// Whether files are missing, as after a download that was interrupted.
    pub is_complete: bool,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RepoFile {
    /// With `/` between folders.
    path: String,
    n_bytes: u64,
    hash: Hash,
}

/// The files of a repository at one commit.
#[derive(Clone, Debug)]
struct Listing {
    commit: String,
    files: Vec<RepoFile>,
}

/// The files of a commit that make a model.
struct Plan {
    commit: String,
    files: Vec<RepoFile>,
    /// The file to open; `None` is the folder.
    gguf: Option<String>,
}

impl Plan {
    fn path(&self, repo: &Repo) -> PathBuf {
        match &self.gguf {
            Some(path) => repo.file(&self.commit, path),
            None => repo.snapshot(&self.commit),
        }
    }

    fn n_bytes(&self) -> u64 {
        n_bytes(&self.files)
    }
}

impl Hub {
    /// A hub with these options. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`HubError::Endpoint`].
    pub fn new(options: HubOptions) -> Result<Hub, HubError> {
        Ok(Hub { client: Client::new(&options)?.into(), options })
    }

    /// A hub with the options that the environment sets.
    ///
    /// # Errors
    /// Those of [`HubOptions::from_env`] and [`Hub::new`].
    pub fn from_env() -> Result<Hub, HubError> {
        Hub::new(HubOptions::from_env()?)
    }

    /// The options.
    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// Returns the path of a model: a folder in Hugging Face layout, or a GGUF file. A model that is whole in the cache
    /// is taken from there, and nothing is asked of the hub; any other is downloaded as by [`Hub::pull`].
    ///
    /// # Errors
    /// [`HubError`] says what is missing, and why it could not be fetched.
    pub fn open(&self, name: &HubName, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf, HubError> {
        let path = match self.cached(name) {
            Cached::Whole(path) => path,
            Cached::Perhaps(path) if self.options.offline => path,
            Cached::Perhaps(path) => match self.pull(name, progress) {
                Ok(path) => path,
                // What is there was downloaded by another program, and may be all there is.
                Err(error) => {
                    log::warn!("{error}: using what is in the cache");
                    path
                }
            },
            Cached::Not if self.options.offline => {
                return Err(HubError::Offline { name: name.to_string() });
            }
            Cached::Not => self.pull(name, progress)?,
        };
        touch(&path);
        Ok(path)
    }

    /// Downloads what of a model is not in the cache, or newer on the hub, and returns its path as [`Hub::open`].
    ///
    /// # Errors
    /// [`HubError`]. What has arrived is kept, and the next call goes on from there.
    pub fn pull(&self, name: &HubName, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf, HubError> {
        if self.options.offline {
            return Err(HubError::Offline { name: name.to_string() });
        }
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let listing = self.listing(name)?;
        let commit = &listing.commit;
        let plan = self
            .plan(name, &listing, |index| download::fetch(&self.client, &repo, commit, index, &mut |_| {}))?;
        self.check_space(&repo, &plan)?;
        let (missing, present): (Vec<&RepoFile>, Vec<&RepoFile>) =
            plan.files.iter().partition(|file| !repo.has(commit, file));
        // With it `list` and `remove` know what a part of a file is a part of. A cache that is whole need not be writable.
        let is_whole = missing.is_empty();
        repo.set_listing(&listing).or_else(|error| if is_whole { Ok(()) } else { Err(error) })?;
        let (total_bytes, mut before) = (plan.n_bytes(), n_bytes(present));
        for file in missing {
            let mut on_bytes = |n: u64| {
                let done_bytes = before.saturating_add(n);
                progress(Download { file: &file.path, done_bytes, total_bytes });
            };
            download::fetch(&self.client, &repo, commit, file, &mut on_bytes)?;
            before = before.saturating_add(file.n_bytes);
        }
        repo.set_commit(commit).or_else(|error| if is_whole { Ok(()) } else { Err(error) })?;
        Ok(plan.path(&repo))
    }

    /// Opens a model to read its settings and the headers of its weights, without downloading it. Files in the cache are
    /// read from there.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn remote(&self, name: &HubName) -> Result<RemoteModel, HubError> {
        self.remote_of(name, &self.known(name)?)
    }

    /// Opens every model that a name may mean as [`Hub::remote`] does: the one that [`Hub::open`] takes, or without a
    /// type each of a repository's GGUF models.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn remotes(&self, name: &HubName) -> Result<Vec<RemoteModel>, HubError> {
        let listing = self.known(name)?;
        let names = match choose::choose(name, &listing.files)? {
            Choice::Gguf(_) if name.pick.is_none() => {
                let named = |file: &RepoFile| HubName { pick: Some(file.path.clone()), ..name.clone() };
                choose::gguf_models(&listing.files).into_iter().map(named).collect()
            }
            _ => vec![name.clone()],
        };
        names.iter().map(|name| self.remote_of(name, &listing)).collect()
    }

    fn remote_of(&self, name: &HubName, listing: &Listing) -> Result<RemoteModel, HubError> {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let commit = &listing.commit;
        let fetch = |file: &RepoFile| download::fetch(&self.client, &repo, commit, file, &mut |_| {});
        let plan = self.plan(name, listing, fetch)?;
        let mut model = RemoteModel {
            name: name.clone(),
            settings: Default::default(),
            weights: Default::default(),
            is_gguf: plan.gguf.is_some(),
        };
        for file in &plan.files {
            let path = repo.file(commit, &file.path);
            if file.path.ends_with(".safetensors") || model.is_gguf {
                let remote = match repo.has(commit, file) {
                    true => RemoteFile::local(path, file),
                    false => RemoteFile::on_hub(self.client.clone(), &name.id(), commit, file),
                };
                model.weights.insert(file.path.clone(), remote);
            } else if !file.path.starts_with("tokenizer.") {
                // Small files are kept: they belong to the model that may be downloaded next.
                fetch(file)?;
                let bytes = fs::read(&path).map_err(|source| HubError::Io { path, source })?;
                model.settings.insert(file.path.clone(), bytes);
            }
        }
        Ok(model)
    }

    /// The repository's files on the hub, or offline those of a model in the cache.
    fn known(&self, name: &HubName) -> Result<Listing, HubError> {
        if !self.options.offline {
            return self.listing(name);
        }
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let commits = repo.commits();
        let has = |commit: &&String| !matches!(self.cached_at(name, &repo, commit), Cached::Not);
        let commit = commits.iter().find(has).ok_or_else(|| HubError::Offline { name: name.to_string() })?;
        let mut listing = known_files(&repo, commit);
        listing.files.retain(|file| repo.has(commit, file));
        Ok(listing)
    }

    /// The files of `listing` that make the model. `bring` brings the index of its weights into the cache.
    fn plan(
        &self,
        name: &HubName,
        listing: &Listing,
        bring: impl FnOnce(&RepoFile) -> Result<(), HubError>,
    ) -> Result<Plan, HubError> {
        let commit = listing.commit.clone();
        match choose::choose(name, &listing.files)? {
            Choice::Gguf(files) => {
                let gguf = files.first().map(|file| file.path.clone());
                Ok(Plan { commit, files, gguf })
            }
            Choice::Folder { mut files, index } => {
                if let Some(index) = index {
                    if index.n_bytes > MOST_INDEX {
                        let message = format!(
                            "`{}` has {} bytes, expected at most {MOST_INDEX}",
                            index.path, index.n_bytes
                        );
                        return Err(HubError::Listing { id: name.id(), message });
                    }
                    bring(&index)?;
                    let path = Repo::new(&self.options.cache_dir, &name.id()).file(&commit, &index.path);
                    let json = fs::read(&path).map_err(|source| HubError::Io { path, source })?;
                    files.extend(choose::shards(name, &json, &listing.files)?);
                    files.push(index);
                }
                Ok(Plan { commit, files, gguf: None })
            }
        }
    }

    /// Returns an error if the disk has less space than the download takes.
    fn check_space(&self, repo: &Repo, plan: &Plan) -> Result<(), HubError> {
        let missing = |file: &&RepoFile| !repo.has(&plan.commit, file) && !repo.blob(file.hash).exists();
        let needed = |file: &RepoFile| file.n_bytes - repo.partial_bytes(file);
        let needed_bytes =
            plan.files.iter().filter(missing).fold(0u64, |sum, file| sum.saturating_add(needed(file)));
        let dir = &self.options.cache_dir;
        // The folder itself may not be there yet. A file system that does not say how much is free is not asked.
        let free = dir.ancestors().find(|dir| dir.exists()).and_then(|dir| fs4::available_space(dir).ok());
        match free {
            Some(free_bytes) if free_bytes < needed_bytes => {
                Err(HubError::NoSpace { dir: dir.clone(), needed_bytes, free_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of an index of weights: an entry takes about 100, and a model of many experts has 100 thousand tensors.
const MOST_INDEX: u64 = 64 << 20;
/// The size of all files together.
fn n_bytes<'a>(files: impl IntoIterator<Item = &'a RepoFile>) -> u64 {
    files.into_iter().fold(0, |sum, file| sum.saturating_add(file.n_bytes))
}

/// Remembers that a model is used now: many file systems do not.
fn touch(path: &Path) {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    if let Ok(file) = File::open(file) {
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    }
}
