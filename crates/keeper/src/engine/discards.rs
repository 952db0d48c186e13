//! Counts what is refused, and says it once per kind and sender.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::RouterId;

use crate::claims::OTHER_VERSION;

/// Senders that are remembered as already told of. A flood of forged senders fills the table once and
/// is silent then; its counter goes on.
const MAX_TOLD: usize = 256;

/// Counters of refused packets, by reason.
#[derive(Debug, Default)]
pub(super) struct Discards {
    counters: BTreeMap<String, u64>,
    told: BTreeSet<(Option<RouterId>, String, String)>,
}

impl Discards {
    /// Counts one; returns what to tell, if this is the first of its kind from this sender.
    pub(super) fn count(
        &mut self,
        router: Option<RouterId>,
        reason: &str,
        sender: impl FnOnce() -> String,
    ) -> Option<String> {
        self.bump(reason);
        if self.told.len() > MAX_TOLD {
            return None;
        }
        let sender = sender();
        if !self.told.insert((router, reason.to_owned(), sender.clone())) {
            return None;
        }
        let whose = router.map_or(String::new(), |router| format!(" for router {router}"));
        let end = if self.told.len() > MAX_TOLD { "; further ones are only counted" } else { "" };
        let words = if reason == "claim_version" { OTHER_VERSION } else { "" };
        Some(format!("refused a packet from {sender}{whose}: {reason}{words}{end}"))
    }

    /// Counts something that needs no telling.
    pub(super) fn bump(&mut self, reason: &str) {
        if let Some(counter) = self.counters.get_mut(reason) {
            *counter += 1;
        } else {
            self.counters.insert(reason.to_owned(), 1);
        }
    }

    /// The counters.
    pub(super) fn counters(&self) -> &BTreeMap<String, u64> {
        &self.counters
    }

    /// Forgets whom of a removed router's network it told of.
    pub(super) fn forget(&mut self, router: RouterId) {
        self.told.retain(|(of, ..)| *of != Some(router));
    }
}

/// Who sent a frame, as far as the frame says: for logs, so nothing is believed or checked.
pub(super) fn sender_of(frame: &[u8]) -> String {
    let mac = frame.get(6..12).map(|mac| evergate_model::Mac(mac.try_into().expect("six bytes were cut")));
    let is_ipv4 = frame.get(12..14) == Some(&[0x08, 0x00]);
    let ip = frame.get(26..30).filter(|_| is_ipv4).and_then(|ip| <[u8; 4]>::try_from(ip).ok());
    match (ip.map(std::net::Ipv4Addr::from), mac) {
        (Some(ip), Some(mac)) => format!("{ip} ({mac})"),
        (None, Some(mac)) => mac.to_string(),
        (_, None) => "an unknown sender".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_per_sender_and_always_counted() {
        let mut discards = Discards::default();
        assert!(discards.count(None, "checksum", || "a".to_owned()).is_some());
        assert!(discards.count(None, "checksum", || "a".to_owned()).is_none());
        assert!(discards.count(None, "password", || "a".to_owned()).is_some());
        assert!(discards.count(Some(RouterId::from_u128(1)), "checksum", || "a".to_owned()).is_some());
        assert_eq!(discards.counters()["checksum"], 3);
    }

    #[test]
    fn a_flood_of_senders_fills_a_bounded_table() {
        let mut discards = Discards::default();
        let told = (0..10_000).filter(|n| discards.count(None, "checksum", || n.to_string()).is_some()).count();
        assert_eq!(told, MAX_TOLD + 1);
        assert_eq!(discards.counters()["checksum"], 10_000);
    }

    #[test]
    fn a_sender_is_named_from_whatever_bytes_there_are() {
        assert_eq!(sender_of(&[0; 3]), "an unknown sender");
        assert_eq!(sender_of(&[2; 20]), "02:02:02:02:02:02");
    }
}
