//! Rows of a curve on their way to a bucket, on a thread beside the driver: it waits for the store, so that the driver never does.
//!
//! ```text
//!   driver ── push, cut ──> what waits ──> thread ── Segments ──> the bucket
//!      ^                                     │
//!      └── wakes: more rows are durable, or a write has failed ──┘
//! ```
//!
//! A batch is all that waits when its turn comes, at most one in [`INTERVAL`]: each is a new head. A batch that cannot be written is tried again until
//! it can, with what came meanwhile. How much may wait is the curve's to bound. The thread ends when nothing has come for [`IDLE`], and begins again with
//! the next row.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::segments::{Found, Segments, SegmentsError};

/// Between the beginnings of two writes.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between a write that has failed and the next attempt.
const RETRY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(60);

/// Who is told that something has changed.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// Why rows wait longer than one write takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    pub reason: String,
    /// Only a leadership that begins anew knows the curve as it is.
    pub is_outdated: bool,
}

impl From<SegmentsError> for Late {
    fn from(error: SegmentsError) -> Late {
        let is_outdated = matches!(error, SegmentsError::Another { .. } | SegmentsError::Deposed { .. });
        Late { reason: error.to_string(), is_outdated }
    }
}

pub struct Carrier(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: Wake,
}

#[derive(Default)]
struct State {
    /// What the thread has while it runs.
    parked: Option<(Box<Segments>, Option<Found>)>,
    /// Rows after this step are to be dropped before those that wait are written.
    cut: Option<u64>,
    /// Ascending by step.
    rows: Vec<(u64, String)>,
    /// Rows up to this step are durable.
    durable: u64,
    /// The least step that was cut to since the thread took its batch.
    cut_meanwhile: Option<u64>,
    late: Option<Late>,
    is_over: bool,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a carrier")
    }
}

impl Carrier {
    /// Of a curve that is durable up to step `newest`. What was `found` is taken over at once.
    pub fn new(segments: Segments, found: Option<Found>, newest: u64, wake: Wake) -> Carrier {
        let begins = found.is_some() || segments.is_behind();
        let state = State { parked: Some((Box::new(segments), found)), durable: newest, ..State::default() };
        let carrier = Carrier(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), wake }));
        if begins {
            carrier.start(carrier.0.lock());
        }
        carrier
    }

    /// A row after all that were pushed before.
    pub fn push(&self, step: u64, row: String) {
        let mut state = self.0.lock();
        state.rows.push((step, row));
        self.start(state);
    }

    /// Drops the rows after step `keep`.
    pub fn cut(&self, keep: u64) {
        let mut state = self.0.lock();
        let least = |before: Option<u64>| Some(before.map_or(keep, |before| before.min(keep)));
        state.rows.retain(|(step, _)| *step <= keep);
        state.durable = state.durable.min(keep);
        (state.cut, state.cut_meanwhile) = (least(state.cut), least(state.cut_meanwhile));
        self.start(state);
    }

    /// Rows up to this step are durable, as far as there are any.
    pub fn durable(&self) -> u64 {
        self.0.lock().durable
    }

    pub fn late(&self) -> Option<Late> {
        self.0.lock().late.clone()
    }

    /// Has the thread see what has come.
    fn start(&self, mut state: MutexGuard<'_, State>) {
        if let Some((segments, found)) = state.parked.take() {
            let shared = Arc::clone(&self.0);
            // What it has is behind the lock again if there is no thread to take it.
            let parcel = Arc::new(Mutex::new(Some((segments, found))));
            let taken = Arc::clone(&parcel);
            let take = |parcel: &Mutex<Option<_>>| parcel.lock().unwrap_or_else(PoisonError::into_inner).take();
            let work = move || {
                if let Some((segments, found)) = take(&taken) {
                    shared.carry(segments, found);
                }
            };
            if let Err(error) = std::thread::Builder::new().name("curve".into()).spawn(work) {
                state.parked = take(&parcel);
                let reason = format!("a thread that writes the curve cannot be started: {error}");
                state.late = Some(Late { reason, is_outdated: false });
            }
        }
        self.0.changed.notify_all();
    }
}

impl Drop for Carrier {
    /// What waits is not acknowledged, so whoever leads next is told it again.
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work of the thread.
    fn carry(&self, mut segments: Box<Segments>, found: Option<Found>) {
        if let Some(found) = found
            && let Err(error) = segments.take_over(found)
        {
            segments.leave_unread();
            self.failed(error, Vec::new());
        }
        let mut began: Option<Instant> = None;
        loop {
            let has_come = |state: &State| segments.is_behind() || !state.rows.is_empty() || state.cut.is_some();
            let mut state = self.wait(self.lock(), IDLE, |state| state.is_over || has_come(state));
            if !state.is_over && !has_come(&state) {
                // The next row finds it here.
                state.parked = Some((segments, None));
                return;
            }
            let turn = began.map(|began| (began + INTERVAL).saturating_duration_since(Instant::now()));
            state = self.wait(state, turn.unwrap_or_default(), |state| state.is_over);
            if state.is_over {
                return;
            }
            state.cut_meanwhile = None;
            if let Some(keep) = state.cut.take() {
                segments.cut(keep);
            }
            let rows = std::mem::take(&mut state.rows);
            drop(state);
            began = Some(Instant::now());
            match segments.write(&rows) {
                Ok(()) => self.written(&rows),
                Err(error) => self.failed(error, rows),
            }
        }
    }

