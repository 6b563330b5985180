//! `status` and `explain`: what a running bridge says of itself at its admin address. Only a bridge that
//! runs knows what it waits for; what one would do is `plan`'s to say.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::text::{chain, counted, escape_unseen, one_line};
use crate::run::Error;
use crate::run::daemon::connect::runtime;
use crate::run::plan::Output;

/// The loop of a bridge answers within ten seconds or not at all.
const DEADLINE: Duration = Duration::from_secs(15);
/// Pages of 200 Services that are read: half a million Services, which is more than one cluster has.
const MAX_PAGES: usize = 2_500;
/// Longest message in a line, in bytes: that of a problem is below.
const LINE: usize = 600;

/// Which Service is explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Prints what the bridge at `url` does: a table, or all of `/status` as one object.
pub fn status(url: &str, output: Output) -> Result<(), Error> {
    let page = runtime()?.block_on(all(url))?;
    print(&match output {
        Output::Text => table(&page),
        Output::Json => pretty(&page),
    })
}

/// Prints what is registered of one Service, and why the rest is not.
pub fn explain(url: &str, service: &ServiceName, output: Output) -> Result<(), Error> {
    let found = runtime()?.block_on(one(url, service))?;
    let ServiceName { namespace, name } = service;
    let Some(found) = found else {
        return Err(Error::Failed(format!(
            "the bridge at {url} has no Service {namespace}/{name}: there is none, or its namespace is \
             left out by --namespace or --deny-namespace"
        )));
    };
    print(&match output {
        Output::Text => explanation(&found),
        Output::Json => pretty(&found),
    })
}

/// All pages in one.
async fn all(url: &str) -> Result<Value, Error> {
    let mut whole = page(url, None).await?;
    let mut next = whole["next"].take();
    for _ in 1..MAX_PAGES {
        let Some(after) = next.as_str() else { break };
        let mut page = page(url, Some(after)).await?;
        next = page["next"].take();
        let more = page["services"].as_array_mut().map(std::mem::take).unwrap_or_default();
        if let Some(services) = whole["services"].as_array_mut() {
            services.extend(more);
        }
    }
    Ok(whole)
}

/// One Service, if the bridge has it.
async fn one(url: &str, service: &ServiceName) -> Result<Option<Value>, Error> {
    let before = before(&service.name);
    let after = format!("{}/{before}", service.namespace);
    let page = page(url, Some(&after)).await?;
    let services = page["services"].as_array().into_iter().flatten();
    let mut ours =
        services.filter(|it| it["namespace"] == *service.namespace && it["name"] == *service.name);
    let Some(found) = ours.next() else { return Ok(None) };
    let mut found = found.clone();
    found["bridge"] = json!({"ready": page["ready"], "reason": page["reason"],
        "leadership": page["leadership"]});
    Ok(Some(found))
}

/// Something that sorts before this name, and after each other name that does.
fn before(name: &str) -> String {
    let (rest, last) = name.split_at(name.len() - 1);
    // Names end with a letter or digit, so there is one before it; `~` is after all of a name.
    let last = last.bytes().map(|byte| char::from(byte - 1));
    format!("{rest}{}~", last.collect::<String>())
}

