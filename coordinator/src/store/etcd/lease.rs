//! Renews a leader's lease, and says until when nobody else can lead.
//!
//! A lease is counted from when its renewal was *sent*, by the monotonic clock, and a part of it is given up against clocks that run at other speeds. Each
//! renewal is a call on a stream of its own: the client library never opens one again that has broken, and an error of a renewal shows
//! in a stream's first answer only.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::service::{Kind, Service};
use crate::store::tenure::Lease;

/// Renewals in the time of a lease.
const RENEWALS: u32 = 3;
/// After a renewal that failed, until the next attempt.
const RETRY: Duration = Duration::from_millis(100);

/// What is counted on of a lease that was sent for at `sent`: an eighth less.
pub(super) fn counted(sent: Instant, ttl: Duration) -> Instant {
    sent + ttl - ttl / 8
}

/// Runs until the lease is gone, or nobody wants to know any more.
pub(super) async fn keep(mut etcd: impl Service, id: i64, ttl: Duration, lease: watch::Sender<Lease>) {
    let mut next = etcd.now() + ttl / RENEWALS;
    loop {
        tokio::select! {
            biased;
            () = lease.closed() => return,
            () = etcd.sleep_until(next) => {}
        }
        let sent = etcd.now();
        match etcd.renew(id).await {
            Ok(()) => {
                let now = etcd.now();
                let until = counted(sent, ttl);
                let mut is_over = false;
                lease.send_modify(|lease| {
                    // What was over once stays so: somebody may have acted on it.
                    is_over = !matches!(lease, Lease::Until(Some(end)) if *end > now);
                    *lease = match is_over {
                        true => Lease::Over("its lease was renewed too late".into()),
                        false => Lease::Until(Some(until)),
                    };
                });
                if is_over {
                    return;
                }
                next = sent + ttl / RENEWALS;
            }
            Err(error) if error.kind == Kind::LeaseGone => {
                lease.send_replace(Lease::Over(error.to_string()));
                return;
            }
            // Another member, until the time is over: whoever counts it sees that by itself.
            Err(error) => {
                tracing::debug!("{error}");
                next = etcd.now() + RETRY;
            }
        }
    }
}
