//! Networks as the store holds them, and the segments that carry them.

use evergate_model::NetworkId;

use super::{Later, Standard, ask_in, tags};
use crate::error::ApiError;
use crate::options::Options;
use crate::random;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct Network {
    pub id: NetworkId,
    pub project_id: String,
    pub name: String,
    pub description: String,
    pub admin_state_up: bool,
    pub shared: bool,
    pub external: bool,
    pub is_default: bool,
    pub mtu: u16,
    pub port_security_enabled: bool,
    pub segment: Segment,
    pub standard: Standard,
}

/// What carries a network: Neutron's provider attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// VXLAN with this VNI.
    Vxlan(u32),
    /// Untagged on this physical network.
    Flat(String),
    /// Within one host.
    Local,
}

impl Segment {
    /// `provider:network_type`.
    pub fn network_type(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Flat(_) => "flat",
            Self::Local => "local",
        }
    }

    /// `provider:physical_network`.
    pub fn physical_network(&self) -> Option<&str> {
        if let Self::Flat(name) = self { Some(name) } else { None }
    }

    /// `provider:segmentation_id`.
    pub fn segmentation_id(&self) -> Option<u32> {
        if let Self::Vxlan(vni) = self { Some(*vni) } else { None }
    }
}

/// Bytes that VXLAN over IPv4 adds to a packet: outer IP, UDP, VXLAN, inner Ethernet.
const VXLAN_OVERHEAD: u16 = 20 + 8 + 8 + 14;

/// The largest MTU that a network on the segment can have.
pub fn max_mtu(options: &Options, segment: &Segment) -> u16 {
    match segment {
        Segment::Vxlan(_) => {
            let limits = [options.global_physnet_mtu, options.path_mtu];
            let underlay = limits.into_iter().filter(|mtu| *mtu > 0).min().unwrap_or(1500);
            underlay.saturating_sub(VXLAN_OVERHEAD)
        }
        Segment::Flat(name) => options.physical_network_mtus.get(name).copied().unwrap_or(options.global_physnet_mtu),
        Segment::Local => options.global_physnet_mtu,
    }
}

/// A network about to be made.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct NewNetwork {
    pub project_id: String,
    pub name: String,
    pub description: String,
    pub admin_state_up: bool,
    pub shared: bool,
    pub external: bool,
    pub is_default: bool,
    pub port_security_enabled: bool,
    pub segment: Segment,
    pub mtu: u16,
}

const COLUMNS: &str = "id, project_id, name, description, admin_state_up, shared, external, is_default, mtu, \
                       port_security_enabled, network_type, physical_network, segmentation_id, created_at, \
                       updated_at, revision_number";

