//! Bad input: Neutron's status and type, and nothing half-done.

use serde_json::{Value, json};

use crate::harness::{PROJECT, Server, admin, id, member};

/// Sends requests that must be refused, and checks that none leaves a trace.
struct Refusals<'a> {
    server: &'a Server,
    before: String,
}

impl<'a> Refusals<'a> {
    fn of(server: &'a Server) -> Self {
        Self { server, before: server.dump() }
    }

    #[track_caller]
    fn raw(&self, method: &str, path: &str, body: &str, status: u16, error: &str) -> String {
        let answer = self.server.send(&admin(), method, path, &[], body);
        assert_eq!((answer.status, answer.error()), (status, error), "{method} {path} {body}: {answer:?}");
        assert_eq!(self.server.dump(), self.before, "{method} {path} {body} left a trace");
        answer.message().to_owned()
    }

    #[track_caller]
    fn post(&self, singular: &str, body: &Value, status: u16, error: &str) -> String {
        let body = json!({singular: body}).to_string();
        self.raw("POST", &format!("/v2.0/{singular}s"), &body, status, error)
    }

    #[track_caller]
    fn put(&self, path: &str, body: &Value, status: u16, error: &str) -> String {
        self.raw("PUT", path, &body.to_string(), status, error)
    }

    #[track_caller]
    fn delete(&self, path: &str, status: u16, error: &str) -> String {
        self.raw("DELETE", path, "", status, error)
    }
}

#[test]
fn what_is_no_json_object_is_refused() {
    let server = Server::new();
    let refused = Refusals::of(&server);
    for body in ["{", "nonsense", "[]", "\"text\"", "{\"network\": {\"name\": \"x\"", "\u{1}"] {
        let text = refused.raw("POST", "/v2.0/networks", body, 400, "HTTPBadRequest");
        assert_eq!(text, "Body contains invalid data");
    }
    assert_eq!(refused.raw("POST", "/v2.0/networks", "", 400, "HTTPBadRequest"), "Resource body required");
    let text = refused.raw("POST", "/v2.0/networks", "{\"router\": {}}", 400, "HTTPBadRequest");
    assert_eq!(text, "Unable to find 'network' in request body");
    refused.raw("POST", "/v2.0/networks", "{\"network\": []}", 400, "HTTPBadRequest");
    refused.raw("POST", "/v2.0/networks", "{\"networks\": {}}", 400, "HTTPBadRequest");
    refused.raw("POST", "/v2.0/networks", "{\"networks\": [1]}", 400, "HTTPBadRequest");
    let deep = "[".repeat(100_000);
    refused.raw("POST", "/v2.0/networks", &deep, 400, "HTTPBadRequest");
}

#[test]
fn unknown_read_only_and_missing_attributes_are_named() {
    let server = Server::new();
    let (network, _) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let refused = Refusals::of(&server);
    let text = refused.post("network", &json!({"colour": "red"}), 400, "HTTPBadRequest");
    assert_eq!(text, "Unrecognized attribute(s) 'colour'");
    let text = refused.post("network", &json!({"status": "ACTIVE"}), 400, "HTTPBadRequest");
    assert_eq!(text, "Attribute 'status' not allowed in POST");
    let text = refused.post("router", &json!({"routes": []}), 400, "HTTPBadRequest");
    assert_eq!(text, "Attribute 'routes' not allowed in POST");
    let text = refused.post("port", &json!({}), 400, "HTTPBadRequest");
    assert_eq!(text, "Failed to parse request. Required attribute 'network_id' not specified");
    let path = format!("/v2.0/networks/{}", id(&network));
    let text = refused.put(&path, &json!({"network": {"id": "x"}}), 400, "HTTPBadRequest");
    assert_eq!(text, "Cannot update read-only attribute id");
    let text = refused.put(&path, &json!({"network": {"tenant_id": "x"}}), 400, "HTTPBadRequest");
    assert_eq!(text, "Cannot update read-only attribute tenant_id");
    let text = refused.raw("POST", "/v2.0/routers", "{\"routers\": [{}]}", 400, "HTTPBadRequest");
    assert_eq!(text, "Bulk operation not supported");
}

