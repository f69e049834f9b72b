//! Who dies when: pure, so that a seed names the victims.
//!
//! The instants cannot be replayed, as they lie between two commits of real processes; the victims and their shares of a step can.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use toroid_torus::cursor::splitmix64;
use toroid_torus::geometry::Shape;
use toroid_torus::holders::lost_shard;
use toroid_torus::job::JobSpec;

/// The first step that a worker dies in by itself: caches are warm by then.
const FIRST_STEP: u64 = 10;
/// Between two faults that come as fast as the job recovers.
const MOST_STEPS_APART: u64 = 1000;
/// Steps between two such deaths: a spare starts within them.
const STEPS_APART: u64 = 15;

/// A sequence of numbers that its seed decides.
#[derive(Debug)]
pub struct Random {
    seed: u64,
    num_drawn: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { seed: splitmix64(seed), num_drawn: 0 }
    }

    fn draw(&mut self) -> u64 {
        self.num_drawn += 1;
        splitmix64(self.seed.wrapping_add(self.num_drawn))
    }

    /// From 0 to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "there is nothing to draw from");
        // The high half of the product: as even as 64 bits allow.
        ((u128::from(self.draw()) * n as u128) >> 64) as usize
    }

    /// From 0 to 1, without 1.
    pub fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Ranks that fall together, `first` among them where it is given. Of no shard both holders, so that no step is lost (T-3): where no
/// further rank is like that, they are fewer than `num`.
pub fn victims(random: &mut Random, shape: &Shape, first: Option<usize>, num: usize) -> BTreeSet<usize> {
    let mut chosen = BTreeSet::from([first.unwrap_or_else(|| random.below(shape.world()))]);
    let is_possible = |rank: usize, chosen: &BTreeSet<usize>| {
        !chosen.contains(&rank) && lost_shard(shape, &chosen.iter().copied().chain([rank]).collect()).is_none()
    };
    while chosen.len() < num {
        let others: Vec<usize> = (0..shape.world()).filter(|rank| is_possible(*rank, &chosen)).collect();
        if others.is_empty() {
            break;
        }
        chosen.insert(others[random.below(others.len())]);
    }
    chosen
}

/// Parts of a step at which a worker can be told to kill itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Phase {
    /// Computing the forward pass
    Forward,
    /// Sending activations or gradients to the next stage
    StageTransfer,
    /// Summing gradients over the replicas
    ReduceScatter,
    /// The step is sealed and not committed
    Sealed,
    /// Within the sum that commits the step
    Commit,
    /// Committed, not applied everywhere
    Optimizer,
    /// Gathering the new parameters
    AllGather,
    /// Writing a shard of a checkpoint
    Checkpoint,
    /// A spare that takes the place of another dies while it pulls its shards
    Heal,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::StageTransfer => "stage-transfer",
            Phase::ReduceScatter => "reduce-scatter",
            Phase::Sealed => "sealed",
            Phase::Commit => "commit",
            Phase::Optimizer => "optimizer",
            Phase::AllGather => "all-gather",
            Phase::Checkpoint => "checkpoint",
            Phase::Heal => "heal",
        }
    }
}

/// Deaths at a phase: the worker started as number `n` dies at the `n`-th step of this plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhasePlan {
    phase: Phase,
    steps: Vec<u64>,
    num_places: usize,
}

impl PhasePlan {
    /// `num_faults` deaths, `every_steps` apart. Each needs a place of its own at the start: a spare's future place is not known.
    pub fn new(phase: Phase, num_faults: usize, every_steps: Option<u64>, spec: &JobSpec) -> Result<PhasePlan> {
        let num_places = spec.shape.world();
        ensure!(
            num_faults <= num_places,
            "--phase kills each of the {num_places} places at most once, and {num_faults} kills are asked for; give a smaller --kills"
        );
        let (first, apart) = match phase {
            // A shard is written while the step after it is being made.
            Phase::Checkpoint => {
                let interval = spec.checkpoint.interval_steps;
                ensure!(interval > 0, "--phase checkpoint needs `checkpoint.interval_steps` in the job file");
                (interval + 1, interval)
            }
            _ => (FIRST_STEP, every_steps.unwrap_or(STEPS_APART)),
        };
        let steps = (0..num_faults as u64).map(|i| first + i * apart).collect();
        Ok(PhasePlan { phase, steps, num_places })
    }

