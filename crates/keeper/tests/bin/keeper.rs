//! `evergate keeper` by itself, for this crate's tests: they kill, stop and restart a real process.

use clap::Parser;
use evergate_keeper::cli;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: cli::Args,
}

fn main() -> anyhow::Result<()> {
    cli::run(Cli::parse().args)
}
