//! A stranger on the HA network sends ten thousand forged advertisements a second. Needs root.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use evergate_keeper::protocol::{FromKeeper, RouterSpec};
use evergate_kernel::rt::{Filter, NetnsFd, PacketSocket};
use evergate_model::HaState;
use evergate_vrrp::router::{Version, Vrid};
use evergate_vrrp::wire::{Advertisement, Ipv4Checksum, ethernet_frame};
use support::*;

const BOTH: [u8; 2] = [1, 2];
/// Frames, of all kinds together, and advertisements of the active in between: it sends one each second.
const STORM: (u64, Duration) = (12_000, Duration::from_secs(3));
/// Frames of each kind, every ten milliseconds.
const AT_ONCE: u32 = 20;

#[test]
fn a_storm_of_forged_advertisements_changes_nothing_but_counters() {
    require_root();
    let lab = Lab::new(3);
    let spec = |n| RouterSpec { password: Some("s3cret".to_owned()), ..lab.spec(n, &BOTH) };
    let keepers = BOTH.map(|n| lab.keeper(n));
    let mut controls = keepers.each_ref().map(Keeper::control);
    for (control, n) in controls.iter_mut().zip(BOTH).rev() {
        control.tell(settings(n), &[spec(n)], &[]);
    }
    controls[1].expect_transition(HaState::Active);
    let heard = |control: &mut Control| control.status().routers[0].received;
    eventually("the standby hears the active", || heard(&mut controls[0]) > 0);
    controls.iter().for_each(Control::forget);

    let (before, received) = (controls.each_mut().map(|control| control.status().discards), heard(&mut controls[0]));
    let advertised = controls[1].status().routers[0].sent;
    let netns = NetnsFd::open(&Path::new("/run/netns").join(lab.name("r3"))).expect("the stranger is there");
    let sender = PacketSocket::open(&netns, lab.ifindex("r3", "ha-1"), Filter::SendOnly).expect("it can send");
    let forged = forged();
    let (start, mut sent) = (Instant::now(), 0);
    while sent < STORM.0 || start.elapsed() < STORM.1 {
        assert!(start.elapsed() < DEADLINE, "{sent} were sent: that is no storm");
        for _ in 0..AT_ONCE {
            for (_, frame) in &forged {
                // A full queue is part of a storm.
                sent += u64::from(sender.send(frame).is_ok());
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(lab.vip_holders(&BOTH), [2]);
    for (control, before) in controls.iter_mut().zip(before) {
        // Before anything else is asked, which forgets them.
        let heard = control.heard();
        let transitions = heard.iter().filter(|message| matches!(message, FromKeeper::Transition(_))).count();
        assert_eq!(transitions, 0, "{heard:#?}");
        let after = control.status().discards;
        for (reason, _) in &forged {
            let count = after.get(*reason).copied().unwrap_or(0) - before.get(*reason).copied().unwrap_or(0);
            assert!(count > 100, "{reason}: {count}");
        }
    }
    // The active advertised, and the standby heard it, as if nothing had been: all but what is on its way.
    let advertised = controls[1].status().routers[0].sent - advertised;
    let more = heard(&mut controls[0]) - received;
    assert!(advertised >= 1 && more + 1 >= advertised, "{more} of {advertised}");
}

/// Advertisements to take the role with, each refused for a reason of its own.
fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let advertisement = |password: &str, vrid: u8| Advertisement {
        version: Version::V2,
        vrid: Vrid::new(vrid).expect("not 0"),
        priority: 254,
        advertise_interval_cs: 100,
        addresses: vec![[169, 254, 0, 7].into()],
        password: Some(evergate_vrrp::wire::password(password)),
    };
    let frame = |advertisement: &Advertisement| {
        let source = [169, 254, 192, 200].into();
        ethernet_frame(advertisement, [2, 0, 0, 0, 0, 9], source, Ipv4Checksum::default()).expect("it can be written")
    };
    let right = frame(&advertisement("s3cret", 7));
    let changed = |at: usize, to: u8| {
        let mut frame = right.clone();
        frame[at] = to;
        // The header's checksum, so that it is not that which is refused.
        frame[24..26].fill(0);
        let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    vec![
        ("password", frame(&advertisement("guess", 7))),
        ("ttl_not_255", changed(22, 254)),
        ("checksum", changed(36, 255)),
        ("version", changed(34, 0x31)),
        ("unknown_vrid", frame(&advertisement("s3cret", 99))),
    ]
}
