//! Plays the machines of all workers on one thread: each of a worker's threads is a coroutine that has the turn until it waits.
//!
//! ```text
//!   event loop ── resume ──> trainer, checkpoint-writer, checkpoint-publisher       the code that runs in a real worker
//!        ^                        │ System::wait, pass: suspends
//!        '── Event::Resume <──────'  at a time, or when something has happened to the worker
//! ```
//!
//! Whoever is killed is resumed once more with nobody left to hear it: the next wait unwinds its stack.
//!
//! `unsafe` is for one thing: a coroutine reaches its own yielder through a pointer that lives as long as it runs.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use toroid_worker::system::{self, Folder, Stream, System};

use crate::disk::PlayedFolder;
use crate::links::PlayedStream;
use crate::network::{AtWorker, MS, Micros, Pid};
use crate::world::{Env, Unable};

/// A worker's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thread {
    Trainer,
    Writer,
    Publisher,
}

/// Of each coroutine; what it does not touch takes no memory.
const STACK_BYTES: usize = 512 << 10;

/// Why a coroutine has given the turn away.
#[derive(Debug, Clone, Copy)]
struct Wait {
    until: Option<Micros>,
    /// It comes back earlier where something happens to its worker.
    hears: bool,
}

/// Unwinds the stack of who was killed.
struct Killed;

type Routine = Coroutine<(), Wait, (), DefaultStack>;

/// A worker's thread, between two turns.
struct Task {
    routine: Routine,
    /// Of its newest wait.
    number: u64,
}

/// The threads of one process.
#[derive(Default)]
pub struct Threads {
    tasks: BTreeMap<Thread, Task>,
    /// What a thread is to do after what it does.
    orders: BTreeMap<Thread, VecDeque<Work>>,
    num_waits: u64,
    /// The trainer does nothing any more.
    pub is_hung: bool,
    /// The trainer waits since then, for whatever happens.
    pub waits_since: Option<Micros>,
    /// The point that the trainer has passed last.
    pub point: String,
}

/// What a thread is to do.
type Work = Box<dyn FnOnce() + Send>;

/// What coroutines and the event loop see of each other.
#[derive(Default)]
pub struct Stage {
    /// There while a coroutine has the turn.
    env: RefCell<Option<Env>>,
    current: Cell<Option<(Pid, Thread)>>,
    yielder: Cell<Option<*const Yielder<(), Wait>>>,
    is_dying: Cell<bool>,
    ordered: RefCell<Vec<(Thread, Work)>>,
    point: RefCell<Option<String>>,
    origin: Cell<Option<Instant>>,
}

thread_local! {
    static STAGE: RefCell<Option<Rc<Stage>>> = const { RefCell::new(None) };
}

/// The stage of this thread's simulation.
pub fn stage() -> Rc<Stage> {
    STAGE.with(|stage| stage.borrow().clone()).expect("a simulation runs on this thread")
}

/// Sets the stage for a simulation on this thread, or takes it down.
pub fn set(stage: Option<Rc<Stage>>) {
    system::play(stage.clone().map(|stage| stage as Rc<dyn System>));
    STAGE.set(stage);
}

impl Stage {
    pub fn new() -> Rc<Stage> {
        let stage = Stage::default();
        stage.origin.set(Some(Instant::now()));
        Rc::new(stage)
    }

    /// For the coroutine that has the turn.
    pub fn with<T>(&self, f: impl FnOnce(&mut Env, Pid) -> T) -> T {
        let (pid, _) = self.current.get().expect("a coroutine has the turn");
        f(self.env.borrow_mut().as_mut().expect("the environment goes with the turn"), pid)
    }

    fn at(&self, time: Micros) -> Instant {
        self.origin.get().expect("set when it was made") + Duration::from_micros(time)
    }

    fn micros(&self, instant: Instant) -> Micros {
        // What is between two microseconds has not come at the earlier one.
        let since = instant.saturating_duration_since(self.origin.get().expect("set when it was made"));
        since.as_nanos().div_ceil(1000) as Micros
    }

