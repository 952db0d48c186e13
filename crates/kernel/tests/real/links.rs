use evergate_dataplane::Op;
use evergate_dataplane::op::LinkChange;
use evergate_dataplane::state::{BridgePort, KernelState, Link, LinkKind, Netns, NetnsState};

use crate::sandbox::*;

const HOST: Netns = Netns::Host;

fn set_link(name: &str, change: LinkChange) -> Op {
    Op::SetLink { netns: HOST, name: name.to_owned(), change }
}

fn delete_link(name: &str) -> Op {
    Op::DeleteLink { netns: HOST, name: name.to_owned() }
}

#[test]
fn a_bridge_with_a_vxlan_port_is_what_ip_shows_and_what_is_observed() {
    let mut kernel = host();
    let port = as_port(vxlan(7), "brq1");
    apply(&mut kernel, &[bridge(&HOST, "brq1"), add_link(&HOST, "vxlan-7", port.clone())]);
    let shown = run("ip -d link show vxlan-7");
    for word in [
        "vxlan id 7 local 192.0.2.1",
        "nolearning",
        "dstport 4789",
        "mtu 1450",
        "master brq1",
        "learning off",
        "neigh_suppress on",
        "UP",
    ] {
        assert!(shown.contains(word), "'{word}' is not in {shown}");
    }
    let shown = run("ip -d link show brq1");
    for word in ["forward_delay 0", "stp_state 0", "mcast_snooping 0", "alias evergate: test", "UP"] {
        assert!(shown.contains(word), "'{word}' is not in {shown}");
    }
    let seen = observe(&mut kernel, &HOST);
    assert_eq!(seen.links["vxlan-7"], port);
    assert_eq!(seen.links["brq1"].kind, LinkKind::Bridge);
}

#[test]
fn a_veth_is_made_across_namespaces_with_both_ends_settled() {
    let mut kernel = host();
    let netns = named("ns");
    let mut op = veth("tap1", &netns, "qr-1");
    if let Op::AddLink { link, .. } = &mut op {
        *link = Link {
            port: Some(BridgePort { learning: true, neigh_suppress: false, isolated: true }),
            ..as_port(link.clone(), "brq1")
        };
    }
    apply(&mut kernel, &[add_netns("ns"), bridge(&HOST, "brq1"), op.clone()]);
    let Op::AddLink { link, peer_link: Some(peer), .. } = op else { unreachable!("made above") };
    let state = kernel.observe(&KernelState::default()).unwrap();
    assert_eq!(state.netns[&HOST].links["tap1"], link);
    assert_eq!(state.netns[&netns].links["qr-1"], *peer);
    assert!(run("ip -n ns link show qr-1").contains("alias evergate: test"));
}

#[test]
fn veths_within_a_namespace_and_between_two_are_paired_rightly() {
    let mut kernel = host();
    let within = |netns: &Netns| Op::AddLink {
        netns: netns.clone(),
        name: "a".to_owned(),
        link: link(LinkKind::Veth { peer: Some((netns.clone(), "b".to_owned())) }),
        peer_link: Some(Box::new(link(LinkKind::Veth { peer: Some((netns.clone(), "a".to_owned())) }))),
    };
    let between = Op::AddLink {
        netns: named("n1"),
        name: "x".to_owned(),
        link: link(LinkKind::Veth { peer: Some((named("n2"), "x".to_owned())) }),
        peer_link: Some(Box::new(link(LinkKind::Veth { peer: Some((named("n1"), "x".to_owned())) }))),
    };
    apply(
        &mut kernel,
        &[add_netns("n1"), add_netns("n2"), within(&HOST), within(&named("n1")), within(&named("n2")), between],
    );
    // Indexes that mirror those of another pair, in other namespaces: only one may be taken for the other end.
    run("ip netns add elsewhere; ip link add p index 50 netns n1 type veth peer name q index 60 netns elsewhere; \
         ip link add r index 60 netns n2 type veth peer name s index 50");
    for netns in ["n1", "n2"] {
        run(&format!("for l in p r; do ip -n {netns} link set $l alias 'evergate: test' || true; done 2>/dev/null"));
    }
    let state = kernel.observe(&KernelState::default()).unwrap();
    let peer = |netns: &Netns, name: &str| {
        let kind = &state.netns[netns].links[name].kind;
        let LinkKind::Veth { peer } = kind else { panic!("{name} is {kind:?}") };
        peer.clone()
    };
    for netns in [HOST, named("n1"), named("n2")] {
        assert_eq!(peer(&netns, "a"), Some((netns.clone(), "b".to_owned())));
        assert_eq!(peer(&netns, "b"), Some((netns.clone(), "a".to_owned())));
    }
    assert_eq!(peer(&named("n1"), "x"), Some((named("n2"), "x".to_owned())));
    assert_eq!(peer(&named("n2"), "x"), Some((named("n1"), "x".to_owned())));
    assert_eq!(peer(&named("n1"), "p"), None);
    assert_eq!(peer(&named("n2"), "r"), Some((HOST, "s".to_owned())));
}

