//! The identity that is built in, from the command line and with the stock client: a user that is added while the
//! server runs, an application credential in `clouds.yaml`, and nothing secret in the log.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::{Dir, Server, wait_for};

/// A running server and its files; both go away with the value.
struct Running {
    server: Server,
    address: String,
    dir: Dir,
}

impl Running {
    fn start() -> Self {
        let dir = Dir::new("identity");
        let mut server = Server::start(&dir.0, "server", &format!("state_path = {}\n", dir.0.display()));
        Self { address: server.address(), server, dir }
    }

    fn identity(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_evergate"))
            .arg("identity")
            .args(line.split(' '))
            .arg("--config-file")
            .arg(self.server.conf())
            .output()
            .unwrap()
    }

    /// Writes a `clouds.yaml` of the stock client's with one cloud, `mine`.
    fn cloud(&self, auth_type: &str, auth: &[(&str, &str)]) -> PathBuf {
        let mut text = format!("clouds:\n  mine:\n    auth_type: {auth_type}\n    auth:\n");
        let url = format!("http://{}/identity/v3", self.address);
        for (name, value) in auth.iter().chain(&[("auth_url", url.as_str())]) {
            text.push_str(&format!("      {name}: {value}\n"));
        }
        let path = self.dir.0.join(format!("{auth_type}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn a_user_is_added_logs_in_and_lets_a_program_in() {
    let running = Running::start();
    let client = |cloud: &Path, line: &str| -> Result<Value, String> {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/openstack"))
            .args(line.split(' '))
            .args(["-f", "json"])
            .env("OS_CLIENT_CONFIG_FILE", cloud)
            .env("OS_CLOUD", "mine")
            .output()
            .expect("the stock client is in .venv: make deps");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap()) } else { Err(told) }
    };

    assert!(running.identity("project add p1").status.success());
    let added = running.identity("user add ann --project p1");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let added = String::from_utf8(added.stdout).unwrap();
    let password = added.lines().find_map(|line| line.strip_prefix("password ")).unwrap();
    let cloud = running.cloud(
        "password",
        &[
            ("username", "ann"),
            ("password", password),
            ("project_name", "p1"),
            ("user_domain_id", "default"),
            ("project_domain_id", "default"),
        ],
    );
    // The server looks once a second.
    wait_for("the new user", || client(&cloud, "network create net1").ok());
    let made = client(&cloud, "application credential create robot --role reader").unwrap();
    let (id, secret) = (
        made["ID"].as_str().or(made["id"].as_str()).unwrap(),
        made["Secret"].as_str().or(made["secret"].as_str()).unwrap(),
    );
    let robot = running.cloud(
        "v3applicationcredential",
        &[("application_credential_id", id), ("application_credential_secret", secret)],
    );
    assert_eq!(client(&robot, "network list").unwrap()[0]["Name"], "net1");
    let refused = client(&robot, "network create net2").unwrap_err();
    assert!(refused.contains("disallowed by policy"), "{refused}");
    assert!(running.identity("user disable ann").status.success());
    wait_for("the end of the user", || client(&robot, "network list").is_err().then_some(()));

    let log = running.server.log();
    for secret in [password, secret] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}
