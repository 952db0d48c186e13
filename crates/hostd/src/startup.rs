//! What is found out at start: what this host lacks, what stands in for what, where tunnels end.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;

use anyhow::Context;
use evergate_config::HostSettings;
use evergate_config::settings::InterfaceDriver;
use evergate_dataplane::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable};
use evergate_dataplane::state::{BridgePort, Link, LinkKind, OWNER_MARK};
use evergate_dataplane::{Netns, Op};

use crate::view;
use crate::worker::Machine;

/// The capabilities without which nothing can be done, by bit (`linux/capability.h`).
const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];

/// Refuses to start without the permissions that everything here needs.
pub fn check_permissions() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("failed to read /proc/self/status")?;
    let missing = missing_capabilities(&status);
    anyhow::ensure!(
        missing.is_empty(),
        "the host daemon needs {} to make network namespaces and devices: run it as root",
        missing.join(", ")
    );
    Ok(())
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    let effective = u64::from_str_radix(effective.trim(), 16).unwrap_or(0);
    NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

/// What the operator should know about these settings on this host.
pub fn notes(settings: &HostSettings) -> Vec<String> {
    let mut notes = Vec::new();
    if settings.interface_driver == InterfaceDriver::OpenVSwitch {
        // `show` has a line of its own for it.
        tracing::info!("the networks are carried by the {}", view::driver(settings.interface_driver));
    }
    if settings.tunnel_types.is_empty() {
        notes.push("there are no tunnels on this host: tunnel_types is empty, or enable_vxlan is off".into());
    }
    if let Some(script) = &settings.ha_vrrp_health_check_script
        && !script.is_file()
    {
        let script = script.display();
        notes.push(format!("ha_vrrp_health_check_script {script} is no file: every check of gateways will fail"));
    }
    notes.iter().for_each(|note| tracing::info!("{note}"));
    notes
}

/// Finds the address of this host that leads to the server: where its tunnels end unless `local_ip` says
/// otherwise. Nothing is sent.
pub fn address_towards(url: &str) -> anyhow::Result<IpAddr> {
    let server = socket_address(url)?;
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).context("failed to make a socket")?;
    socket.connect(server).with_context(|| format!("failed to find a route to {server}"))?;
    let address = socket.local_addr().context("failed to read the socket's address")?.ip();
    anyhow::ensure!(!address.is_loopback(), "the server {url} is on this very host: set local_ip");
    Ok(address)
}

fn socket_address(url: &str) -> anyhow::Result<SocketAddr> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let mut addresses =
        authority.to_socket_addrs().with_context(|| format!("failed to find the address of {authority}"))?;
    addresses.next().with_context(|| format!("{authority} has no address"))
}

/// Tries, in a namespace of its own, what routers and networks need of the kernel; says what it lacks.
pub fn probe(machine: &mut dyn Machine) -> Vec<String> {
    let name = format!("evergate-probe-{}", std::process::id());
    let netns = Netns::Named(name.clone());
    let alias = format!("{OWNER_MARK} probe");
    let add = Op::AddNetns { name: name.clone(), alias: alias.clone() };
    let mut lacks = try_all(machine, &[("network namespaces: there will be no routers", add)]);
    if lacks.is_empty() {
        lacks = try_all(machine, &probes(&netns, &alias));
        lacks.extend(try_all(machine, &[("removing network namespaces", Op::DeleteNetns { name })]));
    }
    if Path::new("/proc/sys/net/ipv6").exists() {
        return lacks;
    }
    lacks.push("this kernel has no IPv6: routers forward IPv4 alone".into());
    lacks
}

fn try_all(machine: &mut dyn Machine, probes: &[(&str, Op)]) -> Vec<String> {
    let ops: Vec<Op> = probes.iter().map(|(_, op)| op.clone()).collect();
    let results = machine.apply(&ops);
    let failed = probes.iter().zip(results).filter_map(|((what, _), result)| Some((what, result.err()?)));
    failed.map(|(what, error)| format!("this host lacks {what} ({error:#})")).collect()
}

fn probes(netns: &Netns, alias: &str) -> Vec<(&'static str, Op)> {
    let link = |kind, master: Option<&str>, port| Link {
        kind,
        alias: Some(alias.to_owned()),
        up: true,
        mtu: None,
        mac: None,
        master: master.map(str::to_owned),
        port,
    };
    let add = |name: &str, link, peer_link: Option<Link>| Op::AddLink {
        netns: netns.clone(),
        name: name.to_owned(),
        link,
        peer_link: peer_link.map(Box::new),
    };
    let vxlan = LinkKind::Vxlan { vni: 1, local: Ipv4Addr::LOCALHOST.into(), port: 4789 };
    let suppress = BridgePort { learning: false, neigh_suppress: true, isolated: true };
    let veth = |peer: &str| LinkKind::Veth { peer: Some((netns.clone(), peer.to_owned())) };
    vec![
        ("bridges: there will be no networks", add("probe-br", link(LinkKind::Bridge, None, None), None)),
        (
            "veth pairs: there will be no routers",
            add("probe-a", link(veth("probe-b"), None, None), Some(link(veth("probe-a"), None, None))),
        ),
        (
            "VXLAN devices: networks of type vxlan will not leave it",
            add("probe-vxlan", link(vxlan, Some("probe-br"), Some(suppress)), None),
        ),
        (
            "nftables with NAT: neither source NAT nor floating IPs will work",
            Op::ReplaceNft { netns: netns.clone(), table: probe_table() },
        ),
    ]
}

/// Uses what the routers' tables use: a map, and translation of source and destination.
fn probe_table() -> NftTable {
    let map = "probe".to_owned();
    let chain = |hook, priority, statement| NftChain {
        kind: NftChainKind::Nat,
        hook,
        priority,
        drop_by_default: false,
        rules: vec![NftRule { statements: vec![statement] }],
    };
    let element = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    NftTable {
        family: NftFamily::Ip,
        maps: BTreeMap::from([(map.clone(), NftMap::Addresses([element].into()))]),
        chains: BTreeMap::from([
            ("in".into(), chain(NftHook::Prerouting, -100, NftStatement::DnatByMap { map: map.clone() })),
            ("out".into(), chain(NftHook::Postrouting, 100, NftStatement::SnatByMap { map })),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n").len(), 3);
        assert_eq!(missing_capabilities("CapEff:\t0000000000003000\n"), ["CAP_SYS_ADMIN"]);
    }

    #[test]
    fn a_url_names_a_socket_address() {
        assert_eq!(socket_address("http://192.0.2.1:9696").unwrap().to_string(), "192.0.2.1:9696");
        assert_eq!(socket_address("http://192.0.2.1/x").unwrap().to_string(), "192.0.2.1:80");
        assert_eq!(socket_address("http://[2001:db8::1]:9696").unwrap().to_string(), "[2001:db8::1]:9696");
        assert_eq!(socket_address("http://[2001:db8::1]").unwrap().to_string(), "[2001:db8::1]:80");
    }

    #[test]
    fn a_server_on_this_host_gives_no_tunnel_address() {
        let error = address_towards("http://127.0.0.1:9696").unwrap_err().to_string();
        assert!(error.contains("local_ip"), "{error}");
    }
}
