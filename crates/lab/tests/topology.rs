//! The surroundings, without the product: wires, power, faults, and that nothing stays behind.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;
use std::time::Duration;

use evergate_lab::fault::{Fault, HaCut};
use evergate_lab::{Lab, Link, Node, Spec, Temporary, Traces, procs, wait_for};

#[test]
fn nodes_reach_each_other_over_their_own_networks_only() {
    let lab = up("reach");
    let net1 = lab.machine(Node::Network(1));
    net1.shell("ping -c 1 -W 2 10.60.0.1").unwrap();
    net1.shell("ping -c 1 -W 2 cmp1").unwrap();
    lab.machine(Node::Web).shell("ping -c 1 -W 2 203.0.113.254").unwrap();
    net1.shell("ping -c 1 -W 1 198.51.100.10").unwrap_err();
    // A node sees its own devices, names, files and processes, and none of the machine's.
    assert_eq!(net1.shell("hostname").unwrap().trim(), "net1");
    assert_eq!(net1.shell("ls /run/netns").unwrap(), "");
    assert_eq!(net1.shell("ls /sys/class/net").unwrap(), "br-ex\neth0\neth1\nlo\n");
    assert_eq!(net1.shell("cat /proc/1/comm").unwrap().trim(), "sh");
    assert!(net1.shell("cat /etc/neutron/openvswitch_agent.ini").unwrap().contains("local_ip = 10.60.0.11"));
}

#[test]
fn a_node_without_power_is_gone_and_comes_back_with_its_disk_and_nothing_else() {
    let lab = up("power");
    let node = Node::Network(1);
    let net1 = lab.machine(node);
    net1.shell("echo kept > /var/lib/evergate/file; echo lost > /run/file; ip netns add qrouter-x").unwrap();
    net1.shell("setsid --fork sleep 1000 >/dev/null 2>&1").unwrap();
    lab.fail(node, Fault::Power).unwrap();
    assert!(!net1.is_on());
    let ping = |wait| lab.machine(Node::Network(2)).shell(&format!("ping -c 1 -W {wait} net1"));
    ping(1).unwrap_err();
    assert!(lab.fail(node, Fault::Power).unwrap_err().to_string().contains("no power already"));

    lab.heal(node, &Fault::Power).unwrap();
    assert_eq!(net1.shell("cat /var/lib/evergate/file").unwrap(), "kept\n");
    assert_eq!(net1.shell("ls /run/file /run/netns 2>/dev/null || :").unwrap().trim(), "/run/netns:");
    assert_eq!(net1.shell("ps -C sleep -o args=").unwrap().trim(), "sleep infinity");
    ping(2).unwrap();
}

#[test]
fn a_cut_link_loses_its_carrier_and_stays_cut_through_a_power_cut() {
    let lab = up("cut");
    let node = Node::Network(1);
    let net1 = lab.machine(node);
    let carrier = |interface: &str| net1.shell(&format!("cat /sys/class/net/{interface}/carrier")).unwrap();
    lab.fail(node, Fault::Cut(Link::Uplink)).unwrap();
    assert_eq!((carrier("eth0").trim(), carrier("eth1").trim()), ("1", "0"));
    lab.fail(node, Fault::Power).unwrap();
    lab.heal(node, &Fault::Power).unwrap();
    assert_eq!((carrier("eth0").trim(), carrier("eth1").trim()), ("1", "0"));
    lab.heal(node, &Fault::Cut(Link::Uplink)).unwrap();
    assert_eq!(carrier("eth1").trim(), "1");
    assert!(lab.heal(node, &Fault::Cut(Link::Uplink)).is_err(), "it was healed already");
}

#[test]
fn packets_are_lost_as_asked_and_no_longer() {
    let lab = up("loss");
    let node = Node::Network(1);
    let ping = |count| lab.machine(Node::Network(2)).shell(&format!("ping -i 0.01 -c {count} -W 1 net1"));
    ping(1).unwrap();
    lab.fail(node, Fault::Loss(Link::Underlay, 50)).unwrap();
    // Of 200 echoes a quarter comes back; all or none would take a miracle.
    let text = ping(200).unwrap();
    assert!(!text.contains(" 0% packet loss"), "{text}");
    lab.fail(node, Fault::Loss(Link::Underlay, 100)).unwrap();
    ping(5).unwrap_err();
    lab.heal(node, &Fault::Loss(Link::Underlay, 100)).unwrap();
    let text = ping(50).unwrap();
    assert!(text.contains(" 0% packet loss"), "{text}");
}

