//! Subnet pools and address scopes as the store holds them.

use std::collections::BTreeMap;

use evergate_model::{AddressScopeId, NetworkId};
use ipnet::IpNet;

use super::{Later, Standard, ask_in, insert, query_in, tags};
use crate::error::ApiError;
use crate::objects::subnet::json;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// A subnet pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct SubnetPool {
    pub id: String,
    pub project_id: String,
    pub name: String,
    pub description: String,
    pub ip_version: u8,
    pub prefixes: Vec<IpNet>,
    pub min_prefixlen: u8,
    pub max_prefixlen: u8,
    pub default_prefixlen: u8,
    pub default_quota: Option<i64>,
    pub is_default: bool,
    pub address_scope_id: Option<AddressScopeId>,
    pub standard: Standard,
}

const COLUMNS: &str = "id, project_id, name, description, ip_version, prefixes, min_prefixlen, max_prefixlen, \
                       default_prefixlen, default_quota, is_default, address_scope_id, created_at, updated_at, \
                       revision_number";

impl SubnetPool {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.text(0)?,
            project_id: row.text(1)?,
            name: row.text(2)?,
            description: row.text(3)?,
            ip_version: row.num(4)?,
            prefixes: row.json(5)?,
            min_prefixlen: row.num(6)?,
            max_prefixlen: row.num(7)?,
            default_prefixlen: row.num(8)?,
            default_quota: row.opt_int(9)?,
            is_default: row.bool(10)?,
            address_scope_id: row.opt_parse(11)?,
            standard: Standard::read(row, 12)?,
        })
    }

    /// Reads one subnet pool.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: &str) -> Result<Self, ApiError> {
        let found = Self::many(tx, &[id.to_owned()])?.pop();
        found.ok_or_else(|| ApiError::SubnetPoolNotFound { id: id.to_owned() })
    }

    /// Reads many subnet pools, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        query_in(tx, &format!("SELECT {COLUMNS} FROM subnet_pools WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Reads the pool that subnets of that version come from unless told otherwise.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn default_of(tx: &Tx<'_>, ip_version: u8) -> Result<Option<Self>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM subnet_pools WHERE is_default = 1 AND ip_version = ?1");
        tx.query_opt(&sql, &values![ip_version], Self::read)
    }

    /// Reads the pools of an address scope.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn in_scope(tx: &Tx<'_>, scope: AddressScopeId) -> Result<Vec<Self>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM subnet_pools WHERE address_scope_id = ?1 ORDER BY id");
        tx.query(&sql, &values![scope], Self::read)
    }

    /// What is cut from the pool: prefixes, and whose they are.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn taken(&self, tx: &Tx<'_>) -> Result<Vec<(IpNet, String)>, StoreError> {
        let sql = "SELECT cidr, project_id FROM subnets WHERE subnetpool_id = ?1 ORDER BY id";
        tx.query(sql, &values![&self.id], |row| Ok((row.parse(0)?, row.text(1)?)))
    }

    /// Writes a new pool; its times and revision number are the transaction's.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn insert(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let own = values![
            &self.id,
            &self.project_id,
            &self.name,
            &self.description,
            self.ip_version,
            json(&self.prefixes),
            self.min_prefixlen,
            self.max_prefixlen,
            self.default_prefixlen,
            self.default_quota,
            self.is_default,
            self.address_scope_id,
        ];
        insert(tx, "subnet_pools", COLUMNS, own, 0)
    }

    /// Writes what can change of a pool, and counts the change.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn update(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let sql = "UPDATE subnet_pools SET name = ?2, description = ?3, prefixes = ?4, min_prefixlen = ?5, \
                   max_prefixlen = ?6, default_prefixlen = ?7, default_quota = ?8, is_default = ?9, \
                   address_scope_id = ?10 WHERE id = ?1";
        let params = values![
            &self.id,
            &self.name,
            &self.description,
            json(&self.prefixes),
            self.min_prefixlen,
            self.max_prefixlen,
            self.default_prefixlen,
            self.default_quota,
            self.is_default,
            self.address_scope_id,
        ];
        tx.execute(sql, &params)?;
        super::bump(tx, "subnet_pools", &self.id)
    }

    /// Lets hosts know of what the pool's subnets belong to.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn note_networks(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let sql = "SELECT network_id, id FROM subnets WHERE subnetpool_id = ?1";
        for (network, subnet) in tx.query(sql, &values![&self.id], |row| Ok((row.text(0)?, row.text(1)?)))? {
            tx.changed(Kind::Network, network);
            tx.changed(Kind::Subnet, subnet);
        }
        Ok(())
    }

    /// Removes a pool that nothing is cut from, and what is about it.
    ///
    /// # Errors
    ///
    /// When something is.
    pub fn delete(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tags::replace(tx, &self.id, &[])?;
        tx.execute("DELETE FROM rbac_policies WHERE object_id = ?1", &values![&self.id])?;
        tx.execute("DELETE FROM subnet_pools WHERE id = ?1", &values![&self.id])?;
        Ok(())
    }
}

/// Address scopes by network and IP version.
pub type Scopes = BTreeMap<(NetworkId, u8), AddressScopeId>;

/// The address scopes of networks: by network and IP version, where there is one.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn scopes_of<'t>(tx: &'t Tx<'_>, networks: &[impl AsRef<str>]) -> Result<Later<'t, Scopes>, StoreError> {
    let sql = "SELECT DISTINCT s.network_id, s.ip_version, p.address_scope_id FROM subnets s \
               JOIN subnet_pools p ON p.id = s.subnetpool_id \
               WHERE p.address_scope_id IS NOT NULL AND s.network_id IN ({})";
    let rows = ask_in(tx, sql, networks, |row| Ok(((row.parse(0)?, row.num(1)?), row.parse(2)?)))?;
    Ok(rows.map(|rows| rows.into_iter().collect()))
}
