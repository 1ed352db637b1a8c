//! Whether a vector or MMX instruction may execute (SDM vol. 2, 2.4 and 2.5; vol. 3, 23.25 and table 13-1).
//!
//! | form | #UD | #NM | also |
//! |---|---|---|---|
//! | MMX registers | CR0.EM; CR4.OSFXSR = 0 unless the instruction is of MMX itself | CR0.TS | #MF for a pending x87 exception |
//! | legacy SSE | CR0.EM; CR4.OSFXSR = 0 | CR0.TS | #GP(0) for a misaligned 16-byte operand |
//! | VEX | real or virtual-8086 mode; CR4.OSXSAVE = 0; XCR0\[2:1\] ≠ 3 | CR0.TS | #GP(0) only from the aligned moves |

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};
use x86::control::{cr0, cr4, xcr0};
use x86::{Exception, Mode};

use super::environment::Environment;
use super::mmx;
use crate::op::Mem;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mmx { osfxsr: bool },
    Sse,
    Vex,
}

/// The checks of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    kind: Kind,
    alignment: u8,
    checked: u8,
}

impl Guard {
    /// The checks that `instruction` needs.
    pub(crate) fn of(instruction: &Instruction) -> Self {
        let mmx = instruction.mnemonic() == Mnemonic::Emms
            || (0..instruction.op_count()).any(|index| {
                instruction.op_kind(index) == OpKind::Register && instruction.op_register(index).is_mm()
            });
        let kind = if instruction.encoding() == EncodingKind::VEX {
            Kind::Vex
        } else if mmx {
            Kind::Mmx { osfxsr: !instruction.cpuid_features().contains(&CpuidFeature::MMX) }
        } else {
            Kind::Sse
        };
        let alignment = instruction::required_alignment(instruction);
        Self { kind, alignment, checked: checked_alignment(instruction) }
    }

    /// What the memory operand must be aligned to.
    #[inline]
    pub(crate) fn alignment(self) -> u64 {
        u64::from(self.alignment)
    }

    /// What alignment checks demand of the memory operand (SDM vol. 3, table 6-7).
    #[inline]
    pub(crate) fn checked_alignment(self) -> u64 {
        u64::from(self.checked)
    }

    /// Whether upper halves are cleared by writes.
    #[inline]
    pub(crate) fn is_vex(self) -> bool {
        self.kind == Kind::Vex
    }

    /// Makes the checks that come before any operand is looked at.
    #[inline]
    pub(crate) fn check<E: Environment>(self, env: &mut E) -> Result<(), E::Break> {
        let c = env.control();
        let undefined = match self.kind {
            Kind::Vex => {
                c.cr4 & cr4::OSXSAVE == 0
                    || c.xcr0 & (xcr0::SSE | xcr0::AVX) != xcr0::SSE | xcr0::AVX
                    || matches!(c.mode, Mode::Real | Mode::V86)
            }
            Kind::Sse => c.cr0 & cr0::EM != 0 || c.cr4 & cr4::OSFXSR == 0,
            Kind::Mmx { osfxsr } => c.cr0 & cr0::EM != 0 || osfxsr && c.cr4 & cr4::OSFXSR == 0,
        };
        if undefined {
            return Err(env.raise(Exception::ud()));
        }
        if c.cr0 & cr0::TS != 0 {
            return Err(env.raise(Exception::nm()));
        }
        if matches!(self.kind, Kind::Mmx { .. }) && mmx::is_pending(env.units().fpu) {
            return Err(env.x87_error());
        }
        Ok(())
    }
}

/// What alignment checks demand of an operand of so many bytes (SDM vol. 3, table 6-7): its size; 8 for an 80-bit one.
/// Of wider operands the forms that allow any alignment are exempt, the others raise #GP anyway.
pub(crate) fn natural(bytes: usize) -> u8 {
    match bytes {
        2 => 2,
        4 => 4,
        8 | 10 => 8,
        _ => 1,
    }
}

/// The half-precision conversions are exempt (exceptions of type 11).
fn checked_alignment(instruction: &Instruction) -> u8 {
    match instruction.mnemonic() {
        Mnemonic::Vcvtph2ps | Mnemonic::Vcvtps2ph => 1,
        _ => natural(instruction.memory_size().size()),
    }
}

/// Raises #GP(0) unless the operand is aligned.
#[inline]
pub(crate) fn check_alignment<E: Environment>(
    env: &mut E,
    mem: &Mem,
    alignment: u64,
    size: usize,
    write: bool,
) -> Result<(), E::Break> {
    if alignment > 1 {
        let offset = env.offset(mem);
        let address = env.linear(mem.seg, offset, size as u64, write)?;
        if !address.is_multiple_of(alignment) {
            return Err(env.raise(Exception::gp(0)));
        }
    }
    Ok(())
}
