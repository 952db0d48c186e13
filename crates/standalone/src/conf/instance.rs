//! `vrrp_instance` and `vrrp_sync_group`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use evergate_vrrp::router::{Config, InvalidConfig, Version, Vrid};
use evergate_vrrp::wire::Unsendable;

use super::global::{again_after, other, set_rounds, version};
use super::objects::{command, virtual_address, virtual_route, virtual_rule};
use super::syntax::{Place, Problems, Statement};
use super::trackers::tracked;
use super::{Group, Instance, Notify, Password, Reader, Vmac, What};

/// Longest preempt_delay, as keepalived has it.
const MOST_PREEMPT_DELAY: f64 = 1000.0;

const NOTED: &[(&str, &str)] = &[
    ("debug", "has no effect: set EVERGATE_LOG=debug"),
    ("check_unicast_src", "is always so"),
    ("smtp_alert", "is ignored: no mail is sent"),
    ("garp_lower_prio_", "has no effect: who wins a contest announces again, as after a takeover"),
    ("garp_master_refresh_repeat", "has no effect: a refresh is sent once"),
    ("lower_prio_no_advert", "has no effect: RFC 9568 §6.4.3 answers a lower priority"),
    ("higher_prio_send_advert", "has no effect: RFC 9568 decides"),
    ("kernel_rx_buf_size", "has no effect"),
    ("skip_check_adv_addr", "has no effect: the list is compared whoever sent it"),
    ("strict_mode", "is noted: packets are always checked strictly; say no_accept if that is meant, too"),
    ("linkbeat_use_polling", "has no effect"),
    ("track_src_ip", "is always so"),
    ("dont_track_primary", "is not possible: without its interface an instance cannot take part"),
];

const REFUSED: &[(&str, &str)] = &[
    ("use_ipvlan", "is not supported: remove it, and addresses move with gratuitous ARP"),
    ("use_vmac_addr", "is not supported: addresses on other interfaces move with gratuitous ARP; remove it"),
    ("vmac_addr", "is not supported: the virtual router's Ethernet address is the standard's"),
    ("unicast_fault_no_peer", "is not supported"),
    ("mcast_dst_ip", "is not supported: advertisements go to the group of the standard"),
    ("notify_master_rx_lower_pri", "is not supported"),
    ("notify_priority_changes", "is not supported"),
    ("notify_deleted", "is not supported: use notify_stop"),
];

/// What is known of an instance while its block is read.
struct Draft<'a> {
    place: &'a Place,
    name: String,
    interface: Option<String>,
    vrid: Option<Vrid>,
    version: Option<Version>,
    native_ipv6: bool,
    interval: Option<(Place, f64)>,
    password: Option<(Place, Password)>,
    wants_password: bool,
    unicast_source: bool,
    /// Where `use_vmac` is, and the name that it gives.
    vmac: Option<(&'a Statement, Option<String>)>,
    transmit_from_base: Option<&'a Statement>,
    /// Blocks that need the interface's name, which may come later.
    addresses: Vec<&'a Statement>,
    excluded: Vec<&'a Statement>,
    instance: Instance,
}

impl Reader {
    pub(super) fn instance(&mut self, block: &Statement, problems: &mut Problems) {
        let Some(name) = block.one_name(problems) else { return };
        if self.places.insert(name.clone(), block.place.clone()).is_some() {
            return problems.error(block, format!("'{name}' is there twice"));
        }
        let mut draft = self.draft(block, name);
        for statement in block.body(problems) {
            self.instance_statement(&mut draft, statement, problems);
        }
        if let Some(instance) = finish(draft, problems) {
            self.configuration.instances.push(instance);
        }
    }

