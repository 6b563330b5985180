//! What is made from the definition of the flags: completions and man pages.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use crate::cli::exit::{EXIT_DONE, print};

const PROGRAM: &str = "kube-consul";
/// The name under which bash completions are generated: `clap_complete` writes a hyphen in the
/// program's name differently in two places, and then finds no flag of any subcommand.
const PLAIN: &str = "kube_consul";

/// `man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// The command whose page is printed, for example `register k8s` [default: the program's]
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    command: Vec<String>,
    /// Write the pages of all commands into this directory, which is made if needed
    #[arg(long, env = "KUBE_CONSUL_OUT", value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such command.
    #[error("expected one of {expected}, found {found:?}")]
    UnknownCommand {
        /// The commands that there are at this place.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// A page could not be written.
    #[error("cannot write the man pages to {directory}")]
    Write {
        /// Where to.
        directory: String,
        /// Why.
        source: io::Error,
    },
}

/// The completions of a shell for the program `program`.
pub(super) fn completions(shell: Shell, mut program: Command) -> Vec<u8> {
    let mut script = Vec::new();
    if shell != Shell::Bash {
        generate(shell, &mut program, PROGRAM, &mut script);
        return script;
    }
    generate(shell, &mut program.name(PLAIN), PLAIN, &mut script);
    let script = String::from_utf8_lossy(&script);
    // What is completed is the program's own name, at the end of `complete -F FUNCTION ... NAME`.
    let named = script.replace(&format!(" {PLAIN}\n"), &format!(" {PROGRAM}\n"));
    named.into_bytes()
}

// === impl ManArgs ===

impl ManArgs {
    /// Prints or writes the pages of `program` and gives the exit code of that.
    pub(super) fn run(&self, program: Command) -> Result<u8, Error> {
        match &self.out {
            None => page(program, &self.command).map(|page| print(&page)),
            Some(directory) => write_pages(program, directory).map(|()| EXIT_DONE),
        }
    }
}

/// The program with all its commands, each under the name of its page.
fn built(program: Command) -> Command {
    // `help` has no page: it is `--help`.
    let mut command = program.disable_help_subcommand(true);
    command.build();
    command
}

/// The page of a command: none of its names is the program itself.
fn page(program: Command, path: &[String]) -> Result<Vec<u8>, Error> {
    let program = built(program);
    let mut command = &program;
    for name in path {
        command = command.find_subcommand(name).ok_or_else(|| Error::UnknownCommand {
            expected: match command.get_subcommands().map(Command::get_name).collect::<Vec<_>>() {
                none if none.is_empty() => "no further word".to_owned(),
                names => names.join(", "),
            },
            found: name.clone(),
        })?;
    }
    let mut page = Vec::new();
    let written = Man::new(command.clone()).render(&mut page);
    written.map_err(|source| Error::Write { directory: "memory".to_owned(), source })?;
    Ok(page)
}

fn write_pages(program: Command, directory: &Path) -> Result<(), Error> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(program, directory));
    written.map_err(|source| Error::Write { directory: directory.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// Every `name(1)` that a page refers to.
    fn references(page: &str) -> Vec<String> {
        // Hyphens are escaped in roff.
        let page = page.replace("\\-", "-");
        let before = page.split("(1)").collect::<Vec<_>>();
        let word = |text: &&str| {
            let name = text.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).next();
            name.filter(|name| !name.is_empty()).map(ToOwned::to_owned)
        };
        before[..before.len() - 1].iter().filter_map(word).collect()
    }

    /// The words of the command whose page has this after the program's name; they may have hyphens.
    fn path_of(command: &Command, name: &str) -> Option<Vec<String>> {
        if name.is_empty() {
            return Some(Vec::new());
        }
        command.get_subcommands().find_map(|it| {
            let rest = name.strip_prefix('-')?.strip_prefix(it.get_name())?;
            let path = path_of(it, rest)?;
            Some(std::iter::once(it.get_name().to_owned()).chain(path).collect())
        })
    }

    #[test]
    fn every_page_that_a_page_names_can_be_had() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("man1");
        write_pages(Cli::command(), &folder).unwrap();
        let mut referred = 0;
        for file in std::fs::read_dir(&folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for name in references(&text) {
                assert!(folder.join(format!("{name}.1")).is_file(), "{name}(1)");
                let path =
                    path_of(&built(Cli::command()), name.strip_prefix(PROGRAM).unwrap()).unwrap();
                let printed = page(Cli::command(), &path).unwrap();
                let written = std::fs::read(folder.join(format!("{name}.1"))).unwrap();
                assert_eq!(printed, written, "{name}(1) is printed as it is written");
                referred += 1;
            }
        }
        assert!(referred >= 8, "{referred} references");
    }

    #[test]
    fn a_page_is_about_its_command() {
        let page = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(ToString::to_string).collect();
            super::page(Cli::command(), &path)
                .map(|page| String::from_utf8(page).unwrap().replace("\\-", "-"))
        };
        assert!(page(&[]).unwrap().contains(".TH kube-consul 1"));
        let bridge = page(&["bridge"]).unwrap();
        assert!(bridge.contains(".TH kube-consul-bridge 1") && bridge.contains("--name-template"));
        assert!(page(&["register", "k8s"]).unwrap().contains("--health-check-timeout"));
        for (path, expected) in
            [(vec!["bridges"], "bridge, plan"), (vec!["plan", "x"], "no further word")]
        {
            let error = page(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
