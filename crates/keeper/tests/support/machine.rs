//! What tests do with the machine that they run on. The tests of `standalone` use this file as well.

use std::process::Command;
use std::time::{Duration, Instant};

/// Generous, because tests share the machine; no test waits for it unless it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Fails a test that cannot run here: one that is skipped looks like one that has passed.
pub fn require_root() {
    assert_eq!(output("id -u").trim(), "0", "this test makes network namespaces, so it must run as root");
}

/// Runs a command line; its failure fails the test.
pub fn sh(command: &str) {
    let done = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// What a command line prints, whether it succeeds or not.
pub fn output(command: &str) -> String {
    let done = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Fails if something ceases to be so for a while.
pub fn for_a_while(what: &str, time: Duration, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(so(), "ceased: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
