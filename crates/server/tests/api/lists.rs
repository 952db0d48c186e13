//! Lists and what all resources share: filters, fields, sorting, pages, tags, revisions, versions.

use serde_json::{Value, json};

use crate::harness::{PROJECT, Server, admin, id, member, pick};

fn three_networks() -> Server {
    let server = Server::new();
    for (name, up) in [("a", true), ("b", false), ("c", true)] {
        server.make(
            &admin(),
            "network",
            json!({"name": name, "admin_state_up": up, "description": format!("net {name}")}),
        );
    }
    server
}

fn names(server: &Server, query: &str) -> Vec<String> {
    let list = server.list(&admin(), "networks", query);
    list.iter().map(|network| network["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn repeated_filters_widen_and_different_ones_narrow() {
    let server = three_networks();
    assert_eq!(pick(&server.list(&admin(), "networks", "?name=a&name=b"), "name"), ["a", "b"]);
    assert_eq!(names(&server, "?name=a&name=b&admin_state_up=False"), ["b"]);
    assert_eq!(names(&server, "?admin_state_up=0"), ["b"]);
    assert_eq!(names(&server, "?description=net%20c"), ["c"]);
    assert_eq!(names(&server, "?name=").len(), 0, "nobody has an empty name");
    assert_eq!(names(&server, "?status=ACTIVE").len(), 3);
    assert_eq!(names(&server, "?status=DOWN").len(), 0);
    assert_eq!(names(&server, &format!("?tenant_id={PROJECT}")).len(), 3);
    assert_eq!(server.get(&admin(), "/v2.0/networks?shared=perhaps").status, 400);
}

#[test]
fn fields_cut_what_is_shown() {
    let server = three_networks();
    let list = server.list(&admin(), "networks", "?fields=id&fields=name&name=a");
    assert_eq!(list[0].as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "name"]);
    let path = format!("/v2.0/networks/{}?fields=tenant_id", id(&list[0]));
    assert_eq!(server.get(&admin(), &path).body, json!({"network": {"tenant_id": PROJECT}}));
}

#[test]
fn lists_are_sorted_by_several_keys() {
    let server = three_networks();
    assert_eq!(names(&server, "?sort_key=name&sort_dir=desc"), ["c", "b", "a"]);
    let query = "?sort_key=admin_state_up&sort_dir=asc&sort_key=name&sort_dir=desc";
    assert_eq!(names(&server, query), ["b", "c", "a"]);
    for query in ["?sort_key=name", "?sort_key=subnets&sort_dir=asc", "?sort_key=name&sort_dir=up"] {
        let refused = server.get(&admin(), &format!("/v2.0/networks{query}"));
        assert_eq!((refused.status, refused.error()), (400, "HTTPBadRequest"), "{query}");
    }
}

#[test]
fn pages_follow_each_other_both_ways() {
    let server = three_networks();
    let page = |query: &str| {
        let answer = server.get(&admin(), query);
        assert_eq!(answer.status, 200, "{answer:?}");
        let names: Vec<Value> = answer.body["networks"].as_array().unwrap().iter().map(|n| n["name"].clone()).collect();
        let link = |rel: &str| {
            let links = answer.body["networks_links"].as_array().unwrap();
            let href = links.iter().find(|link| link["rel"] == rel)?["href"].as_str()?;
            Some(href.strip_prefix("http://api.example:9696").unwrap().to_owned())
        };
        (names, link("next"), link("previous"))
    };
    let (first, next, previous) = page("/v2.0/networks?limit=2&sort_key=name&sort_dir=asc");
    assert_eq!(first, [json!("a"), json!("b")]);
    assert_eq!(page(&previous.unwrap()).0, Vec::<Value>::new(), "there is nothing before it");
    let (second, next, previous) = page(&next.unwrap());
    assert_eq!((second, next), (vec![json!("c")], None));
    let (back, _, _) = page(&previous.unwrap());
    assert_eq!(back, [json!("a"), json!("b")]);
    assert_eq!(server.get(&admin(), "/v2.0/networks?limit=x").status, 400);
    assert_eq!(server.get(&admin(), "/v2.0/networks?limit=-1").status, 400);
    assert_eq!(names(&server, "?limit=0").len(), 3);
    let lost = server.get(&admin(), "/v2.0/networks?limit=1&marker=00000000-0000-0000-0000-000000000000");
    assert_eq!((lost.status, lost.error()), (404, "NetworkNotFound"));
}

#[test]
fn ports_are_found_by_their_addresses() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    for ip in ["10.0.0.5", "10.0.0.6"] {
        let body = json!({"network_id": network["id"], "name": ip, "fixed_ips": [{"ip_address": ip}]});
        server.make(&admin(), "port", body);
    }
    let found = |query: &str| pick(&server.list(&admin(), "ports", query), "name");
    assert_eq!(found("?fixed_ips=ip_address%3D10.0.0.5"), ["10.0.0.5"]);
    assert_eq!(found("?fixed_ips=ip_address%3D10.0.0.5&fixed_ips=ip_address%3D10.0.0.6").len(), 2);
    let subnet = format!("?fixed_ips=subnet_id%3D{}", id(&subnet));
    assert_eq!(found(&subnet).len(), 2);
    assert_eq!(found(&format!("{subnet}&fixed_ips=ip_address%3D10.0.0.6&name=10.0.0.6")), ["10.0.0.6"]);
    assert_eq!(found("?fixed_ips=ip_address%3D10.0.0.7").len(), 0);
    assert_eq!(found("?device_id=").len(), 2, "an empty value is a value");
}

