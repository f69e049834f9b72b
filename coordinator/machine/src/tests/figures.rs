//! What workers say of their input and of their work is told to users.

use toroid_proto as proto;

use super::world::{World, job_file};
use crate::record::State;

/// A second of a job: ten steps, all messages delivered, then a heartbeat of each.
fn second(world: &mut World, job: &str) {
    world.train(job, 10);
    world.now += std::time::Duration::from_secs(1);
    world.heartbeats();
    world.settle();
}

#[test]
fn a_straggler_is_named_with_its_figures_and_keeps_its_place() {
    let mut world = World::new();
    let job = world.submit(&job_file(4, 100_000, ""));
    ["a", "b", "c", "d"].into_iter().for_each(|id| world.join(id));
    world.settle();
    for id in ["a", "b", "d"] {
        world.worker(id).step_s = 0.016;
    }
    // It is slow, and the others wait for it: what they wait is no work of theirs.
    world.worker("c").step_s = 0.040;
    let rank = world.record(&job).rank_of("c").expect("c has a place");
    for id in ["a", "b", "d"] {
        world.worker(id).waits_for = vec![rank.to_wire()];
    }
    (0..20).for_each(|_| second(&mut world, &job));
    let named = |world: &World, kind: &str| -> Vec<String> {
        let events = world.record(&job).events.iter().filter(|e| e.kind == kind);
        events.map(|e| e.worker.clone()).collect()
    };
    assert_eq!(named(&world, "worker.slow"), ["c"], "once, and nobody else");
    let text = format!("c (rank {rank}) computes 2.5 times as long as its 3 peers: 40.0 ms a step and not 16.0 ms");
    assert!(world.has_event(&job, "worker.slow", &text), "{:#?}", world.record(&job).events);
    assert!(world.has_event(&job, "worker.slow", "it keeps its place"));
    let view = world.view(&job);
    let [straggler] = &view.stragglers[..] else { panic!("{:?}", view.stragglers) };
    assert_eq!((straggler.worker_id.as_str(), straggler.rank, straggler.num_peers), ("c", rank.to_wire(), 3));
    assert!((straggler.factor - 2.5).abs() < 1e-9 && straggler.to_step > straggler.from_step, "{straggler:?}");
    let workers = world.machine.view_workers(world.at());
    let slow: Vec<(&str, bool)> = workers.iter().map(|w| (w.worker_id.as_str(), w.slow_factor > 0.0)).collect();
    assert_eq!(slow, [("a", false), ("b", false), ("c", true), ("d", false)]);
    assert!(workers.iter().all(|w| w.compute_s > 0.0), "{workers:?}");
    assert_eq!(
        (world.record(&job).state, world.record(&job).epoch.get()),
        (State::Running, 1),
        "nobody loses a place for it"
    );

    world.worker("c").step_s = 0.016;
    (0..20).for_each(|_| second(&mut world, &job));
    assert_eq!(named(&world, "worker.keeps_up"), ["c"]);
    assert_eq!(world.view(&job).stragglers, []);
}

