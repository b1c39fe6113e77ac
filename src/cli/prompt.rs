//! Reads prompts and texts from arguments, files and standard input.

use std::io::{IsTerminal, Read};
use std::path::Path;

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::EngineError;

use super::failure::Failure;

/// The text of a prompt: from the argument, a file, or standard input.
pub fn text(argument: Option<&str>, file: Option<&Path>) -> Result<String, Failure> {
    let (bytes, from) = match (argument, file) {
        (Some(text), _) => return Ok(text.to_string()),
        (None, Some(path)) if path != Path::new("-") => {
            let from = format!("`{}`", path.display());
            let bytes = std::fs::read(path);
            (bytes.map_err(|e| Failure::failed(format!("{from} cannot be read: {e}")))?, from)
        }
        _ => {
            if std::io::stdin().is_terminal() {
                log::info!("type the text; Ctrl-D on an empty line ends it");
            }
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|e| Failure::failed(format!("standard input cannot be read: {e}")))?;
            (bytes, "standard input".to_string())
        }
    };
    let mut text = utf8(bytes, &from)?;
    // The last line end belongs to the file, not to the text.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The name of a file, or of standard input, in error messages.
pub fn name(file: Option<&Path>) -> String {
    match file.filter(|path| *path != "-") {
        Some(path) => format!("`{}`", path.display()),
        None => "standard input".to_string(),
    }
}

/// The lines of a JSON Lines file that are not blank, with their numbers: each an object.
pub fn objects(text: &str, from: &str) -> Result<Vec<(usize, Object)>, Failure> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(object) => Ok((i + 1, object)),
        Err(e) => Err(Failure::failed(format!("{from}, line {}: expected a JSON object: {e}", i + 1))),
    };
    lines.map(parse).collect()
}

/// A JSON object.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// The text of a field, if the object has it.
pub fn field<'a>(object: &'a Object, key: &str, from: &str, line: usize) -> Result<Option<&'a str>, Failure> {
    match object.get(key) {
        None => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text)),
        Some(other) => {
            let message = format!("{from}, line {line}: `{key}` is {other}, expected a text");
            Err(Failure::failed(message))
        }
    }
}

/// The texts of a file or of standard input: its lines, or of a JSON Lines file each object's field `text`.
pub fn lines(file: Option<&Path>, jsonl: bool) -> Result<Vec<String>, Failure> {
    let (whole, from) = (text(None, file)?, name(file));
    let is_jsonl = jsonl || file.and_then(Path::extension).is_some_and(|e| e == "jsonl");
    let texts: Vec<String> = if is_jsonl {
        let of_object = |(line, object): (usize, Object)| {
            let missing = format!("{from}, line {line}: expected a field `text`, found none");
            let text = field(&object, "text", &from, line)?.map(str::to_string);
            text.ok_or_else(|| Failure::failed(missing).with_hint("such as {\"text\": \"a cat\"}"))
        };
        objects(&whole, &from)?.into_iter().map(of_object).collect::<Result<_, _>>()?
    } else {
        whole.lines().map(str::to_string).collect()
    };
    match texts.iter().all(|text| text.trim().is_empty()) {
        true => Err(Failure::failed(format!("there is no text in {from}"))),
        false => Ok(texts),
    }
}

/// `bytes` as text; `from` names their source in errors.
pub fn utf8(bytes: Vec<u8>, from: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::failed(format!("{from} is not valid UTF-8: byte {at} is `0x{:02x}`", e.as_bytes()[at]))
    })
}

/// The token ids of `text`, with the special tokens that the model expects around it.
pub fn encode(checkpoint: &ModelFiles, text: &str) -> Result<Vec<u32>, Failure> {
    let tokenizer = checkpoint.tokenizer.as_ref().map_err(|e| {
        let failure = Failure::from(e.clone());
        match e.hint() {
            Some(_) => failure,
            None => failure.with_hint("`--token-ids` needs no tokenizer"),
        }
    })?;
    Ok(tokenizer.encode(text, true)?)
}

/// Refuses a prompt that has no tokens, before a model is loaded for it.
pub fn check(ids: Vec<u32>) -> Result<Vec<u32>, Failure> {
    if ids.is_empty() { Err(EngineError::EmptyPrompt.into()) } else { Ok(ids) }
}
