//! Faults as verbs: what was broken on purpose, so that it can be shown and healed.
//!
//! Faults of links are made at the far end, in the switch, with nothing of the lab's inside the host:
//! the host sees what it would see in a rack. They are written down, because they outlive a power cut
//! of the host they belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use evergate_model::{NetworkId, names};
use serde::{Deserialize, Serialize};

use crate::Lab;
use crate::machine::Machine;
use crate::procs;
use crate::spec::{Link, Node, Switch};
use crate::tools::{self, ip_batch};

/// Something that was broken on purpose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The node has no power.
    Power,
    /// A link is down.
    Cut(Link),
    /// The underlay is cut between this node and another one, by its name.
    Between(String),
    /// HA networks are cut while the underlay works: tunnelled frames from and to HA addresses are dropped.
    Ha(HaCut),
    /// A share of the packets on a link is lost, in both directions.
    Loss(Link, u8),
    /// A process was killed or stopped.
    Process(Daemon, Signal),
}

/// Which HA networks are cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaCut {
    /// All of them.
    All,
    /// One, and the VXLAN network identifier that it has.
    One(NetworkId, u32),
}

/// A process of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Daemon {
    /// `evergate server`, on the controller.
    Server,
    /// The supervisor on a host.
    Host,
    /// The control process on a host.
    Control,
    /// The keeper process on a host.
    Keeper,
}

/// What is sent to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
pub enum Signal {
    /// Ends it at once.
    Kill,
    /// Freezes it until it is healed.
    Stop,
    /// Asks it to end cleanly.
    Term,
    /// Asks a keeper to make room for another one that goes on in its place.
    Hup,
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.subcommand())
    }
}

impl Daemon {
    /// The subcommand of `evergate` that it runs.
    pub const fn subcommand(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Host => "host",
            Self::Control => "control",
            Self::Keeper => "keeper",
        }
    }
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Term => "TERM",
            Self::Hup => "HUP",
        }
    }
}

impl Fault {
    /// Tells whether it stays until it is healed: a supervisor restarts what is killed below it.
    const fn lasts(&self) -> bool {
        !matches!(
            self,
            Self::Process(_, Signal::Hup)
                | Self::Process(Daemon::Control | Daemon::Keeper, Signal::Kill | Signal::Term)
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Power => f.write_str("no power"),
            Self::Cut(link) => write!(f, "{link} cut"),
            Self::Between(other) => write!(f, "underlay cut between it and {other}"),
            Self::Ha(HaCut::All) => f.write_str("HA networks cut"),
            Self::Ha(HaCut::One(network, vni)) => write!(f, "HA network {network} (VNI {vni}) cut"),
            Self::Loss(link, percent) => write!(f, "{percent} % loss on the {link}"),
            Self::Process(daemon, signal) => write!(f, "{daemon} was sent SIG{}", signal.name()),
        }
    }
}

/// Every fault in force, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Faults(BTreeMap<String, BTreeSet<Fault>>);

impl Faults {
    /// The faults of one node.
    pub fn of(&self, node: Node) -> impl Iterator<Item = &Fault> {
        self.0.get(&node.to_string()).into_iter().flatten()
    }

    /// Tells whether a node's wire to a switch is cut.
    pub(crate) fn is_cut(&self, node: Node, switch: Switch) -> bool {
        self.of(node).any(|fault| matches!(fault, Fault::Cut(link) if link.switch() == switch))
    }

    fn add(&mut self, node: Node, fault: Fault) {
        let faults = self.0.entry(node.to_string()).or_default();
        // A link loses one share of its packets, the last one asked for.
        if let Fault::Loss(link, _) = &fault {
            faults.retain(|old| !matches!(old, Fault::Loss(other, _) if other == link));
        }
        faults.insert(fault);
    }

    fn remove(&mut self, node: Node, fault: &Fault) {
        let name = node.to_string();
        if let Some(faults) = self.0.get_mut(&name) {
            faults.remove(fault);
            if faults.is_empty() {
                self.0.remove(&name);
            }
        }
    }

