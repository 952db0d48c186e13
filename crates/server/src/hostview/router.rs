//! One router as all hosts are told of it, and what of that depends on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use evergate_model::host::{
    AddressMode, AddressScopes, AgentGateway, Distributed, ExtraRoute, FloatingIp as HostFloatingIp, Gateway, HaCopy,
    HaPeer, Interface, PortForwarding as HostPortForwarding, Router as HostRouter, RouterAdvertisement, Wish,
};
use evergate_model::{AddressScopeId, FloatingIpId, Mac, NetworkId, PortForwardingId, PortId, RouterId, SubnetId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Name;
use super::presence::Presence;
use crate::dvr::floating::{Place, Places, hosts_of_ports};
use crate::ha;
use crate::objects::fleet::Fleet;
use crate::objects::floating_ip::FloatingIp;
use crate::objects::port_forwarding::PortForwarding;
use crate::objects::query_in;
use crate::objects::router::{self, Binding, Role, Router, RouterPort};
use crate::objects::subnet::Route;
use crate::objects::subnet_pool;
use crate::options::Options;
use crate::store::{StoreError, Tx};

/// A router at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RouterView {
    pub(super) presence: Arc<Presence>,
    /// What all hosts are told alike.
    common: HostRouter,
    ha: Option<Copies>,
    /// Floating IPs, and the host that translates each unless it is translated where the gateway is.
    floating_ips: BTreeMap<FloatingIpId, (HostFloatingIp, Option<Name>)>,
    port_forwardings: BTreeMap<PortForwardingId, HostPortForwarding>,
    /// Hosts' ports on the router's external network.
    agent_gateways: BTreeMap<Name, AgentGateway>,
    /// Hosts that ports with floating IPs are bound to.
    bound_to: BTreeSet<Name>,
}

/// The copies of an HA router.
#[derive(Debug, PartialEq, Eq)]
struct Copies {
    network_id: NetworkId,
    vrid: u8,
    virtual_address: Ipv4Net,
    priority: u8,
    wish: Option<Wish>,
    epoch: u64,
    /// The host that served the router until it was converted, and the epoch up to then.
    heir: Option<(String, u64)>,
    copies: Vec<Copy>,
}

#[derive(Debug, PartialEq, Eq)]
struct Copy {
    host: String,
    port_id: PortId,
    mac: Mac,
    address: Ipv4Net,
    vtep: Option<IpAddr>,
}

impl Copies {
    fn told_to(&self, host: &str) -> Option<HaCopy> {
        let own = self.copies.iter().find(|copy| copy.host == host)?;
        let peers = self.copies.iter().filter(|copy| copy.host != host);
        let peer = |copy: &Copy| (copy.host.clone(), HaPeer { address: copy.address.addr(), vtep: copy.vtep });
        Some(HaCopy {
            port_id: own.port_id,
            network_id: self.network_id,
            mac: own.mac,
            address: own.address,
            vrid: self.vrid,
            virtual_address: self.virtual_address,
            priority: self.priority,
            wish: self.wish.clone(),
            peers: peers.map(peer).collect(),
            epoch: self.epoch,
            inherits: self.heir.as_ref().filter(|(heir, _)| heir == host).map(|(_, epoch)| *epoch),
        })
    }
}

impl RouterView {
    /// The router as a host is told of it, if it has a part of it.
    pub(super) fn told_to(&self, host: &str) -> Option<HostRouter> {
        let (translates, routes) = (self.presence.translates(host), self.presence.routes(host));
        if !translates && !routes {
            return None;
        }
        let mut told = self.common.clone();
        if translates && self.presence.ha {
            // Without its copy it would be active at once.
            told.ha = Some(self.ha.as_ref()?.told_to(host)?);
        }
        let is_distributed = told.distributed.is_some();
        let here = |(id, (told, on)): (&FloatingIpId, &(HostFloatingIp, Option<Name>))| match on {
            Some(on) if is_distributed => {
                (**on == *host).then_some((*id, HostFloatingIp { distributed: true, ..*told }))
            }
            Some(_) | None => (translates || !is_distributed).then_some((*id, *told)),
        };
        told.floating_ips = self.floating_ips.iter().filter_map(here).collect();
        if translates || !is_distributed {
            told.port_forwardings = self.port_forwardings.clone();
        }
        if let Some(distributed) = &mut told.distributed {
            distributed.routes_here = routes;
            distributed.translates_here = translates;
            distributed.agent_gateway = self.agent_gateways.get(host).filter(|_| routes).cloned();
        }
        Some(told)
    }

    /// Tells whether anything of it depends on one of these hosts.
    pub(super) fn mentions(&self, hosts: &BTreeSet<&str>) -> bool {
        let copies = self.ha.iter().flat_map(|ha| &ha.copies).map(|copy| copy.host.as_str());
        let bound = self.bound_to.iter().chain(self.presence.hosts()).map(|name| &**name);
        copies.chain(bound).any(|host| hosts.contains(host))
    }

