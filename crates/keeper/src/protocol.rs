//! What control and keeper say to each other: one JSON value per line over a Unix stream socket.
//!
//! The keeper listens; control connects, says [`ToKeeper::Hello`] and sends its whole state (every
//! router and followed router, then [`ToKeeper::EndOfState`], whereupon the keeper drops what was not
//! mentioned). Later it sends what changed. The keeper answers [`ToKeeper::Hello`] with its own, and
//! [`ToKeeper::EndOfState`] with [`FromKeeper::Status`]; after that it sends events as they happen.
//! If control is away the keeper goes on, and keeps the newest transition of every router for when it is back.
//! The newest connection wins: an older one is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub use evergate_ctsync::LAG_BOUNDS_MS;
use evergate_model::host::AddressMode;
use evergate_model::{HaState, Mac, NetworkId, RouterId};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Version of this protocol. A keeper that is asked for another answers with its own and is replaced
/// when that can be done without harm.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name of the keeper's socket below `run_path`.
pub const SOCKET_NAME: &str = "keeper.sock";

/// Name of the file below `run_path` that a living keeper holds an exclusive `flock` on, and writes its
/// process id to: how the supervisor finds one that is already running.
pub const LOCK_NAME: &str = "keeper.lock";

/// Within this time after it was told to, a keeper has stopped, whatever other hosts and the kernel do: up to nine
/// seconds go by while routers are handed over, and the rest is the kernel's. Whoever stops it gives it a little longer.
pub const STOP_PATIENCE: Duration = Duration::from_secs(12);

/// Longest line that either side accepts, in bytes: far more than a router with thousands of addresses.
pub const MAX_LINE: usize = 16 << 20;

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
    /// The settings changed; everything else stays.
    Settings {
        /// The new ones, whole.
        settings: Settings,
    },
    /// A router copy on this host, whole. Sent again for a router that is active, it also repairs: every
    /// item is done again (they are idempotent).
    Router(Box<RouterSpec>),
    /// Every VRID in use on an HA network, so that a foreign one can be told from a neighbour's.
    Vrids {
        /// The HA network.
        network: NetworkId,
        /// All of them; empty: the network is no more.
        vrids: BTreeSet<u8>,
    },
    /// A router copy that is to go: the keeper closes its sockets (which pin the namespace), forgets it, and answers
    /// [`FromKeeper::Removed`]. Delete the namespace only then.
    RemoveRouter {
        /// Which.
        router: RouterId,
        /// What becomes of the router.
        #[serde(default)]
        how: Removal,
    },
    /// Forwarding entries on this host that follow a router's active copy.
    Follow(FollowSpec),
    /// Some of them are control's from now on: the keeper forgets them, and leaves them as they are.
    Cede {
        /// Which router's.
        router: RouterId,
        /// Those entries.
        entries: Vec<FollowEntry>,
    },
    /// They need not be followed any more.
    Unfollow {
        /// Which router's.
        router: RouterId,
    },
    /// A router that advertises itself to instances of this host's networks, whole.
    Advertise(AdvertiseSpec),
    /// On these devices, by name, the router ends: instances are told, as far as it was advertised from here.
    /// Sent before the devices go.
    CeaseAdvertising {
        /// Which router.
        router: RouterId,
        /// Its devices.
        links: Vec<String>,
    },
    /// It is not this host any more that advertises the router; nothing is said of it.
    Unadvertise {
        /// Which.
        router: RouterId,
    },
    /// Whether the server can be reached: letters to other hosts' keepers may be given to it.
    Server {
        /// Whether its stream is open.
        reachable: bool,
    },
    /// The server brings a letter: a datagram of another host's keeper that may not reach this one otherwise.
    Letter {
        /// Tunnel address of the host that sends it.
        from: IpAddr,
        /// As it would arrive at the claim port; hexadecimal.
        datagram: String,
    },
    /// Everything was said: what was not mentioned since `Hello` goes (with a [`FromKeeper::Removed`] each).
    /// Answered with [`FromKeeper::Status`].
    EndOfState,
    /// Control asks for [`FromKeeper::Status`].
    Status,
    /// Resign everything, run all removals, stop.
    Shutdown,
}

/// What becomes of a router whose copy here goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// It goes on elsewhere: an active copy hands it over, or resigns, and undoes what it has done.
    #[default]
    Leaves,
    /// It becomes another kind of router, and all of these copies end. An active one undoes what it has done without
    /// a word: one that has not heard of the end would take over.
    Changes,
    /// The same, but it goes on in this very namespace: what an active copy has put into the kernel stays there, and is
    /// control's from now on.
    Remains,
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
    /// UDP port on which hosts replicate tracked connections; `None`: they do not.
    #[serde(default)]
    pub replication_port: Option<u16>,
    /// Whether a copy that reaches no other host any more goes on, or takes over, all the same.
    #[serde(default)]
    pub serve_alone: bool,
    /// How to notice that a host is gone.
    #[serde(default)]
    pub bfd: BfdSettings,
    /// How an active copy notices that it has lost its gateways.
    #[serde(default)]
    pub health: HealthSettings,
}

