//! The keeper's loop: one thread that waits for sockets and timers, feeds the engine, and carries out
//! its effects. What may take long, [`worker`] does.
//!
//! Nothing here blocks, and nothing touches a disk: the run path is expected in memory (`/run`). Packets
//! are taken before timers, also after the process was kept from running for a while: what has arrived
//! meanwhile may say that the silence a timer would report was not one.

mod bfd;
mod control;
mod events;
mod links;
mod mailbox;
mod scripts;
mod sockets;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use evergate_kernel::rt::{self, BatchSocket, LinkWatch, NetnsFd};
use evergate_kernel::sys::{self, LockFile, Signal, SignalFd};
use evergate_model::RouterId;
use tracing::{debug, info, warn};

use crate::claims::wire::MAX_DATAGRAM;
use crate::engine::effect::Effect;
use crate::engine::{Engine, Start};
use crate::protocol::{FromKeeper, LOCK_NAME, STOP_PATIENCE, ToKeeper};
use crate::radv::Advertising;
use crate::replication::Replication;
use bfd::BfdPort;
use control::Connection;
use events::Events;
use links::{Change, Links};
use mailbox::Mailbox;
use scripts::Scripts;
use sockets::RouterSockets;
use worker::{Done, Job, Worker};

/// Where the keeper finds and leaves things.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the socket and the lock.
    pub run_path: PathBuf,
    /// Folder of the namespaces.
    pub netns_path: PathBuf,
}

/// Above the kernel's own threads for softirq work there is nothing that must come first; below 50, where
/// threaded interrupts run, an advertisement does not wait behind ordinary work, nor do interrupts behind us.
const FIFO_PRIORITY: u8 = 40;
/// Datagrams or frames taken from one socket per turn.
const READS_PER_TURN: usize = 64;
/// How long is announced before it is looked whether anything else is to be done.
const ANNOUNCING: Duration = Duration::from_millis(1);
/// For how long to wait for more frames after some came: a batch of another host's arrives within it, and no timer of
/// VRRP's is so short that it would matter.
const GATHERING: Duration = Duration::from_micros(250);
/// A timer later than this means that we were kept from running.
const CATCH_UP: Duration = Duration::from_millis(20);
/// Turns that are given to packets alone when that happened.
const CATCH_UP_TURNS: usize = 16;
/// How often the sign of life is renewed: well below the shortest time in which others take over (3 s).
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// How long not to accept connections when that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// When to try again to bind the claim socket: its address may not be configured yet.
const REBIND: Duration = Duration::from_secs(1);
/// Name of the file whose modification time tells the next keeper when this one lived last; it is empty, or says
/// [`EXCUSED`].
const SIGN_NAME: &str = "keeper.alive";

/// The other hosts were asked for patience.
const EXCUSED: &[u8] = b"excused";

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const CONTROL: u64 = 2;
const CLAIMS: u64 = 3;
const WORKER: u64 = 4;
const BFD: u64 = 5;
const SCRIPTS: u64 = 6;
const HOST_LINKS: u64 = 7;
const LINKS: u64 = 8;
/// Tokens from here on: four per opening of a router's sockets.
const FIRST_ROUTER: u64 = 12;
const VRRP: u64 = 0;
/// Two: for IPv4 and IPv6.
const ANSWERS: u64 = 1;
const TOKENS_PER_ROUTER: u64 = 4;

/// Runs until it is told to stop.
pub fn run(options: Options) -> anyhow::Result<()> {
    let signals = SignalFd::new(&[Signal::Term, Signal::Int, Signal::Hup]).context("failed to listen for signals")?;
    let mut shell = Shell::new(options, signals)?;
    info!(pid = std::process::id(), "keeper started");
    shell.run()
}

