//! The session on its own: what it says, and what it keeps.

use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_proto::{Assign, CheckpointAt, Peer, RefusalKind, Start, StepAck, StepRecord, Stop, Welcome};
use toroid_torus::ids::{Epoch, Rank, Step};
use toroid_torus::manifest::ShardFile;

use super::{assign_message, job_json, name_of_action, name_of_message, prepared_event};
use crate::*;

fn assign(epoch: u64) -> Input {
    Input::FromCoordinator(FromCoordinator::Assign(assign_message(epoch)))
}

fn start(epoch: u64) -> Input {
    Input::FromCoordinator(FromCoordinator::Start(Start { job_id: "j".into(), epoch, heal: None }))
}

fn told(epoch: u64, event: Event) -> Input {
    Input::Trainer(TrainerEvent { job_id: "j".into(), epoch: Epoch::new(epoch), event })
}

fn prepared(epoch: u64) -> Input {
    prepared_at(epoch, 0)
}

fn prepared_at(epoch: u64, committed_step: u64) -> Input {
    told(epoch, prepared_event(committed_step))
}

fn committed(epoch: u64, step: u64) -> Input {
    let record = StepRecord { step, ..StepRecord::default() };
    told(epoch, Event::Committed { step: Step::new(step), record: Some(Box::new(record)) })
}

fn welcome(keep_going: bool) -> Input {
    Input::FromCoordinator(FromCoordinator::Welcome(Welcome { keep_going, ..Welcome::default() }))
}

/// Feeds the inputs and compares what came out, printed without its details, with what is expected.
fn check(session: &mut Session, inputs: Vec<Input>, expected: &[&str]) {
    let found: Vec<String> = inputs.into_iter().flat_map(|i| session.handle(i)).map(|o| name(&o)).collect();
    assert_eq!(found, expected);
}

fn name(output: &Output) -> String {
    match output {
        Output::Send(body) => name_of_message(body),
        Output::Act(action) => name_of_action(action),
        Output::Probe(knock) => format!("probe {}", knock.peer.worker_id),
        Output::Intervals { .. } => "intervals".into(),
        Output::Refused { .. } => "refused".into(),
        Output::IdInUse { .. } => "id in use".into(),
        Output::Note(_) => "note".into(),
    }
}

/// A shard of a checkpoint that has failed is taken away, and nobody is told of it again; T-1: not by an order of another epoch.
#[test]
fn a_failed_checkpoint_is_dropped() {
    let mut session = Session::new();
    check(
        &mut session,
        vec![assign(2), prepared(2), start(2)],
        &["fence 2", "prepare", "send Prepared", "trainer Start"],
    );
    let file = toroid_torus::manifest::ShardFile {
        file: "shard".into(),
        rank: 0,
        bytes: 1,
        digest: String::new(),
        entries: Vec::new(),
        kl_coef: None,
        reward_scale: None,
    };
    let written = Event::ShardWritten { step: Step::new(5), file: Box::new(file), write_s: 0.1 };
    check(&mut session, vec![told(2, written)], &["send ShardWritten"]);
    let dropped = |epoch| {
        let dropped = toroid_proto::DropCheckpoint { job_id: "j".into(), epoch, step: 5 };
        Input::FromCoordinator(FromCoordinator::DropCheckpoint(dropped))
    };
    check(&mut session, vec![dropped(1), dropped(3)], &[]);
    check(&mut session, vec![welcome(true)], &["intervals", "send ShardWritten"]);
    check(&mut session, vec![dropped(2)], &["drop checkpoint 5"]);
    check(&mut session, vec![welcome(true)], &["intervals"]);
}

#[test]
fn a_job_from_assignment_to_end() {
    let mut session = Session::new();
    check(&mut session, vec![assign(1)], &["fence 1", "prepare"]);
    check(&mut session, vec![prepared(1)], &["send Prepared"]);
    check(&mut session, vec![start(1)], &["trainer Start"]);
    check(&mut session, vec![committed(1, 1), committed(1, 2)], &["send step 1", "send step 2"]);
    check(&mut session, vec![told(1, Event::Finished { step: Step::new(2) })], &["send Finished"]);
    let stop = Stop { job_id: "j".into(), epoch: 1, reason: "done".into() };
    let stop = Input::FromCoordinator(FromCoordinator::Stop(stop));
    check(&mut session, vec![stop], &["note", "fence 2", "trainer Drop", "send Stopped"]);
    assert_eq!(session.standing(), Standing::default());
}

