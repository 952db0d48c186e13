//! Wrong use through the stock client and past it: Neutron's answers, and nothing half-done.

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::{Lab, Node, wait_for};
use serde_json::{Value, json};

use crate::support::{Cloud, PATIENCE};

#[test]
fn wrong_requests_are_refused_as_neutron_refuses_them() {
    let mut cloud = Cloud::up("bad", Some(1));
    let router = cloud.with_router();
    let before = everything(&cloud.lab);

    for (command, status) in [
        ("port create p --network private --fixed-ip subnet=private-subnet,ip-address=10.9.9.9", "400"),
        ("subnet create again --network private --subnet-range 10.0.0.0/25", "400"),
        ("network delete private", "409"),
        ("subnet delete private-subnet", "409"),
        ("router delete router1", "409"),
        ("router add subnet router1 private-subnet", "400"),
        ("router set router1 --ha", "403"),
        ("network create x --external", "403"),
        ("port create p --network private --host net1", "403"),
    ] {
        let refusal = cloud.member.refused(command).unwrap();
        assert!(refusal.contains(status), "openstack {command}: {refusal}");
    }
    for (method, path, body, status, kind) in [
        ("POST", "/v2.0/routers", json!({"router": {"colour": "red"}}), 400, "HTTPBadRequest"),
        ("POST", "/v2.0/routers", json!({"router": {"name": 7}}), 400, ""),
        ("POST", "/v2.0/routers", json!({"network": {}}), 400, "HTTPBadRequest"),
        ("POST", "/v2.0/routers", json!({"routers": [{}, {}]}), 400, "HTTPBadRequest"),
        ("GET", "/v2.0/routers/00000000-0000-0000-0000-000000000000", Value::Null, 404, "RouterNotFound"),
        ("PUT", "/v2.0/networks/nonsense", json!({"network": {"name": "x"}}), 404, "NetworkNotFound"),
    ] {
        let body = (!body.is_null()).then_some(&body);
        let answer = cloud.lab.api(method, path, body).unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        let shown = &answer.body["NeutronError"]["type"];
        assert!(kind.is_empty() || shown == kind, "{method} {path}: {}", answer.body);
        assert!(shown.is_string() && answer.body["NeutronError"]["message"].is_string(), "{}", answer.body);
    }
    assert_eq!(everything(&cloud.lab), before, "something was half-done");
    assert_eq!(cloud.lab.hosts_of(router).len(), 3);
}

#[test]
fn a_foreign_namespace_in_the_way_is_left_alone_and_explained() {
    let mut cloud = Cloud::up("foreign", Some(1));
    let router = cloud.with_router();
    let active = cloud.lab.wait_active(router).unwrap();
    let mut others = cloud.lab.hosts_of(router);
    others.retain(|node| *node != active);
    let host = cloud.lab.machine(others[0]);

    // While the daemon is away, somebody else takes the name of the router's namespace.
    let gone = Fault::Process(Daemon::Host, Signal::Term);
    cloud.lab.fail(others[0], gone.clone()).unwrap();
    wait_for("the daemon has stopped", PATIENCE, || Ok(host.daemons(Daemon::Keeper).is_empty().then_some(()))).unwrap();
    host.shell(&format!("ip netns delete qrouter-{router}; ip netns add qrouter-{router}")).unwrap();
    host.shell(&format!("ip -n qrouter-{router} link add mine type veth peer name other")).unwrap();
    cloud.lab.heal(others[0], &gone).unwrap();
    wait_for("the daemon explains what is in the way", PATIENCE, || {
        let shown: Value = serde_json::from_str(&host.shell("evergate show --json")?)?;
        let problems = shown["problems"].to_string();
        Ok(problems.contains(&format!("qrouter-{router}")).then_some(()))
    })
    .unwrap();
    let links = host.shell(&format!("ip -n qrouter-{router} -br link")).unwrap();
    assert!(links.contains("mine") && !links.contains("ha-"), "it was touched: {links}");
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
}

/// Ids and revisions of all that a refused request might have changed.
fn everything(lab: &Lab) -> Vec<String> {
    let mut all = Vec::new();
    for kind in ["networks", "subnets", "ports", "routers", "floatingips"] {
        let list = lab.api_ok("GET", &format!("/v2.0/{kind}"), None).unwrap();
        let objects = list[kind].as_array().cloned().unwrap_or_default();
        // Ports are left out of the comparison of revisions: their status may still be changing.
        let revision = |object: &Value| if kind == "ports" { Value::Null } else { object["revision_number"].clone() };
        all.extend(objects.iter().map(|object| format!("{kind} {} {}", object["id"], revision(object))));
    }
    all.sort();
    all
}

#[test]
fn a_lab_verb_that_makes_no_sense_says_why() {
    let cloud = Cloud::up("verbs", Some(1));
    let error = cloud.lab.add_instance("vm1", "no-such-port", Node::Compute(1)).unwrap_err();
    assert!(format!("{error:#}").contains("0 ports are named 'no-such-port'"), "{error:#}");
    let error = cloud.lab.add_instance("vm1", "x", Node::Controller).unwrap_err();
    assert!(error.to_string().contains("runs no instances"), "{error:#}");
}
