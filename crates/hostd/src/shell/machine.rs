//! The real kernel, as the worker sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use evergate_dataplane::state::TABLE_MAIN;
use evergate_dataplane::{KernelState, Netns, Op, View};
use evergate_kernel::Kernel;
use evergate_kernel::rt::{self, BatchSocket, Filter, NetnsFd, PacketSocket};
use evergate_model::Mac;
use evergate_vrrp::announce;

use crate::worker::Machine;

/// Neighbours that are announced per round: a host that is given a network of thousands of ports knows of
/// no earlier owner of any of them.
const MOST_ANNOUNCED: usize = 64;

/// How often an external address is announced, and the pause between; Neutron's figures.
const ANNOUNCEMENTS: u32 = 3;
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(1);

/// The kernel of this host.
#[derive(Debug)]
pub struct RealMachine {
    kernel: Kernel,
    netns_path: PathBuf,
}

impl RealMachine {
    /// Opens it.
    pub fn open(netns_path: &Path) -> anyhow::Result<Self> {
        Ok(Self { kernel: Kernel::open(netns_path)?, netns_path: netns_path.to_owned() })
    }

    /// Tells the instances on a bridge who has an address now.
    ///
    /// A bridge with neighbour suppression keeps gratuitous ARP from the tunnel, so an instance elsewhere
    /// would believe in an earlier owner (of a gateway address, say, whose router was replaced) until its
    /// own entry has aged: most of a minute. Each host learns of the new owner from the server, and can
    /// say so itself. Sent by the bridge, it reaches the ports here and not the tunnel.
    fn announce(&mut self, link: &str, ip: IpAddr, mac: Mac) -> anyhow::Result<()> {
        let index = self.kernel.link_index(&Netns::Host, link)?.with_context(|| format!("there is no link {link}"))?;
        let socket = PacketSocket::open(&NetnsFd::host()?, index, Filter::SendOnly)?;
        socket.send(&announce::frame(mac.0, ip)).with_context(|| format!("failed to send on {link}"))
    }

    /// Tells the external network of addresses that came here: it may know them at another host.
    fn announce_outside<E>(&self, ops: &[Op], results: &[Result<(), E>]) {
        let mut new: BTreeMap<(&str, &str), Vec<IpAddr>> = BTreeMap::new();
        let done = ops.iter().zip(results).filter(|(_, result)| result.is_ok()).map(|(op, _)| op);
        for (netns, link, ip) in done.filter_map(new_outside) {
            new.entry((netns, link)).or_default().push(ip);
        }
        for ((netns, link), ips) in new {
            match outside(&self.netns_path.join(netns), link) {
                Ok((socket, mac)) => announce_repeatedly(socket, mac, ips),
                Err(error) => tracing::warn!(netns, "external addresses are not announced: {error:#}"),
            }
        }
    }
}

/// An external address that leads here from now on: the namespace and (the start of the name of) the device
/// that answer for it outside. What follows the role of an HA router is not applied here: the keeper announces it.
#[expect(clippy::wildcard_enum_match_arm, reason = "two ops of many are looked for")]
fn new_outside(op: &Op) -> Option<(&str, &str, IpAddr)> {
    match op {
        // A floating IP that is led to a router.
        Op::AddRoute { netns: Netns::Named(netns), route } => {
            let is_one = route.table == TABLE_MAIN && route.via.is_some() && route.destination.prefix_len() == 32;
            (is_one && netns.starts_with("fip-")).then_some((netns.as_str(), "fg-", route.destination.addr()))
        }
        Op::AddAddress { netns: Netns::Named(netns), address } => {
            let link = address.link.as_str();
            link.starts_with("qg-").then_some((netns.as_str(), link, address.net.addr()))
        }
        _ => None,
    }
}

impl Machine for RealMachine {
    fn view(&mut self) -> anyhow::Result<View> {
        let links = link_names()?;
        let is_bridge = |name: &&String| Path::new("/sys/class/net").join(name).join("bridge").is_dir();
        let bridges: BTreeSet<String> = links.iter().filter(is_bridge).cloned().collect();
        let bridge_uplinks = bridges.iter().filter(|name| !name.starts_with("brq")).map(|name| {
            let ports = fs::read_dir(Path::new("/sys/class/net").join(name).join("brif"));
            let names = ports.into_iter().flatten().filter_map(|port| port.ok()?.file_name().into_string().ok());
            // Taps are ours or instances'.
            (name.clone(), names.filter(|port| !port.starts_with("tap")).collect())
        });
        let bridge_uplinks = bridge_uplinks.collect();
        let filters = fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
        Ok(View {
            links,
            bridges,
            bridge_uplinks,
            has_ipv6: Path::new("/proc/sys/net/ipv6").is_dir(),
            bridge_netfilter: filters.is_ok_and(|value| value.trim() != "0"),
            ..View::default()
        })
    }

