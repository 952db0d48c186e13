//! The control socket: one line in (`show` or `plan`), one JSON value out.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Event;

/// Name of the socket below `run_path`.
pub const SOCKET_NAME: &str = "control.sock";

/// How long an answer may take: a plan waits for the round that runs.
const PATIENCE: Duration = Duration::from_secs(30);

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
    stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(5)))?;
    serde_json::to_writer(&mut stream, &verb)?;
    stream.write_all(b"\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("failed to hear control at {}", path.display()))?;
    match serde_json::from_str(&text).context("control's answer makes no sense")? {
        Answer::Ok(value) => Ok(Some(serde_json::from_value(value).context("control's answer makes no sense")?)),
        Answer::Error(error) => anyhow::bail!("control refuses: {error}"),
    }
}

fn is_nobody(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}
