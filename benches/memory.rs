//! What the bridge keeps in memory for the cluster that its budget speaks of: 10,000 Services with
//! ten endpoints each. Everything but the network is the real thing: lists and watches
//! against an API server within the process, the core, an answer to each write, a read-back.
//!
//! Each mode runs in a process of its own, so that none sees what another one left. The floor is
//! that process before the first object.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use kube_consul::domain::services::settings::{AddressMode, Settings};

mod in_process;
mod objects;

use in_process::Bridge;
use objects::{ENDPOINTS, Memory, SERVICES, TARGET_MIB};

fn main() -> Result<ExitCode> {
    // Cargo passes `--bench`.
    if let Some(mode) = std::env::args().nth(1).filter(|mode| !mode.starts_with('-')) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure(mode.parse()?))?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{SERVICES} Services, {} endpoints; target {TARGET_MIB} MiB", SERVICES * ENDPOINTS);
    for mode in [AddressMode::ClusterIp, AddressMode::Endpoints] {
        let status = Command::new(std::env::current_exe()?).arg(mode.to_string()).status()?;
        ensure!(status.success(), "{mode} ended with {status}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(mode: AddressMode) -> Result<()> {
    let mut settings = Settings::new("kubernetes".parse()?);
    settings.address = mode;
    let floor = Memory::of("self")?;
    let mut bridge = Bridge::new(settings);
    let listed = bridge.list().await?;
    println!("{mode}: floor {floor}, listed {listed}");
    bridge.resync(false)?;
    let written = bridge.write()?;
    println!("{mode}: {written} writes answered {}", Memory::of("self")?);
    bridge.resync(true)?;
    println!("{mode}: read back {}", Memory::of("self")?);
    let expected = if mode == AddressMode::Endpoints { SERVICES * ENDPOINTS } else { SERVICES };
    let known = bridge.core.counts().registrations;
    ensure!(known == expected, "expected {expected} registrations, found {known}");
    ensure!(bridge.write()? == 0, "what is as it should be was written again");
    ensure!(bridge.core.counts().problems == 0, "expected no problems");
    Ok(())
}
