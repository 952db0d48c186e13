//! Floating IPs as the store holds them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use evergate_model::{FloatingIpId, NetworkId, PortId, RouterId};

use super::{Standard, bump, query_in, tags};
use crate::dvr::floating;
use crate::error::ApiError;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// A floating IP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct FloatingIp {
    pub id: FloatingIpId,
    pub project_id: String,
    pub description: String,
    pub floating_network_id: NetworkId,
    pub floating_ip_address: Ipv4Addr,
    /// The port that holds the address on the external network; no user sees it.
    pub floating_port_id: PortId,
    pub router_id: Option<RouterId>,
    pub port_id: Option<PortId>,
    pub fixed_ip_address: Option<Ipv4Addr>,
    pub status: String,
    pub standard: Standard,
}

const COLUMNS: &str = "id, project_id, description, floating_network_id, floating_ip_address, floating_port_id, \
                       router_id, port_id, fixed_ip_address, status, created_at, updated_at, revision_number";

impl FloatingIp {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parse(0)?,
            project_id: row.text(1)?,
            description: row.text(2)?,
            floating_network_id: row.parse(3)?,
            floating_ip_address: row.parse(4)?,
            floating_port_id: row.parse(5)?,
            router_id: row.opt_parse(6)?,
            port_id: row.opt_parse(7)?,
            fixed_ip_address: row.opt_parse(8)?,
            status: row.text(9)?,
            standard: Standard::read(row, 10)?,
        })
    }

    /// Reads one floating IP.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: FloatingIpId) -> Result<Self, ApiError> {
        let sql = format!("SELECT {COLUMNS} FROM floating_ips WHERE id = ?1");
        let found = tx.query_opt(&sql, &values![id], Self::read)?;
        found.ok_or_else(|| ApiError::FloatingIPNotFound { id: id.to_string() })
    }

    /// Reads many floating IPs, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        query_in(tx, &format!("SELECT {COLUMNS} FROM floating_ips WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Reads the floating IPs that lead to a port.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_port(tx: &Tx<'_>, port: PortId) -> Result<Vec<Self>, StoreError> {
        tx.query(&format!("SELECT {COLUMNS} FROM floating_ips WHERE port_id = ?1"), &values![port], Self::read)
    }

    /// Reads the floating IPs that routers translate.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_routers(tx: &Tx<'_>, routers: &[String]) -> Result<Vec<Self>, StoreError> {
        query_in(tx, &format!("SELECT {COLUMNS} FROM floating_ips WHERE router_id IN ({{}})"), routers, Self::read)
    }

    /// Writes a new floating IP; its times and revision number are the transaction's.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn insert(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO floating_ips ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, 0)"
        );
        let params = values![
            self.id,
            &self.project_id,
            &self.description,
            self.floating_network_id,
            self.floating_ip_address,
            self.floating_port_id,
            self.router_id,
            self.port_id,
            self.fixed_ip_address,
            &self.status,
            tx.now_text(),
        ];
        tx.execute(&sql, &params)?;
        self.note_routers(tx, None)
    }

    /// Writes where the floating IP leads to. The status is the hosts' to say again.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn update_association(&self, tx: &Tx<'_>, previous_router: Option<RouterId>) -> Result<(), StoreError> {
        let sql = "UPDATE floating_ips SET router_id = ?2, port_id = ?3, fixed_ip_address = ?4, status = 'DOWN' \
                   WHERE id = ?1";
        tx.execute(sql, &values![self.id, self.router_id, self.port_id, self.fixed_ip_address])?;
        bump(tx, "floating_ips", self.id)?;
        self.note_routers(tx, previous_router)
    }

    /// Removes the floating IP; its address's port is removed by the caller.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn delete(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tags::replace(tx, &self.id.to_string(), &[])?;
        tx.execute("DELETE FROM floating_ips WHERE id = ?1", &values![self.id])?;
        self.note_routers(tx, None)
    }

    fn note_routers(&self, tx: &Tx<'_>, previous: Option<RouterId>) -> Result<(), StoreError> {
        tx.changed(Kind::FloatingIp, self.id);
        let routers: BTreeSet<RouterId> = self.router_id.into_iter().chain(previous).collect();
        routers.into_iter().try_for_each(|router| super::router::note(tx, router))
    }
}

/// Ends every association with a port whose address, or which itself, is going.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn disassociate(tx: &Tx<'_>, port: PortId, is_gone: impl Fn(Ipv4Addr) -> bool) -> Result<(), StoreError> {
    for mut floating_ip in FloatingIp::of_port(tx, port)? {
        if floating_ip.fixed_ip_address.is_some_and(&is_gone) {
            let previous = floating_ip.router_id.take();
            floating_ip.port_id = None;
            floating_ip.fixed_ip_address = None;
            floating_ip.update_association(tx, previous)?;
        }
    }
    Ok(())
}

/// Takes a host's word on which floating IPs it translates. Those that are for it to translate and that it
/// does not name are down.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn record_status(tx: &Tx<'_>, host: &str, active: &BTreeSet<FloatingIpId>) -> Result<(), StoreError> {
    for found in floating::of_host(tx, host)? {
        let (id, status) = (found.id, found.status);
        let reported = if active.contains(&id) { "ACTIVE" } else { "DOWN" };
        if status != reported {
            tx.execute("UPDATE floating_ips SET status = ?2 WHERE id = ?1", &values![id, reported])?;
            bump(tx, "floating_ips", id)?;
            tx.changed(Kind::FloatingIp, id);
        }
    }
    Ok(())
}
