//! What the map of the crate says of who imports whom, held against the sources.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module by its path (`domain::sync::core`), with those that it names.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Edges: none imports another one.
const EDGES: [&str; 6] = ["admin", "consul", "grpc", "kubernetes", "mesos", "probe"];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// The path of the module in a file.
fn module(file: &Path) -> String {
    let path = file.with_extension("");
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let parts = if parts.last() == Some(&"mod") { &parts[..parts.len() - 1] } else { &parts[..] };
    parts.join("::")
}

/// Tests, and what `tonic` generates: modules within one file, which name no other.
fn is_passed_over(module: &str) -> bool {
    let names = ["tests", "testing", "sim", "structure", "generated"];
    module.split("::").any(|part| names.contains(&part))
}

/// The code of a file, without tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut kept = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let bare = line.trim_start();
        if bare == "#[cfg(test)]" {
            // What it stands before ends with the first line as far to the left.
            let indent = line.len() - bare.len();
            let is_end = |it: &&str| {
                !it.get(indent..).unwrap_or_default().starts_with([' ', '#'])
                    && it.ends_with(['}', ';', ','])
            };
            lines.by_ref().find(is_end);
        } else if !bare.starts_with("//") {
            // Who may see something is no import.
            kept.push(line.replace("pub(in crate::", "pub(in "));
        }
    }
    kept.join("\n")
}

fn join(base: &str, name: &str) -> String {
    if base.is_empty() { name.to_owned() } else { format!("{base}::{name}") }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths of the tree of a `use`, each with the name that it gives.
fn leaves(base: &str, tree: &str, found: &mut Vec<(String, String)>) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let base = join(base, head.trim_end_matches("::"));
        let base = base.trim_end_matches("::");
        let group = group.trim_end().trim_end_matches('}');
        let mut depth = 0;
        let at_comma = |c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        };
        let parts = group.split(at_comma);
        parts.filter(|it| !it.trim().is_empty()).for_each(|it| leaves(base, it, found));
        return;
    }
    let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
    let path = if path == "self" { base.to_owned() } else { join(base, path) };
    let name = if alias.is_empty() { path.rsplit("::").next().unwrap_or_default() } else { alias };
    found.push((name.to_owned(), path.clone()));
}

/// A path as it stands in the code of `module`, from the crate's root; none: it leads out of the crate.
fn absolute(module: &str, children: &BTreeSet<&str>, path: &str) -> Option<String> {
    let above = |module: &str| module.rsplit_once("::").map_or("", |(above, _)| above).to_owned();
    let (first, rest) = path.split_once("::").unwrap_or((path, ""));
    let (mut base, mut rest) = match first {
        "crate" => (String::new(), rest),
        "self" => (module.to_owned(), rest),
        "super" => (above(module), rest),
        _ if children.contains(first) => (module.to_owned(), path),
        _ => return None,
    };
    while let Some(further) = rest.strip_prefix("super::") {
        (base, rest) = (above(&base), further);
    }
    Some(join(&base, rest))
}

/// What the code of a module says of others.
#[derive(Default)]
struct Source {
    /// The names that its `use`s give it, each with the path that is meant.
    names: BTreeMap<String, String>,
    /// The paths whose names it uses.
    paths: BTreeSet<String>,
}

impl Source {
    /// The code of the module `module`, which has the submodules `children`. A `pub use` whose name
    /// the code does not take up only hands it on.
    fn new(module: &str, children: &BTreeSet<&str>, code: &str) -> Self {
        let absolute = |path: &str| absolute(module, children, path);
        let mut source = Self::default();
        let mut handed_on = Vec::new();
        let mut rest = String::new();
        for statement in code.split_inclusive(';') {
            let is_start = |at: &usize| *at == 0 || statement[..*at].ends_with(['\n', ' ']);
            let Some(at) = statement.rfind("use ").filter(is_start) else {
                rest.push_str(statement);
                continue;
            };
            let line = statement[..at].rsplit('\n').next().unwrap_or_default().trim();
            if !line.is_empty() && !line.starts_with("pub") {
                rest.push_str(statement);
                continue;
            }
            rest.push_str(statement[..at].trim_end_matches(line));
            let mut found = Vec::new();
            leaves("", statement[at + 4..].trim_end_matches(';'), &mut found);
            for (name, path) in found {
                let Some(path) = absolute(&path) else { continue };
                source.names.insert(name.clone(), path.clone());
                if line.is_empty() {
                    source.paths.insert(path);
                } else {
                    handed_on.push((name, path));
                }
            }
        }
        let words: BTreeSet<&str> = rest.split(|c| !is_of_name(c)).collect();
        let used = handed_on.into_iter().filter(|(name, _)| words.contains(&**name));
        source.paths.extend(used.map(|(_, path)| path));
        let tokens = rest.split(|c| !is_of_name(c) && c != ':');
        let tokens = tokens.map(|it| it.trim_matches(':')).filter(|it| it.contains("::"));
        source.paths.extend(tokens.filter_map(absolute));
        source
    }
}

