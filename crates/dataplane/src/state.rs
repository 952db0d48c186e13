//! The one comparable type for what a kernel must hold and what it holds.
//!
//! Owned objects are recognised by a mark that Evergate puts on them: links carry an interface alias
//! that starts with [`OWNER_MARK`], a namespace is owned when its loopback device carries one, and an
//! nftables table is owned by its name [`crate::nft::TABLE_NAME`] inside an owned namespace. Anything
//! else by a name that we need is *foreign*: it is left alone, and said to be in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use evergate_model::Mac;
use ipnet::{IpNet, Ipv4Net};

use crate::nft::{NftFamily, NftTable};

/// Start of the interface alias of everything that Evergate made. What follows says why it is there,
/// for example `evergate: router 1f2e…`, and shows in `ip link`.
pub const OWNER_MARK: &str = "evergate:";

/// Routing protocol number that marks our routes (RTPROT_STATIC, as Neutron's keepalived uses).
pub const ROUTE_PROTOCOL_STATIC: u8 = 4;

/// A network namespace, as named from the host daemon's point of view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netns {
    /// The one that the daemon runs in.
    Host,
    /// A named one, below `/run/netns`.
    Named(String),
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// Everything of ours in a host's kernel.
///
/// `observe` also reports foreign objects whose names `compile` wants, so that `diff` can refuse them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// By namespace. [`Netns::Host`] is always present.
    pub netns: BTreeMap<Netns, NetnsState>,
}

/// What one namespace holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetnsState {
    /// False for a named namespace that carries no owner mark (observed only).
    pub owned: bool,
    /// Links by name: ours, and foreign ones that we enslave or that are in the way.
    pub links: BTreeMap<String, Link>,
    /// Addresses on our links, but for those that the kernel itself makes (IPv6 link-local, loopback).
    pub addresses: BTreeSet<Address>,
    /// Routes with protocol static, in any table.
    pub routes: BTreeSet<Route>,
    /// Policy rules that are not the kernel's own three.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbour entries on our links. On a bridge they feed neighbour suppression.
    pub neighbours: BTreeMap<NeighbourKey, Mac>,
    /// Static forwarding entries of our bridge ports and VXLAN devices.
    pub fdb: BTreeSet<FdbEntry>,
    /// Kernel settings by path below `/proc/sys/net`, such as `ipv4/ip_forward`. Observed for exactly
    /// the paths that are asked for.
    pub sysctls: BTreeMap<String, String>,
    /// Our nftables tables, at most one per family.
    pub nft: BTreeMap<NftFamily, NftTable>,
    /// Desired only: what the keeper adds and removes here as roles change. `diff` leaves these alone.
    pub keeper: KeeperOwned,
}

/// What the keeper, not control, adds and removes in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeeperOwned {
    /// Links all of whose addresses, and the routes through them, follow the role.
    pub links: BTreeSet<String>,
    /// Further addresses that follow the role: the virtual address on an `ha-` link.
    pub addresses: BTreeSet<Address>,
    /// Ethernet addresses whose forwarding entries follow the active copy.
    pub fdb_macs: BTreeSet<Mac>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What kind of device, with what makes it that.
    pub kind: LinkKind,
    /// Interface alias; starts with [`OWNER_MARK`] on every link of ours.
    pub alias: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// In bytes. `None` in a desired state: any.
    pub mtu: Option<u32>,
    /// Ethernet address. `None` in a desired state: any.
    pub mac: Option<Mac>,
    /// Name of the bridge it is a port of.
    pub master: Option<String>,
    /// Bridge port flags; `None` for a link without master, or any flags in a desired state.
    pub port: Option<BridgePort>,
}

impl Link {
    /// Tells whether Evergate made this link.
    pub fn is_owned(&self) -> bool {
        self.alias.as_deref().is_some_and(|alias| alias.starts_with(OWNER_MARK))
    }
}

/// Kind of a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge without spanning tree and multicast snooping, forwarding without delay.
    Bridge,
    /// A VXLAN device without learning; its forwarding entries are in [`NetnsState::fdb`].
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// Tunnel address of this host.
        local: IpAddr,
        /// UDP destination port; 4789 unless configured.
        port: u16,
    },
    /// One end of a veth pair.
    Veth {
        /// Where the other end is and its name. Observed: `None` where it is not in a namespace of ours.
        peer: Option<(Netns, String)>,
    },
    /// Anything else, made by somebody else: a physical interface, an instance's tap, a foreign bridge.
    /// In a desired state only `up` and `master` of it are ours to set, and it is never created or deleted.
    Other,
    /// The loopback device.
    Loopback,
}

/// Flags of a bridge port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgePort {
    /// Learns source addresses. Off on VXLAN ports.
    pub learning: bool,
    /// Answers ARP and ND from known neighbours instead of flooding. On for VXLAN ports.
    pub neigh_suppress: bool,
    /// Frames from it go to no other port that has this flag. On for the taps of HA interfaces.
    pub isolated: bool,
}

/// The addresses of the pairs between routers and the `fip-` namespaces of their host: Neutron's range.
pub const FIP_PAIRS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18);

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Name of the link.
    pub link: String,
    /// Address and prefix length.
    pub net: IpNet,
}

impl Address {
    /// Tells whether the kernel must not use the address beyond its own link: a `fip-` namespace that has no
    /// address on the external network asks there without naming any, rather than with one of these.
    pub fn is_of_link(&self) -> bool {
        matches!(self.net, IpNet::V4(net) if FIP_PAIRS.contains(&net))
    }
}

/// A route with protocol static.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Routing table; 254 is main.
    pub table: u32,
    /// Destination; a default route is `0.0.0.0/0` or `::/0`.
    pub destination: IpNet,
    /// Next hop; `None` for a route on the link itself.
    pub via: Option<IpAddr>,
    /// Outgoing link; `None` leaves it to the kernel (found from `via`).
    pub link: Option<String>,
}

/// Routing table main.
pub const TABLE_MAIN: u32 = 254;

/// A policy routing rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Lower is asked first.
    pub priority: u32,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// Incoming link.
    pub iif: Option<String>,
    /// Table to look up.
    pub table: u32,
}

/// Key of a neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// Name of the link.
    pub link: String,
    /// Protocol address.
    pub ip: IpAddr,
}

/// A static forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Name of the bridge port or VXLAN device.
    pub link: String,
    /// Destination address; all zero is head-end flooding.
    pub mac: Mac,
    /// Which of the two tables.
    pub table: FdbTable,
}

/// Which forwarding table an entry is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FdbTable {
    /// The bridge's: frames to the address leave by this port (`bridge fdb … master static`).
    Bridge,
    /// The bridge's, and no frame that another port sends under this address turns it away
    /// (`bridge fdb … master static sticky`).
    BridgeSticky,
    /// The VXLAN device's own: frames to the address go to this tunnel address (`bridge fdb … self`).
    Vxlan {
        /// Tunnel address of the other host.
        dst: IpAddr,
    },
    /// The VXLAN device's own: frames to the address go where this group of nexthops leads
    /// (`bridge fdb … nhid … self`). The keeper's: many entries move by one change of a nexthop.
    Nexthop {
        /// Id of the group.
        group: u32,
    },
}

impl FdbTable {
    /// Tells whether the entry is in a bridge's table, and not in a VXLAN device's own.
    pub const fn is_bridge(&self) -> bool {
        match self {
            Self::Bridge | Self::BridgeSticky => true,
            Self::Vxlan { .. } | Self::Nexthop { .. } => false,
        }
    }
}
