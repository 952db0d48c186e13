//! The networks that one host is told of.
//!
//! Of a network that tunnels carry, the host is told of every port on whatever host, since it fills its
//! forwarding entries from that. Of any other the switches outside know where the ports are, and the host is
//! told of those that it has itself and of those of its routers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use evergate_model::host::{AllowedAddress, Location, Network as HostNetwork, NetworkPort, Segment as HostSegment};
use evergate_model::{Mac, NetworkId, PortId, RouterId};
use ipnet::IpNet;
use serde::Deserialize;

use super::vrids;
use crate::error::ApiError;
use crate::objects::network::{Network, Segment};
use crate::objects::port::owner;
use crate::objects::router::Role;
use crate::objects::{query_in, query_in_with};
use crate::store::{Row, StoreError, Tx};
use crate::values;

struct PortRow {
    id: PortId,
    network_id: NetworkId,
    mac: Mac,
    admin_state_up: bool,
    host: String,
    moves: Moves,
    allowed_addresses: Vec<AllowedAddress>,
}

impl PortRow {
    fn shown(self, host: &str, vteps: &BTreeMap<String, IpAddr>, ips: Vec<IpAddr>) -> NetworkPort {
        let location = match (self.moves, vteps.get(&self.host)) {
            (Moves::Follows(router), _) => Location::Active { router },
            (Moves::Everywhere(router), _) => Location::Everywhere { router },
            (Moves::Bound, _) if self.host == host => Location::Local,
            (Moves::Bound, Some(vtep)) => Location::Remote { vtep: *vtep },
            (Moves::Bound, None) => Location::Unbound,
        };
        let (admin_state_up, allowed_addresses) = (self.admin_state_up, self.allowed_addresses);
        NetworkPort { mac: self.mac, ips, location, admin_state_up, allowed_addresses }
    }
}

/// Whether a port is on the host that it is bound to.
#[derive(Clone, Copy)]
enum Moves {
    /// It is.
    Bound,
    /// It is wherever this HA router is active.
    Follows(RouterId),
    /// It is on every host that routes for this router.
    Everywhere(RouterId),
}

impl Moves {
    fn of(ha: bool, distributed: bool, port: Option<(RouterId, Role)>) -> Self {
        match port {
            None | Some((_, Role::Ha)) => Self::Bound,
            Some((router, Role::Interface)) if distributed => Self::Everywhere(router),
            Some((router, Role::Interface | Role::Gateway | Role::Snat)) if ha => Self::Follows(router),
            Some((_, Role::Interface | Role::Gateway | Role::Snat)) => Self::Bound,
        }
    }
}

/// Builds the networks; answers also the HA routers that have a port on one of them.
pub(crate) fn read(
    tx: &Tx<'_>,
    host: &str,
    needed: &[String],
    vteps: &BTreeMap<String, IpAddr>,
) -> Result<(BTreeMap<NetworkId, HostNetwork>, BTreeSet<RouterId>), ApiError> {
    let mut networks: BTreeMap<NetworkId, HostNetwork> =
        Network::many(tx, needed)?.into_iter().map(|network| (network.id, empty_network(&network))).collect();
    for (network, vrids) in vrids(tx, needed)? {
        if let Some(network) = networks.get_mut(&network) {
            network.vrids = vrids;
        }
    }
    let (tunnelled, physical): (Vec<&HostNetwork>, Vec<_>) =
        networks.values().partition(|network| matches!(network.segment, HostSegment::Vxlan { .. }));
    let ids = |networks: Vec<&HostNetwork>| Vec::from_iter(networks.into_iter().map(|network| network.id.to_string()));
    let (tunnelled, physical) = (ids(tunnelled), ids(physical));
    let mut ports = all_ports(tx, &tunnelled)?;
    let mut addresses = addresses(tx, "network_id", &tunnelled)?;
    let own = own_ports(tx, host, &physical)?;
    addresses.extend(self::addresses(tx, "port_id", &own.iter().map(|port| port.id.to_string()).collect::<Vec<_>>())?);
    ports.extend(own);
    let mut ha_routers = BTreeSet::new();
    for port in ports {
        if let Moves::Follows(router) = port.moves {
            ha_routers.insert(router);
        }
        let ips = addresses.remove(&port.id).unwrap_or_default();
        if let Some(network) = networks.get_mut(&port.network_id) {
            network.ports.insert(port.id, port.shown(host, vteps, ips));
        }
    }
    for (network_id, other) in network_hosts(tx, &tunnelled)? {
        if other != host
            && let (Some(network), Some(vtep)) = (networks.get_mut(&network_id), vteps.get(&other))
        {
            network.peers.insert(*vtep);
        }
    }
    Ok((networks, ha_routers))
}

fn empty_network(network: &Network) -> HostNetwork {
    let segment = match &network.segment {
        Segment::Vxlan(vni) => HostSegment::Vxlan { vni: *vni },
        Segment::Flat(name) => HostSegment::Flat { physical_network: name.clone() },
        Segment::Local => HostSegment::Local,
    };
    HostNetwork {
        id: network.id,
        segment,
        // No device has less; a network without subnets may say so all the same.
        mtu: network.mtu.max(68),
        ports: BTreeMap::new(),
        peers: BTreeSet::new(),
        vrids: BTreeSet::new(),
    }
}

