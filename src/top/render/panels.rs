//! The panels that are lines of text, the header, the keys and the help.

use ratatui_core::text::{Line, Span};
use toroid_proto as proto;
use toroid_proto::json::{is_ended, state_word};

use super::{Panel, View, clean, cut, flow, plain};
use crate::find;
use crate::format::{bytes, duration, num, percent, rate, seconds, time};
use crate::incidents::{ms, phases};
use crate::links;
use crate::top::model::{Grid, Link, Prompt};

const KEYS: &str = "q quit  ? help  Tab next job  arrows place  l log scale  c checkpoint  d drain  x cancel";
/// Keys for narrow terminals; the help has all.
const FEW_KEYS: &str = "q quit  ? help  Tab job  c d x l";

/// For so long a notice is shown.
const NOTICE_MS: i64 = 15_000;

fn ago(view: &View<'_>, unix_ms: i64) -> String {
    duration((view.now_unix_ms - unix_ms).max(0) as f64 / 1e3)
}

/// The first lines: which job, how it does, what is wrong.
pub fn header(view: &View<'_>, width: u16, height: u16) -> Vec<Line<'static>> {
    let View { model, palette, .. } = *view;
    let number = match model.jobs.iter().position(|job| job.id == model.job_id) {
        Some(at) => format!(" (job {} of {})", at + 1, model.jobs.len()),
        None => String::new(),
    };
    let left = match &model.job {
        Some(job) => format!("{} {}{number}", clean(&job.id), state_word(job.state())),
        None => "toroid top".into(),
    };
    let right = format!("{}  {} UTC", clean(&model.coordinator), time(view.now_unix_ms));
    let space = (width as usize).saturating_sub(left.chars().count() + right.chars().count());
    let mut first = vec![Span::styled(left, palette.strong())];
    if space >= 2 {
        first.push(Span::raw(format!("{}{right}", " ".repeat(space))));
    }
    let mut lines = vec![Line::from(first)];
    if let Some(job) = &model.job {
        let speed = speed(view, job);
        if height > 10 {
            lines.extend(flow(&speed, "   ", width).into_iter().map(plain));
            lines.push(plain(cut(&job.reason, width)));
        } else {
            lines.push(plain(cut(&speed.join(" "), width)));
        }
    }
    let notice = model.notice.as_ref().filter(|(_, at)| view.now_unix_ms - at < NOTICE_MS);
    let alert = match (&model.prompt, &model.link, notice) {
        (Some(Prompt::Drain { worker, rank }), ..) => {
            Some(format!("drain {worker} (rank {rank})? Its place moves to a spare. y: yes, any other key: no"))
        }
        (Some(Prompt::Cancel { job }), ..) => {
            Some(format!("cancel {job} for good? Its checkpoints stay. y: yes, any other key: no"))
        }
        (None, Link::Away { since_unix_ms, why }, _) => Some(format!(
            "no coordinator for {}; jobs go on without one, and this with the next: {why}",
            ago(view, *since_unix_ms)
        )),
        (None, Link::Connecting, _) => Some("connecting".into()),
        (None, Link::Live, Some((notice, _))) => Some(notice.clone()),
        (None, Link::Live, None) => trouble(model.job.as_ref()),
    };
    if let Some(alert) = alert {
        let text = crate::format::wrap(&clean(&alert), width as usize, "");
        let most = if height > 16 { 3 } else { 1 };
        lines.extend(text.lines().take(most).map(|line| Line::from(Span::styled(line.to_string(), palette.alert()))));
    }
    lines
}

/// How far, how good, how fast, and what of a step is communication.
fn speed(view: &View<'_>, job: &proto::Job) -> Vec<String> {
    let share = if job.total_steps > 0 { job.committed_step as f64 / job.total_steps as f64 } else { 0.0 };
    let mut parts = vec![format!("step {}/{} ({})", job.committed_step, job.total_steps, percent(share))];
    if let Some(last) = &job.last_step {
        parts.push(format!("loss {:.4}", last.loss));
        parts.push(format!("{} tokens/s", rate(job.tokens_per_s)));
        parts.push(format!("goodput {}", percent(job.goodput)));
    }
    if let Some(t) = view.model.step_time() {
        parts.push(format!(
            "step {} (communication {} hidden, {} exposed)",
            seconds(t.step_s),
            seconds(t.hidden_s),
            seconds(t.exposed_s)
        ));
    }
    if !is_ended(job.state()) && job.eta_s > 0.0 {
        parts.push(format!("ETA {}", duration(job.eta_s)));
    }
    parts
}

/// What is wrong with the job beyond its places.
fn trouble(job: Option<&proto::Job>) -> Option<String> {
    let job = job?;
    if !job.store_trouble.is_empty() {
        return Some(format!("decisions wait, steps go on: {}", job.store_trouble));
    }
    if let Some(unsaved) = &job.unsaved {
        return Some(format!("step {} is not saved: {}", unsaved.step, unsaved.error));
    }
    (!job.damaged.is_empty()).then(|| job.damaged.clone())
}

pub fn keys(view: &View<'_>, width: u16) -> Line<'static> {
    let text = if KEYS.chars().count() <= width as usize { KEYS } else { FEW_KEYS };
    Line::from(Span::styled(cut(text, width), view.palette.strong()))
}

pub fn help(view: &View<'_>) -> Vec<Line<'static>> {
    let text = "\
Keys
  Tab, Shift-Tab  the next job, the one before
  arrows          another place; rows and columns go round, as the torus does
  l               loss: linear or logarithmic
  c               save a checkpoint of this job now
  d               drain the worker of the selected place: it moves to a spare
  x               cancel this job for good
  q, Ctrl-C       end this; the job goes on
Places
  #  computes            .  waits            +  is healed: its new worker gets the state
  x  has no worker       !  a straggler: all others wait for it
`toroid explain JOB` says what happened and what to do. Any key goes back.";
    let line = |text: &str| match text.starts_with(' ') {
        true => plain(text),
        false => Line::from(Span::styled(text.to_string(), view.palette.strong())),
    };
    text.lines().map(line).collect()
}

/// A panel of lines that are there already.
fn of_lines<'a>(heading: String, least: u16, all: Vec<String>) -> Panel<'a> {
    let most = all.len() as u16;
    Panel {
        heading,
        least: least.min(most),
        most,
        draw: Box::new(move |width, height| all.iter().take(height as usize).map(|l| plain(cut(l, width))).collect()),
    }
}

pub fn no_job<'a>(view: &View<'a>) -> Panel<'a> {
    let model = view.model;
    let text = match (&model.link, model.job_id.is_empty()) {
        (Link::Connecting, _) => format!("asking {}", model.coordinator),
        (_, false) => format!("waiting for what the coordinator says of {}", model.job_id),
        _ => "no job yet: submit one with `toroid submit job.toml`".into(),
    };
    of_lines("No job".into(), 1, vec![text])
}

/// The selected place and its worker.
pub fn selected<'a>(view: &View<'a>) -> Panel<'a> {
    let model = view.model;
    let Some(place) = model.place() else { return of_lines("No place is selected".into(), 0, Vec::new()) };
    let grid = model.job.as_ref().map(Grid::of).unwrap_or_default();
    let state = grid.at(place.x as usize, place.y as usize).map_or("", |(_, state)| state.word());
    let heading = format!("Rank {} at ({}, {}), {state}", place.rank, place.x, place.y);
    if place.worker_id.is_empty() {
        return of_lines(heading, 1, vec!["nobody fills it".into()]);
    }
    let worker = model.worker(&place.worker_id);
    let mut lines = vec![match worker {
        Some(w) => {
            let holds = if w.memory_bytes > 0 { format!(", {}", bytes(w.memory_bytes)) } else { String::new() };
            format!("{} on {}, process {}, {}{holds}", w.worker_id, w.host, w.pid, w.device)
        }
        None if place.alive => format!("{} on {}", place.worker_id, place.host),
        None => format!("{} is not connected", place.worker_id),
    }];
    if let Some(w) = worker {
        let silent_s = w.silent_s + (view.now_unix_ms - model.workers_unix_ms).max(0) as f64 / 1e3;
        let computes =
            if w.compute_s > 0.0 { format!(", computes {} a step", seconds(w.compute_s)) } else { String::new() };
        lines.push(format!("last heard {} ago{computes}", duration(silent_s)));
    }
    let slow = model.job.as_ref().and_then(|job| job.stragglers.iter().find(|s| s.rank == place.rank));
    lines.extend(slow.map(|s| {
        format!("{:.1} times as slow as its {} peers ({} a step)", s.factor, s.num_peers, seconds(s.peers_s))
    }));
    lines.push(format!("committed step {}, links {}", place.committed_step, links::in_words(&place.links)));
    of_lines(heading, 2, lines)
}

