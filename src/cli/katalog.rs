//! What the command lines of katalog-sync's two programs share: Go's way with arguments, durations
//! and variables, and the levels of its log.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};

use crate::cli::exit::EXIT_FAILED;
use crate::cli::variables::without_variables;
use crate::domain::hook::duration;
use crate::logging::{self, InvalidFilter, LogFormat};

/// The process's environment, or a test's; an empty variable is unset.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What the process finds.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the program was called by this name.
pub(super) fn is_invoked_as(name: &str) -> bool {
    let program = std::env::args_os().next();
    program.is_some_and(|path| Path::new(&path).file_name().is_some_and(|it| it == name))
}

/// Reads a command line of these programs. Their library takes the last of repeated flags, ignores
/// arguments that belong to none and what follows `--`, and knows no flags of one dash.
pub(super) fn parse<T: CommandFactory + FromArgMatches>(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<T, clap::Error> {
    let empty = |variable: &OsStr| std::env::var_os(variable).is_some_and(|it| it.is_empty());
    let arguments = arguments.into_iter().take_while(|argument| argument != "--");
    let command = without_variables(T::command(), &empty);
    command.try_get_matches_from(arguments).and_then(|found| T::from_arg_matches(&found))
}

/// Runs the process's command line and gives the exit code; an error is told on standard error.
pub(super) fn main<T: CommandFactory + FromArgMatches>(run: impl FnOnce(T) -> u8) -> u8 {
    match parse(std::env::args_os()) {
        Ok(cli) => run(cli),
        Err(error) => {
            // Nobody is left to tell it to when this fails.
            let _ = error.print();
            EXIT_FAILED
        }
    }
}

/// A duration as Go reads it.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    duration::parse(text)
}

/// Starts the log at a level of theirs, in any case of letters.
pub(super) fn start_log(level: Option<&str>) -> Result<(), InvalidFilter> {
    let level = level.unwrap_or(logging::DEFAULT_LEVEL).to_lowercase();
    let level = match level.as_str() {
        "panic" | "fatal" => "error",
        "warning" => "warn",
        other => other,
    };
    logging::start(level, LogFormat::Auto)
}
