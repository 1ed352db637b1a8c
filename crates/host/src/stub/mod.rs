//! Stub processes: where code of a guest's programs runs as it is.
//!
//! # Scheme
//!
//! A [`Stub`] is a child process with nothing in its address space but a page of its own ([`image`]) and pages of one file of the
//! parent's, which the parent has had mapped there. The parent's thread traces it ([`trace`]): it writes the child's registers, lets it
//! run, and gets it back, stopped, with the registers as they are, as soon as anything happens that is more than computing: a system call,
//! which is not made; a fault; a call by another thread ([`Caller`]).
//!
//! The parent changes the child's address space by having it execute the calls of a script, before it goes on with the guest's code. A filter
//! lets it do no more than map and unmap, and that only with a secret in registers that the guest's code never sees.
//!
//! # Limits
//!
//! The thread that made a stub is the only one that can use it. It dies with this thread, whatever becomes of that. The stub's
//! own pages, five, lie at an address of chance ([`Stub::own_pages`]); there the parent's pages cannot be.

mod image;
mod place;
pub mod time;
mod trace;

use std::ffi::{CStr, c_char};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use x86::{PAGE_SIZE, rflags};

use self::image::{Call, ENTER, FRAME, MOST, SCRIPT, STOP, Secret};
use self::place::Place;
use self::trace::Traced;
use crate::{HostError, Mapping, Memfd, Protection};

/// Nanoseconds that a call of a script takes, roughly.
const CALL: u64 = 1500;
/// Breakpoints that there can be.
pub const BREAKPOINTS: usize = 4;
/// Bytes of vector and x87 registers that there may be.
const MOST_EXTENDED: usize = 16 << 10;

/// Registers, but for those of the vector and x87 units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General-purpose registers, by number.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS. Those that can be set are the status flags, DF, AC, TF, NT, and ID unless TF or NT is set, where it stays as it was; others
    /// are as Linux has them for programs.
    pub rflags: u64,
    /// The base of FS; below [`Stub::END`].
    pub fs_base: u64,
    /// The base of GS; below [`Stub::END`].
    pub gs_base: u64,
    /// Selectors, in the order ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
}

/// Why a stub has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SYSCALL or INT 0x80, which has been executed and has done nothing: RIP is behind it, and RAX what it was.
    SystemCall,
    /// The page at this address is not mapped so that the instruction could be executed.
    PageFault(u64),
    /// INT3, or INT with that number; RIP is behind it.
    Breakpoint,
    /// INT1; whether RIP is behind it depends on the processor.
    Debug,
    /// The instruction at RIP is one of those that [`Stub::set_breakpoints`] was told of.
    Reached,
    /// An instruction that was executed with RFLAGS.TF set.
    Step,
    /// A call of the page of system calls that Linux has for old programs, at this address: nothing was done, and the return address has
    /// been popped.
    Vsyscall(u64),
    /// Somebody has called.
    Called,
    /// The instruction at RIP raises another exception; or a signal has come from elsewhere.
    Other,
}

/// What may be done with pages that are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// They are written.
    pub write: bool,
    /// They are executed.
    pub execute: bool,
}

/// A process that runs code of a guest's programs.
#[derive(Debug)]
pub struct Stub {
    child: Traced,
    base: u64,
    memory: RawFd,
    script: Mapping,
    calls: Vec<Call>,
    secret: Secret,
    /// Breakpoints that are wanted, and those that are set.
    breakpoints: [[Option<u64>; BREAKPOINTS]; 2],
    has_breakpoints: bool,
    bell: Arc<Bell>,
    listener: OwnedFd,
    /// RFLAGS.ID as the process has it: its parent cannot set it (Linux, `FLAG_MASK`).
    id: u64,
    /// Registers that are never changed, from the beginning of the process.
    initial: libc::user_regs_struct,
    extended: Vec<u8>,
    place: Place,
    /// For how long it has run, in nanoseconds, without what it takes to let it run and to have it back.
    ran: u64,
    /// What that takes: the least that a turn has taken lately.
    to_and_fro: u64,
    is_lost: bool,
}

/// How other threads reach a stub's parent that waits for it.
#[derive(Debug)]
struct Bell {
    /// The child runs, or is about to.
    runs: AtomicBool,
    /// What is written here makes the kernel send the child a signal.
    line: OwnedFd,
}

/// Calls a stub that runs. Cloned freely; usable from any thread.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Bell>);

