//! Keeper processes on a real HA network. Needs root.

#![allow(clippy::wildcard_enum_match_arm, reason = "tests wait for one message among many")]

mod support;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use evergate_keeper::protocol::*;
use evergate_model::HaState;
use support::*;

const BOTH: [u8; 2] = [1, 2];

/// Two keepers with a copy each, of which the second (it has the higher address) is active.
struct Pair {
    lab: Lab,
    keepers: Vec<Keeper>,
    controls: Vec<Control>,
}

impl Pair {
    fn elected() -> Self {
        let lab = Lab::new(2);
        let keepers: Vec<Keeper> = BOTH.iter().map(|&n| lab.keeper(n)).collect();
        let mut controls: Vec<Control> = keepers.iter().map(Keeper::control).collect();
        // The second first, so that its timer does not run behind the other's.
        for (&n, control) in BOTH.iter().zip(&mut controls).rev() {
            control.tell(settings(n), &[lab.spec(n, &BOTH)], &[]);
        }
        controls[1].expect_transition(HaState::Active);
        assert_eq!(lab.vip_holders(&BOTH), [2], "one copy has the virtual address: {:#?}", controls[0].heard());
        controls.iter().for_each(Control::forget);
        Self { lab, keepers, controls }
    }

    /// The same, and each knows the other's host.
    fn acquainted() -> Self {
        let mut pair = Self::elected();
        for n in BOTH {
            let spec = pair.acquainted_spec(n);
            pair.controls[usize::from(n) - 1].say(&ToKeeper::Router(Box::new(spec)));
        }
        let known = || pair.controls[0].status().claims.first().is_some_and(|claim| claim.vtep == Some(vtep(2)));
        eventually("the standby knows where the active is", known);
        pair
    }

    fn acquainted_spec(&self, n: u8) -> RouterSpec {
        let others = BOTH.iter().filter(|other| **other != n);
        let hosts = others.map(|other| (self.lab.spec(*other, &BOTH).ha_address.addr(), vtep(*other)));
        let claim_to = BOTH.iter().map(|&n| vtep(n)).collect();
        RouterSpec { peer_hosts: hosts.collect(), claim_to, ..self.lab.spec(n, &BOTH) }
    }
}

#[test]
fn one_copy_is_elected_and_the_other_takes_over_when_its_host_is_lost() {
    require_root();
    let mut pair = Pair::elected();
    let router = pair.lab.name("r2");
    assert!(output(&format!("ip -n {router} route")).contains("default via 10.0.0.254 dev qr-1 proto static"));
    assert!(output(&format!("ip -n {router} addr show qr-1")).contains("10.0.0.1/24"));
    let standby = pair.lab.name("r1");
    assert!(!output(&format!("ip -n {standby} addr show qr-1")).contains("10.0.0.1/24"));

    // The host loses power: its keeper is gone, and so is its link.
    pair.keepers[1].kill();
    pair.lab.cut("ha", 2, true);
    pair.lab.cut("lan", 2, true);
    let transition = pair.controls[0].expect_transition(HaState::Active).1;
    assert!(transition.reason.contains("three intervals"), "{transition:?}");
    assert!(transition.took_us > 0 && transition.at_ms > 0);
    assert!(pair.lab.has_vip(1));

    // It comes back as backup, and leaves the role where it is.
    pair.lab.cut("ha", 2, false);
    pair.lab.cut("lan", 2, false);
    let keeper = pair.lab.keeper(2);
    let mut control = keeper.control();
    // What a reboot would have cleared:
    sh(&format!("ip -n {router} addr del {VIP} dev ha-1"));
    control.tell(settings(2), &[pair.lab.spec(2, &BOTH)], &[]);
    eventually("the old active is a backup that hears the new one", || {
        control.status().routers[0].heard_from == Some([169, 254, 192, 1].into())
    });
    assert_eq!(pair.lab.vip_holders(&BOTH), [1]);
    assert!(!output(&format!("ip -n {router} addr show qr-1")).contains("10.0.0.1/24"), "leftovers are removed");
}

