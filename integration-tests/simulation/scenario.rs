//! What a seed simulates: the jobs, the workers, and how much goes wrong.

use crate::network::{MS, Micros};
use crate::random::Random;

#[derive(Debug, Clone)]
pub struct Scenario {
    /// Job files.
    pub jobs: Vec<String>,
    /// More of them, which come at these numbers of events.
    pub later: Vec<(u64, String)>,
    /// Users hold, release, cordon, cancel and resume.
    pub is_pool: bool,
    /// Several have an etcd.
    pub num_coordinators: usize,
    pub num_places: usize,
    pub num_workers: usize,
    pub step_time: Micros,
    /// Faults come at these numbers of events, ascending.
    pub faults: Vec<u64>,
    /// How many of a hundred dead workers are started again soon.
    pub percent_restarts: u64,
    /// How many of a hundred workers that start cannot fill a place.
    pub percent_unable: u64,
    /// Workers on one host.
    per_host: usize,
    /// Users pin checkpoints.
    pub has_pins: bool,
    /// A job of hundreds of quick steps: a coordinator may be away for most of them.
    pub is_long: bool,
}

/// Seeds of a hundred with a long job.
const PERCENT_LONG: u64 = 3;
/// And with several jobs over a pool that is too small for all of them at once.
const PERCENT_POOL: u64 = 15;
/// Of these, of those with a long job, and of the others: with several coordinators.
const PERCENT_SEVERAL_OF_POOLS: u64 = 40;
const PERCENT_SEVERAL_OF_LONG: u64 = 40;
const PERCENT_SEVERAL: u64 = 25;
const LONG_SHAPES: [(usize, usize, usize); 4] = [(1, 1, 2), (1, 1, 3), (1, 2, 2), (2, 1, 2)];

const POOL_SHAPES: [(usize, usize, usize); 5] = [(1, 1, 1), (1, 1, 2), (1, 1, 4), (1, 2, 2), (2, 1, 2)];

const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 2),
    (1, 1, 3),
    (1, 1, 4),
    (1, 2, 1),
    (2, 1, 1),
    (2, 1, 2),
    (1, 2, 2),
    (2, 2, 1),
    (2, 2, 2),
    (2, 1, 3),
    (1, 1, 1),
];

impl Scenario {
    pub fn draw(random: &mut Random) -> Scenario {
        let is_long = random.percent(PERCENT_LONG);
        let shapes: &[(usize, usize, usize)] = if is_long { &LONG_SHAPES } else { &SHAPES };
        let (tp, pp, dp) = random.pick(shapes).expect("there are some");
        let num_places = tp * pp * dp;
        let num_spares = random.below(4) as usize;
        let num_steps = if is_long { random.between(150, 300) } else { random.between(5, 12) };
        let is_pool = !is_long && random.percent(PERCENT_POOL);
        let mut jobs = vec![job_file("first", (tp, pp, dp), num_steps, 0, random)];
        let (mut num_places, mut num_workers, mut later) = (num_places, num_places + num_spares, Vec::new());
        if is_pool {
            for name in ["second", "third", "fourth"].into_iter().take(random.between(1, 3) as usize) {
                let shape = random.pick(&POOL_SHAPES).expect("there are some");
                let (steps, priority) = (random.between(3, 8), random.pick(&[-1, 0, 1, 5]).expect("there are some"));
                let file = job_file(name, shape, steps, priority, random);
                num_places = num_places.max(shape.0 * shape.1 * shape.2);
                later.push((random.below(num_places as u64 * 400 + 1500), file));
            }
            later.sort();
        } else if random.percent(10) {
            jobs.push(job_file("second", (1, 1, 2), random.between(3, 6), 0, random));
            num_workers += 2;
        }
        let are_several = random.percent(match (is_long, is_pool) {
            (true, _) => PERCENT_SEVERAL_OF_LONG,
            (_, true) => PERCENT_SEVERAL_OF_POOLS,
            _ => PERCENT_SEVERAL,
        });
        let num_coordinators = if are_several { random.between(2, 3) as usize } else { 1 };
        // Most of what happens in a job happens within these.
        let horizon = (num_places * num_places) as u64 * 200 + 1000;
        let num_faults = random.between(1, 12);
        // Every other fault comes soon after the one before it: into the recovery.
        let mut faults: Vec<u64> = Vec::new();
        for _ in 0..num_faults {
            let last = faults.last().copied().filter(|_| random.percent(50));
            faults.push(match last {
                Some(at) => at + random.below(80),
                None => random.below(horizon),
            });
        }
        faults.sort_unstable();
        Scenario {
            jobs,
            later,
            is_pool,
            num_coordinators,
            num_places,
            num_workers,
            step_time: if is_long {
                20 * MS
            } else {
                random.pick(&[20 * MS, 100 * MS, 700 * MS]).expect("there are some")
            },
            faults,
            // Where few come back there are fewer replicas for a while.
            percent_restarts: random.pick(&[60, 60, 15]).expect("there are some"),
            percent_unable: random.pick(&[0, 0, 0, 30]).expect("there are some"),
            per_host: random.between(1, 4) as usize,
            is_long,
            has_pins: false,
        }
    }

