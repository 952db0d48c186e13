//! One instance at work: its engine, its sockets and its prepared messages.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evergate_kernel::Error;
use evergate_kernel::rt::{
    AddressGuard, BatchSocket, Change, Filter, LinkWatch, NetnsFd, NextHop, PacketSocket, PreparedAddress,
    PreparedRoute, PreparedRule, VrrpSocket, address_message, link_addresses, link_mac, link_state_message,
    route_message, rule_message,
};
use evergate_vrrp::announce;
use evergate_vrrp::router::{OWNER_PRIORITY, State, Version, VirtualRouter};
use evergate_vrrp::wire::{
    Advertisement, Discard, IPV4_GROUP, IPV6_GROUP, Ipv4Checksum, Received, ethernet_frame, parse_frame,
    parse_unicast_frame,
};
use tracing::{debug, info, warn};

use crate::conf::{Instance, What};
use crate::lease::Key;
use crate::vmac;

/// The largest advertisement: 255 IPv6 addresses, with all headers.
pub(crate) const FRAME_MAX: usize = 4352;

/// A network namespace with what every instance in it shares.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) netns: Arc<NetnsFd>,
    pub(crate) route: BatchSocket,
    pub(crate) watch: LinkWatch,
    /// Links by name: index, and whether they can pass packets.
    pub(crate) links: BTreeMap<String, (u32, bool)>,
    /// Opened when an instance needs it.
    guard: Option<AddressGuard>,
}

impl Space {
    pub(crate) fn open(netns: NetnsFd) -> Result<Self, Error> {
        let (route, watch) = (BatchSocket::open(&netns)?, LinkWatch::open(&netns)?);
        let mut space = Self { netns: Arc::new(netns), route, watch, links: BTreeMap::new(), guard: None };
        space.take_events();
        Ok(space)
    }

    /// Takes note of what happened to links; returns their names.
    pub(crate) fn take_events(&mut self) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        while let Some(event) = self.watch.next() {
            changed.insert(event.name.clone());
            if !event.gone {
                self.links.insert(event.name, (event.ifindex, event.up && event.running));
            } else if self.links.get(&event.name).is_some_and(|(index, _)| *index == event.ifindex) {
                self.links.remove(&event.name);
            }
        }
        changed
    }

    pub(crate) fn works(&self, link: &str) -> bool {
        self.links.get(link).is_some_and(|(_, running)| *running)
    }

    /// Lets these addresses take no packets.
    fn guard(&mut self, table: &str, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let guard = match &mut self.guard {
            Some(guard) => guard,
            None => self.guard.insert(AddressGuard::open(&self.netns)?),
        };
        guard.set(table, addresses)
    }

    /// Sends prepared messages; a refusal is logged, and does not keep the others from being applied.
    fn send(&mut self, instance: &str, doing: &str, messages: &[Vec<u8>]) {
        for result in self.route.send_batch(messages) {
            if let Err(error) = result {
                warn!(instance, "{doing}: {}", error.full());
            }
        }
    }
}

/// What others see of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Nothing,
    Backup,
    Master,
    Fault,
    Stop,
}

/// One message to add a thing, and one to remove it.
type Item = (Vec<u8>, Vec<u8>);

/// One instance.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Key,
    pub(crate) spec: Instance,
    pub(crate) engine: Option<VirtualRouter>,
    /// Why it cannot take part; empty if it can.
    pub(crate) faults: BTreeSet<String>,
    pub(crate) shown: Shown,
    /// When the speaker wakes up for it.
    pub(crate) deadline: Option<Instant>,
    /// In a group: its timer expired at this moment, and others' have not yet.
    pub(crate) deferred: Option<Instant>,
    /// When addresses are announced again, besides what the engine does.
    pub(crate) refresh: Option<Instant>,
    /// Not started yet: an earlier process may have left addresses.
    pub(crate) left_behind: bool,
    port: Option<Port>,
    items: Vec<Item>,
    /// Links that were not there when the messages were prepared.
    missing: BTreeSet<String>,
    /// Addresses that take no packets.
    guarded: BTreeSet<IpAddr>,
    checksum: Ipv4Checksum,
    /// Learns the form of the checksum from others.
    checksum_follows: bool,
    discards: BTreeMap<&'static str, u64>,
}

