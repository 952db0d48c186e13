//! `evergate vrrp`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use evergate_kernel::rt;
use evergate_kernel::sys::{self, LockFile, Signal, SignalFd};
use evergate_vrrp::wire::Ipv4Checksum;
use tracing::{error, info, warn};

use crate::conf::syntax::RealFiles;
use crate::conf::{self, Configuration};
use crate::helper::{Mailbox, Message, Notifier};
use crate::lease::{Lease, Left};
use crate::speaker::{Setup, Speaker};

/// How soon the end of the speaker's thread is noticed, should it fail.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Speak VRRP on this machine, from the VRRP part of a keepalived configuration.
///
/// SIGHUP reads the configuration again; nothing moves that need not. SIGTERM resigns and removes the addresses.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Configuration file; may be given several times, each with a `net_namespace` of its own.
    #[arg(long, short = 'f', default_value = "/etc/keepalived/keepalived.conf", value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Print the instances as they would run, and what is wrong with the configuration; run nothing.
    #[arg(long)]
    pub check_config: bool,
    /// Checksum of version 3 over IPv4: what others in the group send (at first as keepalived does), that of
    /// RFC 5798 with a pseudo-header, or that of RFC 9568 without. Both are always accepted.
    #[arg(long, value_enum, default_value = "auto", value_name = "FORM")]
    pub v3_checksum: Checksum,
    /// Real-time priority of the thread that speaks VRRP, 1 to 99; overrides `vrrp_rt_priority`.
    #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(1..=99))]
    pub realtime_priority: Option<u8>,
    /// Folder of named network namespaces.
    #[arg(long, default_value = "/run/netns", value_name = "DIR")]
    pub netns_path: PathBuf,
    /// Folder of what lets a restarted process go on as active; in memory.
    #[arg(long, default_value = "/run/evergate", value_name = "DIR")]
    pub run_path: PathBuf,
}

/// Which checksum version 3 sends over IPv4.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// As others in the group do; as RFC 5798 says until one was heard.
    Auto,
    /// With a pseudo-header: keepalived, FRR and other speakers of RFC 5798.
    Rfc5798,
    /// Of the message alone.
    Rfc9568,
}

/// Runs until SIGTERM.
pub fn run(args: Args) -> anyhow::Result<()> {
    // Before any thread (the log may have one), which would take the signals otherwise.
    let signals = SignalFd::new(&[Signal::Hup, Signal::Term, Signal::Int]).context("failed to take signals")?;
    let configurations = read_all(&args.config)?;
    if args.check_config {
        for configuration in &configurations {
            print!("{configuration}");
        }
        return Ok(());
    }
    // Every instance takes a few descriptors.
    sys::raise_open_files_limit().context("failed to raise the limit of open files")?;
    let state = state_path(&args);
    std::fs::create_dir_all(&args.run_path)
        .with_context(|| format!("failed to make the folder {}", args.run_path.display()))?;
    let _lock = LockFile::acquire(&state.with_extension("lock"))
        .map_err(|error| anyhow::anyhow!("another process runs this configuration: {error}"))?;
    let left = Left::read(&state);
    let (queue, receiver) = channel();
    let (wake, woken) = UnixStream::pair().context("failed to make a mailbox")?;
    wake.set_nonblocking(true).context("failed to make a mailbox")?;
    let mailbox = Mailbox::new(queue, wake);
    let setup = Setup {
        netns_path: args.netns_path.clone(),
        checksum: if args.v3_checksum == Checksum::Rfc9568 {
            Ipv4Checksum::MessageOnly
        } else {
            Ipv4Checksum::PseudoHeader
        },
        checksum_follows: args.v3_checksum == Checksum::Auto,
        queue: receiver,
        wake: woken,
        mailbox: mailbox.try_clone().context("failed to make a mailbox")?,
        notifier: Notifier::start().context("failed to start the notifying threads")?,
        lease: Lease::start(state).context("failed to keep a note of the active instances")?,
        left,
    };
    let priority = args.realtime_priority.or(configurations.iter().find_map(|c| c.rt_priority));
    let lock = configurations.iter().any(|configuration| configuration.no_swap);
    let speaker = Speaker::new(setup, configurations)?;
    let speaker = thread::Builder::new().name("vrrp".into()).spawn(move || {
        be_on_time(priority, lock);
        speaker.run()
    })?;
    info!("running");
    attend(&signals, &args, &mailbox, &speaker)?;
    match speaker.join() {
        Ok(result) => result,
        Err(_) => bail!("the thread that speaks VRRP failed"),
    }
}

/// Passes signals on until the speaker ends.
fn attend(
    signals: &SignalFd,
    args: &Args,
    mailbox: &Mailbox,
    speaker: &thread::JoinHandle<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    while !speaker.is_finished() {
        match signals.wait(Some(LOOK_AFTER)).context("failed to wait for signals")? {
            Some(Signal::Hup) => match read_all(&args.config) {
                Ok(configurations) => mailbox.send(Message::Reload(configurations)),
                Err(error) => error!("the running configuration is kept: {error:#}"),
            },
            Some(_) => {
                info!("stopping");
                mailbox.send(Message::Stop);
                return Ok(());
            }
            None => {}
        }
    }
    Ok(())
}

fn be_on_time(priority: Option<u8>, lock: bool) {
    if lock && let Err(why) = rt::lock_memory() {
        warn!("{why}");
    }
    if let Some(priority) = priority
        && let Err(why) = rt::set_fifo_priority(priority)
    {
        warn!("{why}");
    }
}

/// Reads all files; warnings go to the log, errors refuse everything.
fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Configuration>> {
    let mut configurations: Vec<Configuration> = Vec::new();
    let mut errors = Vec::new();
    for path in paths {
        let (configuration, problems) = conf::read(path, &RealFiles);
        for warning in problems.warnings() {
            warn!("{warning}");
        }
        errors.extend(problems.errors());
        if let Some(configuration) = configuration {
            for instance in &configuration.instances {
                let same = |other: &&Configuration| other.net_namespace == configuration.net_namespace;
                if configurations
                    .iter()
                    .filter(same)
                    .any(|other| other.instances.iter().any(|i| i.name == instance.name))
                {
                    errors.push(format!(
                        "{}: vrrp_instance '{}' is in another file, too",
                        path.display(),
                        instance.name
                    ));
                }
            }
            configurations.push(configuration);
        }
    }
    if !errors.is_empty() {
        bail!("the configuration is refused:\n  {}", errors.join("\n  "));
    }
    Ok(configurations)
}

/// One note per set of files.
fn state_path(args: &Args) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    for path in &args.config {
        std::path::absolute(path).as_deref().unwrap_or(Path::new(path)).hash(&mut hasher);
    }
    args.run_path.join(format!("vrrp-{:016x}.active", hasher.finish()))
}
