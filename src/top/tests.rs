//! Screens as users see them, in `snapshots/`: each of a situation, at a size.

use ratatui_core::backend::TestBackend;
use ratatui_core::terminal::Terminal;
use toroid_proto as proto;

use super::model::{Link, Model, Prompt, Scale};
use super::render::{self, Palette};
use super::update::{Input, update};
use crate::golden;

const NOW_UNIX_MS: i64 = 1_795_514_334_000;

fn place(rank: u32, width: u32) -> proto::PlaceInfo {
    proto::PlaceInfo {
        rank,
        x: rank % width,
        y: rank / width,
        worker_id: format!("w{rank}"),
        alive: true,
        committed_step: 120,
        host: format!("h{}", rank / width),
        links: [("shm".to_string(), 2), ("tls".to_string(), 1)].into_iter().collect(),
    }
}

fn job(width: u32, height: u32) -> proto::Job {
    proto::Job {
        id: "tiny-1".into(),
        state: proto::JobState::Running.into(),
        reason: "all workers are prepared: they connect and compute the first step".into(),
        committed_step: 120,
        total_steps: 200,
        last_step: Some(proto::StepRecord { step: 120, loss: 2.34567, ..Default::default() }),
        tokens_per_s: 13_411.6,
        eta_s: 35.2,
        goodput: 0.981,
        places: (0..width * height).map(|rank| place(rank, width)).collect(),
        places_alive: width * height,
        spares: 1,
        checkpoints: vec![checkpoint(100, 42_000), checkpoint(50, 84_000)],
        ..Default::default()
    }
}

fn checkpoint(step: u64, age_ms: i64) -> proto::CheckpointInfo {
    let path = format!("/r/checkpoints/step-{step}");
    proto::CheckpointInfo {
        step,
        path,
        bytes: 27_100_000,
        unix_ms: NOW_UNIX_MS - age_ms,
        write_s: 0.3,
        ..Default::default()
    }
}

fn incident(resolved: bool) -> proto::Incident {
    proto::Incident {
        number: 1,
        unix_ms: NOW_UNIX_MS - 3_000,
        cause: "w5 (rank 5) lost its connection (broken pipe)".into(),
        seen_by: "stream closed".into(),
        ranks: vec![5],
        workers: vec!["w5".into()],
        rung: "spare".into(),
        fence_s: 0.002,
        decide_s: 0.0204,
        heal_s: 0.1496,
        redo_s: 0.24,
        total_s: 0.412,
        resolved,
        ..Default::default()
    }
}

fn worker(id: u32, state: proto::WorkerState) -> proto::WorkerInfo {
    let rank = if state == proto::WorkerState::Placed { id as i32 } else { -1 };
    proto::WorkerInfo {
        worker_id: format!("w{id}"),
        host: format!("h{}", id / 4),
        device: "cpu".into(),
        pid: 4000 + id,
        rank,
        silent_s: 0.25,
        compute_s: 0.0412,
        memory_bytes: 60_000_000,
        state: state.into(),
        ..Default::default()
    }
}

/// A model that has heard all this.
fn model(job: proto::Job) -> Model {
    let mut model = Model::new("10.0.0.1:7070".into(), String::new());
    let mut workers: Vec<_> = (0..8).map(|id| worker(id, proto::WorkerState::Placed)).collect();
    let ready = proto::WarmUpState::Ready.into();
    workers.push(proto::WorkerInfo {
        warm_up: ready,
        warm_up_job: "tiny-1".into(),
        ..worker(8, proto::WorkerState::Spare)
    });
    let aside = proto::WorkerState::Aside;
    workers
        .push(proto::WorkerInfo { state_reason: "it was lost 3 times within 10 minutes".into(), ..worker(9, aside) });
    let step = |step: u64| proto::StepRecord {
        step,
        loss: 2.0 + 4.0 * (-0.03 * step as f64).exp(),
        step_s: 0.23,
        hidden_s: 0.02,
        exposed_s: 0.0123,
        ..Default::default()
    };
    let event = |n: i64| proto::Event {
        unix_ms: NOW_UNIX_MS - 60_000 + 1000 * n,
        kind: "checkpoint.done".into(),
        text: format!("step {} is saved", 10 * n),
        ..Default::default()
    };
    let news = proto::JobUpdate {
        job: Some(job.clone()),
        steps: (1..=120).map(step).collect(),
        events: (1..=10).map(event).collect(),
    };
    let id = job.id.clone();
    update(&mut model, Input::Cluster(vec![job], workers), NOW_UNIX_MS);
    update(&mut model, Input::Update(id, Box::new(news)), NOW_UNIX_MS);
    model
}

fn check(name: &str, model: &Model, (width, height): (u16, u16)) {
    let text = screen(model, Palette::new(false), (width, height));
    golden::check(&format!("src/top/snapshots/{name}-{width}x{height}.txt"), &text);
}

