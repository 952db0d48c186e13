//! Ops to messages, and messages in few sends.
//!
//! Consecutive ops of one namespace gather in a [`Batch`] and go out in one send; an op of another
//! namespace, or one that needs to know the outcome of a gathered one, sends it first. Whatever the order
//! of ops means is thereby kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use evergate_dataplane::op::LinkChange;
use evergate_dataplane::state::{FdbTable, Link, LinkKind, Route, Rule};
use evergate_dataplane::{Netns, Op};

use crate::error::{Cause, Error};
use crate::kernel::{Kernel, is_ours};
use crate::nft;
use crate::route::link::{self, Peer, RawLink, Target};
use crate::route::{address, neighbour, routes, rule};
use crate::socket::is_already_so;

/// Applies a list of ops.
pub(crate) struct Run<'a> {
    kernel: &'a mut Kernel,
    ops: &'a [Op],
    results: Vec<Result<(), Error>>,
    batch: Batch,
    /// What link names stand for, as far as it was looked up or chosen in this run.
    indexes: BTreeMap<(Netns, String), u32>,
}

/// What is to be sent next.
#[derive(Debug, Default)]
struct Batch {
    /// The namespace of all of it; `None` while nothing is gathered.
    netns: Option<Netns>,
    /// Messages, each with its op.
    messages: Vec<(usize, Vec<u8>)>,
    /// What is left to do in other namespaces once an op has succeeded in this one.
    elsewhere: Vec<(usize, Netns, Vec<Vec<u8>>)>,
    /// Kernel settings, each with its op. Never together with messages.
    sysctls: Vec<(usize, String, String)>,
    /// Links that gathered ops make or remove.
    unsettled: BTreeSet<(Netns, String)>,
    /// The ops that make them.
    created: Vec<usize>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(kernel: &'a mut Kernel, ops: &'a [Op]) -> Self {
        let results = ops.iter().map(|_| Ok(())).collect();
        Self { kernel, ops, results, batch: Batch::default(), indexes: BTreeMap::new() }
    }

    pub(crate) fn apply(mut self) -> Vec<Result<(), Error>> {
        for (number, op) in self.ops.iter().enumerate() {
            if let Err(cause) = self.gather(number, op) {
                self.fail(number, cause);
            }
        }
        self.flush();
        self.results
    }

    /// Adds the op to the batch, or carries it out.
    fn gather(&mut self, number: usize, op: &Op) -> Result<(), Cause> {
        match op {
            Op::AddNetns { name, alias } => {
                self.flush();
                self.kernel.add_netns(name, alias)
            }
            Op::DeleteNetns { name } => {
                self.flush();
                self.indexes.clear();
                self.kernel.delete_netns(name)
            }
            Op::ReplaceNft { netns, table } => {
                self.flush();
                self.send_nft(netns, nft::replace(table)?)
            }
            Op::DeleteNft { netns, family } => {
                self.flush();
                self.send_nft(netns, nft::delete(*family))
            }
            Op::SetSysctl { netns, path, value } => {
                check_sysctl(path)?;
                if self.batch.netns.as_ref() != Some(netns) || !self.batch.messages.is_empty() {
                    self.flush();
                }
                self.batch.netns = Some(netns.clone());
                self.batch.sysctls.push((number, path.clone(), value.clone()));
                Ok(())
            }
            Op::AddLink { netns, .. }
            | Op::SetLink { netns, .. }
            | Op::DeleteLink { netns, .. }
            | Op::AddAddress { netns, .. }
            | Op::DeleteAddress { netns, .. }
            | Op::AddRoute { netns, .. }
            | Op::DeleteRoute { netns, .. }
            | Op::AddRule { netns, .. }
            | Op::DeleteRule { netns, .. }
            | Op::SetNeighbour { netns, .. }
            | Op::DeleteNeighbour { netns, .. }
            | Op::SetFdb { netns, .. }
            | Op::DeleteFdb { netns, .. } => self.gather_route(number, op, netns),
        }
    }

