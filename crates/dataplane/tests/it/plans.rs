//! Golden plans: what each scenario would do to a host, as an operator would read it.
//!
//! `EVERGATE_BLESS=1 cargo test -p evergate-dataplane` writes the files anew; read the difference before
//! committing it.

use std::net::Ipv4Addr;
use std::path::Path;

use evergate_dataplane::fake::FakeKernel;
use evergate_dataplane::state::{Link, LinkKind, Netns};
use evergate_dataplane::{KernelState, Plan, Refusal, compile, diff};
use evergate_model::host::PortForwarding;
use evergate_model::{AddressScopeId, HostConfig, PortForwardingId};

use crate::cloud::{self, COMPUTE, INSTANCE_PORT, PROJECT_NET, ROUTER};

#[test]
#[expect(clippy::disallowed_methods, reason = "golden files are files; the crate itself has none")]
fn every_rule_that_the_life_of_a_packet_quotes_is_in_a_golden_plan() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../../docs/life-of-a-packet.md")).unwrap();
    let plans: Vec<String> = std::fs::read_dir(root.join("tests/plans"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    // Between every other pair of fences.
    let quoted: Vec<&str> =
        page.split("\n```").skip(1).step_by(2).flat_map(str::lines).filter(|line| !line.is_empty()).collect();
    assert!(quoted.len() >= 5, "the page quotes rules: {quoted:?}");
    for rule in quoted {
        assert!(plans.iter().any(|plan| plan.contains(rule)), "no golden plan has '{rule}'");
    }
    for name in page.split('`').filter(|word| word.ends_with(".txt")) {
        assert!(root.join("tests/plans").join(name.trim_start_matches('/')).exists(), "there is no plan '{name}'");
    }
}

#[test]
fn an_ha_router_is_created_on_a_network_host() {
    let kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(&cloud::ha_host()).kernel;
    check(
        "ha-router-created",
        "A network host is given its first HA router, with an external gateway on br-ex and one project \
         network. The copy stands by: its qr- and qg- devices are up without any address, and its rules are \
         in place. The keeper adds the addresses when the copy becomes active.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn an_eighth_copy_comes_to_an_ha_network() {
    let before = cloud::with_copies(cloud::ha_host(), 7);
    let mut kernel = cloud::kernel(&[]);
    cloud::converge(&mut kernel, &cloud::network_host(&before).kernel);
    let desired = cloud::network_host(&cloud::with_copies(before, 8)).kernel;
    check(
        "ha-eighth-copy",
        "A network host that has copies of seven routers of one HA network is given an eighth. From eight on, an \
         advertisement that comes in by the tunnel goes to the copy with its identifier alone, and one of another \
         identifier to the copy with the lowest one; what a copy says goes from its tap to the tunnel at once.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn a_legacy_router_is_created_on_a_network_host() {
    let kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(&cloud::legacy_host()).kernel;
    check(
        "legacy-router-created",
        "A network host is given a legacy router, with an external gateway on br-ex and one project network. \
         There is no role to follow, so it has its addresses and its default route at once.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn an_ha_router_with_ipv6_is_created() {
    let kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(&cloud::with_ipv6(cloud::ha_host())).kernel;
    check(
        "ha-router-ipv6-created",
        "A network host is given an HA router whose networks have IPv6 subnets, too. The devices that have IPv6 \
         are made down, and come up when the kernel makes no addresses of its own and a rule keeps it from \
         speaking without one: a copy that stands by must not be heard.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn a_legacy_router_with_ipv6_is_created() {
    let kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(&cloud::with_ipv6(cloud::legacy_host())).kernel;
    check(
        "legacy-router-ipv6-created",
        "A network host is given a legacy router whose networks have IPv6 subnets, too: each device also has \
         the link-local address that instances know the router by.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn an_instance_starts_on_a_compute_host() {
    let mut kernel = cloud::kernel(&[]);
    let compile = |taps| compile(&cloud::compute_host(), &cloud::settings(COMPUTE), &cloud::view(taps)).kernel;
    cloud::converge(&mut kernel, &compile(&[]));
    kernel.add_foreign_link(&evergate_model::names::tap(INSTANCE_PORT));
    let desired = compile(&[INSTANCE_PORT]);
    check(
        "instance-port-plugged",
        "A compute host has an instance's network already. The hypervisor makes the instance's tap; it is \
         plugged into the network's bridge.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn a_compute_host_is_given_a_network() {
    let kernel = cloud::kernel(&[INSTANCE_PORT]);
    let desired = compile(&cloud::compute_host(), &cloud::settings(COMPUTE), &cloud::view(&[INSTANCE_PORT])).kernel;
    check(
        "network-created",
        "A compute host is given the network of an instance whose tap is there already. The HA router's \
         gateway address is known to the bridge; the way to it follows the active copy, and is the keeper's.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn a_floating_ip_is_added() {
    let plan = between(&cloud::ha_host(), &cloud::with_floating_ip(cloud::ha_host()));
    check(
        "floating-ip-added-ha",
        "A floating IP is associated with an instance behind an HA router: the rules change in one \
         transaction. The address itself follows the role, and is the keeper's.",
        plan,
    );
    let plan = between(&cloud::legacy_host(), &cloud::with_floating_ip(cloud::legacy_host()));
    check(
        "floating-ip-added-legacy",
        "A floating IP is associated with an instance behind a legacy router: first the rules, then the \
         address, so that no packet to it is taken for the router's.",
        plan,
    );
}

#[test]
fn ports_are_forwarded_and_scopes_kept_apart() {
    let mut config = cloud::legacy_host();
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.interfaces.get_mut(&cloud::QR_PORT).unwrap().address_scopes.v4 = Some(AddressScopeId::from_u128(1));
    let forwarding = |external_ports, internal_ports| PortForwarding {
        floating_ip_id: None,
        floating: Ipv4Addr::new(203, 0, 113, 60),
        protocol: 6,
        external_ports,
        fixed: Ipv4Addr::new(10, 0, 0, 9),
        internal_ports,
    };
    let forwardings = [forwarding((80, 80), (8080, 8080)), forwarding((6000, 6999), (6000, 6999))];
    router.port_forwardings = (1_u128..).map(PortForwardingId::from_u128).zip(forwardings).collect();
    check(
        "ports-forwarded-and-scopes",
        "Ports of a floating IP are forwarded to an instance, and the project network gets an address scope that the \
         external network is not of: what is translated passes, and what is not is dropped.",
        between(&cloud::legacy_host(), &config),
    );
}

#[test]
fn a_router_is_removed() {
    let mut without = cloud::ha_host();
    without.routers.clear();
    without.networks.clear();
    check(
        "ha-router-removed",
        "The HA router that was this host's only one is deleted: its taps go first, because the kernel takes \
         a namespace down when it finds the time. Nothing of ours is left; br-ex was not ours.",
        between(&cloud::ha_host(), &without),
    );
}

#[test]
fn a_restart_adopts_everything() {
    check(
        "restart",
        "Control starts again and finds the host as it left it.",
        between(&cloud::with_floating_ip(cloud::ha_host()), &cloud::with_floating_ip(cloud::ha_host())),
    );
}

#[test]
fn a_foreign_bridge_and_namespace_are_in_the_way() {
    let mut kernel = cloud::kernel(&[]);
    let bridge =
        Link { kind: LinkKind::Other, alias: None, up: true, mtu: Some(1500), mac: None, master: None, port: None };
    let host = kernel.state_mut().netns.get_mut(&Netns::Host).unwrap();
    host.links.insert(evergate_model::names::bridge(PROJECT_NET), bridge);
    let desired = cloud::network_host(&cloud::legacy_host()).kernel;
    check(
        "foreign-bridge",
        "Another program made a bridge by the name that the project network needs. It is left alone, and so \
         is everything that would need it: the tunnel and the router's inner device. The router's outer side \
         is built all the same.",
        diff(&desired, &kernel.observe(&desired)),
    );

    let mut kernel = cloud::kernel(&[]);
    let netns = Netns::Named(evergate_model::names::qrouter_namespace(ROUTER));
    kernel.state_mut().netns.insert(netns, evergate_dataplane::NetnsState::default());
    check(
        "foreign-namespace",
        "A namespace by the router's name is there, without our mark. It is left alone; the networks are built.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn a_foreign_tunnel_device_is_in_the_way_of_an_ha_network() {
    let mut kernel = cloud::kernel(&[]);
    kernel.add_foreign_link("vxlan-102");
    let seven = cloud::with_copies(cloud::ha_host(), 7);
    let desired = cloud::network_host(&seven).kernel;
    let (plan, _) = diff(&desired, &kernel.observe(&desired));
    assert!(kernel.apply(&plan.into_ops()).iter().all(Result::is_ok));
    let desired = cloud::network_host(&cloud::with_copies(seven, 8)).kernel;
    check(
        "foreign-tunnel",
        "The Linux bridge agent that this host had before has left the tunnel device of what is now the HA network. It          is left alone, and so are its frames: with the eighth copy there is no table that leads advertisements.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

/// The plan from a host that has converged on one configuration to another.
fn between(before: &HostConfig, after: &HostConfig) -> (Plan, Vec<Refusal>) {
    let state = |config| cloud::network_host(config).kernel;
    between_states(&mut cloud::kernel(&[]), &state(before), &state(after))
}

/// The plan for a kernel from one state to another.
pub(crate) fn between_states(
    kernel: &mut FakeKernel,
    before: &KernelState,
    after: &KernelState,
) -> (Plan, Vec<Refusal>) {
    cloud::converge(kernel, before);
    diff(after, &kernel.observe(after))
}

#[expect(clippy::disallowed_methods, reason = "golden files are files; the crate itself has none")]
pub(crate) fn check(name: &str, scenario: &str, (plan, refusals): (Plan, Vec<Refusal>)) {
    let mut text = String::new();
    let mut line = String::from("#");
    for word in scenario.split_whitespace() {
        if line.len() + 1 + word.len() > 100 {
            text += &format!("{line}\n");
            line = String::from("#");
        }
        line = format!("{line} {word}");
    }
    text += &format!("{line}\n\n");
    for refusal in &refusals {
        text += &format!("# refused: {refusal}\n");
    }
    text += &plan.to_string();

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/plans/{name}.txt"));
    if std::env::var_os("EVERGATE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; EVERGATE_BLESS=1 writes it anew", path.display());
}
