//! FRR's `vrrpd`, version 3, in the same group as ours. Needs root and Debian's frr.
//!
//! FRR keeps the virtual address on a macvlan with the virtual MAC, whatever its role: so its role is read
//! from its log.

mod support;

use std::process::Command;
use std::time::Duration;

use support::*;

const VIP: &str = "10.7.0.100";

/// zebra and vrrpd on a machine.
struct Frr {
    zebra: Router,
    vrrpd: Router,
    /// What earlier ones logged.
    skip: usize,
}

impl Frr {
    fn start(lab: &Lab, n: u8, priority: u8) -> Self {
        let netns = lab.netns(n);
        // 0x33 is VRID 51.
        sh(&format!(
            "ip -n {netns} link show vrrp4 >/dev/null 2>&1 || {{ \
             ip -n {netns} link add vrrp4 link eth0 type macvlan mode bridge && \
             ip -n {netns} link set vrrp4 address 00:00:5e:00:01:33 && \
             ip -n {netns} addr add {VIP}/24 dev vrrp4 && ip -n {netns} link set vrrp4 up; }}"
        ));
        let folder = lab.file(&format!("frr{n}"));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let interface = format!(
            "interface eth0\n vrrp 51 version 3\n vrrp 51 priority {priority}\n \
             vrrp 51 advertisement-interval 100\n vrrp 51 ip {VIP}\n"
        );
        std::fs::write(folder.join("zebra.conf"), "").expect("a file can be written");
        std::fs::write(folder.join("vrrpd.conf"), interface).expect("a file can be written");
        // Both give root up for a user of their own.
        sh(&format!("chown -R frr:frr {}", folder.display()));
        let daemon = |name: &str| {
            let mut command = Command::new("ip");
            command
                .args(["netns", "exec", &netns, &format!("/usr/lib/frr/{name}")])
                .args(["-P", "0", "-A", "127.0.0.1", "--log", "stdout"])
                .arg("-z")
                .arg(folder.join("zserv.api"))
                .arg("-i")
                .arg(folder.join(format!("{name}.pid")))
                .arg("--vty_socket")
                .arg(&folder)
                .arg("-f")
                .arg(folder.join(format!("{name}.conf")));
            lab.start(command, &format!("{name}{n}"))
        };
        let _ = std::fs::remove_file(folder.join("zserv.api"));
        let zebra = daemon("zebra");
        eventually("zebra listens", || folder.join("zserv.api").exists());
        let skip = std::fs::read(lab.file(&format!("vrrpd{n}.log"))).map_or(0, |log| log.len());
        Self { zebra, vrrpd: daemon("vrrpd"), skip }
    }

    fn is_active(&self) -> bool {
        let log = self.vrrpd.log();
        let last = log[self.skip..].lines().rfind(|line| line.contains(" -> ") && line.contains("[IPv4]"));
        last.is_some_and(|line| line.ends_with("-> Master"))
    }
}

fn ours(priority: u8) -> String {
    format!(
        "global_defs {{\n  vrrp_version 3\n}}\nvrrp_instance V {{\n  interface eth0\n  virtual_router_id 51\n  \
         priority {priority}\n  advert_int 0.1\n  virtual_ipaddress {{\n    {VIP}/24\n  }}\n}}\n"
    )
}

#[test]
fn the_role_goes_round_between_frr_and_ours() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(2);
    let frr = Frr::start(&lab, 2, 100);
    eventually("FRR is active", || frr.is_active());

    // The lower priority listens; FRR's forced end is noticed.
    let backup = lab.ours(1, &ours(50), &[]);
    eventually("ours listens", || backup.log().contains("to=Backup"));
    for_a_while("ours leaves it the role", Duration::from_secs(1), || !lab.has(1, VIP) && frr.is_active());
    frr.vrrpd.kill();
    eventually("ours takes over", || lab.has(1, VIP));

    // FRR, of higher priority, preempts; its clean stop resigns.
    drop(frr.zebra);
    let frr = Frr::start(&lab, 2, 100);
    eventually("FRR preempts", || !lab.has(1, VIP) && frr.is_active());
    frr.vrrpd.signal("TERM");
    eventually("ours takes over again", || lab.has(1, VIP));
    assert!(backup.stop());
    drop(frr);

    // The higher priority preempts FRR; its resignation is followed.
    let frr = Frr::start(&lab, 2, 100);
    eventually("FRR is active", || frr.is_active());
    let active = lab.ours(1, &ours(200), &[]);
    eventually("ours preempts", || lab.has(1, VIP) && !frr.is_active());
    assert!(active.stop());
    assert!(!lab.has(1, VIP));
    eventually("FRR follows the resignation", || frr.is_active());
    drop(frr);
}
