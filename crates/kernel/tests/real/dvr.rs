//! A distributed router on three hosts, with packets: two compute hosts with an instance each, one gateway
//! host, and somebody outside. Hosts are namespaces with a kernel object each; what they must hold is compiled
//! from what the server would tell them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use evergate_dataplane::{HostSettings, View, compile, diff};
use evergate_kernel::Kernel;
use evergate_kernel::rt::{Filter, NetnsFd, PacketSocket};
use evergate_kernel::sys::{self, Namespace};
use evergate_model::host::{
    AddressScopes, AgentGateway, AllowedAddress, Distributed, FloatingIp, Gateway, Interface, Location, Network,
    NetworkPort, Router, Segment,
};
use evergate_model::{FloatingIpId, HostConfig, NetworkId, PortId, RouterId, names};

use crate::sandbox::{mac, run, wait_for};

const ROUTER: RouterId = RouterId::from_u128(0xb1 << 120);
const NETS: [NetworkId; 2] = [NetworkId::from_u128(0xa1 << 120), NetworkId::from_u128(0xa2 << 120)];
const EXTERNAL: NetworkId = NetworkId::from_u128(0xa3 << 120);
const GATEWAY_PORT: PortId = PortId::from_u128(0xc0 << 120);
const FLOATING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);

/// Ids that differ in their first characters.
const fn port_id(n: u128) -> PortId {
    PortId::from_u128(n << 120)
}

/// Ports of network `n` (0 or 1), by what they are.
const fn qr(n: usize) -> PortId {
    port_id(0x10 + n as u128)
}

const fn sg(n: usize) -> PortId {
    port_id(0x20 + n as u128)
}

const fn instance(n: usize) -> PortId {
    port_id(0x30 + n as u128)
}

const fn fg(host: usize) -> PortId {
    port_id(0x40 + host as u128)
}

const NO_IPV6: &str = "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";

/// Host 2 is the gateway, hosts 0 and 1 have an instance each: of network 0 and 1.
const GATEWAY: usize = 2;

fn vtep(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1 + host as u8))
}

/// What is different from one test to the other.
#[derive(Clone, Default)]
struct Intent {
    floating_ip: bool,
    /// An address that both instances of network 1 may have; the second is on host 0.
    moving: bool,
    no_fg_address: bool,
    /// Every network has an IPv6 subnet, too.
    ipv6: bool,
}

impl Intent {
    fn config(&self, host: usize) -> HostConfig {
        let there = |at: usize| if at == host { Location::Local } else { Location::Remote { vtep: vtep(at) } };
        let port = |mac, ip: String, location| NetworkPort {
            mac,
            ips: vec![ip.parse().unwrap()],
            location,
            admin_state_up: true,
            allowed_addresses: Vec::new(),
        };
        let ips = |n: usize, last: u8| {
            let mut ips = vec![format!("10.0.{n}.{last}").parse().unwrap()];
            ips.extend(self.ipv6.then(|| format!("2001:db8:{n}::{last}").parse::<IpAddr>().unwrap()));
            ips
        };
        let networks = [0, 1].map(|n| {
            let mut ports = BTreeMap::from([
                (qr(n), port(mac(n as u8), format!("10.0.{n}.1"), Location::Everywhere { router: ROUTER })),
                (sg(n), port(mac(0x20 + n as u8), format!("10.0.{n}.5"), there(GATEWAY))),
                (instance(n), port(mac(0x30 + n as u8), format!("10.0.{n}.9"), there(n))),
            ]);
            for (id, last) in [(qr(n), 1), (sg(n), 5), (instance(n), 9)] {
                ports.get_mut(&id).unwrap().ips = ips(n, last);
            }
            if n == 1 && self.moving {
                let pair = |mac| vec![AllowedAddress { ip: "10.0.1.100/32".parse().unwrap(), mac }];
                ports.get_mut(&instance(1)).unwrap().allowed_addresses = pair(mac(0x31));
                let mut other = port(mac(0x32), "10.0.1.8".to_owned(), there(0));
                other.allowed_addresses = pair(mac(0x32));
                ports.insert(instance(2), other);
            }
            let peers = (0..3).filter(|peer| *peer != host).map(vtep).collect();
            let segment = Segment::Vxlan { vni: 100 + n as u32 };
            (NETS[n], Network { id: NETS[n], segment, mtu: 1450, ports, peers, vrids: BTreeSet::new() })
        });
        let mut external = BTreeMap::from([(GATEWAY_PORT, port(mac(0x50), "203.0.113.10".to_owned(), there(GATEWAY)))]);
        for at in [0, 1] {
            external.insert(fg(at), port(mac(0x40 + at as u8), format!("203.0.113.{}", 20 + at), there(at)));
        }
        let flat = Segment::Flat { physical_network: "provider".to_owned() };
        let external = Network {
            id: EXTERNAL,
            segment: flat,
            mtu: 1500,
            ports: external,
            peers: BTreeSet::new(),
            vrids: BTreeSet::new(),
        };
        HostConfig {
            revision: 1,
            networks: networks.into_iter().chain([(EXTERNAL, external)]).collect(),
            routers: BTreeMap::from([(ROUTER, self.router(host))]),
            ..HostConfig::default()
        }
    }

