//! The documentation beside the program: its commands, its flags, its links.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::ValueRange;
use clap::error::ErrorKind;
use clap::{Arg, Command, CommandFactory, Parser};
use kube_consul_stack::documentation::{blocks, calls, pages};

use super::Cli;

const PROGRAM: &str = "kube-consul";
/// The page that is generated.
const FLAGS: &str = "docs/flags.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documentation() -> Vec<(PathBuf, String)> {
    let pages = pages(root()).unwrap();
    assert!(pages.len() > 15, "only {} pages", pages.len());
    pages
}

/// The calls of this program in a command line.
fn calls_of_this(command_line: &str) -> Vec<Vec<String>> {
    let all = calls(command_line).unwrap();
    all.into_iter().filter(|call| call[0].rsplit('/').next() == Some(PROGRAM)).collect()
}

/// A command line has to be one that the program takes.
fn assert_taken(command_line: &str, place: &str) {
    for call in calls_of_this(command_line) {
        match Cli::try_parse_from(&call) {
            Err(error) if error.use_stderr() => panic!("{place}: {command_line}\n{error}"),
            Ok(_) | Err(_) => {}
        }
    }
}

/// The same, where a sentence may name a command without what it requires.
fn assert_named(code: &str, place: &str) {
    let words = calls_of_this(code).concat();
    let error = Cli::try_parse_from(&words).err();
    if error.is_some_and(|error| error.kind() == ErrorKind::MissingRequiredArgument) {
        let cli = Cli::command();
        let named = words[1..].iter().try_fold(&cli, |it, name| it.find_subcommand(name));
        assert!(named.is_some(), "{place}: {code}");
    } else {
        assert_taken(code, place);
    }
}

/// What stands in single backticks.
fn inline_code(page: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if !is_block {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

#[test]
fn every_command_in_the_documentation_is_taken() {
    let (mut in_blocks, mut inline) = (0, 0);
    for (path, page) in documentation() {
        for block in blocks(&page).unwrap() {
            let place = format!("{}:{}", path.display(), block.line);
            let commands = block.commands().unwrap_or_else(|error| panic!("{place}: {error}"));
            for shown in &commands {
                in_blocks += calls_of_this(&shown.command).len();
                assert_taken(&shown.command, &place);
            }
            // Nothing escapes by standing in a block of another kind.
            let escapes = block.lines.iter().find(|line| {
                let line = line.trim_start().trim_start_matches("$ ");
                let is_call = line.strip_prefix(PROGRAM).is_some_and(|rest| rest.starts_with(' '));
                commands.is_empty() && is_call
            });
            assert_eq!(escapes, None, "{place}: expected a block of sh or console");
        }
        for code in inline_code(&page) {
            if code.starts_with("kube-consul ") {
                inline += 1;
                assert_named(code, &path.display().to_string());
            }
        }
    }
    assert!(in_blocks >= 15 && inline >= 5, "{in_blocks} in blocks, {inline} in lines");
}

#[test]
fn the_examples_in_help_texts_are_taken() {
    let mut examples = 0;
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().map(str::trim).filter(|line| line.contains("kube-consul ")) {
            if !line.starts_with('#') {
                assert_taken(line, command.get_name());
                examples += 1;
            }
        }
    }
    assert!(examples >= 7, "{examples}");
}

/// All long flags of a command and of those below it.
fn long_flags(command: &Command, flags: &mut BTreeSet<String>) {
    for arg in command.get_arguments() {
        let longs = arg.get_long_and_visible_aliases().into_iter().flatten();
        flags.extend(longs.map(|long| format!("--{long}")));
    }
    command.get_subcommands().for_each(|command| long_flags(command, flags));
}

#[test]
fn every_flag_that_the_documentation_names_exists() {
    let mut cli = Cli::command();
    cli.build();
    let mut flags = BTreeSet::new();
    long_flags(&cli, &mut flags);
    let mut named = 0;
    // Pages about Consul servers and development name other programs' flags.
    let is_about_this = |path: &Path| path.starts_with("docs") && path.components().count() == 2;
    for (path, page) in documentation() {
        if !is_about_this(&path) && path != Path::new("README.md") {
            continue;
        }
        for code in inline_code(&page).into_iter().filter(|code| code.starts_with("--")) {
            let flag = code.split([' ', '=', '…']).next().unwrap();
            let is_family = code.ends_with('…') && flags.iter().any(|it| it.starts_with(flag));
            let is_pattern = flag == "--some-flag";
            assert!(flags.contains(flag) || is_family || is_pattern, "{}: {code}", path.display());
            named += 1;
        }
    }
    assert!(named > 60, "{named}");
}

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept =
                text.chars().filter(|it| it.is_alphanumeric() || [' ', '-', '_'].contains(it));
            kept.map(|it| if it == ' ' { '-' } else { it }).collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (path, page) in documentation() {
        for target in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = match file {
                "" => root().join(&path),
                file => root().join(path.parent().unwrap()).join(file),
            };
            assert!(linked.exists(), "{}: {target}", path.display());
            if !anchor.is_empty() {
                let anchors = anchors(&std::fs::read_to_string(&linked).unwrap());
                assert!(anchors.contains(anchor), "{}: {target}: {anchors:?}", path.display());
            }
            links += 1;
        }
    }
    assert!(links > 50, "{links}");
}

/// Whether a source file defines a name: a function, a type, a variant, a constant.
fn defines(source: &str, name: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "const", "type", "mod", "macro_rules!"];
    source.lines().map(str::trim_start).any(|line| {
        let words: Vec<&str> = line
            .split(|it: char| !(it.is_alphanumeric() || it == '_' || it == '!'))
            .filter(|word| !word.is_empty())
            .collect();
        let is_item = words.windows(2).any(|two| kinds.contains(&two[0]) && two[1] == name);
        let is_variant = words.first() == Some(&name) && line.ends_with([',', '{']);
        !line.starts_with("//") && (is_item || is_variant)
    })
}

