//! The page at `/`, in a real browser.

use anyhow::{Result, ensure};
use serde_json::json;

use super::support::Site;
use crate::support::Browser;

/// It shows what an import keeps: connections, watches, numbers, charts, each Service with its
/// endpoints; and follows without a reload.
#[tokio::test]
async fn the_page_shows_what_an_import_keeps() -> Result<()> {
    let site = Site::new("import-page").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.register("pg", "10.1.0.2", "critical").await?;
    site.service("db", json!({"kube-consul.io/import": "pg"})).await?;
    let import = site.import().await?;
    let Some(browser) = Browser::start().await? else { return Ok(()) };
    browser.appear(1_200, false).await?;
    browser.open(&import.url("/")).await?;
    browser.wait_for("document.getElementById('state').textContent === 'Ready'").await?;
    let name = &site.fixture.namespace;
    let db = format!("document.querySelector('#list > [data-key=\"{name}/db\"]').textContent");
    let text = |id: &str, text: &str| {
        format!("document.getElementById('{id}').textContent.includes('{text}')")
    };
    for condition in [
        format!("{db}.includes('\"pg\": 1 of 2 endpoints ready')"),
        format!("{db}.includes('10.1.0.15432ready')"),
        format!("{db}.includes('10.1.0.25432not ready')"),
        text("connections", "Watch of Service"),
        text("connections", "Watch of EndpointSlice"),
        text("connections", " ago"),
        text("connections", site.fixture.consul.url()),
        text("counts", "followed"),
        text("counts", "polled"),
        text("charts", "Writes"),
        "document.querySelectorAll('#charts rect').length > 300".to_owned(),
    ] {
        browser.wait_for(&condition).await?;
    }
    browser.run("window.loadedOnce = true; return true").await?;
    site.register("pg", "10.1.0.2", "passing").await?;
    browser.wait_for(&format!("{db}.includes('2 of 2 endpoints ready')")).await?;
    // What comes from Consul and from users stays text.
    let markup = "<img src=x onerror=window.caught=1>";
    site.service(
        "bad",
        json!({"kube-consul.io/import": "x", "kube-consul.io/import-health": markup}),
    )
    .await?;
    browser.wait_for(&text("problems", "onerror=window.caught=1")).await?;
    let found = browser
        .run("return [document.images.length, typeof window.caught, window.loadedOnce]")
        .await?;
    ensure!(found == json!([0, "undefined", true]), "{found}");
    browser.screenshot("import").await?;
    ensure!(browser.complaints().await? == [""; 0], "{:?}", browser.complaints().await?);
    browser.stop().await?;
    let status = import.status().await?;
    ensure!(
        status["counts"]["followed"] == 2 && status["watches"].as_array().is_some(),
        "{status}"
    );
    import.stop().await
}
