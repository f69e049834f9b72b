//! One incident, as it happened: what, how it was seen, what was decided, what it cost, what was found, what to do.

use std::collections::BTreeSet;

use toroid_proto as proto;
use toroid_torus::units::names;

use super::fault::{self, Fault, Subject};
use super::{Explanation, Quote, Section, Situation};
use crate::format::{duration, percent, seconds, time};
use crate::incidents::phases;

/// Ranks, workers and hosts that a sentence names.
const MAX_NAMED: usize = 4;
/// Pieces of evidence, and lines of one, that are shown.
const MAX_QUOTES: usize = 8;
const MAX_LINES: usize = 40;

pub fn explain(situation: &Situation<'_>, i: &proto::Incident) -> Explanation {
    let hosts = hosts(situation, &i.workers);
    let faults = fault::faults(i);
    let mut sections = vec![
        Section::new("What happened", vec![what(situation, i, &hosts)]),
        Section::new("How it was seen", vec![seen(i)]),
        Section::new("What was decided", vec![decided(i)]),
        Section::new("What it cost", cost(situation, i)),
    ];
    sections.extend(evidence(i));
    let host = if let [host] = &hosts[..] { Some(host.as_str()) } else { None };
    let subject = Subject { job: &situation.job.id, workers: &i.workers, host };
    let mut to_do: Vec<String> = faults.iter().map(|fault| fault.to_do(&subject)).collect();
    to_do.extend(of_rung(situation, i, &faults));
    sections.push(Section::new("What to do", to_do));
    Explanation { title: title(situation, i), sections }
}

fn title(situation: &Situation<'_>, i: &proto::Incident) -> String {
    let job = &situation.job.id;
    match i.resolved {
        true => {
            format!("{job}, incident {}: over after {}, {} lost.", i.number, seconds(i.total_s), steps(i.steps_lost))
        }
        false if toroid_proto::json::is_ended(situation.job.state()) => {
            format!("{job}, incident {}: the job ended before it was over.", i.number)
        }
        false => {
            let for_s = (situation.now_unix_ms - i.unix_ms) as f64 / 1e3;
            format!("{job}, incident {}: it lasts, for {} now.", i.number, duration(for_s))
        }
    }
}

fn steps(n: u64) -> String {
    match n {
        0 => "no step".into(),
        1 => "1 step".into(),
        n => format!("{n} steps"),
    }
}

