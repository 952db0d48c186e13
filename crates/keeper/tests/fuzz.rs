//! A mutation fuzzer for everything that a keeper reads from a network: VRRP, BFD, claims, questions between
//! keepers, and connection replication.
//!
//! `corpus/verdicts.txt` has for each way in which a codec was seen to accept or refuse something one message
//! that it does that to. It is replayed first; then messages are made of it, damaged, and mended where a checksum or
//! a signature would hide what lies behind it. Whatever is accepted must read back from what is written for
//! it, and whatever is refused must be so for a reason that the corpus knows.
//!
//! The same seed makes the same run. `EVERGATE_FUZZ_ROUNDS` makes it longer (2000 rounds for each codec) and
//! `EVERGATE_FUZZ_SEED` another one; a line that such a run finds missing belongs into the corpus.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use evergate_ctsync::message::{Malformed, Message as Replication, Record};
use evergate_keeper::claims::question::{self, Question};
use evergate_keeper::claims::wire::{ClaimKey, Entry, Kind, Message as Claim};
use evergate_keeper::hex;
use evergate_model::RouterId;
use evergate_model::flow::{Flow, FlowKey, L4, TcpTracking, Tuple};
use evergate_vrrp::bfd;
use evergate_vrrp::router::{Version, Vrid};
use evergate_vrrp::wire::{self, Advertisement, Expectation, Ipv4Checksum, ethernet_frame, parse_frame};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

#[path = "support/mutate.rs"]
mod mutate;

use mutate::Dice;

const CORPUS: &str = include_str!("corpus/verdicts.txt");
const ACCEPTED: &str = "accepted";
const MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 0, 0, 1];
const KEY: &[u8] = b"the hosts' key";
const TAG: usize = 32;

#[test]
fn the_corpus_is_judged_as_it_was() {
    let codecs = codecs();
    for (codec, verdict, bytes) in corpus() {
        let known = codecs.iter().find(|known| known.name == codec);
        let judged = (known.unwrap_or_else(|| panic!("no codec {codec}")).judge)(&bytes);
        assert_eq!(judged, verdict, "{codec} {}", hex::encode(&bytes));
    }
}

#[test]
fn the_corpus_has_every_reason_for_which_a_packet_is_refused() {
    let of = |prefix: &str| -> BTreeSet<&str> {
        corpus().filter(|(codec, ..)| codec.starts_with(prefix)).map(|(_, verdict, _)| verdict).collect()
    };
    let vrrp = BTreeSet::from_iter(wire::Discard::ALL.map(wire::Discard::name));
    assert_eq!(of("vrrp"), &vrrp | &BTreeSet::from([ACCEPTED]));
    // The other reasons of BFD need a session.
    let bfd = [
        "version",
        "length",
        "detect_mult_zero",
        "multipoint",
        "poll_and_final",
        "my_discriminator_zero",
        "your_discriminator_zero",
        "auth_type",
    ];
    let bfd: BTreeSet<String> = bfd.iter().map(|name| format!("bfd_{name}")).collect();
    assert_eq!(of("bfd"), bfd.iter().map(String::as_str).chain([ACCEPTED]).collect());
    let signed =
        ["claim_length", "claim_format", "claim_version", "claim_key", "claim_content", "claim_sender", ACCEPTED];
    assert_eq!((of("claim"), of("question")), (signed.into(), signed.into()));
    assert_eq!(of("replication"), [ACCEPTED, "version", "short", "form"].into());
}

#[test]
fn whatever_arrives_is_refused_for_a_known_reason_or_reads_back() {
    let rounds = number("EVERGATE_FUZZ_ROUNDS", 2000);
    let mut dice = Dice::new(number("EVERGATE_FUZZ_SEED", 1));
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut pool: Vec<Vec<u8>> = codecs().into_iter().map(|codec| codec.example).collect();
    for (codec, verdict, bytes) in corpus() {
        known.entry(codec).or_default().insert(verdict.to_owned());
        pool.push(bytes);
    }
    // The shortest of each.
    let mut missing: BTreeMap<(&str, String), Vec<u8>> = BTreeMap::new();
    for codec in codecs() {
        let known = known.remove(codec.name).unwrap_or_default();
        assert_eq!((codec.judge)(&codec.example), ACCEPTED, "{}", codec.name);
        for _ in 0..rounds {
            let mut bytes =
                if dice.below(4) == 0 { pool[dice.below(pool.len())].clone() } else { codec.example.clone() };
            dice.mutate(&mut bytes, &pool);
            if dice.below(4) > 0 {
                (codec.mend)(&mut bytes);
            }
            let verdict = (codec.judge)(&bytes);
            if !known.contains(&verdict) {
                let shortest = missing.entry((codec.name, verdict)).or_insert_with(|| bytes.clone());
                if bytes.len() < shortest.len() {
                    *shortest = bytes;
                }
            }
        }
    }
    let line =
        |((codec, verdict), bytes): (&(&str, String), &Vec<u8>)| format!("{codec} {verdict} {}", hex::encode(bytes));
    let missing: Vec<String> = missing.iter().map(line).collect();
    assert!(missing.is_empty(), "the corpus lacks\n{}", missing.join("\n"));
}