impl Network {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let segment = match (row.text(10)?.as_str(), row.opt_text(11)?, row.opt_int(12)?) {
            ("vxlan", _, Some(vni)) => Segment::Vxlan(vni as u32),
            ("flat", Some(physical_network), _) => Segment::Flat(physical_network),
            _ => Segment::Local,
        };
        Ok(Self {
            id: row.parse(0)?,
            project_id: row.text(1)?,
            name: row.text(2)?,
            description: row.text(3)?,
            admin_state_up: row.bool(4)?,
            shared: row.bool(5)?,
            external: row.bool(6)?,
            is_default: row.bool(7)?,
            mtu: row.num(8)?,
            port_security_enabled: row.bool(9)?,
            segment,
            standard: Standard::read(row, 13)?,
        })
    }

    /// Reads one network.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: NetworkId) -> Result<Self, ApiError> {
        let sql = format!("SELECT {COLUMNS} FROM networks WHERE id = ?1");
        tx.query_opt(&sql, &values![id], Self::read)?.ok_or_else(|| ApiError::NetworkNotFound { id: id.to_string() })
    }

    /// Reads many networks, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        Self::ask_many(tx, ids)?.read()
    }

    /// Asks for many networks.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ask_many<'t>(tx: &'t Tx<'_>, ids: &[String]) -> Result<Later<'t, Vec<Self>>, StoreError> {
        ask_in(tx, &format!("SELECT {COLUMNS} FROM networks WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Writes a new network.
    ///
    /// # Errors
    ///
    /// When the schema refuses it: the segment is somebody else's.
    pub fn insert(tx: &Tx<'_>, new: &NewNetwork) -> Result<NetworkId, StoreError> {
        let id = NetworkId(random::id());
        let now = tx.now_text();
        let sql = "INSERT INTO networks (id, project_id, name, description, admin_state_up, shared, external, \
                   is_default, mtu, port_security_enabled, network_type, physical_network, segmentation_id, \
                   created_at, updated_at, revision_number) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?14, 1)";
        let params = values![
            id,
            &new.project_id,
            &new.name,
            &new.description,
            new.admin_state_up,
            new.shared,
            new.external,
            new.is_default,
            new.mtu,
            new.port_security_enabled,
            new.segment.network_type(),
            new.segment.physical_network(),
            new.segment.segmentation_id(),
            now,
        ];
        tx.execute(sql, &params)?;
        tx.changed(Kind::Network, id);
        Ok(id)
    }

    /// Removes a network that has no ports left, with its subnets.
    ///
    /// # Errors
    ///
    /// When ports are left.
    pub fn delete(tx: &Tx<'_>, id: NetworkId) -> Result<(), StoreError> {
        let subnets = tx.query("SELECT id FROM subnets WHERE network_id = ?1", &values![id], |row| row.text(0))?;
        for subnet in subnets {
            tags::replace(tx, &subnet, &[])?;
            tx.changed(Kind::Subnet, subnet);
        }
        tags::replace(tx, &id.to_string(), &[])?;
        tx.execute("DELETE FROM rbac_policies WHERE object_id = ?1", &values![id])?;
        tx.execute("DELETE FROM networks WHERE id = ?1", &values![id])?;
        tx.changed(Kind::Network, id);
        Ok(())
    }
}

/// Gives a project network its segment: the first of the configured types that has room.
///
/// # Errors
///
/// 503 when none has.
pub fn allocate_segment(tx: &Tx<'_>, options: &Options, types: &[String]) -> Result<Segment, ApiError> {
    for network_type in types {
        let segment = match network_type.as_str() {
            "vxlan" => free_vni(tx, options)?.map(Segment::Vxlan),
            "flat" => free_flat(tx, options)?.map(Segment::Flat),
            "local" => Some(Segment::Local),
            _ => None,
        };
        if let Some(segment) = segment {
            return Ok(segment);
        }
    }
    Err(ApiError::NoNetworkAvailable {})
}

/// Random VNIs that are tried before all used ones are read.
const RANDOM_TRIES: usize = 8;

fn free_vni(tx: &Tx<'_>, options: &Options) -> Result<Option<u32>, StoreError> {
    let total: u128 = options.vni_ranges.iter().map(|(first, last)| u128::from(last.saturating_sub(*first)) + 1).sum();
    if options.vni_ranges.is_empty() {
        return Ok(None);
    }
    for _ in 0..RANDOM_TRIES {
        let mut offset = random::below(total) as u32;
        for (first, last) in &options.vni_ranges {
            let size = last.saturating_sub(*first) + 1;
            if offset < size {
                if !vni_is_taken(tx, first + offset)? {
                    return Ok(Some(first + offset));
                }
                break;
            }
            offset -= size;
        }
    }
    let sql = "SELECT segmentation_id FROM networks WHERE network_type = 'vxlan'";
    let used: std::collections::BTreeSet<u32> = tx.query(sql, &[], |row| row.num(0))?.into_iter().collect();
    Ok(options.vni_ranges.iter().flat_map(|(first, last)| *first..=*last).find(|vni| !used.contains(vni)))
}

/// Tells whether a network has that VNI.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn vni_is_taken(tx: &Tx<'_>, vni: u32) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM networks WHERE network_type = 'vxlan' AND segmentation_id = ?1";
    Ok(tx.count(sql, &values![vni])? > 0)
}

fn free_flat(tx: &Tx<'_>, options: &Options) -> Result<Option<String>, StoreError> {
    for name in options.flat_networks.iter().filter(|name| *name != "*") {
        if !flat_is_taken(tx, name)? {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// Tells whether a flat network already uses the physical network.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn flat_is_taken(tx: &Tx<'_>, physical_network: &str) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM networks WHERE network_type = 'flat' AND physical_network = ?1";
    Ok(tx.count(sql, &values![physical_network])? > 0)
}