#[test]
fn a_cut_of_ha_networks_spares_everything_else_in_the_tunnels() {
    let lab = up("ha");
    // Two networks between two hosts: one with HA addresses, one with others.
    for (node, number, peer) in [(Node::Network(1), 1, "10.60.0.12"), (Node::Network(2), 2, "10.60.0.11")] {
        let vxlan = |vni: u32, address: &str| {
            format!(
                "ip link add v{vni} type vxlan id {vni} dstport 4789 remote {peer} dev eth0;
                 ip link set v{vni} up; ip address add {address}.{number}/24 dev v{vni};"
            )
        };
        let line = vxlan(7, "169.254.192") + &vxlan(8, "10.9.9") + &vxlan(9, "169.254.193");
        lab.machine(node).shell(&format!("set -e; {line}")).unwrap();
    }
    let reaches = |address: &str| lab.machine(Node::Network(1)).shell(&format!("ping -c 1 -W 1 {address}")).is_ok();
    assert_eq!([reaches("169.254.192.2"), reaches("10.9.9.2"), reaches("169.254.193.2")], [true; 3]);

    lab.fail(Node::Network(2), Fault::Ha(HaCut::All)).unwrap();
    assert_eq!([reaches("169.254.192.2"), reaches("10.9.9.2"), reaches("169.254.193.2")], [false, true, false]);
    lab.heal(Node::Network(2), &Fault::Ha(HaCut::All)).unwrap();

    let one = Fault::Ha(HaCut::One(evergate_model::NetworkId::from_u128(1), 7));
    lab.fail(Node::Network(2), one.clone()).unwrap();
    assert_eq!([reaches("169.254.192.2"), reaches("10.9.9.2"), reaches("169.254.193.2")], [false, true, true]);
    lab.heal(Node::Network(2), &one).unwrap();
    assert!(reaches("169.254.192.2"));
}

#[test]
fn orphans_that_end_on_a_node_are_collected() {
    let lab = up("orphan");
    let net1 = lab.machine(Node::Network(1));
    net1.shell("setsid --fork true; setsid --fork true").unwrap();
    wait_for("no zombie is left", Duration::from_secs(5), || {
        Ok((!net1.shell("ps -e -o stat=")?.contains('Z')).then_some(()))
    })
    .unwrap();
}

#[test]
fn two_labs_stand_side_by_side_and_go_one_by_one() {
    let (first, second) = (up("one"), up("two"));
    let (first_spec, second_spec) = (first.spec().clone(), second.spec().clone());
    let with_both = traces(&first_spec);
    first.machine(Node::Network(1)).shell("ping -c 1 -W 2 net2").unwrap();
    second.machine(Node::Network(1)).shell("ping -c 1 -W 2 net2").unwrap();
    assert!(!traces(&second_spec).is_empty());
    drop(second);
    assert_eq!(traces(&second_spec), Traces::default());
    assert_eq!(traces(&first_spec), with_both);
    first.machine(Node::Network(1)).shell("ping -c 1 -W 2 net2").unwrap();
    drop(first);
    assert_eq!(traces(&first_spec), Traces::default());
}

#[test]
fn a_lab_goes_with_the_test_that_fails() {
    let failed = std::thread::spawn(|| {
        let _lab = up("fails");
        panic!("on purpose");
    });
    assert_eq!(failed.join().unwrap_err().downcast_ref(), Some(&"on purpose"));
    assert_eq!(traces(&spec("fails")), Traces::default());
}

#[test]
fn down_clears_up_after_a_crash_of_anything_and_up_starts_afresh() {
    let lab = up("crash");
    let (name, spec) = (lab.spec().name.clone(), lab.spec().clone());
    let standing = traces(&spec);
    // A first process killed by hand, a namespace deleted by hand, a file that is missing, a capture
    // that someone left running.
    let pid = lab.machine(Node::Network(1)).first_process().unwrap().to_string();
    Command::new("kill").args(["-9", &pid]).status().unwrap();
    Command::new("ip").args(["netns", "delete", &lab.spec().netns(Node::Network(2))]).status().unwrap();
    std::fs::remove_file(lab.dir().join("hosts")).unwrap();
    let mut left = Command::new("ip")
        .args(["netns", "exec", &lab.spec().netns(Node::Controller), "sleep", "1000"])
        .spawn()
        .unwrap();

    let again = Lab::up_without_daemons(lab.spec().clone(), Some(lab.dir())).unwrap();
    again.machine(Node::Network(1)).shell("ping -c 1 -W 2 net2").unwrap();
    left.wait().unwrap();
    assert_eq!(traces(&spec), standing);
    Lab::down(&name, None, false).unwrap();
    Lab::down(&name, None, false).unwrap();
    drop(lab);
    assert_eq!(traces(&spec), Traces::default());
}

#[test]
fn a_lab_is_found_by_its_name_alone() {
    let lab = up("found");
    let found = Lab::open(&lab.spec().name, None).unwrap();
    assert_eq!(found.dir(), lab.dir());
    assert_eq!(found.spec(), lab.spec());
    let error = format!("{:#}", Lab::open("nosuchlab", None).unwrap_err());
    assert!(error.contains("there is no lab 'nosuchlab'"), "{error}");
}

#[test]
fn processes_of_other_labs_are_not_mistaken_for_ours() {
    let lab = up("mine");
    assert!(procs::lab_is_running(&lab.spec().name));
    assert!(!procs::lab_is_running(&lab.spec().name[1..]));
}

fn spec(test: &str) -> Spec {
    let name = format!("t{}_{test}", std::process::id());
    Spec { network_hosts: 2, compute_hosts: 1, ..Spec::new(&name, "/nonexistent".into()) }
}

fn up(test: &str) -> Temporary {
    Temporary::up_without_daemons(spec(test)).unwrap()
}

/// What there is of a lab of this test run.
fn traces(spec: &Spec) -> Traces {
    Traces::of(spec, &Temporary::folder(&spec.name)).unwrap()
}
