//! What follows from a key or from news: the model changes, and something may have to be done. Pure.

use toroid_proto as proto;
use toroid_proto::json::is_ended;

use super::model::{Grid, Link, Model, Prompt, Scale};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Up,
    Down,
    Left,
    Right,
    Tab,
    BackTab,
    Escape,
    /// Ctrl-C, which a terminal in raw mode makes no signal of.
    Interrupt,
}

#[derive(Debug)]
pub enum Input {
    Key(Key),
    /// The jobs, the newest first, and the workers.
    Cluster(Vec<proto::Job>, Vec<proto::WorkerInfo>),
    /// The coordinator does not answer.
    Away(String),
    /// Of this job.
    Update(String, Box<proto::JobUpdate>),
    /// The job cannot be watched, and why.
    Unwatched(String, String),
    /// What came of something that was asked for.
    Answer(String),
    /// The terminal has another size.
    Resized,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    /// Follow this job instead of the one before.
    Watch(String),
    Checkpoint(String),
    Drain(String),
    Cancel(String),
}

pub fn update(model: &mut Model, input: Input, now_unix_ms: i64) -> Option<Action> {
    match input {
        Input::Key(key) => return key_pressed(model, key, now_unix_ms),
        Input::Cluster(jobs, workers) => {
            model.link = Link::Live;
            (model.jobs, model.workers, model.workers_unix_ms) = (jobs, workers, now_unix_ms);
            if model.job_id.is_empty() {
                let goes_on = model.jobs.iter().find(|job| !is_ended(job.state()));
                let found = goes_on.or(model.jobs.first()).map(|job| job.id.clone())?;
                model.select(found.clone());
                return Some(Action::Watch(found));
            }
        }
        Input::Away(why) => {
            let since_unix_ms = match &model.link {
                Link::Away { since_unix_ms, .. } => *since_unix_ms,
                Link::Live | Link::Connecting => now_unix_ms,
            };
            model.link = Link::Away { since_unix_ms, why };
        }
        // One of a job that is no longer shown may come late.
        Input::Update(job, news) if job == model.job_id => model.take(*news),
        Input::Update(..) => {}
        Input::Unwatched(job, why) => {
            if job == model.job_id {
                model.notice = Some((why, now_unix_ms));
            }
        }
        Input::Answer(text) => model.notice = Some((text, now_unix_ms)),
        Input::Resized => {}
    }
    None
}

fn key_pressed(model: &mut Model, key: Key, now_unix_ms: i64) -> Option<Action> {
    let notice = |text: &str| Some((text.to_string(), now_unix_ms));
    if key == Key::Interrupt {
        return Some(Action::Quit);
    }
    if let Some(prompt) = model.prompt.take() {
        return match (key, prompt) {
            (Key::Char('y' | 'Y'), Prompt::Drain { worker, .. }) => Some(Action::Drain(worker)),
            (Key::Char('y' | 'Y'), Prompt::Cancel { job }) => Some(Action::Cancel(job)),
            // Whatever else was meant, it was no yes.
            _ => {
                model.notice = notice("nothing was done");
                None
            }
        };
    }
    model.notice = None;
    if model.shows_help {
        model.shows_help = false;
        // Any key ends the help, and these mean what they say.
        if key != Key::Char('q') {
            return None;
        }
    }
    match key {
        Key::Char('q') => return Some(Action::Quit),
        Key::Char('?') => model.shows_help = true,
        Key::Char('l') => {
            model.scale = match model.scale {
                Scale::Linear => Scale::Log,
                Scale::Log => Scale::Linear,
            }
        }
        Key::Tab => return next_job(model, 1),
        Key::BackTab => return next_job(model, -1),
        Key::Left => step(model, -1, 0),
        Key::Right => step(model, 1, 0),
        Key::Up => step(model, 0, -1),
        Key::Down => step(model, 0, 1),
        Key::Char('c') => match living(model) {
            Some(job) => return Some(Action::Checkpoint(job)),
            None => model.notice = notice("no job goes on that could be saved"),
        },
        Key::Char('d') => match model.place().filter(|p| !p.worker_id.is_empty()) {
            Some(p) => model.prompt = Some(Prompt::Drain { worker: p.worker_id.clone(), rank: p.rank }),
            None => model.notice = notice("the selected place has no worker that could be drained"),
        },
        Key::Char('x') => match living(model) {
            Some(job) => model.prompt = Some(Prompt::Cancel { job }),
            None => model.notice = notice("no job goes on that could be cancelled"),
        },
        Key::Char(_) | Key::Escape | Key::Interrupt => {}
    }
    None
}

/// The job that is shown, if it goes on.
fn living(model: &Model) -> Option<String> {
    let job = model.job.as_ref().filter(|job| !is_ended(job.state()))?;
    Some(job.id.clone())
}

/// Shows the next or previous job of the list, from its end to its beginning.
fn next_job(model: &mut Model, by: isize) -> Option<Action> {
    let num = model.jobs.len() as isize;
    let at = model.jobs.iter().position(|job| job.id == model.job_id).map_or(-by.min(0), |at| at as isize + by);
    let next = model.jobs.get(usize::try_from(at.rem_euclid(num.max(1))).ok()?)?.id.clone();
    if next == model.job_id {
        return None;
    }
    model.select(next.clone());
    Some(Action::Watch(next))
}

