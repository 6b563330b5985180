//! What is read of the state of a Mesos agent, and the registrations that follow.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::domain::hook::{HookRegistration, Invalid, id};

/// The parts of `GET /state` that a registration is made of. What is odd about other frameworks,
/// executors and tasks does not matter: each is read on its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct State {
    #[serde(default, deserialize_with = "nullable")]
    frameworks: Vec<Lenient<Framework>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Framework {
    id: String,
    #[serde(default, deserialize_with = "nullable")]
    executors: Vec<Lenient<Executor>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Executor {
    id: String,
    #[serde(default, deserialize_with = "nullable")]
    tasks: Vec<Lenient<Task>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Task {
    id: String,
    #[serde(default, deserialize_with = "labels")]
    labels: Vec<Label>,
    #[serde(default, deserialize_with = "nullable")]
    discovery: Discovery,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Discovery {
    #[serde(default, deserialize_with = "nullable")]
    ports: Ports,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Ports {
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Port {
    #[serde(default, deserialize_with = "nullable")]
    number: i64,
    #[serde(default, deserialize_with = "nullable")]
    name: String,
    #[serde(default, deserialize_with = "labels")]
    labels: Vec<Label>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Label {
    #[serde(default, deserialize_with = "nullable")]
    key: String,
    #[serde(default, deserialize_with = "nullable")]
    value: String,
}

/// A part that matters only if it is ours: what is wrong with it is kept until then.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lenient<T>(Result<T, String>);

/// Whose task is registered, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `HOST`: the address of every instance.
    pub host: String,
    /// `MESOS_FRAMEWORK_ID`.
    pub framework: String,
    /// `MESOS_EXECUTOR_ID`.
    pub executor: String,
}

/// What to register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The instances; none where nothing has the label `consul`.
    pub registrations: Vec<HookRegistration>,
    /// What is odd about the task, for its owner.
    pub warnings: Vec<String>,
}

/// The registrations of the first task of the executor: its ports with the label `consul`, or
/// where none has it the first port under the task's own. Mesos tells no checks.
pub fn decide(state: &State, place: &Place) -> Result<Decision, Invalid> {
    let task = first_task(state, place)?;
    let ports = &task.discovery.ports.ports;
    let mut task_tags: Vec<String> = tags(&task.labels).map(str::to_owned).collect();
    task_tags.push(format!("marathon-task:{}", task.id));
    let mut warnings = Vec::new();
    let mut registrations = Vec::new();
    for port in ports {
        let Some(name) = service_name(&port.labels) else { continue };
        let own = tags(&port.labels).map(|tag| with_ports(tag, ports, &mut warnings));
        let tags = own.chain(task_tags.clone()).collect();
        registrations.push(registration(task, place, port, name, tags)?);
    }
    if registrations.is_empty()
        && let (Some(name), Some(port)) = (service_name(&task.labels), ports.first())
    {
        registrations.push(registration(task, place, port, name, task_tags)?);
    }
    Ok(Decision { registrations, warnings })
}

fn first_task<'a>(state: &'a State, place: &Place) -> Result<&'a Task, Invalid> {
    let missing = |found| Invalid::NoTask {
        executor: place.executor.clone(),
        framework: place.framework.clone(),
        found,
    };
    let mut found = none_of("framework", &state.frameworks);
    for framework in readable(&state.frameworks).filter(|it| it.id == place.framework) {
        found = none_of("executor", &framework.executors);
        for executor in readable(&framework.executors).filter(|it| it.id == place.executor) {
            match executor.tasks.first() {
                Some(Lenient(Ok(task))) => return Ok(task),
                Some(Lenient(Err(wrong))) => found = format!("a task that cannot be read: {wrong}"),
                None => "the executor without a task".clone_into(&mut found),
            }
        }
    }
    Err(missing(found))
}

fn readable<T>(all: &[Lenient<T>]) -> impl Iterator<Item = &T> {
    all.iter().filter_map(|it| it.0.as_ref().ok())
}

/// That none was found, and what hides one that may have been it.
fn none_of<T>(what: &str, all: &[Lenient<T>]) -> String {
    match all.iter().find_map(|it| it.0.as_ref().err()) {
        Some(wrong) => format!("no such {what}, and one that cannot be read: {wrong}"),
        None => format!("no such {what}"),
    }
}

fn registration(
    task: &Task,
    place: &Place,
    port: &Port,
    name: &str,
    tags: Vec<String>,
) -> Result<HookRegistration, Invalid> {
    let number = u16::try_from(port.number).ok().filter(|number| *number > 0).ok_or_else(|| {
        Invalid::Port {
            object: format!("discovery port {:?} of task {:?}", port.name, task.id),
            found: port.number,
        }
    })?;
    Ok(HookRegistration {
        id: id(&place.host, number),
        name: name.to_owned(),
        address: place.host.clone(),
        port: number,
        tags,
        check: None,
    })
}

/// The value of the label `consul`; an empty one counts as none, as there.
fn service_name(labels: &[Label]) -> Option<&str> {
    let label = labels.iter().find(|label| label.key == "consul")?;
    Some(label.value.as_str()).filter(|name| !name.trim().is_empty())
}

fn tags(labels: &[Label]) -> impl Iterator<Item = &str> {
    labels.iter().filter(|label| label.value == "tag").map(|label| label.key.as_str())
}

/// Replaces each `{port:<name>}` by the number of the port of that name, the last of several.
fn with_ports(tag: &str, ports: &[Port], warnings: &mut Vec<String>) -> String {
    const OPEN: &str = "{port:";
    let mut text = String::with_capacity(tag.len());
    let mut rest = tag;
    while let Some(at) = rest.find(OPEN) {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let Some(end) = from.find('}') else { return text + from };
        let (placeholder, after) = from.split_at(end + 1);
        let name = &placeholder[OPEN.len()..end];
        if let Some(port) = ports.iter().rfind(|port| port.name == name) {
            text.push_str(&port.number.to_string());
        } else {
            warnings.push(format!(
                "tag {tag:?}: expected the name of a discovery port in {placeholder}, found none \
                 of that name; it stays as it is"
            ));
            text.push_str(placeholder);
        }
        rest = after;
    }
    text + rest
}

/// Labels as a list, or as Mesos writes its own messages: `{"labels": [...]}`.
fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Label>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<Label>),
        Message {
            #[serde(default, deserialize_with = "nullable")]
            labels: Vec<Label>,
        },
    }

    Ok(match Option::deserialize(deserializer)? {
        Some(Form::List(labels) | Form::Message { labels }) => labels,
        None => Vec::new(),
    })
}

