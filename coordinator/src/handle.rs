//! How the rest of the program speaks to the driver: what it asks for, what it has done, and how much of either may wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use toroid_proto as proto;
use toroid_torus::ids::{JobId, Step, Term};
use tracing::{Instrument as _, Span};

use crate::calls::{step, step_of};
use crate::curve::CurveError;
use crate::folder::FolderError;
use crate::machine::access::{NewToken, Token};
use crate::machine::{Reply, RequestError, StreamId, Submission, Who};
use crate::outbox::Outbox;

/// Commands that wait for the driver; beyond, those who send them wait.
const MAX_COMMANDS: usize = 1024;
/// Questions of users that wait; beyond, those who ask wait.
const MAX_QUESTIONS: usize = 256;
/// And bytes of workers' messages among them, in KiB.
const MAX_COMMANDS_KIB: usize = 64 << 10;

/// Why a request was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Curve(#[from] CurveError),
    #[error("the coordinator is stopping, or does not lead any more; ask again")]
    Stopping,
    #[error(transparent)]
    Standby(#[from] Standby),
}

/// This coordinator does not lead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("this coordinator does not lead: {reason}")]
pub(crate) struct Standby {
    /// `http://host:port` of the one that does, where that is known.
    pub leader: Option<String>,
    pub term: u64,
    pub reason: String,
}

pub(crate) type Answer<T> = oneshot::Sender<Result<T, AskError>>;

/// `Kill` is answered with the job in which the worker has a place.
pub(crate) enum Command {
    Submit { submission: Submission, answer: Answer<Reply> },
    Cancel { job: String, answer: Answer<Reply> },
    Checkpoint { job: String, answer: Answer<Reply> },
    Pin { job: String, step: Step, answer: Answer<Reply> },
    Unpin { job: String, step: Step, answer: Answer<Reply> },
    Resume { job: String, from_scratch: bool, steps: Option<u64>, answer: Answer<Reply> },
    Hold { job: String, answer: Answer<Reply> },
    Release { job: String, answer: Answer<Reply> },
    Cordon { who: Who, reason: String, answer: Answer<Reply> },
    Uncordon { who: Who, answer: Answer<Reply> },
    Drain { worker: String, answer: Answer<Reply> },
    Kill { worker: String, who: String, answer: Answer<Option<JobId>> },
    Remove { job: String, answer: Answer<Reply> },
    Readmit { worker: String, answer: Answer<Reply> },
    CreateToken { new: NewToken, answer: Answer<Reply> },
    RevokeToken { id: String, answer: Answer<Reply> },
    ForgetWorker { worker: String, answer: Answer<Reply> },
    Open { stream: StreamId, connection: Connection },
    Message { stream: StreamId, body: Box<proto::worker_message::Body>, permit: QueuePermit },
    Closed { stream: StreamId, reason: String },
}

/// What changes nothing: it is answered at any time. `Exports` and `Export` are for [`crate::tensorboard`]: how far all curves go, and a piece of one with
/// the validations from that step on; what is said of a cut is said once.
pub(crate) enum Question {
    Leader { answer: Answer<proto::GetLeaderResponse> },
    Tokens { answer: Answer<Vec<Token>> },
    Job { job: String, answer: Answer<proto::Job> },
    Jobs { page: Page, answer: Answer<Jobs> },
    Workers { answer: Answer<proto::ListWorkersResponse> },
    Rows { job: String, from: u64, answer: Answer<Vec<proto::StepRecord>> },
    Watch { job: String, answer: Answer<watch::Receiver<()>> },
    Update { job: String, seen: Seen, answer: Answer<Update> },
    Exports { answer: Answer<Vec<Export>> },
    Export { job: JobId, from: u64, validations_from: u64, answer: Answer<Exported> },
}

/// How far a curve goes.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    pub term: u64,
    pub job: JobId,
    pub last_step: u64,
    pub is_ended: bool,
    /// Rows were taken back since the last [`Question::Export`].
    pub is_cut: bool,
}

pub(crate) struct Exported {
    /// The last step that was kept when rows were taken back, if they were since the question before.
    pub cut_to: Option<u64>,
    pub steps: Vec<proto::StepRecord>,
    pub validations: Vec<proto::Validation>,
}

/// Which jobs are asked for: the newest first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub max_jobs: usize,
    /// Only jobs with smaller numbers.
    pub before: u64,
}

pub(crate) struct Jobs {
    pub jobs: Vec<proto::Job>,
    /// `Page::before` of the next page; `None`: there is none.
    pub next: Option<u64>,
}

/// What a watcher has seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub next_step: u64,
    pub num_events: u64,
}

