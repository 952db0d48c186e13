//! Networks and their ports as the store has them, of many networks at once in a fixed number of queries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use evergate_model::host::{AllowedAddress, Segment as HostSegment};
use evergate_model::{Mac, NetworkId, PortId, RouterId};
use ipnet::IpNet;
use serde::Deserialize;

use super::network::{Base, Port};
use super::presence::Presence;
use crate::objects::fleet::Fleet;
use crate::objects::network::{Network, Segment};
use crate::objects::port::owner;
use crate::objects::query_in;
use crate::objects::router::Role;
use crate::store::{Row, StoreError, Tx};

/// A port, with the router that it belongs to by its id.
pub(super) struct PortRow {
    pub(super) id: PortId,
    pub(super) network_id: NetworkId,
    mac: Mac,
    admin_state_up: bool,
    host: String,
    pub(super) router: Option<(RouterId, Role)>,
    allowed_addresses: Vec<AllowedAddress>,
    silent: bool,
    ips: Vec<IpAddr>,
}

impl PortRow {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let role = row.opt_text(6)?.and_then(|role| role.parse::<Role>().ok());
        let mac = row.parse(2)?;
        Ok(Self {
            id: row.parse(0)?,
            network_id: row.parse(1)?,
            mac,
            admin_state_up: row.bool(3)?,
            host: row.text(4)?,
            router: row.opt_parse(5)?.zip(role),
            allowed_addresses: allowed_addresses(&row.text(7)?, mac),
            silent: row.text(8)? == owner::FLOATING_IP,
            ips: Vec::new(),
        })
    }

    /// The port, with what is known of its router.
    pub(super) fn port(self, fleet: &Fleet, presence: impl Fn(RouterId) -> Option<Arc<Presence>>) -> Arc<Port> {
        Arc::new(Port {
            mac: self.mac,
            ips: self.ips,
            admin_state_up: self.admin_state_up,
            allowed_addresses: self.allowed_addresses,
            vtep: fleet.host(&self.host).and_then(|host| host.tunnel_ip),
            host: self.host.into(),
            silent: self.silent,
            router: self.router.and_then(|(id, role)| Some((role, presence(id)?))),
        })
    }
}

const PORTS: &str = "SELECT p.id, p.network_id, p.mac_address, p.admin_state_up, p.host_id, rp.router_id, rp.role, \
                     p.allowed_address_pairs, p.device_owner \
                     FROM ports p LEFT JOIN router_ports rp ON rp.port_id = p.id";

/// Reads all ports of these networks.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn ports_of(tx: &Tx<'_>, networks: &[String]) -> Result<Vec<PortRow>, StoreError> {
    let mut ports = query_in(tx, &format!("{PORTS} WHERE p.network_id IN ({{}})"), networks, PortRow::read)?;
    give_addresses(&mut ports, addresses(tx, "network_id", networks)?);
    Ok(ports)
}

/// Reads these ports, as far as they are there.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn ports(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<PortRow>, StoreError> {
    let mut ports = query_in(tx, &format!("{PORTS} WHERE p.id IN ({{}})"), ids, PortRow::read)?;
    give_addresses(&mut ports, addresses(tx, "port_id", ids)?);
    Ok(ports)
}

fn give_addresses(ports: &mut [PortRow], mut addresses: BTreeMap<PortId, Vec<IpAddr>>) {
    for port in ports {
        port.ips = addresses.remove(&port.id).unwrap_or_default();
    }
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

/// Reads what these networks are, as far as they are there.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn bases(tx: &Tx<'_>, networks: &[String]) -> Result<BTreeMap<NetworkId, Base>, StoreError> {
    let sql = "SELECT network_id, vrid FROM ha_routers WHERE network_id IN ({})";
    let mut vrids: BTreeMap<NetworkId, BTreeSet<u8>> = BTreeMap::new();
    for (network, vrid) in query_in(tx, sql, networks, |row| Ok((row.parse(0)?, row.num(1)?)))? {
        vrids.entry(network).or_default().insert(vrid);
    }
    let base = |network: Network| {
        let segment = match network.segment {
            Segment::Vxlan(vni) => HostSegment::Vxlan { vni },
            Segment::Flat(physical_network) => HostSegment::Flat { physical_network },
            Segment::Local => HostSegment::Local,
        };
        let vrids = vrids.remove(&network.id).unwrap_or_default();
        // No device has less; a network without subnets may say so all the same.
        let mtu = network.mtu.max(68);
        (network.id, Base { id: network.id, segment, mtu, vrids })
    };
    Ok(Network::many(tx, networks)?.into_iter().map(base).collect())
}

/// Which of these hosts need which networks: those of their own ports, of the routers that they have copies of,
/// and of the distributed routers that they route for.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn networks_of_hosts(tx: &Tx<'_>, hosts: &[&str]) -> Result<Vec<(String, NetworkId)>, StoreError> {
    // Neutron empties an agent that an admin disables, and so do we.
    let sql = "SELECT p.host_id, p.network_id FROM ports p WHERE p.host_id IN ({}) \
               AND NOT EXISTS (SELECT 1 FROM router_ports rp WHERE rp.port_id = p.id) \
               UNION \
               SELECT a.host, rp.network_id FROM agents a JOIN router_bindings b ON b.agent_id = a.id \
               JOIN router_ports rp ON rp.router_id = b.router_id WHERE a.host IN ({}) AND a.admin_state_up = 1 \
               UNION \
               SELECT h.host, rp.network_id FROM router_hosts h JOIN router_ports rp ON rp.router_id = h.router_id \
               WHERE h.host IN ({}) AND rp.role = 'interface'";
    query_in(tx, sql, hosts, |row| Ok((row.text(0)?, row.parse(1)?)))
}

/// Which routers these hosts have copies of or route for.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn routers_of_hosts(tx: &Tx<'_>, hosts: &[&str]) -> Result<Vec<(String, RouterId)>, StoreError> {
    let sql = "SELECT a.host, b.router_id FROM agents a JOIN router_bindings b ON b.agent_id = a.id \
               WHERE a.host IN ({}) AND a.admin_state_up = 1 \
               UNION SELECT host, router_id FROM router_hosts WHERE host IN ({})";
    query_in(tx, sql, hosts, |row| Ok((row.text(0)?, row.parse(1)?)))
}
