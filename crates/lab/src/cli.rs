//! `evergate lab …`: the verbs.

use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use evergate_model::NetworkId;

use crate::fault::{Daemon, Fault, HaCut, Signal};
use crate::lab::{DEFAULT_NAME, Lab};
use crate::probe::{self, ECHO_PORT, Pace};
use crate::spec::{Link, Node, Profile, Spec, WEB};
use crate::{api, demo, web};

/// Build, break and heal a deployment of many hosts on this machine.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Which lab: labs of different names stand side by side.
    #[arg(long, global = true, default_value = DEFAULT_NAME)]
    name: String,
    /// The lab's folder; found by itself for a lab that runs.
    #[arg(long, global = true, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Build the lab, after taking down what was left of it, and wait until every host has reported.
    Up(UpArgs),
    /// Show the nodes, their processes and faults, and which copy of each router is active.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a command on a node, or a shell when none is given.
    Exec {
        /// Which node: outside, web, controller, net1, …, cmp1, …
        node: String,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Break something on a node.
    Fail {
        /// Which node.
        node: String,
        #[command(subcommand)]
        fault: FaultArg,
    },
    /// Mend what was broken: everything on a node, or one kind of fault there.
    Heal {
        /// Which node, or `all`.
        node: String,
        #[command(subcommand)]
        fault: Option<HealArg>,
    },
    /// Start, list, enter and end instances.
    Instance {
        #[command(subcommand)]
        verb: InstanceVerb,
    },
    /// Run the walk-through on a lab that is up: an HA router survives the loss of a host.
    Demo,
    /// Take the lab down, whatever state it is in. Leaves nothing behind.
    Down {
        /// Keep the folder of logs.
        #[arg(long)]
        keep_logs: bool,
    },
    /// Fetch a page, `http://ADDRESS[:PORT]/`, from where this runs.
    Fetch {
        /// The page.
        url: String,
    },
    /// Send numbered datagrams to an echo server and report what was lost, from where this runs.
    Probe(ProbeArgs),
    /// Serve a page that says who asked.
    #[command(hide = true)]
    WebServer {
        /// Who serves it.
        title: String,
        #[arg(long, default_value_t = 80)]
        port: u16,
    },
    /// Send datagrams back.
    #[command(hide = true)]
    EchoServer {
        #[arg(long, default_value_t = ECHO_PORT)]
        port: u16,
    },
    /// Make one API request as administrator, from inside the controller; the body is standard input.
    #[command(hide = true)]
    Api {
        method: String,
        path: String,
        #[arg(long)]
        clouds: PathBuf,
        #[arg(long)]
        token: PathBuf,
    },
}

