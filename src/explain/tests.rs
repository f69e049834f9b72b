//! Every kind of cause and every thing that can be unusual, as users read it: the texts are in `golden/`.

use super::*;
use crate::golden;

const NOW_UNIX_MS: i64 = 1_795_514_400_000;

fn job() -> proto::Job {
    let place = |rank: u32| proto::PlaceInfo {
        rank,
        x: rank % 2,
        y: rank / 2,
        worker_id: format!("w{rank}"),
        alive: true,
        host: format!("h{}", rank / 2),
        ..Default::default()
    };
    proto::Job {
        id: "tiny-1".into(),
        state: proto::JobState::Running.into(),
        reason: "all 4 workers are prepared".into(),
        committed_step: 120,
        total_steps: 200,
        places: (0..4).map(place).collect(),
        places_alive: 4,
        spares: 1,
        started_unix_ms: NOW_UNIX_MS - 240_000,
        folder: "/r".into(),
        ..Default::default()
    }
}

fn incident(seen_by: &str, cause: &str, rung: &str) -> proto::Incident {
    proto::Incident {
        number: 3,
        unix_ms: NOW_UNIX_MS - 66_000,
        cause: cause.into(),
        seen_by: seen_by.into(),
        ranks: vec![3],
        workers: vec!["w8".into()],
        rung: rung.into(),
        reason: "w8 (rank 3) is gone; w3 takes rank 3 (same host as its neighbours); the others keep their state"
            .into(),
        step: 41,
        resumed_step: 41,
        fence_s: 0.002,
        decide_s: 0.0204,
        heal_s: 0.1496,
        redo_s: 0.24,
        total_s: 0.412,
        resolved: true,
        ..Default::default()
    }
}

fn workers() -> Vec<proto::WorkerInfo> {
    vec![proto::WorkerInfo { worker_id: "w8".into(), host: "h7".into(), ..Default::default() }]
}

fn text(job: &proto::Job, about: Option<&proto::Incident>, with_now: bool) -> String {
    let workers = workers();
    let situation = Situation { job, workers: &workers, now_unix_ms: NOW_UNIX_MS };
    explain(&situation, about, with_now).text()
}

fn check(name: &str, incident: proto::Incident) {
    golden::check(&format!("src/explain/golden/{name}.txt"), &text(&job(), Some(&incident), false));
}

#[test]
fn every_cause_says_what_happened_and_what_to_do() {
    let of = |seen_by: &str, cause: &str| incident(seen_by, cause, "spare");
    check("ended", of("stream closed", "w8 (rank 3) lost its connection (stream closed because of a broken pipe)"));
    let silent = of("silence", "w8 (rank 3) was silent for 1 s");
    check("silent", proto::Incident { detect_s: 1.003, ..silent });
    check("restarted", of("registration", "w8 (rank 3) came back without its work"));
    check(
        "not-back",
        of("coordinator's restart", "w8 (rank 3) has not come back within 10 s of the coordinator's restart"),
    );
    check(
        "unreached",
        of(
            "peer's report",
            "w8 (rank 3) has no link with others: w2 (rank 2) does not reach w8 (rank 3): connection refused; look at the address that it is \
             dialled at (--advertise)",
        ),
    );
    let cut = incident(
        "peer's report",
        "w2 (rank 2) lost its link to w8 (rank 3): reset by peer; both are alive",
        "reconnect",
    );
    check("link-cut", proto::Incident { ranks: vec![], workers: vec![], ..cut });
    let damaged =
        incident("peer's report", "w2 (rank 2) had damaged frames from w8 (rank 3): crc; both are alive", "reconnect");
    check("damaged-frames", proto::Incident { ranks: vec![], workers: vec![], ..damaged });
    check(
        "disk-full",
        of("worker's report", "w8 (rank 3) failed: write /c/step-40: No space left on device (os error 28)"),
    );
    check("out-of-memory", of("worker's report", "w8 (rank 3) failed: allocate 12.0 GB on cuda:0: out of memory"));
    check("cannot-fill", of("preparation", "w8 (rank 3) cannot fill its place: it has no device cuda:1"));
    check(
        "other-data",
        of(
            "preparation",
            "w8 (rank 3) does not see the same data or model as the others: w8 (rank 3) has 5, the job so far has 6",
        ),
    );
    check("unreadable", of("preparation", "w8 (rank 3) cannot read the checkpoint of step 40: /c: Permission denied"));
    let lost =
        "w8 (rank 3) lost its connection (reset); the shard of rank 3 is lost: both its holders, ranks 3 and 1, are";
    check(
        "holders-lost",
        proto::Incident { steps_lost: 11, resumed_step: 30, ..incident("stream closed", lost, "restore") },
    );
    check(
        "wrong-copy",
        of(
            "digests",
            "w8 (rank 3) holds a wrong copy of a shard: the digest of own.param is 1f, and 2e is what the update gives",
        ),
    );
    let corrupt = "silent corruption: w8 (rank 3): the two copies of a shard differ, and ranks 3 and 1 replay it with different results";
    check("corrupt", proto::Incident { steps_lost: 1, resumed_step: 40, ..incident("digests", corrupt, "restore") });
    let hang = of("waits-for edges", "w8 (rank 3) hangs in read checkpoint: ranks 0, 1 and 2 wait for it");
    check("hang", proto::Incident { detect_s: 5.2, ..hang });
    let cycle =
        incident("waits-for edges", "ranks 0, 1 and 3 wait for one another: nobody commits step 42", "reconnect");
    check("cycle", proto::Incident { ranks: vec![], workers: vec![], ..cycle });
    check(
        "not-written",
        of(
            "waits-for edges",
            "w8 (rank 3) hangs: it was asked twice for its shard of the last step, and neither wrote it nor said why",
        ),
    );
    check("failed", of("worker's report", "w8 (rank 3) failed: the device was lost"));
    check("drained", incident("drain", "w8 (rank 3) is drained", "drain"));
    check("asked-to-end", incident("worker's end", "w8 (rank 3) left: the worker was asked to end", "shrink"));
    let planned = |by, cause, rung| proto::Incident { ranks: vec![], workers: vec![], ..incident(by, cause, rung) };
    check("grown", planned("capacity", "workers without a place are there, 1 of them: dp 4 instead of 3", "grow"));
    check("gave-way", planned("priority", "big-2 of priority 5 is to have them; dp 3 instead of 4", "shrink"));
    check("other", planned("a dream", "w8 dreamt", "sleep"));
}

