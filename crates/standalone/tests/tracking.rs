//! What instances track besides links and scripts: files, processes, neighbours. Needs root; one needs Debian's frr,
//! one keepalived.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::*;

const VIP: &str = "10.7.0.100";

fn instance(priority: u8, more: &str) -> String {
    format!(
        "vrrp_instance V {{\n  interface eth0\n  virtual_router_id 51\n  priority {priority}\n  version 3\n  \
         advert_int 0.1\n{more}\n  virtual_ipaddress {{\n    {VIP}/24\n  }}\n}}\n"
    )
}

#[test]
fn a_number_in_a_file_moves_the_role_and_a_failure_in_one_is_a_fault() {
    require_root();
    let lab = Lab::new(2);
    let (weight, sound) = (lab.file("weight"), lab.file("sound"));
    let text = format!(
        "track_file weight {{\n  file {}\n  weight 2\n  init_file 0\n}}\nvrrp_track_file sound {{\n  file {}\n  \
         weight 0\n}}\n",
        weight.display(),
        sound.display()
    ) + &instance(100, "  track_file {\n    weight\n    sound\n  }");
    let first = lab.ours(1, &text, &[]);
    eventually("the first is active", || lab.has(1, VIP));
    assert_eq!(std::fs::read_to_string(&weight).expect("it was made").trim(), "0");
    let _second = lab.ours(2, &instance(150, ""), &[]);
    eventually("150 beats 100", || lab.holders(VIP) == [2]);
    std::fs::write(&weight, "40\n").expect("a file can be written");
    eventually("100 + 2 x 40 beats 150", || lab.holders(VIP) == [1]);
    std::fs::write(&weight, "-40\n").expect("a file can be written");
    eventually("100 - 2 x 40 does not", || lab.holders(VIP) == [2]);
    // Replaced as editors do it.
    let new = lab.write("weight.new", "77 is the number\n");
    std::fs::rename(new, &weight).expect("a file can be renamed");
    eventually("a replaced file is read", || lab.holders(VIP) == [1]);
    std::fs::write(&sound, "1\n").expect("a file can be written");
    eventually("a failure is a fault", || lab.holders(VIP) == [2]);
    assert!(first.log().contains("fault: file sound does not work"), "{}", first.log());
    std::fs::remove_file(&sound).expect("it is there");
    eventually("no file is no failure", || lab.holders(VIP) == [1]);
    std::fs::remove_file(&weight).expect("it is there");
    eventually("nor a weight", || lab.holders(VIP) == [2]);
}

#[test]
fn the_end_of_a_process_is_a_fault_until_it_runs_again() {
    require_root();
    let lab = Lab::new(1);
    // A command line of this test's own.
    let seconds = format!("300.{}", std::process::id());
    let start = || {
        let mut command = Command::new("sleep");
        command.arg(&seconds).stdin(Stdio::null()).spawn().expect("sleep can be started")
    };
    let text = format!("vrrp_track_process asleep {{\n  process sleep {seconds}\n  quorum 2\n}}\n")
        + &instance(100, "  track_process {\n    asleep\n  }");
    let mut children = vec![start()];
    let ours = lab.ours(1, &text, &[]);
    eventually("one of two is not enough", || ours.log().contains("fault: process asleep does not work"));
    children.push(start());
    eventually("two are enough", || lab.has(1, VIP));
    let mut one = children.remove(0);
    one.kill().expect("it runs");
    eventually("its end is a fault", || !lab.has(1, VIP));
    // Only now is it asked for: a process that has ended is no process, although it is listed.
    one.wait().expect("it is our child");
    children.push(start());
    eventually("it is active again", || lab.has(1, VIP));
    // A reload that changes nothing about it changes nothing.
    let before = ours.log().matches("transition").count();
    ours.signal("HUP");
    eventually("it was read again", || ours.log().matches("the configuration is in effect").count() == 2);
    for_a_while("it stays active", Duration::from_millis(700), || lab.has(1, VIP));
    assert_eq!(ours.log().matches("transition").count(), before, "{}", ours.log());
    for mut child in children {
        child.kill().expect("it runs");
        child.wait().expect("it is our child");
    }
}

fn bfd(neighbour: &str, more: &str) -> String {
    format!("bfd_instance there {{\n  neighbor_ip {neighbour}\n  min_rx 50\n  min_tx 50\n  multiplier 3\n{more}\n}}\n")
}

