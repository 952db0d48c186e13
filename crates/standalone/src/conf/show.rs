//! What `--check-config` prints: the instances as they will run.

use std::fmt;

use super::{BfdInstance, Configuration, Group, Instance, Script, TrackProcess, Tracked};

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(netns) = &self.net_namespace {
            writeln!(f, "in network namespace {netns}:")?;
        }
        for instance in &self.instances {
            write!(f, "{instance}")?;
        }
        for Group { name, members, .. } in &self.groups {
            writeln!(f, "sync group {name}: {}", members.join(", "))?;
        }
        for (name, script) in &self.scripts {
            let Script { interval, timeout, fall, rise, .. } = script;
            let words = script.command.words.join(" ");
            writeln!(f, "script {name}: every {interval:?}, at most {timeout:?}, fall {fall}, rise {rise}: {words}")?;
        }
        for (name, file) in &self.files {
            writeln!(f, "file {name}: {}", file.path.display())?;
        }
        for (name, process) in &self.processes {
            let TrackProcess { command, quorum, quorum_max, .. } = process;
            write!(f, "process {name}: {}, at least {quorum}", command.join(" "))?;
            let most = if *quorum_max == u32::MAX { String::new() } else { format!(", at most {quorum_max}") };
            writeln!(f, "{most}")?;
        }
        for (name, bfd) in &self.bfd {
            let BfdInstance { neighbour, min_tx, min_rx, multiplier, .. } = bfd;
            writeln!(
                f,
                "BFD session {name}: with {neighbour}, sends every {min_tx:?}, receives every {min_rx:?}, x {multiplier}"
            )?;
        }
        for fifo in &self.fifos {
            writeln!(f, "transitions are written to {fifo}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        let seconds = f64::from(self.interval_cs) / 100.0;
        writeln!(
            f,
            "instance {}: VRID {} on {}, VRRPv{} over {family}",
            self.name,
            self.vrid,
            self.interface,
            self.version.number()
        )?;
        write!(f, "  priority {}, every {seconds} s, ", self.priority)?;
        match (self.preempt, self.preempt_delay.as_secs_f64()) {
            (false, _) => writeln!(f, "does not preempt")?,
            (true, 0.0) => writeln!(f, "preempts")?,
            (true, delay) => writeln!(f, "preempts after {delay} s")?,
        }
        if self.password.is_some() {
            writeln!(f, "  with a password")?;
        }
        if let Some(source) = self.source {
            writeln!(f, "  from {source}")?;
        }
        for peer in &self.unicast_peers {
            writeln!(f, "  to peer {peer}")?;
        }
        for address in &self.addresses {
            writeln!(f, "  address {} on {}", address.net, address.dev)?;
        }
        for address in &self.excluded {
            writeln!(f, "  address {} on {} (not advertised)", address.net, address.dev)?;
        }
        for route in &self.routes {
            write!(f, "  route to {} in table {}", route.destination, route.table)?;
            for hop in &route.hops {
                if let Some(via) = hop.via {
                    write!(f, " via {via}")?;
                }
                if let Some(dev) = &hop.dev {
                    write!(f, " on {dev}")?;
                }
            }
            writeln!(f)?;
        }
        for rule in &self.rules {
            writeln!(f, "  rule to table {}", rule.table)?;
        }
        if let Some(vmac) = &self.vmac {
            let own = if vmac.transmit_from_base { "; advertisements come from the interface's own" } else { "" };
            writeln!(f, "  {} has the virtual router's Ethernet address{own}", vmac.link)?;
        }
        if !self.accept {
            writeln!(f, "  takes no packets for its addresses")?;
        }
        show_tracked(f, &self.tracked)
    }
}

fn show_tracked(f: &mut fmt::Formatter<'_>, tracked: &[Tracked]) -> fmt::Result {
    for Tracked { what, name, weight } in tracked {
        match (weight.value, weight.reverse) {
            (0, false) => writeln!(f, "  {what} {name} must work")?,
            (0, true) => writeln!(f, "  {what} {name} must not work")?,
            (value, false) => writeln!(f, "  {what} {name} weighs {value:+}")?,
            (value, true) => writeln!(f, "  {what} {name} weighs {value:+}, reversed")?,
        }
    }
    Ok(())
}
