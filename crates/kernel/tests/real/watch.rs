use std::path::Path;
use std::time::Duration;

use evergate_kernel::rt::{BatchSocket, Heard, LinkWatch, MachineLinkWatch, NetnsFd, list_links};
use evergate_kernel::{HostWatch, LinkEvent};

use crate::sandbox::*;

const SOON: Duration = Duration::from_secs(30);

/// The next event about the link.
fn next(watch: &mut HostWatch, name: &str) -> LinkEvent {
    loop {
        let event = watch.wait(SOON).unwrap().unwrap_or_else(|| panic!("nothing was told about {name}"));
        if event.name == name {
            return event;
        }
    }
}

#[test]
fn a_watch_begins_with_what_is_there_and_tells_what_changes() {
    let _kernel = host();
    run("ip link add tap1 type veth peer name far");
    let mut watch = HostWatch::open().unwrap();
    let event = next(&mut watch, "tap1");
    assert!(!event.up && !event.running && !event.gone);
    run("ip link set tap1 up");
    assert!(next(&mut watch, "tap1").up);
    run("ip link set far up");
    let event = next(&mut watch, "tap1");
    assert!(event.up && event.running, "{event:?}");
    run("ip link set far down");
    assert!(!next(&mut watch, "tap1").running);
    run("ip link set tap1 down; ip link set tap1 name tap2");
    assert!(!next(&mut watch, "tap1").up);
    assert!(next(&mut watch, "tap1").gone);
    assert_eq!(next(&mut watch, "tap2").ifindex, event.ifindex);
    run("ip link del tap2");
    assert!(next(&mut watch, "tap2").gone);
    while watch.wait(Duration::ZERO).unwrap().is_some() {}
}

#[test]
fn leaving_a_bridge_is_not_the_end_of_a_link() {
    let _kernel = host();
    run("ip link add name br type bridge; ip link add tap1 type veth peer name far; ip link set tap1 master br");
    let mut watch = HostWatch::open().unwrap();
    run("ip link set tap1 nomaster; ip link add last type bridge");
    while let Some(event) = watch.wait(SOON).unwrap() {
        assert!(!event.gone, "{event:?}");
        if event.name == "last" {
            return;
        }
    }
    panic!("the last link was not told");
}

#[test]
fn a_namespaces_watch_hears_its_links_and_no_others() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns")]);
    let netns = NetnsFd::open(&Path::new(NETNS_PATH).join("ns")).unwrap();
    let mut watch = LinkWatch::open(&netns).unwrap();
    run("ip link add elsewhere type bridge; ip -n ns link add here type bridge");
    let mut heard = Vec::new();
    wait_for("the link", || {
        heard.extend(watch.next().map(|event| event.name));
        heard.iter().any(|name| name == "here")
    });
    assert!(!heard.iter().any(|name| name == "elsewhere"), "{heard:?}");
}

#[test]
fn after_an_overrun_the_difference_is_told() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns")]);
    // Of a link that is down, the kernel does not tell such changes.
    run(
        "ip link add doomed type bridge; ip link add name br type bridge; ip link add noisy type bridge; ip link set noisy up",
    );
    let mut watch = HostWatch::open().unwrap();
    while watch.next_event().unwrap().is_some() {}
    // More than the receive buffer holds, unread.
    run("yes 'link set dev noisy alias x
link set dev noisy alias y' | head -8000 | ip -batch -; ip link del doomed; ip link add late type bridge; ip link set dev br up");
    let (mut doomed, mut late, mut up) = (false, false, false);
    while let Some(event) = watch.wait(Duration::ZERO).unwrap() {
        doomed |= event.name == "doomed" && event.gone;
        late |= event.name == "late";
        up |= event.name == "br" && event.up;
    }
    assert!(doomed && late && up, "doomed {doomed}, late {late}, up {up}");
}

#[test]
fn one_watch_hears_of_all_namespaces_that_have_a_number() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("one"), add_netns("two"), add_netns("deaf")]);
    let open = |name: &str| NetnsFd::open(&Path::new(NETNS_PATH).join(name)).unwrap();
    let mut watch = MachineLinkWatch::open().unwrap();
    let mut socket = BatchSocket::open(&NetnsFd::host().unwrap()).unwrap();
    let [one, two] = ["one", "two"].map(|name| socket.number_of(&open(name)).unwrap());
    assert_ne!(one, two);
    assert_eq!(socket.number_of(&open("one")).unwrap(), one);
    run("ip link add elsewhere type bridge; ip -n deaf link add unheard type bridge");
    run("ip -n one link add first type bridge; ip -n two link add second type bridge; ip -n two link set second up");
    run("ip -n two link del second");
    let mut heard = Vec::new();
    wait_for("all links", || {
        while let Some(Heard::Link { netns, link }) = watch.next() {
            heard.push((netns, link.name, link.up, link.gone));
        }
        heard.contains(&(two, "second".to_owned(), false, true))
    });
    assert!(heard.contains(&(one, "first".to_owned(), false, false)), "{heard:?}");
    assert!(heard.contains(&(two, "second".to_owned(), true, false)), "{heard:?}");
    assert!(heard.iter().all(|(_, name, ..)| !["elsewhere", "unheard"].contains(&name.as_str())), "{heard:?}");
    let listed = list_links(&open("one")).unwrap();
    assert!(listed.iter().any(|link| link.name == "first" && !link.up), "{listed:?}");

    // More than the receive buffer holds, unread.
    run("ip -n one link set first up");
    run("yes 'link set dev first alias x
link set dev first alias y' | head -8000 | ip -n one -batch -");
    let mut all = Vec::new();
    while let Some(heard) = watch.next() {
        all.push(heard);
    }
    assert!(all.contains(&Heard::Lost), "{} heard", all.len());
}
