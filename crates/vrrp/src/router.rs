//! The state machine of one virtual router (RFC 9568 §6.4; RFC 3768 §6.4 for version 2).
//!
//! Read RFC 9568 §6 beside [`VirtualRouter`]. What a virtual router is told is in [`Config`]; how long
//! it waits for what is in `timing`. Transitions happen in this file alone.
//!
//! Eight things go beyond the RFC, each marked where it is decided:
//!
//! - copies of equal priority that know each other take over in an agreed order (`timing::rank_delay`);
//! - a process that was not running for a while does not mistake its own absence for its peers'
//!   (`VirtualRouter::expire`, `VirtualRouter::step_down_if_absent`);
//! - an active that wins a contest announces its addresses again, because the loser's announcements
//!   have misled the neighbours;
//! - what another path says of the active's host can end the wait (`VirtualRouter::handle_peer_down`);
//! - a resignation shortens what a backup still waits, and never lengthens it;
//! - a copy that lacks what the role is for gives it away and waits longer than others
//!   (`VirtualRouter::handle_resign`, `Config::handicap`);
//! - where copies can agree on other paths ([`Config::agreement`]), a backup asks there before it takes
//!   over from one that only fell silent (`VirtualRouter::expire`);
//! - and two that are active at once settle it there; addresses decide if that leads to nothing
//!   (`agreed`).

mod agreed;
mod config;
mod status;
mod timing;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use config::{AddressMismatch, Announcements, Config, Interop, InvalidConfig, OWNER_PRIORITY, Version, Vrid};
pub use status::Status;

use crate::wire::Advertisement;
use timing::Wait;

/// RFC 9568 §6.4 states, with the names of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not taking part.
    Initialize,
    /// Listening to an Active router.
    Backup,
    /// Forwarding, and advertising it.
    Active,
}

/// Why a state was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Told to take part.
    Startup,
    /// Told to stop.
    Shutdown,
    /// Active_Down_Timer expired: nothing was heard for three intervals and Skew_Time.
    ActiveDown,
    /// The active router resigned with priority 0, and Skew_Time has passed.
    Resigned,
    /// It was the virtual router's first election, and nobody was heard.
    First,
    /// The active router's host is not heard any more on another path either, which is as good as the
    /// expiry of the Active_Down_Timer.
    PeerDown,
    /// An advertisement of higher priority arrived.
    HigherPriority,
    /// One of equal priority from a higher address arrived.
    HigherAddress,
    /// The interface, or what it tracks, failed.
    Fault,
    /// The state was found in the kernel at start-up.
    Adopted,
    /// Its place served alone until the virtual router came to be.
    Inherited,
    /// This active did not run for so long that another copy has taken over, or is about to.
    Absence,
    /// The configuration became that of another virtual router.
    Reconfigured,
    /// This active lost what the role is for (its way to the gateway), and asks for a copy that has it.
    Impaired,
    /// Another copy has taken over since, as was heard on another path.
    Superseded,
    /// No other copy and no witness can be reached any more.
    Isolated,
    /// The active asked this copy to take over.
    Handover,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send an advertisement.
    Transmit(Advertisement),
    /// Configure the addresses and routes (comes before `AnnounceAddresses`).
    Activate,
    /// Remove them.
    Deactivate,
    /// Send one gratuitous ARP / unsolicited neighbour advertisement per address. Repetitions come as
    /// further outputs, when [`Timer::Announce`] fires.
    AnnounceAddresses,
    /// Nothing that is heard here speaks against taking over: ask on other paths, and answer with
    /// [`VirtualRouter::handle_permission`] or [`VirtualRouter::handle_refusal`]. Comes again every
    /// second without an answer. Only with [`Config::agreement`].
    TakeoverDue {
        /// Whose silence it is, if anybody was heard.
        active: Option<IpAddr>,
    },
    /// Another copy is active as well: settle it on other paths, and answer with
    /// [`VirtualRouter::handle_superseded`] or [`VirtualRouter::handle_settled`].
    Contested {
        /// The other one.
        with: IpAddr,
    },
    /// Nobody answered to `Contested`, so the address decided, for this copy.
    Prevailed {
        /// The other one, which will hear of it.
        over: IpAddr,
    },
    /// Tell whoever listens.
    StateChanged {
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        reason: Reason,
    },
}

