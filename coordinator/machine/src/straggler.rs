//! Who computes for longer than its peers: one pure account of what heartbeats say.
//!
//! A job goes at the pace of its slowest place, and in what the others wait nobody sees which one that is. So each heartbeat says how
//! long its place has computed, waits for others left out, and over how many steps. Places are compared with their *peers*: those of
//! their stage with as many micro-batches and, where they are enough, with the same experts (the same tp_rank).
//!
//! ```text
//!   window: until all of a group have made 10 steps more, and half a failure timeout has passed
//!   two windows in a row above 1.5 x the median of the peers ──> a straggler, named with its figures
//!   two windows in a row below 1.25 x ──> it keeps up again
//! ```
//!
//! Two windows, so that one hiccup names nobody; two limits, so that nobody is named and cleared again and again. Fewer than two
//! peers cannot tell who of them is slow.
//!
//! Deliberately absent: what is to be done about it. A slow worker keeps its place (T-11): it holds state, and whether another would be
//! any faster nobody knows. A user who does drains it.

use std::ops::Range;
use std::time::Duration;

use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job::JobSpec;

/// Steps of a window, at least.
const WINDOW_STEPS: u64 = 10;
/// So many windows in a row decide.
const NUM_WINDOWS: u32 = 2;
/// Over the median of the peers.
const SLOW_FACTOR: f64 = 1.5;
const KEEPS_UP_FACTOR: f64 = 1.25;
const MIN_PEERS: usize = 2;

/// A place that computes for longer than its peers.
#[derive(Debug, Clone, PartialEq)]
pub struct Straggler {
    pub rank: Rank,
    /// Mean time a step.
    pub own_s: f64,
    /// Median of the mean times of its peers, on average over the windows.
    pub peers_s: f64,
    pub num_peers: usize,
    /// Committed when the measuring began and when it ended.
    pub steps: Range<Step>,
}

impl Straggler {
    pub fn factor(&self) -> f64 {
        self.own_s / self.peers_s
    }

    /// As in `computes 2.4 times as long as its 3 peers: 41.0 ms a step and not 17.1 ms, over steps 121 to 141`.
    pub fn in_words(&self) -> String {
        format!(
            "computes {:.1} times as long as its {} peers: {:.1} ms a step and not {:.1} ms, over steps {} to {}",
            self.factor(),
            self.num_peers,
            1e3 * self.own_s,
            1e3 * self.peers_s,
            self.steps.start.next(),
            self.steps.end
        )
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Slow(Straggler),
    KeepsUp(Straggler),
}

/// What a heartbeat says of the work of its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// In so many steps, since any moment.
    pub num_steps: u64,
    pub compute_s: f64,
    pub committed: Step,
}

/// Measured over windows in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    num_windows: u32,
    num_steps: u64,
    compute_s: f64,
    /// Of the medians.
    peers_s: f64,
    from_step: Step,
}

#[derive(Debug, Clone, Default)]
struct Place {
    /// Of the present window.
    start: Option<Work>,
    latest: Option<Work>,
    /// In the last window.
    mean_s: Option<f64>,
    slow: Sum,
    num_quick: u32,
    found: Option<Straggler>,
}

impl Place {
    /// Steps and time of the present window.
    fn window(&self) -> Option<(u64, f64)> {
        let (start, latest) = (self.start?, self.latest?);
        Some((latest.num_steps - start.num_steps, latest.compute_s - start.compute_s))
    }
}

/// Places that are compared with one another.
#[derive(Debug, Clone)]
struct Group {
    ranks: Vec<usize>,
    /// The present window began.
    since: Option<Duration>,
}

/// Of one job.
#[derive(Debug, Clone, Default)]
pub struct Stragglers {
    /// By rank.
    places: Vec<Place>,
    groups: Vec<Group>,
    /// The group of each rank that has peers enough.
    group_of: Vec<Option<usize>>,
}

impl Stragglers {
    /// An epoch begins. What was found of a place stays where the same worker `keeps` it; measuring begins anew.
    pub fn begin(&mut self, spec: &JobSpec, shape: &Shape, keeps: impl Fn(Rank) -> bool) {
        let found =
            |rank: usize| self.places.get(rank).filter(|_| keeps(Rank::new(rank))).and_then(|p| p.found.clone());
        let places = (0..shape.world()).map(|rank| Place { found: found(rank), ..Place::default() }).collect();
        self.places = places;
        self.groups = groups(spec, shape);
        self.group_of = vec![None; shape.world()];
        for (number, group) in self.groups.iter().enumerate() {
            group.ranks.iter().for_each(|rank| self.group_of[*rank] = Some(number));
        }
    }

