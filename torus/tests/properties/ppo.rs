//! `[ppo]` of job files: defaults, each check, and what follows from the keys, by hand.

use toroid_torus::job::{Form, JobError, JobSpec, PpoConfig, parse};

/// `ppo` are keys of the table besides its stop token and form, `toml` others.
fn with(ppo: &str, toml: &str) -> Result<JobSpec, JobError> {
    let table = format!("[ppo]\nstop_token = 10\nform.tokens = [48, 49]\n{ppo}");
    parse(&format!("steps = 40\nkind = 'ppo'\n{toml}\ndata.path = 'text'\n{table}"))
}

fn job(ppo: &str, toml: &str) -> JobSpec {
    with(ppo, toml).unwrap_or_else(|error| panic!("`{ppo}`, `{toml}`: {error}"))
}

fn config(ppo: &str) -> PpoConfig {
    job(ppo, "").ppo.expect("a job of this kind has it")
}

#[test]
fn the_least_policy_has_every_default() {
    let expected = PpoConfig {
        epochs: 4,
        minibatches: 1,
        max_tokens: 53,
        stop_token: 10,
        temperature: 0.7,
        kl_coef: 0.05,
        kl_target: None,
        kl_horizon: 10_000.0,
        gamma: 1.0,
        lambda: 0.95,
        clip: 0.2,
        value_clip: 0.2,
        value_coef: 0.1,
        no_stop_penalty: 1.0,
        side_by_side: 16,
        reference: None,
        reward_model: None,
        reward_mean: None,
        reward_std: None,
        form: Some(Form { tokens: [48, 49].into(), min: 1, max: 1 << 24 }),
    };
    let spec = job("", "");
    assert_eq!(spec.ppo, Some(expected));
    assert_eq!((spec.data.validation, spec.eval.num_micro_batches), (0.0, 0), "nothing is held out");
    assert_eq!(parse(&spec.to_toml()).as_ref(), Ok(&spec), "{}", spec.to_toml());
    let scored =
        "steps = 4\nkind = 'ppo'\ndata.path = 'text'\nppo = { stop_token = 0, reward_model = 'r.safetensors' }";
    let spec = parse(scored).expect("a score is enough");
    assert_eq!(parse(&spec.to_toml()).as_ref(), Ok(&spec), "{}", spec.to_toml());
}

