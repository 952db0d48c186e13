//! Every write leaves a line that says who did what and what came of it; large requests are sent away.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::harness::{PROJECT, Server, id, member, reader};

/// A project that no other test has.
const AUDITED: &str = "abababababababababababababababab";

/// Keeps the lines of one target.
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "audit"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn a_write_is_told_with_who_did_it_and_what_came_of_it() {
    let server = Server::new();
    let lines = Arc::new(Mutex::new(Vec::new()));
    // For all tests of this program: a subscriber of one thread would miss what other threads saw first.
    tracing::subscriber::set_global_default(Lines(Arc::clone(&lines))).unwrap();
    let network = server.make(&member(AUDITED), "network", json!({"name": "a-name-nobody-needs-to-know"}));
    server.get(&member(AUDITED), &format!("/v2.0/networks/{}", id(&network)));
    server.delete(&reader(AUDITED), &format!("/v2.0/networks/{}", id(&network)));
    let lines: Vec<String> = lines.lock().unwrap().iter().filter(|line| line.contains(AUDITED)).cloned().collect();
    assert_eq!(lines.len(), 2, "reading is not writing: {lines:?}");
    let (made, refused) = (&lines[0], &lines[1]);
    for part in [
        "request_id=req-test",
        &format!("user_id=member-of-{AUDITED}"),
        &format!("project_id=\"{AUDITED}\""),
        "method=POST",
        "path=\"/v2.0/networks\"",
        "status=201",
        &format!("made=\"{}\"", id(&network)),
    ] {
        assert!(made.contains(part), "{part} in {made}");
    }
    assert!(!made.contains("a-name-nobody-needs-to-know"), "bodies stay out of it: {made}");
    for part in ["method=DELETE", "status=403", "error=\"HTTPForbidden\"", "user=reader"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
}

#[test]
fn a_request_that_is_too_large_is_not_read() {
    let server = Server::new();
    let before = server.dump();
    let body = " ".repeat((4 << 20) + 1);
    let answer = server.send(&member(PROJECT), "POST", "/v2.0/networks", &[], &body);
    assert_eq!((answer.status, answer.error()), (413, "HTTPRequestEntityTooLarge"));
    let length = [("content-length", "99999999999")];
    assert_eq!(server.send(&member(PROJECT), "POST", "/v2.0/networks", &length, "{}").status, 413);
    assert_eq!(server.dump(), before);
}
