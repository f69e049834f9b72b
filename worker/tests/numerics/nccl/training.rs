//! Whole jobs on emulated GPUs: the curve is the same to the bit whether sums go through the host or between GPUs, and with deaths on the way.
//! The test decides as the coordinator does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use toroid_session::{Assignment, Claim, Command, Event, HealPlan, PeerAddr, TrainerEvent};
use toroid_torus::ids::{Epoch, Rank, Step};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::owner::{Owner, OwnerId};
use toroid_worker::comm::nccl::Collectives;
use toroid_worker::comm::{Fence, LinkChoice, Listener};
use toroid_worker::trainer::{Emit, Environment, Order, Shared, run};

use crate::emulator::network::{Handle, Machine};

/// No single wait may take longer.
const HANG_GUARD: Duration = Duration::from_secs(180);

struct Worker {
    gpu: Handle,
    commands: Sender<Order>,
    fence: Fence,
    address: String,
}

/// Loss, cross-entropy, z-loss, balance loss and gradient norm, as bits.
type Curve = BTreeMap<Step, [u64; 5]>;

struct Cluster<'a> {
    spec: Arc<JobSpec>,
    dir: &'a Path,
    machine: Machine,
    collectives: Collectives,
    epoch: Epoch,
    workers: Vec<Worker>,
    /// By rank.
    places: Vec<usize>,
    emit: Sender<(usize, TrainerEvent)>,
    seen: Receiver<(usize, TrainerEvent)>,
    curve: Curve,
}

