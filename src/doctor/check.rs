//! One thing that was looked at, and all of them as text.

use serde::Serialize;

use crate::format::wrap;

/// Columns of the text, and where what was found begins.
const WIDTH: usize = 110;
const INDENT: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    /// Unusual, and it works all the same.
    Warning,
    /// Something will not work.
    Wrong,
    NotKnown,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Wrong => "wrong",
            State::NotKnown => "not known",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub found: String,
    /// Empty where nothing else would be better.
    pub expected: String,
    /// Empty where nothing is to be done.
    pub to_do: String,
}

impl Check {
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Check {
        let (expected, to_do) = Default::default();
        Check { name: name.into(), state: State::Ok, found: found.into(), expected, to_do }
    }

    pub fn unknown(name: impl Into<String>, found: impl Into<String>) -> Check {
        Check { state: State::NotKnown, ..Check::ok(name, found) }
    }

    pub fn warning(name: impl Into<String>, found: impl Into<String>, expected: &str, to_do: &str) -> Check {
        Check { state: State::Warning, expected: expected.into(), to_do: to_do.into(), ..Check::ok(name, found) }
    }

    pub fn wrong(name: impl Into<String>, found: impl Into<String>, expected: &str, to_do: &str) -> Check {
        Check { state: State::Wrong, ..Check::warning(name, found, expected, to_do) }
    }

    /// Well where `is_well`, else a warning.
    pub fn judged(name: &str, found: String, is_well: bool, expected: &str, to_do: &str) -> Check {
        if is_well { Check::ok(name, found) } else { Check::warning(name, found, expected, to_do) }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing is wrong.
    pub is_well: bool,
    checks: Vec<Check>,
}

impl Report {
    pub fn new(checks: Vec<Check>) -> Report {
        Report { is_well: checks.iter().all(|c| c.state != State::Wrong), checks }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let head = format!("{:<10} {:<20}", check.state.word(), check.name);
            let indent = " ".repeat(INDENT);
            let found = wrap(&check.found, WIDTH, &indent);
            text += &format!("{head:<INDENT$}{}", found.get(INDENT..).unwrap_or("-\n"));
            if !check.expected.is_empty() {
                text += &wrap(&format!("expected: {}", check.expected), WIDTH, &indent);
            }
            if !check.to_do.is_empty() {
                text += &wrap(&format!("to do: {}", check.to_do), WIDTH, &indent);
            }
        }
        let num = |state| self.checks.iter().filter(|c| c.state == state).count();
        let (wrong, warnings) = (num(State::Wrong), num(State::Warning));
        text + &match (wrong, warnings) {
            (0, 0) => format!("\nall {} checks are well\n", self.checks.len()),
            _ => format!("\n{} checks: {wrong} wrong, {warnings} unusual\n", self.checks.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_what_was_expected_and_what_to_do() {
        let wrong =
            Check::wrong("shared memory", "64.0 MB in /dev/shm", "1 GB", "start the container with --shm-size=1g");
        let report = Report::new(vec![Check::ok("kernel", "Linux 6.8"), Check::unknown("clock", "no answer"), wrong]);
        assert!(!report.is_well);
        assert_eq!(
            report.text(),
            "ok         kernel               Linux 6.8\n\
             not known  clock                no answer\n\
             wrong      shared memory        64.0 MB in /dev/shm\n\
             \x20                               expected: 1 GB\n\
             \x20                               to do: start the container with --shm-size=1g\n\
             \n3 checks: 1 wrong, 0 unusual\n"
        );
        let json = serde_json::to_value(&report).expect("a report has only string keys");
        assert_eq!(json["checks"][1]["state"], "not_known");
        assert!(Report::new(vec![Check::warning("a", "b", "c", "d")]).is_well, "a warning is no fault");
    }
}
