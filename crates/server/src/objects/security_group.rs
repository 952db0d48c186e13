//! Security groups and their rules as the store holds them, and which ports are in which.

use std::collections::BTreeMap;

use evergate_model::PortId;

use super::{Later, Standard, ask, ask_in, insert, query_in, tags};
use crate::error::ApiError;
use crate::random;
use crate::store::{Row, StoreError, Tx, Value};
use crate::values;

/// The name that only a project's default group has.
pub const DEFAULT: &str = "default";

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct SecurityGroup {
    pub id: String,
    pub project_id: String,
    pub name: String,
    pub description: String,
    pub is_default: bool,
    pub stateful: bool,
    pub standard: Standard,
}

/// A rule of a security group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct Rule {
    pub id: String,
    pub project_id: String,
    pub security_group_id: String,
    pub direction: String,
    pub ethertype: String,
    pub protocol: Option<String>,
    pub port_range_min: Option<i64>,
    pub port_range_max: Option<i64>,
    pub remote_ip_prefix: Option<String>,
    pub normalized_cidr: Option<String>,
    pub remote_group_id: Option<String>,
    pub description: String,
    pub standard: Standard,
}

const COLUMNS: &str =
    "id, project_id, name, description, is_default, stateful, created_at, updated_at, revision_number";

const RULE_COLUMNS: &str = "id, project_id, security_group_id, direction, ethertype, protocol, port_range_min, \
                            port_range_max, remote_ip_prefix, normalized_cidr, remote_group_id, description, \
                            created_at, updated_at, revision_number";

impl SecurityGroup {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.text(0)?,
            project_id: row.text(1)?,
            name: row.text(2)?,
            description: row.text(3)?,
            is_default: row.bool(4)?,
            stateful: row.bool(5)?,
            standard: Standard::read(row, 6)?,
        })
    }

    /// Reads one security group.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: &str) -> Result<Self, ApiError> {
        let found = Self::many(tx, &[id.to_owned()])?.pop();
        found.ok_or_else(|| ApiError::SecurityGroupNotFound { id: id.to_owned() })
    }

    /// Reads many security groups, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        query_in(tx, &format!("SELECT {COLUMNS} FROM security_groups WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Writes a new group with the rules that every group starts with: its ports may send anything. Those of
    /// a default group also hear from each other.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn insert(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let own = values![&self.id, &self.project_id, &self.name, &self.description, self.is_default, self.stateful,];
        insert(tx, "security_groups", COLUMNS, own, 1)?;
        for ethertype in ["IPv4", "IPv6"] {
            if self.is_default {
                let rule = Rule { remote_group_id: Some(self.id.clone()), ..Rule::any(self, "ingress", ethertype) };
                rule.insert(tx)?;
            }
            Rule::any(self, "egress", ethertype).insert(tx)?;
        }
        Ok(())
    }

    /// Removes a group that no port is in, with its rules and those that speak of it.
    ///
    /// # Errors
    ///
    /// When a port is.
    pub fn delete(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tags::replace(tx, &self.id, &[])?;
        tx.execute("DELETE FROM rbac_policies WHERE object_id = ?1", &values![&self.id])?;
        tx.execute("DELETE FROM security_groups WHERE id = ?1", &values![&self.id])?;
        Ok(())
    }
}