const PORTS: &str = "SELECT p.id, p.network_id, p.mac_address, p.admin_state_up, p.host_id, rp.router_id, rp.role, \
                     r.ha, r.distributed, p.allowed_address_pairs \
                     FROM ports p LEFT JOIN router_ports rp ON rp.port_id = p.id \
                     LEFT JOIN routers r ON r.id = rp.router_id WHERE p.network_id IN ({})";

fn all_ports(tx: &Tx<'_>, networks: &[String]) -> Result<Vec<PortRow>, StoreError> {
    // A floating IP's port is left out: nothing answers to its MAC, the router's gateway port does.
    let sql = format!("{PORTS} AND p.device_owner <> '{}'", owner::FLOATING_IP);
    query_in(tx, &sql, networks, read_port)
}

/// The ports that are bound to the host, and those of the routers that it has a part of.
fn own_ports(tx: &Tx<'_>, host: &str, networks: &[String]) -> Result<Vec<PortRow>, StoreError> {
    let sql = format!(
        "{PORTS} AND (p.host_id = ?1 OR rp.router_id IN (SELECT router_id FROM router_hosts WHERE host = ?1) \
         OR rp.router_id IN (SELECT b.router_id FROM router_bindings b JOIN agents a ON a.id = b.agent_id \
         WHERE a.host = ?1 AND a.admin_state_up = 1))"
    );
    query_in_with(tx, &sql, &values![host], networks, read_port)
}

fn read_port(row: &Row<'_>) -> Result<PortRow, StoreError> {
    let (ha, distributed) = (row.opt_int(7)? == Some(1), row.opt_int(8)? == Some(1));
    let role = row.opt_text(6)?.and_then(|role| role.parse::<Role>().ok());
    let mac = row.parse(2)?;
    Ok(PortRow {
        id: row.parse(0)?,
        network_id: row.parse(1)?,
        mac,
        admin_state_up: row.bool(3)?,
        host: row.text(4)?,
        moves: Moves::of(ha, distributed, row.opt_parse(5)?.zip(role)),
        allowed_addresses: allowed_addresses(&row.text(9)?, mac),
    })
}

/// Reads a port's `allowed_address_pairs`; pairs without an Ethernet address mean the port's own.
fn allowed_addresses(pairs: &str, own: Mac) -> Vec<AllowedAddress> {
    #[derive(Deserialize)]
    struct Pair {
        ip_address: String,
        mac_address: Option<Mac>,
    }
    // Nearly all ports have none, and many ports are read at once.
    if pairs == "[]" {
        return Vec::new();
    }
    let pairs: Vec<Pair> = serde_json::from_str(pairs).unwrap_or_default();
    let address = |pair: Pair| {
        let ip = pair.ip_address.parse().ok().or_else(|| pair.ip_address.parse::<IpAddr>().ok().map(IpNet::from))?;
        Some(AllowedAddress { ip, mac: pair.mac_address.unwrap_or(own) })
    };
    pairs.into_iter().filter_map(address).collect()
}

/// Addresses of the ports that the ids in a column name.
fn addresses(tx: &Tx<'_>, column: &'static str, ids: &[String]) -> Result<BTreeMap<PortId, Vec<IpAddr>>, StoreError> {
    let sql = format!("SELECT port_id, ip_address FROM fixed_ips WHERE {column} IN ({{}}) ORDER BY port_id, position");
    let mut addresses: BTreeMap<PortId, Vec<IpAddr>> = BTreeMap::new();
    for (port, ip) in query_in(tx, &sql, ids, |row| Ok((row.parse(0)?, row.parse(1)?)))? {
        addresses.entry(port).or_default().push(ip);
    }
    Ok(addresses)
}

/// Which hosts have which of the networks: by a port of their own, by a router's copy, or by routing there.
fn network_hosts(tx: &Tx<'_>, networks: &[String]) -> Result<Vec<(NetworkId, String)>, StoreError> {
    let by_port = "SELECT DISTINCT p.network_id, p.host_id FROM ports p WHERE p.network_id IN ({}) \
                   AND p.host_id <> '' AND NOT EXISTS (SELECT 1 FROM router_ports rp WHERE rp.port_id = p.id)";
    let by_copy = "SELECT DISTINCT rp.network_id, a.host FROM router_ports rp \
                   JOIN router_bindings b ON b.router_id = rp.router_id \
                   JOIN agents a ON a.id = b.agent_id WHERE rp.network_id IN ({}) AND a.admin_state_up = 1";
    let by_routing = "SELECT DISTINCT rp.network_id, h.host FROM router_ports rp \
                      JOIN router_hosts h ON h.router_id = rp.router_id \
                      WHERE rp.role = 'interface' AND rp.network_id IN ({})";
    let mut hosts = query_in(tx, by_port, networks, |row| Ok((row.parse(0)?, row.text(1)?)))?;
    hosts.extend(query_in(tx, by_copy, networks, |row| Ok((row.parse(0)?, row.text(1)?)))?);
    hosts.extend(query_in(tx, by_routing, networks, |row| Ok((row.parse(0)?, row.text(1)?)))?);
    Ok(hosts)
}
