//! Two or three machines as network namespaces on one bridge, and the routers that run in them.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

pub mod frr;
#[path = "../../../keeper/tests/support/machine.rs"]
mod machine;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use machine::*;

/// Machines 1 to n, each a namespace with `eth0` 10.7.0.n/24 and fe80::n/64, on a bridge of their own.
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    folder: PathBuf,
}

impl Lab {
    pub fn new(machines: u8) -> Self {
        let prefix = prefix("v");
        let folder = std::env::temp_dir().join(&prefix);
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let mut lab = Self { prefix, namespaces: Vec::new(), folder };
        let wire = lab.namespace("wire");
        sh(&format!("ip -n {wire} link add lan type bridge mcast_snooping 0 && ip -n {wire} link set lan up"));
        for n in 1..=machines {
            let netns = lab.namespace(&format!("m{n}"));
            sh(&format!(
                "ip netns exec {netns} sysctl -qw net.ipv6.conf.default.accept_dad=0 \
                 net.ipv6.conf.default.addr_gen_mode=1 && \
                 ip -n {netns} link add eth0 address 02:00:00:00:07:{n:02x} type veth peer name p{n} netns {wire} && \
                 ip -n {netns} link set eth0 up && ip -n {netns} addr add 10.7.0.{n}/24 dev eth0 && \
                 ip -n {netns} addr add fe80::{n}/64 dev eth0 nodad && \
                 ip -n {wire} link set p{n} master lan && ip -n {wire} link set p{n} up"
            ));
        }
        lab
    }

    fn namespace(&mut self, role: &str) -> String {
        let name = self.name(role);
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        self.namespaces.push(name.clone());
        name
    }

    pub fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    pub fn netns(&self, n: u8) -> String {
        self.name(&format!("m{n}"))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.file(name);
        std::fs::write(&file, text).expect("a file can be written");
        file
    }

    /// Takes a machine off the network, without a carrier telling it so; or puts it back.
    pub fn cut(&self, n: u8, cut: bool) {
        let master = if cut { "nomaster" } else { "master lan" };
        sh(&format!("ip -n {} link set p{n} {master}", self.name("wire")));
    }

    /// Takes its carrier away, or gives it back.
    pub fn carrier(&self, n: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        sh(&format!("ip -n {} link set p{n} {state}", self.name("wire")));
    }

    pub fn has(&self, n: u8, address: &str) -> bool {
        output(&format!("ip -n {} -o addr show", self.netns(n))).contains(&format!(" {address}/"))
    }

    pub fn holders(&self, address: &str) -> Vec<u8> {
        (1..=9).filter(|n| self.namespaces.contains(&self.netns(*n)) && self.has(*n, address)).collect()
    }

    /// Starts ours on a machine.
    pub fn ours(&self, n: u8, configuration: &str, options: &[&str]) -> Router {
        let file = self.write(&format!("ours{n}.conf"), configuration);
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.netns(n), env!("CARGO_BIN_EXE_evergate-vrrp-under-test"), "--config"])
            .arg(&file)
            .arg("--run-path")
            .arg(self.file(&format!("run{n}")))
            .args(options);
        self.start(command, &format!("ours{n}"))
    }

    /// Starts a stock keepalived on a machine.
    pub fn keepalived(&self, n: u8, configuration: &str) -> Router {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let file = self.write(&format!("keepalived{n}.conf"), configuration);
        // One that was killed leaves its files, whose numbers may be another process's by now.
        let start = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.netns(n)])
            .args(["keepalived", "--vrrp", "--dont-fork", "--log-console", "--log-detail", "-f"])
            .arg(&file)
            .arg("-p")
            .arg(self.file(&format!("keepalived{start}.pid")))
            .arg("-r")
            .arg(self.file(&format!("vrrp{start}.pid")));
        self.start(command, &format!("keepalived{n}"))
    }

    pub fn start(&self, mut command: Command, name: &str) -> Router {
        let path = self.file(&format!("{name}.log"));
        let log = std::fs::File::options().append(true).create(true).open(&path).expect("the log can be made");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("it can be started");
        Router { child, log: path, name: name.to_owned() }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for netns in &self.namespaces {
                eprintln!("{netns}:\n{}", output(&format!("ip -n {netns} -o addr show")));
            }
        }
        for netns in &self.namespaces {
            output(&format!("ip netns pids {netns} | xargs -r kill -9; ip netns del {netns}"));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A process that speaks VRRP.
pub struct Router {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Router {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        sh(&format!("kill -{name} {}", self.child.id()));
    }

    /// Stops it as its service manager does; true if it ended well.
    pub fn stop(mut self) -> bool {
        self.signal("TERM");
        self.child.wait().expect("it is our child").success()
    }

    /// Kills it, with no chance to clean up; keepalived's child process, too.
    pub fn kill(mut self) {
        output(&format!("ps -o pid= --ppid {} | xargs -r kill -9", self.child.id()));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} said:\n{}", self.name, self.log());
        }
        output(&format!("kill -TERM {} 2>/dev/null", self.child.id()));
        // Its namespace's other processes end with the lab.
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
