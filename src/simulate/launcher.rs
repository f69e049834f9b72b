//! A launcher beside Toroid, as `torchrun` is: whatever fails ends all processes, and all are started again from the newest checkpoint.
//!
//! It has the same failures, workers, steps, checkpoints and repairs as Toroid has, and notices deaths as fast. A worker that hangs is noticed by the
//! time-out of collective operations. Where too few workers live for all places it waits for repairs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::account::{Account, Cause};
use super::fleet::{Failure, Kind, failures};
use super::model::Model;

/// Slow steps until somebody could know of a slow worker: as many as Toroid's coordinator compares, and the step in which it began.
const NAMED_STEPS: u32 = 23;

enum Event {
    Fails(usize),
    Noticed { start: u64 },
    Launched { start: u64 },
    Written { start: u64, step: u64 },
    Repaired(Vec<usize>),
    Drained(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Trains,
    /// Something has failed that nobody has noticed.
    Broken,
    Launches,
    Waits,
}

struct Launcher<'a> {
    model: &'a Model,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    num_queued: u64,
    failures: Vec<Failure>,
    is_up: Vec<bool>,
    is_placed: Vec<bool>,
    slow: BTreeMap<usize, f64>,
    phase: Phase,
    /// How often it was started, or could not go on.
    start: u64,
    committed: u64,
    durable: u64,
    step_began: Duration,
    copies: Duration,
    save_at: Duration,
    idle_since: Duration,
    account: Account,
}

pub fn run(model: &Model) -> Account {
    let num_workers = model.num_workers();
    let s = &model.scenario;
    let every = Duration::from_secs_f64(s.failure_every_s * s.places as f64 / num_workers as f64);
    let failures = failures(num_workers, every, &model.settings.mix, model.end(), s.seed);
    let mut launcher = Launcher {
        model,
        now: Duration::ZERO,
        queue: BTreeMap::new(),
        num_queued: 0,
        is_up: vec![true; num_workers],
        is_placed: (0..num_workers).map(|worker| worker < s.places).collect(),
        slow: BTreeMap::new(),
        phase: Phase::Trains,
        start: 0,
        committed: 0,
        durable: 0,
        step_began: Duration::ZERO,
        copies: Duration::ZERO,
        save_at: Duration::from_secs_f64(s.interval_s),
        idle_since: Duration::ZERO,
        account: Account::default(),
        failures,
    };
    for number in 0..launcher.failures.len() {
        launcher.after(launcher.failures[number].at, Event::Fails(number));
    }
    launcher.run();
    launcher.account
}

