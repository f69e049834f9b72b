//! Fine-tuning on dialogues and a reward model give the figures of an independent implementation (`bench/peers/teach.py`) on every shape, which
//! knows neither padding nor samples that are shared.

use toroid_tokens::{BYTES_TOKENIZER, Document, dialogues_file_of, preferences_file_of};

use super::*;

const SHAPES: [(usize, usize, usize); 4] = [(1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1)];

fn reference() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/teach.json");
    serde_json::from_str(&std::fs::read_to_string(file).expect("the figures are in the repository"))
        .expect("valid JSON")
}

/// The tokens of the sentence from `at` on, again and again.
fn tokens(sentence: &str, at: usize, num: usize) -> Vec<u32> {
    sentence.bytes().cycle().skip(at % sentence.len()).take(num).map(u32::from).collect()
}

fn lengths(figures: &Value) -> Vec<usize> {
    figures["lengths"].as_array().expect("lengths").iter().map(|n| n.as_u64().expect("a number") as usize).collect()
}

/// Turns of nine tokens, every other one an answer's.
fn dialogues(sentence: &str, lengths: &[usize]) -> Vec<u8> {
    let one = |(b, num): (usize, &usize)| {
        let trained: Vec<bool> = (0..*num).map(|j| j > 0 && (j / 9 + b) % 2 == 1).collect();
        (tokens(sentence, 7 * b, *num), trained)
    };
    let all: Vec<(Vec<u32>, Vec<bool>)> = lengths.iter().enumerate().map(one).collect();
    let documents: Vec<Document<'_>> = all.iter().map(|(tokens, trained)| (&tokens[..], &trained[..])).collect();
    dialogues_file_of(&documents, 256, BYTES_TOKENIZER)
}

