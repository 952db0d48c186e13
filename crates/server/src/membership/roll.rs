//! The roll: join tokens, and the certificates that hosts were given. Functions over one transaction.
//!
//! Rules:
//!
//! - a token without a host's name lets in any host that is new, for as long as it lasts. It lets nobody take the place
//!   of a host that is or ever was there: that takes a token with the host's name, so the name of one that was revoked,
//!   lapsed or went away is not free for whoever has a token for a rack;
//! - a host that is revoked loses its own tokens, too;
//! - who comes again with the same key gets a certificate again: its answer was lost on the way;
//! - a host has two certificates at most, the one that it uses and the next;
//! - only a certificate that counts now is renewed: what let the request in may have been older than its revocation.

use evergate_model::join::{JoinRequest, JoinToken};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::authority::{Authority, AuthorityError, Issued};
use super::{Certificate, Standing};
use crate::identity::to_hex;
use crate::random;
use crate::store::{StoreError, Tx, TxError, timestamp_text};
use crate::values;

/// Name of the setting that is another after each change of the certificates.
const VERSION: &str = "cluster.certificates_version";

/// Longest name of a host that is taken.
const LONGEST_NAME: usize = 255;

/// Why a host is not let in. Each says what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No certificate can be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The name cannot be a host's.
    #[error("'{0}' cannot be a host's name: 1 to 255 letters without blanks or any of / ? # %")]
    Name(String),
    /// There is no such token, or its secret is another.
    #[error(
        "the join token is not known here: it was revoked, or is another cluster's. Make one on the controller: \
             evergate cluster token create"
    )]
    UnknownToken,
    /// It had its time.
    #[error(
        "the join token expired at {0} by the server's clock. Make one on the controller: evergate cluster token create"
    )]
    ExpiredToken(String),
    /// It is somebody else's.
    #[error(
        "the join token is for host '{expected}', and this host is called '{host}' (option host in section [DEFAULT])"
    )]
    OtherHost {
        /// The token's host.
        expected: String,
        /// The one that came.
        host: String,
    },
    /// The name is taken.
    #[error(
        "host '{0}' is a member already, with another key. To let this machine take its place, make a token with \
             its name on the controller: evergate cluster token create --host {0}"
    )]
    Taken(String),
    /// The name was a host's before.
    #[error(
        "there was a host '{0}' here before, and this token is for new ones. To let it in again, make a token with its \
             name on the controller: evergate cluster token create --host {0}"
    )]
    Known(String),
    /// The certificate that is to be renewed does not count any more.
    #[error("the certificate that is to be renewed counts no more")]
    Dismissed(Standing),
}

impl TxError for Refusal {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Authority(error) => error.store_error(),
            Self::Name(_)
            | Self::UnknownToken
            | Self::ExpiredToken(_)
            | Self::OtherHost { .. }
            | Self::Taken(_)
            | Self::Known(_)
            | Self::Dismissed(_) => None,
        }
    }
}

/// Why a certificate counts no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The host joined anew, perhaps as another machine.
    Replaced,
    /// An operator revoked it.
    Revoked,
}

impl Revoked {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Revoked => "revoked",
        }
    }

    pub(super) fn from_word(word: &str) -> Self {
        if word == Self::Replaced.as_str() { Self::Replaced } else { Self::Revoked }
    }
}

/// A token that was asked for.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The token, to be told once.
    pub token: JoinToken,
    /// When it ends.
    pub expires_at: String,
}

/// Makes a token: for one host, or for any that is new.
///
/// # Errors
///
/// When the name cannot be a host's, or the store fails.
pub fn make_token(
    tx: &Tx<'_>,
    authority: &Authority,
    host: Option<&str>,
    lasts: SignedDuration,
) -> Result<NewToken, Refusal> {
    host.map_or(Ok(()), check_name)?;
    let token = JoinToken {
        id: to_hex(&random::bytes::<8>()),
        secret: random::secret_hex(),
        authority: authority.fingerprint(),
    };
    let expires_at = timestamp_text(tx.now().checked_add(lasts).unwrap_or(Timestamp::MAX));
    // Whoever makes a new one sees to the old ones.
    tx.execute("DELETE FROM join_tokens WHERE expires_at < ?1", &values![week_ago(tx)])?;
    let sql = "INSERT INTO join_tokens (id, secret_sha256, host, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)";
    let digest = digest(&token.secret);
    tx.execute(sql, &values![&token.id, digest, host, tx.now_text(), &expires_at])?;
    Ok(NewToken { token, expires_at })
}

