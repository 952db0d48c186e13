//! Theirs: a stock keepalived on each host, all instances in the host's own namespace.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Run;
use crate::meter::{self, Costs};
use crate::wires::{PER_NETWORK, Wires, ip, vrid};

/// What a run costs.
pub(crate) fn measure(run: &Run) -> Result<Costs> {
    let wires = Wires::up(run.routers)?;
    let active = Keepalived::start(&wires, 1, run)?;
    active.wait_logged("Entering MASTER STATE", run.routers)?;
    let backup = Keepalived::start(&wires, 2, run)?;
    backup.wait_logged("Entering BACKUP STATE", run.routers)?;
    let mut costs = meter::measure(run, &wires, [&active.pids()?, &backup.pids()?])?;
    costs.spurious = backup.logged("Entering MASTER STATE")?;
    Ok(costs)
}

struct Keepalived {
    child: Child,
    folder: PathBuf,
}

impl Keepalived {
    fn start(wires: &Wires, side: u8, run: &Run) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("{}-keepalived", wires.host(side)));
        fs::create_dir_all(&folder)?;
        let host = wires.host(side);
        for network in 0..wires.networks() {
            // The bridge itself is the interface, as good as a port.
            ip(&format!("-n {host} addr add 169.254.{}.{}/18 dev ha{network}", 191 + side, 251))?;
        }
        let version = if run.interval_cs < 100 { 3 } else { 2 };
        let priority = if side == 1 { 100 } else { 50 };
        let seconds = f64::from(run.interval_cs) / 100.0;
        let mut text = format!("global_defs {{\n    router_id bench\n    vrrp_version {version}\n}}\n");
        for number in 0..run.routers {
            text += &format!(
                "vrrp_instance VR_{number} {{\n    state BACKUP\n    interface ha{}\n    virtual_router_id {}\n    \
                 priority {priority}\n    garp_master_delay 60\n    nopreempt\n    advert_int {seconds}\n    \
                 virtual_ipaddress {{\n        169.254.0.{}/24\n    }}\n    virtual_ipaddress_excluded {{\n        \
                 10.0.{}.{}/32\n    }}\n}}\n",
                number / PER_NETWORK,
                vrid(number),
                vrid(number),
                number / PER_NETWORK,
                vrid(number)
            );
        }
        let conf = folder.join("keepalived.conf");
        fs::write(&conf, text)?;
        let log = fs::File::create(folder.join("log"))?;
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &host,
            "keepalived",
            "--dont-fork",
            "--vrrp",
            "--log-console",
            "--log-detail",
            "-f",
        ]);
        command.arg(&conf).arg("-p").arg(folder.join("main.pid")).arg("-r").arg(folder.join("vrrp.pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("failed to start keepalived; is it installed?")?;
        Ok(Self { child, folder })
    }

    fn logged(&self, what: &str) -> Result<usize> {
        Ok(fs::read_to_string(self.folder.join("log"))?.matches(what).count())
    }

    fn wait_logged(&self, what: &str, times: u16) -> Result<()> {
        let all = || Ok((self.logged(what)? >= usize::from(times)).then_some(()));
        evergate_lab::wait_for(&format!("keepalived says '{what}'"), Duration::from_secs(120), all)
    }

    /// The parent and the child that speaks VRRP.
    fn pids(&self) -> Result<Vec<u32>> {
        let pid = |name: &str| -> Result<u32> { Ok(fs::read_to_string(self.folder.join(name))?.trim().parse()?) };
        Ok(vec![pid("main.pid")?, pid("vrrp.pid")?])
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        // Killed at once, so that nothing is taken down one by one; the namespace goes anyway.
        for pid in self.pids().unwrap_or_default() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
