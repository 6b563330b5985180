//! The command line as consul-registration-hook read it: its library takes long flags with one dash
//! or two, the next argument as a flag's value whatever it is, the last of repeated flags, and
//! ignores arguments that it has no use for.

use std::ffi::OsString;

/// The arguments for [`super::HookCli`], of which the first is the program.
pub(super) fn arguments(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut rest = arguments.into_iter();
    let mut result: Vec<OsString> = rest.next().into_iter().collect();
    let mut rest: Vec<OsString> = rest.collect();
    // The program's own flags, then the verb's, which has none; then the source's.
    for _ in 0..2 {
        let (flags, mut others) = split_flags(rest);
        result.extend(flags);
        if others.is_empty() {
            // There it shows how it is used, and that is no failure.
            result.push("--help".into());
            return result;
        }
        let command = others.remove(0);
        if command == "h" || command == "help" {
            result.push("help".into());
            result.extend(others);
            return result;
        }
        result.push(command);
        rest = others;
    }
    // Whatever comes before a source's first flag is no flag's, and of no use.
    let ends = rest.iter().position(|argument| argument == "--").unwrap_or(rest.len());
    rest.truncate(ends);
    let first = rest.iter().position(is_flag).unwrap_or(rest.len());
    result.extend(split_flags(rest.split_off(first)).0);
    result
}

/// The flags that these begin with, each once and with its value behind `=`, and what follows.
fn split_flags(arguments: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let mut flags: Vec<(String, OsString)> = Vec::new();
    let mut rest = arguments.into_iter().peekable();
    while let Some(flag) = rest.next_if(is_flag) {
        if flag == "--" {
            break;
        }
        let Some(text) = flag.to_str() else {
            flags.push((String::new(), flag));
            continue;
        };
        let name = text.trim_start_matches('-');
        let (name, argument) = match (name, name.split_once('=')) {
            ("h" | "help", _) => ("help", "--help".into()),
            ("v" | "version", _) => ("version", "--version".into()),
            (_, Some((name, _))) => (name, format!("--{}", text.trim_start_matches('-')).into()),
            (_, None) => {
                let mut argument = OsString::from(format!("--{name}"));
                if let Some(value) = rest.next() {
                    argument.push("=");
                    argument.push(value);
                }
                (name, argument)
            }
        };
        flags.retain(|(earlier, _)| earlier != name);
        flags.push((name.to_owned(), argument));
    }
    (flags.into_iter().map(|(_, argument)| argument).collect(), rest.collect())
}

/// A dash alone is none.
fn is_flag(argument: &OsString) -> bool {
    argument.as_encoded_bytes().starts_with(b"-") && argument != "-"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each run beside the original.
    #[test]
    fn h7_h8_arguments_are_read_as_the_original_reads_them() {
        for (given, expected) in [
            ("register k8s", "register k8s"),
            ("-consul-acl-file f register k8s", "--consul-acl-file=f register k8s"),
            ("--consul-acl-file= register k8s", "--consul-acl-file= register k8s"),
            // The next argument is the value, whatever it is.
            ("register cli --service-tags -a,b", "register cli --service-tags=-a,b"),
            ("register cli -service-tags --pod-ip", "register cli --service-tags=--pod-ip"),
            ("register cli --service-tags=-a,b", "register cli --service-tags=-a,b"),
            ("register cli --check-path=/a=b", "register cli --check-path=/a=b"),
            // The last counts.
            ("--x=1 --x 2 register k8s", "--x=2 register k8s"),
            ("register k8s --x 1 -y 2 -x=3", "register k8s --y=2 --x=3"),
            // Other arguments do not matter, nor does what follows them.
            ("register k8s extra", "register k8s"),
            ("register k8s extra more --x 1", "register k8s --x=1"),
            ("register k8s --x 1 extra --y 2", "register k8s --x=1"),
            ("register k8s - --x 1", "register k8s --x=1"),
            ("register k8s --x 1 -- --y 2", "register k8s --x=1"),
            // Without a command it shows its help.
            ("", "--help"),
            ("register", "register --help"),
            ("--consul-acl-file f", "--consul-acl-file=f --help"),
            ("h", "help"),
            ("help register", "help register"),
            ("register help k8s", "register help k8s"),
            ("register k8s -h", "register k8s --help"),
            ("-v", "--version --help"),
            // What it did not know stays wrong.
            ("register nope", "register nope"),
            ("register k8s --x", "register k8s --x"),
        ] {
            let all = |text: &str| -> Vec<OsString> {
                ["hook"].into_iter().chain(text.split_whitespace()).map(OsString::from).collect()
            };
            assert_eq!(arguments(all(given)), all(expected), "{given}");
        }
    }
}
