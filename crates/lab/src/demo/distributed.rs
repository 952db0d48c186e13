//! The story of a distributed HA router: what stays on the compute hosts, and what fails over between
//! gateways without anybody's noticing. The documented deployment, with the documented files.

use anyhow::{Context, Result};
use evergate_model::{RouterId, names};

use super::{PATIENCE, PROBE_INTERVAL, User, Walk, picture};
use crate::fault::{Daemon, Fault, Signal};
use crate::probe::{Report, Running};
use crate::spec::{Node, WEB};
use crate::wait_for;

/// Pings of the east-west experiment.
const PINGS: u64 = 50;

/// What the story ends with.
struct End {
    before: Node,
    after: Node,
    by_source_nat: Report,
    east_west: Report,
}

/// Tells it.
pub(super) fn tell(walk: &mut Walk<'_>) -> Result<()> {
    walk.introduce()?;
    walk.modes()?;
    let router = walk.distributed_router()?;
    let neighbour = walk.two_instances()?;
    walk.east_west(&neighbour)?;
    walk.at_the_source(router)?;
    walk.gateways(router)?;
    let end = walk.lose_gateway(router, &neighbour)?;
    walk.end_of_distribution(router, &end)
}

impl Walk<'_> {
    fn modes(&mut self) -> Result<()> {
        self.tell.chapter("Hosts with different parts in routing");
        self.tell.say(
            "Every host routes for its own instances. Network hosts can also translate addresses for those that \
             have no floating IP. The files are those of the documents:",
        );
        for node in [Node::Network(1), Node::Compute(1)] {
            self.on(self.lab.machine(node), "grep -H agent_mode /etc/neutron/l3_agent.ini")?;
        }
        self.on(self.lab.machine(Node::Controller), "grep -E 'l3_ha =|router_distributed' /etc/neutron/neutron.conf")
    }

    fn distributed_router(&mut self) -> Result<RouterId> {
        self.tell.chapter("A router that is everywhere");
        self.external_network()?;
        self.tell.say("A member of the project 'demo' makes two networks.");
        for (name, cidr) in [("left", "10.0.1.0/24"), ("right", "10.0.2.0/24")] {
            self.shown(User::Member, &format!("network create {name} -c name -c mtu"))?;
            self.shown(
                User::Member,
                &format!("subnet create {name}-subnet --network {name} --subnet-range {cidr} -c cidr -c gateway_ip"),
            )?;
        }
        let create = "router create router1 --distributed --ha --project demo -c name -c distributed -c ha";
        self.shown(User::Admin, create)?;
        self.shown(User::Member, "router set router1 --external-gateway public")?;
        self.shown(User::Member, "router add subnet router1 left-subnet")?;
        self.shown(User::Member, "router add subnet router1 right-subnet")?;
        self.router_id("router1")
    }

    /// Starts `vm1` and `vm2` on two hosts and in two networks; returns the second one's address.
    fn two_instances(&mut self) -> Result<String> {
        self.tell.say("Two instances, in different networks and on different hosts:");
        for (name, network, number) in [("vm1", "left", 1), ("vm2", "right", 2)] {
            self.shown(User::Member, &format!("port create {name}-port --network {network} -c name -c fixed_ips"))?;
            self.lab_verb(&format!("instance add {name} --port {name}-port --host cmp{number}"));
            self.lab.add_instance(name, &format!("{name}-port"), Node::Compute(number))?;
        }
        let instance = self.lab.instances()?.remove("vm2").context("vm2 is not there")?;
        let address = instance.address.split('/').next().unwrap_or_default().to_owned();
        let ping = format!("ping -q -c1 -W1 {address}");
        wait_for("the instances reach each other", PATIENCE, || self.lab.instance_shell("vm1", &ping).map(Some))?;
        Ok(address)
    }

    fn east_west(&mut self, neighbour: &str) -> Result<()> {
        self.tell.chapter("From network to network without a detour");
        self.tell.say(
            "On every host that has instances of it, the router has the same address with the same Ethernet \
             address. A packet is routed where it is sent, and goes straight to the other host. We count the pings \
             that come out of tunnels on every host:",
        );
        let nodes = self.lab.spec().hosts();
        for node in &nodes {
            self.lab.machine(*node).shell(&format!("nft '{COUNT}'"))?;
        }
        let line = format!("ping -q -c{PINGS} -i0.01 -W2 {neighbour}");
        self.tell.command("vm1", &line);
        self.tell.output(&self.lab.instance_shell("vm1", &line)?);
        for node in nodes {
            let seen = self.pings_seen(node)?;
            let wanted = if matches!(node, Node::Compute(1 | 2)) { PINGS } else { 0 };
            self.tell.check(seen == wanted, &format!("{node} received {seen} of them, or of their answers"))?;
        }
        Ok(())
    }

    fn pings_seen(&self, node: Node) -> Result<u64> {
        let machine = self.lab.machine(node);
        let listed = machine.shell("nft -j list chain netdev count tunnel; nft delete table netdev count")?;
        let listed: serde_json::Value = serde_json::from_str(&listed).context("what 'nft' printed")?;
        let items = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let parts = items.iter().filter_map(|item| item["rule"]["expr"].as_array()).flatten();
        Ok(parts.filter_map(|part| part["counter"]["packets"].as_u64()).sum())
    }

    fn at_the_source(&mut self, router: RouterId) -> Result<()> {
        self.tell.chapter("A floating IP is on the instance's own host");
        self.reached_by_floating_ip("vm2")?;
        self.on(self.lab.machine(Node::Compute(2)), "ip netns list")?;
        let here = self.lab.machine(Node::Compute(2)).shell("ip netns list")?;
        let own = here.contains("fip-") && here.contains(&names::qrouter_namespace(router)) && !here.contains("snat-");
        self.tell.check(own, "its host has the router and a way out of its own, and no gateway's part")
    }

    fn gateways(&mut self, router: RouterId) -> Result<()> {
        self.tell.chapter("Without a floating IP, one of two gateways translates");
        let active = self.lab.wait_active(router)?;
        self.wait_states(router, Some(active))?;
        self.shown(User::Admin, "network agent list --router router1 --long -c Host -c Alive -c 'HA State'")?;
        let look = format!("ip -n {} -br address", names::snat_namespace(router));
        self.on(self.lab.machine(active), &look)?;
        let page = self.fetch_from_instance()?;
        self.tell.output(&page);
        let outside = self.external_address()?;
        self.tell.check(page.contains(&outside), &format!("the web server saw {outside}, the router's address"))
    }

    fn lose_gateway(&mut self, router: RouterId, neighbour: &str) -> Result<End> {
        self.tell.chapter("The active gateway loses its power, and the server is away");
        self.tell.say(&format!(
            "Two probes of a packet every {} ms run: from vm1 to the outside through the gateway, and to vm2. We \
             stop the server, so that nobody can help, and cut the power of the active gateway.",
            PROBE_INTERVAL.as_millis()
        ));
        let before = self.lab.wait_active(router)?;
        self.lab.wait_watching(router)?;
        let neighbour = neighbour.parse().context("the address of vm2")?;
        let east_west = Running::start_towards(self.lab, "vm1", neighbour, PROBE_INTERVAL)?;
        let by_source_nat = Running::start(self.lab, "vm1", PROBE_INTERVAL)?;
        self.fetch_quietly()?;
        let server = Fault::Process(Daemon::Server, Signal::Stop);
        self.lab_verb("fail controller process server --signal STOP");
        self.lab.fail(Node::Controller, server.clone())?;
        self.lab_verb(&format!("fail {before} power"));
        self.lab.fail(before, Fault::Power)?;
        let after = self.lab.wait_active(router)?;
        wait_for("the web server answers again", PATIENCE, || self.fetch_quietly().map(Some))?;
        let (by_source_nat, east_west) = (by_source_nat.finish()?, east_west.finish()?);
        self.tell.say("From vm1 to the outside:");
        self.tell.output(&by_source_nat.to_string());
        self.tell.say("From vm1 to vm2:");
        self.tell.output(&east_west.to_string());
        self.tell.check(after != before, &format!("{after} took over, and every compute host sends there now"))?;
        self.tell.check(east_west.lost() == 0, "between the instances, no packet was lost")?;
        self.lab_verb("heal all");
        self.lab.heal(Node::Controller, &server)?;
        self.lab.heal(before, &Fault::Power)?;
        self.wait_states(router, Some(after))?;
        self.shown(User::Admin, "network agent list --router router1 --long -c Host -c Alive -c 'HA State'")?;
        Ok(End { before, after, by_source_nat, east_west })
    }

    fn end_of_distribution(&mut self, router: RouterId, end: &End) -> Result<()> {
        self.tell.chapter("What you have seen, and what you can do now");
        self.tell.picture(&picture(self.lab));
        let End { before, after, by_source_nat, east_west } = end;
        self.tell.picture(&format!(
            "  active gateway before  {before}
  active gateway now     {after}
  gap by source NAT      {:.0} ms (one packet every {} ms)
  lost between instances {}
  router                 {router}
  instances              vm1 on cmp1, vm2 on cmp2; the web server is {WEB}

The lab goes on running. Go on with `{} …`: status, exec cmp1, instance exec vm1, fail {after} power, heal all, down
",
            by_source_nat.longest_gap_ms(),
            PROBE_INTERVAL.as_millis(),
            east_west.lost(),
            self.typed(),
        ));
        Ok(())
    }
}

/// Counts pings and their answers that come to the tunnel port: the inner frame's type and protocol.
const COUNT: &str = "add table netdev count; \
                     add chain netdev count tunnel { type filter hook ingress device eth0 priority 0; }; \
                     add rule netdev count tunnel udp dport 4789 @th,224,16 0x0800 @th,312,8 1 counter";
