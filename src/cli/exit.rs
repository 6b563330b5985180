//! How a subcommand ends: exit codes, and what is printed on the way out.

use std::io::Write as _;

use crate::domain::text::chain;
use crate::logging;
use crate::run;

/// Done.
pub const EXIT_DONE: u8 = 0;
/// Something failed.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const EXIT_USAGE: u8 = 2;
/// Refused for safety.
pub const EXIT_REFUSED: u8 = 3;
/// Interrupted by the user.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The exit code of a subcommand, its error reported on standard error.
pub(super) fn finish(result: Result<(), run::Error>) -> u8 {
    let Err(error) = result else { return EXIT_DONE };
    match &error {
        run::Error::Usage(_) => usage(&error),
        run::Error::Refused(_) => {
            failed(&error);
            EXIT_REFUSED
        }
        run::Error::Failed(_) => failed(&error),
        run::Error::Interrupted => EXIT_INTERRUPTED,
    }
}

pub(super) fn usage(error: &(dyn std::error::Error + 'static)) -> u8 {
    failed(error);
    EXIT_USAGE
}

pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> u8 {
    logging::final_error(&chain(error));
    EXIT_FAILED
}

/// Prints what was asked for. Whoever reads may have seen enough before its end, as `head` does.
pub(super) fn print(text: &[u8]) -> u8 {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => failed(&error),
        Ok(()) | Err(_) => EXIT_DONE,
    }
}
