use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn host(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))
}

fn rules() -> Rules {
    Rules { listen: 20 * MS, patience: 300 * MS, serve_alone: false }
}

#[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn of_two_claims_each_side_thinks_the_same() {
    let claims = [(3, 1), (3, 2), (4, 1)].map(|(epoch, n)| Claim { epoch, host: host(n) });
    for a in claims {
        for b in claims.into_iter().filter(|b| b.host != a.host) {
            let stays = |own, other| standing(own, other) != Standing::Newer;
            assert_ne!(stays(a, b), stays(b, a), "{a:?} and {b:?}");
        }
    }
}

#[test]
fn the_silence_of_one_host_among_others_is_believed_after_a_moment() {
    let now = start();
    let mut inquiry = Inquiry::ask(rules(), Some(host(1)), true, false, now);
    assert!(inquiry.take_question(now) && !inquiry.take_question(now + MS));
    inquiry.handle_answer(Answer { speaker: host(3), active: false }, now + MS);
    assert_eq!(inquiry.verdict(now + 20 * MS), None, "the wait on the HA network is not over");
    inquiry.handle_due();
    assert_eq!(inquiry.verdict(now + 19 * MS), None);
    assert_eq!(inquiry.verdict(now + 20 * MS), Some(Verdict::TakeOver));
}

#[test]
fn whoever_says_that_it_is_active_is_left_alone_by_whatever_way_it_says_so() {
    let now = start();
    for speaker in [1, 3] {
        let mut inquiry = Inquiry::ask(rules(), Some(host(1)), true, false, now);
        inquiry.handle_answer(Answer { speaker: host(speaker), active: true }, now);
        assert_eq!(inquiry.verdict(now), Some(Verdict::Stay(Stay::Lives(host(speaker)))));
    }
}

#[test]
fn a_host_that_lives_but_gave_up_is_not_waited_for() {
    let now = start();
    let mut inquiry = Inquiry::ask(rules(), Some(host(1)), true, true, now);
    inquiry.handle_due();
    assert_eq!(inquiry.verdict(now + 100 * MS), None, "it was seen: its answer is on its way");
    inquiry.handle_answer(Answer { speaker: host(1), active: false }, now + 15 * MS);
    assert_eq!(inquiry.verdict(now + 100 * MS), Some(Verdict::TakeOver));
}

#[test]
fn a_copy_that_nobody_answers_stays_unless_the_setting_says_otherwise_or_there_is_nobody() {
    let now = start();
    let isolated = Verdict::Stay(Stay::Isolated);
    for (company, serve_alone, after, verdict) in
        [(true, false, 300, isolated), (true, true, 300, Verdict::TakeOver), (false, false, 20, Verdict::TakeOver)]
    {
        let mut inquiry = Inquiry::ask(Rules { serve_alone, ..rules() }, Some(host(1)), company, false, now);
        inquiry.handle_due();
        assert_eq!(inquiry.verdict(now + (after - 1) * MS), None);
        assert_eq!(inquiry.verdict(now + after * MS), Some(verdict));
    }
}

#[test]
fn what_comes_by_way_of_the_server_can_only_prevent_a_takeover() {
    let now = start();
    let ask = |company| {
        let mut inquiry = Inquiry::ask(rules(), Some(host(1)), company, false, now);
        inquiry.handle_due();
        inquiry
    };
    let answer = |active| Answer { speaker: host(1), active };
    let lives = Some(Verdict::Stay(Stay::Lives(host(1))));

    // Of two hosts. A sign of life is waited upon, but not for ever.
    let mut inquiry = ask(false);
    assert_eq!(inquiry.verdict(now + 20 * MS), Some(Verdict::TakeOver), "a server that says nothing delays nobody");
    inquiry.handle_sign_by_server(false);
    assert_eq!(inquiry.verdict(now + 299 * MS), None);
    assert_eq!(inquiry.poll_timeout().map(|at| at - now), Some(Duration::ZERO), "it is asked again meanwhile");
    assert_eq!(inquiry.verdict(now + 300 * MS), Some(Verdict::TakeOver));
    inquiry.handle_answer_by_server(answer(true), false);
    assert_eq!(inquiry.verdict(now + 20 * MS), lives);
    inquiry.handle_answer_by_server(answer(false), false);
    assert_eq!(inquiry.verdict(now + 20 * MS), Some(Verdict::TakeOver));
    let mut other = ask(false);
    other.expect_server();
    assert_eq!((other.verdict(now + 299 * MS), other.verdict(now + 300 * MS)), (None, Some(Verdict::TakeOver)));

    // A witness answers here: then the active is left the role if it is not the one that is alone.
    for (hears_others, verdict) in [(false, Some(Verdict::TakeOver)), (true, lives)] {
        let mut inquiry = ask(true);
        inquiry.handle_answer(Answer { speaker: host(3), active: false }, now);
        inquiry.handle_sign_by_server(hears_others);
        assert_eq!(inquiry.verdict(now + 20 * MS), verdict.filter(|_| !hears_others));
        inquiry.handle_answer_by_server(answer(true), hears_others);
        assert_eq!(inquiry.verdict(now + 20 * MS), verdict);
    }

    // Whoever is cut off is not made active by it.
    let mut inquiry = ask(true);
    inquiry.handle_answer_by_server(answer(false), true);
    assert_eq!(inquiry.verdict(now + 300 * MS), Some(Verdict::Stay(Stay::Isolated)));
}

