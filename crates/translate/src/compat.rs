//! 32-bit code in compatibility mode: what is different there from 64-bit code.
//!
//! Only flat code is translated: CS, SS, DS and ES begin at 0 and end at 4 GiB, and the engine makes sure of that. FS and
//! GS may have a base ([`Mode::FS`](crate::Mode::FS), [`Mode::GS`](crate::Mode::GS)). So a linear address is an effective one, cut to 32
//! bits ([`address`]).
//!
//! # Upper halves
//! The upper halves of the eight registers are zero when translated code is entered (they are undefined, SDM vol. 1,
//! 3.4.1.1, so the engine may clear them), and stay so: a 32-bit result clears them, a narrower one leaves them.
//!
//! # No address wraps
//! An access that begins in the first or the last page below 4 GiB is never made through the TLB (the engine refuses them
//! to user code). So a string piece, and a base near an address that was checked, neither run past 4 GiB nor below 0: a
//! group of accesses may name its members by the base's 64 bits as long as they are near it ([`NEAR`]).
//!
//! # Encodings
//! What 64-bit mode encodes otherwise is changed ([`crate::catalogue::without_accumulator`]); what it does not know, such as
//! PUSHA, BOUND, far transfers and the decimal adjustments, is refused by the encoder or by name, and interpreted.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::asm::Op;
use crate::block::Mode;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// The most that a group's access may be away from its base register, in bytes: less than a page.
pub(crate) const NEAR: i32 = 2048;

/// RAX = the linear address of a memory operand. RCX may be lost; flags are free.
pub(crate) fn linear_address(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let slot = segment(e.mode, insn)?;
    address(e, insn)?;
    if let Some(slot) = slot {
        e.asm.gs_op32(Op::Add, Gpr::RAX, at::SEGMENT_BASE + 8 * slot);
    }
    Ok(())
}

/// Which base is to be added, if any.
fn segment(mode: Mode, insn: &Instruction) -> Result<Option<i32>> {
    match insn.memory_segment() {
        Register::FS if mode.has(Mode::FS) => Ok(Some(0)),
        Register::GS if mode.has(Mode::GS) => Ok(Some(1)),
        Register::DS | Register::ES | Register::SS => Ok(None),
        // CS cannot be written through.
        _ => Err(Unsupported),
    }
}

/// RAX = the effective address, 32 bits of it. RCX may be lost, flags stay.
pub(crate) fn address(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let displacement = displacement(insn);
    let register = |name: Register| match name {
        Register::None => Ok(None),
        _ if name.size() == 4 => Gpr::of(name).map(Some).ok_or(Unsupported),
        _ => Err(Unsupported),
    };
    match (register(insn.memory_base())?, register(insn.memory_index())?) {
        (Some(base), None) => {
            let base = e.read(base, Gpr::RAX);
            e.asm.lea32(Gpr::RAX, base, displacement);
        }
        (base, Some(index)) => {
            let index = e.read(index, Gpr::RCX);
            let base = base.map(|base| e.read(base, Gpr::RAX));
            let scale = u8::try_from(insn.memory_index_scale().trailing_zeros()).map_err(|_| Unsupported)?;
            e.asm.lea_indexed(false, Gpr::RAX, base, index, scale, displacement);
        }
        // With 16-bit addresses, the displacement is cut.
        (None, None) if insn.memory_displ_size() == 4 => {
            e.asm.mov_imm32(Gpr::RAX, displacement.cast_unsigned());
        }
        (None, None) => return Err(Unsupported),
    }
    Ok(())
}

/// A memory operand's displacement, with its sign.
pub(crate) fn displacement(insn: &Instruction) -> i32 {
    x86::bits::low32(insn.memory_displacement64()).cast_signed()
}

/// Whether an instruction that 64-bit mode knows does something else there.
pub(crate) fn is_different(insn: &Instruction) -> bool {
    // These are about all the vector registers that there are.
    matches!(insn.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper)
}

/// The operand of a string instruction with 32-bit addresses.
pub(crate) const fn is_string_operand(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI)
}
