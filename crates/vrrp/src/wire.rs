//! VRRP packets: parsed once, at the edge; whatever can be constructed can be emitted.

use std::net::IpAddr;

use crate::router::{Version, Vrid};

/// A valid advertisement (RFC 9568 §5.2, RFC 3768 §5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Version it is written in.
    pub version: Version,
    /// Virtual router.
    pub vrid: Vrid,
    /// 0 resigns.
    pub priority: u8,
    /// Centiseconds; whole seconds for version 2.
    pub advertise_interval_cs: u16,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Version 2's simple password.
    pub password: Option<[u8; 8]>,
}
