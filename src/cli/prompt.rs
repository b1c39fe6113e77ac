//! Reads texts: prompts, documents, lists, questions. Every text of a user is read here, so that byte order marks and line
//! ends of Windows are no text anywhere.

use std::io::{IsTerminal, Read};
use std::path::Path;

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::EngineError;

use super::failure::Failure;

/// The byte order mark of UTF-8, which editors on Windows put before a text.
const MARK: char = '\u{feff}';

/// A text from a file or standard input: without byte order mark, with `\n` as line ends, and without the last of them,
/// which belongs to the file.
#[derive(Debug)]
pub struct Document {
    pub text: String,
    /// Bytes before the text.
    n_before: usize,
    /// The line ends, as offsets in the text, that have two bytes in the file.
    wide: Vec<usize>,
}

impl Document {
    fn new(bytes: Vec<u8>, from: &str) -> Result<Document, Failure> {
        let whole = decoded(bytes, &format!("{from} is "))?;
        let content = whole.trim_start_matches(MARK);
        let n_before = whole.len() - content.len();
        let content = content.strip_suffix("\r\n").or(content.strip_suffix('\n')).unwrap_or(content);
        let text = content.replace("\r\n", "\n");
        let wide = match text.len() == content.len() {
            true => Vec::new(),
            false => {
                let found = content.match_indices("\r\n").enumerate();
                found.map(|(n_earlier, (at, _))| at - n_earlier).collect()
            }
        };
        Ok(Document { text, n_before, wide })
    }

    /// The place in the file of an offset in the text, in bytes.
    pub fn place(&self, offset: usize) -> usize {
        self.n_before + offset + self.wide.partition_point(|end| *end < offset)
    }
}

/// The text of a prompt: from the argument, a file, or standard input.
pub fn text(argument: Option<&str>, file: Option<&Path>) -> Result<String, Failure> {
    match argument {
        Some(text) => Ok(text.to_string()),
        None => Ok(document(file)?.text),
    }
}

/// The text of a file or of standard input.
pub fn document(file: Option<&Path>) -> Result<Document, Failure> {
    Document::new(bytes(file)?, &name(file))
}

/// The lines of a file or of standard input. A line that is not text is an error of its own.
pub fn lines(file: Option<&Path>) -> Result<Vec<Result<String, Failure>>, Failure> {
    let bytes = bytes(file)?;
    check_encoding(&bytes, &format!("{} is ", name(file)))?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = |line: &[u8]| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Files that were joined have a mark at the beginning of each.
        Ok(utf8(line.to_vec(), "")?.trim_start_matches(MARK).to_string())
    };
    Ok(bytes.split(|byte| *byte == b'\n').map(line).collect())
}

/// Most bytes of a text: a device such as `/dev/zero` never ends.
const MOST_BYTES: u64 = 1 << 30;

fn bytes(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let name = name(file);
    let unreadable = |e| Failure::failed(format!("{name} cannot be read: {e}"));
    let source: Box<dyn Read> = match named(file) {
        Some(path) => Box::new(std::fs::File::open(path).map_err(unreadable)?),
        None => {
            if std::io::stdin().is_terminal() {
                log::info!("type the text; Ctrl-D on an empty line ends it");
            }
            Box::new(std::io::stdin().lock())
        }
    };
    let mut bytes = Vec::new();
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 > MOST_BYTES {
        true => {
            Err(Failure::failed(format!("{name} does not end: expected at most {MOST_BYTES} bytes of text")))
        }
        false => Ok(bytes),
    }
}

/// The file, unless it stands for standard input.
fn named(file: Option<&Path>) -> Option<&Path> {
    file.filter(|path| *path != "-")
}

/// The name of a file, or of standard input, in error messages.
pub fn name(file: Option<&Path>) -> String {
    match named(file) {
        Some(path) => format!("`{}`", path.display()),
        None => "standard input".to_string(),
    }
}

/// `bytes` as text. Errors say what they are after `subject`, which names them.
fn decoded(bytes: Vec<u8>, subject: &str) -> Result<String, Failure> {
    check_encoding(&bytes, subject)?;
    utf8(bytes, subject)
}

