//! The stream between server and host: lines of JSON, so that an operator can read it with curl.
//!
//! Down, `GET /evergate/v1/hosts/<host>/stream` answers one [`Downstream`] per line, for as long as
//! both live: a snapshot first, then changes. Up, `POST /evergate/v1/hosts/<host>/report` takes a
//! [`HostReport`](crate::HostReport), and `POST /evergate/v1/hosts/<host>/letters` a list of [`Letter`]s. All need TLS with
//! the certificate of that host: see [`crate::join`].
//!
//! Before its first snapshot a host has reported at least once, so that the server knows its tunnel
//! address (`tunneling_ip` in the L2 agent's `configurations`) and roles.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::host::{ActiveCopy, HostConfig, Network, NetworkPort, Router, Segment};
use crate::id::{NetworkId, PortId, RouterId};

/// One line from the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Downstream {
    /// The whole state, replacing what the host knew.
    Snapshot {
        /// All of it.
        config: HostConfig,
    },
    /// What changed since the line before.
    Change(Change),
    /// What another host has to say to this one. Only to hosts that asked for letters (`?letters=true`).
    Letter(Letter),
    /// Nothing changed; the server lives. Sent every few seconds.
    Ping {
        /// The revision the host is at.
        revision: u64,
    },
}

/// What a host's keeper has to say to another's when the two may not hear each other. The server carries it, once and
/// at once or not at all, and cannot read or change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// Up: the tunnel address of the host that it is for. Down: of the one that it is from.
    pub peer: IpAddr,
    /// A signed datagram; hexadecimal.
    pub datagram: String,
}

impl Letter {
    /// Longest datagram, in digits: twice what keepers send.
    pub const LONGEST: usize = 4096;
    /// Most letters that one request carries.
    pub const MOST: usize = 64;

    /// Tells whether its datagram is one that keepers may have sent: bytes in hexadecimal, and not too many.
    pub fn is_sound(&self) -> bool {
        let digits = self.datagram.as_bytes();
        digits.len() <= Self::LONGEST && digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit)
    }
}

/// Objects that changed, whole, and ids of those that went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The revision this brings the host to.
    pub revision: u64,
    /// Networks that are new.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Networks that differ, with what of them differs: a network may have thousands of ports.
    #[serde(default)]
    pub networks_changed: Vec<NetworkChange>,
    /// Networks that this host no longer needs.
    #[serde(default)]
    pub networks_removed: BTreeSet<NetworkId>,
    /// Routers that are new or differ.
    #[serde(default)]
    pub routers: Vec<Router>,
    /// Routers that this host no longer has a copy of.
    #[serde(default)]
    pub routers_removed: BTreeSet<RouterId>,
    /// Active copies that are new or differ.
    #[serde(default)]
    pub active_copies: Vec<(RouterId, ActiveCopy)>,
    /// HA routers that no longer matter to this host.
    #[serde(default)]
    pub active_copies_removed: BTreeSet<RouterId>,
}

/// What differs of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChange {
    /// Which.
    pub id: NetworkId,
    /// Another segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<Segment>,
    /// Another MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Other VRIDs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrids: Option<BTreeSet<u8>>,
    /// Ports that are new or differ.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<PortId, NetworkPort>,
    /// Ports that went.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ports_removed: BTreeSet<PortId>,
    /// Hosts that have the network now.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub peers: BTreeSet<IpAddr>,
    /// Hosts that no longer have it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub peers_removed: BTreeSet<IpAddr>,
}

impl NetworkChange {
    /// Computes what turns `old` into `new`, or `None` where nothing differs.
    fn between(old: &Network, new: &Network) -> Option<Self> {
        if old == new {
            return None;
        }
        let differs = |(id, port): &(&PortId, &NetworkPort)| old.ports.get(id) != Some(*port);
        Some(Self {
            id: new.id,
            segment: (old.segment != new.segment).then(|| new.segment.clone()),
            mtu: (old.mtu != new.mtu).then_some(new.mtu),
            vrids: (old.vrids != new.vrids).then(|| new.vrids.clone()),
            ports: new.ports.iter().filter(differs).map(|(id, port)| (*id, port.clone())).collect(),
            ports_removed: old.ports.keys().filter(|id| !new.ports.contains_key(id)).copied().collect(),
            peers: new.peers.difference(&old.peers).copied().collect(),
            peers_removed: old.peers.difference(&new.peers).copied().collect(),
        })
    }

