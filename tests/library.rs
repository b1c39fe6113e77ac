//! What an embedder gets: the library names its own options, and leaves flags and commands to the command line.

use std::fs;
use std::path::{Path, PathBuf};

/// What only the command line may name, as it stands in a message.
const OF_THE_COMMAND_LINE: [&str; 2] = ["`--", "`wginfer "];

/// The lines of `source` that name a flag or a command outside comments: in code a backtick is inside a literal.
fn named(source: &str) -> Vec<(usize, &str)> {
    let lines = source.lines().enumerate().map(|(i, line)| (i + 1, line));
    let code = lines.map(|(i, line)| match line.trim_start().starts_with("//") {
        true => (i, ""),
        false => (i, line.split(" // ").next().unwrap_or_default()),
    });
    code.filter(|(_, line)| OF_THE_COMMAND_LINE.iter().any(|name| line.contains(name))).collect()
}

/// Every Rust file below `dir` but those of the binary: the command line and the server.
fn library(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src/ can be listed") {
        let path = entry.expect("src/ can be listed").path();
        if path.is_dir() && !["src/cli", "src/server"].iter().any(|of| path.ends_with(of)) {
            library(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("src/main.rs") {
            files.push(path);
        }
    }
}

#[test]
fn messages_name_no_flags() {
    let mut files = Vec::new();
    library(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 50, "the library was found: {} files", files.len());
    for path in files {
        let source = fs::read_to_string(&path).expect("a source file");
        let named = named(&source);
        assert!(named.is_empty(), "{}: {named:?}", path.display());
    }
}

#[test]
fn the_scan_finds_what_it_should() {
    let wrong = ["Some(\"raise `--ctx`\".into())", "\"use `wginfer chat`\" // why", "    `--ctx` behind \\"];
    for line in wrong {
        assert_eq!(named(line), [(1, line.split(" // ").next().expect("a line"))]);
    }
    let right =
        ["/// As `wginfer chat`.", "    // `--ctx`", "let n = 1; // `--ctx`", "\"`wginfer` -- runs\""];
    for line in right {
        assert_eq!(named(line), []);
    }
}