/// Something that reads bytes from a network.
struct Codec {
    name: &'static str,
    /// A message that it accepts.
    example: Vec<u8>,
    /// Makes checksums and signatures right.
    mend: fn(&mut Vec<u8>),
    /// Accepts a message, or names the reason for refusing it. What is accepted has been read back.
    judge: fn(&[u8]) -> String,
}

fn codecs() -> Vec<Codec> {
    let frame = |adv: Advertisement, source: IpAddr| {
        ethernet_frame(&adv, MAC, source, Ipv4Checksum::MessageOnly).expect("the example can be sent")
    };
    let key = claim_key();
    vec![
        Codec { name: "vrrp2", example: frame(v2(), host(1)), mend: |b| mend_frame(b), judge: |b| vrrp(b, &v2()) },
        Codec {
            name: "vrrp2-password",
            example: frame(v2_with_password(), host(1)),
            mend: |b| mend_frame(b),
            judge: |b| vrrp(b, &v2_with_password()),
        },
        Codec { name: "vrrp3", example: frame(v3(), host(1)), mend: |b| mend_frame(b), judge: |b| vrrp(b, &v3()) },
        Codec {
            name: "vrrp3-ipv6",
            example: frame(v3_ipv6(), v6(1)),
            mend: |b| mend_frame(b),
            judge: |b| vrrp(b, &v3_ipv6()),
        },
        Codec { name: "bfd", example: bfd_example(), mend: |_| {}, judge: judge_bfd },
        Codec { name: "claim", example: claim_example().emit(&key), mend: mend_signature, judge: judge_claim },
        Codec { name: "question", example: question_example().emit(&key), mend: mend_signature, judge: judge_question },
        Codec { name: "replication", example: replication_example().emit(), mend: |_| {}, judge: judge_replication },
    ]
}

// VRRP.

fn vrrp(frame: &[u8], ours: &Advertisement) -> String {
    // Nothing that can be read at all makes a look from the side fail.
    let _ = wire::peek(frame);
    let is_v4 = ours.addresses[0].is_ipv4();
    let expect = Expectation {
        version: ours.version,
        vrid: ours.vrid,
        advertise_interval_cs: ours.advertise_interval_cs,
        password: ours.password,
        addresses: &ours.addresses,
        own_address: if is_v4 { host(2) } else { v6(2) },
        owner: false,
        accept_other_addresses: false,
    };
    let received = match parse_frame(frame, &expect) {
        Ok(received) => received,
        Err(reason) => return reason.name().to_owned(),
    };
    // The state machine takes these for granted.
    let adv = &received.advertisement;
    assert!(adv.advertise_interval_cs > 0 && !adv.addresses.is_empty() && adv.vrid == ours.vrid);
    assert_ne!(received.source, expect.own_address);
    for form in [Ipv4Checksum::MessageOnly, Ipv4Checksum::PseudoHeader] {
        let again = ethernet_frame(adv, MAC, received.source, form).expect("what was read can be written");
        let again = parse_frame(&again, &expect).expect("what was written can be read");
        assert_eq!((&again.advertisement, again.source), (adv, received.source));
    }
    ACCEPTED.to_owned()
}

fn v2() -> Advertisement {
    Advertisement {
        version: Version::V2,
        vrid: Vrid::new(143).expect("143 is not 0"),
        priority: 50,
        advertise_interval_cs: 200,
        addresses: vec![IpAddr::from([169, 254, 0, 143])],
        password: None,
    }
}

fn v2_with_password() -> Advertisement {
    Advertisement { password: Some(*b"s3cret\0\0"), ..v2() }
}

fn v3() -> Advertisement {
    Advertisement { version: Version::V3, advertise_interval_cs: 10, ..v2() }
}

fn v3_ipv6() -> Advertisement {
    Advertisement { addresses: vec![v6(143), "2001:db8::1".parse().expect("an address")], ..v3() }
}

/// Makes the checksums of a frame right, as far as it has any.
fn mend_frame(frame: &mut [u8]) {
    let (Some(&[high, low]), true) = (frame.get(12..14).and_then(|bytes| bytes.first_chunk()), frame.len() >= 54)
    else {
        return;
    };
    let length = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (message, pseudo) = match u16::from_be_bytes([high, low]) {
        0x0800 => {
            let start = 14 + usize::from(frame[14] & 15) * 4;
            let end = (14 + length(16)).min(frame.len());
            mend_sum(frame, 14..start, 10, &[]);
            (start..end, Vec::new())
        }
        0x86dd => {
            let length = length(18);
            let pseudo = [&frame[22..54], &(length as u32).to_be_bytes(), &[0, 0, 0, 112]].concat();
            (54..(54 + length).min(frame.len()), pseudo)
        }
        _ => return,
    };
    mend_sum(frame, message, 6, &pseudo);
}

