//! A thread beside the trainer's, and the orders that wait for it.
//!
//! It does its orders one after the other. An order whose code panics has failed at once, in words.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::sync::lock;
use crate::system;

/// Whoever waits looks this often whether the epoch is over.
const LOOK: Duration = Duration::from_millis(20);

/// Orders that wait for a thread. A coordinator has few checkpoints in flight; beyond, an order has failed.
const MAX_ORDERS: usize = 64;

/// What a thread is to do. `run` emits what came of it, `failed` that it panicked or was not begun.
struct Order {
    run: Box<dyn FnOnce() + Send>,
    failed: Box<dyn FnOnce(String) + Send>,
}

/// A thread and the orders that wait for it; it is started by the first.
pub(super) struct Lane {
    name: &'static str,
    orders: Option<SyncSender<Order>>,
    open: Arc<Open>,
}

/// Orders that are not done.
struct Open {
    state: Mutex<OpenState>,
    changed: Condvar,
}

struct OpenState {
    num: usize,
    /// When the oldest of them was begun, or ordered where none was before it.
    since: Instant,
}

impl Lane {
    pub fn new(name: &'static str) -> Lane {
        let state = Mutex::new(OpenState { num: 0, since: system::now() });
        Lane { name, orders: None, open: Arc::new(Open { state, changed: Condvar::new() }) }
    }

    pub fn order(&mut self, run: impl FnOnce() + Send + 'static, failed: impl FnOnce(String) + Send + 'static) {
        let order = Order { run: Box::new(run), failed: Box::new(failed) };
        if let Some(system) = system::simulated() {
            let open = Arc::clone(&self.open);
            open.one_more();
            return system.order(self.name, Box::new(move || work(order, &open)));
        }
        let orders = match self.started() {
            Ok(orders) => orders,
            Err(error) => return (order.failed)(format!("cannot start the thread {}: {error}", self.name)),
        };
        self.open.one_more();
        let (order, why) = match orders.try_send(order) {
            Ok(()) => return,
            Err(TrySendError::Full(order)) => (order, format!("{MAX_ORDERS} others wait for the file system")),
            Err(TrySendError::Disconnected(order)) => (order, format!("the thread {} has ended", self.name)),
        };
        self.open.one_done();
        (order.failed)(why);
    }

    fn started(&mut self) -> std::io::Result<SyncSender<Order>> {
        if let Some(orders) = &self.orders {
            return Ok(orders.clone());
        }
        let (sender, orders) = sync_channel(MAX_ORDERS);
        let open = Arc::clone(&self.open);
        std::thread::Builder::new()
            .name(self.name.into())
            .spawn(move || orders.iter().for_each(|order| work(order, &open)))?;
        self.orders = Some(sender.clone());
        Ok(sender)
    }

    /// Waits until all that was ordered is done, but not for an order that lasts longer than `patience`, nor when `is_over`.
    pub fn wait(&self, patience: Duration, is_over: impl Fn() -> bool) -> Waited {
        let mut state = lock(&self.open.state);
        loop {
            let lasts = system::now() - state.since;
            match () {
                () if state.num == 0 => return Waited::Done,
                () if is_over() => return Waited::Over,
                () if lasts >= patience => return Waited::Lasts(lasts),
                () => {}
            }
            let look = LOOK.min(patience - lasts);
            if let Some(system) = system::simulated() {
                drop(state);
                system.wait(Some(system.now() + look));
                state = lock(&self.open.state);
                continue;
            }
            let wait = self.open.changed.wait_timeout(state, look);
            state = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// All that was ordered is done.
    #[cfg(test)]
    pub fn wait_for_all(&self) {
        assert_eq!(self.wait(Duration::MAX, || false), Waited::Done);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Done,
    Over,
    /// An order takes this long already.
    Lasts(Duration),
}

impl Open {
    fn one_more(&self) {
        let mut state = lock(&self.state);
        if state.num == 0 {
            state.since = system::now();
        }
        state.num += 1;
    }

    fn one_done(&self) {
        let mut state = lock(&self.state);
        (state.num, state.since) = (state.num - 1, system::now());
        self.changed.notify_all();
    }
}

fn work(Order { run, failed }: Order, open: &Open) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("it said nothing");
        failed(format!("its thread panicked, which is a bug of Toroid: {text}"));
    }
    open.one_done();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn orders_are_done_in_turn_and_a_panic_is_the_failure_of_its_own_at_once() {
        let (said, heard) = channel();
        let mut lane = Lane::new("a-test");
        for number in 0..4 {
            let (done, failed) = (said.clone(), said.clone());
            let run = move || {
                assert!(number != 1, "number {number} cannot be done");
                done.send(Ok(number)).expect("it is heard");
            };
            lane.order(run, move |error| failed.send(Err(error)).expect("it is heard"));
        }
        lane.wait_for_all();
        let heard: Vec<Result<i32, String>> = heard.try_iter().collect();
        let panicked = "its thread panicked, which is a bug of Toroid: number 1 cannot be done".to_string();
        assert_eq!(heard, [Ok(0), Err(panicked), Ok(2), Ok(3)]);
        lane.wait_for_all();
    }

    #[test]
    fn nobody_waits_for_a_disk_that_does_not_answer_nor_beyond_the_epoch() {
        let (go, wait) = channel::<()>();
        let mut lane = Lane::new("a-test");
        assert_eq!(lane.wait(Duration::ZERO, || true), Waited::Done);
        lane.order(move || assert!(wait.recv().is_err(), "nothing is sent"), |_| {});
        assert!(matches!(lane.wait(Duration::from_millis(1), || false), Waited::Lasts(_)));
        assert_eq!(lane.wait(Duration::MAX, || true), Waited::Over);
        drop(go);
        assert_eq!(lane.wait(Duration::MAX, || false), Waited::Done);
    }

    #[test]
    fn orders_beyond_the_bound_have_failed() {
        let (said, heard) = channel();
        let (go, wait) = channel::<()>();
        let (begins, begun) = channel();
        let mut lane = Lane::new("a-test");
        let hold = move || {
            begins.send(()).expect("it is heard");
            assert!(wait.recv().is_err(), "nothing is sent");
        };
        lane.order(hold, |_| {});
        begun.recv().expect("the thread has taken it");
        for _ in 0..MAX_ORDERS + 2 {
            let failed = said.clone();
            lane.order(|| {}, move |error| failed.send(error).expect("it is heard"));
        }
        let errors: Vec<String> = heard.try_iter().collect();
        assert_eq!(errors, ["64 others wait for the file system"; 2]);
        drop(go);
        lane.wait_for_all();
    }
}
