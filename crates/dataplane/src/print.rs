//! The dry run: every op as the commands that an operator would type for it.
//!
//! The text is a shell script. Running it does what applying the ops does, if more slowly; phases and
//! refusals are comments in it. Only removals differ: a command may complain of what is gone already,
//! where the op succeeds.

use std::borrow::Cow;
use std::fmt;

use evergate_model::Mac;

use crate::op::{LinkChange, Op};
use crate::plan::Plan;
use crate::state::{Address, BridgePort, FdbEntry, FdbTable, Link, LinkKind, Netns, Route, Rule, TABLE_MAIN};

impl fmt::Display for Plan {
    /// Prints every op in order, below the name of its phase.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("# nothing to do\n");
        }
        for (phase, ops) in [("build", &self.build), ("switch", &self.switch), ("remove", &self.remove)] {
            if !ops.is_empty() {
                writeln!(f, "# {phase}")?;
            }
            for op in ops {
                writeln!(f, "{op}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    /// Prints one command per line, without a newline after the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&commands(self).join("\n"))
    }
}

fn commands(op: &Op) -> Vec<String> {
    match op {
        Op::AddNetns { name, alias } => {
            let name = quoted(name);
            vec![format!("ip netns add {name}"), format!("ip -n {name} link set dev lo alias {} up", quoted(alias))]
        }
        Op::DeleteNetns { name } => vec![format!("ip netns delete {}", quoted(name))],
        Op::AddLink { netns, name, link, peer_link } => add_link(netns, name, link, peer_link.as_deref()),
        Op::SetLink { netns, name, change } => set_link(netns, name, change),
        Op::DeleteLink { netns, name } => vec![format!("{} link delete dev {}", ip(netns), quoted(name))],
        Op::AddAddress { netns, address } => vec![address_command(netns, "replace", address)],
        Op::DeleteAddress { netns, address } => vec![address_command(netns, "delete", address)],
        Op::AddRoute { netns, route } => vec![route_command(netns, "replace", route)],
        Op::DeleteRoute { netns, route } => vec![route_command(netns, "delete", route)],
        Op::AddRule { netns, rule } => vec![rule_command(netns, "add", rule)],
        Op::DeleteRule { netns, rule } => vec![rule_command(netns, "delete", rule)],
        Op::SetNeighbour { netns, link, ip: address, mac } => {
            vec![format!("{} neighbour replace {address} lladdr {mac} dev {} nud permanent", ip(netns), quoted(link))]
        }
        Op::DeleteNeighbour { netns, link, ip: address } => {
            vec![format!("{} neighbour delete {address} dev {}", ip(netns), quoted(link))]
        }
        Op::SetFdb { netns, entry } => {
            // An all-zero entry is a list of destinations; any other has one.
            let verb = if entry.mac == Mac::ZERO { "append" } else { "replace" };
            vec![fdb_command(netns, verb, entry)]
        }
        Op::DeleteFdb { netns, entry } => vec![fdb_command(netns, "delete", entry)],
        Op::SetSysctl { netns, path, value } => {
            let setting = quoted(&format!("{path}={value}")).into_owned();
            // With slashes, a dot in a device name is a dot.
            vec![format!("{}sysctl -qw net/{setting}", exec(netns))]
        }
        Op::ReplaceNft { netns, table } => {
            let (family, name) = (table.family, crate::nft::TABLE_NAME);
            // nft -f is one transaction: the table is made if need be, emptied and filled in one step.
            vec![format!(
                "{}nft -f - <<'EOF'\ntable {family} {name} {{ }}\ndelete table {family} {name}\n{table}\nEOF",
                exec(netns)
            )]
        }
        Op::DeleteNft { netns, family } => {
            vec![format!("{}nft delete table {family} {}", exec(netns), crate::nft::TABLE_NAME)]
        }
    }
}

/// The command that makes a link, then those that put it in order; it comes up last.
fn add_link(netns: &Netns, name: &str, link: &Link, peer_link: Option<&Link>) -> Vec<String> {
    let add = format!("{} link add name {}{}", ip(netns), quoted(name), mtu_and_mac(link));
    match &link.kind {
        LinkKind::Bridge => {
            // No spanning tree, so no waiting either; no snooping, so multicast reaches everyone.
            let mut commands = vec![format!("{add} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")];
            commands.extend(finish_link(netns, name, link));
            commands
        }
        LinkKind::Vxlan { vni, local, port } => {
            let mut commands = vec![format!("{add} type vxlan id {vni} local {local} dstport {port} nolearning")];
            commands.extend(finish_link(netns, name, link));
            commands
        }
        LinkKind::Veth { peer: Some((peer_netns, peer_name)) } => {
            let mut command = format!("{add} type veth peer name {}", quoted(peer_name));
            command += &peer_link.map(mtu_and_mac).unwrap_or_default();
            if let Netns::Named(peer_netns) = peer_netns {
                command += &format!(" netns {}", quoted(peer_netns));
            }
            let mut commands = vec![command];
            commands.extend(finish_link(netns, name, link));
            if let Some(peer) = peer_link {
                commands.extend(finish_link(peer_netns, peer_name, peer));
            }
            commands
        }
        LinkKind::Veth { peer: None } | LinkKind::Other | LinkKind::Loopback => {
            vec![format!("# link {name} is not Evergate's to make")]
        }
    }
}

fn mtu_and_mac(link: &Link) -> String {
    let mtu = link.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    let mac = link.mac.map(|mac| format!(" address {mac}")).unwrap_or_default();
    mtu + &mac
}

fn finish_link(netns: &Netns, name: &str, link: &Link) -> Vec<String> {
    let change = LinkChange {
        up: link.up.then_some(true),
        mtu: None,
        mac: None,
        master: link.master.clone().map(Some),
        alias: link.alias.clone(),
        port: link.master.as_ref().and(link.port),
    };
    set_link(netns, name, &change)
}

/// Flags of a bridge port are set before the link comes up: a VXLAN port must not learn meanwhile.
fn set_link(netns: &Netns, name: &str, change: &LinkChange) -> Vec<String> {
    let mut settings = String::new();
    if let Some(mtu) = change.mtu {
        settings += &format!(" mtu {mtu}");
    }
    if let Some(mac) = change.mac {
        settings += &format!(" address {mac}");
    }
    if let Some(alias) = &change.alias {
        settings += &format!(" alias {}", quoted(alias));
    }
    match &change.master {
        Some(Some(master)) => settings += &format!(" master {}", quoted(master)),
        Some(None) => settings += " nomaster",
        None => {}
    }
    let state = match change.up {
        Some(true) => " up",
        Some(false) => " down",
        None => "",
    };
    let set = format!("{} link set dev {}", ip(netns), quoted(name));
    let Some(port) = change.port else {
        return if settings.is_empty() && state.is_empty() { Vec::new() } else { vec![set + &settings + state] };
    };
    let mut commands = Vec::new();
    if !settings.is_empty() {
        commands.push(format!("{set}{settings}"));
    }
    commands.push(port_command(netns, name, port));
    if !state.is_empty() {
        commands.push(format!("{set}{state}"));
    }
    commands
}

fn port_command(netns: &Netns, name: &str, port: BridgePort) -> String {
    let on = |flag: bool| if flag { "on" } else { "off" };
    let (learning, suppress) = (on(port.learning), on(port.neigh_suppress));
    let isolated = on(port.isolated);
    format!(
        "{} link set dev {} learning {learning} neigh_suppress {suppress} isolated {isolated}",
        bridge(netns),
        quoted(name)
    )
}

fn address_command(netns: &Netns, verb: &str, address: &Address) -> String {
    // Duplicate address detection would hold an IPv6 address back for a second or more.
    let more = match verb {
        "replace" if address.net.addr().is_ipv6() => " nodad",
        "replace" if address.is_of_link() => " scope link",
        _ => "",
    };
    format!("{} address {verb} {} dev {}{more}", ip(netns), address.net, quoted(&address.link))
}

fn route_command(netns: &Netns, verb: &str, route: &Route) -> String {
    let mut command = match route.destination.addr() {
        addr if addr.is_ipv6() => format!("{} -6 route {verb} {}", ip(netns), route.destination),
        _ => format!("{} route {verb} {}", ip(netns), route.destination),
    };
    if let Some(via) = route.via {
        command += &format!(" via {via}");
    }
    if let Some(link) = &route.link {
        command += &format!(" dev {}", quoted(link));
    }
    command += " proto static";
    if route.via.is_none() && route.destination.addr().is_ipv4() {
        command += " scope link";
    }
    if route.table != TABLE_MAIN {
        command += &format!(" table {}", route.table);
    }
    command
}

fn rule_command(netns: &Netns, verb: &str, rule: &Rule) -> String {
    let v6 = [&rule.from, &rule.to].into_iter().flatten().any(|net| net.addr().is_ipv6());
    let mut command = format!("{}{} rule {verb} priority {}", ip(netns), if v6 { " -6" } else { "" }, rule.priority);
    if let Some(from) = rule.from {
        command += &format!(" from {from}");
    }
    if let Some(to) = rule.to {
        command += &format!(" to {to}");
    }
    if let Some(iif) = &rule.iif {
        command += &format!(" iif {}", quoted(iif));
    }
    command + &format!(" lookup {}", rule.table)
}

fn fdb_command(netns: &Netns, verb: &str, entry: &FdbEntry) -> String {
    let command = format!("{} fdb {verb} {} dev {}", bridge(netns), entry.mac, quoted(&entry.link));
    match entry.table {
        FdbTable::Bridge => format!("{command} master static"),
        FdbTable::BridgeSticky => format!("{command} master static sticky"),
        FdbTable::Nexthop { group } => format!("{command} nhid {group} self permanent"),
        FdbTable::Vxlan { dst } => format!("{command} dst {dst} self permanent"),
    }
}

fn ip(netns: &Netns) -> String {
    tool("ip", netns)
}

fn bridge(netns: &Netns) -> String {
    tool("bridge", netns)
}

fn tool(name: &str, netns: &Netns) -> String {
    match netns {
        Netns::Host => name.to_owned(),
        Netns::Named(netns) => format!("{name} -n {}", quoted(netns)),
    }
}

fn exec(netns: &Netns) -> String {
    match netns {
        Netns::Host => String::new(),
        Netns::Named(netns) => format!("ip netns exec {} ", quoted(netns)),
    }
}

/// The text as one word of a shell command.
fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Address;

    #[test]
    fn a_word_that_the_shell_would_take_apart_is_quoted() {
        assert_eq!(quoted("qr-1f2e3d4c-5b"), "qr-1f2e3d4c-5b");
        assert_eq!(quoted("evergate: router's"), r"'evergate: router'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a;reboot"), "'a;reboot'");
    }

    #[test]
    fn an_empty_plan_says_so() {
        assert_eq!(Plan::default().to_string(), "# nothing to do\n");
    }

    #[test]
    fn each_phase_is_named_above_its_commands() {
        let netns = Netns::Named("qrouter-1".to_owned());
        let address = Address { link: "qr-1".to_owned(), net: "10.0.0.1/24".parse().unwrap() };
        let plan = Plan {
            build: vec![Op::AddNetns { name: "qrouter-1".to_owned(), alias: "evergate: router 1".to_owned() }],
            switch: vec![Op::AddAddress { netns, address }],
            remove: Vec::new(),
        };
        let expected = "# build\n\
            ip netns add qrouter-1\n\
            ip -n qrouter-1 link set dev lo alias 'evergate: router 1' up\n\
            # switch\n\
            ip -n qrouter-1 address replace 10.0.0.1/24 dev qr-1\n";
        assert_eq!(plan.to_string(), expected);
    }

    #[test]
    fn a_policy_rule_prints_as_ip_takes_it() {
        let rule = Rule {
            priority: 80000,
            from: Some("10.0.0.0/24".parse().unwrap()),
            to: None,
            iif: Some("fpr-1".to_owned()),
            table: 16,
        };
        let op = Op::AddRule { netns: Netns::Host, rule };
        assert_eq!(op.to_string(), "ip rule add priority 80000 from 10.0.0.0/24 iif fpr-1 lookup 16");
    }
}
