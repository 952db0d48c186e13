//! What a virtual router is told, and what follows from it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::wire::{Advertisement, Expectation, Ipv4Checksum, Redacted};

/// Priority of the router that owns the virtual addresses (RFC 9568 §5.2.4).
pub const OWNER_PRIORITY: u8 = 255;

/// The longest interval version 3 can write (RFC 9568 §5.2.7).
const MAX_INTERVAL_CS: u16 = 4095;

/// Virtual router identifier, 1 to 255 (RFC 9568 §5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrid(u8);

impl Vrid {
    /// Checks that the number is not 0.
    pub const fn new(number: u8) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Protocol version spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 3768, whole seconds, optional simple password.
    V2,
    /// RFC 9568, centiseconds.
    V3,
}

impl Version {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// What a virtual router is told.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Its identifier.
    pub vrid: Vrid,
    /// Version to speak.
    pub version: Version,
    /// 1 to 254; 255 only for the address owner.
    pub priority: u8,
    /// Advertisement interval in centiseconds; whole seconds (a multiple of 100) for version 2.
    pub advertise_interval_cs: u16,
    /// Whether a higher priority takes over from a living active of lower priority.
    pub preempt: bool,
    /// How long to wait, after an active of lower priority was first heard, before preempting it.
    pub preempt_delay: Duration,
    /// Simple password (version 2 authentication type 1), at most 8 bytes.
    pub password: Option<[u8; 8]>,
    /// Our address on the HA interface: the source of what we send, and the tie-breaker.
    pub primary_address: IpAddr,
    /// The addresses in our advertisements.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the other copies *of the same priority*, if known: lets copies of equal priority
    /// agree beforehand who is next. Empty: as the RFC says, and as keepalived does.
    pub peers: BTreeSet<IpAddr>,
    /// Addresses of the other copies that this one can agree with on other paths, and that it therefore
    /// asks before it takes over ([`Output::TakeoverDue`](super::Output::TakeoverDue)). `None`: silence here
    /// decides alone, as the RFC says.
    pub agreement: Option<BTreeSet<IpAddr>>,
    /// How often addresses are announced.
    pub announcements: Announcements,
    /// How to get on with other implementations.
    pub interop: Interop,
    /// How many intervals longer it waits than a copy that can do all that the role is for (0: it can). What it
    /// tracks is lost here, say: it takes over only where nobody better does.
    pub handicap: u8,
}

/// How often gratuitous ARP and unsolicited neighbour advertisements are sent after becoming active:
/// a burst at once, and another later for neighbours (and switches) that were not ready for the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announcements {
    /// Rounds per burst, one frame per address each; keepalived's `garp_master_repeat`, default 5.
    /// 0 counts as 1.
    pub rounds: u8,
    /// Pause between the rounds of a burst. keepalived sends them back to back, where one lost
    /// moment loses all of them; the default is 100 ms.
    pub spacing: Duration,
    /// When the second burst starts, counted from the end of the first; keepalived's
    /// `garp_master_delay`, default 5 s. `None`: never.
    pub again_after: Option<Duration>,
}

impl Default for Announcements {
    /// keepalived's numbers.
    fn default() -> Self {
        Self { rounds: 5, spacing: Duration::from_millis(100), again_after: Some(Duration::from_secs(5)) }
    }
}

impl Announcements {
    /// What Neutron writes into keepalived's configuration: `garp_master_delay 60`.
    pub fn neutron() -> Self {
        Self { again_after: Some(Duration::from_secs(60)), ..Self::default() }
    }
}

/// What to do with an advertisement that lists other addresses than ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AddressMismatch {
    /// Version 2 discards (RFC 3768 §7.1, and keepalived 2.2.7), version 3 accepts and remarks
    /// (RFC 9568 §7.1).
    #[default]
    ByVersion,
    /// Discard.
    Discard,
    /// Accept and remark.
    Accept,
}

/// How to get on with other implementations. The default is what the standards say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interop {
    /// What to do with other address lists.
    pub address_mismatch: AddressMismatch,
    /// Which checksum to send in version 3 over IPv4. Both are always accepted.
    pub ipv4_checksum: Ipv4Checksum,
    /// Version 3: the longest interval a backup learns from an active. One (possibly forged)
    /// advertisement of 40.95 s would keep backups waiting for two minutes; who knows that no
    /// configured interval is longer can say so here. The default is the protocol's own limit, 4095.
    pub longest_adopted_interval_cs: u16,
    /// Whether a backup that hears one of its [`Config::peers`] resign waits only half a rank step
    /// (31 ms in version 2, 1/32 of the interval in version 3) and its rank, instead of Skew_Time
    /// (0.8 s at priority 50 in version 2). Right where all members of the group are listed; an
    /// unlisted backup of higher priority would come second. Off by default.
    pub hasten_resignation: bool,
}

impl Default for Interop {
    fn default() -> Self {
        Self {
            address_mismatch: AddressMismatch::default(),
            ipv4_checksum: Ipv4Checksum::default(),
            longest_adopted_interval_cs: MAX_INTERVAL_CS,
            hasten_resignation: false,
        }
    }
}

