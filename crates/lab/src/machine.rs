//! A node that is on, or could be: starting it, entering it, cutting its power.
//!
//! A node is a network namespace that the machine has a name for, and a first process (`boot.sh`) with
//! mount, PID and UTS namespaces of its own. Its wires are veth pairs whose far ends are ports of a
//! switch, named after the node. The files below `nodes/<node>` are its disk.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::fault::Daemon;
use crate::procs::{self, MARK, Process};
use crate::spec::{Node, Switch};
use crate::tools::{self, ip_batch, wait_for};
use crate::{Lab, files};

/// A node of a lab, on or off.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    lab: &'a Lab,
    /// Which one.
    pub node: Node,
}

impl<'a> Machine<'a> {
    pub(crate) const fn new(lab: &'a Lab, node: Node) -> Self {
        Self { lab, node }
    }

    /// The node's folder, which outlives a power cut.
    pub fn disk(&self) -> PathBuf {
        self.lab.dir().join("nodes").join(self.node.to_string())
    }

    /// Where the output of one of its programs goes.
    pub fn log_path(&self, program: &str) -> PathBuf {
        self.lab.dir().join("log").join(format!("{}-{program}.log", self.node))
    }

    /// Its first process, as this process sees its id; `None` when the node is off.
    pub fn first_process(&self) -> Option<u32> {
        procs::first_of(&self.lab.spec().name, &self.node.to_string()).map(|process| process.pid)
    }

    /// Tells whether the node is on.
    pub fn is_on(&self) -> bool {
        self.first_process().is_some()
    }

