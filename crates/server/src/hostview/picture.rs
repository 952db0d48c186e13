//! What all connected hosts need, at one revision, and how it is brought to the next.
//!
//! [`Picture::look`] reads what the change log says was touched, and answers it as [`News`]; nothing is changed, so
//! whatever goes wrong on the way leaves the picture whole. [`Picture::take`] cannot fail, and answers whose view is
//! another now. Between the two there is nothing to wait for, and the database is not needed.
//!
//! Invariant: for every host in `hosts`, the networks and routers that it needs are there, as the store had them at
//! `revision`. So a network or router that is not there can only become needed by a host through something that the
//! log names: a port that is bound to the host, or a router that the host has a part of.
//!
//! What the log does not say is not looked at, so whoever changes something in the store must name it (see
//! [`objects`](crate::objects)). What the log names, and what is looked at for it:
//!
//! | named | looked at |
//! |---|---|
//! | network | its row and its VRIDs |
//! | port, with its network | the port; its router; the routers with floating IPs that lead to it |
//! | port alone, floating IP | nothing: a status, a name |
//! | subnet | the routers on its network |
//! | router | the router, and its ports on networks |
//! | agent | where hosts are; if that is another: the networks and routers that have to do with the host |
//!
//! When the log does not reach back far enough, or the database is another one, everything is read anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use evergate_model::host::ClusterConfig;
use evergate_model::{NetworkId, PortId, RouterId};

use super::host::HostView;
use super::network::{NetworkView, Port, Ports};
use super::presence::{self, Presence};
use super::router::{self, RouterView};
use super::{Name, rows};
use crate::error::ApiError;
use crate::objects::fleet::Fleet;
use crate::objects::query_in;
use crate::options::Options;
use crate::store::{CLAIM_KEY, ChangedObject, Kind, StoreError, Tx};

/// What hosts need, in parts that they share.
#[derive(Debug, Default)]
pub struct Picture {
    revision: u64,
    cluster: Arc<ClusterConfig>,
    fleet: Arc<Fleet>,
    networks: BTreeMap<NetworkId, Arc<NetworkView>>,
    routers: BTreeMap<RouterId, Arc<RouterView>>,
    /// Of every router that has a port on one of the networks, or is among the routers.
    presences: BTreeMap<RouterId, Arc<Presence>>,
    hosts: BTreeMap<Name, Arc<HostView>>,
}

/// The networks and routers that a host needs.
type Needs = (BTreeSet<NetworkId>, BTreeSet<RouterId>);

/// What a look found.
#[derive(Debug)]
pub struct News {
    revision: u64,
    cluster: Arc<ClusterConfig>,
    fleet: Arc<Fleet>,
    /// Those that may be others now; `None` where there is none any more.
    networks: BTreeMap<NetworkId, Option<Arc<NetworkView>>>,
    routers: BTreeMap<RouterId, Option<Arc<RouterView>>>,
    presences: BTreeMap<RouterId, Option<Arc<Presence>>>,
    /// What hosts need that were not there, or whose views are made anew.
    joining: BTreeMap<Name, Needs>,
    /// Nothing that was known before counts.
    anew: bool,
}

impl Picture {
    /// The revision that it shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What a host is told, if it is one of those.
    pub fn view(&self, host: &str) -> Option<&Arc<HostView>> {
        self.hosts.get(host)
    }

