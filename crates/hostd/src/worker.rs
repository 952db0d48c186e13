//! Runs a round: observe, compile, diff, apply, observe.
//!
//! The worker owns the kernel. It decides nothing but how far a round may go: while the keeper holds on
//! to a router that should go, nothing at all is removed.
//!
//! Observing a host takes longer the more routers it has, and a small change should not wait for that.
//! A *quick* round starts from what the last one left behind and follows its own ops with
//! [`effects`]; a round that observes comes after it, when the changes pause, and finds nothing to do or
//! puts it right. A round is not quick where a name that is needed for the first time is taken: whose it
//! is can only be seen. Nor where forwarding entries of the keeper's become control's.

mod hindrance;
mod prepare;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::Context;
use evergate_config::HostSettings;
use evergate_dataplane::keepalived::{HealthCheck, VrrpSettings};
use evergate_dataplane::nft::NftFamily;
use evergate_dataplane::{
    Desired, KernelState, Netns, NetnsState, Op, Plan, Refusal, View, check, compile, diff, effects,
};
use evergate_model::host::{FloatingIp, HostConfig, Location, PortForwarding};
use evergate_model::{FloatingIpId, Mac, PortId, RouterId, names};

use crate::round::{Outcome, Round};

/// Differences that are named when a round did not come out as it should.
const DIFFERENCES_NAMED: usize = 5;

/// Removals in one round. Taking a link away can cost the kernel a hundred times what making one does;
/// what the server wants next must not wait until all of many are gone.
pub const MOST_REMOVALS: usize = 32;

/// A kernel: the real one, or a test's.
pub trait Machine {
    /// Sees what there is, whatever is wanted.
    fn view(&mut self) -> anyhow::Result<View>;
    /// Tells whether a device of the host has this address.
    fn has_address(&mut self, ip: IpAddr) -> bool;
    /// Tells whether there is a namespace of this name, whoever made it.
    fn has_netns(&mut self, name: &str) -> bool;
    /// See `evergate_kernel::Kernel::observe`.
    fn observe(&mut self, desired: &KernelState) -> anyhow::Result<KernelState>;
    /// See `evergate_kernel::Kernel::apply`.
    fn apply(&mut self, ops: &[Op]) -> Vec<anyhow::Result<()>>;
    /// See `evergate_kernel::Kernel::encode`.
    fn encode(&mut self, op: &Op) -> anyhow::Result<Vec<u8>>;
    /// See `evergate_kernel::Kernel::link_index`.
    fn link_index(&mut self, netns: &Netns, link: &str) -> anyhow::Result<Option<u32>>;
    /// Where the nexthop groups of the keeper's forwarding entries lead.
    fn paths(&mut self) -> anyhow::Result<BTreeMap<u32, IpAddr>> {
        Ok(BTreeMap::new())
    }
}

/// Runs rounds on a machine.
#[derive(Debug)]
pub struct Worker<M> {
    machine: M,
    host: evergate_dataplane::HostSettings,
    vrrp: VrrpSettings,
    rtr_adv_interval: (u16, u16),
    /// What the last round left behind, if all went well.
    known: Option<KernelState>,
    /// Ethernet addresses whose entries were the keeper's in the last round.
    followed: BTreeSet<Mac>,
}

/// What would be done.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// What was seen, whatever is wanted.
    pub view: View,
    /// What must be.
    pub desired: Desired,
    /// What is.
    pub observed: KernelState,
    /// How to get there; without removals while [`Self::withheld`] is not empty.
    pub plan: Plan,
    /// What cannot be done, and why.
    pub problems: BTreeSet<String>,
    /// See [`Outcome::leftover`].
    pub leftover: BTreeSet<RouterId>,
    /// See [`Outcome::withheld`].
    pub withheld: BTreeSet<RouterId>,
    /// What of the keeper's forwarding entries leads elsewhere than claims say, in words. Found by
    /// [`Worker::plan`] alone; it is the keeper's to mend.
    pub astray: Vec<String>,
}

