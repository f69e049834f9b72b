//! Takes spans to a collector, on a thread with a runtime of its own.
//!
//! ```text
//!   any thread ── try_send ──> queue, bounded ──> this thread: a batch ── OTLP ──> collector
//!                   | full: dropped, counted           | error, timeout: dropped, counted; said once an outage
//! ```
//!
//! Why of its own: exporters of OpenTelemetry are known to deadlock where they share a runtime with whoever waits for them (issues 2583, 2715, 3176 and
//! 3380 of opentelemetry-rust), and a runtime of a worker is never to wait for a collector. Whoever ends the process waits for this thread no longer than
//! `ENDS_WITHIN`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{mpsc, watch};
use tracing::Subscriber;
use tracing_subscriber::registry::LookupSpan;

use crate::calls::Calls;
use crate::settings::{Collector, Protocol};
use crate::spans::{Queue, Spans};

/// Spans that wait; beyond, they are dropped.
const MAX_WAITING: usize = 2048;
const MAX_BATCH: usize = 512;
/// For how long more spans are waited for, before a batch goes.
const LINGER: Duration = Duration::from_millis(500);
/// What waits when the process ends has so long to go.
const LAST_BATCH: Duration = Duration::from_millis(1500);
/// How long the end of the process waits for the thread.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// The thread that exports.
pub(crate) struct Export {
    queue: Queue,
    ends: watch::Sender<bool>,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Export {
    pub fn start(collector: Collector, resource: Resource) -> io::Result<Export> {
        let (spans, waiting) = mpsc::channel(MAX_WAITING);
        let queue = Queue { spans, num_dropped: Arc::default() };
        let (ends, is_to_end) = watch::channel(false);
        let (done, ended) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let num_dropped = Arc::clone(&queue.num_dropped);
        std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            // Told when the thread ends, however it does.
            let _done = done;
            let carried = runtime.block_on(async move {
                let exporter = exporter(&collector, &resource)?;
                Carrier { exporter, collector, num_dropped, is_out: false }.run(waiting, is_to_end).await;
                Ok::<(), ExporterBuildError>(())
            });
            if let Err(error) = carried {
                tracing::warn!("no spans are exported: {error}");
            }
            // A connection that hangs holds nobody up.
            runtime.shutdown_background();
        })?;
        Ok(Export { queue, ends, ended })
    }

    /// What takes spans from events.
    pub fn layer(&self) -> Spans {
        Spans::new(self.queue.clone())
    }

    /// What takes the spans of calls.
    pub fn calls<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> Calls<S> {
        Calls::new(self.queue.clone())
    }

    /// Sends what waits, within a deadline.
    pub fn end(self) {
        self.ends.send_replace(true);
        // Either it has ended, which nothing is sent for, or it takes too long.
        let _ = self.ended.recv_timeout(ENDS_WITHIN);
    }
}

/// Needs the runtime that it is used on.
fn exporter(collector: &Collector, resource: &Resource) -> Result<SpanExporter, ExporterBuildError> {
    let Collector { protocol, endpoint, timeout } = collector;
    let mut exporter = match protocol {
        Protocol::Grpc => SpanExporter::builder()
            .with_tonic()
            .with_protocol(opentelemetry_otlp::Protocol::Grpc)
            .with_endpoint(endpoint)
            .with_timeout(*timeout)
            .build()?,
        Protocol::HttpProtobuf => SpanExporter::builder()
            .with_http()
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(*timeout)
            .build()?,
    };
    exporter.set_resource(resource);
    Ok(exporter)
}

struct Carrier {
    exporter: SpanExporter,
    collector: Collector,
    num_dropped: Arc<AtomicU64>,
    /// The collector does not take spans, which was said.
    is_out: bool,
}

