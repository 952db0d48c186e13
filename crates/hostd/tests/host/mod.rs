//! A host for one test: network and mount namespaces that go with it, and the daemon's processes in them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use evergate_hostd::view::HostView;
use evergate_kernel::sys::{self, LockFile, Namespace, Signal};
use evergate_model::names;

use crate::common::{HOST_VTEP, ROUTER};
use crate::server::Server;

const PROGRAM: &str = env!("CARGO_BIN_EXE_evergate-host-under-test");

/// Nothing here takes a tenth of this on an idle machine; tests share theirs with others.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    folder: PathBuf,
    pub(crate) server: Server,
    supervisor: Option<Child>,
}

/// Runs a test on a host of its own.
pub(crate) fn on_a_host(name: &str, test: impl FnOnce(&mut Host) + Send) {
    let folder = std::env::temp_dir().join(format!("evergate-host-{}-{name}", std::process::id()));
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            isolate(&folder);
            test(&mut Host::new(&folder));
        });
        let result = host.join();
        // Out here nothing is mounted below it.
        let _ = fs::remove_dir_all(&folder);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Moves this thread, and what it starts, into namespaces of their own.
fn isolate(folder: &Path) {
    sys::unshare(&[Namespace::Net, Namespace::Mount]).expect("this test needs root");
    sys::mount_make_private(Path::new("/")).unwrap();
    sys::mount_sysfs(Path::new("/sys")).unwrap();
    let netns = folder.join("netns");
    fs::create_dir_all(&netns).unwrap();
    for command in [
        "ip link set lo up",
        "ip link add ul0 type veth peer name ul1",
        &format!("ip address add {HOST_VTEP}/24 dev ul0"),
        "ip link set ul0 up",
        "ip link set ul1 up",
        "ip link add ext0 type veth peer name ext1",
        "ip link set ext1 up",
        // As the daemon asks operators to, where nothing else needs it.
        "sysctl -q -e -w net.bridge.bridge-nf-call-iptables=0",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{command}");
    }
}

impl Host {
    fn new(folder: &Path) -> Self {
        let host = Self { folder: folder.to_owned(), server: Server::start(), supervisor: None };
        host.server.write_token(&folder.join("token"));
        let text = format!(
            "[DEFAULT]\nhost = network1\nstate_path = {0}/state\nha_vrrp_advert_int = 1\n\
             [vxlan]\nlocal_ip = {HOST_VTEP}\n\
             [linux_bridge]\nphysical_interface_mappings = physnet1:ext0\n\
             [agent]\nreport_interval = 1\n\
             [evergate]\nrun_path = {0}/run\nnetns_path = {0}/netns\nserver_url = {1}\njoin_token_file = {0}/token\n",
            folder.display(),
            host.server.url()
        );
        fs::write(host.config_file(), text).unwrap();
        host
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("host.conf")
    }

    /// Adds lines to the configuration file.
    pub(crate) fn configure(&self, lines: &str) {
        let text = fs::read_to_string(self.config_file()).unwrap();
        fs::write(self.config_file(), text + lines).unwrap();
    }

    /// Starts `evergate host`.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("host").arg("--config-file").arg(self.config_file());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(mut before) = self.supervisor.take() {
            before.wait().unwrap();
        }
        self.supervisor = Some(command.spawn().unwrap());
    }

    /// Stops it cleanly.
    pub(crate) fn stop(&mut self) {
        sys::kill(self.supervisor_pid(), Signal::Term).unwrap();
        let status = self.supervisor.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    pub(crate) fn supervisor_pid(&self) -> u32 {
        self.supervisor.as_ref().unwrap().id()
    }

    /// 0 where there is none.
    pub(crate) fn keeper_pid(&self) -> u32 {
        LockFile::holder(&self.folder.join("run/keeper.lock")).ok().flatten().unwrap_or(0)
    }

    /// 0 where there is none.
    pub(crate) fn control_pid(&self) -> u32 {
        LockFile::holder(&self.folder.join("run/control.lock")).ok().flatten().unwrap_or(0)
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn ha_confs(&self) -> PathBuf {
        self.state_path().join("ha_confs").join(ROUTER.to_string())
    }

    pub(crate) fn netns_path(&self) -> PathBuf {
        self.folder.join("netns").join(names::qrouter_namespace(ROUTER))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Runs a command that must succeed.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let done = Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(done.status.success(), "{words:?}: {}\n{}", String::from_utf8_lossy(&done.stderr), self.log());
        String::from_utf8(done.stdout).unwrap()
    }

    /// Runs a verb: standard output and standard error.
    pub(crate) fn verb(&self, words: &[&str]) -> (String, String) {
        let mut command = Command::new(PROGRAM);
        command.arg(words[0]).arg("--config-file").arg(self.config_file()).args(&words[1..]);
        let done = command.output().unwrap();
        (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    }

    pub(crate) fn plan(&self) -> String {
        self.verb(&["plan"]).0
    }

    pub(crate) fn show(&self) -> HostView {
        // While control starts, nobody listens.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (text, error) = self.verb(&["show", "--json"]);
            match serde_json::from_str(&text) {
                Ok(view) => return view,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(e) => panic!("{e} in {text}\n{error}\n{}", self.log()),
            }
        }
    }

    pub(crate) fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > deadline {
                let (show, error) = self.verb(&["show"]);
                let report = self.server.last_report();
                panic!("waited in vain: {what}\nlast report: {report:?}\n{show}{error}\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends every process in this network namespace but this one: they are in sessions of their own.
    fn kill_all(&self) {
        let Ok(ours) = fs::read_link("/proc/thread-self/ns/net") else { return };
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let theirs = fs::read_link(entry.path().join("ns/net"));
            if pid != std::process::id() && theirs.is_ok_and(|theirs| theirs == ours) {
                let _ = sys::kill(pid, Signal::Kill);
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The supervisor first: it would start the others again.
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.kill_all();
    }
}
