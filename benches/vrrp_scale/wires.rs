//! Two hosts with HA networks between them, and routers' namespaces on them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use evergate_dataplane::compile::{Copies, CopyPort, dispatch_table};
use evergate_dataplane::state::{Address, BridgePort, FdbEntry, FdbTable, Link, LinkKind, OWNER_MARK};
use evergate_dataplane::{Netns, Op};
use evergate_kernel::Kernel;
use evergate_kernel::rt::NetnsFd;
use evergate_model::Mac;

pub(crate) const NETNS_PATH: &str = "/run/netns";
/// Routers on one HA network: VRIDs are used up at 255.
pub(crate) const PER_NETWORK: u16 = 250;

/// Set in every namespace, as the product does: otherwise each of thousands of links solicits routers and reports its
/// groups now and then, which goes to all.
const IPV6_OFF: [&str; 2] = ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"];

/// Two hosts; taken down with all their namespaces when dropped.
pub(crate) struct Wires {
    prefix: String,
    networks: u16,
    named: BTreeSet<String>,
}

impl Wires {
    pub(crate) fn up(routers: u16) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("egvs{}w{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let networks = routers.div_ceil(PER_NETWORK);
        let mut wires = Self { prefix, networks, named: BTreeSet::new() };
        for side in [1, 2] {
            wires.namespace(&wires.host(side))?;
        }
        let (a, b) = (wires.host(1), wires.host(2));
        ip(&format!("link add eth0 netns {a} type veth peer name eth0 netns {b}"))?;
        for side in [1, 2] {
            let host = wires.host(side);
            ip(&format!("-n {host} addr add {}/24 dev eth0", vtep(side)))?;
            ip(&format!("-n {host} link set eth0 up"))?;
            wires.ha_networks(side)?;
        }
        Ok(wires)
    }

    pub(crate) fn host(&self, side: u8) -> String {
        format!("{}h{side}", self.prefix)
    }

    pub(crate) fn router(&self, side: u8, number: u16) -> String {
        format!("{}r{side}-{number}", self.prefix)
    }

    pub(crate) fn networks(&self) -> u16 {
        self.networks
    }

