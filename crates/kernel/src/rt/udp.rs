//! UDP with the hop limits that Bidirectional Forwarding Detection needs (RFC 5881 §4 and §5).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::socket::set_option;
use crate::sys::{check, control_number};

/// Sent with 255, so that a receiver on the same link sees that no router was crossed.
const HOP_LIMIT: libc::c_int = 255;

/// Class selector 6 (RFC 2474 §4.2.2.2), in which network control travels: what is needed to notice that a
/// path is gone should be the last that a full queue drops.
const NETWORK_CONTROL: libc::c_int = 0xc0;

/// A non-blocking UDP socket that sends with hop limit 255 and tells the hop limit of what it receives.
#[derive(Debug)]
pub struct HopSocket {
    socket: UdpSocket,
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes written to the buffer.
    pub length: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// TTL or hop limit that it arrived with.
    pub hop_limit: Option<u8>,
}

impl HopSocket {
    /// Binds to an address in the calling thread's namespace.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => UdpSocket::bind(address)?,
            SocketAddr::V6(address) => bind_v6(address)?,
        };
        socket.set_nonblocking(true)?;
        let fd = socket.as_raw_fd();
        let options = if address.is_ipv4() {
            let level = libc::IPPROTO_IP;
            [(level, libc::IP_TTL, HOP_LIMIT), (level, libc::IP_TOS, NETWORK_CONTROL), (level, libc::IP_RECVTTL, 1)]
        } else {
            let level = libc::IPPROTO_IPV6;
            [
                (level, libc::IPV6_UNICAST_HOPS, HOP_LIMIT),
                (level, libc::IPV6_TCLASS, NETWORK_CONTROL),
                (level, libc::IPV6_RECVHOPLIMIT, 1),
            ]
        };
        for (level, option, value) in options {
            set_option(fd, level, option, &value)?;
        }
        Ok(Self { socket })
    }

    /// Binds to the first free port of a range, beginning at an arbitrary one.
    pub fn bind_in(address: IpAddr, ports: RangeInclusive<u16>, first: u16) -> io::Result<Self> {
        let count = u32::from(ports.end() - ports.start()) + 1;
        let mut result = Err(io::ErrorKind::AddrInUse.into());
        for step in 0..count.min(64) {
            let port = ports.start() + ((u32::from(first) + step) % count) as u16;
            result = Self::bind(SocketAddr::new(address, port));
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
                break;
            }
        }
        result
    }

    /// Sends a datagram.
    pub fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, to).map(|_| ())
    }

    /// Takes a datagram, if one is there. What is longer than the buffer is cut.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        // SAFETY: all-zero bytes are a valid value of both.
        let (mut from, mut header) =
            unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::msghdr>()) };
        // Aligned for control messages, and large enough for one number.
        let mut control = [0_u64; 8];
        let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = mem::size_of_val(&from) as libc::socklen_t;
        header.msg_iov = &raw mut data;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control) as _;
        // SAFETY: every pointer in the header is to memory that outlives the call, with its length.
        let length = match check(unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) }) {
            Ok(length) => length as usize,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(from) = address(&from) else { return Ok(None) };
        Ok(Some(Datagram { length, from, hop_limit: hop_limit(&header) }))
    }
}

impl AsRawFd for HopSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Binds for IPv6 alone, so that another socket can have the port for IPv4.
fn bind_v6(address: SocketAddrV6) -> io::Result<UdpSocket> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new, so nobody else owns it.
    let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1_i32)?;
    let raw = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: address.flowinfo(),
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    };
    let length = mem::size_of_val(&raw) as libc::socklen_t;
    // SAFETY: pointer and length are of the same structure, which lives through the call.
    check(unsafe { libc::bind(fd, (&raw const raw).cast(), length) })?;
    Ok(socket)
}

/// The number in the control message that tells the hop limit.
fn hop_limit(header: &libc::msghdr) -> Option<u8> {
    let kinds = [(libc::IPPROTO_IP, libc::IP_TTL), (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)];
    u8::try_from(control_number(header, &kinds)?).ok()
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let pointer = std::ptr::from_ref(storage);
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is one, and the storage is large and aligned enough for it.
            let v4 = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::new(Ipv6Addr::from(v6.sin6_addr.s6_addr).into(), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hop_limit_of_what_arrives_is_told() {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let receiver = HopSocket::bind(SocketAddr::new(ip, 0)).unwrap();
            let to = receiver.socket.local_addr().unwrap();
            let sender = HopSocket::bind_in(ip, 49152..=65535, 7).unwrap();
            let port = sender.socket.local_addr().unwrap().port();
            assert!((49152..=65535).contains(&port));
            let mut buffer = [0; 16];
            assert_eq!(receiver.recv(&mut buffer).unwrap(), None);
            sender.send(b"hello", to).unwrap();
            let datagram = receiver.recv(&mut buffer).unwrap().expect("it arrives at once on the loopback");
            assert_eq!(&buffer[..datagram.length], b"hello");
            assert_eq!((datagram.from, datagram.hop_limit), (SocketAddr::new(ip, port), Some(255)));
            let ordinary = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
            ordinary.send_to(b"x", to).unwrap();
            assert_eq!(receiver.recv(&mut buffer).unwrap().unwrap().hop_limit, Some(64));
        }
    }
}
