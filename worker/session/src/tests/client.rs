//! The client on virtual time: when it dials, what waits for the Welcome, and when a worker that was asked to end does so.

use std::time::Duration;

use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::{Kill, Probe, Probed, RefusalKind, Refused, StepRecord, Stop, Welcome};
use toroid_torus::ids::{Epoch, Step};

use toroid_torus::ids::Term;

use super::{assign_message, name_of_action, name_of_message, prepared_event};
use crate::client::{Client, Input, Output, Settings};
use crate::{Event, TrainerEvent};

const HEARTBEAT: Duration = Duration::from_secs(1);
const FAILURE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client, and the time that it is told.
struct Run {
    client: Client,
    now: Duration,
}

impl Run {
    fn new() -> Run {
        Run::with_own_grace(None)
    }

    fn with_own_grace(own_leave_grace: Option<Duration>) -> Run {
        Run::of(&["http://c:1"], own_leave_grace)
    }

    fn of(named: &[&str], own_leave_grace: Option<Duration>) -> Run {
        let settings = Settings {
            coordinators: named.iter().map(ToString::to_string).collect(),
            heartbeat: HEARTBEAT,
            failure_timeout: FAILURE_TIMEOUT,
            leave_grace: Duration::from_secs(25),
            own_leave_grace,
        };
        Run { client: Client::new(settings), now: Duration::from_secs(1000) }
    }

    /// Before it has done anything but dial.
    fn dialling() -> Run {
        let mut run = Run::new();
        run.check(Input::Deadline, &["open"]);
        run
    }

    /// With a stream, and no place.
    fn welcome() -> Run {
        let mut run = Run::dialling();
        run.check(Input::Opened, &[]);
        run.check(welcome(true), &["connected", "limit 9000"]);
        run
    }

    /// With a stream, and a place that it prepares.
    fn with_place() -> Run {
        let mut run = Run::welcome();
        run.check(assign(), &["fence 1", "prepare"]);
        run
    }

    /// Compares what comes of an input, printed without its details, with what is expected.
    fn check(&mut self, input: Input, expected: &[&str]) {
        let found: Vec<String> = self.client.handle(input, self.now).iter().map(name).collect();
        assert_eq!(found, expected, "at {:?}", self.now);
    }

    /// Lets the time come that it waits for, which is after so many milliseconds.
    fn check_deadline(&mut self, after_ms: u64, expected: &[&str]) {
        let deadline = self.client.deadline().expect("it waits for a time");
        assert_eq!(deadline.saturating_sub(self.now), Duration::from_millis(after_ms));
        self.now = self.now.max(deadline);
        self.check(Input::Deadline, expected);
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
    }
}

fn name(output: &Output) -> String {
    match output {
        Output::Open { coordinator, limit: None } if coordinator == "http://c:1" => "open".into(),
        Output::Open { coordinator, limit } => format!("open {coordinator} within {limit:?}"),
        Output::Close => "close".into(),
        Output::Send(body) => name_of_message(body),
        Output::Heartbeat => "heartbeat".into(),
        Output::Leaving { at_once: false } => "leaving".into(),
        Output::Leaving { at_once: true } => "leaving at once".into(),
        Output::Act(action) => name_of_action(action),
        Output::Probe { knock, limit } => format!("probe {} within {} ms", knock.peer.worker_id, limit.as_millis()),
        Output::Connected(true) => "connected".into(),
        Output::Connected(false) => "cut off".into(),
        Output::Die { reason } => format!("die: {reason}"),
        Output::Limits { connect_ms, .. } => format!("limit {connect_ms}"),
        Output::Note(text) => format!("note: {text}"),
        Output::Warn(text) => format!("warning: {text}"),
        Output::End(ending) => format!("end: {ending:?}"),
    }
}

