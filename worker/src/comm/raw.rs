//! Bytes past the frames: what the connections of a link can give, to compare collectives with.
//!
//! Deliberately absent: sums, epochs and order. Both ends have to do the same at the same time, while no frame is under way.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice};

use rustix::event::{PollFd, PollFlags};

use super::links::{Yields, poll_all};
use super::{CommError, LinkKind, Links};

/// Bytes to rank `to`.
#[derive(Debug)]
pub struct RawSend<'a> {
    pub to: usize,
    pub data: &'a [u8],
}

/// Bytes from rank `from`.
#[derive(Debug)]
pub struct RawRecv<'a> {
    pub from: usize,
    pub into: &'a mut [u8],
}

/// Sends and receives all of these at once, at most one of each with a rank; returns when they are done.
pub fn exchange_raw(links: &mut Links, sends: &mut [RawSend<'_>], recvs: &mut [RawRecv<'_>]) -> Result<(), CommError> {
    let mut idle: Option<Yields> = None;
    let mut received = vec![0; recvs.len()];
    loop {
        let mut moved = 0;
        for RawSend { to, data } in sends.iter_mut().filter(|send| !send.data.is_empty()) {
            let written = links.transport(*to)?.write_vectored(&[IoSlice::new(data)]);
            let written = now(written).map_err(|e| CommError::io("send raw bytes", e))?;
            (*data, moved) = (&data[written..], moved + written);
        }
        // What is taken is not always with the kernel yet.
        let mut unsent = None;
        for RawSend { to, .. } in sends.iter().filter(|send| send.data.is_empty()) {
            if !links.transport(*to)?.flush().map_err(|e| CommError::io("send raw bytes", e))? {
                unsent = Some(*to);
            }
        }
        for (RawRecv { from, into }, received) in recvs.iter_mut().zip(&mut received) {
            if *received < into.len() {
                let read = now(links.transport(*from)?.read(&mut into[*received..]));
                let read = read.map_err(|e| CommError::io("receive raw bytes", e))?;
                (*received, moved) = (*received + read, moved + read);
            }
        }
        let sends_left = sends.iter().find(|send| !send.data.is_empty()).map(|send| send.to).or(unsent);
        let mut late = recvs.iter().zip(&received).filter(|(recv, received)| **received < recv.into.len());
        let Some(rank) = late.next().map(|(recv, _)| recv.from).or(sends_left) else { return Ok(()) };
        // Who waits for a socket is woken by the kernel at once.
        let is_ring = links.transport(rank)?.kind() == LinkKind::Shm;
        if moved > 0 {
            idle = None;
        } else if !is_ring || !idle.get_or_insert_with(Yields::begin).again() {
            // By rank: whether bytes are to be sent, and to be received.
            let mut wants: BTreeMap<usize, [bool; 2]> = BTreeMap::new();
            sends.iter().filter(|s| !s.data.is_empty()).for_each(|s| wants.entry(s.to).or_default()[0] = true);
            unsent.into_iter().for_each(|to| wants.entry(to).or_default()[0] = true);
            let late = recvs.iter().zip(&received).filter(|(recv, received)| **received < recv.into.len());
            late.for_each(|(recv, _)| wants.entry(recv.from).or_default()[1] = true);
            wait(links, &wants)?;
        }
    }
}

/// 0 where nothing goes now.
fn now(result: std::io::Result<usize>) -> std::io::Result<usize> {
    match result {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

fn wait(links: &mut Links, wants: &BTreeMap<usize, [bool; 2]>) -> Result<(), CommError> {
    let mut ready = PollFlags::empty();
    let mut flags = Vec::with_capacity(wants.len());
    for (&rank, &[sends, receives]) in wants {
        let transport = links.transport(rank)?;
        let events = transport.announce(sends);
        ready |= if receives { events } else { events & PollFlags::OUT };
        let interest = transport.interest(sends);
        // A ring is woken by a byte whatever it waits for.
        let reads = receives || transport.kind() == LinkKind::Shm;
        flags.push(if reads { interest } else { interest & PollFlags::OUT });
    }
    if ready.is_empty() {
        let fds = wants.keys().map(|&rank| links.socket(rank));
        let fds = fds.zip(flags).filter_map(|(fd, flags)| Some(PollFd::from_borrowed_fd(fd?, flags)));
        poll_all(&mut fds.collect::<Vec<PollFd<'_>>>(), None)?;
    }
    for (&rank, &[sends, _]) in wants {
        links.transport(rank)?.heed(PollFlags::IN, sends);
    }
    Ok(())
}
