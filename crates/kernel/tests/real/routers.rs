//! Routers as compiled: an instance, a router and a host outside, on one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command};

use evergate_dataplane::state::Netns;
use evergate_dataplane::{Desired, HostSettings, Op, View, compile, diff};
use evergate_kernel::Kernel;
use evergate_kernel::rt::{BatchSocket, NetnsFd};
use evergate_model::host::{
    AddressScopes, ExtraRoute, Gateway, HaCopy, Interface, Location, Network, NetworkPort, PortForwarding, Router,
    Segment,
};
use evergate_model::{AddressScopeId, HostConfig, NetworkId, PortForwardingId, PortId, RouterId, names};
use ipnet::IpNet;

use crate::sandbox::*;

const INSIDE: NetworkId = NetworkId::from_u128(0xa1 << 120);
const OUTSIDE: NetworkId = NetworkId::from_u128(0xa2 << 120);
const HA: NetworkId = NetworkId::from_u128(0xa3 << 120);
const ROUTER: RouterId = RouterId::from_u128(0xb1 << 120);
const QR: PortId = PortId::from_u128(0xc1 << 120);
const QG: PortId = PortId::from_u128(0xc2 << 120);
const HA_PORT: PortId = PortId::from_u128(0xc3 << 120);
const INSTANCE: PortId = PortId::from_u128(0xc4 << 120);
/// The link-local address of the router's inner device, from its Ethernet address.
const GATEWAY: &str = "fe80::f816:3eff:fe00:1";

#[test]
fn a_standby_is_silent_and_the_active_copy_routes_and_answers_as_a_router() {
    let mut kernel = around();
    let desired = desired(&config(true));
    converge(&mut kernel, &desired);
    wait_for("listener reports that are held back", || held_back() > 0);
    assert_eq!(spoken(), 0, "the standby was heard");

    let prepared = &desired.prepared[&ROUTER];
    let steps: Vec<_> = prepared.items.iter().map(|item| (item.netns.clone(), item.add.clone())).collect();
    send(&mut kernel, &steps);
    assert!(!run(&format!("ip -n {} -6 address", qrouter())).contains("tentative"));
    wait_for("an answer from outside", || reaches("vm", "2001:db8:ee::1"));
    wait_for("an answer from inside", || reaches("web", "2001:db8:1::9"));
    let neighbour = run(&format!("ip -n vm -6 neigh show {GATEWAY}"));
    assert!(neighbour.contains("fa:16:3e:00:00:01 router"), "a host that says so is no default router: {neighbour}");

    let steps: Vec<_> =
        prepared.items.iter().rev().filter_map(|item| Some((item.netns.clone(), item.del.clone()?))).collect();
    let before = held_back();
    send(&mut kernel, &steps);
    let said = spoken();
    wait_for("reports of groups that were left, held back", || held_back() > before);
    assert_eq!(spoken(), said, "the copy was heard after it stood back");
    converge(&mut kernel, &desired);
}