    fn send_nft(&mut self, netns: &Netns, batch: nft::Batch) -> Result<(), Cause> {
        let socket = self.kernel.space(netns)?.nft.as_mut();
        batch.send(socket.ok_or_else(|| Cause::Invalid("this kernel has no nftables".to_owned()))?)
    }

    /// Adds an op that route netlink carries out.
    fn gather_route(&mut self, number: usize, op: &Op, netns: &Netns) -> Result<(), Cause> {
        let elsewhere = self.batch.netns.as_ref() != Some(netns);
        if elsewhere || !self.batch.sysctls.is_empty() || self.depends_on_batch(op) {
            self.flush();
        }
        self.batch.netns = Some(netns.clone());
        let made = match op {
            Op::AddLink { name, link, peer_link, .. } => self.add_link(number, netns, name, link, peer_link.as_deref()),
            Op::SetLink { name, change, .. } => self.set_link(netns, name, change),
            Op::DeleteLink { name, .. } => {
                // Of a veth, the other end goes as well, whatever its name is.
                self.indexes.clear();
                self.batch.unsettled.insert((netns.clone(), name.clone()));
                Ok(vec![link::delete(name)])
            }
            _ => self.encode(op).map(|message| vec![message]),
        };
        match made {
            Ok(messages) => self.batch.messages.extend(messages.into_iter().map(|message| (number, message))),
            // With the link or the namespace went all that was on it.
            Err(Cause::NoLink(_) | Cause::NoNetns(_)) if is_removal(op) => {}
            Err(cause) => return Err(cause),
        }
        Ok(())
    }

    /// Tells whether the op is about a link that a gathered one makes or removes, or might remove the
    /// bridge of one that is made.
    fn depends_on_batch(&self, op: &Op) -> bool {
        if matches!(op, Op::DeleteLink { .. }) && !self.batch.created.is_empty() {
            return true;
        }
        !self.batch.unsettled.is_empty() && links_of(op).iter().any(|link| self.batch.unsettled.contains(link))
    }

    /// The message of an op about something on a link.
    fn encode(&mut self, op: &Op) -> Result<Vec<u8>, Cause> {
        Ok(match op {
            Op::AddAddress { netns, address } => address::add(self.index(netns, &address.link)?, address.net),
            Op::DeleteAddress { netns, address } => address::delete(self.index(netns, &address.link)?, address.net),
            Op::AddRoute { netns, route } => routes::add(route, self.route_link(netns, route)?)?,
            Op::DeleteRoute { netns, route } => routes::delete(route, self.route_link(netns, route)?)?,
            Op::AddRule { rule, .. } => rule::add(rule)?,
            Op::DeleteRule { rule, .. } => rule::delete(rule)?,
            Op::SetNeighbour { netns, link, ip, mac } => neighbour::set(self.index(netns, link)?, *ip, *mac),
            Op::DeleteNeighbour { netns, link, ip } => neighbour::delete(self.index(netns, link)?, *ip),
            Op::SetFdb { netns, entry } => neighbour::set_fdb(self.index(netns, &entry.link)?, entry.mac, &entry.table),
            Op::DeleteFdb { netns, entry } => {
                neighbour::delete_fdb(self.index(netns, &entry.link)?, entry.mac, &entry.table)
            }
            Op::AddNetns { .. }
            | Op::DeleteNetns { .. }
            | Op::AddLink { .. }
            | Op::SetLink { .. }
            | Op::DeleteLink { .. }
            | Op::SetSysctl { .. }
            | Op::ReplaceNft { .. }
            | Op::DeleteNft { .. } => return Err(Cause::Invalid("it is not a single message".to_owned())),
        })
    }

    fn route_link(&mut self, netns: &Netns, route: &Route) -> Result<Option<u32>, Cause> {
        route.link.as_ref().map(|link| self.index(netns, link)).transpose()
    }

    /// Index of a link that must exist.
    fn index(&mut self, netns: &Netns, name: &str) -> Result<u32, Cause> {
        let key = (netns.clone(), name.to_owned());
        if let Some(index) = self.indexes.get(&key) {
            return Ok(*index);
        }
        let link = self.kernel.link(netns, name)?.ok_or_else(|| Cause::NoLink(name.to_owned()))?;
        self.indexes.insert(key, link.index);
        Ok(link.index)
    }

