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

use crate::check;
use crate::config::Config;
use crate::keystone::KeystoneSettings;
use crate::value::Value;

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
    /// Root URLs of the servers, without trailing slashes; at least one.
    pub server_urls: Vec<String>,
    /// File with the token that the host joins with.
    pub join_token_file: PathBuf,
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
    /// Shortest and longest time between two unsolicited router advertisements, in seconds.
    pub rtr_adv_interval: (u16, u16),
    /// Seconds between two advertisements: what fits VRRP version 2's field.
    pub ha_vrrp_advert_int: u8,
    /// VRRP version: 2 or 3.
    pub vrrp_version: u8,
    /// Milliseconds between two advertisements of version 3, in place of `ha_vrrp_advert_int`.
    pub vrrp_advert_interval_ms: Option<u16>,
    /// How advertisements are authenticated when there is a password.
    pub ha_vrrp_auth_type: VrrpAuthType,
    /// The password, if advertisements are authenticated; its first eight bytes count.
    pub ha_vrrp_auth_password: Option<Secret>,
    /// Seconds between two checks of the gateway by the active copy; 0: no checks.
    pub ha_vrrp_health_check_interval: u32,
    /// Checks in a row without an answer, after which a gateway counts as lost.
    pub ha_vrrp_health_check_fall: u8,
    /// Checks in a row with all answers, after which it counts as found again.
    pub ha_vrrp_health_check_rise: u8,
    /// Program to run with each check as well.
    pub ha_vrrp_health_check_script: Option<PathBuf>,
    /// Whether a copy with a higher priority takes over from a living one.
    pub ha_vrrp_preempt: bool,
    /// Seconds that a copy with a higher priority hears the living one before it takes over from it.
    pub ha_vrrp_preempt_delay: u32,
    /// Longest pause between two reports to the server.
    pub report_interval: Duration,
    /// Availability zone shown for this host's L3 agent.
    pub availability_zone: String,
    /// UDP port that claims are exchanged on, at the tunnel addresses.
    pub claim_port: u16,
    /// UDP port that tracked connections are replicated on, at the tunnel addresses; `None`: they are not.
    pub conntrack_sync_port: Option<u16>,
    /// Milliseconds between two BFD packets; 0: none.
    pub bfd_interval_ms: u32,
    /// BFD packets that may be missing in a row.
    pub bfd_multiplier: u8,
    /// Whether a copy that reaches no other host any more serves all the same.
    pub serve_alone: bool,
    /// Whether routers without an external gateway are served; shown in the API.
    pub handle_internal_only_routers: bool,
    /// Whether a clean stop also removes the namespaces.
    pub cleanup_on_shutdown: bool,
}

