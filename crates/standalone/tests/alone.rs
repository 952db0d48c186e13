//! Ours among ours: groups, tracking, notifications, reload, restart. Needs root.

mod support;

use std::time::Duration;

use support::*;

fn instance(name: &str, vrid: u8, priority: u8, more: &str, vip: &str) -> String {
    format!(
        "vrrp_instance {name} {{\n  interface eth0\n  virtual_router_id {vrid}\n  priority {priority}\n  version 3\n  \
         advert_int 0.1\n{more}\n  virtual_ipaddress {{\n    {vip}/24\n  }}\n}}\n"
    )
}

#[test]
fn everything_of_an_instance_comes_and_goes_with_the_role() {
    require_root();
    let lab = Lab::new(1);
    let netns = lab.netns(1);
    sh(&format!(
        "ip -n {netns} link add eth1 type veth peer name eth1p && ip -n {netns} link set eth1 up && ip -n {netns} link set eth1p up"
    ));
    let more = "  virtual_ipaddress_excluded {\n    192.0.2.1/24 dev eth1 label eth1:vip brd +\n    2001:db8::1/64 dev eth1\n  }\n  \
                virtual_routes {\n    198.51.100.0/24 via 192.0.2.9 dev eth1 metric 7 src 192.0.2.1\n    blackhole 203.0.113.0/24\n    2001:db8:1::/48 via 2001:db8::9 dev eth1\n  }\n  \
                virtual_rules {\n    from 192.0.2.0/24 table 77 priority 777\n  }";
    let ours = lab.ours(1, &instance("V", 51, 100, more, "10.7.0.100"), &[]);
    eventually("it is active", || ours.log().contains("to=Active"));
    let addresses = output(&format!("ip -n {netns} -o addr show dev eth1"));
    for part in ["192.0.2.1/24 brd 192.0.2.255 scope global", "eth1:vip", "2001:db8::1/64"] {
        assert!(addresses.contains(part), "{part} in {addresses}");
    }
    let all = || {
        output(&format!(
            "ip -n {netns} route show proto keepalived; ip -n {netns} route show proto 18; ip -n {netns} -6 route show proto 18; ip -n {netns} rule show"
        ))
    };
    let found = all();
    for part in [
        "198.51.100.0/24 via 192.0.2.9 dev eth1",
        "metric 7",
        "blackhole 203.0.113.0/24",
        "2001:db8:1::/48 via 2001:db8::9",
        "from 192.0.2.0/24 lookup 77",
    ] {
        assert!(found.contains(part), "{part} in {found}");
    }
    assert!(ours.stop());
    let left = all();
    assert!(
        !left.contains("198.51")
            && !left.contains("203.0.113")
            && !left.contains("2001:db8")
            && !left.contains("lookup 77"),
        "{left}"
    );
    assert!(!lab.has(1, "192.0.2.1") && !lab.has(1, "2001:db8::1") && !lab.has(1, "10.7.0.100"));
}

#[test]
fn a_group_moves_together_and_tells_of_it_in_order() {
    require_root();
    let lab = Lab::new(2);
    let netns = lab.netns(1);
    sh(&format!(
        "ip -n {netns} link add eth1 type veth peer name eth1p && ip -n {netns} link set eth1 up && ip -n {netns} link set eth1p up"
    ));
    let fifo = lab.file("fifo");
    sh(&format!("mkfifo {}", fifo.display()));
    let told = lab.file("told");
    let script = lab.write("notify.sh", &format!("#!/bin/sh\necho \"$@\" >> {}\n", told.display()));
    sh(&format!("chmod +x {}", script.display()));
    let group = |priority: u8, track: &str, more: &str| {
        format!(
            "global_defs {{\n  vrrp_notify_fifo {}\n}}\nvrrp_sync_group G {{\n  group {{\n    A\n    B\n  }}\n{more}\n}}\n{}{}",
            fifo.display(),
            instance("A", 51, priority, track, "10.7.0.101"),
            instance("B", 52, priority, "", "10.7.0.102")
        )
    };
    let notify = format!("  notify {}\n", script.display());
    let first = lab.ours(1, &group(150, "  track_interface {\n    eth1\n  }", &notify), &[]);
    eventually("both are active", || lab.has(1, "10.7.0.101") && lab.has(1, "10.7.0.102"));
    let second = lab.ours(2, &group(100, "", "").replace(&fifo.display().to_string(), "/dev/null/none"), &[]);
    eventually("the second listens", || second.log().matches("to=Backup").count() >= 2);
    sh(&format!("ip -n {netns} link set eth1 down"));
    for vip in ["10.7.0.101", "10.7.0.102"] {
        eventually("both go", || lab.holders(vip) == [2]);
    }
    sh(&format!("ip -n {netns} link set eth1 up"));
    for vip in ["10.7.0.101", "10.7.0.102"] {
        eventually("both come back", || lab.holders(vip) == [1]);
    }
    assert!(first.stop());
    let lines = std::fs::read_to_string(&told).expect("the script was run");
    let words: Vec<_> = lines.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(words, ["BACKUP", "MASTER", "FAULT", "BACKUP", "MASTER", "STOP"], "{lines}");
    assert!(lines.starts_with("GROUP G BACKUP 0"), "{lines}");
}

