//! Control flow.
//!
//! A direct jump within the page is one jump of the host's, made to lead to its target when that is known. One that
//! leaves the page crosses a *bridge* ([`crate::bridge`]), or, as every indirect one, goes through the *jump cache* of the
//! address space: a comparison and a jump.
//! Entries are dropped when a mapping changes, so that what is found is the right code.
//!
//! A call pushes the guest's return address on the guest's stack and, beside it, on the *shadow stack*: host RSP, where
//! the host's own CALL puts the host's return address. A return compares the guest's address with the shadow's and, if
//! they agree, is a host RET, which the host predicts. The shadow stack is a ring; an entry that was overwritten, or that
//! another stack's frames cover, just does not agree. Then the shadow stack is emptied: whatever it holds belongs to a
//! stack that has been left.
//!
//! Backward jumps and indirect ones first see whether anybody wants the vCPU's attention. Where the flags have to
//! stay in place that is JRCXZ on a word that is zero if so.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

use crate::asm::{Condition, Hole, Op};
use crate::block::{Exit, Form, Mode};
use crate::bridge;
use crate::context::{SHADOW_BYTES, at};
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;
use crate::routines::probe;
use crate::stack::{self, Slot};
use crate::survey::turn_again;

/// Whether translation may go on behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    End,
}

const PAGE: i64 = 4096;

/// An offset from the page's start that can be jumped to directly: it lies in the page, and the code there is of the
/// block's mode.
fn in_page(e: &Emitter<'_>, target: i64) -> Option<u16> {
    u16::try_from(target).ok().filter(|&offset| i64::from(offset) < PAGE && e.mode == e.source.mode)
}

/// Whether a branch may lead to where it came from: forward jumps alone make no loop, unless addresses wrap.
fn leads_back(e: &Emitter<'_>, target: i64) -> bool {
    target <= i64::from(e.at) || e.is_compat() && in_page(e, target).is_none()
}

/// Where a direct branch goes, from the page's start.
pub(crate) fn target_of(insn: &Instruction) -> Result<i64> {
    match insn.op0_kind() {
        OpKind::NearBranch64 => Ok(insn.near_branch64().cast_signed()),
        // Where it is added to the page's address the sum is cut.
        OpKind::NearBranch32 => Ok(insn.near_branch32().cast_signed().into()),
        _ => Err(Unsupported),
    }
}

/// Translates a control transfer; `Err` if it is not one that is known.
pub(crate) fn branch(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    use Mnemonic as M;
    // Nobody may be let in behind STI, and a loop has to let somebody in. A return that was foreseen is the end of a call,
    // which has.
    let returns = insn.mnemonic() == M::Ret;
    if e.shadow && !returns && target_of(insn).map_or(true, |target| leads_back(e, target)) {
        return Err(Unsupported);
    }
    // What follows takes RCX for itself; a forward conditional jump only if it leaves the page.
    if !(insn.is_jcc_short_or_near() && in_page(e, target_of(insn)?).is_some()) {
        e.delta = None;
    }
    match insn.mnemonic() {
        M::Jmp if insn.is_jmp_short_or_near() => jump(e, target_of(insn)?),
        M::Jmp if insn.is_jmp_near_indirect() => indirect_jump(e, insn),
        M::Call if insn.is_call_near() => call(e, target_of(insn)?),
        M::Call if insn.is_call_near_indirect() => indirect_call(e, insn),
        M::Ret if is_whole_return(insn) => ret(e, insn),
        M::Jrcxz | M::Jecxz => on_count(e, insn, insn.mnemonic() == M::Jecxz),
        M::Loop => loop_(e, insn),
        _ if insn.condition_code() != ConditionCode::None && insn.is_jcc_short_or_near() => {
            conditional(e, insn)
        }
        _ => Err(Unsupported),
    }
}

/// Whether it is a return that pops a word as wide as addresses are.
pub(crate) const fn is_whole_return(insn: &Instruction) -> bool {
    matches!(insn.code(), Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16)
}

