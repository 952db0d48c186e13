//! The codec against RFC 9568 §5 and §7.1, RFC 3768, RFC 2338, and against what keepalived sends.

use proptest::prelude::*;

use super::*;
use crate::announce;

const MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 0x0a, 0x00, 0x01];

// Frames that keepalived sent.

#[test]
fn keepalived_v2_advertisement_is_read_and_written_byte_by_byte() {
    let captured = capture("v2_advertisement");
    let adv = v2();
    let received = parse_frame(&captured, &expect(&adv)).unwrap();
    assert_eq!(received.advertisement, adv);
    assert_eq!(received.source, source4());
    assert_eq!(received.remarks, Remarks::default());
    assert_eq!(without_identification(emit(&adv)), without_identification(captured));
}

#[test]
fn keepalived_v2_password_is_read_and_written_byte_by_byte() {
    let captured = capture("v2_password_advertisement");
    let adv = v2_with_password();
    let received = parse_frame(&captured, &expect(&adv)).unwrap();
    assert_eq!(received.advertisement, adv);
    assert_eq!(without_identification(emit(&adv)), without_identification(captured));
}

#[test]
fn keepalived_v2_resignation_is_read_and_written_byte_by_byte() {
    for (name, adv) in [("v2_resignation", v2()), ("v2_password_resignation", v2_with_password())] {
        let captured = capture(name);
        let received = parse_frame(&captured, &expect(&adv)).unwrap();
        assert_eq!(received.advertisement.priority, 0);
        assert_eq!(without_identification(emit(&received.advertisement)), without_identification(captured));
    }
}

#[test]
fn keepalived_v3_over_ipv4_uses_the_old_checksum_which_is_accepted_remarked_and_can_be_sent() {
    let captured = capture("v3_ipv4_advertisement");
    let adv = v3();
    let received = parse_frame(&captured, &expect(&adv)).unwrap();
    assert_eq!(received.advertisement, adv);
    let names: Vec<_> = received.remarks.names().collect();
    assert_eq!(names, ["old_checksum"]);
    let sent = ethernet_frame(&adv, MAC, source4(), Ipv4Checksum::PseudoHeader).unwrap();
    assert_eq!(without_identification(sent), without_identification(captured));
}

#[test]
fn keepalived_v3_over_ipv6_is_read_and_written_byte_by_byte() {
    for (name, priority) in [("v3_ipv6_advertisement", 50), ("v3_ipv6_resignation", 0)] {
        let captured = capture(name);
        let adv = Advertisement { priority, ..v3_ipv6() };
        let received = parse_frame(&captured, &expect(&v3_ipv6())).unwrap();
        assert_eq!(received.advertisement, adv);
        assert_eq!(received.remarks, Remarks::default());
        assert_eq!(without_flow_label(emit(&adv)), without_flow_label(captured));
    }
}

#[test]
fn gratuitous_arp_is_the_one_keepalived_sends() {
    let address = Ipv4Addr::new(169, 254, 0, 143);
    assert_eq!(announce::gratuitous_arp(MAC, address), capture("gratuitous_arp"));
}

#[test]
fn gratuitous_arp_carries_the_virtual_address_as_sender_and_target() {
    let frame = announce::frame(MAC, Ipv4Addr::new(10, 0, 0, 1).into());
    assert_eq!(frame[22..28], MAC);
    assert_eq!(frame[28..32], [10, 0, 0, 1]);
    assert_eq!(frame[38..42], [10, 0, 0, 1]);
}

#[test]
fn unsolicited_advertisement_is_the_one_keepalived_sends() {
    let address = "2001:db8::1".parse().unwrap();
    assert_eq!(announce::unsolicited_advertisement(MAC, address, false), capture("unsolicited_advertisement"));
}

#[test]
fn unsolicited_advertisement_sets_router_and_override_but_not_solicited() {
    let frame = announce::frame(MAC, "fe80::1".parse().unwrap());
    assert_eq!(frame[58], 0b1010_0000);
    assert_eq!(frame[78..], [2, 1, 0xfa, 0x16, 0x3e, 0x0a, 0x00, 0x01]);
}

// What is sent.

#[test]
fn every_advertisement_leaves_with_hop_limit_255() {
    assert_eq!(emit(&v2())[22], 255);
    assert_eq!(emit(&v3())[22], 255);
    assert_eq!(emit(&v3_ipv6())[21], 255);
}

