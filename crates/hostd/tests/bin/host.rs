//! The host's processes by themselves, for this crate's tests: they kill, stop and start real ones.

use clap::Parser;
use evergate_hostd::cli;

#[derive(Parser)]
enum Cli {
    Host(cli::HostArgs),
    Control(cli::ControlArgs),
    Keeper(evergate_keeper::cli::Args),
    Show(cli::ShowArgs),
    Plan(cli::PlanArgs),
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("EVERGATE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match Cli::parse() {
        Cli::Host(args) => cli::run_host(args),
        Cli::Control(args) => cli::run_control(args),
        Cli::Keeper(args) => evergate_keeper::cli::run(args),
        Cli::Show(args) => cli::run_show(args),
        Cli::Plan(args) => cli::run_plan(args),
    }
}
