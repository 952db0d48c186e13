//! Connections that are opened, left alone over a fault, and used again: `flows.py` at both ends of them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

const FLOWS: &str = include_str!("flows.py");

/// One end of connections: a script somewhere in a lab that says a line when it has come to a point, and waits there.
#[derive(Debug)]
pub struct End {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl End {
    /// Starts `flows.py`, whose head describes the arguments, where `command` runs a Python interpreter.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn start(command: Command, args: &[&str]) -> Result<Self> {
        Self::run(command, FLOWS, args)
    }

    /// Starts another script that speaks as `flows.py` does.
    ///
    /// # Errors
    ///
    /// As [`End::start`].
    pub fn run(mut command: Command, script: &str, args: &[&str]) -> Result<Self> {
        let command = command.arg("-c").arg(script).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("failed to start one end of the connections")?;
        let output = BufReader::new(process.stdout.take().context("it has no output")?);
        Ok(Self { process, output })
    }

    /// Waits for its next line.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn says(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("one end of the connections has ended");
        }
        Ok(line.trim().to_owned())
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn go(&mut self) -> Result<()> {
        let input = self.process.stdin.as_mut().context("it has no input")?;
        input.write_all(b"\n").context("failed to wake one end of the connections")
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