    fn draft<'a>(&self, block: &'a Statement, name: String) -> Draft<'a> {
        Draft {
            place: &block.place,
            name: name.clone(),
            interface: self.defaults.interface.clone(),
            vrid: None,
            version: self.defaults.version,
            native_ipv6: false,
            interval: None,
            password: None,
            wants_password: false,
            unicast_source: false,
            vmac: None,
            transmit_from_base: None,
            addresses: Vec::new(),
            excluded: Vec::new(),
            instance: Instance {
                name,
                interface: String::new(),
                vrid: Vrid::new(1).expect("1 is not 0"),
                version: Version::V2,
                ipv6: false,
                // keepalived's default, and the RFC's.
                priority: 100,
                interval_cs: 100,
                preempt: true,
                preempt_delay: Duration::ZERO,
                password: None,
                source: None,
                unicast_peers: BTreeSet::new(),
                addresses: Vec::new(),
                excluded: Vec::new(),
                routes: Vec::new(),
                rules: Vec::new(),
                tracked: Vec::new(),
                accept: true,
                vmac: None,
                announcements: self.defaults.announcements,
                announce_refresh: self.defaults.announce_refresh,
                notify: Notify::default(),
            },
        }
    }

    fn instance_statement<'a>(&self, draft: &mut Draft<'a>, statement: &'a Statement, problems: &mut Problems) {
        let instance = &mut draft.instance;
        match statement.keyword() {
            "interface" => draft.interface = statement.one_name(problems),
            "virtual_router_id" => {
                draft.vrid = statement.number(1..=255, problems).and_then(|number| Vrid::new(number as u8));
            }
            "version" => draft.version = version(statement, problems),
            "native_ipv6" => draft.native_ipv6 = statement.switch(problems).unwrap_or(false),
            "state" => state(statement, problems),
            "priority" => instance.priority = statement.number(1..=255, problems).unwrap_or(100) as u8,
            "advert_int" => draft.interval = interval(statement, problems),
            "nopreempt" => instance.preempt = !statement.switch(problems).unwrap_or(true),
            "preempt" => instance.preempt = statement.switch(problems).unwrap_or(true),
            "preempt_delay" => {
                instance.preempt_delay = statement.seconds(MOST_PREEMPT_DELAY, problems).unwrap_or_default();
            }
            "authentication" => authentication(draft, statement, problems),
            "auth_type" | "auth_pass" => authentication_word(draft, statement, problems),
            "unicast_src_ip" | "mcast_src_ip" => {
                instance.source = address(statement, statement.one(problems), problems);
                draft.unicast_source = true;
            }
            "unicast_peer" => {
                for peer in statement.body(problems) {
                    // Options of a peer (min_ttl, max_ttl) come after its address.
                    if !peer.arguments().is_empty() || peer.block.is_some() {
                        problems.error(peer, "is a peer; limits of its TTL are not supported");
                    }
                    instance.unicast_peers.extend(address(peer, Some(peer.keyword()), problems));
                }
            }
            "virtual_ipaddress" => draft.addresses.extend(statement.body(problems)),
            "virtual_ipaddress_excluded" => draft.excluded.extend(statement.body(problems)),
            "virtual_routes" => {
                let routes = statement.body(problems).iter().filter_map(|route| virtual_route(route, problems));
                instance.routes.extend(routes);
            }
            "virtual_rules" => {
                instance.rules.extend(statement.body(problems).iter().filter_map(|rule| virtual_rule(rule, problems)));
            }
            "accept" => instance.accept = statement.switch(problems).unwrap_or(true),
            "no_accept" => instance.accept = !statement.switch(problems).unwrap_or(true),
            "use_vmac" => draft.vmac = use_vmac(statement, problems),
            "vmac_xmit_base" => draft.transmit_from_base = Some(statement),
            "garp_master_delay" => instance.announcements.again_after = again_after(statement, problems),
            "garp_master_repeat" => set_rounds(&mut instance.announcements, statement, problems),
            "garp_master_refresh" => instance.announce_refresh = again_after(statement, problems),
            keyword if is_notify(keyword) => {
                let user = self.defaults.script_user.as_ref();
                notify(&mut instance.notify, statement, user, problems);
            }
            keyword => match What::of_block(keyword) {
                Some(what) => instance.tracked.extend(tracked(statement, what, problems)),
                None => other(keyword, statement, NOTED, REFUSED, problems),
            },
        }
    }

    pub(super) fn group(&mut self, block: &Statement, problems: &mut Problems) {
        let Some(name) = block.one_name(problems) else { return };
        if self.places.insert(format!("group {name}"), block.place.clone()).is_some() {
            return problems.error(block, format!("'{name}' is there twice"));
        }
        let mut group = Group { name, members: Vec::new(), tracked: Vec::new(), notify: Notify::default() };
        for statement in block.body(problems) {
            match statement.keyword() {
                "group" => {
                    let members = statement.body(problems).iter().flat_map(|line| line.words.iter().cloned());
                    group.members.extend(members);
                }
                "global_tracking" | "sync_group_tracking_weight" => {
                    problems.warn(statement, "has no effect: what a group tracks counts for each member");
                }
                keyword if is_notify(keyword) => {
                    notify(&mut group.notify, statement, self.defaults.script_user.as_ref(), problems);
                }
                keyword => match What::of_block(keyword) {
                    Some(what) => group.tracked.extend(tracked(statement, what, problems)),
                    None => other(keyword, statement, NOTED, REFUSED, problems),
                },
            }
        }
        if group.members.is_empty() {
            problems.error(block, format!("'{}' has no members", group.name));
        }
        self.configuration.groups.push(group);
    }
}

