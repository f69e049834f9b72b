//! Which sample of which source comes when (invariant T-5).
//!
//! ```text
//!  n-th sample of the run --tree--> (source, k-th sample of that source) --its cursor--> sample of the source
//! ```
//!
//! A tree splits the samples of a run among the sources. At each node the first `m` samples give the left branch `m * left / all` of them,
//! rounded, whatever `m` is: so the k-th sample of each source, and how many each has given before any sample, follow from the number
//! alone, without a table and without counting from the start. The tree is Huffman's, as small branches low down keep what rounding adds up
//! to small: no source is ever more than two samples off its share, however many there are.
//!
//! A source that may be passed over so often only (`max_epochs`) gives its last sample at a sample of the run that follows from the shares.
//! There another *phase* begins, with a tree of the sources that are left.
//!
//! - **T-5**: each source is passed over as [`Cursor`] says: no sample of it comes twice in a pass, and none is skipped.
//! - One source is taken as if there were no mixture: sample `n` is that of its cursor.
//! - Nothing is rounded differently on another machine: shares are whole numbers, made with the four operations of arithmetic alone.
//!
//! Deliberately absent: tokens, files, names.

use crate::cursor::Cursor;
use crate::job::{BatchConfig, JobSpec, SampleOrder};

/// Shares are counted in parts of the whole.
pub const WHOLE: u64 = 1 << 32;
/// No job has as many samples.
const NUM_MAX: u64 = 1 << 63;

/// What a source brings to a mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Samples of one pass, from 1 to [`crate::cursor::NUM_SAMPLES_MAX`].
    pub num_samples: u64,
    /// Of [`WHOLE`], above 0; in proportion to the others.
    pub share: u64,
    /// Samples that it gives at most, over all passes.
    pub num_max: Option<u64>,
}

/// A sample of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Number of the source.
    pub source: usize,
    /// Number of the sample within it.
    pub sample: u64,
}

/// The order of all samples of a run.
#[derive(Debug, Clone)]
pub struct Mixture {
    parts: Vec<Part>,
    cursors: Vec<Cursor>,
    phases: Vec<Phase>,
    /// Samples that there are in all; `None`: without end.
    end: Option<u64>,
}

/// Samples of the run in which the same sources give theirs.
#[derive(Debug, Clone)]
struct Phase {
    /// The first sample of the run.
    first: u64,
    /// What each source has given before.
    given: Vec<u64>,
    tree: Tree,
}

