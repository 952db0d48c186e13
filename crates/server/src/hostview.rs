//! What one host is told: its [`HostConfig`], read from the store in a fixed number of queries.
//!
//! A host needs the networks of the ports bound to it, of the routers it has copies of and of the distributed
//! routers it routes for, with every port on them and the hosts that share them. Whatever else there is, it is
//! not told.

mod distributed;
mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evergate_model::host::{
    ActiveCopy, AddressMode, AddressScopes, ClusterConfig, ExtraRoute, Gateway, HaCopy, HaPeer, Interface,
    PortForwarding as HostPortForwarding, Router as HostRouter, RouterAdvertisement, Wish,
};
use evergate_model::{AddressScopeId, HostConfig, Mac, NetworkId, PortForwardingId, PortId, RouterId, SubnetId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use distributed::Parts;
pub(crate) use networks::read as read_networks;

use crate::error::ApiError;
use crate::ha;
use crate::objects::fleet::Fleet;
use crate::objects::floating_ip::FloatingIp;
use crate::objects::port_forwarding::PortForwarding;
use crate::objects::query_in;
use crate::objects::router::{self, Binding, Role, Router, RouterPort};
use crate::objects::subnet::Route;
use crate::objects::subnet_pool;
use crate::options::Options;
use crate::store::{CLAIM_KEY, StoreError, Tx};
use crate::values;

/// Builds what a host is told at the transaction's revision.
///
/// # Errors
///
/// When the store cannot be read.
pub fn host_config(tx: &Tx<'_>, options: &Options, host: &str) -> Result<HostConfig, ApiError> {
    let fleet = Fleet::read(tx)?;
    let routers = Routers::on(tx, &fleet, host)?;
    let needed = needed_networks(tx, host)?;
    let vteps = fleet.tunnel_ips();
    let (networks, ha_routers) = networks::read(tx, host, &needed, &vteps)?;
    Ok(HostConfig {
        revision: tx.revision()?,
        cluster: ClusterConfig { claim_key: tx.setting(CLAIM_KEY)?.unwrap_or_default() },
        networks,
        routers: routers.build(options, host, &vteps)?,
        active_copies: active_copies(tx, &ha_routers, &vteps)?,
    })
}

/// Networks of the host's own ports, and of the routers that it has copies of or routes for.
pub(crate) fn needed_networks(tx: &Tx<'_>, host: &str) -> Result<Vec<String>, StoreError> {
    // Neutron empties an agent that an admin disables, and so do we.
    let sql = "SELECT p.network_id FROM ports p WHERE p.host_id = ?1 \
               AND NOT EXISTS (SELECT 1 FROM router_ports rp WHERE rp.port_id = p.id) \
               UNION \
               SELECT rp.network_id FROM router_ports rp \
               JOIN router_bindings b ON b.router_id = rp.router_id \
               JOIN agents a ON a.id = b.agent_id WHERE a.host = ?1 AND a.admin_state_up = 1 \
               UNION \
               SELECT rp.network_id FROM router_ports rp JOIN router_hosts h ON h.router_id = rp.router_id \
               WHERE h.host = ?1 AND rp.role = 'interface'";
    tx.query(sql, &values![host], |row| row.text(0))
}

fn active_copies(
    tx: &Tx<'_>,
    routers: &BTreeSet<RouterId>,
    vteps: &BTreeMap<String, IpAddr>,
) -> Result<BTreeMap<RouterId, ActiveCopy>, StoreError> {
    let ids: Vec<String> = routers.iter().map(RouterId::to_string).collect();
    let copies = group(router::bindings_of(tx, &ids)?, |binding| binding.router_id);
    let active = |(router, copies): (RouterId, Vec<Binding>)| {
        let active = ha::active_copy(&copies)?;
        Some((router, ActiveCopy { epoch: active.epoch, vtep: *vteps.get(&active.host)? }))
    };
    Ok(copies.into_iter().filter_map(active).collect())
}

fn group<K: Ord, T>(items: Vec<T>, key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<T>> {
    let mut groups: BTreeMap<K, Vec<T>> = BTreeMap::new();
    for item in items {
        groups.entry(key(&item)).or_default().push(item);
    }
    groups
}

/// Everything about the routers that a host has copies of or routes for, read at once.
struct Routers {
    parts: Parts,
    routers: Vec<Router>,
    ports: BTreeMap<RouterId, Vec<RouterPort>>,
    routes: BTreeMap<RouterId, Vec<Route>>,
    floating_ips: BTreeMap<RouterId, Vec<FloatingIp>>,
    /// With the floating IP's address.
    port_forwardings: BTreeMap<RouterId, Vec<(Ipv4Addr, PortForwarding)>>,
    bindings: BTreeMap<RouterId, Vec<Binding>>,
    addresses: BTreeMap<PortId, Vec<Address>>,
    macs: BTreeMap<PortId, Mac>,
    /// HA network and VRID.
    ha: BTreeMap<RouterId, HaRow>,
    /// Subnets that routers advertise.
    advertised: BTreeMap<SubnetId, Advertised>,
    /// By network and IP version.
    scopes: BTreeMap<(NetworkId, u8), AddressScopeId>,
    /// Subnets of the external networks.
    external: BTreeMap<NetworkId, Vec<(SubnetId, IpNet)>>,
}

#[derive(Clone, Copy)]
struct Address {
    subnet_id: SubnetId,
    net: IpNet,
    gateway: Option<IpAddr>,
}

/// An IPv6 subnet with an `ipv6_ra_mode`.
struct Advertised {
    cidr: Ipv6Net,
    mode: AddressMode,
    dns_servers: Vec<Ipv6Addr>,
}

impl Routers {
    fn on(tx: &Tx<'_>, fleet: &Fleet, host: &str) -> Result<Self, StoreError> {
        let mut parts = Parts::of(tx, host)?;
        let ids = parts.routers();
        let ports = router::ports_of(tx, &ids)?;
        let floating_ips = floating_ips(tx, &ids)?;
        parts.read_floating_ips(tx, fleet, floating_ips.values().flatten())?;
        let of_host = parts.agent_gateways.values();
        let port_ids: Vec<String> =
            ports.iter().map(|port| &port.port_id).chain(of_host).map(PortId::to_string).collect();
        let external: BTreeSet<String> =
            ports.iter().filter(|p| p.role == Role::Gateway).map(|p| p.network_id.to_string()).collect();
        let ha = ha_rows(tx, &ids)?;
        Ok(Self {
            parts,
            routers: Router::many(tx, &ids)?,
            routes: router::routes_of(tx, &ids)?,
            port_forwardings: port_forwardings(tx, &floating_ips)?,
            floating_ips,
            bindings: group(router::bindings_of(tx, &ids)?, |binding| binding.router_id),
            addresses: port_addresses(tx, &port_ids)?,
            macs: port_macs(tx, &port_ids)?,
            advertised: advertised(tx, &ports.iter().map(|p| p.network_id.to_string()).collect::<Vec<_>>())?,
            scopes: subnet_pool::scopes_of(tx, &ports.iter().map(|p| p.network_id.to_string()).collect::<Vec<_>>())?,
            ports: group(ports, |port| port.router_id),
            ha,
            external: subnets(tx, &Vec::from_iter(external))?,
        })
    }

    fn build(
        &self,
        options: &Options,
        host: &str,
        vteps: &BTreeMap<String, IpAddr>,
    ) -> Result<BTreeMap<RouterId, HostRouter>, ApiError> {
        let mut built = BTreeMap::new();
        for router in &self.routers {
            let has_copy = router.ha && self.parts.translates(router.id);
            let ha = if has_copy { self.ha_copy(options, router, host, vteps) } else { None };
            if has_copy && ha.is_none() {
                return Err(ApiError::internal(format!("HA router {} has no copy to tell {host} of", router.id)));
            }
            let routes = self.routes.get(&router.id).into_iter().flatten();
            let floating_ips = self.floating_ips.get(&router.id).into_iter().flatten();
            let shown = HostRouter {
                id: router.id,
                project_id: router.project_id.clone(),
                admin_state_up: router.admin_state_up,
                ha,
                gateway: self.gateway(router),
                interfaces: self.interfaces(router, Role::Interface),
                routes: routes.map(|r| ExtraRoute { destination: r.destination, nexthop: r.nexthop }).collect(),
                floating_ips: floating_ips.filter_map(|f| self.floating_ip(router, f)).collect(),
                port_forwardings: self.port_forwardings(router),
                distributed: router.distributed.then(|| self.distributed(router)),
            };
            built.insert(router.id, shown);
        }
        Ok(built)
    }

    fn port_forwardings(&self, router: &Router) -> BTreeMap<PortForwardingId, HostPortForwarding> {
        let forwarding = |(floating, forwarding): &(Ipv4Addr, PortForwarding)| {
            let told = HostPortForwarding {
                floating_ip_id: Some(forwarding.floating_ip_id),
                floating: *floating,
                // RFC 9293, 768, 9260 and 4340 in IANA's protocol numbers.
                protocol: match forwarding.protocol.as_str() {
                    "tcp" => 6,
                    "udp" => 17,
                    "sctp" => 132,
                    _ => 33,
                },
                external_ports: forwarding.external_ports,
                fixed: forwarding.internal_ip_address,
                internal_ports: forwarding.internal_ports,
            };
            (forwarding.id, told)
        };
        let translated_here = !router.distributed || self.parts.translates(router.id);
        let all = self.port_forwardings.get(&router.id).filter(|_| translated_here);
        all.into_iter().flatten().map(forwarding).collect()
    }

    fn ports(&self, router: RouterId, role: Role) -> impl Iterator<Item = &RouterPort> {
        self.ports.get(&router).into_iter().flatten().filter(move |port| port.role == role)
    }

    fn nets(&self, port: PortId) -> Vec<IpNet> {
        self.addresses.get(&port).into_iter().flatten().map(|address| address.net).collect()
    }

    fn mac(&self, port: PortId) -> Mac {
        self.macs.get(&port).copied().unwrap_or_default()
    }

    fn address_scopes(&self, network: NetworkId) -> AddressScopes {
        let scope = |version| self.scopes.get(&(network, version)).copied();
        AddressScopes { v4: scope(4), v6: scope(6) }
    }

    fn interfaces(&self, router: &Router, role: Role) -> BTreeMap<PortId, Interface> {
        let interface = |port: &RouterPort| {
            let addresses = self.nets(port.port_id);
            (
                port.port_id,
                Interface {
                    network_id: port.network_id,
                    mac: self.mac(port.port_id),
                    addresses,
                    address_scopes: self.address_scopes(port.network_id),
                    advertisement: self.advertisement(port),
                },
            )
        };
        self.ports(router.id, role).map(interface).collect()
    }

    /// What the router advertises by one of its interfaces: of the port's own subnets, as Neutron's radvd.
    fn advertisement(&self, port: &RouterPort) -> Option<RouterAdvertisement> {
        let subnets = self.addresses.get(&port.port_id).into_iter().flatten().map(|address| address.subnet_id);
        let mut shown = RouterAdvertisement::default();
        for subnet in subnets.filter_map(|id| self.advertised.get(&id)).filter(|_| port.role == Role::Interface) {
            shown.prefixes.insert(subnet.cidr, subnet.mode);
            // Where there is DHCPv6, it is what tells of name servers.
            if subnet.mode == AddressMode::Slaac {
                shown.dns_servers.extend(&subnet.dns_servers);
            }
        }
        (!shown.prefixes.is_empty()).then_some(shown)
    }

    fn gateway(&self, router: &Router) -> Option<Gateway> {
        let port = self.ports(router.id, Role::Gateway).next()?;
        let addresses = self.addresses.get(&port.port_id).cloned().unwrap_or_default();
        let own: BTreeSet<SubnetId> = addresses.iter().map(|address| address.subnet_id).collect();
        let subnets = self.external.get(&port.network_id).into_iter().flatten();
        Some(Gateway {
            port_id: port.port_id,
            network_id: port.network_id,
            mac: self.mac(port.port_id),
            addresses: addresses.iter().map(|address| address.net).collect(),
            next_hops: addresses.iter().filter_map(|address| address.gateway).collect(),
            onlink_subnets: subnets.filter(|(id, _)| !own.contains(id)).map(|(_, cidr)| *cidr).collect(),
            enable_snat: router.enable_snat,
            address_scopes: self.address_scopes(port.network_id),
        })
    }

    fn ha_copy(
        &self,
        options: &Options,
        router: &Router,
        host: &str,
        vteps: &BTreeMap<String, IpAddr>,
    ) -> Option<HaCopy> {
        let row = self.ha.get(&router.id)?;
        let (network_id, vrid) = (row.network_id, row.vrid);
        let copies = self.bindings.get(&router.id)?;
        let port_id = copies.iter().find(|copy| copy.host == host)?.ha_port_id?;
        let peer = |copy: &Binding| {
            let address = self.ha_address(copy.ha_port_id?)?.addr();
            Some((copy.host.clone(), HaPeer { address, vtep: vteps.get(&copy.host).copied() }))
        };
        Some(HaCopy {
            port_id,
            network_id,
            mac: self.mac(port_id),
            address: self.ha_address(port_id)?,
            vrid,
            virtual_address: ha::virtual_address(options, vrid),
            priority: options.ha_vrrp_priority,
            wish: router
                .wishes
                .target()
                .map(|host| Wish { host: host.to_owned(), at_once: router.wishes.move_to.is_some() }),
            peers: copies.iter().filter(|copy| copy.host != host).filter_map(peer).collect(),
            epoch: copies.iter().map(|copy| copy.epoch).max().unwrap_or(0),
            inherits: (row.heir.as_deref() == Some(host)).then_some(row.heir_epoch),
        })
    }

    fn ha_address(&self, port: PortId) -> Option<Ipv4Net> {
        self.nets(port).into_iter().find_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None })
    }
}

