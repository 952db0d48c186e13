//! The plan of a lab: its nodes, their places and their addresses. Pure; nothing here touches the machine.
//!
//! ```text
//!   underlay 10.60.0.0/16 ──┬──────────┬───── … ──┬──────── …
//!                           │ eth0     │ eth0     │ eth0
//!                       controller   net1…      cmp1…
//!                                      │ eth1     │ eth1   (in the operator's bridge br-ex)
//!   provider 203.0.113.0/24 ───────────┴───── … ──┴──────── … ──┐ eth0 .254
//!                                                            outside
//!   internet 198.51.100.0/24 ───────────────────────────────────┘ eth1 .1
//!                           └── web .10
//! ```
//!
//! Every address is in a namespace of the lab, so two labs may use the same ones; only namespace names
//! are shared by the machine, and they carry the lab's name.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Most hosts of either kind: the third octet of an address tells the kinds apart.
const MOST_HOSTS: u16 = 200;

/// Port of the API, and of everything else the server serves.
pub const API_PORT: u16 = 9696;
/// The web server's address, outside of everything.
pub const WEB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The provider's router, to which every virtual router's default route points.
pub const PROVIDER_GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// The provider network, which projects see as their external network.
pub const PROVIDER_CIDR: &str = "203.0.113.0/24";
/// Name of the provider network in configuration files (`flat_networks`, `bridge_mappings`).
pub const PHYSICAL_NETWORK: &str = "external";

/// What a lab consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name, which the names of its namespaces carry.
    pub name: String,
    /// How many hosts run routers.
    pub network_hosts: u16,
    /// How many hosts run instances only.
    pub compute_hosts: u16,
    /// `ha_vrrp_advert_int` in the hosts' `l3_agent.ini`, in seconds; without it, the default holds.
    pub advert_int: Option<u8>,
    /// Speaks VRRP version 3, which knows no password, at this interval (`vrrp_advert_interval_ms`).
    #[serde(default)]
    pub vrrp3_interval_ms: Option<u16>,
    /// `bfd_interval_ms` in the hosts' `neutron.conf`; 0: no BFD, so that VRRP alone notices a dead host.
    /// Without it, the default holds.
    #[serde(default)]
    pub bfd_interval_ms: Option<u16>,
    /// `ha_vrrp_health_check_interval` in the hosts' `l3_agent.ini`, in seconds; without it gateways are not asked.
    #[serde(default)]
    pub health_check_interval: Option<u8>,
    /// `agent_down_time` in the server's `neutron.conf`, in seconds; without it,
    /// [`AGENT_DOWN_TIME_S`](crate::AGENT_DOWN_TIME_S).
    #[serde(default)]
    pub agent_down_time: Option<u64>,
    /// What kind of deployment the hosts' and the server's files describe.
    #[serde(default)]
    pub profile: Profile,
    /// The `evergate` executable that the nodes run.
    pub evergate: PathBuf,
    /// The `openstack` client's executable, if it is known.
    pub client: Option<PathBuf>,
}

