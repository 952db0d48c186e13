//! Too few hosts for a router: visible, where Neutron shows ACTIVE and says nothing.
//!
//! A router that no host has is `ALLOCATING`: Neutron's word for a router whose resources are not there
//! yet, which is so, since it gets its copies when hosts appear. One that works with less than it should
//! have stays `ACTIVE`, because it is, and clients wait for that word; what is amiss stands in
//! `evergate:warnings`, which only admins see, and only while there is something to say.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::RouterId;

use super::Call;
use crate::dvr;
use crate::error::ApiError;
use crate::objects::agent::alive_since;
use crate::objects::fleet::Fleet;
use crate::objects::router::Router;
use crate::objects::{Later, ask_in, query_in};

/// The attribute that says what is amiss.
pub const WARNINGS: &str = "evergate:warnings";

const ALLOCATING: &str = "ALLOCATING";

/// [`Copies::status`] as lists filter and sort by it.
pub const STATUS: &str = "(CASE WHEN EXISTS (SELECT 1 FROM router_bindings b WHERE b.router_id = t.id) \
    OR (t.distributed = 1 AND t.ha = 0 AND NOT EXISTS \
    (SELECT 1 FROM router_ports gw WHERE gw.router_id = t.id AND gw.role = 'gateway')) \
    THEN t.status ELSE 'ALLOCATING' END)";

/// How many copies routers have, how many of these serve, and what distributed routers lack beside.
#[derive(Debug)]
pub struct Copies {
    /// Copies, and those of them on hosts that are alive and admitted.
    counts: BTreeMap<RouterId, (u32, u32)>,
    /// Copies that an HA router shall have.
    wanted: u32,
    /// Routers that lead outside.
    gateways: BTreeSet<RouterId>,
    /// What is amiss with distributed routers on the hosts of their ports.
    on_hosts: BTreeMap<RouterId, Vec<String>>,
}

impl Copies {
    /// Asks for the copies of many routers at once; what distributed ones lack is only looked for `with_hosts`.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn of_many<'t>(call: Call<'t>, ids: &[String], with_hosts: bool) -> Result<AskedCopies<'t>, ApiError> {
        let since = alive_since(call.tx.now(), call.options);
        let sql = "SELECT b.router_id, a.admin_state_up, a.heartbeat_at FROM router_bindings b \
                   JOIN agents a ON a.id = b.agent_id WHERE b.router_id IN ({})";
        let heard_since = since.clone();
        let serving = ask_in(call.tx, sql, ids, move |row| {
            Ok((row.parse::<RouterId>(0)?, row.bool(1)? && row.text(2)? >= heard_since))
        })?;
        let sql = "SELECT router_id FROM router_ports WHERE role = 'gateway' AND router_id IN ({})";
        let gateways = ask_in(call.tx, sql, ids, |row| row.parse(0))?;
        let sql = "SELECT id FROM routers WHERE distributed = 1 AND id IN ({})";
        let distributed = ask_in(call.tx, sql, if with_hosts { ids } else { &[] }, |row| row.text(0))?;
        Ok(AskedCopies { since, serving, gateways, distributed })
    }

    /// A distributed router without a gateway has nothing to translate, and needs no copy for that.
    fn needs_copies(&self, router: &Router) -> bool {
        !router.distributed || router.ha || self.gateways.contains(&router.id)
    }

    /// What the router's `status` is.
    pub fn status<'r>(&self, router: &'r Router) -> &'r str {
        if self.counts.contains_key(&router.id) || !self.needs_copies(router) { &router.status } else { ALLOCATING }
    }

    /// What an admin should know of the router's copies.
    pub fn warnings(&self, router: &Router) -> Vec<String> {
        let (copies, serving) = self.counts.get(&router.id).copied().unwrap_or_default();
        let wanted = if router.ha { self.wanted } else { u32::from(self.needs_copies(router)) };
        let mut warnings = Vec::new();
        if copies < wanted {
            let of = if router.distributed { " of its source NAT" } else { "" };
            warnings.push(format!(
                "{copies} of {wanted} copies{of}: more come when there are more L3 agents that may have the router, or \
                 by 'network agent add router'"
            ));
        }
        if serving < copies {
            warnings.push(format!(
                "{} of {copies} copies are on hosts that are disabled or not heard of",
                copies - serving
            ));
        }
        warnings.extend(self.on_hosts.get(&router.id).into_iter().flatten().cloned());
        warnings
    }
}

/// What [`Copies`] are counted from, asked for together with other questions.
pub struct AskedCopies<'t> {
    since: String,
    serving: Later<'t, Vec<(RouterId, bool)>>,
    gateways: Later<'t, Vec<RouterId>>,
    distributed: Later<'t, Vec<String>>,
}

