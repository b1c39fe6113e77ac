//! Who may import whom, who may name wgpu, who may open devices, who may print.

mod circles;

use std::collections::BTreeSet;
use std::path::Path;

use circles::circles;

/// Each module's layer: it may import lower ones. Layer 0 is for all.
const LAYERS: [(&str, u32); 17] = [
    ("dtype", 0),
    ("file", 0),
    ("guard", 0),
    ("error", 0),
    ("gpu", 1),
    ("ops", 2),
    ("weights", 2),
    ("text", 2),
    ("audio", 2),
    ("hub", 2),
    ("models", 3),
    ("checkpoint", 3),
    ("engine", 4),
    ("tasks", 5),
    ("bench", 5),
    ("server", 6),
    ("cli", 6),
];

/// Neighbours that may be imported: the command that serves; architectures, which a checkpoint names.
const ALSO_ALLOWED: [(&str, &str); 2] = [("cli", "server"), ("checkpoint", "models")];
/// Lower layers that may not: models see ids, never text nor where files come from; a checkpoint is opened without a
/// device.
const FORBIDDEN: [(&str, &str); 3] = [("models", "text"), ("models", "hub"), ("checkpoint", "gpu")];

/// Files that name each other in a circle. The list may only become shorter.
const KNOWN_CIRCLES: [&str; 0] = [];

fn layer(module: &str) -> Option<u32> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// `source` with comments and the insides of literals blanked; line breaks stay.
fn code(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::new();
    let mut i = 0;
    let skip_to = |out: &mut String, from: usize, to: usize| {
        out.extend(chars[from..to.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        to
    };
    while i < chars.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|&j| chars[j] == '\n').unwrap_or(chars.len()),
            ('/', '*') => {
                (i + 2..chars.len()).find(|&j| at(j) == '*' && at(j + 1) == '/').map_or(i + 2, |j| j + 2)
            }
            ('r', '"' | '#') if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                let hashes = (i + 1..chars.len()).take_while(|&j| chars[j] == '#').count();
                if at(i + 1 + hashes) == '"' {
                    let closes = |j: &usize| at(*j) == '"' && (1..=hashes).all(|k| at(j + k) == '#');
                    (i + 2 + hashes..chars.len()).find(closes).map_or(chars.len(), |j| j + 1 + hashes)
                } else {
                    i
                }
            }
            ('"', _) => {
                let mut j = i + 1;
                while j < chars.len() && chars[j] != '"' {
                    j += if chars[j] == '\\' { 2 } else { 1 };
                }
                j + 1
            }
            // A character, not a lifetime.
            ('\'', '\\') => (i + 3..chars.len()).find(|&j| chars[j] == '\'').map_or(i, |j| j + 1),
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end > i {
            i = skip_to(&mut out, i, end);
        } else {
            out.push(chars[i]);
            i += 1;
        }
    }
    out
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// The first names after each `crate::` in `code`, those in braces too, with their lines.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let rest = code[at + prefix.len()..].trim_start();
        let Some(group) = rest.strip_prefix('{') else {
            found.push((line, identifier(rest).to_string()));
            continue;
        };
        let mut depth = 0;
        let mut item = true; // at the start of an item of the outer braces
        for (i, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => item = true,
                c if item && !c.is_whitespace() => {
                    found.push((line, identifier(&group[i..]).to_string()));
                    item = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// What the file at `path` (below `src/`) does that it may not.
fn violations(path: &str, source: &str) -> Vec<String> {
    let module = path.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let code = code(source);
    let mut wrong = Vec::new();
    let root = ["lib", "main", "error"].contains(&module);
    if !root && layer(module).is_none() {
        wrong.push(format!("{path}: module `{module}` has no layer"));
    }
    for (i, line) in source.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("#[path")) {
        wrong.push(format!("{path}:{}: a module is where its name says, not at `{}`", i + 1, line.trim()));
    }
    for (line, name) in imports(&code) {
        let forbidden = FORBIDDEN.contains(&(module, name.as_str()));
        let allowed = match (layer(module), layer(&name)) {
            _ if module == name || ["Error", "Result"].contains(&name.as_str()) => true,
            _ if root => true,
            // The crate's own re-exports are for those who use the public API alone.
            (Some(6), None) => true,
            // wgpu has a rule of its own, below.
            (_, None) => name == "wgpu",
            (Some(own), Some(other)) => {
                other == 0 || other < own || ALSO_ALLOWED.contains(&(module, name.as_str()))
            }
            (None, Some(_)) => false,
        };
        if forbidden || !allowed {
            wrong.push(format!("{path}:{line}: `{module}` may not import `crate::{name}`"));
        }
    }
    for (i, line) in code.lines().enumerate() {
        let allowed = match module {
            "gpu" => true,
            "lib" => line.trim() == "pub use wgpu;",
            "engine" => line.matches("wgpu").count() == line.matches("wgpu::CommandBuffer").count(),
            _ => false,
        };
        let names_wgpu = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "wgpu");
        if names_wgpu && !allowed {
            wrong.push(format!("{path}:{}: only `gpu` names wgpu", i + 1));
        }
        // What a guest must not meet, and what an architecture must not know: it asks `Loader`, whatever the
        // file's format and types.
        let only_adapter = ["request_device", "on_uncaptured_error", "set_device_lost_callback"];
        let is_architecture = module == "models" && !["models/loader.rs", "models/upload.rs"].contains(&path);
        let not_in_models = ["safetensors", "gguf", "memmap2", "Dtype::F16", "Dtype::BF16"];
        for word in only_adapter.iter().filter(|word| path != "gpu/adapter.rs" && line.contains(**word)) {
            wrong.push(format!("{path}:{}: only `gpu/adapter.rs` calls `{word}`", i + 1));
        }
        for word in not_in_models.iter().filter(|word| is_architecture && line.contains(**word)) {
            wrong.push(format!("{path}:{}: an architecture does not know `{word}`", i + 1));
        }
        // Who opens a model's files checks what they are and how large.
        let reads_models = ["checkpoint", "weights", "text", "models", "engine"].contains(&module);
        let opens_files = ["fs::", "File::open", "OpenOptions"];
        for word in opens_files.iter().filter(|word| reads_models && line.contains(**word)) {
            if path != "checkpoint/files.rs" && line.trim() != "use std::fs::File;" {
                wrong.push(format!("{path}:{}: only `checkpoint/files.rs` calls `{word}`", i + 1));
            }
        }
        let prints = ["println!", "print!", "eprintln!", "eprint!", "dbg!"];
        let words = || line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '!');
        if !["cli", "main"].contains(&module) && words().any(|word| prints.contains(&word)) {
            wrong.push(format!("{path}:{}: only `cli` prints", i + 1));
        }
    }
    wrong
}

