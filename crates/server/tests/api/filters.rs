//! Filters, sorting, fields and pages of every list, attribute by attribute.
//!
//! [`CONTRACT`] says for every collection what Neutron lets lists be filtered and sorted by. The tests make
//! objects that differ and hold each list to what the objects themselves show.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use evergate_server::attributes::Filter;
use evergate_server::context::Context;
use evergate_server::resources::{COLLECTIONS, find};
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, pick};

/// By collection: attributes that its lists are filtered (`f`) and sorted (`s`) by.
const CONTRACT: &[(&str, &[(&str, &str)])] = &[
    (
        "networks",
        &[
            ("admin_state_up", "fs"),
            ("availability_zone_hints", "s"),
            ("description", "f"),
            ("id", "fs"),
            ("is_default", "f"),
            ("mtu", "fs"),
            ("name", "fs"),
            ("project_id", "fs"),
            ("provider:network_type", "f"),
            ("provider:physical_network", "f"),
            ("provider:segmentation_id", "f"),
            ("revision_number", "f"),
            ("router:external", "f"),
            ("shared", "f"),
            ("status", "fs"),
        ],
    ),
    (
        "subnets",
        &[
            ("cidr", "fs"),
            ("description", "f"),
            ("enable_dhcp", "fs"),
            ("gateway_ip", "fs"),
            ("id", "fs"),
            ("ip_version", "fs"),
            ("ipv6_address_mode", "fs"),
            ("ipv6_ra_mode", "fs"),
            ("name", "fs"),
            ("network_id", "fs"),
            ("project_id", "fs"),
            ("revision_number", "f"),
            ("router:external", "f"),
            ("shared", "f"),
            ("subnetpool_id", "fs"),
        ],
    ),
    (
        "subnetpools",
        &[
            ("address_scope_id", "fs"),
            ("default_prefixlen", "fs"),
            ("default_quota", "fs"),
            ("description", "f"),
            ("id", "fs"),
            ("ip_version", "fs"),
            ("is_default", "fs"),
            ("max_prefixlen", "fs"),
            ("min_prefixlen", "fs"),
            ("name", "fs"),
            ("project_id", "fs"),
            ("revision_number", "f"),
            ("shared", "fs"),
        ],
    ),
    ("address-scopes", &[("id", "fs"), ("ip_version", "fs"), ("name", "fs"), ("project_id", "fs"), ("shared", "fs")]),
    (
        "ports",
        &[
            ("admin_state_up", "fs"),
            ("binding:host_id", "f"),
            ("description", "f"),
            ("device_id", "fs"),
            ("device_owner", "fs"),
            ("fixed_ips", "f"),
            ("id", "fs"),
            ("mac_address", "fs"),
            ("name", "fs"),
            ("network_id", "fs"),
            ("project_id", "fs"),
            ("revision_number", "f"),
            ("security_groups", "f"),
            ("status", "fs"),
        ],
    ),
    (
        "routers",
        &[
            ("admin_state_up", "fs"),
            ("description", "f"),
            ("flavor_id", "s"),
            ("id", "fs"),
            ("name", "fs"),
            ("project_id", "fs"),
            ("revision_number", "f"),
            ("status", "s"),
        ],
    ),
    (
        "floatingips",
        &[
            ("description", "f"),
            ("fixed_ip_address", "fs"),
            ("floating_ip_address", "fs"),
            ("floating_network_id", "fs"),
            ("id", "fs"),
            ("port_id", "f"),
            ("project_id", "fs"),
            ("revision_number", "f"),
            ("router_id", "fs"),
            ("status", "fs"),
        ],
    ),
    (
        "agents",
        &[
            ("admin_state_up", "fs"),
            ("agent_type", "fs"),
            ("alive", "fs"),
            ("availability_zone", "f"),
            ("binary", "fs"),
            ("created_at", "s"),
            ("description", "fs"),
            ("heartbeat_timestamp", "s"),
            ("host", "fs"),
            ("id", "fs"),
            ("started_at", "s"),
            ("topic", "fs"),
        ],
    ),
    (
        "security-groups",
        &[
            ("description", "f"),
            ("id", "fs"),
            ("name", "fs"),
            ("project_id", "fs"),
            ("revision_number", "f"),
            ("shared", "f"),
            ("stateful", "f"),
        ],
    ),
    (
        "security-group-rules",
        &[
            ("belongs_to_default_sg", "f"),
            ("description", "f"),
            ("direction", "fs"),
            ("ethertype", "fs"),
            ("id", "fs"),
            ("normalized_cidr", "fs"),
            ("port_range_max", "fs"),
            ("port_range_min", "fs"),
            ("project_id", "fs"),
            ("protocol", "fs"),
            ("remote_group_id", "fs"),
            ("remote_ip_prefix", "fs"),
            ("revision_number", "f"),
            ("security_group_id", "fs"),
        ],
    ),
    (
        "rbac-policies",
        &[
            ("action", "f"),
            ("id", "f"),
            ("object_id", "f"),
            ("object_type", "f"),
            ("project_id", "f"),
            ("target_tenant", "f"),
        ],
    ),
];

