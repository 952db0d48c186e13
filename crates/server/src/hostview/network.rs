//! One network as all hosts are told of it, and what of that depends on the host.
//!
//! Of a network that tunnels carry, every host that has it is told of every port on whatever host, since it fills
//! its forwarding entries from that. Of any other the switches outside know where the ports are, and a host is
//! told of those that it has itself and of those of its routers.
//!
//! A [`NetworkView`] never changes; the next state of a network is a new one that shares with the last what is
//! equal. What differs between two of them ([`Delta`]) is computed once, whoever asks first, and nearly every host
//! is told the same of it, in the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use evergate_model::host::{ActiveCopy, AllowedAddress, Location, Network as HostNetwork, NetworkPort, Segment};
use evergate_model::stream::NetworkChange;
use evergate_model::{Mac, NetworkId, PortId, RouterId};

use super::Name;
use super::presence::Presence;
use crate::objects::router::Role;

/// Ports by id.
pub(super) type Ports = BTreeMap<PortId, Arc<Port>>;

/// What every host that has the network is told of it, besides its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) id: NetworkId,
    pub(super) segment: Segment,
    pub(super) mtu: u16,
    pub(super) vrids: BTreeSet<u8>,
}

impl Base {
    pub(super) fn is_tunnelled(&self) -> bool {
        matches!(self.segment, Segment::Vxlan { .. })
    }
}

/// A port of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) mac: Mac,
    pub(super) ips: Vec<IpAddr>,
    pub(super) admin_state_up: bool,
    pub(super) allowed_addresses: Vec<AllowedAddress>,
    /// The host that it is bound to; empty where it is bound to none.
    pub(super) host: Name,
    /// Where tunnels to that host end.
    pub(super) vtep: Option<IpAddr>,
    /// Nothing answers to its Ethernet address: it holds the address of a floating IP.
    pub(super) silent: bool,
    /// The router that it belongs to, and what it does for it.
    pub(super) router: Option<(Role, Arc<Presence>)>,
}

/// Whether a port is on the host that it is bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moves {
    /// It is.
    Bound,
    /// It is wherever this HA router is active.
    Follows(RouterId),
    /// It is on every host that routes for this router.
    Everywhere(RouterId),
}

impl Port {
    fn moves(&self) -> Moves {
        match &self.router {
            None | Some((Role::Ha, _)) => Moves::Bound,
            Some((Role::Interface, router)) if router.distributed => Moves::Everywhere(router.id),
            Some((Role::Interface | Role::Gateway | Role::Snat, router)) if router.ha => Moves::Follows(router.id),
            Some((Role::Interface | Role::Gateway | Role::Snat, _)) => Moves::Bound,
        }
    }

    /// The HA router whose active copy has the port, and who that is.
    fn follows(&self) -> Option<(RouterId, Option<ActiveCopy>)> {
        match (self.moves(), &self.router) {
            (Moves::Follows(id), Some((_, router))) => Some((id, router.active)),
            _ => None,
        }
    }

    /// What a host is told of the port.
    pub(super) fn told_to(&self, host: &str) -> NetworkPort {
        let location = match (self.moves(), self.vtep) {
            (Moves::Follows(router), _) => Location::Active { router },
            (Moves::Everywhere(router), _) => Location::Everywhere { router },
            (Moves::Bound, _) if !self.host.is_empty() && *self.host == *host => Location::Local,
            (Moves::Bound, Some(vtep)) => Location::Remote { vtep },
            (Moves::Bound, None) => Location::Unbound,
        };
        NetworkPort {
            mac: self.mac,
            ips: self.ips.clone(),
            location,
            admin_state_up: self.admin_state_up,
            allowed_addresses: self.allowed_addresses.clone(),
        }
    }

    /// The host that is told something else of the port than all others.
    fn special_host(&self) -> Option<&Name> {
        (self.moves() == Moves::Bound && !self.host.is_empty()).then_some(&self.host)
    }

    /// Tells whether every host is told the same of both.
    fn is_told_as(&self, other: &Self) -> bool {
        let what = |port: &Self| (port.mac, port.admin_state_up, port.moves() == Moves::Bound);
        let bound = |port: &Self| (port.moves() == Moves::Bound).then(|| (port.host.clone(), port.vtep));
        what(self) == what(other)
            && self.moves() == other.moves()
            && bound(self) == bound(other)
            && self.ips == other.ips
            && self.allowed_addresses == other.allowed_addresses
    }