#[test]
fn the_unmarked_end_of_our_veth_is_ours_too() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), veth("tap1", &named("ns"), "qr-1")]);
    // What is left when control is killed between the two namespaces' messages.
    run("ip -n ns link set qr-1 alias ''");
    let seen = observe(&mut kernel, &named("ns"));
    assert!(seen.links["qr-1"].is_owned());
    assert!(matches!(seen.links["qr-1"].kind, LinkKind::Veth { peer: Some(_) }));
}

#[test]
fn adding_the_same_link_again_sets_what_differs() {
    let mut kernel = host();
    let port = as_port(vxlan(7), "brq1");
    let ops = [
        add_netns("ns"),
        bridge(&HOST, "brq1"),
        add_link(&HOST, "vxlan-7", port.clone()),
        veth("tap1", &named("ns"), "qr-1"),
    ];
    apply(&mut kernel, &ops);
    let before = kernel.observe(&KernelState::default()).unwrap();
    apply(&mut kernel, &ops);
    assert_eq!(kernel.observe(&KernelState::default()).unwrap(), before);
    run("ip link set vxlan-7 down mtu 1400; bridge link set dev vxlan-7 learning on; ip link set tap1 mtu 1300; \
         ip -n ns link set qr-1 down address 02:00:00:00:00:01");
    apply(&mut kernel, &ops);
    assert_eq!(kernel.observe(&KernelState::default()).unwrap(), before);
}

#[test]
fn what_was_added_in_the_same_breath_can_be_used_even_if_the_link_was_there() {
    let mut kernel = host();
    let ops = [bridge(&HOST, "brq1"), add_address(&HOST, "brq1", "10.0.0.1/24")];
    apply(&mut kernel, &ops[..1]);
    apply(&mut kernel, &ops);
    assert!(observe(&mut kernel, &HOST).addresses.contains(&address("brq1", "10.0.0.1/24")));
}

#[test]
fn a_foreign_link_of_the_same_name_is_left_alone() {
    let mut kernel = host();
    run("ip link add brq1 type bridge; ip link add up0 type veth peer name up1; ip link set up1 master brq1");
    let error = refused(&mut kernel, bridge(&HOST, "brq1")).full();
    assert_eq!(error, "failed to add bridge brq1 in host: a link of this name exists that Evergate did not make");
    let shown = run("ip link show brq1");
    assert!(!shown.contains("alias") && shown.contains("DOWN"), "{shown}");
    let wanted = NetnsState { links: [("brq1".to_owned(), link(LinkKind::Bridge))].into(), ..NetnsState::default() };
    let state = kernel.observe(&KernelState { netns: [(HOST, wanted)].into() }).unwrap();
    let links = &state.netns[&HOST].links;
    assert_eq!(links.keys().collect::<Vec<_>>(), ["brq1"]);
    assert_eq!((&links["brq1"].kind, links["brq1"].is_owned()), (&LinkKind::Other, false));
}

