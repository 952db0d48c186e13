//! The virtual router's own Ethernet address, and addresses that take no packets. Needs root; some need keepalived and
//! tcpdump.

mod support;

use std::process::Command;
use std::time::Duration;

use support::*;

const VIP: &str = "10.7.0.100";
const MAC: &str = "00:00:5e:00:01:33";

fn instance(priority: u8, more: &str) -> String {
    format!(
        "global_defs {{\n  router_id x\n  vrrp_version 3\n}}\nvrrp_instance V {{\n  state BACKUP\n  interface eth0\n  \
         virtual_router_id 51\n  priority {priority}\n  advert_int 0.1\n{more}\n  virtual_ipaddress {{\n    {VIP}/24\n  \
         }}\n}}\n"
    )
}

/// The Ethernet address that a machine finds behind an address, asked anew.
fn resolve(lab: &Lab, n: u8, ip: &str) -> String {
    let netns = lab.netns(n);
    output(&format!("ip -n {netns} neigh flush dev eth0; ip netns exec {netns} ping -c 1 -W 1 {ip} >/dev/null"));
    let found = output(&format!("ip -n {netns} neigh show {ip} dev eth0"));
    found.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned()
}

fn pings(lab: &Lab, n: u8, ip: &str) -> bool {
    let ping = format!("ip netns exec {} ping -c 1 -W 1 {ip}", lab.netns(n));
    Command::new("sh").args(["-c", &ping]).output().expect("sh runs").status.success()
}

fn links(lab: &Lab, n: u8) -> String {
    output(&format!("ip -n {} -d -o link show", lab.netns(n)))
}

/// Senders of advertisements, as a machine hears some of them.
fn senders(lab: &Lab, n: u8) -> String {
    output(&format!(
        "ip netns exec {} timeout 10 tcpdump -c 3 -enli eth0 --direction in proto 112 2>/dev/null",
        lab.netns(n)
    ))
}

#[test]
fn the_virtual_address_moves_with_its_ethernet_address_and_back() {
    require_root();
    let lab = Lab::new(3);
    let first = lab.ours(1, &instance(150, "  use_vmac"), &[]);
    eventually("the first is active", || lab.has(1, VIP));
    let second = lab.ours(2, &instance(100, "  use_vmac"), &[]);
    eventually("the second listens", || second.log().contains("to=Backup"));
    eventually("its device is there", || links(&lab, 2).contains("vrrp.51"));

    assert_eq!(resolve(&lab, 3, VIP), MAC);
    let heard = senders(&lab, 3);
    assert!(heard.lines().count() == 3 && heard.lines().all(|line| line.contains(&format!("{MAC} >"))), "{heard}");
    // RFC 9568 §6.4.2: a backup takes nothing for the virtual router's Ethernet address.
    let of_second = links(&lab, 2);
    let device = of_second.lines().find(|line| line.contains("vrrp.51")).expect("it is there");
    assert!(device.contains(MAC) && device.contains("state DOWN"), "{device}");

    assert!(first.stop());
    eventually("the second takes over", || lab.has(2, VIP));
    assert!(!links(&lab, 1).contains("vrrp.51"), "nothing stays behind");
    assert!(pings(&lab, 3, VIP));
    assert_eq!(resolve(&lab, 3, VIP), MAC);
    // The interface's own address is its own all the same.
    assert_eq!(resolve(&lab, 3, "10.7.0.2"), "02:00:00:00:07:02");

    // Killed, and back: it goes on with what is there.
    second.kill();
    let second = lab.ours(2, &instance(100, "  use_vmac"), &[]);
    eventually("it is active again", || lab.has(2, VIP) && second.log().contains("to=Active"));
    assert_eq!(resolve(&lab, 3, VIP), MAC);
    let first = lab.ours(1, &instance(150, "  use_vmac\n  vmac_xmit_base"), &[]);
    eventually("the first preempts", || lab.holders(VIP) == [1]);
    let heard = senders(&lab, 3);
    assert!(heard.lines().count() == 3 && heard.lines().all(|line| line.contains("02:00:00:00:07:01 >")), "{heard}");
    assert_eq!(resolve(&lab, 3, VIP), MAC);
    assert!(first.stop() && second.stop());
}

