//! What a thunk and Rust share: one block of memory, addressed by the thunk through RDI.
//!
//! The layout is `repr(C)`, and the thunk writer takes every offset from [`std::mem::offset_of`], so the two cannot
//! disagree. What thunks touch often lies within the reach of an 8-bit displacement.

use std::mem::offset_of;

use x86::fpu::MXCSR_DEFAULT;

/// Bytes of the memory operand's place: the widest operand is 32 bytes.
pub const MEMORY_BYTES: usize = 64;
/// Explicit operands that can be registers.
pub const SLOTS: usize = 4;

/// The operands and results that are not in the guest's vector registers.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct Operands {
    /// The memory operand, from its first byte on.
    pub memory: Memory,
    /// RFLAGS; only the six status flags are looked at or changed.
    pub flags: u64,
    /// MMX registers by operand position.
    pub mm: [u64; SLOTS],
    /// General-purpose registers by operand position.
    pub gpr: [u64; SLOTS],
    /// Implicit register operand.
    pub rax: u64,
    /// Implicit register operand.
    pub rcx: u64,
    /// Implicit register operand.
    pub rdx: u64,
}

/// The memory operand; aligned so that no legacy SSE form faults on it.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Memory(pub [u8; MEMORY_BYTES]);

impl Default for Memory {
    fn default() -> Self {
        Self([0; MEMORY_BYTES])
    }
}

/// The image of FXSAVE64 (SDM vol. 1, table 10-2).
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct FxImage(pub(crate) [u8; 512]);

/// The whole block.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) operands: Operands,
    /// Byte offsets into the guest's YMM file: of the implicit XMM0, then of explicit operands by position.
    pub(crate) vector: [u32; SLOTS + 1],
    pub(crate) mxcsr: u32,
    /// Rust code runs under the default MXCSR; the thunk goes back to it.
    pub(crate) host_mxcsr: u32,
    pub(crate) image: FxImage,
}

impl Context {
    pub(crate) fn new() -> Self {
        Self {
            operands: Operands::default(),
            vector: [0; SLOTS + 1],
            mxcsr: MXCSR_DEFAULT,
            host_mxcsr: MXCSR_DEFAULT,
            image: FxImage([0; 512]),
        }
    }
}

/// Displacements from RDI.
pub(crate) mod at {
    use super::{Context, Operands, offset_of};

    pub(crate) const MEMORY: usize = offset_of!(Operands, memory);
    pub(crate) const FLAGS: usize = offset_of!(Operands, flags);
    pub(crate) const MM: usize = offset_of!(Operands, mm);
    pub(crate) const GPR: usize = offset_of!(Operands, gpr);
    pub(crate) const RAX: usize = offset_of!(Operands, rax);
    pub(crate) const RCX: usize = offset_of!(Operands, rcx);
    pub(crate) const RDX: usize = offset_of!(Operands, rdx);
    pub(crate) const VECTOR: usize = offset_of!(Context, vector);
    pub(crate) const MXCSR: usize = offset_of!(Context, mxcsr);
    pub(crate) const HOST_MXCSR: usize = offset_of!(Context, host_mxcsr);
    pub(crate) const IMAGE: usize = offset_of!(Context, image);
    /// `Context` begins with its operands.
    const _: () = assert!(offset_of!(Context, operands) == 0);
}
