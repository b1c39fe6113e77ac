//! What the hub says of a repository.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::cache::{REVISION, is_commit, is_path};
use super::client::{What, encode};
use super::hash::Hash;
use super::{Hub, HubError, HubName, Listing, RepoFile};

/// Bytes of a file, far above any: sums of them stay in range.
const MOST_FILE: u64 = 1 << 50;
/// Pages of a listing: a repository of a million files has a thousand.
const MOST_PAGES: usize = 1000;

impl Hub {
    /// The repository's files on the hub.
    pub(super) fn listing(&self, name: &HubName) -> Result<Listing, HubError> {
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
            let url = self.client.url(&format!("api/models?search={}&limit=5", encode(text)));
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
}