impl Mixture {
    pub fn new(seed: u64, order: SampleOrder, parts: &[Part]) -> Mixture {
        assert!(!parts.is_empty() && parts.iter().all(|part| part.share > 0), "a mixture of sources with shares");
        // The first source has the seed itself: alone, it has the order of a job with one path.
        let seeds = (0..parts.len() as u64).map(|n| seed.wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let cursors = seeds.zip(parts).map(|(seed, part)| Cursor::new(seed, part.num_samples, order)).collect();
        let (phases, end) = phases(parts);
        Mixture { parts: parts.to_vec(), cursors, phases, end }
    }

    /// Of a job whose sources have so many samples to train on, in the order of [`crate::job::DataConfig::all_sources`].
    pub fn of_job(spec: &JobSpec, num_samples: &[u64]) -> Mixture {
        let sources = spec.data.all_sources();
        assert_eq!(sources.len(), num_samples.len(), "each source has its number of samples");
        let temperature = spec.data.temperature.unwrap_or(1.0);
        let weights: Vec<f64> = sources
            .iter()
            .zip(num_samples)
            .map(|(source, num)| source.weight.unwrap_or_else(|| tempered(*num, temperature)))
            .collect();
        // A cast from a float that is too large gives the largest number.
        let num_max = |num: u64, epochs: Option<f64>| epochs.map(|epochs| ((num as f64 * epochs) as u64).max(1));
        let parts = sources.iter().zip(num_samples).zip(shares(&weights)).map(|((source, &num_samples), share)| Part {
            num_samples,
            share,
            num_max: num_max(num_samples, source.max_epochs),
        });
        Mixture::new(spec.seed, spec.data.order, &parts.collect::<Vec<_>>())
    }

    /// The sources, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Samples that there are in all: each source has a `max_epochs`. `None`: without end.
    pub fn end(&self) -> Option<u64> {
        self.end
    }

    /// The n-th sample of the run, counted from 0; below [`Mixture::end`].
    pub fn sample(&self, n: u64) -> Drawn {
        assert!(self.end.is_none_or(|end| n < end), "sample {n} of {:?}", self.end);
        let phase = self.phase(n);
        let (source, k) = phase.tree.at(n - phase.first);
        Drawn { source, sample: self.cursors[source].sample(phase.given[source] + k) }
    }

    /// How many of the first `n` samples of the run each source gives.
    pub fn given(&self, n: u64) -> Vec<u64> {
        let phase = self.phase(n);
        let within = phase.tree.counts(n - phase.first, self.parts.len());
        phase.given.iter().zip(within).map(|(before, within)| before + within).collect()
    }

    /// Micro-batches of each source of a validation of `num` of them, which has one for each source at least: the others follow the shares
    /// that the run begins with.
    pub fn validated(&self, num: usize) -> Vec<usize> {
        let more = num.checked_sub(self.parts.len()).expect("a checked job validates each source");
        let counts = self.phases[0].tree.counts(more as u64, self.parts.len());
        counts.into_iter().map(|count| 1 + count as usize).collect()
    }

    /// From which sample of the run on which source gives none any more, by samples; after the last one there is nothing.
    pub fn ends(&self) -> Vec<(u64, usize)> {
        let mut ends: Vec<(u64, usize)> = Vec::new();
        for phase in &self.phases[1..] {
            let is_full = |n: &usize| self.parts[*n].num_max.is_some_and(|max| phase.given[*n] >= max);
            let new = (0..self.parts.len()).filter(is_full).find(|n| ends.iter().all(|(_, ended)| ended != n));
            ends.extend(new.map(|n| (phase.first, n)));
        }
        ends
    }

    /// Samples of micro-batch `index` (over all replicas) of a step, counted from 0. One for each of `batch.micro_batch`.
    pub fn micro_batch(&self, step: u64, batch: &BatchConfig, index: usize) -> Vec<Drawn> {
        assert!(
            index < batch.num_micro_batches,
            "micro-batch {index} of a step of {} micro-batches",
            batch.num_micro_batches
        );
        let first = step * batch.samples() + (index * batch.micro_batch) as u64;
        (first..first + batch.micro_batch as u64).map(|n| self.sample(n)).collect()
    }

    fn phase(&self, n: u64) -> &Phase {
        &self.phases[self.phases.partition_point(|phase| phase.first <= n) - 1]
    }
}

/// Each begins where a source has given all it may; with how many samples there are in all.
fn phases(parts: &[Part]) -> (Vec<Phase>, Option<u64>) {
    let left = |given: &[u64], n: usize| parts[n].num_max.map(|max| max - given[n]);
    let (mut phases, mut first, mut given) = (Vec::new(), 0, vec![0; parts.len()]);
    loop {
        let open: Vec<usize> = (0..parts.len()).filter(|n| left(&given, *n) != Some(0)).collect();
        if open.is_empty() {
            return (phases, Some(first));
        }
        let tree = Tree::new(&open.iter().map(|n| (*n, parts[*n].share)).collect::<Vec<_>>());
        let end_of = |n: &usize| tree.first_with(*n, parts[*n].share, left(&given, *n)?, NUM_MAX - first);
        let ends = open.iter().filter_map(end_of).min();
        phases.push(Phase { first, given: given.clone(), tree });
        let Some(num) = ends else { return (phases, None) };
        let within = phases[phases.len() - 1].tree.counts(num, parts.len());
        given.iter_mut().zip(within).for_each(|(given, within)| *given += within);
        first += num;
    }
}

/// How a run of samples is split among sources.
#[derive(Debug, Clone)]
struct Tree {
    /// Children come before their parents; the last one is the root.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Source(usize),
    /// The left one gets `of_left` of each `of_all` samples.
    Split {
        left: usize,
        right: usize,
        of_left: u64,
        of_all: u64,
    },
}

/// Of the first `n` samples those of the left branch.
fn of_left(n: u64, of_left: u64, of_all: u64) -> u64 {
    // At most n, which is 64 bits long.
    ((2 * u128::from(n) * u128::from(of_left) + u128::from(of_all)) / (2 * u128::from(of_all))) as u64
}

impl Tree {
    /// Of sources with their shares: the two lightest branches are joined until one is left (Huffman, 1952).
    fn new(shares: &[(usize, u64)]) -> Tree {
        let mut nodes: Vec<Node> = shares.iter().map(|(source, _)| Node::Source(*source)).collect();
        let mut branches: Vec<(u64, usize)> =
            shares.iter().enumerate().map(|(node, (_, share))| (*share, node)).collect();
        while branches.len() > 1 {
            // The heaviest first, of equal ones that which was there first.
            branches.sort_by_key(|(share, node)| (std::cmp::Reverse(*share), *node));
            let joined = branches.split_off(branches.len() - 2);
            let [(of_left, left), (of_right, right)] = joined[..] else { unreachable!("two were split off") };
            let of_all = of_left + of_right;
            branches.push((of_all, nodes.len()));
            nodes.push(Node::Split { left, right, of_left, of_all });
        }
        Tree { nodes }
    }