impl<'a> Cluster<'a> {
    fn start(spec: &JobSpec, dir: &'a Path, collectives: Collectives) -> Cluster<'a> {
        let (emit, seen) = channel();
        let (machine, spec) = (Machine::default(), Arc::new(spec.clone()));
        let (workers, places, curve) = (Vec::new(), Vec::new(), Curve::new());
        let mut cluster =
            Cluster { spec, dir, machine, collectives, epoch: Epoch::NONE, workers, places, emit, seen, curve };
        cluster.places = (0..cluster.spec.shape.world()).map(|_| cluster.add_worker()).collect();
        cluster.begin_epoch(false);
        cluster
    }

    fn add_worker(&mut self) -> usize {
        let id = self.workers.len();
        let listener = Listener::bind("127.0.0.1:0", &format!("w{id}"), LinkChoice::Auto).expect("listen on loopback");
        let (address, device) = (listener.local_addr().to_string(), self.machine.device());
        device.set_collectives(self.collectives);
        let environment = Environment {
            roots: toroid_security::Roots::everywhere(),
            listener,
            shared: Arc::new(Shared::default()),
            cache_dir: self.dir.join("cache"),
            connect_timeout: Duration::from_secs(180),
        };
        let (commands, to_do) = channel();
        let sender = Mutex::new(self.emit.clone());
        let emit: Emit = Arc::new(move |event| drop(sender.lock().expect("not poisoned").send((id, event))));
        let gpu = device.runtime().handle();
        std::thread::spawn(move || run(&device, &environment, to_do, &emit));
        self.workers.push(Worker { gpu, commands, fence: Fence::new().expect("an eventfd"), address });
        id
    }

    fn begin_epoch(&mut self, heal: bool) {
        self.epoch = self.epoch.next();
        let address =
            |id: usize| PeerAddr { worker_id: format!("w{id}").into(), address: self.workers[id].address.clone() };
        let ranks = || Rank::all(self.places.len());
        let peers: BTreeMap<Rank, PeerAddr> = ranks().zip(self.places.iter().map(|id| address(*id))).collect();
        for (rank, &id) in ranks().zip(&self.places) {
            let worker = &self.workers[id];
            worker.fence.raise(self.epoch);
            let assignment = Assignment {
                job_id: "j".into(),
                epoch: self.epoch,
                rank,
                spec: Arc::clone(&self.spec),
                peers: Arc::new(peers.clone()),
                link_key: [self.epoch.get() as u8; 32],
                checkpoint_root: self.dir.join("checkpoints").to_string_lossy().into_owned(),
                owner: Owner::new(OwnerId::from_random([1; 16]), "j", "j", 0),
                claim: Claim::New,
                restore_step: None,
                heal,
            };
            worker.commands.send(Order::Prepare(Box::new(assignment), worker.fence.clone())).expect("it lives");
        }
        let mut reports = BTreeMap::new();
        while reports.len() < self.places.len() {
            let (id, event) = self.next();
            let Event::Prepared { committed_step, held, .. } = event.event else { continue };
            if event.epoch == self.epoch {
                let rank = self.places.iter().position(|place| *place == id).expect("it has a place");
                reports.insert(Rank::new(rank), (committed_step, held.is_empty()));
            }
        }
        let survivors = || reports.iter().filter(|(_, (_, is_new))| !is_new);
        let heal = heal.then(|| {
            let (source, (step, _)) = survivors().max_by_key(|(_, (step, _))| *step).expect("somebody survives");
            let newcomers = reports.iter().filter(|(_, (_, is_new))| *is_new).map(|(rank, _)| *rank).collect();
            HealPlan { step: *step, source: *source, newcomers, origin: None, recorded: Step::ZERO }
        });
        for &id in &self.places {
            let start = Command::Start { epoch: self.epoch, heal: heal.clone() }.into();
            self.workers[id].commands.send(start).expect("it lives");
        }
    }

    fn next(&mut self) -> (usize, TrainerEvent) {
        let (id, event) = self.seen.recv_timeout(HANG_GUARD).expect("nothing happens any more");
        match &event.event {
            Event::Committed { step, record: Some(r) } => {
                let bits = [r.loss, r.ce, r.z_loss, r.balance_loss, r.grad_norm].map(f64::to_bits);
                let known = self.curve.insert(*step, bits);
                assert!(known.is_none_or(|known| known == bits), "step {step} was reported twice, differently");
            }
            Event::Failed { error, .. } => panic!("worker {id} failed: {error}"),
            _ => {}
        }
        (id, event)
    }

    fn wait_for(&mut self, rank: usize, step: u64) {
        loop {
            let (id, event) = self.next();
            let is_it = matches!(event.event, Event::Committed { step: s, .. } if s.get() >= step);
            if (event.epoch, id) == (self.epoch, self.places[rank]) && is_it {
                return;
            }
        }
    }

    /// Its GPU stops, its process dies, and a new worker takes the place.
    fn replace(&mut self, rank: usize) {
        let worker = &self.workers[self.places[rank]];
        worker.gpu.lose();
        worker.fence.raise(Epoch::LAST);
        self.places[rank] = self.add_worker();
        self.begin_epoch(true);
    }

    /// Groups of transfers between GPUs that places have asked for.
    fn num_exchanges(&self) -> Vec<u64> {
        self.places.iter().map(|id| self.workers[*id].gpu.num_exchanges()).collect()
    }

    fn finish(&mut self) -> Curve {
        let mut finished = BTreeSet::new();
        while !self.places.iter().all(|id| finished.contains(id)) {
            let (id, event) = self.next();
            if matches!(event.event, Event::Finished { .. }) && event.epoch == self.epoch {
                finished.insert(id);
            }
        }
        self.curve.clone()
    }
}

fn spec((tp, pp, dx, dy): (usize, usize, usize, usize), text: &Path) -> JobSpec {
    job::parse(&format!(
        "steps = 5\nseed = 3\n[model]\nlayers = {pp}\nd_model = 32\nheads = 4\nkv_heads = 2\nhead_dim = 8\nff = 32\nseq = 16\n\
         [shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\ndx = {dx}\ndy = {dy}\n[batch]\nmicro_batch = 1\nglobal = {global}\n\
         [optimizer]\nlr = 3e-3\nwarmup = 2\n[data]\npath = {text:?}\nvalidation = 0.1\n[eval]\nmicro_batches = {dp}\n",
        dp = dx * dy,
        global = 2 * dx * dy,
    ))
    .expect("a valid job")
}

/// `deaths`: `(rank that is watched, step, rank that dies then)`.
fn check(shape: (usize, usize, usize, usize), deaths: &[(usize, u64, usize)]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, include_str!("training.rs")).expect("write the text");
    let spec = spec(shape, &text);
    let mut host = Cluster::start(&spec, dir.path(), Collectives::Host);
    let expected = host.finish();
    assert_eq!(expected.len(), 5);
    assert!(host.num_exchanges().iter().all(|n| *n == 0), "the host carries");
    let mut cluster = Cluster::start(&spec, dir.path(), Collectives::Nccl);
    for (watched, step, rank) in deaths {
        cluster.wait_for(*watched, *step);
        cluster.replace(*rank);
    }
    assert_eq!(cluster.finish(), expected, "{shape:?} {deaths:?}");
    assert!(
        cluster.num_exchanges().iter().all(|n| *n > 0),
        "NCCL carries at every place: {:?}",
        cluster.num_exchanges()
    );
}

#[test]
fn a_job_has_the_same_curve_through_the_host_and_between_gpus() {
    for shape in [(2, 1, 1, 1), (1, 1, 2, 1), (1, 1, 2, 2), (2, 2, 2, 1)] {
        check(shape, &[]);
    }
}

#[test]
fn a_job_whose_ranks_die_between_gpus_has_the_curve_of_the_undisturbed_one() {
    check((2, 1, 2, 1), &[(0, 1, 3), (1, 3, 0)]);
    check((1, 1, 2, 2), &[(0, 2, 1), (2, 3, 0)]);
    check((2, 1, 1, 1), &[(0, 2, 1)]);
}
