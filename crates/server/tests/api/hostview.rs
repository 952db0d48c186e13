//! What hosts are told.

use std::net::IpAddr;

use evergate_model::host::{AddressMode, HaState, Location, RouterAdvertisement, Segment};
use evergate_model::{HostConfig, RouterId};
use evergate_server::objects::{ask_in, query_in};
use evergate_server::options::Options;
use serde_json::{Value, json};

use crate::harness::{PROJECT, Server, admin, id, member};

struct World {
    server: Server,
    external: Value,
    network: Value,
    subnet: Value,
    router: Value,
    port: Value,
}

fn vtep(n: u8) -> IpAddr {
    IpAddr::from([10, 60, 0, 10 + n])
}

fn router_id(router: &Value) -> RouterId {
    id(router).parse().unwrap()
}

/// Three network hosts, a compute host h4 with an instance, a bystander h5, one HA router.
fn world() -> World {
    let server = Server::with(Options { l3_ha: true, max_l3_agents_per_router: 3, ..Options::default() });
    server.hosts();
    let (external, _) = server.make_external();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&member(PROJECT), "router", body);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    server.put(&member(PROJECT), &path, json!({"subnet_id": subnet["id"]}));
    server.host("h4");
    server.host("h5");
    let port = json!({
        "network_id": network["id"], "project_id": PROJECT, "binding:host_id": "h4",
        "fixed_ips": [{"ip_address": "10.0.0.5"}],
    });
    let port = server.make(&admin(), "port", port);
    World { server, external, network, subnet, router, port }
}

fn network_of<'c>(config: &'c HostConfig, network: &Value) -> &'c evergate_model::host::Network {
    &config.networks[&id(network).parse().unwrap()]
}

#[test]
fn a_network_host_is_told_of_its_copy() {
    let w = world();
    let config = w.server.told("h1");
    assert_eq!(config.revision, *w.server.store.subscribe().borrow());
    assert_eq!(config.networks.len(), 3, "external, project and HA network");
    assert_eq!(config.cluster.claim_key.len(), 64);
    let router = &config.routers[&router_id(&w.router)];
    assert!(router.admin_state_up);
    let ha = router.ha.as_ref().unwrap();
    assert_eq!(ha.priority, 50);
    assert_eq!(ha.virtual_address.to_string(), format!("169.254.0.{}/24", ha.vrid));
    assert!(config.networks[&ha.network_id].vrids.contains(&ha.vrid));
    assert_eq!(ha.address.prefix_len(), 18);
    assert_eq!(ha.peers.keys().collect::<Vec<_>>(), ["h2", "h3"]);
    assert_eq!(ha.peers["h2"].vtep, Some(vtep(2)));
    let gateway = router.gateway.as_ref().unwrap();
    assert_eq!(gateway.next_hops, [IpAddr::from([203, 0, 113, 254])]);
    assert_eq!(gateway.addresses[0].prefix_len(), 24);
    assert!(gateway.enable_snat && gateway.onlink_subnets.is_empty());
    let interface = router.interfaces.values().next().unwrap();
    assert_eq!(interface.addresses, ["10.0.0.1/24".parse().unwrap()]);
}

#[test]
fn every_copy_has_the_same_macs_and_its_own_ha_port() {
    let w = world();
    let copies: Vec<_> =
        ["h1", "h2", "h3"].map(|host| w.server.told(host).routers[&router_id(&w.router)].clone()).into();
    for copy in &copies[1..] {
        assert_eq!(copy.gateway, copies[0].gateway);
        assert_eq!(copy.interfaces, copies[0].interfaces);
        assert_eq!(copy.ha.as_ref().unwrap().vrid, copies[0].ha.as_ref().unwrap().vrid);
        assert_ne!(copy.ha.as_ref().unwrap().port_id, copies[0].ha.as_ref().unwrap().port_id);
        assert_ne!(copy.ha.as_ref().unwrap().address, copies[0].ha.as_ref().unwrap().address);
    }
}