    /// A heartbeat came. A window lasts at least `window`.
    pub fn heard(&mut self, rank: Rank, work: Work, now: Duration, window: Duration) -> Vec<Change> {
        let Some(place) = self.places.get_mut(rank.index()) else { return Vec::new() };
        // A worker may say anything.
        if !work.compute_s.is_finite() || work.compute_s < 0.0 {
            return Vec::new();
        }
        let went_back = |old: Work| work.num_steps < old.num_steps || work.compute_s < old.compute_s;
        if place.latest.is_none_or(went_back) {
            place.start = Some(work);
        }
        place.latest = Some(work);
        let Some(number) = self.group_of[rank.index()] else { return Vec::new() };
        let group = &mut self.groups[number];
        let since = *group.since.get_or_insert(now);
        let has_gone_on = |rank: &usize| self.places[*rank].window().is_some_and(|(n, _)| n >= WINDOW_STEPS);
        if now < since + window || !group.ranks.iter().all(has_gone_on) {
            return Vec::new();
        }
        group.since = Some(now);
        let ranks = group.ranks.clone();
        self.compare(&ranks)
    }

    /// A window of these is over.
    fn compare(&mut self, ranks: &[usize]) -> Vec<Change> {
        let mean = |rank: &usize| {
            let (num_steps, compute_s) = self.places[*rank].window().expect("every place of the group has gone on");
            (compute_s / num_steps as f64, *rank)
        };
        let mut means: Vec<(f64, usize)> = ranks.iter().map(mean).collect();
        means.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut changes = Vec::new();
        for position in 0..means.len() {
            let (own_s, rank) = means[position];
            changes.extend(self.places[rank].judge(
                Rank::new(rank),
                own_s,
                median_of_others(&means, position),
                means.len() - 1,
            ));
        }
        changes
    }

    pub fn named(&self) -> impl Iterator<Item = &Straggler> {
        self.places.iter().filter_map(|p| p.found.as_ref())
    }

    pub fn of(&self, rank: Rank) -> Option<&Straggler> {
        self.places.get(rank.index())?.found.as_ref()
    }

    /// Mean time that this place computes a step, in its last window.
    pub fn compute_s(&self, rank: Rank) -> Option<f64> {
        let place = self.places.get(rank.index())?;
        // Without peers no window ends.
        let present = || place.window().filter(|(n, _)| *n > 0).map(|(n, s)| s / n as f64);
        place.mean_s.or_else(present)
    }
}

impl Place {
    fn judge(&mut self, rank: Rank, own_s: f64, peers_s: f64, num_peers: usize) -> Option<Change> {
        let (start, latest) = (self.start?, self.latest?);
        let (num_steps, compute_s) = self.window()?;
        (self.start, self.mean_s) = (self.latest, Some(own_s));
        if own_s > SLOW_FACTOR * peers_s && peers_s > 0.0 {
            self.num_quick = 0;
            let slow = &mut self.slow;
            if slow.num_windows == 0 {
                slow.from_step = start.committed;
            }
            slow.num_windows += 1;
            slow.num_steps += num_steps;
            slow.compute_s += compute_s;
            slow.peers_s += peers_s;
            if slow.num_windows < NUM_WINDOWS {
                return None;
            }
            let found = Straggler {
                rank,
                own_s: slow.compute_s / slow.num_steps as f64,
                peers_s: slow.peers_s / f64::from(slow.num_windows),
                num_peers,
                steps: slow.from_step..latest.committed,
            };
            let is_new = self.found.replace(found.clone()).is_none();
            return is_new.then_some(Change::Slow(found));
        }
        self.slow = Sum::default();
        self.num_quick = if own_s < KEEPS_UP_FACTOR * peers_s { self.num_quick + 1 } else { 0 };
        if self.num_quick < NUM_WINDOWS {
            return None;
        }
        self.found.take()?;
        let steps = start.committed..latest.committed;
        Some(Change::KeepsUp(Straggler { rank, own_s, peers_s, num_peers, steps }))
    }
}

