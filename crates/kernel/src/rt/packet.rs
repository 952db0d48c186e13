//! Whole Ethernet frames on one interface.
//!
//! VRRP is spoken through packet sockets rather than raw IP ones: the frame's source address is ours to
//! choose, nothing is routed, filtered or sent while an interface is half-configured, and other virtual
//! routers' packets are sorted out in the kernel.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Cause, Error};
use crate::netns::NetnsFd;
use crate::socket::set_option;
use crate::sys::check;

/// 01:00:5e and the low 23 bits of 224.0.0.18 (RFC 1112 §6.4).
const VRRP_GROUP: [u8; 6] = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x12];

/// 33:33 and the low 32 bits of ff02::12 (RFC 2464 §7).
const VRRP_GROUP_V6: [u8; 6] = [0x33, 0x33, 0x00, 0x00, 0x00, 0x12];

/// 33:33 and the low 32 bits of ff02::2, all routers.
const ALL_ROUTERS: [u8; 6] = [0x33, 0x33, 0x00, 0x00, 0x00, 0x02];

/// IP protocol of VRRP (RFC 9568 §5.1.1.4).
const VRRP_PROTOCOL: u32 = 112;

/// Low byte of the operation (RFC 826).
const ARP_REPLY: u32 = 2;

/// Next header of ICMPv6, and its types of a Router Solicitation and a Neighbor Advertisement (RFC 4861 §4.1, §4.4).
const ICMPV6: u32 = 58;
const ROUTER_SOLICITATION: u32 = 133;
const NEIGHBOR_ADVERTISEMENT: u32 = 136;

const ETHERNET_HEADER: usize = 14;

/// What a packet socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// IPv4 protocol 112, of one virtual router or of all.
    Vrrp {
        /// Its identifier; `None` for all.
        vrid: Option<u8>,
    },
    /// IPv4 protocol 112 of all virtual routers as it comes in by a port of a bridge, before the bridge takes it.
    VrrpAtPort,
    /// The first over IPv6.
    VrrpV6 {
        /// Its identifier; `None` for all.
        vrid: Option<u8>,
    },
    /// Protocol 112 of one virtual router, without becoming a member of the group: for peers that send to
    /// this host alone.
    VrrpUnicast {
        /// Its identifier.
        vrid: u8,
        /// Over IPv6 rather than IPv4.
        ipv6: bool,
    },
    /// ARP replies.
    ArpReplies,
    /// Neighbor advertisements.
    NeighborAdvertisements,
    /// Router solicitations, as a router hears them.
    RouterSolicitations,
    /// Nothing.
    SendOnly,
}

/// Sends and receives whole Ethernet frames on one interface. Does not receive what this host sends.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    ifindex: u32,
}

impl PacketSocket {
    /// Opens one, non-blocking, on the interface with this index in the namespace.
    pub fn open(netns: &NetnsFd, ifindex: u32, filter: Filter) -> Result<Self, Error> {
        let open = || -> Result<Self, Cause> {
            let socket = netns.inside(|| Self::create(ifindex))??;
            socket.configure(filter)?;
            Ok(socket)
        };
        open().map_err(|cause| Error::new(format!("open a packet socket on link {ifindex}"), cause))
    }

