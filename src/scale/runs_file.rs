//! Runs as a table with commas: those of a study, and those that anybody has made.
//!
//! The first line names the columns: `parameters`, `tokens` and `loss` (nats a token) must be there; `operations_per_token`, `lr` and `batch_tokens` may be, and
//! others are passed over. Without `operations_per_token` a token costs 6 operations for each parameter.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use toroid_torus::scaling::Run;

use super::study::Training;
use crate::files::read_text;

const MAX_FILE_BYTES: u64 = 64 << 20;
/// Forward and backward (arXiv 2001.08361, section 2.1).
const OPERATIONS_PER_PARAMETER: f64 = 6.0;
const HEADER: &str = "name,spec,job,parameters,operations_per_token,tokens,loss,lr,batch_tokens";

/// In which measure the sizes of runs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Parameters,
    OperationsPerToken,
}

impl Measure {
    pub fn words(self) -> &'static str {
        match self {
            Measure::Parameters => "parameters",
            Measure::OperationsPerToken => "operations a token",
        }
    }

    pub fn symbol(self) -> &'static str {
        match self {
            Measure::Parameters => "N",
            Measure::OperationsPerToken => "M",
        }
    }
}

/// A training of a study that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub name: String,
    /// [`Training::digest`].
    pub spec: String,
    pub job: String,
    pub loss: f64,
}

/// Runs of a file, whoever made them.
pub fn read(file: &Path) -> Result<(Measure, Vec<Run>)> {
    let text = read_text(file, "the runs in", MAX_FILE_BYTES)?;
    parse(&text).with_context(|| format!("read the runs in {}", file.display()))
}

fn parse(text: &str) -> Result<(Measure, Vec<Run>)> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().context("the file is empty: expected a first line that names the columns")?;
    let names: Vec<&str> = header.trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
    let column = |name: &str| names.iter().position(|n| n.eq_ignore_ascii_case(name));
    let must =
        |name: &str| column(name).with_context(|| format!("there is no column `{name}`; the columns are {header:?}"));
    let (parameters, tokens, loss) = (must("parameters")?, must("tokens")?, must("loss")?);
    let (operations, lr, batch) = (column("operations_per_token"), column("lr"), column("batch_tokens"));
    let measure = if operations.is_some() { Measure::OperationsPerToken } else { Measure::Parameters };
    let mut runs = Vec::new();
    for (number, line) in lines {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        ensure!(
            cells.len() == names.len(),
            "line {} has {} cells: expected {}, as its first line",
            number + 1,
            cells.len(),
            names.len()
        );
        let cell = |at: usize| -> Result<f64> {
            let value: f64 = cells[at]
                .parse()
                .with_context(|| format!("line {}: `{}` is {:?}, not a number", number + 1, names[at], cells[at]))?;
            if !(value.is_finite() && value > 0.0) {
                bail!("line {}: `{}` is {value}: expected a finite number above 0", number + 1, names[at]);
            }
            Ok(value)
        };
        let may = |at: Option<usize>| at.filter(|at| !cells[*at].is_empty()).map(cell).transpose();
        let num_parameters = cell(parameters)?;
        let (size, cost) = match operations {
            Some(at) => (cell(at)?, cell(at)?),
            None => (num_parameters, OPERATIONS_PER_PARAMETER * num_parameters),
        };
        runs.push(Run {
            size,
            cost,
            tokens: cell(tokens)?,
            loss: cell(loss)?,
            lr: may(lr)?,
            batch_tokens: may(batch)?,
        });
    }
    Ok((measure, runs))
}

/// What of a study has been finished so far; nothing where there is no file yet.
pub fn finished(file: &Path) -> Result<Vec<Finished>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = read_text(file, "the runs in", MAX_FILE_BYTES)?;
    let mut lines = text.lines();
    ensure!(
        lines.next() == Some(HEADER),
        "{} is not what a study writes: expected its first line to be {HEADER:?}",
        file.display()
    );
    let mut found = Vec::new();
    for (number, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        let [name, spec, job, _, _, _, loss, _, _] = cells[..] else {
            bail!(
                "line {} of {} is not what a study writes; move the file away to make all trainings again",
                number + 2,
                file.display()
            );
        };
        let loss =
            loss.parse().with_context(|| format!("line {} of {}: the loss is {loss:?}", number + 2, file.display()))?;
        found.push(Finished { name: name.into(), spec: spec.into(), job: job.into(), loss });
    }
    Ok(found)
}

/// Writes the table whole: a reader sees the one before or this one.
pub fn write(file: &Path, trainings: &[Training], finished: &[Finished]) -> Result<()> {
    let mut text = format!("{HEADER}\n");
    for (training, done) in trainings.iter().filter_map(|t| finished.iter().find(|f| f.name == t.name).map(|f| (t, f)))
    {
        let run = training.run(done.loss);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{}",
            training.name,
            done.spec,
            done.job,
            training.num_params,
            run.cost,
            training.tokens(),
            done.loss,
            training.spec.optimizer.lr,
            training.batch_tokens(),
        );
    }
    let partial = file.with_extension("csv.partial");
    let save = || -> std::io::Result<()> {
        let mut out = File::create(&partial)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&partial, file)
    };
    save().with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_in_any_order() {
        let (measure, runs) = parse("Loss, who,tokens,parameters\n2.5,me,2e9,1e8\n\n2.4,you,4e9,1e8\n").unwrap();
        assert_eq!(measure, Measure::Parameters);
        assert_eq!(runs[1], Run { size: 1e8, cost: 6e8, tokens: 4e9, loss: 2.4, lr: None, batch_tokens: None });
        let (measure, runs) = parse("parameters,operations_per_token,tokens,loss,lr\n1e8,7e8,2e9,2.5,\n").unwrap();
        assert_eq!(
            (measure, runs[0].size, runs[0].compute(), runs[0].lr),
            (Measure::OperationsPerToken, 7e8, 1.4e18, None)
        );
    }

    #[test]
    fn a_table_that_is_none_is_refused_with_its_line() {
        let check = |text: &str, expected: &str| {
            let error = format!("{:#}", parse(text).expect_err("a refusal"));
            assert!(error.contains(expected), "{error}");
        };
        check("", "the file is empty");
        check("a,b\n1,2\n", "there is no column `parameters`");
        check("parameters,tokens,loss\n1e8,2e9\n", "line 2 has 2 cells");
        check("parameters,tokens,loss\n1e8,2e9,low\n", "line 2: `loss` is \"low\", not a number");
        check("parameters,tokens,loss\n1e8,0,2\n", "line 2: `tokens` is 0");
        check("parameters,tokens,loss\n1e8,1e9,inf\n", "line 2: `loss` is inf");
    }
}
