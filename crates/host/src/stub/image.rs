//! The program that a stub process begins with: one page, which makes the system calls of a script and then becomes the guest's code.
//!
//! The program is an ELF file that is made here and never lies on a disk: two headers, the loop, and behind it what prepares the
//! process: the script's pages are mapped, everything that the kernel has put anywhere else is unmapped, and a filter is installed that
//! lets two system calls through, those that map and unmap. From then on the address space holds this page, the
//! script, and what later scripts map.
//!
//! # Why the guest's code cannot use it
//!
//! It runs beside the loop in the same address space, may read all of this, and may jump anywhere. So the filter asks for a
//! [`Secret`] of 64 bits, in halves of two arguments that the kernel ignores: those of flags and of descriptors. The secret comes in
//! registers that the parent sets for the loop, and is nowhere else: before it jumps to the guest's code the loop has
//! given all registers their values from a frame behind the script, and where it ends otherwise, as when the guest's code has set up protection
//! keys so that the loop faults, it stops for the parent, which never takes registers with the secret for the guest's. The filter itself lies
//! where the parent wipes it after it has been installed.
//!
//! The loop uses no memory but script and frame, which are mapped for reading only.

use std::os::fd::RawFd;

use x86::PAGE_SIZE;

/// Bytes of the script behind the page of code.
pub(super) const SCRIPT: u64 = 4 * PAGE_SIZE;
/// The end of what programs may have mapped (Linux, `TASK_SIZE_MAX` with four levels of page tables).
pub(super) const TASK_END: u64 = 0x7fff_ffff_f000;
/// Words of a call: its number and six arguments.
const WORDS: usize = 7;
/// Calls that a script has room for, and its end.
pub(super) const MOST: usize = (SCRIPT - FRAME) as usize / 8 / WORDS - 1;
/// What a script ends with, no number of a call: the loop stops, with this in RAX.
pub(super) const STOP: u64 = 1 << 63;
/// And here it gives the registers their values from the frame.
pub(super) const ENTER: u64 = STOP | 1;
/// Bytes at the beginning of the script's pages that hold a frame, or the filter before there is one.
pub(super) const FRAME: u64 = 256;

/// A system call: its number and arguments.
pub(super) type Call = [u64; WORDS];

/// What the filter asks for, in the upper halves of a call's fourth and fifth argument.
#[derive(Clone, Copy)]
pub(super) struct Secret([u32; 2]);

impl Secret {
    pub(super) fn new(chance: u64) -> Self {
        Self([x86::bits::high32(chance), x86::bits::low32(chance)])
    }

    /// What R12 and R13 hold for the loop.
    pub(super) fn words(self) -> [u64; 2] {
        self.0.map(|half| u64::from(half) << 32)
    }

    /// Whether registers still hold some of it.
    pub(super) fn is_in(self, host: &libc::user_regs_struct) -> bool {
        let [r12, r13] = self.words();
        host.r12 == r12 || host.r13 == r13
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The registers that the loop gives the guest's code, in the order in which it takes them from the stack: first those that hold the
/// secret or its halves, R13 as the last of them.
pub(super) fn frame(gpr: &[u64; 16], rip: u64, rflags: u64) -> [u64; 18] {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = *gpr;
    [r8, r10, r12, r13, r15, r14, r11, r9, rdi, rsi, rbp, rbx, rdx, rcx, rax, rflags, rsp, rip]
}

// RBX points to the script, R12 and R13 hold the secret. The frame lies behind the page of code, which the loop is in.
core::arch::global_asm!(
    ".pushsection .rodata.umbra_stub, \"a\", @progbits",
    ".globl umbra_stub_loop",
    ".hidden umbra_stub_loop",
    "umbra_stub_loop:",
    "2:",
    "mov rax, [rbx]",
    "test rax, rax",
    "js 3f",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "or r10, r12",
    "mov r8, [rbx + 40]",
    "or r8, r13",
    "mov r9, [rbx + 48]",
    "syscall",
    "cmp rax, -4096",
    "ja 4f",
    "add rbx, 56",
    "jmp 2b",
    "3:",
    "test al, 1",
    "jz 4f",
    "lea rsp, [rip + umbra_stub_loop + {frame}]",
    "pop r8",
    "pop r10",
    "pop r12",
    "pop r13",
    "pop r15",
    "pop r14",
    "pop r11",
    "pop r9",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "popfq",
    "pop rsp",
    "jmp [rip + umbra_stub_loop + {frame} + 17 * 8]",
    "4:",
    "int3",
    ".globl umbra_stub_end",
    ".hidden umbra_stub_end",
    "umbra_stub_end:",
    ".popsection",
    frame = const PAGE_SIZE - LOOP_AT,
);

unsafe extern "C" {
    static umbra_stub_loop: u8;
    static umbra_stub_end: u8;
}

/// The loop's instructions.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const umbra_stub_loop, &raw const umbra_stub_end);
    // SAFETY: the two symbols are the ends of the constant bytes above.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Where the loop lies in the page, and where the first script.
pub(super) const LOOP_AT: u64 = 0x80;
pub(super) const FIRST_SCRIPT_AT: u64 = 0x100;
/// Behind its last instruction, where it has stopped.
pub(super) fn loop_end() -> u64 {
    LOOP_AT + code().len() as u64
}

/// The file, to be mapped at `base`, a multiple of the page size; `script` is the descriptor of the script's pages.
pub(super) fn file(base: u64, script: RawFd) -> Vec<u8> {
    let mut image = vec![0; PAGE_SIZE as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = x86::bits::index(at);
        if let Some(place) = image.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &elf_header(base));
    put(64, &program_header(base));
    put(LOOP_AT, code());
    put(FIRST_SCRIPT_AT, &bytes_of(&first_script(base, script), STOP));
    image
}

/// A script as the loop reads it, and how it ends.
pub(super) fn bytes_of(calls: &[Call], end: u64) -> Vec<u8> {
    calls.iter().flatten().chain(&[end]).flat_map(|word| word.to_le_bytes()).collect()
}

/// The filter as the kernel reads it (`sock_fprog`), when the script's pages have it at their beginning.
pub(super) fn filter_program(base: u64, secret: Secret) -> Vec<u64> {
    let filter = filter(secret);
    [&[filter.len() as u64, base + PAGE_SIZE + 16], filter.as_slice()].concat()
}

/// The ELF-64 header of a program for x86-64 with one segment (System V ABI, chapter 4).
fn elf_header(base: u64) -> [u8; 64] {
    let mut header = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    // An executable (ET_EXEC), for x86-64, version 1.
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &(base + LOOP_AT).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0]);
    header
}

