//! What no single option shows: values that are possible, but not together or not here.
//!
//! Each function looks after one matter and complains where the value was given.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::finding::Level;
use crate::options::Role;
use crate::settings::Database;
use crate::value::Value;

/// Network types that are carried.
pub(crate) const CARRIED_TYPES: &[&str] = &["local", "flat", "vxlan"];

/// Mechanism drivers whose work is done by every host's L2.
const SERVED_MECHANISMS: &[&str] = &["linuxbridge", "openvswitch", "l2population"];

/// Longest name of a Linux network interface, in bytes (`IFNAMSIZ` less the final zero).
const LONGEST_INTERFACE_NAME: usize = 15;

pub(crate) fn all(config: &mut Config) {
    host_name(config);
    match config.role() {
        Role::Server => {
            network_types(config);
            ha_network(config);
            mechanism_drivers(config);
            extension_drivers(config);
            scheduler(config);
            base_macs(config);
            database(config);
            page_limit(config);
            keystone(config);
            url(config, "public_url", &["http://", "https://"]);
            tls(config);
        }
        Role::Host => {
            kernel_bridge(config);
            roles(config);
            tunnels(config);
            mappings(config);
            vrrp_password(config);
            vrrp_version(config);
            advertisements(config);
            port_filter(config);
            url(config, "server_url", &["https://", "http://"]);
            plain_server(config);
        }
    }
}

fn text<'a>(config: &'a Config, section: &str, name: &str) -> &'a str {
    match config.value(section, name) {
        Some(Value::Text(text)) => text,
        _ => "",
    }
}

fn list(config: &Config, section: &str, name: &str) -> Vec<String> {
    match config.value(section, name) {
        Some(Value::List(items)) => items.clone(),
        _ => Vec::new(),
    }
}

/// RFC 4861 §6.2.1: MinRtrAdvInterval is at most three quarters of MaxRtrAdvInterval.
fn advertisements(config: &mut Config) {
    let seconds = |name| match config.value("DEFAULT", name) {
        Some(Value::Int(seconds)) => Some(*seconds),
        _ => None,
    };
    if let (Some(least), Some(most)) = (seconds("min_rtr_adv_interval"), seconds("max_rtr_adv_interval"))
        && least * 4 > most * 3
    {
        let why = format!("{least} is more than three quarters of max_rtr_adv_interval, which is {most}");
        config.complain(Level::Error, "DEFAULT", "min_rtr_adv_interval", why);
    }
}

fn host_name(config: &mut Config) {
    let name = text(config, "DEFAULT", "host");
    // It becomes part of URLs and of state paths.
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#%".contains(c)) {
        let why = format!("'{name}' cannot be a host's name: it must not be empty, nor hold blanks or any of / ? # %");
        config.complain(Level::Error, "DEFAULT", "host", why);
    }
}

/// Where Keystone is to be asked, all must be there that asking takes.
fn keystone(config: &mut Config) {
    const SECTION: &str = "keystone_authtoken";
    for name in ["auth_url", "www_authenticate_uri"] {
        let value = text(config, SECTION, name);
        if !value.is_empty() && !value.starts_with("http://") && !value.starts_with("https://") {
            let why = format!("'{value}' is no URL that can be asked: it must begin with http:// or https://");
            config.complain(Level::Error, SECTION, name, why);
        }
    }
    if !crate::keystone::is_wanted(config) {
        return;
    }
    let any = |names: &[&str]| names.iter().any(|name| !text(config, SECTION, name).is_empty());
    let mut missing = Vec::new();
    if !any(&["auth_url", "www_authenticate_uri"]) {
        missing.push("auth_url");
    }
    if text(config, SECTION, "auth_type") == "v3applicationcredential" || any(&["application_credential_id"]) {
        missing.extend(["application_credential_id", "application_credential_secret"].iter().filter(|n| !any(&[n])));
    } else {
        if !any(&["username", "user_id"]) {
            missing.push("username");
        }
        if !any(&["password"]) {
            missing.push("password");
        }
    }
    for name in missing {
        let why =
            "Keystone cannot be asked without it (identity = embedded in section [evergate] does without Keystone)";
        config.complain(Level::Error, SECTION, name, why.to_owned());
    }
}