impl<M: Machine> Worker<M> {
    /// Takes a machine, and what this host's own files say.
    pub fn new(machine: M, settings: &HostSettings) -> Self {
        let (host, vrrp) = (host_settings(settings), vrrp_settings(settings));
        Self {
            machine,
            host,
            vrrp,
            rtr_adv_interval: settings.rtr_adv_interval,
            known: None,
            followed: BTreeSet::new(),
        }
    }

    /// Gives access to the machine.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Computes what a round would do now, and does nothing.
    pub fn plan(&mut self, round: &Round) -> anyhow::Result<Planned> {
        let (view, desired) = self.look(round)?;
        let observed = self.machine.observe(&desired.kernel).context("failed to observe the kernel")?;
        let paths = self.machine.paths().context("failed to list the keeper's paths")?;
        let mut planned = planned(round, view, desired, observed);
        planned.astray = check::followed(&planned.desired, &planned.observed, round.vtep, &paths);
        Ok(planned)
    }

    /// Sees what can be seen at a glance, and compiles with it.
    fn look(&mut self, round: &Round) -> anyhow::Result<(View, Desired)> {
        let mut view = self.machine.view().context("failed to look at the host")?;
        view.claims = round.claims.clone();
        self.host.local_ip = round.vtep;
        view.lacks_local_ip = round.vtep.is_some_and(|ip| !self.machine.has_address(ip));
        let desired = compile(&round.config, &self.host, &view);
        Ok((view, desired))
    }

    /// Runs a round.
    pub fn run(&mut self, round: &Round) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let (view, desired) = self.look(round)?;
        let succeeds = self.succeeds_keeper(&desired);
        let known = self.known.take();
        let known = known.filter(|known| round.quick && !succeeds && !self.is_name_taken(&view, &desired, known));
        let quick = known.is_some();
        let before = match known {
            Some(known) => known,
            None => self.machine.observe(&desired.kernel).context("failed to observe the kernel")?,
        };
        let mut planned = planned(round, view, desired, before);
        let after_planning = start.elapsed();
        let mut plan = std::mem::take(&mut planned.plan);
        let unfinished = plan.remove.len() > MOST_REMOVALS;
        plan.remove.truncate(MOST_REMOVALS);
        let ops = plan.into_ops();
        let removes = planned.withheld.is_empty() && !unfinished;
        let mut done = self.apply(&mut planned, &ops, Manner { quick, removes })?;
        let (prepared, unprepared) = self.prepare_copies(round, &planned);
        planned.problems.extend(unprepared);
        let mut outcome = Outcome {
            number: round.number,
            revision: round.config.revision,
            ops: ops.len(),
            verified: done.verified,
            unfinished,
            failures: std::mem::take(&mut done.failures),
            prepared,
            advertised: self.prepare_advertised(&planned.desired),
            followed: self.prepare_followed(&planned.desired),
            floating_ips: floating_ips(&round.config, &planned.observed),
            ..Outcome::default()
        };
        note_links(&mut outcome, &round.config, &planned.desired, &planned.observed);
        self.note_uplinks(&mut outcome, &planned.view);
        (outcome.problems, outcome.leftover, outcome.withheld) = (planned.problems, planned.leftover, planned.withheld);
        self.known = outcome.failures.is_empty().then_some(planned.observed);
        outcome.took = start.elapsed();
        tracing::debug!(quick, planned = ?after_planning, done = ?outcome.took, ops = outcome.ops, "round");
        Ok(outcome)
    }

    /// Applies a plan and finds out what came of it.
    fn apply(&mut self, planned: &mut Planned, ops: &[Op], manner: Manner) -> anyhow::Result<Applied> {
        if ops.is_empty() {
            return Ok(Applied { failures: Vec::new(), verified: !manner.quick });
        }
        let results = self.machine.apply(ops);
        let failed = |error: anyhow::Error| format!("{error:#}");
        let mut failures: Vec<String> = results.into_iter().filter_map(Result::err).map(failed).collect();
        let follow = |op| effects::apply(&mut planned.observed, op).is_ok();
        if manner.quick && failures.is_empty() && ops.iter().all(follow) {
            return Ok(Applied { failures, verified: false });
        }
        planned.observed =
            self.machine.observe(&planned.desired.kernel).context("failed to observe what was applied")?;
        if failures.is_empty() {
            let (mut rest, _) = diff(&planned.desired.kernel, &planned.observed);
            if !manner.removes {
                rest.remove.clear();
            }
            failures.extend(rest.ops().take(DIFFERENCES_NAMED).map(|op| format!("did not take effect: {op}")));
        }
        Ok(Applied { failures, verified: true })
    }

    /// Tells whether something that was not known of has the name of something that is wanted now.
    fn is_name_taken(&mut self, view: &View, desired: &Desired, known: &KernelState) -> bool {
        let nothing = NetnsState::default();
        desired.kernel.netns.iter().any(|(netns, wanted)| match (netns, known.netns.get(netns)) {
            (Netns::Named(name), None) => self.machine.has_netns(name),
            (Netns::Named(_), Some(_)) => false,
            (Netns::Host, known) => {
                let known = known.unwrap_or(&nothing);
                wanted.links.keys().any(|name| !known.links.contains_key(name) && view.links.contains(name))
            }
        })
    }

    /// Tells whether entries become control's that were the keeper's up to now: what those are can only be seen.
    fn succeeds_keeper(&mut self, desired: &Desired) -> bool {
        let Some(host) = desired.kernel.netns.get(&Netns::Host) else { return false };
        let before = std::mem::replace(&mut self.followed, host.keeper.fdb_macs.clone());
        host.fdb.iter().any(|entry| before.contains(&entry.mac))
    }

    /// An uplink that is not there yet matters, and so does an operator's bridge, which is in no plan.
    fn note_uplinks(&self, outcome: &mut Outcome, view: &View) {
        for device in self.host.physical_networks.values() {
            outcome.wanted_links.insert(device.clone());
            if view.links.contains(device) {
                outcome.links.entry(device.clone()).or_insert(true);
            }
        }
    }
}

