//! `WorkerService.Host`: the workers of a host over one stream, by an agent between them and this end. For the driver each of them has a stream of its
//! own, with the bounds and the order that it has by `Session`.
//!
//! ```text
//!   agent ── HostMessage ──> Reader ── Open, Message, Closed of each worker ──> driver
//!     ^                                                                           |
//!     '──── HostAnswer ──── Answers <── an outbox of each worker, those that have something by `Bell` ──'
//! ```
//!
//! What is there for several workers when the stream takes more is one `HostAnswer`. A worker whose messages are not read, or that says what is not
//! taken, is closed alone.
//!
//! The end of the stream says nothing of its workers: they have the failure timeout to come back, as with a certificate that ends ([`Grace`]). An
//! entry `closed` is its worker's end, at once.
//!
//! What an agent with a certificate may say: it speaks for workers whose ids are the name in that certificate, or begin with it and `-`. Their
//! secrets bind their ids as ever, which the machine looks at.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::from_worker_of_host::What;
use toroid_proto::limits::{HOST_BYTES_TOGETHER, HOST_ENTRIES_MAX, HOST_WORKERS_MAX};
use toroid_proto::to_worker_of_host::What as Told;
use toroid_proto::worker_message::Body;

use super::bounds;
use crate::caller::Caller;
use crate::handle::{AskError, Command, Connection, Handle};
use crate::lead::Leader;
use crate::machine::{Limits, StreamId};
use crate::outbox::{Ends, Grace, Outgoing, outbox};

/// Opens the stream of an agent.
pub(super) async fn open(
    leader: &Leader,
    limits: Limits,
    request: Request<Streaming<proto::HostMessage>>,
) -> Result<Response<Answers>, Status> {
    let certified = request.extensions().get::<Caller>().map(Caller::certified_worker).unwrap_or_default();
    let handle = leader.handle().map_err(AskError::from)?;
    let mut incoming = request.into_inner();
    let agent = first(&mut incoming, limits.first_message()).await?;
    let (name, host) = (agent.name.as_str(), agent.host.as_str());
    tracing::info!(name, host, certified, "an agent speaks for the workers of a host");
    let welcome = proto::HostWelcome {
        heartbeat_interval_ms: u32::try_from(limits.heartbeat_interval.as_millis()).unwrap_or(u32::MAX),
        workers_max: HOST_WORKERS_MAX as u32,
        build_version: proto::build().version.clone(),
    };
    let lines = Arc::new(Lines::default());
    let grace = Grace { of: Ends::All, limit: limits.failure_timeout };
    let reader = Reader { handle, certified, grace, lines: Arc::clone(&lines), open: BTreeMap::new() };
    tokio::spawn(reader.run(incoming));
    Ok(Response::new(Answers {
        lines,
        welcome: Some(welcome),
        open: BTreeMap::new(),
        rung: VecDeque::new(),
        held: None,
        end: None,
    }))
}

/// Who the agent is, as its first message says.
async fn first(incoming: &mut Streaming<proto::HostMessage>, limit: Duration) -> Result<proto::Agent, Status> {
    let said = timeout(limit, incoming.message()).await;
    let late = |_| Status::deadline_exceeded(format!("the agent said nothing for {} s", limit.as_secs_f64()));
    let message = said.map_err(late)??.unwrap_or_default();
    let Some(agent) = message.agent.filter(|_| message.entries.is_empty()) else {
        return Err(Status::invalid_argument(
            "the first message on a stream of a host must say who its agent is, and nothing else",
        ));
    };
    let (ours, found) = (proto::build().protocol, agent.protocol());
    if ours.shared(found).is_none() {
        return Err(Status::failed_precondition(format!(
            "the agent is of version {} and speaks protocol {found}, the coordinator is of version {} and speaks protocol {ours}: they have none \
             in common; upgrade one release at a time, coordinators first",
            agent.build_version,
            proto::build().version
        )));
    }
    Ok(agent)
}