fn network_types(config: &mut Config) {
    if config.value("ml2", "type_drivers").is_none() {
        return; // It was refused already: one complaint is enough.
    }
    let drivers = list(config, "ml2", "type_drivers");
    for other in drivers.iter().filter(|t| !CARRIED_TYPES.contains(&t.as_str())) {
        let why = format!("networks of type {other} are not carried: the list counts as without it");
        config.complain(Level::Info, "ml2", "type_drivers", why);
    }
    for wanted in list(config, "ml2", "project_network_types") {
        if !CARRIED_TYPES.contains(&wanted.as_str()) {
            let why = format!("networks of type {wanted} are not carried; possible are {}", CARRIED_TYPES.join(", "));
            config.complain(Level::Error, "ml2", "project_network_types", why);
        } else if !drivers.contains(&wanted) {
            let why = format!("'{wanted}' is a project network type, but type_drivers does not list it");
            config.complain(Level::Error, "ml2", "project_network_types", why);
        }
    }
}

fn ha_network(config: &mut Config) {
    let kind = text(config, "DEFAULT", "l3_ha_network_type").to_owned();
    if !kind.is_empty() && !CARRIED_TYPES.contains(&kind.as_str()) {
        let why = format!("networks of type {kind} are not carried; possible are {}", CARRIED_TYPES.join(", "));
        config.complain(Level::Error, "DEFAULT", "l3_ha_network_type", why);
    }
    if kind == "flat" && text(config, "DEFAULT", "l3_ha_network_physical_name").is_empty() {
        let why = "flat HA networks need l3_ha_network_physical_name".to_owned();
        config.complain(Level::Error, "DEFAULT", "l3_ha_network_type", why);
    }
    if let Some(Value::Ipv4Cidr(net)) = config.value("DEFAULT", "l3_ha_net_cidr") {
        let net = *net;
        // Two copies and their VRIDs are the least that makes sense.
        if net.prefix_len() > 29 {
            let why = format!("{net} has no room for the copies of a router: /29 or larger is needed");
            config.complain(Level::Error, "DEFAULT", "l3_ha_net_cidr", why);
        }
    }
}

fn mechanism_drivers(config: &mut Config) {
    for driver in list(config, "ml2", "mechanism_drivers") {
        if !SERVED_MECHANISMS.contains(&driver.as_str()) {
            let why = format!("mechanism driver '{driver}' has no effect: every host's L2 is the kernel bridge");
            config.complain(Level::Warning, "ml2", "mechanism_drivers", why);
        }
    }
}

fn extension_drivers(config: &mut Config) {
    for driver in list(config, "ml2", "extension_drivers") {
        if driver != "port_security" {
            let why = format!("extension driver '{driver}' has no effect");
            config.complain(Level::Info, "ml2", "extension_drivers", why);
        }
    }
}

fn scheduler(config: &mut Config) {
    if text(config, "DEFAULT", "router_scheduler_driver").ends_with("ChanceScheduler") {
        let why = "routers go to the hosts with the fewest, not to any".to_owned();
        config.complain(Level::Info, "DEFAULT", "router_scheduler_driver", why);
    }
}

fn base_macs(config: &mut Config) {
    if let (Some(Value::Mac(base)), Some(Value::Mac(dvr))) =
        (config.value("DEFAULT", "base_mac"), config.value("DEFAULT", "dvr_base_mac"))
    {
        let (base, dvr) = (*base, *dvr);
        if base == dvr {
            let why = "it must differ from base_mac".to_owned();
            config.complain(Level::Error, "DEFAULT", "dvr_base_mac", why);
        }
        for (name, mac) in [("base_mac", base), ("dvr_base_mac", dvr)] {
            if mac.is_multicast() {
                let why = format!("{mac} is a group address: the first byte must be even");
                config.complain(Level::Error, "DEFAULT", name, why);
            }
        }
    }
}

/// Takes the path out of SQLAlchemy's `sqlite:///path`: a fourth slash makes it absolute.
pub(crate) fn sqlite_path(connection: &str) -> Option<&str> {
    let path = connection.strip_prefix("sqlite:///")?.split('?').next()?;
    (!path.is_empty()).then_some(path)
}

fn database(config: &mut Config) {
    if Database::from_url(text(config, "database", "connection")).is_none() {
        let why = "SQLite and PostgreSQL are spoken: give sqlite:/// and the path of a file (a fourth slash makes it \
                   absolute), or postgresql://user:password@host/database, or leave the option out"
            .to_owned();
        config.complain(Level::Error, "database", "connection", why);
    }
}

