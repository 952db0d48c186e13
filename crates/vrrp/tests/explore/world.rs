//! What can happen to a world, and which worlds are the same.

use super::*;

impl World {
    #[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
    pub(super) fn new(scenario: &Scenario) -> Self {
        let node = || Node { router: None, holds_addresses: false, asleep_until: None, handicap: 0 };
        let mut world = Self {
            now: Instant::now(),
            nodes: scenario.nodes.iter().map(|_| node()).collect(),
            air: Vec::new(),
            left: scenario.moves,
            takeovers: 0,
            causes: 1,
            lost_in_a_row: [[0; 3]; 3],
        };
        for index in 0..world.nodes.len() {
            world.start(scenario, index);
        }
        if scenario.settled_first {
            world.settle(scenario);
        }
        world
    }

    pub(super) fn router(&self, node: usize) -> Option<&VirtualRouter> {
        self.nodes[node].router.as_ref()
    }

    pub(super) fn actives(&self) -> Vec<usize> {
        let is_active = |node: &usize| self.router(*node).is_some_and(|r| r.state() == State::Active);
        (0..self.nodes.len()).filter(is_active).collect()
    }

    pub(super) fn is_asleep(&self, node: usize) -> bool {
        self.nodes[node].asleep_until.is_some_and(|until| until > self.now)
    }

    pub(super) fn all_there(&self) -> bool {
        (0..self.nodes.len()).all(|node| self.router(node).is_some() && !self.is_asleep(node))
    }

    /// When a node's next timer fires: later than it should, if the node sleeps until later.
    pub(super) fn deadline(&self, node: usize) -> Option<Instant> {
        let (at, _) = self.router(node)?.poll_timeout()?;
        Some(self.nodes[node].asleep_until.map_or(at, |until| at.max(until)))
    }

    /// When a flight must have arrived.
    pub(super) fn due(&self, flight: &Flight) -> Instant {
        self.nodes[flight.to].asleep_until.map_or(flight.due, |until| flight.due.max(until + LATENCY))
    }

    /// Time may not pass beyond this without something else happening first.
    pub(super) fn horizon(&self) -> Instant {
        let timers = (0..self.nodes.len()).filter_map(|node| self.deadline(node)).map(|at| at + JITTER);
        let flights = self.air.iter().map(|flight| self.due(flight));
        timers.chain(flights).min().unwrap_or(self.now).max(self.now)
    }

