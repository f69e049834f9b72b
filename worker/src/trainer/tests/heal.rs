//! Deaths and healing without a coordinator: trainers in threads, links over TCP, a test that decides as the coordinator does.
//!
//! A death is what peers see of one: the place's links close, whatever it was doing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use toroid_proto::{StepRecord, Validation};
use toroid_session::{Command, Event, HealPlan, HeldAs, TrainerEvent, WarmUp};
use toroid_torus::holders::backup_of;
use toroid_torus::ids::Step;
use toroid_torus::job::{self, JobSpec};
use toroid_torus::resplit::{Origin, keep, num_lost};

use super::*;
use crate::trainer::failpoint::{Failpoint, Failpoints};
use crate::trainer::{Emit, Order, run};

/// An event with the worker that it came from; a worker is a number for life, a rank is not.
type Seen = (usize, TrainerEvent);

/// No single wait may take longer.
const HANG_GUARD: Duration = Duration::from_secs(180);

struct Worker {
    commands: Sender<Order>,
    fence: Fence,
    address: String,
}

/// The places of one job, and a test in the coordinator's role.
pub struct Cluster<'a> {
    /// Its shape is that of the present epoch.
    spec: Arc<JobSpec>,
    dir: &'a Path,
    epoch: Epoch,
    /// The step that was committed when the epoch began.
    began_with: Step,
    workers: Vec<Worker>,
    /// By rank.
    places: Vec<usize>,
    emit: Sender<Seen>,
    seen: Receiver<Seen>,
    is_resized: bool,
    /// By step: what rank 0 reported.
    curve: BTreeMap<u64, StepRecord>,
    /// By the worker that said it and by step.
    validations: BTreeMap<(usize, u64), Validation>,
    /// New workers make the workspace of this rank ahead.
    warm_for: Option<usize>,
    /// The shape that it is a rank of, where it is another than the job's.
    warm_in: Option<Shape>,
    /// For workers to come.
    failpoint: Option<Failpoint>,
    /// What was said of copies that differ: the ranks with a wrong one, and the words.
    pub corrupt: Option<(BTreeSet<usize>, String)>,
    /// Workers that finished, with the epoch.
    finished: BTreeSet<(Epoch, usize)>,
}

/// What a place reported in the present epoch.
#[derive(Debug, Clone)]
struct Report {
    committed: Step,
    held: Vec<HeldAs>,
    sealed_next: bool,
}