/// The module in which what a path means is defined: the names that modules hand on are followed.
fn target(sources: &BTreeMap<String, Source>, path: &str) -> Option<String> {
    let mut at = String::new();
    let mut rest: VecDeque<&str> = path.split("::").collect();
    // A name that means itself would be followed for ever.
    for _ in 0..64 {
        let Some(part) = rest.pop_front() else { break };
        let next = join(&at, part);
        let is_module = |it: &String| {
            sources.contains_key(it)
                || sources.keys().any(|key| key.starts_with(&format!("{it}::")))
        };
        if is_module(&next) {
            at = next;
        } else if let Some(meant) = sources.get(&at).and_then(|it| it.names.get(part)) {
            at.clear();
            rest = meant.split("::").chain(rest).collect();
        } else {
            break;
        }
    }
    sources.contains_key(&at).then_some(at)
}

fn resolved(sources: &BTreeMap<String, Source>) -> Imports {
    let of = |(name, source): (&String, &Source)| {
        let targets = source.paths.iter().filter_map(|path| target(sources, path));
        (name.clone(), targets.filter(|it| it != name).collect())
    };
    sources.iter().map(of).collect()
}

/// The sources of modules, each by its path with its text.
fn sources(texts: &BTreeMap<String, String>) -> BTreeMap<String, Source> {
    let children_of = |module: &str| {
        let below = texts.keys().filter_map(|it| it.strip_prefix(module)?.strip_prefix("::"));
        below.filter_map(|it| it.split("::").next()).collect::<BTreeSet<_>>()
    };
    let of = |(name, text): (&String, &String)| {
        (name.clone(), Source::new(name, &children_of(name), &code(text)))
    };
    texts.iter().map(of).collect()
}

fn imports() -> Imports {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let named = all.iter().map(|file| (module(file.strip_prefix(&root).unwrap()), file));
    let named = named.filter(|(name, _)| !is_passed_over(name));
    let texts = named.map(|(name, file)| (name, fs::read_to_string(file).unwrap())).collect();
    resolved(&sources(&texts))
}

/// The imports between what stands directly in `folder`: its own file (as `.`), the other files, and
/// the folders, each with all that is below it.
fn within(imports: &Imports, folder: &str) -> Imports {
    let room = |module: &str| {
        let below = if folder.is_empty() {
            module
        } else if module == folder {
            "."
        } else {
            module.strip_prefix(folder)?.strip_prefix("::")?
        };
        below.split("::").next().map(str::to_owned)
    };
    let mut found = Imports::new();
    for (from, of) in imports {
        let Some(from) = room(from) else { continue };
        let to = of.iter().filter_map(|it| room(it)).filter(|it| *it != from);
        found.entry(from.clone()).or_default().extend(to.collect::<Vec<_>>());
    }
    found
}

/// The folders in which files and folders import each other in a circle, each with these.
fn circles(imports: &Imports) -> Imports {
    let mut folders = BTreeSet::from([String::new()]);
    for module in imports.keys() {
        folders.insert(module.clone());
        folders.extend(module.match_indices("::").map(|(at, _)| module[..at].to_owned()));
    }
    let of = |folder: String| (folder.clone(), circle(within(imports, &folder)));
    folders.into_iter().map(of).filter(|(_, circle)| !circle.is_empty()).collect()
}