#[test]
fn t1_nothing_of_another_epoch_or_job_is_taken() {
    let mut session = Session::new();
    check(&mut session, vec![assign(5), prepared(5)], &["fence 5", "prepare", "send Prepared"]);
    let at = |epoch| {
        Input::FromCoordinator(FromCoordinator::CheckpointAt(CheckpointAt {
            job_id: "j".into(),
            epoch,
            step: 9,
            halt: false,
        }))
    };
    check(&mut session, vec![assign(4), assign(5), start(4), start(6), at(4), at(6)], &[]);
    check(&mut session, vec![committed(4, 1), prepared(4), told(4, Event::Finished { step: Step::new(3) })], &[]);
    check(&mut session, vec![at(5)], &["request checkpoint 9"]);
    check(&mut session, vec![assign(6)], &["fence 6", "prepare"]);
    check(&mut session, vec![committed(5, 1)], &[]);
    // The trainer was busy with another job that was in the same epoch.
    let event = Event::Committed { step: Step::new(1), record: Some(Box::default()) };
    let other = Input::Trainer(TrainerEvent { job_id: "another".into(), epoch: Epoch::new(6), event });
    check(&mut session, vec![other], &[]);
}

#[test]
fn who_is_to_halt_is_told_with_the_checkpoint() {
    let mut session = Session::new();
    check(&mut session, vec![assign(1), prepared(1)], &["fence 1", "prepare", "send Prepared"]);
    let at = |step, halt| {
        Input::FromCoordinator(FromCoordinator::CheckpointAt(CheckpointAt { job_id: "j".into(), epoch: 1, step, halt }))
    };
    check(&mut session, vec![at(9, false), at(10, true)], &["request checkpoint 9", "request checkpoint 10 and halt"]);
}

#[test]
fn t9_what_the_coordinator_missed_is_said_again() {
    let mut session = Session::new();
    for input in [assign(1), prepared(1), start(1), committed(1, 1), committed(1, 2), committed(1, 3)] {
        session.handle(input);
    }
    let ack = Input::FromCoordinator(FromCoordinator::StepAck(StepAck { job_id: "j".into(), step: 1 }));
    check(&mut session, vec![ack], &["recorded 1"]);
    check(&mut session, vec![welcome(true)], &["intervals", "send step 2", "send step 3"]);
    session.handle(told(1, Event::Finished { step: Step::new(3) }));
    check(&mut session, vec![welcome(true)], &["intervals", "send step 2", "send step 3", "send Finished"]);
    assert_eq!(session.standing().committed_step, Step::new(3));
}

/// Steps follow one another faster than their checkpoints are published; the coordinator names 64 of them ahead.
#[test]
fn t9_shards_of_the_newest_checkpoints_are_said_again() {
    let mut session = Session::new();
    for input in [assign(1), prepared(1), start(1)] {
        session.handle(input);
    }
    let file = ShardFile {
        file: "s".into(),
        rank: 0,
        bytes: 1,
        digest: String::new(),
        entries: Vec::new(),
        kl_coef: None,
        reward_scale: None,
    };
    let written =
        |step| told(1, Event::ShardWritten { step: Step::new(step), file: Box::new(file.clone()), write_s: 0.5 });
    check(&mut session, (1..=70).map(written).collect(), &["send ShardWritten"; 70]);
    let again = session.handle(welcome(true));
    let steps = again.iter().filter_map(|output| match output {
        Output::Send(ToCoordinator::ShardWritten(shard)) => Some(shard.step),
        _ => None,
    });
    assert!(steps.eq(7..=70), "the newest 64: {again:?}");
}

#[test]
fn t9_a_lost_peer_is_named_again() {
    let mut session = Session::new();
    for input in [assign(1), prepared(1), start(1)] {
        session.handle(input);
    }
    let lost = || told(1, Event::PeerLost { rank: Rank::new(1), error: "reset".into(), damaged: false });
    check(&mut session, vec![lost(), welcome(true)], &["send PeerLost", "intervals", "send PeerLost"]);
}

#[test]
fn work_that_was_given_away_is_dropped() {
    let mut session = Session::new();
    session.handle(assign(3));
    check(&mut session, vec![welcome(false)], &["intervals", "note", "fence 4", "trainer Drop"]);
    check(&mut session, vec![prepared(3)], &[]);
}

#[test]
fn records_of_steps_that_are_made_again_are_forgotten() {
    let mut session = Session::new();
    for input in [assign(1), prepared(1), start(1), committed(1, 1), assign(2)] {
        session.handle(input);
    }
    // The new epoch starts from step 0: step 1 will be made and reported again.
    check(&mut session, vec![prepared(2), welcome(true)], &["send Prepared", "intervals", "send Prepared"]);
}

#[test]
fn t4_a_step_that_was_committed_under_the_fence_is_still_reported() {
    let mut session = Session::new();
    for input in [assign(1), prepared(1), start(1), committed(1, 1)] {
        session.handle(input);
    }
    let heal = Input::FromCoordinator(FromCoordinator::Assign(Assign { heal: true, ..assign_message(2) }));
    let again = Input::FromCoordinator(FromCoordinator::Assign(Assign { heal: true, ..assign_message(3) }));
    check(&mut session, vec![heal, again, committed(1, 2)], &["fence 2", "prepare", "fence 3", "prepare"]);
    check(&mut session, vec![prepared_at(3, 2)], &["send step 1", "send step 2", "send Prepared"]);
}

