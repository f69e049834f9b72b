//! The greatest term of leadership that a worker has heard (T-13).
//!
//! Terms are counted by the store that the coordinators lead. Another store counts its own: it begins with another Welcome, and says nothing about
//! the terms of the one before.

use toroid_torus::failpoint;
use toroid_torus::ids::Term;

#[derive(Debug, Default)]
pub(super) struct Terms {
    store: Vec<u8>,
    greatest: Term,
}

impl Terms {
    /// Whose terms are counted; empty: no Welcome was heard.
    pub fn store(&self) -> &[u8] {
        &self.store
    }

    pub fn greatest(&self) -> Term {
        self.greatest
    }

    /// A Welcome of this store is one of another than those before.
    pub fn is_another(&self, store: &[u8]) -> bool {
        !self.store.is_empty() && self.store != store
    }

    /// Something was said with this term, a Welcome where `store` is named. An error is the greater one that was heard before: what was said counts for
    /// nothing.
    pub fn heard(&mut self, store: Option<&[u8]>, term: Term) -> Result<(), Term> {
        if let Some(store) = store.filter(|store| **store != self.store) {
            *self = Terms { store: store.into(), greatest: term };
        }
        if term < self.greatest && !failpoint!(TakeOldTerm) {
            return Err(self.greatest);
        }
        self.greatest = self.greatest.max(term);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t13_an_older_term_of_the_same_store_is_not_taken() {
        let mut terms = Terms::default();
        let (three, four) = (Term::new(3), Term::new(4));
        assert_eq!(terms.heard(Some(b"a"), three), Ok(()));
        assert_eq!(terms.heard(None, three), Ok(()));
        assert_eq!(terms.heard(Some(b"a"), four), Ok(()));
        assert_eq!(terms.heard(Some(b"a"), three), Err(four));
        assert_eq!(terms.heard(None, three), Err(four));
        assert_eq!(terms.heard(Some(b"b"), Term::new(1)), Ok(()), "that store has terms of its own");
    }
}
