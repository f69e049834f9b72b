//! The progress of a job while one waits for it: a bar in a terminal, else a line every few seconds; and one line an event.
//!
//! All of it goes to standard error. Nothing is decided here.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use toroid_proto as proto;
use toroid_proto::json::state_word;

use crate::format;
use crate::output;

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub struct Progress {
    output: Output,
    /// So that the last step is shown whatever the interval.
    shown_step: Option<u64>,
}

enum Output {
    Quiet,
    Bar(ProgressBar),
    /// When the last line was printed.
    Lines(Option<Instant>),
}

impl Progress {
    /// `quiet`: nothing at all.
    pub fn new(quiet: bool) -> Progress {
        let output = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Output::Quiet,
            (false, true) => Output::Bar(bar()),
            (false, false) => Output::Lines(None),
        };
        Progress { output, shown_step: None }
    }

    /// What changed: its events, each on a line, and how far it is.
    pub fn update(&mut self, update: &proto::JobUpdate) {
        for event in &update.events {
            self.line(&event_line(event));
        }
        let Some(job) = &update.job else { return };
        match &mut self.output {
            Output::Quiet => {}
            Output::Bar(bar) => {
                bar.set_length(job.total_steps);
                bar.set_position(job.committed_step);
                bar.set_prefix(format!("{} {}", job.id, state_word(job.state())));
                bar.set_message(figures(job));
            }
            Output::Lines(last) => {
                let is_due =
                    last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) || job.committed_step == job.total_steps;
                let is_new = job.committed_step > 0 && self.shown_step != Some(job.committed_step);
                if is_due && is_new {
                    output::note(step_line(job));
                    *last = Some(Instant::now());
                    self.shown_step = Some(job.committed_step);
                }
            }
        }
    }

    /// One line between the others.
    pub fn line(&self, text: &str) {
        match &self.output {
            Output::Quiet => {}
            Output::Bar(bar) => bar.suspend(|| output::note(text)),
            Output::Lines(_) => output::note(text),
        }
    }

    /// Takes the bar away; lines may follow.
    pub fn finish(&mut self) {
        if let Output::Bar(bar) = &self.output {
            bar.finish_and_clear();
            self.output = Output::Lines(None);
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {pos}/{len}  {msg}");
    let bar = ProgressBar::new(0).with_style(style.expect("the template is a constant").progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// `loss 2.3456  13,412 tokens/s  ETA 35 s`
fn figures(job: &proto::Job) -> String {
    let Some(last) = &job.last_step else { return job.reason.clone() };
    format!("loss {:.4}  {} tokens/s  ETA {}", last.loss, format::rate(job.tokens_per_s), format::duration(job.eta_s))
}

fn step_line(job: &proto::Job) -> String {
    format!("{} step {}/{}  {}", job.id, job.committed_step, job.total_steps, figures(job))
}

/// An event as one line: when, what kind, its words.
pub fn event_line(event: &proto::Event) -> String {
    let time = format::time(event.unix_ms);
    let of_day = time.split_once(' ').map_or(time.as_str(), |(_, of_day)| of_day);
    format!("{of_day}  {:<20} {}", event.kind, event.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_good_how_fast_and_how_long() {
        let mut job = proto::Job {
            id: "tiny-1".into(),
            reason: "waits for 2 more workers".into(),
            committed_step: 120,
            total_steps: 200,
            tokens_per_s: 13_411.6,
            eta_s: 35.2,
            ..Default::default()
        };
        assert_eq!(step_line(&job), "tiny-1 step 120/200  waits for 2 more workers");
        job.last_step = Some(proto::StepRecord { loss: 2.34567, ..Default::default() });
        assert_eq!(step_line(&job), "tiny-1 step 120/200  loss 2.3457  13,412 tokens/s  ETA 35 s");
    }

    #[test]
    fn an_event_is_one_line() {
        let event = proto::Event {
            unix_ms: 1_795_514_334_000,
            kind: "worker.lost".into(),
            text: "w3 (rank 3) closed its stream".into(),
            ..Default::default()
        };
        assert_eq!(event_line(&event), "09:58:54  worker.lost          w3 (rank 3) closed its stream");
    }
}
