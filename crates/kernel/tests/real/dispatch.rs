//! Advertisements with packets: from the tunnel to the copies that they are for, and from the copies to other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use evergate_dataplane::state::Netns;
use evergate_dataplane::{Desired, HostSettings, Op, Plan, View, compile, diff};
use evergate_kernel::Kernel;
use evergate_kernel::rt::{Filter, NetnsFd, PacketSocket};
use evergate_kernel::sys::{self, Namespace};
use evergate_model::host::{HaCopy, Location, Network, NetworkPort, Router, Segment};
use evergate_model::{HostConfig, Mac, NetworkId, PortId, RouterId, names};

use crate::nft::frames;
use crate::sandbox::*;

#[test]
fn an_advertisement_reaches_the_copy_that_it_is_for_and_no_other() {
    let mut kernel = host();
    apply(&mut kernel, &[bridge(&Netns::Host, "brq")]);
    run(
        "ip link add eth0 type veth peer name wire; ip link set eth0 master brq; ip link set eth0 up; ip link set wire up",
    );
    let copies = [7, 9, 250];
    for vrid in copies {
        run(&format!(
            "ip link add tap{vrid} type veth peer name ha{vrid} address {}; ip link set tap{vrid} master brq; \
             ip link set tap{vrid} up; ip link set ha{vrid} up; bridge fdb replace {} dev tap{vrid} master static",
            mac(vrid),
            mac(vrid)
        ));
    }
    let netns = NetnsFd::host().unwrap();
    let mut open = |name: &str, filter| {
        let index = kernel.link_index(&Netns::Host, name).unwrap().unwrap();
        PacketSocket::open(&netns, index, filter).unwrap()
    };
    let wire = open("wire", Filter::SendOnly);
    let ears = copies.map(|vrid| (vrid, open(&format!("ha{vrid}"), Filter::Vrrp { vrid: None })));
    let send = |vrid: u8, group: u8, options: &[u8]| wire.send(&advertisement(vrid, group, options)).unwrap();
    let heard = || {
        let mut frame = [0; 256];
        let mut all = Vec::new();
        for (vrid, ear) in &ears {
            while let Some(length) = ear.recv(&mut frame).unwrap() {
                all.push((*vrid, frame[..length].to_vec()));
            }
        }
        all
    };
    let vrids = |heard: &[(u8, Vec<u8>)]| heard.iter().map(|(vrid, _)| *vrid).collect::<Vec<_>>();
    // A veth hands over what it is given when the sender's system call returns, or in softirq context soon after.
    let after = |count: usize| {
        let mut all = Vec::new();
        wait_for("an advertisement", || {
            all.extend(heard());
            all.len() >= count
        });
        all
    };
    wait_for("the bridge", || run("bridge link show").matches("state forwarding").count() == 4);
    send(9, 18, &[]);
    assert_eq!(vrids(&after(3)), copies, "flooded without the table");
    apply(&mut kernel, &[Op::ReplaceNft { netns: Netns::Host, table: frames() }]);
    send(9, 18, &[]);
    let one = after(1);
    assert_eq!(vrids(&one), [9]);
    let mut expected = advertisement(9, 18, &[]);
    expected[..6].copy_from_slice(&mac(9).0);
    assert_eq!(one[0].1, expected, "as it was sent, but to its copy");
    send(77, 18, &[]);
    assert_eq!(vrids(&after(1)), [7], "a stranger's goes to who looks for strangers");
    // What is not a plain advertisement is flooded, as ever.
    send(9, 18, &[1; 4]);
    assert_eq!(vrids(&after(3)), copies);
    send(9, 5, &[]);
    assert_eq!(vrids(&after(3)), copies);
}

