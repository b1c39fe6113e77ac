//! `wginfer serve` as programs see it: over connections, in the binary.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A running server.
struct Server {
    child: Child,
    address: String,
    log: Option<BufReader<std::process::ChildStderr>>,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wginfer"));
        command.args(["serve", "--port", "0"]).args(args).current_dir(ROOT);
        command.env_remove("WGINFER_MODEL").env_remove("WGINFER_API_KEY");
        command.env("WGINFER_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server =
            Server { child: command.spawn().expect("it starts"), address: String::new(), log: None };
        let mut log = BufReader::new(server.child.stderr.take().expect("a pipe"));
        let mut lines = String::new();
        while server.address.is_empty() {
            let mut line = String::new();
            assert!(log.read_line(&mut line).expect("UTF-8") > 0, "it ended: {lines}");
            lines += &line;
            if let Some((_, address)) = line.split_once(" on http://") {
                server.address = address.trim().to_string();
            }
        }
        server.log = Some(log);
        while server.get("/health").status != 200 {
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it accepts connections");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time-out");
        stream
    }

    /// Sends a request, and returns the connection.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if headers.iter().all(|(name, _)| *name != "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("it reads");
        // A body that is too large may be refused before its end.
        let _ = stream.write_all(body);
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Answer::read(self.send(method, path, headers, body))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], body.to_string().as_bytes())
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    }

    /// The greedy answer to a story's beginning.
    fn story(&self, prompt: &str, n: usize) -> String {
        let body = json!({ "prompt": prompt, "max_tokens": n, "temperature": 0 });
        self.post("/v1/completions", &body).ok()["choices"][0]["text"].as_str().expect("a text").to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer, whole.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        // A connection may be reset after a refusal.
        let _ = stream.read_to_end(&mut bytes);
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no head in {:?}", String::from_utf8_lossy(&bytes));
        });
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut rest = &bytes[at + 4..];
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
                let size = std::str::from_utf8(&rest[..end]).expect("a size");
                let size = usize::from_str_radix(size, 16).expect("a size");
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&rest[end + 2..][..size]);
                rest = &rest[end + 2 + size + 2..];
            }
        } else {
            body.extend_from_slice(rest);
        }
        Answer { status, head, body: String::from_utf8(body).expect("UTF-8") }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body of a good answer.
    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// The events of a stream, without the mark at its end.
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let mut events: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let json =
            |event: &&str| event.strip_prefix("data: ").map(|data| serde_json::from_str(data).expect("JSON"));
        events.iter().filter_map(json).collect()
    }

    /// Checks an error.
    #[track_caller]
    fn refused(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(part), "{message}");
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some());
        assert!(!self.body.contains(ROOT), "no path of the machine: {message}");
    }
}

/// A server with a model of each kind, which tests that run at the same time share.
fn shared() -> Option<Arc<Server>> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    common::gpu()?;
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = server.upgrade() {
        return Some(server);
    }
    let models = ["demo", "whisper-words"].map(|name| format!("assets/{name}"));
    let more = ["bert-reranker", "qwen3-embedding"].map(|name| format!("tests/golden/{name}"));
    let args: Vec<&str> = models.iter().chain(&more).flat_map(|model| ["-m", model]).collect();
    let new = Arc::new(Server::start(&args));
    *server = Arc::downgrade(&new);
    Some(new)
}

