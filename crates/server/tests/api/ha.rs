//! Highly available routers: their network, copies, VRIDs, and who is active.

use evergate_model::host::{HaState, Segment};
use evergate_server::options::Options;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, pick};

fn by_default() -> Server {
    let server = Server::with(Options { l3_ha: true, ..Options::default() });
    server.hosts();
    server
}

fn ha_ports(server: &Server, router: &Value) -> Vec<Value> {
    server.list(&admin(), "ports", &format!("?device_id={}&device_owner=network:router_ha_interface", id(router)))
}

fn vrid(server: &Server, router: &Value) -> i64 {
    let sql = "SELECT vrid FROM ha_routers WHERE router_id = ?1";
    server.write(|tx| Ok(tx.count(sql, &evergate_server::values![id(router)])?))
}

#[test]
fn the_first_ha_router_of_a_project_brings_its_hidden_network_and_a_port_per_copy() {
    let server = Server::new();
    server.hosts();
    let router = server.make(&admin(), "router", json!({"name": "r1", "ha": true}));
    assert_eq!(router["ha"], true);
    let networks = server.list(&admin(), "networks", "");
    assert_eq!(pick(&networks, "name"), [format!("HA network tenant {PROJECT}")]);
    let network = &networks[0];
    assert_eq!((&network["project_id"], &network["tenant_id"]), (&json!(""), &json!("")));
    let subnet = server.shown("subnet", network["subnets"][0].as_str().unwrap());
    assert_eq!(subnet["name"], format!("HA subnet tenant {PROJECT}"));
    assert_eq!(subnet["cidr"], "169.254.192.0/18");
    assert_eq!((&subnet["gateway_ip"], &subnet["enable_dhcp"]), (&json!(null), &json!(false)));
    assert_eq!(subnet["allocation_pools"], json!([{"start": "169.254.192.1", "end": "169.254.255.254"}]));
    let ports = ha_ports(&server, &router);
    assert_eq!(pick(&ports, "binding:host_id"), ["h1", "h2", "h3"]);
    assert_eq!(pick(&ports, "name"), vec![format!("HA port tenant {PROJECT}"); 3]);
    assert_eq!(pick(&ports, "project_id"), ["", "", ""]);
    assert_eq!(pick(&ports, "port_security_enabled"), ["false", "false", "false"]);
    assert_eq!(server.ha_states(&router).into_values().collect::<Vec<_>>(), ["standby", "standby", "standby"]);
}

#[test]
fn ha_networks_are_of_the_configured_type_and_subnet() {
    let of = |l3_ha_network_type: &str, l3_ha_network_physical_name: &str| {
        let server = Server::with(Options {
            l3_ha_net_cidr: "169.254.128.0/20".parse().unwrap(),
            l3_ha_network_type: l3_ha_network_type.to_owned(),
            l3_ha_network_physical_name: l3_ha_network_physical_name.to_owned(),
            ..Options::default()
        });
        server.hosts();
        let router = server.make(&admin(), "router", json!({"ha": true}));
        let network = server.list(&admin(), "networks", "").remove(0);
        let subnet = server.shown("subnet", network["subnets"][0].as_str().unwrap());
        assert_eq!(subnet["cidr"], "169.254.128.0/20");
        let ports = ha_ports(&server, &router);
        assert_eq!(ports.len(), 3);
        let told = server.told("h1");
        let copy = told.routers.values().next().unwrap().ha.clone().unwrap();
        assert!("169.254.128.0/20".parse::<Ipv4Net>().unwrap().contains(&copy.address.addr()), "{copy:?}");
        assert_eq!(copy.address.prefix_len(), 20);
        (network["provider:network_type"].clone(), told.networks[&copy.network_id].segment.clone())
    };
    assert_eq!(of("local", ""), (json!("local"), Segment::Local));
    let physical_network = "physnet1".to_owned();
    assert_eq!(of("flat", "physnet1"), (json!("flat"), Segment::Flat { physical_network }));
    let (by_default, segment) = of("", "");
    assert!(by_default == "vxlan" && matches!(segment, Segment::Vxlan { .. }), "{segment:?}");
}

