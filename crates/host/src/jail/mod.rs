//! The jail of a VM's process: what is left to whoever takes it over.
//!
//! # Scheme
//!
//! A guest that breaks out of its VM has the process, and may do what the process may do. So before the first guest
//! instruction the process gives away what it does not need any more:
//!
//! 1. While it has a single thread, and all files, directories and ports of the VM are open, it is [`shut`]. No program gives it
//!    new privileges; it has no capabilities; files other than in shared directories cannot be opened (Landlock); limits hold.
//!    All of this is a thread's, and inherited by the threads that it makes.
//! 2. Threads are made with [`crate::thread::spawn`], which brings each of them into its [`Role`]: a list of the system calls that
//!    it needs, and a filter (seccomp) against all others. No role may make threads or programs.
//! 3. The thread that shut the jail makes all others and enters a role last.
//! 4. Whoever lets the guest run waits for [`settled`] before.
//!
//! A call that a role has no right to ends the process with one sentence ([`refusal`]).
//!
//! # Invariants
//!
//! Once [`settled`] has returned in a jail, every thread of the process has a filter, and no thread without one can come
//! into being: only a thread makes threads, and none of them may. A process that was never shut is as if there was no jail.
//!
//! Reasons are in `docs/design/0012-jail.md`.

mod capabilities;
mod filter;
mod landlock;
mod limits;
mod refusal;
mod roles;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub use landlock::abi as landlock_abi;
pub use roles::Role;

use crate::HostError;

/// A directory in which files will still be opened.
#[derive(Debug)]
pub struct Directory {
    /// It; with all that is below.
    pub descriptor: OwnedFd,
    /// What may be done there.
    pub access: Access,
}

/// What may be done in a directory and below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Files are opened to be read.
    Read,
    /// Files are made, changed and removed.
    Change,
    /// Nothing, but directories that are empty are removed.
    RemoveDirectories,
}

/// What the process will still need.
#[derive(Debug)]
pub struct Needs<'a> {
    /// Where it will open files for its guest.
    pub directories: &'a [Directory],
    /// Where it keeps files of its own.
    pub own: &'a [Directory],
    /// How much memory the guest has: a saved VM holds it once more.
    pub ram_bytes: u64,
    /// What is to be put right before the process ends because of a call that was refused. It must not wait for anything that the
    /// calling thread may hold.
    pub before_the_end: fn(),
}

/// How many threads are not in their roles yet; none if there is no jail.
static OUTSIDE: Mutex<Option<usize>> = Mutex::new(None);
/// [`OUTSIDE`] became 0.
static SETTLED: Condvar = Condvar::new();

fn outside() -> MutexGuard<'static, Option<usize>> {
    OUTSIDE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shuts the jail around the process. The calling thread, the only one, owes an [`enter`] when it has made all others.
///
/// # Errors
/// If there are other threads, or the kernel refuses something that a jail cannot be without.
pub fn shut(needs: &Needs<'_>) -> Result<(), HostError> {
    // Where there is no /proc there are no shared directories either, and the filters do not need it.
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        return Err(HostError::Crowded);
    }
    if !is_possible() {
        return Err(failed("filter system calls")(io::ErrorKind::Unsupported.into()));
    }
    // Libraries look up once where the kernel's own functions are.
    crate::time::monotonic_ns();
    refusal::report(needs.before_the_end)?;
    limits::apply(needs.ram_bytes).map_err(failed("set limits"))?;
    capabilities::drop_for_good(capabilities::needed(needs.directories))
        .map_err(failed("drop capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(|errno| failed("refuse new privileges")(errno.into()))?;
    landlock::restrict(needs.directories, needs.own).map_err(failed("restrict the opening of files"))?;
    *outside() = Some(1);
    Ok(())
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Jail { what, source }
}

/// Whether this kernel has what a jail cannot be without: filters of system calls that report what they refuse.
pub fn is_possible() -> bool {
    filter::is_available()
}

/// Whether this process is in a jail.
pub fn is_shut() -> bool {
    outside().is_some()
}

/// Announces a thread that will [`enter`] a role.
pub(crate) fn expect_one() {
    if let Some(count) = outside().as_mut() {
        *count += 1;
    }
}

/// One that was announced is in its role, or will never be.
pub(crate) fn one_less() {
    if let Some(count) = outside().as_mut() {
        *count = count.saturating_sub(1);
    }
    SETTLED.notify_all();
}

/// Brings the calling thread into its role, if there is a jail, for good. For the thread that shut it: others are made in theirs.
/// A thread that cannot be brought into its role ends the process.
pub fn enter(role: Role) {
    confine(role);
    one_less();
}

/// What [`enter`] does to the thread.
pub(crate) fn confine(role: Role) {
    if !is_shut() {
        return;
    }
    refusal::note(role);
    let confined = capabilities::keep_for(role).and_then(|()| filter::install(role));
    if let Err(error) = confined {
        refusal::give_up(role, &error);
    }
}

/// Waits until every thread that was announced is in its role; at once where there is no jail.
pub fn settled() {
    let waiting = |count: &mut Option<usize>| count.is_some_and(|count| count > 0);
    drop(SETTLED.wait_while(outside(), waiting).unwrap_or_else(PoisonError::into_inner));
}
