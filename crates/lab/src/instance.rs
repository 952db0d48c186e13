//! Instances: namespaces that stand for virtual machines, plugged in as a hypervisor would.
//!
//! The lab does what the compute service does with a port: it binds the port to a host, makes a tap of
//! the port's name there (`tap<first 11 of the id>`), and gives the guest the port's MAC and IP
//! addresses. It plugs the tap into nothing: that is the host daemon's work.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use evergate_model::{PortId, names};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::probe::ECHO_PORT;
use crate::spec::Node;
use crate::{Lab, tools};

/// An instance, with all it needs to be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Name of the host it runs on.
    pub host: String,
    /// Its port.
    pub port: PortId,
    /// The port's Ethernet address.
    pub mac: String,
    /// The port's first fixed address, with the subnet's prefix length.
    pub address: String,
    /// The subnet's gateway, if it has one.
    pub gateway: Option<String>,
    /// The network's MTU.
    pub mtu: u64,
}

impl Instance {
    /// The instance's network namespace, on its host.
    pub fn netns(&self) -> String {
        format!("instance-{}", self.name)
    }
}

impl Lab {
    /// Every instance, by name.
    ///
    /// # Errors
    ///
    /// The file that lists them cannot be read.
    pub fn instances(&self) -> Result<BTreeMap<String, Instance>> {
        let path = self.instances_path();
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("failed to understand {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    /// Starts an instance on a host with a port, given by id or name.
    ///
    /// # Errors
    ///
    /// The name is taken, the port does not exist or is in use, or the host is off.
    pub fn add_instance(&self, name: &str, port: &str, host: Node) -> Result<Instance> {
        let _alone = self.lock()?;
        check_name(name)?;
        if !host.is_host() {
            bail!("{host} runs no instances: only hosts of networks or instances do");
        }
        let mut instances = self.instances()?;
        if let Some(other) = instances.get(name) {
            bail!("there is an instance '{name}' on {} already", other.host);
        }
        let port = self.find_port(port)?;
        let instance = self.describe(name, &port, host)?;
        if let Some(other) = instances.values().find(|other| other.port == instance.port) {
            bail!("port {} is in use by instance '{}'", instance.port, other.name);
        }
        self.bind(&instance)?;
        self.make(&instance)?;
        instances.insert(name.to_owned(), instance.clone());
        self.write_json(&self.instances_path(), &instances)?;
        Ok(instance)
    }

    /// Moves an instance to another host, as a hypervisor ends a migration: the guest is gone from the one and
    /// there on the other, with the same port.
    ///
    /// # Errors
    ///
    /// There is no such instance, or one of the hosts is off.
    pub fn migrate_instance(&self, name: &str, to: Node) -> Result<Instance> {
        let _alone = self.lock()?;
        let mut instances = self.instances()?;
        let Some(instance) = instances.get_mut(name) else { bail!("there is no instance '{name}'") };
        self.unmake(instance)?;
        instance.host = to.to_string();
        let moved = instance.clone();
        self.write_json(&self.instances_path(), &instances)?;
        self.bind(&moved)?;
        self.make(&moved)?;
        Ok(moved)
    }

    /// Ends an instance and frees its port.
    ///
    /// # Errors
    ///
    /// There is no such instance.
    pub fn delete_instance(&self, name: &str) -> Result<()> {
        let _alone = self.lock()?;
        let mut instances = self.instances()?;
        let Some(instance) = instances.remove(name) else { bail!("there is no instance '{name}'") };
        self.write_json(&self.instances_path(), &instances)?;
        self.unmake(&instance)?;
        let free = json!({"port": {"binding:host_id": "", "device_id": "", "device_owner": ""}});
        // The port may have been deleted first; then there is nothing to free.
        self.api("PUT", &format!("/v2.0/ports/{}", instance.port), Some(&free)).map(drop)
    }

    /// A command that runs inside an instance.
    ///
    /// # Errors
    ///
    /// There is no such instance, or its host is off.
    pub fn instance_command(&self, name: &str, program: impl AsRef<OsStr>) -> Result<Command> {
        let instances = self.instances()?;
        let Some(instance) = instances.get(name) else { bail!("there is no instance '{name}'") };
        let mut command = self.machine_named(&instance.host)?.command("ip")?;
        command.args(["netns", "exec", &instance.netns()]).arg(program);
        Ok(command)
    }

    /// Runs a shell line inside an instance, and returns what it printed.
    ///
    /// # Errors
    ///
    /// As [`Lab::instance_command`], and when the line fails.
    pub fn instance_shell(&self, name: &str, line: &str) -> Result<String> {
        tools::output(self.instance_command(name, "sh")?.args(["-c", line]))
            .with_context(|| format!("in instance {name}"))
    }

    /// Makes a host's instances again after it was switched on, as the compute service does when
    /// `resume_guests_state_on_host_boot` is set.
    pub(crate) fn restart_instances(&self, host: Node) -> Result<()> {
        for instance in self.instances()?.values().filter(|instance| instance.host == host.to_string()) {
            self.make(instance)?;
        }
        Ok(())
    }

    fn find_port(&self, port: &str) -> Result<Value> {
        if port.parse::<PortId>().is_ok() {
            return Ok(self.api_ok("GET", &format!("/v2.0/ports/{port}"), None)?["port"].take());
        }
        check_name(port).with_context(|| format!("'{port}' is neither a port's id nor a plain name"))?;
        let mut found = self.api_ok("GET", &format!("/v2.0/ports?name={port}"), None)?;
        match found["ports"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            mut ports if ports.len() == 1 => Ok(ports.remove(0)),
            ports => bail!("{} ports are named '{port}'; give an id", ports.len()),
        }
    }

    fn describe(&self, name: &str, port: &Value, host: Node) -> Result<Instance> {
        let text = |value: &Value, what: &str| -> Result<String> {
            value.as_str().map(ToOwned::to_owned).with_context(|| format!("the API shows no {what} of the port"))
        };
        let fixed = &port["fixed_ips"][0];
        let subnet = format!("/v2.0/subnets/{}", text(&fixed["subnet_id"], "subnet")?);
        let subnet = self.api_ok("GET", &subnet, None)?["subnet"].take();
        let network = format!("/v2.0/networks/{}", text(&port["network_id"], "network")?);
        let network = self.api_ok("GET", &network, None)?["network"].take();
        let cidr = text(&subnet["cidr"], "subnet's CIDR")?;
        let (_, prefix) = cidr.split_once('/').context("the subnet's CIDR has no prefix length")?;
        Ok(Instance {
            name: name.to_owned(),
            host: host.to_string(),
            port: text(&port["id"], "id")?.parse().context("the port's id")?,
            mac: text(&port["mac_address"], "MAC address")?,
            address: format!("{}/{prefix}", text(&fixed["ip_address"], "address")?),
            gateway: subnet["gateway_ip"].as_str().map(ToOwned::to_owned),
            mtu: network["mtu"].as_u64().context("the API shows no MTU of the network")?,
        })
    }

    /// Tells the API what the compute service would: where the port is, and who uses it.
    fn bind(&self, instance: &Instance) -> Result<()> {
        let body = json!({"port": {
            "binding:host_id": instance.host,
            "device_id": instance.name,
            "device_owner": "compute:nova",
        }});
        self.api_ok("PUT", &format!("/v2.0/ports/{}", instance.port), Some(&body)).map(drop)
    }

    /// Ends the guest, and takes its tap away.
    fn unmake(&self, instance: &Instance) -> Result<()> {
        let host = self.machine_named(&instance.host)?;
        if host.is_on() {
            let netns = instance.netns();
            let tap = names::tap(instance.port);
            host.shell(&format!(
                "for pid in $(ip netns pids {netns}); do kill -9 $pid; done; ip link delete {tap}; ip netns delete {netns}"
            ))?;
        }
        Ok(())
    }

    /// Makes namespace, tap and guest; starts what every guest of the lab serves.
    fn make(&self, instance: &Instance) -> Result<()> {
        let host = self.machine_named(&instance.host)?;
        let mut batch = host.command("ip")?;
        tools::feed(batch.args(["-batch", "-"]), &links(instance))?;
        let netns = instance.netns();
        let mut batch = host.command("ip")?;
        tools::feed(batch.args(["-n", &netns, "-batch", "-"]), &guest(instance))?;
        let evergate = self.spec().evergate.to_string_lossy().into_owned();
        let inside = ["ip", "netns", "exec", &netns, &evergate, "lab"];
        let serve = |args: &[&str]| host.start(&instance.netns(), &[&inside, args].concat());
        serve(&["web-server", &instance.name])?;
        serve(&["echo-server", "--port", &ECHO_PORT.to_string()])
    }

    fn instances_path(&self) -> PathBuf {
        self.dir().join("instances.json")
    }
}

impl Machine<'_> {
    /// The instances of this host that the lab knows.
    pub(crate) fn instances(&self, all: &BTreeMap<String, Instance>) -> Vec<Instance> {
        let here = self.node.to_string();
        all.values().filter(|instance| instance.host == here).cloned().collect()
    }
}

/// What is made on the host: the namespace, and the tap with its far end as the guest's `eth0`.
fn links(instance: &Instance) -> String {
    let Instance { mac, mtu, .. } = instance;
    let (netns, tap) = (instance.netns(), names::tap(instance.port));
    format!(
        "netns add {netns}\n\
         link add {tap} mtu {mtu} type veth peer name eth0 netns {netns} address {mac} mtu {mtu}\n"
    )
}

/// What is configured in the guest.
fn guest(instance: &Instance) -> String {
    let route = instance.gateway.as_ref().map(|gateway| format!("route add default via {gateway}\n"));
    format!(
        "link set lo up\nlink set eth0 up\naddress add {} dev eth0\n{}",
        instance.address,
        route.unwrap_or_default()
    )
}

/// Names go into namespace names and shell lines.
fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 40 || !name.chars().all(fine) {
        bail!("'{name}' is no plain name: use up to 40 letters, digits, '-', '_' and '.'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Instance {
        Instance {
            name: "vm1".into(),
            host: "cmp1".into(),
            port: PortId::from_u128(0x1c6f_46c9_0cb8_4b37_bda4_33a1_04d6_a994),
            mac: "fa:16:3e:00:00:01".into(),
            address: "10.0.0.5/24".into(),
            gateway: None,
            mtu: 1450,
        }
    }

    #[test]
    fn the_tap_has_the_name_that_the_host_daemon_looks_for() {
        assert!(links(&example()).contains("link add tap1c6f46c9-0c mtu 1450 type veth"));
    }

    #[test]
    fn without_a_gateway_there_is_no_default_route() {
        assert!(!guest(&example()).contains("route"));
        let with = Instance { gateway: Some("10.0.0.1".into()), ..example() };
        assert!(guest(&with).ends_with("route add default via 10.0.0.1\n"));
    }

    #[test]
    fn names_cannot_carry_shell() {
        assert!(check_name("a;b").is_err() && check_name("").is_err());
        check_name("vm-1.a_b").unwrap();
    }
}
