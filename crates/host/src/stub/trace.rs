//! ptrace(2), as far as a stub needs it: a child that is stopped, its registers, and how it goes on.

use std::io;
use std::mem::MaybeUninit;

use super::{BREAKPOINTS, Registers, Stop};

/// DR7's number.
const CONTROL: usize = 7;

/// The note that holds vector and x87 registers in the layout of XSAVE (NT_X86_XSTATE, linux/elf.h).
const NT_X86_XSTATE: usize = 0x202;

/// A child that one thread, and no other, traces: the one that has made it.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) pid: libc::pid_t,
    tracer: rustix::thread::Pid,
}

impl Traced {
    /// A child of the calling thread's that has asked to be traced.
    pub(super) fn new(pid: libc::pid_t) -> Self {
        Self { pid, tracer: rustix::thread::gettid() }
    }

    /// Whether the calling thread traces it.
    pub(super) fn is_ours(&self) -> bool {
        self.tracer == rustix::thread::gettid()
    }

    fn request(&self, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
        // SAFETY: the requests here read or write at most what `data` points to, which their callers vouch for; the child's memory
        // is not ours.
        let result = unsafe { libc::ptrace(request, self.pid, address, data) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Before anything else: the child dies with the calling thread.
    pub(super) fn prepare(&self) -> io::Result<()> {
        self.request(libc::PTRACE_SETOPTIONS, 0, libc::PTRACE_O_EXITKILL.cast_unsigned() as usize)
    }

    pub(super) fn registers(&self) -> io::Result<libc::user_regs_struct> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
        self.request(libc::PTRACE_GETREGS, 0, registers.as_mut_ptr() as usize)?;
        // SAFETY: the request has filled it in.
        Ok(unsafe { registers.assume_init() })
    }

    pub(super) fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        self.request(libc::PTRACE_SETREGS, 0, std::ptr::from_ref(registers) as usize)
    }

    /// Reads vector and x87 registers into `image`; how long they are.
    pub(super) fn extended(&self, image: &mut [u8]) -> io::Result<usize> {
        let mut vector = libc::iovec { iov_base: image.as_mut_ptr().cast(), iov_len: image.len() };
        self.request(libc::PTRACE_GETREGSET, NT_X86_XSTATE, &raw mut vector as usize)?;
        Ok(vector.iov_len)
    }

    pub(super) fn set_extended(&self, image: &mut [u8]) -> io::Result<()> {
        let vector = libc::iovec { iov_base: image.as_mut_ptr().cast(), iov_len: image.len() };
        self.request(libc::PTRACE_SETREGSET, NT_X86_XSTATE, &raw const vector as usize)
    }

    /// The child stops before instructions at these addresses; at most four (SDM vol. 3B, 18.2).
    pub(super) fn set_breakpoints(&self, addresses: &[Option<u64>; BREAKPOINTS]) -> io::Result<()> {
        let place = |number: usize| std::mem::offset_of!(libc::user, u_debugreg) + number * 8;
        // None is on while its address changes.
        self.request(libc::PTRACE_POKEUSER, place(CONTROL), 0)?;
        let mut control = 0;
        for (number, address) in addresses.iter().enumerate() {
            if let Some(address) = address {
                self.request(libc::PTRACE_POKEUSER, place(number), x86::bits::index(*address))?;
                // The breakpoint's local enable bit; its kind and length are zero for instructions.
                control |= 1 << (2 * number);
            }
        }
        self.request(libc::PTRACE_POKEUSER, place(CONTROL), control)
    }

    /// Lets the child go on, without the signal that it was stopped by, and waits until it is stopped again; by which signal.
    pub(super) fn go_on(&self) -> io::Result<libc::c_int> {
        self.request(libc::PTRACE_CONT, 0, 0)?;
        self.wait()
    }

    /// Waits until the child is stopped; by which signal.
    pub(super) fn wait(&self) -> io::Result<libc::c_int> {
        let mut status = 0;
        // SAFETY: the status is ours.
        while unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if libc::WIFSTOPPED(status) {
            Ok(libc::WSTOPSIG(status))
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process has ended"))
        }
    }

    /// What a stop by a signal means, registers as they were then.
    pub(super) fn meaning(&self, signal: libc::c_int, registers: &Registers) -> io::Result<Stop> {
        Ok(match signal {
            libc::SIGSEGV => self.fault()?,
            libc::SIGTRAP => match self.signal()?.si_code {
                libc::SI_KERNEL => Stop::Breakpoint,
                libc::TRAP_HWBKPT => Stop::Reached,
                _ if registers.rflags & x86::rflags::TF != 0 => Stop::Step,
                _ => Stop::Debug,
            },
            libc::SIGSYS => self.refused_call(registers.rip)?,
            libc::SIGIO => Stop::Called,
            _ => Stop::Other,
        })
    }

    /// What a SIGSEGV was for.
    fn fault(&self) -> io::Result<Stop> {
        let info = self.signal()?;
        // SEGV_MAPERR and SEGV_ACCERR (sigaction(2)); what the kernel sends for other faults has no address.
        if !matches!(info.si_code, 1 | 2) {
            return Ok(Stop::Other);
        }
        // SAFETY: a SIGSEGV with one of these codes has an address.
        Ok(Stop::PageFault(unsafe { info.si_addr() } as u64))
    }

    /// What a SIGSYS was for. The kernel makes calls, too, for who jumps to its vsyscall page.
    fn refused_call(&self, rip: u64) -> io::Result<Stop> {
        /// SYS_SECCOMP, and where siginfo_t has the address of the call (sigaction(2), asm-generic/siginfo.h).
        const BY_FILTER: libc::c_int = 1;
        const ADDRESS_AT: usize = 16;
        let info = self.signal()?;
        if info.si_code != BY_FILTER {
            return Ok(Stop::Other);
        }
        // SAFETY: the structure has 128 bytes, and this field in it for signals of this kind.
        let address = unsafe { (&raw const info).byte_add(ADDRESS_AT).cast::<u64>().read() };
        Ok(if address == rip { Stop::SystemCall } else { Stop::Vsyscall(address) })
    }

    /// What is known of the signal that has stopped it.
    fn signal(&self) -> io::Result<libc::siginfo_t> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        self.request(libc::PTRACE_GETSIGINFO, 0, info.as_mut_ptr() as usize)?;
        // SAFETY: the request has filled it in, and zeros are valid besides.
        Ok(unsafe { info.assume_init() })
    }

    /// Ends the child, which is stopped. On another thread than the one that traces it nothing can be done, and need not: it ends with
    /// that.
    pub(super) fn end(&self) {
        if self.is_ours() && self.request(libc::PTRACE_KILL, 0, 0).is_ok() {
            let mut status = 0;
            // SAFETY: the status is ours.
            unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        }
    }
}
