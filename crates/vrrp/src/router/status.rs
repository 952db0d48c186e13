//! A virtual router as `show` and failing tests print it.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::timing::Wait;
use super::{Phase, State, Timer, VirtualRouter};

/// What a virtual router is doing, with times relative to when it was asked.
///
/// Two routers of equal configuration and equal status make the same transitions from then on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Backup: whose advertisement it heard last.
    pub active: Option<IpAddr>,
    /// Backup: how often that one says it advertises. Otherwise: our own interval.
    pub active_adver_interval: Duration,
    /// How long ago the last advertisement was sent (Active), or the timer started (Backup).
    pub since: Duration,
    /// Time left of each running timer.
    pub timers: Vec<(Timer, Duration)>,
    /// Backup: the active resigned.
    pub resigned: bool,
    /// Backup: was away, and listens whether somebody is active.
    pub absent: bool,
    /// Backup: listens whether the active answers, whose host is not heard any more on another path.
    pub suspects: bool,
    /// Backup: would take over, and asks whether it may.
    pub asks: bool,
    /// Active: another copy is active as well, or was until that was settled so long ago.
    pub contest: (Option<IpAddr>, Option<Duration>),
    /// Backup: has used its one excuse for being late.
    pub excused: bool,
    /// Backup: time left until it may preempt the active of lower priority that it hears.
    pub preempt_in: Option<Duration>,
    /// Active: rounds left of this burst of announcements, and whether it is the first.
    pub announcing: Option<(u8, bool)>,
}

pub(super) fn of(router: &VirtualRouter, now: Instant) -> Status {
    let left = |deadline: Instant| deadline.saturating_duration_since(now);
    let mut status = Status {
        state: router.state(),
        active: None,
        active_adver_interval: router.config.advertise_interval(),
        since: Duration::ZERO,
        timers: Vec::new(),
        resigned: false,
        absent: false,
        suspects: false,
        asks: false,
        contest: (None, None),
        excused: false,
        preempt_in: None,
        announcing: None,
    };
    match &router.phase {
        Phase::Initialize => {}
        Phase::Backup(listening) => {
            status.active = listening.active;
            status.active_adver_interval = listening.active_adver_interval;
            status.since = now.saturating_duration_since(listening.since);
            status.timers = vec![(Timer::ActiveDown, left(listening.active_down))];
            status.resigned = listening.wait == Wait::Resigned;
            status.absent = matches!(listening.wait, Wait::Absence | Wait::Relinquished);
            status.suspects = listening.wait == Wait::PeerDown;
            status.asks = listening.due.is_some();
            status.excused = listening.excused;
            let waited = |since| now.saturating_duration_since(since);
            status.preempt_in =
                listening.lower_since.map(|since| router.config.preempt_delay.saturating_sub(waited(since)));
        }
        Phase::Active(advertising) => {
            status.since = now.saturating_duration_since(advertising.sent);
            status.timers = vec![(Timer::Adver, left(advertising.adver))];
            if let Some(contest) = advertising.contest {
                status.timers.push((Timer::Contest, left(contest.until)));
            }
            let settled = advertising.settled.map(|at| now.saturating_duration_since(at));
            status.contest = (advertising.contest.map(|contest| contest.with), settled);
            if let Some(round) = advertising.announce {
                status.timers.push((Timer::Announce, left(round.at)));
                status.announcing = Some((round.rounds, round.first));
            }
        }
    }
    status
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state)?;
        if let Some(active) = self.active {
            let verb = if self.resigned { "resigned" } else { "heard" };
            write!(f, ", {verb} {active}")?;
        }
        for (timer, left) in &self.timers {
            write!(f, ", {timer:?} in {left:?}")?;
        }
        Ok(())
    }
}
