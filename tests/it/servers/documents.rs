//! What only a real cluster would show is written down: that it is, and that what is written is
//! what the manifests are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::documentation::blocks;

use super::support::{object, rendered};
use crate::support::manifest;

fn page(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/consul").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The pages about servers, with their names.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/consul");
    let entries = fs::read_dir(folder)?.map(|it| Ok(it?.path()));
    entries
        .map(|path: Result<_>| path.and_then(|it| Ok((it.clone(), fs::read_to_string(it)?))))
        .collect()
}

#[tokio::test]
async fn s14_only_consuls_zone_is_forwarded_and_to_the_address_of_the_service() -> Result<()> {
    let objects = rendered("consul-dns").await?;
    let service = object(&objects, "Service", "consul-dns")?;
    let address = service["spec"]["clusterIP"].as_str().context("no fixed address")?;
    let page = page("dns.md")?;
    let blocks = blocks(&page)?;
    let mut zones = Vec::new();
    for block in blocks.iter().filter(|it| it.lines.iter().any(|line| line.ends_with(":53 {"))) {
        let text = block.lines.join("\n");
        ensure!(text.contains(&format!("forward . {address}\n")), "another address: {text}");
        zones.extend(
            block.lines.iter().filter_map(|it| it.strip_suffix(":53 {")).map(str::to_owned),
        );
    }
    ensure!(zones == ["consul"], "forwarded: {zones:?}");
    // No loop: what is not theirs the servers ask nobody for.
    let servers = rendered("consul-servers").await?;
    let config = object(&servers, "ConfigMap", "consul-server")?["data"]["server.hcl"].to_string();
    ensure!(!config.contains("recursors"), "the servers ask others");
    Ok(())
}

#[test]
fn s6_s9_s16_have_their_place_in_the_documentation() -> Result<()> {
    for (name, texts) in [
        ("README.md", &["stays `Pending`", "60 to 67 s", "Delete the claim"][..]),
        (
            "operations.md",
            &[
                "All data lost, the Secrets kept",
                "The Secrets lost too",
                "replaces the broken one by itself",
            ],
        ),
    ] {
        let page = page(name)?;
        for text in texts {
            ensure!(page.contains(text), "{name} does not say '{text}'");
        }
    }
    Ok(())
}

#[test]
fn what_the_pages_name_is_there() -> Result<()> {
    let script = fs::read_to_string(manifest("consul/secrets"))?;
    let mut commands = 0;
    for (path, page) in pages()? {
        for word in page.split(|it: char| !(it.is_alphanumeric() || "/-_.".contains(it))) {
            let word = word.trim_end_matches(['.', '/']);
            if let Some(rest) = word.strip_prefix("manifests/") {
                ensure!(manifest(rest).exists(), "{}: there is no {word}", path.display());
            }
        }
        for line in page.lines().filter_map(|it| it.split_once("manifests/consul/secrets ")) {
            let mut words = line.1.split_whitespace();
            let command = words.next().unwrap_or_default();
            let step = words.next().unwrap_or_default();
            ensure!(script.contains(&format!("\n{command}) ")), "{}: {command}", path.display());
            if ["ca", "gossip"].contains(&command) {
                ensure!(script.contains(&format!("    {step})\n")), "{}: {step}", path.display());
            }
            commands += 1;
        }
    }
    ensure!(commands >= 8, "{commands} commands are shown");
    Ok(())
}
