//! How often addresses are announced.

use super::*;

#[test]
fn addresses_are_announced_five_times_and_again_after_the_delay() {
    let mut bench = Bench::new(Config { announcements: Announcements::neutron(), ..v2() });
    bench.router.handle_adopt_active(bench.now);
    let start = bench.now;
    let mut at = Vec::new();
    for _ in 0..200 {
        if bench.drain().contains(&Output::AnnounceAddresses) {
            at.push((bench.now - start).as_millis());
        }
        bench.step();
    }
    assert_eq!(at, [0, 100, 200, 300, 400, 60_400, 60_500, 60_600, 60_700, 60_800]);
}

#[test]
fn announcing_once_is_possible() {
    let announcements = Announcements { rounds: 1, spacing: MS, again_after: None };
    let mut bench = Bench::new(Config { announcements, ..v2() });
    bench.router.handle_adopt_active(bench.now);
    bench.drain();
    assert_eq!(bench.timers(), [(Timer::Adver, 2 * SECOND)]);
}

#[test]
fn announcements_end_with_the_role() {
    let mut bench = Bench::new(v2());
    bench.router.handle_adopt_active(bench.now);
    bench.hear(HIGHER, 50);
    bench.drain();
    bench.wait(SECOND);
    assert_eq!(bench.drain(), []);
}
