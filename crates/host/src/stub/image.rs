//! The program that a stub process begins with: one page, which does nothing but make the system calls of a script.
//!
//! The program is an ELF file that is made here and never lies on a disk: two headers, the loop, and behind it what prepares the
//! process: the script's pages are mapped, everything that the kernel has put anywhere else is unmapped, and a filter is installed that
//! lets two system calls through, those that map and unmap. From then on the address space holds this page, the
//! script, and what later scripts map.
//!
//! The loop uses no memory but the script, which is mapped for reading only, and no stack; whoever runs beside it in the same address space
//! cannot make it do anything.

use std::os::fd::RawFd;

use x86::PAGE_SIZE;

/// Bytes of the script behind the page of code.
pub(super) const SCRIPT: u64 = 4 * PAGE_SIZE;
/// The end of what programs may have mapped (Linux, `TASK_SIZE_MAX` with four levels of page tables).
pub(super) const TASK_END: u64 = 0x7fff_ffff_f000;
/// Words of a call: its number and six arguments.
const WORDS: usize = 7;
/// Calls that a script has room for, and its end.
pub(super) const MOST: usize = SCRIPT as usize / 8 / WORDS - 1;
/// What RAX holds when a script is over; no call returns that.
pub(super) const OVER: u64 = 1 << 63;

/// A system call: its number and arguments.
pub(super) type Call = [u64; WORDS];

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
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "cmp rax, -4096",
    "ja 3f",
    "add rbx, 56",
    "jmp 2b",
    "3:",
    "int3",
    ".globl umbra_stub_end",
    ".hidden umbra_stub_end",
    "umbra_stub_end:",
    ".popsection",
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
const FILTER_AT: u64 = 0x800;
const INSTRUCTIONS_AT: u64 = FILTER_AT + 16;

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
    put(FIRST_SCRIPT_AT, &bytes_of(&first_script(base, script)));
    let filter = filter();
    put(FILTER_AT, &(filter.len() as u64).to_le_bytes());
    put(FILTER_AT + 8, &(base + INSTRUCTIONS_AT).to_le_bytes());
    let instructions: Vec<u8> = filter.iter().flat_map(|word| word.to_le_bytes()).collect();
    put(INSTRUCTIONS_AT, &instructions);
    image
}

/// A script as the loop reads it.
pub(super) fn bytes_of(calls: &[Call]) -> Vec<u8> {
    calls.iter().flatten().chain(&[OVER]).flat_map(|word| word.to_le_bytes()).collect()
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
    let number = |call: libc::c_long| u64::try_from(call).unwrap_or(OVER);
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
            base + FILTER_AT,
            0,
            0,
            0,
        ],
    ]
}

/// The filter, in classic BPF: the two calls of scripts, in their 64-bit form. All others raise SIGSYS, those among them that the kernel
/// makes for who jumps to its vsyscall page.
fn filter() -> [u64; 7] {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 6;
    let step = |code: u16, if_true: u8, if_false: u8, operand: u32| {
        u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(operand) << 32
    };
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    // EM_X86_64, 64-bit, little-endian (linux/audit.h).
    let architecture = 0xc000_003e;
    [
        step(LOAD, 0, 0, 4),
        step(JUMP_IF_EQUAL, 0, 3, architecture),
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 2, 0, number(libc::SYS_mmap)),
        step(JUMP_IF_EQUAL, 1, 0, number(libc::SYS_munmap)),
        step(RETURN, 0, 0, libc::SECCOMP_RET_TRAP),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
