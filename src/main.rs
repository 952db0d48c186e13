//! The one executable. Each subcommand is a role, and lives in its own crate; this file only picks one.

mod cloud;
mod drain;
mod log;
mod router;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Virtual routers for private clouds that do not go down.
#[derive(Parser)]
#[command(name = "evergate", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the Neutron API, identity, placement and the hosts' streams.
    Server(evergate_server::cli::Args),
    /// Manage users, projects and roles of the identity that is built into the server.
    Identity(evergate_server::identity::manage::Args),
    /// Say which hosts are of this cluster: its authority, join tokens, members.
    Cluster(evergate_server::membership::manage::Args),
    /// Join the cluster as a host, with a token.
    Join(evergate_hostd::cli::JoinArgs),
    /// Run the daemon of a network or compute host.
    Host(evergate_hostd::cli::HostArgs),
    /// Build, break and heal a deployment of many hosts on this machine.
    Lab(evergate_lab::cli::Args),
    /// Print what the host daemon knows: routers, roles, problems.
    Show(evergate_hostd::cli::ShowArgs),
    /// Print what the host daemon would change in the kernel now.
    Plan(evergate_hostd::cli::PlanArgs),
    /// Move every router away from a host, before it is worked on, without losing a packet.
    Drain(drain::DrainArgs),
    /// Let routers return to a host that was drained.
    Undrain(drain::UndrainArgs),
    /// Act on one router: move it to another host.
    Router(router::RouterArgs),
    /// Speak VRRP on this machine from a keepalived configuration, without a cloud.
    Vrrp(evergate_standalone::cli::Args),
    /// The host daemon's control process; `evergate host` starts it.
    #[command(hide = true)]
    Control(evergate_hostd::cli::ControlArgs),
    /// The host daemon's keeper process; `evergate host` starts it.
    #[command(hide = true)]
    Keeper(evergate_keeper::cli::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init(matches!(cli.command, Command::Keeper(_) | Command::Vrrp(_)));
    let result = match cli.command {
        Command::Server(args) => {
            // Each host holds two connections, and the usual soft limit is for programs that use select(2).
            if let Err(error) = evergate_kernel::sys::raise_open_files_limit() {
                eprintln!("evergate: the limit of open files stays as it is: {error}");
            }
            // Long answers by many threads; what they took shall not stay with each of these.
            evergate_kernel::sys::return_large_blocks();
            evergate_server::cli::run(args)
        }
        Command::Identity(args) => evergate_server::identity::manage::run(args),
        Command::Cluster(args) => evergate_server::membership::manage::run(args),
        Command::Join(args) => evergate_hostd::cli::run_join(&args),
        Command::Host(args) => evergate_hostd::cli::run_host(args),
        Command::Lab(args) => evergate_lab::cli::run(args),
        Command::Show(args) => evergate_hostd::cli::run_show(args),
        Command::Plan(args) => evergate_hostd::cli::run_plan(args),
        Command::Drain(args) => drain::drain(&args),
        Command::Undrain(args) => drain::undrain(&args),
        Command::Router(args) => router::run(&args),
        Command::Vrrp(args) => evergate_standalone::cli::run(args),
        Command::Control(args) => evergate_hostd::cli::run_control(args),
        Command::Keeper(args) => evergate_keeper::cli::run(args),
    };
    log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain, once, at the top.
            eprintln!("evergate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