impl AskedCopies<'_> {
    /// Counts them.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn read(self, call: Call<'_>) -> Result<Copies, ApiError> {
        let mut counts: BTreeMap<RouterId, (u32, u32)> = BTreeMap::new();
        for (router, serves) in self.serving.read()? {
            let (copies, serving) = counts.entry(router).or_default();
            *copies += 1;
            *serving += u32::from(serves);
        }
        // "On every host" is as many as there are; but one alone is no redundancy.
        let wanted = match call.options.max_l3_agents_per_router {
            0 => 2,
            max => max,
        };
        let gateways = self.gateways.read()?.into_iter().collect();
        let on_hosts = on_hosts(call, &self.distributed.read()?, &self.since)?;
        Ok(Copies { counts, wanted, gateways, on_hosts })
    }
}

/// Finds what is amiss with distributed routers on the hosts of their ports.
fn on_hosts(call: Call<'_>, distributed: &[String], since: &str) -> Result<BTreeMap<RouterId, Vec<String>>, ApiError> {
    let mut amiss = BTreeMap::<RouterId, Vec<String>>::new();
    if distributed.is_empty() {
        return Ok(amiss);
    }
    let fleet = Fleet::read(call.tx)?;
    for (router, hosts) in dvr::unserved(call.tx, &fleet, distributed)? {
        let text = format!("hosts with ports on its subnets that do not route for it: {}", hosts.join(", "));
        amiss.entry(router).or_default().push(text);
    }
    let lacking = [
        ("hosts that route for it and are not heard of", silent(call, distributed, since)?),
        (
            "hosts without a device for its external network, whose floating IPs go by its source NAT",
            without_link(call, &fleet, distributed)?,
        ),
        ("hosts that got no address on its external network, which has none left", without_address(call, distributed)?),
    ];
    for (what, routers) in lacking {
        for (router, names) in routers {
            amiss.entry(router).or_default().push(format!("{what}: {}", Vec::from_iter(names).join(", ")));
        }
    }
    Ok(amiss)
}

type Names = BTreeMap<RouterId, BTreeSet<String>>;

fn by_router(rows: Vec<(RouterId, String)>) -> Names {
    let mut names = Names::new();
    for (router, host) in rows {
        names.entry(router).or_default().insert(host);
    }
    names
}

fn silent(call: Call<'_>, routers: &[String], since: &str) -> Result<Names, ApiError> {
    let sql = "SELECT h.router_id, h.host, a.heartbeat_at FROM router_hosts h \
               JOIN agents a ON a.host = h.host AND a.agent_type = 'L3 agent' WHERE h.router_id IN ({})";
    let rows = query_in(call.tx, sql, routers, |row| Ok((row.parse(0)?, row.text(1)?, row.text(2)?)))?;
    let silent = rows.into_iter().filter(|(.., heartbeat)| heartbeat.as_str() < since);
    Ok(by_router(silent.map(|(router, host, _)| (router, host)).collect()))
}

/// Hosts whose mode lets them translate floating IPs, and that miss the link.
fn without_link(call: Call<'_>, fleet: &Fleet, routers: &[String]) -> Result<Names, ApiError> {
    let sql = "SELECT h.router_id, h.host, n.physical_network FROM router_hosts h \
               JOIN router_ports gw ON gw.router_id = h.router_id AND gw.role = 'gateway' \
               JOIN networks n ON n.id = gw.network_id WHERE n.network_type = 'flat' AND h.router_id IN ({})";
    let rows = query_in(call.tx, sql, routers, |row| Ok((row.parse(0)?, row.text(1)?, row.text(2)?)))?;
    let without = rows.into_iter().filter(|(_, name, physical_network)| {
        let host = fleet.host(name);
        host.is_some_and(|host| {
            host.l3.is_some_and(|(_, mode)| mode.translates_own()) && !host.physical_networks.contains(physical_network)
        })
    });
    Ok(by_router(without.map(|(router, host, _)| (router, host)).collect()))
}

fn without_address(call: Call<'_>, routers: &[String]) -> Result<Names, ApiError> {
    if !call.options.external_address_per_host {
        return Ok(Names::new());
    }
    let sql = "SELECT h.router_id, h.host FROM router_hosts h \
               JOIN router_ports gw ON gw.router_id = h.router_id AND gw.role = 'gateway' \
               JOIN agent_gateway_ports g ON g.host = h.host AND g.network_id = gw.network_id \
               WHERE h.router_id IN ({}) AND NOT EXISTS (SELECT 1 FROM fixed_ips f WHERE f.port_id = g.port_id)";
    Ok(by_router(query_in(call.tx, sql, routers, |row| Ok((row.parse(0)?, row.text(1)?)))?))
}
