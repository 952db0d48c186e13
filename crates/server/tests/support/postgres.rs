//! A PostgreSQL of its own for tests: Debian's, in a temporary directory, on a port of the loopback that stays its own
//! while it starts and while it is stopped.
//!
//! A shell watches over it: when the test goes away, however it does, the shell's input ends, and it stops
//! the cluster and removes the directory.

#![allow(dead_code, reason = "no test uses all of it")]

use std::io::Write as _;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The password of user `evergate`.
const PASSWORD: &str = "a-password-of-the-tests";

/// `$1` directory, `$2` port, `$3` directory of the programs, `$4` whether to sync, `$5` size of a file system of
/// its own, if any. Lines on the input start and stop the server.
const WATCH: &str = r#"
as_postgres() { setpriv --reuid postgres --regid postgres --clear-groups -- "$@"; }
start() { as_postgres "$3/pg_ctl" -D "$1/data" -w -t 60 -l "$1/server.log" start >/dev/null && echo up || echo failed; }
stop() { as_postgres "$3/pg_ctl" -D "$1/data" -w -t 60 -m "${4:-immediate}" stop >/dev/null 2>&1; echo down; }
cd /
touch "$1/server.log"
chown postgres "$1" "$1/server.log" "$1/password"
chmod 600 "$1/password"
if [ -n "$5" ]; then
    mkdir "$1/data"
    mount -t tmpfs -o "size=$5,mode=700,uid=postgres,gid=postgres" evergate-test "$1/data" || exit 1
fi
as_postgres "$3/initdb" ${5:+--wal-segsize=1} --pgdata "$1/data" --username evergate --pwfile "$1/password" --auth scram-sha-256 \
    --encoding UTF8 --locale C.UTF-8 --no-sync >"$1/log" 2>&1 || { cat "$1/log" >&2; exit 1; }
cat >>"$1/data/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
port = $2
unix_socket_directories = ''
max_connections = 100
fsync = $4
log_min_messages = warning
${5:+min_wal_size = 2MB}
${5:+max_wal_size = 8MB}
END
start "$1" "$2" "$3"
while read -r command; do
    case $command in
    start) start "$1" "$2" "$3" ;;
    stop) stop "$1" "$2" "$3" immediate ;;
    esac
done
# Not one that was frozen is left.
for pid in $(cat "$1/data/postmaster.pid" 2>/dev/null | head -1); do kill -CONT "$pid" $(pgrep -P "$pid") 2>/dev/null; done
stop "$1" "$2" "$3" immediate >/dev/null
umount "$1/data" 2>/dev/null
rm -rf "$1"
"#;

/// A running cluster; it ends with the value.
pub(crate) struct Cluster {
    directory: PathBuf,
    port: Port,
    watch: Child,
    commands: Option<ChildStdin>,
    said: std::io::BufReader<std::process::ChildStdout>,
    databases: AtomicU32,
}

impl Cluster {
    /// Starts one that forgets in a crash of the machine, and is the faster for it.
    pub(crate) fn start() -> Self {
        Self::start_with(false)
    }

    /// Starts one that syncs every commit, as one in earnest does, if so wanted.
    pub(crate) fn start_with(fsync: bool) -> Self {
        Self::start_on(fsync, "")
    }

    /// Starts one on a file system of its own of that size, such as `96m`.
    pub(crate) fn start_on_small_disk(size: &str) -> Self {
        Self::start_on(false, size)
    }

