//! The peer: two stock keepalived in namespaces of their own, configured as Neutron configures them, with
//! source NAT, and conntrackd beside each where connections are counted.
//!
//! ```text
//!   client ── lan ──┬── r1 ──┬── wan ── server      addresses of lan and wan are on the master alone;
//!                   └── r2 ──┘                      a third switch, ha, carries the advertisements
//! ```

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use evergate_lab::flows::End;
use evergate_lab::probe::{ECHO_PORT, Pace, Report, probe};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 10);
const NODES: [&str; 4] = ["client", "server", "r1", "r2"];
const SWITCHES: [&str; 3] = ["lan", "wan", "ha"];
const ECHO: &str = "--pair-echo";
const PROBE: &str = "--pair-probe";
const PATIENCE: Duration = Duration::from_secs(30);

/// Becomes the pair's echo server or its probe if the arguments say so. Call early in `main`.
pub(crate) fn echo_if_asked() -> Result<()> {
    let asked = |what: &str| std::env::args().any(|arg| arg == what);
    if asked(ECHO) {
        let socket = UdpSocket::bind((SERVER, ECHO_PORT)).context("failed to listen")?;
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    } else if asked(PROBE) {
        let stop = Arc::new(AtomicBool::new(false));
        let stopper = Arc::clone(&stop);
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            stopper.store(true, Ordering::Relaxed);
        });
        let pace = Pace { interval: Duration::from_millis(5), count: None };
        let report = probe(SocketAddr::from((SERVER, ECHO_PORT)), pace, &stop)?;
        println!("{}", serde_json::to_string(&report).context("the report")?);
    } else {
        return Ok(());
    }
    std::process::exit(0);
}

/// What a fault did to a pair.
pub(crate) struct Damage {
    /// The longest gap that the probe saw, in milliseconds.
    pub(crate) gap_ms: f64,
    /// How many connections still worked, in words.
    pub(crate) connections: String,
}

/// Opens connections through a fresh pair that replicates them with conntrackd, and kills its master;
/// `None` where the probe was too late.
pub(crate) fn power_off(interval: Duration, connections: usize) -> Result<Option<Damage>> {
    let mut pair = Pair::up(interval)?;
    for number in [1, 2] {
        pair.conntrackd(number)?;
    }
    let master = evergate_lab::wait_for("one keepalived is master", PATIENCE, || pair.master())?;
    pair.answers()?;
    let mut server = End::start(pair.python("server"), &["serve", "9000"])?;
    server.says()?;
    let count = connections.to_string();
    let mut client = End::start(pair.python("client"), &["connect", &SERVER.to_string(), "9000", &count])?;
    client.says()?;
    let other = if master == "r1" { "r2" } else { "r1" };
    evergate_lab::wait_for("the standby has all", PATIENCE, || {
        let netns = format!("{}{other}", pair.prefix);
        let out = Command::new("ip").args(["netns", "exec", &netns, "conntrack", "-C"]).output();
        let count = String::from_utf8_lossy(&out.context("failed to run conntrack")?.stdout).trim().to_owned();
        Ok((count.parse::<usize>().unwrap_or(0) >= connections).then_some(()))
    })?;
    let Some(gap_ms) = pair.gap_at(master, Ending::Power)? else { return Ok(None) };
    server.go()?;
    client.go()?;
    server.says()?;
    Ok(Some(Damage { gap_ms, connections: client.says()? }))
}

/// How a master ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its links go down, and its processes are killed.
    Power,
    /// It is told to stop, and resigns.
    Stop,
}

/// Ends the master of a fresh pair `times` times, and returns the gaps in milliseconds.
pub(crate) fn measure(interval: Duration, ending: Ending, times: usize) -> Result<Vec<f64>> {
    let mut gaps = Vec::new();
    while gaps.len() < times {
        gaps.extend(Pair::up(interval)?.gap(ending)?);
    }
    Ok(gaps)
}

/// The two, between a client and a server.
pub(crate) struct Pair {
    prefix: String,
    folder: PathBuf,
    children: Vec<Child>,
}

impl Pair {
    /// Wires it all up and starts both keepalived: with version 3 if the interval is below a second.
    pub(crate) fn up(interval: Duration) -> Result<Self> {
        let prefix = format!("egpair-{}-", std::process::id());
        let folder = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        let mut pair = Self { prefix, folder, children: Vec::new() };
        pair.wire()?;
        let server = pair.own(ECHO, "server")?.spawn().context("failed to start the echo server")?;
        pair.children.push(server);
        for number in [1, 2] {
            pair.keepalived(number, interval)?;
        }
        Ok(pair)
    }

