//! The whole product in a lab, from the stock client to the packets.
//!
//! Each test brings up a lab of its own (hosts as namespaces, the real daemons) under a name that
//! carries the process id, and takes it down however it ends. When a test fails, the ends of the
//! daemons' logs are printed with it. They need root, and the stock client in `.venv` (`make deps`).

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod bad_input;
mod connections;
mod conversion;
mod distributed;
mod dvr_hosts;
mod every_kind;
mod failures;
mod faults;
mod gateways;
mod ipv6;
mod keepalived;
mod many;
mod membership;
mod page;
mod planned;
mod random;
mod settled;
mod side_by_side;
mod split_brain;
mod support;
mod walk_through;
