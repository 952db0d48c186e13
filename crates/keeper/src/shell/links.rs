//! The links of all routers' namespaces, heard of on one socket.
//!
//! Links are listed by the worker while changes of them go on being heard here, so a list may be older than what
//! was heard by the time it arrives. As long as any list is under way, the last that was heard of each link is kept, and
//! counts again after the list.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};

use evergate_kernel::Error;
use evergate_kernel::rt::{Heard, MachineLinkWatch};
use evergate_model::RouterId;

use super::sockets;

pub(super) struct Links {
    watch: MachineLinkWatch,
    /// Whose namespace a number means.
    routers: BTreeMap<i32, RouterId>,
    numbers: BTreeMap<RouterId, i32>,
    /// Lists under way.
    lists: usize,
    /// What was heard since the first of them began, of any namespace: by its number and the link's index.
    heard: BTreeMap<(i32, u32), Option<bool>>,
}

/// What was heard.
pub(super) enum Change {
    /// A router's link is up or down, or (`None`) gone.
    Of { router: RouterId, ifindex: u32, up: Option<bool> },
    /// Something was missed: all links are to be listed.
    Missed,
}

impl Links {
    pub(super) fn open() -> Result<Self, Error> {
        let watch = MachineLinkWatch::open()?;
        Ok(Self { watch, routers: BTreeMap::new(), numbers: BTreeMap::new(), lists: 0, heard: BTreeMap::new() })
    }

    /// A list is under way.
    pub(super) fn begin(&mut self) {
        self.lists += 1;
    }

    /// A list has arrived, or is not wanted any more.
    pub(super) fn end(&mut self) {
        self.lists = self.lists.saturating_sub(1);
        if self.lists == 0 {
            self.heard.clear();
        }
    }

    /// A router has its namespace by this number.
    pub(super) fn watch(&mut self, router: RouterId, netns: i32) {
        self.forget(router);
        // A number is used again when its namespace is gone.
        if let Some(former) = self.routers.insert(netns, router) {
            self.numbers.remove(&former);
        }
        self.numbers.insert(router, netns);
    }

    pub(super) fn forget(&mut self, router: RouterId) {
        if let Some(netns) = self.numbers.remove(&router) {
            self.routers.remove(&netns);
        }
    }

    /// The last that was heard of each of a router's links since the first list began that is under way.
    pub(super) fn heard_of(&self, router: RouterId) -> Vec<(u32, Option<bool>)> {
        let Some(&netns) = self.numbers.get(&router) else { return Vec::new() };
        let heard = self.heard.range((netns, 0)..=(netns, u32::MAX));
        heard.map(|(&(_, ifindex), &up)| (ifindex, up)).collect()
    }

    /// The next change, if there is one now.
    pub(super) fn next(&mut self) -> Option<Change> {
        loop {
            match self.watch.next()? {
                Heard::Link { netns, link } => {
                    let up = sockets::state(&link);
                    if self.lists > 0 {
                        self.heard.insert((netns, link.ifindex), up);
                    }
                    if let Some(&router) = self.routers.get(&netns) {
                        return Some(Change::Of { router, ifindex: link.ifindex, up });
                    }
                }
                Heard::Lost => return Some(Change::Missed),
            }
        }
    }
}

impl AsRawFd for Links {
    fn as_raw_fd(&self) -> RawFd {
        self.watch.as_raw_fd()
    }
}
