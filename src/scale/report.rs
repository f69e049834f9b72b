//! What the runs of a family say, for people and for programs: text, JSON and plots.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toroid_torus::scaling::{Allocation, Best, Budget, FAR, Prediction, Scaling};

use super::runs_file::Measure;
use crate::files::read_text;
use crate::format::{percent, short_number, table};
use crate::svg::{Axis, Mark, Plot, Scale, Series};

/// Points of a drawn curve.
const NUM_POINTS: usize = 60;
const FORMAT: u32 = 1;
const MAX_FILE_BYTES: u64 = 16 << 20;

/// `laws.json`: what `toroid plan --law` reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Laws {
    format: u32,
    /// What a size is: `parameters` or `operations a token`.
    pub measure: String,
    pub scaling: Scaling,
}

impl Laws {
    pub fn new(measure: Measure, scaling: Scaling) -> Laws {
        Laws { format: FORMAT, measure: measure.words().into(), scaling }
    }

    pub fn read(file: &Path) -> Result<Laws> {
        let reading = || format!("read the laws in {}", file.display());
        let text = read_text(file, "the laws in", MAX_FILE_BYTES)?;
        let laws: Laws = serde_json::from_str(&text).with_context(reading)?;
        ensure!(
            laws.format == FORMAT,
            "{} has the format {}: this program reads {FORMAT}",
            file.display(),
            laws.format
        );
        if let Some(fault) = laws.scaling.fault() {
            bail!(
                "the laws in {} are none that `toroid scale` has written: {fault}; make the file anew",
                file.display()
            );
        }
        Ok(laws)
    }

    /// Operations a token are what a job's size is known in.
    pub fn of_operations(&self) -> Result<&Scaling> {
        let expected = Measure::OperationsPerToken.words();
        ensure!(
            self.measure == expected,
            "the laws are about {}: a job's loss is predicted by laws about {expected}, which runs with a column `operations_per_token` give",
            self.measure,
        );
        Ok(&self.scaling)
    }
}

/// `2.3120 (2.3011 to 2.3300)`.
pub fn prediction(p: &Prediction) -> String {
    format!("{:.4} ({:.4} to {:.4})", p.loss, p.low, p.high)
}

/// Said of a prediction that is far from what was run.
pub fn warning(beyond: f64) -> Option<String> {
    (beyond > FAR).then(|| {
        format!(
            "{} times the computation of the largest run: beyond {FAR} times a law is a guess",
            short_number(beyond)
        )
    })
}

pub fn text(measure: Measure, scaling: &Scaling, allocations: &[Allocation]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    let (law, symbol) = (&scaling.law, measure.symbol());
    line(format!(
        "law       loss = {:.4} + {} / {symbol}^{:.4} + {} / D^{:.4}   with {symbol} {}, D tokens",
        law.irreducible,
        short_number(law.size_coefficient),
        law.size_exponent,
        short_number(law.token_coefficient),
        law.token_exponent,
        measure.words(),
    ));
    let between = |[low, high]: [f64; 2]| format!("{} to {}", short_number(low), short_number(high));
    line(format!(
        "          95% of {} resampled: irreducible {}, exponents {} and {}",
        scaling.resampled.len(),
        between(scaling.interval(|l| l.irreducible)),
        between(scaling.interval(|l| l.size_exponent)),
        between(scaling.interval(|l| l.token_exponent)),
    ));
    let num_runs: usize = scaling.budgets.iter().map(|b| b.runs.len()).sum();
    line(format!(
        "fit       {num_runs} runs of {} budgets; {} of {} starts end at this law",
        scaling.budgets.len(),
        scaling.num_agreeing,
        scaling.num_starts,
    ));
    if let Some(held_out) = &scaling.held_out {
        line(format!(
            "held out  {} operations: the best of {} runs has {:.4}, the law says {:.4}, {} off; {} over all of them",
            short_number(held_out.compute),
            held_out.num_runs,
            held_out.seen,
            held_out.predicted,
            percent(held_out.error()),
            percent(held_out.mean_error),
        ));
    }
    if let Some(best) = &scaling.best_size {
        line(format!(
            "size      {} * C^{:.4} is best for C operations, by parabolas",
            short_number(best.coefficient),
            best.exponent
        ));
    }
    if let Some(best) = &scaling.best_lr {
        line(format!("lr        {} * C^{:.4}", short_number(best.coefficient), best.exponent));
    }
    if let Some(best) = &scaling.best_batch_tokens {
        line(format!("batch     {} * C^{:.4} tokens", short_number(best.coefficient), best.exponent));
    }
    line(String::new());
    line(budget_table(measure, &scaling.budgets));
    if !allocations.is_empty() {
        line(allocation_table(measure, allocations));
        for allocation in allocations {
            if let Some(text) = warning(allocation.beyond) {
                line(format!("warning: {} operations are {text}", short_number(allocation.compute)));
            }
        }
    }
    out
}

