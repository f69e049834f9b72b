//! The event files of one job, in the order of their names: a new one each time that writing begins, and after 64 MiB.
//!
//! ```text
//!   events.out.tfevents.0000000001.toroid      version, START 1, steps 1 ... 60, torn by a crash
//!   events.out.tfevents.0000000002.toroid      version, START 61, steps 61 ... 99, STOP
//! ```
//!
//! START says that what was said before of its step and later ones does not count, STOP that the job has ended and all is there. A file is open
//! only while it is written to or read: a coordinator has more jobs than it may open files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use toroid_proto as proto;

use super::events::{self, EPOCH, Event, LOSS, Status, VALIDATION, What};

/// Of a job's folder.
const FOLDER: &str = "tensorboard";
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".toroid";
/// A longer file is followed by another.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// A STOP with all that is around it, and more.
const LAST_BYTES: u64 = 256;
/// Read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The figures of a step by which it is known again: as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub step: u64,
    loss: u32,
    epoch: u32,
}

impl Mark {
    pub fn of(record: &proto::StepRecord) -> Mark {
        Mark::new(record.step, record.loss as f32, record.epoch as f32)
    }

    fn new(step: u64, loss: f32, epoch: f32) -> Mark {
        Mark { step, loss: loss.to_bits(), epoch: epoch.to_bits() }
    }
}

/// What was written of a job, and what comes next.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Of the newest file; 0: there is none.
    number: u64,
    /// How long it is as far as it is sound; `None`: the next event begins a new one.
    bytes: Option<u64>,
    pub next_step: u64,
    /// The newest step that is written; `None`: none, or it does not count any more.
    pub last: Option<Mark>,
    /// Validations before this step are written.
    pub next_validation: u64,
    /// STOP is the last word.
    pub is_complete: bool,
}

impl Folder {
    /// As it was left, by this process or another before it. `is_ended`: the job is, and most have nothing to add.
    pub fn open(job_folder: &Path, is_ended: bool) -> io::Result<Folder> {
        let path = job_folder.join(FOLDER);
        let mut folder =
            Folder { path, number: 0, bytes: None, next_step: 1, last: None, next_validation: 0, is_complete: false };
        let numbers = folder.numbers()?;
        folder.number = numbers.last().copied().unwrap_or(0);
        if is_ended && folder.number > 0 && folder.ends_with_stop()? {
            folder.is_complete = true;
            return Ok(folder);
        }
        for number in numbers {
            folder.recall(number)?;
        }
        folder.is_complete &= is_ended;
        Ok(folder)
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok());
            numbers.extend::<Option<u64>>(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn file(&self, number: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{number:010}{SUFFIX}"))
    }

    fn ends_with_stop(&self) -> io::Result<bool> {
        let mut file = File::open(self.file(self.number))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_BYTES).read_to_end(&mut bytes)?;
        let ends_here = |at: usize| events::read(&bytes[at..]).filter(|(_, length)| at + length == bytes.len());
        let last = (0..bytes.len()).find_map(ends_here);
        Ok(last.is_some_and(|(event, _)| is_session(&event, Status::Stop)))
    }

    /// Takes in what a file says, as readers do; a torn end is cut off.
    fn recall(&mut self, number: u64) -> io::Result<()> {
        let path = self.file(number);
        let mut file = File::open(&path)?;
        let (mut bytes, mut at, mut sound) = (Vec::new(), 0, 0_u64);
        loop {
            while let Some((event, length)) = events::read(&bytes[at..]) {
                self.recall_event(&event);
                (at, sound) = (at + length, sound + length as u64);
            }
            bytes.drain(..at);
            at = 0;
            if (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut bytes)? == 0 {
                break;
            }
        }
        if !bytes.is_empty() {
            OpenOptions::new().write(true).open(&path)?.set_len(sound)?;
        }
        Ok(())
    }

