//! Kill any worker at any instant: no committed step is lost, nobody else restarts, the curve is the undisturbed one to the bit.
//!
//! T-1 (fencing), T-3 (survival), T-4 (equivalence) and T-7 (places), with real processes and real signals. Random tests print their
//! seed; `TOROID_TEST_SEED=<seed>` replays the victims (not the instants: those lie between two commits of real processes).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use toroid_proto::Job;
use toroid_testkit::jobs::{endless_job, on_sources, text_folder};
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost, is_whole, path, root, worker_of};
use toroid_torus::cursor::splitmix64;
use toroid_torus::geometry::Shape;
use toroid_torus::holders::{backup_of, lost_shard};

use crate::TOROID;

type Ways = (usize, usize, usize);

/// Where silence is to be seen; long enough that a busy machine makes nobody look dead.
const FAILURE_TIMEOUT_MS: u32 = 3000;

fn shape((tp, pp, dp): Ways) -> Result<Shape> {
    Ok(Shape::new(tp, pp, dp)?)
}

fn has_place(job: &Job, workers: &[String]) -> bool {
    job.places.iter().any(|place| workers.contains(&place.worker_id))
}

/// Of the environment, to replay one; else another each time.
fn seed() -> Result<u64> {
    let seed = match std::env::var("TOROID_TEST_SEED") {
        Ok(text) => text.parse().with_context(|| format!("read TOROID_TEST_SEED = {text}"))?,
        Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() & u128::from(u32::MAX))?,
    };
    eprintln!("replay the victims with TOROID_TEST_SEED={seed}");
    Ok(seed)
}

fn check_kills(ways: Ways, num_spares: usize, num_kills: usize) -> Result<()> {
    check_kills_of(&endless_job(ways), ways, num_spares, num_kills).map(drop)
}

/// Kills `num_kills` random workers at random instants, one after the other, each with a spare at hand.
fn check_kills_of(job_file: &str, ways: Ways, num_spares: usize, num_kills: usize) -> Result<Job> {
    let (seed, world) = (seed()?, shape(ways)?.world());
    let mut cluster = Cluster::start(TOROID, world + num_spares, 1)?;
    let id = cluster.submit(job_file)?;
    let mut after = 1;
    for kill in 0..num_kills {
        let is_ready = |job: &Job| {
            let is_known = job.incidents.len() == kill && job.spares > 0;
            is_whole(job) && is_known && job.committed_step > after
        };
        let job = cluster.wait_for(&id, &format!("full strength before kill {kill}"), is_ready)?;
        after = job.committed_step;
        let drawn = splitmix64(seed.wrapping_add(kill as u64));
        let victim = worker_of(&job, drawn as usize % world);
        // Not a wait for something: the instant within the step is what is drawn here.
        let step_s = job.last_step.as_ref().map_or(0.0, |record| record.step_s);
        std::thread::park_timeout(Duration::from_secs_f64(step_s * (drawn >> 40) as f64 / f64::from(1 << 24)));
        cluster.kill_worker(&victim)?;
        cluster.add_worker(1)?;
    }
    cluster.wait_for(&id, "the last place to be filled", |job| is_whole(job) && job.incidents.len() == num_kills)?;
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    ensure!(job.incidents.len() == num_kills, "{num_kills} kills, but {:#?}", job.incidents);
    ensure!(job.epoch == 1 + num_kills as u64, "each of {num_kills} deaths is one epoch, found {}", job.epoch);
    ensure!(cluster.dead_workers().is_empty(), "others died too: {}", cluster.logs());
    let undisturbed = Undisturbed::as_far_as(&cluster, job_file, &job)?;
    ensure!(undisturbed.job.data_digest == job.data_digest, "the two runs were of other data");
    undisturbed.check_same(&cluster, &job)?;
    Ok(job)
}

/// A token file of the texts in a folder of this repository with this ending, a document each. A token is a byte and 44, so that it takes
/// two bytes.
fn write_tokens(folder: &str, ending: &str, to: &Path) -> Result<()> {
    let entries = std::fs::read_dir(root().join(folder))?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    let read = |path: &PathBuf| Ok(std::fs::read(path)?.into_iter().map(|byte| u32::from(byte) + 44).collect());
    let documents = paths.iter().map(read).collect::<Result<Vec<Vec<u32>>>>()?;
    let documents: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    Ok(std::fs::write(to, toroid_tokens::file_of(&documents, 300, [7; 32]))?)
}

