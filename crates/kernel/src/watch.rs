//! Link events.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::Error;

/// A link appeared, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Administratively up.
    pub up: bool,
    /// Has carrier and is operational.
    pub running: bool,
    /// Does not exist any more (or has moved to another namespace).
    pub gone: bool,
}

/// Watches the links of the namespace that the process runs in. Begins with an event per existing link;
/// never loses an event for good: after an overrun, it compares all links with what it told before.
#[derive(Debug)]
pub struct HostWatch {}

impl HostWatch {
    /// Subscribes, then lists what is there.
    pub fn open() -> Result<Self, Error> {
        unimplemented!()
    }
    /// The next event, if there is one now.
    pub fn next_event(&mut self) -> Result<Option<LinkEvent>, Error> {
        unimplemented!()
    }
    /// The next event, waiting for it at most this long.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<LinkEvent>, Error> {
        unimplemented!("{timeout:?}")
    }
}

impl AsRawFd for HostWatch {
    fn as_raw_fd(&self) -> RawFd {
        unimplemented!()
    }
}
