//! Making links, and what to do when one is there already.

use evergate_dataplane::op::LinkChange;
use evergate_dataplane::state::{Link, LinkKind};
use evergate_dataplane::{Netns, Op};

use super::Run;
use crate::error::Cause;
use crate::kernel::is_ours;
use crate::route::link::{self, Peer, RawLink, Target};

/// A link to be made.
#[derive(Clone, Copy)]
pub(super) struct NewLink<'a> {
    /// The op's number.
    pub(super) number: usize,
    pub(super) netns: &'a Netns,
    pub(super) name: &'a str,
    link: &'a Link,
    other_end: Option<OtherEnd<'a>>,
}

/// The other end of a veth.
#[derive(Clone, Copy)]
pub(super) struct OtherEnd<'a> {
    pub(super) netns: &'a Netns,
    pub(super) name: &'a str,
    link: &'a Link,
}

/// The messages that make a link.
pub(super) struct Making {
    /// Make it and its other end, and settle it.
    pub(super) here: Vec<Vec<u8>>,
    /// Settle the other end in its namespace.
    pub(super) there: Option<(Netns, Vec<Vec<u8>>)>,
}

impl<'a> NewLink<'a> {
    /// What an op makes; `None` for one that makes no link.
    pub(super) fn of(number: usize, op: &'a Op) -> Option<Result<Self, Cause>> {
        let Op::AddLink { netns, name, link, peer_link } = op else { return None };
        let other_end = match (&link.kind, peer_link) {
            (LinkKind::Veth { peer: Some((netns, name)) }, Some(link)) => Some(OtherEnd { netns, name, link }),
            (LinkKind::Veth { .. }, _) => {
                return Some(Err(Cause::Invalid("the veth's other end is not described".to_owned())));
            }
            (LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Other | LinkKind::Loopback, _) => None,
        };
        Some(Ok(Self { number, netns, name, link, other_end }))
    }

    /// Where the links are that come into being, and their names.
    pub(super) fn ends(&self) -> impl Iterator<Item = (Netns, String)> {
        let here = (self.netns.clone(), self.name.to_owned());
        [Some(here), self.other_end.map(|end| (end.netns.clone(), end.name.to_owned()))].into_iter().flatten()
    }
}