impl HostSettings {
    /// Picks the host's settings out of a configuration that was accepted.
    pub fn from_config(config: &Config) -> Self {
        let ovs = check::speaks_of_ovs(config);
        let of_agent = |name| config.text("DEFAULT", name);
        let roles = config.list("evergate", "roles");
        let vxlan = config.bool("vxlan", "enable_vxlan") && !config.list("agent", "tunnel_types").is_empty();
        let mut bridge_mappings = config.mapping("linux_bridge", "bridge_mappings");
        bridge_mappings.extend(config.mapping("ovs", "bridge_mappings"));
        Self {
            host: config.text("DEFAULT", "host"),
            state_path: config.path("DEFAULT", "state_path"),
            run_path: config.path("evergate", "run_path"),
            netns_path: config.path("evergate", "netns_path"),
            server_urls: check::urls(&config.text("evergate", "server_url")).map(secure).collect(),
            join_token_file: config.path("evergate", "join_token_file"),
            roles: Roles { l2: roles.iter().any(|r| r == "l2"), l3: roles.iter().any(|r| r == "l3") },
            agent_mode: AgentMode::from_word(&of_agent("agent_mode")),
            interface_driver: InterfaceDriver::from_word(&of_agent("interface_driver")),
            l2_agent: if ovs { AgentKind::OpenVSwitch } else { AgentKind::LinuxBridge },
            local_ip: config.ip("ovs", "local_ip").or(config.ip("vxlan", "local_ip")),
            vxlan_udp_port: config
                .given_int("vxlan", "udp_dstport")
                .unwrap_or_else(|| config.int("agent", "vxlan_udp_port")),
            bridge_mappings,
            physical_interface_mappings: config.mapping("linux_bridge", "physical_interface_mappings"),
            tunnel_types: if vxlan { vec!["vxlan".to_owned()] } else { Vec::new() },
            l2_population: config.bool("agent", "l2_population") || config.bool("vxlan", "l2_population"),
            ha_confs_path: config.path("DEFAULT", "ha_confs_path"),
            rtr_adv_interval: (
                config.int("DEFAULT", "min_rtr_adv_interval"),
                config.int("DEFAULT", "max_rtr_adv_interval"),
            ),
            ha_vrrp_advert_int: config.int("DEFAULT", "ha_vrrp_advert_int"),
            vrrp_version: config.int("evergate", "vrrp_version"),
            vrrp_advert_interval_ms: config.given_int("evergate", "vrrp_advert_interval_ms"),
            ha_vrrp_auth_type: VrrpAuthType::Pass,
            ha_vrrp_auth_password: config.non_empty("DEFAULT", "ha_vrrp_auth_password").map(Secret),
            ha_vrrp_health_check_interval: config.int("DEFAULT", "ha_vrrp_health_check_interval"),
            ha_vrrp_health_check_fall: config.int("evergate", "ha_vrrp_health_check_fall"),
            ha_vrrp_health_check_rise: config.int("evergate", "ha_vrrp_health_check_rise"),
            ha_vrrp_health_check_script: config.non_empty("evergate", "ha_vrrp_health_check_script").map(PathBuf::from),
            ha_vrrp_preempt: config.bool("evergate", "ha_vrrp_preempt"),
            ha_vrrp_preempt_delay: config.int("evergate", "ha_vrrp_preempt_delay"),
            report_interval: config.seconds("agent", "report_interval"),
            availability_zone: config.text("agent", "availability_zone"),
            claim_port: config.int("evergate", "claim_port"),
            conntrack_sync_port: config
                .bool("evergate", "conntrack_sync")
                .then(|| config.int("evergate", "conntrack_sync_port")),
            bfd_interval_ms: config.int("evergate", "bfd_interval_ms"),
            bfd_multiplier: config.int("evergate", "bfd_multiplier"),
            serve_alone: config.text("evergate", "isolation_policy") == "serve",
            handle_internal_only_routers: config.bool("DEFAULT", "handle_internal_only_routers"),
            cleanup_on_shutdown: config.bool("DEFAULT", "cleanup_on_shutdown"),
        }
    }

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
    fn from_word(word: &str) -> Self {
        match word {
            "dvr" => Self::Dvr,
            "dvr_snat" => Self::DvrSnat,
            "dvr_no_external" => Self::DvrNoExternal,
            _ => Self::Legacy,
        }
    }

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
    fn from_word(word: &str) -> Self {
        let ovs = word == "openvswitch" || word.ends_with("OVSInterfaceDriver");
        if ovs { Self::OpenVSwitch } else { Self::LinuxBridge }
    }

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

/// `[database] connection`.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A file, for one server.
    Sqlite(PathBuf),
    /// The URL of a database that several servers may share. It may hold a password.
    Postgres(String),
}

impl Default for Database {
    fn default() -> Self {
        Self::Sqlite(PathBuf::new())
    }
}

impl Database {
    /// Reads the URL as SQLAlchemy does, or `None` when it is neither of the two.
    pub fn from_url(url: &str) -> Option<Self> {
        if let Some(path) = check::sqlite_path(url) {
            return Some(Self::Sqlite(PathBuf::from(path)));
        }
        let scheme = url.split_once("://")?.0;
        // SQLAlchemy's driver may stand behind a plus sign.
        let is_postgres = ["postgresql", "postgres"].contains(&scheme.split('+').next()?);
        is_postgres.then(|| Self::Postgres(url.to_owned()))
    }
}

