//! Links as they appear, change and go.
//!
//! The kernel sends a notification per change, and drops some when the reader is slow. A watcher remembers
//! what it told; after a loss it compares that with all links there are, and tells the difference. So its
//! caller may trust that the last event about a link is true.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use tracing::{debug, warn};

use crate::error::{Cause, Error};
use crate::netns::NetnsFd;
use crate::route::link;
use crate::socket::{Protocol, Socket};
use crate::sys;
use crate::wire::{Frame, Frames};

/// A notification about one link, with all its attributes, takes about 1.5 KiB.
const BUFFER: usize = 16 << 10;

/// A link appeared, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and able to pass packets: it has carrier, a veth's other end is up.
    pub running: bool,
    /// Does not exist any more by this name (or has moved to another namespace).
    pub gone: bool,
}

/// Watches the links of the namespace that the calling thread is in.
///
/// Begins with an event per existing link. Not every change of a link makes an event: only those of what
/// [`LinkEvent`] holds.
#[derive(Debug)]
pub struct HostWatch(Watcher);

impl HostWatch {
    /// Subscribes, then lists what is there.
    pub fn open() -> Result<Self, Error> {
        let open = || Watcher::open(NetnsFd::own()?);
        open().map(Self).map_err(watching)
    }

    /// The next event, if there is one now.
    pub fn next_event(&mut self) -> Result<Option<LinkEvent>, Error> {
        self.0.next_event().map_err(watching)
    }

    /// The next event, waiting for it at most this long.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<LinkEvent>, Error> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if let Some(event) = self.next_event()? {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let readable = sys::wait_readable(self.as_raw_fd(), Some(left));
            if !readable.map_err(|error| watching(error.into()))? {
                return Ok(None);
            }
        }
    }
}

impl AsRawFd for HostWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a [`MachineLinkWatch`] heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A link of a namespace, as it is now. Not every event is a change of what [`LinkEvent`] holds.
    Link {
        /// The namespace's number in the watch's own.
        netns: i32,
        /// The link.
        link: LinkEvent,
    },
    /// Notifications were lost: all links of all namespaces are to be listed anew.
    Lost,
}

/// Hears of the links of all namespaces that have a number in the one it was opened in, on one socket.
///
/// The kernel offers each notification, of whichever namespace, to each socket that is subscribed to anything: with a
/// watch per namespace, an address in one of a thousand costs a thousand looks. Who uses it lists what there is
/// ([`list_links`]) after the namespace has its number.
#[derive(Debug)]
pub struct MachineLinkWatch {
    socket: Socket,
    queue: VecDeque<Heard>,
}

impl MachineLinkWatch {
    /// Subscribes in the calling thread's namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || -> Result<Socket, Cause> {
            let socket = Socket::open(Protocol::Route)?;
            socket.listen_everywhere()?;
            socket.join(libc::RTNLGRP_LINK)?;
            Ok(socket)
        };
        open().map(|socket| Self { socket, queue: VecDeque::new() }).map_err(watching)
    }

    /// The next thing heard, if there is one now. A socket that fails yields `None`, and says so in the log.
    #[expect(clippy::should_implement_trait, reason = "more comes later again, unlike an iterator's items")]
    pub fn next(&mut self) -> Option<Heard> {
        let mut buffer = [0; BUFFER];
        while self.queue.is_empty() {
            match self.socket.receive_from_anywhere(&mut buffer) {
                Ok(Some((length, Some(netns)))) => {
                    let links = Frames(&buffer[..length]).filter_map(|frame| event(&frame));
                    self.queue.extend(links.map(|link| Heard::Link { netns, link }));
                }
                // The watch's own namespace.
                Ok(Some((_, None))) => {}
                Ok(None) => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Some(Heard::Lost),
                Err(error) => {
                    warn!(error = watching(error.into()).full(), "link events may be missed");
                    return None;
                }
            }
        }
        self.queue.pop_front()
    }
}

