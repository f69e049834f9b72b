//! What a job has on disk: its folder with `job.toml` and `curve.csv`, and what is wrong with it.
//!
//! ```text
//!   at the start   sound ─ repaired (a job that goes on: what can be read is written anew, the damaged file is kept beside it)
//!                        └ damaged  (a job that has ended: shown as such, its file stays as it is)
//!   later          a row cannot be written: it waits in memory, and with it whatever says that it is kept; tried again every second
//! ```
//!
//! With records in etcd the rows are in the folder of the job's checkpoints (`segments`), and the job's folder is this coordinator's copy, made anew each
//! time that it begins to lead. Where they cannot be read then, the job goes on and its rows wait.
//!
//! A fault is that of one job: users see it with the job, the others go on. A folder that the store does not know is never used.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toroid_proto as proto;
use toroid_proto::coordinator_message::Body;
use toroid_torus::ids::{Epoch, Step, Term};

use crate::curve::{Curve, CurveError, FILE_NAME, Salvage};
use crate::error::CoordinatorError;
use crate::machine::record::{JobRecord, State};
use crate::machine::{StepSummary, StreamId};
use crate::segments::{Found, Segments, SegmentsError};

/// Rows that wait for the disk, by job; beyond, the job fails.
pub(crate) const MAX_UNWRITTEN_BYTES: usize = 64 << 20;
/// Messages that wait with them, by job; beyond, the oldest are dropped: the checkpoint that they are about is then late, which is told.
const MAX_HELD: usize = 16;
/// Between two attempts to write what waits.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Where jobs have their files.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// On this coordinator's disk.
    pub jobs_dir: PathBuf,
    /// Of this leadership, where other coordinators are to find the curves; `None`: there are no others.
    pub shared: Option<Term>,
}

impl Place {
    pub fn folder(&self, job: &str) -> PathBuf {
        self.jobs_dir.join(job)
    }

    pub fn segments(&self, record: &JobRecord) -> Option<Segments> {
        let (term, root, owner) = (self.shared?, record.spec.checkpoint.path.as_deref()?, record.owner?);
        Some(Segments::new(root, owner, term))
    }
}

pub(crate) struct JobFiles {
    curve: Curve,
    /// What is damaged, or why rows wait.
    fault: Option<String>,
    /// Rows wait in memory.
    is_stalled: bool,
    /// What must not be said before the rows are on disk.
    held: VecDeque<(StreamId, Box<proto::CoordinatorMessage>)>,
    /// The curve is longer than it was known to be when this coordinator began to lead.
    is_outdated: bool,
    /// The last step that was kept when rows were taken back, the least since it was asked for.
    cut_to: Option<u64>,
}

/// How the files of a job were found when the coordinator started.
pub(crate) enum Condition {
    Sound,
    /// In words: what was lost, and what was done.
    Repaired(String),
    /// In words. Rows wait until they can be read.
    Unread(String),
    /// In words. A job that has not ended cannot go on.
    Damaged(String),
}

