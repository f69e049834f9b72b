//! The order of one stage's actions by the rule of each schedule.
//!
//! What holds for all of them is said and numbered in [`super`]. Deliberately absent: times; [`super::simulate()`] has them.

use super::{Action, Pass};

fn of(pass: Pass, micro_batch: usize) -> Action {
    Action { pass, micro_batch, chunk: 0 }
}

pub(super) fn one_f_one_b(stage: usize, num_stages: usize, num_micro_batches: usize) -> Vec<Action> {
    let ahead = (num_stages - stage - 1).min(num_micro_batches);
    let mut actions: Vec<Action> = (0..ahead).map(|i| of(Pass::Forward, i)).collect();
    for forward in ahead..num_micro_batches {
        actions.extend([of(Pass::Forward, forward), of(Pass::Backward, forward - ahead)]);
    }
    actions.extend((num_micro_batches - ahead..num_micro_batches).map(|i| of(Pass::Backward, i)));
    actions
}

/// 1F1B whose backwards are gradients of inputs; those of the weights follow `stage` micro-batches later, so that every stage has as many
/// micro-batches in flight as the first, and the later stages have work for the end.
pub(super) fn zero_bubble(stage: usize, num_stages: usize, num_micro_batches: usize) -> Vec<Action> {
    let mut actions = Vec::with_capacity(3 * num_micro_batches);
    for action in one_f_one_b(stage, num_stages, num_micro_batches) {
        if action.pass == Pass::Forward {
            actions.push(action);
            continue;
        }
        actions.push(of(Pass::BackwardInput, action.micro_batch));
        if let Some(lagging) = action.micro_batch.checked_sub(stage) {
            actions.push(of(Pass::BackwardWeight, lagging));
        }
    }
    let done = num_micro_batches.saturating_sub(stage);
    actions.extend((done..num_micro_batches).map(|i| of(Pass::BackwardWeight, i)));
    actions
}

/// Groups of `num_stages` micro-batches go through the first chunk, then the second, and so on, and backwards from the last to the first.
/// Megatron-LM wants the stages to divide the micro-batches. Here groups are of even size and none is smaller than `num_stages`
/// (but where there are fewer micro-batches): replicas may have different numbers of them, and a short last group would deadlock.
pub(super) fn interleaved(stage: usize, num_stages: usize, num_micro_batches: usize, chunks: usize) -> Vec<Action> {
    assert!(chunks > 0, "a stage has at least one chunk");
    if chunks == 1 {
        return one_f_one_b(stage, num_stages, num_micro_batches);
    }
    let groups = num_groups(num_stages, num_micro_batches);
    let group = |g: usize| g * num_micro_batches / groups..(g + 1) * num_micro_batches / groups;
    let of_group = |pass, g, chunk| group(g).map(move |micro_batch| Action { pass, micro_batch, chunk });
    let every = |pass, order: &dyn Fn(usize) -> usize| -> Vec<Action> {
        (0..groups).flat_map(|g| (0..chunks).flat_map(move |c| of_group(pass, g, order(c)))).collect()
    };
    let forwards = every(Pass::Forward, &|c| c);
    let backwards = every(Pass::Backward, &|c| chunks - 1 - c);
    let ahead = 2 * (num_stages - stage - 1) + (chunks - 1) * largest_group(num_stages, num_micro_batches);
    let ahead = ahead.min(forwards.len());
    let mut actions = forwards[..ahead].to_vec();
    for (forward, backward) in forwards[ahead..].iter().zip(&backwards) {
        actions.extend([*forward, *backward]);
    }
    actions.extend(&backwards[forwards.len() - ahead..]);
    actions
}

fn num_groups(num_stages: usize, num_micro_batches: usize) -> usize {
    (num_micro_batches / num_stages).max(1)
}

/// Micro-batches of the largest group of the interleaved schedule.
pub(super) fn largest_group(num_stages: usize, num_micro_batches: usize) -> usize {
    num_micro_batches.div_ceil(num_groups(num_stages, num_micro_batches))
}