    fn router(&self, host: usize) -> Router {
        let v6 = |address: String| self.ipv6.then(|| address.parse().unwrap());
        let interface = |n: usize, mac, last| Interface {
            network_id: NETS[n],
            mac,
            addresses: [format!("10.0.{n}.{last}/24").parse().unwrap()]
                .into_iter()
                .chain(v6(format!("2001:db8:{n}::{last}/64")))
                .collect(),
            address_scopes: AddressScopes::default(),
            advertisement: None,
        };
        let mut floating_ips = BTreeMap::new();
        if self.floating_ip && host == 0 {
            let fip = FloatingIp { floating: FLOATING, fixed: Ipv4Addr::new(10, 0, 0, 9), distributed: true };
            floating_ips.insert(FloatingIpId::from_u128(1), fip);
        }
        let addresses = vec![format!("203.0.113.{}/24", 20 + host).parse().unwrap()];
        Router {
            id: ROUTER,
            project_id: "demo".to_owned(),
            admin_state_up: true,
            ha: None,
            gateway: Some(Gateway {
                port_id: GATEWAY_PORT,
                network_id: EXTERNAL,
                mac: mac(0x50),
                addresses: ["203.0.113.10/24".parse().unwrap()]
                    .into_iter()
                    .chain(v6("2001:db8:ff::10/64".to_owned()))
                    .collect(),
                next_hops: ["203.0.113.254"]
                    .into_iter()
                    .chain(self.ipv6.then_some("2001:db8:ff::254"))
                    .map(|hop| hop.parse().unwrap())
                    .collect(),
                onlink_subnets: Vec::new(),
                enable_snat: true,
                address_scopes: AddressScopes::default(),
            }),
            interfaces: [0, 1].map(|n| (qr(n), interface(n, mac(n as u8), 1))).into(),
            routes: BTreeSet::new(),
            floating_ips,
            port_forwardings: BTreeMap::new(),
            distributed: Some(Distributed {
                routes_here: host != GATEWAY,
                translates_here: host == GATEWAY,
                snat_ports: [0, 1].map(|n| (sg(n), interface(n, mac(0x20 + n as u8), 5))).into(),
                agent_gateway: (host != GATEWAY).then(|| AgentGateway {
                    port_id: fg(host),
                    mac: mac(0x40 + host as u8),
                    addresses: if self.no_fg_address { Vec::new() } else { addresses },
                }),
            }),
        }
    }
}

/// Three hosts on an underlay and on an external network, in network and mount namespaces of this thread.
struct Site {
    kernels: Vec<Kernel>,
    taps: [Vec<PortId>; 3],
}

fn netns_path(host: usize) -> PathBuf {
    PathBuf::from(format!("/run/h{host}"))
}