/// Whether an agent with this name in its certificate, if it has one, speaks for the worker.
fn speaks_for(certified: &str, worker: &str) -> bool {
    certified.is_empty() || worker.strip_prefix(certified).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// A worker that the driver knows, or knew.
struct Open {
    stream: StreamId,
    /// Resolves when the driver has dropped its end.
    closed: oneshot::Receiver<()>,
}

impl Open {
    fn is_closed(&mut self) -> bool {
        !matches!(self.closed.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// Passes on what the workers say until either side ends the stream.
struct Reader {
    handle: Handle,
    /// The name in the agent's certificate; empty where it has none.
    certified: String,
    grace: Grace,
    lines: Arc<Lines>,
    open: BTreeMap<u32, Open>,
}

fn stopping() -> Status {
    AskError::Stopping.into()
}

impl Reader {
    async fn run(mut self, mut incoming: Streaming<proto::HostMessage>) {
        let ended = self.read(&mut incoming).await;
        let why = ended.as_ref().map_or_else(|status| status.message().to_string(), Clone::clone);
        self.lines.change(|lines| lines.end = Some(ended.err()));
        drop(incoming);
        let limit = self.grace.limit;
        let deadline = Instant::now() + limit;
        for Open { stream, closed } in self.open.into_values() {
            // It has come back on another stream, or is lost already.
            if timeout_at(deadline, closed).await.is_ok() {
                continue;
            }
            let reason = format!("did not come back within {} s after its agent {why}", limit.as_secs_f64());
            self.handle.tell(Command::Closed { stream, reason }).await;
        }
    }

    /// Why the agent has ended the stream; an error tells it why this end does.
    async fn read(&mut self, incoming: &mut Streaming<proto::HostMessage>) -> Result<String, Status> {
        loop {
            let next = tokio::select! {
                () = self.handle.ended() => return Err(stopping()),
                next = incoming.next() => next,
            };
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(status)) => return Ok(format!("lost its connection ({})", status.message())),
                None => return Ok("closed its stream".into()),
            };
            if message.agent.is_some() {
                return Err(Status::invalid_argument("the agent said twice who it is"));
            }
            if message.entries.len() > HOST_ENTRIES_MAX {
                let found = message.entries.len();
                return Err(Status::invalid_argument(format!(
                    "the agent sent {found} entries in one message, at most {HOST_ENTRIES_MAX} are taken"
                )));
            }
            for proto::FromWorkerOfHost { worker, what } in message.entries {
                match what {
                    Some(What::Opened(register)) => self.opened(worker, *register).await?,
                    Some(What::Said(message)) => self.said(worker, *message).await?,
                    Some(What::Closed(reason)) => {
                        self.lines.change(|lines| lines.gone.push(worker));
                        self.closed(worker, reason).await?;
                    }
                    // Of a later version.
                    None => {}
                }
            }
        }
    }

    async fn opened(&mut self, worker: u32, register: proto::Register) -> Result<(), Status> {
        if self.open.contains_key(&worker) {
            return Err(Status::invalid_argument(format!("the agent opened a second worker by the number {worker}")));
        }
        if self.lines.num_unread() > HOST_ENTRIES_MAX {
            return Err(Status::resource_exhausted(format!(
                "the agent opens workers and does not read what becomes of them: {HOST_ENTRIES_MAX} are waiting"
            )));
        }
        if self.open.len() >= HOST_WORKERS_MAX {
            self.open.retain(|_, open| !open.is_closed());
        }
        if self.open.len() >= HOST_WORKERS_MAX {
            let reason =
                format!("its agent has {HOST_WORKERS_MAX} workers open already; name another way to the coordinator");
            self.lines.change(|lines| lines.refused.push((worker, reason)));
            return Ok(());
        }
        let (messages, outgoing) = outbox(self.grace);
        if !speaks_for(&self.certified, &register.worker_id) {
            let (id, certified) = (&register.worker_id, &self.certified);
            let reason = format!(
                "the agent's certificate is of `{certified}`: it speaks for workers whose ids are `{certified}` or begin with `{certified}-`, and this \
                 one's is `{id}`; give it such an id (--id), or the coordinator's own address"
            );
            let refused = proto::Refused { reason, kind: proto::RefusalKind::Unspecified.into() };
            let (term, body) = (self.handle.term().get(), Some(ToWorker::Refused(refused)));
            // The outbox is new, and ends with this message.
            let _ = messages.push(proto::CoordinatorMessage { term, body, ..Default::default() });
            self.lines.add(worker, outgoing);
            return Ok(());
        }
        let (open, closed) = oneshot::channel();
        let stream = self.handle.new_stream();
        let connection = Connection { messages, _open: open };
        if !self.handle.tell(Command::Open { stream, connection }).await {
            return Err(stopping());
        }
        self.lines.add(worker, outgoing);
        self.open.insert(worker, Open { stream, closed });
        self.body(worker, stream, Body::Register(register)).await
    }

    async fn said(&mut self, worker: u32, message: proto::WorkerMessage) -> Result<(), Status> {
        let Some(open) = self.open.get_mut(&worker) else { return Ok(()) };
        if open.is_closed() {
            // The driver knows why.
            self.open.remove(&worker);
            return Ok(());
        }
        let stream = open.stream;
        match message.body {
            Some(body) => self.body(worker, stream, body).await,
            // Of a later version.
            None => Ok(()),
        }
    }

    async fn body(&mut self, worker: u32, stream: StreamId, body: Body) -> Result<(), Status> {
        let permit = self.handle.permit_for(body.encoded_len()).await;
        let body = match bounds::bounded(body) {
            // Who it is stands in the certificate, whatever it says itself.
            Ok(Body::Register(register)) => {
                Box::new(Body::Register(proto::Register { certified: self.certified.clone(), ..register }))
            }
            Ok(body) => Box::new(body),
            Err(reason) => return self.closed(worker, reason).await,
        };
        self.tell(Command::Message { stream, body, permit }).await
    }

    /// The worker's end.
    async fn closed(&mut self, worker: u32, mut reason: String) -> Result<(), Status> {
        let Some(Open { stream, .. }) = self.open.remove(&worker) else { return Ok(()) };
        bounds::text(&mut reason);
        self.tell(Command::Closed { stream, reason }).await
    }

    async fn tell(&self, command: Command) -> Result<(), Status> {
        if self.handle.tell(command).await { Ok(()) } else { Err(stopping()) }
    }
}

/// What the reader has for who answers, and which workers have something to be told.
#[derive(Default)]
struct State {
    opened: Vec<(u32, Outgoing)>,
    /// Not opened, and why.
    refused: Vec<(u32, String)>,
    /// They hear nothing any more.
    gone: Vec<u32>,
    rung: Vec<u32>,
    /// The stream is to end, with a status where there is a reason.
    end: Option<Option<Status>>,
    /// Nobody answers any more.
    is_gone: bool,
    /// Of whoever waits for more.
    waker: Option<Waker>,
}

#[derive(Default)]
struct Lines(Mutex<State>);

impl Lines {
    /// No caller panics while it holds the lock, and the lists would still be in order.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What has become of workers that the agent has not read yet: whoever reads nothing opens no more of them.
    fn num_unread(&self) -> usize {
        let state = self.lock();
        state.opened.len() + state.refused.len() + state.gone.len()
    }

    fn add(&self, worker: u32, outgoing: Outgoing) {
        self.change(|state| {
            if !state.is_gone {
                state.opened.push((worker, outgoing));
            }
        });
    }
}

/// Rings when a worker's outbox has something for it.
struct Bell {
    worker: u32,
    lines: Arc<Lines>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.lines.change(|state| state.rung.push(self.worker));
    }
}

struct Line {
    outgoing: Outgoing,
    /// Its [`Bell`].
    waker: Waker,
}

/// What the agent is told.
pub(crate) struct Answers {
    lines: Arc<Lines>,
    /// Until it is said.
    welcome: Option<proto::HostWelcome>,
    open: BTreeMap<u32, Line>,
    /// Workers that may have something, each once or more often.
    rung: VecDeque<u32>,
    /// Did not fit into the answer before.
    held: Option<(proto::ToWorkerOfHost, usize)>,
    end: Option<Option<Status>>,
}

impl Answers {
    /// Takes over what has changed, and waits for more.
    fn look(&mut self, cx: &Context<'_>) -> Vec<proto::ToWorkerOfHost> {
        let mut state = self.lines.lock();
        state.waker = Some(cx.waker().clone());
        for (worker, outgoing) in state.opened.drain(..) {
            let waker = Waker::from(Arc::new(Bell { worker, lines: Arc::clone(&self.lines) }));
            self.open.insert(worker, Line { outgoing, waker });
            self.rung.push_back(worker);
        }
        for worker in state.gone.drain(..) {
            self.open.remove(&worker);
        }
        self.rung.extend(state.rung.drain(..));
        if let Some(end) = state.end.take() {
            self.end = Some(end);
        }
        let closed = |(worker, reason)| proto::ToWorkerOfHost { worker, what: Some(Told::Closed(reason)) };
        state.refused.drain(..).map(closed).collect()
    }

    /// The next thing that is to be told to one of those that have rung, with its bytes.
    fn pop(&mut self) -> Option<(proto::ToWorkerOfHost, usize)> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        while let Some(worker) = self.rung.front().copied() {
            if let Some(line) = self.open.get_mut(&worker) {
                match Pin::new(&mut line.outgoing).poll_next(&mut Context::from_waker(&line.waker)) {
                    Poll::Ready(Some(message)) => {
                        let bytes = message.encoded_len();
                        let what = Some(Told::Said(Box::new(message)));
                        return Some((proto::ToWorkerOfHost { worker, what }, bytes));
                    }
                    Poll::Ready(None) => {
                        self.open.remove(&worker);
                        let what = Some(Told::Closed("the coordinator closed the stream".into()));
                        return Some((proto::ToWorkerOfHost { worker, what }, 0));
                    }
                    Poll::Pending => {}
                }
            }
            self.rung.pop_front();
        }
        None
    }
}

