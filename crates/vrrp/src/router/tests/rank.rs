//! Copies of equal priority that know each other.

use super::*;

#[test]
fn copies_of_equal_priority_wait_in_the_order_of_their_addresses() {
    // All have heard the same active, a stranger; the highest address among them goes first.
    let left = group_of(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], "10.0.0.9", v2());
    let step = SECOND * 16 / 256;
    assert_eq!(left[1] - left[2], step);
    assert_eq!(left[0] - left[1], step);
    // The first waits what RFC 3768 says.
    assert_eq!(left[2], 6 * SECOND + SECOND * 206 / 256);
}

#[test]
fn the_active_that_fell_silent_has_no_rank() {
    let left = group_of(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], "10.0.0.2", v2());
    assert_eq!(left[2], 6 * SECOND + SECOND * 206 / 256);
    assert_eq!(left[0] - left[2], SECOND * 16 / 256);
}

#[test]
fn rank_never_waits_longer_than_priority_1_does() {
    let many: Vec<String> = (1..=60).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for priority in [1, 2, 50, 100, 254] {
        for config in [v2(), v3()] {
            let unit = if config.version == Version::V2 { SECOND } else { 2 * SECOND };
            let left = group_of(&many, "10.0.0.60", Config { priority, ..config });
            assert!(left.iter().all(|left| *left <= 6 * SECOND + unit * 255 / 256));
            // Everybody but the active has a moment of its own, if there is room at all.
            let mut order = left[..59].to_vec();
            order.dedup();
            assert_eq!(order.len(), if priority == 1 { 1 } else { 59 });
        }
    }
}

#[test]
fn a_copy_that_has_heard_nobody_goes_half_a_step_after_those_that_have() {
    let peers = ["10.0.0.2", "10.0.0.3"].map(addr).into();
    let bench = Bench::backup(Config { primary_address: addr("10.0.0.4"), peers, ..v2() });
    assert_eq!(bench.left().1, 6 * SECOND + SECOND * 206 / 256 + SECOND * 8 / 256);
}

#[test]
fn without_known_peers_there_is_no_rank() {
    let bench = Bench::backup(v2());
    assert_eq!(bench.left().1, 6 * SECOND + SECOND * 206 / 256);
}

#[test]
fn rank_applies_to_a_resignation_too() {
    let peers = ["10.0.0.2", "10.0.0.3"].map(addr).into();
    let mut bench = Bench::backup(Config { primary_address: addr("10.0.0.1"), peers, ..v2() });
    bench.hear("10.0.0.2", 0);
    assert_eq!(bench.left().1, SECOND * 206 / 256 + SECOND * 16 / 256);
}

#[test]
fn a_peers_resignation_is_followed_at_once_where_that_is_configured() {
    let interop = Interop { hasten_resignation: true, ..Interop::default() };
    let peers = ["10.0.0.2", "10.0.0.3"].map(addr).into();
    let config = Config { primary_address: addr("10.0.0.1"), peers, interop, ..v2() };
    let mut bench = Bench::backup(config.clone());
    bench.hear("10.0.0.2", 0);
    assert_eq!(bench.left().1, SECOND * 8 / 256 + SECOND * 16 / 256);
    // A stranger's is not: it may have friends of higher priority.
    let mut bench = Bench::backup(config);
    bench.hear("10.0.0.9", 0);
    assert!(bench.left().1 >= SECOND * 206 / 256);
}
