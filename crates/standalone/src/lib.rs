//! VRRP on any Linux machine, from the VRRP part of a keepalived configuration: `evergate vrrp`.
//!
//! Needs neither cloud nor server. [`conf`] reads the file (pure; what is not supported is named with file
//! and line), [`cli`] is the command. Below it, three kinds of threads:
//!
//! - the main thread takes signals, and reads the files again at SIGHUP;
//! - one speaker (`speaker`), with real-time priority if asked for, drives every instance: sockets, timers
//!   and prepared netlink messages, nothing that can take long;
//! - helpers run notify scripts and write to FIFOs (`helper`), or look after what is tracked (`track`), and tell the
//!   speaker.
//!
//! The election itself is [`evergate_vrrp::router::VirtualRouter`]'s; read that first.

#![warn(missing_docs)]

pub mod cli;
pub mod conf;

mod bfd;
mod helper;
mod instance;
mod lease;
mod speaker;
mod track;
mod vmac;
