//! The alerting rules and the dashboard, by Prometheus' own tool and beside what is served.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> PathBuf {
    root().join("manifests/monitoring/rules.yaml")
}

/// Runs promtool, which `make test` installs; its output.
fn promtool(arguments: &[&str], file: &Path) -> Result<String> {
    let run = Command::new("promtool").args(arguments).arg(file).output().context(
        "'promtool' is not on PATH: install it (Debian, Ubuntu: apt-get install prometheus)",
    )?;
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(run.status.success(), "{}: {said}", file.display());
    Ok(said)
}

/// What follows `before` on its line, each time.
fn all_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.trim_start().strip_prefix(before))
}

/// The metrics that an expression names.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics =
        words.filter(|word| word.starts_with("kube_consul_") || word.starts_with("process_"));
    metrics.map(str::to_owned).collect()
}

/// The metrics that the documentation names, which a unit test compares with what is served.
fn documented() -> Result<BTreeSet<String>> {
    let page = fs::read_to_string(root().join("docs/metrics.md"))?;
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    Ok(rows.flat_map(metrics_of).collect())
}

fn ensure_served(expression: &str, documented: &BTreeSet<String>) -> Result<()> {
    let named = metrics_of(expression);
    ensure!(!named.is_empty(), "{expression} names no metric");
    for metric in named {
        let of_histogram =
            ["_bucket", "_sum", "_count"].iter().find_map(|it| metric.strip_suffix(it));
        let is_served = documented.contains(&metric)
            || of_histogram.is_some_and(|metric| documented.contains(metric));
        ensure!(is_served, "{metric} of {expression:?} is not served");
    }
    Ok(())
}

#[test]
fn every_alert_fires_when_it_has_to_and_only_then() -> Result<()> {
    promtool(&["check", "rules"], &rules())?;
    let folder = tempfile::tempdir()?;
    let tests = include_str!("rules_test.yaml");
    let file = folder.path().join("rules_test.yaml");
    fs::write(&file, tests.replace("[RULES]", &format!("[{}]", rules().display())))?;
    promtool(&["test", "rules"], &file)?;

    // A rule that can never fire fails its test.
    let broken = folder.path().join("rules.yaml");
    fs::write(&broken, fs::read_to_string(rules())?.replace(" == 0", " == 2"))?;
    fs::write(&file, tests.replace("[RULES]", &format!("[{}]", broken.display())))?;
    ensure!(promtool(&["test", "rules"], &file).is_err(), "no alert is missed");
    Ok(())
}

#[test]
fn every_alert_is_tested_and_has_a_section_in_the_runbook() -> Result<()> {
    let (rules, documented) = (fs::read_to_string(rules())?, documented()?);
    let runbook = fs::read_to_string(root().join("docs/runbook.md"))?;
    let tests = include_str!("rules_test.yaml");
    let alerts: Vec<&str> = all_after(&rules, "- alert: ").collect();
    ensure!(alerts.len() > 10, "{alerts:?}");
    let sections: Vec<&str> = all_after(&runbook, "## ").collect();
    ensure!(sections == alerts, "expected the sections {alerts:?}, found {sections:?}");
    for (alert, rule) in alerts.iter().zip(rules.split("- alert: ").skip(1)) {
        let link = format!("docs/runbook.md#{}\n", alert.to_lowercase());
        ensure!(rule.contains(&link), "{alert} does not lead to {link}");
        let named = format!("alertname: {alert}\n");
        let cases = tests.split(&named).skip(1);
        let fires = |case: &&str| !case.trim_start().starts_with("exp_alerts: []");
        let (firing, silent): (Vec<&str>, Vec<&str>) = cases.partition(fires);
        ensure!(!firing.is_empty() && !silent.is_empty(), "{alert} is not tested both ways");
        let expression = rule.split("for: ").next().unwrap_or_default();
        ensure_served(expression.split("expr:").nth(1).unwrap_or_default(), &documented)?;
    }
    Ok(())
}

#[test]
fn every_query_of_the_dashboard_parses_and_names_what_is_served() -> Result<()> {
    let documented = documented()?;
    let dashboard = fs::read_to_string(root().join("manifests/monitoring/dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries: Vec<&str> = targets.filter_map(|target| target["expr"].as_str()).collect();
    ensure!(queries.len() > 15, "{queries:?}");
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, query) in queries.iter().enumerate() {
        ensure_served(query, &documented)?;
        // What Grafana puts in.
        let query = query.replace("$__rate_interval", "5m");
        let query = Value::from(query);
        writeln!(rules, "  - record: query:number{number}\n    expr: {query}")?;
    }
    ensure!(ensure_served("rate(kube_consul_no_such_total[5m])", &documented).is_err());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("dashboard.yaml");
    fs::write(&file, rules)?;
    let said = promtool(&["check", "rules"], &file)?;
    ensure!(said.contains(&format!("{} rules found", queries.len())), "{said}");
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        if let Some(query) = variable["query"]["query"].as_str() {
            ensure_served(query, &documented)?;
        }
    }
    Ok(())
}
