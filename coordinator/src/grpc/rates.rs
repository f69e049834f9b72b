//! How much of the coordinator one user or one address may have: calls a second, and calls at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Accounts that are kept, at most; those that have used nothing lately go first, and need none.
const MAX_ACCOUNTS: usize = 16_384;

/// What one account may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallLimits {
    /// Calls a second in the long run, and at once after a pause.
    pub per_s: f64,
    pub at_once: f64,
    /// Calls that are not done: streams, above all.
    pub open: usize,
    /// Sessions of workers, which may all have one certificate.
    pub sessions: usize,
    /// Refused calls a second of one address.
    pub refused_per_s: f64,
}

impl Default for CallLimits {
    fn default() -> CallLimits {
        CallLimits { per_s: 500.0, at_once: 2000.0, open: 1024, sessions: 131_072, refused_per_s: 50.0 }
    }
}

#[derive(Debug)]
struct Account {
    /// Calls that may be made at once.
    left: f64,
    at: Instant,
    open: usize,
}

#[derive(Debug, Default)]
struct Accounts(BTreeMap<String, Account>);

/// The accounts of all callers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rates(Arc<Mutex<Accounts>>);

/// A call that is not done; dropped when it is.
#[derive(Debug)]
pub(crate) struct OpenCall {
    rates: Rates,
    account: String,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if let Some(account) = self.rates.lock().0.get_mut(&self.account) {
            account.open -= 1;
        }
    }
}

impl Rates {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Nobody panics while holding it, and the numbers would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call on an account; an error where it has too many open or makes them too fast.
    pub fn take(&self, name: &str, per_s: f64, at_once: f64, open: usize) -> Result<OpenCall, String> {
        let mut accounts = self.lock();
        let now = Instant::now();
        if accounts.0.len() >= MAX_ACCOUNTS && !accounts.0.contains_key(name) {
            let is_idle = |account: &Account| account.open == 0 && account.left + account.earned(now, per_s) >= at_once;
            accounts.0.retain(|_, account| !is_idle(account));
            if accounts.0.len() >= MAX_ACCOUNTS {
                return Err(format!("{MAX_ACCOUNTS} users and addresses make calls already; try again later"));
            }
        }
        let account = accounts.0.entry(name.to_string()).or_insert(Account { left: at_once, at: now, open: 0 });
        account.left = (account.left + account.earned(now, per_s)).min(at_once);
        account.at = now;
        if account.open >= open {
            return Err(format!("{name} has {open} calls open already; end some of them"));
        }
        if account.left < 1.0 {
            return Err(format!(
                "{name} makes more than {per_s} calls a second; make fewer, or watch a job instead of asking for it"
            ));
        }
        account.left -= 1.0;
        account.open += 1;
        Ok(OpenCall { rates: self.clone(), account: name.to_string() })
    }
}

impl Account {
    fn earned(&self, now: Instant, per_s: f64) -> f64 {
        now.saturating_duration_since(self.at).as_secs_f64() * per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_bounded_and_no_other_is_held_up_by_it() {
        let rates = Rates::default();
        let take = |name: &str| rates.take(name, 0.001, 3.0, 2);
        let first = take("a").unwrap();
        let _second = take("a").unwrap();
        assert!(take("a").unwrap_err().contains("2 calls open"), "too many at a time");
        let _other = take("b").unwrap();
        drop(first);
        let _third = take("a").unwrap();
        drop(_third);
        assert!(take("a").unwrap_err().contains("calls a second"), "too fast");
        drop(take("b").unwrap());
    }
}
