//! The parametric law of loss by the model's size and the number of tokens, and its fit.

use serde::{Deserialize, Serialize};

use super::minimize::{Minimum, minimize};
use super::{Run, ScalingError};

/// Where Huber's loss of a difference of log losses stops being quadratic (arXiv 2203.15556, appendix D.3).
const HUBER_DELTA: f64 = 1e-3;
/// Of the starts of the grid, those that are followed to their end.
const NUM_FOLLOWED: usize = 40;
/// Runs that a law of five numbers is fitted to, at least.
pub const MIN_RUNS: usize = 8;
/// Sizes and numbers of tokens among them, at least.
pub const MIN_KINDS: usize = 3;

/// `loss = irreducible + size_coefficient / size^size_exponent + token_coefficient / tokens^token_exponent`, in nats a token (arXiv 2203.15556,
/// equation 2; its E, A, alpha, B, beta).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Law {
    pub irreducible: f64,
    pub size_coefficient: f64,
    pub size_exponent: f64,
    pub token_coefficient: f64,
    pub token_exponent: f64,
}

impl Law {
    /// Which of its numbers is none that a fit gives.
    pub(super) fn fault(&self) -> Option<String> {
        let parts = [
            ("size_coefficient", self.size_coefficient),
            ("size_exponent", self.size_exponent),
            ("token_coefficient", self.token_coefficient),
            ("token_exponent", self.token_exponent),
        ];
        if !(self.irreducible.is_finite() && self.irreducible >= 0.0) {
            return Some(format!("irreducible is {}, expected 0 or more", self.irreducible));
        }
        let (name, value) = parts.into_iter().find(|(_, x)| !(x.is_finite() && *x > 0.0))?;
        Some(format!("{name} is {value}, expected a number above 0"))
    }

    pub fn loss(&self, size: f64, tokens: f64) -> f64 {
        self.irreducible
            + self.size_coefficient / size.powf(self.size_exponent)
            + self.token_coefficient / tokens.powf(self.token_exponent)
    }

    /// The size for which `product = size * tokens` gives the lowest loss (the same paper, equation 4).
    pub fn best_size(&self, product: f64) -> f64 {
        let (alpha, beta) = (self.size_exponent, self.token_exponent);
        let ratio = (alpha * self.size_coefficient) / (beta * self.token_coefficient);
        ratio.powf(1.0 / (alpha + beta)) * product.powf(beta / (alpha + beta))
    }
}

/// A law as it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fitted {
    pub law: Law,
    /// The sum of Huber's losses, in units of the square of `HUBER_DELTA`.
    pub objective: f64,
    /// Starts that were followed, and how many of them ended at this law.
    pub num_starts: usize,
    pub num_agreeing: usize,
}

/// Fits the law: Huber's loss of the differences of log losses, summed and not averaged, minimized from a grid of starts and to convergence.
pub fn fit(runs: &[Run]) -> Result<Fitted, ScalingError> {
    let kinds = |value: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.dedup_by(|a, b| *a / *b < 1.05);
        values.len()
    };
    let (num_sizes, num_tokens) = (kinds(|r| r.size), kinds(|r| r.tokens));
    if runs.len() < MIN_RUNS || num_sizes < MIN_KINDS || num_tokens < MIN_KINDS {
        return Err(ScalingError::TooFew { num_runs: runs.len(), num_sizes, num_tokens });
    }
    let points = Points::new(runs);
    let minima = points.follow(&points.starts());
    let best = *minima
        .iter()
        .filter(|m| m.is_converged)
        .min_by(|a, b| a.value.total_cmp(&b.value))
        .ok_or(ScalingError::NoMinimum)?;
    let law = points.law(&best.at);
    if law.size_exponent <= 0.0 || law.token_exponent <= 0.0 {
        let what = if law.size_exponent <= 0.0 { "size of the model" } else { "number of tokens" };
        return Err(ScalingError::NoGain { what });
    }
    let near = |m: &&Minimum<5>| m.value - best.value <= 1e-6 * best.value.max(1.0);
    Ok(Fitted {
        law,
        objective: best.value,
        num_starts: minima.len(),
        num_agreeing: minima.iter().filter(near).count(),
    })
}

/// Fits the law to other runs of the same family, from `law` alone: for samples of runs that resemble those it was fitted to.
pub fn fit_again(runs: &[Run], law: &Law) -> Option<Law> {
    let points = Points::new(runs);
    let found = minimize(|x| points.objective(x), points.coordinates(law));
    let law = points.law(&found.at);
    (found.is_converged && law.size_exponent > 0.0 && law.token_exponent > 0.0).then_some(law)
}