/// The timers of RFC 9568 §6.2, and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Time to send an advertisement.
    Adver,
    /// The active router has not been heard for too long.
    ActiveDown,
    /// Gratuitous announcements are sent again (keepalived's garp_master_delay).
    Announce,
    /// What was to be settled on other paths is not: addresses decide.
    Contest,
}

/// What another way of looking at a host (BFD) says of it: nothing was heard for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDown {
    /// The host's address in this election.
    pub peer: IpAddr,
    /// When it was last heard there.
    pub last_heard: Instant,
    /// The longest time between two of its packets there, while it lived.
    pub interval: Duration,
    /// How long to listen whether it answers here: longer than a question and its answer take.
    pub listen: Duration,
}

/// What a virtual router makes of [`PeerDown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It does not concern it: another one is active, or this one.
    Irrelevant,
    /// The active was heard here when it was already silent there: it lives, and the other path does not.
    Contradicted,
    /// It takes over unless it hears the active within `PeerDown::listen` (and its rank): the caller asks
    /// the active for an advertisement.
    Listening,
}

/// Shortest time between an announcement and the next burst of them that a won contest starts.
const CONTEST_PAUSE: Duration = Duration::from_millis(100);

/// One virtual router.
///
/// Calling order: any `handle_*`, then `poll_output` until `None`, then sleep until `poll_timeout`.
/// Packets that have arrived are handled before timers: what is in the socket may be the very
/// advertisement whose absence a timer would report. One `handle_*` call makes at most eight outputs.
///
/// `now` never goes backwards between calls.
#[derive(Clone, Debug)]
pub struct VirtualRouter {
    config: Config,
    phase: Phase,
    outputs: VecDeque<Output>,
}

/// The states with their data: a timer exists only in the state that owns it.
#[derive(Clone, Debug)]
enum Phase {
    Initialize,
    Backup(Listening),
    Active(Advertising),
}

/// What a backup knows.
#[derive(Clone, Debug)]
struct Listening {
    /// Whom it heard last.
    active: Option<IpAddr>,
    /// RFC 9568 §6.1 Active_Adver_Interval: how often the active says it advertises.
    active_adver_interval: Duration,
    /// When the Active_Down_Timer was started.
    since: Instant,
    /// What it was started for.
    wait: Wait,
    /// When it expires. Follows from the two above, except where a resignation came late.
    active_down: Instant,
    /// Since when it hears a lower priority that is to be preempted.
    lower_since: Option<Instant>,
    /// The timer was already started again because we were away; that happens once.
    excused: bool,
    /// Why it would take over, while others are asked whether it may.
    due: Option<Reason>,
}

/// What an active knows.
#[derive(Clone, Debug)]
struct Advertising {
    /// When the last advertisement was sent.
    sent: Instant,
    /// When the next one is.
    adver: Instant,
    /// When addresses were last announced.
    announced: Instant,
    /// When they are announced again.
    announce: Option<Announcing>,
    /// Another copy is active as well.
    contest: Option<agreed::Contest>,
    /// When such a contest was last settled on other paths.
    settled: Option<Instant>,
}

/// Where in its repetitions an announcement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Announcing {
    at: Instant,
    /// Rounds left of this burst; at least 1.
    rounds: u8,
    /// Whether this is the first burst, after which another follows.
    first: bool,
}

impl VirtualRouter {
    /// Makes a router in Initialize.
    pub fn new(config: Config) -> Self {
        Self { config, phase: Phase::Initialize, outputs: VecDeque::new() }
    }