#[test]
fn ports_are_placed_and_hosts_flood_only_to_those_that_share_the_network() {
    let w = world();
    let config = w.server.told("h4");
    assert!(config.routers.is_empty());
    assert_eq!(config.networks.len(), 1, "a compute host is told of its instances' networks");
    let network = network_of(&config, &w.network);
    assert!(matches!(network.segment, Segment::Vxlan { .. }));
    assert_eq!(network.mtu, 1450);
    assert_eq!(Vec::from_iter(network.peers.clone()), [vtep(1), vtep(2), vtep(3)]);
    let instance = &network.ports[&id(&w.port).parse().unwrap()];
    assert_eq!(instance.location, Location::Local);
    assert_eq!(instance.ips, [IpAddr::from([10, 0, 0, 5])]);
    let router = router_id(&w.router);
    let of_router = network.ports.values().find(|port| port.location == Location::Active { router });
    assert_eq!(of_router.unwrap().ips, [IpAddr::from([10, 0, 0, 1])]);
    let other = w.server.told("h1");
    let instance = &network_of(&other, &w.network).ports[&id(&w.port).parse().unwrap()];
    assert_eq!(instance.location, Location::Remote { vtep: vtep(4) });
    assert_eq!(Vec::from_iter(network_of(&other, &w.network).peers.clone()), [vtep(2), vtep(3), vtep(4)]);
    let bystander = w.server.told("h5");
    assert!(bystander.networks.is_empty() && bystander.routers.is_empty());
}

#[test]
fn everybody_on_the_network_learns_who_is_active() {
    let w = world();
    let router = router_id(&w.router);
    assert!(w.server.told("h4").active_copies.is_empty());
    w.server.report_state("h2", &w.router, HaState::Active, 1);
    for host in ["h1", "h4"] {
        let active = w.server.told(host).active_copies[&router];
        assert_eq!((active.epoch, active.vtep), (1, vtep(2)));
    }
    w.server.report_state("h3", &w.router, HaState::Active, 2);
    assert_eq!(w.server.told("h4").active_copies[&router].vtep, vtep(3));
    assert_eq!(w.server.told("h1").routers[&router].ha.as_ref().unwrap().epoch, 2);
}

#[test]
fn ha_ports_are_on_their_hosts() {
    let w = world();
    let config = w.server.told("h2");
    let ha = config.routers[&router_id(&w.router)].ha.clone().unwrap();
    let network = &config.networks[&ha.network_id];
    assert_eq!(network.ports.len(), 3);
    assert_eq!(network.ports[&ha.port_id].location, Location::Local);
    let remote: Vec<_> = network.ports.values().filter(|port| port.location != Location::Local).collect();
    assert!(remote.iter().all(|port| matches!(port.location, Location::Remote { .. })));
}

