//! What the keeper needs of the kernel: small, non-blocking, with its memory allocated beforehand as far
//! as that goes.

mod epoll;
mod guard;
mod macvlan;
mod packet;
mod paths;
mod prepared;
mod raw;
mod schedule;
mod udp;

pub use crate::netns::NetnsFd;
pub use crate::watch::{Heard, LinkEvent, MachineLinkWatch, list_links};
pub use epoll::Epoll;
pub use guard::AddressGuard;
pub use macvlan::{FoundLink, find_link, link_state_message, make_macvlan, remove_link};
pub use packet::{Filter, PacketSocket};
pub use paths::{
    FoundPaths, PATHS, find_paths, group_message, list_paths, path_message, path_of, path_table, remove_messages,
};
pub use prepared::{
    Change, NextHop, PreparedAddress, PreparedRoute, PreparedRule, RouteKind, address_message, link_addresses,
    link_mac, route_message, rule_message,
};
pub use raw::VrrpSocket;
pub use schedule::{Aside, lock_memory, set_fifo_priority};
pub use udp::{Datagram, HopSocket};

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use evergate_dataplane::state::FdbTable;
use evergate_model::Mac;
use tracing::warn;

use crate::error::{Cause, Error};
use crate::route::{address, link, neighbour};
use crate::socket::{Protocol, Socket, is_already_so};
use crate::watch::{Watcher, watching};
use crate::wire::{Frames, is_one_message};

impl NetnsFd {
    /// Another descriptor of the same namespace.
    pub fn try_clone(&self) -> Result<Self, Error> {
        Self::open(Path::new(&format!("/proc/self/fd/{}", self.as_raw_fd())))
    }
}

/// A route netlink socket in a namespace that sends prepared messages.
#[derive(Debug)]
pub struct BatchSocket(Socket);

impl BatchSocket {
    /// Opens one in the namespace.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        let socket = Socket::open_in(netns, Protocol::Route);
        socket.map(Self).map_err(|error| Error::new("open a route netlink socket", error))
    }

    /// The number by which the socket's namespace knows another one, as notifications name it; it is given one if it has none.
    pub fn number_of(&mut self, netns: &NetnsFd) -> Result<i32, Error> {
        let mut number = || -> Result<i32, Cause> {
            if let Some(number) = self.0.netns_number(link::get_netns_number(netns))? {
                return Ok(number);
            }
            // Somebody else, who makes a link between the two, may be first.
            let _ = self.0.exchange(&mut [link::number_netns(netns).finish()]);
            self.0
                .netns_number(link::get_netns_number(netns))?
                .ok_or_else(|| Cause::Invalid("it has no number here".to_owned()))
        };
        number().map_err(|cause| Error::new("number a network namespace", cause))
    }

    /// Sends all in one go; result i belongs to message i. Adding what is there and deleting what is gone succeed.
    pub fn send_batch(&mut self, messages: &[Vec<u8>]) -> Vec<Result<(), Error>> {
        let sound: Vec<bool> = messages.iter().map(|message| is_one_message(message)).collect();
        // One bad message would make the kernel read all that follow it from the wrong place.
        let mut sendable: Vec<Vec<u8>> =
            messages.iter().zip(&sound).filter(|(_, sound)| **sound).map(|(message, _)| message.clone()).collect();
        let mut answers = self.0.exchange(&mut sendable).into_iter();
        let outcome = |(number, (message, sound)): (usize, (&Vec<u8>, bool))| {
            let answer = if sound {
                answers.next().expect("there is an answer to each message sent")
            } else {
                Err(Cause::Invalid("it is not a netlink message".to_owned()))
            };
            match answer {
                Err(Cause::Kernel(refusal)) if is_already_so(message, refusal.errno) => Ok(()),
                answer => answer.map_err(|cause| Error::new(format!("send prepared message {number}"), cause)),
            }
        };
        messages.iter().zip(sound).enumerate().map(outcome).collect()
    }
}

/// Link events of one namespace, with [`crate::HostWatch`]'s promises.
#[derive(Debug)]
pub struct LinkWatch(Watcher);

impl LinkWatch {
    /// Subscribes in the namespace, then lists what is there.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        let watcher = Watcher::open(netns.try_clone()?);
        watcher.map(Self).map_err(watching)
    }

    /// The next event, if there is one now. A socket that fails yields `None`, and says so in the log.
    #[expect(clippy::should_implement_trait, reason = "events come later again, unlike an iterator's items")]
    pub fn next(&mut self) -> Option<LinkEvent> {
        self.0.next_event().unwrap_or_else(|cause| {
            warn!(error = watching(cause).full(), "link events may be missed");
            None
        })
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Tells whether the link has the address, with any prefix length.
pub fn has_address(socket: &mut BatchSocket, ifindex: u32, address: Ipv4Addr) -> Result<bool, Error> {
    let found = socket.0.dump(address::dump(ifindex));
    let found = found.map_err(|cause| Error::new(format!("list the addresses of link {ifindex}"), cause))?;
    let is_it = |found: address::RawAddress| found.index == ifindex && found.net.addr() == IpAddr::V4(address);
    Ok(Frames(&found).filter_map(|frame| address::read(frame.payload)).any(is_it))
}

/// The message that sets a static forwarding entry on a bridge port or VXLAN device, replacing the entry there is.
pub fn fdb_replace_message(ifindex: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    neighbour::set_fdb(ifindex, mac, table)
}

/// The message that removes it.
pub fn fdb_delete_message(ifindex: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    neighbour::delete_fdb(ifindex, mac, table)
}

/// Lets more datagrams wait at a socket; as many as is permitted, where that is less.
pub fn set_receive_buffer(socket: &impl AsRawFd, bytes: i32) -> std::io::Result<()> {
    let set = |option| crate::socket::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, option, &bytes);
    set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))
}
