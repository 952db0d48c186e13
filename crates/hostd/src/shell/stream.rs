//! Reads the server's stream: a thread that connects, reads lines, and connects again.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_model::stream::Downstream;
use ureq::Agent;

use super::http::{self, Access};
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
pub struct Closer(Arc<Mutex<Option<Agent>>>);

impl Closer {
    /// Closes the stream, if there is one.
    pub fn close(&self) {
        if let Some(agent) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            agent.shutdown();
        }
    }

    fn set(&self, agent: &Agent) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(agent.clone());
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
        let agent = http::stream_agent();
        closer.set(&agent);
        let server = access.server();
        let error = match read(access, server, &agent, events) {
            Ok(()) => return,
            Err(error) => error,
        };
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
fn read(access: &Access, server: &str, agent: &Agent, events: &Sender<Event>) -> anyhow::Result<()> {
    let request = agent.get(access.url(server, "stream")).header("Authorization", access.authorization()?);
    let mut response = request.call().with_context(|| format!("failed to reach the server {server}"))?;
    let status = response.status().as_u16();
    if status != 200 {
        let body = response.body_mut().read_to_string().unwrap_or_default();
        return Err(http::status_error(status, &body))
            .with_context(|| format!("the server {server} refuses its stream"));
    }
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
