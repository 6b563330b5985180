//! `check`, `status` and `explain`.

mod explain;
mod lines;
mod texts;
