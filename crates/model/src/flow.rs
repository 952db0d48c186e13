//! A tracked connection, as the kernel's connection tracking knows it and as gateways tell each other.
//!
//! A flow has two tuples: what the first packet said, and what an answer to it will say. They differ by
//! more than direction exactly where addresses or ports are translated, so the translation need not be
//! told beside them ([`Flow::source_nat`], [`Flow::destination_nat`]).
//!
//! Numbers are the kernel's (`linux/netfilter/nf_conntrack_common.h`, `nf_conntrack_tcp.h`).

use std::net::IpAddr;

/// IP protocol numbers that have a meaning here.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// GRE: its call identifiers stand where ports do.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// Bits of a flow's status.
pub mod status {
    /// Follows from another connection.
    pub const EXPECTED: u32 = 1;
    /// Packets went both ways.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Not given up early when the table is full.
    pub const ASSURED: u32 = 1 << 2;
    /// Stands in the table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// Its source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// Its destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
    /// Being removed.
    pub const DYING: u32 = 1 << 9;
}

/// TCP states, by the kernel's numbers.
pub mod tcp_state {
    /// Both sides have spoken.
    pub const ESTABLISHED: u8 = 3;
    /// Over; late packets are caught.
    pub const TIME_WAIT: u8 = 7;
    /// Reset.
    pub const CLOSE: u8 = 8;
}

/// What identifies a packet's connection beside addresses and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4 {
    /// Protocols with ports.
    Ports {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier.
        id: u16,
    },
    /// All others: addresses and protocol are all there is.
    None,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address; of the same family.
    pub dst: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Ports or ICMP identifier.
    pub l4: L4,
}

impl Tuple {
    /// What an answer would say if nothing were translated.
    pub fn mirror(&self) -> Self {
        let l4 = match self.l4 {
            L4::Ports { src, dst } => L4::Ports { src: dst, dst: src },
            L4::Icmp { kind, code, id } => L4::Icmp { kind: answer_to(self.protocol, kind), code, id },
            L4::None => L4::None,
        };
        Self { src: self.dst, dst: self.src, protocol: self.protocol, l4 }
    }

    /// Whether it can be a flow's: both addresses of one family.
    pub fn is_sound(&self) -> bool {
        self.src.is_ipv4() == self.dst.is_ipv4()
    }
}

/// The ICMP type that answers a question; other types answer themselves.
fn answer_to(protocol: u8, kind: u8) -> u8 {
    // Pairs of question and answer that the kernel tracks.
    let pairs: &[(u8, u8)] = match protocol {
        protocol::ICMP => &[(8, 0), (13, 14), (15, 16), (17, 18)],
        protocol::ICMPV6 => &[(128, 129), (139, 140)],
        _ => &[],
    };
    let found = pairs.iter().find(|(question, answer)| kind == *question || kind == *answer);
    found.map_or(kind, |(question, answer)| if kind == *question { *answer } else { *question })
}

/// Names a flow: its original tuple, in its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Conntrack zone; 0 is the default one.
    pub zone: u16,
    /// What the first packet said.
    pub original: Tuple,
}

/// What TCP tracking knows, per direction where there are two values: original first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpTracking {
    /// State, see [`tcp_state`].
    pub state: u8,
    /// Window scale.
    pub window_scale: [u8; 2],
    /// Flags (window scaling in use, selective acknowledgement permitted, …).
    pub flags: [u8; 2],
}

/// How far a helper has moved the sequence numbers of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceAdjustment {
    /// Sequence number of the last change.
    pub position: u32,
    /// Offset before it.
    pub before: i32,
    /// Offset after it.
    pub after: i32,
}

/// A tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the first packet said.
    pub original: Tuple,
    /// What an answer says before translation is undone.
    pub reply: Tuple,
    /// Conntrack zone; 0 is the default one.
    pub zone: u16,
    /// See [`status`].
    pub status: u32,
    /// Seconds until it is forgotten.
    pub timeout_s: u32,
    /// For TCP.
    pub tcp: Option<TcpTracking>,
    /// Mark.
    pub mark: u32,
    /// Labels; all zero if there are none.
    pub labels: [u8; 16],
    /// Per direction, original first.
    pub sequence_adjustment: [Option<SequenceAdjustment>; 2],
}