/// T-5: the samples of several sources are mixed in one order, whatever dies; here one of them gives out on the way.
#[test]
fn random_kills_over_two_sources_of_token_files_cost_no_step_and_no_bit() -> Result<()> {
    let (dir, ways) = (tempfile::tempdir()?, (1, 2, 2));
    let (code, prose) = (dir.path().join("code"), dir.path().join("prose.tokens"));
    std::fs::create_dir(&code)?;
    write_tokens("torus/src", "rs", &code.join("00000.tokens"))?;
    write_tokens("torus/src/plan", "rs", &code.join("00001.tokens"))?;
    write_tokens("docs/decisions", "md", &prose)?;
    // A step takes 16 samples; prose gives 8 of them until it has given 40.
    let samples =
        |path: &Path| -> Result<f64> { Ok(((std::fs::metadata(path)?.len() / 2) as f64 * 0.9 / 32.0).floor()) };
    let limit = format!("weight = 1.0\nmax_epochs = {:?}", 40.0 / samples(&prose)?);
    let sources = [("code", code.as_path(), "weight = 1.0"), ("prose", prose.as_path(), limit.as_str())];
    let job = check_kills_of(&on_sources(&endless_job(ways), &sources), ways, 1, 3)?;
    let inputs = job.inputs.context("the job says what it is trained on")?;
    let given: Vec<u64> = inputs.sources.iter().map(|source| source.given).collect();
    // It went on beyond the step that it is compared up to.
    let num = given.iter().sum::<u64>();
    ensure!(num % 16 == 0 && num >= 16 * job.committed_step && (37..43).contains(&given[1]), "{:?}", inputs.sources);
    ensure!(inputs.notes.iter().any(|note| note.contains("prose has given its")), "{:?}", inputs.notes);
    ensure!(job.validations.iter().all(|v| v.sources.len() == 2 && v.bits_per_byte == 0.0), "{:?}", job.validations);
    Ok(())
}

/// Dialogues of the lines of this repository's sources, of which the second half is trained.
fn write_dialogues(to: &Path) -> Result<()> {
    let text = std::fs::read(root().join("torus/src/job.rs"))?;
    let lines: Vec<Vec<u32>> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() > 3)
        .map(|line| line.iter().take(33).map(|byte| u32::from(*byte)).collect())
        .collect();
    let trained: Vec<Vec<bool>> =
        lines.iter().map(|line| (0..line.len()).map(|at| at >= line.len() / 2).collect()).collect();
    let documents: Vec<toroid_tokens::Document<'_>> =
        lines.iter().zip(&trained).map(|(line, trained)| (&line[..], &trained[..])).collect();
    Ok(std::fs::write(to, toroid_tokens::dialogues_file_of(&documents, 256, toroid_tokens::BYTES_TOKENIZER))?)
}

/// An endless job of this kind on dialogues or pairs of lines. `more` follows the table of checkpoints.
fn taught_job(kind: &str, ways: Ways, data: &Path, more: &str) -> String {
    let text = format!("path = \"{}\"\nextensions = [\"rs\"]\n", path(&text_folder()));
    let taught = format!("path = \"{}\"\n", path(data));
    format!("kind = \"{kind}\"\n{}{more}", endless_job(ways).replace(&text, &taught))
}

/// Two passes of two minibatches: an iteration has four steps. Checkpoints are at ends of iterations.
fn policy_job(ways: Ways, data: &Path) -> String {
    let ppo = "[ppo]\nepochs = 2\nminibatches = 2\nmax_tokens = 6\nstop_token = 10\nside_by_side = 8\nkl_target = 0.2\nkl_horizon = 100.0\n\
               form = { tokens = [32, 97, 101, 111, 116] }\n";
    taught_job("ppo", ways, data, ppo)
        .replace("validation = 0.1\n", "")
        .replace("[eval]\nmicro_batches = 4\ninterval = 10\n", "")
        .replace("interval_steps = 10", "interval_steps = 12")
}

