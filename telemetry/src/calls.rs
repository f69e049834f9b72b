//! Spans that are open while this process works on a call: one that it is asked, one that it asks others, and the steps of either.
//!
//! ```text
//!   trace_span!(target: CALL_TARGET, traceparent, ...) ──> tracing-opentelemetry ──> sampler of the SDK ── ends ──> queue ──> export
//!                              '── the caller's, which the span is below
//! ```
//!
//! Such a span lives within its process, unlike those of [`crate::spans`], so it is a span of `tracing`: what it is the fields `otel.name`,
//! `otel.kind` and `otel.status_code` say, `traceparent` is the caller's by W3C's trace context, and all other fields are attributes by their names.
//! The variables OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG, which the SDK reads, say which are kept: all, and of a trace that its caller does not
//! keep none.
//!
//! Whoever opens one depends on `tracing` alone. Where no collector is named no layer is interested in the target, and it costs a comparison.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, FormatFields, Writer};
use tracing_subscriber::layer::{Context as OfLayer, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::spans::{Queue, scope};

const TRACEPARENT: &str = "traceparent";

/// Takes spans of calls, each below the one that its `traceparent` names.
pub(crate) struct Calls<S> {
    inner: OpenTelemetryLayer<S, SdkTracer>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Calls<S> {
    pub fn new(queue: Queue) -> Calls<S> {
        let provider = SdkTracerProvider::builder().with_span_processor(IntoQueue(queue)).build();
        let inner = tracing_opentelemetry::layer().with_tracer(provider.tracer_with_scope(scope()));
        Calls { inner: inner.with_location(false).with_threads(false).with_tracked_inactivity(false) }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Calls<S> {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        self.inner.on_register_dispatch(dispatch);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: OfLayer<'_, S>) {
        let mut caller = Caller::default();
        attributes.record(&mut caller);
        let above = (!caller.0.is_empty()).then(|| caller.above().attach());
        self.inner.on_new_span(attributes, id, context);
        drop(above);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: OfLayer<'_, S>) {
        self.inner.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: OfLayer<'_, S>) {
        self.inner.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: OfLayer<'_, S>) {
        self.inner.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: OfLayer<'_, S>) {
        self.inner.on_close(id, context);
    }
}

/// The `traceparent` among the fields of a span; empty: there is none.
#[derive(Default)]
struct Caller(String);

impl Caller {
    /// One that is none by the standard counts for nothing.
    fn above(self) -> Context {
        let headers = HashMap::from([(TRACEPARENT.to_string(), self.0)]);
        TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
    }
}

impl Visit for Caller {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == TRACEPARENT {
            self.0 = value.into();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Where the SDK's spans go when they have ended.
#[derive(Debug)]
struct IntoQueue(Queue);

impl SpanProcessor for IntoQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        if span.span_context.is_sampled() {
            // It says which span is above, which the span itself does by now.
            span.attributes.retain(|attribute| attribute.key.as_str() != TRACEPARENT);
            self.0.push(span);
        }
    }

    /// Nothing lies here: the thread that exports empties the queue when the process ends.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Of the call that this thread works on now, in hex; `None`: it works on none, or nobody takes spans.
pub(crate) fn trace_id() -> Option<String> {
    Context::map_current(|context| {
        let span = context.has_active_span().then(|| context.span())?;
        let context = span.span_context();
        context.is_valid().then(|| context.trace_id().to_string())
    })
}

/// What a call says of the trace that it belongs to: that of the span which the caller is in, else what the environment variable TRACEPARENT has.
pub fn traceparent() -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&Context::current(), &mut headers);
    headers.remove(TRACEPARENT).or_else(|| {
        let found = std::env::var("TRACEPARENT").ok()?;
        let is_one = Caller(found.trim().to_string()).above().span().span_context().is_valid();
        is_one.then(|| found.trim().to_string())
    })
}

/// The fields of a line of text, and the trace of the call that it is written in, unless it names one itself.
#[derive(Default)]
pub(crate) struct WithTrace(DefaultFields);

impl<'writer> FormatFields<'writer> for WithTrace {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut names = NamesTrace(false);
        fields.record(&mut names);
        self.0.format_fields(writer.by_ref(), fields)?;
        match trace_id().filter(|_| !names.0) {
            Some(id) => write!(writer, " trace_id={id}"),
            None => Ok(()),
        }
    }
}

struct NamesTrace(bool);

impl Visit for NamesTrace {
    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.0 |= field.name() == "trace_id";
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::Ordering;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use opentelemetry::trace::{SpanKind, Status};
    use tokio::sync::mpsc;
    use toroid_proto::CALL_TARGET;
    use tracing::{Instrument as _, trace_span};
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::filter;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const ABOVE: &str = "00f067aa0ba902b7";

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Kept;

        fn make_writer(&'a self) -> Kept {
            self.clone()
        }
    }

    /// What a span costs where it begins goes by all subscribers that there are, of all threads: so one test at a time has one.
    static SUBSCRIBED: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        SUBSCRIBED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spans that come of this, how many were dropped, and the lines of text.
    fn spans_of(doing: impl FnOnce()) -> (Vec<SpanData>, u64, String) {
        let _alone = alone();
        let (spans, mut received) = mpsc::channel(8);
        let queue = Queue { spans, num_dropped: Arc::default() };
        let num_dropped = Arc::clone(&queue.num_dropped);
        let kept = Kept::default();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(kept.clone());
        let lines = lines.fmt_fields(WithTrace::default()).with_filter(filter::log_filter(None, "info").0);
        let calls = Calls::new(queue).with_filter(filter::of_calls());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines).with(calls), doing);
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        (std::iter::from_fn(|| received.try_recv().ok()).collect(), num_dropped.load(Ordering::Relaxed), text)
    }

    fn traceparent_of(flags: &str) -> String {
        format!("00-{TRACE}-{ABOVE}-{flags}")
    }

    #[test]
    fn a_call_is_below_its_callers_span_and_its_steps_are_below_it() {
        let (spans, num_dropped, text) = spans_of(|| {
            let traceparent = traceparent_of("01");
            let call = trace_span!(
                target: CALL_TARGET, "call", otel.name = "a.B/C", otel.kind = "server", traceparent, rpc.system.name = "grpc",
                "rpc.response.status_code" = tracing::field::Empty, otel.status_code = tracing::field::Empty
            );
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let work = async {
                tracing::info!("taken");
                tracing::info!(trace_id = "its own", "an incident's");
                let step = trace_span!(target: CALL_TARGET, "step");
                assert!(super::traceparent().is_some_and(|found| found.contains(TRACE) && !found.contains(ABOVE)));
                async { tokio::task::yield_now().await }.instrument(step).await;
            };
            runtime.block_on(work.instrument(call.clone()));
            tracing::info!("idle");
            call.record("rpc.response.status_code", "INTERNAL");
            call.record("otel.status_code", "error");
        });
        let [step, call] = spans.as_slice() else { panic!("{spans:#?}") };
        assert_eq!(num_dropped, 0);
        assert_eq!((call.name.as_ref(), &call.span_kind), ("a.B/C", &SpanKind::Server));
        assert_eq!(call.span_context.trace_id().to_string(), TRACE);
        assert_eq!(call.parent_span_id.to_string(), ABOVE);
        assert!(matches!(call.status, Status::Error { .. }), "{call:#?}");
        let has = |name: &str| call.attributes.iter().any(|attribute| attribute.key.as_str() == name);
        assert!(has("rpc.system.name") && has("rpc.response.status_code") && !has("traceparent"), "{call:#?}");
        assert_eq!(step.name.as_ref(), "step");
        assert_eq!(step.parent_span_id, call.span_context.span_id());
        assert_eq!(step.span_context.trace_id(), call.span_context.trace_id());
        let with_trace = format!("trace_id={TRACE}");
        let line = |words: &str| text.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{text}"));
        assert!(line("taken").ends_with(&with_trace), "{text}");
        assert!(line("an incident's").contains("its own") && !line("an incident's").contains(TRACE), "{text}");
        assert!(!line("idle").contains("trace_id"), "{text}");
    }

    #[test]
    fn a_trace_that_its_caller_does_not_keep_is_not_kept_and_one_that_is_none_begins_anew() {
        let call = |traceparent: &str| trace_span!(target: CALL_TARGET, "call", traceparent).in_scope(super::trace_id);
        let (spans, ..) = spans_of(|| {
            assert_eq!(call(&traceparent_of("00")).as_deref(), Some(TRACE), "lines name it all the same");
            for none in ["", "00-0-0-01", &traceparent_of("01").to_uppercase()] {
                assert_ne!(call(none).expect("a trace of its own"), TRACE, "{none}");
            }
        });
        assert_eq!(spans.len(), 3, "{spans:#?}");
        assert!(spans.iter().all(|span| span.parent_span_id == opentelemetry::trace::SpanId::INVALID), "{spans:#?}");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (spans, num_dropped, _) = spans_of(|| (0..11).for_each(|_| drop(trace_span!(target: CALL_TARGET, "call"))));
        assert_eq!((spans.len(), num_dropped), (8, 3));
    }

    #[test]
    fn where_nobody_takes_spans_there_are_none() {
        let _alone = alone();
        let lines = tracing_subscriber::fmt::layer().with_filter(filter::log_filter(Some("trace"), "info").0);
        let cost = || -> u64 { panic!("its fields are not asked for") };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let span = trace_span!(target: CALL_TARGET, "call", cost = cost());
            assert!(span.is_disabled());
            assert_eq!(span.in_scope(super::trace_id), None);
        });
    }
}
