//! Many routers on one host: how long a takeover of all of them takes, and what they cost. Needs root.
//!
//! Ignored by default because it takes a while to make the namespaces:
//! `cargo test -p evergate-keeper --test scale -- --ignored --nocapture`

#![allow(clippy::wildcard_enum_match_arm, reason = "tests wait for one message among many")]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use evergate_keeper::protocol::*;
use evergate_model::{HaState, RouterId};
use support::*;

const ROUTERS: u8 = 200;

#[test]
#[ignore = "makes 200 namespaces"]
fn two_hundred_routers_are_taken_over_at_once() {
    require_root();
    let lab = Lab::with_routers(1, ROUTERS);
    let keeper = lab.keeper(1);
    let mut control = keeper.control();
    control.tell(settings(1), &[], &[]);
    let empty = keeper.memory_kib();
    let specs: Vec<RouterSpec> = (1..=ROUTERS).map(|k| lab.router_spec(k)).collect();
    control.forget();
    let told = Instant::now();
    control.tell(settings(1), &specs, &[]);
    println!("told and opened in {:?}", told.elapsed());
    // All of them have waited equally long, so all take over at once.
    let active = || -> BTreeSet<RouterId> {
        let is_active = |message: &FromKeeper| match message {
            FromKeeper::Transition(transition) if transition.state == HaState::Active => Some(transition.router),
            _ => None,
        };
        control.heard().iter().filter_map(is_active).collect()
    };
    eventually("all are active", || active().len() == usize::from(ROUTERS));
    let times: Vec<(Instant, u64)> = control.heard_at(|message| match message {
        FromKeeper::Transition(transition) if transition.state == HaState::Active => Some(transition.took_us),
        _ => None,
    });
    let (first, last) = (times.first().expect("there are 200").0, times.last().expect("there are 200").0);
    let mut took: Vec<u64> = times.iter().map(|(_, took)| *took).collect();
    took.sort_unstable();
    println!("all active within {:?}; median {} us, worst {} us", last - first, took[100], took[199]);
    std::thread::sleep(Duration::from_secs(3));
    let status = control.status();
    let (memory, files) = (keeper.memory_kib(), keeper.open_files());
    println!("lateness {} us, realtime {}", status.worst_lateness_us, status.realtime);
    println!("memory {empty} KiB empty, {memory} KiB now: {} KiB per router; {files} open files", {
        (memory - empty) / usize::from(ROUTERS)
    });
    assert!((memory - empty) / usize::from(ROUTERS) < 50, "the aim for the whole daemon is 100 KiB per router");
    assert!(last - first < Duration::from_secs(3), "the others' patience");
}
