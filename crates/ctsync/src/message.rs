//! What two hosts' engines say to each other, as bytes. Confidentiality and authenticity are the
//! transport's.
//!
//! ```text
//! 0  version (1)
//! 1  flags: 1 an acknowledgement follows
//! 2  sequence number, 64 bits; 0: carries no records, is not acknowledged
//!    [acknowledgement: highest taken (64 bits), and which of the 128 up to it (128 bits, lowest bit first)]
//!    records, each with a byte for its kind
//! ```
//!
//! Numbers are big-endian. A flow is written without what it does not have: a translated TCP connection
//! over IPv4 takes 40 bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evergate_model::RouterId;
use evergate_model::flow::{Flow, FlowKey, L4, SequenceAdjustment, TcpTracking, Tuple};

/// Version of this format.
pub const VERSION: u8 = 1;

/// Largest message: with the transport's overhead it fits every underlay that carries VXLAN.
pub const MAX_LEN: usize = 1300;

/// The longest that a record can be (a flow over IPv6 with everything), with the context it may need.
pub(crate) const MAX_RECORD: usize = 192;

const HAS_ACK: u8 = 1;

/// Which messages were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The newest.
    pub highest: u64,
    /// Bit i: `highest - i` was taken.
    pub taken: u128,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place in the sequence of messages from this sender to this receiver; 0 if it has none.
    pub sequence: u64,
    /// What the sender has taken of the receiver's.
    pub ack: Option<Ack>,
    /// What it says.
    pub records: Vec<Record>,
}

/// One thing that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// "Stream this router's flows to me, when you are active." A new token asks to begin anew; 0: no more.
    Subscribe {
        /// Which router.
        router: RouterId,
        /// Comes back in [`Record::Begin`].
        token: u32,
    },
    /// A stream begins: all flows follow.
    Begin {
        /// Which router.
        router: RouterId,
        /// The subscription that it answers.
        token: u32,
        /// Names the stream.
        generation: u32,
        /// The sender's epoch.
        epoch: u64,
    },
    /// A flow's present value.
    Put {
        /// Which router.
        router: RouterId,
        /// Which stream.
        generation: u32,
        /// The flow.
        flow: Flow,
    },
    /// A flow is gone.
    Delete {
        /// Which router.
        router: RouterId,
        /// Which stream.
        generation: u32,
        /// Which flow.
        key: FlowKey,
    },
    /// All was told and taken; this is what the receiver must have now.
    Check {
        /// Which router.
        router: RouterId,
        /// Which stream.
        generation: u32,
        /// Number of flows.
        count: u64,
        /// Sum of the flows' hashes.
        digest: u64,
    },
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Another version of the format.
    #[error("it speaks version {0} of connection replication, this host version {VERSION}")]
    Version(u8),
    /// It ends too early.
    #[error("it is cut short")]
    Short,
    /// A kind of record, of protocol data or of flags that this version does not have.
    #[error("it holds a record of unknown form")]
    Form,
}

const SUBSCRIBE: u8 = 1;
const BEGIN: u8 = 2;
/// Router and stream of the records that follow it.
const CONTEXT: u8 = 3;
const PUT: u8 = 4;
const DELETE: u8 = 5;
const CHECK: u8 = 6;

const V6: u8 = 1;
const TCP: u8 = 2;
const ZONE: u8 = 4;
const MARK: u8 = 8;
const LABELS: u8 = 16;
const ADJUSTMENTS: [u8; 2] = [32, 64];
/// The reply is not the plain mirror.
const REPLY: u8 = 128;

/// A message under construction.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    context: Option<(RouterId, u32)>,
    empty: bool,
}

impl Writer {
    pub(crate) fn new(sequence: u64, ack: Option<Ack>) -> Self {
        let mut bytes = Vec::with_capacity(MAX_LEN);
        bytes.extend([VERSION, if ack.is_some() { HAS_ACK } else { 0 }]);
        bytes.extend(sequence.to_be_bytes());
        if let Some(ack) = ack {
            bytes.extend(ack.highest.to_be_bytes());
            bytes.extend(ack.taken.to_be_bytes());
        }
        Self { bytes, context: None, empty: true }
    }

