//! Which of several coordinators a worker asks: the one that leads, as far as it knows, and one after the other until it does.

use std::time::Duration;

/// How long one of several may take to answer before the next is asked.
const LIMIT: Duration = Duration::from_secs(1);

/// When the next coordinator is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    AtOnce,
    /// All have been asked.
    AfterPause,
}

#[derive(Debug)]
pub struct Coordinators {
    named: Vec<String>,
    /// Which of `named` is asked, or was last.
    at: usize,
    /// The leader, as another has named it: it is asked in the place of `at`.
    redirect: Option<String>,
    /// Attempts since the last Welcome, or pause.
    num_asked: usize,
}

impl Coordinators {
    /// At least one.
    pub fn new(named: Vec<String>) -> Coordinators {
        assert!(!named.is_empty(), "a worker has a coordinator to ask");
        Coordinators { named, at: 0, redirect: None, num_asked: 0 }
    }

    pub fn current(&self) -> &str {
        self.redirect.as_deref().unwrap_or(&self.named[self.at])
    }

    pub fn are_several(&self) -> bool {
        self.named.len() > 1
    }

    /// A single one has as long as it takes.
    pub fn limit(&self) -> Option<Duration> {
        (self.are_several() || self.redirect.is_some()).then_some(LIMIT)
    }

    pub fn in_words(&self) -> String {
        self.named.join(", ")
    }

    pub fn welcomed(&mut self) {
        self.num_asked = 0;
    }

    /// The one that was asked is not there, or does not lead; it may have said who does.
    pub fn failed(&mut self, leader: Option<String>) -> Next {
        let was_redirected = self.redirect.is_some();
        self.redirect = leader.filter(|leader| leader != self.current());
        if self.redirect.is_none() || was_redirected {
            self.at = (self.at + 1) % self.named.len();
        }
        self.num_asked += 1;
        // Each once, and whoever they have named: those who name one another are asked again after a pause.
        if self.num_asked < 2 * self.named.len() && (self.redirect.is_some() || self.at != 0 || was_redirected) {
            return Next::AtOnce;
        }
        self.num_asked = 0;
        Next::AfterPause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_asked_before_it_pauses() {
        let mut several = Coordinators::new(["a", "b", "c"].map(String::from).into());
        for expected in ["a", "b", "c", "a", "b"] {
            assert_eq!(several.current(), expected);
            let is_last = expected == "c";
            assert_eq!(several.failed(None) == Next::AfterPause, is_last, "{expected}");
        }
        let mut one = Coordinators::new(vec!["a".into()]);
        assert_eq!((one.limit(), one.failed(None), one.current()), (None, Next::AfterPause, "a"));
    }

    #[test]
    fn who_leads_is_asked_at_once_be_it_one_that_was_not_named() {
        let mut several = Coordinators::new(["a", "b"].map(String::from).into());
        assert_eq!(several.failed(Some("x".into())), Next::AtOnce);
        assert_eq!(several.current(), "x");
        assert_eq!(several.failed(None), Next::AtOnce);
        assert_eq!(several.current(), "b");
    }

    #[test]
    fn those_who_name_one_another_are_asked_again_after_a_pause() {
        let mut several = Coordinators::new(["a", "b"].map(String::from).into());
        let other = |current: &str| if current == "a" { "b" } else { "a" };
        let num = (1..).find(|_| {
            let leader = other(several.current()).to_string();
            several.failed(Some(leader)) == Next::AfterPause
        });
        assert_eq!(num, Some(4));
    }
}
