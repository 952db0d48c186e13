//! What `evergate show` prints: one value, as JSON or as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use evergate_config::settings::InterfaceDriver;
use evergate_keeper::protocol::{BfdStatus, ReplicationStatus, RouterStatus};
use evergate_model::host::{Location, Network, Router, Segment};
use evergate_model::{HaState, NetworkId, RouterId, names};
use serde::{Deserialize, Serialize};

use crate::L2_DRIVER;
use crate::core::keeper::Connection;
use crate::core::{Core, state_word};
use crate::timestamp;

/// All that the host daemon knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// The host's name.
    pub host: String,
    /// Control's process id.
    pub pid: u32,
    /// Neutron's `agent_mode`.
    pub agent_mode: String,
    /// What the files ask for, and what runs.
    pub driver: String,
    /// This host's tunnel address.
    pub tunnel_address: Option<IpAddr>,
    /// The connection to the server.
    pub server: ServerView,
    /// Revision of the configuration in force.
    pub revision: Option<u64>,
    /// Whether it is the cache's, because the server has not spoken yet.
    pub from_cache: bool,
    /// Revision that the kernel was last brought to.
    pub applied_revision: Option<u64>,
    /// The last round of reconciliation.
    pub last_round: Option<RoundView>,
    /// The keeper.
    pub keeper: KeeperView,
    /// Routers with a copy here.
    pub routers: BTreeMap<RouterId, RouterView>,
    /// Networks that this host carries.
    pub networks: BTreeMap<NetworkId, NetworkView>,
    /// What an operator should know.
    pub problems: Vec<String>,
    /// What was found at start: what the host lacks, what stands in for what.
    pub notes: Vec<String>,
}

/// The connection to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Its address.
    pub url: String,
    /// Whether the stream is up.
    pub connected: bool,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Why it is not.
    pub error: Option<String>,
}

/// A round of reconciliation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundView {
    /// Counts the rounds of the process.
    pub number: u64,
    /// Why it ran.
    pub why: String,
    /// How long it took.
    pub took_ms: f64,
    /// Ops applied.
    pub ops: usize,
}

/// The keeper.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeeperView {
    /// Whether control is connected to it.
    pub connected: bool,
    /// Its process id.
    pub pid: Option<u32>,
    /// How late its timing loop was at worst, in microseconds.
    pub worst_lateness_us: u64,
    /// Whether it runs at real-time priority.
    pub realtime: bool,
    /// Packets refused, by reason.
    pub discards: BTreeMap<String, u64>,
    /// What the host did not permit it.
    pub notes: Vec<String>,
    /// Its last warnings.
    pub warnings: Vec<String>,
    /// BFD sessions with the hosts that routers are shared with.
    #[serde(default)]
    pub bfd: Vec<BfdStatus>,
}

/// A router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouterView {
    /// `legacy`, `ha`, or `dvr`; `dvr+ha` where this host has a copy of a distributed HA router's source NAT.
    pub kind: String,
    /// The project that owns it.
    pub project_id: String,
    /// Whether it is administratively up.
    pub admin_state_up: bool,
    /// Its namespaces here.
    pub netns: Vec<String>,
    /// `active`, `standby`, or `unknown` while the keeper has not said.
    pub role: String,
    /// Epoch of the role.
    pub epoch: Option<u64>,
    /// Since when, in milliseconds since the Unix epoch; `None` if it was so when control started.
    pub since_ms: Option<u64>,
    /// Why.
    pub reason: String,
    /// How long the last change took, in microseconds.
    pub took_us: u64,
    /// Tunnel address of the active copy's host, as claimed.
    pub active_at: Option<IpAddr>,
    /// VRRP, for an HA router.
    pub vrrp: Option<VrrpView>,
    /// How its connections are replicated, for an HA router.
    #[serde(default)]
    pub connections: Option<ReplicationStatus>,
    /// What keeps it from taking part; empty if nothing does.
    pub hindrance: String,
    /// What it lacks of what an active copy is for (an uplink, a gateway); empty if nothing is known to be lacking.
    #[serde(default)]
    pub impairment: String,
    /// What is wrong although it takes part; empty if nothing is.
    #[serde(default)]
    pub problem: String,
    /// Devices in its namespace, with their addresses.
    pub devices: BTreeMap<String, Vec<String>>,
    /// Extra routes, `<destination> via <next hop>`.
    pub routes: Vec<String>,
    /// Floating to fixed address.
    pub floating_ips: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

