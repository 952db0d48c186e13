//! Real servers as processes, for the tests of the executable.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long anything may take on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A directory of a test's own, which goes away with the value.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evergate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the value.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server, on any free port of the loopback. What it is started with and what it says are `NAME.conf`, `NAME.address`
/// and `NAME.log` in its directory.
pub struct Server {
    pub process: Process,
    files: PathBuf,
}

impl Server {
    /// Starts one with `conf` in its configuration, in section `[DEFAULT]` first. It may not listen yet.
    pub fn start(dir: &Path, name: &str, conf: &str) -> Self {
        let log = File::create(dir.join(name).with_extension("log")).unwrap();
        Self::start_logging_to(log, dir, name, conf)
    }

    /// As [`Server::start`], from a shell that does something first, such as `ulimit`.
    pub fn start_after(first: &str, dir: &Path, name: &str, conf: &str) -> Self {
        let log = File::create(dir.join(name).with_extension("log")).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{first} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_evergate")]);
        Self::start_by(shell, log, dir, name, conf)
    }

    /// As [`Server::start`], with another place for what it says.
    pub fn start_logging_to(log: File, dir: &Path, name: &str, conf: &str) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_evergate")), log, dir, name, conf)
    }

    fn start_by(mut command: Command, log: File, dir: &Path, name: &str, conf: &str) -> Self {
        let files = dir.join(name);
        let text = format!("[DEFAULT]\nbind_host = 127.0.0.1\nbind_port = 0\n{conf}");
        std::fs::write(files.with_extension("conf"), text).unwrap();
        let server = command
            .args(["server", "--config-file"])
            .arg(files.with_extension("conf"))
            .arg("--address-file")
            .arg(files.with_extension("address"))
            // At its most talkative: whatever it was told in confidence must not be in it.
            .env("EVERGATE_LOG", "trace")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process: Process(server), files }
    }

    pub fn conf(&self) -> PathBuf {
        self.files.with_extension("conf")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.files.with_extension("log")).unwrap_or_default()
    }

    /// Waits for something, as long as the server lives.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let found = evergate_lab::wait_for(what, PATIENCE, || match self.process.0.try_wait()? {
            Some(_) => Ok(Some(None)),
            None => Ok(look().map(Some)),
        });
        match found {
            Ok(Some(found)) => found,
            Ok(None) => panic!("{what}: the server ended: {}", self.log()),
            Err(error) => panic!("{error:#}: {}", self.log()),
        }
    }

    /// Where it listens; waits until it does.
    #[track_caller]
    pub fn address(&mut self) -> String {
        let file = self.files.with_extension("address");
        let read = || std::fs::read_to_string(&file).ok().filter(|address| !address.is_empty());
        self.wait_for("the server's address", read).trim().to_owned()
    }
}

/// Waits until there is something to see.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    evergate_lab::wait_for(what, PATIENCE, || Ok(look())).unwrap()
}
