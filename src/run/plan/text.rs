//! A plan as people read it.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};

use crate::domain::report::difference::{FieldChange, FieldValue};
use crate::domain::report::forecast::Verb;
use crate::domain::text::one_line;
use crate::run::plan::document::{KEPT, Plan, RecordChange, ServiceChanges, State, Summary};

/// Longest value that is shown whole, in bytes: the longest that Consul takes in meta.
const MAX_VALUE: usize = 512;

const BOLD: Style = Style::new().bold();
const ADD: Style = AnsiColor::Green.on_default();
const CHANGE: Style = AnsiColor::Yellow.on_default();
const REMOVE: Style = AnsiColor::Red.on_default();
const HELD: Style = AnsiColor::Magenta.on_default();

/// The plan as text, with colours that a pipe has to be spared.
pub(super) fn text(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_plan(&mut text, plan);
    text
}

fn write_plan(text: &mut String, plan: &Plan) -> fmt::Result {
    let Plan { cluster, sink, summary, .. } = plan;
    let Summary { add, change, remove, held, kept } = summary;
    if plan.has_changes() {
        write!(
            text,
            "{BOLD}{cluster}, sink {sink}: {add} to add, {change} to change, {remove} to remove"
        )?;
        if *held > 0 {
            write!(text, ", {held} held back")?;
        }
        writeln!(text, "{BOLD:#}")?;
    } else {
        writeln!(text, "{BOLD}{cluster}, sink {sink}: nothing to change{BOLD:#}")?;
    }
    if *kept > 0 {
        writeln!(text, "--policy upsert-only keeps {kept} that would be removed.")?;
    }
    match plan.state {
        State::Known => {}
        State::New => writeln!(text, "No bridge of this cluster has written here yet.")?,
        State::Lost => writeln!(
            text,
            "The marker is not there: what was written to this sink before is lost, or there was nothing."
        )?,
    }
    if !plan.own.is_empty() {
        writeln!(text, "\n{BOLD}for the bridge itself{BOLD:#}")?;
    }
    for own in &plan.own {
        let (style, sign) = sign(own.action, own.held);
        writeln!(text, "  {style}{sign} {}{style:#}{}", clean(&own.what), why_held(own.held))?;
    }
    for service in &plan.services {
        write_service(text, service)?;
    }
    if !plan.problems.is_empty() {
        writeln!(text, "\n{BOLD}problems{BOLD:#}")?;
    }
    for it in &plan.problems {
        let place = match it.namespace.as_str() {
            "" => it.name.clone(),
            namespace => format!("{namespace}/{}", it.name),
        };
        writeln!(
            text,
            "  {} {}: {}",
            it.kind,
            clean(&place),
            clean(&format!("{}: {}", it.reason, it.message))
        )?;
    }
    if !plan.notes.is_empty() {
        writeln!(text, "\n{BOLD}notes{BOLD:#}")?;
    }
    for note in &plan.notes {
        writeln!(text, "  {}", clean(note))?;
    }
    Ok(())
}

fn write_service(text: &mut String, service: &ServiceChanges) -> fmt::Result {
    let ServiceChanges { namespace, name, changes } = service;
    if name.is_empty() {
        writeln!(text, "\n{BOLD}of no Service{BOLD:#}")?;
    } else {
        writeln!(text, "\n{BOLD}{}/{}{BOLD:#}", clean(namespace), clean(name))?;
    }
    for change in changes {
        write_change(text, change)?;
    }
    Ok(())
}

fn write_change(text: &mut String, change: &RecordChange) -> fmt::Result {
    let (style, sign) = sign(change.action, change.held);
    write!(text, "  {style}{sign} {}{style:#}", clean(&change.key))?;
    if let Some(service) = &change.service {
        write!(text, "  {}", clean(service))?;
    }
    writeln!(text, "{}", why_held(change.held))?;
    for FieldChange { field, old, new } in &change.fields {
        // The name of a registration stands beside its ID.
        if field == "service" && change.action != Verb::Change {
            continue;
        }
        let (old, new) = (old.as_ref().map(value), new.as_ref().map(value));
        let field = clean(field);
        match (change.action, old, new) {
            (Verb::Add, _, Some(it)) | (Verb::Remove, Some(it), _) => {
                writeln!(text, "      {field}: {it}")?;
            }
            (_, old, new) => {
                let none = || "(none)".to_owned();
                let (old, new) = (old.unwrap_or_else(none), new.unwrap_or_else(none));
                writeln!(text, "      {field}: {REMOVE}{old}{REMOVE:#} -> {ADD}{new}{ADD:#}")?;
            }
        }
    }
    Ok(())
}

fn sign(verb: Verb, held: Option<&'static str>) -> (Style, char) {
    let (style, sign) = match verb {
        Verb::Add => (ADD, '+'),
        Verb::Change => (CHANGE, '~'),
        Verb::Remove => (REMOVE, '-'),
    };
    (if held.is_some() { HELD } else { style }, sign)
}

