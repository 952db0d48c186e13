use std::path::Path;

use evergate_dataplane::Op;
use evergate_dataplane::state::{FdbTable, Netns};
use evergate_kernel::Kernel;
use evergate_kernel::rt::{
    BatchSocket, Filter, FoundPaths, NetnsFd, PacketSocket, fdb_delete_message, fdb_replace_message, find_paths,
    group_message, has_address, list_paths, path_message, path_of, path_table, remove_messages,
};
use evergate_kernel::sys;

use crate::sandbox::*;

fn netns_fd(name: &str) -> NetnsFd {
    NetnsFd::open(&Path::new(NETNS_PATH).join(name)).unwrap()
}

/// Two namespaces with a veth between them: `ha-1` on both sides.
fn pair() -> (Kernel, [NetnsFd; 2], [u32; 2]) {
    let mut kernel = host();
    run("ip netns add a; ip netns add b; ip link add ha-1 netns a type veth peer name ha-1 netns b; \
         ip -n a link set ha-1 up; ip -n b link set ha-1 up");
    let indexes = ["a", "b"].map(|name| kernel.link_index(&named(name), "ha-1").unwrap().unwrap());
    (kernel, ["a", "b"].map(netns_fd), indexes)
}

/// A VRRP advertisement as a frame, with so many bytes of IP options, from the fragment at this offset.
fn frame(protocol: u8, vrid: u8, options: usize, fragment: u16) -> Vec<u8> {
    let mut frame = vec![0x01, 0x00, 0x5e, 0x00, 0x00, 0x12, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    let header_len = 20 + options;
    let total = header_len + 20;
    frame.extend([0x40 | (header_len / 4) as u8, 0xc0, 0, total as u8, 0, 0]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([255, protocol, 0, 0, 169, 254, 192, 1, 224, 0, 0, 18]);
    frame.extend(vec![1; options]);
    frame.extend([0x21, vrid, 50, 1, 1, 2, 0, 0, 169, 254, 0, vrid]);
    frame.extend([0; 8]);
    frame
}

#[test]
fn the_filter_passes_the_wanted_virtual_router_and_nothing_else() {
    let (_kernel, [a, b], [a_index, b_index]) = pair();
    let sender = PacketSocket::open(&a, a_index, Filter::SendOnly).unwrap();
    let own = PacketSocket::open(&b, b_index, Filter::Vrrp { vrid: Some(7) }).unwrap();
    let all = PacketSocket::open(&b, b_index, Filter::Vrrp { vrid: None }).unwrap();
    let mut arp = frame(112, 7, 0, 0);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let frames = [
        frame(112, 7, 0, 0),
        frame(112, 8, 0, 0),
        frame(17, 7, 0, 0),
        frame(112, 7, 12, 0),
        frame(112, 8, 12, 0),
        frame(112, 7, 0, 185),
        frame(112, 7, 0, 0x4000),
        arp,
        // Cut short where the identifier would be.
        frame(112, 7, 0, 0)[..35].to_vec(),
        frame(112, 7, 0, 0),
    ];
    for frame in &frames {
        sender.send(frame).unwrap();
    }
    let receive = |socket: &PacketSocket| {
        let mut buffer = [0; 256];
        let mut received = Vec::new();
        while let Some(length) = socket.recv(&mut buffer).unwrap() {
            received.push(frames.iter().position(|frame| *frame == buffer[..length]).unwrap());
            // The first and the last frame are the same.
        }
        received
    };
    assert_eq!(receive(&own), [0, 3, 6, 0]);
    assert_eq!(receive(&all), [0, 1, 3, 4, 6, 8, 0]);
    assert_eq!(sender.recv(&mut [0; 64]).unwrap(), None);
}

#[test]
fn what_we_send_ourselves_is_not_received() {
    let (_kernel, [_, b], [_, b_index]) = pair();
    let one = PacketSocket::open(&b, b_index, Filter::Vrrp { vrid: None }).unwrap();
    let other = PacketSocket::open(&b, b_index, Filter::Vrrp { vrid: None }).unwrap();
    one.send(&frame(112, 7, 0, 0)).unwrap();
    assert_eq!(one.recv(&mut [0; 64]).unwrap(), None);
    assert_eq!(other.recv(&mut [0; 64]).unwrap(), None);
    assert!(one.send(&[0; 13]).is_err());
}

#[test]
fn a_frame_keeps_the_protocol_that_it_says() {
    let (_kernel, [a, b], [a_index, b_index]) = pair();
    let sender = PacketSocket::open(&a, a_index, Filter::Vrrp { vrid: Some(7) }).unwrap();
    run("ip -n b address add 10.0.0.2/24 dev ha-1; ip netns exec b sysctl -q net.ipv4.conf.ha-1.arp_accept=1");
    // A gratuitous ARP request for 10.0.0.1 at 02:00:00:00:00:01.
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    sender.send(&arp).unwrap();
    wait_for("the announced neighbour", || run("ip -n b neigh").contains("10.0.0.1 dev ha-1 lladdr 02:00:00:00:00:01"));
    drop((b, b_index));
}

#[test]
fn a_socket_outlives_its_interface_going_down_and_up() {
    let (_kernel, [a, b], [a_index, b_index]) = pair();
    let sender = PacketSocket::open(&a, a_index, Filter::SendOnly).unwrap();
    let receiver = PacketSocket::open(&b, b_index, Filter::Vrrp { vrid: None }).unwrap();
    run("ip -n b link set ha-1 down");
    assert_eq!(receiver.recv(&mut [0; 64]).unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(receiver.recv(&mut [0; 64]).unwrap(), None);
    run("ip -n b link set ha-1 up");
    let mut buffer = [0; 64];
    wait_for("a frame", || {
        // The other side's carrier comes back a moment later.
        let _ = sender.send(&frame(112, 7, 0, 0));
        receiver.recv(&mut buffer).unwrap().is_some()
    });
}

#[test]
fn a_socket_on_no_interface_is_refused() {
    let (_kernel, [a, _], _) = pair();
    let error = PacketSocket::open(&a, 4242, Filter::Vrrp { vrid: None }).unwrap_err().full();
    assert_eq!(error, "failed to open a packet socket on link 4242: No such device (os error 19)");
}

#[test]
fn prepared_messages_do_what_their_ops_do_and_may_be_sent_twice() {
    let mut kernel = host();
    let ns = named("ns");
    apply(&mut kernel, &[add_netns("ns"), veth("tap1", &ns, "qr-1")]);
    let routed = route("0.0.0.0/0", Some("10.0.0.9"), Some("qr-1"));
    let adds = [
        add_address(&ns, "qr-1", "10.0.0.1/24"),
        add_address(&ns, "qr-1", "2001:db8::1/64"),
        Op::AddRoute { netns: ns.clone(), route: routed.clone() },
    ];
    let removals = [
        Op::DeleteRoute { netns: ns.clone(), route: routed },
        delete_address(&ns, "qr-1", "10.0.0.1/24"),
        delete_address(&ns, "qr-1", "2001:db8::1/64"),
    ];
    let mut encode = |ops: &[Op]| ops.iter().map(|op| kernel.encode(op).unwrap()).collect::<Vec<_>>();
    let (adds, removals) = (encode(&adds), encode(&removals));
    let mut socket = BatchSocket::open(&netns_fd("ns")).unwrap();
    let index = kernel.link_index(&ns, "qr-1").unwrap().unwrap();
    let vip = "10.0.0.1".parse().unwrap();
    assert!(!has_address(&mut socket, index, vip).unwrap());
    for messages in [&adds, &adds, &removals, &removals] {
        for result in socket.send_batch(messages) {
            result.unwrap();
        }
        let active = std::ptr::eq(messages, &adds);
        assert_eq!(has_address(&mut socket, index, vip).unwrap(), active);
        let seen = observe(&mut kernel, &ns);
        assert_eq!((seen.addresses.len(), seen.routes.len()), if active { (2, 1) } else { (0, 0) });
    }
}

#[test]
fn a_batch_answers_for_each_message_even_for_garbage() {
    let mut kernel = host();
    apply(&mut kernel, &[bridge(&Netns::Host, "br")]);
    let good = kernel.encode(&add_address(&Netns::Host, "br", "10.0.0.1/24")).unwrap();
    let unreachable = Op::AddRoute { netns: Netns::Host, route: route("10.9.0.0/16", Some("192.0.2.9"), None) };
    let bad = kernel.encode(&unreachable).unwrap();
    let mut socket = BatchSocket::open(&NetnsFd::host().unwrap()).unwrap();
    let results = socket.send_batch(&[bad, vec![1, 2, 3], good.clone(), vec![], good]);
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, true, false, true]);
    let texts: Vec<_> = results.into_iter().filter_map(|result| result.err().map(|error| error.full())).collect();
    assert_eq!(texts[0], "failed to send prepared message 0: Nexthop has invalid gateway (Network is unreachable)");
    assert_eq!(texts[1], "failed to send prepared message 1: it is not a netlink message");
    assert!(kernel.encode(&bridge(&Netns::Host, "br2")).is_err());
    let error = kernel.encode(&add_address(&Netns::Host, "br9", "10.0.0.1/24")).unwrap_err().full();
    assert_eq!(error, "failed to prepare to add address 10.0.0.1/24 to br9 in host: there is no link br9");
}

#[test]
fn forwarding_messages_move_a_router_between_hosts() {
    let mut kernel = host();
    apply(&mut kernel, &[bridge(&Netns::Host, "brq1"), add_link(&Netns::Host, "vxlan-7", as_port(vxlan(7), "brq1"))]);
    let index = kernel.link_index(&Netns::Host, "vxlan-7").unwrap().unwrap();
    let mut socket = BatchSocket::open(&NetnsFd::host().unwrap()).unwrap();
    let to = |dst: &str| FdbTable::Vxlan { dst: dst.parse().unwrap() };
    for dst in ["192.0.2.2", "192.0.2.3"] {
        let messages =
            [fdb_replace_message(index, mac(9), &to(dst)), fdb_replace_message(index, mac(9), &FdbTable::Bridge)];
        assert!(socket.send_batch(&messages).iter().all(Result::is_ok));
        let expected = [behind("vxlan-7", mac(9)), tunnel("vxlan-7", mac(9), dst)];
        assert_eq!(observe(&mut kernel, &Netns::Host).fdb, expected.into());
    }
    let messages =
        [fdb_delete_message(index, mac(9), &to("192.0.2.3")), fdb_delete_message(index, mac(9), &FdbTable::Bridge)];
    for _ in 0..2 {
        assert!(socket.send_batch(&messages).iter().all(Result::is_ok));
    }
    assert!(observe(&mut kernel, &Netns::Host).fdb.is_empty());
}

#[test]
fn a_child_starts_in_the_namespace_it_was_given() {
    let (_kernel, [a, _], _) = pair();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "grep -q ha-1 /proc/net/dev"]);
    assert!(sys::spawn_in_netns(&mut command, &a).unwrap().wait().unwrap().success());
}