    /// Without faults, and at once.
    pub fn undisturbed(toml: &str, num_workers: usize) -> Scenario {
        Scenario {
            jobs: vec![toml.into()],
            later: Vec::new(),
            is_pool: false,
            num_coordinators: 1,
            num_places: num_workers,
            num_workers,
            step_time: MS,
            faults: Vec::new(),
            percent_restarts: 0,
            percent_unable: 0,
            per_host: 4,
            is_long: false,
            has_pins: false,
        }
    }

    /// All jobs optimize policies: of two steps an iteration, or of three.
    pub fn optimize_policies(&mut self) {
        let all = self.jobs.iter_mut().chain(self.later.iter_mut().map(|(_, file)| file));
        for (n, file) in all.enumerate() {
            *file = policy_job(file, 2 + n as u64 % 2);
        }
    }

    pub fn host_of(&self, n: usize) -> String {
        format!("host-{}", n / self.per_host)
    }
}

fn job_file(name: &str, shape: (usize, usize, usize), steps: u64, priority: i32, random: &mut Random) -> String {
    let (tp, pp, dp) = shape;
    let interval_steps = random.pick(&[0, 0, 1, 3, 4, 5]).expect("there are some");
    let interval_s = random.pick(&[0, 2, 600]).expect("there are some");
    let redundancy = !random.percent(8);
    let min_dp = if random.percent(15) { dp } else { 1 };
    // Of those that others may take workers from some can spare a part.
    let min_dp = if random.percent(15) { dp.div_ceil(2) } else { min_dp };
    let keep = random.between(1, 3);
    // Not drawn: it follows from what is.
    let keep_every_steps = if keep == 1 { 2 * interval_steps } else { 0 };
    format!(
        "name = \"{name}\"\nsteps = {steps}\npriority = {priority}\nseed = {}\n[shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n\
         [model]\nlayers = 2\nd_model = 4\nheads = 2\nkv_heads = 2\nhead_dim = 2\nexperts = 2\nff = 2\nseq = 4\nvocab = 256\n\
         [batch]\nmicro_batch = 1\nglobal = {}\n[data]\npath = {:?}\n\
         [checkpoint]\ninterval_steps = {interval_steps}\ninterval_s = {interval_s}\nkeep = {keep}\nkeep_every_steps = {keep_every_steps}\n\
         [fault_tolerance]\nredundancy = {redundancy}\nmin_dp = {min_dp}\n",
        random.below(3),
        2 * dp,
        crate::text::folder().join("text"),
    )
}

/// The same job on prompts. Its shape stays: what a replica writes depends on what else it writes, as on the toy device rows are not independent.
fn policy_job(file: &str, epochs: u64) -> String {
    let plain = toroid_torus::job::parse(file).expect("a job");
    let whole = |steps: u64| steps.next_multiple_of(epochs);
    let prompts = crate::text::folder().join("prompts.tokens");
    let ppo = format!(
        "kind = \"ppo\"\nsteps = {epochs}\n[data]\npath = {prompts:?}\n[ppo]\nepochs = {epochs}\nmax_tokens = 3\nstop_token = 7\nside_by_side = 2\n\
         kl_target = 1.0\nkl_horizon = 20.0\nform = {{ tokens = [1, 2, 3] }}\n"
    );
    let policy = toroid_torus::job::parse(&ppo).expect("a job");
    let mut spec = plain.clone();
    (spec.kind, spec.ppo, spec.data, spec.eval) = (policy.kind, policy.ppo, policy.data, policy.eval);
    spec.model = toroid_torus::model::ModelConfig { seq: 6, output: policy.model.output, ..plain.model };
    spec.data.stride = spec.model.seq;
    spec.steps = whole(spec.steps);
    spec.checkpoint.interval_steps = whole(spec.checkpoint.interval_steps);
    spec.checkpoint.keep_every_steps = whole(spec.checkpoint.keep_every_steps);
    spec.fault_tolerance.min_dp = spec.shape.dp();
    spec.to_toml()
}

/// Reasons for which a coordinator may give a job up when too much goes wrong at one place.
pub fn may_give_up(reason: &str) -> bool {
    // Where all who have places lack the data nobody can tell that others would not.
    [
        "cannot go on: cannot prepare the data",
        "times in a row",
        "times without a new step",
        "were lost one after the other",
        "in 3 tries",
    ]
    .iter()
    .any(|known| reason.contains(known))
}