#[test]
fn our_link_of_another_kind_or_to_elsewhere_is_not_mistaken() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("n1"), add_netns("n2"), bridge(&HOST, "x"), veth("tap1", &named("n1"), "qr-1")]);
    let expected = "a link of this name exists that is not the same";
    assert!(refused(&mut kernel, add_link(&HOST, "x", vxlan(7))).full().ends_with(expected));
    assert!(refused(&mut kernel, veth("tap1", &named("n2"), "qr-1")).full().ends_with(expected));
    let error = refused(&mut kernel, veth("tap2", &named("n1"), "qr-1")).full();
    assert_eq!(error, "failed to add veth tap2 in host: its other end's name, qr-1, is taken in n1");
}

#[test]
fn a_foreign_port_of_our_bridge_is_reported_and_can_be_plugged() {
    let mut kernel = host();
    run("ip link add tapi type veth peer name inst; ip link add alone type veth peer name alone2");
    let plug = LinkChange { up: Some(true), master: Some(Some("brq1".to_owned())), ..LinkChange::default() };
    apply(&mut kernel, &[bridge(&HOST, "brq1"), set_link("tapi", plug)]);
    let seen = observe(&mut kernel, &HOST);
    assert_eq!(seen.links.keys().collect::<Vec<_>>(), ["brq1", "tapi"]);
    let tap = &seen.links["tapi"];
    assert_eq!((&tap.kind, tap.up, tap.master.as_deref()), (&LinkKind::Other, true, Some("brq1")));
    assert_eq!(tap.port, Some(BridgePort { learning: true, neigh_suppress: false, isolated: false }));
    apply(&mut kernel, &[set_link("tapi", LinkChange { master: Some(None), ..LinkChange::default() })]);
    assert!(!observe(&mut kernel, &HOST).links.contains_key("tapi"));
}

#[test]
fn a_link_changes_in_every_respect() {
    let mut kernel = host();
    apply(
        &mut kernel,
        &[bridge(&HOST, "brq1"), bridge(&HOST, "brq2"), add_link(&HOST, "v", as_port(vxlan(7), "brq1"))],
    );
    let port = BridgePort { learning: true, neigh_suppress: false, isolated: true };
    let change = LinkChange {
        up: Some(false),
        mtu: Some(1300),
        mac: Some(mac(5)),
        master: Some(Some("brq2".to_owned())),
        alias: Some("evergate: changed".to_owned()),
        port: Some(port),
    };
    apply(&mut kernel, &[set_link("v", change)]);
    let seen = observe(&mut kernel, &HOST).links["v"].clone();
    let expected = Link {
        up: false,
        mtu: Some(1300),
        mac: Some(mac(5)),
        master: Some("brq2".to_owned()),
        alias: Some("evergate: changed".to_owned()),
        port: Some(port),
        ..vxlan(7)
    };
    assert_eq!(seen, expected);
    apply(&mut kernel, &[set_link("v", LinkChange::default())]);
    assert_eq!(observe(&mut kernel, &HOST).links["v"], expected);
}

#[test]
fn isolated_ports_hear_others_but_not_each_other() {
    let mut kernel = host();
    apply(&mut kernel, &[bridge(&HOST, "brq1")]);
    for (n, isolated) in [(1, true), (2, true), (3, false)] {
        let (netns, tap) = (format!("n{n}"), format!("tap{n}"));
        let mut op = veth(&tap, &named(&netns), "ha-1");
        if let Op::AddLink { link, peer_link: Some(peer), .. } = &mut op {
            let port = Some(BridgePort { learning: true, neigh_suppress: false, isolated });
            *link = Link { port, mac: Some(mac(10 + n)), ..as_port(link.clone(), "brq1") };
            peer.mac = Some(mac(n));
        }
        let address = add_address(&named(&netns), "ha-1", &format!("169.254.192.{n}/18"));
        apply(&mut kernel, &[add_netns(&netns), op, address]);
    }
    let hears = |from: u8, to: u8| {
        let ping = format!("ip netns exec n{from} ping -c1 -W2 169.254.192.{to} >/dev/null && echo yes || true");
        run(&ping) == "yes\n"
    };
    assert!(hears(1, 3) && hears(2, 3) && hears(3, 1), "what is not isolated is as ever");
    assert!(!hears(1, 2));
    let to_all = LinkChange {
        port: Some(BridgePort { learning: true, neigh_suppress: false, isolated: false }),
        ..LinkChange::default()
    };
    apply(&mut kernel, &[set_link("tap2", to_all)]);
    assert!(hears(1, 2));
}

