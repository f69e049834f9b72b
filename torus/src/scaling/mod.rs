//! Scaling laws: what loss a family of models reaches for an amount of computation, fitted to runs of its small members.
//!
//! ```text
//!   runs --> by_budget --> a parabola each --> size and tokens that are best, learning rate and batch, by computation   (budgets)
//!        \-> law: loss of (size, tokens) --> prediction, with the interval that resampled runs give                     (law, here)
//! ```
//!
//! What a size is, is the caller's: non-embedding operations a token where Toroid made the runs (M of arXiv 2401.02954, section 3.2, so that computation is
//! `size * tokens`), parameters where somebody else did (`6 * size * tokens`, arXiv 2001.08361). All runs are of one family: for mixtures of
//! experts, one number of experts and one sparsity.
//!
//! Deliberately absent: files, plots and jobs (`toroid scale` has them), and laws over sparsity.

mod budgets;
mod law;
mod minimize;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::cursor::splitmix64;
use crate::model::{ModelConfig, TOP_K};

pub use budgets::{Best, Budget, PowerLaw};
pub use law::{Law, MIN_KINDS, MIN_RUNS};

/// Sets of resampled runs that intervals are taken from.
pub const NUM_RESAMPLES: u64 = 200;
/// A prediction for more computation than so many times that of the largest run is a guess.
pub const FAR: f64 = 30.0;
/// Share of resampled laws on either side of an interval.
const TAIL: f64 = 0.025;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScalingError {
    #[error(
        "{num_runs} runs with {num_sizes} sizes and {num_tokens} numbers of tokens are too few for a law of five numbers: it needs {MIN_RUNS} runs, with \
         {MIN_KINDS} of each"
    )]
    TooFew { num_runs: usize, num_sizes: usize, num_tokens: usize },
    #[error("run {index} has {what} = {value}: expected a finite number above 0")]
    NotPositive { index: usize, what: &'static str, value: f64 },
    #[error(
        "from no start did the fit come to an end: the runs determine no law; add sizes and budgets that are farther apart"
    )]
    NoMinimum,
    #[error(
        "by these runs the loss does not fall with the {what}: they are too alike, or their losses too noisy; add some that are farther apart"
    )]
    NoGain { what: &'static str },
}

/// A training that has come to its end: one point of a law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Of the model, in the caller's measure.
    pub size: f64,
    /// Operations of training for a token.
    pub cost: f64,
    /// Of training.
    pub tokens: f64,
    /// On held-out text, nats a token.
    pub loss: f64,
    /// The highest learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Tokens of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<f64>,
}

impl Run {
    /// Operations.
    pub fn compute(&self) -> f64 {
        self.cost * self.tokens
    }

    fn check(&self, index: usize) -> Result<(), ScalingError> {
        let must = [("size", self.size), ("cost", self.cost), ("tokens", self.tokens), ("loss", self.loss)];
        let may = [("lr", self.lr), ("batch", self.batch_tokens)];
        let all = must.into_iter().chain(may.into_iter().filter_map(|(what, value)| value.map(|v| (what, v))));
        for (what, value) in all {
            if !(value.is_finite() && value > 0.0) {
                return Err(ScalingError::NotPositive { index, what, value });
            }
        }
        Ok(())
    }
}

/// Operations of training for a token, forward and backward, without embedding and head: 6 for each weight that a token meets, and 12 for each pair of
/// query and key and element of a head (M of arXiv 2401.02954, equation 2, for any width of heads and for the experts that are active).
pub fn operations_per_token(model: &ModelConfig) -> f64 {
    let (d, ff) = (model.d_model as f64, model.ff as f64);
    let (q, kv) = ((model.heads * model.head_dim) as f64, (model.kv_heads * model.head_dim) as f64);
    let attention = 2.0 * d * q + 2.0 * d * kv;
    // The routed experts of a token and the shared one; a router's row for each expert.
    let experts = (TOP_K + 1) as f64 * 3.0 * d * ff + d * model.experts as f64;
    model.layers as f64 * (6.0 * (attention + experts) + 12.0 * q * model.seq as f64)
}

/// What was seen of the budget that no fit had: whether the laws hold beyond what they were fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Operations.
    pub compute: f64,
    pub num_runs: usize,
    /// The run with the lowest loss, nats a token, and what the law says of its size and tokens.
    pub seen: f64,
    pub predicted: f64,
    /// The mean over its runs of how far off the law is, of the loss.
    pub mean_error: f64,
}

impl HeldOut {
    /// How far off the law is for the best of its runs, of the loss.
    pub fn error(&self) -> f64 {
        (self.predicted / self.seen - 1.0).abs()
    }
}

/// Everything that runs say of their family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Operations for a token and a unit of size.
    pub cost: f64,
    /// Of all runs, held-out ones included.
    pub max_compute: f64,
    pub law: Law,
    /// Laws of resampled runs.
    pub resampled: Vec<Law>,
    /// Starts of the fit that were followed, and those that ended at this law.
    pub num_starts: usize,
    pub num_agreeing: usize,
    pub budgets: Vec<Budget>,
    /// The size that is best, by computation, from parabolas.
    pub best_size: Option<PowerLaw>,
    /// The highest learning rate and the tokens of a step that are best, by computation.
    pub best_lr: Option<PowerLaw>,
    pub best_batch_tokens: Option<PowerLaw>,
    pub held_out: Option<HeldOut>,
}

