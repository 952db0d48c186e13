//! Files with a number in them, read when something changed in their folder, and now and then besides (a
//! network's file system tells nobody).

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use evergate_kernel::rt::Epoll;
use evergate_kernel::sys::FolderWatch;
use tracing::{debug, info, warn};

use super::{Reading, Stop, Teller};
use crate::conf::TrackFile;

/// How often a file is read although nothing was noticed; without notices, the shorter one.
const PERIOD: Duration = Duration::from_secs(5);
const SHORT_PERIOD: Duration = Duration::from_millis(500);

/// A folder may change often for other files' sake: it is looked at so often at most.
const PAUSE: Duration = Duration::from_millis(20);

const STOP: u64 = 0;
const FOLDER: u64 = 1;

pub(super) fn follow(file: &TrackFile, teller: &Teller, stop: &Stop) {
    if let Err(error) = initialise(file) {
        warn!(file = teller.name(), "{} cannot be written: {error}", file.path.display());
    }
    let Ok(mut epoll) = Epoll::new().and_then(|epoll| epoll.add(stop, STOP).map(|()| epoll)) else { return };
    let (mut watch, mut ready) = (None, Vec::new());
    let mut told = 0;
    loop {
        if watch.is_none() {
            watch = file.path.parent().and_then(|folder| open(folder, &epoll).ok());
        }
        // After the watch is there, so that nothing is missed in between.
        let value = read(&file.path);
        if value != told {
            told = value;
            info!(file = teller.name(), value, "a tracked file changed");
            teller.tell(Reading::Value(value));
        }
        let period = if watch.is_some() { PERIOD } else { SHORT_PERIOD };
        if epoll.wait(Some(Instant::now() + period), &mut ready).is_err() || ready.contains(&STOP) {
            return;
        }
        if let Some(folder) = watch.as_ref().filter(|_| ready.contains(&FOLDER)) {
            if stop.wait(PAUSE) {
                return;
            }
            folder.drain();
        }
        // A folder that was replaced tells nothing any more.
        if ready.is_empty() || !file.path.exists() {
            watch = None;
        }
    }
}

fn open(folder: &Path, epoll: &Epoll) -> io::Result<FolderWatch> {
    let watch = FolderWatch::open(folder)?;
    epoll.add(&watch, FOLDER)?;
    Ok(watch)
}

fn initialise(file: &TrackFile) -> io::Result<()> {
    match file.initial {
        Some(value) if file.overwrite || !file.path.exists() => fs::write(&file.path, format!("{value}\n")),
        Some(_) | None => Ok(()),
    }
}

/// The number that a file begins with; 0 if there is none, or no file.
fn read(path: &Path) -> i64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| {
        debug!("{}: {error}", path.display());
        String::new()
    });
    let word = text.split_whitespace().next().unwrap_or_default();
    word.parse().unwrap_or(0)
}
