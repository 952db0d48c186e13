//! How many flows a core can bring from one engine into another, and what a flow costs in memory on the
//! active and on the standby side. No kernel, no sealing and no network: what the protocol itself costs.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_ctsync::{Engine, Limits, Role};
use evergate_model::RouterId;
use evergate_model::flow::{Flow, L4, Tuple, protocol};

const ROUTER: RouterId = RouterId::from_u128(1);

fn main() {
    let (active, standby) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    println!("flows    told per second, one core for both ends    bytes per flow: active, standby");
    for count in [100_000, 1_000_000] {
        let flows: Vec<Flow> = (0..count).map(flow).collect();
        let mut now = Instant::now();
        let mut teller = Engine::new(Limits::default(), 1);
        let mut told = Engine::new(Limits::default(), 2);
        let before = resident();
        teller.set_router(ROUTER, Role::Active { epoch: 1 }, BTreeSet::from([standby]));
        teller.handle_listing(ROUTER, Vec::new(), now);
        for flow in flows {
            teller.handle_changed(ROUTER, flow, now);
        }
        let filled = resident();
        told.set_router(ROUTER, Role::Standby, BTreeSet::from([active]));
        told.handle_listing(ROUTER, Vec::new(), now);
        teller.handle_peer_up(standby);
        told.handle_peer_up(active);
        let start = Instant::now();
        let mut taken = 0;
        let mut idle = 0;
        while taken < count {
            let before = taken;
            // The engines' clock is ours: where one waits, no time is lost.
            now += Duration::from_millis(1);
            teller.handle_timeout(now);
            told.handle_timeout(now);
            while let Some((_, bytes)) = told.poll_transmit(now) {
                teller.handle_message(standby, &bytes, now).expect("engines understand each other");
            }
            while let Some((_, bytes)) = teller.poll_transmit(now) {
                told.handle_message(active, &bytes, now).expect("engines understand each other");
                while let Some((_, changes)) = told.poll_changes() {
                    taken += changes.len() as u32;
                }
            }
            idle = if taken > before { 0 } else { idle + 1 };
            assert!(idle < 10_000, "nothing moves after {taken} of {count} flows");
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        let per_flow = |bytes: i64| bytes / i64::from(count);
        println!("{count:8} {rate:12.0} {:>35}, {}", per_flow(filled - before), per_flow(resident() - filled));
    }
}

fn flow(n: u32) -> Flow {
    let original = Tuple {
        src: IpAddr::from((0x0a00_0000 + (n >> 8)).to_be_bytes()),
        dst: IpAddr::from([198, 51, 100, 1]),
        protocol: protocol::TCP,
        l4: L4::Ports { src: 1024 + (n & 0xff) as u16, dst: 80 },
    };
    let to = L4::Ports { src: 80, dst: 1024 + (n % 60_000) as u16 };
    let reply = Tuple { src: original.dst, dst: IpAddr::from([203, 0, 113, 1]), l4: to, ..original };
    Flow::established(original, reply)
}

/// Resident memory of this process, in bytes.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: i64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("it is a number");
    pages * 4096
}
