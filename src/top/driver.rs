//! What is asked of the coordinator, by whom the keys are read, and when the screen is drawn. Decides nothing: see [`super::update`].
//!
//! ```text
//!   keys (a thread), signals ──┐
//!   cluster (jobs, workers)  ──┼──> inputs ──> update ──> the screen, at most every FRAME
//!   follow (the job)         ──┘                 └──> what was asked for, beside the loop
//! ```
//!
//! Inputs wait in a queue with a bound: who is faster than the screen waits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ratatui_core::terminal::Terminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::model::Model;
use super::render::{self, Palette};
use super::terminal::{Output, Screen, next_key};
use super::update::{Action, Input, Key, update};
use crate::access::Access;
use crate::client::Client;
use crate::format::now_unix_ms;
use crate::watch::Follow;
use crate::workers::drain_line;

/// Between two looks at jobs and workers, and between two screens where nothing happens: ages grow.
const LOOK: Duration = Duration::from_secs(1);
/// Between two screens, at least.
const FRAME: Duration = Duration::from_millis(100);
/// For so long a look may take before the coordinator counts as away.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// Jobs that are listed, the newest.
const MAX_JOBS: usize = 50;
/// Inputs that wait.
const MAX_INPUTS: usize = 256;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Quit,
    /// By a signal.
    Interrupted,
}

pub async fn run(access: Access, mut model: Model, palette: Palette) -> Result<End> {
    let (inputs, mut next) = mpsc::channel(MAX_INPUTS);
    let mut end = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
    let screen = Screen::take()?;
    let mut terminal = Terminal::new(Output::new()).context("look at the terminal")?;
    read_keys(inputs.clone())?;
    let _look = Task(tokio::spawn(look(access.clone(), inputs.clone())));
    let mut _followed = (!model.job_id.is_empty()).then(|| follow(&access, &model.job_id, &inputs));
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut draw_at = Some(Instant::now());
    loop {
        tokio::select! {
            input = next.recv() => {
                // This function holds a sender itself.
                let Some(input) = input else { return Ok(End::Quit) };
                match update(&mut model, input, now_unix_ms()) {
                    Some(Action::Quit) => return Ok(End::Quit),
                    Some(Action::Watch(job)) => _followed = Some(follow(&access, &job, &inputs)),
                    Some(action) => drop(tokio::spawn(act(access.clone(), action, inputs.clone()))),
                    None => {}
                }
                draw_at.get_or_insert_with(|| Instant::now() + FRAME);
            }
            _ = tick.tick() => {
                ensure!(screen.is_ours(), "a part of `toroid top` has panicked; its words are above: please report them");
                draw_at = Some(draw_at.unwrap_or_else(Instant::now));
            }
            () = sleep_until(draw_at.unwrap_or_else(Instant::now)), if draw_at.is_some() => {
                draw_at = None;
                let drawn = terminal.draw(|frame| {
                    let area = frame.area();
                    render::draw(&model, palette, now_unix_ms(), area, frame.buffer_mut());
                });
                drawn.context("draw on the terminal")?;
            }
            _ = end.recv() => return Ok(End::Interrupted),
            _ = interrupt.recv() => return Ok(End::Interrupted),
            _ = hangup.recv() => return Ok(End::Interrupted),
        }
    }
}

