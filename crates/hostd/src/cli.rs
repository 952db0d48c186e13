//! The commands of this crate, as the executable's subcommands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    anyhow::bail!("the host daemon is not built yet ({args:?})")
}

/// Runs the control process until it is told to stop.
pub fn run_control(args: ControlArgs) -> anyhow::Result<()> {
    anyhow::bail!("the control process is not built yet ({args:?})")
}

/// Prints the daemon's state.
pub fn run_show(args: ShowArgs) -> anyhow::Result<()> {
    anyhow::bail!("the verb is not built yet ({args:?})")
}

/// Prints the plan.
pub fn run_plan(args: PlanArgs) -> anyhow::Result<()> {
    anyhow::bail!("the verb is not built yet ({args:?})")
}
