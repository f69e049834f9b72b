//! Is a disturbed run the undisturbed one (T-4)? Every figure of every step and every parameter at the end, bit for bit.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toroid_proto as proto;
use toroid_worker::checkpoint::Storage;

use crate::find::root_of_job;

/// What a job came to.
#[derive(Debug)]
pub struct Finished {
    /// With its curve.
    pub job: proto::Job,
    /// That both runs are compared up to.
    pub step: u64,
    /// All its parameters after that step, in one safetensors file.
    pub parameters: PathBuf,
}

impl Finished {
    /// Writes the parameters to `file`. At once, since another run may take its place in the same folder.
    pub fn export(job: proto::Job, step: u64, file: PathBuf) -> Result<Finished> {
        let root = root_of_job(&job.job_toml, &job.folder).context("find the checkpoints")?;
        let what = || format!("export the parameters of {} after step {step}", job.id);
        Storage::open(&root).and_then(|storage| storage.export(step, &file)).with_context(what)?;
        Ok(Finished { job, step, parameters: file })
    }

    /// What was trained up to `step`.
    fn curve(&self) -> &[proto::StepRecord] {
        let curve = &self.job.curve;
        &curve[..curve.partition_point(|record| record.step <= self.step)]
    }
}

/// What differs, in words; empty: nothing.
pub fn differences(undisturbed: &Finished, disturbed: &Finished) -> Result<Vec<String>> {
    if let Some(text) = text_difference(&undisturbed.job, &disturbed.job) {
        return Ok(vec![text]);
    }
    let curve = curve_difference(undisturbed.curve(), disturbed.curve());
    let parameters = file_difference(&undisturbed.parameters, &disturbed.parameters)?;
    Ok(curve.into_iter().chain(parameters).collect())
}

/// Runs of different text cannot be compared, and what differs would be nobody's fault.
fn text_difference(undisturbed: &proto::Job, disturbed: &proto::Job) -> Option<String> {
    let (expected, found) = (&undisturbed.data_digest, &disturbed.data_digest);
    (expected != found).then(|| {
        format!(
            "the two runs read different text, so they cannot be compared: the digest of its tokens is {expected} in the undisturbed run \
             and {found} in the other; somebody changed it in between, give --data a text that nobody writes to"
        )
    })
}

/// The first step that differs, and in which figure.
fn curve_difference(expected: &[proto::StepRecord], found: &[proto::StepRecord]) -> Option<String> {
    let first = expected.iter().zip(found).find_map(|(e, f)| step_difference(e, f));
    let (expected, found) = (expected.len(), found.len());
    first
        .or_else(|| (expected != found).then(|| format!("the curve has {found} steps, the undisturbed one {expected}")))
}

fn step_difference(expected: &proto::StepRecord, found: &proto::StepRecord) -> Option<String> {
    let step = expected.step;
    let differing =
        figures(expected).into_iter().zip(figures(found)).find(|((_, e), (_, f))| e.to_bits() != f.to_bits());
    if let Some(((name, e), (_, f))) = differing {
        return Some(format!("step {step}: the {name} is {f:e}, {e:e} in the undisturbed run"));
    }
    let counts = |r: &proto::StepRecord| (r.step, r.tokens, r.skipped);
    if counts(expected) != counts(found) {
        let (expected, found) = (counts(expected), counts(found));
        return Some(format!(
            "step {step}: (step, tokens, skipped) are {found:?}, {expected:?} in the undisturbed run"
        ));
    }
    let taught = |r: &proto::StepRecord| (r.trained_tokens, r.pairs, r.correct, r.ties);
    if taught(expected) != taught(found) {
        let (expected, found) = (taught(expected), taught(found));
        return Some(format!(
            "step {step}: (trained tokens, pairs, correct, ties) are {found:?}, {expected:?} in the undisturbed run"
        ));
    }
    if let Some(difference) = policy_difference(expected, found) {
        return Some(difference);
    }
    (expected.expert_load != found.expert_load).then(|| format!("step {step}: the load of the experts differs"))
}

/// All that a policy says of itself, to the bit.
fn policy_difference(expected: &proto::StepRecord, found: &proto::StepRecord) -> Option<String> {
    let step = expected.step;
    let (expected, found) = match (&expected.policy, &found.policy) {
        (Some(expected), Some(found)) => (expected.figures(), found.figures()),
        (None, None) => return None,
        (Some(_), None) => {
            return Some(format!("step {step}: it has no figures of a policy, and some in the undisturbed run"));
        }
        (None, Some(_)) => {
            return Some(format!("step {step}: it has figures of a policy, and none in the undisturbed run"));
        }
    };
    let differing = expected.into_iter().zip(found).find(|((_, e), (_, f))| e.to_bits() != f.to_bits());
    differing.map(|((name, e), (_, f))| format!("step {step}: {name} is {f:e}, {e:e} in the undisturbed run"))
}