    fn wire(&self) -> Result<()> {
        let p = &self.prefix;
        let mut lines: Vec<String> = NODES.iter().chain(&SWITCHES).map(|n| format!("netns add {p}{n}")).collect();
        let mut plug = |switch: &str, node: &str, device: &str, mac: &str| {
            lines.push(format!("link add {device} netns {p}{node} {mac} type veth peer name {node} netns {p}{switch}"));
            lines.push(format!("-n {p}{node} link set {device} up"));
        };
        // As all copies of a Neutron router port do, both members share an Ethernet address per side.
        plug("lan", "client", "eth0", "");
        plug("wan", "server", "eth0", "");
        for node in ["r1", "r2"] {
            plug("lan", node, "lan0", "address 02:00:00:00:00:01");
            plug("wan", node, "wan0", "address 02:00:00:00:00:02");
            plug("ha", node, "ha0", "");
        }
        for (number, node) in [(1, "r1"), (2, "r2")] {
            lines.push(format!("-n {p}{node} addr add 169.254.192.{number}/18 dev ha0"));
        }
        for line in &lines {
            ip(line)?;
        }
        for (switch, ports) in
            [("lan", &["client", "r1", "r2"][..]), ("wan", &["server", "r1", "r2"]), ("ha", &["r1", "r2"])]
        {
            ip(&format!("-n {p}{switch} link add br0 type bridge mcast_snooping 0 forward_delay 0"))?;
            ip(&format!("-n {p}{switch} link set br0 up"))?;
            for port in ports {
                ip(&format!("-n {p}{switch} link set {port} master br0 up"))?;
            }
        }
        for (node, address, gateway) in [("client", "10.9.0.10/24", "10.9.0.1"), ("server", "10.8.0.10/24", "10.8.0.1")]
        {
            ip(&format!("-n {p}{node} addr add {address} dev eth0"))?;
            ip(&format!("-n {p}{node} route add default via {gateway}"))?;
        }
        for node in ["r1", "r2"] {
            for setting in ["ipv4.ip_forward=1", "netfilter.nf_conntrack_tcp_be_liberal=1"] {
                ip(&format!("netns exec {p}{node} sysctl -qw net.{setting}"))?;
            }
            ip(&format!("netns exec {p}{node} nft add table ip nat"))?;
            ip(&format!(
                "netns exec {p}{node} nft add chain ip nat post {{ type nat hook postrouting priority 100 ; }}"
            ))?;
            ip(&format!("netns exec {p}{node} nft add rule ip nat post oifname wan0 snat to 10.8.0.1 fully-random"))?;
        }
        Ok(())
    }

    fn keepalived(&mut self, number: u8, interval: Duration) -> Result<()> {
        let (version, seconds) = (if interval < Duration::from_secs(1) { 3 } else { 2 }, interval.as_secs_f64());
        let node = format!("r{number}");
        let conf = self.folder.join(format!("{node}.conf"));
        let text = format!(
            "global_defs {{\n    router_id pair\n    vrrp_version {version}\n}}\nvrrp_instance VR_1 {{\n    state BACKUP\n    \
             interface ha0\n    virtual_router_id 1\n    priority 50\n    garp_master_delay 60\n    nopreempt\n    \
             advert_int {seconds}\n    virtual_ipaddress {{\n        169.254.0.1/24 dev ha0\n    }}\n    \
             virtual_ipaddress_excluded {{\n        10.9.0.1/24 dev lan0 no_track\n        10.8.0.1/24 dev wan0 no_track\n    }}\n}}\n"
        );
        fs::write(&conf, text).with_context(|| format!("failed to write {}", conf.display()))?;
        let pid = |kind: &str| self.folder.join(format!("{node}.{kind}.pid"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{node}", self.prefix), "keepalived", "--dont-fork", "--vrrp", "-f"]);
        command.arg(&conf).arg("-p").arg(pid("main")).arg("-r").arg(pid("vrrp"));
        let log = fs::File::create(self.folder.join(format!("{node}.log"))).context("failed to make a log")?;
        command.arg("--log-console").stdin(Stdio::null()).stdout(log.try_clone().context("the log")?).stderr(log);
        self.children.push(command.spawn().context("failed to start keepalived; is it installed?")?);
        Ok(())
    }

    /// As conntrackd's own example for a primary and a backup, with entries put into the standby's kernel
    /// at once: that kept all connections where the packaged recipe, with an external cache, lost some. Returns its process id.
    pub(crate) fn conntrackd(&mut self, number: u8) -> Result<u32> {
        let node = format!("r{number}");
        let path = |suffix: &str| self.folder.join(format!("{node}.ct.{suffix}"));
        let text = format!(
            "Sync {{\n Mode FTFW {{\n DisableExternalCache On\n }}\n Multicast {{\n IPv4_address 225.0.0.50\n \
             Group 3780\n IPv4_interface 169.254.192.{number}\n Interface ha0\n Checksum on\n }}\n}}\nGeneral {{\n \
             HashSize 32768\n HashLimit 524288\n LockFile {}\n UNIX {{\n Path {}\n }}\n NetlinkBufferSize 2097152\n \
             NetlinkBufferSizeMaxGrowth 8388608\n Filter From Userspace {{\n Protocol Accept {{\n TCP\n UDP\n }}\n }}\n}}\n",
            path("lock").display(),
            path("sock").display()
        );
        fs::write(path("conf"), text).context("failed to write conntrackd's configuration")?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{node}", self.prefix), "conntrackd", "-C"]).arg(path("conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("failed to start conntrackd; is it installed?")?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    fn python(&self, node: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{node}", self.prefix), "python3"]);
        command
    }

    /// A command that runs this executable in a node, as `what`.
    pub(crate) fn own(&self, what: &str, node: &str) -> Result<Command> {
        let mut command = self.own_at(node)?;
        command.arg(what);
        Ok(command)
    }

    /// A command that runs this executable in a node.
    pub(crate) fn own_at(&self, node: &str) -> Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns(node)]).arg(std::env::current_exe().context("own path")?);
        Ok(command)
    }

