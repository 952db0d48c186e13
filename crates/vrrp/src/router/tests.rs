//! The state machine against RFC 9568 §6 (version 2: RFC 3768 §6), one sentence per test.

use proptest::prelude::*;

use super::*;
use crate::wire::Ipv4Checksum;

mod absence;
mod agreed;
mod announcements;
mod configuration;
mod peer_down;
mod rank;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

// Initialize.

#[test]
fn startup_listens_for_active_down_interval_of_its_own_interval() {
    let mut bench = Bench::new(v3());
    bench.router.handle_startup(bench.now);
    assert_eq!(bench.drain(), [changed(State::Initialize, State::Backup, Reason::Startup)]);
    // 3 x 2 s + 206/256 x 2 s.
    assert_eq!(bench.left(), (Timer::ActiveDown, 6 * SECOND + SECOND * 412 / 256));
}

#[test]
fn startup_of_the_address_owner_advertises_announces_and_is_active() {
    let mut bench = Bench::new(Config { priority: 255, ..v3() });
    bench.router.handle_startup(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Initialize, Reason::Startup));
    assert_eq!(bench.timers()[0], (Timer::Adver, 2 * SECOND));
}

#[test]
fn routers_that_are_active_from_one_moment_on_advertise_at_moments_of_their_own() {
    let second = |vrid| {
        let mut bench = Bench::new(Config { priority: 255, vrid: Vrid::new(vrid).unwrap(), ..v3() });
        bench.router.handle_startup(bench.now);
        bench.drain();
        let first = bench.timers().iter().find(|(timer, _)| *timer == Timer::Adver).unwrap().1;
        assert!(Duration::ZERO < first && first <= 2 * SECOND, "{first:?}");
        bench.wait(first);
        assert!(bench.drain().contains(&transmit(&bench)));
        assert!(bench.timers().contains(&(Timer::Adver, 2 * SECOND)));
        first
    };
    let mut moments = (1..=192).map(second).collect::<Vec<_>>();
    moments.sort_unstable();
    assert!(moments.chunk_by(|one, other| one == other).all(|together| together.len() == 3));
}

#[test]
fn an_advertisement_can_be_brought_forward_and_not_put_off() {
    let mut bench = Bench::backup(v2());
    bench.router.hasten_advertisement(bench.now);
    assert_eq!((bench.router.next_advertisement(), bench.drain()), (None, vec![]), "a backup sends none");
    let mut bench = Bench::active(v2());
    let due = bench.router.next_advertisement().unwrap();
    bench.router.hasten_advertisement(due + SECOND);
    assert_eq!(bench.router.next_advertisement(), Some(due));
    bench.router.hasten_advertisement(bench.now);
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), [transmit(&bench)]);
    assert_eq!(bench.router.next_advertisement(), Some(bench.now + 2 * SECOND), "a whole interval from then on");
}

#[test]
fn the_second_startup_does_nothing() {
    let mut bench = Bench::backup(v2());
    bench.wait(SECOND);
    let before = bench.left();
    bench.router.handle_startup(bench.now);
    bench.router.handle_adopt_active(bench.now);
    assert_eq!((bench.drain(), bench.left()), (vec![], before));
}

#[test]
fn initialize_ignores_advertisements_and_time() {
    let mut bench = Bench::new(v2());
    bench.hear(OTHER, 0);
    bench.hear(OTHER, 200);
    bench.router.handle_timeout(bench.now + 100 * SECOND);
    assert_eq!(bench.drain(), []);
    assert_eq!(bench.router.poll_timeout(), None);
}

#[test]
fn adoption_advertises_at_once_and_stays_active() {
    let mut bench = Bench::new(v2());
    bench.router.handle_adopt_active(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Initialize, Reason::Adopted));
}

#[test]
fn adoption_gives_way_to_a_higher_address_that_took_over_meanwhile() {
    let mut bench = Bench::new(v2());
    bench.router.handle_adopt_active(bench.now);
    bench.drain();
    bench.hear(HIGHER, 50);
    assert_eq!(bench.drain(), given_up(Reason::HigherAddress));
}