#[test]
fn when_the_first_way_is_back_the_others_get_time_to_be_back() {
    let now = start();
    let mut inquiry = Inquiry::ask(rules(), None, true, true, now);
    inquiry.handle_due();
    inquiry.handle_answer(Answer { speaker: host(3), active: false }, now + 290 * MS);
    inquiry.handle_hint(host(2), now + 290 * MS);
    assert!(inquiry.take_question(now + 290 * MS), "the host that was named is asked at once");
    assert_eq!(inquiry.suspect(), Some(host(2)));
    assert_eq!(inquiry.verdict(now + 310 * MS), None);
    let mut dead = inquiry.clone();
    inquiry.handle_answer(Answer { speaker: host(2), active: true }, now + 320 * MS);
    assert_eq!(inquiry.verdict(now + 320 * MS), Some(Verdict::Stay(Stay::Lives(host(2)))));
    dead.handle_answer(Answer { speaker: host(4), active: false }, now + 500 * MS);
    assert_eq!(dead.verdict(now + 589 * MS), None);
    assert_eq!(dead.verdict(now + 590 * MS), Some(Verdict::TakeOver));
}

/// Runs until something is said or `until` is over; returns what, and whom were asked.
fn run(company: &mut Company, now: &mut Instant, until: Instant) -> (Option<News>, Vec<usize>) {
    let mut asked = Vec::new();
    while let Some(at) = company.poll_timeout().filter(|at| *at <= until) {
        *now = (*now).max(at);
        match company.handle_timeout(*now) {
            Some(News::Ask(hosts)) => asked.push(hosts.len()),
            Some(news) => return (Some(news), asked),
            None => {}
        }
    }
    (None, asked)
}

#[test]
fn an_active_that_loses_all_company_asks_and_is_then_alone() {
    let mut now = start();
    let mut company = Company::default();
    company.configure((1..=8).map(host).collect(), 900 * MS, 300 * MS);
    company.set_serving(true);
    assert_eq!(run(&mut company, &mut now, start() + 5 * UPKEEP).0, None, "whoever never had any, cannot lose it");

    let mut company = Company::default();
    company.configure((1..=8).map(host).collect(), 900 * MS, 300 * MS);
    company.set_serving(true);
    let heard = now;
    for n in [1, 2] {
        assert_eq!(company.heard(host(n), heard), None);
    }
    company.handle_timeout(heard);
    let (news, asked) = run(&mut company, &mut now, heard + 5000 * MS);
    assert_eq!((news, asked), (Some(News::Alone), vec![5; 5]));
    assert_eq!(now, heard + 1200 * MS);
    assert_eq!(company.heard(host(9), now), None, "a host that does not count");
    assert_eq!(company.heard(host(2), now), Some(News::Accompanied));
}

#[test]
fn of_two_hosts_none_knows_that_it_is_cut_off() {
    let mut now = start();
    let mut company = Company::default();
    company.configure((1..=8).map(host).collect(), 900 * MS, 300 * MS);
    company.set_serving(true);
    company.heard(host(1), now);
    company.handle_timeout(now);
    assert_eq!(run(&mut company, &mut now, start() + 5000 * MS), (None, vec![5; 5]));
}

#[test]
fn an_answer_ends_the_doubt() {
    let mut now = start();
    let mut company = Company::default();
    company.configure([host(1), host(2)].into(), 900 * MS, 300 * MS);
    company.set_serving(true);
    company.heard(host(1), now);
    company.handle_timeout(now);
    now += 1000 * MS;
    assert!(matches!(company.handle_timeout(now), Some(News::Ask(_))));
    company.heard(host(2), now);
    let (news, asked) = run(&mut company, &mut now, start() + 1800 * MS);
    assert_eq!((news, asked), (None, vec![]));
    assert!(company.has_others(Some(host(1)), now) && !company.is_alone());
    assert!(!company.has_others(None, now + 61_000 * MS), "long ago");
}

#[test]
fn a_standby_only_keeps_in_touch() {
    let mut now = start();
    let mut company = Company::default();
    company.configure((1..=3).map(host).collect::<BTreeSet<_>>(), 900 * MS, 300 * MS);
    company.handle_timeout(now);
    let (news, asked) = run(&mut company, &mut now, start() + 35_000 * MS);
    assert_eq!((news, asked), (None, vec![2; 3]));
}

const UPKEEP: Duration = Duration::from_secs(10);