impl Spec {
    /// Three network hosts and two compute hosts with default settings, running the given executable.
    pub fn new(name: &str, evergate: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            network_hosts: 3,
            compute_hosts: 2,
            advert_int: None,
            vrrp3_interval_ms: None,
            bfd_interval_ms: None,
            health_check_interval: None,
            agent_down_time: None,
            profile: Profile::Ha,
            evergate,
            client: None,
        }
    }

    /// Refuses what could not be built, or could not be told apart from another lab.
    ///
    /// # Errors
    ///
    /// Says which value is impossible, and why.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        for (what, count) in [("network", self.network_hosts), ("compute", self.compute_hosts)] {
            if count > MOST_HOSTS {
                bail!("{count} {what} hosts are too many: a lab's addresses are enough for {MOST_HOSTS}");
            }
        }
        if self.advert_int == Some(0) {
            bail!("an advertisement interval of 0 s is not possible: VRRP version 2 counts whole seconds from 1");
        }
        Ok(())
    }

    /// Every node, in the order in which they are started.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes = vec![Node::Outside, Node::Web, Node::Controller];
        nodes.extend(self.hosts());
        nodes
    }

    /// The nodes that run `evergate host`.
    pub fn hosts(&self) -> Vec<Node> {
        let network = (1..=self.network_hosts).map(Node::Network);
        network.chain((1..=self.compute_hosts).map(Node::Compute)).collect()
    }

    /// Finds a node by its name.
    ///
    /// # Errors
    ///
    /// Says which nodes there are.
    pub fn node(&self, name: &str) -> Result<Node> {
        let nodes = self.nodes();
        if let Some(node) = nodes.iter().find(|node| node.to_string() == name) {
            return Ok(*node);
        }
        let names = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        bail!("lab '{}' has no node '{name}'; its nodes: {names}", self.name);
    }

    /// The machine's name for the network namespace of a node or switch.
    pub fn netns(&self, what: impl fmt::Display) -> String {
        format!("{}{what}", netns_prefix(&self.name))
    }
}

/// A deployment that the documents describe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// HA routers on the network hosts.
    #[default]
    Ha,
    /// Distributed HA routers: routing and floating IPs on the compute hosts, source NAT on the network hosts.
    DvrHa,
}

/// Start of the names of all network namespaces of a lab.
pub fn netns_prefix(lab: &str) -> String {
    format!("eglab-{lab}-")
}

/// Refuses a lab name that would not stay apart from another lab's.
///
/// # Errors
///
/// Says what a name may look like.
pub fn check_name(name: &str) -> Result<()> {
    // No '-': lab 'a' would own the namespaces of lab 'a-b' by their common start.
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > 24 || !name.chars().all(fine) {
        bail!("'{name}' cannot name a lab: use up to 24 lower-case letters, digits and '_'");
    }
    Ok(())
}

/// A machine of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// The provider's router.
    Outside,
    /// A web server in the world behind it.
    Web,
    /// Runs `evergate server`.
    Controller,
    /// Runs `evergate host` for routers and networks; numbered from 1.
    Network(u16),
    /// Runs `evergate host` for networks only, and instances; numbered from 1.
    Compute(u16),
}

impl Node {
    /// Tells whether the node runs `evergate host`.
    pub const fn is_host(self) -> bool {
        matches!(self, Self::Network(_) | Self::Compute(_))
    }

    /// The node's address on the underlay: where tunnels end and the server listens.
    pub fn underlay(self) -> Option<Ipv4Addr> {
        let (kind, number) = match self {
            Self::Outside | Self::Web => return None,
            Self::Controller => (0, 1),
            Self::Network(number) => (0, 10 + number),
            Self::Compute(number) => (1, 10 + number),
        };
        // Lossless: `Spec::check` keeps numbers at or below MOST_HOSTS.
        Some(Ipv4Addr::new(10, 60, kind, number as u8))
    }

