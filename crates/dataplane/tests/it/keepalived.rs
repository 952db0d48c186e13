//! The configuration that a stock keepalived can run from.

use evergate_dataplane::keepalived::{self, HealthCheck, VrrpSettings, render};
use evergate_model::host::ExtraRoute;

use crate::cloud::{self, ROUTER};

fn rendered(settings: &VrrpSettings) -> String {
    let mut config = cloud::with_floating_ip(cloud::ha_host());
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.routes.insert(ExtraRoute { destination: "172.16.0.0/12".parse().unwrap(), nexthop: cloud::ip("10.0.0.9") });
    router.gateway.as_mut().unwrap().onlink_subnets.push("198.51.100.0/24".parse().unwrap());
    render(ROUTER, &cloud::ha_copy(), &cloud::network_host(&config).prepared[&ROUTER], settings)
}

#[test]
fn the_text_is_laid_out_as_neutron_lays_it_out() {
    let expected = "\
global_defs {
    notification_email_from neutron@openstack.local
    router_id neutron
}
vrrp_instance VR_7 {
    state BACKUP
    interface ha-c3000000-00
    virtual_router_id 7
    priority 50
    garp_master_delay 60
    nopreempt
    advert_int 2
    authentication {
        auth_type PASS
        auth_pass s3cret
    }
    track_interface {
        ha-c3000000-00
    }
    virtual_ipaddress {
        169.254.0.7/24 dev ha-c3000000-00
    }
    virtual_ipaddress_excluded {
        10.0.0.1/24 dev qr-c1000000-00 no_track
        203.0.113.10/24 dev qg-c2000000-00 no_track
        203.0.113.50/32 dev qg-c2000000-00 no_track
    }
    virtual_routes {
        198.51.100.0/24 dev qg-c2000000-00 scope link no_track protocol static
        0.0.0.0/0 via 203.0.113.254 dev qg-c2000000-00 no_track protocol static
        172.16.0.0/12 via 10.0.0.9 dev qr-c1000000-00 no_track protocol static
    }
}
";
    let settings = VrrpSettings { password: Some("s3cret".to_owned()), ..VrrpSettings::default() };
    assert_eq!(rendered(&settings), expected);
}

#[test]
fn version_3_has_intervals_below_a_second() {
    let text = |advertise_interval_cs| {
        rendered(&VrrpSettings { version: 3, advertise_interval_cs, ..VrrpSettings::default() })
    };
    assert!(text(10).contains("    router_id neutron\n    vrrp_version 3\n}\n"), "{}", text(10));
    for (cs, expected) in [(1, "0.01"), (10, "0.1"), (25, "0.25"), (100, "1"), (4095, "40.95")] {
        assert!(text(cs).contains(&format!("    advert_int {expected}\n")), "{}", text(cs));
    }
}

#[test]
fn a_health_check_runs_a_script_that_pings_what_the_active_copy_must_reach() {
    let settings = checked();
    let text = rendered(&settings);
    let script = format!(
        "vrrp_script ha_health_check_7 {{\n    script \"/var/lib/ha_confs/{ROUTER}/ha_check_script_7.sh\"\n    interval 30\n    \
         fall 2\n    rise 3\n}}\nvrrp_instance VR_7 {{\n"
    );
    assert!(text.contains(&script), "{text}");
    assert!(text.ends_with("    track_script {\n        ha_health_check_7\n    }\n}\n"), "{text}");
    let prepared = &cloud::network_host(&cloud::ha_host()).prepared[&ROUTER];
    assert_eq!(
        keepalived::script(&cloud::ha_copy(), prepared),
        "#!/bin/sh -eu\nip a | grep -qF 169.254.0.7/24 || exit 0\nping -c 1 -w 1 203.0.113.254 >/dev/null || exit 1\n"
    );
    let mut config = cloud::ha_host();
    config.routers.get_mut(&ROUTER).unwrap().gateway = None;
    let text = render(ROUTER, &cloud::ha_copy(), &cloud::network_host(&config).prepared[&ROUTER], &settings);
    assert!(!text.contains("script"), "without a gateway there is nothing to check: {text}");
}

fn checked() -> VrrpSettings {
    let ha_confs = "/var/lib/ha_confs".to_owned();
    let health_check = Some(HealthCheck { interval_s: 30, fall: 2, rise: 3, ha_confs });
    VrrpSettings { health_check, ..VrrpSettings::default() }
}

#[test]
fn preemption_and_its_delay_are_said_as_keepalived_says_them() {
    let settings = VrrpSettings { preempt: true, preempt_delay_s: 30, ..VrrpSettings::default() };
    let text = rendered(&settings);
    assert!(text.contains("    preempt_delay 30\n") && !text.contains("nopreempt"));
}

#[test]
fn the_password_is_not_in_debug_output() {
    let settings = VrrpSettings { password: Some("s3cret".to_owned()), ..VrrpSettings::default() };
    assert!(!format!("{settings:?}").contains("s3cret"));
}

#[test]
fn a_password_that_cannot_be_written_is_not_written_wrongly() {
    let settings = VrrpSettings { password: Some("a\"b".to_owned()), ..VrrpSettings::default() };
    assert!(!rendered(&settings).contains("authentication {"));
}

/// keepalived itself is the judge, where it is installed.
#[test]
#[expect(clippy::disallowed_methods, reason = "runs keepalived on a file; the crate itself does neither")]
fn a_stock_keepalived_accepts_the_text() {
    let plain = VrrpSettings::default();
    let odd_password = VrrpSettings { password: Some("a!b #{$c".to_owned()), ..VrrpSettings::default() };
    let fraction = VrrpSettings {
        version: 3,
        advertise_interval_cs: 10,
        preempt: true,
        preempt_delay_s: 5,
        ..VrrpSettings::default()
    };
    for (n, settings) in [plain, odd_password, fraction, checked()].iter().enumerate() {
        let file = std::env::temp_dir().join(format!("evergate-keepalived-{}-{n}.conf", std::process::id()));
        std::fs::write(&file, rendered(settings)).unwrap();
        let judged = std::process::Command::new("keepalived").arg("--config-test").arg("-f").arg(&file).output();
        std::fs::remove_file(&file).unwrap();
        match judged {
            Ok(output) => {
                // The devices do not exist here, which keepalived says, too: only what concerns the text counts.
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let bad = ["nknown keyword", "parse", "invalid", "Invalid", "unexpected", "missing", "mismatch"];
                let complaints: Vec<&str> = said.lines().filter(|l| bad.iter().any(|b| l.contains(b))).collect();
                assert_eq!(complaints, Vec::<&str>::new(), "of all:\n{said}");
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => panic!("failed to run keepalived: {error}"),
        }
    }
}
