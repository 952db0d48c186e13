//! Real gateways, links and scripts: the role follows what it is for. Needs root.

#![allow(clippy::wildcard_enum_match_arm, reason = "tests wait for one message among many")]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use evergate_keeper::protocol::*;
use evergate_model::HaState;
use support::*;

const BOTH: [u8; 2] = [1, 2];

#[test]
fn the_role_goes_to_a_copy_that_reaches_the_gateways_and_round_when_none_does() {
    require_root();
    let mut lab = Lab::new(2);
    let gateway = lab.add_gateway();
    let keepers = BOTH.map(|n| lab.keeper(n));
    let mut controls = keepers.each_ref().map(Keeper::control);
    for (n, control) in BOTH.into_iter().zip(&mut controls) {
        control.tell(checking(n, None), &[with_gateways(&lab, n)], &[]);
    }
    eventually("one is active", || lab.vip_holders(&BOTH).len() == 1);
    let first = lab.vip_holders(&BOTH)[0];
    let other = 3 - first;
    for_a_while("gateways that answer, over IPv4 and IPv6, keep the role", Duration::from_secs(5), || {
        lab.vip_holders(&BOTH) == [first]
    });

    // Frames are lost, and no link says so.
    lab.cut("lan", first, true);
    eventually("the other, which reaches them, takes over", || lab.vip_holders(&BOTH) == [other]);
    controls[usize::from(first) - 1].expect("the reason", |message| match message {
        FromKeeper::Transition(transition) => transition.reason.contains("gateway").then_some(()),
        _ => None,
    });
    for_a_while("and keeps it", Duration::from_secs(5), || lab.vip_holders(&BOTH) == [other]);

    lab.cut("lan", first, false);
    for_a_while("the role does not return by itself", Duration::from_secs(3), || lab.vip_holders(&BOTH) == [other]);

    // Nobody reaches them: the role goes round, no faster than the checks can tell.
    controls.iter().for_each(Control::forget);
    sh(&format!("ip -n {gateway} link set eth0 down"));
    // When each was decided, by the keepers' clock in milliseconds, and when it was heard of.
    let takeovers = || {
        let active = |message: &FromKeeper| match message {
            FromKeeper::Transition(it) if it.state == HaState::Active => Some(it.at_ms - it.took_us / 1000),
            _ => None,
        };
        let mut at: Vec<(u64, Instant)> =
            controls.iter().flat_map(|control| control.heard_at(active)).map(|(heard, at)| (at, heard)).collect();
        at.sort_unstable();
        at
    };
    eventually("it has gone round", || takeovers().len() >= 3);
    // Two checks, a second each.
    assert!(takeovers().windows(2).all(|two| two[1].0 - two[0].0 > 1900), "{:?}", takeovers());
    sh(&format!("ip -n {gateway} link set eth0 up"));
    // A check may just have failed for the last time.
    eventually("it rests where they answer", || {
        takeovers().last().is_some_and(|(_, heard)| heard.elapsed() > Duration::from_secs(5))
    });
    assert_eq!(lab.vip_holders(&BOTH).len(), 1);
}

#[test]
fn a_dead_uplink_or_a_failing_script_moves_the_role() {
    require_root();
    let mut lab = Lab::new(2);
    lab.add_gateway();
    let script = lab.run_path(0).with_extension("sh");
    let flag = script.with_extension("fail");
    // It gets the router and its gateways, inside the router's namespace.
    let text = format!(
        "#!/bin/sh\ntest $# = 3 && grep -q qr-1 /proc/net/dev && ! grep -q $(ip -o addr show dev ha-1 | grep -o '192\\.[0-9]*/' | head -1) {}\n",
        flag.display()
    );
    std::fs::write(&script, text).expect("a script can be written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    std::fs::write(&flag, "nobody\n").expect("a file can be written");

    let keepers = BOTH.map(|n| lab.keeper(n));
    let mut controls = keepers.each_ref().map(Keeper::control);
    for (n, control) in BOTH.into_iter().zip(&mut controls) {
        sh(&format!(
            "ip -n {} link add up0 index 77 type veth peer name up1 && ip -n {0} link set up1 up && ip -n {0} link set up0 up",
            lab.name(&format!("h{n}"))
        ));
        let spec = RouterSpec { uplinks: BTreeSet::from([77]), ..with_gateways(&lab, n) };
        control.tell(checking(n, Some(script.display().to_string())), &[spec], &[]);
    }
    eventually("one is active", || lab.vip_holders(&BOTH).len() == 1);
    let first = lab.vip_holders(&BOTH)[0];
    let other = 3 - first;
    for_a_while("the script is content", Duration::from_secs(4), || lab.vip_holders(&BOTH) == [first]);

    sh(&format!("ip -n {} link set up1 down", lab.name(&format!("h{first}"))));
    eventually("the one with an uplink takes over", || lab.vip_holders(&BOTH) == [other]);
    sh(&format!("ip -n {} link set up1 up", lab.name(&format!("h{first}"))));
    eventually("nothing is lacking", || {
        controls.iter_mut().all(|control| control.status().routers[0].impairment.is_empty())
    });

    std::fs::write(&flag, format!("192.{other}/\n")).expect("a file can be written");
    eventually("the one that the script is content with takes over", || lab.vip_holders(&BOTH) == [first]);
}

fn checking(n: u8, script: Option<String>) -> Settings {
    Settings { health: HealthSettings { interval_s: 1, fall: 2, rise: 2, script }, ..settings(n) }
}

fn with_gateways(lab: &Lab, n: u8) -> RouterSpec {
    let spec = lab.spec(n, &BOTH);
    let ifindex = spec.announce[0].ifindex;
    let gateway = |gateway: &str, source: &str| GatewaySpec {
        gateway: gateway.parse::<IpAddr>().expect("an address"),
        link: "qr-1".to_owned(),
        ifindex,
        mac: LAN_MAC,
        source: source.parse().expect("an address"),
    };
    let gateways = vec![gateway("10.0.0.254", "10.0.0.1"), gateway("2001:db8::fe", "2001:db8::1")];
    RouterSpec { gateways, ..spec }
}