#[test]
fn a_killed_keeper_that_comes_back_adopts_without_a_flap() {
    require_root();
    let mut pair = Pair::elected();
    let mut changes = Changes::watch(&pair.lab.name("r2"), pair.lab.run_path(2).join("monitor"));
    pair.keepers[1].kill();
    assert!(pair.lab.has_vip(2), "the kernel goes on forwarding");
    let keeper = pair.lab.keeper(2);
    let mut control = keeper.control();
    let status = control.tell(settings(2), &[pair.lab.spec(2, &BOTH)], &[]);
    assert_eq!(status.routers[0].vrrp_state, "active", "{status:?}");
    let transition = control.expect_transition(HaState::Active).1;
    assert!(transition.reason.contains("restarted"), "{transition:?}");
    for_a_while("the virtual address is where it was", Duration::from_secs(4), || pair.lab.vip_holders(&BOTH) == [2]);
    let transitions = pair.controls[0].heard().iter().any(|message| matches!(message, FromKeeper::Transition(_)));
    assert!(!transitions, "the backup did not notice");
    let changes = changes.until_now();
    assert!(!changes.contains("Deleted"), "{changes}");
}

/// Every change of an address or a route in a namespace.
struct Changes {
    monitor: Child,
    netns: String,
    log: PathBuf,
    markers: u16,
}

impl Changes {
    /// Returns when nothing that happens from then on is missed.
    fn watch(netns: &str, log: PathBuf) -> Self {
        let monitor = Command::new("ip")
            .args(["-n", netns, "monitor", "address", "route"])
            .stdout(File::create(&log).expect("a file can be made"))
            .spawn()
            .expect("ip runs");
        let mut changes = Self { monitor, netns: netns.to_owned(), log, markers: 0 };
        changes.until_now();
        changes
    }

