//! What control decides, without I/O.
//!
//! [`Core`] takes what arrives (the server's snapshots and changes, the keeper's words, link events,
//! outcomes of rounds, the time) through `handle_*`, and yields what is to be done through
//! [`Core::poll_output`]. Call order: any number of `handle_*`, then `poll_output` until it is empty,
//! then wait for the next input or for [`Core::poll_timeout`], whichever is first. Reasons for a round
//! gather until `poll_output` is called, and at most one round is under way, so that a burst of changes
//! costs two rounds and not one each.
//!
//! Invariants:
//! - Without a configuration nothing is ever reconciled: a host that knows nothing removes nothing.
//! - A router's namespace goes only after the keeper let go of it, or did not answer for
//!   [`REMOVAL_PATIENCE`].
//! - The keeper is told [`ToKeeper::EndOfState`] only when every copy could be described to it, and each that is to go
//!   was asked for with what becomes of it (or after [`DESCRIBE_PATIENCE`]): what is not mentioned, it drops.
//!
//! Read [`crate::round`] first. What is said to the keeper is in [`keeper`], to the server in [`report`].

pub mod keeper;
pub mod report;
mod rounds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evergate_config::HostSettings;
use evergate_keeper::protocol::{FromKeeper, Settings as KeeperSettings, ToKeeper, Transition};
use evergate_model::host::{ActiveCopy, HostConfig, HostReport};
use evergate_model::stream::{Change, Letter, NetworkChange};
use evergate_model::{HaState, RouterId};

use crate::history;
use crate::round::{Outcome, PreparedCopy, Round, Why, reasons};
use keeper::KeeperSide;
use report::Reporter;
pub use rounds::LastRound;
use rounds::Rounds;

/// How long a router's removal waits for the keeper. A resignation takes milliseconds, but a handover may wait
/// for a host that was just started; a keeper that is not there for longer than this is not coming back for it.
pub const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a fresh keeper connection waits for copies that could not be prepared.
pub const DESCRIBE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a fresh keeper connection waits for the keeper to say what its copies are.
pub const INTRODUCTION_PATIENCE: Duration = Duration::from_secs(1);

/// Longest time between two rounds: how soon what somebody changed by hand is put right.
pub const PERIOD: Duration = Duration::from_secs(30);

/// Time between two questions for the keeper's counters.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// How long a round waits after the keeper was asked to tell instances that a router ends on their network:
/// afterwards the device that this is said by is gone. The keeper needs a millisecond or two.
pub const FAREWELL_PATIENCE: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Run a round; answer with [`Core::handle_outcome`].
    Reconcile(Round),
    /// Send this to the keeper.
    SendToKeeper(Box<ToKeeper>),
    /// Send this to the server; a newer one replaces an older one that is still waiting.
    Report(Box<HostReport>),
    /// Give this to the server, for another host; one that cannot be given at once is lost.
    Post(Letter),
    /// Write something below `state_path`.
    Write(FileJob),
    /// Close the stream and open it again, for a snapshot.
    Resync,
}

/// Something to write. Failing to is a warning, never more.
#[derive(Clone, Debug)]
pub enum FileJob {
    /// The router's `keepalived.conf`.
    KeepalivedConf {
        /// Which router.
        router: RouterId,
        /// Its text; private, as it may hold the password.
        text: String,
        /// Name and text of the script in it that checks the gateways, if they are checked.
        script: Option<(String, String)>,
    },
    /// A line in the router's state-change log, and its `state` file.
    Transition(Transition),
    /// A line in the router's history.
    History(history::Event),
    /// The router's `state` file alone: found, not changed.
    State {
        /// Which router.
        router: RouterId,
        /// What it is.
        state: HaState,
    },
    /// Keep the folders of these routers only.
    Prune {
        /// HA routers that this host has a copy of.
        keep: BTreeSet<RouterId>,
    },
    /// The last configuration, for a start without the server.
    Cache(Arc<HostConfig>),
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Look whether somebody changed something by hand.
    Period,
    /// Try again what failed.
    Retry,
    /// Observe what quick rounds did.
    Verify,
    /// Tell the server that this host lives.
    Report,
    /// The keeper has not let go of a router in time.
    Removal,
    /// The keeper has waited long enough for copies that cannot be prepared.
    Describe,
    /// Ask the keeper for its counters.
    Status,
    /// Instances were told that a router ends; its devices may go.
    Farewell,
}