/// A circle, if there is one: whoever imports only what is in none is in none itself.
fn circle(mut imports: Imports) -> BTreeSet<String> {
    loop {
        let free: BTreeSet<String> = imports
            .iter()
            .filter(|(_, of)| !of.iter().any(|it| imports.contains_key(it)))
            .map(|(name, _)| name.clone())
            .collect();
        if free.is_empty() {
            break;
        }
        imports.retain(|name, _| !free.contains(name));
    }
    // Nor is whoever nobody in it imports.
    loop {
        let used: BTreeSet<String> = imports.values().flatten().cloned().collect();
        let before = imports.len();
        imports.retain(|name, _| used.contains(name));
        if imports.len() == before {
            return imports.into_keys().collect();
        }
    }
}

#[test]
fn no_files_or_folders_import_each_other_in_a_circle() {
    assert_eq!(circles(&imports()), Imports::new(), "each folder, with what is in a circle there");
}

#[test]
fn dependencies_point_one_way() {
    let top = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    for (module, of) in imports() {
        let from = top(&module);
        for to in of.iter().map(|it| top(it)) {
            let is_edge = |it: &str| EDGES.contains(&it);
            let points_back = match &*from {
                "domain" => to != "domain",
                from if is_edge(from) => to != from && to != "domain",
                "run" => !is_edge(&to) && !["domain", "logging", "run", "tls"].contains(&&*to),
                _ => false,
            };
            assert!(!points_back, "{module} imports {of:?}");
        }
    }
}

#[test]
fn a_circle_is_found() {
    let of = |pairs: &[(&str, &str)]| {
        let mut imports = Imports::new();
        for (from, to) in pairs {
            imports.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            imports.entry((*to).to_owned()).or_default();
        }
        circle(imports)
    };
    assert!(of(&[("a", "b"), ("b", "c"), ("a", "c")]).is_empty());
    let found = of(&[("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y")]);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
}

/// The imports of modules that are given by their texts.
fn imports_of(texts: &[(&str, &str)]) -> Imports {
    let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    resolved(&sources(&texts.collect()))
}

#[test]
fn names_are_followed_to_where_they_are_defined() {
    let imports = imports_of(&[
        (
            "a",
            "pub mod b;\nmod d;\npub use self::b::{B, c::{C as Other}};\nuse d::D;\nfn f() -> D {}",
        ),
        ("a::b", "pub mod c;\npub struct B;"),
        ("a::b::c", "use super::super::D;\npub struct C;\n// use crate::e::E;\n"),
        (
            "a::d",
            "pub struct D;\n#[cfg(test)]\nuse crate::e::E;\n#[cfg(test)]\nmod tests {\nuse crate::e;\n}",
        ),
        (
            "e",
            "use std::fmt;\nuse crate::a::{self as first, B};\npub(in crate::a) fn f() { first::Other::new(); }",
        ),
        ("f", "fn f() { crate::a::Other::new(); crate::e::f() }"),
    ]);
    let of = |module: &str| imports[module].iter().map(|it| &**it).collect::<Vec<_>>();
    assert_eq!(of("a"), ["a::d"], "what it only hands on is no import");
    assert_eq!(of("a::b"), [""; 0]);
    assert_eq!(of("a::b::c"), ["a::d"]);
    assert_eq!(of("a::d"), [""; 0], "tests are left out");
    assert_eq!(of("e"), ["a", "a::b"]);
    assert_eq!(of("f"), ["a::b::c", "e"]);
    assert_eq!(circles(&imports), Imports::new());
}

#[test]
fn a_parent_and_its_child_or_two_folders_can_be_a_circle() {
    let parent = ("a", "mod b;\npub use b::B;\npub struct A(B);");
    let imports = imports_of(&[parent, ("a::b", "use super::A;\npub struct B;\nimpl A {}")]);
    assert_eq!(circles(&imports)["a"], [".", "b"].map(str::to_owned).into());
    let folders =
        [("a::x", "use crate::b::y;"), ("a::z", ""), ("b::y", ""), ("b::w", "use crate::a::z;")];
    let found = circles(&imports_of(&folders));
    assert_eq!(found, Imports::from([(String::new(), ["a", "b"].map(str::to_owned).into())]));
}
