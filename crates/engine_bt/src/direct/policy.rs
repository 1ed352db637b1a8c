//! When user code is worth to be run as it is.
//!
//! To let it run and to get it back takes as long as some ten thousand instructions, and so does each page that it meets for the first
//! time. What it gains is about twice as long as it has run: programs of some size take three times as long when they are translated. So
//! each address space has an account: a visit of the stub earns twice the time for which
//! code has run there, and pays for all that it took besides. Interrupts that find user code running, some in a row, are the occasion
//! to open one, with something to begin with; as long as there is something in it, every return to user code is a visit. Whose account has been emptied
//! waits for more interrupts before the next is opened: three times as many, and then each time twice as many.
//!
//! What tells address spaces apart is where their tables begin, and to where those lead: of one that has ended another soon has the place.
//!
//! Pages are paid from a part of their own, which is larger: they are met once, and the other stops come again and again.

use std::time::Duration;

/// What a visit costs besides, in nanoseconds: the returns that are interpreted for it, and what caches have to get anew.
const VISIT: i64 = 10_000;
/// Interrupts before the first account is opened, and the most that the wait grows to.
const FIRST: u32 = 5;
const LONGEST: u32 = 96;
/// How many times the time for which code has run it earns.
const GAIN: i64 = 2;
/// What an account begins with, in nanoseconds: for pages, and for everything else.
const BEGINNING: [i64; 2] = [16_000_000, 1_000_000];
/// What each part holds at most.
const MOST: i64 = 20_000_000;
/// Address spaces that are remembered.
const SPACES: usize = 16;

/// An address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Where its tables begin.
    pub(crate) root: u64,
    /// A sum of where those for user code are to which the first leads.
    pub(crate) tables: u64,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    owner: Identity,
    open: bool,
    /// Both parts, in nanoseconds.
    balance: [i64; 2],
    /// Interrupts that it still waits for, and the next time.
    wait: u32,
    next: u32,
}

impl Account {
    const fn new(owner: Identity) -> Self {
        Self { owner, open: false, balance: [0; 2], wait: FIRST, next: 3 * FIRST }
    }
}

/// The accounts of a vCPU.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    accounts: Vec<Account>,
    next: usize,
}

impl Policy {
    fn account(&mut self, owner: Identity) -> Option<&mut Account> {
        let known = self.accounts.iter().position(|account| account.owner.root == owner.root);
        let at = known.unwrap_or_else(|| {
            if self.accounts.len() < SPACES {
                self.accounts.push(Account::new(owner));
                return self.accounts.len() - 1;
            }
            self.next = (self.next + 1) % SPACES;
            self.next
        });
        let account = self.accounts.get_mut(at)?;
        if account.owner != owner {
            *account = Account::new(owner);
        }
        Some(account)
    }

    /// Whether code should run as it is of an address space whose tables begin there; unless another has its place now.
    pub(crate) fn wants(&self, root: u64) -> bool {
        self.accounts.iter().any(|account| account.owner.root == root && account.open)
    }

    /// Whether it should of this address space.
    pub(crate) fn has_open(&mut self, owner: Identity) -> bool {
        self.account(owner).is_some_and(|account| account.open)
    }

    /// An interrupt has found an address space's code running.
    pub(crate) fn interrupted(&mut self, owner: Identity) {
        let Some(account) = self.account(owner).filter(|account| !account.open) else { return };
        account.wait = account.wait.saturating_sub(1);
        if account.wait == 0 {
            (account.open, account.balance) = (true, BEGINNING);
        }
    }

    /// An address space's code has run for so long, and it took so long besides: for so many pages, and other stops.
    pub(crate) fn has_run(&mut self, owner: Identity, ran: Duration, besides: Duration, stops: [u64; 2]) {
        let Some(account) = self.account(owner) else { return };
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(MOST).min(MOST);
        let costs = nanoseconds(besides) + VISIT;
        let [pages, others] = stops.map(|count| i64::try_from(count).unwrap_or(i64::MAX).min(MOST));
        let for_pages = costs * pages / (pages + others).max(1);
        for (part, cost) in account.balance.iter_mut().zip([for_pages, costs - for_pages]) {
            *part = (*part + GAIN * nanoseconds(ran) - cost).min(MOST);
        }
        if account.balance == [MOST; 2] {
            account.next = FIRST;
        }
        if account.balance.iter().any(|&part| part < 0) {
            account.open = false;
            account.wait = account.next;
            account.next = (2 * account.next).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Identity = Identity { root: 1, tables: 7 };
    const SHORT: Duration = Duration::from_micros(1);
    const LONG: Duration = Duration::from_millis(4);

    /// How many interrupts it takes until an account is open.
    fn wait(policy: &mut Policy) -> usize {
        let interrupts = (1..).take_while(|_| {
            policy.interrupted(OWNER);
            !policy.wants(1)
        });
        interrupts.count() + 1
    }

    #[test]
    fn who_computes_for_long_goes_on_and_who_calls_often_stops() {
        let mut policy = Policy::default();
        assert_eq!(wait(&mut policy), 5);
        assert!(policy.wants(1) && !policy.wants(2));
        for _ in 0..100 {
            policy.has_run(OWNER, LONG, SHORT, [0, 1]);
            assert!(policy.wants(1));
        }
        let runs = (0..).take_while(|_| {
            policy.has_run(OWNER, SHORT, SHORT, [0, 1]);
            policy.wants(1)
        });
        assert!(runs.count() > 100, "it lives on what it has earned for a while");
    }

    #[test]
    fn pages_may_cost_more_than_other_stops() {
        let stops = |kind: [u64; 2]| {
            let mut policy = Policy::default();
            wait(&mut policy);
            let visits = (0..).take_while(|_| {
                policy.has_run(OWNER, SHORT, SHORT, kind);
                policy.wants(1)
            });
            visits.count()
        };
        assert!(stops([1, 0]) > 4 * stops([0, 1]));
    }

    #[test]
    fn each_failure_makes_the_next_wait_longer() {
        let mut policy = Policy::default();
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(wait(&mut policy));
            while policy.wants(1) {
                policy.has_run(OWNER, SHORT, SHORT, [0, 1]);
            }
        }
        assert_eq!(waits, [5, 15, 30, 60, 96, 96, 96, 96, 96, 96]);
    }

    #[test]
    fn who_comes_after_another_begins_anew() {
        let mut policy = Policy::default();
        wait(&mut policy);
        assert!(policy.has_open(OWNER));
        let heir = Identity { tables: 8, ..OWNER };
        assert!(policy.wants(heir.root) && !policy.has_open(heir) && !policy.wants(heir.root));
    }

    #[test]
    fn the_address_spaces_that_are_remembered_are_bounded() {
        let mut policy = Policy::default();
        (0..1000).for_each(|root| policy.interrupted(Identity { root, tables: 0 }));
        assert_eq!(policy.accounts.len(), SPACES);
    }
}