#[derive(Clone, Debug, ClapArgs)]
struct UpArgs {
    /// Hosts that run routers: net1, net2, …
    #[arg(long, default_value_t = 3)]
    network_hosts: u16,
    /// Hosts that run instances: cmp1, cmp2, …
    #[arg(long, default_value_t = 2)]
    compute_hosts: u16,
    /// Seconds between two VRRP advertisements (`ha_vrrp_advert_int`); the documented 2 unless given.
    #[arg(long)]
    advert_int: Option<u8>,
    /// Speak VRRP version 3, without a password, at this interval in milliseconds (`vrrp_advert_interval_ms`).
    #[arg(long, conflicts_with = "advert_int")]
    vrrp3_interval_ms: Option<u16>,
    /// Milliseconds between two BFD packets of a pair of hosts (`bfd_interval_ms`); 0: VRRP alone.
    #[arg(long)]
    bfd_interval_ms: Option<u16>,
    /// Seconds between two questions to each router's gateway (`ha_vrrp_health_check_interval`); none unless given.
    #[arg(long)]
    health_check_interval: Option<u8>,
    /// Which documented deployment: HA routers on network hosts, or distributed ones.
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// The `openstack` client; looked for in a `.venv` beside or above here and in the path unless given.
    #[arg(long)]
    client: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum FaultArg {
    /// Cut the node's power: links go down and every process dies at once.
    Power,
    /// Cut its link to the underlay, which carries tunnels and the server's traffic.
    Underlay,
    /// Cut its link to the provider network.
    Uplink,
    /// Cut the underlay between it and one other node.
    Between {
        /// The other node.
        other: String,
    },
    /// Cut its HA networks, while the underlay works.
    Ha {
        /// Only this HA network.
        #[arg(long)]
        network: Option<NetworkId>,
    },
    /// Lose a share of the packets on one of its links, both ways.
    Loss {
        /// Percent of the packets.
        percent: u8,
        /// Which link.
        #[arg(long, value_enum, default_value_t = Link::Underlay)]
        link: Link,
    },
    /// Kill, stop or end one of the product's processes.
    Process {
        /// Which.
        #[arg(value_enum)]
        daemon: Daemon,
        /// How.
        #[arg(long, value_enum, ignore_case = true, default_value_t = Signal::Kill)]
        signal: Signal,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum HealArg {
    /// Give it power.
    Power,
    /// Restore its link to the underlay.
    Underlay,
    /// Restore its link to the provider network.
    Uplink,
    /// Restore the underlay between it and other nodes.
    Between,
    /// Restore its HA networks.
    Ha,
    /// Lose no more packets.
    Loss,
    /// Let a stopped process go on; start what was killed and nobody restarts.
    Process,
}

impl HealArg {
    const fn fits(self, fault: &Fault) -> bool {
        matches!(
            (self, fault),
            (Self::Power, Fault::Power)
                | (Self::Underlay, Fault::Cut(Link::Underlay))
                | (Self::Uplink, Fault::Cut(Link::Uplink))
                | (Self::Between, Fault::Between(_))
                | (Self::Ha, Fault::Ha(_))
                | (Self::Loss, Fault::Loss(..))
                | (Self::Process, Fault::Process(..))
        )
    }
}

#[derive(Clone, Debug, Subcommand)]
enum InstanceVerb {
    /// Start an instance on a host, with a port that exists.
    Add {
        /// Its name.
        instance: String,
        /// The port's id or name.
        #[arg(long)]
        port: String,
        /// Where it runs.
        #[arg(long, default_value = "cmp1")]
        host: String,
    },
    /// List the instances.
    List,
    /// Run a command in an instance, or a shell when none is given.
    Exec {
        /// Which instance.
        instance: String,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Probe the way from an instance to the web server until Enter is pressed, and report every gap.
    Probe {
        /// Which instance.
        instance: String,
        /// Milliseconds between two packets.
        #[arg(long, default_value_t = 5)]
        interval_ms: u64,
    },
    /// End an instance.
    Delete {
        /// Which instance.
        instance: String,
    },
}

#[derive(Clone, Debug, ClapArgs)]
struct ProbeArgs {
    /// The echo server.
    #[arg(long, default_value_t = SocketAddr::from((WEB, ECHO_PORT)))]
    target: SocketAddr,
    /// Milliseconds between two packets.
    #[arg(long, default_value_t = 5)]
    interval_ms: u64,
    /// How many packets.
    #[arg(long, default_value_t = 1000, conflicts_with = "until_input_ends")]
    count: u64,
    /// Go on until standard input ends.
    #[arg(long)]
    until_input_ends: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs a verb.
///
/// # Errors
///
/// Says what failed; commands that a verb runs on a node end this process with their own status.
pub fn run(args: Args) -> Result<()> {
    let (name, dir) = (args.name.as_str(), args.dir.as_deref());
    let open = || Lab::open(name, dir);
    match args.verb {
        Verb::Up(up) => bring_up(name, dir, up),
        Verb::Status { json } => status(&open()?, json),
        Verb::Exec { node, command } => exec(&open()?, &node, &command),
        Verb::Fail { node, fault } => fail(&open()?, &node, fault),
        Verb::Heal { node, fault } => heal(&open()?, &node, fault),
        Verb::Instance { verb } => instance(&open()?, verb),
        Verb::Demo => demo::run(&open()?),
        Verb::Down { keep_logs } => Lab::down(name, dir, keep_logs),
        Verb::Fetch { url } => say(&web::fetch(&url)?),
        Verb::Probe(args) => run_probe(&args),
        Verb::WebServer { title, port } => web::serve(&title, port),
        Verb::EchoServer { port } => web::echo(port),
        Verb::Api { method, path, clouds, token } => {
            let mut body = String::new();
            std::io::stdin().read_to_string(&mut body).context("failed to read the body")?;
            let answer = api::request(&method, &path, &body, &clouds, &token)?;
            say(&serde_json::to_string(&answer).context("failed to write JSON")?)
        }
    }
}

/// Prints to standard output; a reader that has gone away ends the output, not the program.
fn say(text: &str) -> Result<()> {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(())
}

fn bring_up(name: &str, dir: Option<&Path>, args: UpArgs) -> Result<()> {
    let evergate = std::env::current_exe().context("failed to find this executable")?;
    let client = match args.client {
        Some(client) => Some(client),
        None => find_client(&evergate),
    };
    let spec = Spec {
        network_hosts: args.network_hosts,
        compute_hosts: args.compute_hosts,
        advert_int: args.advert_int,
        vrrp3_interval_ms: args.vrrp3_interval_ms,
        bfd_interval_ms: args.bfd_interval_ms,
        health_check_interval: args.health_check_interval,
        profile: args.profile,
        client,
        ..Spec::new(name, evergate)
    };
    let lab = Lab::up(spec, dir)?;
    say(&lab.status()?.to_string())
}

/// Looks for the client where `make deps` puts it, then in the path.
fn find_client(evergate: &Path) -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let folders = here.ancestors().chain(evergate.ancestors());
    let mut places = folders.map(|folder| folder.join(".venv/bin/openstack"));
    places.find(|path| path.is_file()).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("openstack")).find(|path| path.is_file())
    })
}

fn status(lab: &Lab, json: bool) -> Result<()> {
    let status = lab.status()?;
    match json {
        true => say(&serde_json::to_string_pretty(&status).context("failed to write JSON")?),
        false => say(&status.to_string()),
    }
}

fn exec(lab: &Lab, node: &str, command: &[String]) -> Result<()> {
    let machine = lab.machine_named(node)?;
    match command {
        [] => {
            if std::io::stderr().is_terminal() {
                eprint!("{}", welcome(machine.node));
            }
            become_shell(machine.command("bash")?, node)
        }
        [program, args @ ..] => replace(machine.command(program)?.args(args)),
    }
}

fn welcome(node: Node) -> String {
    let look = match node {
        Node::Controller => "openstack router list; openstack network agent list; OS_CLOUD=evergate-demo openstack …",
        Node::Network(_) | Node::Compute(_) => "ip netns; bridge link; ls /var/lib/evergate/ha_confs; ps -ef",
        Node::Outside | Node::Web => "ip address; tcpdump -ni eth0",
    };
    format!("You are on {node}. Look around: {look}\nCtrl-D leaves.\n")
}

fn become_shell(mut command: Command, place: &str) -> Result<()> {
    let prompt = format!("[{place}] \\w # ");
    replace(command.args(["--norc", "-i"]).env("PS1", prompt))
}

/// Goes on as another program, so that its status is ours.
fn replace(command: &mut Command) -> Result<()> {
    Err(command.exec()).context("failed to start the command")
}

fn fail(lab: &Lab, node: &str, fault: FaultArg) -> Result<()> {
    let node = lab.spec().node(node)?;
    let fault = match fault {
        FaultArg::Power => Fault::Power,
        FaultArg::Underlay => Fault::Cut(Link::Underlay),
        FaultArg::Uplink => Fault::Cut(Link::Uplink),
        FaultArg::Between { other } => Fault::Between(other),
        FaultArg::Ha { network: None } => Fault::Ha(HaCut::All),
        FaultArg::Ha { network: Some(network) } => Fault::Ha(HaCut::One(network, lab.vni_of(network)?)),
        FaultArg::Loss { percent, link } => Fault::Loss(link, percent),
        FaultArg::Process { daemon, signal } => Fault::Process(daemon, signal),
    };
    lab.fail(node, fault.clone())?;
    say(&format!("{node}: {fault}"))
}

fn heal(lab: &Lab, node: &str, kind: Option<HealArg>) -> Result<()> {
    let nodes = if node == "all" { lab.spec().nodes() } else { vec![lab.spec().node(node)?] };
    let faults = lab.faults()?;
    let mut healed = 0;
    for node in nodes {
        for fault in faults.of(node).filter(|fault| kind.is_none_or(|kind| kind.fits(fault))) {
            lab.heal(node, fault)?;
            say(&format!("{node}: no more: {fault}"))?;
            healed += 1;
        }
    }
    if healed == 0 {
        say("nothing to heal")?;
    }
    Ok(())
}

fn instance(lab: &Lab, verb: InstanceVerb) -> Result<()> {
    match verb {
        InstanceVerb::Add { instance, port, host } => {
            let added = lab.add_instance(&instance, &port, lab.spec().node(&host)?)?;
            say(&format!("{instance} runs on {host} with {} ({})", added.address, added.mac))
        }
        InstanceVerb::List => {
            for (name, instance) in lab.instances()? {
                say(&format!("{name:<16}{:<12}{:<20}{}", instance.host, instance.address, instance.port))?;
            }
            Ok(())
        }
        InstanceVerb::Exec { instance, command } => match command.as_slice() {
            [] => become_shell(lab.instance_command(&instance, "bash")?, &instance),
            [program, args @ ..] => replace(lab.instance_command(&instance, program)?.args(args)),
        },
        InstanceVerb::Probe { instance, interval_ms } => {
            let running = probe::Running::start(lab, &instance, Duration::from_millis(interval_ms))?;
            say(&format!("Probing from {instance} every {interval_ms} ms; press Enter to stop."))?;
            std::io::stdin().read_line(&mut String::new()).context("failed to wait for Enter")?;
            say(&running.finish()?.to_string())
        }
        InstanceVerb::Delete { instance } => lab.delete_instance(&instance),
    }
}

fn run_probe(args: &ProbeArgs) -> Result<()> {
    if args.interval_ms == 0 {
        bail!("an interval of 0 ms is not possible");
    }
    let interval = Duration::from_millis(args.interval_ms);
    let count = (!args.until_input_ends).then_some(args.count);
    let pace = Pace { interval, count };
    let report = if args.until_input_ends {
        probe::run_until_input_ends(args.target, pace)?
    } else {
        probe::probe(args.target, pace, &std::sync::atomic::AtomicBool::new(false))?
    };
    match args.json {
        true => say(&serde_json::to_string(&report).context("failed to write JSON")?),
        false => say(&report.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(std::iter::once("lab").chain(line.split_whitespace())).map(|cli| cli.args)
    }

    #[test]
    fn faults_are_spelled_as_the_readme_spells_them() {
        for line in [
            "fail net1 power",
            "fail net1 underlay",
            "fail net1 uplink",
            "fail net1 ha --network 00000000-0000-0000-0000-000000000001",
            "fail net1 loss 20 --link uplink",
            "fail net1 process keeper --signal stop",
            "heal net1 power",
            "heal all",
            "--name other up --network-hosts 50",
            "exec net1 ip -4 addr",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["fail net1", "fail net1 loss many", "fail net1 ha --network 7", "fail net1 process nova"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn healing_one_kind_leaves_the_others() {
        assert!(HealArg::Underlay.fits(&Fault::Cut(Link::Underlay)));
        assert!(!HealArg::Underlay.fits(&Fault::Cut(Link::Uplink)));
        assert!(HealArg::Process.fits(&Fault::Process(Daemon::Server, Signal::Kill)));
    }
}
