//! What a coordinator may send when: T-1, T-3, T-6, T-7, T-8, against what is really so.

use std::collections::BTreeMap;

use toroid_coordinator::machine::StreamId;
use toroid_coordinator::machine::record::JobRecord;
use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_session::HeldAs;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, Rank, Step, WorkerId};
use toroid_torus::resplit::num_lost;

use crate::network::Pid;
use crate::worker::{Held, pid_of};
use crate::world::World;

impl World {
    pub fn check_sent(&mut self, stream: StreamId, body: &ToWorker) {
        let complaint = match body {
            ToWorker::Assign(m) => self.wrong_assign(stream, m),
            ToWorker::Start(m) => self.wrong_start(m),
            ToWorker::CheckpointAt(m) => self.record(&m.job_id).and_then(|record| {
                let is_stored = record.epoch.get() > m.epoch || record.pending.contains_key(&Step::new(m.step));
                (!is_stored).then(|| format!("T-8: the checkpoint of step {} is named before it is stored", m.step))
            }),
            ToWorker::PublishManifest(m) => self.record(&m.job_id).and_then(|record| {
                let is_last = record.last_checkpoint().is_some_and(|c| m.remove_steps.contains(&c.step.get()));
                is_last.then(|| format!("T-6: publishing step {} would remove the last good checkpoint", m.step))
            }),
            ToWorker::DropCheckpoint(m) => self.record(&m.job_id).and_then(|record| {
                let is_recorded =
                    record.epoch.get() == m.epoch && record.checkpoints.iter().any(|c| c.step.get() == m.step);
                is_recorded.then(|| format!("T-6: the checkpoint of step {} is dropped and recorded", m.step))
            }),
            ToWorker::StepAck(m) => {
                let last = self.curves.get(&m.job_id).and_then(|c| c.last()).map_or(0, |r| r.step);
                let kept = last.max(self.record(&m.job_id).map_or(0, |r| r.restore_step.get()));
                (kept < m.step).then(|| format!("T-4: step {} is acknowledged and not kept", m.step))
            }
            ToWorker::Welcome(_)
            | ToWorker::Stop(_)
            | ToWorker::Refused(_)
            | ToWorker::WarmUp(_)
            | ToWorker::ReportSteps(_)
            | ToWorker::Kill(_)
            | ToWorker::Probe(_) => None,
        };
        self.env.truth.check(complaint.is_none(), || complaint.unwrap_or_default());
    }

    fn wrong_assign(&mut self, stream: StreamId, m: &proto::Assign) -> Option<String> {
        let Some(record) = self.record(&m.job_id) else {
            return Some("T-8: a job is assigned before it is stored".into());
        };
        // What came at a time may end the epoch that one of it was told of: whoever hears of that hears of the next one after it.
        if record.epoch.get() != m.epoch {
            let (assigned, stored) = (m.epoch, record.epoch);
            return (stored.get() < assigned)
                .then(|| format!("T-8: epoch {assigned} is assigned, epoch {stored} is stored"));
        }
        let to =
            self.coordinator.as_ref().and_then(|c| c.worker_of(stream)).map(|pid| WorkerId::from(format!("w{pid}")));
        // A place that is given and taken back in one decision is not stored: whoever has it hears of both.
        let is_taken_back = self.taken_back.contains(&(stream, m.job_id.clone(), m.epoch));
        if record.worker_at(m.rank.into()) != to.as_ref() && !is_taken_back {
            return Some(format!("T-7: rank {} is assigned to {to:?}, stored is {:?}", m.rank, record.places));
        }
        if m.heal {
            return None;
        }
        let step = Step::new(m.restore_step);
        let complaint = self.avoidable_restore(record, step);
        self.env.truth.restores(&m.job_id, Epoch::new(m.epoch), step);
        complaint
    }

