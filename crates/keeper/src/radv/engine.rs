//! When a router advertises itself on one link, without I/O or clock: RFC 4861 §6.2.
//!
//! Call [`Advertiser::handle_solicitation`] and [`Advertiser::handle_config`] as things happen, and
//! [`Advertiser::handle_timeout`] when [`Advertiser::poll_timeout`] says; after each, take what is to be sent
//! from [`Advertiser::poll_output`] until there is nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;

use super::message::{Advertisement, Prefix, To};

// RFC 4861 §10.
const MAX_INITIAL_RTR_ADVERT_INTERVAL: Duration = Duration::from_secs(16);
const MAX_INITIAL_RTR_ADVERTISEMENTS: u8 = 3;
const MIN_DELAY_BETWEEN_RAS: Duration = Duration::from_secs(3);
const MAX_RA_DELAY_TIME: Duration = Duration::from_millis(500);

/// Who asks while so many wait for their answers is answered together with everybody.
const MAX_ANSWERS: usize = 64;

/// How often a withdrawn prefix is told to be out of use: as often as news are told.
const WITHDRAWALS: u8 = MAX_INITIAL_RTR_ADVERTISEMENTS;

/// What is advertised, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// `MinRtrAdvInterval` and `MaxRtrAdvInterval`.
    pub(super) interval: (Duration, Duration),
    pub(super) advertisement: Advertisement,
}

/// The advertising of one link.
#[derive(Debug)]
pub(super) struct Advertiser {
    config: Config,
    random: Random,
    /// When everybody is told next.
    next: Instant,
    last: Option<Instant>,
    /// How many more are sent in quick succession.
    initial: u8,
    answers: BTreeMap<Ipv6Addr, ([u8; 6], Instant)>,
    /// Prefixes that are not advertised any more, and how often that is still to be told.
    withdrawn: BTreeMap<Ipv6Net, (Prefix, u8)>,
    output: VecDeque<(To, Advertisement)>,
}

impl Advertiser {
    /// Begins to advertise, at once.
    pub(super) fn new(config: Config, seed: u64, now: Instant) -> Self {
        let mut new = Self {
            config,
            random: Random(seed),
            next: now,
            last: None,
            initial: MAX_INITIAL_RTR_ADVERTISEMENTS,
            answers: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
            output: VecDeque::new(),
        };
        new.handle_timeout(now);
        new
    }

    /// Takes what is to be advertised from now on. Changes are told as a beginning is.
    pub(super) fn handle_config(&mut self, config: Config, now: Instant) {
        if config == self.config {
            return;
        }
        let old = std::mem::replace(&mut self.config, config);
        let wanted = |net: Ipv6Net| self.config.advertisement.prefixes.iter().any(|prefix| prefix.net == net);
        for prefix in old.advertisement.prefixes {
            if !wanted(prefix.net) {
                self.withdrawn.insert(prefix.net, (prefix, WITHDRAWALS));
            }
        }
        let readvertised: Vec<Ipv6Net> = self.withdrawn.keys().copied().filter(|net| wanted(*net)).collect();
        for net in readvertised {
            self.withdrawn.remove(&net);
        }
        self.initial = MAX_INITIAL_RTR_ADVERTISEMENTS;
        self.next = self.earliest(now);
        self.handle_timeout(now);
    }

    /// Takes a solicitation: who asks with an address is answered alone, others with everybody.
    pub(super) fn handle_solicitation(&mut self, asker: To, now: Instant) {
        // RFC 4861 §6.2.6: after a random delay, so that routers on one link do not answer at once.
        let at = now + self.random.below(MAX_RA_DELAY_TIME);
        match asker {
            To::One { ip, .. } if self.answers.contains_key(&ip) => {}
            To::One { mac, ip } if self.answers.len() < MAX_ANSWERS => drop(self.answers.insert(ip, (mac, at))),
            // RFC 4861 §6.2.6: to everybody no more often than once in MIN_DELAY_BETWEEN_RAS.
            To::One { .. } | To::All => self.next = self.next.min(self.earliest(at)),
        }
    }