impl Stream for Answers {
    type Item = Result<proto::HostAnswer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(welcome) = self.welcome.take() {
            return Poll::Ready(Some(Ok(proto::HostAnswer { welcome: Some(welcome), entries: Vec::new() })));
        }
        let (mut entries, mut bytes) = (self.look(cx), 0);
        while entries.len() < HOST_ENTRIES_MAX
            && let Some((entry, its_bytes)) = self.pop()
        {
            if !entries.is_empty() && bytes + its_bytes > HOST_BYTES_TOGETHER {
                self.held = Some((entry, its_bytes));
                break;
            }
            bytes += its_bytes;
            entries.push(entry);
        }
        if !entries.is_empty() {
            return Poll::Ready(Some(Ok(proto::HostAnswer { welcome: None, entries })));
        }
        match self.end.take() {
            Some(Some(status)) => {
                // Nothing comes after it.
                self.end = Some(None);
                Poll::Ready(Some(Err(status)))
            }
            Some(None) => {
                self.end = Some(None);
                Poll::Ready(None)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut state = self.lines.lock();
        state.is_gone = true;
        state.waker = None;
        let opened = std::mem::take(&mut state.opened);
        drop(state);
        // What is said to them from now on waits for their next streams.
        drop(opened);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Outbox;

    #[test]
    fn an_agent_speaks_for_ids_that_begin_with_its_name() {
        for (certified, worker, expected) in [
            ("node-7", "node-7", true),
            ("node-7", "node-7-123-00ff00", true),
            ("node-7", "node-77", false),
            ("node-7", "node-71-1", false),
            ("node-7", "node-8-1", false),
            ("node-7", "w-node-7-1", false),
            ("node-7", "", false),
            ("", "anyone", true),
        ] {
            assert_eq!(speaks_for(certified, worker), expected, "{certified} for {worker}");
        }
    }

    fn answers() -> (Arc<Lines>, Answers) {
        let lines = Arc::new(Lines::default());
        let (open, rung) = (BTreeMap::new(), VecDeque::new());
        (Arc::clone(&lines), Answers { lines, welcome: None, open, rung, held: None, end: None })
    }

    fn added(lines: &Lines, worker: u32) -> Outbox {
        let (outbox, outgoing) = outbox(Grace { of: Ends::All, limit: Duration::from_secs(60) });
        lines.add(worker, outgoing);
        outbox
    }

    fn say(outbox: &Outbox, reason: &str) {
        let body = Some(ToWorker::Stop(proto::Stop { reason: reason.into(), ..Default::default() }));
        outbox.push(proto::CoordinatorMessage { term: 1, body, ..Default::default() }).expect("it is taken");
    }

    /// The workers of each answer that is ready, in order; a worker that is closed is -1 - its number.
    fn ready(answers: &mut Answers) -> Vec<Vec<i64>> {
        let mut found = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(answer)) = Pin::new(&mut *answers).poll_next(&mut cx) {
            let of = |entry: proto::ToWorkerOfHost| match entry.what {
                Some(Told::Said(_)) => i64::from(entry.worker),
                _ => -1 - i64::from(entry.worker),
            };
            found.push(answer.expect("no status").entries.into_iter().map(of).collect());
        }
        found
    }

    #[test]
    fn what_is_ready_at_a_time_is_one_answer_and_each_worker_is_closed_alone() {
        let (lines, mut answers) = answers();
        let (first, second) = (added(&lines, 1), added(&lines, 2));
        assert_eq!(ready(&mut answers), [[0_i64; 0]; 0]);
        say(&second, "a");
        say(&first, "a");
        say(&second, "b");
        assert_eq!(ready(&mut answers), [[2, 2, 1]]);
        say(&first, "c");
        drop(first);
        say(&second, "c");
        assert_eq!(ready(&mut answers), [[1, -2, 2]]);
        let big = "x".repeat(HOST_BYTES_TOGETHER);
        say(&second, "d");
        say(&second, &big);
        say(&second, "e");
        assert_eq!(ready(&mut answers), [[2], [2], [2]], "one that is long goes alone");
        drop(answers);
        say(&second, "it is away, and may come back");
    }

    #[test]
    fn what_nobody_reads_is_counted_and_what_is_read_is_not() {
        let (lines, mut answers) = answers();
        let _open: Vec<Outbox> = (0..3).map(|worker| added(&lines, worker)).collect();
        lines.change(|state| {
            state.refused.push((7, "too many".into()));
            state.gone.push(1);
        });
        assert_eq!(lines.num_unread(), 5);
        assert_eq!(ready(&mut answers), [[-8]]);
        assert_eq!((lines.num_unread(), answers.open.len()), (0, 2));
    }

    #[test]
    fn more_than_a_message_takes_are_several_answers() {
        let (lines, mut answers) = answers();
        let outboxes: Vec<Outbox> = (0..20).map(|worker| added(&lines, worker)).collect();
        for outbox in &outboxes {
            (0..crate::outbox::MAX_MESSAGES).for_each(|_| say(outbox, "a"));
        }
        let found = ready(&mut answers);
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [HOST_ENTRIES_MAX, 20 * 256 - HOST_ENTRIES_MAX]);
    }

    #[test]
    fn a_stream_that_is_refused_ends_with_words_after_what_waits() {
        let (lines, mut answers) = answers();
        say(&added(&lines, 3), "a");
        lines.change(|state| state.end = Some(Some(Status::invalid_argument("no"))));
        let mut cx = Context::from_waker(Waker::noop());
        let mut next = || Pin::new(&mut answers).poll_next(&mut cx);
        assert!(matches!(next(), Poll::Ready(Some(Ok(_)))));
        assert!(matches!(next(), Poll::Ready(Some(Err(status))) if status.message() == "no"));
        assert!(matches!(next(), Poll::Ready(None)));
    }
}
