//! The processor's side: a forked child that executes cases as they are.
//!
//! # Scheme
//!
//! Every case ends in an exception: a fault of the instruction, or the breakpoint after it. So it ends in one signal, and
//! the handler does all the work: it takes the case's result out of the signal frame (registers, x87 and vector
//! state, vector, error code, CR2), puts memory back, writes the next case's registers *into* the frame and returns,
//! which starts that case. Only the last one of a batch returns to the child's main loop. A case costs one signal.
//!
//! Parent and child share a [`Batch`] and take turns by a byte through a pipe. Code, data and stack lie at fixed addresses
//! through mappings of their own (executable; writable; read-only) and are written by the handler through another,
//! writable one.
//!
//! A case may go on after some faults: the handler notes them and returns to where the case says.
//!
//! # Why this is unsafe, and when it is right
//!
//! Arbitrary instructions run in the child. They can address what is mapped there; the cases are built so that they
//! address their data, or nothing, and that they jump only within their code. If one hits the child itself, the child dies and the parent reports the case: the
//! parent's memory is out of reach, except for the batch, whose types accept any bits. The kernel serves the child no system
//! call but those it needs (seccomp, strict).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::case::{
    CODE, CODE_BYTES, DATA, DATA_AT, DATA_BYTES, Fault, IMAGE_BYTES, INT3, Image, Input, LOGGED, Output,
    Registers, STACK, STACK_AT, STACK_BYTES, WRITABLE_BYTES,
};

/// Cases in a batch.
pub const BATCH: usize = 256;

/// What parent and child share.
#[repr(C)]
pub struct Batch {
    /// Cases to run.
    pub count: usize,
    /// Cases done; the one that killed the child, if it died.
    pub done: usize,
    /// What memory is before a case sets its own.
    pub background: Image,
    /// The cases.
    pub inputs: [Input; BATCH],
    /// Their results.
    pub outputs: [Output; BATCH],
}

/// The child.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    go: OwnedFd,
    done: OwnedFd,
    batch: *mut Batch,
}

/// The child did not finish a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died {
    /// The index of the case that it was at.
    pub at: usize,
}