/// One end of a flow after translation: address and, for protocols that have one, port or identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The address.
    pub address: IpAddr,
    /// Port or ICMP identifier.
    pub port: Option<u16>,
}

impl Flow {
    /// Makes a flow of its two tuples, of which nothing else is known.
    pub const fn new(original: Tuple, reply: Tuple) -> Self {
        Self {
            original,
            reply,
            zone: 0,
            status: 0,
            timeout_s: 0,
            tcp: None,
            mark: 0,
            labels: [0; 16],
            sequence_adjustment: [None; 2],
        }
    }

    /// Makes a TCP connection that both sides use and that goes out by source NAT, as Linux's own defaults track one:
    /// for tests and measurements.
    pub const fn established(original: Tuple, reply: Tuple) -> Self {
        Self {
            status: status::SEEN_REPLY | status::ASSURED | status::CONFIRMED | status::SRC_NAT,
            // nf_conntrack_tcp_timeout_established: five days.
            timeout_s: 432_000,
            tcp: Some(TcpTracking { state: tcp_state::ESTABLISHED, window_scale: [7, 7], flags: [3, 3] }),
            ..Self::new(original, reply)
        }
    }

    /// What names it.
    pub fn key(&self) -> FlowKey {
        FlowKey { zone: self.zone, original: self.original }
    }

    /// What the source was translated to, if it was.
    pub fn source_nat(&self) -> Option<Translated> {
        let mirror = self.original.mirror();
        let port = |l4| match l4 {
            L4::Ports { dst, .. } => Some(dst),
            L4::Icmp { id, .. } => Some(id),
            L4::None => None,
        };
        let (plain, real) = (port(mirror.l4), port(self.reply.l4));
        (mirror.dst != self.reply.dst || plain != real).then_some(Translated { address: self.reply.dst, port: real })
    }

    /// What the destination was translated to, if it was.
    pub fn destination_nat(&self) -> Option<Translated> {
        let mirror = self.original.mirror();
        // An ICMP identifier belongs to the asking side: it is the source's, whatever the direction.
        let port = |l4| match l4 {
            L4::Ports { src, .. } => Some(src),
            L4::Icmp { .. } | L4::None => None,
        };
        let (plain, real) = (port(mirror.l4), port(self.reply.l4));
        (mirror.src != self.reply.src || plain != real).then_some(Translated { address: self.reply.src, port: real })
    }

    /// Whether it has this bit of [`status`].
    pub fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: &str, dst: &str, l4: L4) -> Tuple {
        let protocol = if matches!(l4, L4::Icmp { .. }) { protocol::ICMP } else { protocol::TCP };
        Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, l4 }
    }

    #[test]
    fn translation_is_what_the_two_tuples_differ_by() {
        let ports = |src, dst| L4::Ports { src, dst };
        let original = tuple("10.0.0.9", "192.0.2.1", ports(1000, 80));
        let plain = Flow::new(original, original.mirror());
        assert_eq!((plain.source_nat(), plain.destination_nat()), (None, None));
        let snat = Flow::new(original, tuple("192.0.2.1", "203.0.113.1", ports(80, 2000)));
        let to = Translated { address: "203.0.113.1".parse().unwrap(), port: Some(2000) };
        assert_eq!((snat.source_nat(), snat.destination_nat()), (Some(to), None));
        let dnat = Flow::new(original, tuple("10.9.9.9", "10.0.0.9", ports(80, 1000)));
        let to = Translated { address: "10.9.9.9".parse().unwrap(), port: Some(80) };
        assert_eq!((dnat.source_nat(), dnat.destination_nat()), (None, Some(to)));
    }

    #[test]
    fn an_echo_request_is_answered_by_a_reply_with_its_identifier() {
        let original = tuple("10.0.0.9", "192.0.2.1", L4::Icmp { kind: 8, code: 0, id: 7 });
        assert_eq!(original.mirror(), tuple("192.0.2.1", "10.0.0.9", L4::Icmp { kind: 0, code: 0, id: 7 }));
        assert_eq!(original.mirror().mirror(), original);
        let snat = Flow::new(original, tuple("192.0.2.1", "203.0.113.1", L4::Icmp { kind: 0, code: 0, id: 9 }));
        assert_eq!(snat.source_nat().unwrap().port, Some(9));
        assert_eq!(snat.destination_nat(), None);
    }
}