#[test]
fn the_ha_network_is_hidden_from_everybody_but_admins() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({"name": "r1"}));
    assert!(router.get("ha").is_none(), "only admins see what kind a router is");
    for collection in ["networks", "subnets", "ports"] {
        assert_eq!(server.list(&member(PROJECT), collection, "").len(), 0);
        assert_ne!(server.list(&admin(), collection, "").len(), 0);
    }
    let network = server.list(&admin(), "networks", "")[0].clone();
    let path = format!("/v2.0/networks/{}", id(&network));
    assert_eq!(server.get(&member(PROJECT), &path).error(), "NetworkNotFound");
    assert_eq!(server.delete(&member(PROJECT), &path).status, 404);
    assert_eq!(server.put(&member(PROJECT), &path, json!({"network": {"name": "mine"}})).status, 404);
    let mut unscoped = member("");
    unscoped.project_id = None;
    assert_eq!(server.list(&unscoped, "networks", "").len(), 0, "no project is not the empty project");
    unscoped.project_id = Some(String::new());
    assert_eq!(server.list(&unscoped, "networks", "").len(), 0);
}

#[test]
fn the_ha_network_outlives_its_routers_and_serves_the_next() {
    let server = by_default();
    let first = server.make(&member(PROJECT), "router", json!({}));
    let network = server.list(&admin(), "networks", "")[0].clone();
    assert_eq!(server.delete(&member(PROJECT), &format!("/v2.0/routers/{}", id(&first))).status, 204);
    assert_eq!(server.list(&admin(), "ports", "").len(), 0);
    let second = server.make(&member(PROJECT), "router", json!({}));
    let networks = server.list(&admin(), "networks", "");
    assert_eq!(pick(&networks, "id"), [id(&network)]);
    assert_eq!(pick(&ha_ports(&server, &second), "network_id"), vec![id(&network).to_owned(); 3]);
    server.make(&member(OTHER), "router", json!({}));
    assert_eq!(server.list(&admin(), "networks", "").len(), 2, "another project has its own");
}

#[test]
fn the_255th_router_of_a_project_gets_a_further_ha_network() {
    let server = Server::with_many_ha_routers();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..254 {
        let router = server.make(&member(PROJECT), "router", json!({}));
        assert!(seen.insert(vrid(&server, &router)), "a VRID is used once");
    }
    assert_eq!((seen.first(), seen.last()), (Some(&1), Some(&254)));
    assert_eq!(server.list(&admin(), "networks", "").len(), 1);
    server.make(&member(PROJECT), "router", json!({}));
    let networks = server.list(&admin(), "networks", "");
    assert_eq!(pick(&networks, "name"), vec![format!("HA network tenant {PROJECT}"); 2]);
    // A VRID that becomes free on the first network is used before the second network grows.
    let gone = server.list(&admin(), "routers", "?limit=1")[0].clone();
    server.delete(&admin(), &format!("/v2.0/routers/{}", id(&gone)));
    server.make(&member(PROJECT), "router", json!({}));
    assert_eq!(server.list(&admin(), "networks", "").len(), 2);
}

#[test]
fn an_ha_interface_is_replicated_and_follows_the_active_copy() {
    let server = by_default();
    let (external, _) = server.make_external();
    let (_, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&member(PROJECT), "router", body);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    server.put(&member(PROJECT), &path, json!({"subnet_id": subnet["id"]}));
    let moving = |server: &Server| -> Vec<Value> {
        let ports = server.list(&admin(), "ports", &format!("?device_id={}", id(&router)));
        ports.into_iter().filter(|port| port["device_owner"] != "network:router_ha_interface").collect()
    };
    let owners = pick(&moving(&server), "device_owner");
    assert_eq!(owners, ["network:ha_router_replicated_interface", "network:router_gateway"]);
    assert_eq!(pick(&moving(&server), "binding:host_id"), ["", ""]);
    server.report_state("h2", &router, HaState::Active, 1);
    assert_eq!(pick(&moving(&server), "binding:host_id"), ["h2", "h2"]);
    server.report_state("h3", &router, HaState::Active, 2);
    assert_eq!(pick(&moving(&server), "binding:host_id"), ["h3", "h3"]);
    // The old active's word comes late: its epoch is older, so it changes nothing.
    server.report_state("h2", &router, HaState::Active, 1);
    assert_eq!(pick(&moving(&server), "binding:host_id"), ["h3", "h3"]);
}

#[test]
fn one_copy_is_shown_active_whatever_is_reported() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({}));
    let states = |server: &Server| server.ha_states(&router).into_values().collect::<Vec<_>>();
    server.report_state("h1", &router, HaState::Active, 1);
    assert_eq!(states(&server), ["active", "standby", "standby"]);
    server.report_state("h2", &router, HaState::Active, 2);
    assert_eq!(states(&server), ["standby", "active", "standby"]);
    server.silence("h2");
    assert_eq!(states(&server), ["active", "standby", "standby"], "of those heard of, the newest claim");
    server.report_state("h1", &router, HaState::Standby, 2);
    assert_eq!(states(&server), ["standby", "standby", "standby"]);
    server.silence("h1");
    server.silence("h3");
    assert_eq!(states(&server), ["unknown", "unknown", "unknown"]);
}

