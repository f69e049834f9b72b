//! What the time went to, and what is counted of a run.

use std::time::Duration;

use serde::Serialize;

/// What a moment was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Steps that stay, at the speed of all places.
    Steps,
    /// Steps that were made and are lost, since all went back to a checkpoint.
    Lost,
    /// The step in which something failed, up to then.
    Broken,
    /// A failure that nobody has noticed yet.
    Detect,
    /// Noticed, until all places are told to go on.
    Decide,
    /// Pulling shards, connecting, gathering parameters.
    Heal,
    /// Reading a checkpoint; of the launcher, starting all processes too.
    Restore,
    /// Copying the state aside.
    Checkpoint,
    /// Steps that took longer for lack of workers.
    Fewer,
    /// Steps that took longer for a slow worker.
    Slow,
    /// Too few workers to go on, or a job that waits for its operator.
    Wait,
}

impl Cause {
    pub const ALL: [Cause; 11] = [
        Cause::Steps,
        Cause::Lost,
        Cause::Broken,
        Cause::Detect,
        Cause::Decide,
        Cause::Heal,
        Cause::Restore,
        Cause::Checkpoint,
        Cause::Fewer,
        Cause::Slow,
        Cause::Wait,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Cause::Steps => "steps",
            Cause::Lost => "lost steps",
            Cause::Broken => "broken steps",
            Cause::Detect => "detect",
            Cause::Decide => "decide",
            Cause::Heal => "heal",
            Cause::Restore => "restore",
            Cause::Checkpoint => "checkpoint",
            Cause::Fewer => "fewer replicas",
            Cause::Slow => "slow workers",
            Cause::Wait => "wait",
        }
    }
}

/// Of one run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    /// That came to a worker which had a place.
    pub failures: u64,
    /// Workers with a place that were lost by them.
    pub deaths: u64,
    /// Times that all went back to a checkpoint.
    pub restores: u64,
    pub lost_steps: u64,
    pub committed_steps: u64,
    pub epochs: u64,
    pub checkpoints: u64,
    /// Epochs with fewer replicas than before, or more.
    pub resizes: u64,
    /// Times that the job ended as failed and had to be resumed.
    pub ended: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    spent: [Duration; 11],
    pub counts: Counts,
}

impl Account {
    pub fn spend(&mut self, cause: Cause, time: Duration) {
        self.spent[cause as usize] += time;
    }

    /// Steps that were made and are lost.
    pub fn lose(&mut self, num_steps: u64, step: Duration) {
        self.counts.lost_steps += num_steps;
        self.counts.committed_steps -= num_steps;
        let time = Duration::from_nanos(step.as_nanos() as u64 * num_steps).min(self.spent[Cause::Steps as usize]);
        self.spent[Cause::Steps as usize] -= time;
        self.spent[Cause::Lost as usize] += time;
    }

    pub fn total(&self) -> Duration {
        self.spent.iter().sum()
    }

    pub fn of(&self, cause: Cause) -> Duration {
        self.spent[cause as usize]
    }

    /// Committed steps that stay, times the time of a step with all places, over all time: 0 to 1.
    pub fn goodput(&self) -> f64 {
        self.of(Cause::Steps).as_secs_f64() / self.total().as_secs_f64()
    }
}
