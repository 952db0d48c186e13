//! The control socket: one line in (`show` or `plan`), one JSON value out.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_kernel::sys::LockFile;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::supervisor::CONTROL_LOCK_NAME;

/// Name of the socket below `run_path`.
pub const SOCKET_NAME: &str = "control.sock";

/// How long an answer may take: a plan waits for the round that runs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long [`Verb::Show`] waits: it is answered from memory.
const SHOW_PATIENCE: Duration = Duration::from_secs(10);

/// How often whoever waits looks whether control can answer at all.
const LOOK: Duration = Duration::from_secs(1);

/// A verb is a word.
const MAX_REQUEST: u64 = 1024;

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// All that the daemon knows: a [`crate::view::HostView`].
    Show,
    /// What would be changed now: a [`PlanText`].
    Plan,
}

/// A plan, printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanText {
    /// The ops, or that there are none.
    pub text: String,
    /// Whether there is nothing to do.
    pub empty: bool,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It.
    Ok(serde_json::Value),
    /// Why not.
    Error(String),
}

/// Listens; a socket that a dead control left behind is replaced.
///
/// Call it with control's lock held: then whoever left the socket is dead.
pub fn listen(run_path: &Path, events: Sender<Event>) -> anyhow::Result<()> {
    let path = run_path.join(SOCKET_NAME);
    let listener = bind(&path).with_context(|| format!("failed to listen on {}", path.display()))?;
    let told = events.clone();
    super::spawn("socket", &events, move || accept(&listener, &told))
}

/// Binds beside and renames, so that the socket is never open to others and never absent.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let beside: PathBuf = path.with_extension("sock.new");
    let _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, events: &Sender<Event>) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                if let Err(error) = serve(stream, events) {
                    tracing::debug!("failed to answer on the control socket: {error:#}");
                }
            }
            Err(error) => {
                tracing::warn!("failed to accept on the control socket: {error}");
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

fn serve(stream: UnixStream, events: &Sender<Event>) -> anyhow::Result<()> {
    // One at a time is enough for people; nobody may hold the others up for long.
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_REQUEST)).read_line(&mut line)?;
    let answer = match serde_json::from_str(line.trim()) {
        Ok(verb) => ask_main(verb, events),
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    (&stream).write_all(&text)?;
    Ok(())
}

fn ask_main(verb: Verb, events: &Sender<Event>) -> Answer {
    let (reply, wait) = channel();
    if events.send(Event::Asked { verb, reply }).is_err() {
        return Answer::Error("control is stopping".into());
    }
    wait.recv_timeout(PATIENCE).unwrap_or_else(|_| Answer::Error("control is too busy to answer".into()))
}

/// Asks the running control; `None` when none runs.
pub fn ask<T: serde::de::DeserializeOwned>(run_path: &Path, verb: Verb) -> anyhow::Result<Option<T>> {
    let path = run_path.join(SOCKET_NAME);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to ask control at {}", path.display())),
    };
    stream.set_write_timeout(Some(LOOK))?;
    let mut line = serde_json::to_vec(&verb)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(|| format!("failed to ask control at {}", path.display()))?;
    let patience = match verb {
        Verb::Show => SHOW_PATIENCE,
        Verb::Plan => PATIENCE + Duration::from_secs(5),
    };
    let text = hear(&mut stream, run_path, patience)?;
    match serde_json::from_str(&text).context("control's answer makes no sense")? {
        Answer::Ok(value) => Ok(Some(serde_json::from_value(value).context("control's answer makes no sense")?)),
        Answer::Error(error) => anyhow::bail!("control refuses: {error}"),
    }
}

/// Reads the answer. A control that cannot give one is named, as soon as that is known.
fn hear(stream: &mut UnixStream, run_path: &Path, patience: Duration) -> anyhow::Result<String> {
    let until = Instant::now() + patience;
    let mut text = Vec::new();
    let mut chunk = [0; 16 << 10];
    stream.set_read_timeout(Some(LOOK))?;
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return String::from_utf8(text).context("control's answer makes no sense"),
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let pid = LockFile::holder(&run_path.join(CONTROL_LOCK_NAME)).ok().flatten();
                let name = pid.map_or_else(|| "control".to_owned(), |pid| format!("control (process {pid})"));
                anyhow::ensure!(
                    !pid.is_some_and(is_stopped),
                    "{name} does not answer: it was stopped (SIGSTOP); kill -CONT lets it go on"
                );
                anyhow::ensure!(Instant::now() < until, "{name} has not answered for {} s", patience.as_secs());
            }
            Err(error) => return Err(error).with_context(|| format!("failed to hear {}", run_path.display())),
        }
    }
}

/// Whether a process was stopped by a signal, or is being traced.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its name, in parentheses, may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('T' | 't')))
}

fn is_nobody(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    #[test]
    fn a_control_that_was_stopped_or_says_nothing_is_named() {
        let folder = Folder::new("socket");
        let listener = bind(&folder.path().join(SOCKET_NAME)).unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let silent = |patience| {
            let mut stream = UnixStream::connect(folder.path().join(SOCKET_NAME)).unwrap();
            hear(&mut stream, folder.path(), patience).unwrap_err().to_string()
        };
        assert_eq!(silent(Duration::ZERO), "control has not answered for 0 s");
        let stop = |signal| evergate_kernel::sys::kill(sleeper.id(), signal).unwrap();
        stop(evergate_kernel::sys::Signal::Stop);
        while !is_stopped(sleeper.id()) {
            thread::yield_now();
        }
        stop(evergate_kernel::sys::Signal::Cont);
        while is_stopped(sleeper.id()) {
            thread::yield_now();
        }
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(!is_stopped(sleeper.id()), "it is gone");
        drop(listener);
    }
}