/// Goes to an offset from the page's start, between instructions, and ends the block there.
pub(crate) fn go_to(e: &mut Emitter<'_>, target: i64) -> Result {
    if in_page(e, target).is_some() {
        return go_within(e, target);
    }
    e.free_flags();
    page_address(e, target)?;
    dispatch(e);
    Ok(())
}

/// Goes on with the next instruction, and ends the block there.
pub(crate) fn go_on(e: &mut Emitter<'_>, next: u16) -> Result {
    let target = i64::from(next);
    if in_page(e, target).is_some() || !bridge::fits(e, target) {
        return go_to(e, target);
    }
    e.free_flags();
    bridge::jump(e, target, next, Exit::Lookup)
}

/// Goes where the instruction, a jump, leads: see [`transfer`].
fn jump_to(e: &mut Emitter<'_>, target: i64) -> Result {
    if in_page(e, target).is_some() {
        return go_within(e, target);
    }
    e.free_flags();
    if bridge::fits(e, target) {
        return bridge::jump(e, target, e.at, Exit::Transfer { mode: e.mode });
    }
    page_address(e, target)?;
    transfer(e);
    Ok(())
}

fn go_within(e: &mut Emitter<'_>, target: i64) -> Result {
    let offset = in_page(e, target).ok_or(Unsupported)?;
    e.settle_flags();
    let hole = e.asm.jmp();
    e.link(hole, offset);
    Ok(())
}

/// RAX = the linear address of an offset from the page's start. Flags stay.
fn page_address(e: &mut Emitter<'_>, offset: i64) -> Result {
    let offset = i32::try_from(offset).map_err(|_| Unsupported)?;
    e.asm.gs_load(Gpr::RAX, at::PAGE);
    e.add(Gpr::RAX, Gpr::RAX, offset);
    Ok(())
}

/// Makes way for whoever wants attention. Flags stay where they are. The second part has to be called within a hundred
/// bytes, behind a jump.
struct Poll {
    short: Option<crate::asm::ShortHole>,
}

fn poll(e: &mut Emitter<'_>) -> Poll {
    if e.shadow {
        return Poll { short: None };
    }
    if matches!(e.form, Form::Memory | Form::Dead | Form::Again) {
        poll_freely(e);
        return Poll { short: None };
    }
    e.asm.gs_load32(Gpr::RCX, at::GO);
    Poll { short: Some(e.asm.jrcxz()) }
}

fn end_poll(e: &mut Emitter<'_>, poll: &Poll, form: Form) -> Result {
    let Some(short) = poll.short else { return Ok(()) };
    if !e.asm.fill_short(short) {
        return Err(Unsupported);
    }
    let hole = e.asm.jmp();
    let after = std::mem::replace(&mut e.form, form);
    e.attend_from(hole);
    e.form = after;
    Ok(())
}

/// As [`poll`], where the flags are in memory.
pub(crate) fn poll_freely(e: &mut Emitter<'_>) {
    if e.shadow {
        return;
    }
    e.asm.gs_is_zero32(at::GO);
    let hole = e.asm.jcc(Condition::EQUAL);
    e.attend_from(hole);
}

fn jump(e: &mut Emitter<'_>, target: i64) -> Result<Flow> {
    if !leads_back(e, target) {
        jump_to(e, target)?;
        return Ok(Flow::End);
    }
    let form = e.form;
    let poll = poll(e);
    jump_to(e, target)?;
    end_poll(e, &poll, form)?;
    Ok(Flow::End)
}

/// The condition of a conditional jump.
pub(crate) fn condition_of(insn: &Instruction) -> Result<Condition> {
    // The decoder numbers conditions from 1 in the order of their encodings.
    let number = insn.condition_code() as u8;
    number.checked_sub(1).map(Condition).ok_or(Unsupported)
}