/// What Evergate adds: Neutron refuses it.
const EXTRA: &[(&str, &str, &str)] = &[
    ("*", "created_at", "s"),
    ("*", "updated_at", "s"),
    ("networks", "subnets", "f"),
    ("routers", "distributed", "fs"),
    ("routers", "ha", "fs"),
    ("routers", "status", "f"),
    ("rbac-policies", "*", "s"),
];

fn is_extra(collection: &str, name: &str, flag: char) -> bool {
    let among = |known: &str, name: &str| known == "*" || known == name;
    EXTRA.iter().any(|(where_, what, flags)| among(where_, collection) && among(what, name) && flags.contains(flag))
}

/// Attributes that are the same on all objects.
const ALIKE: &[(&str, &str)] = &[("networks", "status"), ("subnetpools", "revision_number")];

/// Makes an object whose collection is not just its name and an `s`.
fn make(server: &Server, who: &Context, singular: &str, attributes: Value) -> Value {
    let answer = server.post(who, &format!("/v2.0/{}s", singular.replace('_', "-")), json!({singular: attributes}));
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.body[singular].clone()
}

/// Objects of every kind, of which at least two differ in every attribute.
fn world() -> Server {
    let server = Server::new();
    let (us, them) = (member(PROJECT), member(OTHER));
    ["h1", "h2"].into_iter().for_each(|host| server.host(host));
    server.silence("h2");
    let agent = server.list(&admin(), "agents", "?host=h1&binary=neutron-linuxbridge-agent").remove(0);
    let body = json!({"agent": {"admin_state_up": false, "description": "rack"}});
    assert_eq!(server.put(&admin(), &format!("/v2.0/agents/{}", id(&agent)), body).status, 200);
    server.write(|tx| {
        tx.execute("UPDATE agents SET created_at = '2020-01-01T00:00:00Z', started_at = '2020-01-02T00:00:00Z' WHERE host = 'h2'", &[])?;
        tx.execute("UPDATE agents SET availability_zone = 'other' WHERE host = 'h2' AND availability_zone IS NOT NULL", &[])?;
        Ok(())
    });

    let (external, _) = server.make_external();
    let path = format!("/v2.0/networks/{}", id(&external));
    assert_eq!(
        server.put(&admin(), &path, json!({"network": {"is_default": true, "description": "way out"}})).status,
        200
    );
    let shared = json!({"name": "shared", "shared": true, "admin_state_up": false, "mtu": 1300});
    let shared = server.make(&admin(), "network", shared);
    let six = json!({
        "name": "six", "description": "six", "network_id": shared["id"], "ip_version": 6, "cidr": "fd00:1::/64",
        "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac",
    });
    let six = server.make(&admin(), "subnet", six);
    let seven = json!({
        "name": "seven", "network_id": shared["id"], "ip_version": 6, "cidr": "fd00:2::/64", "gateway_ip": null,
        "ipv6_ra_mode": "dhcpv6-stateful", "ipv6_address_mode": "dhcpv6-stateful",
    });
    server.make(&admin(), "subnet", seven);
    let (network, subnet) = server.make_network(&us, "inside", "10.0.0.0/24");
    let (_, theirs) = server.make_network(&them, "theirs", "10.9.0.0/24");

    let scope = make(&server, &us, "address_scope", json!({"name": "four", "ip_version": 4}));
    make(&server, &admin(), "address_scope", json!({"name": "six", "ip_version": 6, "shared": true}));
    make(&server, &them, "address_scope", json!({"name": "theirs", "ip_version": 4}));
    let pool = json!({
        "name": "four", "prefixes": ["10.64.0.0/16"], "address_scope_id": scope["id"], "default_quota": 1000,
        "min_prefixlen": 20, "max_prefixlen": 28, "default_prefixlen": 24, "description": "four",
    });
    let pool = server.make(&us, "subnetpool", pool);
    let pools = [
        json!({"name": "six", "prefixes": ["fd64::/48"], "shared": true, "is_default": true, "default_quota": 5000}),
        json!({"name": "other", "prefixes": ["10.65.0.0/16"], "project_id": OTHER}),
    ];
    pools.into_iter().for_each(|pool| drop(server.make(&admin(), "subnetpool", pool)));
    let cut = server.make(&us, "network", json!({"name": "cut"}));
    let body = json!({"network_id": cut["id"], "ip_version": 4, "subnetpool_id": pool["id"], "enable_dhcp": false});
    server.make(&us, "subnet", body);

    let group = json!({"name": "web", "description": "web", "stateful": false});
    let group = make(&server, &us, "security_group", group);
    let rules = [
        json!({"direction": "ingress", "protocol": "tcp", "port_range_min": 80, "port_range_max": 90,
               "remote_ip_prefix": "192.0.2.1/24", "description": "some"}),
        json!({"direction": "ingress", "protocol": "udp", "port_range_min": 53, "port_range_max": 53,
               "remote_ip_prefix": "198.51.100.0/24"}),
        json!({"direction": "egress", "ethertype": "IPv6", "protocol": "tcp", "remote_group_id": group["id"]}),
    ];
    for mut rule in rules {
        rule["security_group_id"] = group["id"].clone();
        let made = make(&server, &us, "security_group_rule", rule);
        if made["protocol"] == "udp" {
            let body = json!({"security_group_rule": {"description": "changed"}});
            assert_eq!(server.put(&us, &format!("/v2.0/security-group-rules/{}", id(&made)), body).status, 200);
        }
    }
    make(&server, &them, "security_group", json!({"name": "theirs"}));
    let policies = [
        json!({"object_type": "security_group", "object_id": group["id"], "action": "access_as_shared", "target_tenant": OTHER}),
        json!({"object_type": "network", "object_id": cut["id"], "action": "access_as_external", "target_tenant": OTHER}),
    ];
    for policy in policies {
        let body = json!({"rbac_policy": policy});
        assert_eq!(server.post(&admin(), "/v2.0/rbac-policies", body).status, 201);
    }
    // For the group that is shared with whoever asks.
    let groups = server.list(&them, "security-groups", "?name=theirs");
    let body = json!({"rbac_policy": {"object_type": "security_group", "object_id": groups[0]["id"],
                                      "action": "access_as_shared", "target_tenant": PROJECT}});
    assert_eq!(server.post(&them, "/v2.0/rbac-policies", body).status, 201);

    let ports = [
        json!({"name": "one", "network_id": network["id"], "fixed_ips": [{"ip_address": "10.0.0.5"}],
               "device_id": "vm1", "device_owner": "compute:nova", "binding:host_id": "h1", "description": "one",
               "security_groups": [group["id"]], "mac_address": "fa:16:3e:00:00:01"}),
        json!({"name": "two", "network_id": network["id"], "fixed_ips": [{"ip_address": "10.0.0.25"}],
               "admin_state_up": false, "device_id": "vm2", "binding:host_id": "h2"}),
        json!({"name": "three", "network_id": shared["id"], "fixed_ips": [{"subnet_id": six["id"]}], "project_id": OTHER}),
    ];
    let ports = ports.map(|port| server.make(&admin(), "port", port));
    let router = json!({"name": "r1", "description": "first", "external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&us, "router", router);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    assert_eq!(server.put(&us, &path, json!({"subnet_id": subnet["id"]})).status, 200);
    server.make(&them, "router", json!({"name": "r2", "admin_state_up": false}));
    let far = json!({"name": "r3", "ha": true, "external_gateway_info": {"network_id": external["id"]}});
    let far = server.make(&admin(), "router", far);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&far));
    assert_eq!(server.put(&admin(), &path, json!({"subnet_id": theirs["id"]})).status, 200);
    let elsewhere = json!({"name": "ext2", "router:external": true, "provider:network_type": "flat",
                           "provider:physical_network": "physnet2"});
    let elsewhere = server.make(&admin(), "network", elsewhere);
    let body = json!({"network_id": elsewhere["id"], "ip_version": 4, "cidr": "198.51.100.0/24"});
    server.make(&admin(), "subnet", body);
    for floating in [
        json!({"floating_network_id": external["id"], "port_id": ports[0]["id"], "description": "first"}),
        json!({"floating_network_id": external["id"], "port_id": ports[1]["id"]}),
        json!({"floating_network_id": elsewhere["id"], "project_id": OTHER}),
    ] {
        server.make(&admin(), "floatingip", floating);
    }
    for (collection, singular, name) in [("subnets", "subnet", "six"), ("ports", "port", "two")] {
        let object = server.list(&admin(), collection, &format!("?name={name}")).remove(0);
        let path = format!("/v2.0/{collection}/{}", id(&object));
        assert_eq!(server.put(&admin(), &path, json!({singular: {"description": "changed"}})).status, 200);
    }
    server.write(|tx| {
        tx.execute("UPDATE ports SET status = 'ACTIVE' WHERE name = 'one'", &[])?;
        tx.execute("UPDATE floating_ips SET status = 'ACTIVE' WHERE description = 'first'", &[])?;
        tx.execute("UPDATE floating_ips SET revision_number = 7 WHERE description = 'first'", &[])?;
        Ok(())
    });
    server
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn everything(server: &Server, collection: &str) -> Vec<Value> {
    let all = server.list(&admin(), collection, "");
    assert!(all.len() >= 2, "{collection}");
    all
}

fn ids(objects: &[Value]) -> BTreeSet<String> {
    pick(objects, "id").into_iter().collect()
}

/// How a query spells a value that is shown; several ways where there are.
fn spellings(value: &Value) -> Vec<String> {
    match value {
        Value::Bool(true) => ["True", "true", "1", "yes", "on", "t", "Y"].map(str::to_owned).to_vec(),
        Value::Bool(false) => ["False", "false", "0", "no", "off", "f", "N"].map(str::to_owned).to_vec(),
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        Value::Null | Value::Array(_) | Value::Object(_) => Vec::new(),
    }
}

#[test]
fn each_attribute_is_filtered_and_sorted_by_where_neutron_does() {
    let mut wrong = Vec::new();
    for collection in COLLECTIONS {
        let (_, attributes) = CONTRACT.iter().find(|(name, _)| *name == collection).expect(collection);
        for attribute in find(collection).unwrap().table().attributes {
            let (name, filtered) = (attribute.name, attribute.filter != Filter::No);
            let allowed = attributes.iter().find(|(known, _)| *known == name).map_or("", |(_, flags)| *flags);
            for (flag, have) in [('f', filtered), ('s', attribute.sort.is_some())] {
                if have != allowed.contains(flag) && !(have && is_extra(collection, name, flag)) {
                    wrong.push(format!("{collection} {name} {flag}: {have}"));
                }
            }
        }
        for (name, _) in *attributes {
            assert!(find(collection).unwrap().table().attribute(name).is_some(), "{collection} {name}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_filter_finds_what_shows_its_value_and_nothing_else() {
    let server = world();
    let mut wrong = Vec::new();
    for (collection, attributes) in CONTRACT {
        let all = everything(&server, collection);
        for (name, flags) in *attributes {
            if !flags.contains('f') || all.iter().any(|object| object[*name].is_array()) || all[0].get(*name).is_none()
            {
                continue;
            }
            let values: BTreeSet<String> = all.iter().map(|object| object[*name].to_string()).collect();
            if values.len() < 2 && !ALIKE.contains(&(*collection, *name)) {
                wrong.push(format!("{collection} {name}: the objects do not differ: {values:?}"));
            }
            let mut asked: Vec<(String, BTreeSet<String>)> = Vec::new();
            for value in &values {
                let value: Value = serde_json::from_str(value).unwrap();
                let with: Vec<Value> = all.iter().filter(|object| object[*name] == value).cloned().collect();
                for spelling in spellings(&value) {
                    let query = format!("{}={}", encoded(name), encoded(&spelling));
                    asked.push((query, ids(&with)));
                }
            }
            // Both of two values.
            if let [first, .., last] = asked.as_slice() {
                asked.push((format!("{}&{}", first.0, last.0), first.1.union(&last.1).cloned().collect()));
            }
            if matches!(all[0][*name], Value::String(_))
                && !["min_prefixlen", "max_prefixlen", "default_prefixlen", "project_id"].contains(name)
            {
                asked.push((format!("{}=no-such-thing", encoded(name)), BTreeSet::new()));
            }
            for (query, expected) in asked {
                let found = ids(&server.list(&admin(), collection, &format!("?{query}")));
                if found != expected {
                    wrong.push(format!("{collection}?{query}: {} and not {}", found.len(), expected.len()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lists_within_objects_are_filtered_by_their_items() {
    let server = world();
    let names = |collection: &str, query: &str| pick(&server.list(&admin(), collection, query), "name");
    let subnets = server.list(&admin(), "subnets", "");
    let subnet = |name: &str| id(subnets.iter().find(|subnet| subnet["name"] == name).unwrap()).to_owned();
    let (inside, six) = (subnet("inside"), subnet("six"));
    let by = |query: &str| {
        let found = names("ports", &format!("?{query}"));
        found.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(by("fixed_ips=ip_address%3D10.0.0.5"), ["one"]);
    assert_eq!(by("fixed_ips=ip_address%3D10.0.0.5&fixed_ips=ip_address%3D10.0.0.25"), ["one", "two"]);
    assert_eq!(by(&format!("fixed_ips=subnet_id%3D{inside}")), ["one", "two"]);
    assert_eq!(by(&format!("fixed_ips=subnet_id%3D{inside}&fixed_ips=subnet_id%3D{six}")), ["one", "three", "two"]);
    assert_eq!(by(&format!("fixed_ips=subnet_id%3D{six}&fixed_ips=ip_address%3D10.0.0.5")), Vec::<String>::new());
    assert_eq!(by("fixed_ips=ip_address_substr%3D10.0.0.2"), ["two"]);
    assert_eq!(by("fixed_ips=ip_address_substr%3D10.0.0.2&fixed_ips=ip_address_substr%3DFD00%3A1"), ["three", "two"]);
    assert_eq!(by("fixed_ips=ip_address_substr%3D%25"), Vec::<String>::new());
    assert_eq!(by("fixed_ips=colour%3Dred"), by(""), "kinds that are not known say nothing");
    let refused = server.get(&admin(), "/v2.0/ports?fixed_ips=10.0.0.5");
    assert_eq!((refused.status, refused.error()), (400, "InvalidInput"));
    assert_eq!(refused.message(), "Invalid input for operation: '10.0.0.5' is not of the form <key>=[value].");
    let group = server.list(&admin(), "security-groups", "?name=web").remove(0);
    assert_eq!(by(&format!("security_groups={}", id(&group))), ["one"]);
    assert_eq!(by("mac_address=FA-16-3E-00-00-01"), ["one"]);
    // A subnet does not show that its network is shared.
    assert_eq!(names("subnets", "?shared=True"), ["seven", "six"]);
    assert_eq!(names("subnets", "?shared=no").len(), subnets.len() - 2);
    assert_eq!(names("networks", &format!("?subnets={inside}")), ["inside"]);
}

#[test]
fn tags_select_objects_of_every_kind_that_has_them() {
    let server = world();
    for collection in COLLECTIONS {
        if !find(collection).unwrap().table().tagged {
            let refused = server.get(&admin(), &format!("/v2.0/{collection}?tags=red"));
            assert_eq!((refused.status, refused.error()), (400, "HTTPBadRequest"), "{collection}");
            continue;
        }
        let all = everything(&server, collection);
        for (object, tags) in all.iter().zip([&["red", "big"][..], &["red"]]) {
            let path = format!("/v2.0/{collection}/{}/tags", id(object));
            assert_eq!(server.put(&admin(), &path, json!({"tags": tags})).status, 200);
        }
        let (both, one) = (id(&all[0]).to_owned(), id(&all[1]).to_owned());
        let rest: BTreeSet<String> = ids(&all[2..]);
        let and = |more: &[&String]| rest.iter().chain(more.iter().copied()).cloned().collect::<BTreeSet<_>>();
        let only = |some: &[&String]| some.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
        for (query, expected) in [
            ("tags=red", only(&[&both, &one])),
            ("tags=red,big", only(&[&both])),
            ("tags=red&tags=big", only(&[&both])),
            ("tags-any=big,blue", only(&[&both])),
            ("tags-any=red,big", only(&[&both, &one])),
            ("not-tags=red,big", and(&[&one])),
            ("not-tags=red", and(&[])),
            ("not-tags-any=red,big", and(&[])),
            ("not-tags-any=big", and(&[&one])),
            ("tags=red&not-tags=big", only(&[&one])),
            ("tags=blue", BTreeSet::new()),
        ] {
            let found = ids(&server.list(&admin(), collection, &format!("?{query}")));
            assert_eq!(found, expected, "{collection}?{query}");
        }
    }
}

#[test]
fn what_a_list_cannot_be_filtered_by_is_refused() {
    let server = world();
    let refused = |who: &Context, path: &str, what: &str| {
        let answer = server.get(who, path);
        assert_eq!((answer.status, answer.error()), (400, "HTTPBadRequest"), "{path} {answer:?}");
        assert_eq!(answer.message(), format!("[{what}] is invalid attribute for filtering"), "{path}");
    };
    for collection in COLLECTIONS {
        refused(&admin(), &format!("/v2.0/{collection}?nonsense=1&id=x&fields=id"), "'nonsense'");
        for attribute in find(collection).unwrap().table().attributes {
            if attribute.filter == Filter::No && attribute.name != "tags" {
                let name = attribute.name;
                refused(&admin(), &format!("/v2.0/{collection}?{}=1", encoded(name)), &format!("'{name}'"));
            }
        }
    }
    for view in ["network-ip-availabilities", "floatingip_pools", "availability_zones"] {
        refused(&admin(), &format!("/v2.0/{view}?b=1&a=2"), "'a', 'b'");
    }
    let floating = server.list(&admin(), "floatingips", "").remove(0);
    refused(&admin(), &format!("/v2.0/floatingips/{}/port_forwardings?nonsense=", id(&floating)), "'nonsense'");
    // What one does not see, one does not find out by asking.
    refused(&member(PROJECT), "/v2.0/networks?provider%3Anetwork_type=vxlan", "'provider:network_type'");
    refused(&member(PROJECT), "/v2.0/ports?binding%3Ahost_id=h1", "'binding:host_id'");
    refused(&member(PROJECT), "/v2.0/routers?ha=True", "'ha'");
}

/// Compares as lists are sorted: what is not there comes first.
fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Number(left), Value::Number(right)) => left.as_i64().cmp(&right.as_i64()),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (left, right) => {
            // Lengths of prefixes are shown as texts.
            let number = |value: &Value| value.as_str().filter(|text| text.len() < 4)?.parse::<u8>().ok();
            number(left).zip(number(right)).map_or(left.as_str().cmp(&right.as_str()), |(left, right)| left.cmp(&right))
        }
    }
}

#[test]
fn each_sort_key_sorts_both_ways_and_the_next_one_decides_among_equals() {
    let server = world();
    let mut wrong = Vec::new();
    for (collection, attributes) in CONTRACT {
        let all = everything(&server, collection);
        for (name, flags) in *attributes {
            for direction in ["asc", "desc"] {
                let query = format!("?sort_key={}&sort_dir={direction}&sort_key=id&sort_dir=desc", encoded(name));
                if !flags.contains('s') {
                    let answer = server.get(&admin(), &format!("/v2.0/{collection}{query}"));
                    if !is_extra(collection, name, 's') && answer.status != 400 {
                        wrong.push(format!("{collection}{query}: {}", answer.status));
                    }
                    continue;
                }
                let sorted = server.list(&admin(), collection, &query);
                let in_order = sorted.windows(2).all(|pair| {
                    let by_name = compare(&pair[0][*name], &pair[1][*name]);
                    let by_name = if direction == "asc" { by_name } else { by_name.reverse() };
                    // Lists, and times that are told in more detail than shown, are compared for themselves alone.
                    let tie = by_name == Ordering::Equal && !pair[0][*name].is_array() && *name != "alive";
                    if tie && *name != "id" { id(&pair[0]) > id(&pair[1]) } else { by_name != Ordering::Greater }
                });
                if !in_order || ids(&sorted) != ids(&all) {
                    wrong.push(format!("{collection}{query}: {:?}", pick(&sorted, name)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn fields_choose_what_is_shown_of_every_attribute() {
    let server = world();
    for collection in COLLECTIONS {
        let shown = everything(&server, collection).remove(0);
        for name in shown.as_object().unwrap().keys() {
            let query = format!("?fields={}&fields=id&fields=nonsense&id={}", encoded(name), id(&shown));
            let mut expected = serde_json::Map::new();
            expected.insert(name.clone(), shown[name].clone());
            expected.insert("id".into(), shown["id"].clone());
            assert_eq!(server.list(&admin(), collection, &query), [Value::Object(expected)], "{collection}{query}");
        }
    }
}

/// A page: ids of its objects, and where its links lead to.
fn page(server: &Server, path: &str) -> (Vec<String>, Option<String>, Option<String>) {
    let answer = server.get(&admin(), path);
    assert_eq!(answer.status, 200, "{path} {answer:?}");
    let (mut ids, mut links) = (Vec::new(), Vec::new());
    for (key, value) in answer.body.as_object().unwrap() {
        let items = value.as_array().unwrap().iter();
        if key.ends_with("_links") { links.extend(items) } else { ids.extend(items.map(|o| id(o).to_owned())) }
    }
    let link = |rel: &str| {
        let href = links.iter().find(|link| link["rel"] == rel)?["href"].as_str().unwrap();
        Some(href.strip_prefix("http://api.example:9696").unwrap().to_owned())
    };
    (ids, link("next"), link("previous"))
}

#[test]
fn pages_of_every_list_lead_to_its_end_and_back() {
    let server = world();
    for collection in COLLECTIONS {
        let sorted = format!("/v2.0/{collection}?sort_key=id&sort_dir=desc");
        let (all, ..) = page(&server, &sorted);
        for limit in [1, 2, all.len() - 1, all.len(), all.len() + 1] {
            let (mut forward, mut last) = (Vec::new(), None);
            let mut next = Some(format!("{sorted}&limit={limit}"));
            while let Some(path) = next {
                let (ids, following, back) = page(&server, &path);
                // A page that is not full is the last one, and a full one may be.
                assert_eq!(following.is_some(), ids.len() == limit, "{path}");
                forward.extend(ids);
                (next, last) = (following, back);
            }
            assert_eq!(forward, all, "{collection} by {limit}");
            let mut backward = Vec::new();
            let mut previous = last;
            while let Some(path) = previous {
                let (ids, forth, before) = page(&server, &path);
                assert!(forth.is_some(), "{path}");
                backward.splice(0..0, ids);
                previous = before;
            }
            // A last page that was not full is not come back to.
            let left_out = all.len() % limit;
            assert_eq!(backward, all[..all.len() - left_out], "{collection} back by {limit}");
        }
        let (reversed, ..) = page(&server, &format!("{sorted}&limit=2&page_reverse=True"));
        assert_eq!(reversed, all[all.len() - 2..], "the last page");
        let marked = format!("{sorted}&marker={}", all[0]);
        assert_eq!(page(&server, &marked).0, all, "without a limit there are no pages");
    }
    let refused = server.get(&admin(), "/v2.0/networks?limit=-1");
    assert_eq!((refused.status, refused.error()), (400, "BadRequest"));
    assert_eq!(refused.message(), "Bad limit request: Limit must be an integer 0 or greater and not '-1'.");
}
