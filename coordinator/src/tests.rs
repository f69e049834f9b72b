//! What several unit tests of this crate need.

use std::time::Duration;

use toroid_torus::ids::Term;
use toroid_torus::owner::OwnerId;

use crate::machine::record::JobRecord;
use crate::machine::{Config, Input, Limits, Machine, Now, Policy, RequestId, Retention, Submission};

/// The record of a job of nine steps that was just submitted as `<name>-1`.
pub fn submitted(name: &str) -> JobRecord {
    let config = Config {
        jobs_dir: "/jobs".into(),
        limits: Limits { heartbeat_interval: Duration::from_secs(1), failure_timeout: Duration::from_secs(5) },
        term: Term::new(1),
        retention: Retention::default(),
        policy: Policy::default(),
        join_token: None,
    };
    let now = Now { monotonic: Duration::ZERO, unix_ms: 1, boot: crate::machine::clock::Boot(0) };
    let (mut machine, _) = Machine::restore(config, Vec::new(), Default::default(), [1; 32], now).unwrap();
    let toml = format!("name = \"{name}\"\nsteps = 9\n[data]\npath = \"/data\"\n");
    let submission = Submission { toml, ..Submission::default() };
    let owner = OwnerId::from_random([1; 16]);
    machine.handle(Input::Submit { request: RequestId(0), submission, owner }, now);
    machine.record(&format!("{name}-1")).unwrap().clone()
}