    /// Tells whether one of these is a host's port on the external network.
    pub(super) fn has_agent_gateway(&self, ports: &BTreeSet<PortId>) -> bool {
        self.agent_gateways.values().any(|gateway| ports.contains(&gateway.port_id))
    }
}

/// Reads routers, in a fixed number of queries.
///
/// # Errors
///
/// As [`Tx::query`].
pub(super) fn read(
    tx: &Tx<'_>,
    options: &Options,
    fleet: &Fleet,
    presences: &BTreeMap<RouterId, Arc<Presence>>,
) -> Result<BTreeMap<RouterId, Arc<RouterView>>, StoreError> {
    let rows = Rows::read(tx, fleet, &presences.keys().map(RouterId::to_string).collect::<Vec<_>>())?;
    let view = |router: &Router| {
        let presence = Arc::clone(presences.get(&router.id)?);
        Some((router.id, Arc::new(rows.view(options, fleet, router, presence))))
    };
    Ok(rows.routers.iter().filter_map(view).collect())
}

/// Everything about some routers, read at once.
struct Rows {
    routers: Vec<Router>,
    ports: BTreeMap<RouterId, Vec<RouterPort>>,
    routes: BTreeMap<RouterId, Vec<Route>>,
    floating_ips: BTreeMap<RouterId, Vec<FloatingIp>>,
    /// Hosts that floating IPs' ports are bound to.
    bound_to: BTreeMap<PortId, String>,
    /// Of distributed routers' floating IPs: the host that translates it by itself.
    elsewhere: BTreeMap<FloatingIpId, String>,
    /// With the floating IP's address.
    port_forwardings: BTreeMap<RouterId, Vec<(Ipv4Addr, PortForwarding)>>,
    bindings: BTreeMap<RouterId, Vec<Binding>>,
    agent_gateways: BTreeMap<RouterId, Vec<(String, PortId)>>,
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

impl Rows {
    fn read(tx: &Tx<'_>, fleet: &Fleet, ids: &[String]) -> Result<Self, StoreError> {
        let routers = Router::many(tx, ids)?;
        let distributed: Vec<String> = routers.iter().filter(|r| r.distributed).map(|r| r.id.to_string()).collect();
        let ports = router::ports_of(tx, ids)?;
        let agent_gateways = agent_gateways(tx, &distributed)?;
        let floating_ips = floating_ips(tx, ids)?;
        let of_distributed = || {
            let distributed = routers.iter().filter(|router| router.distributed);
            distributed.filter_map(|router| floating_ips.get(&router.id)).flatten()
        };
        let bound: Vec<String> = of_distributed().filter_map(|f| f.port_id).map(|id| id.to_string()).collect();
        let bound_to = hosts_of_ports(tx, &bound)?;
        let places = Places::read(tx, fleet, of_distributed().map(|f| &f.floating_network_id))?;
        let place = |floating_ip: &FloatingIp| {
            let host = floating_ip.port_id.and_then(|port| bound_to.get(&port)).map(String::as_str);
            match places.of(floating_ip.floating_network_id, host) {
                Place::Host(host) => Some((floating_ip.id, host.to_owned())),
                Place::Gateway => None,
            }
        };
        let elsewhere = of_distributed().filter_map(place).collect();
        let of_hosts = agent_gateways.values().flatten().map(|(_, port)| port);
        let port_ids: Vec<String> =
            ports.iter().map(|port| &port.port_id).chain(of_hosts).map(PortId::to_string).collect();
        let networks: BTreeSet<String> = ports.iter().map(|port| port.network_id.to_string()).collect();
        let networks = Vec::from_iter(networks);
        let external: BTreeSet<String> =
            ports.iter().filter(|p| p.role == Role::Gateway).map(|p| p.network_id.to_string()).collect();
        Ok(Self {
            routes: router::routes_of(tx, ids)?,
            port_forwardings: port_forwardings(tx, &floating_ips)?,
            floating_ips,
            bound_to,
            elsewhere,
            bindings: group(router::bindings_of(tx, ids)?, |binding| binding.router_id),
            agent_gateways,
            addresses: port_addresses(tx, &port_ids)?,
            macs: port_macs(tx, &port_ids)?,
            advertised: advertised(tx, &networks)?,
            scopes: subnet_pool::scopes_of(tx, &networks)?.read()?,
            ports: group(ports, |port| port.router_id),
            ha: ha_rows(tx, ids)?,
            external: subnets(tx, &Vec::from_iter(external))?,
            routers,
        })
    }

