//! Which changes a host is looked at for, and at what cost.

use evergate_server::hostview::{Name, Picture};

use super::*;

/// What happens, and how.
type Step<'a> = (&'static str, Box<dyn Fn() + 'a>);

#[test]
fn whoever_is_told_something_else_is_looked_at_and_a_bystander_is_not() {
    let w = world(true);
    let (instance, other) = (w.instance(0, ""), w.instance(1, "h4"));
    let floating_ip = w.server.make(&admin(), "floatingip", json!({"floating_network_id": w.external["id"]}));
    let put = |path: String, body: Value| assert_eq!(w.server.put(&admin(), &path, body).status, 200);
    let router = |body: Value| put(format!("/v2.0/routers/{}", id(&w.router)), json!({"router": body}));
    let float = |port: &Value| {
        put(format!("/v2.0/floatingips/{}", id(&floating_ip)), json!({"floatingip": {"port_id": port}}));
    };
    let pairs = json!({"port": {"allowed_address_pairs": [{"ip_address": "10.0.1.200"}]}});
    let steps: Vec<Step<'_>> = vec![
        ("a port is bound", Box::new(|| w.bind(&instance, "h3"))),
        ("a floating IP is given", Box::new(|| float(&instance["id"]))),
        ("its port moves", Box::new(|| w.bind(&instance, "h1"))),
        ("its port moves again", Box::new(|| w.bind(&instance, "h3"))),
        ("a copy is active", Box::new(|| w.server.report_state("h2", &w.router, HaState::Active, 1))),
        ("a copy takes over", Box::new(|| w.server.report_state("h1", &w.router, HaState::Active, 2))),
        ("a pair is added", Box::new(|| put(format!("/v2.0/ports/{}", id(&instance)), pairs.clone()))),
        (
            "a route is added",
            Box::new(|| {
                router(json!({"routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.2.77"}]}));
            }),
        ),
        (
            "source NAT is off",
            Box::new(|| {
                router(json!({"external_gateway_info": {"network_id": w.external["id"], "enable_snat": false}}));
            }),
        ),
        ("it is down", Box::new(|| router(json!({"admin_state_up": false})))),
        ("it is up", Box::new(|| router(json!({"admin_state_up": true})))),
        ("it is central", Box::new(|| router(json!({"distributed": false})))),
        ("it is legacy", Box::new(|| router(json!({"ha": false})))),
        ("it is distributed", Box::new(|| router(json!({"distributed": true})))),
        ("it is both", Box::new(|| router(json!({"ha": true})))),
        ("a host has no way out", Box::new(|| w.server.host_in_mode("h3", "dvr_no_external"))),
        ("a host has one again", Box::new(|| w.server.host_in_mode("h3", "dvr"))),
        ("the floating IP is taken", Box::new(|| float(&json!(null)))),
        ("the route is taken", Box::new(|| router(json!({"routes": []})))),
        ("there is no gateway", Box::new(|| router(json!({"external_gateway_info": null})))),
        ("an interface is gone", Box::new(|| w.unplug(&w.router, &w.subnets[1]))),
        (
            "a port is gone",
            Box::new(|| {
                assert_eq!(w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&other))).status, 204);
            }),
        ),
    ];
    let names = ["h1", "h2", "h3", "h4", "h5"];
    let mut picture = Picture::default();
    let mut look = |joining: &[Name]| {
        let news = w.server.store.read(|tx| picture.look(tx, &w.server.options, joining)).unwrap();
        let touched: Vec<String> = picture.take(news).iter().map(|view| view.host().to_string()).collect();
        let views = names.map(|name| picture.view(name).unwrap().config(picture.revision()));
        (touched, views)
    };
    let (_, mut before) = look(&names.map(Name::from));
    for (what, step) in steps {
        step();
        let (touched, now) = look(&[]);
        let mut news = 0;
        for (name, (sent, now)) in names.into_iter().zip(before.iter().zip(&now)) {
            assert_eq!(*now, w.server.told(name), "{what}: what {name} is told");
            let differs = evergate_model::stream::Change::between(sent, now).is_some();
            let is_touched = touched.iter().any(|host| host == name);
            assert!(is_touched || !differs, "{what}: {name} would not hear of it");
            assert!(!(is_touched && name == "h5" && !what.starts_with("a host has")), "{what}: {name} is bothered");
            news += usize::from(differs);
        }
        before = now;
        assert!(news > 0, "{what}: nobody is told anything");
    }
}

#[test]
fn what_is_read_for_a_host_does_not_grow_with_its_routers() {
    let w = world_with(
        Options { limits: evergate_server::options::Limits { router: -1, ..Default::default() }, ..Options::default() },
        true,
    );
    let add = |n: usize| {
        let body = json!({
            "distributed": true, "ha": true, "external_gateway_info": {"network_id": w.external["id"]},
        });
        let router = w.server.make(&admin(), "router", body);
        let (network, subnet) = w.server.make_network(&admin(), "n", &format!("10.1.{n}.0/24"));
        w.plug(&router, &subnet);
        let port = json!({"network_id": network["id"], "binding:host_id": "h3"});
        let port = w.server.make(&admin(), "port", port);
        w.server.make(&admin(), "floatingip", json!({"floating_network_id": w.external["id"], "port_id": port["id"]}));
        network
    };
    let cost = |host: &str| -> usize {
        let read = |tx: &evergate_server::store::Tx<'_>| {
            evergate_server::hostview::host_config(tx, &w.server.options, host)?;
            Ok::<_, evergate_server::error::ApiError>(tx.statements())
        };
        w.server.store.read(read).unwrap()
    };
    // What a write has to look at for one more port of a router that is there already.
    let settling = |network: &Value| -> usize {
        w.server.make(&admin(), "port", json!({"network_id": network["id"], "binding:host_id": "h3"}));
        w.server.write(|tx| {
            tx.changed(evergate_server::store::Kind::Network, network["id"].as_str().unwrap());
            evergate_server::dvr::settle(tx, &w.server.options)?;
            Ok(tx.statements())
        })
    };
    let network = add(0);
    let (few, settled) = (["h1", "h3"].map(cost), settling(&network));
    (1..12).for_each(|n| drop(add(n)));
    assert_eq!(w.server.told("h3").routers.len(), 12);
    assert_eq!((["h1", "h3"].map(cost), settling(&network)), (few, settled));
}
