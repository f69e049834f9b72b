//! The reference figures on every shape, gradients of every tensor included: one trainer a thread, links over TCP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use toroid_proto::StepRecord;
use toroid_session::{Assignment, Claim, PeerAddr};
use toroid_testkit::formula::{self, SHAPES};
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, Rank};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::owner::{Owner, OwnerId};

use super::train::connect;
use super::{Environment, Job, Shared, ppo as ppo_of_job};
use crate::comm::{Fence, LinkChoice, Links, Listener};
use crate::device::{Buffer, CpuDevice, Device};

mod halt;
mod heal;
mod ppo;
mod publish;
mod replay;
mod schedules;
mod teach;
mod text;
mod work;

fn figures() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/tiny.json");
    serde_json::from_str(&std::fs::read_to_string(file).expect("the figures are in the repository"))
        .expect("valid JSON")
}

struct Inputs {
    dir: tempfile::TempDir,
    weights: PathBuf,
    text: PathBuf,
}

fn inputs(figures: &Value) -> Inputs {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (weights, text) = (dir.path().join("formula.safetensors"), dir.path().join("batch.txt"));
    let tensors: Vec<(String, Vec<usize>)> = serde_json::from_value(figures["tensors"].clone()).expect("tensors");
    formula::write_weights(&tensors, &weights).expect("write the weights");
    std::fs::write(&text, formula::text(figures["text"].as_str().expect("text"))).expect("write the text");
    Inputs { dir, weights, text }
}

fn spec((tp, pp, dp): (usize, usize, usize), batch: &str, inputs: &Inputs) -> JobSpec {
    job::parse(&format!(
        "steps = 10\ninit_from = {:?}\n[shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n[batch]\n{batch}\n\
         [optimizer]\nlr = 1e-3\nwarmup = 4\nweight_decay_final = 0.1\n\
         [data]\npath = {:?}\norder = \"sequential\"\nstride = 7\nvalidation = 0.0\n",
        inputs.weights, inputs.text
    ))
    .expect("a valid job")
}

/// Loss terms summed over micro-batches, and by tensor the squared norm and the first two elements of the gradient.
#[derive(Default)]
struct Gradients {
    ce: f64,
    z: f64,
    balance: f64,
    squares: BTreeMap<String, f64>,
    first: BTreeMap<String, [f64; 2]>,
}

/// Connects all places of `spec`, has their parameters gathered, and returns what `of_place` gives at each, by rank.
fn each_place<R: Send + 'static>(
    spec: &JobSpec,
    dir: &Path,
    of_place: impl Fn(Job<CpuDevice>, &mut Links, &Environment) -> R + Copy + Send + 'static,
) -> Vec<R> {
    let shape: Shape = spec.shape;
    let listeners: Vec<Listener> = (0..shape.world())
        .map(|r| Listener::bind("127.0.0.1:0", &format!("w{r}"), LinkChoice::Auto).expect("listen on loopback"))
        .collect();
    let peers: BTreeMap<Rank, PeerAddr> = listeners
        .iter()
        .enumerate()
        .map(|(r, l)| {
            (Rank::new(r), PeerAddr { worker_id: format!("w{r}").into(), address: l.local_addr().to_string() })
        })
        .collect();
    let threads: Vec<_> = listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| {
            let assignment = Assignment {
                job_id: "reference".into(),
                epoch: Epoch::new(1),
                rank: Rank::new(rank),
                spec: Arc::new(spec.clone()),
                peers: Arc::new(peers.clone()),
                link_key: [7; 32],
                checkpoint_root: dir.join("checkpoints").to_string_lossy().into_owned(),
                owner: Owner::new(OwnerId::from_random([1; 16]), "reference", "reference", 0),
                claim: Claim::New,
                restore_step: None,
                heal: false,
            };
            let environment = Environment {
                roots: toroid_security::Roots::everywhere(),
                listener,
                shared: Arc::new(Shared::default()),
                cache_dir: dir.join("cache"),
                connect_timeout: Duration::from_secs(180),
            };
            std::thread::spawn(move || {
                let (job, mut links) = connected(assignment, &environment);
                (of_place(job, &mut links, &environment), links)
            })
        })
        .collect();
    // A link that closes is a lost peer for whoever still looks at it.
    let ended: Vec<(R, Links)> = threads.into_iter().map(|thread| thread.join().expect("a place failed")).collect();
    ended.into_iter().map(|(of_place, _)| of_place).collect()
}