    /// The hosts that have the port's network because of it.
    pub(super) fn members(&self) -> impl Iterator<Item = &Name> {
        let own = self.router.is_none().then_some(&self.host).filter(|host| !host.is_empty());
        let router = self.router.iter();
        own.into_iter().chain(router.flat_map(|(role, router)| {
            let routing = (*role == Role::Interface).then_some(&router.routing);
            router.copies.iter().chain(routing.into_iter().flatten())
        }))
    }

    /// The hosts that are told of the port where no tunnels carry the network.
    fn concerned(&self) -> BTreeSet<&Name> {
        let own = Some(&self.host).filter(|host| !host.is_empty());
        let router = self.router.iter().flat_map(|(_, router)| router.copies.iter().chain(&router.routing));
        own.into_iter().chain(router).collect()
    }

    /// Tells whether anybody can ever be told of it.
    pub(super) fn matters(&self, tunnelled: bool) -> bool {
        if tunnelled { !self.silent || !self.host.is_empty() } else { !self.host.is_empty() || self.router.is_some() }
    }
}

/// Numbers views, so that one can be remembered by its number without being kept.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// A network at one moment.
#[derive(Debug)]
pub(super) struct NetworkView {
    number: u64,
    pub(super) base: Arc<Base>,
    ports: Ports,
    /// The hosts that have it, and where tunnels to them end.
    members: BTreeMap<Name, Option<IpAddr>>,
    /// What is told of a network that no tunnels carry: to each host its own.
    own: BTreeMap<Name, Arc<Ports>>,
    /// The HA routers with a port on it that follows the active copy.
    followed: BTreeMap<RouterId, Option<ActiveCopy>>,
    /// From views that hosts have, by their numbers.
    deltas: Mutex<BTreeMap<u64, Arc<Delta>>>,
    encoded: OnceLock<Encoded>,
}

/// What of a network one host is told.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Everything: tunnels carry it.
    All(Arc<NetworkView>),
    /// These ports.
    Own(Arc<Base>, Arc<Ports>),
}

impl Part {
    /// Tells whether it is the very same, without looking inside.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All(a), Self::All(b)) => Arc::ptr_eq(a, b),
            (Self::Own(base_a, a), Self::Own(base_b, b)) => Arc::ptr_eq(base_a, base_b) && Arc::ptr_eq(a, b),
            (Self::All(_), Self::Own(..)) | (Self::Own(..), Self::All(_)) => false,
        }
    }

    pub(super) fn base(&self) -> &Base {
        match self {
            Self::All(view) => &view.base,
            Self::Own(base, _) => base,
        }
    }

    /// The HA routers whose active copy the host must know because of the network.
    pub(super) fn followed(&self) -> Box<dyn Iterator<Item = (RouterId, Option<ActiveCopy>)> + '_> {
        match self {
            Self::All(view) => Box::new(view.followed.iter().map(|(id, active)| (*id, *active))),
            Self::Own(_, ports) => Box::new(ports.values().filter_map(|port| port.follows())),
        }
    }

    /// The network as the host is told of it.
    pub(super) fn told_to(&self, host: &str) -> HostNetwork {
        let base = self.base();
        let told = |(id, port): (&PortId, &Arc<Port>)| (*id, port.told_to(host));
        let (ports, peers) = match self {
            Self::All(view) => (view.told_ports().map(told).collect(), view.peers_of(host)),
            Self::Own(_, ports) => (ports.iter().map(told).collect(), BTreeSet::new()),
        };
        let (id, segment, mtu, vrids) = (base.id, base.segment.clone(), base.mtu, base.vrids.clone());
        HostNetwork { id, segment, mtu, ports, peers, vrids }
    }
}

