//! A plan: all tasks of a run as a file, for machines that share the folders of sources, work and output.
//!
//! ```text
//!   plan:  00-read.units 0..n -> 00-read.done -> 01-url.keys 0..n -> ... -> 04-write.done
//!   task:  what it needs is marked? -> do its part of the step -> mark it
//! ```
//!
//! The shuffle is the sorted files of a step in the folder of work: a task reads the range that is its own from all of them. Who schedules
//! knows nothing of the data, and needs to know nothing: it starts `toroid-data task PLAN ID`, once or often, here or there.
//!
//! Invariants:
//!
//! - P-1 A task that is done again, or twice at once, changes nothing: its outputs are the same bytes and appear by a rename. A step of one
//!   item is held by one process at a time.
//! - P-2 A mark is durable after what it stands for. A task begins when all of the step before it are marked, and says so otherwise.
//! - P-3 What is written is what one process writes ([`run::run`]): it goes through the same steps.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::Pipeline;
use crate::durable::{self, Lock};
use crate::error::{At, Error, Result};
use crate::run::{self, Layout, Options, Phase, Run, SCRATCH, Step};
use crate::stage::{Watch, read_json, write_json};
use crate::step::{Over, Part};

/// Of the file.
const VERSION: u32 = 1;
/// Between two looks at the marks of others.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is said who is waited for.
const SAY: Duration = Duration::from_secs(60);

/// All that tasks need to know. Paths are absolute, and the same on all machines.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    /// Where marks of what is done lie.
    pub marks: PathBuf,
    pub num_shards: u64,
    pub keep_stages: bool,
    pub steps: Vec<PlannedStep>,
    /// In an order in which each comes behind what it needs.
    pub tasks: Vec<Task>,
    pub layout: Layout,
    pub pipeline: Pipeline,
}

/// What its tasks have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    pub name: String,
    /// Steps whose tasks must all be done.
    pub after: Vec<String>,
    pub over: Over,
    pub num_tasks: u64,
    /// Folders that it reads from and writes to.
    pub inputs: Vec<PathBuf>,
    pub outputs: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// As in `02-minhash.buckets.3`.
    pub id: String,
    pub step: String,
    /// Which part of the step's items, and of how many.
    pub part: u64,
    pub of: u64,
    /// Bytes of the sources that it answers for: of tasks that can begin, the largest should.
    pub weight_bytes: u64,
}

/// Makes the plan of a pipeline. Where some of it is done already, its tasks are marked.
pub fn make(pipeline: &Pipeline, options: &Options, watch: &dyn Watch) -> Result<Plan> {
    let _lock = run::own(pipeline)?;
    let run = Run::begin(pipeline, options, watch)?;
    let name = run::digest(&[
        &run.layout.digest,
        &options.num_shards.to_string(),
        &options.keep_stages.to_string(),
        &pipeline.read.max_bad_share.to_string(),
    ]);
    let marks = pipeline.work.join(format!("{MARKS}{name}"));
    let steps = run::steps(pipeline);
    set_marks(&run, &steps, &marks)?;
    let unit_bytes: Vec<u64> = run.cut.units.iter().map(|unit| unit.bytes()).collect();
    let all_bytes: u64 = unit_bytes.iter().sum();
    let (mut planned, mut tasks): (Vec<PlannedStep>, Vec<Task>) = (Vec::new(), Vec::new());
    for step in steps {
        let of = match step.over {
            Over::Whole => 1,
            Over::Units => options.num_shards.min(unit_bytes.len() as u64).max(1),
            Over::Pieces | Over::Hashes | Over::Tables | Over::Files => options.num_shards,
        };
        for number in 0..of {
            let weight_bytes = match step.over {
                Over::Units => Part { number, of }.of(&unit_bytes).iter().sum(),
                _ => all_bytes / of,
            };
            let id = format!("{}.{number}", step.name);
            tasks.push(Task { id, step: step.name.clone(), part: number, of, weight_bytes });
        }
        let after = planned.last().map(|before| before.name.clone()).into_iter().collect();
        let (inputs, outputs) = run.folders(step.phase);
        planned.push(PlannedStep { name: step.name, after, over: step.over, num_tasks: of, inputs, outputs });
    }
    let (num_shards, keep_stages, layout) = (options.num_shards, options.keep_stages, run.layout.clone());
    Ok(Plan {
        version: VERSION,
        marks,
        num_shards,
        keep_stages,
        steps: planned,
        tasks,
        layout,
        pipeline: pipeline.clone(),
    })
}

const MARKS: &str = "tasks-";

/// A folder of marks for this plan alone, in which what is done is marked, and nothing else.
fn set_marks(run: &Run<'_>, steps: &[Step], marks: &Path) -> Result<()> {
    let work = &run.pipeline.work;
    for entry in std::fs::read_dir(work).at("list", work)? {
        let path = entry.at("list", work)?.path();
        let is_mark = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MARKS));
        if is_mark && path != *marks {
            durable::remove_folder(&path)?;
        }
    }
    durable::make_folder(marks)?;
    durable::sweep(marks)?;
    let (is_done, num_done) = (run.is_done(), run.num_done()?);
    for step in steps {
        let is_there = match step.phase {
            // The number of bad records is looked at again.
            Phase::Read => is_done,
            Phase::Stage(n) => is_done || n < num_done,
            Phase::Write => is_done,
        };
        if is_there {
            durable::write(&marks.join(&step.name), b"")?;
        } else if !run.folders(step.phase).1.iter().all(|folder| folder.exists()) {
            remove_marks(marks, &step.name)?;
        }
    }
    Ok(())
}

