//! Routers as the store holds them: gateway, interfaces, routes and copies.

use std::collections::BTreeMap;

use evergate_model::{AgentId, NetworkId, PortId, RouterId, SubnetId};

use super::subnet::Route;
use super::{Later, Standard, ask_in, bump, query_in};
use crate::error::ApiError;
use crate::random;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// A router by itself; its ports and routes are read when needed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct Router {
    pub id: RouterId,
    pub project_id: String,
    pub name: String,
    pub description: String,
    pub admin_state_up: bool,
    pub status: String,
    pub ha: bool,
    pub distributed: bool,
    pub enable_snat: bool,
    pub availability_zone_hints: Vec<String>,
    pub standard: Standard,
    pub wishes: Wishes,
}

/// Where the active copy of an HA router is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The host that the router belongs to.
    pub preferred_host: Option<String>,
    /// It goes back there as soon as that host can have it.
    pub preempt: bool,
    /// Where it is to go once.
    pub move_to: Option<String>,
}

impl Wishes {
    /// The host that the role is to go to now.
    pub fn target(&self) -> Option<&str> {
        let preferred = self.preferred_host.as_deref().filter(|_| self.preempt);
        self.move_to.as_deref().or(preferred)
    }
}

/// What a port does for its router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The external gateway.
    Gateway,
    /// An interface on a project network.
    Interface,
    /// A copy's port on the HA network.
    Ha,
    /// Of a distributed router: the way from a subnet to its source NAT.
    Snat,
}

impl Role {
    /// The word the store keeps.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Interface => "interface",
            Self::Ha => "ha",
            Self::Snat => "snat",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Gateway, Self::Interface, Self::Ha, Self::Snat].into_iter().find(|role| role.as_str() == word).ok_or(())
    }
}

/// A port of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterPort {
    /// The router.
    pub router_id: RouterId,
    /// The port.
    pub port_id: PortId,
    /// The network it is on.
    pub network_id: NetworkId,
    /// What it does.
    pub role: Role,
}

/// A copy of a router on an agent, with what its host last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The router.
    pub router_id: RouterId,
    /// The agent.
    pub agent_id: AgentId,
    /// The agent's host.
    pub host: String,
    /// The copy's port on the HA network; none for a legacy router.
    pub ha_port_id: Option<PortId>,
    /// The copy said that it is active (true) or standby (false), if it said anything.
    pub active: Option<bool>,
    /// The epoch it said so with.
    pub epoch: u64,
    /// When the agent last beat.
    pub heartbeat_at: String,
}

const COLUMNS: &str = "id, project_id, name, description, admin_state_up, status, ha, distributed, enable_snat, \
                       availability_zone_hints, created_at, updated_at, revision_number, preferred_host, preempt, move_to";

const BINDINGS: &str = "SELECT b.router_id, b.agent_id, a.host, b.ha_port_id, b.state, b.epoch, a.heartbeat_at \
                        FROM router_bindings b JOIN agents a ON a.id = b.agent_id";

impl Router {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parse(0)?,
            project_id: row.text(1)?,
            name: row.text(2)?,
            description: row.text(3)?,
            admin_state_up: row.bool(4)?,
            status: row.text(5)?,
            ha: row.bool(6)?,
            distributed: row.bool(7)?,
            enable_snat: row.bool(8)?,
            availability_zone_hints: row.json(9)?,
            standard: Standard::read(row, 10)?,
            wishes: Wishes { preferred_host: row.opt_text(13)?, preempt: row.bool(14)?, move_to: row.opt_text(15)? },
        })
    }

    /// Reads one router.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: RouterId) -> Result<Self, ApiError> {
        let sql = format!("SELECT {COLUMNS} FROM routers WHERE id = ?1");
        tx.query_opt(&sql, &values![id], Self::read)?.ok_or_else(|| ApiError::RouterNotFound { id: id.to_string() })
    }

    /// Reads many routers, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        Self::ask_many(tx, ids)?.read()
    }

    /// Asks for many routers.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ask_many<'t>(tx: &'t Tx<'_>, ids: &[String]) -> Result<Later<'t, Vec<Self>>, StoreError> {
        ask_in(tx, &format!("SELECT {COLUMNS} FROM routers WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Writes a new router; its times and revision number are the transaction's.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn insert(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO routers ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, 1, NULL, 0, NULL)"
        );
        let params = values![
            self.id,
            &self.project_id,
            &self.name,
            &self.description,
            self.admin_state_up,
            &self.status,
            self.ha,
            self.distributed,
            self.enable_snat,
            super::subnet::json(&self.availability_zone_hints),
            tx.now_text(),
        ];
        tx.execute(&sql, &params)?;
        tx.changed(Kind::Router, self.id);
        Ok(())
    }

    /// Counts a change of the router and lets its hosts know.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn note(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        note(tx, self.id)
    }

    /// Reads the router's ports of one role.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ports(&self, tx: &Tx<'_>, role: Role) -> Result<Vec<RouterPort>, StoreError> {
        let ports = ports_of(tx, &[self.id.to_string()])?;
        Ok(ports.into_iter().filter(|port| port.role == role).collect())
    }

    /// Reads the router's gateway port, if it has one.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn gateway(&self, tx: &Tx<'_>) -> Result<Option<RouterPort>, StoreError> {
        Ok(self.ports(tx, Role::Gateway)?.pop())
    }

    /// Reads the subnets that the router has an interface on, with the interface.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn subnets(&self, tx: &Tx<'_>) -> Result<Vec<(SubnetId, PortId)>, StoreError> {
        let sql = "SELECT subnet_id, port_id FROM router_subnets WHERE router_id = ?1";
        tx.query(sql, &values![self.id], |row| Ok((row.parse(0)?, row.parse(1)?)))
    }

    /// Reads the router's extra routes.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn routes(&self, tx: &Tx<'_>) -> Result<Vec<Route>, StoreError> {
        Ok(routes_of(tx, &[self.id.to_string()])?.remove(&self.id).unwrap_or_default())
    }

    /// Replaces the router's extra routes.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn set_routes(&self, tx: &Tx<'_>, routes: &[Route]) -> Result<(), StoreError> {
        tx.execute("DELETE FROM router_routes WHERE router_id = ?1", &values![self.id])?;
        for route in routes {
            let sql = "INSERT INTO router_routes (router_id, destination, nexthop) VALUES (?1, ?2, ?3)";
            tx.execute(sql, &values![self.id, route.destination.to_string(), route.nexthop])?;
        }
        Ok(())
    }

    /// Reads the router's copies, by host.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn bindings(&self, tx: &Tx<'_>) -> Result<Vec<Binding>, StoreError> {
        bindings_of(tx, &[self.id.to_string()])
    }
}