/// Everything is read: what must be there, is it; and does it fit together?
fn finish(mut draft: Draft<'_>, problems: &mut Problems) -> Option<Instance> {
    let place = draft.place.clone();
    let name = draft.name.clone();
    let missing = |what: &str| format!("vrrp_instance '{name}' has no {what}");
    let Some(interface) = draft.interface.take() else {
        problems.error_at(&place, missing("interface"));
        return None;
    };
    let Some(vrid) = draft.vrid else {
        problems.error_at(&place, missing("virtual_router_id"));
        return None;
    };
    let mut instance = draft.instance.clone();
    // The family of the addresses, which the device's usual name tells, is known only when they are read.
    let on = draft.vmac.as_ref().map_or(interface.as_str(), |_| VMAC);
    let read = |lines: &[&Statement], problems: &mut Problems| {
        lines.iter().filter_map(|line| virtual_address(line, on, problems)).collect::<Vec<_>>()
    };
    instance.addresses = read(&draft.addresses, problems);
    instance.excluded = read(&draft.excluded, problems);
    let Some(first) = instance.addresses.first() else {
        problems.error_at(&place, missing("usable virtual_ipaddress, which an advertisement needs"));
        return None;
    };
    instance.ipv6 = draft.native_ipv6 || first.net.addr().is_ipv6();
    if let Some(line) =
        instance.addresses.iter().zip(&draft.addresses).find(|(a, _)| a.net.addr().is_ipv6() != instance.ipv6)
    {
        problems.error(line.1, "is of another address family: move it to virtual_ipaddress_excluded");
    }
    for address in instance.source.iter().chain(&instance.unicast_peers) {
        if address.is_ipv6() != instance.ipv6 {
            problems.error_at(&place, format!("'{name}': {address} is of another address family"));
        }
    }
    if draft.unicast_source && instance.unicast_peers.is_empty() && instance.ipv6 {
        let link_local = matches!(instance.source, Some(IpAddr::V6(ip)) if ip.is_unicast_link_local());
        if !link_local {
            problems.error_at(&place, format!("'{name}': over multicast, the source must be a link-local address"));
        }
    }
    instance.interface = interface;
    instance.vrid = vrid;
    set_vmac(&draft, &mut instance, problems);
    instance.version = draft.version.unwrap_or(if instance.ipv6 { Version::V3 } else { Version::V2 });
    set_password(&draft, &mut instance, problems);
    set_interval(&draft, &mut instance, problems);
    if instance.priority == 255 && !instance.preempt {
        problems.warn_at(&place, format!("'{name}': an address owner (priority 255) preempts all the same"));
    }
    check(&draft, &instance, problems);
    Some(instance)
}