/// A path may be followed by `::` and what is defined in that file.
#[test]
fn what_is_named_of_the_source_exists() {
    let (mut paths, mut walk) = (0, 0);
    for (path, page) in documentation() {
        for code in inline_code(&page) {
            let top = ["manifests/", "src/", "tests/", "docs/", "docker/", "benches/"];
            if top.iter().any(|top| code.starts_with(top)) && !code.contains(['*', '<', ' ']) {
                let (file, name) = code.split_once("::").unwrap_or((code, ""));
                assert!(root().join(file).exists(), "{}: {code}", path.display());
                if !name.is_empty() {
                    let source = std::fs::read_to_string(root().join(file)).unwrap();
                    assert!(defines(&source, name), "{}: {code}", path.display());
                    walk += usize::from(path.ends_with("architecture.md"));
                }
                paths += 1;
            }
        }
    }
    assert!(paths > 20, "{paths}");
    assert!(walk > 25, "the walk of an event names {walk} places");
}

#[test]
fn the_index_has_every_page() {
    let index = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    for (path, _) in documentation() {
        let Ok(path) = path.strip_prefix("docs") else { continue };
        // A folder of pages has an index of its own.
        let is_own = path.components().count() > 1 && !path.starts_with("dev");
        if path != Path::new("README.md") && !is_own {
            assert!(index.contains(&format!("]({})", path.display())), "{}", path.display());
        }
    }
}

/// Whoever looks for what to apply finds it from the page of installations, or from the index of
/// Consul's own.
#[test]
fn every_folder_of_manifests_is_found_from_the_page_of_installations() {
    let pages = ["docs/install.md", "docs/consul/README.md"];
    let pages = pages.map(|page| std::fs::read_to_string(root().join(page)).unwrap()).concat();
    let words: BTreeSet<&str> = pages.split('`').skip(1).step_by(2).collect();
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("manifests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_named = words.contains(&*name) || words.contains(&*format!("manifests/{name}"));
        assert!(is_named, "manifests/{name}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn every_dependency_has_its_reason() {
    let page = std::fs::read_to_string(root().join("docs/dev/dependencies.md")).unwrap();
    let table = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let table: BTreeSet<&str> = table.flat_map(|names| names.split(", ")).collect();
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
    let (dependencies, _) = rest.split_once("\n[").unwrap();
    let dependencies = dependencies.lines().filter_map(|line| line.split_once(" = "));
    let mut dependencies: BTreeSet<&str> = dependencies.map(|(name, _)| name).collect();
    assert!(dependencies.len() > 20, "{dependencies:?}");
    dependencies.insert("crate");
    assert_eq!(table, dependencies);
}

/// Regenerates the page with `make docs`.
#[test]
fn the_page_of_flags_is_what_the_program_takes() {
    let (path, expected) = (root().join(FLAGS), flags_page());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{FLAGS} is not what the program takes: run `make docs`");
}

fn flags_page() -> String {
    let mut page =
        "# Flags\n\n<!-- Generated from the program: `make docs` writes it anew. -->\n\n\
         A flag wins over its variable. Every `CONSUL_*` variable of Consul's own command is \
         honoured, too\n([install](install.md#finding-kubernetes-and-consul)).\n"
            .to_owned();
    let cli = Cli::command();
    write_section(&mut page, "All commands", &cli);
    write_commands(&mut page, "", &cli);
    page
}

fn write_commands(page: &mut String, path: &str, command: &Command) {
    for command in command.get_subcommands() {
        let path = format!("{path} {}", command.get_name());
        write_section(page, path.trim(), command);
        write_commands(page, &path, command);
    }
}

fn write_section(page: &mut String, title: &str, command: &Command) {
    let flags = command.get_arguments().filter(|arg| {
        let is_named = |long| !["help", "version"].contains(&long);
        !arg.is_hide_set() && arg.get_long().is_some_and(is_named)
    });
    let rows: Vec<String> = flags.map(row).collect();
    if rows.is_empty() {
        return;
    }
    let head = "| flag | variable | default | meaning |\n|---|---|---|---|";
    writeln!(page, "\n## {title}\n\n{head}\n{}", rows.join("\n")).unwrap();
}

fn row(arg: &Arg) -> String {
    let takes_value = arg.get_action().takes_values();
    let value = match arg.get_value_names() {
        Some([name]) if takes_value => format!(" {name}"),
        _ => String::new(),
    };
    assert!(
        arg.get_num_args().is_none_or(|it| it == ValueRange::EMPTY || it == ValueRange::SINGLE)
    );
    let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let longs = arg.get_long_and_visible_aliases().into_iter().flatten();
    let longs: Vec<String> = longs.map(|long| format!("`--{long}{value}`")).collect();
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
    let defaults = arg.get_default_values().iter().map(|it| it.to_string_lossy());
    let default = defaults.collect::<Vec<_>>().join(",");
    let default = if default.is_empty() || !takes_value { default } else { format!("`{default}`") };
    let default = if takes_value { default } else { String::new() };
    // What is in angle brackets would be taken for HTML.
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.replace('\n', " ").replace('<', "\\<").replace('|', "\\|");
    let words: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| takes_value)
        .map(|word| format!("`{}`", word.get_name()))
        .collect();
    let words = if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) };
    let (names, variable) = (longs.join(", "), variable.unwrap_or_default());
    format!("| {short}{names} | {variable} | {default} | {help}{words} |")
}
