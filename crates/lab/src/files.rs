//! The configuration files of each node, in the form in which the documents give them.
//!
//! They lie below the node's folder, as if that were its disk, and are seen by the node as
//! `/etc/neutron/…`. Times are short, so that a dead host shows within seconds; everything else is
//! what an operator would write.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::spec::{API_PORT, Node, PHYSICAL_NETWORK, Profile, Spec};

/// A host counts as dead after this many seconds without a report (`agent_down_time`), unless the lab differs.
pub const AGENT_DOWN_TIME_S: u64 = 5;

/// Writes what `node` needs on its disk before it starts.
///
/// # Errors
///
/// Names the file that could not be written.
pub(crate) fn write(spec: &Spec, node: Node, disk: &Path) -> Result<()> {
    put(disk, "network.ip", &node.network())?;
    put(disk, "sysctl", node.sysctls())?;
    for (name, text) in configuration(spec, node) {
        put(disk, &format!("etc/neutron/{name}"), &text)?;
    }
    Ok(())
}

fn put(disk: &Path, name: &str, text: &str) -> Result<()> {
    let path = disk.join(name);
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(disk))?;
        fs::write(&path, text)
    };
    write().with_context(|| format!("failed to write {}", path.display()))
}

/// `/etc/hosts` for every node.
pub(crate) fn hosts(spec: &Spec) -> String {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for node in spec.nodes() {
        if let Some(address) = node.underlay() {
            let _ = writeln!(text, "{address} {node}");
        }
    }
    text
}

/// The `--config-file` arguments with which a node's daemon is started.
pub(crate) fn config_files(node: Node) -> &'static [&'static str] {
    match node {
        Node::Outside | Node::Web => &[],
        Node::Controller => &["/etc/neutron/neutron.conf", "/etc/neutron/ml2_conf.ini"],
        Node::Network(_) | Node::Compute(_) => {
            &["/etc/neutron/neutron.conf", "/etc/neutron/openvswitch_agent.ini", "/etc/neutron/l3_agent.ini"]
        }
    }
}

/// The files below `/etc/neutron`, by name.
fn configuration(spec: &Spec, node: Node) -> Vec<(&'static str, String)> {
    let server = Node::Controller.underlay().map(|address| format!("https://{address}:{API_PORT}")).unwrap_or_default();
    match node {
        Node::Outside | Node::Web => Vec::new(),
        Node::Controller => {
            vec![("neutron.conf", controller_conf(spec, &server)), ("ml2_conf.ini", ml2_conf())]
        }
        Node::Network(_) | Node::Compute(_) => host_files(spec, node, &server),
    }
}

fn controller_conf(spec: &Spec, server: &str) -> String {
    let agent_down_time = spec.agent_down_time.unwrap_or(AGENT_DOWN_TIME_S);
    let distributed = match spec.profile {
        Profile::Ha => "False",
        Profile::DvrHa => "True",
    };
    format!(
        "\
[DEFAULT]
core_plugin = ml2
service_plugins = router
allow_overlapping_ips = True
router_distributed = {distributed}
l3_ha = True
l3_ha_net_cidr = 169.254.192.0/18
max_l3_agents_per_router = 3
agent_down_time = {agent_down_time}
bind_host = 0.0.0.0
bind_port = {API_PORT}
use_ssl = True

[quotas]
quota_network = -1
quota_subnet = -1
quota_port = -1
quota_router = -1
quota_floatingip = -1

[evergate]
public_url = {server}
"
    )
}

fn ml2_conf() -> String {
    format!(
        "\
[ml2]
type_drivers = flat,vxlan
tenant_network_types = vxlan
mechanism_drivers = openvswitch,l2population
extension_drivers = port_security

[ml2_type_flat]
flat_networks = {PHYSICAL_NETWORK}

[ml2_type_vxlan]
vni_ranges = 1:4000
"
    )
}

/// What a host is: the daemon's roles, and `agent_mode`.
fn roles(profile: Profile, node: Node) -> (&'static str, &'static str) {
    match (profile, node) {
        (Profile::Ha, Node::Network(_)) => ("l2,l3", "legacy"),
        (Profile::Ha, _) => ("l2", "legacy"),
        (Profile::DvrHa, Node::Network(_)) => ("l2,l3", "dvr_snat"),
        (Profile::DvrHa, _) => ("l2,l3", "dvr"),
    }
}

