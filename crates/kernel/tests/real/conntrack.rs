//! Flows seen in one router's namespace go on in another's.
//!
//! `client` and `server` are joined by two routers, `a` and `b`, with the same addresses and Ethernet
//! addresses, of which one is up. `conntrack` (the tool) says what the kernel holds.

use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use evergate_kernel::conntrack::{EEXIST, ENOENT, FlowEvent, FlowOp, FlowTable, FlowWatch};
use evergate_kernel::rt::NetnsFd;
use evergate_model::Flow;
use evergate_model::flow::{L4, protocol, status};

use crate::sandbox::*;

fn netns_fd(name: &str) -> NetnsFd {
    NetnsFd::open(&Path::new(NETNS_PATH).join(name)).unwrap()
}

fn topology() {
    run(
        "ip link add inside type bridge; ip link set inside up; ip link add outside type bridge; ip link set outside up
         for n in client server a b; do ip netns add $n; ip -n $n link set lo up; done
         ip link add cl type veth peer name eth0 netns client; ip link set cl master inside up
         ip link add sv type veth peer name eth0 netns server; ip link set sv master outside up
         ip -n client address add 10.0.0.9/24 dev eth0; ip -n client address add fd00::9/64 dev eth0 nodad
         ip -n server address add 192.0.2.9/24 dev eth0; ip -n server address add 2001:db8::9/64 dev eth0 nodad
         ip -n client link set eth0 up; ip -n server link set eth0 up; ip -n client route add default via 10.0.0.1
         ip -n client route add default via fd00::1; ip -n server route add fd00::/64 via 2001:db8::1",
    );
    for router in ["a", "b"] {
        run(&format!(
            "r={router}
             ip link add $r-in type veth peer name in address fa:16:3e:00:00:01 netns $r
             ip link add $r-out type veth peer name out address fa:16:3e:00:00:02 netns $r
             ip link set $r-in master inside up; ip link set $r-out master outside up
             ip -n $r address add 10.0.0.1/24 dev in; ip -n $r address add 192.0.2.1/24 dev out
             ip -n $r address add 192.0.2.100/32 dev out; ip -n $r address add fd00::1/64 dev in nodad
             ip -n $r address add 2001:db8::1/64 dev out nodad
             ip netns exec $r sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.netfilter.nf_conntrack_tcp_loose=0 \
                net.netfilter.nf_conntrack_events=1
             ip netns exec $r nft -f - <<'END'
             table ip t {{
               chain pre {{ type nat hook prerouting priority dstnat; ip daddr 192.0.2.100 dnat to 10.0.0.9; }}
               chain post {{ type nat hook postrouting priority srcnat
                 oifname out ip saddr 10.0.0.9 snat to 192.0.2.1 fully-random; }}
             }}
             table ip6 t {{
               chain tracked {{ type filter hook forward priority 0; ct state established accept; }}
             }}
END"
        ));
    }
    run("ip -n a link set in up; ip -n a link set out up");
}