/// For people: without the password.
impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => f.write_str(&crate::value::without_password(url)),
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({self})")
    }
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
    /// Requests per second of each user; 0: any number.
    pub api_rate_limit: u32,
    /// Where state that outlives a restart is kept.
    pub state_path: PathBuf,
    /// Where the server keeps its state.
    pub database: Database,
    /// Name of this machine.
    pub host: String,
    /// TLS of the listening socket.
    pub tls: TlsSettings,
    /// Users, projects and roles; made on first start.
    pub identity_file: PathBuf,
    /// How long an API token is good for.
    pub token_expiration: Duration,
    /// The Keystone that says who callers are; `None`: the identity that is built in.
    pub keystone: Option<KeystoneSettings>,
    /// Rules that replace Neutron's default ones.
    pub policy_file: PolicyFile,
    /// Whether routers are highly available unless an admin says otherwise.
    pub l3_ha: bool,
    /// Whether routers are distributed unless an admin says otherwise.
    pub router_distributed: bool,
    /// Whether the `dvr` extension is offered.
    pub enable_dvr: bool,
    /// Whether a host with floating IPs of its own has an address of its own on the external network.
    pub external_address_per_host: bool,
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
    /// Largest number of allowed address pairs per port.
    pub max_allowed_address_pair: u32,
    /// Largest number of DNS servers per subnet.
    pub max_dns_nameservers: u32,
    /// Largest number of host routes per subnet.
    pub max_subnet_host_routes: u32,
    /// Largest number of addresses that one request can allocate for a port.
    pub max_fixed_ips_per_port: u32,
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
    /// Where a physical network carries other IP packets than `global_physnet_mtu`.
    pub physical_network_mtus: BTreeMap<String, u16>,
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

/// TLS of the server's socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Whether plain HTTP is turned away.
    pub only: bool,
    /// The operator's certificate; `None`: one of the cluster's authority.
    pub cert_file: Option<PathBuf>,
    /// Its key; `None`: in the same file.
    pub key_file: Option<PathBuf>,
    /// Authorities of the certificates that clients must show; `None`: they show none.
    pub ca_file: Option<PathBuf>,
    /// Further names that a certificate of the cluster's authority is good for.
    pub names: Vec<String>,
}

/// `[oslo_policy] policy_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// The file; if not absolute, it is looked for beside the configuration files.
    pub path: PathBuf,
    /// Whether a file says so, and the file must be there.
    pub is_given: bool,
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

impl RouterScheduler {
    fn from_class(class: &str) -> Self {
        match class.rsplit('.').next() {
            Some("ChanceScheduler") => Self::Chance,
            Some("AZLeastRoutersScheduler") => Self::AzLeastRouters,
            _ => Self::LeastRouters,
        }
    }
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
    fn from_words(words: Vec<String>) -> Self {
        if words.iter().any(|w| w == "*") { Self::Any } else { Self::Named(words) }
    }

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
    /// Extra routes of each router.
    pub router_route: i64,
}

