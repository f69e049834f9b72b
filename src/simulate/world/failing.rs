//! What goes wrong in a run, and what is done about it outside of the machine: failures, repairs, an operator who acts on slow workers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proto::worker_message::Body as FromWorker;
use toroid_machine::Input;
use toroid_machine::record::State;
use toroid_proto as proto;

use super::{Event, Health, Worker, World};
use crate::simulate::account::Cause;
use crate::simulate::fleet::{Failure, Kind};
use crate::simulate::words;

/// Steps between two looks at who is slow; a window of the machine is 10.
const COMPARED_STEPS: u32 = 11;

impl World {
    pub(super) fn happen(&mut self, event: Event) -> Result<()> {
        let is_same = |world: &World, worker: usize, incarnation: u32| world.workers[worker].incarnation == incarnation;
        match event {
            Event::Fails(number) => self.fails(number),
            Event::Closed { worker, incarnation } if is_same(self, worker, incarnation) => self.closed(worker),
            Event::Reported { epoch } if epoch == self.epoch.number => self.reported(),
            Event::Healed { epoch } if epoch == self.epoch.number => {
                self.healed();
                Ok(())
            }
            Event::Written { epoch, step } if epoch == self.epoch.number => self.written(step),
            Event::Repaired { workers } => self.repaired(&workers),
            Event::Compared { worker, incarnation } if is_same(self, worker, incarnation) => self.compared(worker),
            Event::Drained { worker, incarnation } if is_same(self, worker, incarnation) => self.drained(worker),
            Event::Resumed => self.resumed(),
            // Of an older epoch, or of a process that is gone.
            _ => Ok(()),
        }
    }

    fn is_member(&self, worker: usize) -> bool {
        self.workers[worker].place.is_some_and(|p| self.epoch.members.get(p.rank) == Some(&worker))
    }

    fn fails(&mut self, number: usize) -> Result<()> {
        let Failure { kind, workers, factor, .. } = self.failures[number].clone();
        let hit: Vec<usize> = workers.filter(|w| self.workers[*w].health == Health::Up).collect();
        if hit.is_empty() {
            return Ok(());
        }
        self.freshen()?;
        let num_placed = hit.iter().filter(|w| self.is_member(**w)).count() as u64;
        self.account.counts.failures += u64::from(num_placed > 0);
        if kind == Kind::Slow {
            return self.becomes_slow(hit[0], factor);
        }
        self.account.counts.deaths += num_placed;
        // What is said last of all comes before.
        if kind.is_silent() || kind == Kind::Hang {
            self.hear_all();
        } else {
            let hung = self.hung();
            hit.iter().for_each(|worker| self.hear(*worker, hung));
        }
        let health = if kind == Kind::Hang { Health::Hangs } else { Health::Down };
        for worker in &hit {
            self.workers[*worker].health = health;
            if kind != Kind::Worker {
                self.unnoticed.insert(*worker);
            }
        }
        if num_placed > 0 && self.making.is_some() {
            self.interrupt(Cause::Detect);
        }
        let of = |worker: &usize| (*worker, self.workers[*worker].incarnation);
        let hit: Vec<(usize, u32)> = hit.iter().map(of).collect();
        match kind {
            // The others of its epoch wait for it, and say so.
            Kind::Hang => self.hear_all(),
            Kind::Worker => {
                let notice = Duration::from_secs_f64(self.model.settings.notice_s);
                let (worker, incarnation) = hit[0];
                self.after(notice, Event::Closed { worker, incarnation });
            }
            Kind::Host | Kind::Rack | Kind::Switch | Kind::Slow => {}
        }
        self.after(self.model.settings.repair(kind), Event::Repaired { workers: hit });
        self.settle()
    }

    fn closed(&mut self, worker: usize) -> Result<()> {
        let Some(stream) = self.workers[worker].stream.take() else { return Ok(()) };
        self.unnoticed.remove(&worker);
        let reason = "closed its stream (reset)".into();
        self.machine.take(Input::Closed { stream, reason }, self.at());
        self.settle()
    }

