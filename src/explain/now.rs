//! What is unusual about a job now, whether it had incidents or not: stragglers, checkpoints that fail, a store that cannot be written, damaged
//! files, a wait in the queue.

use toroid_proto as proto;
use toroid_proto::json::{is_ended, state_word};
use toroid_torus::units::names;

use super::{Section, Situation};
use crate::format::{count, duration};
use crate::status::slowness;

const MAX_NAMED: usize = 4;

pub fn in_a_sentence(job: &proto::Job) -> String {
    format!(
        "It is {}, {} of {} steps made: {}.",
        state_word(job.state()),
        job.committed_step,
        job.total_steps,
        job.reason
    )
}

/// One section for each thing that is not as it should be.
pub fn unusual(situation: &Situation<'_>) -> Vec<Section> {
    let job = situation.job;
    let lives = !is_ended(job.state());
    let mut sections = Vec::new();
    sections.extend(waits(job).filter(|_| lives));
    sections.extend(ended_badly(job));
    if lives {
        sections.extend(job.stragglers.iter().map(|s| straggler(situation, s)));
    }
    sections.extend(unsaved(situation));
    if !job.store_trouble.is_empty() {
        sections.push(Section::new(
            "Now: the coordinator cannot store anything",
            vec![
                format!("{}. Steps go on; decisions wait, since none is acted on before it is stored.", job.store_trouble),
                "Mend the coordinator's disk (`df -h`, `df -i` on its `--dir`) or its etcd. Nothing has to be started anew.".into(),
            ],
        ));
    }
    if !job.damaged.is_empty() {
        sections.push(Section::new(
            "Now: files of the job are damaged",
            vec![
                format!("{}.", job.damaged),
                format!("Training and checkpoints do not depend on them. The damaged file is kept as it is in {}; look at that disk.", job.folder),
            ],
        ));
    }
    sections.extend(figures(job));
    sections.extend(replicas(job).filter(|_| lives));
    sections
}

fn waits(job: &proto::Job) -> Option<Section> {
    if job.state() != proto::JobState::Queued {
        return None;
    }
    let mut paragraphs = vec![format!(
        "The coordinator's reason: {}. It has waited for {} in all, at priority {}.",
        job.reason,
        duration(job.waited_s),
        job.priority
    )];
    paragraphs.push(match (job.is_held, job.spares_aside) {
        (true, _) => format!("A user holds it: `toroid release {}` lets it run.", job.id),
        (false, 0) => {
            "More workers (`toroid worker`), a smaller shape in the job file, or a higher priority (`toroid submit --priority`) end the wait.".into()
        }
        (false, n) => format!(
            "{n} connected {} given no place: `toroid workers` says why, and how long that lasts.",
            if n == 1 { "worker is" } else { "workers are" }
        ),
    });
    Some(Section::new("Now: the job waits in the queue", paragraphs))
}

fn ended_badly(job: &proto::Job) -> Option<Section> {
    (job.state() == proto::JobState::Failed).then(|| {
        let id = &job.id;
        let to_do = match job.checkpoints.iter().max_by_key(|c| c.step) {
            Some(c) => {
                format!("When that is mended, `toroid resume {id}` goes on from the checkpoint of step {}.", c.step)
            }
            None => format!("It has no checkpoint: when that is mended, `toroid resume {id}` begins again."),
        };
        Section::new("Now: the job has failed", vec![format!("{}.", job.reason), to_do])
    })
}

fn straggler(situation: &Situation<'_>, s: &proto::Straggler) -> Section {
    let host = situation.job.places.iter().find(|p| p.rank == s.rank).map_or("", |p| p.host.as_str());
    let on = if host.is_empty() { String::new() } else { format!(" on {host}") };
    let id = &s.worker_id;
    let found = format!(
        "{id} (rank {}){on} {}, measured over steps {} to {}. Peers have the same work, and waiting for others is left out. All wait for the \
         slowest, so each step takes about that much longer.",
        s.rank,
        slowness(s),
        s.from_step + 1,
        s.to_step
    );
    let at = if host.is_empty() { "its host".to_string() } else { host.to_string() };
    let to_do = format!(
        "Look at {at} for what takes the time: another program on the same cores (`top`), a processor or GPU that is held back by heat or power \
         (`nvidia-smi -q -d PERFORMANCE`, `turbostat`), a memory limit that makes it swap. `toroid drain {id}` moves the place to a spare without \
         losing a step."
    );
    Section::new(format!("Now: {id} is a straggler"), vec![found, to_do])
}

fn unsaved(situation: &Situation<'_>) -> Option<Section> {
    let job = situation.job;
    let unsaved = job.unsaved.as_ref()?;
    let for_s = (situation.now_unix_ms - unsaved.since_unix_ms) as f64 / 1e3;
    let tries = if unsaved.num_tries == 1 { "1 try".into() } else { format!("{} tries", count(unsaved.num_tries)) };
    let found = format!(
        "For {} no checkpoint was saved, in {tries}; the newest, of step {}: {}.",
        duration(for_s),
        unsaved.step,
        unsaved.error
    );
    let is_last = unsaved.step == job.total_steps && !is_ended(job.state());
    let good = match job.checkpoints.iter().max_by_key(|c| c.step) {
        Some(c) => format!("The newest good one is of step {} at {}.", c.step, c.path),
        None => "There is no earlier one.".into(),
    };
    let to_do = format!(
        "{}Make room on the disk of the checkpoints or have their folder answer again (`df -h`, `df -i`); `toroid checkpoint now {}` \
         tries at once. {good}",
        if is_last { "" } else { "Training goes on. " },
        job.id
    );
    let last =
        "This is the last step, so the workers keep its state and try again, for a day; `toroid cancel` gives it up.";
    let paragraphs = [Some(found), is_last.then(|| last.into()), Some(to_do)].into_iter().flatten().collect();
    Some(Section::new("Now: checkpoints fail", paragraphs))
}

fn figures(job: &proto::Job) -> Option<Section> {
    (job.skipped_steps > 0).then(|| {
        let found = format!("{} steps made no update: their gradients were not finite.", count(job.skipped_steps));
        let to_do = "A few at the start may be harmless. If they go on, lower `optimizer.lr`, or look at the data: after \
                     `fault_tolerance.max_skipped` in a row the job fails.";
        Section::new("Steps without an update", vec![found, to_do.into()])
    })
}

fn replicas(job: &proto::Job) -> Option<Section> {
    let (now, all) = (job.shape.as_ref()?.dp, job.full_shape.as_ref()?.dp);
    let missing: Vec<String> = job.places.iter().filter(|p| !p.alive).map(|p| format!("rank {}", p.rank)).collect();
    let mut paragraphs = Vec::new();
    if now < all {
        paragraphs.push(format!(
            "It trains with {now} of {all} replicas, with the same samples in every step. It grows when workers come."
        ));
    }
    if !missing.is_empty() && job.state() != proto::JobState::Queued {
        paragraphs.push(format!("Nobody fills {}.", names(&missing, MAX_NAMED)));
    }
    (!paragraphs.is_empty()).then(|| Section::new("Now: places are missing", paragraphs))
}
