//! Every default rule beside Neutron's of the same name (2026.2): both are put to callers of every role and to
//! objects that are theirs, on their network, shared, external or none of it, and must decide alike.

use serde_json::json;

use super::*;

/// Neutron's conditions, and the names of the rules that have them.
const NEUTRON: &[(&str, &str)] = &[
    (
        "rule:admin_only",
        "create_address_scope:shared create_l3-router create_network:is_default create_network:provider:network_type \
         create_network:provider:physical_network create_network:provider:segmentation_id \
         create_network:router:external create_network:shared create_router:distributed \
         create_router:external_gateway_info:enable_snat create_router:external_gateway_info:external_fixed_ips \
         create_router:ha create_subnet:service_types create_subnetpool:is_default create_subnetpool:shared \
         delete_agent delete_l3-router delete_quota get_agent get_l3-agents get_l3-routers \
         get_network:provider:network_type get_network:provider:physical_network \
         get_network:provider:segmentation_id get_router:distributed get_router:ha update_address_scope:shared \
         update_agent update_network:is_default update_network:provider:network_type \
         update_network:provider:physical_network update_network:provider:segmentation_id \
         update_network:router:external update_network:shared update_quota update_router:distributed \
         update_router:external_gateway_info:enable_snat update_router:external_gateway_info:external_fixed_ips \
         update_router:ha update_subnet:service_types update_subnetpool:is_default",
    ),
    (
        "rule:admin_only or (not field:rbac_policy:target_tenant=* and not field:rbac_policy:target_project=*)",
        "create_rbac_policy:target_tenant update_rbac_policy:target_tenant",
    ),
    (
        "rule:admin_only or (role:manager and project_id:%(project_id)s)",
        "create_floatingip:floating_ip_address get_quota",
    ),
    (
        "rule:admin_only or (role:member and project_id:%(project_id)s)",
        "add_extraroutes add_prefixes add_router_interface create_address_scope create_floatingip create_network \
         create_rbac_policy create_router create_router:external_gateway_info:network_id create_security_group \
         create_subnetpool delete_address_scope delete_floatingip delete_floatingip:tags delete_network \
         delete_network:tags delete_rbac_policy delete_router delete_router:tags delete_security_group \
         delete_security_group:tags delete_subnetpool delete_subnetpool:tags onboard_network_subnets \
         remove_extraroutes remove_prefixes remove_router_interface update_address_scope update_floatingip \
         update_floatingip:tags update_network update_network:tags update_rbac_policy update_router \
         update_router:external_gateway_info:network_id update_router:tags update_security_group \
         update_security_group:tags update_subnetpool update_subnetpool:tags create_floatingip:tags \
         create_network:tags create_router:tags create_security_group:tags create_subnetpool:tags",
    ),
    (
        "rule:admin_only or (role:member and rule:ext_parent_owner)",
        "create_floatingip_port_forwarding delete_floatingip_port_forwarding update_floatingip_port_forwarding",
    ),
    ("rule:admin_only or (role:member and rule:sg_owner)", "create_security_group_rule delete_security_group_rule"),
    (
        "rule:admin_only or (role:member and project_id:%(project_id)s) or rule:context_is_advsvc",
        "create_port:tags update_port:tags",
    ),
    ("rule:admin_only or (role:member and rule:network_owner)", "create_subnet"),
    (
        "rule:admin_only or (role:member and rule:network_owner) or rule:service_api",
        "create_port:allowed_address_pairs update_port:allowed_address_pairs create_port:fixed_ips:ip_address \
         create_port:mac_address create_port:port_security_enabled update_port:fixed_ips \
         update_port:fixed_ips:ip_address update_port:port_security_enabled",
    ),
    (
        "rule:admin_only or (role:reader and project_id:%(project_id)s)",
        "get_floatingip get_floatingip_pool get_rbac_policy get_router",
    ),
    ("rule:admin_only or (role:reader and rule:ext_parent_owner)", "get_floatingip_port_forwarding"),
    ("rule:admin_only or (role:reader and rule:sg_owner)", "get_security_group_rule"),
    (
        "rule:admin_only or (role:reader and project_id:%(project_id)s) or field:address_scopes:shared=True",
        "get_address_scope get_security_group get_subnetpool",
    ),
    (
        "rule:admin_only or (role:reader and project_id:%(project_id)s) or rule:service_api or rule:shared or rule:external",
        "get_network",
    ),
    (
        "rule:admin_only or rule:service_api",
        "create_port:binding:host_id get_network_ip_availability get_port:binding:host_id get_port:binding:profile \
         get_port:binding:vif_details get_port:binding:vif_type update_port:binding:host_id",
    ),
    ("rule:admin_only or rule:service_api or (role:member and project_id:%(project_id)s)", "update_port"),
    ("rule:admin_only or rule:service_api or (role:manager and rule:network_owner)", "update_port:mac_address"),
    (
        "rule:admin_only or rule:service_api or (role:member and rule:network_owner) or rule:shared",
        "create_port create_port:fixed_ips create_port:fixed_ips:subnet_id update_port:fixed_ips:subnet_id",
    ),
    (
        "rule:admin_only or rule:service_api or (role:reader and rule:network_owner) or \
         (role:reader and project_id:%(project_id)s)",
        "get_port",
    ),
    (
        "rule:context_is_advsvc or (role:member and project_id:%(project_id)s) or rule:admin_only or \
         (role:member and rule:network_owner)",
        "delete_port:tags",
    ),
    (
        "(role:member and project_id:%(project_id)s) or rule:admin_only or (role:member and rule:network_owner)",
        "create_subnet:tags delete_subnet delete_subnet:tags update_subnet update_subnet:tags",
    ),
    (
        "not rule:network_device or rule:admin_only or rule:service_api or (role:member and rule:network_owner)",
        "create_port:device_owner update_port:device_owner",
    ),
    (
        "(role:reader and project_id:%(project_id)s) or rule:shared or rule:external_network or rule:admin_only or \
         (role:reader and rule:network_owner) or rule:service_api",
        "get_subnet",
    ),
    ("role:reader", "get_availability_zone"),
    ("rule:service_api", "create_port:binding:profile update_port:binding:profile"),
    (
        "rule:admin_only or rule:service_api or (not rule:compute_device and not rule:baremetal_device and not \
         rule:manila_device and ((role:member and rule:network_owner) or (role:member and project_id:%(project_id)s)))",
        "delete_port",
    ),
];