/// The demonstration model with other options.
fn demo(args: &[&str]) -> Option<Server> {
    common::gpu()?;
    Some(Server::start(args))
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

#[test]
fn a_stream_has_the_text_of_the_whole_answer() {
    let Some(server) = shared() else { return };
    for (n, extra) in [
        (1, json!({})),
        (2, json!({ "logprobs": true, "top_logprobs": 2 })),
        (1, json!({ "stop": [" the"] })),
    ] {
        let mut body = json!({
            "messages": user("Tell me a story about Mia."), "max_tokens": 24, "seed": 3, "temperature": 0.8, "n": n,
        });
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let whole = server.post("/v1/chat/completions", &body).ok();
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let events = server.post("/v1/chat/completions", &body).events();
        assert_eq!(whole["object"], "chat.completion");
        for i in 0..n {
            let of: Vec<&Value> =
                events.iter().filter_map(|e| e["choices"].get(0)).filter(|c| c["index"] == i).collect();
            let choice = &whole["choices"][i];
            let text: String = of.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
            assert_eq!(choice["message"]["content"], text.as_str());
            assert!(!text.is_empty() && !text.contains('\u{fffd}'));
            assert_eq!(of[0]["delta"], json!({ "role": "assistant", "content": "" }));
            let last = of.last().expect("a chunk");
            assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &choice["finish_reason"]));
            assert!(of[..of.len() - 1].iter().all(|c| c["finish_reason"].is_null()));
            let logprobs: Vec<Value> =
                of.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().cloned().collect();
            match whole["choices"][i]["logprobs"]["content"].as_array() {
                Some(all) => {
                    assert_eq!(*all, logprobs);
                    assert!(
                        all.len() > 10
                            && all.iter().all(|p| p["top_logprobs"].as_array().is_some_and(|t| t.len() == 2))
                    );
                    let tokens: String = all.iter().filter_map(|p| p["token"].as_str()).collect();
                    assert!(tokens.starts_with(&text), "{tokens:?} has {text:?}");
                }
                None => assert!(logprobs.is_empty()),
            }
        }
        let last = events.last().expect("an event");
        assert_eq!(last["choices"], json!([]));
        for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(last["usage"][field], whole["usage"][field], "{field}");
        }
        assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
        let id = &events[0]["id"];
        assert!(events.iter().all(|event| event["id"] == *id && event["object"] == "chat.completion.chunk"));
    }
}

#[test]
fn completions_go_on() {
    let Some(server) = shared() else { return };
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "logprobs": 1 });
    let whole = server.post("/v1/completions", &body).ok();
    let text = whole["choices"][0]["text"].as_str().expect("a text");
    assert!(text.starts_with(','), "{text:?}");
    let lists = &whole["choices"][0]["logprobs"];
    let tokens: String =
        lists["tokens"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(tokens, text);
    assert_eq!(lists["text_offset"].as_array().map(Vec::len), Some(12));
    // Several prompts, as texts and as ids, with the prompt before the answer.
    let ids = server
        .post("/tokenize", &json!({ "model": "demo", "content": "Once upon a time", "add_special": true }))
        .ok();
    let body = json!({ "prompt": [ids["tokens"]], "max_tokens": 12, "temperature": 0, "echo": true });
    let echoed = server.post("/v1/completions", &body).ok();
    assert_eq!(echoed["choices"][0]["text"], format!("Once upon a time{text}"));
    let body = json!({ "prompt": ["Once upon a time", "Mia"], "max_tokens": 12, "temperature": 0, "n": 2, "stream": true });
    let events = server.post("/v1/completions", &body).events();
    for i in 0..4 {
        let of = events.iter().filter(|event| event["choices"][0]["index"] == i);
        let streamed: String = of.filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        if i < 2 {
            assert_eq!(streamed, text);
        }
        assert!(!streamed.is_empty());
    }
}

/// A row's bits do not depend on the batch, through HTTP too.
#[test]
fn an_answer_is_the_same_among_others() {
    let Some(server) = demo(&["--parallel", "32"]) else { return };
    let prompt =
        |i: usize| format!("Once upon a time, there was a {}", ["dog", "cat", "girl", "boy", "bird"][i % 5]);
    let alone: Vec<String> = (0..5).map(|i| server.story(&prompt(i), 40)).collect();
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for i in 0..32 {
            let (server, results, prompt) = (&server, &results, prompt(i));
            scope.spawn(move || {
                let text = server.story(&prompt, 40);
                results.lock().expect("no panic").push((i % 5, text));
            });
        }
    });
    for (i, text) in results.into_inner().expect("no panic") {
        assert_eq!(text, alone[i]);
    }
}

#[test]
fn a_conversation_goes_on_in_the_cache() {
    let Some(server) = demo(&[]) else { return };
    let mut messages =
        vec![json!({ "role": "user", "content": "Tell me a story about Mia and a red ball, please." })];
    let mut last_total = 0;
    for turn in 0..3 {
        let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 40 });
        let answer = server.post("/v1/chat/completions", &body).ok();
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
        if turn > 0 {
            // Whole pages are shared, so up to a page and the tokens of the turn's end are computed again.
            assert!(cached + 32 >= last_total, "{cached} of {last_total} in turn {turn}");
        }
        last_total = usage["total_tokens"].as_u64().expect("a number");
        messages.push(answer["choices"][0]["message"].clone());
        messages.push(json!({ "role": "user", "content": "What happened then?" }));
    }
}

