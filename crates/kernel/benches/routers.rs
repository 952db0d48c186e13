//! How long it takes to build, look at and remove the namespaces of HA routers: this crate beside the
//! command-line tools (`ip -batch`, `sysctl`, `nft -f`, as few processes as they need).
//!
//! Run as root: `cargo bench -p evergate-kernel`. Figures of one run on one machine compare with each
//! other only; the ratio is what to keep.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use evergate_dataplane::Op;
use evergate_dataplane::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable};
use evergate_dataplane::state::{Address, KernelState, Link, LinkKind, Netns, NetnsState, Route, TABLE_MAIN};
use evergate_kernel::Kernel;
use evergate_kernel::sys::{self, Namespace};
use evergate_model::Mac;

const ROUTERS: u16 = 100;
const NETNS_PATH: &str = "/run/netns";
const BRIDGES: [&str; 3] = ["brq-in", "brq-out", "brq-ha"];
const LEGS: [&str; 3] = ["qr", "qg", "ha"];
const SETTINGS: [&str; 4] =
    ["ipv4/ip_forward", "ipv4/conf/all/promote_secondaries", "ipv4/conf/all/arp_ignore", "ipv4/conf/all/arp_announce"];

fn main() {
    println!("{ROUTERS} HA routers: a namespace, 3 veth pairs, 10 settings, 4 addresses, a route and a NAT table each");
    let (built, built_cpu, observed, nothing, removed) = in_a_new_host(with_this_crate);
    let (commands, commands_cpu) = in_a_new_host(with_commands);
    let per = |time: Duration| format!("{:8.2} ms per router", time.as_secs_f64() * 1000.0 / f64::from(ROUTERS));
    println!("build, this crate  {}", per(built));
    println!("build, commands    {}", per(commands));
    println!("ratio              {:8.1}", commands.as_secs_f64() / built.as_secs_f64());
    println!("ratio of CPU time  {:8.1}", commands_cpu / built_cpu);
    println!("observe            {}", per(observed));
    println!("build again        {}  (everything is there)", per(nothing));
    println!("remove             {}", per(removed));
}

/// Runs on a thread whose namespaces go with it.
fn in_a_new_host<T: Send + 'static>(f: fn() -> T) -> T {
    let host = move || {
        sys::unshare(&[Namespace::Net, Namespace::Mount]).expect("the benchmark must run as root");
        sys::mount_make_private(Path::new("/")).expect("mounts of one's own can be made private");
        sys::mount_tmpfs(Path::new("/run")).expect("root may mount");
        f()
    };
    std::thread::spawn(host).join().expect("the benchmark does not panic")
}

fn with_this_crate() -> (Duration, f64, Duration, Duration, Duration) {
    let mut kernel = Kernel::open(Path::new(NETNS_PATH)).expect("root may open netlink sockets");
    apply(&mut kernel, &bridges());
    let routers: Vec<Vec<Op>> = (0..ROUTERS).map(router).collect();
    let build = |kernel: &mut Kernel| {
        let start = Instant::now();
        routers.iter().for_each(|ops| apply(kernel, ops));
        start.elapsed()
    };
    let cpu = cpu_ticks();
    let built = build(&mut kernel);
    let built_cpu = cpu_ticks() - cpu;
    let desired = desired();
    let start = Instant::now();
    let state = kernel.observe(&desired).expect("what was made can be observed");
    let observed = start.elapsed();
    assert_eq!(state.netns.len(), usize::from(ROUTERS) + 1);
    let again = build(&mut kernel);
    let start = Instant::now();
    let removals: Vec<Op> = (0..ROUTERS).map(|number| Op::DeleteNetns { name: netns_name(number) }).collect();
    apply(&mut kernel, &removals);
    (built, built_cpu, observed, again, start.elapsed())
}

fn apply(kernel: &mut Kernel, ops: &[Op]) {
    for result in kernel.apply(ops) {
        if let Err(error) = result {
            panic!("{}", error.full());
        }
    }
}

