//! What one host is told at one moment, and how that differs from what it was told before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use evergate_model::host::{ActiveCopy, ClusterConfig, Router as HostRouter};
use evergate_model::stream::NetworkChange;
use evergate_model::{HostConfig, NetworkId, RouterId};

use super::Name;
use super::network::{NetworkView, Part, Told, own_change};
use super::router::RouterView;

/// What one host is told, in parts that it shares with others.
#[derive(Clone, Debug)]
pub struct HostView {
    pub(super) host: Name,
    /// The revision that it last differed at.
    pub(super) revision: u64,
    pub(super) cluster: Arc<ClusterConfig>,
    pub(super) networks: BTreeMap<NetworkId, Part>,
    pub(super) routers: BTreeMap<RouterId, Arc<RouterView>>,
}

impl HostView {
    /// Whose it is.
    pub fn host(&self) -> &Name {
        &self.host
    }

    /// The revision that it last differed at.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Counts networks and routers: what it costs to say all of it.
    pub fn size(&self) -> usize {
        self.networks.len() + self.routers.len()
    }

    /// All of it in one, said to be of a revision.
    pub fn config(&self, revision: u64) -> HostConfig {
        HostConfig {
            revision,
            cluster: (*self.cluster).clone(),
            networks: self.networks.iter().map(|(id, part)| (*id, part.told_to(&self.host))).collect(),
            routers: self.told_routers().collect(),
            active_copies: self.active_copies(),
        }
    }

    pub(super) fn told_routers(&self) -> impl Iterator<Item = (RouterId, HostRouter)> {
        self.routers.iter().filter_map(|(id, router)| Some((*id, router.told_to(&self.host)?)))
    }

    /// Who is active, of every HA router with a port on one of the networks.
    pub(super) fn active_copies(&self) -> BTreeMap<RouterId, ActiveCopy> {
        let followed = self.networks.values().flat_map(|part| part.followed());
        followed.filter_map(|(id, active)| Some((id, active?))).collect()
    }

    /// Tells whether it has the very same parts.
    pub(super) fn is(&self, other: &Self) -> bool {
        let networks = self.networks.len() == other.networks.len()
            && self.networks.iter().zip(&other.networks).all(|((a, x), (b, y))| a == b && x.is(y));
        let routers = self.routers.len() == other.routers.len()
            && self.routers.iter().zip(&other.routers).all(|((a, x), (b, y))| a == b && Arc::ptr_eq(x, y));
        networks && routers
    }
}

/// What turns one view of a host into a later one.
#[derive(Default)]
pub(super) struct Difference<'v> {
    pub(super) networks: Vec<&'v Part>,
    pub(super) networks_changed: Vec<Changed>,
    pub(super) networks_removed: BTreeSet<NetworkId>,
    pub(super) routers: Vec<HostRouter>,
    pub(super) routers_removed: BTreeSet<RouterId>,
    pub(super) active_copies: Vec<(RouterId, ActiveCopy)>,
    pub(super) active_copies_removed: BTreeSet<RouterId>,
}

/// What differs of one network.
pub(super) enum Changed {
    /// In JSON already, since others are told the same.
    Encoded(Bytes),
    /// Of this host alone.
    Own(NetworkChange),
}

impl<'v> Difference<'v> {
    /// Computes it; `None` where the host has to be told nothing.
    pub(super) fn between(old: &HostView, new: &'v HostView) -> Option<Self> {
        let mut difference = Self::default();
        let mut follows_others = false;
        for (id, part) in &new.networks {
            match old.networks.get(id) {
                None => {
                    follows_others |= part.followed().next().is_some();
                    difference.networks.push(part);
                }
                Some(before) if before.is(part) => {}
                Some(before) => {
                    let (changed, others) = part_change(&new.host, before, part);
                    follows_others |= others;
                    match changed {
                        PartChange::Nothing => {}
                        PartChange::Changed(changed) => difference.networks_changed.push(changed),
                        PartChange::Whole => difference.networks.push(part),
                    }
                }
            }
        }
        for (id, part) in old.networks.iter().filter(|(id, _)| !new.networks.contains_key(id)) {
            follows_others |= part.followed().next().is_some();
            difference.networks_removed.insert(*id);
        }
        difference.add_routers(old, new);
        if follows_others {
            difference.add_active_copies(&old.active_copies(), &new.active_copies());
        }
        (!difference.is_nothing()).then_some(difference)
    }

    fn add_routers(&mut self, old: &HostView, new: &HostView) {
        for (id, router) in &new.routers {
            let before = old.routers.get(id);
            if before.is_some_and(|before| Arc::ptr_eq(before, router)) {
                continue;
            }
            let before = before.and_then(|before| before.told_to(&new.host));
            match router.told_to(&new.host) {
                Some(now) if before.as_ref() == Some(&now) => {}
                Some(now) => self.routers.push(now),
                None if before.is_some() => drop(self.routers_removed.insert(*id)),
                None => {}
            }
        }
        self.routers_removed.extend(old.routers.keys().filter(|id| !new.routers.contains_key(id)));
    }

    fn add_active_copies(&mut self, old: &BTreeMap<RouterId, ActiveCopy>, new: &BTreeMap<RouterId, ActiveCopy>) {
        let differs = |(id, active): &(&RouterId, &ActiveCopy)| old.get(id) != Some(*active);
        self.active_copies = new.iter().filter(differs).map(|(id, active)| (*id, *active)).collect();
        self.active_copies_removed = old.keys().filter(|id| !new.contains_key(id)).copied().collect();
    }

    fn is_nothing(&self) -> bool {
        self.networks.is_empty()
            && self.networks_changed.is_empty()
            && self.networks_removed.is_empty()
            && self.routers.is_empty()
            && self.routers_removed.is_empty()
            && self.active_copies.is_empty()
            && self.active_copies_removed.is_empty()
    }
}

enum PartChange {
    Nothing,
    Changed(Changed),
    /// Tell it as if it were new.
    Whole,
}

/// What differs of a network, and whether other active copies may matter because of it.
fn part_change(host: &str, old: &Part, new: &Part) -> (PartChange, bool) {
    match (old, new) {
        (Part::All(old), Part::All(new)) => all_change(host, old, new),
        (Part::Own(old_base, old), Part::Own(new_base, new)) => {
            let (change, others) = own_change(host, (old_base, old), (new_base, new));
            (change.map_or(PartChange::Nothing, |change| PartChange::Changed(Changed::Own(change))), others)
        }
        (Part::All(_), Part::Own(..)) | (Part::Own(..), Part::All(_)) => (PartChange::Whole, true),
    }
}

fn all_change(host: &str, old: &NetworkView, new: &NetworkView) -> (PartChange, bool) {
    let delta = new.since(old);
    let change = match delta.told_to(host, old, new) {
        None => PartChange::Nothing,
        Some(Told::Usual(json)) => PartChange::Changed(Changed::Encoded(json)),
        Some(Told::Own(change)) => PartChange::Changed(Changed::Own(change)),
    };
    (change, delta.follows_others)
}
