//! What `toroid top` knows and shows: the cluster as it was last heard of, and what the user looks at.
//!
//! Everything has a bound, whatever a job or a cluster has.

use std::collections::VecDeque;

use toroid_proto as proto;
use toroid_proto::json::is_ended;

/// Points of the loss curve that are kept; beyond them two become one.
const MAX_POINTS: usize = 4096;
/// Steps over which step times are means.
const MAX_RECENT: usize = 20;
/// Events that are kept, the newest.
const MAX_EVENTS: usize = 100;

/// Losses by step, thinned out as they grow.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Curve {
    /// Means over `stride` steps each, ascending.
    pub points: Vec<(u64, f64)>,
    stride: u64,
    /// The sum and number of those that make no whole point yet, and the first of their steps.
    open: Option<(u64, f64, u64)>,
}

impl Curve {
    pub fn push(&mut self, step: u64, loss: f64) {
        if !loss.is_finite() {
            return;
        }
        // After a restore steps are made again.
        while self.points.last().is_some_and(|(last, _)| *last >= step) {
            self.points.pop();
        }
        let (first, sum, num) = match self.open.take() {
            Some((first, sum, num)) if first < step => (first, sum + loss, num + 1),
            _ => (step, loss, 1),
        };
        if num < self.stride.max(1) {
            self.open = Some((first, sum, num));
            return;
        }
        self.points.push((first, sum / num as f64));
        if self.points.len() > MAX_POINTS {
            let pairs = self.points.chunks(2).map(|pair| {
                let sum: f64 = pair.iter().map(|(_, loss)| loss).sum();
                (pair[0].0, sum / pair.len() as f64)
            });
            self.points = pairs.collect();
            self.stride = 2 * self.stride.max(1);
        }
    }
}

/// What a step took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    pub step_s: f64,
    pub hidden_s: f64,
    pub exposed_s: f64,
}

/// Whether the coordinator answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Link {
    Connecting,
    Live,
    Away { since_unix_ms: i64, why: String },
}

/// What is to be confirmed before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Drain { worker: String, rank: u32 },
    Cancel { job: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// As the user named it.
    pub coordinator: String,
    pub link: Link,
    /// The newest first.
    pub jobs: Vec<proto::Job>,
    pub workers: Vec<proto::WorkerInfo>,
    /// When `workers` was heard.
    pub workers_unix_ms: i64,
    /// The one that is shown; empty: none yet.
    pub job_id: String,
    pub job: Option<proto::Job>,
    pub curve: Curve,
    pub recent: VecDeque<StepTime>,
    pub events: VecDeque<proto::Event>,
    /// The rank of the selected place.
    pub rank: usize,
    pub scale: Scale,
    pub prompt: Option<Prompt>,
    pub shows_help: bool,
    /// What came of the last thing that was asked for, and when.
    pub notice: Option<(String, i64)>,
}

/// What a place does, as far as the coordinator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceState {
    Computing,
    /// For the others, for workers, or since nothing is to be done.
    Waiting,
    /// Its new worker gets the state.
    Healing,
    Dead,
    Straggling,
}

impl PlaceState {
    pub const ALL: [PlaceState; 5] =
        [PlaceState::Computing, PlaceState::Waiting, PlaceState::Healing, PlaceState::Dead, PlaceState::Straggling];

    pub fn word(self) -> &'static str {
        match self {
            PlaceState::Computing => "computing",
            PlaceState::Waiting => "waiting",
            PlaceState::Healing => "healing",
            PlaceState::Dead => "dead",
            PlaceState::Straggling => "straggling",
        }
    }

    /// Tells the states apart without colour.
    pub fn symbol(self) -> char {
        match self {
            PlaceState::Computing => '#',
            PlaceState::Waiting => '.',
            PlaceState::Healing => '+',
            PlaceState::Dead => 'x',
            PlaceState::Straggling => '!',
        }
    }

    fn of(job: &proto::Job, place: &proto::PlaceInfo) -> PlaceState {
        let state = job.state();
        if is_ended(state) || state == proto::JobState::Queued {
            return PlaceState::Waiting;
        }
        if !place.alive {
            return PlaceState::Dead;
        }
        let lasting = job.incidents.last().filter(|i| !i.resolved);
        if lasting.is_some_and(|i| i.ranks.contains(&place.rank)) {
            return PlaceState::Healing;
        }
        if lasting.is_some() || matches!(state, proto::JobState::Starting | proto::JobState::Recovering) {
            return PlaceState::Waiting;
        }
        match job.stragglers.iter().any(|s| s.rank == place.rank) {
            true => PlaceState::Straggling,
            false => PlaceState::Computing,
        }
    }
}

/// The places of the job as they lie on the torus.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grid {
    pub width: usize,
    pub height: usize,
    /// Row by row; rank and state, `None` where there is no place.
    pub cells: Vec<Option<(u32, PlaceState)>>,
}

