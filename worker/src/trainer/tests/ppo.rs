//! Proximal policy optimization: rollouts and updates at places that are connected, and that die.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use toroid_proto::PolicyStep;
use toroid_tokens::{BYTES_TOKENIZER, Document, dialogues_file_of};
use toroid_torus::ids::Step;

use super::ppo_of_job::carried::Carried;
use super::ppo_of_job::rollouts::{Answer, Rollouts, Said};
use super::*;

/// Two to nine tokens, the first always the same.
fn prompt_of(n: usize) -> Vec<u32> {
    std::iter::once(64).chain((0..1 + n * 5 % 8).map(|j| 97 + ((n * 7 + j * 3) % 26) as u32)).collect()
}

/// Prompts, each with an answer of digits that ends with a zero byte.
fn dialogues_of_digits() -> Vec<u8> {
    let one = |n: usize| {
        let prompt = prompt_of(n);
        let answer: Vec<u32> = (0..1 + n % 4).map(|j| 48 + ((n + j) % 10) as u32).chain([0]).collect();
        let trained: Vec<bool> = prompt.iter().map(|_| false).chain(answer.iter().map(|_| true)).collect();
        ([prompt, answer].concat(), trained)
    };
    let all: Vec<(Vec<u32>, Vec<bool>)> = (0..48).map(one).collect();
    let documents: Vec<Document<'_>> = all.iter().map(|(tokens, trained)| (&tokens[..], &trained[..])).collect();
    dialogues_file_of(&documents, 256, BYTES_TOKENIZER)
}

const MODEL: &str =
    "layers = 2\nd_model = 32\nhead_dim = 8\nff = 32\nseq = 24\nvocab = 256\nexperts = 4\nkv_heads = 4\n";
const PPO: &str = "epochs = 2\nminibatches = 2\nmax_tokens = 8\nstop_token = 0\nside_by_side = 3\nkl_target = 0.5\nkl_horizon = 40.0\n\
                   form = { tokens = [48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 101, 102, 103], max = 7 }\n";

/// `keys` are of the whole file.
fn policy_job((tp, pp, dp): (usize, usize, usize), dir: &Path, steps: u64, keys: &str, ppo: &str) -> JobSpec {
    let file = dir.join("prompts.tokens");
    std::fs::write(&file, dialogues_of_digits()).expect("write the data");
    job::parse(&format!(
        "kind = \"ppo\"\nsteps = {steps}\nseed = 3\n{keys}[model]\n{MODEL}[shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n\
         [batch]\nmicro_batch = 2\nglobal = 8\n[optimizer]\nlr = 1e-2\nwarmup = 2\n[data]\npath = {file:?}\n[ppo]\n{PPO}{ppo}"
    ))
    .expect("a valid job")
}

fn policy_of(record: &StepRecord) -> PolicyStep {
    record.policy.expect("a step of a policy")
}

/// P-1, and what must be so at the start: nothing has diverged yet, and nothing is clipped.
#[test]
fn at_the_first_minibatch_the_ratio_is_one_and_at_the_start_the_divergence_is_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for shape in [(1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1), (4, 1, 1), (1, 1, 3)] {
        let spec = policy_job(shape, dir.path(), 12, "", "");
        let curve = train(&spec, dir.path(), 12);
        assert_eq!(curve.len(), 12, "{shape:?}");
        for (n, record) in curve.iter().enumerate() {
            let policy = policy_of(record);
            // The first pass has two minibatches, of which the second is after an update.
            if n % 4 == 0 {
                let found = (policy.mean_ratio, policy.approx_kl, policy.clip_fraction);
                assert_eq!(found, (1.0, 0.0, 0.0), "{shape:?}, step {}", record.step);
            }
            assert!(policy.answer_tokens >= 1.0 && policy.answer_tokens <= 8.0, "{policy:?}");
            assert!(record.loss.is_finite() && record.grad_norm > 0.0 && !record.skipped, "{record:?}");
            let num = record.trained_tokens.expect("the answers' tokens");
            assert!((8..=64).contains(&num), "{shape:?}: {num} tokens of eight answers");
        }
        assert_eq!(policy_of(&curve[0]).kl, 0.0, "{shape:?}");
        assert!(policy_of(&curve[1]).mean_ratio != 1.0 && policy_of(&curve[4]).kl != 0.0, "{shape:?}: it learns");
        // Below the target at first, the coefficient falls by a fifth of 16 / 40; it is that of the whole iteration.
        let coefs: Vec<f64> = curve.iter().map(|record| policy_of(record).kl_coef).collect();
        assert_eq!(coefs[..4], [0.05; 4], "{shape:?}");
        assert!((coefs[4] - 0.05 * (1.0 - 0.2 * 0.4)).abs() < 1e-15 && coefs[4..8] == [coefs[4]; 4], "{coefs:?}");
    }
}

