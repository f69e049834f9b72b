//! What is done to a fleet, and what of it is measured.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::dashboards::Dashboards;
use super::report::{Deaths, Join, Restart, Stalled, Steady, Watched};
use super::usage::Usage;
use super::words::{Order, now_us};
use super::{Args, Fleet, HOSTS_OF_A_RACK, WORKERS_OF_A_HOST};
use crate::chaos::report::Spread;
use crate::cluster::children::COORDINATOR;
use crate::output;

/// Before a window: what came of what was done before it. No longer than the window.
const SETTLES_S: f64 = 5.0;
pub(super) fn settles(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, SETTLES_S))
}

/// Heartbeats of rank 0 whose way is timed.
const ECHOES_PER_S: u32 = 20;

fn spread(us: &[u64]) -> Option<Spread> {
    Spread::of(us.iter().map(|us| *us as f64 / 1e6))
}

fn seconds_between(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}

/// Of a window of time.
struct Window {
    usage: Usage,
    sent_bytes: u64,
    received_bytes: u64,
    num_messages: u64,
    num_lost: u64,
}

impl Fleet {
    fn window(&self) -> Result<Window> {
        Ok(Window {
            usage: self.coordinator()?,
            sent_bytes: self.total(|s| s.sent_bytes),
            received_bytes: self.total(|s| s.received_bytes),
            num_messages: self.total(|s| s.num_sent + s.num_received),
            num_lost: self.total(|s| s.num_lost),
        })
    }

    async fn settle(&mut self) -> Result<()> {
        self.during(self.settles).await
    }

    /// All dial at a time.
    pub(super) async fn join(&mut self, workers: usize) -> Result<Join> {
        let before = self.window()?;
        let begun_us = now_us();
        self.order(&Order::Join).await?;
        self.until("all places to be told to start", |fleet| fleet.is_started()).await?;
        let placed_us = self.max(|status| status.started_us);
        self.until("the Welcome of all workers", |fleet| fleet.sum(|s| s.welcomed) == workers).await?;
        let welcomed_us = self.max(|status| status.welcomed_us);
        let joined = self.window()?;
        self.is_paused = false;
        self.settle().await?;
        let rss_bytes = self.coordinator()?.rss_bytes;
        Ok(Join {
            welcomed_s: seconds_between(begun_us, welcomed_us),
            placed_s: seconds_between(begun_us, placed_us),
            cpu_s: joined.usage.cpu_s_since(&before.usage),
            received_bytes: joined.received_bytes - before.received_bytes,
            written_bytes: joined.usage.written_since(&before.usage),
            rss_bytes_before: before.usage.rss_bytes,
            rss_bytes,
            rss_bytes_per_worker: rss_bytes.saturating_sub(before.usage.rss_bytes) / workers as u64,
        })
    }

    /// Nothing fails.
    pub(super) async fn steady(&mut self, seconds: f64) -> Result<Steady> {
        self.order(&Order::Echo { per_s: ECHOES_PER_S }).await?;
        (self.acknowledged_us, self.echoed_us) = (Vec::new(), Vec::new());
        let before = self.window()?;
        self.during(Duration::from_secs_f64(seconds)).await?;
        let after = self.window()?;
        self.order(&Order::Echo { per_s: 0 }).await?;
        let per_s = |bytes: u64| bytes as f64 / seconds;
        Ok(Steady {
            seconds,
            cores: after.usage.cores_since(&before.usage),
            messages_per_s: per_s(after.num_messages - before.num_messages),
            sent_bytes_per_s: per_s(after.sent_bytes - before.sent_bytes),
            received_bytes_per_s: per_s(after.received_bytes - before.received_bytes),
            written_bytes_per_s: per_s(after.usage.written_since(&before.usage)),
            heartbeat_s: spread(&self.echoed_us),
            record_s: spread(&self.acknowledged_us),
            rss_bytes: after.usage.rss_bytes,
            streams_lost: after.num_lost - before.num_lost,
        })
    }

    /// Dashboards are open; then one more that reads nothing.
    pub(super) async fn watched(&mut self, num: usize, seconds: f64, cores_without: f64) -> Result<Watched> {
        let window = Duration::from_secs_f64(seconds);
        let mut dashboards = Dashboards::new(self.children.access(), &self.job);
        for _ in 0..num {
            dashboards.open().await?;
        }
        self.settle().await?;
        let (before, read_before) = (self.coordinator()?, dashboards.read_bytes());
        self.during(window).await?;
        let (after, read) = (self.coordinator()?, dashboards.read_bytes() - read_before);
        dashboards.stall().await?;
        self.settle().await?;
        let (stalled, read_before) = (self.coordinator()?, dashboards.read_bytes());
        self.during(window).await?;
        let (stalled_after, read_beside) = (self.coordinator()?, dashboards.read_bytes() - read_before);
        let still_open = dashboards.num_open();
        ensure!(still_open == num, "the coordinator ended {} of {num} dashboards", num - still_open);
        let cores = after.cores_since(&before);
        Ok(Watched {
            dashboards: num,
            seconds,
            cores,
            cores_more: cores - cores_without,
            read_bytes_per_s: read as f64 / seconds,
            rss_bytes: after.rss_bytes,
            stalled: Stalled {
                seconds,
                cores: stalled_after.cores_since(&stalled),
                rss_bytes: stalled_after.rss_bytes,
                read_bytes_per_s: read_beside as f64 / seconds,
                still_open,
            },
        })
    }

