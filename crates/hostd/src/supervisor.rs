//! `evergate host`: starts control and keeper, starts them again when they die, stops them cleanly.
//!
//! Both run in sessions of their own, so nothing that happens to the supervisor stops them: one that is
//! started again finds the processes by the locks they hold, and keeps them. A clean stop (`SIGTERM`)
//! ends the keeper first, which resigns, while control still writes and reports what that brings about.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_config::HostSettings;
use evergate_keeper::protocol;
use evergate_kernel::sys::{self, LockError, LockFile, PidFd, Signal, SignalFd};

use crate::backoff::Backoff;

/// Name of the supervisor's lock below `run_path`.
const LOCK_NAME: &str = "host.lock";

/// Name of control's lock below `run_path`.
pub const CONTROL_LOCK_NAME: &str = "control.lock";

/// A process that lived for this long and then died is started again as if it had never died before.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// How long control may take when it was told to stop; then it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How much longer than it takes itself the keeper is given.
const KEEPER_GRACE: Duration = Duration::from_secs(3);

/// The supervised processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Keeper,
    Control,
}

impl Role {
    /// How long it may take when it was told to stop. A keeper that is killed leaves its routers' addresses behind.
    fn stop_patience(self) -> Duration {
        match self {
            Self::Keeper => protocol::STOP_PATIENCE + KEEPER_GRACE,
            Self::Control => STOP_PATIENCE,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keeper => "keeper",
            Self::Control => "control",
        })
    }
}

enum Event {
    Signal(Signal),
    Ended(Role, u32, String),
}

/// How the two are started.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The executable.
    pub program: PathBuf,
    /// `--config-file` and `--config-dir`, as they were given.
    pub config_args: Vec<OsString>,
    /// The settings that the supervisor needs itself.
    pub settings: HostSettings,
}

impl Recipe {
    fn command(&self, role: Role) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(role.to_string()).stdin(Stdio::null());
        match role {
            Role::Control => command.args(&self.config_args),
            Role::Keeper => command
                .arg("--run-path")
                .arg(&self.settings.run_path)
                .arg("--netns-path")
                .arg(&self.settings.netns_path),
        };
        command
    }

    fn lock(&self, role: Role) -> PathBuf {
        self.settings.run_path.join(match role {
            Role::Control => CONTROL_LOCK_NAME,
            Role::Keeper => protocol::LOCK_NAME,
        })
    }
}

/// Locks `run_path` for one process, with a message that says who has it.
pub fn lock(run_path: &Path, name: &str, what: &str) -> anyhow::Result<LockFile> {
    fs::create_dir_all(run_path).with_context(|| format!("failed to make {}", run_path.display()))?;
    let path = run_path.join(name);
    match LockFile::acquire(&path) {
        Ok(lock) => Ok(lock),
        Err(LockError::Held(pid)) => anyhow::bail!(
            "{what} runs already for run_path {} (process {pid}); stop it first, or set another run_path",
            run_path.display()
        ),
        Err(error @ LockError::Io(_)) => Err(error).with_context(|| format!("failed to lock {}", path.display())),
    }
}

/// Supervises until told to stop. `reread` checks the configuration files on `SIGHUP`.
pub fn run(recipe: Recipe, reread: impl Fn() -> anyhow::Result<HostSettings>) -> anyhow::Result<()> {
    let _lock = lock(&recipe.settings.run_path, LOCK_NAME, "a host daemon")?;
    let signals = SignalFd::new(&[Signal::Term, Signal::Int, Signal::Hup]).context("failed to listen for signals")?;
    let (sender, events) = channel();
    let for_signals = sender.clone();
    thread::Builder::new().name("signals".into()).spawn(move || pass_signals(&signals, &for_signals))?;
    let mut supervisor = Supervisor {
        keeper: Ward::new(Role::Keeper, Backoff::new(Duration::from_millis(10), Duration::from_secs(5))),
        control: Ward::new(Role::Control, Backoff::new(Duration::from_millis(100), Duration::from_secs(5))),
        recipe,
        sender,
    };
    supervisor.watch(&events, reread)?;
    supervisor.stop(&events);
    Ok(())
}

fn pass_signals(signals: &SignalFd, events: &Sender<Event>) {
    loop {
        match signals.wait(None) {
            Ok(Some(signal)) => {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!("failed to wait for signals: {error}");
                return;
            }
        }
    }
}

/// A supervised process.
struct Ward {
    role: Role,
    running: Option<(u32, Instant)>,
    start_at: Option<Instant>,
    backoff: Backoff,
}

impl Ward {
    fn new(role: Role, backoff: Backoff) -> Self {
        Self { role, running: None, start_at: Some(Instant::now()), backoff }
    }
}

struct Supervisor {
    recipe: Recipe,
    sender: Sender<Event>,
    keeper: Ward,
    control: Ward,
}

