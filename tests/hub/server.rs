//! A hub on this machine, with the faults that a test asks for: the pages and the small files of repositories on one port,
//! and large files on another, to which the first one redirects.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What a request for a file meets instead of the file.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No fault.
    None,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// After so many bytes of the body nothing more comes for a long time.
    Stall(usize),
    /// A byte of the body is another one.
    Flip,
    /// The whole file, whatever range was asked for.
    Whole,
    /// A range that begins elsewhere.
    OtherRange,
    /// Another status, with a header.
    Status(u16, &'static str),
    /// A length that is not that of the file, and so many bytes.
    Length(usize),
    /// More bytes than the file has, with no length.
    More,
    /// No length: pieces.
    Chunked,
    /// A body that is said to be compressed.
    Gzip,
    /// A redirect to an address.
    Redirect(String),
    /// Nothing at all.
    Close,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whether it came to the server of large files.
    pub is_cdn: bool,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

#[derive(Default)]
struct State {
    /// Repositories by name.
    repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Faults by the end of the path, one for each request; the last one stays if `is_lasting`.
    faults: Vec<(String, VecDeque<Fault>, bool)>,
    asked: Vec<Asked>,
    /// Answers instead of pages, by their path.
    pages: BTreeMap<String, (u16, &'static str, String)>,
    /// Files of a page of a listing.
    page_size: usize,
}

/// The server; it runs until the process ends.
#[derive(Clone)]
pub struct Server {
    pub endpoint: String,
    cdn: String,
    state: Arc<Mutex<State>>,
}

/// After the path of a large file: the request that is redirected, not the one to the server of large files.
pub const ON_HUB: &str = "@hub";

/// Files from this size on are large.
pub const LARGE: usize = 4000;

impl Server {
    pub fn start() -> Server {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (hub, cdn) = (listen(), listen());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let state = State { page_size: 1000, ..State::default() };
        let server = Server { endpoint: url(&hub), cdn: url(&cdn), state: Arc::new(Mutex::new(state)) };
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let server = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    thread::spawn(move || server.serve(stream, is_cdn));
                }
            });
        }
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a repository its files, in place of those that it had.
    pub fn put(&self, id: &str, files: &[(&str, Vec<u8>)]) {
        let files = files.iter().map(|(path, bytes)| (path.to_string(), bytes.clone())).collect();
        self.state().repos.insert(id.into(), files);
    }

    /// The next requests whose path ends in `path` meet these faults, one each.
    pub fn fault(&self, path: &str, faults: &[Fault]) {
        self.state().faults.push((path.into(), faults.iter().cloned().collect(), false));
    }

    /// All requests whose path ends in `path` meet this fault.
    pub fn always(&self, path: &str, fault: Fault) {
        self.state().faults.push((path.into(), VecDeque::from([fault]), true));
    }

    pub fn mend(&self) {
        self.state().faults.clear();
    }

    /// Answers instead of a page: status, a header, the body.
    pub fn page(&self, path: &str, status: u16, header: &'static str, body: &str) {
        self.state().pages.insert(path.into(), (status, header, body.into()));
    }

    pub fn unpage(&self) {
        self.state().pages.clear();
    }

    pub fn page_size(&self, n: usize) {
        self.state().page_size = n;
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    fn serve(&self, stream: TcpStream, is_cdn: bool) {
        let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
        let Some(Ok(first)) = lines.next() else { return };
        let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let is_it = |line: &&String| line.to_ascii_lowercase().starts_with(&format!("{name}:"));
            headers.iter().find(is_it).map(|line| line[name.len() + 1..].trim().to_string())
        };
        let is_head = first.starts_with("HEAD ");
        let target = first.split(' ').nth(1).unwrap_or_default().to_string();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let range = header("range");
        let asked = Asked { is_cdn, path: path.into(), range: range.clone(), token: header("authorization") };
        self.state().asked.push(asked);
        let from = range.and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
        });
        let _ = match is_head {
            true => self.head(stream, path),
            false => self.answer(stream, is_cdn, path, query, from),
        };
    }

    /// What Python's library asks before it downloads a file.
    fn head(&self, mut out: TcpStream, path: &str) -> std::io::Result<()> {
        let parts = path.trim_start_matches('/').split_once("/resolve/");
        let (id, rest) = parts.unwrap_or_default();
        let (commit, file) = rest.split_once('/').unwrap_or_default();
        let bytes = self.state().repos.get(id).and_then(|files| files.get(file).cloned());
        let Some(bytes) = bytes else { return respond(&mut out, 404, &["X-Error-Code: EntryNotFound"], b"") };
        let (hash, n) = (hash(&bytes), bytes.len());
        let head = match n >= LARGE {
            true => format!(
                "302 X\r\nLocation: {}{path}\r\nX-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {n}\r\nContent-Length: 0",
                self.cdn
            ),
            false => format!("200 X\r\nETag: \"{hash}\"\r\nContent-Length: {n}"),
        };
        out.write_all(
            format!("HTTP/1.1 {head}\r\nX-Repo-Commit: {commit}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    }

    fn answer(
        &self,
        mut out: TcpStream,
        is_cdn: bool,
        path: &str,
        query: &str,
        from: Option<(usize, Option<usize>)>,
    ) -> std::io::Result<()> {
        if let Some((status, header, body)) = self.state().pages.get(path).cloned() {
            return respond(&mut out, status, &[header], body.as_bytes());
        }
        if let Some(rest) = path.strip_prefix("/api/models") {
            return self.api(&mut out, rest, query);
        }
        let Some((id, commit_path)) = path.trim_start_matches('/').split_once("/resolve/") else {
            return respond(&mut out, 404, &[], b"");
        };
        let file = commit_path.split_once('/').map_or("", |(_, file)| file);
        let bytes = self.state().repos.get(id).and_then(|files| files.get(file).cloned());
        let Some(bytes) = bytes else {
            return respond(&mut out, 404, &["X-Error-Code: EntryNotFound"], b"");
        };
        let is_large = bytes.len() >= LARGE;
        let fault = if is_large && !is_cdn { self.next(&format!("{path}{ON_HUB}")) } else { self.next(path) };
        match &fault {
            Fault::Redirect(to) => {
                return respond(&mut out, 302, &[&format!("Location: {to}{path}?{query}")], b"");
            }
            Fault::Status(status, header) => return respond(&mut out, *status, &[header], b"no"),
            Fault::Close => return Ok(()),
            _ if is_large && !is_cdn => {
                let location = format!("Location: {}{path}?signature=1%2F2", self.cdn);
                let etag = format!("X-Linked-Etag: \"{}\"", hash(&bytes));
                return respond(&mut out, 302, &[&location, &etag], b"");
            }
            _ => {}
        }
        send_file(&mut out, bytes, from, &fault)
    }

    fn next(&self, path: &str) -> Fault {
        let mut state = self.state();
        let found = state
            .faults
            .iter_mut()
            .find(|(end, faults, _)| path.ends_with(end.as_str()) && !faults.is_empty());
        match found {
            Some((_, faults, true)) => faults.front().cloned().unwrap_or(Fault::None),
            Some((_, faults, false)) => faults.pop_front().unwrap_or(Fault::None),
            None => Fault::None,
        }
    }

    fn api(&self, out: &mut TcpStream, rest: &str, query: &str) -> std::io::Result<()> {
        let state = self.state();
        if rest.is_empty() {
            let search = query.split('&').find_map(|part| part.strip_prefix("search=")).unwrap_or_default();
            let is_like = |id: &&String| id.to_lowercase().contains(&search.to_lowercase());
            let found: Vec<Value> =
                state.repos.keys().filter(is_like).map(|id| json!({ "id": id })).collect();
            return respond(out, 200, &[], Value::from(found).to_string().as_bytes());
        }
        let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
        let [owner, name, what, ..] = parts[..] else { return respond(out, 404, &[], b"") };
        let id = format!("{owner}/{name}");
        let Some(files) = state.repos.get(&id) else {
            return respond(out, 401, &["X-Error-Code: RepoNotFound"], b"{}");
        };
        let commit = commit(files);
        if what == "revision" {
            return respond(out, 200, &[], json!({ "id": id, "sha": commit }).to_string().as_bytes());
        }
        let cursor = query.split('&').find_map(|part| part.strip_prefix("cursor="));
        let from: usize = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
        let folder = json!({ "type": "directory", "oid": "0".repeat(40), "size": 0, "path": "a folder" });
        let page = files.iter().skip(from).take(state.page_size).map(|(path, bytes)| entry(path, bytes));
        let page: Vec<Value> = page.chain([folder]).collect();
        let next = from + state.page_size;
        let link =
            format!("Link: <{}/api/models{rest}?recursive=true&cursor={next}>; rel=\"next\"", self.endpoint);
        let links: Vec<&str> = if next < files.len() { vec![&link] } else { vec![] };
        respond(out, 200, &links, Value::from(page).to_string().as_bytes())
    }
}

/// The commit of a repository with these files.
pub fn commit(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hasher = Sha1::new();
    for (path, bytes) in files {
        hasher.update(path);
        hasher.update(hash(bytes));
    }
    hex(&hasher.finalize())
}

/// A file of a listing, as the hub describes it.
fn entry(path: &str, bytes: &[u8]) -> Value {
    let git = hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize());
    match bytes.len() >= LARGE {
        true => json!({ "type": "file", "path": path, "size": bytes.len(), "oid": "1".repeat(40),
            "lfs": { "oid": hash(bytes), "size": bytes.len(), "pointerSize": 134 }, "xetHash": "2".repeat(64) }),
        false => json!({ "type": "file", "path": path, "size": bytes.len(), "oid": git }),
    }
}

/// The name of a file's blob.
pub fn hash(bytes: &[u8]) -> String {
    match bytes.len() >= LARGE {
        true => hex(&Sha256::digest(bytes)),
        false => {
            hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn respond(out: &mut TcpStream, status: u16, headers: &[&str], body: &[u8]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    headers.iter().filter(|header| !header.is_empty()).for_each(|header| head += &format!("{header}\r\n"));
    out.write_all(format!("{head}\r\n").as_bytes())?;
    out.write_all(body)?;
    out.flush()?;
    // Some bytes may still be on their way: a connection that is closed at once may lose them.
    let _ = out.shutdown(std::net::Shutdown::Write);
    let _ = out.set_read_timeout(Some(Duration::from_millis(200)));
    let _ = out.read(&mut [0; 64]);
    Ok(())
}

fn send_file(
    out: &mut TcpStream,
    mut bytes: Vec<u8>,
    range: Option<(usize, Option<usize>)>,
    fault: &Fault,
) -> std::io::Result<()> {
    let total = bytes.len();
    let (mut from, to) =
        range.map_or((0, total), |(from, to)| (from, to.map_or(total, |to| (to + 1).min(total))));
    match fault {
        Fault::Whole => from = 0,
        Fault::OtherRange => from /= 2,
        Fault::Flip => bytes[total / 2] ^= 1,
        Fault::More => bytes.push(b'x'),
        _ => {}
    }
    let is_range = range.is_some() && !matches!(fault, Fault::Whole);
    if is_range && from >= total {
        return respond(out, 416, &[&format!("Content-Range: bytes */{total}")], b"");
    }
    let to = if matches!(fault, Fault::More) { bytes.len() } else { to };
    let body = &bytes[from..to];
    let mut head = match is_range {
        true => format!("HTTP/1.1 206 X\r\nContent-Range: bytes {from}-{}/{total}\r\n", to - 1),
        false => "HTTP/1.1 200 OK\r\n".to_string(),
    };
    head += "Connection: close\r\n";
    match fault {
        Fault::More => {}
        Fault::Chunked => head += "Transfer-Encoding: chunked\r\n",
        Fault::Length(n) => head += &format!("Content-Length: {n}\r\n"),
        Fault::Gzip => head += &format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", body.len()),
        _ => head += &format!("Content-Length: {}\r\n", body.len()),
    }
    out.write_all(format!("{head}\r\n").as_bytes())?;
    match fault {
        Fault::Cut(n) => out.write_all(&body[..(*n).min(body.len())])?,
        Fault::Stall(n) => {
            out.write_all(&body[..(*n).min(body.len())])?;
            out.flush()?;
            thread::sleep(Duration::from_secs(5));
        }
        Fault::Chunked => {
            for piece in body.chunks(1000) {
                out.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
                out.write_all(piece)?;
                out.write_all(b"\r\n")?;
            }
            out.write_all(b"0\r\n\r\n")?;
        }
        Fault::Length(n) => out.write_all(&body[..(*n).min(body.len())])?,
        _ => out.write_all(body)?,
    }
    out.flush()?;
    let _ = out.shutdown(std::net::Shutdown::Write);
    let _ = out.set_read_timeout(Some(Duration::from_millis(200)));
    let _ = out.read(&mut [0; 64]);
    Ok(())
}