/// Sets the Internet checksum (RFC 1071) that is `at` bytes behind the beginning of what it covers.
fn mend_sum(frame: &mut [u8], covered: std::ops::Range<usize>, at: usize, more: &[u8]) {
    let Some(covered) = frame.get_mut(covered).filter(|covered| covered.len() >= at + 2) else { return };
    covered[at..at + 2].fill(0);
    let words = covered.chunks(2).chain(more.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    covered[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

// BFD.

fn bfd_example() -> Vec<u8> {
    // RFC 5880 §4.1: Up, multiplier 3, both discriminators, 10 ms each way, no echo.
    let words = [7_u32, 9, 10_000, 10_000, 0].map(u32::to_be_bytes).concat();
    [[0x20, 0xc0, 3, 24].as_slice(), &words].concat()
}

fn judge_bfd(bytes: &[u8]) -> String {
    match bfd::wire::Packet::parse(bytes) {
        Ok(packet) => {
            let again = packet.control.emit();
            assert_eq!(bfd::wire::Packet::parse(&again).map(|again| again.control), Ok(packet.control));
            ACCEPTED.to_owned()
        }
        Err(reason) => reason.name().to_owned(),
    }
}

// Claims, and questions between keepers.

fn claim_key() -> ClaimKey {
    ClaimKey::new(KEY.to_vec()).expect("the key is not empty")
}

fn claim_example() -> Claim {
    let entry = |n| Entry { router: RouterId::from_u128(n), epoch: 7, vtep: Some(host(1)) };
    Claim { kind: Kind::Claim, sender: host(1), entries: vec![entry(1), entry(2)] }
}

fn question_example() -> Question {
    let entries = claim_example().entries;
    let kind = question::Kind::Handover;
    Question { kind, sender: host(1), origin: host(1), subject: host(3), number: 7, entries }
}

fn judge_claim(bytes: &[u8]) -> String {
    match Claim::parse(bytes, host(1), &claim_key()) {
        Ok(claim) => {
            assert_eq!(Claim::parse(&claim.emit(&claim_key()), host(1), &claim_key()), Ok(claim));
            ACCEPTED.to_owned()
        }
        Err(reason) => reason.to_string(),
    }
}

fn judge_question(bytes: &[u8]) -> String {
    match Question::parse(bytes, host(1), &claim_key()) {
        Ok(question) => {
            assert_eq!(Question::parse(&question.emit(&claim_key()), host(1), &claim_key()), Ok(question));
            ACCEPTED.to_owned()
        }
        Err(reason) => reason.to_string(),
    }
}

/// Signs what was damaged, as somebody who has the key and writes nonsense would.
fn mend_signature(bytes: &mut Vec<u8>) {
    let Some(length) = bytes.len().checked_sub(TAG) else { return };
    bytes.truncate(length);
    let mut hmac = Hmac::<Sha256>::new_from_slice(KEY).expect("HMAC takes a key of any length");
    hmac.update(bytes);
    bytes.extend(hmac.finalize().into_bytes());
}

// Connection replication. Its seal is the transport's, and is not part of this.

fn replication_example() -> Replication {
    let router = RouterId::from_u128(1);
    let original = Tuple { src: host(9), dst: host(8), protocol: 6, l4: L4::Ports { src: 4000, dst: 80 } };
    let flow = Flow {
        original,
        reply: original.mirror(),
        zone: 1,
        status: 0x18e,
        timeout_s: 300,
        tcp: Some(TcpTracking { state: 3, window_scale: [7, 7], flags: [0x23, 0x23] }),
        mark: 1,
        labels: [1; 16],
        sequence_adjustment: [None, None],
    };
    let key = FlowKey { zone: 1, original };
    let records = vec![
        Record::Subscribe { router, token: 1 },
        Record::Begin { router, token: 1, generation: 1, epoch: 5 },
        Record::Put { router, generation: 1, flow },
        Record::Delete { router, generation: 1, key },
        Record::Check { router, generation: 1, count: 0, digest: 0 },
    ];
    Replication { sequence: 1, ack: None, records }
}

fn judge_replication(bytes: &[u8]) -> String {
    match Replication::parse(bytes) {
        Ok(message) => {
            // Memory stays in proportion to what arrived.
            assert!(message.records.len() <= bytes.len());
            assert_eq!(Replication::parse(&message.emit()), Ok(message));
            ACCEPTED.to_owned()
        }
        Err(Malformed::Version(_)) => "version".to_owned(),
        Err(Malformed::Short) => "short".to_owned(),
        Err(Malformed::Form) => "form".to_owned(),
    }
}

// Helpers.

/// Codec, verdict and bytes of each line that is no comment.
fn corpus() -> impl Iterator<Item = (&'static str, &'static str, Vec<u8>)> {
    CORPUS.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("a line is codec, verdict and bytes: {line}"));
        (word(), word(), hex::decode(word()).expect("the bytes are hexadecimal"))
    })
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn host(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn v6(n: u8) -> IpAddr {
    IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(n)])
}
