//! What an operator finds below `ha_confs`: per HA router the equivalent `keepalived.conf`, its role,
//! and the log of its changes.
//!
//! Nothing depends on these files, so a full disk costs a warning and nothing else. They are written by a
//! thread of their own, so a slow disk costs nothing either.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use evergate_keeper::protocol::Transition;
use evergate_model::{HaState, RouterId};

use crate::cache::{self, Durability, write_atomically};
use crate::core::FileJob;
use crate::history;
use crate::timestamp;

/// Neutron's name for the log; operators look for it.
pub const STATE_CHANGE_LOG: &str = "neutron-keepalived-state-change.log";

/// A log that grows beyond this is put aside as `….log.1`, replacing the one before: a router that flaps
/// must not fill the disk.
const LOG_BYTES: u64 = 1 << 20;

/// Writes files, and remembers what it complained about.
#[derive(Debug)]
pub struct Files {
    ha_confs: PathBuf,
    state_path: PathBuf,
    host: String,
    failing: BTreeSet<String>,
}

impl Files {
    /// Writes below these folders.
    pub fn new(ha_confs: &Path, state_path: &Path, host: &str) -> Self {
        Self {
            ha_confs: ha_confs.to_owned(),
            state_path: state_path.to_owned(),
            host: host.to_owned(),
            failing: BTreeSet::new(),
        }
    }

    /// Does one job. A failure is logged once, until the same thing works again.
    pub fn run(&mut self, job: &FileJob) {
        let (what, result) = match job {
            FileJob::KeepalivedConf { router, text, script } => {
                ("keepalived.conf", self.write_conf(*router, text, script.as_ref()))
            }
            FileJob::Transition(transition) => ("state-change log", self.log(transition)),
            FileJob::History(event) => ("a router's history", history::append(&self.state_path, event)),
            FileJob::State { router, state } => ("state", self.write_state(*router, *state)),
            FileJob::Prune { keep } => (
                "folders of routers that are gone",
                self.prune(keep).and_then(|()| history::prune(&self.state_path, keep)),
            ),
            FileJob::Cache(config) => (cache::FILE_NAME, cache::save(&self.state_path, config)),
        };
        match result {
            Ok(()) => {
                if self.failing.remove(what) {
                    tracing::info!("{what} can be written again");
                }
            }
            Err(error) => {
                if self.failing.insert(what.to_owned()) {
                    tracing::warn!("failed to write {what}, going on without: {error}");
                }
            }
        }
    }

    /// Lists what cannot be written now.
    pub fn problems(&self) -> Vec<String> {
        self.failing.iter().map(|what| format!("{what} cannot be written: is the disk full?")).collect()
    }

