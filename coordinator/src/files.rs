//! What a job has on disk: its folder with `job.toml` and `curve.csv`, and what is wrong with it.
//!
//! ```text
//!   at the start   sound ─ repaired (a job that goes on: what can be read is written anew, the damaged file is kept beside it)
//!                        └ damaged  (a job that has ended: shown as such, its file stays as it is)
//!   later          a row cannot be written: it waits in memory, and with it whatever says that it is kept; tried again every second
//! ```
//!
//! With records in etcd the rows are beside the job's checkpoints (`segments`), and the job's folder is this coordinator's copy, made anew each
//! time that it begins to lead. Where they cannot be read then, the job goes on and its rows wait. Rows that go to a bucket are on their way for
//! a while (`carrier`): what says that they are kept waits for them as it does for a disk, and others do not wait.
//!
//! A fault is that of one job: users see it with the job, the others go on. A folder that the store does not know is never used.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use toroid_proto as proto;
use toroid_proto::coordinator_message::Body;
use toroid_torus::ids::{Epoch, JobId, Step, Term};

use crate::carrier::Carrier;
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
    /// Takes the jobs whose rows have come to a bucket, or did not.
    pub carried: Option<UnboundedSender<JobId>>,
    /// Stores that have not answered since this one leads: nobody waits for them a second time.
    pub away: Away,
}

/// See [`Place`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Away(Arc<Mutex<BTreeSet<String>>>);

impl Away {
    /// What is asked of the store of `segments`, unless it is away; one that does not answer is from now on.
    pub fn ask<T>(
        &self,
        segments: &Segments,
        ask: impl FnOnce() -> Result<T, SegmentsError>,
    ) -> Result<T, SegmentsError> {
        let Some(store) = segments.store() else { return ask() };
        let away = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if away().contains(&store) {
            let error = format!("the store of {store} has not answered for another job").into();
            return Err(SegmentsError::Unanswered { what: "reading", path: segments.folder().into(), error });
        }
        let answer = ask();
        if let Err(SegmentsError::Unanswered { .. }) = &answer {
            away().insert(store);
        }
        answer
    }
}

impl Place {
    pub fn folder(&self, job: &str) -> PathBuf {
        self.jobs_dir.join(job)
    }

    /// `None`: the curve is here and nowhere else.
    pub fn segments(&self, record: &JobRecord) -> Result<Option<Segments>, SegmentsError> {
        let shared = || Some((record.spec.checkpoint.path.as_deref()?, record.owner?, self.shared?));
        shared().map(|(root, owner, term)| Segments::new(root, owner, term)).transpose()
    }

    fn carrier(&self, job: &str, segments: Segments, found: Option<Found>, newest: u64) -> Carrier {
        let (job, carried) = (JobId::from(job), self.carried.clone());
        let wake = move || {
            // A driver that is gone has nobody to tell.
            drop(carried.as_ref().map(|carried| carried.send(job.clone())));
        };
        Carrier::new(segments, found, newest, Box::new(wake))
    }
}

/// What must not be said before the rows are on disk.
#[derive(Debug)]
struct Held {
    stream: StreamId,
    message: Box<proto::CoordinatorMessage>,
    /// It may be said when the rows up to this step are.
    step: u64,
}

pub(crate) struct JobFiles {
    curve: Curve,
    /// What is damaged, or why rows wait.
    fault: Option<String>,
    /// Rows wait in memory.
    is_stalled: bool,
    held: VecDeque<Held>,
    /// The curve is longer than it was known to be when this coordinator began to lead.
    is_outdated: bool,
    /// The last step that was kept when rows were taken back, the least since it was asked for.
    cut_to: Option<u64>,
}