/// A field whose `null` is its default, as for the Go program that was here before.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

// === impl Lenient ===

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let part = <&RawValue>::deserialize(deserializer)?;
        Ok(Self(serde_json::from_str(part.get()).map_err(|error| error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn place() -> Place {
        Place { host: "h".into(), framework: "f".into(), executor: "e".into() }
    }

    fn state(task: &Value) -> State {
        let executor = json!({ "id": "e", "tasks": [task, {"id": "second"}] });
        read(&json!({ "frameworks": [
            { "id": "other", "executors": [{ "id": "e", "tasks": [{"id": "wrong framework"}] }] },
            { "id": "f", "executors": [
                { "id": "other", "tasks": [{"id": "wrong executor"}] }, executor,
            ] },
        ] }))
    }

    fn read(state: &Value) -> State {
        serde_json::from_str(&state.to_string()).unwrap()
    }

    fn label(key: &str, value: &str) -> Value {
        json!({ "key": key, "value": value })
    }

    /// Each registration as `name@id[tags]`.
    fn decided(task_labels: &Value, ports: &Value) -> Vec<String> {
        let task = json!({
            "id": "t.1", "labels": task_labels, "discovery": { "ports": { "ports": ports } }
        });
        let decision = decide(&state(&task), &place()).unwrap();
        assert_eq!(decision.warnings, Vec::<String>::new());
        decision
            .registrations
            .iter()
            .map(|it| {
                assert_eq!((it.address.as_str(), &it.check), ("h", &None));
                assert_eq!(it.id, format!("h_{}", it.port));
                format!("{}@{}[{}]", it.name, it.id, it.tags.join(" "))
            })
            .collect()
    }

    #[test]
    fn labels_say_what_is_registered() {
        let web = || label("consul", "web");
        for (task, ports, expected) in [
            // A port's own label.
            (
                json!([]),
                json!([{"number": 1, "labels": [web()]}]),
                vec!["web@h_1[marathon-task:t.1]"],
            ),
            // The form that Mesos itself writes.
            (
                json!({"labels": [label("a", "tag")]}),
                json!([{"number": 1, "labels": {"labels": [web(), label("b", "tag")]}}]),
                vec!["web@h_1[b a marathon-task:t.1]"],
            ),
            // Only the ports that have it, each under its own name.
            (
                json!([]),
                json!([
                    {"number": 1}, {"number": 2, "labels": [web()]},
                    {"number": 3, "labels": [label("consul", "db")]},
                ]),
                vec!["web@h_2[marathon-task:t.1]", "db@h_3[marathon-task:t.1]"],
            ),
            // The task's label does not matter then.
            (
                json!([label("consul", "task"), label("x", "tag"), label("y", "value")]),
                json!([{"number": 1}, {"number": 2, "labels": [web()]}]),
                vec!["web@h_2[x marathon-task:t.1]"],
            ),
            // None has it: the first, with the task's.
            (
                json!([label("consul", "task"), label("x", "tag")]),
                json!([{"number": 1, "labels": [label("ignored", "tag")]}, {"number": 2}]),
                vec!["task@h_1[x marathon-task:t.1]"],
            ),
            // Ports by name in the port's tags.
            (
                json!([label("{port:http}", "tag")]),
                json!([
                    {"number": 1, "name": "http",
                     "labels": [web(), label("a:{port:http}-{port:admin}!", "tag")]},
                    {"number": 2, "name": "admin"},
                ]),
                vec!["web@h_1[a:1-2! {port:http} marathon-task:t.1]"],
            ),
            // Without a label, an empty one, or without ports: nothing.
            (json!([]), json!([{"number": 1}]), vec![]),
            (json!([label("consul", "")]), json!([{"number": 1}]), vec![]),
            (json!([label("consul", "task")]), json!([]), vec![]),
            (json!([]), json!([{"number": 1, "labels": [label("consul", "")]}]), vec![]),
            // A port that is none does no harm where it is not registered.
            (
                json!([]),
                json!([{"number": 0}, {"number": 2, "labels": [web()]}]),
                vec!["web@h_2[marathon-task:t.1]"],
            ),
        ] {
            assert_eq!(decided(&task, &ports), expected, "{task} {ports}");
        }
    }

    #[test]
    fn a_task_without_discovery_or_labels_is_nothing_to_register() {
        let decision = decide(&state(&json!({"id": "t"})), &place()).unwrap();
        assert_eq!(decision.registrations, []);
    }

    #[test]
    fn a_port_that_no_port_names_is_told_and_stays() {
        for (tag, warned) in [("{port:nope}", true), ("{port:nope", false), ("}{port}", false)] {
            let task = json!({"id": "t", "discovery": {"ports": {"ports": [
                {"number": 1, "labels": [label("consul", "web"), label(tag, "tag")]},
            ]}}});
            let decision = decide(&state(&task), &place()).unwrap();
            assert_eq!(decision.registrations[0].tags[0], tag);
            assert_eq!(!decision.warnings.is_empty(), warned, "{tag}");
        }
    }

    #[test]
    fn a_port_out_of_range_is_an_error() {
        for number in [-1, 0, 65_536, 4_294_967_295_i64] {
            let task = json!({"id": "t", "discovery": {"ports": {"ports": [
                {"number": number, "name": "http", "labels": [label("consul", "web")]},
            ]}}});
            let error = decide(&state(&task), &place()).unwrap_err().to_string();
            assert!(error.contains("port \"http\" of task \"t\""), "{error}");
            assert!(error.contains(&number.to_string()), "{error}");
        }
    }

    #[test]
    fn a_missing_task_says_how_far_the_search_came() {
        for (state, found) in [
            (json!({}), "no such framework"),
            (json!({"frameworks": [{"id": "f"}]}), "no such executor"),
            (
                json!({"frameworks": [{"id": "f", "executors": [{"id": "e", "completed_tasks": [{"id": "t"}]}]}]}),
                "the executor without a task",
            ),
        ] {
            let error = decide(&read(&state), &place()).unwrap_err().to_string();
            assert!(error.contains(found) && error.contains("MESOS_EXECUTOR_ID"), "{error}");
        }
    }

    #[test]
    fn h5_of_several_ports_of_a_name_the_last_counts() {
        let ports = json!([
            {"number": 1, "name": "a",
             "labels": [label("consul", "web"), label("{port:a}", "tag")]},
            {"number": 2, "name": "a"},
        ]);
        assert_eq!(decided(&json!([]), &ports), ["web@h_1[2 marathon-task:t.1]"]);
    }

    #[test]
    fn h9_nulls_are_nothing() {
        for task in [
            json!({"id": "t.1", "labels": null, "discovery": null}),
            json!({"id": "t.1", "discovery": {"ports": null}}),
            json!({"id": "t.1", "discovery": {"ports": {"ports": null}}}),
            json!({"id": "t.1", "labels": {"labels": null}}),
            json!({"id": "t.1", "discovery": {"ports": {"ports": [
                {"number": null, "name": null, "labels": null},
                {"labels": {"labels": [{"key": null, "value": null}, {"key": "consul"}]}},
            ]}}}),
        ] {
            let decision = decide(&state(&task), &place());
            assert_eq!(decision.unwrap().registrations, [], "{task}");
        }
        let ports = json!([{"number": 1, "labels": null}]);
        let task_labels = json!([label("consul", "web"), {"key": "x", "value": null}]);
        assert_eq!(decided(&task_labels, &ports), ["web@h_1[marathon-task:t.1]"]);
    }

    #[test]
    fn h9_what_is_odd_elsewhere_does_not_matter() {
        let ours = json!({"id": "e", "tasks": [
            {"id": "t.1", "labels": [label("consul", "web")],
             "discovery": {"ports": {"ports": [{"number": 1}]}}},
            {"id": 7}, null,
        ]});
        let odd = [
            json!(null),
            json!(5),
            json!({}),
            json!({"id": 5}),
            json!({"id": null}),
            json!({"id": "x", "executors": {}}),
            json!({"id": "e", "tasks": 1}),
        ];
        let executors: Vec<&Value> = odd.iter().chain([&ours]).collect();
        let framework = json!({"id": "f", "executors": executors});
        let frameworks: Vec<&Value> = odd.iter().chain([&framework]).collect();
        let decision = decide(&read(&json!({"frameworks": frameworks})), &place()).unwrap();
        assert_eq!(decision.registrations[0].name, "web");

        // What hides the one that is looked for is reported.
        for (state, found) in [
            (json!({"frameworks": null}), "no such framework"),
            (json!({"frameworks": [5]}), "no such framework, and one that cannot be read"),
            (
                json!({"frameworks": [{"id": "f", "executors": [{"id": "e", "tasks": [{"id": 1}]}]}]}),
                "a task that cannot be read: invalid type",
            ),
        ] {
            let error = decide(&read(&state), &place()).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
        }
    }
}