#[test]
fn values_of_the_wrong_type_are_refused_by_name() {
    let server = Server::new();
    let (network, _) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let refused = Refusals::of(&server);
    let text = refused.post("network", &json!({"name": 7}), 400, "HTTPBadRequest");
    assert_eq!(text, "Invalid input for name. Reason: '7' is not a valid string.");
    let text = refused.post("network", &json!({"name": "x".repeat(256)}), 400, "HTTPBadRequest");
    assert!(text.ends_with("exceeds maximum length of 255."), "{text}");
    refused.post("network", &json!({"name": "nul\u{0}"}), 400, "HTTPBadRequest");
    let text = refused.post("network", &json!({"admin_state_up": "perhaps"}), 400, "InvalidInput");
    assert_eq!(text, "Invalid input for operation: 'perhaps' cannot be converted to boolean.");
    refused.post("network", &json!({"admin_state_up": null}), 400, "InvalidInput");
    refused.post("network", &json!({"mtu": "big"}), 400, "InvalidInput");
    refused.post("network", &json!({"mtu": -1}), 400, "HTTPBadRequest");
    refused.post("network", &json!({"mtu": 1e300}), 400, "InvalidInput");
    let vni = json!({"provider:network_type": "vxlan", "provider:segmentation_id": 16_777_216});
    refused.post("network", &vni, 400, "InvalidInput");
    refused.post("network", &json!({"provider:network_type": "token-ring"}), 400, "InvalidInput");
    refused.post("network", &json!({"provider:network_type": "flat"}), 400, "InvalidInput");
    refused.post("network", &json!({"provider:physical_network": "p"}), 400, "InvalidInput");
    refused.post("network", &json!({"is_default": true}), 400, "InvalidInput");
    refused.post("port", &json!({"network_id": "net1"}), 400, "HTTPBadRequest");
    let port = |extra: Value| {
        let mut body = json!({"network_id": network["id"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let text = refused.post("port", &port(json!({"mac_address": "zz"})), 400, "HTTPBadRequest");
    assert_eq!(text, "Invalid input for mac_address. Reason: 'zz' is not a valid MAC address.");
    refused.post("port", &port(json!({"mac_address": "01:00:5e:00:00:12"})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"fixed_ips": "10.0.0.5"})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"fixed_ips": null})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"fixed_ips": [{"ip_address": "10.0.0.500"}]})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"fixed_ips": [{"colour": "red"}]})), 400, "HTTPBadRequest");
    let twice = json!({"fixed_ips": [{"ip_address": "10.0.0.5"}, {"ip_address": "10.0.0.5"}]});
    refused.post("port", &port(twice), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"binding:vnic_type": "psychic"})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"binding:profile": "x"})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"security_groups": [network["id"]]})), 404, "SecurityGroupNotFound");
    refused.post("port", &port(json!({"security_groups": ["x"]})), 400, "HTTPBadRequest");
    refused.post("port", &port(json!({"extra_dhcp_opts": [{"opt_name": ""}]})), 400, "HTTPBadRequest");
    refused.post("router", &json!({"external_gateway_info": "out"}), 400, "HTTPBadRequest");
    refused.post("router", &json!({"external_gateway_info": {"enable_snat": true}}), 400, "HTTPBadRequest");
    refused.post("router", &json!({"flavor_id": network["id"]}), 400, "HTTPBadRequest");
}