/// The first half of each line as a prompt, with what follows it as the answer that is preferred to what follows the line before.
fn write_pairs(to: &Path) -> Result<()> {
    let text = std::fs::read(root().join("torus/src/job.rs"))?;
    let tokens = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).collect::<Vec<u32>>();
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| line.len() > 16).collect();
    let halves: Vec<[Vec<u32>; 2]> = lines.iter().map(|line| [tokens(&line[..8]), tokens(&line[8..16])]).collect();
    let with = |prompt: &[u32], answer: &[u32]| {
        let trained: Vec<bool> = (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect();
        ([prompt, answer].concat(), trained)
    };
    let pairs: Vec<_> = halves
        .windows(2)
        .filter(|two| two[0][1] != two[1][1])
        .map(|two| (with(&two[1][0], &two[1][1]), with(&two[1][0], &two[0][1])))
        .collect();
    let documents: Vec<([toroid_tokens::Document<'_>; 2], f32)> = pairs
        .iter()
        .map(|(chosen, other)| ([(&chosen.0[..], &chosen.1[..]), (&other.0[..], &other.1[..])], 0.0))
        .collect();
    Ok(std::fs::write(to, toroid_tokens::preferences_file_of(&documents, 256, toroid_tokens::BYTES_TOKENIZER))?)
}

/// Fine-tuning goes through the same step, and has a loss and samples of its own.
#[test]
fn random_kills_while_a_model_is_taught_cost_no_step_and_no_bit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("dialogues.tokens");
    write_dialogues(&file)?;
    let job = check_kills_of(&taught_job("sft", (2, 1, 2), &file, ""), (2, 1, 2), 1, 3)?;
    ensure!(job.curve.iter().all(|step| step.trained_tokens.is_some_and(|num| num > 0 && num < step.tokens)));
    Ok(())
}

#[test]
fn random_kills_while_a_reward_model_learns_cost_no_step_and_no_bit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("pairs.tokens");
    write_pairs(&file)?;
    let job = check_kills_of(&taught_job("reward", (2, 1, 2), &file, ""), (2, 1, 2), 1, 3)?;
    ensure!(job.curve.iter().all(|step| step.pairs == 16));
    Ok(())
}

/// A policy writes answers at the first step of each iteration, and what was said of them then is in memory alone.
#[test]
fn random_kills_while_a_policy_is_optimized_cost_no_step_and_no_bit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("prompts.tokens");
    write_dialogues(&file)?;
    let job = check_kills_of(&policy_job((1, 2, 2), &file), (1, 2, 2), 1, 3)?;
    for (n, step) in job.curve.iter().enumerate() {
        let policy = step.policy.context("a step of a policy says so")?;
        ensure!(n % 4 != 0 || policy.mean_ratio == 1.0, "step {}: {policy:?}", step.step);
    }
    ensure!(job.checkpoints.iter().all(|c| c.step % 4 == 0), "{:?}", job.checkpoints);
    Ok(())
}

#[test]
fn random_kills_at_2_2_2_cost_no_step_and_no_bit() -> Result<()> {
    check_kills((2, 2, 2), 2, 6)
}

#[test]
fn random_kills_at_1_1_4_cost_no_step_and_no_bit() -> Result<()> {
    check_kills((1, 1, 4), 1, 6)
}

/// dp = 1: the copies are at the neighbours along the torus.
#[test]
fn random_kills_at_2_2_1_cost_no_step_and_no_bit() -> Result<()> {
    check_kills((2, 2, 1), 1, 6)
}

/// T-3: two that hold no shard in common die together. Every step is followed by a validation, which is a place to die as well.
#[test]
fn two_deaths_that_leave_a_holder_of_each_shard_cost_no_step() -> Result<()> {
    let ways = (1, 1, 4);
    let job_file = endless_job(ways)
        .replace("[eval]\nmicro_batches = 4\ninterval = 10", "[eval]\nmicro_batches = 4\ninterval = 1");
    let mut cluster = Cluster::start(TOROID, 6, 1)?;
    ensure!(lost_shard(&shape(ways)?, &[0, 2].into()).is_none(), "ranks 0 and 2 hold a shard together");
    let id = cluster.submit(&job_file)?;
    let before = cluster.wait_for(&id, "step 15", |job| job.curve.len() >= 15 && job.spares == 2)?;
    let victims = [worker_of(&before, 0), worker_of(&before, 2)];
    cluster.kill_workers(&[&victims[0], &victims[1]])?;
    let is_healed = |job: &Job| is_whole(job) && !job.incidents.is_empty() && !has_place(job, &victims);
    let after = cluster.wait_for(&id, "the places to be filled", is_healed)?;
    // T-7: the others kept their places.
    for rank in [1, 3] {
        assert_eq!(worker_of(&before, rank), worker_of(&after, rank), "rank {rank} moved");
    }
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    for _ in 0..2 {
        cluster.add_worker(1)?;
    }
    let undisturbed = Undisturbed::as_far_as(&cluster, &job_file, &job)?;
    ensure!(undisturbed.job.validations.len() as u64 == job.committed_step + 1, "each step is to be validated");
    undisturbed.check_same(&cluster, &job)
}

