//! What a failed accept(2) says: about the caller, about this moment, or about the listener for good.

/// What a failed accept says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Nobody calls.
    Nothing,
    /// The caller is gone, or its network.
    ThisCall,
    /// The system has no room for a call: descriptors, memory.
    ForNow,
    ForGood,
}

impl Refused {
    pub fn of(error: &std::io::Error) -> Refused {
        use rustix::io::Errno;
        let Some(errno) = Errno::from_io_error(error) else { return Refused::ForGood };
        match errno {
            Errno::AGAIN => Refused::Nothing,
            // Errors of the network are told by accept(2) on Linux, and are to be treated as AGAIN.
            Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::PERM => Refused::ThisCall,
            Errno::NETDOWN | Errno::NOPROTOOPT | Errno::HOSTDOWN | Errno::NONET => Refused::ThisCall,
            Errno::HOSTUNREACH | Errno::OPNOTSUPP | Errno::NETUNREACH | Errno::TIMEDOUT => Refused::ThisCall,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Refused::ForNow,
            _ => Refused::ForGood,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_what_is_permanent_ends_the_wait_for_calls() {
        let of = |errno: Errno| Refused::of(&errno.into());
        assert_eq!(of(Errno::AGAIN), Refused::Nothing);
        assert_eq!([of(Errno::CONNABORTED), of(Errno::HOSTUNREACH)], [Refused::ThisCall; 2]);
        assert_eq!([of(Errno::MFILE), of(Errno::NFILE), of(Errno::NOMEM)], [Refused::ForNow; 3]);
        assert_eq!([of(Errno::BADF), of(Errno::INVAL)], [Refused::ForGood; 2]);
    }
}
