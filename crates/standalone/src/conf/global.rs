//! `global_defs`.

use std::time::Duration;

use evergate_vrrp::router::{Announcements, Version};

use super::Reader;
use super::syntax::{Problems, Statement};

/// What instances fall back to.
#[derive(Default)]
pub(super) struct Defaults {
    pub(super) version: Option<Version>,
    pub(super) announcements: Announcements,
    pub(super) announce_refresh: Option<Duration>,
    pub(super) interface: Option<String>,
    pub(super) script_user: Option<(String, Option<String>)>,
}

/// Keywords that change nothing here, and why that does no harm.
const NOTED: &[(&str, &str)] = &[
    ("bfd_", "concerns keepalived's own process for BFD"),
    ("checker_", "concerns virtual servers"),
    ("child_wait_time", "has no effect: the scripts that run at the end are waited for"),
    ("dbus_", "is ignored: there is no D-Bus interface"),
    ("default_interface_", "has no effect"),
    ("disable_local_igmp", "has no effect"),
    ("dynamic_interfaces", "is always so: an interface may come and go"),
    ("email_faults", "is ignored: no mail is sent"),
    ("enable_dbus", "is ignored: there is no D-Bus interface"),
    ("enable_script_security", "is not checked: make sure that nobody else can write to the scripts"),
    ("enable_snmp", "is ignored: there is no SNMP agent"),
    ("instance", "has no effect"),
    ("lvs_", "concerns virtual servers"),
    ("max_auto_priority", "has no effect: real-time priority is what vrrp_rt_priority says"),
    ("nftables", "has no effect: what no_accept needs is made with nftables, in a table of its own"),
    ("no_email_faults", "is ignored: no mail is sent"),
    ("notification_email_from", "is ignored: no mail is sent"),
    ("notification_email", "is ignored: no mail is sent"),
    ("process_names", "has no effect"),
    ("script_rlimit", "has no effect"),
    ("smtp_", "is ignored: no mail is sent"),
    ("snmp_", "is ignored: there is no SNMP agent"),
    ("startup_script", "is not run"),
    ("shutdown_script", "is not run"),
    ("tmp_config_directory", "has no effect"),
    ("umask", "has no effect"),
    ("use_pid_dir", "has no effect"),
    ("use_symlink_paths", "has no effect"),
    ("vrrp_allow_no_vips", "has no effect: an advertisement needs an address"),
    ("vrrp_check_unicast_src", "is always so"),
    ("vrrp_cpu_affinity", "has no effect"),
    ("vrrp_garp_lower_prio_", "has no effect: who wins a contest announces again, as after a takeover"),
    ("vrrp_higher_prio_send_advert", "has no effect: RFC 9568 decides"),
    ("vrrp_ipsets", "has no effect: what no_accept needs is made with nftables, in a table of its own"),
    ("vrrp_iptables", "has no effect: what no_accept needs is made with nftables, in a table of its own"),
    ("vrrp_lower_prio_no_advert", "has no effect: RFC 9568 §6.4.3 answers a lower priority"),
    ("vrrp_min_garp", "has no effect"),
    ("vrrp_netlink_", "has no effect"),
    ("vrrp_nftables", "has no effect: what no_accept needs is made with nftables, in a table of its own"),
    ("vrrp_process_name", "has no effect"),
    ("vrrp_rlimit_", "has no effect"),
    ("vrrp_rx_bufs_", "has no effect"),
    ("vrrp_skip_check_adv_addr", "has no effect: the list is compared whoever sent it"),
    ("vrrp_startup_delay", "has no effect: every instance listens first"),
    (
        "vrrp_strict",
        "is noted: packets are always checked strictly, but virtual addresses accept packets unless no_accept is said",
    ),
    ("vrrp_version_", "has no effect"),
    ("vrrp_priority", "has no effect: niceness is the service manager's"),
    ("reload_", "has no effect: SIGHUP reloads"),
    ("config_save_dir", "has no effect"),
    ("data_use_instance", "has no effect"),
    ("log_unknown_vrids", "has no effect: packets of other virtual routers are sorted out in the kernel"),
    ("keep_script_", "has no effect"),
];