/// Why a [`Config`] cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// 0 is what a resigning router sends (RFC 9568 §5.2.4).
    #[error("priority 0 is reserved for resigning; use 1 to 254, or 255 for the address owner")]
    PriorityZero,
    /// Its advertisements could not be written.
    #[error("its advertisements cannot be sent")]
    Unsendable(#[from] crate::wire::Unsendable),
    /// Version 3 has no authentication (RFC 9568 §9).
    #[error("version 3 has no authentication; remove the password or speak version 2")]
    PasswordInVersion3,
}

/// Shows everything but the password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("vrid", &self.vrid)
            .field("version", &self.version)
            .field("priority", &self.priority)
            .field("advertise_interval_cs", &self.advertise_interval_cs)
            .field("preempt", &self.preempt)
            .field("preempt_delay", &self.preempt_delay)
            .field("password", &Redacted::of(self.password))
            .field("primary_address", &self.primary_address)
            .field("addresses", &self.addresses)
            .field("peers", &self.peers)
            .field("agreement", &self.agreement)
            .field("announcements", &self.announcements)
            .field("interop", &self.interop)
            .field("handicap", &self.handicap)
            .finish()
    }
}

impl Config {
    /// What Neutron configures for one copy of an HA router: version 2, priority 50, 2 s, no
    /// preemption, the virtual address 169.254.0.VRID, `garp_master_delay 60`.
    pub fn neutron(vrid: Vrid, primary_address: Ipv4Addr) -> Self {
        Self {
            vrid,
            version: Version::V2,
            priority: 50,
            advertise_interval_cs: 200,
            preempt: false,
            preempt_delay: Duration::ZERO,
            password: None,
            primary_address: primary_address.into(),
            addresses: vec![Ipv4Addr::new(169, 254, 0, vrid.get()).into()],
            peers: BTreeSet::new(),
            agreement: None,
            announcements: Announcements::neutron(),
            interop: Interop::default(),
            handicap: 0,
        }
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        if self.priority == 0 {
            return Err(InvalidConfig::PriorityZero);
        }
        if self.version == Version::V3 && self.password.is_some() {
            return Err(InvalidConfig::PasswordInVersion3);
        }
        self.advertisement().message(self.primary_address, self.interop.ipv4_checksum)?;
        Ok(())
    }

    /// What this router accepts.
    pub fn expectation(&self) -> Expectation<'_> {
        Expectation {
            version: self.version,
            vrid: self.vrid,
            advertise_interval_cs: self.advertise_interval_cs,
            password: self.password,
            addresses: &self.addresses,
            own_address: self.primary_address,
            owner: self.is_owner(),
            accept_other_addresses: match self.interop.address_mismatch {
                AddressMismatch::ByVersion => self.version == Version::V3,
                AddressMismatch::Discard => false,
                AddressMismatch::Accept => true,
            },
        }
    }

    /// Whether it owns the addresses.
    pub fn is_owner(&self) -> bool {
        self.priority == OWNER_PRIORITY
    }

    /// What it says while it is active.
    pub(super) fn advertisement(&self) -> Advertisement {
        Advertisement {
            version: self.version,
            vrid: self.vrid,
            priority: self.priority,
            advertise_interval_cs: self.advertise_interval_cs,
            addresses: self.addresses.clone(),
            password: self.password,
        }
    }

    /// What it says when it stops being active on purpose.
    pub(super) fn resignation(&self) -> Advertisement {
        Advertisement { priority: 0, ..self.advertisement() }
    }

    /// Time between two advertisements (RFC 9568 §6.1 Advertisement_Interval).
    pub fn advertise_interval(&self) -> Duration {
        centiseconds(self.advertise_interval_cs)
    }

    /// The interval to expect from the active that sent `adv`.
    pub(super) fn adopted_interval(&self, adv: &Advertisement) -> Duration {
        match self.version {
            // RFC 3768 §7.1: another one than ours was discarded.
            Version::V2 => self.advertise_interval(),
            // RFC 9568 §6.4.2: Active_Adver_Interval is what the active says.
            Version::V3 => {
                // Our own is never too long for us.
                let bound = self.interop.longest_adopted_interval_cs.max(self.advertise_interval_cs);
                centiseconds(adv.advertise_interval_cs.min(bound))
            }
        }
    }

    /// Whether an active of this priority is to be preempted.
    pub(super) fn preempts(&self, priority: u8) -> bool {
        // RFC 9568 §6.1, Preempt_Mode: the address owner always preempts.
        (self.preempt || self.is_owner()) && priority < self.priority
    }

    /// Whether this router and the copy at that address agree on other paths.
    pub(super) fn agrees_with(&self, address: IpAddr) -> bool {
        self.agreement.as_ref().is_some_and(|others| others.contains(&address))
    }

    /// Whether `other` is the same but for its version, and the copies can agree on other paths, before and after.
    pub(super) fn differs_by_version_among_friends(&self, other: &Self) -> bool {
        let same = Self { version: self.version, ..other.clone() };
        self.is_same_router(&same) && self.agreement.is_some() && other.agreement.is_some()
    }

    /// Whether `other` configures the same virtual router (RFC 9568 §1.4: VRID and address family on
    /// one interface).
    pub(super) fn is_same_router(&self, other: &Self) -> bool {
        self.vrid == other.vrid
            && self.version == other.version
            && self.primary_address.is_ipv4() == other.primary_address.is_ipv4()
    }
}

fn centiseconds(cs: u16) -> Duration {
    Duration::from_millis(u64::from(cs) * 10)
}