/// Where these workers are, as far as anybody knows it still: who is gone has no place, and may be connected again.
fn hosts(situation: &Situation<'_>, workers: &[String]) -> Vec<String> {
    let connected = situation.workers.iter().map(|w| (&w.worker_id, &w.host));
    let placed = situation.job.places.iter().map(|p| (&p.worker_id, &p.host));
    let all = connected.chain(placed).filter(|(id, host)| workers.contains(id) && !host.is_empty());
    all.map(|(_, host)| host.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn what(situation: &Situation<'_>, i: &proto::Incident, hosts: &[String]) -> String {
    let place = |rank: &u32| match situation.job.places.iter().find(|p| p.rank == *rank) {
        Some(p) => format!("rank {rank} at ({}, {})", p.x, p.y),
        None => format!("rank {rank}"),
    };
    let mut text = format!("At {} UTC, with step {} committed: {}.", time(i.unix_ms), i.step, i.cause);
    if i.ranks.is_empty() {
        text += " No place was lost.";
    } else {
        let places = names(i.ranks.iter().map(place), MAX_NAMED);
        let (verb, it) = if i.ranks.len() == 1 { ("is", "The place") } else { ("are", "The places") };
        text += &format!(" {it} {verb} {places}");
        if !i.workers.is_empty() {
            text += &format!(", until then of {}", names(&i.workers, MAX_NAMED));
        }
        if !hosts.is_empty() {
            text += &format!(" on {}", names(hosts, MAX_NAMED));
        }
        text.push('.');
    }
    text
}

fn seen(i: &proto::Incident) -> String {
    let by = match fault::sight(&i.seen_by) {
        Some(words) => words.to_string(),
        None if i.seen_by.is_empty() => "The coordinator did not say".into(),
        None => format!("Seen by: {}", i.seen_by),
    };
    match i.detect_s {
        s if s > 0.0 => format!("{by}. The last sign of life was {} before that.", seconds(s)),
        _ => format!("{by}."),
    }
}

fn decided(i: &proto::Incident) -> String {
    let what = match i.rung.as_str() {
        "spare" => {
            "Another worker took the place (rung `spare`): the others kept theirs, and it got its state from the other holders"
        }
        "restart" => {
            "No spare was there, and the worker's host had the place back (rung `restart`), with its state from the other holders"
        }
        "reconnect" => "Nobody was replaced (rung `reconnect`): all began a new epoch with the state that they had",
        "shrink" => {
            "The job went on with fewer replicas (rung `shrink`): the same samples in every step, the shards split anew"
        }
        "grow" => {
            "The job took more replicas again (rung `grow`): the same samples in every step, the shards split anew"
        }
        "wait" if i.resolved => "The job waited for a worker (rung `wait`), with its state kept by the others",
        "wait" => "The job waits for a worker (rung `wait`); those that are left keep its state",
        "restore" => {
            "All went back to the newest checkpoint (rung `restore`), since no worker had all of the state any more"
        }
        "drain" => "The place was moved on request (rung `drain`): its worker kept the state until another had it",
        "" => "Nothing was decided yet",
        rung => return format!("Rung `{rung}`. The coordinator's reason: {}.", i.reason),
    };
    match i.reason.as_str() {
        "" => format!("{what}."),
        reason => format!("{what}. The coordinator's reason: {reason}."),
    }
}

fn cost(situation: &Situation<'_>, i: &proto::Incident) -> Vec<String> {
    let short = |s: f64| if s > 0.0 { seconds(s) } else { "0".into() };
    let by_phase = phases(i).map(|(name, s)| format!("{name} {}", short(s))).join(", ");
    let job = situation.job;
    let end = if job.finished_unix_ms > 0 { job.finished_unix_ms } else { situation.now_unix_ms };
    let job_s = (end - job.started_unix_ms) as f64 / 1e3;
    let all_s = i.detect_s + i.total_s;
    let share = match job.started_unix_ms > 0 && job_s > 0.0 {
        true => format!(", {} of the {} that the job has run", percent((all_s / job_s).min(1.0)), duration(job_s)),
        false => String::new(),
    };
    let lost = match (i.steps_lost, i.resolved) {
        (0, true) => format!("No committed step was lost: all went on from step {}.", i.resumed_step),
        (0, false) => "No committed step is known to be lost.".into(),
        (n, _) => format!(
            "{} lost: all went back from step {} to step {} and made {} again, with the same samples.",
            if n == 1 { "1 committed step was".to_string() } else { format!("{n} committed steps were") },
            i.step,
            i.resumed_step,
            if n == 1 { "it" } else { "them" }
        ),
    };
    let time = match i.resolved {
        true => format!("{} from its being seen to the next step{share}. By phase: {by_phase}.", seconds(i.total_s)),
        false => format!("It is not over. By phase so far: {by_phase}."),
    };
    vec![time, lost]
}

/// What was found of the workers, as they said it.
fn evidence(i: &proto::Incident) -> Option<Section> {
    let mut quotes: Vec<Quote> =
        i.evidence.iter().filter(|e| !e.lines.is_empty()).take(MAX_QUOTES).map(quote).collect();
    if quotes.is_empty() && i.trace_id.is_empty() {
        return None;
    }
    let mut section = Section::new("Evidence", Vec::new());
    if !i.trace_id.is_empty() {
        section.paragraphs.push(format!("Its trace is {}.", i.trace_id));
    }
    section.quotes.append(&mut quotes);
    Some(section)
}

fn quote(e: &proto::Evidence) -> Quote {
    let of = match e.kind.as_str() {
        "log" => format!("{}, the last lines of its log", e.worker_id),
        "stacks" => format!("{}, where its threads stood", e.worker_id),
        kind => format!("{}, {kind}", e.worker_id),
    };
    // The end says most of a log, the beginning of stacks.
    let skipped = if e.kind == "stacks" { 0 } else { e.lines.len().saturating_sub(MAX_LINES) };
    let mut lines: Vec<String> = e.lines.iter().skip(skipped).take(MAX_LINES).cloned().collect();
    if e.lines.len() > MAX_LINES {
        lines.push(format!("({} more lines are in `-o json`)", e.lines.len() - MAX_LINES));
    }
    Quote { of, lines }
}

/// What follows from what was done about it.
fn of_rung(situation: &Situation<'_>, i: &proto::Incident, faults: &[Fault]) -> Vec<String> {
    let job = situation.job;
    let mut to_do = Vec::new();
    if !i.resolved && !toroid_proto::json::is_ended(job.state()) {
        to_do.push(format!(
            "While it lasts, `toroid status {} -w` and `toroid events {} -f` show how it goes on.",
            job.id, job.id
        ));
    }
    match i.rung.as_str() {
        "wait" if !i.resolved => {
            to_do.push("Start a worker that can reach the others (`toroid worker --coordinator HOST:PORT`): it takes the place at once.".into());
        }
        "shrink" if !faults.contains(&Fault::GaveWay) => {
            to_do.push("Start workers for the replicas that are missing: the job grows at the next step, without losing one.".into());
        }
        "restore" if i.steps_lost > 0 => to_do.push(
            "What a restore costs is the time since the last checkpoint, which `checkpoint.interval_s` in the job file makes shorter. With \
             `fault_tolerance.redundancy = true`, on more than one place, only the loss of two neighbours at once needs one."
                .into(),
        ),
        _ => {}
    }
    let has_taken = i.rung == "spare" && i.resolved && !toroid_proto::json::is_ended(job.state());
    if has_taken && job.spares == 0 {
        to_do.push(
            "No spare is left: start one (`toroid worker`), or the next loss waits for a worker, or costs a replica."
                .into(),
        );
    }
    to_do
}
