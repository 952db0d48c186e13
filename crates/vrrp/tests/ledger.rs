//! `conformance/vrrp-rules.md` and `conformance/bfd-rules.md` are complete, and speak of tests that exist.

use std::collections::BTreeSet;

const VRRP: &str = include_str!("../../../conformance/vrrp-rules.md");
const BFD: &str = include_str!("../../../conformance/bfd-rules.md");

/// Where the tests are.
const SOURCES: [&str; 20] = [
    include_str!("../src/router/tests.rs"),
    include_str!("../src/wire/tests.rs"),
    include_str!("explore/main.rs"),
    include_str!("../src/bfd/tests.rs"),
    // The whole product's, against real peers.
    include_str!("../../standalone/tests/keepalived.rs"),
    include_str!("../../standalone/tests/frr.rs"),
    include_str!("../../standalone/tests/alone.rs"),
    include_str!("../../standalone/tests/vmac.rs"),
    include_str!("../../standalone/tests/mixed.rs"),
    include_str!("../../standalone/src/conf/tests.rs"),
    include_str!("../../keeper/tests/fuzz.rs"),
    include_str!("../../keeper/tests/storm.rs"),
    include_str!("../../keeper/tests/election.rs"),
    include_str!("../../keeper/src/engine/discards.rs"),
    include_str!("../src/router/tests/absence.rs"),
    include_str!("../src/router/tests/agreed.rs"),
    include_str!("../src/router/tests/announcements.rs"),
    include_str!("../src/router/tests/configuration.rs"),
    include_str!("../src/router/tests/peer_down.rs"),
    include_str!("../src/router/tests/rank.rs"),
];

#[test]
fn the_ledgers_have_all_statements_in_order() {
    for (ledger, count) in [(VRRP, 60), (BFD, 44)] {
        let numbers: Vec<u32> = rows(ledger).filter_map(|row| row[0].parse().ok()).collect();
        assert_eq!(numbers, Vec::from_iter(1..=count));
    }
}

#[test]
fn every_statement_has_a_test_or_a_stated_exception() {
    for row in rows(VRRP).chain(rows(BFD)) {
        let kept_by = row[2];
        let excepted = ["elsewhere:", "departs:", "open:"].iter().any(|word| kept_by.contains(word));
        assert!(excepted || tests_named_in(kept_by).next().is_some(), "statement {}: {kept_by}", row[0]);
    }
}

#[test]
fn every_test_that_the_ledger_names_exists() {
    let existing: BTreeSet<&str> = SOURCES.iter().flat_map(|source| tests_in(source)).collect();
    for row in rows(VRRP).chain(rows(BFD)) {
        for name in tests_named_in(row[2]) {
            assert!(existing.contains(name), "'{}' names {name}, which is no test", row[0]);
        }
    }
}

/// The cells of every table row that says something.
fn rows(ledger: &'static str) -> impl Iterator<Item = [&'static str; 3]> {
    ledger.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        let row = <[&str; 3]>::try_from(cells).expect("a row has three cells");
        (!row[0].starts_with("--") && row[2] != "Kept by").then_some(row)
    })
}

/// Names in backticks that are long enough to be sentences; shorter ones are devices and options.
fn tests_named_in(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() >= 2)
}

/// The functions that follow `#[test]`.
fn tests_in(source: &str) -> impl Iterator<Item = &str> {
    source.split("#[test]").skip(1).filter_map(|rest| {
        let (_, after) = rest.split_once("fn ")?;
        after.split_once('(').map(|(name, _)| name)
    })
}
