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
use std::io::ErrorKind;
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
    /// in `HF_HOME`; `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`; `HF_HUB_DOWNLOAD_TIMEOUT` in seconds. Proxies are read from `HTTPS_PROXY`,
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
        let timeout = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.parse::<f64>().ok());
        Ok(HubOptions {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|token| token.trim().to_string()),
            cache_dir: cache_dir.or_else(|| Some(hf_home()?.join("hub"))).ok_or(HubError::NoCache)?,
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            // Fractions are Python's, too; a day is for ever.
            timeout: Duration::from_secs_f64(timeout.filter(|n| *n > 0.0).unwrap_or(10.0).min(86_400.0)),
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
    fn cached(&self, name: &HubName) -> Cached {
        let repo = Repo::new(&self.options.cache_dir, &name.id());
        let found: Vec<Cached> =
            repo.commits().iter().map(|commit| self.cached_at(name, &repo, commit)).collect();
        let best = |is: fn(&Cached) -> bool| found.iter().position(is);
        let at = best(|cached| matches!(cached, Cached::Whole(_)))
            .or_else(|| best(|cached| matches!(cached, Cached::Perhaps(_))));
        at.and_then(|at| found.into_iter().nth(at)).unwrap_or(Cached::Not)
    }

    fn cached_at(&self, name: &HubName, repo: &Repo, commit: &str) -> Cached {
        let on_disk = |index: &RepoFile| match repo.has(commit, index) {
            true => Ok(()),
            false => Err(HubError::NotCached { name: name.to_string(), dir: repo.dir().into() }),
        };
        let is_listed = repo.listing(commit).is_some();
        let Ok(plan) = self.plan(name, &known_files(repo, commit), on_disk) else { return Cached::Not };
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
        if info.trim_ascii_start().starts_with(b"<") {
            return Err(wrong("it is a page of HTML: a proxy or a page to log in may be in between".into()));
        }
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
                // Nothing that a model is made of has such a name.
                if !is_path(&path) {
                    continue;
                }
                if n_bytes > MOST_FILE {
                    return Err(wrong(format!("`{path}` has {n_bytes} bytes, expected at most {MOST_FILE}")));
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

/// Bytes of a file, far above any: sums of them stay in range.
const MOST_FILE: u64 = 1 << 50;
/// Bytes of an index of weights: an entry takes about 100, and a model of many experts has 100 thousand tensors.
const MOST_INDEX: u64 = 64 << 20;
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

/// The files of a version, as far as the cache knows them.
fn known_files(repo: &Repo, commit: &str) -> Listing {
    repo.listing(commit)
        .unwrap_or_else(|| Listing { files: repo.present(commit), commit: commit.to_string() })
}

/// The size of all files together.
fn n_bytes<'a>(files: impl IntoIterator<Item = &'a RepoFile>) -> u64 {
    files.into_iter().fold(0, |sum, file| sum.saturating_add(file.n_bytes))
}

/// Whether a file holds weights.
fn is_weights(path: &str) -> bool {
    let extension = Path::new(path).extension().unwrap_or_default();
    extension == "safetensors" || extension.eq_ignore_ascii_case("gguf")
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