#[test]
fn of_many_copies_on_two_hosts_each_hears_its_own_router_and_no_tap_is_bothered_in_vain() {
    let mut pair = Pair::new();
    pair.all_are_heard();
    // A control that starts anew finds all as it must be.
    pair.hosts.iter_mut().for_each(Host::restart);
    for host in &mut pair.hosts {
        assert!(host.plan().is_empty(), "{}", host.plan());
    }
    // What a copy says is seen on its own device, for whoever looks in its namespace.
    let dump = format!(
        "ip netns exec h0 nsenter --net=/run/h0/{} timeout 30 tcpdump -nn -c 1 -Q out -i {} 'ip proto 112' 2>/dev/null",
        names::qrouter_namespace(router(3)),
        names::ha_device(port(0, 3)),
    );
    let seen = std::thread::spawn(move || run(&dump));
    while !seen.is_finished() {
        pair.hosts[0].say(3);
        std::thread::yield_now();
    }
    assert!(seen.join().unwrap().contains("vrid 3,"));
}

#[test]
fn advertisements_pass_again_after_whatever_happens_to_tunnel_and_taps() {
    let mut pair = Pair::new();
    let made = format!(
        "ip -n h0 link add {TUNNEL} type vxlan id {VNI} local {} dstport 4789 nolearning; \
         ip -n h0 link set {TUNNEL} alias '{}'",
        vtep(0),
        pair.hosts[0].desired.kernel.netns[&Netns::Host].links[TUNNEL].alias.as_ref().unwrap(),
    );
    let gone = format!("ip -n h0 link del {TUNNEL}");
    let tap = names::tap(port(0, 2));
    for change in [
        gone.clone(),
        // Somebody was faster than control.
        format!("{gone}; {made}"),
        format!("ip -n h0 link del {tap}"),
        format!("{gone}; ip -n h0 link del {tap}"),
        // One of the same number is in the way until it is removed as a leftover: the first round fails half-way.
        format!("ip -n h0 link set {TUNNEL} down; ip -n h0 link set {TUNNEL} name elsewhere"),
        "ip netns exec h0 nft delete chain netdev evergate to_vxlan_102".to_owned(),
        "ip netns exec h0 nft delete table netdev evergate".to_owned(),
    ] {
        run(&change);
        pair.hosts[0].converge();
        pair.listen();
        pair.all_are_heard();
    }
    // A host that is told of another tunnel address makes its tunnel anew itself.
    pair.hosts[0].desired = desired(0, vtep(7));
    run("ip -n h0 address add 192.0.2.8/24 dev ul");
    pair.hosts[0].converge();
    pair.all_are_heard();
}

const COPIES: u8 = 8;
const VNI: u32 = 102;
const TUNNEL: &str = "vxlan-102";
const HA: NetworkId = NetworkId::from_u128(0xa3 << 120);

fn vtep(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1 + host as u8))
}

fn router(vrid: u8) -> RouterId {
    RouterId::from_u128((0xb0 + u128::from(vrid)) << 120)
}

/// The port of a router's copy on a host.
fn port(host: usize, vrid: u8) -> PortId {
    PortId::from_u128((0x10 * (1 + host as u128) + u128::from(vrid)) << 120)
}

fn copy_mac(host: usize, vrid: u8) -> Mac {
    mac(0x10 * (1 + host as u8) + vrid)
}

fn copy_address(host: usize, vrid: u8) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 192 + host as u8, vrid)
}

