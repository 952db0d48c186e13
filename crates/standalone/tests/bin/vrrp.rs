//! `evergate vrrp` alone, for this crate's tests.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: evergate_standalone::cli::Args,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    match evergate_standalone::cli::run(cli.args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evergate: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
