//! keepalived's configuration language, its VRRP part.
//!
//! [`syntax`] splits files into statements, [`read`](self::read()) makes a [`Configuration`] of them. Nothing is
//! silently ignored: what cannot be done is an error, and the whole configuration is refused; what can be
//! left out without harm is a warning. Both name file and line.
//!
//! No I/O: files come through [`syntax::Files`].

mod global;
mod instance;
mod objects;
mod show;
pub mod syntax;
mod trackers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evergate_kernel::rt::RouteKind;
use evergate_vrrp::router::{Announcements, OWNER_PRIORITY, Version, Vrid};
use ipnet::IpNet;

use syntax::{Files, Place, Problems, Statement};

/// Everything that one file (with what it includes) asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Named namespace that its instances live in; `None` is the one that the command was started in.
    pub net_namespace: Option<String>,
    /// What logs call this machine.
    pub router_id: Option<String>,
    /// Pipes that every transition is written to.
    pub fifos: Vec<String>,
    /// Real-time priority (SCHED_FIFO).
    pub rt_priority: Option<u8>,
    /// Keep all memory in RAM.
    pub no_swap: bool,
    /// Virtual routers.
    pub instances: Vec<Instance>,
    /// Instances that move together.
    pub groups: Vec<Group>,
    /// Checks that instances track, by name.
    pub scripts: BTreeMap<String, Script>,
    /// Files whose number instances track, by name.
    pub files: BTreeMap<String, TrackFile>,
    /// Processes that instances track, by name.
    pub processes: BTreeMap<String, TrackProcess>,
    /// Sessions with neighbours that instances track, by name.
    pub bfd: BTreeMap<String, BfdInstance>,
}

/// One `vrrp_instance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Interface that VRRP is spoken on.
    pub interface: String,
    /// Identifier.
    pub vrid: Vrid,
    /// Version spoken.
    pub version: Version,
    /// Over IPv6 rather than IPv4.
    pub ipv6: bool,
    /// Before tracking changes it.
    pub priority: u8,
    /// Between advertisements.
    pub interval_cs: u16,
    /// Takes over from a lower priority.
    pub preempt: bool,
    /// Waits so long before it does.
    pub preempt_delay: Duration,
    /// Version 2's password.
    pub password: Option<Password>,
    /// Source of advertisements, if not the interface's first address.
    pub source: Option<IpAddr>,
    /// Those to talk to, instead of the group.
    pub unicast_peers: BTreeSet<IpAddr>,
    /// Listed in advertisements.
    pub addresses: Vec<VirtualAddress>,
    /// Not listed, but there when active.
    pub excluded: Vec<VirtualAddress>,
    /// There when active.
    pub routes: Vec<Route>,
    /// There when active.
    pub rules: Vec<Rule>,
    /// What must work, or counts.
    pub tracked: Vec<Tracked>,
    /// Packets for the virtual addresses are accepted (RFC 9568 §6.1, Accept_Mode).
    pub accept: bool,
    /// The virtual addresses are on a device with the virtual router's own Ethernet address.
    pub vmac: Option<Vmac>,
    /// How often addresses are announced.
    pub announcements: Announcements,
    /// Announced again at this interval while active.
    pub announce_refresh: Option<Duration>,
    /// Whom to tell.
    pub notify: Notify,
}

/// A password that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub [u8; 8]);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// An address that the active router has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// Address and prefix length.
    pub net: IpNet,
    /// On which link.
    pub dev: String,
    /// Broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// Label for old tools.
    pub label: Option<String>,
    /// Scope; 0 is global.
    pub scope: u8,
}

/// A route that the active router has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Ordinary, or one that refuses.
    pub kind: RouteKind,
    /// Ways.
    pub hops: Vec<Hop>,
    /// Preferred source.
    pub source: Option<IpAddr>,
    /// Metric.
    pub metric: Option<u32>,
    /// Scope.
    pub scope: Option<u8>,
    /// Table; 254 is main.
    pub table: u32,
    /// Who put it there.
    pub protocol: u8,
}

/// One way of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Next router.
    pub via: Option<IpAddr>,
    /// Outgoing link.
    pub dev: Option<String>,
    /// The router is on the link whatever the addresses say.
    pub onlink: bool,
    /// Share, 1 to 256.
    pub weight: u16,
}

/// A policy rule that the active router has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For IPv6.
    pub ipv6: bool,
    /// Source.
    pub from: Option<IpNet>,
    /// Destination.
    pub to: Option<IpNet>,
    /// Incoming link.
    pub iif: Option<String>,
    /// Outgoing link.
    pub oif: Option<String>,
    /// Mark.
    pub fwmark: Option<u32>,
    /// Order.
    pub priority: Option<u32>,
    /// Table.
    pub table: u32,
    /// Who put it there.
    pub protocol: u8,
}

/// A device with the virtual router's Ethernet address (RFC 9568 §7.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmac {
    /// Its name.
    pub link: String,
    /// Advertisements come from the interface's own Ethernet address all the same.
    pub transmit_from_base: bool,
}