    fn view(&self, options: &Options, fleet: &Fleet, router: &Router, presence: Arc<Presence>) -> RouterView {
        let routes = self.routes.get(&router.id).into_iter().flatten();
        let common = HostRouter {
            id: router.id,
            project_id: router.project_id.clone(),
            admin_state_up: router.admin_state_up,
            ha: None,
            gateway: self.gateway(router),
            interfaces: self.interfaces(router, Role::Interface),
            routes: routes.map(|r| ExtraRoute { destination: r.destination, nexthop: r.nexthop }).collect(),
            floating_ips: BTreeMap::new(),
            port_forwardings: BTreeMap::new(),
            distributed: router
                .distributed
                .then(|| Distributed { snat_ports: self.interfaces(router, Role::Snat), ..Distributed::default() }),
        };
        let floating_ips = self.floating_ips.get(&router.id).map_or(&[][..], Vec::as_slice);
        let bound_to = floating_ips.iter().filter_map(|f| self.bound_to.get(&f.port_id?));
        RouterView {
            presence,
            common,
            ha: self.copies(options, fleet, router),
            floating_ips: floating_ips.iter().filter_map(|f| self.floating_ip(f)).collect(),
            port_forwardings: self.port_forwardings(router),
            agent_gateways: self.gateways_of_hosts(router),
            bound_to: bound_to.map(|host| host.as_str().into()).collect(),
        }
    }

    fn floating_ip(&self, found: &FloatingIp) -> Option<(FloatingIpId, (HostFloatingIp, Option<Name>))> {
        let (floating, fixed) = (found.floating_ip_address, found.fixed_ip_address?);
        let on = self.elsewhere.get(&found.id).map(|host| host.as_str().into());
        Some((found.id, (HostFloatingIp { floating, fixed, distributed: false }, on)))
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
        self.port_forwardings.get(&router.id).into_iter().flatten().map(forwarding).collect()
    }

    fn gateways_of_hosts(&self, router: &Router) -> BTreeMap<Name, AgentGateway> {
        let gateway = |(host, port): &(String, PortId)| {
            let gateway = AgentGateway { port_id: *port, mac: self.mac(*port), addresses: self.nets(*port) };
            (Name::from(host.as_str()), gateway)
        };
        self.agent_gateways.get(&router.id).into_iter().flatten().map(gateway).collect()
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
            let interface = Interface {
                network_id: port.network_id,
                mac: self.mac(port.port_id),
                addresses: self.nets(port.port_id),
                address_scopes: self.address_scopes(port.network_id),
                advertisement: self.advertisement(port),
            };
            (port.port_id, interface)
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

    fn copies(&self, options: &Options, fleet: &Fleet, router: &Router) -> Option<Copies> {
        let row = self.ha.get(&router.id).filter(|_| router.ha)?;
        let bindings = self.bindings.get(&router.id).map_or(&[][..], Vec::as_slice);
        let copy = |binding: &Binding| {
            let port_id = binding.ha_port_id?;
            Some(Copy {
                host: binding.host.clone(),
                port_id,
                mac: self.mac(port_id),
                address: self.ha_address(port_id)?,
                vtep: fleet.host(&binding.host).and_then(|host| host.tunnel_ip),
            })
        };
        let wish = |host: &str| Wish { host: host.to_owned(), at_once: router.wishes.move_to.is_some() };
        Some(Copies {
            network_id: row.network_id,
            vrid: row.vrid,
            virtual_address: ha::virtual_address(options, row.vrid),
            priority: options.ha_vrrp_priority,
            wish: router.wishes.target().map(wish),
            epoch: bindings.iter().map(|binding| binding.epoch).max().unwrap_or(0),
            heir: row.heir.clone().map(|heir| (heir, row.heir_epoch)),
            copies: bindings.iter().filter_map(copy).collect(),
        })
    }

    fn ha_address(&self, port: PortId) -> Option<Ipv4Net> {
        self.nets(port).into_iter().find_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None })
    }
}

fn group<K: Ord, T>(items: Vec<T>, key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<T>> {
    let mut groups: BTreeMap<K, Vec<T>> = BTreeMap::new();
    for item in items {
        groups.entry(key(&item)).or_default().push(item);
    }
    groups
}

/// The ports that hosts have on the external networks of the routers that they route for.
fn agent_gateways(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<RouterId, Vec<(String, PortId)>>, StoreError> {
    let sql = "SELECT h.router_id, g.host, g.port_id FROM router_hosts h \
               JOIN router_ports gw ON gw.router_id = h.router_id AND gw.role = 'gateway' \
               JOIN agent_gateway_ports g ON g.network_id = gw.network_id AND g.host = h.host \
               WHERE h.router_id IN ({})";
    let mut found: BTreeMap<RouterId, Vec<(String, PortId)>> = BTreeMap::new();
    for (router, host, port) in query_in(tx, sql, routers, |row| Ok((row.parse(0)?, row.text(1)?, row.parse(2)?)))? {
        found.entry(router).or_default().push((host, port));
    }
    Ok(found)
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

fn subnets(tx: &Tx<'_>, networks: &[String]) -> Result<BTreeMap<NetworkId, Vec<(SubnetId, IpNet)>>, StoreError> {
    let sql = "SELECT network_id, id, cidr FROM subnets WHERE network_id IN ({}) ORDER BY created_at, id";
    let mut subnets: BTreeMap<NetworkId, Vec<(SubnetId, IpNet)>> = BTreeMap::new();
    for (network, id, cidr) in query_in(tx, sql, networks, |row| Ok((row.parse(0)?, row.parse(1)?, row.parse(2)?)))? {
        subnets.entry(network).or_default().push((id, cidr));
    }
    Ok(subnets)
}
