//! Changed and impossible configurations.

use super::*;

#[test]
fn an_unchanged_configuration_changes_nothing() {
    for mut bench in [Bench::backup(v2()), Bench::active(v2())] {
        bench.wait(SECOND);
        let before = bench.timers();
        bench.configure(bench.router.config().clone());
        assert_eq!((bench.drain(), bench.timers()), (vec![], before));
    }
}

#[test]
fn a_change_that_does_not_touch_the_wait_keeps_a_shortened_timer() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 0);
    bench.wait(500 * MS);
    bench.hear(OTHER, 0);
    let before = bench.left();
    bench.configure(Config { preempt: true, ..v2() });
    assert_eq!(bench.left(), before);
}

#[test]
fn an_active_advertises_at_once_what_changed_without_a_transition() {
    let mut bench = Bench::active(v2());
    bench.wait(SECOND);
    bench.configure(Config { advertise_interval_cs: 500, priority: 60, ..v2() });
    assert_eq!(bench.drain(), [transmit(&bench)]);
    assert_eq!(bench.timers()[0], (Timer::Adver, 5 * SECOND));
}

#[test]
fn a_backup_starts_to_wait_anew_when_the_interval_changes() {
    // An active that kept 10 s until now has not missed anything.
    let mut bench = Bench::backup(Config { advertise_interval_cs: 1000, ..v2() });
    bench.wait(9 * SECOND);
    bench.configure(v2());
    assert_eq!(bench.left().1, 6 * SECOND + SECOND * 206 / 256);
    assert_eq!(bench.drain(), []);
}

#[test]
fn a_v3_backup_keeps_what_it_learned_when_its_own_interval_changes() {
    let mut bench = Bench::backup(v3());
    bench.hear_interval(OTHER, 50, 1000);
    bench.configure(Config { advertise_interval_cs: 100, ..v3() });
    assert_eq!(bench.left().1, 30 * SECOND + 10 * SECOND * 206 / 256);
}

#[test]
fn another_vrid_or_address_family_is_another_router() {
    let mut expected = left_active(Reason::Reconfigured);
    expected.push(changed(State::Initialize, State::Backup, Reason::Startup));
    let mut bench = Bench::active(v2());
    bench.configure(Config { vrid: Vrid::new(7).unwrap(), ..v2() });
    assert_eq!(bench.drain(), expected);
    let mut bench = Bench::active(v3());
    let ipv6 = Config { primary_address: addr("fe80::9"), addresses: vec![addr("fe80::1")], ..v3() };
    bench.configure(ipv6);
    let outputs = bench.drain();
    let moves = |outputs: &[Output]| -> Vec<Output> {
        outputs.iter().filter(|output| !matches!(output, Output::Transmit(_))).cloned().collect()
    };
    assert_eq!(moves(&outputs), moves(&expected));
    assert!(matches!(&outputs[0], Output::Transmit(last) if last.priority == 0 && last.addresses == v3().addresses));
    // One that does not take part is not started.
    let mut bench = Bench::new(v2());
    bench.configure(v3());
    assert_eq!(bench.router.state(), State::Initialize);
}

#[test]
fn impossible_configurations_are_refused_with_the_reason() {
    assert_eq!(v2().validate(), Ok(()));
    assert_eq!(Config { priority: 0, ..v2() }.validate(), Err(InvalidConfig::PriorityZero));
    let password = Some(*b"secret\0\0");
    assert_eq!(Config { password, ..v3() }.validate(), Err(InvalidConfig::PasswordInVersion3));
    for config in [
        Config { advertise_interval_cs: 150, ..v2() },
        Config { advertise_interval_cs: 0, ..v3() },
        Config { advertise_interval_cs: 4096, ..v3() },
        Config { addresses: vec![], ..v2() },
        Config { addresses: vec![addr("fe80::1")], ..v2() },
    ] {
        assert!(matches!(config.validate(), Err(InvalidConfig::Unsendable(_))), "{config:?}");
    }
}

#[test]
fn neutrons_configuration_is_valid_and_its_address_comes_from_the_vrid() {
    let config = Config::neutron(Vrid::new(143).unwrap(), "169.254.192.10".parse().unwrap());
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(config.addresses, [addr("169.254.0.143")]);
}

#[test]
fn what_a_router_sends_its_twin_accepts() {
    for config in [v2(), Config { password: Some(*b"secret\0\0"), ..v2() }, v3()] {
        let mut bench = Bench::new(config.clone());
        bench.router.handle_adopt_active(bench.now);
        let outputs = bench.drain();
        let Some(Output::Transmit(adv)) = outputs.first() else { panic!("{outputs:?}") };
        let frame = crate::wire::ethernet_frame(adv, [2; 6], config.primary_address, Ipv4Checksum::default()).unwrap();
        let twin = Config { primary_address: addr(HIGHER), ..config };
        let received = crate::wire::parse_frame(&frame, &twin.expectation()).unwrap();
        assert_eq!(&received.advertisement, adv);
    }
}

#[test]
fn a_configured_password_is_never_printed() {
    let printed = format!("{:?}", Config { password: Some(*b"secret\0\0"), ..v2() });
    assert!(printed.contains("<hidden>") && !printed.contains("115"), "{printed}");
}

#[test]
fn a_status_reads_as_a_sentence() {
    let mut bench = Bench::backup(v2());
    bench.hear(OTHER, 50);
    assert_eq!(bench.router.status(bench.now).to_string(), "Backup, heard 10.0.0.1, ActiveDown in 6.8046875s");
}