#[test]
fn fifo_lines_wait_for_their_reader_and_scripts_weigh() {
    require_root();
    let lab = Lab::new(2);
    let fifo = lab.file("fifo");
    sh(&format!("mkfifo {}", fifo.display()));
    let reader = std::fs::File::options().read(true).write(true).open(&fifo).expect("the FIFO can be opened");
    let flag = lab.write("well", "");
    let script = format!(
        "vrrp_script well {{\n  script \"/usr/bin/test -e {}\"\n  interval 0.1\n  weight 100\n  fall 2\n}}\n",
        flag.display()
    );
    let text = format!(
        "global_defs {{\n  notify_fifo {}\n}}\n{script}{}",
        fifo.display(),
        instance("V", 51, 100, "  track_script {\n    well\n  }", "10.7.0.100")
    );
    let _first = lab.ours(1, &text, &[]);
    eventually("it is active", || lab.has(1, "10.7.0.100"));
    let _second = lab.ours(2, &instance("V", 51, 150, "", "10.7.0.100"), &[]);
    for_a_while("200 beats 150", Duration::from_secs(1), || lab.holders("10.7.0.100") == [1]);
    std::fs::remove_file(&flag).expect("it is there");
    eventually("100 does not", || lab.holders("10.7.0.100") == [2]);
    std::fs::write(&flag, "").expect("a file can be written");
    eventually("200 does again", || lab.holders("10.7.0.100") == [1]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
    let mut next = || lines.next().expect("there is a line").expect("it can be read");
    assert_eq!(next(), "INSTANCE \"V\" BACKUP 200");
    assert_eq!(next(), "INSTANCE \"V\" MASTER 200");
    assert_eq!(next(), "INSTANCE \"V\" BACKUP 100");
    assert_eq!(next(), "INSTANCE \"V\" MASTER 200");
}

#[test]
fn a_reload_moves_nothing_that_did_not_change_and_a_broken_one_is_refused() {
    require_root();
    let lab = Lab::new(1);
    let one = instance("A", 51, 100, "", "10.7.0.101");
    let ours = lab.ours(1, &one, &[]);
    eventually("A is active", || lab.has(1, "10.7.0.101"));
    let transitions = |name: &str| ours.log().matches(&format!("transition instance=\"{name}\"")).count();
    let before = transitions("A");
    // Another address for A, and another instance.
    let two =
        one.replace("10.7.0.101/24", "10.7.0.101/24\n    10.7.0.111/24") + &instance("B", 52, 100, "", "10.7.0.102");
    lab.write("ours1.conf", &two);
    ours.signal("HUP");
    eventually("B is active", || lab.has(1, "10.7.0.102"));
    assert!(lab.has(1, "10.7.0.111") && lab.has(1, "10.7.0.101"));
    assert_eq!(transitions("A"), before, "{}", ours.log());
    // A mistake changes nothing, and is told with its line.
    lab.write("ours1.conf", &one.replace("priority 100", "priority 300"));
    ours.signal("HUP");
    eventually("the mistake is told", || ours.log().contains("ours1.conf:4: priority must be 1 to 255, not '300'"));
    assert!(lab.has(1, "10.7.0.102") && ours.log().contains("the running configuration is kept"));
    // Back: B resigns, A loses an address.
    lab.write("ours1.conf", &one);
    ours.signal("HUP");
    eventually("B is gone", || !lab.has(1, "10.7.0.102") && !lab.has(1, "10.7.0.111"));
    assert!(lab.has(1, "10.7.0.101"));
    assert_eq!(transitions("A"), before, "{}", ours.log());
    assert!(ours.stop());
}

#[test]
fn a_killed_active_that_is_back_in_time_goes_on_and_a_late_one_leaves_nothing_behind() {
    require_root();
    let lab = Lab::new(1);
    let text = instance("V", 51, 100, "", "10.7.0.100").replace("advert_int 0.1", "advert_int 1");
    let ours = lab.ours(1, &text, &[]);
    eventually("it is active", || lab.has(1, "10.7.0.100"));
    ours.kill();
    assert!(lab.has(1, "10.7.0.100"));
    let ours = lab.ours(1, &text, &[]);
    eventually("it goes on as active", || ours.log().contains("reason=Adopted"));
    assert!(!ours.log().contains("reason=Startup") || ours.log().matches("reason=Startup").count() == 1);
    ours.kill();
    // As if it had been gone for a day.
    sh(&format!("touch -d yesterday {}/*.active", lab.file("run1").display()));
    let ours = lab.ours(1, &text, &[]);
    eventually("what it left is removed", || !lab.has(1, "10.7.0.100"));
    eventually("it is elected", || lab.has(1, "10.7.0.100"));
    assert!(ours.stop());
}

#[test]
fn an_interface_that_was_replaced_is_used_again() {
    require_root();
    let lab = Lab::new(2);
    let ours = lab.ours(1, &instance("V", 51, 150, "", "10.7.0.100"), &[]);
    eventually("it is active", || lab.has(1, "10.7.0.100"));
    let (netns, wire) = (lab.netns(1), lab.name("wire"));
    sh(&format!("ip -n {netns} link del eth0"));
    eventually("it is in fault", || ours.log().contains("reason=Fault"));
    let second = lab.ours(2, &instance("V", 51, 200, "", "10.7.0.100"), &[]);
    eventually("the other is active", || lab.has(2, "10.7.0.100"));
    sh(&format!(
        "ip -n {netns} link add eth0 type veth peer name p1 netns {wire} && ip -n {wire} link set p1 master lan up && \
         ip -n {netns} link set eth0 up && ip -n {netns} addr add 10.7.0.1/24 dev eth0"
    ));
    eventually("it is a backup again", || ours.log().matches("reason=Startup").count() == 2);
    for_a_while("it hears the other", Duration::from_secs(1), || lab.holders("10.7.0.100") == [2]);
    assert!(second.stop());
    eventually("it takes over", || lab.holders("10.7.0.100") == [1]);
}

#[test]
fn one_process_serves_several_namespaces() {
    require_root();
    let lab = Lab::new(3);
    let text =
        |n: u8| format!("net_namespace {}\n{}", lab.netns(n), instance("V", 50 + n, 100, "", &format!("10.7.0.10{n}")));
    let second = lab.write("second.conf", &text(2));
    let third = lab.write("third.conf", &text(3));
    let options = ["--config", second.to_str().unwrap(), "--config", third.to_str().unwrap()];
    let ours = lab.ours(1, &instance("V", 51, 100, "", "10.7.0.101"), &options);
    for n in 1..=3 {
        eventually("each is active in its own", || lab.holders(&format!("10.7.0.10{n}")) == [n]);
    }
    assert!(ours.stop());
    assert!((1..=3).all(|n| !lab.has(n, &format!("10.7.0.10{n}"))));
}

#[test]
fn the_example_of_the_documentation_works() {
    require_root();
    let page = include_str!("../../../docs/standalone-vrrp.md");
    let (_, rest) = page.split_once("```keepalived\n").expect("the page has an example");
    let (example, _) = rest.split_once("```").expect("the example ends");
    let lab = Lab::new(2);
    for n in [1, 2] {
        let netns = lab.netns(n);
        sh(&format!(
            "ip -n {netns} addr flush dev eth0 scope global && ip -n {netns} addr add 192.0.2.{}/24 dev eth0",
            n + 1
        ));
    }
    let first = lab.ours(1, example, &[]);
    eventually("the first is active", || lab.holders("192.0.2.1") == [1]);
    // As the page says: the other machine has the same file, but for the priority.
    let second = lab.ours(2, &example.replace("priority 150", "priority 100"), &[]);
    eventually("the second listens", || second.log().contains("to=Backup"));
    assert!(first.stop());
    eventually("the second takes over", || lab.holders("192.0.2.1") == [2]);
}
