//! The page at `/`, in a real browser.

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::Endpoint;
use reqwest::header;
use serde_json::{Value, json};

use crate::support::{Bridge, Browser, Fixture};

/// What the page shows of a Service.
fn entry(fixture: &Fixture, name: &str) -> String {
    format!("document.querySelector('#list > [data-key=\"{}/{name}\"]')", fixture.namespace)
}

async fn open(fixture: &Fixture, bridge: &Bridge) -> Result<Option<Browser>> {
    let Some(browser) = Browser::start().await? else { return Ok(None) };
    browser.appear(1_200, false).await?;
    browser.open(&bridge.url("/")).await?;
    browser.wait_for("document.getElementById('state').textContent === 'Ready'").await?;
    fixture.web("web", &[("http", 80)]).await?;
    browser.wait_for(&entry(fixture, "web")).await?;
    Ok(Some(browser))
}

/// A Service appears, changes, has a problem and goes; the page is not loaded again.
#[tokio::test]
async fn the_page_follows_without_a_reload() -> Result<()> {
    let fixture = Fixture::new("page").await?;
    let bridge = fixture.bridge().await?;
    let Some(browser) = open(&fixture, &bridge).await? else { return Ok(()) };
    browser.run("window.loadedOnce = true; return true").await?;
    let web = entry(&fixture, "web");
    let address = fixture.cluster_ip("web").await?;
    browser.wait_for(&format!("{web}.textContent.includes('1 passing, 0 critical')")).await?;
    browser.wait_for(&format!("{web}.textContent.includes('{address} port 80')")).await?;
    fixture.endpoints("web", &[Endpoint::unready("10.1.0.1")], &[("http", 80)]).await?;
    browser.wait_for(&format!("{web}.textContent.includes('0 passing, 1 critical')")).await?;

    let problem = "document.getElementById('problems').textContent.includes('InvalidAnnotation')";
    fixture.annotate("web", json!({"kube-consul.io/service-weight": "-3"})).await?;
    browser.wait_for(problem).await?;
    browser.screenshot("problem").await?;
    fixture.annotate("web", json!({"kube-consul.io/service-weight": null})).await?;
    browser.wait_for(&format!("!{problem}")).await?;

    fixture.delete("web").await?;
    browser.wait_for(&format!("!{web}")).await?;
    ensure!(browser.run("return window.loadedOnce === true").await? == true, "it was loaded again");
    browser.wait_for("document.querySelectorAll('#charts rect').length > 300").await?;

    // The program goes: the page says so, and keeps what it shows.
    ensure!(browser.complaints().await? == [""; 0], "{:?}", browser.complaints().await?);
    bridge.stop().await?;
    browser.wait_for("!document.getElementById('offline').hidden").await?;
    browser.stop().await
}

/// The address bar keeps what is searched; the keyboard alone is enough.
#[tokio::test]
async fn the_page_is_searched_by_keyboard() -> Result<()> {
    let fixture = Fixture::new("search").await?;
    let bridge = fixture.bridge().await?;
    fixture.web("database", &[("sql", 5_432)]).await?;
    let Some(browser) = open(&fixture, &bridge).await? else { return Ok(()) };
    browser.press("/").await?;
    browser.wait_for("document.activeElement.id === 'filter'").await?;
    browser.press("databa\u{e007}").await?;
    browser.wait_for("location.search === '?match=databa'").await?;
    browser.wait_for(&entry(&fixture, "database")).await?;
    browser.wait_for("document.querySelectorAll('#list > li').length === 1").await?;
    browser.wait_for("document.getElementById('filter').value === 'databa'").await?;

    // Each stop of the tabulator key is seen, and the first skips to the list.
    browser.press("\u{e004}").await?;
    browser.wait_for("document.activeElement.className === 'skip'").await?;
    let outline = "getComputedStyle(document.activeElement).outlineStyle !== 'none'";
    browser.wait_for(outline).await?;
    browser.stop().await
}

