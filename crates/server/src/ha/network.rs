//! The HA network: hidden, one per project, made with the project's first HA router and kept.
//!
//! It belongs to no project (`project_id` is empty), so ordinary users neither see nor change it; its
//! name carries the project's id. A further one is made when all VRIDs of the others are in use.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use evergate_model::{NetworkId, RouterId, SubnetId};
use ipnet::{IpNet, Ipv4Net};

use crate::error::ApiError;
use crate::ipam;
use crate::objects::Standard;
use crate::objects::network::{Network, NewNetwork, Segment, allocate_segment, max_mtu};
use crate::objects::subnet::Subnet;
use crate::options::Options;
use crate::random;
use crate::store::{Row, StoreError, Tx};
use crate::values;

/// The largest VRID: 255 would make the virtual address a broadcast address.
const MAX_VRID: u8 = 254;

/// A project's HA network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HaNetwork {
    /// The network.
    pub network_id: NetworkId,
    /// Its only subnet.
    pub subnet_id: SubnetId,
}

impl HaNetwork {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self { network_id: row.parse(0)?, subnet_id: row.parse(1)? })
    }

    /// Finds the HA network of an HA router.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_router(tx: &Tx<'_>, router: RouterId) -> Result<Option<Self>, StoreError> {
        let sql = "SELECT n.network_id, n.subnet_id FROM ha_routers r \
                   JOIN ha_networks n ON n.network_id = r.network_id WHERE r.router_id = ?1";
        tx.query_opt(sql, &values![router], Self::read)
    }
}

/// Finds the project's first HA network with a free VRID, or makes one, and picks the VRID.
pub(super) fn with_free_vrid(tx: &Tx<'_>, options: &Options, project: &str) -> Result<(HaNetwork, u8), ApiError> {
    let sql = "SELECT n.network_id, n.subnet_id, r.vrid FROM ha_networks n \
               LEFT JOIN ha_routers r ON r.network_id = n.network_id WHERE n.project_id = ?1 ORDER BY n.ordinal";
    let mut networks = Vec::<(HaNetwork, BTreeSet<i64>)>::new();
    for (network, vrid) in tx.query(sql, &values![project], |row| Ok((HaNetwork::read(row)?, row.opt_int(2)?)))? {
        match networks.last_mut() {
            Some((last, used)) if *last == network => used.extend(vrid),
            _ => networks.push((network, vrid.into_iter().collect())),
        }
    }
    for (network, used) in &networks {
        if let Some(vrid) = free_vrid(used) {
            return Ok((*network, vrid));
        }
    }
    let network = make(tx, options, project, networks.len() as i64)?;
    let vrid = free_vrid(&BTreeSet::new()).ok_or_else(|| ApiError::internal("a new HA network has no free VRID"))?;
    Ok((network, vrid))
}

fn free_vrid(used: &BTreeSet<i64>) -> Option<u8> {
    let free: Vec<u8> = (1..=MAX_VRID).filter(|vrid| !used.contains(&i64::from(*vrid))).collect();
    if free.is_empty() { None } else { Some(free[random::below(free.len() as u128) as usize]) }
}

fn make(tx: &Tx<'_>, options: &Options, project: &str, ordinal: i64) -> Result<HaNetwork, ApiError> {
    let segment = segment(tx, options)?;
    let new = NewNetwork {
        project_id: String::new(),
        name: format!("HA network tenant {project}"),
        description: String::new(),
        admin_state_up: true,
        shared: false,
        external: false,
        is_default: false,
        port_security_enabled: true,
        mtu: max_mtu(options, &segment),
        segment,
    };
    let network_id = Network::insert(tx, &new)?;
    let subnet_id = SubnetId(random::id());
    let cidr = IpNet::V4(options.l3_ha_net_cidr);
    let subnet = Subnet {
        id: subnet_id,
        project_id: String::new(),
        network_id,
        name: format!("HA subnet tenant {project}"),
        description: String::new(),
        ip_version: 4,
        cidr,
        gateway_ip: None,
        enable_dhcp: false,
        ipv6_ra_mode: None,
        ipv6_address_mode: None,
        allocation_pools: ipam::default_pools(cidr, None),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        service_types: Vec::new(),
        subnetpool_id: None,
        standard: Standard::default(),
    };
    subnet.insert(tx)?;
    let sql = "INSERT INTO ha_networks (network_id, project_id, ordinal, subnet_id) VALUES (?1, ?2, ?3, ?4)";
    tx.execute(sql, &values![network_id, project, ordinal, subnet_id])?;
    Ok(HaNetwork { network_id, subnet_id })
}

fn segment(tx: &Tx<'_>, options: &Options) -> Result<Segment, ApiError> {
    let physical_network = &options.l3_ha_network_physical_name;
    match options.l3_ha_network_type.as_str() {
        "" => allocate_segment(tx, options, &options.tenant_network_types),
        "flat" if !physical_network.is_empty() => Ok(Segment::Flat(physical_network.clone())),
        network_type => allocate_segment(tx, options, &[network_type.to_owned()]),
    }
}

/// The virtual address of a VRID: in the first /24 of 169.254.0.0/16 that nothing else needs.
pub fn virtual_address(options: &Options, vrid: u8) -> Ipv4Net {
    // The metadata service's address, and what distributed routers use between their namespaces.
    let reserved = [
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 169, 254), 32),
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18),
        options.l3_ha_net_cidr,
    ];
    let overlaps = |a: &Ipv4Net, b: &Ipv4Net| a.contains(&b.network()) || b.contains(&a.network());
    let third = (0..=255).find(|third| {
        let net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, *third, 0), 24);
        !reserved.iter().any(|other| overlaps(&net, other))
    });
    // l3_ha_net_cidr cannot cover all of 169.254.0.0/16 and still leave room: the first will have to do.
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, third.unwrap_or(0), vrid), 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_address_is_made_from_the_vrid() {
        assert_eq!(virtual_address(&Options::default(), 143).to_string(), "169.254.0.143/24");
    }

    #[test]
    fn the_virtual_address_keeps_off_the_ha_network() {
        let options = Options { l3_ha_net_cidr: "169.254.0.0/18".parse().unwrap(), ..Options::default() };
        assert_eq!(virtual_address(&options, 7).to_string(), "169.254.128.7/24");
    }
}