/// A snapshot that was refused because it is older than what this host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The server's revision.
    pub offered: u64,
    /// Ours.
    pub current: u64,
}

/// The pure half of control.
#[derive(Debug)]
pub struct Core {
    settings: HostSettings,
    vtep: Option<IpAddr>,
    config: Option<Arc<HostConfig>>,
    from_cache: bool,
    refused: Option<Refused>,
    rounds: Rounds,
    keeper: KeeperSide,
    reporter: Reporter,
    outputs: VecDeque<Output>,
    /// The server's stream is open.
    server_reachable: bool,
    now: Instant,
}

impl Core {
    /// Starts with what the cache held, if it held anything.
    pub fn new(settings: HostSettings, incarnation: u64, cached: Option<HostConfig>, now: Instant) -> Self {
        let mut core = Self {
            vtep: settings.local_ip.filter(|_| !settings.tunnel_types.is_empty()),
            reporter: Reporter::new(&settings, incarnation, now),
            keeper: KeeperSide::new(now),
            from_cache: cached.is_some(),
            config: cached.map(Arc::new),
            refused: None,
            rounds: Rounds::new(now),
            outputs: VecDeque::new(),
            server_reachable: false,
            settings,
            now,
        };
        if core.config.is_some() {
            core.rounds.why.insert(Why::Start);
        }
        core
    }

    /// Takes the tunnel address, where the settings do not name it.
    pub fn handle_tunnel_address(&mut self, vtep: Option<IpAddr>, now: Instant) {
        self.now = now;
        if self.vtep == vtep {
            return;
        }
        self.vtep = vtep;
        self.reporter.wake();
        self.wake(Why::Settings);
        self.talk_to_keeper();
    }

    /// Takes the server's whole state.
    pub fn handle_snapshot(&mut self, config: HostConfig, now: Instant) {
        self.now = now;
        if let Some(current) = self.config.as_ref().map(|c| c.revision)
            && config.revision < current
        {
            self.refuse(Refused { offered: config.revision, current });
            return;
        }
        self.refused = None;
        self.from_cache = false;
        let revision = config.revision;
        let first = self.config.is_none();
        if self.config.as_deref() == Some(&config) {
            tracing::debug!(revision, "the server's state is what this host has");
            return;
        }
        self.config = Some(Arc::new(config));
        self.wake(if first { Why::Start } else { Why::Snapshot(revision) });
        self.take_new_config();
    }

    fn refuse(&mut self, refused: Refused) {
        if self.refused != Some(refused) {
            tracing::warn!(
                offered = refused.offered,
                current = refused.current,
                "refused the server's state: it is older than this host's; was its database put back? \
                 To follow it, stop the daemon and remove host-config.json from state_path"
            );
        }
        self.refused = Some(refused);
        self.reporter.wake();
    }

    /// Takes a change.
    pub fn handle_change(&mut self, change: Change, now: Instant) {
        self.now = now;
        let Some(config) = self.config.as_mut() else {
            self.outputs.push_back(Output::Resync);
            return;
        };
        let revision = change.revision;
        if self.refused.is_some() {
            // It changes a state that was refused. Once the server has a newer one, it can say all of it.
            if revision > config.revision {
                self.outputs.push_back(Output::Resync);
            }
            return;
        }
        let needs_round = concerns_kernel(&change, config);
        if let Err(stale) = change.apply(Arc::make_mut(config)) {
            tracing::warn!(error = %stale, "refused a change; asking for the whole state");
            self.outputs.push_back(Output::Resync);
            return;
        }
        if needs_round {
            self.wake(Why::Change(revision));
        } else if self.rounds.is_idle() {
            self.rounds.applied_revision = Some(revision);
        }
        self.take_new_config();
    }

