//! Looking at a router's copies on the hosts themselves, past API and daemon: what the kernel holds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use evergate_model::{RouterId, names};
use serde_json::Value;

use crate::spec::Node;
use crate::{Lab, Machine, tools, wait_for};

/// Start of the virtual addresses of HA routers: `169.254.0.<VRID>`.
const VIRTUAL_ADDRESSES: &str = "169.254.0.";

/// IPv4 addresses, with prefix lengths, by device.
pub type Addresses = BTreeMap<String, Vec<String>>;

impl Machine<'_> {
    /// The devices of a router's copy here, with their IPv4 addresses; `None` where there is no copy.
    ///
    /// # Errors
    ///
    /// The node is off, or the namespace cannot be looked into.
    pub fn router_addresses(&self, router: RouterId) -> Result<Option<Addresses>> {
        let Some(netns) = self.copy_namespace(router) else { return Ok(None) };
        let mut command = self.command("ip")?;
        let text = tools::output(command.args(["-n", &netns, "-j", "address"]))?;
        let links: Value = serde_json::from_str(&text).context("failed to understand what 'ip' printed")?;
        let mut addresses = Addresses::new();
        for link in links.as_array().into_iter().flatten().filter(|link| link["ifname"] != "lo") {
            let name = link["ifname"].as_str().unwrap_or_default().to_owned();
            // Not "ip -4": it leaves out links without an address.
            let of_link = link["addr_info"].as_array().into_iter().flatten().filter(|a| a["family"] == "inet");
            let shown = of_link.map(|a| format!("{}/{}", a["local"].as_str().unwrap_or_default(), a["prefixlen"]));
            addresses.insert(name, shown.collect());
        }
        Ok(Some(addresses))
    }

    /// The namespace of a router's copy here: of a distributed router, that of its source NAT.
    fn copy_namespace(&self, router: RouterId) -> Option<String> {
        let here = self.namespaces();
        [names::snat_namespace(router), names::qrouter_namespace(router)].into_iter().find(|name| here.contains(name))
    }

    /// Tells whether the router's virtual address is on this host: whether its copy here acts as active.
    ///
    /// # Errors
    ///
    /// As [`Machine::router_addresses`].
    pub fn acts_as_active(&self, router: RouterId) -> Result<bool> {
        let addresses = self.router_addresses(router)?.unwrap_or_default();
        Ok(addresses.values().flatten().any(|address| address.starts_with(VIRTUAL_ADDRESSES)))
    }

    /// Waits until control has nothing left to do here, and the keeper nothing to mend.
    ///
    /// # Errors
    ///
    /// It is not so for too long; the plan is in the message.
    pub fn wait_nothing_to_do(&self) -> Result<()> {
        wait_for(&format!("{} has nothing to do or to mend", self.node), Duration::from_secs(60), || {
            let plan = self.shell("evergate plan")?;
            anyhow::ensure!(is_nothing_to_do(&plan), "{plan}");
            Ok(Some(()))
        })
    }

    /// The silence after which this host gives up another one, as its keeper says of its BFD sessions.
    ///
    /// # Errors
    ///
    /// It has none that is up.
    pub fn detection_time(&self) -> Result<Duration> {
        let text = self.shell("evergate show --json")?;
        let shown: Value = serde_json::from_str(&text).context("failed to understand 'evergate show'")?;
        let sessions = shown["keeper"]["bfd"].as_array().into_iter().flatten();
        let up = sessions.filter(|session| session["state"] == "up");
        let longest = up.filter_map(|session| session["detection_time_us"].as_u64()).max();
        longest.map(Duration::from_micros).with_context(|| format!("{} has no BFD session that is up", self.node))
    }

    /// A command that runs inside a router's namespace here.
    ///
    /// # Errors
    ///
    /// The node is off.
    pub fn router_command(&self, router: RouterId, program: &str) -> Result<Command> {
        let mut command = self.command("ip")?;
        let netns = self.copy_namespace(router).with_context(|| format!("{} has no copy of it", self.node))?;
        command.args(["netns", "exec", &netns, program]);
        Ok(command)
    }

    /// The folder of a router's `keepalived.conf`, state and log, as the lab's machine sees it.
    pub fn ha_conf_folder(&self, router: RouterId) -> PathBuf {
        self.disk().join(format!("var/lib/evergate/ha_confs/{router}"))
    }
}

