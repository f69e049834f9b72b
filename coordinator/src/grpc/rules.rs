//! Which call needs which role: one table, read by whoever lets calls in ([`super::gate`]) and by the test that walks all services.
//!
//! A call that is not in it is refused, so that a new one is closed until somebody has said who may make it.

use toroid_proto::Role;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// `None`: whoever reaches the port. Such a call tells nothing of jobs and workers.
    pub least: Option<Role>,
    /// It changes something, so that there is an audit record of it.
    pub changes: bool,
}

const fn look(path: &'static str, least: Role) -> Rule {
    Rule { path, least: Some(least), changes: false }
}

const fn change(path: &'static str, least: Role) -> Rule {
    Rule { path, least: Some(least), changes: true }
}

pub const RULES: [Rule; 27] = [
    look("/toroid.v1.JobService/GetJob", Role::View),
    look("/toroid.v1.JobService/GetCurve", Role::View),
    look("/toroid.v1.JobService/ListJobs", Role::View),
    look("/toroid.v1.JobService/WatchJob", Role::View),
    look("/toroid.v1.JobService/ListWorkers", Role::View),
    look("/toroid.v1.JobService/GetLeader", Role::View),
    change("/toroid.v1.JobService/SubmitJob", Role::Submit),
    change("/toroid.v1.JobService/CancelJob", Role::Submit),
    change("/toroid.v1.JobService/CheckpointJob", Role::Submit),
    change("/toroid.v1.JobService/ResumeJob", Role::Submit),
    change("/toroid.v1.JobService/HoldJob", Role::Submit),
    change("/toroid.v1.JobService/ReleaseJob", Role::Submit),
    change("/toroid.v1.JobService/CordonWorker", Role::Operate),
    change("/toroid.v1.JobService/UncordonWorker", Role::Operate),
    change("/toroid.v1.JobService/RemoveJob", Role::Operate),
    change("/toroid.v1.JobService/DrainWorker", Role::Operate),
    change("/toroid.v1.JobService/ReadmitWorker", Role::Operate),
    change("/toroid.v1.AdminService/CreateToken", Role::Admin),
    look("/toroid.v1.AdminService/ListTokens", Role::Admin),
    change("/toroid.v1.AdminService/RevokeToken", Role::Admin),
    look("/toroid.v1.AdminService/GetAudit", Role::Admin),
    change("/toroid.v1.AdminService/ForgetWorker", Role::Admin),
    // A worker's stream is no change by itself: what comes of it is in the events of its job.
    look("/toroid.v1.WorkerService/Session", Role::Worker),
    look("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::View),
    look("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::View),
    // A probe has no credentials; it hears that the coordinator serves, and nothing else.
    Rule { path: "/grpc.health.v1.Health/Check", least: None, changes: false },
    look("/grpc.health.v1.Health/Watch", Role::View),
];

/// The rule of a call; `None`: nobody may make it.
pub fn rule(path: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.path == path)
}
