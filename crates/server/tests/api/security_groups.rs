//! Security groups and their rules: kept and shown, and asked for by ports.

use evergate_server::options::{Limits, Options};
use serde_json::{Value, json};

use crate::harness::{Answer, OTHER, PROJECT, Server, admin, id, member, pick};

const GROUPS: &str = "/v2.0/security-groups";
const RULES: &str = "/v2.0/security-group-rules";

#[track_caller]
fn group(server: &Server, extra: Value) -> Value {
    let mut body = json!({"name": "web"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = server.post(&member(PROJECT), GROUPS, json!({"security_group": body}));
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.body["security_group"].clone()
}

fn rule(server: &Server, group: &Value, extra: Value) -> Answer {
    let mut body = json!({"security_group_id": group["id"], "direction": "ingress"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.post(&member(PROJECT), RULES, json!({"security_group_rule": body}))
}

fn refused(answer: &Answer, status: u16, error: &str) {
    assert_eq!((answer.status, answer.error()), (status, error), "{answer:?}");
}

fn default_group(server: &Server) -> Value {
    server.list(&member(PROJECT), "security-groups", "?name=default")[0].clone()
}

#[test]
fn a_project_finds_its_default_group_where_members_hear_each_other() {
    let server = Server::new();
    let groups = server.list(&member(PROJECT), "security-groups", "");
    assert_eq!(pick(&groups, "name"), ["default"]);
    assert_eq!(groups[0]["description"], "Default security group");
    let rules = groups[0]["security_group_rules"].as_array().unwrap();
    assert_eq!(pick(rules, "direction"), ["egress", "egress", "ingress", "ingress"]);
    assert_eq!(pick(rules, "ethertype"), ["IPv4", "IPv4", "IPv6", "IPv6"]);
    let ingress: Vec<_> = rules.iter().filter(|rule| rule["direction"] == "ingress").collect();
    assert!(ingress.iter().all(|rule| rule["remote_group_id"] == groups[0]["id"]));
    assert!(rules.iter().all(|rule| rule["belongs_to_default_sg"] == true && rule["project_id"] == PROJECT));
    assert_eq!(server.list(&member(PROJECT), "security-groups", "").len(), 1, "it is made once");
    assert_eq!(server.list(&admin(), "security-groups", &format!("?project_id={OTHER}")).len(), 1);
    let path = format!("{GROUPS}/{}", id(&groups[0]));
    let renamed = server.put(&member(PROJECT), &path, json!({"security_group": {"name": "other"}}));
    refused(&renamed, 409, "SecurityGroupCannotUpdateDefault");
    let described = server.put(&member(PROJECT), &path, json!({"security_group": {"description": "mine"}}));
    assert_eq!(described.body["security_group"]["description"], "mine");
    refused(&server.delete(&member(PROJECT), &path), 409, "SecurityGroupCannotRemoveDefault");
    assert_eq!(server.delete(&admin(), &path).status, 204);
    let taken = server.post(&member(PROJECT), GROUPS, json!({"security_group": {"name": "default"}}));
    refused(&taken, 409, "SecurityGroupDefaultAlreadyExists");
}

#[test]
fn a_group_lets_its_ports_send_and_counts_its_rules() {
    let server = Server::new();
    let made = group(&server, json!({"description": "servers", "stateful": false}));
    assert_eq!((&made["stateful"], &made["shared"], &made["tags"]), (&json!(false), &json!(false), &json!([])));
    assert_eq!(pick(made["security_group_rules"].as_array().unwrap(), "direction"), ["egress", "egress"]);
    let added = rule(&server, &made, json!({"protocol": "tcp", "port_range_min": 22, "port_range_max": "22"}));
    let added = added.body["security_group_rule"].clone();
    let mut shown = added.as_object().unwrap().clone();
    for volatile in ["id", "created_at", "updated_at", "tenant_id"] {
        assert!(shown.remove(volatile).is_some(), "{volatile}");
    }
    let expected = json!({
        "project_id": PROJECT, "security_group_id": made["id"], "direction": "ingress", "ethertype": "IPv4",
        "protocol": "tcp", "port_range_min": 22, "port_range_max": 22, "remote_ip_prefix": null,
        "normalized_cidr": null, "remote_group_id": null, "description": "", "revision_number": 0,
        "belongs_to_default_sg": false,
    });
    assert_eq!(Value::from(shown), expected);
    let path = format!("{GROUPS}/{}", id(&made));
    let grown = server.get(&member(PROJECT), &path).body["security_group"].clone();
    assert_eq!(grown["security_group_rules"].as_array().unwrap().len(), 3);
    assert!(grown["revision_number"].as_i64() > made["revision_number"].as_i64());
    let rule_path = format!("{RULES}/{}", id(&added));
    let described = server.put(&member(PROJECT), &rule_path, json!({"security_group_rule": {"description": "ssh"}}));
    assert_eq!(described.body["security_group_rule"]["description"], "ssh");
    let moved = server.put(&member(PROJECT), &rule_path, json!({"security_group_rule": {"direction": "egress"}}));
    refused(&moved, 400, "HTTPBadRequest");
    assert_eq!(server.list(&member(PROJECT), "security-group-rules", "?protocol=tcp&port_range_min=22").len(), 1);
    assert_eq!(server.delete(&member(PROJECT), &rule_path).status, 204);
    refused(&server.get(&member(PROJECT), &rule_path), 404, "SecurityGroupRuleNotFound");
    let tagged = server.put(&member(PROJECT), &format!("{path}/tags"), json!({"tags": ["a"]}));
    assert_eq!(tagged.status, 200);
    assert_eq!(server.list(&member(PROJECT), "security-groups", "?tags=a").len(), 1);
    assert_eq!(server.delete(&member(PROJECT), &path).status, 204);
}

#[test]
fn values_come_in_several_spellings() {
    let server = Server::new();
    let web = group(&server, json!({}));
    let cases = [
        (json!({"protocol": "ANY"}), "protocol", json!(null)),
        (json!({"protocol": 112}), "protocol", json!("112")),
        (json!({"protocol": "ICMPv6", "ethertype": "ipv6"}), "ethertype", json!("IPv6")),
        (json!({"protocol": "icmp", "ethertype": "IPv6", "port_range_min": 1}), "protocol", json!("ipv6-icmp")),
        (json!({"protocol": 1, "ethertype": "IPv6", "port_range_min": 2}), "protocol", json!("58")),
        (json!({"remote_ip_prefix": "10.0.0.5"}), "remote_ip_prefix", json!("10.0.0.5/32")),
        (json!({"remote_ip_prefix": "10.0.7.5/24"}), "normalized_cidr", json!("10.0.7.0/24")),
        (json!({"protocol": "icmp", "port_range_min": 8, "port_range_max": 0}), "port_range_max", json!(0)),
        (json!({"protocol": "sctp", "port_range_min": 1, "port_range_max": 65535}), "port_range_max", json!(65535)),
        (json!({"protocol": "udp", "remote_group_id": web["id"]}), "remote_group_id", web["id"].clone()),
    ];
    for (extra, key, shown) in cases {
        let made = rule(&server, &web, extra.clone());
        assert_eq!(made.status, 201, "{extra}: {made:?}");
        assert_eq!(made.body["security_group_rule"][key], shown, "{extra}");
    }
}

#[test]
fn what_makes_no_rule_is_refused() {
    let server = Server::new();
    let web = group(&server, json!({}));
    let made = rule(&server, &web, json!({"protocol": "tcp", "port_range_min": 80, "port_range_max": 80}));
    assert_eq!(rule(&server, &web, json!({})).status, 201);
    let before = server.dump();
    let cases = [
        (json!({"protocol": "tcp", "port_range_min": 80, "port_range_max": 80}), 409, "SecurityGroupRuleExists"),
        (json!({"remote_ip_prefix": "0.0.0.0/0"}), 409, "SecurityGroupRuleExists"),
        (json!({"protocol": 6, "port_range_min": 80, "port_range_max": 80}), 409, "SecurityGroupRuleExists"),
        (json!({"protocol": "tcp", "port_range_min": 9, "port_range_max": 8}), 400, "SecurityGroupInvalidPortRange"),
        (json!({"protocol": "tcp", "port_range_min": 9}), 400, "SecurityGroupInvalidPortRange"),
        (json!({"protocol": "tcp", "port_range_min": 0, "port_range_max": 8}), 400, "SecurityGroupInvalidPortValue"),
        (
            json!({"protocol": "tcp", "port_range_min": 1, "port_range_max": 65536}),
            400,
            "SecurityGroupInvalidPortValue",
        ),
        (json!({"protocol": "tcp", "port_range_min": "x"}), 400, "SecurityGroupInvalidPortValue"),
        (json!({"port_range_min": 1, "port_range_max": 2}), 400, "SecurityGroupProtocolRequiredWithPorts"),
        (
            json!({"protocol": "gre", "port_range_min": 1, "port_range_max": 2}),
            400,
            "SecurityGroupInvalidProtocolForPort",
        ),
        (json!({"protocol": "icmp", "port_range_min": 256}), 400, "SecurityGroupInvalidIcmpValue"),
        (json!({"protocol": "icmp", "port_range_max": 1}), 400, "SecurityGroupMissingIcmpType"),
        (json!({"protocol": "smoke"}), 400, "SecurityGroupRuleInvalidProtocol"),
        (json!({"protocol": 256}), 400, "SecurityGroupRuleInvalidProtocol"),
        (json!({"protocol": "ipv6-icmp"}), 400, "SecurityGroupEthertypeConflictWithProtocol"),
        (json!({"protocol": 58}), 400, "SecurityGroupEthertypeConflictWithProtocol"),
        (json!({"ethertype": "ARP"}), 400, "SecurityGroupRuleInvalidEtherType"),
        (json!({"remote_ip_prefix": "fd00::/8"}), 400, "SecurityGroupRuleParameterConflict"),
        (json!({"remote_ip_prefix": "nowhere"}), 400, "InvalidCIDR"),
        (
            json!({"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": web["id"]}),
            400,
            "SecurityGroupRemoteGroupAndRemoteIpPrefix",
        ),
        (json!({"remote_group_id": "nobody"}), 404, "SecurityGroupNotFound"),
        (json!({"security_group_id": "nobody"}), 404, "SecurityGroupNotFound"),
        (json!({"direction": "sideways"}), 400, "HTTPBadRequest"),
        (json!({"protocol": true}), 400, "HTTPBadRequest"),
    ];
    for (extra, status, error) in cases {
        let answer = rule(&server, &web, extra.clone());
        assert_eq!((answer.status, answer.error()), (status, error), "{extra}: {answer:?}");
        assert_eq!(server.dump(), before, "{extra}");
    }
    assert_eq!(made.status, 201);
}

#[test]
fn several_rules_at_once_are_of_one_group_and_all_or_none_of_them_is_made() {
    let server = Server::new();
    let (web, other) = (group(&server, json!({})), group(&server, json!({"name": "other"})));
    let there = rule(&server, &web, json!({"protocol": "tcp"})).body["security_group_rule"].clone();
    let before = server.dump();
    let of = |group: &Value, extra: Value| {
        let mut body = json!({"security_group_id": group["id"], "direction": "ingress"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let (udp, wrong) = (|| of(&web, json!({"protocol": "udp"})), || of(&web, json!({"protocol": "smoke"})));
    let cases = [
        (json!([udp(), of(&web, json!({"protocol": 17}))]), 409, "DuplicateSecurityGroupRuleInPost"),
        (json!([udp(), of(&web, json!({"protocol": "tcp"}))]), 409, "SecurityGroupRuleExists"),
        (json!([udp(), wrong()]), 400, "SecurityGroupRuleInvalidProtocol"),
        // Of several faults, Neutron's first.
        (json!([wrong(), of(&other, json!({}))]), 400, "SecurityGroupNotSingleGroupRules"),
        (json!([udp(), udp(), wrong()]), 400, "SecurityGroupRuleInvalidProtocol"),
    ];
    for (rules, status, error) in cases {
        let answer = server.post(&member(PROJECT), RULES, json!({"security_group_rules": rules}));
        refused(&answer, status, error);
        assert_eq!(server.dump(), before, "{rules}");
    }
    let projects =
        [of(&web, json!({"project_id": PROJECT})), of(&web, json!({"project_id": OTHER, "protocol": "udp"}))];
    let answer = server.post(&admin(), RULES, json!({"security_group_rules": projects}));
    refused(&answer, 400, "SecurityGroupRulesNotSingleProject");
    let exists =
        server.post(&member(PROJECT), RULES, json!({"security_group_rules": [of(&web, json!({"protocol": "6"}))]}));
    assert_eq!(exists.message(), format!("Security group rule already exists. Rule id is {}.", id(&there)));
    let made = server.post(&member(PROJECT), RULES, json!({"security_group_rules": [udp(), of(&web, json!({}))]}));
    assert_eq!((made.status, made.body["security_group_rules"].as_array().map(Vec::len)), (201, Some(2)));
}

#[test]
fn a_group_counts_with_the_rules_that_it_starts_with() {
    let limits = Limits { security_group_rule: 7, ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    // The default group has four.
    group(&server, json!({}));
    let body = json!({"security_group": {"name": "other"}});
    let answer = server.post(&member(PROJECT), GROUPS, body);
    refused(&answer, 409, "OverQuota");
    assert_eq!(answer.message(), "Quota exceeded for resources: ['security_group_rule'].");
}

#[test]
fn groups_that_know_of_connections_and_others_are_not_on_one_port() {
    let server = Server::new();
    let (network, _) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let (web, fast) = (group(&server, json!({})), group(&server, json!({"name": "fast", "stateful": false})));
    let body = json!({"port": {"network_id": network["id"], "security_groups": [web["id"], fast["id"]]}});
    let answer = server.post(&member(PROJECT), "/v2.0/ports", body);
    refused(&answer, 409, "SecurityGroupConflict");
    let body = json!({"port": {"network_id": network["id"], "security_groups": [fast["id"]]}});
    assert_eq!(server.post(&member(PROJECT), "/v2.0/ports", body).status, 201);
}

#[test]
fn a_port_is_in_its_projects_default_group_unless_told_otherwise() {
    let server = Server::new();
    let (network, _) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let make = |extra: Value| {
        let mut body = json!({"network_id": network["id"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post(&member(PROJECT), "/v2.0/ports", json!({"port": body}))
    };
    let plain = make(json!({})).body["port"].clone();
    assert_eq!(plain["security_groups"], json!([default_group(&server)["id"]]));
    let web = group(&server, json!({}));
    let chosen = make(json!({"security_groups": [web["id"]]})).body["port"].clone();
    assert_eq!(chosen["security_groups"], json!([web["id"]]));
    assert_eq!(make(json!({"security_groups": null})).body["port"]["security_groups"], json!([]));
    assert_eq!(make(json!({"port_security_enabled": false})).body["port"]["security_groups"], json!([]));
    let unsecured = make(json!({"port_security_enabled": false, "security_groups": [web["id"]]}));
    refused(&unsecured, 400, "PortSecurityAndIPRequiredForSecurityGroups");
    let device = make(json!({"device_owner": "network:dhcp"})).body["port"].clone();
    assert_eq!((&device["port_security_enabled"], &device["security_groups"]), (&json!(false), &json!([])));
    let found = server.list(&member(PROJECT), "ports", &format!("?security_groups={}", id(&web)));
    assert_eq!(pick(&found, "id"), [id(&chosen)]);

    let path = format!("/v2.0/ports/{}", id(&chosen));
    let put = |attributes: Value| server.put(&member(PROJECT), &path, json!({"port": attributes}));
    refused(&put(json!({"port_security_enabled": false})), 409, "PortSecurityPortHasSecurityGroup");
    let group_path = format!("{GROUPS}/{}", id(&web));
    refused(&server.delete(&member(PROJECT), &group_path), 409, "SecurityGroupInUse");
    let stateless = server.put(&member(PROJECT), &group_path, json!({"security_group": {"stateful": false}}));
    refused(&stateless, 409, "SecurityGroupInUse");
    let opened = put(json!({"port_security_enabled": false, "security_groups": []}));
    assert_eq!(opened.status, 200, "{opened:?}");
    refused(&put(json!({"security_groups": [web["id"]]})), 400, "PortSecurityAndIPRequiredForSecurityGroups");
    assert_eq!(put(json!({"port_security_enabled": true, "security_groups": [web["id"]]})).status, 200);
    assert_eq!(server.delete(&member(PROJECT), &path).status, 204);
    assert_eq!(server.delete(&member(PROJECT), &group_path).status, 204);
}

#[test]
fn groups_of_others_are_there_only_when_shared() {
    let server = Server::new();
    let web = group(&server, json!({}));
    let path = format!("{GROUPS}/{}", id(&web));
    refused(&server.get(&member(OTHER), &path), 404, "SecurityGroupNotFound");
    let network = server.make(&member(OTHER), "network", json!({}));
    let body = json!({"port": {"network_id": network["id"], "security_groups": [web["id"]]}});
    refused(&server.post(&member(OTHER), "/v2.0/ports", body.clone()), 404, "SecurityGroupNotFound");
    let policy = json!({"rbac_policy": {
        "object_type": "security_group", "object_id": web["id"], "action": "access_as_shared", "target_tenant": OTHER,
    }});
    let policy = server.post(&member(PROJECT), "/v2.0/rbac-policies", policy).body["rbac_policy"].clone();
    assert_eq!(server.get(&member(OTHER), &path).body["security_group"]["shared"], true);
    assert_eq!(pick(&server.list(&member(OTHER), "security-groups", "?shared=true"), "name"), ["web"]);
    assert_eq!(
        server.list(&member(OTHER), "security-group-rules", &format!("?security_group_id={}", id(&web))).len(),
        2
    );
    let added = json!({"security_group_rule": {"security_group_id": web["id"], "direction": "ingress"}});
    refused(&server.post(&member(OTHER), RULES, added), 403, "HTTPForbidden");
    refused(&server.delete(&member(OTHER), &path), 403, "HTTPForbidden");
    let port = server.post(&member(OTHER), "/v2.0/ports", body).body["port"].clone();
    let policy_path = format!("/v2.0/rbac-policies/{}", id(&policy));
    refused(&server.delete(&member(PROJECT), &policy_path), 409, "RbacPolicyInUse");
    server.delete(&member(OTHER), &format!("/v2.0/ports/{}", id(&port)));
    assert_eq!(server.delete(&member(PROJECT), &policy_path).status, 204);
}

#[test]
fn groups_and_rules_are_counted() {
    let limits = Limits { security_group: 2, security_group_rule: 9, ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    let web = group(&server, json!({}));
    let more = json!({"security_group": {"name": "more"}});
    refused(&server.post(&member(PROJECT), GROUPS, more), 409, "OverQuota");
    // Four rules of the default group and two of this one are there.
    for protocol in ["tcp", "udp", "icmp"] {
        assert_eq!(rule(&server, &web, json!({"protocol": protocol})).status, 201);
    }
    refused(&rule(&server, &web, json!({"protocol": "gre"})), 409, "OverQuota");
}