    fn recall_event(&mut self, event: &Event) {
        let step = u64::try_from(event.step).unwrap_or(0);
        if let Some(What::Session(_)) = event.what {
            self.is_complete = is_session(event, Status::Stop);
            if is_session(event, Status::Start) {
                self.forget_from(step);
            }
        } else if let Some(loss) = event.scalar(LOSS) {
            self.last = Some(Mark::new(step, loss, event.scalar(EPOCH).unwrap_or(0.0)));
            self.next_step = step + 1;
        } else if event.scalar(VALIDATION).is_some() {
            self.next_validation = step + 1;
        }
    }

    fn forget_from(&mut self, step: u64) {
        self.next_step = self.next_step.min(step);
        self.last = self.last.filter(|last| last.step < step);
        self.next_validation = self.next_validation.min(step);
    }

    /// What was written of this step and those after it does not count: a new file says so.
    pub fn begin_again(&mut self, step: u64) {
        self.forget_from(step);
        self.bytes = None;
    }

    /// Appends steps in order, from `next_step` on, and validations of them that are new. Where that fails nothing has been said, and the same may be
    /// tried again. `ended`: nothing comes after it.
    pub fn append(
        &mut self,
        wall_time: f64,
        steps: &[proto::StepRecord],
        validations: &[proto::Validation],
        ended: bool,
    ) -> io::Result<()> {
        let first = steps.first().map_or(self.next_step, |record| record.step);
        let next_step = steps.last().map_or(self.next_step, |record| record.step + 1);
        let new = validations.iter().filter(|v| v.step >= self.next_validation && v.step < next_step);
        let (mut text, mut next_validation) = (Vec::new(), self.next_validation);
        let known: Vec<&proto::StepRecord> = steps.iter().filter(|record| !record.missing).collect();
        known.iter().for_each(|record| Event::step(wall_time, record).write_into(&mut text));
        for validation in new {
            Event::validation(wall_time, validation).write_into(&mut text);
            next_validation = next_validation.max(validation.step + 1);
        }
        let closes = ended && (!self.is_complete || !text.is_empty());
        if closes {
            Event::session(wall_time, next_step - 1, Status::Stop).write_into(&mut text);
        }
        if !text.is_empty() {
            self.write(wall_time, first, &text)?;
            self.is_complete = closes;
        }
        self.last = known.last().map(|record| Mark::of(record)).or(self.last);
        (self.next_step, self.next_validation) = (next_step, next_validation);
        Ok(())
    }

    fn write(&mut self, wall_time: f64, first: u64, text: &[u8]) -> io::Result<()> {
        let bytes = match self.bytes.filter(|bytes| *bytes < MAX_FILE_BYTES) {
            Some(bytes) => bytes,
            None => self.begin_file(wall_time, first)?,
        };
        let mut file = OpenOptions::new().write(true).open(self.file(self.number))?;
        // What an attempt before has left of itself.
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        file.write_all(text)?;
        self.bytes = Some(bytes + text.len() as u64);
        Ok(())
    }

    fn begin_file(&mut self, wall_time: f64, first: u64) -> io::Result<u64> {
        std::fs::create_dir_all(&self.path)?;
        let mut head = Vec::new();
        Event::version(wall_time).write_into(&mut head);
        Event::session(wall_time, first, Status::Start).write_into(&mut head);
        let path = self.file(self.number + 1);
        let written = std::fs::write(&path, &head);
        if written.is_err() {
            // A file without its head is none; if it cannot be removed it is written over.
            let _ = std::fs::remove_file(&path);
        }
        written?;
        self.number += 1;
        self.bytes = Some(head.len() as u64);
        Ok(head.len() as u64)
    }
}