fn page_limit(config: &mut Config) {
    let limit = text(config, "DEFAULT", "pagination_max_limit");
    if limit != "infinite" && limit.parse::<i64>().is_err() {
        let why = format!("'{limit}' is neither a number nor 'infinite'");
        config.complain(Level::Error, "DEFAULT", "pagination_max_limit", why);
    }
}

/// Takes a list of URLs apart.
pub(crate) fn urls(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(|url| url.trim().trim_end_matches('/')).filter(|url| !url.is_empty())
}

fn url(config: &mut Config, name: &str, schemes: &[&str]) {
    let Some(Value::Text(given)) = config.value("evergate", name) else { return };
    if given.is_empty() && name == "public_url" {
        return;
    }
    let is_list = name == "server_url";
    let is_url = |url: &str| {
        let host = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or_default();
        !(host.is_empty() || host.starts_with('/') || url.contains(char::is_whitespace))
    };
    let fine = if is_list { urls(given).count() > 0 && urls(given).all(is_url) } else { is_url(given) };
    if !fine {
        let which = if is_list { ", or several, separated by commas" } else { "" };
        let why = format!("it must be {} and a host{which}", schemes.join(" or "));
        config.complain(Level::Error, "evergate", name, why);
    }
}

/// Files from before the stream had TLS say `http://`; it is the same port.
fn plain_server(config: &mut Config) {
    if urls(text(config, "evergate", "server_url")).any(|url| url.starts_with("http://")) {
        let why = "the host speaks TLS with its server: http:// counts as https://".to_owned();
        config.complain(Level::Warning, "evergate", "server_url", why);
    }
}

/// A key or clients' authorities without a certificate are half of something.
fn tls(config: &mut Config) {
    if !text(config, "ssl", "key_file").is_empty() && text(config, "ssl", "cert_file").is_empty() {
        let why = "a key without its certificate has no effect: set cert_file as well".to_owned();
        config.complain(Level::Error, "ssl", "key_file", why);
    }
    let only = config.value("DEFAULT", "use_ssl") == Some(&Value::Bool(true));
    if !text(config, "ssl", "ca_file").is_empty() && !only {
        let why =
            "clients of plain HTTP show no certificate, and are let in: set use_ssl in section [DEFAULT]".to_owned();
        config.complain(Level::Error, "ssl", "ca_file", why);
    }
    let public = text(config, "evergate", "public_url");
    if public.starts_with("http://") && only {
        let why = "use_ssl is on: clients that are told http:// are turned away; set https://".to_owned();
        config.complain(Level::Error, "evergate", "public_url", why);
    }
}

/// Tells whether the files speak of Open vSwitch on this host.
pub(crate) fn speaks_of_ovs(config: &Config) -> bool {
    let driver = text(config, "DEFAULT", "interface_driver");
    let in_ovs_section = ["local_ip", "bridge_mappings", "integration_bridge", "tunnel_bridge"];
    driver == "openvswitch"
        || driver.ends_with("OVSInterfaceDriver")
        || in_ovs_section.into_iter().any(|name| config.is_given("ovs", name))
}

fn kernel_bridge(config: &mut Config) {
    if speaks_of_ovs(config) {
        let text = "the files ask for Open vSwitch: the kernel bridge does its work".to_owned();
        config.complain(Level::Info, "DEFAULT", "interface_driver", text);
    }
}

fn roles(config: &mut Config) {
    if list(config, "evergate", "roles").is_empty() {
        config.complain(Level::Error, "evergate", "roles", "a host needs a role: l2, l3 or both".to_owned());
    }
}

fn tunnels(config: &mut Config) {
    let types = list(config, "agent", "tunnel_types");
    for other in types.iter().filter(|t| *t != "vxlan") {
        let level = if types.iter().any(|t| t == "vxlan") { Level::Warning } else { Level::Error };
        let why = format!("tunnels of type {other} are not spoken: only vxlan is");
        config.complain(level, "agent", "tunnel_types", why);
    }
    for section in ["ovs", "vxlan"] {
        if let Some(Value::Ip(ip)) = config.value(section, "local_ip") {
            let ip = *ip;
            if ip.is_unspecified() || ip.is_multicast() {
                config.complain(Level::Error, section, "local_ip", format!("tunnels cannot end at {ip}"));
            }
        }
    }
    for [ours, theirs] in
        [[("ovs", "local_ip"), ("vxlan", "local_ip")], [("agent", "vxlan_udp_port"), ("vxlan", "udp_dstport")]]
    {
        let both_given = config.is_given(ours.0, ours.1) && config.is_given(theirs.0, theirs.1);
        if both_given && config.value(ours.0, ours.1) != config.value(theirs.0, theirs.1) {
            let why = format!("it contradicts option '{}' in section [{}]", ours.1, ours.0);
            config.complain(Level::Error, theirs.0, theirs.1, why);
        }
    }
}

