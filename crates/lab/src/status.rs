//! `evergate lab status`: what stands, what is broken, who is active; from the kernel and the hosts
//! themselves, and from the API where it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;

use anyhow::Result;
use evergate_model::names;
use serde::Serialize;

use crate::procs;
use crate::spec::{Node, WEB};
use crate::{Lab, Machine};

/// A lab, as it is now.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    lab: String,
    dir: String,
    nodes: Vec<NodeStatus>,
    routers: Vec<RouterStatus>,
    /// Why the API could not be asked, if it could not.
    api_problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct NodeStatus {
    name: String,
    on: bool,
    address: Option<String>,
    /// The product's processes, with `(stopped)` where it is so.
    processes: Vec<String>,
    instances: Vec<String>,
    faults: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RouterStatus {
    id: String,
    name: Option<String>,
    /// By host: what the API says, and what the host's own state file says.
    copies: BTreeMap<String, Copy>,
}

#[derive(Debug, Default, Serialize)]
struct Copy {
    api: Option<String>,
    host: Option<String>,
}

impl Lab {
    /// Looks at everything.
    pub(crate) fn status(&self) -> Result<Status> {
        let faults = self.faults()?;
        let instances = self.instances()?;
        let on: BTreeMap<_, _> = procs::nodes_on(&self.spec().name).into_iter().collect();
        let nodes = self.spec().nodes().into_iter().map(|node| {
            let inside = on.get(&node.to_string());
            let address = if node == Node::Web { Some(WEB) } else { node.underlay() };
            NodeStatus {
                name: node.to_string(),
                on: inside.is_some(),
                address: address.map(|address| address.to_string()),
                processes: inside.map(|inside| describe(inside)).unwrap_or_default(),
                instances: self.machine(node).instances(&instances).into_iter().map(|i| i.name).collect(),
                faults: faults.of(node).map(ToString::to_string).collect(),
            }
        });
        let nodes = nodes.collect();
        let mut routers = self.routers_on_hosts();
        let api_problem = self.add_what_the_api_says(&mut routers).err().map(|error| format!("{error:#}"));
        Ok(Status {
            lab: self.spec().name.clone(),
            dir: self.dir().display().to_string(),
            nodes,
            routers: routers.into_values().collect(),
            api_problem,
        })
    }

    /// Every router that has a namespace on a host that is on.
    fn routers_on_hosts(&self) -> BTreeMap<String, RouterStatus> {
        let mut routers = BTreeMap::new();
        for node in self.spec().hosts() {
            let machine = self.machine(node);
            for id in machine.routers() {
                let state = machine.disk().join(format!("var/lib/evergate/ha_confs/{id}/state"));
                let host = fs::read_to_string(state).ok().map(|state| state.trim().to_owned());
                let copy = Copy { api: None, host };
                router(&mut routers, &id).copies.insert(node.to_string(), copy);
            }
        }
        routers
    }

    fn add_what_the_api_says(&self, routers: &mut BTreeMap<String, RouterStatus>) -> Result<()> {
        let list = self.api_ok("GET", "/v2.0/routers", None)?;
        for shown in list["routers"].as_array().into_iter().flatten() {
            let Some(id) = shown["id"].as_str() else { continue };
            let router = router(routers, id);
            router.name = shown["name"].as_str().map(ToOwned::to_owned);
            let agents = self.api_ok("GET", &format!("/v2.0/routers/{id}/l3-agents"), None)?;
            for agent in agents["agents"].as_array().into_iter().flatten() {
                let host = agent["host"].as_str().unwrap_or_default().to_owned();
                router.copies.entry(host).or_default().api = agent["ha_state"].as_str().map(ToOwned::to_owned);
            }
        }
        Ok(())
    }
}

fn router<'a>(routers: &'a mut BTreeMap<String, RouterStatus>, id: &str) -> &'a mut RouterStatus {
    let new = || RouterStatus { id: id.to_owned(), name: None, copies: BTreeMap::new() };
    routers.entry(id.to_owned()).or_insert_with(new)
}

impl Machine<'_> {
    /// Ids of the routers that have a namespace here.
    pub fn routers(&self) -> BTreeSet<String> {
        let router = |name: &String| names::router_of_namespace(name).or_else(|| names::router_of_snat_namespace(name));
        self.namespaces().iter().filter_map(router).map(|id| id.to_string()).collect()
    }

    /// Names of the network namespaces on the node.
    pub fn namespaces(&self) -> Vec<String> {
        let Some(pid) = self.first_process() else { return Vec::new() };
        let names = fs::read_dir(format!("/proc/{pid}/root/run/netns"));
        names.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }
}

fn describe(processes: &[procs::Process]) -> Vec<String> {
    let ours = procs::evergate_processes(processes).filter(|(subcommand, _)| *subcommand != "lab");
    let mut found: Vec<String> = ours
        .map(
            |(subcommand, process)| {
                if process.state == 'T' { format!("{subcommand} (stopped)") } else { subcommand.into() }
            },
        )
        .collect();
    found.sort();
    found
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Lab '{}', kept in {}\n", self.lab, self.dir)?;
        writeln!(f, "{:<12}{:<7}{:<17}{:<26}INSTANCES", "NODE", "POWER", "ADDRESS", "PROCESSES")?;
        for node in &self.nodes {
            let power = if node.on { "on" } else { "off" };
            let address = node.address.as_deref().unwrap_or("-");
            let processes = if node.processes.is_empty() { "-".to_owned() } else { node.processes.join(" ") };
            let instances = node.instances.join(" ");
            let line = format!("{:<12}{power:<7}{address:<17}{processes:<26}{instances}", node.name);
            writeln!(f, "{}", line.trim_end())?;
            for fault in &node.faults {
                writeln!(f, "{:<12}! {fault}", "")?;
            }
        }
        for router in &self.routers {
            write!(f, "\nRouter {} {}\n", router.name.as_deref().unwrap_or("?"), router.id)?;
            for (host, copy) in &router.copies {
                let api = copy.api.as_deref().unwrap_or("-");
                let own = copy.host.as_deref().unwrap_or("-");
                writeln!(f, "    {host:<12}API says {api:<10}the host says {own}")?;
            }
        }
        match &self.api_problem {
            Some(problem) => writeln!(f, "\nThe API does not answer: {problem}"),
            None => Ok(()),
        }
    }
}
