//! Every option that is known: its place, kind, default and meaning, and who uses it.
//!
//! One table, so that an option is data: reading, checking, `--check-config` and the documentation all
//! come from its row. Four kinds of row:
//!
//! - used by the server, the hosts or both;
//! - checked, but without effect until a later version;
//! - Neutron's, without effect here: accepted, with the reason, because deployments have it in their
//!   files and should not have to edit them;
//! - Evergate's own, in section `[evergate]`.
//!
//! Sections that belong to other programs ([`FOREIGN_SECTIONS`]) are passed over whole. Section names
//! are lower case here; case in a file does not matter, except that `DEFAULT` is written so.

use crate::value::Kind;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// The section, in lower case, or `DEFAULT`.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// Older names in the same section, still accepted.
    pub older: &'static [&'static str],
    /// What values it takes.
    pub kind: Kind,
    /// What it is when no file says.
    pub default: Default,
    /// Who acts on it.
    pub user: User,
    /// What it is for, with units.
    pub help: &'static str,
}

/// What an option is when no file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// Nothing.
    Unset,
    /// This, as it would be written in a file.
    Text(&'static str),
    /// The name that the machine has.
    Hostname,
}

/// Who acts on an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// `evergate server`.
    Server,
    /// `evergate host`.
    Host,
    /// Both.
    Both,
    /// Nobody yet, for this reason; values are checked, so that they can be relied on later.
    NotYet(&'static str),
    /// Nobody, for this reason.
    Nobody(&'static str),
}

/// Which daemon reads the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `evergate server`.
    Server,
    /// `evergate host`.
    Host,
}

impl Opt {
    /// Tells whether `role` acts on this option.
    pub fn is_used_by(&self, role: Role) -> bool {
        match self.user {
            User::Both => true,
            User::Server => role == Role::Server,
            User::Host => role == Role::Host,
            User::NotYet(_) | User::Nobody(_) => false,
        }
    }
}

/// Finds the row for a section (any case) and a key, by its present or an older name.
pub fn find(section: &str, key: &str) -> Option<&'static Opt> {
    let section = normal_section(section);
    OPTIONS.iter().find(|o| o.section == section && (o.name == key || o.older.contains(&key)))
}

/// Folds a section's name: only `DEFAULT` keeps its case, as in the original.
pub fn normal_section(section: &str) -> String {
    if section == "DEFAULT" { section.to_owned() } else { section.to_lowercase() }
}

/// Tells why a section is passed over, if it belongs to another program or library.
pub fn foreign_section(section: &str) -> Option<&'static str> {
    let section = normal_section(section);
    FOREIGN_SECTIONS.iter().find(|(name, _)| *name == section).map(|(_, why)| *why)
}

const fn unset(section: &'static str, name: &'static str, kind: Kind, user: User, help: &'static str) -> Opt {
    Opt { section, name, older: &[], kind, default: Default::Unset, user, help }
}

const fn opt(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    user: User,
    help: &'static str,
) -> Opt {
    Opt { default: Default::Text(default), ..unset(section, name, kind, user, help) }
}

/// A row without effect: any text is accepted.
const fn inert(section: &'static str, name: &'static str, why: &'static str) -> Opt {
    unset(section, name, Kind::Text, User::Nobody(why), "")
}

/// A row without effect whose text must not be shown.
const fn inert_secret(section: &'static str, name: &'static str, why: &'static str) -> Opt {
    unset(section, name, Kind::Secret, User::Nobody(why), "")
}

use Kind::{
    Bool, Choice, Int, Ip, Ipv4Cidr, List, ListOf, Mac, Mapping, Mtus, Path, Seconds, Secret, Text, Url, VniRanges,
};
use User::{Both, Host, NotYet, Server};

const MAX_U16: i64 = u16::MAX as i64;
const MAX_U32: i64 = u32::MAX as i64;
/// Smallest MTU that IPv4 allows for (RFC 791), as Neutron's `MIN_MTU`.
const MIN_MTU: i64 = 68;

const NETWORK_TYPES: &[&str] = &["local", "flat", "vlan", "gre", "vxlan", "geneve"];
const AGENT_MODES: &[&str] = &["legacy", "dvr", "dvr_snat", "dvr_no_external"];
/// Short names, and the class paths that older guides give.
pub(crate) const INTERFACE_DRIVERS: &[&str] = &[
    "linuxbridge",
    "openvswitch",
    "neutron.agent.linux.interface.BridgeInterfaceDriver",
    "neutron.agent.linux.interface.OVSInterfaceDriver",
];

const NO_OVS: &str = "there is no Open vSwitch: the kernel bridge does its work";
const NO_WORKERS: &str = "one server process serves all requests";
const NO_RABBIT: &str = "server and hosts talk over HTTP, not over a message bus";
const NO_CHILDREN: &str = "no process per router exists that could need watching";
const NO_CONNTRACKD: &str = "conntrackd is not used";
const NO_METADATA: &str = "no metadata proxy is run";
const NO_RA: &str = "the keeper advertises routers itself";
const NO_IPTABLES: &str = "rules are nftables, one transaction per namespace";
const NO_FILTER: &str = "ports are not filtered";
const NO_VLAN: &str = "networks are vxlan, flat or local";
const NO_DHCP: &str = "no DHCP agent is run";
const LOGS: &str = "logs go to standard error, filtered by the environment variable EVERGATE_LOG";
const ONE_MODEL: &str = "the server is one program that has this built in";
const NO_NOVA: &str = "no notices are sent to Nova";
const NO_MULTICAST: &str = "flooding is replicated at the sending host";
const ONE_POLICY: &str = "one policy file is read, and its rules decide";
const CHOSEN_AUTH: &str = "who is asked is chosen by identity in section [evergate]";
const ONE_KEYSTONE: &str = "Keystone is asked at auth_url, in version 3";
const TLS_VERSIONS: &str = "TLS 1.3 and 1.2 are spoken, with what is considered safe of them";
const OWN_CACHE: &str = "each server keeps the tokens that it has seen in its own memory";
const NO_OVN: &str = "there is no OVN here";
const LATER_NDP: &str = "there is no NDP proxy";
const ONE_DEFAULT_ROUTE: &str = "a router has one default route per IP version";

