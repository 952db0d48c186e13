//! The real kernel, as the worker sees it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use evergate_dataplane::{KernelState, Netns, Op, View};
use evergate_kernel::Kernel;
use evergate_kernel::rt::{Filter, NetnsFd, PacketSocket};
use evergate_model::Mac;
use evergate_vrrp::announce;

use crate::worker::Machine;

/// Neighbours that are announced per round: a host that is given a network of thousands of ports knows of
/// no earlier owner of any of them.
const MOST_ANNOUNCED: usize = 64;

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
        results.into_iter().map(|result| Ok(result?)).collect()
    }

    fn encode(&mut self, op: &Op) -> anyhow::Result<Vec<u8>> {
        Ok(self.kernel.encode(op)?)
    }

    fn link_index(&mut self, netns: &Netns, link: &str) -> anyhow::Result<Option<u32>> {
        Ok(self.kernel.link_index(netns, link)?)
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
    use super::*;

    #[test]
    fn link_names_are_read_from_the_kernels_table() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n    lo:  1 2 3\neth0.5: 4 5\n";
        assert_eq!(parse_links(text), BTreeSet::from(["lo".to_owned(), "eth0.5".to_owned()]));
    }
}
