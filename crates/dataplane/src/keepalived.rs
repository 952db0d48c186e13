//! The equivalent `keepalived.conf` of an HA router copy, which a stock keepalived can run from.

use std::fmt;
use std::net::IpAddr;

use evergate_model::RouterId;
use evergate_model::host::HaCopy;

use crate::compile::Prepared;
use crate::op::Op;
use crate::state::{Address, Route};

/// How the copies of all routers on a host elect, from `l3_agent.ini`.
#[derive(Clone, PartialEq, Eq)]
pub struct VrrpSettings {
    /// VRRP version: 2, or 3 (`vrrp_version`).
    pub version: u8,
    /// Advertisement interval in centiseconds (`ha_vrrp_advert_int`, or `vrrp_advert_interval_ms`).
    pub advertise_interval_cs: u16,
    /// Whether a higher priority takes over from a living active.
    pub preempt: bool,
    /// Seconds to wait after start before preempting.
    pub preempt_delay_s: u32,
    /// Simple password (`ha_vrrp_auth_password`).
    pub password: Option<String>,
    /// How gateways are checked, if they are.
    pub health_check: Option<HealthCheck>,
}

/// How gateways are checked (`ha_vrrp_health_check_interval` and its companions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Seconds between two checks.
    pub interval_s: u32,
    /// Checks in a row that fail before gateways count as lost.
    pub fall: u8,
    /// Checks in a row that succeed before they count as found.
    pub rise: u8,
    /// Folder of all routers' folders, where the script lies.
    pub ha_confs: String,
}

impl Default for VrrpSettings {
    fn default() -> Self {
        // Neutron's defaults: version 2, 2 s, nopreempt, no password.
        Self {
            version: 2,
            advertise_interval_cs: 200,
            preempt: false,
            preempt_delay_s: 0,
            password: None,
            health_check: None,
        }
    }
}

impl fmt::Debug for VrrpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VrrpSettings")
            .field("version", &self.version)
            .field("advertise_interval_cs", &self.advertise_interval_cs)
            .field("preempt", &self.preempt)
            .field("preempt_delay_s", &self.preempt_delay_s)
            .field("password", &self.password.as_ref().map(|_| "<secret>"))
            .field("health_check", &self.health_check)
            .finish()
    }
}

/// Renders the configuration of one copy, as Neutron lays it out. The text holds the password: the file
/// must be private.
///
/// Deviation: Neutron lists a link-local address of every device. Ours have IPv6 only where they have
/// an IPv6 address.
pub fn render(router: RouterId, copy: &HaCopy, prepared: &Prepared, settings: &VrrpSettings) -> String {
    let link = &prepared.ha_link;
    let mut text = String::new();
    let mut line = |depth: usize, words: &str| {
        text += &"    ".repeat(depth);
        text += words;
        text.push('\n');
    };
    line(0, "global_defs {");
    line(1, "notification_email_from neutron@openstack.local");
    line(1, "router_id neutron");
    if settings.version != 2 {
        line(1, &format!("vrrp_version {}", settings.version));
    }
    line(0, "}");
    let check = settings.health_check.as_ref().filter(|_| !prepared.gateways.is_empty());
    if let Some(check) = check {
        line(0, &format!("vrrp_script ha_health_check_{} {{", copy.vrid));
        line(1, &format!("script \"{}/{}/{}\"", check.ha_confs, router, script_name(copy)));
        line(1, &format!("interval {}", check.interval_s));
        line(1, &format!("fall {}", check.fall));
        line(1, &format!("rise {}", check.rise));
        line(0, "}");
    }
    line(0, &format!("vrrp_instance VR_{} {{", copy.vrid));
    line(1, "state BACKUP");
    line(1, &format!("interface {link}"));
    line(1, &format!("virtual_router_id {}", copy.vrid));
    line(1, &format!("priority {}", copy.priority));
    line(1, &format!("garp_master_delay {GARP_MASTER_DELAY_S}"));
    if !settings.preempt {
        line(1, "nopreempt");
    } else if settings.preempt_delay_s > 0 {
        line(1, &format!("preempt_delay {}", settings.preempt_delay_s));
    }
    line(1, &format!("advert_int {}", seconds(settings.advertise_interval_cs)));
    match settings.password.as_deref().map(word) {
        Some(Some(password)) => {
            line(1, "authentication {");
            line(2, "auth_type PASS");
            line(2, &format!("auth_pass {password}"));
            line(1, "}");
        }
        Some(None) => line(1, "# ha_vrrp_auth_password holds a quotation mark, which this file cannot express"),
        None => {}
    }
    line(1, "track_interface {");
    line(2, link);
    line(1, "}");
    line(1, "virtual_ipaddress {");
    line(2, &format!("{} dev {link}", copy.virtual_address));
    line(1, "}");
    block(&mut line, "virtual_ipaddress_excluded", excluded_addresses(prepared));
    block(&mut line, "virtual_routes", routes(prepared));
    if check.is_some() {
        block(&mut line, "track_script", vec![format!("ha_health_check_{}", copy.vrid)]);
    }
    line(0, "}");
    text
}

