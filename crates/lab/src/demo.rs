//! The walk-through: routers made with the stock client survive the loss of a host. A lab with the usual
//! profile tells of an HA router (`ha`), one with the profile `dvr-ha` of a distributed one (`distributed`).
//!
//! Every command shown is the command that is run, and every claim is checked: when one does not hold,
//! the walk-through ends with an error. It leaves a router, an instance and a floating IP behind, for
//! whoever goes on by hand.

mod distributed;
mod ha;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use evergate_model::RouterId;
use serde_json::Value;

use crate::client::Client;
use crate::lab::{ADMIN_CLOUD, DEFAULT_NAME, MEMBER_CLOUD};
use crate::narrator::Narrator;
use crate::spec::{Node, PHYSICAL_NETWORK, PROVIDER_CIDR, PROVIDER_GATEWAY, Profile, WEB};
use crate::{Lab, Machine, tools, wait_for};

/// Time between two packets of the probe that watches the failover.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// Longest time for anything that the walk-through waits for.
const PATIENCE: Duration = Duration::from_secs(40);

/// Runs the walk-through on a lab that is up.
///
/// # Errors
///
/// Something did not go as described.
pub fn run(lab: &Lab) -> Result<()> {
    let mut walk = Walk {
        lab,
        tell: Narrator::new(),
        admin: Client::start(lab, ADMIN_CLOUD)?,
        member: Client::start(lab, MEMBER_CLOUD)?,
    };
    match lab.spec().profile {
        Profile::Ha => ha::tell(&mut walk),
        Profile::DvrHa => distributed::tell(&mut walk),
    }
}

/// Who the client is logged in as.
#[derive(Clone, Copy)]
enum User {
    Admin,
    Member,
}

struct Walk<'a> {
    lab: &'a Lab,
    tell: Narrator,
    admin: Client,
    member: Client,
}