    fn master(&mut self, netns: &Netns, link: &Link) -> Result<Option<u32>, Cause> {
        link.master.as_ref().map(|master| self.index(netns, master)).transpose()
    }

    /// The messages that make a link; what its other end needs elsewhere is remembered.
    fn add_link(
        &mut self,
        number: usize,
        netns: &Netns,
        name: &str,
        link: &Link,
        peer_link: Option<&Link>,
    ) -> Result<Vec<Vec<u8>>, Cause> {
        let index = self.kernel.unused_index();
        let master = self.master(netns, link)?;
        let mut messages = Vec::new();
        if let LinkKind::Veth { peer: Some((peer_netns, peer_name)) } = &link.kind {
            let peer_link =
                peer_link.ok_or_else(|| Cause::Invalid("the veth's other end is not described".to_owned()))?;
            let peer_index = self.kernel.unused_index();
            let peer_master = self.master(peer_netns, peer_link)?;
            let space = self.kernel.space(peer_netns)?;
            let fd = (peer_netns != netns).then_some(&space.netns);
            let peer = Peer { name: peer_name, index: peer_index, netns: fd, link: peer_link };
            messages.push(link::create(name, index, link, Some(peer))?);
            messages.extend(link::settle(Target::Index(index), link, master)?);
            let settling = link::settle(Target::Index(peer_index), peer_link, peer_master)?;
            self.batch.elsewhere.push((number, peer_netns.clone(), settling));
            self.batch.unsettled.insert((peer_netns.clone(), peer_name.clone()));
        } else {
            messages.push(link::create(name, index, link, None)?);
            messages.extend(link::settle(Target::Index(index), link, master)?);
        }
        self.batch.created.push(number);
        self.batch.unsettled.insert((netns.clone(), name.to_owned()));
        Ok(messages)
    }

    fn set_link(&mut self, netns: &Netns, name: &str, change: &LinkChange) -> Result<Vec<Vec<u8>>, Cause> {
        let master = match &change.master {
            Some(Some(master)) => Some(self.index(netns, master)?),
            Some(None) | None => None,
        };
        link::set(Target::Name(name), change, master)
    }