/// What must be equal to the bit; speeds and epochs may differ.
fn figures(r: &proto::StepRecord) -> [(&'static str, f64); 7] {
    [
        ("loss", r.loss),
        ("cross-entropy", r.ce),
        ("z-loss", r.z_loss),
        ("balance loss", r.balance_loss),
        ("gradient norm", r.grad_norm),
        ("learning rate", r.lr),
        ("weight decay", r.weight_decay),
    ]
}

fn file_difference(expected: &Path, found: &Path) -> Result<Option<String>> {
    let read = |file: &Path| std::fs::read(file).with_context(|| format!("read {}", file.display()));
    if read(expected)? == read(found)? {
        return Ok(None);
    }
    Ok(Some(format!(
        "the final parameters differ: compare {} with {}, the undisturbed ones",
        found.display(),
        expected.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Vec<proto::StepRecord> {
        let policy = Some(proto::PolicyStep { kl: 0.5, ..Default::default() });
        let step = |step| proto::StepRecord { step, loss: 2.5, expert_load: vec![3, 4], policy, ..Default::default() };
        (1..=3).map(step).collect()
    }

    #[test]
    fn speeds_and_epochs_may_differ_and_nothing_else() {
        let check = |change: fn(&mut Vec<proto::StepRecord>), expected: Option<&str>| {
            let mut found = curve();
            change(&mut found);
            let difference = curve_difference(&curve(), &found);
            match expected {
                None => assert_eq!(difference, None),
                Some(words) => assert!(difference.as_ref().is_some_and(|d| d.contains(words)), "{difference:?}"),
            }
        };
        check(|_| {}, None);
        check(|c| (c[1].epoch, c[1].step_s, c[1].tokens_per_s) = (7, 0.5, 9.0), None);
        check(|c| c[1].loss = f64::from_bits(c[1].loss.to_bits() + 1), Some("step 2: the loss is"));
        check(|c| c[2].grad_norm = -0.0, Some("step 3: the gradient norm"));
        check(|c| c[2].correct = 1, Some("step 3: (trained tokens, pairs, correct, ties) are (None, 0, 1, 0)"));
        check(
            |c| {
                c[1].policy = Some(proto::PolicyStep { kl: f64::from_bits(0.5f64.to_bits() + 1), ..Default::default() })
            },
            Some("step 2: kl is 5.000000000000001e-1, 5e-1 in the undisturbed run"),
        );
        check(|c| c[0].policy = None, Some("step 1: it has no figures of a policy"));
        check(|c| c[2].expert_load[1] = 5, Some("step 3: the load of the experts"));
        check(|c| c[0].skipped = true, Some("step 1: (step, tokens, skipped)"));
        check(|c| drop(c.remove(1)), Some("step 2: (step, tokens, skipped)"));
        check(|c| drop(c.pop()), Some("has 2 steps, the undisturbed one 3"));
    }

    #[test]
    fn different_text_is_said_and_no_loss() -> Result<()> {
        let job = |digest: &str| proto::Job { data_digest: digest.into(), ..Default::default() };
        assert_eq!(text_difference(&job("ab"), &job("ab")), None);
        let finished = |digest: &str, loss| {
            let curve = vec![proto::StepRecord { step: 1, loss, ..Default::default() }];
            Finished { job: proto::Job { curve, ..job(digest) }, step: 1, parameters: "nowhere".into() }
        };
        let found = differences(&finished("ab", 1.0), &finished("cd", 2.0))?;
        assert!(found.len() == 1 && found[0].contains("different text") && !found[0].contains("loss"), "{found:?}");
        Ok(())
    }

    #[test]
    fn what_came_after_the_compared_step_does_not_count() {
        let finished = |step| Finished {
            job: proto::Job { curve: curve(), ..Default::default() },
            step,
            parameters: PathBuf::new(),
        };
        assert_eq!((finished(2).curve().len(), finished(3).curve().len()), (2, 3));
    }

    #[test]
    fn one_flipped_bit_of_the_parameters_is_seen() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = |name: &str, bytes: &[u8]| -> Result<PathBuf> {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes)?;
            Ok(path)
        };
        let (left, same, other) = (file("l", &[1, 2])?, file("s", &[1, 2])?, file("o", &[1, 3])?);
        assert_eq!(file_difference(&left, &same)?, None);
        assert!(file_difference(&left, &other)?.is_some_and(|d| d.contains("final parameters differ")));
        Ok(())
    }
}
