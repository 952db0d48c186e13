//! The crate against a real kernel, as root.
//!
//! Each test thread moves into network and mount namespaces of its own, with an empty `/run/netns`: tests
//! do not meet, and all that they make goes with the thread, however it ends.

#![expect(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod conntrack;
mod differential;
mod dispatch;
mod dvr;
mod keeper;
mod links;
mod namespaces;
mod nft;
mod objects;
mod routers;
mod sandbox;
mod watch;