impl Site {
    fn new() -> Self {
        sys::unshare(&[Namespace::Net, Namespace::Mount]).expect("tests of this crate must run as root");
        sys::mount_make_private("/".as_ref()).unwrap();
        sys::mount_tmpfs("/run".as_ref()).unwrap();
        // Nobody speaks IPv6 here, so that what is counted is what was sent.
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; \
             ip link set lo up; ip link add sw-ul type bridge; ip link set sw-ul up; ip link add sw-ex type bridge; \
             ip link set sw-ex up; ip netns add outside; ip link add outside type veth peer name eth0 netns outside; \
             ip link set outside master sw-ex up; ip -n outside link set eth0 up; \
             ip -n outside address add 203.0.113.254/24 dev eth0");
        let kernels = (0..3).map(|host| {
            run(&format!(
                "ip netns add h{host}; ip netns exec h{host} sysctl -qw {no_ipv6}; ip -n h{host} link set lo up; \
                 ip link add ul{host} type veth peer name ul netns h{host}; ip link set ul{host} master sw-ul up; \
                 ip -n h{host} address add {ip}/24 dev ul; ip -n h{host} link set ul up; \
                 ip link add ex{host} type veth peer name ex netns h{host}; ip link set ex{host} master sw-ex up; \
                 ip -n h{host} link add br-ex type bridge; ip -n h{host} link set br-ex up; \
                 ip -n h{host} link set ex master br-ex up; \
                 ip netns exec h{host} sysctl -qe -w net.bridge.bridge-nf-call-iptables=0",
                ip = vtep(host),
                no_ipv6 = NO_IPV6,
            ));
            Self::count(host);
            let host_ns = NetnsFd::open(format!("/run/netns/h{host}").as_ref()).unwrap();
            host_ns.run(|| Kernel::open(&netns_path(host)).unwrap()).unwrap()
        });
        let mut site = Self { kernels: kernels.collect(), taps: Default::default() };
        site.add_instance(0, 0, 9, 0);
        site.add_instance(1, 1, 9, 1);
        site
    }

    /// Instance `n` on a host, on network `net` as 10.0.<net>.<last>.
    fn add_instance(&mut self, n: usize, host: usize, last: u8, net: usize) {
        let (tap, mac) = (names::tap(instance(n)), mac(0x30 + n as u8));
        run(&format!(
            "ip netns add i{n}; ip netns exec i{n} sysctl -qw {NO_IPV6}; ip link add {tap} netns h{host} mtu 1450 type veth \
             peer name eth0 netns i{n} address {mac} mtu 1450; \
             ip -n i{n} link set lo up; ip -n i{n} link set eth0 up; \
             ip -n i{n} address add 10.0.{net}.{last}/24 dev eth0; ip -n i{n} route add default via 10.0.{net}.1"
        ));
        self.taps[host].push(instance(n));
    }

    /// Brings all hosts to what the intent means for them; what was there already is found again.
    fn converge(&mut self, intent: &Intent) {
        for host in 0..3 {
            let mut links: BTreeSet<String> = self.taps[host].iter().map(|port| names::tap(*port)).collect();
            links.insert("br-ex".to_owned());
            let view = View { links, bridges: BTreeSet::from(["br-ex".to_owned()]), has_ipv6: true, ..View::default() };
            let settings = HostSettings {
                local_ip: Some(vtep(host)),
                physical_networks: BTreeMap::from([("provider".to_owned(), "br-ex".to_owned())]),
                ..HostSettings::default()
            };
            let desired = compile(&intent.config(host), &settings, &view);
            assert_eq!(desired.problems, []);
            let kernel = &mut self.kernels[host];
            let (plan, refusals) = diff(&desired.kernel, &kernel.observe(&desired.kernel).unwrap());
            assert_eq!(refusals, []);
            let ops = plan.into_ops();
            for (op, result) in ops.iter().zip(kernel.apply(&ops)) {
                if let Err(error) = result {
                    panic!("{op}: {}", error.full());
                }
            }
            let (again, _) = diff(&desired.kernel, &kernel.observe(&desired.kernel).unwrap());
            assert!(again.is_empty(), "left to do on host {host}:\n{again}");
        }
    }

    /// Starts again, as a restarted control would.
    fn restart(&mut self) {
        for host in 0..3 {
            let host_ns = NetnsFd::open(format!("/run/netns/h{host}").as_ref()).unwrap();
            self.kernels[host] = host_ns.run(|| Kernel::open(&netns_path(host)).unwrap()).unwrap();
        }
    }

