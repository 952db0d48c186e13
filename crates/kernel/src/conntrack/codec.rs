//! Flows as netlink messages, and back.
//!
//! Three rules of the kernel shape what is written. An entry is *made* with an untranslated reply, plus the
//! translation to set up: with the translated reply it would be taken, and would look right, but nothing
//! would ever translate its packets. An *update* must not name the translation: that is decided when the
//! entry is made. And where a source is translated, the kernel first goes through all connections of the same
//! source address and port for one whose translation would do: with one socket that talks to thousands, a
//! fraction of a millisecond each time ([`untranslated`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evergate_model::flow::{Flow, FlowKey, L4, SequenceAdjustment, TcpTracking, Translated, Tuple, protocol, status};

use super::numbers::*;
use crate::wire::{Attrs, Message, ip, u32_be_at};

/// Length of `struct nfgenmsg`: family, version, resource.
const BODY: usize = 4;

/// What of a status can be set from outside; the translation's bits follow from the translation.
const SETTABLE: u32 = status::SEEN_REPLY | status::ASSURED | status::CONFIRMED;

/// What of a TCP connection's flags is passed on.
const TCP_FLAGS: u8 = TCP_FLAG_WINDOW_SCALE | TCP_FLAG_SACK_PERM | TCP_FLAG_BE_LIBERAL;

/// What a message of the kernel says of a flow. A notification holds only what has changed, beside the
/// tuples, the status and the timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The flow; what the message does not hold is zero.
    pub flow: Flow,
    /// Whether the message holds the TCP state (if it is TCP).
    pub has_tcp: bool,
    /// Whether the message holds a timeout: one about the end does not.
    pub has_timeout: bool,
}

pub(super) fn dump() -> Message {
    start(MSG_GET, libc::AF_UNSPEC, libc::NLM_F_DUMP)
}

pub(super) fn count() -> Message {
    start(MSG_GET_STATS, libc::AF_UNSPEC, 0)
}

/// How many entries the namespace has, from the payload of the answer.
pub(super) fn read_count(payload: &[u8]) -> Option<u32> {
    Attrs::after(payload, BODY).get(CTA_STATS_GLOBAL_ENTRIES).and_then(|value| u32_be_at(value, 0))
}

pub(super) fn look_up(key: &FlowKey) -> Vec<u8> {
    let message = start(MSG_GET, family(key.original.src), 0).nest(CTA_TUPLE_ORIG, |m| tuple(m, &key.original));
    zone(message, key.zone).finish()
}