/// The table.
// One row, one line: it is read down its columns.
#[rustfmt::skip]
pub static OPTIONS: &[Opt] = &[
    // Evergate's own.
    opt("evergate", "server_url", Url, "https://127.0.0.1:9696", Host, "Root URL of the server; of several beside one database, separated by commas: the host uses one, and goes to the next when it loses it."),
    opt("evergate", "join_token_file", Path, "$state_path/join-token", Host, "File with a join token, as evergate cluster token create on the controller prints it. A host without a certificate that counts joins with it, and removes it."),
    opt("evergate", "roles", ListOf(&["l2", "l3"]), "l2,l3", Host, "What the host does: l2 plugs instances and carries networks, l3 holds copies of routers."),
    opt("evergate", "run_path", Path, "/run/evergate", Host, "Directory for sockets, locks and pid files."),
    opt("evergate", "netns_path", Path, "/run/netns", Host, "Directory where named network namespaces are mounted."),
    opt("evergate", "claim_port", Int(1, MAX_U16), "3796", Host, "UDP port, at the tunnel addresses, on which a new active copy tells the other hosts."),
    opt("evergate", "conntrack_sync", Bool, "true", Host, "Whether the active copy of an HA router replicates its tracked connections to the other copies, so that they go on after a failover."),
    opt("evergate", "conntrack_sync_port", Int(1, MAX_U16), "3797", Host, "UDP port, at the tunnel addresses, on which hosts replicate tracked connections, encrypted."),
    opt("evergate", "bfd_interval_ms", Int(0, 10_000), "150", Host, "Milliseconds between two BFD packets from each host to each that it shares routers with, both ways; at least 10. 0: VRRP alone notices that a host is gone."),
    opt("evergate", "bfd_multiplier", Int(1, 255), "3", Host, "BFD packets that may be missing in a row before a host counts as gone."),
    opt("evergate", "isolation_policy", Choice(&["standby", "serve"]), "standby", Host, "What a copy does that reaches no other host any more although it did before: standby steps down and leaves the router to the connected side; serve goes on, or takes over, so that two may be active."),
    opt("evergate", "vrrp_version", Int(2, 3), "2", Host, "VRRP version that the copies speak, the same on all hosts: 2 (RFC 3768) as Neutron's, or 3 (RFC 9568), which allows intervals below a second and knows no password."),
    // The field of version 3 has twelve bits, in centiseconds.
    unset("evergate", "vrrp_advert_interval_ms", Int(10, 40_950), Host, "Milliseconds between two advertisements of version 3, in steps of 10; instead of ha_vrrp_advert_int."),
    opt("evergate", "ha_vrrp_preempt", Bool, "false", Host, "Whether a copy with a higher priority takes over from a living one."),
    opt("evergate", "ha_vrrp_preempt_delay", Int(0, 1000), "0", Host, "Seconds that a copy with a higher priority hears the living one before it takes over from it."),
    opt("evergate", "ha_vrrp_priority", Int(1, 254), "50", Server, "VRRP priority of the copies."),
    opt("evergate", "ha_vrrp_health_check_fall", Int(1, 255), "2", Host, "Checks in a row without an answer, after which a gateway counts as lost."),
    opt("evergate", "ha_vrrp_health_check_rise", Int(1, 255), "2", Host, "Checks in a row with all answers, after which it counts as found again."),
    unset("evergate", "ha_vrrp_health_check_script", Path, Host, "Program to run with each check as well, inside the router's namespace, with the router's id and the gateways as arguments; exit status 0 means that they are reached."),
    opt("evergate", "external_address_per_host", Bool, "true", Server, "Whether every host that translates floating IPs of its own instances has an address of its own on the external network, as in Neutron: the host then answers pings and traces there. Without, no external address is spent per host."),
    unset("evergate", "public_url", Url, Server, "Root URL that clients reach the server at. Unset: the one that each client used."),
    opt("evergate", "api_rate_limit", Int(0, MAX_U32), "0", Server, "Requests per second that one user may make of the Networking API (/v2.0) of each server, with bursts of two seconds' worth; more are answered 429. 0 is any number. Every server counts by itself: with three behind a balancer a user has up to three times as many. It does not hold for services (rule service_api), nor for Identity (/identity), which answers 429 to too many wrong passwords alone. At any rate, one user has at most half of what a server works on at once, and 256 requests with 16 MiB of bodies that are worked on or wait; more are answered 429 as well."),
    opt("evergate", "tls_names", List, "", Server, "Further names and addresses that clients reach this server by. Certificates of the cluster's authority are good for them, besides host, bind_host, the host of public_url, localhost and the server's own addresses."),
    opt("evergate", "identity_file", Path, "$state_path/identity.json", Server, "Users, projects and roles. Made on first start."),
    opt("evergate", "identity", Choice(&["auto", "embedded", "keystone"]), "auto", Server, "Who says who callers are: the identity that is built in, or the Keystone of section [keystone_authtoken]; auto is Keystone where auth_url is set there."),
    opt("evergate", "token_expiration", Seconds(1), "3600", Server, "Seconds that an API token is good for."),

    // neutron.conf: both daemons.
    Opt { default: Default::Hostname, ..unset("DEFAULT", "host", Text, Both, "Name of this host, in the API and towards the server.") },
    opt("DEFAULT", "state_path", Path, "/var/lib/evergate", Both, "Directory for what must outlive a restart."),
    opt("DEFAULT", "global_physnet_mtu", Int(MIN_MTU, MAX_U16), "1500", Server, "Largest IP packet of the physical network, in bytes."),

    // neutron.conf: the server.
    opt("DEFAULT", "bind_host", Text, "0.0.0.0", Server, "Name or address to listen on."),
    opt("DEFAULT", "bind_port", Int(0, MAX_U16), "9696", Server, "TCP port to listen on; 0 takes any free one."),
    opt("DEFAULT", "use_ssl", Bool, "false", Server, "Whether the API is served over TLS alone. Without, plain HTTP is answered as well. Hosts are served over TLS in any case."),
    unset("ssl", "cert_file", Path, Server, "The server's certificate for clients of the API, in PEM, with what leads to its authority behind it. Unset: one of the cluster's authority. It is read again when it changes."),
    unset("ssl", "key_file", Path, Server, "Its private key, in PEM. Unset: in cert_file."),
    unset("ssl", "ca_file", Path, Server, "Authorities, in PEM, one of which must have signed a certificate that every client of the API shows. Unset: clients show none. It is read again when it changes."),
    opt("DEFAULT", "l3_ha", Bool, "false", Server, "Whether routers are highly available unless an admin says otherwise."),
    opt("DEFAULT", "router_distributed", Bool, "false", Server, "Whether routers are distributed unless an admin says otherwise."),
    opt("DEFAULT", "enable_dvr", Bool, "true", Server, "Whether distributed routers are offered at all."),
    opt("DEFAULT", "max_l3_agents_per_router", Int(0, MAX_U32), "3", Server, "Copies of an HA router; 0 is one on every eligible host."),
    opt("DEFAULT", "l3_ha_net_cidr", Ipv4Cidr, "169.254.192.0/18", Server, "Subnet of the hidden HA networks."),
    opt("DEFAULT", "l3_ha_network_type", Choice(&["", "local", "flat", "vlan", "gre", "vxlan", "geneve"]), "", Server, "Type of HA networks; empty is the default project network type."),
    opt("DEFAULT", "l3_ha_network_physical_name", Text, "", Server, "Physical network of HA networks, where their type needs one."),
    opt("DEFAULT", "base_mac", Mac, "fa:16:3e:00:00:00", Server, "MAC addresses begin with its first three bytes, or four if the fourth is not 00."),
    opt("DEFAULT", "dvr_base_mac", Mac, "fa:16:3f:00:00:00", NotYet("hosts of distributed routers need no Ethernet addresses of their own"), "As base_mac, for distributed hosts; must differ from it."),
    opt("DEFAULT", "router_scheduler_driver", Choice(SCHEDULERS), "neutron.scheduler.l3_agent_scheduler.LeastRoutersScheduler", Server, "How hosts are chosen for routers."),
    opt("DEFAULT", "router_auto_schedule", Bool, "true", Server, "Whether a new host is given copies of routers that have too few."),
    opt("DEFAULT", "allow_automatic_l3agent_failover", Bool, "false", NotYet("routers stay on dead hosts until an admin moves them"), "Whether routers move away from hosts that stay dead."),
    opt("DEFAULT", "agent_down_time", Seconds(1), "75", Server, "Seconds of silence after which a host counts as dead."),
    opt("DEFAULT", "enable_new_agents", Bool, "true", Server, "Whether a host that appears is eligible at once."),
    opt("DEFAULT", "enable_snat_by_default", Bool, "true", Server, "enable_snat of gateways, when the request does not say."),
    opt("DEFAULT", "max_routes", Int(0, MAX_U32), "30", Server, "Older name of quota_router_route in section [quotas], which counts where both are given."),
    opt("DEFAULT", "max_allowed_address_pair", Int(0, MAX_U32), "10", Server, "Allowed address pairs per port, at most."),
    opt("DEFAULT", "max_dns_nameservers", Int(0, MAX_U32), "5", Server, "DNS servers per subnet, at most."),
    opt("DEFAULT", "max_subnet_host_routes", Int(0, MAX_U32), "20", Server, "Host routes per subnet, at most."),
    opt("DEFAULT", "max_fixed_ips_per_port", Int(1, MAX_U32), "16", Server, "Addresses that one request can allocate for a port, at most."),
    opt("DEFAULT", "default_availability_zones", List, "", Server, "Availability zone hints of networks and routers, when the request has none."),
    opt("DEFAULT", "pagination_max_limit", Text, "-1", Server, "Largest page of a list; -1 or infinite is no limit."),
    opt("DEFAULT", "dns_domain", Text, "openstacklocal", NotYet("ports have no names in the DNS"), "Domain of the names that ports are given."),
    // neutron.conf [keystone_authtoken]: the server's way to Keystone.
    unset("keystone_authtoken", "auth_url", Url, Server, "URL of Keystone that the server asks."),
    Opt { older: &["auth_uri"], ..unset("keystone_authtoken", "www_authenticate_uri", Url, Server, "URL of Keystone that callers without a token are told. Unset: auth_url.") },
    Opt { older: &["auth_plugin"], ..opt("keystone_authtoken", "auth_type", Choice(&["password", "v3password", "v3applicationcredential"]), "password", Server, "How the server shows Keystone who it is.") },
    Opt { older: &["user_name", "admin_user"], ..unset("keystone_authtoken", "username", Text, Server, "The user that the server logs in as.") },
    unset("keystone_authtoken", "user_id", Text, Server, "The same, by id."),
    Opt { older: &["admin_password"], ..unset("keystone_authtoken", "password", Secret, Server, "Its password.") },
    unset("keystone_authtoken", "user_domain_name", Text, Server, "The domain of the user's name. Unset, as user_domain_id: the domain with id default."),
    unset("keystone_authtoken", "user_domain_id", Text, Server, "The same, by id."),
    Opt { older: &["tenant_name", "admin_tenant_name"], ..unset("keystone_authtoken", "project_name", Text, Server, "The project that the user has the role service on. Unset, as project_id: the user's roles on the whole system are used.") },
    Opt { older: &["tenant_id"], ..unset("keystone_authtoken", "project_id", Text, Server, "The same, by id.") },
    unset("keystone_authtoken", "project_domain_name", Text, Server, "The domain of the project's name. Unset, as project_domain_id: the domain with id default."),
    unset("keystone_authtoken", "project_domain_id", Text, Server, "The same, by id."),
    unset("keystone_authtoken", "application_credential_id", Text, Server, "The application credential that the server logs in with, instead of a user and a password."),
    unset("keystone_authtoken", "application_credential_secret", Secret, Server, "Its secret."),
    unset("keystone_authtoken", "cafile", Path, Server, "Certificates that Keystone's is signed by, in PEM. Unset: the system's."),
    opt("keystone_authtoken", "insecure", Bool, "false", Server, "Whether Keystone's certificate is believed unseen."),
    opt("keystone_authtoken", "token_cache_time", Int(-1, MAX_U32), "300", Server, "Seconds that a token is believed without asking Keystone again; a token that is revoked there works for so long. -1 or 0: every request is asked for."),
    opt("keystone_authtoken", "http_connect_timeout", Seconds(1), "10", Server, "Seconds that Keystone may take to answer a question."),
    opt("keystone_authtoken", "http_request_max_retries", Int(0, 10), "3", Server, "How often a question that got no answer is asked again."),
    opt("keystone_authtoken", "service_token_roles", List, "service", Server, "Roles one of which makes the token of a service that passes a request on count."),
    opt("keystone_authtoken", "service_token_roles_required", Bool, "false", Server, "Whether such a token without one of these roles is refused, instead of ignored."),
    opt("oslo_policy", "policy_file", Path, "policy.yaml", Server, "File whose rules replace Neutron's default ones; if not absolute, beside the configuration files. It is read again when it changes."),
    opt("database", "connection", Url, "sqlite:///$state_path/evergate.sqlite", Server, "Where the server keeps its state: sqlite:/// and the path of a file, or postgresql://user:password@host/database, which several servers may share."),
    opt("quotas", "default_quota", Int(-1, MAX_U32), "-1", Server, "Objects per project of a kind without an option of its own; -1 is any number."),
    opt("quotas", "quota_network", Int(-1, MAX_U32), "100", Server, "Networks per project; -1 is any number."),
    opt("quotas", "quota_subnet", Int(-1, MAX_U32), "100", Server, "Subnets per project; -1 is any number."),
    opt("quotas", "quota_port", Int(-1, MAX_U32), "500", Server, "Ports per project; -1 is any number."),
    opt("quotas", "quota_router", Int(-1, MAX_U32), "10", Server, "Routers per project; -1 is any number."),
    opt("quotas", "quota_floatingip", Int(-1, MAX_U32), "50", Server, "Floating IPs per project; -1 is any number."),
    opt("quotas", "quota_security_group", Int(-1, MAX_U32), "10", Server, "Security groups per project; -1 is any number."),
    opt("quotas", "quota_security_group_rule", Int(-1, MAX_U32), "100", Server, "Security group rules per project; -1 is any number."),
    opt("quotas", "quota_rbac_policy", Int(-1, MAX_U32), "10", Server, "RBAC policies per project; -1 is any number."),
    opt("quotas", "quota_router_route", Int(-1, MAX_U32), "30", Server, "Extra routes of each router; -1 is any number."),

    // ml2_conf.ini.
    opt("ml2", "type_drivers", ListOf(NETWORK_TYPES), "local,flat,vxlan", Server, "Network types that exist. Of them vxlan, flat and local are carried."),
    Opt { older: &["tenant_network_types"], ..opt("ml2", "project_network_types", ListOf(NETWORK_TYPES), "vxlan", Server, "Types that a project's network gets, in order of trial.") },
    opt("ml2", "mechanism_drivers", List, "", Server, "Accepted as it stands: every host's L2 is the same."),
    opt("ml2", "extension_drivers", List, "", Server, "Accepted as it stands: port_security is always there."),
    opt("ml2", "path_mtu", Int(0, MAX_U16), "0", Server, "Largest IP packet of the network under the tunnels, in bytes; 0 is global_physnet_mtu."),
    opt("ml2", "physical_network_mtus", Mtus, "", Server, "Largest IP packet of a physical network, in bytes, where it differs from global_physnet_mtu, as physnet1:9000."),
    opt("ml2", "overlay_ip_version", Int(4, 6), "4", NotYet("the MTU of tunnels is reckoned for IPv4"), "IP version of the network under the tunnels."),
    opt("ml2_type_flat", "flat_networks", List, "*", Server, "Physical networks that may be flat; * is any, empty is none."),
    opt("ml2_type_vxlan", "vni_ranges", VniRanges, "1:65535", Server, "VXLAN identifiers for networks whose maker does not name one."),

    // neutron.conf [AGENT], l3_agent.ini: the hosts.
    opt("agent", "report_interval", Seconds(1), "30", Host, "Seconds between two heartbeats to the server, at most; changes are reported at once."),
    opt("agent", "availability_zone", Text, "nova", Host, "Availability zone of this host's L3 agent."),
    opt("DEFAULT", "agent_mode", Choice(AGENT_MODES), "legacy", Host, "How routers are realised on the host."),
    opt("DEFAULT", "interface_driver", Choice(INTERFACE_DRIVERS), "linuxbridge", Host, "What plugs interfaces; both drivers mean the kernel bridge."),
    opt("DEFAULT", "ha_confs_path", Path, "$state_path/ha_confs", Host, "Directory of each HA router's keepalived.conf and state-change log."),
    // RFC 4861 section 6.2.1.
    opt("DEFAULT", "min_rtr_adv_interval", Int(3, 1350), "30", Host, "Shortest time in seconds between two unsolicited router advertisements; at most three quarters of the longest."),
    opt("DEFAULT", "max_rtr_adv_interval", Int(4, 1800), "100", Host, "Longest time in seconds between two unsolicited router advertisements; instances believe in the router for three times as long."),
    // The field of VRRP version 2 has eight bits.
    opt("DEFAULT", "ha_vrrp_advert_int", Int(1, 255), "2", Host, "Seconds between two VRRP advertisements."),
    opt("DEFAULT", "ha_vrrp_auth_type", Choice(&["AH", "PASS"]), "PASS", Host, "How advertisements are authenticated when there is a password."),
    unset("DEFAULT", "ha_vrrp_auth_password", Secret, Host, "Password of VRRP advertisements; its first eight bytes count."),
    opt("DEFAULT", "ha_vrrp_health_check_interval", Int(0, MAX_U32), "0", Host, "Seconds between two checks of the gateways by the active copy; 0 is no checks. Links are watched in any case."),
    opt("DEFAULT", "handle_internal_only_routers", Bool, "true", Host, "Whether routers without an external gateway are served."),
    opt("DEFAULT", "cleanup_on_shutdown", Bool, "false", Host, "Whether a clean stop also removes the routers' namespaces."),

    // openvswitch_agent.ini, linuxbridge_agent.ini.
    unset("ovs", "local_ip", Ip, Host, "Address that tunnels end at. Unset: the one that the host reaches the server from."),
    opt("ovs", "bridge_mappings", Mapping, "", Host, "Physical network to bridge, as physnet1:br-ex."),
    opt("agent", "tunnel_types", ListOf(&["gre", "vxlan", "geneve"]), "vxlan", Host, "Tunnel types; vxlan is the one that is spoken."),
    opt("agent", "vxlan_udp_port", Int(1, MAX_U16), "4789", Host, "UDP port of VXLAN."),
    opt("agent", "l2_population", Bool, "false", Host, "Shown in the API; forwarding entries always come from the server."),
    unset("vxlan", "local_ip", Ip, Host, "As [ovs] local_ip."),
    opt("vxlan", "enable_vxlan", Bool, "true", Host, "Whether this host has VXLAN networks at all."),
    unset("vxlan", "udp_dstport", Int(1, MAX_U16), Host, "As [agent] vxlan_udp_port."),
    opt("vxlan", "l2_population", Bool, "false", Host, "As [agent] l2_population."),
    opt("linux_bridge", "bridge_mappings", Mapping, "", Host, "Physical network to bridge, as physnet1:br-ex."),
    opt("linux_bridge", "physical_interface_mappings", Mapping, "", Host, "Physical network to interface, as physnet1:eth1."),

    // Accepted without effect: neutron.conf.
    inert("DEFAULT", "core_plugin", ONE_MODEL),
    inert("DEFAULT", "service_plugins", ONE_MODEL),
    inert("DEFAULT", "allow_overlapping_ips", "addresses of different projects may always overlap"),
    inert("DEFAULT", "host_dvr_for_dhcp", NO_DHCP),
    inert("keystone_authtoken", "memcached_servers", OWN_CACHE),
    inert("keystone_authtoken", "memcache_security_strategy", OWN_CACHE),
    inert_secret("keystone_authtoken", "memcache_secret_key", OWN_CACHE),
    inert("keystone_authtoken", "memcache_use_advanced_pool", OWN_CACHE),
    inert("keystone_authtoken", "memcache_pool_maxsize", OWN_CACHE),
    inert("keystone_authtoken", "memcache_pool_dead_retry", OWN_CACHE),
    inert("keystone_authtoken", "memcache_pool_socket_timeout", OWN_CACHE),
    inert("keystone_authtoken", "cache", OWN_CACHE),
    inert("keystone_authtoken", "auth_version", ONE_KEYSTONE),
    inert("keystone_authtoken", "identity_uri", ONE_KEYSTONE),
    inert("keystone_authtoken", "region_name", ONE_KEYSTONE),
    inert("keystone_authtoken", "interface", ONE_KEYSTONE),
    inert("keystone_authtoken", "service_type", ONE_KEYSTONE),
    inert("keystone_authtoken", "auth_section", ONE_KEYSTONE),
    inert("keystone_authtoken", "default_domain_id", ONE_KEYSTONE),
    inert("keystone_authtoken", "default_domain_name", ONE_KEYSTONE),
    inert("keystone_authtoken", "delay_auth_decision", "no request without a token gets further"),
    inert("keystone_authtoken", "include_service_catalog", "the catalog is not used"),
    inert("keystone_authtoken", "enforce_token_bind", "Keystone binds no tokens any more"),
    inert("keystone_authtoken", "certfile", "no client certificate is shown to Keystone"),
    inert("keystone_authtoken", "keyfile", "no client certificate is shown to Keystone"),
    inert("oslo_policy", "policy_dirs", ONE_POLICY),
    inert("oslo_policy", "policy_default_rule", ONE_POLICY),
    inert("oslo_policy", "enforce_scope", ONE_POLICY),
    inert("oslo_policy", "enforce_new_defaults", ONE_POLICY),
    inert("oslo_policy", "remote_content_type", ONE_POLICY),
    inert("oslo_policy", "remote_ssl_verify_server_crt", ONE_POLICY),
    inert("oslo_policy", "remote_ssl_ca_crt_file", ONE_POLICY),
    inert("ssl", "version", TLS_VERSIONS),
    inert("ssl", "ciphers", TLS_VERSIONS),
    inert("evergate", "host_token_file", "every host has a certificate of its own, and joins with a token"),
    inert("DEFAULT", "auth_strategy", CHOSEN_AUTH),
    inert("DEFAULT", "api_paste_config", ONE_MODEL),
    inert("DEFAULT", "api_extensions_path", ONE_MODEL),
    inert("DEFAULT", "api_workers", NO_WORKERS),
    inert("DEFAULT", "rpc_workers", NO_WORKERS),
    inert("DEFAULT", "rpc_state_report_workers", NO_WORKERS),
    inert("DEFAULT", "backlog", ONE_MODEL),
    inert("DEFAULT", "client_socket_timeout", ONE_MODEL),
    inert("DEFAULT", "allow_bulk", "bulk requests are always allowed"),
    inert("DEFAULT", "allow_sorting", "sorting is always allowed"),
    inert("DEFAULT", "allow_pagination", "paging is always allowed"),
    inert("DEFAULT", "min_l3_agents_per_router", "a router is made with as many copies as there are hosts"),
    inert("DEFAULT", "enable_services_on_agents_with_admin_state_down", "a host that is administratively down keeps what it has"),
    inert("DEFAULT", "network_scheduler_driver", NO_DHCP),
    inert("DEFAULT", "network_auto_schedule", NO_DHCP),
    inert("DEFAULT", "dhcp_agents_per_network", NO_DHCP),
    inert("DEFAULT", "dhcp_lease_duration", NO_DHCP),
    inert("DEFAULT", "dhcp_agent_notification", NO_DHCP),
    inert("DEFAULT", "dhcp_driver", NO_DHCP),
    inert("DEFAULT", "enable_isolated_metadata", NO_METADATA),
    inert("DEFAULT", "force_metadata", NO_METADATA),
    inert("DEFAULT", "external_dns_driver", "names are not published"),
    inert("DEFAULT", "vlan_transparent", NO_VLAN),
    inert("DEFAULT", "filter_validation", "unknown filters are ignored"),
    inert("DEFAULT", "setproctitle", ONE_MODEL),
    inert("DEFAULT", "ipam_driver", ONE_MODEL),
    inert("DEFAULT", "enable_default_route_ecmp", ONE_DEFAULT_ROUTE),
    inert("DEFAULT", "enable_default_route_bfd", ONE_DEFAULT_ROUTE),
    inert("DEFAULT", "enable_ndp_proxy_by_default", LATER_NDP),
    inert("DEFAULT", "notify_nova_on_port_status_changes", NO_NOVA),
    inert("DEFAULT", "notify_nova_on_port_data_changes", NO_NOVA),
    inert("DEFAULT", "send_events_interval", NO_NOVA),
    inert("DEFAULT", "nova_url", NO_NOVA),
    inert("DEFAULT", "nova_metadata_host", NO_METADATA),
    inert("DEFAULT", "nova_metadata_ip", NO_METADATA),
    inert_secret("DEFAULT", "metadata_proxy_shared_secret", NO_METADATA),
    unset("DEFAULT", "transport_url", Url, User::Nobody(NO_RABBIT), ""),
    inert("DEFAULT", "rpc_backend", NO_RABBIT),
    inert("DEFAULT", "rpc_response_timeout", NO_RABBIT),
    inert("DEFAULT", "rpc_response_max_timeout", NO_RABBIT),
    inert("DEFAULT", "control_exchange", NO_RABBIT),
    inert("DEFAULT", "executor_thread_pool_size", NO_RABBIT),
    inert("DEFAULT", "notification_driver", NO_RABBIT),
    inert("DEFAULT", "debug", LOGS),
    inert("DEFAULT", "verbose", LOGS),
    inert("DEFAULT", "log_dir", LOGS),
    inert("DEFAULT", "log_file", LOGS),
    inert("DEFAULT", "log_config_append", LOGS),
    inert("DEFAULT", "use_syslog", LOGS),
    inert("DEFAULT", "use_journal", LOGS),
    inert("DEFAULT", "use_stderr", LOGS),
    inert("DEFAULT", "default_log_levels", LOGS),
    inert("DEFAULT", "logging_context_format_string", LOGS),
    inert("database", "max_retries", "A lost database is looked for until it is back"),
    inert("database", "max_pool_size", "Writers take turns, and readers share a dozen connections"),
    inert("quotas", "quota_driver", ONE_MODEL),
    inert("quotas", "track_quota_usage", "use is always counted"),

    // Accepted without effect: [agent] of neutron.conf and of the L2 agents.
    inert("agent", "root_helper", "the host daemon runs as root"),
    inert("agent", "root_helper_daemon", "the host daemon runs as root"),
    inert("agent", "use_helper_for_ns_read", "the host daemon runs as root"),
    inert("agent", "log_agent_heartbeats", LOGS),
    inert("agent", "check_child_processes_interval", NO_CHILDREN),
    inert("agent", "check_child_processes_action", NO_CHILDREN),
    inert("agent", "kill_scripts_path", NO_CHILDREN),
    inert("agent", "use_random_fully", NO_IPTABLES),
    inert("agent", "comment_iptables_rules", NO_IPTABLES),
    inert("agent", "debug_iptables_rules", NO_IPTABLES),
    inert("agent", "extensions", "extensions of the agents are built in"),
    inert("agent", "enable_distributed_routing", "distributed routers need no help from the L2 agent"),
    inert("agent", "arp_responder", "ARP is answered from the server's entries where there are any"),
    inert("agent", "minimize_polling", "the kernel tells of new devices"),
    inert("agent", "polling_interval", "the kernel tells of new devices"),
    inert("agent", "ovsdb_monitor_respawn_interval", NO_OVS),
    inert("agent", "veth_mtu", "each network has its MTU"),
    inert("agent", "dont_fragment", "tunnel packets are never fragmented"),
    inert("agent", "tunnel_csum", "the kernel's default for VXLAN is used"),
    inert("agent", "drop_flows_on_start", NO_OVS),
    inert("agent", "explicitly_egress_direct", NO_OVS),
    inert("agent", "baremetal_smartnic", NO_OVS),
    inert("agent", "agent_type", NO_OVS),
    inert("agent", "quitting_rpc_timeout", NO_RABBIT),
    inert("agent", "dscp", "tunnel packets carry the default class"),
    inert("agent", "dscp_inherit", "tunnel packets carry the default class"),
    inert("agent", "prevent_arp_spoofing", NO_FILTER),
    inert("agent", "resource_versions", NO_RABBIT),

    // Accepted without effect: l3_agent.ini.
    inert("DEFAULT", "external_network_bridge", "external networks are reached through bridge_mappings"),
    inert("DEFAULT", "gateway_external_network_id", "a host may serve any number of external networks"),
    inert("DEFAULT", "router_id", "a host may serve any number of routers"),
    inert("DEFAULT", "use_namespaces", "every router has a namespace"),
    inert("DEFAULT", "router_delete_namespaces", "a router's namespace goes with it"),
    inert("DEFAULT", "ovs_use_veth", NO_OVS),
    inert("DEFAULT", "ovs_integration_bridge", NO_OVS),
    inert("DEFAULT", "network_device_mtu", "each network has its MTU"),
    inert("DEFAULT", "enable_metadata_proxy", NO_METADATA),
    inert("DEFAULT", "metadata_port", NO_METADATA),
    inert("DEFAULT", "metadata_access_mark", NO_METADATA),
    inert("DEFAULT", "metadata_proxy_socket", NO_METADATA),
    inert("DEFAULT", "metadata_proxy_user", NO_METADATA),
    inert("DEFAULT", "metadata_proxy_group", NO_METADATA),
    inert("DEFAULT", "external_ingress_mark", "no mark is needed"),
    inert("DEFAULT", "ipv6_gateway", NO_RA),
    inert("DEFAULT", "radvd_user", NO_RA),
    inert("DEFAULT", "ra_confs", NO_RA),
    inert("DEFAULT", "prefix_delegation_driver", NO_RA),
    inert("DEFAULT", "pd_confs", NO_RA),
    inert("DEFAULT", "vendor_pen", NO_RA),
    inert("DEFAULT", "per_router_log_files", LOGS),
    inert("DEFAULT", "router_log_files_in_ha_confs", LOGS),
    inert("DEFAULT", "periodic_interval", "changes are pushed to the hosts"),
    inert("DEFAULT", "periodic_fuzzy_delay", "changes are pushed to the hosts"),
    inert("DEFAULT", "enable_sg_arp_responder", NO_FILTER),
    inert("DEFAULT", "send_arp_for_ha", "a new active copy always announces its addresses"),
    inert("DEFAULT", "ha_keepalived_state_change_server_threads", NO_CHILDREN),
    inert("DEFAULT", "keepalived_use_no_track", NO_CHILDREN),
    inert("DEFAULT", "ha_conntrackd_enabled", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_hashsize", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_hashlimit", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_unix_backlog", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_socketbuffersize", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_socketbuffersize_max_grown", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_ipv4_mcast_addr", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_group", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_sndsocketbuffer", NO_CONNTRACKD),
    inert("DEFAULT", "ha_conntrackd_rcvsocketbuffer", NO_CONNTRACKD),

    // Accepted without effect: ml2_conf.ini, openvswitch_agent.ini, linuxbridge_agent.ini.
    inert("ml2", "external_network_type", "an external network's maker names its type"),
    inert("ml2", "tunnelled_network_rp_name", "no resource provider is reported"),
    inert("ml2_type_vlan", "network_vlan_ranges", NO_VLAN),
    inert("ml2_type_gre", "tunnel_id_ranges", NO_VLAN),
    inert("ml2_type_geneve", "vni_ranges", NO_VLAN),
    inert("ml2_type_geneve", "max_header_size", NO_VLAN),
    inert("ml2_type_vxlan", "vxlan_group", NO_MULTICAST),
    inert("ovs", "integration_bridge", NO_OVS),
    inert("ovs", "tunnel_bridge", NO_OVS),
    inert("ovs", "int_peer_patch_port", NO_OVS),
    inert("ovs", "tun_peer_patch_port", NO_OVS),
    inert("ovs", "enable_tunneling", NO_OVS),
    inert("ovs", "use_veth_interconnection", NO_OVS),
    inert("ovs", "datapath_type", NO_OVS),
    inert("ovs", "vhostuser_socket_dir", NO_OVS),
    inert("ovs", "of_interface", NO_OVS),
    inert("ovs", "of_listen_address", NO_OVS),
    inert("ovs", "of_listen_port", NO_OVS),
    inert("ovs", "of_connect_timeout", NO_OVS),
    inert("ovs", "of_request_timeout", NO_OVS),
    inert("ovs", "of_inactivity_probe", NO_OVS),
    inert("ovs", "ovsdb_interface", NO_OVS),
    inert("ovs", "ovsdb_connection", NO_OVS),
    inert("ovs", "ovsdb_connection_timeout", NO_OVS),
    inert("ovs", "ovsdb_timeout", NO_OVS),
    inert("ovs", "ovsdb_debug", NO_OVS),
    inert("ovs", "bridge_mac_table_size", NO_OVS),
    inert("ovs", "igmp_snooping_enable", NO_OVS),
    inert("ovs", "openflow_processed_per_port", NO_OVS),
    inert("ovs", "disable_packet_marking", NO_OVS),
    inert("ovs", "qos_meter_bandwidth", NO_OVS),
    inert("ovs", "resource_provider_bandwidths", "no resource provider is reported"),
    inert("vxlan", "vxlan_group", NO_MULTICAST),
    inert("vxlan", "multicast_ranges", NO_MULTICAST),
    inert("vxlan", "ttl", "the kernel's default for VXLAN is used"),
    inert("vxlan", "tos", "the kernel's default for VXLAN is used"),
    inert("vxlan", "arp_responder", "ARP is answered from the server's entries where there are any"),
    inert("vxlan", "udp_srcport_min", "the kernel's default for VXLAN is used"),
    inert("vxlan", "udp_srcport_max", "the kernel's default for VXLAN is used"),
    unset("securitygroup", "enable_security_group", Bool, User::Nobody(NO_FILTER), ""),
    inert("securitygroup", "firewall_driver", NO_FILTER),
    inert("securitygroup", "enable_ipset", NO_IPTABLES),
    inert("securitygroup", "permitted_ethertypes", NO_FILTER),
];