/// What it sends and receives with.
#[derive(Debug)]
struct Port {
    ifindex: u32,
    mac: [u8; 6],
    address: IpAddr,
    packets: PacketSocket,
    unicast: Option<VrrpSocket>,
    /// Membership in the group, for switches that listen to it. Never read.
    _member: Option<UdpSocket>,
    /// Where addresses are announced: link, its MAC, its socket.
    announcers: BTreeMap<String, ([u8; 6], PacketSocket)>,
}

impl Slot {
    pub(crate) fn new(key: Key, spec: Instance, checksum: Ipv4Checksum, checksum_follows: bool) -> Self {
        Self {
            key,
            spec,
            engine: None,
            faults: BTreeSet::new(),
            shown: Shown::Nothing,
            deadline: None,
            deferred: None,
            refresh: None,
            left_behind: true,
            port: None,
            items: Vec::new(),
            missing: BTreeSet::new(),
            guarded: BTreeSet::new(),
            checksum,
            checksum_follows,
            discards: BTreeMap::new(),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.engine.as_ref().map_or(State::Initialize, VirtualRouter::state)
    }

    /// Whether another configuration is of another virtual router, with sockets of its own.
    pub(crate) fn is_other(&self, spec: &Instance) -> bool {
        let own = &self.spec;
        (&own.interface, own.vrid, own.version, own.ipv6) != (&spec.interface, spec.vrid, spec.version, spec.ipv6)
            || (own.source, &own.unicast_peers, &own.vmac) != (spec.source, &spec.unicast_peers, &spec.vmac)
    }

    /// The links that it uses or tracks.
    pub(crate) fn concerns(&self, links: &BTreeSet<String>) -> bool {
        let devices = self.spec.addresses.iter().chain(&self.spec.excluded).map(|address| &address.dev);
        let tracked = self.spec.tracked.iter().filter(|tracked| tracked.what == What::Interface);
        let tracked = tracked.map(|tracked| &tracked.name);
        let vmac = self.spec.vmac.iter().map(|vmac| &vmac.link);
        let hops = self.spec.routes.iter().flat_map(|route| &route.hops).filter_map(|hop| hop.dev.as_ref());
        devices.chain(tracked).chain(vmac).chain(hops).chain([&self.spec.interface]).any(|link| links.contains(link))
    }

    /// Opens what it needs, unless that is done; tells whether there is a new socket to watch. Its failure is a
    /// fault, and tried again.
    pub(crate) fn open(&mut self, space: &mut Space) -> Result<bool, String> {
        let Some(&(ifindex, running)) = space.links.get(&self.spec.interface) else {
            self.port = None;
            return Err(format!("interface {} does not exist", self.spec.interface));
        };
        if self.port.as_ref().is_some_and(|port| port.ifindex != ifindex) {
            self.port = None;
        }
        if !running {
            return Err(format!("interface {} is down", self.spec.interface));
        }
        let is_new = self.port.is_none();
        if is_new {
            let port = self.open_port(space, ifindex).map_err(|error| error.full())?;
            self.port = Some(port.ok_or_else(|| {
                let what = if self.spec.ipv6 { "link-local IPv6 address" } else { "IPv4 address of its own" };
                format!("interface {} has no {what} yet", self.spec.interface)
            })?);
        }
        if let Some(vmac) = &self.spec.vmac {
            let base = (self.spec.interface.as_str(), ifindex);
            let found = vmac::ensure(space, &vmac.link, base, self.virtual_mac())?;
            // Its event is still to come.
            space.links.entry(vmac.link.clone()).or_insert((found, false)).0 = found;
        }
        Ok(is_new)
    }

    fn virtual_mac(&self) -> [u8; 6] {
        vmac::virtual_mac(self.spec.vrid, self.spec.ipv6)
    }

    fn open_port(&self, space: &mut Space, ifindex: u32) -> Result<Option<Port>, Error> {
        let Some((_, mac)) = link_mac(&mut space.route, &self.spec.interface)? else { return Ok(None) };
        let found = link_addresses(&mut space.route, ifindex)?;
        let own = found.iter().map(|net| net.addr()).find(|address| self.can_be_primary(*address));
        let Some(address) = self.spec.source.or(own) else { return Ok(None) };
        let vrid = self.spec.vrid.get();
        let unicast = !self.spec.unicast_peers.is_empty();
        let filter = match (unicast, self.spec.ipv6) {
            (true, ipv6) => Filter::VrrpUnicast { vrid, ipv6 },
            (false, true) => Filter::VrrpV6 { vrid: Some(vrid) },
            (false, false) => Filter::Vrrp { vrid: Some(vrid) },
        };
        // RFC 9568 §7.3: with an Ethernet address of its own, the virtual router is the sender.
        let is_own = self.spec.vmac.as_ref().is_some_and(|vmac| !vmac.transmit_from_base);
        Ok(Some(Port {
            ifindex,
            mac: if is_own { self.virtual_mac() } else { mac.0 },
            address,
            packets: PacketSocket::open(&space.netns, ifindex, filter)?,
            unicast: unicast.then(|| VrrpSocket::open(&space.netns, address, ifindex)).transpose()?,
            _member: if unicast { None } else { join(&space.netns, address, ifindex) },
            announcers: BTreeMap::new(),
        }))
    }

    /// The first address that is not virtual; over IPv6 and multicast, a link-local one.
    fn can_be_primary(&self, address: IpAddr) -> bool {
        let is_virtual = self.spec.addresses.iter().chain(&self.spec.excluded).any(|v| v.net.addr() == address);
        !is_virtual
            && match address {
                IpAddr::V4(_) => !self.spec.ipv6,
                IpAddr::V6(ip) => self.spec.ipv6 && (ip.is_unicast_link_local() || !self.spec.unicast_peers.is_empty()),
            }
    }

    /// Prepares what is added and removed with the role. Links that are not there yet are left out, and
    /// prepared when they appear.
    pub(crate) fn prepare(&mut self, space: &mut Space) {
        let missing = self.missing(space);
        for link in missing.difference(&self.missing) {
            warn!(instance = self.spec.name, "link {link} is not there; what belongs on it comes when it appears");
        }
        self.missing = missing;
        let items = self.make_items(space);
        let old = std::mem::replace(&mut self.items, items);
        if self.state() == State::Active {
            let gone: Vec<_> =
                old.iter().filter(|item| !self.items.contains(item)).map(|(_, r)| r.clone()).rev().collect();
            space.send(&self.spec.name, "removing what is not configured any more", &gone);
            let new: Vec<_> =
                self.items.iter().filter(|item| !old.contains(item)).map(|(add, _)| add.clone()).collect();
            space.send(&self.spec.name, "adding what is newly configured", &new);
        }
        self.open_announcers(space);
        self.refuse_packets(space);
    }

    /// RFC 9568 §6.1, Accept_Mode: whoever does not own the addresses takes no packets for them, if so configured.
    /// Always, and not only as the active: whoever has no such address, drops none.
    fn refuse_packets(&mut self, space: &mut Space) {
        let refuses = !self.spec.accept && self.spec.priority != OWNER_PRIORITY;
        let addresses = self.spec.addresses.iter().chain(&self.spec.excluded).filter(|_| refuses);
        let wanted: BTreeSet<IpAddr> = addresses.map(|address| address.net.addr()).collect();
        if wanted == self.guarded {
            return;
        }
        match space.guard(&self.table(), &wanted) {
            Ok(()) => self.guarded = wanted,
            Err(error) => {
                warn!(
                    instance = self.spec.name,
                    "its addresses take packets, although they should not: {}",
                    error.full()
                );
            }
        }
    }

    /// Of nftables. A virtual router's name in a namespace is its interface, identifier and family.
    fn table(&self) -> String {
        let family = if self.spec.ipv6 { 6 } else { 4 };
        format!("evergate-vrrp-{}-{}-{family}", self.spec.interface, self.spec.vrid)
    }

    /// Removes what stays whatever the role is.
    pub(crate) fn clear_away(&mut self, space: &mut Space) {
        if !self.guarded.is_empty()
            && let Err(error) = space.guard(&self.table(), &BTreeSet::new())
        {
            warn!(instance = self.spec.name, "a table of nftables stays behind: {}", error.full());
        }
        if let Some(vmac) = &self.spec.vmac {
            vmac::remove(space, &vmac.link);
        }
    }

    fn missing(&self, space: &Space) -> BTreeSet<String> {
        let devices = self.spec.addresses.iter().chain(&self.spec.excluded).map(|address| &address.dev);
        let hops = self.spec.routes.iter().flat_map(|route| &route.hops).filter_map(|hop| hop.dev.as_ref());
        devices.chain(hops).filter(|link| !space.links.contains_key(*link)).cloned().collect()
    }

    fn make_items(&self, space: &Space) -> Vec<Item> {
        let index = |link: &str| space.links.get(link).map(|(index, _)| *index);
        let mut items = Vec::new();
        // RFC 9568 §6.4.2: a backup takes no frames for the virtual router's Ethernet address.
        if let Some(ifindex) = self.spec.vmac.as_ref().and_then(|vmac| index(&vmac.link)) {
            items.push((link_state_message(ifindex, true), link_state_message(ifindex, false)));
        }
        for address in self.spec.addresses.iter().chain(&self.spec.excluded) {
            let Some(ifindex) = index(&address.dev) else { continue };
            let prepared = PreparedAddress {
                ifindex,
                net: address.net,
                broadcast: address.broadcast,
                label: address.label.clone(),
                scope: address.scope,
            };
            items.push((address_message(Change::Add, &prepared), address_message(Change::Remove, &prepared)));
        }
        for route in &self.spec.routes {
            let mut hops = Vec::new();
            for hop in &route.hops {
                let ifindex = hop.dev.as_deref().map(index);
                if ifindex == Some(None) {
                    break;
                }
                hops.push(NextHop { via: hop.via, ifindex: ifindex.flatten(), onlink: hop.onlink, weight: hop.weight });
            }
            if hops.len() < route.hops.len() {
                continue;
            }
            let prepared = PreparedRoute {
                destination: route.destination,
                kind: route.kind,
                hops,
                source: route.source,
                metric: route.metric,
                scope: route.scope,
                table: route.table,
                protocol: route.protocol,
            };
            items.push((route_message(Change::Add, &prepared), route_message(Change::Remove, &prepared)));
        }
        for rule in &self.spec.rules {
            let prepared = PreparedRule {
                ipv6: rule.ipv6,
                from: rule.from,
                to: rule.to,
                iif: rule.iif.clone(),
                oif: rule.oif.clone(),
                fwmark: rule.fwmark,
                priority: rule.priority,
                table: rule.table,
                protocol: rule.protocol,
            };
            items.push((rule_message(Change::Add, &prepared), rule_message(Change::Remove, &prepared)));
        }
        items
    }

    fn open_announcers(&mut self, space: &mut Space) {
        let Some(port) = &mut self.port else { return };
        port.announcers.clear();
        for address in self.spec.addresses.iter().chain(&self.spec.excluded) {
            if port.announcers.contains_key(&address.dev) {
                continue;
            }
            let opened = link_mac(&mut space.route, &address.dev).and_then(|found| {
                let Some((ifindex, mac)) = found else { return Ok(None) };
                Ok(Some((mac.0, PacketSocket::open(&space.netns, ifindex, Filter::SendOnly)?)))
            });
            match opened {
                Ok(Some(announcer)) => drop(port.announcers.insert(address.dev.clone(), announcer)),
                Ok(None) => {}
                Err(error) => {
                    warn!(instance = self.spec.name, "nothing can be announced on {}: {}", address.dev, error.full())
                }
            }
        }
    }

    /// Makes the engine, or tells it what has changed.
    pub(crate) fn configure(&mut self, priority: u8, now: Instant) {
        let Some(address) = self.port.as_ref().map(|port| port.address) else { return };
        let config = self.spec.config(priority, address, self.checksum);
        match &mut self.engine {
            Some(engine) if *engine.config() == config => {}
            Some(engine) => engine.handle_config(config, now),
            None => self.engine = Some(VirtualRouter::new(config)),
        }
    }

    /// Whether the kernel has its first address.
    pub(crate) fn is_in_place(&self, space: &mut Space) -> bool {
        let Some(first) = self.spec.addresses.first() else { return false };
        let Some(&(ifindex, _)) = space.links.get(&first.dev) else { return false };
        link_addresses(&mut space.route, ifindex).is_ok_and(|found| found.contains(&first.net))
    }

    pub(crate) fn activate(&mut self, space: &mut Space) {
        let messages: Vec<_> = self.items.iter().map(|(add, _)| add.clone()).collect();
        space.send(&self.spec.name, "becoming active", &messages);
    }

    /// Rules and routes go before the addresses that they may need.
    pub(crate) fn deactivate(&mut self, space: &mut Space) {
        let messages: Vec<_> = self.items.iter().rev().map(|(_, remove)| remove.clone()).collect();
        // What depends on an address goes with it: a route that is gone already is as wanted.
        space.send(&self.spec.name, "ceasing to be active", &messages);
    }

    /// Sends an advertisement to the group, or to each peer.
    pub(crate) fn transmit(&self, advertisement: &Advertisement) {
        let Some(port) = &self.port else { return };
        let failed = |to: &str, error: &dyn std::fmt::Display| {
            debug!(instance = self.spec.name, "an advertisement to {to} was not sent: {error}");
        };
        let Some(socket) = &port.unicast else {
            match ethernet_frame(advertisement, port.mac, port.address, self.checksum) {
                Ok(frame) => port.packets.send(&frame).unwrap_or_else(|error| failed("the group", &error)),
                Err(error) => failed("the group", &error),
            }
            return;
        };
        for peer in &self.spec.unicast_peers {
            match advertisement.message_to(port.address, *peer, self.checksum) {
                Ok(message) => {
                    socket.send(&message, *peer).unwrap_or_else(|error| failed(&peer.to_string(), &error));
                }
                Err(error) => failed(&peer.to_string(), &error),
            }
        }
    }

    /// One gratuitous ARP or unsolicited neighbour advertisement per address.
    pub(crate) fn announce(&self) {
        let Some(port) = &self.port else { return };
        for address in self.spec.addresses.iter().chain(&self.spec.excluded) {
            if let Some((mac, socket)) = port.announcers.get(&address.dev)
                && let Err(error) = socket.send(&announce::frame(*mac, address.net.addr()))
            {
                debug!(instance = self.spec.name, "{} was not announced: {error}", address.net);
            }
        }
    }

    /// The socket to watch.
    pub(crate) fn packets(&self) -> Option<&PacketSocket> {
        self.port.as_ref().map(|port| &port.packets)
    }

    /// Takes one advertisement, if there is one; true if there was anything.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], now: Instant) -> bool {
        let Some(port) = &self.port else { return false };
        let length = match port.packets.recv(buffer) {
            Ok(Some(length)) => length,
            Ok(None) => return false,
            Err(error) => {
                // The interface went down; its link event says so, too.
                debug!(instance = self.spec.name, "receiving: {error}");
                return false;
            }
        };
        let Some(engine) = &mut self.engine else { return true };
        let expect = engine.config().expectation();
        let parsed = if port.unicast.is_some() {
            parse_unicast_frame(&buffer[..length], &expect, &self.spec.unicast_peers)
        } else {
            parse_frame(&buffer[..length], &expect)
        };
        match parsed {
            Ok(received) => {
                engine.handle_advertisement(received.source, &received.advertisement, now);
                self.follow(&received, now);
            }
            Err(discard) => self.count(discard),
        }
        true
    }

