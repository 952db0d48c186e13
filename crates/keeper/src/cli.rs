//! `evergate keeper`: started by `evergate host`.

use std::path::PathBuf;

use crate::shell::{self, Options};

/// Hold mastership for this host's HA routers.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Folder of sockets and locks; in memory.
    #[arg(long, default_value = "/run/evergate", value_name = "DIR")]
    pub run_path: PathBuf,
    /// Folder of named network namespaces.
    #[arg(long, default_value = "/run/netns", value_name = "DIR")]
    pub netns_path: PathBuf,
}

/// Runs until SIGTERM, which hands every active router over.
pub fn run(args: Args) -> anyhow::Result<()> {
    shell::run(Options { run_path: args.run_path, netns_path: args.netns_path })
}
