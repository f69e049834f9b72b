//! The lowest point of a smooth function of a few variables, by BFGS (Nocedal and Wright, *Numerical Optimization*, 2nd edition, chapter 6).
//!
//! A minimization ends when the gradient vanishes, never because progress has become slow: that a widely cited law was stopped too early is what
//! arXiv 2404.10102 shows.

const MAX_ITERATIONS: usize = 2000;
/// Of the gradient's largest element, beside the function's value.
const GRADIENT_TOLERANCE: f64 = 1e-8;
/// What rounding leaves of a gradient where the function cannot be made smaller any more.
const ROUNDING_TOLERANCE: f64 = 1e-4;
/// Share of the decrease that the slope promises which a step has to bring (Armijo).
const SUFFICIENT_DECREASE: f64 = 1e-4;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Minimum<const N: usize> {
    pub at: [f64; N],
    pub value: f64,
    /// The gradient vanishes there, as far as numbers of 64 bits tell.
    pub is_converged: bool,
}

/// Goes down from `start`. `function` gives its value and its gradient.
pub fn minimize<const N: usize>(function: impl Fn(&[f64; N]) -> (f64, [f64; N]), start: [f64; N]) -> Minimum<N> {
    let mut at = start;
    let (mut value, mut gradient) = function(&at);
    let mut inverse = identity::<N>(1.0);
    let mut is_fresh = true;
    for _ in 0..MAX_ITERATIONS {
        if largest(&gradient) <= GRADIENT_TOLERANCE * value.abs().max(1.0) {
            return Minimum { at, value, is_converged: true };
        }
        let mut direction = product(&inverse, &gradient).map(|x| -x);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 || !slope.is_finite() {
            inverse = identity(1.0 / largest(&gradient).max(1.0));
            direction = product(&inverse, &gradient).map(|x| -x);
            slope = dot(&direction, &gradient);
            is_fresh = true;
        }
        let Some((next, next_value, next_gradient)) = step(&function, &at, value, &direction, slope) else {
            // No step makes it smaller: what was learned of the curvature may be wrong. Without it there is nothing to try any more.
            if is_fresh {
                break;
            }
            inverse = identity(1.0 / largest(&gradient).max(1.0));
            is_fresh = true;
            continue;
        };
        let moved = difference(&next, &at);
        let changed = difference(&next_gradient, &gradient);
        learn(&mut inverse, &moved, &changed, is_fresh);
        is_fresh = false;
        (at, value, gradient) = (next, next_value, next_gradient);
    }
    let is_converged = largest(&gradient) <= ROUNDING_TOLERANCE * value.abs().max(1.0);
    Minimum { at, value, is_converged }
}

/// The first of ever shorter steps that brings enough.
fn step<const N: usize>(
    function: &impl Fn(&[f64; N]) -> (f64, [f64; N]),
    at: &[f64; N],
    value: f64,
    direction: &[f64; N],
    slope: f64,
) -> Option<([f64; N], f64, [f64; N])> {
    let mut length = 1.0;
    for _ in 0..60 {
        let next: [f64; N] = std::array::from_fn(|i| at[i] + length * direction[i]);
        let (next_value, next_gradient) = function(&next);
        // A value that is not a number is not smaller.
        if next_value <= value + SUFFICIENT_DECREASE * length * slope && next_value < value {
            return Some((next, next_value, next_gradient));
        }
        length *= 0.5;
    }
    None
}

/// The update of the inverse Hessian by a step and what it changed of the gradient.
fn learn<const N: usize>(inverse: &mut [[f64; N]; N], moved: &[f64; N], changed: &[f64; N], is_first: bool) {
    let curvature = dot(moved, changed);
    if curvature <= 1e-12 * dot(moved, moved).sqrt() * dot(changed, changed).sqrt() {
        return;
    }
    if is_first {
        *inverse = identity(curvature / dot(changed, changed));
    }
    let bent = product(inverse, changed);
    let factor = (1.0 + dot(changed, &bent) / curvature) / curvature;
    for i in 0..N {
        for j in 0..N {
            inverse[i][j] += factor * moved[i] * moved[j] - (bent[i] * moved[j] + moved[i] * bent[j]) / curvature;
        }
    }
}

fn identity<const N: usize>(diagonal: f64) -> [[f64; N]; N] {
    std::array::from_fn(|i| std::array::from_fn(|j| if i == j { diagonal } else { 0.0 }))
}

fn product<const N: usize>(matrix: &[[f64; N]; N], vector: &[f64; N]) -> [f64; N] {
    std::array::from_fn(|i| dot(&matrix[i], vector))
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn difference<const N: usize>(a: &[f64; N], b: &[f64; N]) -> [f64; N] {
    std::array::from_fn(|i| a[i] - b[i])
}

fn largest<const N: usize>(vector: &[f64; N]) -> f64 {
    vector.iter().fold(0.0, |most, x| if x.abs() > most || x.is_nan() { x.abs() } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_valley_of_rosenbrock_is_followed_to_its_end() {
        let rosenbrock = |x: &[f64; 2]| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            (a * a + 100.0 * b * b, [-2.0 * a - 400.0 * x[0] * b, 200.0 * b])
        };
        for start in [[-1.2, 1.0], [5.0, -3.0], [0.0, 0.0]] {
            let found = minimize(rosenbrock, start);
            assert!(found.is_converged, "{found:?}");
            assert!((found.at[0] - 1.0).abs() < 1e-6 && (found.at[1] - 1.0).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn a_function_without_a_bottom_is_no_minimum() {
        let found = minimize(|x: &[f64; 1]| (-x[0], [-1.0]), [0.0]);
        assert!(!found.is_converged, "{found:?}");
    }
}
