//! The kernel of this host, as one object: its namespaces, each with its sockets.
//!
//! Sockets are opened once per namespace and kept (an open socket keeps working in its namespace, no
//! thread needs to stay there). A name may come to mean another namespace behind our back, so the
//! identity behind it is checked each time it is used.
//!
//! [`Kernel::observe`] is in `observe.rs`, [`Kernel::apply`] in `apply.rs`. Nothing is decided here: what
//! is owned, what must go and in which order is the planner's business.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use evergate_dataplane::state::OWNER_MARK;
use evergate_dataplane::{KernelState, Netns, Op};

use crate::apply::{self, Run};
use crate::error::{Cause, Error};
use crate::netns::{Created, Directory, NetnsFd, NetnsId};
use crate::route::link::{self, RawLink, Target};
use crate::socket::{Protocol, Socket};
use crate::sys;
use crate::wire::Frames;

/// Name of the loopback device in every namespace.
pub(crate) const LOOPBACK: &str = "lo";

/// Descriptors per namespace that is kept open: the namespace, route and nftables sockets.
const DESCRIPTORS: u64 = 3;

/// The kernel, with a route and an nftables socket kept per namespace.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) directory: Directory,
    pub(crate) spaces: BTreeMap<Netns, Space>,
    /// Named namespaces that carry no owner mark, so that each is looked into only once.
    pub(crate) foreign: BTreeMap<String, NetnsId>,
    /// So many namespaces are kept open at most; see [`DESCRIPTORS`].
    space_limit: usize,
    /// Where the search for unused link indexes goes on.
    next_index: u32,
}

/// An open namespace.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) id: NetnsId,
    pub(crate) netns: NetnsFd,
    pub(crate) route: Socket,
    /// None where the kernel has no nftables.
    pub(crate) nft: Option<Socket>,
}

impl Kernel {
    /// Opens the host's namespace; named ones are below `netns_path` (usually `/run/netns`).
    ///
    /// Raises the process's limit of open files to what is permitted: every router takes a few.
    pub fn open(netns_path: &Path) -> Result<Self, Error> {
        let open = || -> Result<Self, Cause> {
            let files = sys::raise_open_files_limit()?;
            let netns = NetnsFd::own()?;
            let mut spaces = BTreeMap::new();
            let (route, nft) = open_sockets()?;
            spaces.insert(Netns::Host, Space { id: netns.id()?, netns, route, nft });
            Ok(Self {
                directory: Directory::new(netns_path),
                spaces,
                foreign: BTreeMap::new(),
                // The rest of the process needs some, too.
                space_limit: (files / 2 / DESCRIPTORS) as usize,
                next_index: first_index(),
            })
        };
        open().map_err(|cause| Error::new("open the kernel's interfaces", cause))
    }

    /// The host's namespace, and every namespace that is owned or named in `desired`; kernel settings
    /// exactly those named in `desired`.
    ///
    /// Foreign links show where `desired` names them or where they are ports of a bridge of ours.
    pub fn observe(&mut self, desired: &KernelState) -> Result<KernelState, Error> {
        crate::observe::observe(self, desired)
    }

