//! Steps: what a run does one after the other, and the parts of them that tasks do.
//!
//! A step goes through *items*: units of the sources, pieces, ranges of hashes. Its items know nothing of each other, so any part of them can
//! be done anywhere; the next step begins when all are done. How many pieces there are is known once all is read, so a task is told which
//! part of the items is its own, and not which items.

use serde::{Deserialize, Serialize};

/// What the items of a step are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Parts of the sources as they were cut.
    Units,
    /// Files of documents.
    Pieces,
    /// Ranges of hashes, one for each shard.
    Hashes,
    /// Tables of bits of SimHashes.
    Tables,
    /// Files of the output.
    Files,
    /// There is one item: the step looks at all that the last one left.
    Whole,
}

/// The items `number * len / of` up to `(number + 1) * len / of` of a step with `len` items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub number: u64,
    pub of: u64,
}

impl Part {
    pub const ALL: Part = Part { number: 0, of: 1 };

    pub fn of<T>(self, items: &[T]) -> &[T] {
        let bound = |number: u64| (u128::from(number) * items.len() as u128 / u128::from(self.of)) as usize;
        &items[bound(self.number)..bound(self.number + 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_each_item_once_and_differ_by_one_at_most() {
        let items: Vec<u64> = (0..103).collect();
        for of in [1, 2, 7, 103, 500] {
            let parts: Vec<&[u64]> = (0..of).map(|number| Part { number, of }.of(&items)).collect();
            assert_eq!(parts.concat(), items, "{of} parts");
            let lens = || parts.iter().map(|part| part.len());
            assert!(lens().max() <= lens().min().map(|least| least + 1), "{of} parts");
        }
    }
}