/// Split backwards, activations that are made again, bf16 products: each has the same first ratio, and learns.
#[test]
fn a_policy_has_every_way_to_compute_a_step() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let plain = train(&policy_job((1, 2, 1), dir.path(), 4, "", ""), dir.path(), 4);
    for keys in ["recompute = true\n", "pipeline = { schedule = 'zero-bubble' }\n", "products = 'bf16'\n"] {
        let curve = train(&policy_job((1, 2, 1), dir.path(), 4, keys, ""), dir.path(), 4);
        assert_eq!(policy_of(&curve[0]).mean_ratio, 1.0, "{keys}");
        let losses = |curve: &[StepRecord]| curve.iter().map(|record| record.loss).collect::<Vec<_>>();
        assert_eq!(losses(&curve) == losses(&plain), !keys.contains("bf16"), "{keys}: {:?}", losses(&curve));
    }
}

/// Fewer replicas and more again, within an iteration: the answers stay, and the steps are those of the undisturbed run but for the order of sums.
#[test]
fn rollouts_outlive_another_number_of_replicas() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let spec = policy_job((1, 1, 2), dir.path(), 12, "", "");
    let undisturbed = heal::Cluster::start(&spec, dir.path()).finish();
    let mut cluster = heal::Cluster::start(&spec, dir.path());
    cluster.wait_for(0, 5);
    cluster.resize(&[1].into(), 1);
    cluster.wait_for(0, 7);
    cluster.resize(&[].into(), 2);
    let curve = cluster.finish();
    assert_eq!(curve.len(), undisturbed.len());
    for (step, record) in &curve {
        let (found, expected) = (policy_of(record), policy_of(&undisturbed[step]));
        if *step <= 8 {
            assert_eq!((found.score, found.answer_tokens), (expected.score, expected.answer_tokens), "step {step}");
            assert!((record.loss - undisturbed[step].loss).abs() < 1e-3, "step {step}: {record:?}");
        }
    }
}

/// What is written does not depend on how the model is split, as far as sums in another order give the same choice; on the same shape it is the
/// same bits.
#[test]
fn answers_are_the_same_on_every_shape_and_in_every_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let figures = |shape, keys: &str| {
        let spec = policy_job(shape, dir.path(), 4, "", keys);
        train(&spec, dir.path(), 1)
            .iter()
            .map(policy_of)
            .map(|p| (p.score, p.answer_tokens, p.stopped))
            .collect::<Vec<_>>()
    };
    let alone = figures((1, 1, 1), "");
    for shape in [(2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (1, 2, 2)] {
        assert_eq!(figures(shape, ""), alone, "{shape:?}");
    }
    for num in [1, 2, 16] {
        let spec = policy_job((2, 1, 1), dir.path(), 4, "", "");
        let spec = JobSpec { ppo: spec.ppo.clone().map(|ppo| job::PpoConfig { side_by_side: num, ..ppo }), ..spec };
        let curve = train(&spec, dir.path(), 1);
        let found = curve.iter().map(policy_of).map(|p| (p.score, p.answer_tokens, p.stopped));
        assert_eq!(found.collect::<Vec<_>>(), alone, "{num} side by side");
    }
    let spec = policy_job((2, 1, 2), dir.path(), 8, "", "");
    let without_times = |curve: Vec<StepRecord>| {
        let plain = |r: StepRecord| StepRecord { step_s: 0.0, tokens_per_s: 0.0, hidden_s: 0.0, exposed_s: 0.0, ..r };
        curve.into_iter().map(plain).collect::<Vec<_>>()
    };
    assert_eq!(
        without_times(train(&spec, dir.path(), 8)),
        without_times(train(&spec, dir.path(), 8)),
        "the same run twice"
    );
}