    fn namespace(&mut self, name: &str) -> Result<()> {
        ip(&format!("netns add {name}"))?;
        let off = IPV6_OFF.map(|path| format!("net/{path}=1")).join(" ");
        // Nor does it let bridged frames pass packet filters (on by default in every namespace, where it is known at all).
        let unfiltered =
            ["iptables", "ip6tables", "arptables"].map(|of| format!("net.bridge.bridge-nf-call-{of}=0")).join(" ");
        ip(&format!("netns exec {name} sysctl -qe -w {off} {unfiltered}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        self.named.insert(name.to_owned());
        Ok(())
    }

    fn ha_networks(&self, side: u8) -> Result<()> {
        let bridge = |name: String| link_op(name, LinkKind::Bridge, None, None);
        let vxlan = |network: u16| {
            let kind = LinkKind::Vxlan { vni: u32::from(network) + 1, local: vtep(side), port: 4789 };
            let port = BridgePort { learning: false, neigh_suppress: true, isolated: false };
            link_op(format!("vxlan-{network}"), kind, Some(format!("ha{network}")), Some(port))
        };
        let flood = |network: u16| {
            let table = FdbTable::Vxlan { dst: vtep(3 - side) };
            let entry = FdbEntry { link: format!("vxlan-{network}"), mac: Mac::ZERO, table };
            Op::SetFdb { netns: Netns::Host, entry }
        };
        let ops = (0..self.networks).flat_map(|n| [bridge(format!("ha{n}")), vxlan(n), flood(n)]).collect::<Vec<_>>();
        self.on(side, |kernel| apply(kernel, &ops))
    }

    /// Makes every router's namespace with its HA interface.
    pub(crate) fn routers(&mut self, side: u8, routers: u16) -> Result<()> {
        for number in 0..routers {
            self.named.insert(self.router(side, number));
        }
        let this = &*self;
        self.on(side, |kernel| {
            for number in 0..routers {
                apply(kernel, &this.router_ops(side, number))?;
            }
            // Unset, as the product does it.
            if std::env::var_os("EVERGATE_BENCH_FLOOD").is_some() { Ok(()) } else { lead(kernel, side, routers) }
        })
    }

    fn router_ops(&self, side: u8, number: u16) -> Vec<Op> {
        let name = self.router(side, number);
        let netns = Netns::Named(name.clone());
        let tap = Link {
            kind: LinkKind::Veth { peer: Some((netns.clone(), "ha-1".to_owned())) },
            ..link(LinkKind::Loopback, Some(format!("ha{}", number / PER_NETWORK)), Some(ha_port()))
        };
        let peer = Link {
            kind: LinkKind::Veth { peer: Some((Netns::Host, format!("tap{number}"))) },
            mac: Some(ha_mac(side, number)),
            ..link(LinkKind::Loopback, None, None)
        };
        let address = Address {
            link: "ha-1".to_owned(),
            net: ipnet::IpNet::new(ha_address(side, number).into(), 18).expect("18 fits"),
        };
        let made = Op::AddNetns { name, alias: format!("{OWNER_MARK} bench") };
        let plugged = [
            Op::AddLink {
                netns: Netns::Host,
                name: format!("tap{number}"),
                link: tap,
                peer_link: Some(Box::new(peer)),
            },
            Op::AddAddress { netns: netns.clone(), address },
        ];
        let without_ipv6 =
            IPV6_OFF.map(|path| Op::SetSysctl { netns: netns.clone(), path: path.to_owned(), value: "1".to_owned() });
        std::iter::once(made).chain(without_ipv6).chain(plugged).collect()
    }

    /// Runs something in a host's namespace.
    pub(crate) fn on<T: Send>(&self, side: u8, act: impl FnOnce(&mut Kernel) -> Result<T> + Send) -> Result<T> {
        let host = NetnsFd::open(&Path::new(NETNS_PATH).join(self.host(side)))?;
        host.run(|| act(&mut Kernel::open(Path::new(NETNS_PATH))?))?
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        // The routers' namespaces first: their devices take along the taps.
        let host = format!("{}h", self.prefix);
        let (hosts, routers): (Vec<_>, Vec<_>) = self.named.iter().partition(|name| name.starts_with(&host));
        let ops: Vec<Op> = routers.into_iter().map(|name| Op::DeleteNetns { name: name.clone() }).collect();
        if let Ok(mut kernel) = Kernel::open(Path::new(NETNS_PATH)) {
            kernel.apply(&ops);
        }
        for host in hosts {
            let _ = ip(&format!("netns del {host}"));
        }
    }
}

/// Leads advertisements to the copies that they are for and out by the tunnels, as the product does where many are.
fn lead(kernel: &mut Kernel, side: u8, routers: u16) -> Result<()> {
    let mut networks = Copies::new();
    let mut ops = Vec::new();
    for number in 0..routers {
        let copies = networks.entry(format!("vxlan-{}", number / PER_NETWORK)).or_default();
        let port = CopyPort { mac: ha_mac(side, number), tap: format!("tap{number}") };
        let entry = FdbEntry { link: port.tap.clone(), mac: port.mac, table: FdbTable::Bridge };
        copies.insert(vrid(number), port);
        ops.push(Op::SetFdb { netns: Netns::Host, entry });
    }
    ops.push(Op::ReplaceNft { netns: Netns::Host, table: dispatch_table(&networks) });
    apply(kernel, &ops)
}

/// Flags of the tap of an HA interface, as the product sets them.
fn ha_port() -> BridgePort {
    BridgePort { learning: true, neigh_suppress: false, isolated: true }
}

fn link(kind: LinkKind, master: Option<String>, port: Option<BridgePort>) -> Link {
    Link { kind, alias: Some(format!("{OWNER_MARK} bench")), up: true, mtu: None, mac: None, master, port }
}

fn link_op(name: String, kind: LinkKind, master: Option<String>, port: Option<BridgePort>) -> Op {
    Op::AddLink { netns: Netns::Host, name, link: link(kind, master, port), peer_link: None }
}

fn apply(kernel: &mut Kernel, ops: &[Op]) -> Result<()> {
    kernel.apply(ops).into_iter().collect::<Result<(), _>>().map_err(|error| anyhow::anyhow!(error.full()))
}

pub(crate) fn vtep(side: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, side])
}

pub(crate) fn vrid(number: u16) -> u8 {
    (number % PER_NETWORK + 1) as u8
}

pub(crate) fn ha_address(side: u8, number: u16) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 191 + side, vrid(number))
}

pub(crate) fn ha_mac(side: u8, number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac([0xfa, 0x16, 0x3e, side, high, low])
}

pub(crate) fn ip(line: &str) -> Result<()> {
    let out = Command::new("ip").args(line.split_whitespace()).output().context("failed to run ip")?;
    if !out.status.success() {
        bail!("'ip {line}' failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
