//! One question of a backup: does the active that is not heard here still serve?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long is waited for what, and what silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// What a question and its answer take, by way of a witness as well. All that a takeover from a dead
    /// host waits for; it runs while the backup listens on the HA network.
    pub listen: Duration,
    /// How long an answer may take where there is reason to expect one: the silent one was heard on another
    /// path since, or nobody at all has answered.
    pub patience: Duration,
    /// Whether a copy that is cut off from everybody takes over.
    pub serve_alone: bool,
}

/// What a host said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which host.
    pub speaker: IpAddr,
    /// Whether its copy is active, in an epoch that is not known to be over.
    pub active: bool,
}

/// What is known of the suspect by way of the server, which carries questions and answers between hosts that may not
/// hear each other otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum ByServer {
    /// Nothing.
    #[default]
    Silent,
    /// It lived after it fell silent here, and has not said yet whether it is active.
    Lives { hears_others: bool },
    /// It is active.
    Active { host: IpAddr, hears_others: bool },
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Take over.
    TakeOver,
    /// Stay standby.
    Stay(Stay),
}

/// Why not to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stay {
    /// This host has the active copy, and answers on another path.
    Lives(IpAddr),
    /// Nobody answers, although others used to: it is this host that is cut off.
    Isolated,
}

/// A question that is being asked.
///
/// Calling order: [`ask`](Self::ask) when the silence is noticed, `handle_*` as things happen, then
/// [`verdict`](Self::verdict), again at [`poll_timeout`](Self::poll_timeout).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inquiry {
    rules: Rules,
    /// The host whose silence it is, if it is known.
    suspect: Option<IpAddr>,
    /// Others than the suspect were in reach lately.
    company: bool,
    /// The suspect was heard on another path after it fell silent on this one.
    seen: bool,
    since: Instant,
    again: Instant,
    /// The wait on the HA network is over.
    due: bool,
    reached: BTreeSet<IpAddr>,
    lives: Option<IpAddr>,
    gave_up: bool,
    by_server: ByServer,
}

impl Inquiry {
    /// Begins to ask. `company`: others than the suspect were in reach lately. `seen`: the suspect was
    /// heard on another path after it fell silent on this one.
    pub fn ask(rules: Rules, suspect: Option<IpAddr>, company: bool, seen: bool, now: Instant) -> Self {
        Self {
            rules,
            suspect,
            company,
            seen,
            since: now,
            again: now,
            due: false,
            reached: BTreeSet::new(),
            lives: None,
            gave_up: false,
            by_server: ByServer::Silent,
        }
    }

    /// The host whose silence it is.
    pub fn suspect(&self) -> Option<IpAddr> {
        self.suspect
    }

    /// Takes the word of somebody that this host has the active copy: it is that host's silence, then.
    pub fn handle_hint(&mut self, host: IpAddr, now: Instant) {
        if self.suspect != Some(host) {
            (self.suspect, self.gave_up, self.again) = (Some(host), false, now);
        }
    }

    /// The wait on the HA network is over, too.
    pub fn handle_due(&mut self) {
        self.due = true;
    }

    /// Takes an answer. The first one that comes when answers had not come for long shows that a way is back,
    /// and not all ways come back at once: the others get time from now on.
    pub fn handle_answer(&mut self, answer: Answer, now: Instant) {
        if self.company && self.reached.is_empty() && now > self.since + self.rules.listen {
            (self.since, self.again) = (now, now);
        }
        if Some(answer.speaker) != self.suspect {
            self.reached.insert(answer.speaker);
        }
        if answer.active {
            self.lives = Some(answer.speaker);
        } else if Some(answer.speaker) == self.suspect {
            self.gave_up = true;
        }
    }

    /// Takes a sign of life of the suspect that came by way of the server, after the suspect fell silent here.
    /// `hears_others`: it hears other hosts than the one that asks.
    pub fn handle_sign_by_server(&mut self, hears_others: bool) {
        if !matches!(self.by_server, ByServer::Active { .. }) {
            self.by_server = ByServer::Lives { hears_others };
        }
    }

    /// An answer by way of the server may come, and there is time to wait for it.
    pub fn expect_server(&mut self) {
        if self.by_server == ByServer::Silent {
            self.by_server = ByServer::Lives { hears_others: false };
        }
    }

    /// Takes an answer that came by way of the server. It can keep the asker from taking over, and nothing else: a
    /// server that is away, slow or wrong delays nobody.
    pub fn handle_answer_by_server(&mut self, answer: Answer, hears_others: bool) {
        if answer.active {
            self.by_server = ByServer::Active { host: answer.speaker, hears_others };
        } else if Some(answer.speaker) == self.suspect {
            self.by_server = ByServer::Silent;
        }
    }

    /// Tells whether the question is to be sent (again), and counts that as done.
    pub fn take_question(&mut self, now: Instant) -> bool {
        let due = self.again <= now;
        if due {
            self.again = now + self.rules.listen;
        }
        due
    }

    /// What is known by now; `None`: wait.
    pub fn verdict(&self, now: Instant) -> Option<Verdict> {
        if let Some(host) = self.lives {
            return Some(Verdict::Stay(Stay::Lives(host)));
        }
        if !self.due {
            return None;
        }
        if self.gave_up {
            return Some(Verdict::TakeOver);
        }
        if now < self.until() {
            return None;
        }
        if let ByServer::Active { host, hears_others } = self.by_server
            && self.believes(hears_others)
        {
            return Some(Verdict::Stay(Stay::Lives(host)));
        }
        let cut_off = self.reached.is_empty() && self.company && !self.rules.serve_alone;
        Some(if cut_off { Verdict::Stay(Stay::Isolated) } else { Verdict::TakeOver })
    }

    fn until(&self) -> Instant {
        // Without anybody else to expect an answer from, waiting longer tells nothing.
        let nobody = self.reached.is_empty() && self.company;
        let by_server = matches!(self.by_server, ByServer::Lives { hears_others } if self.believes(hears_others));
        self.since
            + if nobody || self.seen || by_server {
                self.rules.patience.max(self.rules.listen)
            } else {
                self.rules.listen
            }
    }

    /// Whether a host that answers by way of the server is to be left the role. Not if others answer here while it
    /// hears nobody: then it is cut off, and about to step down.
    fn believes(&self, hears_others: bool) -> bool {
        hears_others || self.reached.is_empty()
    }

    /// When to look again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let until = if self.due { Some(self.until()) } else { None };
        // Beyond its patience nothing is asked again: the verdict is waited for.
        let again = Some(self.again).filter(|again| *again < self.since + self.rules.patience);
        until.into_iter().chain(again).min()
    }
}