/// P-2: each prompt of a pass over the data is answered once, whichever replica has it.
#[test]
fn every_prompt_is_answered_once() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for shape in [(1, 1, 1), (1, 1, 3), (1, 2, 2)] {
        let spec = policy_job(shape, dir.path(), 12, "", "");
        // Three iterations of sixteen answers: all 48 dialogues.
        let all = each_place(&spec, dir.path(), move |mut job, links, environment| {
            let (spec, mut prompts) = (Arc::clone(&job.assignment.spec), Vec::new());
            job.passes.finish_gather(links).expect("gather the parameters");
            for first in [0, 4, 8] {
                job.committed = Step::new(first);
                let answers = job.write_answers(links, &environment.shared, &spec).expect("write the answers");
                prompts.extend(answers.into_iter().map(|answer| (first, answer.number, answer.prompt)));
            }
            links.flush().expect("send what others wait for");
            (job.assignment.place(), prompts)
        });
        let of_last = all.into_iter().filter(|(place, _)| place.pp + 1 == spec.shape.pp());
        let mut prompts: Vec<(u64, u64, Vec<u32>)> = of_last.flat_map(|(_, prompts)| prompts).collect();
        prompts.sort();
        assert_eq!(prompts.len(), 48, "{shape:?}");
        let mut texts: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        prompts.into_iter().for_each(|(.., text)| *texts.entry(text).or_default() += 1);
        let mut expected: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        (0..48).map(prompt_of).for_each(|text| *expected.entry(text).or_default() += 1);
        assert_eq!(texts, expected, "{shape:?}");
    }
}

/// T-4: whoever dies, in a rollout, between minibatches or after the last: the curve is that of the undisturbed run, also where scores of a model
/// are measured by those of the first iteration.
#[test]
fn t4_deaths_while_a_policy_is_optimized_leave_no_trace() {
    for (shape, has_model) in [((2, 1, 2), true), ((1, 2, 2), false)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model =
            if has_model { format!("reward_model = {:?}\n", first_reward_model(dir.path())) } else { String::new() };
        let spec = policy_job(shape, dir.path(), 16, "", &model);
        let undisturbed = heal::Cluster::start(&spec, dir.path()).finish();
        assert_eq!(undisturbed.len(), 16);
        let mut cluster = heal::Cluster::start(&spec, dir.path());
        // The second iteration begins with step 5.
        for (rank, step) in [(0, 1), (1, 4), (2, 6), (3, 7), (0, 12)] {
            cluster.wait_for((rank + 1) % 4, step);
            cluster.replace(&[rank].into());
        }
        assert_eq!(cluster.finish(), undisturbed, "{shape:?}");
    }
}

/// Dialogues with one of 26 letters, answered by digits where `is_digits` says so, else by letters.
fn questions(num: usize, is_digits: impl Fn(usize) -> bool) -> Vec<u8> {
    let one = |n: usize| {
        let prompt = [65 + (n % 26) as u32, 63];
        let first = if is_digits(n) { 48 } else { 97 };
        let answer: Vec<u32> = (0..2).map(|j| first + ((n * 3 + j) % 10) as u32).chain([0]).collect();
        ([&prompt[..], &answer].concat(), [&[false; 2][..], &[true; 3]].concat())
    };
    let all: Vec<(Vec<u32>, Vec<bool>)> = (0..num).map(one).collect();
    let documents: Vec<Document<'_>> = all.iter().map(|(tokens, trained)| (&tokens[..], &trained[..])).collect();
    dialogues_file_of(&documents, 256, BYTES_TOKENIZER)
}

type Weights = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Of the only place of a job, by tensor.
fn weights_of(job: &Job<CpuDevice>) -> Weights {
    let (device, own) = (job.passes.device(), job.shards.own());
    let mut values = vec![0.0; own.range.len()];
    device.read(own.param.all(), &mut values);
    let bytes = |range: std::ops::Range<usize>| bytemuck::cast_slice(&values[range]).to_vec();
    let slices = own.partition.slices.iter();
    slices.map(|s| (s.tensor.clone(), s.shape.clone(), bytes(s.offset..s.offset + s.len))).collect()
}