    /// Sends what was gathered, and distributes the answers.
    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let Some(netns) = batch.netns else { return };
        self.write_sysctls(&netns, batch.sysctls);
        self.send(&netns, batch.messages);
        let failed: Vec<usize> = batch.created.into_iter().filter(|number| self.results[*number].is_err()).collect();
        failed.iter().for_each(|number| self.retry_link(*number));
        // One send per namespace, again.
        let mut elsewhere: BTreeMap<Netns, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
        for (number, netns, messages) in batch.elsewhere {
            if !failed.contains(&number) {
                let messages = messages.into_iter().map(|message| (number, message));
                elsewhere.entry(netns).or_default().extend(messages);
            }
        }
        for (netns, messages) in elsewhere {
            self.send(&netns, messages);
        }
    }

    fn send(&mut self, netns: &Netns, messages: Vec<(usize, Vec<u8>)>) {
        if messages.is_empty() {
            return;
        }
        let (numbers, mut messages): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        let answers = match self.kernel.space(netns) {
            Ok(space) => space.route.exchange(&mut messages),
            Err(_) => messages.iter().map(|_| Err(Cause::NoNetns(netns.to_string()))).collect(),
        };
        for ((number, message), answer) in numbers.into_iter().zip(&messages).zip(answers) {
            match answer {
                Ok(()) => {}
                Err(Cause::Kernel(refusal)) if is_already_so(message, refusal.errno) => {}
                Err(Cause::NoNetns(_)) if is_removal(&self.ops[number]) => {}
                Err(cause) => self.fail(number, cause),
            }
        }
    }

    /// Keeps the first failure of an op: the others follow from it.
    fn fail(&mut self, number: usize, cause: Cause) {
        if self.results[number].is_ok() {
            self.results[number] = Err(Error::new(describe(&self.ops[number]), cause));
        }
    }

    /// Looks closer at a link that could not be made because something is there already.
    fn retry_link(&mut self, number: usize) {
        let exists = self.results[number].as_ref().is_err_and(|error| error.errno() == Some(libc::EEXIST));
        let Op::AddLink { netns, name, link, peer_link } = &self.ops[number] else { return };
        if exists {
            self.results[number] = Ok(());
            if let Err(cause) = self.make_link_alone(number, netns, name, link, peer_link.as_deref()) {
                self.fail(number, cause);
            }
        }
    }

    fn make_link_alone(
        &mut self,
        number: usize,
        netns: &Netns,
        name: &str,
        link: &Link,
        peer_link: Option<&Link>,
    ) -> Result<(), Cause> {
        if let Some(found) = self.kernel.link(netns, name)? {
            return self.take_link(number, netns, &found, link, peer_link);
        }
        if let LinkKind::Veth { peer: Some((peer_netns, peer_name)) } = &link.kind
            && self.kernel.link(peer_netns, peer_name)?.is_some()
        {
            return Err(Cause::InTheWay(format!("its other end's name, {peer_name}, is taken in {peer_netns}")));
        }
        // Neither name is taken, so an index was. The next ones are chosen by now.
        let messages = self.add_link(number, netns, name, link, peer_link)?;
        let batch = std::mem::take(&mut self.batch);
        self.send_all(number, netns, messages);
        for (number, netns, messages) in batch.elsewhere {
            if self.results[number].is_ok() {
                self.send_all(number, &netns, messages);
            }
        }
        Ok(())
    }

    /// Takes an existing link of ours for the one that was to be made, if it is the same.
    fn take_link(
        &mut self,
        number: usize,
        netns: &Netns,
        found: &RawLink,
        link: &Link,
        peer_link: Option<&Link>,
    ) -> Result<(), Cause> {
        if !is_ours(found) {
            return Err(Cause::InTheWay("a link of this name exists that Evergate did not make".to_owned()));
        }
        if !self.is_same(netns, found, &link.kind)? {
            return Err(Cause::InTheWay("a link of this name exists that is not the same".to_owned()));
        }
        self.adjust(number, netns, found, link)?;
        if let (LinkKind::Veth { peer: Some((netns, name)) }, Some(peer_link)) = (&link.kind, peer_link)
            && let Some(found) = self.kernel.link(netns, name)?
        {
            self.adjust(number, netns, &found, peer_link)?;
        }
        Ok(())
    }

    /// Sets what differs on a link, and that only: an address set again makes the kernel forget neighbours.
    fn adjust(&mut self, number: usize, netns: &Netns, found: &RawLink, link: &Link) -> Result<(), Cause> {
        let master = self.master(netns, link)?;
        let change = LinkChange {
            up: Some(link.up).filter(|up| *up != found.up),
            mtu: link.mtu.filter(|_| link.mtu != found.mtu),
            mac: link.mac.filter(|_| link.mac != found.mac),
            master: Some(link.master.clone()).filter(|_| master != found.master),
            alias: link.alias.clone().filter(|_| link.alias != found.alias),
            port: link.port.filter(|_| link.port != found.port || master != found.master),
        };
        self.send_all(number, netns, link::set(Target::Index(found.index), &change, master)?);
        Ok(())
    }

    fn send_all(&mut self, number: usize, netns: &Netns, messages: Vec<Vec<u8>>) {
        self.send(netns, messages.into_iter().map(|message| (number, message)).collect());
    }

    /// Tells whether a link is of the kind that is wanted; of a veth, whether it leads where it should.
    fn is_same(&mut self, netns: &Netns, found: &RawLink, kind: &LinkKind) -> Result<bool, Cause> {
        match kind {
            LinkKind::Bridge => Ok(found.kind == "bridge"),
            LinkKind::Vxlan { vni, local, port } => {
                Ok(found.vxlan.is_some_and(|vxlan| (vxlan.vni, vxlan.local, vxlan.port) == (*vni, Some(*local), *port)))
            }
            LinkKind::Veth { peer: Some((peer_netns, peer_name)) } => {
                let Some(peer) = self.kernel.link(peer_netns, peer_name)? else { return Ok(false) };
                let points_back = peer.peer_index == Some(found.index) && found.peer_index == Some(peer.index);
                Ok(found.kind == "veth" && points_back && self.is_there(netns, found, peer_netns)?)
            }
            LinkKind::Veth { peer: None } | LinkKind::Other | LinkKind::Loopback => Ok(false),
        }
    }

    /// Tells whether the other end of a veth is in the given namespace.
    fn is_there(&mut self, netns: &Netns, found: &RawLink, peer_netns: &Netns) -> Result<bool, Cause> {
        let Some(number) = found.peer_netns else { return Ok(netns == peer_netns) };
        let request = link::get_netns_number(&self.kernel.space(peer_netns)?.netns);
        let answer = self.kernel.space(netns)?.route.get(request)?;
        Ok(answer.as_deref().and_then(link::read_netns_number) == Some(number))
    }

    /// Settings are files that show the namespace of the thread that opens them, so one thread goes there
    /// and writes all.
    fn write_sysctls(&mut self, netns: &Netns, sysctls: Vec<(usize, String, String)>) {
        if sysctls.is_empty() {
            return;
        }
        let write = |(number, path, value): &(usize, String, String)| {
            (*number, fs::write(format!("/proc/sys/net/{path}"), value))
        };
        let written = self
            .kernel
            .space(netns)
            .and_then(|space| Ok(space.netns.inside(|| sysctls.iter().map(write).collect::<Vec<_>>())?));
        match written {
            Ok(results) => {
                for (number, result) in results {
                    if let Err(error) = result {
                        self.fail(number, error.into());
                    }
                }
            }
            Err(cause) => {
                let text = cause.to_string();
                for (number, ..) in &sysctls {
                    self.fail(*number, Cause::Invalid(text.clone()));
                }
            }
        }
    }
}