#[test]
fn an_heir_is_active_at_once_and_gives_way_to_a_higher_address() {
    let mut bench = Bench::new(v2());
    bench.router.handle_inheritance(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Initialize, Reason::Inherited));
    bench.hear(HIGHER, 50);
    assert_eq!(bench.drain(), given_up(Reason::HigherAddress));
}

// The first election of a new virtual router.

#[test]
fn the_first_election_is_won_by_the_highest_address_after_a_short_listen() {
    let mut bench = Bench::new(Config { peers: [addr(OTHER)].into(), primary_address: addr(HIGHER), ..v2() });
    bench.router.handle_first_startup(bench.now);
    // Half of 16/256 s.
    assert_eq!(bench.left(), (Timer::ActiveDown, SECOND / 32));
    bench.drain();
    bench.wait(SECOND / 32);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::First));
}

#[test]
fn in_the_first_election_the_others_wait_as_long_as_ever() {
    let config = Config { peers: [addr(HIGHER)].into(), ..v2() };
    let mut bench = Bench::new(config.clone());
    bench.router.handle_first_startup(bench.now);
    assert_eq!(bench.left(), Bench::backup(config).left());
}

#[test]
fn the_first_in_rank_gives_way_to_an_active_that_it_hears_after_all() {
    let mut bench = Bench::new(Config { peers: [addr(OTHER)].into(), primary_address: addr(HIGHER), ..v2() });
    bench.router.handle_first_startup(bench.now);
    bench.drain();
    bench.hear(OTHER, 50);
    assert!(bench.left().1 > 6 * SECOND);
    assert_eq!(bench.drain(), []);
}

// Times.

#[test]
fn v2_skew_is_in_seconds_whatever_the_interval() {
    for (priority, interval_cs, expected) in [
        (50, 200, 6 * SECOND + SECOND * 206 / 256),
        (50, 1000, 30 * SECOND + SECOND * 206 / 256),
        (254, 100, 3 * SECOND + SECOND * 2 / 256),
        (1, 100, 3 * SECOND + SECOND * 255 / 256),
    ] {
        let config = Config { priority, advertise_interval_cs: interval_cs, ..v2() };
        assert_eq!(Bench::backup(config).left(), (Timer::ActiveDown, expected));
    }
}

#[test]
fn v3_skew_is_in_proportion_to_the_interval_and_never_zero() {
    for interval_cs in [1, 10, 100, 4095] {
        for priority in 1..=254 {
            let config = Config { priority, advertise_interval_cs: interval_cs, ..v3() };
            let interval = 10 * MS * u32::from(interval_cs);
            let skew = Bench::backup(config).left().1 - 3 * interval;
            assert!(skew > Duration::ZERO);
            let exact = interval.as_nanos() * (256 - u128::from(priority)) / 256;
            assert_eq!(skew.as_nanos(), exact);
        }
    }
}

#[test]
fn skew_follows_the_priority_in_effect() {
    let mut bench = Bench::backup(v2());
    bench.wait(SECOND);
    bench.configure(Config { priority: 200, ..v2() });
    // What was waited already counts.
    assert_eq!(bench.left().1, 5 * SECOND + SECOND * 56 / 256);
}

// Backup.

#[test]
fn backup_takes_over_when_active_down_timer_expires() {
    for config in [v2(), v3()] {
        let mut bench = Bench::backup(config);
        bench.hear(OTHER, 50);
        let (timer, left) = bench.left();
        assert_eq!(timer, Timer::ActiveDown);
        bench.wait(left - Duration::from_nanos(1));
        assert_eq!(bench.drain(), []);
        bench.wait(Duration::from_nanos(1));
        // Advertise, configure, announce: in this order.
        assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::ActiveDown));
    }
}

#[test]
fn backup_restarts_the_timer_with_every_advertisement() {
    for (config, priority) in [(v2(), 50), (v2(), 51), (v2(), 1), (preempting(), 50), (preempting(), 51)] {
        let mut bench = Bench::backup(config);
        let whole = bench.left();
        for _ in 0..5 {
            bench.wait(2 * SECOND);
            bench.hear(OTHER, priority);
            assert_eq!(bench.left(), whole);
        }
        assert_eq!(bench.drain(), []);
    }
}

