//! Netlink messages as bytes: a builder, and readers that never fail.
//!
//! One builder serves route netlink and nftables. Of what the kernel sends we read the attributes that
//! we need and skip all others, whatever a newer kernel puts there: a link kind we have never heard of
//! must not hide the links that we own. (That, and one way of writing both families, is why the typed
//! packet crates are not used here.)
//!
//! Layout, from `linux/netlink.h`: a message is a 16-byte header, a fixed body that depends on its type,
//! and attributes (length, type, value, padded to 4). All lengths include their own header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::{NLM_F_ACK, NLM_F_REQUEST};

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;

/// Bits of an attribute's type that are not flags (`NLA_TYPE_MASK`).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// Marks an attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;

/// The most that an attribute can hold: its length field has 16 bits.
pub(crate) const ATTRIBUTE_MAX: usize = u16::MAX as usize - 4;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A message under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a request; `flags` come on top of "request" and "acknowledge".
    pub(crate) fn request(kind: u16, flags: i32) -> Self {
        Self::with_flags(kind, NLM_F_REQUEST | NLM_F_ACK | flags)
    }

    /// Starts a message with exactly these flags.
    pub(crate) fn with_flags(kind: u16, flags: i32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// Starts a list of attributes, to be put into a message by [`Message::append`].
    pub(crate) fn fragment() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Appends the attributes of a fragment.
    pub(crate) fn append(mut self, fragment: Self) -> Self {
        self.bytes.extend_from_slice(&fragment.bytes);
        self
    }

    /// Appends the fixed body.
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.bytes.extend_from_slice(body);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    pub(crate) fn attr_u8(self, kind: u16, value: u8) -> Self {
        self.attr(kind, &[value])
    }

    pub(crate) fn attr_u16_be(self, kind: u16, value: u16) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub(crate) fn attr_u32_be(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn attr_u64_be(self, kind: u16, value: u64) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends a string with its terminating zero.
    pub(crate) fn attr_str(mut self, kind: u16, value: &str) -> Self {
        let mut text = Vec::with_capacity(value.len() + 1);
        text.extend_from_slice(value.as_bytes());
        text.push(0);
        self.push(kind, &text);
        self
    }

    pub(crate) fn attr_ip(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(ip) => self.attr(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attr(kind, &ip.octets()),
        }
    }

    /// Appends an attribute whose value `inner` appends.
    pub(crate) fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut done = inner(self);
        let length = done.bytes.len() - start;
        let length = u16::try_from(length).expect("callers keep lists below ATTRIBUTE_MAX");
        done.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        done.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        done
    }

    /// Appends what `more` makes of the value, if there is one.
    pub(crate) fn when<T>(self, value: Option<T>, more: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => more(self, value),
            None => self,
        }
    }

    /// The bytes of a fragment.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The message; its sequence number is still to be set ([`set_sequence`]).
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attribute values are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// Puts a sequence number into a finished message.
pub(crate) fn set_sequence(message: &mut [u8], sequence: u32) {
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// Type of a finished message.
pub(crate) fn message_type(message: &[u8]) -> Option<u16> {
    u16_at(message, 4)
}

/// Tells whether the bytes are one whole netlink message, and nothing else.
pub(crate) fn is_one_message(message: &[u8]) -> bool {
    message.len() >= HEADER_LEN && u32_at(message, 0).is_some_and(|length| length as usize == message.len())
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
    /// Header and payload, for keeping.
    pub(crate) whole: &'a [u8],
}

/// The messages in what was received; ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let length = u32_at(self.0, 0)? as usize;
        if length < HEADER_LEN || length > self.0.len() {
            return None;
        }
        let whole = &self.0[..length];
        self.0 = &self.0[align(length).min(self.0.len())..];
        Some(Frame {
            kind: u16_at(whole, 4)?,
            flags: u16_at(whole, 6)?,
            sequence: u32_at(whole, 8)?,
            payload: &whole[HEADER_LEN..],
            whole,
        })
    }
}

/// The attributes in a slice, as type and value; ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The attributes after a fixed body of this length.
    pub(crate) fn after(payload: &'a [u8], body: usize) -> Self {
        Self(payload.get(align(body)..).unwrap_or_default())
    }

    /// Value of the first attribute of this type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self;
        attributes.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes inside the first attribute of this type; none if there is none.
    pub(crate) fn inside(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & ATTRIBUTE_TYPE;
        let value = self.0.get(4..length)?;
        self.0 = &self.0[align(length).min(self.0.len())..];
        Some((kind, value))
    }
}

/// Reads a number in host order at an offset.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a number in host order at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a number in network order at an offset.
pub(crate) fn u32_be_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_at(bytes, at).map(u32::from_be)
}

/// Reads a number in host order at an offset.
pub(crate) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(|number| number as i32)
}

/// An address, by its length.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// A string up to its terminating zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_it_was_built() {
        let bytes = Message::request(16, 0)
            .body(&[1, 2, 3, 4])
            .attr_str(3, "br0")
            .nest(18, |m| m.attr_u32(1, 7).attr_u8(2, 9))
            .finish();
        assert!(is_one_message(&bytes));
        let frame = Frames(&bytes).next().unwrap();
        assert_eq!((frame.kind, frame.payload[0]), (16, 1));
        let attrs = Attrs::after(frame.payload, 4);
        assert_eq!(attrs.get(3).map(text).as_deref(), Some("br0"));
        assert_eq!(attrs.inside(18).get(1).and_then(|v| u32_at(v, 0)), Some(7));
        assert_eq!(attrs.inside(18).get(2), Some(&[9][..]));
        assert_eq!(attrs.inside(99).next(), None);
    }

    #[test]
    fn whatever_is_cut_short_ends_the_reading() {
        let bytes = Message::request(16, 0).body(&[0; 4]).attr_u32(1, 7).attr_u32(2, 8).finish();
        for length in 0..bytes.len() {
            assert_eq!(Frames(&bytes[..length]).count(), 0);
            let attributes = Attrs::after(bytes.get(HEADER_LEN..length).unwrap_or_default(), 4).count();
            assert!(attributes <= 1, "{attributes} attributes in {length} bytes");
        }
        let nonsense = [3, 0, 1, 0, 255, 255];
        assert_eq!(Attrs(&nonsense).count(), 0);
    }
}