    fn forget_processes(&mut self, node: Node) {
        if let Some(faults) = self.0.get_mut(&node.to_string()) {
            faults.retain(|fault| !matches!(fault, Fault::Process(..)));
        }
    }

    /// The nftables rules that drop packets in a switch: the whole table, replaced in one transaction.
    fn rules(&self, switch: Switch) -> String {
        let mut rules = String::new();
        for (port, fault) in self.0.iter().flat_map(|(port, faults)| faults.iter().map(move |fault| (port, fault))) {
            if let Fault::Between(other) = fault
                && switch == Switch::Underlay
            {
                for (from, to) in [(port, other), (other, port)] {
                    rules.push_str(&format!("    iifname \"{from}\" oifname \"{to}\" counter drop\n"));
                }
            }
            for condition in drop_conditions(fault, switch) {
                for direction in ["iifname", "oifname"] {
                    rules.push_str(&format!("    {direction} \"{port}\" {condition} counter drop\n"));
                }
            }
        }
        format!(
            "table bridge lab {{ }}\ndelete table bridge lab\ntable bridge lab {{\n  chain forward {{\n    \
             type filter hook forward priority 0; policy accept;\n{rules}  }}\n}}\n"
        )
    }
}

/// Conditions under which a switch drops a packet because of `fault`.
fn drop_conditions(fault: &Fault, switch: Switch) -> Vec<String> {
    // Offsets count bits from the start of the outer UDP header (8 bytes), which the VXLAN header
    // follows (8 bytes: flags, 3 reserved, VNI, reserved), then the inner Ethernet header (14 bytes).
    const VXLAN: &str = "ether type ip udp dport 4789";
    match fault {
        Fault::Loss(link, percent) if link.switch() == switch => {
            // "<= 29" for 30 %, because nft refuses "< 100".
            vec![format!("numgen random mod 100 <= {}", percent.saturating_sub(1))]
        }
        Fault::Ha(HaCut::One(_, vni)) if switch == Switch::Underlay => vec![format!("{VXLAN} @th,96,24 {vni:#x}")],
        // Inner source address (bytes 12 to 15 of the inner IPv4 header) in 169.254.192.0/18, the HA
        // networks' range: 18 bits, compared with 0xa9fec000 >> 14. The inner type must be IPv4.
        Fault::Ha(HaCut::All) if switch == Switch::Underlay => {
            vec![format!("{VXLAN} @th,224,16 0x800 @th,336,18 {:#x}", 0xa9fe_c000_u32 >> 14)]
        }
        Fault::Power | Fault::Cut(_) | Fault::Between(_) | Fault::Ha(_) | Fault::Loss(..) | Fault::Process(..) => {
            Vec::new()
        }
    }
}

