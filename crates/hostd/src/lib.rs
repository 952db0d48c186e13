//! The host daemon: the supervisor, the control process, and the verbs that ask them.
//!
//! **Control** follows the server's stream and holds this host's kernel to it: observe, compile, diff,
//! plan, apply, observe. It prepares, for the keeper, the messages that make a router's copy active.
//! It may be killed, restarted or upgraded at any time: it keeps nothing that the kernel, the keeper,
//! the server or its cache of the last host configuration cannot tell it again.
//!
//! The **supervisor** starts control and keeper in sessions of their own and starts them again when
//! they die; it finds and keeps those that run already.

#![warn(missing_docs)]

pub mod backoff;
pub mod cache;
pub mod cli;
pub mod core;
pub mod files;
pub mod history;
pub mod membership;
pub mod round;
pub mod shell;
pub mod startup;
pub mod supervisor;
pub mod timestamp;
pub mod view;
pub mod worker;

/// What plugs ports into networks. An Open vSwitch driver may come later; it would be named here.
pub const L2_DRIVER: &str = "kernel bridge";
