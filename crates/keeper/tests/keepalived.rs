//! A stock keepalived in the same VRRP group, configured as Neutron does. Needs root and keepalived.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evergate_keeper::protocol::RouterSpec;
use support::*;

const BOTH: [u8; 2] = [1, 2];

#[test]
fn a_stock_keepalived_takes_over_from_a_keeper_and_keeps_the_role() {
    for password in [None, Some("s3cret")] {
        require_root();
        let lab = Lab::new(2);
        let mut keeper = lab.keeper(1);
        let mut control = keeper.control();
        let spec = spec(&lab, 1, password);
        control.tell(settings(1), std::slice::from_ref(&spec), &[]);
        eventually("the keeper is active", || lab.has_vip(1));
        let _keepalived = Keepalived::start(&lab, 2, password);
        for_a_while("keepalived, with the higher address, does not preempt", Duration::from_secs(5), || {
            lab.vip_holders(&BOTH) == [1]
        });
        keeper.signal("TERM");
        assert!(keeper.wait());
        eventually("keepalived takes over", || lab.vip_holders(&BOTH) == [2]);

        let keeper = lab.keeper(1);
        let mut control = keeper.control();
        control.tell(settings(1), &[spec], &[]);
        eventually("the keeper is back and hears keepalived", || {
            control.status().routers[0].heard_from == Some([169, 254, 192, 2].into())
        });
        for_a_while("it leaves keepalived the role", Duration::from_secs(5), || lab.vip_holders(&BOTH) == [2]);
        assert_eq!(control.status().discards, Default::default(), "every packet was understood");
    }
}

#[test]
fn version_3_at_a_tenth_of_a_second_is_spoken_with_keepalived_both_ways() {
    require_root();
    let lab = Lab::new(2);
    let v3 = RouterSpec { vrrp_version: 3, advertise_interval_cs: 10, ..spec(&lab, 1, None) };
    let mut keeper = lab.keeper(1);
    keeper.control().tell(settings(1), std::slice::from_ref(&v3), &[]);
    eventually("the keeper is active", || lab.has_vip(1));
    let keepalived = Keepalived::start_v3(&lab, 2);
    for_a_while("keepalived hears it and stays backup", Duration::from_secs(3), || lab.vip_holders(&BOTH) == [1]);
    keeper.signal("TERM");
    assert!(keeper.wait());
    eventually("keepalived takes over", || lab.vip_holders(&BOTH) == [2]);

    let keeper = lab.keeper(1);
    let mut control = keeper.control();
    control.tell(settings(1), &[v3], &[]);
    eventually("the keeper is back and hears keepalived", || control.status().routers[0].received > 2);
    assert_eq!(control.status().discards, Default::default(), "every packet was understood");
    assert!(lab.has_vip(2) && !lab.has_vip(1));
    keepalived.stop();
    eventually("the keeper takes over", || lab.vip_holders(&BOTH) == [1]);
}

#[test]
fn keepalived_resigning_is_followed_by_the_keeper() {
    require_root();
    let lab = Lab::new(2);
    let keepalived = Keepalived::start(&lab, 2, None);
    eventually("keepalived is active", || lab.has_vip(2));
    let keeper = lab.keeper(1);
    let mut control = keeper.control();
    control.tell(settings(1), &[spec(&lab, 1, None)], &[]);
    eventually("the keeper hears it", || control.status().routers[0].received > 0);
    keepalived.stop();
    eventually("the keeper takes over", || lab.vip_holders(&BOTH) == [1]);
    let transition = control.expect_transition(evergate_model::HaState::Active).1;
    assert!(transition.reason.contains("resigned"), "{transition:?}");
}

