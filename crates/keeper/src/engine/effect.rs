//! What the engine wants done. Effects are data: the shell carries them out and hands back what came of
//! those that have an outcome.
//!
//! Frames, claims and messages are sent at once. What changes the kernel's configuration may take long
//! (it waits for a lock that all namespaces of the host share), so it is done aside, in this order, and its
//! outcome comes later: advertisements must not wait for it. The engine itself holds back what must not be
//! said before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use evergate_model::RouterId;

use crate::protocol::{FromKeeper, Place};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make the copy's sockets as requested; answered by `Engine::handle_opened`.
    OpenSockets {
        /// Whose.
        router: RouterId,
        /// Which sockets. The same as before, in the same namespace, are kept.
        request: SocketRequest,
        /// Even then they are made anew, because a link under them has gone.
        fresh: bool,
    },
    /// Close the copy's sockets, so that nothing pins its namespace; answered by `Engine::handle_closed`.
    CloseSockets {
        /// Whose.
        router: RouterId,
    },
    /// Send an Ethernet frame in the router's namespace. Losing it is like losing it on the wire.
    SendFrame {
        /// Whose namespace.
        router: RouterId,
        /// On which interface.
        ifindex: u32,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// Send prepared messages to the kernel; answered by `Engine::handle_batch`.
    RunBatch(Batch),
    /// Run the health check script for a router, aside; answered by `Engine::handle_script`.
    RunScript(ScriptRun),
    /// Receive claims at this address, and send them from it; `None`: neither.
    BindClaims(Option<SocketAddr>),
    /// Send a claim or an acknowledgement.
    SendClaim {
        /// To which keeper.
        to: SocketAddr,
        /// Signed.
        datagram: Vec<u8>,
    },
    /// Receive BFD packets at this address, and send them from its host; `None`: neither.
    BindBfd(Option<SocketAddr>),
    /// Send a BFD packet.
    SendBfd {
        /// To which host.
        to: SocketAddr,
        /// UDP payload.
        datagram: Vec<u8>,
    },
    /// Find out which hosts hold all connections of these routers, which are active here; answered by
    /// `Engine::handle_complete`. One after an input at most, whatever it was about.
    AskWhoIsComplete(BTreeSet<RouterId>),
    /// Tell control. Transitions leave `at_ms` to the shell, which has the clock of day.
    Emit(FromKeeper),
}

/// A run of the health check script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptRun {
    /// For which router.
    pub router: RouterId,
    /// Name of the namespace below `netns_path` that it runs in.
    pub netns: String,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// It is killed after this time, which counts as a failure.
    pub patience: Duration,
}

/// Where answers of gateways come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswersOn {
    /// The interface.
    pub ifindex: u32,
    /// IPv4 gateways are asked there.
    pub v4: bool,
    /// IPv6 gateways are.
    pub v6: bool,
}

/// The sockets that a copy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketRequest {
    /// Name of the namespace below `netns_path`.
    pub netns: String,
    /// Where VRRP is spoken.
    pub ha_ifindex: u32,
    /// Only this VRID is received; `None`: all (the HA network's sentinel).
    pub vrid: Option<u8>,
    /// Interfaces to send announcements on.
    pub send_on: BTreeSet<u32>,
    /// Where gateways answer, if they are asked.
    pub answers_on: Option<AnswersOn>,
    /// The address whose presence on the HA interface says "was active".
    pub virtual_address: Ipv4Addr,
}

/// What was found when the sockets were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Whether each link of the namespace is up and has carrier, by index; `None`: the sockets were kept,
    /// and link events go on.
    pub links: Option<BTreeMap<u32, bool>>,
    /// Whether the virtual address is on the HA interface.
    pub has_virtual_address: bool,
}

/// Prepared messages that are sent to one place at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// For which router.
    pub router: RouterId,
    /// Where.
    pub place: Place,
    /// What for.
    pub purpose: Purpose,
    /// Grows with every change of what is wanted: the outcome of an older one is of no interest.
    pub generation: u64,
    /// What each message does.
    pub steps: Vec<(String, Action)>,
    /// The messages.
    pub messages: Vec<Vec<u8>>,
}

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What the active copy has and the others have not.
    Items,
    /// Forwarding entries that follow the active copy.
    Follow,
}

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Does an item.
    Add,
    /// Undoes one.
    Del,
}

impl Action {
    /// In words, for warnings.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Del => "remove",
        }
    }
}
