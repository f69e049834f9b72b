//! The way another thread ends an epoch for the trainer thread (T-1).
//!
//! An atomic says which epoch is the oldest that may still wait; an eventfd wakes a wait that has begun. The atomic is written
//! first and the eventfd is drained before the atomic is read again, so no raise is ever missed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use toroid_torus::failpoint;
use toroid_torus::ids::Epoch;

use super::CommError;

/// Shared by the control side, which raises it, and the one thread that owns the [`Links`](super::Links), which obeys it.
#[derive(Debug, Clone)]
pub struct Fence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: AtomicU64,
    wake: OwnedFd,
}

impl Fence {
    pub fn new() -> Result<Fence, CommError> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|e| CommError::io("make the eventfd of a fence", e))?;
        Ok(Fence(Arc::new(Inner { epoch: AtomicU64::new(0), wake })))
    }

    /// Every wait of an epoch below `epoch`, begun or to come, returns [`CommError::Fenced`] at once. Never goes back.
    pub fn raise(&self, epoch: Epoch) {
        self.0.epoch.fetch_max(epoch.get(), Ordering::SeqCst);
        // The only failure is a counter at its maximum, and then the eventfd is readable already.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    /// The oldest epoch that may still wait.
    pub fn epoch(&self) -> Epoch {
        Epoch::new(self.0.epoch.load(Ordering::SeqCst))
    }

    pub fn check(&self, epoch: Epoch) -> Result<(), CommError> {
        let raised = self.epoch();
        if raised > epoch && !failpoint!(IgnoreFence) { Err(CommError::Fenced { epoch, raised }) } else { Ok(()) }
    }

    /// After [`Fence::wake_fd`] polled readable: forgets raises that `epoch` need not heed.
    pub(super) fn drain(&self, epoch: Epoch) -> Result<(), CommError> {
        self.check(epoch)?;
        let mut count = [0; 8];
        // Failing means that nothing is there to be read, which is what is wanted.
        let _ = rustix::io::read(&self.0.wake, &mut count);
        self.check(epoch)
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_stops_older_epochs_only_and_never_goes_back() {
        let fence = Fence::new().unwrap();
        let (older, raised) = (Epoch::new(2), Epoch::new(3));
        fence.check(Epoch::NONE).unwrap();
        fence.raise(raised);
        fence.raise(older);
        assert_eq!(fence.check(older), Err(CommError::Fenced { epoch: older, raised }));
        assert_eq!(fence.drain(older), Err(CommError::Fenced { epoch: older, raised }));
        fence.check(raised).unwrap();
        fence.drain(raised).unwrap();
        assert!(rustix::io::read(&fence.0.wake, &mut [0; 8]).is_err(), "drained: a wait of epoch 3 blocks again");
    }
}