#[test]
fn after_a_cut_heals_the_higher_address_is_active_whoever_has_it() {
    for (keeper_on, keepalived_on) in [(1, 2), (2, 1)] {
        require_root();
        let lab = Lab::new(2);
        let keeper = lab.keeper(keeper_on);
        let mut control = keeper.control();
        control.tell(settings(keeper_on), &[spec(&lab, keeper_on, None)], &[]);
        let _keepalived = Keepalived::start(&lab, keepalived_on, None);
        eventually("one of them is active", || lab.vip_holders(&BOTH).len() == 1);
        lab.cut("ha", 2, true);
        eventually("both are active", || lab.vip_holders(&BOTH) == BOTH);
        lab.cut("ha", 2, false);
        eventually("the higher address prevails", || lab.vip_holders(&BOTH) == [2]);
        for_a_while("and stays", Duration::from_secs(4), || lab.vip_holders(&BOTH) == [2]);
    }
}

#[test]
fn a_keepalived_with_another_password_is_not_believed_and_told_of() {
    require_root();
    let lab = Lab::new(2);
    let _keepalived = Keepalived::start(&lab, 2, Some("other"));
    eventually("keepalived is active", || lab.has_vip(2));
    let keeper = lab.keeper(1);
    let mut control = keeper.control();
    control.tell(settings(1), &[spec(&lab, 1, Some("s3cret"))], &[]);
    eventually("its packets are counted", || control.status().discards.get("password").is_some_and(|&n| n > 1));
    eventually("and do not keep the keeper from taking part", || lab.has_vip(1));
}

fn spec(lab: &Lab, n: u8, password: Option<&str>) -> RouterSpec {
    // What a stock keepalived of equal priority does is not agreed upon, so the peers are not listed.
    RouterSpec { peers: Default::default(), password: password.map(str::to_owned), ..lab.spec(n, &BOTH) }
}

struct Keepalived {
    child: Child,
}

impl Keepalived {
    /// Starts one in a router's namespace, with what Neutron writes.
    fn start(lab: &Lab, n: u8, password: Option<&str>) -> Self {
        Self::start_as(lab, n, password, ("", "1"))
    }

    /// Starts one that speaks version 3 ten times a second.
    fn start_v3(lab: &Lab, n: u8) -> Self {
        Self::start_as(lab, n, None, ("    vrrp_version 3\n", "0.1"))
    }

    fn start_as(lab: &Lab, n: u8, password: Option<&str>, (version, interval): (&str, &str)) -> Self {
        let folder = lab.run_path(n);
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let authentication = password.map_or(String::new(), |password| {
            format!("    authentication {{\n        auth_type PASS\n        auth_pass {password}\n    }}\n")
        });
        let configuration = format!(
            "global_defs {{\n    notification_email_from neutron@openstack.local\n    router_id neutron\n{version}}}\n\
             vrrp_instance VR_7 {{\n    state BACKUP\n    interface ha-1\n    virtual_router_id 7\n    priority 50\n    \
             garp_master_delay 60\n    nopreempt\n    advert_int {interval}\n{authentication}    \
             track_interface {{\n        ha-1\n    }}\n    \
             virtual_ipaddress {{\n        {VIP} dev ha-1\n    }}\n    \
             virtual_ipaddress_excluded {{\n        10.0.0.1/24 dev qr-1 no_track\n    }}\n    \
             virtual_routes {{\n        0.0.0.0/0 via 10.0.0.254 dev qr-1 no_track protocol static\n    }}\n}}\n"
        );
        let file = folder.join("keepalived.conf");
        std::fs::write(&file, configuration).expect("the file can be written");
        let log = std::fs::File::create(folder.join("keepalived.log")).expect("the log can be made");
        let child = Command::new("ip")
            .args(["netns", "exec", &lab.name(&format!("r{n}"))])
            .args(["keepalived", "--vrrp", "--dont-fork", "--log-console", "--log-detail", "-f"])
            .arg(&file)
            .arg("-p")
            .arg(folder.join("keepalived.pid"))
            .arg("-r")
            .arg(folder.join("vrrp.pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("keepalived is installed");
        Self { child }
    }

    /// Stops it as its init script does.
    fn stop(mut self) {
        sh(&format!("kill -TERM {}", self.child.id()));
        let _ = self.child.wait();
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        // Its parent process stops the child that speaks VRRP.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).output();
        let _ = self.child.wait();
    }
}