fn conditional(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    let target = target_of(insn)?;
    let condition = condition_of(insn)?;
    e.load_flags();
    let Some(offset) = in_page(e, target) else {
        let not_taken = e.asm.jcc(Condition(condition.0 ^ 1));
        let flags = e.flags();
        if leads_back(e, target) {
            e.free_flags();
            poll_freely(e);
        }
        jump_to(e, target)?;
        e.set_flags(flags);
        e.asm.land(not_taken);
        return Ok(Flow::Next);
    };
    if target > i64::from(e.at) {
        let taken = e.asm.jcc(condition);
        e.link(taken, offset);
        return Ok(Flow::Next);
    }
    let form = e.form;
    let poll = poll(e);
    let taken = e.asm.jcc(condition);
    let turn = e.head.filter(|_| offset == e.source.offset).map(|head| (head, e.flags()));
    if turn.is_none() {
        e.link(taken, offset);
    }
    if in_page(e, e.next.into()).is_some() {
        go_on(e, e.next)?;
        end_poll(e, &poll, form)?;
    } else {
        let over = e.asm.jmp();
        end_poll(e, &poll, form)?;
        e.asm.land(over);
        go_on(e, e.next)?;
    }
    if let Some((head, flags)) = turn {
        turn_again(e, taken, flags, head);
    }
    Ok(Flow::End)
}

/// JRCXZ, JECXZ.
fn on_count(e: &mut Emitter<'_>, insn: &Instruction, narrow: bool) -> Result<Flow> {
    let target = target_of(insn)?;
    let count = Gpr::RCX.home().ok_or(Unsupported)?;
    if narrow {
        e.asm.op32(Op::Mov, Gpr::RCX, count);
    } else {
        e.asm.mov(Gpr::RCX, count);
    }
    on_zero(e, target)
}

/// LOOP with a count as wide as addresses.
fn loop_(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    let target = target_of(insn)?;
    if !matches!(insn.code(), Code::Loop_rel8_64_RCX | Code::Loop_rel8_32_ECX) {
        return Err(Unsupported);
    }
    let count = Gpr::RCX.home().ok_or(Unsupported)?;
    e.free_flags();
    if leads_back(e, target) {
        poll_freely(e);
    }
    e.add(count, count, -1);
    e.asm.mov(Gpr::RCX, count);
    let zero = e.asm.jrcxz();
    let taken = e.asm.jmp();
    if !e.asm.fill_short(zero) {
        return Err(Unsupported);
    }
    branch_to(e, taken, target)?;
    Ok(Flow::Next)
}

/// Goes to `target` if RCX is zero.
fn on_zero(e: &mut Emitter<'_>, target: i64) -> Result<Flow> {
    let zero = e.asm.jrcxz();
    let not_taken = e.asm.jmp();
    if !e.asm.fill_short(zero) {
        return Err(Unsupported);
    }
    let flags = e.flags();
    if leads_back(e, target) {
        e.free_flags();
        poll_freely(e);
    }
    go_to(e, target)?;
    // The two paths meet with the flags as they were: saving them on one changes nothing on the other.
    e.set_flags(flags);
    e.asm.land(not_taken);
    Ok(Flow::Next)
}

/// A jump that has been emitted leads to an offset from the page's start.
fn branch_to(e: &mut Emitter<'_>, hole: Hole, target: i64) -> Result {
    if let Some(offset) = in_page(e, target) {
        e.link(hole, offset);
        return Ok(());
    }
    let over = e.asm.jmp();
    e.asm.land(hole);
    let flags = e.flags();
    go_to(e, target)?;
    e.set_flags(flags);
    e.asm.land(over);
    Ok(())
}

/// Changes to the shadow stack of `mode`, which is of the other privilege.
pub(crate) fn change_shadow(e: &mut Emitter<'_>, mode: Mode) {
    let (from, to) = if mode.has(Mode::USER) { (0, 8) } else { (8, 0) };
    e.asm.gs_store(at::SHADOW + from, Gpr::RSP);
    e.asm.gs_load(Gpr::RSP, at::SHADOW + to);
}

