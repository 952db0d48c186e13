//! Reads the server's stream: a thread that connects, reads lines, and connects again.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_model::stream::Downstream;

use super::http::{Access, Door, Failure};
use super::poster::Poster;
use super::{Event, StreamEvent};
use crate::backoff::{Backoff, jitter};

/// Longest line that is accepted: a snapshot of a hundred thousand ports has some 30 MiB.
const MAX_LINE: u64 = 256 << 20;

/// A stream that lived for this long is a good server that went: the next attempt comes at once.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// How long a connection waits for this host's first report to reach the server.
const REPORT_FIRST: Duration = Duration::from_secs(5);

/// Closes the stream from outside; it opens again by itself.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<Mutex<Option<Door>>>);

impl Closer {
    /// Closes the stream, if there is one.
    pub fn close(&self) {
        if let Some(door) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            door.shutdown();
        }
    }

    fn set(&self, door: &Door) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(door.clone());
    }
}

/// Starts the thread.
pub fn start(access: Access, poster: Poster, events: Sender<Event>, seed: u64) -> anyhow::Result<Closer> {
    let closer = Closer::default();
    let handle = closer.clone();
    let told = events.clone();
    super::spawn("stream", &events, move || run(&access, &poster, &told, &handle, seed))?;
    Ok(closer)
}

fn run(access: &Access, poster: &Poster, events: &Sender<Event>, closer: &Closer, mut seed: u64) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        // The server must know this host before it can say what the host needs.
        poster.wait_until_reported(REPORT_FIRST);
        let start = Instant::now();
        let server = access.server();
        let error = match open_and_read(access, server, closer, events) {
            Ok(()) => return,
            Err(error) => error,
        };
        if error.downcast_ref::<Failure>().is_some_and(|failure| failure.is_of_identity) {
            access.refused();
        }
        access.give_up(server);
        if events.send(Event::Stream(StreamEvent::Lost(format!("{error:#}")))).is_err() {
            return;
        }
        if start.elapsed() > GOOD_LIFE {
            backoff.reset();
        }
        poster.repeat();
        seed = seed.wrapping_add(1);
        thread::sleep(jitter(backoff.next_wait(), seed));
    }
}

/// Reads until the stream breaks; `Ok` when nobody listens any more.
fn open_and_read(access: &Access, server: &str, closer: &Closer, events: &Sender<Event>) -> anyhow::Result<()> {
    let door = access.stream_door(server, &*access.member(server)?);
    closer.set(&door);
    let response = door.get("stream?letters=true")?;
    if response.status().as_u16() != 200 {
        door.understand(response)?;
        anyhow::bail!("the server {server} has no stream for this host");
    }
    access.accepted();
    let mut lines = BufReader::new(response.into_body().into_reader());
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).context("lost the server's stream")?;
        anyhow::ensure!(read > 0, "the server closed the stream");
        anyhow::ensure!(line.ends_with(b"\n"), "the server's stream broke in the middle of a line");
        let said: Downstream =
            serde_json::from_slice(&line).context("the server said something that makes no sense")?;
        if events.send(Event::Stream(StreamEvent::Said(Box::new(said)))).is_err() {
            return Ok(());
        }
    }
}
