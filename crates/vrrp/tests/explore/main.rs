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

mod search;
mod world;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use evergate_vrrp::router::{
    Announcements, Config, Output, PeerDown, Reason, State, Suspicion, Timer, Version, VirtualRouter, Vrid,
};
use evergate_vrrp::wire::Advertisement;

use search::explore;

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