fn write_weights(weights: &Weights, to: &Path) {
    let views = weights.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, to).expect("write the weights");
}

/// Of the eight answers to each prompt that the model begins with, one is of digits: what is never written cannot be rewarded. What is rewarded
/// becomes the rule, and the divergence stays bounded.
#[test]
fn a_policy_learns_the_form_that_is_rewarded() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (data, base) = (dir.path().join("sft.tokens"), dir.path().join("base.safetensors"));
    std::fs::write(&data, questions(208, |n| n / 26 == 3)).expect("write the data");
    let taught = job::parse(&format!(
        "kind = \"sft\"\nsteps = 160\n[model]\n{MODEL}[batch]\nmicro_batch = 8\nglobal = 16\n[optimizer]\nlr = 1e-2\nwarmup = 10\n\
         [data]\npath = {data:?}\nvalidation = 0.0\n"
    ))
    .expect("a valid job");
    let steps = taught.steps;
    let weights = each_place(&taught, dir.path(), move |mut job, links, environment| {
        for _ in 0..steps {
            job.step(links, &environment.shared).expect("make a step");
            job.passes.start_gather(links, &environment.shared, job.shards.own()).expect("gather the parameters");
        }
        weights_of(&job)
    });
    write_weights(&weights[0], &base);
    let spec = job::parse(&format!(
        "kind = \"ppo\"\nsteps = 160\ninit_from = {base:?}\n[model]\n{MODEL}[batch]\nmicro_batch = 8\nglobal = 32\n\
         [optimizer]\nlr = 2e-3\nwarmup = 4\nweight_decay = 0.0\n[data]\npath = {data:?}\n\
         [ppo]\nepochs = 4\nmax_tokens = 6\nstop_token = 0\nside_by_side = 32\ntemperature = 1.0\n\
         form = {{ tokens = [48, 49, 50, 51, 52, 53, 54, 55, 56, 57] }}\n"
    ))
    .expect("a valid job");
    let curve = train(&spec, dir.path(), spec.steps);
    let scores: Vec<f64> = curve.iter().map(|record| policy_of(record).score).collect();
    let last = policy_of(curve.last().expect("steps"));
    // Of three iterations each.
    let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
    let (before, after) = (mean(&scores[..12]), mean(&scores[scores.len() - 12..]));
    for record in curve.iter().step_by(4) {
        let PolicyStep { score, kl, stopped, answer_tokens, .. } = policy_of(record);
        println!("step {}: score {score:.3}, kl {kl:.3}, stopped {stopped:.2}, {answer_tokens:.1} tokens", record.step);
    }
    // Of 96 answers each.
    assert!(before < 0.3 && after > 0.8, "from {before} to {after}: {scores:?}");
    assert!(last.stopped > 0.9 && last.kl > 0.0 && last.kl < 8.0, "{last:?}");
}