#[test]
fn every_advertisement_goes_to_the_group_as_protocol_112() {
    let frame = emit(&v2());
    assert_eq!(frame[..6], [0x01, 0x00, 0x5e, 0x00, 0x00, 0x12]);
    assert_eq!(frame[23], 112);
    assert_eq!(frame[30..34], [224, 0, 0, 18]);
    let frame = emit(&v3_ipv6());
    assert_eq!(frame[..6], [0x33, 0x33, 0x00, 0x00, 0x00, 0x12]);
    assert_eq!(frame[20], 112);
    assert_eq!(frame[38..54], IPV6_GROUP.octets());
}

#[test]
fn source_is_the_primary_address_that_was_given() {
    assert_eq!(emit(&v2())[26..30], [169, 254, 192, 10]);
    let IpAddr::V6(link_local) = source6() else { panic!("it is of IPv6") };
    assert!(link_local.is_unicast_link_local());
    assert_eq!(emit(&v3_ipv6())[22..38], link_local.octets());
}

#[test]
fn v3_ipv4_checksum_covers_the_message_only() {
    let frame = emit(&v3());
    assert!(Sum::default().add(&frame[34..]).is_valid());
    let remarks = parse_frame(&frame, &expect(&v3())).unwrap().remarks;
    assert!(!remarks.old_checksum);
}

#[test]
fn v3_ipv6_checksum_includes_the_pseudo_header_with_next_header_112() {
    let message = v3_ipv6().message(source6(), Ipv4Checksum::MessageOnly).unwrap();
    let with = |next_header| pseudo_header(source6(), IPV6_GROUP.into(), next_header, message.len()).add(&message);
    assert!(with(112).is_valid());
    assert!(!with(58).is_valid());
    assert!(!Sum::default().add(&message).is_valid());
}

#[test]
fn v2_checksum_covers_the_authentication_data_and_no_pseudo_header() {
    let message = v2_with_password().message(source4(), Ipv4Checksum::PseudoHeader).unwrap();
    assert!(Sum::default().add(&message).is_valid());
    assert!(!Sum::default().add(&message[..12]).is_valid());
}

#[test]
fn v2_password_follows_the_addresses_padded_with_zeros() {
    let message = v2_with_password().message(source4(), Ipv4Checksum::default()).unwrap();
    assert_eq!(message.len(), 20);
    assert_eq!(message[4], 1);
    assert_eq!(message[12..], *b"secret\0\0");
    assert_eq!(password("much too long"), *b"much too");
}

#[test]
fn v2_interval_is_written_in_whole_seconds() {
    let message = v2().message(source4(), Ipv4Checksum::default()).unwrap();
    assert_eq!(message[5], 2);
    for refused in [0, 50, 250, 25_600] {
        let adv = Advertisement { advertise_interval_cs: refused, ..v2() };
        assert_eq!(adv.message(source4(), Ipv4Checksum::default()), Err(Unsendable::Interval(refused)));
    }
}

#[test]
fn v3_interval_is_1_to_4095_centiseconds() {
    for (interval, sent) in [(0, false), (1, true), (4095, true), (4096, false)] {
        let adv = Advertisement { advertise_interval_cs: interval, ..v3() };
        let message = adv.message(source4(), Ipv4Checksum::default());
        assert_eq!(message.is_ok(), sent, "{interval}");
    }
}

#[test]
fn reserved_bits_are_sent_as_zero() {
    let adv = Advertisement { advertise_interval_cs: 4095, ..v3() };
    let message = adv.message(source4(), Ipv4Checksum::default()).unwrap();
    assert_eq!(message[4], 0x0f);
}

#[test]
fn what_cannot_be_written_is_refused_with_the_reason() {
    let with = |addresses| Advertisement { addresses, ..v3() };
    let global6: IpAddr = "2001:db8::1".parse().unwrap();
    let send = |adv: Advertisement, source| adv.message(source, Ipv4Checksum::default());
    assert_eq!(send(with(vec![]), source4()), Err(Unsendable::NoAddress));
    assert_eq!(send(with(vec![source4(); 256]), source4()), Err(Unsendable::TooManyAddresses(256)));
    assert_eq!(send(with(vec![source4(), source6()]), source4()), Err(Unsendable::MixedFamilies));
    assert_eq!(send(with(vec![global6]), source6()), Err(Unsendable::FirstNotLinkLocal));
    let v2_ipv6 = Advertisement { version: Version::V2, ..v3_ipv6() };
    assert_eq!(send(v2_ipv6, source6()), Err(Unsendable::MixedFamilies));
}