    /// The source of sample `n`, and how many samples it has given before.
    fn at(&self, mut n: u64) -> (usize, u64) {
        let mut node = self.nodes.len() - 1;
        loop {
            match self.nodes[node] {
                Node::Source(source) => return (source, n),
                Node::Split { left, right, of_left: share, of_all } => {
                    let before = of_left(n, share, of_all);
                    (node, n) = match of_left(n + 1, share, of_all) > before {
                        true => (left, before),
                        false => (right, n - before),
                    };
                }
            }
        }
    }

    /// How many of the first `n` samples each of `num` sources gives.
    fn counts(&self, n: u64, num: usize) -> Vec<u64> {
        let mut counts = vec![0; num];
        let mut of_nodes = vec![0; self.nodes.len()];
        of_nodes[self.nodes.len() - 1] = n;
        for at in (0..self.nodes.len()).rev() {
            match self.nodes[at] {
                Node::Source(source) => counts[source] = of_nodes[at],
                Node::Split { left, right, of_left: share, of_all } => {
                    of_nodes[left] = of_left(of_nodes[at], share, of_all);
                    of_nodes[right] = of_nodes[at] - of_nodes[left];
                }
            }
        }
        counts
    }

    /// How many of the first `n` samples the source gives.
    fn count(&self, source: usize, n: u64) -> u64 {
        let is_leaf = |node: &Node| matches!(node, Node::Source(of) if *of == source);
        let mut at = self.nodes.iter().position(is_leaf).expect("a source of the tree");
        // Parents come after their children.
        let mut way = Vec::new();
        while let Some((parent, is_left)) = self.parent(at) {
            way.push((parent, is_left));
            at = parent;
        }
        way.into_iter().rev().fold(n, |n, (node, is_left)| match self.nodes[node] {
            Node::Split { of_left: share, of_all, .. } if is_left => of_left(n, share, of_all),
            Node::Split { of_left: share, of_all, .. } => n - of_left(n, share, of_all),
            Node::Source(_) => n,
        })
    }

    /// The node above, and whether this one is its left branch.
    fn parent(&self, child: usize) -> Option<(usize, bool)> {
        (child + 1..self.nodes.len()).find_map(|node| match self.nodes[node] {
            Node::Split { left, .. } if left == child => Some((node, true)),
            Node::Split { right, .. } if right == child => Some((node, false)),
            _ => None,
        })
    }