fn budget_table(measure: Measure, budgets: &[Budget]) -> String {
    let size = format!("BEST {}", measure.words().to_uppercase());
    let mut rows = vec![["BUDGET", "RUNS", "LOWEST LOSS", &size, "TOKENS", "ITS LOSS"].map(String::from).to_vec()];
    let mut refusals = String::new();
    for budget in budgets {
        let least = budget.runs.iter().map(|r| r.loss).fold(f64::INFINITY, f64::min);
        let compute = short_number(budget.compute);
        let mut row = vec![compute.clone(), budget.runs.len().to_string(), format!("{least:.4}")];
        match &budget.best {
            Best::Found { size, tokens, loss } => {
                row.extend([short_number(*size), short_number(*tokens), format!("{loss:.4}")])
            }
            Best::Refused(reason) => {
                row.extend(["-", "-", "-"].map(String::from));
                // Writing to a string does not fail.
                let _ = writeln!(refusals, "budget {compute} has no best size: {reason}");
            }
        }
        rows.push(row);
    }
    table(&rows) + &refusals
}

fn allocation_table(measure: Measure, allocations: &[Allocation]) -> String {
    let size = format!("BEST {}", measure.words().to_uppercase());
    let mut rows = vec![["COMPUTE", &size, "TOKENS", "LOSS, AND ITS INTERVAL"].map(String::from).to_vec()];
    rows.extend(allocations.iter().map(|a| {
        vec![short_number(a.compute), short_number(a.size), short_number(a.tokens), prediction(&a.prediction)]
    }));
    table(&rows)
}

/// Writes `laws.json` and the plots into a folder, which is made.
pub fn write(folder: &Path, measure: Measure, scaling: &Scaling) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    let laws = Laws::new(measure, scaling.clone());
    save("laws.json", &(serde_json::to_string_pretty(&laws).context("write the laws as JSON")? + "\n"))?;
    for (name, plot) in plots(measure, scaling) {
        save(&format!("{name}.svg"), &plot.render())?;
    }
    Ok(())
}

fn plots(measure: Measure, scaling: &Scaling) -> Vec<(&'static str, Plot)> {
    let mut plots = vec![
        ("budgets", budgets_plot(measure, scaling)),
        ("law", law_plot(scaling)),
        ("sizes", sizes_plot(measure, scaling)),
    ];
    let settings =
        [("lr", "highest learning rate", &scaling.best_lr), ("batch", "tokens of a step", &scaling.best_batch_tokens)];
    for (name, label, law) in settings {
        let Some(law) = law else { continue };
        let of = |run: &toroid_torus::scaling::Run| if name == "lr" { run.lr } else { run.batch_tokens };
        let seen =
            scaling.budgets.iter().flat_map(|b| b.runs.iter().filter_map(|r| Some((b.compute, of(r)?)))).collect();
        let drawn = span(scaling).map(|c| (c, law.at(c))).collect();
        plots.push((
            name,
            Plot {
                title: format!("The {label} that is best, and all that were tried"),
                x: Axis::new("operations", Scale::Log),
                y: Axis::new(label, Scale::Log),
                series: vec![series("tried", Mark::Dots, seen), series("law of the best", Mark::Line, drawn)],
            },
        ));
    }
    plots
}

