//! What the loop waits for: sockets that hear frames of routers, and everything else.
//!
//! Advertisements come in batches, and to wake up for each of a batch costs more than to take it. So after frames came,
//! the loop waits a moment for everything but frames, and then takes all that have come meanwhile.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use evergate_kernel::rt::Epoll;

/// In `all`, that something else than a frame has come.
const OTHERS: u64 = u64::MAX;

pub(super) struct Events {
    all: Epoll,
    others: Epoll,
    more: Vec<u64>,
}

impl Events {
    pub(super) fn new() -> io::Result<Self> {
        let (all, others) = (Epoll::new()?, Epoll::new()?);
        all.add(&others, OTHERS)?;
        Ok(Self { all, others, more: Vec::new() })
    }

    /// Everything but frames: it is watched through this.
    pub(super) fn others(&self) -> &Epoll {
        &self.others
    }

    pub(super) fn add_frames(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.all.add(fd, token)
    }

    pub(super) fn remove_frames(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.all.remove(fd)
    }

    /// Waits for anything until a moment; puts the tokens of what is ready into `ready`, cleared first.
    pub(super) fn wait(&mut self, until: Instant, ready: &mut Vec<u64>) -> io::Result<()> {
        self.all.wait(Some(until), ready)?;
        if let Some(place) = ready.iter().position(|token| *token == OTHERS) {
            ready.swap_remove(place);
            self.others.wait(Some(until), &mut self.more)?;
            ready.append(&mut self.more);
        }
        Ok(())
    }

    /// The same, for everything but frames.
    pub(super) fn wait_without_frames(&mut self, until: Instant, ready: &mut Vec<u64>) -> io::Result<()> {
        self.others.wait(Some(until), ready)
    }
}
