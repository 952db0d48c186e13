//! The state machine of one virtual router (RFC 9568 §6.4; RFC 3768 §6.4 for version 2).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::wire::Advertisement;

/// Virtual router identifier, 1 to 255 (RFC 9568 §5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrid(u8);

impl Vrid {
    /// Checks that the number is not 0.
    pub const fn new(number: u8) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Protocol version spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 3768, whole seconds, optional simple password.
    V2,
    /// RFC 9568, centiseconds.
    V3,
}

/// What a virtual router is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its identifier.
    pub vrid: Vrid,
    /// Version to speak.
    pub version: Version,
    /// 1 to 254; 255 only for the address owner.
    pub priority: u8,
    /// Advertisement interval in centiseconds; whole seconds (a multiple of 100) for version 2.
    pub advertise_interval_cs: u16,
    /// Whether a higher priority takes over from a living active of lower priority.
    pub preempt: bool,
    /// How long to wait, after start-up, before preempting.
    pub preempt_delay: Duration,
    /// Simple password (version 2 authentication type 1), at most 8 bytes.
    pub password: Option<[u8; 8]>,
    /// Our address on the HA interface: the source of what we send, and the tie-breaker.
    pub primary_address: IpAddr,
    /// The addresses in our advertisements.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the other copies, if known: lets copies of equal priority agree beforehand who is
    /// next. Empty: as the RFC says, and as keepalived does.
    pub peers: BTreeSet<IpAddr>,
}

/// RFC 9568 §6.4 states, with the names of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not taking part.
    Initialize,
    /// Listening to an Active router.
    Backup,
    /// Forwarding, and advertising it.
    Active,
}

/// Why a state was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Told to take part.
    Startup,
    /// Told to stop.
    Shutdown,
    /// Active_Down_Timer expired: nothing was heard for three intervals and Skew_Time.
    ActiveDown,
    /// The active router resigned with priority 0, and Skew_Time has passed.
    Resigned,
    /// An advertisement of higher priority arrived.
    HigherPriority,
    /// One of equal priority from a higher address arrived.
    HigherAddress,
    /// The interface, or what it tracks, failed.
    Fault,
    /// The state was found in the kernel at start-up.
    Adopted,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send an advertisement.
    Transmit(Advertisement),
    /// Configure the addresses and routes (comes before `AnnounceAddresses`).
    Activate,
    /// Remove them.
    Deactivate,
    /// Send gratuitous ARP / unsolicited neighbour advertisements.
    AnnounceAddresses,
    /// Tell whoever listens.
    StateChanged {
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        reason: Reason,
    },
}

/// The timers of RFC 9568 §6.2, and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Time to send an advertisement.
    Adver,
    /// The active router has not been heard for too long.
    ActiveDown,
    /// Gratuitous announcements are sent again (keepalived's garp_master_delay).
    Announce,
}

/// One virtual router.
///
/// Calling order: any `handle_*`, then `poll_output` until `None`, then sleep until `poll_timeout`.
#[derive(Debug)]
pub struct VirtualRouter {}

impl VirtualRouter {
    /// Makes a router in Initialize.
    pub fn new(config: Config) -> Self {
        let _ = config;
        Self {}
    }
    /// Starts taking part: Initialize to Backup (or Active for an address owner).
    pub fn handle_startup(&mut self, now: Instant) {
        let _ = now;
    }
    /// Resumes as Active because the addresses were found configured after a restart.
    pub fn handle_adopt_active(&mut self, now: Instant) {
        let _ = now;
    }
    /// Stops taking part; an active router resigns with priority 0.
    pub fn handle_shutdown(&mut self, now: Instant) {
        let _ = now;
    }
    /// Leaves the election because the interface is down or what it tracks failed.
    pub fn handle_fault(&mut self, now: Instant) {
        let _ = now;
    }
    /// Takes a changed configuration, without a transition where none is needed.
    pub fn handle_config(&mut self, config: Config, now: Instant) {
        let _ = (config, now);
    }
    /// Takes an advertisement that [`crate::wire`] found valid for this router.
    pub fn handle_advertisement(&mut self, from: IpAddr, adv: &Advertisement, now: Instant) {
        let _ = (from, adv, now);
    }
    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }
    /// Takes the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }
    /// Tells when to call `handle_timeout`, and for which timer.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        None
    }
    /// The state.
    pub fn state(&self) -> State {
        State::Initialize
    }
    /// The configuration.
    pub fn config(&self) -> &Config {
        unreachable!("stub")
    }
}