    fn take_new_config(&mut self) {
        let Some(config) = self.config.clone() else { return };
        let wanted = wanted_copies(&config);
        self.keeper.retain(&wanted);
        let before = self.rounds.confs.len();
        self.rounds.confs.retain(|router, _| wanted.contains(router));
        if self.rounds.confs.len() != before {
            self.outputs.push_back(Output::Write(FileJob::Prune { keep: wanted }));
        }
        self.outputs.push_back(Output::Write(FileJob::Cache(config)));
        self.reporter.wake();
        self.talk_to_keeper();
    }

    /// Tells whether the server's stream is open.
    pub fn handle_server(&mut self, reachable: bool, now: Instant) {
        self.now = now;
        if std::mem::replace(&mut self.server_reachable, reachable) != reachable {
            self.tell_server_reachable();
        }
    }

    fn tell_server_reachable(&mut self) {
        let reachable = self.server_reachable;
        self.outputs.push_back(Output::SendToKeeper(Box::new(ToKeeper::Server { reachable })));
    }

    /// Tells whether there are routers here that other hosts have copies of.
    pub fn has_copies(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.routers.values().any(|router| router.ha.is_some()))
    }

    /// Takes a letter of another host for the keeper.
    pub fn handle_letter(&mut self, letter: Letter, now: Instant) {
        self.now = now;
        let Letter { peer: from, datagram } = letter;
        self.outputs.push_back(Output::SendToKeeper(Box::new(ToKeeper::Letter { from, datagram })));
    }

    /// Tells that the keeper's socket is connected.
    pub fn handle_keeper_connected(&mut self, now: Instant) {
        self.now = now;
        self.keeper.connected(now);
        self.talk_to_keeper();
    }

    /// Tells that the keeper's socket is closed.
    pub fn handle_keeper_gone(&mut self, now: Instant) {
        self.now = now;
        self.keeper.gone(now);
    }

    /// Takes what the keeper says.
    pub fn handle_keeper(&mut self, said: FromKeeper, now: Instant) {
        self.now = now;
        match said {
            FromKeeper::Hello { version, pid, notes } => {
                self.keeper.greeted(version, pid, notes);
                if self.server_reachable {
                    self.tell_server_reachable();
                }
            }
            FromKeeper::Letter { to, datagram } => self.outputs.push_back(Output::Post(Letter { peer: to, datagram })),
            FromKeeper::Transition(transition) => self.take_transition(transition),
            FromKeeper::Claimed { router, epoch, vtep } => {
                let claim = ActiveCopy { epoch, vtep };
                self.keeper.claimed(router, claim);
                self.remember(history::Event::of_claim(router, claim, self.vtep == Some(vtep)));
            }
            FromKeeper::Note { router, at_ms, text } => {
                self.remember(history::Event { router, at_ms: Some(at_ms), text });
                // What is wrong, or not any more, is part of its status.
                self.outputs.push_back(Output::SendToKeeper(Box::new(ToKeeper::Status)));
            }
            FromKeeper::Removed { router } => {
                if self.keeper.removed(router) {
                    self.wake(Why::Released(router));
                    self.talk_to_keeper();
                }
            }
            FromKeeper::Status(status) => {
                let wanted = self.config.as_deref().map(wanted_copies).unwrap_or_default();
                for (router, state) in self.keeper.take_status(status, &wanted) {
                    self.outputs.push_back(Output::Write(FileJob::State { router, state }));
                    self.reporter.wake();
                }
                self.talk_to_keeper();
            }
            FromKeeper::Warning { text } => {
                self.keeper.warn(text);
                self.reporter.wake();
            }
        }
    }

    /// Keeps what happened to a router that has a copy here.
    fn remember(&mut self, event: history::Event) {
        if self.config.as_deref().is_some_and(|config| is_wanted(config, event.router)) {
            self.outputs.push_back(Output::Write(FileJob::History(event)));
        }
    }

    fn take_transition(&mut self, transition: Transition) {
        let router = transition.router;
        if !self.config.as_deref().is_some_and(|c| is_wanted(c, router)) {
            // It resigned on its way out; its files are gone already.
            return;
        }
        if self.keeper.take_transition(&transition, self.vtep) {
            tracing::info!(
                router = %router,
                epoch = transition.epoch,
                took_us = transition.took_us,
                reason = %transition.reason,
                "router is {} here now",
                state_word(transition.state)
            );
            self.remember(history::Event::of_transition(&transition));
            self.outputs.push_back(Output::Write(FileJob::Transition(transition)));
            self.reporter.wake();
        }
    }

    /// Takes a link event of the host's namespace: a round runs if the link matters and is not as the last
    /// round left it.
    ///
    /// An event that comes while a round is under way is judged when the round is over: most are that
    /// round's own doing.
    pub fn handle_link_event(&mut self, name: &str, present: bool, up: bool, now: Instant) {
        self.now = now;
        let seen = present.then_some(up);
        if self.rounds.running.is_some() {
            self.rounds.links_meanwhile.insert(name.to_owned(), seen);
        } else {
            self.judge_link(name, seen);
        }
    }

    fn judge_link(&mut self, name: &str, seen: Option<bool>) {
        let Some(last) = &self.rounds.last else { return };
        if last.outcome.wanted_links.contains(name) && last.outcome.links.get(name).copied() != seen {
            self.wake(Why::Link(name.to_owned()));
        }
    }

    /// Takes what came of a round; an error where not even the kernel's state could be read.
    pub fn handle_outcome(&mut self, outcome: Result<Outcome, String>, now: Instant) {
        self.now = now;
        let why = reasons(&self.rounds.running.take().unwrap_or_default());
        self.rounds.period_at = now + PERIOD;
        match outcome {
            Ok(outcome) => self.take_outcome(outcome, why),
            Err(error) => {
                tracing::error!(why, error, "failed to reconcile");
                self.rounds.retry(now);
                let mut last = self.rounds.last.take().unwrap_or_default();
                (last.why, last.error) = (why, Some(error));
                self.rounds.last = Some(last);
            }
        }
        for (name, seen) in std::mem::take(&mut self.rounds.links_meanwhile) {
            self.judge_link(&name, seen);
        }
        self.reporter.wake();
    }

    fn take_outcome(&mut self, outcome: Outcome, why: String) {
        self.rounds.log(&outcome, &why);
        self.rounds.settle(&outcome, self.now);
        self.keeper.forget_released(&outcome);
        if let Some(config) = self.config.clone() {
            for router in &outcome.withheld {
                self.keeper.let_go(*router);
            }
            let wanted = wanted_copies(&config);
            let current: BTreeMap<_, _> =
                outcome.prepared.iter().filter(|(id, _)| wanted.contains(id)).map(|(id, p)| (*id, p.clone())).collect();
            self.write_confs(&current, &wanted);
            self.keeper.take_prepared(current, outcome.followed.clone(), outcome.advertised.clone());
        }
        self.rounds.last = Some(LastRound { outcome, why, error: None });
        self.talk_to_keeper();
    }

    fn write_confs(&mut self, prepared: &BTreeMap<RouterId, PreparedCopy>, wanted: &BTreeSet<RouterId>) {
        if self.rounds.last.is_none() {
            self.outputs.push_back(Output::Write(FileJob::Prune { keep: wanted.clone() }));
        }
        for (router, copy) in prepared {
            if self.rounds.confs.get(router) != Some(&copy.keepalived_conf) {
                self.rounds.confs.insert(*router, copy.keepalived_conf.clone());
                let (text, script) = (copy.keepalived_conf.clone(), copy.check_script.clone());
                self.outputs.push_back(Output::Write(FileJob::KeepalivedConf { router: *router, text, script }));
            }
        }
    }

    fn talk_to_keeper(&mut self) {
        let Some(config) = &self.config else { return };
        let settings = KeeperSettings {
            host: self.settings.host.clone(),
            vtep: self.vtep,
            claim_port: self.settings.claim_port,
            claim_key: config.cluster.claim_key.clone(),
            replication_port: self.settings.conntrack_sync_port,
            serve_alone: self.settings.serve_alone,
            bfd: evergate_keeper::protocol::BfdSettings {
                interval_ms: self.settings.bfd_interval_ms,
                multiplier: self.settings.bfd_multiplier,
            },
            health: evergate_keeper::protocol::HealthSettings {
                interval_s: self.settings.ha_vrrp_health_check_interval,
                fall: self.settings.ha_vrrp_health_check_fall,
                rise: self.settings.ha_vrrp_health_check_rise,
                script: self.settings.ha_vrrp_health_check_script.as_ref().map(|path| path.display().to_string()),
            },
        };
        let messages = self.keeper.sync(&settings, config, self.now);
        if messages.iter().any(|message| matches!(message, ToKeeper::CeaseAdvertising { .. })) {
            self.rounds.held_until = Some(self.now + FAREWELL_PATIENCE);
        }
        self.outputs.extend(messages.into_iter().map(|m| Output::SendToKeeper(Box::new(m))));
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let before = std::mem::replace(&mut self.now, now);
        if self.rounds.held_until.is_some_and(|at| at <= now) {
            self.rounds.held_until = None;
        }
        if self.rounds.retry_at.is_some_and(|at| at <= now) {
            self.rounds.retry_at = None;
            self.wake(Why::Retry);
        }
        if self.rounds.running.is_none() && self.rounds.verify_at.is_some_and(|(at, _)| at <= now) {
            self.rounds.verify_at = None;
            self.wake(Why::Verify);
        }
        if self.rounds.running.is_none() && self.rounds.period_at <= now {
            self.rounds.period_at = now + PERIOD;
            self.wake(Why::Period);
        }
        for router in self.keeper.overdue(now) {
            tracing::warn!(router = %router, "the keeper has not let go of the router in time; removing it all the same");
            self.wake(Why::Released(router));
            self.talk_to_keeper();
        }
        if self.keeper.status_due(now) {
            self.outputs.push_back(Output::SendToKeeper(Box::new(ToKeeper::Status)));
        }
        if self.keeper.describe_deadline(before).is_some_and(|at| at <= now) {
            self.talk_to_keeper();
        }
    }

    /// Tells when to call [`Self::handle_timeout`], and what for.
    pub fn poll_timeout(&self) -> (Instant, Timer) {
        let mut deadlines = vec![(self.reporter.due_at(), Timer::Report)];
        if self.rounds.running.is_none() {
            deadlines.push((self.rounds.period_at, Timer::Period));
            deadlines.extend(self.rounds.held_until.map(|at| (at, Timer::Farewell)));
            deadlines.extend(self.rounds.retry_at.map(|at| (at, Timer::Retry)));
            deadlines.extend(self.rounds.verify_at.map(|(at, _)| (at, Timer::Verify)));
        }
        deadlines.extend(self.keeper.removal_deadline().map(|at| (at, Timer::Removal)));
        deadlines.extend(self.keeper.status_deadline().map(|at| (at, Timer::Status)));
        deadlines.extend(self.keeper.describe_deadline(self.now).map(|at| (at, Timer::Describe)));
        deadlines.into_iter().min().unwrap_or((self.now + PERIOD, Timer::Period))
    }

    /// Takes the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if let Some(round) = self.next_round() {
            return Some(Output::Reconcile(round));
        }
        self.next_report().map(|report| Output::Report(Box::new(report)))
    }

    fn next_round(&mut self) -> Option<Round> {
        let config = self.config.clone()?;
        let (number, why) = self.rounds.begin()?;
        Some(self.round(number, why, config))
    }

    fn next_report(&mut self) -> Option<HostReport> {
        let facts = report::Facts {
            settings: &self.settings,
            vtep: self.vtep,
            config: self.config.as_deref(),
            last: self.rounds.last.as_ref().map(|l| &l.outcome),
            applied_revision: self.rounds.applied_revision,
            roles: self.keeper.roles(),
            warnings: self.warnings(),
        };
        self.reporter.next(&facts, self.now)
    }

    /// Lists what an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(refused) = self.refused {
            warnings.push(format!(
                "refused the server's state at revision {}: this host has revision {}",
                refused.offered, refused.current
            ));
        }
        if let Some(last) = &self.rounds.last {
            warnings.extend(last.error.clone());
            warnings.extend(last.outcome.problems.iter().cloned());
            warnings.extend(last.outcome.failures.iter().cloned());
            let hindered = last.outcome.prepared.iter().filter(|(_, copy)| !copy.hindrance.is_empty());
            warnings.extend(hindered.map(|(id, copy)| format!("router {id} is not ready here: {}", copy.hindrance)));
        }
        warnings.extend(self.keeper.warnings(self.now));
        warnings
    }

    fn wake(&mut self, why: Why) {
        self.rounds.why.insert(why);
    }

    /// The configuration in force.
    pub fn config(&self) -> Option<&Arc<HostConfig>> {
        self.config.as_ref()
    }

    /// Tells whether the configuration is the cache's, because the server has not spoken yet.
    pub fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    /// What came of the last round.
    pub fn last_round(&self) -> Option<&LastRound> {
        self.rounds.last.as_ref()
    }

    /// The revision that the kernel was last brought to.
    pub fn applied_revision(&self) -> Option<u64> {
        self.rounds.applied_revision
    }

    /// This host's tunnel address, if it has one.
    pub fn vtep(&self) -> Option<IpAddr> {
        self.vtep
    }

    /// What is known of and from the keeper.
    pub fn keeper(&self) -> &KeeperSide {
        &self.keeper
    }

    /// The settings.
    pub fn settings(&self) -> &HostSettings {
        &self.settings
    }

    /// The round that would run now, for a plan that is only printed.
    pub fn round_for_plan(&self) -> Option<Round> {
        Some(self.round(self.rounds.number, BTreeSet::new(), self.config.clone()?))
    }

    fn round(&self, number: u64, why: BTreeSet<Why>, config: Arc<HostConfig>) -> Round {
        let (released, claims) = (self.keeper.released(), self.keeper.claims());
        let quick = self.rounds.may_be_quick(&why);
        Round { number, why, config, live: !self.from_cache, vtep: self.vtep, released, quick, claims }
    }
}

