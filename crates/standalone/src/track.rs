//! What instances track, but for links and neighbours: one thread each for scripts ([`script`]), files ([`file`])
//! and processes ([`process`]). They tell the speaker when something changes.
//!
//! Until a thread has said something, what it looks after is taken to be well.

mod file;
mod process;
mod script;

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use evergate_kernel::rt::NetnsFd;

use crate::conf::{Script, TrackFile, TrackProcess, Tracked, What};
use crate::helper::{Mailbox, Message};

/// The most and least that a file can add: what every priority has room for.
const RANGE: i64 = 253;

/// Namespace, kind and name of something that is tracked.
pub(crate) type TrackId = (Option<String>, What, String);

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It works, or does not.
    Works(bool),
    /// The number in a file, 0 if there is none.
    Value(i64),
}

/// What follows from it for an instance that tracks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The instance cannot take part.
    Fault,
    /// Its priority changes by so much.
    Adds(i32),
}

/// Judges a reading by the weight that it was given.
pub(crate) fn judge(tracked: &Tracked, reading: Reading) -> Verdict {
    let weight = tracked.weight;
    let sign = if weight.reverse { -1 } else { 1 };
    match (reading, weight.value) {
        (Reading::Works(works), 0) if works == weight.reverse => Verdict::Fault,
        // A number other than 0 is a failure.
        (Reading::Value(value), 0) if (value == 0) == weight.reverse => Verdict::Fault,
        (Reading::Works(_) | Reading::Value(_), 0) => Verdict::Adds(0),
        (Reading::Works(true), value @ 1..) | (Reading::Works(false), value @ ..0) => Verdict::Adds(value * sign),
        (Reading::Works(_), _) => Verdict::Adds(0),
        (Reading::Value(number), value) => {
            let product = number.saturating_mul((value * sign).into());
            if product < -RANGE { Verdict::Fault } else { Verdict::Adds(product.min(RANGE) as i32) }
        }
    }
}

/// What a thread looks after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    /// A program that is run again and again.
    Script(Script),
    /// A file with a number in it.
    File(TrackFile),
    /// Processes.
    Process(TrackProcess),
}

/// A thread that looks after something; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) spec: Spec,
    /// The other end notices that it is closed.
    _life: UnixStream,
}

impl Tracker {
    pub(crate) fn start(id: TrackId, spec: Spec, netns: Option<Arc<NetnsFd>>, mailbox: Mailbox) -> io::Result<Self> {
        let (life, stop) = UnixStream::pair()?;
        let (name, looked_after) = (format!("{} {}", id.1, id.2), spec.clone());
        let teller = Teller { id, mailbox };
        let look = move || match looked_after {
            Spec::Script(script) => script::check(&script, netns.as_deref(), &teller, &Stop(stop)),
            Spec::File(file) => file::follow(&file, &teller, &Stop(stop)),
            Spec::Process(process) => process::attend(&process, &teller, &Stop(stop)),
        };
        std::thread::Builder::new().name(name).spawn(look)?;
        Ok(Self { spec, _life: life })
    }
}

/// Tells the speaker.
struct Teller {
    id: TrackId,
    mailbox: Mailbox,
}

impl Teller {
    fn name(&self) -> &str {
        &self.id.2
    }

    fn tell(&self, reading: Reading) {
        self.mailbox.send(Message::Tracked { id: self.id.clone(), reading });
    }
}

/// Readable when the thread is to end.
struct Stop(UnixStream);

impl Stop {
    /// Waits, and tells whether to end.
    fn wait(&self, time: Duration) -> bool {
        // The kernel takes 0 for "for ever".
        let time = time.max(Duration::from_millis(1));
        let waited = self.0.set_read_timeout(Some(time)).and_then(|()| (&self.0).read(&mut [0]));
        match waited {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

impl AsRawFd for Stop {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::Weight;

    fn verdict(value: i32, reverse: bool, reading: Reading) -> Verdict {
        let tracked = Tracked { what: What::File, name: "x".to_owned(), weight: Weight { value, reverse } };
        judge(&tracked, reading)
    }

    #[test]
    fn weights_count_as_the_manual_of_keepalived_has_it() {
        let (up, down) = (Reading::Works(true), Reading::Works(false));
        for (value, reverse, when_up, when_down) in [
            (0, false, Verdict::Adds(0), Verdict::Fault),
            (0, true, Verdict::Fault, Verdict::Adds(0)),
            (20, false, Verdict::Adds(20), Verdict::Adds(0)),
            (-20, false, Verdict::Adds(0), Verdict::Adds(-20)),
            (20, true, Verdict::Adds(-20), Verdict::Adds(0)),
            (-20, true, Verdict::Adds(0), Verdict::Adds(20)),
        ] {
            assert_eq!((verdict(value, reverse, up), verdict(value, reverse, down)), (when_up, when_down));
        }
    }

    #[test]
    fn a_number_from_a_file_is_multiplied_and_a_far_too_low_one_is_a_fault() {
        let of = |value, reverse, number| verdict(value, reverse, Reading::Value(number));
        assert_eq!(
            (of(0, false, 0), of(0, false, 7), of(0, false, -1)),
            (Verdict::Adds(0), Verdict::Fault, Verdict::Fault)
        );
        assert_eq!((of(0, true, 0), of(0, true, 7)), (Verdict::Fault, Verdict::Adds(0)));
        assert_eq!(
            (of(1, false, 30), of(2, false, -30), of(2, true, 30)),
            (Verdict::Adds(30), Verdict::Adds(-60), Verdict::Adds(-60))
        );
        assert_eq!(
            (of(254, false, -1), of(1, false, -253), of(1, false, 9999)),
            (Verdict::Fault, Verdict::Adds(-253), Verdict::Adds(253))
        );
        assert_eq!((of(254, false, i64::MAX), of(254, false, i64::MIN)), (Verdict::Adds(253), Verdict::Fault));
    }
}