fn floating_ips(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<RouterId, Vec<FloatingIp>>, StoreError> {
    let mut found: BTreeMap<RouterId, Vec<FloatingIp>> = BTreeMap::new();
    for floating_ip in FloatingIp::of_routers(tx, routers)? {
        if let Some(router) = floating_ip.router_id {
            found.entry(router).or_default().push(floating_ip);
        }
    }
    Ok(found)
}

fn port_forwardings(
    tx: &Tx<'_>,
    floating_ips: &BTreeMap<RouterId, Vec<FloatingIp>>,
) -> Result<BTreeMap<RouterId, Vec<(Ipv4Addr, PortForwarding)>>, StoreError> {
    let of_id: BTreeMap<String, (RouterId, Ipv4Addr)> = floating_ips
        .iter()
        .flat_map(|(router, all)| all.iter().map(|f| (f.id.to_string(), (*router, f.floating_ip_address))))
        .collect();
    let mut found: BTreeMap<RouterId, Vec<(Ipv4Addr, PortForwarding)>> = BTreeMap::new();
    for forwarding in PortForwarding::of_floating_ips(tx, &of_id.keys().collect::<Vec<_>>())? {
        if let Some((router, floating)) = of_id.get(&forwarding.floating_ip_id.to_string()) {
            found.entry(*router).or_default().push((*floating, forwarding));
        }
    }
    Ok(found)
}

fn port_addresses(tx: &Tx<'_>, ports: &[String]) -> Result<BTreeMap<PortId, Vec<Address>>, StoreError> {
    let sql = "SELECT f.port_id, f.ip_address, s.cidr, s.gateway_ip, s.id FROM fixed_ips f \
               JOIN subnets s ON s.id = f.subnet_id WHERE f.port_id IN ({}) ORDER BY f.port_id, f.position";
    let rows = query_in(tx, sql, ports, |row| {
        let (ip, cidr): (IpAddr, IpNet) = (row.parse(1)?, row.parse(2)?);
        let net = IpNet::new(ip, cidr.prefix_len()).unwrap_or_else(|_| ip.into());
        Ok((row.parse(0)?, Address { subnet_id: row.parse(4)?, net, gateway: row.opt_parse(3)? }))
    })?;
    let mut addresses: BTreeMap<PortId, Vec<Address>> = BTreeMap::new();
    for (port, address) in rows {
        addresses.entry(port).or_default().push(address);
    }
    Ok(addresses)
}

fn advertised(tx: &Tx<'_>, networks: &[String]) -> Result<BTreeMap<SubnetId, Advertised>, StoreError> {
    let sql = "SELECT id, cidr, ipv6_ra_mode, dns_nameservers FROM subnets \
               WHERE ipv6_ra_mode IS NOT NULL AND network_id IN ({})";
    let rows = query_in(tx, sql, networks, |row| {
        let mode = match row.text(2)?.as_str() {
            "slaac" => AddressMode::Slaac,
            "dhcpv6-stateless" => AddressMode::Dhcpv6Stateless,
            _ => AddressMode::Dhcpv6Stateful,
        };
        let servers: Vec<IpAddr> = row.json(3)?;
        let v6 = |ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None };
        let dns_servers = servers.into_iter().filter_map(v6).collect();
        Ok((row.parse(0)?, Advertised { cidr: row.parse(1)?, mode, dns_servers }))
    })?;
    Ok(rows.into_iter().collect())
}

