//! Signals on threads that run generated code.
//!
//! Translated guest code keeps the stack pointer on a shadow return stack: small, and with entries just below the
//! pointer that it will use again. A signal handler must never run there. So a thread that runs such code enters a
//! *shelter*: signals from elsewhere are blocked, and other threads of the process take them; signals that the thread
//! raises itself by what it executes cannot be blocked, and their handlers, if installed with SA_ONSTACK, run on a
//! stack that the shelter provides. Both handlers of this process are: the one of [`crate::signal`] and the Rust
//! runtime's for stack overflows.
//!
//! What glibc keeps for itself (cancelling threads, changing the process's user) stays unblocked; this program does
//! neither while guests run.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

use rustix::mm::{MprotectFlags, mprotect};
use x86::PAGE_SIZE;

use crate::{HostError, Mapping};

/// The signals that an instruction raises (signal(7)).
const RAISED_BY_CODE: [libc::c_int; 6] =
    [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];
/// What handlers may use of their stack, beyond what the kernel puts there.
const HANDLER_BYTES: usize = 64 << 10;
/// Below the stack: whoever needs more meets it.
const GUARD_BYTES: usize = 4096;
/// Where the kernel says how large the frame of a signal is on this processor (getauxval(3); Linux 5.14 and later).
const AT_MINSIGSTKSZ: libc::c_ulong = 51;

/// Keeps the calling thread in the shelter; dropped on the same thread, it lets everything be as it was before.
#[derive(Debug)]
#[must_use = "the thread leaves the shelter when this is dropped"]
pub struct Shelter {
    /// In use by the kernel.
    _stack: Stack,
    previous_stack: libc::stack_t,
    previous_mask: libc::sigset_t,
    /// Masks and stacks are a thread's: this stays on it.
    _thread: PhantomData<*const ()>,
}

impl Shelter {
    /// Brings the calling thread into the shelter.
    ///
    /// # Errors
    /// If the host refuses the stack.
    pub fn enter() -> Result<Self, HostError> {
        let stack = Stack::new()?;
        let ours = libc::stack_t { ss_sp: stack.bottom(), ss_flags: 0, ss_size: stack.size() };
        let mut previous_stack = libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the stack is mapped, ours alone, and outlives its use: `drop` puts the previous one back before it
        // is unmapped.
        if unsafe { libc::sigaltstack(&raw const ours, &raw mut previous_stack) } != 0 {
            let source = std::io::Error::last_os_error();
            return Err(HostError::Map { len: stack.size() as u64, source });
        }
        let previous_mask = block(&from_elsewhere());
        Ok(Self { _stack: stack, previous_stack, previous_mask, _thread: PhantomData })
    }
}

impl Drop for Shelter {
    fn drop(&mut self) {
        // SAFETY: both are what the kernel itself gave us on this thread. It fails only while a handler runs on our stack,
        // and then this is not the code that runs.
        unsafe {
            libc::sigaltstack(&raw const self.previous_stack, null_mut());
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.previous_mask, null_mut());
        }
    }
}

/// All signals but those that code raises.
fn from_elsewhere() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initializes the set, which has room for it; the signals are valid numbers.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in RAISED_BY_CODE {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Blocks these too; what was blocked before.
fn block(set: &libc::sigset_t) -> libc::sigset_t {
    let mut previous = MaybeUninit::zeroed();
    // SAFETY: both sets live; the call cannot fail with a valid operation (pthread_sigmask(3)). All zeros is an empty set.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, set, previous.as_mut_ptr());
        previous.assume_init()
    }
}

/// Memory for a stack, with a page below it that cannot be touched.
#[derive(Debug)]
struct Stack(Mapping);

impl Stack {
    fn new() -> Result<Self, HostError> {
        // SAFETY: reads a constant of the process; 0 if the kernel does not say.
        let frame = unsafe { libc::getauxval(AT_MINSIGSTKSZ) };
        let frame = usize::try_from(frame).unwrap_or(0).max(libc::MINSIGSTKSZ);
        let len = (GUARD_BYTES + frame + HANDLER_BYTES) as u64;
        let memory = Mapping::zeros(len.next_multiple_of(PAGE_SIZE))?;
        // SAFETY: the first page of our own mapping, which nobody uses yet.
        unsafe { mprotect(memory.as_ptr().cast(), GUARD_BYTES, MprotectFlags::empty()) }
            .map_err(|errno| HostError::Map { len, source: errno.into() })?;
        Ok(Self(memory))
    }

    fn bottom(&self) -> *mut libc::c_void {
        self.0.as_ptr().wrapping_add(GUARD_BYTES).cast()
    }

    fn size(&self) -> usize {
        self.0.len() - GUARD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CodeMemory;
    use crate::signal::register_fpe_fixup;

    /// The calling thread's blocked signals, signal 1 in bit 0.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn all_signals_from_elsewhere_are_blocked_for_as_long_as_it_lasts() {
        let before = blocked();
        let shelter = Shelter::enter().unwrap();
        // Of all 64, KILL and STOP cannot be blocked, and the first two real-time signals are glibc's.
        let open = [9, 19, 32, 33].into_iter().chain(RAISED_BY_CODE);
        assert_eq!(blocked() | before, !open.map(|signal| 1 << (signal - 1)).sum::<u64>() | before);
        drop(shelter);
        assert_eq!(blocked(), before);
    }

    /// A division by zero with the stack pointer in the middle of nowhere, as translated code might have it.
    #[test]
    fn a_fault_is_handled_though_the_stack_pointer_is_no_stack_s() {
        let code = {
            let mut code = CodeMemory::new(4096).unwrap();
            // mov r10, rsp; mov esp, 0x1000; xor ecx, ecx; div ecx
            let faults = [0x49, 0x89, 0xe2, 0xbc, 0, 0x10, 0, 0, 0x31, 0xc9, 0xf7, 0xf1];
            code.write(0, &faults).unwrap();
            // The fix-up: mov rsp, r10; mov eax, 0xfeed; ret
            code.write(16, &[0x4c, 0x89, 0xd4, 0xb8, 0xed, 0xfe, 0, 0, 0xc3]).unwrap();
            code
        };
        let start = code.exec_ptr(0) as usize;
        let _shelter = Shelter::enter().unwrap();
        // SAFETY: the fix-up restores the stack pointer and returns.
        let guard = unsafe { register_fpe_fixup(start..start + 16, start + 16) }.unwrap();
        // SAFETY: the code above is a function that changes only registers that a C function may change.
        let f: extern "sysv64" fn() -> u32 = unsafe { std::mem::transmute(code.exec_ptr(0)) };
        assert_eq!(f(), 0xfeed);
        drop(guard);
    }
}