    fn start_on(fsync: bool, disk: &str) -> Self {
        let programs = programs();
        let port = Port::reserve();
        let number = port.number.to_string();
        let directory = std::env::temp_dir().join(format!("evergate-postgres-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("password"), PASSWORD).unwrap();
        // In a session of its own: who ends the test's whole group shall not end what cleans up after it.
        let mut watch = Command::new("setsid")
            .args(["sh", "-c", WATCH, "watch"])
            .args([directory.as_path(), Path::new(&number), &programs])
            .args([if fsync { "on" } else { "off" }, disk])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = watch.stdin.take();
        let said = std::io::BufReader::new(watch.stdout.take().unwrap());
        let mut cluster = Self { directory, port, watch, commands, said, databases: AtomicU32::new(0) };
        cluster.expect("up");
        cluster
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgresql://evergate:{PASSWORD}@127.0.0.1:{}/{database}", self.port.number)
    }

    /// Makes a database; answers its URL.
    pub(crate) fn make_database(&self) -> String {
        let name = format!("neutron{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// Runs a statement as an operator would.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        psql(&self.url(database), sql)
    }

    /// Stops the cluster as a crash does.
    pub(crate) fn stop(&mut self) {
        self.command("stop");
        self.expect("down");
    }

    /// Starts it again.
    pub(crate) fn start_again(&mut self) {
        self.command("start");
        self.expect("up");
    }

    /// Lets it speak TLS as well, with a certificate and its key as PEM.
    pub(crate) fn speak_tls(&mut self, certificate: &str, key: &str) {
        self.stop();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data().join(name);
            std::fs::write(&path, text).unwrap();
            let own = Command::new("chown").arg("postgres").arg(&path).status().unwrap();
            let hide = Command::new("chmod").arg("600").arg(&path).status().unwrap();
            assert!(own.success() && hide.success());
        }
        let conf = self.data().join("postgresql.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        std::fs::write(conf, text + "ssl = on\n").unwrap();
        self.start_again();
    }

    /// Makes it a standby of nothing from its next start on: it answers, and takes no writes until it is promoted.
    pub(crate) fn demote(&self) {
        std::fs::write(self.directory.join("data/standby.signal"), "").unwrap();
    }

    /// Tells whether it runs; one whose disk is full may have given up.
    pub(crate) fn is_up(&self) -> bool {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid"));
        let postmaster = file.ok().and_then(|text| text.lines().next().map(str::to_owned));
        postmaster.is_some_and(|id| Path::new("/proc").join(id).exists())
    }

    /// The directory of the data.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Freezes every process of the cluster, or lets them go on.
    pub(crate) fn freeze(&self, freeze: bool) {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap();
        let postmaster = file.lines().next().unwrap();
        let signal = if freeze { "-STOP" } else { "-CONT" };
        let children = Command::new("pgrep").args(["-P", postmaster]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let all = children.split_whitespace().chain([postmaster]);
        assert!(Command::new("kill").arg(signal).args(all).status().unwrap().success());
    }

    fn command(&mut self, command: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
    }

    #[track_caller]
    fn expect(&mut self, word: &str) {
        use std::io::BufRead as _;
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        if line.trim() != word {
            let log = std::fs::read_to_string(self.directory.join("server.log")).unwrap_or_default();
            panic!("the cluster did not come {word}: {line}{log}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.commands = None;
        let deadline = Instant::now() + PATIENCE;
        while self.watch.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A port of the loopback that is kept for whoever has the value, also while nothing listens on it: it is none of those
/// that the kernel gives to whom it is all the same, and tests ask each other.
pub(crate) struct Port {
    pub(crate) number: u16,
    /// What tests see that it is taken by: it needs no cleaning up.
    _mark: UnixListener,
}

impl Port {
    /// Finds one.
    pub(crate) fn reserve() -> Self {
        let by_chance = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let (first, last) = by_chance.trim().split_once(char::is_whitespace).unwrap();
        let (first, last): (u16, u16) = (first.parse().unwrap(), last.trim().parse().unwrap());
        let ports: Vec<u16> = (10_000..first).chain(last.saturating_add(1)..u16::MAX).collect();
        // Not all from the same one on.
        let start = std::process::id() as usize * 97 % ports.len();
        let reserve = |number: &u16| {
            let name = SocketAddr::from_abstract_name(format!("evergate-test-port-{number}")).unwrap();
            let mark = UnixListener::bind_addr(&name).ok()?;
            TcpListener::bind(("127.0.0.1", *number)).ok()?;
            Some(Self { number: *number, _mark: mark })
        };
        ports[start..].iter().chain(&ports[..start]).find_map(reserve).expect("a port is free")
    }
}

/// Runs a statement; answers what it printed.
pub(crate) fn psql(url: &str, sql: &str) -> String {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", sql, url])
        .output()
        .expect("psql is installed: scripts/deps");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: scripts/deps");
    let programs = versions.map(|version| version.unwrap().path().join("bin"));
    programs.filter(|programs| programs.join("initdb").exists()).max().expect("PostgreSQL is installed: scripts/deps")
}
