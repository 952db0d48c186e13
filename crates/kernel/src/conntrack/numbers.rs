//! Numbers of `linux/netfilter/nfnetlink_conntrack.h` that crate `libc` lacks.

pub(super) const MSG_NEW: u16 = 0;
pub(super) const MSG_GET: u16 = 1;
pub(super) const MSG_DELETE: u16 = 2;
/// Answered by one message with attributes of its own.
pub(super) const MSG_GET_STATS: u16 = 5;
pub(super) const SUBSYSTEM: u16 = 1;

pub(super) const GROUP_NEW: u32 = 1;
pub(super) const GROUP_UPDATE: u32 = 2;
pub(super) const GROUP_DESTROY: u32 = 3;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
pub(super) const CTA_STATUS: u16 = 3;
pub(super) const CTA_PROTOINFO: u16 = 4;
pub(super) const CTA_NAT_SRC: u16 = 6;
pub(super) const CTA_TIMEOUT: u16 = 7;
pub(super) const CTA_MARK: u16 = 8;
pub(super) const CTA_NAT_DST: u16 = 13;
pub(super) const CTA_SEQ_ADJ_ORIG: u16 = 15;
pub(super) const CTA_SEQ_ADJ_REPLY: u16 = 16;
pub(super) const CTA_ZONE: u16 = 18;
pub(super) const CTA_LABELS: u16 = 22;

/// Of an answer to [`MSG_GET_STATS`]: how many entries the namespace has.
pub(super) const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;

pub(super) const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_TUPLE_PROTO: u16 = 2;
pub(super) const CTA_IP_V4_SRC: u16 = 1;
pub(super) const CTA_IP_V4_DST: u16 = 2;
pub(super) const CTA_IP_V6_SRC: u16 = 3;
pub(super) const CTA_IP_V6_DST: u16 = 4;
pub(super) const CTA_PROTO_NUM: u16 = 1;
pub(super) const CTA_PROTO_SRC_PORT: u16 = 2;
pub(super) const CTA_PROTO_DST_PORT: u16 = 3;
/// Identifier, type and code follow each other.
pub(super) const CTA_PROTO_ICMP_ID: u16 = 4;
pub(super) const CTA_PROTO_ICMPV6_ID: u16 = 7;

pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
pub(super) const CTA_TCP_STATE: u16 = 1;
pub(super) const CTA_TCP_WSCALE_ORIGINAL: u16 = 2;
pub(super) const CTA_TCP_WSCALE_REPLY: u16 = 3;
pub(super) const CTA_TCP_FLAGS_ORIGINAL: u16 = 4;
pub(super) const CTA_TCP_FLAGS_REPLY: u16 = 5;
/// Window scaling is in use.
pub(super) const TCP_FLAG_WINDOW_SCALE: u8 = 0x01;
/// Selective acknowledgement is permitted.
pub(super) const TCP_FLAG_SACK_PERM: u8 = 0x02;
/// Segments outside the window are let pass.
pub(super) const TCP_FLAG_BE_LIBERAL: u8 = 0x08;

pub(super) const CTA_NAT_V4_MINIP: u16 = 1;
pub(super) const CTA_NAT_V4_MAXIP: u16 = 2;
pub(super) const CTA_NAT_PROTO: u16 = 3;
pub(super) const CTA_NAT_V6_MINIP: u16 = 4;
pub(super) const CTA_NAT_V6_MAXIP: u16 = 5;
pub(super) const CTA_PROTONAT_PORT_MIN: u16 = 1;
pub(super) const CTA_PROTONAT_PORT_MAX: u16 = 2;

pub(super) const CTA_SEQADJ_CORRECTION_POS: u16 = 1;
pub(super) const CTA_SEQADJ_OFFSET_BEFORE: u16 = 2;
pub(super) const CTA_SEQADJ_OFFSET_AFTER: u16 = 3;