/// A job that learns from pairs of these texts, each with what of it is the answer.
fn reward_job(texts: &[(Vec<u32>, Vec<bool>)], dir: &Path, keys: &str) -> JobSpec {
    let pairs = dir.join("pairs.tokens");
    let document = |n: usize| -> Document<'_> { (&texts[n].0[..], &texts[n].1[..]) };
    let all: Vec<([Document<'_>; 2], f32)> =
        (0..texts.len() / 2).map(|n| ([document(2 * n), document(2 * n + 1)], 0.0)).collect();
    std::fs::write(&pairs, toroid_tokens::preferences_file_of(&all, 256, BYTES_TOKENIZER)).expect("write the pairs");
    job::parse(&format!(
        "kind = \"reward\"\nsteps = 4\nseed = 11\n{keys}[model]\n{MODEL}[batch]\nmicro_batch = 4\nglobal = 8\n\
         [data]\npath = {pairs:?}\nvalidation = 0.0\norder = \"sequential\"\n"
    ))
    .expect("a valid job")
}

/// The weights of a reward model as it begins.
fn first_reward_model(dir: &Path) -> PathBuf {
    let weights = dir.join("reward.safetensors");
    // Some texts, so that there are weights at all.
    let some: Vec<_> = (0..32).map(|n| (vec![65, 66, 48 + n % 2, 0], vec![false, false, true, true])).collect();
    write_weights(&each_place(&reward_job(&some, dir, ""), dir, |job, _, _| weights_of(&job))[0], &weights);
    weights
}

/// The score of an answer is what the reward model gives to the same text: the loss of pairs of answers, as a job of kind reward has it, says so.
#[test]
fn answers_are_judged_as_the_reward_model_does() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let weights = first_reward_model(dir.path());
    let judged = |shape| {
        let spec = policy_job(shape, dir.path(), 4, "", &format!("reward_model = {weights:?}\n"));
        let all = each_place(&spec, dir.path(), |mut job, links, environment| {
            job.roll_out(links, &environment.shared).expect("make rollouts");
            links.flush().expect("send what others wait for");
            let spec = Arc::clone(&job.assignment.spec);
            let policy = job.policy.as_ref().and_then(|policy| policy.rollouts()).expect("rollouts");
            (0..16)
                .map(|n| {
                    let prompt = job.samples.prompt(&spec, Step::ZERO, n);
                    let (answer, score) = policy.text(n);
                    let text = [prompt, answer].concat();
                    let trained = (0..text.len()).map(|at| at > 0).collect();
                    ((text, trained), score)
                })
                .collect::<Vec<_>>()
        });
        assert!(all.iter().all(|place| *place == all[0]), "{shape:?}: all places have the same");
        all[0].clone()
    };
    let alone = judged((1, 1, 1));
    let texts: Vec<(Vec<u32>, Vec<bool>)> = alone.iter().map(|(text, _)| text.clone()).collect();
    let spec = reward_job(&texts, dir.path(), &format!("init_from = {weights:?}\n"));
    let record = each_place(&spec, dir.path(), |mut job, links, environment| {
        job.step(links, &environment.shared).expect("make a step").expect("the only place has the record")
    });
    let losses = alone.chunks_exact(2).map(|pair| (1.0 + (pair[1].1 - pair[0].1).exp()).ln());
    check_close("the mean loss of eight pairs", record[0].ce, losses.sum::<f64>() / 8.0, 1e-5);
    assert!(alone.iter().any(|(_, score)| score.abs() > 0.01), "scores that say something");
    for shape in [(2, 1, 1), (1, 2, 2), (2, 2, 1)] {
        for ((text, score), (expected, of)) in judged(shape).iter().zip(&alone) {
            assert_eq!(text, expected, "{shape:?}");
            assert!((score - of).abs() < 1e-4, "{shape:?}: {score} instead of {of}");
        }
    }
}

/// What `bench/peers/ppo.py` has.
static REFERENCE: LazyLock<Value> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/ppo.json");
    serde_json::from_str(&std::fs::read_to_string(file).expect("the figures are in the repository"))
        .expect("valid JSON")
});

const REFERENCE_SHAPES: [(usize, usize, usize); 4] = [(1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1)];

/// Numbers of answer `n`.
fn of_answer(key: &str, n: usize) -> Vec<f64> {
    serde_json::from_value(REFERENCE[key][n].clone()).unwrap_or_else(|_| panic!("numbers of {key}"))
}

fn reference_answer(n: usize) -> Answer {
    let text: Vec<u32> = serde_json::from_value(REFERENCE["texts"][n].clone()).expect("a text");
    let (prompt, tokens) = text.split_at(REFERENCE["prompts"][n].as_u64().expect("a length") as usize);
    let has_stop = REFERENCE["stopped"][n].as_bool().expect("whether it has one");
    Answer { number: n as u64, prompt: prompt.to_vec(), tokens: tokens.to_vec(), has_stop }
}

/// The four answers with what was said of them when they were sampled.
fn reference_rollouts(spec: &JobSpec, first: Step) -> Rollouts {
    let mut numbers = vec![0.0; Rollouts::len(spec)];
    for n in 0..4 {
        let of = |key: &str| of_answer(key, n).into_iter().map(|x| x as f32).collect();
        let score = REFERENCE["scores"][n].as_f64().expect("a score") as f32;
        let said = Said { logps: of("old_logp"), values: of("old_value"), reference: of("ref_logp"), score };
        Rollouts::put(spec, &mut numbers, &reference_answer(n), &said);
    }
    Rollouts::new(spec, first, Carried { kl_coef: 0.05, reward_scale: None }, numbers)
}

