//! With which code a command ends, so that a script knows what to do next: try again, ask somebody, or give up.
//!
//! One place decides: [`of`] looks for the first error in a chain that knows its [`Exit`]. What a coordinator answers, and that none
//! answers, is such an error ([`CallError`], made by [`crate::client`]); everything else that goes wrong is [`Exit::Failed`].

use std::fmt;
use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};

/// Shown below the help.
pub const HELP: &str = "Exit codes:
  0    done
  1    failed: the error says what
  2    wrong use of the command line
  3    no coordinator can be reached, or none decides now: try again later
  4    refused: no permission, or credentials that are not taken
  5    there is no such job, worker, incident or token
  130  interrupted";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed,
    WrongUse,
    Unreachable,
    Refused,
    NotFound,
    Interrupted,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Failed => 1,
            Exit::WrongUse => 2,
            Exit::Unreachable => 3,
            Exit::Refused => 4,
            Exit::NotFound => 5,
            Exit::Interrupted => 130,
        }
    }

    /// What the answer of a coordinator, or the lack of one, means.
    pub fn of_status(status: &Status) -> Exit {
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Exit::Refused,
            Code::NotFound => Exit::NotFound,
            Code::Unavailable | Code::Cancelled | Code::Unknown => Exit::of_connection(status),
            Code::DeadlineExceeded => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }

    /// What an error of a connection means: one of its ends did not take the other's certificate, or there is nobody.
    pub fn of_connection(error: &(dyn std::error::Error + 'static)) -> Exit {
        let mut next = Some(error);
        while let Some(error) = next {
            // TLS says so of everything that one end does not take; see `toroid_security::connect`.
            if error.downcast_ref().is_some_and(|e: &io::Error| e.kind() == io::ErrorKind::InvalidData) {
                return Exit::Refused;
            }
            next = error.source();
        }
        Exit::Unreachable
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error that knows with which code the command ends.
#[derive(Debug)]
pub struct CallError {
    pub exit: Exit,
    text: String,
}

impl CallError {
    pub fn new(exit: Exit, text: impl Into<String>) -> CallError {
        CallError { exit, text: text.into() }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CallError {}

/// Flags that contradict each other in a way that the parser of the command line cannot know.
pub fn wrong_use(text: impl Into<String>) -> anyhow::Error {
    CallError::new(Exit::WrongUse, text).into()
}

/// There is nothing of this name, number or id.
pub fn not_found(text: impl Into<String>) -> anyhow::Error {
    CallError::new(Exit::NotFound, text).into()
}

/// How a command ends whose error this is.
pub fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(|cause| cause.downcast_ref::<CallError>()).map_or(Exit::Failed, |error| error.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn answers_of_a_coordinator_have_their_codes() {
        let check = |status: Status, expected: u8| assert_eq!(Exit::of_status(&status).code(), expected, "{status}");
        check(Status::not_found("there is no job `x`"), 5);
        check(Status::permission_denied("this call needs the role operate"), 4);
        check(Status::unauthenticated("the token has ended"), 4);
        check(Status::unavailable("this coordinator does not lead"), 3);
        check(Status::deadline_exceeded("late"), 3);
        check(Status::invalid_argument("steps = 0"), 1);
        check(Status::failed_precondition("it is done"), 1);
        check(Status::resource_exhausted("too many calls"), 1);
        check(Status::internal("oh"), 1);
        let of_tls = io::Error::new(io::ErrorKind::InvalidData, "received fatal alert: CertificateRevoked");
        check(Status::from_error(Box::new(of_tls)), 4);
        check(Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset))), 3);
    }

    #[test]
    fn an_error_keeps_its_code_whatever_is_said_around_it() {
        let around =
            |error: anyhow::Error| Err::<(), _>(error).context("get the job's end").expect_err("it is an error");
        assert_eq!(of(&around(wrong_use("--no-curve is of JSON"))), Exit::WrongUse);
        assert_eq!(of(&around(not_found("there is no incident 7"))), Exit::NotFound);
        assert_eq!(of(&around(anyhow::anyhow!("the disk is full"))), Exit::Failed);
    }

    #[test]
    fn the_help_names_every_code() {
        let all = [Exit::Failed, Exit::WrongUse, Exit::Unreachable, Exit::Refused, Exit::NotFound, Exit::Interrupted];
        for exit in all {
            let code = format!("\n  {:<4} ", exit.code());
            assert!(HELP.contains(&code), "{code:?} is not in {HELP}");
        }
    }
}
