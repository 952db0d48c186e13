//! Copies that agree on other paths: silence and contests only raise a question.

use super::*;

fn agreeing() -> Config {
    let others = || [addr(OTHER), addr(HIGHER)].into();
    Config { peers: others(), agreement: Some(others()), ..v2() }
}

fn due(active: Option<&str>) -> Output {
    Output::TakeoverDue { active: active.map(addr) }
}

#[test]
fn who_waited_for_the_first_active_in_vain_asks_whether_there_is_one() {
    let mut bench = Bench::new(agreeing());
    bench.router.handle_first_startup(bench.now);
    bench.drain();
    bench.step();
    assert_eq!(bench.drain(), [due(None)]);
    bench.router.handle_permission(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::First));
}

#[test]
fn silence_asks_and_permission_takes_over() {
    let mut bench = Bench::backup(agreeing());
    bench.hear(HIGHER, 50);
    bench.step();
    assert_eq!(bench.drain(), [due(Some(HIGHER))]);
    bench.wait(SECOND);
    assert_eq!(bench.drain(), [due(Some(HIGHER))], "asked again if the caller says nothing");
    bench.router.handle_permission(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::ActiveDown));
}

#[test]
fn a_refusal_is_as_good_as_an_advertisement() {
    let mut bench = Bench::backup(agreeing());
    bench.hear(HIGHER, 50);
    let (_, whole) = bench.left();
    bench.step();
    bench.router.handle_refusal(Some(addr(HIGHER)), None, bench.now);
    assert_eq!(bench.left(), (Timer::ActiveDown, whole));
    bench.router.handle_permission(bench.now);
    assert_eq!(bench.router.state(), State::Backup, "it is not due any more");
    bench.step();
    bench.router.handle_refusal(None, Some(300 * MS), bench.now);
    assert_eq!(bench.left(), (Timer::ActiveDown, 300 * MS));
}

#[test]
fn another_version_moves_nothing_among_copies_that_agree() {
    let third = || Config { agreement: agreeing().agreement, peers: agreeing().peers, ..v3() };
    let mut bench = Bench::active(agreeing());
    bench.configure(third());
    let expected = bench.router.config().advertisement();
    assert_eq!((expected.version, bench.drain()), (Version::V3, vec![Output::Transmit(expected)]));
    assert_eq!(bench.router.state(), State::Active);
    // A backup starts its wait anew: it cannot blame the active for what it could not have understood.
    let mut bench = Bench::backup(agreeing());
    bench.hear(HIGHER, 50);
    bench.wait(SECOND);
    bench.configure(third());
    assert_eq!(bench.drain(), []);
    let (timer, left) = bench.left();
    assert_eq!(timer, Timer::ActiveDown);
    assert!(left >= 3 * third().advertise_interval(), "{left:?}");
    // Where only silence decides, it is another virtual router, as ever.
    let mut bench = Bench::active(v2());
    bench.configure(v3());
    assert_eq!(bench.router.state(), State::Backup);
}

#[test]
fn an_advertisement_answers_the_question() {
    let mut bench = Bench::backup(agreeing());
    bench.step();
    bench.hear(OTHER, 50);
    bench.router.handle_permission(bench.now);
    assert_eq!(bench.router.state(), State::Backup);
}

#[test]
fn who_resigns_or_is_to_be_preempted_is_not_asked() {
    let mut bench = Bench::backup(agreeing());
    bench.hear(HIGHER, 0);
    bench.step();
    assert_eq!(bench.router.state(), State::Active);

    let mut bench = Bench::backup(Config { preempt: true, priority: 100, ..agreeing() });
    bench.hear(HIGHER, 50);
    bench.step();
    assert_eq!(bench.router.state(), State::Active);
}

#[test]
fn the_resignation_of_one_that_was_replaced_is_stale() {
    let mut bench = Bench::backup(agreeing());
    bench.hear(OTHER, 50);
    let before = bench.left();
    bench.hear(HIGHER, 0);
    assert_eq!(bench.left(), before);
    // Not if the other one is not heard either.
    bench.wait(3 * SECOND);
    bench.hear(HIGHER, 0);
    bench.wait(SECOND);
    assert_eq!(bench.router.state(), State::Active);
}

#[test]
fn a_superseded_active_steps_down_at_once_and_without_a_word() {
    let mut bench = Bench::active(agreeing());
    bench.router.handle_superseded(Some(addr(OTHER)), bench.now);
    assert_eq!(bench.drain(), given_up(Reason::Superseded));
    bench.router.handle_superseded(None, bench.now);
    assert_eq!(bench.drain(), []);
}

#[test]
fn an_isolated_active_resigns_and_listens() {
    let mut bench = Bench::active(agreeing());
    let resignation = Output::Transmit(bench.router.solicitation());
    bench.router.handle_isolation(bench.now);
    let mut expected = vec![resignation];
    expected.extend(given_up(Reason::Isolated));
    assert_eq!(bench.drain(), expected);
    bench.step();
    assert_eq!(bench.drain(), [due(None)]);
}

#[test]
fn a_handover_takes_over_at_once() {
    let mut bench = Bench::backup(agreeing());
    bench.hear(HIGHER, 50);
    bench.router.handle_handover(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::Handover));
    bench.router.handle_handover(bench.now);
    assert_eq!(bench.drain(), []);
}

#[test]
fn a_contest_among_those_who_agree_waits_and_then_addresses_decide() {
    for (rival, state) in [(HIGHER, State::Backup), (OTHER, State::Active)] {
        let mut bench = Bench::active(agreeing());
        bench.hear(rival, 50);
        let expected = [Output::Contested { with: addr(rival) }, transmit(&bench)];
        assert_eq!(bench.drain(), expected);
        bench.hear(rival, 50);
        assert_eq!(bench.drain(), [], "not at the speed of the wire");
        bench.wait(199 * MS);
        assert_eq!(bench.router.state(), State::Active);
        bench.wait(MS);
        assert_eq!(bench.router.state(), state);
        let prevailed = bench.drain().contains(&Output::Prevailed { over: addr(rival) });
        assert_eq!(prevailed, state == State::Active);
    }
}

#[test]
fn one_that_was_asked_to_take_over_is_not_taken_for_one_that_goes_on_after_a_contest() {
    for asked in [true, false] {
        let mut bench = Bench::active(agreeing());
        bench.hear(HIGHER, 50);
        bench.router.handle_settled(addr(HIGHER), bench.now);
        if asked {
            bench.router.handle_offer();
        }
        bench.hear(HIGHER, 50);
        assert_eq!(bench.router.state(), if asked { State::Active } else { State::Backup });
    }
}

#[test]
fn a_contest_that_is_settled_is_over_unless_the_other_goes_on() {
    let mut bench = Bench::active(agreeing());
    bench.hear(HIGHER, 50);
    bench.router.handle_settled(addr(OTHER), bench.now);
    assert_eq!(bench.router.status(bench.now).contest.0, Some(addr(HIGHER)), "not that one");
    bench.router.handle_settled(addr(HIGHER), bench.now);
    bench.wait(SECOND);
    assert_eq!(bench.router.state(), State::Active);
    bench.hear(HIGHER, 50);
    assert_eq!(bench.router.state(), State::Backup, "it does not agree after all");
}

#[test]
fn strangers_and_other_priorities_are_met_as_the_rfc_says() {
    let mut bench = Bench::active(agreeing());
    bench.hear("10.0.0.10", 50);
    assert_eq!(bench.router.state(), State::Backup);
    let mut bench = Bench::active(agreeing());
    bench.hear(OTHER, 51);
    assert_eq!(bench.router.state(), State::Backup);
}