#[test]
fn an_id_in_use_is_no_refusal_for_good() {
    let refused = |kind: RefusalKind| {
        let refused = proto::Refused { reason: "no".into(), kind: kind.into() };
        Input::FromCoordinator(FromCoordinator::Refused(refused))
    };
    let mut session = Session::new();
    check(&mut session, vec![assign(1), refused(RefusalKind::IdInUse)], &["fence 1", "prepare", "id in use"]);
    assert_eq!(session.standing().epoch, Epoch::new(1), "what it holds stays");
    check(&mut session, vec![refused(RefusalKind::Unspecified)], &["refused"]);
}

#[test]
fn only_a_spare_warms_up() {
    let mut session = Session::new();
    let warm_up = |rank| {
        let ahead = proto::WarmUp {
            job_id: "j".into(),
            rank,
            job_json: job_json(),
            checkpoint_root: "/c".into(),
            ..proto::WarmUp::default()
        };
        Input::FromCoordinator(FromCoordinator::WarmUp(ahead))
    };
    check(&mut session, vec![warm_up(1), warm_up(2)], &["trainer WarmUp", "send WarmedUp"]);
    check(&mut session, vec![assign(1), warm_up(1)], &["fence 1", "prepare"]);
}

#[test]
fn an_assignment_that_makes_no_sense_is_refused_in_words() {
    let check_error = |assign: Assign, expected: &str| {
        let out = Session::new().handle(Input::FromCoordinator(FromCoordinator::Assign(assign)));
        let [Output::Send(ToCoordinator::Failed(failed))] = out.as_slice() else { panic!("{out:?}") };
        assert!(failed.fatal && failed.error.contains(expected), "{}", failed.error);
    };
    check_error(Assign { job_json: "{".into(), ..assign_message(1) }, "cannot read the job");
    check_error(Assign { peers: Vec::new(), ..assign_message(1) }, "of 2 places in all, found 0 addresses");
    check_error(Assign { since_epoch: 6, ..assign_message(7) }, "what differs from epoch 6 was said");
    check_error(Assign { link_key: vec![1], ..assign_message(1) }, "expected 32 bytes, found 1");
    check_error(Assign { rank: 2, ..assign_message(1) }, "cannot take rank 2");
}

/// The place that it prepares after these assignments; none where the last is refused.
fn prepares(session: &mut Session, assign: Assign) -> Option<Assignment> {
    let out = session.handle(Input::FromCoordinator(FromCoordinator::Assign(assign)));
    out.into_iter().find_map(|output| match output {
        Output::Act(Action::Prepare(assignment)) => Some(*assignment),
        _ => None,
    })
}

#[test]
fn of_the_next_epoch_it_is_told_what_differs() {
    let mut session = Session::new();
    let first = prepares(&mut session, assign_message(4)).expect("all is said");
    let differs = |since_epoch, epoch| Assign {
        since_epoch,
        job_json: String::new(),
        peers: vec![Peer { rank: 1, worker_id: "new".into(), data_address: "127.0.0.1:9".into() }],
        ..assign_message(epoch)
    };
    let second = prepares(&mut session, differs(4, 5)).expect("it has what does not differ");
    assert_eq!((second.spec, second.epoch.get()), (first.spec, 5));
    assert_eq!(second.peers[&Rank::ZERO], first.peers[&Rank::ZERO]);
    assert_eq!(second.peers[&Rank::new(1)], PeerAddr { worker_id: "new".into(), address: "127.0.0.1:9".into() });
    let third = prepares(&mut session, Assign { peers: Vec::new(), ..differs(5, 6) }).expect("nothing differs");
    assert_eq!(third.peers, second.peers);
    assert!(prepares(&mut session, differs(5, 8)).is_none(), "it has what was said in epoch 6");
    assert!(prepares(&mut session, Assign { rank: 1, ..differs(6, 8) }).is_none(), "it had another rank");
    session.handle(Input::FromCoordinator(FromCoordinator::Stop(Stop {
        job_id: "j".into(),
        epoch: 6,
        ..Stop::default()
    })));
    assert!(prepares(&mut session, differs(6, 8)).is_none(), "it has no place any more");
}

#[test]
fn a_checkpoint_that_came_too_late_is_reported() {
    let mut session = Session::new();
    session.handle(assign(1));
    let late =
        |epoch| Input::CheckpointTooLate { epoch: Epoch::new(epoch), step: Step::new(4), committed: Step::new(6) };
    check(&mut session, vec![late(1)], &["send CheckpointMissed"]);
    check(&mut session, vec![late(0)], &[]);
}