// What is refused.

#[test]
fn ttl_other_than_255_is_discarded() {
    for adv in every_kind() {
        let carrier = Carrier { hop_limit: 254, ..carrier(&adv) };
        assert_eq!(parse_message(carrier, &message(&adv), &expect(&adv)), Err(Discard::TtlNot255));
    }
}

#[test]
fn another_version_is_discarded() {
    let v2_frame = emit(&v2());
    assert_eq!(parse_frame(&v2_frame, &expect(&v3())), Err(Discard::Version));
    let v3_frame = emit(&v3());
    assert_eq!(parse_frame(&v3_frame, &expect(&v2())), Err(Discard::Version));
    // Neither 1 nor 4 exists for us, even with a right checksum.
    for version in [0x11, 0x41] {
        assert_eq!(changed(&v3(), |m| m[0] = version), Err(Discard::Version));
    }
}

#[test]
fn another_type_is_discarded() {
    for adv in every_kind() {
        assert_eq!(changed(&adv, |m| m[0] = m[0] & 0xf0 | 2), Err(Discard::Type));
        assert_eq!(changed(&adv, |m| m[0] &= 0xf0), Err(Discard::Type));
    }
}

#[test]
fn packet_shorter_than_its_count_says_is_discarded() {
    for adv in every_kind() {
        let whole = message(&adv);
        for cut in 0..whole.len() {
            assert_eq!(
                parse_message(carrier(&adv), &whole[..cut], &expect(&adv)),
                Err(Discard::Length),
                "{cut} of {}",
                whole.len()
            );
        }
        assert_eq!(changed(&adv, |m| m[3] += 1), Err(Discard::Length));
    }
}

#[test]
fn packet_longer_than_its_count_says_is_discarded() {
    for adv in every_kind() {
        let mut longer = message(&adv);
        longer.extend([0, 0]);
        assert_eq!(parse_message(carrier(&adv), &longer, &expect(&adv)), Err(Discard::Length));
    }
}

#[test]
fn ethernet_padding_is_tolerated() {
    for adv in every_kind() {
        let mut frame = emit(&adv);
        frame.resize(120, 0xa5);
        let received = parse_frame(&frame, &expect(&adv)).unwrap();
        assert_eq!(received.advertisement, adv);
    }
}

#[test]
fn both_v3_ipv4_checksums_are_accepted_and_the_old_one_is_remarked() {
    for (form, old) in [(Ipv4Checksum::MessageOnly, false), (Ipv4Checksum::PseudoHeader, true)] {
        let frame = ethernet_frame(&v3(), MAC, source4(), form).unwrap();
        let received = parse_frame(&frame, &expect(&v3())).unwrap();
        assert_eq!(received.remarks.old_checksum, old);
    }
}

#[test]
fn wrong_checksum_is_always_discarded() {
    for adv in every_kind() {
        for form in [Ipv4Checksum::MessageOnly, Ipv4Checksum::PseudoHeader] {
            let mut wrong = adv.message(carrier(&adv).source, form).unwrap();
            wrong[7] ^= 1;
            assert_eq!(parse_message(carrier(&adv), &wrong, &expect(&adv)), Err(Discard::Checksum));
        }
    }
}

#[test]
fn v2_does_not_accept_a_pseudo_header_sum() {
    let mut wrong = message(&v2());
    wrong[6..8].fill(0);
    let sum = pseudo_header(source4(), IPV4_GROUP.into(), PROTOCOL, wrong.len()).add(&wrong).finish();
    wrong[6..8].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(parse_message(carrier(&v2()), &wrong, &expect(&v2())), Err(Discard::Checksum));
}

#[test]
fn unknown_vrid_is_discarded() {
    for adv in every_kind() {
        assert_eq!(changed(&adv, |m| m[1] = 144), Err(Discard::UnknownVrid));
        assert_eq!(changed(&adv, |m| m[1] = 0), Err(Discard::UnknownVrid));
    }
}

#[test]
fn local_owner_remarks_but_does_not_discard() {
    let adv = v3();
    let owner = Expectation { owner: true, ..expect(&adv) };
    let received = parse_frame(&emit(&adv), &owner).unwrap();
    assert!(received.remarks.local_owner);
}