/// How long a batch may take: ten thousand times what it does.
const PATIENCE_MS: i32 = 10_000;
/// What GS is in every case: a segment from a page below the data to a page above it, so that offsets are short and the limit,
/// which 64-bit code has none of, is near.
pub const GS_BASE: u64 = DATA - 0x1000;
/// The highest offset in it.
pub const GS_LIMIT: u32 = 0x4fff;
/// Its selector: the first entry of the local table, which is the one that Linux lets processes write.
pub const GS_SELECTOR: u16 = 7;
/// The selector of 16-bit user code, the second entry there: base [`CODE`], limit the last byte of code.
pub const USER_CS_16: u16 = 8 | 7;
/// Linux's flat segments for user code.
pub const USER_CS: u16 = 0x33;
/// For 32-bit user code.
pub const USER_CS_32: u16 = 0x23;
/// For user data.
pub const USER_DS: u16 = 0x2b;

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends: [RawFd; 2] = [0; 2];
    // SAFETY: `ends` has room for the two descriptors, which nobody else owns.
    unsafe {
        checked(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC).into())?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn map(at: u64, len: usize, protection: i32, flags: i32, fd: RawFd, offset: usize) -> io::Result<*mut u8> {
    // SAFETY: MAP_FIXED_NOREPLACE, or an address of the kernel's choice: no existing mapping is touched.
    let address = unsafe { libc::mmap(at as *mut _, len, protection, flags, fd, offset as libc::off_t) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}

/// The base of FS of this thread, which the child inherits.
pub fn fs_base() -> u64 {
    const ARCH_GET_FS: i64 = 0x1003;
    let mut base = 0u64;
    // SAFETY: writes 8 bytes to `base`.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
    base
}

impl Child {
    /// Forks a child that waits for its first batch.
    ///
    /// # Errors
    /// If the host refuses memory or the process.
    pub fn new() -> io::Result<Self> {
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let batch =
            map(0, size_of::<Batch>(), libc::PROT_READ | libc::PROT_WRITE, shared, -1, 0)?.cast::<Batch>();
        let (go_read, go_write) = pipe()?;
        let (done_read, done_write) = pipe()?;
        // SAFETY: the child uses nothing but system calls and memory it maps itself, and never returns.
        let pid = unsafe { libc::fork() };
        checked(pid.into())?;
        if pid == 0 {
            let status = child_main(batch, go_read.as_raw_fd(), done_write.as_raw_fd());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(status.is_err())) };
        }
        Ok(Self { pid, go: go_write, done: done_read, batch })
    }

    /// The shared batch; the child does not look at it now.
    pub fn batch(&mut self) -> &mut Batch {
        // SAFETY: mapped until `drop`, zeroed by the kernel, valid for any bits; the child touches it only while `run` waits.
        unsafe { &mut *self.batch }
    }

    /// Runs the cases of the batch.
    ///
    /// # Errors
    /// If a case kills or hangs the child; a new one is needed then.
    pub fn run(&mut self) -> Result<(), Died> {
        self.batch().done = 0;
        let mut byte = 0u8;
        // SAFETY: one byte from and to a live variable; `poll` gets one valid entry.
        let finished = unsafe {
            libc::write(self.go.as_raw_fd(), (&raw const byte).cast(), 1) == 1 && {
                let mut wait = libc::pollfd { fd: self.done.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                libc::poll(&raw mut wait, 1, PATIENCE_MS) == 1
                    && libc::read(self.done.as_raw_fd(), (&raw mut byte).cast(), 1) == 1
            }
        };
        if finished { Ok(()) } else { Err(Died { at: self.batch().done }) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, waited for; the mapping is ours and not used any more.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, null_mut(), 0);
            libc::munmap(self.batch.cast(), size_of::<Batch>());
        }
    }
}

/// What the handler works with; the child has one thread.
struct Worker {
    batch: *mut Batch,
    /// Code, data and stack through the mapping that is writable throughout.
    image: *mut Image,
    /// The frame of the breakpoint that started the batch.
    registers: [i64; 23],
    state: [u8; STATE_BYTES],
    state_len: usize,
    running: bool,
    /// Faults that the current case went on after.
    resumed: u64,
}

/// Room for the largest signal frame's extended state.
const STATE_BYTES: usize = 16 * 1024;

static WORKER: AtomicPtr<Worker> = AtomicPtr::new(null_mut());

fn child_main(batch: *mut Batch, go: RawFd, done: RawFd) -> io::Result<()> {
    let worker = prepare(batch)?;
    WORKER.store(worker, Ordering::Relaxed);
    install_handlers()?;
    let mut byte = 0u8;
    // SAFETY: system calls on our own descriptors; the breakpoint enters `on_signal`, which comes back here with every
    // register as it was.
    unsafe {
        checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        load_segments()?;
        // Whatever a case jumps into, the kernel does nothing for it.
        checked(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT).into())?;
        while libc::read(go, (&raw mut byte).cast(), 1) == 1 {
            if (*batch).count != 0 {
                core::arch::asm!("int3");
            }
            libc::write(done, (&raw const byte).cast(), 1);
        }
    }
    Ok(())
}

/// Sets the segments that cases see: flat DS and ES, which 32-bit code needs and 64-bit code ignores, and those that GS and CS are
/// loaded from.
fn load_segments() -> io::Result<()> {
    // Linux, `struct user_desc`: entry, base, limit, then seg_32bit, contents (2 is code), useable.
    let data = [u32::from(GS_SELECTOR >> 3), GS_BASE as u32, GS_LIMIT, 1 | 1 << 6];
    let code = [u32::from(USER_CS_16 >> 3), CODE as u32, CODE_BYTES as u32 - 1, 2 << 1 | 1 << 6];
    const WRITE: i64 = 1;
    // SAFETY: the calls read their description; loading these segments changes nothing for 64-bit code, which
    // does not use DS and ES.
    unsafe {
        for description in [data, code] {
            checked(libc::syscall(
                libc::SYS_modify_ldt,
                WRITE,
                description.as_ptr(),
                size_of_val(&description),
            ))?;
        }
        core::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) u32::from(USER_DS));
    }
    Ok(())
}

