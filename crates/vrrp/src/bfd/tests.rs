//! Clause by clause, then two sessions over a link that loses, delays, repeats and stops.
//!
//! Names are quoted by `conformance/bfd-rules.md`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::auth::Key;
use super::session::{Config, Output, SLOW_INTERVAL, Session, Timer};
use super::sessions::{Output as Outcome, Path, Sessions};
use super::wire::{Control, Diagnostic, Discard, MAX_LEN, Packet, State};

const MS: Duration = Duration::from_millis(1);
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const LOCAL: NonZeroU32 = NonZeroU32::new(0x1111).unwrap();
const REMOTE: NonZeroU32 = NonZeroU32::new(0x2222).unwrap();

// The codec (RFC 5880 §4, and §6.8.6 as far as it needs no session).

/// `tshark -V` reads this as: Up, no diagnostic, Final, mult 3, 0x1111 to 0x2222, 300 ms both ways.
const KNOWN: [u8; 24] =
    [0x20, 0xd0, 0x03, 0x18, 0, 0, 0x11, 0x11, 0, 0, 0x22, 0x22, 0, 0x04, 0x93, 0xe0, 0, 0x04, 0x93, 0xe0, 0, 0, 0, 0];

#[test]
fn a_control_packet_is_written_and_read_byte_by_byte() {
    let control =
        Control { r#final: true, my_discriminator: LOCAL, your_discriminator: REMOTE.get(), ..from_peer(State::Up) };
    assert_eq!(control.emit(), KNOWN);
    assert_eq!(Packet::parse(&KNOWN).unwrap().control, control);
}

#[test]
fn each_malformed_packet_is_refused_with_its_reason() {
    let change = |at: usize, value: u8| {
        let mut bytes = KNOWN;
        bytes[at] = value;
        Packet::parse(&bytes).unwrap_err()
    };
    assert_eq!(change(0, 0x40), Discard::Version);
    assert_eq!(change(3, 23), Discard::Length);
    assert_eq!(change(3, 25), Discard::Length);
    assert_eq!(change(2, 0), Discard::DetectMultZero);
    assert_eq!(change(1, 0xd1), Discard::Multipoint);
    assert_eq!(change(1, 0xf0), Discard::PollAndFinal);
    assert_eq!(change(1, 0xd4), Discard::Length, "authentication takes two bytes at least");
    let mut nobody = KNOWN;
    nobody[4..8].fill(0);
    assert_eq!(Packet::parse(&nobody), Err(Discard::MyDiscriminatorZero));
    assert_eq!(Packet::parse(&KNOWN[..23]), Err(Discard::Length));
}

#[test]
fn an_unknown_discriminator_is_allowed_in_down_and_admin_down_alone() {
    for (state, allowed) in [(0x00, true), (0x40, true), (0x80, false), (0xc0, false)] {
        let mut bytes = KNOWN;
        bytes[1] = state;
        bytes[8..12].fill(0);
        let expected = if allowed { None } else { Some(Discard::YourDiscriminatorZero) };
        assert_eq!(Packet::parse(&bytes).err(), expected, "{state:#x}");
    }
}

#[test]
fn padding_after_the_stated_length_is_ignored() {
    let mut padded = KNOWN.to_vec();
    padded.extend([0xff; 30]);
    assert_eq!(Packet::parse(&padded).unwrap().control, Packet::parse(&KNOWN).unwrap().control);
}

#[test]
fn every_discard_reason_has_a_counter_name_of_its_own() {
    let names: BTreeSet<&str> = Discard::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Discard::ALL.len());
    assert!(names.iter().all(|name| name.starts_with("bfd_")));
}

// The state machine (RFC 5880 §6.2, §6.8.6).

#[test]
fn every_state_reacts_to_every_state_as_the_diagram_says() {
    use State::{AdminDown, Down, Init, Up};
    let table = [
        (Down, [(AdminDown, Down), (Down, Init), (Init, Up), (Up, Down)]),
        (Init, [(AdminDown, Down), (Down, Init), (Init, Up), (Up, Up)]),
        (Up, [(AdminDown, Down), (Down, Down), (Init, Up), (Up, Up)]),
        (AdminDown, [(AdminDown, AdminDown), (Down, AdminDown), (Init, AdminDown), (Up, AdminDown)]),
    ];
    for (ours, reactions) in table {
        for (theirs, expected) in reactions {
            let (mut session, now) = in_state(ours);
            let _ = session.handle_control(&from_peer(theirs), now);
            assert_eq!(session.state(), expected, "{ours:?} hears {theirs:?}");
        }
    }
}