fn screen(model: &Model, palette: Palette, (width, height): (u16, u16)) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal of cells");
    let drawn = terminal.draw(|frame| {
        let area = frame.area();
        render::draw(model, palette, NOW_UNIX_MS, area, frame.buffer_mut());
    });
    drawn.expect("draw on cells");
    let row = |cells: &[ratatui_core::buffer::Cell]| {
        let text: String = cells.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", text.trim_end())
    };
    terminal.backend().buffer().content().chunks(width as usize).map(row).collect()
}

const WIDE: (u16, u16) = (120, 32);
const NARROW: (u16, u16) = (80, 24);
const SMALL: (u16, u16) = (40, 10);

#[test]
fn a_healthy_job() {
    let model = model(proto::Job { incidents: vec![incident(true)], lost_s: 0.4, ..job(4, 2) });
    check("healthy", &model, WIDE);
    check("healthy", &model, NARROW);
    check("healthy", &model, SMALL);
    check("logarithmic", &Model { scale: Scale::Log, ..model }, NARROW);
}

#[test]
fn an_incident_that_lasts() {
    let job = proto::Job { incidents: vec![incident(false)], state: proto::JobState::Recovering.into(), ..job(4, 2) };
    check("incident", &model(job), WIDE);
}

#[test]
fn a_dead_place() {
    let mut job =
        proto::Job { incidents: vec![incident(false)], state: proto::JobState::Recovering.into(), ..job(4, 2) };
    (job.places[5].alive, job.places[5].worker_id) = (false, String::new());
    let model = Model { rank: 5, ..model(job) };
    check("dead", &model, WIDE);
    check("dead", &model, SMALL);
}

#[test]
fn a_straggler() {
    let straggler = proto::Straggler {
        rank: 2,
        worker_id: "w2".into(),
        factor: 2.5,
        compute_s: 0.04,
        peers_s: 0.016,
        num_peers: 3,
        from_step: 100,
        to_step: 120,
    };
    check("straggler", &Model { rank: 2, ..model(proto::Job { stragglers: vec![straggler], ..job(4, 2) }) }, NARROW);
}

#[test]
fn a_job_in_the_queue() {
    let queued = proto::Job {
        state: proto::JobState::Queued.into(),
        reason: "waits for 8 workers, 2 are free".into(),
        places: Vec::new(),
        last_step: None,
        committed_step: 0,
        checkpoints: Vec::new(),
        waited_s: 125.0,
        ..job(4, 2)
    };
    let mut model = model(queued);
    model.curve = Default::default();
    model.recent.clear();
    check("queued", &model, NARROW);
}

#[test]
fn two_thousand_places() {
    let mut job = job(64, 32);
    job.places[1000].alive = false;
    let model = Model { rank: 1000, ..model(job) };
    check("large", &model, (160, 48));
    check("large", &model, NARROW);
    check("large", &model, SMALL);
}

#[test]
fn no_job_and_no_coordinator() {
    check("asking", &Model::new("10.0.0.1:7070".into(), String::new()), NARROW);
    let mut model = Model::new("10.0.0.1:7070".into(), String::new());
    update(&mut model, Input::Cluster(Vec::new(), vec![worker(0, proto::WorkerState::Spare)]), NOW_UNIX_MS);
    check("no-job", &model, NARROW);
}

#[test]
fn the_coordinator_is_away_and_the_last_state_stays() {
    let link = Link::Away { since_unix_ms: NOW_UNIX_MS - 4_000, why: "no coordinator answers at 10.0.0.1:7070".into() };
    check("away", &Model { link, ..model(job(4, 2)) }, NARROW);
}

#[test]
fn questions_and_help() {
    let prompt = Some(Prompt::Drain { worker: "w2".into(), rank: 2 });
    check("drain", &Model { prompt, ..model(job(4, 2)) }, NARROW);
    check("help", &Model { shows_help: true, ..model(job(4, 2)) }, NARROW);
}

/// Whatever there is to show, no size is too small to draw on; and colours change no character.
#[test]
fn every_size_can_be_drawn_on_and_colours_say_nothing_that_symbols_do_not() {
    let mut job = proto::Job { incidents: vec![incident(false)], ..job(64, 32) };
    job.places[7].alive = false;
    let model = model(job);
    for size in [(1, 1), (9, 3), (10, 3), (10, 4), (11, 5), (40, 10), (99, 50), (100, 6), (100, 50), (300, 100)] {
        let plain = screen(&model, Palette::new(false), size);
        assert_eq!(screen(&model, Palette::new(true), size), plain, "{size:?}");
        assert!(plain.lines().all(|line| line.chars().count() <= size.0 as usize), "{size:?}");
    }
}
