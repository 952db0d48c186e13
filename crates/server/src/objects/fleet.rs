//! What the server must know of all hosts at once to place routers and floating IPs: each host's mode, tunnel
//! address and physical networks, out of what its agents report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use evergate_model::AgentId;
use serde_json::{Map, Value};

use super::agent::L3_AGENT;
use super::network::Segment;
use crate::store::{StoreError, Tx};

/// Neutron's `agent_mode`: which parts of routers a host takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Central routers.
    Legacy,
    /// What a compute host does for distributed routers: routing, and floating IPs.
    Dvr,
    /// As [`Mode::Dvr`], source NAT of distributed routers, and central routers.
    DvrSnat,
    /// Routing of distributed routers; their floating IPs are translated elsewhere.
    DvrNoExternal,
}

impl Mode {
    /// Reads the mode from an L3 agent's `configurations`; Neutron's default is `legacy`.
    pub fn of(configurations: &Map<String, Value>) -> Self {
        match configurations.get("agent_mode").and_then(Value::as_str) {
            Some("dvr") => Self::Dvr,
            Some("dvr_snat") => Self::DvrSnat,
            Some("dvr_no_external") => Self::DvrNoExternal,
            _ => Self::Legacy,
        }
    }

    /// The word of configuration files and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Dvr => "dvr",
            Self::DvrSnat => "dvr_snat",
            Self::DvrNoExternal => "dvr_no_external",
        }
    }

    /// Tells whether a router can be bound to the host: a central one, or a distributed one's source NAT.
    pub fn takes_copies(self, distributed: bool) -> bool {
        match self {
            Self::Legacy => !distributed,
            Self::DvrSnat => true,
            Self::Dvr | Self::DvrNoExternal => false,
        }
    }

    /// Tells whether the host routes for distributed routers.
    pub fn routes(self) -> bool {
        self != Self::Legacy
    }

    /// Tells whether the host may translate the floating IPs of its own ports.
    pub fn translates_own(self) -> bool {
        matches!(self, Self::Dvr | Self::DvrSnat)
    }
}

/// What is known of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its L3 agent, if it has one that is not disabled, and that agent's mode.
    pub l3: Option<(AgentId, Mode)>,
    /// Whether it has any L3 agent, disabled or not.
    pub has_l3: bool,
    /// Whether it has an agent that plugs ports.
    pub has_l2: bool,
    /// Where tunnels to it end.
    pub tunnel_ip: Option<IpAddr>,
    /// Physical networks that it has a device for.
    pub physical_networks: BTreeSet<String>,
}

impl Host {
    /// Tells whether it routes for distributed routers.
    pub fn routes(&self) -> bool {
        self.l3.is_some_and(|(_, mode)| mode.routes())
    }

    /// Tells whether it leads to an external network by itself: floating IPs of its ports are translated here.
    pub fn leads_to(&self, external: &Segment) -> bool {
        let may = self.l3.is_some_and(|(_, mode)| mode.translates_own());
        may && external.physical_network().is_none_or(|name| self.physical_networks.contains(name))
    }
}

/// All hosts, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet(pub BTreeMap<String, Host>);

impl Fleet {
    /// Reads what all agents report, in one query.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn read(tx: &Tx<'_>) -> Result<Self, StoreError> {
        let sql = "SELECT host, agent_type, id, admin_state_up, configurations, tunnel_ip FROM agents";
        let rows = tx.query(sql, &[], |row| {
            let configurations: Map<String, Value> = row.json(4)?;
            Ok((row.text(0)?, row.text(1)?, row.parse(2)?, row.bool(3)?, configurations, row.opt_parse(5)?))
        })?;
        let mut fleet = BTreeMap::<String, Host>::new();
        for (name, agent_type, id, up, configurations, tunnel_ip) in rows {
            let host = fleet.entry(name).or_default();
            if agent_type == L3_AGENT {
                host.has_l3 = true;
                host.l3 = up.then(|| (id, Mode::of(&configurations)));
            } else {
                host.has_l2 = true;
                host.tunnel_ip = host.tunnel_ip.or(tunnel_ip);
                host.physical_networks.extend(physical_networks(&configurations));
            }
        }
        Ok(Self(fleet))
    }

    /// Looks a host up.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.0.get(name)
    }

    /// Tells whether a host leads to an external network by itself.
    pub fn leads_to(&self, host: &str, external: &Segment) -> bool {
        self.host(host).is_some_and(|host| host.leads_to(external))
    }

    /// Where tunnels to each host end.
    pub fn tunnel_ips(&self) -> BTreeMap<String, IpAddr> {
        self.0.iter().filter_map(|(name, host)| Some((name.clone(), host.tunnel_ip?))).collect()
    }
}

/// What of an agent's `configurations` decides about other hosts and about placement.
pub const DECISIVE: [&str; 3] = ["agent_mode", "bridge_mappings", "interface_mappings"];

fn physical_networks(configurations: &Map<String, Value>) -> impl Iterator<Item = String> + '_ {
    let mappings = ["bridge_mappings", "interface_mappings"].into_iter();
    mappings.filter_map(|key| configurations.get(key)?.as_object()).flat_map(|map| map.keys().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(mode: Mode, physical_networks: &[&str]) -> Host {
        Host {
            l3: Some((AgentId::from_u128(1), mode)),
            physical_networks: physical_networks.iter().map(|name| (*name).to_owned()).collect(),
            ..Host::default()
        }
    }

    #[test]
    fn a_host_leads_out_when_its_mode_and_its_links_allow_it() {
        let flat = Segment::Flat("physnet1".into());
        assert!(host(Mode::Dvr, &["physnet1"]).leads_to(&flat));
        assert!(host(Mode::DvrSnat, &["physnet1"]).leads_to(&flat));
        assert!(!host(Mode::Dvr, &["physnet2"]).leads_to(&flat));
        assert!(!host(Mode::DvrNoExternal, &["physnet1"]).leads_to(&flat));
        assert!(!host(Mode::Legacy, &["physnet1"]).leads_to(&flat));
        assert!(host(Mode::Dvr, &[]).leads_to(&Segment::Vxlan(7)), "a tunnel needs no link of its own");
        assert!(!Host::default().leads_to(&Segment::Vxlan(7)));
    }

    #[test]
    fn modes_take_what_neutrons_modes_take() {
        let takes = |mode: Mode| (mode.takes_copies(false), mode.takes_copies(true), mode.routes());
        assert_eq!(takes(Mode::Legacy), (true, false, false));
        assert_eq!(takes(Mode::DvrSnat), (true, true, true));
        assert_eq!(takes(Mode::Dvr), (false, false, true));
        assert_eq!(takes(Mode::DvrNoExternal), (false, false, true));
    }
}