impl NetworkView {
    /// Makes the next state of a network, or keeps the last where nothing differs. `changed` has the ports that
    /// may differ, `None` for those that are gone; `tunnel_ip` tells where tunnels to a host end.
    pub(super) fn next(
        last: &Arc<Self>,
        base: Base,
        changed: BTreeMap<PortId, Option<Arc<Port>>>,
        tunnel_ip: impl Fn(&str) -> Option<IpAddr>,
    ) -> Arc<Self> {
        let mut differing = changed;
        differing.retain(|id, port| last.ports.get(id) != port.as_ref());
        let stay = || last.members.iter().all(|(name, vtep)| tunnel_ip(name) == *vtep);
        if differing.is_empty() && *last.base == base && stay() {
            return Arc::clone(last);
        }
        let mut ports = last.ports.clone();
        let mut own = last.own.clone();
        let is_tunnelled = base.is_tunnelled();
        for (id, port) in differing {
            let before = match &port {
                Some(port) => ports.insert(id, Arc::clone(port)),
                None => ports.remove(&id),
            };
            if !is_tunnelled {
                let before = before.as_deref().map(Port::concerned).unwrap_or_default();
                let after = port.as_deref().map(Port::concerned).unwrap_or_default();
                for host in before.difference(&after) {
                    if let Some(ports) = own.get_mut(*host) {
                        Arc::make_mut(ports).remove(&id);
                    }
                }
                for host in after {
                    let ports: &mut Arc<Ports> = own.entry(Arc::clone(host)).or_default();
                    Arc::make_mut(ports)
                        .insert(id, Arc::clone(port.as_ref().expect("a port that concerns a host is there")));
                }
            }
        }
        own.retain(|_, ports| !ports.is_empty());
        let base = if *last.base == base { Arc::clone(&last.base) } else { Arc::new(base) };
        Arc::new(Self::assemble(base, ports, own, tunnel_ip))
    }

    /// Makes a network's first state, or one from scratch that shares what is equal with what was known.
    pub(super) fn whole(
        last: Option<&Arc<Self>>,
        base: Base,
        ports: Ports,
        tunnel_ip: impl Fn(&str) -> Option<IpAddr>,
    ) -> Arc<Self> {
        if let Some(last) = last.filter(|last| last.base.is_tunnelled() == base.is_tunnelled()) {
            let gone = last.ports.keys().filter(|id| !ports.contains_key(id)).map(|id| (*id, None));
            let mut changed: BTreeMap<PortId, Option<Arc<Port>>> = gone.collect();
            changed.extend(ports.into_iter().map(|(id, port)| (id, Some(port))));
            return Self::next(last, base, changed, tunnel_ip);
        }
        let mut own: BTreeMap<Name, Ports> = BTreeMap::new();
        if !base.is_tunnelled() {
            for (id, port) in &ports {
                for host in port.concerned() {
                    own.entry(Arc::clone(host)).or_default().insert(*id, Arc::clone(port));
                }
            }
        }
        let own = own.into_iter().map(|(host, ports)| (host, Arc::new(ports))).collect();
        Arc::new(Self::assemble(Arc::new(base), ports, own, tunnel_ip))
    }

    fn assemble(
        base: Arc<Base>,
        ports: Ports,
        own: BTreeMap<Name, Arc<Ports>>,
        tunnel_ip: impl Fn(&str) -> Option<IpAddr>,
    ) -> Self {
        let names: BTreeSet<&Name> = ports.values().flat_map(|port| port.members()).collect();
        let members = names.into_iter().map(|name| (Arc::clone(name), tunnel_ip(name))).collect();
        let shown = ports.values().filter(|port| !port.silent);
        let followed =
            if base.is_tunnelled() { shown.filter_map(|port| port.follows()).collect() } else { BTreeMap::new() };
        Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            base,
            ports,
            members,
            own,
            followed,
            deltas: Mutex::default(),
            encoded: OnceLock::new(),
        }
    }

    /// The hosts that have the network.
    pub(super) fn members(&self) -> impl Iterator<Item = &Name> {
        self.members.keys()
    }

    /// The routers that have ports on it.
    pub(super) fn routers(&self) -> impl Iterator<Item = RouterId> {
        self.ports.values().filter_map(|port| port.router.as_ref()).map(|(_, router)| router.id)
    }

    /// Looks a port up.
    pub(super) fn port(&self, id: PortId) -> Option<&Arc<Port>> {
        self.ports.get(&id)
    }

    /// Tells whether anything of it depends on one of these hosts.
    pub(super) fn mentions(&self, hosts: &BTreeSet<&str>) -> bool {
        let is_one = |name: &Name| hosts.contains(&**name);
        self.members.keys().any(is_one) || self.ports.values().any(|port| is_one(&port.host))
    }

    /// What a host is told of it, if it has it.
    pub(super) fn part(self: &Arc<Self>, host: &str) -> Option<Part> {
        if !self.members.contains_key(host) {
            return None;
        }
        Some(if self.base.is_tunnelled() {
            Part::All(Arc::clone(self))
        } else {
            Part::Own(Arc::clone(&self.base), self.own.get(host).cloned().unwrap_or_default())
        })
    }

    fn told_ports(&self) -> impl Iterator<Item = (&PortId, &Arc<Port>)> {
        self.ports.iter().filter(|(_, port)| !port.silent)
    }

    /// Where the other hosts are that have it.
    pub(super) fn peers_of(&self, host: &str) -> BTreeSet<IpAddr> {
        self.members.iter().filter(|(name, _)| ***name != *host).filter_map(|(_, vtep)| *vtep).collect()
    }

    /// Hosts that share a tunnel address: a mistake of somebody's, which must not be made worse.
    fn twins(&self) -> impl Iterator<Item = &Name> {
        let mut at: BTreeMap<IpAddr, Vec<&Name>> = BTreeMap::new();
        for (name, vtep) in &self.members {
            vtep.iter().for_each(|vtep| at.entry(*vtep).or_default().push(name));
        }
        at.into_values().filter(|names| names.len() > 1).flatten()
    }

    /// What differs from an earlier state.
    pub(super) fn since(&self, earlier: &Self) -> Arc<Delta> {
        let mut deltas = self.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(deltas.entry(earlier.number).or_insert_with(|| Arc::new(Delta::between(earlier, self))))
    }

    /// The whole network in JSON, for splicing.
    pub(super) fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| Encoded::of(self))
    }
}

