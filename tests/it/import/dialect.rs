//! The other direction of the dialect of consul8s: the bridge registers what its label asks for.

use anyhow::{Result, ensure};
use kube_consul_stack::eventually;
use serde_json::{Value, json};

use crate::support::{DEADLINE, Fixture};

/// A Service as users of consul8s have it.
fn object(annotations: &Value) -> Value {
    json!({
        "metadata": {
            "name": "web", "labels": {"consul8s_source": "kubernetes"}, "annotations": annotations,
        },
        "spec": {"ports": [{"name": "http", "port": 80}, {"name": "sql", "port": 5432}]},
    })
}

/// A Service of consul8s's other direction: its name, what its annotations say beside or instead of
/// the usual, its spec, and what consul8s registered of it: name, address, port and tags.
type Row = (&'static str, Value, Value, Option<(&'static str, &'static str, u16, Value)>);

/// Each was run beside the original, which registered what stands here, but for the rows of which it
/// ended, or took what nobody can have meant: those are none.
fn rows() -> Vec<Row> {
    let tags = |tags: &str| json!({"consul8s/service.tags": tags});
    let id = |id: &str| json!({"consul8s/service.id": id});
    let at = |name: &str| json!({"domainName": name});
    let port = |name: &str| json!({"consul8s/service.port_name": name});
    let removed = |text: &str| json!({"consul8s/service.remove_registration": text});
    let none = || json!([]);
    let one = || json!({"ports": [{"name": "http", "port": 80}]});
    let two = || json!({"ports": [{"port": 1, "name": "x"}, {"name": "http", "port": 81}]});
    let of = |spec: Value| {
        let mut all = one();
        all.as_object_mut().expect("an object").extend(spec.as_object().expect("one").clone());
        all
    };
    let usual = |name| Some((name, "web.example.org", 80, json!([])));
    vec![
        ("plain", none(), one(), usual("plain")),
        ("tags", tags("a, b"), one(), Some(("tags", "web.example.org", 80, json!(["a", " b"])))),
        ("tag-empty", tags(""), one(), Some(("tag-empty", "web.example.org", 80, json!([""])))),
        (
            "tag-twice",
            tags("a,a"),
            one(),
            Some(("tag-twice", "web.example.org", 80, json!(["a", "a"]))),
        ),
        ("ipv4", at("10.1.2.3"), one(), Some(("ipv4", "10.1.2.3", 80, json!([])))),
        ("ipv6", at("fd00::1"), one(), Some(("ipv6", "fd00::1", 80, json!([])))),
        // Consul's DNS answers both alike.
        ("final-dot", at("web.example.org."), one(), usual("final-dot")),
        (
            "upper-at",
            at("WEB.example.org"),
            one(),
            Some(("upper-at", "WEB.example.org", 80, json!([]))),
        ),
        ("id-one", id("same"), one(), usual("id-one")),
        ("id-two", id("same"), one(), usual("id-two")),
        ("id-slash", id("a/b c"), one(), usual("id-slash")),
        ("id-empty", id(""), one(), usual("id-empty")),
        ("upper", json!({"consul8s/service.name": "UPPER"}), one(), usual("UPPER")),
        ("blanks", json!({"consul8s/service.name": " blanks "}), one(), usual("blanks")),
        ("slash", json!({"consul8s/service.name": "a/slash"}), one(), usual("a/slash")),
        ("second-port", none(), two(), Some(("second-port", "web.example.org", 81, json!([])))),
        ("only-port", port("-"), one(), usual("only-port")),
        // Ours: a tag of the protocol.
        (
            "udp",
            none(),
            json!({"ports": [{"name": "http", "port": 80, "protocol": "UDP"}]}),
            Some(("udp", "web.example.org", 80, json!(["udp"]))),
        ),
        ("headless", none(), of(json!({"clusterIP": "None"})), usual("headless")),
        (
            "external-name",
            none(),
            of(json!({"type": "ExternalName", "externalName": "x.example.org"})),
            usual("external-name"),
        ),
        ("node-port", none(), of(json!({"type": "NodePort"})), usual("node-port")),
        ("balancer", none(), of(json!({"type": "LoadBalancer"})), usual("balancer")),
        // Registered without a check there, too: what is behind the name is not Kubernetes' to know.
        ("no-pods", none(), of(json!({"selector": {"app": "none"}})), usual("no-pods")),
        ("not-removed", removed("1"), one(), usual("not-removed")),
        ("removed", removed("TRUE"), one(), None),
        ("port-case", port("HTTP"), one(), None),
        ("two-ports", port("-"), two(), None),
        ("no-domain", at("-"), one(), None),
        ("no-name", json!({"consul8s/service.name": "-"}), one(), None),
        ("in-consul", at("x.service.consul"), one(), None),
    ]
}

/// What its users rely on: the name, the address, the port, the tags, whatever is odd in them.
#[tokio::test]
async fn what_was_odd_but_accepted_is_registered_as_it_was() -> Result<()> {
    let fixture = Fixture::new("consul8s-odd").await?;
    let rows = rows();
    for (name, differs, spec, _) in &rows {
        let mut annotations = json!({
            "domainName": "web.example.org", "consul8s/service.name": name,
            "consul8s/service.port_name": "http",
        });
        let all = annotations.as_object_mut().expect("an object");
        for (key, value) in differs.as_object().into_iter().flatten() {
            match value.as_str() {
                Some("-") => drop(all.remove(key)),
                _ => drop(all.insert(key.clone(), value.clone())),
            }
        }
        let object = json!({
            "metadata": {
                "name": name, "labels": {"consul8s_source": "kubernetes"},
                "annotations": annotations,
            },
            "spec": spec,
        });
        let _: k8s_openapi::api::core::v1::Service =
            fixture.kubernetes.create(&fixture.namespace, object).await?;
    }
    let bridge = fixture.bridge().await?;
    let wanted: Vec<_> = rows.iter().filter_map(|row| row.3.as_ref()).collect();
    eventually(DEADLINE, || async {
        let names = fixture.consul.api().get("/v1/catalog/services").await?;
        let names =
            names.as_object().map_or(0, |it| it.keys().filter(|it| *it != "consul").count());
        ensure!(names == wanted.len() + 1, "{names} names, want {} and the sentinel", wanted.len());
        Ok(())
    })
    .await?;
    for (name, address, port, tags) in wanted {
        let found = fixture.instances(&name.replace('/', "%2F")).await?;
        let [instance] = found.as_slice() else { anyhow::bail!("{name}: {found:?}") };
        let service = &instance["Service"];
        let status = &instance["Checks"][1];
        ensure!(service["Address"] == *address && service["Port"] == *port, "{name}: {service}");
        ensure!(status.is_null(), "{name} has a check: {status}");
        let found = service["Tags"].as_array().cloned().unwrap_or_default();
        let (ours, theirs) = found.split_at(2);
        ensure!(ours[0] == *fixture.namespace && json!(theirs) == *tags, "{name}: {found:?}");
    }
    for (name, ..) in rows.iter().filter(|row| row.3.is_none() && row.0 != "removed") {
        let problems = bridge.problems_of(&fixture.namespace, name).await?;
        ensure!(problems.len() == 1, "{name}: {problems:?}");
    }
    ensure!(bridge.problems_of(&fixture.namespace, "removed").await?.is_empty());
    bridge.stop().await
}

#[tokio::test]
async fn what_consul8s_registered_is_registered_by_the_bridge() -> Result<()> {
    let fixture = Fixture::new("consul8s").await?;
    // As the old tool left it: its node has no owner, so that the name is joined only if asked for.
    let old = json!({"Node": "kubernetes-web", "Address": "web.example.org", "Service": {
        "ID": "web", "Service": "web-in-consul", "Tags": ["a"], "Port": 5432}});
    fixture.consul.api().put("/v1/catalog/register", &old).await?;
    let annotations = json!({
        "domainName": "web.example.org.", "consul8s/service.name": "web-in-consul",
        "consul8s/service.id": "web", "consul8s/service.port_name": "sql",
        "consul8s/service.tags": "a, b", "consul8s/service.remove_registration": "false",
        "kube-consul.io/join": "true",
    });
    let _: k8s_openapi::api::core::v1::Service =
        fixture.kubernetes.create(&fixture.namespace, object(&annotations)).await?;
    let bridge = fixture.bridge().await?;
    let ours = || async {
        let found = fixture.instances("web-in-consul").await?;
        anyhow::Ok(found.into_iter().find(|it| it["Service"]["ID"] != "web"))
    };
    let wait = |tags: Value| {
        let ours = &ours;
        eventually(3 * DEADLINE, move || {
            let tags = tags.clone();
            async move {
                let Some(found) = ours().await? else { anyhow::bail!("it is not registered") };
                let service = &found["Service"];
                ensure!(service["Address"] == "web.example.org" && service["Port"] == 5432);
                ensure!(service["Meta"]["consul8s-service-id"] == "web", "{service}");
                let found = service["Tags"].as_array().cloned().unwrap_or_default();
                let found: Vec<Value> = found.into_iter().skip(1).collect();
                ensure!(json!(found) == tags, "{found:?}, want {tags}");
                Ok(())
            }
        })
    };
    wait(json!([])).await?;

    fixture.annotate("web", json!({"consul8s/service.remove_registration": "True"})).await?;
    eventually(DEADLINE, || async {
        ensure!(ours().await?.is_none(), "it is still registered");
        Ok(())
    })
    .await?;
    ensure!(fixture.instances("web-in-consul").await?.len() == 1, "what is not ours went too");
    let gone = json!({"Node": "kubernetes-web"});
    fixture.consul.api().put("/v1/catalog/deregister", &gone).await?;
    bridge.stop().await?;
    fixture.annotate("web", json!({"consul8s/service.remove_registration": null})).await?;
    let bridge = fixture.bridge().await?;
    wait(json!(["sql", "a", " b"])).await?;
    ensure!(bridge.problems_of(&fixture.namespace, "web").await?.is_empty());
    bridge.stop().await
}
