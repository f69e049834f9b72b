//! A line of the log as one object of JSON.
//!
//! ```text
//!   {"timestamp":"2026-11-29T09:58:54.123456Z","level":"INFO","target":"toroid_worker::control","message":"...","job":"tiny-1","epoch":3,
//!    "rank":5,"step":120,"trace_id":"4bf92f...","fields":{"what the event has":"beside them"}}
//! ```
//!
//! `job`, `epoch`, `rank`, `step`, `trace_id` and `span_id` are what the event itself names, else the place of the process, whose trace is that of the call
//! which it works on there, if any; what there is not is left out.

use std::fmt::Debug;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use toroid_torus::units;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context as OfLayer, Layer};

use crate::calls;
use crate::context::Context;

/// Beside the message, what an event names at the top of its line.
const LIFTED: [&str; 6] = ["job", "epoch", "rank", "step", "trace_id", "span_id"];

/// Writes events to standard error.
pub(crate) struct Lines(Option<Arc<dyn Context>>);

impl Lines {
    pub fn new(context: Option<Arc<dyn Context>>) -> Lines {
        Lines(context)
    }

    fn object(&self, event: &Event<'_>, now: SystemTime) -> Value {
        let mut found = Fields::default();
        event.record(&mut found);
        let Fields { message, mut all } = found;
        let mut line = Map::new();
        line.insert("timestamp".into(), timestamp(now).into());
        line.insert("level".into(), event.metadata().level().as_str().into());
        line.insert("target".into(), event.metadata().target().into());
        line.insert("message".into(), message.into());
        if let Some(place) = self.0.as_ref().and_then(|context| context.place()) {
            line.insert("job".into(), place.job.into());
            line.insert("epoch".into(), place.epoch.into());
            line.insert("rank".into(), place.rank.into());
            line.insert("step".into(), place.step.into());
            if let Some(trace_id) = place.trace_id {
                line.insert("trace_id".into(), trace_id.into());
            }
        }
        if let Some(trace_id) = calls::trace_id() {
            line.insert("trace_id".into(), trace_id.into());
        }
        for name in LIFTED {
            // An empty one says that there is none.
            if let Some(value) = all.remove(name).filter(|value| value.as_str() != Some("")) {
                line.insert(name.into(), value);
            }
        }
        if !all.is_empty() {
            line.insert("fields".into(), all.into());
        }
        line.into()
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: OfLayer<'_, S>) {
        let mut line = self.object(event, SystemTime::now()).to_string();
        line.push('\n');
        // Whoever is gone needs no words.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

/// A panic is a line of the log like any other, in the place of the lines that the standard library prints.
pub(crate) fn say_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::error!(target: "panic", thread = name, "{info}");
    }));
}

/// RFC 3339, in UTC.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    format!("{}.{:06}Z", units::time(ms).replace(' ', "T"), since.subsec_micros())
}

#[derive(Default)]
struct Fields {
    message: String,
    all: Map<String, Value>,
}

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.all.insert(name.into(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::context::Place;
    use crate::filter;

    /// Keeps the lines instead of printing them.
    struct Kept(Lines, Arc<Mutex<Vec<Value>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: OfLayer<'_, S>) {
            let at = UNIX_EPOCH + Duration::from_micros(1_764_410_334_123_456);
            self.1.lock().unwrap().push(self.0.object(event, at));
        }
    }

    struct AtPlace;

    impl Context for AtPlace {
        fn place(&self) -> Option<Place> {
            Some(Place { job: "tiny-1".into(), epoch: 3, rank: 5, step: 120, trace_id: Some("4bf9".into()) })
        }

        fn line(&self, _: &str) {}
    }

    fn lines_of(context: Option<Arc<dyn Context>>, log: impl FnOnce()) -> Vec<Value> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Kept(Lines::new(context), kept.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let lines = kept.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn a_line_is_one_object_with_the_place_of_its_process() {
        let lines = lines_of(Some(Arc::new(AtPlace)), || {
            tracing::warn!(target: "part", peer = 7, why = %"it \"broke\"\n", "link lost");
        });
        let expected = serde_json::json!({
            "timestamp": "2025-11-29T09:58:54.123456Z", "level": "WARN", "target": "part", "message": "link lost",
            "job": "tiny-1", "epoch": 3, "rank": 5, "step": 120, "trace_id": "4bf9",
            "fields": {"peer": 7, "why": "it \"broke\"\n"},
        });
        assert_eq!(lines, std::slice::from_ref(&expected));
        assert!(!expected.to_string().contains('\n'), "one line");
    }

    #[test]
    fn a_line_that_is_written_in_a_call_has_its_trace() {
        let (spans, _waiting) = tokio::sync::mpsc::channel(1);
        let calls = calls::Calls::new(crate::spans::Queue { spans, num_dropped: Arc::default() });
        let kept = Arc::new(Mutex::new(Vec::new()));
        let lines =
            Kept(Lines::new(Some(Arc::new(AtPlace))), kept.clone()).with_filter(filter::log_filter(None, "info").0);
        let subscriber = tracing_subscriber::registry().with(lines).with(calls.with_filter(filter::of_calls()));
        tracing::subscriber::with_default(subscriber, || {
            let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            let call = tracing::trace_span!(target: toroid_proto::CALL_TARGET, "call", traceparent);
            call.in_scope(|| tracing::info!("within"));
            tracing::info!("after it");
        });
        let found: Vec<Value> = kept.lock().unwrap().iter().map(|line: &Value| line["trace_id"].clone()).collect();
        assert_eq!(found, ["4bf92f3577b34da6a3ce929d0e0e4736", "4bf9"]);
    }

    #[test]
    fn what_an_event_names_itself_counts_and_nothing_is_made_up() {
        let lines = lines_of(None, || tracing::info!(job = "j-2", step = 9, trace_id = "", "done"));
        let line = &lines[0];
        assert_eq!((&line["job"], &line["step"]), (&Value::from("j-2"), &Value::from(9)));
        for absent in ["rank", "epoch", "trace_id", "fields"] {
            assert!(line.get(absent).is_none(), "{absent}: {line}");
        }
    }
}
