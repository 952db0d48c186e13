//! What the keeper needs of the kernel: few, allocation-free, non-blocking.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Instant;

use evergate_dataplane::state::FdbTable;
use evergate_model::Mac;

use crate::Error;
pub use crate::watch::LinkEvent;

/// An open network namespace.
#[derive(Debug)]
pub struct NetnsFd {}

impl NetnsFd {
    /// Opens `/run/netns/<name>` or any other namespace file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        unimplemented!("{path:?}")
    }
    /// The one that the calling thread is in.
    pub fn host() -> Result<Self, Error> {
        unimplemented!()
    }
    /// Runs `f` on a short-lived thread inside the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let _ = f;
        unimplemented!()
    }
}

/// A route netlink socket in a namespace that sends prepared messages.
#[derive(Debug)]
pub struct BatchSocket {}

impl BatchSocket {
    /// Opens one in the namespace.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        unimplemented!("{netns:?}")
    }
    /// Sends all in one go; result i belongs to message i. Adding what is there and deleting what is gone succeed.
    pub fn send_batch(&mut self, messages: &[Vec<u8>]) -> Vec<Result<(), Error>> {
        unimplemented!("{messages:?}")
    }
}

/// Link events of one namespace; see [`crate::HostWatch`].
#[derive(Debug)]
pub struct LinkWatch {}

impl LinkWatch {
    /// Subscribes in the namespace, then lists what is there.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        unimplemented!("{netns:?}")
    }
    /// The next event, if there is one now. An unusable socket yields `None`, and says so in the log.
    #[expect(clippy::should_implement_trait, reason = "events come later again, unlike an iterator's items")]
    pub fn next(&mut self) -> Option<LinkEvent> {
        unimplemented!()
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        unimplemented!()
    }
}

/// What a packet socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// IPv4 protocol 112, of one virtual router or of all.
    Vrrp {
        /// Its identifier; `None` for all.
        vrid: Option<u8>,
    },
    /// Nothing.
    SendOnly,
}

/// Sends and receives whole Ethernet frames on one interface. Does not receive what this host sends.
#[derive(Debug)]
pub struct PacketSocket {}

impl PacketSocket {
    /// Opens one, non-blocking, on the interface with this index in the namespace.
    pub fn open(netns: &NetnsFd, ifindex: u32, filter: Filter) -> Result<Self, Error> {
        unimplemented!("{netns:?} {ifindex} {filter:?}")
    }
    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        unimplemented!("{frame:?}")
    }
    /// Receives a frame if there is one; returns its length, cut to the buffer's.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        unimplemented!("{buffer:?}")
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        unimplemented!()
    }
}

/// Tells whether the link has the address, with any prefix length.
pub fn has_address(socket: &mut BatchSocket, ifindex: u32, address: Ipv4Addr) -> Result<bool, Error> {
    unimplemented!("{socket:?} {ifindex} {address}")
}

/// The message that sets a static forwarding entry on a bridge port or VXLAN device, replacing the entry there is.
pub fn fdb_replace_message(ifindex: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    unimplemented!("{ifindex} {mac} {table:?}")
}

/// The message that removes it.
pub fn fdb_delete_message(ifindex: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    unimplemented!("{ifindex} {mac} {table:?}")
}

/// Waits for readable descriptors (level-triggered) until a moment, with nanosecond precision.
#[derive(Debug)]
pub struct Epoll {}

impl Epoll {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        unimplemented!()
    }
    /// Watches a descriptor for input, errors and hang-up; `wait` tells its token.
    pub fn add(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        unimplemented!("{} {token}", fd.as_raw_fd())
    }
    /// Watches for output, too, or no longer.
    pub fn want_write(&self, fd: &impl AsRawFd, token: u64, wanted: bool) -> io::Result<()> {
        unimplemented!("{} {token} {wanted}", fd.as_raw_fd())
    }
    /// Stops watching it. Closing it does the same.
    pub fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        unimplemented!("{}", fd.as_raw_fd())
    }
    /// Waits until something is ready or the moment has come (`None`: for ever), and puts the tokens of what
    /// is ready into `ready` (cleared first). A signal ends the wait early.
    pub fn wait(&mut self, until: Option<Instant>, ready: &mut Vec<u64>) -> io::Result<()> {
        unimplemented!("{until:?} {ready:?}")
    }
}

/// Keeps all memory of the process, now and later, in RAM. The error says in words what was not permitted.
pub fn lock_memory() -> Result<(), String> {
    unimplemented!()
}

/// Gives the calling thread real-time priority (SCHED_FIFO). The error says in words what was not permitted.
pub fn set_fifo_priority(priority: u8) -> Result<(), String> {
    unimplemented!("{priority}")
}