/// GS's selector in a case: in most of 64-bit code null, as in Linux's programs, where the processor lets them set its base.
pub fn gs_selector(input: &Input) -> u16 {
    let is_null = input.bits == 64 && !input.registers.gpr[0].is_multiple_of(8) && host::cpu::has_fsgsbase();
    if is_null { 0 } else { GS_SELECTOR }
}

/// Sets GS as a case has it.
fn load_gs(selector: u16) {
    // SAFETY: nothing in this process uses GS but cases; a base is only written where the processor lets programs do it.
    unsafe {
        core::arch::asm!("mov gs, {0:x}", in(reg) u32::from(selector));
        if selector == 0 {
            core::arch::asm!("wrgsbase {}", in(reg) GS_BASE);
        }
    }
}

fn prepare(batch: *mut Batch) -> io::Result<*mut Worker> {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let worker = map(0, size_of::<Worker>(), writable, private, -1, 0)?.cast::<Worker>();
    // SAFETY: a name and no flags.
    let file = checked(unsafe { libc::memfd_create(c"oracle".as_ptr(), 0) }.into())? as RawFd;
    // SAFETY: our own descriptor.
    checked(unsafe { libc::ftruncate(file, IMAGE_BYTES as libc::off_t) }.into())?;
    let populated = libc::MAP_SHARED | libc::MAP_POPULATE;
    let alias = map(0, IMAGE_BYTES, writable, populated, file, 0)?;
    // SAFETY: the whole alias is mapped and writable. Written before the other mappings are populated, so that these
    // see the pages and never fault for a reason of the host's.
    unsafe { ptr::write_bytes(alias, INT3, IMAGE_BYTES) };
    let fixed = populated | libc::MAP_FIXED_NOREPLACE;
    map(CODE, CODE_BYTES, writable | libc::PROT_EXEC, fixed, file, 0)?;
    map(DATA, WRITABLE_BYTES, writable, fixed, file, DATA_AT)?;
    map(STACK, STACK_BYTES, writable, fixed, file, STACK_AT)?;
    let rest = DATA_BYTES - WRITABLE_BYTES;
    map(DATA + WRITABLE_BYTES as u64, rest, libc::PROT_READ, fixed, file, DATA_AT + WRITABLE_BYTES)?;
    // SAFETY: freshly mapped, zeroed, valid for any bits, only pointers to it.
    unsafe {
        (*worker).batch = batch;
        (*worker).image = alias.cast();
    }
    Ok(worker)
}

fn install_handlers() -> io::Result<()> {
    const STACK: usize = 256 * 1024;
    let stack =
        map(0, STACK, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
    // SAFETY: the stack stays mapped; the handler has the signature of SA_SIGINFO and needs no more than it gets.
    unsafe {
        let alternate = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: STACK };
        checked(libc::sigaltstack(&raw const alternate, null_mut()).into())?;
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler_entry as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            checked(libc::sigaction(signal, &raw const action, null_mut()).into())?;
        }
    }
    Ok(())
}