/// Those of a step whose outputs are gone.
fn remove_marks(marks: &Path, step: &str) -> Result<()> {
    for entry in std::fs::read_dir(marks).at("list", marks)? {
        let path = entry.at("list", marks)?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name == step || name.strip_prefix(step).is_some_and(|rest| rest.starts_with('.')) {
            std::fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Whether a task was done now or had been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    WasDone,
}

/// How tasks are done. None of it changes what they write.
#[derive(Debug, Clone)]
pub struct How {
    pub num_threads: usize,
    pub memory_bytes: u64,
    /// Where what does not fit in memory is sorted: a folder of this machine, or the folder of work.
    pub scratch: Option<PathBuf>,
    /// How long a task waits for those before it.
    pub patience: Duration,
}

impl Plan {
    pub fn load(path: &Path) -> Result<Plan> {
        let plan: Plan = read_json(path)?;
        if plan.version != VERSION {
            let found = plan.version;
            return Err(Error::Config(format!(
                "{}: a plan of version {found}, this program has {VERSION}; plan again with it",
                path.display()
            )));
        }
        Ok(plan)
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }

    /// A task by its id, or by its number in the plan.
    pub fn find(&self, task: &str) -> Result<usize> {
        let number = task.parse().ok().filter(|number| *number < self.tasks.len());
        number.or_else(|| self.tasks.iter().position(|other| other.id == task)).ok_or_else(|| {
            let last = self.tasks.last().map_or("", |task| &task.id);
            let num = self.tasks.len();
            Error::Config(format!("there is no task `{task}`: the plan has {num}, numbered from 0, the last is {last}"))
        })
    }

    pub fn is_done(&self, task: &Task) -> bool {
        self.marks.join(&task.id).exists() || self.marks.join(&task.step).exists()
    }

    /// A task that must be done before another one and is not.
    fn missing(&self, task: &Task) -> Result<Option<&Task>> {
        let step = self.steps.iter().find(|step| step.name == task.step);
        let step = step.ok_or_else(|| Error::Config(format!("the plan has no step {}", task.step)))?;
        Ok(self.tasks.iter().find(|other| step.after.contains(&other.step) && !self.is_done(other)))
    }

    fn wait(&self, task: &Task, how: &How, watch: &dyn Watch) -> Result<()> {
        let (start, mut said) = (Instant::now(), Duration::ZERO);
        while let Some(missing) = self.missing(task)? {
            let waited = start.elapsed();
            if waited >= how.patience {
                let after = if waited < LOOK { String::new() } else { format!(" after {} s", waited.as_secs()) };
                return Err(Error::Config(format!(
                    "{} begins when {} is done, which it is not{after}; do that first, or wait with --wait-s",
                    task.id, missing.id
                )));
            }
            if waited >= said {
                watch.note(&format!("{}: waits for {}", task.id, missing.id));
                said = waited + SAY;
            }
            std::thread::sleep(LOOK.min(how.patience - waited));
        }
        Ok(())
    }

    /// Does a task, unless it is done.
    pub fn task(&self, number: usize, how: &How, watch: &dyn Watch) -> Result<Outcome> {
        let task = &self.tasks[number];
        let _lock = Lock::share(&self.pipeline.work)?;
        if !self.marks.exists() {
            let marks = self.marks.display();
            return Err(Error::Config(format!("{marks} is gone: the folder of work was made anew since; plan again")));
        }
        if self.is_done(task) {
            return Ok(Outcome::WasDone);
        }
        self.wait(task, how, watch)?;
        match self.perform(task, how, watch) {
            // Another process did it meanwhile, and the next steps may have removed what it was made of.
            Err(_) | Ok(Outcome::WasDone) if self.is_done(task) => Ok(Outcome::WasDone),
            other => other,
        }
    }

    fn perform(&self, task: &Task, how: &How, watch: &dyn Watch) -> Result<Outcome> {
        let options = Options {
            num_threads: how.num_threads,
            memory_bytes: how.memory_bytes,
            num_shards: self.num_shards,
            piece_bytes: None,
            keep_stages: self.keep_stages,
        };
        options.check()?;
        let scratch = how.scratch.clone().unwrap_or_else(|| self.pipeline.work.clone());
        let scratch = OwnFolder::make(scratch.join(format!("{SCRATCH}-{}", durable::process_name())))?;
        let cut = read_json(&self.layout.read.join("units.json"))?;
        let (pipeline, layout) = (&self.pipeline, self.layout.clone());
        let run = Run { pipeline, options: &options, watch, layout, cut, scratch: scratch.path.clone() };
        run.check_room()?;
        let steps = run::steps(pipeline);
        let step = steps.iter().find(|step| step.name == task.step);
        let step = step.ok_or_else(|| Error::Config(format!("the pipeline has no step {}", task.step)))?;
        let _held = match step.over {
            Over::Whole => Some(Lock::wait(&self.marks.join(format!(".{}.lock", step.name)))?),
            _ => None,
        };
        if self.is_done(task) {
            return Ok(Outcome::WasDone);
        }
        run.step(step, Part { number: task.part, of: task.of })?;
        durable::write(&self.marks.join(&task.id), b"")?;
        Ok(Outcome::Done)
    }
}

/// A folder that goes with the process that needs it.
struct OwnFolder {
    path: PathBuf,
}

impl OwnFolder {
    fn make(path: PathBuf) -> Result<OwnFolder> {
        durable::make_folder(&path)?;
        Ok(OwnFolder { path })
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        // The last task removes what cannot be removed now.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
