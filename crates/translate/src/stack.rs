//! PUSH, POP, LEAVE.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// Translates a stack instruction of 64-bit operand size; `Err` if it is none.
pub(crate) fn stack(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    match insn.mnemonic() {
        Mnemonic::Push if insn.stack_pointer_increment() == -8 => push(e, insn),
        Mnemonic::Pop if insn.stack_pointer_increment() == 8 => pop(e, insn),
        Mnemonic::Leave if insn.code() == iced_x86::Code::Leaveq => leave(e),
        _ => Err(Unsupported),
    }
}

/// RAX = the host address of the eight bytes below the stack pointer, which are to be written.
pub(crate) fn below(e: &mut Emitter<'_>) -> Result<Gpr> {
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.free_flags();
    e.asm.lea(Gpr::RAX, stack, -8);
    e.check_stack(8, true)?;
    Ok(stack)
}

/// RAX = the host address of the eight bytes at `offset` from the stack pointer, for an instruction whose access of
/// the stack may be a group's.
pub(crate) fn slot(e: &mut Emitter<'_>, offset: i32, write: bool) -> Result<Gpr> {
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    let carried = e.delta.take();
    if let Some(member) = e.member {
        e.reach(member, carried)?;
        e.delta = Some(member.group);
        e.asm.lea_indexed(true, Gpr::RAX, Some(stack), Gpr::RCX, 0, offset);
        return Ok(stack);
    }
    e.free_flags();
    e.asm.lea(Gpr::RAX, stack, offset);
    e.check_stack(8, write)?;
    e.delta = carried;
    Ok(stack)
}

fn push(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    match insn.op0_kind() {
        OpKind::Register => {
            let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
            let stack = slot(e, -8, true)?;
            if guest.home().is_none() {
                e.delta = None;
            }
            let value = e.read(guest, Gpr::RCX);
            e.asm.store(Gpr::RAX, 0, value);
            e.asm.lea(stack, stack, -8);
        }
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
            let value = i32::try_from(insn.immediate(0).cast_signed()).map_err(|_| Unsupported)?;
            let stack = slot(e, -8, true)?;
            e.asm.store_imm(Gpr::RAX, 0, value);
            e.asm.lea(stack, stack, -8);
        }
        OpKind::Memory => {
            e.delta = None;
            e.free_flags();
            e.linear_address(insn)?;
            e.check(8, false)?;
            e.asm.load(Gpr::RAX, Gpr::RAX, 0);
            e.asm.gs_store(at::TEMP, Gpr::RAX);
            let stack = below(e)?;
            e.asm.gs_load(Gpr::RCX, at::TEMP);
            e.asm.store(Gpr::RAX, 0, Gpr::RCX);
            e.asm.lea(stack, stack, -8);
        }
        _ => return Err(Unsupported),
    }
    Ok(())
}

fn pop(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    if insn.op0_kind() != OpKind::Register {
        return Err(Unsupported);
    }
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    let stack = slot(e, 0, false)?;
    // POP RSP: the increment comes before the value.
    e.asm.lea(stack, stack, 8);
    let to = guest.home().unwrap_or(Gpr::RAX);
    e.asm.load(to, Gpr::RAX, 0);
    e.write(guest, to);
    Ok(())
}

fn leave(e: &mut Emitter<'_>) -> Result {
    e.delta = None;
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.free_flags();
    e.asm.mov(Gpr::RAX, Gpr::RBP);
    e.check(8, false)?;
    e.asm.lea(stack, Gpr::RBP, 8);
    e.asm.load(Gpr::RBP, Gpr::RAX, 0);
    Ok(())
}