#[test]
fn what_another_copy_says_outside_does_not_turn_frames_away_from_one_that_still_forwards() {
    let mut kernel = around();
    let desired = desired(&config(true));
    converge(&mut kernel, &desired);
    let prepared = &desired.prepared[&ROUTER];
    let steps: Vec<_> = prepared.items.iter().map(|item| (item.netns.clone(), item.add.clone())).collect();
    send(&mut kernel, &steps);
    wait_for("an answer from outside", || reaches("vm", "2001:db8:ee::1"));
    // Control leaves alone what the keeper has added.
    let (plan, _) = diff(&desired.kernel, &kernel.observe(&desired.kernel).unwrap());
    assert!(plan.is_empty(), "left to do: {plan}");

    // The next active copy is on another host: the same Ethernet address, from the uplink.
    run("ip netns add next; ip link add uplink type veth peer name eth0 netns next; ip link set uplink up master br-ex
         ip -n next link set eth0 up address fa:16:3e:00:00:02; ip -n next address add 203.0.113.77/24 dev eth0");
    let speak = || {
        run("ip -n web neigh flush all; ip netns exec next ping -c1 -W0.1 203.0.113.1 >/dev/null || true");
        wait_for("a question of the next copy's", || run("ip -n web neigh").contains("203.0.113.77 dev eth0 lladdr"));
    };
    let way = || run("bridge fdb get fa:16:3e:00:00:02 br br-ex 2>&1 || true");
    let tap = names::tap(QG);
    speak();
    assert!(way().contains(&tap), "while this one forwards, what comes is for it: {}", way());
    let steps: Vec<_> =
        prepared.items.iter().rev().filter_map(|item| Some((item.netns.clone(), item.del.clone()?))).collect();
    send(&mut kernel, &steps);
    speak();
    assert!(way().contains("uplink"), "then the bridge learns as any other: {}", way());
}

#[test]
fn a_legacy_router_routes_ipv6_and_is_found_unchanged() {
    let mut kernel = around();
    let desired = desired(&config(false));
    converge(&mut kernel, &desired);
    wait_for("an answer from outside", || reaches("vm", "2001:db8:ee::1"));
    // The source is the instance's own.
    run("ip netns exec web ping -6 -c1 -W5 2001:db8:1::9");
    let (plan, _) = diff(&desired.kernel, &kernel.observe(&desired.kernel).unwrap());
    assert!(plan.is_empty(), "{plan}");
}

#[test]
fn a_router_that_is_given_ipv6_later_turns_it_on_where_it_is_needed() {
    let mut kernel = around();
    let mut before = config(true);
    let router = before.routers.get_mut(&ROUTER).unwrap();
    router.gateway.as_mut().unwrap().addresses.retain(|net| net.addr().is_ipv4());
    router.interfaces.get_mut(&QR).unwrap().addresses.retain(|net| net.addr().is_ipv4());
    converge(&mut kernel, &desired(&before));
    converge(&mut kernel, &desired(&config(true)));
    wait_for("listener reports that are held back", || held_back() > 0);
    assert_eq!(spoken(), 0, "the standby was heard");
    let addresses = run(&format!("ip -n {} -6 address", qrouter()));
    assert!(!addresses.contains("inet6 fe80"), "the kernel made an address: {addresses}");
}

#[test]
fn ports_are_forwarded_from_outside_and_from_inside_beside_source_nat() {
    let mut kernel = around();
    let mut config = config(false);
    let forwarding = |external_ports, internal_ports| PortForwarding {
        floating_ip_id: None,
        floating: "203.0.113.60".parse().unwrap(),
        protocol: 6,
        external_ports,
        fixed: "10.0.0.9".parse().unwrap(),
        internal_ports,
    };
    let forwardings = [
        forwarding((80, 80), (8080, 8080)),
        forwarding((6000, 6999), (6000, 6999)),
        forwarding((90, 91), (8079, 8080)),
    ];
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.port_forwardings = (1..).map(PortForwardingId::from_u128).zip(forwardings).collect();
    converge(&mut kernel, &desired(&config));
    let _servers = [serve("vm", 8080), serve("vm", 6500), serve("web", 7000)];
    // Who the instance sees: from outside the caller itself, from inside the router.
    for (netns, port, seen) in [
        ("web", 80, "203.0.113.1"),
        ("web", 6500, "203.0.113.1"),
        ("web", 91, "203.0.113.1"),
        ("vm", 80, "203.0.113.10"),
    ] {
        wait_for("an answer of the forwarded port", || caller(netns, "203.0.113.60", port) == seen);
    }
    assert_eq!(caller("web", "203.0.113.60", 81), "", "other ports lead nowhere");
    wait_for("an answer from outside", || caller("vm", "203.0.113.1", 7000) == "203.0.113.10");
}

#[test]
fn networks_of_different_address_scopes_meet_only_where_there_is_translation() {
    let mut kernel = around();
    let in_scopes = |inner: Option<u128>, outer: Option<u128>, enable_snat| {
        let mut config = config(false);
        let scopes = |scope: Option<u128>| {
            let scope = scope.map(AddressScopeId::from_u128);
            AddressScopes { v4: scope, v6: scope }
        };
        let router = config.routers.get_mut(&ROUTER).unwrap();
        router.interfaces.get_mut(&QR).unwrap().address_scopes = scopes(inner);
        let gateway = router.gateway.as_mut().unwrap();
        (gateway.address_scopes, gateway.enable_snat) = (scopes(outer), enable_snat);
        desired(&config)
    };
    let _servers = [serve("vm", 8080), serve("web", 7000)];
    let call_out = || caller("vm", "203.0.113.1", 7000);
    let call_in = || caller("web", "10.0.0.9", 8080);

    converge(&mut kernel, &in_scopes(None, None, true));
    wait_for("translation on the way out", || call_out() == "203.0.113.10");
    wait_for("a way in without scopes", || call_in() == "203.0.113.1");
    wait_for("IPv6 without scopes", || reaches("vm", "2001:db8:ee::1"));

    converge(&mut kernel, &in_scopes(Some(1), None, true));
    wait_for("translation on the way out", || call_out() == "203.0.113.10");
    assert_eq!(call_in(), "", "what is not translated stays out");
    assert!(!reaches("vm", "2001:db8:ee::1") && !reaches("web", "2001:db8:1::9"));

    converge(&mut kernel, &in_scopes(Some(1), Some(1), true));
    wait_for("plain routing in one scope", || call_out() == "10.0.0.9" && call_in() == "203.0.113.1");
    wait_for("IPv6 in one scope", || reaches("vm", "2001:db8:ee::1"));

    converge(&mut kernel, &in_scopes(Some(1), None, false));
    assert_eq!((call_out(), call_in()), (String::new(), String::new()), "nothing is translated, so nothing passes");
    converge(&mut kernel, &in_scopes(None, None, false));
    wait_for("plain routing without source NAT", || call_out() == "10.0.0.9");
}

#[test]
fn a_second_subnet_and_a_second_gateway_address_work_on_the_same_devices() {
    let mut kernel = around();
    let mut config = config(false);
    let router = config.routers.get_mut(&ROUTER).unwrap();
    let interface = router.interfaces.get_mut(&QR).unwrap();
    let nets = |nets: [&str; 2]| nets.map(|net| net.parse::<IpNet>().unwrap());
    interface.addresses.extend(nets(["10.0.7.1/24", "2001:db8:7::1/64"]));
    let gateway = router.gateway.as_mut().unwrap();
    gateway.addresses.extend(nets(["198.51.100.10/24", "2001:db8:ef::10/64"]));
    let hop = "2001:db8:7::9".parse().unwrap();
    router.routes.insert(ExtraRoute { destination: "2001:db8:99::/64".parse().unwrap(), nexthop: hop });
    converge(&mut kernel, &desired(&config));
    run("ip -n vm address add 10.0.7.9/24 dev eth0; ip -n vm address add 2001:db8:7::9/64 dev eth0 nodad
         ip -n vm address add 2001:db8:99::9/64 dev lo nodad
         ip -n web address add 198.51.100.1/24 dev eth0; ip -n web -6 route add default via 2001:db8:ee::10");
    let _server = serve("web", 7000);
    // All instances have one source outside, wherever they call.
    wait_for("translation to the first address", || caller("vm", "198.51.100.1", 7000) == "203.0.113.10");
    for ip in ["2001:db8:7::9", "2001:db8:ef::10", "2001:db8:99::9"] {
        wait_for("an answer over IPv6", || reaches("web", ip));
    }
}

/// A server that tells callers who they are; it ends with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(netns: &str, port: u16) -> Server {
    let script = "import socketserver, sys\n\
                  class Teller(socketserver.BaseRequestHandler):\n\
                  \x20   def handle(self): self.request.sendall(self.client_address[0].encode())\n\
                  socketserver.ThreadingTCPServer(('0.0.0.0', int(sys.argv[1])), Teller).serve_forever()";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, "python3", "-c", script, &port.to_string()]);
    let server = Server(command.spawn().unwrap());
    wait_for("the server", || run(&format!("ip netns exec {netns} ss -Hltn sport = :{port}")).contains("LISTEN"));
    server
}

