//! Who waits while data is prepared.

/// Whoever has tokens prepared. A closure is told of the bytes done, and never says that it is over.
pub trait Attend {
    /// It gets on: so many bytes of text are read or compared.
    fn advance(&mut self, bytes: u64);
    /// It waits for another process that makes the same file, or waits no more.
    fn waits(&mut self, _is_waiting: bool) {}
    /// Nobody needs the text any more: waiting for it ends.
    fn is_over(&self) -> bool {
        false
    }
}

impl<F: FnMut(u64)> Attend for F {
    fn advance(&mut self, bytes: u64) {
        self(bytes);
    }
}
