//! Links: bridges, VXLAN devices, veth pairs, and whatever else is there.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use evergate_dataplane::op::LinkChange;
use evergate_dataplane::state::{BridgePort, Link, LinkKind};
use evergate_model::Mac;
use libc::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use crate::error::Cause;
use crate::netns::NetnsFd;
use crate::uapi::{
    IFLA_BR_FORWARD_DELAY, IFLA_BR_MCAST_SNOOPING, IFLA_BR_STP_STATE, IFLA_BRPORT_ISOLATED, IFLA_BRPORT_LEARNING,
    IFLA_BRPORT_NEIGH_SUPPRESS, IFLA_MACVLAN_MODE, IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_LOCAL,
    IFLA_VXLAN_LOCAL6, IFLA_VXLAN_PORT, MACVLAN_MODE_BRIDGE, NETNSA_FD, NETNSA_NSID, VETH_INFO_PEER,
};
use crate::wire::{Attrs, Message, i32_at, ip, text, u16_at, u32_at};

/// Length of `struct ifinfomsg`.
const BODY: usize = 16;

/// The kernel keeps names of at most 15 bytes.
const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// The kernel keeps aliases of at most 255 bytes.
const ALIAS_MAX: usize = 255;

/// A link as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawLink {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Kind as in `ip -d link`; empty for hardware.
    pub(crate) kind: String,
    pub(crate) is_loopback: bool,
    pub(crate) up: bool,
    pub(crate) running: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: Option<String>,
    pub(crate) master: Option<u32>,
    /// Of a veth, the other end's index; of a macvlan, the index of what it is on …
    pub(crate) peer_index: Option<u32>,
    /// … and the number by which its namespace knows the other end's, unless they share one.
    pub(crate) peer_netns: Option<i32>,
    pub(crate) vxlan: Option<RawVxlan>,
    pub(crate) port: Option<BridgePort>,
}

/// Of a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawVxlan {
    pub(crate) vni: u32,
    pub(crate) local: Option<IpAddr>,
    pub(crate) port: u16,
}

/// How a request names its link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Index(u32),
    Name(&'a str),
}

impl Target<'_> {
    /// Starts a request about the link; `up` sets or clears just that flag.
    fn request(self, kind: u16, flags: i32, up: Option<bool>) -> Message {
        match self {
            Self::Index(index) => Message::request(kind, flags).body(&body(0, index, up)),
            Self::Name(name) => Message::request(kind, flags).body(&body(0, 0, up)).attr_str(libc::IFLA_IFNAME, name),
        }
    }
}

/// `struct ifinfomsg`.
fn body(family: u8, index: u32, up: Option<bool>) -> [u8; BODY] {
    let mut body = [0; BODY];
    let is_up = libc::IFF_UP as u32;
    body[0] = family;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&(if up == Some(true) { is_up } else { 0 }).to_ne_bytes());
    body[12..16].copy_from_slice(&(if up.is_some() { is_up } else { 0 }).to_ne_bytes());
    body
}

/// The other end of a veth about to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
    /// `None`: in the same namespace.
    pub(crate) netns: Option<&'a NetnsFd>,
    pub(crate) link: &'a Link,
}

/// Makes a link, down and by itself; [`settle`] does the rest.
pub(crate) fn create(name: &str, index: u32, link: &Link, peer: Option<Peer<'_>>) -> Result<Vec<u8>, Cause> {
    check_name(name)?;
    let message = Target::Index(index).request(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, None);
    let message = identity(message, name, link);
    let message = match (&link.kind, peer) {
        (LinkKind::Bridge, _) => info(message, "bridge", |data| {
            // Forwards at once and floods multicast: VRRP and ND must pass, and there are no loops.
            data.attr_u32(IFLA_BR_FORWARD_DELAY, 0).attr_u32(IFLA_BR_STP_STATE, 0).attr_u8(IFLA_BR_MCAST_SNOOPING, 0)
        }),
        (LinkKind::Vxlan { vni, local, port }, _) => info(message, "vxlan", |data| {
            let attribute = if local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
            data.attr_u32(IFLA_VXLAN_ID, *vni)
                .attr_ip(attribute, *local)
                .attr_u16_be(IFLA_VXLAN_PORT, *port)
                .attr_u8(IFLA_VXLAN_LEARNING, 0)
        }),
        (LinkKind::Veth { .. }, Some(peer)) => {
            check_name(peer.name)?;
            info(message, "veth", |data| data.nest(VETH_INFO_PEER, |data| other_end(data, &peer)))
        }
        (LinkKind::Veth { .. }, None) => {
            return Err(Cause::Invalid("a veth needs another end".to_owned()));
        }
        (LinkKind::Other | LinkKind::Loopback, _) => {
            return Err(Cause::Invalid("a link of this kind is somebody else's to make".to_owned()));
        }
    };
    Ok(message.finish())
}

