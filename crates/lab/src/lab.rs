//! Building a lab, finding it again, and taking it down without a trace.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::machine::{self, Machine};
use crate::spec::{self, API_PORT, Node, Spec, Switch};
use crate::tools::{self, ip_batch, wait_for};
use crate::{files, procs};

/// The lab that commands mean when they name none.
pub const DEFAULT_NAME: &str = "evergate";

/// Where labs keep their files, unless told otherwise.
const LABS: &str = "/var/lib/evergate-lab";

/// Where named network namespaces are on the machine.
const NETNS: &str = "/run/netns";

/// Finds the folder of a lab: as asked for, else as its processes were told, else the usual one.
pub fn folder_of(name: &str, asked: Option<&Path>) -> PathBuf {
    match asked {
        Some(folder) => folder.to_owned(),
        None => procs::dir_of_lab(name).unwrap_or_else(|| Path::new(LABS).join(name)),
    }
}

/// A lab that stands, or is about to.
#[derive(Debug)]
pub struct Lab {
    spec: Spec,
    dir: PathBuf,
}

impl Lab {
    /// Finds a lab that was brought up earlier.
    ///
    /// # Errors
    ///
    /// There is none of that name.
    pub fn open(name: &str, dir: Option<&Path>) -> Result<Self> {
        spec::check_name(name)?;
        let dir = folder_of(name, dir);
        let path = dir.join("lab.json");
        let text = fs::read(&path)
            .with_context(|| format!("there is no lab '{name}' (no {}); try: evergate lab up", path.display()))?;
        let spec = serde_json::from_slice(&text).with_context(|| format!("failed to understand {}", path.display()))?;
        Ok(Self { spec, dir })
    }

    /// Builds a lab, after taking down whatever was left of one of the same name, and waits until every
    /// host has reported to the server.
    ///
    /// # Errors
    ///
    /// Something did not come up; its logs are named. What stands is left for inspection, and the next
    /// `up` or `down` clears it away.
    pub fn up(spec: Spec, dir: Option<&Path>) -> Result<Self> {
        let lab = Self::up_without_daemons(spec, dir)?;
        lab.start()?;
        Ok(lab)
    }

    /// Builds the nodes and wires alone.
    ///
    /// # Errors
    ///
    /// As [`Lab::up`].
    pub fn up_without_daemons(spec: Spec, dir: Option<&Path>) -> Result<Self> {
        tools::check()?;
        spec.check()?;
        let dir = absolute(&folder_of(&spec.name, dir))?;
        Self::down(&spec.name, Some(&dir), false)?;
        fs::create_dir_all(&dir).with_context(|| format!("failed to make {}", dir.display()))?;
        let lab = Self { spec, dir };
        let _alone = lab.lock()?;
        lab.write_json(&lab.dir.join("lab.json"), &lab.spec)?;
        lab.write("boot.sh", include_str!("boot.sh"))?;
        lab.write("hosts", &files::hosts(&lab.spec))?;
        for switch in Switch::ALL {
            machine::make_switch(&lab, switch)?;
        }
        let nodes = lab.spec.nodes();
        for node in &nodes {
            lab.machine(*node).power_on()?;
        }
        for node in &nodes {
            lab.machine(*node).wait_booted()?;
        }
        Ok(lab)
    }

    /// Starts the daemons: the server first, because hosts join with tokens of it.
    fn start(&self) -> Result<()> {
        for node in [Node::Outside, Node::Web, Node::Controller] {
            self.machine(node).start_daemons()?;
        }
        let controller = self.machine(Node::Controller);
        let log = controller.log_path("server");
        wait_for(&format!("the API answers (see {})", log.display()), Duration::from_secs(60), || {
            let there = controller.disk().join(CLOUDS).exists() && controller.disk().join(AUTHORITY).exists();
            Ok((there && self.api("GET", "/v2.0/networks", None)?.status == 200).then_some(()))
        })?;
        let token = self.make_token(None)?;
        for node in self.spec.hosts() {
            let machine = self.machine(node);
            self.give_token(node, &token)?;
            machine.start_daemons()?;
        }
        self.wait_hosts_alive(&self.spec.hosts())
    }

    /// Makes a join token on the controller: for one host, or for all that are new.
    ///
    /// # Errors
    ///
    /// The controller is off, or made none.
    pub fn make_token(&self, host: Option<Node>) -> Result<String> {
        let mut command = self.machine(Node::Controller).command(&self.spec.evergate)?;
        command.args(["cluster", "token", "create"]);
        if let Some(host) = host {
            command.args(["--host", &host.to_string()]);
        }
        for file in files::config_files(Node::Controller) {
            command.args(["--config-file", *file]);
        }
        tools::output(&mut command).context("failed to make a join token")
    }