/// Name of the script in the router's folder, which a keepalived runs to check the gateways.
pub fn script_name(copy: &HaCopy) -> String {
    format!("ha_check_script_{}.sh", copy.vrid)
}

/// The script, as Neutron writes it: a copy that is not active has nothing to check. Evergate's own keeper does
/// not run it; it asks the gateways itself.
pub fn script(copy: &HaCopy, prepared: &Prepared) -> String {
    let mut text = format!("#!/bin/sh -eu\nip a | grep -qF {} || exit 0\n", copy.virtual_address);
    for one in &prepared.gateways {
        let ping = if one.gateway.is_ipv4() { "ping" } else { "ping6" };
        text += &format!("{ping} -c 1 -w 1 {} >/dev/null || exit 1\n", one.gateway);
    }
    text
}

/// Seconds after which an active copy announces its addresses a second time; Neutron's figure.
const GARP_MASTER_DELAY_S: u32 = 60;

fn block(line: &mut impl FnMut(usize, &str), name: &str, entries: Vec<String>) {
    if entries.is_empty() {
        return;
    }
    line(1, &format!("{name} {{"));
    entries.iter().for_each(|entry| line(2, entry));
    line(1, "}");
}

/// What moves with the role but is not in advertisements. `no_track`: a flapping `qg-` or `qr-` device is
/// no reason to give the role away.
fn excluded_addresses(prepared: &Prepared) -> Vec<String> {
    let addresses = prepared
        .items
        .iter()
        .filter_map(|item| if let Op::AddAddress { address, .. } = &item.add { Some(address) } else { None });
    let excluded = addresses.filter(|address| address.link != prepared.ha_link);
    let scope = |address: &Address| match address.net.addr() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => " scope link",
        IpAddr::V4(_) | IpAddr::V6(_) => "",
    };
    excluded.map(|address| format!("{} dev {}{} no_track", address.net, address.link, scope(address))).collect()
}

fn routes(prepared: &Prepared) -> Vec<String> {
    let routes = prepared
        .items
        .iter()
        .filter_map(|item| if let Op::AddRoute { route, .. } = &item.add { Some(route) } else { None });
    routes.map(route).collect()
}

fn route(route: &Route) -> String {
    let mut words = route.destination.to_string();
    if let Some(via) = route.via {
        words += &format!(" via {via}");
    }
    if let Some(link) = &route.link {
        words += &format!(" dev {link}");
    }
    if route.via.is_none() {
        words += " scope link";
    }
    words + " no_track protocol static"
}

/// Whole seconds as Neutron writes them; keepalived takes fractions, too.
fn seconds(cs: u16) -> String {
    let (whole, rest) = (cs / 100, cs % 100);
    match (rest, rest % 10) {
        (0, _) => whole.to_string(),
        (_, 0) => format!("{whole}.{}", rest / 10),
        _ => format!("{whole}.{rest:02}"),
    }
}

/// The password as one word: quoted where keepalived's parser would take it apart or read it as a comment
/// or a block. A quotation mark itself cannot be written at all.
fn word(password: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,%^*".contains(c);
    match password {
        "" => Some("\"\"".to_owned()),
        text if text.contains('"') => None,
        text if text.chars().all(plain) => Some(text.to_owned()),
        text => Some(format!("\"{text}\"")),
    }
}
