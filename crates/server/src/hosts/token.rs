//! The token that hosts show: one secret, in a file that the server makes and every host gets a copy of.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{private_file, random};

/// The token, as its digest: enough to recognise it.
pub struct HostToken([u8; 32]);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file could not be read or made.
    #[error("failed to {action} host token file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file holds nothing.
    #[error("host token file {path} is empty: remove it, and a new one is made")]
    Empty {
        /// Which file.
        path: String,
    },
}

impl HostToken {
    /// Reads the file, or makes it.
    ///
    /// # Errors
    ///
    /// When it can be neither read nor made, or holds nothing.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let io = |action| move |source| TokenError::Io { action, path: path.display().to_string(), source };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let token = random::secret_hex();
                private_file::create(path, &format!("{token}\n")).map_err(io("make"))?;
                token
            }
            Err(error) => return Err(io("read")(error)),
        };
        let token = text.trim();
        if token.is_empty() {
            return Err(TokenError::Empty { path: path.display().to_string() });
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    /// Tells whether `given` is the token. Digests are compared, so the time it takes tells nothing.
    pub(super) fn is(&self, given: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        self.0.iter().zip(given).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::private_file::tests::TempDir;

    #[test]
    fn the_token_is_made_once_and_recognised() {
        let dir = TempDir::new();
        let path = dir.path().join("host-token");
        let made = HostToken::open(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(made.is(text.trim()) && HostToken::open(&path).unwrap().is(text.trim()));
        assert!(!made.is("") && !made.is(&text) && !made.is(&text.trim()[1..]));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(HostToken::open(&path), Err(TokenError::Empty { .. })));
    }
}
