//! What a check found, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::domain::text::one_line;

/// Longest text of a line, in bytes: a chain of errors fits.
const LINE: usize = 2 << 10;

/// How good what was found is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it has to be.
    Ok,
    /// The bridge works, and something of it may not.
    Warning,
    /// The bridge does not work.
    Failed,
    /// It cannot be known, because something before it failed.
    Skipped,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How good it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// Whether nothing failed.
    pub ok: bool,
    /// In the order in which they were looked at.
    pub checks: Vec<Finding>,
}

// === impl Status ===

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
        }
    }
}

// === impl Findings ===

impl Findings {
    pub(super) fn of(checks: Vec<Finding>) -> Self {
        Self { ok: checks.iter().all(|it| it.status != Status::Failed), checks }
    }

    /// A line each, what to do below it. What comes from Consul or the API server may hold anything,
    /// escape sequences for a terminal too.
    pub(super) fn text(&self) -> String {
        let wide = self.checks.iter().map(|it| it.check.len()).max().unwrap_or(0);
        let mut text = String::new();
        let line = |text: &str| one_line(text, LINE);
        for Finding { check, status, found, remedy } in &self.checks {
            let (check, found) = (line(check), line(found));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{:<8} {check:<wide$}  {found}", status.as_str());
            if let Some(remedy) = remedy.as_deref().map(line) {
                let _ = writeln!(text, "{:<8} {:<wide$}  -> {remedy}", "", "");
            }
        }
        text
    }
}

pub(super) fn ok(check: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding { check: check.into(), status: Status::Ok, found: found.into(), remedy: None }
}

pub(super) fn warning(
    check: impl Into<String>,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { status: Status::Warning, remedy: Some(remedy.into()), ..ok(check, found) }
}

pub(super) fn failed(
    check: impl Into<String>,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { status: Status::Failed, remedy: Some(remedy.into()), ..ok(check, found) }
}

pub(super) fn skipped(check: impl Into<String>, why: impl Into<String>) -> Finding {
    Finding { status: Status::Skipped, ..ok(check, why) }
}
