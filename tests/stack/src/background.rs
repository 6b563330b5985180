//! The threads that outlive every test: a runtime for tasks of the stack's own
//! and the thread that starts all child processes.
//!
//! Each `#[tokio::test]` has its own runtime on its own thread, and both end
//! with the test. What several tests share must not live there: a task would
//! stop, and a child would be killed, because the kernel's parent-death signal
//! fires when the *thread* that started the child ends.

use std::sync::{LazyLock, mpsc};

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // One thread a core of the smallest machine that this is built for.
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("stack")
        .enable_all()
        .build()
        .expect("an operating system that runs tests gives them two more threads")
});

type SpawnRequest = (Command, oneshot::Sender<std::io::Result<Child>>);

static SPAWNER: LazyLock<mpsc::SyncSender<SpawnRequest>> = LazyLock::new(|| {
    // A request waits only for one fork; more than a dozen at once is unusual.
    let (sender, requests) = mpsc::sync_channel::<SpawnRequest>(16);
    std::thread::Builder::new()
        .name("stack-spawner".to_owned())
        .spawn(move || {
            // The children's exits are noticed by this runtime, not by a test's.
            let _context = runtime().enter();
            for (mut command, answer) in requests {
                // A caller that no longer waits drops the child, which kills it.
                let _ = answer.send(command.spawn());
            }
        })
        .expect("an operating system that runs tests gives them one more thread");
    sender
});

/// The runtime for tasks that outlive the test that started them.
pub(crate) fn runtime() -> &'static Handle {
    RUNTIME.handle()
}

/// Starts a child from the thread that lives as long as this process.
pub(crate) async fn spawn(mut command: Command) -> anyhow::Result<Child> {
    command.kill_on_drop(true);
    let (answer, child) = oneshot::channel();
    SPAWNER.send((command, answer)).context("the thread that starts processes has ended")?;
    child.await.context("the thread that starts processes has ended")?.context("start the process")
}
