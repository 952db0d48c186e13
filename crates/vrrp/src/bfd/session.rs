//! One session (RFC 5880 §6): the state machine, the timers, and how intervals are agreed upon.
//!
//! Read RFC 5880 §6.8 beside [`Session`]. Two things go beyond it, each marked where it is decided: time
//! in which this process did not run counts for nothing (`Session::discount_absence`), and a peer that
//! was forgotten is forgotten with everything it had asked for.

use std::collections::VecDeque;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use super::wire::{Control, Diagnostic, Discard, State, micros};

/// RFC 5880 §6.8.3: outside of Up, nobody sends faster than this.
pub const SLOW_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval that makes sense between processes: below it, scheduling is what is measured.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Changes of state that are told at once between two periodic packets.
///
/// RFC 5880 §6.8.7 asks for it without a bound. On a path that doubles packets an old one undoes what a
/// newer one did, and both sides tell of it, doubled: a storm that grows without an end. An ordinary way
/// up takes two; what is beyond the bound is told by the next periodic packet.
const PROMPT_CHANGES: u8 = 4;

/// What a session is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The shortest interval to send at (bfd.DesiredMinTxInterval).
    pub desired_min_tx: Duration,
    /// The shortest interval to receive at (bfd.RequiredMinRxInterval).
    pub required_min_rx: Duration,
    /// Our packets that may be missing before the peer gives us up (bfd.DetectMult).
    pub detect_mult: NonZeroU8,
}

impl Config {
    /// The same interval both ways.
    pub fn symmetric(interval: Duration, detect_mult: NonZeroU8) -> Self {
        Self { desired_min_tx: interval, required_min_rx: interval, detect_mult }
    }
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to the peer.
    Transmit(Control),
    /// Tell whoever listens.
    StateChanged {
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why: for Down, `DETECTION_TIME_EXPIRED` alone says that the peer is not heard any more.
        diagnostic: Diagnostic,
    },
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The next periodic packet is due.
    Transmit,
    /// The Detection Time is over.
    Detection,
}

/// One session with one peer, in asynchronous mode and the active role.
///
/// Calling order: any `handle_*`, then `poll_output` until `None`, then sleep until `poll_timeout`. Packets
/// that have arrived are handled before timers. `now` never goes backwards between calls.
#[derive(Clone, Debug)]
pub struct Session {
    config: Config,
    discriminator: NonZeroU32,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    /// What we send at now: as advertised, or faster until a Poll Sequence has ended.
    tx_in_force: Duration,
    /// What our Detection Time is made of now: as advertised, or longer until a Poll Sequence has ended.
    rx_in_force: Duration,
    poll: Poll,
    sent_at: Instant,
    transmit_at: Option<Instant>,
    /// Changes told at once since the last periodic packet.
    prompt_changes: u8,
    /// When the last valid packet came.
    heard_at: Option<Instant>,
    /// The longest time between two of its packets, as agreed upon when the last one came.
    heard_interval: Duration,
    /// What the Detection Time runs from: `heard_at`, and later by what we were away.
    silent_since: Option<Instant>,
    /// AdminDown: when enough has been said of it.
    quiet_at: Option<Instant>,
    random: u64,
    outputs: VecDeque<Output>,
}

/// What the peer said last (bfd.Remote*).
#[derive(Clone, Copy, Debug)]
struct Remote {
    discriminator: u32,
    state: State,
    demand: bool,
    detect_mult: u8,
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

impl Remote {
    /// RFC 5880 §6.8.1's initial values.
    const UNKNOWN: Self = Self {
        discriminator: 0,
        state: State::Down,
        demand: false,
        detect_mult: 1,
        desired_min_tx: SLOW_INTERVAL,
        required_min_rx: Duration::from_micros(1),
    };
}

/// Whether our intervals are being agreed upon (RFC 5880 §6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    Idle,
    /// Packets carry the Poll bit until one with Final comes.
    Waiting,
    /// Something changed meanwhile: the Final that comes first does not answer for it.
    Again,
}