/// Stands for the device of `use_vmac` until its name is known.
const VMAC: &str = "\0";

fn use_vmac<'a>(statement: &'a Statement, problems: &mut Problems) -> Option<(&'a Statement, Option<String>)> {
    match statement.arguments() {
        [] => Some((statement, None)),
        [name] if !name.is_empty() && name.len() <= 15 && !name.contains([':', '/']) => {
            Some((statement, Some(name.clone())))
        }
        [_] => {
            problems.error(statement, "takes the name of a device, at most 15 characters");
            None
        }
        [..] => {
            problems.error(statement, "takes a name alone: the Ethernet address is the standard's");
            None
        }
    }
}

fn set_vmac(draft: &Draft<'_>, instance: &mut Instance, problems: &mut Problems) {
    let transmit_from_base = draft.transmit_from_base.is_some();
    let Some((statement, name)) = &draft.vmac else {
        if let Some(statement) = draft.transmit_from_base {
            problems.error(statement, "means nothing without use_vmac: remove it");
        }
        return;
    };
    if !instance.unicast_peers.is_empty() && !transmit_from_base {
        problems.error(statement, "needs vmac_xmit_base with unicast_peer");
    }
    let family = if instance.ipv6 { "vrrp6" } else { "vrrp" };
    let link = name.clone().unwrap_or_else(|| format!("{family}.{}", instance.vrid));
    for address in instance.addresses.iter_mut().chain(&mut instance.excluded).filter(|address| address.dev == VMAC) {
        address.dev.clone_from(&link);
    }
    instance.vmac = Some(Vmac { link, transmit_from_base });
}

fn set_password(draft: &Draft<'_>, instance: &mut Instance, problems: &mut Problems) {
    match (&draft.password, draft.wants_password) {
        (Some((place, _)), _) if instance.version == Version::V3 => {
            problems.warn_at(place, "version 3 has no authentication: the password is ignored".to_owned());
        }
        (Some((_, password)), true) => instance.password = Some(password.clone()),
        (Some((place, _)), false) => {
            problems.error_at(place, "auth_pass needs auth_type PASS".to_owned());
        }
        (None, true) => {
            problems.error_at(draft.place, format!("'{}': auth_type PASS needs auth_pass", draft.name));
        }
        (None, false) => {}
    }
}

fn set_interval(draft: &Draft<'_>, instance: &mut Instance, problems: &mut Problems) {
    let Some((place, seconds)) = &draft.interval else { return };
    let centiseconds = (seconds * 100.0).round();
    let (most, whole) = match instance.version {
        Version::V2 => (25_500.0, true),
        Version::V3 => (4095.0, false),
    };
    if !(1.0..=most).contains(&centiseconds) {
        return problems.error_at(place, format!("advert_int must be 0.01 to {} seconds", most / 100.0));
    }
    if whole && centiseconds % 100.0 != 0.0 {
        let text = "advert_int must be whole seconds in version 2: use version 3 for less".to_owned();
        return problems.error_at(place, text);
    }
    instance.interval_cs = centiseconds as u16;
}

/// Asks the engine whether it could run this.
fn check(draft: &Draft<'_>, instance: &Instance, problems: &mut Problems) {
    let any: IpAddr = if instance.ipv6 { [0xfe80, 0, 0, 0, 0, 0, 0, 1].into() } else { [192, 0, 2, 1].into() };
    let config: Config = instance.config(instance.priority, any, evergate_vrrp::wire::Ipv4Checksum::default());
    let text = match config.validate() {
        // Already said, with the line.
        Ok(()) | Err(InvalidConfig::Unsendable(Unsendable::MixedFamilies)) if instance.version == Version::V3 => return,
        Ok(()) => return,
        Err(InvalidConfig::Unsendable(Unsendable::FirstNotLinkLocal)) => {
            "the first virtual IPv6 address must be link-local (RFC 9568 §5.2.9): put one, such as fe80::1, before \
             the others"
                .to_owned()
        }
        Err(InvalidConfig::Unsendable(Unsendable::MixedFamilies)) if instance.ipv6 => {
            "version 2 knows IPv4 alone: say version 3".to_owned()
        }
        Err(InvalidConfig::Unsendable(Unsendable::MixedFamilies)) => return,
        Err(InvalidConfig::Unsendable(cause)) => cause.to_string(),
        Err(cause) => cause.to_string(),
    };
    problems.error_at(draft.place, format!("'{}': {text}", draft.name));
}

