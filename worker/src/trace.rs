//! What the time of a step goes to: spans of phases and of calls that communicate, written down for `toroid trace`.
//!
//! A worker that was started with `--trace FOLDER` keeps the spans of its first 32 steps and writes those of a step when that is
//! committed, a line of JSON each, into `FOLDER/<worker id>.jsonl`. Without the flag this is one comparison a phase and a call.
//!
//! Deliberately absent: what the spans mean; the command puts them side by side.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::spans::now_us;

/// Steps that are written down; enough to see what is usual, and a bound on the file.
const STEPS_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// From one phase of the step to the next, what is communicated within it included.
    Phase,
    /// A call that moves data: the trainer computes nothing meanwhile.
    Exposed,
    /// Between two such calls: something is on its way while the trainer computes.
    Hidden,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    pub rank: usize,
    /// The step that is being made.
    pub step: u64,
    /// The phase, or what is communicated.
    pub name: String,
    pub kind: Kind,
    /// Of a call: the ranks that it waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waited_for: Vec<usize>,
    /// How long it ran on a core: of a phase all threads of the worker, of a call the one that called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<f64>,
    /// Since 1970, by the worker's clock.
    pub start_us: f64,
    pub duration_us: f64,
}

/// Shared by the trainer and its links.
#[derive(Debug, Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// The same instant on both clocks.
    begin: Instant,
    begin_us: f64,
    rank: usize,
    phase: &'static str,
    since: Instant,
    cpu_since: Duration,
    spans: Vec<Kept>,
    num_steps: usize,
}

#[derive(Debug)]
struct Kept {
    kind: Kind,
    name: &'static str,
    start: Instant,
    end: Instant,
    waited_for: Vec<usize>,
    cpu: Option<Duration>,
}

/// Time that the calling thread ran.
pub fn thread_cpu_time() -> Duration {
    cpu_time(ClockId::ThreadCPUTime)
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Times of a process are not negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Trace {
    pub fn create(folder: &Path, worker_id: &str) -> std::io::Result<Trace> {
        std::fs::create_dir_all(folder)?;
        let file = File::create(folder.join(format!("{worker_id}.jsonl")))?;
        let begin = Instant::now();
        let begin_us = now_us() as f64;
        let (rank, phase, since, cpu_since, spans, num_steps) =
            (0, "start", begin, cpu_time(ClockId::ProcessCPUTime), Vec::new(), 0);
        let inner = Inner { file, begin, begin_us, rank, phase, since, cpu_since, spans, num_steps };
        Ok(Trace(Arc::new(Mutex::new(inner))))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An epoch begins for this worker, as `rank`; what was not committed is dropped.
    pub fn begin(&self, rank: usize) {
        let mut inner = self.inner();
        inner.rank = rank;
        inner.spans.clear();
    }

    pub fn enter(&self, phase: &'static str) {
        let (now, cpu_now) = (Instant::now(), cpu_time(ClockId::ProcessCPUTime));
        let mut inner = self.inner();
        let (name, start, cpu) = (inner.phase, inner.since, Some(cpu_now.saturating_sub(inner.cpu_since)));
        inner.keep(Kept { kind: Kind::Phase, name, start, end: now, waited_for: Vec::new(), cpu });
        (inner.phase, inner.since, inner.cpu_since) = (phase, now, cpu_now);
    }

    /// A call has moved data since `start`, when the thread had run for `cpu_start`, and waited for these ranks.
    pub fn communicated(
        &self,
        name: &'static str,
        (start, cpu_start): (Instant, Duration),
        end: Instant,
        waited_for: &BTreeSet<usize>,
    ) {
        let (waited_for, cpu) =
            (waited_for.iter().copied().collect(), Some(thread_cpu_time().saturating_sub(cpu_start)));
        self.inner().keep(Kept { kind: Kind::Exposed, name, start, end, waited_for, cpu });
    }

    /// Between two calls something was on its way.
    pub fn moved(&self, name: &'static str, start: Instant, end: Instant) {
        self.inner().keep(Kept { kind: Kind::Hidden, name, start, end, waited_for: Vec::new(), cpu: None });
    }

    /// `step` is committed: writes what belongs to it.
    pub fn commit(&self, step: u64) {
        let mut inner = self.inner();
        let spans = std::mem::take(&mut inner.spans);
        if inner.num_steps == STEPS_MAX {
            return;
        }
        inner.num_steps += 1;
        let mut text = String::new();
        for Kept { kind, name, start, end, waited_for, cpu } in spans {
            let cpu_us = cpu.map(|cpu| cpu.as_secs_f64() * 1e6);
            let start_us = inner.begin_us + start.duration_since(inner.begin).as_secs_f64() * 1e6;
            let duration_us = end.duration_since(start).as_secs_f64() * 1e6;
            let span =
                Span { rank: inner.rank, step, name: name.to_owned(), kind, waited_for, cpu_us, start_us, duration_us };
            match serde_json::to_string(&span) {
                Ok(line) => text.extend([line.as_str(), "\n"]),
                Err(error) => tracing::warn!(%error, "cannot write a span of the trace"),
            }
        }
        if let Err(error) = inner.file.write_all(text.as_bytes()) {
            tracing::warn!(%error, "cannot write the trace; it ends here");
            inner.num_steps = STEPS_MAX;
        }
    }
}

impl Inner {
    fn keep(&mut self, span: Kept) {
        if self.num_steps < STEPS_MAX {
            self.spans.push(span);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_step_is_written_with_what_it_was_spent_on() {
        let folder = tempfile::tempdir().unwrap();
        let trace = Trace::create(folder.path(), "w0").unwrap();
        trace.enter("forward");
        trace.begin(3);
        let start = Instant::now();
        trace.moved("reduce-scatter", start, start);
        trace.communicated("tp", (start, thread_cpu_time()), Instant::now(), &BTreeSet::from([1]));
        trace.enter("backward");
        trace.commit(1);
        trace.enter("forward");
        let text = std::fs::read_to_string(folder.path().join("w0.jsonl")).unwrap();
        let spans: Vec<Span> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let found: Vec<_> = spans.iter().map(|s| (s.rank, s.step, s.name.as_str(), s.kind)).collect();
        let expected =
            [(3, 1, "reduce-scatter", Kind::Hidden), (3, 1, "tp", Kind::Exposed), (3, 1, "forward", Kind::Phase)];
        assert_eq!(found, expected);
        assert_eq!(spans[1].waited_for, [1]);
        assert!(spans[1].start_us >= spans[2].start_us, "within its phase");
        for step in 2..=STEPS_MAX as u64 + 5 {
            trace.enter("forward");
            trace.commit(step);
        }
        let text = std::fs::read_to_string(folder.path().join("w0.jsonl")).unwrap();
        let last: Span = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last.step, STEPS_MAX as u64, "bounded");
    }
}