    fn suspend(&self, wait: Wait) {
        if self.is_dying.get() {
            // What is dropped on the way out waits for nothing.
            if !std::thread::panicking() {
                resume_unwind(Box::new(Killed));
            }
            return;
        }
        let yielder = self.yielder.get().expect("a coroutine has the turn");
        // SAFETY: the running coroutine's own: set when it began and again whenever it comes back, from a reference that it holds as long as
        // it runs.
        unsafe { &*yielder }.suspend(wait);
        self.yielder.set(Some(yielder));
        if self.is_dying.get() {
            resume_unwind(Box::new(Killed));
        }
    }

    /// The thread stays where it is for a while, whatever happens.
    fn sleep(&self, time: Micros) {
        let now = self.with(|env, _| env.net.now);
        self.suspend(Wait { until: Some(now + time), hears: false });
    }

    /// A call of the disk takes a while. The error is that of a full one.
    pub fn disk_call(&self, writes: bool) -> io::Result<()> {
        let time = self.with(|env, _| if env.net.random.percent(15) { env.net.random.below(30 * MS) } else { 0 });
        if time > 0 && self.current.get().is_some_and(|(_, thread)| thread != Thread::Trainer) {
            self.sleep(time);
        }
        let is_full = self.with(|env, pid| env.disk.is_full(pid, env.net.now));
        if writes && is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl System for Stage {
    fn now(&self) -> Instant {
        let env = self.env.borrow();
        self.at(env.as_ref().map_or(0, |env| env.net.now))
    }

    fn wait(&self, until: Option<Instant>) {
        if self.with(|env, pid| env.happened.remove(&pid)) && !self.is_dying.get() {
            return;
        }
        self.suspend(Wait { until: until.map(|until| self.micros(until)), hears: true });
        if !self.is_dying.get() {
            self.with(|env, pid| env.happened.remove(&pid));
        }
    }

    fn pass(&self, point: &str, _: u64) {
        if self.current.get().is_none_or(|(_, thread)| thread != Thread::Trainer) {
            return;
        }
        *self.point.borrow_mut() = Some(point.into());
        let time = self.with(|env, pid| {
            let busy = match point {
                "forward" | "backward" => env.step_time / 4,
                "optimizer" | "resplit" => 5 * MS,
                "prepare" => 200 * MS,
                _ => 0,
            };
            let is_hung = env.hangs.remove(&pid);
            if is_hung { None } else { Some(if busy > 0 { env.net.random.below(busy) } else { 0 }) }
        });
        match time {
            None => self.suspend(Wait { until: None, hears: false }),
            Some(0) => {}
            Some(time) => self.sleep(time),
        }
    }

    fn order(&self, thread: &'static str, work: Box<dyn FnOnce() + Send>) {
        let thread = if thread.ends_with("writer") { Thread::Writer } else { Thread::Publisher };
        self.ordered.borrow_mut().push((thread, work));
    }

    fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        let to = address.rsplit_once(':').and_then(|(_, pid)| pid.parse().ok());
        let to: Pid = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Box::new(self.with(|env, pid| PlayedStream::connect(env, pid, to))))
    }

    fn accept(&self) -> io::Result<(Box<dyn Stream>, String)> {
        let call = self.with(|env, pid| env.net.links.accept(pid));
        let (stream, from) = call.ok_or_else(|| io::Error::from_raw_os_error(EAGAIN))?;
        Ok((Box::new(stream), format!("w{from}")))
    }

    fn folder(&self, root: &str) -> Arc<dyn Folder> {
        Arc::new(PlayedFolder::new(root))
    }

    fn can_see(&self, _: &Path) -> bool {
        self.with(|env, pid| env.unable.get(&pid) != Some(&Unable::NoData))
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.with(|env, _| bytes.iter_mut().for_each(|byte| *byte = env.net.random.next() as u8));
    }
}

/// Of Linux.
const EAGAIN: i32 = 11;

