//! What an operator can set about the API and its rules, under Neutron's names.
//!
//! Plain data: the command line's start-up fills it from configuration files, tests from code.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use evergate_model::Mac;
use ipnet::Ipv4Net;

/// Settings of the API server. The defaults run without any file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `public_url` of `[evergate]`: root URL in links; `None` for the one that each client used.
    pub public_url: Option<String>,
    /// `api_rate_limit` of `[evergate]`: requests per second of each user, 0 for any number.
    pub api_rate_limit: u32,
    /// `ha_vrrp_priority` of `[evergate]`: of every copy, so that no copy is better than another.
    pub ha_vrrp_priority: u8,
    /// `l3_ha`: routers are highly available unless an admin says otherwise.
    pub l3_ha: bool,
    /// `enable_dvr`: distributed routers are offered.
    pub enable_dvr: bool,
    /// `router_distributed`: routers are distributed unless an admin says otherwise.
    pub router_distributed: bool,
    /// `external_address_per_host` of `[evergate]`: a host that translates floating IPs of its own ports has an
    /// address of its own on the external network, as in Neutron.
    pub external_address_per_host: bool,
    /// `max_l3_agents_per_router`: copies of an HA router, 0 for one on every eligible host.
    pub max_l3_agents_per_router: u32,
    /// `l3_ha_net_cidr`: the subnet of every HA network.
    pub l3_ha_net_cidr: Ipv4Net,
    /// `l3_ha_network_type`: type of HA networks, or empty for the default project type.
    pub l3_ha_network_type: String,
    /// `l3_ha_network_physical_name`: physical network of HA networks of type flat.
    pub l3_ha_network_physical_name: String,
    /// `agent_down_time`: seconds without a heartbeat after which an agent counts as dead.
    pub agent_down_time: u32,
    /// `global_physnet_mtu`: MTU of the network underneath, that encapsulation is taken from.
    pub global_physnet_mtu: u16,
    /// `path_mtu` of `[ml2]`: largest encapsulated packet, 0 for no limit but the one above.
    pub path_mtu: u16,
    /// `physical_network_mtus` of `[ml2]`: where a physical network differs.
    pub physical_network_mtus: BTreeMap<String, u16>,
    /// `type_drivers` of `[ml2]`: network types that an admin may choose.
    pub type_drivers: Vec<String>,
    /// `tenant_network_types` of `[ml2]`: types that project networks get, first that has room.
    pub tenant_network_types: Vec<String>,
    /// `flat_networks` of `[ml2_type_flat]`: allowed physical networks, `*` for any.
    pub flat_networks: Vec<String>,
    /// `vni_ranges` of `[ml2_type_vxlan]`: VNIs that project networks are given, both ends included.
    pub vni_ranges: Vec<(u32, u32)>,
    /// `enable_snat_by_default`: external gateways translate unless an admin says otherwise.
    pub enable_snat_by_default: bool,
    /// `base_mac`: the first three (or four) bytes of generated MACs; zero bytes are chosen at random.
    pub base_mac: Mac,
    /// `max_allowed_address_pair`: address pairs per port.
    pub max_allowed_address_pair: usize,
    /// `max_dns_nameservers`: per subnet.
    pub max_dns_nameservers: usize,
    /// `max_subnet_host_routes`: per subnet.
    pub max_subnet_host_routes: usize,
    /// `max_fixed_ips_per_port` of earlier releases; bounds what one request can allocate.
    pub max_fixed_ips_per_port: usize,
    /// `pagination_max_limit`: largest page, or `None` for no limit.
    pub pagination_max_limit: Option<usize>,
    /// `default_availability_zones`: hints of routers that name none.
    pub default_availability_zones: Vec<String>,
    /// `enable_new_agents`: an agent that registers may be scheduled on at once.
    pub enable_new_agents: bool,
    /// `[QUOTAS]`: what a project may have that has no quotas of its own.
    pub limits: Limits,
}

/// How many objects of each kind a project may have; a negative number is any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are the kinds' names")]
pub struct Limits {
    pub network: i64,
    pub subnet: i64,
    pub subnetpool: i64,
    pub port: i64,
    pub router: i64,
    pub floatingip: i64,
    pub security_group: i64,
    pub security_group_rule: i64,
    pub rbac_policy: i64,
    /// Extra routes of each router.
    pub router_route: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            network: 100,
            subnet: 100,
            subnetpool: -1,
            port: 500,
            router: 10,
            floatingip: 50,
            security_group: 10,
            security_group_rule: 100,
            rbac_policy: 10,
            router_route: 30,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            public_url: None,
            api_rate_limit: 0,
            ha_vrrp_priority: 50,
            l3_ha: false,
            enable_dvr: true,
            router_distributed: false,
            external_address_per_host: true,
            max_l3_agents_per_router: 3,
            l3_ha_net_cidr: Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 192, 0), 18),
            l3_ha_network_type: String::new(),
            l3_ha_network_physical_name: String::new(),
            agent_down_time: 75,
            global_physnet_mtu: 1500,
            path_mtu: 0,
            physical_network_mtus: BTreeMap::new(),
            type_drivers: vec!["flat".into(), "vxlan".into(), "local".into()],
            // Deviation: Neutron's default is `local`, which carries nothing between hosts.
            tenant_network_types: vec!["vxlan".into()],
            flat_networks: vec!["*".into()],
            vni_ranges: vec![(1, 100_000)],
            enable_snat_by_default: true,
            base_mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 0]),
            max_allowed_address_pair: 10,
            max_dns_nameservers: 5,
            max_subnet_host_routes: 20,
            max_fixed_ips_per_port: 16,
            pagination_max_limit: None,
            default_availability_zones: Vec::new(),
            enable_new_agents: true,
            limits: Limits::default(),
        }
    }
}