    /// Frames of a kind that a host has received in tunnels: what is in them, and nothing of the underlay's own.
    fn received(host: usize, kind: &str) -> u64 {
        let text = run(&format!("ip netns exec h{host} nft list counter netdev count {kind}"));
        text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
    }

    /// Counts, by the type of the inner frame and its protocol, what comes to the tunnel port.
    fn count(host: usize) {
        for line in [
            "add table netdev count",
            "add counter netdev count pings",
            "add counter netdev count questions",
            "add chain netdev count in { type filter hook ingress device ul priority 0; }",
            "add rule netdev count in udp dport 4789 @th,224,16 0x0800 @th,312,8 1 counter name pings",
            "add rule netdev count in udp dport 4789 @th,224,16 0x0806 counter name questions",
        ] {
            run(&format!("ip netns exec h{host} nft '{line}'"));
        }
    }
}

/// Pings until there is an answer.
fn reaches(from: &str, to: &str) {
    wait_for(&format!("an answer from {to} to {from}"), || {
        run(&format!("ip netns exec {from} ping -c1 -W1 {to} >/dev/null && echo yes || true")) == "yes\n"
    });
}

/// Packets that were lost of twenty, sent at once.
fn lost(from: &str, to: &str, more: &str) -> String {
    run(&format!("ip netns exec {from} ping -q -i 0.01 -c20 -W1 {more} {to} || true"))
}

#[test]
fn instances_on_two_hosts_meet_without_a_third() {
    let mut site = Site::new();
    let intent = Intent::default();
    site.converge(&intent);
    reaches("i0", "10.0.0.1");
    reaches("i0", "10.0.1.9");
    let before = [0, 1, 2].map(|host| Site::received(host, "pings"));
    let said = lost("i0", "10.0.1.9", "-s 1400 -M do");
    assert!(said.contains(" 0% packet loss"), "{said}");
    let after = [0, 1, 2].map(|host| Site::received(host, "pings"));
    let grown = [0, 1, 2].map(|host| after[host] - before[host]);
    assert_eq!(grown, [20, 20, 0], "each way once, and no third host has a part in it");

    site.restart();
    site.converge(&intent);
}

#[test]
fn what_has_no_floating_ip_leaves_by_the_gateway_and_comes_back() {
    let mut site = Site::new();
    site.converge(&Intent::default());
    for from in ["i0", "i1"] {
        reaches(from, "203.0.113.254");
    }
    let seen = run("ip -n outside neighbour");
    assert!(seen.contains("203.0.113.10"), "{seen}");
    assert!(!seen.contains("203.0.113.20"), "nothing left by a compute host: {seen}");
    let said = lost("i0", "203.0.113.254", "-s 1400");
    assert!(said.contains(" 0% packet loss"), "{said}");
}

