//! The sockets of BFD: one that hears every peer, one that sends to all of them.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use evergate_kernel::rt::{Datagram, Epoll, HopSocket};
use evergate_vrrp::bfd::SOURCE_PORTS;

/// When to try again to bind: the address may not be configured yet.
const REBIND: Duration = Duration::from_secs(1);

/// Where BFD is spoken, if it is.
#[derive(Debug, Default)]
pub(super) struct BfdPort {
    address: Option<SocketAddr>,
    sockets: Option<Sockets>,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Sockets {
    receiving: HopSocket,
    sending: HopSocket,
}

impl BfdPort {
    /// Speaks at this address from now on; returns what to tell if that is not possible yet.
    pub(super) fn bind(&mut self, address: Option<SocketAddr>, epoll: &Epoll, token: u64) -> Option<String> {
        let told = self.retry_at.is_some() && address == self.address;
        *self = Self { address, ..Self::default() };
        let address = address?;
        match Sockets::open(address, epoll, token) {
            Ok(sockets) => {
                self.sockets = Some(sockets);
                None
            }
            Err(error) => {
                self.retry_at = Some(Instant::now() + REBIND);
                let text = format!("BFD cannot be spoken at {address}: {error}; trying again");
                (!told).then_some(text)
            }
        }
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again if it is time.
    pub(super) fn retry(&mut self, now: Instant, epoll: &Epoll, token: u64) -> Option<String> {
        let due = self.retry_at.is_some_and(|at| at <= now);
        if due { self.bind(self.address, epoll, token) } else { None }
    }

    pub(super) fn send(&self, datagram: &[u8], to: SocketAddr) {
        if let Some(sockets) = &self.sockets {
            // What cannot be sent is lost, as on the wire.
            let _ = sockets.sending.send(datagram, to);
        }
    }

    pub(super) fn recv(&self, buffer: &mut [u8]) -> Option<Datagram> {
        // An error is what ICMP had to say: the peer is not there now.
        self.sockets.as_ref()?.receiving.recv(buffer).ok().flatten()
    }
}

impl Sockets {
    fn open(address: SocketAddr, epoll: &Epoll, token: u64) -> io::Result<Self> {
        let receiving = HopSocket::bind(address)?;
        let sending = HopSocket::bind_in(address.ip(), SOURCE_PORTS, std::process::id() as u16)?;
        epoll.add(&receiving, token)?;
        Ok(Self { receiving, sending })
    }
}
