//! The error of finding and downloading a model.

use std::path::PathBuf;

/// Why a model of the hub is not here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The hub has no such repository, or it is private.
    #[error("there is no model `{id}` on {host}, or it is private")]
    NotFound {
        /// `owner/name`.
        id: String,
        /// The hub.
        host: String,
        /// Whether a token was sent.
        has_token: bool,
        /// Models with a similar name.
        alike: Vec<String>,
    },
    /// The owner lets only those have the files who accepted its terms.
    #[error("`{id}` is gated: {}{}", match has_token {
        true => "the account of the token has no access",
        false => "no token was given",
    }, message.as_ref().map_or(String::new(), |message| format!(" ({message})")))]
    Gated {
        /// `owner/name`.
        id: String,
        /// The page with its terms.
        page: String,
        /// Whether a token was sent.
        has_token: bool,
        /// The hub's own words.
        message: Option<String>,
    },
    /// The token is not valid.
    #[error("{host} refuses the token")]
    Token {
        /// The hub.
        host: String,
    },
    /// The token has characters that none has.
    #[error("the token for the hub has characters other than letters, digits and signs")]
    TokenText,
    /// The address of a proxy is not one.
    #[error("`{variable}` is not the address of a proxy")]
    Proxy {
        /// The variable of the environment.
        variable: &'static str,
    },
    /// Another process downloads the model.
    #[error("`{name}` is being downloaded by another process")]
    Busy {
        /// The model.
        name: String,
    },
    /// None of the repository's files has this type or name.
    #[error("`{id}` has no GGUF file `{pick}`{}", listed(found))]
    NoTag {
        /// `owner/name`.
        id: String,
        /// What was asked for.
        pick: String,
        /// The GGUF files that are there.
        found: Vec<String>,
        /// Whether there are weights in safetensors.
        has_folder: bool,
    },
    /// The repository has no model in a supported container.
    #[error("`{id}` has neither `config.json` with `model.safetensors` nor a GGUF file{}", listed(found))]
    NoModel {
        /// `owner/name`.
        id: String,
        /// The files that are there.
        found: Vec<String>,
    },
    /// The hub's answer about a repository makes no sense.
    #[error("the hub's listing of `{id}`: {message}")]
    Listing {
        /// `owner/name`.
        id: String,
        /// What is wrong.
        message: String,
    },
    /// Nothing may be downloaded, and the model is not complete in the cache.
    #[error("`{name}` is not in the cache, and `HF_HUB_OFFLINE` is set")]
    Offline {
        /// The model.
        name: String,
    },
    /// The model is not in the cache.
    #[error("`{name}` is not in the cache `{}`", dir.display())]
    NotCached {
        /// The model.
        name: String,
        /// The cache.
        dir: PathBuf,
    },
    /// The hub does not answer, or stops answering.
    #[error("{what} cannot be fetched from {host}: {message}")]
    Network {
        /// The file or the list of files, and the repository.
        what: String,
        /// The host.
        host: String,
        /// What the last attempt met.
        message: String,
    },
    /// An answer that is neither the content nor a known refusal.
    #[error("{what} cannot be fetched from {host}: it answers {status}{}",
        message.as_ref().map_or(String::new(), |message| format!(" ({message})")))]
    Status {
        /// The file or the list of files, and the repository.
        what: String,
        /// The host.
        host: String,
        /// The status of HTTP.
        status: u16,
        /// The hub's own words.
        message: Option<String>,
    },
    /// The content is not what the listing says.
    #[error("`{file}` is damaged on its way: its hash is {found}, expected {expected}")]
    Corrupt {
        /// The file.
        file: String,
        /// The hash in the listing.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// The disk has not enough space.
    #[error("`{}` has {} free, and {} are needed", dir.display(), gigabytes(*free_bytes), gigabytes(*needed_bytes))]
    NoSpace {
        /// The cache.
        dir: PathBuf,
        /// Bytes still to be downloaded.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// A file or folder of the cache cannot be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's message.
        source: std::io::Error,
    },
    /// There is no home folder to keep a cache in.
    #[error("there is no folder for the cache: neither `HF_HUB_CACHE`, `HF_HOME` nor a home folder is set")]
    NoCache,
    /// `HF_ENDPOINT` is not an address.
    #[error("`HF_ENDPOINT` is `{value}`, expected an address that begins with `http://` or `https://`")]
    Endpoint {
        /// Its value.
        value: String,
    },
    /// This build has no encryption.
    #[error("`{url}` needs TLS, and this build has none")]
    NoTls {
        /// The address.
        url: String,
    },
}

impl HubError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use HubError::*;
        match self {
            NotFound { alike, .. } if !alike.is_empty() => {
                let names: Vec<String> = alike.iter().map(|name| format!("`{name}`")).collect();
                Some(format!("there are {}", names.join(", ")))
            }
            NotFound { has_token: false, .. } => {
                Some("a private model needs a token with access: set `HF_TOKEN`".into())
            }
            Gated { page, has_token: true, .. } => Some(format!("accept its terms at {page}")),
            Gated { page, has_token: false, .. } => {
                Some(format!("accept its terms at {page}, then set `HF_TOKEN` to a token of your account"))
            }
            Token { .. } | TokenText => {
                Some("make a new one at https://huggingface.co/settings/tokens, or unset `HF_TOKEN`".into())
            }
            NoTag { found, .. } if !found.is_empty() => {
                Some("give one of these types or names after the colon".into())
            }
            NoTag { id, has_folder: true, .. } => {
                Some(format!("it has weights in safetensors: give `{id}`, and a type to quantise to at load"))
            }
            NoModel { .. } => Some(
                "a repository with weights in safetensors or GGUF is needed: many models have one whose name ends in \
                 `-GGUF`"
                    .into(),
            ),
            Offline { .. } => Some("unset `HF_HUB_OFFLINE` to download it".into()),
            Network { .. } => {
                Some("the same command goes on from what has arrived; proxies are read from `HTTPS_PROXY`".into())
            }
            Corrupt { .. } => Some("nothing of it was kept: try again, without a proxy if there is one".into()),
            NoSpace { .. } => Some("`Hub::remove` frees space, and `HF_HOME` names another place for the cache".into()),
            Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("what has arrived is kept: free some space and run the same command again".into())
            }
            NoTls { .. } => Some("build with the feature `tls`".into()),
            _ => None,
        }
    }
}

fn gigabytes(n_bytes: u64) -> String {
    format!("{:.2} GB", n_bytes as f64 / 1e9)
}

/// The first names of files, after a colon.
fn listed(found: &[String]) -> String {
    const MOST: usize = 24;
    let names: Vec<String> = found.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    match found.len() {
        0 => String::new(),
        n => format!(
            ": there {} {}{}",
            if n == 1 { "is" } else { "are" },
            names.join(", "),
            if n > MOST { ", …" } else { "" }
        ),
    }
}