#[test]
fn every_check_says_what_is_possible() {
    let check = |ppo: &str, toml: &str, expected: &str| {
        let error = with(ppo, toml).expect_err("it must be refused").to_string();
        assert!(error.contains(expected), "`{ppo}`, `{toml}`: expected a message with `{expected}`, found `{error}`");
    };
    for (key, highest) in [("epochs", 4096), ("minibatches", 4096), ("max_tokens", 128), ("side_by_side", 4096)] {
        for found in [0, highest + 1] {
            let expected = format!("`ppo.{key}` = {found} is not possible; expected 1 to {highest}");
            check(&format!("{key} = {found}"), "", &expected);
        }
    }
    check(
        "epochs = 128\nminibatches = 64",
        "",
        "`ppo.epochs * ppo.minibatches` = 8192 is not possible; expected at most 4096",
    );
    let form = |form: &str, expected: &str| {
        let file = format!(
            "steps = 40\nkind = 'ppo'\ndata.path = 'text'\nppo = {{ stop_token = 10, max_tokens = 12, form = {form} }}"
        );
        let error = parse(&file).expect_err("it must be refused").to_string();
        assert!(error.contains(expected), "`{form}`: expected a message with `{expected}`, found `{error}`");
    };
    form("{ tokens = [48, 600] }", "`ppo.form.tokens` = 600 is not possible; expected tokens below model.vocab = 512");
    form("{ tokens = [48], min = 12 }", "`ppo.form.min` = 12 is not possible; expected at most 11");
    form("{ tokens = [10] }", "`ppo.form.tokens` = 10 is not possible; expected a token besides ppo.stop_token");
    for key in ["reward_mean", "reward_std"] {
        check(&format!("{key} = 1.5"), "", &format!("`ppo.{key}` = 1.5 is not possible; expected none: "));
    }
    check("", "data.validation = 0.1", "`data.validation` = 0.1 is not possible; expected 0: ");
    let whole = "a multiple of ppo.epochs * ppo.minibatches = 12: whole iterations";
    check("minibatches = 3", "", &format!("`steps` = 40 is not possible; expected {whole}"));
    check("minibatches = 3\n[checkpoint]\ninterval_steps = 16", "", "`steps` = 40");
    for (checkpoint, expected) in [
        ("interval_steps = 6", "`checkpoint.interval_steps` = 6"),
        ("keep_every_steps = 6", "`checkpoint.keep_every_steps` = 6"),
    ] {
        check(
            &format!("[checkpoint]\n{checkpoint}"),
            "",
            &format!("{expected} is not possible; expected a multiple of"),
        );
    }
    // 2^20 answers of 4 * 53 + 8 numbers.
    check(
        "",
        "batch.global = 1048576",
        "`ppo` = 230686720 numbers an iteration is not possible; expected at most 67108864",
    );
    let huge = "kind = 'ppo'\nsteps = 4096\ndata.path = 'text'\nbatch = { micro_batch = 16777216, micro_batches = 4294967296 }";
    let huge = format!("{huge}\n[ppo]\nepochs = 1\nminibatches = 4096\nstop_token = 0\nform.tokens = [1]");
    assert!(parse(&huge).is_err(), "more answers than a number has room for");
    for (key, expected) in [
        ("temperature", "a positive number"),
        ("kl_target", "a positive number"),
        ("kl_horizon", "a positive number"),
        ("clip", "a positive number"),
        ("value_clip", "a positive number"),
        ("reward_std", "a positive number"),
    ] {
        for found in ["0.0", "-1.0", "nan", "inf"] {
            check(&format!("{key} = {found}"), "", &format!("`ppo.{key}` = "));
            check(&format!("{key} = {found}"), "", &format!("is not possible; expected {expected}"));
        }
    }
    for key in ["kl_coef", "value_coef", "no_stop_penalty"] {
        assert!(with(&format!("{key} = 0.0"), "").is_ok(), "{key} may be 0");
        for found in ["-0.5", "nan", "inf"] {
            check(&format!("{key} = {found}"), "", "is not possible; expected at least 0");
        }
    }
    for key in ["gamma", "lambda"] {
        assert!(with(&format!("{key} = 0.0"), "").is_ok() && with(&format!("{key} = 1.0"), "").is_ok(), "{key}");
        for found in ["-0.5", "1.5", "nan"] {
            check(&format!("{key} = {found}"), "", "is not possible; expected 0 to 1");
        }
    }
    check("reward_mean = nan", "", "`ppo.reward_mean` = NaN is not possible; expected a number");
    check("form.min = 3\nform.max = 2", "", "`ppo.form.min` = 3 is not possible; expected at most ppo.form.max = 2");
    check("", "data.validation = 0.1\neval.micro_batches = 2", "`eval.micro_batches` = 2 is not possible; expected 0");
    check("epoch = 3", "", "did you mean `epochs`");
}