#[test]
fn backup_ignores_lower_priority_when_preemption_is_off() {
    // Ignores the priority, that is: a returning router does not take the role from a living active.
    let mut bench = Bench::backup(Config { priority: 200, ..v2() });
    for _ in 0..10 {
        bench.wait(2 * SECOND);
        bench.hear(OTHER, 50);
    }
    assert_eq!(bench.drain(), []);
    assert_eq!(bench.router.state(), State::Backup);
}

#[test]
fn backup_that_preempts_lets_the_timer_run_on_at_lower_priority() {
    let mut bench = Bench::backup(preempting());
    let (_, whole) = bench.left();
    bench.wait(SECOND);
    bench.hear(OTHER, 49);
    assert_eq!(bench.left().1, whole - SECOND);
    bench.wait(whole - SECOND);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::ActiveDown));
}

#[test]
fn an_address_owner_preempts_whatever_preempt_says() {
    let mut bench = Bench::backup(v2());
    bench.configure(Config { priority: 255, ..v2() });
    let before = bench.left();
    bench.hear(OTHER, 254);
    assert_eq!(bench.left(), before);
}

#[test]
fn preempt_delay_counts_from_the_first_advertisement_of_lower_priority() {
    let config = Config { preempt_delay: 10 * SECOND, ..preempting() };
    let mut bench = Bench::backup(config);
    let (_, whole) = bench.left();
    for _ in 0..5 {
        bench.hear(OTHER, 49);
        assert_eq!(bench.left().1, whole);
        bench.wait(2 * SECOND);
    }
    bench.hear(OTHER, 49);
    assert_eq!(bench.left().1, whole - 2 * SECOND);
}

#[test]
fn preempt_delay_starts_anew_after_an_equal_priority() {
    let config = Config { preempt_delay: 3 * SECOND, ..preempting() };
    let mut bench = Bench::backup(config);
    let (_, whole) = bench.left();
    for priority in [49, 50, 49] {
        bench.hear(OTHER, priority);
        bench.wait(2 * SECOND);
    }
    bench.hear(OTHER, 49);
    assert_eq!(bench.left().1, whole);
}

#[test]
fn backup_waits_only_skew_time_after_priority_0() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 50);
    bench.wait(SECOND);
    bench.hear(OTHER, 0);
    assert_eq!(bench.left(), (Timer::ActiveDown, SECOND * 206 / 256));
    bench.wait(SECOND * 206 / 256);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::Resigned));
}

#[test]
fn repeated_resignations_do_not_put_the_takeover_off() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 0);
    bench.wait(500 * MS);
    bench.hear(OTHER, 0);
    assert_eq!(bench.left().1, SECOND * 206 / 256 - 500 * MS);
}

#[test]
fn an_advertisement_after_a_resignation_is_waited_for_as_always() {
    let mut bench = Bench::backup(v2());
    let whole = bench.left();
    bench.hear(OTHER, 0);
    bench.hear(HIGHER, 50);
    assert_eq!(bench.left(), whole);
}

#[test]
fn v3_backup_learns_the_interval_of_the_active() {
    let mut bench = Bench::backup(v3());
    bench.hear_interval(OTHER, 50, 10);
    assert_eq!(bench.left().1, 300 * MS + 100 * MS * 206 / 256);
    bench.hear_interval(OTHER, 50, 4095);
    assert!(bench.left().1 > 122 * SECOND);
    // What it discards it does not learn from.
    let mut bench = Bench::backup(Config { preempt: true, ..v3() });
    let before = bench.left();
    bench.hear_interval(OTHER, 49, 10);
    assert_eq!(bench.left(), before);
}

#[test]
fn v3_learned_interval_can_be_bounded_but_not_below_our_own() {
    for (bound, expected) in [(1000, 10 * SECOND), (50, 2 * SECOND)] {
        let interop = Interop { longest_adopted_interval_cs: bound, ..Interop::default() };
        let mut bench = Bench::backup(Config { interop, ..v3() });
        bench.hear_interval(OTHER, 50, 4095);
        assert_eq!(bench.router.status(bench.now).active_adver_interval, expected);
    }
}