/// Keywords that mean something that cannot be left out.
const REFUSED: &[(&str, &str)] = &[
    ("vrrp_mcast_group4", "is not supported: advertisements go to 224.0.0.18"),
    ("vrrp_mcast_group6", "is not supported: advertisements go to ff02::12"),
    ("notify_fifo_script", "is not supported: start the FIFO's reader by the system's own means"),
    ("vrrp_notify_fifo_script", "is not supported: start the FIFO's reader by the system's own means"),
    ("notify_priority_changes", "is not supported"),
    ("vrrp_notify_priority_changes", "is not supported"),
];

impl Reader {
    pub(super) fn global(&mut self, block: &Statement, problems: &mut Problems) {
        for statement in block.body(problems) {
            self.global_statement(statement, problems);
        }
    }

    fn global_statement(&mut self, statement: &Statement, problems: &mut Problems) {
        let (configuration, defaults) = (&mut self.configuration, &mut self.defaults);
        let announcements = &mut defaults.announcements;
        match statement.keyword() {
            "router_id" => configuration.router_id = statement.one_name(problems),
            "net_namespace" => configuration.net_namespace = statement.one_name(problems),
            "notify_fifo" | "vrrp_notify_fifo" => configuration.fifos.extend(statement.one_name(problems)),
            "vrrp_rt_priority" => {
                configuration.rt_priority = statement.number(1..=99, problems).map(|number| number as u8);
            }
            "vrrp_no_swap" => configuration.no_swap = statement.switch(problems).unwrap_or(false),
            "vrrp_version" => defaults.version = version(statement, problems),
            "default_interface" => defaults.interface = statement.one_name(problems),
            "script_user" => defaults.script_user = script_user(statement, problems),
            "vrrp_garp_master_delay" => announcements.again_after = again_after(statement, problems),
            "vrrp_garp_master_repeat" => set_rounds(announcements, statement, problems),
            "vrrp_garp_master_refresh" => defaults.announce_refresh = again_after(statement, problems),
            "vrrp_garp_master_refresh_repeat" => problems.warn(statement, "has no effect: a refresh is sent once"),
            "vrrp_garp_interval" | "vrrp_gna_interval" => {
                if let Some(spacing) = statement.seconds(10.0, problems) {
                    announcements.spacing = spacing;
                }
            }
            keyword => other(keyword, statement, NOTED, REFUSED, problems),
        }
    }
}

/// A keyword that sets nothing.
pub(super) fn other(
    keyword: &str,
    statement: &Statement,
    noted: &[(&str, &str)],
    refused: &[(&str, &str)],
    problems: &mut Problems,
) {
    // A name that ends in '_' stands for all that begin so.
    let family = |(word, _): &&(&str, &str)| keyword == *word || (word.ends_with('_') && keyword.starts_with(word));
    if let Some((_, why)) = refused.iter().find(family) {
        problems.error(statement, why);
    } else if let Some((_, why)) = noted.iter().find(family) {
        problems.warn(statement, why);
    } else {
        problems.error(statement, "is not known");
    }
}

pub(super) fn version(statement: &Statement, problems: &mut Problems) -> Option<Version> {
    statement.number(2..=3, problems).map(|number| if number == 2 { Version::V2 } else { Version::V3 })
}

/// Seconds, of which 0 means never.
pub(super) fn again_after(statement: &Statement, problems: &mut Problems) -> Option<Duration> {
    statement.seconds(86_400.0, problems).filter(|delay| !delay.is_zero())
}

pub(super) fn set_rounds(announcements: &mut Announcements, statement: &Statement, problems: &mut Problems) {
    if let Some(rounds) = statement.number(0..=255, problems) {
        announcements.rounds = rounds as u8;
    }
}

fn script_user(statement: &Statement, problems: &mut Problems) -> Option<(String, Option<String>)> {
    match statement.arguments() {
        [user] => Some((user.clone(), None)),
        [user, group] => Some((user.clone(), Some(group.clone()))),
        _ => {
            problems.error(statement, "takes a user and perhaps a group");
            None
        }
    }
}
