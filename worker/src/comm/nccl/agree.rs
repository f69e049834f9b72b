//! Everybody's statements at everybody, along rows and then columns of the torus; then the ids of the communicators that are to be made.
//!
//! Both go over the links of the epoch, so nothing of an older one is believed (T-1).

use toroid_torus::geometry::Shape;

use super::Collectives;
use super::choice::{Decision, Gpu, Key, Lack, Line, LineDecision, Statement, decide};
use super::device_comm::{Agreed, DeviceComm, UNIQUE_ID_BYTES, UniqueId};
use crate::comm::collective::exchange;
use crate::comm::{Channel, CommError, Links, Transfer};

/// Every place calls it at the beginning of an epoch, those without a device for it, too. `None`: this one has none.
pub fn agree<B>(
    links: &mut Links,
    shape: &Shape,
    comm: Option<&dyn DeviceComm<B>>,
) -> Result<Option<Agreed>, CommError> {
    let rank = links.rank();
    let own = comm.map_or(Statement::without_gpu(Collectives::Auto), |comm| comm.statement(shape, rank));
    let statements = gather(links, shape, &own)?;
    let decision = decide(shape, &statements, rank).map_err(CommError::Collectives)?;
    let Some(comm) = comm else { return Ok(None) };
    let ids = share_ids(links, shape, &decision, comm)?;
    Ok(Some(Agreed { rank, shape: *shape, decision, ids }))
}

/// By rank.
fn gather(links: &mut Links, shape: &Shape, own: &Statement) -> Result<Vec<Statement>, CommError> {
    let rank = links.rank();
    let mut known = vec![(rank, encode(own))];
    for line in [shape.row(rank), shape.column(rank)] {
        // (rank, statement) of all that this place knows; as many at all members of a line.
        let sent: Vec<u8> = known.iter().flat_map(|(r, s)| (*r as u64).to_le_bytes().into_iter().chain(*s)).collect();
        let mut came = vec![0; sent.len() * line.len()];
        let me = line.iter().position(|r| *r == rank).expect("a rank is in its own lines");
        exchange(links, &line, me, Channel::Global, &sent, &mut came)?;
        came[me * sent.len()..][..sent.len()].copy_from_slice(&sent);
        known = came.as_chunks::<{ 8 + STATEMENT_BYTES }>().0.iter().map(split).collect();
    }
    known.sort_by_key(|(rank, _)| *rank);
    let is_whole = known.iter().map(|(rank, _)| *rank).eq(0..shape.world());
    let statements = known.iter().map(|(rank, bytes)| decode(bytes).ok_or(*rank));
    match statements.collect::<Result<Vec<Statement>, usize>>() {
        Ok(statements) if is_whole => Ok(statements),
        Ok(_) => Err(CommError::Collectives("what the places said about their GPUs is not of every place once".into())),
        Err(rank) => Err(CommError::Collectives(format!("what rank {rank} said about its GPU cannot be read"))),
    }
}

fn split(bytes: &[u8; 8 + STATEMENT_BYTES]) -> (usize, [u8; STATEMENT_BYTES]) {
    let (mut rank, mut statement) = ([0; 8], [0; STATEMENT_BYTES]);
    rank.copy_from_slice(&bytes[..8]);
    statement.copy_from_slice(&bytes[8..]);
    (u64::from_le_bytes(rank) as usize, statement)
}

