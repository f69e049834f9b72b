//! For how long a coordinator leads, as far as it can know by its own monotonic clock.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use toroid_torus::failpoint;
use toroid_torus::ids::Term;

/// Why nothing can be written now.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub since: Instant,
    pub reason: String,
}

/// What the store knows of its lease.
#[derive(Debug, Clone)]
pub(super) enum Lease {
    /// Nobody else can lead before then; `None`: as long as the store is open.
    Until(Option<Instant>),
    /// It is over, and why.
    Over(String),
}

/// A leadership: all that has it decides only while it lasts.
#[derive(Debug, Clone)]
pub struct Tenure {
    term: Term,
    lease: watch::Receiver<Lease>,
    trouble: watch::Receiver<Option<Trouble>>,
}

impl Tenure {
    pub(super) fn new(term: Term, lease: watch::Receiver<Lease>, trouble: watch::Receiver<Option<Trouble>>) -> Tenure {
        Tenure { term, lease, trouble }
    }

    /// One that a lock keeps for as long as the process has the store open.
    pub fn locked(term: Term) -> Tenure {
        // What nobody sends to stays as it is.
        Tenure::new(term, watch::channel(Lease::Until(None)).1, watch::channel(None).1)
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// Why the leadership is over; `None`: it is not.
    pub fn over(&self) -> Option<String> {
        self.over_at(Instant::now())
    }

    /// The same, by the clock of whoever asks.
    pub fn over_at(&self, now: Instant) -> Option<String> {
        match &*self.lease.borrow() {
            Lease::Over(reason) => Some(reason.clone()),
            Lease::Until(Some(end)) if *end <= now && !failpoint!(DecideAfterDeadline) => {
                Some("its lease could not be renewed in time, so that another may lead by now".into())
            }
            Lease::Until(_) => None,
        }
    }

    /// Waits until it is over.
    pub async fn end(&mut self) -> String {
        loop {
            if let Some(reason) = self.over() {
                return reason;
            }
            let until = match &*self.lease.borrow_and_update() {
                Lease::Until(end) => *end,
                Lease::Over(_) => continue,
            };
            let end = async {
                match until {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => {}
                changed = self.lease.changed() => if changed.is_err() && until.is_none() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    /// Why the store takes nothing now, and since when, in words; `None`: it is not known to be so.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.borrow();
        trouble.as_ref().map(|Trouble { since, reason }| {
            let since: Duration = since.elapsed();
            format!("the store does not answer since {:.0} s, decisions wait: {reason}", since.as_secs_f64())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_that_is_not_renewed_is_over_by_the_own_clock() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let (lease, received) = watch::channel(Lease::Until(Some(start + ms(20_000))));
        let mut tenure = Tenure::new(Term::new(3), received, watch::channel(None).1);
        assert_eq!(tenure.over(), None);
        lease.send_replace(Lease::Until(Some(start + ms(40))));
        let reason = tenure.end().await;
        assert!(start.elapsed() >= ms(40) && reason.contains("could not be renewed"), "{reason}");
        lease.send_replace(Lease::Over("it is gone".into()));
        assert_eq!(tenure.end().await, "it is gone");
    }

    #[tokio::test]
    async fn a_lock_lasts() {
        let mut tenure = Tenure::locked(Term::new(1));
        assert_eq!((tenure.over(), tenure.trouble()), (None, None));
        tokio::select! {
            biased;
            reason = tenure.end() => panic!("{reason}"),
            () = std::future::ready(()) => {}
        }
    }
}