/// Goes to the code that has been found. The flags are in memory.
pub(crate) fn go_to_found(e: &mut Emitter<'_>) {
    e.asm.gs_load(Gpr::RAX, at::TEMP);
    e.asm.gs_store(at::PAGE, Gpr::RAX);
    e.asm.gs_jmp(at::TEMP + 8);
}

/// Goes to the linear address in RAX, between instructions. Flags are in memory.
fn dispatch(e: &mut Emitter<'_>) {
    e.find_in_any_case();
    go_to_found(e);
}

/// The same as the last part of an instruction, which has not changed anything yet: where nothing is known it is
/// interpreted, because an address that is not canonical faults in the branch (SDM vol. 2, JMP).
fn transfer(e: &mut Emitter<'_>) {
    e.find_or_interpret(e.mode);
    go_to_found(e);
}

/// The entries of a block that is one instruction across two pages: they find it through the jump cache, or not at all.
/// Flags are in memory.
pub(crate) fn enter_by_jump_cache(e: &mut Emitter<'_>) -> Result {
    page_address(e, e.source.offset.into())?;
    dispatch(e);
    Ok(())
}

/// RAX = where an indirect branch goes. Flags are in memory afterwards.
fn indirect_target(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    e.free_flags();
    match insn.op0_kind() {
        OpKind::Register if insn.op0_register().size() == e.mode.word() => {
            let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
            e.read_into(Gpr::RAX, guest);
        }
        OpKind::Memory => e.load_operand(insn)?,
        _ => return Err(Unsupported),
    }
    Ok(())
}

fn indirect_jump(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    e.free_flags();
    poll_freely(e);
    indirect_target(e, insn)?;
    // Interpreters' dispatch is this: what the jump cache knows is not worth a call.
    let unknown = probe(&mut e.asm, e.mode.table(), e.source.host.bmi2);
    e.asm.op_imm(Op::And, Gpr::RAX, -4096);
    e.asm.gs_store(at::PAGE, Gpr::RAX);
    e.asm.gs_jmp_at(Gpr::RCX, at::jumps(e.mode.table()) + at::JUMP_CODE);
    e.asm.land(unknown);
    transfer(e);
    Ok(Flow::End)
}

/// Pushes the address of the next instruction on the guest's stack and on the shadow stack. It is in the register that is
/// given; the other scratch register is free.
pub(crate) fn push_return(e: &mut Emitter<'_>) -> Result<Gpr> {
    let Slot { stack, place, free } = stack::slot(e, -e.word(), true)?;
    e.asm.gs_load(free, at::PAGE);
    e.add(free, free, i32::from(e.next));
    e.store_word(place, free);
    e.add(stack, stack, -e.word());
    // One bit of RSP is always set: below the ring's bottom it leads back to the top.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    e.asm.op_imm(Op::Or, Gpr::RSP, SHADOW_BYTES as i32);
    e.asm.push(free);
    Ok(free)
}

/// Where a return arrives: RAX is the address of the next instruction.
fn landing(e: &mut Emitter<'_>) -> Result {
    e.asm.lea(Gpr::RSP, Gpr::RSP, 8);
    e.form = Form::Memory;
    match in_page(e, i64::from(e.next)) {
        Some(offset) => {
            e.asm.lea(Gpr::RAX, Gpr::RAX, -i32::from(offset));
            e.asm.gs_store(at::PAGE, Gpr::RAX);
            let hole = e.asm.jmp();
            e.link(hole, offset);
        }
        None => dispatch(e),
    }
    Ok(())
}

fn call(e: &mut Emitter<'_>, target: i64) -> Result<Flow> {
    e.free_flags();
    if leads_back(e, target) {
        poll_freely(e);
    }
    if let Some(offset) = in_page(e, target) {
        push_return(e)?;
        let hole = e.asm.call();
        e.link(hole, offset);
    } else if bridge::fits(e, target) {
        bridge::call(e, target)?;
    } else {
        page_address(e, target)?;
        call_known(e)?;
    }
    landing(e)?;
    Ok(Flow::End)
}