#[test]
fn real_time_and_locked_memory_are_granted_to_root_or_refused_in_words() {
    std::thread::spawn(|| {
        if let Err(words) = evergate_kernel::rt::set_fifo_priority(10) {
            assert!(words.starts_with("real-time priority 10 was refused"), "{words}");
        }
        assert!(evergate_kernel::rt::set_fifo_priority(0).unwrap_err().contains("priorities are 1 to 99"));
    })
    .join()
    .unwrap();
}

#[test]
fn real_time_threads_are_kept_off_the_processor_of_one_that_steps_aside() {
    let allowed = |thread: &str| {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap();
        let words: Vec<u32> = line.trim().split(',').map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
        words.into_iter().rev().enumerate().map(|(at, word)| u128::from(word) << (32 * at)).sum::<u128>()
    };
    let own_id = || std::fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let work = move || {
        let permitted = evergate_kernel::rt::set_fifo_priority(10).is_ok();
        tell.send((permitted, own_id())).unwrap();
        let _ = ended.recv();
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        let (permitted, thread) = told.recv().unwrap();
        let own = own_id();
        let before = [allowed(&own), allowed(&thread)];
        let aside = evergate_kernel::rt::Aside::step();
        let [here, there] = [allowed(&own), allowed(&thread)];
        assert_eq!(here.count_ones(), 1, "it stays where it is");
        if permitted && before[1] != here {
            assert_eq!(there, before[1] & !here);
        } else {
            assert_eq!(there, before[1], "it has no other processor, or its priority was refused");
        }
        drop(aside);
        assert_eq!([allowed(&own), allowed(&thread)], before);
        drop(end);
    });
}

