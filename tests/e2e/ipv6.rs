//! IPv6: instances learn addresses and gateway from the router, reach the world outside with their own
//! addresses, and notice nothing of a failover.

use evergate_lab::fault::Fault;
use evergate_lab::{Node, wait_for};
use serde_json::Value;

use crate::connections::End;
use crate::support::{Cloud, PATIENCE};

/// Echoes over TCP.
const SERVER: &str = r#"
import socket, socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(100): self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer): address_family = socket.AF_INET6
server = Server(("::", 9006), Echo)
print("ready", flush=True)
server.serve_forever()
"#;

/// One connection, used whenever a line is read. Says from which address.
const CLIENT: &str = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], 9006), 30)
for line in sys.stdin:
    connection.sendall(b"x")
    print(connection.recv(1).decode(), connection.getsockname()[0], flush=True)
"#;

/// The world outside has IPv6, too; the provider's router knows the way to the project's network.
pub(crate) fn give_the_world_ipv6(cloud: &Cloud, router: &str) {
    let on = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 0 > $f; done";
    let outside = format!(
        "{on}; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         ip address add 2001:db8:ee::1/64 dev eth0 nodad; ip address add 2001:db8:64::1/64 dev eth1 nodad
         ip route add 2001:db8:1::/64 via {router} dev eth0"
    );
    cloud.lab.machine(Node::Outside).shell(&outside).unwrap();
    let web = format!(
        "{on}; ip address add 2001:db8:64::10/64 dev eth0 nodad; ip route add default via 2001:db8:64::1 dev eth0"
    );
    cloud.lab.machine(Node::Web).shell(&web).unwrap();
}

/// The address that the router's gateway has in an IPv6 subnet.
pub(crate) fn gateway_address(cloud: &mut Cloud) -> String {
    let shown = cloud.member.json("router show router1").unwrap();
    let fixed_ips = shown["external_gateway_info"]["external_fixed_ips"].as_array().unwrap().clone();
    let mut addresses = fixed_ips.iter().filter_map(|fixed: &Value| fixed["ip_address"].as_str());
    addresses.find(|address| address.contains(':')).unwrap().to_owned()
}

#[test]
fn an_instance_learns_its_ipv6_from_an_ha_router_and_keeps_it_when_the_active_loses_power() {
    let mut cloud = Cloud::up("ipv6", Some(1));
    for command in [
        "network create public --external --provider-network-type flat --provider-physical-network external",
        "subnet create public-subnet --network public --subnet-range 203.0.113.0/24 --gateway 203.0.113.254 --no-dhcp",
        "subnet create public-six --network public --ip-version 6 --subnet-range 2001:db8:ee::/64 \
         --gateway 2001:db8:ee::1 --no-dhcp",
    ] {
        cloud.admin.ok(command).unwrap();
    }
    cloud.member.ok("network create private").unwrap();
    cloud.admin.ok("router create router1 --ha --project demo").unwrap();
    for command in [
        "subnet create private-six --network private --ip-version 6 --subnet-range 2001:db8:1::/64 \
         --ipv6-ra-mode slaac --ipv6-address-mode slaac",
        "router set router1 --external-gateway public",
        "router add subnet router1 private-six",
        "port create vm1-port --network private",
    ] {
        cloud.member.ok(command).unwrap();
    }
    let router = cloud.router_id("router1");
    let gateway = gateway_address(&mut cloud);
    give_the_world_ipv6(&cloud, &gateway);
    cloud.lab.add_instance("vm1", "vm1-port", Node::Compute(1)).unwrap();
    // The lab gives its instances their addresses. Here they learn them.
    cloud.lab.instance_shell("vm1", "ip -6 route flush proto static; ip -6 route flush proto boot; true").unwrap();
    let learned = "ip -6 route show default proto ra";
    wait_for("the instance has heard of the router", PATIENCE, || {
        let route = cloud.lab.instance_shell("vm1", learned)?;
        Ok(route.contains("via fe80::").then_some(()))
    })
    .unwrap();

    let mut web = End::run(cloud.lab.machine(Node::Web).command("python3").unwrap(), SERVER, &[]);
    assert_eq!(web.says(), "ready");
    wait_for("the instance reaches the world outside", PATIENCE, || {
        let ping = "ping -6 -c1 -W1 2001:db8:64::10 >/dev/null && echo yes || true";
        Ok((cloud.lab.instance_shell("vm1", ping)? == "yes\n").then_some(()))
    })
    .unwrap();
    let mut vm1 = End::run(cloud.lab.instance_command("vm1", "python3").unwrap(), CLIENT, &["2001:db8:64::10"]);
    vm1.go();
    let before = vm1.says();
    assert!(before.starts_with("x 2001:db8:1:"), "with its own address: {before}");

    let active = cloud.lab.wait_active(router).unwrap();
    let gateway = cloud.lab.instance_shell("vm1", learned).unwrap();
    cloud.lab.fail(active, Fault::Power).unwrap();
    assert_ne!(cloud.lab.wait_active(router).unwrap(), active);
    vm1.go();
    assert_eq!(vm1.says(), before, "the same connection goes on");
    let via = |route: &str| route.split_whitespace().nth(2).map(str::to_owned);
    assert_eq!(via(&cloud.lab.instance_shell("vm1", learned).unwrap()), via(&gateway), "by the same gateway");
    // What the new active copy advertises is believed: a forgotten route is learned anew.
    cloud.lab.instance_shell("vm1", "ip -6 route flush proto ra; ip link set eth0 down; ip link set eth0 up").unwrap();
    wait_for("the new active copy answers who asks for a router", PATIENCE, || {
        Ok(cloud.lab.instance_shell("vm1", learned)?.contains("via fe80::").then_some(()))
    })
    .unwrap();
}
