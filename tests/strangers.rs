//! Somebody who opens more connections than a server may have, and asks for nothing on them.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

mod support;

use std::io::Write as _;
use std::net::TcpStream;

use support::{Dir, PATIENCE, Server};

/// Files that the server may have open before it asks for more, and at most.
const FILES: [usize; 2] = [64, 300];

#[test]
fn more_connections_than_a_server_may_have_keep_nobody_from_being_answered() {
    let dir = Dir::new("strangers");
    let conf = format!("state_path = {}\n", dir.0.join("server").display());
    let [soft, hard] = FILES;
    let mut server = Server::start_after(&format!("ulimit -Sn {soft} && ulimit -Hn {hard}"), &dir.0, "neutron", &conf);
    let address = server.address();
    assert!(server.log().contains(&format!("open_files={hard}")), "{}", server.log());
    // Some say nothing, and some begin.
    let held: Vec<TcpStream> = (0..hard + 100)
        .map(|n| {
            let mut held = TcpStream::connect(&address).unwrap();
            // It may be closed already.
            let _ = held.write_all(if n % 2 == 0 { b"" } else { b"G" });
            held
        })
        .collect();
    let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE / 4)).build().new_agent();
    let answered = agent.get(format!("http://{address}/")).call().map(|answer| answer.status().as_u16());
    assert_eq!(answered.map_err(|error| format!("{error}: {}", server.log())), Ok(200));
    drop(held);
}