#[test]
fn addresses_outside_their_subnet_are_refused() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let (_, elsewhere) = server.make_network(&admin(), "net2", "10.0.0.0/24");
    server.make(&admin(), "port", json!({"network_id": network["id"], "fixed_ips": [{"ip_address": "10.0.0.5"}]}));
    let refused = Refusals::of(&server);
    let port = |fixed: Value| json!({"network_id": network["id"], "fixed_ips": [fixed]});
    let text = refused.post("port", &port(json!({"ip_address": "10.1.0.5"})), 400, "InvalidIpForNetwork");
    assert_eq!(text, "IP address 10.1.0.5 is not a valid IP for any of the subnets on the specified network.");
    for ip in ["10.1.0.5", "10.0.0.0", "10.0.0.255"] {
        let both = json!({"ip_address": ip, "subnet_id": subnet["id"]});
        refused.post("port", &port(both), 400, "InvalidIpForSubnet");
    }
    refused.post("port", &port(json!({"subnet_id": elsewhere["id"]})), 400, "InvalidInput");
    let text = refused.post("port", &port(json!({"ip_address": "10.0.0.5"})), 409, "IpAddressAlreadyAllocated");
    assert_eq!(text, format!("IP address 10.0.0.5 already allocated in subnet {}", id(&subnet)));
}

