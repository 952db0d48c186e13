//! The commands of this crate, as the executable's subcommands.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::{fs, thread};

use anyhow::Context;
use clap::{Args, Subcommand};
use evergate_config::{Config, HostSettings, Role, Sources};
use evergate_kernel::sys::{Signal, SignalFd, set_umask};

use crate::round::Round;
use crate::shell::machine::RealMachine;
use crate::shell::socket::{self, PlanText, Verb};
use crate::shell::{self, Event, work};
use crate::supervisor::{self, CONTROL_LOCK_NAME, Recipe};
use crate::view::HostView;
use crate::worker::Worker;
use crate::{cache, history, membership, startup, timestamp};

/// Configuration files, as Neutron's daemons take them.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// A file in Neutron's format; may be repeated, later files win. Without any, defaults hold.
    #[arg(long, value_name = "FILE")]
    pub config_file: Vec<PathBuf>,
    /// A folder whose `*.conf` files are read in order of name, after the files given before it.
    #[arg(long, value_name = "FOLDER")]
    pub config_dir: Vec<PathBuf>,
}

impl ConfigArgs {
    fn load(&self) -> anyhow::Result<Config> {
        let sources = Sources { files: self.config_file.clone(), dirs: self.config_dir.clone() };
        Ok(Config::load(&sources, Role::Host)?)
    }

    fn settings(&self) -> anyhow::Result<HostSettings> {
        Ok(HostSettings::from_config(&self.load()?))
    }

    /// The arguments again, for control.
    fn to_args(&self) -> Vec<OsString> {
        let files = self.config_file.iter().map(|file| ("--config-file", file));
        let dirs = self.config_dir.iter().map(|dir| ("--config-dir", dir));
        files.chain(dirs).flat_map(|(flag, path)| [OsString::from(flag), path.clone().into_os_string()]).collect()
    }
}

/// Runs the daemon of a network or compute host.
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// Where the settings are.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print the effective configuration, with where each value comes from, and exit.
    #[arg(long)]
    pub check_config: bool,
}

/// Joins the cluster now, with a token that was made on the controller (`evergate cluster token create`). The daemon
/// does the same by itself when it finds a token in `join_token_file`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// Where the settings are.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The file with the token; - is standard input. Unset: `join_token_file`.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Runs the control process.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Where the settings are.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Prints what the host daemon knows.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Where the settings are: the same files that the daemon was started with.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to show; everything, unless said.
    #[command(subcommand)]
    pub what: Option<ShowWhat>,
}

/// What to show.
#[derive(Clone, Debug, Subcommand)]
pub enum ShowWhat {
    /// One router: its role and why, its epoch, its devices.
    Router {
        /// The router's id, or the start of it.
        id: String,
        /// What happened to it here and why, oldest first; also without a running daemon.
        #[arg(long)]
        history: bool,
    },
}

/// Prints what the host daemon would change in the kernel now.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Where the settings are: the same files that the daemon was started with.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs the supervisor until it is told to stop.
pub fn run_host(args: HostArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    if args.check_config {
        for finding in config.findings() {
            eprintln!("{finding}");
        }
        return print(&config.effective());
    }
    startup::check_permissions()?;
    // The executable as it is named now: after an upgrade, a process that is started again is the new one.
    let program = std::env::current_exe().context("failed to find this executable")?;
    let settings = HostSettings::from_config(&config);
    let recipe = Recipe { program, config_args: args.config.to_args(), settings };
    supervisor::run(recipe, || args.config.settings())
}

/// Joins the cluster.
pub fn run_join(args: &JoinArgs) -> anyhow::Result<()> {
    let settings = args.config.settings()?;
    let file = args.token_file.as_deref().unwrap_or(&settings.join_token_file);
    let token = if file == Path::new("-") {
        let text = std::io::read_to_string(std::io::stdin()).context("failed to read the token from standard input")?;
        text.parse().context("standard input holds no join token")?
    } else {
        membership::read_token(file)?
    };
    // What is written is nobody else's to read, unless said otherwise.
    set_umask(0o027);
    let member = membership::join_any(&settings.server_urls, &settings.host, &token, &settings.state_path)?;
    let until = timestamp::utc(member.expires_at_ms());
    let path = settings.state_path.join(membership::FILE_NAME);
    println!(
        "host '{}' joined; its certificate, in {}, lasts until {until} and is renewed before",
        settings.host,
        path.display()
    );
    if file == settings.join_token_file {
        fs::remove_file(file).with_context(|| format!("failed to remove the used join token {}", file.display()))?;
    }
    Ok(())
}

