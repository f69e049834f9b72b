//! Job files: defaults, complaints and the way back.

use std::path::PathBuf;

use toroid_torus::job::{JobError, JobKind, JobSpec, SampleOrder, parse};
use toroid_torus::model::{ModelConfig, PRESETS};

/// `toml` on top of the least that a job needs; a table may follow.
fn with(toml: &str) -> Result<JobSpec, JobError> {
    parse(&format!("steps = 100\ndata.path = 'text'\n{toml}"))
}

fn check_error(toml: &str, expected: &str) {
    let error = with(toml).expect_err("the job file must be refused").to_string();
    assert!(error.contains(expected), "`{toml}`: expected a message with `{expected}`, found `{error}`");
}

#[test]
fn the_least_job_has_every_default() {
    let job = with("").expect("a job");
    assert_eq!((job.name.as_str(), job.steps, job.seed, job.exact), ("tiny", 100, 0, false));
    assert_eq!(job.model, ModelConfig::preset("tiny").expect("a preset"));
    assert_eq!(job.shape.world(), 1);
    assert_eq!((job.batch.micro_batch, job.batch.num_micro_batches), (4, 8));
    assert_eq!((job.optimizer.lr, job.optimizer.warmup, job.optimizer.weight_decay_final), (1e-3, 5, 0.2));
    assert_eq!((job.data.order, job.data.stride), (SampleOrder::Shuffled, 128));
    assert_eq!((job.checkpoint.interval_s, job.checkpoint.keep), (600.0, 3));
    assert_eq!((job.loss.z_coef, job.loss.balance_coef), (1e-3, 1e-2));
    assert_eq!((job.init_from, job.resume_from), (None, None));
}

#[test]
fn values_override_the_preset() {
    let job = with("preset = 'small'\nmodel.layers = 2\nshape = { tp = 2, dp = 6, dy = 3 }\nbatch.global = 48")
        .expect("a job");
    assert_eq!((job.name.as_str(), job.model.layers, job.model.d_model), ("small", 2, 256));
    assert_eq!((job.shape.dx(), job.shape.dy()), (2, 3));
    assert_eq!(job.batch.num_micro_batches, 12);
    let job = with("shape.dp = 2\nbatch = { micro_batch = 2, micro_batches = 3, global = 12 }").expect("they agree");
    assert_eq!(job.batch.samples(), 12);
}