    /// Tells whether nothing differs but the VRIDs in use, which no kernel needs.
    pub fn is_of_vrids_alone(&self) -> bool {
        *self == Self { vrids: self.vrids.clone(), ..Self::nothing(self.id) }
    }

    fn nothing(id: NetworkId) -> Self {
        Self {
            id,
            segment: None,
            mtu: None,
            vrids: None,
            ports: BTreeMap::new(),
            ports_removed: BTreeSet::new(),
            peers: BTreeSet::new(),
            peers_removed: BTreeSet::new(),
        }
    }

    fn apply(self, network: &mut Network) {
        network.segment = self.segment.unwrap_or_else(|| network.segment.clone());
        network.mtu = self.mtu.unwrap_or(network.mtu);
        if let Some(vrids) = self.vrids {
            network.vrids = vrids;
        }
        network.ports.retain(|id, _| !self.ports_removed.contains(id));
        network.ports.extend(self.ports);
        network.peers.retain(|peer| !self.peers_removed.contains(peer));
        network.peers.extend(self.peers);
    }
}

/// A change does not fit what the host has: the host asks for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It is older.
    #[error("change brings revision {offered}, but the host is at {current} already")]
    Stale {
        /// Revision of the change.
        offered: u64,
        /// Revision of the state it was offered to.
        current: u64,
    },
    /// It speaks of a network that the host was not told of.
    #[error("change is about network {network}, which this host was not told of")]
    UnknownNetwork {
        /// Which.
        network: NetworkId,
    },
}

impl Change {
    /// Computes what turns `old` into `new`, or `None` where nothing differs but the revision.
    pub fn between(old: &HostConfig, new: &HostConfig) -> Option<Self> {
        let change = Self {
            revision: new.revision,
            networks: new.networks.values().filter(|n| !old.networks.contains_key(&n.id)).cloned().collect(),
            networks_changed: new
                .networks
                .values()
                .filter_map(|network| NetworkChange::between(old.networks.get(&network.id)?, network))
                .collect(),
            networks_removed: old.networks.keys().filter(|id| !new.networks.contains_key(id)).copied().collect(),
            routers: new
                .routers
                .iter()
                .filter(|(id, r)| old.routers.get(id) != Some(r))
                .map(|(_, r)| r.clone())
                .collect(),
            routers_removed: old.routers.keys().filter(|id| !new.routers.contains_key(id)).copied().collect(),
            active_copies: new
                .active_copies
                .iter()
                .filter(|(id, a)| old.active_copies.get(id) != Some(a))
                .map(|(id, a)| (*id, *a))
                .collect(),
            active_copies_removed: old
                .active_copies
                .keys()
                .filter(|id| !new.active_copies.contains_key(id))
                .copied()
                .collect(),
        };
        let nothing = Self { revision: new.revision, ..Self::default() };
        (change != nothing).then_some(change)
    }