/// Of each pair the tokens of the prompt, of the chosen and of the rejected answer.
fn pairs(sentence: &str, figures: &Value) -> Vec<u8> {
    let mut all = Vec::new();
    for (b, (lengths, margin)) in figures["lengths"]
        .as_array()
        .expect("lengths")
        .iter()
        .zip(figures["margins"].as_array().expect("margins"))
        .enumerate()
    {
        let [prompt, chosen, rejected] = [0, 1, 2].map(|i| lengths[i].as_u64().expect("a length") as usize);
        let answer = |at: usize, num: usize| {
            let whole = [tokens(sentence, 7 * b, prompt), tokens(sentence, at, num)].concat();
            let trained: Vec<bool> = (0..whole.len()).map(|j| j >= prompt).collect();
            (whole, trained)
        };
        let margin = margin.as_f64().expect("a margin") as f32;
        all.push((answer(31 + b, chosen), answer(57 + 2 * b, rejected), margin));
    }
    let documents: Vec<([Document<'_>; 2], f32)> =
        all.iter().map(|(c, r, margin)| ([(&c.0[..], &c.1[..]), (&r.0[..], &r.1[..])], *margin)).collect();
    preferences_file_of(&documents, 256, BYTES_TOKENIZER)
}

/// The formula weights; of a model that gives a score it has the place of the head.
fn weights(figures: &Value, dir: &Path, has_score: bool) -> PathBuf {
    let mut tensors: Vec<(String, Vec<usize>)> = serde_json::from_value(figures["tensors"].clone()).expect("tensors");
    let head = tensors.last_mut().expect("the head");
    if has_score {
        *head = ("score.weight".into(), vec![1, head.1[1]]);
    }
    let file = dir.join(format!("formula-{has_score}.safetensors"));
    formula::write_weights(&tensors, &file).expect("write the weights");
    file
}

struct Taught {
    dir: tempfile::TempDir,
    data: PathBuf,
    weights: PathBuf,
    keys: String,
    figures: Value,
}

impl Taught {
    fn new(what: &str) -> Taught {
        let (tiny, figures) = (figures(), reference()[what].clone());
        let sentence = tiny["text"].as_str().expect("text");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let bytes = if what == "reward" { pairs(sentence, &figures) } else { dialogues(sentence, &lengths(&figures)) };
        let data = dir.path().join("data.tokens");
        std::fs::write(&data, bytes).expect("write the data");
        let (kind, more) = match what {
            "reward" => ("reward", "[reward]\ncenter_coef = 0.01\n"),
            _ => ("sft", ""),
        };
        let keys = format!("kind = {kind:?}\n{more}");
        Taught { data, weights: weights(&tiny, dir.path(), what == "reward"), keys, figures, dir }
    }

    fn spec(&self, (tp, pp, dp): (usize, usize, usize), batch: &str, data: &str) -> JobSpec {
        let Taught { data: path, weights, keys, .. } = self;
        let (kind, more) = keys.split_once('\n').expect("the kind");
        job::parse(&format!(
            "{kind}\nsteps = 10\ninit_from = {weights:?}\n{more}[shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n[batch]\n{batch}\n\
             [optimizer]\nlr = 1e-3\nwarmup = 4\nweight_decay_final = 0.1\n\
             [data]\npath = {path:?}\norder = \"sequential\"\nvalidation = 0.0\n{data}"
        ))
        .expect("a valid job")
    }

    /// Ten steps, as rank 0 records them.
    fn train(&self, spec: &JobSpec) -> Vec<StepRecord> {
        train(spec, self.dir.path(), 10)
    }

    fn check(&self, what: &str, curve: &[StepRecord], num: impl Fn(&StepRecord) -> u64) {
        let train = self.figures["train"].as_array().expect("figures");
        assert_eq!(curve.len(), train.len(), "{what}");
        for (record, expected) in curve.iter().zip(train) {
            let number = |key: &str| expected[key].as_f64().unwrap_or_else(|| panic!("{key} is in the figures"));
            // A loss to 1e-5; one term of it that has all but gone is measured by the whole, as scores are differences of larger numbers. Norms of
            // gradients feel ten steps of rounding more than losses do.
            let whole = number("loss");
            for (key, found, tolerance) in [
                ("loss", record.loss, 1e-5 * whole),
                ("ce", record.ce, 1e-5 * whole),
                ("z", record.z_loss, 1e-5 * number("z")),
                ("lb", record.balance_loss, 1e-5 * number("lb")),
                ("gnorm", record.grad_norm, 1e-4 * number("gnorm")),
            ] {
                let off = (found - number(key)).abs();
                assert!(
                    off <= tolerance,
                    "{what}, step {}, {key}: found {found}, expected {}",
                    record.step,
                    number(key)
                );
            }
            assert_eq!(num(record) as f64, number("num"), "{what}, step {}", record.step);
        }
    }
}

#[test]
fn fine_tuning_meets_the_reference_on_every_shape() {
    let taught = Taught::new("sft");
    for shape in SHAPES {
        let curve = taught.train(&taught.spec(shape, "micro_batch = 2\nglobal = 4", ""));
        taught
            .check(&format!("{shape:?}"), &curve, |record| record.trained_tokens.expect("a number of trained tokens"));
        assert!(curve.iter().all(|record| record.tokens == (128 + 76 + 99 + 40)), "padding is no token");
    }
}

/// Eight dialogues in four samples, whichever share one.
#[test]
fn packed_dialogues_meet_the_reference_on_every_shape() {
    let taught = Taught::new("packed");
    for shape in [(1, 1, 1), (2, 1, 1), (2, 2, 1)] {
        let curve = taught.train(&taught.spec(shape, "micro_batch = 4\nglobal = 4", "packing = true\n"));
        taught
            .check(&format!("{shape:?}"), &curve, |record| record.trained_tokens.expect("a number of trained tokens"));
    }
    // The second replica takes the same dialogues in the next pass.
    let curve = taught.train(&taught.spec((1, 1, 2), "micro_batch = 4\nglobal = 8", "packing = true\n"));
    taught.check("(1, 1, 2)", &curve, |record| record.trained_tokens.expect("a number of trained tokens") / 2);
}

#[test]
fn a_reward_model_meets_the_reference_on_every_shape() {
    let taught = Taught::new("reward");
    for shape in SHAPES {
        let curve = taught.train(&taught.spec(shape, "micro_batch = 2\nglobal = 4", ""));
        taught.check(&format!("{shape:?}"), &curve, |record| record.pairs);
        let correct: Vec<u64> = curve.iter().map(|record| record.correct).collect();
        let expected: Vec<u64> = taught.figures["train"]
            .as_array()
            .expect("figures")
            .iter()
            .map(|step| step["correct"].as_u64().expect("a number"))
            .collect();
        assert_eq!(correct, expected, "{shape:?}");
    }
}

/// T-4: whoever dies in a step, and whenever: losses, trained tokens and accuracies are those of the undisturbed run. Most dialogues are packed.
#[test]
fn t4_deaths_while_a_model_is_taught_leave_no_trace() {
    let (tiny, figures) = (figures(), reference());
    let sentence = tiny["text"].as_str().expect("text");
    for (kind, data) in [("sft", "packing = true\n"), ("reward", "")] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("data.tokens");
        let lengths: Vec<usize> = (0..40).map(|n| 12 + n * 29 % 110).collect();
        let bytes = if kind == "reward" { pairs(sentence, &figures["reward"]) } else { dialogues(sentence, &lengths) };
        std::fs::write(&file, bytes).expect("write the data");
        for (tp, pp, dp) in [(2, 1, 2), (1, 2, 2)] {
            let spec = job::parse(&format!(
                "kind = {kind:?}\nsteps = 10\nseed = 3\n[model]\nlayers = 2\nd_model = 32\nhead_dim = 8\nff = 32\nseq = 128\n\
                 [shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n[batch]\nmicro_batch = 1\nglobal = 4\n\
                 [optimizer]\nlr = 3e-3\nwarmup = 2\n[data]\npath = {file:?}\nvalidation = 0.25\n{data}\
                 [eval]\nmicro_batches = 4\ninterval = 3\n",
            ))
            .expect("a valid job");
            let undisturbed = heal::Cluster::start(&spec, dir.path()).finish();
            assert_eq!(undisturbed.len(), 10);
            let mut cluster = heal::Cluster::start(&spec, dir.path());
            for rank in 0..4 {
                cluster.wait_for((rank + 1) % 4, 1 + 2 * rank as u64);
                cluster.replace(&[rank].into());
            }
            assert_eq!(cluster.finish(), undisturbed, "{kind} at {:?}", spec.shape);
        }
    }
}

/// Answers of the same length, of which those with digits are preferred: what holds of the pairs that are learned from holds of those that are held
/// out, and ties are counted apart.
#[test]
fn a_reward_model_ranks_pairs_that_it_has_not_seen() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("pairs.tokens");
    let answer = |n: usize, first: u32| {
        let prompt = (0..4).map(|j| 65 + ((n * 7 + j * 5) % 26) as u32);
        let tokens: Vec<u32> = prompt.chain((0..6).map(|j| first + ((n * 3 + j * j) % 10) as u32)).collect();
        let trained: Vec<bool> = (0..tokens.len()).map(|j| j >= 4).collect();
        (tokens, trained)
    };
    let all: Vec<_> = (0..160).map(|n| (answer(n, 48), answer(n, 97))).collect();
    let documents: Vec<([Document<'_>; 2], f32)> =
        all.iter().map(|(c, r)| ([(&c.0[..], &c.1[..]), (&r.0[..], &r.1[..])], 0.0)).collect();
    std::fs::write(&file, preferences_file_of(&documents, 256, BYTES_TOKENIZER)).expect("write the data");
    let spec = job::parse(&format!(
        "kind = \"reward\"\nsteps = 60\nseed = 3\n[model]\nlayers = 2\nd_model = 32\nhead_dim = 8\nff = 32\nseq = 16\n[shape]\ndp = 2\n\
         [batch]\nmicro_batch = 4\nglobal = 16\n[optimizer]\nlr = 3e-3\nwarmup = 4\n[data]\npath = {file:?}\nvalidation = 0.25\n\
         [eval]\nmicro_batches = 10\n",
    ))
    .expect("a valid job");
    let of_places = each_place(&spec, dir.path(), |mut job, links, environment| {
        let held_out = |job: &mut Job<CpuDevice>, links: &mut Links| {
            job.passes.finish_gather(links).expect("gather the parameters");
            let place = job.assignment.clone();
            let evaluated = (0..10).map(|i| job.passes.evaluate(links, &place, &job.samples, i).expect("evaluate"));
            evaluated
                .map(|sums| [sums.tokens, sums.correct, sums.ties])
                .fold([0.0; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]])
        };
        let before = held_out(&mut job, links);
        for _ in 0..60 {
            job.step(links, &environment.shared).expect("make a step");
            job.passes.start_gather(links, &environment.shared, job.shards.own()).expect("gather the parameters");
        }
        let after = held_out(&mut job, links);
        links.flush().expect("send what others wait for");
        (before, after)
    });
    let (before, after) = of_places[0];
    assert_eq!(of_places[1], of_places[0], "both replicas rank the same pairs");
    assert_eq!((before[0], after[0]), (40.0, 40.0), "all pairs that are held out");
    assert!(before[1] + before[2] <= 40.0 && before[1] < 36.0, "{before:?}: it knows nothing yet");
    assert!(after[1] >= 39.0, "{after:?}");
}
