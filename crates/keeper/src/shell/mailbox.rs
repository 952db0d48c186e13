//! What waits to be told to control: bounded, and never at the price of the newest transition of a router.
//!
//! While nobody is connected, only the newest transition of each router is kept. A new connection gets
//! the greeting first, then those. When control reads too slowly, what `Status` repeats anyway is
//! dropped first, oldest first, then transitions that a later one of the same router has overtaken.

use std::collections::{BTreeSet, VecDeque};

use evergate_model::RouterId;

use crate::protocol::FromKeeper;

/// Bytes that may wait, apart from what must not be lost: minutes of events of a busy host.
const MAX_BYTES: usize = 4 << 20;

/// What waits to be told to control.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Bytes of the first line that are written already.
    written: usize,
    connected: bool,
    greeted: bool,
}

#[derive(Debug)]
struct Line {
    class: Class,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Greeting,
    Transition(RouterId),
    /// An answer that control waits for.
    Answer,
    /// Status repeats it, or it is in the log.
    Droppable,
}

impl Mailbox {
    /// A new connection: nothing is written before the greeting.
    pub(super) fn connect(&mut self) {
        self.disconnect();
        self.connected = true;
    }

    /// Nobody listens any more.
    pub(super) fn disconnect(&mut self) {
        self.connected = false;
        self.greeted = false;
        self.written = 0;
        let mut newer = BTreeSet::new();
        let keep = |line: &Line| matches!(line.class, Class::Transition(router) if newer.insert(router));
        let kept: Vec<bool> = self.lines.iter().rev().map(keep).collect();
        let mut kept = kept.into_iter().rev();
        self.lines.retain(|_| kept.next().unwrap_or(false));
        self.bytes = self.lines.iter().map(|line| line.bytes.len()).sum();
    }

    /// Puts a message into the box.
    pub(super) fn push(&mut self, message: &FromKeeper) {
        let class = match message {
            FromKeeper::Hello { .. } => Class::Greeting,
            FromKeeper::Transition(transition) => Class::Transition(transition.router),
            FromKeeper::Removed { .. } => Class::Answer,
            FromKeeper::Claimed { .. }
            | FromKeeper::Letter { .. }
            | FromKeeper::Note { .. }
            | FromKeeper::Status(_)
            | FromKeeper::Warning { .. } => Class::Droppable,
        };
        let Ok(mut bytes) = serde_json::to_vec(message) else { return };
        bytes.push(b'\n');
        if !self.connected {
            if let Class::Transition(router) = class {
                self.lines.retain(|line| line.class != Class::Transition(router));
                self.lines.push_back(Line { class, bytes });
            }
            return;
        }
        self.bytes += bytes.len();
        if class == Class::Greeting && !self.greeted {
            self.greeted = true;
            self.lines.push_front(Line { class, bytes });
        } else {
            self.lines.push_back(Line { class, bytes });
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.bytes > MAX_BYTES {
            let Some(victim) = self.victim() else { return };
            if let Some(line) = self.lines.remove(victim) {
                self.bytes -= line.bytes.len();
            }
        }
    }

    /// The first line may be half written, so it is never chosen.
    fn victim(&self) -> Option<usize> {
        let overtaken = |at: usize, class: Class| self.lines.iter().skip(at + 1).any(|line| line.class == class);
        let candidates = || self.lines.iter().enumerate().skip(1);
        candidates()
            .find(|(_, line)| line.class == Class::Droppable)
            .or_else(|| {
                candidates().find(|(at, line)| matches!(line.class, Class::Transition(_)) && overtaken(*at, line.class))
            })
            .map(|(at, _)| at)
    }

    /// The bytes to write next.
    pub(super) fn pending(&self) -> Option<&[u8]> {
        self.greeted.then(|| self.lines.front()).flatten().map(|line| &line.bytes[self.written..])
    }

    /// Notes that so many of the pending bytes were written.
    pub(super) fn advance(&mut self, written: usize) {
        self.written += written;
        if self.lines.front().is_some_and(|line| line.bytes.len() == self.written)
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= line.bytes.len();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Transition;
    use evergate_model::HaState;

    fn transition(router: u128, epoch: u64) -> FromKeeper {
        FromKeeper::Transition(Transition {
            router: RouterId::from_u128(router),
            state: HaState::Active,
            epoch,
            at_ms: 0,
            reason: "x".repeat(1000),
            took_us: 0,
        })
    }

    fn hello() -> FromKeeper {
        FromKeeper::Hello { version: 1, pid: 1, notes: Vec::new() }
    }

    /// Everything that a reader would get, `step` bytes at a time.
    fn read(mailbox: &mut Mailbox, step: usize) -> Vec<FromKeeper> {
        let mut text = Vec::new();
        while let Some(pending) = mailbox.pending() {
            let some = pending[..step.min(pending.len())].to_vec();
            mailbox.advance(some.len());
            text.extend(some);
        }
        text.split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn lines_arrive_whole_and_in_order_however_they_are_cut() {
        for step in [1, 7, 100_000] {
            let mut mailbox = Mailbox::default();
            mailbox.connect();
            mailbox.push(&hello());
            mailbox.push(&transition(1, 1));
            mailbox.push(&transition(1, 2));
            assert_eq!(read(&mut mailbox, step), [hello(), transition(1, 1), transition(1, 2)]);
            assert_eq!(mailbox.bytes, 0);
        }
    }

    #[test]
    fn without_control_the_newest_transition_of_each_router_is_kept() {
        let mut mailbox = Mailbox::default();
        for epoch in 0..10_000 {
            mailbox.push(&transition(1, epoch));
            mailbox.push(&FromKeeper::Warning { text: "w".to_owned() });
        }
        mailbox.push(&transition(2, 1));
        mailbox.connect();
        assert_eq!(mailbox.pending(), None, "nothing comes before the greeting");
        mailbox.push(&hello());
        assert_eq!(read(&mut mailbox, 10_000), [hello(), transition(1, 9999), transition(2, 1)]);
    }

    #[test]
    fn a_slow_reader_loses_what_status_repeats_but_no_newest_transition() {
        let mut mailbox = Mailbox::default();
        mailbox.connect();
        mailbox.push(&hello());
        mailbox.push(&transition(7, 1));
        for epoch in 0..20_000 {
            mailbox.push(&FromKeeper::Warning { text: "w".repeat(1000) });
            mailbox.push(&transition(u128::from(epoch % 5), epoch));
        }
        assert!(mailbox.bytes <= MAX_BYTES);
        let got = read(&mut mailbox, 1 << 20);
        assert!(got.contains(&transition(7, 1)));
        for router in 0..5 {
            assert!(got.contains(&transition(router, 19_995 + router as u64)));
        }
    }

    #[test]
    fn what_was_not_read_before_a_disconnection_shrinks_to_the_newest_transitions() {
        let mut mailbox = Mailbox::default();
        mailbox.connect();
        mailbox.push(&hello());
        mailbox.push(&transition(1, 1));
        mailbox.push(&transition(1, 2));
        mailbox.advance(3);
        mailbox.connect();
        mailbox.push(&hello());
        assert_eq!(read(&mut mailbox, 10_000), [hello(), transition(1, 2)]);
    }
}
