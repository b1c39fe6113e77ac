//! Layer 2: models of the Hugging Face hub, by name: found, downloaded, kept (feature `hub`).
//!
//! [`Hub::open`] finds a model in the cache or downloads it, [`Hub::pull`] downloads what is newer, [`Hub::list`] and
//! [`Hub::remove`] manage the cache. It is the cache of Hugging Face's Python library and of llama.cpp: what one of them
//! has downloaded, the others need not download again (`cache` describes it).
//!
//! A file counts as there only under its final name, and it gets that name once its hash is right: SHA-256 of large
//! files, git's SHA-1 of small ones. Until then it is `blobs/HASH.incomplete`, from which the next attempt goes on, in
//! this process or a later one. `download` brings one file, `client` makes requests, `choose` decides which files of a
//! repository make a model.

mod cache;
mod choose;
mod client;
mod download;
mod error;
mod hash;
mod name;
mod remote;

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use cache::{REVISION, Repo, is_commit, is_path};
use choose::Choice;
use client::{Client, What};
pub use error::HubError;
use hash::Hash;
pub use name::HubName;
pub use remote::{RemoteFile, RemoteModel};

/// Where models come from, and where they are kept.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Address of the hub. Default: `https://huggingface.co`.
    pub endpoint: String,
    /// Token for gated and private models. It is sent to the endpoint only.
    pub token: Option<String>,
    /// Folder of the cache.
    pub cache_dir: PathBuf,
    /// Use only what is in the cache.
    pub offline: bool,
    /// The longest time to wait for a connection, an answer, or more of it. Default: 10 s, as in Python's library.
    pub timeout: Duration,
    /// Time before the second attempt of a request that failed; it doubles with each further one. Default: 1 s.
    pub backoff: Duration,
}

