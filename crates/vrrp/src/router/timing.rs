//! How long a backup waits (RFC 9568 §6.1; RFC 3768 §6.1 for version 2), and how copies of equal
//! priority avoid waiting equally long.

use std::net::IpAddr;
use std::time::Duration;

use super::PeerDown;
use super::config::{Config, Version};

/// Intervals without an advertisement before an active is given up.
pub(super) const LOST_INTERVALS: u32 = 3;

/// Late is what exceeds the interval divided by this.
///
/// A timer that fires 0.5 s late (of 2 s; 25 ms of 100 ms) was not held up by ordinary scheduling. A
/// smaller absence remains unnoticed, and may cost a needless contest if it falls on the very moment
/// at which everything sent during the three intervals before was lost as well.
pub(super) const LATE_DIVISOR: u32 = 4;

/// Priority steps between two ranks.
///
/// A rank step must exceed what separates two copies' timers for other reasons (delivery of the last
/// advertisement, scheduling) plus the time the first one's advertisement takes to arrive. 16 of 256
/// is 62 ms in version 2, an order of magnitude above the lateness a loaded host shows, and a sixteenth
/// of the interval in version 3, as generous as an interval of that length can be. Only a failure of
/// two copies at once ever pays for it, with one step. Three copies of priority 50, as Neutron has
/// them, are the most that full steps leave room for.
const RANK_STEP: u32 = 16;

/// Moments of an interval between which the routers of one host share themselves out: so many that a thousand, on four
/// HA networks, make [batches](crate::pacing) as large as they are to be.
const SLOTS: u32 = 64;

/// How long after its first advertisement an active sends its second.
///
/// Deviation: RFC 9568 §6.4.2 has a whole interval. Routers that a host takes over at one moment would advertise in step ever
/// after: a thousand frames at once every interval, for which queues on the way are too short. So the first interval is
/// cut short by a share that the VRID decides, which no backup minds: an advertisement may come early (§6.4.2 resets the
/// timer then).
pub(super) fn first_interval(config: &Config) -> Duration {
    let slot = u32::from(config.vrid.get()) % SLOTS;
    config.advertise_interval() * (slot + 1) / SLOTS
}

/// What a backup waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Silence for Active_Down_Interval.
    ActiveDown,
    /// Skew_Time, because the active resigned.
    Resigned,
    /// Silence for one interval and Skew_Time, because this backup was away.
    Absence,
    /// Silence for one interval and a rank step, because this router was active and was away. Shorter
    /// than what backups wait that were away at the same time, when a whole site stood still: if
    /// nobody else has the role, it returns to where the connections are.
    Relinquished,
    /// A short listen, because this is the first election of a new virtual router.
    First,
    /// An answer of the active whose host is not heard any more on another path ([`peer_down_wait`]).
    PeerDown,
}

/// How long to wait, with `active` heard last and advertising every `interval`.
pub(super) fn wait(config: &Config, wait: Wait, interval: Duration, active: Option<IpAddr>) -> Duration {
    let skew_and_rank = || skew_time(config, interval) + rank_delay(config, interval, active);
    let wait = match wait {
        // RFC 9568 §6.1: Active_Down_Interval.
        // A changed configuration starts the wait anew: then the longer one is safe.
        Wait::ActiveDown | Wait::PeerDown => LOST_INTERVALS * interval + skew_and_rank(),
        Wait::Resigned => resigned_skew(config, interval, active) + rank_delay(config, interval, active),
        Wait::Absence => interval + skew_and_rank(),
        Wait::Relinquished => interval + rank_step(config, interval),
        // Nobody can be active yet, so there is no silence to wait for: the copy that the others would
        // give way to anyway starts, and half a step is enough to hear somebody who knows better.
        // All others wait as long as ever, so a first one that never starts is replaced.
        Wait::First if is_first(config) => rank_step(config, interval) / 2,
        Wait::First => LOST_INTERVALS * interval + skew_and_rank(),
    };
    wait + handicap(config, interval)
}

/// What a copy waits in addition that lacks what the role is for. Skew_Time and rank together are less than an
/// interval, so whoever lacks nothing comes first, however it is ranked.
fn handicap(config: &Config, interval: Duration) -> Duration {
    interval * u32::from(config.handicap)
}

