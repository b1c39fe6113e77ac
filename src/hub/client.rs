//! Requests to the hub: redirects, the token, and what an answer means.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::{HubError, HubOptions};

/// Redirects of one request. The hub has two: to a renamed repository, and to the server of large files.
const MOST_REDIRECTS: usize = 8;
/// Attempts at a file that bring nothing, one after another.
const MOST_ATTEMPTS: u32 = 6;
/// Attempts at a listing: who gave a name that is wrong, or has no network, should not wait long.
const MOST_JSON_ATTEMPTS: u32 = 3;
/// The longest time to wait before another attempt; a server that asks for more is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Variables of the environment that name proxies.
const PROXIES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
/// A page of a listing has at most 1000 files, with some 500 bytes each.
const MOST_JSON: u64 = 16 << 20;

/// A connection to a hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
    backoff: Duration,
}

/// Why one attempt failed.
pub(super) enum Trouble {
    /// Another attempt may succeed, after the time that the server asks for.
    Passing { message: String, host: String, wait: Option<Duration> },
    /// No attempt will.
    Lasting(HubError),
}

impl From<HubError> for Trouble {
    fn from(error: HubError) -> Trouble {
        Trouble::Lasting(error)
    }
}

/// What is fetched of the repository `id`: a file, or the list of files.
#[derive(Clone, Copy)]
pub(super) struct What<'a> {
    pub id: &'a str,
    pub file: Option<&'a str>,
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            Some(file) => write!(f, "`{file}` of `{}`", self.id),
            None => write!(f, "the list of files of `{}`", self.id),
        }
    }
}

impl Client {
    pub fn new(options: &HubOptions) -> Result<Client, HubError> {
        let wrong = || HubError::Endpoint { value: options.endpoint.clone() };
        let endpoint: Uri = options.endpoint.trim_end_matches('/').parse().map_err(|_| wrong())?;
        if !matches!(endpoint.scheme_str(), Some("http" | "https")) || endpoint.host().is_none() {
            return Err(wrong());
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by hand: the token goes to no other server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("wginfer/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout));
        // The system's certificates: a company's proxy has its own.
        #[cfg(feature = "tls")]
        let config = config.tls_config(
            ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build(),
        );
        let token = options.token.clone().filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(HubError::TokenText);
        }
        for variable in PROXIES {
            // One that cannot be read would be ignored silently.
            let value = std::env::var(variable).unwrap_or_default();
            if !value.is_empty() && ureq::Proxy::new(&value).is_err() {
                return Err(HubError::Proxy { variable });
            }
        }
        Ok(Client { agent: config.build().into(), endpoint, token, backoff: options.backoff })
    }

    /// The hub's host, for messages.
    pub fn host(&self) -> String {
        host(&self.endpoint)
    }

    /// The address of a file or a page.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint.to_string().trim_end_matches('/'))
    }

