//! The stream between server and host: lines of JSON, so that an operator can read it with curl.
//!
//! Down, `GET /evergate/v1/hosts/<host>/stream` answers one [`Downstream`] per line, for as long as
//! both live: a snapshot first, then changes. Up, `POST /evergate/v1/hosts/<host>/report` takes a
//! [`HostReport`](crate::HostReport). Both carry `Authorization: Bearer <host token>`.
//!
//! Before its first snapshot a host has reported at least once, so that the server knows its tunnel
//! address (`tunneling_ip` in the L2 agent's `configurations`) and roles.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::host::{ActiveCopy, HostConfig, Network, Router};
use crate::id::{NetworkId, RouterId};

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
    /// Nothing changed; the server lives. Sent every few seconds.
    Ping {
        /// The revision the host is at.
        revision: u64,
    },
}

/// Objects that changed, whole, and ids of those that went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The revision this brings the host to.
    pub revision: u64,
    /// Networks that are new or differ.
    #[serde(default)]
    pub networks: Vec<Network>,
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

/// A change is older than what the host has: the host asks for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("change brings revision {offered}, but the host is at {current} already")]
pub struct StaleChange {
    /// Revision of the change.
    pub offered: u64,
    /// Revision of the state it was offered to.
    pub current: u64,
}

impl Change {
    /// Computes what turns `old` into `new`, or `None` where nothing differs but the revision.
    pub fn between(old: &HostConfig, new: &HostConfig) -> Option<Self> {
        let change = Self {
            revision: new.revision,
            networks: new
                .networks
                .iter()
                .filter(|(id, n)| old.networks.get(id) != Some(n))
                .map(|(_, n)| n.clone())
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
    /// Leaves `config` as it is when the change is not newer than it.
    pub fn apply(self, config: &mut HostConfig) -> Result<(), StaleChange> {
        if self.revision <= config.revision {
            return Err(StaleChange { offered: self.revision, current: config.revision });
        }
        config.revision = self.revision;
        for id in self.networks_removed {
            config.networks.remove(&id);
        }
        config.networks.extend(self.networks.into_iter().map(|n| (n.id, n)));
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
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::host::Segment;

    fn network(n: u128, mtu: u16) -> Network {
        Network {
            id: NetworkId::from_u128(n),
            segment: Segment::Vxlan { vni: n as u32 },
            mtu,
            ports: BTreeMap::new(),
            peers: BTreeSet::new(),
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
    fn no_difference_is_no_change() {
        assert_eq!(Change::between(&config(1, vec![network(1, 1450)]), &config(2, vec![network(1, 1450)])), None);
    }

    #[test]
    fn an_older_change_is_refused_and_changes_nothing() {
        let mut now = config(5, vec![network(1, 1450)]);
        let stale =
            Change { revision: 5, networks_removed: BTreeSet::from([NetworkId::from_u128(1)]), ..Change::default() };
        assert_eq!(stale.apply(&mut now), Err(StaleChange { offered: 5, current: 5 }));
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
