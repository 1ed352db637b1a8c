//! A decoded instruction in the form that executes fast.
//!
//! `iced-x86` decodes; [`crate::lower`] turns its instruction into an [`Op`]: a handler (a plain function, already
//! specialised for operand width and shape) and operands reduced to indices. Nothing in an `Op` depends on the
//! virtual address it was decoded at, so one decoded block serves every mapping of its frame.

use crate::cpu::Cpu;
use crate::vector::VectorOp;

/// Why an instruction did not simply complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// An exception is in [`Cpu::fault`]; the instruction had no effect, RIP goes back to it.
    Fault,
    /// An exception is in [`Cpu::fault`] that is raised after the instruction: RIP stays behind it.
    Trap,
    /// The instruction is not finished (a repeated string operation looks for interrupts): RIP goes back to it.
    Again,
}

/// What a handler returns: nothing, or why the block is left.
pub(crate) type Step = Result<(), Break>;

/// A handler.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Step;

/// Operand code of AH: codes 0x20 to 0x23 are AH, CH, DH and BH.
pub(crate) const HIGH_BYTE: u8 = 0x20;
/// Operand code of the memory operand.
pub(crate) const MEMORY: u8 = 0x40;
/// Operand code of the immediate.
pub(crate) const IMMEDIATE: u8 = 0x41;
/// Operand code of "there is none".
pub(crate) const NONE: u8 = 0x42;

/// Register-file slot that always holds zero: the base or index that an address lacks.
pub(crate) const ZERO: u8 = 16;
/// Register-file slot of RIP.
pub(crate) const RIP: usize = 17;

/// The memory operand: `segment: base + (index << scale) + disp`, cut to the address size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mem {
    pub(crate) disp: u64,
    pub(crate) base: u8,
    pub(crate) index: u8,
    pub(crate) scale: u8,
    pub(crate) seg: u8,
    /// 0, 32 or 48: how many high bits the address size cuts off.
    pub(crate) cut: u8,
}

/// Prefix bits of [`Op::prefix`].
pub(crate) mod prefix {
    /// LOCK.
    pub(crate) const LOCK: u8 = 1;
    /// REP or REPE.
    pub(crate) const REP: u8 = 2;
    /// REPNE.
    pub(crate) const REPNE: u8 = 4;
}

/// One instruction.
#[derive(Clone)]
pub(crate) struct Op {
    pub(crate) run: Handler,
    pub(crate) imm: u64,
    pub(crate) mem: Mem,
    pub(crate) dst: u8,
    pub(crate) src: u8,
    pub(crate) src2: u8,
    /// Length in bytes, 1 to 15.
    pub(crate) len: u8,
    pub(crate) prefix: u8,
    /// Operand size in bytes.
    pub(crate) size: u8,
    /// Vector and x87 instructions are planned apart.
    pub(crate) vector: Option<Box<VectorOp>>,
}

impl Op {
    /// Whether LOCK stands before the instruction.
    #[inline]
    pub(crate) const fn locked(&self) -> bool {
        self.prefix & prefix::LOCK != 0
    }
}