impl Walk<'_> {
    fn introduce(&mut self) -> Result<()> {
        if !self.admin.json("router list")?.as_array().is_none_or(Vec::is_empty) {
            bail!(
                "the walk-through starts with an empty cloud, and this one has routers: bring the lab up again first"
            );
        }
        self.tell.say(
            "This machine now runs a small cloud network. Every box below is a network namespace with its own \
             processes, files and network devices; what runs in them is what would run on real hosts.",
        );
        self.tell.picture(&picture(self.lab));
        Ok(())
    }

    /// The administrator's part: the provider's network.
    fn external_network(&mut self) -> Result<()> {
        self.tell.say(&format!(
            "The administrator describes the provider's network, {PROVIDER_CIDR}, which every network host has an \
             uplink to (bridge_mappings in its configuration), and whose router is {PROVIDER_GATEWAY}."
        ));
        self.shown(
            User::Admin,
            &format!(
                "network create public --external --provider-network-type flat --provider-physical-network \
                 {PHYSICAL_NETWORK} -c name -c router:external -c provider:network_type -c mtu"
            ),
        )?;
        self.shown(
            User::Admin,
            &format!(
                "subnet create public-subnet --network public --subnet-range {PROVIDER_CIDR} --gateway \
                 {PROVIDER_GATEWAY} --allocation-pool start=203.0.113.100,end=203.0.113.199 --no-dhcp -c name -c cidr \
                 -c gateway_ip"
            ),
        )
    }

    /// Gives an instance's port a floating IP, and asks the instance by it from outside; returns it.
    fn reached_by_floating_ip(&mut self, instance: &str) -> Result<String> {
        let create = format!("floating ip create public --port {instance}-port");
        self.shown(User::Member, &format!("{create} -c floating_ip_address -c fixed_ip_address -c status"))?;
        let list = self.member.json("floating ip list")?;
        let floating = list[0]["Floating IP Address"].as_str().context("the address of the floating IP")?.to_owned();
        let line = format!("evergate lab fetch http://{floating}/");
        self.tell.command("web", &line);
        let page =
            wait_for("the floating IP answers", PATIENCE, || self.lab.machine(Node::Web).shell(&line).map(Some))?;
        self.tell.output(&page);
        let greeting = format!("Hello from {instance}");
        self.tell.check(page.contains(&greeting), &format!("{instance} is reached at {floating}"))?;
        Ok(floating)
    }

    fn router_id(&mut self, name: &str) -> Result<RouterId> {
        let id = self.admin.ok(&format!("router show {name} -f value -c id"))?;
        id.trim().parse().context("the id of the new router")
    }

    /// The lab's command, as one would type it here.
    fn typed(&self) -> String {
        let evergate = &self.lab.spec().evergate;
        let here = std::env::current_dir().unwrap_or_default();
        let evergate = evergate.strip_prefix(here).unwrap_or(evergate).display();
        match self.lab.spec().name.as_str() {
            DEFAULT_NAME => format!("{evergate} lab"),
            name => format!("{evergate} lab --name {name}"),
        }
    }

    /// Runs a client command as it is shown.
    fn shown(&mut self, user: User, command: &str) -> Result<()> {
        let (place, client) = match user {
            User::Admin => ("admin", &mut self.admin),
            User::Member => ("member", &mut self.member),
        };
        self.tell.command(place, &format!("openstack {command}"));
        let out = client.ok(command)?;
        self.tell.output(&out);
        Ok(())
    }

    /// Runs a shell line on a node as it is shown.
    fn on(&self, machine: Machine<'_>, line: &str) -> Result<()> {
        self.tell.command(&machine.node.to_string(), line);
        self.tell.output(&machine.shell(line)?);
        Ok(())
    }

    /// Shows one of the lab's own verbs; the caller does what it does.
    fn lab_verb(&self, verb: &str) {
        self.tell.command("machine", &format!("evergate lab {verb}"));
    }

    fn fetch_from_instance(&self) -> Result<String> {
        self.tell.command("vm1", &format!("evergate lab fetch http://{WEB}/"));
        wait_for("the web server answers the instance", PATIENCE, || self.fetch_quietly().map(Some))
    }

    fn fetch_quietly(&self) -> Result<String> {
        let mut command = self.lab.instance_command("vm1", &self.lab.spec().evergate)?;
        tools::output(command.args(["lab", "fetch", &format!("http://{WEB}/")]))
    }

    fn external_address(&mut self) -> Result<String> {
        let shown = self.admin.json("router show router1")?;
        let address = shown["external_gateway_info"]["external_fixed_ips"][0]["ip_address"].as_str();
        address.map(ToOwned::to_owned).context("the API shows no external address of the router")
    }

    /// Waits until the API shows every copy alive or dead as it is, and exactly `active` as active.
    fn wait_states(&mut self, router: RouterId, active: Option<Node>) -> Result<()> {
        wait_for("the API shows who is active", PATIENCE, || {
            let shown = self.lab.api_ok("GET", &format!("/v2.0/routers/{router}/l3-agents"), None)?;
            let agents = shown["agents"].as_array().cloned().unwrap_or_default();
            let acting = agents.iter().filter(|agent| agent["ha_state"] == "active");
            let acting: Vec<_> = acting.filter_map(|agent| agent["host"].as_str()).collect();
            let wanted: Vec<_> = active.iter().map(ToString::to_string).collect();
            let on = |agent: &&Value| {
                let node = self.lab.spec().nodes().into_iter().find(|node| agent["host"] == node.to_string());
                node.is_some_and(|node| self.lab.machine(node).is_on())
            };
            let alive = agents.iter().filter(on).all(|agent| agent["alive"] == true);
            Ok((acting == wanted && alive).then_some(()))
        })
    }
}

/// One column of a list that the client printed as JSON.
fn column(list: &Value, name: &str) -> Vec<String> {
    let rows = list.as_array().into_iter().flatten();
    rows.filter_map(|row| row[name].as_str().map(ToOwned::to_owned)).collect()
}

/// The lab, drawn.
fn picture(lab: &Lab) -> String {
    let some = |count: u16, name: &str| match count {
        0 => String::new(),
        1 => format!("{name}1"),
        n if n <= 4 => (1..=n).map(|i| format!("{name}{i}")).collect::<Vec<_>>().join("  "),
        n => format!("{name}1 … {name}{n}"),
    };
    let (network, compute) = (some(lab.spec().network_hosts, "net"), some(lab.spec().compute_hosts, "cmp"));
    let (wide, narrow) = (network.len().max(22), compute.len().max(22));
    let picture = format!(
        "   controller            {network:<wide$}   {compute:<narrow$}
   API, identity         routers                  instances
       │                   │                        │
  ═════╧═══════════════════╧════════════════════════╧═════  underlay 10.60.0.0/16 (tunnels)
                           │ br-ex
  ═════════════════════════╧══════════════╤═══════════════  provider {PROVIDER_CIDR}
                                       outside (the provider's router)
                                          │
                                         web {WEB}"
    );
    picture.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
