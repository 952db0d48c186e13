//! Bidirectional Forwarding Detection without I/O (RFC 5880, in asynchronous mode; RFC 5881 for one hop,
//! RFC 5883 for several).
//!
//! One session per pair of hosts notices a host that is gone within a few intervals, at a cost that does
//! not depend on how many routers the host had. What follows from that is decided by
//! [`VirtualRouter::handle_peer_down`](crate::router::VirtualRouter::handle_peer_down).
//!
//! Read RFC 5880 §6.8 beside [`session::Session`], which is one session, and then
//! [`sessions::Sessions`], which is all of a host's: it tells them apart, authenticates and counts what
//! it refuses. The codec is in [`wire`]. Which clause is kept where is in `conformance/bfd-rules.md`.
//!
//! Left out, because nothing here needs them: Demand mode, the Echo function (the keeper cannot make a
//! peer's kernel echo for it), point-to-multipoint, and the passive role.

pub mod auth;
pub mod session;
pub mod sessions;
pub mod wire;

#[cfg(test)]
mod tests;

/// UDP port of single-hop control packets (RFC 5881 §4).
pub const SINGLE_HOP_PORT: u16 = 3784;

/// UDP port of multihop control packets (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;

/// Where a sender's UDP port comes from (RFC 5881 §4).
pub const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

/// TTL or hop limit of what is sent (RFC 5881 §5), and of what is accepted over a single hop.
pub const HOP_LIMIT: u8 = 255;
