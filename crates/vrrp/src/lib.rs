//! Router redundancy without I/O: VRRP version 2 (RFC 3768, with RFC 2338's simple authentication, as
//! keepalived speaks it) and version 3 (RFC 9568).
//!
//! Read [`router::VirtualRouter`] first, beside RFC 9568 §6.4. The codec is in [`wire`].

#![warn(missing_docs)]

pub mod router;
pub mod wire;
