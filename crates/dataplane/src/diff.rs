//! From what is to what must be, in as few ops as that takes.
//!
//! Everything here respects ownership: what carries our mark and is not wanted goes; what does not carry
//! it is never touched, and where it stands in the way it is refused and explained (`ownership`). What
//! the keeper adds and removes ([`KeeperOwned`](crate::state::KeeperOwned)) is left to the keeper.
//!
//! The planner follows its own plan: each op that it emits is also done to `now`, a copy of what was
//! observed, by the kernel's rules ([`effects`]). So a link that must be made anew is found without its
//! addresses, and a forwarding entry that moved is not deleted afterwards.

mod ownership;
mod removal;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::effects;
use crate::nft::{NftFamily, NftTable};
use crate::op::{LinkChange, Op};
use crate::plan::{Plan, Refusal};
use crate::state::{FdbEntry, FdbTable, KernelState, Link, LinkKind, Netns, NetnsState, OWNER_MARK, Route};

use ownership::Blocked;

/// Computes the plan that brings `observed` to `desired`, and what stands in its way.
///
/// Applying the plan and comparing again yields an empty plan.
pub fn diff(desired: &KernelState, observed: &KernelState) -> (Plan, Vec<Refusal>) {
    let (blocked, refusals) = ownership::check(desired, observed);
    let mut planner = Planner { desired, now: observed.clone(), blocked, phase: Phase::Build, plan: Plan::default() };
    planner.build();
    planner.switch();
    planner.remove();
    (planner.plan, refusals)
}

#[derive(Clone, Copy)]
enum Phase {
    Build,
    Switch,
    Remove,
}

