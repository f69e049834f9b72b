//! What workers have to have in common to stand beside each other in a job.

use std::collections::BTreeMap;

use toroid_proto as proto;
use toroid_proto::Versions;
use toroid_torus::ids::JobId;

use crate::pool::Pool;
use crate::record::JobRecord;

/// What all places of a job have in common, whatever else they are: the arithmetic of their builds, and versions of links that all of them speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    numerics: u32,
    links: Versions,
}

impl Kind {
    pub fn of(register: &proto::Register) -> Kind {
        Kind { numerics: register.numerics, links: register.links() }
    }

    /// With one worker more; `None`: it does not fit.
    pub fn with(self, register: &proto::Register) -> Option<Kind> {
        let links = self.links.shared(register.links())?;
        (self.numerics == register.numerics).then_some(Kind { links, ..self })
    }

    /// Of the workers that have places of a job; `None`: none has.
    pub fn of_places(record: &JobRecord, pool: &Pool) -> Option<Kind> {
        let mut placed = record.places.iter().flatten().filter_map(|worker| pool.get(worker));
        let first = Kind::of(&placed.next()?.register);
        // Whoever does not fit was given no place beside the others.
        Some(placed.fold(first, |kind, worker| kind.with(&worker.register).unwrap_or(kind)))
    }

    /// That which the most spares fit, of several the newest.
    pub fn of_most(pool: &Pool) -> Option<Kind> {
        let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
        for spare in pool.spares() {
            *counts.entry(Kind::of(&spare.register)).or_default() += 1;
        }
        let fits =
            |kind: &Kind, other: &Kind| kind.numerics == other.numerics && kind.links.shared(other.links).is_some();
        let num = |kind: &Kind| -> usize { counts.iter().filter(|(other, _)| fits(kind, other)).map(|(_, n)| n).sum() };
        counts.keys().copied().max_by_key(|kind| (num(kind), *kind))
    }

    pub fn objection(self, register: &proto::Register, job: &JobId) -> Option<String> {
        let version = &register.build_version;
        if self.numerics != register.numerics {
            return Some(format!(
                "this worker is of version {version}, which computes with numerics {}, and the places of {job} with numerics {}: the bits would differ. \
                 `toroid hold {job}` saves the job, and `toroid release {job}` has it go on with workers of one kind",
                register.numerics, self.numerics
            ));
        }
        self.links.shared(register.links()).is_none().then(|| {
            format!(
                "this worker is of version {version} and speaks links of version {}, all places of {job} those of version {}: they have none in common; \
                 upgrade one release at a time",
                register.links(),
                self.links
            )
        })
    }
}