/// How an active copy notices that it has lost its gateways. Links are watched in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSettings {
    /// Seconds between two checks; 0: there are none.
    pub interval_s: u32,
    /// Checks in a row without an answer, after which a gateway counts as lost.
    pub fall: u8,
    /// Checks in a row with all answers, after which it counts as found again.
    pub rise: u8,
    /// A program that is run with each check, inside the router's namespace, with the router's id and the
    /// gateways as arguments; an exit status other than 0 counts as all gateways being lost.
    pub script: Option<String>,
}

/// How to notice, by BFD, that a host is gone that routers are shared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BfdSettings {
    /// Milliseconds between two packets, both ways; 0: VRRP alone notices.
    pub interval_ms: u32,
    /// Packets that may be missing.
    pub multiplier: u8,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("host", &self.host)
            .field("vtep", &self.vtep)
            .field("claim_port", &self.claim_port)
            .field("claim_key", &"<secret>")
            .field("replication_port", &self.replication_port)
            .field("serve_alone", &self.serve_alone)
            .field("bfd", &self.bfd)
            .field("health", &self.health)
            .finish()
    }
}

/// A router copy on this host.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// Which router.
    pub router: RouterId,
    /// The HA network that the copies elect on: copies of this host on one network share a sentinel.
    pub ha_network: NetworkId,
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
    /// VRRP version: 2, or 3 with intervals below a second.
    #[serde(default = "version_2")]
    pub vrrp_version: u8,
    /// VRRP priority.
    pub priority: u8,
    /// Centiseconds; whole seconds in version 2.
    pub advertise_interval_cs: u16,
    /// Whether a higher priority takes over from a living active.
    pub preempt: bool,
    /// Seconds that an active copy of lower priority is heard before it is preempted.
    pub preempt_delay_s: u32,
    /// VRRPv2 simple password, at most 8 bytes.
    pub password: Option<String>,
    /// HA addresses of the other copies.
    pub peers: BTreeSet<Ipv4Addr>,
    /// Tunnel addresses of the other copies' hosts, by HA address, as far as they are known.
    #[serde(default)]
    pub peer_hosts: BTreeMap<Ipv4Addr, IpAddr>,
    /// What the active copy has and the others have not, in the order of adding.
    pub items: Vec<Item>,
    /// What to announce on becoming active.
    pub announce: Vec<Announce>,
    /// What the role is for: the gateways that the active copy must reach.
    #[serde(default)]
    pub gateways: Vec<GatewaySpec>,
    /// Indexes, in the host's namespace, of the links that lead to the gateways. One of them must have
    /// carrier; none listed: it is not known which they are.
    #[serde(default)]
    pub uplinks: BTreeSet<u32>,
    /// Tunnel addresses of the hosts that must learn where the router is.
    pub claim_to: BTreeSet<IpAddr>,
    /// At least this is the router's epoch.
    pub epoch: u64,
    /// Where the role is wanted, if that is another copy's host.
    #[serde(default)]
    pub wish: Option<WishSpec>,
    /// Nobody has ever been active for this router, as the server said just now: its first election need
    /// not wait for anybody's silence.
    #[serde(default)]
    pub new: bool,
    /// This host served the router until it was converted: its copy starts as active, unless somebody has been
    /// active in an epoch above this one.
    #[serde(default)]
    pub inherits: Option<u64>,
    /// False: what the router needs is not in place yet; it takes part as soon as it is. An active copy
    /// that becomes false resigns: leave it true for a copy that control merely has not looked at yet.
    pub ready: bool,
}

/// Where the role is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WishSpec {
    /// Tunnel address of the host.
    pub host: IpAddr,
    /// Somebody waits for it: the active copy does not keep the role for a while first.
    pub at_once: bool,
}

fn version_2() -> u8 {
    2
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

/// A gateway that the active copy must reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewaySpec {
    /// Its address.
    pub gateway: IpAddr,
    /// Name of the device that leads to it, in the router's namespace.
    pub link: String,
    /// The device's index.
    pub ifindex: u32,
    /// The device's Ethernet address.
    pub mac: Mac,
    /// The active copy's address there, of the gateway's family.
    pub source: IpAddr,
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

/// A router that advertises itself (RFC 4861).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertiseSpec {
    /// Which router.
    pub router: RouterId,
    /// The namespace with its devices, below `/run/netns`.
    pub netns: String,
    /// Only while the copy here is active; otherwise always.
    pub follows_role: bool,
    /// `MinRtrAdvInterval` and `MaxRtrAdvInterval` in seconds.
    pub interval: (u16, u16),
    /// On which devices.
    pub links: Vec<AdvertiseLink>,
}