/// Weights of two or more dims times `factor`, rounded to f32.
fn scaled(from: &Path, factor: f64, to: &Path) {
    let bytes = std::fs::read(from).expect("read the weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("weights");
    let scaled = |shape: &[usize], data: &[u8]| -> Vec<u8> {
        let factor = if shape.len() >= 2 { factor } else { 1.0 };
        let values = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
        values.flat_map(|x| ((f64::from(x) * factor) as f32).to_le_bytes()).collect()
    };
    let all =
        tensors.iter().map(|(name, view)| (name.into(), view.shape().to_vec(), scaled(view.shape(), view.data())));
    write_weights(&all.collect(), to);
}

/// A job whose data are the four texts, and whose weights are the formula's.
fn reference_job((tp, pp, dp): (usize, usize, usize), dir: &Path) -> JobSpec {
    let tiny = figures();
    let (data, weights, reference) =
        (dir.join("four.tokens"), dir.join("policy.safetensors"), dir.join("reference.safetensors"));
    let texts: Vec<(Vec<u32>, Vec<bool>)> = (0..4)
        .map(|n| {
            let Answer { prompt, tokens, .. } = reference_answer(n);
            let trained = [vec![false; prompt.len()], vec![true; tokens.len()]].concat();
            ([prompt, tokens].concat(), trained)
        })
        .collect();
    let documents: Vec<Document<'_>> = texts.iter().map(|(tokens, trained)| (&tokens[..], &trained[..])).collect();
    std::fs::write(&data, dialogues_file_of(&documents, 256, BYTES_TOKENIZER)).expect("write the data");
    let mut tensors: Vec<(String, Vec<usize>)> = serde_json::from_value(tiny["tensors"].clone()).expect("tensors");
    tensors.push(("value.weight".into(), vec![1, tensors.last().expect("the head").1[1]]));
    formula::write_weights(&tensors, &weights).expect("write the weights");
    scaled(&weights, REFERENCE["reference_factor"].as_f64().expect("a factor"), &reference);
    // A reward model is named so that scores count; what it would say is in the figures.
    let mut of_reward = tensors;
    of_reward.truncate(of_reward.len() - 2);
    of_reward.push(("score.weight".into(), vec![1, 128]));
    let reward = dir.join("reward.safetensors");
    formula::write_weights(&of_reward, &reward).expect("write the weights");
    job::parse(&format!(
        "kind = \"ppo\"\nsteps = 10\ninit_from = {weights:?}\n[shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n\
         [batch]\nmicro_batch = 2\nglobal = 4\n[optimizer]\nlr = 1e-3\nwarmup = 4\nweight_decay_final = 0.1\n\
         [data]\npath = {data:?}\norder = \"sequential\"\n\
         [ppo]\nepochs = 1\nmax_tokens = 20\nstop_token = 0\nreference = {reference:?}\nreward_model = {reward:?}\n\
         reward_mean = 0.0\nreward_std = 1.0\n"
    ))
    .expect("a valid job")
}

#[test]
fn advantages_and_returns_meet_the_reference() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let found = reference_rollouts(&reference_job((1, 1, 1), dir.path()), Step::ZERO);
    for n in 0..4 {
        let (advantages, returns) = found.lesson(n as u64);
        for (what, found) in [("whitened", advantages), ("returns", returns)] {
            let expected = of_answer(what, n);
            assert_eq!(found.len(), expected.len(), "{what} of answer {n}");
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() < 1e-5, "{what} of answer {n}: {a} instead of {b}");
            }
        }
    }
    let kl = |n| of_answer("old_logp", n).iter().zip(of_answer("ref_logp", n)).map(|(a, b)| a - b).sum::<f64>();
    assert!((found.figures().kl - (0..4).map(kl).sum::<f64>() / 4.0).abs() < 1e-5, "{:?}", found.figures());
}