#[test]
fn a_subnet_that_makes_no_sense_is_refused() {
    let server = Server::new();
    let (network, _) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let refused = Refusals::of(&server);
    let subnet = |cidr: &str, extra: Value| {
        let mut body = json!({"network_id": network["id"], "ip_version": 4, "cidr": cidr});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let cases = [
        (subnet("10.0.0.128/25", json!({})), 400, "InvalidInput"),
        (subnet("10.0.0.0/8", json!({})), 400, "InvalidInput"),
        (subnet("nonsense", json!({})), 400, "HTTPBadRequest"),
        (subnet("10.1.0.1", json!({})), 400, "HTTPBadRequest"),
        (subnet("2001:db8::/64", json!({})), 400, "InvalidInput"),
        (subnet("0.0.0.0/0", json!({})), 400, "InvalidInput"),
        (subnet("224.0.0.0/24", json!({})), 400, "InvalidInput"),
        (subnet("127.0.0.0/24", json!({})), 400, "InvalidInput"),
        (subnet("10.1.0.0/31", json!({})), 400, "InvalidInput"),
        (subnet("10.1.0.0/24", json!({"ip_version": 5})), 400, "HTTPBadRequest"),
        (subnet("10.1.0.0/24", json!({"gateway_ip": "10.1.0.0"})), 400, "InvalidInput"),
        (subnet("10.1.0.0/24", json!({"gateway_ip": "10.1.0.255"})), 400, "InvalidInput"),
        (subnet("10.1.0.0/24", json!({"gateway_ip": "2001:db8::1"})), 400, "InvalidInput"),
        (subnet("10.1.0.0/24", json!({"gateway_ip": "here"})), 400, "HTTPBadRequest"),
        (subnet("10.1.0.0/24", json!({"ipv6_ra_mode": "slaac"})), 400, "InvalidInput"),
        (subnet("10.1.0.0/24", json!({"dns_nameservers": ["dns"]})), 400, "HTTPBadRequest"),
        (subnet("10.1.0.0/24", json!({"subnetpool_id": network["id"]})), 404, "SubnetPoolNotFound"),
        (subnet("10.1.0.0/24", json!({"allocation_pools": [{"start": "10.1.0.5"}]})), 400, "HTTPBadRequest"),
        (
            subnet("10.1.0.0/24", json!({"allocation_pools": [{"start": "10.2.0.5", "end": "10.2.0.6"}]})),
            400,
            "OutOfBoundsAllocationPool",
        ),
        (
            subnet("10.1.0.0/24", json!({"allocation_pools": [{"start": "10.1.0.1", "end": "10.1.0.6"}]})),
            409,
            "GatewayConflictWithAllocationPools",
        ),
        (json!({"network_id": network["id"], "ip_version": 4}), 400, "BadRequest"),
        (
            json!({"network_id": "00000000-0000-0000-0000-000000000001", "ip_version": 4, "cidr": "10.1.0.0/24"}),
            404,
            "NetworkNotFound",
        ),
    ];
    for (body, status, error) in cases {
        refused.post("subnet", &body, status, error);
    }
}

#[test]
fn overlapping_subnets_do_not_meet_on_one_router() {
    let server = Server::new();
    let (_, first) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let (_, second) = server.make_network(&admin(), "net2", "10.0.0.0/16");
    let router = server.make(&admin(), "router", json!({}));
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    assert_eq!(server.put(&admin(), &path, json!({"subnet_id": first["id"]})).status, 200);
    let refused = Refusals::of(&server);
    let text = refused.put(&path, &json!({"subnet_id": second["id"]}), 400, "BadRequest");
    let expected = format!(
        "Bad router request: Cidr 10.0.0.0/16 of subnet {} overlaps with cidr 10.0.0.0/24 of subnet {}.",
        id(&second),
        id(&first)
    );
    assert_eq!(text, expected);
    let text = refused.put(&path, &json!({"subnet_id": first["id"]}), 400, "BadRequest");
    assert_eq!(text, format!("Bad router request: Router already has a port on subnet {}.", id(&first)));
    let text = refused.put(&path, &json!({}), 400, "BadRequest");
    assert_eq!(text, "Bad router request: Either subnet_id or port_id must be specified.");
    refused.put(&path, &json!({"subnet_id": "net1"}), 400, "BadRequest");
    refused.put(&path, &json!({"subnet_id": first["id"], "port_id": first["id"]}), 400, "BadRequest");
    refused.put(&path, &json!({"subnet_id": id(&router)}), 404, "SubnetNotFound");
    let remove = format!("/v2.0/routers/{}/remove_router_interface", id(&router));
    refused.put(&remove, &json!({"subnet_id": second["id"]}), 404, "RouterInterfaceNotFoundForSubnet");
    refused.put(&remove, &json!({"port_id": first["id"]}), 404, "RouterInterfaceNotFound");
}

#[test]
fn what_is_in_use_is_not_deleted() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let (external, _) = server.make_external();
    let info = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", info);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    let port = server.put(&admin(), &path, json!({"subnet_id": subnet["id"]})).body["port_id"].clone();
    let refused = Refusals::of(&server);
    let text = refused.delete(&format!("/v2.0/routers/{}", id(&router)), 409, "RouterInUse");
    assert_eq!(text, format!("Router {} still has ports", id(&router)));
    let text = refused.delete(&format!("/v2.0/subnets/{}", id(&subnet)), 409, "SubnetInUse");
    let reason = "One or more ports have an IP allocation from this subnet";
    assert_eq!(text, format!("Unable to complete operation on subnet {}: {reason}.", id(&subnet)));
    let text = refused.delete(&format!("/v2.0/networks/{}", id(&network)), 409, "NetworkInUse");
    assert!(text.contains(port.as_str().unwrap()), "{text}");
    refused.delete(&format!("/v2.0/networks/{}", id(&external)), 409, "NetworkInUse");
    let interface = format!("/v2.0/ports/{}", port.as_str().unwrap());
    refused.delete(&interface, 409, "ServicePortInUse");
    refused.put(&interface, &json!({"port": {"fixed_ips": []}}), 400, "BadRequest");
    refused.put(&interface, &json!({"port": {"device_id": ""}}), 400, "BadRequest");
    let gateway = json!({"subnet": {"gateway_ip": "10.0.0.254", "allocation_pools": []}});
    refused.put(&format!("/v2.0/subnets/{}", id(&subnet)), &gateway, 409, "GatewayIpInUse");
    let internal = json!({"network": {"router:external": false}});
    refused.put(&format!("/v2.0/networks/{}", id(&external)), &internal, 409, "ExternalNetworkInUse");
}

