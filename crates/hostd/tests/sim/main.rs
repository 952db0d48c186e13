//! Control on a virtual clock: the core and the worker as they are, a kernel in memory, and a test that
//! plays the server and the keeper.
//!
//! `harness.rs` is that host; each other file is about one thing.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "../common/mod.rs"]
mod common;
mod harness;
#[path = "../machine/mod.rs"]
mod machine;

mod keeper;
mod removals;
mod reports;
mod rounds;