    /// Whether any record still fits.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() + MAX_RECORD <= MAX_LEN
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.empty
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn push(&mut self, record: &Record) {
        self.empty = false;
        match record {
            Record::Subscribe { router, token } => {
                self.bytes.push(SUBSCRIBE);
                self.router(*router);
                self.bytes.extend(token.to_be_bytes());
            }
            Record::Begin { router, token, generation, epoch } => {
                self.bytes.push(BEGIN);
                self.router(*router);
                self.bytes.extend(token.to_be_bytes());
                self.bytes.extend(generation.to_be_bytes());
                self.bytes.extend(epoch.to_be_bytes());
            }
            Record::Put { router, generation, flow } => {
                self.context(*router, *generation);
                self.bytes.push(PUT);
                self.flow(flow);
            }
            Record::Delete { router, generation, key } => {
                self.context(*router, *generation);
                self.bytes.push(DELETE);
                let flags = v6(&key.original) | if key.zone != 0 { ZONE } else { 0 };
                self.bytes.push(flags);
                self.tuple(&key.original);
                if key.zone != 0 {
                    self.bytes.extend(key.zone.to_be_bytes());
                }
            }
            Record::Check { router, generation, count, digest } => {
                self.context(*router, *generation);
                self.bytes.push(CHECK);
                self.bytes.extend(count.to_be_bytes());
                self.bytes.extend(digest.to_be_bytes());
            }
        }
    }

    fn router(&mut self, router: RouterId) {
        self.bytes.extend(router.0.as_u128().to_be_bytes());
    }

    fn context(&mut self, router: RouterId, generation: u32) {
        if self.context != Some((router, generation)) {
            self.context = Some((router, generation));
            self.bytes.push(CONTEXT);
            self.router(router);
            self.bytes.extend(generation.to_be_bytes());
        }
    }

    fn flow(&mut self, flow: &Flow) {
        let mut flags = v6(&flow.original);
        let mut flag = |bit, on: bool| flags |= if on { bit } else { 0 };
        flag(TCP, flow.tcp.is_some());
        flag(ZONE, flow.zone != 0);
        flag(MARK, flow.mark != 0);
        flag(LABELS, flow.labels != [0; 16]);
        for (bit, adjustment) in ADJUSTMENTS.into_iter().zip(&flow.sequence_adjustment) {
            flag(bit, adjustment.is_some());
        }
        let reply = flow.reply != flow.original.mirror();
        flag(REPLY, reply);
        self.bytes.push(flags);
        self.tuple(&flow.original);
        if reply {
            self.addresses(&flow.reply);
            self.l4(flow.reply.l4);
        }
        self.bytes.extend(flow.status.to_be_bytes());
        self.bytes.extend(flow.timeout_s.to_be_bytes());
        if let Some(tcp) = flow.tcp {
            let [a, b] = tcp.window_scale;
            let [c, d] = tcp.flags;
            self.bytes.extend([tcp.state, a, b, c, d]);
        }
        if flow.zone != 0 {
            self.bytes.extend(flow.zone.to_be_bytes());
        }
        if flow.mark != 0 {
            self.bytes.extend(flow.mark.to_be_bytes());
        }
        if flow.labels != [0; 16] {
            self.bytes.extend(flow.labels);
        }
        for adjustment in flow.sequence_adjustment.iter().flatten() {
            self.bytes.extend(adjustment.position.to_be_bytes());
            self.bytes.extend(adjustment.before.to_be_bytes());
            self.bytes.extend(adjustment.after.to_be_bytes());
        }
    }

    fn tuple(&mut self, tuple: &Tuple) {
        self.bytes.push(tuple.protocol);
        self.bytes.push(form(tuple.l4));
        self.addresses(tuple);
        self.l4(tuple.l4);
    }

    fn addresses(&mut self, tuple: &Tuple) {
        for address in [tuple.src, tuple.dst] {
            match address {
                IpAddr::V4(address) => self.bytes.extend(address.octets()),
                IpAddr::V6(address) => self.bytes.extend(address.octets()),
            }
        }
    }

    fn l4(&mut self, l4: L4) {
        match l4 {
            L4::None => {}
            L4::Ports { src, dst } => {
                self.bytes.extend(src.to_be_bytes());
                self.bytes.extend(dst.to_be_bytes());
            }
            L4::Icmp { kind, code, id } => {
                self.bytes.extend([kind, code]);
                self.bytes.extend(id.to_be_bytes());
            }
        }
    }
}

fn v6(tuple: &Tuple) -> u8 {
    if tuple.src.is_ipv6() { V6 } else { 0 }
}

