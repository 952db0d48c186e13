//! The control process's shell: threads that wait for the world, and one loop that asks the core.
//!
//! Each source of events has a thread (the server's stream, the keeper's socket, link events, the
//! control socket, the worker that owns the kernel) and sends what happens to the loop; each sink that
//! may be slow (reports, files) has one too. The loop never waits for anything but the next event, so a
//! transition is reported while a large round runs.

pub mod http;
pub mod keeper_link;
pub mod letters;
pub mod machine;
pub mod poster;
pub mod socket;
pub mod stream;
pub mod work;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_config::HostSettings;
use evergate_keeper::protocol::{FromKeeper, ToKeeper};
use evergate_kernel::{HostWatch, LinkEvent};
use evergate_model::stream::Downstream;

use crate::cache;
use crate::core::{Core, FileJob, Output};
use crate::files::Files;
use crate::round::Outcome;
use crate::startup;
use crate::timestamp;
use crate::view::{ServerView, view};
use letters::Letters;
use poster::Poster;
use socket::{Answer, Verb};
use stream::Closer;
use work::Job;

/// Events that are taken before what follows from them is done: a burst costs one round, but nobody waits
/// for ever.
const MOST_AT_ONCE: usize = 1000;

/// Time for the last files and the last report when the process ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often the tunnel address is looked for while there is none.
const TUNNEL_ADDRESS_PERIOD: Duration = Duration::from_secs(5);

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The server's stream.
    Stream(StreamEvent),
    /// The keeper's socket.
    Keeper(KeeperEvent),
    /// A link of the host's namespace.
    Link(LinkEvent),
    /// A round is over.
    Round(Result<Box<Outcome>, String>),
    /// What cannot be written has changed.
    FileProblems(Vec<String>),
    /// What was found about this host.
    Notes(Vec<String>),
    /// Somebody asks.
    Asked {
        /// What.
        verb: Verb,
        /// Where the answer goes.
        reply: Sender<Answer>,
    },
    /// A thread has ended that should not: nothing works without it.
    ThreadEnded(&'static str),
    /// The process is to end.
    Stop {
        /// Whether all that Evergate made is to be removed first.
        cleanup: bool,
    },
}

/// The server's stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// It says something.
    Said(Box<Downstream>),
    /// It broke, or could not be opened.
    Lost(String),
}

/// The keeper's socket.
#[derive(Debug)]
pub enum KeeperEvent {
    /// It is connected; messages go here.
    Connected(Sender<Box<ToKeeper>>),
    /// It says something.
    Said(Box<FromKeeper>),
    /// It broke.
    Gone,
}

/// Everything that the loop holds.
struct Shell {
    core: Core,
    jobs: Sender<Job>,
    files: Sender<FileJob>,
    poster: Poster,
    letters: Letters,
    closer: Closer,
    keeper: Option<Sender<Box<ToKeeper>>>,
    server: ServerView,
    /// Whether the operator was told that the server is away.
    told_away: bool,
    notes: Vec<String>,
    file_problems: Vec<String>,
    tunnel_address_at: Option<Instant>,
}

/// Runs control until an [`Event::Stop`].
pub fn run(settings: HostSettings, sender: Sender<Event>, events: &Receiver<Event>) -> anyhow::Result<()> {
    let cached = cache::load(&settings.state_path).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    });
    let (files, files_done) = start_files(&settings, sender.clone())?;
    let jobs = work::start(&settings, sender.clone())?;
    start_watch(sender.clone())?;
    keeper_link::start(&settings.run_path, sender.clone())?;
    socket::listen(&settings.run_path, sender.clone())?;
    let incarnation = timestamp::now_ms();
    let seed = incarnation ^ (u64::from(std::process::id()) << 32);
    let access = http::Access::new(&settings, seed);
    let poster = Poster::start(access.clone(), sender.clone(), seed)?;
    let letters = Letters::start(access.clone(), &sender)?;
    let closer = stream::start(access.clone(), poster.clone(), sender, seed ^ 1)?;
    let now = Instant::now();
    let wants_address = settings.local_ip.is_none() && !settings.tunnel_types.is_empty();
    let mut shell = Shell {
        notes: startup::notes(&settings),
        core: Core::new(settings, incarnation, cached, now),
        jobs,
        files,
        poster,
        letters,
        closer,
        keeper: None,
        server: ServerView { url: access.server().to_owned(), since_ms: incarnation, ..ServerView::default() },
        told_away: false,
        file_problems: Vec::new(),
        tunnel_address_at: wants_address.then_some(now),
    };
    let cleanup = shell.event_loop(events)?;
    shell.farewell(cleanup, files_done)
}