    /// T-3: steps are given up only if both holders of a shard are lost.
    fn avoidable_restore(&self, record: &JobRecord, step: Step) -> Option<String> {
        let truth = &self.env.truth.jobs[record.id.as_str()];
        let full = &record.spec.shape;
        let is_unavoidable = !record.spec.fault_tolerance.redundancy || full.world() == 1 || truth.is_distrusted;
        let before = self.before.get(record.id.as_str())?;
        if truth.high <= step || is_unavoidable {
            return None;
        }
        let had_state = |worker: &&WorkerId| {
            let earlier = before.earlier.iter().any(|layout| layout.rank_of(worker).is_some());
            before.rank_of(worker).is_some() || earlier
        };
        let states = |worker: &WorkerId| {
            let held = self.workers.get(&pid_of(worker)).and_then(|w| w.held.as_ref()).filter(|h| record.id == h.job);
            held.into_iter().flat_map(|h| h.as_places.iter().map(move |as_place| (h, as_place))).collect::<Vec<_>>()
        };
        let held: Vec<(&Held, &HeldAs)> = record.places.iter().flatten().filter(had_state).flat_map(states).collect();
        let is_whole = |way: Shape| {
            let of_way = || held.iter().filter(|(_, as_place)| as_place.shape == way);
            let high = of_way().map(|(h, _)| h.committed).max().unwrap_or_default();
            // A drained worker that is asked for its place again may have missed steps that were made without it.
            let is_of_use = |h: &Held| h.committed == high || h.committed.next() == high && h.is_sealed;
            let present = of_way().filter(|(h, _)| is_of_use(h)).map(|(_, as_place)| as_place.rank.index()).collect();
            num_lost(&way, &present) == 0
        };
        let way = held.iter().map(|(_, as_place)| as_place.shape).find(|way| is_whole(*way))?;
        let high = truth.high;
        Some(format!(
            "T-3: step {high} is given up for the checkpoint of step {step} though all shards of {way} are there"
        ))
    }

    fn wrong_start(&mut self, m: &proto::Start) -> Option<String> {
        let record = self.record(&m.job_id)?;
        let epoch = Epoch::new(m.epoch);
        if record.epoch != epoch {
            return (record.epoch < epoch).then(|| format!("T-8: epoch {} is started before it is stored", m.epoch));
        }
        let shape = record.shape;
        let world = shape.world();
        let places: Vec<Option<Pid>> = record.places.iter().map(|w| w.as_deref().map(pid_of)).collect();
        let truth = self.env.truth.jobs.get_mut(&m.job_id)?;
        if let Some(first) = truth.started.get(&epoch) {
            return (*first != m.heal).then(|| format!("epoch {} is started again, with {:?}", m.epoch, m.heal));
        }
        truth.started.insert(epoch, m.heal.clone());
        let nobody = BTreeMap::new();
        let prepared = truth.prepared.get(&epoch).unwrap_or(&nobody);
        let missing =
            Rank::all(world).find(|rank| prepared.get(rank).map(|p| Some(p.pid)) != Some(places[rank.index()]));
        if let Some(rank) = missing {
            return Some(format!("T-1: epoch {} is started, rank {rank} has not prepared in it", m.epoch));
        }
        let reports: Vec<Option<u64>> = Rank::all(world).map(|rank| prepared[&rank].committed.map(Step::get)).collect();
        let highest = reports.iter().flatten().copied().max();
        let Some(heal) = &m.heal else {
            let agree = reports.iter().all(|step| *step == highest && step.is_some());
            return (!agree).then(|| format!("T-2: epoch {} is started from the steps {reports:?}", m.epoch));
        };
        let way = heal.origin.as_ref().map_or(Ok(shape), |o| Shape::try_from(&o.shape.unwrap_or_default()));
        let Ok(way) = way else { return Some(format!("epoch {} heals from no shape: {heal:?}", m.epoch)) };
        let rank_in = |rank| prepared[&rank].held.iter().find(|h| h.shape == way).map(|h| h.rank.index());
        let ranks: Vec<Option<usize>> = Rank::all(world).map(rank_in).collect();
        let highest = (0..world).filter(|r| ranks[*r].is_some()).filter_map(|r| reports[r]).max();
        let newcomers: Vec<u32> = (0..world).filter(|r| ranks[*r].is_none()).map(|r| r as u32).collect();
        let has_it = reports.get(heal.source as usize) == Some(&Some(heal.step));
        let is_told = match &heal.origin {
            Some(origin) => origin.ranks == ranks.iter().map(|r| r.map_or(0, |r| r as u32 + 1)).collect::<Vec<_>>(),
            None => ranks.iter().enumerate().all(|(now, old)| old.is_none_or(|old| old == now)),
        };
        if Some(heal.step) != highest || !has_it || heal.newcomers != newcomers || !is_told {
            return Some(format!("T-3: epoch {} heals by {heal:?}, the places hold {reports:?}, {ranks:?}", m.epoch));
        }
        if num_lost(&way, &ranks.into_iter().flatten().collect()) > 0 {
            return Some(format!("T-3: epoch {} heals by {heal:?}, and not every shard has a holder", m.epoch));
        }
        (truth.high.get() > heal.step + 1).then(|| format!("T-2: step {} was committed, {heal:?}", truth.high))
    }
}