/// The first `steps` steps of a job, as rank 0 records them.
fn train(spec: &JobSpec, dir: &Path, steps: u64) -> Vec<StepRecord> {
    let of_places = each_place(spec, dir, move |mut job, links, environment| {
        let mut records = Vec::new();
        for _ in 0..steps {
            records.extend(job.step(links, &environment.shared).expect("make a step"));
            job.passes.start_gather(links, &environment.shared, job.shards.own()).expect("gather the parameters");
        }
        job.passes.finish_gather(links).expect("gather the parameters");
        links.flush().expect("send what others wait for");
        records
    });
    of_places.into_iter().flatten().collect()
}

fn connected(assignment: Assignment, environment: &Environment) -> (Job<CpuDevice>, Links) {
    let device = CpuDevice::new(1);
    let mut job = Job::prepare(&device, environment, assignment, Fence::new().expect("an eventfd"), None)
        .expect("prepare the place");
    let mut links = None;
    connect(&job, None, &mut links, environment).expect("connect the place");
    let mut links = links.expect("connected");
    job.passes.start_gather(&mut links, &environment.shared, job.shards.own()).expect("gather the parameters");
    (job, links)
}

/// Forward, backward and reduce-scatter of the first step on all places of `spec`.
fn gradients(spec: &JobSpec, dir: &Path) -> Gradients {
    let mut all = Gradients::default();
    for one in each_place(spec, dir, of_place) {
        all.ce += one.ce;
        all.z += one.z;
        all.balance += one.balance;
        for (tensor, squares) in one.squares {
            *all.squares.entry(tensor).or_default() += squares;
        }
        all.first.extend(one.first);
    }
    all
}

fn of_place(mut job: Job<CpuDevice>, links: &mut Links, environment: &Environment) -> Gradients {
    let (device, tp_rank) = (job.passes.device().clone(), job.assignment.place().tp);
    let sums = job.accumulate(links, &environment.shared).expect("make the step's gradients");
    links.flush().expect("send what the other stages wait for");
    let mut out = Gradients::default();
    if tp_rank == 0 {
        (out.ce, out.z, out.balance) = (sums.ce, sums.z, sums.balance);
    }
    let partition = &job.shards.own().partition;
    for (slice, cut) in partition.cut(job.shards.own().range.clone()).filter(|(s, _)| partition.counts(s)) {
        let mut values = vec![0.0; cut.len()];
        device.read(job.passes.grads().view(slice.offset + cut.start..slice.offset + cut.end), &mut values);
        *out.squares.entry(slice.tensor.clone()).or_default() +=
            values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        // The first elements of the tensor are those of the slice at the first TP rank, unless a shard is cut between them.
        if tp_rank == 0 && cut.start == 0 && cut.len() > 1 {
            out.first.insert(slice.tensor.clone(), [f64::from(values[0]), f64::from(values[1])]);
        }
    }
    out
}

fn check_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    let relative = (found - expected).abs() / expected.abs().max(1e-12);
    assert!(relative <= tolerance, "{what}: found {found}, expected {expected}, off by {relative:.2e}");
}