/// What a cluster's users write stays text.
#[tokio::test]
async fn what_users_write_stays_text() -> Result<()> {
    let fixture = Fixture::new("markup").await?;
    let bridge = fixture.bridge().await?;
    let Some(browser) = open(&fixture, &bridge).await? else { return Ok(()) };
    let markup = "<img src=x onerror=window.caught=1>";
    fixture
        .annotate(
            "web",
            json!({"kube-consul.io/service-tags": markup, "kube-consul.io/address": markup}),
        )
        .await?;
    browser.wait_for("document.body.textContent.includes('onerror=window.caught=1')").await?;
    browser
        .wait_for(&format!("{}.textContent.includes('onerror')", entry(&fixture, "web")))
        .await?;
    let found = browser.run("return [document.images.length, typeof window.caught]").await?;
    ensure!(found == json!([0, "undefined"]), "{found}");
    let url = bridge.url("/?match=%3Cscript%3Ewindow.caught=1%3C/script%3E");
    browser.open(&url).await?;
    browser.wait_for("document.getElementById('shown').textContent.startsWith('0 shown')").await?;
    ensure!(browser.run("return typeof window.caught").await? == "undefined", "it ran");
    ensure!(browser.complaints().await? == [""; 0], "{:?}", browser.complaints().await?);
    // And if it got in, the policy would not let it run.
    let inserted = "const it = document.createElement('script'); it.textContent = 'window.caught = 1'; \
                    document.body.append(it); return typeof window.caught";
    ensure!(browser.run(inserted).await? == "undefined", "the policy let a script run");
    browser.stop().await
}

/// The contrast of each text with what is behind it, by the formula of WCAG 2.2.
const CONTRASTS: &str = r"
const channels = (text) => text.match(/[\d.]+/g).map(Number);
const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = channels(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const seen = [...document.querySelectorAll('body *')].filter((node) =>
  node.offsetParent && [...node.childNodes].some((it) => it.nodeType === 3 && it.textContent.trim()));
return seen.map((node) => {
  const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), node.tagName + ' ' + node.textContent.slice(0, 40)];
});";

/// On a telephone and on a screen, light and dark: readable, and nothing is cut off.
#[tokio::test]
async fn the_page_is_for_all_screens_and_readers() -> Result<()> {
    let fixture = Fixture::new("screens").await?;
    let bridge = fixture.bridge().await?;
    let Some(browser) = open(&fixture, &bridge).await? else { return Ok(()) };
    fixture.annotate("web", json!({"kube-consul.io/address": "moon"})).await?;
    browser.wait_for("document.querySelector('#problems > li')").await?;
    for (width, dark) in [(390, false), (390, true), (1_200, false), (1_200, true)] {
        browser.appear(width, dark).await?;
        let overflow =
            "document.documentElement.scrollWidth > document.documentElement.clientWidth";
        browser.wait_for(&format!("!({overflow})")).await?;
        let contrasts = browser.run(CONTRASTS).await?;
        let contrasts = contrasts.as_array().context("a list")?;
        ensure!(contrasts.len() > 20, "{contrasts:?}");
        let low = contrasts.iter().find(|it| it[0].as_f64().is_none_or(|ratio| ratio < 4.5));
        ensure!(low.is_none(), "{width} px, dark {dark}: contrast of {low:?}");
        let name = format!("{width}-{}", if dark { "dark" } else { "light" });
        println!("{}", browser.screenshot(&name).await?.display());
    }
    let headings = "return [...document.querySelectorAll('h1, h2, h3')].map((it) => it.tagName)";
    let headings = browser.run(headings).await?;
    let levels = headings.as_array().context("a list")?;
    ensure!(levels.first().is_some_and(|it| it == "H1"), "{headings}");
    ensure!(levels.iter().filter(|it| **it == "H1").count() == 1, "{headings}");
    let unnamed =
        "return [...document.querySelectorAll('input')].filter((it) => !it.labels.length).length";
    ensure!(browser.run(unnamed).await? == 0, "an input has no label");
    browser.stop().await
}

/// Programs get JSON, browsers the page, and both get it with what keeps them safe.
#[tokio::test]
async fn programs_get_json_and_browsers_the_page() -> Result<()> {
    let fixture = Fixture::new("negotiation").await?;
    let bridge = fixture.bridge().await?;
    fixture.web("web", &[("http", 80)]).await?;
    fixture.wait_for_instances("web", 1).await?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let asked = client.get(bridge.url("/")).header(header::ACCEPT, "application/json");
    let status: Value = asked.send().await?.error_for_status()?.json().await?;
    ensure!(status["command"] == "bridge", "{status}");
    let instance = &status["services"][0]["instances"][0];
    ensure!(instance["port"] == 80 && instance["address"].is_string(), "{instance}");
    ensure!(status["history"][0]["values"].as_array().is_some_and(|it| it.len() == 90), "{status}");

    let asked = client.get(bridge.url("/")).header(header::ACCEPT, "text/html,*/*;q=0.8");
    let answer = asked.send().await?.error_for_status()?;
    let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str()?;
    ensure!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    ensure!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS] == "nosniff");
    ensure!(answer.text().await?.contains("<title>kube-consul</title>"));
    Ok(())
}