/// Both holders of a shard die together: the last checkpoint is restored, the incident says so, the curve is the undisturbed one.
#[test]
fn the_death_of_both_holders_restores_the_last_checkpoint_and_says_so() -> Result<()> {
    let ways = (1, 1, 4);
    let job_file = endless_job(ways);
    let mut cluster = Cluster::start(TOROID, 6, 1)?;
    let backup = backup_of(&shape(ways)?, 0).context("find the backup of rank 0")?;
    let id = cluster.submit(&job_file)?;
    let is_ready = |job: &Job| job.checkpoints.iter().any(|c| job.committed_step >= c.step + 3) && job.spares == 2;
    let job = cluster.wait_for(&id, "three steps after a checkpoint", is_ready)?;
    cluster.kill_workers(&[&worker_of(&job, 0), &worker_of(&job, backup)])?;
    cluster.wait_for(&id, "the checkpoint to be restored", |job| is_whole(job) && !job.incidents.is_empty())?;
    let job = cluster.finish(&id)?;
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)?;
    let restored: Vec<_> = job.incidents.iter().filter(|incident| incident.rung == "restore").collect();
    ensure!(restored.len() == 1, "one incident restores the checkpoint: {:#?}", job.incidents);
    ensure!(restored[0].resolved && restored[0].reason.contains("holders"), "{:#?}", restored[0]);
    let is_counted = restored[0].steps_lost > 0 && job.lost_steps == restored[0].steps_lost;
    ensure!(is_counted, "{} steps lost, the incident says {:#?}", job.lost_steps, restored[0]);
    Ok(())
}

