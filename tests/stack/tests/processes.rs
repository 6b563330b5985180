//! Child processes end when they must and not before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Program, ProgramOptions, eventually};

const DEADLINE: Duration = Duration::from_secs(10);

/// Set for the copy of this binary that is to be killed with its child.
const VICTIM: &str = "STACK_TEST_VICTIM";

fn shell(script: &str) -> ProgramOptions {
    ProgramOptions::new("/bin/sh").args(["-c", script])
}

/// Whether a process runs; one that only waits to be reaped does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

async fn wait_gone(pid: i32) -> Result<()> {
    eventually(DEADLINE, || async {
        ensure!(!runs(pid), "process {pid} still runs");
        Ok(())
    })
    .await
}

/// Does nothing by itself: the next test runs it in a process of its own.
#[tokio::test]
async fn victim() -> Result<()> {
    if std::env::var_os(VICTIM).is_none() {
        return Ok(());
    }
    let child = Program::start("sleep", ProgramOptions::new("/bin/sleep").arg("600")).await?;
    println!("child {}", child.pid());
    child.wait(Duration::from_mins(10)).await.map(drop)
}

#[tokio::test]
async fn no_child_survives_a_killed_parent() -> Result<()> {
    let options = ProgramOptions::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, "1");
    let parent = Program::start("victim", options).await?;
    let line =
        parent.wait_for_line("the child's id", DEADLINE, |line| line.contains("child ")).await?;
    let child: i32 = line.rsplit(' ').next().context("an id")?.parse()?;
    // At once: the child may not have asked yet to die with its parent.
    parent.kill().await?;
    wait_gone(child).await
}

#[tokio::test]
async fn a_child_survives_the_thread_that_asked_for_it() -> Result<()> {
    let program = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let script = shell("echo ready; sleep 0.3; exit 7");
            let program = Program::start("survivor", script).await?;
            // Only a child that is under way has asked to die with its parent.
            program.wait_for_line("ready", DEADLINE, |line| line == "ready").await?;
            anyhow::Ok(program)
        })
    })
    .join()
    .ok()
    .context("the thread panicked")??;
    program.wait_for_code(7, DEADLINE).await
}

#[tokio::test]
async fn a_dropped_program_is_killed() -> Result<()> {
    let program =
        Program::start("dropped", shell("trap '' TERM; while :; do sleep 1; done")).await?;
    let pid = program.pid();
    drop(program);
    wait_gone(pid).await
}

#[tokio::test]
async fn output_is_captured_apart_and_together() -> Result<()> {
    let script = "echo out; echo err >&2; echo $CONSUL_HTTP_ADDR; exit 3";
    let program = Program::start("output", shell(script).env("CONSUL_HTTP_ADDR", "here")).await?;
    program.wait_for_code(3, DEADLINE).await?;
    ensure!(program.stdout() == "out\nhere\n", "stdout: {:?}", program.stdout());
    ensure!(program.stderr() == "err\n", "stderr: {:?}", program.stderr());
    let log = std::fs::read_to_string(program.log())?;
    ensure!(log.lines().count() == 3, "log: {log:?}");
    let error = program.wait_for_code(0, DEADLINE).await.unwrap_err().to_string();
    ensure!(error.contains("exit status: 3") && error.contains("err"), "{error}");
    Ok(())
}

#[tokio::test]
async fn waiting_for_a_line_ends_with_the_program() -> Result<()> {
    let program = Program::start("brief", shell("echo one")).await?;
    let error = program.wait_for_line("two", DEADLINE, |line| line == "two").await;
    let error = error.unwrap_err().to_string();
    ensure!(error.contains("ended without two"), "{error}");
    ensure!(program.wait_for_line("one", DEADLINE, |line| line == "one").await? == "one");
    Ok(())
}

#[tokio::test]
async fn signals_arrive() -> Result<()> {
    let script = "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let program = Program::start("signals", shell(script)).await?;
    program.wait_for_line("ready", DEADLINE, |line| line == "ready").await?;
    program.pause().await;
    program.terminate().await;
    ensure!(program.wait(Duration::from_millis(300)).await.is_err(), "it was not paused");
    program.resume().await;
    program.wait_for_code(5, DEADLINE).await?;
    ensure!(program.has_written("term"));
    Ok(())
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let path = Path::new("/nowhere/program");
    let outcome = Program::start("absent", ProgramOptions::new(path)).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("/nowhere/program is not a file"), "{error}");
}
