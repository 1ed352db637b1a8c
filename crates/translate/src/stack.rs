//! PUSH, POP, LEAVE.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::asm::Place;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// Translates a stack instruction whose operand is as wide as addresses; `Err` if it is none.
pub(crate) fn stack(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    match insn.mnemonic() {
        Mnemonic::Push if insn.stack_pointer_increment() == -e.word() => push(e, insn),
        Mnemonic::Pop if insn.stack_pointer_increment() == e.word() => pop(e, insn),
        Mnemonic::Leave if matches!(insn.code(), Code::Leaveq | Code::Leaved) => leave(e),
        _ => Err(Unsupported),
    }
}

/// RAX = the host address of the word below the stack pointer, which is to be written.
pub(crate) fn below(e: &mut Emitter<'_>) -> Result<Gpr> {
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.free_flags();
    e.add(Gpr::RAX, stack, -e.word());
    e.check_stack(e.mode.word(), true)?;
    Ok(stack)
}

/// The word of the stack that an instruction accesses.
pub(crate) struct Slot {
    /// The stack pointer's home.
    pub(crate) stack: Gpr,
    /// Where the word is, in the host's addresses.
    pub(crate) place: Place,
    /// A scratch register that `place` does not use.
    pub(crate) free: Gpr,
}

/// The word at `offset` from the stack pointer, for an instruction whose access of the stack may be a group's.
pub(crate) fn slot(e: &mut Emitter<'_>, offset: i32, write: bool) -> Result<Slot> {
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    let carried = e.delta.take();
    if let Some(member) = e.member {
        e.reach(member, carried)?;
        e.delta = Some(member.group);
        let place = Place { base: stack, index: Some(Gpr::RCX), disp: offset };
        return Ok(Slot { stack, place, free: Gpr::RAX });
    }
    e.spare_flags();
    e.add(Gpr::RAX, stack, offset);
    e.check_stack(e.mode.word(), write)?;
    e.delta = carried;
    Ok(Slot { stack, place: Place::at(Gpr::RAX), free: Gpr::RCX })
}

fn push(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let word = e.word();
    match insn.op0_kind() {
        OpKind::Register => {
            let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
            let slot = slot(e, -word, true)?;
            if guest.home().is_none() && slot.free == Gpr::RCX {
                e.delta = None;
            }
            let value = e.read(guest, slot.free);
            e.store_word(slot.place, value);
            e.add(slot.stack, slot.stack, -word);
        }
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
            let value = i32::try_from(insn.immediate(0).cast_signed()).map_err(|_| Unsupported)?;
            push_immediate(e, value)?;
        }
        OpKind::Immediate8to32 | OpKind::Immediate32 if e.is_compat() => {
            push_immediate(e, x86::bits::low32(insn.immediate(0)).cast_signed())?;
        }
        OpKind::Memory => {
            e.delta = None;
            e.free_flags();
            e.load_operand(insn)?;
            e.asm.gs_store(at::TEMP, Gpr::RAX);
            let stack = below(e)?;
            e.asm.gs_load(Gpr::RCX, at::TEMP);
            e.store_word(Place::at(Gpr::RAX), Gpr::RCX);
            e.add(stack, stack, -word);
        }
        _ => return Err(Unsupported),
    }
    Ok(())
}

fn push_immediate(e: &mut Emitter<'_>, value: i32) -> Result {
    let word = e.word();
    let slot = slot(e, -word, true)?;
    e.store_word_imm(slot.place, value);
    e.add(slot.stack, slot.stack, -word);
    Ok(())
}

fn pop(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    if insn.op0_kind() != OpKind::Register {
        return Err(Unsupported);
    }
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    let slot = slot(e, 0, false)?;
    let to = guest.home().filter(|&home| home != slot.stack).unwrap_or(Gpr::RAX);
    e.load_word(to, slot.place);
    // POP RSP: the increment comes before the value.
    e.add(slot.stack, slot.stack, e.word());
    e.write(guest, to);
    Ok(())
}

fn leave(e: &mut Emitter<'_>) -> Result {
    e.delta = None;
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.free_flags();
    e.asm.mov(Gpr::RAX, Gpr::RBP);
    e.check(e.mode.word(), false)?;
    e.add(stack, Gpr::RBP, e.word());
    e.load_word(Gpr::RBP, Place::at(Gpr::RAX));
    Ok(())
}
