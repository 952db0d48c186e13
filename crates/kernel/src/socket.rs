//! The transport: many netlink messages per send, answers matched to messages by sequence number.
//!
//! Route netlink and nftables do their work inside the sending system call: when it returns, every answer
//! is queued. So we send, then take what is there; nothing waits, and an answer that is missing was lost
//! (the receive buffer was full), never late. A send of several messages is not a transaction: each is
//! attempted, whatever became of those before it. (An nftables batch is one; see [`Socket::transaction`].)

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_MULTI};
use tracing::debug;

use crate::error::{Cause, Refusal};
use crate::netns::NetnsFd;
use crate::route::link;
use crate::sys::{self, check};
use crate::uapi::{NETLINK_LISTEN_ALL_NSID, NLMSGERR_ATTR_MSG, RTM_DELNEXTHOP};
use crate::wire::{
    Attrs, Frame, Frames, HEADER_LEN, Message, i32_at, message_type, set_sequence, text, u16_at, u32_at,
};

/// Answers to this many messages fit the receive buffer with a wide margin (about 1 KiB of it each).
const BATCH_MESSAGES: usize = 512;

/// Bytes per send, well below the default send buffer of 208 KiB.
const BATCH_BYTES: usize = 128 << 10;

/// Receive buffer. A limit, not an allocation.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;

/// The kernel fills buffers of up to 32 KiB per read of a dump; one message may be larger than that.
const DUMP_BYTES: usize = 64 << 10;

/// An answer is a header, an error, the request's header and a sentence.
const ANSWER_BYTES: usize = 4 << 10;

/// So often a dump is started anew when what it lists changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;

/// Which of the kernel's subsystems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Route,
    Netfilter,
}

/// Whether the kernel's answers were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    All,
    /// There was no room for the others.
    Some,
}

