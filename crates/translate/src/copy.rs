//! Instructions that run as they are, their operands renamed.
//!
//! Registers go to their homes; those without one are loaded into a scratch register before and stored after; the memory
//! operand becomes the host address that the check left. Two scratch registers have to serve for everything, so each
//! instruction is *planned* first: who gets RAX, who RCX. What does not fit is left to the interpreter; that is rare
//! (two homeless registers and memory in one instruction).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::again::Again;
use crate::asm::Condition;
use crate::block::Form;
use crate::catalogue;
use crate::compat;
use crate::emit::{Emitter, Result, Unsupported};
use crate::facts::{self, Facts};
use crate::flags::{Effect, effect};
use crate::groups::{Group, Key, Member};
use crate::host::{Gpr, is_high_byte};
use crate::rip::Literal;
use crate::steady::Folded;

/// Who holds what while the instruction executes.
#[derive(Default)]
struct Plan {
    /// The scratch register with the memory operand's address, or that of its page's displacement.
    address: Option<Gpr>,
    /// The guest's base register, if the operand is relative to one and the displacement is what is at hand.
    base: Option<Gpr>,
    /// How it is scaled, if it is the index of a stream's operand.
    scale: u32,
    /// The operand's offset in its group's range, if it is a member of another group, or in its page.
    offset: i32,
    /// What it is if it is relative to RIP and shares no check.
    literal: Option<Literal>,
    /// Guest registers in scratch registers, and how they are used.
    held: [Option<Held>; 2],
}

struct Held {
    guest: Gpr,
    scratch: Gpr,
    read: bool,
    written: bool,
}

impl Plan {
    /// Those in scratch registers.
    fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().flatten()
    }

    fn is_free(&self, scratch: Gpr) -> bool {
        let base = self.base.is_some_and(|base| base.home().is_none()) && scratch == Gpr::RAX;
        !base && self.address != Some(scratch) && self.held().all(|held| held.scratch != scratch)
    }

    fn holder(&self, guest: Gpr) -> Option<Gpr> {
        self.held().find(|held| held.guest == guest).map(|held| held.scratch)
    }

    /// Wants a guest register in a particular scratch register.
    fn hold(&mut self, guest: Gpr, scratch: Gpr, read: bool, written: bool) -> Result {
        if let Some(held) = self.held.iter_mut().flatten().find(|held| held.guest == guest) {
            held.read |= read;
            held.written |= written;
            return if held.scratch == scratch { Ok(()) } else { Err(Unsupported) };
        }
        if !self.is_free(scratch) {
            return Err(Unsupported);
        }
        let free = self.held.iter_mut().find(|held| held.is_none()).ok_or(Unsupported)?;
        *free = Some(Held { guest, scratch, read, written });
        Ok(())
    }

    fn hold_anywhere(&mut self, guest: Gpr, read: bool, written: bool) -> Result {
        let free = self.holder(guest).or_else(|| [Gpr::RCX, Gpr::RAX].into_iter().find(|&s| self.is_free(s)));
        self.hold(guest, free.ok_or(Unsupported)?, read, written)
    }
}

/// Translates `insn`, of which `catalogue` or `x87` has said that it may be copied.
pub(crate) fn copy(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let general = catalogue::without_accumulator(insn);
    let effect = effect(&general);
    let has_memory = catalogue::names_memory(&general);
    let carried = e.delta.take();
    if let Some(member) = e.member.filter(|_| has_memory)
        && copy_member(e, &general, effect, member, carried).is_ok()
    {
        return Ok(());
    }
    let based = if has_memory { by_itself(e, &general) } else { None };
    let based = based.and_then(|shape| plan(e, &general, Some(shape), effect).ok());
    let plan = match based {
        Some(plan) => plan,
        None => plan(e, &general, has_memory.then_some(Shape::Single), effect)?,
    };
    if has_memory {
        locate(e, &general, &plan)?;
    } else if plan.is_free(Gpr::RCX) {
        e.delta = carried;
    }
    let own = !has_memory
        && e.lodgers.is_empty()
        && general.code() == insn.code()
        && !e.is_compat()
        && e.source.check.is_none();
    execute(e, &general, effect, &plan, own)
}

