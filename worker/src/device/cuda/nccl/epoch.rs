//! The communicators of a device from epoch to epoch.
//!
//! ```text
//!   begin: kept by all | made anew -> at work ... -> end: idle -> still there, says so at the next begin
//!                                         \-> fence, or NCCL's error: what is not idle is aborted
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use toroid_torus::collective::Round;
use toroid_torus::geometry::Shape;

use super::super::block::Block;
use super::super::runtime::{DevicePtr, Runtime, Stream};
use super::flight::{Flight, Kind};
use crate::comm::CommError;
use crate::comm::nccl::{Agreed, Collectives, Decision, Epoch, Key, Lack, Line, LineDecision, Statement, shown};

/// This rank's part of the communicator of a line.
pub(super) struct Member<R: Runtime> {
    pub communicator: R::Communicator,
    pub key: Key,
    /// Ranks in the job, by index.
    pub ranks: Vec<usize>,
    pub index: usize,
    /// After what was asked of it last.
    pub last: Option<Arc<R::Event>>,
}

impl<R: Runtime> Member<R> {
    pub fn is_idle(&self, runtime: &R) -> bool {
        self.last.as_ref().is_none_or(|event| runtime.has_come(event))
    }
}

pub(super) struct State<R: Runtime> {
    pub wish: Collectives,
    /// `None`: there is no epoch, or it is over.
    pub epoch: Option<Epoch>,
    pub rank: usize,
    pub dx: usize,
    pub dy: usize,
    /// In the DP group.
    pub dp_rank: usize,
    /// By line.
    pub members: [Option<Member<R>>; 3],
    pub carries_tp: bool,
    pub carries_dp: bool,
    pub failed: Option<CommError>,
    /// What comes and is added, for the two streams.
    pub scratch: [Block; 2],
    pub flight: Option<Flight<R>>,
    /// Rounds that were made before, by what they depend on, and the number of elements.
    pub made: BTreeMap<(Kind, [usize; 4]), Arc<Vec<Round>>>,
}

impl<R: Runtime> State<R> {
    pub fn new() -> State<R> {
        State {
            wish: Collectives::Auto,
            epoch: None,
            rank: 0,
            dx: 1,
            dy: 1,
            dp_rank: 0,
            members: [None, None, None],
            carries_tp: false,
            carries_dp: false,
            failed: None,
            scratch: [Block { ptr: 0, bytes: 0 }; 2],
            flight: None,
            made: BTreeMap::new(),
        }
    }

    pub fn keys(&self) -> [Option<Key>; 3] {
        self.members.each_ref().map(|member| member.as_ref().map(|m| m.key))
    }

    pub fn statement(&mut self, runtime: &R, shape: &Shape, rank: usize) -> Statement {
        assert!(self.epoch.is_none(), "an epoch ends before the next one begins");
        let has = runtime.nccl_version().map(|version| (runtime.gpu(), version)).ok_or(Lack::Library);
        let kept = Line::ALL.map(|line| {
            let ranks = line.members(shape, rank);
            let member = self.members[line as usize].as_ref().filter(|member| member.is_idle(runtime))?;
            let is_same = member.ranks.len() == ranks.len() && ranks[member.index] == rank;
            is_same.then_some(member.key)
        });
        Statement { wish: self.wish, has, kept }
    }

    pub fn begin(&mut self, runtime: &R, agreed: Agreed, epoch: Epoch) -> Result<(), CommError> {
        let Agreed { rank, shape, decision, ids } = agreed;
        self.failed = None;
        (self.rank, self.dx, self.dy, self.dp_rank) = (rank, shape.dx(), shape.dy(), shape.place(rank).dp);
        (self.carries_tp, self.carries_dp) = (decision.carries_tp(), decision.carries_dp());
        for line in Line::ALL {
            let ranks = line.members(&shape, rank);
            match decision.lines[line as usize] {
                LineDecision::Keep(key) => {
                    let member = self.members[line as usize].as_mut().filter(|member| member.key == key);
                    member
                        .unwrap_or_else(|| panic!("rank {rank} said that it has the communicator of its {line}"))
                        .ranks = ranks;
                }
                LineDecision::Without => self.abort(runtime, line),
                LineDecision::Make => {
                    self.abort(runtime, line);
                    let id = ids[line as usize].unwrap_or_else(|| panic!("the {line} has agreed on an id"));
                    let index = ranks.iter().position(|r| *r == rank).expect("a rank is in its own lines");
                    let failed = |why| CommError::Nccl { line, rank, why };
                    let communicator = runtime.init(&id, index, ranks.len()).map_err(failed)?;
                    let member = Member { communicator, key: id.key(), ranks, index, last: None };
                    let ready = await_ready(runtime, &member, &epoch, line, rank);
                    self.members[line as usize] = Some(member);
                    if let Err(error) = ready {
                        // What is half made cannot be kept.
                        self.abort(runtime, line);
                        return Err(error);
                    }
                }
            }
        }
        tell(runtime, rank, &epoch, &decision);
        self.epoch = Some(epoch);
        Ok(())
    }

    pub fn end(&mut self, runtime: &R) {
        self.abort_what_hangs(runtime);
        self.waits_for_nobody();
        (self.epoch, self.flight) = (None, None);
        (self.carries_tp, self.carries_dp) = (false, false);
    }