fn host_files(spec: &Spec, node: Node, server: &str) -> Vec<(&'static str, String)> {
    let (roles, mode) = roles(spec.profile, node);
    let distributed = match spec.profile {
        Profile::Ha => "",
        Profile::DvrHa => "enable_distributed_routing = True\n",
    };
    let local_ip = node.underlay().map(|address| address.to_string()).unwrap_or_default();
    let bfd = spec.bfd_interval_ms.map(|ms| format!("bfd_interval_ms = {ms}\n")).unwrap_or_default();
    let vrrp = spec.vrrp3_interval_ms;
    let vrrp = vrrp.map(|ms| format!("vrrp_version = 3\nvrrp_advert_interval_ms = {ms}\n")).unwrap_or_default();
    let neutron = format!(
        "\
[DEFAULT]
host = {node}

[agent]
report_interval = 1

[evergate]
server_url = {server}
roles = {roles}
{bfd}{vrrp}"
    );
    let openvswitch = format!(
        "\
[ovs]
local_ip = {local_ip}
bridge_mappings = {PHYSICAL_NETWORK}:br-ex

[agent]
{distributed}tunnel_types = vxlan
l2_population = True

[securitygroup]
firewall_driver = iptables_hybrid
"
    );
    let advert_int = spec.advert_int.map(|seconds| format!("ha_vrrp_advert_int = {seconds}\n")).unwrap_or_default();
    let check =
        spec.health_check_interval.map(|s| format!("ha_vrrp_health_check_interval = {s}\n")).unwrap_or_default();
    let password = if spec.vrrp3_interval_ms.is_some() { "" } else { "ha_vrrp_auth_password = password\n" };
    let l3 = format!(
        "\
[DEFAULT]
{password}{advert_int}{check}interface_driver = openvswitch
external_network_bridge =
agent_mode = {mode}
"
    );
    vec![("neutron.conf", neutron), ("openvswitch_agent.ini", openvswitch), ("l3_agent.ini", l3)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::example;

    #[test]
    fn every_file_a_daemon_is_pointed_to_is_written() {
        for node in example().nodes() {
            let written: Vec<_> = configuration(&example(), node).into_iter().map(|(name, _)| name).collect();
            let wanted: Vec<_> = config_files(node).iter().filter_map(|path| path.rsplit('/').next()).collect();
            assert_eq!(written, wanted, "{node}");
        }
    }

    #[test]
    fn the_advertisement_interval_is_written_only_when_asked_for() {
        let text = |spec: &Spec| host_files(spec, Node::Network(1), "").pop().unwrap().1;
        assert!(!text(&example()).contains("advert_int"));
        let spec = Spec { advert_int: Some(1), ..example() };
        assert!(text(&spec).contains("ha_vrrp_advert_int = 1\n"));
    }

    #[test]
    fn gateways_are_checked_only_when_asked_for() {
        let text = |spec: &Spec| host_files(spec, Node::Network(1), "").pop().unwrap().1;
        assert!(!text(&example()).contains("health_check"));
        let spec = Spec { health_check_interval: Some(2), ..example() };
        assert!(text(&spec).contains("ha_vrrp_health_check_interval = 2\n"));
    }

    #[test]
    fn a_silent_host_counts_as_dead_within_seconds_unless_asked_otherwise() {
        let text = |spec: &Spec| configuration(spec, Node::Controller).remove(0).1;
        assert!(text(&example()).contains("agent_down_time = 5\n"));
        let spec = Spec { agent_down_time: Some(20), ..example() };
        assert!(text(&spec).contains("agent_down_time = 20\n"));
    }

    #[test]
    fn bfd_is_left_at_its_default_unless_asked_for() {
        let text = |spec: &Spec| host_files(spec, Node::Network(1), "").remove(0).1;
        assert!(!text(&example()).contains("bfd"));
        let spec = Spec { bfd_interval_ms: Some(0), ..example() };
        assert!(text(&spec).ends_with("roles = l2,l3\nbfd_interval_ms = 0\n"));
    }

    #[test]
    fn version_3_comes_with_its_interval_and_without_a_password() {
        let files = |spec: &Spec| host_files(spec, Node::Network(1), "");
        assert!(files(&example()).pop().unwrap().1.contains("ha_vrrp_auth_password = password\n"));
        let spec = Spec { vrrp3_interval_ms: Some(100), ..example() };
        assert!(files(&spec)[0].1.ends_with("vrrp_version = 3\nvrrp_advert_interval_ms = 100\n"));
        assert!(!files(&spec).pop().unwrap().1.contains("password"));
    }

    #[test]
    fn the_distributed_profile_says_what_the_documents_say() {
        let spec = Spec { profile: Profile::DvrHa, ..example() };
        let text = |node, n: usize| configuration(&spec, node).remove(n).1;
        assert!(text(Node::Controller, 0).contains("router_distributed = True\n"));
        assert!(text(Node::Network(1), 2).contains("agent_mode = dvr_snat\n"));
        assert!(text(Node::Compute(1), 2).contains("agent_mode = dvr\n"));
        assert!(text(Node::Compute(1), 1).contains("[agent]\nenable_distributed_routing = True\n"));
        assert!(configuration(&example(), Node::Compute(1)).iter().all(|(_, text)| !text.contains("distributed")));
    }

    #[test]
    fn hosts_know_each_other_by_name() {
        assert!(hosts(&example()).contains("10.60.0.11 net1\n"));
    }
}
