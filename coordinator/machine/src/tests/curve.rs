//! Every committed step is in the curve, or the curve says that nobody knows it any more (T-4, T-12).

use super::world::{LIMITS, World, job_file};
use crate::Input;
use crate::record::State;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::ids::WorkerId;

/// Two places and a spare; five steps are recorded.
fn running() -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 300, ""));
    for id in ["a", "b", "c"] {
        world.join(id);
    }
    world.settle();
    world.train(&job, 5);
    (world, job)
}

/// The coordinator is away for so many steps, and rank 0 dies before it comes back.
fn lose_rank_0_in_an_absence(world: &mut World, job: &str, num_steps: u64) {
    world.disconnect_all();
    for _ in 0..num_steps {
        assert!(world.step(job), "training needs no coordinator");
    }
    world.workers.remove("a");
    world.restart(|_| true);
    world.settle();
    world.pass(LIMITS.reconnect());
    world.train(job, 1);
}

/// Rank 0 says this, now.
fn says(world: &mut World, job: &str, steps: &[u64]) {
    says_with(world, job, steps, |_| false);
}

fn says_with(world: &mut World, job: &str, steps: &[u64], is_skipped: impl Fn(u64) -> bool) {
    let (job_id, epoch) = (job.to_string(), world.record(job).epoch.get());
    let rank_0 = world.record(job).places[0].clone().expect("filled");
    let stream = world.worker(&rank_0).stream.expect("connected");
    for step in steps {
        let loss = super::worker::loss_of(*step);
        let record = Some(proto::StepRecord { step: *step, loss, skipped: is_skipped(*step), ..Default::default() });
        let body = FromWorker::Step(proto::StepReport { job_id: job_id.clone(), epoch, record });
        world.input(Input::Message { stream, body: Box::new(body) });
    }
}

#[test]
fn t12_rank_0_dies_while_the_coordinator_is_away_for_hundreds_of_steps() {
    let (mut world, job) = running();
    lose_rank_0_in_an_absence(&mut world, &job, 211);
    let steps: Vec<u64> = world.curves[&job].iter().map(|r| r.step).collect();
    assert_eq!(steps, (1..=217).collect::<Vec<_>>());
    assert!(!world.curves[&job].iter().any(|r| r.missing));
    assert_eq!(world.view(&job).missing_steps, 0);
}

#[test]
fn t12_what_no_place_knows_any_more_is_told() {
    let (mut world, job) = running();
    world.workers.values_mut().for_each(|w| w.num_sums = 64);
    lose_rank_0_in_an_absence(&mut world, &job, 211);
    let missing: Vec<u64> = world.curves[&job].iter().filter(|r| r.missing).map(|r| r.step).collect();
    assert_eq!(missing, (6..=216 - 64).collect::<Vec<_>>());
    assert_eq!(world.view(&job).missing_steps, 147);
    assert!(world.has_event(&job, "curve.gap", "steps 6 to 152 have no figures in the curve"));
    assert_eq!(world.curves[&job].len(), 217);
    world.restart(|_| true);
    world.settle();
    world.train(&job, 83);
    let (record, view) = (world.record(&job), world.view(&job));
    assert_eq!((record.state, view.missing_steps, world.curves[&job].len()), (State::Done, 147, 300));
    assert!(record.reason.contains("; 147 have no figures in the curve"), "{}", record.reason);
}

#[test]
fn t12_who_joined_last_knows_what_no_coordinator_has() {
    let (mut world, job) = running();
    world.join("d");
    world.settle();
    world.disconnect_all();
    assert!((0..211).all(|_| world.step(&job)), "training needs no coordinator");
    world.workers.remove("a");
    world.restart(|_| true);
    world.settle();
    world.pass(LIMITS.reconnect());
    // All have healed; the new rank 0 and who gave it the sums die before they are heard, one after the other.
    let rank_0 = world.record(&job).places[0].clone().expect("filled");
    let group: Vec<String> = world.record(&job).places.iter().flatten().map(WorkerId::to_string).collect();
    assert!(world.step_in_part(&job, |_| true));
    world.worker(&rank_0).outbox.clear();
    let source = group.iter().find(|id| rank_0 != ***id).expect("two places").clone();
    assert_eq!(world.curves[&job].len(), 5, "nothing was heard yet");
    world.kill(&source);
    world.settle();
    world.train(&job, 1);
    assert_eq!(world.curves[&job].len(), 218);
    assert_eq!(world.view(&job).missing_steps, 0);
}