#[test]
fn a_floating_ip_works_both_ways_on_the_instances_own_host() {
    for no_fg_address in [false, true] {
        std::thread::spawn(move || {
            let mut site = Site::new();
            site.converge(&Intent { no_fg_address, ..Intent::default() });
            let intent = Intent { floating_ip: true, no_fg_address, ..Intent::default() };
            site.converge(&intent);
            reaches("outside", "203.0.113.50");
            let before = Site::received(GATEWAY, "pings");
            reaches("i0", "203.0.113.254");
            let said = lost("outside", "203.0.113.50", "-s 1400");
            assert!(said.contains(" 0% packet loss"), "{said}");
            assert_eq!(Site::received(GATEWAY, "pings"), before, "the gateway host has no part in it");
            // Who answers for it is the fg- device, and at once: a proxy's default is to wait for up to 0.8 s.
            let seen = run("ip -n outside neighbour show 203.0.113.50");
            assert!(seen.contains(&mac(0x40).to_string()), "{seen}");
            run("ip -n outside neighbour flush all");
            let said = run("ip netns exec outside ping -c1 -W2 203.0.113.50");
            let time = said.split("time=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
            assert!(time.parse::<f64>().unwrap() < 300.0, "{said}");
            // East-west of an instance with a floating IP stays inside, and under its own address.
            reaches("i0", "10.0.1.9");
            // The other instance has none, and reaches it by way of the outside.
            reaches("i1", "203.0.113.50");

            site.restart();
            site.converge(&intent);
            site.converge(&Intent { no_fg_address, ..Intent::default() });
            let said = lost("outside", "203.0.113.50", "");
            assert!(said.contains(" 100% packet loss"), "{said}");
            // It leaves by the gateway again.
            reaches("i0", "203.0.113.254");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn an_address_that_moves_between_instances_is_found_from_every_host() {
    let mut site = Site::new();
    // The second instance on network 1 is on host 0, as the one that asks.
    site.add_instance(2, 0, 8, 1);
    site.converge(&Intent { moving: true, ..Intent::default() });
    let take = |n: usize| {
        run(&format!("ip -n i{n} address add 10.0.1.100/24 dev eth0"));
        // As whoever takes an address does: a gratuitous ARP request.
        let mac = mac(0x30 + n as u8).0;
        let mut frame = [[0xff; 6], mac].concat();
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([&mac[..], &[10, 0, 1, 100], &[0; 6], &[10, 0, 1, 100]].concat());
        let netns = NetnsFd::open(format!("/run/netns/i{n}").as_ref()).unwrap();
        let index = run(&format!("ip netns exec i{n} cat /sys/class/net/eth0/ifindex")).trim().parse().unwrap();
        PacketSocket::open(&netns, index, Filter::SendOnly).unwrap().send(&frame).unwrap();
    };
    let give = |n: usize| run(&format!("ip -n i{n} address delete 10.0.1.100/24 dev eth0"));
    // On another host than the router that asks, where a copy of the router has the same address.
    take(1);
    reaches("i0", "10.0.1.100");
    let known = |host: usize| {
        let netns = format!("/run/h{host}/{}", names::qrouter_namespace(ROUTER));
        run(&format!("nsenter --net={netns} ip neighbour show 10.0.1.100"))
    };
    assert!(known(0).contains(&mac(0x31).to_string()) && !known(0).contains("PERMANENT"), "{}", known(0));
    for (from, to) in [(1, 2), (2, 1)] {
        give(from);
        take(to);
        // Told by the announcement: an entry that was asked for would be believed for half a minute.
        wait_for("the router knows where it went", || known(0).contains(&mac(0x30 + to as u8).to_string()));
        let said = lost("i0", "10.0.1.100", "");
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    // The gateway is at home all the same, on every host.
    run("ip -n i1 neighbour flush all");
    let before = Site::received(GATEWAY, "questions");
    let said = lost("i1", "10.0.1.1", "");
    assert!(said.contains(" 0% packet loss"), "{said}");
    assert_eq!(Site::received(GATEWAY, "questions"), before, "nobody else was asked for it");

    site.restart();
    site.converge(&Intent { moving: true, ..Intent::default() });
    site.converge(&Intent::default());
    assert!(!run("ip netns exec h0 nft list tables").contains("bridge"));
}

#[test]
fn ipv6_is_routed_where_the_instances_are_and_leaves_untranslated_by_the_gateway() {
    let mut site = Site::new();
    let give = |netns: &str, address: &str, route: &str| {
        run(&format!(
            "ip netns exec {netns} sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0; \
             ip -n {netns} address add {address}/64 dev eth0 nodad; ip -n {netns} -6 route add {route}"
        ));
    };
    give("outside", "2001:db8:ff::254", "2001:db8::/47 via 2001:db8:ff::10");
    for n in [0, 1] {
        give(&format!("i{n}"), &format!("2001:db8:{n}::9"), &format!("default via 2001:db8:{n}::1"));
    }
    let intent = Intent { ipv6: true, ..Intent::default() };
    site.converge(&intent);
    reaches("i0", "2001:db8:1::9");
    let said = lost("i0", "2001:db8:1::9", "-s 1300");
    assert!(said.contains(" 0% packet loss"), "{said}");
    reaches("i1", "2001:db8:ff::254");
    reaches("outside", "2001:db8::9");
    site.restart();
    site.converge(&intent);
}