/// A copy's VRRP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VrrpView {
    /// Virtual router identifier.
    pub vrid: u8,
    /// The HA device.
    pub device: String,
    /// Our address on the HA network.
    pub address: String,
    /// Present on the active copy alone.
    pub virtual_address: String,
    /// Priority.
    pub priority: u8,
    /// The host where the role is wanted, if somebody wants it somewhere.
    #[serde(default)]
    pub wanted_at: Option<String>,
    /// The other copies' hosts and their addresses.
    pub peers: BTreeMap<String, Ipv4Addr>,
    /// State in RFC 9568's words.
    pub state: String,
    /// Where the last advertisement came from.
    pub heard_from: Option<Ipv4Addr>,
    /// Advertisements sent.
    pub sent: u64,
    /// Advertisements received.
    pub received: u64,
}

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// What carries it.
    pub segment: String,
    /// Its bridge.
    pub bridge: String,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Ports on any host.
    pub ports: usize,
    /// Ports on this one.
    pub ports_here: usize,
    /// Those of them whose device is up.
    pub ports_up: usize,
    /// Other hosts that have it.
    pub peers: BTreeSet<IpAddr>,
}

/// Puts together what `show` prints.
pub fn view(core: &Core, server: &ServerView, notes: &[String], more_problems: &[String]) -> HostView {
    let settings = core.settings();
    let config = core.config();
    let mut problems = core.warnings();
    problems.extend_from_slice(more_problems);
    HostView {
        host: settings.host.clone(),
        pid: std::process::id(),
        agent_mode: settings.agent_mode.as_str().to_owned(),
        driver: driver(settings.interface_driver),
        tunnel_address: core.vtep(),
        server: server.clone(),
        revision: config.map(|c| c.revision),
        from_cache: core.is_from_cache(),
        applied_revision: core.applied_revision(),
        last_round: core.last_round().map(|last| RoundView {
            number: last.outcome.number,
            why: last.why.clone(),
            took_ms: last.outcome.took.as_secs_f64() * 1e3,
            ops: last.outcome.ops,
        }),
        keeper: keeper_view(core),
        routers: config.iter().flat_map(|c| &c.routers).map(|(id, r)| (*id, router_view(core, r))).collect(),
        networks: config.iter().flat_map(|c| &c.networks).map(|(id, n)| (*id, network_view(core, n))).collect(),
        problems,
        notes: notes.to_vec(),
    }
}

/// Names the driver that was asked for and the one that runs.
pub fn driver(asked: InterfaceDriver) -> String {
    match asked {
        InterfaceDriver::LinuxBridge => L2_DRIVER.to_owned(),
        InterfaceDriver::OpenVSwitch => format!("{L2_DRIVER} (interface_driver openvswitch selects the {L2_DRIVER})"),
    }
}

fn keeper_view(core: &Core) -> KeeperView {
    let (connection, words) = (core.keeper().connection(), core.keeper().words());
    KeeperView {
        connected: matches!(connection, Connection::Up { .. }),
        pid: words.hello.map(|(_, pid)| pid),
        worst_lateness_us: words.status.worst_lateness_us,
        realtime: words.status.realtime,
        discards: words.status.discards.clone(),
        notes: words.notes.clone(),
        warnings: words.warnings.iter().cloned().collect(),
        bfd: words.status.bfd.clone(),
    }
}

