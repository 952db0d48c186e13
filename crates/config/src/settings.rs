//! What each daemon runs with: plain structs, filled from the files once, at start.
//!
//! A field is named as its option, and means what the option's help says ([`crate::options`]).
//! Nothing below reads a file; a test may fill a struct by hand. Where several files spell one thing
//! differently (the tunnel address is `[ovs] local_ip` to one agent and `[vxlan] local_ip` to
//! another) this is where they meet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use evergate_model::Mac;
use evergate_model::host::AgentKind;
use ipnet::Ipv4Net;

/// A value that must not reach a log: it has no `Display`, and its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What `evergate host` (control, keeper and their supervisor) runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// This host's name, in the API and towards the server.
    pub host: String,
    /// Where state that outlives a restart is kept.
    pub state_path: PathBuf,
    /// Where sockets, locks and pid files are kept.
    pub run_path: PathBuf,
    /// Where named network namespaces are mounted, as `ip netns` does.
    pub netns_path: PathBuf,
    /// Root URL of the server, without a trailing slash.
    pub server_url: String,
    /// File with the token that opens the server's host stream.
    pub host_token_file: PathBuf,
    /// What this host does.
    pub roles: Roles,
    /// How routers are realised here.
    pub agent_mode: AgentMode,
    /// What the files ask for; both mean the kernel bridge for now.
    pub interface_driver: InterfaceDriver,
    /// Which L2 agent the API shows for this host: Open vSwitch where the files speak of it.
    pub l2_agent: AgentKind,
    /// Address that tunnels end at; `None`: the one that this host reaches the server from.
    pub local_ip: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub vxlan_udp_port: u16,
    /// Physical network to the bridge that the operator made for it.
    pub bridge_mappings: BTreeMap<String, String>,
    /// Physical network to the interface that is enslaved to the network's own bridge.
    pub physical_interface_mappings: BTreeMap<String, String>,
    /// Tunnel types of this host: `vxlan`, or none at all.
    pub tunnel_types: Vec<String>,
    /// As the files say; shown in the API. Forwarding entries are always filled by the server.
    pub l2_population: bool,
    /// Where `<router>/keepalived.conf` and the state-change logs are written.
    pub ha_confs_path: PathBuf,
    /// Seconds between two advertisements: what fits VRRP version 2's field.
    pub ha_vrrp_advert_int: u8,
    /// How advertisements are authenticated when there is a password.
    pub ha_vrrp_auth_type: VrrpAuthType,
    /// The password, if advertisements are authenticated; its first eight bytes count.
    pub ha_vrrp_auth_password: Option<Secret>,
    /// Seconds between two checks of the gateway by the active copy; 0: no checks.
    pub ha_vrrp_health_check_interval: u32,
    /// Whether a copy with a higher priority takes over from a living one.
    pub ha_vrrp_preempt: bool,
    /// Seconds that a copy waits after its start before it preempts.
    pub ha_vrrp_preempt_delay: u32,
    /// Priority of this host's copies, where the server does not say otherwise.
    pub ha_vrrp_priority: u8,
    /// Longest pause between two reports to the server.
    pub report_interval: Duration,
    /// Availability zone shown for this host's L3 agent.
    pub availability_zone: String,
    /// UDP port that claims are exchanged on, at the tunnel addresses.
    pub claim_port: u16,
    /// Largest IP packet that the physical network carries, in bytes.
    pub global_physnet_mtu: u16,
    /// Whether routers without an external gateway are served; shown in the API.
    pub handle_internal_only_routers: bool,
    /// Whether a clean stop also removes the namespaces.
    pub cleanup_on_shutdown: bool,
}

impl HostSettings {
    /// Names the device that a physical network is reached through: a bridge made for it comes
    /// before an interface, as Neutron's agent decides.
    pub fn physical_device(&self, physical_network: &str) -> Option<&str> {
        self.bridge_mappings
            .get(physical_network)
            .or_else(|| self.physical_interface_mappings.get(physical_network))
            .map(String::as_str)
    }
}

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Plugs instances and carries networks.
    pub l2: bool,
    /// Holds copies of routers.
    pub l3: bool,
}

/// Neutron's `agent_mode`: how routers are realised on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentMode {
    /// Central routers only.
    Legacy,
    /// The local part of distributed routers: a compute host.
    Dvr,
    /// Local part and central source NAT: a network host for distributed routers.
    DvrSnat,
    /// Local part without access to the external network.
    DvrNoExternal,
}

impl AgentMode {
    /// Spells the mode as configuration files and the API do.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Dvr => "dvr",
            Self::DvrSnat => "dvr_snat",
            Self::DvrNoExternal => "dvr_no_external",
        }
    }
}

/// Neutron's `interface_driver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceDriver {
    /// The kernel bridge.
    LinuxBridge,
    /// Open vSwitch; for now the kernel bridge stands in for it.
    OpenVSwitch,
}

impl InterfaceDriver {
    /// Spells the driver as configuration files and the API do.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LinuxBridge => "linuxbridge",
            Self::OpenVSwitch => "openvswitch",
        }
    }
}

/// Neutron's `ha_vrrp_auth_type`, as far as it is spoken: `AH` is refused when a password is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VrrpAuthType {
    /// RFC 2338's simple text password.
    Pass,
}

