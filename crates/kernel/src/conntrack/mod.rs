//! Connection tracking of one namespace: what happens to its flows, which there are, and new ones put in.
//!
//! Three sockets with one job each: [`FlowWatch`] hears of changes, [`FlowTable`] lists and changes.
//! Subscribe before listing, or what happens between is missed. A watch that was too slow says
//! [`FlowEvent::Lost`]; whoever gets that lists anew.

mod codec;
mod numbers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use evergate_model::{Flow, FlowKey};

use crate::error::{Cause, Error};
use crate::netns::NetnsFd;
use crate::rt::Aside;
use crate::socket::{Protocol, Socket};
use crate::wire::{Frame, Frames};
pub use codec::Seen;

/// Notifications that wait for the reader: a limit, not an allocation. About 250,000 of them.
const WATCH_BUFFER: libc::c_int = 64 << 20;

/// Receives are of one notification each, 232 bytes on average; none is near this.
const EVENT_BYTES: usize = 8 << 10;

/// Something happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// It appeared or changed.
    Changed(Seen),
    /// It is gone.
    Gone(FlowKey),
    /// Notifications were lost: only a listing tells what there is now.
    Lost,
}

/// Hears of a namespace's flows. Nothing is told of flows that were there before and do not change.
///
/// The kernel offers each event, of whichever namespace, to each such socket of the machine, 20 to 40 ns each
/// (`benches/events.rs`). One socket for all namespaces would not be cheaper: whether it is to hear an event, the kernel
/// finds out by going through the numbers that its namespace has for others, one after another. And what it was too slow
/// for would concern them all.
#[derive(Debug)]
pub struct FlowWatch {
    socket: Socket,
    buffer: Vec<u8>,
    queue: VecDeque<FlowEvent>,
}

impl FlowWatch {
    /// Subscribes.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        let open = || -> Result<Socket, Cause> {
            let socket = Socket::open_in(netns, Protocol::Netfilter)?;
            socket.set_receive_buffer(WATCH_BUFFER)?;
            socket.join_all(&[numbers::GROUP_NEW, numbers::GROUP_UPDATE, numbers::GROUP_DESTROY])?;
            Ok(socket)
        };
        let socket = open().map_err(|cause| Error::new("watch tracked connections", cause))?;
        Ok(Self { socket, buffer: vec![0; EVENT_BYTES], queue: VecDeque::new() })
    }

    /// The next event, if there is one now.
    pub fn next_event(&mut self) -> Result<Option<FlowEvent>, Error> {
        while self.queue.is_empty() {
            match self.socket.receive(&mut self.buffer) {
                Ok(Some(length)) => self.queue.extend(events(&self.buffer[..length])),
                Ok(None) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.queue.push_back(FlowEvent::Lost),
                Err(error) => return Err(Error::new("watch tracked connections", error)),
            }
        }
        Ok(self.queue.pop_front())
    }
}

impl AsRawFd for FlowWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn events(bytes: &[u8]) -> impl Iterator<Item = FlowEvent> {
    Frames(bytes).filter_map(|frame| {
        let seen = codec::read(frame.payload)?;
        match frame.kind {
            NEW => Some(FlowEvent::Changed(seen)),
            DELETE => Some(FlowEvent::Gone(seen.flow.key())),
            _ => None,
        }
    })
}

const NEW: u16 = numbers::SUBSYSTEM << 8 | numbers::MSG_NEW;
const DELETE: u16 = numbers::SUBSYSTEM << 8 | numbers::MSG_DELETE;

/// One change of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowOp {
    /// Makes an entry; refused with `EEXIST` if another one has one of its tuples, in either direction.
    Create(Flow),
    /// Changes an entry: status, timeout, TCP state, mark. Refused with `ENOENT` if there is none.
    Update(Flow),
    /// Changes when it is forgotten, in seconds.
    SetTimeout(FlowKey, u32),
    /// Removes the entry that has this tuple in either direction. Refused with `ENOENT` if there is none.
    Delete(FlowKey),
}

/// Lists and changes a namespace's flows.
#[derive(Debug)]
pub struct FlowTable(Socket);

