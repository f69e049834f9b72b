//! How many epochs a job makes of each source: from what is at their paths here, or from `data.source.tokens`.

use anyhow::{Context as _, Result, ensure};
use toroid_torus::cursor::NUM_SAMPLES_MAX;
use toroid_torus::job::{JobKind, JobSpec, SourceConfig};
use toroid_torus::plan::{DataPlan, SourcePlan, of_data};
use toroid_worker::data;

use crate::format::{count, percent, short_count, table};

/// The plan for the data; an error says what is not known, or does not fit.
pub fn plan(spec: &JobSpec) -> Result<DataPlan> {
    let counts = spec.data.all_sources().iter().map(|source| num_tokens(spec, source)).collect::<Result<Vec<_>>>()?;
    Ok(of_data(spec, &counts)?)
}

/// Of a text that is a folder it is what the files may have at most: those that are no text are found by reading them.
fn num_tokens(spec: &JobSpec, source: &SourceConfig) -> Result<u64> {
    let num = found_tokens(spec, source)?;
    ensure!(num <= NUM_SAMPLES_MAX, "{num} tokens are said to be there; a source has at most 2^48");
    Ok(num)
}

fn found_tokens(spec: &JobSpec, source: &SourceConfig) -> Result<u64> {
    // Of dialogues and pairs it is their number that counts.
    if let Some(tokens) = source.tokens.filter(|_| spec.kind.is_pretrain()) {
        return Ok(tokens);
    }
    let hint =
        if source.name.is_empty() { String::new() } else { format!(" of {}; or give data.source.tokens", source.name) };
    ensure!(
        !source.path.to_str().is_some_and(toroid_storage::is_store),
        "{} is not read for a plan; give its number of tokens (data.source.tokens)",
        source.path.display()
    );
    let size = data::size(source).with_context(|| format!("count the tokens{hint}"))?;
    let (found, vocab) = (size.vocabulary, spec.model.vocab);
    ensure!(
        found as usize <= vocab,
        "the tokens in {} are below {found}, and model.vocab is {vocab}; set model.vocab to {found} or more",
        source.path.display()
    );
    Ok(match spec.kind {
        JobKind::Pretrain => size.num_tokens,
        JobKind::Sft | JobKind::Reward | JobKind::Ppo => size.num_documents / spec.kind.texts_of_sample() as u64,
    })
}

/// A row a source.
pub fn text(plan: &DataPlan) -> String {
    let header = ["DATA", "TOKENS", "SAMPLES A PASS", "SHARE", "SAMPLES TAKEN", "EPOCHS"];
    let row = |source: &SourcePlan| {
        let ends = source.ends_in_step.map(|step| format!(", after step {step} the others have its share"));
        let most = source.max_epochs.map(|most| format!(" of at most {most}"));
        vec![
            if source.name.is_empty() { "data.path".into() } else { source.name.clone() },
            short_count(source.num_tokens),
            count(source.num_samples),
            percent(source.share),
            count(source.given),
            format!("{:.2}{}{}", source.epochs, most.unwrap_or_default(), ends.unwrap_or_default()),
        ]
    };
    let rows: Vec<Vec<String>> =
        std::iter::once(header.map(String::from).to_vec()).chain(plan.sources.iter().map(row)).collect();
    let mut text = table(&rows);
    if plan.missing_samples > 0 {
        let missing = count(plan.missing_samples);
        text.push_str(&format!(
            "this job is refused: {missing} samples are missing; lower steps, or raise max_epochs\n"
        ));
    }
    text
}