    /// Where the worker started as number `n` kills itself, as workers read it.
    pub fn of_worker(&self, n: usize) -> Option<String> {
        if self.phase != Phase::Heal {
            return self.steps.get(n).map(|step| format!("{}@{step}", self.phase.word()));
        }
        if n < self.num_places {
            return self.steps.get(n).map(|step| format!("forward@{step}"));
        }
        // One spare at a time: the first that takes a place dies healing, the one after it lives.
        let nth_spare = n - self.num_places;
        let is_doomed = nth_spare.is_multiple_of(2) && nth_spare / 2 < self.steps.len();
        // Step 0: the first time.
        is_doomed.then(|| "heal@0".into())
    }

    /// Deaths that are to be seen.
    pub fn num_deaths(&self) -> usize {
        self.steps.len() * if self.phase == Phase::Heal { 2 } else { 1 }
    }

    pub fn last_step(&self) -> u64 {
        self.steps.last().copied().unwrap_or(0)
    }
}

/// Steps that leave time for so many faults, where nobody named their number.
pub fn default_steps(num_faults: usize, every_steps: Option<u64>) -> u64 {
    let apart = every_steps.unwrap_or(0).max(STEPS_APART);
    2 * FIRST_STEP + num_faults as u64 * apart
}

/// More than are made until the last of these faults is recovered from, which ends the run: a spare takes a second to start, a step of a
/// small model milliseconds.
pub fn most_steps(num_faults: usize, every_steps: Option<u64>) -> u64 {
    let apart = every_steps.unwrap_or(0).max(MOST_STEPS_APART);
    MOST_STEPS_APART + num_faults as u64 * apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_the_victims_and_reaches_all() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..200).map(|_| random.below(8)).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert_eq!(draw(5).into_iter().collect::<BTreeSet<_>>(), (0..8).collect());
    }

    #[test]
    fn those_that_fall_together_leave_a_holder_of_every_shard() -> Result<()> {
        let mut random = Random::new(2);
        for (tp, pp, dp) in [(2, 2, 2), (1, 1, 4), (2, 2, 1), (1, 2, 4)] {
            let shape = Shape::new(tp, pp, dp)?;
            let mut seen = BTreeSet::new();
            for _ in 0..200 {
                let chosen = victims(&mut random, &shape, None, 2);
                assert_eq!((chosen.len(), lost_shard(&shape, &chosen)), (2, None), "{shape}: {chosen:?}");
                seen.extend(chosen);
            }
            assert_eq!(seen.len(), shape.world(), "{shape}");
            assert!(victims(&mut random, &shape, Some(1), 2).contains(&1));
        }
        // Whoever falls first, the other holds a shard with it.
        assert_eq!(victims(&mut random, &Shape::new(1, 1, 2)?, None, 2).len(), 1);
        Ok(())
    }

    #[test]
    fn shares_fill_the_step_evenly() {
        let mut random = Random::new(1);
        let shares: Vec<f64> = (0..1000).map(|_| random.share()).collect();
        assert!(shares.iter().all(|s| (0.0..1.0).contains(s)));
        for tenth in 0..10 {
            let n = shares.iter().filter(|s| (**s * 10.0) as usize == tenth).count();
            assert!((60..140).contains(&n), "{n} of 1000 in tenth {tenth}");
        }
    }

    fn spec(more: &str) -> JobSpec {
        let toml = format!("steps = 9\ndata.path = \"/t\"\nshape = {{ dp = 4 }}\n{more}");
        toroid_torus::job::parse(&toml).expect("parse the job file")
    }

    #[test]
    fn each_death_at_a_phase_has_a_worker_and_a_step_of_its_own() -> Result<()> {
        let plan = PhasePlan::new(Phase::AllGather, 2, Some(5), &spec(""))?;
        let at: Vec<_> = (0..6).map(|n| plan.of_worker(n)).collect();
        let some = |text: &str| Some(text.to_string());
        assert_eq!(at, [some("all-gather@10"), some("all-gather@15"), None, None, None, None]);
        assert_eq!((plan.num_deaths(), plan.last_step()), (2, 15));

        let plan = PhasePlan::new(Phase::Heal, 2, None, &spec(""))?;
        let at: Vec<_> = (0..8).map(|n| plan.of_worker(n)).collect();
        let expected = [some("forward@10"), some("forward@25"), None, None, some("heal@0"), None, some("heal@0"), None];
        assert_eq!(at, expected);
        assert_eq!(plan.num_deaths(), 4);
        Ok(())
    }

    #[test]
    fn deaths_that_cannot_be_planned_are_refused_in_words() {
        let check = |phase, num_faults, expected: &str| {
            let error = PhasePlan::new(phase, num_faults, None, &spec("")).err().map(|e| e.to_string());
            assert!(error.as_ref().is_some_and(|e| e.contains(expected)), "{error:?}");
        };
        check(Phase::Forward, 5, "smaller --kills");
        check(Phase::Checkpoint, 1, "interval_steps");
    }
}
