//! How long calls take: the histogram `rpc.server.call.duration` of OpenTelemetry's semantic conventions for RPC, in Prometheus' form.
//!
//! A call lasts from when its headers are there until its answer has ended; of one whose caller has gone before, the code is CANCELLED. Methods are those that
//! somebody may call ([`super::rules`]), and all others are `_OTHER`, as the conventions have it: strangers make no new series.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tonic::Code;
use toroid_proto as proto;

/// As Prometheus has the name.
const NAME: &str = "rpc_server_call_duration_seconds";
/// Upper bounds, in seconds: those that the conventions advise.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
pub(super) const OTHER: &str = "_OTHER";

#[derive(Debug, Clone, Default)]
struct Histogram {
    /// By bound, and beyond the last one.
    counts: [u64; BOUNDS.len() + 1],
    sum_s: f64,
}

type ByMethod = BTreeMap<(&'static str, &'static str), Histogram>;

/// Of all calls since this process began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durations(Arc<Mutex<ByMethod>>);

/// A call that is being made; one that is dropped without an answer was cancelled.
#[derive(Debug)]
pub(super) struct Running {
    durations: Durations,
    method: &'static str,
    since: Instant,
    is_over: bool,
}

impl Durations {
    /// `path`: as a rule has it; `None`: of no call that there is.
    pub(super) fn begin(&self, path: Option<&'static str>) -> Running {
        let method = path.map_or(OTHER, |path| path.trim_start_matches('/'));
        Running { durations: self.clone(), method, since: Instant::now(), is_over: false }
    }

    fn record(&self, method: &'static str, code: Code, seconds: f64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_method = all.entry((method, proto::status_name(code as i32))).or_default();
        of_method.counts[BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        of_method.sum_s += seconds;
    }

    /// In Prometheus' text format; empty before the first call has ended.
    pub fn text(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = String::new();
        if all.is_empty() {
            return text;
        }
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {NAME} Time that calls take, streams from their beginning to their end.");
        let _ = writeln!(text, "# TYPE {NAME} histogram");
        for ((method, code), Histogram { counts, sum_s }) in all {
            let labels =
                format!("rpc_system_name=\"grpc\",rpc_method=\"{method}\",rpc_response_status_code=\"{code}\"");
            let mut num = 0;
            let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_string()]);
            for (bound, count) in bounds.zip(counts) {
                num += count;
                let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {num}");
            }
            let _ = writeln!(text, "{NAME}_sum{{{labels}}} {sum_s}\n{NAME}_count{{{labels}}} {num}");
        }
        text
    }
}

impl Running {
    pub(super) fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.durations.record(self.method, code, self.since.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_once_by_its_method_and_how_it_ended() {
        let durations = Durations::default();
        assert_eq!(durations.text(), "");
        let path = "/toroid.v1.JobService/GetJob";
        let mut answered = durations.begin(Some(path));
        answered.end(Code::NotFound);
        answered.end(Code::Ok);
        drop(answered);
        drop(durations.begin(Some(path)));
        durations.begin(None).end(Code::Unimplemented);
        let text = durations.text();
        for (method, code) in [
            ("toroid.v1.JobService/GetJob", "NOT_FOUND"),
            ("toroid.v1.JobService/GetJob", "CANCELLED"),
            ("_OTHER", "UNIMPLEMENTED"),
        ] {
            let labels =
                format!("rpc_system_name=\"grpc\",rpc_method=\"{method}\",rpc_response_status_code=\"{code}\"");
            assert!(text.contains(&format!("{NAME}_count{{{labels}}} 1\n")), "{labels} in\n{text}");
            assert!(text.contains(&format!("{NAME}_bucket{{{labels},le=\"+Inf\"}} 1\n")), "{labels} in\n{text}");
        }
        assert_eq!(text.matches("# TYPE").count(), 1);
    }

    #[test]
    fn buckets_are_cumulative_and_a_bound_is_within() {
        let durations = Durations::default();
        for seconds in [0.005, 0.006, 11.0] {
            durations.record(OTHER, Code::Ok, seconds);
        }
        let text = durations.text();
        for (bound, num) in [("0.005", 1), ("0.01", 2), ("10", 2), ("+Inf", 3)] {
            assert!(text.contains(&format!("le=\"{bound}\"}} {num}\n")), "{bound} in\n{text}");
        }
    }
}