    /// Applies the ops in order, batched per namespace; attempts every one. Result i belongs to op i.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Error>> {
        Run::new(self, ops).apply()
    }

    /// The netlink message for a prepared item (an address, route, rule, neighbour or forwarding entry), for
    /// [`crate::rt::BatchSocket`]; link names are resolved to indexes now.
    pub fn encode(&mut self, op: &Op) -> Result<Vec<u8>, Error> {
        apply::encode_one(self, op)
    }

    /// Index of a link, if there is one of this name.
    pub fn link_index(&mut self, netns: &Netns, link: &str) -> Result<Option<u32>, Error> {
        let found = self.link(netns, link).map(|link| link.map(|link| link.index));
        found.map_err(|cause| Error::new(format!("look up link {link} in {netns}"), cause))
    }

    /// The open namespace of this name.
    pub(crate) fn space(&mut self, netns: &Netns) -> Result<&mut Space, Cause> {
        if let Netns::Named(name) = netns {
            let id = self.directory.id(name);
            if self.spaces.get(netns).map(|space| space.id) != id {
                self.close(netns);
            }
            if !self.spaces.contains_key(netns) {
                let space = self.open_space(name)?;
                self.keep(netns.clone(), space);
            }
        }
        Ok(self.spaces.get_mut(netns).expect("the host's is opened first, a named one just now"))
    }

    fn open_space(&self, name: &str) -> Result<Space, Cause> {
        let netns = self.directory.open(name)?.ok_or_else(|| Cause::NoNetns(name.to_owned()))?;
        let (route, nft) = netns.inside(open_sockets)??;
        Ok(Space { id: netns.id()?, netns, route, nft })
    }

    fn keep(&mut self, netns: Netns, space: Space) {
        while self.spaces.len() >= self.space_limit.max(2) {
            // Any will do: on a host this full, all are used in turn. The host's own sorts first.
            let Some(last) = self.spaces.keys().next_back().cloned() else { break };
            self.close(&last);
        }
        self.spaces.insert(netns, space);
    }

    /// Closes our sockets in a namespace, which would keep it alive.
    pub(crate) fn close(&mut self, netns: &Netns) {
        if *netns != Netns::Host {
            self.spaces.remove(netns);
        }
    }

    /// A link by its name.
    pub(crate) fn link(&mut self, netns: &Netns, name: &str) -> Result<Option<RawLink>, Cause> {
        match self.space(netns)?.route.get(link::get(name)) {
            Ok(answer) => Ok(answer.as_deref().and_then(link::read)),
            Err(Cause::Kernel(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// All links.
    pub(crate) fn links(&mut self, netns: &Netns) -> Result<Vec<RawLink>, Cause> {
        let links = self.space(netns)?.route.dump(link::dump())?;
        Ok(Frames(&links).filter_map(|frame| link::read(frame.payload)).collect())
    }

    /// Makes a namespace that carries our mark, or gives one that does the right alias.
    pub(crate) fn add_netns(&mut self, name: &str, alias: &str) -> Result<(), Cause> {
        let netns = Netns::Named(name.to_owned());
        let setup = || -> Result<_, Cause> {
            let (mut route, nft) = open_sockets()?;
            mark(&mut route, alias)?;
            Ok((route, nft))
        };
        match self.directory.create(name, setup)? {
            Created::New(fd, (route, nft)) => {
                self.close(&netns);
                // Identities are used again.
                self.foreign.remove(name);
                self.keep(netns, Space { id: fd.id()?, netns: fd, route, nft });
                Ok(())
            }
            Created::Exists if self.is_owned(&netns)? => mark(&mut self.space(&netns)?.route, alias),
            Created::Exists => {
                Err(Cause::InTheWay("a network namespace of this name exists that Evergate did not make".to_owned()))
            }
        }
    }

    /// Tells whether a namespace carries our mark.
    pub(crate) fn is_owned(&mut self, netns: &Netns) -> Result<bool, Cause> {
        Ok(self.link(netns, LOOPBACK)?.is_some_and(|link| is_ours(&link)))
    }

    /// An index for a new link, probably unused. (The kernel refuses a used one, and the caller asks for
    /// the next.) Choosing it ourselves lets further messages about the link travel with the one that makes it.
    pub(crate) fn unused_index(&mut self) -> u32 {
        let index = self.next_index;
        self.next_index = if index < LAST_INDEX { index + 1 } else { FIRST_INDEX };
        index
    }
}

/// Tells whether Evergate made this link.
pub(crate) fn is_ours(link: &RawLink) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with(OWNER_MARK))
}

/// Opens a route and an nftables socket in the calling thread's namespace.
fn open_sockets() -> Result<(Socket, Option<Socket>), Cause> {
    Ok((Socket::open(Protocol::Route)?, Socket::open(Protocol::Netfilter).ok()))
}

/// Marks the namespace as ours and brings its loopback device up.
fn mark(route: &mut Socket, alias: &str) -> Result<(), Cause> {
    let change =
        evergate_dataplane::op::LinkChange { up: Some(true), alias: Some(alias.to_owned()), ..Default::default() };
    let mut messages = link::set(Target::Name(LOOPBACK), &change, None)?;
    route.exchange(&mut messages).into_iter().collect()
}

/// The kernel counts from 1; a range of our own, still short to read in `ip link`, seldom collides.
const FIRST_INDEX: u32 = 100_000;
const LAST_INDEX: u32 = 999_999;

/// Another start each time, so that a restarted process does not run into its predecessor's links.
fn first_index() -> u32 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    FIRST_INDEX + nanos % (LAST_INDEX - FIRST_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Namespace;

    #[test]
    fn more_namespaces_than_descriptors_are_kept_open_in_turn() {
        // On this test's own thread, whose namespaces go with it.
        sys::unshare(&[Namespace::Net, Namespace::Mount]).expect("tests of this crate must run as root");
        sys::mount_make_private(Path::new("/")).unwrap();
        sys::mount_tmpfs(Path::new("/run")).unwrap();
        let mut kernel = Kernel::open(Path::new("/run/netns")).unwrap();
        kernel.space_limit = 3;
        let names: Vec<String> = (0..8).map(|i| format!("n{i}")).collect();
        for name in &names {
            kernel.add_netns(name, "evergate: test").unwrap();
        }
        for _ in 0..2 {
            let state = kernel.observe(&KernelState::default()).unwrap();
            assert_eq!(state.netns.len(), 9);
            assert!(kernel.spaces.len() <= 3 && kernel.spaces.contains_key(&Netns::Host));
        }
        assert!(kernel.delete_namespaces(&names).iter().all(Result::is_ok));
    }

    #[test]
    fn indexes_go_round_within_their_range() {
        sys::unshare(&[Namespace::Net]).expect("tests of this crate must run as root");
        let mut kernel = Kernel::open(Path::new("/run/netns")).unwrap();
        kernel.next_index = LAST_INDEX;
        assert_eq!([kernel.unused_index(), kernel.unused_index()], [LAST_INDEX, FIRST_INDEX]);
        assert!((FIRST_INDEX..LAST_INDEX).contains(&first_index()));
    }
}