struct Planner<'a> {
    desired: &'a KernelState,
    /// What the kernel holds after the ops planned so far.
    now: KernelState,
    blocked: Blocked,
    phase: Phase,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn emit(&mut self, op: Op) {
        // An op that cannot work stays in the plan: the kernel says why not, and the next comparison
        // finds what is still missing.
        let _ = effects::apply(&mut self.now, &op);
        match self.phase {
            Phase::Build => self.plan.build.push(op),
            Phase::Switch => self.plan.switch.push(op),
            Phase::Remove => self.plan.remove.push(op),
        }
    }

    /// What must be, by namespace, where nothing foreign is in the way.
    fn wanted(&self) -> impl Iterator<Item = (&'a Netns, &'a NetnsState)> + use<'a> {
        let refused = self.blocked.netns.clone();
        self.desired.netns.iter().filter(move |(netns, _)| !refused.contains(netns))
    }

    fn wanted_link(&self, netns: &Netns, name: &str) -> Option<&'a Link> {
        self.desired.netns.get(netns)?.links.get(name)
    }

    fn link_now(&self, netns: &Netns, name: &str) -> Option<&Link> {
        self.now.netns.get(netns)?.links.get(name)
    }

    /// Tells whether addresses and entries may be put on this link: it is there, and wanted.
    fn usable(&self, netns: &Netns, link: &str) -> bool {
        self.link_now(netns, link).is_some() && !self.blocked.has_link(netns, link)
    }

    fn build(&mut self) {
        self.phase = Phase::Build;
        self.add_namespaces();
        self.delete_links_of_another_kind();
        // A link that is given IPv6 speaks at once, and what it may say is for the rules to judge.
        self.replace_nft(|table| table.family == NftFamily::Ip6);
        self.set_sysctls();
        self.add_links();
    }

    fn add_namespaces(&mut self) {
        for (netns, state) in self.wanted() {
            let Netns::Named(name) = netns else { continue };
            if !self.now.netns.contains_key(netns) {
                let alias = state.links.get("lo").and_then(|lo| lo.alias.clone());
                let alias = alias.unwrap_or_else(|| format!("{OWNER_MARK} {name}"));
                self.emit(Op::AddNetns { name: name.clone(), alias });
            }
        }
    }

    /// Makes room: a link of ours that must be of another kind is made anew.
    fn delete_links_of_another_kind(&mut self) {
        for (netns, state) in self.wanted() {
            for (name, link) in &state.links {
                let Some(present) = self.link_now(netns, name) else { continue };
                let ours = present.is_owned() && !self.blocked.has_link(netns, name);
                if ours && rank(link).is_some() && !self.same_kind(link, present) {
                    self.emit(Op::DeleteLink { netns: netns.clone(), name: name.clone() });
                }
            }
        }
    }

    fn same_kind(&self, wanted: &Link, present: &Link) -> bool {
        match (&wanted.kind, &present.kind) {
            // An end without its other end is of no use: the pair is made anew.
            (LinkKind::Veth { peer: Some((netns, peer)) }, _) => {
                wanted.kind == present.kind && self.link_now(netns, peer).is_some()
            }
            (a, b) => a == b,
        }
    }

    /// Sets what a namespace needs before its links are made: new links inherit it. Settings of links
    /// that are not there yet follow the making of the link, those of connection tracking the rules.
    fn set_sysctls(&mut self) {
        self.set_sysctls_where(|path, ns| !is_conntrack(path) && link_is_there(path, ns));
    }

    fn set_sysctls_where(&mut self, which: impl Fn(&str, &NetnsState) -> bool) {
        for (netns, state) in self.wanted() {
            for (path, value) in &state.sysctls {
                let Some(ns) = self.now.netns.get(netns) else { continue };
                let blocked = effects::sysctl_link(path).is_some_and(|link| self.blocked.has_link(netns, link));
                if ns.sysctls.get(path) != Some(value) && !blocked && which(path, ns) {
                    self.emit(Op::SetSysctl { netns: netns.clone(), path: path.clone(), value: value.clone() });
                }
            }
        }
    }

    /// Makes links, masters first. Those with settings of their own are made down, so that nothing is
    /// sent before the settings hold (a link that comes up with IPv6 speaks at once).
    fn add_links(&mut self) {
        let mut missing: Vec<(&Netns, &String, &Link)> = Vec::new();
        for (netns, state) in self.wanted() {
            let absent = |name: &str| self.link_now(netns, name).is_none() && !self.blocked.has_link(netns, name);
            missing.extend(state.links.iter().filter(|(name, _)| absent(name)).map(|(name, link)| (netns, name, link)));
        }
        missing.retain(|(_, _, link)| rank(link).is_some());
        missing.sort_by_key(|(_, _, link)| rank(link));
        let with_settings = self.links_with_settings();
        let mut to_raise = Vec::new();
        for (netns, name, link) in missing {
            if self.link_now(netns, name).is_some() {
                continue;
            }
            let (link, later) = held_down(&with_settings, netns, name, link);
            let mut peer_link = None;
            to_raise.extend(later);
            if let LinkKind::Veth { peer: Some((peer_netns, peer_name)) } = &link.kind {
                let Some(peer) = self.wanted_link(peer_netns, peer_name) else { continue };
                let (peer, later) = held_down(&with_settings, peer_netns, peer_name, peer);
                to_raise.extend(later);
                peer_link = Some(Box::new(peer));
            }
            self.emit(Op::AddLink { netns: netns.clone(), name: name.clone(), link, peer_link });
        }
        self.set_sysctls();
        for (netns, name) in to_raise {
            let change = LinkChange { up: Some(true), ..LinkChange::default() };
            self.emit(Op::SetLink { netns, name, change });
        }
    }

    fn links_with_settings(&self) -> LinkSet {
        let mut links = LinkSet::default();
        for (netns, state) in self.wanted() {
            state
                .sysctls
                .keys()
                .filter_map(|path| effects::sysctl_link(path))
                .for_each(|link| links.insert(netns, link));
        }
        links
    }

    fn switch(&mut self) {
        self.phase = Phase::Switch;
        self.change_links(|link| link.kind != LinkKind::Other);
        // Rules before addresses: a floating IP is translated from its first packet on.
        self.replace_nft(|_| true);
        if let Some(wanted) = self.desired.netns.get(&Netns::Host) {
            // Removals may have to wait, and a table that leads frames to devices must not outlive these.
            self.remove_nft(&Netns::Host, wanted, |family| family == NftFamily::Netdev);
        }
        self.set_sysctls_where(|path, _| is_conntrack(path));
        self.add_addresses();
        self.add_routes();
        self.set_fdb();
        self.set_neighbours();
        // An instance asks for others as soon as it is plugged in, and waits a second if nobody knows them.
        self.change_links(|link| link.kind == LinkKind::Other);
    }

    fn change_links(&mut self, which: impl Fn(&Link) -> bool) {
        for (netns, state) in self.wanted() {
            for (name, link) in state.links.iter().filter(|(_, link)| which(link)) {
                if self.blocked.has_link(netns, name) {
                    continue;
                }
                let Some(change) = self.link_now(netns, name).and_then(|present| change(link, present)) else {
                    continue;
                };
                self.emit(Op::SetLink { netns: netns.clone(), name: name.clone(), change });
            }
        }
    }

    fn replace_nft(&mut self, which: impl Fn(&NftTable) -> bool) {
        for (netns, state) in self.wanted() {
            for table in self.tables(netns, state).into_iter().filter(|table| which(table)) {
                let present = self.now.netns.get(netns).and_then(|ns| ns.nft.get(&table.family));
                if !present.is_some_and(|present| table.matches(present)) {
                    // If the kernel refuses the new table, the old one must not go on leading frames where nobody is any
                    // more: without one, bridges flood them, which is never wrong.
                    if present.is_some() && table.family == NftFamily::Netdev {
                        self.emit(Op::DeleteNft { netns: netns.clone(), family: table.family });
                    }
                    self.emit(Op::ReplaceNft { netns: netns.clone(), table: table.into_owned() });
                }
            }
        }
    }

    /// The tables that a namespace must have: rules for frames leave alone those of devices that are not ours.
    fn tables<'s>(&self, netns: &Netns, state: &'s NetnsState) -> Vec<Cow<'s, NftTable>> {
        let blocked = |link: &str| self.blocked.has_link(netns, link);
        let any_blocked = self.blocked.has_links_of(netns);
        let ours = |table: &'s NftTable| {
            if !(any_blocked && table.family.is_of_frames()) {
                return Some(Cow::Borrowed(table));
            }
            let rest = table.without_devices(blocked);
            (!rest.chains.is_empty()).then_some(Cow::Owned(rest))
        };
        state.nft.values().filter_map(ours).collect()
    }

    fn add_addresses(&mut self) {
        for (netns, state) in self.wanted() {
            for address in &state.addresses {
                let present = self.now.netns.get(netns).is_some_and(|ns| ns.addresses.contains(address));
                if !present && self.usable(netns, &address.link) {
                    self.emit(Op::AddAddress { netns: netns.clone(), address: address.clone() });
                }
            }
        }
    }

    fn add_routes(&mut self) {
        for (netns, state) in self.wanted() {
            // A next hop must be reachable: routes on a link come before routes by way of a neighbour.
            let mut routes: Vec<&Route> = state.routes.iter().collect();
            routes.sort_by_key(|route| route.via.is_some());
            for route in routes {
                let present = self.now.netns.get(netns).is_some_and(|ns| ns.routes.contains(route));
                let usable = route.link.as_ref().is_none_or(|link| self.usable(netns, link));
                if !present && usable {
                    self.emit(Op::AddRoute { netns: netns.clone(), route: route.clone() });
                }
            }
            for rule in &state.rules {
                if !self.now.netns.get(netns).is_some_and(|ns| ns.rules.contains(rule)) {
                    self.emit(Op::AddRule { netns: netns.clone(), rule: rule.clone() });
                }
            }
        }
    }

    fn set_fdb(&mut self) {
        for (netns, state) in self.wanted() {
            for entry in &state.fdb {
                let present = self.now.netns.get(netns).is_some_and(|ns| ns.fdb.contains(entry));
                if !present && self.usable(netns, &entry.link) && self.fits(netns, entry) {
                    self.remove_path_of(netns, entry);
                    self.emit(Op::SetFdb { netns: netns.clone(), entry: entry.clone() });
                }
            }
        }
    }

    /// The kernel does not make an entry that points at a group of nexthops one that names a host, and says
    /// nothing: it must go first. In between, frames are flooded.
    fn remove_path_of(&mut self, netns: &Netns, entry: &FdbEntry) {
        let FdbTable::Vxlan { .. } = entry.table else { return };
        let to_path = |other: &&FdbEntry| {
            other.link == entry.link && other.mac == entry.mac && matches!(other.table, FdbTable::Nexthop { .. })
        };
        if let Some(path) = self.now.netns.get(netns).and_then(|ns| ns.fdb.iter().find(to_path)).cloned() {
            self.emit(Op::DeleteFdb { netns: netns.clone(), entry: path });
        }
    }

    /// A bridge's entry needs a port: the link's bridge may have been refused.
    fn fits(&self, netns: &Netns, entry: &FdbEntry) -> bool {
        !entry.table.is_bridge() || self.link_now(netns, &entry.link).is_some_and(|link| link.master.is_some())
    }

    fn set_neighbours(&mut self) {
        for (netns, state) in self.wanted() {
            for (key, mac) in &state.neighbours {
                let present = self.now.netns.get(netns).and_then(|ns| ns.neighbours.get(key));
                if present != Some(mac) && self.usable(netns, &key.link) {
                    let (link, ip) = (key.link.clone(), key.ip);
                    self.emit(Op::SetNeighbour { netns: netns.clone(), link, ip, mac: *mac });
                }
            }
        }
    }
}

