//! Many connections that are opened, left alone over a fault, and used again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

const FLOWS: &str = include_str!("../../tests/e2e/flows.py");

/// One end of the connections, see `flows.py`.
pub(crate) struct End {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl End {
    /// Starts it where `command` runs a Python interpreter.
    pub(crate) fn start(mut command: Command, args: &[&str]) -> Result<Self> {
        let command = command.arg("-c").arg(FLOWS).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("failed to start one end of the connections")?;
        let output = BufReader::new(process.stdout.take().context("it has no output")?);
        Ok(Self { process, output })
    }

    /// Waits for its next line.
    pub(crate) fn says(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("one end of the connections has ended");
        }
        Ok(line.trim().to_owned())
    }

    /// Lets it go on.
    pub(crate) fn go(&mut self) -> Result<()> {
        let input = self.process.stdin.as_mut().context("it has no input")?;
        input.write_all(b"\n").context("failed to wake one end")
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