impl FlowTable {
    /// Opens a socket in the namespace.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        let socket = Socket::open_in(netns, Protocol::Netfilter);
        socket.map(Self).map_err(|error| Error::new("open a conntrack socket", error))
    }

    /// All flows that there are. What changes while they are listed is told by a watch opened before.
    ///
    /// The kernel keeps the flows of all namespaces in one table, and goes through all of it for each list: 10 ms
    /// where there is nothing in it, 400 ms with a million flows of whomever (`benches/events.rs`). Many kernels let nothing
    /// else run on that processor meanwhile, of whatever priority. So a namespace without flows is not listed, real-time
    /// threads are kept off that processor, and whoever lists many namespaces leaves time between them.
    pub fn list(&mut self) -> Result<Vec<Flow>, Error> {
        let mut flows = Vec::new();
        if self.count()? == 0 {
            return Ok(flows);
        }
        let _aside = Aside::step();
        let listed = self.0.dump_each(codec::dump(), |frame| flows.extend(flow_in(frame)));
        listed.map_err(|cause| Error::new("list tracked connections", cause))?;
        Ok(flows)
    }

    /// How many flows there are, those that are just ending included.
    pub fn count(&mut self) -> Result<u32, Error> {
        let counted = self.0.get(codec::count()).and_then(|answer| {
            let count = answer.as_deref().and_then(codec::read_count);
            count.ok_or_else(|| Cause::Invalid("the kernel's answer holds no number".to_owned()))
        });
        counted.map_err(|cause| Error::new("count tracked connections", cause))
    }

    /// Those of these flows that there are, as they are now: where few are asked for, much less work than to list.
    pub fn look_up(&mut self, keys: &[FlowKey]) -> Result<Vec<Flow>, Error> {
        let mut requests: Vec<Vec<u8>> = keys.iter().map(codec::look_up).collect();
        let mut flows = Vec::with_capacity(keys.len());
        let found = self.0.get_each(&mut requests, |frame| flows.extend(flow_in(frame)));
        found.map_err(|cause| Error::new("look up tracked connections", cause))?;
        Ok(flows)
    }

    /// Attempts each; result i belongs to op i, with the error number of a refusal.
    pub fn apply(&mut self, ops: &[FlowOp]) -> Vec<Result<(), i32>> {
        let mut messages: Vec<Vec<u8>> = ops.iter().map(encode).collect();
        let results = self.0.exchange(&mut messages);
        let errno = |cause| match cause {
            Cause::Kernel(refusal) => refusal.errno,
            Cause::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
            Cause::NoLink(_) | Cause::NoNetns(_) | Cause::InTheWay(_) | Cause::Invalid(_) => libc::EINVAL,
        };
        results.into_iter().map(|result| result.map_err(errno)).collect()
    }
}

fn flow_in(frame: &Frame<'_>) -> Option<Flow> {
    (frame.kind == NEW).then(|| codec::read(frame.payload)).flatten().map(|seen| seen.flow)
}

fn encode(op: &FlowOp) -> Vec<u8> {
    match op {
        FlowOp::Create(flow) => codec::create(flow),
        FlowOp::Update(flow) => codec::update(flow),
        FlowOp::SetTimeout(key, timeout_s) => codec::set_timeout(key, *timeout_s),
        FlowOp::Delete(key) => codec::delete(key),
    }
}

/// Error number of an entry that is not there.
pub const ENOENT: i32 = libc::ENOENT;
/// Error number of an entry that is there already.
pub const EEXIST: i32 = libc::EEXIST;
/// Error number of a change that the entry's state forbids.
pub const EBUSY: i32 = libc::EBUSY;

/// Error number of an entry that the table has no room for.
pub const ENOMEM: i32 = libc::ENOMEM;

/// Words for an error number.
pub fn describe(errno: i32) -> String {
    match errno {
        libc::ENOMEM | libc::ENFILE | libc::ENOSPC => "the connection tracking table is full".to_owned(),
        other => io::Error::from_raw_os_error(other).to_string(),
    }
}
