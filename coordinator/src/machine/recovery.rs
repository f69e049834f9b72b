//! What to do when places of a job are lost: one pure function from the situation to a plan with its reason.
//!
//! The ladder has two rungs: spares take the places and everyone goes on from the newest checkpoint; without enough spares the
//! job waits. Survivors keep their places in either case (T-7).

use std::collections::BTreeMap;

use toroid_torus::geometry::Shape;
use toroid_torus::placement::{self, Candidate, Placement};

/// A place that its worker does not fill any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub rank: usize,
    pub worker: String,
    /// A verb phrase: "closed its stream (reset)".
    pub why: String,
}

#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub shape: &'a Shape,
    /// The survivors by rank; all of them are connected.
    pub places: &'a [Option<String>],
    /// Workers that may take a place.
    pub candidates: &'a [Candidate],
    /// Where all connected workers are.
    pub hosts: &'a BTreeMap<String, Candidate>,
    pub losses: &'a [Loss],
    /// Why the epoch must begin again although all places are filled.
    pub begin_again: Option<&'a str>,
    /// Step of the newest checkpoint; 0: there is none.
    pub restore_step: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Everything is in order.
    Nothing,
    /// There are not enough workers.
    Wait { reason: String },
    /// The next epoch begins with these places, from the newest checkpoint.
    Begin { placement: Placement, reason: String },
}

pub fn decide(s: &Situation<'_>) -> Plan {
    let num_empty = s.places.iter().filter(|p| p.is_none()).count();
    if num_empty == 0 && s.begin_again.is_none() {
        return Plan::Nothing;
    }
    let cause = cause(s);
    let from = match s.restore_step {
        0 => "the initial weights".into(),
        step => format!("the checkpoint of step {step}"),
    };
    let placement = match placement::place(s.shape, s.places, s.candidates, s.hosts) {
        Ok(placement) => placement,
        Err(_) => {
            let (filled, world) = (s.places.len() - num_empty, s.places.len());
            let reason = format!("{cause}; waits for a worker: {filled} of {world} places filled");
            return Plan::Wait { reason };
        }
    };
    let moves: Vec<String> = placement
        .reasons
        .iter()
        .take(MAX_NAMED)
        .map(|(rank, why)| format!("{} takes rank {rank} ({why})", placement.workers[*rank]))
        .collect();
    let more = if placement.reasons.len() > MAX_NAMED { ", ..." } else { "" };
    let moves = if moves.is_empty() { String::new() } else { format!("{}{more}; ", moves.join(", ")) };
    Plan::Begin { placement, reason: format!("{cause}; {moves}all go on from {from}") }
}

/// Losses and moves that a reason names one by one.
const MAX_NAMED: usize = 4;

fn cause(s: &Situation<'_>) -> String {
    let mut causes: Vec<String> =
        s.losses.iter().take(MAX_NAMED).map(|l| format!("{} (rank {}) {}", l.worker, l.rank, l.why)).collect();
    if s.losses.len() > MAX_NAMED {
        causes.push(format!("{} more were lost", s.losses.len() - MAX_NAMED));
    }
    causes.extend(s.begin_again.map(str::to_string));
    if causes.is_empty() { "places are empty".into() } else { causes.join(", ") }
}