async fn page(url: &str, after: Option<&str>) -> Result<Value, Error> {
    let failed = |error: reqwest::Error| {
        Error::Failed(format!(
            "no bridge answers at {url}: {}; --admin-url is where one serves /status (in a cluster: \
             kubectl port-forward deployment/kube-consul 9655). What a bridge would do is shown by \
             kube-consul plan",
            chain(&error.without_url())
        ))
    };
    let client = reqwest::Client::builder().timeout(DEADLINE).no_proxy().tls_certs_only([]);
    let client = client.build().map_err(failed)?;
    let query = after.map(|after| format!("?after={after}")).unwrap_or_default();
    let base = url.trim_end_matches('/');
    let answer = client.get(format!("{base}/status{query}")).send().await.map_err(failed)?;
    let answer = answer.error_for_status().map_err(failed)?;
    let text = answer.text().await.map_err(failed)?;
    serde_json::from_str(&text)
        .ok()
        .filter(|page: &Value| page["services"].is_array() && page["counts"].is_object())
        .ok_or_else(|| {
            Error::Failed(format!("{url}/status: expected that of a bridge, found other"))
        })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn print(text: &str) -> Result<(), Error> {
    match anstream::stdout().write_all(escape_unseen(text).as_bytes()) {
        // Whoever reads may have seen enough before its end, as `head` does.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("cannot write: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A text of JSON on one line: what others wrote must not reach a terminal as it is.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => one_line(text, LINE),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn table(page: &Value) -> String {
    let mut out = String::new();
    let ready = if page["ready"] == true {
        "ready".to_owned()
    } else {
        format!("not ready: {}", text(&page["reason"]))
    };
    let is_standby = text(&page["leadership"]).starts_with("standby");
    let leadership = match text(&page["leadership"]) {
        none if none.is_empty() => String::new(),
        leadership => format!(", {leadership}"),
    };
    let peer = |peer: &Value| {
        let trouble = match text(&peer["trouble"]) {
            none if none.is_empty() => String::new(),
            trouble => format!(": {trouble}"),
        };
        format!("{} at {}{trouble}", text(&peer["version"]), text(&peer["url"]))
    };
    let counts = &page["counts"];
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let count = |name: &str| counts[name].as_u64().map_or(0, whole);
    let rows = [
        ("cluster", format!("{} (uid {})", text(&page["cluster"]), text(&page["cluster_uid"]))),
        ("bridge", format!("{}, {ready}{leadership}", text(&page["version"]))),
        ("kubernetes", peer(&page["kubernetes"])),
        ("consul", peer(&page["consul"])),
        (
            "registered",
            if is_standby {
                "standby: not known here".to_owned()
            } else {
                format!(
                    "{} ({} critical), {}, of {}",
                    counted(count("registrations"), "registration"),
                    count("critical"),
                    counted(count("ptr_records"), "PTR record"),
                    counted(count("services"), "Service")
                )
            },
        ),
        (
            "open",
            format!(
                "{} being brought in sync, {}, {} held",
                count("backlog"),
                counted(count("problems"), "problem"),
                counted(page["removals_held"].as_u64().map_or(0, whole), "removal")
            ),
        ),
    ];
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<11} {value}");
    }
    let heads = ["NAMESPACE", "NAME", "CONSUL", "PASSING", "CRITICAL", "WAITING", "PROBLEMS"];
    let rows: Vec<[String; 7]> = std::iter::once(heads.map(str::to_owned))
        .chain(array(&page["services"]).iter().map(row))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    out.push('\n');
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

fn row(service: &Value) -> [String; 7] {
    let instances = array(&service["instances"]);
    let critical = instances.iter().filter(|it| it["critical"] == true).count();
    let mut names: Vec<String> = instances.iter().map(|it| text(&it["service"])).collect();
    names.sort();
    names.dedup();
    let names = match (names.is_empty(), text(&service["not_selected"]).is_empty()) {
        (true, false) => "(not selected)".to_owned(),
        (true, true) => "-".to_owned(),
        _ => names.join(","),
    };
    let reasons = array(&service["problems"]).iter().map(|it| text(&it["reason"]));
    [
        text(&service["namespace"]),
        text(&service["name"]),
        names,
        (instances.len() - critical).to_string(),
        critical.to_string(),
        array(&service["waiting"]).len().to_string(),
        reasons.collect::<Vec<_>>().join(","),
    ]
}

fn explanation(service: &Value) -> String {
    let mut out = format!("{}/{}\n", text(&service["namespace"]), text(&service["name"]));
    let bridge = &service["bridge"];
    if bridge["ready"] != true {
        let _ = writeln!(out, "  the bridge is not ready: {}", text(&bridge["reason"]));
    }
    if text(&bridge["leadership"]).starts_with("standby") {
        let _ = writeln!(
            out,
            "  this bridge is on standby and knows nothing of Consul: ask the one that leads"
        );
    }
    let not_selected = text(&service["not_selected"]);
    if !not_selected.is_empty() {
        let _ = writeln!(out, "  not selected: {not_selected}");
    }
    let instances = array(&service["instances"]);
    let _ = writeln!(out, "  in Consul: {}", counted(instances.len(), "instance"));
    for instance in instances {
        let health = if instance["critical"] == true { "critical" } else { "passing" };
        let _ = writeln!(
            out,
            "    {}  {}  {health}  {}",
            text(&instance["service"]),
            text(&instance["address"]),
            text(&instance["id"])
        );
    }
    for waiting in array(&service["waiting"]) {
        let _ =
            writeln!(out, "  waiting: {}: {}", text(&waiting["record"]), text(&waiting["reason"]));
    }
    for problem in array(&service["problems"]) {
        let _ = writeln!(out, "  {}: {}", text(&problem["reason"]), text(&problem["message"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_begins_right_before_the_service() {
        for (name, earlier) in [("web", "wea-z9"), ("a", "9"), ("web-2", "web-1"), ("web", "wea")] {
            let before = before(name);
            assert!(before.as_str() < name && earlier < before.as_str(), "{before} {name}");
        }
    }

    fn service() -> Value {
        json!({
            "namespace": "shop", "name": "web",
            "instances": [
                {"id": "k_shop_web_http_10.0.0.1", "service": "web", "address": "10.0.0.1", "critical": false},
                {"id": "k_shop_web_http_10.0.0.2", "service": "web", "address": "10.0.0.2", "critical": true},
            ],
            "waiting": [{"record": "registration x", "reason": "a write of it is in flight"}],
            "problems": [{"reason": "NameConflict", "message": "two\nlines\u{1b}[31m"}],
        })
    }

    #[test]
    fn a_service_is_explained_by_what_is_there_what_waits_and_what_is_wrong() {
        let mut service = service();
        service["bridge"] = json!({"ready": true, "reason": null, "leadership": "leader"});
        let expected = "\
shop/web
  in Consul: 2 instances
    web  10.0.0.1  passing  k_shop_web_http_10.0.0.1
    web  10.0.0.2  critical  k_shop_web_http_10.0.0.2
  waiting: registration x: a write of it is in flight
  NameConflict: two lines [31m
";
        assert_eq!(explanation(&service), expected);
        let other = json!({"namespace": "shop", "name": "b", "not_selected": "its type is ExternalName",
            "bridge": {"ready": false, "reason": "waiting", "leadership": "standby, x leads"}});
        let text = explanation(&other);
        for part in ["not ready: waiting", "on standby", "not selected: its type", "0 instances"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_service() {
        let page = json!({"cluster": "k", "cluster_uid": "u", "version": "1", "ready": true,
            "kubernetes": {"url": "a", "version": "v"}, "consul": {"url": "b", "version": "w"},
            "counts": {"registrations": 2, "critical": 1, "services": 1, "problems": 1},
            "removals_held": 0,
            "services": [service(), {"namespace": "shop", "name": "x", "not_selected": "why"}]});
        let table = table(&page);
        let rows: Vec<Vec<&str>> =
            table.lines().skip(8).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["shop", "web", "web", "1", "1", "1", "NameConflict"]);
        assert_eq!(rows[1], ["shop", "x", "(not", "selected)", "0", "0", "0"]);
        for shown in [
            "2 registrations (1 critical), 0 PTR records, of 1 Service\n",
            "0 being brought in sync, 1 problem, 0 removals held\n",
        ] {
            assert!(table.contains(shown), "{table}");
        }
    }
}