    /// Tells whether it has no hosts.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Reads what is new at the transaction's revision, and all that joining hosts need.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn look(&self, tx: &Tx<'_>, options: &Options, joining: &[Name]) -> Result<News, ApiError> {
        let log = if self.hosts.is_empty() { None } else { tx.changes_since(self.revision)? };
        let anew = log.is_none();
        let fleet = if anew { Arc::new(Fleet::read(tx)?) } else { Arc::clone(&self.fleet) };
        let mut look = Look {
            tx,
            options,
            known: self,
            fleet,
            hosts: self.hosts.keys().chain(joining).cloned().collect(),
            anew,
            networks: BTreeMap::new(),
            routers: BTreeMap::new(),
            presences: BTreeMap::new(),
        };
        if let Some(log) = log.filter(|log| !log.is_empty()) {
            look.follow(&log)?;
        }
        let joining: Vec<Name> = if anew {
            look.hosts.iter().cloned().collect()
        } else {
            joining.iter().filter(|host| !self.hosts.contains_key(*host)).cloned().collect()
        };
        let joining = look.join(&joining)?;
        let claim_key = if joining.is_empty() { None } else { tx.setting(CLAIM_KEY)? };
        let Look { fleet, networks, routers, presences, .. } = look;
        Ok(News {
            revision: tx.revision()?,
            cluster: claim_key
                .map_or_else(|| Arc::clone(&self.cluster), |key| Arc::new(ClusterConfig { claim_key: key })),
            fleet,
            networks,
            routers,
            presences,
            joining,
            anew,
        })
    }

    /// Takes over what a look found; answers the views that are new or others now.
    pub fn take(&mut self, news: News) -> Vec<Arc<HostView>> {
        let mut touched: BTreeMap<Name, HostView> = BTreeMap::new();
        self.revision = news.revision;
        self.fleet = news.fleet;
        self.cluster = news.cluster;
        if news.anew {
            self.networks = news.networks.into_iter().filter_map(|(id, network)| Some((id, network?))).collect();
            self.routers = news.routers.into_iter().filter_map(|(id, router)| Some((id, router?))).collect();
            self.presences = news.presences.into_iter().filter_map(|(id, presence)| Some((id, presence?))).collect();
        } else {
            for (id, presence) in news.presences {
                put(&mut self.presences, id, presence);
            }
            for (id, network) in news.networks {
                self.take_network(id, network, &mut touched);
            }
            for (id, router) in news.routers {
                self.take_router(id, router, &mut touched);
            }
        }
        for (host, (networks, routers)) in news.joining {
            let view = self.assemble(&host, &networks, &routers);
            if self.hosts.get(&host).is_none_or(|known| !known.is(&view)) {
                touched.insert(host, view);
            }
        }
        let touched: Vec<Arc<HostView>> = touched.into_values().map(Arc::new).collect();
        self.hosts.extend(touched.iter().map(|view| (Arc::clone(&view.host), Arc::clone(view))));
        touched
    }

    /// Forgets hosts that need no longer be told anything, and what only they needed.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.hosts.retain(|host, _| keep(host));
        let hosts = &self.hosts;
        self.networks.retain(|_, network| network.members().any(|host| hosts.contains_key(host)));
        self.routers.retain(|_, router| router.presence.hosts().any(|host| hosts.contains_key(host)));
        let needed: BTreeSet<RouterId> = self.networks.values().flat_map(|network| network.routers()).collect();
        self.presences
            .retain(|id, presence| needed.contains(id) || presence.hosts().any(|host| hosts.contains_key(host)));
    }

    fn take_network(
        &mut self,
        id: NetworkId,
        network: Option<Arc<NetworkView>>,
        touched: &mut BTreeMap<Name, HostView>,
    ) {
        let before = put(&mut self.networks, id, network.clone());
        if let (Some(before), Some(network)) = (&before, &network)
            && Arc::ptr_eq(before, network)
        {
            return;
        }
        let members: BTreeSet<&Name> = before.iter().chain(&network).flat_map(|network| network.members()).collect();
        for host in members {
            let Some(view) = self.hosts.get(host) else { continue };
            let part = network.as_ref().and_then(|network| network.part(host));
            match (view.networks.get(&id), &part) {
                (None, None) => continue,
                (Some(known), Some(part)) if known.is(part) => continue,
                (Some(_), _) | (_, Some(_)) => {}
            }
            put(&mut touch(touched, view, self.revision).networks, id, part);
        }
    }

    fn take_router(&mut self, id: RouterId, router: Option<Arc<RouterView>>, touched: &mut BTreeMap<Name, HostView>) {
        let before = put(&mut self.routers, id, router.clone());
        if let (Some(before), Some(router)) = (&before, &router)
            && Arc::ptr_eq(before, router)
        {
            return;
        }
        let hosts: BTreeSet<&Name> = before.iter().chain(&router).flat_map(|router| router.presence.hosts()).collect();
        for host in hosts {
            let Some(view) = self.hosts.get(host) else { continue };
            let has = |router: &&Arc<RouterView>| router.presence.translates(host) || router.presence.routes(host);
            put(&mut touch(touched, view, self.revision).routers, id, router.as_ref().filter(has).cloned());
        }
    }

    fn assemble(&self, host: &Name, networks: &BTreeSet<NetworkId>, routers: &BTreeSet<RouterId>) -> HostView {
        let part = |id: &NetworkId| Some((*id, self.networks.get(id)?.part(host)?));
        let router = |id: &RouterId| Some((*id, Arc::clone(self.routers.get(id)?)));
        HostView {
            host: Arc::clone(host),
            revision: self.revision,
            cluster: Arc::clone(&self.cluster),
            networks: networks.iter().filter_map(part).collect(),
            routers: routers.iter().filter_map(router).collect(),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

/// The next view of a host, in the making.
fn touch<'t>(touched: &'t mut BTreeMap<Name, HostView>, view: &HostView, revision: u64) -> &'t mut HostView {
    touched.entry(Arc::clone(&view.host)).or_insert_with(|| HostView { revision, ..view.clone() })
}

