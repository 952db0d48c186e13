//! Every order of deliver, delay, drop, fire, crash, start and sleep, for two and three virtual routers.
//!
//! A [`World`] is two or three routers, a clock and what is in the air between them. From a first
//! world, [`explore`] makes every move that is possible within the scenario's bounds, and from what
//! comes out every move again, until nothing new appears. Worlds that differ only in how much time has
//! passed altogether are the same, so a scenario is finite although its routers run for ever, and what
//! holds in all of its worlds holds for runs of any length.
//!
//! The bounds: an advertisement arrives within `LATENCY`, in any order with others, or is lost as the
//! scenario permits; timers fire up to `JITTER` late. What is checked is at [`Rules`], and in every
//! scenario:
//!
//! - a router has the addresses configured exactly while it is Active;
//! - left in peace, any world comes to exactly one Active and stays so (`assert_settles`);
//! - even without being left in peace, every run comes to exactly one Active and stays so
//!   (`assert_no_endless_disagreement`), as long as everybody is there and at most two of three
//!   advertisements are lost.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use evergate_vrrp::router::{
    Announcements, Config, Output, PeerDown, Reason, State, Suspicion, Timer, Version, VirtualRouter, Vrid,
};
use evergate_vrrp::wire::Advertisement;

const MS: Duration = Duration::from_millis(1);
/// Together with `JITTER` less than half a rank step, as on any link that is not itself broken.
const LATENCY: Duration = Duration::from_millis(15);
const JITTER: Duration = Duration::from_millis(15);
/// A scenario that grows beyond this has lost its bounds.
const MAX_WORLDS: usize = 60_000;

// Scenarios.

#[test]
fn copies_that_know_each_other_elect_one_and_never_two() {
    let found = explore(&Scenario {
        rules: Rules { never_two: true, keep_role: true, ..Rules::default() },
        ..Scenario::new("election", ranked(&v2(), 3))
    });
    assert!(found.settled_on.iter().all(|&node| node == 2), "the highest address goes first");
}

#[test]
fn copies_that_do_not_know_each_other_settle_on_one_of_them() {
    for nodes in [strangers(&v2(), 3), strangers(&v3(), 2)] {
        explore(&Scenario {
            rules: Rules { two_only_in_flight: true, ..Rules::default() },
            ..Scenario::new("election among strangers", nodes)
        });
    }
}

#[test]
fn ours_and_a_foreign_speaker_of_equal_priority_settle() {
    for foreign in 0..3 {
        let mut nodes = ranked(&v2(), 3);
        nodes[foreign].peers.clear();
        explore(&Scenario {
            moves: Moves { crashes: 1, starts: 1, ..Moves::default() },
            rules: Rules { two_only_in_flight: true, ..Rules::default() },
            ..Scenario::new("mixed", nodes)
        });
    }
}

#[test]
fn a_crash_moves_the_role_once_and_a_return_does_not_move_it_back() {
    for config in [v2(), v3()] {
        explore(&Scenario {
            settled_first: true,
            moves: Moves { crashes: 1, starts: 1, ..Moves::default() },
            rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
            ..Scenario::new("crash and return", ranked(&config, 3))
        });
    }
}

#[test]
fn two_crashes_and_returns_move_the_role_twice_at_most() {
    explore(&Scenario {
        settled_first: true,
        moves: Moves { crashes: 2, starts: 2, ..Moves::default() },
        rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
        ..Scenario::new("two crashes", ranked(&v2(), 2))
    });
}

#[test]
fn a_resignation_moves_the_role_once() {
    explore(&Scenario {
        settled_first: true,
        moves: Moves { stops: 1, starts: 1, ..Moves::default() },
        rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
        ..Scenario::new("stop and return", ranked(&v2(), 3))
    });
}

