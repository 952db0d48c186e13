//! Pages in `docs/` whose figures a run writes when it is asked to, between two marks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use evergate_lab::probe::Report;

const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->\n";

/// What becomes of a page when its test has run.
pub(crate) struct Page {
    path: PathBuf,
    /// How often what the page is about is done; `None`: once, and nothing is written.
    times: Option<usize>,
    pace: Duration,
    late_ms: f64,
}

impl Page {
    /// A page that is written if the environment has `variable`, which says how often what it is about is done. `pace`
    /// is the time between two datagrams of the probes.
    pub(crate) fn asked_by(variable: &str, path: &str, pace: Duration) -> Self {
        let times = std::env::var(variable).ok().map(|text| text.parse().unwrap());
        Self { path: Path::new(env!("CARGO_MANIFEST_DIR")).join(path), times, pace, late_ms: 0.0 }
    }

    pub(crate) fn is_written(&self) -> bool {
        self.times.is_some()
    }

    pub(crate) fn times(&self) -> usize {
        self.times.unwrap_or(1)
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }

    /// Takes notice of a report whose figures are to be on the page. One whose prober was late by more than twice its pace
    /// tells of the prober, and is refused if the page is to be written.
    pub(crate) fn note(&mut self, what: &str, report: &Report) {
        self.late_ms = self.late_ms.max(report.sender_late_ms);
        let late = report.sender_late_ms > 2.0 * self.pace.as_secs_f64() * 1000.0;
        assert!(!(late && self.is_written()), "{what}: this machine is too busy to measure on: {report}");
    }

    /// Writes a table, if that was asked for.
    pub(crate) fn write(&self, table: &str) {
        if !self.is_written() {
            return;
        }
        let text = self.text();
        let (head, rest) = text.split_once(BEGIN).unwrap();
        let (_, tail) = rest.split_once(END).unwrap();
        let (pace, late) = (self.pace.as_millis(), self.late_ms);
        let said = format!("Probes sent a datagram every {pace} ms, and were late by {late:.1} ms at most.\n");
        std::fs::write(&self.path, format!("{head}{BEGIN}{said}\n{table}{END}{tail}")).unwrap();
    }
}