struct Shell {
    options: Options,
    engine: Engine,
    events: Events,
    signals: SignalFd,
    listener: UnixListener,
    control: Option<Connection>,
    mailbox: Mailbox,
    accept_at: Option<Instant>,
    worker: Worker,
    scripts: Scripts,
    host_links: LinkWatch,
    links: Links,
    replication: Replication,
    advertising: Advertising,
    routers: BTreeMap<RouterId, Router>,
    router_of: BTreeMap<u64, RouterId>,
    /// Counts openings of sockets. Never repeats, so nothing late is taken for something new.
    next_token: u64,
    stopping_since: Option<Instant>,
    /// Another keeper is to take this one's place.
    restarting: bool,
    /// The other hosts were asked for patience with that.
    excused: bool,
    claims: Option<UdpSocket>,
    claims_at: Option<SocketAddr>,
    rebind_at: Option<Instant>,
    bfd: BfdPort,
    /// Interfaces that could not be sent on, and were told of.
    unsent: BTreeSet<(RouterId, u32)>,
    sign: File,
    sign_at: Instant,
    frame: Vec<u8>,
    /// A socket may hold more than was taken from it.
    unread: bool,
    /// Frames came, and more are likely to come within a moment.
    heard: bool,
    _lock: LockFile,
}

/// A router that the engine wants sockets for.
struct Router {
    /// Which life: between its first opening and its closing.
    life: u64,
    open: Option<Open>,
}

struct Open {
    sockets: RouterSockets,
    token: u64,
}