    /// Each reason is logged once; its number is told at the end.
    fn count(&mut self, discard: Discard) {
        let count = self.discards.entry(discard.name()).or_default();
        *count += 1;
        if *count == 1 && discard != Discard::OwnAddress {
            warn!(instance = self.spec.name, reason = discard.name(), "an advertisement was discarded");
        }
    }

    pub(crate) fn discards(&self) -> &BTreeMap<&'static str, u64> {
        &self.discards
    }

    /// Writes the checksum as the others do.
    fn follow(&mut self, received: &Received, now: Instant) {
        if !self.checksum_follows || self.spec.version != Version::V3 || self.spec.ipv6 {
            return;
        }
        let theirs = if received.remarks.old_checksum { Ipv4Checksum::PseudoHeader } else { Ipv4Checksum::MessageOnly };
        if theirs == self.checksum {
            return;
        }
        info!(instance = self.spec.name, from = %received.source, "its form of the checksum is used from now on: {theirs:?}");
        self.checksum = theirs;
        if let Some(engine) = &self.engine {
            let priority = engine.config().priority;
            self.configure(priority, now);
        }
    }

    /// How long an earlier process may have been gone.
    pub(crate) fn adoption_time(&self) -> Duration {
        Duration::from_millis(u64::from(self.spec.interval_cs) * 10) * 3
    }
}

/// Joins the group as an ordinary socket does, so that switches that listen to memberships pass it on. Without
/// it, the packet socket still works.
fn join(netns: &NetnsFd, address: IpAddr, ifindex: u32) -> Option<UdpSocket> {
    let join = || -> std::io::Result<UdpSocket> {
        match address {
            IpAddr::V4(own) => {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.join_multicast_v4(&IPV4_GROUP, &own)?;
                Ok(socket)
            }
            IpAddr::V6(_) => {
                let socket = UdpSocket::bind("[::]:0")?;
                socket.join_multicast_v6(&IPV6_GROUP, ifindex)?;
                Ok(socket)
            }
        }
    };
    match netns.run(join) {
        Ok(Ok(socket)) => Some(socket),
        Ok(Err(error)) => {
            debug!("no membership in the group: {error}");
            None
        }
        Err(error) => {
            debug!("no membership in the group: {}", error.full());
            None
        }
    }
}