impl Carrier {
    async fn run(mut self, mut waiting: mpsc::Receiver<SpanData>, mut is_to_end: watch::Receiver<bool>) {
        let mut ends = is_to_end.clone();
        let over = async {
            // Whoever would say so is gone: that is the same.
            let _ = is_to_end.wait_for(|is_to_end| *is_to_end).await;
            tokio::time::sleep(LAST_BATCH).await;
        };
        tokio::pin!(over);
        loop {
            let mut batch = Vec::new();
            let is_last = tokio::select! {
                biased;
                num = waiting.recv_many(&mut batch, MAX_BATCH) => num == 0,
                _ = ends.wait_for(|ends| *ends) => true,
            };
            if !is_last {
                tokio::select! {
                    () = tokio::time::sleep(LINGER) => {}
                    _ = ends.wait_for(|ends| *ends) => {}
                }
            }
            while batch.len() < MAX_BATCH
                && let Ok(span) = waiting.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                break;
            }
            let num = batch.len() as u64;
            let sent = tokio::select! {
                () = &mut over => Err("the process ends".into()),
                sent = tokio::time::timeout(self.collector.timeout, self.exporter.export(batch)) => match sent {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer within {:?}", self.collector.timeout)),
                },
            };
            let is_over = sent.as_ref().is_err_and(|error| error == "the process ends");
            self.say(sent, num);
            if is_over {
                break;
            }
        }
        let num = self.num_dropped.load(Ordering::Relaxed);
        if num > 0 {
            tracing::warn!("{num} spans of this process were not exported");
        }
    }

    /// The log hears of an outage when it begins, and when it is over.
    fn say(&mut self, sent: Result<(), String>, num_spans: u64) {
        let Collector { endpoint, .. } = &self.collector;
        match sent {
            Err(error) => {
                self.num_dropped.fetch_add(num_spans, Ordering::Relaxed);
                if !std::mem::replace(&mut self.is_out, true) {
                    tracing::warn!("the collector at {endpoint} does not take spans, they are dropped: {error}");
                }
            }
            Ok(()) if std::mem::take(&mut self.is_out) => {
                let num = self.num_dropped.load(Ordering::Relaxed);
                tracing::info!("the collector at {endpoint} takes spans again; {num} were dropped");
            }
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use opentelemetry::trace::TraceId;
    use toroid_proto::SPAN_TARGET;
    use toroid_testkit::collector::Collector as Fake;
    use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

    use super::*;
    use crate::filter;
    use crate::settings::{self, Service};

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn collector(protocol: Protocol, endpoint: String) -> Collector {
        Collector { protocol, endpoint, timeout: Duration::from_secs(10) }
    }

    /// Ends so many spans, on a runtime of one thread that must not be held up, and then the process's telemetry. Says how long telling took, and
    /// ending.
    fn tell(collector: Collector, num_spans: usize) -> (Duration, Duration, u64) {
        let export = Export::start(collector, settings::resource(Service::Worker)).unwrap();
        let subscriber = tracing_subscriber::registry().with(export.layer().with_filter(filter::of_spans()));
        let num_dropped = export.queue.num_dropped.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        tracing::subscriber::with_default(subscriber, || {
            runtime.block_on(async {
                let begun = Instant::now();
                for n in 0..num_spans as u64 {
                    let traceparent = traceparent.as_str();
                    tracing::trace!(target: SPAN_TARGET, traceparent, start_us = n, end_us = n + 1, rank = n, "heal");
                }
                let told = begun.elapsed();
                let begun = Instant::now();
                export.end();
                (told, begun.elapsed(), num_dropped.load(Ordering::Relaxed))
            })
        })
    }

    /// More than wait: whoever ends spans is never held up, whatever the collector does.
    fn check_costs_nothing(what: &str, endpoint: String) {
        for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
            let (told, ended, num_dropped) = tell(collector(protocol, endpoint.clone()), 3 * MAX_WAITING);
            assert!(told < LAST_BATCH, "{what}, {protocol:?}: telling took {told:?}");
            assert!(ended < ENDS_WITHIN + LAST_BATCH, "{what}, {protocol:?}: the end took {ended:?}");
            assert!(num_dropped > 0, "{what}, {protocol:?}: what was not taken is counted");
        }
    }

    #[test]
    fn a_collector_that_is_not_there_costs_nothing_but_spans() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        check_costs_nothing("dead", format!("http://{free}"));
    }

    #[test]
    fn a_collector_that_takes_the_connection_and_says_nothing_costs_nothing_but_spans() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        check_costs_nothing("silent", format!("http://{}", silent.local_addr().unwrap()));
    }

    #[test]
    fn a_collector_that_refuses_costs_nothing_but_spans() {
        let refuses = Fake::that_refuses().unwrap();
        check_costs_nothing("refusing", refuses.url());
        assert!(refuses.num_requests() > 0, "it was asked");
    }

    #[test]
    fn both_protocols_bring_spans_with_their_resource() {
        for (protocol, path) in [(Protocol::Grpc, ""), (Protocol::HttpProtobuf, "/v1/traces")] {
            let fake = Fake::start().unwrap();
            let (_, ended, num_dropped) = tell(collector(protocol, format!("{}{path}", fake.url())), 3);
            assert!(ended < ENDS_WITHIN, "{protocol:?}: the end took {ended:?}");
            assert_eq!(num_dropped, 0, "{protocol:?}");
            let spans = fake.spans();
            assert_eq!(spans.len(), 3, "{protocol:?}: {spans:?}");
            let trace = TraceId::from_hex(TRACE).unwrap().to_bytes();
            assert!(spans.iter().all(|found| found.span.trace_id == trace), "{protocol:?}");
            assert_eq!(spans[0].resource.get("service.name").map(String::as_str), Some("toroid-worker"));
        }
    }
}
