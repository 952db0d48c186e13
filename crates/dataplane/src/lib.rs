//! What a host's kernel must hold, and how to get there, as data.
//!
//! [`compile()`] turns a [`HostConfig`](evergate_model::HostConfig) and the host's own settings into a
//! [`KernelState`]; [`diff()`] compares two of them and yields a [`Plan`] of [`Op`]s; printing the plan is
//! the dry run. Nothing here touches a kernel: crate `evergate-kernel` observes one into the same
//! [`KernelState`] and applies exactly the ops that were printed.
//!
//! Read [`state`] first, then [`op`] and [`plan`], then [`mod@compile`] and [`mod@diff`]. `tests/plans/` shows
//! what comes out.

#![warn(missing_docs)]

pub mod check;
pub mod compile;
pub mod diff;
pub mod effects;
pub mod fake;
pub mod keepalived;
pub mod nft;
pub mod op;
pub mod plan;
mod print;
mod show;
pub mod state;

pub use compile::{Desired, HostSettings, Prepared, Problem, View, compile};
pub use diff::diff;
pub use nft::NftTable;
pub use op::Op;
pub use plan::{Plan, Refusal};
pub use state::{KernelState, Netns, NetnsState};