#[test]
fn whatever_hosts_say_of_each_other_s_takeovers_no_answer_shows_two_actives() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({}));
    let hosts = ["h1", "h2", "h3"];
    let mut said = [(HaState::Standby, 0); 3];
    let mut dice = 5_u64;
    for turn in 0..120 {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (host, roll) = ((dice >> 33) as usize % 3, dice >> 40);
        // Mostly that it is active: in a new epoch, in that of another one, or in one that is long over.
        let state = if roll % 4 == 0 { HaState::Standby } else { HaState::Active };
        said[host] = (state, roll % 6);
        server.report_state(hosts[host], &router, state, roll % 6);
        let newest = said.iter().filter(|(state, _)| *state == HaState::Active).map(|(_, epoch)| *epoch).max();
        let answer = server.get(&admin(), &format!("/v2.0/routers/{}/evergate:hosts", id(&router)));
        let rows = answer.body["hosts"].as_array().unwrap().clone();
        let row =
            |row: &Value| (row["host"].as_str().unwrap().to_owned(), row["ha_state"].as_str().unwrap().to_owned());
        for states in [server.ha_states(&router), rows.iter().map(row).collect()] {
            let active: Vec<_> = states.iter().filter(|(_, state)| *state == "active").collect();
            assert_eq!(active.len(), usize::from(newest.is_some()), "turn {turn}: {said:?} is shown as {states:?}");
            for (host, _) in active {
                let at = hosts.iter().position(|one| one == host).unwrap();
                assert_eq!(said[at], (HaState::Active, newest.unwrap()), "turn {turn}: {said:?}");
            }
        }
    }
}

#[test]
fn copies_go_to_the_hosts_with_the_fewest_routers() {
    let server = Server::with(Options { l3_ha: true, max_l3_agents_per_router: 2, ..Options::default() });
    server.hosts();
    server.host("h4");
    let mut count = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..6 {
        let router = server.make(&member(PROJECT), "router", json!({}));
        for host in server.ha_states(&router).into_keys() {
            *count.entry(host).or_default() += 1;
        }
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [3, 3, 3, 3]);
}

#[test]
fn dead_and_disabled_agents_get_no_copy() {
    let server = Server::with(Options { max_l3_agents_per_router: 0, ..Options::default() });
    server.hosts();
    server.host("h4");
    server.silence("h1");
    let agents = server.list(&admin(), "agents", "?host=h2&agent_type=L3%20agent");
    let path = format!("/v2.0/agents/{}", id(&agents[0]));
    assert_eq!(server.put(&admin(), &path, json!({"agent": {"admin_state_up": false}})).status, 200);
    let router = server.make(&admin(), "router", json!({"ha": true}));
    assert_eq!(server.ha_states(&router).into_keys().collect::<Vec<_>>(), ["h3", "h4"]);
    server.put(&admin(), &path, json!({"agent": {"admin_state_up": true}}));
    assert_eq!(server.ha_states(&router).len(), 3, "0 means every eligible host, also later ones");
}

#[test]
fn a_router_with_too_few_copies_is_completed_when_a_host_appears() {
    let server = Server::with(Options { l3_ha: true, ..Options::default() });
    server.host("h1");
    let router = server.make(&member(PROJECT), "router", json!({}));
    assert_eq!(server.ha_states(&router).len(), 1);
    server.host("h2");
    server.host("h3");
    server.host("h4");
    assert_eq!(server.ha_states(&router).into_keys().collect::<Vec<_>>(), ["h1", "h2", "h3"]);
    assert_eq!(ha_ports(&server, &router).len(), 3);
    // A removed agent's copy is replaced by one on the host that is left.
    let agent = server.list(&admin(), "agents", "?host=h2&agent_type=L3%20agent")[0].clone();
    assert_eq!(server.delete(&admin(), &format!("/v2.0/agents/{}", id(&agent))).status, 204);
    assert_eq!(server.ha_states(&router).into_keys().collect::<Vec<_>>(), ["h1", "h3", "h4"]);
    assert_eq!(pick(&ha_ports(&server, &router), "binding:host_id"), ["h1", "h3", "h4"]);
}

