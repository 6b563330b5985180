//! What is run in the place of another tool, and how a shell reads it.

use std::fmt::Write as _;

/// What is run in the place of the other tool.
#[derive(Debug, Default)]
pub(super) struct Translation {
    /// What else there is to know, each about a flag of theirs.
    pub(super) notes: Vec<String>,
    /// In the order in which they are run.
    pub(super) commands: Vec<Step>,
}

/// A command with its flags, and when it is run, if that is not at once.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) when: &'static str,
    pub(super) command: Vec<String>,
}

// === impl Translation ===

impl Translation {
    /// As a script: notes are comments.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# {note}");
        }
        for Step { when, command } in &self.commands {
            let when = if when.is_empty() { String::new() } else { format!("# {when}\n") };
            let _ = writeln!(text, "\n{when}{}", shell(command));
        }
        text
    }
}

/// A command as a shell reads it, one flag a line.
fn shell(command: &[String]) -> String {
    let mut text = String::new();
    for word in command {
        if word.starts_with("--") {
            text.push_str(" \\\n  ");
        } else if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&quoted(word));
    }
    text
}

fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,:/@%+=".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, quoted) in
            [("plain", "plain"), ("{service}", "'{service}'"), ("a'b", r"'a'\''b'"), ("", "''")]
        {
            assert_eq!(super::quoted(word), quoted);
        }
    }
}