#[test]
fn several_causes_are_told_in_their_order_and_each_once() {
    let cause = "w8 (rank 3) was silent for 1 s; w2 (rank 2) lost its connection (reset); w1 (rank 1) lost its connection (reset)";
    let found = fault::faults(&incident("silence", cause, "spare"));
    assert_eq!(found, [fault::Fault::Silent, fault::Fault::Ended]);
    let found = fault::faults(&incident(
        "waits-for edges",
        "w8 hangs: it was asked twice for its shard of the last step",
        "spare",
    ));
    assert_eq!(found, [fault::Fault::NotWritten]);
}

#[test]
fn what_lasts_is_told_as_such_and_evidence_is_shown() {
    let evidence = |kind: &str, lines: &[&str]| proto::Evidence {
        worker_id: "w8".into(),
        kind: kind.into(),
        lines: lines.iter().map(|l| l.to_string()).collect(),
    };
    let job = proto::Job { spares: 0, places_alive: 3, state: proto::JobState::Recovering.into(), ..job() };
    let lasting = proto::Incident {
        resolved: false,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        evidence: vec![
            evidence("log", &["2026-11-24T09:58:53Z  INFO step 41", "2026-11-24T09:58:54Z ERROR killed"]),
            evidence("stacks", &["main: epoll_wait", "  worker::control::run"]),
            evidence("log", &[]),
        ],
        ..incident("stream closed", "w8 (rank 3) closed its stream", "wait")
    };
    golden::check("src/explain/golden/lasting.txt", &text(&job, Some(&lasting), false));
}

#[test]
fn much_evidence_is_cut_and_says_so() {
    let lines = (0..100).map(|n| format!("line {n}")).collect();
    let evidence = vec![proto::Evidence { worker_id: "w8".into(), kind: "log".into(), lines }];
    let text = text(
        &job(),
        Some(&proto::Incident { evidence, ..incident("silence", "w8 was silent for 1 s", "spare") }),
        false,
    );
    assert!(text.contains("    line 99\n") && !text.contains("line 59\n") && text.contains("(60 more lines"), "{text}");
}

#[test]
fn without_an_incident_what_is_unusual_now_is_told() {
    let check = |name: &str, job: proto::Job| {
        golden::check(&format!("src/explain/golden/now-{name}.txt"), &text(&job, None, true))
    };
    check("nothing", job());
    let straggler = proto::Straggler {
        rank: 3,
        worker_id: "w3".into(),
        factor: 2.5,
        compute_s: 0.04,
        peers_s: 0.016,
        num_peers: 3,
        from_step: 120,
        to_step: 140,
    };
    check("straggler", proto::Job { stragglers: vec![straggler], ..job() });
    let unsaved = proto::Unsaved {
        step: 200,
        error: "write /c/step-200: No space left on device (os error 28)".into(),
        since_unix_ms: NOW_UNIX_MS - 90_000,
        num_tries: 7,
        next_try_s: 12.0,
    };
    let checkpoint = proto::CheckpointInfo { step: 100, path: "/c/step-100".into(), ..Default::default() };
    check("unsaved", proto::Job { unsaved: Some(unsaved), checkpoints: vec![checkpoint.clone()], ..job() });
    let queued = proto::Job {
        state: proto::JobState::Queued.into(),
        reason: "waits for 4 workers, 2 are free".into(),
        waited_s: 125.0,
        ..job()
    };
    check("queued", proto::Job { spares_aside: 1, ..queued.clone() });
    check("held", proto::Job { is_held: true, ..queued });
    check(
        "store",
        proto::Job { store_trouble: "commit to /d/coordinator.redb: No space left on device".into(), ..job() },
    );
    check(
        "damaged",
        proto::Job {
            damaged: "line 3 of /r/curve.csv: step 2 follows step 3; 3 of 3 rows can be read".into(),
            ..job()
        },
    );
    let shape = |dp| Some(proto::Shape { tp: 1, pp: 1, dp, dx: dp, dy: 1 });
    check("degraded", proto::Job { shape: shape(3), full_shape: shape(4), skipped_steps: 2, ..job() });
    let failed = proto::JobState::Failed.into();
    check(
        "failed",
        proto::Job {
            state: failed,
            reason: "rank 3 failed 3 times in a row".into(),
            checkpoints: vec![checkpoint],
            ..job()
        },
    );
}

#[test]
fn an_incident_that_is_not_there_is_named_with_those_that_are() {
    let job = proto::Job { incidents: vec![incident("silence", "c", "spare")], ..job() };
    assert!(find(&job, 3).is_ok());
    let error = find(&job, 9).expect_err("there is none");
    assert_eq!(crate::exit::of(&error), crate::exit::Exit::NotFound);
    assert!(error.to_string().contains("no incident 9; there are 3 to 3"), "{error}");
}
