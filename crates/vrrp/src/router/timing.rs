//! How long a backup waits (RFC 9568 §6.1; RFC 3768 §6.1 for version 2), and how copies of equal
//! priority avoid waiting equally long.

use std::net::IpAddr;
use std::time::Duration;

use super::config::{Config, Version};

/// Intervals without an advertisement before an active is given up.
pub(super) const LOST_INTERVALS: u32 = 3;

/// Priority steps between two ranks.
///
/// A rank step must exceed what separates two copies' timers for other reasons (delivery of the last
/// advertisement, scheduling) plus the time the first one's advertisement takes to arrive. 16 of 256
/// is 62 ms in version 2, an order of magnitude above the lateness a loaded host shows, and a sixteenth
/// of the interval in version 3, as generous as an interval of that length can be. Only a failure of
/// two copies at once ever pays for it, with one step.
const RANK_STEP: u32 = 16;

/// What Skew_Time is a fraction of.
fn skew_unit(config: &Config, active_adver_interval: Duration) -> Duration {
    match config.version {
        // RFC 3768 §6.1: (256 - Priority) / 256 seconds, whatever the interval.
        Version::V2 => Duration::from_secs(1),
        // RFC 9568 §6.1: in proportion to the interval.
        Version::V3 => active_adver_interval,
    }
}

/// Skew_Time. Nanoseconds: the shortest interval and the highest priority still make 39 µs.
pub(super) fn skew_time(config: &Config, active_adver_interval: Duration) -> Duration {
    skew_unit(config, active_adver_interval) * (256 - u32::from(config.priority)) / 256
}

/// The highest priority of a router that does not own the addresses.
const HIGHEST_PRIORITY: u8 = 254;

/// What a backup waits after `active` resigned.
pub(super) fn resigned_skew(config: &Config, active_adver_interval: Duration, active: Option<IpAddr>) -> Duration {
    // Deviation, if configured: with priority 50, as in every copy under Neutron, Skew_Time is 0.8 s
    // in which nobody forwards. It is there to let a higher priority go first; copies that are known
    // to be equal need no such order beyond their rank, so they wait what the highest priority would.
    let equals = active.is_some_and(|active| config.peers.contains(&active));
    if config.interop.hasten_resignation && equals {
        let urgent = 256 - u32::from(HIGHEST_PRIORITY.max(config.priority));
        return skew_unit(config, active_adver_interval) * urgent / 256;
    }
    skew_time(config, active_adver_interval)
}

/// What a backup waits in addition, so that copies of equal priority do not all take over at once.
///
/// Copies that list each other in `Config::peers` number themselves: the highest address among those
/// that could take over (all but `active`, which is the one that fell silent or resigned) has rank 0
/// and waits nothing extra, as RFC 9568 would have it; each next one waits a step longer, and hears the
/// advertisement of the one before it first. The highest address goes first because it also wins
/// should two become active all the same.
///
/// A step is `RANK_STEP` priorities' worth of Skew_Time: a rank behaves, in time, like a lower
/// priority, and on the wire like the configured one. Together, Skew_Time and delay never exceed
/// Skew_Time at priority 1, the longest that the RFC knows, so that for every other speaker this is
/// an ordinary backup; with many copies or a low priority the steps shrink to fit.
pub(super) fn rank_delay(config: &Config, active_adver_interval: Duration, active: Option<IpAddr>) -> Duration {
    let own = config.primary_address;
    let rivals = |peer: &&IpAddr| Some(**peer) != active && **peer != own;
    let last_rank = config.peers.iter().filter(rivals).count();
    let rank = config.peers.iter().filter(rivals).filter(|peer| **peer > own).count();
    if rank == 0 {
        return Duration::ZERO;
    }
    // A router has at most a few hundred copies (a VRRP group shares one link).
    let (rank, last_rank) = (rank as u32, last_rank as u32);
    let unit = skew_unit(config, active_adver_interval);
    let headroom = unit * u32::from(config.priority.saturating_sub(1)) / 256;
    let step = (unit * RANK_STEP / 256).min(headroom / last_rank);
    step * rank
}

/// Whether a backup with these two configurations would wait differently long.
pub(super) fn differs(a: &Config, b: &Config) -> bool {
    a.priority != b.priority
        || a.peers != b.peers
        || a.primary_address != b.primary_address
        || a.advertise_interval_cs != b.advertise_interval_cs
        || a.interop.hasten_resignation != b.interop.hasten_resignation
}
