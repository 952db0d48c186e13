//! The only privileged code: observes the kernel, applies ops to it, watches it, and opens the sockets
//! that see raw packets. It decides nothing.
//!
//! Read [`kernel::Kernel`] first: [`Kernel::observe`] yields the same [`KernelState`] that a plan is made
//! from, and [`Kernel::apply`] carries out exactly the [`Op`]s that were printed. Below it, `route` and
//! `nft` turn our words into netlink messages and back, `wire` builds and reads those, `socket` sends
//! them, `netns` makes and enters namespaces. [`rt`] is the small part that the keeper runs on; [`sys`]
//! has the system calls of the other crates, as `unsafe` is allowed in this one alone.
//!
//! [`KernelState`]: evergate_dataplane::KernelState
//! [`Op`]: evergate_dataplane::Op

#![warn(missing_docs)]
#![allow(unsafe_code, reason = "system calls are made here, so that they are made nowhere else")]

mod apply;
pub mod conntrack;
pub mod error;
pub mod kernel;
mod netns;
mod nft;
mod observe;
mod removal;
mod route;
pub mod rt;
mod socket;
pub mod sys;
mod uapi;
pub mod watch;
mod wire;

pub use error::{Cause, Error, Refusal};
pub use kernel::Kernel;
pub use watch::{HostWatch, LinkEvent};