impl<'a> Cluster<'a> {
    pub fn start(spec: &JobSpec, dir: &'a Path) -> Cluster<'a> {
        Cluster::start_with_flip(spec, dir, None)
    }

    /// In the worker that begins as this rank a bit is flipped.
    pub fn start_with_flip(spec: &JobSpec, dir: &'a Path, flip: Option<(usize, Failpoint)>) -> Cluster<'a> {
        let (emit, seen) = channel();
        let (spec, curve) = (Arc::new(spec.clone()), BTreeMap::new());
        let mut cluster = Cluster {
            spec,
            dir,
            epoch: Epoch::NONE,
            began_with: Step::ZERO,
            workers: Vec::new(),
            places: Vec::new(),
            emit,
            seen,
            curve,
            validations: BTreeMap::new(),
            warm_for: None,
            warm_in: None,
            failpoint: None,
            corrupt: None,
            finished: BTreeSet::new(),
            is_resized: false,
        };
        for rank in 0..cluster.spec.shape.world() {
            cluster.failpoint = flip.clone().filter(|(at, _)| *at == rank).map(|(_, flip)| flip);
            let worker = cluster.add_worker();
            cluster.places.push(worker);
        }
        cluster.failpoint = None;
        cluster.begin_epoch(false);
        cluster
    }

    fn add_worker(&mut self) -> usize {
        let id = self.workers.len();
        let listener = Listener::bind("127.0.0.1:0", &format!("w{id}"), LinkChoice::Auto).expect("listen on loopback");
        let address = listener.local_addr().to_string();
        let environment = Environment {
            roots: toroid_security::Roots::everywhere(),
            listener,
            shared: Arc::new(Shared::that_fails(Failpoints::new(self.failpoint.clone()))),
            cache_dir: self.dir.join("cache"),
            connect_timeout: HANG_GUARD,
        };
        let (commands, to_do) = channel();
        let sender = Mutex::new(self.emit.clone());
        let emit: Emit = Arc::new(move |event| drop(sender.lock().expect("not poisoned").send((id, event))));
        std::thread::spawn(move || run(&CpuDevice::new(1), &environment, to_do, &emit));
        if let Some(rank) = self.warm_for {
            let checkpoint_root = self.checkpoint_root();
            let ahead = WarmUp {
                job_id: "j".into(),
                spec: Arc::new(JobSpec {
                    shape: self.warm_in.unwrap_or(self.spec.shape),
                    ..JobSpec::clone(&self.spec)
                }),
                rank: Rank::new(rank),
                checkpoint_root,
                number: 0,
                checkpoint_step: None,
            };
            commands.send(Command::WarmUp(Box::new(ahead)).into()).expect("it lives");
        }
        self.workers.push(Worker { commands, fence: Fence::new().expect("an eventfd"), address });
        id
    }

    fn checkpoint_root(&self) -> String {
        self.dir.join("checkpoints").to_string_lossy().into_owned()
    }

    /// Fence, assign, report, decide, start.
    fn begin_epoch(&mut self, heal: bool) {
        self.epoch = self.epoch.next();
        let peers: BTreeMap<Rank, PeerAddr> = self
            .places
            .iter()
            .enumerate()
            .map(|(rank, &id)| {
                let address = self.workers[id].address.clone();
                (Rank::new(rank), PeerAddr { worker_id: format!("w{id}").into(), address })
            })
            .collect();
        for (rank, &id) in self.places.iter().enumerate() {
            let worker = &self.workers[id];
            worker.fence.raise(self.epoch);
            let assignment = Assignment {
                job_id: "j".into(),
                epoch: self.epoch,
                rank: Rank::new(rank),
                spec: Arc::clone(&self.spec),
                peers: Arc::new(peers.clone()),
                link_key: [self.epoch.get() as u8; 32],
                checkpoint_root: self.checkpoint_root(),
                owner: Owner::new(OwnerId::from_random([1; 16]), "j", "j", 0),
                claim: Claim::New,
                restore_step: None,
                heal,
            };
            worker.commands.send(Order::Prepare(Box::new(assignment), worker.fence.clone())).expect("it lives");
        }
        let reports = self.reports();
        let heal = heal.then(|| decide(&self.spec, &reports));
        self.began_with = heal.as_ref().map_or(Step::ZERO, |heal| heal.step);
        for &id in &self.places {
            let start = Command::Start { epoch: self.epoch, heal: heal.clone() }.into();
            self.workers[id].commands.send(start).expect("it lives");
        }
    }

    fn reports(&mut self) -> Vec<Report> {
        let mut reports = BTreeMap::new();
        while reports.len() < self.places.len() {
            let (id, event) = self.next();
            let Event::Prepared { committed_step, held, sealed_next, .. } = event.event else { continue };
            if event.epoch == self.epoch {
                reports.insert(id, Report { committed: committed_step, held, sealed_next });
            }
        }
        self.places.iter().map(|id| reports[id].clone()).collect()
    }

    pub fn next(&mut self) -> Seen {
        let (id, event) = self.seen.recv_timeout(HANG_GUARD).expect("nothing happens any more");
        match &event.event {
            Event::Committed { record: Some(record), .. } => {
                let record = (**record).clone();
                let timeless =
                    StepRecord { tokens_per_s: 0.0, step_s: 0.0, hidden_s: 0.0, exposed_s: 0.0, epoch: 0, ..record };
                let known = self.curve.insert(record.step, timeless.clone());
                // With another number of replicas a step that only the dead had committed differs by rounding when it is made again.
                let is_same = |known: StepRecord| known == timeless || self.is_resized && is_near(&known, &timeless);
                assert!(known.is_none_or(is_same), "step {} was reported twice, differently", record.step);
            }
            Event::Validated(validation) => drop(self.validations.insert((id, validation.step), validation.clone())),
            Event::Finished { .. } => drop(self.finished.insert((event.epoch, id))),
            Event::Failed { error, corrupt_ranks, restore, .. } if *restore || !corrupt_ranks.is_empty() => {
                self.corrupt = Some((corrupt_ranks.iter().map(|rank| rank.index()).collect(), error.clone()));
            }
            Event::Failed { error, .. } => panic!("worker {id} failed: {error}"),
            _ => {}
        }
        (id, event)
    }

    /// Waits until the worker of `rank` says that it has committed `step`, in this epoch and after what the epoch began with: then
    /// all have taken part in a step, and newcomers have their shards.
    pub fn wait_for(&mut self, rank: usize, step: u64) {
        loop {
            let (id, event) = self.next();
            let is_it =
                matches!(event.event, Event::Committed { step: s, .. } if s.get() >= step && s > self.began_with);
            let is_over = matches!(event.event, Event::Finished { .. });
            if (event.epoch, id) == (self.epoch, self.places[rank]) && (is_it || is_over) {
                return;
            }
        }
    }

    fn kill(&mut self, ranks: &BTreeSet<usize>) {
        for &rank in ranks {
            let worker = &self.workers[self.places[rank]];
            worker.fence.raise(Epoch::LAST);
            worker.commands.send(Command::Drop { epoch: Epoch::LAST }.into()).expect("it lives");
        }
    }

    /// The workers of these ranks die, and new ones take their places.
    pub fn replace(&mut self, ranks: &BTreeSet<usize>) {
        self.kill(ranks);
        for &rank in ranks {
            self.places[rank] = self.add_worker();
        }
        self.begin_epoch(true);
    }

    /// The workers of these ranks die, and all go on with so many replicas; new workers take the places that are empty then.
    pub fn resize(&mut self, ranks: &BTreeSet<usize>, dp: usize) {
        self.kill(ranks);
        self.is_resized = true;
        let from = self.spec.shape;
        let to = Shape::new(from.tp(), from.pp(), dp).expect("a valid shape");
        let survivors = (0..from.world()).filter(|rank| !ranks.contains(rank)).collect();
        let kept = keep(&from, &to, &survivors, |kept| num_lost(&from, kept)).expect("a holder of each shard is left");
        let old = std::mem::take(&mut self.places);
        self.places = kept.iter().map(|rank| rank.map_or_else(|| self.add_worker(), |rank| old[rank])).collect();
        self.spec = Arc::new(JobSpec { shape: to, ..JobSpec::clone(&self.spec) });
        self.begin_epoch(true);
    }

    /// Trains to the end, and returns the curve.
    pub fn finish(mut self) -> BTreeMap<u64, StepRecord> {
        let finished = |c: &Cluster<'_>| c.places.iter().all(|id| c.finished.contains(&(c.epoch, *id)));
        while !finished(&self) {
            self.next();
        }
        self.curve
    }
}

/// As the coordinator does, see design section 5.3.
fn decide(spec: &JobSpec, reports: &[Report]) -> HealPlan {
    // The way of splitting that all have who hold a state.
    let ways = reports.iter().flat_map(|r| &r.held).map(|h| h.shape);
    let has = |r: &Report, way: Shape| r.held.iter().any(|h| h.shape == way);
    let mut ways = ways.filter(|way| reports.iter().all(|r| r.held.is_empty() || has(r, *way)));
    let way = ways.next().expect("there is one");
    let rank_in = |r: &Report| r.held.iter().find(|h| h.shape == way).map(|h| h.rank.index());
    let ranks: Vec<Option<usize>> = reports.iter().map(rank_in).collect();
    let present: BTreeSet<usize> = ranks.iter().copied().flatten().collect();
    assert_eq!(num_lost(&way, &present), 0, "a test of healing leaves one holder of each shard");
    let newcomers = Rank::all(reports.len()).filter(|r| ranks[r.index()].is_none()).collect();
    let survivors = || reports.iter().enumerate().filter(|(rank, _)| ranks[*rank].is_some());
    let step = survivors().map(|(_, r)| r.committed).max().expect("somebody survives");
    for (rank, r) in survivors() {
        assert!(
            r.committed == step || (r.committed.next() == step && r.sealed_next),
            "T-2: rank {rank} is at {r:?}, step {step}"
        );
    }
    let source = survivors().find(|(_, r)| r.committed == step).map(|(rank, _)| rank).expect("the highest");
    let is_in_place = way == spec.shape && ranks.iter().enumerate().all(|(now, old)| old.is_none_or(|old| old == now));
    let origin = (!is_in_place).then_some(Origin { shape: way, ranks });
    // No coordinator takes anything: all of the curve is said again.
    HealPlan { step, source: Rank::new(source), newcomers, origin, recorded: Step::ZERO }
}

pub fn spec((tp, pp, dp): (usize, usize, usize), text: &Path) -> JobSpec {
    job::parse(&format!(
        "steps = 12\nseed = 3\n[model]\nlayers = 4\nd_model = 32\nhead_dim = 8\nff = 32\nseq = 32\n\
         [shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n[batch]\nmicro_batch = 2\nglobal = 16\n\
         [optimizer]\nlr = 3e-3\nwarmup = 2\n[data]\npath = {text:?}\nvalidation = 0.1\n[eval]\nmicro_batches = 4\ninterval = 3\n",
    ))
    .expect("a valid job")
}

/// A job of this shape, on this file as its text, in a folder that goes with the first.
fn job_in_a_folder(shape: (usize, usize, usize)) -> (tempfile::TempDir, JobSpec) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, include_str!("heal.rs")).expect("write the text");
    let spec = spec(shape, &text);
    (dir, spec)
}

