//! Up: what a host says of itself becomes what the API shows.
//!
//! One transaction takes a whole report, so the API never shows half of it. Most reports say what the
//! one before said; while nothing else was written either, only the time of the heartbeat is.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evergate_model::HostReport;
use evergate_model::host::AgentKind;
use jiff::Timestamp;

use super::{Hosts, Seen, refusal, store_refusal};
use crate::dvr;
use crate::error::ApiError;
use crate::ha;
use crate::objects::{agent, floating_ip, port};
use crate::store::{StoreError, Tx, TxError as _};
use crate::values;

pub(super) async fn report(State(hosts): State<Arc<Hosts>>, Path(host): Path<String>, body: Bytes) -> Response {
    let report: HostReport = match serde_json::from_slice(&body) {
        Ok(report) => report,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, format!("the report makes no sense: {error}")),
    };
    if let Err(why) = acceptable(&report, &host) {
        return refusal(StatusCode::BAD_REQUEST, why);
    }
    // Also while the database cannot be used.
    hosts.office.learn(&host, report.agents.iter().find_map(agent::tunnel_ip));
    match tokio::task::spawn_blocking(move || take(&hosts, report)).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => {
            // An outage concerns every host, and the store tells of it.
            if error.store_error().and_then(StoreError::outage).is_none() {
                tracing::error!(host, error = &error as &dyn std::error::Error, "failed to take a host's report");
            }
            store_refusal(&error)
        }
        Err(error) => {
            tracing::error!(host, %error, "failed to take a host's report");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server failed")
        }
    }
}

fn acceptable(report: &HostReport, host: &str) -> Result<(), String> {
    if report.host.is_empty() || report.host != host {
        return Err(format!("the report is of host '{}', but was sent as '{host}'", report.host));
    }
    let kinds: BTreeSet<AgentKind> = report.agents.iter().map(|a| a.kind).collect();
    if kinds.len() != report.agents.len() {
        return Err("the report names a kind of agent twice".to_owned());
    }
    Ok(())
}

fn take(hosts: &Hosts, mut report: HostReport) -> Result<(), ApiError> {
    let now = Instant::now();
    // Of each report another; what it means for the operator is not.
    let clock = report.clock_ms.take();
    report.warnings.extend(clock.and_then(|clock| wrong_clock(clock, Timestamp::now())));
    let last = last_report(hosts, &report, now);
    if last == Last::Newer {
        tracing::debug!(host = report.host, sequence = report.sequence, "late report ignored");
        return Ok(());
    }
    if let Last::Same { before } = last
        && hosts.store.write(|tx| beat(tx, &report, before))?
    {
        return Ok(());
    }
    let revision = hosts.store.write(|tx| {
        // Read first: what this very report changes must be looked at once more.
        let revision = tx.revision()?;
        record(hosts, tx, &report, last == Last::LongAgo)?;
        Ok::<_, ApiError>(revision)
    })?;
    let mut seen = hosts.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let before = seen.insert(report.host.clone(), Seen { report: report.clone(), revision, at: now });
    drop(seen);
    log_news(before.as_ref().map(|s| &s.report), &report);
    Ok(())
}

/// Says that a host's clock is wrong, in a text that stays the same while it is. Nothing here depends on it, but for
/// what is told of times: logs, and when a router moved.
fn wrong_clock(clock_ms: u64, now: Timestamp) -> Option<String> {
    let ahead_ms = i64::try_from(clock_ms).ok()?.saturating_sub(now.as_millisecond());
    let minutes = (ahead_ms.unsigned_abs() + 30_000) / 60_000;
    let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
    (minutes > 0).then(|| {
        format!(
            "the clock of this host is {minutes} min {direction} the server's: its logs and histories tell wrong times"
        )
    })
}

/// How a report compares with the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// There is none, or it said something else, or something else was written since.
    Different,
    /// It said the same, and nothing was written since.
    Same {
        /// The sequence number of the one before.
        before: u64,
    },
    /// It came so long ago that the host counted as dead.
    LongAgo,
    /// It was sent later than this one.
    Newer,
}

fn last_report(hosts: &Hosts, report: &HostReport, now: Instant) -> Last {
    let mut seen = hosts.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(last) = seen.get_mut(&report.host) else { return Last::LongAgo };
    if last.report.incarnation == report.incarnation && report.sequence < last.report.sequence {
        return Last::Newer;
    }
    let silent = now.duration_since(last.at);
    if silent >= Duration::from_secs(u64::from(hosts.options.agent_down_time)) {
        return Last::LongAgo;
    }
    let unwritten = *hosts.store.subscribe().borrow() == last.revision;
    let same = HostReport { sequence: last.report.sequence, ..report.clone() } == last.report;
    if !(unwritten && same) {
        return Last::Different;
    }
    let before = std::mem::replace(&mut last.report.sequence, report.sequence);
    last.at = now;
    Last::Same { before }
}

