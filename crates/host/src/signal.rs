//! Faults of generated code that have a fix-up.
//!
//! The processor is used as an arithmetic unit: a thunk executes one guest instruction on the guest's operands, and
//! that instruction may raise #DE, #MF or #XM, which Linux delivers as SIGFPE. The handler here looks the faulting
//! instruction pointer up in a table of code ranges; if one covers it, execution resumes at that range's fix-up address
//! with every other register as the fault left it. Any other SIGFPE gets what it would have got without us.
//!
//! # Why the handler is safe in a signal
//! It reads a static table of atomics and writes the saved instruction pointer: no lock, no allocation, no library call
//! except `sigaction` and `raise` on the way out, both async-signal-safe (signal-safety(7)).
//!
//! # Why a reader never sees half a slot
//! Each slot carries a sequence number, odd while the slot is being changed (a seqlock). A reader skips a slot whose
//! number is odd or changes under it. It may skip: the slot that covers the code now executing is not being changed,
//! because whoever executes that code holds its [`FixupGuard`] (the promise of [`register_fpe_fixup`]).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::HostError;

/// How many ranges can be registered at once: one per vCPU, each having its own thunks.
const SLOTS: usize = 512;

struct Slot {
    sequence: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    fixup: AtomicUsize,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            fixup: AtomicUsize::new(0),
        }
    }

    /// Replaces the contents; the caller holds [`WRITERS`].
    fn set(&self, range: &Range<usize>, fixup: usize) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.fixup.store(fixup, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The fix-up for `ip`, if this slot covers it.
    fn find(&self, ip: usize) -> Option<usize> {
        let before = self.sequence.load(Ordering::Acquire);
        let range = self.start.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed);
        let fixup = self.fixup.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let whole = before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before;
        (whole && range.contains(&ip)).then_some(fixup)
    }

    /// Whether the slot holds no range; the caller holds [`WRITERS`].
    fn is_free(&self) -> bool {
        self.end.load(Ordering::Relaxed) == 0
    }
}

static TABLE: [Slot; SLOTS] = [const { Slot::empty() }; SLOTS];
/// Held by whoever changes [`TABLE`].
static WRITERS: Mutex<()> = Mutex::new(());
/// What was to happen at SIGFPE before we came.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps a range registered.
#[derive(Debug)]
#[must_use = "the range is forgotten when the guard is dropped"]
pub struct FixupGuard {
    slot: usize,
}

impl Drop for FixupGuard {
    fn drop(&mut self) {
        let _writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = TABLE.get(self.slot) {
            slot.set(&(0..0), 0);
        }
    }
}

/// Makes a SIGFPE raised by an instruction in `range` continue at `fixup` instead of ending the process.
///
/// # Errors
/// If the table is full or the handler cannot be installed.
///
/// # Safety
/// Execution that faults anywhere in `range` is redirected to `fixup` with all other registers unchanged: the code there
/// must be right for that. No code in `range` may be executing when the guard is dropped.
pub unsafe fn register_fpe_fixup(range: Range<usize>, fixup: usize) -> Result<FixupGuard, HostError> {
    let _writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    install()?;
    let slot = TABLE.iter().position(Slot::is_free).ok_or(HostError::TooManyFixups)?;
    TABLE[slot].set(&range, fixup);
    Ok(FixupGuard { slot })
}

/// Installs the handler once per process; the caller holds [`WRITERS`].
fn install() -> Result<(), HostError> {
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    let failed = || HostError::Signal { signal: libc::SIGFPE, source: std::io::Error::last_os_error() };
    // SAFETY: `sigaction` is plain data for which all zeros is a value: default action, no flags, empty mask.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only reads the old one into `previous`, which is live.
    if unsafe { libc::sigaction(libc::SIGFPE, std::ptr::null(), &raw mut previous) } != 0 {
        return Err(failed());
    }
    // The handler needs it as soon as it is installed.
    PREVIOUS.get_or_init(|| previous);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigfpe as *const () as usize;
    // ONSTACK: a thread that gave itself an alternate stack wants it used.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, its handler has the signature that SA_SIGINFO asks for and is
    // async-signal-safe (top of the file).
    if unsafe { libc::sigaction(libc::SIGFPE, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(failed());
    }
    Ok(())
}

extern "C" fn on_sigfpe(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext to an SA_SIGINFO handler, exclusive to it until it
    // returns (sigaction(2)).
    let (code, ip) = unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        ((*info).si_code, &mut context.uc_mcontext.gregs[libc::REG_RIP as usize])
    };
    // Positive codes are faults of this very instruction; zero and below were sent by a process (sigaction(2)).
    let fixup = TABLE.iter().find_map(|slot| slot.find(ip.cast_unsigned() as usize));
    match fixup {
        Some(fixup) if code > 0 => *ip = (fixup as u64).cast_signed(),
        _ => {
            // As if we were not here: a fault happens again on return, a sent signal is sent again.
            // SAFETY: both calls are async-signal-safe; the action is what the kernel itself gave us.
            unsafe {
                let default = std::mem::zeroed();
                libc::sigaction(signal, PREVIOUS.get().unwrap_or(&default), std::ptr::null_mut());
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CodeMemory;

    /// `div edi` with EDX:EAX = 1 at offset 0, the fix-up at offset 16.
    fn divider() -> CodeMemory {
        let mut code = CodeMemory::new(4096).unwrap();
        // mov eax, 1; xor edx, edx; div edi; ret
        code.write(0, &[0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0xf7, 0xf7, 0xc3]).unwrap();
        // mov eax, 0xdead; ret
        code.write(16, &[0xb8, 0xad, 0xde, 0, 0, 0xc3]).unwrap();
        code
    }

    fn divide(code: &CodeMemory, by: u32) -> u32 {
        // SAFETY: `divider` wrote a whole function of this signature.
        let f: extern "sysv64" fn(u32) -> u32 = unsafe { std::mem::transmute(code.exec_ptr(0)) };
        f(by)
    }

    #[test]
    fn a_division_by_zero_continues_at_the_fixup() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..50 {
                        let code = divider();
                        let start = code.exec_ptr(0) as usize;
                        // SAFETY: the fix-up returns with an unchanged stack, as the faulting function would.
                        let guard =
                            unsafe { register_fpe_fixup(start..start + 16, code.exec_ptr(16) as usize) }
                                .unwrap();
                        assert_eq!((divide(&code, 1), divide(&code, 0)), (1, 0xdead));
                        drop(guard);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn other_faults_still_end_the_process() {
        let code = divider();
        // SAFETY: the range is empty of code that is ever executed.
        let _guard = unsafe { register_fpe_fixup(1..2, 1) }.unwrap();
        // SAFETY: the child only executes generated code and dies of it.
        let child = unsafe { libc::fork() };
        if child == 0 {
            divide(&code, 0);
            // SAFETY: ends the child at once; reached only if the fault was swallowed.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just forked.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGFPE, "{status:#x}");
    }
}
