//! What control and keeper say to each other: one JSON value per line over a Unix stream socket.
//!
//! The keeper listens; control connects, says [`ToKeeper::Hello`] and sends its whole state (every
//! router and followed router, then [`ToKeeper::EndOfState`], whereupon the keeper drops what was not
//! mentioned). Later it sends what changed. The keeper answers with its whole state, then with events.
//! If control is away the keeper goes on, and keeps the newest transitions (bounded) for when it is back.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use evergate_model::{HaState, Mac, RouterId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Version of this protocol. A keeper that is asked for another answers with its own and is replaced
/// when that can be done without harm.
pub const PROTOCOL_VERSION: u32 = 1;

/// From control to keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToKeeper {
    /// First line.
    Hello {
        /// See [`PROTOCOL_VERSION`].
        version: u32,
        /// What holds for the whole process.
        settings: Settings,
    },
    /// A router copy on this host, whole.
    Router(Box<RouterSpec>),
    /// A router copy that is to go: resigns if active, runs its removals, forgets it.
    RemoveRouter {
        /// Which.
        router: RouterId,
    },
    /// Forwarding entries on this host that follow a router's active copy.
    Follow(FollowSpec),
    /// They need not be followed any more.
    Unfollow {
        /// Which router's.
        router: RouterId,
    },
    /// Everything was said: what was not mentioned since `Hello` goes.
    EndOfState,
    /// Control asks for [`FromKeeper::Status`].
    Status,
    /// Resign everything, run all removals, stop.
    Shutdown,
}

/// What holds for the whole process.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// This host's name, for logs.
    pub host: String,
    /// This host's tunnel address: where claims come from and say that the router is.
    pub vtep: Option<IpAddr>,
    /// UDP port for claims.
    pub claim_port: u16,
    /// Authenticates claims; hexadecimal. Empty: claims are neither sent nor believed.
    pub claim_key: String,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("host", &self.host)
            .field("vtep", &self.vtep)
            .field("claim_port", &self.claim_port)
            .field("claim_key", &"<secret>")
            .finish()
    }
}

/// A router copy on this host.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// Which router.
    pub router: RouterId,
    /// Its namespace below `/run/netns`.
    pub netns: String,
    /// Name of the HA interface in it.
    pub ha_link: String,
    /// Index of the HA interface.
    pub ha_ifindex: u32,
    /// Ethernet address of the HA interface.
    pub ha_mac: Mac,
    /// Our address on the HA network.
    pub ha_address: Ipv4Net,
    /// Virtual router identifier.
    pub vrid: u8,
    /// The virtual address on the HA interface: its presence after a restart means "was active".
    pub virtual_address: Ipv4Net,
    /// VRRP priority.
    pub priority: u8,
    /// Centiseconds.
    pub advertise_interval_cs: u16,
    /// Whether a higher priority takes over from a living active.
    pub preempt: bool,
    /// Seconds to wait after start before preempting.
    pub preempt_delay_s: u32,
    /// VRRPv2 simple password, at most 8 bytes.
    pub password: Option<String>,
    /// HA addresses of the other copies.
    pub peers: BTreeSet<Ipv4Addr>,
    /// VRIDs in use on this HA network.
    pub network_vrids: BTreeSet<u8>,
    /// What the active copy has and the others have not, in the order of adding.
    pub items: Vec<Item>,
    /// What to announce on becoming active.
    pub announce: Vec<Announce>,
    /// Tunnel addresses of the hosts that must learn where the router is.
    pub claim_to: BTreeSet<IpAddr>,
    /// At least this is the router's epoch.
    pub epoch: u64,
    /// False: what the router needs is not in place yet; it takes part as soon as it is.
    pub ready: bool,
}

/// Debug leaves the password out.
impl std::fmt::Debug for RouterSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouterSpec")
            .field("router", &self.router)
            .field("netns", &self.netns)
            .field("vrid", &self.vrid)
            .field("ha_address", &self.ha_address)
            .field("items", &self.items.len())
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

/// One prepared change, and its undoing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Says what it is, in words (`address 10.0.0.1/24 on qr-…`). Unique in the router: an item that is
    /// no longer listed is undone, one that is new or differs is done, where the router is active.
    pub key: String,
    /// In which namespace: the host's, or the router's.
    pub place: Place,
    /// Netlink message that does it, in hexadecimal; idempotent.
    pub add: String,
    /// Netlink message that undoes it, in hexadecimal; empty where nothing need be undone.
    pub del: String,
}

/// Where a prepared message is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The namespace that the daemon runs in.
    Host,
    /// The router's own.
    Router,
}

/// An address to announce by gratuitous ARP (IPv4) or unsolicited neighbour advertisement (IPv6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// Name of the device in the router's namespace.
    pub link: String,
    /// Its index.
    pub ifindex: u32,
    /// Ethernet address to announce.
    pub mac: Mac,
    /// Address to announce.
    pub ip: IpAddr,
}

/// Forwarding entries that follow a router's active copy. Sent for hosted routers too: while the local
/// copy is active, the entries point to its own ports instead (part of its items).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowSpec {
    /// Which router.
    pub router: RouterId,
    /// Who was active when the server last knew.
    pub epoch: u64,
    /// That one's tunnel address, if anyone was.
    pub vtep: Option<IpAddr>,
    /// The entries.
    pub entries: Vec<FollowEntry>,
}

/// A router port's address in this host's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowEntry {
    /// The router port's Ethernet address.
    pub mac: Mac,
    /// Index, in the host's namespace, of the network's VXLAN device.
    pub vxlan_ifindex: u32,
    /// Index, in the host's namespace, of the router port's own tap, where a copy is on this host.
    pub tap_ifindex: Option<u32>,
}

/// From keeper to control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromKeeper {
    /// First line.
    Hello {
        /// See [`PROTOCOL_VERSION`].
        version: u32,
        /// Process id, for the supervisor.
        pid: u32,
        /// What the host did not permit (real-time priority, locked memory), in words.
        notes: Vec<String>,
    },
    /// A copy changed state.
    Transition(Transition),
    /// A claim moved a followed router.
    Claimed {
        /// Which router.
        router: RouterId,
        /// Its epoch.
        epoch: u64,
        /// Where it is now.
        vtep: IpAddr,
    },
    /// Answer to [`ToKeeper::Status`].
    Status(Status),
    /// Something an operator should know.
    Warning {
        /// In words.
        text: String,
    },
}

/// A copy changed state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Which router.
    pub router: RouterId,
    /// What it is now.
    pub state: HaState,
    /// With which epoch.
    pub epoch: u64,
    /// Milliseconds since the Unix epoch, by this host's clock.
    pub at_ms: u64,
    /// Why, in words.
    pub reason: String,
    /// Microseconds from the decision to the last prepared message's acknowledgement.
    pub took_us: u64,
}

/// All that the keeper knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Every copy.
    pub routers: Vec<RouterStatus>,
    /// Packets refused, by reason.
    pub discards: std::collections::BTreeMap<String, u64>,
    /// How late the timing loop was at worst since the start, in microseconds.
    pub worst_lateness_us: u64,
    /// Whether the loop runs at real-time priority.
    pub realtime: bool,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// Which router.
    pub router: RouterId,
    /// RFC 9568's state: `initialize`, `backup`, `active`.
    pub vrrp_state: String,
    /// Neutron's state.
    pub state: HaState,
    /// Epoch.
    pub epoch: u64,
    /// Address that the last advertisement came from.
    pub heard_from: Option<Ipv4Addr>,
    /// Advertisements sent and received.
    pub sent: u64,
    /// Advertisements received.
    pub received: u64,
}
