//! Memory for generated code.
//!
//! The same pages are mapped twice: readable and writable at one address, readable and executable at another. No
//! page is ever writable and executable through the same mapping (W^X), so a stray or hostile write through a pointer
//! to code faults, and the writable view's address is known to [`CodeMemory`] alone.
//!
//! Writing through one linear address what is executed through another counts as cross-modifying code (SDM vol. 3A,
//! 10.1.3): a serializing instruction has to stand between the write and the first execution. [`CodeMemory::write`]
//! ends with one, which covers the writing thread. Other threads learn of new code from the writer through some lock
//! or atomic; code they have never fetched before cannot be stale in their pipelines.

use crate::HostError;
use crate::mem::Mapping;

/// A fixed number of bytes that generated code lives in.
#[derive(Debug)]
pub struct CodeMemory {
    writable: Mapping,
    executable: Mapping,
}

impl CodeMemory {
    /// Makes room for `len` bytes of code (rounded up to whole pages). Pages cost nothing until written.
    ///
    /// # Errors
    /// If the host refuses the memory, or to execute from it.
    pub fn new(len: u64) -> Result<Self, HostError> {
        let [writable, executable] = Mapping::writable_and_executable(len)?;
        Ok(Self { writable, executable })
    }

    /// Writes `code` at `offset`, ready to be executed when the call returns.
    ///
    /// # Errors
    /// [`HostError::Range`] if it does not fit; nothing is written then.
    ///
    /// # Soundness
    /// Overwriting code that is being executed cannot break this function's own promises; it is the executor, who
    /// had to write `unsafe` to jump there, that answers for what the bytes do.
    pub fn write(&mut self, offset: usize, code: &[u8]) -> Result<(), HostError> {
        if offset.checked_add(code.len()).is_none_or(|end| end > self.len()) {
            return Err(HostError::Range { offset: offset as u64, len: code.len() as u64 });
        }
        // SAFETY: the destination lies inside the writable mapping, of which only this function knows the address,
        // and `&mut self` keeps other writers away; the source is a live slice and cannot overlap the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.as_ptr().add(offset), code.len());
        }
        serialize();
        Ok(())
    }

    /// Where the byte at `offset` is executed; the end of the memory for offsets beyond it. Valid while `self` lives.
    #[inline(always)]
    pub fn exec_ptr(&self, offset: usize) -> *const u8 {
        self.executable.as_ptr().wrapping_add(offset.min(self.len()))
    }

    /// The size in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.writable.len()
    }

    /// Code memory is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Executes a serializing instruction (SDM vol. 3A, 10.3): IRET, to the instruction after it. CPUID is the usual choice,
/// but a hypervisor below intercepts it, which costs up to tens of microseconds.
fn serialize() {
    // SAFETY: the frame that IRETQ pops holds the selectors, flags and stack pointer that are current anyway, so nothing
    // changes but the instruction pointer, to the label. The pushes lie below the stack pointer, which the compiler
    // keeps free of live data because `nostack` is not given.
    unsafe {
        core::arch::asm!(
            "mov {stack}, rsp",
            "mov {scratch:e}, ss",
            "push {scratch}",
            "push {stack}",
            "pushfq",
            "mov {scratch:e}, cs",
            "push {scratch}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "iretq",
            "2:",
            stack = out(reg) _,
            scratch = out(reg) _,
            options(preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls the code at `offset` as a function of one argument.
    fn call(code: &CodeMemory, offset: usize, argument: u64) -> u64 {
        // SAFETY: the tests below write a whole function of this signature at `offset` before they call it.
        let f: extern "sysv64" fn(u64) -> u64 = unsafe { std::mem::transmute(code.exec_ptr(offset)) };
        f(argument)
    }

    #[test]
    fn written_code_runs_and_can_be_replaced() {
        let mut code = CodeMemory::new(8192).unwrap();
        // lea rax, [rdi + 1]; ret
        code.write(4096, &[0x48, 0x8d, 0x47, 0x01, 0xc3]).unwrap();
        assert_eq!(call(&code, 4096, 41), 42);
        for step in 0..100u8 {
            code.write(4099, &[step]).unwrap();
            assert_eq!(call(&code, 4096, 1000), 1000 + u64::from(step));
        }
    }

    #[test]
    fn no_mapping_is_writable_and_executable() {
        let code = CodeMemory::new(4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for (mapping, rights) in [(&code.writable, " rw-s "), (&code.executable, " r-xs ")] {
            let start = format!("{:x}-", mapping.as_ptr() as usize);
            let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
            assert!(line.contains(rights), "{line}");
            assert!(line.contains("/dev/zero"), "what perf takes for memory without a file: {line}");
        }
    }

    #[test]
    fn writes_outside_are_refused() {
        let mut code = CodeMemory::new(4096).unwrap();
        for (offset, len) in [(4096, 1), (4090, 7), (usize::MAX, 2)] {
            assert!(matches!(code.write(offset, &vec![0x90; len]), Err(HostError::Range { .. })));
        }
        assert_eq!(code.exec_ptr(usize::MAX), code.exec_ptr(4096));
    }
}