/// What a kind decides, and what does not go with it.
#[test]
fn kinds_of_jobs_are_read_written_and_checked() {
    assert!(!with("").expect("a job").to_toml().contains("kind"), "a job of pre-training is written as it always was");
    let ppo = "kind = 'ppo'\nppo = { stop_token = 0, form = { tokens = [48, 49] } }";
    for toml in ["kind = 'sft'", "kind = 'sft'\ndata.packing = true", "kind = 'reward'\nreward.center_coef = 0.01", ppo]
    {
        let job = with(toml).expect("a job");
        assert_eq!(parse(&job.to_toml()).as_ref(), Ok(&job), "{}", job.to_toml());
        let json = serde_json::to_string(&job).expect("a job is JSON");
        assert_eq!(serde_json::from_str::<JobSpec>(&json).expect("read it back"), job);
        let last = job.model.tensors().pop().expect("the last tensor");
        match job.kind {
            JobKind::Reward => assert_eq!((last.name.as_str(), &last.shape[..]), ("score.weight", &[1, 128][..])),
            JobKind::Ppo => assert_eq!((last.name.as_str(), &last.shape[..]), ("value.weight", &[1, 128][..])),
            _ => assert_eq!((last.name.as_str(), &last.shape[..]), ("head.weight", &[512, 128][..])),
        }
    }
    assert_eq!(with("kind = 'reward'").expect("a job").rows_of_micro_batch(), 8, "a pair is two texts");
    check_error("kind = 'grpo'", "unknown variant `grpo`, expected one of `pretrain`, `sft`, `reward`, `ppo`");
    check_error("data.packing = true", "`data.packing` = true is not possible; expected false");
    check_error("kind = 'reward'\ndata.packing = true", "has no dialogues to pack");
    check_error("kind = 'sft'\nreward.center_coef = 0.1", "has no pairs");
    check_error("kind = 'reward'\nreward.center_coef = -0.1", "at least 0");
    check_error("kind = 'sft'\ndata.stride = 7", "has a document a text");
    check_error("model.output = 'score'", "that of kind = \"pretrain\"");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest() {
    for (toml, nearest) in [
        ("presett = 'tiny'", "preset"),
        ("shape.tpp = 2", "tp"),
        ("[model]\nlayrs = 2", "layers"),
        ("[optimizer]\nweight_decay_finale = 1", "weight_decay_final"),
        ("loss.balance = 1", "balance_coef"),
        ("[checkpoint]\ninterval = 5", "interval_s"),
        ("eval.microbatches = 5", "micro_batches"),
        ("data.strid = 5", "stride"),
        ("batch.globl = 5", "global"),
    ] {
        match with(toml) {
            Err(JobError::UnknownKey { nearest: found, message }) => {
                assert_eq!(found, nearest, "`{toml}`");
                assert!(message.contains("unknown field") && message.contains("line"), "`{toml}`: {message}");
            }
            other => panic!("`{toml}`: expected an unknown key, found {other:?}"),
        }
    }
}

#[test]
fn every_complaint_says_what_is_possible() {
    assert!(matches!(parse("data.path = 'text'"), Err(JobError::Missing { key: "steps", .. })));
    assert!(matches!(parse("steps = 1"), Err(JobError::Missing { key: "data.path", .. })));
    check_error("seed = 'x'", "the job file is not valid");
    check_error("seed = -1", "the job file is not valid");
    check_error("data.order = 'random'", "expected `shuffled` or `sequential`");
    check_error("preset = 'huge'", "`huge` is not known; there are micro, tiny, small, medium, 1b, 67b");
    check_error("shape.dp = 0", "tp 1, pp 1, dp 0");
    check_error("shape = { dp = 6, dx = 4 }", "dx 4 * dy 1 and dp 6");
    check_error("shape = { dp = 6, dx = 0 }", "dx 0 * dy 6 and dp 6");
    check_error("shape.tp = 3", "cannot be split over this shape: tp 3 does not divide heads = 4");
    check_error("shape.pp = 5", "pp 5 is more than the 4 layers");
    check_error("batch.global = 6", "`batch.global` = 6 is not possible; expected a multiple of batch.micro_batch = 4");
    check_error("batch = { global = 8, micro_batches = 3 }", "give one of global and micro_batches");
    check_error("batch.micro_batch = 0", "`batch.micro_batch` = 0");
    check_error("batch = { global = 8, micro_batch = 0 }", "a multiple of batch.micro_batch = 0");
    check_error("shape.dp = 4\nbatch.global = 8", "at least one for each of the 4 replicas");
    check_error("model.layers = 0", "`model.layers` = 0 is not possible; expected 1 to 1024");
    check_error("model.kv_heads = 0", "`model.kv_heads` = 0");
    check_error("model.kv_heads = 3", "a divisor of heads = 4");
    check_error("model.experts = 1", "`model.experts` = 1 is not possible; expected 2 to");
    check_error("model.vocab = 100", "`model.vocab` = 100 is not possible; expected 256 to");
    check_error("model.head_dim = 31", "an even number");
    check_error("optimizer.lr = 0.0", "`optimizer.lr` = 0 is not possible; expected a positive number");
    check_error("optimizer.lr = nan", "`optimizer.lr` = NaN");
    check_error("optimizer.clip = inf", "`optimizer.clip` = inf");
    check_error("optimizer.beta2 = 1.0", "0 to under 1");
    check_error("data.validation = 0.6", "0 to 0.5");
    check_error("data.validation = 0.0\neval.micro_batches = 2", "there is no held-out text");
    check_error("checkpoint.keep = 0", "`checkpoint.keep` = 0");
    check_error("checkpoint.interval_s = 1e30", "0 to 1e9");
    check_error("priority = 101", "`priority` = 101 is not possible; expected -100 to 100");
    check_error("priority = -101", "expected -100 to 100");
    check_error("workers.labels = { 'a b' = 'x' }", "`workers.labels`: the name `a b` is not possible");
    check_error("workers.labels = { a = '' }", "the value `` is not possible; expected 1 to 63");
    check_error(&format!("workers.labels = {{ a = '{}' }}", "x".repeat(64)), "xxx...` is not possible");
    let many: Vec<String> = (0..33).map(|n| format!("a{n} = 'x'")).collect();
    check_error(&format!("workers.labels = {{ {} }}", many.join(", ")), "there are 33 labels; at most 32");
    check_error("workers.label = { a = 'x' }", "did you mean `labels`");
}

/// Two sources, with `first` among the keys of the first, and `more` in `[data]`.
fn mixed(first: &str, more: &str) -> String {
    format!(
        "steps = 100\n[data]\n{more}\n[[data.source]]\nname = 'code'\npath = 'c'\n{first}\n[[data.source]]\nname = 'prose'\npath = 'p'\n"
    )
}

#[test]
fn sources_are_read_and_what_is_wrong_with_one_is_named() {
    let job = parse(&mixed("max_epochs = 2.5\nextensions = ['rs']", "temperature = 2.0")).expect("a job");
    assert_eq!((job.data.temperature, job.data.sources.len()), (Some(2.0), 2));
    assert_eq!(job.data.sources[0].max_epochs, Some(2.5));
    assert_eq!(job.data.in_words(), "code (c), prose (p)");
    assert_eq!(parse(&job.to_toml()).expect("its own file"), job, "{}", job.to_toml());
    let json = serde_json::to_string(&job).expect("a spec is JSON");
    assert_eq!(serde_json::from_str::<JobSpec>(&json).expect("its own JSON"), job);
    // Builds of before there were sources read the others.
    let one = with("").expect("a job");
    let json = serde_json::to_value(&one).expect("a spec is JSON");
    assert!(json["data"].get("source").is_none() && json["data"].get("temperature").is_none(), "{json}");
    assert_eq!(one.data.all_sources()[0].path, one.data.path);

    let check = |first: &str, more: &str, expected: &str| {
        let error = parse(&mixed(first, more)).map(|_| ()).expect_err(first).to_string();
        assert!(error.contains(expected), "`{first}` `{more}`: {error}");
    };
    check("", "path = 't'", "`data.path` and `[[data.source]]` cannot be given together");
    check("", "extensions = ['rs']", "each source has its own");
    check("weight = 1.0", "", "given to 1 of 2 sources");
    check("weight = 0.0", "", "`data.source.weight` = 0 (source `code`)");
    check("max_epochs = 0.0", "", "`data.source.max_epochs` = 0 (source `code`)");
    check("max_bytes = 0", "", "`data.source.max_bytes` = 0 (source `code`)");
    check("tokens = 0", "", "`data.source.tokens` = 0 (source `code`)");
    check("extensions = ['.']", "", "`data.source.extensions` = an empty ending");
    check("weigth = 1.0", "", "did you mean `weight`");
    check("", "temperature = 0.5", "`data.temperature` = 0.5 is not possible; expected 1 to");
    check_error("data.temperature = 2.0", "several sources by [[data.source]]");
    let both = "steps = 1\ndata.temperature = 2.0\n[[data.source]]\nname = 'a'\npath = 'a'\nweight = 1.0\n";
    assert!(parse(both).expect_err("both").to_string().contains("either of them decides"));
    let twice = "steps = 1\n[[data.source]]\nname = 'a'\npath = 'a'\n[[data.source]]\nname = 'a'\npath = 'b'\n";
    assert!(parse(twice).expect_err("twice").to_string().contains("another name for each source"));
    let odd = "steps = 1\n[[data.source]]\nname = 'a b'\npath = 'a'\n";
    assert!(parse(odd).expect_err("odd").to_string().contains("`data.source.name` = `a b`"));
    let few = mixed("", "") + "[eval]\nmicro_batches = 1\n";
    assert!(parse(&few).expect_err("few").to_string().contains("at least one for each of the 2 sources"));
    let many: String = (0..65).map(|n| format!("[[data.source]]\nname = 's{n}'\npath = 'p'\n")).collect();
    assert!(parse(&format!("steps = 1\n{many}")).expect_err("many").to_string().contains("at most 64"));
}

/// Of keys that cannot have an effect together none is passed over in silence.
#[test]
fn keys_that_contradict_one_another_are_refused() {
    let both = "init_from = 'a.safetensors'\nresume_from = 'c/step-5'";
    check_error(both, "`init_from` and `resume_from` cannot be given together");
    check_error("eval = { interval = 5, micro_batches = 0 }", "`eval.interval` = 5");
    check_error("data.validation = 0.0\neval.interval = 5", "`eval.interval` = 5");
    check_error("data.extensions = ['rs', '.']", "an empty ending");
    check_error("fault_tolerance = { redundancy = false, replay = true }", "without second holders");
    let alone = with("fault_tolerance.redundancy = false").expect("no word of a replay");
    assert!(!alone.fault_tolerance.replay);
    assert_eq!(parse(&alone.to_toml()).expect("its own file"), alone);
}

#[test]
fn what_has_no_effect_is_said() {
    let check = |toml: &str, expected: &[&str]| {
        let notes = with(toml).unwrap_or_else(|e| panic!("{toml}: {e}")).notes();
        let fits = notes.len() == expected.len() && notes.iter().zip(expected).all(|(n, e)| n.contains(e));
        assert!(fits, "{toml}: {notes:?}");
    };
    check("shape.dp = 2", &[]);
    check("", &["a job of one place"]);
    check("shape.dp = 2\nfault_tolerance.redundancy = false", &["fault_tolerance.redundancy = false"]);
    check("shape.dp = 2\noptimizer.warmup = 100", &["optimizer.warmup = 100 is not less than steps = 100"]);
    check("shape.dp = 2\ncheckpoint = { interval_s = 0.0, interval_steps = 100 }", &["before the last step"]);
    check("shape.dp = 2\ncheckpoint = { interval_s = 0.0, interval_steps = 99 }", &[]);
    check("shape.dp = 2\ndata.stride = 130", &["2 tokens between two samples"]);
    check("shape.dp = 2\npipeline.schedule = 'zero-bubble'", &["there is one stage"]);
    check("shape.dp = 2\neval.interval = 101", &["beyond steps"]);
}

#[test]
fn differences_name_what_decides_about_the_next_step() {
    let job = with("seed = 1").expect("a job");
    let other = with("seed = 2\nshape.dp = 2\noptimizer.lr = 2e-3\ndata.order = 'sequential'\ncheckpoint.keep = 9")
        .expect("a job");
    assert_eq!(job.differences(&job), [""; 0]);
    assert_eq!(
        job.differences(&other),
        ["data.order \"shuffled\" and not \"sequential\"", "optimizer.lr 0.001 and not 0.002"]
    );
    let policy = |more: &str| {
        with(&format!("kind = 'ppo'\nppo = {{ stop_token = 0, max_tokens = 8, reward_model = 'r'{more} }}"))
            .expect("a job")
    };
    assert_eq!(
        policy(", reward_mean = 4.5, reward_std = 2.0").differences(&policy(", value_coef = 0.25")),
        ["ppo.reward_mean 4.5 and not open", "ppo.reward_std 2.0 and not open", "ppo.value_coef 0.1 and not 0.25"]
    );
}

#[test]
fn counts_that_would_overflow_are_refused() {
    let most = i64::MAX;
    for toml in [
        format!("shape.tp = {most}\nshape.dp = {most}"),
        format!("shape.dp = 2\nbatch.micro_batches = {most}"),
        format!("batch.micro_batches = {most}"),
        format!("batch.micro_batch = {most}"),
        format!("batch = {{ micro_batch = {most}, micro_batches = 2, global = 4 }}"),
        format!("batch.global = {most}\nbatch.micro_batch = 1"),
        format!("model.ff = {most}"),
        format!("model.layers = {most}"),
        format!("model.head_dim = {}", most - 1),
        format!("eval.micro_batches = {most}"),
    ] {
        assert!(with(&toml).is_err(), "`{toml}`");
    }
    let steps = parse(&format!("steps = {most}\ndata.path = 'text'"));
    assert!(matches!(steps, Err(JobError::Value { key: "steps", .. })), "{steps:?}");
    let samples = parse("steps = 4294967296\ndata.path = 'text'\nbatch.micro_batches = 1000000000");
    assert!(matches!(samples, Err(JobError::Value { key: "batch", .. })), "{samples:?}");
    // The largest model that passes still counts its parameters.
    let wide = "d_model = 65536\nheads = 65536\nkv_heads = 65536\nhead_dim = 65536\nexperts = 65536\nff = 65536";
    let job = with(&format!("[model]\nlayers = 1024\nvocab = 16777216\n{wide}")).expect("within the limits");
    assert!(job.model.num_params() > 1 << 59);
}

#[test]
fn a_spec_from_the_wire_is_checked_like_a_file() {
    let mut job = with("").expect("a job");
    job.seed = u64::MAX;
    assert!(matches!(job.check(), Err(JobError::Value { key: "seed", .. })), "TOML cannot say it");
    let mut json = serde_json::to_value(with("").expect("a job")).expect("a spec is JSON");
    json["shape"]["dx"] = 0.into();
    assert!(serde_json::from_value::<JobSpec>(json).is_err());
}

#[test]
fn a_spec_is_written_as_a_job_file_and_read_back() {
    let full = "name = 'n'\nseed = 9223372036854775807\nexact = true\npriority = -7\nworkers.labels = { gpu = 'h100', zone = 'a' }\nresume_from = 'c/step-5'\n\
        shape = { tp = 2, pp = 2, dp = 6, dx = 2 }\nmodel.rope_theta = 12345.678\n\
        data = { extensions = ['rs'], max_bytes = 5, order = 'sequential', stride = 7, validation = 0.5 }\n\
        optimizer = { lr = 0.1, eps = 1e-30, warmup = 0 }\neval = { interval = 3, micro_batches = 2 }\n\
        checkpoint = { interval_s = 0.5, interval_steps = 2, keep = 1, path = 's3://bucket' }\n";
    let mut files = PRESETS.map(|p| format!("preset = '{p}'\n")).to_vec();
    files.extend([String::new(), full.replace("data = { ", "data = { path = 'text', ")]);
    for file in files {
        let file = if file.contains("path = 'text'") { file } else { file + "data.path = 'text'\n" };
        let job = parse(&format!("steps = 100\n{file}")).unwrap_or_else(|e| panic!("{file}: {e}"));
        let written = job.to_toml();
        assert_eq!(parse(&written).unwrap_or_else(|e| panic!("{written}: {e}")), job, "{written}");
        let json = serde_json::to_string(&job).expect("a spec is JSON");
        assert_eq!(serde_json::from_str::<JobSpec>(&json).expect("its own JSON"), job);
    }
}

#[test]
fn labels_are_read_and_those_that_every_worker_has_are_not_given() {
    use toroid_torus::labels::{check_own, parse};
    let read = |text: &str| parse(text).map_err(|e| e.to_string());
    assert_eq!(read("gpu=h100"), Ok(("gpu".into(), "h100".into())));
    assert!(read("gpu").is_err_and(|e| e.contains("`gpu` is no label; expected NAME=VALUE")));
    assert!(read("gpu=a=b").is_err_and(|e| e.contains("the value `a=b`")));
    assert!(read("=b").is_err_and(|e| e.contains("the name ``")));
    let own = |name: &str| check_own(&[(name.to_string(), "x".to_string())].into()).map_err(|e| e.to_string());
    assert_eq!(own("gpu"), Ok(()));
    assert!(own("zone").is_err_and(|e| e.contains("`zone` is known of every worker")));
}

#[test]
fn paths_are_kept_as_they_are() {
    let job = with("init_from = 'weights dir/m.safetensors'").expect("a job");
    assert_eq!(job.init_from, Some(PathBuf::from("weights dir/m.safetensors")));
}
