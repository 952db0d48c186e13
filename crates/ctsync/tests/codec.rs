//! Whatever is said reads back, and nothing that is received can do more than be refused.

use evergate_ctsync::message::{Ack, MAX_LEN, Malformed, Message, Record};
use evergate_model::RouterId;
use evergate_model::flow::{Flow, FlowKey, L4, SequenceAdjustment, TcpTracking, Tuple};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::net::IpAddr;

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into()));
    let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into()));
    prop_oneof![v4, v6]
}

fn l4() -> impl Strategy<Value = (L4, L4)> {
    let ports = any::<(u16, u16)>().prop_map(|(src, dst)| L4::Ports { src, dst });
    let icmp = any::<(u8, u8, u16)>().prop_map(|(kind, code, id)| L4::Icmp { kind, code, id });
    prop_oneof![(ports.clone(), ports), (icmp.clone(), icmp), Just((L4::None, L4::None))]
}

fn flow() -> impl Strategy<Value = Flow> {
    let tcp = option::of(any::<[u8; 5]>().prop_map(|b| TcpTracking {
        state: b[0],
        window_scale: [b[1], b[2]],
        flags: [b[3], b[4]],
    }));
    let adjustment = || {
        option::of(any::<(u32, i32, i32)>().prop_map(|(position, before, after)| SequenceAdjustment {
            position,
            before,
            after,
        }))
    };
    let numbers = any::<(u16, u32, u32, u32, bool, u8)>();
    (addresses(), l4(), any::<bool>(), numbers, tcp, any::<[u8; 16]>(), adjustment(), adjustment()).prop_map(
        |((src, dst), (l4, other), plain, (zone, status, timeout_s, mark, labelled, protocol), tcp, labels, a, b)| {
            let original = Tuple { src, dst, protocol, l4 };
            let reply = if plain { original.mirror() } else { Tuple { l4: other, ..original } };
            let labels = if labelled { labels } else { [0; 16] };
            Flow { original, reply, zone, status, timeout_s, tcp, mark, labels, sequence_adjustment: [a, b] }
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let ids = (0..3_u128, 0..3_u32).prop_map(|(router, generation)| (RouterId::from_u128(router), generation));
    prop_oneof![
        (ids.clone(), any::<u32>()).prop_map(|((router, _), token)| Record::Subscribe { router, token }),
        (ids.clone(), any::<(u32, u64)>()).prop_map(|((router, generation), (token, epoch))| Record::Begin {
            router,
            token,
            generation,
            epoch
        }),
        (ids.clone(), flow()).prop_map(|((router, generation), flow)| Record::Put { router, generation, flow }),
        (ids.clone(), flow()).prop_map(|((router, generation), flow)| Record::Delete {
            router,
            generation,
            key: FlowKey { zone: flow.zone, original: flow.original }
        }),
        (ids, any::<(u64, u64)>()).prop_map(|((router, generation), (count, digest))| Record::Check {
            router,
            generation,
            count,
            digest
        }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let ack = option::of(any::<(u64, u128)>().prop_map(|(highest, taken)| Ack { highest, taken }));
    (any::<u64>(), ack, vec(record(), 0..12)).prop_map(|(sequence, ack, records)| Message { sequence, ack, records })
}

proptest! {
    #[test]
    fn a_message_reads_back(message in message()) {
        let bytes = message.emit();
        prop_assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn no_bytes_do_more_than_be_refused(bytes in vec(any::<u8>(), 0..MAX_LEN)) {
        let _ = Message::parse(&bytes);
    }

    #[test]
    fn a_damaged_message_is_refused_or_reads_as_another(
        message in message(), cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bits: u8,
    ) {
        let mut bytes = message.emit();
        let _ = Message::parse(&bytes[..cut.index(bytes.len())]);
        let at = flip.index(bytes.len());
        bytes[at] ^= bits;
        let _ = Message::parse(&bytes);
    }
}

#[test]
fn another_version_is_refused_by_name() {
    let mut bytes = Message { sequence: 1, ack: None, records: Vec::new() }.emit();
    bytes[0] = 9;
    let error = Message::parse(&bytes).unwrap_err();
    assert_eq!(error, Malformed::Version(9));
    assert_eq!(error.to_string(), "it speaks version 9 of connection replication, this host version 1");
}
