//! Conversions between the kinds of routers.

use super::*;

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// What must survive a conversion: of every port that both kinds have, its id, MAC and addresses.
fn lasting(w: &World) -> Vec<Value> {
    let ports = w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router)));
    let lasting = |port: &Value| {
        let owner = port["device_owner"].as_str().unwrap();
        owner.contains("gateway")
            || owner.ends_with("interface") && !owner.contains("ha_interface")
            || owner.ends_with("distributed")
    };
    let ports = ports.iter().filter(|port| lasting(port));
    ports.map(|port| json!([port["id"], port["mac_address"], port["fixed_ips"], port["project_id"]])).collect()
}

#[test]
fn a_router_becomes_any_other_kind_as_it_stands() {
    for (distributed, ha) in KINDS {
        let w = world(true);
        w.instance(0, "h3");
        w.change(json!({"distributed": distributed, "ha": ha}));
        for (to_distributed, to_ha) in KINDS {
            let before = lasting(&w);
            assert_eq!(before.len(), 3, "{before:?}");
            let shown = w.change(json!({"distributed": to_distributed, "ha": to_ha}));
            assert_eq!((&shown["distributed"], &shown["ha"]), (&json!(to_distributed), &json!(to_ha)));
            assert_eq!((&shown["status"], &shown["admin_state_up"]), (&json!("ACTIVE"), &json!(true)));
            assert_eq!(lasting(&w), before);
            check_kind(&w, to_distributed, to_ha);
            w.change(json!({"distributed": distributed, "ha": ha}));
            check_kind(&w, distributed, ha);
        }
    }
}

/// Everything about the router is as its kind has it.
#[track_caller]
fn check_kind(w: &World, distributed: bool, ha: bool) {
    let mut owners = pick(&w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router))), "device_owner");
    owners.dedup();
    let mut expected = vec!["network:router_gateway"];
    expected.push(match (distributed, ha) {
        (true, _) => "network:router_interface_distributed",
        (false, true) => "network:ha_router_replicated_interface",
        (false, false) => "network:router_interface",
    });
    expected.extend(distributed.then_some("network:router_centralized_snat"));
    expected.extend(ha.then_some("network:router_ha_interface"));
    expected.sort_unstable();
    assert_eq!(owners, expected);
    let copies = w.server.ha_states(&w.router);
    assert_eq!(copies.len(), if ha { 2 } else { 1 });
    assert_eq!(w.routing(&w.router), if distributed { vec!["h3"] } else { vec![] });
    assert_eq!(w.agent_gateways().len(), usize::from(distributed));
    for host in copies.keys() {
        let told = w.server.told(host).routers[&router_id(&w.router)].clone();
        assert_eq!((told.ha.is_some(), told.distributed.is_some()), (ha, distributed));
        assert_eq!(told.interfaces.len(), 2);
    }
    let interfaces = w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router)));
    let hosts = interfaces.iter().filter(|port| port["device_owner"].as_str().unwrap().contains("router_interface"));
    let expected = if distributed || ha { String::new() } else { copies.keys().next().unwrap().clone() };
    hosts.for_each(|port| assert_eq!(port["binding:host_id"], expected));
}

#[test]
fn a_conversion_keeps_the_active_copy_where_it_is_and_its_epoch() {
    let w = world(true);
    w.server.report_state("h2", &w.router, HaState::Active, 7);
    let ha = |w: &World| w.server.told("h2").routers[&router_id(&w.router)].ha.clone().unwrap();
    let before = ha(&w);
    w.change(json!({"distributed": false}));
    assert_eq!((ha(&w).inherits, before.inherits), (Some(7), None), "it goes on unless somebody was active since");
    assert_eq!(HaCopy { inherits: None, ..ha(&w) }, before, "VRID, HA port and epoch are the same");
    let other = w.server.ha_states(&w.router).into_keys().find(|host| host != "h2").unwrap();
    assert_eq!(w.server.told(&other).routers[&router_id(&w.router)].ha.as_ref().unwrap().inherits, None);
    assert_eq!(w.server.ha_states(&w.router)["h2"], "active");
    w.change(json!({"ha": false}));
    assert_eq!(w.server.ha_states(&w.router).into_keys().collect::<Vec<_>>(), ["h2"]);
    w.change(json!({"ha": true, "distributed": true}));
    // Hosts that remember the last epoch follow the next, and what a copy claimed while the router stopped
    // being HA, unheard by the server, is no reason for the heir to wait.
    assert_eq!((ha(&w).inherits, ha(&w).epoch), (Some(23), 23));
    assert!(w.server.ha_states(&w.router).len() == 2);
}