#[test]
fn a_neighbour_that_signals_down_is_told_from_one_that_fell_silent() {
    for theirs in [State::Down, State::AdminDown] {
        let (mut session, now) = in_state(State::Up);
        session.handle_control(&from_peer(theirs), now).unwrap();
        assert!(changed_to(&drain(&mut session), State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN), "{theirs:?}");
    }
    let (mut session, now) = in_state(State::Up);
    run_until(&mut session, now + 900 * MS);
    assert_eq!((session.state(), session.status().diagnostic), (State::Down, Diagnostic::DETECTION_TIME_EXPIRED));
}

#[test]
fn held_down_it_refuses_packets_says_so_for_the_peers_detection_time_and_is_silent_then() {
    let (mut session, now) = in_state(State::Up);
    session.handle_admin_down(now);
    assert_eq!(session.handle_control(&from_peer(State::Up), now), Err(Discard::AdminDown));
    let said = transmissions(&mut session, now, 3 * SLOW_INTERVAL);
    assert!(said.iter().all(|(_, packet)| packet.state == State::AdminDown));
    assert!(said.iter().all(|(_, packet)| packet.diagnostic == Diagnostic::ADMINISTRATIVELY_DOWN));
    let last = said.last().unwrap().0;
    assert!(said.len() >= 3 && last <= now + 900 * MS, "{} until {:?}", said.len(), last - now);
    assert_eq!(session.poll_timeout(), None);
    session.handle_admin_up(now + 4 * SLOW_INTERVAL);
    assert_eq!(session.state(), State::Down);
    assert!(!drain(&mut session).is_empty());
}

#[test]
fn a_change_of_state_is_told_at_once() {
    let (mut session, now) = in_state(State::Down);
    session.handle_control(&from_peer(State::Down), now + 10 * MS).unwrap();
    let told = drain(&mut session);
    assert!(told.iter().any(|output| matches!(output, Output::Transmit(packet) if packet.state == State::Init)));
}

// Timers (RFC 5880 §6.8.1 to §6.8.4, §6.8.7).

#[test]
fn outside_of_up_nothing_is_sent_faster_than_once_a_second() {
    let mut session = session(Config::symmetric(10 * MS, mult(3)));
    let now = start();
    let said = transmissions(&mut session, now, 10 * SLOW_INTERVAL);
    assert!((10..=14).contains(&said.len()), "{}", said.len());
    assert!(
        said.iter().all(|(_, packet)| packet.desired_min_tx_us == 1_000_000 && packet.required_min_rx_us == 10_000)
    );
}

#[test]
fn periodic_packets_keep_75_to_100_percent_of_the_interval_and_do_not_keep_step() {
    for (detect_mult, longest) in [(3, 300), (1, 270)] {
        let (mut session, now) = up(Config::symmetric(300 * MS, mult(detect_mult)));
        let said = transmissions_while_heard(&mut session, now, 200);
        let pauses: Vec<u128> = said.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_millis()).collect();
        assert!(pauses.iter().all(|pause| (225..=longest).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().collect::<BTreeSet<_>>().len() > 10, "{pauses:?}");
    }
}

#[test]
fn the_slower_of_what_one_wants_and_the_other_can_receive_is_the_interval() {
    for (required_ms, expected) in [(1000, 1000), (100, 300)] {
        let (mut session, now) = up(Config::symmetric(300 * MS, mult(3)));
        let packet = Control { required_min_rx_us: required_ms * 1000, ..from_peer(State::Up) };
        session.handle_control(&packet, now).unwrap();
        assert_eq!(session.status().transmit_interval, expected * MS);
    }
}

#[test]
fn the_detection_time_is_the_peers_multiplier_times_the_slower_interval() {
    let (mut session, now) = up(Config::symmetric(100 * MS, mult(9)));
    for (their_mult, their_tx_ms, expected_ms) in [(3, 300, 900), (5, 50, 500)] {
        let packet =
            Control { detect_mult: mult(their_mult), desired_min_tx_us: their_tx_ms * 1000, ..from_peer(State::Up) };
        session.handle_control(&packet, now).unwrap();
        assert_eq!(session.detection_time(), expected_ms * MS);
    }
}