/// Takes `a` away and puts `b` in its place, which lets nothing new pass.
fn switch() {
    run("ip netns exec b nft add chain ip t gate '{ type filter hook forward priority 0; policy accept; }'
         ip netns exec b nft add rule ip t gate ct state new,invalid drop
         ip netns exec b nft add rule ip6 t tracked meta l4proto tcp drop
         ip -n a link set in down; ip -n a link set out down; ip -n b link set in up; ip -n b link set out up");
}

fn hear(watch: &mut FlowWatch) -> Vec<FlowEvent> {
    std::iter::from_fn(|| watch.next_event().unwrap()).collect()
}

fn all_ok(results: Vec<Result<(), i32>>) {
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// What the tool prints of a namespace, without what differs by nature, and the timeouts beside it.
fn tool(netns: &str) -> Vec<(String, i64)> {
    let printed = run(&format!(
        "ip netns exec {netns} conntrack -L -f ipv4 2>/dev/null; ip netns exec {netns} conntrack -L -f ipv6 2>/dev/null"
    ));
    let mut lines: Vec<(String, i64)> = printed
        .lines()
        // What the kernels themselves say to groups.
        .filter(|line| !line.starts_with("icmpv6"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with("use=")).collect();
            let timeout = words[2].parse().unwrap();
            let rest: Vec<&str> = words.iter().enumerate().filter(|(at, _)| *at != 2).map(|(_, word)| *word).collect();
            (rest.join(" "), timeout)
        })
        .collect();
    lines.sort();
    lines
}

fn assert_same(a: &[(String, i64)], b: &[(String, i64)]) {
    let words = |lines: &[(String, i64)]| lines.iter().map(|(line, _)| line.clone()).collect::<Vec<_>>();
    assert_eq!(words(a), words(b));
    for ((line, a), (_, b)) in a.iter().zip(b) {
        assert!((a - b).abs() <= 5, "{line}: {a} and {b} seconds");
    }
}

fn talk(from: &mut TcpStream, to: &mut TcpStream, what: &[u8]) {
    from.write_all(what).unwrap();
    let mut got = vec![0; what.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, what);
}

/// A connection from `from` to a listener at `to`.
fn connect(from: &str, to: &str, address: &str, through: &str) -> (TcpStream, TcpStream) {
    let listener = netns_fd(to).run(|| TcpListener::bind(address).unwrap()).unwrap();
    let near = netns_fd(from).run(|| TcpStream::connect(through).unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}

#[test]
fn connections_go_on_in_the_namespace_that_their_entries_were_put_into() {
    let _kernel = host();
    topology();
    let mut watch = FlowWatch::open(&netns_fd("a")).unwrap();
    let (mut client, mut server) = connect("client", "server", "192.0.2.9:8000", "192.0.2.9:8000");
    let (mut outside, mut inside) = connect("server", "client", "10.0.0.9:9000", "192.0.2.100:9000");
    talk(&mut client, &mut server, b"hello");
    talk(&mut outside, &mut inside, b"floating");
    let (mut six, mut six_server) = connect("client", "server", "[2001:db8::9]:8006", "[2001:db8::9]:8006");
    talk(&mut six, &mut six_server, b"untranslated");
    let udp_server = netns_fd("server").run(|| UdpSocket::bind("192.0.2.9:5000").unwrap()).unwrap();
    let udp_client = netns_fd("client").run(|| UdpSocket::bind("10.0.0.9:5001").unwrap()).unwrap();
    for socket in [&udp_server, &udp_client] {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    udp_client.send_to(b"one", "192.0.2.9:5000").unwrap();
    let mut buffer = [0; 64];
    let (_, seen_from) = udp_server.recv_from(&mut buffer).unwrap();
    assert_eq!(seen_from.ip().to_string(), "192.0.2.1");
    udp_server.send_to(b"two", seen_from).unwrap();
    udp_client.recv(&mut buffer).unwrap();
    let ping = "ip netns exec client ping -i 0.1 -c 600 192.0.2.9";
    run(&format!("{ping} >/run/ping 2>&1 & echo $! >/run/ping.pid"));
    let pings = || run("grep -c 'bytes from' /run/ping || true").trim().parse::<u32>().unwrap();
    wait_for("an echo", || pings() > 0);

    let listed = FlowTable::open(&netns_fd("a")).unwrap().list().unwrap();
    let is_ours = |flow: &Flow| flow.original.src.is_ipv4() || flow.original.protocol == protocol::TCP;
    let flows: Vec<Flow> = listed.into_iter().filter(is_ours).collect();
    assert_eq!(flows.len(), 5, "{flows:#?}");
    let told = hear(&mut watch);
    for flow in &flows {
        let of_it = |event: &&FlowEvent| matches!(event, FlowEvent::Changed(seen) if seen.flow.key() == flow.key());
        let Some(FlowEvent::Changed(last)) = told.iter().rfind(of_it) else { panic!("no word of {flow:?}") };
        assert_eq!((last.flow.reply, last.flow.status), (flow.reply, flow.status));
        let translations = [flow.source_nat(), flow.destination_nat()].into_iter().flatten().count();
        assert_eq!(translations, usize::from(flow.original.src.is_ipv4()), "{flow:?}");
        assert_eq!(flow.has(status::SRC_NAT), flow.source_nat().is_some());
        assert_eq!(flow.has(status::DST_NAT), flow.destination_nat().is_some());
    }
    let ops: Vec<FlowOp> = flows.iter().copied().map(FlowOp::Create).collect();
    let mut table = FlowTable::open(&netns_fd("b")).unwrap();
    all_ok(table.apply(&ops));
    assert_same(&tool("a"), &tool("b"));
    let known = table.list().unwrap();
    for flow in &flows {
        let found = known.iter().find(|found| found.key() == flow.key()).unwrap();
        assert_eq!((found.reply, found.status, found.mark), (flow.reply, flow.status, flow.mark));
        let (tcp, had) = (found.tcp, flow.tcp);
        assert_eq!(tcp.map(|tcp| (tcp.state, tcp.window_scale)), had.map(|tcp| (tcp.state, tcp.window_scale)));
    }
    switch();
    let before = pings();
    // The server and whoever is outside speak first: without an entry they would be answered by a reset.
    talk(&mut server, &mut client, b"pushed");
    talk(&mut client, &mut server, b"answered");
    talk(&mut outside, &mut inside, b"still floating");
    talk(&mut inside, &mut outside, b"and back");
    udp_server.send_to(b"three", seen_from).unwrap();
    udp_client.recv(&mut buffer).unwrap();
    udp_client.send_to(b"four", "192.0.2.9:5000").unwrap();
    assert_eq!(udp_server.recv_from(&mut buffer).unwrap(), (4, seen_from));
    talk(&mut six_server, &mut six, b"pushed");
    talk(&mut six, &mut six_server, b"answered");
    // What a router says of a connection is translated like the connection: nobody listens any more.
    drop(udp_server);
    udp_client.connect("192.0.2.9:5000").unwrap();
    let refused = (0..20).any(|_| {
        let sent = udp_client.send(b"five");
        let heard =
            udp_client.set_read_timeout(Some(Duration::from_secs(1))).and_then(|()| udp_client.recv(&mut buffer));
        [sent, heard].iter().any(|end| end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused))
    });
    assert!(refused, "the error did not find its way back");
    wait_for("echoes through the other router", || pings() > before + 2);
    run("kill $(cat /run/ping.pid)");
}

/// No router of Evergate's has a helper. Where somebody loads one, what it brought about goes on like any connection, and
/// what it does to sequence numbers with it; what it expects next is not told.
#[test]
fn a_connection_that_another_one_led_to_goes_on_and_so_does_that_other_one() {
    let _kernel = host();
    topology();
    run(r#"ip netns exec a nft -f - <<'END'
           table ip helped {
             ct helper ftp { type "ftp" protocol tcp; }
             chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "ftp"; }
           }
END"#);
    let (mut client, mut server) = connect("client", "server", "192.0.2.9:21", "192.0.2.9:21");
    let listener = netns_fd("client").run(|| TcpListener::bind("10.0.0.9:0").unwrap()).unwrap();
    // The helper begins to read after an end of line.
    talk(&mut client, &mut server, b"USER anonymous\r\n");
    // RFC 959: the client says where the server is to connect to.
    let [high, low] = listener.local_addr().unwrap().port().to_be_bytes();
    client.write_all(format!("PORT 10,0,0,9,{high},{low}\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(server.try_clone().unwrap()).read_line(&mut line).unwrap();
    let numbers: Vec<u16> = line.trim()["PORT ".len()..].split(',').map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers[..4], [192, 0, 2, 1], "the helper has put the external address in its place");
    let to = ("192.0.2.1", numbers[4] << 8 | numbers[5]);
    let mut far = netns_fd("server").run(|| TcpStream::connect(to).unwrap()).unwrap();
    let (mut near, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    talk(&mut far, &mut near, b"data");

    let listed = FlowTable::open(&netns_fd("a")).unwrap().list().unwrap();
    let flows: Vec<Flow> = listed.into_iter().filter(|flow| flow.original.protocol == protocol::TCP).collect();
    assert_eq!(flows.len(), 2, "{flows:#?}");
    let adjusted = |flow: &Flow| flow.sequence_adjustment.iter().any(Option::is_some);
    assert!(flows.iter().any(|flow| flow.has(status::EXPECTED) && flow.destination_nat().is_some()), "{flows:#?}");
    assert!(flows.iter().any(|flow| !flow.has(status::EXPECTED) && adjusted(flow)), "{flows:#?}");
    all_ok(FlowTable::open(&netns_fd("b")).unwrap().apply(&flows.into_iter().map(FlowOp::Create).collect::<Vec<_>>()));
    switch();
    talk(&mut far, &mut near, b"more data");
    talk(&mut near, &mut far, b"and back");
    talk(&mut server, &mut client, b"200 Command okay.");
    talk(&mut client, &mut server, b"QUIT");
}

#[test]
fn entries_are_changed_told_of_and_removed() {
    let _kernel = host();
    run("ip netns add a; ip -n a link set lo up
         ip netns exec a nft add table ip t; ip netns exec a nft add chain ip t c '{ type nat hook postrouting priority 100; }'");
    let netns = netns_fd("a");
    let mut watch = FlowWatch::open(&netns).unwrap();
    let mut table = FlowTable::open(&netns).unwrap();
    let tuple = |src: &str, dst: &str, l4| evergate_model::flow::Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: protocol::UDP,
        l4,
    };
    let v4 = tuple("10.0.0.9", "192.0.2.9", L4::Ports { src: 5000, dst: 53 });
    let v6 = tuple("fd00::9", "2001:db8::9", L4::Ports { src: 5000, dst: 53 });
    let flow = |original: evergate_model::flow::Tuple| {
        let flow = Flow::new(original, original.mirror());
        Flow { status: status::CONFIRMED, timeout_s: 100, ..flow }
    };
    let zoned = Flow { zone: 7, mark: 42, ..flow(v4) };
    let all = [flow(v4), flow(v6), zoned];
    assert_eq!(table.count().unwrap(), 0);
    assert!(table.list().unwrap().is_empty() && table.look_up(&all.map(|flow| flow.key())).unwrap().is_empty());
    all_ok(table.apply(&all.map(FlowOp::Create)));
    assert_eq!(table.apply(&[FlowOp::Create(all[0])]), [Err(EEXIST)]);
    assert_eq!(table.count().unwrap(), 3);
    let elsewhere = Flow { zone: 8, ..zoned };
    let found = table.look_up(&[elsewhere.key(), all[1].key(), zoned.key()]).unwrap();
    assert_eq!(
        found.iter().map(|flow| (flow.key(), flow.mark)).collect::<Vec<_>>(),
        [(all[1].key(), 0), (zoned.key(), 42)]
    );
    assert_eq!(tool("a").len(), 3);
    let zoned_line = tool("a").into_iter().find(|(line, _)| line.contains("zone=7")).unwrap();
    assert!(zoned_line.0.contains("mark=42") && zoned_line.0.contains("[UNREPLIED]"), "{zoned_line:?}");
    let later = Flow { status: status::CONFIRMED | status::SEEN_REPLY | status::ASSURED, timeout_s: 500, ..all[1] };
    all_ok(table.apply(&[FlowOp::Update(later), FlowOp::SetTimeout(zoned.key(), 30)]));
    let lines = tool("a");
    let of = |what: &str| lines.iter().find(|(line, _)| line.contains(what)).unwrap();
    assert!(of("fd00::9").0.contains("[ASSURED]") && (496..=500).contains(&of("fd00::9").1), "{lines:?}");
    assert!((26..=30).contains(&of("zone=7").1), "{lines:?}");
    all_ok(table.apply(&all.map(|flow| FlowOp::Delete(flow.key()))));
    assert_eq!(table.apply(&[FlowOp::Delete(all[0].key()), FlowOp::Update(all[0])]), [Err(ENOENT), Err(ENOENT)]);
    assert!(table.list().unwrap().is_empty());
    let gone: Vec<_> = hear(&mut watch).into_iter().filter(|event| matches!(event, FlowEvent::Gone(_))).collect();
    assert_eq!(gone, all.map(|flow| FlowEvent::Gone(flow.key())));
}

#[test]
fn an_entry_in_the_way_is_found_by_the_answer_that_both_would_have() {
    let _kernel = host();
    run("ip netns add a; ip netns exec a nft add table ip t
         ip netns exec a nft add chain ip t c '{ type nat hook postrouting priority 100; }'");
    let mut table = FlowTable::open(&netns_fd("a")).unwrap();
    let flow = |client: &str| {
        let (original, reply) = ports(client, 1000, "192.0.2.9", "203.0.113.1", 30_000);
        Flow { status: status::CONFIRMED, timeout_s: 100, ..Flow::new(original, reply) }
    };
    let (old, new) = (flow("10.0.0.8"), flow("10.0.0.9"));
    all_ok(table.apply(&[FlowOp::Create(old)]));
    assert_eq!(table.apply(&[FlowOp::Create(new)]), [Err(EEXIST)]);
    let holder = evergate_model::FlowKey { zone: 0, original: new.reply };
    all_ok(table.apply(&[FlowOp::Delete(holder), FlowOp::Create(new)]));
    let found = table.list().unwrap();
    assert_eq!(found.iter().map(|flow| (flow.key(), flow.reply)).collect::<Vec<_>>(), [(new.key(), new.reply)]);
}

/// The two tuples of a connection whose source is translated.
fn ports(
    client: &str,
    port: u16,
    server: &str,
    external: &str,
    external_port: u16,
) -> (evergate_model::flow::Tuple, evergate_model::flow::Tuple) {
    let original = evergate_model::flow::Tuple {
        src: client.parse().unwrap(),
        dst: server.parse().unwrap(),
        protocol: protocol::UDP,
        l4: L4::Ports { src: port, dst: 80 },
    };
    let l4 = L4::Ports { src: 80, dst: external_port };
    let reply = evergate_model::flow::Tuple { src: original.dst, dst: external.parse().unwrap(), l4, ..original };
    (original, reply)
}

#[test]
fn thousands_are_put_in_at_once_and_listed_again() {
    let _kernel = host();
    run("ip netns add a; ip netns exec a nft add table ip t
         ip netns exec a nft add chain ip t c '{ type nat hook postrouting priority 100; }'");
    let mut table = FlowTable::open(&netns_fd("a")).unwrap();
    let flows: Vec<Flow> = (0..5000_u16)
        .map(|n| {
            let original = evergate_model::flow::Tuple {
                src: "10.0.0.9".parse().unwrap(),
                dst: "192.0.2.9".parse().unwrap(),
                protocol: protocol::TCP,
                l4: L4::Ports { src: 10_000 + n, dst: 80 },
            };
            let to = L4::Ports { src: 80, dst: 30_000 + n };
            let reply = evergate_model::flow::Tuple {
                src: original.dst,
                dst: "203.0.113.1".parse().unwrap(),
                l4: to,
                ..original
            };
            Flow::established(original, reply)
        })
        .collect();
    all_ok(table.apply(&flows.iter().copied().map(FlowOp::Create).collect::<Vec<_>>()));
    let found = table.list().unwrap();
    let replies = |flows: &[Flow]| {
        flows.iter().map(|flow| (flow.key(), flow.reply)).collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(replies(&found), replies(&flows));
    let keys: Vec<_> = flows.iter().map(Flow::key).collect();
    assert_eq!(replies(&table.look_up(&keys).unwrap()), replies(&flows));
    assert_eq!(table.count().unwrap(), 5000);
}
