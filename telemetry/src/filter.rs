//! Which events become lines of the log.

use toroid_proto::{CALL_TARGET, SPAN_TARGET};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// What is logged, and what is wrong with what was asked for. Spans are no lines.
pub(crate) fn log_filter(wanted: Option<&str>, default_level: &str) -> (Targets, Option<String>) {
    let default = || default_level.parse::<Targets>().expect("a level of our own");
    let (filter, complaint) = match wanted.filter(|text| !text.trim().is_empty()).map(|text| (text, text.parse())) {
        None => (default(), None),
        Some((_, Ok(filter))) => (filter, None),
        Some((text, Err(error))) => {
            let expected = "expected a level, or levels of parts as in `info,toroid_worker=debug`";
            (
                default(),
                Some(format!("cannot read RUST_LOG=`{text}` ({error}): {expected}; the level is {default_level}")),
            )
        }
    };
    (without_spans(filter), complaint)
}

/// What whoever keeps the last lines is told.
pub(crate) fn of_recent() -> Targets {
    without_spans(Targets::new().with_default(Level::INFO))
}

fn without_spans(filter: Targets) -> Targets {
    filter.with_target(SPAN_TARGET, LevelFilter::OFF).with_target(CALL_TARGET, LevelFilter::OFF)
}

pub(crate) fn of_spans() -> Targets {
    Targets::new().with_target(SPAN_TARGET, Level::TRACE)
}

pub(crate) fn of_calls() -> Targets {
    Targets::new().with_target(CALL_TARGET, Level::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_names_levels_and_parts_and_a_bad_one_is_complained_of() {
        let check = |wanted, worker, h2| {
            let (filter, complaint) = log_filter(wanted, "info");
            let level = |target, level| filter.would_enable(target, &level);
            assert_eq!(level("toroid_worker::comm", Level::DEBUG), worker, "{wanted:?}");
            assert_eq!(level("h2", Level::INFO), h2, "{wanted:?}");
            for target in [SPAN_TARGET, CALL_TARGET] {
                assert!(!level(target, Level::ERROR), "{wanted:?}: spans are no lines");
            }
            complaint
        };
        assert_eq!(check(None, false, true), None);
        assert_eq!(check(Some(" "), false, true), None);
        assert_eq!(check(Some("debug"), true, true), None);
        assert_eq!(check(Some("trace"), true, true), None);
        assert_eq!(check(Some("toroid_worker=debug"), true, false), None);
        assert_eq!(check(Some("debug,h2=warn"), true, false), None);
        let complaint = check(Some("toroid_worker=loud"), false, true).expect("a complaint");
        assert!(complaint.contains("toroid_worker=loud") && complaint.contains("the level is info"), "{complaint}");
    }
}
