//! Which worker fills which place: survivors keep theirs (T-7), the others are filled in order.

use std::collections::{BTreeMap, BTreeSet};

use crate::geometry::Shape;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub worker: String,
    pub host: String,
    pub rack: String,
    pub zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub workers: Vec<String>,
    pub reasons: Vec<(usize, String)>,
    pub spares: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("{needed} places are empty and there are {found} workers without a place; start more workers")]
    TooFew { needed: usize, found: usize },
}

pub fn place(
    shape: &Shape,
    current: &[Option<String>],
    candidates: &[Candidate],
    _hosts: &BTreeMap<String, Candidate>,
) -> Result<Placement, PlacementError> {
    assert_eq!(current.len(), shape.world());
    let needed = current.iter().filter(|c| c.is_none()).count();
    let mut free: BTreeSet<&Candidate> = candidates.iter().collect();
    if free.len() < needed {
        return Err(PlacementError::TooFew { needed, found: free.len() });
    }
    let mut reasons = Vec::new();
    let mut workers = Vec::new();
    for (rank, current) in current.iter().enumerate() {
        workers.push(match current {
            Some(worker) => worker.clone(),
            None => {
                let candidate = free.pop_first().expect("as many candidates as empty places");
                reasons.push((rank, "next in order".to_string()));
                candidate.worker.clone()
            }
        });
    }
    Ok(Placement { workers, reasons, spares: free.into_iter().map(|c| c.worker.clone()).collect() })
}
