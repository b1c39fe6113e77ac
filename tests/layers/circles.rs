//! Which files name which, and where that goes in a circle.
//!
//! A file names another where a path of its code (`crate::…`, `super::…`, `self::…`, a child module or a module that
//! is imported) leads to something that the other declares. Re-exports and imports are followed: `super::AudioReader`
//! names `audio/reader.rs`, though `audio/mod.rs` re-exports it. Two things do not count:
//!
//! - what a file takes from the module files above it (`mod.rs` declares what its children share, and may use them), and
//! - what a module file only re-exports of its own children.
//!
//! All else must not lead back: neither between siblings, nor through several files, nor between a folder and a file
//! outside of it. Methods that a file calls on a type of its module (`impl Engine` in several files) are not seen.

use std::collections::{BTreeMap, BTreeSet};

/// A name that a file brings into scope, with the path that it stands for.
type Names = BTreeMap<String, Vec<String>>;

struct File<'a> {
    path: &'a str,
    module: Vec<String>,
    /// Lines, and the paths that are named there.
    named: Vec<(usize, Vec<String>)>,
    /// Lines, and the paths that are re-exported there.
    reexported: Vec<(usize, Vec<String>)>,
    names: Names,
}

/// The files that lie on a circle, each with those that it names on that circle and the line where it does.
pub fn circles(sources: &[(String, String)]) -> BTreeMap<String, Vec<(usize, String)>> {
    let edges = edges(sources);
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|from| (*from, reach(&edges, from))).collect();
    let mut found: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (from, to) in &edges {
        for (name, line) in to.iter().filter(|(name, _)| reached.get(*name).is_some_and(|r| r.contains(from)))
        {
            found.entry(from.to_string()).or_default().push((*line, name.to_string()));
        }
    }
    found
}

/// All files to which the edges lead from `from`.
fn reach<'a>(edges: &BTreeMap<&'a str, BTreeMap<&'a str, usize>>, from: &str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(file) = left.pop() {
        for to in edges.get(file).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(*to) {
                left.push(to);
            }
        }
    }
    seen
}

/// For each file the files that it names, and the line where it does so first.
fn edges(sources: &[(String, String)]) -> BTreeMap<&str, BTreeMap<&str, usize>> {
    let modules: BTreeSet<Vec<String>> = sources.iter().map(|(path, _)| module(path)).collect();
    let files: Vec<File<'_>> = sources.iter().map(|(path, code)| read(path, code, &modules)).collect();
    let by_module: BTreeMap<&[String], &File<'_>> = files.iter().map(|file| (&*file.module, file)).collect();
    let mut all = BTreeMap::new();
    for file in &files {
        let own = |(line, path): &(usize, Vec<String>)| Some((*line, declared(path, &by_module, 0)?));
        let named = file.named.iter().filter_map(own);
        let reexported = file.reexported.iter().filter_map(own);
        let reexported = reexported.filter(|(_, to)| !to.module.starts_with(&file.module));
        let to = all.entry(file.path).or_insert_with(BTreeMap::new);
        for (line, other) in named.chain(reexported) {
            if !file.module.starts_with(&other.module) {
                let first = to.entry(other.path).or_insert(line);
                *first = line.min(*first);
            }
        }
    }
    all
}

/// The file that declares what `path` names.
fn declared<'f, 'a>(
    path: &[String],
    files: &BTreeMap<&[String], &'f File<'a>>,
    n_followed: usize,
) -> Option<&'f File<'a>> {
    let depth = (0..=path.len()).rev().find(|&n| files.contains_key(&path[..n]))?;
    let file = files[&path[..depth]];
    let next = path.get(depth).and_then(|name| file.names.get(name));
    match next {
        // Imports that go round and round name nothing; the compiler refuses them.
        Some(_) if n_followed > 8 => None,
        Some(stands_for) => {
            let path: Vec<String> = stands_for.iter().chain(&path[depth + 1..]).cloned().collect();
            declared(&path, files, n_followed + 1).or(Some(file))
        }
        None => Some(file),
    }
}

/// `gpu/mod.rs` is `[gpu]`, `gpu/kernel.rs` `[gpu, kernel]`, `lib.rs` the root.
fn module(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs").trim_end_matches("mod").trim_end_matches('/');
    let names = path.split('/').filter(|name| !["", "lib"].contains(name));
    names.map(str::to_string).collect()
}

/// `code` without comments and literals, as words, `::` and single characters, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (i, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let n = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                n => n,
            };
            found.push((i + 1, &rest[..n]));
            rest = rest[n..].trim_start();
        }
    }
    found
}