impl Shell {
    fn new(options: Options, signals: SignalFd) -> anyhow::Result<Self> {
        let run_path = &options.run_path;
        fs::create_dir_all(run_path).with_context(|| format!("failed to make {}", run_path.display()))?;
        let lock_path = run_path.join(LOCK_NAME);
        let lock = LockFile::acquire(&lock_path)
            .with_context(|| format!("failed to lock {}; is another keeper running?", lock_path.display()))?;
        let (sign, away, was_excused) = open_sign(run_path).context("failed to make the sign of life")?;
        let listener =
            control::listen(run_path).with_context(|| format!("failed to listen below {}", run_path.display()))?;
        let start = Start { away, was_excused, paths: find_paths(), ..start() };
        let worker = Worker::start(options.netns_path.clone(), start.realtime.then_some(FIFO_PRIORITY - 1))?;
        let replication = Replication::start(options.netns_path.clone())?;
        let scripts = Scripts::start(options.netns_path.clone())?;
        let host_links = NetnsFd::host().and_then(|host| LinkWatch::open(&host)).context("failed to watch links")?;
        let advertising = Advertising::start(options.netns_path.clone(), start.seed)?;
        let events = Events::new().context("failed to make the event queue")?;
        let epoll = events.others();
        epoll.add(&listener, LISTENER)?;
        epoll.add(&signals, SIGNALS)?;
        epoll.add(&worker, WORKER)?;
        epoll.add(&scripts, SCRIPTS)?;
        epoll.add(&host_links, HOST_LINKS)?;
        let links = Links::open().context("failed to watch the links of namespaces")?;
        epoll.add(&links, LINKS)?;
        let now = Instant::now();
        Ok(Self {
            engine: Engine::new(start, now),
            options,
            events,
            signals,
            listener,
            control: None,
            mailbox: Mailbox::default(),
            accept_at: None,
            worker,
            scripts,
            host_links,
            links,
            replication,
            advertising,
            routers: BTreeMap::new(),
            router_of: BTreeMap::new(),
            next_token: FIRST_ROUTER,
            stopping_since: None,
            restarting: false,
            excused: false,
            claims: None,
            claims_at: None,
            rebind_at: None,
            bfd: BfdPort::default(),
            unsent: BTreeSet::new(),
            sign,
            sign_at: now,
            frame: vec![0; 2048],
            unread: false,
            heard: false,
            _lock: lock,
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Vec::new();
        // What there is was listed when the watch was opened: nothing else would wake us for it.
        self.read_host_links()?;
        loop {
            self.carry_out()?;
            if self.restarting {
                return self.leave_to_successor();
            }
            if self.may_leave() {
                return self.leave();
            }
            self.write_to_control();
            self.announce()?;
            self.wait(&mut ready).context("failed to wait for events")?;
            self.handle_ready(&ready)?;
            for _ in 0..CATCH_UP_TURNS {
                let unread = std::mem::take(&mut self.unread);
                let patience = if unread { Duration::ZERO } else { CATCH_UP };
                let late = self.engine.poll_timeout().is_some_and(|(at, _)| at + patience < Instant::now());
                if !late || ready.is_empty() {
                    break;
                }
                self.events.wait(Instant::now(), &mut ready).context("failed to wait for events")?;
                self.handle_ready(&ready)?;
            }
            self.handle_timers();
        }
    }

    /// Announces for a moment: what is left goes on when all else that is to be done has been.
    fn announce(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + ANNOUNCING;
        while let Some(effect) = self.engine.poll_announcement() {
            self.do_one(effect)?;
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the next thing to do. After frames came, that is nothing but timers and other things for a moment: more
    /// frames are taken together. Those that were waited for so are followed by no such moment, or one that is alone
    /// would cost two.
    fn wait(&mut self, ready: &mut Vec<u64>) -> io::Result<()> {
        let until = if self.engine.has_announcements() { Instant::now() } else { self.next_deadline() };
        let gathering = std::mem::take(&mut self.heard);
        if gathering {
            let end = until.min(Instant::now() + GATHERING);
            self.events.wait_without_frames(end, ready)?;
            self.engine.handle_wakeup(end, Instant::now());
            if !ready.is_empty() {
                return Ok(());
            }
        }
        self.events.wait(until, ready)?;
        self.engine.handle_wakeup(until, Instant::now());
        self.heard = !gathering && ready.iter().any(|token| *token >= FIRST_ROUTER);
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        let stop = self.stopping_since.map(|since| since + STOP_PATIENCE);
        engine
            .into_iter()
            .chain(self.rebind_at)
            .chain(self.bfd.retry_at())
            .chain(self.accept_at)
            .chain(stop)
            .fold(self.sign_at, Instant::min)
    }

    fn may_leave(&self) -> bool {
        let patient = self.stopping_since.is_some_and(|since| since.elapsed() < STOP_PATIENCE);
        self.engine.is_stopped() || (self.stopping_since.is_some() && !patient)
    }

    fn handle_timers(&mut self) {
        let now = Instant::now();
        if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.engine.handle_timeout(now);
        }
        if self.rebind_at.is_some_and(|at| at <= now) {
            self.bind_claims(self.claims_at);
        }
        let text = self.bfd.retry(now, self.events.others(), BFD);
        self.tell(text);
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
            if let Err(error) = self.events.others().add(&self.listener, LISTENER) {
                warn!("failed to listen for control: {error}");
            }
        }
        if self.sign_at <= now {
            self.sign_at = now + SIGN_OF_LIFE;
            // Without it the next keeper does not know how long it was away, and assumes: not long.
            let _ = self.sign.set_modified(SystemTime::now());
        }
    }

    fn handle_ready(&mut self, ready: &[u64]) -> anyhow::Result<()> {
        for &token in ready {
            match token {
                LISTENER => self.accept(),
                SIGNALS => self.handle_signals(),
                CONTROL => self.read_control()?,
                CLAIMS => self.read_claims()?,
                BFD => self.read_bfd()?,
                WORKER => self.take_done()?,
                SCRIPTS => self.take_scripts(),
                HOST_LINKS => self.read_host_links()?,
                LINKS => self.read_links()?,
                router => self.handle_router(router)?,
            }
            self.carry_out()?;
        }
        Ok(())
    }

    fn handle_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read() {
            // What has begun to be handed over is.
            if signal == Signal::Hup && self.stopping_since.is_none() {
                self.excused = self.engine.handle_restart(Instant::now());
                self.restarting = true;
                return;
            }
            info!(?signal, "asked to stop");
            self.stopping_since.get_or_insert(Instant::now());
            self.engine.handle_stop(Instant::now());
        }
    }

    /// The newest connection is control's; an older one belongs to a control that is gone or going.
    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if self.control.take().is_some() {
                        self.engine.handle_disconnected(Instant::now());
                    }
                    self.mailbox.connect();
                    let taken = Connection::new(stream).and_then(|connection| {
                        self.events.others().add(&connection, CONTROL)?;
                        Ok(connection)
                    });
                    match taken {
                        Ok(connection) => self.control = Some(connection),
                        Err(error) => {
                            warn!("failed to take control's connection: {error}");
                            self.mailbox.disconnect();
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // The listener stays ready, so without a pause this would be all that the loop does.
                    warn!("failed to accept control's connection: {error}");
                    let _ = self.events.others().remove(&self.listener);
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn read_control(&mut self) -> anyhow::Result<()> {
        let Some(connection) = &mut self.control else { return Ok(()) };
        let reading = connection.read();
        for message in reading.messages {
            if matches!(message, ToKeeper::Shutdown) {
                self.stopping_since.get_or_insert(Instant::now());
            }
            self.replication.hear(&message);
            self.advertising.hear(&message);
            self.engine.handle_message(message, Instant::now());
            self.carry_out()?;
        }
        if reading.closed {
            self.drop_control();
        }
        Ok(())
    }

    fn drop_control(&mut self) {
        self.control = None;
        self.mailbox.disconnect();
        self.engine.handle_disconnected(Instant::now());
    }

    fn write_to_control(&mut self) {
        let Some(connection) = &mut self.control else { return };
        let watched = connection.wants_write;
        if !connection.write(&mut self.mailbox) {
            self.drop_control();
        } else if connection.wants_write != watched {
            let wanted = connection.wants_write;
            if let Err(error) = self.events.others().want_write(connection, CONTROL, wanted) {
                warn!("failed to watch control's connection: {error}");
            }
        }
    }

    fn read_claims(&mut self) -> anyhow::Result<()> {
        let mut datagram = [0; MAX_DATAGRAM + 1];
        for _ in 0..READS_PER_TURN {
            let Some(socket) = &self.claims else { break };
            // An error is what ICMP had to say about a claim that was sent: its receiver is not there now.
            let Ok((length, from)) = socket.recv_from(&mut datagram) else { break };
            self.engine.handle_claim(&datagram[..length], from.ip(), Instant::now());
            self.carry_out()?;
        }
        Ok(())
    }

    fn read_bfd(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; evergate_vrrp::bfd::wire::MAX_LEN + 1];
        for _ in 0..READS_PER_TURN {
            let Some(datagram) = self.bfd.recv(&mut buffer) else { break };
            let (bytes, from) = (&buffer[..datagram.length], datagram.from.ip());
            self.engine.handle_bfd(bytes, from, datagram.hop_limit, Instant::now());
            self.carry_out()?;
        }
        Ok(())
    }

    fn handle_router(&mut self, token: u64) -> anyhow::Result<()> {
        let base = token - token % TOKENS_PER_ROUTER;
        let Some(&router) = self.router_of.get(&base) else { return Ok(()) };
        match token - base {
            VRRP => self.read_frames(router),
            answers => {
                self.read_answers(router, (answers - ANSWERS) as usize);
                Ok(())
            }
        }
    }

    /// Gateways answer. What follows from it, follows when their round is over.
    fn read_answers(&mut self, router: RouterId, family: usize) {
        let mut frame = std::mem::take(&mut self.frame);
        for _ in 0..READS_PER_TURN {
            let socket = self.open(router).and_then(|open| open.sockets.answers.get(family)?.as_ref());
            let Some(Ok(Some(length))) = socket.map(|socket| socket.recv(&mut frame)) else { break };
            self.engine.handle_answer(router, &frame[..length]);
        }
        self.frame = frame;
    }

    fn take_scripts(&mut self) {
        for (router, well) in self.scripts.take() {
            self.engine.handle_script(router, well);
        }
    }

    fn read_host_links(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.host_links.next() {
            self.engine.handle_host_link(event.ifindex, sockets::state(&event), Instant::now());
            self.carry_out()?;
        }
        Ok(())
    }

    fn open(&mut self, router: RouterId) -> Option<&mut Open> {
        self.routers.get_mut(&router)?.open.as_mut()
    }

    fn read_frames(&mut self, router: RouterId) -> anyhow::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        for _ in 0..READS_PER_TURN {
            // An error is the link's going down, which the link watch tells of.
            let received = self.open(router).map(|open| open.sockets.vrrp.recv(&mut frame));
            let Some(Ok(Some(length))) = received else { break };
            let now = Instant::now();
            let was_one = self.engine.handle_frame(router, &frame[..length], now);
            self.carry_out()?;
            // Usually there is one, and to ask for more costs as much as to be told of it by the next wait. But what is
            // refused may come in any number, and if a timer is due, what has arrived comes first.
            if was_one && self.engine.poll_timeout().is_none_or(|(at, _)| at > now) {
                self.unread = true;
                break;
            }
        }
        self.frame = frame;
        Ok(())
    }

    fn read_links(&mut self) -> anyhow::Result<()> {
        for _ in 0..READS_PER_TURN {
            match self.links.next() {
                Some(Change::Of { router, ifindex, up }) => {
                    self.engine.handle_link(router, ifindex, up, Instant::now());
                    self.carry_out()?;
                }
                Some(Change::Missed) => {
                    debug!("changes of links were missed; listing all");
                    for (&router, entry) in &self.routers {
                        self.links.begin();
                        self.worker.give(Job::List { router, life: entry.life })?;
                    }
                }
                None => break,
            }
        }
        Ok(())
    }

    /// What was heard while its links were being listed may be newer than the list.
    fn catch_up_with_links(&mut self, router: RouterId) {
        for (ifindex, up) in self.links.heard_of(router) {
            self.engine.handle_link(router, ifindex, up, Instant::now());
        }
        self.links.end();
    }

    /// Carries out what the engine wants, until it wants nothing more.
    fn carry_out(&mut self) -> anyhow::Result<()> {
        while let Some(effect) = self.engine.poll_effect() {
            self.do_one(effect)?;
        }
        Ok(())
    }

    fn do_one(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::OpenSockets { router, request, fresh } => {
                let life = self.routers.entry(router).or_insert(Router { life: self.next_token, open: None }).life;
                self.next_token += TOKENS_PER_ROUTER;
                self.links.begin();
                self.worker.give(Job::Open { router, life, request, fresh })?;
            }
            Effect::CloseSockets { router } => {
                let sockets = self.routers.remove(&router).and_then(|entry| entry.open);
                self.links.forget(router);
                let sockets = sockets.map(|open| self.unwatch(open));
                self.unsent.retain(|(of, _)| *of != router);
                self.worker.give(Job::Close { router, sockets })?;
            }
            Effect::SendFrame { router, ifindex, frame } => self.send_frame(router, ifindex, &frame),
            Effect::RunBatch(batch) => self.worker.give(Job::Run(batch))?,
            Effect::RunScript(run) => self.scripts.give(run),
            Effect::BindClaims(address) => {
                if address != self.claims_at || self.claims.is_none() {
                    self.bind_claims(address);
                }
            }
            Effect::SendClaim { to, datagram } => self.send_claim(to, &datagram),
            Effect::BindBfd(address) => {
                let text = self.bfd.bind(address, self.events.others(), BFD);
                self.tell(text);
            }
            Effect::SendBfd { to, datagram } => self.bfd.send(&datagram, to),
            Effect::AskWhoIsComplete(routers) => {
                let hosts = self.replication.complete(&routers);
                self.engine.handle_complete(hosts, Instant::now());
            }
            Effect::Emit(mut message) => {
                self.replication.overhear(&mut message);
                self.advertising.overhear(&message);
                self.mailbox.push(&stamped(message));
            }
        }
        Ok(())
    }