    /// Makes the namespace, plugs in the wires that no fault holds down, and starts the first process.
    /// [`Machine::wait_booted`] follows.
    pub(crate) fn power_on(&self) -> Result<()> {
        let spec = self.lab.spec();
        files::write(spec, self.node, &self.disk())?;
        let netns = spec.netns(self.node);
        ip_batch(None, &[format!("netns add {netns}")])?;
        for (switch, interface) in self.node.plugs() {
            let port = self.node;
            let mut lines = vec![
                format!("link add {port} type veth peer name {interface} netns {netns}"),
                format!("link set {port} master {SWITCH_BRIDGE}"),
            ];
            if !self.lab.faults()?.is_cut(self.node, *switch) {
                lines.push(format!("link set {port} up"));
            }
            ip_batch(Some(&spec.netns(switch)), &lines)?;
        }
        let log = self.log("boot")?;
        let mut command = Command::new("setsid");
        command.args(["--fork", "nsenter"]).arg(format!("--net=/run/netns/{netns}"));
        command.args(["unshare", "--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "/bin/sh"]).arg(self.lab.dir().join("boot.sh"));
        command.args([MARK, "--lab", &spec.name, "--node", &self.node.to_string(), "--dir"]).arg(self.lab.dir());
        command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let status = command.status().with_context(|| format!("failed to start node {}", self.node))?;
        if !status.success() {
            bail!("failed to start node {} ({status}); see {}", self.node, self.log_path("boot").display());
        }
        Ok(())
    }

    /// Waits until the first process has finished preparing the node.
    pub(crate) fn wait_booted(&self) -> Result<()> {
        let what = format!("node {} has started (see {})", self.node, self.log_path("boot").display());
        wait_for(&what, Duration::from_secs(30), || {
            let booted = self.first_process().map(|pid| PathBuf::from(format!("/proc/{pid}/root/run/booted")));
            Ok(booted.filter(|path| path.exists()).map(drop))
        })
    }

    /// Pulls the plug: links first, as a machine that loses power says nothing more, then every process
    /// at once, then the namespace with all that was in it.
    pub(crate) fn power_off(&self) -> Result<()> {
        self.set_ports("set", "down")?;
        procs::kill_until_gone(&format!("processes of {}", self.node), || {
            procs::holders(&self.lab.spec().name, Some(&self.node.to_string()))
        })?;
        // Deleting one end of a wire deletes both, now; a namespace may take its time.
        self.set_ports("delete", "")?;
        ip_batch(None, &[format!("netns delete {}", self.lab.spec().netns(self.node))])
    }

    fn set_ports(&self, verb: &str, state: &str) -> Result<()> {
        for (switch, _) in self.node.plugs() {
            let line = format!("link {verb} {} {state}", self.node);
            ip_batch(Some(&self.lab.spec().netns(switch)), &[line])?;
        }
        Ok(())
    }

    /// A command that runs inside the node, with the node's files, devices and processes around it.
    ///
    /// # Errors
    ///
    /// The node is off.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let Some(pid) = self.first_process() else { bail!("{} is off", self.node) };
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "--uts", "--net", "--pid", "--wd", "--"]);
        command.arg(program);
        // Settings of the caller's own cloud would be mixed with the lab's.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OS_")) {
            command.env_remove(name);
        }
        command.envs(self.lab.environment());
        Ok(command)
    }

    /// A command that runs one of the lab's own subcommands (`evergate lab …`) inside the node.
    ///
    /// # Errors
    ///
    /// The node is off.
    pub fn lab_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command(&self.lab.spec().evergate)?;
        command.arg("lab").args(args);
        Ok(command)
    }

    /// Runs a shell line inside the node, and returns what it printed.
    ///
    /// # Errors
    ///
    /// The node is off, or the line failed; its standard error is in the message.
    pub fn shell(&self, line: &str) -> Result<String> {
        tools::output(self.command("sh")?.args(["-c", line])).with_context(|| format!("on {}", self.node))
    }

    /// Starts a program that stays, belonging to the node; its output goes to the log named `name`.
    pub(crate) fn start(&self, name: &str, args: &[&str]) -> Result<()> {
        let log = self.log(name)?;
        let mut command = self.command("setsid")?;
        command.arg("--fork").args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let status = command.status().with_context(|| format!("failed to start {name} on {}", self.node))?;
        if !status.success() {
            bail!("failed to start {name} on {} ({status}); see {}", self.node, self.log_path(name).display());
        }
        Ok(())
    }

    /// Starts what the node is there for.
    pub(crate) fn start_daemons(&self) -> Result<()> {
        let evergate = self.lab.spec().evergate.to_string_lossy().into_owned();
        match self.node {
            Node::Outside => Ok(()),
            Node::Web => {
                self.start("web", &[&evergate, "lab", "web-server", "web"])?;
                self.start("echo", &[&evergate, "lab", "echo-server"])
            }
            Node::Controller => self.start_daemon("server"),
            Node::Network(_) | Node::Compute(_) => self.start_daemon("host"),
        }
    }

    /// Starts `evergate server` or `evergate host` with the node's configuration files.
    pub(crate) fn start_daemon(&self, subcommand: &str) -> Result<()> {
        let evergate = self.lab.spec().evergate.to_string_lossy().into_owned();
        let mut args = vec![evergate.as_str(), subcommand];
        for file in files::config_files(self.node) {
            args.extend(["--config-file", *file]);
        }
        self.start(subcommand, &args)
    }

    /// The processes of the node that run a subcommand of the product.
    pub fn daemons(&self, daemon: Daemon) -> Vec<Process> {
        procs::daemons(&self.lab.spec().name, &self.node.to_string(), daemon.subcommand())
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.log_path(name);
        fs::create_dir_all(self.lab.dir().join("log")).context("failed to make the folder of logs")?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.with_context(|| format!("failed to open {}", path.display()))
    }
}

/// The bridge in a switch's namespace.
pub(crate) const SWITCH_BRIDGE: &str = "br0";

/// Makes a switch. It answers nothing itself: no address, no IPv6, no snooping; and no packet filter looks at what it
/// forwards (by default one does, in every namespace, at a tenth of the cost of a packet's whole way).
pub(crate) fn make_switch(lab: &Lab, switch: Switch) -> Result<()> {
    let netns = lab.spec().netns(switch);
    ip_batch(None, &[format!("netns add {netns}")])?;
    let quiet = "for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done; \
                 for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done";
    tools::output(Command::new("ip").args(["netns", "exec", &netns, "sh", "-c", quiet]))?;
    let bridge = format!("link add {SWITCH_BRIDGE} type bridge mcast_snooping 0 forward_delay 0");
    ip_batch(Some(&netns), &[bridge, format!("link set {SWITCH_BRIDGE} up")])
}