    /// The name of a node's namespace.
    pub(crate) fn netns(&self, node: &str) -> String {
        format!("{}{node}", self.prefix)
    }

    fn has_address(&self, node: &str) -> Result<bool> {
        let netns = format!("{}{node}", self.prefix);
        let out = Command::new("ip").args(["-n", &netns, "addr", "show", "lan0"]).output();
        out.map(|out| String::from_utf8_lossy(&out.stdout).contains("10.9.0.1/")).context("failed to run ip")
    }

    /// The node whose keepalived is master, if it is one.
    pub(crate) fn master(&self) -> Result<Option<&'static str>> {
        Ok(match (self.has_address("r1")?, self.has_address("r2")?) {
            (true, false) => Some("r1"),
            (false, true) => Some("r2"),
            _ => None,
        })
    }

    fn gap(mut self, ending: Ending) -> Result<Option<f64>> {
        let master = evergate_lab::wait_for("one keepalived is master", PATIENCE, || self.master())?;
        self.gap_at(master, ending)
    }

    /// Ends the master under a probe. One that was started too late to get an answer before that
    /// saw no gap, and proves nothing.
    fn gap_at(&mut self, master: &str, ending: Ending) -> Result<Option<f64>> {
        let mut running =
            self.own(PROBE, "client")?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("the probe")?;
        // The master of a fresh pair may have been found before its first announcement was believed.
        self.answers()?;
        match ending {
            Ending::Power => {
                // What is watched first, as the lab does with a host of ours; by one process, so that no time goes by between them.
                let netns = self.netns(master);
                let down = format!("printf 'link set %s down\\n' ha0 lan0 wan0 | ip -n {netns} -batch -");
                let status = Command::new("sh").args(["-c", &down]).status().context("failed to run sh")?;
                anyhow::ensure!(status.success(), "the links of {netns} stayed up");
                self.signal_processes_of(master, "-9")?;
            }
            Ending::Stop => self.signal_processes_of(master, "-TERM")?,
        }
        let other = if master == "r1" { "r2" } else { "r1" };
        evergate_lab::wait_for("the other has taken over", PATIENCE, || {
            // The killed one may have left its address on a link that is down.
            Ok(self.has_address(other)?.then_some(()))
        })?;
        self.answers()?;
        drop(running.stdin.take());
        let mut text = String::new();
        running.stdout.take().context("the probe's output")?.read_to_string(&mut text).context("the probe's output")?;
        let _ = running.wait();
        let report: Report = serde_json::from_str(&text).context("the probe ended without a report")?;
        Ok(seen(&report, ending))
    }

    /// Waits until the server answers the client.
    pub(crate) fn answers(&self) -> Result<()> {
        evergate_lab::wait_for("the server answers the client", PATIENCE, || {
            let netns = format!("{}client", self.prefix);
            let ping = ["netns", "exec", &netns, "ping", "-c1", "-W1", &SERVER.to_string()].map(ToOwned::to_owned);
            let status = Command::new("ip").args(ping).stdout(Stdio::null()).status().context("failed to run ping")?;
            Ok(status.success().then_some(()))
        })
    }

    /// Runs a command in a node.
    pub(crate) fn run(&self, node: &str, words: &[&str]) -> Result<()> {
        ip(&format!("netns exec {}{node} {}", self.prefix, words.join(" ")))
    }

    fn signal_processes_of(&self, node: &str, signal: &str) -> Result<()> {
        let netns = format!("{}{node}", self.prefix);
        let pids = Command::new("ip").args(["netns", "pids", &netns]).output().context("failed to run ip")?;
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        let pids: Vec<&str> = pids.split_whitespace().collect();
        if !pids.is_empty() {
            Command::new("kill").arg(signal).args(pids).status().context("failed to run kill")?;
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in NODES {
            let _ = self.signal_processes_of(node, "-9");
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        for node in NODES.into_iter().chain(SWITCHES) {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{node}", self.prefix)]).status();
        }
        let _ = fs::remove_dir_all(Path::new(&self.folder));
    }
}

/// The gap that a probe saw. None at all is what a clean stop aims at; of a power-off it says that the probe came too
/// late.
pub(crate) fn seen(report: &Report, ending: Ending) -> Option<f64> {
    let has_seen = match ending {
        Ending::Power => !report.gaps.is_empty(),
        Ending::Stop => report.received > 1,
    };
    has_seen.then(|| report.gaps.first().map_or(0.0, |_| report.longest_gap_ms()))
}

fn ip(line: &str) -> Result<()> {
    let out = Command::new("ip").args(line.split_whitespace()).output().context("failed to run ip")?;
    if !out.status.success() {
        bail!("'ip {line}' failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
