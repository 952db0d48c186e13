//! The sockets of one router's namespace, opened before they are needed and kept.

use std::collections::BTreeMap;
use std::path::Path;

use evergate_kernel::Error;
use evergate_kernel::rt::{self, BatchSocket, Filter, LinkEvent, LinkWatch, NetnsFd, PacketSocket};
use tracing::debug;

use crate::engine::effect::{Opened, SocketRequest};

/// The sockets of one router's namespace.
#[derive(Debug)]
pub(super) struct RouterSockets {
    request: SocketRequest,
    netns: NetnsFd,
    pub(super) batch: BatchSocket,
    pub(super) watch: LinkWatch,
    /// `None` once its interface has gone.
    pub(super) vrrp: Option<PacketSocket>,
    senders: BTreeMap<u32, PacketSocket>,
    links: BTreeMap<u32, bool>,
}

impl RouterSockets {
    /// Opens all that is requested.
    pub(super) fn open(netns_path: &Path, request: SocketRequest) -> Result<Self, Error> {
        let netns = NetnsFd::open(&netns_path.join(&request.netns))?;
        let batch = BatchSocket::open(&netns)?;
        let mut watch = LinkWatch::open(&netns)?;
        let mut links = BTreeMap::new();
        while let Some(event) = watch.next() {
            note(&mut links, &event);
        }
        let vrrp = Some(open_vrrp(&netns, &request)?);
        let mut sockets = Self { request, netns, batch, watch, vrrp, senders: BTreeMap::new(), links };
        sockets.open_senders();
        Ok(sockets)
    }

    /// Whether these sockets are in the requested namespace, so that they can be adapted.
    pub(super) fn fit(&self, request: &SocketRequest) -> bool {
        self.request.netns == request.netns
    }

    /// Makes them what is requested now; tells whether the VRRP socket is another one.
    pub(super) fn adapt(&mut self, request: SocketRequest) -> Result<bool, Error> {
        let old = std::mem::replace(&mut self.request, request);
        let same = old.ha_ifindex == self.request.ha_ifindex && old.vrid == self.request.vrid;
        let replace = !same || self.vrrp.is_none();
        if replace {
            self.vrrp = Some(open_vrrp(&self.netns, &self.request)?);
        }
        self.senders.retain(|ifindex, _| self.request.send_on.contains(ifindex));
        self.open_senders();
        Ok(replace)
    }

    /// One that cannot be opened now (its link is not there yet) is tried again when it is needed.
    fn open_senders(&mut self) {
        for &ifindex in &self.request.send_on {
            if !self.senders.contains_key(&ifindex) {
                match PacketSocket::open(&self.netns, ifindex, Filter::SendOnly) {
                    Ok(socket) => drop(self.senders.insert(ifindex, socket)),
                    Err(error) => debug!(ifindex, "nothing can be announced yet: {}", error.full()),
                }
            }
        }
    }

    /// What the engine wants to know of a namespace that it enters.
    pub(super) fn describe(&mut self) -> Result<Opened, Error> {
        let (ifindex, address) = (self.request.ha_ifindex, self.request.virtual_address);
        let has_virtual_address = rt::has_address(&mut self.batch, ifindex, address)?;
        Ok(Opened { links: self.links.clone(), has_virtual_address, shortcomings: Vec::new() })
    }

    /// Sends a frame.
    pub(super) fn send(&mut self, ifindex: u32, frame: &[u8]) -> Result<(), String> {
        if ifindex == self.request.ha_ifindex
            && let Some(vrrp) = &self.vrrp
        {
            return vrrp.send(frame).map_err(|error| error.to_string());
        }
        if !self.senders.contains_key(&ifindex) {
            let socket = PacketSocket::open(&self.netns, ifindex, Filter::SendOnly).map_err(|error| error.full())?;
            self.senders.insert(ifindex, socket);
        }
        self.senders[&ifindex].send(frame).map_err(|error| error.to_string())
    }

    /// The next link event: the link's index, and whether it is up (`None`: gone).
    pub(super) fn next_link(&mut self) -> Option<(u32, Option<bool>)> {
        let event = self.watch.next()?;
        note(&mut self.links, &event);
        if event.gone {
            // Sockets on a link that is gone stay dead, even should another get its index.
            self.senders.remove(&event.ifindex);
            if event.ifindex == self.request.ha_ifindex {
                self.vrrp = None;
            }
        }
        Some((event.ifindex, self.links.get(&event.ifindex).copied()))
    }
}

fn open_vrrp(netns: &NetnsFd, request: &SocketRequest) -> Result<PacketSocket, Error> {
    PacketSocket::open(netns, request.ha_ifindex, Filter::Vrrp { vrid: request.vrid })
}

fn note(links: &mut BTreeMap<u32, bool>, event: &LinkEvent) {
    if event.gone {
        links.remove(&event.ifindex);
    } else {
        links.insert(event.ifindex, event.up && event.running);
    }
}
