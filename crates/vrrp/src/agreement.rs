//! Agreement among copies that cannot hear each other on the HA network: claims, questions, and the
//! company of other hosts. Without I/O; hosts are named by their tunnel addresses.
//!
//! VRRP's silence has many causes, and death is only one of them. So a backup whose wait is over asks
//! first ([`inquiry`]): the silent one directly, the other copies' hosts, and a few more hosts of the
//! router's networks as witnesses. Each says what it knows for itself and passes the question on, so
//! the silent one answers over whatever path is left. What an answer proves:
//!
//! | answer | proves | verdict |
//! |---|---|---|
//! | "I am active", from the silent one, by any path | it lives and serves | stay, tell the operator |
//! | "I am not", from the silent one | it lives, and gave up | take over |
//! | from others only | the asker is connected, the silent one is not | take over |
//! | none, where others used to answer | the asker is cut off | stay, or as the setting says |
//! | none, and there are no others | nothing | take over: it may be all that is left |
//! | "I am active", by way of the server | it lives and serves | stay, if it hears others or nobody else answers here |
//!
//! The server is the last way there is: it carries questions and answers between hosts, and has no opinion. What comes
//! by it can keep a copy from taking over and nothing else, so nobody waits for a server that does not answer. An active
//! that hears nobody but the asker is left the role only where nobody else answers the asker either: of the hosts'
//! own network, the larger side counts.
//!
//! The active, for its part, watches its [`company`]: if it had several other hosts' company while it served
//! and has lost all of it, it is the one that is cut off, and steps down within the time in which the
//! others take over. Whoever is wrong nevertheless is corrected by [`standing`]: the newer claim wins.

mod company;
mod inquiry;

use std::net::IpAddr;

pub use company::{Company, News};
pub use inquiry::{Answer, Inquiry, Rules, Stay, Verdict};

/// Who became active, in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Grows with every takeover.
    pub epoch: u64,
    /// Tunnel address of the host.
    pub host: IpAddr,
}

/// What another copy's claim means for an active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It is older, and its host will hear of ours.
    Older,
    /// It is newer: step down at once.
    Newer,
    /// Both took over at the same time, and ours stays, in a new epoch.
    Tie,
}

/// Decides between the claim of an active copy and that of another host, alike on both sides.
pub fn standing(own: Claim, other: Claim) -> Standing {
    match other.epoch.cmp(&own.epoch) {
        std::cmp::Ordering::Less => Standing::Older,
        std::cmp::Ordering::Greater => Standing::Newer,
        // Which one does not matter, as long as both say the same.
        std::cmp::Ordering::Equal if other.host > own.host => Standing::Newer,
        std::cmp::Ordering::Equal => Standing::Tie,
    }
}

#[cfg(test)]
mod tests;
