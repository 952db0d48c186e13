//! Which forwarding entries share a path, so that a takeover is one message however many routers move.
//!
//! A *path* leads to one host. The entries of all followed routers that are there point at it, and so they move
//! together when the path is led elsewhere ([`evergate_kernel::rt::path_message`]). Routers whose active copies
//! are on one host do not always go to the same host from there: when only some of a path's routers move, their
//! entries are pointed at another path, one by one, and from then on they are a group of their own. So what
//! moved together once, moves together from then on.
//!
//! Claims of routers that move at once come in several datagrams. A move that takes a path's last router along
//! is made at once; one that leaves others behind waits for [`GATHER`], in case they follow.
//!
//! A path that several others could be merged with costs one more message in a failover. [`Paths::set`], which
//! the patrol calls for every router in turn, points entries at the oldest path to their host; that is forgone
//! while the paths to a host are few ([`MERGE`]), because they tell who moves with whom.
//!
//! Without nexthop objects in the kernel each entry names its host itself, and a takeover costs one message per
//! entry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_dataplane::state::FdbTable;
use evergate_kernel::rt::{self, FoundPaths};
use evergate_model::{Mac, RouterId};

use super::effect::{Action, Batch, Purpose};
use crate::protocol::{FollowEntry, Place};

/// How long a router that leaves others of its path behind waits for them to follow: the datagrams of one burst
/// arrive within a millisecond on an idle host.
const GATHER: Duration = Duration::from_millis(5);

/// Paths to one host that are not merged.
const MERGE: usize = 8;

/// Where every followed router's entries lead.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// `None`: each entry names its host.
    shared: Option<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    paths: BTreeMap<u16, Path>,
    /// The path that a router's entries point at.
    seats: BTreeMap<RouterId, u16>,
    /// Numbers that are somebody else's.
    taken: BTreeSet<u16>,
    /// What each entry in the kernel points at, as far as it was found or set here; `None`: at a host.
    entries: BTreeMap<(u32, Mac), Option<u16>>,
    /// Routers that are elsewhere, and whose path is not led there yet.
    leaving: BTreeMap<RouterId, IpAddr>,
    gather_until: Option<Instant>,
}

#[derive(Debug)]
struct Path {
    to: IpAddr,
    members: BTreeSet<RouterId>,
}

impl Paths {
    /// Takes what an earlier process left; `None` where the kernel cannot do it.
    pub(super) fn new(found: Option<FoundPaths>) -> Self {
        let path = |(number, to)| (number, Path { to, members: BTreeSet::new() });
        let shared = found.map(|found| Shared {
            paths: found.paths.into_iter().map(path).collect(),
            taken: found.taken,
            entries: found.entries,
            ..Shared::default()
        });
        Self { shared }
    }

    /// Points a router's entries to a host, whatever they pointed at; also repairs. `None`: nobody is known to
    /// have the router. Unknown addresses are flooded, which reaches whoever has it.
    pub(super) fn set(&mut self, router: RouterId, entries: &[FollowEntry], to: Option<IpAddr>) -> Option<Batch> {
        let mut work = Work::new(router);
        match (to, &mut self.shared) {
            (Some(to), None) => work.point_at_host(entries, to),
            (Some(to), Some(shared)) => shared.set(router, entries, to, &mut work),
            (None, shared) => {
                work.remove(entries);
                if let Some(shared) = shared {
                    shared.forget(entries);
                    shared.leave(router, &mut work);
                }
            }
        }
        work.finish()
    }

    /// Notes that a router went to another host; what can be done at once is.
    pub(super) fn go(&mut self, router: RouterId, entries: &[FollowEntry], to: IpAddr, now: Instant) -> Option<Batch> {
        let Some(shared) = &mut self.shared else { return self.set(router, entries, Some(to)) };
        let Some(&number) = shared.seats.get(&router) else { return self.set(router, entries, Some(to)) };
        if shared.paths.get(&number).is_some_and(|path| path.to == to) {
            shared.leaving.remove(&router);
            return None;
        }
        shared.leaving.insert(router, to);
        let mut work = Work::new(router);
        if !shared.lead(number, to, &mut work) {
            shared.gather_until.get_or_insert(now + GATHER);
        }
        work.finish()
    }

    /// Takes a router's entries out of its path, and leaves them as they are: its own copy is active, so frames
    /// to it do not come to the tunnel.
    pub(super) fn park(&mut self, router: RouterId) -> Option<Batch> {
        let mut work = Work::new(router);
        self.shared.as_mut()?.leave(router, &mut work);
        work.finish()
    }

