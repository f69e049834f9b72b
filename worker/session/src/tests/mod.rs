//! Tests of the session and of the client around it; messages and names that both need.

mod client;
mod session;

use std::collections::BTreeMap;

use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_proto::{Assign, Peer};
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job;

use crate::{Action, AfterCheckpoint, Event, HeldAs};

fn job_json() -> String {
    let spec = job::parse("steps = 3\n[shape]\ndp = 2\n[data]\npath = \"text\"\n").expect("a valid job");
    serde_json::to_string(&spec).expect("JSON")
}

fn assign_message(epoch: u64) -> Assign {
    let peer = |rank: u32| Peer { rank, worker_id: format!("w{rank}"), data_address: format!("127.0.0.1:{rank}") };
    Assign {
        job_id: "j".into(),
        epoch,
        rank: 0,
        job_json: job_json(),
        peers: vec![peer(0), peer(1)],
        link_key: vec![1; 32],
        checkpoint_root: "/c".into(),
        owner_id: vec![1; 16],
        ..Assign::default()
    }
}

fn prepared_event(committed_step: u64) -> Event {
    Event::Prepared {
        committed_step: Step::new(committed_step),
        held: vec![HeldAs { shape: Shape::new(1, 1, 2).expect("a shape"), rank: Rank::ZERO }],
        sealed_next: false,
        sums_from: Step::new(1),
        data_digest: [0; 32],
        weights: BTreeMap::new(),
        num_samples: 9,
        num_params: 5,
        inputs: Box::default(),
    }
}

/// Without its details.
fn name_of_message(body: &ToCoordinator) -> String {
    if let ToCoordinator::Step(report) = body {
        return format!("send step {}", report.record.as_ref().map_or(0, |r| r.step));
    }
    let text = format!("{body:?}");
    format!("send {}", text.split('(').next().unwrap_or_default())
}

/// Without its details.
fn name_of_action(action: &Action) -> String {
    match action {
        Action::Trainer(command) => {
            let text = format!("{command:?}");
            format!("trainer {}", text.split([' ', '(']).next().unwrap_or_default())
        }
        Action::Prepare(_) => "prepare".into(),
        Action::Fence { epoch } => format!("fence {epoch}"),
        Action::DropCheckpoint { step, .. } => format!("drop checkpoint {step}"),
        Action::RequestCheckpoint { step, then: AfterCheckpoint::GoOn, .. } => format!("request checkpoint {step}"),
        Action::RequestCheckpoint { step, then: AfterCheckpoint::Halt, .. } => {
            format!("request checkpoint {step} and halt")
        }
        Action::Recorded { step } => format!("recorded {step}"),
    }
}