/// A look at the store, with what it found so far.
struct Look<'l> {
    tx: &'l Tx<'l>,
    options: &'l Options,
    known: &'l Picture,
    fleet: Arc<Fleet>,
    /// Those that are told something.
    hosts: BTreeSet<Name>,
    /// What is known does not count: it only serves to share what turns out to be equal.
    anew: bool,
    networks: BTreeMap<NetworkId, Option<Arc<NetworkView>>>,
    routers: BTreeMap<RouterId, Option<Arc<RouterView>>>,
    presences: BTreeMap<RouterId, Option<Arc<Presence>>>,
}

/// What the log names.
#[derive(Default)]
struct Named {
    networks: BTreeSet<NetworkId>,
    subnets: Vec<String>,
    ports: BTreeSet<PortId>,
    routers: BTreeSet<RouterId>,
    agents: bool,
}

impl Named {
    fn of(log: &[ChangedObject]) -> Self {
        let mut named = Self::default();
        for change in log {
            match change.kind {
                Kind::Network => named.networks.extend(change.id.parse::<NetworkId>()),
                Kind::Subnet => named.subnets.push(change.id.clone()),
                Kind::Port => named.ports.extend(change.id.parse::<PortId>()),
                Kind::Router => named.routers.extend(change.id.parse::<RouterId>()),
                Kind::Agent => named.agents = true,
                Kind::FloatingIp => {}
            }
        }
        // Whatever of a port matters to hosts is a change of its network, too.
        if named.networks.is_empty() {
            named.ports.clear();
        }
        named
    }
}