impl ServerSettings {
    /// Picks the server's settings out of a configuration that was accepted.
    pub fn from_config(config: &Config) -> Self {
        let general = |name| config.text("DEFAULT", name);
        let yes = |name| config.bool("DEFAULT", name);
        Self {
            bind_host: general("bind_host"),
            bind_port: config.int("DEFAULT", "bind_port"),
            public_url: config.non_empty("evergate", "public_url").map(|u| u.trim_end_matches('/').to_owned()),
            api_rate_limit: config.int("evergate", "api_rate_limit"),
            state_path: config.path("DEFAULT", "state_path"),
            database: Database::from_url(&config.text("database", "connection")).unwrap_or_default(),
            host: general("host"),
            tls: TlsSettings {
                only: yes("use_ssl"),
                cert_file: config.non_empty("ssl", "cert_file").map(PathBuf::from),
                key_file: config.non_empty("ssl", "key_file").map(PathBuf::from),
                ca_file: config.non_empty("ssl", "ca_file").map(PathBuf::from),
                names: config.list("evergate", "tls_names"),
            },
            identity_file: config.path("evergate", "identity_file"),
            token_expiration: config.seconds("evergate", "token_expiration"),
            keystone: KeystoneSettings::from_config(config),
            policy_file: PolicyFile {
                path: config.path("oslo_policy", "policy_file"),
                is_given: config.is_given("oslo_policy", "policy_file"),
            },
            l3_ha: yes("l3_ha"),
            router_distributed: yes("router_distributed"),
            enable_dvr: yes("enable_dvr"),
            external_address_per_host: config.bool("evergate", "external_address_per_host"),
            max_l3_agents_per_router: config.int("DEFAULT", "max_l3_agents_per_router"),
            l3_ha_net_cidr: config.cidr("DEFAULT", "l3_ha_net_cidr"),
            l3_ha_network_type: config.non_empty("DEFAULT", "l3_ha_network_type"),
            l3_ha_network_physical_name: config.non_empty("DEFAULT", "l3_ha_network_physical_name"),
            ha_vrrp_priority: config.int("evergate", "ha_vrrp_priority"),
            base_mac: config.mac("DEFAULT", "base_mac"),
            dvr_base_mac: config.mac("DEFAULT", "dvr_base_mac"),
            router_scheduler: RouterScheduler::from_class(&general("router_scheduler_driver")),
            router_auto_schedule: yes("router_auto_schedule"),
            allow_automatic_l3agent_failover: yes("allow_automatic_l3agent_failover"),
            agent_down_time: config.seconds("DEFAULT", "agent_down_time"),
            enable_new_agents: yes("enable_new_agents"),
            enable_snat_by_default: yes("enable_snat_by_default"),
            max_allowed_address_pair: config.int("DEFAULT", "max_allowed_address_pair"),
            max_dns_nameservers: config.int("DEFAULT", "max_dns_nameservers"),
            max_subnet_host_routes: config.int("DEFAULT", "max_subnet_host_routes"),
            max_fixed_ips_per_port: config.int("DEFAULT", "max_fixed_ips_per_port"),
            default_availability_zones: config.list("DEFAULT", "default_availability_zones"),
            // Neutron: a negative number and "infinite" are both no limit.
            pagination_max_limit: general("pagination_max_limit").parse().ok().filter(|n| *n > 0),
            dns_domain: general("dns_domain"),
            global_physnet_mtu: config.int("DEFAULT", "global_physnet_mtu"),
            path_mtu: config.int("ml2", "path_mtu"),
            physical_network_mtus: config.mtus("ml2", "physical_network_mtus"),
            overlay_ip_version: config.int("ml2", "overlay_ip_version"),
            type_drivers: carried(config.list("ml2", "type_drivers")),
            project_network_types: config.list("ml2", "project_network_types"),
            mechanism_drivers: config.list("ml2", "mechanism_drivers"),
            extension_drivers: config.list("ml2", "extension_drivers"),
            flat_networks: FlatNetworks::from_words(config.list("ml2_type_flat", "flat_networks")),
            vni_ranges: config.vni_ranges("ml2_type_vxlan", "vni_ranges"),
            quotas: Quotas::from_config(config),
        }
    }

    /// Names the file that clients are given to know the server by: the authority's certificate.
    pub fn authority_file(&self) -> PathBuf {
        self.state_path.join("ca.pem")
    }

    /// Names the file that the stock client is given: clouds `evergate-admin` and `evergate-demo`.
    pub fn clouds_file(&self) -> PathBuf {
        self.state_path.join("clouds.yaml")
    }
}

