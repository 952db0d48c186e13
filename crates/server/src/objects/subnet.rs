//! Subnets as the store holds them.

use std::net::IpAddr;

use evergate_model::{NetworkId, RouterId, SubnetId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Later, Standard, ask, ask_in, insert, tags};
use crate::error::ApiError;
use crate::ipam::Pool;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// A route that instances, or a router, are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By way of.
    pub nexthop: IpAddr,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct Subnet {
    pub id: SubnetId,
    pub project_id: String,
    pub network_id: NetworkId,
    pub name: String,
    pub description: String,
    pub ip_version: u8,
    pub cidr: IpNet,
    pub gateway_ip: Option<IpAddr>,
    pub enable_dhcp: bool,
    pub ipv6_ra_mode: Option<String>,
    pub ipv6_address_mode: Option<String>,
    pub allocation_pools: Vec<Pool>,
    pub dns_nameservers: Vec<IpAddr>,
    pub host_routes: Vec<Route>,
    pub service_types: Vec<String>,
    /// The pool that its prefix was cut from.
    pub subnetpool_id: Option<String>,
    pub standard: Standard,
}

const COLUMNS: &str = "id, project_id, network_id, name, description, ip_version, cidr, gateway_ip, enable_dhcp, \
                       ipv6_ra_mode, ipv6_address_mode, allocation_pools, dns_nameservers, host_routes, \
                       service_types, subnetpool_id, created_at, updated_at, revision_number";

impl Subnet {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parse(0)?,
            project_id: row.text(1)?,
            network_id: row.parse(2)?,
            name: row.text(3)?,
            description: row.text(4)?,
            ip_version: row.num(5)?,
            cidr: row.parse(6)?,
            gateway_ip: row.opt_parse(7)?,
            enable_dhcp: row.bool(8)?,
            ipv6_ra_mode: row.opt_text(9)?,
            ipv6_address_mode: row.opt_text(10)?,
            allocation_pools: row.json(11)?,
            dns_nameservers: row.json(12)?,
            host_routes: row.json(13)?,
            service_types: row.json(14)?,
            subnetpool_id: row.opt_text(15)?,
            standard: Standard::read(row, 16)?,
        })
    }

    /// Tells whether hosts make their own addresses on it.
    pub fn is_auto_address(&self) -> bool {
        matches!(self.ipv6_address_mode.as_deref(), Some("slaac" | "dhcpv6-stateless"))
    }

    /// Reads one subnet.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: SubnetId) -> Result<Self, ApiError> {
        let sql = format!("SELECT {COLUMNS} FROM subnets WHERE id = ?1");
        tx.query_opt(&sql, &values![id], Self::read)?.ok_or_else(|| ApiError::SubnetNotFound { id: id.to_string() })
    }

    /// Reads many subnets, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        Self::ask_many(tx, ids)?.read()
    }

    /// Asks for many subnets.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ask_many<'t>(tx: &'t Tx<'_>, ids: &[String]) -> Result<Later<'t, Vec<Self>>, StoreError> {
        ask_in(tx, &format!("SELECT {COLUMNS} FROM subnets WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Reads the subnets of a network, oldest first.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_network(tx: &Tx<'_>, network: NetworkId) -> Result<Vec<Self>, StoreError> {
        Self::ask_of_network(tx, network)?.read()
    }

    /// Asks for the subnets of a network, oldest first.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ask_of_network<'t>(tx: &'t Tx<'_>, network: NetworkId) -> Result<Later<'t, Vec<Self>>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM subnets WHERE network_id = ?1 ORDER BY created_at, id");
        ask(tx, &sql, &values![network], Self::read)
    }

    /// Reads the subnets of a router's interfaces, and all of its external network's.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_router(tx: &Tx<'_>, router: RouterId) -> Result<Vec<Self>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM subnets WHERE id IN (SELECT rs.subnet_id FROM router_subnets rs WHERE rs.router_id = ?1) \
             OR network_id IN (SELECT rp.network_id FROM router_ports rp WHERE rp.role = 'gateway' AND rp.router_id = ?1) \
             ORDER BY id"
        );
        tx.query(&sql, &values![router], Self::read)
    }

    /// Writes a new subnet; its times and revision number are the transaction's.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn insert(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let own = values![
            self.id,
            &self.project_id,
            self.network_id,
            &self.name,
            &self.description,
            self.ip_version,
            self.cidr.to_string(),
            self.gateway_ip,
            self.enable_dhcp,
            self.ipv6_ra_mode.clone(),
            self.ipv6_address_mode.clone(),
            json(&self.allocation_pools),
            json(&self.dns_nameservers),
            json(&self.host_routes),
            json(&self.service_types),
            self.subnetpool_id.as_deref(),
        ];
        insert(tx, "subnets", COLUMNS, own, 0)?;
        self.note(tx)
    }

    /// Removes a subnet that no port has an address of.
    ///
    /// # Errors
    ///
    /// When one has.
    pub fn delete(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tags::replace(tx, &self.id.to_string(), &[])?;
        tx.execute("DELETE FROM subnets WHERE id = ?1", &values![self.id])?;
        self.note(tx)
    }

    /// Notes a change of the subnet, which is a change of its network too.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn note(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tx.changed(Kind::Subnet, self.id);
        tx.changed(Kind::Network, self.network_id);
        super::bump(tx, "networks", self.network_id)
    }
}

/// Prints a list as the store keeps it.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("lists of addresses and texts are always JSON")
}