/// Selects the next place in a direction: on a torus, rows and columns go round.
fn step(model: &mut Model, dx: isize, dy: isize) {
    let Some(job) = &model.job else { return };
    let grid = Grid::of(job);
    let Some((x, y)) = grid.position(model.rank) else { return };
    let go = |at: usize, by: isize, size: usize| (at as isize + by).rem_euclid(size as isize) as usize;
    if let Some((rank, _)) = grid.at(go(x, dx, grid.width), go(y, dy, grid.height)) {
        model.rank = rank as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, state: proto::JobState) -> proto::Job {
        let place = |rank: u32| proto::PlaceInfo {
            rank,
            x: rank % 2,
            y: rank / 2,
            worker_id: format!("w{rank}"),
            alive: true,
            ..Default::default()
        };
        proto::Job { id: id.into(), state: state.into(), places: (0..4).map(place).collect(), ..Default::default() }
    }

    fn watching() -> Model {
        let jobs = vec![
            job("c-1", proto::JobState::Done),
            job("b-1", proto::JobState::Running),
            job("a-1", proto::JobState::Queued),
        ];
        let mut model = Model::new("h:1".into(), String::new());
        let found = update(&mut model, Input::Cluster(jobs.clone(), Vec::new()), 1);
        assert_eq!(found, Some(Action::Watch("b-1".into())), "the newest that goes on");
        let news = proto::JobUpdate { job: Some(jobs[1].clone()), ..Default::default() };
        assert_eq!(update(&mut model, Input::Update("b-1".into(), Box::new(news)), 1), None);
        model
    }

    fn press(model: &mut Model, keys: &[Key]) -> Option<Action> {
        keys.iter().fold(None, |_, key| update(model, Input::Key(*key), 1))
    }

    #[test]
    fn tab_goes_round_the_jobs_and_what_comes_late_of_another_is_dropped() {
        let mut model = watching();
        assert_eq!(press(&mut model, &[Key::Tab]), Some(Action::Watch("a-1".into())));
        assert_eq!(press(&mut model, &[Key::Tab]), Some(Action::Watch("c-1".into())));
        assert_eq!(press(&mut model, &[Key::BackTab]), Some(Action::Watch("a-1".into())));
        let late = proto::JobUpdate { job: Some(job("b-1", proto::JobState::Done)), ..Default::default() };
        update(&mut model, Input::Update("b-1".into(), Box::new(late)), 2);
        assert_eq!(model.job, None);
        let mut empty = Model::new("h:1".into(), String::new());
        assert_eq!(press(&mut empty, &[Key::Tab, Key::BackTab, Key::Up]), None);
    }

    #[test]
    fn arrows_go_round_the_torus() {
        let mut model = watching();
        let mut check = |key, rank| {
            press(&mut model, &[key]);
            assert_eq!(model.rank, rank, "{key:?}");
        };
        check(Key::Right, 1);
        check(Key::Right, 0);
        check(Key::Up, 2);
        check(Key::Left, 3);
        check(Key::Down, 1);
    }

    #[test]
    fn what_cannot_be_taken_back_is_asked_for_twice() {
        let mut model = watching();
        assert_eq!(press(&mut model, &[Key::Right, Key::Char('d')]), None);
        assert_eq!(model.prompt, Some(Prompt::Drain { worker: "w1".into(), rank: 1 }));
        assert_eq!(press(&mut model, &[Key::Char('y')]), Some(Action::Drain("w1".into())));
        assert_eq!(press(&mut model, &[Key::Char('x'), Key::Char('n')]), None);
        assert_eq!(model.notice, Some(("nothing was done".into(), 1)));
        assert_eq!(press(&mut model, &[Key::Char('x'), Key::Char('y')]), Some(Action::Cancel("b-1".into())));
        assert_eq!(press(&mut model, &[Key::Char('c')]), Some(Action::Checkpoint("b-1".into())));
        assert_eq!(press(&mut model, &[Key::Char('x'), Key::Interrupt]), Some(Action::Quit), "Ctrl-C is no answer");
    }

    #[test]
    fn what_has_ended_is_neither_saved_nor_cancelled() {
        let mut model = watching();
        let news = proto::JobUpdate { job: Some(job("b-1", proto::JobState::Done)), ..Default::default() };
        update(&mut model, Input::Update("b-1".into(), Box::new(news)), 2);
        assert_eq!(press(&mut model, &[Key::Char('c')]), None);
        assert_eq!(press(&mut model, &[Key::Char('x')]), None);
        assert_eq!(model.prompt, None);
    }

    #[test]
    fn the_first_moment_without_an_answer_counts() {
        let mut model = watching();
        update(&mut model, Input::Away("refused".into()), 10);
        update(&mut model, Input::Away("refused".into()), 20);
        assert_eq!(model.link, Link::Away { since_unix_ms: 10, why: "refused".into() });
        update(&mut model, Input::Cluster(Vec::new(), Vec::new()), 30);
        assert_eq!(model.link, Link::Live);
        assert_eq!(model.job_id, "b-1", "what is shown stays");
    }
}
