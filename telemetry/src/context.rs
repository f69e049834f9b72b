//! What the log of a process has to do with the rest of it.

/// Where a process is in its work, which each line of its log names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub job: String,
    pub epoch: u64,
    pub rank: u32,
    /// Committed.
    pub step: u64,
    /// Of what it takes part in now: an incident.
    pub trace_id: Option<String>,
}

/// What the rest of the process has to do with its log.
pub trait Context: Send + Sync {
    /// Where it is; `None`: nowhere.
    fn place(&self) -> Option<Place>;

    /// A line was logged, of level `info` or worse.
    fn line(&self, line: &str);
}
