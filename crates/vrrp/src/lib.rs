//! Router redundancy without I/O: VRRP version 2 (RFC 3768, with RFC 2338's simple authentication, as
//! keepalived speaks it) and version 3 (RFC 9568).
//!
//! Read [`router::VirtualRouter`] first, beside RFC 9568 §6.4. The codec is in [`wire`], the frames
//! that tell neighbours where the addresses live now are in [`announce`], those that ask whether a gateway is
//! there in [`reach`].
//!
//! Nothing here reads a clock, opens a socket or logs: time arrives as an argument, bytes as slices,
//! and what should happen leaves as [`router::Output`]. Which rule of the standards is kept where is
//! written down, statement by statement, in `conformance/vrrp-rules.md`.

#![warn(missing_docs)]

pub mod agreement;
pub mod announce;
pub mod bfd;
pub mod icmpv6;
pub mod pacing;
pub mod reach;
pub mod router;
pub mod wire;