/// Ends with whoever holds it.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keys are waited for on a thread of their own: a terminal has no other way that works everywhere. It ends with the process.
fn read_keys(inputs: mpsc::Sender<Input>) -> Result<()> {
    let read = move || {
        loop {
            let input = match next_key() {
                Ok(Some(key)) => Input::Key(key),
                Ok(None) => Input::Resized,
                // The terminal is gone.
                Err(_) => Input::Key(Key::Interrupt),
            };
            let is_last = matches!(input, Input::Key(Key::Interrupt));
            if inputs.blocking_send(input).is_err() || is_last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".into()).spawn(read).context("start a thread for the keys").map(drop)
}

async fn seen_by(client: &mut Client) -> Result<Input> {
    let (jobs, _) = client.jobs(MAX_JOBS, String::new()).await?;
    Ok(Input::Cluster(jobs, client.workers().await?))
}

/// Jobs and workers, again and again, over whichever coordinator leads: where the one that did is gone, the next is looked for at once.
async fn look(access: Access, inputs: mpsc::Sender<Input>) {
    let mut client: Option<Client> = None;
    let mut every = interval(LOOK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let ask = async {
            if let Some(mut known) = client.take()
                && let Ok(seen) = seen_by(&mut known).await
            {
                client = Some(known);
                return Ok(seen);
            }
            let mut found = Client::find(&access).await?;
            let seen = seen_by(&mut found).await?;
            client = Some(found);
            anyhow::Ok(seen)
        };
        let input = match tokio::time::timeout(LOOK_LIMIT, ask).await {
            Ok(Ok(input)) => input,
            Ok(Err(error)) => Input::Away(format!("{error:#}")),
            Err(_) => Input::Away(silent(&access.urls)),
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

fn silent(urls: &[String]) -> String {
    let limit_s = LOOK_LIMIT.as_secs();
    match urls {
        [_] => format!("it does not answer within {limit_s} s"),
        several => format!("none of {} leads and answers within {limit_s} s", several.join(", ")),
    }
}

/// The job's state, steps and events as they come, until it ends; for as long as no coordinator answers it is asked for again.
fn follow(access: &Access, job: &str, inputs: &mpsc::Sender<Input>) -> Task {
    let (mut follow, job, inputs) = (Follow::new(access.clone(), job, Duration::MAX), job.to_string(), inputs.clone());
    Task(tokio::spawn(async move {
        loop {
            let input = match follow.next().await {
                Ok(Some(update)) => Input::Update(job.clone(), Box::new(update)),
                Ok(None) => return,
                Err(error) => {
                    // Whoever reads it shows it; nothing more comes of this job.
                    let _ = inputs.send(Input::Unwatched(job, format!("{error:#}"))).await;
                    return;
                }
            };
            if inputs.send(input).await.is_err() {
                return;
            }
        }
    }))
}

/// Does what the user asked for, and says what came of it.
async fn act(access: Access, action: Action, inputs: mpsc::Sender<Input>) {
    let done = async {
        let mut client = Client::find(&access).await?;
        match action {
            Action::Checkpoint(job) => {
                let step = client.checkpoint(&job).await?;
                anyhow::Ok(format!("the state after step {step} will be saved"))
            }
            Action::Drain(worker) => Ok(drain_line(&worker, &client.drain(&worker).await?)),
            Action::Cancel(job) => Ok(format!("{} is cancelled", client.cancel(&job).await?.id)),
            Action::Quit | Action::Watch(_) => Ok(String::new()),
        }
    };
    let text = match done.await {
        Ok(text) => text,
        Err(error) => format!("{error:#}"),
    };
    // Where nobody reads it any more, the screen is gone.
    let _ = inputs.send(Input::Answer(text)).await;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toroid_coordinator::Config;
    use toroid_coordinator::store::etcd::EtcdConfig;
    use toroid_security::Credentials;
    use toroid_testkit::{Coordinator, Etcd, within};

    use super::*;

    async fn next(inputs: &mut mpsc::Receiver<Input>) -> Input {
        within("the next input", inputs.recv()).await.expect("whoever looks goes on")
    }

    /// The next state of the cluster, and how often nobody answered before.
    async fn next_state(inputs: &mut mpsc::Receiver<Input>) -> (Vec<String>, usize) {
        let mut num_away = 0;
        loop {
            match next(inputs).await {
                Input::Cluster(jobs, _) => return (jobs.into_iter().map(|job| job.id).collect(), num_away),
                Input::Away(_) => num_away += 1,
                _ => {}
            }
        }
    }

    fn several(etcd: &Etcd, folder: &Path) -> Vec<Config> {
        let config = |n: usize| {
            let own = folder.join(n.to_string());
            Config { etcd: Some(EtcdConfig::new(etcd.urls())), ..Coordinator::config(&own) }
        };
        (0..3).map(config).collect()
    }

    /// Which of them leads.
    async fn leader(coordinators: &[Coordinator]) -> usize {
        loop {
            for (n, coordinator) in coordinators.iter().enumerate() {
                let mut client = Client::connect(&coordinator.url, &Credentials::none()).await.expect("it listens");
                if client.leader().await.expect("it answers").leads {
                    return n;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_next_leader_is_found_and_a_job_is_followed_to_it() {
        let etcd = Etcd::start(1).expect("start etcd");
        let folder = tempfile::tempdir().expect("make a folder");
        let mut coordinators = Vec::new();
        for config in several(&etcd, folder.path()) {
            coordinators.push(Coordinator::start(config).await);
        }
        let urls: Vec<String> = coordinators.iter().map(|coordinator| coordinator.url.clone()).collect();
        let access = Access { urls: urls.clone(), credentials: Credentials::none() };
        let mut first = within("a leader", leader(&coordinators)).await;
        let shared = format!("path = \"{}\"\n", folder.path().join("shared").display());
        let job_file = toroid_testkit::jobs::short_job((1, 1, 1), 5, "")
            .replace("[checkpoint]\n", &format!("[checkpoint]\n{shared}"));
        let job = Client::find(&access).await.expect("find it").submit(job_file).await.expect("submit a job");

        let (looks, mut seen) = mpsc::channel(MAX_INPUTS);
        let _look = Task(tokio::spawn(look(access.clone(), looks)));
        let (updates, mut followed) = mpsc::channel(MAX_INPUTS);
        let _follow = follow(&access, &job, &updates);
        assert!(matches!(next(&mut followed).await, Input::Update(..)));
        assert_eq!(next_state(&mut seen).await, (vec![job.clone()], 0));

        for left in [2, 1] {
            coordinators.remove(first).stop().await;
            let (jobs, num_away) = next_state(&mut seen).await;
            assert_eq!(jobs, std::slice::from_ref(&job));
            assert!(num_away <= 1, "{num_away} looks found nobody while {left} could lead");
            first = within("a leader", leader(&coordinators)).await;
        }
        // Whoever follows the job hears of it from the third.
        let held = Client::find(&access).await.expect("find the third").hold(&job).await.expect("hold the job");
        assert_eq!(held.id, job);
        loop {
            match next(&mut followed).await {
                Input::Update(_, update) if update.job.as_ref().is_some_and(|job| job.is_held) => break,
                Input::Unwatched(_, why) => panic!("the job is not followed any more: {why}"),
                _ => {}
            }
        }

        coordinators.remove(first).stop().await;
        loop {
            if let Input::Away(why) = next(&mut seen).await {
                assert!(urls.iter().all(|url| why.contains(url)), "{why}");
                break;
            }
        }
    }
}