    /// Applies this change to what the host knows.
    ///
    /// # Errors
    ///
    /// Leaves `config` as it is when the change is not newer than it, or not about what it holds.
    pub fn apply(self, config: &mut HostConfig) -> Result<(), Misfit> {
        if self.revision <= config.revision {
            return Err(Misfit::Stale { offered: self.revision, current: config.revision });
        }
        let unknown = self.networks_changed.iter().find(|network| !config.networks.contains_key(&network.id));
        if let Some(network) = unknown {
            return Err(Misfit::UnknownNetwork { network: network.id });
        }
        config.revision = self.revision;
        for id in self.networks_removed {
            config.networks.remove(&id);
        }
        config.networks.extend(self.networks.into_iter().map(|n| (n.id, n)));
        for change in self.networks_changed {
            if let Some(network) = config.networks.get_mut(&change.id) {
                change.apply(network);
            }
        }
        for id in self.routers_removed {
            config.routers.remove(&id);
        }
        config.routers.extend(self.routers.into_iter().map(|r| (r.id, r)));
        for id in self.active_copies_removed {
            config.active_copies.remove(&id);
        }
        config.active_copies.extend(self.active_copies);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::host::Location;
    use crate::mac::Mac;

    fn network(n: u128, mtu: u16) -> Network {
        Network {
            id: NetworkId::from_u128(n),
            segment: Segment::Vxlan { vni: n as u32 },
            mtu,
            ports: BTreeMap::new(),
            peers: BTreeSet::new(),
            vrids: BTreeSet::new(),
        }
    }

    fn port(last: u8) -> NetworkPort {
        NetworkPort {
            mac: Mac([2, 0, 0, 0, 0, last]),
            ips: vec![IpAddr::from([10, 0, 0, last])],
            location: Location::Unbound,
            admin_state_up: true,
            allowed_addresses: Vec::new(),
        }
    }

    fn config(revision: u64, networks: Vec<Network>) -> HostConfig {
        HostConfig { revision, networks: networks.into_iter().map(|n| (n.id, n)).collect(), ..HostConfig::default() }
    }

    #[test]
    fn applying_the_change_between_two_states_gives_the_second() {
        let mut old = config(3, vec![network(1, 1450), network(2, 1450)]);
        let mut new = config(5, vec![network(2, 1400), network(3, 1450)]);
        let vtep = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        new.active_copies.insert(RouterId::from_u128(9), ActiveCopy { epoch: 2, vtep });
        Change::between(&old, &new).unwrap().apply(&mut old).unwrap();
        assert_eq!(old, new);
    }

    #[test]
    fn of_a_network_that_differs_only_the_difference_is_told() {
        let mut old = network(1, 1450);
        old.ports = (1..=100).map(|n| (PortId::from_u128(n), port(n as u8))).collect();
        old.peers = (1..=9).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let mut new = old.clone();
        new.ports.remove(&PortId::from_u128(4));
        new.ports.insert(PortId::from_u128(5), port(105));
        new.ports.insert(PortId::from_u128(101), port(101));
        new.peers.remove(&IpAddr::from([192, 0, 2, 3]));
        new.peers.insert(IpAddr::from([192, 0, 2, 10]));
        new.vrids.insert(7);
        let (mut was, is) = (config(1, vec![old]), config(2, vec![new]));
        let change = Change::between(&was, &is).unwrap();
        assert!(change.networks.is_empty());
        let [told] = &change.networks_changed[..] else { panic!("{change:?}") };
        assert_eq!((told.ports.len(), told.ports_removed.len()), (2, 1));
        assert_eq!((told.segment.as_ref(), told.mtu), (None, None));
        change.apply(&mut was).unwrap();
        assert_eq!(was, is);
    }

    #[test]
    fn a_change_of_an_unknown_network_is_refused_and_changes_nothing() {
        let (old, new) = (config(1, vec![network(1, 1450)]), config(2, vec![network(1, 1400)]));
        let change = Change::between(&old, &new).unwrap();
        let mut other = config(1, vec![network(2, 1450)]);
        let network = NetworkId::from_u128(1);
        assert_eq!(change.apply(&mut other), Err(Misfit::UnknownNetwork { network }));
        assert_eq!(other, config(1, vec![self::network(2, 1450)]));
    }

    #[test]
    fn no_difference_is_no_change() {
        assert_eq!(Change::between(&config(1, vec![network(1, 1450)]), &config(2, vec![network(1, 1450)])), None);
    }

    #[test]
    fn an_older_change_is_refused_and_changes_nothing() {
        let mut now = config(5, vec![network(1, 1450)]);
        let stale =
            Change { revision: 5, networks_removed: BTreeSet::from([NetworkId::from_u128(1)]), ..Change::default() };
        assert_eq!(stale.apply(&mut now), Err(Misfit::Stale { offered: 5, current: 5 }));
        assert_eq!(now.networks.len(), 1);
    }

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let line = Downstream::Snapshot { config: config(5, vec![network(1, 1450)]) };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<Downstream>(&text).unwrap(), line);
        let ping: Downstream = serde_json::from_str(r#"{"type":"ping","revision":4}"#).unwrap();
        assert_eq!(ping, Downstream::Ping { revision: 4 });
    }
}
