//! Everything that CI runs, as subcommands, so that it can be run by hand.
//!
//! ```text
//! cargo xtask ci       formatting, lints, and every test; the tests come last
//! cargo xtask fmt      formatting alone
//! cargo xtask lint     lints alone
//! cargo xtask test     every test; arguments go to `cargo test`
//! cargo xtask bench    benchmarks; arguments go to `cargo bench`
//! ```

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match run(&task, &rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &str, rest: &[String]) -> Result<()> {
    match task {
        "ci" => {
            format()?;
            lint()?;
            test(rest)
        }
        "fmt" => format(),
        "lint" => lint(),
        "test" => test(rest),
        "bench" => bench(rest),
        other => bail!("there is no task '{other}'; there are: ci, fmt, lint, test, bench"),
    }
}

fn format() -> Result<()> {
    step("formatting", cargo().args(["fmt", "--all", "--check"]))
}

fn lint() -> Result<()> {
    let mut clippy = cargo();
    clippy.args(["clippy", "--locked", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    step("lints", &mut clippy)
}

fn test(rest: &[String]) -> Result<()> {
    step("tests", cargo().args(["test", "--locked", "--workspace"]).args(rest))
}

fn bench(rest: &[String]) -> Result<()> {
    let packages = ["--package", "evergate", "--package", "evergate-ctsync"];
    step("benchmarks", cargo().args(["bench", "--locked", "--benches"]).args(packages).args(rest))
}

/// Runs one step, and says what it was and how long it took.
fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {name}");
    let start = Instant::now();
    let status = command.current_dir(root()).status().with_context(|| format!("failed to start {command:?}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    eprintln!("xtask: {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The cargo that runs us, not whichever another toolchain would pick.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The checkout.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
