//! The small process that holds mastership.
//!
//! It runs the VRRP engine for every HA router of this host, executes *prepared* batches (the very
//! netlink messages, made by control) on a transition, announces, claims, and reports. It reads no
//! file, waits for no server and asks control nothing.
//!
//! Read [`protocol`] first: it is all that control and keeper say to each other. Then [`engine`], which
//! decides without I/O; [`shell`] is the loop around it; [`claims`] is what hosts say to each other.

#![warn(missing_docs)]

pub mod claims;
pub mod cli;
pub mod engine;
pub mod hex;
pub mod protocol;
mod radv;
mod replication;
pub mod shell;
