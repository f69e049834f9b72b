//! When a wait is given up: nothing has moved for long, however long it takes altogether.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Nothing that a test waits for keeps still for so long, not even on a machine with ten times more to do than it has cores for.
const STILL_MAX: Duration = Duration::from_secs(180);

/// Between two looks at what is waited for: it only keeps the cores for others.
const PAUSE: Duration = Duration::from_millis(20);

/// Between two looks at what moves.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One wait: looks now and then at something that moves while all is well.
pub struct Patience<M> {
    /// As it was when it last moved, and when that was.
    last: Option<(M, Instant)>,
    looked: Option<Instant>,
}

impl<M> Default for Patience<M> {
    fn default() -> Patience<M> {
        Patience { last: None, looked: None }
    }
}

impl<M: PartialEq> Patience<M> {
    pub fn new() -> Patience<M> {
        Patience::default()
    }

    /// Pauses a moment; an error where what moves has been the same for too long.
    pub fn look(&mut self, movement: impl FnOnce() -> M) -> Result<()> {
        std::thread::park_timeout(PAUSE);
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now < looked + LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(now);
        self.look_at(movement(), now)
    }

    fn look_at(&mut self, movement: M, now: Instant) -> Result<()> {
        match &self.last {
            Some((last, since)) if *last == movement => {
                let still = now.duration_since(*since);
                ensure!(still <= STILL_MAX, "nothing has moved for {} s", still.as_secs());
            }
            _ => self.last = Some((movement, now)),
        }
        Ok(())
    }
}

#[test]
fn a_wait_lasts_as_long_as_something_moves_and_no_longer() {
    let (start, almost) = (Instant::now(), STILL_MAX - Duration::from_secs(1));
    let mut patience = Patience::new();
    for step in 0..100 {
        assert!(patience.look_at(step, start + almost * step).is_ok(), "step {step} came in time");
    }
    let last = start + almost * 99;
    assert!(patience.look_at(99, last + almost).is_ok(), "it may be still for a while");
    let error = patience.look_at(99, last + STILL_MAX + Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.to_string(), "nothing has moved for 181 s");
}
