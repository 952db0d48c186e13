//! The keeper's loop: one thread that waits for sockets and timers, feeds the engine, and carries out
//! its effects.
//!
//! Nothing here blocks, and nothing touches a disk: the run path is expected in memory (`/run`). Packets
//! are taken before timers, also after the process was kept from running for a while: what has arrived
//! meanwhile may say that the silence a timer would report was not one.

mod control;
mod mailbox;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use evergate_kernel::rt::{self, BatchSocket, Epoll, NetnsFd};
use evergate_kernel::sys::{self, LockFile, Signal, SignalFd};
use evergate_model::RouterId;
use tracing::{info, warn};

use crate::claims::wire::MAX_DATAGRAM;
use crate::engine::effect::{Action, Batch, Effect, Opened, SocketRequest};
use crate::engine::{Engine, Start};
use crate::protocol::{FromKeeper, LOCK_NAME, Place};
use control::Connection;
use mailbox::Mailbox;
use sockets::RouterSockets;

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
/// A timer later than this means that we were kept from running.
const CATCH_UP: Duration = Duration::from_millis(20);
/// Turns that are given to packets alone when that happened.
const CATCH_UP_TURNS: usize = 16;
/// How often the sign of life is renewed: well below the shortest time in which others take over (3 s).
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// When to try again to bind the claim socket: its address may not be configured yet.
const REBIND: Duration = Duration::from_secs(1);
/// Name of the file whose modification time tells the next keeper when this one lived last.
const SIGN_NAME: &str = "keeper.alive";

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const CONTROL: u64 = 2;
const CLAIMS: u64 = 3;
/// Tokens from here on: four per router.
const FIRST_ROUTER: u64 = 4;
const VRRP: u64 = 0;
const LINKS: u64 = 1;
const TOKENS_PER_ROUTER: u64 = 4;

/// Runs until it is told to stop.
pub fn run(options: Options) -> anyhow::Result<()> {
    let signals = SignalFd::new(&[Signal::Term, Signal::Int]).context("failed to listen for signals")?;
    let mut shell = Shell::new(options, signals)?;
    info!(pid = std::process::id(), "keeper started");
    shell.run()
}

struct Shell {
    options: Options,
    engine: Engine,
    epoll: Epoll,
    signals: SignalFd,
    listener: UnixListener,
    control: Option<Connection>,
    mailbox: Mailbox,
    host: BatchSocket,
    routers: BTreeMap<RouterId, Router>,
    router_of: BTreeMap<u64, RouterId>,
    next_token: u64,
    claims: Option<UdpSocket>,
    claims_at: Option<SocketAddr>,
    rebind_at: Option<Instant>,
    /// Interfaces that could not be sent on, and were told of.
    unsent: BTreeSet<(RouterId, u32)>,
    sign: File,
    sign_at: Instant,
    frame: Vec<u8>,
    _lock: LockFile,
}

struct Router {
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
        let (sign, away) = open_sign(run_path).context("failed to make the sign of life")?;
        let listener =
            control::listen(run_path).with_context(|| format!("failed to listen below {}", run_path.display()))?;
        let host =
            NetnsFd::host().and_then(|netns| BatchSocket::open(&netns)).context("failed to talk to the kernel")?;
        let epoll = Epoll::new().context("failed to make the event queue")?;
        epoll.add(&listener, LISTENER)?;
        epoll.add(&signals, SIGNALS)?;
        let now = Instant::now();
        Ok(Self {
            engine: Engine::new(Start { away, ..start() }, now),
            options,
            epoll,
            signals,
            listener,
            control: None,
            mailbox: Mailbox::default(),
            host,
            routers: BTreeMap::new(),
            router_of: BTreeMap::new(),
            next_token: FIRST_ROUTER,
            claims: None,
            claims_at: None,
            rebind_at: None,
            unsent: BTreeSet::new(),
            sign,
            sign_at: now,
            frame: vec![0; 2048],
            _lock: lock,
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Vec::new();
        loop {
            self.carry_out();
            if self.engine.is_stopped() {
                return self.leave();
            }
            self.write_to_control();
            let until = self.next_deadline();
            self.epoll.wait(Some(until), &mut ready).context("failed to wait for events")?;
            self.handle_ready(&ready);
            for _ in 0..CATCH_UP_TURNS {
                let late = self.engine.poll_timeout().is_some_and(|(at, _)| at + CATCH_UP < Instant::now());
                if !late || ready.is_empty() {
                    break;
                }
                self.epoll.wait(Some(Instant::now()), &mut ready).context("failed to wait for events")?;
                self.handle_ready(&ready);
            }
            self.handle_timers();
        }
    }

    fn next_deadline(&self) -> Instant {
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        engine.into_iter().chain(self.rebind_at).fold(self.sign_at, Instant::min)
    }

    fn handle_timers(&mut self) {
        let now = Instant::now();
        if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.engine.handle_timeout(now);
        }
        if self.rebind_at.is_some_and(|at| at <= now) {
            self.bind_claims(self.claims_at);
        }
        if self.sign_at <= now {
            self.sign_at = now + SIGN_OF_LIFE;
            // Without it the next keeper does not know how long it was away, and assumes: not long.
            let _ = self.sign.set_modified(SystemTime::now());
        }
    }