/// As a member of a group: the address is the guest's own, with the group's displacement in RCX as an index.
fn copy_member(
    e: &mut Emitter<'_>,
    insn: &Instruction,
    effect: Effect,
    member: Member,
    carried: Option<u8>,
) -> Result {
    let mark = e.mark();
    let plan = plan(e, insn, Some(Shape::Member(member)), effect)?;
    if plan.base.is_some_and(|base| base.home().is_none()) && effect.needs && e.form != Form::Dead {
        // Loading the flags would take RAX, which has to hold the base.
        return Err(Unsupported);
    }
    let attempt =
        reach_member(e, insn, member, carried).and_then(|()| execute(e, insn, effect, &plan, false));
    if attempt.is_err() {
        e.roll_back(&mark);
    } else {
        e.delta = Some(member.group);
    }
    attempt
}

fn reach_member(e: &mut Emitter<'_>, insn: &Instruction, member: Member, carried: Option<u8>) -> Result {
    let displacement = x86::bits::low32(insn.memory_displacement64()).cast_signed();
    let Some(mask) =
        catalogue::alignment_mask(insn).filter(|&mask| !e.is_aligned(member, displacement, mask))
    else {
        return e.reach(member, carried);
    };
    e.spare_flags();
    e.effective_address(insn)?;
    e.asm.test_low_bits(Gpr::RAX, mask);
    let misaligned = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(misaligned);
    // A homeless index was read into RCX.
    let kept = Gpr::of(insn.memory_index()).is_none_or(|index| index.home().is_some());
    e.reach(member, carried.filter(|_| kept))
}

/// The instruction itself, the guest's `own` bytes of it if they may do and no operand is another.
fn execute(e: &mut Emitter<'_>, general: &Instruction, effect: Effect, plan: &Plan, own: bool) -> Result {
    if effect.needs {
        e.load_flags();
    }
    for held in plan.held().filter(|held| held.read) {
        e.read_into(held.scratch, held.guest);
    }
    if let Some(base) = plan.base.filter(|base| base.home().is_none()) {
        e.read_into(Gpr::RAX, base);
    }
    let host = renamed(general, plan)?;
    e.before_copy();
    if own && host == *general {
        e.own_bytes();
    } else {
        e.encode(&host)?;
    }
    for held in plan.held().filter(|held| held.written) {
        e.write(held.guest, held.scratch);
    }
    if effect.changes {
        let whole = !effect.needs && plan.held().next().is_none();
        e.flags_computed(if whole { Again::of(general, &host) } else { None });
    }
    Ok(())
}

/// How a memory operand that shares no check is reached, if not by its linear address.
fn by_itself(e: &Emitter<'_>, insn: &Instruction) -> Option<Shape> {
    let aligned = |literal: &Literal| {
        catalogue::alignment_mask(insn).is_none_or(|mask| literal.offset & i32::from(mask) == 0)
    };
    let literal = Literal::of(insn).filter(aligned);
    literal.map(Shape::Literal).or_else(|| based(e, insn).map(Shape::Based))
}

/// The register that a memory operand is relative to, if it is that and a constant and nothing has to be loaded for it. Two
/// registers may take a prefix that instructions with AH and its like have no room for.
fn based(e: &Emitter<'_>, insn: &Instruction) -> Option<Gpr> {
    let elsewhere = matches!(insn.memory_segment(), Register::FS | Register::GS);
    let alone = insn.memory_base().is_gpr64() && insn.memory_index() == Register::None;
    let base = Gpr::of(insn.memory_base()).filter(|base| base.home().is_some());
    let high = (0..insn.op_count()).any(|i| is_high_byte(insn.op_register(i)));
    base.filter(|_| alone && !elsewhere && !high && !e.streaming && !e.is_compat())
}

/// The memory operand's host address or, if it is relative to a register, the displacement, in the scratch register that the
/// plan says.
fn locate(e: &mut Emitter<'_>, insn: &Instruction, plan: &Plan) -> Result {
    let bytes = insn.memory_size().size();
    if bytes == 0 {
        return Err(Unsupported);
    }
    e.spare_flags();
    let write = facts::writes_memory(insn);
    if let (Some(literal), Some(to)) = (plan.literal, plan.address) {
        e.reach_literal(to, literal, write);
        return Ok(());
    }
    e.linear_address(insn)?;
    if let Some(mask) = catalogue::alignment_mask(insn) {
        e.asm.test_low_bits(Gpr::RAX, mask);
        let misaligned = e.asm.jcc(Condition::NOT_EQUAL);
        e.interpret_from(misaligned);
    }
    if plan.base.is_some() {
        return e.check_based(bytes, write);
    }
    e.check(bytes, write)?;
    if plan.address == Some(Gpr::RCX) {
        e.asm.mov(Gpr::RCX, Gpr::RAX);
    }
    Ok(())
}