/// As [`decoded`], for bytes that begin no file, and so with no mark.
fn utf8(bytes: Vec<u8>, subject: &str) -> Result<String, Failure> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::failed(format!("{subject}not valid UTF-8: byte {at} is `0x{:02x}`", e.as_bytes()[at]))
    })?;
    match text.find('\0') {
        None => Ok(text),
        Some(at) => Err(Failure::failed(format!("{subject}not text: byte {at} is `0x00`"))
            .with_hint("a PDF or an office document must be turned into text first")),
    }
}

/// Refuses text whose byte order mark is that of another encoding than UTF-8.
fn check_encoding(bytes: &[u8], subject: &str) -> Result<(), Failure> {
    let marks: [(&[u8], &str); 4] = [
        (&[0xff, 0xfe, 0, 0], "UTF-32"),
        (&[0, 0, 0xfe, 0xff], "UTF-32"),
        (&[0xff, 0xfe], "UTF-16"),
        (&[0xfe, 0xff], "UTF-16"),
    ];
    match marks.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        None => Ok(()),
        Some((_, encoding)) => {
            let hint = format!("`iconv -f {encoding} -t UTF-8 FILE` converts it");
            Err(Failure::failed(format!("{subject}{encoding} by its byte order mark, expected UTF-8"))
                .with_hint(hint))
        }
    }
}

/// One line of standard input as text, without a byte order mark.
pub fn line(bytes: Vec<u8>) -> Result<String, Failure> {
    Ok(decoded(bytes, "standard input is ")?.trim_start_matches(MARK).to_string())
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

#[cfg(test)]
mod tests {
    use super::Document;

    fn document(bytes: &[u8]) -> Document {
        Document::new(bytes.to_vec(), "`a.txt`").expect("text")
    }

    #[test]
    fn marks_and_line_ends_are_no_text() {
        let cases: [(&[u8], &str); 7] = [
            (b"a\nb\n", "a\nb"),
            (b"\xef\xbb\xbfa\r\nb\r\n", "a\nb"),
            (b"\xef\xbb\xbf", ""),
            (b"\xef\xbb\xbf\xef\xbb\xbfa", "a"),
            (b"a\r\n\r\n", "a\n"),
            (b"a\xef\xbb\xbfb\rc", "a\u{feff}b\rc"),
            (b"", ""),
        ];
        for (bytes, expected) in cases {
            assert_eq!(document(bytes).text, expected, "{bytes:?}");
        }
    }

    #[test]
    fn places_are_those_of_the_file() {
        for file in ["one two\nthree\n\nfour", "\u{feff}one\r\ntwo three\r\n\r\nfour\r\n", "\r\n\nfour\r\n"] {
            let document = document(file.as_bytes());
            for word in ["one", "two", "three", "four"] {
                let Some(at) = document.text.find(word) else { continue };
                let [begin, end] = [at, at + word.len()].map(|at| document.place(at));
                assert_eq!(&file[begin..end], word, "{file:?}");
            }
            assert_eq!(document.place(0), file.len() - file.trim_start_matches('\u{feff}').len());
        }
    }

    #[test]
    fn other_encodings_are_named() {
        let cases: [(&[u8], &str); 6] = [
            (b"\xff\xfea\0", "`a.txt` is UTF-16 by its byte order mark"),
            (b"\xfe\xff\0a", "is UTF-16"),
            (b"\xff\xfe\0\0a\0\0\0", "is UTF-32"),
            (b"\0\0\xfe\xff\0\0\0a", "is UTF-32"),
            (b"\xef\xbb\xbfcaf\xe9", "byte 6 is `0xe9`"),
            (b"a\0b\0", "is not text: byte 1 is `0x00`"),
        ];
        for (bytes, expected) in cases {
            let failure = Document::new(bytes.to_vec(), "`a.txt`").expect_err(expected);
            assert!(failure.message().contains(expected), "{}", failure.message());
        }
    }
}
