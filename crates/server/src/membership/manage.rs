//! `evergate cluster`: the authority, join tokens and members, from the command line of a server's machine.
//!
//! It works on the database of the configuration, beside the servers that run: they notice within a second.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args as ClapArgs, Subcommand};
use jiff::{SignedDuration, Timestamp};

use super::roll::{self, KnownToken, Revoked};
use super::{Authority, Certificate};
use crate::cli::{ConfigFiles, open_store, print};
use crate::private_file;
use crate::store::{Store, timestamp_text};

/// Longest time that a token may last: it is a secret that lies about.
const LONGEST: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Say which hosts are of this cluster: its authority, join tokens, members.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    files: ConfigFiles,
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Print the certificate of the cluster's authority: what clients need as cacert.
    Ca {
        /// Print its fingerprint (SHA-256) instead.
        #[arg(long)]
        fingerprint: bool,
    },
    /// Tokens with which hosts join.
    #[command(subcommand)]
    Token(TokenVerb),
    /// Hosts that are members.
    #[command(subcommand)]
    Host(HostVerb),
}

#[derive(Clone, Debug, Subcommand)]
enum TokenVerb {
    /// Make a token and print it; this is the only time that it is shown.
    Create {
        /// The one host that it lets in, also in the place of a member of that name. Unset: any that is new; one that
        /// was here before needs its name.
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// How long it lasts, as 90m, 24h or 7d; 30d at most.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        lasts: SignedDuration,
        /// Write it to this file, which only its owner may read, instead of printing it.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Print the tokens that can still be used, without their secrets.
    List,
    /// Make a token useless.
    Revoke {
        /// Its id.
        id: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
enum HostVerb {
    /// Print the hosts with certificates: when they were made, when they end, whether they count.
    List,
    /// Shut a host out: its stream ends within seconds, and its certificate and join tokens with its name count no
    /// more. Prints these tokens, and those that still let in any new host. What it does for its routers goes on until
    /// it is stopped; to move them away first, drain it.
    Revoke {
        /// The host's name.
        host: String,
    },
}

/// Does what the command line says.
///
/// # Errors
///
/// When the database cannot be used, or there is no such token or host.
pub fn run(args: Args) -> anyhow::Result<()> {
    let settings = args.files.settings()?;
    if let evergate_config::Database::Sqlite(path) = &settings.database {
        ensure!(
            path.exists(),
            "there is no database {}: the server makes it on its first start; were its --config-file's given?",
            path.display()
        );
    }
    let text = act(&open_store(&settings.database)?, args.what)?;
    print(&text)
}

/// Does it; answers what to print.
fn act(store: &Store, what: What) -> anyhow::Result<String> {
    match what {
        What::Ca { fingerprint } => {
            let authority = store.write(Authority::open)?;
            Ok(if fingerprint { format!("{}\n", authority.fingerprint()) } else { authority.pem().to_owned() })
        }
        What::Token(TokenVerb::Create { host, lasts, to }) => {
            let made = store.write(|tx| {
                let authority = Authority::open(tx)?;
                roll::make_token(tx, &authority, host.as_deref(), lasts)
            })?;
            let text = format!("{}\n", made.token.reveal());
            // For the one who reads; the token alone is what a program takes.
            let who = host.map_or_else(|| "any new host".to_owned(), |host| format!("host {host}"));
            eprintln!("token {} lets in {who} until {}", made.token.id, made.expires_at);
            match to {
                None => Ok(text),
                Some(path) => {
                    private_file::replace(&path, &text)
                        .with_context(|| format!("failed to write {}", path.display()))?;
                    Ok(String::new())
                }
            }
        }
        What::Token(TokenVerb::List) => {
            let mut text = String::new();
            for token in store.read(roll::tokens)? {
                let host = token.host.as_deref().unwrap_or("-");
                let _ = writeln!(text, "{}\t{host}\tuntil {}", token.id, token.expires_at);
            }
            Ok(text)
        }
        What::Token(TokenVerb::Revoke { id }) => {
            if !store.write(|tx| roll::revoke_token(tx, &id))? {
                bail!("there is no token {id}; 'evergate cluster token list' prints those that there are");
            }
            Ok(String::new())
        }
        What::Host(HostVerb::List) => {
            let all = store.read(Certificate::all)?;
            Ok(all.iter().map(|(fingerprint, certificate)| line(fingerprint, certificate)).collect())
        }
        What::Host(HostVerb::Revoke { host }) => {
            let Some(shut_out) = store.write(|tx| roll::shut_out(tx, &host))? else {
                bail!("no host '{host}' is a member; 'evergate cluster host list' prints those that are");
            };
            let mut text = String::new();
            for token in shut_out.ended {
                let _ = writeln!(text, "token {} for host '{host}' is revoked, too", token.id);
            }
            for token in shut_out.open {
                let KnownToken { id, expires_at, .. } = token;
                let _ = writeln!(
                    text,
                    "token {id} still lets in any new host until {expires_at}; if that machine may know it: \
                     evergate cluster token revoke {id}"
                );
            }
            Ok(text)
        }
    }
}

fn line(fingerprint: &str, certificate: &Certificate) -> String {
    let state = match certificate.revoked {
        Some(Revoked::Replaced) => "replaced",
        Some(Revoked::Revoked) => "revoked",
        None if certificate.expires_at <= timestamp_text(Timestamp::now()) => "expired",
        None => "member",
    };
    let Certificate { host, issued_at, expires_at, .. } = certificate;
    let short = fingerprint.get(..16).unwrap_or(fingerprint);
    format!("{host}\t{state}\tfrom {issued_at}\tuntil {expires_at}\t{short}\n")
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: i64 = number.parse().map_err(|_| format!("'{text}' is no time: give it as 90m, 24h or 7d"))?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(format!("'{text}' is no time: give it as 90m, 24h or 7d")),
    };
    let lasts = SignedDuration::from_secs(number.saturating_mul(unit));
    if lasts.is_zero() || lasts > LONGEST {
        return Err("a token lasts for a second at least and 30 days at most".to_owned());
    }
    Ok(lasts)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::private_file::tests::TempDir;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn run(store: &Store, line: &str) -> anyhow::Result<String> {
        let args = Cli::try_parse_from(["cluster"].into_iter().chain(line.split(' ')))?.args;
        act(store, args.what)
    }

    #[test]
    fn tokens_and_hosts_are_listed_and_revoked() {
        let dir = TempDir::new();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let does = |line: &str| run(&store, line).unwrap();
        let fails = |line: &str| run(&store, line).unwrap_err().to_string();
        let token: evergate_model::join::JoinToken = does("token create --host h1 --lasts 5m").parse().unwrap();
        assert_eq!(token.authority, does("ca --fingerprint").trim());
        assert!(does("ca").starts_with("-----BEGIN CERTIFICATE-----"));
        let listed = does("token list");
        assert!(listed.starts_with(&format!("{}\th1\tuntil ", token.id)) && !listed.contains(&token.secret));
        let asked = evergate_model::join::JoinRequest {
            token: token.id.clone(),
            secret: token.secret.clone(),
            public_key: "04".repeat(65),
        };
        store
            .write(|tx| {
                let authority = Authority::open(tx)?;
                roll::admit(tx, &authority, "h1", &asked)
            })
            .unwrap();
        assert!(does("host list").starts_with("h1\tmember\t"));
        let rack: evergate_model::join::JoinToken = does("token create").parse().unwrap();
        let told = does("host revoke h1");
        assert!(told.contains(&format!("token {} for host 'h1' is revoked, too\n", token.id)), "{told}");
        assert!(told.ends_with(&format!("evergate cluster token revoke {}\n", rack.id)), "{told}");
        assert!(does("host list").starts_with("h1\trevoked\t"));
        assert!(fails("host revoke h1").contains("no host 'h1'"));
        does(&format!("token revoke {}", rack.id));
        assert_eq!(does("token list"), "");
        assert!(fails("token revoke x").contains("token list"));
        let file = dir.path().join("token");
        assert_eq!(does(&format!("token create --to {}", file.display())), "");
        assert!(std::fs::read_to_string(file).unwrap().parse::<evergate_model::join::JoinToken>().is_ok());
        for bad in ["0h", "31d", "1", "h", "-1h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("90m").unwrap(), SignedDuration::from_mins(90));
    }
}