impl Caller {
    /// Makes the stub stop with [`Stop::Called`] if it runs, or is about to.
    pub fn call(&self) {
        if self.0.runs.load(Ordering::SeqCst) {
            // A line that is full has been heard of already.
            let _ = rustix::io::write(&self.0.line, &[0]);
        }
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Stub { what, source }
}

impl Stub {
    /// What is mapped lies below.
    pub const END: u64 = image::TASK_END;

    /// A process that pages of `memory` can be mapped in. The descriptor has to stay open.
    ///
    /// # Errors
    /// If the host has no process for us, or refuses to trace it or to filter its calls.
    pub fn new(memory: BorrowedFd<'_>) -> Result<Self, HostError> {
        let no_chance = || failed("be hidden")(io::Error::other("the host has no random numbers"));
        let [place, secret] = [(); 2].map(|()| crate::random::u64());
        let base = (place.ok_or_else(no_chance)? % 0x4000_0000 + 0x1000_0000) * 16 * PAGE_SIZE;
        let secret = Secret::new(secret.ok_or_else(no_chance)?);
        let script_file = Memfd::new("umbra-script", SCRIPT)?;
        let script = Mapping::new(&script_file, 0, SCRIPT, Protection::ReadWrite)?;
        let program = program(base, script_file.as_fd().as_raw_fd()).map_err(failed("be made"))?;
        let keep = [memory.as_raw_fd(), script_file.as_fd().as_raw_fd()];
        quiet_stops();
        let (listener, line) = pipe().map_err(failed("be called"))?;
        // SAFETY: the child calls functions only that may be called between fork(2) and execve(2) (signal-safety(7)).
        let child = match unsafe { libc::fork() } {
            -1 => return Err(failed("be made")(io::Error::last_os_error())),
            0 => become_stub(program.as_raw_fd(), keep),
            child => Traced::new(child),
        };
        let bell = Arc::new(Bell { runs: AtomicBool::new(false), line });
        let place = Place::new(child.pid);
        let mut stub = Self {
            // SAFETY: plain numbers, of which zero is one.
            initial: unsafe { std::mem::zeroed() },
            child,
            base,
            memory: memory.as_raw_fd(),
            script,
            calls: Vec::new(),
            secret,
            breakpoints: [[None; BREAKPOINTS]; 2],
            has_breakpoints: false,
            bell,
            listener,
            id: 0,
            extended: vec![0; MOST_EXTENDED],
            place,
            ran: 0,
            to_and_fro: u64::MAX,
            is_lost: false,
        };
        time::begin(stub.child.pid);
        stub.listen().map_err(failed("be called"))?;
        stub.begin().map_err(failed("be traced"))?;
        stub.write_words(0, &image::filter_program(base, secret));
        stub.obey(stub.base + image::FIRST_SCRIPT_AT, [0; 2])?;
        // Nobody shall read the secret there.
        stub.write_words(0, &[0; FRAME as usize / 8]);
        // Some hosts have none, or have given them all away.
        let some = [Some(base); BREAKPOINTS];
        stub.has_breakpoints =
            [some, [None; BREAKPOINTS]].iter().all(|which| stub.child.set_breakpoints(which).is_ok());
        Ok(stub)
    }