impl Message {
    /// Reads a message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let flags = reader.u8()?;
        if flags & !HAS_ACK != 0 {
            return Err(Malformed::Form);
        }
        let sequence = reader.u64()?;
        let ack = if flags & HAS_ACK != 0 {
            Some(Ack { highest: reader.u64()?, taken: u128::from_be_bytes(reader.array()?) })
        } else {
            None
        };
        let mut records = Vec::new();
        let mut context = None;
        while !reader.0.is_empty() {
            records.extend(reader.record(&mut context)?);
        }
        Ok(Self { sequence, ack, records })
    }

    /// Writes it. Whoever makes longer ones than [`MAX_LEN`] has to cut them.
    pub fn emit(&self) -> Vec<u8> {
        let mut writer = Writer::new(self.sequence, self.ack);
        for record in &self.records {
            writer.push(record);
        }
        writer.finish()
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn router(&mut self) -> Result<RouterId, Malformed> {
        Ok(RouterId::from_u128(u128::from_be_bytes(self.array()?)))
    }

    /// `None` for what is not a record itself.
    fn record(&mut self, context: &mut Option<(RouterId, u32)>) -> Result<Option<Record>, Malformed> {
        let kind = self.u8()?;
        Ok(Some(match kind {
            SUBSCRIBE => Record::Subscribe { router: self.router()?, token: self.u32()? },
            BEGIN => Record::Begin {
                router: self.router()?,
                token: self.u32()?,
                generation: self.u32()?,
                epoch: self.u64()?,
            },
            CONTEXT => {
                *context = Some((self.router()?, self.u32()?));
                return Ok(None);
            }
            PUT | DELETE | CHECK => {
                let (router, generation) = (*context).ok_or(Malformed::Form)?;
                match kind {
                    PUT => Record::Put { router, generation, flow: self.flow()? },
                    DELETE => Record::Delete { router, generation, key: self.key()? },
                    _ => Record::Check { router, generation, count: self.u64()?, digest: self.u64()? },
                }
            }
            _ => return Err(Malformed::Form),
        }))
    }

    fn key(&mut self) -> Result<FlowKey, Malformed> {
        let flags = self.u8()?;
        if flags & !(V6 | ZONE) != 0 {
            return Err(Malformed::Form);
        }
        let original = self.tuple(flags & V6 != 0)?;
        let zone = if flags & ZONE != 0 { self.u16()? } else { 0 };
        Ok(FlowKey { zone, original })
    }

    fn flow(&mut self) -> Result<Flow, Malformed> {
        let flags = self.u8()?;
        let has = |bit| flags & bit != 0;
        let original = self.tuple(has(V6))?;
        let reply = if has(REPLY) {
            let (src, dst) = self.addresses(has(V6))?;
            Tuple { src, dst, l4: self.l4(form(original.l4))?, ..original }
        } else {
            original.mirror()
        };
        let (status, timeout_s) = (self.u32()?, self.u32()?);
        let tcp = if has(TCP) {
            let [state, a, b, c, d] = self.array()?;
            Some(TcpTracking { state, window_scale: [a, b], flags: [c, d] })
        } else {
            None
        };
        let zone = if has(ZONE) { self.u16()? } else { 0 };
        let mark = if has(MARK) { self.u32()? } else { 0 };
        let labels = if has(LABELS) { self.array()? } else { [0; 16] };
        let mut sequence_adjustment = [None; 2];
        for (slot, bit) in sequence_adjustment.iter_mut().zip(ADJUSTMENTS) {
            if has(bit) {
                let (position, before, after) = (self.u32()?, self.u32()? as i32, self.u32()? as i32);
                *slot = Some(SequenceAdjustment { position, before, after });
            }
        }
        Ok(Flow { original, reply, zone, status, timeout_s, tcp, mark, labels, sequence_adjustment })
    }

    fn tuple(&mut self, v6: bool) -> Result<Tuple, Malformed> {
        let (protocol, form) = (self.u8()?, self.u8()?);
        let (src, dst) = self.addresses(v6)?;
        Ok(Tuple { src, dst, protocol, l4: self.l4(form)? })
    }

    fn addresses(&mut self, v6: bool) -> Result<(IpAddr, IpAddr), Malformed> {
        Ok(if v6 {
            (Ipv6Addr::from(self.array::<16>()?).into(), Ipv6Addr::from(self.array::<16>()?).into())
        } else {
            (Ipv4Addr::from(self.array::<4>()?).into(), Ipv4Addr::from(self.array::<4>()?).into())
        })
    }

    fn l4(&mut self, form: u8) -> Result<L4, Malformed> {
        Ok(match form {
            0 => L4::None,
            1 => L4::Ports { src: self.u16()?, dst: self.u16()? },
            2 => L4::Icmp { kind: self.u8()?, code: self.u8()?, id: self.u16()? },
            _ => return Err(Malformed::Form),
        })
    }
}

fn form(l4: L4) -> u8 {
    match l4 {
        L4::None => 0,
        L4::Ports { .. } => 1,
        L4::Icmp { .. } => 2,
    }
}
