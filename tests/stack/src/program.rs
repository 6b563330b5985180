//! One child process: its output, its signals, its end.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{background, folder};

/// Lines kept in memory; the log file has all of them. A bridge that logs one
/// line a change says less than this in the longest test (10,000 Services).
const KEPT_LINES: usize = 50_000;

/// How long output may go on after the end of its program: it is in the pipe
/// already, unless a grandchild holds the pipe open.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// A killed process is gone within milliseconds; more than this means that it
/// hangs in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at whether a program stands still: stopping takes microseconds.
const PAUSE_POLL: Duration = Duration::from_millis(1);

/// Lines of the log that an error quotes: a screen's worth.
const QUOTED_LINES: usize = 20;

/// Starts a program only if its parent is still there: a parent that ended before
/// `setpriv` had asked for the signal leaves an orphan that nothing would end.
const UNLESS_ORPHANED: &str = r#"[ "$PPID" = "$1" ] || exit 1; shift; exec "$@""#;

/// What a child sees of this process's environment. Everything else is left
/// out: a `CONSUL_HTTP_ADDR`, a `KUBECONFIG` or an HTTP proxy of the user's
/// would lead the program away from the cluster under test.
const INHERITED: [&str; 4] = ["PATH", "TMPDIR", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// How a program is to be started.
#[derive(Debug, Clone)]
pub struct ProgramOptions {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl ProgramOptions {
    /// A program, by the path of its file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        for argument in arguments {
            self.arguments.push(argument.as_ref().to_owned());
        }
        self
    }

    /// Sets a variable of its environment, which is otherwise empty but for
    /// `PATH`, `HOME` (a folder of the run) and a few that cannot mislead it.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }
}

/// A running child process. Dropped, it is killed; and the kernel kills it when
/// this process ends in whatever way, SIGKILL included.
#[derive(Debug)]
pub struct Program {
    name: String,
    pid: Pid,
    signals: mpsc::Sender<Signal>,
    exit: watch::Receiver<Option<ExitStatus>>,
    output: Arc<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug)]
struct Output {
    path: PathBuf,
    state: Mutex<OutputState>,
    /// Counts the lines, so that a waiting test wakes up.
    count: watch::Sender<usize>,
}

#[derive(Debug)]
struct OutputState {
    file: File,
    lines: VecDeque<(Stream, String)>,
}

impl Program {
    /// Starts a program; its output goes to `<name>-<number>.log` in the run's
    /// folder.
    pub async fn start(name: &str, options: ProgramOptions) -> Result<Self> {
        if !options.path.is_file() {
            bail!("cannot start {name}: {} is not a file", options.path.display());
        }
        let home = folder::run_folder().join("home");
        fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        // In a group of its own: Ctrl-C in a terminal reaches only the parent,
        // which then ends the children in order.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c", UNLESS_ORPHANED, "sh"])
            .arg(std::process::id().to_string())
            .arg(&options.path)
            .args(&options.arguments)
            .env_clear()
            .envs(INHERITED.iter().filter_map(|name| {
                let value = std::env::var_os(name)?;
                Some((OsString::from(name), value))
            }))
            .env("HOME", &home)
            .envs(options.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let output = Arc::new(Output::create(name)?);
        let child = background::spawn(command).await.with_context(|| {
            format!("cannot start {name} ('setpriv' of util-linux 2.33 or newer is needed)")
        })?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .with_context(|| format!("{name} has no process id"))?;
        // More signals than a test sends before it waits for their effect.
        let (signals, requests) = mpsc::channel(8);
        let (exit_sender, exit) = watch::channel(None);
        background::runtime().spawn(supervise(
            child,
            pid,
            requests,
            exit_sender,
            Arc::clone(&output),
        ));
        Ok(Self { name: name.to_owned(), pid, signals, exit, output })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The file with all of its output.
    pub fn log(&self) -> &Path {
        &self.output.path
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.output.text(Some(Stream::Stdout))
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.output.text(Some(Stream::Stderr))
    }

    /// How it ended, once it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until a line of its output (already written or to come) matches,
    /// and gives that line. Fails at once when the program ends without it.
    pub async fn wait_for_line(
        &self,
        what: &str,
        deadline: Duration,
        matches: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let end = Instant::now() + deadline;
        let mut count = self.output.count.subscribe();
        let mut exit = self.exit.clone();
        loop {
            // Whether it has ended is asked first: lines that are looked at
            // after that are complete.
            let ended = exit.borrow_and_update().is_some();
            count.mark_unchanged();
            if let Some(line) = self.output.find(&matches) {
                return Ok(line);
            }
            if ended {
                return Err(self.failure(&format!("ended without {what}")));
            }
            let next = async {
                tokio::select! {
                    _ = count.changed() => {}
                    _ = exit.changed() => {}
                }
            };
            if timeout_at(end, next).await.is_err() {
                return Err(self.failure(&format!("has not written {what} within {deadline:?}")));
            }
        }
    }

    /// Waits for its end.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let mut exit = self.exit.clone();
        match timeout(deadline, exit.wait_for(Option::is_some)).await {
            Ok(Ok(status)) => status.context("an ended program has a status"),
            Ok(Err(_)) => Err(self.failure("has lost its supervisor")),
            Err(_) => Err(self.failure(&format!("has not ended within {deadline:?}"))),
        }
    }

    /// Waits for its end with exactly this exit code.
    pub async fn wait_for_code(&self, code: i32, deadline: Duration) -> Result<()> {
        let status = self.wait(deadline).await?;
        if status.code() == Some(code) {
            return Ok(());
        }
        Err(self.failure(&format!("ended with {status}, expected exit code {code}")))
    }

    /// SIGTERM, without waiting.
    pub async fn terminate(&self) {
        self.signal(Signal::TERM).await;
    }

    /// SIGINT, without waiting.
    pub async fn interrupt(&self) {
        self.signal(Signal::INT).await;
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL).await;
        self.wait(KILL_DEADLINE).await.map(drop)
    }

