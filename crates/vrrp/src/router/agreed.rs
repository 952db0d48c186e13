//! What copies that can agree on other paths make of silence and of contests (`Config::agreement`).
//!
//! The RFC knows one path. Where it is cut between routers that both live, both become active, and when
//! it heals the address decides, whoever served last. Copies of ours know more: how late each became
//! active (epochs), and whether the silent one still answers elsewhere. What they know is the caller's;
//! here is only when it is asked for, and what its answer does. A speaker that is not listed in
//! `Config::agreement` notices nothing of all this.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::timing::{LATE_DIVISOR, LOST_INTERVALS, Wait};
use super::{Config, Listening, Output, Phase, Reason, VirtualRouter};
use crate::wire::Advertisement;

/// When a takeover that is due is asked for again, should the caller have lost track of it.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a contest may take to be settled on other paths: several exchanges between two hosts that are
/// short of processor time. Never longer than the advertisement interval.
const CONTEST: Duration = Duration::from_millis(200);

/// Another copy that we agree with is active as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contest {
    pub(super) with: IpAddr,
    pub(super) until: Instant,
}

impl VirtualRouter {
    /// Takes over, after [`Output::TakeoverDue`]. Does nothing if that is no longer so.
    pub fn handle_permission(&mut self, now: Instant) {
        if let Phase::Backup(listening) = &mut self.phase
            && let Some(reason) = listening.due.take()
        {
            self.become_active(reason, now);
        }
    }

    /// Takes the news that another copy is active and lives, or that this one must not take over for
    /// another reason: a backup goes on waiting, as if it had heard an advertisement just now. `again`:
    /// wait only so long, because what is heard on other paths is all that there is to hear.
    pub fn handle_refusal(&mut self, active: Option<IpAddr>, again: Option<Duration>, now: Instant) {
        if let Phase::Backup(listening) = &mut self.phase {
            listening.active = active.or(listening.active);
            listening.wait = Wait::ActiveDown;
            listening.due = None;
            listening.excused = false;
            listening.restart(&self.config, now);
            if let Some(again) = again {
                listening.active_down = now + again;
            }
        }
    }

    /// Takes the word of an active copy by another path: to a backup that knows of none, that is as good as an
    /// advertisement, and it goes on waiting. Tells whether it was news.
    pub fn handle_word_of(&mut self, active: IpAddr, now: Instant) -> bool {
        let news = match &self.phase {
            Phase::Backup(listening) => listening.active.is_none() && listening.lower_since.is_none(),
            Phase::Initialize | Phase::Active(_) => false,
        };
        if news {
            self.handle_refusal(Some(active), None, now);
        }
        news
    }

    /// Whether a backup asks, or has reason to ask, whether the active still lives.
    pub fn is_in_doubt(&self) -> bool {
        match &self.phase {
            Phase::Backup(listening) => listening.due.is_some() || listening.wait == Wait::PeerDown,
            Phase::Initialize | Phase::Active(_) => false,
        }
    }

    /// Takes over at once because the active asks for it: it goes on until it hears that this is done.
    pub fn handle_handover(&mut self, now: Instant) {
        match self.phase {
            Phase::Backup(_) => self.become_active(Reason::Handover, now),
            Phase::Initialize | Phase::Active(_) => {}
        }
    }

    /// Takes the news that another copy was asked to take over: that it is heard is not the afterthought of a dispute
    /// that was settled, and this copy goes on until it is told that the other one is ready.
    pub fn handle_offer(&mut self) {
        if let Phase::Active(advertising) = &mut self.phase {
            advertising.settled = None;
        }
    }

    /// Takes the news that another copy became active later than this one: it steps down at once, and
    /// says nothing, because a resignation would make a third one take over.
    pub fn handle_superseded(&mut self, by: Option<IpAddr>, now: Instant) {
        if matches!(self.phase, Phase::Active(_)) {
            let interval = self.config.advertise_interval();
            self.become_backup(by, interval, Wait::ActiveDown, Reason::Superseded, now);
        }
    }

    /// Takes the news that nobody can be reached any more: an active resigns, in case that somebody hears
    /// it all the same.
    pub fn handle_isolation(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Active(_)) {
            let interval = self.config.advertise_interval();
            self.outputs.push_back(Output::Transmit(self.config.resignation()));
            self.become_backup(None, interval, Wait::Relinquished, Reason::Isolated, now);
        }
    }

    /// Takes the news that the other one of [`Output::Contested`] has been told, and steps down. If it is
    /// heard again all the same, it is not one that agrees (another program by its address), and the
    /// address decides as ever.
    pub fn handle_settled(&mut self, with: IpAddr, now: Instant) {
        if let Phase::Active(advertising) = &mut self.phase
            && advertising.contest.take_if(|contest| contest.with == with).is_some()
        {
            advertising.settled = Some(now);
            self.announce_again(now);
        }
    }

    /// Tells whether an advertisement that reached an active is to be settled on other paths.
    pub(super) fn is_disputed(&mut self, from: IpAddr, adv: &Advertisement, now: Instant) -> bool {
        let Phase::Active(advertising) = &mut self.phase else { return false };
        if adv.priority != self.config.priority || !self.config.agrees_with(from) {
            return false;
        }
        if let Some(contest) = advertising.contest {
            return now < contest.until;
        }
        let interval = self.config.advertise_interval();
        if advertising.settled.is_some_and(|at| now.saturating_duration_since(at) < LOST_INTERVALS * interval) {
            return false;
        }
        advertising.contest = Some(Contest { with: from, until: now + CONTEST.min(interval) });
        self.outputs.push_back(Output::Contested { with: from });
        // The other one may not have heard of it. Once in a contest, so that two do not answer each
        // other at the speed of the wire.
        self.advertise(now);
        true
    }

    /// Lets addresses decide what other paths have not.
    pub(super) fn decide_contest(&mut self, now: Instant) {
        let Phase::Active(advertising) = &mut self.phase else { return };
        let Some(contest) = advertising.contest.take_if(|contest| contest.until <= now) else { return };
        if contest.with > self.config.primary_address {
            let interval = self.config.advertise_interval();
            self.become_backup(Some(contest.with), interval, Wait::ActiveDown, Reason::HigherAddress, now);
        } else {
            self.advertise(now);
            self.announce_again(now);
            self.outputs.push_back(Output::Prevailed { over: contest.with });
        }
    }
}

impl Listening {
    /// Whether somebody resigns who is not the active that is heard.
    ///
    /// Deviation: RFC 9568 §6.4.2 heeds every resignation. But what a copy said as it was cut off may be kept
    /// somewhere on its way (a tunnel's neighbour that does not answer) and arrive when the cut heals, while
    /// another one serves: a second takeover for nothing.
    pub(super) fn is_stale(&self, config: &Config, from: IpAddr, now: Instant) -> bool {
        let punctual = self.active_adver_interval + self.active_adver_interval / LATE_DIVISOR;
        let heard = self.wait == Wait::ActiveDown && now.saturating_duration_since(self.since) < punctual;
        config.agreement.is_some() && heard && self.active.is_some_and(|active| active != from)
    }
}