fn why_held(held: Option<&'static str>) -> &'static str {
    match held {
        None => "",
        Some(KEPT) => "  (kept by --policy upsert-only)",
        Some("absence") => "  (held back until a second list agrees)",
        Some(_) => "  (held back until --allow-removals)",
    }
}

fn value(value: &FieldValue) -> String {
    clean(&value.to_string())
}

/// What comes from a cluster may hold anything, escape sequences for a terminal too.
fn clean(text: &str) -> String {
    one_line(text, MAX_VALUE)
}

#[cfg(test)]
mod tests {
    use super::super::document::OwnChange;
    use super::*;
    use crate::admin::status::ObjectProblem;

    fn plan() -> Plan {
        let text = |text: &str| Some(FieldValue::Text(text.into()));
        let field = |field: &str, old, new| FieldChange { field: field.into(), old, new };
        let change = |action, key: &str, service: Option<&str>, fields, held| RecordChange {
            action,
            record: if service.is_some() { "registration" } else { "reverse" },
            key: key.into(),
            service: service.map(Into::into),
            fields,
            held,
        };
        let own = vec![OwnChange { action: Verb::Add, what: "node k8s-c.shop".into(), held: None }];
        let services = vec![
            ServiceChanges {
                namespace: String::new(),
                name: String::new(),
                changes: vec![change(
                    Verb::Remove,
                    "0.x/1",
                    None,
                    vec![field("value", text("a"), None)],
                    None,
                )],
            },
            ServiceChanges {
                namespace: "shop".into(),
                name: "web".into(),
                changes: vec![
                    change(
                        Verb::Add,
                        "c_shop_web_http_10.0.0.1",
                        Some("web"),
                        vec![
                            field("service", None, text("web")),
                            field("port", None, Some(FieldValue::Number(80))),
                        ],
                        None,
                    ),
                    change(
                        Verb::Change,
                        "c_shop_web_http_10.0.0.2",
                        Some("web"),
                        vec![
                            field(
                                "tags",
                                Some(FieldValue::List(vec!["a".into()])),
                                Some(FieldValue::List(vec!["a".into(), "b".into()])),
                            ),
                            field("meta.team", text("\u{1b}[31mred"), None),
                        ],
                        None,
                    ),
                    change(
                        Verb::Remove,
                        "c_shop_web_http_10.0.0.3",
                        Some("web"),
                        vec![field("port", Some(FieldValue::Number(80)), None)],
                        Some("absence"),
                    ),
                ],
            },
        ];
        Plan {
            cluster: "c".into(),
            cluster_uid: "uid".into(),
            sink: "catalog",
            state: State::Known,
            summary: Summary::of(&own, &services),
            own,
            services,
            problems: vec![ObjectProblem {
                kind: "Service",
                namespace: "shop".into(),
                name: "bad".into(),
                reason: "InvalidName",
                message: "expected a, found b".into(),
            }],
            notes: vec!["a note".into()],
            selects_any: true,
        }
    }

    #[test]
    fn people_see_what_changes_and_nothing_reaches_their_terminal() {
        let expected = "\
c, sink catalog: 2 to add, 1 to change, 1 to remove, 1 held back

for the bridge itself
  + node k8s-c.shop

of no Service
  - 0.x/1
      value: a

shop/web
  + c_shop_web_http_10.0.0.1  web
      port: 80
  ~ c_shop_web_http_10.0.0.2  web
      tags: a -> a,b
      meta.team:  [31mred -> (none)
  - c_shop_web_http_10.0.0.3  web  (held back until a second list agrees)
      port: 80

problems
  Service shop/bad: InvalidName: expected a, found b

notes
  a note
";
        assert_eq!(anstream::adapter::strip_str(&text(&plan())).to_string(), expected);
        let unchanged = Plan {
            own: vec![],
            services: vec![],
            problems: vec![],
            notes: vec![],
            summary: Summary::default(),
            ..plan()
        };
        let unchanged = text(&unchanged);
        let unchanged = anstream::adapter::strip_str(&unchanged).to_string();
        assert_eq!(unchanged, "c, sink catalog: nothing to change\n");
    }

    /// What docs/plan.md documents.
    #[test]
    fn the_json_form_is_this() {
        let mut plan = plan();
        plan.services.remove(0);
        plan.services[0].changes.truncate(2);
        plan.services[0].changes.remove(0);
        plan.services[0].changes[0].fields.truncate(1);
        plan.summary = Summary::of(&plan.own, &plan.services);
        let expected = serde_json::json!({
            "cluster": "c",
            "cluster_uid": "uid",
            "sink": "catalog",
            "state": "known",
            "summary": {"add": 1, "change": 1, "remove": 0, "held": 0, "kept": 0},
            "own": [{"action": "add", "what": "node k8s-c.shop", "held": null}],
            "services": [{
                "namespace": "shop",
                "name": "web",
                "changes": [{
                    "action": "change",
                    "record": "registration",
                    "key": "c_shop_web_http_10.0.0.2",
                    "service": "web",
                    "fields": [{"field": "tags", "old": ["a"], "new": ["a", "b"]}],
                    "held": null,
                }],
            }],
            "problems": [{
                "kind": "Service",
                "namespace": "shop",
                "name": "bad",
                "reason": "InvalidName",
                "message": "expected a, found b",
            }],
            "notes": ["a note"],
        });
        assert_eq!(serde_json::to_value(&plan).unwrap(), expected);
    }
}