#[test]
fn a_session_with_frr_is_up_before_the_instance_takes_part_and_its_end_is_a_fault() {
    require_root();
    let lab = Lab::new(2);
    let text = bfd("10.7.0.2", "") + &instance(100, "  track_bfd {\n    there\n  }");
    let ours = lab.ours(1, &text, &[]);
    eventually("without a session it cannot", || ours.log().contains("fault: BFD session there does not work"));
    let start = || {
        let folder = lab.file("bfdd");
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let peer = "bfd\n peer 10.7.0.1\n  detect-multiplier 3\n  receive-interval 50\n  transmit-interval 50\n";
        std::fs::write(folder.join("bfdd.conf"), peer).expect("a file can be written");
        // It gives root up for a user of its own.
        sh(&format!("chown -R frr:frr {}", folder.display()));
        let mut command = Command::new("ip");
        command
            .args([
                "netns",
                "exec",
                &lab.netns(2),
                "/usr/lib/frr/bfdd",
                "-P",
                "0",
                "-A",
                "127.0.0.1",
                "--log",
                "stdout",
            ])
            .arg("-z")
            .arg(folder.join("zserv.api"))
            .arg("-i")
            .arg(folder.join("bfdd.pid"))
            .arg("--vty_socket")
            .arg(&folder)
            .arg("--bfdctl")
            .arg(folder.join("bfdd.sock"))
            .arg("-f")
            .arg(folder.join("bfdd.conf"));
        lab.start(command, "bfdd")
    };
    let bfdd = start();
    eventually("the session is up", || lab.has(1, VIP));
    // A changed interval is agreed upon, and nothing moves.
    let before = ours.log().matches("transition").count();
    lab.write("ours1.conf", &text.replace("min_rx 50", "min_rx 70"));
    ours.signal("HUP");
    eventually("it was read again", || ours.log().matches("the configuration is in effect").count() == 2);
    for_a_while("it stays active", Duration::from_millis(500), || lab.has(1, VIP));
    assert_eq!(ours.log().matches("transition").count(), before, "{}", ours.log());
    bfdd.kill();
    eventually("its end is a fault", || !lab.has(1, VIP));
    assert!(ours.log().contains("detection time expired"), "{}", ours.log());
    let _bfdd = start();
    eventually("the session is up again", || lab.has(1, VIP));
}

#[test]
fn a_session_with_ours_on_the_other_machine_weighs() {
    require_root();
    let lab = Lab::new(3);
    // The first counts 100 more while the third lives; the third only answers.
    let weighing =
        bfd("10.7.0.3", "  source_ip 10.7.0.1\n  weight 100") + &instance(100, "  track_bfd {\n    there\n  }");
    let _first = lab.ours(1, &weighing, &[]);
    let _second = lab.ours(2, &instance(150, ""), &[]);
    eventually("150 beats 100", || lab.holders(VIP) == [2]);
    let answering = bfd("10.7.0.1", "") + &instance(1, "  nopreempt\n  track_bfd {\n    there weight 1\n  }");
    let third = lab.ours(3, &answering, &[]);
    eventually("200 beats 150", || lab.holders(VIP) == [1]);
    assert!(third.stop());
    eventually("100 does not", || lab.holders(VIP) == [2]);
    let log = std::fs::read_to_string(lab.file("ours1.log")).expect("it can be read");
    assert!(!log.contains("detection time expired"), "a clean stop is said: {log}");
}

#[test]
fn a_session_with_keepalived_is_up_and_its_stop_is_no_silence() {
    require_root();
    let lab = Lab::new(2);
    let ours = lab.ours(1, &(bfd("10.7.0.2", "") + &instance(100, "  track_bfd {\n    there\n  }")), &[]);
    // One that only answers: its instance is of another virtual router.
    let theirs = "global_defs {\n  router_id x\n}\nbfd_instance back {\n  neighbor_ip 10.7.0.1\n  source_ip 10.7.0.2\n  \
                  min_rx 50\n  min_tx 50\n  multiplier 3\n}\nvrrp_instance W {\n  state BACKUP\n  interface eth0\n  \
                  virtual_router_id 52\n  priority 100\n  track_bfd {\n    back\n  }\n  virtual_ipaddress {\n    \
                  10.7.0.200/24\n  }\n}\n";
    let file = lab.write("theirs.conf", theirs);
    let start = || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.netns(2), "keepalived", "--dont-fork", "--log-console", "--log-detail"]);
        command.arg("-f").arg(&file);
        for (option, kind) in [("-p", "main"), ("-r", "vrrp"), ("-b", "bfd"), ("-c", "checkers")] {
            command.arg(option).arg(lab.file(&format!("theirs-{kind}.pid")));
        }
        lab.start(command, "keepalived2")
    };
    let keepalived = start();
    eventually("both sessions are up", || lab.has(1, VIP) && lab.has(2, "10.7.0.200"));
    assert!(keepalived.stop());
    eventually("its end is a fault", || !lab.has(1, VIP));
    let keepalived = start();
    eventually("both are up again", || lab.has(1, VIP) && lab.has(2, "10.7.0.200"));
    // That it stops on purpose, ours says, and keepalived takes for no failure; so it must fall silent.
    ours.kill();
    eventually("keepalived notices", || !lab.has(2, "10.7.0.200"));
    drop(keepalived);
}