    fn has_address(&mut self, ip: IpAddr) -> bool {
        !UdpSocket::bind((ip, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
    }

    fn has_netns(&mut self, name: &str) -> bool {
        self.netns_path.join(name).exists()
    }

    fn observe(&mut self, desired: &KernelState) -> anyhow::Result<KernelState> {
        Ok(self.kernel.observe(desired)?)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "one op of many is looked for")]
    fn apply(&mut self, ops: &[Op]) -> Vec<anyhow::Result<()>> {
        let results = self.kernel.apply(ops);
        let done = ops.iter().zip(&results).filter(|(_, result)| result.is_ok());
        let neighbours = done.filter_map(|(op, _)| match op {
            Op::SetNeighbour { netns: Netns::Host, link, ip, mac } => Some((link, *ip, *mac)),
            _ => None,
        });
        for (link, ip, mac) in neighbours.take(MOST_ANNOUNCED) {
            if let Err(error) = self.announce(link, ip, mac) {
                tracing::debug!(%ip, %mac, "not announced: {error:#}");
            }
        }
        self.announce_outside(ops, &results);
        results.into_iter().map(|result| Ok(result?)).collect()
    }

    fn encode(&mut self, op: &Op) -> anyhow::Result<Vec<u8>> {
        Ok(self.kernel.encode(op)?)
    }

    fn link_index(&mut self, netns: &Netns, link: &str) -> anyhow::Result<Option<u32>> {
        Ok(self.kernel.link_index(netns, link)?)
    }

    fn paths(&mut self) -> anyhow::Result<BTreeMap<u32, IpAddr>> {
        Ok(rt::list_paths(&mut BatchSocket::open(&NetnsFd::host()?)?)?)
    }
}

/// A namespace's device on its external network, to send on, and its Ethernet address.
fn outside(netns: &Path, link: &str) -> anyhow::Result<(PacketSocket, Mac)> {
    let netns = NetnsFd::open(netns)?;
    let links = netns.run(link_names)??;
    let name = links.iter().find(|name| name.starts_with(link)).with_context(|| format!("it has no {link} device"))?;
    let found = rt::link_mac(&mut BatchSocket::open(&netns)?, name)?;
    let (index, mac) = found.with_context(|| format!("its device {name} is gone"))?;
    Ok((PacketSocket::open(&netns, index, Filter::SendOnly)?, mac))
}

/// Announces at once, and again: a single frame can be lost, and a switch port or a bridge may have to come up.
fn announce_repeatedly(socket: PacketSocket, mac: Mac, ips: Vec<IpAddr>) {
    let send = move |socket: &PacketSocket| {
        for ip in &ips {
            if let Err(error) = socket.send(&announce::frame(mac.0, *ip)) {
                tracing::debug!(%ip, %mac, "not announced: {error}");
            }
        }
    };
    send(&socket);
    let again = move || {
        for _ in 1..ANNOUNCEMENTS {
            std::thread::sleep(ANNOUNCE_PAUSE);
            send(&socket);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("announce".into()).spawn(again) {
        tracing::debug!("announced once only: {error}");
    }
}

/// Lists the links of the namespace that this thread is in.
fn link_names() -> anyhow::Result<BTreeSet<String>> {
    const PATH: &str = "/proc/thread-self/net/dev";
    let text = fs::read_to_string(PATH).with_context(|| format!("failed to read {PATH}"))?;
    Ok(parse_links(&text))
}

/// Two lines of headings, then `  name: figures`.
fn parse_links(text: &str) -> BTreeSet<String> {
    text.lines().skip(2).filter_map(|line| line.rsplit_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use evergate_dataplane::state::{Address, Route};

    use super::*;

    #[test]
    fn link_names_are_read_from_the_kernels_table() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n    lo:  1 2 3\neth0.5: 4 5\n";
        assert_eq!(parse_links(text), BTreeSet::from(["lo".to_owned(), "eth0.5".to_owned()]));
    }

    #[test]
    fn a_floating_ip_is_announced_when_a_fip_namespace_leads_it_to_a_router() {
        let op = |netns: &str, destination: &str, via: Option<&str>, table| Op::AddRoute {
            netns: Netns::Named(netns.to_owned()),
            route: Route {
                table,
                destination: destination.parse().unwrap(),
                via: via.map(|via| via.parse().unwrap()),
                link: Some("fpr-1".to_owned()),
            },
        };
        let via = Some("169.254.64.0");
        let floating = op("fip-1", "203.0.113.50/32", via, TABLE_MAIN);
        assert_eq!(new_outside(&floating), Some(("fip-1", "fg-", "203.0.113.50".parse().unwrap())));
        for other in [
            op("qrouter-1", "203.0.113.50/32", via, TABLE_MAIN),
            op("fip-1", "0.0.0.0/0", via, 2_852_016_425),
            op("fip-1", "203.0.113.254/32", None, TABLE_MAIN),
        ] {
            assert_eq!(new_outside(&other), None, "{other}");
        }
    }

    #[test]
    fn addresses_of_a_gateway_port_are_announced_outside_and_others_are_not() {
        let op = |link: &str| Op::AddAddress {
            netns: Netns::Named("qrouter-1".to_owned()),
            address: Address { link: link.to_owned(), net: "203.0.113.50/32".parse().unwrap() },
        };
        assert_eq!(new_outside(&op("qg-1")), Some(("qrouter-1", "qg-1", "203.0.113.50".parse().unwrap())));
        assert_eq!(new_outside(&op("qr-1")), None);
    }
}
