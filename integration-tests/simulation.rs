//! The whole protocol under simulation, see the crate `toroid-simulation`.

#[cfg(feature = "failpoint")]
use toroid_simulation::NUM_SEEDS;
#[cfg(feature = "failpoint")]
use toroid_simulation::may_show;
#[cfg(not(feature = "failpoint"))]
use toroid_simulation::run_seeds;
use toroid_simulation::{End, Outcome, POLICIES, replay, simulate, variable};
#[cfg(feature = "failpoint")]
use toroid_torus::failpoint::Failpoint;

/// Seeds that tell of every kind of healing; `TOROID_SEEDS` has as many as one has time for.
#[cfg(not(feature = "failpoint"))]
const NUM_TRIED: u64 = 600;
/// Seeds that tell of what happens in few of them.
#[cfg(not(feature = "failpoint"))]
const MANY: u64 = 2_000;

#[cfg(not(feature = "failpoint"))]
#[test]
fn t1_to_t9_hold_whatever_happens() {
    if let Some(seed) = variable("TOROID_SEED") {
        let Outcome { end, story, .. } = simulate(seed, None, true);
        println!("{}\n{end:?}", story.join("\n"));
        assert!(!matches!(end, End::Violation(_)), "{end:?}");
        return;
    }
    let num = variable("TOROID_SEEDS").unwrap_or(NUM_TRIED);
    let tally = run_seeds(0..num);
    if let Some(seed) = tally.violation {
        panic!("{}", replay(seed, None));
    }
    let num_given_up: u64 = tally.given_up.values().sum();
    println!("{} of {num} seeds are done, {num_given_up} were given up: {:#?}", tally.num_done, tally.given_up);
    println!("incidents: {:?}", tally.rungs);
    assert_eq!(tally.num_done + num_given_up, num);
    for rung in ["spare", "restart", "reconnect", "shrink", "grow", "restore", "drain"] {
        let times = tally.rungs.get(rung).copied().unwrap_or(0);
        assert!(num < NUM_TRIED || times * 100 > num, "{rung} is hardly tried: {:?}", tally.rungs);
    }
    let num_taken_over = tally.num_taken_over;
    println!("{num_taken_over} times another coordinator began to lead while a job had stopped or shrunk for another");
    assert!(num < MANY || num_taken_over * 500 > num, "pools are hardly led in turn: {num_taken_over} times");
    assert!(num_given_up * 20 <= num, "too many jobs are given up: {:#?}", tally.given_up);
}

/// Seeds that have shown what few others do: tried first. All others are tried where they do not show it any more.
#[cfg(feature = "failpoint")]
const KNOWN: [(Failpoint, u64); 16] = [
    (Failpoint::KeepRemoved, 869),
    (Failpoint::MachineTakesOldEpoch, 59),
    (Failpoint::GoOnFromLowest, 226),
    (Failpoint::CloseByLateRecord, 310),
    (Failpoint::TakeAnyStep, 22),
    (Failpoint::BlameTheInnocent, 1504),
    (Failpoint::ShrinkBelowMinDp, 244),
    (Failpoint::ForgetCordons, 19),
    (Failpoint::WriteWithoutLeading, 52),
    (Failpoint::DecideAfterDeadline, 28),
    (Failpoint::TakeStaleRead, 26),
    (Failpoint::TakeOldTerm, 116),
    (Failpoint::SessionTakesOldEpoch, 17),
    (Failpoint::SkipHealCommit, 226),
    (Failpoint::ReplaceManifest, 154),
    (Failpoint::FewSums, 2),
];

#[cfg(feature = "failpoint")]
#[test]
fn everything_that_is_broken_on_purpose_is_seen() {
    let num = variable("TOROID_SEEDS").unwrap_or(NUM_SEEDS);
    let mut unseen = Vec::new();
    // One alone, by its name.
    let only = std::env::var("TOROID_FAULT").ok();
    let is_wanted = |broken: &Failpoint| only.as_ref().is_none_or(|only| *only == format!("{broken:?}"));
    let of_leadership = Failpoint::OF_LEADERSHIP.into_iter().chain(Failpoint::OF_POOLS_LED_IN_TURN);
    let of_policies = Failpoint::OF_POLICIES;
    for broken in Failpoint::HARMFUL.into_iter().chain(of_leadership).chain(of_policies).filter(is_wanted) {
        let known = KNOWN.iter().filter(|(of, _)| *of == broken).map(|(_, seed)| *seed);
        let found = known
            .chain((0..num).chain(POLICIES..POLICIES + num).filter(|seed| may_show(*seed, broken)))
            .find_map(|seed| match simulate(seed, Some(broken), false).end {
                End::Violation(what) => Some((seed, what)),
                End::Done | End::GivenUp(_) => None,
            });
        match found {
            Some((seed, what)) => println!("{broken:?}: seen with seed {seed}: {what}"),
            None => unseen.push(broken),
        }
    }
    assert!(unseen.is_empty(), "{num} seeds do not show what is broken: {unseen:?}");
}

/// A session that loses what it has not said yet is no loss: the places know the sums, and rank 0 is asked for them (T-12).
#[cfg(feature = "failpoint")]
#[test]
fn t12_a_forgetful_session_costs_no_record() {
    let num = variable("TOROID_SEEDS").unwrap_or(NUM_SEEDS) / 50;
    let broken = Some(Failpoint::ForgetRecords);
    for seed in 0..num {
        let Outcome { end, .. } = simulate(seed, broken, false);
        assert!(!matches!(end, End::Violation(_)), "{}", replay(seed, broken));
    }
}

/// Seeds of jobs that optimize policies.
#[cfg(not(feature = "failpoint"))]
const NUM_POLICIES: u64 = 120;

/// Whoever dies in a rollout, between minibatches or at the end of an iteration: nothing is lost, and all is that of the undisturbed run.
#[cfg(not(feature = "failpoint"))]
#[test]
fn t1_to_t9_hold_where_a_policy_is_optimized() {
    let num = variable("TOROID_SEEDS").unwrap_or(NUM_POLICIES).min(10_000);
    let tally = run_seeds(POLICIES..POLICIES + num);
    if let Some(seed) = tally.violation {
        panic!("{}", replay(seed, None));
    }
    println!("incidents: {:?}, {} done, given up: {:#?}", tally.rungs, tally.num_done, tally.given_up);
    for rung in ["spare", "restore"] {
        let times = tally.rungs.get(rung).copied().unwrap_or(0);
        assert!(times * 20 > num, "{rung} is hardly tried: {:?}", tally.rungs);
    }
    assert!(tally.given_up.values().sum::<u64>() * 10 <= num, "too many jobs are given up: {:#?}", tally.given_up);
}

#[cfg(not(feature = "failpoint"))]
#[test]
fn a_seed_replays() {
    let story = |seed| simulate(seed, None, true).story;
    assert!(story(7).len() > 10, "{:?}", story(7));
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(8));
}