#[test]
fn what_is_said_of_answers_meets_the_reference_on_every_shape() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for shape in REFERENCE_SHAPES {
        let spec = reference_job(shape, dir.path());
        let all = each_place(&spec, dir.path(), |mut job, links, environment| {
            let spec = Arc::clone(&job.assignment.spec);
            let (shape, dp) = (spec.shape, job.assignment.place().dp);
            let own: Vec<Answer> = if shape.dp() == 1 {
                (0..4).map(reference_answer).collect()
            } else {
                (2 * dp..2 * dp + 2).map(reference_answer).collect()
            };
            let mut numbers = vec![0.0; Rollouts::len(&spec)];
            job.passes.finish_gather(links).expect("gather the parameters");
            job.score_answers(links, &environment.shared, &spec, &own, &mut numbers).expect("score the answers");
            links.flush().expect("send what others wait for");
            numbers
        });
        let numbers: Vec<f64> = (0..all[0].len()).map(|i| all.iter().map(|place| place[i]).sum()).collect();
        for (n, of) in numbers.chunks_exact(3 + 4 * 20).enumerate() {
            for (part, what) in [(1, "logp"), (2, "value"), (3, "ref_logp")] {
                for (found, expected) in of[3 + part * 20..].iter().zip(of_answer(what, n)) {
                    assert!(
                        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
                        "{shape:?}, {what} of {n}: {found}, {expected}"
                    );
                }
            }
        }
    }
}

/// Losses, gradients of every tensor, and four updates.
#[test]
fn a_policy_meets_the_reference_on_every_shape() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for shape in REFERENCE_SHAPES {
        let spec = reference_job(shape, dir.path());
        let of_places = each_place(&spec, dir.path(), |mut job, links, environment| {
            let spec = Arc::clone(&job.assignment.spec);
            let policy = job.policy.as_mut().expect("a policy");
            policy.set_rollouts(reference_rollouts(&spec, Step::ZERO));
            super::of_place(job, links, environment)
        });
        let mut squares: BTreeMap<String, f64> = BTreeMap::new();
        for (tensor, found) in of_places.iter().flat_map(|place| &place.squares) {
            *squares.entry(tensor.clone()).or_default() += found;
        }
        let expected = REFERENCE["gradients"].as_object().expect("gradients");
        assert_eq!(squares.len(), expected.len(), "{shape:?}: not every tensor has a gradient");
        for (tensor, expected) in expected {
            let what = format!("{shape:?} gradient of {tensor}");
            let norm = expected["norm"].as_f64().expect("a norm");
            check_close(&what, squares[tensor].sqrt(), norm, 1e-5);
            for first in of_places.iter().filter_map(|place| place.first.get(tensor)) {
                for (i, found) in first.iter().enumerate() {
                    let expected = expected["first"][i].as_f64().expect("an element");
                    assert!((found - expected).abs() <= 1e-5 * norm, "{what} [{i}]: {found}, expected {expected}");
                }
            }
        }
        let curve = each_place(&spec, dir.path(), |mut job, links, environment| {
            let spec = Arc::clone(&job.assignment.spec);
            let mut records = Vec::new();
            for step in 0..4 {
                job.policy.as_mut().expect("a policy").set_rollouts(reference_rollouts(&spec, Step::new(step)));
                records.extend(job.update(links, &environment.shared).expect("make a step"));
                job.passes.start_gather(links, &environment.shared, job.shards.own()).expect("gather the parameters");
            }
            job.passes.finish_gather(links).expect("gather the parameters");
            links.flush().expect("send what others wait for");
            records
        })
        .concat();
        let updates = REFERENCE["updates"].as_array().expect("updates");
        assert_eq!(curve.len(), updates.len());
        for (record, expected) in curve.iter().zip(updates) {
            let policy = policy_of(record);
            for (key, found, tolerance) in [
                ("loss", record.loss, 1e-5),
                ("policy_loss", policy.policy_loss, 1e-5),
                ("value_loss", policy.value_loss, 1e-5),
                ("z", record.z_loss, 1e-4),
                ("lb", record.balance_loss, 1e-4),
                ("clipped", policy.clip_fraction, 1e-12),
                ("approx_kl", policy.approx_kl, 1e-5),
                ("mean_ratio", policy.mean_ratio, 1e-5),
                ("gnorm", record.grad_norm, 1e-4),
            ] {
                let number = expected[key].as_f64().unwrap_or_else(|| panic!("{key} is in the figures"));
                let off = (found - number).abs();
                assert!(
                    off <= tolerance * number.abs().max(1.0),
                    "{shape:?}, step {}, {key}: {found}, {number}",
                    record.step
                );
            }
        }
    }
}