    fn handle_ready(&mut self, ready: &[u64]) {
        for &token in ready {
            match token {
                LISTENER => self.accept(),
                SIGNALS => self.handle_signals(),
                CONTROL => self.read_control(),
                CLAIMS => self.read_claims(),
                router => self.handle_router(router),
            }
            self.carry_out();
        }
    }

    fn handle_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read() {
            info!(?signal, "asked to stop");
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
                        self.epoll.add(&connection, CONTROL)?;
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
                Err(error) => return warn!("failed to accept control's connection: {error}"),
            }
        }
    }

    fn read_control(&mut self) {
        let Some(connection) = &mut self.control else { return };
        let reading = connection.read();
        for message in reading.messages {
            self.engine.handle_message(message, Instant::now());
            self.carry_out();
        }
        if reading.closed {
            self.drop_control();
        }
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
            self.carry_out();
        } else if connection.wants_write != watched {
            let wanted = connection.wants_write;
            if let Err(error) = self.epoll.want_write(connection, CONTROL, wanted) {
                warn!("failed to watch control's connection: {error}");
            }
        }
    }

    fn read_claims(&mut self) {
        let mut datagram = [0; MAX_DATAGRAM + 1];
        for _ in 0..READS_PER_TURN {
            let Some(socket) = &self.claims else { return };
            match socket.recv_from(&mut datagram) {
                Ok((length, from)) => self.engine.handle_claim(&datagram[..length], from.ip(), Instant::now()),
                // Also what ICMP had to say about a claim that was sent: its receiver is not there now.
                Err(_) => return,
            }
            self.carry_out();
        }
    }

    fn handle_router(&mut self, token: u64) {
        let base = token - (token - FIRST_ROUTER) % TOKENS_PER_ROUTER;
        let Some(&router) = self.router_of.get(&base) else { return };
        match token - base {
            VRRP => self.read_frames(router),
            LINKS => self.read_links(router),
            _ => {}
        }
    }

    fn read_frames(&mut self, router: RouterId) {
        let mut frame = std::mem::take(&mut self.frame);
        for _ in 0..READS_PER_TURN {
            let socket = self.routers.get(&router).and_then(|entry| entry.sockets.vrrp.as_ref());
            // An error is the link's going down, which the link watch tells of.
            let Some(Ok(Some(length))) = socket.map(|socket| socket.recv(&mut frame)) else { break };
            self.engine.handle_frame(router, &frame[..length], Instant::now());
            self.carry_out();
        }
        self.frame = frame;
    }

    fn read_links(&mut self, router: RouterId) {
        for _ in 0..READS_PER_TURN {
            let event = self.routers.get_mut(&router).and_then(|entry| entry.sockets.next_link());
            let Some((ifindex, up)) = event else { return };
            self.engine.handle_link(router, ifindex, up, Instant::now());
            self.carry_out();
        }
    }

    /// Carries out what the engine wants, until it wants nothing more.
    fn carry_out(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::OpenSockets { router, request } => {
                    let opened = self.open_sockets(router, request);
                    self.engine.handle_opened(router, opened, Instant::now());
                }
                Effect::CloseSockets { router } => self.close_sockets(router),
                Effect::SendFrame { router, ifindex, frame } => self.send_frame(router, ifindex, &frame),
                Effect::RunBatch(batch) => {
                    let results = self.run_batch(&batch);
                    self.engine.handle_batch(&batch, results, Instant::now());
                }
                Effect::BindClaims(address) => {
                    if address != self.claims_at || self.claims.is_none() {
                        self.bind_claims(address);
                    }
                }
                Effect::SendClaim { to, datagram } => self.send_claim(to, &datagram),
                Effect::Emit(message) => self.mailbox.push(&stamped(message)),
            }
        }
    }

    fn open_sockets(&mut self, router: RouterId, request: SocketRequest) -> Result<Opened, String> {
        if let Some(entry) = self.routers.get_mut(&router).filter(|entry| entry.sockets.fit(&request)) {
            if entry.sockets.adapt(request).map_err(|error| error.full())?
                && let Some(vrrp) = &entry.sockets.vrrp
            {
                let watched = self.epoll.add(vrrp, entry.token + VRRP);
                watched.map_err(|error| format!("failed to watch the VRRP socket: {error}"))?;
            }
            return entry.sockets.describe().map_err(|error| error.full());
        }
        self.close_sockets(router);
        let mut sockets = RouterSockets::open(&self.options.netns_path, request).map_err(|error| error.full())?;
        let opened = sockets.describe().map_err(|error| error.full())?;
        let token = self.next_token;
        self.next_token += TOKENS_PER_ROUTER;
        let watched = self.epoll.add(&sockets.watch, token + LINKS).and_then(|()| match &sockets.vrrp {
            Some(vrrp) => self.epoll.add(vrrp, token + VRRP),
            None => Ok(()),
        });
        watched.map_err(|error| format!("failed to watch the sockets of {router}: {error}"))?;
        self.router_of.insert(token, router);
        self.routers.insert(router, Router { sockets, token });
        Ok(opened)
    }

    fn close_sockets(&mut self, router: RouterId) {
        if let Some(entry) = self.routers.remove(&router) {
            self.router_of.remove(&entry.token);
        }
        self.unsent.retain(|(of, _)| *of != router);
    }

    fn send_frame(&mut self, router: RouterId, ifindex: u32, frame: &[u8]) {
        let Some(entry) = self.routers.get_mut(&router) else { return };
        match entry.sockets.send(ifindex, frame) {
            Ok(()) => drop(self.unsent.remove(&(router, ifindex))),
            Err(error) => {
                if self.unsent.insert((router, ifindex)) {
                    warn!(%router, ifindex, "failed to send a frame: {error}");
                }
            }
        }
    }

    fn run_batch(&mut self, batch: &Batch) -> Vec<Result<(), String>> {
        let socket = match batch.place {
            Place::Host => &mut self.host,
            Place::Router => match self.routers.get_mut(&batch.router) {
                Some(entry) => &mut entry.sockets.batch,
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

    fn bind_claims(&mut self, address: Option<SocketAddr>) {
        let told = self.rebind_at.is_some() && address == self.claims_at;
        (self.claims, self.claims_at, self.rebind_at) = (None, address, None);
        let Some(address) = address else { return };
        let bound = UdpSocket::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            self.epoll.add(&socket, CLAIMS)?;
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

    fn send_claim(&self, to: SocketAddr, datagram: &[u8]) {
        if let Some(socket) = &self.claims {
            // A claim that cannot be sent now is sent again, until it is acknowledged.
            let _ = socket.send_to(datagram, to);
        }
    }

    /// Everything was handed over.
    fn leave(&mut self) -> anyhow::Result<()> {
        self.write_to_control();
        // After a clean stop there is nothing in the kernel to adopt.
        let _ = fs::remove_file(self.options.run_path.join(SIGN_NAME));
        let _ = fs::remove_file(self.options.run_path.join(crate::protocol::SOCKET_NAME));
        info!("keeper stopped");
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
    Start { pid: std::process::id(), notes, realtime, seed, away: None }
}

/// Opens the sign of life; tells how old it was, if there was one.
fn open_sign(run_path: &std::path::Path) -> io::Result<(File, Option<Duration>)> {
    let path = run_path.join(SIGN_NAME);
    let age = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
    let age = age.and_then(|modified| SystemTime::now().duration_since(modified).ok());
    let file = File::options().write(true).create(true).truncate(false).open(&path)?;
    file.set_modified(SystemTime::now())?;
    Ok((file, age))
}

/// The engine has no clock of day.
fn stamped(message: FromKeeper) -> FromKeeper {
    match message {
        FromKeeper::Transition(mut transition) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            transition.at_ms = now.as_millis() as u64;
            FromKeeper::Transition(transition)
        }
        other @ (FromKeeper::Hello { .. }
        | FromKeeper::Claimed { .. }
        | FromKeeper::Removed { .. }
        | FromKeeper::Status(_)
        | FromKeeper::Warning { .. }) => other,
    }
}
