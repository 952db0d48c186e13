use std::path::Path;
use std::time::Duration;

use evergate_kernel::rt::{LinkWatch, NetnsFd};
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
    run("ip link add doomed type bridge; ip link add name br type bridge");
    let mut watch = HostWatch::open().unwrap();
    while watch.next_event().unwrap().is_some() {}
    // More than the receive buffer holds, unread.
    run("yes 'link set dev br alias x
link set dev br alias y' | head -8000 | ip -batch -; ip link del doomed; ip link add late type bridge; ip link set dev br up");
    let (mut doomed, mut late, mut up) = (false, false, false);
    while let Some(event) = watch.wait(Duration::ZERO).unwrap() {
        doomed |= event.name == "doomed" && event.gone;
        late |= event.name == "late";
        up |= event.name == "br" && event.up;
    }
    assert!(doomed && late && up, "doomed {doomed}, late {late}, up {up}");
}
