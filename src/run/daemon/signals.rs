//! The signals that end a command.

use tokio::signal::unix::{SignalKind, signal};

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

/// Listens from now on; the future ends with the first signal.
pub(in crate::run) fn signals() -> Result<impl Future<Output = Stop>, Error> {
    let listen = |kind| {
        signal(kind).map_err(|error| Error::Failed(format!("cannot listen for signals: {error}")))
    };
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => Stop::Terminated,
            _ = interrupt.recv() => Stop::Interrupted,
        }
    })
}
