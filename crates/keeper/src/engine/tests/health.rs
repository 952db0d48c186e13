//! Gateways, links and scripts: when an active copy gives the role away, and when it does not.

use evergate_vrrp::announce;

use super::*;

const QG_LINK: u32 = 12;
const UPLINK: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(2);
const GATEWAY: [u8; 4] = [203, 0, 113, 254];
const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
const RIVAL: u8 = 200;

#[test]
fn a_gateway_that_answers_is_asked_directly_and_the_role_stays() {
    let mut host = active(checks());
    assert_eq!(asked(&host), ["ask all 203.0.113.254"], "as soon as the addresses are there");
    host.rounds(10, answer_v4);
    assert_eq!(host.state(), "active");
    let asked = asked(&host);
    assert_eq!(asked[1], "ask all 203.0.113.254", "nobody has answered yet in the first round");
    assert!(asked[2..].iter().all(|line| line == "ask one 203.0.113.254"), "{asked:?}");
    assert_eq!(asked.len(), 2 + 9, "answers in time spare the second question");
}

#[test]
fn an_active_whose_gateway_falls_silent_resigns_after_so_many_checks_and_not_before() {
    let mut host = active(checks());
    host.rounds(3, answer_v4);
    host.log.clear();
    host.advance(2 * INTERVAL - Duration::from_millis(1));
    assert_eq!(host.state(), "active");
    host.advance(INTERVAL);
    assert_eq!(host.state(), "backup");
    assert!(host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    assert!(host.log.iter().any(|line| line.contains("no answer from gateway 203.0.113.254 on qg-1")));
    assert!(host.log.contains(&"transition standby 1".to_owned()));
    assert_eq!(host.kernel, [""; 0]);
    let silent = host.log.iter().filter(|line| line.starts_with("ask all")).count();
    assert!(silent >= 2, "the second question of a round is to everybody: {:?}", host.log);
}

#[test]
fn one_lost_answer_is_no_loss() {
    let mut host = active(checks());
    host.rounds(3, answer_v4);
    for _ in 0..5 {
        host.advance(INTERVAL);
        host.rounds(1, answer_v4);
    }
    assert_eq!(host.state(), "active");
}

#[test]
fn who_gave_the_role_away_comes_after_everybody_and_takes_it_back_if_nobody_wants_it() {
    let mut host = active(checks());
    host.lose_gateway();
    // Three intervals, the skew of priority 50, and an interval for the one other copy; a rank step and a half.
    let alone = host.until("active");
    assert!(alone.abs_diff(Duration::from_millis(6000 + 804 + 2000 + 94)) < Duration::from_millis(30), "{alone:?}");
    // Nobody else took it, so it keeps it for a turn, which doubles each time.
    for turn in [10, 20, 40].map(Duration::from_secs) {
        let kept = host.until("backup");
        assert!(kept.abs_diff(turn) < Duration::from_millis(30), "{kept:?}, not {turn:?}");
        host.until("active");
    }
}

#[test]
fn when_the_other_has_lost_it_too_the_role_comes_round_at_once() {
    let mut host = active(checks());
    host.lose_gateway();
    host.hear(advertisement(RIVAL, 50));
    host.advance(Duration::from_millis(1900));
    host.hear(advertisement(RIVAL, 50));
    host.hear(resignation());
    host.hear(resignation());
    host.advance(Duration::from_millis(40));
    assert_eq!(host.state(), "active", "as fast as any backup");
    // And goes round again, not sooner than the checks can tell.
    let since = host.now;
    while host.state() == "active" {
        host.advance(Duration::from_millis(100));
    }
    assert!(host.now - since >= 2 * INTERVAL, "{:?}", host.now - since);
}

#[test]
fn of_three_copies_the_one_that_failed_longest_ago_is_next() {
    let spec = |host: &mut Host| {
        host.spec.peers = [201, 202].map(|n| Ipv4Addr::new(169, 254, 192, n)).into();
    };
    let mut host = active(spec);
    host.say(ToKeeper::Settings { settings: health(2) });
    host.lose_gateway();
    for (rival, expected) in [(201, "backup"), (202, "active")] {
        host.hear(advertisement(rival, 50));
        host.hear(resignation_of(rival));
        // The rank of the lowest address comes last of three; a handicap is a whole interval.
        host.advance(Duration::from_millis(500));
        assert_eq!(host.state(), expected, "after {rival}");
    }
}

#[test]
fn an_uplink_without_carrier_moves_the_role_at_once_and_its_return_does_not_move_it_back() {
    let mut host = active(uplink);
    host.say(ToKeeper::Settings { settings: settings() }); // links are watched without any checks
    host.uplink(Some(false));
    host.advance(Duration::from_millis(150));
    assert_eq!(host.state(), "active", "it may be a moment's");
    host.advance(Duration::from_millis(100));
    assert_eq!(host.state(), "backup");
    assert!(host.log.iter().any(|line| line.contains("the uplink below qg-1 has no carrier")), "{:?}", host.log);
    assert!(host.impairment().contains("uplink"));
    host.hear(advertisement(RIVAL, 50));
    host.uplink(Some(true));
    assert_eq!(host.impairment(), "");
    for _ in 0..10 {
        host.advance(Duration::from_secs(2));
        host.hear(advertisement(RIVAL, 50));
    }
    assert_eq!(host.state(), "backup");
}

#[test]
fn a_short_flap_of_the_uplink_is_no_loss() {
    let mut host = active(uplink);
    for _ in 0..20 {
        host.uplink(Some(false));
        host.advance(Duration::from_millis(100));
        host.uplink(Some(true));
        host.rounds(1, answer_v4);
    }
    assert_eq!(host.state(), "active");
}

#[test]
fn a_backup_without_uplink_lets_others_go_first() {
    let takes = |dead: bool| {
        let mut host = Host::new();
        uplink(&mut host);
        host.uplink(Some(!dead));
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        host.hear(advertisement(RIVAL, 50));
        host.hear(resignation());
        let since = host.now;
        while host.state() != "active" {
            host.advance(Duration::from_millis(10));
        }
        host.now - since
    };
    let (well, dead) = (takes(false), takes(true));
    assert!(dead >= well + Duration::from_secs(2), "{well:?}, {dead:?}");
}

#[test]
fn when_all_uplinks_are_dead_a_copy_keeps_the_role_for_a_turn() {
    let mut host = active(uplink);
    host.uplink(Some(false));
    host.advance(Duration::from_millis(250));
    assert_eq!(host.state(), "backup");
    host.hear(advertisement(RIVAL, 50));
    host.hear(resignation());
    let until = host.now + Duration::from_secs(60);
    let mut taken = None;
    while taken.is_none_or(|_| host.state() == "active") && host.now < until {
        host.advance(Duration::from_millis(50));
        if host.state() == "active" {
            taken.get_or_insert(host.now);
        }
    }
    assert!(host.now - taken.expect("it takes it in the end") >= Duration::from_secs(5));
}

#[test]
fn a_copy_that_is_alone_keeps_the_role_and_says_so_once() {
    for alone in [true, false] {
        let mut host = active(|host| {
            checks()(host);
            if alone {
                host.spec.peers.clear();
            } else {
                // The one other host is not heard by BFD.
                host.say(ToKeeper::Settings { settings: Settings { bfd: bfd_settings(300).bfd, ..health(2) } });
                host.spec.peer_hosts = BTreeMap::from([(Ipv4Addr::new(169, 254, 192, RIVAL), THEIRS)]);
            }
        });
        host.advance(20 * INTERVAL);
        assert_eq!(host.state(), "active");
        let told = host.log.iter().filter(|line| line.contains("no other copy is there")).count();
        assert_eq!(told, 1, "{:?}", host.log);
    }
}

#[test]
fn a_part_of_the_gateways_moves_the_role_once_in_a_long_time() {
    let mut host = active(|host| {
        checks()(host);
        host.spec.gateways.push(gateway_v6());
    });
    host.rounds(3, |host| {
        answer_v4(host);
        answer_v6(host);
    });
    host.rounds(3, answer_v4);
    assert_eq!(host.state(), "backup", "IPv6 alone is lost: another copy may have it");
    host.hear(advertisement(RIVAL, 50));
    host.hear(resignation());
    host.advance(Duration::from_millis(40));
    assert_eq!(host.state(), "active", "the other has not");
    host.rounds(250, answer_v4);
    assert_eq!(host.state(), "active", "what works does not suffer for it");
    host.log.clear();
    host.rounds(60, answer_v4);
    assert!(host.log.contains(&"advertise 0".to_owned()), "after ten minutes it is tried again");
}

#[test]
fn time_in_which_we_did_not_run_is_no_silence_of_the_gateway() {
    let mut host = active(checks());
    host.rounds(3, answer_v4);
    for _ in 0..6 {
        // Late by half an interval, and each time the answer was lost meanwhile.
        host.now += INTERVAL + INTERVAL / 2;
        host.engine.handle_timeout(host.now);
        host.settle();
        host.hear(advertisement(9, 50)); // somebody of lower address: answered at once
    }
    assert_eq!(host.state(), "active");
}

#[test]
fn a_script_that_fails_speaks_for_all_gateways() {
    let mut host = active(|host| {
        let mut settings = health(2);
        settings.health.script = Some("/usr/local/bin/check".to_owned());
        host.say(ToKeeper::Settings { settings });
        with_gateway(host);
    });
    assert!(host.log.contains(&"script 203.0.113.254".to_owned()), "{:?}", host.log);
    host.rounds(5, |host| {
        answer_v4(host);
        host.engine.handle_script(R, true);
    });
    assert_eq!(host.state(), "active");
    host.rounds(3, |host| {
        answer_v4(host);
        host.engine.handle_script(R, false);
    });
    assert_eq!(host.state(), "backup");
    assert!(host.log.iter().any(|line| line.contains("no answer from the health check script")), "{:?}", host.log);
}

#[test]
fn without_an_interval_nobody_is_asked_and_with_one_later_everybody_is() {
    let mut host = active(with_gateway);
    host.say(ToKeeper::Settings { settings: settings() });
    host.log.clear();
    host.advance(Duration::from_secs(60));
    assert_eq!(asked(&host), [""; 0]);
    host.say(ToKeeper::Settings { settings: health(1) });
    assert_eq!(asked(&host), ["ask all 203.0.113.254"]);
    // The longest interval that can be written parks nothing.
    host.say(ToKeeper::Settings { settings: health(u32::MAX) });
    host.advance(Duration::from_secs(60));
    assert_eq!(host.state(), "active");
}

#[test]
fn a_backup_asks_nobody() {
    let mut host = Host::new();
    checks()(&mut host);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    for _ in 0..10 {
        host.hear(advertisement(RIVAL, 50));
        host.advance(Duration::from_secs(2));
    }
    assert_eq!((host.state(), asked(&host)), ("backup".to_owned(), Vec::new()));
}

#[test]
fn answers_of_others_and_for_others_do_not_count() {
    let mut host = active(checks());
    host.rounds(1, answer_v4);
    host.rounds(4, |host| host.engine.handle_answer(R, &arp_reply([203, 0, 113, 7])));
    assert_eq!(host.state(), "backup");
    host.engine.handle_answer(RouterId::from_u128(99), &arp_reply(GATEWAY));
}

// What the tests above are made of.

/// Active, with what `prepare` does to the settings and the specification beforehand.
fn active(prepare: impl Fn(&mut Host)) -> Host {
    let mut host = Host::new();
    host.links.insert(QG_LINK, true);
    host.say(ToKeeper::Settings { settings: health(2) });
    with_gateway(&mut host);
    prepare(&mut host);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.log.clear();
    while host.state() != "active" {
        host.advance(Duration::from_millis(10));
    }
    host
}

fn checks() -> impl Fn(&mut Host) {
    |host| {
        host.say(ToKeeper::Settings { settings: health(2) });
        with_gateway(host);
    }
}

fn health(interval_s: u32) -> Settings {
    let health = HealthSettings { interval_s, fall: 2, rise: 2, script: None };
    Settings { health, ..settings() }
}

fn with_gateway(host: &mut Host) {
    host.links.insert(QG_LINK, true);
    host.spec.peers = BTreeSet::from([Ipv4Addr::new(169, 254, 192, RIVAL)]);
    host.spec.gateways = vec![GatewaySpec {
        gateway: GATEWAY.into(),
        link: "qg-1".to_owned(),
        ifindex: QG_LINK,
        mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 9]),
        source: IpAddr::from([203, 0, 113, 9]),
    }];
}