fn read<'a>(path: &'a str, code: &str, modules: &BTreeSet<Vec<String>>) -> File<'a> {
    let own = module(path);
    // A file's own tests see what the file sees.
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let tokens = tokens(code);
    let at = |i: usize| tokens.get(i).map_or("", |(_, token)| *token);
    let mut file =
        File { path, module: own.clone(), named: Vec::new(), reexported: Vec::new(), names: Names::new() };

    // First what `use` brings into scope, so that code may begin its paths there.
    let mut used = vec![false; tokens.len()];
    for i in (0..tokens.len()).filter(|&i| at(i) == "use") {
        let is_public = i > 0 && ["pub", ")"].contains(&at(i - 1));
        let end = (i..tokens.len()).find(|&j| at(j) == ";").unwrap_or(tokens.len());
        used[i..end].fill(true);
        let mut leaves = Vec::new();
        tree(&tokens[i + 1..end], &mut 0, &[], &mut leaves);
        for (path, name) in leaves {
            let Some(path) = absolute(&path, &own, modules, &Names::new()) else { continue };
            let to = if is_public { &mut file.reexported } else { &mut file.named };
            to.push((tokens[i].0, path.clone()));
            file.names.insert(name, path);
        }
    }
    for i in (0..tokens.len()).filter(|&i| !used[i] && at(i + 1) == "::") {
        if i > 0 && ["::", "."].contains(&at(i - 1)) {
            continue;
        }
        let mut leaves = Vec::new();
        tree(&tokens[i..], &mut 0, &[], &mut leaves);
        let path = leaves.first().and_then(|(path, _)| absolute(path, &own, modules, &file.names));
        file.named.extend(path.map(|path| (tokens[i].0, path)));
    }
    file
}

/// The paths of a `use` tree, or the path at the start of an expression, each with the name that it gets.
fn tree(tokens: &[(usize, &str)], i: &mut usize, before: &[String], leaves: &mut Vec<(Vec<String>, String)>) {
    let at = |i: usize| tokens.get(i).map_or("", |(_, token)| *token);
    let mut path = before.to_vec();
    loop {
        match at(*i) {
            "{" => {
                *i += 1;
                while !["}", ""].contains(&at(*i)) {
                    if at(*i) == "," { *i += 1 } else { tree(tokens, i, &path, leaves) }
                }
                *i += 1;
                return;
            }
            // `a::{self}` is `a`, and nothing has the name `*`.
            "self" if !path.is_empty() => {}
            word => path.push(word.to_string()),
        }
        *i += 1;
        if at(*i) != "::" {
            break;
        }
        *i += 1;
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if at(*i) == "as" {
        name = at(*i + 1).to_string();
        *i += 2;
    }
    leaves.push((path, name));
}

/// `path` from the root on, if it begins in this crate: at `crate`, `super`, `self`, a child of `own`, or a module that
/// `names` holds.
fn absolute(
    path: &[String],
    own: &[String],
    modules: &BTreeSet<Vec<String>>,
    names: &Names,
) -> Option<Vec<String>> {
    let child = |name: &String| [own, std::slice::from_ref(name)].concat();
    let (mut from, mut rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (own.to_vec(), &path[1..]),
        "super" => (own.to_vec(), path),
        _ if modules.contains(&child(&path[0])) => (own.to_vec(), path),
        name => (names.get(name).filter(|stands_for| modules.contains(*stands_for))?.clone(), &path[1..]),
    };
    while let Some(("super", more)) = rest.split_first().map(|(first, more)| (first.as_str(), more)) {
        from.pop();
        rest = more;
    }
    from.extend_from_slice(rest);
    Some(from)
}

#[test]
fn the_scan_finds_circles() {
    let files = |sources: &[(&str, &str)]| -> Vec<String> {
        let sources: Vec<_> =
            sources.iter().map(|(path, code)| (path.to_string(), code.to_string())).collect();
        circles(&sources).into_keys().collect()
    };
    let a_b = ["m/a.rs", "m/b.rs"];
    // Siblings, in each way of naming them.
    for names_b in [
        "use super::b::B;",
        "use super::{B, b::{self, B as C}};",
        "use crate::{x, m::{b::*}};",
        "fn f() { super::b::f(&[]) }",
        "use super::B;",
        "use crate::B;",
        "use super::Shown;",
        "use super::b; fn f() { b::f() }",
        "use super::super::m; fn f() { m::b::f() }",
        "macro_rules! f { () => { $crate::m::b::f() } }",
    ] {
        let sources = [
            ("lib.rs", "pub mod m; pub use m::B;"),
            ("m/mod.rs", "mod a; mod b; pub use a::A; pub use b::{B, C as Shown};"),
            ("m/a.rs", names_b),
            ("m/b.rs", "use super::a::A;"),
        ];
        assert_eq!(files(&sources), a_b, "{names_b}");
    }
    // Through a third, a folder, and a name that the module file imports for its children.
    assert_eq!(
        files(&[
            ("m/mod.rs", "use b::B;"),
            ("m/a.rs", "use super::B;"),
            ("m/b.rs", "fn f() { crate::m::c::f() }"),
            ("m/c/mod.rs", "mod d; use d::D;"),
            ("m/c/d.rs", "use super::super::a;"),
        ]),
        ["m/a.rs", "m/b.rs", "m/c/d.rs", "m/c/mod.rs"]
    );
    // Parents and children, re-exports, one way only, the file's own tests and words that look like paths.
    let none: [String; 0] = [];
    assert_eq!(
        files(&[
            ("lib.rs", "pub mod m; pub use m::M; pub use m::B;"),
            (
                "m/mod.rs",
                "mod a; mod b; pub use a::A; pub use b::B; pub struct M { a: a::A } fn f() { b::f() }"
            ),
            ("m/a.rs", "use super::{B, M}; fn f(m: crate::m::M) { std::b::f(B::C) }"),
            (
                "m/b.rs",
                "use super::M; struct A; fn f() { A::new() }\n#[cfg(test)]\nmod tests { use super::a::A; }"
            ),
        ]),
        none
    );
}
