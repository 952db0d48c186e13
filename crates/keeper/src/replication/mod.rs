//! Replication of tracked connections between the hosts that have copies of a router: what the loop says to
//! the thread that does it, and what it can read back.
//!
//! Read [`evergate_ctsync`] for what is said between hosts, `seal` for how it is protected, `worker` for the
//! thread. Nothing here waits for that thread: commands go into a queue, and the status is what it last left.

mod inject;
mod peer;
mod seal;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Context as _;
use evergate_ctsync::Role;
use evergate_model::{HaState, RouterId};
use tracing::error;

use crate::hex;
use crate::protocol::{FromKeeper, Removal, ReplicationStatus, Settings, Status, ToKeeper};
use seal::ClusterKey;
use worker::{Command, Setup, Worker};

/// Enough for the engine's calls, and little to lock.
const STACK: usize = 512 << 10;

/// What the thread last said about itself. As long as all routers: handed on, and never copied.
#[derive(Debug, Default)]
struct Snapshot {
    routers: Vec<ReplicationStatus>,
    /// Of routers that are active here: the hosts that hold all connections.
    complete: BTreeMap<RouterId, BTreeSet<IpAddr>>,
    discards: BTreeMap<String, u64>,
}

/// The loop's end.
#[derive(Debug)]
pub(crate) struct Replication {
    commands: Sender<Command>,
    bell: UnixStream,
    shared: Arc<Mutex<Arc<Snapshot>>>,
    /// What was read last, for when the thread is just writing.
    last: Arc<Snapshot>,
    active: BTreeMap<RouterId, u64>,
    /// This host's tunnel address.
    own: Option<IpAddr>,
}

impl Replication {
    /// Starts the thread. Its priority is ordinary, whatever the caller's is.
    pub(crate) fn start(netns_path: PathBuf) -> anyhow::Result<Self> {
        let (commands, todo) = channel();
        let (bell, ringer) = UnixStream::pair().context("failed to make a pair of sockets")?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let shared = Arc::<Mutex<Arc<Snapshot>>>::default();
        let worker = Worker::new(netns_path, Arc::clone(&shared))?;
        let work = move || {
            if let Err(error) = worker.run(&todo, ringer) {
                error!("connections are not replicated any more: {error:#}");
            }
        };
        let thread = thread::Builder::new().name("replication".to_owned()).stack_size(STACK);
        thread.spawn(work).context("failed to start a thread")?;
        Ok(Self { commands, bell, shared, last: Arc::default(), active: BTreeMap::new(), own: None })
    }

    fn tell(&mut self, command: Command) {
        // A thread that has ended has said so.
        let _ = self.commands.send(command);
        // A full bell has been rung.
        let _ = self.bell.write(&[0]);
    }

    /// Hears what control says to the keeper.
    pub(crate) fn hear(&mut self, message: &ToKeeper) {
        match message {
            ToKeeper::Hello { settings, .. } | ToKeeper::Settings { settings } => {
                self.own = settings.vtep;
                self.tell(Command::Settings(setup(settings)));
            }
            ToKeeper::Router(spec) => {
                let peers: BTreeSet<_> = spec.peer_hosts.values().copied().collect();
                self.tell(Command::Router { router: spec.router, netns: spec.netns.clone(), peers });
            }
            // What is active here is handed over first, and its connections with it.
            ToKeeper::RemoveRouter { router, how: Removal::Leaves } if self.active.contains_key(router) => {}
            ToKeeper::RemoveRouter { router, .. } => self.forget(*router),
            ToKeeper::Follow(_)
            | ToKeeper::Vrids { .. }
            | ToKeeper::Cede { .. }
            | ToKeeper::Unfollow { .. }
            | ToKeeper::Advertise(_)
            | ToKeeper::CeaseAdvertising { .. }
            | ToKeeper::Unadvertise { .. }
            | ToKeeper::Server { .. }
            | ToKeeper::Letter { .. }
            | ToKeeper::EndOfState
            | ToKeeper::Status
            | ToKeeper::Shutdown => {}
        }
    }

    /// Hears what the keeper says to control, and adds to the status what is known here.
    pub(crate) fn overhear(&mut self, message: &mut FromKeeper) {
        match message {
            FromKeeper::Transition(transition) => {
                let router = transition.router;
                let role = match transition.state {
                    HaState::Active => Role::Active { epoch: transition.epoch },
                    HaState::Standby => Role::Standby,
                };
                self.set_role(router, role);
            }
            // A copy that was and stays active, with a higher epoch.
            FromKeeper::Claimed { router, epoch, vtep } => {
                let (router, epoch) = (*router, *epoch);
                if self.own == Some(*vtep) && self.active.contains_key(&router) {
                    self.set_role(router, Role::Active { epoch });
                }
            }
            FromKeeper::Removed { router } => self.forget(*router),
            FromKeeper::Status(status) => self.add_to(status),
            FromKeeper::Hello { .. }
            | FromKeeper::Letter { .. }
            | FromKeeper::Note { .. }
            | FromKeeper::Warning { .. } => {}
        }
    }

    fn set_role(&mut self, router: RouterId, role: Role) {
        match role {
            Role::Active { epoch } => drop(self.active.insert(router, epoch)),
            Role::Standby => drop(self.active.remove(&router)),
        }
        self.tell(Command::Role { router, role });
    }

    fn forget(&mut self, router: RouterId) {
        self.active.remove(&router);
        self.tell(Command::Remove { router });
    }

    /// The hosts that hold all connections of each of these routers, which are active here, as far as the thread has
    /// said.
    pub(crate) fn complete(&mut self, routers: &BTreeSet<RouterId>) -> BTreeMap<RouterId, BTreeSet<IpAddr>> {
        self.read();
        let hosts = |router: &RouterId| self.last.complete.get(router).cloned().unwrap_or_default();
        routers.iter().map(|router| (*router, hosts(router))).collect()
    }

    fn read(&mut self) {
        // The thread's priority is lower than the loop's: never wait for it.
        if let Ok(snapshot) = self.shared.try_lock() {
            self.last = Arc::clone(&snapshot);
        }
    }

    fn add_to(&mut self, status: &mut Status) {
        self.read();
        status.replication = self.last.routers.clone();
        status.discards.extend(self.last.discards.clone());
    }
}

fn setup(settings: &Settings) -> Option<Setup> {
    let (address, port) = (settings.vtep?, settings.replication_port?);
    let key = ClusterKey::new(hex::decode(&settings.claim_key).ok()?)?;
    Some(Setup { key, address, port })
}