fn other_end(data: Message, peer: &Peer<'_>) -> Message {
    let data = identity(data.body(&body(0, peer.index, None)), peer.name, peer.link);
    // In its namespace from the start: moving it there later costs milliseconds of grace periods.
    data.when(peer.netns, |data, netns| data.attr_u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32))
}

/// What a link can be given as it is made. (An alias cannot.)
fn identity(message: Message, name: &str, link: &Link) -> Message {
    let mtu = link.mtu.filter(|_| link.kind != LinkKind::Bridge);
    message
        .attr_str(libc::IFLA_IFNAME, name)
        .when(mtu, |m, mtu| m.attr_u32(libc::IFLA_MTU, mtu))
        .when(link.mac, |m, mac| m.attr(libc::IFLA_ADDRESS, &mac.0))
}

fn info(message: Message, kind: &str, data: impl FnOnce(Message) -> Message) -> Message {
    message.nest(libc::IFLA_LINKINFO, |m| m.attr_str(libc::IFLA_INFO_KIND, kind).nest(libc::IFLA_INFO_DATA, data))
}

/// Makes a macvlan, down, on the link with the given index.
pub(crate) fn create_macvlan(name: &str, base: u32, mac: Mac) -> Result<Vec<u8>, Cause> {
    check_name(name)?;
    let message = Message::request(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        .body(&body(0, 0, None))
        .attr_str(libc::IFLA_IFNAME, name)
        .attr_u32(libc::IFLA_LINK, base)
        .attr(libc::IFLA_ADDRESS, &mac.0);
    Ok(info(message, "macvlan", |data| data.attr_u32(IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE)).finish())
}

/// Gives a new link its alias, bridge, port flags and state.
///
/// Sent together with [`create`] and by the index chosen there: when making the link fails, these find
/// nothing, rather than somebody else's link of the same name; and nobody can kill us in between.
pub(crate) fn settle(target: Target<'_>, link: &Link, master: Option<u32>) -> Result<Vec<Vec<u8>>, Cause> {
    // A bridge follows the MTU of its ports until it is told one; being made with one does not count.
    let mtu = link.mtu.filter(|_| link.kind == LinkKind::Bridge);
    let change = LinkChange {
        up: Some(link.up),
        mtu,
        mac: None,
        master: link.master.clone().map(Some),
        alias: link.alias.clone(),
        port: link.port,
    };
    set(target, &change, master)
}

/// Changes a link. `master` is the index of the bridge that the change names.
pub(crate) fn set(target: Target<'_>, change: &LinkChange, master: Option<u32>) -> Result<Vec<Vec<u8>>, Cause> {
    if change.alias.as_ref().is_some_and(|alias| alias.len() > ALIAS_MAX) {
        return Err(Cause::Invalid(format!("an alias has at most {ALIAS_MAX} bytes")));
    }
    // Port flags need the link to be a port already, and are to be in force before it comes up: after
    // joining, together with going up.
    let up_now = if change.port.is_none() { change.up } else { None };
    let mut messages = vec![
        target
            .request(libc::RTM_SETLINK, 0, up_now)
            .when(change.mtu, |m, mtu| m.attr_u32(libc::IFLA_MTU, mtu))
            .when(change.mac, |m, mac| m.attr(libc::IFLA_ADDRESS, &mac.0))
            .when(change.alias.as_ref(), |m, alias| m.attr(libc::IFLA_IFALIAS, alias.as_bytes()))
            .when(change.master.as_ref(), |m, _| m.attr_u32(libc::IFLA_MASTER, master.unwrap_or(0)))
            .finish(),
    ];
    messages.extend(change.port.map(|port| {
        let data = |m: Message| {
            m.attr_u8(IFLA_BRPORT_LEARNING, port.learning.into())
                .attr_u8(IFLA_BRPORT_NEIGH_SUPPRESS, port.neigh_suppress.into())
                .attr_u8(IFLA_BRPORT_ISOLATED, port.isolated.into())
        };
        target
            .request(libc::RTM_NEWLINK, 0, change.up)
            .nest(libc::IFLA_LINKINFO, |m| {
                m.attr_str(libc::IFLA_INFO_SLAVE_KIND, "bridge").nest(libc::IFLA_INFO_SLAVE_DATA, data)
            })
            .finish()
    }));
    Ok(messages)
}

/// Removes a link.
pub(crate) fn delete(target: Target<'_>) -> Vec<u8> {
    target.request(libc::RTM_DELLINK, 0, None).finish()
}

/// Puts a link into a group.
pub(crate) fn set_group(target: Target<'_>, group: u32) -> Vec<u8> {
    target.request(libc::RTM_SETLINK, 0, None).attr_u32(libc::IFLA_GROUP, group).finish()
}

/// Removes all links of a group.
pub(crate) fn delete_group(group: u32) -> Vec<u8> {
    Message::request(libc::RTM_DELLINK, 0).body(&body(0, 0, None)).attr_u32(libc::IFLA_GROUP, group).finish()
}

/// Lists all links, without their statistics.
pub(crate) fn dump() -> Message {
    super::dump(libc::RTM_GETLINK, &body(0, 0, None))
        .attr_u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32)
}