fn is_session(event: &Event, status: Status) -> bool {
    matches!(&event.what, Some(What::Session(session)) if session.status == i32::from(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(range: std::ops::RangeInclusive<u64>, epoch: u64) -> Vec<proto::StepRecord> {
        range.map(|step| proto::StepRecord { step, loss: 1.0 / step as f64, epoch, ..Default::default() }).collect()
    }

    fn validation(step: u64) -> proto::Validation {
        proto::Validation { step, ce: 3.0, ..Default::default() }
    }

    /// What a reader takes from all files: steps and validations, without those that do not count.
    fn read_all(folder: &Folder) -> (Vec<u64>, Vec<u64>) {
        let (mut steps, mut validations) = (Vec::new(), Vec::new());
        for number in folder.numbers().unwrap() {
            let bytes = std::fs::read(folder.file(number)).unwrap();
            let mut at = 0;
            while let Some((event, length)) = events::read(&bytes[at..]) {
                at += length;
                let step = event.step as u64;
                if is_session(&event, Status::Start) {
                    steps.retain(|known| *known < step);
                    validations.retain(|known| *known < step);
                } else if event.scalar(LOSS).is_some() {
                    steps.push(step);
                } else if event.scalar(VALIDATION).is_some() {
                    validations.push(step);
                }
            }
            assert_eq!(at, bytes.len(), "file {number} is sound to its end");
        }
        (steps, validations)
    }

    #[test]
    fn another_process_goes_on_where_the_files_end_wherever_they_were_torn() {
        let root = tempfile::tempdir().unwrap();
        let validations = [validation(0), validation(5), validation(12)];
        let mut folder = Folder::open(root.path(), false).unwrap();
        folder.append(1.0, &steps(1..=9, 1), &validations, false).unwrap();
        let whole = std::fs::read(folder.file(1)).unwrap();
        for num_bytes in (0..=whole.len()).step_by(11) {
            std::fs::write(folder.file(1), &whole[..num_bytes]).unwrap();
            let mut next = Folder::open(root.path(), false).unwrap();
            let all = steps(1..=20, 1);
            assert!(next.last.is_none_or(|last| last == Mark::of(&all[last.step as usize - 1])));
            let rest = &all[next.next_step as usize - 1..];
            next.append(2.0, rest, &validations, true).unwrap();
            assert_eq!(read_all(&next), ((1..=20).collect(), vec![0, 5, 12]), "torn after {num_bytes} bytes");
            assert!(Folder::open(root.path(), true).unwrap().is_complete);
            std::fs::remove_file(next.file(2)).unwrap();
        }
    }

    #[test]
    fn steps_that_are_made_again_count_once() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(root.path(), false).unwrap();
        folder.append(1.0, &steps(1..=9, 1), &[validation(3), validation(6)], false).unwrap();
        folder.begin_again(5);
        assert_eq!((folder.next_step, folder.last.map(|last| last.step)), (5, None));
        folder.append(2.0, &steps(5..=7, 2), &[validation(3), validation(6)], false).unwrap();
        assert_eq!(read_all(&folder), ((1..=7).collect(), vec![3, 6]));
        let again = Folder::open(root.path(), false).unwrap();
        assert_eq!((again.next_step, again.last, again.next_validation), (8, folder.last, 7));
    }

    /// A job that was resumed has more to say after its STOP.
    #[test]
    fn what_cannot_be_written_is_written_later() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(root.path(), false).unwrap();
        std::fs::write(root.path().join(FOLDER), "in the way").unwrap();
        folder.append(1.0, &steps(1..=3, 1), &[], false).unwrap_err();
        assert_eq!(folder.next_step, 1);
        std::fs::remove_file(root.path().join(FOLDER)).unwrap();
        folder.append(1.0, &steps(1..=3, 1), &[], true).unwrap();
        // An attempt that ended in the middle.
        let mut file = OpenOptions::new().append(true).open(folder.file(1)).unwrap();
        file.write_all(b"torn").unwrap();
        let gap = proto::StepRecord { step: 4, loss: f64::NAN, missing: true, ..Default::default() };
        folder.append(1.0, &[vec![gap], steps(5..=6, 1)].concat(), &[], true).unwrap();
        assert_eq!(read_all(&folder), (vec![1, 2, 3, 5, 6], vec![]));
        assert!(folder.is_complete);
    }
}