/// Everything worth showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// State here.
    pub state: State,
    /// State that the peer said last.
    pub remote_state: State,
    /// Why it last left Up.
    pub diagnostic: Diagnostic,
    /// Our session.
    pub discriminator: u32,
    /// The peer's; 0 if unknown.
    pub remote_discriminator: u32,
    /// Interval that we send at.
    pub transmit_interval: Duration,
    /// Interval that the peer sends at.
    pub receive_interval: Duration,
    /// Silence after which the peer is given up.
    pub detection_time: Duration,
}

impl Session {
    /// Makes a session in Down, which begins to send at once. The seed spreads what many do at a time.
    pub fn new(config: Config, discriminator: NonZeroU32, seed: u64, now: Instant) -> Self {
        Self {
            config,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: Remote::UNKNOWN,
            tx_in_force: config.desired_min_tx.max(SLOW_INTERVAL),
            rx_in_force: config.required_min_rx,
            poll: Poll::Idle,
            sent_at: now,
            transmit_at: Some(now),
            prompt_changes: 0,
            heard_at: None,
            heard_interval: SLOW_INTERVAL,
            silent_since: None,
            quiet_at: None,
            random: seed | 1,
            outputs: VecDeque::new(),
        }
    }

    /// Takes a packet that is of this session and authentic (RFC 5880 §6.8.6, from there on).
    pub fn handle_control(&mut self, packet: &Control, now: Instant) -> Result<(), Discard> {
        self.remote = Remote {
            discriminator: packet.my_discriminator.get(),
            state: packet.state,
            demand: packet.demand,
            detect_mult: packet.detect_mult.get(),
            desired_min_tx: Duration::from_micros(packet.desired_min_tx_us.into()),
            required_min_rx: Duration::from_micros(packet.required_min_rx_us.into()),
        };
        if packet.r#final {
            self.end_poll();
        }
        if self.state == State::AdminDown {
            return Err(Discard::AdminDown);
        }
        self.heard_at = Some(now);
        self.silent_since = Some(now);
        self.advance(packet.state, now);
        self.heard_interval = self.receive_interval();
        self.reschedule(now);
        if packet.poll {
            // RFC 5880 §6.5: answered at once, whenever the next periodic packet is due.
            self.transmit(true, now);
        }
        Ok(())
    }

    /// RFC 5880 §6.2: what the peer's state makes of ours.
    fn advance(&mut self, theirs: State, now: Instant) {
        let signalled = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
        match (self.state, theirs) {
            (State::AdminDown, _) => {}
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.change(State::Down, signalled, now);
            }
            (State::Down, State::Down) => self.change(State::Init, self.diagnostic, now),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.change(State::Up, Diagnostic::NONE, now);
            }
            (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
        }
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.discount_absence(now);
        if self.detection_at().is_some_and(|at| at <= now) {
            self.expire(now);
        }
        if self.transmit_at.is_some_and(|at| at <= now) {
            self.prompt_changes = 0;
            self.transmit(false, now);
        }
    }

    /// The peer was not heard for the Detection Time (RFC 5880 §6.8.4).
    fn expire(&mut self, now: Instant) {
        // RFC 5880 §6.8.1: bfd.RemoteDiscr is cleared. Deviation: with all that it had asked for, or a
        // peer that once wanted to receive nothing would never be called again.
        self.remote = Remote::UNKNOWN;
        self.silent_since = None;
        match self.state {
            State::Init | State::Up => self.change(State::Down, Diagnostic::DETECTION_TIME_EXPIRED, now),
            State::AdminDown | State::Down => self.reschedule(now),
        }
    }

    /// Lets time in which this process did not run count for nothing.
    ///
    /// Deviation: RFC 5880 §6.8.4 declares the session down whenever the Detection Time is found to be
    /// over. A process that wakes up late (a paused virtual machine, a starved processor) finds it so
    /// without its peer having missed anything. What arrived meanwhile waits in the socket and is
    /// handled before timers, but not if the whole machine stood still. So what a timer was late by is
    /// added to the time that the peer has. Time that we were awake for always counts: a peer that is
    /// really gone is noticed on the most hopeless machine, only later.
    fn discount_absence(&mut self, now: Instant) {
        let Some((due, _)) = self.poll_timeout() else { return };
        let late = now.saturating_duration_since(due);
        // Ordinary scheduling is far below this, and need not make detection slower.
        let tolerance = (self.tx_in_force / 8).max(Duration::from_millis(1));
        if late > tolerance {
            self.silent_since = self.silent_since.map(|since| (since + late).min(now));
        }
    }

    /// Takes changed intervals, without leaving Up.
    pub fn handle_config(&mut self, config: Config, now: Instant) {
        if config == self.config {
            return;
        }
        let intervals_differ = (config.desired_min_tx, config.required_min_rx)
            != (self.config.desired_min_tx, self.config.required_min_rx);
        self.config = config;
        // RFC 5880 §6.8.3: in Up, a longer transmit interval and a shorter Detection Time wait for the
        // end of the Poll Sequence; everything else holds at once.
        if self.state == State::Up {
            self.tx_in_force = self.tx_in_force.min(config.desired_min_tx);
            self.rx_in_force = self.rx_in_force.max(config.required_min_rx);
            if intervals_differ {
                self.begin_poll();
            }
        } else {
            self.adopt_intervals();
        }
        self.reschedule(now);
    }

    /// Holds the session down on purpose (RFC 5880 §6.8.16). The peer learns that this is not a failure.
    pub fn handle_admin_down(&mut self, now: Instant) {
        if self.state == State::AdminDown {
            return;
        }
        // RFC 5880 §6.8.16: said for at least the time that the peer takes to detect silence.
        let patience = self.transmit_interval() * u32::from(self.config.detect_mult.get());
        self.quiet_at = Some(now + patience);
        self.change(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN, now);
        // The process is often about to end: one lost packet should not make this look like a failure.
        for _ in 0..2 {
            self.transmit(false, now);
        }
    }

    /// Whether a session that is held down has said so for long enough.
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.state == State::AdminDown && self.quiet_at.is_some_and(|at| at <= now)
    }

    /// Takes part again.
    pub fn handle_admin_up(&mut self, now: Instant) {
        if self.state == State::AdminDown {
            self.quiet_at = None;
            self.change(State::Down, Diagnostic::NONE, now);
        }
    }

    /// Takes the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tells when to call `handle_timeout`, and for which timer.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let transmit = self.transmit_at.map(|at| (at, Timer::Transmit));
        let detection = self.detection_at().map(|at| (at, Timer::Detection));
        [transmit, detection].into_iter().flatten().min()
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the last valid packet came.
    pub fn heard_at(&self) -> Option<Instant> {
        self.heard_at
    }

    /// The longest time between two of the peer's packets, as agreed upon when the last one came.
    pub fn heard_interval(&self) -> Duration {
        self.heard_interval
    }

    /// Our session's number.
    pub fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    /// RFC 5880 §6.8.4: the peer's Detect Mult times the interval that it may send at.
    pub fn detection_time(&self) -> Duration {
        self.receive_interval() * u32::from(self.remote.detect_mult)
    }

    /// The longest time between two packets of the peer.
    pub fn receive_interval(&self) -> Duration {
        self.rx_in_force.max(self.remote.desired_min_tx)
    }

    /// Everything worth showing.
    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            remote_state: self.remote.state,
            diagnostic: self.diagnostic,
            discriminator: self.discriminator.get(),
            remote_discriminator: self.remote.discriminator,
            transmit_interval: self.transmit_interval(),
            receive_interval: self.receive_interval(),
            detection_time: self.detection_time(),
        }
    }

    fn detection_at(&self) -> Option<Instant> {
        match self.state {
            // Nobody is listened to.
            State::AdminDown => None,
            // In Down the timer only forgets the peer.
            State::Down | State::Init | State::Up => self.silent_since.map(|since| since + self.detection_time()),
        }
    }

    fn change(&mut self, to: State, diagnostic: Diagnostic, now: Instant) {
        let from = std::mem::replace(&mut self.state, to);
        self.diagnostic = diagnostic;
        if from == State::Up || to == State::Up {
            // RFC 5880 §6.8.3: slow outside of Up. In Up, what was asked for, by a Poll Sequence; the
            // interval becomes shorter, which holds at once. Leaving Up, the change holds at once as well.
            self.adopt_intervals();
            self.poll = Poll::Idle;
            if to == State::Up && self.advertised_tx() != SLOW_INTERVAL {
                self.begin_poll();
            }
        }
        self.outputs.push_back(Output::StateChanged { from, to, diagnostic });
        // RFC 5880 §6.8.7: a change is told at once.
        if self.prompt_changes < PROMPT_CHANGES {
            self.prompt_changes += 1;
            self.transmit(false, now);
        } else {
            self.reschedule(now);
        }
    }

    /// bfd.DesiredMinTxInterval, as it is written into packets.
    fn advertised_tx(&self) -> Duration {
        match self.state {
            State::Up => self.config.desired_min_tx,
            State::AdminDown | State::Down | State::Init => self.config.desired_min_tx.max(SLOW_INTERVAL),
        }
    }

    fn adopt_intervals(&mut self) {
        self.tx_in_force = self.advertised_tx();
        self.rx_in_force = self.config.required_min_rx;
    }

    fn begin_poll(&mut self) {
        self.poll = match self.poll {
            Poll::Idle => Poll::Waiting,
            // RFC 5880 §6.5: the Final on its way answers for the old values.
            Poll::Waiting | Poll::Again => Poll::Again,
        };
    }

    fn end_poll(&mut self) {
        match self.poll {
            Poll::Idle => {}
            Poll::Again => self.poll = Poll::Waiting,
            Poll::Waiting => {
                self.poll = Poll::Idle;
                self.adopt_intervals();
            }
        }
    }

    /// RFC 5880 §6.8.7: not faster than we want, nor than the peer can receive.
    fn transmit_interval(&self) -> Duration {
        self.tx_in_force.max(self.remote.required_min_rx)
    }

    fn is_silent(&self, now: Instant) -> bool {
        // RFC 5880 §6.8.7: nothing periodic to a peer that wants nothing, nor to one in Demand mode.
        let unwanted = self.remote.required_min_rx.is_zero();
        let on_demand = self.remote.demand && self.state == State::Up && self.remote.state == State::Up;
        unwanted || (on_demand && self.poll == Poll::Idle) || self.is_quiet(now)
    }

    fn transmit(&mut self, r#final: bool, now: Instant) {
        if !r#final && self.is_silent(now) {
            self.transmit_at = None;
            return;
        }
        self.outputs.push_back(Output::Transmit(Control {
            diagnostic: self.diagnostic,
            state: self.state,
            // RFC 5880 §6.5: never both at once.
            poll: self.poll != Poll::Idle && !r#final,
            r#final,
            // RFC 5881 §3: without help of the forwarding plane we share the control plane's fate.
            control_plane_independent: false,
            demand: false,
            detect_mult: self.config.detect_mult,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx_us: micros(self.advertised_tx()),
            required_min_rx_us: micros(self.config.required_min_rx),
            required_min_echo_rx_us: 0,
        }));
        // A Final is out of turn: the next periodic packet is due when it was.
        if !r#final {
            self.sent_at = now;
            self.transmit_at = Some(now + self.jittered_interval());
        }
    }

    /// What the peer said may have changed when the next packet is due.
    fn reschedule(&mut self, now: Instant) {
        if self.is_silent(now) {
            self.transmit_at = None;
            return;
        }
        // RFC 5880 §6.8.3: a shorter interval holds at once, counted from the last packet.
        let longest = self.sent_at + self.transmit_interval();
        match self.transmit_at {
            // A longer one as well: the peer cannot receive faster.
            Some(at) if at <= longest && at + self.transmit_interval() / 4 >= longest => {}
            Some(_) | None => self.transmit_at = Some(self.sent_at + self.jittered_interval()),
        }
    }

    /// RFC 5880 §6.8.7: 75 to 100 % of the interval; with a Detect Mult of 1 at most 90 %.
    fn jittered_interval(&mut self) -> Duration {
        // xorshift64: enough to keep sessions from sending in step, which is all that is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let span = if self.config.detect_mult.get() == 1 { 150 } else { 250 };
        let permille = 750 + (self.random % (span + 1)) as u32;
        self.transmit_interval() * permille / 1000
    }
}