    /// Runs `attempt` until it succeeds, fails for good, or brings nothing several times in a row; it says whether it
    /// brought something.
    pub fn persist<T>(
        &self,
        what: What<'_>,
        mut attempt: impl FnMut(&mut bool) -> Result<T, Trouble>,
    ) -> Result<T, HubError> {
        let mut n_vain = 0;
        loop {
            let mut has_progress = false;
            let (message, host, asked) = match attempt(&mut has_progress) {
                Ok(done) => return Ok(done),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { message, host, wait }) => (message, host, wait),
            };
            n_vain = if has_progress { 1 } else { n_vain + 1 };
            let most = if what.file.is_some() { MOST_ATTEMPTS } else { MOST_JSON_ATTEMPTS };
            if n_vain >= most {
                return Err(HubError::Network { what: what.to_string(), host, message });
            }
            let wait = asked.unwrap_or(self.backoff * 2u32.pow(n_vain - 1));
            if wait > LONGEST_WAIT {
                let message = format!("{message}, and asks to wait for {} s", wait.as_secs());
                return Err(HubError::Network { what: what.to_string(), host, message });
            }
            log::warn!("{what}: {message}: trying again in {:.0} s", wait.as_secs_f64().ceil());
            std::thread::sleep(wait);
        }
    }

    /// Asks for a file or a page, from byte `from` on. The answer is 200 or 206, or 416 if `from` is not 0.
    pub fn get(&self, what: What<'_>, url: &str, range: Option<&str>) -> Result<Response<Body>, Trouble> {
        let mut url = url.parse::<Uri>().map_err(|_| Trouble::Lasting(self.not_an_address(what, url)))?;
        for _ in 0..MOST_REDIRECTS {
            if url.scheme_str() == Some("https") && !cfg!(feature = "tls") {
                return Err(HubError::NoTls { url: url.to_string() }.into());
            }
            let is_hub = is_same_server(&url, &self.endpoint);
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header("range", range);
            }
            let response = request.call().map_err(|error| broken(&url, &error))?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return self.judge(what, &url, response, is_hub, range.is_some());
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| status_error(what, &url, status))?;
            let next =
                join(&url, location).ok_or_else(|| Trouble::from(self.not_an_address(what, location)))?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.not_an_address(what, location).into());
            }
            url = next;
        }
        Err(HubError::Network {
            what: what.to_string(),
            host: self.host(),
            message: format!("more than {MOST_REDIRECTS} redirects"),
        }
        .into())
    }

    /// Fetches a page of JSON, and the address of the next one.
    pub fn json(&self, what: What<'_>, url: &str) -> Result<(Vec<u8>, Option<String>), HubError> {
        self.persist(what, |_| {
            let response = self.get(what, url, None)?;
            let next =
                response.headers().get("link").and_then(|value| value.to_str().ok()).and_then(next_page);
            let next = next.map(str::to_string);
            Ok((text(url, response, MOST_JSON)?, next))
        })
    }

    /// Tells the content from a refusal.
    fn judge(
        &self,
        what: What<'_>,
        url: &Uri,
        response: Response<Body>,
        is_hub: bool,
        is_range: bool,
    ) -> Result<Response<Body>, Trouble> {
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        match status.as_u16() {
            200 | 206 => {
                if let Some(encoding) = header("content-encoding").filter(|encoding| *encoding != "identity")
                {
                    let message = format!("it comes compressed (`{encoding}`), which was not asked for");
                    return Err(Trouble::Passing { message, host: host(url), wait: None });
                }
                Ok(response)
            }
            416 if is_range => Ok(response),
            408 | 425 | 429 | 500..=599 => {
                let wait = header("retry-after").and_then(|value| value.trim().parse().ok());
                Err(Trouble::Passing {
                    message: format!("the server answers {}", status.as_u16()),
                    host: host(url),
                    wait: wait.map(Duration::from_secs),
                })
            }
            // A signature in the address is valid for some minutes only: the hub makes a new one.
            401 | 403 | 404 | 410 if !is_hub => Err(Trouble::Passing {
                message: format!("the server answers {}", status.as_u16()),
                host: host(url),
                wait: None,
            }),
            401 | 403 | 404 => {
                let message = header("x-error-message").map(str::to_string);
                Err(self.refusal(what, status, header("x-error-code"), message).into())
            }
            _ => Err(status_error(what, url, status)),
        }
    }

    /// What the hub's refusal means.
    fn refusal(
        &self,
        what: What<'_>,
        status: StatusCode,
        code: Option<&str>,
        message: Option<String>,
    ) -> HubError {
        let (id, host, has_token) = (what.id.to_string(), self.host(), self.token.is_some());
        match (code, status.as_u16()) {
            (Some("GatedRepo"), _) => HubError::Gated { page: self.url(&id), id, has_token, message },
            (Some("RepoNotFound"), _) => HubError::NotFound { id, host, has_token, alike: Vec::new() },
            (None, 404) if what.file.is_none() => {
                HubError::NotFound { id, host, has_token, alike: Vec::new() }
            }
            (_, 401) if has_token => HubError::Token { host },
            (_, 401) => HubError::NotFound { id, host, has_token, alike: Vec::new() },
            (_, status) => HubError::Status { what: what.to_string(), host, status, message },
        }
    }

    fn not_an_address(&self, what: What<'_>, url: &str) -> HubError {
        let message = format!("it sends to `{url}`");
        HubError::Network { what: what.to_string(), host: self.host(), message }
    }
}

