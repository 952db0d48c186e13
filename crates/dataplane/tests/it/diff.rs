//! Plans for hosts that are not as they should be.

use std::collections::BTreeMap;

use evergate_dataplane::compile::{CopyPort, dispatch_table};
use evergate_dataplane::fake::FakeKernel;
use evergate_dataplane::nft::{
    NftChain, NftChainKind, NftFamily, NftHook, NftRule, NftStatement, NftTable, TABLE_NAME,
};
use evergate_dataplane::op::Op;
use evergate_dataplane::state::{Address, FdbEntry, FdbTable, Link, LinkKind, Netns, Route, TABLE_MAIN};
use evergate_dataplane::{Desired, HostSettings, KernelState, NetnsState, Plan, compile, diff};
use evergate_model::{HostConfig, Mac, RouterId, names};

use crate::cloud::{self, COMPUTE, HA_PORT, INSTANCE_PORT, NETWORK_1, PROJECT_NET, QG_PORT, QR_PORT, ROUTER, mac};

fn router_ns() -> Netns {
    Netns::Named(names::qrouter_namespace(ROUTER))
}

fn converged(config: &HostConfig) -> (FakeKernel, KernelState) {
    let mut kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(config).kernel;
    cloud::converge(&mut kernel, &desired);
    (kernel, desired)
}

fn plan(kernel: &FakeKernel, desired: &KernelState) -> Plan {
    let (plan, refusals) = diff(desired, &kernel.observe(desired));
    assert_eq!(refusals, []);
    plan
}

fn ns<'a>(kernel: &'a mut FakeKernel, netns: &Netns) -> &'a mut NetnsState {
    kernel.state_mut().netns.get_mut(netns).unwrap()
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.ops().map(ToString::to_string).collect()
}

#[test]
fn drift_is_corrected_by_as_many_ops_as_there_are_differences() {
    let (mut kernel, desired) = converged(&cloud::legacy_host());
    let qr = names::internal_device(QR_PORT);
    let state = ns(&mut kernel, &router_ns());
    state.links.get_mut(&qr).unwrap().mtu = Some(1400);
    state.links.get_mut(&qr).unwrap().mac = Some(mac(99));
    state.routes.clear();
    state.sysctls.insert("ipv4/ip_forward".to_owned(), "0".to_owned());
    let plan = plan(&kernel, &desired);
    let netns = names::qrouter_namespace(ROUTER);
    assert_eq!(
        lines(&plan),
        [
            format!("ip netns exec {netns} sysctl -qw net/ipv4/ip_forward=1"),
            format!("ip -n {netns} link set dev {qr} mtu 1450 address {}", mac(1)),
            format!(
                "ip -n {netns} route replace 0.0.0.0/0 via 203.0.113.254 dev {} proto static",
                names::external_device(QG_PORT)
            ),
        ]
    );
}

#[test]
fn a_changed_rule_is_noticed_by_its_tag() {
    let (mut kernel, desired) = converged(&cloud::legacy_host());
    let table = ns(&mut kernel, &router_ns()).nft.get_mut(&NftFamily::Ip).unwrap();
    table.chains.get_mut("nat_postrouting").unwrap().rules.pop();
    let plan = plan(&kernel, &desired);
    assert!(matches!(plan.switch.as_slice(), [Op::ReplaceNft { .. }]), "{plan}");
    assert!(plan.to_string().contains(&format!("delete table ip {TABLE_NAME}")));
}

#[test]
fn advertisements_are_flooded_again_when_few_copies_are_left() {
    let (mut kernel, _) = converged(&cloud::with_copies(cloud::ha_host(), 8));
    let fewer = cloud::network_host(&cloud::with_copies(cloud::ha_host(), 7)).kernel;
    let plan = plan(&kernel, &fewer);
    let ops = lines(&plan);
    let is_table = |op: &Op| matches!(op, Op::DeleteNft { family: NftFamily::Netdev, .. });
    assert!(plan.switch.iter().any(is_table), "it does not wait for removals: {plan}");
    assert_eq!(ops.iter().filter(|op| op.contains("fdb del")).count(), 7, "{ops:?}");
    cloud::converge(&mut kernel, &fewer);
}

