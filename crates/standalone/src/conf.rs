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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
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
    /// Interfaces that must be up, or count.
    pub track_interfaces: Vec<Tracked>,
    /// Scripts that must succeed, or count.
    pub track_scripts: Vec<Tracked>,
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

/// An interface or a script that is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Its name.
    pub name: String,
    /// 0: its failure is a fault. Above: added while it works. Below: added while it does not.
    pub weight: i32,
}

/// One `vrrp_sync_group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Instances in it.
    pub members: Vec<String>,
    /// Interfaces whose failure, or weight, concerns all members.
    pub track_interfaces: Vec<Tracked>,
    /// Scripts, likewise.
    pub track_scripts: Vec<Tracked>,
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
    pub weight: i32,
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
            "vrrp_track_process" | "track_process" => {
                problems.error(statement, "is not supported: use a vrrp_script that looks for the process");
            }
            "vrrp_track_file" | "track_file" => {
                problems.error(statement, "is not supported: use a vrrp_script that reads the file");
            }
            "bfd_instance" => problems.error(statement, "is not supported in this mode"),
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
        let mut seen = BTreeMap::new();
        for instance in &configuration.instances {
            let key = (instance.interface.clone(), instance.vrid, instance.ipv6);
            if let Some(other) = seen.insert(key, instance.name.clone())
                && let Some(place) = self.places.get(&instance.name)
            {
                problems.error_at(
                    place,
                    format!("the same virtual router as in '{other}' (interface, identifier, family)"),
                );
            }
            for tracked in &instance.track_scripts {
                check_script(&self.places, &instance.name, tracked, &configuration.scripts, problems);
            }
        }
        let mut member_of = BTreeMap::new();
        for group in &configuration.groups {
            let place = &self.places[&format!("group {}", group.name)];
            for member in &group.members {
                if !configuration.instances.iter().any(|instance| instance.name == *member) {
                    problems.error_at(place, format!("group '{}': there is no vrrp_instance '{member}'", group.name));
                } else if let Some(other) = member_of.insert(member, &group.name) {
                    problems.error_at(place, format!("'{member}' is in group '{other}', too"));
                }
            }
            for tracked in &group.track_scripts {
                check_script(&self.places, &format!("group {}", group.name), tracked, &configuration.scripts, problems);
            }
        }
        // What a group tracks, each of its members tracks.
        for group in configuration.groups.clone() {
            for instance in configuration.instances.iter_mut().filter(|i| group.members.contains(&i.name)) {
                instance.track_interfaces.extend(group.track_interfaces.iter().cloned());
                instance.track_scripts.extend(group.track_scripts.iter().cloned());
            }
        }
        let scripts = &configuration.scripts;
        for instance in &mut configuration.instances {
            for tracked in instance.track_scripts.iter_mut().filter(|tracked| tracked.weight == objects::NO_WEIGHT) {
                tracked.weight = scripts.get(&tracked.name).map_or(0, |script| script.weight);
            }
            if instance.priority == OWNER_PRIORITY {
                // Tracking never changes an owner's priority (RFC 9568 §5.2.4).
                for tracked in instance.track_interfaces.iter_mut().chain(&mut instance.track_scripts) {
                    if tracked.weight != 0 {
                        tracked.weight = 0;
                        if let Some(place) = self.places.get(&instance.name) {
                            problems.warn_at(
                                place,
                                format!(
                                    "'{}': an address owner's priority does not change, so '{}' counts as a fault",
                                    instance.name, tracked.name
                                ),
                            );
                        }
                    }
                }
            }
        }
    }
}

fn check_script(
    places: &BTreeMap<String, Place>,
    owner: &str,
    tracked: &Tracked,
    scripts: &BTreeMap<String, Script>,
    problems: &mut Problems,
) {
    if !scripts.contains_key(&tracked.name)
        && let Some(place) = places.get(owner)
    {
        problems.error_at(place, format!("'{owner}' tracks the script '{}', which is not defined", tracked.name));
    }
}

#[cfg(test)]
mod tests;
