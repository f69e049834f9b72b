//! Numbers and names that must not be taken for one another: steps, epochs and ranks are all integers, workers and jobs all texts.
//!
//! There is no arithmetic but what has a meaning: an epoch has a next one, a step some steps after it. A value that came from outside (a
//! message, a file) becomes one of these where it comes in, and a bare number again where it goes out. Stored and sent they are what they
//! were: the number, the text.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// An optimizer step: the number of those that were committed before and with it. 0: the initial weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Step(u64);

/// A map of places to workers; a new one begins with every change of it (T-8). 0: never placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

/// A coordinator's leadership: each leader of a store has a greater one than those before it (T-13). 0: that of no leader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(u64);

/// A place of a job, counted over its torus (see [`crate::geometry`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(usize);

impl Step {
    pub const ZERO: Step = Step(0);

    pub const fn new(step: u64) -> Step {
        Step(step)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The step after this one.
    ///
    /// # Panics
    /// After 2^64 - 1, which no job gets to.
    pub fn next(self) -> Step {
        Step(self.0.checked_add(1).expect("a step has a next one"))
    }

    /// The step before this one; `None` for the initial weights.
    pub fn previous(self) -> Option<Step> {
        self.0.checked_sub(1).map(Step)
    }

    /// `num` steps later, at most the last that there is.
    pub fn after(self, num: u64) -> Step {
        Step(self.0.saturating_add(num))
    }

    /// Steps from `earlier` to this one; `None` where that is the later one.
    pub fn checked_sub(self, earlier: Step) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Steps from `earlier` to this one; 0 where that is the later one.
    pub fn since(self, earlier: Step) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This step and those after it up to `through`, in order.
    pub fn through(self, through: Step) -> impl Iterator<Item = Step> {
        (self.0..=through.0).map(Step)
    }
}

impl Epoch {
    pub const NONE: Epoch = Epoch(0);
    /// No epoch comes after it: what is raised to it is over for good.
    pub const LAST: Epoch = Epoch(u64::MAX);

    pub const fn new(epoch: u64) -> Epoch {
        Epoch(epoch)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch after this one.
    ///
    /// # Panics
    /// After 2^64 - 1, which no job gets to.
    pub fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("an epoch has a next one"))
    }
}

impl Term {
    pub const fn new(term: u64) -> Term {
        Term(term)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// That of the leader after this one.
    ///
    /// # Panics
    /// After 2^64 - 1, which no store gets to.
    pub fn next(self) -> Term {
        Term(self.0.checked_add(1).expect("a term has a next one"))
    }
}

impl Rank {
    /// The rank that speaks for its job.
    pub const ZERO: Rank = Rank(0);

    pub const fn new(rank: usize) -> Rank {
        Rank(rank)
    }

    /// Its position in lists by rank.
    pub const fn index(self) -> usize {
        self.0
    }

    /// The ranks of a torus of `world` places, in order.
    pub fn all(world: usize) -> impl DoubleEndedIterator<Item = Rank> + Clone {
        (0..world).map(Rank)
    }

    /// As messages have it.
    ///
    /// # Panics
    /// Beyond 2^32 - 1, more places than a shape may have.
    pub fn to_wire(self) -> u32 {
        u32::try_from(self.0).expect("a rank has 32 bits")
    }
}

/// Of a message.
impl From<u32> for Rank {
    fn from(rank: u32) -> Rank {
        Rank(rank as usize)
    }
}

macro_rules! displayed {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

displayed! { Step Epoch Rank WorkerId JobId }

/// Who a worker says it is, the same over its restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(String);

/// A job's name and number.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

macro_rules! named {
    ($($name:ident)*) => {$(
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> $name {
                $name(name)
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> $name {
                $name(name.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        /// Maps by name are asked with the text of a message.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }
    )*};
}

named! { WorkerId JobId }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_arithmetic_with_a_meaning_and_none_that_overflows() {
        let step = Step::new(7);
        assert_eq!((step.next(), step.previous(), step.after(3)), (Step::new(8), Some(Step::new(6)), Step::new(10)));
        assert_eq!((Step::ZERO.previous(), Step::new(u64::MAX).after(1)), (None, Step::new(u64::MAX)));
        assert_eq!((step.checked_sub(Step::new(9)), step.checked_sub(Step::new(4))), (None, Some(3)));
        assert_eq!((step.since(Step::new(9)), step.since(Step::new(4))), (0, 3));
        assert_eq!(step.through(Step::new(9)).map(Step::get).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(Epoch::NONE.next().next(), Epoch::new(2));
        assert_eq!(Rank::all(2).map(Rank::to_wire).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn stored_and_shown_they_are_what_they_were() {
        let all = (Step::new(3), Epoch::new(2), Rank::new(1), WorkerId::from("w"), JobId::from("job-1"));
        let text = serde_json::to_string(&all).expect("plain values");
        assert_eq!(text, r#"[3,2,1,"w","job-1"]"#);
        assert_eq!(serde_json::from_str::<(Step, Epoch, Rank, WorkerId, JobId)>(&text).expect("the same"), all);
        assert_eq!(format!("{} {} {} {} {}", all.0, all.1, all.2, all.3, all.4), "3 2 1 w job-1");
        // As keys of maps they are texts in JSON, as numbers are.
        let by_rank = std::collections::BTreeMap::from([(Rank::new(4), Step::new(5))]);
        assert_eq!(serde_json::to_string(&by_rank).expect("plain values"), r#"{"4":5}"#);
    }
}