/// The one segment: the whole file, to be read and executed.
fn program_header(base: u64) -> [u8; 56] {
    let mut header = [0; 56];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[1, 0, 0, 0, 5, 0, 0, 0]);
    put(16, &base.to_le_bytes());
    for at in [32, 40, 48] {
        put(at, &PAGE_SIZE.to_le_bytes());
    }
    header
}

/// What prepares the process.
fn first_script(base: u64, script: RawFd) -> [Call; 6] {
    let number = |call: libc::c_long| u64::try_from(call).unwrap_or(STOP);
    let flag = |flag: libc::c_int| u64::from(flag.cast_unsigned());
    let page = base + PAGE_SIZE;
    let behind = page + SCRIPT;
    let shared = flag(libc::MAP_SHARED | libc::MAP_FIXED);
    [
        [number(libc::SYS_mmap), page, SCRIPT, flag(libc::PROT_READ), shared, flag(script), 0],
        [number(libc::SYS_munmap), 0, base, 0, 0, 0, 0],
        [number(libc::SYS_munmap), behind, TASK_END - behind, 0, 0, 0, 0],
        // RDTSC and RDTSCP fault: the guest's counter is not the host's.
        [number(libc::SYS_prctl), flag(libc::PR_SET_TSC), flag(libc::PR_TSC_SIGSEGV), 0, 0, 0, 0],
        [number(libc::SYS_prctl), flag(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0, 0],
        [
            number(libc::SYS_seccomp),
            libc::SECCOMP_SET_MODE_FILTER.into(),
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            page,
            0,
            0,
            0,
        ],
    ]
}

/// The filter, in classic BPF: the two calls of scripts, in their 64-bit form and with the secret. All others raise SIGSYS, those among
/// them that the kernel makes for who jumps to its vsyscall page.
fn filter(secret: Secret) -> [u64; 11] {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 6;
    let step = |code: u16, if_true: u8, if_false: u8, operand: u32| {
        u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(operand) << 32
    };
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    // EM_X86_64, 64-bit, little-endian (linux/audit.h).
    let architecture = 0xc000_003e;
    // Where `seccomp_data` has the upper half of an argument.
    let upper = |argument: u32| 16 + 8 * argument + 4;
    let [fourth, fifth] = secret.0;
    [
        step(LOAD, 0, 0, 4),
        step(JUMP_IF_EQUAL, 0, 7, architecture),
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 1, 0, number(libc::SYS_mmap)),
        step(JUMP_IF_EQUAL, 0, 4, number(libc::SYS_munmap)),
        step(LOAD, 0, 0, upper(3)),
        step(JUMP_IF_EQUAL, 0, 2, fourth),
        step(LOAD, 0, 0, upper(4)),
        step(JUMP_IF_EQUAL, 1, 0, fifth),
        step(RETURN, 0, 0, libc::SECCOMP_RET_TRAP),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