/// Runs a job once undisturbed and then with `deaths`, each `(rank that is watched, step, ranks that die then)`; T-4: the curves are
/// equal to the bit.
fn check(shape: (usize, usize, usize), deaths: &[(usize, u64, BTreeSet<usize>)]) {
    let (dir, spec) = job_in_a_folder(shape);
    let undisturbed = Cluster::start(&spec, dir.path()).finish();
    assert_eq!(undisturbed.len(), 12);
    let mut cluster = Cluster::start(&spec, dir.path());
    for (watched, step, ranks) in deaths {
        cluster.wait_for(*watched, *step);
        cluster.replace(ranks);
    }
    assert_eq!(cluster.finish(), undisturbed, "{shape:?} {deaths:?}");
}

fn one(rank: usize) -> BTreeSet<usize> {
    BTreeSet::from([rank])
}

#[test]
fn t4_every_rank_may_die_on_every_shape() {
    for shape in [(1, 1, 2), (1, 1, 4), (2, 1, 2), (1, 2, 2), (2, 2, 2), (2, 2, 1), (1, 2, 1), (4, 1, 1)] {
        let world = shape.0 * shape.1 * shape.2;
        // Each death is seen from another rank and comes at another step, so that it falls into another part of a step.
        let deaths: Vec<_> = (0..world).map(|rank| ((rank + 1) % world, 1 + rank as u64, one(rank))).collect();
        check(shape, &deaths);
    }
}