impl HubOptions {
    /// The options that the environment sets, by the names of Hugging Face's Python library: `HF_ENDPOINT`; `HF_TOKEN`,
    /// or the file at `HF_TOKEN_PATH`, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set; `HF_HUB_CACHE` or the folder `hub`
    /// in `HF_HOME`; `HF_HUB_OFFLINE`; `HF_HUB_DOWNLOAD_TIMEOUT` in seconds. Proxies are read from `HTTPS_PROXY`,
    /// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    /// [`HubError::NoCache`].
    pub fn from_env() -> Result<HubOptions, HubError> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| var(name).and_then(|value| value.to_str().map(str::to_string));
        let is_set = |name: &str| {
            text(name).is_some_and(|value| {
                matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
            })
        };
        let home = || var("HOME").or_else(|| var("USERPROFILE"));
        let expanded = |path: PathBuf| match path.strip_prefix("~") {
            Ok(rest) => home().map_or_else(|| path.clone(), |home| home.join(rest)),
            Err(_) => path,
        };
        let hf_home = || {
            let cache = || var("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
            var("HF_HOME").map(expanded).or_else(|| Some(cache()?.join("huggingface")))
        };
        let cache_dir = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map(expanded);
        let token_file = || {
            let path = var("HF_TOKEN_PATH").map(expanded).or_else(|| Some(hf_home()?.join("token")))?;
            let bytes = crate::file::read(&path, 4096).ok()?;
            String::from_utf8(bytes).ok()
        };
        let token = match is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(token_file),
        };
        let timeout = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.parse().ok());
        Ok(HubOptions {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|token| token.trim().to_string()),
            cache_dir: cache_dir.or_else(|| Some(hf_home()?.join("hub"))).ok_or(HubError::NoCache)?,
            offline: is_set("HF_HUB_OFFLINE"),
            timeout: Duration::from_secs(timeout.filter(|n| *n > 0).unwrap_or(10)),
            backoff: Duration::from_secs(1),
        })
    }
}

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
        self.files.iter().map(|file| file.n_bytes).sum()
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
                // What is there was downloaded by another program, and may be all there is.
                Err(error @ HubError::Network { .. }) => {
                    log::warn!("{error}: using what is in the cache");
                    path
                }
                other => other?,
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
        let (total_bytes, mut before) = (plan.n_bytes(), 0);
        for file in &plan.files {
            let mut on_bytes = |n_bytes| {
                progress(Download { file: &file.path, done_bytes: before + n_bytes, total_bytes });
            };
            download::fetch(&self.client, &repo, commit, file, &mut on_bytes)?;
            before += file.n_bytes;
        }
        repo.set_listing(&listing)?;
        repo.set_commit(commit)?;
        Ok(plan.path(&repo))
    }

    /// The models that a name may mean: the one that [`Hub::open`] takes, or without a type each of a repository's GGUF
    /// models.
    ///
    /// # Errors
    /// [`HubError`] says what is wrong with the name.
    pub fn models(&self, name: &HubName) -> Result<Vec<HubName>, HubError> {
        let files = self.known(name)?.files;
        match choose::choose(name, &files)? {
            Choice::Gguf(_) if name.pick.is_none() => {
                let named = |file: &RepoFile| HubName { pick: Some(file.path.clone()), ..name.clone() };
                Ok(choose::gguf_models(&files).into_iter().map(named).collect())
            }
            _ => Ok(vec![name.clone()]),
        }
    }

    /// Opens a model to read its settings and the headers of its weights, without downloading it. Files in the cache are
    /// read from there.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn remote(&self, name: &HubName) -> Result<RemoteModel, HubError> {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let listing = self.known(name)?;
        let commit = &listing.commit;
        let fetch = |file: &RepoFile| download::fetch(&self.client, &repo, commit, file, &mut |_| {});
        let plan = self.plan(name, &listing, fetch)?;
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

    /// The repository's files on the hub, or with no network those that the cache knows.
    fn known(&self, name: &HubName) -> Result<Listing, HubError> {
        if !self.options.offline {
            return self.listing(name);
        }
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let commit = repo.commit().ok_or_else(|| HubError::Offline { name: name.to_string() })?;
        Ok(repo.listing(&commit).unwrap_or_else(|| Listing { files: repo.present(&commit), commit }))
    }

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
    /// [`HubError::NotCached`], [`HubError::NoTag`], [`HubError::Io`].
    pub fn remove(&self, name: &HubName) -> Result<u64, HubError> {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        if !repo.dir().is_dir() {
            return Err(HubError::NotCached { name: name.to_string(), dir: self.options.cache_dir.clone() });
        }
        let before = size(repo.dir());
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| HubError::Io { path, source }
        };
        if name.pick.is_none() {
            fs::remove_dir_all(repo.dir()).map_err(io(repo.dir()))?;
            // Its locks are of no use any more.
            let _ = fs::remove_dir_all(repo.locks());
            return Ok(before);
        }
        let commit = repo.commit().unwrap_or_default();
        let Choice::Gguf(parts) = choose::choose(name, &repo.present(&commit))? else {
            unreachable!("a name with a pick is a GGUF model")
        };
        for part in &parts {
            let path = repo.file(&commit, &part.path);
            let blob = fs::canonicalize(&path).map_err(io(&path))?;
            fs::remove_file(&path).map_err(io(&path))?;
            // Other versions of the repository may have the same content.
            if blob.exists() && !is_linked(&repo, &blob) {
                fs::remove_file(&blob).map_err(io(&blob))?;
            }
        }
        Ok(before - size(repo.dir()).min(before))
    }

    /// What the cache has of a model.
    fn cached(&self, name: &HubName) -> Cached {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let Some(commit) = repo.commit() else { return Cached::Not };
        let on_disk = |index: &RepoFile| match repo.has(&commit, index) {
            true => Ok(()),
            false => Err(HubError::NotCached { name: name.to_string(), dir: repo.dir().into() }),
        };
        if let Some(listing) = repo.listing(&commit)
            && let Ok(plan) = self.plan(name, &listing, on_disk)
            && plan.files.iter().all(|file| repo.has(&commit, file))
        {
            return Cached::Whole(plan.path(&repo));
        }
        // Downloaded by a program that keeps no listing, or one by one.
        let listing = Listing { files: repo.present(&commit), commit };
        match self.plan(name, &listing, |_| Ok(())) {
            // Another file of this type would have to come before it in the whole repository.
            Ok(plan) if name.pick.is_some() => Cached::Whole(plan.path(&repo)),
            Ok(plan) => Cached::Perhaps(plan.path(&repo)),
            Err(_) => Cached::Not,
        }
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

    /// The models of a repository in the cache.
    fn cached_models(&self, repo: &Repo) -> Vec<CachedModel> {
        let Some((owner, name)) = repo.id().split_once('/') else { return Vec::new() };
        let named = |pick| HubName { owner: owner.into(), name: name.into(), pick };
        let commit = repo.commit().unwrap_or_default();
        let present = repo.present(&commit);
        let listed = repo.listing(&commit);
        let mut names: Vec<HubName> =
            choose::gguf_models(&present).iter().map(|file| named(Some(file.path.clone()))).collect();
        if present.iter().any(|file| file.path.ends_with(".safetensors")) {
            names.insert(0, named(None));
        }
        let known = listed.unwrap_or_else(|| Listing { commit: commit.clone(), files: present.clone() });
        let model = |name: HubName| {
            let plan = self.plan(&name, &known, |_| Ok(())).ok()?;
            let files: Vec<&RepoFile> = plan.files.iter().filter(|file| repo.has(&commit, file)).collect();
            let used = |file: &&RepoFile| fs::metadata(repo.file(&commit, &file.path)).ok()?.accessed().ok();
            Some(CachedModel {
                name: name.to_string(),
                path: plan.path(repo),
                n_bytes: files.iter().map(|file| file.n_bytes).sum(),
                last_used: files.iter().filter_map(used).max(),
                is_complete: files.len() == plan.files.len(),
            })
        };
        names.into_iter().filter_map(model).collect()
    }

    /// The repository's files on the hub.
    fn listing(&self, name: &HubName) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        #[derive(Deserialize)]
        struct Entry {
            r#type: String,
            path: String,
            #[serde(default)]
            size: u64,
            #[serde(default)]
            oid: String,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            oid: String,
            size: u64,
        }
        let id = name.id();
        let what = What { id: &id, file: None };
        let wrong = |message: String| HubError::Listing { id: id.clone(), message };
        let parse = |error: serde_json::Error| wrong(error.to_string());
        let info = self.client.url(&format!("api/models/{id}/revision/{REVISION}"));
        let (info, _) = self.client.json(what, &info).map_err(|error| self.with_alike(name, error))?;
        let Info { sha: commit } = serde_json::from_slice(&info).map_err(parse)?;
        if !is_commit(&commit) {
            return Err(wrong(format!("the commit is `{commit}`, expected 40 hexadecimal digits")));
        }
        let mut files = Vec::new();
        let mut page = Some(self.client.url(&format!("api/models/{id}/tree/{commit}?recursive=true")));
        let mut seen = BTreeSet::new();
        while let Some(url) = page {
            if !seen.insert(url.clone()) || seen.len() > MOST_PAGES {
                return Err(wrong("its pages do not end".into()));
            }
            let (json, next) = self.client.json(what, &url)?;
            let entries: Vec<Entry> = serde_json::from_slice(&json).map_err(parse)?;
            for Entry { path, size, oid, lfs, .. } in entries.into_iter().filter(|e| e.r#type == "file") {
                let (oid, n_bytes) = lfs.map_or((oid, size), |lfs| (lfs.oid, lfs.size));
                if !is_path(&path) {
                    return Err(wrong(format!("it has a file `{path}`, which is outside of its folder")));
                }
                let hash = Hash::parse(&oid);
                let hash = hash.ok_or_else(|| wrong(format!("the hash of `{path}` is `{oid}`")))?;
                files.push(RepoFile { path, n_bytes, hash });
            }
            page = next;
        }
        Ok(Listing { commit, files })
    }

    /// Adds similar names to the error that there is no such model.
    fn with_alike(&self, name: &HubName, error: HubError) -> HubError {
        #[derive(Deserialize)]
        struct Found {
            id: String,
        }
        let HubError::NotFound { id, host, has_token, .. } = error else { return error };
        let search = |text: &str| -> Vec<String> {
            let url = self.client.url(&format!("api/models?search={}&limit=5", client::encode(text)));
            // It is help only: whatever goes wrong here, the error is the other one.
            let found = self.client.json(What { id: &id, file: None }, &url).ok();
            let found = found.and_then(|(json, _)| serde_json::from_slice::<Vec<Found>>(&json).ok());
            found
                .into_iter()
                .flatten()
                .map(|found| found.id)
                .filter(|id| HubName::parse(id).is_some())
                .collect()
        };
        let mut alike = search(&name.name);
        if alike.is_empty() {
            // The first words of a name say which model it is, the last ones which variant.
            let words: Vec<&str> = name.name.split('-').collect();
            if words.len() > 2 {
                alike = search(&words[..2].join("-"));
            }
        }
        HubError::NotFound { id, host, has_token, alike }
    }

    /// Returns an error if the disk has less space than the download takes.
    fn check_space(&self, repo: &Repo, plan: &Plan) -> Result<(), HubError> {
        let missing = |file: &&RepoFile| !repo.has(&plan.commit, file) && !repo.blob(file.hash).exists();
        let here = |file: &RepoFile| {
            let partial = fs::metadata(repo.blob(file.hash).with_extension("incomplete"));
            partial.map_or(0, |found| found.len()).min(file.n_bytes)
        };
        let needed_bytes: u64 = plan.files.iter().filter(missing).map(|file| file.n_bytes - here(file)).sum();
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

/// Pages of a listing: a repository of a million files has a thousand.
const MOST_PAGES: usize = 1000;

/// What the cache has of a model.
enum Cached {
    /// Everything.
    Whole(PathBuf),
    /// Enough to open it, but nothing says whether there is more, or a better one.
    Perhaps(PathBuf),
    /// Too little.
    Not,
}

/// Remembers that a model is used now: many file systems do not.
fn touch(path: &Path) {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    if let Ok(file) = File::open(file) {
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    }
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