pub fn incidents<'a>(view: &View<'a>) -> Panel<'a> {
    let Some(job) = &view.model.job else { return of_lines("Incidents".into(), 0, Vec::new()) };
    let heading = match job.incidents.len() {
        0 => "No incident".into(),
        n => format!("Incidents: {n}, {} of the job's time, {} steps lost", duration(job.lost_s), job.lost_steps),
    };
    let of = |i: &proto::Incident| {
        let by_phase = phases(i).map(|(name, s)| format!("{name} {}", ms(s))).join(" ");
        let over = match i.resolved {
            true => format!("{} ms ({by_phase})", ms(i.total_s)),
            false => format!("lasts for {}", ago(view, i.unix_ms)),
        };
        format!("{} {} {}: {over}; {}", i.number, ago_of(view, i), i.rung, i.cause)
    };
    of_lines(heading, 1, job.incidents.iter().rev().map(of).collect())
}

fn ago_of(view: &View<'_>, i: &proto::Incident) -> String {
    format!("{} ago,", ago(view, i.unix_ms))
}

pub fn checkpoints<'a>(view: &View<'a>) -> Panel<'a> {
    let Some(job) = &view.model.job else { return of_lines("Checkpoints".into(), 0, Vec::new()) };
    let mut all: Vec<&proto::CheckpointInfo> = job.checkpoints.iter().collect();
    all.sort_by_key(|c| std::cmp::Reverse(c.step));
    let heading = match all.first() {
        None => "No checkpoint".into(),
        Some(c) => format!("Checkpoints: the newest is {} old", ago(view, c.unix_ms)),
    };
    let of = |c: &&proto::CheckpointInfo| {
        format!(
            "step {}, {} ago, {} in {}, {}: {}",
            c.step,
            ago(view, c.unix_ms),
            bytes(c.bytes),
            duration(c.write_s),
            find::why_kept(c),
            c.path
        )
    };
    of_lines(heading, 0, all.iter().map(of).collect())
}

