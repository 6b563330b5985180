//! The signals that end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::run::Error;

/// Why a command is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) enum Stop {
    /// SIGTERM: done.
    Terminated,
    /// SIGINT: interrupted.
    Interrupted,
}

// === impl Stop ===

impl Stop {
    /// How a command ends that was stopped so and has nothing else to tell.
    pub(in crate::run) fn outcome(self) -> Result<(), Error> {
        match self {
            Stop::Terminated => Ok(()),
            Stop::Interrupted => Err(Error::Interrupted),
        }
    }
}

/// The signals, one after the other.
pub(in crate::run) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Listens from now on; the future ends with the first signal.
pub(in crate::run) fn signals() -> Result<impl Future<Output = Stop>, Error> {
    let mut signals = Signals::listen()?;
    Ok(async move { signals.next().await })
}

// === impl Signals ===

impl Signals {
    /// From now on.
    pub(in crate::run) fn listen() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Error::Failed(format!("cannot listen for signals: {error}")))
        };
        let (terminate, interrupt) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    /// The next one.
    pub(in crate::run) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminated,
            _ = self.interrupt.recv() => Stop::Interrupted,
        }
    }
}