fn state(statement: &Statement, problems: &mut Problems) {
    match statement.one(problems) {
        // Only tells what keepalived shows before the election, but for the address owner.
        Some("MASTER" | "BACKUP") | None => {}
        Some(other) => problems.error(statement, format!("must be MASTER or BACKUP, not '{other}'")),
    }
}

fn interval(statement: &Statement, problems: &mut Problems) -> Option<(Place, f64)> {
    let text = statement.one(problems)?;
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() => Some((statement.place.clone(), seconds)),
        Ok(_) | Err(_) => {
            problems.error(statement, format!("must be seconds, not '{text}'"));
            None
        }
    }
}

fn authentication(draft: &mut Draft<'_>, block: &Statement, problems: &mut Problems) {
    for statement in block.body(problems) {
        authentication_word(draft, statement, problems);
    }
}

fn authentication_word(draft: &mut Draft<'_>, statement: &Statement, problems: &mut Problems) {
    match statement.keyword() {
        "auth_type" => match statement.one(problems) {
            Some("PASS") => draft.wants_password = true,
            Some("AH") => problems.error(
                statement,
                "AH is not supported (RFC 3768 removed it): use PASS against mistakes, and a firewall or IPsec against people",
            ),
            Some(_) => problems.error(statement, "must be PASS"),
            None => {}
        },
        // What is wrong with a password is said without it.
        "auth_pass" => match statement.arguments() {
            [text] => {
                if text.len() > 8 {
                    problems.warn(statement, "is longer than 8 bytes: the rest is cut, as everywhere");
                }
                let password = Password(evergate_vrrp::wire::password(text));
                draft.password = Some((statement.place.clone(), password));
            }
            _ => problems.error(statement, "takes one word"),
        },
        _ => problems.error(statement, "is not known"),
    }
}

pub(super) fn address(statement: &Statement, text: Option<&str>, problems: &mut Problems) -> Option<IpAddr> {
    let text = text?;
    let parsed = text.parse();
    if parsed.is_err() {
        problems.error(statement, format!("'{text}' is not an IP address"));
    }
    parsed.ok()
}

fn is_notify(keyword: &str) -> bool {
    matches!(keyword, "notify" | "notify_master" | "notify_backup" | "notify_fault" | "notify_stop")
}

fn notify(
    notify: &mut Notify,
    statement: &Statement,
    user: Option<&(String, Option<String>)>,
    problems: &mut Problems,
) {
    let Some(command) = command(statement, user, problems) else { return };
    let place = match statement.keyword() {
        "notify_master" => &mut notify.master,
        "notify_backup" => &mut notify.backup,
        "notify_fault" => &mut notify.fault,
        "notify_stop" => &mut notify.stop,
        _ => &mut notify.any,
    };
    *place = Some(command);
}

impl Instance {
    /// What the engine is told, at this priority and from this address.
    pub(crate) fn config(
        &self,
        priority: u8,
        primary_address: IpAddr,
        ipv4_checksum: evergate_vrrp::wire::Ipv4Checksum,
    ) -> Config {
        Config {
            vrid: self.vrid,
            version: self.version,
            priority,
            advertise_interval_cs: self.interval_cs,
            preempt: self.preempt,
            preempt_delay: self.preempt_delay,
            password: self.password.as_ref().map(|password| password.0),
            primary_address,
            addresses: self.addresses.iter().map(|address| address.net.addr()).collect(),
            peers: BTreeSet::new(),
            agreement: None,
            announcements: self.announcements,
            handicap: 0,
            interop: evergate_vrrp::router::Interop { ipv4_checksum, ..Default::default() },
        }
    }
}