#[test]
fn a_hastened_resignation_moves_the_role_once() {
    let mut nodes = ranked(&v2(), 3);
    for node in &mut nodes {
        node.interop.hasten_resignation = true;
    }
    explore(&Scenario {
        settled_first: true,
        moves: Moves { stops: 1, starts: 1, ..Moves::default() },
        rules: Rules { keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
        ..Scenario::new("hastened stop", nodes)
    });
}

#[test]
fn losing_two_of_three_advertisements_does_not_move_the_role() {
    for config in [v2(), v3()] {
        explore(&Scenario {
            settled_first: true,
            moves: Moves { loss: Loss::TwoOfThree, ..Moves::default() },
            rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
            ..Scenario::new("loss", ranked(&config, 3))
        });
    }
}

#[test]
fn an_election_ends_although_two_of_three_advertisements_are_lost() {
    explore(&Scenario {
        moves: Moves { loss: Loss::TwoOfThree, ..Moves::default() },
        ..Scenario::new("lossy election", strangers(&v2(), 2))
    });
    explore(&Scenario {
        moves: Moves { loss: Loss::TwoOfThree, ..Moves::default() },
        ..Scenario::new("lossy ranked election", ranked(&v2(), 2))
    });
    explore(&Scenario {
        settled_first: true,
        moves: Moves { loss: Loss::TwoOfThree, crashes: 1, starts: 1, ..Moves::default() },
        ..Scenario::new("lossy crash and return", strangers(&v2(), 2))
    });
}

#[test]
fn any_losses_at_all_end_in_one_active_once_they_stop() {
    explore(&Scenario {
        settled_first: true,
        moves: Moves { loss: Loss::Budget(5), ..Moves::default() },
        ..Scenario::new("long loss", ranked(&v2(), 2))
    });
    explore(&Scenario {
        moves: Moves { loss: Loss::Budget(2), crashes: 1, starts: 1, ..Moves::default() },
        ..Scenario::new("loss and crash", ranked(&v2(), 2))
    });
    explore(&Scenario {
        moves: Moves { loss: Loss::Budget(2), ..Moves::default() },
        ..Scenario::new("loss among three", ranked(&v2(), 3))
    });
    explore(&Scenario {
        moves: Moves { loss: Loss::Budget(1), crashes: 1, starts: 1, ..Moves::default() },
        ..Scenario::new("loss and crash among three", ranked(&v2(), 3))
    });
}

#[test]
fn whoever_was_asleep_takes_nothing_from_a_living_active() {
    for asleep in [8000 * MS, 10_000 * MS] {
        explore(&Scenario {
            settled_first: true,
            moves: Moves { sleeps: 1, asleep, ..Moves::default() },
            rules: Rules { keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
            ..Scenario::new("sleep", ranked(&v2(), 3))
        });
    }
}

#[test]
fn a_host_that_is_noticed_to_be_gone_is_replaced_by_one_copy_at_once() {
    for config in [v2(), v3()] {
        explore(&Scenario {
            settled_first: true,
            moves: Moves { crashes: 1, starts: 1, alarms: 1, alarm: Alarm::ToAll, ..Moves::default() },
            rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
            ..Scenario::new("alarm", ranked(&config, 3))
        });
    }
}

#[test]
fn a_host_that_is_noticed_by_each_in_its_own_time_is_replaced_by_one_copy_in_the_end() {
    explore(&Scenario {
        settled_first: true,
        moves: Moves { crashes: 1, alarms: 2, alarm: Alarm::ToOne, ..Moves::default() },
        rules: Rules { two_only_in_flight: true, ..Rules::default() },
        ..Scenario::new("alarms one by one", ranked(&v2(), 3))
    });
}

#[test]
fn a_false_alarm_takes_nothing_from_a_living_active() {
    for config in [v2(), v3()] {
        explore(&Scenario {
            settled_first: true,
            moves: Moves { alarms: 2, alarm: Alarm::False, ..Moves::default() },
            rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
            ..Scenario::new("false alarm", ranked(&config, 3))
        });
    }
}

#[test]
fn false_alarms_and_losses_end_in_one_active() {
    explore(&Scenario {
        settled_first: true,
        moves: Moves { alarms: 1, alarm: Alarm::False, loss: Loss::Budget(2), ..Moves::default() },
        ..Scenario::new("false alarm and loss", ranked(&v2(), 2))
    });
}

#[test]
fn an_active_that_lost_what_the_role_is_for_is_followed_by_one_that_has_it() {
    for config in [v2(), v3()] {
        let found = explore(&Scenario {
            settled_first: true,
            moves: Moves { impairments: 1, ..Moves::default() },
            rules: Rules { never_two: true, one_takeover_per_cause: true, able_first: true, ..Rules::default() },
            ..Scenario::new("impaired", ranked(&config, 3))
        });
        assert!(found.settled_on.contains(&1), "the next in rank takes over");
    }
}

#[test]
fn the_role_goes_round_among_copies_that_all_lost_what_it_is_for() {
    let found = explore(&Scenario {
        settled_first: true,
        moves: Moves { impairments: 3, ..Moves::default() },
        rules: Rules { never_two: true, one_takeover_per_cause: true, ..Rules::default() },
        ..Scenario::new("all impaired", ranked(&v3(), 3))
    });
    assert!((0..3).all(|node| found.settled_on.contains(&node)), "everybody has a turn");
    explore(&Scenario {
        settled_first: true,
        moves: Moves { impairments: 2, crashes: 1, starts: 1, ..Moves::default() },
        rules: Rules { two_only_in_flight: true, ..Rules::default() },
        ..Scenario::new("impaired and crashed", ranked(&v2(), 2))
    });
}

#[test]
fn an_advertisement_that_arrives_twice_changes_nothing() {
    for config in [v2(), v3()] {
        explore(&Scenario {
            settled_first: true,
            moves: Moves { duplicates: 3, stops: 1, ..Moves::default() },
            rules: Rules { never_two: true, keep_role: true, one_takeover_per_cause: true, ..Rules::default() },
            ..Scenario::new("duplicates", ranked(&config, 2))
        });
        explore(&Scenario {
            moves: Moves { duplicates: 3, crashes: 1, starts: 1, ..Moves::default() },
            rules: Rules { two_only_in_flight: true, ..Rules::default() },
            ..Scenario::new("duplicates among strangers", strangers(&config, 2))
        });
    }
}

#[test]
fn preemption_settles_on_the_highest_priority_whoever_comes_first() {
    for config in [v2(), v3()] {
        let mut nodes = strangers(&Config { preempt: true, ..config }, 3);
        nodes[0].priority = 100;
        let found = explore(&Scenario {
            moves: Moves { crashes: 1, starts: 1, ..Moves::default() },
            ..Scenario::new("preemption", nodes)
        });
        assert!(found.settled_on.contains(&0));
        assert!(found.settled_on_with_all_up.iter().all(|&node| node == 0));
    }
}

// What a scenario is.

struct Scenario {
    name: &'static str,
    nodes: Vec<Config>,
    /// Begin when the first election is over and everybody has heard its result.
    settled_first: bool,
    moves: Moves,
    rules: Rules,
}

impl Scenario {
    fn new(name: &'static str, nodes: Vec<Config>) -> Self {
        Self { name, nodes, settled_first: false, moves: Moves::default(), rules: Rules::default() }
    }
}

/// What may happen besides delivering and firing, and how often.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Moves {
    loss: Loss,
    /// Gone without a word.
    crashes: u8,
    /// Gone with a resignation.
    stops: u8,
    /// Back from either.
    starts: u8,
    /// Not running for `asleep`. What is sent to a sleeper waits for it, or is lost.
    sleeps: u8,
    asleep: Duration,
    /// News that the active's host is not heard on another path.
    alarms: u8,
    alarm: Alarm,
    /// The active loses what the role is for, and resigns.
    impairments: u8,
    /// An advertisement is in the air once more.
    duplicates: u8,
}

/// Who hears the news, and whether it is true.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Alarm {
    /// True, to all at once.
    #[default]
    ToAll,
    /// True, to one backup.
    ToOne,
    /// The active lives; to one backup, which asks it.
    False,
}

