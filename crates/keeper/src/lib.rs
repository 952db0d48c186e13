//! The small process that holds mastership.
//!
//! It runs the VRRP engine for every HA router of this host, executes *prepared* batches (the very
//! netlink messages, made by control) on a transition, announces, claims, and reports. It reads no
//! file, waits for no server and asks control nothing.
//!
//! Read [`protocol`] first: it is all that control and keeper say to each other.

#![warn(missing_docs)]

pub mod claims;
pub mod engine;
pub mod hex;
pub mod protocol;
