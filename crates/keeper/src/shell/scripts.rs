//! The thread that runs health check scripts. It is not the loop's: starting a process takes as long as it takes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use evergate_kernel::rt::NetnsFd;
use evergate_kernel::sys;
use evergate_model::RouterId;
use tracing::debug;

use crate::engine::effect::ScriptRun;

/// Scripts that run at a time; the others wait for their turn within their patience.
const AT_ONCE: usize = 32;
/// How often it is looked who has ended, while any run.
const LOOK: Duration = Duration::from_millis(20);
const STACK: usize = 256 << 10;

/// The loop's end of the thread. Readable when a script has ended.
#[derive(Debug)]
pub(super) struct Scripts {
    runs: Sender<(ScriptRun, Instant)>,
    ended: Receiver<(RouterId, bool)>,
    bell: UnixStream,
}

impl Scripts {
    /// Starts the thread, at ordinary priority.
    pub(super) fn start(netns_path: PathBuf) -> anyhow::Result<Self> {
        let (runs, todo) = channel();
        let (report, ended) = channel();
        let (bell, ringer) = UnixStream::pair().context("failed to make a pair of sockets")?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let runner = Runner { netns_path, waiting: VecDeque::new(), running: Vec::new(), report, ringer };
        thread::Builder::new()
            .name("scripts".into())
            .stack_size(STACK)
            .spawn(move || runner.run(&todo))
            .context("failed to start a thread")?;
        Ok(Self { runs, ended, bell })
    }

    /// Runs one.
    pub(super) fn give(&self, run: ScriptRun) {
        let until = Instant::now() + run.patience;
        // A thread that is gone runs nothing; that counts as a failure of the script in its next round.
        let _ = self.runs.send((run, until));
    }

    /// Takes who has ended, and whether well.
    pub(super) fn take(&mut self) -> Vec<(RouterId, bool)> {
        // First the bell, then the list: the other way round, what ends in between would be silent.
        let mut rings = [0; 256];
        while matches!(self.bell.read(&mut rings), Ok(length) if length == rings.len()) {}
        self.ended.try_iter().collect()
    }
}

impl AsRawFd for Scripts {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

struct Runner {
    netns_path: PathBuf,
    waiting: VecDeque<(ScriptRun, Instant)>,
    running: Vec<Running>,
    report: Sender<(RouterId, bool)>,
    ringer: UnixStream,
}

struct Running {
    child: Child,
    router: RouterId,
    until: Instant,
}

impl Runner {
    fn run(mut self, todo: &Receiver<(ScriptRun, Instant)>) {
        loop {
            let idle = self.running.is_empty() && self.waiting.is_empty();
            let next =
                if idle { todo.recv().map_err(|_| RecvTimeoutError::Disconnected) } else { todo.recv_timeout(LOOK) };
            match next {
                Ok(run) => self.waiting.push_back(run),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.reap();
            self.begin();
        }
    }

    /// Collects those that have ended, and ends those that take too long.
    fn reap(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        self.running.retain_mut(|running| match running.child.try_wait() {
            Ok(None) if now < running.until => true,
            Ok(None) => {
                let _ = running.child.kill();
                let _ = running.child.wait();
                ended.push((running.router, false));
                false
            }
            Ok(Some(status)) => {
                ended.push((running.router, status.success()));
                false
            }
            Err(_) => false,
        });
        for (router, well) in ended {
            self.say(router, well);
        }
    }

    fn begin(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some((run, until)) = self.waiting.pop_front()
        {
            if until <= Instant::now() {
                continue;
            }
            match self.spawn(&run) {
                Ok(child) => self.running.push(Running { child, router: run.router, until }),
                Err(error) => {
                    debug!(router = %run.router, "the health check script could not be run: {error:#}");
                    self.say(run.router, false);
                }
            }
        }
    }

    fn spawn(&self, run: &ScriptRun) -> anyhow::Result<Child> {
        let netns = NetnsFd::open(&self.netns_path.join(&run.netns)).map_err(|error| anyhow::anyhow!(error.full()))?;
        let mut command = Command::new(&run.program);
        command.args(&run.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::spawn_in_netns(&mut command, &netns).with_context(|| format!("failed to start {}", run.program))
    }

    fn say(&self, router: RouterId, well: bool) {
        let _ = self.report.send((router, well));
        // A bell that cannot be rung is ringing already.
        let _ = (&self.ringer).write(&[1]);
    }
}