    /// Starts taking part: Initialize to Backup (or Active for an address owner).
    ///
    /// Addresses that an earlier run left in the kernel are the caller's: remove them first, or call
    /// [`handle_adopt_active`](Self::handle_adopt_active) instead. Does nothing in other states.
    pub fn handle_startup(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialize if self.config.is_owner() => {
                // RFC 9568 §6.4.1: the address owner advertises and becomes Active.
                self.become_active(Reason::Startup, now);
            }
            Phase::Initialize => {
                // RFC 9568 §6.4.1: Active_Adver_Interval is our own until an active is heard.
                let interval = self.config.advertise_interval();
                self.become_backup(None, interval, Wait::ActiveDown, Reason::Startup, now);
            }
            Phase::Backup(_) | Phase::Active(_) => {}
        }
    }

    /// Starts taking part in the first election of a virtual router that nobody has ever been active for.
    ///
    /// Deviation: RFC 9568 §6.4.1 makes every newcomer wait out Active_Down_Interval (6.8 s as Neutron
    /// configures it), although there is no active whose silence it could be waiting for. The caller knows
    /// that there is none; then the copy with the highest address of [`Config::peers`] takes over after
    /// half a rank step, and all others do as in [`handle_startup`](Self::handle_startup). Does nothing in
    /// other states.
    pub fn handle_first_startup(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialize if !self.config.is_owner() => {
                let interval = self.config.advertise_interval();
                self.become_backup(None, interval, Wait::First, Reason::Startup, now);
            }
            Phase::Initialize | Phase::Backup(_) | Phase::Active(_) => self.handle_startup(now),
        }
    }

    /// Starts as Active, because this place served until now what the virtual router is for, in another way.
    ///
    /// Deviation: RFC 9568 §6.4.1 knows no such start; every newcomer is a Backup first. The caller knows that
    /// nobody has been active since. Should another be all the same, priority and address decide between
    /// the two as always. Does nothing but in Initialize.
    pub fn handle_inheritance(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialize => self.become_active(Reason::Inherited, now),
            Phase::Backup(_) | Phase::Active(_) => {}
        }
    }

    /// Resumes as Active because the addresses were found configured after a restart.
    ///
    /// Only for a restart that took less than three intervals: afterwards another copy has taken over,
    /// and [`handle_startup`](Self::handle_startup) is right. Advertises at once; should another be
    /// active all the same, priority and address decide between the two as always. Emits `Activate`
    /// as well, because the earlier run may have stopped half-way. Does nothing but in Initialize.
    pub fn handle_adopt_active(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialize => self.become_active(Reason::Adopted, now),
            Phase::Backup(_) | Phase::Active(_) => {}
        }
    }

    /// Stops taking part; an active router resigns with priority 0.
    pub fn handle_shutdown(&mut self, now: Instant) {
        let _ = now;
        self.leave(Reason::Shutdown);
    }

    /// Leaves the election because the interface is down or what it tracks failed.
    ///
    /// An active resigns with priority 0: what it tracks may have failed while the HA interface still
    /// works; if it does not, the caller's attempt to send fails and that is all. `handle_startup`
    /// returns to the election.
    pub fn handle_fault(&mut self, now: Instant) {
        let _ = now;
        self.leave(Reason::Fault);
    }

    /// An active gives the role away, and goes on as a backup; does nothing in other states.
    ///
    /// Deviation: RFC 9568 knows no such thing. To the others it is a router that stops (priority 0) and one
    /// that starts. It waits as a newcomer does, so that everybody else comes first, and takes the role back if
    /// nobody does: with [`Config::handicap`], after others that have one and resigned longer ago.
    pub fn handle_resign(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Active(_)) {
            self.outputs.push_back(Output::Transmit(self.config.resignation()));
            let interval = self.config.advertise_interval();
            self.become_backup(None, interval, Wait::ActiveDown, Reason::Impaired, now);
        }
    }

    /// Takes a changed configuration, without a transition where none is needed.
    ///
    /// A running timer keeps what it has already waited, except that a backup starts anew with a changed
    /// interval: it cannot blame the active for not having kept it before. An active advertises at once
    /// what has changed in its advertisements. Another VRID, version or address family is another virtual router: the
    /// old one is left (an active resigns), the new one started.
    ///
    /// Deviation: but for another version among copies that agree on other paths. They are changed one after the other, and
    /// meanwhile they do not understand each other here, which they find out about as about any silence. So an active
    /// stays active.
    pub fn handle_config(&mut self, config: Config, now: Instant) {
        self.step_down_if_absent(now);
        if !self.config.is_same_router(&config) && !self.config.differs_by_version_among_friends(&config) {
            let taking_part = self.state() != State::Initialize;
            self.leave(Reason::Reconfigured);
            self.config = config;
            if taking_part {
                self.handle_startup(now);
            }
            return;
        }
        let old = std::mem::replace(&mut self.config, config);
        let config = &self.config;
        match &mut self.phase {
            Phase::Initialize => {}
            Phase::Backup(listening) => {
                let learned = listening.active_adver_interval;
                // Nothing to learn from in version 2, and nothing learned yet before the first
                // advertisement: then our own interval counts.
                let other_version = config.version != old.version;
                if config.version == Version::V2 || listening.active.is_none() || other_version {
                    listening.active_adver_interval = config.advertise_interval();
                }
                // A timer is left alone unless what it is made of changed: a late resignation may
                // have made it shorter than it would be now.
                if listening.active_adver_interval != learned || other_version {
                    listening.restart(config, now);
                } else if timing::differs(config, &old) {
                    listening.restart(config, listening.since);
                }
            }
            Phase::Active(advertising) => {
                if config.advertisement() != old.advertisement() {
                    self.outputs.push_back(Output::Transmit(config.advertisement()));
                    advertising.sent_now(config, now);
                }
            }
        }
    }

    /// Takes an advertisement that [`crate::wire`] found valid for this router.
    pub fn handle_advertisement(&mut self, from: IpAddr, adv: &Advertisement, now: Instant) {
        // Our own advertisement, or a second router with our address: answering either would make
        // two routers with one address answer each other at the speed of the wire.
        if from == self.config.primary_address {
            return;
        }
        self.step_down_if_absent(now);
        match &mut self.phase {
            Phase::Initialize => {}
            Phase::Backup(listening) => listening.hear(&self.config, from, adv, now),
            Phase::Active(_) => self.contend(from, adv, now),
        }
    }

    /// Takes the news that a host is not heard any more on another path.
    ///
    /// Deviation: RFC 9568 knows advertisements alone. If the host was active, its death there counts as
    /// the expiry of the Active_Down_Timer, with two safeguards against a path that died alone. An
    /// advertisement that came more than an interval after the last sign of life there proves that the host
    /// outlived it: nothing happens, and the Active_Down_Timer decides as ever. Otherwise the backup
    /// listens for a moment, in which the caller asks the active for an advertisement (priority 0, to it
    /// alone: RFC 9568 §6.4.3 makes an active answer that at once); hearing it ends the suspicion.
    pub fn handle_peer_down(&mut self, down: &PeerDown, now: Instant) -> Suspicion {
        let Phase::Backup(listening) = &mut self.phase else {
            return Suspicion::Irrelevant;
        };
        // Another wait than for silence ends soon, or knows better who is active.
        if listening.active != Some(down.peer) || listening.wait != Wait::ActiveDown {
            return Suspicion::Irrelevant;
        }
        // Both times are when we noticed, so what is in between on either way may differ by `listen`.
        if listening.since > down.last_heard + down.interval + down.listen {
            return Suspicion::Contradicted;
        }
        listening.wait = Wait::PeerDown;
        let wait = timing::peer_down_wait(&self.config, down);
        listening.active_down = listening.active_down.min(now + wait);
        Suspicion::Listening
    }

    /// What asks an active for an advertisement, when sent to it alone: to a backup it would be a resignation.
    pub fn solicitation(&self) -> Advertisement {
        self.config.resignation()
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.step_down_if_absent(now);
        match &mut self.phase {
            Phase::Initialize => {}
            Phase::Backup(listening) if listening.active_down <= now => self.expire(now),
            Phase::Backup(_) => {}
            Phase::Active(advertising) => {
                if advertising.adver <= now {
                    // RFC 9568 §6.4.3: Adver_Timer fires.
                    self.outputs.push_back(Output::Transmit(self.config.advertisement()));
                    advertising.sent_now(&self.config, now);
                }
                if advertising.announce.is_some_and(|round| round.at <= now) {
                    self.announce_round(now);
                }
                self.decide_contest(now);
            }
        }
    }

    /// When the next advertisement is due: only an active sends any.
    pub fn next_advertisement(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Initialize | Phase::Backup(_) => None,
            Phase::Active(advertising) => Some(advertising.adver),
        }
    }

    /// Brings the next advertisement forward to this moment, if it is due later; does nothing in other states.
    ///
    /// Deviation: RFC 9568 §6.4.3 sends one every interval. One that comes early costs no backup anything (§6.4.2 starts the
    /// Active_Down_Timer anew with each), and lets the routers of a host advertise in [batches](crate::pacing).
    pub fn hasten_advertisement(&mut self, at: Instant) {
        if let Phase::Active(advertising) = &mut self.phase {
            advertising.adver = advertising.adver.min(at);
        }
    }

    /// Takes the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tells when to call `handle_timeout`, and for which timer.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        match &self.phase {
            Phase::Initialize => None,
            Phase::Backup(listening) => Some((listening.active_down, Timer::ActiveDown)),
            Phase::Active(advertising) => {
                let adver = (advertising.adver, Timer::Adver);
                let announce = advertising.announce.map(|round| (round.at, Timer::Announce));
                let contest = advertising.contest.map(|contest| (contest.until, Timer::Contest));
                [Some(adver), announce, contest].into_iter().flatten().min()
            }
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Initialize => State::Initialize,
            Phase::Backup(_) => State::Backup,
            Phase::Active(_) => State::Active,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Everything worth showing, relative to `now`.
    pub fn status(&self, now: Instant) -> Status {
        status::of(self, now)
    }

    /// An advertisement reached an active (RFC 9568 §6.4.3).
    fn contend(&mut self, from: IpAddr, adv: &Advertisement, now: Instant) {
        // RFC 9568 §6.4.3: somebody else resigned, so say at once who is active.
        if adv.priority == 0 {
            self.advertise(now);
            return;
        }
        if self.is_disputed(from, adv, now) {
            return;
        }
        let ours = (self.config.priority, self.config.primary_address);
        // RFC 9568 §6.4.3: the higher priority wins, then the higher address, compared as unsigned
        // numbers in network byte order (as `IpAddr` compares).
        if (adv.priority, from) > ours {
            let reason =
                if adv.priority > self.config.priority { Reason::HigherPriority } else { Reason::HigherAddress };
            let interval = self.config.adopted_interval(adv);
            self.become_backup(Some(from), interval, Wait::ActiveDown, reason, now);
        } else {
            // RFC 9568 §6.4.3 (new since RFC 5798): the loser hears of it at once.
            self.advertise(now);
            self.announce_again(now);
        }
    }

    /// The Active_Down_Timer expired.
    fn expire(&mut self, now: Instant) {
        let Phase::Backup(listening) = &mut self.phase else {
            return;
        };
        // Deviation: RFC 9568 §6.4.2 takes over whenever the timer is found expired. Woken this late, it
        // was we who were away (suspended, starved, a paused virtual machine): what was sent to us
        // meanwhile may be lost, so the silence proves nothing, and a living active would be contested
        // for no reason. It advertises within an interval, so listen for one before taking over. That
        // happens once until an active is heard: a machine so loaded that it is always late still
        // takes over from a dead active, only later.
        let late = now.saturating_duration_since(listening.active_down);
        if late > listening.active_adver_interval / timing::LATE_DIVISOR && !listening.excused {
            listening.excused = true;
            listening.wait = Wait::Absence;
            listening.restart(&self.config, now);
            return;
        }
        let reason = match listening.wait {
            Wait::ActiveDown | Wait::Absence | Wait::Relinquished => Reason::ActiveDown,
            Wait::Resigned => Reason::Resigned,
            Wait::First => Reason::First,
            Wait::PeerDown => Reason::PeerDown,
        };
        // Deviation: RFC 9568 §6.4.2 takes over from silence alone. Where there are other paths it is only
        // due. Not so where the active itself said that it goes, where this copy is the first of a new router, and
        // where one of lower priority is to be preempted although it lives. Who waited for the first one in vain
        // asks: it may serve, and have been cut off from here before its first advertisement.
        let is_first = reason == Reason::First && timing::is_first(&self.config);
        let silence = reason != Reason::Resigned && !is_first;
        if silence && self.config.agreement.is_some() && listening.lower_since.is_none() {
            listening.due = Some(reason);
            listening.active_down = now + agreed::ASK_AGAIN;
            self.outputs.push_back(Output::TakeoverDue { active: listening.active });
            return;
        }
        self.become_active(reason, now);
    }

    /// Gives the role up if this active said nothing for as long as backups wait.
    ///
    /// Deviation: RFC 9568 knows no absence. After three silent intervals (a backup of high priority
    /// adds next to no Skew_Time) another copy may be active and serve connections we know nothing of.
    /// Going on and letting addresses decide would take the role back from it half of the time: a
    /// second interruption for nothing. So stop forwarding, which ends a possible time with two
    /// actives at once, and listen. If somebody did take over, its next advertisement comes within an
    /// interval; if nobody did, that interval without an active is the price, which is why the wait is
    /// not the whole Active_Down_Interval. The check comes before any advertisement is looked at: one
    /// that waited in the socket during the absence would otherwise be contested. An address owner
    /// stays: whoever took over gives way to it anyway.
    fn step_down_if_absent(&mut self, now: Instant) {
        let Phase::Active(advertising) = &self.phase else {
            return;
        };
        let silent = now.saturating_duration_since(advertising.sent);
        let interval = self.config.advertise_interval();
        if silent > timing::LOST_INTERVALS * interval && !self.config.is_owner() {
            self.become_backup(None, interval, Wait::Relinquished, Reason::Absence, now);
        }
    }

    /// Enters Active, in the order of RFC 9568 §6.4.2: advertise, then announce. The addresses are
    /// configured in between, so that nothing is announced that does not yet answer.
    fn become_active(&mut self, reason: Reason, now: Instant) {
        let from = self.state();
        self.outputs.extend([
            Output::Transmit(self.config.advertisement()),
            Output::Activate,
            Output::AnnounceAddresses,
            Output::StateChanged { from, to: State::Active, reason },
        ]);
        self.phase = Phase::Active(Advertising {
            sent: now,
            adver: now + timing::first_interval(&self.config),
            announced: now,
            announce: Announcing::after_first_round(&self.config.announcements, now),
            contest: None,
            settled: None,
        });
    }

    fn become_backup(
        &mut self,
        active: Option<IpAddr>,
        active_adver_interval: Duration,
        wait: Wait,
        reason: Reason,
        now: Instant,
    ) {
        let from = self.state();
        if from == State::Active {
            self.outputs.push_back(Output::Deactivate);
        }
        self.outputs.push_back(Output::StateChanged { from, to: State::Backup, reason });
        let mut listening = Listening {
            active,
            active_adver_interval,
            since: now,
            wait,
            active_down: now,
            lower_since: None,
            excused: false,
            due: None,
        };
        listening.restart(&self.config, now);
        self.phase = Phase::Backup(listening);
    }

    /// Enters Initialize.
    fn leave(&mut self, reason: Reason) {
        let from = self.state();
        match self.phase {
            Phase::Initialize => return,
            // RFC 9568 §6.4.2: a backup leaves silently.
            Phase::Backup(_) => {}
            Phase::Active(_) => {
                // RFC 9568 §6.4.3: an active resigns with priority 0.
                self.outputs.extend([Output::Transmit(self.config.resignation()), Output::Deactivate]);
            }
        }
        self.outputs.push_back(Output::StateChanged { from, to: State::Initialize, reason });
        self.phase = Phase::Initialize;
    }

    /// Sends an advertisement out of turn.
    fn advertise(&mut self, now: Instant) {
        if let Phase::Active(advertising) = &mut self.phase {
            self.outputs.push_back(Output::Transmit(self.config.advertisement()));
            advertising.sent_now(&self.config, now);
        }
    }

    /// Starts to announce anew after a contest was won.
    ///
    /// Deviation: the RFC leaves the neighbours' caches pointing at the loser. A burst that is under way
    /// is left alone and a new one keeps `CONTEST_PAUSE`, so that forged advertisements cannot draw
    /// announcements at their own rate.
    fn announce_again(&mut self, now: Instant) {
        let Phase::Active(advertising) = &mut self.phase else {
            return;
        };
        if !advertising.announce.is_some_and(|round| round.first) {
            advertising.announce = Some(Announcing {
                at: now.max(advertising.announced + CONTEST_PAUSE),
                rounds: self.config.announcements.rounds.max(1),
                first: true,
            });
        }
    }

    /// A repetition is due.
    fn announce_round(&mut self, now: Instant) {
        if let Phase::Active(advertising) = &mut self.phase {
            self.outputs.push_back(Output::AnnounceAddresses);
            advertising.announced = now;
            advertising.announce = advertising.announce.and_then(|round| round.next(&self.config.announcements, now));
        }
    }
}

