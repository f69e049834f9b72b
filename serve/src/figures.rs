//! What is counted, for `/metrics`.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use toroid_worker::generate::Finish;

use crate::engine::Engine;

/// Upper ends of a histogram's buckets, in microseconds.
const BUCKETS_US: [u64; 13] = [
    100,
    300,
    1_000,
    3_000,
    10_000,
    30_000,
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
];

/// Counters that many threads add to.
#[derive(Debug, Default)]
pub struct Figures {
    steps: Histogram,
    first_tokens: Histogram,
    running: AtomicU64,
    prompt_tokens: AtomicU64,
    tokens: AtomicU64,
    /// By reason: a stop, the length asked for, the context.
    ended: [AtomicU64; 3],
    gone: AtomicU64,
    /// By class of the status: 2xx, 4xx, 5xx.
    answers: [AtomicU64; 3],
}

#[derive(Debug, Default)]
struct Histogram {
    /// By bucket, each value once; the last is what is beyond all.
    counts: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

fn add(counter: &AtomicU64, num: u64) {
    counter.fetch_add(num, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Histogram {
    fn add(&self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        add(&self.counts[BUCKETS_US.partition_point(|end| *end < us)], 1);
        add(&self.sum_us, us);
    }

    fn write(&self, page: &mut Page, name: &str, help: &str) {
        page.head(name, "histogram", help);
        let mut count = 0;
        for (i, counter) in self.counts.iter().enumerate() {
            count += get(counter);
            let end = BUCKETS_US.get(i).map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
            page.sample(&format!("{name}_bucket{{le=\"{end}\"}}"), count);
        }
        page.sample(&format!("{name}_sum"), get(&self.sum_us) as f64 / 1e6);
        page.sample(&format!("{name}_count"), count);
    }
}

impl Figures {
    /// A step has been computed, with so many texts, of which so many go on.
    pub fn step(&self, took: Duration, before: usize, now: usize) {
        if before > 0 {
            self.steps.add(took);
        }
        self.running.store(now as u64, Ordering::Relaxed);
    }

    /// A text has a place.
    pub fn joined(&self, prompt_tokens: usize) {
        add(&self.prompt_tokens, prompt_tokens as u64);
    }

    /// `asked_at`: of the first token of a text.
    pub fn token(&self, asked_at: Option<Instant>) {
        add(&self.tokens, 1);
        if let Some(asked_at) = asked_at {
            self.first_tokens.add(asked_at.elapsed());
        }
    }

    pub fn ended(&self, finish: Finish) {
        add(&self.ended[finish as usize], 1);
    }

    /// So many texts are left unfinished since nobody wants them any more.
    pub fn gone(&self, num: usize) {
        add(&self.gone, num as u64);
    }

    /// A request was answered with this status.
    pub fn answered(&self, status: u16) {
        let class = match status {
            0..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        add(&self.answers[class], 1);
    }

    /// In Prometheus' text format 0.0.4.
    pub fn page(&self, engine: &Engine) -> String {
        let mut page = Page(String::new());
        let mut single = |name: &str, kind: &str, help: &str, value: u64| {
            page.head(name, kind, help);
            page.sample(name, value);
        };
        let gauge = "gauge";
        single("toroid_serve_places", gauge, "Texts that can be written side by side.", engine.room.places as u64);
        single("toroid_serve_running", gauge, "Texts that are read or written now.", get(&self.running));
        single("toroid_serve_waiting", gauge, "Texts that wait for a place.", engine.num_waiting() as u64);
        single("toroid_serve_weight_bytes", gauge, "Memory of the weights.", engine.memory.weight_bytes as u64);
        let help = "Memory of keys and values when all places are full.";
        single("toroid_serve_cache_bytes_max", gauge, help, engine.memory.cache_bytes as u64);
        single("toroid_serve_prompt_tokens_total", "counter", "Tokens of prompts.", get(&self.prompt_tokens));
        single("toroid_serve_generated_tokens_total", "counter", "Tokens that were generated.", get(&self.tokens));
        let help = "Texts that nobody wanted any more before they ended.";
        single("toroid_serve_abandoned_total", "counter", help, get(&self.gone));
        page.head("toroid_serve_texts_total", "counter", "Texts that ended, by reason.");
        for finish in [Finish::Stop, Finish::Length, Finish::Context] {
            let sample = format!("toroid_serve_texts_total{{finish=\"{}\"}}", finish.name());
            page.sample(&sample, get(&self.ended[finish as usize]));
        }
        page.head("toroid_serve_answers_total", "counter", "Answers over HTTP, by class of their status.");
        for (class, counter) in ["2xx", "4xx", "5xx"].into_iter().zip(&self.answers) {
            page.sample(&format!("toroid_serve_answers_total{{status=\"{class}\"}}"), get(counter));
        }
        self.steps.write(&mut page, "toroid_serve_step_seconds", "One forward of all that is read and written.");
        let help = "From a request to the first token of its text.";
        self.first_tokens.write(&mut page, "toroid_serve_first_token_seconds", help);
        page.0
    }
}

/// A page that is being written.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_end() {
        let histogram = Histogram::default();
        for us in [50, 100, 101, 2_000, 500_000_000] {
            histogram.add(Duration::from_micros(us));
        }
        let mut page = Page(String::new());
        histogram.write(&mut page, "x", "of a test");
        for line in [
            "x_bucket{le=\"0.0001\"} 2",
            "x_bucket{le=\"0.0003\"} 3",
            "x_bucket{le=\"0.003\"} 4",
            "x_bucket{le=\"100\"} 4",
            "x_bucket{le=\"+Inf\"} 5",
            "x_count 5",
            "x_sum 500.002251",
        ] {
            assert!(page.0.lines().any(|found| found == line), "{line} in {}", page.0);
        }
    }
}