/// Of an ascending list of at least two.
fn median_of_others(means: &[(f64, usize)], position: usize) -> f64 {
    let other = |k: usize| means[if k < position { k } else { k + 1 }].0;
    let num = means.len() - 1;
    (other((num - 1) / 2) + other(num / 2)) / 2.0
}

/// Places with the same work. Replicas may have one micro-batch more than others; TP ranks have other experts.
fn groups(spec: &JobSpec, shape: &Shape) -> Vec<Group> {
    use std::collections::BTreeMap;
    let mut of_stage: BTreeMap<(usize, usize), BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
    for rank in 0..shape.world() {
        let place = shape.place(rank);
        let num_micro_batches = spec.batch.of_replica(shape.dp(), place.dp).len();
        of_stage.entry((place.pp, num_micro_batches)).or_default().entry(place.tp).or_default().push(rank);
    }
    let mut groups = Vec::new();
    for by_tp in of_stage.into_values() {
        let has_enough = |ranks: &Vec<usize>| ranks.len() > MIN_PEERS;
        if by_tp.values().all(has_enough) {
            groups.extend(by_tp.into_values());
        } else {
            groups.push(by_tp.into_values().flatten().collect());
        }
    }
    groups.retain(|ranks: &Vec<usize>| ranks.len() > MIN_PEERS);
    groups.into_iter().map(|ranks| Group { ranks, since: None }).collect()
}

#[cfg(test)]
mod tests {
    use toroid_torus::cursor::splitmix64;
    use toroid_torus::job;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(2500);

    fn spec(shape: &str) -> JobSpec {
        job::parse(&format!("steps = 1000\nshape = {{ {shape} }}\ndata.path = 'text'\n")).expect("a job")
    }

    fn stragglers(shape: &str) -> Stragglers {
        let spec = spec(shape);
        let mut stragglers = Stragglers::default();
        stragglers.begin(&spec, &spec.shape, |_| true);
        stragglers
    }

    /// A job whose places make a step in these times, and report it once a second.
    struct Run {
        stragglers: Stragglers,
        now: Duration,
        work: Vec<Work>,
    }

    impl Run {
        fn new(shape: &str) -> Run {
            let stragglers = stragglers(shape);
            let work = vec![Work { num_steps: 0, compute_s: 0.0, committed: Step::new(100) }; stragglers.places.len()];
            Run { stragglers, now: Duration::ZERO, work }
        }

