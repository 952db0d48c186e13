//! Distributed routers and agents: scheduling by hand, who has one, and what one lacks.

use super::*;

#[test]
fn routers_go_to_agents_by_hand_as_their_modes_allow() {
    let w = world(false);
    w.server.host_in_mode("h5", "legacy");
    let agent = |host: &str| {
        let agents = w.server.list(&admin(), "agents", &format!("?host={host}&binary=neutron-l3-agent"));
        format!("/v2.0/agents/{}/l3-routers", id(&agents[0]))
    };
    let add = |host: &str| w.server.post(&admin(), &agent(host), json!({"router_id": w.router["id"]}));
    let before = w.server.dump();
    let refused = add("h3");
    assert_eq!((refused.status, refused.error()), (409, "DVRL3CannotAssignToDvrAgent"));
    let refused = add("h5");
    assert_eq!((refused.status, refused.error()), (409, "RouterL3AgentMismatch"));
    let other = if w.server.ha_states(&w.router).contains_key("h1") { "h2" } else { "h1" };
    assert_eq!(add(other).error(), "RouterHostedByL3Agent");
    let remove = |host: &str| w.server.delete(&admin(), &format!("{}/{}", agent(host), id(&w.router)));
    let refused = remove("h4");
    assert_eq!((refused.status, refused.error()), (409, "DVRL3CannotRemoveFromDvrAgent"));
    assert_eq!(w.server.dump(), before);
    let here = if other == "h1" { "h2" } else { "h1" };
    assert_eq!(remove(here).status, 204);
    assert_eq!(add(other).status, 201);
    assert_eq!(pick(&w.snat_ports(), "binding:host_id"), [other, other]);
}

#[test]
fn the_hosts_of_a_router_are_listed_in_full_for_admins() {
    let w = world(true);
    w.instance(0, "h3");
    w.server.report_state("h1", &w.router, HaState::Active, 1);
    let path = format!("/v2.0/routers/{}/evergate:hosts", id(&w.router));
    assert_eq!(w.server.get(&member(PROJECT), &path).status, 403);
    let answer = w.server.get(&admin(), &path);
    let said: Vec<_> = answer.body["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| {
            json!([
                host["host"],
                host["agent_mode"],
                host["alive"],
                host["routes"],
                host["translates"],
                host["ha_state"]
            ])
        })
        .collect();
    assert_eq!(
        said,
        [
            json!(["h1", "dvr_snat", true, false, true, "active"]),
            json!(["h2", "dvr_snat", true, false, true, "standby"]),
            json!(["h3", "dvr", true, true, false, null]),
        ]
    );
    let agents = w.server.list(&admin(), "agents", "?host=h3&binary=neutron-l3-agent");
    let routers = w.server.get(&admin(), &format!("/v2.0/agents/{}/l3-routers", id(&agents[0])));
    assert_eq!(pick(routers.body["routers"].as_array().unwrap(), "id"), [id(&w.router)]);
    assert_eq!(w.server.ha_states(&w.router).len(), 2, "l3-agents are those of the source NAT, as in Neutron");
}

#[test]
fn what_a_distributed_router_lacks_is_told() {
    let warnings = |server: &Server, router: &Value| -> Vec<String> {
        let shown = server.shown("router", id(router));
        let warnings = shown.get("evergate:warnings").and_then(Value::as_array).cloned().unwrap_or_default();
        warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let server = Server::new();
    server.host_in_mode("h3", "dvr");
    let inside = server.make(&admin(), "router", json!({"distributed": true}));
    assert_eq!(inside["status"], "ACTIVE", "there is nothing to translate");
    assert!(warnings(&server, &inside).is_empty());
    let (external, _) = server.make_external();
    let body = json!({"distributed": true, "external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    assert_eq!(router["status"], "ALLOCATING");
    assert!(warnings(&server, &router)[0].starts_with("0 of 1 copies of its source NAT: "));
    assert_eq!(pick(&server.list(&admin(), "routers", "?status=ALLOCATING"), "id"), [id(&router)]);
    drop(server);

    let w = world(true);
    assert!(warnings(&w.server, &w.router)[0].starts_with("2 of 3 copies of its source NAT: "));
    w.instance(0, "h3");
    w.instance(0, "h4");
    w.instance(0, "h5");
    w.server.host_in_mode("h3", "legacy");
    w.server.host_with("h4", "dvr", &json!({}));
    w.server.silence("h5");
    assert_eq!(
        warnings(&w.server, &w.router)[1..],
        [
            "hosts with ports on its subnets that do not route for it: h3 (agent_mode legacy)",
            "hosts that route for it and are not heard of: h5",
            "hosts without a device for its external network, whose floating IPs go by its source NAT: h4",
        ]
    );
}