#[test]
fn v3_learned_interval_is_forgotten_by_an_active() {
    let mut bench = Bench::backup(v3());
    bench.hear_interval(OTHER, 50, 10);
    bench.expire();
    assert_eq!(bench.timers()[0], (Timer::Adver, 2 * SECOND));
}

#[test]
fn backup_leaves_silently() {
    let mut bench = Bench::backup(v2());
    bench.router.handle_shutdown(bench.now);
    assert_eq!(bench.drain(), [changed(State::Backup, State::Initialize, Reason::Shutdown)]);
    assert_eq!(bench.router.poll_timeout(), None);
}

// Active.

#[test]
fn active_advertises_every_interval() {
    let mut bench = Bench::active(v2());
    for _ in 0..3 {
        bench.wait(2 * SECOND);
        assert_eq!(bench.drain(), [transmit(&bench)]);
    }
}

#[test]
fn a_late_advertisement_is_not_made_up_for() {
    let mut bench = Bench::active(v2());
    bench.now += 5 * SECOND;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), [transmit(&bench)]);
    assert_eq!(bench.timers()[0], (Timer::Adver, 2 * SECOND));
}

#[test]
fn active_answers_priority_0_with_an_advertisement_and_restarts_its_timer() {
    let mut bench = Bench::active(v2());
    bench.wait(SECOND);
    bench.hear(OTHER, 0);
    assert_eq!(bench.drain(), [transmit(&bench)]);
    assert_eq!(bench.timers()[0], (Timer::Adver, 2 * SECOND));
}

#[test]
fn active_gives_way_to_a_higher_priority() {
    let mut bench = Bench::active(v2());
    bench.hear(OTHER, 51);
    assert_eq!(bench.drain(), given_up(Reason::HigherPriority));
    assert_eq!(bench.left(), (Timer::ActiveDown, 6 * SECOND + SECOND * 206 / 256));
}

#[test]
fn active_gives_way_to_a_higher_address_of_equal_priority() {
    let mut bench = Bench::active(v2());
    bench.hear(HIGHER, 50);
    assert_eq!(bench.drain(), given_up(Reason::HigherAddress));
}

#[test]
fn active_that_gives_way_learns_the_interval() {
    let mut bench = Bench::active(v3());
    bench.hear_interval(HIGHER, 50, 10);
    assert_eq!(bench.left().1, 300 * MS + 100 * MS * 206 / 256);
}

#[test]
fn addresses_are_compared_as_unsigned_numbers_in_network_byte_order() {
    // As signed bytes, or in the byte order of the host, each of these would come out the other way.
    for (ours, theirs) in [
        ("127.0.0.255", "128.0.0.0"),
        ("10.0.255.1", "10.1.0.0"),
        ("fe80::7f00", "fe80::8000"),
        ("fe80::ff", "fe80::100"),
    ] {
        let mut bench = Bench::active(Config { primary_address: addr(ours), ..v3() });
        bench.hear(theirs, 50);
        assert_eq!(bench.router.state(), State::Backup, "{ours} < {theirs}");
        let mut bench = Bench::active(Config { primary_address: addr(theirs), ..v3() });
        bench.hear(ours, 50);
        assert_eq!(bench.router.state(), State::Active, "{theirs} > {ours}");
    }
}

#[test]
fn active_that_wins_sends_an_advertisement_at_once() {
    for (from, priority) in [(OTHER, 50), (HIGHER, 49)] {
        let mut bench = Bench::active(v2());
        bench.wait(SECOND);
        bench.drain();
        bench.hear(from, priority);
        assert_eq!(bench.drain(), [transmit(&bench)]);
        assert_eq!(bench.timers()[0], (Timer::Adver, 2 * SECOND));
    }
}

#[test]
fn active_that_wins_announces_its_addresses_again() {
    let mut bench = Bench::active(Config { announcements: Announcements::neutron(), ..v2() });
    bench.wait(10 * SECOND);
    bench.drain();
    bench.hear(OTHER, 50);
    bench.wait(SECOND);
    let announced = bench.drain().iter().filter(|o| **o == Output::AnnounceAddresses).count();
    assert_eq!(announced, 5);
}