/// A token that is there, without its secret.
pub(super) struct KnownToken {
    pub(super) id: String,
    pub(super) host: Option<String>,
    pub(super) expires_at: String,
}

/// Reads the tokens that can still be used.
pub(super) fn tokens(tx: &Tx<'_>) -> Result<Vec<KnownToken>, StoreError> {
    let sql = "SELECT id, host, expires_at FROM join_tokens WHERE expires_at > ?1 ORDER BY expires_at, id";
    let read = |row: &crate::store::Row<'_>| {
        Ok(KnownToken { id: row.text(0)?, host: row.opt_text(1)?, expires_at: row.text(2)? })
    };
    tx.query(sql, &values![tx.now_text()], read)
}

/// Makes a token useless; tells whether there was one.
pub(super) fn revoke_token(tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx.execute_counted("DELETE FROM join_tokens WHERE id = ?1", &values![id])? > 0)
}

/// A host that was let in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Its certificate.
    pub issued: Issued,
    /// Whether it takes the place of another machine, or of itself before.
    pub replaces: bool,
}

/// Lets a host in for a token.
///
/// # Errors
///
/// Why it is not let in.
pub fn admit(tx: &Tx<'_>, authority: &Authority, host: &str, asked: &JoinRequest) -> Result<Admission, Refusal> {
    check_name(host)?;
    let for_host = check_token(tx, asked)?;
    if let Some(expected) = for_host.as_ref().filter(|expected| *expected != host) {
        return Err(Refusal::OtherHost { expected: expected.clone(), host: host.to_owned() });
    }
    let sql = "SELECT public_key FROM host_certificates WHERE host = ?1 AND expires_at > ?2 AND revoked IS NULL";
    let held = tx.query(sql, &values![host, tx.now_text()], |row| row.text(0))?;
    if for_host.is_none() {
        if held.iter().any(|key| *key != asked.public_key) {
            return Err(Refusal::Taken(host.to_owned()));
        }
        if held.is_empty() && was_here(tx, host)? {
            return Err(Refusal::Known(host.to_owned()));
        }
    }
    revoke(tx, host, Revoked::Replaced)?;
    let issued = issue(tx, authority, host, &asked.public_key)?;
    Ok(Admission { issued, replaces: !held.is_empty() })
}

/// Gives a host its next certificate for the one that it shows, which goes on counting in case the answer is lost.
///
/// # Errors
///
/// When what it shows is no certificate of that host that counts, it sent no key, or the store fails.
pub fn renew(tx: &Tx<'_>, authority: &Authority, host: &str, shown: &str, public_key: &str) -> Result<Issued, Refusal> {
    let found = Certificate::find(tx, shown)?;
    let standing = found.map_or(Standing::Unknown, |certificate| certificate.standing(&tx.now_text()));
    if standing != Standing::Member(host.to_owned()) {
        return Err(Refusal::Dismissed(standing));
    }
    let sql = "DELETE FROM host_certificates WHERE host = ?1 AND fingerprint <> ?2 AND revoked IS NULL";
    tx.execute(sql, &values![host, shown])?;
    issue(tx, authority, host, public_key)
}

/// Tells whether a host of that name ever reported, or had a certificate that is remembered.
fn was_here(tx: &Tx<'_>, host: &str) -> Result<bool, StoreError> {
    let sql = "SELECT (SELECT count(*) FROM hosts WHERE name = ?1) \
               + (SELECT count(*) FROM host_certificates WHERE host = ?1)";
    Ok(tx.count(sql, &values![host])? > 0)
}

/// What shutting a host out came to.
pub(super) struct ShutOut {
    /// Tokens with its name, which let nobody in any more.
    pub(super) ended: Vec<KnownToken>,
    /// Tokens for new hosts. They do not bring this one back, but its machine may know one, and come by another name.
    pub(super) open: Vec<KnownToken>,
}

