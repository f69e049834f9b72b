//! What coordinator and worker say beside their work: lines of a log, as text or as JSON, and spans for an OpenTelemetry collector.
//!
//! ```text
//!   tracing ──> log      lines on standard error: `text` for people, `json` for machines, with the process's place in each
//!           ├─> recent   each line to whoever keeps the last ones (a worker's, for its coordinator)
//!           ├─> spans    events of one target are spans that have ended ──┬─ queue, bounded ──> export, a thread of its own ──> collector
//!           └─> calls    spans of another are open while calls are made ──┘
//! ```
//!
//! Invariants:
//! - **Nobody waits for a collector.** Whoever ends a span puts it into a queue, or drops it where that is full. The thread that exports has a runtime of
//!   its own, and ends within a deadline, whatever the collector does: refuse, say nothing, or be gone. It costs spans and nothing else.
//! - The parts that decide know nothing of this crate, and the simulation does not build it: code that has a span to tell says so with an event of
//!   `tracing`, whose fields [`spans`] names.
//!
//! Deliberately absent: what is worth a span or a line; metrics, which are at the coordinator's `/metrics`.

#![forbid(unsafe_code)]

mod calls;
mod context;
mod export;
mod filter;
mod json;
mod recent;
pub mod settings;
pub mod spans;

use std::io::IsTerminal as _;
use std::sync::Arc;

use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

pub use calls::traceparent;
pub use context::{Context, Place};
use export::Export;
use settings::{Format, Service, Settings};

/// Logs and spans of this process, until it ends.
pub struct Telemetry {
    export: Option<Export>,
}

impl Telemetry {
    /// Sets up the log of this process and what becomes of its spans. Once a process.
    pub fn start(settings: Settings, context: Option<Arc<dyn Context>>) -> Telemetry {
        let wanted = std::env::var_os("RUST_LOG").map(|value| value.to_string_lossy().into_owned());
        let (filter, complaint) = filter::log_filter(wanted.as_deref(), settings.default_level);
        let has_colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let (text, json) = match settings.format {
            Format::Text => {
                let lines = tracing_subscriber::fmt::layer().with_ansi(has_colours).with_writer(std::io::stderr);
                let lines = lines.fmt_fields(calls::WithTrace::default());
                (Some(lines.with_filter(filter)), None)
            }
            Format::Json => (None, Some(json::Lines::new(context.clone()).with_filter(filter))),
        };
        let recent = context.map(|context| recent::layer(context).with_filter(filter::of_recent()));
        let (export, warning) = match settings.service.map(start_export) {
            Some(Ok(export)) => (export, None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let spans = export.as_ref().map(|export| export.layer().with_filter(filter::of_spans()));
        let calls = export.as_ref().map(|export| export.calls().with_filter(filter::of_calls()));
        tracing_subscriber::registry().with(text).with(json).with(recent).with(spans).with(calls).init();
        if settings.format == Format::Json {
            json::say_panics();
        }
        for complaint in complaint.into_iter().chain(warning) {
            tracing::warn!("{complaint}");
        }
        Telemetry { export }
    }

    /// Sends what waits, for as long as that may take.
    pub fn end(self) {
        if let Some(export) = self.export {
            export.end();
        }
    }
}

fn start_export(service: Service) -> Result<Option<Export>, String> {
    let config = settings::Collector::from_environment(|name| std::env::var(name).ok())?;
    let Some(config) = config else { return Ok(None) };
    let export = Export::start(config, settings::resource(service));
    export.map(Some).map_err(|error| format!("no spans are exported: cannot start the thread for it: {error}"))
}