/// T-12, also after a restart of the coordinator.
#[test]
fn what_is_left_out_of_the_input_is_an_event_and_stays_in_the_status() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 5, "optimizer.warmup = 5"));
    let left_out = proto::LeftOut {
        reason: "not UTF-8 text".into(),
        num_files: 12,
        bytes: 345,
        first: vec!["a.bin".into(), "b.png".into(), "c.o".into()],
    };
    let inputs = proto::Inputs {
        summary: "3 files, 1.2 MB of text under /data".into(),
        left_out: vec![left_out; 100],
        notes: vec!["x".repeat(10_000)],
        sources: vec![proto::Source { num_samples: u64::MAX, ..Default::default() }; 100],
    };
    for id in ["a", "b"] {
        world.join_as(id, |w| w.inputs = Some(inputs.clone()));
    }
    world.settle();
    let expected = "12 files are left out, 345 bytes: not UTF-8 text (a.bin, b.png, c.o, ...)";
    assert!(world.has_event(&job, "data.left_out", expected), "{:#?}", world.record(&job).events);
    assert!(world.has_event(&job, "job.note", "optimizer.warmup = 5 is not less than steps = 5"));
    assert!(world.has_event(&job, "job.note", "xxx"), "what the workers note, too");
    world.train(&job, 2);
    world.restart(|_| true);
    world.settle();
    let view = world.view(&job).inputs.expect("what it is trained on");
    assert_eq!((view.summary.as_str(), view.left_out[0].num_files), ("3 files, 1.2 MB of text under /data", 12));
    assert_eq!((view.left_out.len(), view.notes[1].len()), (16, 500), "what a worker says is bounded");
    assert!(view.sources.is_empty(), "the job has none: {:?}", view.sources);
    assert!(view.notes[0].contains("warmup"), "{:?}", view.notes);
    let num_told = world.record(&job).events.iter().filter(|e| e.kind == "data.left_out").count();
    assert_eq!(num_told, 16, "told once");
    world.join_as("c", |w| w.inputs = Some(inputs.clone()));
    world.kill("b");
    world.settle();
    world.train(&job, 1);
    let record = world.record(&job);
    let num_told = record.events.iter().filter(|e| e.kind == "data.left_out").count();
    assert_eq!((record.epoch.get(), num_told), (2, 16), "and not by each epoch again");
}

/// All have sealed the first step, so all work together; that it is committed is not known yet.
#[test]
fn a_job_runs_from_its_first_sealed_step_on() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 5, ""));
    ["a", "b"].into_iter().for_each(|id| world.join(id));
    world.settle();
    world.heartbeats();
    world.settle();
    assert_eq!(world.record(&job).state, State::Starting, "nothing is computed yet");
    let mut num_seal = 2;
    world.step_in_part(&job, |_| {
        let seals = num_seal > 0;
        num_seal = num_seal.max(1) - 1;
        seals
    });
    assert!(world.work("a").sealed && world.work("b").sealed && world.work("a").committed == 0);
    world.heartbeats();
    world.settle();
    assert_eq!((world.record(&job).state, world.view(&job).committed_step), (State::Running, 0));
}

/// Also after a restart of the coordinator; a worker that says something else than the job has sources is not believed.
#[test]
fn what_each_source_has_given_is_shown() {
    let mut world = World::new();
    let sources = "[[data.source]]\nname = \"code\"\npath = \"/c\"\nweight = 3.0\n\
                   [[data.source]]\nname = \"prose\"\npath = \"/p\"\nweight = 1.0\nmax_epochs = 2.0\n";
    let job = world.submit(&job_file(2, 50, "").replace("[data]\npath = \"/data\"\n", sources));
    let source = |num_samples| proto::Source { num_tokens: 1000, num_samples, ..Default::default() };
    let inputs = proto::Inputs { sources: vec![source(500), source(16)], ..Default::default() };
    for id in ["a", "b"] {
        world.join_as(id, |w| w.inputs = Some(inputs.clone()));
    }
    world.settle();
    assert_eq!(world.record(&job).spec.batch.samples(), 64);
    let shown = |world: &World| -> Vec<(String, f64, u64, f64, f64)> {
        let sources = world.view(&job).inputs.expect("what it is trained on").sources;
        sources.into_iter().map(|s| (s.name, s.share, s.given, s.epochs, s.max_epochs)).collect()
    };
    world.train(&job, 1);
    let of_one = [("code".into(), 0.75, 48, 0.096, 0.0), ("prose".into(), 0.25, 16, 1.0, 2.0)];
    assert_eq!(shown(&world), of_one);
    world.restart(|_| true);
    world.settle();
    assert_eq!(shown(&world), of_one);
    world.train(&job, 9);
    let of_ten = [("code".into(), 0.75, 608, 1.216, 0.0), ("prose".into(), 0.25, 32, 2.0, 2.0)];
    assert_eq!(shown(&world), of_ten, "prose may give no more");
}
