//! The peer: the same paths from plain kernel objects, made by `ip` and `nft`, with nothing of ours.
//!
//! ```text
//! north-south   vm ─ cmp{bridge, vxlan} ─ underlay ─ gw{vxlan, bridge, router, bridge} ─ provider ─ outside ─ web
//!  with as many routers as ours
//!               vm ─ cmp{bridge, router, bridge, vxlan} ─ underlay ─ gw{…, router, …} ─ provider ─ outside ─ web
//! east-west     vm ─ cmp{bridge, router, bridge, vxlan} ─ underlay ─ cmp2{vxlan, bridge} ─ vm2
//! ```

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where the receivers of both paths are.
pub(crate) const WEB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The same machine, by way of a router on the compute host.
pub(crate) const WEB_ROUTED_TWICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);

/// Both paths' namespaces.
pub(crate) struct Plain {
    prefix: String,
}

const NODES: [&str; 12] =
    ["vm", "cmp", "underlay", "gw", "gwr", "provider", "outside", "internet", "web", "cmpr", "cmp2", "vm2"];

impl Plain {
    pub(crate) fn up() -> Result<Self> {
        let plain = Self { prefix: format!("egplain{}-", std::process::id()) };
        for node in NODES {
            plain.ip(&format!("netns add {{}}{node}"))?;
            // What the lab's hosts have, too: bridged frames do not pass a packet filter.
            plain.sh(node, "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done")?;
            plain.ip(&format!("-n {{}}{node} link set lo up"))?;
        }
        for switch in ["underlay", "provider", "internet"] {
            plain.bridge(switch, "br0")?;
        }
        plain.hosts()?;
        plain.tunnel(1, &[("cmp", "10.60.1.11", "10.60.0.11"), ("gw", "10.60.0.11", "10.60.1.11")])?;
        plain.tunnel(2, &[("cmp", "10.60.1.11", "10.60.1.12"), ("cmp2", "10.60.1.12", "10.60.1.11")])?;
        plain.routers()?;
        Ok(plain)
    }