/// How a plan is applied.
#[derive(Clone, Copy)]
struct Manner {
    quick: bool,
    /// Whether nothing is left to be removed afterwards.
    removes: bool,
}

/// What came of applying a plan.
struct Applied {
    failures: Vec<String>,
    /// Whether the kernel was asked.
    verified: bool,
}

fn planned(round: &Round, view: View, desired: Desired, observed: KernelState) -> Planned {
    let (mut plan, refusals) = diff(&desired.kernel, &observed);
    let leftover = leftover(&desired, &observed);
    let withheld: BTreeSet<RouterId> = leftover.difference(&round.released).copied().collect();
    if !withheld.is_empty() {
        plan.remove.clear();
    }
    let problems = problems(&desired, &refusals);
    Planned { view, desired, observed, plan, problems, leftover, withheld, astray: Vec::new() }
}

/// Finds routers that stand in the kernel as HA routers and should not, or in another namespace: the keeper may
/// have sockets in their namespaces, and must say goodbye to the other copies.
fn leftover(desired: &Desired, observed: &KernelState) -> BTreeSet<RouterId> {
    let mut found = BTreeSet::new();
    for (netns, state) in &observed.netns {
        let Netns::Named(name) = netns else { continue };
        let router = names::router_of_namespace(name).or_else(|| names::router_of_snat_namespace(name));
        let belongs = |id: &RouterId| desired.prepared.get(id).is_some_and(|prepared| prepared.netns == *name);
        if state.owned && state.links.keys().any(|link| link.starts_with("ha-")) {
            found.extend(router.filter(|id| !belongs(id)));
        }
    }
    found
}

fn problems(desired: &Desired, refusals: &[Refusal]) -> BTreeSet<String> {
    desired.problems.iter().map(ToString::to_string).chain(refusals.iter().map(ToString::to_string)).collect()
}