    /// Carries a token to a host's disk, as an operator does.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn give_token(&self, host: Node, token: &str) -> Result<()> {
        let path = self.machine(host).disk().join(JOIN_TOKEN);
        let file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(token.as_bytes()))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Waits until the API shows every one of `hosts` alive.
    ///
    /// # Errors
    ///
    /// One has not reported in time; it is named with its log.
    pub fn wait_hosts_alive(&self, hosts: &[Node]) -> Result<()> {
        let time = Duration::from_secs(60 + hosts.len() as u64);
        wait_for("every host reports to the server", time, || {
            let agents = self.api("GET", "/v2.0/agents", None)?;
            let agents = agents.body["agents"].as_array().cloned().unwrap_or_default();
            let alive = |node: &Node| {
                let name = node.to_string();
                agents.iter().any(|agent| agent["host"] == name.as_str() && agent["alive"] == true)
            };
            match hosts.iter().find(|node| !alive(node)) {
                None => Ok(Some(())),
                Some(node) => bail!("{node} has not; see {}", self.machine(*node).log_path("host").display()),
            }
        })
    }

    /// Takes down whatever stands or was left of the lab `name`: processes, namespaces, files. There
    /// being nothing is fine.
    ///
    /// # Errors
    ///
    /// Something could not be removed.
    pub fn down(name: &str, dir: Option<&Path>, keep_logs: bool) -> Result<()> {
        spec::check_name(name)?;
        let dir = folder_of(name, dir);
        procs::kill_until_gone(&format!("processes of lab '{name}'"), || procs::holders(name, None))?;
        for netns in namespaces(name)? {
            remove_namespace(&netns)?;
        }
        remove_files(&dir, keep_logs).with_context(|| format!("failed to remove {}", dir.display()))
    }

    /// What the lab consists of.
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of its nodes.
    pub const fn machine(&self, node: Node) -> Machine<'_> {
        Machine::new(self, node)
    }

    /// Finds a node by its name.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn machine_named(&self, name: &str) -> Result<Machine<'_>> {
        Ok(self.machine(self.spec.node(name)?))
    }

    /// The file that the stock client is configured with.
    pub fn clouds_file(&self) -> PathBuf {
        self.machine(Node::Controller).disk().join(CLOUDS)
    }

    /// What programs inside the lab find in their environment: the client and this executable in the
    /// path, and where the cloud is.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut path = OsString::new();
        for program in [self.spec.client.as_deref(), Some(&*self.spec.evergate)].into_iter().flatten() {
            if let Some(folder) = program.parent() {
                path.push(folder);
                path.push(":");
            }
        }
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        path.push(":/usr/sbin:/sbin");
        let ours = |cloud: &OsString| [ADMIN_CLOUD, MEMBER_CLOUD].iter().any(|name| cloud == name);
        let cloud = std::env::var_os("OS_CLOUD").filter(ours).unwrap_or_else(|| ADMIN_CLOUD.into());
        vec![("PATH", path), ("OS_CLIENT_CONFIG_FILE", self.clouds_file().into()), ("OS_CLOUD", cloud)]
    }

    /// Keeps other commands from changing the lab meanwhile.
    pub(crate) fn lock(&self) -> Result<File> {
        let folder = File::open(&self.dir).with_context(|| format!("failed to open {}", self.dir.display()))?;
        folder.lock().with_context(|| format!("failed to lock {}", self.dir.display()))?;
        Ok(folder)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Writes a file of the lab's own, whole or not at all.
    pub(crate) fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(value).context("failed to write JSON")?;
        let new = path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, path))
            .with_context(|| format!("failed to write {}", path.display()))
    }
}

/// On the controller's disk: the stock client's configuration, made by the server.
const CLOUDS: &str = "var/lib/evergate/clouds.yaml";
/// On the controller's disk: what the server is known by.
const AUTHORITY: &str = "var/lib/evergate/ca.pem";
/// On a host's disk: what it joins with.
const JOIN_TOKEN: &str = "var/lib/evergate/join-token";

/// The cloud of an administrator in the generated `clouds.yaml`.
pub const ADMIN_CLOUD: &str = "evergate-admin";
/// The cloud of an ordinary member.
pub const MEMBER_CLOUD: &str = "evergate-demo";

/// The lab's URL of the API, from any node on the underlay.
pub(crate) fn api_address() -> String {
    let controller = Node::Controller.underlay().map(|address| address.to_string()).unwrap_or_default();
    format!("{controller}:{API_PORT}")
}

fn absolute(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir).with_context(|| format!("failed to resolve {}", dir.display()))?;
    if dir.starts_with("/run") {
        bail!("a lab cannot be kept below /run: every node has a /run of its own");
    }
    Ok(dir)
}

/// The machine's names for the lab's network namespaces.
fn namespaces(lab: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("failed to list network namespaces"),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let prefix = spec::netns_prefix(lab);
    Ok(names.filter(|name| name.starts_with(&prefix)).collect())
}

/// Ends what still runs in a namespace (a packet capture, say), which would keep it alive without its
/// name, and removes the name.
fn remove_namespace(netns: &str) -> Result<()> {
    // A run that was aborted between creating the file and mounting on it leaves a plain file.
    let inside = || tools::output(Command::new("ip").args(["netns", "pids", netns])).unwrap_or_default();
    procs::kill_until_gone(&format!("processes in {netns}"), || {
        inside().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    })?;
    if ip_batch(None, &[format!("netns delete {netns}")]).is_err() {
        let path = Path::new(NETNS).join(netns);
        fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
    }
    Ok(())
}

fn remove_files(dir: &Path, keep_logs: bool) -> std::io::Result<()> {
    if !dir.join("lab.json").exists() && !dir.join("boot.sh").exists() {
        // Not ours (or nothing there): `--dir` may name any folder.
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if keep_logs && path.ends_with("log") {
            continue;
        }
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    // Only when empty: with logs kept, or another lab beside it, the folder stays.
    let _ = fs::remove_dir(dir);
    if let Some(parent) = dir.parent().filter(|parent| *parent == Path::new(LABS)) {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}