/// What the server tells a host: routers that have a copy on each of the two, and nothing else.
fn config(host: usize) -> HostConfig {
    let ports = [0, 1].into_iter().flat_map(|at| (1..=COPIES).map(move |vrid| (at, vrid))).map(|(at, vrid)| {
        let own = NetworkPort {
            mac: copy_mac(at, vrid),
            ips: vec![copy_address(at, vrid).into()],
            location: if at == host { Location::Local } else { Location::Remote { vtep: vtep(at) } },
            admin_state_up: true,
            allowed_addresses: Vec::new(),
        };
        (port(at, vrid), own)
    });
    let network = Network {
        id: HA,
        segment: Segment::Vxlan { vni: VNI },
        mtu: 1450,
        ports: ports.collect(),
        peers: [vtep(1 - host)].into(),
        vrids: BTreeSet::new(),
    };
    let routers = (1..=COPIES).map(|vrid| {
        let copy = HaCopy {
            port_id: port(host, vrid),
            network_id: HA,
            mac: copy_mac(host, vrid),
            address: format!("{}/18", copy_address(host, vrid)).parse().unwrap(),
            vrid,
            virtual_address: format!("169.254.0.{vrid}/24").parse().unwrap(),
            priority: 50,
            peers: BTreeMap::new(),
            epoch: 0,
            inherits: None,
            wish: None,
        };
        let plain = Router {
            id: router(vrid),
            project_id: "demo".to_owned(),
            admin_state_up: true,
            ha: Some(copy),
            gateway: None,
            interfaces: BTreeMap::new(),
            routes: BTreeSet::new(),
            floating_ips: BTreeMap::new(),
            port_forwardings: BTreeMap::new(),
            distributed: None,
        };
        (router(vrid), plain)
    });
    HostConfig { revision: 1, networks: [(HA, network)].into(), routers: routers.collect(), ..HostConfig::default() }
}

fn desired(host: usize, local_ip: IpAddr) -> Desired {
    let settings = HostSettings { local_ip: Some(local_ip), ..HostSettings::default() };
    let desired = compile(&config(host), &settings, &View::default());
    assert_eq!(desired.problems, []);
    desired
}

/// A host, in a namespace of its own.
struct Host {
    number: usize,
    kernel: Kernel,
    desired: Desired,
    /// Each copy's device, by virtual router identifier.
    sockets: BTreeMap<u8, PacketSocket>,
}

/// Where a host has its routers' namespaces.
fn netns_path(host: usize) -> PathBuf {
    PathBuf::from(format!("/run/h{host}"))
}

fn open_kernel(host: usize) -> Kernel {
    let inside = NetnsFd::open(&Path::new(NETNS_PATH).join(format!("h{host}"))).unwrap();
    inside.run(|| Kernel::open(&netns_path(host)).unwrap()).unwrap()
}

impl Host {
    fn new(number: usize) -> Self {
        let kernel = open_kernel(number);
        Self { number, kernel, desired: desired(number, vtep(number)), sockets: BTreeMap::new() }
    }

    fn restart(&mut self) {
        self.kernel = open_kernel(self.number);
    }

    fn plan(&mut self) -> Plan {
        let (plan, refusals) = diff(&self.desired.kernel, &self.kernel.observe(&self.desired.kernel).unwrap());
        assert_eq!(refusals, []);
        plan
    }

    /// Does what is to be done, and once more what could not be done before something else had gone.
    fn converge(&mut self) {
        let ops = self.plan().into_ops();
        if self.kernel.apply(&ops).iter().any(Result::is_err) {
            let ops = self.plan().into_ops();
            apply(&mut self.kernel, &ops);
        }
        let left = self.plan();
        assert!(left.is_empty(), "left to do on host {}:\n{left}", self.number);
    }

    /// Opens a socket where each copy's is, and counts what the bridge hands to its ports other than the tunnel.
    fn listen(&mut self) {
        let number = self.number;
        for vrid in 1..=COPIES {
            let name = names::qrouter_namespace(router(vrid));
            let netns = NetnsFd::open(&netns_path(number).join(&name)).unwrap();
            let index = self.kernel.link_index(&Netns::Named(name), &names::ha_device(port(number, vrid)));
            let socket = PacketSocket::open(&netns, index.unwrap().unwrap(), Filter::Vrrp { vrid: None }).unwrap();
            self.sockets.insert(vrid, socket);
        }
        let mut taps: Vec<String> = (1..=COPIES).map(|vrid| names::tap(port(number, vrid))).collect();
        taps.push("guest".to_owned());
        run(&format!(
            "ip netns exec h{number} nft 'add table netdev count; delete table netdev count; add table netdev count; \
             add counter netdev count handed; \
             add chain netdev count out {{ type filter hook egress devices = {{ {} }} priority 0; }}; \
             add rule netdev count out ip protocol 112 counter name handed'",
            taps.join(", ")
        ));
        wait_for("the bridge", || {
            let ports = run(&format!("ip netns exec h{number} bridge link show"));
            ports.matches("state forwarding").count() == taps.len() + 1
        });
    }