/// As whom a server sees a caller from this namespace; empty where there is no answer.
fn caller(netns: &str, ip: &str, port: u16) -> String {
    let call = format!("exec 3<>/dev/tcp/{ip}/{port} && cat <&3");
    run(&format!("ip netns exec {netns} timeout 1 bash -c '{call}' 2>/dev/null || true"))
}

/// An instance's namespace `vm` behind its tap, and a host `web` on the operator's br-ex.
fn around() -> Kernel {
    let kernel = host();
    run(&format!(
        "ip link add br-ex type bridge mcast_snooping 0; ip link set br-ex up
         for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done
         ip netns add vm; ip netns add web
         ip link add {tap} type veth peer name eth0 netns vm; ip link set {tap} up
         ip link add tapweb type veth peer name eth0 netns web; ip link set tapweb up master br-ex
         for n in vm web; do ip -n $n link set lo up
             ip netns exec $n sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.accept_ra=0; done
         ip -n vm link set eth0 up address fa:16:3e:00:00:09; ip -n web link set eth0 up
         ip -n vm address add 2001:db8:1::9/64 dev eth0 nodad; ip -n vm -6 route add default via {GATEWAY} dev eth0
         ip -n vm address add 10.0.0.9/24 dev eth0; ip -n vm route add default via 10.0.0.1
         ip -n web address add 203.0.113.1/24 dev eth0; ip -n web route add 10.0.0.0/24 via 203.0.113.10
         ip -n web address add 2001:db8:ee::1/64 dev eth0 nodad
         ip -n web -6 route add 2001:db8:1::/64 via 2001:db8:ee::10",
        tap = names::tap(INSTANCE)
    ));
    kernel
}

