//! Where a run keeps its data and logs: one folder a process, under the
//! system's temporary folder, named when something fails.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use anyhow::Context as _;

/// How long the logs of an ended run are kept: a working day, in which somebody
/// still looks at yesterday's failure.
const KEPT: Duration = Duration::from_hours(24);

/// A run holds this file locked while it lives.
const LOCK: &str = "lock";
/// What is of no use once the run has ended: databases, certificates.
const DATA: &str = "data";

struct Run {
    path: PathBuf,
    _lock: File,
}

static RUN: LazyLock<Run> = LazyLock::new(|| match start_run() {
    Ok(run) => run,
    Err(error) => panic!("no folder for the local cluster's data and logs: {error:#}"),
});

/// Set once this process has a folder, for messages that must not make one.
static STARTED: OnceLock<PathBuf> = OnceLock::new();

/// Where the logs are, as a part of a message; empty while there are none.
pub(crate) fn logs_hint() -> String {
    STARTED.get().map_or_else(String::new, |path| format!(" (logs are in {})", path.display()))
}

/// The folder that all runs of this user share.
pub(crate) fn base() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("kube-consul-stack-{user}"))
}

/// This process's own folder, made on first use. From then on a panic prints
/// its path, because that is where the logs are.
pub fn run_folder() -> &'static Path {
    &RUN.path
}

/// A new folder for the data of one program, removed with the run.
pub fn data_folder(name: &str) -> anyhow::Result<PathBuf> {
    let path = run_folder().join(DATA).join(unique(name));
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A name that no other call in this process gets.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn start_run() -> anyhow::Result<Run> {
    let base = base();
    fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
    sweep(&base);
    let path = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(&base)
        .with_context(|| format!("create a folder in {}", base.display()))?
        .keep();
    let lock = File::create(path.join(LOCK)).context("create the run's lock")?;
    lock.lock().context("lock the run's folder")?;
    let logs = path.clone();
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        previous(panic);
        eprintln!("logs of the local cluster: {}", logs.display());
    }));
    // The only call: a `LazyLock` runs this once.
    let _ = STARTED.set(path.clone());
    Ok(Run { path, _lock: lock })
}

/// Removes what ended runs left. A run that cannot be removed, by another
/// process that does so at the same time for example, is left to the next.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        let age = lock
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok());
        let gone = if age.is_some_and(|age| age > KEPT) {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_dir_all(path.join(DATA))
        };
        drop(gone);
    }
}

/// Removes this run's folder, for a program that ends in an orderly way.
pub fn remove_run_folder() -> std::io::Result<()> {
    fs::remove_dir_all(run_folder())
}

/// Eight lower-case letters and digits, other ones each time and in each process.
pub(crate) fn random_name() -> String {
    // Each `RandomState` has other keys, from the system's random numbers.
    let number = RandomState::new().hash_one(std::process::id());
    let digits = b"0123456789abcdefghijklmnopqrstuv";
    number
        .to_be_bytes()
        .map(|byte| char::from(digits[usize::from(byte) % digits.len()]))
        .iter()
        .collect()
}