#[test]
fn a_router_that_is_down_changes_kind_and_back() {
    let server = Server::new();
    server.hosts();
    let (external, _) = server.make_external();
    let (_, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let path = format!("/v2.0/routers/{}", id(&router));
    server.put(&admin(), &format!("{path}/add_router_interface"), json!({"subnet_id": subnet["id"]}));
    let changed = server.put(&admin(), &path, json!({"router": {"ha": true, "admin_state_up": false}}));
    assert_eq!(changed.body["router"]["ha"], true, "{changed:?}");
    assert_eq!(server.ha_states(&router).len(), 3);
    let owners = |server: &Server| {
        let ports = server.list(&admin(), "ports", &format!("?device_id={}", id(&router)));
        let mut owners = pick(&ports, "device_owner");
        owners.dedup();
        owners
    };
    let ha = ["network:ha_router_replicated_interface", "network:router_gateway", "network:router_ha_interface"];
    assert_eq!(owners(&server), ha);
    let changed = server.put(&admin(), &path, json!({"router": {"ha": false}}));
    assert_eq!(changed.body["router"]["ha"], false, "{changed:?}");
    assert_eq!(server.ha_states(&router).len(), 1);
    assert_eq!(owners(&server), ["network:router_gateway", "network:router_interface"]);
}

#[test]
fn ha_ports_are_not_deleted_by_hand() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({}));
    let port = ha_ports(&server, &router)[0].clone();
    let refused = server.delete(&admin(), &format!("/v2.0/ports/{}", id(&port)));
    assert_eq!((refused.status, refused.error()), (409, "ServicePortInUse"));
    let text = format!(
        "Port {} cannot be deleted directly via the port API: has device owner network:router_ha_interface.",
        id(&port)
    );
    assert_eq!(refused.message(), text);
    let network = server.list(&admin(), "networks", "")[0].clone();
    let refused = server.delete(&admin(), &format!("/v2.0/networks/{}", id(&network)));
    assert_eq!((refused.status, refused.error()), (409, "NetworkInUse"));
}

#[test]
fn an_empty_ha_network_may_be_deleted_and_is_made_anew() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({}));
    server.delete(&admin(), &format!("/v2.0/routers/{}", id(&router)));
    let network = server.list(&admin(), "networks", "")[0].clone();
    assert_eq!(server.delete(&admin(), &format!("/v2.0/networks/{}", id(&network))).status, 204);
    server.make(&member(PROJECT), "router", json!({}));
    assert_eq!(server.list(&admin(), "networks", "").len(), 1);
}

#[test]
fn a_wish_where_the_active_copy_is_to_be_reaches_the_hosts_until_it_has_come_true() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({}));
    let path = format!("/v2.0/routers/{}", id(&router));
    let put = |body: Value| server.put(&admin(), &path, json!({"router": body}));
    let wish = |host: &str| {
        let told = server.told(host);
        let copy = told.routers.values().next().and_then(|router| router.ha.clone()).unwrap();
        copy.wish.map(|wish| (wish.host, wish.at_once))
    };
    server.report_state("h1", &router, HaState::Active, 1);
    assert_eq!(wish("h1"), None);
    let shown = server.shown("router", id(&router));
    assert!(shown.get("evergate:preferred_host").is_none(), "as Neutron's: {shown}");

    assert_eq!(put(json!({"evergate:preferred_host": "h2"})).status, 200);
    assert_eq!(wish("h1"), None, "it does not return of itself");
    let shown = server.shown("router", id(&router));
    assert_eq!((&shown["evergate:preferred_host"], &shown["evergate:preempt"]), (&json!("h2"), &json!(false)));
    assert_eq!(put(json!({"evergate:preempt": true})).status, 200);
    assert_eq!(wish("h1"), Some(("h2".to_owned(), false)));
    assert_eq!(put(json!({"evergate:move_to": "h3"})).status, 200);
    assert_eq!(wish("h1"), Some(("h3".to_owned(), true)));
    server.report_state("h3", &router, HaState::Active, 2);
    assert_eq!(wish("h3"), Some(("h2".to_owned(), false)), "the move is over, the preference stands");
    assert_eq!(put(json!({"evergate:move_to": "h3"})).body["router"]["evergate:move_to"], json!(null));

    for bad in [
        json!({"evergate:preferred_host": "nowhere"}),
        json!({"evergate:move_to": "nowhere"}),
        json!({"evergate:preempt": "perhaps"}),
    ] {
        assert_eq!(put(bad.clone()).status, 400, "{bad}");
    }
    let mine = server.put(&member(PROJECT), &path, json!({"router": {"evergate:move_to": "h1"}}));
    assert_eq!(mine.status, 403, "{mine:?}");
    let seen = server.get(&member(PROJECT), &path);
    assert!(seen.body["router"].get("evergate:preferred_host").is_none(), "{seen:?}");
}