/// Runs the control process until it is told to stop.
pub fn run_control(args: ControlArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    config.log();
    startup::check_permissions()?;
    // What is written here is nobody else's to read, unless said otherwise.
    set_umask(0o027);
    let settings = HostSettings::from_config(&config);
    for folder in [&settings.run_path, &settings.state_path] {
        fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
    }
    let _lock = supervisor::lock(&settings.run_path, CONTROL_LOCK_NAME, "a control process")?;
    // Before any thread: they inherit that these signals are not for them.
    let signals = SignalFd::new(&[Signal::Term, Signal::Int, Signal::Usr1]).context("failed to listen for signals")?;
    let (sender, events) = channel();
    let for_signals = sender.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || pass_signals(&signals, &for_signals))
        .context("failed to start the signals' thread")?;
    tracing::info!(host = settings.host, servers = settings.server_urls.join(","), "control starts");
    shell::run(settings, sender, &events)
}

/// Any signal ends control; `SIGUSR1` asks to clean up before.
fn pass_signals(signals: &SignalFd, events: &Sender<Event>) {
    loop {
        match signals.wait(None) {
            Ok(None) => {}
            Ok(Some(signal)) => {
                let _ = events.send(Event::Stop { cleanup: signal == Signal::Usr1 });
                return;
            }
            Err(error) => {
                tracing::error!("failed to wait for signals: {error}");
                return;
            }
        }
    }
}

/// Prints the daemon's state.
pub fn run_show(args: ShowArgs) -> anyhow::Result<()> {
    let settings = args.config.settings()?;
    if let Some(ShowWhat::Router { id, history: true }) = &args.what {
        return show_history(&settings, id);
    }
    let view: HostView = socket::ask(&settings.run_path, Verb::Show)?.with_context(|| nobody(&settings))?;
    let text = match args.what {
        None if args.json => serde_json::to_string_pretty(&view)?,
        None => view.to_string(),
        Some(ShowWhat::Router { id, history: _ }) => {
            let routers = view.routers_like(&id);
            anyhow::ensure!(!routers.is_empty(), "this host has no copy of a router {id}");
            if args.json {
                serde_json::to_string_pretty(&routers.into_iter().collect::<std::collections::BTreeMap<_, _>>())?
            } else {
                routers.iter().map(|(id, router)| format!("id          {id}\n{router}")).collect::<Vec<_>>().join("\n")
            }
        }
    };
    print(&text)
}

/// Prints what happened to a router here.
fn show_history(settings: &HostSettings, id: &str) -> anyhow::Result<()> {
    let folder = settings.state_path.join(history::FOLDER_NAME);
    let found =
        history::read(&settings.state_path, id).with_context(|| format!("failed to read {}", folder.display()))?;
    anyhow::ensure!(
        !found.is_empty(),
        "nothing ever happened here to a router {id} ({} has no file)",
        folder.display()
    );
    let one = found.len() == 1;
    let text = |(router, text): &(_, String)| if one { text.clone() } else { format!("router {router}\n{text}") };
    print(&found.iter().map(text).collect::<Vec<_>>().join("\n"))
}

/// Prints the plan.
pub fn run_plan(args: PlanArgs) -> anyhow::Result<()> {
    let settings = args.config.settings()?;
    let plan: PlanText = match socket::ask(&settings.run_path, Verb::Plan)? {
        Some(plan) => plan,
        None => plan_alone(&settings)?,
    };
    print(&plan.text)
}

/// Computes the plan without control, from what it last knew.
fn plan_alone(settings: &HostSettings) -> anyhow::Result<PlanText> {
    startup::check_permissions()?;
    let config = cache::load(&settings.state_path)?.with_context(|| {
        format!("{}, and there is no {} in {}", nobody(settings), cache::FILE_NAME, settings.state_path.display())
    })?;
    eprintln!("control does not run; this is the plan for revision {}, which it knew last", config.revision);
    let machine = RealMachine::open(&settings.netns_path).context("failed to open the kernel")?;
    let mut round = Round::towards(config);
    round.vtep = settings.local_ip.or_else(|| startup::address_towards(settings.server_urls.first()?).ok());
    let planned = Worker::new(machine, settings).plan(&round)?;
    Ok(work::plan_text(&planned))
}

fn nobody(settings: &HostSettings) -> String {
    format!(
        "control does not run (nobody listens at {}); is run_path the daemon's, that is, were the same files given?",
        settings.run_path.join(socket::SOCKET_NAME).display()
    )
}

/// Prints to standard output; a reader that has gone (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("failed to print"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        show: ShowArgs,
    }

    #[test]
    fn control_is_given_the_files_that_the_supervisor_was_given() {
        let config = ConfigArgs { config_file: vec!["/a".into(), "/b".into()], config_dir: vec!["/c".into()] };
        assert_eq!(config.to_args(), ["--config-file", "/a", "--config-file", "/b", "--config-dir", "/c"]);
    }

    #[test]
    fn show_takes_a_router_and_files() {
        use clap::Parser;
        let cli = Cli::try_parse_from(["show", "--config-file", "/a", "router", "1f2e", "--json"]).unwrap();
        assert!(
            cli.show.json && matches!(cli.show.what, Some(ShowWhat::Router { id, history: false }) if id == "1f2e")
        );
    }
}
