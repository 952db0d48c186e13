//! Running other programs, and waiting for a state rather than for a while.
//!
//! The lab builds with the tools that an operator would type (`ip`, `nft`, `nsenter`), because what it
//! builds is the surroundings of the product, not the product: slow is fine, readable matters.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What the lab needs of the machine, and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("hostname", "hostname"),
];

/// Fails with advice when something is missing that the lab cannot do without.
pub(crate) fn check() -> Result<()> {
    let uid = output(Command::new("id").arg("-u"))?;
    if uid.trim() != "0" {
        bail!("the lab makes network namespaces: run it as root");
    }
    for (tool, package) in TOOLS {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", tool])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !found {
            bail!("'{tool}' is not installed; try: apt-get install {package}");
        }
    }
    Ok(())
}

/// Runs a command to its end and returns its standard output; what it printed to standard error goes
/// into the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {}", show(command)))?;
    finish(command, done)
}

/// Like [`output`], with text on the command's standard input.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start {}", show(command)))?;
    let mut stdin = child.stdin.take().context("no standard input to write to")?;
    // A command that refuses its first line closes the pipe; its own message is the better error.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let done = child.wait_with_output().with_context(|| format!("failed to wait for {}", show(command)))?;
    let text = finish(command, done)?;
    written.with_context(|| format!("failed to write to {}", show(command)))?;
    Ok(text)
}

fn finish(command: &Command, done: Output) -> Result<String> {
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        bail!("{} failed ({}): {}", show(command), done.status, why.trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    format!("'{text}'")
}

/// Runs lines of `ip` commands in one process, in the named network namespace or, without one, here.
pub(crate) fn ip_batch(netns: Option<&str>, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut input = lines.join("\n");
    input.push('\n');
    feed(command.args(["-batch", "-"]), &input).map(drop)
}

/// Looks again and again until `look` has an answer, and fails when `deadline` has passed without one.
///
/// An error from `look` means "not yet"; the last one becomes the cause when time is up.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= deadline {
            let late = format!("{what}: not so after {:.1} s", start.elapsed().as_secs_f32());
            return Err(match last {
                Some(error) => error.context(late),
                None => anyhow::anyhow!(late),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_says_what_it_was_and_why() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("no such thing"), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(feed(&mut Command::new("cat"), "one\ntwo\n").unwrap(), "one\ntwo\n");
    }

    #[test]
    fn waiting_ends_with_the_last_error_as_its_cause() {
        let error = wait_for::<()>("the moon is full", Duration::ZERO, || bail!("clouds")).unwrap_err();
        assert!(format!("{error:#}").starts_with("the moon is full: not so after"), "{error:#}");
        assert!(format!("{error:#}").ends_with("clouds"), "{error:#}");
    }
}
