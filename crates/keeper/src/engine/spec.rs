//! A router's specification, checked and decoded once, when it arrives: nothing is parsed in a takeover.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use evergate_vrrp::router::{Config, Interop, InvalidConfig, Version, Vrid};
use evergate_vrrp::wire::{self, Ipv4Checksum};

use crate::hex::{self, HexError};
use crate::protocol::{Item, Place, RouterSpec};

/// Length of a netlink message's header.
const NETLINK_HEADER: usize = 16;
/// `NLM_F_REPLACE`: the message changes the object that is there.
const REPLACE: u16 = 0x100;

/// An item with its messages decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// Says what it is.
    pub(super) key: String,
    /// Where.
    pub(super) place: Place,
    /// Does it.
    pub(super) add: Vec<u8>,
    /// Undoes it; empty where nothing need be undone.
    pub(super) del: Vec<u8>,
}

impl Prepared {
    /// Tells whether doing it also undoes whatever stood in its place.
    pub(super) fn replaces(&self) -> bool {
        u16::from_ne_bytes([self.add[6], self.add[7]]) & REPLACE != 0
    }
}

/// What is wrong with a specification: control's mistake, so nothing of it is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpecError {
    #[error("VRID 0 is not a virtual router")]
    Vrid,
    #[error("the VRRP settings cannot work: {0}")]
    Vrrp(#[from] InvalidConfig),
    #[error("an advertisement interval of {0} cs cannot be written in version 2: whole seconds, 1 to 255")]
    Interval(u16),
    #[error("an advertisement interval of {0} cs cannot be written in version 3: 1 to 4095")]
    IntervalV3(u16),
    #[error("there is no VRRP version {0}; there are 2 and 3")]
    Version(u8),
    #[error("the password is longer than 8 bytes")]
    Password,
    #[error("item '{key}' is listed twice")]
    Twice { key: String },
    #[error("the {verb} message of item '{key}' is unusable: {source}")]
    Hex { key: String, verb: &'static str, source: HexError },
    #[error("the {verb} message of item '{key}' is not one netlink message")]
    Length { key: String, verb: &'static str },
    #[error("'{0}' cannot be the name of a namespace")]
    Netns(String),
}

/// What the VRRP engine is told. `agrees`: there are other paths on which copies can agree.
pub(super) fn config(spec: &RouterSpec, agrees: bool) -> Result<Config, SpecError> {
    // The engine's own check would name neither unit nor reason.
    let cs = spec.advertise_interval_cs;
    let version = match spec.vrrp_version {
        2 if (100..=25_500).contains(&cs) && cs.is_multiple_of(100) => Version::V2,
        2 => return Err(SpecError::Interval(cs)),
        3 if (1..=4095).contains(&cs) => Version::V3,
        3 => return Err(SpecError::IntervalV3(cs)),
        other => return Err(SpecError::Version(other)),
    };
    if spec.password.as_ref().is_some_and(|password| password.len() > 8) {
        return Err(SpecError::Password);
    }
    // The name becomes a path below netns_path.
    if spec.netns.is_empty() || spec.netns.starts_with('.') || spec.netns.contains('/') {
        return Err(SpecError::Netns(spec.netns.clone()));
    }
    let vrid = Vrid::new(spec.vrid).ok_or(SpecError::Vrid)?;
    let config = Config {
        priority: spec.priority,
        advertise_interval_cs: spec.advertise_interval_cs,
        preempt: spec.preempt,
        preempt_delay: Duration::from_secs(spec.preempt_delay_s.into()),
        password: spec.password.as_deref().filter(|password| !password.is_empty()).map(wire::password),
        addresses: vec![IpAddr::V4(spec.virtual_address.addr())],
        peers: spec.peers.iter().map(|&peer| IpAddr::V4(peer)).collect(),
        agreement: agrees.then(|| spec.peer_hosts.keys().map(|&peer| IpAddr::V4(peer)).collect()),
        // Control lists all copies, so nobody's turn is taken by not waiting 0.8 s for it.
        //
        // Deviation: RFC 9568 §5.2.8 has version 3's checksum over IPv4 without a pseudo-header. Stock speakers
        // send it with one; keepalived accepts nothing else once it has heard it, we accept both.
        interop: Interop { hasten_resignation: true, ipv4_checksum: Ipv4Checksum::PseudoHeader, ..Interop::default() },
        version,
        ..Config::neutron(vrid, spec.ha_address.addr())
    };
    config.validate()?;
    Ok(config)
}

/// Decodes the items.
pub(super) fn prepare(items: &[Item]) -> Result<Vec<Prepared>, SpecError> {
    let mut keys = BTreeSet::new();
    let mut prepared = Vec::with_capacity(items.len());
    for item in items {
        if !keys.insert(item.key.as_str()) {
            return Err(SpecError::Twice { key: item.key.clone() });
        }
        let add = message(&item.key, "add", &item.add)?;
        let del = if item.del.is_empty() { Vec::new() } else { message(&item.key, "del", &item.del)? };
        prepared.push(Prepared { key: item.key.clone(), place: item.place, add, del });
    }
    Ok(prepared)
}

fn message(key: &str, verb: &'static str, text: &str) -> Result<Vec<u8>, SpecError> {
    let bytes = hex::decode(text).map_err(|source| SpecError::Hex { key: key.to_owned(), verb, source })?;
    let written = bytes.first_chunk::<4>().map(|length| u32::from_ne_bytes(*length) as usize);
    if bytes.len() < NETLINK_HEADER || written != Some(bytes.len()) {
        return Err(SpecError::Length { key: key.to_owned(), verb });
    }
    Ok(bytes)
}
