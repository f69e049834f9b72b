//! What is done for a call, step by step, as spans below the call's own (`grpc::calls`).

use toroid_proto::CALL_TARGET;
use tracing::{Span, trace_span};

/// A step of this call; none where the call has no span: where nobody takes spans, or where it is of no call.
pub(crate) fn step_of(call: &Span, name: &'static str) -> Span {
    if call.is_disabled() {
        return Span::none();
    }
    trace_span!(target: CALL_TARGET, parent: call, "step", otel.name = name)
}

/// The same of the call that is worked on now.
pub(crate) fn step(name: &'static str) -> Span {
    step_of(&Span::current(), name)
}
