//! What the server is told: at once when something changed, else every `report_interval`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_config::HostSettings;
use evergate_model::host::{AgentKind, AgentReport, HaStateReport, HostConfig, HostReport};
use evergate_model::{HaState, RouterId};
use serde_json::{Map, Value, json};

use super::keeper::Role;
use crate::round::Outcome;

/// Warnings sent at most: the first of thousands tell the same.
const MOST_WARNINGS: usize = 50;

/// What a report is made from.
pub(super) struct Facts<'a> {
    pub(super) settings: &'a HostSettings,
    pub(super) vtep: Option<IpAddr>,
    pub(super) config: Option<&'a HostConfig>,
    pub(super) last: Option<&'a Outcome>,
    pub(super) applied_revision: Option<u64>,
    pub(super) roles: &'a BTreeMap<RouterId, Role>,
    pub(super) warnings: Vec<String>,
}

/// Counts reports and knows when the next one is due.
#[derive(Debug)]
pub(super) struct Reporter {
    incarnation: u64,
    sequence: u64,
    interval: Duration,
    due_at: Instant,
    /// Something may have changed: compare.
    awake: bool,
    last: Option<HostReport>,
}

impl Reporter {
    pub(super) fn new(settings: &HostSettings, incarnation: u64, now: Instant) -> Self {
        Self { incarnation, sequence: 0, interval: settings.report_interval, due_at: now, awake: true, last: None }
    }

    pub(super) const fn wake(&mut self) {
        self.awake = true;
    }

    pub(super) const fn due_at(&self) -> Instant {
        self.due_at
    }

    /// Makes a report if one is due, or if what it says differs from the last.
    pub(super) fn next(&mut self, facts: &Facts<'_>, now: Instant) -> Option<HostReport> {
        if !self.awake && self.due_at > now {
            return None;
        }
        self.awake = false;
        let mut report = compose(facts);
        report.incarnation = self.incarnation;
        report.sequence = self.sequence;
        if self.due_at > now && self.last.as_ref() == Some(&report) {
            return None;
        }
        self.sequence += 1;
        report.sequence = self.sequence;
        self.due_at = now + self.interval;
        self.last = Some(report.clone());
        Some(report)
    }
}

fn compose(facts: &Facts<'_>) -> HostReport {
    let last = facts.last;
    let mut warnings = facts.warnings.clone();
    if warnings.len() > MOST_WARNINGS {
        let more = warnings.len() - MOST_WARNINGS;
        warnings.truncate(MOST_WARNINGS);
        warnings.push(format!("and {more} more warnings"));
    }
    HostReport {
        host: facts.settings.host.clone(),
        applied_revision: facts.applied_revision,
        agents: agents(facts),
        ha_states: ha_states(facts),
        ports_up: last.map(|l| l.ports_up.clone()).unwrap_or_default(),
        floating_ips_active: floating_ips(facts),
        warnings,
        ..HostReport::default()
    }
}

fn ha_states(facts: &Facts<'_>) -> BTreeMap<RouterId, HaStateReport> {
    facts.roles.iter().map(|(id, role)| (*id, HaStateReport { state: role.state, epoch: role.epoch })).collect()
}

/// Floating IPs that work here: translated in the kernel, and not by a copy that stands by.
fn floating_ips(facts: &Facts<'_>) -> std::collections::BTreeSet<evergate_model::FloatingIpId> {
    let (Some(config), Some(last)) = (facts.config, facts.last) else { return Default::default() };
    let is_active = |id: &RouterId| facts.roles.get(id).is_some_and(|r| r.state == HaState::Active);
    let mut found = std::collections::BTreeSet::new();
    for (id, router) in &config.routers {
        let serves = router.ha.is_none() || is_active(id);
        let here = router.floating_ips.iter().filter(|(_, fip)| serves || fip.distributed).map(|(id, _)| *id);
        let forwarding = router.port_forwardings.values().filter(|_| serves).filter_map(|one| one.floating_ip_id);
        found.extend(here.chain(forwarding).filter(|id| last.floating_ips.contains(id)));
    }
    found
}

/// The Neutron agents that this host stands for. The L2 agent is there whatever the roles: routers need
/// networks too, and the server learns the tunnel address from it.
fn agents(facts: &Facts<'_>) -> Vec<AgentReport> {
    let settings = facts.settings;
    let mut agents = Vec::new();
    if settings.roles.l3 {
        agents.push(AgentReport {
            kind: AgentKind::L3,
            availability_zone: Some(settings.availability_zone.clone()),
            configurations: l3_configurations(facts),
        });
    }
    agents.push(AgentReport {
        kind: settings.l2_agent,
        availability_zone: None,
        configurations: l2_configurations(facts),
    });
    agents
}

/// The words of `neutron-l3-agent`'s report.
fn l3_configurations(facts: &Facts<'_>) -> Map<String, Value> {
    let routers = || facts.config.iter().flat_map(|c| c.routers.values());
    let interfaces: usize = routers().map(|r| r.interfaces.len()).sum();
    let floating_ips: usize = routers().map(|r| r.floating_ips.len()).sum();
    object(json!({
        "agent_mode": facts.settings.agent_mode.as_str(),
        "interface_driver": facts.settings.interface_driver.as_str(),
        "handle_internal_only_routers": facts.settings.handle_internal_only_routers,
        "log_agent_heartbeats": false,
        "extensions": [],
        "routers": routers().count(),
        "ex_gw_ports": routers().filter(|r| r.gateway.is_some()).count(),
        "interfaces": interfaces,
        "floating_ips": floating_ips,
    }))
}

/// The words of `neutron-linuxbridge-agent`'s or `neutron-openvswitch-agent`'s report.
fn l2_configurations(facts: &Facts<'_>) -> Map<String, Value> {
    let settings = facts.settings;
    let tunneling_ip = facts.vtep.map(|ip| ip.to_string()).unwrap_or_default();
    let tunnel_types: &[String] = if facts.vtep.is_some() { &settings.tunnel_types } else { &[] };
    let mut configurations = object(json!({
        "bridge_mappings": settings.bridge_mappings,
        "devices": facts.last.map_or(0, |l| l.ports_up.len()),
        "extensions": [],
        "l2_population": settings.l2_population,
        "tunnel_types": tunnel_types,
        "tunneling_ip": tunneling_ip,
    }));
    let more = match settings.l2_agent {
        AgentKind::OpenVSwitch => json!({
            "arp_responder_enabled": settings.l2_population,
            "in_distributed_mode": false,
            "log_agent_heartbeats": false,
            // Deviation: Neutron has no such word. What runs here is said wherever it may be asked.
            "evergate_l2_driver": crate::L2_DRIVER,
        }),
        AgentKind::LinuxBridge | AgentKind::L3 => json!({
            "interface_mappings": settings.physical_interface_mappings,
        }),
    };
    configurations.extend(object(more));
    configurations
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}
