//! When user code is worth to be run as it is.
//!
//! To let it run and to get it back takes as long as some ten thousand instructions, and so does each page that it meets for the first
//! time. What it gains is about as long as it has run. So each address space has an account: a visit of the stub earns the time for which
//! code has run there, and pays for all that it took besides. Interrupts that find user code running, some in a row, are the occasion
//! to open one, with something to begin with; as long as there is something in it, every return to user code is a run. Whose account has been emptied
//! waits for more interrupts before the next is opened, each time twice as many.

use std::time::Duration;

/// What a visit costs besides, in nanoseconds: the returns that are interpreted for it, and what caches have to get anew.
const VISIT: i64 = 10_000;
/// Interrupts before the first account is opened, and the most that the wait grows to.
const FIRST: u32 = 3;
const LONGEST: u32 = 512;
/// What an account begins with, in nanoseconds.
const BEGINNING: i64 = 8_000_000;
/// What it holds at most.
const MOST: i64 = 10_000_000;
/// Address spaces that are remembered.
const SPACES: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Account {
    pcid: u16,
    open: bool,
    /// In nanoseconds.
    balance: i64,
    /// Interrupts that it still waits for, and the next time.
    wait: u32,
    next: u32,
}

impl Account {
    const fn new(pcid: u16) -> Self {
        Self { pcid, open: false, balance: 0, wait: FIRST, next: 2 * FIRST }
    }
}

/// The accounts of a vCPU.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    accounts: Vec<Account>,
    next: usize,
}

impl Policy {
    fn account(&mut self, pcid: u16) -> Option<&mut Account> {
        let known = self.accounts.iter().position(|account| account.pcid == pcid);
        let at = known.unwrap_or_else(|| {
            if self.accounts.len() < SPACES {
                self.accounts.push(Account::new(pcid));
                return self.accounts.len() - 1;
            }
            self.next = (self.next + 1) % SPACES;
            if let Some(old) = self.accounts.get_mut(self.next) {
                *old = Account::new(pcid);
            }
            self.next
        });
        self.accounts.get_mut(at)
    }

    /// Whether an address space's code should run as it is.
    pub(crate) fn wants(&self, pcid: u16) -> bool {
        self.accounts.iter().any(|account| account.pcid == pcid && account.open)
    }

    /// An interrupt has found an address space's code running.
    pub(crate) fn interrupted(&mut self, pcid: u16) {
        let Some(account) = self.account(pcid).filter(|account| !account.open) else { return };
        account.wait = account.wait.saturating_sub(1);
        if account.wait == 0 {
            (account.open, account.balance) = (true, BEGINNING);
        }
    }

    /// An address space's code has run for so long, and it took so long besides.
    pub(crate) fn has_run(&mut self, pcid: u16, ran: Duration, besides: Duration) {
        let Some(account) = self.account(pcid) else { return };
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(MOST).min(MOST);
        account.balance = (account.balance + nanoseconds(ran) - nanoseconds(besides) - VISIT).min(MOST);
        if account.balance == MOST {
            account.next = FIRST;
        }
        if account.balance < 0 {
            account.open = false;
            account.wait = account.next;
            account.next = (2 * account.next).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(1);
    const LONG: Duration = Duration::from_millis(4);

    /// How many interrupts it takes until an account is open.
    fn wait(policy: &mut Policy) -> usize {
        let interrupts = (1..).take_while(|_| {
            policy.interrupted(1);
            !policy.wants(1)
        });
        interrupts.count() + 1
    }

    #[test]
    fn who_computes_for_long_goes_on_and_who_calls_often_stops() {
        let mut policy = Policy::default();
        assert_eq!(wait(&mut policy), 3);
        assert!(policy.wants(1) && !policy.wants(2));
        for _ in 0..100 {
            policy.has_run(1, LONG, SHORT);
            assert!(policy.wants(1));
        }
        let runs = (0..).take_while(|_| {
            policy.has_run(1, SHORT, SHORT);
            policy.wants(1)
        });
        assert!(runs.count() > 100, "it lives on what it has earned for a while");
    }

    #[test]
    fn each_failure_makes_the_next_wait_longer() {
        let mut policy = Policy::default();
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(wait(&mut policy));
            while policy.wants(1) {
                policy.has_run(1, SHORT, SHORT);
            }
        }
        assert_eq!(waits, [3, 6, 12, 24, 48, 96, 192, 384, 512, 512]);
    }

    #[test]
    fn the_address_spaces_that_are_remembered_are_bounded() {
        let mut policy = Policy::default();
        (0..1000).for_each(|pcid| policy.interrupted(pcid));
        assert_eq!(policy.accounts.len(), SPACES);
    }
}