fn gateway_v6() -> GatewaySpec {
    let gateway = "2001:db8::fe".parse().unwrap();
    let source = "2001:db8::9".parse().unwrap();
    GatewaySpec { gateway, link: "qg-1".to_owned(), ifindex: QG_LINK, mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 9]), source }
}

fn uplink(host: &mut Host) {
    with_gateway(host);
    host.spec.uplinks = BTreeSet::from([UPLINK, UPLINK + 1]);
    host.uplink(Some(true));
}

fn resignation() -> Vec<u8> {
    resignation_of(RIVAL)
}

fn resignation_of(last: u8) -> Vec<u8> {
    advertisement(last, 0)
}

fn answer_v4(host: &mut Host) {
    host.engine.handle_answer(R, &arp_reply(GATEWAY));
}

fn answer_v6(host: &mut Host) {
    let frame = announce::unsolicited_advertisement(GATEWAY_MAC, "2001:db8::fe".parse().unwrap(), true);
    host.engine.handle_answer(R, &frame);
}

fn arp_reply(of: [u8; 4]) -> Vec<u8> {
    // Destination, source, ARP; Ethernet and IPv4 and their lengths, reply; who has what.
    let mut frame = vec![0xfa, 0x16, 0x3e, 0, 0, 9];
    frame.extend(GATEWAY_MAC);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(GATEWAY_MAC);
    frame.extend(of);
    frame.extend([0xfa, 0x16, 0x3e, 0, 0, 9, 203, 0, 113, 9]);
    frame
}