fn sources(dir: &Path, root: &Path, all: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).expect("src/ can be listed") {
        let path = entry.expect("src/ can be listed").path();
        if path.is_dir() {
            sources(&path, root, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).expect("below src/").to_string_lossy().replace('\\', "/");
            all.push((name, std::fs::read_to_string(&path).expect("a source file")));
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&root, &root, &mut all);
    assert!(all.len() > 10, "src/ was found");
    all
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let code: Vec<_> = all_sources().into_iter().map(|(path, source)| (path, code(&source))).collect();
    let found = circles(&code);
    let known: BTreeSet<&str> = KNOWN_CIRCLES.iter().copied().collect();
    let fresh = found.iter().filter(|(file, _)| !known.contains(file.as_str()));
    let fresh: Vec<String> = fresh
        .flat_map(|(file, named)| {
            named.iter().map(move |(line, other)| format!("{file}:{line} names {other}"))
        })
        .collect();
    assert!(fresh.is_empty(), "these go in a circle:\n{}", fresh.join("\n"));
    let gone: Vec<_> = known.into_iter().filter(|file| !found.contains_key(*file)).collect();
    assert!(gone.is_empty(), "no longer on a circle, so no longer to be listed as such: {gone:?}");
}

#[test]
fn every_file_keeps_to_its_layer() {
    let all = all_sources();
    let wrong: Vec<String> = all.iter().flat_map(|(path, source)| violations(path, source)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_scan_finds_what_it_should() {
    let allowed = [
        ("ops/a.rs", "use crate::gpu::{Caps, Tensor};\nuse crate::dtype::Dtype;"),
        ("ops/a.rs", "// use crate::engine;\n/* crate::cli */ const A: &str = \"crate::cli wgpu println!\";"),
        ("models/a.rs", "use crate::{gpu::{Tensor, View}, ops, weights::Weights};"),
        ("models/a.rs", "fn f<'a>(x: &'a str) -> char { '\"' } use crate::ops;"),
        ("engine/mod.rs", "fn f() -> Vec<wgpu::CommandBuffer> { vec![] }"),
        ("error.rs", "use crate::engine::EngineError;"),
        ("cli/serve.rs", "use crate::server; fn f() { println!(\"{}\", 1) }"),
        ("lib.rs", "pub use wgpu;"),
        ("checkpoint/mod.rs", "use crate::{models, text, weights};"),
        ("checkpoint/files.rs", "fn f() { std::fs::File::open(p); }"),
    ];
    for (path, source) in allowed {
        assert_eq!(violations(path, source), Vec::<String>::new(), "{source}");
    }
    let refused = [
        ("gpu/a.rs", "use crate::ops;"),
        ("ops/a.rs", "use crate::weights::Weights;"),
        ("weights/a.rs", "use crate::{dtype::Dtype, ops};"),
        ("models/a.rs", "use crate::{\n    gpu::{Tensor, View},\n    engine,\n};"),
        ("models/a.rs", "use crate::text::Tokenizer;"),
        ("models/a.rs", "fn f(b: &wgpu::Buffer) {}"),
        ("models/a.rs", "use crate::Gpu;"),
        ("engine/mod.rs", "fn f(b: wgpu::CommandBuffer, c: wgpu::Buffer) {}"),
        ("engine/mod.rs", "let r = r#\"a\"#; let c = '\"'; crate::tasks::chat()"),
        ("tasks/a.rs", "fn f() { eprintln!(\"x\") }"),
        ("lib.rs", "pub use wgpu::Device;"),
        ("stray.rs", "fn f() {}"),
        ("gpu/mod.rs", "device.on_uncaptured_error(handler);"),
        ("models/a.rs", "let half = Dtype::F16;"),
        ("bench/mod.rs", "#[path = \"../../tests/reference/mod.rs\"]\nmod reference;"),
        ("models/a.rs", "use crate::checkpoint::ModelFiles;"),
        ("checkpoint/a.rs", "use crate::gpu::Gpu;"),
        ("weights/a.rs", "std::fs::read(path);"),
    ];
    for (path, source) in refused {
        assert_eq!(violations(path, source).len(), 1, "{path}: {source}");
    }
}