#[test]
fn entries_that_share_a_path_move_by_one_message() {
    let mut kernel = host();
    apply(&mut kernel, &[bridge(&Netns::Host, "brq1"), add_link(&Netns::Host, "vxlan-7", as_port(vxlan(7), "brq1"))]);
    let index = kernel.link_index(&Netns::Host, "vxlan-7").unwrap().unwrap();
    let mut socket = BatchSocket::open(&NetnsFd::host().unwrap()).unwrap();
    assert_eq!(find_paths(&mut socket).unwrap(), Some(FoundPaths::default()), "asking leaves nothing behind");

    // Somebody else has an id of ours, and a path of theirs.
    run("ip nexthop add id 1163264002 via 192.0.2.77 fdb; ip nexthop add id 12 via 192.0.2.78 fdb");
    let [a, b] = ["192.0.2.8", "192.0.2.9"].map(|ip| ip.parse().unwrap());
    let mut send = |messages: &[Vec<u8>]| socket.send_batch(messages).into_iter().for_each(|result| result.unwrap());
    // An entry that names a host itself cannot be turned into one that points at a path: it goes first.
    let direct = fdb_replace_message(index, mac(9), &FdbTable::Vxlan { dst: a });
    let points = |n| fdb_replace_message(index, mac(n), &path_table(0));
    send(&[direct, path_message(0, a), group_message(0)]);
    send(&[fdb_delete_message(index, mac(9), &FdbTable::Vxlan { dst: a }), points(9), points(10), points(10)]);
    let forwarding = || run("bridge fdb show dev vxlan-7");
    let nexthops = || run("ip nexthop");
    assert_eq!(forwarding().matches("nhid 1163264001").count(), 2, "{}", forwarding());
    let seen = observe(&mut kernel, &Netns::Host);
    assert_eq!(seen.fdb.iter().filter(|entry| path_of(&entry.table) == Some(0)).count(), 2);

    let mut socket = BatchSocket::open(&NetnsFd::host().unwrap()).unwrap();
    for result in socket.send_batch(&[path_message(0, b)]) {
        result.unwrap();
    }
    assert!(nexthops().contains("id 1163264000 via 192.0.2.9"), "{}", nexthops());
    let found = find_paths(&mut socket).unwrap().unwrap();
    assert_eq!(found.paths.into_iter().collect::<Vec<_>>(), [(0, b)]);
    assert_eq!(list_paths(&mut socket).unwrap().into_iter().collect::<Vec<_>>(), [(1163264001, b)]);
    assert_eq!(found.taken.into_iter().collect::<Vec<_>>(), [1]);
    assert_eq!(found.entries.into_values().collect::<Vec<_>>(), [Some(0), Some(0)]);

    for result in socket.send_batch(&[remove_messages(0), remove_messages(0)].concat()) {
        result.unwrap();
    }
    assert!(!forwarding().contains("nhid"), "{}", forwarding());
    assert_eq!(nexthops().lines().count(), 2, "those of others stay: {}", nexthops());
}
