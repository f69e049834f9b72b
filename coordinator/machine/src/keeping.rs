//! Which published checkpoints of a job are kept when a newer one is published, and what users pin.
//!
//! ```text
//!   keep = 2, keep_every_steps = 500      300   500   700   900   1100   1300   1400
//!                                               for good            |      └──┬──┘
//!                                                                for good   newest
//! ```
//!
//! - The newest `checkpoint.keep` are kept.
//! - Of each `checkpoint.keep_every_steps` steps the first is kept for good: the first at or after each multiple. That is the multiple itself
//!   where it is saved, and checkpoints that come by time have their share, too. It counts steps and not checkpoints, so that a death, or one
//!   that failed, changes nothing about which are kept.
//! - What a user has pinned is kept until it is unpinned. A pin is of a step: it holds whether the checkpoint can be read now or not.
//! - What is not kept once is not kept again because newer ones come: files that are gone stay gone.
//! - From when its removal is ordered a checkpoint may be gone. It is for good no more, and cannot be pinned.

use std::collections::BTreeSet;

use super::api::{Reply, RequestError};
use super::job_context::{JobContext, Section};
use super::record::{Checkpoint, JobRecord};
use toroid_torus::failpoint;
use toroid_torus::ids::Step;
use toroid_torus::job::CheckpointConfig;

/// Steps that are pinned of one job, at most.
pub const MAX_PINNED: usize = 1000;
/// Steps that an error names.
const MAX_NAMED: usize = 10;

/// Of these, ascending by step, what nothing keeps: neither the newest `num_newest`, nor one for good, nor pinned.
pub(crate) fn outdated<'a>(
    checkpoints: impl Iterator<Item = &'a Checkpoint> + Clone,
    num_newest: usize,
    every: u64,
    pinned: &BTreeSet<Step>,
) -> Vec<Step> {
    let for_good = for_good(checkpoints.clone(), every);
    let num_older = checkpoints.clone().count().saturating_sub(num_newest);
    let older = checkpoints.take(num_older).map(|c| c.step);
    let is_pinned = |step: &Step| pinned.contains(step) && !failpoint!(RemovePinned);
    older.filter(|step| !for_good.contains(step) && !is_pinned(step)).collect()
}

/// Of these, ascending by step, the first at or after each multiple of `every` steps; 0: none.
pub(crate) fn for_good<'a>(checkpoints: impl Iterator<Item = &'a Checkpoint>, every: u64) -> BTreeSet<Step> {
    let mut last = 0;
    let mut out = BTreeSet::new();
    for checkpoint in checkpoints.filter(|c| !c.is_removal_ordered) {
        let multiple = checkpoint.step.get().checked_div(every).unwrap_or(0);
        if multiple > last {
            out.insert(checkpoint.step);
        }
        last = last.max(multiple);
    }
    out
}

/// What users have pinned.
#[derive(Debug)]
pub(crate) struct Pins;

impl Section for Pins {
    type Fields<'a> = &'a mut BTreeSet<Step>;

    fn fields(record: &mut JobRecord) -> &mut BTreeSet<Step> {
        &mut record.pinned
    }
}

type Cx<'a, 'b> = JobContext<'a, 'b, Pins>;

/// How many of the newest are kept, whatever else is.
pub(crate) fn num_newest(config: &CheckpointConfig) -> usize {
    (config.keep as usize).max(1)
}

/// A user wants this checkpoint to stay. Twice is the same as once.
pub(crate) fn pin(cx: &mut Cx<'_, '_>, step: Step) -> Result<Reply, RequestError> {
    let job = cx.record.id.clone();
    let Some(checkpoint) = cx.record.checkpoints.iter().find(|c| c.step == step) else {
        let known = match cx.record.pending.contains_key(&step) {
            true => "it is to be saved: pin it when it is there".into(),
            false => named("there are", cx.record.checkpoints.iter().map(|c| c.step)),
        };
        return Err(RequestError::UnknownCheckpoint { job, step, known });
    };
    let path = checkpoint.path.clone();
    if checkpoint.is_removal_ordered {
        return Err(RequestError::Removed { job, step });
    }
    if cx.record.pinned.contains(&step) {
        return Ok(Reply::Pinned { path });
    }
    if cx.record.pinned.len() >= MAX_PINNED {
        return Err(RequestError::Pins { job, max: MAX_PINNED });
    }
    cx.edit().insert(step);
    cx.event("checkpoint.pinned", format!("a user pinned step {step}: it stays until it is unpinned"));
    Ok(Reply::Pinned { path })
}

/// It is kept like any other again: if it is outdated it goes with the next publishing.
pub(crate) fn unpin(cx: &mut Cx<'_, '_>, step: Step) -> Result<Reply, RequestError> {
    if !cx.record.pinned.contains(&step) {
        let pinned = named("these are:", cx.record.pinned.iter().copied());
        return Err(RequestError::NotPinned { job: cx.record.id.clone(), step, pinned });
    }
    cx.edit().remove(&step);
    cx.event("checkpoint.unpinned", format!("a user unpinned step {step}: it is kept like any other again"));
    Ok(Reply::Unpinned { stays: stays(&cx.record, step) })
}

