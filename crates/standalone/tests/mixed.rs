//! Ours, a stock keepalived and FRR's `vrrpd` in one group of version 3. Needs root, keepalived and Debian's frr.

mod support;

use std::time::Duration;

use support::frr::Frr;
use support::*;

const VIP: &str = "10.7.0.100";

/// Who is active: 1 is ours, 2 keepalived, 3 FRR.
fn actives(lab: &Lab, frr: &Frr) -> Vec<u8> {
    let mut actives: Vec<u8> = [1, 2].into_iter().filter(|n| lab.has(*n, VIP)).collect();
    actives.extend(frr.is_active().then_some(3));
    actives
}

fn text(priority: u8) -> String {
    format!(
        "global_defs {{\n  router_id x\n  vrrp_version 3\n}}\nvrrp_instance V {{\n  state BACKUP\n  interface eth0\n  \
         virtual_router_id 51\n  priority {priority}\n  advert_int 0.1\n  virtual_ipaddress {{\n    {VIP}/24\n  }}\n}}\n"
    )
}

#[test]
fn the_role_goes_round_in_a_group_of_three_implementations() {
    require_root();
    let lab = Lab::new(3);
    // One after the other, each of higher priority than the last.
    let frr = Frr::start(&lab, 3, 100, VIP);
    eventually("FRR is active alone", || actives(&lab, &frr) == [3]);
    let keepalived = lab.keepalived(2, &text(120));
    eventually("keepalived preempts FRR", || actives(&lab, &frr) == [2]);
    let ours = lab.ours(1, &text(150), &[]);
    eventually("ours preempts keepalived", || actives(&lab, &frr) == [1]);
    for_a_while("all three agree", Duration::from_secs(1), || actives(&lab, &frr) == [1]);

    // Ours resigns: the next in priority follows, and not the one that would as well.
    assert!(ours.stop());
    eventually("keepalived follows", || actives(&lab, &frr) == [2]);
    for_a_while("and FRR leaves it the role", Duration::from_secs(1), || actives(&lab, &frr) == [2]);
    // It restarts, and is killed with its link.
    let ours = lab.ours(1, &text(150), &[]);
    eventually("ours is back", || actives(&lab, &frr) == [1]);
    lab.cut(1, true);
    ours.kill();
    sh(&format!("ip -n {} addr flush to {VIP}", lab.netns(1)));
    eventually("keepalived takes over", || actives(&lab, &frr) == [2]);
    lab.cut(1, false);

    // Ours as the last resort: both others fall silent, one after the other.
    let ours = lab.ours(1, &text(50), &[]);
    for_a_while("ours leaves them the role", Duration::from_secs(1), || actives(&lab, &frr) == [2]);
    lab.cut(2, true);
    keepalived.kill();
    sh(&format!("ip -n {} addr flush to {VIP}", lab.netns(2)));
    eventually("FRR takes over from keepalived", || actives(&lab, &frr) == [3]);
    for_a_while("ours leaves it the role", Duration::from_millis(700), || actives(&lab, &frr) == [3]);
    frr.vrrpd.signal("TERM");
    eventually("ours follows FRR's resignation", || lab.has(1, VIP));

    // And they come back.
    lab.cut(2, false);
    drop(frr);
    let frr = Frr::start(&lab, 3, 100, VIP);
    eventually("FRR preempts ours", || actives(&lab, &frr) == [3]);
    let keepalived = lab.keepalived(2, &text(120));
    eventually("keepalived preempts FRR", || actives(&lab, &frr) == [2]);
    keepalived.signal("TERM");
    eventually("FRR follows the resignation", || actives(&lab, &frr) == [3]);
    assert!(!ours.log().contains("was discarded"), "every packet was understood: {}", ours.log());
    assert!(ours.stop());
    drop(keepalived);
}