    /// The switches the node is plugged into, and by which of its interfaces.
    pub const fn plugs(self) -> &'static [(Switch, &'static str)] {
        match self {
            Self::Outside => &[(Switch::Provider, "eth0"), (Switch::Internet, "eth1")],
            Self::Web => &[(Switch::Internet, "eth0")],
            Self::Controller => &[(Switch::Underlay, "eth0")],
            Self::Network(_) | Self::Compute(_) => &[(Switch::Underlay, "eth0"), (Switch::Provider, "eth1")],
        }
    }

    /// The node's own network configuration, as lines of `ip` commands run when it starts.
    pub fn network(self) -> String {
        let mut lines = vec!["link set lo up".to_owned()];
        for (_, interface) in self.plugs() {
            lines.push(format!("link set {interface} up"));
        }
        if let Some(address) = self.underlay() {
            lines.push(format!("address add {address}/16 dev eth0"));
        }
        match self {
            Self::Outside => {
                lines.push(format!("address add {PROVIDER_GATEWAY}/24 dev eth0"));
                lines.push("address add 198.51.100.1/24 dev eth1".to_owned());
            }
            Self::Web => {
                lines.push(format!("address add {WEB}/24 dev eth0"));
                lines.push("route add default via 198.51.100.1".to_owned());
            }
            Self::Controller => {}
            // The bridge that an operator makes for `bridge_mappings`, with the uplink in it.
            Self::Network(_) | Self::Compute(_) => {
                lines.push("link add br-ex type bridge forward_delay 0".to_owned());
                lines.push("link set eth1 master br-ex".to_owned());
                lines.push("link set br-ex up".to_owned());
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    /// Kernel settings below `/proc/sys/net`, a line each.
    pub const fn sysctls(self) -> &'static str {
        match self {
            Self::Outside => "ipv4/ip_forward=1\n",
            Self::Web | Self::Controller => "",
            // Bridged frames need not pass the host's own packet filter.
            Self::Network(_) | Self::Compute(_) => {
                "bridge/bridge-nf-call-iptables=0\nbridge/bridge-nf-call-ip6tables=0\nbridge/bridge-nf-call-arptables=0\n"
            }
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("outside"),
            Self::Web => f.write_str("web"),
            Self::Controller => f.write_str("controller"),
            Self::Network(number) => write!(f, "net{number}"),
            Self::Compute(number) => write!(f, "cmp{number}"),
        }
    }
}

/// A switch of the lab: a namespace with a bridge in it and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Switch {
    /// Carries tunnels and the server's traffic.
    Underlay,
    /// The provider's network, which projects use as their external network.
    Provider,
    /// The world behind the provider's router.
    Internet,
}

impl Switch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Underlay, Self::Provider, Self::Internet];

    const fn name(self) -> &'static str {
        match self {
            Self::Underlay => "underlay",
            Self::Provider => "provider",
            Self::Internet => "internet",
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A link of a host that can be cut or made to lose packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// `eth0`: tunnels and the server.
    Underlay,
    /// `eth1`: the provider network.
    Uplink,
}

impl Link {
    /// The switch at the far end.
    pub const fn switch(self) -> Switch {
        match self {
            Self::Underlay => Switch::Underlay,
            Self::Uplink => Switch::Provider,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Underlay => "underlay",
            Self::Uplink => "uplink",
        })
    }
}

#[cfg(test)]
pub(crate) fn example() -> Spec {
    Spec::new("t", "/opt/evergate".into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_that_could_be_mistaken_for_another_labs_are_refused() {
        for bad in ["", "a-b", "A", "a/b", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("test_42").unwrap();
    }

    #[test]
    fn no_two_nodes_share_an_address_even_in_the_largest_lab() {
        let spec = Spec { network_hosts: MOST_HOSTS, compute_hosts: MOST_HOSTS, ..example() };
        spec.check().unwrap();
        let addresses: Vec<_> = spec.nodes().into_iter().filter_map(Node::underlay).collect();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
        assert_eq!(addresses.len(), 2 * usize::from(MOST_HOSTS) + 1);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        assert!(Spec { network_hosts: MOST_HOSTS + 1, ..example() }.check().is_err());
        assert!(Spec { advert_int: Some(0), ..example() }.check().is_err());
    }

    #[test]
    fn an_unknown_node_is_answered_with_the_known_ones() {
        let error = example().node("net4").unwrap_err().to_string();
        assert!(error.contains("net1, net2, net3, cmp1, cmp2"), "{error}");
        assert_eq!(example().node("net3").unwrap(), Node::Network(3));
    }

    #[test]
    fn a_port_of_a_switch_fits_an_interface_name() {
        let spec = Spec { network_hosts: MOST_HOSTS, compute_hosts: MOST_HOSTS, ..example() };
        assert!(spec.nodes().iter().all(|node| node.to_string().len() <= 15));
    }
}
