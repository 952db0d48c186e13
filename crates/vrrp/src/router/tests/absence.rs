//! A process that did not run for a while.

use super::*;

#[test]
fn a_backup_that_was_away_listens_for_an_interval_before_it_takes_over() {
    let mut bench = Bench::backup(v2());
    let (_, whole) = bench.left();
    bench.now += whole + 501 * MS;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), []);
    assert_eq!(bench.left(), (Timer::ActiveDown, 2 * SECOND + SECOND * 206 / 256));
    // Away again: it must not wait for ever.
    bench.now += 100 * SECOND;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::ActiveDown));
}

#[test]
fn a_backup_that_was_away_listens_after_a_resignation_too() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 0);
    bench.now += 30 * SECOND;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), []);
    assert_eq!(bench.left(), (Timer::ActiveDown, 2 * SECOND + SECOND * 206 / 256));
}

#[test]
fn a_backup_is_excused_anew_after_it_heard_an_active() {
    let mut bench = Bench::backup(v2());
    let (_, whole) = bench.left();
    for _ in 0..3 {
        bench.now += whole + 3 * SECOND;
        bench.router.handle_timeout(bench.now);
        assert_eq!(bench.drain(), []);
        bench.hear(OTHER, 50);
    }
}

#[test]
fn a_backup_that_is_a_little_late_takes_over() {
    let mut bench = Bench::backup(v2());
    let (_, whole) = bench.left();
    bench.now += whole + 500 * MS;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::ActiveDown));
}

#[test]
fn an_active_that_was_away_gives_up_and_listens_for_an_interval() {
    let mut bench = Bench::active(v2());
    bench.now += 6 * SECOND + MS;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.drain(), given_up(Reason::Absence));
    assert_eq!(bench.left(), (Timer::ActiveDown, 2 * SECOND + SECOND * 16 / 256));
    // Nobody took over.
    bench.expire();
    assert_eq!(bench.router.state(), State::Active);
}

#[test]
fn an_active_that_was_away_does_not_contest_who_took_over() {
    // It is of a lower address, and its advertisement is read before any timer is looked at.
    let mut bench = Bench::active(v2());
    bench.now += 60 * SECOND;
    bench.hear(OTHER, 50);
    assert_eq!(bench.drain(), given_up(Reason::Absence));
    assert_eq!(bench.router.status(bench.now).active, Some(addr(OTHER)));
    assert_eq!(bench.left().1, 6 * SECOND + SECOND * 206 / 256);
}

#[test]
fn a_change_of_configuration_does_not_hide_an_absence() {
    let mut bench = Bench::active(v2());
    bench.now += 60 * SECOND;
    bench.configure(Config { priority: 60, ..v2() });
    assert_eq!(bench.drain(), given_up(Reason::Absence));
}

#[test]
fn an_address_owner_that_was_away_stays_active() {
    let mut bench = Bench::active(Config { priority: 255, ..v2() });
    bench.now += 60 * SECOND;
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.router.state(), State::Active);
}