#[test]
fn what_is_missing_or_belongs_to_another_kind_is_named() {
    let check = |toml: &str, expected: &str| {
        let error =
            parse(&format!("steps = 40\ndata.path = 'text'\n{toml}")).expect_err("it must be refused").to_string();
        assert!(error.contains(expected), "`{toml}`: expected a message with `{expected}`, found `{error}`");
    };
    check("kind = 'ppo'", "[ppo]");
    check("kind = 'ppo'", "say at least stop_token, and what is rewarded");
    check("kind = 'ppo'\nppo = { form.tokens = [48] }", "stop_token");
    check("kind = 'ppo'\nppo = { stop_token = 10 }", "ppo.reward_model");
    check("kind = 'ppo'\nppo = { stop_token = 10, form.tokens = [] }", "`ppo.form.tokens` = none");
    check("kind = 'ppo'\nppo = { stop_token = 512, form.tokens = [48] }", "a token below model.vocab = 512");
    check("kind = 'sft'\nppo = { stop_token = 10, form.tokens = [48] }", "kind = \"sft\" makes no rollouts");
    check("kind = 'ppo'\ndata.packing = true\nppo = { stop_token = 10, form.tokens = [48] }", "data.packing");
    let other = "kind = 'ppo'\nresume_from = '/r/step-4'\nppo = { stop_token = 10, form.tokens = [48] }";
    check(other, "name the init_from of that one");
    let named = other.replace("stop_token", "reference = 'base', stop_token");
    assert!(parse(&format!("steps = 40\ndata.path = 'text'\n{named}")).is_ok(), "{named}");
    check("kind = 'ppo'\nreward.center_coef = 0.1\nppo = { stop_token = 10, form.tokens = [48] }", "has no pairs");
}

/// Iterations of 2 passes of 4 steps of 32 answers each.
#[test]
fn an_iteration_is_its_passes_and_takes_its_prompts_at_its_first_step() {
    let spec = job("epochs = 2\nminibatches = 4", "batch.global = 32");
    assert_eq!((spec.steps_of_iteration(), spec.answers_of_iteration()), (8, 128));
    assert_eq!(spec.samples_needed(), 5 * 128, "40 steps are 5 iterations");
    assert_eq!([0, 1, 8, 9, 16].map(|steps| spec.samples_of(steps)), [0, 128, 128, 256, 256]);
    assert_eq!([0, 127, 128, 639].map(|sample| spec.step_of_sample(sample)), [0, 0, 8, 32]);
    let sft = parse("steps = 40\nkind = 'sft'\ndata.path = 'text'\nbatch.global = 32").expect("a job");
    assert_eq!((sft.steps_of_iteration(), sft.answers_of_iteration()), (1, 0));
    assert_eq!((sft.samples_needed(), sft.samples_of(9), sft.step_of_sample(32)), (40 * 32, 288, 1));
}

/// Ziegler et al. 2019: with the target 6 and the horizon 10,000, 512 answers change the coefficient by at most 0.2 * 512 / 10,000 of itself.
#[test]
fn the_coefficient_of_the_divergence_is_steered_to_its_target() {
    let steered = config("kl_target = 6.0");
    let next = |kl| steered.next_kl_coef(0.05, kl, 512);
    let check = |kl: f64, expected: f64| assert!((next(kl) - expected).abs() < 1e-15, "{kl}: {}", next(kl));
    check(6.0, 0.05);
    // 10% less than the target: 1 - 0.1 * 0.0512.
    check(5.4, 0.05 * 0.99488);
    check(6.6, 0.05 * 1.00512);
    // Half as much again, and nothing at all: both count as 20%.
    check(9.0, 0.05 * 1.01024);
    check(0.0, 0.05 * 0.98976);
    check(-3.0, 0.05 * 0.98976);
    for kl in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(next(kl), 0.05, "{kl} steers nothing");
    }
    assert_eq!(config("").next_kl_coef(0.05, 100.0, 512), 0.05, "without a target it stays");
    assert_eq!(config("kl_target = 6.0\nkl_horizon = 512.0").next_kl_coef(1.0, 60.0, 512), 1.2);
}

#[test]
fn a_form_is_a_stop_a_length_and_tokens() {
    let form = Form { tokens: [48, 49].into(), min: 2, max: 3 };
    let fits = |answer: &[u32]| form.fits(answer, true);
    assert!(fits(&[48, 49]) && fits(&[49, 49, 48]));
    assert!(!form.fits(&[48, 49], false), "it was cut");
    assert!(!fits(&[48]) && !fits(&[48, 48, 48, 48]), "too short, and too long");
    assert!(!fits(&[48, 50]) && !fits(&[]), "another token, and none");
    assert!(Form { min: 0, ..form }.fits(&[], true), "an empty answer, where it may be one");
}
