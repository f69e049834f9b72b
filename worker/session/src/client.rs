//! The worker as a client of its coordinator: when it dials, what waits for the Welcome, when it says that it lives, and when it ends.
//!
//! ```text
//!             deadline           Opened                 Welcome
//!   offline ----------> dialling ------> registered --------------> welcome
//!    ^  ^  pause           | NotOpened      | Lost, IdInUse            | Lost
//!    |  '------------------'                |                          |
//!    '--------------------------------------+--------------------------'
//!   from every state: ended, when it was asked to end (`leave`) or refused
//! ```
//!
//! Around the session: inputs and the time in, outputs in order out, and [`Client::deadline`] says when it wants to hear
//! [`Input::Deadline`]. Training does not wait for any of it (T-9): without a coordinator the session goes on hearing what the
//! trainer does, and says it again after the next Welcome. Only while a stream is opened, and until its Welcome, events wait
//! ([`Client::takes_events`]), as the coordinator does not know the worker before.
//!
//! Where several coordinators are named, one of them leads: whoever does not says who does, and one that does not answer is left for the next. **T-13**
//! The greatest term that was heard counts: what is said with an older one is not taken, and its stream is ended. **T-14** a place is its store's: a
//! worker that has one takes nothing of another store, keeps its state and asks again.
//!
//! Times count from any origin. Deliberately absent: sockets, clocks, the words of a failed connection.

mod coordinators;
mod leave;
mod outage;
mod retry;
mod terms;

use std::time::Duration;

use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_proto::{Probed, RefusalKind, Welcome};
use toroid_torus::ids::{Epoch, Step, Term};

use crate::session::{self, Session, Standing};
use crate::{Action, Knock, TrainerEvent};
use leave::Leave;
use outage::{Kind, Outage};
use terms::Terms;

pub use coordinators::{Coordinators, Next};
pub use leave::Ending;
pub use retry::{LONGEST, Retry};

/// Of the failure timeout, within which the coordinator waits for the answer to a probe.
const PROBE_SHARE: f64 = 0.8;

/// What counts until the coordinator's Welcome.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http://host:port` of each; at least one.
    pub coordinators: Vec<String>,
    pub heartbeat: Duration,
    pub failure_timeout: Duration,
    /// How long it stays after it was asked to end, for its place to be moved or its job to be saved.
    pub leave_grace: Duration,
    /// The same, where whoever runs it has said so; otherwise the coordinator does.
    pub own_leave_grace: Option<Duration>,
}

/// What the client hears.
#[derive(Debug)]
pub enum Input {
    /// A stream is open, and Register was sent.
    Opened,
    /// No stream could be opened.
    NotOpened {
        why: String,
        /// Where the coordinator is that leads, as the one that was asked knows it: `http://host:port`.
        leader: Option<String>,
    },
    /// The stream has ended.
    Lost {
        why: String,
    },
    /// Over the open stream, said with a term of leadership.
    FromCoordinator {
        term: Term,
        body: FromCoordinator,
    },
    Trainer(TrainerEvent),
    /// See [`session::Input::CheckpointTooLate`](crate::Input::CheckpointTooLate).
    CheckpointTooLate {
        epoch: Epoch,
        step: Step,
        committed: Step,
    },
    /// What a probe of another worker has come to.
    Probed(Probed),
    /// The worker is asked to end, for the n-th time.
    Asked {
        times: u32,
    },
    /// Whoever could ask it to end is gone.
    Unattended,
    /// [`Client::deadline`] has come.
    Deadline,
}