impl Supervisor {
    fn watch(
        &mut self,
        events: &Receiver<Event>,
        reread: impl Fn() -> anyhow::Result<HostSettings>,
    ) -> anyhow::Result<()> {
        loop {
            for role in [Role::Keeper, Role::Control] {
                self.start_if_due(role);
            }
            let now = Instant::now();
            let due = [&self.keeper, &self.control].into_iter().filter_map(|ward| ward.start_at).min();
            let wait = due.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now));
            match events.recv_timeout(wait) {
                Ok(Event::Signal(Signal::Term | Signal::Int)) => return Ok(()),
                Ok(Event::Signal(Signal::Hup)) => self.reload(&reread),
                Ok(Event::Signal(other)) => tracing::debug!("ignored signal {other:?}"),
                Ok(Event::Ended(role, pid, how)) => self.ended(role, pid, &how),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("all threads of the supervisor have ended"),
            }
        }
    }

    fn ward(&mut self, role: Role) -> &mut Ward {
        match role {
            Role::Keeper => &mut self.keeper,
            Role::Control => &mut self.control,
        }
    }

    fn start_if_due(&mut self, role: Role) {
        let now = Instant::now();
        if self.ward(role).start_at.is_none_or(|at| at > now) {
            return;
        }
        let started = match self.adopt(role) {
            Some(pid) => Ok(pid),
            None => self.spawn(role),
        };
        let ward = self.ward(role);
        match started {
            Ok(pid) => {
                ward.running = Some((pid, now));
                ward.start_at = None;
            }
            Err(error) => {
                tracing::error!("failed to start {role}: {error:#}");
                ward.start_at = Some(now + ward.backoff.next_wait().max(Duration::from_secs(1)));
            }
        }
    }

    /// Finds one that runs already: started by a supervisor that is no more.
    fn adopt(&self, role: Role) -> Option<u32> {
        let pid = LockFile::holder(&self.recipe.lock(role)).ok().flatten()?;
        let handle = PidFd::open(pid).ok()?;
        let sender = self.sender.clone();
        let watch = move || {
            while !handle.wait_exit(Duration::from_secs(3600)).unwrap_or(true) {}
            // Its exit code goes to its parent, which is not this process.
            let _ = sender.send(Event::Ended(role, pid, "ended".into()));
        };
        thread::Builder::new().name(format!("watch-{role}")).spawn(watch).ok()?;
        tracing::info!(pid, "{role} runs already; keeping it");
        Some(pid)
    }

    fn spawn(&self, role: Role) -> anyhow::Result<u32> {
        let mut command = self.recipe.command(role);
        let mut child = sys::spawn_in_session(&mut command)
            .with_context(|| format!("failed to run {}", self.recipe.program.display()))?;
        let pid = child.id();
        let sender = self.sender.clone();
        let watch = move || {
            let how =
                child.wait().map_or_else(|error| format!("is lost: {error}"), |status| format!("ended, {status}"));
            let _ = sender.send(Event::Ended(role, pid, how));
        };
        thread::Builder::new().name(format!("watch-{role}")).spawn(watch).context("failed to watch it")?;
        tracing::info!(pid, "started {role}");
        Ok(pid)
    }

    fn ended(&mut self, role: Role, pid: u32, how: &str) {
        let now = Instant::now();
        let ward = self.ward(role);
        let Some((_, since)) = ward.running.take_if(|(running, _)| *running == pid) else { return };
        if now.saturating_duration_since(since) > GOOD_LIFE {
            ward.backoff.reset();
        }
        let wait = ward.backoff.next_wait();
        tracing::warn!(pid, "{role} {how}; starting it again in {} ms", wait.as_millis());
        ward.start_at = Some(now + wait);
    }

    /// Takes over changed files: control reads them when it starts. Files that cannot be used change nothing.
    fn reload(&mut self, reread: &impl Fn() -> anyhow::Result<HostSettings>) {
        match reread() {
            Ok(settings) if same_places(&settings, &self.recipe.settings) => {
                self.recipe.settings = settings;
                tracing::info!("starting control again, with the files as they are now");
                signal(&self.control, Signal::Term);
                self.control.backoff.reset();
            }
            Ok(_) => tracing::error!(
                "run_path, state_path or netns_path changed: stop the daemon and start it again; nothing is changed now"
            ),
            Err(error) => tracing::error!("nothing is changed: {error:#}"),
        }
    }

    /// Stops the keeper, then control.
    fn stop(&mut self, events: &Receiver<Event>) {
        tracing::info!("stopping: the keeper resigns, then control ends");
        let cleanup = self.recipe.settings.cleanup_on_shutdown;
        let goodbye = if cleanup { Signal::Usr1 } else { Signal::Term };
        for (role, goodbye) in [(Role::Keeper, Signal::Term), (Role::Control, goodbye)] {
            signal(self.ward(role), goodbye);
            if !self.wait_for_end(role, events) {
                tracing::warn!("{role} does not stop; killing it");
                signal(self.ward(role), Signal::Kill);
                self.wait_for_end(role, events);
            }
        }
    }

    fn wait_for_end(&mut self, role: Role, events: &Receiver<Event>) -> bool {
        let deadline = Instant::now() + role.stop_patience();
        while self.ward(role).running.is_some() {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended(who, pid, how)) => {
                    let ward = self.ward(who);
                    if ward.running.take_if(|(running, _)| *running == pid).is_some() {
                        tracing::info!(pid, "{who} {how}");
                    }
                }
                Ok(Event::Signal(_)) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn signal(ward: &Ward, signal: Signal) {
    if let Some((pid, _)) = ward.running
        && let Err(error) = sys::kill(pid, signal)
    {
        tracing::debug!("failed to signal {}: {error}", ward.role);
    }
}

fn same_places(a: &HostSettings, b: &HostSettings) -> bool {
    (&a.run_path, &a.state_path, &a.netns_path) == (&b.run_path, &b.state_path, &b.netns_path)
}
