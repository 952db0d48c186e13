//! Where log lines go: standard error, so that what a verb prints can be piped.
//!
//! A log that cannot be written, because its disk is full, is no reason to stop or to fail at anything: lines
//! are lost and counted, and the count is logged as soon as there is room again.
//!
//! The keeper must never wait for a disk, and standard error may be a file on one. Its lines go
//! through a bounded queue to a thread of their own; when the queue is full, lines are dropped and
//! counted, and the count is logged as soon as there is room again.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for the disk: some seconds of a very talkative keeper.
const QUEUE_LINES: usize = 4096;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Starts logging, filtered by `EVERGATE_LOG` (default `info`).
pub(crate) fn init(never_wait: bool) {
    let filter = EnvFilter::try_from_env("EVERGATE_LOG").unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // It would say so on the very stream that failed, and panic there.
        .log_internal_errors(false);
    if never_wait {
        builder.with_writer(Queued).init();
    } else {
        builder.with_writer(|| Direct).init();
    }
}

/// Lines that standard error did not take.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Writes lines at once.
struct Direct;

impl Write for Direct {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut to = io::stderr().lock();
        if to.write_all(line).is_err() {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let lost = UNWRITTEN.swap(0, Ordering::Relaxed);
        if lost > 0 && writeln!(to, "WARN {lost} log lines before this one could not be written").is_err() {
            UNWRITTEN.fetch_add(lost, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits, not for long, until what was logged is written.
pub(crate) fn finish() {
    let Some(queue) = QUEUE.get() else { return };
    let (written, wait) = sync_channel(1);
    if queue.entries.try_send(Entry::Finish(written)).is_ok() {
        let _ = wait.recv_timeout(LAST_LINES);
    }
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Finish(SyncSender<()>),
}

/// The writing end of the queue.
#[derive(Clone)]
struct Queue {
    entries: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Queue {
    fn start() -> Self {
        let (entries, waiting) = sync_channel(QUEUE_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        let spawned = std::thread::Builder::new().name("log".into()).spawn(move || drain(&waiting, &counter));
        if let Err(error) = spawned {
            eprintln!("evergate: no thread for log lines, they are lost: {error}");
        }
        Self { entries, dropped }
    }
}

fn drain(waiting: &Receiver<Entry>, dropped: &AtomicU64) {
    for entry in waiting {
        match entry {
            Entry::Line(line) => drop(Direct.write(&line)),
            Entry::Finish(written) => drop(written.try_send(())),
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(io::stderr(), "WARN {lost} log lines dropped: the log could not be written fast enough");
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.entries.try_send(Entry::Line(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the queue's thread with the first line, not before: a thread that is older than the keeper's
/// signal mask would take SIGTERM for the keeper, and end it without handing its routers over.
struct Queued;

impl<'a> MakeWriter<'a> for Queued {
    type Writer = Queue;

    fn make_writer(&'a self) -> Queue {
        QUEUE.get_or_init(Queue::start).clone()
    }
}