    fn take_done(&mut self) -> anyhow::Result<()> {
        for done in self.worker.take() {
            match done {
                // The router was removed meanwhile. These sockets are closed here, and not by the worker, so
                // that they are when that is told: its answer to the removal is still to come.
                Done::Opened { router, life, .. } | Done::Listed { router, life, .. }
                    if self.routers.get(&router).is_none_or(|it| it.life != life) =>
                {
                    self.links.end();
                }
                Done::Opened { router, life: _, request, result } => {
                    let opened = match result {
                        Ok((Some(sockets), opened)) => self.take_sockets(router, sockets).map(|()| opened),
                        Ok((None, opened)) => Ok(opened),
                        Err(error) => Err(error),
                    };
                    self.engine.handle_opened(router, &request, opened, Instant::now());
                    self.catch_up_with_links(router);
                }
                Done::Listed { router, life: _, links } => {
                    match links {
                        Ok(links) => self.engine.handle_links(router, &links, Instant::now()),
                        Err(error) => warn!(%router, "changes of its links may have been missed: {error}"),
                    }
                    self.catch_up_with_links(router);
                }
                Done::Closed { router } => self.engine.handle_closed(router),
                Done::Ran { batch, results } => self.engine.handle_batch(&batch, results, Instant::now()),
            }
            self.carry_out()?;
        }
        Ok(())
    }