/// What the client wants done.
#[derive(Debug)]
pub enum Output {
    /// Open a stream to a coordinator, `http://host:port`, and say Register, with [`Client::standing`]. Comes back as `Opened` or `NotOpened`, the
    /// latter also where it takes longer than `limit`.
    Open { coordinator: String, limit: Option<Duration> },
    /// Close the stream.
    Close,
    /// Over the stream. Waits where it is full.
    Send(ToCoordinator),
    /// Over the stream, with what the trainer does now. A full stream is lost: nobody reads it.
    Heartbeat,
    /// Over the stream, if it takes that now: it may be gone already, and then the coordinator sees that.
    Leaving { at_once: bool },
    /// For the trainer, and what it shares with other threads.
    Act(Action),
    /// Dial another worker and answer it, within `limit`; comes back as `Probed`.
    Probe { knock: Knock, limit: Duration },
    /// Whether the coordinator takes what this worker says.
    Connected(bool),
    /// The process ends at once, as if its machine had died; nothing comes after it.
    Die { reason: String },
    /// How long the links of an epoch may take to be up, and after which silence the coordinator takes a worker for lost.
    Limits { connect_ms: u32, failure_timeout_ms: u32 },
    /// A line for the log.
    Note(String),
    /// A line for the log that wants somebody's attention.
    Warn(String),
    /// The worker ends; nothing comes after it.
    End(Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Until the next attempt.
    Offline {
        until: Duration,
    },
    Dialling,
    /// The coordinator has not answered yet.
    Registered {
        since: Duration,
        /// When that is said to be slow; `None`: it was said.
        slow_at: Option<Duration>,
    },
    Welcomed {
        since: Duration,
        heartbeat_at: Duration,
    },
    Ended,
}

/// See the module's diagram.
#[derive(Debug)]
pub struct Client {
    session: Session,
    state: State,
    coordinators: Coordinators,
    terms: Terms,
    heartbeat: Duration,
    failure_timeout: Duration,
    leave: Leave,
    retry: Retry,
    outage: Outage,
}

impl Client {
    /// Dials at its first deadline, which has come.
    pub fn new(settings: Settings) -> Client {
        Client {
            session: Session::new(),
            state: State::Offline { until: Duration::ZERO },
            coordinators: Coordinators::new(settings.coordinators),
            terms: Terms::default(),
            heartbeat: settings.heartbeat,
            failure_timeout: settings.failure_timeout,
            leave: Leave::new(settings.own_leave_grace, settings.leave_grace),
            retry: Retry::new(),
            outage: Outage::default(),
        }
    }

    /// What Register and Heartbeat say of the worker's place.
    pub fn standing(&self) -> Standing {
        let (store, term) = (self.terms.store().to_vec(), self.terms.greatest());
        Standing { store, term, ..self.session.standing() }
    }

    /// Whether the trainer's events are heard now. Otherwise they wait.
    pub fn takes_events(&self) -> bool {
        matches!(self.state, State::Offline { .. } | State::Welcomed { .. })
    }

    /// Whether results of probes are heard now. Otherwise they wait.
    pub fn takes_probed(&self) -> bool {
        matches!(self.state, State::Welcomed { .. })
    }

    /// When it wants to hear [`Input::Deadline`].
    pub fn deadline(&self) -> Option<Duration> {
        let of_state = match self.state {
            State::Offline { until } => Some(until),
            State::Registered { slow_at, .. } => slow_at,
            State::Welcomed { heartbeat_at, .. } => Some(heartbeat_at),
            State::Dialling => None,
            State::Ended => return None,
        };
        of_state.into_iter().chain(self.leave.deadline()).min()
    }