    /// Sends what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.next <= now {
            self.tell_everybody(now);
        }
        let due: Vec<Ipv6Addr> = self.answers.iter().filter(|(_, (_, at))| *at <= now).map(|(ip, _)| *ip).collect();
        for ip in due {
            if let Some((mac, _)) = self.answers.remove(&ip) {
                self.output.push_back((To::One { mac, ip }, self.advertisement()));
            }
        }
    }

    /// The router ceases to be one on this link: RFC 4861 §6.2.5.
    pub(super) fn handle_end(&mut self) {
        let advertisement = Advertisement { router_lifetime: Duration::ZERO, ..self.advertisement() };
        self.output.push_back((To::All, advertisement));
    }

    /// When to call `handle_timeout`.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.answers.values().map(|(_, at)| *at).fold(self.next, Instant::min)
    }

    /// What to send.
    pub(super) fn poll_output(&mut self) -> Option<(To, Advertisement)> {
        self.output.pop_front()
    }

    fn tell_everybody(&mut self, now: Instant) {
        self.output.push_back((To::All, self.advertisement()));
        self.withdrawn.retain(|_, (_, left)| {
            *left -= 1;
            *left > 0
        });
        // Everybody includes those that wait.
        self.answers.clear();
        self.last = Some(now);
        let (least, most) = self.config.interval;
        let mut interval = least + self.random.below(most.saturating_sub(least));
        self.initial = self.initial.saturating_sub(1);
        if self.initial > 0 {
            interval = interval.min(MAX_INITIAL_RTR_ADVERT_INTERVAL);
        }
        self.next = now + interval.max(MIN_DELAY_BETWEEN_RAS);
    }

    fn advertisement(&self) -> Advertisement {
        let mut advertisement = self.config.advertisement.clone();
        // RFC 4862 §5.5.3: a valid lifetime of zero would be ignored; to be preferred no longer is heeded at once.
        let out_of_use = |(prefix, _): &(Prefix, u8)| Prefix { preferred: Duration::ZERO, ..*prefix };
        advertisement.prefixes.extend(self.withdrawn.values().map(out_of_use));
        advertisement
    }

    fn earliest(&self, at: Instant) -> Instant {
        self.last.map_or(at, |last| at.max(last + MIN_DELAY_BETWEEN_RAS))
    }
}