#[test]
fn count_zero_is_discarded() {
    for adv in every_kind() {
        assert_eq!(changed(&adv, |m| m[3] = 0), Err(Discard::CountZero));
    }
}

#[test]
fn interval_zero_is_discarded() {
    for adv in every_kind() {
        // The upper byte of version 3's 200 centiseconds is 0 anyway.
        assert_eq!(changed(&adv, |m| m[5] = 0), Err(Discard::IntervalZero));
    }
    // The reserved bits before it make it no more than 0.
    for adv in [v3(), v3_ipv6()] {
        let hidden = |m: &mut Vec<u8>| (m[4], m[5]) = (0xf0, 0);
        assert_eq!(changed(&adv, hidden), Err(Discard::IntervalZero));
    }
}

#[test]
fn first_ipv6_address_must_be_link_local() {
    let adv = v3_ipv6();
    let expect = Expectation { accept_other_addresses: true, ..expect(&adv) };
    let mut swapped = message(&adv);
    swapped[8..40].rotate_left(16);
    assert_eq!(parse_message(carrier(&adv), &swapped, &expect), Err(Discard::FirstNotLinkLocal));
}

#[test]
fn address_family_is_that_of_the_carrier() {
    // A router for IPv4 does not hear one for IPv6 with the same VRID, and the other way round.
    assert_eq!(parse_frame(&emit(&v3_ipv6()), &expect(&v3())), Err(Discard::Family));
    assert_eq!(parse_frame(&emit(&v3()), &expect(&v3_ipv6())), Err(Discard::Family));
    // Version 2 over IPv6 does not exist.
    let ipv6 = v3_ipv6();
    let expect = Expectation { version: Version::V2, ..expect(&ipv6) };
    let mut message = message(&v2());
    message.extend([0; 12]);
    assert_eq!(parse_message(carrier(&v3_ipv6()), &message, &expect), Err(Discard::Family));
}

#[test]
fn reserved_bits_are_ignored() {
    let received = changed(&v3(), |m| m[4] |= 0xf0).unwrap();
    assert_eq!(received.advertisement, v3());
}

#[test]
fn v3_interval_mismatch_is_accepted_and_remarked() {
    let adv = v3();
    let expect = Expectation { advertise_interval_cs: 100, ..expect(&adv) };
    let received = parse_frame(&emit(&v3()), &expect).unwrap();
    assert_eq!(received.advertisement.advertise_interval_cs, 200);
    assert!(received.remarks.interval_differs);
}

#[test]
fn v3_address_list_mismatch_is_accepted_and_remarked() {
    let other = [IpAddr::V4(Ipv4Addr::new(169, 254, 0, 144))];
    let expect = Expectation { addresses: &other, ..expect(&v3()) };
    let received = parse_frame(&emit(&v3()), &expect).unwrap();
    assert!(received.remarks.addresses_differ);
    let strict = Expectation { accept_other_addresses: false, ..expect };
    assert_eq!(parse_frame(&emit(&v3()), &strict), Err(Discard::AddressList));
}

#[test]
fn order_of_the_addresses_does_not_matter() {
    let list: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap()).into();
    let reversed: Vec<IpAddr> = list.iter().rev().copied().collect();
    let adv = Advertisement { addresses: list, ..v2() };
    let expect = Expectation { addresses: &reversed, ..expect(&adv) };
    let received = parse_frame(&emit(&adv), &expect).unwrap();
    assert!(!received.remarks.addresses_differ);
}

#[test]
fn v2_address_list_mismatch_is_discarded_unless_the_owner_sent_it() {
    let other = [IpAddr::V4(Ipv4Addr::new(169, 254, 0, 144))];
    let expect = Expectation { addresses: &other, ..expect(&v2()) };
    assert_eq!(parse_frame(&emit(&v2()), &expect), Err(Discard::AddressList));
    let owner = Advertisement { priority: 255, ..v2() };
    let received = parse_frame(&emit(&owner), &expect).unwrap();
    assert!(received.remarks.addresses_differ);
    let lenient = Expectation { accept_other_addresses: true, ..expect };
    assert!(parse_frame(&emit(&v2()), &lenient).is_ok());
}

#[test]
fn v2_authentication_type_mismatch_is_discarded() {
    let with = v2_with_password();
    assert_eq!(parse_frame(&emit(&v2()), &expect(&with)), Err(Discard::AuthType));
    assert_eq!(parse_frame(&emit(&with), &expect(&v2())), Err(Discard::AuthType));
    // Type 2, the authentication header, is nothing we speak.
    assert_eq!(changed(&with, |m| m[4] = 2), Err(Discard::AuthType));
}