/// How long a backup listens for the active whose host is not heard on another path.
///
/// Rank 0 listens just long enough for an answer. The next ranks wait longer by the time in which their
/// own sessions with the dead host may have noticed before rank 0's did (the host spoke to each in its own
/// time, up to an interval apart), plus the way of rank 0's advertisement. That is longer than the steps
/// of an ordinary election; only a failure of two hosts at once ever pays for it.
pub(super) fn peer_down_wait(config: &Config, down: &PeerDown) -> Duration {
    let rank = (down.interval + down.listen) * rank(config, Some(down.peer));
    down.listen + rank + handicap(config, config.advertise_interval())
}

/// How many copies go before this one, should `active` be gone.
fn rank(config: &Config, active: Option<IpAddr>) -> u32 {
    let own = config.primary_address;
    // A router has at most a few hundred copies: they share one link.
    config.peers.iter().filter(|peer| **peer > own && Some(**peer) != active).count() as u32
}

/// Whether a backup with these two configurations would wait differently long, the interval aside.
pub(super) fn differs(a: &Config, b: &Config) -> bool {
    a.priority != b.priority
        || a.peers != b.peers
        || a.primary_address != b.primary_address
        || a.handicap != b.handicap
        || a.interop.hasten_resignation != b.interop.hasten_resignation
}

/// What Skew_Time is a fraction of.
fn skew_unit(config: &Config, interval: Duration) -> Duration {
    match config.version {
        // RFC 3768 §6.1: (256 - Priority) / 256 seconds, whatever the interval.
        Version::V2 => Duration::from_secs(1),
        // RFC 9568 §6.1: in proportion to the interval.
        Version::V3 => interval,
    }
}

/// Skew_Time. In nanoseconds, so that the shortest interval and the highest priority still make 39 µs.
fn skew_time(config: &Config, interval: Duration) -> Duration {
    skew_unit(config, interval) * (256 - u32::from(config.priority)) / 256
}

/// What a backup waits after `active` resigned.
fn resigned_skew(config: &Config, interval: Duration, active: Option<IpAddr>) -> Duration {
    // Deviation, if configured: with priority 50, as in every copy under Neutron, Skew_Time is 0.8 s
    // in which nobody forwards. It is there to let a higher priority go first; copies that are known
    // to be equal need no such order beyond their rank. Half a step lets everything arrive that the
    // one that resigned had sent before.
    let equals = active.is_some_and(|active| config.peers.contains(&active));
    if config.interop.hasten_resignation && equals {
        return skew_time(config, interval).min(rank_step(config, interval) / 2);
    }
    skew_time(config, interval)
}

/// Whether no other copy has a higher address.
pub(super) fn is_first(config: &Config) -> bool {
    config.peers.iter().all(|peer| *peer <= config.primary_address)
}

fn rank_step(config: &Config, interval: Duration) -> Duration {
    skew_unit(config, interval) * RANK_STEP / 256
}

/// What a backup waits in addition, so that copies of equal priority do not all take over at once.
///
/// Copies that list each other in `Config::peers` number themselves: the highest address among those
/// that could take over (all but `active`, which is the one that fell silent or resigned) has rank 0
/// and waits nothing extra, as RFC 9568 would have it; each next one waits a step longer, and hears the
/// advertisement of the one before it first. The highest address goes first because it also wins
/// should two become active all the same. A copy that has heard nobody yet is ranked among all of
/// them, half a step later: should it be the former active, back again, then the others have given
/// its rank to somebody else.
///
/// A step is `RANK_STEP` priorities' worth of Skew_Time: a rank behaves, in time, like a lower
/// priority, and on the wire like the configured one. Together, Skew_Time and delay never exceed
/// Skew_Time at priority 1, the longest that the RFC knows, so that for every other speaker this is
/// an ordinary backup; with many copies or a low priority the steps shrink to fit.
fn rank_delay(config: &Config, interval: Duration, active: Option<IpAddr>) -> Duration {
    let own = config.primary_address;
    let rivals = || config.peers.iter().filter(|peer| **peer != own);
    // A router has at most a few hundred copies: they share one link.
    let copies = rivals().count() as u32 + 1;
    if copies == 1 {
        return Duration::ZERO;
    }
    let headroom = skew_unit(config, interval) * u32::from(config.priority.saturating_sub(1)) / 256;
    let step = rank_step(config, interval).min(headroom / copies);
    let newcomer = if active.is_none() { step / 2 } else { Duration::ZERO };
    step * rank(config, active) + newcomer
}