fn config(ha: bool) -> HostConfig {
    let location = |place: Location| if ha { Location::Active { router: ROUTER } } else { place };
    let flat = Segment::Flat { physical_network: "provider".to_owned() };
    let instance = port(9, "2001:db8:1::9", Location::Local);
    let inside = [(QR, port(1, "2001:db8:1::1", location(Location::Local))), (INSTANCE, instance)];
    let outside = [(QG, port(2, "2001:db8:ee::10", location(Location::Local)))];
    let ha_ports = [(HA_PORT, port(3, "169.254.192.5", Location::Local))];
    let networks = [
        network(INSIDE, Segment::Local, inside.into()),
        network(OUTSIDE, flat, outside.into()),
        network(HA, Segment::Local, ha_ports.into()),
    ];
    let interface = Interface {
        network_id: INSIDE,
        mac: mac(1),
        addresses: vec!["10.0.0.1/24".parse().unwrap(), "2001:db8:1::1/64".parse().unwrap()],
        address_scopes: AddressScopes::default(),
        advertisement: None,
    };
    let gateway = Gateway {
        port_id: QG,
        network_id: OUTSIDE,
        mac: mac(2),
        addresses: vec!["203.0.113.10/24".parse().unwrap(), "2001:db8:ee::10/64".parse().unwrap()],
        next_hops: vec!["203.0.113.1".parse().unwrap(), "2001:db8:ee::1".parse().unwrap()],
        onlink_subnets: Vec::new(),
        enable_snat: true,
        address_scopes: AddressScopes::default(),
    };
    let router = Router {
        id: ROUTER,
        project_id: "demo".to_owned(),
        admin_state_up: true,
        ha: ha.then(copy),
        gateway: Some(gateway),
        interfaces: [(QR, interface)].into(),
        routes: BTreeSet::new(),
        floating_ips: BTreeMap::new(),
        port_forwardings: BTreeMap::new(),
        distributed: None,
    };
    let routers = BTreeMap::from([(ROUTER, router)]);
    HostConfig { revision: 1, networks: networks.into(), routers, ..HostConfig::default() }
}