#[test]
fn a_tunnel_that_is_made_anew_is_forwarded_to_again() {
    let (mut kernel, desired) = converged(&cloud::with_copies(cloud::ha_host(), 8));
    let delete = Op::DeleteLink { netns: Netns::Host, name: "vxlan-102".to_owned() };
    kernel.apply(&[delete]).remove(0).unwrap();
    let ops = lines(&plan(&kernel, &desired));
    let of = |text: &str| ops.iter().position(|op| op.contains(text)).unwrap_or_else(|| panic!("{text}: {ops:?}"));
    assert!(of("ip link add name vxlan-102") < of("table netdev evergate"));
    cloud::converge(&mut kernel, &desired);

    // A newer kernel's chains stay for the next device of the name, which somebody else has made already: what is
    // forwarded goes to the one that is gone.
    ns(&mut kernel, &Netns::Host)
        .nft
        .values_mut()
        .flat_map(|table| table.chains.values_mut())
        .flat_map(|chain| &mut chain.rules)
        .for_each(|rule| rule.statements.retain(|statement| !matches!(statement, NftStatement::Forward { .. })));
    let plan = plan(&kernel, &desired);
    assert!(matches!(plan.switch.as_slice(), [Op::DeleteNft { .. }, Op::ReplaceNft { .. }]), "{plan}");
    cloud::converge(&mut kernel, &desired);

    // And where another device was given its index: it is not for us to know which.
    let to = |kernel: &mut FakeKernel, link: &str| {
        let table = ns(kernel, &Netns::Host).nft.get_mut(&NftFamily::Netdev).unwrap();
        let rule = &mut table.chains.get_mut("to_vxlan_102").unwrap().rules[0];
        rule.statements[1] = NftStatement::Forward { link: link.to_owned() };
    };
    to(&mut kernel, "vxlan-102");
    assert!(diff(&desired, &kernel.observe(&desired)).0.is_empty());
    to(&mut kernel, "vxlan-101");
    assert_eq!(diff(&desired, &kernel.observe(&desired)).0.ops().count(), 2);
}

#[test]
fn advertisements_are_flooded_while_their_table_is_refused() {
    let (mut kernel, _) = converged(&cloud::with_copies(cloud::ha_host(), 8));
    let more = cloud::network_host(&cloud::with_copies(cloud::ha_host(), 9)).kernel;
    let is_table = |op: &Op| matches!(op, Op::ReplaceNft { netns: Netns::Host, .. });
    for _ in 0..2 {
        kernel.fail_next("no such expression", is_table);
        let plan = plan(&kernel, &more);
        assert_eq!(kernel.apply(&plan.into_ops()).iter().filter(|result| result.is_err()).count(), 1);
        // The former table would lead the ninth copy's to a stranger.
        assert!(ns(&mut kernel, &Netns::Host).nft.is_empty());
    }
    cloud::converge(&mut kernel, &more);
}