#[test]
fn v2_password_mismatch_is_discarded() {
    let with = v2_with_password();
    for other in ["Secret", "secre", "secret1", ""] {
        let expect = Expectation { password: Some(password(other)), ..expect(&with) };
        assert_eq!(parse_frame(&emit(&with), &expect), Err(Discard::Password));
    }
}

#[test]
fn v2_authentication_data_of_type_0_is_ignored() {
    let received = changed(&v2(), |m| m[12] = 1).unwrap();
    assert_eq!(received.advertisement, v2());
}

#[test]
fn v2_interval_mismatch_is_discarded() {
    let adv = v2();
    let expect = Expectation { advertise_interval_cs: 100, ..expect(&adv) };
    assert_eq!(parse_frame(&emit(&v2()), &expect), Err(Discard::Interval));
}

#[test]
fn own_packet_that_comes_back_is_discarded() {
    for adv in every_kind() {
        let source = carrier(&adv).source;
        let expect = Expectation { own_address: source, ..expect(&adv) };
        assert_eq!(parse_frame(&emit(&adv), &expect), Err(Discard::OwnAddress));
    }
}

#[test]
fn impossible_senders_and_other_groups_are_discarded() {
    let adv = v3();
    for (source, destination, reason) in [
        ("0.0.0.0", "224.0.0.18", Discard::Source),
        ("224.0.0.18", "224.0.0.18", Discard::Source),
        ("255.255.255.255", "224.0.0.18", Discard::Source),
        ("127.0.0.1", "224.0.0.18", Discard::Source),
        ("2001:db8::9", "ff02::12", Discard::Source),
        ("169.254.192.10", "169.254.192.11", Discard::Destination),
        ("169.254.192.10", "224.0.0.1", Discard::Destination),
        ("fe80::9", "fe80::8", Discard::Destination),
    ] {
        let carrier =
            Carrier { source: source.parse().unwrap(), destination: destination.parse().unwrap(), hop_limit: 255 };
        let parsed = parse_message(carrier, &message(&adv), &expect(&adv));
        assert_eq!(parsed, Err(reason), "{source} > {destination}");
    }
}

#[test]
fn broken_ip_headers_are_discarded() {
    let good = emit(&v2());
    let parse = |frame: &[u8]| parse_frame(frame, &expect(&v2()));
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        parse(&frame)
    };
    assert_eq!(with(&|f| f[12] = 0x86), Err(Discard::NotVrrp));
    assert_eq!(with(&|f| f[23] = 17), Err(Discard::NotVrrp));
    assert_eq!(with(&|f| f[14] = 0x65), Err(Discard::Truncated));
    assert_eq!(with(&|f| f[14] = 0x44), Err(Discard::Truncated));
    assert_eq!(with(&|f| f[17] = 10), Err(Discard::Truncated));
    assert_eq!(with(&|f| f[17] += 1), Err(Discard::Truncated));
    assert_eq!(with(&|f| f[24] ^= 1), Err(Discard::HeaderChecksum));
    for cut in 0..good.len() {
        assert_eq!(parse(&good[..cut]), Err(Discard::Truncated), "{cut}");
    }
}

#[test]
fn fragments_are_discarded_and_dont_fragment_is_not_one() {
    for (flags, result) in [(0x20, Err(Discard::Fragment)), (0x40, Ok(v2()))] {
        let mut frame = emit(&v2());
        frame[20] = flags;
        fix_ipv4_header(&mut frame, 20);
        let parsed = parse_frame(&frame, &expect(&v2())).map(|r| r.advertisement);
        assert_eq!(parsed, result);
    }
}

#[test]
fn ipv4_options_are_skipped() {
    let mut frame = emit(&v2());
    // A router alert (RFC 2113), which changes header and total length.
    frame.splice(34..34, [0x94, 0x04, 0x00, 0x00]);
    frame[14] = 0x46;
    frame[17] += 4;
    fix_ipv4_header(&mut frame, 24);
    let received = parse_frame(&frame, &expect(&v2())).unwrap();
    assert_eq!(received.advertisement, v2());
}

