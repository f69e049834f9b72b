//! Who had which place when an epoch began, and what of it is new: what `Assign` says of others, see `job::assign`.

use crate::kind::Kind;
use crate::pool::Pool;
use crate::record::JobRecord;
use toroid_proto as proto;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, Rank, WorkerId};

/// Who had which place when an epoch began, and what of it is new.
#[derive(Debug, Default)]
pub(crate) struct Assigned {
    epoch: Epoch,
    shape: Option<Shape>,
    /// By rank.
    peers: Vec<proto::Peer>,
    /// All were told where all are, and not only those that they have links with.
    names_all: bool,
    /// The epoch before, if what was said then still counts where it is not changed.
    since: Option<Epoch>,
    /// The peers that are others than then.
    changed: Vec<proto::Peer>,
    /// Places hold the state of others: the next epoch tells all where all are.
    must_name_all: bool,
    /// What all places have in common.
    kind: Option<Kind>,
}

impl Assigned {
    /// An epoch begins: the record has its places.
    pub fn begin(&mut self, record: &JobRecord, pool: &Pool) {
        let peers: Vec<proto::Peer> = record.placed().map(|(rank, worker)| peer(rank, worker, pool)).collect();
        let names_all = !record.earlier.is_empty() || std::mem::take(&mut self.must_name_all);
        let is_like_before =
            self.shape == Some(record.shape) && self.peers.len() == peers.len() && self.names_all == names_all;
        let (since, changed) = match is_like_before {
            true => {
                let is_new = |(now, before): &(&proto::Peer, &proto::Peer)| now != before;
                let changed = peers.iter().zip(&self.peers).filter(is_new).map(|(now, _)| now.clone());
                (Some(self.epoch), changed.collect())
            }
            false => (None, Vec::new()),
        };
        let (epoch, shape, must_name_all) = (record.epoch, Some(record.shape), false);
        let kind = Kind::of_places(record, pool);
        *self = Assigned { epoch, shape, peers, names_all, since, changed, must_name_all, kind };
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// The epoch before, for those who were told of it.
    pub fn since(&self) -> Option<Epoch> {
        self.since
    }

    /// Whether everybody knows where all are.
    pub fn names_all(&self) -> bool {
        self.names_all
    }

    /// From the next epoch on.
    pub fn name_all(&mut self) {
        self.must_name_all = true;
    }

    /// Whom the worker of this place is told of.
    pub fn peers_of(&self, shape: &Shape, rank: Rank) -> Vec<proto::Peer> {
        if self.names_all {
            return self.peers.clone();
        }
        let linked = shape.peers(rank.index()).into_iter().chain([rank.index()]);
        linked.filter_map(|rank| self.peers.get(rank).cloned()).collect()
    }

    /// The same, of those that have changed.
    pub fn changed_of(&self, shape: &Shape, rank: Rank) -> Vec<proto::Peer> {
        let is_told = |other: usize| self.names_all || other == rank.index() || shape.is_peer(rank.index(), other);
        self.changed.iter().filter(|peer| is_told(peer.rank as usize)).cloned().collect()
    }
}

fn peer(rank: Rank, worker: &WorkerId, pool: &Pool) -> proto::Peer {
    let register = &pool.get(worker).expect("only connected workers are placed").register;
    proto::Peer {
        rank: rank.to_wire(),
        worker_id: register.worker_id.clone(),
        data_address: register.data_address.clone(),
    }
}
