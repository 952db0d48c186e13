//! Observes and applies.

use std::path::Path;

use evergate_dataplane::{KernelState, Netns, Op};

use crate::Error;

/// The kernel, with a route socket (and, where needed, an nftables socket) kept per namespace.
#[derive(Debug)]
pub struct Kernel {}

impl Kernel {
    /// Opens the host's namespace; named ones are below `netns_path` (usually `/run/netns`).
    pub fn open(netns_path: &Path) -> Result<Self, Error> {
        unimplemented!("{netns_path:?}")
    }
    /// Host namespace, and every namespace that is owned or named in `desired`; sysctls exactly those
    /// named in `desired`.
    pub fn observe(&mut self, desired: &KernelState) -> Result<KernelState, Error> {
        unimplemented!("{desired:?}")
    }
    /// Applies the ops, batched per namespace where order permits; attempts every one. Result i belongs to op i.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Error>> {
        unimplemented!("{ops:?}")
    }
    /// The netlink message for a prepared item (an address, route, neighbour or forwarding entry), for
    /// [`crate::rt::BatchSocket`]; link names are resolved to indexes now.
    pub fn encode(&mut self, op: &Op) -> Result<Vec<u8>, Error> {
        unimplemented!("{op:?}")
    }
    /// Index of a link, if there is one of this name.
    pub fn link_index(&mut self, netns: &Netns, link: &str) -> Result<Option<u32>, Error> {
        unimplemented!("{netns} {link}")
    }
}
