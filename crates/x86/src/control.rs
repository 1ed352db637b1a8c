//! Control, extended-control and debug register bits (SDM vol. 3, 2.5, 2.6 and 18.2).

/// CR0.
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// WAIT honours TS.
    pub const MP: u64 = 1 << 1;
    /// No x87: its instructions raise #NM.
    pub const EM: u64 = 1 << 2;
    /// Task switched: x87 and vector instructions raise #NM.
    pub const TS: u64 = 1 << 3;
    /// Reads as one.
    pub const ET: u64 = 1 << 4;
    /// x87 errors raise #MF.
    pub const NE: u64 = 1 << 5;
    /// Supervisor writes honour read-only pages.
    pub const WP: u64 = 1 << 16;
    /// EFLAGS.AC enables alignment checks at CPL 3.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// Every bit that can be set.
    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR3.
pub mod cr3 {
    /// The process-context identifier, with CR4.PCIDE.
    pub const PCID: u64 = 0xfff;
    /// In the operand of MOV to CR3 with CR4.PCIDE: keep this PCID's translations.
    pub const NOFLUSH: u64 = 1 << 63;
}

/// CR4.
pub mod cr4 {
    /// Virtual-8086 extensions.
    pub const VME: u64 = 1 << 0;
    /// Protected-mode virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// RDTSC only at CPL 0.
    pub const TSD: u64 = 1 << 2;
    /// DR4 and DR5 raise #UD; I/O breakpoints.
    pub const DE: u64 = 1 << 3;
    /// 4 MiB pages in 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// 64-bit entries: PAE or 4-level paging.
    pub const PAE: u64 = 1 << 5;
    /// Machine check.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC at any CPL.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// Unmasked SIMD exceptions raise #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// SGDT, SIDT, SLDT, SMSW, STR only at CPL 0.
    pub const UMIP: u64 = 1 << 11;
    /// RDFSBASE and its kin.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE and XCR0.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor fetches from user pages fault.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor accesses to user pages fault unless EFLAGS.AC.
    pub const SMAP: u64 = 1 << 21;
}

/// IA32_EFER.
pub mod efer {
    /// SYSCALL and SYSRET.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enabled.
    pub const LME: u64 = 1 << 8;
    /// Long mode active (read-only).
    pub const LMA: u64 = 1 << 10;
    /// No-execute pages.
    pub const NXE: u64 = 1 << 11;
    /// Automatic IBRS (AMD). Stored, and without effect.
    pub const AUTOIBRS: u64 = 1 << 21;
}

/// XCR0 (SDM vol. 1, 13.3).
pub mod xcr0 {
    /// x87 state; always one.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// The upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
}

/// DR6.
pub mod dr6 {
    /// Bits that read as one.
    pub const FIXED: u64 = 0xffff_0ff0;
    /// A breakpoint register was matched; bit n for DRn.
    pub const B: u64 = 0xf;
    /// A debug register was accessed with DR7.GD set.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
    /// A task switch with the T bit.
    pub const BT: u64 = 1 << 15;
}

/// DR7.
pub mod dr7 {
    /// Reads as one.
    pub const FIXED: u64 = 1 << 10;
    /// Any access to a debug register raises #DB.
    pub const GD: u64 = 1 << 13;
    /// The local and global enable bits of all four breakpoints.
    pub const ENABLES: u64 = 0xff;
}