/// Tells whether the kernel's state depends on what a change changes. Who is active, and with which
/// epoch, does not: the keeper moves those entries itself.
fn concerns_kernel(change: &Change, config: &HostConfig) -> bool {
    let same_but_for_epoch = |router: &evergate_model::host::Router| {
        let (Some(old), Some(new)) = (config.routers.get(&router.id), router.ha.as_ref()) else { return false };
        let Some(was) = old.ha.as_ref() else { return false };
        let mut old = old.clone();
        old.ha = Some(evergate_model::host::HaCopy { epoch: new.epoch, ..was.clone() });
        old == *router
    };
    !(change.networks.is_empty()
        && change.networks_changed.iter().all(NetworkChange::is_of_vrids_alone)
        && change.networks_removed.is_empty()
        && change.routers_removed.is_empty()
        && change.routers.iter().all(same_but_for_epoch))
}

/// Tells whether the keeper must hold a copy of the router. One that is administratively down takes no
/// part, as Neutron's agent removes it.
fn is_wanted(config: &HostConfig, router: RouterId) -> bool {
    config.routers.get(&router).is_some_and(|r| r.ha.is_some() && r.admin_state_up)
}

fn wanted_copies(config: &HostConfig) -> BTreeSet<RouterId> {
    config.routers.keys().copied().filter(|id| is_wanted(config, *id)).collect()
}

/// Names a role as this generation of documents does.
pub const fn state_word(state: HaState) -> &'static str {
    match state {
        HaState::Active => "active",
        HaState::Standby => "standby",
    }
}
