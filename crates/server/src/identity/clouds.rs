//! `clouds.yaml`: what the stock client needs to talk to this server, passwords included.
//!
//! It is made together with the identity file, when the passwords are known. Later starts change
//! nothing in it but the URL and the authority of its certificate, so an operator may edit it.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::directory::{DOMAIN_NAME, NewUser};
use crate::private_file;

/// Key of the line that says where the server is.
const AUTH_URL: &str = "auth_url: ";

/// Writes the file for users that were made just now.
pub(super) fn write(path: &Path, users: &[NewUser], base_url: &str) -> io::Result<()> {
    let mut text = "# Made by evergate server on first start. The passwords are nowhere else: keep this file.\n\
                    # Use it with OS_CLIENT_CONFIG_FILE, or copy it to ~/.config/openstack/clouds.yaml.\n\
                    clouds:\n"
        .to_owned();
    for user in users {
        let _ = write!(
            text,
            "  evergate-{name}:
    auth:
      {AUTH_URL}{base_url}/identity/v3
      username: {name}
      password: {password}
      project_name: {project}
      user_domain_name: {DOMAIN_NAME}
      project_domain_name: {DOMAIN_NAME}
    identity_api_version: 3
    region_name: {region}
",
            name = user.name,
            password = user.password,
            project = user.project,
            region = super::REGION,
        );
    }
    private_file::replace(path, &text)
}

/// Key of the line that says by which authority the server is known.
const CACERT: &str = "cacert";

/// Brings the URLs in the file up to date, and the authority of each cloud that is this server's; tells whether the
/// file is there.
pub(super) fn refresh(path: &Path, base_url: &str, authority: Option<&Path>) -> io::Result<bool> {
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let new = refreshed(&old, base_url, authority, &path.with_file_name("ca.pem"));
    if new != old {
        private_file::replace(path, &new)?;
    }
    Ok(true)
}

/// `ours` is the file that earlier starts may have named; another one is the operator's, and stays the only one of its
/// cloud.
fn refreshed(old: &str, base_url: &str, authority: Option<&Path>, ours: &Path) -> String {
    let names_ours = |line: &&str| cacert(line).is_some_and(|path| Path::new(path) == ours);
    let lines: Vec<&str> = old.lines().filter(|line| !names_ours(line)).collect();
    let mut new = String::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = &line[..indent(line)];
        let begins_ours = line.trim() == "auth:" && lines.get(at + 1).is_some_and(|next| is_ours(next));
        if let Some(authority) = authority.filter(|_| begins_ours && !beside(&lines, at).any(|l| cacert(l).is_some())) {
            let _ = writeln!(new, "{indent}{CACERT}: {}", authority.display());
        }
        if is_ours(line) {
            let _ = writeln!(new, "{indent}{AUTH_URL}{base_url}/identity/v3");
        } else {
            let _ = writeln!(new, "{line}");
        }
    }
    new
}

/// Tells whether a line says where this server is.
fn is_ours(line: &str) -> bool {
    line.trim_start().strip_prefix(AUTH_URL).is_some_and(|url| url.ends_with("/identity/v3"))
}

/// The authority that a line names.
fn cacert(line: &str) -> Option<&str> {
    let key = line.trim_start();
    let rest = [CACERT, "\"cacert\"", "'cacert'"].into_iter().find_map(|name| key.strip_prefix(name))?;
    Some(rest.trim_start().strip_prefix(':')?.trim())
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The lines of the mapping that a line is of, but for those of mappings within.
fn beside<'l>(lines: &'l [&'l str], at: usize) -> impl Iterator<Item = &'l str> {
    let own = indent(lines[at]);
    let is_within = move |line: &&&str| {
        let text = line.trim_start();
        text.is_empty() || text.starts_with('#') || indent(line) >= own
    };
    let before = lines[..at].iter().rev().take_while(is_within);
    before.chain(lines[at..].iter().take_while(is_within)).copied().filter(move |line| indent(line) == own)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::private_file::tests::TempDir;

    #[test]
    fn the_file_is_private_and_only_its_urls_follow_the_server() {
        let dir = TempDir::new();
        let path = dir.path().join("clouds.yaml");
        assert!(!refresh(&path, "http://a:1", None).unwrap());
        let user = NewUser { name: "admin", project: "admin", password: "sesame".into() };
        write(&path, &[user], "http://a:1").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let before = std::fs::read_to_string(&path).unwrap();
        assert!(refresh(&path, "http://b:2", None).unwrap());
        let after = std::fs::read_to_string(&path).unwrap();
        assert_eq!(after, before.replace("http://a:1/", "http://b:2/"));
        assert!(after.contains("      auth_url: http://b:2/identity/v3\n"));
        assert!(after.contains("password: sesame"));
        let authority = dir.path().join("ca.pem");
        refresh(&path, "https://b:2", Some(&authority)).unwrap();
        let secure = std::fs::read_to_string(&path).unwrap();
        let line = format!("    cacert: {}\n    auth:\n      auth_url: https://b:2/", authority.display());
        assert!(secure.contains(&line), "{secure}");
        refresh(&path, "https://b:2", Some(&authority)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), secure);
        refresh(&path, "http://b:2", None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
    }

    #[test]
    fn an_authority_of_the_operator_s_stays_the_only_one_of_its_cloud() {
        let auth = "    auth:\n      auth_url: https://a:1/identity/v3\n";
        let cloud = |name: &str, before: &str, after: &str| format!("  {name}:\n{before}{auth}{after}");
        let old = [
            cloud("before", "    cacert: /theirs.pem\n", ""),
            cloud("quoted", "    \"cacert\" : '/theirs.pem'\n    # Of the proxy.\n\n    verify: true\n", ""),
            cloud("after", "", "      username: u\n    region_name: r\n    cacert: /theirs.pem\n"),
            cloud("none", "", "    networks:\n      cacert: no such option\n"),
            cloud("ours", "    cacert: /state/ca.pem\n", ""),
        ];
        let old = format!("clouds:\n{}", old.concat());
        let ours = Path::new("/state/ca.pem");
        let new = refreshed(&old, "https://b:2", Some(ours), ours);
        // What reads it refuses a key that is there twice.
        let read = yaml_rust2::YamlLoader::load_from_str(&new).unwrap_or_else(|error| panic!("{error}: {new}"));
        for (name, expected) in [
            ("before", "/theirs.pem"),
            ("quoted", "/theirs.pem"),
            ("after", "/theirs.pem"),
            ("none", "/state/ca.pem"),
            ("ours", "/state/ca.pem"),
        ] {
            let cloud = &read[0]["clouds"][name];
            assert_eq!(cloud["cacert"].as_str(), Some(expected), "{name}: {new}");
            assert_eq!(cloud["auth"]["auth_url"].as_str(), Some("https://b:2/identity/v3"), "{name}");
        }
        assert_eq!(refreshed(&new, "https://b:2", Some(ours), ours), new);
        let without = refreshed(&new, "https://b:2", None, ours);
        assert_eq!(without.matches("cacert").count(), 4, "{without}");
    }
}