/// With other intervals than a client begins with, but for that of heartbeats.
fn welcome(keep_going: bool) -> Input {
    let welcome = Welcome {
        keep_going,
        heartbeat_interval_ms: HEARTBEAT.as_millis() as u32,
        failure_timeout_ms: 2000,
        leave_grace_ms: 7000,
        connect_limit_ms: 9000,
        ..Welcome::default()
    };
    said(FromCoordinator::Welcome(welcome))
}

/// By a coordinator of the first term.
fn said(body: FromCoordinator) -> Input {
    Input::FromCoordinator { term: Term::new(1), body }
}

fn assign() -> Input {
    said(FromCoordinator::Assign(assign_message(1)))
}

fn stop() -> Input {
    said(FromCoordinator::Stop(Stop { job_id: "j".into(), epoch: 1, reason: "moved".into() }))
}

fn refused(kind: RefusalKind) -> Input {
    said(FromCoordinator::Refused(Refused { reason: "no".into(), kind: kind.into() }))
}

fn trainer(event: Event) -> Input {
    Input::Trainer(TrainerEvent { job_id: "j".into(), epoch: Epoch::new(1), event })
}

fn committed(step: u64) -> Input {
    let record = Some(Box::new(StepRecord { step, ..StepRecord::default() }));
    trainer(Event::Committed { step: Step::new(step), record })
}

fn lost() -> Input {
    Input::Lost { why: "reset".into() }
}

const LOST: &str = "warning: lost the coordinator, training goes on: reset";
const HAS_LEFT: &str = "note: it has no place any more: it ends";
const STAYS: &str =
    "note: stays until its place in j is moved or the job is saved, 7 s at most; asked again it ends at once";

#[test]
fn t9_events_wait_for_the_welcome_and_are_heard_without_a_stream() {
    let mut run = Run::new();
    let takes = |run: &Run| (run.client.takes_events(), run.client.takes_probed());
    assert_eq!(takes(&run), (true, false), "without a stream");
    run.check(Input::Deadline, &["open"]);
    assert_eq!(takes(&run), (false, false), "while it dials");
    run.check(Input::Opened, &[]);
    assert_eq!(takes(&run), (false, false), "before the Welcome");
    run.check(welcome(true), &["connected", "limit 9000"]);
    assert_eq!(takes(&run), (true, true), "after the Welcome");
    run.check(Input::Probed(Probed::default()), &["send Probed"]);
}

#[test]
fn t9_what_is_said_without_a_stream_is_said_after_the_next_welcome() {
    let mut run = Run::with_place();
    run.check(trainer(prepared_event(0)), &["send Prepared"]);
    run.check(lost(), &["cut off", LOST]);
    run.check(committed(1), &[]);
    run.check_deadline(50, &["open"]);
    run.check(Input::Opened, &[]);
    let again =
        ["note: the coordinator answers, after 0.1 s", "connected", "limit 9000", "send step 1", "send Prepared"];
    run.check(welcome(true), &again);
}

#[test]
fn pauses_grow_and_begin_anew_after_a_stream_that_lasted() {
    let mut run = Run::dialling();
    let not_opened = || Input::NotOpened { why: "nothing listens there".into(), leader: None };
    run.check(not_opened(), &["warning: no coordinator at http://c:1 since 0 s, tries again: nothing listens there"]);
    for pause_ms in [50, 100, 200, 400] {
        run.check_deadline(pause_ms, &["open"]);
        run.check(not_opened(), &[]);
    }
    run.check_deadline(800, &["open"]);
    run.check(not_opened(), &["warning: no coordinator at http://c:1 since 2 s, tries again: nothing listens there"]);
    run.check_deadline(1000, &["open"]);
    run.check(Input::Opened, &[]);
    // A coordinator that takes the worker and drops it is not asked without a pause.
    run.later(Duration::from_secs(1));
    run.check(lost(), &["cut off", LOST]);
    run.check_deadline(1000, &["open"]);
    run.check(Input::Opened, &[]);
    run.later(Duration::from_millis(1001));
    run.check(lost(), &["cut off", LOST]);
    run.check_deadline(50, &["open"]);
}