/// A device that a router is advertised on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertiseLink {
    /// Its name.
    pub link: String,
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its link-local address.
    pub source: Ipv6Addr,
    /// The network's MTU.
    pub mtu: u32,
    /// The advertised prefixes.
    pub prefixes: BTreeMap<Ipv6Net, AddressMode>,
    /// Recursive DNS servers.
    pub dns_servers: Vec<Ipv6Addr>,
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
    /// A claim moved a followed router; or, with this host's own tunnel address, a copy that is and stays
    /// active here had to claim it again with a higher epoch.
    Claimed {
        /// Which router.
        router: RouterId,
        /// Its epoch.
        epoch: u64,
        /// Where it is now.
        vtep: IpAddr,
    },
    /// A router's copy is gone from the keeper: nothing of it is in the kernel, and none of its sockets is
    /// open. Also said of a router that the keeper did not know.
    Removed {
        /// Which router.
        router: RouterId,
    },
    /// Answer to [`ToKeeper::Status`] and [`ToKeeper::EndOfState`].
    Status(Status),
    /// The server is to bring this to another host's keeper. Good for a moment only, and lost if there is no server.
    Letter {
        /// Tunnel address of that host.
        to: IpAddr,
        /// Signed; hexadecimal.
        datagram: String,
    },
    /// Something that belongs into a router's history.
    Note {
        /// Which router.
        router: RouterId,
        /// Milliseconds since the Unix epoch, by this host's clock.
        at_ms: u64,
        /// In words.
        text: String,
    },
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
    /// The hosts' claims as known here: where every followed router was last claimed to be.
    #[serde(default)]
    pub claims: Vec<ClaimStatus>,
    /// Replication of connections, by copy.
    #[serde(default)]
    pub replication: Vec<ReplicationStatus>,
    /// BFD sessions with the hosts that routers are shared with.
    #[serde(default)]
    pub bfd: Vec<BfdStatus>,
}

/// A BFD session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BfdStatus {
    /// Tunnel address of the other host.
    pub peer: Option<IpAddr>,
    /// State here: `admin-down`, `down`, `init`, `up`.
    pub state: String,
    /// State that the peer said last.
    pub remote_state: String,
    /// Why it last left `up`, in words.
    pub diagnostic: String,
    /// Microseconds between two packets that we send.
    pub transmit_interval_us: u64,
    /// Microseconds between two packets that we expect.
    pub receive_interval_us: u64,
    /// Microseconds of silence after which the peer is given up.
    pub detection_time_us: u64,
}

/// How the replication of one router's connections goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    /// Which router.
    pub router: RouterId,
    /// Whether this copy tells the others.
    pub active: bool,
    /// Connections told of, or kept ready in this host's kernel.
    pub entries: u64,
    /// Copies that are told; on a standby, 1 if it is told.
    pub peers: u64,
    /// Whether everything was told: to all standbys, or to this one.
    pub in_step: bool,
    /// Microseconds that the oldest change has been waiting that a standby has not confirmed; where there is none,
    /// that the last one took.
    pub lag_us: u64,
    /// Changes that standbys have confirmed, by how long that took; see [`LAG_BOUNDS_MS`].
    #[serde(default)]
    pub lags: [u64; LAG_BOUNDS_MS.len() + 1],
    /// Connections that ended before they could be told, or that did not fit.
    pub shed: u64,
    /// How often everything was told again because the two sides disagreed.
    pub resyncs: u64,
    /// Connections that this standby was told of and that its kernel does not have now, because it refused them or
    /// they gave way to others: its table is full.
    pub refused: u64,
}

/// Where a router was last claimed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimStatus {
    /// Which router.
    pub router: RouterId,
    /// The highest epoch known.
    pub epoch: u64,
    /// Tunnel address of its active copy's host, if known.
    pub vtep: Option<IpAddr>,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// Which router.
    pub router: RouterId,
    /// Its namespace below `/run/netns`; empty from a keeper of a version that does not say.
    #[serde(default)]
    pub netns: String,
    /// RFC 9568's state: `initialize`, `backup`, `active`.
    pub vrrp_state: String,
    /// Neutron's state.
    pub state: HaState,
    /// Epoch.
    pub epoch: u64,
    /// Address that the last advertisement came from.
    pub heard_from: Option<Ipv4Addr>,
    /// Advertisements sent.
    pub sent: u64,
    /// Advertisements received.
    pub received: u64,
    /// Why it takes no part (not ready, HA interface down or gone), in words; empty if it does.
    #[serde(default)]
    pub hindrance: String,
    /// What it lacks of what the role is for (a link, a gateway), in words; empty if nothing is known to be
    /// lacking. Only the active copy asks its gateways.
    #[serde(default)]
    pub impairment: String,
    /// What is wrong although it takes part (the active copy is heard by other ways only), in words.
    #[serde(default)]
    pub problem: String,
}
