//! What waits to be sent to a worker: in the order it was said, and bounded.
//!
//! A job with steps of a millisecond has a thousand acknowledgements a second, and a worker may get no processor for that long: an
//! acknowledgement is one of all steps before, so one that waits last is replaced by the next. All else has a place of its own.
//!
//! Where a stream ends as its certificate does, the worker may come back on another: what is said meanwhile is dropped, and said again after its
//! next Register, as with every stream that another replaces.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use toroid_proto::CoordinatorMessage;
use toroid_proto::coordinator_message::Body;

/// Messages that wait for a worker; beyond, it is disconnected.
pub(crate) const MAX_MESSAGES: usize = 256;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<CoordinatorMessage>,
    /// Of whoever waits for the next message.
    waker: Option<Waker>,
    /// Either end is gone.
    is_closed: bool,
    /// The stream's end is gone, and its worker may come back on another.
    is_away: bool,
}

type Shared = Arc<Mutex<Queue>>;

/// No caller panics while it holds the lock, and the queue would still be in order.
fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's end; what waits is still sent after it is dropped.
pub(crate) struct Outbox(Shared);

/// The stream's end.
pub(crate) struct Outgoing {
    queue: Shared,
    grace: Grace,
}

/// Which ends of a stream leave its worker time to come back on another, and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grace {
    pub of: Ends,
    pub limit: Duration,
}

/// The ends of a stream that say nothing of its worker.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ends {
    None,
    /// That of the certificate or token by which it was let in: its streams end with it. The clocks of both ends differ by less than the limit.
    OfCredential(SystemTime),
    /// An agent's, whatever it ends of.
    All,
}

impl Grace {
    /// A stream that ends now leaves its worker time.
    pub fn applies(&self) -> bool {
        match self.of {
            Ends::None => false,
            Ends::OfCredential(end) => end <= SystemTime::now() + self.limit,
            Ends::All => true,
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error("does not read its messages: {MAX_MESSAGES} wait")]
    Full,
    #[error("lost its connection")]
    Gone,
}

pub(crate) fn outbox(grace: Grace) -> (Outbox, Outgoing) {
    let queue = Shared::default();
    (Outbox(queue.clone()), Outgoing { queue, grace })
}

impl Outbox {
    pub fn push(&self, message: CoordinatorMessage) -> Result<(), NotTaken> {
        let mut queue = lock(&self.0);
        if queue.is_closed {
            return Err(NotTaken::Gone);
        }
        if queue.is_away {
            return Ok(());
        }
        let is_full = queue.waiting.len() == MAX_MESSAGES;
        match queue.waiting.back_mut() {
            Some(last) if replaces(&message, last) => *last = message,
            _ if is_full => return Err(NotTaken::Full),
            _ => queue.waiting.push_back(message),
        }
        wake(queue);
        Ok(())
    }
}

/// Both acknowledge steps of one job.
fn replaces(message: &CoordinatorMessage, last: &CoordinatorMessage) -> bool {
    match (&message.body, &last.body) {
        (Some(Body::StepAck(new)), Some(Body::StepAck(old))) => new.job_id == old.job_id,
        _ => false,
    }
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.is_closed = true;
        wake(queue);
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let is_away = self.grace.applies();
        *lock(&self.queue) = Queue { is_closed: !is_away, is_away, ..Queue::default() };
    }
}

impl futures_core::Stream for Outgoing {
    type Item = CoordinatorMessage;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<CoordinatorMessage>> {
        let mut queue = lock(&self.queue);
        match queue.waiting.pop_front() {
            Some(message) => Poll::Ready(Some(message)),
            None if queue.is_closed => Poll::Ready(None),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;
    use toroid_proto::{StepAck, Stop};

    fn ack(job: &str, step: u64) -> CoordinatorMessage {
        CoordinatorMessage {
            term: 1,
            body: Some(Body::StepAck(StepAck { job_id: job.into(), step })),
            ..Default::default()
        }
    }

    fn grace(of: Ends) -> Grace {
        Grace { of, limit: Duration::from_secs(60) }
    }

    fn stop(job: &str) -> CoordinatorMessage {
        CoordinatorMessage {
            term: 1,
            body: Some(Body::Stop(Stop { job_id: job.into(), ..Stop::default() })),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn acknowledgements_that_wait_are_one() {
        let (outbox, outgoing) = outbox(grace(Ends::None));
        (1..=10_000).for_each(|step| assert_eq!(outbox.push(ack("j-1", step)), Ok(())));
        outbox.push(stop("j-1")).unwrap();
        (1..=3).for_each(|step| outbox.push(ack("j-1", step)).unwrap());
        outbox.push(ack("j-2", 1)).unwrap();
        drop(outbox);
        let said: Vec<_> = outgoing.collect().await;
        assert_eq!(said, [ack("j-1", 10_000), stop("j-1"), ack("j-1", 3), ack("j-2", 1)]);
    }

    #[tokio::test]
    async fn other_messages_are_bounded() {
        let (outbox, mut outgoing) = outbox(grace(Ends::None));
        (0..MAX_MESSAGES).for_each(|_| outbox.push(stop("j-1")).unwrap());
        assert_eq!(outbox.push(stop("j-1")), Err(NotTaken::Full));
        assert_eq!(outgoing.next().await, Some(stop("j-1")));
        assert_eq!(outbox.push(ack("j-1", 1)), Ok(()));
        assert_eq!(outbox.push(ack("j-1", 2)), Ok(()), "it needs no place of its own");
        assert_eq!(outbox.push(stop("j-1")), Err(NotTaken::Full));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_message_and_by_the_end() {
        let (outbox, mut outgoing) = outbox(grace(Ends::None));
        let waiting = tokio::spawn(async move { (outgoing.next().await, outgoing.next().await) });
        tokio::task::yield_now().await;
        outbox.push(stop("j-1")).unwrap();
        tokio::task::yield_now().await;
        drop(outbox);
        assert_eq!(waiting.await.unwrap(), (Some(stop("j-1")), None));
    }

    #[tokio::test]
    async fn what_nobody_sends_is_not_taken() {
        let (outbox, outgoing) = outbox(grace(Ends::None));
        drop(outgoing);
        assert_eq!(outbox.push(stop("j-1")), Err(NotTaken::Gone));
    }

    #[tokio::test]
    async fn what_is_said_to_a_worker_whose_certificate_has_ended_waits_for_its_next_stream() {
        let now = SystemTime::now();
        for (of, expected) in [
            (Ends::OfCredential(now), Ok(())),
            (Ends::OfCredential(now + Duration::from_secs(3600)), Err(NotTaken::Gone)),
            (Ends::All, Ok(())),
        ] {
            let (outbox, outgoing) = outbox(grace(of));
            drop(outgoing);
            (0..=MAX_MESSAGES).for_each(|_| assert_eq!(outbox.push(stop("j-1")), expected, "{of:?}"));
        }
    }
}
