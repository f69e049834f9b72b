//! Bytes past the frames: what the connections of a link can give, to compare collectives with.
//!
//! Deliberately absent: sums, epochs and order. Both ends have to do the same at the same time, while no frame is under way.

use std::io::{ErrorKind, IoSlice};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::links::{YIELD_MAX, poll_all};
use super::{CommError, LinkKind, Links};

/// Sends `data` to rank `to` while `into` is filled from rank `from`.
pub fn exchange_raw(links: &mut Links, to: usize, from: usize, data: &[u8], into: &mut [u8]) -> Result<(), CommError> {
    let (mut sent, mut received) = (0, 0);
    let mut idle_since: Option<Instant> = None;
    // Who waits for a socket is woken by the kernel at once.
    let is_ring = links.transport(from)?.kind() == LinkKind::Shm;
    while sent < data.len() || received < into.len() {
        let mut moved = 0;
        if sent < data.len() {
            let written = links.transport(to)?.write_vectored(&[IoSlice::new(&data[sent..])]);
            let written = now(written).map_err(|e| CommError::io("send raw bytes", e))?;
            (sent, moved) = (sent + written, moved + written);
        }
        if received < into.len() {
            let read = now(links.transport(from)?.read(&mut into[received..]));
            let read = read.map_err(|e| CommError::io("receive raw bytes", e))?;
            (received, moved) = (received + read, moved + read);
        }
        if moved > 0 {
            idle_since = None;
        } else if is_ring && idle_since.get_or_insert_with(Instant::now).elapsed() < YIELD_MAX {
            std::thread::yield_now();
        } else {
            wait(links, to, from, sent < data.len(), received < into.len())?;
        }
    }
    Ok(())
}

/// 0 where nothing goes now.
fn now(result: std::io::Result<usize>) -> std::io::Result<usize> {
    match result {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

fn wait(links: &mut Links, to: usize, from: usize, sends: bool, receives: bool) -> Result<(), CommError> {
    let wants = [(to, sends && to != from), (from, sends && to == from)];
    let mut ready = PollFlags::empty();
    for (rank, wants_write) in wants {
        let events = links.transport(rank)?.announce(wants_write);
        ready |= if receives { events } else { events & PollFlags::OUT };
    }
    if ready.is_empty() {
        let mut flags = [PollFlags::IN; 2];
        for (flag, (rank, wants_write)) in flags.iter_mut().zip(wants) {
            *flag = links.transport(rank)?.interest(wants_write);
        }
        let fds = wants.map(|(rank, _)| links.socket(rank));
        let mut fds: Vec<PollFd<'_>> =
            fds.into_iter().flatten().zip(flags).map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        poll_all(&mut fds, None)?;
    }
    for (rank, wants_write) in wants {
        links.transport(rank)?.heed(PollFlags::IN, wants_write);
    }
    Ok(())
}