/// Rules that decide otherwise on purpose.
const DIFFERENT: &[(&str, &str)] = &[
    ("get_quota", "clients show members and readers their project's quotas"),
    ("get_floatingip_pool", "whoever may use the external network: pools are of whoever made it"),
    ("create_port", "a reader makes no port, not even on a shared network; a member sees the network or has 404"),
    ("create_port:fixed_ips", "a reader makes no port"),
    ("create_port:fixed_ips:subnet_id", "a reader makes no port"),
    ("update_port:fixed_ips:subnet_id", "a reader changes no port"),
    ("get_subnet", "which networks' subnets one sees is the store's to say, for owners of networks, too"),
    ("create_port:tags", "services may tag what they may make"),
    ("update_port:tags", "services may change what they may change otherwise"),
    ("delete_port:tags", "as above"),
];

/// Rules of what Neutron does not have, or has no rule for and lets nobody do.
const OWN: &[&str] = &[
    "get_router:evergate:warnings",
    "update_router:evergate:move_to",
    "update_router:evergate:preempt",
    "update_router:evergate:preferred_host",
    "get_router:evergate:move_to",
    "get_router:evergate:preempt",
    "get_router:evergate:preferred_host",
    "update_security_group_rule",
];

/// Callers of every role: of the project that owns the object, of the one that owns its network, and of neither.
fn callers() -> Vec<(String, Context)> {
    let ladder = ["admin", "manager", "member", "reader"];
    let mut callers = Vec::new();
    for project in ["owner", "network-owner", "stranger"] {
        for role in ["admin", "manager", "member", "reader", "service", "dancer"] {
            let implied = ladder.iter().position(|known| *known == role).map_or(&[][..], |from| &ladder[from..]);
            let roles = implied.iter().copied().chain([role]).map(str::to_owned).collect();
            let mut ctx = Context { project_id: Some(project.into()), roles, ..Context::default() };
            Policy::standard().introduce(&mut ctx);
            callers.push((format!("{role} of {project}"), ctx));
        }
    }
    callers
}

/// Objects that differ in whatever a rule asks about.
fn objects() -> Vec<(Target, Object)> {
    let mut objects = Vec::new();
    for (shared, external) in [(false, false), (true, false), (false, true)] {
        for device_owner in ["", "network:dhcp", "compute:nova", "baremetal:none", "manila:share"] {
            for target_tenant in ["*", "stranger"] {
                let target = Target {
                    project_id: "owner".into(),
                    network_project_id: Some("network-owner".into()),
                    network_shared: shared,
                };
                let object = json!({
                    "shared": shared, "router:external": external, "device_owner": device_owner,
                    "target_tenant": target_tenant, "project_id": "owner",
                });
                objects.push((target, object.as_object().cloned().unwrap_or_default()));
            }
        }
    }
    objects
}

#[test]
fn every_default_rule_decides_as_neutrons_does() {
    let policy = Policy::standard();
    let mut wrong = BTreeSet::new();
    let mut known = BTreeMap::new();
    for (text, names) in NEUTRON {
        let check = Arc::new(Check::parse(text).unwrap());
        for name in names.split_whitespace() {
            assert!(known.insert(name, Arc::clone(&check)).is_none(), "{name} is there twice");
        }
    }
    let (callers, objects) = (callers(), objects());
    for (name, rule) in names::all() {
        let Some(neutrons) = known.remove(name.as_str()) else {
            // What Neutron has no rule for is nobody's but whoever's who may do the action.
            if rule != Rule::Any && !OWN.contains(&name.as_str()) {
                wrong.insert(format!("{name}: {rule:?}, and no rule of Neutron's"));
            }
            continue;
        };
        let differs = objects.iter().find_map(|(target, object)| {
            let facts = Facts { target, given: None, object: Some(object) };
            let decide = |check: &Check, ctx: &Context| policy.decide(check, ctx, Some(&facts)) == Some(true);
            let (who, _) = callers
                .iter()
                .find(|(_, ctx)| decide(&neutrons, ctx) != policy.named(&name).is_some_and(|own| decide(own, ctx)))?;
            Some(format!("{name}: {who}, {object:?}"))
        });
        match (differs, DIFFERENT.iter().any(|(different, _)| *different == name)) {
            (Some(how), false) => _ = wrong.insert(how),
            (None, true) => _ = wrong.insert(format!("{name} does not differ")),
            (Some(_), true) | (None, false) => {}
        }
    }
    wrong.extend(known.into_keys().map(|name| format!("{name}: Neutron has it, and it is not here")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}
