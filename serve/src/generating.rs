//! `toroid generate` with a tokenizer: its flags and answers, and the tokens of a file.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use toroid::generate::{Args, Said};
use toroid::model_source::ModelSource;
use toroid::output;
use toroid_worker::generate::{Finish, Sequence};

use crate::engine::{Engine, Event, Refused, Room, Task};
use crate::model::Model;

pub fn run(runtime: &Runtime, args: Args) -> Result<ExitCode> {
    let (prompt, samples) = (args.prompt()?, usize::from(args.samples));
    let model = Model::of(ModelSource::open(runtime, args.model())?, args.tokenizer.as_deref(), None, &[])?;
    let prompt = model.tokens.encode(&prompt, true)?;
    let (context, split) = (args.context(&model.source, prompt.len())?, args.split(&model.source)?);
    let engine = Engine::start(model, split, Room { places: samples, waiting: samples, context })?;
    let (to, mut events) = mpsc::unbounded_channel();
    let task = |index: usize| Task {
        sequence: Sequence {
            prompt: prompt.clone(),
            sample: index as u64,
            seed: args.seed,
            sampling: args.sampling(),
            max_tokens: args.max_tokens,
            scores_prompt: false,
        },
        stops: args.stop.clone(),
        scores: None,
        index,
        to: to.clone(),
        asked_at: Instant::now(),
    };
    let (start, tasks) = (Instant::now(), (0..samples).map(task).collect());
    drop(to);
    engine.submit(tasks).map_err(refusal).with_context(|| format!("generate with {}", engine.model.source.what))?;
    let empty = || Said { text: String::new(), tokens: Vec::new(), finish: Finish::Length };
    let mut texts: Vec<Said> = (0..samples).map(|_| empty()).collect();
    while let Some((index, event)) = events.blocking_recv() {
        let said = &mut texts[index];
        match event {
            Event::Piece { text, tokens } => {
                if args.is_live() {
                    output::print(&text)?;
                }
                said.text.push_str(&text);
                said.tokens.extend(tokens.iter().map(|written| written.token));
            }
            Event::End { finish, .. } => said.finish = finish,
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) => {}
        }
    }
    args.answer(&engine.model.source, prompt.len(), &texts, start.elapsed().as_secs_f64())
}

/// Why a text is not generated, for people.
pub fn refusal(refused: Refused) -> anyhow::Error {
    match refused {
        Refused::Prompt(error) => error.into(),
        other => anyhow::anyhow!("the engine refuses: {other:?}"),
    }
}