fn mappings(config: &mut Config) {
    let options = [
        ("ovs", "bridge_mappings"),
        ("linux_bridge", "bridge_mappings"),
        ("linux_bridge", "physical_interface_mappings"),
    ];
    for (section, name) in options {
        let Some(Value::Mapping(map)) = config.value(section, name) else { continue };
        let bad: Vec<String> = map.values().filter(|device| !is_interface_name(device)).cloned().collect();
        for device in bad {
            let why = format!("'{device}' cannot be an interface's name (at most {LONGEST_INTERFACE_NAME} characters)");
            config.complain(Level::Error, section, name, why);
        }
    }
    let both: [BTreeMap<String, String>; 2] =
        ["ovs", "linux_bridge"].map(|section| match config.value(section, "bridge_mappings") {
            Some(Value::Mapping(map)) => map.clone(),
            _ => BTreeMap::new(),
        });
    for (network, bridge) in &both[1] {
        if both[0].get(network).is_some_and(|other| other != bridge) {
            let why = format!("'{network}' is mapped to '{bridge}' here, but to another bridge in section [ovs]");
            config.complain(Level::Error, "linux_bridge", "bridge_mappings", why);
        }
    }
}

fn is_interface_name(name: &str) -> bool {
    (1..=LONGEST_INTERFACE_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

fn vrrp_password(config: &mut Config) {
    let password = text(config, "DEFAULT", "ha_vrrp_auth_password");
    let (empty, long) = (password.is_empty(), password.len() > 8);
    if !empty && text(config, "DEFAULT", "ha_vrrp_auth_type") == "AH" {
        let why = "authentication by AH is not spoken: use PASS".to_owned();
        config.complain(Level::Error, "DEFAULT", "ha_vrrp_auth_type", why);
    }
    if long {
        // RFC 2338 §5.3.10: the authentication data are eight bytes.
        let why = "the password is longer than the eight bytes that VRRP carries: the rest has no effect".to_owned();
        config.complain(Level::Warning, "DEFAULT", "ha_vrrp_auth_password", why);
    }
}

/// Version 3 has shorter intervals than version 2, and less of everything else.
fn vrrp_version(config: &mut Config) {
    let number = |section, name| match config.value(section, name) {
        Some(Value::Int(number)) => Some(*number),
        _ => None,
    };
    let version = number("evergate", "vrrp_version");
    let (seconds, ms) = (number("DEFAULT", "ha_vrrp_advert_int"), number("evergate", "vrrp_advert_interval_ms"));
    if let Some(ms) = ms {
        if version == Some(2) {
            let why = "VRRP version 2 has whole seconds, as ha_vrrp_advert_int: set vrrp_version = 3 in section \
                       [evergate], or leave this out";
            config.complain(Level::Error, "evergate", "vrrp_advert_interval_ms", why.to_owned());
        } else if ms % 10 != 0 {
            let why = format!("{ms} cannot be advertised: VRRP version 3 has steps of 10 milliseconds");
            config.complain(Level::Error, "evergate", "vrrp_advert_interval_ms", why);
        }
    }
    if version != Some(3) {
        return;
    }
    if ms.is_none() && seconds.is_some_and(|seconds| seconds > 40) {
        let why = "VRRP version 3 has at most 40 seconds (vrrp_advert_interval_ms: 40950)".to_owned();
        config.complain(Level::Error, "DEFAULT", "ha_vrrp_advert_int", why);
    }
    // Whoever set one believes that it is asked for.
    if !text(config, "DEFAULT", "ha_vrrp_auth_password").is_empty() {
        let why = "VRRP version 3 has no password (RFC 9568 section 9): leave it out, or set vrrp_version = 2 in \
                   section [evergate]";
        config.complain(Level::Error, "DEFAULT", "ha_vrrp_auth_password", why.to_owned());
    }
}

/// Whoever configured a firewall believes that it is there.
fn port_filter(config: &mut Config) {
    if config.is_given("securitygroup", "firewall_driver")
        && config.value("securitygroup", "enable_security_group") != Some(&Value::Bool(false))
    {
        let why = "ports are not filtered yet: security groups have no effect on this host".to_owned();
        config.complain(Level::Warning, "securitygroup", "firewall_driver", why);
    }
}