/// Reads the body of an answer, of at most `limit` bytes.
fn text(url: &str, response: Response<Body>, limit: u64) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    let mut body = response.into_body().into_with_config().limit(limit).reader();
    let uri = url.parse::<Uri>().unwrap_or_default();
    match body.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Trouble::Passing { message: error.to_string(), host: host(&uri), wait: None }),
    }
}

/// A connection that cannot be made or ends.
fn broken(url: &Uri, error: &ureq::Error) -> Trouble {
    let message = match error {
        ureq::Error::HostNotFound => "the host is not found".to_string(),
        ureq::Error::Timeout(_) => "no answer in time".to_string(),
        error => error.to_string(),
    };
    Trouble::Passing { message, host: host(url), wait: None }
}

fn status_error(what: What<'_>, url: &Uri, status: StatusCode) -> Trouble {
    HubError::Status { what: what.to_string(), host: host(url), status: status.as_u16(), message: None }
        .into()
}

/// Host and port; a name and password before them are not for messages.
fn host(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    authority.rsplit('@').next().unwrap_or_default().to_string()
}

fn is_same_server(a: &Uri, b: &Uri) -> bool {
    (a.scheme(), a.authority()) == (b.scheme(), b.authority())
}

/// The address that a redirect names (RFC 3986, section 4.2): a whole one, or one that begins at the host or at the root
/// of the one that was asked.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = location.split("://").next().unwrap_or_default().to_ascii_lowercase();
    if matches!(scheme.as_str(), "http" | "https") && location.len() > scheme.len() {
        return format!("{scheme}{}", &location[scheme.len()..]).parse().ok();
    }
    match location.strip_prefix("//") {
        Some(rest) => format!("{}://{rest}", base.scheme_str()?).parse().ok(),
        None if location.starts_with('/') => {
            format!("{}://{}{location}", base.scheme_str()?, base.authority()?).parse().ok()
        }
        None => None,
    }
}

/// The address with `rel="next"` in a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<&str> {
    // An address may have commas.
    link.split('<').skip(1).find_map(|part| {
        let (url, rest) = part.split_once('>')?;
        let is_next = |parameter: &str| matches!(parameter.trim(), "rel=\"next\"" | "rel=next");
        rest.split([';', ',']).any(is_next).then_some(url)
    })
}

/// `path` with the characters that an address cannot have percent-encoded (RFC 3986, section 2.1).
pub(super) fn encode(path: &str) -> String {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/');
    let piece = |byte: u8| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    path.bytes().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let base: Uri = "https://hub.example:8443/a/b?x=1".parse().expect("an address");
        let cases = [
            ("https://cdn.example/f?sig=%2F", Some("https://cdn.example/f?sig=%2F")),
            ("/c/d?y=2", Some("https://hub.example:8443/c/d?y=2")),
            ("//cdn.example/f", Some("https://cdn.example/f")),
            ("HTTPS://cdn.example/f", Some("https://cdn.example/f")),
            ("f", None),
            ("ftp://cdn.example/f", None),
        ];
        for (location, expected) in cases {
            assert_eq!(join(&base, location).map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        }
        assert_eq!(encode("a b/ü#?.gguf"), "a%20b/%C3%BC%23%3F.gguf");
        assert_eq!(next_page(r#"<https://h/x?cursor=1>; rel="next""#), Some("https://h/x?cursor=1"));
        assert_eq!(next_page(r#"<https://h/x>; rel="prev", <https://h/y>; rel="next""#), Some("https://h/y"));
        assert_eq!(next_page(r#"<https://h/x?cursor=a,b>; rel=next"#), Some("https://h/x?cursor=a,b"));
        assert_eq!(next_page(r#"<https://h/x>; rel="prev""#), None);
    }
}