/// A question to a gateway, in words.
pub(super) fn described(frame: &[u8]) -> Option<String> {
    let to = if frame[0] & 1 == 1 { "all" } else { "one" };
    match frame[12..14] {
        // Gratuitous ARP asks for its own sender.
        [0x08, 0x06] if frame[28..32] != frame[38..42] => {
            let target: [u8; 4] = frame[38..42].try_into().ok()?;
            Some(format!("ask {to} {}", Ipv4Addr::from(target)))
        }
        [0x86, 0xdd] if frame[54] == 135 => Some(format!("ask {to} IPv6")),
        _ => None,
    }
}

fn asked(host: &Host) -> Vec<String> {
    host.log.iter().filter(|line| line.starts_with("ask ")).cloned().collect()
}

impl Host {
    /// So many intervals, in each of which `answer` is given soon after the questions.
    fn rounds(&mut self, count: u32, answer: impl Fn(&mut Self)) {
        for _ in 0..count {
            let end = self.now + INTERVAL;
            let asked = |host: &Self| host.log.iter().filter(|line| line.starts_with("ask ")).count();
            let before = asked(self);
            while self.now < end && asked(self) == before {
                self.advance(Duration::from_millis(10));
            }
            answer(self);
            if let Some(left) = end.checked_duration_since(self.now) {
                self.advance(left);
            }
        }
    }

    fn lose_gateway(&mut self) {
        self.rounds(1, answer_v4);
        let end = self.now + 5 * INTERVAL;
        while self.state() == "active" {
            assert!(self.now < end, "it does not give the role away: {:?}", self.log);
            self.advance(Duration::from_millis(10));
        }
    }

    /// Lets time pass until the copy is in this state; tells how much.
    fn until(&mut self, state: &str) -> Duration {
        let start = self.now;
        while self.state() != state {
            assert!(self.now < start + Duration::from_secs(120), "never {state}: {:?}", self.log);
            self.advance(Duration::from_millis(10));
        }
        self.now - start
    }

    fn uplink(&mut self, up: Option<bool>) {
        self.engine.handle_host_link(UPLINK, up, self.now);
        self.settle();
    }

    fn impairment(&self) -> String {
        self.engine.status().routers[0].impairment.clone()
    }
}