#[test]
fn a_gateway_that_leads_nowhere_is_refused() {
    let server = Server::new();
    let (network, _) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let (external, _) = server.make_external();
    let refused = Refusals::of(&server);
    let info = |network: &str, extra: Value| {
        let mut info = json!({"network_id": network});
        info.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"external_gateway_info": info})
    };
    let text = refused.post("router", &info(id(&network), json!({})), 400, "BadRequest");
    assert_eq!(text, format!("Bad router request: Network {} is not an external network.", id(&network)));
    let nowhere = "00000000-0000-0000-0000-000000000001";
    refused.post("router", &info(nowhere, json!({})), 404, "NetworkNotFound");
    let at = |ip: &str| json!({"external_fixed_ips": [{"ip_address": ip}]});
    refused.post("router", &info(id(&external), at("192.0.2.1")), 400, "InvalidIpForNetwork");
    let text = refused.post("router", &info(id(&external), at("203.0.113.254")), 400, "BadRequest");
    assert_eq!(text, "Bad router request: External IP 203.0.113.254 is the same as the gateway IP.");
}

#[test]
fn an_exhausted_external_network_makes_no_half_router() {
    let server = Server::with(evergate_server::options::Options { l3_ha: true, ..Default::default() });
    server.hosts();
    let external = json!({
        "router:external": true, "provider:network_type": "flat", "provider:physical_network": "p",
    });
    let external = server.make(&admin(), "network", external);
    let subnet = json!({"network_id": external["id"], "ip_version": 4, "cidr": "203.0.113.0/30"});
    server.make(&admin(), "subnet", subnet);
    server.make(&member(PROJECT), "floatingip", json!({"floating_network_id": external["id"]}));
    let refused = Refusals::of(&server);
    let info = json!({"external_gateway_info": {"network_id": external["id"]}});
    refused.post("router", &info, 409, "IpAddressGenerationFailure");
    refused.post("floatingip", &json!({"floating_network_id": external["id"]}), 409, "IpAddressGenerationFailure");
}

#[test]
fn what_is_not_there_is_not_found_by_any_verb() {
    let server = Server::new();
    let refused = Refusals::of(&server);
    for (singular, error) in [
        ("network", "NetworkNotFound"),
        ("subnet", "SubnetNotFound"),
        ("port", "PortNotFound"),
        ("router", "RouterNotFound"),
        ("floatingip", "FloatingIPNotFound"),
        ("agent", "AgentNotFound"),
    ] {
        for missing in ["00000000-0000-0000-0000-000000000001", "net1", "a%20b", "%2e%2e", "'; DROP TABLE networks"] {
            let path = format!("/v2.0/{singular}s/{}", missing.replace(' ', "%20"));
            refused.raw("GET", &path, "", 404, error);
            refused.put(&path, &json!({singular: {"description": "x"}}), 404, error);
            refused.delete(&path, 404, error);
        }
    }
    refused.put("/v2.0/routers/x/add_external_gateways", &json!({"router": {}}), 404, "HTTPNotFound");
    refused.raw("PATCH", "/v2.0/networks", "{}", 405, "HTTPMethodNotAllowed");
    refused.raw("POST", "/v2.0/networks/x", "{}", 405, "HTTPMethodNotAllowed");
    refused.raw("GET", "/v2.0/networks/x/y/z", "", 404, "HTTPNotFound");
}

#[test]
fn filters_are_values_and_never_sql() {
    let server = Server::new();
    server.make(&admin(), "network", json!({"name": "a"}));
    let before = server.dump();
    for text in ["'%20OR%201=1--", "%22;DELETE%20FROM%20networks;", "a'%20OR%20'a'='a", "?1", "{}"] {
        for key in ["name", "id", "tags", "subnets", "status", "fixed_ips"] {
            let answer = server.get(&admin(), &format!("/v2.0/networks?{key}={text}"));
            let found = answer.body["networks"].as_array().map_or(0, Vec::len);
            // `fixed_ips` is no attribute of networks, so they cannot be filtered by it.
            let expected = if key == "fixed_ips" { 400 } else { 200 };
            assert_eq!((answer.status, found), (expected, 0), "{key}={text}");
        }
    }
    assert_eq!(server.dump(), before);
}
