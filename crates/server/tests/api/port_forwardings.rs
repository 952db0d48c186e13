//! Port forwardings of floating IPs.

use evergate_server::objects::floating_ip;
use serde_json::{Value, json};

use crate::harness::{Answer, OTHER, PROJECT, Server, admin, id, member, reader};

struct World {
    server: Server,
    external: Value,
    subnet: Value,
    router: Value,
    port: Value,
    floating_ip: Value,
}

fn world() -> World {
    let server = Server::new();
    server.hosts();
    let (external, _) = server.make_external();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&member(PROJECT), "router", body);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    server.put(&member(PROJECT), &path, json!({"subnet_id": subnet["id"]}));
    let port = json!({"network_id": network["id"], "name": "vm", "fixed_ips": [{"ip_address": "10.0.0.5"}]});
    let port = server.make(&member(PROJECT), "port", port);
    let floating_ip = server.make(&member(PROJECT), "floatingip", json!({"floating_network_id": external["id"]}));
    World { server, external, subnet, router, port, floating_ip }
}

impl World {
    fn path(&self) -> String {
        format!("/v2.0/floatingips/{}/port_forwardings", id(&self.floating_ip))
    }

    fn post(&self, extra: Value) -> Answer {
        let mut body = json!({
            "internal_port_id": self.port["id"], "internal_ip_address": "10.0.0.5", "protocol": "tcp",
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.server.post(&member(PROJECT), &self.path(), json!({"port_forwarding": body}))
    }

    #[track_caller]
    fn make(&self, extra: Value) -> Value {
        let answer = self.post(extra);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body["port_forwarding"].clone()
    }

    fn put(&self, forwarding: &Value, attributes: Value) -> Answer {
        let path = format!("{}/{}", self.path(), id(forwarding));
        self.server.put(&member(PROJECT), &path, json!({"port_forwarding": attributes}))
    }

    fn shown_ip(&self) -> Value {
        self.server.shown("floatingip", id(&self.floating_ip))
    }
}

#[test]
fn a_port_is_forwarded_and_the_floating_ip_tells() {
    let w = world();
    let made = w.make(json!({"internal_port": 80, "external_port": "8080", "description": "web"}));
    let mut shown = made.as_object().unwrap().clone();
    shown.remove("id");
    let expected = json!({
        "internal_port_id": w.port["id"], "internal_ip_address": "10.0.0.5", "protocol": "tcp",
        "external_port": 8080, "internal_port": 80, "external_port_range": "8080:8080",
        "internal_port_range": "80:80", "description": "web",
    });
    assert_eq!(Value::from(shown), expected);
    let floating_ip = w.shown_ip();
    assert_eq!((&floating_ip["router_id"], &floating_ip["port_id"]), (&w.router["id"], &Value::Null));
    assert_eq!(floating_ip["port_forwardings"][0]["external_port"], 8080);
    assert_eq!(floating_ip["port_forwardings"][0]["id"], made["id"]);
    assert!(floating_ip["revision_number"].as_i64() > w.floating_ip["revision_number"].as_i64());
    let told = w.server.told("h1");
    let router = told.routers.values().next().unwrap();
    let forwarding = router.port_forwardings[&id(&made).parse().unwrap()];
    assert_eq!(
        (forwarding.protocol, forwarding.external_ports, forwarding.internal_ports),
        (6, (8080, 8080), (80, 80))
    );
    assert_eq!(forwarding.floating.to_string(), floating_ip["floating_ip_address"].as_str().unwrap());
    assert!(router.floating_ips.is_empty(), "it is not translated one to one");
}

#[test]
fn ranges_are_forwarded_one_to_one_or_to_a_single_port() {
    let w = world();
    let many = w.make(json!({"internal_port_range": "100:110", "external_port_range": "200:210"}));
    assert_eq!((&many["internal_port_range"], &many["external_port_range"]), (&json!("100:110"), &json!("200:210")));
    assert_eq!((many.get("internal_port"), many.get("external_port")), (None, None));
    w.make(json!({"internal_port_range": "22", "external_port_range": "300:310"}));
    let cases = [
        (json!({"internal_port_range": "400:405", "external_port_range": "400:410"}), "must be N-N or 1-N"),
        (json!({"internal_port": 500, "external_port": 210}), "200:210 and 210:210"),
        (json!({"internal_port": 105, "external_port": 500}), "100:110 and 105:105"),
        (json!({"internal_port": 500, "external_port": 70000}), "Invalid port: 70000"),
        (json!({"internal_port": 500, "external_port": 0}), "Invalid port: 0"),
        (json!({"internal_port_range": "9:8", "external_port": 1}), "must be lower than the second"),
        (json!({"internal_port_range": "1:2:3", "external_port": 1}), "separated by a colon"),
        (json!({"internal_port": 7, "internal_port_range": "8", "external_port": 7}), "do not say the same"),
        (json!({"internal_port": 500}), "Required attribute 'external_port' not specified"),
        (json!({"internal_port": 500, "external_port": 500, "protocol": "icmp"}), "'icmp' is not in"),
    ];
    let before = w.server.dump();
    for (extra, words) in cases {
        let refused = w.post(extra.clone());
        assert_eq!(refused.status, 400, "{extra}: {refused:?}");
        assert!(refused.message().contains(words), "{extra}: {}", refused.message());
        assert_eq!(w.server.dump(), before, "{extra}");
    }
    w.make(json!({"internal_port": 105, "external_port": 205, "protocol": "udp"}));
}

#[test]
fn a_forwarding_is_changed_found_and_removed() {
    let w = world();
    let first = w.make(json!({"internal_port": 80, "external_port": 8080}));
    let second = w.make(json!({"internal_port": 443, "external_port": 8443}));
    let changed = w.put(&first, json!({"external_port": 9090, "description": "moved"}));
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.body["port_forwarding"]["external_port"], 9090);
    assert_eq!(changed.body["port_forwarding"]["internal_port"], 80);
    assert_eq!(w.put(&first, json!({"external_port": 8443})).error(), "BadRequest");
    let list = |query: &str| {
        let answer = w.server.get(&reader(PROJECT), &format!("{}{query}", w.path()));
        answer.body["port_forwardings"].as_array().unwrap().clone()
    };
    assert_eq!(list("").len(), 2);
    assert_eq!(list("?external_port=8443&fields=id"), [json!({"id": second["id"]})]);
    assert_eq!(list("?protocol=udp").len(), 0);
    assert_eq!(list("?external_port_range=9090:9090").len(), 1);
    let page = w.server.get(&admin(), &format!("{}?limit=1&sort_key=external_port&sort_dir=asc", w.path()));
    assert_eq!(page.body["port_forwardings"][0]["id"], second["id"]);
    let next = page.body["port_forwardings_links"][0]["href"].as_str().unwrap();
    assert!(next.contains(&format!("{}?", w.path())), "{next}");
    for forwarding in [&first, &second] {
        assert_eq!(w.shown_ip()["router_id"], w.router["id"]);
        let path = format!("{}/{}", w.path(), id(forwarding));
        assert_eq!(w.server.delete(&member(PROJECT), &path).status, 204);
        assert_eq!(w.server.get(&member(PROJECT), &path).error(), "PortForwardingNotFound");
    }
    assert_eq!(w.shown_ip()["router_id"], Value::Null);
}

#[test]
fn a_floating_ip_leads_to_a_port_or_forwards_to_some() {
    let w = world();
    w.make(json!({"internal_port": 80, "external_port": 8080}));
    let path = format!("/v2.0/floatingips/{}", id(&w.floating_ip));
    let in_use = w.server.put(&member(PROJECT), &path, json!({"floatingip": {"port_id": w.port["id"]}}));
    assert_eq!((in_use.status, in_use.error()), (409, "FipInUseByPortForwarding"));
    let freed = w.server.put(&member(PROJECT), &path, json!({"floatingip": {"port_id": null}}));
    assert_eq!(freed.body["floatingip"]["router_id"], w.router["id"]);
    assert_eq!(w.server.delete(&member(PROJECT), &path).error(), "FipInUseByPortForwarding");
    let body = json!({"floatingip": {"floating_network_id": w.external["id"], "port_id": w.port["id"]}});
    let has = w.server.post(&member(PROJECT), "/v2.0/floatingips", body);
    assert_eq!((has.status, has.error()), (400, "PortHasPortForwarding"));
}

#[test]
fn a_port_that_a_floating_ip_leads_to_has_no_forwardings() {
    let w = world();
    let body = json!({"floating_network_id": w.external["id"], "port_id": w.port["id"]});
    let direct = w.server.make(&member(PROJECT), "floatingip", body);
    let refused = w.post(json!({"internal_port": 80, "external_port": 8080}));
    assert_eq!((refused.status, refused.error()), (409, "PortHasBindingFloatingIP"));
    let path = format!("/v2.0/floatingips/{}/port_forwardings", id(&direct));
    let body = json!({
        "internal_port_id": w.port["id"], "protocol": "tcp", "internal_port": 80, "external_port": 80,
    });
    let refused = w.server.post(&member(PROJECT), &path, json!({"port_forwarding": body}));
    assert_eq!((refused.status, refused.error()), (409, "FloatingIPPortAlreadyAssociated"));
}

#[test]
fn what_forwardings_need_stays_and_what_they_lead_to_takes_them_along() {
    let w = world();
    w.make(json!({"internal_port": 80, "external_port": 8080}));
    let router = format!("/v2.0/routers/{}", id(&w.router));
    let removed = w.server.put(
        &member(PROJECT),
        &format!("{router}/remove_router_interface"),
        json!({"subnet_id": w.subnet["id"]}),
    );
    assert_eq!(removed.error(), "RouterInterfaceInUseByFloatingIP");
    let cleared = w.server.put(&member(PROJECT), &router, json!({"router": {"external_gateway_info": null}}));
    assert_eq!(cleared.error(), "RouterExternalGatewayInUseByFloatingIp");
    let port = format!("/v2.0/ports/{}", id(&w.port));
    let moved = json!({"port": {"fixed_ips": [{"ip_address": "10.0.0.6"}]}});
    assert_eq!(w.server.put(&member(PROJECT), &port, moved).status, 200);
    assert_eq!((&w.shown_ip()["port_forwardings"], &w.shown_ip()["router_id"]), (&json!([]), &Value::Null));
    w.make(json!({"internal_ip_address": "10.0.0.6", "internal_port": 80, "external_port": 8080}));
    assert_eq!(w.server.delete(&member(PROJECT), &port).status, 204);
    assert_eq!(w.shown_ip()["port_forwardings"], json!([]));
}

#[test]
fn it_is_up_when_the_host_of_the_gateway_says_so() {
    let w = world();
    w.make(json!({"internal_port": 80, "external_port": 8080}));
    assert_eq!(w.shown_ip()["status"], "DOWN");
    let gateway = w.server.list(&admin(), "ports", "?device_owner=network:router_gateway")[0].clone();
    let host = gateway["binding:host_id"].as_str().unwrap().to_owned();
    let active = std::collections::BTreeSet::from([id(&w.shown_ip()).parse().unwrap()]);
    w.server.write(|tx| Ok(floating_ip::record_status(tx, "elsewhere", &active)?));
    assert_eq!(w.shown_ip()["status"], "DOWN", "the word is the gateway's host's");
    w.server.write(|tx| Ok(floating_ip::record_status(tx, &host, &active)?));
    assert_eq!(w.shown_ip()["status"], "ACTIVE");
}

#[test]
fn others_neither_see_nor_make_forwardings() {
    let w = world();
    let made = w.make(json!({"internal_port": 80, "external_port": 8080}));
    let path = format!("{}/{}", w.path(), id(&made));
    assert_eq!(w.server.get(&member(OTHER), &path).error(), "FloatingIPNotFound");
    assert_eq!(w.server.get(&member(OTHER), &w.path()).error(), "FloatingIPNotFound");
    assert_eq!(w.server.delete(&reader(PROJECT), &path).status, 403);
    let strange = w.server.make(&member(OTHER), "floatingip", json!({"floating_network_id": w.external["id"]}));
    let below = format!("/v2.0/floatingips/{}/port_forwardings/{}", id(&strange), id(&made));
    assert_eq!(w.server.get(&member(OTHER), &below).error(), "PortForwardingNotFound");
    assert_eq!(w.server.delete(&member(OTHER), &below).error(), "PortForwardingNotFound");
}