/// Shuts a host out: its certificates and the tokens with its name; `None` when it is no member.
pub(super) fn shut_out(tx: &Tx<'_>, host: &str) -> Result<Option<ShutOut>, StoreError> {
    if revoke(tx, host, Revoked::Revoked)? == 0 {
        return Ok(None);
    }
    let (of_hosts, open): (Vec<_>, Vec<_>) = tokens(tx)?.into_iter().partition(|token| token.host.is_some());
    let ended = of_hosts.into_iter().filter(|token| token.host.as_deref() == Some(host)).collect();
    tx.execute("DELETE FROM join_tokens WHERE host = ?1", &values![host])?;
    Ok(Some(ShutOut { ended, open }))
}

/// Ends what certificates a host has; answers how many counted until now.
fn revoke(tx: &Tx<'_>, host: &str, why: Revoked) -> Result<usize, StoreError> {
    let sql = "UPDATE host_certificates SET revoked = ?2 WHERE host = ?1 AND revoked IS NULL AND expires_at > ?3";
    let ended = tx.execute_counted(sql, &values![host, why.as_str(), tx.now_text()])?;
    note_change(tx)?;
    Ok(ended)
}

/// Tells which state the certificates are in: another word after each change.
pub(super) fn version(tx: &Tx<'_>) -> Result<Option<String>, StoreError> {
    tx.setting(VERSION)
}

fn issue(tx: &Tx<'_>, authority: &Authority, host: &str, public_key: &str) -> Result<Issued, Refusal> {
    let issued = authority.for_host(host, public_key, tx.now())?;
    tx.execute("DELETE FROM host_certificates WHERE expires_at < ?1", &values![week_ago(tx)])?;
    let sql = "INSERT INTO host_certificates (fingerprint, host, public_key, issued_at, expires_at) \
               VALUES (?1, ?2, ?3, ?4, ?5)";
    let expires_at = timestamp_text(issued.expires_at);
    tx.execute(sql, &values![&issued.fingerprint, host, public_key, tx.now_text(), expires_at])?;
    note_change(tx)?;
    Ok(issued)
}

fn note_change(tx: &Tx<'_>) -> Result<(), StoreError> {
    tx.set_setting(VERSION, &to_hex(&random::bytes::<8>()))
}

/// Ended ones are kept for a while, so that their holders are told what became of them.
fn week_ago(tx: &Tx<'_>) -> String {
    timestamp_text(tx.now().checked_sub(SignedDuration::from_hours(7 * 24)).unwrap_or(Timestamp::MIN))
}

/// Checks a token; answers the host that it is for.
///
/// # Errors
///
/// When it is no good.
pub fn check_token(tx: &Tx<'_>, asked: &JoinRequest) -> Result<Option<String>, Refusal> {
    let sql = "SELECT secret_sha256, host, expires_at FROM join_tokens WHERE id = ?1";
    let read = |row: &crate::store::Row<'_>| Ok((row.text(0)?, row.opt_text(1)?, row.text(2)?));
    let (secret, host, expires_at) = tx.query_opt(sql, &values![&asked.token], read)?.ok_or(Refusal::UnknownToken)?;
    // Digests are compared, so the time it takes tells nothing.
    if secret != digest(&asked.secret) {
        return Err(Refusal::UnknownToken);
    }
    if expires_at <= tx.now_text() {
        return Err(Refusal::ExpiredToken(expires_at));
    }
    Ok(host)
}

fn digest(secret: &str) -> String {
    to_hex(&<[u8; 32]>::from(Sha256::digest(secret)))
}

