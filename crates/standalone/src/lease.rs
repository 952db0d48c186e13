//! A note of which instances were active, and when that was last true: what lets a process that was restarted
//! (or killed and started again) go on where it was.
//!
//! The note is a small file in memory. Its time is renewed as long as the process lives, on a thread of its
//! own; after three intervals without renewal a backup has taken over, so the note is worth nothing any more
//! (see [`VirtualRouter::handle_adopt_active`](evergate_vrrp::router::VirtualRouter::handle_adopt_active)).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tracing::warn;

/// Namespace and name of an instance.
pub(crate) type Key = (Option<String>, String);

/// Renewed so often: a third of the shortest wait that is worth bridging.
const RENEWAL: Duration = Duration::from_millis(100);

/// What an earlier process left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    active: BTreeSet<String>,
    renewed: Option<SystemTime>,
}

impl Left {
    pub(crate) fn read(path: &Path) -> Self {
        let renewed = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let text = fs::read_to_string(path).unwrap_or_default();
        Self { active: text.lines().map(str::to_owned).collect(), renewed }
    }

    /// Whether the instance was active less than this long ago.
    pub(crate) fn was_active(&self, key: &Key, within: Duration) -> bool {
        let age = self.renewed.and_then(|renewed| SystemTime::now().duration_since(renewed).ok());
        self.active.contains(&line(key)) && age.is_some_and(|age| age < within)
    }
}

fn line((netns, name): &Key) -> String {
    format!("{} {name}", netns.as_deref().unwrap_or("-"))
}

/// The note of this process.
#[derive(Debug)]
pub(crate) struct Lease {
    active: BTreeSet<Key>,
    changes: Sender<BTreeSet<Key>>,
    thread: JoinHandle<()>,
    path: PathBuf,
}

impl Lease {
    pub(crate) fn start(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let (changes, receiver) = channel();
        let file = path.clone();
        let thread = std::thread::Builder::new().name("lease".into()).spawn(move || keep(&file, &receiver))?;
        Ok(Self { active: BTreeSet::new(), changes, thread, path })
    }

    pub(crate) fn set(&mut self, key: &Key, active: bool) {
        let changed = if active { self.active.insert(key.clone()) } else { self.active.remove(key) };
        if changed {
            // The thread lives as long as this does.
            let _ = self.changes.send(self.active.clone());
        }
    }

    /// Nobody was active at the end: nothing is left to go on with.
    pub(crate) fn finish(self) {
        drop(self.changes);
        let _ = self.thread.join();
        let _ = fs::remove_file(self.path);
    }
}

fn keep(path: &Path, changes: &Receiver<BTreeSet<Key>>) {
    let mut active = BTreeSet::new();
    loop {
        // Without anything active there is nothing to renew, and no reason to wake up.
        let received = if active.is_empty() {
            changes.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            changes.recv_timeout(RENEWAL)
        };
        let outcome = match received {
            Ok(now) => {
                active = now;
                write(path, &active)
            }
            Err(RecvTimeoutError::Timeout) => {
                File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()))
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Err(error) = outcome {
            warn!("{} cannot be kept, so a restart would move the addresses: {error}", path.display());
        }
    }
}

/// Replaced whole, so that a reader never sees half of it.
fn write(path: &Path, active: &BTreeSet<Key>) -> io::Result<()> {
    let text: String = active.iter().map(|key| line(key) + "\n").collect();
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}