impl Lab {
    /// The faults in force.
    ///
    /// # Errors
    ///
    /// The file that lists them cannot be read.
    pub fn faults(&self) -> Result<Faults> {
        match fs::read(self.faults_path()) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("failed to understand {}", self.faults_path().display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Faults::default()),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", self.faults_path().display())),
        }
    }

    /// Breaks something.
    ///
    /// # Errors
    ///
    /// The fault is not possible on that node, or could not be made.
    pub fn fail(&self, node: Node, fault: Fault) -> Result<()> {
        let _alone = self.lock()?;
        possible(node, &fault)?;
        let machine = Machine::new(self, node);
        let mut faults = self.faults()?;
        match &fault {
            Fault::Power if !machine.is_on() => bail!("{node} has no power already"),
            Fault::Power => machine.power_off()?,
            Fault::Process(daemon, signal) => signal_daemon(self, node, *daemon, *signal)?,
            Fault::Cut(link) => self.set_port(&machine, *link, "down")?,
            Fault::Between(other) => {
                self.spec().node(other)?;
            }
            Fault::Ha(_) | Fault::Loss(..) => {}
        }
        if matches!(fault, Fault::Power) {
            // The processes go with it, and start anew when it returns.
            faults.forget_processes(node);
        }
        if fault.lasts() {
            faults.add(node, fault);
        }
        self.save_faults(&faults)
    }

    /// Mends one fault.
    ///
    /// # Errors
    ///
    /// The fault was not in force, or could not be mended.
    pub fn heal(&self, node: Node, fault: &Fault) -> Result<()> {
        let _alone = self.lock()?;
        let mut faults = self.faults()?;
        if !faults.of(node).any(|other| other == fault) {
            bail!("{node} has no such fault: {fault}");
        }
        faults.remove(node, fault);
        // First, because a node that gets its power back reads what is still broken.
        self.save_faults(&faults)?;
        let machine = Machine::new(self, node);
        match fault {
            Fault::Power => {
                machine.power_on()?;
                machine.wait_booted()?;
                machine.start_daemons()?;
                self.restart_instances(node)?;
            }
            Fault::Process(daemon, signal) => mend_daemon(&machine, *daemon, *signal)?,
            Fault::Cut(link) => self.set_port(&machine, *link, "up")?,
            Fault::Between(_) | Fault::Ha(_) | Fault::Loss(..) => {}
        }
        Ok(())
    }

    /// Finds the VXLAN identifier of a network on whichever host has it.
    ///
    /// # Errors
    ///
    /// No host has the network.
    pub fn vni_of(&self, network: NetworkId) -> Result<u32> {
        let bridge = names::bridge(network);
        for node in self.spec().hosts() {
            let machine = Machine::new(self, node);
            let listing = format!("ip -j -d link show type vxlan master {bridge} 2>/dev/null || echo '[]'");
            let Ok(text) = machine.shell(&listing) else { continue };
            let links: serde_json::Value = serde_json::from_str(text.trim()).unwrap_or_default();
            if let Some(vni) = links[0]["linkinfo"]["info_data"]["id"].as_u64() {
                return u32::try_from(vni).context("a VXLAN identifier of more than 24 bits");
            }
        }
        bail!("no host has network {network} as a VXLAN network (no tunnel device in bridge {bridge})");
    }

    fn set_port(&self, machine: &Machine<'_>, link: Link, state: &str) -> Result<()> {
        // Without power there is no port; the fault is heeded when the power returns.
        if !machine.is_on() {
            return Ok(());
        }
        ip_batch(Some(&self.spec().netns(link.switch())), &[format!("link set {} {state}", machine.node)])
    }

    fn save_faults(&self, faults: &Faults) -> Result<()> {
        for switch in Switch::ALL {
            let mut nft = Command::new("ip");
            nft.args(["netns", "exec", &self.spec().netns(switch), "nft", "-f", "-"]);
            tools::feed(&mut nft, &faults.rules(switch))?;
        }
        self.write_json(&self.faults_path(), faults)
    }

    fn faults_path(&self) -> std::path::PathBuf {
        self.dir().join("faults.json")
    }
}

/// Refuses what a node does not have.
fn possible(node: Node, fault: &Fault) -> Result<()> {
    let has = |switch| node.plugs().iter().any(|(other, _)| *other == switch);
    match fault {
        Fault::Cut(link) | Fault::Loss(link, _) if !has(link.switch()) => bail!("{node} has no {link}"),
        Fault::Loss(_, percent) if *percent == 0 || *percent > 100 => {
            bail!("{percent} % of packets cannot be lost: give 1 to 100")
        }
        Fault::Ha(_) if !node.is_host() => bail!("{node} has no HA networks"),
        Fault::Process(Daemon::Server, _) if node != Node::Controller => bail!("only the controller runs a server"),
        Fault::Process(Daemon::Host | Daemon::Control | Daemon::Keeper, _) if !node.is_host() => {
            bail!("{node} does not run 'evergate host'")
        }
        Fault::Between(other) if *other == node.to_string() => bail!("{node} cannot be cut from itself"),
        Fault::Power | Fault::Cut(_) | Fault::Between(_) | Fault::Ha(_) | Fault::Loss(..) | Fault::Process(..) => {
            Ok(())
        }
    }
}

fn signal_daemon(lab: &Lab, node: Node, daemon: Daemon, signal: Signal) -> Result<()> {
    let found = lab.machine(node).daemons(daemon);
    if found.is_empty() {
        bail!("{node} does not run 'evergate {daemon}' at the moment");
    }
    let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
    procs::signal(&pids, signal.name())
}

