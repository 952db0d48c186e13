//! FRR's `vrrpd`, version 3, in the same group as ours. Needs root and Debian's frr.
//!
//! FRR keeps the virtual address on a macvlan with the virtual MAC, whatever its role: so its role is read
//! from its log.

mod support;

use std::time::Duration;

use support::frr::Frr;
use support::*;

const VIP: &str = "10.7.0.100";

fn ours(priority: u8) -> String {
    format!(
        "global_defs {{\n  vrrp_version 3\n}}\nvrrp_instance V {{\n  interface eth0\n  virtual_router_id 51\n  \
         priority {priority}\n  advert_int 0.1\n  virtual_ipaddress {{\n    {VIP}/24\n  }}\n}}\n"
    )
}

#[test]
fn the_role_goes_round_between_frr_and_ours() {
    require_root();
    let lab = Lab::new(2);
    let frr = Frr::start(&lab, 2, 100, VIP);
    eventually("FRR is active", || frr.is_active());

    // The lower priority listens; FRR's forced end is noticed.
    let backup = lab.ours(1, &ours(50), &[]);
    eventually("ours listens", || backup.log().contains("to=Backup"));
    for_a_while("ours leaves it the role", Duration::from_secs(1), || !lab.has(1, VIP) && frr.is_active());
    frr.vrrpd.kill();
    eventually("ours takes over", || lab.has(1, VIP));

    // FRR, of higher priority, preempts; its clean stop resigns.
    drop(frr.zebra);
    let frr = Frr::start(&lab, 2, 100, VIP);
    eventually("FRR preempts", || !lab.has(1, VIP) && frr.is_active());
    frr.vrrpd.signal("TERM");
    eventually("ours takes over again", || lab.has(1, VIP));
    assert!(backup.stop());
    drop(frr);

    // The higher priority preempts FRR; its resignation is followed.
    let frr = Frr::start(&lab, 2, 100, VIP);
    eventually("FRR is active", || frr.is_active());
    let active = lab.ours(1, &ours(200), &[]);
    eventually("ours preempts", || lab.has(1, VIP) && !frr.is_active());
    assert!(active.stop());
    assert!(!lab.has(1, VIP));
    eventually("FRR follows the resignation", || frr.is_active());
    drop(frr);
}