impl AsRawFd for MachineLinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// All links of a namespace.
pub fn list_links(netns: &NetnsFd) -> Result<Vec<LinkEvent>, Error> {
    let list = || -> Result<Vec<LinkEvent>, Cause> {
        let found = Socket::open_in(netns, Protocol::Route)?.dump(link::dump())?;
        Ok(Frames(&found).filter_map(|frame| event(&frame)).collect())
    };
    list().map_err(|cause| Error::new("list links", cause))
}

/// What a notification, or an item of a list, says of a link.
fn event(frame: &Frame<'_>) -> Option<LinkEvent> {
    let gone = match frame.kind {
        libc::RTM_NEWLINK => false,
        libc::RTM_DELLINK => true,
        _ => return None,
    };
    // Not every such message is about a link: a port that leaves its bridge makes a DELLINK of the
    // bridge's family. `read` passes over those.
    let link = link::read(frame.payload)?;
    let running = link.running && !gone;
    Some(LinkEvent { name: link.name, ifindex: link.index, up: link.up && !gone, running, gone })
}

pub(crate) fn watching(cause: Cause) -> Error {
    Error::new("watch links", cause)
}

/// The common part of [`HostWatch`] and [`crate::rt::LinkWatch`].
#[derive(Debug)]
pub(crate) struct Watcher {
    netns: NetnsFd,
    socket: Socket,
    /// What was told last, by index; never a link that is gone.
    told: BTreeMap<u32, LinkEvent>,
    queue: VecDeque<LinkEvent>,
}

impl Watcher {
    pub(crate) fn open(netns: NetnsFd) -> Result<Self, Cause> {
        let socket = Socket::open_in(&netns, Protocol::Route)?;
        // First this, then the list: the other way round, a change in between would be missed.
        socket.join(libc::RTNLGRP_LINK)?;
        let mut watcher = Self { netns, socket, told: BTreeMap::new(), queue: VecDeque::new() };
        watcher.compare_all()?;
        Ok(watcher)
    }

    pub(crate) fn next_event(&mut self) -> Result<Option<LinkEvent>, Cause> {
        let mut buffer = [0; BUFFER];
        while self.queue.is_empty() {
            match self.socket.receive(&mut buffer) {
                Ok(Some(length)) => self.take(&buffer[..length]),
                Ok(None) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    debug!("link notifications were lost; comparing all links");
                    // What is still queued is older than the list, and must not be told after it.
                    while self.socket.receive(&mut buffer)?.is_some() {}
                    self.compare_all()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.queue.pop_front())
    }

    fn take(&mut self, bytes: &[u8]) {
        for event in Frames(bytes).filter_map(|frame| event(&frame)) {
            self.tell(event);
        }
    }

    /// Queues the event if it says anything new.
    fn tell(&mut self, event: LinkEvent) {
        let before =
            if event.gone { self.told.remove(&event.ifindex) } else { self.told.insert(event.ifindex, event.clone()) };
        match before {
            Some(before) if before == event => return,
            None if event.gone => return,
            Some(before) if before.name != event.name => {
                // Renamed: whoever knows it by the former name must let go of that.
                self.queue.push_back(LinkEvent { up: false, running: false, gone: true, ..before });
                if event.gone {
                    return;
                }
            }
            Some(_) | None => {}
        }
        self.queue.push_back(event);
    }

    /// Tells how all links differ from what was told.
    fn compare_all(&mut self) -> Result<(), Cause> {
        // On a socket of its own: on ours the answer would come between notifications.
        let found = Socket::open_in(&self.netns, Protocol::Route)?.dump(link::dump())?;
        let links: BTreeMap<_, _> =
            Frames(&found).filter_map(|frame| event(&frame)).map(|link| (link.ifindex, link)).collect();
        let gone: Vec<_> = self.told.values().filter(|told| !links.contains_key(&told.ifindex)).cloned().collect();
        for told in gone {
            self.tell(LinkEvent { up: false, running: false, gone: true, ..told });
        }
        for link in links.into_values() {
            self.tell(link);
        }
        Ok(())
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
