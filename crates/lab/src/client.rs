//! The stock `openstack` client, kept open: its start takes longer than most of what it does.
//!
//! The client reads commands from standard input when it is given none. Behind each command the shell's
//! `echo` marks the end of its output; errors are told from success by what comes on standard error.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Lab;
use crate::spec::Node;

/// Longest time to wait for the client's error output to follow its other output.
const PATIENCE: Duration = Duration::from_secs(10);

/// One `openstack` process, logged in as one user.
#[derive(Debug)]
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: Receiver<String>,
    commands: u32,
}

/// What one command printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// On standard output.
    pub out: String,
    /// On standard error: empty when the command succeeded.
    pub err: String,
}

impl Client {
    /// Starts the client inside the controller, for a cloud of the generated `clouds.yaml`.
    ///
    /// # Errors
    ///
    /// The client is not installed, or the controller is off.
    pub fn start(lab: &Lab, cloud: &str) -> Result<Self> {
        let Some(program) = lab.spec().client.clone() else {
            bail!("the openstack client was not found when the lab came up; 'make deps' installs it");
        };
        let mut command = lab.machine(Node::Controller).command(program)?;
        command.env("OS_CLOUD", cloud).env("PYTHONUNBUFFERED", "1").env("COLUMNS", "160");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start the openstack client")?;
        let stdin = child.stdin.take().context("the client has no input")?;
        let stdout = BufReader::new(child.stdout.take().context("the client has no output")?);
        let errors = BufReader::new(child.stderr.take().context("the client has no error output")?);
        let (to, stderr) = channel();
        std::thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Ok(Self { child, stdin: Some(stdin), stdout, stderr, commands: 0 })
    }

    /// Runs one command, given as it would be typed behind `openstack`, and returns what it printed.
    ///
    /// # Errors
    ///
    /// The client itself died.
    pub fn run(&mut self, command: &str) -> Result<Printed> {
        self.commands += 1;
        let mark = format!("end-of-command-{}", self.commands);
        // Quoted, or the client would take the redirection for its own.
        let command_line = quote_twice(command);
        let input = format!("{command_line}\n!echo {mark}\n!sh -c 'echo {mark} >&2'\n");
        let stdin = self.stdin.as_mut().context("the client was closed")?;
        stdin.write_all(input.as_bytes()).context("the openstack client died")?;
        let mut out = String::new();
        loop {
            let before = out.len();
            if self.stdout.read_line(&mut out).context("failed to read from the openstack client")? == 0 {
                bail!("the openstack client died in '{command}': {}", self.errors_so_far());
            }
            if out[before..].trim_end() == mark {
                out.truncate(before);
                break;
            }
        }
        let mut err = String::new();
        loop {
            match self.stderr.recv_timeout(PATIENCE) {
                Ok(line) if line == mark => break,
                Ok(line) => err.extend([line.as_str(), "\n"]),
                Err(_) => bail!("the openstack client fell silent in '{command}': {err}"),
            }
        }
        // The mark itself comes with an empty line before it.
        Ok(Printed { out, err: err.trim().to_owned() })
    }

    /// Runs a command that must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// The command printed an error.
    pub fn ok(&mut self, command: &str) -> Result<String> {
        let printed = self.run(command)?;
        if !printed.err.is_empty() {
            bail!("openstack {command}: {}", printed.err);
        }
        Ok(printed.out)
    }

    /// Runs a command that must succeed with `-f json`, and reads its output.
    ///
    /// # Errors
    ///
    /// The command printed an error, or no JSON.
    pub fn json(&mut self, command: &str) -> Result<Value> {
        let text = self.ok(&format!("{command} -f json"))?;
        serde_json::from_str(&text).with_context(|| format!("openstack {command} printed no JSON: {text}"))
    }

    /// Runs a command that must be refused, and returns the message.
    ///
    /// # Errors
    ///
    /// The command succeeded.
    pub fn refused(&mut self, command: &str) -> Result<String> {
        let printed = self.run(command)?;
        if printed.err.is_empty() {
            bail!("openstack {command}: was to be refused, but printed {}", printed.out);
        }
        Ok(printed.err)
    }

    fn errors_so_far(&self) -> String {
        self.stderr.try_iter().collect::<Vec<_>>().join(" ")
    }
}

/// Prepares words in single quotes for a client that takes quotes away twice: once to find the command,
/// once to find its arguments.
fn quote_twice(command: &str) -> String {
    let parts = command.split('\'').enumerate();
    parts.map(|(i, part)| if i % 2 == 0 { part.to_owned() } else { format!("\"'{part}'\"") }).collect()
}

impl Drop for Client {
    fn drop(&mut self) {
        // End of input ends it.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_survive_being_split_twice() {
        assert_eq!(quote_twice("list -c 'HA State' -f json"), "list -c \"'HA State'\" -f json");
    }
}