/// Asks for one link.
pub(crate) fn get(name: &str) -> Message {
    Message::with_flags(libc::RTM_GETLINK, NLM_F_REQUEST)
        .body(&body(0, 0, None))
        .attr_str(libc::IFLA_IFNAME, name)
        .attr_u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32)
}

/// Reads a link. `None` for what is not one: the bridge's notes about its ports come as links, too.
pub(crate) fn read(payload: &[u8]) -> Option<RawLink> {
    if *payload.first()? != libc::AF_UNSPEC as u8 {
        return None;
    }
    let flags = u32_at(payload, 8)? as i32;
    let mut link = RawLink {
        index: u32_at(payload, 4)?,
        is_loopback: flags & libc::IFF_LOOPBACK != 0,
        up: flags & libc::IFF_UP != 0,
        running: flags & libc::IFF_RUNNING != 0,
        ..RawLink::default()
    };
    for (kind, value) in Attrs::after(payload, BODY) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_IFALIAS => link.alias = Some(text(value)),
            libc::IFLA_MASTER => link.master = u32_at(value, 0),
            libc::IFLA_LINK => link.peer_index = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => link.peer_netns = i32_at(value, 0),
            libc::IFLA_LINKINFO => read_info(&mut link, Attrs(value)),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(link: &mut RawLink, info: Attrs<'_>) {
    link.kind = info.get(libc::IFLA_INFO_KIND).map(text).unwrap_or_default();
    if link.kind == "vxlan" {
        let data = info.inside(libc::IFLA_INFO_DATA);
        let local = data.get(IFLA_VXLAN_LOCAL).or_else(|| data.get(IFLA_VXLAN_LOCAL6));
        link.vxlan = Some(RawVxlan {
            vni: data.get(IFLA_VXLAN_ID).and_then(|v| u32_at(v, 0)).unwrap_or(0),
            local: local.and_then(ip),
            port: data.get(IFLA_VXLAN_PORT).and_then(|v| u16_at(v, 0)).map_or(0, u16::from_be),
        });
    }
    if info.get(libc::IFLA_INFO_SLAVE_KIND).map(text).as_deref() == Some("bridge") {
        let data = info.inside(libc::IFLA_INFO_SLAVE_DATA);
        let flag = |attribute| data.get(attribute).is_some_and(|value| value.first() == Some(&1));
        link.port = Some(BridgePort {
            learning: flag(IFLA_BRPORT_LEARNING),
            neigh_suppress: flag(IFLA_BRPORT_NEIGH_SUPPRESS),
            isolated: flag(IFLA_BRPORT_ISOLATED),
        });
    }
}

/// Asks by which number a socket's namespace knows another one.
pub(crate) fn get_netns_number(netns: &NetnsFd) -> Message {
    // `struct rtgenmsg` is one byte, padded.
    Message::with_flags(libc::RTM_GETNSID, NLM_F_REQUEST).body(&[0; 4]).attr_u32(NETNSA_FD, netns.as_raw_fd() as u32)
}

/// Gives a namespace a number in a socket's namespace.
pub(crate) fn number_netns(netns: &NetnsFd) -> Message {
    Message::request(libc::RTM_NEWNSID, 0)
        .body(&[0; 4])
        .attr_u32(NETNSA_FD, netns.as_raw_fd() as u32)
        // Any.
        .attr_u32(NETNSA_NSID, u32::MAX)
}

/// Reads the answer to [`get_netns_number`]; `None` when it has no number yet.
pub(crate) fn read_netns_number(payload: &[u8]) -> Option<i32> {
    Attrs::after(payload, 4).get(NETNSA_NSID).and_then(|value| i32_at(value, 0)).filter(|number| *number >= 0)
}

fn check_name(name: &str) -> Result<(), Cause> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Cause::Invalid(format!("'{name}' cannot be the name of a link (1 to {NAME_MAX} bytes)")));
    }
    Ok(())
}