#[test]
fn a_router_that_was_never_highly_available_is_not_taken_for_a_new_one() {
    let w = world(false);
    w.change(json!({"distributed": false}));
    let serving = w.server.ha_states(&w.router).into_keys().next().unwrap();
    w.change(json!({"ha": true}));
    for (host, _) in w.server.ha_states(&w.router) {
        let ha = w.server.told(&host).routers[&router_id(&w.router)].ha.clone().unwrap();
        assert!(ha.epoch > 0, "{host} need not wait for anybody");
        assert_eq!(ha.inherits, (host == serving).then_some(ha.epoch), "{host}");
    }
}

#[test]
fn clients_that_set_a_router_down_first_are_served_too() {
    let w = world(false);
    w.change(json!({"admin_state_up": false}));
    let shown = w.change(json!({"distributed": false, "ha": true}));
    assert_eq!((&shown["ha"], &shown["admin_state_up"]), (&json!(true), &json!(false)));
    assert_eq!(w.change(json!({"admin_state_up": true}))["status"], "ACTIVE");
    w.change(json!({"admin_state_up": false, "distributed": true}));
    assert!(!w.server.told("h1").routers[&router_id(&w.router)].admin_state_up);
}

#[test]
fn a_conversion_that_cannot_be_is_refused_before_anything_changes() {
    let server = Server::new();
    server.hosts();
    let (external, _) = server.make_external();
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.1.0/24");
    let path = format!("/v2.0/routers/{}", id(&router));
    server.put(&admin(), &format!("{path}/add_router_interface"), json!({"subnet_id": subnet["id"]}));
    let refused = |server: &Server, body: Value| {
        let before = server.dump();
        let answer = server.put(&admin(), &path, json!({"router": body}));
        assert_eq!((answer.status, answer.error()), (400, "BadRequest"), "{answer:?}");
        assert_eq!(server.dump(), before);
        answer.message().to_owned()
    };
    let why = refused(&server, json!({"distributed": true, "name": "other"}));
    assert!(why.contains("a distributed router: no L3 agent in mode dvr_snat is alive"), "{why}");
    server.host_in_mode("h4", "dvr_snat");
    let instance = json!({"network_id": network["id"], "device_owner": "compute:nova", "binding:host_id": "h2"});
    server.make(&admin(), "port", instance);
    let why = refused(&server, json!({"distributed": true, "ha": true}));
    assert!(why.contains("hosts that route for none: h2 (agent_mode legacy)"), "{why}");
    server.host_in_mode("h2", "dvr");
    let answer = server.put(&admin(), &path, json!({"router": {"distributed": true}}));
    assert_eq!(answer.status, 200, "{answer:?}");
    ["h1", "h3", "h4"].into_iter().for_each(|name| server.silence(name));
    let why = refused(&server, json!({"ha": true}));
    assert!(why.contains("no L3 agent in mode dvr_snat is alive"), "{why}");
    let why = refused(&server, json!({"distributed": false}));
    assert!(why.contains("a legacy router: no L3 agent in mode legacy or dvr_snat is alive"), "{why}");
}

#[test]
fn a_router_that_is_up_stays_highly_available_where_no_agent_could_have_it_otherwise() {
    let server = Server::new();
    server.hosts();
    let router = server.make(&admin(), "router", json!({"ha": true}));
    ["h1", "h2", "h3"].into_iter().for_each(|name| server.silence(name));
    let before = server.dump();
    let path = format!("/v2.0/routers/{}", id(&router));
    let answer = server.put(&admin(), &path, json!({"router": {"ha": false, "name": "other"}}));
    assert_eq!((answer.status, answer.error()), (400, "BadRequest"));
    let why = format!(
        "Bad router request: Router {} cannot become a legacy router: no L3 agent in mode legacy or dvr_snat is alive, \
         enabled and in its availability zones.",
        id(&router)
    );
    assert_eq!(answer.message(), why);
    assert_eq!(server.dump(), before, "nothing of it was changed, the name neither");
    server.host("h2");
    assert_eq!(server.put(&admin(), &path, json!({"router": {"ha": false}})).status, 200);
}