    /// Workers, hosts and racks, one after the other.
    pub(super) async fn deaths(&mut self, args: &Args) -> Result<Vec<Deaths>> {
        let spares = args.workers - self.world;
        let num_hosts = args.workers / WORKERS_OF_A_HOST;
        let rack = WORKERS_OF_A_HOST * HOSTS_OF_A_RACK;
        let mut found = Vec::new();
        if args.kills > 0 && spares > 0 {
            output::note(format_args!("{} single workers die", args.kills));
            // All over the torus, and none twice.
            let rank = |n: usize| (n * self.world / args.kills + n) % self.world;
            let victims: Vec<_> =
                (0..args.kills).map(|n| Order::Kill { ranks: vec![rank(n) as u32], hosts: Vec::new() }).collect();
            found.push(self.kill("worker", victims).await?);
        }
        if args.kill_hosts > 0 && spares >= WORKERS_OF_A_HOST && num_hosts > args.kill_hosts {
            output::note(format_args!("{} hosts die", args.kill_hosts));
            let host = |n: usize| n * num_hosts / args.kill_hosts;
            let victims = (0..args.kill_hosts).map(|n| Order::Kill { ranks: Vec::new(), hosts: vec![host(n)] });
            found.push(self.kill("host", victims.collect()).await?);
        }
        let num_racks = num_hosts / HOSTS_OF_A_RACK;
        if args.kill_racks > 0 && spares >= rack && num_racks > args.kill_racks {
            output::note(format_args!("{} racks die", args.kill_racks));
            let hosts = |n: usize| {
                (0..HOSTS_OF_A_RACK).map(|h| n * num_racks / args.kill_racks * HOSTS_OF_A_RACK + h).collect()
            };
            let victims = (0..args.kill_racks).map(|n| Order::Kill { ranks: Vec::new(), hosts: hosts(n) });
            found.push(self.kill("rack", victims.collect()).await?);
        }
        Ok(found)
    }

    /// One after the other; who died is replaced as on a cluster where processes are started again.
    async fn kill(&mut self, what: &'static str, victims: Vec<Order>) -> Result<Deaths> {
        let (mut told_us, mut decided_us) = (Vec::new(), Vec::new());
        let (mut workers, mut cpu_s, mut received, mut written, mut epochs, mut restores) = (0, 0.0, 0, 0, 0, 0);
        let num = victims.len();
        for order in victims {
            self.is_paused = true;
            let (before, epoch) = (self.window()?, self.epoch());
            let alive = self.sum(|status| status.alive);
            self.order(&order).await?;
            self.until("the victims to die", |fleet| fleet.sum(|s| s.alive) < alive).await?;
            self.until("all places to be told to start again", |fleet| fleet.epoch() > epoch && fleet.is_started())
                .await?;
            let killed_us = self.statuses().filter(|s| s.killed > 0).map(|s| s.killed_us).min().unwrap_or(0);
            let after = self.window()?;
            told_us.push(self.max(|s| s.assigned_us).saturating_sub(killed_us));
            decided_us.push(self.max(|s| s.started_us).saturating_sub(killed_us));
            workers = workers.max(self.sum(|status| status.killed));
            cpu_s += after.usage.cpu_s_since(&before.usage);
            received += after.received_bytes - before.received_bytes;
            written += after.usage.written_since(&before.usage);
            epochs += self.epoch() - epoch;
            restores += usize::from(self.max(|status| status.base_step) < self.committed.1);
            self.is_paused = false;
            self.order(&Order::Replace).await?;
            self.until("those that were replaced", |fleet| {
                fleet.sum(|s| s.alive) == alive && fleet.sum(|s| s.welcomed) == alive
            })
            .await?;
            // Steps are made, and spares show that they can fill a place.
            self.during(self.step * 2 + Duration::from_secs(1)).await?;
        }
        Ok(Deaths {
            what,
            workers,
            told_s: spread(&told_us),
            decided_s: spread(&decided_us),
            cpu_s: cpu_s / num as f64,
            received_bytes: received / num as u64,
            written_bytes: written / num as u64,
            epochs: epochs as f64 / num as f64,
            restores,
        })
    }

    /// The coordinator is killed, and started again on the same folder.
    pub(super) async fn restart(&mut self) -> Result<Restart> {
        let (epoch, alive) = (self.epoch(), self.sum(|status| status.alive));
        let begun_us = now_us();
        self.children.signal(COORDINATOR, Signal::KILL).await?;
        let ended = self.children.ended().await;
        ensure!(ended.name == COORDINATOR, "{} ended with {}", ended.name, ended.status);
        self.until("the players to see it", |fleet| fleet.sum(|s| s.welcomed) == 0).await?;
        self.children.restart_coordinator()?;
        self.until("the Welcome of all workers", |fleet| fleet.sum(|s| s.welcomed) == alive).await?;
        let welcomed_us = self.max(|status| status.welcomed_us);
        let usage = self.coordinator()?;
        self.settle().await?;
        self.until("all places to be told to start", |fleet| fleet.is_started()).await?;
        let (welcomed_s, cpu_s) = (seconds_between(begun_us, welcomed_us), usage.cpu_s);
        Ok(Restart { welcomed_s, cpu_s, epochs: self.epoch() - epoch })
    }
}
