//! From the coordinator's messages to checked values. Errors say what was expected and what was found.

use std::collections::BTreeMap;
use std::sync::Arc;

use toroid_proto as proto;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, Rank, Step};
use toroid_torus::job::JobSpec;
use toroid_torus::owner::{Owner, OwnerId};
use toroid_torus::resplit::Origin;

use crate::work::Work;
use crate::{Assignment, Claim, HealPlan, Knock, PeerAddr, WarmUp};

/// Parses what the coordinator decided for an epoch of `world` places.
pub(crate) fn heal_plan(heal: proto::Heal, world: usize) -> Result<HealPlan, String> {
    let origin = match &heal.origin {
        None => None,
        Some(origin) => {
            let shape = Shape::try_from(&origin.shape.unwrap_or_default())
                .map_err(|e| format!("cannot split the state anew as the coordinator says: {e}"))?;
            let ranks = origin.ranks.iter().map(|r| r.checked_sub(1).map(|r| r as usize)).collect();
            let origin = Origin { shape, ranks };
            if origin.ranks.len() != world || origin.ranks.iter().flatten().any(|r| *r >= shape.world()) {
                return Err(format!(
                    "cannot split the state anew as the coordinator says: expected ranks of {shape} for {world} places, found {:?}",
                    origin.ranks
                ));
            }
            Some(origin)
        }
    };
    Ok(HealPlan {
        step: Step::new(heal.step),
        source: heal.source.into(),
        newcomers: heal.newcomers.into_iter().map(Rank::from).collect(),
        origin,
        recorded: Step::new(heal.recorded_step),
    })
}

/// Parses an assignment; `before` is the work that this worker has. The error says what is wrong with it.
pub(crate) fn assignment(assign: proto::Assign, before: Option<&Work>) -> Result<Assignment, String> {
    let said = |p: proto::Peer| (p.rank.into(), PeerAddr { worker_id: p.worker_id.into(), address: p.data_address });
    let said = assign.peers.into_iter().map(said);
    let (spec, peers) = match assign.since_epoch {
        0 => (Arc::new(checked_spec(&assign.job_json)?), Arc::new(said.collect::<BTreeMap<Rank, PeerAddr>>())),
        since => {
            let is_meant = |w: &&Work| {
                w.job_id == assign.job_id.as_str() && w.epoch.get() == since && w.rank == Rank::from(assign.rank)
            };
            let before = before.filter(is_meant).ok_or_else(|| {
                let (rank, job, epoch) = (assign.rank, &assign.job_id, assign.epoch);
                format!("cannot take rank {rank} of {job} in epoch {epoch}: what differs from epoch {since} was said, and this worker did not have it then")
            })?;
            let mut peers = Arc::clone(&before.peers);
            if said.len() > 0 {
                Arc::make_mut(&mut peers).extend(said);
            }
            (Arc::clone(&before.spec), peers)
        }
    };
    let (rank, world) = (assign.rank as usize, spec.shape.world());
    let has_all = rank < world && {
        let mut needed = spec.shape.peers(rank).into_iter().chain([rank]);
        needed.all(|rank| peers.contains_key(&Rank::new(rank)))
    };
    if !has_all || peers.keys().next_back().is_some_and(|last| last.index() >= world) {
        return Err(format!(
            "cannot take rank {rank} of {}: expected the addresses of that place and of those that it has links with, of {world} places in all, found {} addresses",
            assign.job_id,
            peers.len()
        ));
    }
    let link_key = assign.link_key.as_slice().try_into().map_err(|_| {
        format!("cannot use the link key of {}: expected 32 bytes, found {}", assign.job_id, assign.link_key.len())
    })?;
    let owner_id = OwnerId::try_from(assign.owner_id.as_slice()).map_err(|e| {
        format!("cannot tell whose the checkpoint folder of {} is: {e}; are both of one version?", assign.job_id)
    })?;
    Ok(Assignment {
        owner: Owner::new(owner_id, &assign.job_id, &spec.name, assign.submitted_unix_ms),
        claim: if assign.begun_without_owner { Claim::Begun } else { Claim::New },
        job_id: assign.job_id.into(),
        epoch: Epoch::new(assign.epoch),
        rank: assign.rank.into(),
        spec,
        peers,
        link_key,
        checkpoint_root: assign.checkpoint_root,
        heal: assign.heal,
        restore_step: step_or_none(assign.restore_step),
    })
}

/// Messages say 0 where there is no checkpoint.
fn step_or_none(step: u64) -> Option<Step> {
    (step > 0).then_some(Step::new(step))
}

fn checked_spec(json: &str) -> Result<JobSpec, String> {
    let spec: JobSpec = serde_json::from_str(json)
        .map_err(|e| format!("cannot read the job that the coordinator sent: {e}; are both of one version?"))?;
    spec.check().map_err(|e| format!("cannot run the job that the coordinator sent: {e}"))?;
    Ok(spec)
}

/// Parses what a spare is to get ready for; the error is the answer.
pub(crate) fn warm_up(ahead: proto::WarmUp) -> Result<WarmUp, proto::WarmedUp> {
    let proto::WarmUp { job_id, rank, number, checkpoint_root, checkpoint_step, .. } = ahead;
    let refuse = |error| proto::WarmedUp { job_id: job_id.clone(), number, error, ..Default::default() };
    let spec = checked_spec(&ahead.job_json).map_err(refuse)?;
    let (rank, world) = (Rank::from(rank), spec.shape.world());
    if rank.index() >= world {
        return Err(refuse(format!("cannot get ready for rank {rank} of {job_id}: it has {world} places")));
    }
    let checkpoint_step = step_or_none(checkpoint_step);
    Ok(WarmUp { job_id: job_id.into(), spec: Arc::new(spec), rank, checkpoint_root, number, checkpoint_step })
}

/// Parses a probe; the error says why it was not made.
pub(crate) fn knock(probe: &proto::Probe) -> Result<Knock, String> {
    let found = probe.key.len();
    let key = probe.key.as_slice().try_into();
    let key = key.map_err(|_| format!("was not dialled: expected a key of 32 bytes, found {found}"))?;
    let peer = PeerAddr { worker_id: probe.worker_id.as_str().into(), address: probe.data_address.clone() };
    Ok(Knock { number: probe.number, peer, key })
}