pub fn events<'a>(view: &View<'a>) -> Panel<'a> {
    let all = view.model.events.iter().rev().map(crate::progress::event_line).collect();
    of_lines("Events, the newest first".into(), 1, all)
}

/// Jobs that wait, and workers without a place.
pub fn pool<'a>(view: &View<'a>) -> Panel<'a> {
    let model = view.model;
    let count = |state: proto::WorkerState| model.workers.iter().filter(|w| w.state() == state).count();
    let kept_out =
        count(proto::WorkerState::Aside) + count(proto::WorkerState::Retired) + count(proto::WorkerState::Cordoned);
    let (placed, spares) = (count(proto::WorkerState::Placed), count(proto::WorkerState::Spare));
    let waiting: Vec<&proto::Job> = model.jobs.iter().rev().filter(|j| j.state() == proto::JobState::Queued).collect();
    let heading = format!("Pool: {}; queue: {}", num(model.workers.len(), "worker"), num(waiting.len(), "job"));
    let mut lines = vec![format!("{placed} have places, {spares} spare, {kept_out} given none")];
    let spare = |w: &proto::WorkerInfo| {
        let state = toroid_proto::json::worker_state_word(w.state());
        let warm = match w.warm_up() {
            proto::WarmUpState::Unspecified => String::new(),
            proto::WarmUpState::Ready => format!(", ready for {}", w.warm_up_job),
            proto::WarmUpState::Proving | proto::WarmUpState::Failed => format!(", {}", w.warm_up_reason),
        };
        let why = if w.state_reason.is_empty() { warm } else { format!(": {}", w.state_reason) };
        format!("{state} {} on {}{why}", w.worker_id, w.host)
    };
    lines.extend(waiting.iter().map(|job| format!("{} waits for {}: {}", job.id, duration(job.waited_s), job.reason)));
    lines.extend(model.workers.iter().filter(|w| w.state() != proto::WorkerState::Placed).map(spare));
    of_lines(heading, 1, lines)
}
