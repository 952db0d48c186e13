//! What may take long, away from the speaker: notify scripts and FIFOs, and how any script is run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use evergate_kernel::rt::NetnsFd;
use evergate_kernel::sys::{self, PidFd};
use tracing::{debug, warn};

use crate::conf::{Command, Configuration};
use crate::track::{Reading, TrackId};

/// A notify script that takes longer is left running, so that the next transition is not told late.
const NOTIFY_PATIENCE: Duration = Duration::from_secs(30);

/// Transitions that may wait for their scripts; what does not fit is dropped, and said so.
const QUEUE: usize = 1024;

/// What the speaker is told by the other threads.
#[derive(Debug)]
pub(crate) enum Message {
    /// What is tracked changed.
    Tracked { id: TrackId, reading: Reading },
    /// These configurations from now on.
    Reload(Vec<Configuration>),
    /// Resign and end.
    Stop,
}

/// The way to the speaker: a queue, and a byte that wakes it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    queue: Sender<Message>,
    wake: UnixStream,
}

impl Mailbox {
    pub(crate) fn new(queue: Sender<Message>, wake: UnixStream) -> Self {
        Self { queue, wake }
    }

    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { queue: self.queue.clone(), wake: self.wake.try_clone()? })
    }

    pub(crate) fn send(&self, message: Message) {
        // The speaker is gone only when everything ends.
        let _ = self.queue.send(message);
        // A full pipe wakes as well as one byte does.
        let _ = (&self.wake).write(&[1]);
    }
}

/// One transition, with everybody who is to be told.
#[derive(Debug)]
pub(crate) struct Transition {
    pub(crate) fifos: Vec<String>,
    /// `INSTANCE "name" STATE priority`.
    pub(crate) line: String,
    pub(crate) commands: Vec<Command>,
    pub(crate) netns: Option<Arc<NetnsFd>>,
}

/// Tells of transitions, in their order.
#[derive(Debug)]
pub(crate) struct Notifier {
    queues: Vec<SyncSender<Arc<Transition>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Notifier {
    pub(crate) fn start() -> std::io::Result<Self> {
        // A script that hangs must not hold up the FIFOs' readers.
        let (scripts, run) = sync_channel(QUEUE);
        let (fifos, write) = sync_channel(QUEUE);
        let threads = vec![
            std::thread::Builder::new().name("notify".into()).spawn(move || run_commands(&run))?,
            std::thread::Builder::new().name("fifo".into()).spawn(move || write_lines(&write))?,
        ];
        Ok(Self { queues: vec![scripts, fifos], threads })
    }

    pub(crate) fn tell(&self, transition: Transition) {
        let transition = Arc::new(transition);
        for queue in &self.queues {
            if let Err(TrySendError::Full(lost)) = queue.try_send(Arc::clone(&transition)) {
                warn!("not told of, as too many wait for their scripts: {}", lost.line.trim_end());
            }
        }
    }

    /// Waits until all is told.
    pub(crate) fn finish(self) {
        drop(self.queues);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn run_commands(transitions: &Receiver<Arc<Transition>>) {
    for transition in transitions {
        for command in &transition.commands {
            match run(command, transition.netns.as_deref(), NOTIFY_PATIENCE) {
                Ok(Outcome::Success) => debug!(command = command.words.join(" "), "told"),
                Ok(Outcome::Failure(why)) => warn!(command = command.words.join(" "), "notify script failed: {why}"),
                Ok(Outcome::TooLong(mut child)) => {
                    warn!(command = command.words.join(" "), "notify script takes long, and is left running");
                    let _ = std::thread::Builder::new().spawn(move || child.wait());
                }
                Err(error) => warn!(command = command.words.join(" "), "notify script was not run: {error}"),
            }
        }
    }
}

/// A pipe is opened for reading, too, as keepalived does: then lines wait in it for a reader to come, and
/// writing never blocks.
fn write_lines(transitions: &Receiver<Arc<Transition>>) {
    let mut open: BTreeMap<String, File> = BTreeMap::new();
    for transition in transitions {
        for path in &transition.fifos {
            let file = match open.get_mut(path) {
                Some(file) => file,
                None => match open_fifo(Path::new(path)) {
                    Ok(file) => open.entry(path.clone()).or_insert(file),
                    Err(error) => {
                        warn!("FIFO {path} cannot be opened: {error}");
                        continue;
                    }
                },
            };
            if let Err(error) = file.write_all(transition.line.as_bytes()) {
                warn!("FIFO {path}: a line is lost: {error}");
                open.remove(path);
            }
        }
    }
}

fn open_fifo(path: &Path) -> std::io::Result<File> {
    sys::make_fifo(path, 0o600)?;
    File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

/// How a script ended.
pub(crate) enum Outcome {
    Success,
    Failure(String),
    TooLong(Child),
}

pub(crate) fn run(command: &Command, netns: Option<&NetnsFd>, patience: Duration) -> std::io::Result<Outcome> {
    let (program, arguments) = command.words.split_first().expect("a command has at least its program");
    let mut process = Process::new(program);
    process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    if let Some(user) = &command.user {
        let (uid, gid) = look_up(user, command.group.as_deref())?;
        process.gid(gid).uid(uid);
    }
    let mut child = match netns {
        Some(netns) => sys::spawn_in_netns(&mut process, netns)?,
        None => process.spawn()?,
    };
    if !PidFd::open(child.id())?.wait_exit(patience)? {
        return Ok(Outcome::TooLong(child));
    }
    let status = child.wait()?;
    Ok(if status.success() { Outcome::Success } else { Outcome::Failure(status.to_string()) })
}

/// Numbers of a user and a group, by name or by number, from the machine's own files.
fn look_up(user: &str, group: Option<&str>) -> std::io::Result<(u32, u32)> {
    let unknown = |what: &str| std::io::Error::new(std::io::ErrorKind::NotFound, format!("there is no {what}"));
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let entry = find_entry(&passwd, user, 2).ok_or_else(|| unknown(&format!("user {user}")))?;
    let number = |fields: &[&str], at: usize| fields.get(at).and_then(|field| field.parse().ok());
    let uid = number(&entry, 2).ok_or_else(|| unknown("number of the user"))?;
    let gid = match group {
        None => number(&entry, 3),
        Some(group) => {
            let groups = std::fs::read_to_string("/etc/group")?;
            let entry = find_entry(&groups, group, 2).ok_or_else(|| unknown(&format!("group {group}")))?;
            number(&entry, 2)
        }
    };
    Ok((uid, gid.ok_or_else(|| unknown("number of the group"))?))
}

fn find_entry<'a>(file: &'a str, name: &str, number_at: usize) -> Option<Vec<&'a str>> {
    file.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name) || fields.get(number_at) == Some(&name))
}