/// A netlink socket in one namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open(protocol: Protocol) -> io::Result<Self> {
        let protocol = match protocol {
            Protocol::Route => libc::NETLINK_ROUTE,
            Protocol::Netfilter => libc::NETLINK_NETFILTER,
        };
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, sequence: 0 };
        // Sentences in answers, without the request repeated in them; and requests checked strictly, so
        // that filters work and mistakes show. All three are older (4.20) than any kernel we run on.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            socket.set_option(libc::SOL_NETLINK, option, 1)?;
        }
        // The second is limited by net.core.rmem_max, for those without CAP_NET_ADMIN out there.
        socket
            .set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .or_else(|_| socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER))?;
        Ok(socket)
    }

    /// Opens one in a namespace.
    pub(crate) fn open_in(netns: &NetnsFd, protocol: Protocol) -> io::Result<Self> {
        netns.inside(|| Self::open(protocol))?
    }

    /// Lets more wait to be received; as much as is permitted, where that is less.
    pub(crate) fn set_receive_buffer(&self, bytes: libc::c_int) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
            .or_else(|_| self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
    }

    /// Subscribes to a group of notifications.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        self.join_all(&[group])
    }

    /// Subscribes to groups of notifications.
    pub(crate) fn join_all(&self, groups: &[u32]) -> io::Result<()> {
        self.bind()?;
        groups.iter().try_for_each(|group| {
            self.set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, *group as libc::c_int)
        })
    }

    /// Lets it hear what it is subscribed to of all namespaces that have a number in its own.
    pub(crate) fn listen_everywhere(&self) -> io::Result<()> {
        self.set_option(libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
    }

    /// Receives a notification, with the number of the namespace that it is of; without one, it is of the socket's own.
    pub(crate) fn receive_from_anywhere(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Option<i32>)>> {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut header = unsafe { mem::zeroed::<libc::msghdr>() };
        // Aligned for control messages, and large enough for one number.
        let mut control = [0_u64; 8];
        let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        header.msg_iov = &raw mut data;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control) as _;
        // SAFETY: every pointer in the header is to memory that outlives the call, with its length.
        match check(unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) }) {
            Ok(length) => {
                let number = sys::control_number(&header, &[(libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID)]);
                Ok(Some((length as usize, number)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the socket a port. Sending does the same; but a socket that only listens would keep port 0,
    /// the kernel's own, and whoever sends a notification is left out when it is delivered.
    fn bind(&self) -> io::Result<()> {
        // SAFETY: all zeroes is a valid value of this plain structure; port 0 asks for any.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and length describe the address, which lives through the call.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
    }

    /// Sends requests; result i belongs to message i. The kernel tells every refusal; one that asks for
    /// acknowledgement costs a further receive where all is well.
    pub(crate) fn exchange(&mut self, messages: &mut [Vec<u8>]) -> Vec<Result<(), Cause>> {
        let mut results = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take(BATCH_MESSAGES).take_while(|message| {
                bytes += message.len();
                bytes <= BATCH_BYTES
            });
            let count = fitting.count().max(1);
            let (batch, later) = mem::take(&mut rest).split_at_mut(count);
            rest = later;
            self.exchange_batch(batch, &mut results);
        }
        results
    }

    /// Asks for objects by name, and shows each that there is to `visit`. Objects that are not there are passed over.
    pub(crate) fn get_each(
        &mut self,
        requests: &mut [Vec<u8>],
        mut visit: impl FnMut(&Frame<'_>),
    ) -> Result<(), Cause> {
        let mut buffer = vec![0; ANSWER_BYTES];
        for batch in requests.chunks_mut(BATCH_MESSAGES) {
            let first = self.send(batch)?;
            let is_asked = |frame: &Frame<'_>| (frame.sequence.wrapping_sub(first) as usize) < batch.len();
            while let Some(length) = self.receive(&mut buffer)? {
                for frame in Frames(&buffer[..length]).filter(is_asked) {
                    if i32::from(frame.kind) != libc::NLMSG_ERROR {
                        visit(&frame);
                    } else if let Err(refusal) = answer(&frame)
                        && refusal.errno != libc::ENOENT
                    {
                        return Err(refusal.into());
                    }
                }
            }
        }
        Ok(())
    }

    fn exchange_batch(&mut self, batch: &mut [Vec<u8>], results: &mut Vec<Result<(), Cause>>) {
        let first = match self.send(batch) {
            Ok(first) => first,
            Err(error) => {
                results.extend(batch.iter().map(|_| Err(copy(&error).into())));
                return;
            }
        };
        let mut answers: Vec<Option<Result<(), Refusal>>> = batch.iter().map(|_| None).collect();
        let received = self.receive_answers(first, &mut answers);
        results.extend(answers.into_iter().zip(batch).map(|(answer, message)| match (answer, &received) {
            (Some(answer), _) => answer.map_err(Cause::Kernel),
            (None, Err(error)) => Err(copy(error).into()),
            (None, Ok(Heard::All)) if !wants_answer(message) => Ok(()),
            (None, Ok(_)) => Err(lost().into()),
        }));
    }

    /// Sends the messages of an nftables batch: all of it happens, or the first refusal is returned with
    /// its message's index.
    pub(crate) fn transaction(&mut self, messages: &mut [Vec<u8>]) -> Result<(), (usize, Cause)> {
        let bytes: usize = messages.iter().map(Vec::len).sum();
        if bytes > BATCH_BYTES {
            // One transaction must be one send, however large. SO_SNDBUF counts overhead, hence twice.
            let buffer = libc::c_int::try_from(2 * bytes).unwrap_or(libc::c_int::MAX);
            self.set_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, buffer)
                .or_else(|_| self.set_option(libc::SOL_SOCKET, libc::SO_SNDBUF, buffer))
                .map_err(|error| (0, error.into()))?;
        }
        let first = self.send(messages).map_err(|error| (0, error.into()))?;
        let mut answers: Vec<Option<Result<(), Refusal>>> = messages.iter().map(|_| None).collect();
        self.receive_answers(first, &mut answers).map_err(|error| (0, error.into()))?;
        let mut unanswered = None;
        for (index, answer) in answers.into_iter().enumerate() {
            match answer {
                Some(Err(refusal)) => return Err((index, refusal.into())),
                Some(Ok(())) => {}
                None if wants_answer(&messages[index]) => {
                    unanswered.get_or_insert(index);
                }
                None => {}
            }
        }
        unanswered.map_or(Ok(()), |index| Err((index, lost().into())))
    }

    /// The number by which the socket's namespace knows another one, if it has one; asked by [`link::get_netns_number`].
    pub(crate) fn netns_number(&mut self, request: Message) -> Result<Option<i32>, Cause> {
        Ok(self.get(request)?.as_deref().and_then(link::read_netns_number))
    }

    /// Asks for one object. `None` when the answer is an acknowledgement only.
    pub(crate) fn get(&mut self, request: Message) -> Result<Option<Vec<u8>>, Cause> {
        let sequence = self.send(&mut [request.finish()])?;
        let mut buffer = vec![0; DUMP_BYTES];
        let mut found = None;
        while let Some(length) = self.receive(&mut buffer)? {
            for frame in Frames(&buffer[..length]).filter(|frame| frame.sequence == sequence) {
                if i32::from(frame.kind) == libc::NLMSG_ERROR {
                    answer(&frame)?;
                } else {
                    found = Some(frame.payload.to_vec());
                }
            }
        }
        Ok(found)
    }

    /// Asks for all objects of a kind; returns their messages, for [`Frames`].
    pub(crate) fn dump(&mut self, request: Message) -> Result<Vec<u8>, Cause> {
        let mut request = [request.finish()];
        let mut found = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            found.clear();
            if self.dump_once(&mut request, &mut |frame| found.extend_from_slice(frame.whole))? {
                return Ok(found);
            }
        }
        // Each round lists nearly everything, and whoever compares it with what should be comes again.
        debug!(kind = message_type(&request[0]), "what the kernel lists kept changing");
        Ok(found)
    }

    /// Asks for all objects of a kind, and shows each to `visit` while they arrive: of kinds of which there
    /// are so many that their messages should not be kept, and which the kernel lists without a break.
    pub(crate) fn dump_each(&mut self, request: Message, mut visit: impl FnMut(&Frame<'_>)) -> Result<(), Cause> {
        self.dump_once(&mut [request.finish()], &mut visit).map(drop)
    }

    /// False when what was listed changed meanwhile.
    fn dump_once(&mut self, request: &mut [Vec<u8>; 1], visit: &mut impl FnMut(&Frame<'_>)) -> Result<bool, Cause> {
        let sequence = self.send(request)?;
        let mut buffer = vec![0; DUMP_BYTES];
        let mut consistent = true;
        loop {
            let length = self.receive(&mut buffer)?.ok_or_else(lost)?;
            for frame in Frames(&buffer[..length]).filter(|frame| frame.sequence == sequence) {
                consistent &= i32::from(frame.flags) & NLM_F_DUMP_INTR == 0;
                match i32::from(frame.kind) {
                    libc::NLMSG_DONE => {
                        answer(&frame)?;
                        return Ok(consistent);
                    }
                    libc::NLMSG_ERROR => {
                        answer(&frame)?;
                        return Ok(consistent);
                    }
                    _ => visit(&frame),
                }
                // An object that exists once is not sent in parts, and nothing follows it.
                if i32::from(frame.flags) & NLM_F_MULTI == 0 {
                    return Ok(consistent);
                }
            }
        }
    }

    /// Numbers the messages and sends them; returns the first number.
    fn send(&mut self, messages: &mut [Vec<u8>]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(messages.iter().map(Vec::len).sum());
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            set_sequence(message, self.sequence);
            bytes.extend_from_slice(message);
        }
        loop {
            // SAFETY: pointer and length belong together.
            match check(unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) }) {
                Ok(_) => return Ok(first),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the queued answers; answer i belongs to sequence number `first + i`.
    fn receive_answers(&mut self, first: u32, answers: &mut [Option<Result<(), Refusal>>]) -> io::Result<Heard> {
        let mut buffer = [0; ANSWER_BYTES];
        let mut heard = Heard::All;
        loop {
            let length = match self.receive(&mut buffer) {
                Ok(Some(length)) => length,
                Ok(None) => return Ok(heard),
                // Some answers were lost: take the others, and miss the lost ones later.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    heard = Heard::Some;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for frame in Frames(&buffer[..length]).filter(|frame| i32::from(frame.kind) == libc::NLMSG_ERROR) {
                let index = frame.sequence.wrapping_sub(first) as usize;
                if let Some(slot) = answers.get_mut(index) {
                    // An error stays, whatever else is said about the message.
                    if !matches!(slot, Some(Err(_))) {
                        *slot = Some(answer(&frame));
                    }
                }
            }
        }
    }

    /// Receives what is queued, if anything is; its length, cut to the buffer's.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            // SAFETY: pointer and length belong together.
            let received = check(unsafe {
                libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
            });
            match received {
                Ok(length) => return Ok(Some(length as usize)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn set_option(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        set_option(self.fd.as_raw_fd(), level, option, &value)
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Sets a socket option whose value is a plain structure or number.
pub(crate) fn set_option<T: Copy>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length are of the same value; the kernel only reads it.
    check(unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(value).cast(), length) }).map(drop)
}

/// What an acknowledgement, or the end of a dump, says.
fn answer(frame: &Frame<'_>) -> Result<(), Refusal> {
    let errno = -i32_at(frame.payload, 0).unwrap_or(0);
    if errno == 0 {
        return Ok(());
    }
    let is_done = i32::from(frame.kind) == libc::NLMSG_DONE;
    let has_attributes = i32::from(frame.flags) & libc::NLM_F_ACK_TLVS != 0;
    // After the number comes the request: its header, or all of it where that was not capped.
    let request = match (is_done, i32::from(frame.flags) & libc::NLM_F_CAPPED != 0) {
        (true, _) => 0,
        (false, true) => HEADER_LEN,
        (false, false) => u32_at(frame.payload, 4).unwrap_or(0) as usize,
    };
    let words = has_attributes
        .then(|| Attrs::after(frame.payload, 4 + request).get(NLMSGERR_ATTR_MSG).map(text))
        .flatten()
        .map(|words| words.trim_end_matches('.').to_owned());
    Err(Refusal::new(errno, words))
}

/// Whether a message is answered also where all is well.
fn wants_answer(message: &[u8]) -> bool {
    u16_at(message, 6).is_some_and(|flags| i32::from(flags) & NLM_F_ACK != 0)
}

fn lost() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOBUFS)
}

/// [`io::Error`] cannot be cloned, but one of the system's can be made again.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// Tells whether a refusal means that things already are as asked: added what is there, deleted what is gone.
pub(crate) fn is_already_so(message: &[u8], errno: i32) -> bool {
    match message_type(message) {
        Some(libc::RTM_NEWADDR | libc::RTM_NEWROUTE | libc::RTM_NEWRULE | libc::RTM_NEWNEIGH) => errno == libc::EEXIST,
        Some(libc::RTM_DELLINK) => errno == libc::ENODEV,
        Some(libc::RTM_DELADDR) => matches!(errno, libc::EADDRNOTAVAIL | libc::ENODEV),
        Some(libc::RTM_DELROUTE) => matches!(errno, libc::ESRCH | libc::ENODEV),
        Some(libc::RTM_DELRULE | RTM_DELNEXTHOP) => errno == libc::ENOENT,
        // EOPNOTSUPP: the link is no bridge port any more, so the bridge has no entries for it.
        Some(libc::RTM_DELNEIGH) => matches!(errno, libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_with_the_kernels_words() {
        // `ip route add 10.9.0.0/16 via 192.0.2.9`, answered without the request (NETLINK_CAP_ACK).
        let mut answer_bytes = Vec::new();
        answer_bytes.extend_from_slice(&[68, 0, 0, 0, 2, 0, 0, 3, 7, 0, 0, 0, 0, 0, 0, 0]);
        answer_bytes.extend_from_slice(&(-libc::ENETUNREACH).to_ne_bytes());
        answer_bytes.extend_from_slice(&[44, 0, 0, 0, 24, 0, 5, 4, 7, 0, 0, 0, 0, 0, 0, 0, 32, 0, 1, 0]);
        answer_bytes.extend_from_slice(b"Nexthop has invalid gateway\0");
        let frame = Frames(&answer_bytes).next().unwrap();
        assert_eq!(frame.sequence, 7);
        let refusal = answer(&frame).unwrap_err();
        assert_eq!(refusal.text, "Nexthop has invalid gateway (Network is unreachable)");
        // Cut anywhere, it is still a refusal.
        for length in 20..answer_bytes.len() {
            let cut = Frame { payload: &answer_bytes[HEADER_LEN..length], ..frame };
            assert_eq!(answer(&cut).unwrap_err().errno, libc::ENETUNREACH);
        }
    }

    #[test]
    fn only_what_was_asked_for_counts_as_already_so() {
        let message = |kind| Message::request(kind, 0).finish();
        assert!(is_already_so(&message(libc::RTM_NEWADDR), libc::EEXIST));
        assert!(is_already_so(&message(libc::RTM_DELADDR), libc::EADDRNOTAVAIL));
        assert!(is_already_so(&message(libc::RTM_DELROUTE), libc::ESRCH));
        assert!(!is_already_so(&message(libc::RTM_NEWADDR), libc::ENODEV));
        assert!(!is_already_so(&message(libc::RTM_NEWLINK), libc::EEXIST));
        assert!(!is_already_so(&message(libc::RTM_DELROUTE), libc::EPERM));
        assert!(!is_already_so(&[], libc::EEXIST));
    }
}
