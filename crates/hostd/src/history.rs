//! What happened to each router here, and why: one file per router, for an operator at 3 a.m.
//!
//! The keeper's transitions with their reasons, whom this host followed, and what it was warned of, in order.
//! The files are text, so they can be read without the daemon. A router's history goes when the router does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use evergate_keeper::protocol::Transition;
use evergate_model::host::ActiveCopy;
use evergate_model::{HaState, RouterId};

use crate::files::end_of;
use crate::timestamp;

/// Name of the folder below `state_path`.
pub const FOLDER_NAME: &str = "history";

/// A history that grows beyond this begins anew, and the one before is kept: a router that flaps must not
/// fill the disk. Some 500 lines.
const BYTES: u64 = 64 << 10;

/// A line of a router's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which router's.
    pub router: RouterId,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub at_ms: Option<u64>,
    /// What happened.
    pub text: String,
}

impl Event {
    /// The copy here changed its state.
    pub fn of_transition(transition: &Transition) -> Self {
        let to = match transition.state {
            HaState::Active => "ACTIVE here",
            HaState::Standby => "standby here",
        };
        let took = transition.took_us as f64 / 1e3;
        let text = format!("{to}: {} (epoch {}, took {took:.1} ms)", transition.reason, transition.epoch);
        Self { router: transition.router, at_ms: Some(transition.at_ms), text }
    }

    /// A host claims the router.
    pub fn of_claim(router: RouterId, claim: ActiveCopy, own: bool) -> Self {
        let text = if own {
            format!("claimed again from here, in epoch {}", claim.epoch)
        } else {
            format!("active on {}, which claims it in epoch {}", claim.vtep, claim.epoch)
        };
        Self { router, at_ms: None, text }
    }
}

/// Appends a line.
pub fn append(state_path: &Path, event: &Event) -> io::Result<()> {
    let folder = state_path.join(FOLDER_NAME);
    fs::create_dir_all(&folder)?;
    let path = file(&folder, event.router);
    let at = timestamp::utc(event.at_ms.unwrap_or_else(timestamp::now_ms));
    let line = format!("{at}  {}\n", event.text.replace('\n', " "));
    // A keeper repeats its last transition to a control that has just started.
    if end_of(&path)?.ends_with(&line) {
        return Ok(());
    }
    if fs::metadata(&path).is_ok_and(|file| file.len() > BYTES) {
        fs::rename(&path, path.with_extension("log.1"))?;
    }
    fs::OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?.write_all(line.as_bytes())
}

/// The histories of the routers whose id begins so, oldest line first.
pub fn read(state_path: &Path, start: &str) -> io::Result<Vec<(RouterId, String)>> {
    let folder = state_path.join(FOLDER_NAME);
    let mut found = Vec::new();
    for router in routers(&folder)?.into_iter().filter(|router| router.to_string().starts_with(start)) {
        let path = file(&folder, router);
        let mut text = String::new();
        for path in [path.with_extension("log.1"), path] {
            match fs::read_to_string(&path) {
                Ok(part) => text += &part,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        found.push((router, text));
    }
    Ok(found)
}

/// Removes the histories of routers that are gone.
pub fn prune(state_path: &Path, keep: &BTreeSet<RouterId>) -> io::Result<()> {
    let folder = state_path.join(FOLDER_NAME);
    for router in routers(&folder)?.into_iter().filter(|router| !keep.contains(router)) {
        let path = file(&folder, router);
        for path in [path.with_extension("log.1"), path] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn file(folder: &Path, router: RouterId) -> PathBuf {
    folder.join(format!("{router}.log"))
}

/// The routers that there are files of.
fn routers(folder: &Path) -> io::Result<BTreeSet<RouterId>> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut routers = BTreeSet::new();
    for file in files {
        let name = file?.file_name();
        let name = name.to_str().and_then(|name| name.split('.').next());
        routers.extend(name.and_then(|name| name.parse::<RouterId>().ok()));
    }
    Ok(routers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    const ROUTER: RouterId = RouterId::from_u128(7);

    fn event(at_ms: u64, text: &str) -> Event {
        Event { router: ROUTER, at_ms: Some(at_ms), text: text.to_owned() }
    }

    #[test]
    fn what_happened_is_read_in_order_and_once() {
        let folder = Folder::new("history");
        let transition = Transition {
            router: ROUTER,
            state: HaState::Active,
            epoch: 3,
            at_ms: 1_795_394_083_123,
            reason: "nothing was heard".into(),
            took_us: 840,
        };
        for _ in 0..2 {
            append(folder.path(), &Event::of_transition(&transition)).unwrap();
        }
        append(folder.path(), &event(1_795_394_084_000, "a\nb")).unwrap();
        let (router, text) = read(folder.path(), "00000000").unwrap().remove(0);
        assert_eq!(router, ROUTER);
        assert_eq!(
            text,
            "2026-11-23 00:34:43.123  ACTIVE here: nothing was heard (epoch 3, took 0.8 ms)\n\
             2026-11-23 00:34:44.000  a b\n"
        );
        assert_eq!(read(folder.path(), "1").unwrap(), []);
    }

    #[test]
    fn a_long_history_keeps_its_end_and_goes_with_the_router() {
        let folder = Folder::new("long-history");
        for at in 0..2000 {
            append(folder.path(), &event(at, "x".repeat(80).as_str())).unwrap();
        }
        let (_, text) = read(folder.path(), "").unwrap().remove(0);
        assert!((500..1500).contains(&text.lines().count()), "{}", text.lines().count());
        assert!(text.lines().last().unwrap().starts_with("1970-01-01 00:00:01.999"));
        prune(folder.path(), &BTreeSet::from([ROUTER])).unwrap();
        assert_eq!(read(folder.path(), "").unwrap().len(), 1);
        prune(folder.path(), &BTreeSet::new()).unwrap();
        assert_eq!(read(folder.path(), "").unwrap(), []);
    }
}