    /// SIGTERM, and waits until it is gone; SIGKILL when it does not go.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.terminate().await;
        if self.wait(grace).await.is_err() {
            self.kill().await?;
        }
        Ok(())
    }

    /// SIGSTOP: it stands still, its connections stay open. Returns once it does: another task
    /// sends the signal, and the kernel stops one thread after the other.
    pub async fn pause(&self) {
        self.signal(Signal::STOP).await;
        let stopped = async || {
            let stat = tokio::fs::read_to_string(format!("/proc/{}/stat", self.pid())).await;
            // The state follows the name, which may itself have parentheses.
            stat.ok().and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('T')))
        };
        // One that has ended has no state.
        while stopped().await == Some(false) && self.exit_status().is_none() {
            tokio::time::sleep(PAUSE_POLL).await;
        }
    }

    /// SIGCONT after a pause.
    pub async fn resume(&self) {
        self.signal(Signal::CONT).await;
    }

    async fn signal(&self, signal: Signal) {
        // An ended program has nobody left to receive it.
        let _ = self.signals.send(signal).await;
    }

    /// An error about this program that quotes the end of its output.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let text = self.output.text(None);
        let lines: Vec<&str> = text.lines().collect();
        let quoted = lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n  ");
        anyhow::anyhow!(
            "{} {what}; its log is {}, ending in:\n  {quoted}",
            self.name,
            self.log().display()
        )
    }

    /// Whether its output has this text.
    pub fn has_written(&self, text: &str) -> bool {
        self.output.find(&|line: &str| line.contains(text)).is_some()
    }
}

/// Owns the child: passes signals on while it is not reaped yet, so that none
/// can reach another process that got the same id later.
async fn supervise(
    mut child: Child,
    pid: Pid,
    mut signals: mpsc::Receiver<Signal>,
    exit: watch::Sender<Option<ExitStatus>>,
    output: Arc<Output>,
) {
    let readers = [
        child
            .stdout
            .take()
            .map(|pipe| tokio::spawn(read(pipe, Stream::Stdout, Arc::clone(&output)))),
        child.stderr.take().map(|pipe| tokio::spawn(read(pipe, Stream::Stderr, output))),
    ];
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            signal = signals.recv() => {
                // A closed channel: the handle was dropped.
                let closed = signal.is_none();
                let _ = kill_process(pid, signal.unwrap_or(Signal::KILL));
                if closed {
                    break child.wait().await;
                }
            }
        }
    };
    let end = Instant::now() + LAST_OUTPUT;
    for reader in readers.into_iter().flatten() {
        let _ = timeout_at(end, reader).await;
    }
    if let Ok(status) = status {
        exit.send_replace(Some(status));
    }
}

async fn read(pipe: impl AsyncRead + Unpin, stream: Stream, output: Arc<Output>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(pipe.read_until(b'\n', &mut line).await, Ok(length) if length > 0) {
        let text = String::from_utf8_lossy(&line);
        output.push(stream, text.trim_end_matches(['\n', '\r']));
        line.clear();
    }
}

impl Output {
    fn create(name: &str) -> Result<Self> {
        let path = folder::run_folder().join(format!("{}.log", folder::unique(name)));
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            path,
            state: Mutex::new(OutputState { file, lines: VecDeque::new() }),
            count: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, OutputState> {
        // Lines are whole whenever the lock is free, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, stream: Stream, line: &str) {
        let mut state = self.state();
        // A full disk costs the log, not the test.
        let _ = writeln!(state.file, "{line}");
        if state.lines.len() == KEPT_LINES {
            state.lines.pop_front();
        }
        state.lines.push_back((stream, line.to_owned()));
        drop(state);
        self.count.send_modify(|count| *count += 1);
    }

    fn find(&self, matches: &impl Fn(&str) -> bool) -> Option<String> {
        let state = self.state();
        let mut lines = state.lines.iter().map(|(_, line)| line);
        lines.find(|line| matches(line)).cloned()
    }

    fn text(&self, stream: Option<Stream>) -> String {
        let state = self.state();
        let mut text = String::new();
        for (from, line) in &state.lines {
            if stream.is_none_or(|stream| stream == *from) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}
