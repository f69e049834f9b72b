//! Which worker is on which host, in which rack, behind which switch; and what fails when.
//!
//! ```text
//!   worker 0 .. 7 = host 0      host 0 .. 7 = rack 0      rack 0 .. 3 = switch 0      and so on, by number
//! ```
//!
//! Failures come at random and independently of one another: exponential times between them, each of a kind by its share, of a unit of its
//! kind chosen evenly. All of it is a function of the seed.

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;
use toroid_torus::cursor::splitmix64;

pub const WORKERS_OF_A_HOST: usize = 8;
pub const HOSTS_OF_A_RACK: usize = 8;
pub const RACKS_OF_A_SWITCH: usize = 4;

/// A slow worker computes so many times as long as its peers.
const SLOW_FACTORS: [f64; 2] = [1.6, 2.4];

/// What fails, and how that is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A worker's process ends, and its connections with it: seen at once.
    Worker,
    /// All workers of a host say nothing any more, without a word: seen after the failure timeout.
    Host,
    /// The same of a rack.
    Rack,
    /// The same of all racks behind a switch.
    Switch,
    /// A worker computes no more and says that it is there: seen by who waits for whom.
    Hang,
    /// A worker computes for longer than its peers, and all wait for it: seen by comparing them.
    Slow,
}

impl Kind {
    pub const ALL: [Kind; 6] = [Kind::Worker, Kind::Host, Kind::Rack, Kind::Switch, Kind::Hang, Kind::Slow];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Worker => "worker",
            Kind::Host => "host",
            Kind::Rack => "rack",
            Kind::Switch => "switch",
            Kind::Hang => "hang",
            Kind::Slow => "slow",
        }
    }

    /// Workers that fail at a time.
    fn num_workers(self) -> usize {
        match self {
            Kind::Worker | Kind::Hang | Kind::Slow => 1,
            Kind::Host => WORKERS_OF_A_HOST,
            Kind::Rack => WORKERS_OF_A_HOST * HOSTS_OF_A_RACK,
            Kind::Switch => WORKERS_OF_A_HOST * HOSTS_OF_A_RACK * RACKS_OF_A_SWITCH,
        }
    }

    /// Nobody hears of it until a time limit has passed.
    pub fn is_silent(self) -> bool {
        matches!(self, Kind::Host | Kind::Rack | Kind::Switch)
    }
}

/// How many of all failures are of which kind: shares by [`Kind::ALL`], of any sum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mix(pub [f64; 6]);

impl Mix {
    /// Only workers that die.
    #[cfg(test)]
    pub const WORKERS: Mix = Mix([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);

    fn draw(&self, share: f64) -> Kind {
        let mut left = share * self.0.iter().sum::<f64>();
        for (kind, weight) in Kind::ALL.into_iter().zip(self.0) {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        Kind::Worker
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Since the first step began.
    pub at: Duration,
    pub kind: Kind,
    pub workers: Range<usize>,
    /// Of a slow worker.
    pub factor: f64,
}

/// Splitmix64 as a sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let value = splitmix64(self.0);
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        value
    }

    /// From 0 to 1, 1 left out.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What fails of so many workers until `end`, in its order. One failure comes in `every` on average.
pub fn failures(num_workers: usize, every: Duration, mix: &Mix, end: Duration, seed: u64) -> Vec<Failure> {
    let mut random = Random(splitmix64(seed));
    let mut out = Vec::new();
    let mut at_s = 0.0;
    loop {
        at_s += -every.as_secs_f64() * (1.0 - random.share()).ln();
        if at_s >= end.as_secs_f64() {
            return out;
        }
        let kind = mix.draw(random.share());
        let of_unit = kind.num_workers();
        let num_units = num_workers.div_ceil(of_unit);
        let unit = (random.share() * num_units as f64) as usize;
        let [least, most] = SLOW_FACTORS;
        let factor = least + random.share() * (most - least);
        let workers = unit * of_unit..((unit + 1) * of_unit).min(num_workers);
        out.push(Failure { at: Duration::from_secs_f64(at_s), kind, workers, factor });
    }
}

/// Names as workers report them: host and rack.
pub fn location(worker: usize) -> [String; 2] {
    let host = worker / WORKERS_OF_A_HOST;
    [format!("host-{host:05}"), format!("rack-{:04}", host / HOSTS_OF_A_RACK)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_a_function_of_the_seed_as_many_as_were_asked_for_and_of_every_kind() {
        let (every, end) = (Duration::from_secs(600), Duration::from_secs(600 * 4000));
        let mix = Mix([40.0, 20.0, 10.0, 10.0, 10.0, 10.0]);
        let of = |seed| failures(2048, every, &mix, end, seed);
        let found = of(3);
        assert_eq!(found, of(3));
        assert_ne!(found, of(4));
        // Poisson: 4,000 and five times its deviation.
        assert!((3700..4300).contains(&found.len()), "{}", found.len());
        assert!(found.is_sorted_by_key(|f| f.at) && found.iter().all(|f| f.workers.end <= 2048));
        for (kind, weight) in Kind::ALL.into_iter().zip(mix.0) {
            let num = found.iter().filter(|f| f.kind == kind).count() as f64;
            assert!((num / found.len() as f64 - weight / 100.0).abs() < 0.04, "{kind:?}: {num}");
        }
        assert!(found.iter().all(|f| f.workers.len() == f.kind.num_workers()));
    }
}
