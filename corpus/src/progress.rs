//! How the progress is shown, and what was asked for printed.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use toroid_corpus::stage::Watch;

/// Bars on a terminal, lines elsewhere.
pub struct Progress {
    pub bar: ProgressBar,
    is_terminal: bool,
    phase: Mutex<Option<(String, Instant)>>,
    num_bytes: AtomicU64,
}

impl Progress {
    pub fn new() -> Result<Progress> {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = "{msg:40} {bar:30} {pos}/{len} {elapsed} left {eta}";
        bar.set_style(ProgressStyle::with_template(style).context("a template of ours is wrong")?);
        Ok(Progress { bar, is_terminal, phase: Mutex::default(), num_bytes: AtomicU64::new(0) })
    }

    /// A line about the phase that is over.
    pub fn end(&self) {
        let phase = self.phase.lock().expect("nothing panics while it holds this").take();
        let num_bytes = self.num_bytes.swap(0, Ordering::Relaxed);
        if let Some((what, start)) = phase {
            let seconds = start.elapsed().as_secs_f64();
            let mega = num_bytes as f64 / 1e6;
            let rate = if num_bytes > 0 {
                format!(", {mega:.1} MB at {:.1} MB/s", mega / seconds.max(1e-6))
            } else {
                String::new()
            };
            self.line(&format!("{what}: {seconds:.2} s{rate}"));
        }
    }

    pub fn line(&self, text: &str) {
        if self.is_terminal {
            self.bar.println(text);
        } else {
            // Whoever is gone needs no words.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

impl Watch for Progress {
    fn begin(&self, what: &str, num_steps: u64) {
        self.end();
        self.bar.set_message(what.to_owned());
        self.bar.set_length(num_steps);
        self.bar.set_position(0);
        self.bar.reset_eta();
        *self.phase.lock().expect("nothing panics while it holds this") = Some((what.to_owned(), Instant::now()));
    }

    fn step(&self, bytes: u64) {
        self.num_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc(1);
    }

    fn note(&self, text: &str) {
        self.end();
        self.line(text);
    }
}

/// To standard output.
pub fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}