/// The first member of a line makes the id, the others get it. The first byte says that there is one.
fn share_ids<B>(
    links: &mut Links,
    shape: &Shape,
    decision: &Decision,
    comm: &dyn DeviceComm<B>,
) -> Result<[Option<UniqueId>; 3], CommError> {
    let rank = links.rank();
    let mut failed = None;
    let mut messages = Vec::new();
    for line in Line::ALL.into_iter().filter(|line| decision.lines[*line as usize] == LineDecision::Make) {
        let mut message = [0; 1 + UNIQUE_ID_BYTES];
        let members = line.members(shape, rank);
        if members[0] == rank {
            match comm.unique_id() {
                Ok(id) => {
                    message[0] = 1;
                    message[1..].copy_from_slice(&id.0);
                }
                Err(error) => {
                    failed = Some(format!("NCCL cannot make the id of a communicator at rank {rank}: {error}"))
                }
            }
        }
        messages.push((line, members, message));
    }
    let channel = Channel::Global;
    for (_, members, message) in &mut messages {
        let mut transfers = Vec::new();
        if members[0] == rank {
            let sends = members[1..].iter().map(|peer| Transfer::Send { peer: *peer, channel, data: &*message });
            transfers.extend(sends);
        } else {
            transfers.push(Transfer::Recv { peer: members[0], channel, buf: message });
        }
        links.run(&mut transfers)?;
    }
    if let Some(error) = failed {
        return Err(CommError::Collectives(error));
    }
    let mut ids = [None; 3];
    for (line, members, message) in messages {
        if message[0] == 0 {
            let what = format!("rank {} could not make the id of its {line}, its log says why", members[0]);
            return Err(CommError::Collectives(what));
        }
        let mut id = [0; UNIQUE_ID_BYTES];
        id.copy_from_slice(&message[1..]);
        ids[line as usize] = Some(UniqueId(id));
    }
    Ok(ids)
}

/// Wish, lack, version, GPU, and a byte and a key for each line.
const STATEMENT_BYTES: usize = 2 + 4 + 16 + 3 * 17;

fn encode(statement: &Statement) -> [u8; STATEMENT_BYTES] {
    let mut bytes = [0; STATEMENT_BYTES];
    bytes[0] = statement.wish as u8;
    match &statement.has {
        Ok((gpu, version)) => {
            bytes[2..6].copy_from_slice(&version.to_le_bytes());
            bytes[6..22].copy_from_slice(&gpu.0);
        }
        Err(lack) => bytes[1] = 1 + *lack as u8,
    }
    for (kept, bytes) in statement.kept.iter().zip(bytes[22..].chunks_exact_mut(17)) {
        if let Some(key) = kept {
            bytes[0] = 1;
            bytes[1..].copy_from_slice(&key.0);
        }
    }
    bytes
}

fn decode(bytes: &[u8; STATEMENT_BYTES]) -> Option<Statement> {
    let sixteen = |at: usize| {
        let mut out = [0; 16];
        out.copy_from_slice(&bytes[at..at + 16]);
        out
    };
    let wish = [Collectives::Auto, Collectives::Host, Collectives::Nccl].into_iter().find(|w| *w as u8 == bytes[0])?;
    let has = match bytes[1] {
        0 => Ok((Gpu(sixteen(6)), u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]))),
        lack => Err([Lack::Gpu, Lack::Library, Lack::Forbidden].into_iter().find(|l| 1 + *l as u8 == lack)?),
    };
    let mut kept = [None; 3];
    for (line, kept) in kept.iter_mut().enumerate() {
        let at = 22 + 17 * line;
        *kept = match bytes[at] {
            0 => None,
            1 => Some(Key(sixteen(at + 1))),
            _ => return None,
        };
    }
    Some(Statement { wish, has, kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_read_back() {
        let has = [Ok((Gpu([3; 16]), 22_703)), Err(Lack::Gpu), Err(Lack::Library), Err(Lack::Forbidden)];
        for wish in [Collectives::Auto, Collectives::Host, Collectives::Nccl] {
            for has in has {
                for kept in [[None; 3], [Some(Key([1; 16])), None, Some(Key([2; 16]))]] {
                    let statement = Statement { wish, has, kept };
                    assert_eq!(decode(&encode(&statement)), Some(statement));
                }
            }
        }
        for at in [0, 1, 22, 39, 56] {
            let mut bytes = encode(&Statement::without_gpu(Collectives::Auto));
            bytes[at] = 9;
            assert_eq!(decode(&bytes), None, "byte {at}");
        }
    }
}
