//! How often the documents of each source are in the output.

use crate::error::{Error, Result};

/// Of one source, in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub tokens: u64,
    /// In proportion to the others.
    pub weight: f64,
    pub max_epochs: f64,
}

/// `tokens^(1/temperature)`: 1 leaves sources as they are (Raffel et al. 2020, section 3.5.2).
pub fn tempered(tokens: u64, temperature: f64) -> f64 {
    (tokens as f64).powf(1.0 / temperature)
}

/// Passes over each source for so many tokens in all, or as many as keep to all proportions. A source that has no more to give leaves its
/// part to the others.
pub fn epochs(shares: &[Share], wanted: Option<u64>) -> Result<Vec<f64>> {
    let is_there = |share: &Share| share.tokens > 0;
    if !shares.iter().any(is_there) {
        return Ok(vec![0.0; shares.len()]);
    }
    let most = |share: &Share| share.tokens as f64 * share.max_epochs;
    let Some(wanted) = wanted else {
        // The source that gives out first says how much there is.
        let scale = shares.iter().filter(|s| is_there(s)).map(|s| most(s) / s.weight).fold(f64::INFINITY, f64::min);
        let passes = |s: &Share| if is_there(s) { (s.weight * scale / s.tokens as f64).min(s.max_epochs) } else { 0.0 };
        return Ok(shares.iter().map(passes).collect());
    };
    let all: f64 = shares.iter().map(most).sum();
    if all < wanted as f64 {
        let what = format!("output.bytes = {wanted}, and the sources have {all:.0} with their max_epochs");
        return Err(Error::Config(format!("{what}; ask for less, or raise max_epochs")));
    }
    let mut found = vec![0.0; shares.len()];
    let mut is_full = vec![false; shares.len()];
    let mut left = wanted as f64;
    loop {
        let is_open = |n: usize| is_there(&shares[n]) && !is_full[n];
        let weights: f64 = (0..shares.len()).filter(|n| is_open(*n)).map(|n| shares[n].weight).sum();
        let over = (0..shares.len()).filter(|n| is_open(*n) && shares[*n].weight / weights * left > most(&shares[*n]));
        let over: Vec<usize> = over.collect();
        for n in (0..shares.len()).filter(|n| is_open(*n)) {
            found[n] = (shares[n].weight / weights * left / shares[n].tokens as f64).min(shares[n].max_epochs);
        }
        if over.is_empty() {
            return Ok(found);
        }
        for n in over {
            is_full[n] = true;
            left = (left - most(&shares[n])).max(0.0);
        }
    }
}

/// How often one document is there, by a number that follows from its text: on average `epochs` times.
pub fn copies(epochs: f64, number: u64) -> u32 {
    let part = (number >> 11) as f64 / (1u64 << 53) as f64;
    epochs.trunc() as u32 + u32::from(part < epochs.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::mix;

    fn share(tokens: u64, weight: f64, max_epochs: f64) -> Share {
        Share { tokens, weight, max_epochs }
    }

    #[test]
    fn proportions_hold_until_a_source_has_no_more() -> Result<()> {
        let shares = [share(100, 1.0, 1.0), share(300, 1.0, 1.0)];
        assert_eq!(epochs(&shares, None)?, [1.0, 100.0 / 300.0]);
        assert_eq!(epochs(&shares, Some(100))?, [0.5, 50.0 / 300.0]);
        assert_eq!(epochs(&shares, Some(300))?, [1.0, 200.0 / 300.0], "the rest comes from the other");
        assert_eq!(epochs(&shares, Some(400))?, [1.0, 1.0]);
        assert!(epochs(&shares, Some(401)).expect_err("too much").to_string().contains("the sources have 400"));
        let repeated = [share(100, 3.0, 4.0), share(0, 1.0, 1.0), share(300, 1.0, 1.0)];
        assert_eq!(epochs(&repeated, Some(400))?, [3.0, 0.0, 100.0 / 300.0]);
        assert_eq!(epochs(&[share(0, 1.0, 1.0)], None)?, [0.0]);
        Ok(())
    }

    #[test]
    fn temperature_evens_out() {
        assert_eq!(tempered(81, 1.0), 81.0);
        assert_eq!(tempered(81, 4.0), 3.0);
    }

    #[test]
    fn documents_are_there_as_often_as_their_source_says() {
        for epochs in [0.0, 0.25, 1.0, 2.5] {
            let num: u32 = (0..100_000).map(|n| copies(epochs, mix(n))).sum();
            assert!((f64::from(num) / 1e5 - epochs).abs() < 0.01, "{epochs}: {num}");
        }
    }
}
