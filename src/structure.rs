//! What the map of the crate says of who imports whom, held against the sources.

use std::collections::{BTreeMap, BTreeSet};
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

fn is_test(module: &str) -> bool {
    let of_tests = ["tests", "testing", "sim", "structure"];
    module.split("::").any(|part| of_tests.contains(&part))
}

/// The code of a file, without tests and comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths that begin with `crate::`, those of a group each by itself.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let path: String = rest.chars().take_while(|c| is_path(*c)).collect();
        let group = rest[path.len()..].strip_prefix('{').and_then(|it| it.split_once('}'));
        match group {
            Some((names, _)) if path.ends_with("::") => {
                found.extend(names.split(',').map(|name| format!("{path}{}", name.trim())));
            }
            _ => found.push(path),
        }
    }
    found
}

fn imports() -> Imports {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let named = all.iter().map(|file| (module(file.strip_prefix(&root).unwrap()), file));
    let named: BTreeMap<String, &PathBuf> = named.filter(|(name, _)| !is_test(name)).collect();
    // The longest module that the path begins with is the one that it names.
    let target = |path: &str| {
        let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
        let all = (1..=parts.len()).rev().map(|count| parts[..count].join("::"));
        all.into_iter().find(|it| named.contains_key(it))
    };
    let of = |name: &String, file: &&PathBuf| {
        let targets =
            paths(&code(file)).iter().filter_map(|path| target(path)).collect::<BTreeSet<_>>();
        targets.into_iter().filter(|it| it != name).collect()
    };
    named.iter().map(|(name, file)| (name.clone(), of(name, file))).collect()
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
fn no_files_import_each_other_in_a_circle() {
    assert_eq!(circle(imports()), BTreeSet::new());
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
    assert_eq!(
        paths("use crate::a::{b, c::D};\nlet x = crate::e::f();"),
        ["a::b", "a::c::D", "e::f"]
    );
}