impl Quotas {
    fn from_config(config: &Config) -> Self {
        let quota = |name| config.int("quotas", name);
        Self {
            network: quota("quota_network"),
            subnet: quota("quota_subnet"),
            subnetpool: quota("default_quota"),
            port: quota("quota_port"),
            router: quota("quota_router"),
            floatingip: quota("quota_floatingip"),
            security_group: quota("quota_security_group"),
            security_group_rule: quota("quota_security_group_rule"),
            rbac_policy: quota("quota_rbac_policy"),
            router_route: if config.is_given("quotas", "quota_router_route") {
                quota("quota_router_route")
            } else {
                config.int("DEFAULT", "max_routes")
            },
        }
    }
}

/// The stream is spoken over TLS, whatever an older file says.
fn secure(url: &str) -> String {
    url.strip_prefix("http://").map_or_else(|| url.to_owned(), |rest| format!("https://{rest}"))
}

/// Leaves out the network types that are not carried.
fn carried(mut types: Vec<String>) -> Vec<String> {
    types.retain(|t| check::CARRIED_TYPES.contains(&t.as_str()));
    types
}

/// Typed access. Asking for an option by another type than the table gives it is our own mistake, which
/// the tests below would show: they read every field from an empty configuration.
impl Config {
    pub(crate) fn bool(&self, section: &str, name: &str) -> bool {
        match self.value(section, name) {
            Some(Value::Bool(value)) => *value,
            _ => unreachable!("[{section}] {name} is a boolean with a default"),
        }
    }

    fn given_int<T: TryFrom<i64>>(&self, section: &str, name: &str) -> Option<T> {
        match self.value(section, name) {
            Some(Value::Int(value)) => T::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(crate) fn int<T: TryFrom<i64>>(&self, section: &str, name: &str) -> T {
        self.given_int(section, name).expect("the table's bounds fit the field, and there is a default")
    }

    pub(crate) fn seconds(&self, section: &str, name: &str) -> Duration {
        match self.value(section, name) {
            Some(Value::Seconds(value)) => *value,
            _ => unreachable!("[{section}] {name} is a time with a default"),
        }
    }

    pub(crate) fn non_empty(&self, section: &str, name: &str) -> Option<String> {
        match self.value(section, name) {
            Some(Value::Text(value)) if !value.is_empty() => Some(value.clone()),
            _ => None,
        }
    }

    pub(crate) fn text(&self, section: &str, name: &str) -> String {
        self.non_empty(section, name).unwrap_or_default()
    }

    fn path(&self, section: &str, name: &str) -> PathBuf {
        PathBuf::from(self.text(section, name))
    }

    pub(crate) fn list(&self, section: &str, name: &str) -> Vec<String> {
        match self.value(section, name) {
            Some(Value::List(items)) => items.iter().filter(|item| !item.is_empty()).cloned().collect(),
            _ => Vec::new(),
        }
    }

    fn mapping(&self, section: &str, name: &str) -> BTreeMap<String, String> {
        match self.value(section, name) {
            Some(Value::Mapping(map)) => map.clone(),
            _ => BTreeMap::new(),
        }
    }

    fn mtus(&self, section: &str, name: &str) -> BTreeMap<String, u16> {
        match self.value(section, name) {
            Some(Value::Mtus(map)) => map.clone(),
            _ => BTreeMap::new(),
        }
    }

    fn ip(&self, section: &str, name: &str) -> Option<IpAddr> {
        match self.value(section, name) {
            Some(Value::Ip(ip)) => Some(*ip),
            _ => None,
        }
    }

    fn cidr(&self, section: &str, name: &str) -> Ipv4Net {
        match self.value(section, name) {
            Some(Value::Ipv4Cidr(net)) => *net,
            _ => unreachable!("[{section}] {name} is a network with a default"),
        }
    }

    fn mac(&self, section: &str, name: &str) -> Mac {
        match self.value(section, name) {
            Some(Value::Mac(mac)) => *mac,
            _ => unreachable!("[{section}] {name} is a MAC address with a default"),
        }
    }

    fn vni_ranges(&self, section: &str, name: &str) -> Vec<RangeInclusive<u32>> {
        match self.value(section, name) {
            Some(Value::VniRanges(ranges)) => ranges.clone(),
            _ => Vec::new(),
        }
    }
}
