//! A model that is not downloaded: its settings, and ranges of its weights, as far as an estimate needs them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::client::{Client, Trouble, What, encode};
use super::download::content_range;
use super::{HubError, HubName, RepoFile};

/// A model on the hub, of which only settings and headers are read.
pub struct RemoteModel {
    /// Its name.
    pub name: HubName,
    /// Its settings by path, `config.json` among them; none of a GGUF model.
    pub settings: BTreeMap<String, Vec<u8>>,
    /// Its files of weights by path; the parts of a GGUF model are in their order.
    pub weights: BTreeMap<String, RemoteFile>,
    /// Whether it is a GGUF model.
    pub is_gguf: bool,
}

/// A file on the hub that is read from its beginning on, as far as somebody asks. What was read is kept in memory. Its
/// hash is not checked, because most of the file never arrives.
#[derive(Clone)]
pub struct RemoteFile {
    place: Arc<Place>,
    n_bytes: u64,
    begin: Arc<Mutex<Vec<u8>>>,
}

enum Place {
    /// The file is in the cache.
    Local(PathBuf),
    Hub {
        client: Arc<Client>,
        id: String,
        path: String,
        url: String,
    },
}

/// Bytes that are asked for beyond those that are needed: headers are read in small pieces. The header of a GGUF file
/// with 150 thousand tokens has 6 MB.
const AHEAD: u64 = 4 << 20;

impl RemoteFile {
    pub(super) fn local(path: PathBuf, file: &RepoFile) -> RemoteFile {
        RemoteFile { place: Place::Local(path).into(), n_bytes: file.n_bytes, begin: Arc::default() }
    }

    pub(super) fn on_hub(client: Arc<Client>, id: &str, commit: &str, file: &RepoFile) -> RemoteFile {
        let url = client.url(&format!("{id}/resolve/{commit}/{}", encode(&file.path)));
        let place = Place::Hub { client, id: id.into(), path: file.path.clone(), url };
        RemoteFile { place: place.into(), n_bytes: file.n_bytes, begin: Arc::default() }
    }

    /// The size of the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Reads a range of the file's bytes.
    ///
    /// # Errors
    /// The system's, or one around the [`HubError`] that says why the hub gives no more.
    pub fn read(&self, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        if range.end > self.n_bytes || range.start > range.end {
            return Err(Error::new(ErrorKind::UnexpectedEof, format!("it has {} bytes", self.n_bytes)));
        }
        match &*self.place {
            Place::Local(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact(&mut bytes)?;
                Ok(bytes)
            }
            Place::Hub { client, id, path, url } => {
                let mut begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner);
                let have = begin.len() as u64;
                if have < range.end {
                    let end = range.end.max(have + AHEAD).min(self.n_bytes);
                    let more = fetch(client, What { id, file: Some(path) }, url, have..end, self.n_bytes);
                    begin.extend(more.map_err(Error::other)?);
                }
                Ok(begin[range.start as usize..range.end as usize].to_vec())
            }
        }
    }
}

/// Fetches a range of a file of `n_bytes`.
fn fetch(
    client: &Client,
    what: What<'_>,
    url: &str,
    range: Range<u64>,
    n_bytes: u64,
) -> Result<Vec<u8>, HubError> {
    let asked = format!("bytes={}-{}", range.start, range.end - 1);
    client.persist(what, |_| {
        let response = client.get(what, url, Some(&asked))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let passing = |message: String| Trouble::Passing { message, host: client.host(), wait: None };
        let other_range = "the server sends another range than the one asked for";
        let skipped = match response.status().as_u16() {
            206 => match header("content-range").and_then(content_range) {
                Some((from, of)) if from == range.start && of.is_none_or(|of| of == n_bytes) => 0,
                _ => return Err(passing(other_range.into())),
            },
            // The whole file, of which the rest is not read.
            200 => range.start,
            _ => return Err(passing(other_range.into())),
        };
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let broken = |error: Error| passing(error.to_string());
        std::io::copy(&mut body.by_ref().take(skipped), &mut std::io::sink()).map_err(broken)?;
        let mut bytes = Vec::new();
        body.take(range.end - range.start).read_to_end(&mut bytes).map_err(broken)?;
        match bytes.len() as u64 == range.end - range.start {
            true => Ok(bytes),
            false => Err(passing(format!("the connection ended after {} bytes", bytes.len()))),
        }
    })
}