#[test]
fn tags_are_set_found_and_removed() {
    let server = three_networks();
    let list = server.list(&admin(), "networks", "?sort_key=name&sort_dir=asc");
    let tags = |n: usize| format!("/v2.0/networks/{}/tags", id(&list[n]));
    assert_eq!(server.put(&admin(), &tags(0), json!({"tags": ["red", "big"]})).body, json!({"tags": ["big", "red"]}));
    assert_eq!(server.put(&admin(), &format!("{}/red", tags(1)), json!({})).status, 201);
    assert_eq!(server.get(&admin(), &format!("{}/red", tags(1))).status, 204);
    assert_eq!(server.get(&admin(), &format!("{}/big", tags(1))).error(), "TagNotFound");
    assert_eq!(names(&server, "?tags=red,big"), ["a"]);
    assert_eq!(pick(&server.list(&admin(), "networks", "?tags-any=red,big"), "name"), ["a", "b"]);
    assert_eq!(pick(&server.list(&admin(), "networks", "?not-tags=red,big"), "name"), ["b", "c"]);
    assert_eq!(names(&server, "?not-tags-any=red,big"), ["c"]);
    assert_eq!(server.delete(&admin(), &format!("{}/big", tags(0))).status, 204);
    assert_eq!(server.get(&admin(), &tags(0)).body, json!({"tags": ["red"]}));
    assert_eq!(server.delete(&admin(), &tags(0)).status, 204);
    assert_eq!(server.shown("network", id(&list[0]))["tags"], json!([]));
    let twice = server.put(&admin(), &tags(0), json!({"tags": ["x", "x"]}));
    assert_eq!((twice.status, twice.error()), (400, "HTTPBadRequest"));
    let network = server.shown("network", id(&list[0]));
    assert_eq!(network["revision_number"], 4, "tags count as changes");
}

#[test]
fn a_change_can_depend_on_the_revision() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({"name": "a"}));
    let path = format!("/v2.0/networks/{}", id(&network));
    let body = json!({"network": {"name": "b"}}).to_string();
    let with = |revision: &str, method: &str| server.send(&admin(), method, &path, &[("if-match", revision)], &body);
    let stale = with("revision_number=7", "PUT");
    assert_eq!((stale.status, stale.error()), (412, "RevisionNumberConstraintFailed"));
    assert_eq!(stale.message(), "Constrained to 7, but current revision is 1");
    let changed = with("revision_number=1", "PUT");
    assert_eq!((changed.status, &changed.body["network"]["revision_number"]), (200, &json!(2)));
    assert_eq!(with("revision_number=1", "DELETE").status, 412);
    assert_eq!(with("nonsense", "DELETE").status, 400);
    assert_eq!(with("revision_number=2", "DELETE").status, 204);
}