fn check_name(host: &str) -> Result<(), Refusal> {
    let is_foul = |c: char| c.is_whitespace() || c.is_control() || "/?#%".contains(c);
    if host.is_empty() || host.len() > LONGEST_NAME || host.contains(is_foul) {
        return Err(Refusal::Name(host.chars().take(LONGEST_NAME).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Certificate;
    use crate::private_file::tests::TempDir;
    use crate::store::Store;

    struct Fixture {
        store: Store,
        authority: Authority,
        _dir: TempDir,
    }

    /// A public key for tests; what it is a key to is asked by nobody here.
    fn key(n: u8) -> String {
        format!("04{}", format!("{n:02x}").repeat(64))
    }

    impl Fixture {
        fn new() -> Self {
            let dir = TempDir::new();
            let store = Store::open(&dir.path().join("db")).unwrap();
            let authority = store.write(Authority::open).unwrap();
            Self { store, authority, _dir: dir }
        }

        fn token(&self, host: Option<&str>, seconds: i64) -> JoinToken {
            let lasts = SignedDuration::from_secs(seconds);
            self.store.write(|tx| make_token(tx, &self.authority, host, lasts)).unwrap().token
        }

        fn join(&self, token: &JoinToken, host: &str, n: u8) -> Result<Admission, String> {
            let asked = JoinRequest { token: token.id.clone(), secret: token.secret.clone(), public_key: key(n) };
            self.store.write(|tx| admit(tx, &self.authority, host, &asked)).map_err(|refusal| refusal.to_string())
        }

        /// Host, whether it counts; those that do last.
        fn certificates(&self) -> Vec<(String, Option<Revoked>)> {
            let all = self.store.read(Certificate::all).unwrap();
            let mut all: Vec<_> = all.into_iter().map(|(_, found)| (found.host, found.revoked)).collect();
            all.sort_by_key(|(_, revoked)| revoked.is_none());
            all
        }
    }

    #[test]
    fn a_token_without_a_name_lets_in_whoever_is_new() {
        let f = Fixture::new();
        let token = f.token(None, 60);
        assert!(!f.join(&token, "h1", 1).unwrap().replaces);
        f.join(&token, "h2", 2).unwrap();
        let refused = f.join(&token, "h1", 3).unwrap_err();
        assert!(refused.contains("'h1' is a member already") && refused.contains("--host h1"), "{refused}");
        // Its answer was lost: the same key comes again.
        assert!(f.join(&token, "h1", 1).unwrap().replaces);
    }

    #[test]
    fn a_machine_takes_a_hosts_place_with_a_token_of_that_name() {
        let f = Fixture::new();
        f.join(&f.token(None, 60), "h1", 1).unwrap();
        let token = f.token(Some("h1"), 60);
        assert!(f.join(&token, "h1", 2).unwrap().replaces);
        assert_eq!(f.certificates(), [("h1".into(), Some(Revoked::Replaced)), ("h1".into(), None)]);
        let refused = f.join(&token, "h2", 3).unwrap_err();
        assert!(refused.contains("for host 'h1'") && refused.contains("called 'h2'"), "{refused}");
    }

    #[test]
    fn tokens_that_are_wrong_late_or_revoked_say_so() {
        let f = Fixture::new();
        let late = f.token(None, -1);
        let refused = f.join(&late, "h1", 1).unwrap_err();
        assert!(refused.contains("expired at 20") && refused.contains("evergate cluster token create"), "{refused}");
        let good = f.token(None, 60);
        let wrong = JoinToken { secret: late.secret.clone(), ..good.clone() };
        assert!(f.join(&wrong, "h1", 1).unwrap_err().contains("not known here"));
        assert!(f.store.write(|tx| revoke_token(tx, &good.id)).unwrap());
        assert!(f.join(&good, "h1", 1).unwrap_err().contains("not known here"));
        assert!(f.join(&f.token(None, 60), "a b", 1).unwrap_err().contains("cannot be a host's name"));
        assert!(f.certificates().is_empty());
    }

    #[test]
    fn a_host_that_was_here_before_comes_again_with_a_token_of_its_name_alone() {
        let f = Fixture::new();
        let rack = f.token(None, 60);
        let refused = |host: &str, n: u8| {
            let refused = f.join(&rack, host, n).unwrap_err();
            assert!(refused.contains("here before") && refused.contains(&format!("--host {host}")), "{refused}");
        };
        // Revoked; with its first key, too.
        f.join(&rack, "h1", 1).unwrap();
        f.store.write(|tx| shut_out(tx, "h1")).unwrap().unwrap();
        refused("h1", 2);
        refused("h1", 1);
        // Its certificate has ended.
        f.join(&rack, "h2", 1).unwrap();
        let lapse = "UPDATE host_certificates SET expires_at = '2020-01-01T00:00:00Z' WHERE host = 'h2'";
        f.store.write::<_, StoreError>(|tx| tx.execute(lapse, &[])).unwrap();
        refused("h2", 2);
        // It reported, whatever it did that with.
        let report = "INSERT INTO hosts (name, incarnation, sequence, reported_at) \
                      VALUES ('h3', '1', 1, '2020-01-01T00:00:00Z')";
        f.store.write::<_, StoreError>(|tx| tx.execute(report, &[])).unwrap();
        refused("h3", 2);
        for host in ["h1", "h2", "h3"] {
            assert!(!f.join(&f.token(Some(host), 60), host, 2).unwrap().replaces);
            let counting = f.certificates().into_iter().filter(|(of, revoked)| of == host && revoked.is_none());
            assert_eq!(counting.count(), 1, "{host}");
        }
    }

    #[test]
    fn a_revoked_host_does_not_come_back_with_a_token_that_it_had() {
        let f = Fixture::new();
        let (own, others, rack) = (f.token(Some("h1"), 60), f.token(Some("h2"), 60), f.token(None, 60));
        f.join(&own, "h1", 1).unwrap();
        assert!(f.store.write(|tx| shut_out(tx, "h2")).unwrap().is_none());
        let shut_out = f.store.write(|tx| shut_out(tx, "h1")).unwrap().unwrap();
        let ids = |tokens: &[KnownToken]| tokens.iter().map(|token| token.id.clone()).collect::<Vec<_>>();
        assert_eq!((ids(&shut_out.ended), ids(&shut_out.open)), (vec![own.id.clone()], vec![rack.id]));
        assert!(f.join(&own, "h1", 1).unwrap_err().contains("not known here"));
        f.join(&others, "h2", 1).unwrap();
        assert_eq!(f.certificates(), [("h1".into(), Some(Revoked::Revoked)), ("h2".into(), None)]);
    }

    #[test]
    fn a_renewed_certificate_leaves_one_before_it() {
        let f = Fixture::new();
        let mut now = f.join(&f.token(None, 60), "h1", 1).unwrap().issued.fingerprint;
        for n in 2..5 {
            let version = f.store.read(version).unwrap();
            let issued = f.store.write(|tx| renew(tx, &f.authority, "h1", &now, &key(n))).unwrap();
            assert_eq!(f.certificates().len(), 2);
            assert_ne!(f.store.read(super::version).unwrap(), version);
            now = issued.fingerprint;
        }
    }

    #[test]
    fn only_a_certificate_that_counts_is_renewed() {
        let f = Fixture::new();
        let renew = |shown: &str, host: &str| match f.store.write(|tx| renew(tx, &f.authority, host, shown, &key(9))) {
            Err(Refusal::Dismissed(standing)) => standing,
            other => panic!("{other:?}"),
        };
        let first = f.join(&f.token(None, 60), "h1", 1).unwrap().issued.fingerprint;
        assert_eq!(renew(&first, "h2"), Standing::Member("h1".into()));
        assert_eq!(renew("ab", "h1"), Standing::Unknown);
        let second = f.join(&f.token(Some("h1"), 60), "h1", 2).unwrap().issued.fingerprint;
        assert_eq!(renew(&first, "h1"), Standing::Revoked("h1".into(), Revoked::Replaced));
        assert_eq!(f.certificates(), [("h1".into(), Some(Revoked::Replaced)), ("h1".into(), None)]);
        let lapse = "UPDATE host_certificates SET expires_at = '2020-01-01T00:00:00Z' WHERE fingerprint = ?1";
        f.store.write::<_, StoreError>(|tx| tx.execute(lapse, &values![&second])).unwrap();
        assert_eq!(renew(&second, "h1"), Standing::Expired("h1".into(), "2020-01-01T00:00:00Z".into()));
    }

    #[test]
    fn a_secret_is_kept_as_its_digest_alone() {
        let f = Fixture::new();
        let token = f.token(None, 60);
        let kept =
            f.store.read(|tx| tx.query("SELECT secret_sha256 FROM join_tokens", &[], |row| row.text(0))).unwrap();
        assert_eq!(kept, [digest(&token.secret)]);
        assert_ne!(kept[0], token.secret);
    }
}