    /// Processes that were down are started again, without anything that they held.
    fn repaired(&mut self, workers: &[(usize, u32)]) -> Result<()> {
        self.freshen()?;
        for (worker, incarnation) in workers {
            if self.workers[*worker].incarnation != *incarnation {
                continue;
            }
            self.closed(*worker)?;
            let incarnation = incarnation + 1;
            self.slow.remove(worker);
            self.workers[*worker] = Worker { health: Health::Up, incarnation, stream: None, place: None, held: None };
            self.registers(*worker);
        }
        self.settle()
    }

    fn resumed(&mut self) -> Result<()> {
        self.freshen()?;
        let job = self.job.clone();
        let is_ended = self.machine.record(&job).is_some_and(|record| record.state == State::Failed);
        if is_ended {
            let resume = |request| Input::Resume { request, job, from_scratch: false, steps: None };
            self.request(resume)?.map_err(anyhow::Error::msg).context("have a failed job go on")?;
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------------- slow workers

    fn becomes_slow(&mut self, worker: usize, factor: f64) -> Result<()> {
        if !self.is_member(worker) || self.slow.contains_key(&worker) {
            return Ok(());
        }
        self.slow.insert(worker, (factor, self.committed));
        self.compared(worker)
    }

    /// The machine compares the worker with its peers.
    fn compared(&mut self, worker: usize) -> Result<()> {
        if !self.slow.contains_key(&worker) {
            return Ok(());
        }
        if self.is_member(worker) && self.making.is_some() {
            let rank_of = |w: &usize| self.workers[*w].place.map_or(0, |place| place.rank);
            let stage = self.epoch.shape.place(rank_of(&worker)).pp;
            let is_peer = |w: &&usize| self.epoch.shape.place(rank_of(w)).pp == stage;
            let peers: Vec<usize> = self.epoch.members.iter().filter(is_peer).copied().collect();
            let hung = self.hung();
            for peer in peers {
                let computed = self.computed(peer);
                let (compute_steps, compute_s) = (self.committed, computed.as_secs_f64());
                let heartbeat = proto::Heartbeat { compute_steps, compute_s, ..self.heartbeat(peer, hung) };
                self.says(peer, FromWorker::Heartbeat(heartbeat));
            }
        }
        let incarnation = self.workers[worker].incarnation;
        let shape = self.epoch.shape;
        let delay = self.model.step_of(&shape).mul_f64(self.slowness()) * COMPARED_STEPS;
        self.after(delay, Event::Compared { worker, incarnation });
        self.settle()
    }

    /// How long a worker has computed, in all steps that are committed.
    fn computed(&self, worker: usize) -> Duration {
        let step_s = self.model.step.as_secs_f64();
        let (factor, since) = self.slow.get(&worker).copied().unwrap_or((1.0, 0));
        let slow = self.committed.saturating_sub(since) as f64 * (factor - 1.0);
        Duration::from_secs_f64(step_s * (self.committed as f64 + slow))
    }

    /// The operator moves the place of a slow worker, or where that would cost as much stops it.
    fn drained(&mut self, worker: usize) -> Result<()> {
        if !self.is_member(worker) || !self.slow.contains_key(&worker) || self.workers[worker].health != Health::Up {
            return Ok(());
        }
        self.freshen()?;
        let incarnation = self.workers[worker].incarnation;
        let drain = |request| Input::Drain { request, worker: words::worker_id(worker) };
        let is_moved = self.request(drain)?.is_ok();
        if !is_moved && self.model.scenario.second_holder {
            self.after(self.operator(), Event::Drained { worker, incarnation });
            return Ok(());
        }
        let repair = self.model.settings.repair(Kind::Slow);
        self.after(repair, Event::Repaired { workers: vec![(worker, incarnation)] });
        if is_moved {
            return Ok(());
        }
        self.workers[worker].health = Health::Down;
        self.interrupt(Cause::Detect);
        self.closed(worker)
    }
}
