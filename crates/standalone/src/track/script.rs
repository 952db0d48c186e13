//! Scripts: run again and again, each on a thread of its own.

use std::time::Instant;

use evergate_kernel::rt::NetnsFd;
use evergate_kernel::sys::{self, Signal};
use tracing::{debug, info, warn};

use super::{Reading, Stop, Teller};
use crate::conf::Script;
use crate::helper::{Outcome, run};

pub(super) fn check(script: &Script, netns: Option<&NetnsFd>, teller: &Teller, stop: &Stop) {
    let name = teller.name();
    let mut works = !script.init_fail;
    // The first result counts at once: nothing is known that it could be weighed against.
    let mut in_a_row = script.rise.max(script.fall);
    loop {
        let started = Instant::now();
        let success = match run(&script.command, netns, script.timeout) {
            Ok(Outcome::Success) => true,
            Ok(Outcome::Failure(why)) => {
                debug!(script = name, "failed: {why}");
                false
            }
            Ok(Outcome::TooLong(mut child)) => {
                debug!(script = name, "took longer than {:?}", script.timeout);
                // It leads a process group, so what it started ends as well.
                let _ = sys::kill_session(child.id(), Signal::Kill);
                let _ = child.wait();
                false
            }
            Err(error) => {
                warn!(script = name, "was not run: {error}");
                false
            }
        };
        in_a_row = if success == works { 0 } else { in_a_row + 1 };
        if in_a_row >= if success { script.rise } else { script.fall } && success != works {
            works = success;
            in_a_row = 0;
            info!(script = name, works, "a tracked script changed");
            teller.tell(Reading::Works(works));
        }
        if stop.wait(script.interval.saturating_sub(started.elapsed())) {
            return;
        }
    }
}