/// Spreads what many routers do at the same time: splitmix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: Duration) -> Duration {
        let limit = limit.as_millis() as u64;
        Duration::from_millis(self.next() % limit.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn prefix(net: &str) -> Prefix {
        let (valid, preferred) = (86400 * SECOND, 14400 * SECOND);
        Prefix { net: net.parse().unwrap(), autonomous: true, valid, preferred }
    }

    fn config(nets: &[&str]) -> Config {
        let prefixes = nets.iter().map(|net| prefix(net)).collect();
        let advertisement = Advertisement { router_lifetime: 300 * SECOND, prefixes, ..Advertisement::default() };
        Config { interval: (30 * SECOND, 100 * SECOND), advertisement }
    }

    fn asker(last: u16) -> To {
        To::One { mac: [2, 0, 0, 0, 0, 9], ip: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last) }
    }

    /// Lets the time pass, and says what was sent when.
    fn run(advertiser: &mut Advertiser, from: Instant, until: Instant) -> Vec<(Duration, To, Advertisement)> {
        let mut sent = Vec::new();
        let mut now = from;
        loop {
            while let Some((to, advertisement)) = advertiser.poll_output() {
                sent.push((now - from, to, advertisement));
            }
            now = advertiser.poll_timeout();
            if now > until {
                return sent;
            }
            advertiser.handle_timeout(now);
        }
    }

    fn times(sent: &[(Duration, To, Advertisement)]) -> Vec<Duration> {
        sent.iter().filter(|(_, to, _)| *to == To::All).map(|(at, _, _)| *at).collect()
    }

    #[test]
    fn it_begins_at_once_repeats_soon_and_settles_between_its_two_intervals() {
        for seed in 0..50 {
            let start = Instant::now();
            let mut advertiser = Advertiser::new(config(&[]), seed, start);
            let times = times(&run(&mut advertiser, start, start + 3600 * SECOND));
            assert_eq!(times[..3], [Duration::ZERO, 16 * SECOND, 32 * SECOND]);
            let gaps: Vec<Duration> = times[2..].windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().all(|gap| (30 * SECOND..=100 * SECOND).contains(gap)), "{times:?}");
            assert!(*gaps.iter().max().unwrap() > *gaps.iter().min().unwrap() + 5 * SECOND, "{times:?}");
        }
    }

    #[test]
    fn who_asks_is_answered_alone_within_half_a_second() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(config(&[]), 7, start);
        run(&mut advertiser, start, start + SECOND);
        let asked = start + SECOND;
        advertiser.handle_solicitation(asker(1), asked);
        advertiser.handle_solicitation(asker(1), asked);
        advertiser.handle_solicitation(asker(2), asked);
        let sent = run(&mut advertiser, asked, asked + SECOND);
        let mut askers: Vec<To> = sent.iter().map(|(_, to, _)| *to).collect();
        askers.sort();
        assert_eq!(askers, [asker(1), asker(2)]);
        assert!(sent.iter().all(|(at, _, _)| *at <= MAX_RA_DELAY_TIME));
    }

    #[test]
    fn many_that_ask_are_answered_together_and_never_in_a_rush() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(config(&[]), 7, start);
        let mut sent = run(&mut advertiser, start, start);
        for tenth in 1..100 {
            let now = start + tenth * (SECOND / 10);
            (0..1000).for_each(|last| advertiser.handle_solicitation(asker(last), now));
            advertiser.handle_solicitation(To::All, now);
            for (_, to, advertisement) in run(&mut advertiser, now, now + SECOND / 10 - Duration::from_millis(1)) {
                sent.push((now - start, to, advertisement));
            }
        }
        let to_all = times(&sent);
        assert!(to_all.len() >= 3, "{to_all:?}");
        assert!(to_all.windows(2).all(|pair| pair[1] - pair[0] >= MIN_DELAY_BETWEEN_RAS - SECOND / 10), "{to_all:?}");
        assert!(sent.len() < 100 * MAX_ANSWERS, "the rest is answered together");
    }

    #[test]
    fn news_are_told_soon_and_a_withdrawn_prefix_is_put_out_of_use() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(config(&["2001:db8:1::/64", "2001:db8:2::/64"]), 7, start);
        run(&mut advertiser, start, start + 500 * SECOND);
        let now = start + 500 * SECOND;
        advertiser.handle_config(config(&["2001:db8:2::/64", "2001:db8:3::/64"]), now);
        let sent = run(&mut advertiser, now, now + 300 * SECOND);
        assert!(sent[0].0 <= MIN_DELAY_BETWEEN_RAS, "{sent:?}");
        let preferred = |at: usize| -> Vec<(String, u64)> {
            let prefixes = sent[at].2.prefixes.iter();
            prefixes.map(|prefix| (prefix.net.to_string(), prefix.preferred.as_secs())).collect()
        };
        let stays = [("2001:db8:2::/64".to_owned(), 14400), ("2001:db8:3::/64".to_owned(), 14400)];
        for at in 0..3 {
            assert_eq!(preferred(at), [stays.as_slice(), &[("2001:db8:1::/64".to_owned(), 0)]].concat());
        }
        assert_eq!(preferred(3), stays);
        // The same again is no news.
        let due = advertiser.poll_timeout();
        advertiser.handle_config(config(&["2001:db8:2::/64", "2001:db8:3::/64"]), now);
        assert_eq!((advertiser.poll_timeout(), advertiser.poll_output()), (due, None));
    }

    #[test]
    fn at_the_end_it_says_that_it_is_no_default_router_any_more() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(config(&["2001:db8:1::/64"]), 7, start);
        run(&mut advertiser, start, start);
        advertiser.handle_end();
        let (to, last) = advertiser.poll_output().unwrap();
        assert_eq!((to, last.router_lifetime, last.prefixes.len()), (To::All, Duration::ZERO, 1));
    }
}