fn router_view(core: &Core, router: &Router) -> RouterView {
    let status = core.keeper().words().status.routers.iter().find(|status| status.router == router.id);
    let mut view = RouterView {
        kind: kind(router).to_owned(),
        project_id: router.project_id.clone(),
        admin_state_up: router.admin_state_up,
        netns: namespaces(router),
        role: if router.ha.is_some() { "unknown" } else { state_word(HaState::Active) }.to_owned(),
        active_at: core.keeper().claim(router.id).map(|claim| claim.vtep),
        vrrp: vrrp_view(router, status),
        connections: core.keeper().words().status.replication.iter().find(|one| one.router == router.id).copied(),
        hindrance: hindrance(core, router.id, status),
        impairment: status.map(|status| status.impairment.clone()).unwrap_or_default(),
        problem: status.map(|status| status.problem.clone()).unwrap_or_default(),
        devices: devices(router),
        routes: router.routes.iter().map(|r| format!("{} via {}", r.destination, r.nexthop)).collect(),
        floating_ips: router.floating_ips.values().map(|fip| (fip.floating, fip.fixed)).collect(),
        ..RouterView::default()
    };
    if let Some(role) = core.keeper().roles().get(&router.id) {
        state_word(role.state).clone_into(&mut view.role);
        (view.epoch, view.since_ms, view.took_us) = (Some(role.epoch), role.since_ms, role.took_us);
        view.reason.clone_from(&role.reason);
    }
    view
}

fn kind(router: &Router) -> &'static str {
    match (&router.distributed, &router.ha) {
        (None, None) => "legacy",
        (None, Some(_)) => "ha",
        (Some(_), None) => "dvr",
        (Some(_), Some(_)) => "dvr+ha",
    }
}

