//! Router advertisements (RFC 4861): what the loop says to the thread that sends them.
//!
//! A router advertises itself where its subnets say so: a legacy router and a distributed one always, of an HA
//! router the active copy, from its takeover on. All copies share the link-local address that advertisements
//! come from, so to instances a failover is nothing: the router is still there, and is not said to have
//! ended. It is when an interface is taken from it, or when it is switched off.
//!
//! This is a module of the keeper, and not a crate of its own, because advertisements follow the role and need
//! nothing that the keeper does not have. [`message`] and [`engine`] do no I/O and read no clock; `worker` is a
//! thread of ordinary priority with sockets of its own, so that VRRP's loop never waits for it.

mod engine;
mod message;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::Context as _;
use evergate_model::{HaState, RouterId};
use tracing::error;

use crate::protocol::{AdvertiseSpec, FromKeeper, ToKeeper};
use worker::{Command, Worker};

/// A frame and some maps.
const STACK: usize = 256 << 10;

/// The loop's end.
#[derive(Debug)]
pub(crate) struct Advertising {
    commands: Sender<Command>,
    bell: UnixStream,
    specs: BTreeMap<RouterId, AdvertiseSpec>,
    /// HA routers that are active here.
    active: BTreeSet<RouterId>,
    /// What control has mentioned since `Hello`; what it has not ends at `EndOfState`.
    mentioned: Option<BTreeSet<RouterId>>,
}

impl Advertising {
    /// Starts the thread. Its priority is ordinary, whatever the caller's is.
    pub(crate) fn start(netns_path: PathBuf, seed: u64) -> anyhow::Result<Self> {
        let (commands, todo) = channel();
        let (bell, ringer) = UnixStream::pair().context("failed to make a pair of sockets")?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let worker = Worker::new(netns_path, seed)?;
        let work = move || {
            if let Err(error) = worker.run(&todo, ringer) {
                error!("routers are not advertised any more: {error:#}");
            }
        };
        let thread = thread::Builder::new().name("advertising".to_owned()).stack_size(STACK);
        thread.spawn(work).context("failed to start a thread")?;
        Ok(Self { commands, bell, specs: BTreeMap::new(), active: BTreeSet::new(), mentioned: None })
    }

    /// Hears what control says to the keeper.
    pub(crate) fn hear(&mut self, message: &ToKeeper) {
        match message {
            ToKeeper::Hello { .. } => self.mentioned = Some(BTreeSet::new()),
            ToKeeper::Advertise(spec) => {
                if let Some(mentioned) = &mut self.mentioned {
                    mentioned.insert(spec.router);
                }
                self.specs.insert(spec.router, spec.clone());
                self.apply(spec.router);
            }
            ToKeeper::CeaseAdvertising { router, links } => {
                if let Some(spec) = self.specs.get_mut(router) {
                    spec.links.retain(|link| !links.contains(&link.link));
                    self.tell(Command::Cease { router: *router, links: links.clone() });
                }
            }
            ToKeeper::Unadvertise { router } => self.forget(*router),
            ToKeeper::RemoveRouter { router, .. } => {
                self.active.remove(router);
                // Of a distributed router, what is advertised here may be more than the copy that goes.
                if self.specs.get(router).is_some_and(|spec| spec.follows_role) {
                    self.forget(*router);
                }
            }
            ToKeeper::EndOfState => {
                let mentioned = self.mentioned.take().unwrap_or_default();
                let gone: Vec<RouterId> =
                    self.specs.keys().filter(|router| !mentioned.contains(router)).copied().collect();
                gone.into_iter().for_each(|router| self.forget(router));
            }
            ToKeeper::Settings { .. }
            | ToKeeper::Router(_)
            | ToKeeper::Vrids { .. }
            | ToKeeper::Follow(_)
            | ToKeeper::Cede { .. }
            | ToKeeper::Unfollow { .. }
            | ToKeeper::Server { .. }
            | ToKeeper::Letter { .. }
            | ToKeeper::Status
            | ToKeeper::Shutdown => {}
        }
    }

    /// Hears what the keeper says to control: a copy's transition, when the kernel has its addresses.
    pub(crate) fn overhear(&mut self, message: &FromKeeper) {
        if let FromKeeper::Transition(transition) = message {
            match transition.state {
                HaState::Active => self.active.insert(transition.router),
                HaState::Standby => self.active.remove(&transition.router),
            };
            self.apply(transition.router);
        }
    }

    fn apply(&mut self, router: RouterId) {
        let Some(spec) = self.specs.get(&router) else { return };
        let command = if !spec.follows_role || self.active.contains(&router) {
            Command::Advertise(spec.clone())
        } else {
            Command::Hush { router }
        };
        self.tell(command);
    }

    fn forget(&mut self, router: RouterId) {
        if self.specs.remove(&router).is_some() {
            self.tell(Command::Hush { router });
        }
    }

    fn tell(&mut self, command: Command) {
        // A thread that has ended has said so.
        let _ = self.commands.send(command);
        // A full bell has been rung.
        let _ = self.bell.write(&[0]);
    }
}