const SCHEDULERS: &[&str] = &[
    "neutron.scheduler.l3_agent_scheduler.LeastRoutersScheduler",
    "neutron.scheduler.l3_agent_scheduler.AZLeastRoutersScheduler",
    "neutron.scheduler.l3_agent_scheduler.ChanceScheduler",
];

/// Sections that other programs and libraries read from the same files, and why they are passed over.
pub static FOREIGN_SECTIONS: &[(&str, &str)] = &[
    ("nova", NO_NOVA),
    ("placement", NO_NOVA),
    ("ironic", NO_NOVA),
    ("designate", "names are not published"),
    ("oslo_concurrency", ONE_MODEL),
    ("oslo_messaging_rabbit", NO_RABBIT),
    ("oslo_messaging_amqp", NO_RABBIT),
    ("oslo_messaging_kafka", NO_RABBIT),
    ("oslo_messaging_notifications", NO_RABBIT),
    ("oslo_middleware", ONE_MODEL),
    ("oslo_limit", "quotas are built in"),
    ("oslo_reports", ONE_MODEL),
    ("oslo_versionedobjects", NO_RABBIT),
    ("healthcheck", ONE_MODEL),
    ("cors", ONE_MODEL),
    ("experimental", ONE_MODEL),
    ("service_providers", ONE_MODEL),
    ("privsep", "the host daemon runs as root"),
    ("privsep_ovs_vsctl", NO_OVS),
    ("privsep_namespace", "the host daemon runs as root"),
    ("privsep_conntrack", "the host daemon runs as root"),
    ("privsep_link", "the host daemon runs as root"),
    ("profiler", LOGS),
    ("network_log", NO_FILTER),
    ("ml2_sriov", NO_OVS),
    ("ovs_driver", NO_OVS),
    ("ovn", NO_OVN),
    ("ovn_nb_global", NO_OVN),
    ("dhcp", NO_DHCP),
    ("metadata_rate_limiting", NO_METADATA),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_option_is_listed_twice_and_every_default_is_a_possible_value() {
        let mut seen = BTreeSet::new();
        for o in OPTIONS {
            for name in o.older.iter().chain([&o.name]) {
                assert!(seen.insert((o.section, *name)), "[{}] {name} is listed twice", o.section);
            }
            assert_eq!(normal_section(o.section), o.section);
            if let Default::Text(text) = o.default {
                assert!(o.kind.parse(text).is_ok(), "[{}] {}: default '{text}'", o.section, o.name);
            }
            assert!(matches!(o.user, User::Nobody(_)) != o.help.ends_with('.'), "[{}] {}: help", o.section, o.name);
        }
    }

    #[test]
    fn an_option_is_found_by_its_older_name_and_in_a_section_of_any_case() {
        assert_eq!(find("ml2", "tenant_network_types").map(|o| o.name), Some("project_network_types"));
        assert_eq!(find("AGENT", "report_interval").map(|o| o.section), Some("agent"));
        assert!(find("default", "l3_ha").is_none());
    }
}