    /// What is written to the line sends the child SIGIO.
    fn listen(&self) -> io::Result<()> {
        for (command, value) in
            [(libc::F_SETOWN, self.child.pid), (libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)]
        {
            // SAFETY: the descriptor is ours, and the commands take a number.
            if unsafe { libc::fcntl(self.listener.as_raw_fd(), command, value) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Waits until the program has been started, before its first instruction.
    fn begin(&mut self) -> io::Result<()> {
        if self.child.wait()? != libc::SIGTRAP {
            return Err(io::Error::other("it did not start"));
        }
        self.child.prepare()?;
        self.initial = self.child.registers()?;
        let len = self.child.extended(&mut self.extended)?;
        self.extended.truncate(len);
        Ok(())
    }

    /// How other threads call it.
    pub fn caller(&self) -> Caller {
        Caller(self.bell.clone())
    }

    /// The selectors that programs have, in the order of [`Registers::selectors`].
    pub fn selectors(&self) -> [u16; 6] {
        from_host(&self.initial).selectors
    }

    /// The addresses of its own pages.
    pub fn own_pages(&self) -> Range<u64> {
        self.base..self.base + PAGE_SIZE + SCRIPT
    }

    /// From the next turn on `len` bytes of the file, from `offset` on, are at `address`, whatever was there before. All three are whole
    /// pages, and the range does not meet [`Stub::own_pages`]. If they are needed `soon` the kernel looks for the pages at once.
    pub fn map(&mut self, address: u64, len: u64, offset: u64, rights: Rights, soon: bool) {
        let mut protection = libc::PROT_READ;
        if rights.write {
            protection |= libc::PROT_WRITE;
        }
        if rights.execute {
            protection |= libc::PROT_EXEC;
        }
        let mut flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        if soon {
            flags |= libc::MAP_POPULATE;
        }
        let [protection, flags, memory] =
            [protection, flags, self.memory].map(|word| u64::from(word.cast_unsigned()));
        let call = libc::SYS_mmap.cast_unsigned();
        // What goes on where the last one ended is part of it.
        if let Some([last, start, so_far, rest @ ..]) = self.calls.last_mut()
            && (*last, *start + *so_far) == (call, address)
            && *rest == [protection, flags, memory, offset.wrapping_sub(*so_far)]
        {
            *so_far += len;
            return;
        }
        self.calls.push([call, address, len, protection, flags, memory, offset]);
    }

    /// From the next turn on nothing is at these addresses, which are whole pages and do not meet [`Stub::own_pages`].
    pub fn unmap(&mut self, address: u64, len: u64) {
        self.calls.push([libc::SYS_munmap.cast_unsigned(), address, len, 0, 0, 0, 0]);
    }

    /// From the next turn on nothing is mapped.
    pub fn unmap_all(&mut self) {
        self.calls.clear();
        let Range { start, end } = self.own_pages();
        self.unmap(0, start);
        self.unmap(end, Self::END - end);
    }

    /// Whether it can be stopped before instructions.
    pub fn has_breakpoints(&self) -> bool {
        self.has_breakpoints
    }

    /// From the next turn on it stops before the instructions at these addresses, and no others.
    pub fn set_breakpoints(&mut self, addresses: [Option<u64>; BREAKPOINTS]) {
        self.breakpoints[0] = addresses;
    }

    /// Writes into the script's pages, which have room for it.
    fn write_words(&self, at: u64, words: &[u64]) {
        let bytes = size_of_val(words);
        assert!(bytes as u64 <= SCRIPT - at, "a script is longer than its pages");
        // SAFETY: it lies in the mapping, as was checked; the child only reads it, and is stopped.
        unsafe {
            let place = self.script.as_ptr().add(x86::bits::index(at));
            std::ptr::copy_nonoverlapping(words.as_ptr().cast(), place, bytes);
        }
    }

    /// Writes the calls that are due, at most [`MOST`], and how the script ends.
    fn write_script(&self, end: u64) {
        self.write_words(FRAME, self.calls.as_flattened());
        self.write_words(FRAME + size_of_val(self.calls.as_slice()) as u64, &[end]);
    }

    /// Has the child make the calls that are due, at most [`MOST`], and stop.
    fn make_calls(&mut self) -> Result<(), HostError> {
        self.write_script(STOP);
        self.obey(self.script_address(), self.secret.words())
    }

    fn script_address(&self) -> u64 {
        self.base + PAGE_SIZE + FRAME
    }

    /// The registers with which the loop obeys the script at this address.
    fn looping(&self, script: u64, [r12, r13]: [u64; 2]) -> libc::user_regs_struct {
        libc::user_regs_struct {
            rip: self.base + image::LOOP_AT,
            rbx: script,
            r12,
            r13,
            orig_rax: u64::MAX,
            ..self.initial
        }
    }

    /// Has the child make the calls of the script at this address, and stop.
    fn obey(&mut self, script: u64, secret: [u64; 2]) -> Result<(), HostError> {
        let start = self.looping(script, secret);
        self.child.set_registers(&start).map_err(failed("be told what to do"))?;
        // It may have been called meanwhile, or by who thought that it ran.
        let signal = loop {
            let signal = self.child.go_on().map_err(failed("go on"))?;
            if is_fault(signal) {
                break signal;
            }
        };
        let result = self.child.registers().map_err(failed("be asked"))?.rax;
        if signal == libc::SIGTRAP && result == STOP { Ok(()) } else { Err(refused(result)) }
    }

    /// Vector and x87 registers, in the standard form of XSAVE (SDM vol. 1, 13.4), with all components that the host has.
    pub fn extended(&mut self) -> &mut [u8] {
        &mut self.extended
    }

    /// The process's vector and x87 registers become [`Stub::extended`].
    ///
    /// # Errors
    /// If the host refuses, as it does for reserved bits that are set.
    pub fn load_extended(&mut self) -> Result<(), HostError> {
        self.child.set_extended(&mut self.extended).map_err(failed("take registers"))
    }

    /// [`Stub::extended`] becomes what the process's registers hold.
    ///
    /// # Errors
    /// If the process has been ended by somebody else.
    pub fn save_extended(&mut self) -> Result<(), HostError> {
        self.child.extended(&mut self.extended).map(drop).map_err(failed("give registers"))
    }

    /// Gives the process its registers and lets it run, from `look` on so that calls are heard, until it stops; why, and with which
    /// registers. It does not run if `look` says so.
    ///
    /// # Errors
    /// If the host refuses what the registers hold, or the process has been ended by somebody else.
    pub fn run(&mut self, registers: &mut Registers, look: impl FnOnce() -> bool) -> Result<Stop, HostError> {
        let loops = self.prepare(registers)?;
        self.bell.runs.store(true, Ordering::SeqCst);
        if look() {
            self.bell.runs.store(false, Ordering::SeqCst);
            return Ok(Stop::Called);
        }
        let begin = crate::time::monotonic_ns();
        self.is_lost = true;
        let signal = self.child.go_on().map_err(failed("go on"));
        self.count(crate::time::monotonic_ns().saturating_sub(begin));
        self.bell.runs.store(false, Ordering::SeqCst);
        let signal = signal?;
        let host = self.child.registers().map_err(failed("give registers"))?;
        self.id = host.eflags & rflags::ID;
        if loops && self.is_in_loop(signal, &host) {
            self.is_lost = false;
            return self.stopped_early(signal, &host);
        }
        self.calls.clear();
        *registers = from_host(&host);
        let stop = self.child.meaning(signal, registers).map_err(failed("say why it stopped"))?;
        self.is_lost = false;
        if stop == Stop::Called {
            self.hear();
        }
        Ok(stop)
    }

    /// Gives the process the guest's registers; or, if calls are due or RFLAGS.ID is another, those with which it makes the calls and then
    /// gets the guest's: then this is true.
    fn prepare(&mut self, registers: &Registers) -> Result<bool, HostError> {
        let [wanted, set] = &mut self.breakpoints;
        if wanted != set {
            self.child.set_breakpoints(wanted).map_err(failed("watch its code"))?;
            *set = *wanted;
        }
        // Neither shall do anything to the loop.
        let room = if registers.rflags & (rflags::TF | rflags::NT) == 0 { MOST } else { 0 };
        while self.calls.len() > room {
            let rest = self.calls.split_off(self.calls.len().min(MOST));
            self.make_calls()?;
            self.calls = rest;
        }
        let guest = self.to_host(registers);
        let loops = !self.calls.is_empty() || room != 0 && guest.eflags & rflags::ID != self.id;
        let start = if loops {
            self.write_words(0, &image::frame(&registers.gpr, registers.rip, guest.eflags));
            self.write_script(ENTER);
            let libc::user_regs_struct { fs_base, gs_base, ds, es, fs, gs, .. } = guest;
            let start = self.looping(self.script_address(), self.secret.words());
            libc::user_regs_struct { fs_base, gs_base, ds, es, fs, gs, ..start }
        } else {
            guest
        };
        self.child.set_registers(&start).map_err(failed("take registers"))?;
        Ok(loops)
    }

    /// Whether it was stopped before it had the guest's registers. Guest code that jumps into the loop may seem to be there, too, and is
    /// where it was before then.
    fn is_in_loop(&self, signal: libc::c_int, host: &libc::user_regs_struct) -> bool {
        let inside = self.base + image::LOOP_AT..self.base + image::loop_end();
        self.secret.is_in(host) || inside.contains(&host.rip) && !is_fault(signal)
    }

    /// What that means. The calls stay due; to make one twice does no harm.
    fn stopped_early(&self, signal: libc::c_int, host: &libc::user_regs_struct) -> Result<Stop, HostError> {
        if is_fault(signal) {
            return Err(refused(host.rax));
        }
        self.hear();
        Ok(Stop::Called)
    }

    /// What was written to the line has been heard of.
    fn hear(&self) {
        let mut bytes = [0; 64];
        // Without any it blocks not, and says so.
        let _ = rustix::io::read(&self.listener, &mut bytes);
    }

    /// Keeps the calling thread where it is, and the stub there: to wake one of them elsewhere takes longer than most turns. For a while,
    /// and until [`Stub::part`].
    pub fn keep_together(&mut self) {
        let run = || crate::time::thread_cpu_ns() + time::of(self.child.pid);
        self.place.keep(crate::time::monotonic_ns(), run);
    }

    /// The calling thread may run where it was allowed to before.
    pub fn part(&mut self) {
        let _ = self.place.release();
    }

    /// Whether it has run and not come back: what [`Stub::run`] was given is not what the guest's registers are.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// For how long it has run, in all, without what it takes to let it run and to have it back.
    pub fn ran(&self) -> Duration {
        Duration::from_nanos(self.ran)
    }

    /// A turn has taken so many nanoseconds, with the calls that were due.
    fn count(&mut self, taken: u64) {
        let calls = CALL * self.calls.len() as u64;
        if calls == 0 {
            // Where processors are busy, or slow, it takes longer.
            self.to_and_fro = (self.to_and_fro.saturating_add(self.to_and_fro / 64)).min(taken);
        }
        self.ran += taken.saturating_sub(self.to_and_fro).saturating_sub(calls);
    }

    fn to_host(&self, registers: &Registers) -> libc::user_regs_struct {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = registers.gpr;
        let [es, _, _, ds, fs, gs] = registers.selectors.map(u64::from);
        libc::user_regs_struct {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            // It is in no system call.
            orig_rax: u64::MAX,
            rip: registers.rip,
            // With RF it would pass a breakpoint; processors set it whenever an instruction faults.
            eflags: registers.rflags & !rflags::RF,
            rsp,
            fs_base: registers.fs_base,
            gs_base: registers.gs_base,
            ds,
            es,
            fs,
            gs,
            ..self.initial
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        if self.child.is_ours() {
            self.part();
        }
        time::end(self.child.pid);
        self.child.end();
    }
}

/// Whether a signal comes from what the process does, and comes again if it goes on.
fn is_fault(signal: libc::c_int) -> bool {
    use libc::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
    [SIGTRAP, SIGSEGV, SIGBUS, SIGSYS, SIGILL, SIGFPE].contains(&signal)
}

/// The loop has ended with this in RAX, which is an error if a call has returned it.
fn refused(result: u64) -> HostError {
    let errno = i32::try_from(result.wrapping_neg()).unwrap_or(libc::EINVAL);
    failed("change its address space")(io::Error::from_raw_os_error(errno))
}

fn from_host(host: &libc::user_regs_struct) -> Registers {
    let (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi) =
        (host.rax, host.rcx, host.rdx, host.rbx, host.rsp, host.rbp, host.rsi, host.rdi);
    let (r8, r9, r10, r11) = (host.r8, host.r9, host.r10, host.r11);
    let (r12, r13, r14, r15) = (host.r12, host.r13, host.r14, host.r15);
    Registers {
        gpr: [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15],
        rip: host.rip,
        rflags: host.eflags,
        fs_base: host.fs_base,
        gs_base: host.gs_base,
        selectors: [host.es, host.cs, host.ss, host.ds, host.fs, host.gs].map(x86::bits::low16),
    }
}

/// The file that the process executes, which lies nowhere.
fn program(base: u64, script: RawFd) -> io::Result<std::fs::File> {
    let file = rustix::fs::memfd_create("umbra-stub", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(&image::file(base, script))?;
    Ok(file)
}

/// Both ends of a pipe, the one to read from first.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pipe::{PipeFlags, pipe_with};
    Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
}

/// That a child has stopped is no signal to us: some thread would be woken for each. That it has ended still is.
fn quiet_stops() {
    // SAFETY: the action is read, and put back with one flag more; all zeros is an action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action) == 0 {
            action.sa_flags |= libc::SA_NOCLDSTOP;
            libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
        }
    }
}

/// The child, after fork(2): keeps these descriptors, lets itself be traced, and becomes the program.
fn become_stub(program: RawFd, keep: [RawFd; 2]) -> ! {
    const NOTHING: &CStr = c"";
    let arguments: [*const c_char; 2] = [NOTHING.as_ptr(), std::ptr::null()];
    let environment = &arguments[1..];
    // SAFETY: system calls that may be made here, with numbers and with constants that live. If one fails so does the last, or the
    // parent finds the process gone.
    unsafe {
        libc::setsid();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for fd in keep {
            libc::fcntl(fd, libc::F_SETFD, 0);
        }
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        libc::syscall(
            libc::SYS_execveat,
            program,
            NOTHING.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(1)
    }
}

#[cfg(test)]
mod tests;