fn indirect_call(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    e.free_flags();
    poll_freely(e);
    indirect_target(e, insn)?;
    call_known(e)?;
    landing(e)?;
    Ok(Flow::End)
}

/// Calls the linear address in RAX if its code is known, and has the call interpreted if not. The host's return arrives
/// behind the emitted code.
fn call_known(e: &mut Emitter<'_>) -> Result {
    e.find_or_interpret(e.mode);
    push_return(e)?;
    e.asm.gs_load(Gpr::RAX, at::TEMP);
    e.asm.gs_store(at::PAGE, Gpr::RAX);
    e.asm.gs_call(at::TEMP + 8);
    Ok(())
}

fn ret(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    e.free_flags();
    let Slot { stack, place, .. } = stack::slot(e, 0, false)?;
    e.load_word(Gpr::RAX, place);
    e.asm.op_based(Op::Cmp, Gpr::RAX, Gpr::RSP, 8);
    let unforeseen = e.asm.jcc(Condition::NOT_EQUAL);
    let popped = insn.stack_pointer_increment();
    e.add(stack, stack, popped);
    e.asm.ret();
    if e.shadow {
        e.interpret_from(unforeseen);
        return Ok(Flow::End);
    }
    e.asm.land(unforeseen);
    let user = e.mode.has(Mode::USER);
    e.asm.gs_load(Gpr::RSP, at::SHADOW_TOP + if user { 8 } else { 0 });
    poll_freely(e);
    e.find_or_interpret(e.mode);
    e.add(stack, stack, popped);
    go_to_found(e);
    Ok(Flow::End)
}

#[cfg(test)]
mod tests {
    use crate::listing::{AT, block, exits, text};
    use crate::{Exit, Mode};

    #[test]
    fn a_loop_of_sti_alone_is_left() {
        let is_left = |bytes: &[u8]| {
            let sites = block(Mode::new(), bytes).sites;
            sites.iter().any(|site| (site.guest, site.exit) == (AT + 1, Exit::Interpret))
        };
        assert!(is_left(&[0xfb, 0xeb, 0xfd]), "sti; jmp -3");
        assert!(is_left(&[0xfb, 0xff, 0xe0]), "sti; jmp rax");
        assert!(is_left(&[0xfb, 0xc3]), "sti; ret");
        assert!(text(Mode::new(), &[0xfb, 0xc3]).contains(&"ret".to_owned()), "if it is foreseen");
        assert!(!is_left(&[0xfb, 0xeb, 0x00]), "sti; jmp +0");
    }

    #[test]
    fn forward_jumps_of_32_bit_code_may_come_round() {
        let polls = |mode: Mode, bytes: &[u8]| exits(mode, bytes).contains(&Exit::Attention);
        let compat = Mode::USER.with(Mode::COMPAT, true);
        let far = [0xe9, 0x50, 0x55, 0x55, 0x55];
        assert!(polls(compat, &far) && !polls(Mode::USER, &far));
        assert!(!polls(compat, &[0xeb, 0x10]), "in the page");
    }

    #[test]
    fn backward_jumps_make_way_for_who_wants_attention() {
        let polls = |bytes: &[u8]| exits(Mode::new(), bytes).contains(&Exit::Attention);
        assert!(polls(&[0x72, 0xf0]), "jb, in the page");
        assert!(polls(&[0x0f, 0x82, 0, 0xf0, 0xff, 0xff]), "jb, in the page before");
        assert!(polls(&[0xe9, 0, 0xf0, 0xff, 0xff]), "jmp, in the page before");
        assert!(polls(&[0xe2, 0x80]) && polls(&[0xe3, 0x80]), "loop, jrcxz");
        assert!(polls(&[0xff, 0xe0]), "jmp rax");
        assert!(!polls(&[0x72, 0x10]), "jb, forward");
        assert!(!polls(&[0x0f, 0x82, 0, 0x10, 0, 0]), "jb, in the next page");
    }
}