#[test]
fn versions_and_resources_are_discovered() {
    let server = Server::new();
    let root = server.get(&admin(), "/");
    let version = &root.body["versions"][0];
    assert_eq!((&version["id"], &version["status"]), (&json!("v2.0"), &json!("CURRENT")));
    assert_eq!(version["links"][0], json!({"rel": "self", "href": "http://api.example:9696/v2.0/"}));
    for path in ["/v2.0", "/v2.0/"] {
        let answer = server.get(&admin(), path);
        assert_eq!(answer.body["resources"][0]["collection"], "networks");
    }
    assert_eq!(server.get(&admin(), "/v2.0/nonsense").error(), "HTTPNotFound");
}

#[test]
fn only_what_works_is_advertised() {
    let server = Server::new();
    let extensions = server.list(&member(PROJECT), "extensions", "");
    let aliases = pick(&extensions, "alias");
    for offered in ["router", "l3-ha", "dvr", "agent", "external-net", "provider", "standard-attr-tag", "quotas"] {
        assert!(aliases.iter().any(|alias| alias == offered), "{offered}");
        let one = server.get(&admin(), &format!("/v2.0/extensions/{offered}"));
        assert_eq!((one.status, &one.body["extension"]["alias"]), (200, &json!(offered)));
    }
    for missing in ["address-group", "qos"] {
        assert!(!aliases.iter().any(|alias| alias == missing), "{missing}");
        let one = server.get(&admin(), &format!("/v2.0/extensions/{missing}"));
        assert_eq!((one.status, one.error()), (404, "ExtensionNotFound"));
    }
    assert_eq!(server.get(&admin(), "/v2.0/address-groups").status, 404);
}

#[test]
fn agents_are_listed_and_filtered_by_what_is_computed() {
    let server = Server::new();
    server.hosts();
    server.silence("h2");
    assert_eq!(server.list(&admin(), "agents", "").len(), 6);
    let l3 = server.list(&admin(), "agents", "?agent_type=L3%20agent&alive=True");
    assert_eq!(pick(&l3, "host"), ["h1", "h3"]);
    assert_eq!(pick(&l3, "binary"), ["neutron-l3-agent", "neutron-l3-agent"]);
    let dead = server.list(&admin(), "agents", "?alive=False&sort_key=binary&sort_dir=desc");
    assert_eq!(pick(&dead, "host"), ["h2", "h2"]);
    assert_eq!(dead[0]["binary"], "neutron-linuxbridge-agent");
    let created = l3[0]["created_at"].as_str().unwrap();
    assert!(created.len() == 19 && created.contains(' ') && !created.contains('T'), "{created}");
    let path = format!("/v2.0/agents/{}", id(&l3[0]));
    let answer = server.put(&admin(), &path, json!({"agent": {"description": "rack 3"}}));
    assert_eq!(answer.body["agent"]["description"], "rack 3");
    assert_eq!(server.put(&admin(), &path, json!({"agent": {"host": "h9"}})).status, 400);
    assert_eq!(server.post(&admin(), "/v2.0/agents", json!({"agent": {}})).status, 405);
}

#[test]
fn every_attribute_of_every_resource_can_be_asked_for() {
    let server = Server::new();
    server.hosts();
    for collection in evergate_server::resources::COLLECTIONS {
        let table = evergate_server::resources::find(collection).unwrap().table();
        for attribute in table.attributes {
            for value in ["x", "1", "true", "10.0.0.1", "fa:16:3e:00:00:01", ""] {
                let answer = server.get(&admin(), &format!("/v2.0/{collection}?{}={value}", attribute.name));
                assert!(matches!(answer.status, 200 | 400), "{collection}?{}={value}: {answer:?}", attribute.name);
            }
            if attribute.sort.is_some() {
                let query = format!("?sort_key={}&sort_dir=desc&limit=1", attribute.name);
                server.list(&admin(), collection, &query);
                let by_member = server.get(&member(PROJECT), &format!("/v2.0/{collection}{query}"));
                assert!(matches!(by_member.status, 200 | 400), "{collection}{query}: {by_member:?}");
            }
        }
    }
}