#[test]
fn unicast_is_believed_from_listed_peers_alone() {
    for adv in every_kind() {
        let expect = expect(&adv);
        let (source, own) = (carrier(&adv).source, expect.own_address);
        let message = adv.message_to(source, own, Ipv4Checksum::PseudoHeader).unwrap();
        let to_us = Carrier { source, destination: own, hop_limit: 3 };
        let peers = BTreeSet::from([source]);
        let received = parse_unicast_message(to_us, &message, &expect, &peers).unwrap();
        assert_eq!(received.advertisement, adv);
        assert_eq!(parse_unicast_message(to_us, &message, &expect, &BTreeSet::new()), Err(Discard::Source));
        // What went to the group is for those who are in it.
        let to_group = Carrier { destination: group(source), ..to_us };
        assert_eq!(parse_unicast_message(to_group, &message, &expect, &peers), Err(Discard::Destination));
        assert!(parse_message(to_us, &message, &expect).is_err());
    }
}

#[test]
fn a_stranger_is_seen_whatever_its_password_and_interval() {
    let stranger = Advertisement { vrid: Vrid::new(7).unwrap(), ..v2_with_password() };
    assert_eq!(
        peek(&emit(&stranger)),
        Ok(Sighting { source: source4(), version: Version::V2, vrid: Vrid::new(7).unwrap(), priority: 50 })
    );
    assert_eq!(peek(&announce::gratuitous_arp(MAC, IPV4_GROUP)), Err(Discard::NotVrrp));
}

#[test]
fn every_discard_reason_has_a_counter_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = Discard::ALL.iter().map(|d| d.name()).collect();
    assert_eq!(names.len(), Discard::ALL.len());
}

#[test]
fn a_password_is_never_printed() {
    let adv = v2_with_password();
    let printed = format!("{adv:?} {:?}", expect(&adv));
    assert!(!printed.contains("secret") && !printed.contains("115"), "{printed}");
    assert!(printed.contains("<hidden>"));
}

// Anything at all.

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for adv in every_kind() {
            let _ = parse_frame(&bytes, &expect(&adv));
            let _ = parse_message(carrier(&adv), &bytes, &expect(&adv));
        }
        let _ = peek(&bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_a_right_start_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        count in any::<u8>(),
    ) {
        for adv in every_kind() {
            let mut message = message(&adv);
            message.truncate(8);
            message[3] = count;
            message.extend(&bytes);
            let _ = parse_message(carrier(&adv), &message, &expect(&adv));
        }
    }

    #[test]
    fn what_is_emitted_is_parsed_back(adv in any_advertisement(), old in any::<bool>()) {
        let form = if old { Ipv4Checksum::PseudoHeader } else { Ipv4Checksum::MessageOnly };
        let frame = ethernet_frame(&adv, MAC, carrier(&adv).source, form).unwrap();
        let received = parse_frame(&frame, &expect(&adv)).unwrap();
        prop_assert_eq!(received.advertisement, adv);
    }

    #[test]
    fn a_flipped_bit_is_discarded_or_means_the_same(adv in any_advertisement(), bit in any::<prop::sample::Index>()) {
        let mut frame = emit(&adv);
        let bit = bit.index(frame.len() * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
        // The MAC addresses are the network card's business.
        if let Ok(received) = parse_frame(&frame, &expect(&adv)) {
            prop_assert_eq!(received.advertisement, adv);
            prop_assert_eq!(received.source, carrier(&adv_of(&frame)).source);
        }
    }
}

fn adv_of(frame: &[u8]) -> Advertisement {
    if frame[12] == 0x86 { v3_ipv6() } else { v3() }
}

fn any_advertisement() -> impl Strategy<Value = Advertisement> {
    let v2 = (any::<(u8, Option<[u8; 8]>)>(), 1u16..=255, proptest::collection::vec(any::<[u8; 4]>(), 1..40)).prop_map(
        |((priority, password), seconds, list)| Advertisement {
            version: Version::V2,
            priority,
            advertise_interval_cs: seconds * 100,
            addresses: list.into_iter().map(IpAddr::from).collect(),
            password,
            ..v2()
        },
    );
    let v3 = (any::<u8>(), 1u16..=4095, proptest::collection::vec(any::<[u8; 4]>(), 1..40)).prop_map(
        |(priority, interval, list)| Advertisement {
            priority,
            advertise_interval_cs: interval,
            addresses: list.into_iter().map(IpAddr::from).collect(),
            ..v3()
        },
    );
    let v3_ipv6 = (any::<u8>(), 1u16..=4095, proptest::collection::vec(any::<[u8; 16]>(), 0..20)).prop_map(
        |(priority, interval, list)| Advertisement {
            priority,
            advertise_interval_cs: interval,
            addresses: std::iter::once("fe80::1".parse().unwrap()).chain(list.into_iter().map(IpAddr::from)).collect(),
            ..v3_ipv6()
        },
    );
    (any::<[u8; 1]>(), prop_oneof![v2, v3, v3_ipv6])
        .prop_map(|([vrid], adv)| Advertisement { vrid: Vrid::new(vrid.max(1)).unwrap(), ..adv })
}

