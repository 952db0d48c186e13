//! FRR's `vrrpd`, version 3, VRID 51, every tenth of a second.
//!
//! It keeps the virtual address on a macvlan with the virtual MAC, whatever its role: so its role is read from its log.

use std::process::Command;

use super::{Lab, Router, eventually, sh};

/// zebra and vrrpd on a machine.
pub struct Frr {
    pub zebra: Router,
    pub vrrpd: Router,
    /// What earlier ones logged.
    skip: usize,
}

impl Frr {
    pub fn start(lab: &Lab, n: u8, priority: u8, vip: &str) -> Self {
        let netns = lab.netns(n);
        // 0x33 is VRID 51.
        sh(&format!(
            "ip -n {netns} link show vrrp4 >/dev/null 2>&1 || {{ \
             ip -n {netns} link add vrrp4 link eth0 type macvlan mode bridge && \
             ip -n {netns} link set vrrp4 address 00:00:5e:00:01:33 && \
             ip -n {netns} addr add {vip}/24 dev vrrp4 && ip -n {netns} link set vrrp4 up; }}"
        ));
        let folder = lab.file(&format!("frr{n}"));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let interface = format!(
            "interface eth0\n vrrp 51 version 3\n vrrp 51 priority {priority}\n \
             vrrp 51 advertisement-interval 100\n vrrp 51 ip {vip}\n"
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

    pub fn is_active(&self) -> bool {
        let log = self.vrrpd.log();
        let last = log[self.skip..].lines().rfind(|line| line.contains(" -> ") && line.contains("[IPv4]"));
        last.is_some_and(|line| line.ends_with("-> Master"))
    }
}
