//! A host for one test, and words to write tests in.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use evergate_dataplane::Op;
use evergate_dataplane::state::{
    Address, BridgePort, FdbEntry, FdbTable, KernelState, Link, LinkKind, Netns, NetnsState, Route, TABLE_MAIN,
};
use evergate_kernel::sys::{self, Namespace};
use evergate_kernel::{Error, Kernel};
use evergate_model::Mac;

pub(crate) const NETNS_PATH: &str = "/run/netns";
pub(crate) const ALIAS: &str = "evergate: test";

/// A kernel of one's own, as far as the calling thread is concerned.
pub(crate) fn host() -> Kernel {
    sys::unshare(&[Namespace::Net, Namespace::Mount]).expect("tests of this crate must run as root");
    sys::mount_make_private(Path::new("/")).unwrap();
    sys::mount_tmpfs(Path::new("/run")).unwrap();
    run("ip link set lo up");
    Kernel::open(Path::new(NETNS_PATH)).unwrap()
}

/// Runs a command line; returns what it printed.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(line).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {out}{err}");
    out.into_owned()
}

/// Applies ops that must all succeed.
pub(crate) fn apply(kernel: &mut Kernel, ops: &[Op]) {
    for (op, result) in ops.iter().zip(kernel.apply(ops)) {
        if let Err(error) = result {
            panic!("{op:?}: {}", error.full());
        }
    }
}

/// Applies one op that must fail.
pub(crate) fn refused(kernel: &mut Kernel, op: Op) -> Error {
    kernel.apply(&[op]).remove(0).unwrap_err()
}

/// What is there of one namespace, when nothing is wanted.
pub(crate) fn observe(kernel: &mut Kernel, netns: &Netns) -> NetnsState {
    let mut state = kernel.observe(&KernelState::default()).unwrap();
    state.netns.remove(netns).unwrap_or_else(|| panic!("{netns} is not observed"))
}

/// Waits until the condition holds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::yield_now();
    }
}

pub(crate) fn named(name: &str) -> Netns {
    Netns::Named(name.to_owned())
}

pub(crate) fn add_netns(name: &str) -> Op {
    Op::AddNetns { name: name.to_owned(), alias: ALIAS.to_owned() }
}

pub(crate) fn mac(last: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, 0, last])
}

pub(crate) fn link(kind: LinkKind) -> Link {
    Link { kind, alias: Some(ALIAS.to_owned()), up: true, mtu: None, mac: None, master: None, port: None }
}

pub(crate) fn add_link(netns: &Netns, name: &str, link: Link) -> Op {
    Op::AddLink { netns: netns.clone(), name: name.to_owned(), link, peer_link: None }
}

pub(crate) fn bridge(netns: &Netns, name: &str) -> Op {
    add_link(netns, name, link(LinkKind::Bridge))
}

pub(crate) fn vxlan(vni: u32) -> Link {
    let kind = LinkKind::Vxlan { vni, local: "192.0.2.1".parse().unwrap(), port: 4789 };
    Link { mtu: Some(1450), mac: Some(mac(99)), ..link(kind) }
}

/// A port of `brq`, as VXLAN devices are.
pub(crate) fn as_port(link: Link, master: &str) -> Link {
    let port = Some(BridgePort { learning: false, neigh_suppress: true, isolated: false });
    Link { master: Some(master.to_owned()), port, ..link }
}

/// A veth from the host to a namespace.
pub(crate) fn veth(tap: &str, netns: &Netns, inner: &str) -> Op {
    let end = |peer: (Netns, String), last| Link {
        mtu: Some(1442),
        mac: Some(mac(last)),
        ..link(LinkKind::Veth { peer: Some(peer) })
    };
    Op::AddLink {
        netns: Netns::Host,
        name: tap.to_owned(),
        link: end((netns.clone(), inner.to_owned()), 1),
        peer_link: Some(Box::new(end((Netns::Host, tap.to_owned()), 2))),
    }
}

pub(crate) fn address(link: &str, net: &str) -> Address {
    Address { link: link.to_owned(), net: net.parse().unwrap() }
}

pub(crate) fn add_address(netns: &Netns, link: &str, net: &str) -> Op {
    Op::AddAddress { netns: netns.clone(), address: address(link, net) }
}

pub(crate) fn delete_address(netns: &Netns, link: &str, net: &str) -> Op {
    Op::DeleteAddress { netns: netns.clone(), address: address(link, net) }
}

pub(crate) fn route(destination: &str, via: Option<&str>, link: Option<&str>) -> Route {
    Route {
        table: TABLE_MAIN,
        destination: destination.parse().unwrap(),
        via: via.map(|via| via.parse().unwrap()),
        link: link.map(str::to_owned),
    }
}

pub(crate) fn tunnel(link: &str, mac: Mac, dst: &str) -> FdbEntry {
    FdbEntry { link: link.to_owned(), mac, table: FdbTable::Vxlan { dst: dst.parse().unwrap() } }
}

pub(crate) fn behind(link: &str, mac: Mac) -> FdbEntry {
    FdbEntry { link: link.to_owned(), mac, table: FdbTable::Bridge }
}

pub(crate) fn set_fdb(entry: FdbEntry) -> Op {
    Op::SetFdb { netns: Netns::Host, entry }
}

pub(crate) fn delete_fdb(entry: FdbEntry) -> Op {
    Op::DeleteFdb { netns: Netns::Host, entry }
}
