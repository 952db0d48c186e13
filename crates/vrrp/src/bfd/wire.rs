//! The control packet (RFC 5880 §4): parsed once, at the edge; whatever can be constructed can be emitted.
//!
//! Invariant: a [`Packet`] passed every check of RFC 5880 §6.8.6 that needs no session. A packet that was
//! refused has exactly one [`Discard`] reason, and its name is the name of a counter.

use std::fmt;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

/// Bytes before the authentication section (RFC 5880 §4.1).
const FIXED_LEN: usize = 24;
/// Bytes of a Keyed SHA1 authentication section (RFC 5880 §4.4).
pub(super) const SHA1_SECTION_LEN: usize = 28;
/// Largest packet that we emit.
pub const MAX_LEN: usize = FIXED_LEN + SHA1_SECTION_LEN;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// Meticulous Keyed SHA1 (RFC 5880 §4.1, Auth Type).
pub(super) const METICULOUS_KEYED_SHA1: u8 = 5;

/// RFC 5880 §4.1, State (Sta).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Held down on purpose: says nothing about the path.
    AdminDown,
    /// The other side is not known to hear us.
    Down,
    /// The other side is heard, but is not known to hear us.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    fn number(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }

    fn of(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    /// In words, as FRR writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdminDown => "admin-down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        }
    }
}

/// RFC 5880 §4.1, Diagnostic (Diag): why the session last left Up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Diagnostic(u8);

impl Diagnostic {
    /// No Diagnostic.
    pub const NONE: Self = Self(0);
    /// Control Detection Time Expired.
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    /// Neighbor Signaled Session Down.
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    /// Administratively Down.
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);

    /// The number on the wire.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            0 => "none",
            1 => "detection time expired",
            2 => "echo function failed",
            3 => "neighbour signalled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            other => return write!(f, "diagnostic {other}"),
        };
        f.write_str(words)
    }
}

/// The mandatory section (RFC 5880 §4.1). Intervals are microseconds, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Control {
    /// Why the sender's session last left Up.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for an answer with `final`.
    pub poll: bool,
    /// Answers a `poll`.
    pub r#final: bool,
    /// The sender's BFD goes on when its control plane stops.
    pub control_plane_independent: bool,
    /// The sender has Demand mode active: it asks us to stop sending.
    pub demand: bool,
    /// The sender's Detection Time, in transmit intervals.
    pub detect_mult: NonZeroU8,
    /// The sender's session.
    pub my_discriminator: NonZeroU32,
    /// The receiver's session; 0 if unknown.
    pub your_discriminator: u32,
    /// The shortest interval that the sender wants to send at.
    pub desired_min_tx_us: u32,
    /// The shortest interval that the sender can receive at; 0: it wants nothing.
    pub required_min_rx_us: u32,
    /// The shortest interval of echo packets that the sender supports; 0: none.
    pub required_min_echo_rx_us: u32,
}

/// A packet that is well-formed: not yet known to be of any session, nor to be authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The mandatory section.
    pub control: Control,
    /// What its authenticity is judged by, if it carries anything.
    pub(super) authentication: Option<Section<'a>>,
}

/// An authentication section (RFC 5880 §4.1), with the packet that it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    /// The whole packet, as long as it says it is.
    pub(super) packet: &'a [u8],
    /// Auth Type.
    pub(super) kind: u8,
    /// What follows Auth Type and Auth Len.
    pub(super) data: &'a [u8],
}

/// Why a packet was refused. In the order of RFC 5880 §6.8.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discard {
    /// It crossed a router, where only one hop is expected (RFC 5881 §5).
    TtlNot255,
    /// Another version than 1.
    Version,
    /// Shorter than a control packet, or than it says.
    Length,
    /// Detect Mult is 0.
    DetectMultZero,
    /// The Multipoint bit is set.
    Multipoint,
    /// Poll and Final at once (RFC 5880 §6.5).
    PollAndFinal,
    /// My Discriminator is 0.
    MyDiscriminatorZero,
    /// Your Discriminator is of no session here.
    UnknownDiscriminator,
    /// Your Discriminator is 0, in a state in which the sender must know it.
    YourDiscriminatorZero,
    /// From nobody that there is a session with.
    UnknownPeer,
    /// It carries authentication, and none is in use.
    AuthUnexpected,
    /// It carries no authentication, and some is in use.
    AuthMissing,
    /// An authentication section of another type or length than Meticulous Keyed SHA1's.
    AuthType,
    /// A key that is not ours.
    AuthKeyId,
    /// Its sequence number was used before, or is too far ahead.
    AuthSequence,
    /// Not signed with the key that it names.
    AuthDigest,
    /// The session here is held down on purpose.
    AdminDown,
}

impl Discard {
    /// Every reason.
    pub const ALL: [Self; 17] = [
        Self::TtlNot255,
        Self::Version,
        Self::Length,
        Self::DetectMultZero,
        Self::Multipoint,
        Self::PollAndFinal,
        Self::MyDiscriminatorZero,
        Self::UnknownDiscriminator,
        Self::YourDiscriminatorZero,
        Self::UnknownPeer,
        Self::AuthUnexpected,
        Self::AuthMissing,
        Self::AuthType,
        Self::AuthKeyId,
        Self::AuthSequence,
        Self::AuthDigest,
        Self::AdminDown,
    ];

