//! The thread that owns the kernel: it runs rounds, computes plans to be printed, and cleans up.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Context;
use evergate_config::HostSettings;
use evergate_model::HostConfig;

use super::Event;
use super::machine::RealMachine;
use super::socket::{Answer, PlanText};
use crate::round::Round;
use crate::startup;
use crate::worker::{Machine, Planned, Worker};

/// A worker without work for this long has time to look what this host lacks.
const IDLE: Duration = Duration::from_secs(1);

/// For the worker.
pub(super) enum Job {
    Reconcile(Round),
    Plan(Round, Sender<Answer>),
    Cleanup(Sender<()>),
}

/// Starts the thread; a host that does not permit what it needs says so at once.
pub(super) fn start(settings: &HostSettings, events: Sender<Event>) -> anyhow::Result<Sender<Job>> {
    let (sender, jobs) = channel();
    let settings = settings.clone();
    // Opened here, so that a host without the permission says so at once.
    let machine = RealMachine::open(&settings.netns_path).context("failed to open the kernel")?;
    let mut worker = Worker::new(machine, &settings);
    let told = events.clone();
    super::spawn("worker", &events, move || work(&mut worker, &jobs, &told))?;
    Ok(sender)
}

/// Ends when nobody sends jobs, or nobody listens, any more.
fn work<M: Machine>(worker: &mut Worker<M>, jobs: &Receiver<Job>, events: &Sender<Event>) {
    let mut probed = false;
    loop {
        match jobs.recv_timeout(if probed { Duration::MAX } else { IDLE }) {
            Ok(job) => {
                if !do_job(worker, job, events) {
                    return;
                }
            }
            // Not before: making and removing a namespace takes longer than a router does.
            Err(RecvTimeoutError::Timeout) if !probed => {
                probed = true;
                let lacks = startup::probe(worker.machine_mut());
                lacks.iter().for_each(|lack| tracing::warn!("{lack}"));
                if events.send(Event::Notes(lacks)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// False when nobody listens any more.
fn do_job<M: Machine>(worker: &mut Worker<M>, job: Job, events: &Sender<Event>) -> bool {
    match job {
        Job::Reconcile(round) => {
            let outcome = worker.run(&round).map(Box::new).map_err(|error| format!("{error:#}"));
            return events.send(Event::Round(outcome)).is_ok();
        }
        Job::Plan(round, reply) => {
            let answer = worker.plan(&round).map(|planned| plan_text(&planned));
            let answer = answer.and_then(|text| Ok(Answer::Ok(serde_json::to_value(&text)?)));
            // Whoever asked may have gone.
            let _ = reply.send(answer.unwrap_or_else(|error| Answer::Error(format!("{error:#}"))));
        }
        Job::Cleanup(reply) => {
            clean_up(worker);
            let _ = reply.send(());
        }
    }
    true
}

/// Removes all that Evergate made: the plan towards nothing.
fn clean_up<M: Machine>(worker: &mut Worker<M>) {
    let mut round = Round::towards(HostConfig::default());
    match worker.plan(&round) {
        Ok(planned) => round.released = planned.leftover,
        Err(error) => tracing::warn!("failed to clean up: {error:#}"),
    }
    match worker.run(&round) {
        Ok(outcome) => outcome.failures.iter().for_each(|failure| tracing::warn!("failed to clean up: {failure}")),
        Err(error) => tracing::warn!("failed to clean up: {error:#}"),
    }
}

/// Prints a plan, with what it leaves out and why.
pub fn plan_text(planned: &Planned) -> PlanText {
    let mut text = planned.plan.to_string();
    for router in &planned.withheld {
        text.push_str(&format!("# removals wait until the keeper has let go of router {router}\n"));
    }
    for wrong in &planned.astray {
        text.push_str(&format!("# the keeper is to mend: {wrong}\n"));
    }
    for problem in &planned.problems {
        text.push_str(&format!("# problem: {problem}\n"));
    }
    PlanText { text, empty: planned.plan.is_empty() && planned.withheld.is_empty() && planned.astray.is_empty() }
}