#[test]
fn forged_contests_draw_no_more_announcements_than_the_pause_allows() {
    for rounds in [0, 1, 5] {
        let announcements = Announcements { rounds, ..Announcements::default() };
        let mut bench = Bench::active(Config { announcements, ..v2() });
        bench.drain();
        for _ in 0..1000 {
            bench.hear(OTHER, 1);
            bench.wait(MS);
        }
        let announced = bench.drain().iter().filter(|o| **o == Output::AnnounceAddresses).count();
        assert!((9..=10).contains(&announced), "{announced} in a second");
    }
}

#[test]
fn our_own_address_never_starts_a_dialogue() {
    let mut bench = Bench::active(v2());
    bench.hear(OURS, 255);
    bench.hear(OURS, 50);
    bench.hear(OURS, 0);
    assert_eq!(bench.drain(), []);
}

#[test]
fn active_resigns_with_priority_0_when_it_stops() {
    for (reason, stop) in [
        (Reason::Shutdown, VirtualRouter::handle_shutdown as fn(&mut VirtualRouter, Instant)),
        (Reason::Fault, VirtualRouter::handle_fault),
    ] {
        let mut bench = Bench::active(v2());
        stop(&mut bench.router, bench.now);
        assert_eq!(bench.drain(), left_active(reason));
        assert_eq!(bench.router.poll_timeout(), None);
        // A second time there is nothing to do.
        stop(&mut bench.router, bench.now);
        assert_eq!(bench.drain(), []);
    }
}

#[test]
fn a_fault_leaves_the_election_until_the_next_startup() {
    let mut bench = Bench::backup(v2());
    bench.router.handle_fault(bench.now);
    assert_eq!(bench.drain(), [changed(State::Backup, State::Initialize, Reason::Fault)]);
    bench.wait(60 * SECOND);
    assert_eq!(bench.drain(), []);
    bench.router.handle_startup(bench.now);
    assert_eq!(bench.drain(), [changed(State::Initialize, State::Backup, Reason::Startup)]);
}

#[test]
fn an_active_that_gives_the_role_away_resigns_and_waits_as_a_newcomer() {
    let mut bench = Bench::new(v2());
    bench.router.handle_adopt_active(bench.now);
    bench.drain();
    bench.router.handle_resign(bench.now);
    let outputs = bench.drain();
    assert!(matches!(&outputs[0], Output::Transmit(adv) if adv.priority == 0));
    assert_eq!(outputs[1..], [Output::Deactivate, changed(State::Active, State::Backup, Reason::Impaired)]);
    let mut newcomer = Bench::new(v2());
    newcomer.router.handle_startup(newcomer.now);
    assert_eq!(left(&bench), left(&newcomer));
    bench.router.handle_resign(bench.now);
    assert_eq!(bench.drain(), [], "a backup has nothing to give away");
}

#[test]
fn a_handicap_is_whole_intervals_on_top_of_every_wait_and_applies_to_what_is_left_of_one() {
    for config in [v2(), v3()] {
        let mut bench = Bench::new(config.clone());
        bench.router.handle_startup(bench.now);
        let before = left(&bench);
        bench.router.handle_config(Config { handicap: 2, ..config.clone() }, bench.now);
        assert_eq!(left(&bench), before + 2 * config.advertise_interval());
        bench.router.handle_config(config, bench.now);
        assert_eq!(left(&bench), before);
    }
}

/// Until the next timer.
fn left(bench: &Bench) -> Duration {
    bench.router.poll_timeout().expect("it takes part").0 - bench.now
}

// Anything at all.

