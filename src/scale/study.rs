//! A study file: budgets, sizes, learning rates and batches of one family, and the trainings that they make.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use toml::{Table, Value};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::scaling::{MIN_RUNS, Run, operations_per_token};

use crate::files::read_text;
use crate::jobfile;

const MAX_TRAININGS: usize = 10_000;
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Keys of `[job]` that each training has its own of.
const OWN_KEYS: [&str; 2] = ["name", "steps"];

/// A study as its file says; docs/scaling-laws.md lists the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudyFile {
    name: String,
    budgets: Vec<f64>,
    lr: Vec<f64>,
    batch: Vec<usize>,
    #[serde(default = "default_min_steps")]
    min_steps: u64,
    #[serde(default = "default_max_steps")]
    max_steps: u64,
    #[serde(default = "default_at_a_time")]
    at_a_time: usize,
    size: Vec<Table>,
    job: Table,
}

fn default_min_steps() -> u64 {
    100
}

fn default_max_steps() -> u64 {
    1_000_000
}

fn default_at_a_time() -> usize {
    8
}

/// One training of a study, from its first step to the end of its own cosine.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Its job's name.
    pub name: String,
    pub budget: f64,
    pub toml: String,
    pub spec: JobSpec,
    /// Non-embedding operations of training for a token.
    pub size: f64,
    pub num_params: u64,
}

impl Training {
    /// Tokens of a step.
    pub fn batch_tokens(&self) -> u64 {
        self.spec.batch.samples() * self.spec.model.seq as u64
    }

    pub fn tokens(&self) -> u64 {
        self.spec.steps * self.batch_tokens()
    }

    /// Operations.
    pub fn compute(&self) -> f64 {
        self.size * self.tokens() as f64
    }

    /// The point that it is once its loss is known, nats a token.
    pub fn run(&self, loss: f64) -> Run {
        Run {
            size: self.size,
            cost: self.size,
            tokens: self.tokens() as f64,
            loss,
            lr: Some(self.spec.optimizer.lr),
            batch_tokens: Some(self.batch_tokens() as f64),
        }
    }

    /// What tells it from a training of another study file with the same name.
    pub fn digest(&self) -> String {
        blake3::hash(self.toml.as_bytes()).to_hex()[..16].to_string()
    }
}

/// A training that is not made.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    pub name: String,
    pub steps: f64,
}

#[derive(Debug)]
pub struct Study {
    pub name: String,
    pub trainings: Vec<Training>,
    /// Those whose number of steps is outside of `min_steps` to `max_steps`.
    pub left_out: Vec<LeftOut>,
    pub min_steps: u64,
    pub max_steps: u64,
    /// Jobs that are submitted and have not ended, at most.
    pub at_a_time: usize,
}

impl Study {
    /// Whether there will be runs enough for a law, without those of the largest budget where it is held out.
    pub fn check_fits(&self, is_held_out: bool) -> Result<()> {
        let largest = self.trainings.iter().map(|t| t.budget).fold(0.0, f64::max);
        let num = self.trainings.iter().filter(|t| !is_held_out || t.budget < largest).count();
        let without = if is_held_out {
            " without the largest budget, which is held out (--no-hold-out fits it, too)"
        } else {
            ""
        };
        ensure!(
            num >= MIN_RUNS,
            "the study has {num} trainings{without}: a law needs {MIN_RUNS}; add budgets or sizes"
        );
        Ok(())
    }

    pub fn read(file: &Path) -> Result<Study> {
        let text = read_text(file, "the study", MAX_FILE_BYTES)?;
        let absolute = std::path::absolute(file).with_context(|| format!("find the folder of {}", file.display()))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        parse(&text, folder).with_context(|| format!("read the study {}", file.display()))
    }
}

