//! Getting ready: a spare ahead of its place, and a place before it starts.

use toroid_session::{Assignment, Event, TrainerEvent, WarmUp};
use toroid_torus::ids::Epoch;

use super::emit::{Emit, EventOf};
use super::environment::Environment;
use super::job::Job;
use super::shared::PREPARE;
use super::workspace::Workspace;
use crate::comm::Fence;
use crate::device::CachedAttention;
use crate::system;

/// Makes what a place needs, and says whether this worker can fill one.
pub(super) fn warm_up<D: CachedAttention>(
    device: &D,
    environment: &Environment,
    ahead: &WarmUp,
    used: Option<Workspace<D>>,
    emit: &Emit,
) -> Option<Workspace<D>> {
    // A place may be assigned meanwhile: it is the same work.
    environment.shared.enter(PREPARE);
    let since = system::now();
    let workspace = Workspace::make(device, environment, (&ahead.spec, ahead.rank), &ahead.checkpoint_root, None, used);
    let workspace = workspace.map_err(|e| e.to_string());
    let unseen = workspace.as_ref().ok().and_then(|workspace| workspace.unseen(ahead.checkpoint_step));
    let workspace = workspace.and_then(|workspace| match &unseen {
        // Its file system may not be mounted there: nothing is made in its place.
        Some(_) => Ok(workspace),
        None => match workspace.check_storage() {
            Ok(()) => Ok(workspace),
            Err(error) => Err(format!("cannot use the checkpoint folder: {error}")),
        },
    });
    environment.shared.enter("idle");
    let (job_id, spent) = (&ahead.job_id, (system::now() - since));
    let data_digest = workspace.as_ref().map_or([0; 32], |workspace| workspace.sources.digest());
    let error = workspace.as_ref().err().cloned();
    match &error {
        None => tracing::info!("ready for a place of {job_id}, prepared in {:.0} ms", spent.as_secs_f64() * 1e3),
        Some(error) => tracing::warn!("cannot get ready for a place of {job_id}: {error}"),
    }
    let event = Event::WarmedUp { number: ahead.number, error, data_digest, unseen };
    emit(TrainerEvent { job_id: job_id.clone(), epoch: Epoch::NONE, event });
    workspace.ok()
}

/// Prepares a place, and reports that it is ready or why it is not.
pub(super) fn prepare<D: CachedAttention>(
    device: &D,
    environment: &Environment,
    assignment: Assignment,
    fence: Fence,
    warm: Option<Workspace<D>>,
    emit: &Emit,
) -> Option<Job<D>> {
    environment.shared.enter(PREPARE);
    let events = EventOf::new(&assignment, emit);
    let event;
    let job = match Job::prepare(device, environment, assignment, fence, warm) {
        Ok(job) => {
            environment.shared.reset(job.committed);
            job.show_state(&environment.shared);
            event = job.report();
            Some(job)
        }
        Err(error) if error.is_over() => {
            environment.shared.enter("idle");
            return None;
        }
        Err(error) => {
            event = Event::Failed {
                fatal: error.is_fatal(),
                checkpoint: error.checkpoint(),
                restore: false,
                corrupt_ranks: Vec::new(),
                error: error.to_string(),
            };
            None
        }
    };
    environment.shared.enter("wait for start");
    events.emit(event);
    job
}