/// It is kept without a pin, too, as things are.
fn stays(record: &JobRecord, step: Step) -> bool {
    let config = &record.spec.checkpoint;
    let none = BTreeSet::new();
    record.checkpoints.iter().any(|c| c.step == step)
        && !outdated(record.checkpoints.iter(), num_newest(config), config.keep_every_steps, &none).contains(&step)
}

/// `these are: 100, 200`, the newest first.
fn named(are: &str, steps: impl DoubleEndedIterator<Item = Step> + ExactSizeIterator) -> String {
    let num = steps.len();
    let named: Vec<String> = steps.rev().take(MAX_NAMED).map(|step| step.to_string()).collect();
    match num {
        0 => "there is none".into(),
        n if n > MAX_NAMED => format!("the newest of {n} are {}", named.join(", ")),
        _ => format!("{are} {}", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use toroid_torus::ids::Epoch;

    fn checkpoint(step: u64) -> Checkpoint {
        Checkpoint {
            step: Step::new(step),
            epoch: Epoch::NONE,
            path: String::new(),
            bytes: 0,
            unix_ms: 0,
            write_s: 0.0,
            is_removal_ordered: false,
        }
    }

    fn steps(of: impl IntoIterator<Item = Step>) -> Vec<u64> {
        of.into_iter().map(Step::get).collect()
    }

    /// What is left of these steps when they are saved one after the other, and whatever nothing keeps goes each time.
    fn left(saved: &[u64], num_newest: usize, every: u64, pinned: &BTreeSet<Step>) -> Vec<u64> {
        let mut kept: Vec<Checkpoint> = Vec::new();
        for step in saved {
            kept.push(checkpoint(*step));
            let outdated = outdated(kept.iter(), num_newest, every, pinned);
            kept.retain(|c| !outdated.contains(&c.step));
        }
        steps(kept.into_iter().map(|c| c.step))
    }

    #[test]
    fn the_first_of_each_so_many_steps_stays_beside_the_newest() {
        let check = |saved: &[u64], num_newest, every, pinned: &[u64], expected: &[u64]| {
            let pinned = pinned.iter().map(|step| Step::new(*step)).collect();
            assert_eq!(left(saved, num_newest, every, &pinned), expected, "{saved:?} {num_newest} {every} {pinned:?}");
        };
        let hundreds: Vec<u64> = (1..=12).map(|n| 100 * n).collect();
        check(&hundreds, 2, 500, &[], &[500, 1000, 1100, 1200]);
        check(&hundreds, 2, 0, &[], &[1100, 1200]);
        check(&hundreds, 1, 0, &[300], &[300, 1200]);
        // As the seconds have it: no multiple is saved.
        check(&[130, 420, 710, 990, 1310, 1590], 1, 500, &[], &[710, 1310, 1590]);
        check(&[499, 1700, 1701], 1, 500, &[], &[1700, 1701]);
    }

    #[test]
    fn one_that_may_be_gone_is_not_the_one_for_good() {
        let mut all = [checkpoint(500), checkpoint(600), checkpoint(700)];
        all[0].is_removal_ordered = true;
        assert_eq!(steps(for_good(all.iter(), 500)), [600]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_kept_follows_from_what_was_saved(
            saved in proptest::collection::btree_set(1_u64..400, 1..60),
            num_newest in 1_usize..5,
            every in 0_u64..60,
            pins in proptest::collection::btree_set(1_u64..400, 0..6),
        ) {
            let saved: Vec<u64> = saved.into_iter().collect();
            let pinned: BTreeSet<Step> = pins.iter().map(|step| Step::new(*step)).collect();
            let left = left(&saved, num_newest, every, &pinned);
            // The newest, and never the last good one.
            let newest = &saved[saved.len().saturating_sub(num_newest)..];
            prop_assert!(newest.iter().all(|step| left.contains(step)), "{left:?}");
            prop_assert!(saved.iter().filter(|step| pins.contains(step)).all(|step| left.contains(step)), "{left:?}");
            // Of each so many steps the first, whatever was removed on the way.
            let window = |step: u64| step.checked_div(every).unwrap_or(0);
            let first = |step: &u64| window(*step) > 0 && saved.iter().find(|s| window(**s) == window(*step)) == Some(step);
            prop_assert!(saved.iter().filter(|step| first(step)).all(|step| left.contains(step)), "{left:?}");
            // And nothing else.
            let is_owed = |step: &u64| newest.contains(step) || pins.contains(step) || first(step);
            prop_assert!(left.iter().all(is_owed), "{left:?} of {saved:?}");
        }

        #[test]
        fn what_is_outdated_is_so_for_ever(
            saved in proptest::collection::btree_set(1_u64..400, 2..60),
            num_newest in 1_usize..5,
            every in 0_u64..60,
        ) {
            let all: Vec<Checkpoint> = saved.into_iter().map(checkpoint).collect();
            let none = BTreeSet::new();
            let later = outdated(all.iter(), num_newest, every, &none);
            for earlier in outdated(all[..all.len() - 1].iter(), num_newest, every, &none) {
                prop_assert!(later.contains(&earlier), "step {earlier} is kept again");
            }
        }
    }
}