#[test]
fn floating_ips_and_routes_go_with_the_router_and_their_ports_stay_out_of_sight() {
    let w = world();
    let body = json!({"floating_network_id": w.external["id"], "port_id": w.port["id"]});
    let floating_ip = w.server.make(&member(PROJECT), "floatingip", body);
    let routes = json!({"router": {"routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}]}});
    w.server.put(&member(PROJECT), &format!("/v2.0/routers/{}", id(&w.router)), routes);
    let config = w.server.told("h3");
    let router = &config.routers[&router_id(&w.router)];
    let told = router.floating_ips[&id(&floating_ip).parse().unwrap()];
    assert_eq!(told.floating.to_string(), floating_ip["floating_ip_address"].as_str().unwrap());
    assert_eq!(told.fixed.to_string(), "10.0.0.5");
    assert_eq!(router.routes.len(), 1);
    assert_eq!(network_of(&config, &w.external).ports.len(), 1, "the gateway port only");
    assert_eq!(network_of(&config, &w.network).ports.len(), 2);
    assert_eq!(w.subnet["cidr"], "10.0.0.0/24");
}

#[test]
fn addresses_that_a_port_may_have_beside_its_own_are_told() {
    let w = world();
    let pairs =
        json!([{"ip_address": "10.0.0.100"}, {"ip_address": "10.9.0.0/24", "mac_address": "02:00:00:00:00:01"}]);
    let path = format!("/v2.0/ports/{}", id(&w.port));
    let body = json!({"port": {"allowed_address_pairs": pairs}});
    assert_eq!(w.server.put(&admin(), &path, body).status, 200);
    let network = network_of(&w.server.told("h4"), &w.network).clone();
    let port = &network.ports[&id(&w.port).parse().unwrap()];
    let told: Vec<_> = port.allowed_addresses.iter().map(|a| (a.ip.to_string(), a.mac)).collect();
    let other = "02:00:00:00:00:01".parse().unwrap();
    assert_eq!(told, [("10.0.0.100/32".to_owned(), port.mac), ("10.9.0.0/24".to_owned(), other)]);
}

#[test]
fn a_disabled_agent_is_emptied_and_its_host_left_out() {
    let w = world();
    let agent = w.server.list(&admin(), "agents", "?host=h1&agent_type=L3%20agent")[0].clone();
    let body = json!({"agent": {"admin_state_up": false}});
    w.server.put(&admin(), &format!("/v2.0/agents/{}", id(&agent)), body);
    assert!(w.server.told("h1").routers.is_empty());
    let network = network_of(&w.server.told("h4"), &w.network).clone();
    assert_eq!(Vec::from_iter(network.peers), [vtep(2), vtep(3)]);
    assert!(w.server.told("h1").networks.is_empty());
    let config = w.server.told("h2");
    let ha = config.routers[&router_id(&w.router)].ha.as_ref().unwrap();
    assert_eq!(Vec::from_iter(config.networks[&ha.network_id].peers.clone()), [vtep(3)]);
}

#[test]
fn a_deleted_router_leaves_nothing_to_tell() {
    let w = world();
    let path = format!("/v2.0/routers/{}", id(&w.router));
    let subnet = json!({"subnet_id": w.subnet["id"]});
    assert_eq!(w.server.put(&member(PROJECT), &format!("{path}/remove_router_interface"), subnet).status, 200);
    assert_eq!(w.server.delete(&member(PROJECT), &path).status, 204);
    let config = w.server.told("h1");
    assert!(config.routers.is_empty() && config.networks.is_empty());
}

#[test]
fn a_legacy_router_is_told_to_its_host_alone_and_its_ports_are_there() {
    let server = Server::new();
    server.hosts();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let router = server.make(&admin(), "router", json!({}));
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    server.put(&admin(), &path, json!({"subnet_id": subnet["id"]}));
    let config = server.told("h1");
    let told = &config.routers[&router_id(&router)];
    assert!(told.ha.is_none() && told.gateway.is_none());
    let interface = *told.interfaces.keys().next().unwrap();
    assert_eq!(network_of(&config, &network).ports[&interface].location, Location::Local);
    assert!(server.told("h2").routers.is_empty());
}

#[test]
fn a_router_advertises_the_subnets_that_are_to_be_and_hosts_hear_of_changes() {
    let w = world();
    let subnet = |cidr: &str, mode: Option<&str>, servers: &[&str]| {
        let mut body = json!({
            "network_id": w.network["id"], "ip_version": 6, "cidr": cidr, "dns_nameservers": servers,
            "project_id": PROJECT,
        });
        if let Some(mode) = mode {
            body["ipv6_ra_mode"] = json!(mode);
            body["ipv6_address_mode"] = json!(mode);
        }
        let subnet = w.server.make(&member(PROJECT), "subnet", body);
        let path = format!("/v2.0/routers/{}/add_router_interface", id(&w.router));
        let answer = w.server.put(&member(PROJECT), &path, json!({"subnet_id": subnet["id"]}));
        assert_eq!(answer.status, 200, "{}", answer.message());
        subnet
    };
    let advertised = || {
        let config = w.server.told("h1");
        let interfaces = &config.routers[&router_id(&w.router)].interfaces;
        interfaces.values().find_map(|interface| interface.advertisement.clone())
    };
    subnet("2001:db8:9::/64", None, &[]);
    assert_eq!(advertised(), None, "its instances have other means");
    let slaac = subnet("2001:db8:1::/64", Some("slaac"), &["2001:db8::53"]);
    subnet("2001:db8:2::/64", Some("dhcpv6-stateful"), &["2001:db8::54"]);
    let expected = RouterAdvertisement {
        prefixes: [
            ("2001:db8:1::/64".parse().unwrap(), AddressMode::Slaac),
            ("2001:db8:2::/64".parse().unwrap(), AddressMode::Dhcpv6Stateful),
        ]
        .into(),
        dns_servers: vec!["2001:db8::53".parse().unwrap()],
    };
    assert_eq!(advertised(), Some(expected));
    let before = w.server.told("h1").revision;
    let body = json!({"subnet": {"dns_nameservers": []}});
    w.server.put(&member(PROJECT), &format!("/v2.0/subnets/{}", id(&slaac)), body);
    assert!(advertised().unwrap().dns_servers.is_empty());
    assert!(w.server.told("h1").revision > before);
}

#[test]
fn an_id_that_is_named_more_than_once_counts_once_also_where_one_list_does_not_hold_all_ids() {
    let server = Server::new();
    let network = id(&server.make(&admin(), "network", json!({}))).to_owned();
    let others = (0..600).map(|n| format!("{n:08}-0000-0000-0000-000000000000"));
    let ids: Vec<String> = std::iter::once(network.clone()).chain(others).chain([network.clone()]).collect();
    let sql = "SELECT id FROM networks WHERE id IN ({})";
    let found = server.store.read(|tx| query_in(tx, sql, &ids, |row| row.text(0))).unwrap();
    assert_eq!(found, std::slice::from_ref(&network));
    let found = server.store.read(|tx| ask_in(tx, sql, &ids, |row| row.text(0))?.read()).unwrap();
    assert_eq!(found, [network]);
}