#[test]
fn embeddings_and_rankings() {
    let Some(server) = shared() else { return };
    let texts = json!(["a red ball", "a bridge"]);
    let floats = server.post("/v1/embeddings", &json!({ "input": texts, "model": "qwen3-embedding" })).ok();
    let coded = json!({ "input": texts, "model": "qwen3-embedding", "encoding_format": "base64" });
    let coded = server.post("/v1/embeddings", &coded).ok();
    for i in 0..2 {
        let values: Vec<f32> =
            serde_json::from_value(floats["data"][i]["embedding"].clone()).expect("numbers");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(coded["data"][i]["embedding"], base64(&bytes));
        let length: f32 = values.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
        // Fewer dimensions are of length one, too.
        let body = json!({ "input": [texts[i]], "model": "qwen3-embedding", "dimensions": 8 });
        let short = server.post("/v1/embeddings", &body).ok();
        let short: Vec<f32> = serde_json::from_value(short["data"][0]["embedding"].clone()).expect("numbers");
        let length: f32 = short.iter().map(|x| x * x).sum();
        assert!(short.len() == 8 && (length - 1.0).abs() < 1e-4, "{short:?}");
        assert!((short[0] / short[1] - values[0] / values[1]).abs() < 1e-3);
    }
    // A model that does nothing else goes before one that also ranks.
    assert_eq!(server.post("/v1/embeddings", &json!({ "input": "a" })).ok()["model"], "qwen3-embedding");
    let body = json!({ "query": "a ball", "documents": ["a bridge", { "text": "a red ball" }, "a dog"], "top_n": 2, "return_documents": true });
    let ranked = server.post("/v1/rerank", &body).ok();
    let results = ranked["results"].as_array().expect("a list");
    assert!(
        results.len() == 2
            && results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64()
    );
    for result in results {
        let index = result["index"].as_u64().expect("a number") as usize;
        assert_eq!(result["document"]["text"], ["a bridge", "a red ball", "a dog"][index]);
    }
}

fn base64(bytes: &[u8]) -> String {
    const CHARS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let word =
            part.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for i in 0..4 {
            let is_padding = i > part.len();
            out.push(if is_padding { '=' } else { CHARS[(word >> (18 - 6 * i) & 63) as usize] as char });
        }
    }
    out
}

/// A form with a recording.
fn form(fields: &[(&str, &str)], file: &[u8]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, value) in fields {
        let head = format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend(head.into_bytes());
    }
    let head = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.flac\"\r\nContent-Type: audio/flac\r\n\r\n";
    body.extend(head.as_bytes());
    body.extend(file);
    body.extend(b"\r\n--XX--\r\n");
    ("multipart/form-data; boundary=XX".to_string(), body)
}