/// The message of one op, for later.
pub(crate) fn encode_one(kernel: &mut Kernel, op: &Op) -> Result<Vec<u8>, Error> {
    Run::new(kernel, &[]).encode(op).map_err(|cause| Error::new(format!("prepare to {}", describe(op)), cause))
}

/// A setting's path must stay below `/proc/sys/net`.
fn check_sysctl(path: &str) -> Result<(), Cause> {
    if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == ".." || part.is_empty()) {
        return Err(Cause::Invalid(format!("'{path}' is not a path below /proc/sys/net")));
    }
    Ok(())
}

/// The links that an op is about, or refers to.
fn links_of(op: &Op) -> Vec<(Netns, String)> {
    let one = |netns: &Netns, name: &str| vec![(netns.clone(), name.to_owned())];
    match op {
        Op::AddLink { netns, name, link, peer_link } => {
            let mut links = one(netns, name);
            links.extend(link.master.iter().map(|master| (netns.clone(), master.clone())));
            if let LinkKind::Veth { peer: Some((peer_netns, peer)) } = &link.kind {
                links.push((peer_netns.clone(), peer.clone()));
                let master = peer_link.iter().filter_map(|peer| peer.master.as_ref());
                links.extend(master.map(|master| (peer_netns.clone(), master.clone())));
            }
            links
        }
        Op::SetLink { netns, name, change } => {
            let mut links = one(netns, name);
            links.extend(change.master.iter().flatten().map(|master| (netns.clone(), master.clone())));
            links
        }
        Op::DeleteLink { netns, name } => one(netns, name),
        Op::AddAddress { netns, address } | Op::DeleteAddress { netns, address } => one(netns, &address.link),
        // Which link a route without one leaves by is found from the addresses that the others have.
        Op::AddRoute { netns, route } | Op::DeleteRoute { netns, route } => {
            route.link.as_ref().map_or_else(Vec::new, |link| one(netns, link))
        }
        Op::SetNeighbour { netns, link, .. } | Op::DeleteNeighbour { netns, link, .. } => one(netns, link),
        Op::SetFdb { netns, entry } | Op::DeleteFdb { netns, entry } => one(netns, &entry.link),
        Op::AddRule { .. }
        | Op::DeleteRule { .. }
        | Op::AddNetns { .. }
        | Op::DeleteNetns { .. }
        | Op::SetSysctl { .. }
        | Op::ReplaceNft { .. }
        | Op::DeleteNft { .. } => Vec::new(),
    }
}

