//! Runs of equal computation: the size that is best for it, by a parabola through the losses (arXiv 2203.15556, approach 2), and what all
//! budgets together say of sizes, learning rates and batches.

use serde::{Deserialize, Serialize};

use super::Run;

/// Runs whose computation differs by less belong to one budget: tokens are whole steps.
const SAME_BUDGET: f64 = 1.15;
/// Runs whose size differs by less have the same.
const SAME_SIZE: f64 = 1.01;
/// Runs within so much of their budget's best say which learning rates and batches are good (arXiv 2401.02954, section 3.1).
const NEAR_BEST: f64 = 1.0025;
/// Sizes that a parabola is put through, at least.
const MIN_SIZES: usize = 3;

/// Runs of one budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Operations: the mean of the runs, in logarithms.
    pub compute: f64,
    pub runs: Vec<Run>,
    pub best: Best,
}

/// What the parabola of a budget says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// It has its minimum between the sizes that were tried.
    Found { size: f64, tokens: f64, loss: f64 },
    /// It says nothing, for this reason.
    Refused(String),
}

/// `y = coefficient * x^exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PowerLaw {
    pub coefficient: f64,
    pub exponent: f64,
}

impl PowerLaw {
    pub fn at(&self, x: f64) -> f64 {
        self.coefficient * x.powf(self.exponent)
    }

    /// The line of least squares through the logarithms. None where all `x` are the same.
    pub fn fit(points: &[(f64, f64)]) -> Option<PowerLaw> {
        let n = points.len() as f64;
        let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
        let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / n;
        let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / n;
        let spread: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        if points.len() < 2 || spread < 1e-6 {
            return None;
        }
        let exponent = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
        Some(PowerLaw { coefficient: (mean_y - exponent * mean_x).exp(), exponent })
    }
}

/// Puts runs together by what they computed, the smallest budget first.
pub fn by_budget(runs: &[Run]) -> Vec<Budget> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.compute().total_cmp(&b.compute()).then(a.size.total_cmp(&b.size)));
    let mut groups: Vec<Vec<Run>> = Vec::new();
    for run in sorted {
        match groups.last_mut() {
            Some(group) if run.compute() <= SAME_BUDGET * group[0].compute() => group.push(run),
            _ => groups.push(vec![run]),
        }
    }
    groups.into_iter().map(budget).collect()
}

/// By how sizes that are best grow with computation, if two budgets say so.
pub fn size_law(budgets: &[Budget]) -> Option<PowerLaw> {
    let found = budgets.iter().filter_map(|b| match b.best {
        Best::Found { size, .. } => Some((b.compute, size)),
        Best::Refused(_) => None,
    });
    PowerLaw::fit(&found.collect::<Vec<_>>())
}

/// How a setting (a learning rate, a batch) that is good goes with computation: from all runs that are near the best of their budget. None where
/// fewer than two budgets tried more than one value.
pub fn setting_law(budgets: &[Budget], setting: fn(&Run) -> Option<f64>) -> Option<PowerLaw> {
    let mut points = Vec::new();
    let mut num_tried = 0;
    for budget in budgets {
        let mut values: Vec<f64> = budget.runs.iter().filter_map(setting).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        num_tried += usize::from(values.len() > 1);
        let least = budget.runs.iter().map(|r| r.loss).fold(f64::INFINITY, f64::min);
        let near = budget.runs.iter().filter(|r| r.loss <= NEAR_BEST * least);
        points.extend(near.filter_map(setting).map(|value| (budget.compute, value)));
    }
    if num_tried < 2 { None } else { PowerLaw::fit(&points) }
}

fn budget(runs: Vec<Run>) -> Budget {
    let compute = (runs.iter().map(|r| r.compute().ln()).sum::<f64>() / runs.len() as f64).exp();
    let best = best(&runs, compute);
    Budget { compute, runs, best }
}

/// The lowest loss of each size, ascending by size: other learning rates and batches are beside the point.
fn best_of_sizes(runs: &[Run]) -> Vec<Run> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.size.total_cmp(&b.size).then(a.loss.total_cmp(&b.loss)));
    let mut best: Vec<Run> = Vec::new();
    for run in sorted {
        match best.last_mut() {
            Some(last) if run.size <= SAME_SIZE * last.size => {
                if run.loss < last.loss {
                    *last = run;
                }
            }
            _ => best.push(run),
        }
    }
    best
}

fn best(runs: &[Run], compute: f64) -> Best {
    let runs = best_of_sizes(runs);
    let [first, .., last] = &runs[..] else {
        return Best::Refused(format!("one size was tried; a parabola needs {MIN_SIZES}"));
    };
    if runs.len() < MIN_SIZES {
        return Best::Refused(format!("{} sizes were tried; a parabola needs {MIN_SIZES}", runs.len()));
    }
    let cost = first.cost / first.size;
    let middle = runs.iter().map(|r| r.size.ln()).sum::<f64>() / runs.len() as f64;
    let points: Vec<(f64, f64)> = runs.iter().map(|r| (r.size.ln() - middle, r.loss)).collect();
    let Some([constant, linear, square]) = parabola(&points) else {
        return Best::Refused("no parabola goes through its losses".into());
    };
    let at = -linear / (2.0 * square);
    if square <= 0.0 {
        return Best::Refused("its losses bend downwards: the best size is not between those that were tried".into());
    }
    if at <= first.size.ln() - middle || at >= last.size.ln() - middle {
        let (end, add) = if at > 0.0 { ("largest", "larger") } else { ("smallest", "smaller") };
        return Best::Refused(format!("the loss still falls at the {end} size that was tried: try {add} ones, too"));
    }
    let size = (at + middle).exp();
    Best::Found { size, tokens: compute / (cost * size), loss: constant - 0.25 * linear * linear / square }
}

/// Constant, linear and square term of the parabola of least squares.
fn parabola(points: &[(f64, f64)]) -> Option<[f64; 3]> {
    let mut system = [[0.0; 4]; 3];
    for (x, y) in points {
        let powers = [1.0, *x, x * x];
        for (row, a) in system.iter_mut().zip(powers) {
            for (cell, b) in row.iter_mut().zip([powers[0], powers[1], powers[2], *y]) {
                *cell += a * b;
            }
        }
    }
    solve(system)
}

/// Gauss's elimination with the largest pivot of a column.
fn solve(mut system: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let pivot = (column..3).max_by(|a, b| system[*a][column].abs().total_cmp(&system[*b][column].abs()))?;
        system.swap(column, pivot);
        if system[column][column].abs() < 1e-12 {
            return None;
        }
        for row in 0..3 {
            if row != column {
                let factor = system[row][column] / system[column][column];
                for k in column..4 {
                    system[row][k] -= factor * system[column][k];
                }
            }
        }
    }
    Some(std::array::from_fn(|i| system[i][3] / system[i][i]))
}
