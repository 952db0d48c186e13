//! `clouds.yaml`: what the stock client needs to talk to this server, passwords included.
//!
//! It is made together with the identity file, when the passwords are known. Later starts change
//! nothing in it but the URL, so an operator may edit it.

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

/// Brings the URLs in the file up to date; tells whether the file is there.
pub(super) fn refresh(path: &Path, base_url: &str) -> io::Result<bool> {
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let refreshed = |line: &str| match line.split_once(AUTH_URL) {
        Some((indent, url)) if indent.trim().is_empty() && url.ends_with("/identity/v3") => {
            format!("{indent}{AUTH_URL}{base_url}/identity/v3\n")
        }
        _ => format!("{line}\n"),
    };
    let new: String = old.lines().map(refreshed).collect();
    if new != old {
        private_file::replace(path, &new)?;
    }
    Ok(true)
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
        assert!(!refresh(&path, "http://a:1").unwrap());
        let user = NewUser { name: "admin", project: "admin", password: "sesame".into() };
        write(&path, &[user], "http://a:1").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let before = std::fs::read_to_string(&path).unwrap();
        assert!(refresh(&path, "http://b:2").unwrap());
        let after = std::fs::read_to_string(&path).unwrap();
        assert_eq!(after, before.replace("http://a:1/", "http://b:2/"));
        assert!(after.contains("      auth_url: http://b:2/identity/v3\n"));
        assert!(after.contains("password: sesame"));
    }
}