#[test]
fn silence_is_noticed_at_the_detection_time_and_the_discriminator_is_forgotten() {
    let (mut session, now) = in_state(State::Up);
    run_until(&mut session, now + 899 * MS);
    assert_eq!(session.state(), State::Up);
    run_until(&mut session, now + 900 * MS);
    assert_eq!(session.state(), State::Down);
    assert_eq!(session.status().remote_discriminator, 0);
}

#[test]
fn a_peer_that_wants_to_receive_nothing_is_sent_nothing_until_it_is_forgotten() {
    let (mut session, now) = up(Config::symmetric(300 * MS, mult(3)));
    let packet = Control { required_min_rx_us: 0, ..from_peer(State::Up) };
    session.handle_control(&packet, now).unwrap();
    drain(&mut session);
    assert_eq!(session.poll_timeout().map(|(_, timer)| timer), Some(Timer::Detection));
    session.handle_timeout(now + 900 * MS);
    assert_eq!(session.poll_timeout().map(|(_, timer)| timer), Some(Timer::Transmit), "it is called again");
}

#[test]
fn in_demand_mode_the_peer_is_sent_nothing_but_answers() {
    let (mut session, now) = up(Config::symmetric(300 * MS, mult(3)));
    session.handle_control(&Control { demand: true, ..from_peer(State::Up) }, now).unwrap();
    drain(&mut session);
    assert_eq!(session.poll_timeout().map(|(_, timer)| timer), Some(Timer::Detection));
    session.handle_control(&Control { demand: true, poll: true, ..from_peer(State::Up) }, now).unwrap();
    assert!(matches!(drain(&mut session)[..], [Output::Transmit(Control { r#final: true, .. })]));
}

#[test]
fn a_shorter_interval_of_the_peer_holds_at_once() {
    let (mut session, now) = up(Config::symmetric(50 * MS, mult(3)));
    session.handle_control(&Control { required_min_rx_us: 2_000_000, ..from_peer(State::Up) }, now).unwrap();
    let (slow, _) = session.poll_timeout().unwrap();
    assert!(slow - now >= 150 * MS);
    session.handle_control(&Control { required_min_rx_us: 50_000, ..from_peer(State::Up) }, now + MS).unwrap();
    let (fast, _) = session.poll_timeout().unwrap();
    assert!(fast <= now + 50 * MS, "{:?}", fast - now);
}

// Poll Sequences (RFC 5880 §6.5, §6.8.3).

#[test]
fn a_poll_is_answered_at_once_with_final_and_out_of_turn() {
    let (mut session, now) = in_state(State::Up);
    let (due, _) = session.poll_timeout().unwrap();
    session.handle_control(&Control { poll: true, ..from_peer(State::Up) }, now).unwrap();
    let answer = drain(&mut session);
    assert!(matches!(answer[..], [Output::Transmit(Control { r#final: true, poll: false, .. })]), "{answer:?}");
    assert_eq!(session.poll_timeout().unwrap().0, due);
}

#[test]
fn becoming_up_polls_until_the_peer_answers_final() {
    let (mut session, now) = in_state(State::Init);
    session.handle_control(&from_peer(State::Up), now).unwrap();
    assert!(drain(&mut session).iter().any(|output| matches!(output, Output::Transmit(packet) if packet.poll)));
    session.handle_control(&Control { r#final: true, ..from_peer(State::Up) }, now).unwrap();
    let later = transmissions(&mut session, now, 300 * MS);
    assert!(!later.is_empty() && later.iter().all(|(_, packet)| !packet.poll));
}

#[test]
fn slower_sending_and_faster_detection_wait_for_the_end_of_the_poll_sequence() {
    let (mut session, now) = in_state(State::Up);
    session.handle_config(Config { desired_min_tx: 700 * MS, required_min_rx: 100 * MS, detect_mult: mult(3) }, now);
    let packet = Control { desired_min_tx_us: 50_000, required_min_rx_us: 50_000, ..from_peer(State::Up) };
    session.handle_control(&packet, now).unwrap();
    let status = session.status();
    assert_eq!((status.transmit_interval, status.receive_interval), (300 * MS, 300 * MS), "as before");
    let said = transmissions(&mut session, now, 300 * MS);
    assert!(said.iter().all(|(_, packet)| packet.poll && packet.desired_min_tx_us == 700_000));
    session.handle_control(&Control { r#final: true, ..packet }, now + 300 * MS).unwrap();
    let status = session.status();
    assert_eq!((status.transmit_interval, status.receive_interval), (700 * MS, 100 * MS));
}

#[test]
fn a_change_during_a_poll_sequence_is_not_answered_by_the_final_on_its_way() {
    let (mut session, now) = in_state(State::Up);
    session.handle_config(Config::symmetric(400 * MS, mult(3)), now);
    session.handle_config(Config::symmetric(500 * MS, mult(3)), now);
    let r#final = Control { r#final: true, ..from_peer(State::Up) };
    session.handle_control(&r#final, now).unwrap();
    assert_eq!(session.status().transmit_interval, 300 * MS);
    session.handle_control(&r#final, now).unwrap();
    assert_eq!(session.status().transmit_interval, 500 * MS);
}

// Our own absence.

#[test]
fn whoever_was_away_does_not_mistake_its_absence_for_the_peers() {
    for away in [950 * MS, Duration::from_secs(60)] {
        let (mut session, now) = in_state(State::Up);
        session.handle_timeout(now + away);
        assert_eq!(session.state(), State::Up, "{away:?}");
        session.handle_control(&from_peer(State::Up), now + away + 300 * MS).unwrap();
        assert_eq!(session.state(), State::Up);
    }
}

#[test]
fn a_peer_that_is_really_gone_is_noticed_although_we_are_always_late() {
    let (mut session, now) = in_state(State::Up);
    let mut clock = now;
    while session.state() == State::Up {
        let (due, _) = session.poll_timeout().unwrap();
        clock = clock.max(due) + 200 * MS;
        session.handle_timeout(clock);
        drain(&mut session);
        assert!(clock < now + 3000 * MS, "late by 200 ms each time");
    }
}

// Authentication (RFC 5880 §6.7).

#[test]
fn what_is_signed_is_believed_by_those_who_have_the_key_alone() {
    let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [vec![key(1, 7)], vec![key(1, 7)]]);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    assert_eq!(pair.states(), [State::Up, State::Up]);
    let cases = [
        ([vec![key(1, 7)], vec![key(1, 8)]], Discard::AuthDigest),
        ([vec![key(1, 7)], vec![key(2, 7)]], Discard::AuthKeyId),
        ([vec![key(1, 7)], vec![]], Discard::AuthUnexpected),
        ([vec![], vec![key(1, 7)]], Discard::AuthMissing),
    ];
    for (keys, reason) in cases {
        let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), keys);
        pair.run(5000 * MS, |_| Fate::Arrives(MS));
        assert_eq!(pair.sessions[1].session(OURS).unwrap().state(), State::Down);
        assert!(pair.sessions[1].discards().any(|(seen, _)| seen == reason), "{reason:?}");
    }
}

#[test]
fn keys_are_exchanged_without_a_flap_while_both_know_both() {
    let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [vec![key(1, 7)], vec![key(1, 7)]]);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    pair.changes.clear();
    for keys in [vec![key(1, 7), key(2, 8)], vec![key(2, 8), key(1, 7)], vec![key(2, 8)]] {
        for side in 0..2 {
            pair.sessions[side].handle_config(Config::symmetric(300 * MS, mult(3)), keys.clone(), pair.now);
            pair.run(1000 * MS, |_| Fate::Arrives(MS));
        }
    }
    assert_eq!(pair.changes, []);
}

#[test]
fn a_recorded_packet_is_refused_and_so_is_one_from_too_far_ahead() {
    let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [vec![key(1, 7)], vec![key(1, 7)]]);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    let recorded = pair.last_from[0].clone();
    pair.sessions[1].handle_datagram(&recorded, OURS, None, pair.now);
    // Ten are lost, the window is nine wide: the eleventh comes from nowhere.
    let mut lost = 0;
    pair.run(2400 * MS, |flight| {
        lost += u32::from(flight.from == 0);
        if flight.from == 0 { Fate::Lost } else { Fate::Arrives(MS) }
    });
    assert!(lost >= 3);
    let refused: u64 = pair.sessions[1].discards().filter(|(r, _)| *r == Discard::AuthSequence).map(|(_, n)| n).sum();
    assert!(refused >= 1);
    pair.run(20_000 * MS, |_| Fate::Arrives(MS));
    assert_eq!(pair.states(), [State::Up, State::Up], "forgotten after twice the Detection Time");
}

#[test]
fn a_forged_first_packet_does_not_shut_the_peer_out() {
    let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [vec![key(1, 7)], vec![key(1, 7)]]);
    let mut stranger = Sessions::new(Path::Multihop, Config::symmetric(300 * MS, mult(3)), vec![key(1, 99)], 5);
    stranger.set_peers(&BTreeSet::from([THEIRS]), pair.now);
    stranger.handle_timeout(pair.now);
    let Some(Outcome::Send { datagram, .. }) = stranger.poll_output() else { panic!("it sends at once") };
    pair.sessions[1].handle_datagram(&datagram, OURS, None, pair.now);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    assert_eq!(pair.states(), [State::Up, State::Up]);
}

#[test]
fn a_secret_is_in_no_debug_output() {
    assert!(!format!("{:?}", Key::new(3, *b"abcdefghijklmnopqrst")).contains("97"));
}

// Telling sessions apart (RFC 5880 §6.8.6, RFC 5881 §4 and §5).

#[test]
fn over_one_hop_a_packet_that_crossed_a_router_is_refused() {
    let mut sessions = Sessions::new(Path::SingleHop, Config::symmetric(300 * MS, mult(3)), vec![], 9);
    sessions.set_peers(&BTreeSet::from([THEIRS]), start());
    let packet = Control { your_discriminator: 0, ..from_peer(State::Down) }.emit();
    for (hop_limit, taken) in [(Some(254), false), (None, false), (Some(255), true)] {
        sessions.handle_datagram(&packet, THEIRS, hop_limit, start());
        let state = sessions.session(THEIRS).unwrap().state();
        assert_eq!(state == State::Init, taken, "{hop_limit:?}");
    }
}

#[test]
fn a_stranger_gets_no_session_and_a_wrong_discriminator_reaches_none() {
    let mut sessions = Sessions::new(Path::Multihop, Config::symmetric(300 * MS, mult(3)), vec![], 9);
    sessions.set_peers(&BTreeSet::from([THEIRS]), start());
    let call = Control { your_discriminator: 0, ..from_peer(State::Down) };
    sessions.handle_datagram(&call.emit(), IpAddr::from([198, 51, 100, 1]), None, start());
    sessions.handle_datagram(&from_peer(State::Down).emit(), THEIRS, None, start());
    let own = sessions.session(THEIRS).unwrap().discriminator();
    let overheard = Control { your_discriminator: own.get(), ..from_peer(State::Down) };
    sessions.handle_datagram(&overheard.emit(), IpAddr::from([198, 51, 100, 1]), None, start());
    let counted: Vec<_> = sessions.discards().collect();
    assert_eq!(counted, [(Discard::UnknownDiscriminator, 1), (Discard::UnknownPeer, 2)]);
    assert_eq!(sessions.session(THEIRS).unwrap().state(), State::Down);
}

#[test]
fn a_peer_that_is_not_wanted_any_more_learns_that_it_is_no_failure_and_is_forgotten() {
    let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [vec![], vec![]]);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    pair.changes.clear();
    pair.sessions[0].handle_stop(pair.now);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    assert_eq!(pair.changes[1], (1, State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN));
    assert!(pair.sessions[0].session(THEIRS).is_none());
    assert_eq!(pair.sessions[0].poll_timeout(), None);
}

// Two sessions over a link.

#[test]
fn two_sessions_come_up_and_agree_on_the_intervals() {
    for interval in [10, 50, 300, 1000] {
        let mut pair = Pair::new(Config::symmetric(interval * MS, mult(3)), [vec![], vec![]]);
        pair.run(5000 * MS, |_| Fate::Arrives(MS));
        assert_eq!(pair.states(), [State::Up, State::Up]);
        for side in 0..2 {
            let status = pair.status(side);
            assert_eq!((status.transmit_interval, status.detection_time), (interval * MS, 3 * interval * MS));
        }
        assert_eq!(pair.changes.iter().filter(|(_, to, _)| *to == State::Up).count(), 2, "each once");
    }
}

#[test]
fn a_link_that_is_cut_is_noticed_by_both_within_the_detection_time_and_heals() {
    for interval in [10, 300] {
        let mut pair = Pair::new(Config::symmetric(interval * MS, mult(3)), [vec![], vec![]]);
        pair.run(5000 * MS, |_| Fate::Arrives(MS));
        pair.changes.clear();
        pair.run(3 * interval * MS + 2 * MS, |_| Fate::Lost);
        let down = |side| (side, State::Down, Diagnostic::DETECTION_TIME_EXPIRED);
        assert!(pair.changes.contains(&down(0)) && pair.changes.contains(&down(1)), "{:?}", pair.changes);
        pair.run(5000 * MS, |_| Fate::Arrives(MS));
        assert_eq!(pair.states(), [State::Up, State::Up]);
    }
}

#[test]
fn a_one_way_cut_is_a_failure_to_the_deaf_side_alone() {
    let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [vec![], vec![]]);
    pair.run(5000 * MS, |_| Fate::Arrives(MS));
    pair.changes.clear();
    pair.run(2000 * MS, |flight| if flight.from == 0 { Fate::Lost } else { Fate::Arrives(MS) });
    assert_eq!(pair.changes[0], (1, State::Down, Diagnostic::DETECTION_TIME_EXPIRED));
    assert_eq!(pair.changes[1], (0, State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN));
}

#[test]
fn a_link_that_doubles_everything_makes_no_storm() {
    let mut pair = Pair::new(Config::symmetric(100 * MS, mult(3)), [vec![], vec![]]);
    let mut sent = 0;
    pair.run(10_000 * MS, |_| {
        sent += 1;
        Fate::Twice(3 * MS)
    });
    // Two sides say 10 to 14 things in each of ten seconds; coming up takes some more.
    assert!(sent < 2 * 14 * 10 + 100, "{sent} packets");
    assert_eq!(pair.states(), [State::Up, State::Up]);
}

#[test]
fn a_restarted_side_comes_up_again() {
    for keys in [vec![], vec![key(1, 7)]] {
        let mut pair = Pair::new(Config::symmetric(300 * MS, mult(3)), [keys.clone(), keys.clone()]);
        pair.run(5000 * MS, |_| Fate::Arrives(MS));
        pair.restart(0, keys);
        pair.run(15_000 * MS, |_| Fate::Arrives(MS));
        assert_eq!(pair.states(), [State::Up, State::Up]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_arrives_makes_it_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Packet::parse(&bytes);
        for keys in [vec![], vec![key(1, 7)]] {
            let mut sessions = Sessions::new(Path::Multihop, Config::symmetric(300 * MS, mult(3)), keys, 3);
            sessions.set_peers(&BTreeSet::from([THEIRS]), start());
            sessions.handle_datagram(&bytes, THEIRS, None, start());
            prop_assert!(sessions.status().count() == 1);
        }
    }

    #[test]
    fn whatever_can_be_written_is_read_again(control in any_control()) {
        let bytes = control.emit();
        prop_assert!(bytes.len() <= MAX_LEN);
        prop_assert_eq!(Packet::parse(&bytes).unwrap().control, control);
    }

    #[test]
    fn any_well_formed_packets_leave_a_session_that_works(
        controls in proptest::collection::vec((any_control(), 0_u64..5000), 1..40)
    ) {
        let mut session = session(Config::symmetric(10 * MS, mult(3)));
        let mut now = start();
        for (control, pause) in controls {
            now += Duration::from_millis(pause);
            run_until(&mut session, now);
            let _ = session.handle_control(&control, now);
            // A state, a Final and what they reveal: never more than a handful of packets for one.
            prop_assert!(drain(&mut session).len() <= 6);
        }
    }

    #[test]
    fn a_lossy_link_never_takes_a_session_down_before_detect_mult_packets_are_lost_in_a_row(
        fates in proptest::collection::vec((any::<bool>(), 0_u64..20), 64), interval in prop::sample::select(vec![50_u64, 300])
    ) {
        let interval = Duration::from_millis(interval);
        let mut pair = Pair::new(Config::symmetric(interval, mult(3)), [vec![], vec![]]);
        pair.run(5000 * MS, |_| Fate::Arrives(MS));
        pair.changes.clear();
        let mut in_a_row = [0; 2];
        let mut fates = fates.iter().cycle();
        // 75 to 100 % of the interval lie between two packets: with one of two lost, silence lasts less
        // than two intervals and the delay of the next packet.
        pair.run(60 * interval, |flight| {
            let &(lost, delay) = fates.next().expect("it is a circle");
            if lost && in_a_row[flight.from] < 1 {
                in_a_row[flight.from] += 1;
                return Fate::Lost;
            }
            in_a_row[flight.from] = 0;
            Fate::Arrives(Duration::from_millis(delay))
        });
        prop_assert_eq!(&pair.changes, &[]);
    }

    #[test]
    fn whatever_happened_both_are_up_some_seconds_after_the_link_works_again(
        fates in proptest::collection::vec((0_u8..4, 0_u64..3000), 1..60),
        authenticated in any::<bool>(),
    ) {
        let keys = if authenticated { vec![key(1, 7)] } else { vec![] };
        let mut pair = Pair::new(Config::symmetric(100 * MS, mult(3)), [keys.clone(), keys.clone()]);
        let mut at = 0;
        let mut restarts = 0;
        for _ in 0..10 {
            pair.run(1000 * MS, |_| {
                at += 1;
                match fates[at % fates.len()] {
                    (0, _) => Fate::Lost,
                    (1, delay) => Fate::Arrives(Duration::from_millis(delay)),
                    (2, delay) => Fate::Twice(Duration::from_millis(delay)),
                    (_, _) => Fate::Arrives(MS),
                }
            });
            if fates[at % fates.len()].0 == 0 && restarts < 2 {
                restarts += 1;
                pair.restart(restarts % 2, keys.clone());
            }
        }
        pair.run(30_000 * MS, |_| Fate::Arrives(MS));
        prop_assert_eq!(pair.states(), [State::Up, State::Up]);
        pair.changes.clear();
        pair.run(30_000 * MS, |_| Fate::Arrives(MS));
        prop_assert_eq!(&pair.changes, &[]);
    }
}

// Helpers.

#[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
fn start() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn mult(number: u8) -> NonZeroU8 {
    NonZeroU8::new(number).unwrap()
}

fn key(id: u8, byte: u8) -> Key {
    Key::new(id, [byte; 20])
}

/// What a peer at 300 ms x 3 says in this state.
fn from_peer(state: State) -> Control {
    Control {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        r#final: false,
        control_plane_independent: false,
        demand: false,
        detect_mult: mult(3),
        my_discriminator: REMOTE,
        your_discriminator: LOCAL.get(),
        desired_min_tx_us: 300_000,
        required_min_rx_us: 300_000,
        required_min_echo_rx_us: 0,
    }
}

fn any_control() -> impl Strategy<Value = Control> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let numbers = (1..=u8::MAX, 1..=u32::MAX, 1..=u32::MAX, any::<u32>(), any::<u32>(), any::<u32>());
    let state = prop::sample::select(vec![State::AdminDown, State::Down, State::Init, State::Up]);
    (flags, numbers, state, any::<bool>()).prop_map(|(flags, numbers, state, failed)| Control {
        diagnostic: if failed { Diagnostic::DETECTION_TIME_EXPIRED } else { Diagnostic::NONE },
        state,
        poll: flags.0 && !flags.1,
        r#final: flags.1,
        control_plane_independent: flags.2,
        demand: flags.3,
        detect_mult: mult(numbers.0),
        my_discriminator: NonZeroU32::new(numbers.1).unwrap(),
        your_discriminator: numbers.2,
        desired_min_tx_us: numbers.3,
        required_min_rx_us: numbers.4,
        required_min_echo_rx_us: numbers.5,
    })
}

fn session(config: Config) -> Session {
    Session::new(config, LOCAL, 42, start())
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

fn changed_to(outputs: &[Output], state: State, why: Diagnostic) -> bool {
    outputs
        .iter()
        .any(|o| matches!(o, Output::StateChanged { to, diagnostic, .. } if *to == state && *diagnostic == why))
}

fn up(config: Config) -> (Session, Instant) {
    let (mut session, now) = (session(config), start());
    session.handle_control(&from_peer(State::Init), now).unwrap();
    session.handle_control(&Control { r#final: true, ..from_peer(State::Up) }, now).unwrap();
    drain(&mut session);
    assert_eq!(session.state(), State::Up);
    (session, now)
}

fn in_state(state: State) -> (Session, Instant) {
    let config = Config::symmetric(300 * MS, mult(3));
    let (mut session, now) = (session(config), start());
    match state {
        State::Down => {}
        State::Init => session.handle_control(&from_peer(State::Down), now).unwrap(),
        State::Up => return up(config),
        State::AdminDown => session.handle_admin_down(now),
    }
    drain(&mut session);
    assert_eq!(session.state(), state);
    (session, now)
}

fn run_until(session: &mut Session, until: Instant) {
    while let Some((at, _)) = session.poll_timeout().filter(|(at, _)| *at <= until) {
        session.handle_timeout(at);
        drain(session);
    }
}

/// What is sent from `now` on for so long, nothing being heard.
fn transmissions(session: &mut Session, now: Instant, duration: Duration) -> Vec<(Instant, Control)> {
    let mut said = packets(drain(session), now);
    while let Some((at, _)) = session.poll_timeout().filter(|(at, _)| *at <= now + duration) {
        session.handle_timeout(at);
        said.extend(packets(drain(session), at));
    }
    said
}

fn transmissions_while_heard(session: &mut Session, now: Instant, count: usize) -> Vec<(Instant, Control)> {
    let mut said = Vec::new();
    session.handle_timeout(session.poll_timeout().unwrap().0.max(now));
    drain(session);
    while said.len() < count {
        let (at, _) = session.poll_timeout().unwrap();
        session.handle_control(&from_peer(State::Up), at).unwrap();
        drain(session);
        session.handle_timeout(at);
        said.extend(packets(drain(session), at));
    }
    said
}

fn packets(outputs: Vec<Output>, at: Instant) -> Vec<(Instant, Control)> {
    let packet = |output| match output {
        Output::Transmit(control) => Some((at, control)),
        Output::StateChanged { .. } => None,
    };
    outputs.into_iter().filter_map(packet).collect()
}

/// Two hosts and what is in the air between them.
struct Pair {
    now: Instant,
    config: Config,
    sessions: [Sessions; 2],
    air: Vec<Flight>,
    changes: Vec<(usize, State, Diagnostic)>,
    last_from: [Vec<u8>; 2],
}

#[derive(Clone)]
struct Flight {
    from: usize,
    datagram: Vec<u8>,
    due: Instant,
}

enum Fate {
    Lost,
    Arrives(Duration),
    Twice(Duration),
}

impl Pair {
    fn new(config: Config, keys: [Vec<Key>; 2]) -> Self {
        let now = start();
        let mut seed = 17;
        let mut peers = [THEIRS, OURS].into_iter();
        let sessions = keys.map(|keys| {
            seed += 1000;
            let mut sessions = Sessions::new(Path::Multihop, config, keys, seed);
            sessions.set_peers(&peers.next().into_iter().collect(), now);
            sessions
        });
        Self { now, config, sessions, air: Vec::new(), changes: Vec::new(), last_from: [vec![], vec![]] }
    }

    fn restart(&mut self, side: usize, keys: Vec<Key>) {
        let seed = 999 + self.now.duration_since(start()).as_nanos() as u64;
        self.sessions[side] = Sessions::new(Path::Multihop, self.config, keys, seed);
        self.sessions[side].set_peers(&BTreeSet::from([[THEIRS, OURS][side]]), self.now);
    }

    fn run(&mut self, duration: Duration, mut fate: impl FnMut(&Flight) -> Fate) {
        let end = self.now + duration;
        loop {
            self.collect(&mut fate);
            assert!(self.air.len() < 1000, "two sessions never have so much on the way: {:?}", self.states());
            let timers = self.sessions.iter().filter_map(|sessions| sessions.poll_timeout()).map(|(at, _)| at);
            let next = timers.chain(self.air.iter().map(|flight| flight.due)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            // Packets before timers, as the engine asks.
            let arrived: Vec<Flight> = self.air.extract_if(.., |flight| flight.due <= next).collect();
            for flight in arrived {
                let from = [OURS, THEIRS][flight.from];
                self.sessions[1 - flight.from].handle_datagram(&flight.datagram, from, None, self.now);
            }
            for sessions in &mut self.sessions {
                sessions.handle_timeout(self.now);
            }
        }
        self.now = end;
    }

    fn collect(&mut self, fate: &mut impl FnMut(&Flight) -> Fate) {
        for from in 0..2 {
            while let Some(output) = self.sessions[from].poll_output() {
                match output {
                    Outcome::Send { datagram, .. } => {
                        self.last_from[from].clone_from(&datagram);
                        let flight = Flight { from, datagram, due: self.now };
                        match fate(&flight) {
                            Fate::Lost => {}
                            Fate::Arrives(delay) => self.air.push(Flight { due: self.now + delay, ..flight }),
                            Fate::Twice(delay) => {
                                self.air.push(Flight { due: self.now + delay, ..flight.clone() });
                                self.air.push(Flight { due: self.now + MS, ..flight });
                            }
                        }
                    }
                    Outcome::StateChanged { to, diagnostic, .. } => self.changes.push((from, to, diagnostic)),
                }
            }
        }
    }

    fn states(&self) -> [State; 2] {
        [self.status(0).state, self.status(1).state]
    }

    fn status(&self, side: usize) -> super::session::Status {
        self.sessions[side].session([THEIRS, OURS][side]).expect("it was made").status()
    }
}