pub(crate) struct Update {
    pub update: proto::JobUpdate,
    pub seen: Seen,
    /// More step records are there already.
    pub has_more: bool,
    pub is_ended: bool,
}

/// The driver's end of a worker's stream; dropping it ends the stream.
pub(crate) struct Connection {
    pub messages: Outbox,
    /// Never sent: whoever reads the worker's messages stops when it is dropped.
    pub _open: oneshot::Sender<()>,
}

/// A waiting message's share of the bytes that may wait. Nobody closes the semaphore, so there is always a permit.
pub(crate) struct QueuePermit {
    _permit: Option<OwnedSemaphorePermit>,
}

/// A command on its way to the driver.
struct Sent {
    command: Command,
    /// The span of the call that it is of, if any.
    call: Span,
    /// Ends when the driver takes it.
    _waits: Span,
}

impl Sent {
    /// The driver has it; with the span of what is done about it.
    fn taken(self) -> (Command, Span) {
        let span = step_of(&self.call, "decide");
        (self.command, span)
    }
}

/// How the rest of the program speaks to the driver.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Sent>,
    questions: mpsc::Sender<Question>,
    /// KiB of messages that may still wait for the driver.
    queue_kib: Arc<Semaphore>,
    next_stream: Arc<AtomicU64>,
    term: Term,
}

impl Handle {
    /// For a driver that leads with this term.
    pub fn new(term: Term) -> (Handle, Waiting) {
        let (commands, waiting_commands) = mpsc::channel(MAX_COMMANDS);
        let (questions, waiting_questions) = mpsc::channel(MAX_QUESTIONS);
        let queue_kib = Arc::new(Semaphore::new(MAX_COMMANDS_KIB));
        let handle = Handle { commands, questions, queue_kib, next_stream: Arc::default(), term };
        (handle, Waiting { commands: waiting_commands, questions: waiting_questions })
    }

    pub fn new_stream(&self) -> StreamId {
        StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed))
    }

    /// With which the driver leads.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Resolves when the driver has ended.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Waits until a message of so many bytes may wait for the driver.
    pub async fn permit_for(&self, bytes: usize) -> QueuePermit {
        let kib = (bytes / 1024 + 1).min(MAX_COMMANDS_KIB) as u32;
        QueuePermit { _permit: Arc::clone(&self.queue_kib).acquire_many_owned(kib).await.ok() }
    }

    /// Waits while the driver has too much to do; false if it has stopped.
    pub async fn tell(&self, command: Command) -> bool {
        self.commands.send(Sent { command, call: Span::none(), _waits: Span::none() }).await.is_ok()
    }

    /// Has something done, and waits for what came of it.
    pub async fn order<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, AskError> {
        let (answer, answered) = oneshot::channel();
        let sent = Sent { command: command(answer), call: Span::current(), _waits: step("wait for the driver") };
        self.commands.send(sent).await.map_err(|_| AskError::Stopping)?;
        answered.await.map_err(|_| AskError::Stopping)?
    }

    pub async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Question) -> Result<T, AskError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(question(answer)).await.map_err(|_| AskError::Stopping)?;
            answered.await.map_err(|_| AskError::Stopping)?
        };
        asked.instrument(step("ask the driver")).await
    }
}

pub(crate) enum Work {
    /// And the span of what is done about it.
    Command(Command, Span),
    Question(Question),
}

/// What waits for the driver.
pub(crate) struct Waiting {
    commands: mpsc::Receiver<Sent>,
    questions: mpsc::Receiver<Question>,
}

impl Waiting {
    /// Neither those who ask nor those who have something done can keep the others waiting. `None`: all handles are gone.
    pub async fn next(&mut self) -> Option<Work> {
        tokio::select! {
            sent = self.commands.recv() => sent.map(|sent| {
                let (command, span) = sent.taken();
                Work::Command(command, span)
            }),
            question = self.questions.recv() => question.map(Work::Question),
        }
    }

    /// A command that waits already.
    pub fn command(&mut self) -> Option<(Command, Span)> {
        self.commands.try_recv().ok().map(Sent::taken)
    }

    pub async fn question(&mut self) -> Option<Question> {
        self.questions.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_that_wait_are_bounded_by_their_bytes() {
        let (handle, _waiting) = Handle::new(Term::new(1));
        let first = handle.permit_for(48 << 20).await;
        let second = handle.permit_for(32 << 20);
        tokio::pin!(second);
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())).await;
        assert!(waits, "80 MiB are more than may wait");
        drop(first);
        drop(second.await);
        drop(handle.permit_for(usize::MAX).await);
    }
}
