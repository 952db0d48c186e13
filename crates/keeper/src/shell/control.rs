//! The connection to control: a listener that is replaced atomically, and lines in both directions.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use tracing::warn;

use super::mailbox::Mailbox;
use crate::protocol::{MAX_LINE, SOCKET_NAME, ToKeeper};

/// Bytes taken from control per turn of the loop, so that a large state delays no advertisement.
const READ_PER_TURN: usize = 256 << 10;

/// Listens below `run_path`. The caller holds the lock, so a socket that is there is nobody's.
///
/// The socket is made under another name, with its permissions, and then renamed: there is no moment at
/// which others could connect, nor one at which the name is missing.
pub(super) fn listen(run_path: &Path) -> io::Result<UnixListener> {
    let (path, fresh) = (run_path.join(SOCKET_NAME), run_path.join(format!("{SOCKET_NAME}.new")));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, &path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A connection of control.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Bytes of `input` that hold no end of line.
    searched: usize,
    /// Whether the loop watches for output.
    pub(super) wants_write: bool,
}

/// What a turn of reading gave.
pub(super) struct Reading {
    /// Messages, in order.
    pub(super) messages: Vec<ToKeeper>,
    /// The connection is at its end.
    pub(super) closed: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: Vec::new(), searched: 0, wants_write: false })
    }

    /// Reads what is there, up to a bound; more makes the descriptor ready again.
    pub(super) fn read(&mut self) -> Reading {
        let mut reading = Reading { messages: Vec::new(), closed: false };
        let mut chunk = [0; 16 << 10];
        let mut taken = 0;
        while taken < READ_PER_TURN && !reading.closed {
            match self.stream.read(&mut chunk) {
                Ok(0) => reading.closed = true,
                Ok(length) => {
                    taken += length;
                    self.input.extend_from_slice(&chunk[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => reading.closed = true,
            }
        }
        self.take_lines(&mut reading);
        reading
    }

    fn take_lines(&mut self, reading: &mut Reading) {
        let mut start = 0;
        while let Some(end) = self.input[self.searched..].iter().position(|&byte| byte == b'\n') {
            let end = self.searched + end;
            match serde_json::from_slice(&self.input[start..end]) {
                Ok(message) => reading.messages.push(message),
                // The text is not shown: it may hold a key or a password.
                Err(error) => warn!("control said something that is not of the protocol: {error}"),
            }
            start = end + 1;
            self.searched = start;
        }
        self.input.drain(..start);
        self.searched = self.input.len();
        if self.input.len() > MAX_LINE {
            warn!("control sent a line of more than {MAX_LINE} bytes; the connection is closed");
            reading.closed = true;
        }
        if self.input.is_empty() {
            self.input.shrink_to(64 << 10);
        }
    }

    /// Writes what can be written now; false when the connection is at its end.
    pub(super) fn write(&mut self, mailbox: &mut Mailbox) -> bool {
        self.wants_write = false;
        while let Some(pending) = mailbox.pending() {
            match self.stream.write(pending) {
                Ok(0) => return false,
                Ok(written) => mailbox.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wants_write = true;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_however_they_arrive_and_nonsense_is_skipped() {
        let (mut control, keeper) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(keeper).unwrap();
        control.write_all(b"{\"type\":\"sta").unwrap();
        assert!(connection.read().messages.is_empty());
        control.write_all(b"tus\"}\nnonsense\n{\"type\":\"end_of_state\"}\n{").unwrap();
        let reading = connection.read();
        assert!(matches!(reading.messages[..], [ToKeeper::Status, ToKeeper::EndOfState]) && !reading.closed);
        drop(control);
        assert!(connection.read().closed);
    }

    #[test]
    fn an_endless_line_closes_the_connection() {
        let (mut control, keeper) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(keeper).unwrap();
        let writer = std::thread::spawn(move || while control.write_all(&[b'x'; 1 << 16]).is_ok() {});
        while !connection.read().closed {}
        assert!(connection.input.len() <= MAX_LINE + READ_PER_TURN + (16 << 10));
        drop(connection);
        writer.join().unwrap();
    }
}