/// Clears flags that a case may have set and Linux leaves on: AC, before compiled code runs; ID and NT, which
/// returning from a signal does not set back.
#[unsafe(naked)]
extern "C" fn handler_entry(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    core::arch::naked_asm!(
        "pushfq",
        "and dword ptr [rsp], {keep}",
        "popfq",
        "jmp {handler}",
        keep = const !((x86::rflags::AC | x86::rflags::ID | x86::rflags::NT) as i32),
        handler = sym on_signal,
    )
}

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context, ours until we return; the worker was stored before the handler was
    // installed, and there is one thread; the batch is the child's turn.
    unsafe {
        let worker = &mut *WORKER.load(Ordering::Relaxed);
        let batch = &mut *worker.batch;
        let context = &mut *context.cast::<libc::ucontext_t>();
        let mut frame = Frame::of(context);
        if worker.running {
            if go_on(worker, batch, &mut frame) {
                return;
            }
            finish(worker, batch, &frame);
        } else {
            frame.keep(worker);
            worker.running = true;
            worker.resumed = 0;
            (*worker.image) = batch.background;
        }
        if batch.done == batch.count.min(BATCH) {
            worker.running = false;
            frame.bring_back(worker);
        } else {
            start(worker, batch, &mut frame);
        }
    }
}

/// Lets the case go on after a fault, if it may.
fn go_on(worker: &mut Worker, batch: &mut Batch, frame: &mut Frame<'_>) -> bool {
    let input = &batch.inputs[batch.done];
    let fault = frame.fault();
    if fault.vector == u64::from(x86::exception::vector::BP) || worker.resumed == u64::from(input.resumes) {
        return false;
    }
    batch.outputs[batch.done].log[worker.resumed as usize % LOGGED] = fault;
    worker.resumed += 1;
    frame.registers[RIP] = input.resume_at.cast_signed();
    true
}

/// # Safety
/// `worker`'s pointers are its mappings.
unsafe fn start(worker: &mut Worker, batch: &Batch, frame: &mut Frame<'_>) {
    let input = &batch.inputs[batch.done];
    // SAFETY: by the caller.
    input.apply(unsafe { &mut *worker.image });
    load_gs(gs_selector(input));
    frame.load(input);
}

/// # Safety
/// As for `start`.
unsafe fn finish(worker: &mut Worker, batch: &mut Batch, frame: &Frame<'_>) {
    let output = &mut batch.outputs[batch.done];
    frame.save(output);
    output.resumed = std::mem::take(&mut worker.resumed);
    // SAFETY: by the caller.
    output.take_changes(unsafe { &mut *worker.image }, &batch.background);
    batch.done += 1;
}

/// A signal frame: general registers, and the extended state in XSAVE's standard form.
struct Frame<'a> {
    registers: &'a mut [i64; 23],
    state: &'a mut [u8],
}

/// Where `gregs` has the general-purpose registers, by encoding number.
const GREGS: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
const RIP: usize = libc::REG_RIP as usize;
const FLAGS: usize = libc::REG_EFL as usize;
/// The mark of an extended frame (Linux, `asm/sigcontext.h`), and where it and the size are.
const MAGIC: u32 = 0x4650_5853;
const MAGIC_AT: usize = 464;
const SIZE_AT: usize = 480;
/// XSTATE_BV.
const HEADER_AT: usize = 512;
/// The upper halves of the YMM registers.
const UPPER_AT: usize = 576;
const UPPER_END: usize = UPPER_AT + 256;

impl<'a> Frame<'a> {
    /// # Safety
    /// `context` is a signal handler's.
    unsafe fn of(context: &'a mut libc::ucontext_t) -> Self {
        let state = context.uc_mcontext.fpregs.cast::<u8>();
        let word = |at: usize| {
            // SAFETY: within the first 512 bytes, which are always there.
            unsafe { state.add(at).cast::<u32>().read() }
        };
        let len = if word(MAGIC_AT) == MAGIC { word(SIZE_AT) as usize } else { 512 };
        // SAFETY: the kernel states how large the state is.
        let state = unsafe { std::slice::from_raw_parts_mut(state, len.min(STATE_BYTES)) };
        Self { registers: &mut context.uc_mcontext.gregs, state }
    }

    fn keep(&self, worker: &mut Worker) {
        worker.registers = *self.registers;
        worker.state_len = self.state.len();
        worker.state[..self.state.len()].copy_from_slice(self.state);
    }

    fn bring_back(&mut self, worker: &Worker) {
        *self.registers = worker.registers;
        let len = self.state.len().min(worker.state_len);
        self.state[..len].copy_from_slice(&worker.state[..len]);
    }