    fn folder(&self, router: RouterId) -> io::Result<PathBuf> {
        let folder = self.ha_confs.join(router.to_string());
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    fn write_conf(&self, router: RouterId, text: &str, script: Option<&(String, String)>) -> io::Result<()> {
        let folder = self.folder(router)?;
        if let Some((name, text)) = script {
            let path = folder.join(name);
            write_atomically(&path, text.as_bytes(), Durability::Kernel)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let path = folder.join("keepalived.conf");
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        write_atomically(&path, text.as_bytes(), Durability::Kernel)
    }

    /// Writes the role in the words of Neutron's state files.
    fn write_state(&self, router: RouterId, state: HaState) -> io::Result<()> {
        write_atomically(&self.folder(router)?.join("state"), state_file_word(state).as_bytes(), Durability::Kernel)
    }

    fn log(&self, transition: &Transition) -> io::Result<()> {
        let path = self.folder(transition.router)?.join(STATE_CHANGE_LOG);
        let line = self.line(transition);
        let end = end_of(&path)?;
        // A keeper repeats its last transition to a control that has just started.
        if !end.ends_with(&line) {
            if fs::metadata(&path).is_ok_and(|file| file.len() > LOG_BYTES) {
                fs::rename(&path, path.with_extension("log.1"))?;
            }
            fs::OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?.write_all(line.as_bytes())?;
        }
        self.write_state(transition.router, transition.state)
    }

    /// One line that an operator of either age finds: the documents say master, Neutron says primary.
    fn line(&self, transition: &Transition) -> String {
        let to = match transition.state {
            HaState::Active => "master (primary)",
            HaState::Standby => "backup",
        };
        format!(
            "{} INFO router {} transition to {to} on host {}: {}; epoch {}, took {:.1} ms\n",
            timestamp::utc(transition.at_ms),
            transition.router,
            self.host,
            transition.reason.replace('\n', " "),
            transition.epoch,
            transition.took_us as f64 / 1e3
        )
    }

    fn prune(&self, keep: &BTreeSet<RouterId>) -> io::Result<()> {
        let folders = match fs::read_dir(&self.ha_confs) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for folder in folders {
            let folder = folder?;
            // Anything that is not named by a router's id is not ours.
            let router = folder.file_name().to_str().and_then(|name| name.parse::<RouterId>().ok());
            if router.is_some_and(|router| !keep.contains(&router)) {
                fs::remove_dir_all(folder.path())?;
            }
        }
        Ok(())
    }
}

fn state_file_word(state: HaState) -> &'static str {
    match state {
        HaState::Active => "primary",
        HaState::Standby => "backup",
    }
}

/// Reads the last bytes of a file: enough for one line of the log.
pub(crate) fn end_of(path: &Path) -> io::Result<String> {
    const ENOUGH: u64 = 4096;
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder that goes with the test.
    pub(crate) struct Folder(PathBuf);

    impl Folder {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("evergate-hostd-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const ROUTER: RouterId = RouterId::from_u128(7);

    fn files(folder: &Folder) -> Files {
        Files::new(&folder.path().join("ha_confs"), folder.path(), "network1")
    }

    fn transition(state: HaState, at_ms: u64) -> FileJob {
        FileJob::Transition(Transition {
            router: ROUTER,
            state,
            epoch: 3,
            at_ms,
            reason: "nothing heard for 6.8 s".into(),
            took_us: 840,
        })
    }

    fn read(folder: &Folder, name: &str) -> String {
        fs::read_to_string(folder.path().join("ha_confs").join(ROUTER.to_string()).join(name)).unwrap()
    }

    #[test]
    fn a_transition_is_a_line_and_a_state() {
        let folder = Folder::new("transition");
        let mut files = files(&folder);
        files.run(&transition(HaState::Active, 1_795_394_083_123));
        files.run(&transition(HaState::Standby, 1_795_394_084_000));
        assert_eq!(read(&folder, "state"), "backup");
        assert_eq!(
            read(&folder, STATE_CHANGE_LOG),
            "2026-11-23 00:34:43.123 INFO router 00000000-0000-0000-0000-000000000007 transition to master (primary) on \
             host network1: nothing heard for 6.8 s; epoch 3, took 0.8 ms\n\
             2026-11-23 00:34:44.000 INFO router 00000000-0000-0000-0000-000000000007 transition to backup on \
             host network1: nothing heard for 6.8 s; epoch 3, took 0.8 ms\n"
        );
        assert_eq!(files.problems(), Vec::<String>::new());
    }

    #[test]
    fn a_transition_that_is_told_twice_is_logged_once() {
        let folder = Folder::new("twice");
        for _ in 0..2 {
            files(&folder).run(&transition(HaState::Active, 5));
        }
        assert_eq!(read(&folder, STATE_CHANGE_LOG).lines().count(), 1);
        assert_eq!(read(&folder, "state"), "primary");
    }

    #[test]
    fn the_script_of_a_health_check_lies_beside_the_configuration_and_can_be_run() {
        let folder = Folder::new("script");
        let script = Some(("check.sh".to_owned(), "#!/bin/sh\nexit 3\n".to_owned()));
        files(&folder).run(&FileJob::KeepalivedConf { router: ROUTER, text: "x".into(), script });
        let path = folder.path().join("ha_confs").join(ROUTER.to_string()).join("check.sh");
        assert_eq!(std::process::Command::new(path).status().unwrap().code(), Some(3));
    }

    #[test]
    fn a_log_that_grew_large_is_put_aside() {
        let folder = Folder::new("large");
        let mut files = files(&folder);
        files.run(&transition(HaState::Active, 1));
        let log = folder.path().join("ha_confs").join(ROUTER.to_string()).join(STATE_CHANGE_LOG);
        fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(LOG_BYTES + 1).unwrap();
        files.run(&transition(HaState::Standby, 2));
        assert_eq!(read(&folder, STATE_CHANGE_LOG).lines().count(), 1);
        assert!(log.with_extension("log.1").exists());
    }

    #[test]
    fn pruning_removes_folders_of_other_routers_and_nothing_else() {
        let folder = Folder::new("prune");
        let mut files = files(&folder);
        for router in [ROUTER, RouterId::from_u128(8)] {
            files.run(&FileJob::KeepalivedConf { router, text: "x".into(), script: None });
        }
        fs::create_dir(folder.path().join("ha_confs/mine")).unwrap();
        files.run(&FileJob::Prune { keep: BTreeSet::from([ROUTER]) });
        let mut left: Vec<_> =
            fs::read_dir(folder.path().join("ha_confs")).unwrap().map(|f| f.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [ROUTER.to_string().as_str(), "mine"]);
    }

    #[test]
    fn what_cannot_be_written_is_a_problem_until_it_can() {
        let folder = Folder::new("cannot");
        let mut files = files(&folder);
        fs::write(folder.path().join("ha_confs"), "in the way").unwrap();
        files.run(&FileJob::State { router: ROUTER, state: HaState::Active });
        assert_eq!(files.problems().len(), 1);
        fs::remove_file(folder.path().join("ha_confs")).unwrap();
        files.run(&FileJob::State { router: ROUTER, state: HaState::Active });
        assert_eq!(files.problems(), Vec::<String>::new());
    }
}
