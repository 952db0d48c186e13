//! The ports by which a distributed router's subnets reach its source NAT (`sg-`): one per IPv4 subnet, and one
//! per network for all of its IPv6 subnets, for as long as the router is distributed and has a gateway.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::{NetworkId, PortId, RouterId, SubnetId};

use crate::error::ApiError;
use crate::ha;
use crate::ipam::FixedIpRequest;
use crate::objects::port::{NewPort, Port, owner};
use crate::objects::query_in;
use crate::objects::router::{self, Role, Router, RouterPort};
use crate::options::Options;
use crate::store::{StoreError, Tx};

/// The subnets that one such port is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// An IPv4 subnet.
    V4(NetworkId, SubnetId),
    /// All IPv6 subnets that the router has on a network.
    V6(NetworkId, BTreeSet<SubnetId>),
}

impl Place {
    fn network(&self) -> NetworkId {
        match self {
            Self::V4(network, _) | Self::V6(network, _) => *network,
        }
    }

    fn subnets(&self) -> Vec<SubnetId> {
        match self {
            Self::V4(_, subnet) => vec![*subnet],
            Self::V6(_, subnets) => subnets.iter().copied().collect(),
        }
    }
}

/// Makes, changes and removes these ports where they are not as the routers need them.
pub(super) fn settle(tx: &Tx<'_>, options: &Options, routers: &[String]) -> Result<(), ApiError> {
    let mut wanted = wanted(tx, routers)?;
    let have = existing(tx, routers)?;
    let concerned: BTreeSet<RouterId> = wanted.keys().chain(have.keys()).copied().collect();
    for id in concerned {
        let router = Router::get(tx, id)?;
        let missing = keep(tx, wanted.remove(&id).unwrap_or_default(), have.get(&id).map_or(&[], Vec::as_slice))?;
        for place in missing {
            make(tx, options, &router, &place)?;
        }
    }
    Ok(())
}

/// Keeps the ports that are needed, removes the others; answers what is missing.
fn keep(tx: &Tx<'_>, mut wanted: BTreeSet<Place>, have: &[(PortId, Place)]) -> Result<BTreeSet<Place>, ApiError> {
    for (port, place) in have {
        if wanted.remove(place) {
            continue;
        }
        let mut port = Port::get(tx, *port)?;
        // The same port when a prefix comes or goes, as with the router's own interface.
        let grown = wanted.iter().find(|other| same_port(place, other)).cloned();
        match grown {
            Some(grown) => {
                wanted.remove(&grown);
                let kept = port.fixed_ips.iter().filter(|fixed| grown.subnets().contains(&fixed.subnet_id));
                let mut requests: Vec<FixedIpRequest> = kept
                    .map(|fixed| FixedIpRequest {
                        subnet_id: Some(fixed.subnet_id),
                        ip_address: Some(fixed.ip_address),
                    })
                    .collect();
                let new = grown.subnets().into_iter().filter(|id| !requests.iter().any(|r| r.subnet_id == Some(*id)));
                requests.extend(Vec::from_iter(new).into_iter().map(any_of));
                port.change_fixed_ips(tx, &requests)?;
            }
            None => port.delete(tx)?,
        }
    }
    Ok(wanted)
}

fn same_port(old: &Place, new: &Place) -> bool {
    matches!((old, new), (Place::V6(old, _), Place::V6(new, _)) if old == new)
}

fn any_of(subnet: SubnetId) -> FixedIpRequest {
    FixedIpRequest { subnet_id: Some(subnet), ip_address: None }
}

fn make(tx: &Tx<'_>, options: &Options, router: &Router, place: &Place) -> Result<(), ApiError> {
    let (device, host) = (router.id.to_string(), ha::current_host(tx, router)?);
    let requests: Vec<FixedIpRequest> = place.subnets().into_iter().map(any_of).collect();
    let new = NewPort {
        host_id: &host,
        fixed_ips: Some(&requests),
        // It belongs to no project: users see their router's interface.
        ..NewPort::device(place.network(), owner::SNAT, &device)
    };
    let port = Port::create(tx, options, &new)?;
    let (router_id, port_id, network_id) = (router.id, port.id, port.network_id);
    router::attach(tx, &RouterPort { router_id, port_id, network_id, role: Role::Snat })?;
    Ok(())
}

/// What the routers need.
fn wanted(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<RouterId, BTreeSet<Place>>, StoreError> {
    let sql = "SELECT rs.router_id, s.network_id, s.id, s.ip_version FROM router_subnets rs \
               JOIN subnets s ON s.id = rs.subnet_id JOIN routers r ON r.id = rs.router_id \
               WHERE r.distributed = 1 AND rs.router_id IN ({}) AND EXISTS \
               (SELECT 1 FROM router_ports gw WHERE gw.router_id = rs.router_id AND gw.role = 'gateway')";
    let rows = query_in(tx, sql, routers, |row| Ok((row.parse(0)?, row.parse(1)?, row.parse(2)?, row.int(3)?)))?;
    Ok(places(rows))
}

/// Router, network, subnet and IP version, by what one port is for.
fn places(rows: Vec<(RouterId, NetworkId, SubnetId, i64)>) -> BTreeMap<RouterId, BTreeSet<Place>> {
    let mut places = BTreeMap::<RouterId, BTreeSet<Place>>::new();
    let mut v6 = BTreeMap::<(RouterId, NetworkId), BTreeSet<SubnetId>>::new();
    for (router, network, subnet, version) in rows {
        if version == 4 {
            places.entry(router).or_default().insert(Place::V4(network, subnet));
        } else {
            v6.entry((router, network)).or_default().insert(subnet);
        }
    }
    for ((router, network), subnets) in v6 {
        places.entry(router).or_default().insert(Place::V6(network, subnets));
    }
    places
}

/// What the routers have.
fn existing(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<RouterId, Vec<(PortId, Place)>>, StoreError> {
    let sql = "SELECT rp.router_id, rp.port_id, rp.network_id, f.subnet_id, s.ip_version FROM router_ports rp \
               LEFT JOIN fixed_ips f ON f.port_id = rp.port_id LEFT JOIN subnets s ON s.id = f.subnet_id \
               WHERE rp.role = 'snat' AND rp.router_id IN ({}) ORDER BY rp.router_id, rp.port_id";
    let rows = query_in(tx, sql, routers, |row| {
        let subnet = (row.opt_parse::<SubnetId>(3)?, row.opt_int(4)?);
        Ok((row.parse::<RouterId>(0)?, row.parse::<PortId>(1)?, row.parse::<NetworkId>(2)?, subnet))
    })?;
    let mut ports = BTreeMap::<(RouterId, PortId), Place>::new();
    for (router, port, network, (subnet, version)) in rows {
        match (subnet, version) {
            (Some(subnet), Some(4)) => drop(ports.insert((router, port), Place::V4(network, subnet))),
            (subnet, _) => {
                let place = ports.entry((router, port)).or_insert_with(|| Place::V6(network, BTreeSet::new()));
                if let Place::V6(_, subnets) = place {
                    subnets.extend(subnet);
                }
            }
        }
    }
    let mut found = BTreeMap::<RouterId, Vec<(PortId, Place)>>::new();
    for ((router, port), place) in ports {
        found.entry(router).or_default().push((port, place));
    }
    Ok(found)
}
