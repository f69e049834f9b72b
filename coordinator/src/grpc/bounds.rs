//! What a worker may say at most. Its texts come into records that are kept, and its lists into memory.

use toroid_proto::worker_message::Body;

/// Of an error or a reason; the rest is cut off, and that is said.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// Of a name: of a device, an operation.
const MAX_NAME_BYTES: usize = 256;
/// Experts of all layers, in the record of a step.
const MAX_EXPERTS: usize = 1 << 20;
/// What carries links.
const MAX_LINK_KINDS: usize = 16;
/// Ranks that are named together.
const MAX_RANKS: usize = 1 << 17;
const MAX_HELD: usize = 16;
/// Keys of a job file that name weights.
const MAX_WEIGHTS: usize = 16;
/// Checkpoints whose removal is reported together: far more than are ordered.
const MAX_STEPS: usize = 1 << 16;
/// Peers that one report says it has no link with; a worker names 256.
const MAX_UNREACHED: usize = 1024;
/// Of a log or of stacks; what a worker sends is shorter (`worker::log`, `worker::stacks`).
const MAX_LINES: usize = 256;
const MAX_LINE_BYTES: usize = 512;

/// The message within its bounds, or why the worker is not listened to any further.
pub(super) fn bounded(mut body: Body) -> Result<Body, String> {
    match &mut body {
        Body::Register(m) => {
            [&mut m.device, &mut m.zone, &mut m.rack].into_iter().for_each(|text| cut(text, MAX_NAME_BYTES));
        }
        Body::Heartbeat(m) => {
            cut(&mut m.operation, MAX_NAME_BYTES);
            at_most("waits_for", m.waits_for.len(), MAX_RANKS)?;
            at_most("links", m.links.len(), MAX_LINK_KINDS)?;
            m.links.retain(|kind, _| kind.len() <= MAX_NAME_BYTES);
        }
        Body::Prepared(m) => {
            at_most("data_digest", m.data_digest.len(), MAX_NAME_BYTES)?;
            at_most("held", m.held.len(), MAX_HELD)?;
            at_most("weights", m.weights.len(), MAX_WEIGHTS)?;
            m.weights.retain(|key, named| key.len() <= MAX_NAME_BYTES && named.len() <= MAX_NAME_BYTES);
        }
        Body::Step(m) => {
            at_most("expert_load", m.record.as_ref().map_or(0, |r| r.expert_load.len()), MAX_EXPERTS)?;
        }
        Body::CheckpointMissed(m) => cut(&mut m.error, MAX_TEXT_BYTES),
        Body::ManifestPublished(m) => {
            cut(&mut m.error, MAX_TEXT_BYTES);
            cut(&mut m.path, MAX_TEXT_BYTES);
        }
        Body::Failed(m) => {
            cut(&mut m.error, MAX_TEXT_BYTES);
            at_most("corrupt_ranks", m.corrupt_ranks.len(), MAX_RANKS)?;
        }
        Body::StepsRemoved(m) => {
            at_most("removed", m.removed.len(), MAX_STEPS)?;
            at_most("kept", m.kept.len(), MAX_STEPS)?;
            m.kept.iter_mut().for_each(|kept| cut(&mut kept.error, MAX_TEXT_BYTES));
        }
        Body::PeerLost(m) => cut(&mut m.error, MAX_TEXT_BYTES),
        Body::Unreached(m) => {
            at_most("peers", m.peers.len(), MAX_UNREACHED)?;
            m.peers.iter_mut().for_each(|peer| cut(&mut peer.reason, MAX_TEXT_BYTES));
        }
        Body::WarmedUp(m) => {
            at_most("data_digest", m.data_digest.len(), MAX_NAME_BYTES)?;
            [&mut m.error, &mut m.unseen].into_iter().for_each(|text| cut(text, MAX_TEXT_BYTES));
        }
        Body::Probed(m) => cut(&mut m.error, MAX_TEXT_BYTES),
        Body::Leaving(m) => cut(&mut m.reason, MAX_TEXT_BYTES),
        Body::LogLines(m) => lines(&mut m.lines)?,
        Body::Stacks(m) => {
            cut(&mut m.operation, MAX_NAME_BYTES);
            lines(&mut m.lines)?;
        }
        Body::ShardWritten(_)
        | Body::Finished(_)
        | Body::Validation(_)
        | Body::Stopped(_)
        | Body::RecordsMissing(_) => {}
    }
    Ok(body)
}

/// The same of a reason that stands alone.
pub(super) fn text(text: &mut String) {
    cut(text, MAX_TEXT_BYTES);
}

fn at_most(key: &str, found: usize, limit: usize) -> Result<(), String> {
    if found > limit { Err(format!("sent {found} entries in `{key}`, at most {limit} are taken")) } else { Ok(()) }
}

fn lines(lines: &mut [String]) -> Result<(), String> {
    at_most("lines", lines.len(), MAX_LINES)?;
    lines.iter_mut().for_each(|line| cut(line, MAX_LINE_BYTES));
    Ok(())
}

fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let num_cut = text.len() - end;
        text.truncate(end);
        text.push_str(&format!("... ({num_cut} bytes more)"));
    }
}

#[cfg(test)]
mod tests {
    use toroid_proto as proto;

    use super::*;

    #[test]
    fn long_texts_are_cut_and_say_so() {
        let error = "ä".repeat(1 << 20);
        let Ok(Body::Failed(failed)) = bounded(Body::Failed(proto::Failed { error, ..Default::default() })) else {
            panic!("it is taken")
        };
        assert_eq!(failed.error.len(), MAX_TEXT_BYTES + "... (2093056 bytes more)".len());
        assert!(failed.error.ends_with("ä... (2093056 bytes more)"), "{}", &failed.error[MAX_TEXT_BYTES - 9..]);
        let short = Body::Leaving(proto::Leaving { reason: "asked".into(), at_once: true });
        assert_eq!(bounded(short.clone()), Ok(short));
    }

    #[test]
    fn lists_beyond_their_bound_are_not_taken() {
        let record = |num: usize| proto::StepRecord { expert_load: vec![1; num], ..Default::default() };
        let step = |num| Body::Step(proto::StepReport { record: Some(record(num)), ..Default::default() });
        assert!(bounded(step(MAX_EXPERTS)).is_ok());
        let error = bounded(step(MAX_EXPERTS + 1)).unwrap_err();
        assert_eq!(error, "sent 1048577 entries in `expert_load`, at most 1048576 are taken");
        let heartbeat = proto::Heartbeat { waits_for: vec![0; MAX_RANKS + 1], ..Default::default() };
        assert!(bounded(Body::Heartbeat(heartbeat)).is_err());
        let peers = vec![proto::UnreachedPeer { reason: "r".repeat(1 << 20), ..Default::default() }; MAX_UNREACHED + 1];
        let unreached = |num: usize| proto::Unreached { peers: peers[..num].to_vec(), ..Default::default() };
        assert!(bounded(Body::Unreached(unreached(MAX_UNREACHED + 1))).is_err());
        let Ok(Body::Unreached(taken)) = bounded(Body::Unreached(unreached(2))) else { panic!("it is taken") };
        assert!(taken.peers.iter().all(|peer| peer.reason.len() < 2 * MAX_TEXT_BYTES));
    }
}