    /// Makes a socket that is deaf as long as it is bound to no protocol.
    fn create(ifindex: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, ifindex })
    }

    fn configure(&self, filter: Filter) -> io::Result<()> {
        let (protocol, mut program, group) = match filter {
            Filter::Vrrp { vrid } => (libc::ETH_P_IP, vrrp_filter(vrid), Some(VRRP_GROUP)),
            Filter::VrrpAtPort => (libc::ETH_P_ALL, vrrp_filter(None), Some(VRRP_GROUP)),
            Filter::VrrpV6 { vrid } => (libc::ETH_P_IPV6, vrrp_filter_v6(vrid), Some(VRRP_GROUP_V6)),
            Filter::VrrpUnicast { vrid, ipv6: false } => (libc::ETH_P_IP, vrrp_filter(Some(vrid)), None),
            Filter::VrrpUnicast { vrid, ipv6: true } => (libc::ETH_P_IPV6, vrrp_filter_v6(Some(vrid)), None),
            Filter::ArpReplies => (libc::ETH_P_ARP, bytes_filter(&[(ETHERNET_HEADER + 7, ARP_REPLY)]), None),
            Filter::NeighborAdvertisements => {
                let checks = [(ETHERNET_HEADER + 6, ICMPV6), (ETHERNET_HEADER + 40, NEIGHBOR_ADVERTISEMENT)];
                (libc::ETH_P_IPV6, bytes_filter(&checks), None)
            }
            Filter::RouterSolicitations => {
                let checks = [(ETHERNET_HEADER + 6, ICMPV6), (ETHERNET_HEADER + 40, ROUTER_SOLICITATION)];
                (libc::ETH_P_IPV6, bytes_filter(&checks), Some(ALL_ROUTERS))
            }
            Filter::SendOnly => return self.bind(0),
        };
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let fd = self.fd.as_raw_fd();
        // The kernel copies the program that this points to.
        set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        set_option(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        if let Some(group) = group {
            // The interface's own filter lets the group through even if no IP socket asked for it.
            let mut address = [0; 8];
            address[..6].copy_from_slice(&group);
            let group = libc::packet_mreq {
                mr_ifindex: self.ifindex as i32,
                mr_type: libc::PACKET_MR_MULTICAST as u16,
                mr_alen: 6,
                mr_address: address,
            };
            set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &group)?;
        }
        // Last, or packets that the filter refuses would already be queued.
        self.bind(protocol as u16)
    }

    fn bind(&self, protocol: u16) -> io::Result<()> {
        let address = self.address(protocol);
        let (pointer, length) = sockaddr(&address);
        // SAFETY: pointer and length are of the same structure, which lives through the call.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), pointer, length) }).map(drop)
    }

    fn address(&self, protocol: u16) -> libc::sockaddr_ll {
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol.to_be(),
            sll_ifindex: self.ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        }
    }

    /// Sends a frame, header included.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let Some(header) = frame.get(..ETHERNET_HEADER) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the frame is shorter than its header"));
        };
        let address = self.address(u16::from_be_bytes([header[12], header[13]]));
        let (pointer, length) = sockaddr(&address);
        // SAFETY: both pointers and their lengths belong together and live through the call.
        let sent = unsafe { libc::sendto(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, pointer, length) };
        check(sent).map(drop)
    }

    /// Receives a frame if there is one; returns its length, cut to the buffer's.
    ///
    /// After the interface went down, one call returns that as an error (`ENETDOWN`); the socket works
    /// again when the interface does.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            // SAFETY: pointer and length belong together.
            let received =
                check(unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) });
            match received {
                Ok(length) => return Ok(Some(length as usize)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn sockaddr(address: &libc::sockaddr_ll) -> (*const libc::sockaddr, libc::socklen_t) {
    (std::ptr::from_ref(address).cast(), mem::size_of_val(address) as libc::socklen_t)
}

/// As [`vrrp_filter`], over IPv6, where VRRP follows the fixed header directly.
fn vrrp_filter_v6(vrid: Option<u8>) -> Vec<libc::sock_filter> {
    let checks = [Some((ETHERNET_HEADER + 6, VRRP_PROTOCOL)), vrid.map(|vrid| (ETHERNET_HEADER + 41, vrid.into()))];
    bytes_filter(&checks.into_iter().flatten().collect::<Vec<_>>())
}

/// A classic BPF program that wants certain bytes at certain places. The ethertype needs no look: the socket is
/// bound to it.
fn bytes_filter(checks: &[(usize, u32)]) -> Vec<libc::sock_filter> {
    const BYTE_AT: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let line = |code: u32, k, jf| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = Vec::new();
    for (number, &(at, wanted)) in checks.iter().enumerate() {
        // Over what is left of the checks, and over the line that accepts.
        let refuse = (checks.len() - number - 1) * 2 + 1;
        program.extend([line(BYTE_AT, at as u32, 0), line(EQUAL, wanted, refuse as u8)]);
    }
    let answer = libc::BPF_RET | libc::BPF_K;
    program.extend([line(answer, u32::MAX, 0), line(answer, 0, 0)]);
    program
}

/// A classic BPF program over the frame: unfragmented IPv4, protocol 112, and the VRID where one is given.
fn vrrp_filter(vrid: Option<u8>) -> Vec<libc::sock_filter> {
    const BYTE_AT: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const HALF_AT: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const BYTE_AT_X: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
    // X = four times the low half of the byte: the length of an IPv4 header.
    const HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const IP: u32 = ETHERNET_HEADER as u32;
    const REFUSE: u8 = u8::MAX;

    // Code, operand, where to go if true, if false; REFUSE is replaced by the way to the last line.
    let mut lines = vec![
        (HALF_AT, 12, 0, 0),
        (EQUAL, libc::ETH_P_IP as u32, 0, REFUSE),
        (BYTE_AT, IP + 9, 0, 0),
        (EQUAL, VRRP_PROTOCOL, 0, REFUSE),
        (HALF_AT, IP + 6, 0, 0),
        // A later fragment has no VRRP header where we would look for it.
        (ANY_BIT, 0x1fff, REFUSE, 0),
    ];
    if let Some(vrid) = vrid {
        lines.extend([
            (HEADER_LENGTH, IP, 0, 0),
            // RFC 9568 §5.2: the identifier is the header's second byte.
            (BYTE_AT_X, IP + 1, 0, 0),
            (EQUAL, u32::from(vrid), 0, REFUSE),
        ]);
    }
    lines.extend([(RETURN, u32::MAX, 0, 0), (RETURN, 0, 0, 0)]);
    let last = lines.len() - 1;
    let resolve = |line: usize, jump: u8| if jump == REFUSE { (last - line - 1) as u8 } else { jump };
    lines
        .into_iter()
        .enumerate()
        .map(|(line, (code, k, jt, jf))| libc::sock_filter {
            code: code as u16,
            jt: resolve(line, jt),
            jf: resolve(line, jf),
            k,
        })
        .collect()
}