        /// `seconds` heartbeats of each place, with `steps` steps between two; says what changed.
        fn go(&mut self, seconds: u64, steps: u64, step_s: impl Fn(usize) -> f64) -> Vec<Change> {
            let mut changes = Vec::new();
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                for rank in 0..self.work.len() {
                    let work = &mut self.work[rank];
                    work.num_steps += steps;
                    work.committed = work.committed.after(steps);
                    work.compute_s += steps as f64 * step_s(rank);
                    changes.extend(self.stragglers.heard(Rank::new(rank), *work, self.now, WINDOW));
                }
            }
            changes
        }
    }

    #[test]
    fn one_that_computes_for_longer_is_named_once_and_cleared_when_it_keeps_up() {
        let mut run = Run::new("dp = 4");
        let slow = |rank: usize| if rank == 2 { 0.040 } else { 0.016 };
        let changes = run.go(30, 10, slow);
        let [Change::Slow(found)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((found.rank, found.num_peers), (Rank::new(2), 3));
        assert!((found.factor() - 2.5).abs() < 1e-9, "{found:?}");
        let text = found.in_words();
        assert!(
            text.starts_with("computes 2.5 times as long as its 3 peers: 40.0 ms a step and not 16.0 ms"),
            "{text}"
        );
        assert_eq!(run.stragglers.named().count(), 1);
        assert!((run.stragglers.compute_s(Rank::new(2)).unwrap_or(0.0) - 0.040).abs() < 1e-9);
        // Better, but not good: it stays what it is, and is not named again.
        assert_eq!(run.go(30, 10, |rank| if rank == 2 { 0.0224 } else { 0.016 }), []);
        assert_eq!(run.stragglers.named().count(), 1);
        let changes = run.go(30, 10, |_| 0.016);
        assert!(matches!(&changes[..], [Change::KeepsUp(found)] if found.rank == Rank::new(2)), "{changes:?}");
        assert_eq!(run.stragglers.named().count(), 0);
    }

    #[test]
    fn one_hiccup_names_nobody() {
        let mut run = Run::new("dp = 4");
        run.go(10, 10, |_| 0.016);
        let mut changes = run.go(1, 10, |rank| if rank == 1 { 1.6 } else { 0.016 });
        changes.extend(run.go(20, 10, |_| 0.016));
        assert_eq!(changes, []);
    }

    /// Times that vary by a quarter either way name the slow one and nobody else, whatever the seed.
    #[test]
    fn noise_names_nobody_else() {
        for seed in 0..200u64 {
            let mut run = Run::new("tp = 2, dp = 4");
            let slow_rank = (seed % 8) as usize;
            let noise = std::cell::Cell::new(splitmix64(seed));
            let step_s = |rank: usize| {
                noise.set(splitmix64(noise.get()));
                let factor = 0.75 + 0.5 * (noise.get() >> 11) as f64 / (1u64 << 53) as f64;
                factor * if rank == slow_rank { 0.04 } else { 0.016 }
            };
            let changes = run.go(60, 10, step_s);
            let is_right = matches!(&changes[..], [Change::Slow(found)] if found.rank == Rank::new(slow_rank));
            assert!(is_right, "seed {seed}: {changes:?}");
        }
    }

    #[test]
    fn too_few_peers_and_too_few_steps_name_nobody() {
        assert_eq!(Run::new("dp = 2").go(60, 10, |rank| 0.01 * (1 + rank) as f64), []);
        assert_eq!(Run::new("pp = 4").go(60, 10, |rank| 0.01 * (1 + rank) as f64), []);
        // A step a minute: two windows need twenty of them.
        let mut run = Run::new("dp = 4");
        let slow = |rank: usize| if rank == 0 { 50.0 } else { 10.0 };
        assert_eq!(run.go(20, 1, slow), []);
        assert_eq!(run.go(2, 1, slow).len(), 1);
    }

    #[test]
    fn stages_and_replicas_with_more_work_are_not_compared() {
        // Six places of each stage; the second computes for three times as long, and that is nobody's fault.
        let two = spec("tp = 1, pp = 2, dp = 6");
        assert_eq!(
            Run::new("tp = 1, pp = 2, dp = 6").go(30, 10, |r| 0.01 * (1 + 2 * two.shape.place(r).pp) as f64),
            []
        );
        // Of 9 micro-batches four replicas take 2, 2, 2 and 3.
        let uneven = job::parse("steps = 9\nshape.dp = 4\nbatch.global = 36\ndata.path = 'text'\n").expect("a job");
        let sizes: Vec<Vec<usize>> = groups(&uneven, &uneven.shape).into_iter().map(|g| g.ranks).collect();
        assert_eq!(sizes.iter().map(Vec::len).collect::<Vec<_>>(), [3]);
        // Experts differ by tp_rank: with replicas enough each is compared with its own, with fewer the stage is one group.
        let sizes = |shape: &str| stragglers(shape).groups.iter().map(|g| g.ranks.len()).collect::<Vec<_>>();
        assert_eq!((sizes("tp = 2, dp = 3"), sizes("tp = 2, dp = 2"), sizes("tp = 2")), (vec![3, 3], vec![4], vec![]));
    }

    /// Garbage, a worker that begins at 0 again, ranks that are not there.
    #[test]
    fn what_a_worker_says_may_be_anything() {
        let mut run = Run::new("dp = 4");
        let mut heard = |rank, num_steps, compute_s| {
            let work = Work { num_steps, compute_s, committed: Step::new(u64::MAX) };
            assert_eq!(run.stragglers.heard(Rank::new(rank), work, Duration::from_secs(9), WINDOW), []);
        };
        for compute_s in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            heard(0, u64::MAX, compute_s);
            heard(9, 5, compute_s);
            heard(0, 0, 0.0);
        }
        assert_eq!(run.go(30, 10, |_| 0.01), []);
    }

    #[test]
    fn an_epoch_keeps_what_was_found_of_who_stays() {
        let mut run = Run::new("dp = 4");
        run.go(30, 10, |rank| if rank == 2 { 0.04 } else { 0.016 });
        let spec = spec("dp = 4");
        run.stragglers.begin(&spec, &spec.shape, |rank| rank != Rank::new(1));
        assert_eq!(run.stragglers.named().count(), 1);
        run.stragglers.begin(&spec, &spec.shape, |rank| rank != Rank::new(2));
        assert_eq!(run.stragglers.named().count(), 0);
    }
}
