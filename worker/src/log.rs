//! What the process logged last, for the coordinator: of a worker that is killed it is all that is left.
//!
//! ```text
//!   tracing ──> who prints the lines ──> Log::line ──> the newest lines, bounded ──> control ── LogLines ──> coordinator
//! ```
//!
//! Whoever logs never waits: beyond the bound the oldest lines go. Also here: at which place the worker is, which each line of its log names.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use toroid_session::Standing;

use crate::sync::lock;

/// Lines that wait for the coordinator; beyond, the oldest go.
const MAX_LINES: usize = 50;
const MAX_LINE_BYTES: usize = 400;
/// Between two messages: what is logged meanwhile goes together.
const PAUSE: Duration = Duration::from_millis(200);

/// Shared by whoever prints the log and the control stream.
#[derive(Debug, Default)]
pub struct Log {
    inner: Mutex<Inner>,
    written: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<String>,
    /// When lines were taken last.
    taken_at: Option<Instant>,
    place: Option<Standing>,
    trace_id: Option<String>,
}

impl Log {
    /// A line was logged.
    pub fn line(&self, line: &str) {
        let mut inner = lock(&self.inner);
        if inner.lines.len() == MAX_LINES {
            inner.lines.pop_front();
        }
        inner.lines.push_back(cut(line.trim_end()).into());
        drop(inner);
        self.written.notify_one();
    }

    /// The lines since the last time, at least one. Nothing is lost where the caller stops waiting.
    pub async fn next(&self) -> Vec<String> {
        loop {
            let (is_empty, taken_at) = {
                let inner = lock(&self.inner);
                (inner.lines.is_empty(), inner.taken_at)
            };
            if is_empty {
                self.written.notified().await;
                continue;
            }
            if let Some(taken_at) = taken_at {
                tokio::time::sleep_until(taken_at + PAUSE).await;
            }
            let mut inner = lock(&self.inner);
            inner.taken_at = Some(Instant::now());
            return inner.lines.drain(..).collect();
        }
    }

    /// Where the worker is, and in which trace; a job of no name: it has no place.
    pub fn set_place(&self, standing: Standing, trace_id: Option<String>) {
        let mut inner = lock(&self.inner);
        (inner.place, inner.trace_id) = (Some(standing), trace_id);
    }

    pub fn place(&self) -> Option<(Standing, Option<String>)> {
        let inner = lock(&self.inner);
        let place = inner.place.clone().filter(|standing| !standing.job_id.is_empty())?;
        Some((place, inner.trace_id.clone()))
    }
}

fn cut(line: &str) -> &str {
    let mut end = line.len().min(MAX_LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_lines_go_together_and_not_too_often() {
        let log = Log::default();
        (0..60).for_each(|n| log.line(&format!("line {n}\n")));
        let begun = Instant::now();
        let lines = log.next().await;
        assert_eq!((lines.len(), lines[0].as_str(), lines[49].as_str()), (50, "line 10", "line 59"));
        log.line(&"ä".repeat(400));
        let lines = log.next().await;
        assert!(lines[0].len() == MAX_LINE_BYTES && begun.elapsed() >= PAUSE, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_line() {
        let log = std::sync::Arc::new(Log::default());
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.next().await }
        });
        tokio::task::yield_now().await;
        log.line("a line");
        assert_eq!(waiting.await.unwrap(), ["a line"]);
    }
}