/// A loss, nats a token, and where it is with 95% probability as far as resampled runs tell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction {
    pub loss: f64,
    pub low: f64,
    pub high: f64,
}

/// How a model is best made of an amount of computation, by the law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Allocation {
    /// Operations.
    pub compute: f64,
    pub size: f64,
    pub tokens: f64,
    pub prediction: Prediction,
    /// How many times as much as the largest run.
    pub beyond: f64,
}

impl Scaling {
    /// What is wrong with laws that were read: whoever edits them by hand may leave what predicts nonsense.
    pub fn fault(&self) -> Option<String> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let power_laws =
            [("best_size", self.best_size), ("best_lr", self.best_lr), ("best_batch_tokens", self.best_batch_tokens)];
        if let Some((name, value)) =
            [("cost", self.cost), ("max_compute", self.max_compute)].iter().find(|(_, x)| !positive(*x))
        {
            return Some(format!("{name} is {value}, expected a number above 0"));
        }
        if let Some(fault) = self.law.fault() {
            return Some(format!("law.{fault}"));
        }
        if let Some((i, fault)) = self.resampled.iter().enumerate().find_map(|(i, law)| Some((i, law.fault()?))) {
            return Some(format!("resampled[{i}].{fault}"));
        }
        let bad = |law: &PowerLaw| !(positive(law.coefficient) && law.exponent.is_finite());
        let (name, law) = power_laws.into_iter().find_map(|(name, law)| Some((name, law.filter(bad)?)))?;
        Some(format!(
            "{name} is {} * x^{}, expected a coefficient above 0 and an exponent",
            law.coefficient, law.exponent
        ))
    }

    /// Fits all laws. With `is_held_out` the largest budget takes no part and is predicted.
    pub fn fit(runs: &[Run], is_held_out: bool, seed: u64) -> Result<Scaling, ScalingError> {
        for (index, run) in runs.iter().enumerate() {
            run.check(index)?;
        }
        let mut budgets = budgets::by_budget(runs);
        let max_compute = runs.iter().map(Run::compute).fold(0.0, f64::max);
        let held_out = if is_held_out { budgets.pop() } else { None };
        // In the order of budgets, whatever order they came in.
        let runs: Vec<Run> = budgets.iter().flat_map(|b| b.runs.iter().copied()).collect();
        let fitted = law::fit(&runs)?;
        let resampled =
            (0..NUM_RESAMPLES).filter_map(|i| law::fit_again(&resample(&budgets, seed, i), &fitted.law)).collect();
        Ok(Scaling {
            cost: runs[0].cost / runs[0].size,
            max_compute,
            held_out: held_out.map(|budget| judge(&fitted.law, &budget)),
            law: fitted.law,
            resampled,
            num_starts: fitted.num_starts,
            num_agreeing: fitted.num_agreeing,
            best_size: budgets::size_law(&budgets),
            best_lr: budgets::setting_law(&budgets, |run| run.lr),
            best_batch_tokens: budgets::setting_law(&budgets, |run| run.batch_tokens),
            budgets,
        })
    }

    pub fn predict(&self, size: f64, tokens: f64) -> Prediction {
        let [low, high] = self.interval(|law| law.loss(size, tokens));
        Prediction { loss: self.law.loss(size, tokens), low, high }
    }

    /// Where a figure of the law is with 95% probability: percentiles of the resampled laws.
    pub fn interval(&self, figure: impl Fn(&Law) -> f64) -> [f64; 2] {
        let mut values: Vec<f64> = self.resampled.iter().map(&figure).collect();
        if values.is_empty() {
            return [figure(&self.law); 2];
        }
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
        [at(TAIL), at(1.0 - TAIL)]
    }

    /// The best model of `compute` operations.
    pub fn allocate(&self, compute: f64) -> Allocation {
        let size = self.law.best_size(compute / self.cost);
        let tokens = compute / (self.cost * size);
        Allocation { compute, size, tokens, prediction: self.predict(size, tokens), beyond: compute / self.max_compute }
    }
}

fn judge(law: &Law, budget: &Budget) -> HeldOut {
    let predicted = |run: &Run| law.loss(run.size, run.tokens);
    let best = budget.runs.iter().fold(&budget.runs[0], |best, run| if run.loss < best.loss { run } else { best });
    let errors = budget.runs.iter().map(|run| (predicted(run) / run.loss - 1.0).abs());
    HeldOut {
        compute: budget.compute,
        num_runs: budget.runs.len(),
        seen: best.loss,
        predicted: predicted(best),
        mean_error: errors.sum::<f64>() / budget.runs.len() as f64,
    }
}

/// As many runs of each budget as it has, drawn from its own: the same ones for a seed and a number, on any machine.
fn resample(budgets: &[Budget], seed: u64, number: u64) -> Vec<Run> {
    let mut counter = splitmix64(splitmix64(seed).wrapping_add(number));
    let mut draw = |num: usize| {
        counter = counter.wrapping_add(1);
        // The high half of a product: without the bias of a remainder.
        ((u128::from(splitmix64(counter)) * num as u128) >> 64) as usize
    };
    budgets.iter().flat_map(|b| b.runs.iter().map(|_| b.runs[draw(b.runs.len())]).collect::<Vec<_>>()).collect()
}
