//! Where a router is: what the networks that it has ports on must know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use evergate_model::RouterId;
use evergate_model::host::ActiveCopy;

use super::Name;
use crate::ha;
use crate::objects::fleet::Fleet;
use crate::objects::query_in;
use crate::objects::router::{self, Binding};
use crate::store::{StoreError, Tx};

/// Where one router is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Presence {
    pub(super) id: RouterId,
    pub(super) ha: bool,
    pub(super) distributed: bool,
    /// Hosts that have a copy, or of a distributed router the source NAT. Neutron empties an agent that an admin
    /// disables, and so do we.
    pub(super) copies: BTreeSet<Name>,
    /// Hosts that route for the distributed router.
    pub(super) routing: BTreeSet<Name>,
    /// Of an HA router: who was active when last reported.
    pub(super) active: Option<ActiveCopy>,
}

impl Presence {
    /// Tells whether a host has a copy of the router, or of a distributed one its source NAT.
    pub(super) fn translates(&self, host: &str) -> bool {
        self.copies.contains(host)
    }

    /// Tells whether a host routes for the distributed router.
    pub(super) fn routes(&self, host: &str) -> bool {
        self.routing.contains(host)
    }

    /// The hosts that have a part of the router.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Name> {
        self.copies.union(&self.routing)
    }
}

/// Reads where routers are. Those that are gone are not answered.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn read(
    tx: &Tx<'_>,
    fleet: &Fleet,
    routers: &[String],
) -> Result<BTreeMap<RouterId, Arc<Presence>>, StoreError> {
    let sql = "SELECT id, ha, distributed FROM routers WHERE id IN ({})";
    let kinds = query_in(tx, sql, routers, |row| Ok((row.parse(0)?, row.bool(1)?, row.bool(2)?)))?;
    let mut bindings: BTreeMap<RouterId, Vec<Binding>> = BTreeMap::new();
    for binding in router::bindings_of(tx, routers)? {
        bindings.entry(binding.router_id).or_default().push(binding);
    }
    let sql = "SELECT router_id, host FROM router_hosts WHERE router_id IN ({})";
    let mut routing: BTreeMap<RouterId, BTreeSet<Name>> = BTreeMap::new();
    for (router, host) in query_in(tx, sql, routers, |row| Ok((row.parse(0)?, row.text(1)?)))? {
        routing.entry(router).or_default().insert(host.into());
    }
    let presence = |(id, ha, distributed): (RouterId, bool, bool)| {
        let bindings = bindings.get(&id).map_or(&[][..], Vec::as_slice);
        let is_admitted = |binding: &&Binding| {
            fleet.host(&binding.host).and_then(|host| host.l3).is_some_and(|(agent, _)| agent == binding.agent_id)
        };
        let copies = bindings.iter().filter(is_admitted).map(|binding| binding.host.as_str().into()).collect();
        let active = ha::active_copy(bindings)
            .filter(|_| ha)
            .and_then(|active| Some(ActiveCopy { epoch: active.epoch, vtep: fleet.host(&active.host)?.tunnel_ip? }));
        let routing = routing.get(&id).cloned().unwrap_or_default();
        (id, Arc::new(Presence { id, ha, distributed, copies, routing, active }))
    };
    Ok(kinds.into_iter().map(presence).collect())
}