impl Shell {
    /// Returns when the process is to end: whether to clean up.
    fn event_loop(&mut self, events: &Receiver<Event>) -> anyhow::Result<bool> {
        loop {
            self.find_tunnel_address();
            self.pump()?;
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            match events.recv_timeout(wait) {
                Ok(event) => {
                    for event in std::iter::once(event).chain(events.try_iter().take(MOST_AT_ONCE)) {
                        if let Event::Stop { cleanup } = event {
                            self.pump()?;
                            return Ok(cleanup);
                        }
                        self.handle(event)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("all threads of control have ended"),
            }
            let now = Instant::now();
            if self.core.poll_timeout().0 <= now {
                self.core.handle_timeout(now);
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let core = self.core.poll_timeout().0;
        self.tunnel_address_at.map_or(core, |at| at.min(core))
    }

    /// Looks for the tunnel address, where the files do not name it.
    fn find_tunnel_address(&mut self) {
        let now = Instant::now();
        if self.tunnel_address_at.is_none_or(|at| at > now) {
            return;
        }
        match startup::address_towards(&self.server.url) {
            Ok(address) => {
                tracing::info!(%address, "local_ip is not set: tunnels end at the address that leads to the server");
                self.notes.push(format!("local_ip is not set: tunnels end at {address}, which leads to the server"));
                self.tunnel_address_at = None;
                self.core.handle_tunnel_address(Some(address), now);
            }
            Err(error) => {
                tracing::debug!("no tunnel address: {error:#}");
                self.tunnel_address_at = Some(now + TUNNEL_ADDRESS_PERIOD);
            }
        }
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        let now = Instant::now();
        match event {
            Event::Stream(StreamEvent::Said(said)) => self.server_said(*said, now),
            Event::Stream(StreamEvent::Lost(error)) => {
                self.core.handle_server(false, now);
                self.server_lost(error);
            }
            Event::Keeper(KeeperEvent::Connected(sender)) => {
                self.keeper = Some(sender);
                self.core.handle_keeper_connected(now);
            }
            Event::Keeper(KeeperEvent::Said(said)) => self.core.handle_keeper(*said, now),
            Event::Keeper(KeeperEvent::Gone) => {
                self.keeper = None;
                self.core.handle_keeper_gone(now);
            }
            Event::Link(event) => self.core.handle_link_event(&event.name, !event.gone, event.up, now),
            Event::Round(outcome) => self.core.handle_outcome(outcome.map(|outcome| *outcome), now),
            Event::FileProblems(problems) => self.file_problems = problems,
            Event::Notes(notes) => self.notes.extend(notes),
            Event::Asked { verb, reply } => self.answer(verb, reply)?,
            Event::ThreadEnded(name) => anyhow::bail!("the thread '{name}' has ended: starting anew is all that helps"),
            // Taken by the loop.
            Event::Stop { .. } => {}
        }
        Ok(())
    }

    fn server_said(&mut self, said: Downstream, now: Instant) {
        if !self.server.connected {
            tracing::info!(server = self.server.url, "connected to the server");
            self.server = ServerView {
                url: std::mem::take(&mut self.server.url),
                connected: true,
                since_ms: timestamp::now_ms(),
                error: None,
            };
            self.told_away = false;
        }
        match said {
            Downstream::Snapshot { config } => self.core.handle_snapshot(config, now),
            Downstream::Change(change) => self.core.handle_change(change, now),
            Downstream::Letter(letter) => self.core.handle_letter(letter, now),
            Downstream::Ping { .. } => {}
        }
        self.core.handle_server(true, now);
        self.letters.keep_open(self.core.has_copies());
    }

    fn server_lost(&mut self, error: String) {
        if self.server.connected {
            self.server.connected = false;
            self.server.since_ms = timestamp::now_ms();
        }
        // Once, not at every attempt.
        if !self.told_away {
            tracing::warn!("the server is away, everything here goes on without it: {error}");
            self.told_away = true;
        } else if self.server.error.as_ref() != Some(&error) {
            tracing::info!("the server is still away: {error}");
        }
        self.server.error = Some(error);
    }

    fn answer(&mut self, verb: Verb, reply: Sender<Answer>) -> anyhow::Result<()> {
        match verb {
            Verb::Show => {
                let view = view(&self.core, &self.server, &self.notes, &self.file_problems);
                let answer = serde_json::to_value(&view).map_or_else(|e| Answer::Error(e.to_string()), Answer::Ok);
                // Whoever asked may have gone.
                let _ = reply.send(answer);
            }
            Verb::Plan => match self.core.round_for_plan() {
                Some(round) => self.send_job(Job::Plan(round, reply))?,
                None => {
                    let _ = reply.send(Answer::Error("the server has not said anything yet".into()));
                }
            },
        }
        Ok(())
    }

    fn send_job(&self, job: Job) -> anyhow::Result<()> {
        self.jobs.send(job).map_err(|_| anyhow::anyhow!("the thread that speaks with the kernel has ended"))
    }

    /// Does all that the core wants done.
    fn pump(&mut self) -> anyhow::Result<()> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Reconcile(round) => self.send_job(Job::Reconcile(round))?,
                Output::SendToKeeper(message) => {
                    if let Some(keeper) = &self.keeper {
                        // If it is gone, that is said soon, and everything is told again.
                        let _ = keeper.send(message);
                    }
                }
                Output::Report(report) => self.poster.post(report),
                Output::Post(letter) => self.letters.post(letter),
                Output::Write(job) => {
                    self.files.send(job).map_err(|_| anyhow::anyhow!("the thread that writes files has ended"))?;
                }
                Output::Resync => self.closer.close(),
            }
        }
        Ok(())
    }

    fn farewell(self, cleanup: bool, files_done: Receiver<()>) -> anyhow::Result<()> {
        if cleanup {
            let (reply, wait) = channel();
            self.send_job(Job::Cleanup(reply))?;
            // It ends with the thread, with or without success.
            let _ = wait.recv();
        }
        drop(self.files);
        let _ = files_done.recv_timeout(FAREWELL);
        self.poster.wait_until_idle(FAREWELL);
        tracing::info!(
            "control stops; what it made stays{}",
            if cleanup { " not: cleanup_on_shutdown is set" } else { "" }
        );
        Ok(())
    }
}

/// Starts a thread that the process cannot do without: if it panics, the process ends, and its successor
/// adopts what it finds.
fn spawn(name: &'static str, events: &Sender<Event>, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let end = EndOfThread { name, events: events.clone() };
    let body = move || {
        let _end = end;
        body();
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .with_context(|| format!("failed to start the thread '{name}'"))?;
    Ok(())
}

/// Tells the loop when it is dropped.
struct EndOfThread {
    name: &'static str,
    events: Sender<Event>,
}

impl Drop for EndOfThread {
    fn drop(&mut self) {
        // Nobody listens when the process ends anyway.
        let _ = self.events.send(Event::ThreadEnded(self.name));
    }
}

/// Writes files; the receiver hears when all are written, after the sender was dropped.
fn start_files(settings: &HostSettings, events: Sender<Event>) -> anyhow::Result<(Sender<FileJob>, Receiver<()>)> {
    let (sender, jobs) = channel::<FileJob>();
    let (done, finished) = channel();
    let mut files = Files::new(&settings.ha_confs_path, &settings.state_path, &settings.host);
    let told = events.clone();
    spawn("files", &events, move || {
        let mut said = Vec::new();
        while let Ok(job) = jobs.recv() {
            for job in coalesce(std::iter::once(job).chain(jobs.try_iter()).collect()) {
                files.run(&job);
            }
            let problems = files.problems();
            if problems != said {
                said.clone_from(&problems);
                // The loop may have ended.
                let _ = told.send(Event::FileProblems(problems));
            }
        }
        let _ = done.send(());
    })?;
    Ok((sender, finished))
}

/// Keeps the newest of several caches, in its place: each is the whole.
fn coalesce(mut jobs: Vec<FileJob>) -> Vec<FileJob> {
    let is_cache = |job: &FileJob| matches!(job, FileJob::Cache(_));
    let newest = jobs.iter().rposition(is_cache);
    let mut index = 0;
    jobs.retain(|job| {
        let keep = !is_cache(job) || Some(index) == newest;
        index += 1;
        keep
    });
    jobs
}

fn start_watch(events: Sender<Event>) -> anyhow::Result<()> {
    const WAIT: Duration = Duration::from_secs(60);
    let mut watch = HostWatch::open().context("failed to watch the host's links")?;
    let told = events.clone();
    spawn("links", &events, move || {
        loop {
            match watch.wait(WAIT) {
                Ok(Some(event)) => {
                    if told.send(Event::Link(event)).is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    // The periodic round still finds what changed.
                    tracing::warn!("failed to watch links: {}", error.full());
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    })
}