/// On the other path. Whoever asks the active waits for two ways and a late wake-up.
const ALARM_INTERVAL: Duration = Duration::from_millis(100);
const LISTEN: Duration = Duration::from_millis(60);

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Loss {
    #[default]
    None,
    /// So many in all.
    Budget(u8),
    /// For ever, but never three in a row from one router to another.
    TwoOfThree,
}

/// What must hold in every world, or at every move.
#[derive(Clone, Copy, Default)]
struct Rules {
    /// There are never two Actives at a time.
    never_two: bool,
    /// Two Actives exist only while an advertisement from one to the other is in the air.
    two_only_in_flight: bool,
    /// Nobody who is there gives the role up.
    keep_role: bool,
    /// The role is taken once at the beginning, and once for each Active that is lost.
    one_takeover_per_cause: bool,
    /// Left in peace, the role comes to a copy without a handicap, if there is one.
    able_first: bool,
}

/// What an exploration saw.
struct Found {
    /// Who was Active in the end, when a world was left in peace.
    settled_on: Vec<usize>,
    settled_on_with_all_up: Vec<usize>,
}

// The routers.

fn v2() -> Config {
    Config {
        // Announcements have no influence on the election; without repetitions there are fewer worlds.
        announcements: Announcements { rounds: 1, spacing: MS, again_after: None },
        ..Config::neutron(Vrid::new(1).expect("not 0"), Ipv4Addr::UNSPECIFIED)
    }
}