/// What `evergate server` runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Name or address to listen on.
    pub bind_host: String,
    /// Port to listen on; 0: any free one.
    pub bind_port: u16,
    /// URL that clients reach this server at, without a trailing slash; `None`: the one that they used.
    pub public_url: Option<String>,
    /// Where state that outlives a restart is kept.
    pub state_path: PathBuf,
    /// The SQLite file.
    pub database: PathBuf,
    /// File with the token that hosts show; made on first start.
    pub host_token_file: PathBuf,
    /// Users, projects and roles; made on first start.
    pub identity_file: PathBuf,
    /// How long an API token is good for.
    pub token_expiration: Duration,
    /// Whether routers are highly available unless an admin says otherwise.
    pub l3_ha: bool,
    /// Whether routers are distributed unless an admin says otherwise.
    pub router_distributed: bool,
    /// Whether the `dvr` extension is offered.
    pub enable_dvr: bool,
    /// Copies of an HA router; 0: one on every eligible host.
    pub max_l3_agents_per_router: u32,
    /// Subnet of HA networks.
    pub l3_ha_net_cidr: Ipv4Net,
    /// Type of HA networks; `None`: the first of `project_network_types`.
    pub l3_ha_network_type: Option<String>,
    /// Physical network of HA networks, where their type needs one.
    pub l3_ha_network_physical_name: Option<String>,
    /// Priority that every copy of an HA router is given.
    pub ha_vrrp_priority: u8,
    /// First bytes of generated MAC addresses; zero bytes at the end are random.
    pub base_mac: Mac,
    /// First bytes of the MAC addresses of distributed hosts.
    pub dvr_base_mac: Mac,
    /// How hosts are chosen for routers.
    pub router_scheduler: RouterScheduler,
    /// Whether routers without enough copies are filled up when a host appears.
    pub router_auto_schedule: bool,
    /// Whether routers move away from dead hosts.
    pub allow_automatic_l3agent_failover: bool,
    /// Silence after which a host counts as dead.
    pub agent_down_time: Duration,
    /// Whether a host that reports for the first time is eligible at once.
    pub enable_new_agents: bool,
    /// `enable_snat` of gateways, when not given.
    pub enable_snat_by_default: bool,
    /// Largest number of extra routes per router.
    pub max_routes: u32,
    /// Largest number of allowed address pairs per port.
    pub max_allowed_address_pair: u32,
    /// Availability zone hints of routers and networks, when not given.
    pub default_availability_zones: Vec<String>,
    /// Largest page of a list; `None`: no limit.
    pub pagination_max_limit: Option<u32>,
    /// Domain of the names that ports are given.
    pub dns_domain: String,
    /// Largest IP packet that the physical network carries, in bytes.
    pub global_physnet_mtu: u16,
    /// Largest IP packet that the underlay of tunnels carries; 0: as `global_physnet_mtu`.
    pub path_mtu: u16,
    /// IP version of the underlay of tunnels: 4 or 6.
    pub overlay_ip_version: u8,
    /// Network types that exist at all, of `flat`, `vxlan` and `local`.
    pub type_drivers: Vec<String>,
    /// Types that a network gets when its maker does not say, in order of trial.
    pub project_network_types: Vec<String>,
    /// Mechanism drivers that the files name; all are served by the hosts' own L2.
    pub mechanism_drivers: Vec<String>,
    /// Extension drivers that the files name.
    pub extension_drivers: Vec<String>,
    /// Physical networks that may be flat.
    pub flat_networks: FlatNetworks,
    /// VXLAN identifiers for networks that do not name theirs.
    pub vni_ranges: Vec<RangeInclusive<u32>>,
    /// Limits per project.
    pub quotas: Quotas,
}

/// Neutron's `router_scheduler_driver`, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScheduler {
    /// The hosts with the fewest routers.
    LeastRouters,
    /// The hosts with the fewest routers, spread over availability zones.
    AzLeastRouters,
    /// Any hosts.
    Chance,
}

/// Neutron's `flat_networks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlatNetworks {
    /// `*`: any physical network.
    Any,
    /// These, possibly none.
    Named(Vec<String>),
}

impl FlatNetworks {
    /// Tells whether a flat network may be on `physical_network`.
    pub fn allows(&self, physical_network: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Named(names) => names.iter().any(|n| n == physical_network),
        }
    }
}

/// Neutron's `[QUOTAS]`: how many of each a project may have; -1: any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Networks.
    pub network: i64,
    /// Subnets.
    pub subnet: i64,
    /// Subnet pools.
    pub subnetpool: i64,
    /// Ports.
    pub port: i64,
    /// Routers.
    pub router: i64,
    /// Floating IPs.
    pub floatingip: i64,
    /// Security groups.
    pub security_group: i64,
    /// Security group rules.
    pub security_group_rule: i64,
    /// RBAC policies.
    pub rbac_policy: i64,
}

impl ServerSettings {
    /// Names the file that the stock client is given: clouds `evergate-admin` and `evergate-demo`.
    pub fn clouds_file(&self) -> PathBuf {
        self.state_path.join("clouds.yaml")
    }
}
