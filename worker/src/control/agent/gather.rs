//! What the workers of a host say, gathered into messages: heartbeats wait a little for one another, all else goes at once with all that waits.

use std::time::Duration;

use toroid_proto::from_worker_of_host::What;
use toroid_proto::limits::{HOST_BYTES_TOGETHER, HOST_ENTRIES_MAX};
use toroid_proto::worker_message::Body;
use toroid_proto::{FromWorkerOfHost, HostMessage};

/// A heartbeat waits for so much of the interval between two, and no longer than [`LONGEST`].
const SHARE: u32 = 20;
const LONGEST: Duration = Duration::from_millis(50);

/// Times count from any origin.
#[derive(Debug)]
pub(super) struct Gather {
    /// How long a heartbeat waits for others.
    hold: Duration,
    entries: Vec<FromWorkerOfHost>,
    bytes: usize,
    deadline: Option<Duration>,
}

impl Gather {
    pub fn new(heartbeat_interval: Duration) -> Gather {
        let hold = (heartbeat_interval / SHARE).min(LONGEST);
        Gather { hold, entries: Vec::new(), bytes: 0, deadline: None }
    }

    /// When what was gathered is to go; `None`: there is nothing.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Takes an entry of so many bytes. The message that has to go before it, as it has no room for it.
    pub fn add(&mut self, entry: FromWorkerOfHost, bytes: usize, now: Duration) -> Option<HostMessage> {
        let has_room = self.bytes + bytes <= HOST_BYTES_TOGETHER && self.entries.len() < HOST_ENTRIES_MAX;
        let full = (!has_room && !self.entries.is_empty()).then(|| self.take());
        let due = if is_heartbeat(&entry) { now + self.hold } else { now };
        self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
        self.bytes += bytes;
        self.entries.push(entry);
        full
    }

    /// All that was gathered.
    pub fn take(&mut self) -> HostMessage {
        (self.bytes, self.deadline) = (0, None);
        HostMessage { agent: None, entries: std::mem::take(&mut self.entries) }
    }
}

fn is_heartbeat(entry: &FromWorkerOfHost) -> bool {
    matches!(&entry.what, Some(What::Said(message)) if matches!(message.body, Some(Body::Heartbeat(_))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_proto::{Finished, Heartbeat, WorkerMessage};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn said(worker: u32, body: Body) -> FromWorkerOfHost {
        FromWorkerOfHost { worker, what: Some(What::Said(Box::new(WorkerMessage { body: Some(body) }))) }
    }

    fn heartbeat(worker: u32) -> FromWorkerOfHost {
        said(worker, Body::Heartbeat(Heartbeat::default()))
    }

    fn workers(message: HostMessage) -> Vec<u32> {
        message.entries.into_iter().map(|entry| entry.worker).collect()
    }

    #[test]
    fn heartbeats_wait_for_one_another_and_no_longer_than_a_twentieth_of_the_interval() {
        let mut gather = Gather::new(ms(200));
        assert_eq!(gather.deadline(), None);
        assert!(gather.add(heartbeat(1), 10, ms(1000)).is_none());
        assert!(gather.add(heartbeat(2), 10, ms(1007)).is_none());
        assert_eq!(gather.deadline(), Some(ms(1010)), "the first one says it");
        assert_eq!(workers(gather.take()), [1, 2]);
        assert_eq!(gather.deadline(), None);
        let mut slow = Gather::new(ms(10_000));
        slow.add(heartbeat(1), 10, ms(0));
        assert_eq!(slow.deadline(), Some(ms(50)));
    }

    #[test]
    fn what_else_is_said_goes_at_once_with_all_that_waits_and_in_order() {
        let mut gather = Gather::new(ms(1000));
        gather.add(heartbeat(1), 10, ms(1000));
        gather.add(said(2, Body::Finished(Finished::default())), 10, ms(1005));
        assert_eq!(gather.deadline(), Some(ms(1005)));
        gather.add(heartbeat(3), 10, ms(1006));
        assert_eq!(gather.deadline(), Some(ms(1005)));
        assert_eq!(workers(gather.take()), [1, 2, 3]);
        gather.add(FromWorkerOfHost { worker: 4, what: Some(What::Closed("gone".into())) }, 10, ms(1007));
        assert_eq!(gather.deadline(), Some(ms(1007)));
    }

    #[test]
    fn a_message_is_bounded_and_one_entry_that_is_long_goes_alone() {
        let mut gather = Gather::new(ms(1000));
        assert!(gather.add(heartbeat(1), 10, ms(0)).is_none());
        let before = gather.add(heartbeat(2), HOST_BYTES_TOGETHER, ms(1)).expect("there is no room for both");
        assert_eq!(workers(before), [1]);
        assert_eq!(workers(gather.add(heartbeat(3), 1, ms(2)).expect("nor for these")), [2]);
        assert_eq!(gather.deadline(), Some(ms(52)));
        for number in 0..HOST_ENTRIES_MAX as u32 - 1 {
            assert!(gather.add(heartbeat(number), 1, ms(3)).is_none());
        }
        assert_eq!(workers(gather.add(heartbeat(4), 1, ms(3)).expect("it is full")).len(), HOST_ENTRIES_MAX);
    }
}