fn parse(text: &str, folder: &Path) -> Result<Study> {
    let file: StudyFile = toml::from_str(text)?;
    let positive = |key: &str, values: &[f64]| -> Result<()> {
        ensure!(!values.is_empty(), "{key} is empty: expected at least one");
        match values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
            Some(value) => bail!("{key} has {value}: expected finite numbers above 0"),
            None => Ok(()),
        }
    };
    positive("budgets", &file.budgets)?;
    positive("lr", &file.lr)?;
    positive("batch", &file.batch.iter().map(|b| *b as f64).collect::<Vec<_>>())?;
    ensure!(
        !file.size.is_empty(),
        "there is no [[size]]: expected at least one, with what of the model's dims is its own"
    );
    ensure!(file.at_a_time > 0, "at_a_time is 0: nothing would be submitted");
    if let Some(key) = OWN_KEYS.iter().find(|key| file.job.contains_key(**key)) {
        bail!("[job] has `{key}`: each training has its own, so take it out");
    }
    ensure!(
        file.job.get("checkpoint").is_none_or(|section| section.get("path").is_none()),
        "[job] has `checkpoint.path`: a folder of checkpoints is one job's, and there are many; take it out"
    );
    let num = [file.budgets.len(), file.size.len(), file.lr.len(), file.batch.len()];
    let num_trainings = num.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).unwrap_or(usize::MAX);
    ensure!(
        num_trainings <= MAX_TRAININGS,
        "{} budgets x {} sizes x {} learning rates x {} batches are more than {MAX_TRAININGS} trainings: take some out",
        num[0],
        num[1],
        num[2],
        num[3],
    );
    let mut study = Study {
        name: file.name.clone(),
        trainings: Vec::new(),
        left_out: Vec::new(),
        min_steps: file.min_steps,
        max_steps: file.max_steps,
        at_a_time: file.at_a_time,
    };
    let mut experts = None;
    for (b, budget) in file.budgets.iter().enumerate() {
        for s in 0..file.size.len() {
            for (l, lr) in file.lr.iter().enumerate() {
                for (g, batch) in file.batch.iter().enumerate() {
                    let name = format!("{}-c{b}-s{s}-l{l}-b{g}", file.name);
                    let make = |steps: u64| training(&file, &name, s, *lr, *batch, steps, folder);
                    // How many steps a budget is depends on the model's dims, which only the whole job says.
                    let (_, one) = make(1).with_context(|| format!("make the job {name}"))?;
                    let of_family = *experts.get_or_insert(one.model.experts);
                    ensure!(
                        one.model.experts == of_family,
                        "[[size]] {s} has {} experts and [[size]] 0 has {of_family}: laws hold within a family, which has one number of experts",
                        one.model.experts,
                    );
                    let size = operations_per_token(&one.model);
                    let steps = (budget / (size * (one.batch.samples() * one.model.seq as u64) as f64)).round();
                    if steps < file.min_steps as f64 || steps > file.max_steps as f64 {
                        study.left_out.push(LeftOut { name, steps });
                        continue;
                    }
                    let (toml, spec) = make(steps as u64).with_context(|| format!("make the job {name}"))?;
                    ensure!(
                        spec.eval.num_micro_batches > 0,
                        "the jobs make no validations, and laws are about the loss on held-out text: set data.validation above 0, and eval.micro_batches"
                    );
                    let num_params = spec.model.num_params();
                    study.trainings.push(Training { name, budget: *budget, toml, spec, size, num_params });
                }
            }
        }
    }
    ensure!(
        !study.trainings.is_empty(),
        "no training has {} to {} steps (min_steps, max_steps): the first would have {:.0}",
        study.min_steps,
        study.max_steps,
        study.left_out.first().map_or(0.0, |l| l.steps),
    );
    Ok(study)
}