/// Lets a stopped process go on, and starts one that has no supervisor to do it.
fn mend_daemon(machine: &Machine<'_>, daemon: Daemon, signal: Signal) -> Result<()> {
    if !machine.is_on() {
        return Ok(());
    }
    let found = machine.daemons(daemon);
    let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
    match (signal, daemon) {
        (Signal::Stop, _) => procs::signal(&pids, "CONT"),
        (Signal::Kill | Signal::Term, Daemon::Server | Daemon::Host) if pids.is_empty() => {
            machine.start_daemon(daemon.subcommand())
        }
        (Signal::Kill | Signal::Term | Signal::Hup, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(list: &[(Node, Fault)]) -> Faults {
        let mut faults = Faults::default();
        for (node, fault) in list {
            faults.add(*node, fault.clone());
        }
        faults
    }

    #[test]
    fn a_link_loses_the_share_that_was_asked_for_last_and_in_its_own_switch() {
        let node = Node::Network(1);
        let faults = faults(&[(node, Fault::Loss(Link::Underlay, 10)), (node, Fault::Loss(Link::Underlay, 30))]);
        let rules = faults.rules(Switch::Underlay);
        assert!(rules.contains("iifname \"net1\" numgen random mod 100 <= 29 counter drop"), "{rules}");
        assert!(rules.contains("oifname \"net1\""), "{rules}");
        assert!(!rules.contains("<= 9 "), "{rules}");
        assert!(!faults.rules(Switch::Provider).contains("drop"));
    }

    #[test]
    fn cutting_one_ha_network_leaves_the_others() {
        let cut = Fault::Ha(HaCut::One(NetworkId::from_u128(1), 42));
        let rules = faults(&[(Node::Network(2), cut)]).rules(Switch::Underlay);
        assert!(rules.contains("@th,96,24 0x2a counter drop"), "{rules}");
    }

    #[test]
    fn a_way_between_two_hosts_is_cut_in_both_directions_and_no_other() {
        let rules = faults(&[(Node::Network(1), Fault::Between("net2".into()))]).rules(Switch::Underlay);
        assert!(rules.contains("iifname \"net1\" oifname \"net2\" counter drop"), "{rules}");
        assert!(rules.contains("iifname \"net2\" oifname \"net1\" counter drop"), "{rules}");
        assert_eq!(rules.matches("drop").count(), 2, "{rules}");
    }

    #[test]
    fn what_is_healed_is_gone() {
        let mut faults = faults(&[(Node::Network(1), Fault::Power)]);
        faults.remove(Node::Network(1), &Fault::Power);
        assert_eq!(faults, Faults::default());
    }

    #[test]
    fn a_cut_is_remembered_for_its_own_switch() {
        let faults = faults(&[(Node::Network(1), Fault::Cut(Link::Uplink))]);
        assert!(faults.is_cut(Node::Network(1), Switch::Provider));
        assert!(!faults.is_cut(Node::Network(1), Switch::Underlay));
        assert!(!faults.is_cut(Node::Network(2), Switch::Provider));
    }

    #[test]
    fn what_a_node_does_not_have_cannot_break() {
        assert!(possible(Node::Controller, &Fault::Cut(Link::Uplink)).is_err());
        assert!(possible(Node::Network(1), &Fault::Process(Daemon::Server, Signal::Kill)).is_err());
        assert!(possible(Node::Web, &Fault::Ha(HaCut::All)).is_err());
        assert!(possible(Node::Network(1), &Fault::Loss(Link::Uplink, 101)).is_err());
        possible(Node::Network(1), &Fault::Loss(Link::Uplink, 100)).unwrap();
    }

    #[test]
    fn faults_survive_being_written_down() {
        let all = faults(&[
            (Node::Network(1), Fault::Power),
            (Node::Network(1), Fault::Ha(HaCut::One(NetworkId::from_u128(1), 42))),
            (Node::Controller, Fault::Process(Daemon::Server, Signal::Stop)),
        ]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Faults>(&text).unwrap(), all);
    }
}
