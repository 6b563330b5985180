//! Figures, the table, and the files that are written.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::plot;
use super::{Scale, Scenario};

/// Between these the documentation has the table.
const BEGIN: &str = "<!-- bench: begin -->\n";
const END: &str = "<!-- bench: end -->";

/// A scenario that was not measured to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    scenario: String,
    reason: String,
}

/// All rows of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// When it was made, UTC.
    date: String,
    /// What was measured, and on what.
    versions: Vec<String>,
    /// The machine's shape.
    machine: String,
    services: usize,
    /// Of the whole run.
    pub took: Duration,
    figures: Vec<Figure>,
    /// What could not be measured.
    pub failures: Vec<Failure>,
}

// === impl Report ===

impl Report {
    /// Nothing is measured yet.
    pub fn new(scale: &Scale) -> Self {
        Self {
            date: output("date", &["-u", "+%Y-%m-%d"]),
            versions: [
                output(&scale.program.display().to_string(), &["--version"]),
                tool("kube-apiserver", "--version"),
                tool("consul", "version"),
                output("rustc", &["--version"]),
            ]
            .into(),
            machine: machine(),
            services: scale.services,
            took: Duration::ZERO,
            figures: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Takes the rows of a scenario, and shows them.
    pub fn add(&mut self, of: &Scenario, (figures, measured): (Vec<Figure>, Result<()>)) {
        let bold = Style::new().bold();
        anstream::println!("\n{bold}{}{bold:#}: {}", of.name, of.about);
        figures.iter().for_each(Figure::show);
        self.figures.extend(figures);
        if let Err(error) = measured {
            let red = AnsiColor::Red.on_default();
            anstream::eprintln!("{red}{} failed: {error:#}{red:#}", of.name);
            let reason = format!("{error:#}");
            let reason = reason.lines().next().unwrap_or_default().to_owned();
            self.failures.push(Failure { scenario: of.name.clone(), reason });
        }
    }

    /// The table, as Markdown.
    pub fn table(&self) -> String {
        let minutes = self.took.as_secs().div_ceil(60);
        let mut text = format!(
            "Measured on {} by `make bench` in {minutes} minutes, on {}, with:\n\n",
            self.date, self.machine
        );
        for version in &self.versions {
            let _ = writeln!(text, "- {version}");
        }
        for group in self.figures.chunk_by(|a, b| a.group == b.group) {
            let name = &group[0].group;
            let _ = writeln!(
                text,
                "\n### {}{}\n\n| | median (least to most) | floor | ratio | goal | reached |\n\
                 |---|---|---|---|---|---|",
                name[..1].to_uppercase(),
                &name[1..]
            );
            for figure in group {
                let _ = writeln!(text, "{}", figure.line());
            }
        }
        for Failure { scenario, reason } in &self.failures {
            let _ = writeln!(text, "\nNot measured to its end: {scenario}: {reason}");
        }
        text
    }

    /// Writes the table, JSON and a plot of each scenario.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(folder.join("bench.md"), self.table())?;
        fs::write(folder.join("bench.json"), serde_json::to_string_pretty(self)? + "\n")?;
        for group in self.figures.chunk_by(|a, b| a.group == b.group) {
            let name = group[0].group.replace([',', '/'], "").replace(' ', "-");
            plot::group(&folder.join(format!("{name}.svg")), group)?;
        }
        println!("\ntable, JSON and plots are in {}", folder.display());
        Ok(())
    }

    /// Puts the table into the page of this folder, with JSON and plots beside it.
    pub fn document(&self, docs: &Path) -> Result<()> {
        let folder = docs.join("performance");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        self.write(&folder)?;
        fs::remove_file(folder.join("bench.md"))?;
        let page = docs.join("performance.md");
        let text = fs::read_to_string(&page)?;
        let (before, _, after) = split(&text).with_context(|| page.display().to_string())?;
        fs::write(&page, format!("{before}{BEGIN}{}{END}{after}", self.table()))?;
        Ok(())
    }
}

/// A page in three parts: before the table, the table, and after it.
pub fn split(page: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = page.split_once(BEGIN).context("no place for the table")?;
    let (table, after) = rest.split_once(END).context("no end of the table")?;
    Ok((before, table, after))
}

/// The first line that a program says.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn tool(name: &str, argument: &str) -> String {
    let path = kube_consul_stack::program_path(name).unwrap_or_default();
    output(&path.display().to_string(), &[argument])
}

/// How many cores of which kind, and how much memory.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kibibytes: u64 =
        field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let model = field("/proc/cpuinfo", "model name");
    format!("{cores} cores ({model}), {} GiB", kibibytes >> 20)
}
