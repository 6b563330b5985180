//! What all long-running commands share.

pub mod retry;