fn namespaces(router: &Router) -> Vec<String> {
    let Some(parts) = &router.distributed else { return vec![names::qrouter_namespace(router.id)] };
    let of = |here: bool, name: String| here.then_some(name);
    let external = router.gateway.as_ref().filter(|_| parts.routes_here && parts.agent_gateway.is_some());
    [
        of(parts.routes_here, names::qrouter_namespace(router.id)),
        of(parts.translates_here, names::snat_namespace(router.id)),
        external.map(|gateway| names::fip_namespace(gateway.network_id)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn hindrance(core: &Core, router: RouterId, status: Option<&RouterStatus>) -> String {
    let ours = core.last_round().and_then(|last| last.outcome.prepared.get(&router)).map(|copy| &copy.hindrance);
    match (ours, status) {
        (Some(ours), _) if !ours.is_empty() => ours.clone(),
        (_, Some(status)) => status.hindrance.clone(),
        (_, None) => String::new(),
    }
}

fn vrrp_view(router: &Router, status: Option<&RouterStatus>) -> Option<VrrpView> {
    let copy = router.ha.as_ref()?;
    Some(VrrpView {
        vrid: copy.vrid,
        device: names::ha_device(copy.port_id),
        address: copy.address.to_string(),
        virtual_address: copy.virtual_address.to_string(),
        priority: copy.priority,
        wanted_at: copy.wish.as_ref().map(|wish| wish.host.clone()),
        peers: copy.peers.iter().map(|(host, peer)| (host.clone(), peer.address)).collect(),
        state: status.map(|s| s.vrrp_state.clone()).unwrap_or_default(),
        heard_from: status.and_then(|s| s.heard_from),
        sent: status.map_or(0, |s| s.sent),
        received: status.map_or(0, |s| s.received),
    })
}

fn devices(router: &Router) -> BTreeMap<String, Vec<String>> {
    let parts = router.distributed.as_ref();
    let translates = |_: &&_| parts.is_none_or(|parts| parts.translates_here);
    let routes = |_: &(_, _)| parts.is_none_or(|parts| parts.routes_here);
    let gateway = router.gateway.iter().filter(translates).map(|g| (names::external_device(g.port_id), &g.addresses));
    let interfaces = router.interfaces.iter().filter(routes);
    let interfaces = interfaces.map(|(port, i)| (names::internal_device(*port), &i.addresses));
    let snat = parts.filter(|parts| parts.translates_here).into_iter().flat_map(|parts| &parts.snat_ports);
    let snat = snat.map(|(port, i)| (names::snat_device(*port), &i.addresses));
    let agent = parts.filter(|parts| parts.routes_here).and_then(|parts| parts.agent_gateway.as_ref());
    let agent = agent.map(|agent| (names::agent_gateway_device(agent.port_id), &agent.addresses));
    let all = gateway.chain(interfaces).chain(snat).chain(agent);
    all.map(|(name, nets)| (name, nets.iter().map(ToString::to_string).collect())).collect()
}

fn network_view(core: &Core, network: &Network) -> NetworkView {
    let up = core.last_round().map(|last| &last.outcome.ports_up);
    let here = |location: &Location| matches!(location, Location::Local);
    NetworkView {
        segment: match &network.segment {
            Segment::Vxlan { vni } => format!("vxlan {vni}"),
            Segment::Flat { physical_network } => format!("flat {physical_network}"),
            Segment::Local => "local".to_owned(),
        },
        bridge: names::bridge(network.id),
        mtu: network.mtu,
        ports: network.ports.len(),
        ports_here: network.ports.values().filter(|port| here(&port.location)).count(),
        ports_up: up.map_or(0, |up| network.ports.keys().filter(|id| up.contains(id)).count()),
        peers: network.peers.clone(),
    }
}

impl fmt::Display for HostView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host      {} (control is process {}), agent_mode {}", self.host, self.pid, self.agent_mode)?;
        writeln!(f, "networks  {}; tunnel address {}", self.driver, or_none(self.tunnel_address.as_ref()))?;
        writeln!(f, "server    {}", self.server)?;
        self.fmt_revision(f)?;
        writeln!(f, "keeper    {}", self.keeper)?;
        for (title, lines) in [("problems", &self.problems), ("notes", &self.notes)] {
            if !lines.is_empty() {
                writeln!(f, "\n{title}")?;
            }
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        writeln!(f, "\nrouters   {}", self.routers.len())?;
        for (id, router) in &self.routers {
            let since = router.since_ms.map(|at| format!(" since {}", timestamp::utc(at))).unwrap_or_default();
            let epoch = router.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
            writeln!(f, "  {id}  {:6}  {}{since}{epoch}{}", router.kind, router.role, brackets(&router.hindrance))?;
        }
        writeln!(f, "\nnetworks  {}", self.networks.len())?;
        for (id, network) in &self.networks {
            writeln!(
                f,
                "  {id}  {}  {}  mtu {}  ports {} ({} here, {} up)  on {} other hosts",
                network.bridge,
                network.segment,
                network.mtu,
                network.ports,
                network.ports_here,
                network.ports_up,
                network.peers.len()
            )?;
        }
        Ok(())
    }
}

impl HostView {
    fn fmt_revision(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = if self.from_cache { " (from the cache: the server has not spoken yet)" } else { "" };
        write!(
            f,
            "revision  {}{source}, kernel at {}",
            or_none(self.revision.as_ref()),
            or_none(self.applied_revision.as_ref())
        )?;
        match &self.last_round {
            Some(round) => {
                writeln!(
                    f,
                    "; last round {} ({}): {} ops in {:.1} ms",
                    round.number, round.why, round.ops, round.took_ms
                )
            }
            None => writeln!(f, "; nothing reconciled yet"),
        }
    }

    /// Finds routers by their id or its beginning.
    pub fn routers_like(&self, id: &str) -> Vec<(&RouterId, &RouterView)> {
        self.routers.iter().filter(|(router, _)| router.to_string().starts_with(id)).collect()
    }
}

impl fmt::Display for ServerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.connected { "connected" } else { "away" };
        write!(f, "{} {state} since {}", self.url, timestamp::utc(self.since_ms))?;
        self.error.iter().try_for_each(|error| write!(f, ": {error}"))
    }
}

