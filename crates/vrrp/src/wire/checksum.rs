//! The Internet checksum (RFC 1071) and the pseudo-headers it may start with.

use std::net::IpAddr;

/// A one's-complement sum in the making. Invariant: only the last slice added has an odd length.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u32);

impl Sum {
    /// Adds bytes as big-endian words, the last one padded with zero.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<2>();
        let mut sum = self.0;
        for word in words {
            // Cannot overflow: an IP packet has fewer than 2^15 words, each below 2^16.
            sum += u32::from(u16::from_be_bytes(*word));
        }
        if let [last] = rest {
            sum += u32::from(*last) << 8;
        }
        Self(sum)
    }

    /// The checksum field for what was added, that field being zero in it.
    pub(crate) fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // The loop left at most sixteen bits.
        !(sum as u16)
    }

    /// Whether what was added, checksum field included, sums up to "all ones".
    pub(crate) fn is_valid(self) -> bool {
        self.finish() == 0
    }
}

/// Starts a sum with the pseudo-header of RFC 8200 §8.1, or its IPv4 counterpart (RFC 9293 §3.1).
pub(crate) fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Sum {
    let sum = [from, to].iter().fold(Sum::default(), |sum, address| match address {
        IpAddr::V4(address) => sum.add(&address.octets()),
        IpAddr::V6(address) => sum.add(&address.octets()),
    });
    // A length that needs more than 32 bits does not fit an IP packet; saturating keeps this total.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    sum.add(&length.to_be_bytes()).add(&[0, protocol])
}
