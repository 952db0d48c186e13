//! What a kernel holds, in lines for `show` and for failing tests.

use std::fmt;

use crate::state::{BridgePort, FdbTable, KeeperOwned, KernelState, Link, LinkKind, Netns, NetnsState, Route};

impl fmt::Display for KernelState {
    /// Prints one block per namespace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (netns, state) in &self.netns {
            let foreign = if state.owned || *netns == Netns::Host { "" } else { " (not ours)" };
            writeln!(f, "namespace {netns}{foreign}")?;
            write!(f, "{state}")?;
        }
        Ok(())
    }
}

impl fmt::Display for NetnsState {
    /// Prints one indented line per object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, link) in &self.links {
            writeln!(f, "  link {name}: {link}")?;
        }
        for address in &self.addresses {
            writeln!(f, "  address {} on {}", address.net, address.link)?;
        }
        for route in &self.routes {
            writeln!(f, "  route {route}")?;
        }
        for rule in &self.rules {
            write!(f, "  rule {}:", rule.priority)?;
            rule.from.iter().try_for_each(|from| write!(f, " from {from}"))?;
            rule.to.iter().try_for_each(|to| write!(f, " to {to}"))?;
            rule.iif.iter().try_for_each(|iif| write!(f, " in by {iif}"))?;
            writeln!(f, " table {}", rule.table)?;
        }
        for (key, mac) in &self.neighbours {
            writeln!(f, "  neighbour {} is {mac} on {}", key.ip, key.link)?;
        }
        for entry in &self.fdb {
            match entry.table {
                FdbTable::Bridge => writeln!(f, "  forwarding {} by port {}", entry.mac, entry.link)?,
                FdbTable::BridgeSticky => {
                    writeln!(f, "  forwarding {} by port {} whatever comes from elsewhere", entry.mac, entry.link)?;
                }
                FdbTable::Nexthop { group } => {
                    writeln!(f, "  forwarding {} by {} to nexthop group {group}", entry.mac, entry.link)?;
                }
                FdbTable::Vxlan { dst } => writeln!(f, "  forwarding {} by {} to host {dst}", entry.mac, entry.link)?,
            }
        }
        for (path, value) in &self.sysctls {
            writeln!(f, "  setting {path} = {value}")?;
        }
        for table in self.nft.values() {
            for line in table.to_string().lines() {
                writeln!(f, "  {}", line.replace('\t', "  "))?;
            }
        }
        write!(f, "{}", self.keeper)
    }
}

impl fmt::Display for KeeperOwned {
    /// Prints what follows the role, one line per kind, and nothing where nothing does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, objects: Vec<String>| match objects.is_empty() {
            true => Ok(()),
            false => writeln!(f, "  follows the role: {what} {}", objects.join(", ")),
        };
        line("all addresses and routes of", self.links.iter().cloned().collect())?;
        line("address", self.addresses.iter().map(|a| format!("{} on {}", a.net, a.link)).collect())?;
        line("forwarding of", self.fdb_macs.iter().map(ToString::to_string).collect())
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.kind, if self.up { "up" } else { "down" })?;
        self.mtu.iter().try_for_each(|mtu| write!(f, ", mtu {mtu}"))?;
        self.mac.iter().try_for_each(|mac| write!(f, ", {mac}"))?;
        self.master.iter().try_for_each(|master| write!(f, ", port of {master}"))?;
        self.port.iter().try_for_each(|port| write!(f, "{port}"))?;
        self.alias.iter().try_for_each(|alias| write!(f, ", \"{alias}\""))
    }
}

impl fmt::Display for BridgePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let learning = if self.learning { "" } else { ", not learning" };
        let suppress = if self.neigh_suppress { ", neighbours suppressed" } else { "" };
        let isolated = if self.isolated { ", isolated" } else { "" };
        write!(f, "{learning}{suppress}{isolated}")
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.write_str("bridge"),
            Self::Vxlan { vni, local, port } => write!(f, "vxlan {vni} from {local} port {port}"),
            Self::Veth { peer: Some((netns, name)) } => write!(f, "veth to {name} in {netns}"),
            Self::Veth { peer: None } => f.write_str("veth"),
            Self::Other => f.write_str("made by others"),
            Self::Loopback => f.write_str("loopback"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        self.via.iter().try_for_each(|via| write!(f, " via {via}"))?;
        self.link.iter().try_for_each(|link| write!(f, " dev {link}"))?;
        if self.table == crate::state::TABLE_MAIN { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}