fn desired() -> KernelState {
    let sysctls: BTreeMap<_, _> = SETTINGS.iter().map(|path| ((*path).to_owned(), "1".to_owned())).collect();
    let state = NetnsState { owned: true, sysctls, ..NetnsState::default() };
    KernelState { netns: (0..ROUTERS).map(|number| (Netns::Named(netns_name(number)), state.clone())).collect() }
}

fn bridges() -> Vec<Op> {
    let add = |name: &&str| Op::AddLink {
        netns: Netns::Host,
        name: (*name).to_owned(),
        link: link(LinkKind::Bridge, None),
        peer_link: None,
    };
    BRIDGES.iter().map(add).collect()
}

fn link(kind: LinkKind, mac: Option<Mac>) -> Link {
    let alias = Some("evergate: benchmark".to_owned());
    Link { kind, alias, up: true, mtu: Some(1450), mac, master: None, port: None }
}

fn netns_name(number: u16) -> String {
    format!("qrouter-{number}")
}

fn mac(number: u16, leg: usize) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac([0xfa, 0x16, 0x3e, leg as u8, high, low])
}

fn addresses(number: u16) -> [(&'static str, String); 4] {
    let [high, low] = number.to_be_bytes();
    [
        ("qr", "10.0.0.1/24".to_owned()),
        ("qg", format!("198.51.{high}.{low}/16")),
        ("ha", format!("169.254.{}.{low}/18", 192 + high)),
        ("ha", "169.254.0.1/24".to_owned()),
    ]
}

fn router(number: u16) -> Vec<Op> {
    let name = netns_name(number);
    let netns = Netns::Named(name.clone());
    let mut ops = vec![Op::AddNetns { name, alias: "evergate: benchmark".to_owned() }];
    let set = |path: String| Op::SetSysctl { netns: netns.clone(), path, value: "1".to_owned() };
    ops.extend(SETTINGS.iter().map(|path| set((*path).to_owned())));
    for (leg, (bridge, prefix)) in BRIDGES.iter().zip(LEGS).enumerate() {
        let (tap, inner) = (format!("tap{prefix}{number}"), format!("{prefix}-{number}"));
        let outer = link(LinkKind::Veth { peer: Some((netns.clone(), inner.clone())) }, None);
        let peer = link(LinkKind::Veth { peer: Some((Netns::Host, tap.clone())) }, Some(mac(number, leg)));
        ops.push(Op::AddLink {
            netns: Netns::Host,
            name: tap,
            link: Link { master: Some((*bridge).to_owned()), ..outer },
            peer_link: Some(Box::new(peer)),
        });
    }
    for prefix in LEGS {
        ops.push(set(format!("ipv6/conf/{prefix}-{number}/disable_ipv6")));
        ops.push(set(format!("ipv4/conf/{prefix}-{number}/arp_ignore")));
    }
    ops.push(Op::ReplaceNft { netns: netns.clone(), table: table(number) });
    for (prefix, net) in addresses(number) {
        let net = net.parse().expect("written as one");
        ops.push(Op::AddAddress { netns: netns.clone(), address: Address { link: format!("{prefix}-{number}"), net } });
    }
    let via = Some(Ipv4Addr::new(198, 51, 255, 254).into());
    let destination = "0.0.0.0/0".parse().expect("written as one");
    let route = Route { table: TABLE_MAIN, destination, via, link: Some(format!("qg-{number}")) };
    ops.push(Op::AddRoute { netns, route });
    ops
}

fn table(number: u16) -> NftTable {
    let chain = |hook, priority, statements: Vec<Vec<NftStatement>>| NftChain {
        kind: NftChainKind::Nat,
        hook,
        priority,
        drop_by_default: false,
        rules: statements.into_iter().map(|statements| NftRule { statements }).collect(),
    };
    let outside = || NftStatement::OutLink { name: format!("qg-{number}"), negated: false };
    let pair = |a: u8, b: u8| (Ipv4Addr::new(10, 0, 0, a), Ipv4Addr::new(198, 51, 100, b));
    let snat = NftStatement::Snat { to: Ipv4Addr::new(198, 51, 100, 1), fully_random: true };
    NftTable {
        family: NftFamily::Ip,
        maps: BTreeMap::from([
            ("fixed".to_owned(), NftMap::Addresses([pair(5, 5), pair(6, 6)].into())),
            ("floating".to_owned(), NftMap::Addresses([pair(5, 5), pair(6, 6)].map(|(a, b)| (b, a)).into())),
        ]),
        chains: BTreeMap::from([
            (
                "prerouting".to_owned(),
                chain(NftHook::Prerouting, -100, vec![vec![NftStatement::DnatByMap { map: "floating".to_owned() }]]),
            ),
            (
                "postrouting".to_owned(),
                chain(
                    NftHook::Postrouting,
                    100,
                    vec![vec![NftStatement::SnatByMap { map: "fixed".to_owned() }], vec![outside(), snat]],
                ),
            ),
        ]),
    }
}

fn with_commands() -> (Duration, f64) {
    feed("ip", &["-batch", "-"], &BRIDGES.map(|name| format!("link add name {name} up type bridge\n")).concat());
    let (start, cpu) = (Instant::now(), cpu_ticks());
    for number in 0..ROUTERS {
        let netns = netns_name(number);
        feed("ip", &["netns", "add", &netns], "");
        let mut outside = String::new();
        let mut inside = "link set lo up\n".to_owned();
        let mut settings: Vec<String> = SETTINGS.iter().map(|path| format!("{path}=1")).collect();
        for (leg, (bridge, prefix)) in BRIDGES.iter().zip(LEGS).enumerate() {
            let mac = mac(number, leg);
            outside += &format!(
                "link add name tap{prefix}{number} mtu 1450 type veth peer name {prefix}-{number} mtu 1450 address {mac} netns {netns}\n\
                 link set dev tap{prefix}{number} master {bridge} up\n"
            );
            inside += &format!("link set dev {prefix}-{number} up\n");
            settings.extend(
                ["ipv6/conf/LEG/disable_ipv6=1", "ipv4/conf/LEG/arp_ignore=1"]
                    .map(|setting| setting.replace("LEG", &format!("{prefix}-{number}"))),
            );
        }
        for (prefix, net) in addresses(number) {
            inside += &format!("address add {net} dev {prefix}-{number}\n");
        }
        inside += &format!("route add default via 198.51.255.254 dev qg-{number} proto static\n");
        feed("ip", &["-batch", "-"], &outside);
        feed("ip", &["-n", &netns, "-batch", "-"], &inside);
        let settings: Vec<String> = settings.iter().map(|setting| format!("net/{setting}")).collect();
        let sysctl = ["netns", "exec", &netns, "sysctl", "-qw"];
        feed("ip", &[&sysctl[..], &settings.iter().map(String::as_str).collect::<Vec<_>>()].concat(), "");
        feed("ip", &["netns", "exec", &netns, "nft", "-f", "-"], &table(number).to_string());
    }
    (start.elapsed(), cpu_ticks() - cpu)
}

/// What this process and its ended children used of the CPU, in the kernel and outside.
fn cpu_ticks() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("every process has it");
    let after_name = stat.rsplit(") ").next().expect("the name is in parentheses");
    // proc(5): utime, stime, cutime and cstime are fields 14 to 17; the name is the second.
    after_name.split(' ').skip(11).take(4).map(|ticks| ticks.parse::<f64>().expect("a number")).sum()
}

fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().expect("the tool is installed");
    child.stdin.take().expect("it was asked for").write_all(input.as_bytes()).expect("the tool reads its input");
    assert!(child.wait().expect("it was started").success(), "{program} {arguments:?} refused {input}");
}