/// How the memory operand is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Single,
    /// Relative to this register.
    Based(Gpr),
    /// Relative to RIP.
    Literal(Literal),
    Member(Member),
}

fn plan(e: &mut Emitter<'_>, insn: &Instruction, memory: Option<Shape>, effect: Effect) -> Result<Plan> {
    // x87 and MMX instructions, which `catalogue` does not list, have none.
    let implicit = catalogue::implicit(insn).unwrap_or_default();
    let high = (0..insn.op_count()).find(|&i| is_high_byte(insn.op_register(i)));
    let mut plan = Plan::default();
    match memory {
        Some(Shape::Single | Shape::Literal(_)) => {
            // Loading the flags takes RAX for a moment, AH is in no other register.
            let elsewhere = effect.needs && e.form != Form::Dead || high.is_some() || implicit.uses(Gpr::RAX);
            plan.address = Some(if elsewhere { Gpr::RCX } else { Gpr::RAX });
        }
        Some(Shape::Based(base)) => {
            plan.address = Some(Gpr::RCX);
            (plan.base, plan.scale) = (Some(base), 1);
        }
        Some(Shape::Member(member)) => {
            plan.address = Some(Gpr::RCX);
            let group = e.groups.group_of(member).ok_or(Unsupported)?;
            match group.key {
                Key::Register(base) => (plan.base, plan.scale) = (Some(base), 1),
                Key::Stream(Folded::Page) => {
                    plan.offset = catalogue::displacement(insn).ok_or(Unsupported)?;
                }
                Key::Stream(folded) => (plan.base, plan.scale) = unfolded(insn, folded)?,
                Key::Indexed { .. } | Key::Page(_) => {
                    plan.offset = offset_in(&group, member, insn).ok_or(Unsupported)?;
                }
            }
        }
        None => {}
    }
    if let Some(Shape::Literal(literal)) = memory {
        (plan.literal, plan.offset) = (Some(literal), literal.offset);
    }
    for (guest, read, written) in implicit.list() {
        plan.hold(guest, guest, read, written)?;
    }
    let facts = Facts::of(insn);
    if let Some(high) = high {
        let guest = Gpr::of(insn.op_register(high)).ok_or(Unsupported)?;
        plan.hold(guest, Gpr::RAX, true, facts.writes(high))?;
    }
    let registers = |i: &u32| insn.op_kind(*i) == OpKind::Register;
    // A count is in CL and nowhere else; the same register may be what is shifted.
    if (0..insn.op_count()).filter(registers).any(|i| catalogue::count_register(insn, i)) {
        plan.hold(Gpr::RCX, Gpr::RCX, true, false)?;
    }
    for i in (0..insn.op_count()).filter(registers) {
        let register = insn.op_register(i);
        let Some(guest) = Gpr::of(register) else {
            if register.is_xmm() || register.is_ymm() || register.is_mm() || register.is_st() {
                continue;
            }
            return Err(Unsupported);
        };
        let written = facts.writes(i);
        // A narrow result leaves the rest of the register as it is.
        let read = (facts.reads(i) && !is_zeroed(insn)) || register.size() < 4;
        if high.is_some() || plan.holder(guest).is_some() || guest.home().is_none() {
            plan.hold_anywhere(guest, read, written)?;
        }
    }
    Ok(plan)
}

/// The register that a stream's operand still names if what is folded into the displacement is left out, and its scale.
fn unfolded(insn: &Instruction, folded: Folded) -> Result<(Option<Gpr>, u32)> {
    let (base, index) = (Gpr::of(insn.memory_base()), Gpr::of(insn.memory_index()));
    match folded {
        Folded::Register(register) | Folded::Foreseen(register, _) if base == Some(register) => {
            Ok((index, insn.memory_index_scale()))
        }
        _ => Ok((Some(base.ok_or(Unsupported)?), 1)),
    }
}

