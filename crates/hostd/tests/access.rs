//! How a host is let in by its server while other things go on: certificates that are asked for, and letters that must
//! not wait for them.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod server;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use evergate_config::{Config, HostSettings, Role};
use evergate_hostd::shell::Event;
use evergate_hostd::shell::http::Access;
use evergate_hostd::shell::letters::Letters;
use evergate_hostd::shell::poster::Poster;
use evergate_model::HostReport;
use evergate_model::stream::Letter;
use server::{IN_LONG, Server};

/// More than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The threads of a host that speak with its server; they end with the test's process.
struct Host {
    folder: PathBuf,
    server: Server,
    access: Access,
    poster: Poster,
    letters: Letters,
    reports: u64,
    _events: Receiver<Event>,
}

impl Host {
    fn start(name: &str, prepare: impl FnOnce(&Server)) -> Self {
        let folder = std::env::temp_dir().join(format!("evergate-access-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let server = Server::start();
        prepare(&server);
        server.write_token(&folder.join("token"));
        let text = format!(
            "[DEFAULT]\nhost = network1\nstate_path = {0}/state\n\
             [evergate]\nserver_url = {1}\njoin_token_file = {0}/token\n",
            folder.display(),
            server.url()
        );
        let config = Config::from_texts(&[("test.conf".into(), text)], "network1", Role::Host, Vec::new()).unwrap();
        let access = Access::new(&HostSettings::from_config(&config), 0);
        let (sender, events) = channel();
        let poster = Poster::start(access.clone(), sender.clone(), 0).unwrap();
        let letters = Letters::start(access.clone(), &sender).unwrap();
        Self { folder, server, access, poster, letters, reports: 0, _events: events }
    }

    fn report(&mut self) {
        self.reports += 1;
        self.poster.post(Box::new(HostReport { sequence: self.reports, ..HostReport::default() }));
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives letters to the server until the certificate is the one that ends then: some may get lost.
    fn post_letters_until_member_until(&self, expires_at: i64) {
        let is_it = |host: &Self| {
            host.post_letter();
            host.access.present().is_ok_and(|member| member.expires_at_ms() == ms(expires_at))
        };
        self.wait("there is another certificate", is_it);
    }

    fn post_letter(&self) {
        self.letters.post(Letter { peer: [192, 0, 2, 12].into(), datagram: "0a".to_owned() });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// In seconds since the Unix epoch: a certificate that ends then is due to be renewed now.
fn tomorrow() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now + Duration::from_secs(24 * 60 * 60)).as_secs().try_into().unwrap()
}

fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap() * 1000
}

#[test]
fn a_host_that_was_refused_for_a_while_renews_its_certificate_when_it_is_accepted_again() {
    let mut host = Host::start("refused", |server| {
        server.admit_until(tomorrow());
        server.deny(true);
    });
    host.report();
    host.wait("it is refused", |host| host.server.denied() > 0);
    host.server.deny(false);
    host.wait("it is given another certificate", |host| host.server.certificates() == (1, 1));
    host.wait("that is in use", |host| host.access.present().unwrap().expires_at_ms() == ms(IN_LONG));
}

#[test]
fn letters_do_not_wait_while_a_certificate_is_renewed() {
    let mut host = Host::start("renewed", |server| {
        server.admit_until(tomorrow());
        server.certify_after_letters();
    });
    host.report();
    host.wait("the next certificate is asked for", |host| host.server.waiting() > 0);
    host.post_letters_until_member_until(IN_LONG);
    assert_eq!(host.server.certificates(), (1, 1));
}

#[test]
fn letters_do_not_wait_while_a_host_joins_anew() {
    let mut host = Host::start("joined", Server::certify_after_letters);
    host.report();
    host.wait("it joins", |host| host.server.certificates() == (1, 0) && !host.folder.join("token").exists());
    let tomorrow = tomorrow();
    host.server.admit_until(tomorrow);
    host.server.deny(true);
    host.server.write_token(&host.folder.join("token"));
    host.report();
    host.wait("it joins again", |host| host.server.waiting() > 0);
    host.post_letters_until_member_until(tomorrow);
    assert_eq!(host.server.certificates(), (2, 0));
}
