//! From what a host is told to what its kernel must hold.
//!
//! [`compile`] is a pure function: the same [`HostConfig`], [`HostSettings`] and [`View`] always give
//! the same [`Desired`]. What control applies itself is in [`Desired::kernel`]; what follows the role of
//! an HA router is [`Prepared`] for the keeper, which adds and removes it as the role changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use evergate_model::host::ActiveCopy;
use evergate_model::{HostConfig, Mac, RouterId};

use crate::op::Op;
use crate::state::{KernelState, Netns};

/// What only this host's own configuration files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Tunnel address (`local_ip`). Without one there are no tunnels.
    pub local_ip: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The device that leads to each physical network: `bridge_mappings` and `physical_interface_mappings`
    /// taken together. Whether it is a bridge is seen, not said: [`View::bridges`].
    pub physical_networks: BTreeMap<String, String>,
    /// Turns `bridge-nf-call-*` off for the host's namespace. These settings hold for *all* bridges of the
    /// namespace, also those of others (a container engine may need them), so this is the operator's choice.
    pub disable_bridge_netfilter: bool,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            local_ip: None,
            // RFC 7348: the port that IANA assigned.
            vxlan_port: 4789,
            physical_networks: BTreeMap::new(),
            disable_bridge_netfilter: false,
        }
    }
}

/// What this host sees by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Names of all links in the host's namespace.
    pub links: BTreeSet<String>,
    /// Those of them that are bridges.
    pub bridges: BTreeSet<String>,
    /// The newest claims that the keeper knows of, local ones included: they may be newer than what the
    /// server knew.
    pub claims: BTreeMap<RouterId, ActiveCopy>,
    /// Whether the kernel has IPv6 at all (`/proc/sys/net/ipv6` exists).
    pub has_ipv6: bool,
    /// Whether bridged frames pass the host's iptables (`/proc/sys/net/bridge/bridge-nf-call-iptables`
    /// exists and is not 0).
    pub bridge_netfilter: bool,
}

/// What the host must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What control applies.
    pub kernel: KernelState,
    /// For every HA router copy here: what the keeper adds and removes.
    pub prepared: BTreeMap<RouterId, Prepared>,
    /// For every HA router with a port on a VXLAN network here: which forwarding entries follow its
    /// active copy.
    pub follow: BTreeMap<RouterId, Follow>,
    /// What cannot be done, and why.
    pub problems: Vec<Problem>,
}

/// What follows the role of one HA router copy on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Name of the router's namespace.
    pub netns: String,
    /// Name of the HA interface in it.
    pub ha_link: String,
    /// What the active copy has and the others have not, in the order of adding.
    pub items: Vec<PreparedItem>,
    /// What a new active announces, in that order: the outside first.
    pub announce: Vec<Announcement>,
    /// Tunnel addresses of the other hosts that must learn where the router is.
    pub claim_to: BTreeSet<IpAddr>,
}

/// One change that follows the role, and its undoing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedItem {
    /// Says what it is, in words; unique in the router.
    pub key: String,
    /// Where both ops belong: the host's namespace or the router's.
    pub netns: Netns,
    /// Does it.
    pub add: Op,
    /// Undoes it; `None` where nothing need be undone.
    pub del: Option<Op>,
}

/// An address that a new active announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Device in the router's namespace.
    pub link: String,
    /// The device's Ethernet address.
    pub mac: Mac,
    /// The address.
    pub ip: IpAddr,
}

/// Forwarding entries of this host that follow an HA router's active copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Follow {
    /// Who is active, as far as this host or the server knows; the higher epoch counts.
    pub active: Option<ActiveCopy>,
    /// The entries.
    pub entries: Vec<FollowEntry>,
}

/// A router port's Ethernet address in this host's forwarding tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowEntry {
    /// The address.
    pub mac: Mac,
    /// The network's VXLAN device.
    pub vxlan: String,
    /// The router port's own tap, where a copy is on this host.
    pub tap: Option<String>,
}

/// Something that cannot be done as the server wants it, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Which object, such as `network 1f2e…`.
    pub object: String,
    /// What is the matter, and what to do about it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)
    }
}

/// Computes what this host must look like.
pub fn compile(_config: &HostConfig, _host: &HostSettings, _view: &View) -> Desired {
    Desired::default()
}