#[test]
fn a_copy_whose_device_cannot_be_made_keeps_none_from_its_table() {
    let (mut kernel, _) = converged(&cloud::with_copies(cloud::ha_host(), 7));
    let desired = cloud::network_host(&cloud::with_copies(cloud::ha_host(), 9)).kernel;
    let last = "tap48000000-00";
    kernel.fail_next("no memory", move |op| matches!(op, Op::AddLink { name, .. } if name == last));
    let ops = plan(&kernel, &desired).into_ops();
    let results = kernel.apply(&ops);
    let failed = |op: &Op| matches!(op, Op::ReplaceNft { netns: Netns::Host, .. });
    let table = ops.iter().zip(&results).find(|(op, _)| failed(op)).unwrap();
    assert_eq!(table.1.as_ref().unwrap_err().to_string(), format!("link {last} does not exist"));
    let NftHook::Ingress { devices } =
        &ns(&mut kernel, &Netns::Host).nft[&NftFamily::Netdev].chains["to_vxlan_102"].hook
    else {
        panic!("it is no chain of devices");
    };
    assert!(devices.len() == 8 && !devices.contains(last), "{devices:?}");
    // It is tried again.
    assert!(plan(&kernel, &desired).ops().any(failed));
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn the_table_of_a_build_that_did_not_forward_is_replaced() {
    let (mut kernel, desired) = converged(&cloud::with_copies(cloud::ha_host(), 8));
    let table = ns(&mut kernel, &Netns::Host).nft.get_mut(&NftFamily::Netdev).unwrap();
    let incoming = table.chains.remove("from_vxlan_102").unwrap();
    table.chains = BTreeMap::from([("vxlan-102".to_owned(), incoming)]);
    assert_eq!(plan(&kernel, &desired).ops().count(), 2);
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn frames_of_a_device_that_is_not_ours_are_left_alone_and_those_of_others_led_on() {
    let (mut kernel, mut desired) = converged(&cloud::with_copies(cloud::ha_host(), 8));
    let copy = |last, tap: String| CopyPort { mac: mac(last), tap };
    let copies = BTreeMap::from([(7, copy(3, names::tap(HA_PORT))), (8, copy(0x41, "tap41000000-00".to_owned()))]);
    let both = ["vxlan-101", "vxlan-102"].map(|device| (device.to_owned(), copies.clone()));
    let rule = |device: &str| NftRule {
        statements: vec![NftStatement::OutLink { name: device.to_owned(), negated: false }, NftStatement::Drop],
    };
    let chain = NftChain {
        kind: NftChainKind::Filter,
        hook: NftHook::Forward,
        priority: 0,
        drop_by_default: false,
        rules: vec![rule("vxlan-101"), rule("vxlan-102")],
    };
    let chains = BTreeMap::from([("questions".to_owned(), chain)]);
    let bridge = NftTable { family: NftFamily::Bridge, maps: BTreeMap::new(), chains };
    let tables = &mut desired.netns.get_mut(&Netns::Host).unwrap().nft;
    tables.extend([dispatch_table(&both.into()), bridge].map(|table| (table.family, table)));
    cloud::converge(&mut kernel, &desired);
    // Somebody has made it anew.
    ns(&mut kernel, &Netns::Host).links.get_mut("vxlan-102").unwrap().alias = None;
    let plan = diff(&desired, &kernel.observe(&desired)).0;
    assert_eq!(plan.ops().count(), 3, "{plan}");
    assert!(kernel.apply(&plan.into_ops()).iter().all(Result::is_ok));
    let tables = &ns(&mut kernel, &Netns::Host).nft;
    let names = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(names(tables[&NftFamily::Netdev].chains.keys().collect()), ["from_vxlan_101", "to_vxlan_101"]);
    assert_eq!(names(tables[&NftFamily::Netdev].maps.keys().collect()), ["copies_vxlan_101"]);
    let left = &tables[&NftFamily::Bridge].chains["questions"].rules;
    assert_eq!(left.iter().map(NftRule::tag).collect::<Vec<_>>(), [rule("vxlan-101").tag()]);
    assert!(diff(&desired, &kernel.observe(&desired)).0.is_empty());
    // Where nothing is left, no table is.
    ns(&mut kernel, &Netns::Host).links.get_mut("vxlan-101").unwrap().alias = None;
    let plan = diff(&desired, &kernel.observe(&desired)).0;
    assert!(kernel.apply(&plan.into_ops()).iter().all(Result::is_ok));
    assert!(ns(&mut kernel, &Netns::Host).nft.is_empty());
}

#[test]
fn a_link_of_another_kind_is_made_anew_with_all_that_was_on_it() {
    let (mut kernel, _) = converged(&cloud::legacy_host());
    // The tunnel address of the host changed: a VXLAN device cannot be told so.
    let settings = HostSettings { local_ip: Some(cloud::ip("192.0.2.99")), ..cloud::settings(NETWORK_1) };
    let desired = compile(&cloud::legacy_host(), &settings, &cloud::view(&[])).kernel;
    let first = plan(&kernel, &desired);
    assert!(matches!(&first.build[0], Op::DeleteLink { name, .. } if name == "vxlan-101"), "{first}");
    let fdb = first.ops().filter(|op| matches!(op, Op::SetFdb { .. })).count();
    assert_eq!(fdb, desired.netns[&Netns::Host].fdb.len(), "all forwarding entries went with the device");
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn half_a_pair_of_devices_is_made_whole() {
    let (mut kernel, desired) = converged(&cloud::legacy_host());
    let tap = names::tap(QR_PORT);
    let link = ns(&mut kernel, &Netns::Host).links.get_mut(&tap).unwrap();
    link.kind = LinkKind::Veth { peer: None };
    ns(&mut kernel, &router_ns()).links.remove(&names::internal_device(QR_PORT));
    ns(&mut kernel, &router_ns()).addresses.retain(|a| a.link != names::internal_device(QR_PORT));
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn a_namespace_that_vanished_is_built_again() {
    let (mut kernel, desired) = converged(&cloud::with_floating_ip(cloud::ha_host()));
    kernel.apply(&[Op::DeleteNetns { name: names::qrouter_namespace(ROUTER) }]);
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn a_leftover_namespace_of_ours_goes_and_a_foreign_one_stays() {
    let (mut kernel, desired) = converged(&cloud::legacy_host());
    let leftover = names::qrouter_namespace(RouterId::from_u128(77));
    kernel.apply(&[Op::AddNetns { name: leftover.clone(), alias: "evergate: router 77".to_owned() }]);
    let foreign = Netns::Named("qrouter-of-somebody-else".to_owned());
    kernel.state_mut().netns.insert(foreign.clone(), NetnsState::default());
    let plan = plan(&kernel, &desired);
    assert_eq!(lines(&plan), [format!("ip netns delete {leftover}")]);
    cloud::converge(&mut kernel, &desired);
    assert!(kernel.state().netns.contains_key(&foreign));
}

#[test]
fn foreign_links_addresses_and_routes_of_the_host_are_not_touched() {
    let (mut kernel, desired) = converged(&cloud::legacy_host());
    kernel.add_foreign_link("eth0");
    let address = Address { link: "eth0".to_owned(), net: "192.0.2.21/24".parse().unwrap() };
    let route = Route {
        table: TABLE_MAIN,
        destination: "0.0.0.0/0".parse().unwrap(),
        via: Some(cloud::ip("192.0.2.1")),
        link: Some("eth0".to_owned()),
    };
    let host = ns(&mut kernel, &Netns::Host);
    host.addresses.insert(address);
    host.routes.insert(route);
    host.rules.insert(evergate_dataplane::state::Rule { priority: 100, from: None, to: None, iif: None, table: 7 });
    let plan = plan(&kernel, &desired);
    assert!(plan.is_empty(), "{plan}");
}

#[test]
fn what_the_keeper_added_is_not_drift() {
    let config = cloud::with_floating_ip(cloud::ha_host());
    let (mut kernel, desired) = converged(&config);
    for item in &cloud::network_host(&config).prepared[&ROUTER].items {
        assert_eq!(kernel.apply(std::slice::from_ref(&item.add)), [Ok(())], "{}", item.key);
    }
    let plan = plan(&kernel, &desired);
    assert!(plan.is_empty(), "{plan}");
}

#[test]
fn a_forwarding_entry_that_moved_by_the_keeper_is_not_drift_either() {
    let (mut kernel, desired) = converged(&cloud::ha_host());
    let host = ns(&mut kernel, &Netns::Host);
    let entry = |table| FdbEntry { link: "vxlan-101".to_owned(), mac: mac(1), table };
    host.fdb.insert(entry(FdbTable::Bridge));
    host.fdb.insert(entry(FdbTable::Vxlan { dst: cloud::NETWORK_2 }));
    let plan = plan(&kernel, &desired);
    assert!(plan.is_empty(), "{plan}");
}

#[test]
fn a_port_that_moves_to_another_host_takes_one_replacement_per_table() {
    let (kernel, _) = converged(&cloud::legacy_host());
    let mut config = cloud::legacy_host();
    let ports = &mut config.networks.get_mut(&PROJECT_NET).unwrap().ports;
    ports.get_mut(&INSTANCE_PORT).unwrap().location = evergate_model::host::Location::Remote { vtep: cloud::NETWORK_2 };
    let plan = plan(&kernel, &cloud::network_host(&config).kernel);
    assert_eq!(
        lines(&plan),
        [format!("bridge fdb replace {} dev vxlan-101 dst {} self permanent", mac(4), cloud::NETWORK_2)]
    );
}

#[test]
fn a_peer_that_left_is_taken_out_of_the_flood_list() {
    let (kernel, _) = converged(&cloud::ha_host());
    let mut config = cloud::ha_host();
    config.networks.get_mut(&PROJECT_NET).unwrap().peers.remove(&COMPUTE);
    let plan = plan(&kernel, &cloud::network_host(&config).kernel);
    assert_eq!(lines(&plan), [format!("bridge fdb delete {} dev vxlan-101 dst {COMPUTE} self permanent", Mac::ZERO)]);
}

#[test]
fn the_other_addresses_of_a_subnet_survive_its_primary() {
    let mut config = cloud::legacy_host();
    let addresses = |config: &mut HostConfig, list: [&str; 2]| {
        let interface = config.routers.get_mut(&ROUTER).unwrap().interfaces.get_mut(&QR_PORT).unwrap();
        interface.addresses = list.iter().map(|a| a.parse().unwrap()).collect();
    };
    addresses(&mut config, ["10.0.0.1/24", "10.0.0.2/24"]);
    let (mut kernel, _) = converged(&config);
    addresses(&mut config, ["10.0.0.2/24", "10.0.0.3/24"]);
    let desired = cloud::network_host(&config).kernel;
    cloud::converge(&mut kernel, &desired);

    // Also in a namespace that does not promote them.
    let mut desired = desired;
    let state = desired.netns.get_mut(&router_ns()).unwrap();
    state.sysctls.remove("ipv4/conf/all/promote_secondaries");
    state.addresses.retain(|a| a.net != "10.0.0.2/24".parse().unwrap());
    ns(&mut kernel, &router_ns()).sysctls.remove("ipv4/conf/all/promote_secondaries");
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn an_instances_tap_is_unplugged_when_its_port_is_gone() {
    let mut kernel = cloud::kernel(&[INSTANCE_PORT]);
    let view = cloud::view(&[INSTANCE_PORT]);
    let compile = |config: &HostConfig| compile(config, &cloud::settings(COMPUTE), &view).kernel;
    let mut config = cloud::compute_host();
    cloud::converge(&mut kernel, &compile(&config));
    config.networks.get_mut(&PROJECT_NET).unwrap().ports.remove(&INSTANCE_PORT);
    let desired = compile(&config);
    let tap = names::tap(INSTANCE_PORT);
    assert_eq!(lines(&plan(&kernel, &desired)), [format!("ip link set dev {tap} nomaster")]);
    cloud::converge(&mut kernel, &desired);
    assert!(kernel.state().netns[&Netns::Host].links.contains_key(&tap), "it is the hypervisor's to remove");
}

#[test]
fn a_tap_that_vanished_since_it_was_seen_is_waited_for() {
    let kernel = cloud::kernel(&[]);
    let desired = compile(&cloud::compute_host(), &cloud::settings(COMPUTE), &cloud::view(&[INSTANCE_PORT])).kernel;
    let tap = names::tap(INSTANCE_PORT);
    assert!(lines(&plan(&kernel, &desired)).iter().all(|line| !line.contains(&tap)));
}

#[test]
fn a_leftover_of_ours_by_the_name_of_an_instances_tap_goes() {
    // The port belonged to a legacy router here, and its network stayed.
    let (mut kernel, _) = converged(&cloud::legacy_host());
    let mut config = cloud::legacy_host();
    config.routers.clear();
    let view = cloud::view(&[QR_PORT, QG_PORT]);
    let desired = compile(&config, &cloud::settings(NETWORK_1), &view).kernel;
    let first = plan(&kernel, &desired);
    assert!(first.remove.iter().any(|op| matches!(op, Op::DeleteLink { name, .. } if *name == names::tap(QR_PORT))));
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn an_uplink_in_somebody_elses_bridge_is_left_there_and_explained() {
    let mut kernel = cloud::kernel(&[]);
    kernel.add_foreign_link("br0");
    ns(&mut kernel, &Netns::Host).links.get_mut("br-ex").unwrap().master = Some("br0".to_owned());
    // To this host br-ex is an ordinary interface.
    let view = evergate_dataplane::View { bridges: Default::default(), ..cloud::view(&[]) };
    let desired = compile(&cloud::legacy_host(), &cloud::settings(NETWORK_1), &view).kernel;
    let (plan, refusals) = diff(&desired, &kernel.observe(&desired));
    assert_eq!(refusals.len(), 1);
    assert!(refusals[0].to_string().contains("'br0'"), "{}", refusals[0]);
    assert!(plan.ops().all(|op| !matches!(op, Op::SetLink { name, .. } if name == "br-ex")));
}

#[test]
fn a_router_that_becomes_highly_available_keeps_its_devices() {
    let (mut kernel, _) = converged(&cloud::legacy_host());
    let desired: Desired = cloud::network_host(&cloud::ha_host());
    let conversion = plan(&kernel, &desired.kernel);
    let made: Vec<&String> =
        conversion.ops().filter_map(|op| if let Op::AddLink { name, .. } = op { Some(name) } else { None }).collect();
    assert_eq!(made, [&names::bridge(cloud::HA_NET), "vxlan-102", &names::tap(cloud::HA_PORT)]);
    // The addresses are the keeper's from now on, and it decides whether they stay.
    assert!(conversion.ops().all(|op| !matches!(op, Op::DeleteAddress { .. })), "{conversion}");
    cloud::converge(&mut kernel, &desired.kernel);
}

#[test]
fn a_failed_op_is_tried_again_by_the_next_plan() {
    let mut kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(&cloud::legacy_host()).kernel;
    kernel
        .fail_next("no memory", |op| matches!(op, Op::AddLink { link: Link { kind: LinkKind::Vxlan { .. }, .. }, .. }));
    kernel.apply(&plan(&kernel, &desired).into_ops());
    assert!(!plan(&kernel, &desired).is_empty());
    cloud::converge(&mut kernel, &desired);
}

#[test]
fn an_entry_that_points_at_a_path_is_removed_before_it_names_a_host() {
    let (mut kernel, mut desired) = converged(&cloud::legacy_host());
    let host = desired.netns.get_mut(&Netns::Host).unwrap();
    let entry =
        host.fdb.iter().find(|e| matches!(e.table, FdbTable::Vxlan { .. }) && e.mac != Mac::ZERO).unwrap().clone();
    let path = FdbEntry { table: FdbTable::Nexthop { group: 9 }, ..entry.clone() };
    let fdb = &mut ns(&mut kernel, &Netns::Host).fdb;
    fdb.remove(&entry);
    fdb.insert(path.clone());
    let plan = plan(&kernel, &desired);
    let netns = Netns::Host;
    let expected = [Op::DeleteFdb { netns: netns.clone(), entry: path }, Op::SetFdb { netns, entry }];
    assert_eq!(plan.ops().cloned().collect::<Vec<_>>(), expected);
}