impl Run<'_> {
    /// The messages that make a link, by indexes that are probably unused.
    pub(super) fn making(&mut self, new: NewLink<'_>) -> Result<Making, Cause> {
        let index = self.kernel.unused_index();
        let master = self.master(new.netns, new.link)?;
        let (create, there) = match new.other_end {
            Some(end) => {
                let end_index = self.kernel.unused_index();
                let end_master = self.master(end.netns, end.link)?;
                let space = self.kernel.space(end.netns)?;
                let elsewhere = (end.netns != new.netns).then_some(&space.netns);
                let peer = Peer { name: end.name, index: end_index, netns: elsewhere, link: end.link };
                let settle = link::settle(Target::Index(end_index), end.link, end_master)?;
                (link::create(new.name, index, new.link, Some(peer))?, Some((end.netns.clone(), settle)))
            }
            None => (link::create(new.name, index, new.link, None)?, None),
        };
        let mut here = vec![create];
        here.extend(link::settle(Target::Index(index), new.link, master)?);
        Ok(Making { here, there })
    }

    pub(super) fn changing(&mut self, netns: &Netns, name: &str, change: &LinkChange) -> Result<Vec<Vec<u8>>, Cause> {
        let master = match &change.master {
            Some(Some(master)) => Some(self.index(netns, master)?),
            Some(None) | None => None,
        };
        link::set(Target::Name(name), change, master)
    }

    /// Looks closer at a link that could not be made because something is there already.
    pub(super) fn retry_link(&mut self, number: usize) {
        let exists = self.results[number].as_ref().is_err_and(|error| error.errno() == Some(libc::EEXIST));
        let Some(Ok(new)) = NewLink::of(number, &self.ops[number]).filter(|_| exists) else { return };
        self.results[number] = Ok(());
        if let Err(cause) = self.make_alone(new) {
            self.fail(number, cause);
        }
    }

    fn make_alone(&mut self, new: NewLink<'_>) -> Result<(), Cause> {
        if let Some(found) = self.kernel.link(new.netns, new.name)? {
            return self.take(new, &found);
        }
        if let Some(end) = new.other_end
            && self.kernel.link(end.netns, end.name)?.is_some()
        {
            return Err(Cause::InTheWay(format!("its other end's name, {}, is taken in {}", end.name, end.netns)));
        }
        // Neither name is taken, so an index was. The next ones are chosen by now.
        let making = self.making(new)?;
        self.send_all(new.number, new.netns, making.here);
        if let Some((netns, messages)) = making.there.filter(|_| self.results[new.number].is_ok()) {
            self.send_all(new.number, &netns, messages);
        }
        Ok(())
    }

    /// Takes an existing link of ours for the one that was to be made, if it is the same.
    fn take(&mut self, new: NewLink<'_>, found: &RawLink) -> Result<(), Cause> {
        if !is_ours(found) {
            return Err(Cause::InTheWay("a link of this name exists that Evergate did not make".to_owned()));
        }
        if !self.is_same(new, found)? {
            return Err(Cause::InTheWay("a link of this name exists that is not the same".to_owned()));
        }
        self.adjust(new.number, new.netns, found, new.link)?;
        if let Some(end) = new.other_end
            && let Some(found) = self.kernel.link(end.netns, end.name)?
        {
            self.adjust(new.number, end.netns, &found, end.link)?;
        }
        Ok(())
    }

    /// Sets what differs on a link, and that only: an address set again makes the kernel forget neighbours.
    fn adjust(&mut self, number: usize, netns: &Netns, found: &RawLink, link: &Link) -> Result<(), Cause> {
        let master = self.master(netns, link)?;
        let moves = master != found.master;
        let change = LinkChange {
            up: Some(link.up).filter(|up| *up != found.up),
            mtu: link.mtu.filter(|_| link.mtu != found.mtu),
            mac: link.mac.filter(|_| link.mac != found.mac),
            master: Some(link.master.clone()).filter(|_| moves),
            alias: link.alias.clone().filter(|_| link.alias != found.alias),
            port: link.port.filter(|_| link.port != found.port || moves),
        };
        self.send_all(number, netns, link::set(Target::Index(found.index), &change, master)?);
        Ok(())
    }

    /// Tells whether a link is of the kind that is wanted; of a veth, whether it leads where it should.
    fn is_same(&mut self, new: NewLink<'_>, found: &RawLink) -> Result<bool, Cause> {
        match (&new.link.kind, new.other_end) {
            (LinkKind::Bridge, _) => Ok(found.kind == "bridge"),
            (LinkKind::Vxlan { vni, local, port }, _) => {
                let wanted = (*vni, Some(*local), *port);
                Ok(found.vxlan.is_some_and(|vxlan| (vxlan.vni, vxlan.local, vxlan.port) == wanted))
            }
            (LinkKind::Veth { .. }, Some(end)) => {
                let Some(peer) = self.kernel.link(end.netns, end.name)? else { return Ok(false) };
                let points_back = peer.peer_index == Some(found.index) && found.peer_index == Some(peer.index);
                Ok(found.kind == "veth" && points_back && self.leads_to(new.netns, found, end.netns)?)
            }
            (LinkKind::Veth { .. } | LinkKind::Other | LinkKind::Loopback, _) => Ok(false),
        }
    }

    /// Tells whether the other end of a veth is in the given namespace.
    fn leads_to(&mut self, netns: &Netns, found: &RawLink, other: &Netns) -> Result<bool, Cause> {
        let Some(number) = found.peer_netns else { return Ok(netns == other) };
        Ok(self.kernel.netns_number(netns, other)? == Some(number))
    }
}