impl Threads {
    /// Starts the thread of this name.
    pub fn start(&mut self, thread: Thread, run: impl FnOnce() + 'static) {
        let stack = DefaultStack::new(STACK_BYTES).expect("there is memory for a stack");
        let routine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), Wait>, ()| {
            let stage = stage();
            stage.yielder.set(Some(std::ptr::from_ref(yielder)));
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run))
                && !panic.is::<Killed>()
            {
                resume_unwind(panic);
            }
        });
        self.tasks.insert(thread, Task { routine, number: 0 });
    }

    /// Gives the turn to a thread, if it still waits as it did when that was decided.
    pub fn resume(&mut self, pid: Pid, thread: Thread, number: u64, env: &mut Env) {
        if self.tasks.get(&thread).is_none_or(|task| task.number != number) {
            return;
        }
        self.turn(pid, thread, env);
        self.take_orders(pid, env);
    }

    fn turn(&mut self, pid: Pid, thread: Thread, env: &mut Env) {
        let Some(mut task) = self.tasks.remove(&thread) else { return };
        let stage = stage();
        let result = stage.run(pid, thread, env, &mut task.routine);
        if let Some(point) = stage.point.borrow_mut().take() {
            self.point = point;
        }
        let now = env.net.now;
        if thread == Thread::Trainer {
            self.waits_since = None;
        }
        match result {
            CoroutineResult::Return(()) => {}
            CoroutineResult::Yield(wait) => {
                self.num_waits += 1;
                task.number = self.num_waits;
                if let Some(until) = wait.until {
                    let what = AtWorker::Resume { thread, number: task.number };
                    env.net.at_worker(pid, until.saturating_sub(now), what);
                }
                if thread == Thread::Trainer && wait.hears {
                    self.waits_since = Some(now);
                    env.listening.insert(pid, task.number);
                } else if thread == Thread::Trainer {
                    self.is_hung |= wait.until.is_none();
                    env.listening.remove(&pid);
                }
                self.tasks.insert(thread, task);
            }
        }
    }

    /// What threads are to do that do nothing now, they begin with.
    fn take_orders(&mut self, pid: Pid, env: &mut Env) {
        let ordered: Vec<_> = stage().ordered.borrow_mut().drain(..).collect();
        for (thread, work) in ordered {
            self.orders.entry(thread).or_default().push_back(work);
        }
        for thread in [Thread::Writer, Thread::Publisher] {
            if self.tasks.contains_key(&thread) {
                continue;
            }
            let Some(work) = self.orders.get_mut(&thread).and_then(VecDeque::pop_front) else { continue };
            self.start(thread, work);
            self.num_waits += 1;
            let number = self.num_waits;
            self.tasks.get_mut(&thread).expect("just started").number = number;
            let after = env.net.random.between(MS, 200 * MS);
            env.net.at_worker(pid, after, AtWorker::Resume { thread, number });
        }
    }

    /// Begins with the trainer.
    pub fn begin(&mut self, pid: Pid, env: &mut Env) {
        env.net.at_worker(pid, 0, AtWorker::Resume { thread: Thread::Trainer, number: 0 });
    }

    /// SIGKILL: nothing of it is done any more.
    pub fn kill(mut self, pid: Pid, env: &mut Env) {
        let stage = stage();
        stage.is_dying.set(true);
        for (thread, mut task) in std::mem::take(&mut self.tasks) {
            if task.routine.started() {
                let result = stage.run(pid, thread, env, &mut task.routine);
                assert!(matches!(result, CoroutineResult::Return(())), "who is killed does nothing more");
            }
        }
        stage.is_dying.set(false);
        stage.ordered.borrow_mut().clear();
        env.listening.remove(&pid);
        env.happened.remove(&pid);
    }
}

impl Stage {
    fn run(&self, pid: Pid, thread: Thread, env: &mut Env, routine: &mut Routine) -> CoroutineResult<Wait, ()> {
        assert!(self.current.get().is_none(), "one coroutine has the turn");
        *self.env.borrow_mut() = Some(std::mem::take(env));
        self.current.set(Some((pid, thread)));
        let result = catch_unwind(AssertUnwindSafe(|| routine.resume(())));
        self.current.set(None);
        *env = self.env.borrow_mut().take().expect("it comes back with the turn");
        result.unwrap_or_else(|panic| {
            if !self.is_dying.get() {
                resume_unwind(panic);
            }
            CoroutineResult::Return(())
        })
    }
}