impl Grid {
    pub fn of(job: &proto::Job) -> Grid {
        // What a coordinator says may be anything: coordinates far beyond the number of places are none.
        let limit = job.places.len() as u32;
        let places = || job.places.iter().filter(move |p| p.x < limit && p.y < limit);
        let width = places().map(|p| p.x as usize + 1).max().unwrap_or(0);
        let height = places().map(|p| p.y as usize + 1).max().unwrap_or(0);
        if width * height > 2 * job.places.len() {
            return Grid::default();
        }
        let mut cells = vec![None; width * height];
        for p in places() {
            cells[p.y as usize * width + p.x as usize] = Some((p.rank, PlaceState::of(job, p)));
        }
        Grid { width, height, cells }
    }

    pub fn at(&self, x: usize, y: usize) -> Option<(u32, PlaceState)> {
        self.cells.get(y * self.width + x).copied().flatten()
    }

    /// Where a rank is.
    pub fn position(&self, rank: usize) -> Option<(usize, usize)> {
        let at = self.cells.iter().position(|c| c.is_some_and(|(r, _)| r as usize == rank))?;
        Some((at % self.width, at / self.width))
    }
}

impl Model {
    /// `job_id`: the one that was asked for; empty: the newest that goes on.
    pub fn new(coordinator: String, job_id: String) -> Model {
        Model {
            coordinator,
            link: Link::Connecting,
            jobs: Vec::new(),
            workers: Vec::new(),
            workers_unix_ms: 0,
            job_id,
            job: None,
            curve: Curve::default(),
            recent: VecDeque::new(),
            events: VecDeque::new(),
            rank: 0,
            scale: Scale::Linear,
            prompt: None,
            shows_help: false,
            notice: None,
        }
    }

    /// Another job is shown; nothing of the one before stays.
    pub fn select(&mut self, job_id: String) {
        self.job_id = job_id;
        self.job = None;
        self.curve = Curve::default();
        self.recent.clear();
        self.events.clear();
        self.rank = 0;
        self.prompt = None;
    }

    pub fn take(&mut self, update: proto::JobUpdate) {
        for step in &update.steps {
            if !step.missing {
                self.curve.push(step.step, step.loss);
                push(&mut self.recent, StepTime::of(step), MAX_RECENT);
            }
        }
        for event in update.events {
            push(&mut self.events, event, MAX_EVENTS);
        }
        if let Some(job) = update.job {
            let num_places = job.places.len();
            self.job = Some(job);
            self.rank = self.rank.min(num_places.saturating_sub(1));
        }
    }

    /// The mean over the last steps.
    pub fn step_time(&self) -> Option<StepTime> {
        let num = self.recent.len() as f64;
        let mean = |of: fn(&StepTime) -> f64| self.recent.iter().map(of).sum::<f64>() / num;
        (!self.recent.is_empty()).then(|| StepTime {
            step_s: mean(|t| t.step_s),
            hidden_s: mean(|t| t.hidden_s),
            exposed_s: mean(|t| t.exposed_s),
        })
    }

    pub fn place(&self) -> Option<&proto::PlaceInfo> {
        self.job.as_ref()?.places.iter().find(|p| p.rank as usize == self.rank)
    }

    pub fn worker(&self, id: &str) -> Option<&proto::WorkerInfo> {
        self.workers.iter().find(|w| w.worker_id == id)
    }
}

impl StepTime {
    fn of(step: &proto::StepRecord) -> StepTime {
        StepTime { step_s: step.step_s, hidden_s: step.hidden_s, exposed_s: step.exposed_s }
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    if queue.len() == max {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_of_any_length_is_kept_within_its_bound_and_keeps_its_shape() {
        let mut curve = Curve::default();
        for step in 1..=100_000 {
            curve.push(step, step as f64);
        }
        assert!(curve.points.len() <= MAX_POINTS, "{} points", curve.points.len());
        assert!(curve.points.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1), "it rises still");
        assert_eq!(curve.points[0].0, 1);
        assert!(curve.points.last().is_some_and(|(step, _)| *step > 99_900), "{:?}", curve.points.last());
        curve.push(100_001, f64::NAN);
    }

    #[test]
    fn steps_that_are_made_again_take_the_place_of_those_before() {
        let mut curve = Curve::default();
        (1..=10).for_each(|step| curve.push(step, 1.0));
        (6..=8).for_each(|step| curve.push(step, 2.0));
        assert_eq!(curve.points.len(), 8);
        assert_eq!((curve.points[4], curve.points[5]), ((5, 1.0), (6, 2.0)));
    }

    #[test]
    fn coordinates_that_cannot_be_are_no_grid() {
        let place = |rank, x, y| proto::PlaceInfo { rank, x, y, ..Default::default() };
        let grid = |places| Grid::of(&proto::Job { places, ..Default::default() });
        assert_eq!(grid(vec![place(0, u32::MAX, 0)]), Grid::default());
        let two = grid(vec![place(0, 0, 0), place(1, 1, 0)]);
        assert_eq!((two.width, two.height, two.position(1)), (2, 1, Some((1, 0))));
        assert_eq!(grid((0..9).map(|n| place(n, n, n)).collect()), Grid::default(), "far too sparse");
    }
}