impl Launcher<'_> {
    fn run(&mut self) {
        let end = self.model.end();
        loop {
            let step = (self.phase == Phase::Trains).then(|| self.step_began + self.copies + self.step());
            let event = self.queue.keys().next().map(|(at, _)| *at);
            let next = step.into_iter().chain(event).min().unwrap_or(end);
            if next >= end {
                self.now = end;
                return self.spend_idle();
            }
            self.now = next;
            if event != Some(next) {
                self.commit();
            } else if let Some((_, event)) = self.queue.pop_first() {
                self.happen(event);
            }
        }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.queue.insert((self.now + delay, self.num_queued), event);
        self.num_queued += 1;
    }

    fn step(&self) -> Duration {
        let placed = self.slow.iter().filter(|(worker, _)| self.is_placed[**worker]);
        self.model.step.mul_f64(placed.map(|(_, factor)| *factor).fold(1.0, f64::max))
    }

    fn commit(&mut self) {
        self.account.spend(Cause::Checkpoint, self.copies);
        self.account.spend(Cause::Steps, self.model.step);
        self.account.spend(Cause::Slow, self.step() - self.model.step);
        self.account.counts.committed_steps += 1;
        self.committed += 1;
        (self.step_began, self.copies) = (self.now, Duration::ZERO);
        if self.now >= self.save_at {
            self.copies = self.model.copy_aside();
            let (start, step) = (self.start, self.committed);
            self.after(self.copies + self.model.write(), Event::Written { start, step });
            self.save_at = self.now + Duration::from_secs_f64(self.model.scenario.interval_s);
            self.account.counts.checkpoints += 1;
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fails(number) => self.fails(number),
            Event::Noticed { start } if start == self.start => self.launch(),
            Event::Launched { start } if start == self.start => self.launched(),
            Event::Written { start, step } if start == self.start => self.durable = step,
            Event::Repaired(workers) => {
                workers.into_iter().for_each(|worker| self.is_up[worker] = true);
                if self.phase == Phase::Waits {
                    self.launch();
                }
            }
            Event::Drained(worker) => self.drained(worker),
            // Of a start before.
            Event::Noticed { .. } | Event::Launched { .. } | Event::Written { .. } => {}
        }
    }

    fn fails(&mut self, number: usize) {
        let Failure { kind, workers, factor, .. } = self.failures[number].clone();
        let hit: Vec<usize> = workers.filter(|worker| self.is_up[*worker]).collect();
        let num_placed = hit.iter().filter(|worker| self.is_placed[**worker]).count() as u64;
        self.account.counts.failures += u64::from(num_placed > 0);
        if kind == Kind::Slow {
            if num_placed > 0 && !self.slow.contains_key(&hit[0]) {
                self.slow.insert(hit[0], factor);
                let named = self.model.step.mul_f64(factor) * NAMED_STEPS;
                self.after(named + Duration::from_secs_f64(self.model.settings.operator_s), Event::Drained(hit[0]));
            }
            return;
        }
        self.account.counts.deaths += num_placed;
        let settings = &self.model.settings;
        let detect_s = match kind {
            Kind::Hang => settings.hang_timeout_s,
            Kind::Worker | Kind::Slow => settings.notice_s,
            Kind::Host | Kind::Rack | Kind::Switch => settings.failure_timeout_s,
        };
        let repair = settings.repair(kind);
        self.stop(&hit, repair);
        if num_placed > 0 && matches!(self.phase, Phase::Trains | Phase::Launches) {
            self.break_off(Duration::from_secs_f64(detect_s));
        }
    }

    /// These are down until they are repaired.
    fn stop(&mut self, workers: &[usize], repair: Duration) {
        for worker in workers {
            self.is_up[*worker] = false;
            self.slow.remove(worker);
        }
        if !workers.is_empty() {
            self.after(repair, Event::Repaired(workers.to_vec()));
        }
    }

    /// No step is made until all are started again, and nobody knows of it for so long.
    fn break_off(&mut self, detect: Duration) {
        if self.phase == Phase::Trains {
            self.account.spend(Cause::Broken, self.now - self.step_began);
            self.idle_since = self.now;
        } else {
            self.spend_idle();
        }
        self.start += 1;
        self.phase = Phase::Broken;
        self.after(detect, Event::Noticed { start: self.start });
    }

    fn spend_idle(&mut self) {
        let cause = match self.phase {
            Phase::Trains => return,
            Phase::Broken => Cause::Detect,
            Phase::Launches => Cause::Restore,
            Phase::Waits => Cause::Wait,
        };
        self.account.spend(cause, self.now - self.idle_since);
        self.idle_since = self.now;
    }

    /// All start again from the newest checkpoint, if enough are there.
    fn launch(&mut self) {
        self.spend_idle();
        self.account.lose(self.committed - self.durable, self.model.step);
        self.committed = self.durable;
        for (placed, up) in self.is_placed.iter_mut().zip(&self.is_up) {
            *placed &= *up;
        }
        let places = self.model.scenario.places;
        let mut num_placed = self.is_placed.iter().filter(|placed| **placed).count();
        for worker in 0..self.is_up.len() {
            if num_placed < places && self.is_up[worker] && !self.is_placed[worker] {
                self.is_placed[worker] = true;
                num_placed += 1;
            }
        }
        self.start += 1;
        if num_placed < places {
            self.phase = Phase::Waits;
            return;
        }
        self.account.counts.restores += 1;
        self.phase = Phase::Launches;
        self.after(self.model.launch(), Event::Launched { start: self.start });
    }

    fn launched(&mut self) {
        self.spend_idle();
        self.phase = Phase::Trains;
        (self.step_began, self.copies) = (self.now, Duration::ZERO);
        self.save_at = self.now + Duration::from_secs_f64(self.model.scenario.interval_s);
    }

    /// The operator stops a slow worker, and all start again without it.
    fn drained(&mut self, worker: usize) {
        if !self.slow.contains_key(&worker) || !self.is_placed[worker] {
            return;
        }
        self.stop(&[worker], self.model.settings.repair(Kind::Slow));
        if matches!(self.phase, Phase::Trains | Phase::Launches) {
            self.break_off(Duration::ZERO);
        }
    }
}