#[derive(Clone, Debug)]
enum Input {
    Startup,
    Adopt,
    Shutdown,
    Fault,
    Hear { from: u8, priority: u8, interval_cs: u16 },
    Pass(u32),
    Configure { priority: u8, interval_s: u16, preempt: bool, vrid: u8, peers: u8, hasten: bool },
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        2 => Just(Input::Startup),
        1 => Just(Input::Adopt),
        1 => Just(Input::Shutdown),
        1 => Just(Input::Fault),
        8 => (1u8..9, any::<u8>(), 1u16..=4095)
            .prop_map(|(from, priority, interval_cs)| Input::Hear { from, priority, interval_cs }),
        8 => prop_oneof![0u32..10_000, 0u32..200_000].prop_map(Input::Pass),
        1 => (1u8..=255, 1u16..=40, any::<bool>(), 1u8..=2, 0u8..9, any::<bool>()).prop_map(
            |(priority, interval_s, preempt, vrid, peers, hasten)| {
                Input::Configure { priority, interval_s, preempt, vrid, peers, hasten }
            }
        ),
    ]
}

fn apply(bench: &mut Bench, input: &Input) {
    let (router, now) = (&mut bench.router, bench.now);
    match *input {
        Input::Startup => router.handle_startup(now),
        Input::Adopt => router.handle_adopt_active(now),
        Input::Shutdown => router.handle_shutdown(now),
        Input::Fault => router.handle_fault(now),
        Input::Hear { from, priority, interval_cs } => {
            let adv = Advertisement { priority, advertise_interval_cs: interval_cs, ..router.config().advertisement() };
            router.handle_advertisement(IpAddr::from([10, 0, 0, from]), &adv, now);
        }
        Input::Pass(ms) => {
            bench.now += MS * ms;
            router.handle_timeout(bench.now);
        }
        Input::Configure { priority, interval_s, preempt, vrid, peers, hasten } => {
            let mut config = Config {
                priority,
                advertise_interval_cs: interval_s * 100,
                preempt,
                vrid: Vrid::new(vrid).unwrap(),
                peers: (1..=peers).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
                ..router.config().clone()
            };
            config.interop.hasten_resignation = hasten;
            router.handle_config(config, now);
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_outputs_tell_the_state(
        version3 in any::<bool>(),
        inputs in proptest::collection::vec(any_input(), 1..60),
    ) {
        let mut bench = Bench::new(if version3 { v3() } else { v2() });
        let (mut told, mut holds) = (State::Initialize, false);
        for input in &inputs {
            apply(&mut bench, input);
            let outputs = bench.drain();
            prop_assert!(outputs.len() <= 8, "{:?}", outputs);
            for output in outputs {
                match output {
                    Output::Activate => prop_assert!(!std::mem::replace(&mut holds, true)),
                    Output::Deactivate => prop_assert!(std::mem::replace(&mut holds, false)),
                    Output::AnnounceAddresses => prop_assert!(holds),
                    Output::StateChanged { from, to, .. } => {
                        prop_assert_eq!(from, told);
                        told = to;
                    }
                    Output::Transmit(adv) => {
                        prop_assert!(adv.message(addr(OURS), Ipv4Checksum::default()).is_ok());
                    }
                    Output::TakeoverDue { .. } | Output::Contested { .. } | Output::Prevailed { .. } => {
                        prop_assert!(false, "there is nobody to agree with");
                    }
                }
            }
            prop_assert_eq!(bench.router.state(), told);
            prop_assert_eq!(holds, told == State::Active);
            // Somebody always watches: a timer runs in every state but Initialize, and within
            // three of the longest intervals and Skew_Time.
            let timers = bench.timers();
            prop_assert_eq!(timers.is_empty(), told == State::Initialize);
            let longest = SECOND * 4095 / 100 * 4;
            prop_assert!(timers.iter().all(|(_, left)| *left <= longest), "{:?}", timers);
        }
    }

    #[test]
    fn no_duration_is_too_long(seconds in any::<u64>(), rounds in any::<u8>()) {
        let forever = Duration::from_secs(seconds);
        for long in [forever, Duration::MAX] {
            let mut bench = Bench::new(Config {
                preempt: true,
                preempt_delay: long,
                announcements: Announcements { rounds, spacing: long, again_after: Some(long) },
                ..v2()
            });
            bench.router.handle_startup(bench.now);
            bench.hear(OTHER, 1);
            bench.router.handle_shutdown(bench.now);
            bench.router.handle_adopt_active(bench.now);
            bench.hear(OTHER, 1);
            bench.step();
        }
    }
}

// Helpers.

const OURS: &str = "10.0.0.5";
/// Lower than ours.
const OTHER: &str = "10.0.0.1";
const HIGHER: &str = "10.0.0.9";

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v2() -> Config {
    Config {
        announcements: Announcements::default(),
        primary_address: addr(OURS),
        ..Config::neutron(Vrid::new(191).unwrap(), "10.0.0.5".parse().unwrap())
    }
}

fn v3() -> Config {
    Config { version: Version::V3, ..v2() }
}

fn preempting() -> Config {
    Config { preempt: true, ..v2() }
}

/// Time left of each of `group` after all of them heard `active`.
fn group_of(group: &[&str], active: &str, config: Config) -> Vec<Duration> {
    let time_left = |own: &&str| {
        let peers = group.iter().filter(|peer| *peer != own).map(|peer| addr(peer)).collect();
        let mut bench = Bench::backup(Config { primary_address: addr(own), peers, ..config.clone() });
        bench.hear(active, config.priority);
        bench.left().1
    };
    group.iter().map(time_left).collect()
}

fn changed(from: State, to: State, reason: Reason) -> Output {
    Output::StateChanged { from, to, reason }
}

fn transmit(bench: &Bench) -> Output {
    Output::Transmit(bench.router.config().advertisement())
}

fn taken_over(bench: &Bench, from: State, reason: Reason) -> Vec<Output> {
    vec![transmit(bench), Output::Activate, Output::AnnounceAddresses, changed(from, State::Active, reason)]
}

fn given_up(reason: Reason) -> Vec<Output> {
    vec![Output::Deactivate, changed(State::Active, State::Backup, reason)]
}

fn left_active(reason: Reason) -> Vec<Output> {
    vec![Output::Transmit(v2().resignation()), Output::Deactivate, changed(State::Active, State::Initialize, reason)]
}

/// One router and a clock.
struct Bench {
    router: VirtualRouter,
    now: Instant,
    /// What it did while time passed.
    done: Vec<Output>,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
    fn new(config: Config) -> Self {
        Self { router: VirtualRouter::new(config), now: Instant::now(), done: Vec::new() }
    }

    fn backup(config: Config) -> Self {
        let mut bench = Self::new(config);
        bench.router.handle_startup(bench.now);
        bench.drain();
        bench
    }

    /// An active that has sent its first advertisement just now.
    fn active(config: Config) -> Self {
        let mut bench = Self::new(config);
        bench.router.handle_adopt_active(bench.now);
        bench.drain();
        // Most tests are not about announcements; those that are set their own.
        if let Phase::Active(advertising) = &mut bench.router.phase {
            advertising.announce = None;
        }
        bench
    }

    fn configure(&mut self, config: Config) {
        self.router.handle_config(config, self.now);
    }

    fn hear(&mut self, from: &str, priority: u8) {
        self.hear_interval(from, priority, self.router.config().advertise_interval_cs);
    }

    fn hear_interval(&mut self, from: &str, priority: u8, advertise_interval_cs: u16) {
        let adv = Advertisement { priority, advertise_interval_cs, ..self.router.config().advertisement() };
        self.router.handle_advertisement(addr(from), &adv, self.now);
        self.collect();
    }

    /// Lets time pass, punctually.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some((at, _)) = self.router.poll_timeout()
            && at <= end
        {
            self.now = self.now.max(at);
            self.router.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
    }

    /// Lets time pass until the next timer has fired.
    fn step(&mut self) {
        if let Some((at, _)) = self.router.poll_timeout() {
            self.wait(at - self.now);
        }
    }

    fn expire(&mut self) {
        let (_, left) = self.left();
        self.wait(left);
        self.drain();
    }

    fn collect(&mut self) {
        self.done.extend(std::iter::from_fn(|| self.router.poll_output()));
    }

    fn drain(&mut self) -> Vec<Output> {
        self.collect();
        std::mem::take(&mut self.done)
    }

    fn timers(&self) -> Vec<(Timer, Duration)> {
        self.router.status(self.now).timers
    }

    /// The next timer, and the time left.
    fn left(&self) -> (Timer, Duration) {
        let (at, timer) = self.router.poll_timeout().expect("a timer is running");
        (timer, at - self.now)
    }
}