    /// The blocks that are to be given back.
    pub fn close(&mut self, runtime: &R) -> Vec<DevicePtr> {
        Line::ALL.into_iter().for_each(|line| self.abort(runtime, line));
        let blocks = std::mem::replace(&mut self.scratch, [Block { ptr: 0, bytes: 0 }; 2]);
        blocks.into_iter().filter(|block| block.bytes > 0).map(|block| block.ptr).collect()
    }

    fn abort(&mut self, runtime: &R, line: Line) {
        if let Some(member) = self.members[line as usize].take() {
            runtime.abort(member.communicator);
        }
    }

    fn at_work(&self, runtime: &R) -> impl Iterator<Item = Line> + use<R> {
        let is_at_work = |line: &Line| self.members[*line as usize].as_ref().is_some_and(|m| !m.is_idle(runtime));
        Line::ALL.into_iter().filter(is_at_work).collect::<Vec<_>>().into_iter()
    }

    pub fn is_at_work(&self, runtime: &R) -> bool {
        self.at_work(runtime).next().is_some()
    }

    pub fn abort_what_hangs(&mut self, runtime: &R) {
        self.at_work(runtime).for_each(|line| self.abort(runtime, line));
    }

    /// While the host waits for the device: aborts what hangs where the epoch is over, or NCCL has failed.
    pub fn watch(&mut self, runtime: &R) {
        let Some(epoch) = &self.epoch else { return };
        if let Err(error) = epoch.fence.check(epoch.number) {
            self.failed.get_or_insert(error);
            return self.abort_what_hangs(runtime);
        }
        let mut awaited = Vec::new();
        for line in self.at_work(runtime) {
            let Some(member) = &self.members[line as usize] else { continue };
            if let Err(why) = runtime.is_ready(&member.communicator) {
                self.failed.get_or_insert(CommError::Nccl { line, rank: self.rank, why });
                return self.abort_what_hangs(runtime);
            }
            awaited.extend(member.ranks.iter().copied().filter(|r| *r != self.rank));
        }
        awaited.sort_unstable();
        awaited.dedup();
        epoch.waits_for.set(awaited.into_iter());
    }

    pub fn waits_for_nobody(&self) {
        if let Some(epoch) = &self.epoch {
            epoch.waits_for.set(std::iter::empty());
        }
    }

    /// Before anything is asked for. With an error nothing hangs any more.
    pub fn check(&mut self, runtime: &R) -> Result<(), CommError> {
        let epoch = self.epoch.as_ref().expect("sums between GPUs are asked for within an epoch");
        let result = epoch.fence.check(epoch.number).and_then(|()| self.failed.clone().map_or(Ok(()), Err));
        if result.is_err() {
            self.abort_what_hangs(runtime);
        }
        result
    }

    /// What was asked for until now, on all lines.
    pub fn last_events(&mut self, runtime: &R) -> Vec<Arc<R::Event>> {
        if self.carries_dp {
            // Sums of gradients are there for the operations that follow.
            runtime.wait(Stream::Compute, &runtime.record(Stream::Comm));
        }
        self.members.iter().flatten().filter_map(|member| member.last.clone()).collect()
    }

    /// All of it has come, unless it was aborted.
    pub fn settled(&mut self, runtime: &R) -> Result<(), CommError> {
        self.flight = None;
        if self.epoch.is_none() { Ok(()) } else { self.check(runtime) }
    }
}

/// Waits until NCCL has taken what was asked of it, or made the communicator. The caller aborts it after an error.
pub(super) fn await_ready<R: Runtime>(
    runtime: &R,
    member: &Member<R>,
    epoch: &Epoch,
    line: Line,
    rank: usize,
) -> Result<(), CommError> {
    let mut is_told = false;
    loop {
        match runtime.is_ready(&member.communicator) {
            Err(why) => return Err(CommError::Nccl { line, rank, why }),
            Ok(true) => break,
            Ok(false) => {}
        }
        epoch.fence.check(epoch.number)?;
        if !std::mem::replace(&mut is_told, true) {
            epoch.waits_for.set(member.ranks.iter().copied().filter(|r| *r != rank));
        }
        std::thread::yield_now();
    }
    if is_told {
        epoch.waits_for.set(std::iter::empty());
    }
    Ok(())
}

fn tell<R: Runtime>(runtime: &R, rank: usize, epoch: &Epoch, decision: &Decision) {
    let nccl = format!("NCCL {}", shown(runtime.nccl_version().unwrap_or(0)));
    let of = |why: &Option<String>| why.as_ref().map_or_else(|| nccl.clone(), |why| format!("the host, as {why}"));
    let num = |what: fn(&LineDecision) -> bool| decision.lines.iter().filter(|line| what(line)).count();
    let made = num(|line| *line == LineDecision::Make);
    let kept = num(|line| matches!(line, LineDecision::Keep(_)));
    let (tp, dp) = (of(&decision.tp_through_host), of(&decision.dp_through_host));
    let epoch = epoch.number;
    tracing::info!(rank, %epoch, made, kept, "sums of the TP group go through {tp}; sums of the DP group through {dp}");
}