    /// The fewest samples, at most `most`, of which the source gives `wanted`, which is above 0.
    fn first_with(&self, source: usize, share: u64, wanted: u64, most: u64) -> Option<u64> {
        let all = match self.nodes[self.nodes.len() - 1] {
            Node::Split { of_all, .. } => of_all,
            Node::Source(_) => share,
        };
        // It is never more than two samples off its share.
        let about =
            |wanted: u64| u64::try_from(u128::from(wanted) * u128::from(all) / u128::from(share)).unwrap_or(u64::MAX);
        let low = about(wanted.saturating_sub(2)).max(wanted);
        let high = about(wanted.saturating_add(2)).saturating_add(1).min(most);
        let has = |n: u64| self.count(source, n) >= wanted;
        if low > high || !has(high) {
            assert!(high == most, "source {source} does not give {wanted} of the first {high} samples");
            return None;
        }
        let (mut low, mut high) = (low, high);
        while low < high {
            let middle = low + (high - low) / 2;
            if has(middle) { high = middle } else { low = middle + 1 }
        }
        Some(low)
    }
}

/// Parts of [`WHOLE`] in proportion to weights above 0; together they are the whole, and none is 0.
pub fn shares(weights: &[f64]) -> Vec<u64> {
    let all: f64 = weights.iter().sum();
    let mut shares: Vec<u64> = weights.iter().map(|w| ((w / all * WHOLE as f64) as u64).clamp(1, WHOLE)).collect();
    // What rounding leaves, or takes too much, is far less than the largest share.
    let heaviest = (0..shares.len()).rev().max_by_key(|n| shares[*n]).expect("a source at least");
    let others: u64 = shares.iter().sum::<u64>() - shares[heaviest];
    shares[heaviest] = WHOLE - others;
    shares
}

/// `num^(1/temperature)` of a `num` above 0, with a temperature from 1: the larger it is, the more even are the shares (Raffel et al. 2020,
/// section 3.5.2). Exact to 1e-14, and the same on every machine, which the power of a system's library is not.
pub fn tempered(num: u64, temperature: f64) -> f64 {
    assert!(num > 0 && temperature >= 1.0, "{num} samples at the temperature {temperature}");
    if temperature == 1.0 {
        return num as f64;
    }
    let exponent = log2(num) / temperature;
    let whole = exponent.floor();
    // e^x by its series; x is below ln 2.
    let x = (exponent - whole) * std::f64::consts::LN_2;
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..=24 {
        term *= x / f64::from(k);
        sum += term;
    }
    // Below 2^64, as the exponent of `num` is below 64.
    sum * (1_u64 << whole as u32) as f64
}

/// `ln((1 + t) / (1 - t)) = 2 (t + t^3/3 + t^5/5 + ...)`, with t at most 1/3.
fn log2(num: u64) -> f64 {
    let whole = num.ilog2();
    let mantissa = num as f64 / (1_u64 << whole) as f64;
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let (mut sum, mut power) = (0.0, t);
    for k in 0..32 {
        sum += power / f64::from(2 * k + 1);
        power *= t * t;
    }
    f64::from(whole) + 2.0 * sum / std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(num_samples: u64, share: u64) -> Part {
        Part { num_samples, share, num_max: None }
    }

    /// A checkpoint of today must go on in the same order tomorrow.
    #[test]
    fn the_order_never_changes() {
        let parts = [part(10, WHOLE / 2), part(6, WHOLE / 4), Part { num_max: Some(3), ..part(4, WHOLE / 4) }];
        let mixture = Mixture::new(7, SampleOrder::Sequential, &parts);
        let sources: Vec<usize> = (0..24).map(|n| mixture.sample(n).source).collect();
        assert_eq!(sources, [0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(mixture.ends(), [(12, 2)]);
        let alone = Mixture::new(7, SampleOrder::Shuffled, &[part(6, WHOLE)]);
        let order: Vec<u64> = (0..12).map(|n| alone.sample(n).sample).collect();
        assert_eq!(order, [5, 0, 1, 3, 4, 2, 5, 3, 1, 0, 4, 2], "as of its cursor");
    }

    #[test]
    fn powers_are_those_of_mathematics() {
        for num in [1, 2, 3, 81, 1 << 20, 1_234_567_890_123, (1 << 48) - 1, u64::MAX] {
            for temperature in [1.0, 1.5, 2.0, 4.0, 7.25, 1e6] {
                let (found, expected) = (tempered(num, temperature), (num as f64).powf(1.0 / temperature));
                assert!((found / expected - 1.0).abs() < 1e-13, "{num} at {temperature}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn shares_are_the_whole_and_none_is_nothing() {
        assert_eq!(shares(&[3.0, 1.0]), [WHOLE / 4 * 3, WHOLE / 4]);
        assert_eq!(shares(&[1e-6, 1e6]), [1, WHOLE - 1]);
        for weights in [vec![1.0; 3], vec![0.1; 64], vec![1e6, 1e-6, 3.0]] {
            assert_eq!(shares(&weights).iter().sum::<u64>(), WHOLE, "{weights:?}");
        }
    }

    #[test]
    #[should_panic(expected = "micro-batch 2 of a step of 2 micro-batches")]
    fn a_micro_batch_outside_of_the_step_is_a_bug() {
        let batch = BatchConfig { micro_batch: 1, num_micro_batches: 2 };
        Mixture::new(0, SampleOrder::Sequential, &[part(5, WHOLE)]).micro_batch(0, &batch, 2);
    }
}
