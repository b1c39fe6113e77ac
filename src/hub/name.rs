//! Names of models on the hub.

use std::fmt;

/// A model on the hub: `owner/name`, with a choice among its GGUF files if it has several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// The account.
    pub owner: String,
    /// The repository.
    pub name: String,
    /// What follows the colon: a quantised type, `Q4_K_M`, or the name of a file.
    pub pick: Option<String>,
}

/// Hosts that may stand before a name, as people copy it from a browser.
const HOSTS: [&str; 3] = ["huggingface.co/", "hf.co/", "www.huggingface.co/"];

impl HubName {
    /// Parses `owner/name`, `owner/name:QUANT`, `owner/name:FILE.gguf`, `hf.co/owner/name`, or the address of a
    /// repository or of a file in it, `https://huggingface.co/owner/name/blob/main/FILE.gguf`. `None` if `text` has
    /// none of these forms.
    pub fn parse(text: &str) -> Option<HubName> {
        // Schemes and hosts have no case.
        let cut = |text: &'_ str, prefix: &str| -> Option<usize> {
            text.get(..prefix.len()).filter(|begin| begin.eq_ignore_ascii_case(prefix)).map(|_| prefix.len())
        };
        let text = text.trim();
        let scheme = cut(text, "https://").or_else(|| cut(text, "http://"));
        let rest = &text[scheme.unwrap_or(0)..];
        let host = HOSTS.iter().find_map(|host| cut(rest, host));
        if scheme.is_some() && host.is_none() {
            return None;
        }
        let (rest, on_host) = (&rest[host.unwrap_or(0)..], host);
        let (rest, query) = match on_host.and_then(|_| rest.split_once(['?', '#'])) {
            Some((rest, query)) => (rest, query),
            None => (rest, ""),
        };
        let (id, pick) = match rest.split_once(':') {
            Some((id, pick)) => (id, Some(pick)),
            None => (rest, None),
        };
        let mut parts = id.trim_end_matches('/').splitn(3, '/');
        let (owner, name, path) = (parts.next()?, parts.next()?, parts.next());
        let pick = match (path, pick) {
            // The page of a repository with a file of it opened.
            (None, None) => query.split('&').find_map(|part| part.strip_prefix("show_file_info=")),
            (None, pick) => pick,
            // The pages of a browser.
            (Some("tree/main"), None) if on_host.is_some() => None,
            (Some(path), None) if on_host.is_some() => {
                Some(path.strip_prefix("blob/main/").or_else(|| path.strip_prefix("resolve/main/"))?)
            }
            _ => return None,
        };
        let is_valid = is_part(owner) && is_part(name) && pick.is_none_or(|pick| !pick.is_empty());
        is_valid.then(|| HubName { owner: owner.into(), name: name.into(), pick: pick.map(str::to_string) })
    }

    /// `owner/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        self.pick.iter().try_for_each(|pick| write!(f, ":{pick}"))
    }
}

/// Whether `part` can be the name of an account or of a repository: the hub's own rules. They keep a name one folder,
/// with `--` between its parts.
fn is_part(part: &str) -> bool {
    let is_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.len() <= 96
        && part.chars().all(is_char)
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::HubName;

    #[test]
    fn names() {
        let cases = [
            ("Qwen/Qwen3-4B-GGUF", Some("Qwen/Qwen3-4B-GGUF")),
            ("Qwen/Qwen3-4B-GGUF:Q4_K_M", Some("Qwen/Qwen3-4B-GGUF:Q4_K_M")),
            ("a/b:sub/m-Q8_0.gguf", Some("a/b:sub/m-Q8_0.gguf")),
            ("hf.co/a/b", Some("a/b")),
            ("hf.co/a/b:q8_0", Some("a/b:q8_0")),
            ("https://huggingface.co/a/b/", Some("a/b")),
            ("https://huggingface.co/a/b/tree/main", Some("a/b")),
            ("https://huggingface.co/a/b/blob/main/x-Q4_0.gguf?download=true", Some("a/b:x-Q4_0.gguf")),
            ("https://huggingface.co/a/b/resolve/main/x.gguf", Some("a/b:x.gguf")),
            ("HTTPS://HuggingFace.co/a/b?library=x", Some("a/b")),
            ("https://huggingface.co/a/b?show_file_info=x-Q4_0.gguf", Some("a/b:x-Q4_0.gguf")),
            (" a/b", Some("a/b")),
            ("https://example.com/a/b", None),
            ("https://huggingface.co/a/b/discussions/1", None),
            ("a/b/c", None),
            ("a", None),
            ("a/", None),
            ("/b", None),
            ("./b", None),
            ("../b", None),
            ("~/b", None),
            ("a/..", None),
            ("a\\b/c", None),
            ("C:/models", None),
            ("a/b:", None),
            ("a/b c", None),
            ("a--b/c", None),
            ("a/é", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let found = HubName::parse(text).map(|name| name.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