#[test]
fn t3_workers_that_share_no_shard_may_die_together() {
    check((1, 1, 4), &[(1, 3, BTreeSet::from([0, 2])), (0, 6, BTreeSet::from([1, 3]))]);
    check((2, 2, 2), &[(3, 2, BTreeSet::from([0, 1, 4, 5])), (0, 5, BTreeSet::from([2, 7, 4, 1]))]);
}

#[test]
fn a_death_while_another_is_healed() {
    let (dir, spec) = job_in_a_folder((2, 1, 4));
    let undisturbed = Cluster::start(&spec, dir.path()).finish();
    let mut cluster = Cluster::start(&spec, dir.path());
    for round in 0..4 {
        cluster.wait_for(0, 2 + 2 * round);
        cluster.replace(&one(3));
        // At once, before the newcomer can have its shards: a rank that holds none of them.
        let holders = [3, backup_of(&spec.shape, 3).expect("dp 4")];
        let other = (0..8).rev().find(|r| !holders.contains(r) && backup_of(&spec.shape, *r) != Some(3)).expect("one");
        cluster.replace(&one(other));
    }
    assert_eq!(cluster.finish(), undisturbed);
}

/// Spares with a workspace for such a place, or for a place of another coordinate, take places as others do.
#[test]
fn t4_warm_spares_heal_as_others_do() {
    for shape in [(1, 1, 4), (2, 2, 2), (2, 2, 1)] {
        let (dir, spec) = job_in_a_folder(shape);
        let world = spec.shape.world();
        let undisturbed = Cluster::start(&spec, dir.path()).finish();
        let mut cluster = Cluster::start(&spec, dir.path());
        for (rank, warm_for) in [(1, 0), (0, world - 1), (world - 1, world - 1)] {
            cluster.wait_for((rank + 1) % world, 2 + rank as u64);
            cluster.warm_for = Some(warm_for);
            cluster.replace(&one(rank));
        }
        assert_eq!(cluster.finish(), undisturbed, "{shape:?}");
    }
}

/// A job that went down to one place begins another epoch when its coordinator restarts: there is no other holder, and nothing to pull.
#[test]
fn t3_the_only_place_that_is_left_goes_on_with_its_state() {
    let (dir, spec) = job_in_a_folder((1, 1, 2));
    let undisturbed = Cluster::start(&spec, dir.path()).finish();
    let mut cluster = Cluster::start(&spec, dir.path());
    cluster.wait_for(0, 2);
    cluster.resize(&one(1), 1);
    cluster.wait_for(0, 5);
    cluster.replace(&BTreeSet::new());
    let curve = cluster.finish();
    assert!(curve.len() == undisturbed.len() && curve.iter().all(|(step, found)| is_near(found, &undisturbed[step])));
}

/// A spare is made ready for the whole job; by the time it gets a place there may be fewer replicas, which have no such rank.
#[test]
fn t4_a_spare_that_is_ready_for_a_rank_of_more_replicas_takes_a_place() {
    let (dir, spec) = job_in_a_folder((1, 1, 2));
    let undisturbed = Cluster::start(&spec, dir.path()).finish();
    let mut cluster = Cluster::start(&spec, dir.path());
    cluster.wait_for(0, 2);
    cluster.warm_in = Some(Shape::new(1, 1, 4).expect("a shape"));
    cluster.warm_for = Some(3);
    cluster.replace(&one(1));
    assert_eq!(cluster.finish(), undisturbed);
}