impl fmt::Display for KeeperView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.connected {
            return f.write_str("not connected");
        }
        let priority = if self.realtime { "real-time priority" } else { "ordinary priority" };
        write!(f, "process {}, {priority}, at worst {} us late", or_none(self.pid.as_ref()), self.worst_lateness_us)?;
        for (reason, count) in &self.discards {
            write!(f, "\n          discarded {count}: {reason}")?;
        }
        for session in &self.bfd {
            let ms = |micros: u64| micros as f64 / 1000.0;
            write!(
                f,
                "\n          BFD with {}: {}, every {} ms, gone after {} ms; last down: {}",
                or_none(session.peer.as_ref()),
                session.state,
                ms(session.transmit_interval_us),
                ms(session.detection_time_us),
                session.diagnostic
            )?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n          {note}"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\n          said: {warning}"))
    }
}

impl fmt::Display for RouterView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let admin = if self.admin_state_up { "" } else { ", administratively down" };
        writeln!(f, "router      {} of project {}{admin}", self.kind, self.project_id)?;
        writeln!(f, "namespace   {}", self.netns.join(" "))?;
        write!(f, "role        {}", self.role)?;
        self.epoch.iter().try_for_each(|epoch| write!(f, ", epoch {epoch}"))?;
        self.since_ms.iter().try_for_each(|at| write!(f, ", since {}", timestamp::utc(*at)))?;
        writeln!(f)?;
        if !self.reason.is_empty() {
            writeln!(f, "because     {} (took {} us)", self.reason, self.took_us)?;
        }
        if !self.problem.is_empty() {
            writeln!(f, "problem     {}", self.problem)?;
        }
        if !self.hindrance.is_empty() {
            writeln!(f, "hindered    {}", self.hindrance)?;
        }
        if !self.impairment.is_empty() {
            writeln!(f, "impaired    {}", self.impairment)?;
        }
        self.active_at.iter().try_for_each(|at| writeln!(f, "active at   {at}"))?;
        self.vrrp.iter().try_for_each(|vrrp| write!(f, "{vrrp}"))?;
        self.connections.iter().try_for_each(|status| writeln!(f, "connections {}", connections(status)))?;
        for (name, addresses) in &self.devices {
            writeln!(f, "device      {name}  {}", addresses.join(" "))?;
        }
        self.routes.iter().try_for_each(|route| writeln!(f, "route       {route}"))?;
        self.floating_ips.iter().try_for_each(|(floating, fixed)| writeln!(f, "floating    {floating} is {fixed}"))
    }
}

impl fmt::Display for VrrpView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vrrp        VRID {}, priority {}, {}", self.vrid, self.priority, self.state)?;
        let heard = self.heard_from.map(|from| format!(", last from {from}")).unwrap_or_default();
        writeln!(f, "heard       {} sent, {} received{heard}", self.sent, self.received)?;
        writeln!(f, "device      {}  {} (virtual address {})", self.device, self.address, self.virtual_address)?;
        self.wanted_at.iter().try_for_each(|host| writeln!(f, "wanted at   {host}"))?;
        self.peers.iter().try_for_each(|(host, address)| writeln!(f, "copy        {host}  {address}"))
    }
}

/// How connections are replicated, in one line.
fn connections(status: &ReplicationStatus) -> String {
    let mut words = match (status.active, status.peers, status.in_step) {
        (true, 0, _) => format!("{} tracked, no other copy asks for them", status.entries),
        (true, peers, true) => {
            format!("{} told to {peers} other copies, last in {} us", status.entries, status.lag_us)
        }
        (true, peers, false) => {
            format!("{} being told to {peers} other copies, last in {} us", status.entries, status.lag_us)
        }
        (false, _, true) => format!("{} kept ready", status.entries),
        (false, _, false) => format!("{} kept ready, not yet all there are", status.entries),
    };
    for (count, what) in [
        (status.shed, "never told (too short-lived, or too many)"),
        (status.resyncs, "times told anew"),
        (status.refused, "more without room in this host's kernel"),
    ] {
        if count > 0 {
            words += &format!("; {count} {what}");
        }
    }
    words
}

fn or_none<T: fmt::Display>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

fn brackets(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("  ({text})") }
}