/// Tells whether the op's purpose is that something be gone.
fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteNetns { .. }
            | Op::DeleteLink { .. }
            | Op::DeleteAddress { .. }
            | Op::DeleteRoute { .. }
            | Op::DeleteRule { .. }
            | Op::DeleteNeighbour { .. }
            | Op::DeleteFdb { .. }
            | Op::DeleteNft { .. }
    )
}

/// The op in words, to come after "failed to".
fn describe(op: &Op) -> String {
    match op {
        Op::AddNetns { name, .. } => format!("add network namespace {name}"),
        Op::DeleteNetns { name } => format!("delete network namespace {name}"),
        Op::AddLink { netns, name, link, .. } => format!("add {} {name} in {netns}", kind_word(&link.kind)),
        Op::SetLink { netns, name, .. } => format!("change link {name} in {netns}"),
        Op::DeleteLink { netns, name } => format!("delete link {name} in {netns}"),
        Op::AddAddress { netns, address } => format!("add address {} to {} in {netns}", address.net, address.link),
        Op::DeleteAddress { netns, address } => {
            format!("delete address {} from {} in {netns}", address.net, address.link)
        }
        Op::AddRoute { netns, route } => format!("add route {} in {netns}", route_words(route)),
        Op::DeleteRoute { netns, route } => format!("delete route {} in {netns}", route_words(route)),
        Op::AddRule { netns, rule } => format!("add rule {} in {netns}", rule_words(rule)),
        Op::DeleteRule { netns, rule } => format!("delete rule {} in {netns}", rule_words(rule)),
        Op::SetNeighbour { netns, link, ip, mac } => format!("set neighbour {ip} at {mac} on {link} in {netns}"),
        Op::DeleteNeighbour { netns, link, ip } => format!("delete neighbour {ip} on {link} in {netns}"),
        Op::SetFdb { netns, entry } => {
            format!("forward {} by {}{} in {netns}", entry.mac, entry.link, to_words(&entry.table))
        }
        Op::DeleteFdb { netns, entry } => {
            format!("stop forwarding {} by {}{} in {netns}", entry.mac, entry.link, to_words(&entry.table))
        }
        Op::SetSysctl { netns, path, value } => format!("set {path} to {value} in {netns}"),
        Op::ReplaceNft { netns, .. } => format!("replace the nftables table in {netns}"),
        Op::DeleteNft { netns, .. } => format!("delete the nftables table in {netns}"),
    }
}

fn kind_word(kind: &LinkKind) -> &'static str {
    match kind {
        LinkKind::Bridge => "bridge",
        LinkKind::Vxlan { .. } => "vxlan",
        LinkKind::Veth { .. } => "veth",
        LinkKind::Other => "foreign link",
        LinkKind::Loopback => "loopback",
    }
}

fn to_words(table: &FdbTable) -> String {
    match table {
        FdbTable::Bridge => String::new(),
        FdbTable::Vxlan { dst } => format!(" to {dst}"),
    }
}

fn route_words(route: &Route) -> String {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let link = route.link.as_ref().map(|link| format!(" dev {link}")).unwrap_or_default();
    format!("{}{via}{link} table {}", route.destination, route.table)
}

fn rule_words(rule: &Rule) -> String {
    let from = rule.from.map(|net| format!(" from {net}")).unwrap_or_default();
    let to = rule.to.map(|net| format!(" to {net}")).unwrap_or_default();
    let iif = rule.iif.as_ref().map(|iif| format!(" iif {iif}")).unwrap_or_default();
    format!("{}:{from}{to}{iif} table {}", rule.priority, rule.table)
}
