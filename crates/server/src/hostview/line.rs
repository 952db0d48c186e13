//! Lines of a host's stream ([`evergate_model::stream`]), put together from pieces that hosts share.
//!
//! The words are the model's; only where something large is the same for many hosts (the ports of a network,
//! a change of it) is its JSON made once and spliced in.

use bytes::Bytes;
use evergate_model::stream::Downstream;
use serde::Serialize;

use super::host::{Changed, Difference, HostView};
use super::network::{Part, Piece};

/// Shared pieces below this are copied: a piece of its own costs more.
const WORTH_SHARING: usize = 2 << 10;

/// A line in pieces.
pub type Line = Vec<Bytes>;

/// Says all that a host must know, as of a revision.
pub fn snapshot(view: &HostView, revision: u64) -> Line {
    let mut line = Pieces::default();
    line.text("{\"type\":\"snapshot\",\"config\":{\"revision\":");
    line.json(&revision);
    line.text(",\"cluster\":");
    line.json(&*view.cluster);
    line.text(",\"networks\":{");
    line.list(view.networks.iter(), |line, (id, part)| {
        line.json(id);
        line.text(":");
        line.network(&view.host, part);
    });
    line.text("},\"routers\":{");
    line.list(view.told_routers(), |line, (id, router)| {
        line.json(&id);
        line.text(":");
        line.json(&router);
    });
    line.text("},\"active_copies\":");
    line.json(&view.active_copies());
    line.text("}}");
    line.end()
}

/// Says what turns what a host was told into what it must know; `None` where that is nothing.
pub fn change(old: &HostView, new: &HostView) -> Option<Line> {
    let difference = Difference::between(old, new)?;
    let mut line = Pieces::default();
    line.text("{\"type\":\"change\",\"revision\":");
    line.json(&new.revision);
    line.text(",\"networks\":[");
    line.list(difference.networks.iter(), |line, part| line.network(&new.host, part));
    line.text("],\"networks_changed\":[");
    line.list(difference.networks_changed.iter(), |line, changed| match changed {
        Changed::Encoded(json) => line.shared(json.clone()),
        Changed::Own(change) => line.json(change),
    });
    line.text("],\"networks_removed\":");
    line.json(&difference.networks_removed);
    line.text(",\"routers\":");
    line.json(&difference.routers);
    line.text(",\"routers_removed\":");
    line.json(&difference.routers_removed);
    line.text(",\"active_copies\":");
    line.json(&difference.active_copies);
    line.text(",\"active_copies_removed\":");
    line.json(&difference.active_copies_removed);
    line.text("}");
    Some(line.end())
}

/// Says something short.
pub fn say(said: &Downstream) -> Bytes {
    let mut line = serde_json::to_vec(said).expect("maps with textual keys are always JSON");
    line.push(b'\n');
    line.into()
}

#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    open: Vec<u8>,
}

impl Pieces {
    fn text(&mut self, text: &str) {
        self.open.extend_from_slice(text.as_bytes());
    }

    fn json(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut self.open, value).expect("maps with textual keys are always JSON");
    }

    fn shared(&mut self, piece: Bytes) {
        if piece.len() < WORTH_SHARING {
            self.open.extend_from_slice(&piece);
            return;
        }
        self.close();
        self.done.push(piece);
    }

    fn list<T>(&mut self, items: impl Iterator<Item = T>, mut say: impl FnMut(&mut Self, T)) {
        for (n, item) in items.enumerate() {
            if n > 0 {
                self.text(",");
            }
            say(self, item);
        }
    }

    fn network(&mut self, host: &str, part: &Part) {
        let Part::All(view) = part else { return self.json(&part.told_to(host)) };
        self.text("{\"id\":");
        self.json(&view.base.id);
        self.text(",\"segment\":");
        self.json(&view.base.segment);
        self.text(",\"mtu\":");
        self.json(&view.base.mtu);
        self.text(",\"ports\":{");
        view.encoded_ports(host, |piece| match piece {
            Piece::Shared(json) => self.shared(json),
            Piece::Own(port) => self.json(port),
        });
        self.text("},\"peers\":");
        self.json(&view.peers_of(host));
        self.text(",\"vrids\":");
        self.json(&view.base.vrids);
        self.text("}");
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open).into());
        }
    }

    fn end(mut self) -> Line {
        self.text("\n");
        self.close();
        self.done
    }
}