/// Notes which host links matter, which of them are there, and which ports that means.
fn note_links(outcome: &mut Outcome, config: &HostConfig, desired: &Desired, observed: &KernelState) {
    let no_links = BTreeMap::new();
    let links = observed.netns.get(&Netns::Host).map_or(&no_links, |host| &host.links);
    outcome.wanted_links =
        desired.kernel.netns.get(&Netns::Host).map_or_else(BTreeSet::new, |host| host.links.keys().cloned().collect());
    for (port, location) in ports_here(config) {
        let tap = names::tap(port);
        if links.get(&tap).is_some_and(|link| link.up) {
            outcome.ports_up.insert(port);
        }
        if location {
            outcome.wanted_links.insert(tap);
        }
    }
    outcome.links =
        outcome.wanted_links.iter().filter_map(|name| links.get(name).map(|link| (name.clone(), link.up))).collect();
}

/// Ports that may have a device here; true where a hypervisor may make it at any time.
fn ports_here(config: &HostConfig) -> impl Iterator<Item = (PortId, bool)> {
    config.networks.values().flat_map(|network| &network.ports).filter_map(|(id, port)| match port.location {
        Location::Local => Some((*id, true)),
        Location::Active { .. } | Location::Everywhere { .. } => Some((*id, false)),
        Location::Unbound | Location::Remote { .. } => None,
    })
}

fn floating_ips(config: &HostConfig, observed: &KernelState) -> BTreeSet<FloatingIpId> {
    let table =
        |netns: String| observed.netns.get(&Netns::Named(netns)).and_then(|state| state.nft.get(&NftFamily::Ip));
    let translates = |netns, floating| table(netns).is_some_and(|table| table.translates(floating));
    let mut found = BTreeSet::new();
    for (id, router) in &config.routers {
        let of = |fip: &FloatingIp| match router.distributed {
            Some(_) if !fip.distributed => names::snat_namespace(*id),
            Some(_) | None => names::qrouter_namespace(*id),
        };
        let here = router.floating_ips.iter().filter(|(_, fip)| translates(of(fip), fip.floating));
        found.extend(here.map(|(id, _)| *id));
        let netns =
            if router.distributed.is_some() { names::snat_namespace(*id) } else { names::qrouter_namespace(*id) };
        let forwarding = |one: &&PortForwarding| translates(netns.clone(), one.floating);
        found.extend(router.port_forwardings.values().filter(forwarding).filter_map(|one| one.floating_ip_id));
    }
    found
}

/// What dataplane needs of the settings.
pub fn host_settings(settings: &HostSettings) -> evergate_dataplane::HostSettings {
    let mut physical_networks = settings.physical_interface_mappings.clone();
    // A bridge made for it comes before an interface, as Neutron's agent decides.
    physical_networks.extend(settings.bridge_mappings.clone());
    evergate_dataplane::HostSettings {
        local_ip: settings.local_ip,
        vxlan_port: settings.vxlan_udp_port,
        physical_networks,
        ..evergate_dataplane::HostSettings::default()
    }
}

/// How the copies of this host elect.
pub fn vrrp_settings(settings: &HostSettings) -> VrrpSettings {
    VrrpSettings {
        version: settings.vrrp_version,
        advertise_interval_cs: settings
            .vrrp_advert_interval_ms
            .map_or(u16::from(settings.ha_vrrp_advert_int) * 100, |ms| ms / 10),
        preempt: settings.ha_vrrp_preempt,
        preempt_delay_s: settings.ha_vrrp_preempt_delay,
        password: settings.ha_vrrp_auth_password.as_ref().map(|secret| secret.0.clone()),
        health_check: (settings.ha_vrrp_health_check_interval > 0).then(|| HealthCheck {
            interval_s: settings.ha_vrrp_health_check_interval,
            fall: settings.ha_vrrp_health_check_fall,
            rise: settings.ha_vrrp_health_check_rise,
            ha_confs: settings.ha_confs_path.display().to_string(),
        }),
    }
}