    fn load(&mut self, input: &Input) {
        let r = &input.registers;
        // CS, GS, FS, SS from the lowest word up.
        let code = match input.bits {
            64 => USER_CS,
            32 => USER_CS_32,
            _ => USER_CS_16,
        };
        self.registers[libc::REG_CSGSFS as usize] = i64::from(code) | i64::from(USER_DS) << 48;
        for (index, value) in GREGS.into_iter().zip(r.gpr) {
            self.registers[index] = value.cast_signed();
        }
        self.registers[RIP] = r.rip.cast_signed();
        self.registers[FLAGS] = r.rflags.cast_signed();
        let state = &mut *self.state;
        let mut set = |at: usize, bytes: &[u8]| state[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &r.fcw.to_le_bytes());
        set(2, &r.fsw.to_le_bytes());
        set(4, &r.ftw.to_le_bytes());
        set(6, &r.fop.to_le_bytes());
        set(8, &r.fip.to_le_bytes());
        set(16, &r.fdp.to_le_bytes());
        set(24, &r.mxcsr.to_le_bytes());
        for (n, value) in r.st.iter().enumerate() {
            set(32 + 16 * n, &value.to_le_bytes());
        }
        for (n, value) in r.ymm.iter().enumerate() {
            set(160 + 16 * n, &value[0].to_le_bytes());
        }
        if state.len() >= UPPER_END {
            let mut set = |at: usize, bytes: &[u8]| state[at..at + bytes.len()].copy_from_slice(bytes);
            set(HEADER_AT, &7u64.to_le_bytes());
            for (n, value) in r.ymm.iter().enumerate() {
                set(UPPER_AT + 16 * n, &value[1].to_le_bytes());
            }
        }
    }

    fn fault(&self) -> Fault {
        let value = |index: i32| self.registers[index as usize].cast_unsigned();
        Fault {
            vector: value(libc::REG_TRAPNO),
            error: value(libc::REG_ERR),
            rip: value(libc::REG_RIP),
            cr2: value(libc::REG_CR2),
        }
    }

    fn save(&self, output: &mut Output) {
        let r = &mut output.registers;
        for (index, value) in GREGS.into_iter().zip(&mut r.gpr) {
            *value = self.registers[index].cast_unsigned();
        }
        r.rip = self.registers[RIP].cast_unsigned();
        r.rflags = self.registers[FLAGS].cast_unsigned();
        let fault = self.fault();
        (output.vector, output.error, output.cr2) = (fault.vector as u32, fault.error as u32, fault.cr2);
        let state = &*self.state;
        let extended = state.len() >= UPPER_END;
        // A component that the header does not have is in its initial configuration, whatever the bytes say.
        let present = if extended { state[HEADER_AT] } else { 3 };
        let bytes = |at: usize, len: usize| {
            state[at..at + len].iter().rev().fold(0u128, |value, &byte| value << 8 | u128::from(byte))
        };
        r.mxcsr = bytes(24, 4) as u32;
        if present & 1 != 0 {
            (r.fcw, r.fsw, r.ftw) = (bytes(0, 2) as u16, bytes(2, 2) as u16, bytes(4, 1) as u16);
            r.fop = bytes(6, 2) as u16;
            (r.fip, r.fdp) = (bytes(8, 8) as u64, bytes(16, 8) as u64);
            for (n, st) in r.st.iter_mut().enumerate() {
                *st = bytes(32 + 16 * n, 10);
            }
        } else {
            *r = Registers { fcw: 0x37f, fsw: 0, ftw: 0, fop: 0, fip: 0, fdp: 0, st: [0; 8], ..*r };
        }
        for (n, ymm) in r.ymm.iter_mut().enumerate() {
            let low = if present & 2 != 0 { bytes(160 + 16 * n, 16) } else { 0 };
            let high = if extended && present & 4 != 0 { bytes(UPPER_AT + 16 * n, 16) } else { 0 };
            *ymm = [low, high];
        }
    }
}