/// The files of a job, what they say of its steps, and how they were found.
pub(crate) type Restored = (JobFiles, Vec<StepSummary>, Condition);

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
        if let Some(segments) = place.segments(record).map_err(|e| e.to_string())? {
            share(place, record, &mut curve, segments, None);
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
    pub fn restore(place: &Place, record: &JobRecord) -> Restored {
        let folder = place.folder(&record.id);
        let restored = match place.segments(record) {
            Ok(None) => try_restore(&folder, record, &folder.join(FILE_NAME).display().to_string()),
            Ok(Some(segments)) => restore_shared(place, &folder, record, segments),
            Err(error) => Err(error.to_string()),
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
                if let Ok(Some(mut segments)) = place.segments(record) {
                    segments.leave_unread();
                    share(place, record, &mut files.curve, segments, None);
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
                self.is_outdated = error.is_outdated();
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
        let waits = self.is_stalled || self.curve.num_unwritten() > 0;
        waits && matches!(body, Body::StepAck(_) | Body::PublishManifest(_))
    }

    pub fn hold(&mut self, stream: StreamId, message: Box<proto::CoordinatorMessage>) {
        // An acknowledgement is one of all steps before.
        if acknowledged(&message).is_some() {
            self.held.retain(|held| acknowledged(&held.message).is_none());
        }
        if self.held.len() == MAX_HELD {
            self.held.pop_front();
        }
        self.held.push_back(Held { stream, message, step: self.curve.newest_step() });
    }

    /// What may be said now. Of steps that are on their way, those that have come are acknowledged before the others.
    pub fn released(&mut self) -> Vec<(StreamId, Box<proto::CoordinatorMessage>)> {
        if self.is_stalled {
            return Vec::new();
        }
        let written = self.curve.written_step();
        let is_all = self.curve.num_unwritten() == 0;
        let mut released = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if is_all || held.step <= written {
                released.push((held.stream, held.message));
                continue;
            }
            if let Some(ack) = acknowledged(&held.message).filter(|_| written > 0) {
                let body = Some(Body::StepAck(proto::StepAck { step: written, ..ack.clone() }));
                let message = proto::CoordinatorMessage { body, ..(*held.message).clone() };
                released.push((held.stream, Box::new(message)));
            }
            self.held.push_back(held);
        }
        released
    }
}

fn acknowledged(message: &proto::CoordinatorMessage) -> Option<&proto::StepAck> {
    match &message.body {
        Some(Body::StepAck(ack)) => Some(ack),
        _ => None,
    }
}

/// From now on the rows of `curve` are where other coordinators find them, as far as they are there: `found` is what this one goes on from.
fn share(place: &Place, record: &JobRecord, curve: &mut Curve, segments: Segments, found: Option<Found>) {
    if segments.is_remote() {
        curve.carry(place.carrier(&record.id, segments, found, curve.newest_step()));
    } else {
        curve.share(segments);
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

type Opened = (Curve, Vec<StepSummary>, Condition);

/// With what other coordinators have left of the curve.
fn restore_shared(place: &Place, folder: &Path, record: &JobRecord, mut segments: Segments) -> Result<Opened, String> {
    let found = match fetch(place, folder, &segments) {
        Ok(found) => found,
        Err(error) if record.state.is_ended() => return Err(error.to_string()),
        Err(error) => {
            segments.leave_unread();
            let mut curve = Curve::empty(folder);
            share(place, record, &mut curve, segments, None);
            return Ok((curve, Vec::new(), Condition::Unread(stalled(&error))));
        }
    };
    let (mut curve, summaries, condition) = try_restore(folder, record, segments.folder())?;
    let mut to_take_over = None;
    let kept = match (found, &condition) {
        (None, _) => Ok(()),
        (Some(found), _) if record.state.is_ended() => {
            segments.remember(&found).map_err(|e| e.to_string())?;
            Ok(())
        }
        (Some(_), Condition::Repaired(_)) => curve.replace_in(&mut segments),
        (Some(found), _) if segments.is_remote() => {
            to_take_over = Some(found);
            Ok(())
        }
        (Some(found), _) => segments.take_over(found).map_err(CurveError::from),
    };
    let condition = match kept {
        Ok(()) => condition,
        Err(error) => {
            segments.leave_unread();
            Condition::Unread(stalled(&error))
        }
    };
    share(place, record, &mut curve, segments, to_take_over);
    Ok((curve, summaries, condition))
}

/// Makes the copy in `folder` anew; where nothing was found, there is none.
fn fetch(place: &Place, folder: &Path, segments: &Segments) -> Result<Option<Found>, CurveError> {
    let failed = |what, error| CurveError::Io { what, path: folder.into(), error };
    std::fs::create_dir_all(folder).map_err(|error| failed("making", error))?;
    let found = place.away.ask(segments, || segments.find())?;
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
fn try_restore(folder: &Path, record: &JobRecord, kept: &str) -> Result<Opened, String> {
    let is_ended = record.state.is_ended();
    let had_rows = record.high_step > record.restore_step;
    let path = folder.join(FILE_NAME);
    let is_gone = !path.exists();
    if is_gone && is_ended {
        let what = if folder.exists() { kept.to_string() } else { folder.display().to_string() };
        let gone = Condition::Damaged(format!("{what} is gone"));
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
        return Err(format!("{kept} has {num} rows, and this job has made no step: the folder is another's"));
    }
    let (last, expected) =
        (summaries.last().map_or(Step::ZERO, |s| s.step).max(record.restore_step), expected_step(record));
    let condition = match (is_gone, last < expected) {
        (true, _) if had_rows => Condition::Repaired(format!("{kept} was gone; a new one begins")),
        (_, false) => Condition::Sound,
        (_, true) => {
            let text = format!("{kept} ends at step {last}, and had step {expected}");
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

fn damaged(folder: &Path, is_ended: bool, error: &CurveError) -> Result<Opened, String> {
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
mod tests;
