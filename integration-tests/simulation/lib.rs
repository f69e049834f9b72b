//! Whole clusters under simulation: the coordinator's real machine, real sessions and real trainers, on a virtual network, disk and
//! clock, while everything goes wrong that a seed can think of.
//!
//! ```text
//!   leaders: several coordinators, each the product's store over a model of etcd, in a share of the seeds
//!   scenario, faults ──> world: events in order of time ──> coordinator (machine)          worker (client, session)
//!        ^ one seed        │                                                                  │ commands, events
//!                          │                                played: each thread of a worker is a coroutine: trainer, writers
//!                          │                                  │ links (bytes)   disk (files)   device (toy, integers)
//!                          '──> truth: T-1 to T-13 after every event, against an undisturbed run of the same code
//! ```
//!
//! `TOROID_SEED=n cargo test --test simulation` replays one seed and prints its story; `TOROID_SEEDS=n` runs so many of them.
//!
//! Deliberately absent: gRPC, real sockets and files, and mathematics; their tests are elsewhere.

mod coordinator;
mod device;
mod disk;
pub mod etcd;
mod faults;
mod leaders;
mod links;
mod network;
mod pins;
mod places;
mod played;
mod pool;
mod random;
mod reference;
mod scenario;
mod sent;
mod service;
mod text;
mod truth;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use toroid_torus::failpoint::{Failpoint, arm};

use random::Random;
use scenario::Scenario;
pub use world::End;
use world::World;

/// Within five minutes on two cores.
pub const NUM_SEEDS: u64 = 2_000;

/// Seeds from here on have jobs that optimize policies (kind ppo), which make rollouts at the first step of each iteration.
pub const POLICIES: u64 = 1 << 40;

/// A number of the environment.
pub fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name} = {text:?} should be a number: {e}")))
}

/// What a seed came to.
pub struct Outcome {
    pub end: End,
    pub story: Vec<String>,
    /// Incidents by what was done about them.
    pub rungs: BTreeMap<&'static str, u64>,
    /// How often another coordinator began to lead while a job had stopped, or shrunk, for another.
    pub num_taken_over: u64,
}

/// One seed to its end. An assertion that fails in the code under test is a violation like any other.
pub fn simulate(seed: u64, broken: Option<Failpoint>, tells: bool) -> Outcome {
    arm(broken);
    let mut world = World::new(seed, tells);
    let end = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        End::Violation(format!("panicked: {}", text.unwrap_or("without words")))
    });
    world.end();
    arm(None);
    Outcome { end, rungs: world.rungs(), num_taken_over: world.num_taken_over, story: world.into_story() }
}

/// Whether a seed comes by what is broken: where one coordinator leads alone nobody asks for what is of leadership, and where there is one job nobody
/// for what is of a pool.
pub fn may_show(seed: u64, broken: Failpoint) -> bool {
    if Failpoint::OF_POLICIES.contains(&broken) {
        return seed >= POLICIES;
    }
    if broken == Failpoint::RemovePinned {
        return pins::has_pins(seed);
    }
    let is_of_both = Failpoint::OF_POOLS_LED_IN_TURN.contains(&broken);
    if !is_of_both && !Failpoint::OF_LEADERSHIP.contains(&broken) {
        return true;
    }
    let scenario = Scenario::draw(&mut Random::new(seed));
    scenario.num_coordinators > 1 && (scenario.is_pool || !is_of_both)
}

/// The story of a seed that failed.
pub fn replay(seed: u64, broken: Option<Failpoint>) -> String {
    let Outcome { end, story, .. } = simulate(seed, broken, true);
    format!("{}\n{end:?}\nreplay with TOROID_SEED={seed} cargo test --test simulation", story.join("\n"))
}

/// How many seeds ended how; the first violation stops all threads.
#[derive(Default)]
pub struct Tally {
    pub num_done: u64,
    pub given_up: BTreeMap<String, u64>,
    pub rungs: BTreeMap<&'static str, u64>,
    pub num_taken_over: u64,
    pub violation: Option<u64>,
}

/// These seeds, on all cores.
pub fn run_seeds(seeds: Range<u64>) -> Tally {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return tally;
            }
            let Outcome { end, rungs, num_taken_over, .. } = simulate(seed, None, false);
            tally.num_taken_over += num_taken_over;
            rungs.into_iter().for_each(|(rung, num)| *tally.rungs.entry(rung).or_default() += num);
            match end {
                End::Done => tally.num_done += 1,
                End::GivenUp(reason) => {
                    let reason = reason.split(':').next().unwrap_or_default().to_string();
                    *tally.given_up.entry(reason).or_default() += 1;
                }
                End::Violation(_) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    tally.violation = Some(seed);
                    return tally;
                }
            }
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().expect("violations are returned")).collect()
    });
    let mut total = Tally::default();
    for tally in tallies {
        total.num_done += tally.num_done;
        total.num_taken_over += tally.num_taken_over;
        tally.rungs.into_iter().for_each(|(rung, num)| *total.rungs.entry(rung).or_default() += num);
        total.violation = total.violation.into_iter().chain(tally.violation).min();
        for (reason, num) in tally.given_up {
            *total.given_up.entry(reason).or_default() += num;
        }
    }
    total
}