    pub(super) fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (index, flight) in self.air.iter().enumerate() {
            if !self.is_asleep(flight.to) {
                moves.push(Move::Deliver(index));
            }
            if self.may_lose(flight) {
                moves.push(Move::Drop(index));
            }
            if self.left.duplicates > 0 {
                moves.push(Move::Duplicate(index));
            }
        }
        let horizon = self.horizon();
        for node in 0..self.nodes.len() {
            if self.deadline(node).is_some_and(|at| at <= horizon) {
                moves.push(Move::Fire(node));
            }
            let (up, awake) = (self.router(node).is_some(), !self.is_asleep(node));
            let left = &self.left;
            let possible = [
                (up && left.crashes > 0, Move::Crash(node)),
                (up && awake && left.stops > 0, Move::Stop(node)),
                (!up && left.starts > 0, Move::Start(node)),
                (up && awake && left.sleeps > 0, Move::Sleep(node)),
                (up && awake && left.alarms > 0 && self.may_be_alarmed(node), Move::Alarm(node)),
                (awake && left.impairments > 0 && self.actives().contains(&node), Move::Impair(node)),
            ];
            moves.extend(possible.iter().filter(|(possible, _)| *possible).map(|(_, made)| *made));
        }
        if self.air.iter().any(|flight| self.now < self.due(flight) && self.due(flight) <= horizon) {
            moves.push(Move::Delay);
        }
        moves
    }

    /// The active that a backup hears.
    pub(super) fn heard_by(&self, node: usize) -> Option<usize> {
        let heard = self.router(node)?.status(self.now).active?;
        (0..self.nodes.len()).find(|other| address(*other) == heard)
    }

    pub(super) fn may_be_alarmed(&self, node: usize) -> bool {
        let lives = self.left.alarm == Alarm::False;
        self.heard_by(node).is_some_and(|active| self.router(active).is_some() == lives)
    }

    pub(super) fn alarm(&mut self, node: usize, peer: IpAddr) {
        // The last packet on the other path came just before the news: nothing contradicts it.
        let down = PeerDown { peer, last_heard: self.now, interval: ALARM_INTERVAL, listen: LISTEN };
        let mut suspicion = Suspicion::Irrelevant;
        let _ = self.act(node, |router, now| suspicion = router.handle_peer_down(&down, now));
        let asked = self.heard_by(node).filter(|active| self.router(*active).is_some());
        if let (Suspicion::Listening, Some(to), Some(router)) = (suspicion, asked, self.router(node)) {
            let adv = router.solicitation();
            self.air.push(Flight { from: node, to, adv, due: self.now + LATENCY });
        }
    }

    pub(super) fn may_lose(&self, flight: &Flight) -> bool {
        self.is_asleep(flight.to)
            || match self.left.loss {
                Loss::None => false,
                Loss::Budget(left) => left > 0,
                Loss::TwoOfThree => self.lost_in_a_row[flight.from][flight.to] < 2,
            }
    }

    /// Makes a move; returns who changed state, and why.
    pub(super) fn make(&mut self, scenario: &Scenario, made: Move) -> Vec<(usize, State, State, Reason)> {
        match made {
            Move::Deliver(index) => {
                let Flight { from, to, adv, .. } = self.air.remove(index);
                self.lost_in_a_row[from][to] = 0;
                self.act(to, |router, now| router.handle_advertisement(address(from), &adv, now))
            }
            Move::Drop(index) => {
                let flight = self.air.remove(index);
                match &mut self.left.loss {
                    _ if self.nodes[flight.to].asleep_until.is_some_and(|until| until > self.now) => {}
                    Loss::None => unreachable!("not offered"),
                    Loss::Budget(left) => *left -= 1,
                    Loss::TwoOfThree => self.lost_in_a_row[flight.from][flight.to] += 1,
                }
                Vec::new()
            }
            Move::Fire(node) => {
                self.now = self.now.max(self.deadline(node).expect("only offered with a timer"));
                self.act(node, VirtualRouter::handle_timeout)
            }
            Move::Delay => {
                let due = self.air.iter().map(|flight| self.due(flight)).filter(|due| *due > self.now).min();
                self.now = due.expect("only offered with a flight");
                Vec::new()
            }
            Move::Crash(node) => {
                self.left.crashes -= 1;
                self.blame(node);
                self.disappear(node);
                Vec::new()
            }
            Move::Stop(node) => {
                self.left.stops -= 1;
                self.blame(node);
                let _ = self.act(node, VirtualRouter::handle_shutdown);
                self.disappear(node);
                Vec::new()
            }
            Move::Start(node) => {
                self.left.starts -= 1;
                self.start(scenario, node)
            }
            Move::Alarm(node) => {
                self.left.alarms -= 1;
                let peer = address(self.heard_by(node).expect("only offered to who hears somebody"));
                let all = self.left.alarm == Alarm::ToAll;
                for backup in (0..self.nodes.len()).filter(|other| *other == node || all) {
                    if self.router(backup).is_some() && !self.is_asleep(backup) {
                        self.alarm(backup, peer);
                    }
                }
                Vec::new()
            }
            Move::Impair(node) => {
                self.left.impairments -= 1;
                self.blame(node);
                // As the keeper does: everybody else goes first, those that had their turn longest ago before
                // those that had it since.
                for other in 0..self.nodes.len() {
                    let handicap = if other == node {
                        scenario.nodes.len() as u8 - 1
                    } else {
                        self.nodes[other].handicap.saturating_sub(1)
                    };
                    self.handicap(other, handicap);
                }
                self.act(node, VirtualRouter::handle_resign)
            }
            Move::Duplicate(index) => {
                self.left.duplicates -= 1;
                let again = Flight { due: self.now + LATENCY, ..self.air[index].clone() };
                self.air.push(again);
                Vec::new()
            }
            Move::Sleep(node) => {
                self.left.sleeps -= 1;
                self.blame(node);
                self.nodes[node].asleep_until = Some(self.now + self.left.asleep);
                Vec::new()
            }
        }
    }

    pub(super) fn handicap(&mut self, node: usize, handicap: u8) {
        self.nodes[node].handicap = handicap;
        if let Some(router) = &mut self.nodes[node].router {
            let config = Config { handicap, ..router.config().clone() };
            router.handle_config(config, self.now);
        }
    }

    /// An Active that goes, for whatever reason, is a reason for another to take over.
    pub(super) fn blame(&mut self, node: usize) {
        if self.actives().contains(&node) {
            self.causes += 1;
        }
    }

    pub(super) fn disappear(&mut self, node: usize) {
        self.nodes[node] = Node { router: None, holds_addresses: false, asleep_until: None, handicap: 0 };
        self.air.retain(|flight| flight.to != node);
    }

    pub(super) fn start(&mut self, scenario: &Scenario, node: usize) -> Vec<(usize, State, State, Reason)> {
        self.nodes[node].router = Some(VirtualRouter::new(scenario.nodes[node].clone()));
        self.act(node, VirtualRouter::handle_startup)
    }

    /// Lets a router do something, and does what it wants done.
    pub(super) fn act(
        &mut self,
        node: usize,
        handle: impl FnOnce(&mut VirtualRouter, Instant),
    ) -> Vec<(usize, State, State, Reason)> {
        let mut router = self.nodes[node].router.take().expect("only routers that run act");
        handle(&mut router, self.now);
        let mut changes = Vec::new();
        while let Some(output) = router.poll_output() {
            match output {
                Output::Transmit(adv) => self.transmit(node, &adv),
                Output::Activate => self.nodes[node].holds_addresses = true,
                Output::Deactivate => self.nodes[node].holds_addresses = false,
                Output::AnnounceAddresses => {
                    assert!(self.nodes[node].holds_addresses, "announced before it was configured");
                }
                Output::TakeoverDue { .. } | Output::Contested { .. } | Output::Prevailed { .. } => {
                    unreachable!("nobody agrees here: see agree.rs")
                }
                Output::StateChanged { from, to, reason } => {
                    if to == State::Active {
                        self.takeovers += 1;
                    }
                    changes.push((node, from, to, reason));
                }
            }
        }
        assert_eq!(self.nodes[node].holds_addresses, router.state() == State::Active);
        self.nodes[node].router = Some(router);
        changes
    }

    pub(super) fn transmit(&mut self, from: usize, adv: &Advertisement) {
        for to in 0..self.nodes.len() {
            if to != from && self.router(to).is_some() {
                self.air.push(Flight { from, to, adv: adv.clone(), due: self.now + LATENCY });
            }
        }
    }

    /// Leaves the world in peace for long enough: everything arrives at once, nothing else happens.
    /// Returns the last moment at which somebody changed state, or nothing if time stands still because
    /// everybody goes on talking.
    pub(super) fn settle(&mut self, scenario: &Scenario) -> Option<Instant> {
        let start = self.now;
        let mut last_change = start;
        for _ in 0..MAX_SETTLING_MOVES {
            if self.now >= start + SETTLE_WITHIN + STAY_SETTLED {
                return Some(last_change);
            }
            let deliverable = self.air.iter().position(|flight| !self.is_asleep(flight.to));
            let next =
                (0..self.nodes.len()).filter(|node| self.router(*node).is_some()).min_by_key(|n| self.deadline(*n));
            let made = match (deliverable, next) {
                (Some(index), _) => Move::Deliver(index),
                (None, Some(node)) => Move::Fire(node),
                (None, None) => return Some(start),
            };
            if !self.make(scenario, made).is_empty() {
                last_change = self.now;
            }
        }
        None
    }

    /// What makes two worlds the same from now on.
    pub(super) fn key(&self, scenario: &Scenario) -> Key {
        let ahead = |at: Instant| at.saturating_duration_since(self.now);
        let mut air: Vec<_> = self.air.iter().map(|f| (f.from, f.to, f.adv.priority, ahead(self.due(f)))).collect();
        air.sort_unstable();
        let count = scenario.rules.one_takeover_per_cause;
        Key {
            nodes: self.nodes.iter().map(|node| node.key(self.now)).collect(),
            air,
            left: self.left,
            surplus: if count { self.causes.checked_sub(self.takeovers) } else { None },
            lost_in_a_row: self.lost_in_a_row,
        }
    }
}

