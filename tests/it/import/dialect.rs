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

#[tokio::test]
async fn what_consul8s_registered_is_registered_by_the_bridge() -> Result<()> {
    let fixture = Fixture::new("consul8s").await?;
    // As the old tool left it: its node has no owner, and it is joined.
    let old = json!({"Node": "kubernetes-web", "Address": "web.example.org", "Service": {
        "ID": "web", "Service": "web-in-consul", "Tags": ["a"], "Port": 5432}});
    fixture.consul.api().put("/v1/catalog/register", &old).await?;
    let annotations = json!({
        "domainName": "web.example.org.", "consul8s/service.name": "web-in-consul",
        "consul8s/service.id": "web", "consul8s/service.port_name": "sql",
        "consul8s/service.tags": "a, b", "consul8s/service.remove_registration": "false",
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
