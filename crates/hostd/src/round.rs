//! One round of reconciliation, as data: what starts it, and what came of it.
//!
//! The core decides when a round runs and why; the worker (which owns the kernel) runs it and answers
//! with an [`Outcome`]. Nothing else passes between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use evergate_keeper::protocol::{AdvertiseSpec, FollowSpec, RouterSpec};
use evergate_model::host::{ActiveCopy, HostConfig};
use evergate_model::{FloatingIpId, PortId, RouterId};

/// Why a round runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The first one of this process.
    Start,
    /// The server sent the whole state.
    Snapshot(u64),
    /// The server sent a change.
    Change(u64),
    /// A link appeared, went up or down, or is gone.
    Link(String),
    /// The keeper let go of a router, or did not answer in time.
    Released(RouterId),
    /// The last round did not remove all that is to go.
    Unfinished,
    /// The last rounds were quick: is everything as it should be?
    Verify,
    /// Something failed in the last round, or did not come out as it should.
    Retry,
    /// Nothing happened for a while: somebody may have changed something by hand.
    Period,
    /// The settings changed while running (the tunnel address became known).
    Settings,
}

impl Why {
    /// Tells whether a round that runs for this reason alone may be quick: what the server says, and our
    /// own work, do not make the kernel another than we know.
    pub const fn allows_quick(&self) -> bool {
        match self {
            Self::Snapshot(_) | Self::Change(_) | Self::Released(_) | Self::Unfinished => true,
            Self::Start | Self::Link(_) | Self::Verify | Self::Retry | Self::Period | Self::Settings => false,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Snapshot(revision) => write!(f, "snapshot {revision}"),
            Self::Change(revision) => write!(f, "change {revision}"),
            Self::Link(name) => write!(f, "link {name}"),
            Self::Released(router) => write!(f, "router {router} released"),
            Self::Unfinished => f.write_str("more to remove"),
            Self::Verify => f.write_str("verify"),
            Self::Retry => f.write_str("retry"),
            Self::Period => f.write_str("period"),
            Self::Settings => f.write_str("settings"),
        }
    }
}

/// Puts reasons in one line, most telling first and not more than a line holds.
pub fn reasons(why: &BTreeSet<Why>) -> String {
    const SHOWN: usize = 6;
    let mut text = why.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if why.len() > SHOWN {
        text.push_str(&format!(" and {} more", why.len() - SHOWN));
    }
    text
}

/// A round to run.
#[derive(Clone, Debug)]
pub struct Round {
    /// Counts the rounds of this process.
    pub number: u64,
    /// Why it runs.
    pub why: BTreeSet<Why>,
    /// What this host must be.
    pub config: Arc<HostConfig>,
    /// Whether the server said so in this process's life; otherwise it may be old.
    pub live: bool,
    /// This host's tunnel address, if it has one.
    pub vtep: Option<IpAddr>,
    /// Routers that the keeper let go of: they may be taken down.
    pub released: BTreeSet<RouterId>,
    /// Whether it may start from what the last round left behind, see [`crate::worker`].
    pub quick: bool,
    /// The newest claims that the keeper knows of.
    pub claims: BTreeMap<RouterId, ActiveCopy>,
}

impl Round {
    /// Makes a round outside the usual order: for a plan without the daemon, or for cleaning up.
    pub fn towards(config: HostConfig) -> Self {
        Self {
            number: 0,
            why: BTreeSet::new(),
            config: Arc::new(config),
            live: false,
            vtep: None,
            released: BTreeSet::new(),
            quick: false,
            claims: BTreeMap::new(),
        }
    }
}

/// What came of a round.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The round's number.
    pub number: u64,
    /// Revision of the configuration it worked towards.
    pub revision: u64,
    /// How long it took.
    pub took: Duration,
    /// Ops applied, with or without success.
    pub ops: usize,
    /// Whether there is more to remove than one round does.
    pub unfinished: bool,
    /// Whether the kernel was asked what came of them; otherwise it is to be asked soon.
    pub verified: bool,
    /// What failed, in words: it is tried again.
    pub failures: Vec<String>,
    /// What cannot be done, and why: a foreign object in the way, a mapping that is missing.
    pub problems: BTreeSet<String>,
    /// Routers that stand in the kernel and should go (wholly, or as HA routers).
    pub leftover: BTreeSet<RouterId>,
    /// Those of them that the keeper has not let go of yet: nothing was removed in this round.
    pub withheld: BTreeSet<RouterId>,
    /// HA router copies as the keeper must know them. One that could not be prepared is missing.
    pub prepared: BTreeMap<RouterId, PreparedCopy>,
    /// Routers that are advertised to instances from here. One without its devices is missing.
    pub advertised: BTreeMap<RouterId, AdvertiseSpec>,
    /// Forwarding entries that follow an active copy.
    pub followed: BTreeMap<RouterId, FollowSpec>,
    /// Links of the host's namespace that matter, and whether each is up.
    pub links: BTreeMap<String, bool>,
    /// Names of links that matter, present or not.
    pub wanted_links: BTreeSet<String>,
    /// Ports whose device is present and up.
    pub ports_up: BTreeSet<PortId>,
    /// Floating IPs whose translation is in the kernel.
    pub floating_ips: BTreeSet<FloatingIpId>,
}

/// An HA router copy, prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedCopy {
    /// For the keeper.
    pub spec: RouterSpec,
    /// Why it is not ready to take part, in words; empty if it is.
    pub hindrance: String,
    /// The equivalent configuration for a stock keepalived.
    pub keepalived_conf: String,
    /// Name and text of the script that it checks the gateways with, if they are checked.
    pub check_script: Option<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_fit_in_a_line() {
        let why: BTreeSet<Why> = (1..=8).map(Why::Change).chain([Why::Start]).collect();
        assert_eq!(reasons(&why), "start, change 1, change 2, change 3, change 4, change 5 and 3 more");
    }
}