#[test]
fn heartbeats_begin_with_the_welcome_at_the_coordinators_interval() {
    let mut run = Run::welcome();
    run.check_deadline(0, &["heartbeat"]);
    run.check_deadline(1000, &["heartbeat"]);
    // It came late: the next one is an interval later.
    run.later(Duration::from_millis(2500));
    run.check_deadline(0, &["heartbeat"]);
    run.check_deadline(1000, &["heartbeat"]);
    // A moment too early is none.
    run.check(Input::Deadline, &[]);
    let faster = Welcome { heartbeat_interval_ms: 100, ..Welcome::default() };
    run.check(said(FromCoordinator::Welcome(faster)), &["limit 0"]);
    run.check_deadline(0, &["heartbeat"]);
    run.check_deadline(100, &["heartbeat"]);
}

#[test]
fn a_coordinator_that_does_not_answer_is_named_once() {
    let mut run = Run::dialling();
    run.check(Input::Opened, &[]);
    let slow = "warning: http://c:1 takes the connection and has not answered for 5 s; waits on";
    run.check_deadline(5000, &[slow]);
    assert_eq!(run.client.deadline(), None);
}

#[test]
fn a_probe_has_most_of_the_failure_timeout() {
    let mut run = Run::welcome();
    let probe = Probe { worker_id: "w7".into(), key: vec![1; 32], ..Probe::default() };
    run.check(said(FromCoordinator::Probe(probe)), &["probe w7 within 1600 ms"]);
}

/// Whatever it does, and not for a coordinator that does not lead any more (T-13).
#[test]
fn a_worker_that_is_to_be_killed_dies_at_once() {
    let kill = |term| {
        let body = FromCoordinator::Kill(Kill { reason: "ada had it killed".into() });
        Input::FromCoordinator { term: Term::new(term), body }
    };
    let mut run = Run::with_place();
    let found: Vec<String> = run.client.handle(kill(0), run.now).iter().map(name).collect();
    assert!(!found.iter().any(|output| output.starts_with("die")), "{found:?}");
    Run::with_place().check(kill(1), &["die: ada had it killed"]);
}