fn v3() -> Config {
    Config { version: Version::V3, ..v2() }
}

fn strangers(config: &Config, count: u8) -> Vec<Config> {
    (0..count).map(|node| Config { primary_address: address(node.into()), ..config.clone() }).collect()
}

fn ranked(config: &Config, count: u8) -> Vec<Config> {
    let all = || (0..count).map(|node| address(node.into()));
    let peers_of = |own: IpAddr| all().filter(|peer| *peer != own).collect();
    all().map(|own| Config { primary_address: own, peers: peers_of(own), ..config.clone() }).collect()
}

fn address(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + node as u32))
}

// The world.

#[derive(Clone)]
struct World {
    now: Instant,
    nodes: Vec<Node>,
    air: Vec<Flight>,
    left: Moves,
    /// How often the role was taken, and how often there was a reason to.
    takeovers: u8,
    causes: u8,
    /// Advertisements lost in a row, by sender and receiver.
    lost_in_a_row: [[u8; 3]; 3],
}

#[derive(Clone)]
struct Node {
    router: Option<VirtualRouter>,
    /// What the kernel would have.
    holds_addresses: bool,
    asleep_until: Option<Instant>,
    handicap: u8,
}

#[derive(Clone)]
struct Flight {
    from: usize,
    to: usize,
    adv: Advertisement,
    due: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Deliver(usize),
    Drop(usize),
    /// The node's next timer fires; time passes until then.
    Fire(usize),
    /// Time passes until an advertisement has to arrive.
    Delay,
    Crash(usize),
    Stop(usize),
    Start(usize),
    Sleep(usize),
    Alarm(usize),
    Impair(usize),
    Duplicate(usize),
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
    fn new(scenario: &Scenario) -> Self {
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

    fn router(&self, node: usize) -> Option<&VirtualRouter> {
        self.nodes[node].router.as_ref()
    }

    fn actives(&self) -> Vec<usize> {
        let is_active = |node: &usize| self.router(*node).is_some_and(|r| r.state() == State::Active);
        (0..self.nodes.len()).filter(is_active).collect()
    }

    fn is_asleep(&self, node: usize) -> bool {
        self.nodes[node].asleep_until.is_some_and(|until| until > self.now)
    }

    fn all_there(&self) -> bool {
        (0..self.nodes.len()).all(|node| self.router(node).is_some() && !self.is_asleep(node))
    }

    /// When a node's next timer fires: later than it should, if the node sleeps until later.
    fn deadline(&self, node: usize) -> Option<Instant> {
        let (at, _) = self.router(node)?.poll_timeout()?;
        Some(self.nodes[node].asleep_until.map_or(at, |until| at.max(until)))
    }

    /// When a flight must have arrived.
    fn due(&self, flight: &Flight) -> Instant {
        self.nodes[flight.to].asleep_until.map_or(flight.due, |until| flight.due.max(until + LATENCY))
    }

    /// Time may not pass beyond this without something else happening first.
    fn horizon(&self) -> Instant {
        let timers = (0..self.nodes.len()).filter_map(|node| self.deadline(node)).map(|at| at + JITTER);
        let flights = self.air.iter().map(|flight| self.due(flight));
        timers.chain(flights).min().unwrap_or(self.now).max(self.now)
    }

    fn moves(&self) -> Vec<Move> {
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
    fn heard_by(&self, node: usize) -> Option<usize> {
        let heard = self.router(node)?.status(self.now).active?;
        (0..self.nodes.len()).find(|other| address(*other) == heard)
    }

    fn may_be_alarmed(&self, node: usize) -> bool {
        let lives = self.left.alarm == Alarm::False;
        self.heard_by(node).is_some_and(|active| self.router(active).is_some() == lives)
    }

    fn alarm(&mut self, node: usize, peer: IpAddr) {
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

    fn may_lose(&self, flight: &Flight) -> bool {
        self.is_asleep(flight.to)
            || match self.left.loss {
                Loss::None => false,
                Loss::Budget(left) => left > 0,
                Loss::TwoOfThree => self.lost_in_a_row[flight.from][flight.to] < 2,
            }
    }

    /// Makes a move; returns who changed state, and why.
    fn make(&mut self, scenario: &Scenario, made: Move) -> Vec<(usize, State, State, Reason)> {
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

    fn handicap(&mut self, node: usize, handicap: u8) {
        self.nodes[node].handicap = handicap;
        if let Some(router) = &mut self.nodes[node].router {
            let config = Config { handicap, ..router.config().clone() };
            router.handle_config(config, self.now);
        }
    }

    /// An Active that goes, for whatever reason, is a reason for another to take over.
    fn blame(&mut self, node: usize) {
        if self.actives().contains(&node) {
            self.causes += 1;
        }
    }

    fn disappear(&mut self, node: usize) {
        self.nodes[node] = Node { router: None, holds_addresses: false, asleep_until: None, handicap: 0 };
        self.air.retain(|flight| flight.to != node);
    }

    fn start(&mut self, scenario: &Scenario, node: usize) -> Vec<(usize, State, State, Reason)> {
        self.nodes[node].router = Some(VirtualRouter::new(scenario.nodes[node].clone()));
        self.act(node, VirtualRouter::handle_startup)
    }

    /// Lets a router do something, and does what it wants done.
    fn act(
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

    fn transmit(&mut self, from: usize, adv: &Advertisement) {
        for to in 0..self.nodes.len() {
            if to != from && self.router(to).is_some() {
                self.air.push(Flight { from, to, adv: adv.clone(), due: self.now + LATENCY });
            }
        }
    }

    /// Leaves the world in peace for long enough: everything arrives at once, nothing else happens.
    /// Returns the last moment at which somebody changed state, or nothing if time stands still because
    /// everybody goes on talking.
    fn settle(&mut self, scenario: &Scenario) -> Option<Instant> {
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
    fn key(&self, scenario: &Scenario) -> Key {
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

const SETTLE_WITHIN: Duration = Duration::from_secs(24);
const STAY_SETTLED: Duration = Duration::from_secs(12);
/// Three routers need some sixty.
const MAX_SETTLING_MOVES: usize = 1000;

#[derive(PartialEq, Eq, Hash)]
struct Key {
    nodes: Vec<Option<NodeKey>>,
    air: Vec<(usize, usize, u8, Duration)>,
    left: Moves,
    surplus: Option<u8>,
    lost_in_a_row: [[u8; 3]; 3],
}

#[derive(PartialEq, Eq, Hash)]
struct NodeKey {
    state: State,
    active: Option<IpAddr>,
    timers: Vec<(Timer, Duration)>,
    overdue: Duration,
    waits: (bool, bool, bool, bool),
    asleep: Duration,
    handicap: u8,
}

impl Node {
    fn key(&self, now: Instant) -> Option<NodeKey> {
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

// The exploration.

/// One world that was reached, and how.
struct Reached {
    parent: usize,
    made: Option<Move>,
    next: Vec<usize>,
    /// Everybody is there, and not exactly one is Active.
    disagrees: bool,
}

struct Exploration<'a> {
    scenario: &'a Scenario,
    reached: Vec<Reached>,
    found: Found,
}

fn explore(scenario: &Scenario) -> Found {
    let first = World::new(scenario);
    let mut exploration = Exploration {
        scenario,
        reached: Vec::new(),
        found: Found { settled_on: Vec::new(), settled_on_with_all_up: Vec::new() },
    };
    let mut known = HashMap::from([(first.key(scenario), 0)]);
    exploration.enter(&first, 0, None);
    let mut queue = VecDeque::from([(0, first)]);
    while let Some((index, world)) = queue.pop_front() {
        for made in world.moves() {
            let mut next = world.clone();
            let changes = next.make(scenario, made);
            exploration.check_changes(&world, &changes, index, made);
            let fresh = exploration.reached.len();
            let target = *known.entry(next.key(scenario)).or_insert(fresh);
            exploration.reached[index].next.push(target);
            if target == fresh {
                exploration.enter(&next, index, Some(made));
                queue.push_back((fresh, next));
            }
        }
    }
    exploration.assert_no_endless_disagreement();
    println!("{}: {} worlds", scenario.name, exploration.reached.len());
    exploration.found
}

impl Exploration<'_> {
    fn enter(&mut self, world: &World, parent: usize, made: Option<Move>) {
        let index = self.reached.len();
        assert!(index < MAX_WORLDS, "{}: unbounded", self.scenario.name);
        let disagrees = world.all_there() && world.actives().len() != 1;
        self.reached.push(Reached { parent, made, next: Vec::new(), disagrees });
        self.check_world(world, index);
        self.assert_settles(world, index);
    }

    fn check_world(&self, world: &World, index: usize) {
        let rules = &self.scenario.rules;
        let actives = world.actives();
        if rules.never_two && actives.len() > 1 {
            self.fail("two Actives", index, None);
        }
        if rules.two_only_in_flight && actives.len() > 1 {
            let between = |f: &Flight| actives.contains(&f.from) && actives.contains(&f.to);
            if !world.air.iter().any(between) {
                self.fail("two Actives, and nothing in the air between them", index, None);
            }
        }
        if rules.one_takeover_per_cause && world.takeovers > world.causes {
            self.fail("a takeover without cause", index, None);
        }
    }

    fn check_changes(&self, before: &World, changes: &[(usize, State, State, Reason)], index: usize, made: Move) {
        for &(node, from, to, reason) in changes {
            let slept = before.nodes[node].asleep_until.is_some() && reason == Reason::Absence;
            if self.scenario.rules.keep_role && from == State::Active && to == State::Backup && !slept {
                self.fail("the role was given up", index, Some(made));
            }
        }
    }

    fn assert_settles(&mut self, world: &World, index: usize) {
        let mut world = world.clone();
        let start = world.now;
        let last_change = world.settle(self.scenario);
        if last_change.is_none_or(|last_change| last_change > start + SETTLE_WITHIN) {
            self.fail("left in peace, it does not come to rest", index, None);
        }
        let up = world.nodes.iter().filter(|node| node.router.is_some()).count();
        match world.actives()[..] {
            [node] => {
                let able = world.nodes.iter().any(|other| other.router.is_some() && other.handicap == 0);
                if self.scenario.rules.able_first && able && world.nodes[node].handicap > 0 {
                    self.fail("the role stays with a copy that another is better than", index, None);
                }
                self.found.settled_on.push(node);
                if up == world.nodes.len() {
                    self.found.settled_on_with_all_up.push(node);
                }
            }
            [] if up == 0 => {}
            _ => self.fail("left in peace, it does not come to one Active", index, None),
        }
    }

    /// Looks for a world that disagrees and can come back to itself: that would be a run that disagrees
    /// again and again, for ever.
    fn assert_no_endless_disagreement(&self) {
        let circles = circles(&self.reached);
        let endless = |index: &usize| self.reached[*index].disagrees && circles[*index];
        if let Some(index) = (0..self.reached.len()).find(endless) {
            self.fail("disagreement can come back for ever", index, None);
        }
    }

    /// Shows how it came to this.
    fn fail(&self, what: &str, index: usize, last: Option<Move>) -> ! {
        let mut path = Vec::from_iter(last);
        let mut at = index;
        while let Some(made) = self.reached[at].made {
            path.push(made);
            at = self.reached[at].parent;
        }
        path.reverse();
        let mut world = World::new(self.scenario);
        let start = world.now;
        println!("{}: {what}\n{world}", self.scenario.name);
        for made in path {
            world.make(self.scenario, made);
            println!("{:>10.3?} {made:?}\n{world}", world.now - start);
        }
        panic!("{}: {what}; how it came to this is printed above", self.scenario.name);
    }
}

/// Which worlds can come back to themselves: those that share a strongly connected component with
/// another world, or lead to themselves (Kosaraju's algorithm).
fn circles(reached: &[Reached]) -> Vec<bool> {
    let forward: Vec<&[usize]> = reached.iter().map(|world| world.next.as_slice()).collect();
    let mut back = vec![Vec::new(); reached.len()];
    for (index, next) in forward.iter().enumerate() {
        for &next in *next {
            back[next].push(index);
        }
    }
    let back: Vec<&[usize]> = back.iter().map(Vec::as_slice).collect();
    let mut seen = vec![false; reached.len()];
    let mut order = Vec::new();
    for index in 0..reached.len() {
        visit(&forward, index, &mut seen, &mut order);
    }
    seen.fill(false);
    let mut on_circle = vec![false; reached.len()];
    for index in order.into_iter().rev() {
        let mut component = Vec::new();
        visit(&back, index, &mut seen, &mut component);
        let circle = component.len() > 1 || forward[index].contains(&index);
        for member in component {
            on_circle[member] = circle;
        }
    }
    on_circle
}

/// Depth-first search from `start`; appends what is new in the order in which it is left.
fn visit(edges: &[&[usize]], start: usize, seen: &mut [bool], left: &mut Vec<usize>) {
    if std::mem::replace(&mut seen[start], true) {
        return;
    }
    let mut path = vec![(start, edges[start].iter())];
    while let Some((index, next)) = path.last_mut() {
        match next.find(|next| !seen[**next]) {
            Some(&next) => {
                seen[next] = true;
                path.push((next, edges[next].iter()));
            }
            None => {
                left.push(*index);
                path.pop();
            }
        }
    }
}
