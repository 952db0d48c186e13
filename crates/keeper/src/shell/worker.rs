//! The thread that changes the kernel's configuration.
//!
//! Such changes wait for a lock that every namespace of the host shares. Usually that is a matter of
//! microseconds; while somebody removes many namespaces it was seen to take seconds. Advertisements must
//! go out meanwhile, so the loop leaves these jobs to this thread, which does them in order.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::Context as _;
use evergate_kernel::rt::{self, BatchSocket, NetnsFd};
use evergate_model::RouterId;

use super::sockets::{self, RouterSockets};
use crate::engine::effect::{Action, Batch, Opened, SocketRequest};
use crate::protocol::Place;

/// Locked memory is used memory: the default of 2 MiB would be twice what else the keeper needs.
const STACK: usize = 256 << 10;

/// One thing to do.
pub(super) enum Job {
    Open {
        router: RouterId,
        /// Which opening-and-closing of the router's this belongs to.
        life: u64,
        request: SocketRequest,
        fresh: bool,
    },
    Close {
        router: RouterId,
        sockets: Option<RouterSockets>,
    },
    /// Closing is a job as well.
    Discard(RouterSockets),
    Run(Batch),
    /// Lists the links of a router's namespace.
    List {
        router: RouterId,
        life: u64,
    },
}

/// What came of it.
pub(super) enum Done {
    Opened {
        router: RouterId,
        life: u64,
        request: SocketRequest,
        /// No sockets: those that are there fit.
        result: Result<(Option<RouterSockets>, Opened), String>,
    },
    Closed {
        router: RouterId,
    },
    Listed {
        router: RouterId,
        life: u64,
        /// Which are up, by index.
        links: Result<BTreeMap<u32, bool>, String>,
    },
    Ran {
        batch: Batch,
        results: Vec<Result<(), String>>,
    },
}

/// The loop's end of the thread. Readable when something is done.
pub(super) struct Worker {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    bell: UnixStream,
}

impl Worker {
    /// Starts the thread, with the given real-time priority if there is to be one.
    pub(super) fn start(netns_path: PathBuf, priority: Option<u8>) -> anyhow::Result<Self> {
        let host =
            NetnsFd::host().and_then(|netns| BatchSocket::open(&netns)).context("failed to talk to the kernel")?;
        let (jobs, todo) = channel();
        let (report, done) = channel();
        let (bell, ringer) = UnixStream::pair().context("failed to make a pair of sockets")?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let hands = Hands { netns_path, host, namespaces: BTreeMap::new(), report, ringer };
        let work = move || {
            if let Some(priority) = priority {
                // It was permitted to the loop, so it is to this thread; and if not, nothing depends on it.
                let _ = rt::set_fifo_priority(priority);
            }
            hands.work(&todo);
        };
        thread::Builder::new()
            .name("kernel".into())
            .stack_size(STACK)
            .spawn(work)
            .context("failed to start a thread")?;
        Ok(Self { jobs, done, bell })
    }

    /// Gives it a job.
    pub(super) fn give(&self, job: Job) -> anyhow::Result<()> {
        self.jobs.send(job).map_err(|_| anyhow::anyhow!("the thread that talks to the kernel has ended"))
    }

    /// Takes what is done.
    pub(super) fn take(&mut self) -> Vec<Done> {
        // First the bell, then the list: the other way round, what is done in between would be silent.
        let mut rings = [0; 256];
        while matches!(self.bell.read(&mut rings), Ok(length) if length == rings.len()) {}
        self.done.try_iter().collect()
    }
}

impl AsRawFd for Worker {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

/// What the thread works with.
struct Hands {
    netns_path: PathBuf,
    host: BatchSocket,
    namespaces: BTreeMap<RouterId, Namespace>,
    report: Sender<Done>,
    ringer: UnixStream,
}

struct Namespace {
    /// Tells a namespace from another that was made later by the same name.
    inode: u64,
    netns: NetnsFd,
    batch: BatchSocket,
    request: SocketRequest,
}

impl Hands {
    fn work(mut self, todo: &Receiver<Job>) {
        for job in todo {
            let done = match job {
                Job::Open { router, life, request, fresh } => {
                    let result = self.open(router, &request, fresh);
                    Done::Opened { router, life, request, result }
                }
                Job::Close { router, sockets } => {
                    drop(sockets);
                    self.namespaces.remove(&router);
                    Done::Closed { router }
                }
                Job::Discard(sockets) => {
                    drop(sockets);
                    continue;
                }
                Job::List { router, life } => {
                    let namespace = self.namespaces.get(&router).ok_or_else(|| "its namespace is not open".to_owned());
                    let links = namespace.and_then(|it| sockets::links(&it.netns).map_err(|error| error.full()));
                    Done::Listed { router, life, links }
                }
                Job::Run(batch) => {
                    let results = self.run(&batch);
                    Done::Ran { batch, results }
                }
            };
            if self.report.send(done).is_err() {
                return;
            }
            // A bell that cannot be rung is ringing already.
            let _ = self.ringer.write(&[1]);
        }
    }

    fn open(
        &mut self,
        router: RouterId,
        request: &SocketRequest,
        fresh: bool,
    ) -> Result<(Option<RouterSockets>, Opened), String> {
        let path = self.netns_path.join(&request.netns);
        let inode = std::fs::metadata(&path).map(|metadata| metadata.ino());
        let inode = inode.map_err(|error| format!("there is no network namespace {}: {error}", request.netns))?;
        let same = self.namespaces.get(&router).is_some_and(|namespace| namespace.inode == inode);
        if !same {
            let netns = NetnsFd::open(&path).map_err(|error| error.full())?;
            let batch = BatchSocket::open(&netns).map_err(|error| error.full())?;
            // Not yet what is requested: sockets are still to be opened.
            let request = SocketRequest { ha_ifindex: 0, ..request.clone() };
            self.namespaces.insert(router, Namespace { inode, netns, batch, request });
        }
        let namespace = self.namespaces.get_mut(&router).ok_or("the namespace was just entered")?;
        let address = request.virtual_address;
        let found = rt::has_address(&mut namespace.batch, request.ha_ifindex, address).map_err(|error| error.full())?;
        if !fresh && namespace.request == *request {
            return Ok((None, Opened { links: None, has_virtual_address: found }));
        }
        let (sockets, links) =
            RouterSockets::open(&mut self.host, &namespace.netns, request).map_err(|error| error.full())?;
        namespace.request = request.clone();
        Ok((Some(sockets), Opened { links: Some(links), has_virtual_address: found }))
    }

    fn run(&mut self, batch: &Batch) -> Vec<Result<(), String>> {
        let socket = match batch.place {
            Place::Host => &mut self.host,
            Place::Router => match self.namespaces.get_mut(&batch.router) {
                Some(namespace) => &mut namespace.batch,
                None => return vec![Err("its namespace is not open".to_owned()); batch.messages.len()],
            },
        };
        let results = socket.send_batch(&batch.messages);
        let judged = results.into_iter().zip(&batch.steps).map(|(result, (_, action))| match result {
            // What was on a device that is gone, is gone.
            Err(error) if *action == Action::Del && error.errno() == Some(libc::ENODEV) => Ok(()),
            // The item's key says what it was.
            Err(error) => Err(error.cause.to_string()),
            Ok(()) => Ok(()),
        });
        judged.collect()
    }
}
