//! What a worker says while it has no coordinator: at once, then ever more seldom.

use std::time::Duration;

/// After the first failure it is said again when it has lasted this long, and then every [`EVERY`].
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
const EVERY: Duration = Duration::from_secs(60);

/// What keeps a worker from its coordinator. Another kind is said at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unreachable,
    Lost,
    IdInUse,
    Apart,
}

/// The time without a coordinator, and what was said of it.
#[derive(Debug, Default)]
pub(super) struct Outage {
    began: Option<(Duration, Kind)>,
    num_said: u32,
}

impl Outage {
    /// Another attempt failed, `now` since any origin. Whether it is to be said: how long it has lasted.
    pub fn failed(&mut self, kind: Kind, now: Duration) -> Option<Duration> {
        let (began, _) = *self.began.filter(|(_, before)| *before == kind).get_or_insert_with(|| {
            self.num_said = 0;
            (now, kind)
        });
        self.began = Some((began, kind));
        let lasted = now.saturating_sub(began);
        let is_due = match self.num_said as usize {
            0 => true,
            n if n <= AGAIN_AFTER.len() => lasted >= AGAIN_AFTER[n - 1],
            n => lasted >= EVERY * (n - AGAIN_AFTER.len()) as u32,
        };
        self.num_said += u32::from(is_due);
        is_due.then_some(lasted)
    }

    /// The coordinator has taken the worker: how long that took, if anything was said.
    pub fn over(&mut self, now: Duration) -> Option<Duration> {
        let (began, _) = self.began.take()?;
        self.num_said = 0;
        Some(now.saturating_sub(began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_ever_more_seldom() {
        let mut outage = Outage::default();
        let seconds = |kind, outage: &mut Outage, from: u64, to: u64| -> Vec<u64> {
            let said = |s: &u64| outage.failed(kind, Duration::from_secs(*s)).is_some();
            (from..to).filter(said).collect()
        };
        assert_eq!(seconds(Kind::Unreachable, &mut outage, 100, 300), [100, 101, 110, 160, 220, 280]);
        assert_eq!(seconds(Kind::IdInUse, &mut outage, 300, 312), [300, 301, 310], "another reason is said at once");
        assert_eq!(outage.over(Duration::from_secs(330)), Some(Duration::from_secs(30)));
        assert_eq!(outage.over(Duration::from_secs(331)), None);
        assert_eq!(seconds(Kind::Unreachable, &mut outage, 400, 405), [400, 401], "it begins anew");
    }
}
