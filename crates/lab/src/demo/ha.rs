//! The story of an HA router that is on three hosts: the book chapter's walk-through.

use std::fs;

use anyhow::{Result, bail};
use evergate_model::{RouterId, names};
use serde_json::Value;

use super::{PATIENCE, PROBE_INTERVAL, User, Walk, column, picture};
use crate::fault::{Daemon, Fault, Signal};
use crate::probe::{Report, Running};
use crate::spec::{Node, WEB};
use crate::{AGENT_DOWN_TIME_S, wait_for};

/// Tells it.
pub(super) fn tell(walk: &mut Walk<'_>) -> Result<()> {
    walk.introduce()?;
    walk.three_hosts()?;
    walk.networks()?;
    let router = walk.router()?;
    walk.copies(router)?;
    walk.instance()?;
    let floating = walk.floating_ip()?;
    let before = walk.lab.wait_active(router)?;
    let (after, report) = walk.lose_host(router, before)?;
    walk.old_one_returns(router, before, after)?;
    walk.restart_control(router, after)?;
    walk.delete_a_router()?;
    walk.conclude(router, &floating, before, after, &report)
}

impl Walk<'_> {
    fn three_hosts(&mut self) -> Result<()> {
        self.tell.chapter("Three hosts that can carry routers");
        self.tell
            .say("The stock OpenStack client, logged in as administrator, lists the hosts that can carry routers:");
        self.shown(User::Admin, "network agent list --agent-type l3 -c Host -c Alive -c State -c Binary")?;
        let alive = self.lab.spec().network_hosts;
        let list = self.admin.json("network agent list --agent-type l3")?;
        let hosts = column(&list, "Host");
        self.tell.check(hosts.len() == usize::from(alive), &format!("{alive} L3 agents are alive"))
    }

    fn networks(&mut self) -> Result<()> {
        self.tell.chapter("An external network, and a project's own");
        self.external_network()?;
        self.tell.say("An ordinary member of the project 'demo' makes a network of their own. It travels between hosts in VXLAN tunnels.");
        self.shown(User::Member, "network create private -c name -c mtu -c status")?;
        self.shown(
            User::Member,
            "subnet create private-subnet --network private --subnet-range 10.0.0.0/24 -c name -c cidr -c gateway_ip",
        )
    }

    fn router(&mut self) -> Result<RouterId> {
        self.tell.chapter("A router that is on three hosts at once");
        self.tell.say("Only an administrator may ask for a highly available router by name:");
        let wish = "router create router1 --ha";
        self.tell.command("member", &format!("openstack {wish}"));
        let refusal = self.member.refused(wish)?;
        self.tell.output(&refusal);
        self.tell
            .check(refusal.contains("403") || refusal.to_lowercase().contains("forbidden"), "a member is refused")?;
        self.shown(User::Admin, "router create router1 --ha --project demo -c name -c ha -c distributed -c status")?;
        let router = self.router_id("router1")?;
        self.shown(User::Member, "router set router1 --external-gateway public")?;
        self.shown(User::Member, "router add subnet router1 private-subnet")?;
        self.tell.say(
            "With the project's first such router came a hidden network, on which the router's copies watch each \
             other by VRRP. It belongs to nobody and carries the project's id in its name; members do not see it.",
        );
        self.shown(User::Admin, "network list --long -c Name -c Project -c 'Router Type'")?;
        let seen_by_admin = column(&self.admin.json("network list")?, "Name");
        let seen_by_member = column(&self.member.json("network list")?, "Name");
        let is_ha = |name: &String| name.starts_with("HA network tenant ");
        self.tell.check(seen_by_admin.iter().any(is_ha), "the administrator sees the HA network")?;
        self.tell.check(!seen_by_member.iter().any(is_ha), "the member does not")?;
        self.tell.say("On it, every copy has a port of its own:");
        self.shown(
            User::Admin,
            "port list --router router1 --device-owner network:router_ha_interface -c Name -c 'Fixed IP Addresses' \
             --max-width 120",
        )?;
        Ok(router)
    }

    fn copies(&mut self, router: RouterId) -> Result<()> {
        self.tell.chapter("One copy is active, the others stand by");
        let wanted = usize::from(self.lab.spec().network_hosts.min(3));
        let active = self.lab.wait_copies(router, wanted, &["ha-", "qr-", "qg-"])?;
        self.wait_states(router, Some(active))?;
        self.shown(User::Admin, "network agent list --router router1 --long -c Host -c Alive -c 'HA State'")?;
        self.tell.say("Each of these hosts has a namespace for the router. On the active one it has the addresses:");
        let look = format!("ip -n {} -br address", names::qrouter_namespace(router));
        self.on(self.lab.machine(active), &look)?;
        let copies = self.lab.hosts_of(router);
        let Some(standby) = copies.iter().copied().find(|node| *node != active) else {
            bail!("there is no standby copy")
        };
        self.tell.say("On a standby it has the same devices, but none of the addresses that follow the active copy:");
        self.on(self.lab.machine(standby), &look)?;
        self.tell.check(copies.len() == wanted, &format!("{wanted} hosts have a copy of the router"))?;
        let held = self.lab.machine(active).router_addresses(router)?.unwrap_or_default();
        let with = |prefix: &str| held.iter().any(|(link, list)| link.starts_with(prefix) && !list.is_empty());
        self.tell.check(with("qr-") && with("qg-"), &format!("{active} holds the inside and the outside address"))?;
        for node in copies.into_iter().filter(|node| *node != active) {
            let held = self.lab.machine(node).router_addresses(router)?.unwrap_or_default();
            let none = held.iter().all(|(link, list)| link.starts_with("ha-") == (list.len() == 1) && list.len() < 2);
            self.tell.check(none, &format!("{node} holds only its own address on the HA network"))?;
        }
        self.tell.say(
            "For those who know keepalived: this is the configuration it would need to be one of the copies. \
             Evergate speaks its protocol, so it can be started with this file and takes part.",
        );
        self.on(self.lab.machine(active), &format!("cat /var/lib/evergate/ha_confs/{router}/keepalived.conf"))
    }

    fn instance(&mut self) -> Result<()> {
        self.tell.chapter("An instance reaches the world");
        self.tell.say(
            "A namespace on a compute host plays the virtual machine. The lab does what a hypervisor does: it makes \
             a tap device with the port's name; Evergate plugs it in.",
        );
        self.shown(User::Member, "port create vm1-port --network private -c name -c mac_address -c fixed_ips")?;
        self.lab_verb("instance add vm1 --port vm1-port --host cmp1");
        self.lab.add_instance("vm1", "vm1-port", Node::Compute(1))?;
        self.tell
            .say("A web server in the outside world tells who asks. It sees the router's address, not the instance's:");
        let page = self.fetch_from_instance()?;
        self.tell.output(&page);
        let outside = self.external_address()?;
        self.tell
            .check(page.contains(&outside), &format!("source NAT: the web server saw {outside}, the router's address"))
    }

    fn floating_ip(&mut self) -> Result<String> {
        self.tell.chapter("The world reaches the instance");
        self.reached_by_floating_ip("vm1")
    }

    fn lose_host(&mut self, router: RouterId, active: Node) -> Result<(Node, Report)> {
        self.tell.chapter("The active host loses its power");
        self.tell.say(&format!(
            "The instance now sends a packet to the outside world every {} ms, and we cut the power of {active}: its \
             links go down and all its processes die in the same moment.",
            PROBE_INTERVAL.as_millis()
        ));
        if self.lab.spec().bfd_interval_ms != Some(0) {
            self.lab.wait_watching(router)?;
        }
        let probe = Running::start(self.lab, "vm1", PROBE_INTERVAL)?;
        // Some packets before the loss, or there would be no gap to see.
        self.fetch_quietly()?;
        self.lab_verb(&format!("fail {active} power"));
        self.lab.fail(active, Fault::Power)?;
        let next = self.lab.wait_active(router)?;
        wait_for("the web server answers again", PATIENCE, || self.fetch_quietly().map(Some))?;
        let report = probe.finish()?;
        self.tell.output(&report.to_string());
        self.tell.check(next != active, &format!("{next} took over; the instance noticed a gap and nothing else"))?;
        self.tell.say(&format!(
            "Hosts that share routers watch each other (BFD), and a standby takes over when the host of the active \
             copy is gone; without that, VRRP would wait for three missed advertisements. The API shows the change \
             at once, and after {AGENT_DOWN_TIME_S} s that the dead host is dead."
        ));
        self.wait_states(router, Some(next))?;
        wait_for("the dead host is shown as dead", PATIENCE, || {
            let list = self.admin.json("network agent list --agent-type l3")?;
            let dead = |row: &Value| row["Host"] == active.to_string() && row["Alive"] == false;
            Ok(list.as_array().into_iter().flatten().any(dead).then_some(()))
        })?;
        self.shown(User::Admin, "network agent list --router router1 --long -c Host -c Alive -c 'HA State'")?;
        self.tell.say("The new active host's log of changes says so, too:");
        let log = "neutron-keepalived-state-change.log";
        self.on(self.lab.machine(next), &format!("cat /var/lib/evergate/ha_confs/{router}/{log}"))?;
        let log = fs::read_to_string(self.lab.machine(next).ha_conf_folder(router).join(log))?;
        let last = log.lines().last().unwrap_or_default();
        self.tell.check(last.contains("master"), "its last line is the change to master")?;
        Ok((next, report))
    }

    fn old_one_returns(&mut self, router: RouterId, old: Node, active: Node) -> Result<()> {
        self.tell.chapter("The old host returns, as a standby");
        self.lab_verb(&format!("heal {old} power"));
        self.lab.heal(old, &Fault::Power)?;
        self.wait_states(router, Some(active))?;
        self.shown(User::Admin, "network agent list --router router1 --long -c Host -c Alive -c 'HA State'")?;
        let acting = self.lab.active_hosts(router)?;
        self.tell.check(acting == [active], &format!("{active} stays active; {old} stands by"))
    }

    fn restart_control(&mut self, router: RouterId, active: Node) -> Result<()> {
        self.tell.chapter("Restarting the daemon disturbs nothing");
        self.tell.say(&format!(
            "On every host a control process keeps the kernel as the server wants it. We kill the one on {active} in \
             the middle of traffic; its supervisor starts another, which finds everything as it should be."
        ));
        let machine = self.lab.machine(active);
        let old: Vec<u32> = machine.daemons(Daemon::Control).iter().map(|process| process.pid).collect();
        let probe = Running::start(self.lab, "vm1", PROBE_INTERVAL)?;
        self.fetch_quietly()?;
        self.lab_verb(&format!("fail {active} process control --signal KILL"));
        self.lab.fail(active, Fault::Process(Daemon::Control, Signal::Kill))?;
        let plan = wait_for("a new control process has a plan", PATIENCE, || {
            let new = machine.daemons(Daemon::Control).iter().any(|process| !old.contains(&process.pid));
            // "show" fails until the new one answers; "plan" would then compute one by itself.
            if new { machine.shell("evergate show >/dev/null && evergate plan").map(Some) } else { Ok(None) }
        })?;
        self.fetch_quietly()?;
        let report = probe.finish()?;
        self.tell.command(&active.to_string(), "evergate plan");
        self.tell.output(&plan);
        self.tell.check(plan.trim() == "# nothing to do", "it changes nothing")?;
        self.tell.output(&report.to_string());
        self.tell.check(report.lost() == 0, "no packet was lost")?;
        self.tell.check(self.lab.active_hosts(router)? == [active], "the active copy stayed where it was")
    }

    fn delete_a_router(&mut self) -> Result<()> {
        self.tell.chapter("Deleting a router leaves the hosts clean");
        self.shown(User::Admin, "router create shortlived --ha --project demo -c name -c ha")?;
        let id = self.router_id("shortlived")?;
        self.lab.wait_active(id)?;
        let hosts = self.lab.hosts_of(id).len();
        self.tell.check(hosts > 1, &format!("{hosts} hosts have a copy of it"))?;
        self.shown(User::Admin, "router delete shortlived")?;
        wait_for("every copy is gone", PATIENCE, || Ok(self.lab.hosts_of(id).is_empty().then_some(())))?;
        self.tell.check(true, "no host has its namespace any more")?;
        let kept = column(&self.admin.json("network list")?, "Name");
        let kept = kept.iter().any(|name| name.starts_with("HA network tenant "));
        self.tell.check(kept, "the HA network stays, for the project's next router")
    }

    fn conclude(&mut self, router: RouterId, floating: &str, before: Node, after: Node, report: &Report) -> Result<()> {
        self.tell.chapter("What you have seen, and what you can do now");
        self.tell.picture(&picture(self.lab));
        self.tell.picture(&format!(
            "  active copy before   {before}
  active copy now      {after}
  gap seen by a probe  {:.0} ms (one packet every {} ms)
  router               {router}
  instance             vm1 on cmp1, from outside {floating}; the web server is {WEB}

The lab goes on running. Go on with `{} …`
",
            report.longest_gap_ms(),
            PROBE_INTERVAL.as_millis(),
            self.typed(),
        ));
        for (kind, verb, meaning) in next_steps(after) {
            self.tell.picture_line(&format!("  {kind:<6} {verb:<34} {meaning}"));
        }
        Ok(())
    }
}

/// What to try next, as (kind, verb, meaning).
fn next_steps(active: Node) -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("look", "status".into(), "who is active, what runs, what is broken"),
        ("", "exec controller".into(), "a shell with the openstack client"),
        ("", format!("exec {active}"), "a shell on a host: ip netns, tcpdump, …"),
        ("", format!("exec {active} evergate show"), "what the host daemon knows"),
        ("", format!("exec {active} evergate plan"), "what it would change now"),
        ("use", "instance exec vm1".into(), "a shell in the instance"),
        ("", "instance probe vm1".into(), "count lost packets while you break things"),
        ("break", format!("fail {active} power"), "or: underlay, uplink, ha, loss 20"),
        ("", format!("fail {active} process keeper"), "or: control, host; --signal STOP"),
        ("", "fail controller process server".into(), "routers live on without it"),
        ("mend", "heal all".into(), ""),
        ("leave", "down".into(), "takes everything away again"),
    ]
}