impl Rule {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.text(0)?,
            project_id: row.text(1)?,
            security_group_id: row.text(2)?,
            direction: row.text(3)?,
            ethertype: row.text(4)?,
            protocol: row.opt_text(5)?,
            port_range_min: row.opt_int(6)?,
            port_range_max: row.opt_int(7)?,
            remote_ip_prefix: row.opt_text(8)?,
            normalized_cidr: row.opt_text(9)?,
            remote_group_id: row.opt_text(10)?,
            description: row.text(11)?,
            standard: Standard::read(row, 12)?,
        })
    }

    /// A rule of a group that lets everything pass.
    pub fn any(group: &SecurityGroup, direction: &str, ethertype: &str) -> Self {
        Self {
            id: random::id().to_string(),
            project_id: group.project_id.clone(),
            security_group_id: group.id.clone(),
            direction: direction.to_owned(),
            ethertype: ethertype.to_owned(),
            protocol: None,
            port_range_min: None,
            port_range_max: None,
            remote_ip_prefix: None,
            normalized_cidr: None,
            remote_group_id: None,
            description: String::new(),
            standard: Standard::default(),
        }
    }

    /// Reads many rules, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        let sql = format!("SELECT {RULE_COLUMNS} FROM security_group_rules WHERE id IN ({{}})");
        query_in(tx, &sql, ids, Self::read)
    }

    /// Reads the rules of many groups, by group.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_groups(tx: &Tx<'_>, groups: &[impl AsRef<str>]) -> Result<Vec<Self>, StoreError> {
        let sql = format!(
            "SELECT {RULE_COLUMNS} FROM security_group_rules WHERE security_group_id IN ({{}}) \
             ORDER BY security_group_id, created_at, id"
        );
        query_in(tx, &sql, groups, Self::read)
    }

    /// Writes a new rule; its times and revision number are the transaction's.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn insert(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let own = values![
            &self.id,
            &self.project_id,
            &self.security_group_id,
            &self.direction,
            &self.ethertype,
            self.protocol.as_deref(),
            self.port_range_min,
            self.port_range_max,
            self.remote_ip_prefix.as_deref(),
            self.normalized_cidr.as_deref(),
            self.remote_group_id.as_deref(),
            &self.description,
        ];
        insert(tx, "security_group_rules", RULE_COLUMNS, own, 0)
    }
}

/// Finds a project's default group.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn default_of(tx: &Tx<'_>, project: &str) -> Result<Option<String>, StoreError> {
    ask_default_of(tx, project)?.read()
}

/// Asks for a project's default group.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn ask_default_of<'t>(tx: &'t Tx<'_>, project: &str) -> Result<Later<'t, Option<String>>, StoreError> {
    let sql = "SELECT id FROM security_groups WHERE project_id = ?1 AND is_default = 1";
    Ok(ask(tx, sql, &values![project], |row| row.text(0))?.map(|found| found.into_iter().next()))
}

/// Finds a project's default group, or makes it.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn ensure_default(tx: &Tx<'_>, project: &str) -> Result<String, StoreError> {
    match default_of(tx, project)? {
        Some(id) => Ok(id),
        None => make_default(tx, project),
    }
}

/// Makes the default group of a project that has none.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn make_default(tx: &Tx<'_>, project: &str) -> Result<String, StoreError> {
    let group = SecurityGroup {
        id: random::id().to_string(),
        project_id: project.to_owned(),
        name: DEFAULT.to_owned(),
        description: "Default security group".to_owned(),
        is_default: true,
        stateful: true,
        standard: Standard::default(),
    };
    group.insert(tx)?;
    Ok(group.id)
}

/// Reads the groups that each of many ports is in.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn of_ports<'t>(tx: &'t Tx<'_>, ports: &[String]) -> Result<Later<'t, BTreeMap<PortId, Vec<String>>>, StoreError> {
    let sql = "SELECT port_id, security_group_id FROM port_security_groups WHERE port_id IN ({}) \
               ORDER BY port_id, security_group_id";
    Ok(ask_in(tx, sql, ports, |row| Ok((row.parse(0)?, row.text(1)?)))?.by_key())
}

/// Makes these the groups that a port is in.
///
/// # Errors
///
/// When one is not there.
pub fn set_of_port(tx: &Tx<'_>, port: PortId, groups: &[String]) -> Result<(), StoreError> {
    tx.execute("DELETE FROM port_security_groups WHERE port_id = ?1", &values![port])?;
    put_port_in(tx, port, groups)
}

/// Puts a port in further groups.
///
/// # Errors
///
/// When there is no such group.
pub fn put_port_in(tx: &Tx<'_>, port: PortId, groups: &[String]) -> Result<(), StoreError> {
    for group in groups {
        let sql = "INSERT INTO port_security_groups (port_id, security_group_id) VALUES (?1, ?2)";
        tx.execute(sql, &[Value::from(port), Value::from(group)])?;
    }
    Ok(())
}
