//! The sockets of one router's namespace that the loop listens and sends on. The worker opens and closes
//! them, because both may take long.

use std::collections::BTreeMap;

use evergate_kernel::Error;
use evergate_kernel::rt::{self, BatchSocket, Filter, LinkEvent, NetnsFd, PacketSocket};
use tracing::debug;

use crate::engine::effect::SocketRequest;

/// The sockets of one router's namespace.
#[derive(Debug)]
pub(super) struct RouterSockets {
    ha_ifindex: u32,
    /// By which number the links of the namespace are told of.
    pub(super) netns: i32,
    pub(super) vrrp: PacketSocket,
    senders: BTreeMap<u32, PacketSocket>,
    /// What IPv4 and IPv6 gateways answer on, where they are asked.
    pub(super) answers: [Option<PacketSocket>; 2],
}

impl RouterSockets {
    /// Opens all that is requested; tells which links are up, by index.
    pub(super) fn open(
        host: &mut BatchSocket,
        netns: &NetnsFd,
        request: &SocketRequest,
    ) -> Result<(Self, BTreeMap<u32, bool>), Error> {
        // First the number, under which changes are heard of from now on, then the list.
        let number = host.number_of(netns)?;
        let links = links(netns)?;
        let vrrp = PacketSocket::open(netns, request.ha_ifindex, Filter::Vrrp { vrid: request.vrid })?;
        let mut senders = BTreeMap::new();
        for &ifindex in &request.send_on {
            match PacketSocket::open(netns, ifindex, Filter::SendOnly) {
                Ok(socket) => drop(senders.insert(ifindex, socket)),
                // Its link has gone since control looked. When it is back, all is opened anew.
                Err(error) => debug!(ifindex, "nothing can be announced: {}", error.full()),
            }
        }
        let answers = open_answers(netns, request);
        Ok((Self { ha_ifindex: request.ha_ifindex, netns: number, vrrp, senders, answers }, links))
    }

    /// Sends a frame.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> Result<(), String> {
        let socket = if ifindex == self.ha_ifindex { Some(&self.vrrp) } else { self.senders.get(&ifindex) };
        let socket = socket.ok_or("the link was not there when its socket was to be opened")?;
        socket.send(frame).map_err(|error| error.to_string())
    }
}

/// Which links of a namespace are up, by index.
pub(super) fn links(netns: &NetnsFd) -> Result<BTreeMap<u32, bool>, Error> {
    let links = rt::list_links(netns)?;
    Ok(links.iter().filter_map(|link| Some((link.ifindex, state(link)?))).collect())
}

/// The role must not depend on them: where one cannot be opened, its gateways just do not answer.
fn open_answers(netns: &NetnsFd, request: &SocketRequest) -> [Option<PacketSocket>; 2] {
    let open = |wanted: bool, filter| {
        let ifindex = request.answers_on.filter(|_| wanted)?.ifindex;
        let socket = PacketSocket::open(netns, ifindex, filter);
        socket.inspect_err(|error| debug!(ifindex, "no gateway can answer: {}", error.full())).ok()
    };
    let wanted = |v4: bool| request.answers_on.is_some_and(|on| if v4 { on.v4 } else { on.v6 });
    [open(wanted(true), Filter::ArpReplies), open(wanted(false), Filter::NeighborAdvertisements)]
}

pub(super) fn state(event: &LinkEvent) -> Option<bool> {
    (!event.gone).then_some(event.up && event.running)
}