/// Something that is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// What it is.
    pub what: What,
    /// Its name.
    pub name: String,
    /// How it counts.
    pub weight: Weight,
}

/// Kinds of things that are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A link.
    Interface,
    /// A `vrrp_script`.
    Script,
    /// A `track_file`.
    File,
    /// A `vrrp_track_process`.
    Process,
    /// A `bfd_instance`.
    Bfd,
}

/// How something that is tracked counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// 0: its failure is a fault. Above: added while it works. Below: added while it does not. Of a file, what
    /// its number is multiplied by.
    pub value: i32,
    /// The other way round: what would be added is subtracted; with 0, that it works is a fault.
    pub reverse: bool,
}

/// One `track_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackFile {
    /// Where it is.
    pub path: PathBuf,
    /// Weight where an instance gives none.
    pub weight: Weight,
    /// Written at the start, if the file is not there.
    pub initial: Option<i64>,
    /// Or even if it is.
    pub overwrite: bool,
}

/// One `vrrp_track_process`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackProcess {
    /// Command and parameters.
    pub command: Vec<String>,
    /// How they are compared.
    pub matching: Matching,
    /// Weight where an instance gives none.
    pub weight: Weight,
    /// So many must run.
    pub quorum: u32,
    /// And not more.
    pub quorum_max: u32,
    /// Enough have to run for so long.
    pub fork_delay: Duration,
    /// Not enough have to run for so long.
    pub terminate_delay: Duration,
}

/// How a process is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    /// By the name that the kernel shows for it.
    Name,
    /// By its whole command line.
    Exact,
    /// By its command and its first parameters.
    Partial,
    /// By its command line, whose last parameter may be longer.
    Initial,
}

/// One `bfd_instance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdInstance {
    /// With whom.
    pub neighbour: IpAddr,
    /// From which address; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
    /// Shortest interval to receive at.
    pub min_rx: Duration,
    /// Shortest interval to send at.
    pub min_tx: Duration,
    /// Packets that may be missing.
    pub multiplier: NonZeroU8,
    /// The TTL that the neighbour sends with.
    pub ttl: u8,
    /// Less than that by at most so much; 255 is not checked.
    pub max_hops: u8,
    /// On the port of RFC 5883.
    pub multihop: bool,
    /// Weight where an instance gives none.
    pub weight: Weight,
}

/// One `vrrp_sync_group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Instances in it.
    pub members: Vec<String>,
    /// What concerns all members by its failure, or its weight.
    pub tracked: Vec<Tracked>,
    /// Whom to tell.
    pub notify: Notify,
}

/// Scripts that are told of transitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    /// Of all, with arguments that say which.
    pub any: Option<Command>,
    /// Became active.
    pub master: Option<Command>,
    /// Became a backup.
    pub backup: Option<Command>,
    /// Left the election because of a fault.
    pub fault: Option<Command>,
    /// Stopped.
    pub stop: Option<Command>,
}

/// A program with its arguments, run without a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Who runs it; `None` is who runs us.
    pub user: Option<String>,
    /// Group, if not the user's.
    pub group: Option<String>,
}

/// One `vrrp_script`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// What to run.
    pub command: Command,
    /// Between its starts.
    pub interval: Duration,
    /// It failed if it takes longer.
    pub timeout: Duration,
    /// Weight where `track_script` gives none.
    pub weight: Weight,
    /// So many failures count.
    pub fall: u32,
    /// So many successes count.
    pub rise: u32,
    /// Counts as failed until it succeeds.
    pub init_fail: bool,
}

/// Reads a configuration. `None` when there is an error among the problems: a broken one is refused whole.
pub fn read(path: &Path, files: &dyn Files) -> (Option<Configuration>, Problems) {
    let mut problems = Problems::default();
    let statements = syntax::read(path, files, &mut problems);
    let mut reader = Reader::default();
    // First what others fall back to, wherever it stands in the file.
    for statement in &statements {
        if statement.keyword() == "global_defs" {
            reader.global(statement, &mut problems);
        }
    }
    for statement in &statements {
        reader.top(statement, &mut problems);
    }
    reader.finish(&mut problems);
    let configuration = (!problems.any_error()).then_some(reader.configuration);
    (configuration, problems)
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    configuration: Configuration,
    defaults: global::Defaults,
    /// Where instances and groups were, for what is found out at the end.
    places: BTreeMap<String, Place>,
}

impl Reader {
    fn top(&mut self, statement: &Statement, problems: &mut Problems) {
        match statement.keyword() {
            "global_defs" => {}
            "net_namespace" => self.configuration.net_namespace = statement.one_name(problems),
            "vrrp_instance" => self.instance(statement, problems),
            "vrrp_sync_group" => self.group(statement, problems),
            "vrrp_script" => self.script(statement, problems),
            "virtual_server" | "virtual_server_group" | "real_server" | "SSL" => {
                problems.warn(statement, "is not part of VRRP, and ignored");
            }
            "static_ipaddress" | "static_routes" | "static_rules" | "static_address" | "static_track_group" => {
                problems.error(statement, "is not supported: make what is always there by the system's own means");
            }
            "vrrp_track_process" | "track_process" => self.process(statement, problems),
            "vrrp_track_file" | "track_file" => self.file(statement, problems),
            "bfd_instance" => self.bfd(statement, problems),
            "linkbeat_interfaces"
            | "linkbeat_use_polling"
            | "garp_group"
            | "process_names"
            | "interface_up_down_delays" => {
                problems.warn(statement, "has no effect here");
            }
            _ => problems.error(statement, "is not known"),
        }
    }

