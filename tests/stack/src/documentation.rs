//! The commands in Markdown pages: fenced blocks of a shell, and what they consist of.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Stands before a block whose commands a test runs.
const RUN: &str = "<!-- run -->";

/// Stands before one that another test runs, with its name, and before one that none does, with the
/// reason.
const ELSEWHERE: [&str; 2] = ["<!-- run by ", "<!-- not run: "];

/// What separates commands on one line.
const SEPARATORS: [&str; 5] = ["|", "||", "&&", ";", "&"];

/// A fenced block of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The number of its first line in the page, from 1.
    pub line: usize,
    /// What stands behind the fence: `sh`, `console`, `yaml`, ...
    pub language: String,
    /// Whether the page says that it is run.
    pub is_run: bool,
    /// What the page says of who else runs it, or why nobody does: `run by` and a test's name, or `not
    /// run:` and a reason.
    pub elsewhere: Option<String>,
    /// What stands between the fences.
    pub lines: Vec<String>,
}

/// A command line, and what it is said to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// As it would be typed.
    pub command: String,
    /// Line by line, see [`is_as_shown`].
    pub output: Vec<String>,
}

/// The Markdown pages of a checkout: those of its root, and those in `docs`.
pub fn pages(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut pages = Vec::new();
    let mut folders = vec![(root.to_owned(), false), (root.join("docs"), true)];
    while let Some((folder, is_deep)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && is_deep {
                folders.push((path, true));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path)?;
                pages.push((path.strip_prefix(root)?.to_owned(), text));
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The fenced blocks of a page.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let (mut is_run, mut elsewhere) = (false, None);
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                let language = language.trim().to_owned();
                let (elsewhere, lines) = (elsewhere.take(), Vec::new());
                open = Some(Block { line: number + 1, language, is_run, elsewhere, lines });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line.to_owned()),
            (None, None) => {
                let line = line.trim();
                is_run = line == RUN;
                let is_said = ELSEWHERE.iter().any(|it| line.starts_with(it));
                elsewhere = is_said
                    .then(|| line.trim_start_matches("<!-- ").trim_end_matches(" -->").to_owned());
            }
        }
    }
    ensure!(open.is_none(), "a block is not closed");
    Ok(blocks)
}

impl Block {
    /// Its commands: each line of a script; of a session only what follows `$ `, with the output
    /// that is shown after it. Lines that end with a backslash go on.
    pub fn commands(&self) -> Result<Vec<Shown>> {
        let is_session = match self.language.as_str() {
            "sh" | "bash" => false,
            "console" => true,
            _ => return Ok(Vec::new()),
        };
        let mut commands: Vec<Shown> = Vec::new();
        let mut goes_on = false;
        for line in &self.lines {
            let command = if is_session { line.strip_prefix("$ ") } else { Some(line.as_str()) };
            match (commands.last_mut(), command) {
                (Some(last), _) if goes_on => {
                    last.command.truncate(last.command.len() - 1);
                    last.command.push_str(line.trim_start());
                }
                (_, Some(command)) if command.trim().is_empty() || command.starts_with('#') => {}
                (_, Some(command)) => {
                    commands.push(Shown { command: command.to_owned(), output: Vec::new() });
                }
                (Some(last), None) => last.output.push(line.clone()),
                (None, None) => bail!("a session begins with a command after '$ ', found {line:?}"),
            }
            let command = !is_session || line.starts_with("$ ") || goes_on;
            goes_on = command && line.ends_with('\\');
        }
        Ok(commands)
    }
}

/// The programs that a command line calls, each with its arguments: variables set before it and
/// where its output goes are left out.
pub fn calls(command: &str) -> Result<Vec<Vec<String>>> {
    let words = shlex::split(command).with_context(|| format!("unpaired quotes: {command}"))?;
    let mut calls = vec![Vec::new()];
    let mut is_file = false;
    for word in words {
        if SEPARATORS.contains(&word.as_str()) {
            calls.push(Vec::new());
        } else if std::mem::take(&mut is_file) {
            // Where output goes.
        } else if [">", ">>", "<", "2>"].contains(&word.as_str()) {
            is_file = true;
        } else if let Some(call) = calls.last_mut()
            && !(call.is_empty() && is_assignment(&word))
        {
            call.push(word);
        }
    }
    calls.retain(|call| !call.is_empty());
    Ok(calls)
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|it| it.is_ascii_uppercase() || it == b'_')
    })
}

/// Whether a program printed what is shown: a line of three dots stands for any lines, three dots
/// within a line for anything.
pub fn is_as_shown(shown: &[String], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((line, rest)), _) if line.trim() == "..." => {
            (0..=printed.len()).any(|skipped| is_as_shown(rest, &printed[skipped..]))
        }
        (Some((line, rest)), Some((first, others))) => {
            is_line_as_shown(line, first) && is_as_shown(rest, others)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn is_line_as_shown(shown: &str, printed: &str) -> bool {
    let parts: Vec<&str> = shown.trim_end().split("...").collect();
    let printed = printed.trim_end();
    let [first, middle @ .., last] = &parts[..] else { return shown.trim_end() == printed };
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn commands_are_found_where_they_stand() -> Result<()> {
        let page = "text\n```sh\n# why\nA=1 b --c 'd e' \\\n  f | g > h\n```\n<!-- run -->\n\
                    ```console\n$ one\nsaid\n\nmore\n$ two\n```\n\n```yaml\nx: y\n```\n";
        let blocks = blocks(page)?;
        let places: Vec<_> = blocks.iter().map(|it| (it.line, &*it.language, it.is_run)).collect();
        assert_eq!(places, [(3, "sh", false), (9, "console", true), (17, "yaml", false)]);
        let commands = blocks[0].commands()?;
        let [Shown { command, .. }] = &commands[..] else { panic!("{commands:?}") };
        assert_eq!(calls(command)?, [vec!["b", "--c", "d e", "f"], vec!["g"]]);
        let commands = blocks[1].commands()?;
        assert_eq!(commands.len(), 2);
        assert_eq!(commands[0], Shown { command: "one".into(), output: lines("said\n\nmore") });
        assert!(blocks[2].commands()?.is_empty());
        assert!(super::blocks("```sh\nnever closed").is_err());
        Ok(())
    }

    #[test]
    fn what_is_printed_is_compared_with_what_is_shown() {
        for (shown, printed, is_same) in [
            ("a\nb", "a\nb", true),
            ("a\nb", "a", false),
            ("a", "a\nb", false),
            ("a\n...\nd", "a\nb\nc\nd", true),
            ("a\n...\nd", "a\nd", true),
            ("a\n...\nd", "a\nb", false),
            ("x ... y", "x 17 y", true),
            ("x ... y", "x 17 z", false),
            ("...-...", "a-b", true),
            ("...-...", "ab", false),
            ("...", "", true),
        ] {
            let printed: Vec<&str> = printed.lines().collect();
            assert_eq!(is_as_shown(&lines(shown), &printed), is_same, "{shown:?} {printed:?}");
        }
    }
}