/// The link as it is to be made, and where to bring it up afterwards if it is made down.
fn held_down(with_settings: &LinkSet, netns: &Netns, name: &str, link: &Link) -> (Link, Option<(Netns, String)>) {
    if link.up && with_settings.contains(netns, name) {
        (Link { up: false, ..link.clone() }, Some((netns.clone(), name.to_owned())))
    } else {
        (link.clone(), None)
    }
}

/// Order of making; `None` for what is never made.
fn rank(link: &Link) -> Option<u8> {
    match link.kind {
        LinkKind::Bridge => Some(0),
        LinkKind::Vxlan { .. } => Some(1),
        LinkKind::Veth { .. } => Some(2),
        LinkKind::Other | LinkKind::Loopback => None,
    }
}

fn is_conntrack(path: &str) -> bool {
    path.starts_with("netfilter/")
}

fn link_is_there(path: &str, ns: &NetnsState) -> bool {
    effects::sysctl_link(path).is_none_or(|link| ns.links.contains_key(link))
}

/// What must change on a link that is there, if anything.
fn change(wanted: &Link, present: &Link) -> Option<LinkChange> {
    let mut change = LinkChange { up: (wanted.up != present.up).then_some(wanted.up), ..LinkChange::default() };
    match wanted.kind {
        LinkKind::Other => {
            // What carries our mark by the name of somebody else's link is a leftover, and goes.
            if present.is_owned() {
                return None;
            }
            change.master = changed_master(wanted, present);
        }
        LinkKind::Loopback => change.alias = changed(&wanted.alias, &present.alias),
        LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Veth { .. } => {
            change.alias = changed(&wanted.alias, &present.alias);
            change.mtu = changed(&wanted.mtu, &present.mtu);
            change.mac = changed(&wanted.mac, &present.mac);
            change.master = changed_master(wanted, present);
            if wanted.master.is_some() {
                // A port that joins another bridge starts with the kernel's flags.
                let flags = if change.master.is_some() { None } else { present.port };
                change.port = wanted.port.filter(|port| Some(*port) != flags);
            }
        }
    }
    (change != LinkChange::default()).then_some(change)
}

fn changed<T: Clone + PartialEq>(wanted: &Option<T>, present: &Option<T>) -> Option<T> {
    wanted.clone().filter(|value| present.as_ref() != Some(value))
}

fn changed_master(wanted: &Link, present: &Link) -> Option<Option<String>> {
    (wanted.master != present.master).then(|| wanted.master.clone())
}

/// Names of links, by namespace.
#[derive(Default)]
struct LinkSet(BTreeMap<Netns, BTreeSet<String>>);

impl LinkSet {
    fn insert(&mut self, netns: &Netns, link: &str) {
        self.0.entry(netns.clone()).or_default().insert(link.to_owned());
    }

    fn contains(&self, netns: &Netns, link: &str) -> bool {
        self.0.get(netns).is_some_and(|links| links.contains(link))
    }

    fn iter(&self) -> impl Iterator<Item = (&Netns, &String)> {
        self.0.iter().flat_map(|(netns, links)| links.iter().map(move |link| (netns, link)))
    }
}