    /// A command that runs this executable in a node.
    pub(crate) fn own(&self, node: &str) -> Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{node}", self.prefix)]);
        command.arg(std::env::current_exe().context("own path")?);
        Ok(command)
    }

    fn hosts(&self) -> Result<()> {
        for (node, address) in [("cmp", "10.60.1.11"), ("gw", "10.60.0.11"), ("cmp2", "10.60.1.12")] {
            self.wire("underlay", "br0", node, "eth0", 1500)?;
            self.ip(&format!("-n {{}}{node} addr add {address}/16 dev eth0"))?;
        }
        for (node, device, switch) in [("gw", "eth1", "provider"), ("outside", "eth0", "provider")] {
            self.wire(switch, "br0", node, device, 1500)?;
        }
        for (node, device) in [("outside", "eth1"), ("web", "eth0")] {
            self.wire("internet", "br0", node, device, 1500)?;
        }
        self.bridge("gw", "brex")?;
        self.ip("-n {}gw link set eth1 master brex")?;
        self.ip("-n {}outside addr add 203.0.113.254/24 dev eth0")?;
        self.ip("-n {}outside addr add 198.51.100.1/24 dev eth1")?;
        self.sh("outside", "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        self.ip(&format!("-n {{}}web addr add {WEB}/24 dev eth0"))?;
        self.ip(&format!("-n {{}}web addr add {WEB_ROUTED_TWICE}/24 dev eth0"))?;
        self.ip("-n {}web route add default via 198.51.100.1")
    }

    /// A bridge with a VXLAN device in it, on two hosts.
    fn tunnel(&self, vni: u8, ends: &[(&str, &str, &str)]) -> Result<()> {
        for (node, local, remote) in ends {
            let (bridge, vxlan) = (format!("br{vni}"), format!("vxlan{vni}"));
            self.bridge(node, &bridge)?;
            self.ip(&format!(
                "-n {{}}{node} link add {vxlan} mtu 1450 type vxlan id {vni} local {local} remote {remote} dstport 4789"
            ))?;
            self.ip(&format!("-n {{}}{node} link set {vxlan} master {bridge} up"))?;
        }
        Ok(())
    }

    fn routers(&self) -> Result<()> {
        for (host, bridge, vm, address, gateway) in
            [("cmp", "br1", "vm", "10.0.0.9/24", "10.0.0.1"), ("cmp2", "br2", "vm2", "10.0.1.9/24", "10.0.1.1")]
        {
            self.wire(host, bridge, vm, "eth0", 1450)?;
            self.ip(&format!("-n {{}}{vm} addr add {address} dev eth0"))?;
            self.ip(&format!("-n {{}}{vm} route add default via {gateway}"))?;
        }
        // Out by the gateway host's router with one NAT rule.
        self.wire("gw", "br1", "gwr", "in", 1450)?;
        self.wire("gw", "brex", "gwr", "out", 1500)?;
        self.ip("-n {}gwr addr add 10.0.0.1/24 dev in")?;
        self.ip("-n {}gwr addr add 203.0.113.10/24 dev out")?;
        self.ip("-n {}gwr route add default via 203.0.113.254")?;
        self.sh("gwr", "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        let rules = "nft add table ip nat; nft 'add chain ip nat post { type nat hook postrouting priority 100; }'; \
                     nft add rule ip nat post oifname out snat to 203.0.113.10";
        self.sh("gwr", rules)?;
        // Between the two networks by the compute host's router; the answers need one on the other host, too.
        self.wire("cmp", "br1", "cmpr", "left", 1450)?;
        self.wire("cmp", "br2", "cmpr", "right", 1450)?;
        self.ip("-n {}cmpr addr add 10.0.0.2/24 dev left")?;
        self.ip("-n {}cmpr addr add 10.0.1.1/24 dev right")?;
        self.sh("cmpr", "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        self.ip("-n {}vm route add 10.0.1.0/24 via 10.0.0.2")?;
        // Out by way of that router: it has no rules, and back the gateway's router sends to the instance itself.
        self.sh("cmpr", "echo 0 | tee /proc/sys/net/ipv4/conf/*/send_redirects")?;
        self.ip("-n {}cmpr route add default via 10.0.0.1")?;
        self.ip(&format!("-n {{}}vm route add {WEB_ROUTED_TWICE} via 10.0.0.2"))
    }

    fn bridge(&self, node: &str, name: &str) -> Result<()> {
        self.ip(&format!("-n {{}}{node} link add {name} type bridge mcast_snooping 0 forward_delay 0"))?;
        self.ip(&format!("-n {{}}{node} link set {name} up"))
    }

    /// A pair of devices from a bridge to a node.
    fn wire(&self, switch: &str, bridge: &str, node: &str, device: &str, mtu: u16) -> Result<()> {
        let port = format!("{node}-{device}");
        let netns = format!("{}{switch}", self.prefix);
        self.ip(&format!(
            "-n {{}}{node} link add {device} mtu {mtu} type veth peer name {port} mtu {mtu} netns {netns}"
        ))?;
        self.ip(&format!("-n {{}}{switch} link set {port} master {bridge} up"))?;
        self.ip(&format!("-n {{}}{node} link set {device} up"))
    }

    fn ip(&self, line: &str) -> Result<()> {
        let line = line.replace("{}", &self.prefix);
        let out = Command::new("ip").args(line.split_whitespace()).output().context("failed to run ip")?;
        if !out.status.success() {
            bail!("'ip {line}' failed: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    fn sh(&self, node: &str, script: &str) -> Result<()> {
        let netns = format!("{}{node}", self.prefix);
        let out = Command::new("ip").args(["netns", "exec", &netns, "sh", "-c", script]).output().context("a shell")?;
        if !out.status.success() {
            bail!("'{script}' failed: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        for node in NODES {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{node}", self.prefix)]).status();
        }
    }
}