    /// Takes sockets into use in place of those that the router had.
    fn take_sockets(&mut self, router: RouterId, sockets: RouterSockets) -> Result<(), String> {
        let token = self.next_token;
        self.next_token += TOKENS_PER_ROUTER;
        let mut watched = self.events.add_frames(&sockets.vrrp, token + VRRP);
        for (socket, family) in sockets.answers.iter().zip(0..).filter_map(|(socket, n)| Some((socket.as_ref()?, n))) {
            watched = watched.and_then(|()| self.events.add_frames(socket, token + ANSWERS + family));
        }
        watched.map_err(|error| format!("failed to watch its sockets: {error}"))?;
        self.router_of.insert(token, router);
        self.links.watch(router, sockets.netns);
        let old = self.routers.get_mut(&router).and_then(|entry| entry.open.replace(Open { sockets, token }));
        if let Some(old) = old {
            let old = self.unwatch(old);
            let _ = self.worker.give(Job::Discard(old));
        }
        Ok(())
    }

    fn unwatch(&mut self, open: Open) -> RouterSockets {
        self.router_of.remove(&open.token);
        // They are closed later, by the worker; until then they are not to wake the loop.
        let _ = self.events.remove_frames(&open.sockets.vrrp);
        for socket in open.sockets.answers.iter().flatten() {
            let _ = self.events.remove_frames(socket);
        }
        open.sockets
    }