fn series(name: &str, mark: Mark, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.into(), mark, points }
}

/// Operations from the smallest budget to beyond the largest.
fn span(scaling: &Scaling) -> impl Iterator<Item = f64> {
    let least = scaling.budgets.first().map_or(1.0, |b| b.compute);
    let most = 3.0 * scaling.max_compute;
    (0..=NUM_POINTS).map(move |i| least * (most / least).powf(i as f64 / NUM_POINTS as f64))
}

/// Losses by size, a colour a budget, with what the law says between them.
fn budgets_plot(measure: Measure, scaling: &Scaling) -> Plot {
    let mut all = Vec::new();
    for budget in &scaling.budgets {
        let name = format!("{} operations", short_number(budget.compute));
        all.push(series(&name, Mark::Dots, budget.runs.iter().map(|r| (r.size, r.loss)).collect()));
        let sizes = budget.runs.iter().map(|r| r.size);
        let (least, most) = sizes.fold((f64::INFINITY, 0.0f64), |(l, m), s| (l.min(s), m.max(s)));
        let drawn = (0..=NUM_POINTS).map(|i| {
            let size = least * (most / least).powf(i as f64 / NUM_POINTS as f64);
            (size, scaling.law.loss(size, budget.compute / (scaling.cost * size)))
        });
        all.push(series(&name, Mark::Line, drawn.collect()));
    }
    Plot {
        title: "Loss by size for equal computation; lines: the law".into(),
        x: Axis::new(measure.words(), Scale::Log),
        y: Axis::new("loss on held-out text, nats a token", Scale::Linear),
        series: all,
    }
}

/// What the law says of each run against what it has.
fn law_plot(scaling: &Scaling) -> Plot {
    let best = span(scaling).map(|c| (c, scaling.allocate(c).prediction));
    let best: Vec<(f64, Prediction)> = best.collect();
    let line = |name: &str, of: fn(&Prediction) -> f64| {
        series(name, Mark::Line, best.iter().map(|(c, p)| (*c, of(p))).collect())
    };
    let runs = scaling.budgets.iter().flat_map(|b| b.runs.iter().map(|r| (r.compute(), r.loss))).collect();
    let mut all = vec![series("runs", Mark::Dots, runs)];
    if let Some(held_out) = &scaling.held_out {
        all.push(series("best of the held out", Mark::Dots, vec![(held_out.compute, held_out.seen)]));
    }
    all.extend([line("law, best size", |p| p.loss), line("95%", |p| p.low), line("95%", |p| p.high)]);
    Plot {
        title: "The lowest loss by computation".into(),
        x: Axis::new("operations", Scale::Log),
        y: Axis::new("loss on held-out text, nats a token", Scale::Linear),
        series: all,
    }
}

/// How a model grows with computation.
fn sizes_plot(measure: Measure, scaling: &Scaling) -> Plot {
    let found = scaling.budgets.iter().filter_map(|b| match b.best {
        Best::Found { size, .. } => Some((b.compute, size)),
        Best::Refused(_) => None,
    });
    let mut all = vec![series("parabolas", Mark::Dots, found.collect())];
    if let Some(best) = scaling.best_size {
        all.push(series("parabolas, law", Mark::Line, span(scaling).map(|c| (c, best.at(c))).collect()));
    }
    all.push(series("parametric law", Mark::Line, span(scaling).map(|c| (c, scaling.allocate(c).size)).collect()));
    Plot {
        title: "The size that is best by computation".into(),
        x: Axis::new("operations", Scale::Log),
        y: Axis::new(measure.words(), Scale::Log),
        series: all,
    }
}