    /// All of them up to now: those that come after something else that was changed are later.
    fn until_now(&mut self) -> String {
        let (mut text, mut markers) = (String::new(), Vec::new());
        eventually("what is changed is seen", || {
            // A further one each time: the first ones are missed while the monitor starts.
            self.markers += 1;
            let marker = format!("198.18.{}.{}/32", self.markers >> 8, self.markers & 255);
            sh(&format!("ip -n {} addr add {marker} dev lo", self.netns));
            markers.push(marker);
            text = std::fs::read_to_string(&self.log).expect("it is there");
            markers.iter().any(|marker| text.contains(marker))
        });
        text
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

#[test]
fn sigterm_resigns_and_leaves_nothing() {
    require_root();
    let mut pair = Pair::elected();
    pair.keepers[1].signal("TERM");
    // Skew_Time later, and not after three intervals.
    let transition = pair.controls[0].expect_transition(HaState::Active).1;
    assert!(transition.reason.contains("resigned"), "{transition:?}");
    assert!(pair.keepers[1].wait(), "exit code 0");
    assert_eq!(pair.lab.vip_holders(&BOTH), [1]);
    let router = pair.lab.name("r2");
    assert!(!output(&format!("ip -n {router} addr")).contains("10.0.0.1"));
    assert!(!output(&format!("ip -n {router} route")).contains("default"));
    assert!(!pair.lab.run_path(2).join(SOCKET_NAME).exists());
}

#[test]
fn sigterm_hands_over_where_hosts_know_each_other_and_the_other_one_is_ready_first() {
    require_root();
    let mut pair = Pair::acquainted();
    pair.keepers[1].signal("TERM");
    let taken = pair.controls[0].expect_transition(HaState::Active).1;
    assert!(taken.reason.contains("handed over"), "{taken:?}");
    let given = pair.controls[1].expect_transition(HaState::Standby).1;
    assert!(given.reason.contains("another copy became active since"), "{given:?}");
    assert!(taken.at_ms <= given.at_ms, "{taken:?}, {given:?}");
    assert!(pair.keepers[1].wait(), "exit code 0");
    assert_eq!(pair.lab.vip_holders(&BOTH), [1]);
}

#[test]
fn a_keeper_that_is_replaced_leaves_word_whether_others_were_asked_for_patience() {
    require_root();
    for (interval_ms, word) in [(0, ""), (150, "excused")] {
        let lab = Lab::new(1);
        let mut keeper = lab.keeper(1);
        let bfd = BfdSettings { interval_ms, multiplier: 3 };
        keeper.control().tell(Settings { bfd, ..settings(1) }, &[lab.spec(1, &[1])], &[]);
        keeper.signal("HUP");
        assert!(keeper.wait());
        let sign = std::fs::read_to_string(lab.run_path(1).join("keeper.alive")).expect("it lived");
        assert_eq!(sign, word, "BFD every {interval_ms} ms");
    }
}

#[test]
fn whoever_was_frozen_neither_takes_the_role_from_a_living_active_nor_contests_who_took_it() {
    require_root();
    let Pair { lab, keepers, controls } = Pair::elected();
    // A backup that did not run for longer than it would wait in silence: what it did not hear proves nothing.
    keepers[0].signal("STOP");
    for_a_while("the active goes on", Duration::from_secs(6), || lab.has_vip(2));
    keepers[0].signal("CONT");
    for_a_while("and the one that wakes leaves it the role", Duration::from_secs(4), || lab.vip_holders(&BOTH) == [2]);

    // An active that did not run for so long was replaced. It has the higher address, and would win a contest.
    keepers[1].signal("STOP");
    eventually("the backup takes over", || lab.has_vip(1));
    keepers[1].signal("CONT");
    eventually("the one that wakes steps down", || lab.vip_holders(&BOTH) == [1]);
    for_a_while("for good", Duration::from_secs(5), || lab.vip_holders(&BOTH) == [1]);
    let transition = controls[1].expect_transition(HaState::Standby).1;
    assert!(transition.reason.contains("was away"), "{transition:?}");
}

#[test]
fn a_lost_carrier_moves_the_role_and_its_return_does_not_move_it_back() {
    require_root();
    let pair = Pair::elected();
    pair.lab.carrier(2, false);
    let transition = pair.controls[1].expect_transition(HaState::Standby).1;
    assert!(transition.reason.contains("HA interface"), "{transition:?}");
    pair.controls[0].expect_transition(HaState::Active);
    pair.lab.carrier(2, true);
    for_a_while("the role stays", Duration::from_secs(4), || pair.lab.vip_holders(&BOTH) == [1]);
}

#[test]
fn an_ha_interface_that_is_downed_moves_the_role_and_its_host_comes_back_as_backup() {
    require_root();
    let mut pair = Pair::elected();
    let router = pair.lab.name("r2");
    sh(&format!("ip -n {router} link set ha-1 down"));
    let transition = pair.controls[1].expect_transition(HaState::Standby).1;
    assert!(transition.reason.contains("HA interface is down"), "{transition:?}");
    let transition = pair.controls[0].expect_transition(HaState::Active).1;
    assert!(transition.reason.contains("three intervals"), "{transition:?}");
    eventually("the new active alone has the addresses", || {
        pair.lab.vip_holders(&BOTH) == [1] && !output(&format!("ip -n {router} addr show qr-1")).contains("10.0.0.1/24")
    });
    sh(&format!("ip -n {router} link set ha-1 up"));
    eventually("the old active is a backup that hears the new one", || {
        let copy = pair.controls[1].status().routers.remove(0);
        copy.vrrp_state == "backup" && copy.heard_from == Some([169, 254, 192, 1].into())
    });
    for_a_while("the role stays", Duration::from_secs(4), || pair.lab.vip_holders(&BOTH) == [1]);
}

#[test]
fn a_cut_ha_network_moves_nothing_while_the_hosts_reach_each_other() {
    require_root();
    let pair = Pair::acquainted();
    pair.lab.cut("ha", 2, true);
    pair.controls[0].expect("a warning", |message| match message {
        FromKeeper::Warning { text } if text.contains("192.0.2.2 is not heard on the HA network") => Some(()),
        _ => None,
    });
    for_a_while("the role stays", Duration::from_secs(5), || pair.lab.vip_holders(&BOTH) == [2]);
    pair.lab.cut("ha", 2, false);
    pair.controls[0].expect("an all-clear", |message| match message {
        FromKeeper::Note { text, .. } if text.contains("heard on the HA network again") => Some(()),
        _ => None,
    });
}

/// Changed host by host, copies do not understand each other on the HA network for a while.
#[test]
fn another_version_host_by_host_moves_nothing_whoever_comes_first() {
    require_root();
    for first in [1, 2] {
        let mut pair = Pair::acquainted();
        for n in [first, 3 - first] {
            let old = pair.acquainted_spec(n);
            let third = RouterSpec { vrrp_version: 3, advertise_interval_cs: 50, ..old };
            pair.controls[usize::from(n) - 1].say(&ToKeeper::Router(Box::new(third)));
            // Longer than anybody waits who does not understand the other: three intervals of a second, and the skew.
            let time = Duration::from_secs(if n == first { 5 } else { 1 });
            for_a_while("the role stays", time, || pair.lab.vip_holders(&BOTH) == [2]);
        }
        let received = |control: &mut Control| control.status().routers[0].received;
        let before = received(&mut pair.controls[0]);
        eventually("the standby hears the active again", || received(&mut pair.controls[0]) > before + 2);
        pair.keepers[1].kill();
        pair.lab.cut("ha", 2, true);
        pair.lab.cut("ul", 2, true);
        eventually("and takes over from it", || pair.lab.has_vip(1));
    }
}

#[test]
fn two_actives_that_hear_each_other_again_become_one_and_the_newer_claim_wins() {
    require_root();
    // Of two hosts, none knows that it is cut off. Either way may heal first.
    for first in ["ha", "ul"] {
        let mut pair = Pair::acquainted();
        pair.lab.cut("ha", 2, true);
        pair.lab.cut("ul", 2, true);
        eventually("both are active", || pair.lab.vip_holders(&BOTH) == BOTH);
        pair.lab.cut(first, 2, false);
        eventually("one is left", || pair.lab.vip_holders(&BOTH).len() == 1);
        pair.lab.cut(if first == "ha" { "ul" } else { "ha" }, 2, false);
        let one = pair.lab.vip_holders(&BOTH)[0];
        // Only while claims do not pass, the address decides.
        assert!(one == 1 || first == "ha", "the older one is left");
        for control in &mut pair.controls {
            let known = || control.status().claims.first().is_some_and(|claim| claim.vtep == Some(vtep(one)));
            eventually("both know which", known);
        }
        for_a_while("it stays", Duration::from_secs(5), || pair.lab.vip_holders(&BOTH) == [one]);
    }
}

#[test]
fn forwarding_on_other_hosts_follows_the_active_copy() {
    require_root();
    let lab = Lab::new(3);
    let host = lab.name("h3");
    sh(&format!(
        "ip -n {host} link add br0 type bridge && ip -n {host} link set br0 up && \
         ip -n {host} link add vxlan-7 type vxlan id 7 local 192.0.2.3 dstport 4789 nolearning && \
         ip -n {host} link set vxlan-7 master br0 && ip -n {host} link set vxlan-7 up"
    ));
    let entry = FollowEntry { mac: LAN_MAC, vxlan_ifindex: lab.ifindex("h3", "vxlan-7"), tap_ifindex: None };
    let follow = FollowSpec { router: ROUTER, epoch: 0, vtep: None, entries: vec![entry] };
    let mut observer = lab.keeper(3);
    let mut observer_control = observer.control();
    observer_control.tell(settings(3), &[], std::slice::from_ref(&follow));

    let mut keepers: Vec<Keeper> = BOTH.iter().map(|&n| lab.keeper(n)).collect();
    let mut controls: Vec<Control> = keepers.iter().map(Keeper::control).collect();
    for (&n, control) in BOTH.iter().zip(&mut controls).rev() {
        let spec = RouterSpec { claim_to: [1, 2, 3].map(vtep).into(), ..lab.spec(n, &BOTH) };
        control.tell(settings(n), &[spec], &[]);
    }
    let entries = || output(&format!("bridge -n {host} fdb show dev vxlan-7 | grep {LAN_MAC}"));
    let nexthops = || output(&format!("ip -n {host} nexthop"));
    let points_to = |n: u8| {
        let entries = entries();
        let path = entries.split("nhid ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("none").to_owned();
        // The path's group has one member, which has the number before it.
        let leaf = path.parse().map_or(0, |group: u32| group - 1);
        nexthops().contains(&format!("id {leaf} via 192.0.2.{n} ")) && entries.contains("master br0")
    };
    eventually("forwarding points to the active", || points_to(2));
    keepers[1].signal("TERM");
    eventually("and follows it", || points_to(1));
    keepers[1].wait();
    observer_control.expect("a claim", |message| match message {
        FromKeeper::Claimed { epoch: 2, vtep: claimant, .. } if *claimant == vtep(1) => Some(()),
        _ => None,
    });
    // A keeper that starts again finds them, and moves nothing.
    let before = (entries(), nexthops());
    observer.signal("KILL");
    observer.wait();
    let observer = lab.keeper(3);
    let mut observer_control = observer.control();
    let follow = FollowSpec { epoch: 2, vtep: Some(vtep(1)), ..follow };
    observer_control.tell(settings(3), &[], &[follow]);
    observer_control.expect("its status", |message| matches!(message, FromKeeper::Status(_)).then_some(()));
    assert_eq!((entries(), nexthops()), before);
    observer_control.say(&ToKeeper::Unfollow { router: ROUTER });
    eventually("what is not followed is removed", || entries().is_empty() && nexthops().is_empty());
}

#[test]
fn a_removed_router_does_not_pin_its_namespace() {
    require_root();
    let mut pair = Pair::elected();
    pair.controls[1].say(&ToKeeper::RemoveRouter { router: ROUTER, how: Removal::Leaves });
    pair.controls[1].expect("the answer", |message| matches!(message, FromKeeper::Removed { .. }).then_some(()));
    assert!(!pair.lab.has_vip(2));
    sh(&format!("ip netns del {}", pair.lab.name("r2")));
    let peer = format!("ip -n {} link show ha-2 2>/dev/null", pair.lab.name("wire"));
    eventually("the namespace is gone with its devices", || output(&peer).is_empty());
    pair.controls[0].expect_transition(HaState::Active);
}

#[test]
fn a_link_that_went_down_and_up_has_its_routes_again() {
    require_root();
    let pair = Pair::elected();
    let router = pair.lab.name("r2");
    sh(&format!("ip -n {router} link set qr-1 down && ip -n {router} link set qr-1 up"));
    eventually("the default route is back", || output(&format!("ip -n {router} route")).contains("default"));
}

#[test]
fn an_ha_interface_that_was_made_anew_is_listened_on() {
    require_root();
    let mut pair = Pair::elected();
    let Pair { lab, controls, .. } = &mut pair;
    lab.replace_ha_link(2, || {
        controls[1].expect_transition(HaState::Standby);
    });
    controls[0].expect_transition(HaState::Active);
    eventually("the new interface is heard on", || {
        let copy = &controls[1].status().routers[0];
        copy.vrrp_state == "backup" && copy.heard_from == Some([169, 254, 192, 1].into())
    });
}

#[test]
fn a_namespace_that_was_made_anew_is_entered_and_the_old_one_let_go() {
    require_root();
    let mut pair = Pair::elected();
    pair.lab.replace_router_namespace(2);
    let spec = pair.lab.spec(2, &BOTH);
    pair.controls[1].say(&ToKeeper::Router(Box::new(spec)));
    eventually("the copy takes part in the new one", || {
        let copy = &pair.controls[1].status().routers[0];
        copy.vrrp_state == "backup" && copy.heard_from == Some([169, 254, 192, 1].into())
    });
    let old = format!("ip -n {} link show old-ha 2>/dev/null", pair.lab.name("wire"));
    eventually("the old one is gone", || output(&old).is_empty());
    assert_eq!(pair.lab.vip_holders(&BOTH), [1]);
}

#[test]
fn new_addresses_reach_an_active_copy_and_old_ones_leave_it() {
    require_root();
    let mut pair = Pair::elected();
    let router = pair.lab.name("r2");
    let mut spec = pair.lab.spec(2, &BOTH);
    let link = spec.announce[0].ifindex;
    spec.items.push(Item {
        key: "floating".to_owned(),
        place: Place::Router,
        add: netlink::address(true, link, "203.0.113.9/32"),
        del: netlink::address(false, link, "203.0.113.9/32"),
    });
    pair.controls[1].say(&ToKeeper::Router(Box::new(spec.clone())));
    let has = |address: &str| output(&format!("ip -n {router} addr")).contains(address);
    eventually("the new address is there", || has("203.0.113.9/32"));
    spec.items.pop();
    pair.controls[1].say(&ToKeeper::Router(Box::new(spec)));
    eventually("the old one is gone", || !has("203.0.113.9/32"));
    assert!(has("10.0.0.1/24"));
}

/// keepalived's advertisements have room for 20, and Neutron's addresses are not in them.
#[test]
fn any_number_of_addresses_moves_with_the_role() {
    require_root();
    let mut pair = Pair::elected();
    let floating: Vec<String> = (1..=100).map(|n| format!("203.0.113.{n}/32")).collect();
    for n in BOTH {
        let mut spec = pair.lab.spec(n, &BOTH);
        let link = spec.announce[0].ifindex;
        spec.items.extend(floating.iter().map(|net| Item {
            key: format!("address {net} on qr-1"),
            place: Place::Router,
            add: netlink::address(true, link, net),
            del: netlink::address(false, link, net),
        }));
        pair.controls[usize::from(n) - 1].say(&ToKeeper::Router(Box::new(spec)));
    }
    let held = |lab: &Lab, n: u8| {
        let seen = output(&format!("ip -n {} -o addr show dev qr-1", lab.name(&format!("r{n}"))));
        floating.iter().filter(|net| seen.contains(&format!(" {net} "))).count()
    };
    eventually("the active copy has them all", || (held(&pair.lab, 1), held(&pair.lab, 2)) == (0, floating.len()));
    pair.keepers[1].signal("TERM");
    pair.controls[0].expect_transition(HaState::Active);
    eventually("the other one has them all", || (held(&pair.lab, 1), held(&pair.lab, 2)) == (floating.len(), 0));
    assert!(pair.keepers[1].wait());
}

#[test]
fn a_second_keeper_refuses_to_run_beside_the_first_and_leaves_it_alone() {
    require_root();
    let lab = Lab::new(1);
    let first = lab.keeper(1);
    let mut control = first.control();
    control.tell(settings(1), &[lab.spec(1, &[1])], &[]);
    assert!(!lab.keeper(1).wait(), "it fails");
    assert_eq!(control.status().routers.len(), 1);
    assert_eq!(first.control().tell(settings(1), &[], &[]).routers.len(), 0, "the socket is still the first one's");
}

#[test]
fn the_keeper_goes_on_without_control_and_tells_it_later() {
    require_root();
    let lab = Lab::new(1);
    let keeper = lab.keeper(1);
    let mut control = keeper.control();
    control.tell(settings(1), &[lab.spec(1, &[1])], &[]);
    drop(control);
    eventually("it takes over alone", || lab.has_vip(1));
    let mut control = keeper.control();
    control.say(&ToKeeper::Hello { version: PROTOCOL_VERSION, settings: settings(1) });
    let transition = control.expect_transition(HaState::Active).1;
    assert_eq!(transition.epoch, 1);
    assert!(matches!(control.heard()[0], FromKeeper::Hello { .. }), "the greeting comes first");
}