/// Names of the folders in `jobs_dir`, which is made where it is missing.
pub(crate) fn folders(jobs_dir: &Path) -> Result<BTreeSet<String>, CoordinatorError> {
    let failed = |what| move |error| CoordinatorError::Io { what, path: jobs_dir.into(), error };
    std::fs::create_dir_all(jobs_dir).map_err(failed("making"))?;
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(jobs_dir).map_err(failed("listing"))? {
        names.insert(entry.map_err(failed("listing"))?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

impl JobFiles {
    /// Makes the folder of a new job. One that is there already is not the job's, whosever it is.
    pub fn create(place: &Place, record: &JobRecord, toml: &str) -> Result<JobFiles, String> {
        let folder = place.folder(&record.id);
        match std::fs::create_dir(&folder) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(format!("its folder {} was there before the job: move it away", folder.display()));
            }
            Err(e) => return Err(format!("its folder {} cannot be made: {e}", folder.display())),
        }
        write_job_file(&folder, toml)?;
        let (mut curve, _) = Curve::open(&folder).map_err(|e| e.to_string())?;
        if let Some(segments) = place.segments(record) {
            curve.share(segments);
        }
        Ok(JobFiles::of(curve))
    }

    fn of(curve: Curve) -> JobFiles {
        JobFiles { curve, fault: None, is_stalled: false, held: VecDeque::new(), is_outdated: false, cut_to: None }
    }

    /// Of a job whose files cannot be used.
    pub fn broken(place: &Place, job: &str, reason: &str) -> JobFiles {
        JobFiles { fault: Some(reason.into()), ..JobFiles::of(Curve::empty(&place.folder(job))) }
    }

    /// The files of a job that the store knows.
    pub fn restore(place: &Place, record: &JobRecord) -> (JobFiles, Vec<StepSummary>, Condition) {
        let folder = place.folder(&record.id);
        let restored = match place.segments(record) {
            None => try_restore(&folder, record, &folder.join(FILE_NAME)),
            Some(segments) => restore_shared(&folder, record, segments),
        };
        match restored {
            Ok((curve, summaries, condition)) => {
                let mut files = JobFiles::of(curve);
                match &condition {
                    Condition::Damaged(reason) => files.fault = Some(reason.clone()),
                    Condition::Unread(reason) => (files.fault, files.is_stalled) = (Some(reason.clone()), true),
                    Condition::Sound | Condition::Repaired(_) => {}
                }
                (files, summaries, condition)
            }
            Err(reason) => {
                let mut files = JobFiles::broken(place, &record.id, &reason);
                // Should the job go on, what is there is read first.
                if let Some(mut segments) = place.segments(record) {
                    segments.leave_unread();
                    files.curve.share(segments);
                }
                (files, Vec::new(), Condition::Damaged(reason))
            }
        }
    }

    pub fn curve(&self) -> &Curve {
        &self.curve
    }

    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Only a leadership that begins anew knows the curve as it is.
    pub fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Rows that wait are more than are kept.
    pub fn is_overrun(&self) -> bool {
        self.curve.unwritten_bytes() > MAX_UNWRITTEN_BYTES
    }

    /// The text of an event where rows begin to wait.
    pub fn append(&mut self, record: &proto::StepRecord) -> Option<String> {
        self.curve.push(record);
        // All that waits is written at once, and not again for each row.
        if self.is_stalled { None } else { self.flush() }
    }

    /// The same for steps of which nobody has the figures any more.
    pub fn append_gap(&mut self, steps: RangeInclusive<u64>) -> Option<String> {
        self.curve.push_gap(steps);
        if self.is_stalled { None } else { self.flush() }
    }

    pub fn is_cut(&self) -> bool {
        self.cut_to.is_some()
    }

    /// See [`crate::handle::Exported::cut_to`].
    pub fn take_cut(&mut self) -> Option<u64> {
        self.cut_to.take()
    }

    pub fn cut(&mut self, keep: u64) -> Option<String> {
        self.cut_to = Some(self.cut_to.map_or(keep, |before| before.min(keep)));
        match self.curve.cut(keep) {
            Err(error) if !self.is_stalled => Some(self.stall(&error)),
            _ => None,
        }
    }

    /// Writes what waits; the text of an event where that begins to fail, or works again.
    pub fn flush(&mut self) -> Option<String> {
        match (self.curve.flush(), self.is_stalled) {
            (Ok(()), false) => None,
            (Ok(()), true) => {
                (self.is_stalled, self.fault) = (false, None);
                Some("all rows of the curve are on disk again".into())
            }
            (Err(error), true) => {
                self.is_outdated =
                    matches!(error, CurveError::Shared(SegmentsError::Another { .. } | SegmentsError::Deposed { .. }));
                self.fault = Some(stalled(&error));
                None
            }
            (Err(error), false) => Some(self.stall(&error)),
        }
    }

    fn stall(&mut self, error: &CurveError) -> String {
        self.is_stalled = true;
        let text = stalled(error);
        self.fault = Some(text.clone());
        text
    }

    /// Whether the message says, or lets workers conclude, that the curve is kept as far as it goes.
    pub fn must_hold(&self, body: &Body) -> bool {
        self.is_stalled && matches!(body, Body::StepAck(_) | Body::PublishManifest(_))
    }

    pub fn hold(&mut self, stream: StreamId, message: Box<proto::CoordinatorMessage>) {
        // An acknowledgement is one of all steps before.
        let is_ack = |m: &proto::CoordinatorMessage| matches!(m.body, Some(Body::StepAck(_)));
        if is_ack(&message) {
            self.held.retain(|(_, held)| !is_ack(held));
        }
        if self.held.len() == MAX_HELD {
            self.held.pop_front();
        }
        self.held.push_back((stream, message));
    }

    /// What may be said now.
    pub fn released(&mut self) -> VecDeque<(StreamId, Box<proto::CoordinatorMessage>)> {
        if self.is_stalled { VecDeque::new() } else { std::mem::take(&mut self.held) }
    }
}

fn stalled(error: &CurveError) -> String {
    format!(
        "{error}; the rows wait in memory, and checkpoints with them, until it can be written: free space or repair the folder"
    )
}

fn write_job_file(folder: &Path, toml: &str) -> Result<(), String> {
    let file = folder.join("job.toml");
    if file.exists() {
        return Ok(());
    }
    std::fs::write(&file, toml).map_err(|e| format!("{} cannot be written: {e}", file.display()))
}

type Restored = (Curve, Vec<StepSummary>, Condition);

/// With what other coordinators have left of the curve.
fn restore_shared(folder: &Path, record: &JobRecord, mut segments: Segments) -> Result<Restored, String> {
    let found = match fetch(folder, &segments) {
        Ok(found) => found,
        Err(error) if record.state.is_ended() => return Err(error.to_string()),
        Err(error) => {
            segments.leave_unread();
            let mut curve = Curve::empty(folder);
            curve.share(segments);
            return Ok((curve, Vec::new(), Condition::Unread(stalled(&error))));
        }
    };
    let (mut curve, summaries, condition) = try_restore(folder, record, segments.folder())?;
    let kept = match (found, &condition) {
        (None, _) => Ok(()),
        (Some(found), _) if record.state.is_ended() => {
            segments.remember(&found).map_err(|e| e.to_string())?;
            Ok(())
        }
        (Some(_), Condition::Repaired(_)) => curve.replace_in(&mut segments),
        (Some(found), _) => segments.take_over(found).map_err(CurveError::from),
    };
    let condition = match kept {
        Ok(()) => condition,
        Err(error) => {
            segments.leave_unread();
            Condition::Unread(stalled(&error))
        }
    };
    curve.share(segments);
    Ok((curve, summaries, condition))
}

/// Makes the copy in `folder` anew; where nothing was found, there is none.
fn fetch(folder: &Path, segments: &Segments) -> Result<Option<Found>, CurveError> {
    let failed = |what, error| CurveError::Io { what, path: folder.into(), error };
    std::fs::create_dir_all(folder).map_err(|error| failed("making", error))?;
    let found = segments.find()?;
    match &found {
        Some(found) => Curve::copy_from(segments, found, folder)?,
        None => match std::fs::remove_file(folder.join(FILE_NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing an old curve from", error));
            }
            _ => {}
        },
    }
    Ok(found)
}

/// `kept`: where the curve was.
fn try_restore(folder: &Path, record: &JobRecord, kept: &Path) -> Result<Restored, String> {
    let is_ended = record.state.is_ended();
    let had_rows = record.high_step > record.restore_step;
    let path = folder.join(FILE_NAME);
    let is_gone = !path.exists();
    if is_gone && is_ended {
        let what = if folder.exists() { kept } else { folder };
        let gone = Condition::Damaged(format!("{} is gone", what.display()));
        return Ok((Curve::empty(folder), Vec::new(), if had_rows { gone } else { Condition::Sound }));
    }
    if !is_ended {
        std::fs::create_dir_all(folder).map_err(|e| format!("its folder {} cannot be made: {e}", folder.display()))?;
        write_job_file(folder, &record.spec.to_toml())?;
    }
    let (curve, summaries) = match Curve::open(folder) {
        Ok(opened) => opened,
        Err(error @ CurveError::Io { .. }) => return Err(error.to_string()),
        Err(error) => return damaged(folder, is_ended, &error),
    };
    if record.epoch == Epoch::NONE && !is_ended && !summaries.is_empty() {
        let num = summaries.len();
        return Err(format!(
            "{} has {num} rows, and this job has made no step: the folder is another's",
            kept.display()
        ));
    }
    let (last, expected) =
        (summaries.last().map_or(Step::ZERO, |s| s.step).max(record.restore_step), expected_step(record));
    let condition = match (is_gone, last < expected) {
        (true, _) if had_rows => Condition::Repaired(format!("{} was gone; a new one begins", kept.display())),
        (_, false) => Condition::Sound,
        (_, true) => {
            let text = format!("{} ends at step {last}, and had step {expected}", kept.display());
            if is_ended { Condition::Damaged(text) } else { Condition::Repaired(text) }
        }
    };
    Ok((curve, summaries, condition))
}

/// The curve was on disk up to this step.
fn expected_step(record: &JobRecord) -> Step {
    let saved = record.last_checkpoint().map_or(Step::ZERO, |c| c.step);
    if record.state == State::Done { Step::new(record.spec.steps) } else { saved }
}

fn damaged(folder: &Path, is_ended: bool, error: &CurveError) -> Result<Restored, String> {
    let Salvage { mut curve, summaries, num_rows } = Curve::salvage(folder).map_err(|e| format!("{error}; {e}"))?;
    let taken = format!("{} of {num_rows} rows can be read", summaries.len());
    if is_ended {
        return Ok((curve, summaries, Condition::Damaged(format!("{error}; {taken}"))));
    }
    let kept: PathBuf = curve.rewrite().map_err(|e| format!("{error}; {taken}; {e}"))?;
    let text = format!("{error}; {taken} and are in a new file, the damaged one is kept as {}", kept.display());
    Ok((curve, summaries, Condition::Repaired(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_torus::ids::Term;
    use toroid_torus::owner::{OWNER_NAME, Owner};

    fn record_of(state: State) -> JobRecord {
        JobRecord { state, epoch: Epoch::new(1), high_step: Step::new(3), ..crate::tests::submitted("j") }
    }

    fn local(jobs_dir: &tempfile::TempDir) -> Place {
        Place { jobs_dir: jobs_dir.path().into(), shared: None }
    }

    fn step(step: u64) -> proto::StepRecord {
        proto::StepRecord { step, loss: 0.5, ..Default::default() }
    }

    /// Files of j-1 with three rows, whose second and third were swapped.
    fn swapped() -> (tempfile::TempDir, PathBuf) {
        let jobs_dir = tempfile::tempdir().unwrap();
        let mut files = JobFiles::create(&local(&jobs_dir), &record_of(State::Running), "toml").unwrap();
        (1..=3).for_each(|n| assert_eq!(files.append(&step(n)), None));
        let path = jobs_dir.path().join("j-1").join(FILE_NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.swap(2, 3);
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        (jobs_dir, path)
    }

    fn steps(files: &JobFiles) -> Vec<u64> {
        files.curve().read(0, 99, usize::MAX).unwrap().iter().map(|r| r.step).collect()
    }

    #[test]
    fn a_job_that_goes_on_gets_a_new_curve_of_what_can_be_read() {
        let (jobs_dir, path) = swapped();
        let (mut files, summaries, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        let Condition::Repaired(text) = condition else { panic!("it is repaired") };
        for words in ["step 2 follows step 3", "3 of 3 rows can be read", "curve.csv.damaged-1"] {
            assert!(text.contains(words), "{text}");
        }
        assert_eq!((summaries.len(), files.fault()), (3, None));
        assert_eq!(files.append(&step(4)), None);
        assert_eq!(steps(&files), [1, 2, 3, 4]);
        assert!(path.with_file_name("curve.csv.damaged-1").exists());
        let (files, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        assert!(matches!(condition, Condition::Sound));
        assert_eq!(steps(&files), [1, 2, 3, 4]);
    }

    #[test]
    fn a_job_that_has_ended_is_shown_as_damaged() {
        let (jobs_dir, path) = swapped();
        let before = std::fs::read(&path).unwrap();
        let record = record_of(State::Failed);
        let (files, summaries, condition) = JobFiles::restore(&local(&jobs_dir), &record);
        assert!(matches!(condition, Condition::Damaged(text) if text.contains("step 2 follows step 3")));
        assert_eq!((summaries.len(), steps(&files)), (3, vec![1, 2, 3]));
        assert_eq!(std::fs::read(&path).unwrap(), before);

        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let (files, _, condition) = JobFiles::restore(&local(&jobs_dir), &record);
        assert!(matches!(condition, Condition::Damaged(text) if text.ends_with("j-1 is gone")));
        assert!(files.fault().is_some() && !path.exists(), "nothing is made again");
    }

    #[test]
    fn a_curve_that_is_gone_is_told_where_the_job_goes_on() {
        let (jobs_dir, path) = swapped();
        std::fs::remove_file(&path).unwrap();
        let fresh = JobRecord { high_step: Step::ZERO, ..record_of(State::Running) };
        let (_, _, condition) = JobFiles::restore(&local(&jobs_dir), &fresh);
        assert!(matches!(condition, Condition::Sound), "it had none");
        std::fs::remove_file(&path).unwrap();
        let (mut files, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        assert!(matches!(condition, Condition::Repaired(text) if text.contains("was gone; a new one begins")));
        assert_eq!(files.append(&step(4)), None);
        assert_eq!(steps(&files), [4]);
    }

    #[test]
    fn a_curve_that_ends_too_early_is_seen() {
        let (jobs_dir, _) = swapped();
        let (_, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        assert!(matches!(condition, Condition::Repaired(_)));
        let (_, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Done));
        assert!(matches!(condition, Condition::Damaged(text) if text.contains("ends at step 3, and had step 9")));
    }

    #[test]
    fn what_says_that_a_row_is_kept_waits_for_the_disk() {
        let (jobs_dir, path) = swapped();
        let (mut files, _, _) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        let away = path.with_file_name("away");
        std::fs::rename(&path, &away).unwrap();
        let ack = |step| Body::StepAck(proto::StepAck { job_id: "j-1".into(), step });
        assert!(!files.must_hold(&ack(3)));
        let event = files.append(&step(4)).unwrap();
        assert!(event.contains("curve.csv failed: No such file") && event.contains("wait in memory"), "{event}");
        assert_eq!(files.append(&step(5)), None, "it is told once");
        for n in [4, 5] {
            assert!(files.must_hold(&ack(n)));
            files.hold(
                StreamId(7),
                Box::new(proto::CoordinatorMessage { term: 1, body: Some(ack(n)), ..Default::default() }),
            );
        }
        assert_eq!((files.flush(), files.released().len()), (None, 0), "it fails again");
        std::fs::rename(&away, &path).unwrap();
        assert!(files.flush().unwrap().contains("on disk again"));
        let released: Vec<_> = files.released().into_iter().map(|(_, m)| m.body).collect();
        assert_eq!(released, [Some(ack(5))], "one acknowledgement is that of all before");
        assert_eq!((steps(&files), files.fault()), (vec![1, 2, 3, 4, 5], None));
    }

    #[test]
    fn rows_that_wait_have_a_bound() {
        let (jobs_dir, path) = swapped();
        let (mut files, _, _) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        std::fs::remove_file(&path).unwrap();
        let mut step = step(3);
        step.expert_load = vec![u64::MAX; 100_000];
        step.num_layers = 1;
        let mut num = 0;
        while !files.is_overrun() {
            (step.step, num) = (step.step + 1, num + 1);
            files.append(&step);
        }
        assert!((20..50).contains(&num), "{num} rows of 2 MiB");
    }

    #[test]
    fn messages_that_wait_for_the_disk_have_a_bound() {
        let (jobs_dir, path) = swapped();
        let (mut files, _, _) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
        std::fs::remove_file(&path).unwrap();
        assert!(files.append(&step(4)).is_some(), "the row waits");
        for step in 1..=100 {
            let body = Body::PublishManifest(proto::PublishManifest { step, ..Default::default() });
            assert!(files.must_hold(&body));
            files.hold(
                StreamId(7),
                Box::new(proto::CoordinatorMessage { term: 1, body: Some(body), ..Default::default() }),
            );
        }
        let steps = files.held.iter().filter_map(|(_, message)| match &message.body {
            Some(Body::PublishManifest(publish)) => Some(publish.step),
            _ => None,
        });
        assert!(steps.eq(85..=100), "the newest are kept");
    }

    /// The job's record, and the folder of its checkpoints.
    fn shared(root: &Path, state: State) -> JobRecord {
        let mut record = record_of(state);
        record.spec.checkpoint.path = Some(root.to_string_lossy().into_owned());
        let owner = Owner::new(record.owner.unwrap(), "j-1", "j", 1);
        std::fs::create_dir_all(root).unwrap();
        std::fs::write(root.join(OWNER_NAME), owner.to_json()).unwrap();
        record
    }

    /// A coordinator with a disk of its own that leads with this term.
    fn coordinator(term: u64) -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { jobs_dir: dir.path().into(), shared: Some(Term::new(term)) };
        (dir, place)
    }

    #[test]
    fn the_curve_outlives_the_disk_of_a_coordinator() {
        let root = tempfile::tempdir().unwrap();
        let record = shared(root.path(), State::Running);
        let (first_dir, first) = coordinator(1);
        let mut files = JobFiles::create(&first, &record, "toml").unwrap();
        (1..=3).for_each(|n| assert_eq!(files.append(&step(n)), None));
        files.append_gap(4..=5);
        drop(first_dir);

        let (second_dir, second) = coordinator(2);
        let (mut files, summaries, condition) = JobFiles::restore(&second, &record);
        assert!(matches!(condition, Condition::Sound));
        assert_eq!((summaries.len(), steps(&files)), (5, vec![1, 2, 3, 4, 5]));
        assert_eq!(files.cut(2), None);
        assert_eq!(files.append(&step(3)), None);
        let text = std::fs::read_to_string(second_dir.path().join("j-1").join(FILE_NAME)).unwrap();
        assert_eq!(text.lines().count(), 4, "people find it, too: {text}");

        // The first comes back to lead, with an old copy: what counts is what all find.
        let (_third_dir, third) = coordinator(3);
        std::fs::create_dir(third.folder("j-1")).unwrap();
        std::fs::write(third.folder("j-1").join(FILE_NAME), "an old copy").unwrap();
        let (files, _, condition) = JobFiles::restore(&third, &record);
        assert!(matches!(condition, Condition::Sound));
        assert_eq!(files.curve().read(0, 9, usize::MAX).unwrap(), [step(1), step(2), step(3)]);
        let (_fourth_dir, fourth) = coordinator(4);
        let (files, summaries, _) = JobFiles::restore(&fourth, &shared(root.path(), State::Failed));
        assert_eq!((summaries.len(), files.fault()), (3, None), "one that has ended is shown");
    }

    #[test]
    fn a_curve_that_cannot_be_read_now_is_left_for_whoever_can() {
        let root = tempfile::tempdir().unwrap();
        let (root, away) = (root.path().join("ck"), root.path().join("away"));
        let record = shared(&root, State::Running);
        let (_first_dir, first) = coordinator(1);
        JobFiles::create(&first, &record, "toml").unwrap().append(&step(1));
        // The owner's record is there, and what is in the folder cannot be read.
        std::fs::rename(root.join("curve"), &away).unwrap();
        std::fs::write(root.join("curve"), "").unwrap();
        let (_second_dir, second) = coordinator(2);
        let (mut files, summaries, condition) = JobFiles::restore(&second, &record);
        assert!(matches!(condition, Condition::Unread(text) if text.contains("wait in memory")));
        assert!(summaries.is_empty() && files.is_stalled());
        assert_eq!((files.append(&step(2)), files.flush(), files.is_outdated()), (None, None, false));
        std::fs::remove_file(root.join("curve")).unwrap();
        std::fs::rename(&away, root.join("curve")).unwrap();
        assert_eq!((files.flush(), files.is_outdated()), (None, true), "{:?}", files.fault());
        let (_third_dir, third) = coordinator(3);
        let (files, _, condition) = JobFiles::restore(&third, &record);
        assert!(matches!(condition, Condition::Sound));
        assert_eq!(steps(&files), [1]);
    }

    #[test]
    fn a_damaged_segment_is_written_anew_for_all() {
        let root = tempfile::tempdir().unwrap();
        let record = shared(root.path(), State::Running);
        let (_first_dir, first) = coordinator(1);
        let mut files = JobFiles::create(&first, &record, "toml").unwrap();
        (1..=3).for_each(|n| assert_eq!(files.append(&step(n)), None));
        let head = std::fs::read_dir(root.path().join("curve")).unwrap().next().unwrap().unwrap().path();
        let damaged = std::fs::read_to_string(&head).unwrap().replacen("\n2,", "\n2,x", 1);
        std::fs::write(&head, damaged).unwrap();
        let (_second_dir, second) = coordinator(2);
        let (_, _, condition) = JobFiles::restore(&second, &record);
        assert!(matches!(condition, Condition::Repaired(text) if text.contains("2 of 3 rows can be read")));
        let (_third_dir, third) = coordinator(3);
        let (files, _, condition) = JobFiles::restore(&third, &record);
        assert!(matches!(condition, Condition::Sound), "what could be read is what all find");
        assert_eq!(steps(&files), [1, 3]);
    }
}
