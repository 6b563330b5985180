//! Which variables of the environment count as flags.

use std::ffi::OsStr;

/// The command without the variables of its flags that are not to count, in subcommands too: an empty
/// one is unset, as for Consul's own command. A manifest that sets one to nothing asks for nothing.
pub(super) fn without_variables(
    command: clap::Command,
    leave_out: &dyn Fn(&OsStr) -> bool,
) -> clap::Command {
    command
        .mut_args(|arg| match arg.get_env() {
            Some(variable) if leave_out(variable) => arg.env(None::<&str>),
            _ => arg,
        })
        .mut_subcommands(|subcommand| without_variables(subcommand, leave_out))
}
