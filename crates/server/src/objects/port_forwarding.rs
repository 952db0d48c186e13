//! Port forwardings as the store holds them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use evergate_model::{FloatingIpId, PortForwardingId, PortId};

use super::floating_ip::FloatingIp;
use super::{bump, query_in};
use crate::error::ApiError;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// Ports from the first to the last.
pub type Range = (u16, u16);

/// A port forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct PortForwarding {
    pub id: PortForwardingId,
    pub floating_ip_id: FloatingIpId,
    pub internal_port_id: PortId,
    pub internal_ip_address: Ipv4Addr,
    pub protocol: String,
    pub external_ports: Range,
    pub internal_ports: Range,
    pub description: String,
}

const COLUMNS: &str = "id, floating_ip_id, internal_port_id, internal_ip_address, protocol, external_port_start, \
                       external_port_end, internal_port_start, internal_port_end, description";

impl PortForwarding {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parse(0)?,
            floating_ip_id: row.parse(1)?,
            internal_port_id: row.parse(2)?,
            internal_ip_address: row.parse(3)?,
            protocol: row.text(4)?,
            external_ports: (row.num(5)?, row.num(6)?),
            internal_ports: (row.num(7)?, row.num(8)?),
            description: row.text(9)?,
        })
    }

    /// Reads one port forwarding.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: &str) -> Result<Self, ApiError> {
        let found = Self::many(tx, &[id.to_owned()])?.pop();
        found.ok_or_else(|| ApiError::PortForwardingNotFound { id: id.to_owned() })
    }

    /// Reads many port forwardings, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        query_in(tx, &format!("SELECT {COLUMNS} FROM port_forwardings WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Reads those of many floating IPs, by floating IP and external ports.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_floating_ips(tx: &Tx<'_>, ids: &[impl AsRef<str>]) -> Result<Vec<Self>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM port_forwardings WHERE floating_ip_id IN ({{}}) \
             ORDER BY floating_ip_id, protocol, external_port_start"
        );
        query_in(tx, &sql, ids, Self::read)
    }

    /// Reads those that lead to a port.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn to_port(tx: &Tx<'_>, port: PortId) -> Result<Vec<Self>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM port_forwardings WHERE internal_port_id = ?1 ORDER BY id");
        tx.query(&sql, &values![port], Self::read)
    }

    /// Writes a new port forwarding, or an old one anew.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn write(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tx.execute("DELETE FROM port_forwardings WHERE id = ?1", &values![self.id])?;
        let sql = format!("INSERT INTO port_forwardings ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)");
        let params = values![
            self.id,
            self.floating_ip_id,
            self.internal_port_id,
            self.internal_ip_address,
            &self.protocol,
            self.external_ports.0,
            self.external_ports.1,
            self.internal_ports.0,
            self.internal_ports.1,
            &self.description,
        ];
        tx.execute(&sql, &params)?;
        Ok(())
    }

    /// Removes a port forwarding. With its last one a floating IP leaves its router.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn delete(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        tx.execute("DELETE FROM port_forwardings WHERE id = ?1", &values![self.id])?;
        let mut floating_ip = FloatingIp::get(tx, self.floating_ip_id)?;
        if Self::of_floating_ips(tx, &[self.floating_ip_id.to_string()])?.is_empty() {
            let router = floating_ip.router_id.take();
            floating_ip.update_association(tx, router)?;
        } else {
            note(tx, &floating_ip)?;
        }
        Ok(())
    }
}

/// Counts a change of a floating IP's port forwardings, and lets its router's hosts know.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn note(tx: &Tx<'_>, floating_ip: &FloatingIp) -> Result<(), StoreError> {
    bump(tx, "floating_ips", floating_ip.id)?;
    tx.changed(Kind::FloatingIp, floating_ip.id);
    floating_ip.router_id.map_or(Ok(()), |router| super::router::note(tx, router))
}

/// Ends every forwarding to a port whose address, or which itself, is going.
///
/// # Errors
///
/// When the store fails.
pub fn end(tx: &Tx<'_>, port: PortId, is_gone: impl Fn(Ipv4Addr) -> bool) -> Result<(), ApiError> {
    let forwardings = PortForwarding::to_port(tx, port)?;
    forwardings.iter().filter(|forwarding| is_gone(forwarding.internal_ip_address)).try_for_each(|f| f.delete(tx))
}

/// The addresses to which a router forwards ports.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn addresses_behind(tx: &Tx<'_>, router: evergate_model::RouterId) -> Result<BTreeSet<Ipv4Addr>, StoreError> {
    let sql = "SELECT pf.internal_ip_address FROM port_forwardings pf \
               JOIN floating_ips f ON f.id = pf.floating_ip_id WHERE f.router_id = ?1";
    Ok(tx.query(sql, &values![router], |row| row.parse(0))?.into_iter().collect())
}
