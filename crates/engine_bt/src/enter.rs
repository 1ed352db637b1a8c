//! The way into translated code and out of it.
//!
//! `enter` saves what a C function has to preserve, loads the guest's registers from the context behind GS and jumps to
//! [`Context::target`](translate::Context::target). Translated code leaves by jumping to `exit`, which undoes that and
//! returns to `enter`'s caller; both ways the guest's status flags are in the context and the scratch registers in
//! [`Context::scratch`](translate::Context::scratch).
//!
//! The vector registers are the guest's while translated code runs: all sixteen are loaded and stored here, in whole if
//! the host has AVX. Where all upper halves are zero only the lower ones are loaded: a processor that knows of the
//! zeros has nothing to merge when SSE instructions leave upper halves as they are. RSP is the shadow return stack's; no
//! signal handler may run on it, which is why a vCPU's thread takes signals on a stack of their own.

use translate::context::at;

core::arch::global_asm!(
    ".macro umbra_load_guest",
    "mov rdx, gs:[{gpr} + 16]",
    "mov rbx, gs:[{gpr} + 24]",
    "mov rbp, gs:[{gpr} + 40]",
    "mov rsi, gs:[{gpr} + 48]",
    "mov rdi, gs:[{gpr} + 56]",
    "mov r8, gs:[{gpr} + 64]",
    "mov r9, gs:[{gpr} + 72]",
    "mov r10, gs:[{gpr}]",
    "mov r11, gs:[{gpr} + 8]",
    "mov r12, gs:[{gpr} + 96]",
    "mov r13, gs:[{gpr} + 104]",
    "mov r14, gs:[{gpr} + 112]",
    "mov r15, gs:[{gpr} + 32]",
    "mov rcx, gs:[{scratch} + 8]",
    "mov rax, gs:[{scratch}]",
    "jmp gs:[{target}]",
    ".endm",
    ".macro umbra_store_guest",
    "mov gs:[{scratch}], rax",
    "mov gs:[{scratch} + 8], rcx",
    "mov gs:[{gpr} + 16], rdx",
    "mov gs:[{gpr} + 24], rbx",
    "mov gs:[{gpr} + 40], rbp",
    "mov gs:[{gpr} + 48], rsi",
    "mov gs:[{gpr} + 56], rdi",
    "mov gs:[{gpr} + 64], r8",
    "mov gs:[{gpr} + 72], r9",
    "mov gs:[{gpr}], r10",
    "mov gs:[{gpr} + 8], r11",
    "mov gs:[{gpr} + 96], r12",
    "mov gs:[{gpr} + 104], r13",
    "mov gs:[{gpr} + 112], r14",
    "mov gs:[{gpr} + 32], r15",
    "mov gs:[{stack}], rsp",
    "mov rsp, gs:[{host_stack}]",
    "stmxcsr gs:[{mxcsr}]",
    "ldmxcsr gs:[{host_mxcsr}]",
    "mov rax, gs:[{vector}]",
    ".endm",
    ".macro umbra_begin",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov gs:[{host_stack}], rsp",
    "stmxcsr gs:[{host_mxcsr}]",
    "ldmxcsr gs:[{mxcsr}]",
    "mov rax, gs:[{vector}]",
    "mov rsp, gs:[{stack}]",
    ".endm",
    ".macro umbra_end",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".endm",
    ".p2align 6",
    ".globl umbra_bt_enter_avx",
    ".hidden umbra_bt_enter_avx",
    "umbra_bt_enter_avx:",
    "umbra_begin",
    "vmovdqu xmm0, [rax + 16]",
    ".irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vpor xmm0, xmm0, [rax + 32*\\n + 16]",
    ".endr",
    "vptest xmm0, xmm0",
    "jnz 2f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovdqu xmm\\n, [rax + 32*\\n]",
    ".endr",
    "umbra_load_guest",
    "2:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovdqu ymm\\n, [rax + 32*\\n]",
    ".endr",
    "umbra_load_guest",
    ".p2align 6",
    ".globl umbra_bt_exit_avx",
    ".hidden umbra_bt_exit_avx",
    "umbra_bt_exit_avx:",
    "umbra_store_guest",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovdqu [rax + 32*\\n], ymm\\n",
    ".endr",
    "vzeroupper",
    "umbra_end",
    ".p2align 6",
    ".globl umbra_bt_enter_sse",
    ".hidden umbra_bt_enter_sse",
    "umbra_bt_enter_sse:",
    "umbra_begin",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movdqu xmm\\n, [rax + 32*\\n]",
    ".endr",
    "umbra_load_guest",
    ".p2align 6",
    ".globl umbra_bt_exit_sse",
    ".hidden umbra_bt_exit_sse",
    "umbra_bt_exit_sse:",
    "umbra_store_guest",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movdqu [rax + 32*\\n], xmm\\n",
    ".endr",
    "umbra_end",
    gpr = const at::GPR,
    scratch = const at::SCRATCH,
    target = const at::TARGET,
    stack = const at::STACK,
    host_stack = const at::HOST_STACK,
    mxcsr = const at::MXCSR,
    host_mxcsr = const at::HOST_MXCSR,
    vector = const at::VECTOR,
);

unsafe extern "C" {
    fn umbra_bt_enter_avx();
    fn umbra_bt_exit_avx();
    fn umbra_bt_enter_sse();
    fn umbra_bt_exit_sse();
}

/// Which vector registers the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    avx: bool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { avx: host::cpu::has_avx() }
    }

    /// Where translated code leaves to.
    pub(crate) fn exit(self) -> u64 {
        (if self.avx { umbra_bt_exit_avx as *const () } else { umbra_bt_exit_sse as *const () }) as u64
    }

    /// Runs translated code until it leaves.
    ///
    /// # Safety
    /// GS points at a view whose context is filled in: the target is an entry or resumption point of a block in the
    /// code cache, the stack a shadow stack's pointer, the exit this gate's, the vector address that of sixteen
    /// registers of 32 bytes. Every TLB entry of the view leads to a page of guest memory that lives.
    pub(crate) unsafe fn enter(self) {
        // SAFETY: the caller's promises are what the code relies on; both functions preserve what the C calling
        // convention says, MXCSR included, and leave the direction flag alone.
        unsafe { if self.avx { umbra_bt_enter_avx() } else { umbra_bt_enter_sse() } }
    }
}

/// Lets GS point at a view.
///
/// # Safety
/// Nothing else in the process uses GS, and the host allows WRGSBASE in user mode.
pub(crate) unsafe fn set_gs(base: u64) {
    // SAFETY: the caller says that GS is ours; user code of x86-64 Linux keeps its thread pointer in FS.
    unsafe {
        core::arch::asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags));
    }
}