#[test]
fn t4_a_record_is_taken_only_after_the_one_before_it() {
    let (mut world, job) = running();
    says(&mut world, &job, &[7, 8]);
    assert_eq!(world.curves[&job].len(), 5, "6 is missing");
    let asked = world.workers["a"]
        .inbox
        .iter()
        .filter(|m| matches!(m, proto::coordinator_message::Body::ReportSteps(r) if r.from_step == 6));
    assert_eq!(asked.count(), 1, "rank 0 is asked once");
    says(&mut world, &job, &[6, 7, 8]);
    assert_eq!(world.curves[&job].len(), 8);
}

#[test]
fn t4_a_gap_is_no_longer_than_what_is_committed() {
    let (mut world, job) = running();
    let stream = world.worker("a").stream.expect("connected");
    let gap = |from_step, through_step| {
        let (job_id, epoch) = (job.clone(), 1);
        let missing = proto::RecordsMissing { job_id, epoch, from_step, through_step };
        Input::Message { stream, body: Box::new(FromWorker::RecordsMissing(missing)) }
    };
    world.input(gap(1, 5));
    world.input(gap(6, u64::MAX));
    world.input(gap(9, 12));
    assert_eq!((world.curves[&job].len(), world.view(&job).missing_steps), (5, 0));
}

#[test]
fn a_job_that_goes_on_from_another_one_has_no_gap_before_its_first_step() {
    let mut world = World::new();
    world.resume_step = 20;
    let job = world.submit(&job_file(1, 25, "resume_from = \"/old\""));
    world.join_as("a", |w| w.resume_step = 20);
    world.settle();
    world.restart(|_| true);
    world.settle();
    world.train(&job, 5);
    assert_eq!((world.record(&job).state, world.view(&job).missing_steps), (State::Done, 0));
    assert_eq!(world.curves[&job].iter().map(|r| r.step).collect::<Vec<_>>(), [21, 22, 23, 24, 25]);
}

#[test]
fn t12_skipped_steps_are_told_and_counted() {
    let (mut world, job) = running();
    let steps: Vec<u64> = (6..=80).collect();
    says_with(&mut world, &job, &steps, |step| step % 10 != 0);
    assert_eq!(world.view(&job).skipped_steps, 67);
    assert!(world.has_event(&job, "step.skipped", "step 6 made no update: its gradients are not finite"));
    let told = world.record(&job).events.iter().filter(|e| e.kind == "step.skipped").count();
    assert_eq!(told, 7, "1, 2, 4, 8, 16, 32 and 64");
    world.restart(|_| true);
    world.settle();
    assert_eq!((world.view(&job).skipped_steps, world.record(&job).state), (67, State::Running));
}

#[test]
fn a_job_whose_gradients_are_never_finite_ends_and_says_why() {
    let (mut world, job) = running();
    let steps: Vec<u64> = (6..=24).collect();
    says_with(&mut world, &job, &steps, |_| true);
    assert_eq!(world.record(&job).state, State::Running);
    says_with(&mut world, &job, &[25], |_| true);
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed);
    assert!(record.reason.contains("20 steps in a row, the last of them step 25, made no update"), "{}", record.reason);
    assert_eq!(world.curves[&job].len(), 25);
}

#[test]
fn a_job_may_ask_to_go_on_whatever_comes() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 50, "fault_tolerance.max_skipped = 0"));
    world.join("a");
    world.settle();
    let steps: Vec<u64> = (1..=49).collect();
    says_with(&mut world, &job, &steps, |_| true);
    assert_eq!((world.record(&job).state, world.view(&job).skipped_steps), (State::Running, 49));
}