/// T-1: a worker that was stopped, replaced and continued has nothing more to say in the job.
#[test]
fn t1_a_worker_that_comes_back_after_its_place_was_given_away_changes_nothing() -> Result<()> {
    let ways = (1, 1, 4);
    let job_file = endless_job(ways);
    let cluster = Cluster::with_failure_timeout(TOROID, 5, 1, FAILURE_TIMEOUT_MS)?;
    let id = cluster.submit(&job_file)?;
    let is_ready = |job: &Job| job.curve.len() >= 10 && job.spares == 1;
    let job = cluster.wait_for(&id, "step 10 and a spare", is_ready)?;
    let rank = 2;
    let stopped = worker_of(&job, rank);
    cluster.signal(&stopped, Signal::STOP)?;
    let is_replaced = |job: &Job| is_whole(job) && job.incidents.len() == 1 && worker_of(job, rank) != stopped;
    let job = cluster.wait_for(&id, "another worker in the place", is_replaced)?;
    let epoch = job.epoch;
    cluster.signal(&stopped, Signal::CONT)?;
    // It is told that its work is no longer its own, and is a spare from then on.
    let is_spare = |w: &toroid_proto::WorkerInfo| w.worker_id == stopped && w.rank < 0 && w.silent_s < 1.0;
    cluster.wait_for_workers("the stopped worker to come back as a spare", |workers| workers.iter().any(is_spare))?;
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    ensure!(job.epoch == epoch && job.incidents.len() == 1, "its return disturbed the job: {:#?}", job.incidents);
    let timeout_s = f64::from(FAILURE_TIMEOUT_MS) / 1e3;
    let incident = &job.incidents[0];
    ensure!(incident.detect_s >= 0.5 * timeout_s, "silence takes time to be seen: {incident:#?}");
    ensure!(incident.ranks == [rank as u32] && incident.cause.contains("was silent for"), "{incident:#?}");
    let log = incident.evidence.iter().find(|evidence| evidence.worker_id == stopped && evidence.kind == "log");
    ensure!(log.is_some_and(|log| !log.lines.is_empty()), "its last lines are told: {incident:#?}");
    TOROID.run_ok(&["checkpoint", "verify", path(&cluster.checkpoints(&id))])?;
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

/// T-8: the coordinator dies right after a worker; the next one heals the job.
#[test]
fn the_next_coordinator_heals_what_the_last_one_did_not() -> Result<()> {
    let job_file = endless_job((2, 2, 1));
    let mut cluster = Cluster::start(TOROID, 5, 1)?;
    let id = cluster.submit(&job_file)?;
    let is_ready = |job: &Job| job.curve.len() >= 10 && job.spares == 1;
    let job = cluster.wait_for(&id, "step 10 and a spare", is_ready)?;
    let victim = worker_of(&job, 3);
    cluster.kill_worker(&victim)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let is_healed = |job: &Job| is_whole(job) && worker_of(job, 3) != victim;
    cluster.wait_for(&id, "another worker in the place", is_healed)?;
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

/// Planned: the place moves, no committed step is lost, and the process may be stopped then.
#[test]
fn a_drained_worker_gives_its_place_away_and_no_step() -> Result<()> {
    let job_file = endless_job((1, 1, 4));
    let mut cluster = Cluster::start(TOROID, 4, 1)?;
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    let drained = worker_of(&job, 1);
    let refused = TOROID.run(&["drain", &drained, "--coordinator", &cluster.url()])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("no worker can take"), "drained without a spare: {words}");
    let spare = cluster.add_worker(1)?;
    cluster.wait_for(&id, "the spare", |job| job.spares == 1)?;
    let said = TOROID.run_ok(&["drain", &drained, "--coordinator", &cluster.url()])?;
    ensure!(said.contains(&spare) && said.contains(&id), "{said}");
    cluster.wait_for(&id, "the place to move", |job| is_whole(job) && worker_of(job, 1) == spare)?;
    cluster.kill_worker(&drained)?;
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    ensure!(job.incidents.len() == 1 && job.incidents[0].rung == "drain", "{:#?}", job.incidents);
    let listed = TOROID.run_ok(&["incidents", &id, "--coordinator", &cluster.url()])?;
    ensure!(listed.contains("drain") && listed.contains("1 incident"), "{listed}");
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

/// `toroid chaos` comes to the same verdict, and its exit code says so.
#[test]
fn chaos_verifies_and_reports() -> Result<()> {
    let report = chaos(&["--preset", "micro", "--tp", "1", "--pp", "1", "--dp", "2", "--kills", "2", "--spares", "1"])?;
    ensure!(report["faults"].as_array().is_some_and(|faults| faults.len() == 2), "{report:#}");
    ensure!(report["recovery_s"]["median"].as_f64().is_some_and(|s| s > 0.0), "{report:#}");
    Ok(())
}

/// T-3, T-8: two workers at the same moment, and the coordinator while they are replaced, twice.
#[test]
fn pairs_and_the_coordinator_die_and_no_step_is_lost() -> Result<()> {
    let shape = ["--preset", "micro", "--tp", "1", "--pp", "1", "--dp", "4", "--spares", "2"];
    let report = chaos(&[&shape[..], &["--kills", "4", "--at-once", "2", "--coordinator"]].concat())?;
    ensure!(report["faults"].as_array().is_some_and(|faults| faults.len() == 4), "{report:#}");
    assert_eq!(report["coordinator_kills"], 2, "{report:#}");
    Ok(())
}

/// Two workers take turns at one place and are stopped there three times each: the rule against crash loops puts them aside, and the run
/// takes them back, since it is the run that makes them fail.
#[test]
fn workers_that_are_stopped_again_and_again_are_taken_back() -> Result<()> {
    let shape = ["--preset", "micro", "--tp", "1", "--pp", "1", "--dp", "2", "--spares", "1"];
    let faults = ["--how", "stop", "--rank", "1", "--kills", "6", "--failure-timeout-ms", "2000"];
    let report = chaos(&[&shape[..], &faults].concat())?;
    ensure!(report["faults"].as_array().is_some_and(|faults| faults.len() == 6), "{report:#}");
    ensure!(report["readmitted"].as_u64().is_some_and(|num| num >= 1), "{report:#}");
    Ok(())
}

/// The report of a run that held in every respect.
fn chaos(args: &[&str]) -> Result<serde_json::Value> {
    let dir = tempfile::tempdir()?;
    let output = TOROID
        .command()
        .args(["chaos", "--verify", "--threads", "1", "--seed", "3", "-o", "json"])
        .args(["--data", path(&text_folder()), "--dir", path(dir.path())])
        .args(args)
        .output()?;
    let (text, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{text}{stderr}");
    let report: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(report["problems"], serde_json::json!([]));
    assert_eq!((&report["is_verified"], &report["steps_lost"], &report["seed"]), (&true.into(), &0.into(), &3.into()));
    Ok(report)
}
