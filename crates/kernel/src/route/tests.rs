//! What this kernel's lists look like, captured (kernel 6.18), with the commands that made the objects.
//!
//! Of links, attributes that nobody reads here (statistics, queue lengths, addresses' defaults) were cut out.

use evergate_dataplane::state::{BridgePort, FdbTable, Rule};
use evergate_model::Mac;

use super::address::RawAddress;
use super::link::RawVxlan;
use super::neighbour::{RawFdb, RawNeighbour};
use super::routes::RawRoute;
use super::{address, link, neighbour, routes, rule};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter_map(|c| char::from(c).to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn mac(last: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, 0, last])
}

/// `ip link add name vxlan-7 mtu 1450 address fa:16:3e:00:00:63 type vxlan id 7 local 192.0.2.1 dstport 4789
/// nolearning; ip link set vxlan-7 alias "evergate: network 7" master brq1 up; bridge link set dev vxlan-7
/// learning off neigh_suppress on`
const VXLAN: &str = "000001000300000043100100000000000c00030076786c616e2d370008000d00e8030000050010000000000005001100 \
     00000000050043000000000008000400aa05000008000a00020000001800140065766572676174653a206e6574776f72 \
     6b20370008002300000000000a000100fa163e00006300000a000200ffffffffffff00003c0212000a00010076786c61 \
     6e000000d0000200080001000700000008000400c0000201050005000000000005001c00000000000500060000000000 \
     05001d000000000008001a00000000000800200000000000050007000000000005000b000000000005000c0000000000 \
     05000d000000000005000e00000000000500190000000000080008002c010000080009000000000006000f0012b50000 \
     0500120001000000050013000000000005001400000000000500150000000000050016000000000005001f0001000000 \
     08000a00000000000c002100f7ffffff000000ff0b000400627269646765000050010500050001000300000006000200 \
     200000000800030064000000050004000000000005000500000000000500060000000000050007000000000005001c00 \
     000000000500080000000000050009000100000005001b000100000005001e000100000005000a000000000005000c00 \
     000000000c000d0080000a74aa999ea40c000e0080000a74aa999ea406000f0001800000060010000000000006001100 \
     0180000006001200010000000500130000000000050014000000000005001d000000000006001f000000000005002000 \
     010000000500230000000000050024000000000005002100000000000500270000000000050028000000000005002b00 \
     000000000c00150000000000000000000c001600c8050000000000000c00170000000000000000000500190001000000 \
     08002500000200000800260000000000080029000000000008002a000000000004003e8004004180";

/// `ip link add tap1 type veth peer name qr-1 netns ns; ip link set tap1 up master brq1`
const TAP1: &str = "0000010004000000031000000000000009000300746170310000000008000d00e8030000050010000300000005001100 \
     00000000050043000000000008000400dc05000008000a000200000008002300010000000a0001000a74aa999ea40000 \
     0a000200ffffffffffff00006c0112000900010076657468000000000b00040062726964676500005001050005000100 \
     000000000600020020000000080003000200000005000400000000000500050000000000050006000000000005000700 \
     0000000005001c00000000000500080001000000050009000100000005001b000100000005001e000100000005000a00 \
     0000000005000c00000000000c000d0080000a74aa999ea40c000e0080000a74aa999ea406000f000280000006001000 \
     00000000060011000280000006001200020000000500130000000000050014000000000005001d000000000006001f00 \
     000000000500200000000000050023000000000005002400000000000500210000000000050027000000000005002800 \
     0000000005002b00000000000c00150000000000000000000c00160000000000000000000c0017000000000000000000 \
     050019000100000008002500000200000800260000000000080029000000000008002a00000000000800250000000000 \
     080005000200000004003e8004004180";

/// `ip address add 2001:db8::1/64 dev brq1 nodad`
const ADDR6: &str = "0a408200020000001400010020010db800000000000000000000000114000600ffffffffffffffff76d5090076d50900 \
     0800080082000000";

/// `ip address add 10.0.0.1/24 dev brq1`
const ADDR4: &str = "0218800002000000080001000a000001080002000a000001090003006272713100000000080008008000000014000600 \
     ffffffffffffffff76d5090076d50900";

/// `ip route add 192.168.0.0/16 via 10.0.0.9 dev brq1 table 1000 proto static`
const ROUTE: &str = "02100000fc0400010000000008000f00e803000008000100c0a80000080005000a0000090800040002000000";

/// `ip rule add pref 100 from 10.0.0.0/24 iif brq1 lookup 1000`
const RULE: &str = "02001800fc0000010000000008000f00e803000008000e00ffffffff0500150000000000090003006272713100000000 \
     0800060064000000080002000a000000";

/// The kernel's own first rule.
const RULE0: &str = "02000000ff0000010000000008000f00ff00000008000e00ffffffff0500150002000000";

