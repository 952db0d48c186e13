//! What tests do with the machine that they run on. The tests of `standalone` use this file as well.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Generous, because tests share the machine; no test waits for it unless it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How the namespaces of all these tests begin.
const PREFIX: &str = "eg-test-";

/// Fails a test that cannot run here: one that is skipped looks like one that has passed.
pub fn require_root() {
    assert_eq!(output("id -u").trim(), "0", "this test makes network namespaces, so it must run as root");
}

/// A name for the namespaces and folders of one test. Removes what tests left behind that were killed: no process has the
/// number that their names carry.
pub fn prefix(kind: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for name in output("ip netns list").lines().filter_map(|line| line.split(' ').next()) {
        let pid =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            output(&format!("ip netns del {name}"));
        }
    }
    format!("{PREFIX}{}-{kind}{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
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
