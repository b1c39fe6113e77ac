//! Where models come from and are kept, as the environment says.

use std::path::PathBuf;
use std::time::Duration;

use super::HubError;

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