#[test]
fn the_role_goes_round_with_a_keepalived_that_has_the_ethernet_address_too() {
    require_root();
    let lab = Lab::new(3);
    let keepalived = lab.keepalived(2, &instance(100, "  use_vmac"));
    eventually("keepalived is active", || lab.holders(VIP) == [2]);
    let ours = lab.ours(1, &instance(150, "  use_vmac"), &[]);
    eventually("ours preempts", || lab.holders(VIP) == [1]);
    for_a_while("the two agree", Duration::from_secs(1), || lab.holders(VIP) == [1]);
    assert!(pings(&lab, 3, VIP));
    assert_eq!(resolve(&lab, 3, VIP), MAC);
    assert!(ours.stop());
    eventually("keepalived follows the resignation", || lab.holders(VIP) == [2]);
    let _ours = lab.ours(1, &instance(50, "  use_vmac"), &[]);
    for_a_while("ours leaves it the role", Duration::from_secs(1), || lab.holders(VIP) == [2]);
    // Cut, both are active; healed, the lower one hears the other, although both send from one address.
    lab.cut(2, true);
    eventually("ours takes over, too", || lab.holders(VIP) == [1, 2]);
    lab.cut(2, false);
    eventually("ours gives way", || lab.holders(VIP) == [2]);
    keepalived.signal("TERM");
    eventually("ours takes over", || lab.has(1, VIP));
    assert!(pings(&lab, 3, VIP));
    drop(keepalived);
}

#[test]
fn a_device_of_somebody_else_is_not_taken() {
    require_root();
    let lab = Lab::new(1);
    let netns = lab.netns(1);
    sh(&format!("ip -n {netns} link add vrrp.51 type bridge"));
    let ours = lab.ours(1, &instance(100, "  use_vmac"), &[]);
    eventually("it says so", || ours.log().contains("device vrrp.51 is there and not ours"));
    sh(&format!("ip -n {netns} link del vrrp.51"));
    eventually("it takes part as soon as it can", || lab.has(1, VIP));
    // Removed by somebody, it is made again.
    sh(&format!("ip -n {netns} link del vrrp.51"));
    eventually("it is there again, with the address", || lab.has(1, VIP));
    assert!(ours.stop());
    assert!(!links(&lab, 1).contains("vrrp.51"));
}

#[test]
fn addresses_that_accept_nothing_are_found_and_take_no_packets() {
    require_root();
    let lab = Lab::new(2);
    let text = |accept: &str| {
        instance(100, &format!("  {accept}\n  virtual_ipaddress_excluded {{\n    2001:db8::100/64\n  }}"))
    };
    sh(&format!("ip -n {} addr add 2001:db8::2/64 dev eth0 nodad", lab.netns(2)));
    let ours = lab.ours(1, &text("no_accept"), &[]);
    eventually("it is active", || lab.has(1, VIP) && lab.has(1, "2001:db8::100"));
    for ip in [VIP, "2001:db8::100"] {
        assert!(!pings(&lab, 2, ip), "{ip} takes packets");
        assert_eq!(resolve(&lab, 2, ip), "02:00:00:00:07:01", "{ip} is found");
    }
    assert!(pings(&lab, 2, "10.7.0.1"), "other addresses of the machine are as they were");
    lab.write("ours1.conf", &text("accept"));
    ours.signal("HUP");
    eventually("it takes packets now", || pings(&lab, 2, VIP) && pings(&lab, 2, "2001:db8::100"));
    lab.write("ours1.conf", &text("no_accept"));
    ours.signal("HUP");
    eventually("and now it does not", || !pings(&lab, 2, VIP));
    assert!(ours.stop());
    let left = output(&format!("ip netns exec {} nft list ruleset", lab.netns(1)));
    assert!(!left.contains("evergate"), "{left}");
}