/// `ip neigh add 10.0.0.5 lladdr fa:16:3e:00:00:05 dev brq1 nud permanent`
const NEIGH: &str = "020000000200000080000001080001000a0000050a000200fa163e000005000008000400000000001400030012000000 \
     120000001200000000000000";

/// `bridge fdb add fa:16:3e:00:00:09 dev vxlan-7 master static`
const FDBM: &str = "0700000003000000400000000a000200fa163e0000090000080009000200000008000f00000000001400030000000000 \
     120000001200000000000000";

/// `bridge fdb append fa:16:3e:00:00:09 dev vxlan-7 dst 192.0.2.2 self permanent`
const FDBS: &str = "0700000003000000c00002010a000200fa163e000009000008000100c000020214000300000000001200000012000000 \
     00000000";

/// The VXLAN device's own address, as the bridge lists it.
const FDBL: &str = "0700000003000000800000000a000200fa163e0000630000080009000200000008000f00000000001400030000000000 \
     160000001600000000000000";

#[test]
fn a_vxlan_port_is_read() {
    let link = link::read(&bytes(VXLAN)).unwrap();
    assert_eq!((link.index, link.name.as_str(), link.kind.as_str()), (3, "vxlan-7", "vxlan"));
    assert_eq!(link.vxlan, Some(RawVxlan { vni: 7, local: Some("192.0.2.1".parse().unwrap()), port: 4789 }));
    assert_eq!(link.port, Some(BridgePort { learning: false, neigh_suppress: true, isolated: false }));
    assert_eq!((link.mtu, link.mac, link.master), (Some(1450), Some(mac(0x63)), Some(2)));
    assert_eq!(link.alias.as_deref(), Some("evergate: network 7"));
    assert!(link.up && link.running && !link.is_loopback);
}

#[test]
fn a_veth_end_is_read_with_the_way_to_its_other_end() {
    let link = link::read(&bytes(TAP1)).unwrap();
    assert_eq!((link.name.as_str(), link.kind.as_str()), ("tap1", "veth"));
    assert_eq!((link.peer_index, link.peer_netns), (Some(2), Some(0)));
    // Up, but its other end is not.
    assert!(link.up && !link.running);
    assert_eq!(link.port, Some(BridgePort { learning: true, neigh_suppress: false, isolated: false }));
}

#[test]
fn a_bridges_note_about_a_port_is_not_a_link() {
    let mut note = bytes(TAP1);
    note[0] = libc::AF_BRIDGE as u8;
    assert_eq!(link::read(&note), None);
}

#[test]
fn addresses_are_read() {
    let read = |hex| address::read(&bytes(hex)).unwrap();
    assert_eq!(read(ADDR6), RawAddress { index: 2, net: "2001:db8::1/64".parse().unwrap(), is_permanent: true });
    assert_eq!(read(ADDR4), RawAddress { index: 2, net: "10.0.0.1/24".parse().unwrap(), is_permanent: true });
}

#[test]
fn a_static_route_is_read_and_others_are_not() {
    let mut route = bytes(ROUTE);
    let expected = RawRoute {
        table: 1000,
        destination: "192.168.0.0/16".parse().unwrap(),
        via: Some("10.0.0.9".parse().unwrap()),
        index: Some(2),
    };
    assert_eq!(routes::read(&route), Some(expected));
    route[5] = libc::RTPROT_BOOT;
    assert_eq!(routes::read(&route), None);
}

#[test]
fn a_rule_is_read_and_the_kernels_own_is_not() {
    let expected = Rule {
        priority: 100,
        from: Some("10.0.0.0/24".parse().unwrap()),
        to: None,
        iif: Some("brq1".to_owned()),
        table: 1000,
    };
    assert_eq!(rule::read(&bytes(RULE)), Some(expected));
    assert_eq!(rule::read(&bytes(RULE0)), None);
}

#[test]
fn neighbours_and_forwarding_entries_are_read() {
    let expected = RawNeighbour { index: 2, ip: "10.0.0.5".parse().unwrap(), mac: mac(5) };
    assert_eq!(neighbour::read(&bytes(NEIGH)), Some(expected));
    let read = |hex| neighbour::read_fdb(&bytes(hex));
    assert_eq!(read(FDBM), Some(RawFdb { index: 3, mac: mac(9), table: FdbTable::Bridge }));
    let table = FdbTable::Vxlan { dst: "192.0.2.2".parse().unwrap() };
    assert_eq!(read(FDBS), Some(RawFdb { index: 3, mac: mac(9), table }));
    assert_eq!(read(FDBL), None);
}

#[test]
fn what_is_cut_short_is_no_object_and_no_panic() {
    for hex in [VXLAN, TAP1, ADDR6, ADDR4, ROUTE, RULE, NEIGH, FDBM, FDBS] {
        let whole = bytes(hex);
        for length in 0..whole.len() {
            let cut = &whole[..length];
            let _ = (link::read(cut), address::read(cut), routes::read(cut), rule::read(cut));
            let _ = (neighbour::read(cut), neighbour::read_fdb(cut));
        }
    }
}