fn port_macs(tx: &Tx<'_>, ports: &[String]) -> Result<BTreeMap<PortId, Mac>, StoreError> {
    let sql = "SELECT id, mac_address FROM ports WHERE id IN ({})";
    Ok(query_in(tx, sql, ports, |row| Ok((row.parse(0)?, row.parse(1)?)))?.into_iter().collect())
}

/// What all copies of an HA router have in common.
struct HaRow {
    network_id: NetworkId,
    vrid: u8,
    /// The host that served the router until it was converted, and the epoch up to then.
    heir: Option<String>,
    heir_epoch: u64,
}

fn ha_rows(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<RouterId, HaRow>, StoreError> {
    let sql = "SELECT router_id, network_id, vrid, heir, heir_epoch FROM ha_routers WHERE router_id IN ({})";
    let rows = query_in(tx, sql, routers, |row| {
        let (network_id, vrid) = (row.parse(1)?, row.num(2)?);
        Ok((row.parse(0)?, HaRow { network_id, vrid, heir: row.opt_text(3)?, heir_epoch: row.num(4)? }))
    })?;
    Ok(rows.into_iter().collect())
}

fn vrids(tx: &Tx<'_>, networks: &[String]) -> Result<BTreeMap<NetworkId, BTreeSet<u8>>, StoreError> {
    let sql = "SELECT network_id, vrid FROM ha_routers WHERE network_id IN ({})";
    let mut vrids: BTreeMap<NetworkId, BTreeSet<u8>> = BTreeMap::new();
    for (network, vrid) in query_in(tx, sql, networks, |row| Ok((row.parse(0)?, row.num(1)?)))? {
        vrids.entry(network).or_default().insert(vrid);
    }
    Ok(vrids)
}

fn subnets(tx: &Tx<'_>, networks: &[String]) -> Result<BTreeMap<NetworkId, Vec<(SubnetId, IpNet)>>, StoreError> {
    let sql = "SELECT network_id, id, cidr FROM subnets WHERE network_id IN ({}) ORDER BY created_at, id";
    let mut subnets: BTreeMap<NetworkId, Vec<(SubnetId, IpNet)>> = BTreeMap::new();
    for (network, id, cidr) in query_in(tx, sql, networks, |row| Ok((row.parse(0)?, row.parse(1)?, row.parse(2)?)))? {
        subnets.entry(network).or_default().push((id, cidr));
    }
    Ok(subnets)
}