    /// The counter's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TtlNot255 => "bfd_ttl_not_255",
            Self::Version => "bfd_version",
            Self::Length => "bfd_length",
            Self::DetectMultZero => "bfd_detect_mult_zero",
            Self::Multipoint => "bfd_multipoint",
            Self::PollAndFinal => "bfd_poll_and_final",
            Self::MyDiscriminatorZero => "bfd_my_discriminator_zero",
            Self::UnknownDiscriminator => "bfd_unknown_discriminator",
            Self::YourDiscriminatorZero => "bfd_your_discriminator_zero",
            Self::UnknownPeer => "bfd_unknown_peer",
            Self::AuthUnexpected => "bfd_auth_unexpected",
            Self::AuthMissing => "bfd_auth_missing",
            Self::AuthType => "bfd_auth_type",
            Self::AuthKeyId => "bfd_auth_key_id",
            Self::AuthSequence => "bfd_auth_sequence",
            Self::AuthDigest => "bfd_auth_digest",
            Self::AdminDown => "bfd_admin_down",
        }
    }
}

impl Control {
    /// Writes the packet without authentication.
    pub fn emit(&self) -> Vec<u8> {
        self.emit_with_section(&[])
    }

    /// Writes the packet, with a section (Auth Type, Auth Len and the rest) unless it is empty.
    pub(super) fn emit_with_section(&self, section: &[u8]) -> Vec<u8> {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.poll, POLL)
            | flag(self.r#final, FINAL)
            | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | flag(!section.is_empty(), AUTHENTICATION)
            | flag(self.demand, DEMAND);
        let mut bytes = Vec::with_capacity(FIXED_LEN + section.len());
        bytes.push(VERSION << 5 | (self.diagnostic.0 & 0x1f));
        bytes.push(self.state.number() << 6 | flags);
        bytes.push(self.detect_mult.get());
        bytes.push((FIXED_LEN + section.len()) as u8);
        bytes.extend(self.my_discriminator.get().to_be_bytes());
        bytes.extend(self.your_discriminator.to_be_bytes());
        bytes.extend(self.desired_min_tx_us.to_be_bytes());
        bytes.extend(self.required_min_rx_us.to_be_bytes());
        bytes.extend(self.required_min_echo_rx_us.to_be_bytes());
        bytes.extend(section);
        bytes
    }
}

impl<'a> Packet<'a> {
    /// Reads a packet (the payload of a UDP datagram), with the checks of RFC 5880 §6.8.6 up to the
    /// selection of a session.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Discard> {
        let fixed: &[u8; FIXED_LEN] = bytes.first_chunk().ok_or(Discard::Length)?;
        // RFC 5880 §6.8.6: a wrong version comes first.
        if fixed[0] >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let flags = fixed[1];
        let authenticated = flags & AUTHENTICATION != 0;
        // RFC 5880 §6.8.6: at least 24, with authentication 26 bytes; not more than were received. What
        // follows the stated length is padding.
        let length = usize::from(fixed[3]);
        let least = if authenticated { FIXED_LEN + 2 } else { FIXED_LEN };
        if length < least || length > bytes.len() {
            return Err(Discard::Length);
        }
        let detect_mult = NonZeroU8::new(fixed[2]).ok_or(Discard::DetectMultZero)?;
        if flags & MULTIPOINT != 0 {
            return Err(Discard::Multipoint);
        }
        let (poll, r#final) = (flags & POLL != 0, flags & FINAL != 0);
        if poll && r#final {
            return Err(Discard::PollAndFinal);
        }
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let control = Control {
            diagnostic: Diagnostic(fixed[0] & 0x1f),
            state: State::of(flags >> 6),
            poll,
            r#final,
            control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            detect_mult,
            my_discriminator: NonZeroU32::new(word(4)).ok_or(Discard::MyDiscriminatorZero)?,
            your_discriminator: word(8),
            desired_min_tx_us: word(12),
            required_min_rx_us: word(16),
            required_min_echo_rx_us: word(20),
        };
        // RFC 5880 §6.8.6: who does not know our discriminator cannot be further than this.
        if control.your_discriminator == 0 && !matches!(control.state, State::Down | State::AdminDown) {
            return Err(Discard::YourDiscriminatorZero);
        }
        let authentication = if authenticated { Some(Section::of(&bytes[..length])?) } else { None };
        Ok(Self { control, authentication })
    }
}

impl<'a> Section<'a> {
    /// The section at the end of a packet that is at least 26 bytes long.
    fn of(packet: &'a [u8]) -> Result<Self, Discard> {
        let section = &packet[FIXED_LEN..];
        // RFC 5880 §4.1: Auth Len covers type and length, and the packet ends with it.
        if usize::from(section[1]) != section.len() {
            return Err(Discard::AuthType);
        }
        Ok(Self { packet, kind: section[0], data: &section[2..] })
    }

    /// Where the section's data begin in the packet.
    pub(super) fn data_offset() -> usize {
        FIXED_LEN + 2
    }
}

/// A duration as the wire has it; what does not fit is the longest that does.
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