/// Counts a change of a router and lets its hosts know.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn note(tx: &Tx<'_>, id: RouterId) -> Result<(), StoreError> {
    tx.changed(Kind::Router, id);
    bump(tx, "routers", id)
}

/// Gives a port to a router.
///
/// # Errors
///
/// When it has a router already, or the router a gateway.
pub fn attach(tx: &Tx<'_>, port: &RouterPort) -> Result<(), StoreError> {
    let sql = "INSERT INTO router_ports (port_id, router_id, network_id, role) VALUES (?1, ?2, ?3, ?4)";
    tx.execute(sql, &values![port.port_id, port.router_id, port.network_id, port.role.as_str()])?;
    Ok(())
}

/// Finds the router that a port belongs to.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn of_port(tx: &Tx<'_>, port: PortId) -> Result<Option<RouterPort>, StoreError> {
    let sql = "SELECT router_id, port_id, network_id, role FROM router_ports WHERE port_id = ?1";
    tx.query_opt(sql, &values![port], read_port)
}

/// Reads the ports of many routers at once.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn ports_of(tx: &Tx<'_>, routers: &[String]) -> Result<Vec<RouterPort>, StoreError> {
    let sql = "SELECT router_id, port_id, network_id, role FROM router_ports WHERE router_id IN ({}) \
               ORDER BY router_id, port_id";
    query_in(tx, sql, routers, read_port)
}

fn read_port(row: &Row<'_>) -> Result<RouterPort, StoreError> {
    Ok(RouterPort {
        router_id: row.parse(0)?,
        port_id: row.parse(1)?,
        network_id: row.parse(2)?,
        role: row.text(3)?.parse().map_err(|()| StoreError::Corrupt { column: 3, text: String::new() })?,
    })
}

/// Reads the extra routes of many routers at once.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn routes_of(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<RouterId, Vec<Route>>, StoreError> {
    ask_routes_of(tx, routers)?.read()
}

/// Asks for the extra routes of many routers at once.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn ask_routes_of<'t>(
    tx: &'t Tx<'_>,
    routers: &[String],
) -> Result<Later<'t, BTreeMap<RouterId, Vec<Route>>>, StoreError> {
    let sql = "SELECT router_id, destination, nexthop FROM router_routes WHERE router_id IN ({}) \
               ORDER BY router_id, destination, nexthop";
    let rows = ask_in(tx, sql, routers, |row| {
        Ok((row.parse(0)?, Route { destination: row.parse(1)?, nexthop: row.parse(2)? }))
    });
    Ok(rows?.by_key())
}

fn read_binding(row: &Row<'_>) -> Result<Binding, StoreError> {
    Ok(Binding {
        router_id: row.parse(0)?,
        agent_id: row.parse(1)?,
        host: row.text(2)?,
        ha_port_id: row.opt_parse(3)?,
        active: row.opt_text(4)?.map(|state| state == "active"),
        epoch: row.num(5)?,
        heartbeat_at: row.text(6)?,
    })
}

/// Reads the copies of many routers at once, by router and host.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn bindings_of(tx: &Tx<'_>, routers: &[String]) -> Result<Vec<Binding>, StoreError> {
    query_in(tx, &format!("{BINDINGS} WHERE b.router_id IN ({{}}) ORDER BY b.router_id, a.host"), routers, read_binding)
}

/// Reads the copies on one host.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn bindings_on(tx: &Tx<'_>, host: &str) -> Result<Vec<Binding>, StoreError> {
    tx.query(&format!("{BINDINGS} WHERE a.host = ?1 ORDER BY b.router_id"), &values![host], read_binding)
}

/// Makes a router's id.
pub fn new_id() -> RouterId {
    RouterId(random::id())
}
