//! What another path says of the active's host.

use super::*;

/// The news that `peer` was last heard `ago` before now on a path of 300 ms x 3.
fn gone(bench: &Bench, peer: &str, ago: Duration) -> PeerDown {
    PeerDown { peer: addr(peer), last_heard: bench.now - ago, interval: 300 * MS, listen: 20 * MS }
}

#[test]
fn a_host_that_is_gone_is_replaced_after_a_short_listen_by_rank() {
    // OTHER is active; of the rest the highest goes first, the next waits an interval and a listen longer.
    let group = [(HIGHER, 20 * MS), ("10.0.0.5", 340 * MS)];
    for (own, expected) in group {
        let peers = [OTHER, HIGHER, "10.0.0.5"].map(addr).into_iter().filter(|peer| *peer != addr(own)).collect();
        let mut bench = Bench::backup(Config { primary_address: addr(own), peers, ..v2() });
        bench.hear(OTHER, 50);
        bench.wait(900 * MS);
        assert_eq!(bench.router.handle_peer_down(&gone(&bench, OTHER, 900 * MS), bench.now), Suspicion::Listening);
        assert_eq!(bench.left(), (Timer::ActiveDown, expected), "{own}");
        bench.wait(expected);
        assert_eq!(bench.drain(), taken_over(&bench, State::Backup, Reason::PeerDown));
    }
}

#[test]
fn an_active_that_was_heard_after_its_last_sign_of_life_elsewhere_is_left_alone() {
    // Heard 500 ms ago here, 900 ms ago there: it outlived the other path by more than an interval.
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 50);
    bench.wait(500 * MS);
    let before = bench.left();
    assert_eq!(bench.router.handle_peer_down(&gone(&bench, OTHER, 900 * MS), bench.now), Suspicion::Contradicted);
    assert_eq!(bench.left(), before);
}

#[test]
fn an_active_that_answers_ends_the_suspicion() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 50);
    let whole = bench.left().1;
    bench.wait(900 * MS);
    bench.router.handle_peer_down(&gone(&bench, OTHER, 900 * MS), bench.now);
    bench.wait(10 * MS);
    bench.hear(OTHER, 50);
    assert_eq!(bench.left(), (Timer::ActiveDown, whole));
    assert!(!bench.router.status(bench.now).suspects);
}

#[test]
fn a_host_that_is_gone_matters_to_backups_of_its_routers_alone() {
    let mut backup = Bench::backup(v2());
    assert_eq!(backup.router.handle_peer_down(&gone(&backup, OTHER, SECOND), backup.now), Suspicion::Irrelevant);
    backup.hear(HIGHER, 50);
    let before = backup.left();
    assert_eq!(backup.router.handle_peer_down(&gone(&backup, OTHER, SECOND), backup.now), Suspicion::Irrelevant);
    assert_eq!(backup.left(), before);
    let mut active = Bench::active(v2());
    assert_eq!(active.router.handle_peer_down(&gone(&active, OTHER, SECOND), active.now), Suspicion::Irrelevant);
    assert_eq!(active.drain(), []);
}

#[test]
fn the_news_never_makes_a_backup_wait_longer() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 50);
    let soon = bench.left().1 - 5 * MS;
    bench.now += soon;
    bench.router.handle_peer_down(&gone(&bench, OTHER, soon), bench.now);
    assert_eq!(bench.left().1, 5 * MS);
}

#[test]
fn an_active_answers_whoever_asks_it_alone() {
    let mut bench = Bench::active(v2());
    let asked = bench.router.solicitation();
    bench.router.handle_advertisement(addr(OTHER), &asked, bench.now);
    assert_eq!(bench.drain(), [transmit(&bench)]);
}