impl Listening {
    /// (Re)starts the Active_Down_Timer as if at `since`.
    fn restart(&mut self, config: &Config, since: Instant) {
        self.since = since;
        self.active_down = since + timing::wait(config, self.wait, self.active_adver_interval, self.active);
    }

    /// An advertisement reached a backup (RFC 9568 §6.4.2).
    fn hear(&mut self, config: &Config, from: IpAddr, adv: &Advertisement, now: Instant) {
        if adv.priority == 0 && self.is_stale(config, from, now) {
            return;
        }
        if adv.priority == 0 {
            // RFC 9568 §6.4.2: priority 0, so wait only Skew_Time.
            // Deviation: but not longer than we would have waited anyway, or resignations repeated
            // (or forged) faster than Skew_Time would keep everybody from taking over.
            let before = self.active_down;
            self.active = Some(from);
            self.due = None;
            self.wait = Wait::Resigned;
            self.restart(config, now);
            self.active_down = self.active_down.min(before);
        } else if config.preempts(adv.priority) && self.may_preempt(config, now) {
            // RFC 9568 §6.4.2: discarded, and the timer runs on.
        } else {
            // RFC 9568 §6.4.2: adopt the active's interval, recompute, start again.
            if !config.preempts(adv.priority) {
                self.lower_since = None;
            }
            self.active = Some(from);
            self.active_adver_interval = config.adopted_interval(adv);
            self.wait = Wait::ActiveDown;
            self.excused = false;
            self.due = None;
            self.restart(config, now);
        }
    }

    /// Whether preempt_delay has passed since an active of lower priority was first heard.
    fn may_preempt(&mut self, config: &Config, now: Instant) -> bool {
        now.saturating_duration_since(*self.lower_since.get_or_insert(now)) >= config.preempt_delay
    }
}

impl Advertising {
    /// An advertisement was just sent.
    fn sent_now(&mut self, config: &Config, now: Instant) {
        self.sent = now;
        // Counted from now, so lateness never leads to a burst.
        self.adver = now + config.advertise_interval();
    }
}

impl Announcing {
    /// What follows the round at `now` that starts the first burst.
    fn after_first_round(settings: &Announcements, now: Instant) -> Option<Self> {
        Self { at: now, rounds: settings.rounds.max(1), first: true }.next(settings, now)
    }

    /// What follows the round that was just sent. A moment beyond the end of time never comes.
    fn next(self, settings: &Announcements, now: Instant) -> Option<Self> {
        match (self.rounds, settings.again_after) {
            (2.., _) => {
                Some(Self { at: now.checked_add(settings.spacing)?, rounds: self.rounds - 1, first: self.first })
            }
            (_, Some(delay)) if self.first => {
                Some(Self { at: now.checked_add(delay)?, rounds: settings.rounds.max(1), first: false })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
