//! A stock keepalived in the same group as ours. Needs root and keepalived.

mod support;

use std::time::Duration;

use support::*;

/// One instance that both programs read.
struct Group<'a> {
    globals: &'a str,
    priority: u8,
    lines: &'a str,
    addresses: &'a str,
}

impl Group<'_> {
    fn text(&self) -> String {
        format!(
            "global_defs {{\n  router_id x\n{}\n}}\nvrrp_instance V {{\n  state BACKUP\n  interface eth0\n  \
             virtual_router_id 51\n  priority {}\n{}\n  virtual_ipaddress {{\n    {}\n  }}\n}}\n",
            self.globals, self.priority, self.lines, self.addresses
        )
    }
}

/// Election, takeover in both directions, preemption, resignation: whatever the form of the advertisements.
fn the_role_goes_round(globals: &str, lines: impl Fn(u8) -> String, addresses: &str, vip: &str) {
    require_root();
    let lab = Lab::new(2);
    let text = |n: u8, priority: u8| Group { globals, priority, lines: &lines(n), addresses }.text();

    // Ours has the higher priority, and takes the role from a living keepalived.
    let keepalived = lab.keepalived(2, &text(2, 100));
    eventually("keepalived is active alone", || lab.holders(vip) == [2]);
    let ours = lab.ours(1, &text(1, 150), &[]);
    eventually("ours preempts", || lab.holders(vip) == [1]);
    for_a_while("the two agree", Duration::from_millis(1200), || lab.holders(vip) == [1]);

    // A clean stop resigns; the address is gone here at once and there soon.
    assert!(ours.stop(), "a clean stop ends with 0");
    assert!(!lab.has(1, vip));
    eventually("keepalived follows the resignation", || lab.holders(vip) == [2]);

    // Ours is the backup now, and takes over from a killed keepalived, whose address stays behind.
    let ours = lab.ours(1, &text(1, 50), &[]);
    for_a_while("ours leaves it the role", Duration::from_millis(2500), || lab.holders(vip) == [2]);
    lab.cut(2, true);
    keepalived.kill();
    eventually("ours takes over", || lab.has(1, vip));
    sh(&format!("ip -n {0} addr flush to {vip}", lab.netns(2)));
    lab.cut(2, false);

    // keepalived preempts in its turn, and its resignation is followed.
    let keepalived = lab.keepalived(2, &text(2, 100));
    eventually("keepalived preempts", || lab.holders(vip) == [2]);
    keepalived.signal("TERM");
    eventually("ours follows the resignation", || lab.holders(vip) == [1]);
    assert!(!ours.log().contains("was discarded"), "every packet was understood: {}", ours.log());
    drop(keepalived);
}

#[test]
fn v2_multicast() {
    the_role_goes_round("", |_| "  advert_int 1".to_owned(), "10.7.0.100/24", "10.7.0.100");
}

#[test]
fn v2_multicast_with_a_password() {
    let lines = |_| "  advert_int 1\n  authentication {\n    auth_type PASS\n    auth_pass s3cret\n  }".to_owned();
    the_role_goes_round("", lines, "10.7.0.100/24", "10.7.0.100");
}

#[test]
fn v3_multicast_at_centiseconds() {
    the_role_goes_round("  vrrp_version 3", |_| "  advert_int 0.1".to_owned(), "10.7.0.100/24", "10.7.0.100");
}

#[test]
fn v2_unicast() {
    let lines =
        |n: u8| format!("  advert_int 1\n  unicast_src_ip 10.7.0.{n}\n  unicast_peer {{\n    10.7.0.{}\n  }}", 3 - n);
    the_role_goes_round("", lines, "10.7.0.100/24", "10.7.0.100");
}

#[test]
fn v3_unicast() {
    let lines =
        |n: u8| format!("  advert_int 0.2\n  unicast_src_ip 10.7.0.{n}\n  unicast_peer {{\n    10.7.0.{}\n  }}", 3 - n);
    the_role_goes_round("  vrrp_version 3", lines, "10.7.0.100/24", "10.7.0.100");
}

#[test]
fn v3_ipv6() {
    the_role_goes_round(
        "  vrrp_version 3",
        |_| "  advert_int 0.2".to_owned(),
        "fe80::100/64\n    2001:db8::100/64",
        "2001:db8::100",
    );
}

#[test]
fn nopreempt_is_kept_by_both() {
    require_root();
    let lab = Lab::new(2);
    let text = |priority: u8| {
        Group {
            globals: "  vrrp_version 3",
            priority,
            lines: "  advert_int 0.1\n  nopreempt",
            addresses: "10.7.0.100/24",
        }
        .text()
    };
    let ours = lab.ours(1, &text(100), &[]);
    eventually("ours is active alone", || lab.holders("10.7.0.100") == [1]);
    let keepalived = lab.keepalived(2, &text(150));
    for_a_while("keepalived does not preempt", Duration::from_secs(3), || lab.holders("10.7.0.100") == [1]);
    assert!(ours.stop());
    eventually("keepalived follows", || lab.holders("10.7.0.100") == [2]);
    let ours = lab.ours(1, &text(200), &[]);
    for_a_while("ours does not preempt", Duration::from_secs(3), || lab.holders("10.7.0.100") == [2]);
    assert!(ours.log().contains("running"));
    drop(keepalived);
}
