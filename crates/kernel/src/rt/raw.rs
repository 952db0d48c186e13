//! Advertisements to single peers, routed by the kernel as any packet is.

use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::Error;
use crate::netns::NetnsFd;
use crate::socket::set_option;
use crate::sys::check;

/// IP protocol of VRRP (RFC 9568 §5.1.1.4).
const VRRP_PROTOCOL: libc::c_int = 112;

/// What every advertisement is sent with (RFC 9568 §5.1.1.3).
const HOP_LIMIT: libc::c_int = 255;

/// Class selector 6 (RFC 2474 §4.2.2.2), as for what goes to the group.
const NETWORK_CONTROL: libc::c_int = 0xc0;

/// Sends VRRP messages from one address. Receives nothing, but its being there keeps the kernel from
/// telling peers that the protocol is unknown.
#[derive(Debug)]
pub struct VrrpSocket {
    fd: OwnedFd,
    /// Link-local addresses mean something on this link only.
    ifindex: u32,
}

impl VrrpSocket {
    /// Opens one, non-blocking, in the namespace.
    pub fn open(netns: &NetnsFd, source: IpAddr, ifindex: u32) -> Result<Self, Error> {
        let open = || netns.inside(|| Self::create(source, ifindex)).flatten();
        open().map_err(|error| Error::new(format!("open a VRRP socket for {source}"), error))
    }

    fn create(source: IpAddr, ifindex: u32) -> io::Result<Self> {
        let family = if source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(family, kind, VRRP_PROTOCOL) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, ifindex };
        let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
        // The kernel copies the program that this points to.
        set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        let options = if source.is_ipv4() {
            [(libc::IPPROTO_IP, libc::IP_TTL, HOP_LIMIT), (libc::IPPROTO_IP, libc::IP_TOS, NETWORK_CONTROL)]
        } else {
            let level = libc::IPPROTO_IPV6;
            [(level, libc::IPV6_UNICAST_HOPS, HOP_LIMIT), (level, libc::IPV6_TCLASS, NETWORK_CONTROL)]
        };
        for (level, option, value) in options {
            set_option(fd, level, option, &value)?;
        }
        let (address, length) = socket.sockaddr(source);
        // SAFETY: the storage holds an address of this length, and lives through the call.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
        Ok(socket)
    }

    /// Sends a whole VRRP message; the kernel adds the IP header.
    pub fn send(&self, message: &[u8], to: IpAddr) -> io::Result<()> {
        let (address, length) = self.sockaddr(to);
        let (data, fd) = (message.as_ptr().cast(), self.fd.as_raw_fd());
        // SAFETY: both pointers and their lengths belong together and live through the call.
        check(unsafe { libc::sendto(fd, data, message.len(), 0, (&raw const address).cast(), length) }).map(drop)
    }

    fn sockaddr(&self, ip: IpAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
        // SAFETY: all-zero bytes are a valid value.
        let mut storage = unsafe { mem::zeroed::<libc::sockaddr_storage>() };
        let length = match ip {
            IpAddr::V4(ip) => {
                // SAFETY: the storage is large and aligned enough for every kind of address.
                let v4 = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
                v4.sin_family = libc::AF_INET as libc::sa_family_t;
                v4.sin_addr.s_addr = u32::from(ip).to_be();
                mem::size_of::<libc::sockaddr_in>()
            }
            IpAddr::V6(ip) => {
                // SAFETY: as above.
                let v6 = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_addr.s6_addr = ip.octets();
                v6.sin6_scope_id = if ip.is_unicast_link_local() { self.ifindex } else { 0 };
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, length as libc::socklen_t)
    }
}
