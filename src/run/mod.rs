//! One subcommand each: the loop that joins the core and the edges.

pub mod hook;
