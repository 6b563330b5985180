//! The frame of a daemon: what the long-running commands share, and in part `plan` and `purge`.
//!
//! | file | what it is |
//! |---|---|
//! | [`options`] | the options that several commands take |
//! | `connect` | the runtime, the clients of both sides, the end of a login |
//! | `first_line` | the first line of the log |
//! | `signals` | SIGTERM and SIGINT |
//! | `frame` | what runs beside the loop of a daemon, and ends after it |
//! | `admin` | starting and stopping the admin server |
//! | `checks` | the single checks of the handshake: each asks once and returns what it found |
//! | `handshake` | all of them, each until it succeeds, before the first write |
//! | `watch_health` | when each watch was last heard of, and why those that fail do |
//! | `retry` | waiting for a side that cannot be reached yet |

pub(in crate::run) mod admin;
pub(in crate::run) mod checks;
pub(in crate::run) mod connect;
pub(in crate::run) mod first_line;
pub(in crate::run) mod frame;
pub(in crate::run) mod handshake;
pub mod options;
pub(in crate::run) mod retry;
pub(in crate::run) mod signals;
pub(in crate::run) mod watch_health;