pub(super) const SETTLE_WITHIN: Duration = Duration::from_secs(24);
const STAY_SETTLED: Duration = Duration::from_secs(12);
/// Three routers need some sixty.
const MAX_SETTLING_MOVES: usize = 1000;

#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    nodes: Vec<Option<NodeKey>>,
    air: Vec<(usize, usize, u8, Duration)>,
    left: Moves,
    surplus: Option<u8>,
    lost_in_a_row: [[u8; 3]; 3],
}

#[derive(PartialEq, Eq, Hash)]
pub(super) struct NodeKey {
    state: State,
    active: Option<IpAddr>,
    timers: Vec<(Timer, Duration)>,
    overdue: Duration,
    waits: (bool, bool, bool, bool),
    asleep: Duration,
    handicap: u8,
}

impl Node {
    pub(super) fn key(&self, now: Instant) -> Option<NodeKey> {
        let router = self.router.as_ref()?;
        let status = router.status(now);
        let overdue = |(at, _): (Instant, Timer)| now.saturating_duration_since(at);
        Some(NodeKey {
            state: status.state,
            active: status.active,
            timers: status.timers,
            overdue: router.poll_timeout().map(overdue).unwrap_or_default(),
            waits: (status.resigned, status.absent, status.excused, status.suspects),
            asleep: self.asleep_until.map(|until| until.saturating_duration_since(now)).unwrap_or_default(),
            handicap: self.handicap,
        })
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, node) in self.nodes.iter().enumerate() {
            match &node.router {
                Some(router) => write!(f, "  [{index}: {}]", router.status(self.now))?,
                None => write!(f, "  [{index}: down]")?,
            }
        }
        for flight in &self.air {
            write!(f, "  {}>{}:{}", flight.from, flight.to, flight.adv.priority)?;
        }
        Ok(())
    }
}
