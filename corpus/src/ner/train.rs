//! Training: sentences in an order that is shuffled by a seed, a step for each word that was tagged wrong, and the average of all states.

use super::conll::Sentence as Annotated;
use super::features::{Sentence, features};
use super::{Gazetteer, MAX_GAZETTEERS, Model, NUM_TAGS, OUTSIDE, Weights, best};
use crate::doc::{KeyMap, mix};
use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub struct Options {
    /// Passes over the text.
    pub num_epochs: u32,
    /// Features that were seen less often are left out.
    pub min_count: u32,
    pub seed: u64,
    /// What it is trained on, for whoever uses the model.
    pub trained_on: String,
}

/// A weight now, its sum over the steps so far, and the step until which that goes.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    now: i32,
    sum: i64,
    until: i64,
}

impl Weight {
    fn add(&mut self, step: i64, by: i32) {
        self.sum += (step - self.until) * i64::from(self.now);
        self.until = step;
        self.now += by;
    }
}

#[derive(Default)]
struct Feature {
    count: u32,
    weights: [Weight; NUM_TAGS],
}

pub fn train(sentences: &[Annotated], gazetteers: Vec<Gazetteer>, options: &Options) -> Result<Model> {
    if gazetteers.len() > MAX_GAZETTEERS {
        let num = gazetteers.len();
        return Err(Error::Config(format!(
            "{num} gazetteers; a model has {MAX_GAZETTEERS} at most: put some together"
        )));
    }
    let mut table: KeyMap<Feature> = KeyMap::default();
    let (mut step, mut found) = (0i64, Vec::new());
    let mut order: Vec<usize> = (0..sentences.len()).collect();
    for epoch in 0..options.num_epochs {
        let seed = mix(options.seed ^ mix(u64::from(epoch)));
        order.sort_by_key(|n| (mix(seed ^ *n as u64), *n));
        for n in &order {
            let annotated = &sentences[*n];
            let words: Vec<&str> = annotated.words.iter().map(String::as_str).collect();
            let starts: Vec<bool> = (0..words.len()).map(|n| n == 0).collect();
            let sentence = Sentence::new(&words, &starts, &gazetteers);
            // The tags before a word are those that the model gives, right or wrong: it must live with them later.
            let mut tags = Vec::with_capacity(words.len());
            for (at, right) in annotated.tags.iter().enumerate() {
                if !sentence.may_be_name(at, &tags) {
                    tags.push(OUTSIDE);
                    continue;
                }
                step += 1;
                features(&sentence, at, &tags, &mut found);
                let mut sums = [0i64; NUM_TAGS];
                for feature in &found {
                    let feature = table.entry(*feature).or_default();
                    feature.count += u32::from(epoch == 0);
                    sums.iter_mut().zip(&feature.weights).for_each(|(sum, weight)| *sum += i64::from(weight.now));
                }
                let guess = best(&sums, tags.last().copied().unwrap_or(OUTSIDE));
                if guess != *right {
                    for feature in &found {
                        let feature = table.entry(*feature).or_default();
                        feature.weights[usize::from(*right)].add(step, 1);
                        feature.weights[usize::from(guess)].add(step, -1);
                    }
                }
                tags.push(guess);
            }
        }
    }
    let is_kept = |feature: &&mut Feature| feature.count >= options.min_count;
    table.values_mut().for_each(|feature| feature.weights.iter_mut().for_each(|weight| weight.add(step + 1, 0)));
    let largest = table.values_mut().filter(is_kept).flat_map(|f| f.weights.iter().map(|w| w.sum.abs())).max();
    let Some(largest) = largest.filter(|largest| *largest > 0) else {
        return Err(Error::Config(
            "nothing was learned: the annotated text has no names that begin with a capital".into(),
        ));
    };
    let scaled = |weight: &Weight| (i128::from(weight.sum) * i128::from(i16::MAX) / i128::from(largest)) as i16;
    let mut weights: KeyMap<Weights> = KeyMap::default();
    for (key, feature) in table.iter().filter(|(_, feature)| feature.count >= options.min_count) {
        let scaled = feature.weights.each_ref().map(scaled);
        if scaled.iter().any(|weight| *weight != 0) {
            weights.insert(*key, scaled);
        }
    }
    Ok(Model { gazetteers, weights, trained_on: options.trained_on.clone() })
}