#[test]
fn recordings() {
    let Some(server) = shared() else { return };
    let file = std::fs::read(Path::new(ROOT).join("assets/whisper-words/en.flac")).expect("a recording");
    let ask = |fields: &[(&str, &str)]| {
        let (kind, body) = form(fields, &file);
        server.ask("POST", "/v1/audio/transcriptions", &[("Content-Type", &kind)], &body)
    };
    let text = "One two three. Four five. Green apple moon.";
    assert_eq!(ask(&[]).ok()["text"], text);
    assert_eq!(ask(&[("response_format", "text")]).body.trim(), text);
    assert!(
        ask(&[("response_format", "srt")])
            .body
            .starts_with("1\n00:00:00,500 --> 00:00:01,720\nOne two three.\n")
    );
    assert!(ask(&[("response_format", "vtt")]).body.starts_with("WEBVTT\n\n00:00.500 --> 00:01.720\n"));
    let verbose = ask(&[("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]).ok();
    assert!(
        verbose["words"].as_array().is_some_and(|words| words.len() == 8)
            && verbose.get("segments").is_none()
    );
    let verbose = ask(&[("response_format", "verbose_json"), ("language", "en")]).ok();
    assert!(verbose["segments"].as_array().is_some_and(|s| s.len() == 3) && verbose["duration"] == 7.0);
    let events = ask(&[("stream", "true")]).events();
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!((deltas.as_str(), &events.last().expect("an event")["text"]), (text, &text.into()));
    // Several at once wait for each other.
    thread::scope(|scope| {
        let all: Vec<_> = (0..5).map(|_| scope.spawn(|| ask(&[]).ok()["text"].clone())).collect();
        all.into_iter().for_each(|one| assert_eq!(one.join().expect("an answer"), text));
    });
    ask(&[("response_format", "html")]).refused(400, "`html`");
    ask(&[("language", "tlh")]).refused(400, "`tlh`");
    ask(&[("temperature", "warm")]).refused(400, "`warm`");
    let (kind, body) = form(&[], b"no recording");
    server
        .ask("POST", "/v1/audio/transcriptions", &[("Content-Type", &kind)], &body)
        .refused(400, "recording");
    let (kind, body) = ("multipart/form-data; boundary=XX", b"--XX--\r\n");
    server.ask("POST", "/v1/audio/transcriptions", &[("Content-Type", kind)], body).refused(400, "`file`");
}

#[test]
fn wrong_requests_are_refused_with_a_reason() {
    let Some(server) = shared() else { return };
    let long = "a cat sat on a mat. ".repeat(400);
    let chat = [
        (json!({ "messages": [] }), 400, "`messages`"),
        (json!({}), 400, "messages"),
        (json!([]), 400, "not valid"),
        (json!({ "messages": [{ "content": "a" }] }), 400, "no role"),
        (json!({ "messages": [{ "role": "wizard", "content": "a" }] }), 400, "`wizard`"),
        (json!({ "messages": [{ "role": "user" }] }), 400, "no content"),
        (json!({ "messages": [{ "role": "user", "content": 3 }] }), 400, "neither text"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            400,
            "`image_url`",
        ),
        (json!({ "messages": user("a"), "model": "gpt-9" }), 404, "`gpt-9`"),
        (json!({ "messages": user("a"), "model": "whisper-words" }), 400, "cannot generate"),
        (json!({ "messages": user("a"), "temperature": -1 }), 400, "temperature"),
        (json!({ "messages": user("a"), "top_p": 2 }), 400, "top_p"),
        (json!({ "messages": user("a"), "n": 0 }), 400, "`n`"),
        (json!({ "messages": user("a"), "n": 1_000_000 }), 400, "`n`"),
        (json!({ "messages": user("a"), "max_tokens": 0 }), 400, "`max_tokens`"),
        (json!({ "messages": user("a"), "max_completion_tokens": -5 }), 400, "`max_completion_tokens`"),
        (json!({ "messages": user("a"), "top_logprobs": 3 }), 400, "`logprobs`"),
        (json!({ "messages": user("a"), "logprobs": true, "top_logprobs": 21 }), 400, "21"),
        (json!({ "messages": user("a"), "logit_bias": { "x": 1 } }), 400, "`x`"),
        (json!({ "messages": user("a"), "logit_bias": { "999999": 1 } }), 400, "999999"),
        (json!({ "messages": user("a"), "tools": [{}] }), 400, "`tools[0]`"),
        (
            json!({ "messages": user("a"), "response_format": { "type": "json_object" } }),
            400,
            "`json_object`",
        ),
        (json!({ "messages": user(&long) }), 400, "1024"),
        (json!({ "messages": user(&long), "stream": true }), 400, "1024"),
    ];
    for (body, status, part) in chat {
        server.post("/v1/chat/completions", &body).refused(status, part);
    }
    let too_long = server.post("/v1/chat/completions", &json!({ "messages": user(&long) }));
    assert_eq!(too_long.json()["error"]["code"], "context_length_exceeded");
    for (path, body, status, part) in [
        ("/v1/completions", json!({ "prompt": [] }), 400, "`prompt`"),
        ("/v1/completions", json!({ "prompt": [[]] }), 400, "empty"),
        ("/v1/completions", json!({ "prompt": [999_999] }), 400, "999999"),
        ("/v1/completions", json!({ "prompt": "a", "suffix": "b" }), 400, "`suffix`"),
        ("/v1/embeddings", json!({ "input": [] }), 400, "`input`"),
        ("/v1/embeddings", json!({ "input": "" }), 400, "empty"),
        ("/v1/embeddings", json!({ "input": [[999_999]] }), 400, "999999"),
        ("/v1/embeddings", json!({ "input": "a", "dimensions": 100_000 }), 400, "`dimensions`"),
        ("/v1/embeddings", json!({ "input": "a", "encoding_format": "hex" }), 400, "`hex`"),
        ("/v1/embeddings", json!({ "input": "a", "model": "demo" }), 400, "cannot embed"),
        ("/v1/rerank", json!({ "query": " ", "documents": ["a"] }), 400, "`query`"),
        ("/v1/rerank", json!({ "query": "a", "documents": [] }), 400, "`documents`"),
        ("/detokenize", json!({ "model": "demo", "tokens": [999_999] }), 400, "999999"),
        ("/v1/nothing", json!({}), 404, "nothing"),
        ("/v1/models", json!({}), 405, "methods"),
    ] {
        server.post(path, &body).refused(status, part);
    }
    server.ask("POST", "/v1/chat/completions", &[], b"{").refused(400, "not valid");
    server.ask("POST", "/v1/chat/completions", &[], b"\xff\xfe").refused(400, "not valid");
    server.ask("POST", "/v1/completions", &[], &vec![b' '; 17 << 20]).refused(413, "body");
    server.get("/v1/models/none").refused(404, "`none`");
    assert_eq!(server.get("/v1/models/demo").ok()["meta"]["n_ctx"], 1024);
    // It still answers.
    assert_eq!(server.get("/health").ok()["status"], "ok");
}

#[test]
fn messages_of_every_kind_reach_the_template() {
    let Some(server) = shared() else { return };
    let body = json!({ "messages": [
        { "role": "developer", "content": "Be kind." },
        { "role": "user", "content": [{ "type": "text", "text": "One." }, { "type": "text", "text": "Two." }] },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "a", "type": "function",
            "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "a", "content": "3" },
        { "role": "user", "content": "Und, 東京? 👍" },
    ] });
    let prompt = server.post("/apply-template", &body).ok();
    let prompt = prompt["prompt"].as_str().expect("a text");
    for part in ["system\nBe kind.", "user\nOne.\nTwo.", "user\nUnd, 東京? 👍"] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
}

#[test]
fn a_client_that_goes_away_is_cancelled() {
    let Some(server) = demo(&["--parallel", "2"]) else { return };
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 900, "stream": true, "logit_bias": { "0": -100.0 } });
    let whole = json!({ "prompt": "Once upon a time", "max_tokens": 900 });
    // Streams that are running, streams that wait, and an answer that is not streamed.
    let mut open: Vec<TcpStream> =
        (0..5).map(|_| server.send("POST", "/v1/completions", &[], body.to_string().as_bytes())).collect();
    open.push(server.send("POST", "/v1/completions", &[], whole.to_string().as_bytes()));
    let mut byte = [0];
    open[0].read_exact(&mut byte).expect("it begins");
    let begin = Instant::now();
    while server.metric("wginfer_open_requests") < 1.0 {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    drop(open);
    let begin = Instant::now();
    while server.metric("wginfer_open_requests") > 0.0 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{} are open",
            server.metric("wginfer_open_requests")
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert!(!server.story("Mia", 4).is_empty());
}

#[test]
fn too_many_requests_are_sent_away() {
    let Some(server) = demo(&["--max-queue", "2", "--parallel", "1"]) else { return };
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 900 }).to_string();
    let open: Vec<TcpStream> =
        (0..2).map(|_| server.send("POST", "/v1/completions", &[], body.as_bytes())).collect();
    let begin = Instant::now();
    while server.metric("wginfer_open_requests") < 2.0 {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    let refused = server.ask("POST", "/v1/completions", &[], body.as_bytes());
    refused.refused(429, "2 requests");
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop(open);
}

#[test]
fn only_who_may_ask_is_answered() {
    let Some(server) = demo(&["--api-key", "secret", "--cors", "https://good.example"]) else { return };
    let ask = |headers: &[(&str, &str)]| server.ask("GET", "/v1/models", headers, b"");
    ask(&[]).refused(401, "API key");
    ask(&[("Authorization", "Bearer secre")]).refused(401, "API key");
    ask(&[("Authorization", "Bearer secret2")]).refused(401, "API key");
    ask(&[("Authorization", "secret")]).refused(401, "API key");
    let key = ("Authorization", "Bearer secret");
    ask(&[key]).ok();
    ask(&[("x-api-key", "secret")]).ok();
    assert_ne!(server.get("/health").status, 401);
    for host in ["localhost:8080", "127.0.0.1", "[::1]:3", "app.localhost"] {
        ask(&[key, ("Host", host)]).ok();
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1"] {
        ask(&[key, ("Host", host)]).refused(403, "host");
    }
    ask(&[key, ("Origin", "https://evil.example")]).refused(403, "origin");
    ask(&[key, ("Origin", "null")]).refused(403, "origin");
    let good = ask(&[key, ("Origin", "https://good.example")]);
    assert!(good.status == 200 && good.head.contains("access-control-allow-origin: https://good.example"));
    let own = format!("http://{}", server.address);
    ask(&[key, ("Origin", &own)]).ok();
    let question = [("Origin", "https://good.example"), ("Access-Control-Request-Method", "POST")];
    let answer = server.ask("OPTIONS", "/v1/chat/completions", &question, b"");
    assert!(answer.status == 204 && answer.head.contains("access-control-allow-headers"), "{answer:?}");

    // Other machines only with a key.
    let mut command = Command::new(env!("CARGO_BIN_EXE_wginfer"));
    let output =
        command.args(["serve", "--host", "0.0.0.0"]).env_remove("WGINFER_API_KEY").output().expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(output.status.code() == Some(2) && message.contains("--api-key"), "{message}");
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let Some(server) = shared() else { return };
    let page = server.get("/");
    assert!(page.status == 200 && page.head.contains("content-type: text/html"), "{}", page.head);
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    assert!(page.body.contains("<title>wginfer</title>"));
    for part in ["http://", "https://", "//cdn", "src=\"", "@import"] {
        assert!(!page.body.contains(part), "{part}");
    }
    // Every path that it asks for exists.
    for part in page.body.split("ask(\"").skip(1) {
        let path = part.split('"').next().expect("a path");
        assert_ne!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn heads_have_limits() {
    let Some(server) = shared() else { return };
    let names: Vec<String> = (0..200).map(|i| format!("X-{i}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "a")).collect();
    assert_eq!(server.ask("GET", "/health", &many, b"").status, 431);
    let long = "a".repeat(1_000_000);
    assert_eq!(server.ask("GET", "/health", &[("X-Long", &long)], b"").status, 431);
    // Connections that send nothing are in nobody's way.
    let _idle: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    server.get("/health").ok();
}

#[cfg(unix)]
#[test]
fn a_signal_lets_open_answers_end() {
    let Some(mut server) = demo(&[]) else { return };
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 60, "stream": true, "temperature": 0 })
        .to_string();
    let mut stream = server.send("POST", "/v1/completions", &[], body.as_bytes());
    let mut begin = [0; 16];
    stream.read_exact(&mut begin).expect("it begins");
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the stream ends");
    assert!(rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
    assert!(TcpStream::connect(&server.address).is_err());
    let mut log = String::new();
    server.log.take().expect("a pipe").read_to_string(&mut log).expect("UTF-8");
    assert!(log.contains("waiting for open requests"), "{log}");
}

#[test]
fn models_come_and_go() {
    let Some(server) = demo(&["--lazy", "--keep-alive", "1"]) else { return };
    let state = || server.get("/health").ok()["models"]["demo"].as_str().expect("a state").to_string();
    assert_eq!(state(), "unloaded");
    let first = server.story("Once upon a time", 8);
    assert_eq!(state(), "ready");
    let begin = Instant::now();
    while state() != "unloaded" {
        assert!(begin.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.story("Once upon a time", 8), first);
}

/// OpenAI's Python client, as people install it.
#[test]
fn the_python_client() {
    let Some(server) = shared() else { return };
    let library = Path::new(ROOT).join("target/python");
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &library);
        command
    };
    if !python().args(["-c", "import openai"]).output().is_ok_and(|output| output.status.success()) {
        return common::not_run("OpenAI's Python client", "`.ci/python` installs openai");
    }
    let output = python()
        .arg(Path::new(ROOT).join("tests/clients/openai_client.py"))
        .arg(format!("http://{}", server.address))
        .current_dir(ROOT)
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("all passed"), "{said}");
}