/// A port as it was and as it is.
type Differing = (PortId, Option<Arc<Port>>, Option<Arc<Port>>);

/// What differs between two states of a network that tunnels carry.
#[derive(Debug)]
pub(super) struct Delta {
    /// Ports that hosts are told something else of now.
    ports: Vec<Differing>,
    /// What all but a few hosts are told, if anything.
    usual: Option<(NetworkChange, Bytes)>,
    /// The few.
    special: BTreeSet<Name>,
    /// Whether other HA routers, or other copies of them, matter now.
    pub(super) follows_others: bool,
}

/// What one host is told of a delta.
pub(super) enum Told {
    /// The same as nearly all others, in JSON.
    Usual(Bytes),
    /// Something of its own.
    Own(NetworkChange),
}

impl Delta {
    fn between(old: &NetworkView, new: &NetworkView) -> Self {
        let ports = differing_ports(old, new);
        let mut special: BTreeSet<Name> = BTreeSet::new();
        let both = ports.iter().flat_map(|(_, old, new)| [old, new]).flatten();
        special.extend(both.filter_map(|port| port.special_host()).cloned());
        if old.members != new.members {
            let differs =
                |(name, vtep): &(&Name, &Option<IpAddr>), other: &NetworkView| other.members.get(*name) != Some(*vtep);
            special.extend(old.members.iter().filter(|member| differs(member, new)).map(|(name, _)| name.clone()));
            special.extend(new.members.iter().filter(|member| differs(member, old)).map(|(name, _)| name.clone()));
            special.extend(old.twins().chain(new.twins()).cloned());
        }
        let mut delta = Self { ports, usual: None, special, follows_others: old.followed != new.followed };
        let peers = |view: &NetworkView| -> BTreeSet<IpAddr> {
            if old.members == new.members { BTreeSet::new() } else { view.peers_of("") }
        };
        delta.usual = delta.change("", old, new, peers).map(|change| {
            let json = serde_json::to_vec(&change).expect("maps with textual keys are always JSON");
            (change, json.into())
        });
        delta
    }

    /// What a host is told.
    pub(super) fn told_to(&self, host: &str, old: &NetworkView, new: &NetworkView) -> Option<Told> {
        if self.special.contains(host) {
            return self.change(host, old, new, |view| view.peers_of(host)).map(Told::Own);
        }
        self.usual.as_ref().map(|(_, json)| Told::Usual(json.clone()))
    }

    fn change(
        &self,
        host: &str,
        old: &NetworkView,
        new: &NetworkView,
        peers: impl Fn(&NetworkView) -> BTreeSet<IpAddr>,
    ) -> Option<NetworkChange> {
        let (old_peers, new_peers) = (peers(old), peers(new));
        let mut change = base_change(&old.base, &new.base);
        for (id, old, new) in &self.ports {
            match new {
                Some(port) => {
                    let now = port.told_to(host);
                    if old.as_ref().map(|port| port.told_to(host)).as_ref() != Some(&now) {
                        change.ports.insert(*id, now);
                    }
                }
                None => drop(change.ports_removed.insert(*id)),
            }
        }
        change.peers = new_peers.difference(&old_peers).copied().collect();
        change.peers_removed = old_peers.difference(&new_peers).copied().collect();
        (!is_nothing(&change)).then_some(change)
    }
}

