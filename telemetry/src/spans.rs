//! Spans that have ended, as events of `tracing`: what coordinator and worker tell, without knowing who takes it.
//!
//! An event of the target [`SPAN_TARGET`] is a span. Its message is the span's name; of its fields these say what it is, and all others are attributes,
//! `toroid.` before their names:
//!
//! | field | what |
//! |---|---|
//! | `traceparent` | the trace and the span above, as W3C's trace context has them: `00-<trace>-<span>-01` |
//! | `is_root` | it is that span itself, and there is none above |
//! | `span_id` | its own id; 0 or absent: drawn |
//! | `start_us`, `end_us` | since 1970 |
//! | `error` | why it failed; empty or absent: it did not |
//!
//! One without a trace that can be read is none. Where no collector is named nobody is interested in the target, and such an event costs a comparison.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;
pub use toroid_proto::SPAN_TARGET;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Where spans wait.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub spans: mpsc::Sender<SpanData>,
    pub num_dropped: Arc<AtomicU64>,
}

/// Puts spans into the queue of those that are to be exported.
pub(crate) struct Spans {
    queue: Queue,
    scope: InstrumentationScope,
}

impl Queue {
    /// Never waits: what has no room is dropped and counted.
    pub fn push(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.num_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Spans {
    pub fn new(queue: Queue) -> Spans {
        Spans { queue, scope: scope() }
    }
}

/// What all spans are made by.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("toroid").with_version(toroid_proto::BUILD_VERSION).build()
}

impl<S: Subscriber> Layer<S> for Spans {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut span = Span::default();
        event.record(&mut span);
        if let Some(data) = span.into_data(&self.scope) {
            self.queue.push(data);
        }
    }
}

/// A span as its event has it.
#[derive(Debug, Default)]
struct Span {
    name: String,
    traceparent: String,
    is_root: bool,
    span_id: u64,
    start_us: u64,
    end_us: u64,
    error: String,
    attributes: Vec<KeyValue>,
}

impl Span {
    fn into_data(self, scope: &InstrumentationScope) -> Option<SpanData> {
        let (trace_id, above) = parse_traceparent(&self.traceparent)?;
        let own = match self.span_id {
            _ if self.is_root => above,
            // An id that cannot be drawn is no reason to stop.
            0 => SpanId::from_bytes(getrandom::u64().unwrap_or(1).max(1).to_be_bytes()),
            id => SpanId::from_bytes(id.to_be_bytes()),
        };
        let at = |us: u64| -> SystemTime { UNIX_EPOCH + Duration::from_micros(us) };
        Some(SpanData {
            span_context: SpanContext::new(trace_id, own, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: if self.is_root { SpanId::INVALID } else { above },
            parent_span_is_remote: !self.is_root,
            span_kind: SpanKind::Internal,
            name: self.name.into(),
            start_time: at(self.start_us),
            end_time: at(self.end_us.max(self.start_us)),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if self.error.is_empty() { Status::Unset } else { Status::error(self.error) },
            instrumentation_scope: scope.clone(),
        })
    }

    fn attribute(&mut self, field: &Field, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(format!("toroid.{}", field.name()), value));
    }
}

impl Visit for Span {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.name = value.into(),
            "traceparent" => self.traceparent = value.into(),
            "error" => self.error = value.into(),
            _ => self.attribute(field, value.to_string()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "span_id" => self.span_id = value,
            "start_us" => self.start_us = value,
            "end_us" => self.end_us = value,
            _ => self.attribute(field, i64::try_from(value).unwrap_or(i64::MAX)),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.attribute(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.attribute(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            "is_root" => self.is_root = value,
            _ => self.attribute(field, value),
        }
    }
}

/// Of version 00.
fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId)> {
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    if version != "00" || trace.len() != 32 || span.len() != 16 {
        return None;
    }
    let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
    (trace != 0 && span != 0)
        .then(|| (TraceId::from_bytes(trace.to_be_bytes()), SpanId::from_bytes(span.to_be_bytes())))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::filter;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn spans_of(tell: impl FnOnce()) -> (Vec<SpanData>, u64) {
        let (spans, mut received) = mpsc::channel(2);
        let num_dropped = Arc::default();
        let queue = Queue { spans, num_dropped: Arc::clone(&num_dropped) };
        let layer = Spans::new(queue).with_filter(filter::of_spans());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), tell);
        (std::iter::from_fn(|| received.try_recv().ok()).collect(), num_dropped.load(Ordering::Relaxed))
    }

    #[test]
    fn an_event_of_the_target_is_a_span_and_others_are_none() {
        let (spans, num_dropped) = spans_of(|| {
            tracing::error!("a line of the log");
            tracing::trace!(
                target: SPAN_TARGET, traceparent = PARENT, start_us = 5_u64, end_us = 9_u64, job = "j-1", rank = 3_u64, "heal"
            );
            let error = "disk full";
            tracing::trace!(target: SPAN_TARGET, traceparent = PARENT, is_root = true, start_us = 5_u64, end_us = 3_u64, error, "incident");
            tracing::trace!(target: SPAN_TARGET, traceparent = "00-0-0-01", start_us = 5_u64, end_us = 9_u64, "of no trace");
        });
        let [heal, incident] = spans.as_slice() else { panic!("{spans:#?}") };
        assert_eq!(num_dropped, 0);
        assert_eq!(heal.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(heal.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert!(heal.span_context.is_valid() && heal.span_context.span_id() != heal.parent_span_id);
        assert_eq!(heal.attributes, [KeyValue::new("toroid.job", "j-1"), KeyValue::new("toroid.rank", 3)]);
        assert_eq!((heal.name.as_ref(), heal.status.clone()), ("heal", Status::Unset));
        assert_eq!(heal.end_time.duration_since(heal.start_time).unwrap(), Duration::from_micros(4));
        assert_eq!((incident.span_context.span_id(), incident.parent_span_id), (heal.parent_span_id, SpanId::INVALID));
        assert_eq!(incident.status, Status::error("disk full"));
        assert!(incident.end_time >= incident.start_time);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (spans, num_dropped) = spans_of(|| {
            for _ in 0..5 {
                tracing::trace!(target: SPAN_TARGET, traceparent = PARENT, start_us = 1_u64, end_us = 2_u64, "step");
            }
        });
        assert_eq!((spans.len(), num_dropped), (2, 3));
    }
}