fn copy() -> HaCopy {
    HaCopy {
        port_id: HA_PORT,
        network_id: HA,
        mac: mac(3),
        address: "169.254.192.5/18".parse().unwrap(),
        vrid: 7,
        virtual_address: "169.254.0.7/24".parse().unwrap(),
        priority: 50,
        peers: BTreeMap::new(),
        epoch: 0,
        inherits: None,
        wish: None,
    }
}

fn port(last: u8, ip: &str, location: Location) -> NetworkPort {
    let ips = vec![ip.parse().unwrap()];
    NetworkPort { mac: mac(last), ips, location, admin_state_up: true, allowed_addresses: Vec::new() }
}

fn network(id: NetworkId, segment: Segment, ports: BTreeMap<PortId, NetworkPort>) -> (NetworkId, Network) {
    (id, Network { id, segment, mtu: 1500, ports, peers: BTreeSet::new(), vrids: BTreeSet::new() })
}

fn desired(config: &HostConfig) -> Desired {
    let settings = HostSettings {
        physical_networks: BTreeMap::from([("provider".to_owned(), "br-ex".to_owned())]),
        ..HostSettings::default()
    };
    let view = View {
        links: ["br-ex".to_owned(), names::tap(INSTANCE)].into(),
        bridges: ["br-ex".to_owned()].into(),
        has_ipv6: true,
        ..View::default()
    };
    let desired = compile(config, &settings, &view);
    assert_eq!(desired.problems, []);
    desired
}

/// Brings the kernel to the desired state.
fn converge(kernel: &mut Kernel, desired: &Desired) {
    let (plan, refusals) = diff(&desired.kernel, &kernel.observe(&desired.kernel).unwrap());
    assert_eq!(refusals, []);
    apply(kernel, &plan.into_ops());
    let (plan, _) = diff(&desired.kernel, &kernel.observe(&desired.kernel).unwrap());
    assert!(plan.is_empty(), "left to do: {plan}");
}

/// Does what the keeper would.
fn send(kernel: &mut Kernel, steps: &[(Netns, Op)]) {
    let inside = NetnsFd::open(&Path::new(NETNS_PATH).join(qrouter())).unwrap();
    let mut inside = BatchSocket::open(&inside).unwrap();
    let mut outside = BatchSocket::open(&NetnsFd::host().unwrap()).unwrap();
    for (netns, op) in steps {
        let message = kernel.encode(op).unwrap();
        let socket = if *netns == Netns::Host { &mut outside } else { &mut inside };
        socket.send_batch(&[message]).remove(0).unwrap_or_else(|error| panic!("{op}: {}", error.full()));
    }
}

fn qrouter() -> String {
    names::qrouter_namespace(ROUTER)
}

fn reaches(netns: &str, ip: &str) -> bool {
    run(&format!("ip netns exec {netns} ping -6 -c1 -W1 {ip} >/dev/null && echo yes || echo no")) == "yes\n"
}

/// How many packets the copy was kept from sending.
fn held_back() -> u64 {
    let table = run(&format!("ip netns exec {} nft list table ip6 evergate", qrouter()));
    let (_, counter) = table.split_once("counter packets ").expect("the rule counts");
    counter.split_whitespace().next().unwrap().parse().unwrap()
}

/// How many frames the router's devices have sent.
fn spoken() -> u64 {
    let frames = |port| {
        let json = run(&format!("ip -j -s link show {}", names::tap(port)));
        let (_, rx) = json.split_once("\"rx\":{").unwrap();
        let (_, packets) = rx.split_once("\"packets\":").unwrap();
        packets.split([',', '}']).next().unwrap().parse::<u64>().unwrap()
    };
    frames(QR) + frames(QG)
}