/// What differs of a network that no tunnels carry, for one host; and whether other active copies matter to it.
pub(super) fn own_change(
    host: &str,
    (old_base, old): (&Base, &Ports),
    (new_base, new): (&Base, &Ports),
) -> (Option<NetworkChange>, bool) {
    let mut change = base_change(old_base, new_base);
    let mut follows_others = false;
    for (id, port) in new {
        let before = old.get(id);
        if before.is_some_and(|before| Arc::ptr_eq(before, port)) {
            continue;
        }
        let now = port.told_to(host);
        if before.map(|before| before.told_to(host)).as_ref() != Some(&now) {
            change.ports.insert(*id, now);
        }
        follows_others |= before.and_then(|before| before.follows()) != port.follows();
    }
    for (id, port) in old.iter().filter(|(id, _)| !new.contains_key(id)) {
        change.ports_removed.insert(*id);
        follows_others |= port.follows().is_some();
    }
    ((!is_nothing(&change)).then_some(change), follows_others)
}

fn differing_ports(old: &NetworkView, new: &NetworkView) -> Vec<Differing> {
    let shown = |port: Option<&Arc<Port>>| port.filter(|port| !port.silent).cloned();
    let mut differing = Vec::new();
    for (id, port) in &new.ports {
        let before = old.ports.get(id);
        if before.is_some_and(|before| Arc::ptr_eq(before, port)) {
            continue;
        }
        let (before, now) = (shown(before), shown(Some(port)));
        let same = match (&before, &now) {
            (Some(before), Some(now)) => before.is_told_as(now),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            differing.push((*id, before, now));
        }
    }
    let gone = old.ports.iter().filter(|(id, _)| !new.ports.contains_key(id));
    differing.extend(gone.filter_map(|(id, port)| Some((*id, Some(shown(Some(port))?), None))));
    differing
}

fn base_change(old: &Base, new: &Base) -> NetworkChange {
    NetworkChange {
        id: new.id,
        segment: (old.segment != new.segment).then(|| new.segment.clone()),
        mtu: (old.mtu != new.mtu).then_some(new.mtu),
        vrids: (old.vrids != new.vrids).then(|| new.vrids.clone()),
        ports: BTreeMap::new(),
        ports_removed: BTreeSet::new(),
        peers: BTreeSet::new(),
        peers_removed: BTreeSet::new(),
    }
}

fn is_nothing(change: &NetworkChange) -> bool {
    change.segment.is_none()
        && change.mtu.is_none()
        && change.vrids.is_none()
        && change.ports.is_empty()
        && change.ports_removed.is_empty()
        && change.peers.is_empty()
        && change.peers_removed.is_empty()
}

/// The ports of a network in JSON, as hosts are told that have none of them; and where in it those are that some
/// host is told something else of.
#[derive(Debug)]
pub(super) struct Encoded {
    /// `"<id>":{...}` of every port, with commas between.
    pub(super) ports: Bytes,
    /// Where `{...}` begins and ends, in order.
    spans: BTreeMap<Name, Vec<(PortId, std::ops::Range<usize>)>>,
}

impl Encoded {
    fn of(view: &NetworkView) -> Self {
        let mut text = Vec::new();
        let mut spans: BTreeMap<Name, Vec<(PortId, std::ops::Range<usize>)>> = BTreeMap::new();
        for (id, port) in view.told_ports() {
            let comma = if text.is_empty() { "" } else { "," };
            text.extend_from_slice(format!("{comma}\"{id}\":").as_bytes());
            let start = text.len();
            serde_json::to_writer(&mut text, &port.told_to("")).expect("maps with textual keys are always JSON");
            if let Some(host) = port.special_host() {
                spans.entry(Arc::clone(host)).or_default().push((*id, start..text.len()));
            }
        }
        Self { ports: text.into(), spans }
    }
}

impl NetworkView {
    /// The ports in JSON as a host is told of them: pieces that are shared, and its own between them.
    pub(super) fn encoded_ports(&self, host: &str, mut say: impl FnMut(Piece<'_>)) {
        let encoded = self.encoded();
        let mut from = 0;
        for (id, span) in encoded.spans.get(host).into_iter().flatten() {
            say(Piece::Shared(encoded.ports.slice(from..span.start)));
            if let Some(port) = self.ports.get(id) {
                say(Piece::Own(&port.told_to(host)));
            }
            from = span.end;
        }
        say(Piece::Shared(encoded.ports.slice(from..)));
    }
}

/// A piece of what a host is told of a network's ports.
pub(super) enum Piece<'a> {
    /// JSON that all hosts share.
    Shared(Bytes),
    /// A port that is the host's own.
    Own(&'a NetworkPort),
}