impl Look<'_> {
    /// Looks at what the log names.
    fn follow(&mut self, log: &[ChangedObject]) -> Result<(), ApiError> {
        let mut named = Named::of(log);
        let mut anew = BTreeSet::new();
        if named.agents {
            anew = self.follow_agents(&mut named)?;
        }
        self.follow_subnets(&mut named)?;
        let mut rows = rows::ports(self.tx, &texts(&named.ports))?;
        self.follow_ports(&mut named, &rows)?;
        let routers = texts(&named.routers);
        self.read_presences(&routers)?;
        let seen: BTreeSet<PortId> = rows.iter().map(|row| row.id).collect();
        let of_routers = crate::objects::router::ports_of(self.tx, &routers)?;
        let more: Vec<String> = of_routers
            .iter()
            .filter(|port| !seen.contains(&port.port_id))
            .map(|port| port.port_id.to_string())
            .collect();
        rows.extend(rows::ports(self.tx, &more)?);
        self.follow_networks(&named, rows, anew)?;
        Ok(self.follow_routers(&named.routers)?)
    }

    /// Finds out which hosts are elsewhere, or something else, than before. Answers the networks that are to be read
    /// anew because of it.
    fn follow_agents(&mut self, named: &mut Named) -> Result<BTreeSet<NetworkId>, StoreError> {
        let fleet = Fleet::read(self.tx)?;
        let before = &self.known.fleet.0;
        let names: BTreeSet<&String> = before.keys().chain(fleet.0.keys()).collect();
        let moved: BTreeSet<&str> =
            names.into_iter().filter(|name| before.get(*name) != fleet.0.get(*name)).map(String::as_str).collect();
        if moved.is_empty() {
            return Ok(BTreeSet::new());
        }
        let names = Vec::from_iter(&moved);
        let sql = "SELECT b.router_id FROM router_bindings b JOIN agents a ON a.id = b.agent_id WHERE a.host IN ({}) \
                   UNION SELECT router_id FROM router_hosts WHERE host IN ({})";
        named.routers.extend(query_in(self.tx, sql, &names, |row| row.parse::<RouterId>(0))?);
        let present = |presence: &&Arc<Presence>| presence.hosts().any(|host| moved.contains(&**host));
        named.routers.extend(self.known.presences.values().filter(present).map(|presence| presence.id));
        let mentioning = self.known.routers.iter().filter(|(_, router)| router.mentions(&moved));
        named.routers.extend(mentioning.map(|(id, _)| *id));
        let networks = self.known.networks.iter().filter(|(_, network)| network.mentions(&moved));
        let networks = networks.map(|(id, _)| *id).collect();
        self.fleet = Arc::new(fleet);
        Ok(networks)
    }

    /// Adds the routers on networks whose subnets are named.
    fn follow_subnets(&self, named: &mut Named) -> Result<(), StoreError> {
        if named.subnets.is_empty() {
            return Ok(());
        }
        let sql = "SELECT id, network_id FROM subnets WHERE id IN ({})";
        let found = query_in(self.tx, sql, &named.subnets, |row| Ok((row.text(0)?, row.parse::<NetworkId>(1)?)))?;
        let mut networks: BTreeSet<NetworkId> = found.iter().map(|(_, network)| *network).collect();
        // One that is gone was on a network that is named with it.
        if found.len() < named.subnets.iter().collect::<BTreeSet<_>>().len() {
            networks.extend(&named.networks);
        }
        let sql = "SELECT DISTINCT router_id FROM router_ports WHERE network_id IN ({})";
        named.routers.extend(query_in(self.tx, sql, &texts(&networks), |row| row.parse::<RouterId>(0))?);
        Ok(())
    }

    /// Adds the routers that the named ports have to do with.
    fn follow_ports(&self, named: &mut Named, rows: &[rows::PortRow]) -> Result<(), StoreError> {
        if named.ports.is_empty() {
            return Ok(());
        }
        named.routers.extend(rows.iter().filter_map(|row| row.router).map(|(router, _)| router));
        let ports = texts(&named.ports);
        let sql = "SELECT router_id FROM floating_ips WHERE router_id IS NOT NULL AND port_id IN ({})";
        named.routers.extend(query_in(self.tx, sql, &ports, |row| row.parse::<RouterId>(0))?);
        let sql = "SELECT DISTINCT h.router_id FROM agent_gateway_ports g JOIN router_hosts h ON h.host = g.host \
                   JOIN router_ports gw ON gw.router_id = h.router_id AND gw.role = 'gateway' \
                   AND gw.network_id = g.network_id WHERE g.port_id IN ({})";
        named.routers.extend(query_in(self.tx, sql, &ports, |row| row.parse::<RouterId>(0))?);
        let found: BTreeSet<PortId> = rows.iter().map(|row| row.id).collect();
        let gone: BTreeSet<PortId> = named.ports.difference(&found).copied().collect();
        if !gone.is_empty() {
            let had = self.known.routers.iter().filter(|(_, router)| router.has_agent_gateway(&gone));
            named.routers.extend(had.map(|(id, _)| *id));
        }
        // Whose they were.
        let networks = named.networks.iter().filter_map(|id| self.known.networks.get(id));
        let ports = networks.flat_map(|network| named.ports.iter().filter_map(|id| network.port(*id)));
        named.routers.extend(ports.filter_map(|port| port.router.as_ref()).map(|(_, router)| router.id));
        Ok(())
    }

    /// Makes the next states of networks. `rows` has the named ports, and those of the named routers.
    fn follow_networks(
        &mut self,
        named: &Named,
        rows: Vec<rows::PortRow>,
        mut whole: BTreeSet<NetworkId>,
    ) -> Result<(), StoreError> {
        let found: BTreeSet<PortId> = rows.iter().map(|row| row.id).collect();
        let mut changed: BTreeMap<NetworkId, BTreeMap<PortId, Option<Arc<Port>>>> = BTreeMap::new();
        for row in rows {
            let (id, network) = (row.id, row.network_id);
            let port = row.port(&self.fleet, |router| self.presence(router));
            if self.known.networks.contains_key(&network) {
                changed.entry(network).or_default().insert(id, Some(port));
            } else if port.members().any(|host| self.hosts.contains(host)) {
                whole.insert(network);
            }
        }
        for id in named.networks.iter().filter(|id| self.known.networks.contains_key(id)) {
            let ports = changed.entry(*id).or_default();
            ports.extend(named.ports.difference(&found).map(|port| (*port, None)));
        }
        changed.retain(|id, _| !whole.contains(id));
        // What the network itself is can only be another where it is named.
        let bases =
            rows::bases(self.tx, &texts(&changed.keys().filter(|id| named.networks.contains(id)).copied().collect()))?;
        for (id, mut ports) in changed {
            let Some(known) = self.known.networks.get(&id) else { continue };
            let base = match (bases.get(&id), named.networks.contains(&id)) {
                (Some(base), _) => base.clone(),
                (None, false) => (*known.base).clone(),
                (None, true) => {
                    self.networks.insert(id, None);
                    continue;
                }
            };
            let tunnelled = base.is_tunnelled();
            if tunnelled != known.base.is_tunnelled() {
                whole.insert(id);
                continue;
            }
            for port in ports.values_mut() {
                *port = port.take().filter(|port| port.matters(tunnelled));
            }
            let next = NetworkView::next(known, base, ports, |host| self.tunnel_ip(host));
            self.networks.insert(id, Some(next));
        }
        self.read_networks(&whole)
    }

    /// Reads routers anew that a host has a part of, or had.
    fn follow_routers(&mut self, named: &BTreeSet<RouterId>) -> Result<(), StoreError> {
        let mut needed = BTreeMap::new();
        for id in named {
            match self.presence(*id) {
                Some(presence) => {
                    if self.known.routers.contains_key(id) || presence.hosts().any(|host| self.hosts.contains(host)) {
                        needed.insert(*id, presence);
                    }
                }
                None => drop(self.routers.insert(*id, None)),
            }
        }
        self.read_routers(&needed)
    }

    /// Finds what hosts need, and reads what of it is not there yet.
    fn join(&mut self, hosts: &[Name]) -> Result<BTreeMap<Name, Needs>, StoreError> {
        let mut needs: BTreeMap<Name, Needs> =
            hosts.iter().map(|host| (Arc::clone(host), Default::default())).collect();
        let names: Vec<&str> = hosts.iter().map(|host| &**host).collect();
        let (mut networks, mut routers) = (BTreeSet::new(), BTreeSet::new());
        for (host, network) in rows::networks_of_hosts(self.tx, &names)? {
            needs.entry(host.into()).or_default().0.insert(network);
            networks.insert(network);
        }
        for (host, router) in rows::routers_of_hosts(self.tx, &names)? {
            needs.entry(host.into()).or_default().1.insert(router);
            routers.insert(router);
        }
        networks.retain(|id| {
            let is_known = !self.anew && self.known.networks.contains_key(id);
            !self.networks.get(id).map_or(is_known, Option::is_some)
        });
        self.read_networks(&networks)?;
        routers.retain(|id| {
            let is_known = !self.anew && self.known.routers.contains_key(id);
            !self.routers.get(id).map_or(is_known, Option::is_some)
        });
        let unknown: Vec<String> =
            routers.iter().filter(|id| self.presence(**id).is_none()).map(RouterId::to_string).collect();
        self.read_presences(&unknown)?;
        let needed = routers.iter().filter_map(|id| Some((*id, self.presence(*id)?))).collect();
        self.read_routers(&needed)?;
        Ok(needs)
    }

    /// Reads networks as wholes.
    fn read_networks(&mut self, ids: &BTreeSet<NetworkId>) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let texts = texts(ids);
        let mut bases = rows::bases(self.tx, &texts)?;
        let rows = rows::ports_of(self.tx, &texts)?;
        let routers: BTreeSet<RouterId> = rows.iter().filter_map(|row| row.router).map(|(router, _)| router).collect();
        let unknown: Vec<String> =
            routers.iter().filter(|id| self.presence(**id).is_none()).map(RouterId::to_string).collect();
        self.read_presences(&unknown)?;
        let mut ports: BTreeMap<NetworkId, Ports> = BTreeMap::new();
        for row in rows {
            let (id, network) = (row.id, row.network_id);
            let port = row.port(&self.fleet, |router| self.presence(router));
            if bases.get(&network).is_some_and(|base| port.matters(base.is_tunnelled())) {
                ports.entry(network).or_default().insert(id, port);
            }
        }
        for id in ids {
            let view = bases.remove(id).map(|base| {
                let ports = ports.remove(id).unwrap_or_default();
                NetworkView::whole(self.known.networks.get(id), base, ports, |host| self.tunnel_ip(host))
            });
            self.networks.insert(*id, view);
        }
        Ok(())
    }

    fn read_routers(&mut self, needed: &BTreeMap<RouterId, Arc<Presence>>) -> Result<(), StoreError> {
        if needed.is_empty() {
            return Ok(());
        }
        for (id, view) in router::read(self.tx, self.options, &self.fleet, needed)? {
            let known = self.known.routers.get(&id).filter(|known| **known == view);
            self.routers.insert(id, Some(known.cloned().unwrap_or(view)));
        }
        Ok(())
    }

    fn read_presences(&mut self, routers: &[String]) -> Result<(), StoreError> {
        let mut found = presence::read(self.tx, &self.fleet, routers)?;
        for id in routers.iter().filter_map(|id| id.parse::<RouterId>().ok()) {
            let now = found.remove(&id).map(|now| {
                let known = self.known.presences.get(&id).filter(|known| **known == now);
                known.cloned().unwrap_or(now)
            });
            self.presences.insert(id, now);
        }
        Ok(())
    }

    fn presence(&self, router: RouterId) -> Option<Arc<Presence>> {
        match self.presences.get(&router) {
            Some(found) => found.clone(),
            None if self.anew => None,
            None => self.known.presences.get(&router).cloned(),
        }
    }

    fn tunnel_ip(&self, host: &str) -> Option<std::net::IpAddr> {
        self.fleet.host(host).and_then(|host| host.tunnel_ip)
    }
}

fn texts<T: ToString>(ids: &BTreeSet<T>) -> Vec<String> {
    ids.iter().map(T::to_string).collect()
}