    /// Forgets entries that are followed no more. Another router's may have the same address by now.
    pub(super) fn remove(&mut self, router: RouterId, entries: &[FollowEntry]) -> Option<Batch> {
        let mut work = Work::new(router);
        work.remove(entries);
        if let Some(shared) = &mut self.shared {
            shared.forget(entries);
        }
        work.finish()
    }

    /// Forgets entries that somebody else has set to something else.
    pub(super) fn forget(&mut self, entries: &[FollowEntry]) {
        if let Some(shared) = &mut self.shared {
            shared.forget(entries);
        }
    }

    /// Does not believe any more that a router's entries are what they were set to: the kernel refused to.
    pub(super) fn distrust(&mut self, entries: &[FollowEntry]) {
        if let Some(shared) = &mut self.shared {
            // To be removed before they are set again.
            shared.entries.extend(entries.iter().map(|entry| (key(entry), None)));
        }
    }

    /// When routers that wait for others to follow are to go alone.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.shared.as_ref()?.gather_until
    }

    /// The routers that have waited long enough, and where each is.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(RouterId, IpAddr)> {
        let Some(shared) = &mut self.shared else { return Vec::new() };
        if shared.gather_until.take_if(|until| *until <= now).is_none() {
            return Vec::new();
        }
        std::mem::take(&mut shared.leaving).into_iter().collect()
    }

    /// Removes paths that nothing uses: what an earlier process left, and control did not mention.
    pub(super) fn sweep(&mut self) -> Vec<Batch> {
        let Some(shared) = &mut self.shared else { return Vec::new() };
        let unused: Vec<u16> =
            shared.paths.iter().filter(|(_, path)| path.members.is_empty()).map(|(number, _)| *number).collect();
        let remove = |number: u16| {
            let mut work = Work::new(RouterId::from_u128(0));
            shared.remove_path(number, &mut work);
            work.finish()
        };
        unused.into_iter().filter_map(remove).collect()
    }
}

impl Shared {
    fn set(&mut self, router: RouterId, entries: &[FollowEntry], to: IpAddr, work: &mut Work) {
        self.leaving.remove(&router);
        let Some(number) = self.choose(router, entries, to) else {
            // No number is left: thousands of paths were made, or somebody took them.
            self.leave(router, work);
            self.entries.extend(entries.iter().map(|entry| (key(entry), None)));
            return work.point_at_host(entries, to);
        };
        let before = self.seats.insert(router, number);
        self.paths.entry(number).or_insert_with(|| Path { to, members: BTreeSet::new() }).members.insert(router);
        work.make_path(number, to);
        for entry in entries {
            if self.entries.insert(key(entry), Some(number)) == Some(None) {
                work.remove(std::slice::from_ref(entry));
            }
            work.point_at_path(entry, number, to);
        }
        if let Some(before) = before.filter(|before| *before != number) {
            self.quit(router, before, work);
        }
    }

    /// The path that a router's entries are to point at: the one they do if it leads there, else the oldest that
    /// does, else a new one.
    fn choose(&self, router: RouterId, entries: &[FollowEntry], to: IpAddr) -> Option<u16> {
        let leads_there = |number: &u16| self.paths.get(number).is_some_and(|path| path.to == to);
        let found = || {
            let mut at = entries.iter().map(|entry| self.entries.get(&key(entry)).copied().flatten());
            let first = at.next().flatten()?;
            at.all(|other| other == Some(first)).then_some(first)
        };
        let mut there = self.paths.iter().filter(|(_, path)| path.to == to).map(|(number, _)| *number);
        let oldest = there.next();
        let are_few = there.count() < MERGE;
        let now = self.seats.get(&router).copied().or_else(found).filter(leads_there).filter(|_| are_few);
        now.or(oldest).or_else(|| self.unused())
    }

    fn unused(&self) -> Option<u16> {
        (0..rt::PATHS).find(|number| !self.taken.contains(number) && !self.paths.contains_key(number))
    }

    /// Leads a path to a host if all its routers are there; tells whether it was.
    fn lead(&mut self, number: u16, to: IpAddr, work: &mut Work) -> bool {
        let Some(path) = self.paths.get_mut(&number) else { return false };
        if !path.members.iter().all(|member| self.leaving.get(member) == Some(&to)) {
            return false;
        }
        self.leaving.retain(|router, _| !path.members.contains(router));
        let from = std::mem::replace(&mut path.to, to);
        work.lead(number, path.members.len(), (from, to));
        if self.leaving.is_empty() {
            self.gather_until = None;
        }
        true
    }