pub(super) fn create(flow: &Flow) -> Vec<u8> {
    let (source, destination) = (flow.source_nat(), flow.destination_nat());
    let message = start(MSG_NEW, family(flow.original.src), libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        .nest(CTA_TUPLE_ORIG, |m| tuple(m, &flow.original))
        .nest(CTA_TUPLE_REPLY, |m| tuple(m, &untranslated(flow)))
        .when(source, |m, to| m.nest(CTA_NAT_SRC, |m| translation(m, to)))
        .when(destination, |m, to| m.nest(CTA_NAT_DST, |m| translation(m, to)));
    changeable(message, flow).finish()
}

/// The reply that an entry is made with, before the translation is set up.
///
/// Where the source is going to be translated, it need not be the one that there is: what the kernel looks up
/// its former translations by is taken from here, and no packet comes from the unspecified address.
fn untranslated(flow: &Flow) -> Tuple {
    let mirror = flow.original.mirror();
    match (flow.source_nat(), mirror.dst) {
        (None, _) => mirror,
        (Some(_), IpAddr::V4(_)) => Tuple { dst: Ipv4Addr::UNSPECIFIED.into(), ..mirror },
        (Some(_), IpAddr::V6(_)) => Tuple { dst: Ipv6Addr::UNSPECIFIED.into(), ..mirror },
    }
}

pub(super) fn update(flow: &Flow) -> Vec<u8> {
    let message = start(MSG_NEW, family(flow.original.src), 0).nest(CTA_TUPLE_ORIG, |m| tuple(m, &flow.original));
    changeable(message, flow).finish()
}

pub(super) fn set_timeout(key: &FlowKey, timeout_s: u32) -> Vec<u8> {
    let message = start(MSG_NEW, family(key.original.src), 0).nest(CTA_TUPLE_ORIG, |m| tuple(m, &key.original));
    zone(message, key.zone).attr_u32_be(CTA_TIMEOUT, timeout_s).finish()
}

pub(super) fn delete(key: &FlowKey) -> Vec<u8> {
    let message = start(MSG_DELETE, family(key.original.src), 0).nest(CTA_TUPLE_ORIG, |m| tuple(m, &key.original));
    zone(message, key.zone).finish()
}

/// Reads the payload of a message about a flow; `None` if a tuple is missing or of no known form.
pub(super) fn read(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::after(payload, BODY);
    let number = |kind| attrs.get(kind).and_then(|value| u32_be_at(value, 0));
    let tcp = attrs.inside(CTA_PROTOINFO).get(CTA_PROTOINFO_TCP).map(|tcp| read_tcp(Attrs(tcp)));
    let timeout = number(CTA_TIMEOUT);
    let mut labels = [0; 16];
    if let Some(value) = attrs.get(CTA_LABELS) {
        let length = value.len().min(labels.len());
        labels[..length].copy_from_slice(&value[..length]);
    }
    let flow = Flow {
        original: read_tuple(Attrs(attrs.get(CTA_TUPLE_ORIG)?))?,
        reply: read_tuple(Attrs(attrs.get(CTA_TUPLE_REPLY)?))?,
        zone: attrs.get(CTA_ZONE).and_then(u16_be).unwrap_or(0),
        status: number(CTA_STATUS).unwrap_or(0),
        timeout_s: timeout.unwrap_or(0),
        tcp,
        mark: number(CTA_MARK).unwrap_or(0),
        labels,
        sequence_adjustment: [CTA_SEQ_ADJ_ORIG, CTA_SEQ_ADJ_REPLY].map(|kind| read_adjustment(attrs.get(kind)?)),
    };
    Some(Seen { flow, has_tcp: tcp.is_some(), has_timeout: timeout.is_some() })
}

fn start(kind: u16, family: libc::c_int, flags: libc::c_int) -> Message {
    // Refusals are told in any case; what is done is not acknowledged, of so many.
    Message::with_flags(SUBSYSTEM << 8 | kind, libc::NLM_F_REQUEST | flags).body(&[family as u8, 0, 0, 0])
}

fn family(address: IpAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// What both a new entry and an existing one are given.
fn changeable(message: Message, flow: &Flow) -> Message {
    // Removed entries are removed, not marked; and that a flow was expected is only believed together
    // with the flow it came from.
    let settable = flow.status & SETTABLE | status::CONFIRMED;
    zone(message, flow.zone)
        .attr_u32_be(CTA_STATUS, settable)
        .attr_u32_be(CTA_TIMEOUT, flow.timeout_s)
        .when(flow.tcp, |m, tcp| m.nest(CTA_PROTOINFO, |m| m.nest(CTA_PROTOINFO_TCP, |m| tcp_info(m, &tcp))))
        .attr_u32_be(CTA_MARK, flow.mark)
        .when((flow.labels != [0; 16]).then_some(flow.labels), |m, labels| m.attr(CTA_LABELS, &labels))
        .when(flow.sequence_adjustment[0], |m, adjustment| sequence_adjustment(m, CTA_SEQ_ADJ_ORIG, adjustment))
        .when(flow.sequence_adjustment[1], |m, adjustment| sequence_adjustment(m, CTA_SEQ_ADJ_REPLY, adjustment))
}

fn zone(message: Message, zone: u16) -> Message {
    message.when((zone != 0).then_some(zone), |m, zone| m.attr_u16_be(CTA_ZONE, zone))
}

fn tuple(message: Message, tuple: &Tuple) -> Message {
    let (src, dst) = if tuple.src.is_ipv4() { (CTA_IP_V4_SRC, CTA_IP_V4_DST) } else { (CTA_IP_V6_SRC, CTA_IP_V6_DST) };
    message.nest(CTA_TUPLE_IP, |m| m.attr_ip(src, tuple.src).attr_ip(dst, tuple.dst)).nest(CTA_TUPLE_PROTO, |m| {
        let m = m.attr_u8(CTA_PROTO_NUM, tuple.protocol);
        match tuple.l4 {
            L4::Ports { src, dst } => m.attr_u16_be(CTA_PROTO_SRC_PORT, src).attr_u16_be(CTA_PROTO_DST_PORT, dst),
            L4::Icmp { kind, code, id } => {
                let first = icmp_attributes(tuple.protocol);
                m.attr_u16_be(first, id).attr_u8(first + 1, kind).attr_u8(first + 2, code)
            }
            L4::None => m,
        }
    })
}

fn icmp_attributes(protocol: u8) -> u16 {
    if protocol == protocol::ICMPV6 { CTA_PROTO_ICMPV6_ID } else { CTA_PROTO_ICMP_ID }
}

fn translation(message: Message, to: Translated) -> Message {
    let (min, max) =
        if to.address.is_ipv4() { (CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP) } else { (CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP) };
    message.attr_ip(min, to.address).attr_ip(max, to.address).when(to.port, |m, port| {
        m.nest(CTA_NAT_PROTO, |m| m.attr_u16_be(CTA_PROTONAT_PORT_MIN, port).attr_u16_be(CTA_PROTONAT_PORT_MAX, port))
    })
}

fn tcp_info(message: Message, tcp: &TcpTracking) -> Message {
    // Where the windows are now is not told: the connection would have moved on by the time it matters.
    let flags = tcp.flags.map(|flags| [flags & TCP_FLAGS | TCP_FLAG_BE_LIBERAL, TCP_FLAGS]);
    message
        .attr_u8(CTA_TCP_STATE, tcp.state)
        .attr_u8(CTA_TCP_WSCALE_ORIGINAL, tcp.window_scale[0])
        .attr_u8(CTA_TCP_WSCALE_REPLY, tcp.window_scale[1])
        .attr(CTA_TCP_FLAGS_ORIGINAL, &flags[0])
        .attr(CTA_TCP_FLAGS_REPLY, &flags[1])
}

fn sequence_adjustment(message: Message, kind: u16, adjustment: SequenceAdjustment) -> Message {
    message.nest(kind, |m| {
        m.attr_u32_be(CTA_SEQADJ_CORRECTION_POS, adjustment.position)
            .attr_u32_be(CTA_SEQADJ_OFFSET_BEFORE, adjustment.before as u32)
            .attr_u32_be(CTA_SEQADJ_OFFSET_AFTER, adjustment.after as u32)
    })
}

fn read_tuple(attrs: Attrs<'_>) -> Option<Tuple> {
    let addresses = attrs.inside(CTA_TUPLE_IP);
    let v4 = addresses.get(CTA_IP_V4_SRC).zip(addresses.get(CTA_IP_V4_DST));
    let (src, dst) = v4.or_else(|| addresses.get(CTA_IP_V6_SRC).zip(addresses.get(CTA_IP_V6_DST)))?;
    let proto = attrs.inside(CTA_TUPLE_PROTO);
    let protocol = *proto.get(CTA_PROTO_NUM)?.first()?;
    let short = |kind| proto.get(kind).and_then(u16_be);
    let byte = |kind| proto.get(kind).and_then(|value| value.first().copied());
    let icmp = icmp_attributes(protocol);
    let l4 = if let (Some(src), Some(dst)) = (short(CTA_PROTO_SRC_PORT), short(CTA_PROTO_DST_PORT)) {
        L4::Ports { src, dst }
    } else if let (Some(id), Some(kind), Some(code)) = (short(icmp), byte(icmp + 1), byte(icmp + 2)) {
        L4::Icmp { kind, code, id }
    } else {
        L4::None
    };
    let tuple = Tuple { src: ip(src)?, dst: ip(dst)?, protocol, l4 };
    tuple.is_sound().then_some(tuple)
}

fn read_tcp(attrs: Attrs<'_>) -> TcpTracking {
    let byte = |kind| attrs.get(kind).and_then(|value| value.first().copied()).unwrap_or(0);
    TcpTracking {
        state: byte(CTA_TCP_STATE),
        window_scale: [CTA_TCP_WSCALE_ORIGINAL, CTA_TCP_WSCALE_REPLY].map(byte),
        // The second byte is the mask, which is all of it where the kernel tells.
        flags: [CTA_TCP_FLAGS_ORIGINAL, CTA_TCP_FLAGS_REPLY].map(byte),
    }
}

fn read_adjustment(value: &[u8]) -> Option<SequenceAdjustment> {
    let number = |kind| Attrs(value).get(kind).and_then(|value| u32_be_at(value, 0));
    let adjustment = SequenceAdjustment {
        position: number(CTA_SEQADJ_CORRECTION_POS)?,
        before: number(CTA_SEQADJ_OFFSET_BEFORE)? as i32,
        after: number(CTA_SEQADJ_OFFSET_AFTER)? as i32,
    };
    (adjustment.before != 0 || adjustment.after != 0).then_some(adjustment)
}

fn u16_be(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Frames;

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    fn ports(src: &str, dst: &str, sport: u16, dport: u16) -> Tuple {
        Tuple {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol: protocol::TCP,
            l4: L4::Ports { src: sport, dst: dport },
        }
    }

    fn flow() -> Flow {
        Flow {
            original: ports("10.0.0.9", "192.0.2.1", 1000, 80),
            reply: ports("192.0.2.1", "203.0.113.1", 80, 2000),
            zone: 3,
            status: status::SEEN_REPLY | status::ASSURED | status::CONFIRMED | status::SRC_NAT,
            timeout_s: 432_000,
            tcp: Some(TcpTracking { state: 3, window_scale: [7, 6], flags: [0x23, 0x33] }),
            mark: 5,
            labels: [0; 16],
            sequence_adjustment: [Some(SequenceAdjustment { position: 9, before: -1, after: 2 }), None],
        }
    }

    #[test]
    fn what_is_made_has_an_untranslated_reply_and_the_translation_beside_it() {
        let bytes = create(&flow());
        let frame = Frames(&bytes).next().unwrap();
        let attrs = Attrs::after(frame.payload, BODY);
        let seen = read(frame.payload).unwrap();
        assert_eq!(seen.flow.reply, Tuple { dst: [0; 4].into(), ..flow().original.mirror() });
        assert_eq!(attrs.inside(CTA_NAT_SRC).get(CTA_NAT_V4_MINIP), Some(&[203, 0, 113, 1][..]));
        let port = Attrs(attrs.inside(CTA_NAT_SRC).get(CTA_NAT_PROTO).unwrap()).get(CTA_PROTONAT_PORT_MIN);
        assert_eq!(port.and_then(u16_be), Some(2000));
        assert_eq!(attrs.get(CTA_NAT_DST), None);
        assert_eq!(seen.flow.tcp.unwrap().window_scale, [7, 6]);
        let tcp = Attrs(attrs.inside(CTA_PROTOINFO).get(CTA_PROTOINFO_TCP).unwrap());
        assert_eq!(tcp.get(CTA_TCP_FLAGS_ORIGINAL), Some(&[0x0b, 0x0b][..]));
        assert_eq!(seen.flow.sequence_adjustment, flow().sequence_adjustment);
        assert_eq!((seen.flow.zone, seen.flow.mark, seen.flow.timeout_s), (3, 5, 432_000));
    }

    #[test]
    fn an_update_names_no_translation() {
        let bytes = update(&flow());
        let attrs = Attrs::after(Frames(&bytes).next().unwrap().payload, BODY);
        assert!(attrs.get(CTA_NAT_SRC).is_none() && attrs.get(CTA_NAT_DST).is_none());
        assert!(attrs.get(CTA_TUPLE_REPLY).is_none());
        assert_eq!(attrs.get(CTA_TIMEOUT).and_then(|value| u32_be_at(value, 0)), Some(432_000));
    }

    #[test]
    fn reading_never_fails_on_what_is_cut_short() {
        let bytes = create(&flow());
        for length in 0..bytes.len() {
            let _ = read(&bytes[..length]);
            let _ = read(bytes.get(16..length).unwrap_or_default());
        }
        assert_eq!(read(&unhex("02000000")), None);
    }
}