/// Writes that the host lives, and nothing that followers would have to look at. Answers false, and writes
/// nothing, when the host told another server something in between.
fn beat(tx: &Tx<'_>, report: &HostReport, before: u64) -> Result<bool, StoreError> {
    let now = tx.now_text();
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let sql = "UPDATE hosts SET sequence = ?1, reported_at = ?2 WHERE name = ?3 AND incarnation = ?4 AND sequence = ?5";
    let params = values![
        number(report.sequence),
        now.as_str(),
        report.host.as_str(),
        report.incarnation.to_string(),
        number(before)
    ];
    if tx.execute_counted(sql, &params)? == 0 {
        return Ok(false);
    }
    for agent in &report.agents {
        let (kind, _, _) = agent::words(agent.kind);
        let sql = "UPDATE agents SET heartbeat_at = ?3 WHERE host = ?1 AND agent_type = ?2";
        tx.execute(sql, &values![report.host.as_str(), kind, now.as_str()])?;
    }
    Ok(true)
}

/// Writes everything a report says.
fn record(hosts: &Hosts, tx: &Tx<'_>, report: &HostReport, long_silent: bool) -> Result<(), ApiError> {
    let Some(started) = remember_host(tx, report)? else { return Ok(()) };
    let mut may_take_routers = long_silent || started;
    for agent in &report.agents {
        let upserted = agent::upsert(tx, &hosts.options, &report.host, agent, started)?;
        may_take_routers |= upserted.is_new;
        if upserted.has_new_mode {
            ha::vacate_unfit(tx, &hosts.options, upserted.id)?;
            may_take_routers = true;
        }
    }
    // Before the statuses: they are of what the host has to do now.
    dvr::settle(tx, &hosts.options)?;
    ha::record_states(tx, &report.host, &report.ha_states)?;
    // After the states: a port is up where its router is active now.
    port::record_status(tx, &report.host, &report.ports_up)?;
    floating_ip::record_status(tx, &report.host, &report.floating_ips_active)?;
    let is_l3 = report.agents.iter().any(|a| a.kind == AgentKind::L3);
    if may_take_routers && is_l3 && hosts.auto_schedule {
        ha::schedule_missing(tx, &hosts.options)?;
    }
    dvr::settle(tx, &hosts.options)
}

/// Writes what the host says of itself as a whole. Answers whether a new life of it begins; `None` when
/// the report is late.
fn remember_host(tx: &Tx<'_>, report: &HostReport) -> Result<Option<bool>, StoreError> {
    let host = report.host.as_str();
    let incarnation = report.incarnation.to_string();
    let sequence = i64::try_from(report.sequence).unwrap_or(i64::MAX);
    let sql = "SELECT incarnation, sequence FROM hosts WHERE name = ?1";
    let known = tx.query_opt(sql, &values![host], |row| Ok((row.text(0)?, row.int(1)?)))?;
    // Incarnations are compared for equality alone: clocks may be set back.
    let same_life = known.as_ref().is_some_and(|(known, _)| *known == incarnation);
    if same_life && known.as_ref().is_some_and(|(_, last)| sequence < *last) {
        return Ok(None);
    }
    let applied = report.applied_revision.map(|r| i64::try_from(r).unwrap_or(i64::MAX));
    let warnings = serde_json::to_string(&report.warnings).expect("texts are always JSON");
    let sql = if known.is_some() {
        "UPDATE hosts SET incarnation = ?2, sequence = ?3, applied_revision = ?4, warnings = ?5, reported_at = ?6 \
         WHERE name = ?1"
    } else {
        "INSERT INTO hosts (name, incarnation, sequence, applied_revision, warnings, reported_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
    };
    tx.execute(sql, &values![host, incarnation, sequence, applied, warnings, tx.now_text()])?;
    Ok(Some(!same_life))
}

/// Tells the server's log what the host's operator should know, once.
fn log_news(before: Option<&HostReport>, report: &HostReport) {
    if before.is_none_or(|b| b.incarnation != report.incarnation) {
        tracing::info!(host = report.host, agents = report.agents.len(), "host reports");
    }
    let known: BTreeSet<&String> = before.iter().flat_map(|b| &b.warnings).collect();
    for warning in report.warnings.iter().filter(|w| !known.contains(w)) {
        tracing::warn!(host = report.host, "{warning}");
    }
}