    /// What only shows when all is read.
    fn finish(&mut self, problems: &mut Problems) {
        let configuration = &mut self.configuration;
        if configuration.instances.is_empty() && !problems.any_error() {
            problems.warn_text("there is no vrrp_instance: nothing to do");
        }
        self.check_instances(problems);
        self.check_groups(problems);
        let configuration = &mut self.configuration;
        // What a group tracks, each of its members tracks.
        for group in &configuration.groups {
            for instance in configuration.instances.iter_mut().filter(|i| group.members.contains(&i.name)) {
                instance.tracked.extend(group.tracked.iter().cloned());
            }
        }
        self.weigh(problems);
    }

    fn check_instances(&self, problems: &mut Problems) {
        let mut seen = BTreeMap::new();
        let mut devices = BTreeMap::new();
        for instance in &self.configuration.instances {
            let Some(place) = self.places.get(&instance.name) else { continue };
            let key = (instance.interface.clone(), instance.vrid, instance.ipv6);
            if let Some(other) = seen.insert(key, &instance.name) {
                problems.error_at(
                    place,
                    format!("the same virtual router as in '{other}' (interface, identifier, family)"),
                );
            }
            if let Some(vmac) = &instance.vmac
                && let Some(other) = devices.insert(&vmac.link, &instance.name)
            {
                let text = format!("its device {} is that of '{other}', too: name it after use_vmac", vmac.link);
                problems.error_at(place, text);
            }
            for tracked in &instance.tracked {
                self.check_tracked(place, &instance.name, tracked, problems);
            }
        }
    }

    fn check_groups(&self, problems: &mut Problems) {
        let mut member_of = BTreeMap::new();
        for group in &self.configuration.groups {
            let place = &self.places[&format!("group {}", group.name)];
            for member in &group.members {
                if !self.configuration.instances.iter().any(|instance| instance.name == *member) {
                    problems.error_at(place, format!("group '{}': there is no vrrp_instance '{member}'", group.name));
                } else if let Some(other) = member_of.insert(member, &group.name) {
                    problems.error_at(place, format!("'{member}' is in group '{other}', too"));
                }
            }
            for tracked in &group.tracked {
                self.check_tracked(place, &format!("group {}", group.name), tracked, problems);
            }
        }
    }

    fn check_tracked(&self, place: &Place, owner: &str, tracked: &Tracked, problems: &mut Problems) {
        if self.default_weight(tracked).is_none() {
            let Tracked { what, name, .. } = tracked;
            problems.error_at(place, format!("'{owner}' tracks the {what} '{name}', which is not defined"));
        }
    }

    /// The weight that the definition gives; `None` without a definition.
    fn default_weight(&self, tracked: &Tracked) -> Option<Weight> {
        let Configuration { scripts, files, processes, bfd, .. } = &self.configuration;
        match tracked.what {
            What::Interface => Some(Weight::default()),
            What::Script => scripts.get(&tracked.name).map(|script| script.weight),
            What::File => files.get(&tracked.name).map(|file| file.weight),
            What::Process => processes.get(&tracked.name).map(|process| process.weight),
            What::Bfd => bfd.get(&tracked.name).map(|bfd| bfd.weight),
        }
    }

    /// Weights that are not said are those of the definitions; an owner's priority does not change.
    fn weigh(&mut self, problems: &mut Problems) {
        let mut instances = std::mem::take(&mut self.configuration.instances);
        for instance in &mut instances {
            for tracked in instance.tracked.iter_mut().filter(|tracked| tracked.weight == Weight::UNSAID) {
                tracked.weight = self.default_weight(tracked).unwrap_or_default();
            }
            if instance.priority != OWNER_PRIORITY {
                continue;
            }
            // Tracking never changes an owner's priority (RFC 9568 §5.2.4).
            for tracked in instance.tracked.iter_mut().filter(|tracked| tracked.weight.value != 0) {
                tracked.weight.value = 0;
                if let Some(place) = self.places.get(&instance.name) {
                    let (owner, name) = (&instance.name, &tracked.name);
                    let text = format!(
                        "'{owner}': an address owner's priority does not change, so '{name}' counts as a fault"
                    );
                    problems.warn_at(place, text);
                }
            }
        }
        self.configuration.instances = instances;
    }
}

impl Weight {
    /// Stands for what the definition of the tracked thing says.
    const UNSAID: Self = Self { value: i32::MIN, reverse: false };
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interface => "interface",
            Self::Script => "script",
            Self::File => "file",
            Self::Process => "process",
            Self::Bfd => "BFD session",
        })
    }
}

#[cfg(test)]
mod tests;