/// The job file of one training, and what it says with every default filled in.
fn training(
    file: &StudyFile,
    name: &str,
    size: usize,
    lr: f64,
    batch: usize,
    steps: u64,
    folder: &Path,
) -> Result<(String, JobSpec)> {
    let mut job = file.job.clone();
    let steps = i64::try_from(steps).context("so many steps cannot be written down")?;
    job.insert("name".into(), Value::from(name));
    job.insert("steps".into(), Value::from(steps));
    section(&mut job, "optimizer")?.insert("lr".into(), Value::from(lr));
    section(&mut job, "batch")?.insert("global".into(), Value::from(i64::try_from(batch).context("read batch")?));
    section(&mut job, "model")?.extend(file.size[size].clone());
    let text = toml::to_string(&job).context("write a job file")?;
    let (text, _) = jobfile::resolve(&text, folder);
    let spec = job::parse(&text)?;
    Ok((text, spec))
}

fn section<'a>(job: &'a mut Table, key: &str) -> Result<&'a mut Table> {
    match job.entry(key).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(table) => Ok(table),
        other => bail!("[job] has `{key}` as a {}: expected a section", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUDY: &str = "name = 'laws'\nbudgets = [1e11, 3e11]\nlr = [1e-3, 2e-3]\nbatch = [16]\nmin_steps = 10\n\
        [[size]]\nlayers = 2\n[[size]]\nlayers = 4\n[[size]]\nlayers = 4\nd_model = 64\n\
        [job]\npreset = 'micro'\ndata = { path = 'text' }\nbatch = { micro_batch = 4 }\n";

    fn check_refused(text: &str, expected: &str) {
        let error = format!("{:#}", parse(text, Path::new("/study")).expect_err("a refusal"));
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn each_budget_has_each_size_with_the_steps_that_it_pays_for() {
        let study = parse(STUDY, Path::new("/study")).unwrap();
        assert_eq!(study.trainings.len() + study.left_out.len(), 12);
        for training in &study.trainings {
            let off = training.compute() / training.budget;
            assert!((0.95..1.05).contains(&off), "{} computes {off} of its budget", training.name);
            assert_eq!(training.spec.data.path, Path::new("/study/text"), "paths are taken from the study's folder");
            assert_eq!(training.spec.batch.samples(), 16);
            assert_eq!(job::parse(&training.toml).unwrap(), training.spec);
        }
        let names: std::collections::BTreeSet<&str> = study.trainings.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names.len(), study.trainings.len(), "names are told apart");
        let digests: std::collections::BTreeSet<String> = study.trainings.iter().map(Training::digest).collect();
        assert_eq!(digests.len(), study.trainings.len());
    }

    #[test]
    fn what_makes_no_study_is_refused() {
        check_refused(&STUDY.replace("[1e11, 3e11]", "[]"), "budgets is empty");
        check_refused(&STUDY.replace("3e11", "-1.0"), "budgets has -1");
        check_refused(&STUDY.replace("3e11", "nan"), "budgets has NaN");
        check_refused(&STUDY.replace("lr = [1e-3, 2e-3]\n", ""), "lr");
        check_refused(&STUDY.replace("min_steps", "min_step"), "unknown field `min_step`");
        check_refused(&STUDY.replace("[[size]]\nlayers = 2\n", "[[size]]\nexperts = 8\n"), "experts");
        check_refused(&STUDY.replace("[[size]]\nlayers = 2\n", "[[size]]\nlayer = 2\n"), "layer");
        check_refused(&STUDY.replace("preset", "steps = 5\npreset"), "[job] has `steps`");
        check_refused(&(STUDY.to_string() + "checkpoint = { path = '/c' }\n"), "[job] has `checkpoint.path`");
        check_refused(&STUDY.replace("path = 'text'", "path = 'text', validation = 0.0"), "no validations");
        check_refused(&STUDY.replace("min_steps = 10", "min_steps = 100000000"), "no training has");
        check_refused(&STUDY.replace("[16]", "[18]"), "micro_batch");
        check_refused(&STUDY.replace("preset = 'micro'", "preset = 'micro'\nmodel = 3"), "expected a section");
    }
}