#[test]
fn deleting_a_veth_takes_both_ends_and_deleting_again_succeeds() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), veth("tap1", &named("ns"), "qr-1")]);
    apply(&mut kernel, &[delete_link("tap1"), delete_link("tap1")]);
    assert!(!observe(&mut kernel, &named("ns")).links.contains_key("qr-1"));
    // In one list with making it anew: the address belongs on the new one.
    apply(
        &mut kernel,
        &[
            veth("tap1", &named("ns"), "qr-1"),
            add_address(&named("ns"), "qr-1", "10.0.0.1/24"),
            delete_link("tap1"),
            veth("tap1", &named("ns"), "qr-1"),
            add_address(&named("ns"), "qr-1", "10.0.1.1/24"),
        ],
    );
    let seen = observe(&mut kernel, &named("ns"));
    assert_eq!(seen.addresses, [address("qr-1", "10.0.1.1/24")].into());
}

#[test]
fn impossible_links_are_refused_in_words() {
    let mut kernel = host();
    let cases = [
        (add_link(&HOST, "a-name-too-long!", link(LinkKind::Bridge)), "cannot be the name of a link"),
        (add_link(&HOST, "x", link(LinkKind::Other)), "somebody else's to make"),
        (add_link(&HOST, "x", as_port(vxlan(7), "nowhere")), "there is no link nowhere"),
        (add_link(&HOST, "x", link(LinkKind::Veth { peer: None })), "the veth's other end is not described"),
        (veth("tap1", &named("nowhere"), "qr-1"), "there is no network namespace nowhere"),
        (set_link("x", LinkChange { up: Some(true), ..LinkChange::default() }), "No such device"),
        (add_link(&HOST, "x", Link { alias: Some("x".repeat(256)), ..link(LinkKind::Bridge) }), "at most 255 bytes"),
    ];
    for (op, expected) in cases {
        let error = refused(&mut kernel, op).full();
        assert!(error.contains(expected), "{error}");
    }
    assert!(observe(&mut kernel, &HOST).links.is_empty());
}

#[test]
fn one_failure_in_a_batch_leaves_the_others_alone() {
    let mut kernel = host();
    run("ip link add name b type bridge");
    let ops = [bridge(&HOST, "a"), bridge(&HOST, "b"), bridge(&HOST, "c"), add_address(&HOST, "c", "10.0.0.1/24")];
    let results = kernel.apply(&ops);
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);
    let seen = observe(&mut kernel, &HOST);
    assert_eq!(seen.links.keys().collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn hundreds_of_links_fit_one_call() {
    let mut kernel = host();
    let ops: Vec<Op> = (0..300).map(|i| bridge(&HOST, &format!("br{i}"))).collect();
    apply(&mut kernel, &ops);
    assert_eq!(observe(&mut kernel, &HOST).links.len(), 300);
}

#[test]
fn links_are_deleted_together_and_what_cannot_be_deleted_stays() {
    let mut kernel = host();
    let mut ops: Vec<Op> = (0..50).map(|i| bridge(&HOST, &format!("br{i}"))).collect();
    apply(&mut kernel, &ops);
    ops = (0..50).map(|i| delete_link(&format!("br{i}"))).collect();
    ops.insert(7, delete_link("never"));
    apply(&mut kernel, &ops);
    assert!(observe(&mut kernel, &HOST).links.is_empty());
    // The loopback device is in nobody's power.
    apply(&mut kernel, &[bridge(&HOST, "a"), bridge(&HOST, "b")]);
    let results = kernel.apply(&[delete_link("a"), delete_link("lo"), delete_link("b")]);
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert!(results[1].as_ref().unwrap_err().full().starts_with("failed to delete link lo in host: "));
    assert!(observe(&mut kernel, &HOST).links.is_empty());
    assert!(run("ip -d link show lo").contains("group default"));
}