/// Runs as the fit sees them: logarithms, the coordinates in the middle of the runs, where coefficients and exponents depend on each other least.
struct Points {
    /// Logarithms of size and tokens, less those in the middle, and of the loss.
    logs: Vec<[f64; 3]>,
    middle: [f64; 2],
}

/// What is fitted: logarithms of the three terms in the middle of the runs (size, tokens, the irreducible one), and the two exponents.
type Coordinates = [f64; 5];

impl Points {
    fn new(runs: &[Run]) -> Points {
        let mean = |log: fn(&Run) -> f64| runs.iter().map(log).sum::<f64>() / runs.len() as f64;
        let middle = [mean(|r| r.size.ln()), mean(|r| r.tokens.ln())];
        let logs = runs.iter().map(|r| [r.size.ln() - middle[0], r.tokens.ln() - middle[1], r.loss.ln()]).collect();
        Points { logs, middle }
    }

    /// The sum of Huber's losses and its gradient. The prediction goes through a log-sum-exp, so that no term overflows.
    fn objective(&self, at: &Coordinates) -> (f64, Coordinates) {
        let [a, b, e, alpha, beta] = *at;
        let (mut value, mut gradient) = (0.0, [0.0; 5]);
        for [size, tokens, loss] in &self.logs {
            let terms = [a - alpha * size, b - beta * tokens, e];
            let most = terms[0].max(terms[1]).max(terms[2]);
            let parts = terms.map(|t| (t - most).exp());
            let sum: f64 = parts.iter().sum();
            let residual = (most + sum.ln() - loss) / HUBER_DELTA;
            value += if residual.abs() <= 1.0 { 0.5 * residual * residual } else { residual.abs() - 0.5 };
            let slope = residual.clamp(-1.0, 1.0) / HUBER_DELTA;
            let shares = parts.map(|p| slope * p / sum);
            for (g, by) in
                gradient.iter_mut().zip([shares[0], shares[1], shares[2], -shares[0] * size, -shares[1] * tokens])
            {
                *g += by;
            }
        }
        (value, gradient)
    }

    /// The grid: shares of the three terms in the middle of the runs, and exponents.
    fn starts(&self) -> Vec<Coordinates> {
        let mean = self.logs.iter().map(|[_, _, loss]| loss).sum::<f64>() / self.logs.len() as f64;
        let least = self.logs.iter().map(|[_, _, loss]| *loss).fold(f64::INFINITY, f64::min);
        let mut starts = Vec::new();
        let exponents = [0.1, 0.2, 0.35, 0.6, 1.0];
        let shares = [0.01f64, 0.05, 0.2, 0.5];
        for irreducible in [0.1f64, 0.4, 0.7, 0.95] {
            for (a, b) in shares.iter().flat_map(|a| shares.map(|b| (*a, b))) {
                for (alpha, beta) in exponents.iter().flat_map(|a| exponents.map(|b| (*a, b))) {
                    starts.push([mean + a.ln(), mean + b.ln(), least + irreducible.ln(), alpha, beta]);
                }
            }
        }
        starts
    }

    /// The minima that the best of the starts lead to.
    fn follow(&self, starts: &[Coordinates]) -> Vec<Minimum<5>> {
        let mut by_value: Vec<(f64, &Coordinates)> = starts.iter().map(|s| (self.objective(s).0, s)).collect();
        by_value.sort_by(|a, b| a.0.total_cmp(&b.0));
        by_value.iter().take(NUM_FOLLOWED).map(|(_, start)| minimize(|x| self.objective(x), **start)).collect()
    }

    fn law(&self, at: &Coordinates) -> Law {
        let [a, b, e, alpha, beta] = *at;
        Law {
            irreducible: e.exp(),
            size_coefficient: (a + alpha * self.middle[0]).exp(),
            size_exponent: alpha,
            token_coefficient: (b + beta * self.middle[1]).exp(),
            token_exponent: beta,
        }
    }

    fn coordinates(&self, law: &Law) -> Coordinates {
        [
            law.size_coefficient.ln() - law.size_exponent * self.middle[0],
            law.token_coefficient.ln() - law.token_exponent * self.middle[1],
            law.irreducible.ln(),
            law.size_exponent,
            law.token_exponent,
        ]
    }
}