#[test]
fn a_refused_worker_ends_and_one_whose_id_is_in_use_tries_again_ever_more_seldom() {
    let mut run = Run::dialling();
    run.check(Input::Opened, &[]);
    run.check(refused(RefusalKind::Unspecified), &["end: Refused { reason: \"no\" }"]);
    assert_eq!(run.client.deadline(), None);
    let mut run = Run::dialling();
    let mut pauses_ms = Vec::new();
    for _ in 0..9 {
        run.client.handle(Input::Opened, run.now);
        let found: Vec<String> = run.client.handle(refused(RefusalKind::IdInUse), run.now).iter().map(name).collect();
        assert_eq!(found[..2], ["close", "cut off"]);
        // Its stream is gone: what it says on the way does not count.
        run.check(lost(), &[]);
        let until = run.client.deadline().expect("it tries again");
        pauses_ms.push((until - run.now).as_millis());
        run.now = until;
        run.check(Input::Deadline, &["open"]);
    }
    assert_eq!(pauses_ms, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn a_worker_without_a_place_ends_when_it_is_asked() {
    Run::new().check(Input::Asked { times: 1 }, &["end: Asked"]);
    Run::dialling().check(Input::Asked { times: 1 }, &["end: Asked"]);
    Run::welcome().check(Input::Asked { times: 1 }, &["leaving at once", "end: Asked"]);
    Run::welcome().check(Input::Unattended, &["leaving at once", "end: Unattended"]);
}

#[test]
fn a_worker_with_a_place_stays_until_that_is_moved() {
    let mut run = Run::with_place();
    run.check(Input::Asked { times: 1 }, &[STAYS, "leaving"]);
    run.check(trainer(prepared_event(0)), &["send Prepared"]);
    let stops = ["note: rank 0 of j stops: moved", "fence 2", "trainer Drop", "send Stopped", HAS_LEFT, "end: HasLeft"];
    run.check(stop(), &stops);
}

#[test]
fn asked_again_it_ends_at_once() {
    let mut run = Run::with_place();
    run.check(Input::Asked { times: 1 }, &[STAYS, "leaving"]);
    run.check(Input::Asked { times: 2 }, &["leaving at once", "end: Asked"]);
    Run::with_place().check(Input::Asked { times: 2 }, &["leaving at once", "end: Asked"]);
}

#[test]
fn a_worker_ends_when_its_grace_is_over_with_or_without_a_coordinator() {
    let mut run = Run::with_place();
    run.check_deadline(0, &["heartbeat"]);
    run.check(Input::Asked { times: 1 }, &[STAYS, "leaving"]);
    for _ in 0..6 {
        run.check_deadline(1000, &["heartbeat"]);
    }
    run.check_deadline(1000, &["leaving at once", "end: GraceOver"]);

    let mut run = Run::with_place();
    run.check(lost(), &["cut off", LOST]);
    run.check(Input::Asked { times: 1 }, &[STAYS]);
    run.check_deadline(50, &["open"]);
    run.check_deadline(6950, &["end: GraceOver"]);
}

#[test]
fn every_coordinator_hears_that_a_worker_leaves() {
    let mut run = Run::with_place();
    run.check(Input::Asked { times: 1 }, &[STAYS, "leaving"]);
    run.check(lost(), &["cut off", LOST]);
    run.check_deadline(50, &["open"]);
    run.check(Input::Opened, &[]);
    let answers = "note: the coordinator answers, after 0.1 s";
    run.check(welcome(true), &[answers, "connected", "leaving", "limit 9000"]);

    let mut run = Run::with_place();
    run.check(Input::Asked { times: 1 }, &[STAYS, "leaving"]);
    run.check(lost(), &["cut off", LOST]);
    run.check_deadline(50, &["open"]);
    run.check(Input::Opened, &[]);
    let given = "note: the coordinator has given rank 0 of j to another worker";
    let ends =
        [answers, "connected", "leaving", "limit 9000", given, "fence 2", "trainer Drop", HAS_LEFT, "end: HasLeft"];
    run.check(welcome(false), &ends);
}

#[test]
fn its_own_grace_counts_before_the_coordinators() {
    let mut run = Run::with_own_grace(Some(Duration::from_secs(60)));
    run.check(Input::Deadline, &["open"]);
    run.check(Input::Opened, &[]);
    run.check(welcome(true), &["connected", "limit 9000"]);
    run.check(assign(), &["fence 1", "prepare"]);
    run.check(Input::Asked { times: 1 }, &[&STAYS.replace("7 s", "60 s"), "leaving"]);
}

#[test]
fn one_of_several_that_is_not_there_is_left_for_the_next_at_once_and_who_leads_is_followed() {
    let mut run = Run::of(&["http://a:1", "http://b:1"], None);
    run.check(Input::Deadline, &["open http://a:1 within Some(1s)"]);
    let nobody = |leader: Option<&str>| Input::NotOpened {
        why: "nothing listens there".into(),
        leader: leader.map(String::from),
    };
    let warning = "warning: no coordinator at http://a:1, http://b:1 since 0 s, tries again: nothing listens there";
    run.check(nobody(None), &[warning]);
    run.check_deadline(0, &["open http://b:1 within Some(1s)"]);
    run.check(nobody(Some("http://c:1")), &[]);
    run.check_deadline(0, &["open http://c:1 within Some(1s)"]);
    run.check(Input::Opened, &[]);
    run.check(welcome(true), &["note: the coordinator answers, after 0.0 s", "connected", "limit 9000"]);
    run.check(lost(), &["cut off", "warning: lost the coordinator, training goes on: reset"]);
    run.check_deadline(50, &["open http://c:1 within Some(1s)"]);
}

#[test]
fn one_of_several_that_takes_the_connection_and_says_nothing_is_left() {
    let mut run = Run::of(&["http://a:1", "http://b:1"], None);
    run.check(Input::Deadline, &["open http://a:1 within Some(1s)"]);
    run.check(Input::Opened, &[]);
    let why = "http://a:1 takes the connection and has not answered for 5 s";
    let warning = format!("warning: lost the coordinator, training goes on: {why}");
    run.check_deadline(5000, &["close", "cut off", &warning]);
    run.check_deadline(50, &["open http://b:1 within Some(1s)"]);
}

#[test]
fn t13_what_an_older_term_says_is_not_taken_and_its_stream_is_ended() {
    let mut run = Run::of(&["http://a:1", "http://b:1"], None);
    run.check(Input::Deadline, &["open http://a:1 within Some(1s)"]);
    run.check(Input::Opened, &[]);
    run.check(welcome(true), &["connected", "limit 9000"]);
    let newer = |body| Input::FromCoordinator { term: Term::new(2), body };
    let Input::FromCoordinator { body: again, .. } = welcome(true) else { panic!("it is from a coordinator") };
    run.check(lost(), &["cut off", "warning: lost the coordinator, training goes on: reset"]);
    run.check_deadline(50, &["open http://a:1 within Some(1s)"]);
    run.check(Input::Opened, &[]);
    run.check(newer(again), &["note: the coordinator answers, after 0.1 s", "connected", "limit 9000"]);
    // It was stopped for a while, and goes on.
    let found: Vec<String> = run.client.handle(assign(), run.now).iter().map(name).collect();
    assert_eq!((found[0].as_str(), found.len()), ("close", 4), "{found:?}");
    assert!(
        found[1].contains("http://a:1 speaks with term 1 and does not lead any more: term 2 was heard"),
        "{found:?}"
    );
    run.check(assign(), &[]);
    run.check_deadline(100, &["open http://b:1 within Some(1s)"]);
}

#[test]
fn t14_who_has_a_place_keeps_it_from_another_store_and_from_one_that_knows_less() {
    let of_store = |id: u8| {
        let Input::FromCoordinator { term, body: FromCoordinator::Welcome(welcome) } = welcome(false) else {
            panic!("it is a Welcome")
        };
        let welcome = Welcome { store_id: vec![id; 16], ..welcome };
        Input::FromCoordinator { term, body: FromCoordinator::Welcome(welcome) }
    };
    let mut run = Run::dialling();
    run.check(Input::Opened, &[]);
    run.check(of_store(1), &["connected", "limit 9000"]);
    run.check(assign(), &["fence 1", "prepare"]);
    let standing = run.client.standing();
    assert_eq!((standing.store, standing.term, standing.owner.is_some()), (vec![1; 16], Term::new(1), true));
    for said in [of_store(2), refused(RefusalKind::Apart)] {
        run.client.handle(lost(), run.now);
        run.now = run.client.deadline().expect("it tries again");
        run.check(Input::Deadline, &["open"]);
        run.check(Input::Opened, &[]);
        let found: Vec<String> = run.client.handle(said, run.now).iter().map(name).collect();
        assert_eq!(found[..2], ["close", "cut off"]);
        assert!(!found.iter().any(|output| output.starts_with("drop") || output.starts_with("fence")), "{found:?}");
        assert_eq!(run.client.standing().job_id, "j");
    }
    // Who has no place takes whatever store there is.
    let mut run = Run::dialling();
    run.check(Input::Opened, &[]);
    run.check(of_store(1), &["connected", "limit 9000"]);
    run.client.handle(lost(), run.now);
    run.now = run.client.deadline().expect("it tries again");
    run.check(Input::Deadline, &["open"]);
    run.check(Input::Opened, &[]);
    let found: Vec<String> = run.client.handle(of_store(2), run.now).iter().map(name).collect();
    assert!(found.contains(&"connected".to_string()), "{found:?}");
}