// Helpers.

fn v2() -> Advertisement {
    Advertisement {
        version: Version::V2,
        vrid: Vrid::new(143).unwrap(),
        priority: 50,
        advertise_interval_cs: 200,
        addresses: vec![Ipv4Addr::new(169, 254, 0, 143).into()],
        password: None,
    }
}

fn v2_with_password() -> Advertisement {
    Advertisement { password: Some(password("secret")), ..v2() }
}

fn v3() -> Advertisement {
    Advertisement { version: Version::V3, ..v2() }
}

fn v3_ipv6() -> Advertisement {
    Advertisement { addresses: ["fe80::a9fe:8f", "2001:db8::1"].map(|address| address.parse().unwrap()).into(), ..v3() }
}

fn every_kind() -> [Advertisement; 4] {
    [v2(), v2_with_password(), v3(), v3_ipv6()]
}

fn source4() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(169, 254, 192, 10))
}

fn source6() -> IpAddr {
    "fe80::f816:3eff:fe0a:1".parse().unwrap()
}

fn carrier(adv: &Advertisement) -> Carrier {
    let source = if adv.addresses[0].is_ipv4() { source4() } else { source6() };
    Carrier { source, destination: group(source), hop_limit: 255 }
}

/// The expectation of a router configured like the sender of `adv`.
fn expect(adv: &Advertisement) -> Expectation<'_> {
    let own_address = if adv.addresses[0].is_ipv4() {
        IpAddr::V4(Ipv4Addr::new(169, 254, 192, 11))
    } else {
        "fe80::11".parse().unwrap()
    };
    Expectation {
        version: adv.version,
        vrid: adv.vrid,
        advertise_interval_cs: adv.advertise_interval_cs,
        password: adv.password,
        addresses: &adv.addresses,
        own_address,
        owner: false,
        accept_other_addresses: adv.version == Version::V3,
    }
}

fn message(adv: &Advertisement) -> Vec<u8> {
    adv.message(carrier(adv).source, Ipv4Checksum::default()).unwrap()
}

fn emit(adv: &Advertisement) -> Vec<u8> {
    ethernet_frame(adv, MAC, carrier(adv).source, Ipv4Checksum::default()).unwrap()
}

/// Parses `adv` after a change to its message, with a checksum that fits the change.
fn changed(adv: &Advertisement, change: impl Fn(&mut Vec<u8>)) -> Result<Received, Discard> {
    let mut message = message(adv);
    change(&mut message);
    message[6..8].fill(0);
    let carrier = carrier(adv);
    let start = match carrier.source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => pseudo_header(carrier.source, carrier.destination, PROTOCOL, message.len()),
    };
    let sum = start.add(&message).finish();
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    parse_message(carrier, &message, &expect(adv))
}

fn fix_ipv4_header(frame: &mut [u8], header_len: usize) {
    frame[24..26].fill(0);
    let sum = Sum::default().add(&frame[14..14 + header_len]).finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// The IPv4 identification counts packets, and the header checksum with it.
fn without_identification(mut frame: Vec<u8>) -> Vec<u8> {
    frame[18..20].fill(0);
    fix_ipv4_header(&mut frame, 20);
    frame
}

/// The kernel chose keepalived's flow label; ours is 0.
fn without_flow_label(mut frame: Vec<u8>) -> Vec<u8> {
    frame[15] &= 0xf0;
    frame[16..18].fill(0);
    frame
}

/// A section of the captured frames.
fn capture(name: &str) -> Vec<u8> {
    let all = include_str!("../../tests/captures/keepalived-2.2.7.hex");
    let digits: String = all
        .lines()
        .filter(|line| !line.starts_with('#'))
        .skip_while(|line| !line.starts_with(&format!("[{name}]")))
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .flat_map(|line| line.chars().filter(|c| !c.is_whitespace()))
        .collect();
    assert!(!digits.is_empty(), "no capture named {name}");
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