    fn written(&self, rows: &[(u64, String)]) {
        let mut state = self.lock();
        if let Some((newest, _)) = rows.last() {
            state.durable = (*newest).min(state.cut_meanwhile.unwrap_or(u64::MAX));
        }
        state.late = None;
        drop(state);
        (self.wake)();
    }

    /// Rows that could not be written wait with the others, and all of them for a while.
    fn failed(&self, error: SegmentsError, mut rows: Vec<(u64, String)>) {
        let mut state = self.lock();
        state.late = Some(error.into());
        rows.retain(|(step, _)| state.cut_meanwhile.is_none_or(|keep| *step <= keep));
        rows.append(&mut state.rows);
        state.rows = rows;
        drop(state);
        (self.wake)();
        drop(self.wait(self.lock(), RETRY, |state| state.is_over));
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        at_most: Duration,
        is_over: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout_while(state, at_most, |state| !is_over(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use toroid_torus::ids::Term;
    use toroid_torus::owner::OwnerId;

    use super::*;
    use crate::segments::played::Objects;

    fn owner() -> OwnerId {
        OwnerId::from_random([7; 16])
    }

    /// A carrier of this term, and what wakes its driver.
    fn carrier(objects: &Objects, term: u64) -> (Carrier, Receiver<()>) {
        let segments = Segments::played(objects, owner(), Term::new(term));
        let found = segments.find().unwrap();
        let newest = found.as_ref().map_or(0, |_| seen(objects).lines().count() as u64);
        let (wake, woken) = channel();
        let wake = move || wake.send(()).unwrap_or_default();
        (Carrier::new(segments, found, newest, Box::new(wake)), woken)
    }

    /// What whoever leads next finds.
    fn seen(objects: &Objects) -> String {
        let reader = Segments::played(objects, owner(), Term::new(u64::MAX));
        let mut text = Vec::new();
        if let Some(found) = reader.find().unwrap() {
            reader.copy(&found, &mut text).unwrap();
        }
        String::from_utf8(text).unwrap()
    }

    fn row(step: u64, by: &str) -> String {
        format!("{step},{by}\n")
    }

    fn rows(steps: std::ops::RangeInclusive<u64>, by: &str) -> String {
        steps.map(|step| row(step, by)).collect()
    }

    fn push(carrier: &Carrier, steps: std::ops::RangeInclusive<u64>, by: &str) {
        steps.for_each(|step| carrier.push(step, row(step, by)));
    }

    fn wait_until(woken: &Receiver<()>, is_so: impl Fn() -> bool) {
        while !is_so() {
            woken.recv_timeout(Duration::from_secs(60)).expect("the carrier gets on");
        }
    }

    #[test]
    fn rows_are_durable_when_it_says_so_and_go_together() {
        let objects = Objects::of(owner());
        let (carrier, woken) = carrier(&objects, 1);
        assert_eq!((carrier.durable(), objects.num_heads()), (0, 0), "nobody is asked before there is a row");
        push(&carrier, 1..=50, "a");
        wait_until(&woken, || carrier.durable() == 50);
        assert_eq!(seen(&objects), rows(1..=50, "a"));
        push(&carrier, 51..=99, "a");
        wait_until(&woken, || carrier.durable() == 99);
        assert_eq!(seen(&objects), rows(1..=99, "a"));
        assert!(objects.num_heads() < 10, "{} heads for 99 rows", objects.num_heads());
    }

    #[test]
    fn rows_wait_for_a_store_that_does_not_answer_and_none_is_lost() {
        let objects = Objects::of(owner());
        let (carrier, woken) = carrier(&objects, 1);
        push(&carrier, 1..=3, "a");
        wait_until(&woken, || carrier.durable() == 3);
        objects.set_dead(true);
        push(&carrier, 4..=6, "a");
        wait_until(&woken, || carrier.late().is_some());
        assert!(carrier.late().unwrap().reason.contains("503 SlowDown"), "{:?}", carrier.late());
        // What was made void while it waited is not written.
        carrier.cut(4);
        push(&carrier, 5..=9, "b");
        assert_eq!(carrier.durable(), 3);
        objects.set_dead(false);
        wait_until(&woken, || carrier.durable() == 9);
        assert_eq!((seen(&objects), carrier.late()), (rows(1..=4, "a") + &rows(5..=9, "b"), None));
        carrier.cut(2);
        assert_eq!(carrier.durable(), 2);
        push(&carrier, 3..=3, "c");
        wait_until(&woken, || carrier.durable() == 3);
        assert_eq!(seen(&objects), rows(1..=2, "a") + &row(3, "c"));
    }

    /// T-8, T-13: the next leader takes over what it has found before anything else, and is nothing to the one before.
    #[test]
    fn t13_the_next_leader_goes_on_from_what_there_is() {
        let objects = Objects::of(owner());
        let (first, woken) = carrier(&objects, 1);
        push(&first, 1..=30, "a");
        wait_until(&woken, || first.durable() == 30);
        let (next, woken_next) = carrier(&objects, 2);
        assert_eq!(next.durable(), 30);
        push(&next, 31..=40, "b");
        wait_until(&woken_next, || next.durable() == 40);
        // It still believes that it leads.
        push(&first, 31..=60, "a");
        wait_until(&woken, || first.durable() == 60 || first.late().is_some());
        assert_eq!(seen(&objects), rows(1..=30, "a") + &rows(31..=40, "b"));
    }
}