    fn send_frame(&mut self, router: RouterId, ifindex: u32, frame: &[u8]) {
        let Some(open) = self.open(router) else { return };
        match open.sockets.send(ifindex, frame) {
            Ok(()) => drop(self.unsent.remove(&(router, ifindex))),
            Err(error) => {
                if self.unsent.insert((router, ifindex)) {
                    warn!(%router, ifindex, "failed to send a frame: {error}");
                }
            }
        }
    }

    fn bind_claims(&mut self, address: Option<SocketAddr>) {
        let told = self.rebind_at.is_some() && address == self.claims_at;
        (self.claims, self.claims_at, self.rebind_at) = (None, address, None);
        let Some(address) = address else { return };
        let bound = UdpSocket::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            self.events.others().add(&socket, CLAIMS)?;
            Ok(socket)
        });
        match bound {
            Ok(socket) => self.claims = Some(socket),
            Err(error) => {
                self.rebind_at = Some(Instant::now() + REBIND);
                if !told {
                    let text = format!("claims can be neither sent nor received at {address}: {error}; trying again");
                    warn!("{text}");
                    self.mailbox.push(&FromKeeper::Warning { text });
                }
            }
        }
    }

    /// Tells the log and control.
    fn tell(&mut self, text: Option<String>) {
        if let Some(text) = text {
            warn!("{text}");
            self.mailbox.push(&FromKeeper::Warning { text });
        }
    }

    fn send_claim(&self, to: SocketAddr, datagram: &[u8]) {
        if let Some(socket) = &self.claims {
            // A claim that cannot be sent now is sent again, until it is acknowledged.
            let _ = socket.send_to(datagram, to);
        }
    }

    /// Everything stays as it is in the kernel: the supervisor starts another keeper at once.
    fn leave_to_successor(&mut self) -> anyhow::Result<()> {
        self.write_to_control();
        if self.excused {
            // Without it the next keeper assumes that the others waited for no longer than they do for any.
            let _ = self.sign.write_all(EXCUSED);
        }
        let _ = self.sign.set_modified(SystemTime::now());
        info!("keeper makes room for the next one");
        Ok(())
    }

    /// Everything was handed over, or resigned, and undone; or the kernel takes too long for that.
    fn leave(&mut self) -> anyhow::Result<()> {
        self.write_to_control();
        let undone = self.engine.is_stopped();
        clear(&self.options.run_path, undone);
        if undone {
            info!("keeper stopped");
        } else {
            warn!("keeper stopped, but the kernel has not undone everything: addresses of routers may be left here");
        }
        Ok(())
    }
}