    fn forget(&mut self, entries: &[FollowEntry]) {
        for entry in entries {
            self.entries.remove(&key(entry));
        }
    }

    fn leave(&mut self, router: RouterId, work: &mut Work) {
        self.leaving.remove(&router);
        if let Some(number) = self.seats.remove(&router) {
            self.quit(router, number, work);
        }
    }

    fn quit(&mut self, router: RouterId, number: u16, work: &mut Work) {
        let Some(path) = self.paths.get_mut(&number) else { return };
        path.members.remove(&router);
        if path.members.is_empty() {
            return self.remove_path(number, work);
        }
        // It may have been the last that had not moved.
        let bound_for: BTreeSet<Option<IpAddr>> =
            path.members.iter().map(|member| self.leaving.get(member).copied()).collect();
        if let [Some(to)] = bound_for.into_iter().collect::<Vec<_>>()[..] {
            self.lead(number, to, work);
        }
    }

    fn remove_path(&mut self, number: u16, work: &mut Work) {
        self.paths.remove(&number);
        self.entries.retain(|_, at| *at != Some(number));
        work.remove_path(number);
    }
}

fn key(entry: &FollowEntry) -> (u32, Mac) {
    (entry.vxlan_ifindex, entry.mac)
}

/// What is to be sent to the kernel.
struct Work(Batch);

impl Work {
    fn new(router: RouterId) -> Self {
        Self(Batch {
            router,
            place: Place::Host,
            purpose: Purpose::Follow,
            generation: 0,
            steps: Vec::new(),
            messages: Vec::new(),
        })
    }

    fn finish(self) -> Option<Batch> {
        (!self.0.messages.is_empty()).then_some(self.0)
    }

    fn step(&mut self, what: String, action: Action, message: Vec<u8>) {
        self.0.steps.push((what, action));
        self.0.messages.push(message);
    }

    fn make_path(&mut self, number: u16, to: IpAddr) {
        self.step(format!("path {number} to {to}"), Action::Add, rt::path_message(number, to));
        self.step(format!("the group of path {number} to {to}"), Action::Add, rt::group_message(number));
    }

    fn lead(&mut self, number: u16, routers: usize, (from, to): (IpAddr, IpAddr)) {
        let what = format!("path {number} of {routers} routers, from {from} to {to}");
        self.step(what, Action::Add, rt::path_message(number, to));
    }

    fn remove_path(&mut self, number: u16) {
        for message in rt::remove_messages(number) {
            self.step(format!("path {number}"), Action::Del, message);
        }
    }

    fn point_at_path(&mut self, entry: &FollowEntry, number: u16, to: IpAddr) {
        let message = rt::fdb_replace_message(entry.vxlan_ifindex, entry.mac, &rt::path_table(number));
        self.step(format!("forwarding of {} by path {number} to {to}", entry.mac), Action::Add, message);
        self.by_tunnel(entry);
    }

    fn point_at_host(&mut self, entries: &[FollowEntry], to: IpAddr) {
        for entry in entries {
            let message = rt::fdb_replace_message(entry.vxlan_ifindex, entry.mac, &FdbTable::Vxlan { dst: to });
            self.step(format!("forwarding of {} to {to}", entry.mac), Action::Add, message);
            self.by_tunnel(entry);
        }
    }

    /// The bridge's entry: the way is the tunnel, wherever that leads.
    fn by_tunnel(&mut self, entry: &FollowEntry) {
        let message = rt::fdb_replace_message(entry.vxlan_ifindex, entry.mac, &FdbTable::Bridge);
        self.step(format!("forwarding of {} to the tunnel", entry.mac), Action::Add, message);
    }

    fn remove(&mut self, entries: &[FollowEntry]) {
        // The destination does not matter for removal: the entry is found by its address.
        let table = FdbTable::Vxlan { dst: IpAddr::from([0, 0, 0, 0]) };
        for entry in entries {
            let (link, mac) = (entry.vxlan_ifindex, entry.mac);
            self.step(format!("forwarding of {mac}"), Action::Del, rt::fdb_delete_message(link, mac, &table));
            let message = rt::fdb_delete_message(link, mac, &FdbTable::Bridge);
            self.step(format!("forwarding of {mac} to the tunnel"), Action::Del, message);
        }
    }
}

#[cfg(test)]
mod tests;