/// One batch of four on every replica: loss terms to 1e-6, the gradient norm of every tensor to 1e-5.
#[test]
fn gradients_of_every_tensor_meet_the_reference_on_every_shape() {
    let figures = figures();
    let reference = &figures["f64"];
    let inputs = inputs(&figures);
    let sum = |key: &str| reference[key].as_array().expect(key).iter().map(|v| v.as_f64().expect(key)).sum::<f64>();
    for shape in SHAPES {
        let spec = spec(shape, "micro_batch = 4\nmicro_batches = 1", &inputs);
        let found = gradients(&spec, inputs.dir.path());
        let replicas = shape.2 as f64;
        check_close(&format!("{shape:?} ce"), found.ce / replicas, reference["ce"].as_f64().expect("ce"), 1e-6);
        check_close(&format!("{shape:?} z"), found.z / replicas, sum("z_per_layer"), 1e-6);
        check_close(&format!("{shape:?} balance"), found.balance / replicas, sum("lb_per_layer"), 1e-6);
        let norms = reference["grad_norms"].as_object().expect("grad_norms");
        assert_eq!(found.squares.len(), norms.len(), "{shape:?}: not every tensor has a gradient");
        for (tensor, norm) in norms {
            let what = format!("{shape:?} gradient of {tensor}");
            check_close(&what, found.squares[tensor].sqrt(), norm.as_f64().expect("a norm"), 1e-5);
        }
        for (tensor, first) in &found.first {
            let norm = found.squares[tensor].sqrt();
            for i in 0..2 {
                let expected = reference["grad_first2"][tensor][i].as_f64().expect("an element");
                assert!((first[i] - expected).abs() <= 1e-5 * norm, "{shape:?} {tensor}[{i}]: {} {expected}", first[i]);
            }
        }
        let total: f64 = found.squares.values().sum();
        check_close(&format!("{shape:?} norm"), total.sqrt(), reference["grad_norm"].as_f64().expect("norm"), 1e-5);
    }
}

/// The same batch as two micro-batches of two, accumulated by one replica or dealt to two.
#[test]
fn two_micro_batches_meet_the_reference_wherever_they_are_computed() {
    let figures = figures();
    let reference = &figures["f64"];
    let inputs = inputs(&figures);
    let losses: Vec<f64> =
        reference["accum2_losses"].as_array().expect("losses").iter().map(|v| v.as_f64().expect("loss")).collect();
    for shape in [(1, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2), (1, 4, 1)] {
        let spec = spec(shape, "micro_batch = 2\nglobal = 4", &inputs);
        let found = gradients(&spec, inputs.dir.path());
        let loss = (found.ce + spec.loss.z_coef * found.z + spec.loss.balance_coef * found.balance) / 2.0;
        check_close(&format!("{shape:?} loss"), loss, (losses[0] + losses[1]) / 2.0, 1e-6);
        let total: f64 = found.squares.values().sum();
        let norm = reference["accum2_grad_norm"].as_f64().expect("norm");
        check_close(&format!("{shape:?} norm"), total.sqrt(), norm, 1e-5);
    }
}

/// The only place of a job that trains on the text at `data`.
fn only_place(dir: &Path, data: &Path) -> (Assignment, Environment) {
    let spec = job::parse(&format!(
        "steps = 9\n[model]\nlayers = 1\nd_model = 16\nheads = 2\nkv_heads = 2\nhead_dim = 8\nexperts = 4\nff = 16\nseq = 16\n\
         [data]\npath = {data:?}\n"
    ))
    .expect("a valid job");
    let assignment = Assignment {
        job_id: "j".into(),
        epoch: Epoch::new(3),
        rank: Rank::ZERO,
        spec: Arc::new(spec),
        peers: Arc::default(),
        link_key: [1; 32],
        checkpoint_root: dir.join("checkpoints").to_string_lossy().into_owned(),
        owner: Owner::new(OwnerId::from_random([1; 16]), "j", "j", 0),
        claim: Claim::New,
        restore_step: None,
        heal: false,
    };
    let environment = Environment {
        roots: toroid_security::Roots::everywhere(),
        listener: Listener::bind("127.0.0.1:0", "w0", LinkChoice::Auto).expect("listen on loopback"),
        shared: Arc::new(Shared::default()),
        cache_dir: dir.join("cache"),
        connect_timeout: Duration::from_secs(180),
    };
    (assignment, environment)
}
