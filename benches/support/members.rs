//! Hosts that this program plays: each joins as a host does, and has a certificate of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use evergate_hostd::membership::{self, Member, NewKey};
use evergate_model::join::JoinToken;

/// Asks the server's command line for a token, good for any host.
pub(crate) fn token(conf: &Path) -> Result<JoinToken> {
    let made = Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["cluster", "token", "create", "--config-file"])
        .arg(conf)
        .output()?;
    ensure!(made.status.success(), "no token: {}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?.parse()?)
}

/// Makes a host a member.
pub(crate) fn join(server: &str, host: &str, token: &JoinToken, directory: &Path) -> Result<Member> {
    membership::join(server, host, token, &NewKey::generate()?, &directory.join(host))
}