    /// Takes one input at `now`, and says what is to be done, in order.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Opened => {
                let slow_at = Some(now + self.failure_timeout);
                self.state = State::Registered { since: now, slow_at };
            }
            Input::NotOpened { why, leader } => self.not_opened(&why, leader, now, &mut out),
            Input::Lost { why } => self.lost(&why, now, &mut out),
            Input::FromCoordinator { term, body } => self.heard(term, body, now, &mut out),
            Input::Trainer(event) => self.session(session::Input::Trainer(event), now, &mut out),
            Input::CheckpointTooLate { epoch, step, committed } => {
                self.session(session::Input::CheckpointTooLate { epoch, step, committed }, now, &mut out);
            }
            Input::Probed(probed) => out.push(Output::Send(ToCoordinator::Probed(probed))),
            Input::Asked { times } => self.asked(times, now, &mut out),
            Input::Unattended => self.end_at_once(Ending::Unattended, &mut out),
            Input::Deadline => self.deadline_came(now, &mut out),
        }
        out
    }

    fn has_stream(&self) -> bool {
        matches!(self.state, State::Registered { .. } | State::Welcomed { .. })
    }

    fn has_place(&self) -> bool {
        !self.session.standing().job_id.is_empty()
    }

    // ------------------------------------------------------------------------------------------------------------ the stream

    fn not_opened(&mut self, why: &str, leader: Option<String>, now: Duration, out: &mut Vec<Output>) {
        if let Some(lasted) = self.outage.failed(Kind::Unreachable, now) {
            let (address, lasted) = (self.coordinators.in_words(), lasted.as_secs_f64());
            out.push(Output::Warn(format!("no coordinator at {address} since {lasted:.0} s, tries again: {why}")));
        }
        match self.coordinators.failed(leader) {
            Next::AtOnce => self.state = State::Offline { until: now },
            Next::AfterPause => self.pause(LONGEST, now),
        }
    }

    fn heard(&mut self, term: Term, body: FromCoordinator, now: Duration, out: &mut Vec<Output>) {
        if !self.has_stream() {
            return;
        }
        let store = match &body {
            FromCoordinator::Welcome(welcome) => Some(welcome.store_id.as_slice()),
            _ => None,
        };
        if store.is_some_and(|store| self.has_place() && self.terms.is_another(store)) {
            let why = "its store is another one than that which gave the place: it is new, or of another cluster";
            return self.apart(why, now, out);
        }
        // Who says that its store knows less may say so with any term.
        if let FromCoordinator::Refused(refused) = &body
            && refused.kind() == RefusalKind::Apart
        {
            return self.apart(&refused.reason, now, out);
        }
        if let Err(greatest) = self.terms.heard(store, term) {
            let (address, term, greatest) = (self.coordinators.current(), term.get(), greatest.get());
            out.extend([
                Output::Close,
                Output::Warn(format!(
                    "{address} speaks with term {term} and does not lead any more: term {greatest} was heard; asks the next"
                )),
            ]);
            self.coordinators.failed(None);
            return self.lost("its leadership is over", now, out);
        }
        match &body {
            FromCoordinator::Welcome(welcome) => {
                self.welcome(now, out);
                out.extend(other_build(welcome).map(Output::Note));
            }
            FromCoordinator::Kill(kill) => return out.push(Output::Die { reason: kill.reason.clone() }),
            _ => {}
        }
        self.session(session::Input::FromCoordinator(body), now, out);
    }

    fn welcome(&mut self, now: Duration, out: &mut Vec<Output>) {
        let State::Registered { since, .. } = self.state else { return };
        self.state = State::Welcomed { since, heartbeat_at: now };
        self.coordinators.welcomed();
        if let Some(lasted) = self.outage.over(now) {
            out.push(Output::Note(format!("the coordinator answers, after {:.1} s", lasted.as_secs_f64())));
        }
        out.push(Output::Connected(true));
        if self.leave.was_asked() {
            // Another coordinator may not have heard of it.
            out.push(Output::Leaving { at_once: false });
        }
    }

    fn lost(&mut self, why: &str, now: Duration, out: &mut Vec<Output>) {
        if !self.has_stream() {
            return;
        }
        out.push(Output::Connected(false));
        if self.outage.failed(Kind::Lost, now).is_some() {
            out.push(Output::Warn(format!("lost the coordinator, training goes on: {why}")));
        }
        self.pause(LONGEST, now);
    }

    /// Another process has this worker's id: it closes the stream and tries again, ever more seldom.
    fn id_in_use(&mut self, why: &str, now: Duration, out: &mut Vec<Output>) {
        out.extend([Output::Close, Output::Connected(false)]);
        if let Some(lasted) = self.outage.failed(Kind::IdInUse, now) {
            out.push(Output::Warn(format!("not taken since {:.0} s, tries again: {why}", lasted.as_secs_f64())));
        }
        self.pause(self.failure_timeout.max(LONGEST), now);
    }

    /// The coordinator's store knows nothing of what this worker holds, or less: the worker keeps its place, closes the stream and asks again.
    fn apart(&mut self, why: &str, now: Duration, out: &mut Vec<Output>) {
        out.extend([Output::Close, Output::Connected(false)]);
        if let Some(lasted) = self.outage.failed(Kind::Apart, now) {
            let (address, lasted, Standing { job_id, rank, committed_step, .. }) =
                (self.coordinators.current(), lasted.as_secs_f64(), self.session.standing());
            let keeps = match self.has_place() {
                true => format!("keeps rank {rank} of {job_id} (step {committed_step}) and goes on; "),
                false => String::new(),
            };
            out.push(Output::Warn(format!("{keeps}{address} has not taken this worker since {lasted:.0} s: {why}")));
        }
        self.coordinators.failed(None);
        self.pause(self.failure_timeout.max(LONGEST), now);
    }

    fn pause(&mut self, longest: Duration, now: Duration) {
        if let State::Registered { since, .. } | State::Welcomed { since, .. } = self.state {
            self.retry.stream_lasted(now.saturating_sub(since));
        }
        self.state = State::Offline { until: now + self.retry.next(longest) };
    }

    fn deadline_came(&mut self, now: Duration, out: &mut Vec<Output>) {
        if self.leave.is_over(now) {
            return self.end_at_once(Ending::GraceOver, out);
        }
        match &mut self.state {
            State::Offline { until } if *until <= now => {
                self.state = State::Dialling;
                out.push(Output::Open {
                    coordinator: self.coordinators.current().into(),
                    limit: self.coordinators.limit(),
                });
            }
            State::Registered { slow_at: slow_at @ Some(_), .. } if slow_at.is_some_and(|at| at <= now) => {
                *slow_at = None;
                let (address, limit_s) = (self.coordinators.current(), self.failure_timeout.as_secs_f64());
                let why = format!("{address} takes the connection and has not answered for {limit_s} s");
                if self.coordinators.are_several() {
                    out.push(Output::Close);
                    self.coordinators.failed(None);
                    return self.lost(&why, now, out);
                }
                out.push(Output::Warn(format!("{why}; waits on")));
            }
            State::Welcomed { heartbeat_at, .. } if *heartbeat_at <= now => {
                *heartbeat_at = now + self.heartbeat;
                out.push(Output::Heartbeat);
            }
            // It came a moment too early.
            State::Offline { .. } | State::Registered { .. } | State::Welcomed { .. } => {}
            State::Dialling | State::Ended => {}
        }
    }

    // ----------------------------------------------------------------------------------------------------------- the session

    fn session(&mut self, input: session::Input, now: Duration, out: &mut Vec<Output>) {
        for output in self.session.handle(input) {
            match output {
                // Without a stream it is said again after the next Welcome.
                session::Output::Send(body) if self.has_stream() => out.push(Output::Send(body)),
                session::Output::Send(_) => {}
                session::Output::Act(action) => out.push(Output::Act(action)),
                session::Output::Probe(knock) => {
                    out.push(Output::Probe { knock, limit: self.failure_timeout.mul_f64(PROBE_SHARE) });
                }
                session::Output::Intervals { heartbeat_ms, failure_timeout_ms, leave_grace_ms, connect_limit_ms } => {
                    out.push(Output::Limits { connect_ms: connect_limit_ms, failure_timeout_ms });
                    self.leave.set_grace(Duration::from_millis(u64::from(leave_grace_ms)));
                    self.failure_timeout = Duration::from_millis(u64::from(failure_timeout_ms.max(1)));
                    self.heartbeat_every(Duration::from_millis(u64::from(heartbeat_ms.max(1))), now);
                }
                session::Output::Note(note) => out.push(Output::Note(note)),
                session::Output::IdInUse { reason } => return self.id_in_use(&reason, now, out),
                session::Output::Refused { reason } => return self.end(Ending::Refused { reason }, out),
            }
        }
        if self.has_stream() && self.leave.was_asked() && !self.has_place() {
            out.push(Output::Note("it has no place any more: it ends".into()));
            self.end(Ending::HasLeft, out);
        }
    }

    /// Another interval begins at once.
    fn heartbeat_every(&mut self, interval: Duration, now: Duration) {
        if self.heartbeat != interval
            && let State::Welcomed { heartbeat_at, .. } = &mut self.state
        {
            *heartbeat_at = now;
        }
        self.heartbeat = interval;
    }

    // ---------------------------------------------------------------------------------------------------------------- its end

    fn asked(&mut self, times: u32, now: Duration, out: &mut Vec<Output>) {
        if let Some(ending) = self.leave.asked(times, self.has_place(), now) {
            return self.end_at_once(ending, out);
        }
        let (job, grace_s) = (self.session.standing().job_id, self.leave.grace().as_secs_f64());
        out.push(Output::Note(format!(
            "stays until its place in {job} is moved or the job is saved, {grace_s} s at most; asked again it ends at once"
        )));
        if self.has_stream() {
            out.push(Output::Leaving { at_once: false });
        }
    }

    /// Ends without waiting for anybody, and says so.
    fn end_at_once(&mut self, ending: Ending, out: &mut Vec<Output>) {
        if self.has_stream() {
            out.push(Output::Leaving { at_once: true });
        }
        self.end(ending, out);
    }

    fn end(&mut self, ending: Ending, out: &mut Vec<Output>) {
        self.state = State::Ended;
        out.push(Output::End(ending));
    }
}

/// What there is to say where the coordinator is of another build.
fn other_build(welcome: &Welcome) -> Option<String> {
    let own = toroid_proto::build();
    let Welcome { build_version, protocol_version, .. } = welcome;
    (!build_version.is_empty() && *build_version != own.version).then(|| {
        format!(
            "the coordinator is of version {build_version}, this worker of {}: they speak protocol {protocol_version}",
            own.version
        )
    })
}