/// Tells whether a plan, as `evergate plan` prints it, is that of a host that holds what it must.
pub fn is_nothing_to_do(plan: &str) -> bool {
    plan.contains("nothing to do") && !plan.contains("is to mend")
}

impl Lab {
    /// The hosts, of those that are on, that have a copy of the router; of a distributed one, of its source NAT.
    pub fn hosts_of(&self, router: RouterId) -> Vec<Node> {
        let with = |name: String| -> Vec<Node> {
            self.spec().hosts().into_iter().filter(|node| self.machine(*node).namespaces().contains(&name)).collect()
        };
        let apart = with(names::snat_namespace(router));
        if apart.is_empty() { with(names::qrouter_namespace(router)) } else { apart }
    }

    /// The hosts whose copy of the router acts as active: one, unless something is wrong.
    ///
    /// # Errors
    ///
    /// A host cannot be looked into.
    pub fn active_hosts(&self, router: RouterId) -> Result<Vec<Node>> {
        let mut active = Vec::new();
        for node in self.hosts_of(router) {
            if self.machine(node).acts_as_active(router)? {
                active.push(node);
            }
        }
        Ok(active)
    }

    /// Waits until exactly one host acts as active for the router, and returns it.
    ///
    /// # Errors
    ///
    /// None or several do for too long.
    pub fn wait_active(&self, router: RouterId) -> Result<Node> {
        wait_for("exactly one copy of the router is active", Duration::from_secs(30), || {
            match self.active_hosts(router)?.as_slice() {
                [one] => Ok(Some(*one)),
                [] => Ok(None),
                several => anyhow::bail!("{several:?} all act as active"),
            }
        })
    }

    /// Waits until the router has `copies` copies, each with devices of all the given prefixes (`qr-` and
    /// the like), and exactly one of them active; returns that one.
    ///
    /// # Errors
    ///
    /// It is not so for too long.
    pub fn wait_copies(&self, router: RouterId, copies: usize, prefixes: &[&str]) -> Result<Node> {
        wait_for(&format!("{copies} copies of the router have all their devices"), Duration::from_secs(30), || {
            let hosts = self.hosts_of(router);
            for node in &hosts {
                let addresses = self.machine(*node).router_addresses(router)?.unwrap_or_default();
                if !prefixes.iter().all(|prefix| addresses.keys().any(|link| link.starts_with(prefix))) {
                    return Ok(None);
                }
            }
            Ok((hosts.len() == copies).then_some(()))
        })?;
        let active = self.wait_active(router)?;
        let what = format!("{active} has the addresses of the active copy");
        wait_for(&what, Duration::from_secs(30), || {
            let addresses = self.machine(active).router_addresses(router)?.unwrap_or_default();
            let moved = addresses.iter().filter(|(link, _)| !link.starts_with("ha-"));
            Ok(moved.map(|(_, list)| list).all(|list| !list.is_empty()).then_some(active))
        })
    }

    /// Waits until every host that has a copy of the router hears, by BFD, every other one.
    ///
    /// # Errors
    ///
    /// It is not so for too long; for example because BFD is off.
    pub fn wait_watching(&self, router: RouterId) -> Result<()> {
        let hosts = self.hosts_of(router);
        for node in &hosts {
            wait_for(&format!("{node} hears the other hosts by BFD"), Duration::from_secs(30), || {
                let text = self.machine(*node).shell("evergate show --json")?;
                let shown: Value = serde_json::from_str(&text).context("failed to understand 'evergate show'")?;
                let sessions = shown["keeper"]["bfd"].as_array().into_iter().flatten();
                let up = sessions.filter(|session| session["state"] == "up" && session["remote_state"] == "up");
                Ok((up.count() + 1 >= hosts.len()).then_some(()))
            })?;
        }
        Ok(())
    }
}