/// Rank 0 may die, or be cut off, with validations that the coordinator has not heard of.
#[test]
fn t4_a_new_rank_0_says_the_validations_again() {
    let (dir, spec) = job_in_a_folder((1, 1, 4));
    let mut cluster = Cluster::start(&spec, dir.path());
    // Of steps 3 and 6 everyone has the validations by then.
    cluster.wait_for(1, 7);
    let old = cluster.places[0];
    cluster.replace(&one(0));
    let new = cluster.places[0];
    while !cluster.finished.contains(&(cluster.epoch, new)) {
        cluster.next();
    }
    let of = |place| {
        let of_place = cluster.validations.range((place, 0)..=(place, u64::MAX));
        of_place.map(|((_, step), validation)| (*step, validation.clone())).collect::<BTreeMap<_, _>>()
    };
    let (first, second) = (of(old), of(new));
    assert!(first.contains_key(&3) && first.contains_key(&6), "{first:?}");
    assert!(first.iter().all(|(step, validation)| second.get(step) == Some(validation)), "{first:?}, then {second:?}");
}

/// What happens to the replicas: `(rank that is watched, step, ranks that die then, replicas afterwards)`.
type Resize = (usize, u64, BTreeSet<usize>, usize);

/// The same but for rounding.
fn is_near(a: &StepRecord, b: &StepRecord) -> bool {
    (a.loss - b.loss).abs() <= 1e-5 * b.loss && (a.grad_norm - b.grad_norm).abs() <= 1e-3 * b.grad_norm
}

/// T-5: with other numbers of replicas every step has the same samples, so that its loss differs by rounding only.
fn check_resizes(shape: (usize, usize, usize), resizes: &[Resize]) {
    let (dir, spec) = job_in_a_folder(shape);
    let undisturbed = Cluster::start(&spec, dir.path()).finish();
    let mut cluster = Cluster::start(&spec, dir.path());
    let mut first = u64::MAX;
    for (watched, step, ranks, dp) in resizes {
        cluster.wait_for(*watched, *step);
        first = first.min(*step);
        cluster.resize(ranks, *dp);
    }
    let curve = cluster.finish();
    assert_eq!(curve.len(), undisturbed.len());
    for (step, expected) in &undisturbed {
        let found = &curve[step];
        // The step that was watched may have been committed by those alone who have no place any more.
        if *step < first {
            assert_eq!(found, expected, "T-4: {shape:?} {resizes:?}");
        }
        let name = format!("step {step}: {} and {} of {shape:?} {resizes:?}", found.loss, expected.loss);
        assert!(is_near(found, expected), "{name}");
        // Every token of the step went to two experts of each layer.
        let load = |record: &StepRecord| record.expert_load.iter().sum::<u64>();
        assert_eq!((found.tokens, load(found)), (expected.tokens, load(expected)), "T-5: {name}");
    }
}

#[test]
fn fewer_replicas_and_more_again_on_every_shape() {
    let none = BTreeSet::new;
    check_resizes((1, 1, 4), &[(0, 2, one(1), 3), (2, 6, none(), 4)]);
    check_resizes((1, 1, 4), &[(1, 3, one(0), 3), (0, 5, one(2), 2), (0, 6, one(1), 1), (0, 8, none(), 4)]);
    check_resizes((2, 1, 2), &[(1, 2, one(3), 1), (0, 7, none(), 2)]);
    check_resizes((1, 2, 3), &[(0, 2, one(4), 2), (1, 5, none(), 3)]);
    check_resizes((2, 2, 2), &[(0, 3, one(5), 1), (3, 6, none(), 2)]);
    check_resizes((1, 1, 2), &[(1, 1, none(), 8), (7, 4, BTreeSet::from([0, 3, 5]), 5), (0, 9, none(), 6)]);
}

/// As soon as the next shape is begun another worker dies: some may have split the state anew by then, and nobody knows who has heard it.
#[test]
fn a_death_while_the_state_is_split_anew() {
    for step in 1..6 {
        check_resizes((1, 1, 5), &[(0, step, one(1), 4), (0, 0, one(2), 3), (0, 0, BTreeSet::new(), 5)]);
        check_resizes((2, 1, 4), &[(1, step, one(2), 3), (0, 0, one(4), 2), (0, 0, BTreeSet::new(), 4)]);
    }
}