/// Where the operand is in the range of its group.
fn offset_in(group: &Group, member: Member, insn: &Instruction) -> Option<i32> {
    let origin = if let Key::Page(page) = group.key { page << 12 } else { group.low };
    catalogue::displacement(insn)?.checked_add(member.shift)?.checked_sub(origin)
}

/// Whether it makes a register zero, whatever it was.
fn is_zeroed(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
        && insn.op1_kind() == OpKind::Register
        && insn.op0_register() == insn.op1_register()
}

/// The instruction with the host's operands.
fn renamed(insn: &Instruction, plan: &Plan) -> Result<Instruction> {
    let mut host = *insn;
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register => {
                let register = insn.op_register(i);
                if let Some(guest) = Gpr::of(register) {
                    host.set_op_register(i, host_register(guest, register, plan)?);
                }
            }
            OpKind::Memory => {
                let address = plan.address.ok_or(Unsupported)?;
                match plan.base {
                    Some(base) => {
                        let base = base.home().unwrap_or(Gpr::RAX);
                        if insn.memory_base().size() == 4 {
                            // 32 bits, now with a sign; the encoder finds the size.
                            let displacement = i64::from(compat::displacement(insn));
                            host.set_memory_displacement64(displacement.cast_unsigned());
                            host.set_memory_displ_size(u32::from(displacement != 0));
                        }
                        let (base, index) = if plan.scale == 1 { (base, address) } else { (address, base) };
                        host.set_segment_prefix(Register::None);
                        host.set_memory_base(base.sized(8));
                        host.set_memory_index(index.sized(8));
                        host.set_memory_index_scale(plan.scale);
                    }
                    None => at_address(&mut host, address, plan.offset),
                }
            }
            _ => {}
        }
    }
    Ok(host)
}

fn host_register(guest: Gpr, register: Register, plan: &Plan) -> Result<Register> {
    let holder = plan.holder(guest).or_else(|| guest.home()).ok_or(Unsupported)?;
    if is_high_byte(register) {
        return match holder {
            Gpr::RAX => Ok(Register::AH),
            Gpr::RCX => Ok(Register::CH),
            _ => Err(Unsupported),
        };
    }
    Ok(holder.sized(register.size()))
}

/// Makes the memory operand the one at an offset from the host address in a register.
pub(crate) fn at_address(host: &mut Instruction, address: Gpr, offset: i32) {
    host.set_segment_prefix(Register::None);
    host.set_memory_base(address.sized(8));
    host.set_memory_index(Register::None);
    host.set_memory_index_scale(1);
    host.set_memory_displacement64(i64::from(offset).cast_unsigned());
    host.set_memory_displ_size(u32::from(offset != 0));
}

/// LEA: an address that is not accessed.
pub(crate) fn lea(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let register = insn.op0_register();
    let guest = Gpr::of(register).ok_or(Unsupported)?;
    // A homeless index takes RCX.
    if Gpr::of(insn.memory_index()).is_some_and(|index| index.home().is_none()) {
        e.delta = None;
    }
    // Without a segment; RIP is the guest's.
    let bytes = register.size();
    if bytes != 8 && bytes != 4 {
        return Err(Unsupported);
    }
    let to = guest.home().unwrap_or(Gpr::RAX);
    e.effective_address_in(to, bytes, insn)?;
    e.write(guest, to);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::listing::{exits, text};
    use crate::{Exit, Mode};

    #[test]
    fn an_access_by_a_register_and_a_constant_has_the_displacement_as_its_index() {
        // mov rbx, [rdx+8]
        let listing = text(Mode::USER, &[0x48, 0x8b, 0x5a, 0x08]);
        assert!(listing.iter().any(|line| line == "mov rbx,[rdx+rcx+8]"), "{listing:#?}");
    }

    #[test]
    fn high_bytes_have_no_room_for_a_second_register() {
        // mov [rsp+1], ah; mov [rax+1], ch; add dh, [rcx]
        for bytes in [&[0x88, 0x64, 0x24, 0x01][..], &[0x88, 0x68, 0x01], &[0x02, 0x31]] {
            let exits = exits(Mode::USER, bytes);
            assert!(!exits.contains(&Exit::Interpret), "{bytes:02x?}: {exits:?}");
        }
    }
}