    fn say(&self, vrid: u8) {
        self.sockets[&vrid].send(&advertisement(vrid, 18, &[])).unwrap();
    }

    /// Who has heard whose identifier since the last time.
    fn heard(&self) -> Vec<(u8, u8)> {
        let mut frame = [0; 256];
        let mut all = Vec::new();
        for (copy, socket) in &self.sockets {
            while let Some(length) = socket.recv(&mut frame).unwrap() {
                // Behind the headers of Ethernet and of IPv4.
                all.push((*copy, frame[..length][14 + 21]));
            }
        }
        all
    }

    /// Advertisements that the bridge has handed on here.
    fn handed(&self) -> usize {
        let text = run(&format!("ip netns exec h{} nft list counter netdev count handed", self.number));
        text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
    }
}

/// Two hosts on an underlay, in network and mount namespaces of this thread, with as many copies each as are led.
struct Pair {
    hosts: [Host; 2],
}

impl Pair {
    fn new() -> Self {
        sys::unshare(&[Namespace::Net, Namespace::Mount]).expect("tests of this crate must run as root");
        sys::mount_make_private("/".as_ref()).unwrap();
        sys::mount_tmpfs("/run".as_ref()).unwrap();
        run("ip netns add h0; ip netns add h1; ip link add ul netns h0 type veth peer name ul netns h1");
        for host in [0, 1] {
            run(&format!(
                "ip netns exec h{host} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; \
                 ip -n h{host} link set lo up; ip -n h{host} link set ul up; \
                 ip -n h{host} address add {}/24 dev ul; \
                 ip netns exec h{host} sysctl -qe -w net.bridge.bridge-nf-call-iptables=0",
                vtep(host)
            ));
        }
        let mut pair = Self { hosts: [0, 1].map(Host::new) };
        pair.hosts.iter_mut().for_each(Host::converge);
        // Who is plugged in by hand is not isolated.
        for host in [0, 1] {
            run(&format!(
                "ip -n h{host} link add guest type veth peer name inside; ip -n h{host} link set inside up; \
                 ip -n h{host} link set guest master {} up",
                names::bridge(HA)
            ));
        }
        pair.listen();
        pair
    }

    fn listen(&mut self) {
        self.hosts.iter_mut().for_each(Host::listen);
    }

    /// Each copy says something, and is heard by the other copy of its router alone.
    fn all_are_heard(&mut self) {
        let own: Vec<(u8, u8)> = (1..=COPIES).map(|vrid| (vrid, vrid)).collect();
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (&self.hosts[from], &self.hosts[to]);
            let before = (from.handed(), to.handed());
            (1..=COPIES).for_each(|vrid| from.say(vrid));
            let mut all = Vec::new();
            wait_for("every advertisement", || {
                all.extend(to.heard());
                all.len() >= own.len()
            });
            all.sort_unstable();
            assert_eq!(all, own, "heard from host {} on host {}", from.number, to.number);
            assert_eq!(from.heard(), [], "copies of host {} hear each other", from.number);
            let after = (before.0, before.1 + own.len());
            assert_eq!((from.handed(), to.handed()), after, "from host {} to host {}", from.number, to.number);
        }
    }
}

/// Ethernet, IPv4, VRRP version 2: what matters of the message is where it goes.
fn advertisement(vrid: u8, group: u8, options: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() as u8 / 4;
    let mut ip = vec![0x40 | words, 0xc0, 0, words * 4 + 8, 0, 0, 0, 0, 255, 112, 0, 0];
    ip.extend([169, 254, 192, 9, 224, 0, 0, group]);
    ip.extend(options);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let ethernet = [0x01, 0x00, 0x5e, 0, 0, group, 2, 0, 0, 0, 0, 1, 8, 0];
    [&ethernet[..], &ip, &[0x21, vrid, 50, 0, 0, 1, 0, 0]].concat()
}
