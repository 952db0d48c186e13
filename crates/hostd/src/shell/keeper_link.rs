//! The connection to the keeper: a thread that connects, reads, and connects again; one per connection
//! that writes, so that a keeper that does not read never holds up control.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use evergate_keeper::protocol::{FromKeeper, MAX_LINE, SOCKET_NAME, ToKeeper};

use super::{Event, KeeperEvent};
use crate::backoff::Backoff;

/// Starts the thread.
pub fn start(run_path: &Path, events: Sender<Event>) -> anyhow::Result<()> {
    let socket = run_path.join(SOCKET_NAME);
    let told = events.clone();
    super::spawn("keeper", &events, move || run(&socket, &told))
}

fn run(socket: &PathBuf, events: &Sender<Event>) {
    // The supervisor starts a keeper that died within 50 ms.
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                backoff.reset();
                if let Err(error) = converse(stream, events) {
                    tracing::warn!("lost the keeper: {error:#}");
                }
                if events.send(Event::Keeper(KeeperEvent::Gone)).is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!("failed to connect to the keeper at {}: {error}", socket.display()),
        }
        thread::sleep(backoff.next_wait());
    }
}

fn converse(stream: UnixStream, events: &Sender<Event>) -> anyhow::Result<()> {
    let (to_keeper, queue) = channel();
    let writer = stream.try_clone().context("failed to share the connection")?;
    thread::Builder::new().name("keeper-out".into()).spawn(move || write(writer, &queue))?;
    if events.send(Event::Keeper(KeeperEvent::Connected(to_keeper))).is_err() {
        return Ok(());
    }
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines).take(MAX_LINE as u64).read_until(b'\n', &mut line).context("failed to read")?;
        anyhow::ensure!(read > 0, "it closed the connection");
        let said: FromKeeper = serde_json::from_slice(&line).context("it said something that makes no sense")?;
        if events.send(Event::Keeper(KeeperEvent::Said(Box::new(said)))).is_err() {
            return Ok(());
        }
    }
}

/// Writes until the queue or the connection ends; a broken connection also ends the reader.
fn write(mut stream: UnixStream, queue: &Receiver<Box<ToKeeper>>) {
    for message in queue {
        let written = serde_json::to_vec(&message).map_err(std::io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            stream.write_all(&line)
        });
        if let Err(error) = written {
            tracing::debug!("failed to write to the keeper: {error}");
            break;
        }
    }
    // The reader's end of the same socket. Closed already is as good.
    let _ = stream.shutdown(Shutdown::Both);
}