/// What the process is, and what the host did not permit it.
fn start() -> Start {
    let mut notes = Vec::new();
    if let Err(error) = sys::raise_open_files_limit() {
        notes.push(format!("the limit of open files stays as it is: {error}"));
    }
    if let Err(note) = rt::lock_memory() {
        notes.push(note);
    }
    let fifo = rt::set_fifo_priority(FIFO_PRIORITY);
    let realtime = fifo.is_ok();
    notes.extend(fifo.err());
    for note in &notes {
        warn!("{note}");
    }
    let mut seed = [0; 8];
    // The seed only spreads load; the process number does as well.
    let seed = match getrandom::fill(&mut seed) {
        Ok(()) => u64::from_ne_bytes(seed),
        Err(_) => u64::from(std::process::id()),
    };
    Start { pid: std::process::id(), notes, realtime, seed, ..Start::default() }
}

/// What is in the kernel of the paths of forwarding entries.
fn find_paths() -> Option<rt::FoundPaths> {
    let found =
        NetnsFd::host().and_then(|host| BatchSocket::open(&host)).and_then(|mut socket| rt::find_paths(&mut socket));
    match found {
        Ok(Some(found)) => Some(found),
        Ok(None) => {
            info!("this kernel has no nexthop objects for forwarding entries: each moves by a message of its own");
            None
        }
        Err(error) => {
            warn!("failed to look for paths of forwarding entries, so each moves by a message of its own: {error}");
            None
        }
    }
}

/// Removes what a keeper that has stopped leaves below the run path: the sign of life, too, if everything was undone,
/// so that there is nothing in the kernel to adopt. Otherwise the next keeper finds addresses of routers that are
/// elsewhere by then, and is to know how old they are.
fn clear(run_path: &Path, undone: bool) {
    if undone {
        let _ = fs::remove_file(run_path.join(SIGN_NAME));
    }
    let _ = fs::remove_file(run_path.join(crate::protocol::SOCKET_NAME));
}

/// Opens the sign of life; tells how old it was, if there was one, and whether it says [`EXCUSED`].
fn open_sign(run_path: &Path) -> io::Result<(File, Option<Duration>, bool)> {
    let path = run_path.join(SIGN_NAME);
    let age = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
    let age = age.and_then(|modified| SystemTime::now().duration_since(modified).ok());
    let excused = fs::read(&path).is_ok_and(|text| text == EXCUSED);
    let file = File::options().write(true).create(true).truncate(true).open(&path)?;
    file.set_modified(SystemTime::now())?;
    Ok((file, age, excused))
}

/// The engine has no clock of day.
fn stamped(message: FromKeeper) -> FromKeeper {
    match message {
        FromKeeper::Transition(mut transition) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            transition.at_ms = now.as_millis() as u64;
            FromKeeper::Transition(transition)
        }
        FromKeeper::Note { router, text, .. } => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            FromKeeper::Note { router, at_ms: now.as_millis() as u64, text }
        }
        other @ (FromKeeper::Hello { .. }
        | FromKeeper::Claimed { .. }
        | FromKeeper::Letter { .. }
        | FromKeeper::Removed { .. }
        | FromKeeper::Status(_)
        | FromKeeper::Warning { .. }) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_after_a_stop_that_left_something_does_the_next_keeper_hear_how_long_ago_that_was() {
        let run_path = std::env::temp_dir().join(format!("eg-test-{}-sign", std::process::id()));
        fs::create_dir_all(&run_path).unwrap();
        let age = |run_path: &Path| open_sign(run_path).unwrap().1;
        assert!(age(&run_path).is_none(), "there was none before");
        clear(&run_path, false);
        assert!(age(&run_path).is_some());
        clear(&run_path, true);
        assert!(age(&run_path).is_none());
        fs::remove_dir_all(&run_path).unwrap();
    }
}
