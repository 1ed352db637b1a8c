//! Sensitive and privileged instructions that are short inline.
//!
//! The flags that are not status flags, the selectors, the bases of FS and GS are words of the [`Context`]; changing one
//! is a store. What would have a consequence elsewhere is left to the interpreter: letting in an event that waits, trap
//! flags, a change of mode other than by SYSCALL, SYSRET, IRETQ, STAC and CLAC.
//!
//! [`Context`]: crate::Context

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::rflags;

use crate::asm::{Condition, Op, Place};
use crate::block::{Form, Mode};
use crate::branch::{self, Flow, poll_freely};
use crate::context::{at, fast_segments, gpr_at};
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;
use crate::iret::iret;

/// A mask of RFLAGS as an immediate.
pub(crate) const fn mask(flags: u64) -> i32 {
    x86::bits::low32(flags).cast_signed()
}

/// What POPF, IRET and SYSRET may change without a consequence other than the flag's own.
const HARMLESS: u64 = rflags::STATUS | rflags::DF;
/// The bits that POPF looks at at all.
const LOADED: u64 = 0x003f_7fd5;

/// Translates one of these instructions; `Err` if it is none, or not in this mode.
pub(crate) fn system(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    use Mnemonic as M;
    let supervisor = !e.mode.has(Mode::USER);
    match insn.mnemonic() {
        M::Pushfq | M::Pushfd => push_flags(e)?,
        M::Popfq | M::Popfd => pop_flags(e, supervisor)?,
        M::Cli if supervisor => {
            e.free_flags();
            e.asm.gs_op_imm(Op::And, at::SYSTEM_FLAGS, !mask(rflags::IF));
        }
        M::Sti if supervisor => set_interrupts(e),
        M::Stac if supervisor => access_check(e, true),
        M::Clac if supervisor => access_check(e, false),
        M::Swapgs if supervisor => swap_gs(e),
        M::Mov if insn.op1_register().is_segment_register() && insn.op0_kind() == OpKind::Register => {
            read_selector(e, insn)?;
        }
        M::Rdfsbase | M::Rdgsbase if e.mode.has(Mode::FSGSBASE) => read_base(e, insn)?,
        M::Wrfsbase | M::Wrgsbase if e.mode.has(Mode::FSGSBASE) => write_base(e, insn)?,
        M::Syscall if !supervisor && !e.is_compat() && e.mode.has(Mode::SYSCALL) => return syscall(e),
        M::Sysretq if supervisor && e.mode.has(Mode::SYSCALL) => return sysret(e),
        M::Iretq if supervisor => return iret(e),
        M::Mov if supervisor && insn.op1_register().is_cr() => read_control(e, insn)?,
        _ => return Err(Unsupported),
    }
    Ok(Flow::Next)
}

/// RCX = RFLAGS. The flags are in memory; RAX is lost.
fn whole_flags(e: &mut Emitter<'_>) {
    e.asm.gs_load16(Gpr::RAX, at::STATUS);
    e.asm.op32(Op::Mov, Gpr::RCX, Gpr::RAX);
    e.asm.shr(Gpr::RCX, 8);
    e.asm.op32_imm(Op::And, Gpr::RAX, 1);
    e.asm.shl32(Gpr::RAX, 11);
    e.asm.op32(Op::Or, Gpr::RCX, Gpr::RAX);
    e.asm.gs_op(Op::Or, Gpr::RCX, at::SYSTEM_FLAGS);
}

/// The status flags in memory become those of RAX. RAX and RCX are lost.
pub(crate) fn load_status(e: &mut Emitter<'_>) {
    e.asm.op32(Op::Mov, Gpr::RCX, Gpr::RAX);
    e.asm.shr(Gpr::RCX, 11);
    e.asm.op32_imm(Op::And, Gpr::RCX, 1);
    e.asm.op32_imm(Op::And, Gpr::RAX, mask(rflags::STATUS & 0xff));
    e.asm.shl32(Gpr::RAX, 8);
    e.asm.op32(Op::Or, Gpr::RAX, Gpr::RCX);
    e.asm.gs_store16(at::STATUS, Gpr::RAX);
    e.form = Form::Memory;
}

fn push_flags(e: &mut Emitter<'_>) -> Result {
    e.free_flags();
    whole_flags(e);
    e.asm.gs_store(at::TEMP, Gpr::RCX);
    let stack = crate::stack::below(e)?;
    e.asm.gs_load(Gpr::RCX, at::TEMP);
    e.store_word(Place::at(Gpr::RAX), Gpr::RCX);
    e.add(stack, stack, -e.word());
    Ok(())
}

fn pop_flags(e: &mut Emitter<'_>, supervisor: bool) -> Result {
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.free_flags();
    e.asm.mov(Gpr::RAX, stack);
    e.check_stack(e.mode.word(), false)?;
    e.load_word(Gpr::RAX, Place::at(Gpr::RAX));
    let changeable = if supervisor { HARMLESS | rflags::IF } else { HARMLESS };
    unless_harmless(e, changeable, LOADED);
    if supervisor {
        unless_nothing_waits(e);
    }
    e.add(stack, stack, e.word());
    take_over(e, changeable & !rflags::STATUS);
    load_status(e);
    Ok(())
}

/// Leaves unless RAX differs from the flags in force, of those in `looked_at`, only in `changeable`. RCX is lost.
fn unless_harmless(e: &mut Emitter<'_>, changeable: u64, looked_at: u64) {
    e.asm.gs_load(Gpr::RCX, at::SYSTEM_FLAGS);
    e.asm.op(Op::Xor, Gpr::RCX, Gpr::RAX);
    e.asm.test32_imm(Gpr::RCX, mask(looked_at & !changeable));
    let hole = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(hole);
}

pub(crate) fn unless_nothing_waits(e: &mut Emitter<'_>) {
    e.asm.gs_is_zero32(at::WAITING);
    let hole = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(hole);
}

/// These system flags become those of RAX. RCX is lost.
fn take_over(e: &mut Emitter<'_>, flags: u64) {
    e.asm.op32(Op::Mov, Gpr::RCX, Gpr::RAX);
    e.asm.op32_imm(Op::And, Gpr::RCX, mask(flags));
    e.asm.gs_op_imm(Op::And, at::SYSTEM_FLAGS, !mask(flags));
    e.asm.gs_or_store(at::SYSTEM_FLAGS, Gpr::RCX);
}

/// STI. Whoever waits is let in by the interpreter, after the instruction behind it; who comes later waits for the next
/// time that somebody looks, and the instruction behind does not.
fn set_interrupts(e: &mut Emitter<'_>) {
    e.free_flags();
    unless_nothing_waits(e);
    e.asm.gs_op_imm(Op::Or, at::SYSTEM_FLAGS, mask(rflags::IF));
    e.shadow = true;
}

/// STAC, CLAC: the accesses that follow use another TLB.
fn access_check(e: &mut Emitter<'_>, on: bool) {
    e.free_flags();
    let flag = mask(rflags::AC);
    let (op, value) = if on { (Op::Or, flag) } else { (Op::And, !flag) };
    e.asm.gs_op_imm(op, at::SYSTEM_FLAGS, value);
    e.mode = e.mode.without(Mode::AC).with(Mode::AC, on);
}

fn swap_gs(e: &mut Emitter<'_>) {
    e.asm.gs_load(Gpr::RAX, at::SEGMENT_BASE + 8);
    e.asm.gs_load(Gpr::RCX, at::KERNEL_GS_BASE);
    e.asm.gs_store(at::KERNEL_GS_BASE, Gpr::RAX);
    e.asm.gs_store(at::SEGMENT_BASE + 8, Gpr::RCX);
}

fn read_selector(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let (to, segment) = (insn.op0_register(), insn.op1_register());
    let guest = Gpr::of(to).ok_or(Unsupported)?;
    let number = i32::try_from(segment.number()).map_err(|_| Unsupported)?;
    e.asm.gs_load16(Gpr::RCX, at::SELECTORS + 2 * number);
    if to.size() == 2 {
        // The rest of the register stays.
        let home = guest.home().ok_or(Unsupported)?;
        let merge = Instruction::with2(Code::Mov_r16_rm16, home.sized(2), Register::CX);
        return e.encode(&merge.map_err(|_| Unsupported)?);
    }
    e.write(guest, Gpr::RCX);
    Ok(())
}

/// MOV from CR0, CR2, CR3 and CR4, which no translated code changes.
fn read_control(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    let number = match insn.op1_register() {
        Register::CR0 => 0,
        Register::CR2 => 2,
        Register::CR3 => 3,
        Register::CR4 => 4,
        _ => return Err(Unsupported),
    };
    e.asm.gs_load(Gpr::RCX, at::CONTROL + 8 * number);
    e.write(guest, Gpr::RCX);
    Ok(())
}

fn base_of(insn: &Instruction) -> i32 {
    let gs = matches!(insn.mnemonic(), Mnemonic::Rdgsbase | Mnemonic::Wrgsbase);
    at::SEGMENT_BASE + if gs { 8 } else { 0 }
}

fn read_base(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    e.asm.gs_load(Gpr::RAX, base_of(insn));
    if insn.op0_register().size() == 4 {
        e.asm.op32(Op::Mov, Gpr::RAX, Gpr::RAX);
    }
    e.write(guest, Gpr::RAX);
    Ok(())
}

fn write_base(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    e.free_flags();
    e.read_into(Gpr::RAX, guest);
    if insn.op0_register().size() == 4 {
        e.asm.op32(Op::Mov, Gpr::RAX, Gpr::RAX);
    }
    unless_canonical(e);
    e.asm.gs_store(base_of(insn), Gpr::RAX);
    Ok(())
}

/// Leaves unless RAX is a canonical address. RCX is lost.
fn unless_canonical(e: &mut Emitter<'_>) {
    e.asm.mov(Gpr::RCX, Gpr::RAX);
    e.asm.sar(true, Gpr::RCX, 47);
    e.asm.lea(Gpr::RCX, Gpr::RCX, 1);
    e.asm.op_imm(Op::Cmp, Gpr::RCX, 1);
    let hole = e.asm.jcc(Condition::ABOVE);
    e.interpret_from(hole);
}

/// SYSCALL from user mode, if the code at IA32_LSTAR is known.
fn syscall(e: &mut Emitter<'_>) -> Result<Flow> {
    let kernel = e.mode.without(Mode::USER);
    e.free_flags();
    e.asm.gs_load(Gpr::RAX, at::LSTAR);
    e.find_or_interpret(kernel);
    whole_flags(e);
    e.asm.gs_store(gpr_at(Gpr::R11), Gpr::RCX);
    e.asm.gs_op(Op::And, Gpr::RCX, at::FLAG_KEEP);
    // Status flags are kept apart.
    e.asm.mov(Gpr::RAX, Gpr::RCX);
    e.asm.op_imm(Op::And, Gpr::RCX, !mask(rflags::STATUS));
    e.asm.op_imm(Op::Or, Gpr::RCX, mask(rflags::FIXED));
    e.asm.gs_store(at::SYSTEM_FLAGS, Gpr::RCX);
    load_status(e);
    let count = Gpr::RCX.home().ok_or(Unsupported)?;
    e.asm.gs_load(count, at::PAGE);
    e.asm.lea(count, count, i32::from(e.next));
    e.asm.gs_load32(Gpr::RAX, at::SYSCALL_SELECTORS);
    e.asm.gs_store_imm32(at::SEGMENTS, fast_segments::SYSCALL);
    change_privilege(e, kernel);
    Ok(Flow::End)
}

/// The last steps of SYSCALL and SYSRET: EAX holds the selectors of CS and SS, and the code has been found.
fn change_privilege(e: &mut Emitter<'_>, mode: Mode) {
    e.asm.gs_store32(at::SELECTORS + 2, Gpr::RAX);
    branch::change_shadow(e, mode);
    branch::go_to_found(e);
}

/// SYSRET to 64-bit code, if the code there is known.
fn sysret(e: &mut Emitter<'_>) -> Result<Flow> {
    // What SYSRET loads (SDM vol. 2, SYSRET); with any but these the interpreter takes over.
    const RESTORED: u64 = 0x003c_7fd7;
    const PLAIN: u64 = rflags::STATUS | rflags::DF | rflags::IF | rflags::FIXED;
    let count = Gpr::RCX.home().ok_or(Unsupported)?;
    let user = e.mode.with(Mode::USER, true).without(Mode::AC);
    e.free_flags();
    // A program and its kernel may make a loop of SYSCALL and SYSRET alone.
    poll_freely(e);
    unless_nothing_waits(e);
    e.asm.gs_is_zero32(at::USER_CLOSED);
    let closed = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(closed);
    e.asm.gs_load(Gpr::RAX, gpr_at(Gpr::R11));
    e.asm.test_imm(Gpr::RAX, mask(RESTORED & !PLAIN));
    let hole = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(hole);
    e.asm.mov(Gpr::RAX, count);
    e.find_or_interpret(user);
    e.asm.gs_load(Gpr::RAX, gpr_at(Gpr::R11));
    e.asm.op32(Op::Mov, Gpr::RCX, Gpr::RAX);
    e.asm.op32_imm(Op::And, Gpr::RCX, mask(rflags::DF | rflags::IF));
    e.asm.op32_imm(Op::Or, Gpr::RCX, mask(rflags::FIXED));
    e.asm.gs_store(at::SYSTEM_FLAGS, Gpr::RCX);
    load_status(e);
    e.asm.gs_load32(Gpr::RAX, at::SYSRET_SELECTORS);
    e.asm.gs_store_imm32(at::SEGMENTS, fast_segments::SYSRET);
    change_privilege(e, user);
    Ok(Flow::End)
}

#[cfg(test)]
mod tests {
    use crate::listing::{exits, text};
    use crate::{Exit, Mode};

    #[test]
    fn control_registers_are_read_inline_by_the_supervisor() {
        for number in [0, 2, 3, 4] {
            let read = [0x0f, 0x20, 0xc0 | number << 3]; // mov rax, cr0 to cr4
            assert_eq!(exits(Mode::new(), &read), []);
            assert_eq!(exits(Mode::USER, &read), [Exit::Interpret]);
        }
        assert_eq!(exits(Mode::new(), &[0x44, 0x0f, 0x20, 0xc0]), [Exit::Interpret], "cr8");
        assert_eq!(exits(Mode::new(), &[0x0f, 0x22, 0xd8]), [Exit::Interpret], "mov cr3, rax");
    }

    #[test]
    fn a_selector_of_16_bits_leaves_the_rest_of_the_register() {
        assert!(text(Mode::USER, &[0x66, 0x8c, 0xc0]).contains(&"mov r10w,cx".to_owned()), "mov ax, es");
    }

    #[test]
    fn sysret_asks_whether_the_way_is_open() {
        let mode = Mode::SYSCALL;
        let left = exits(mode, &[0x48, 0x0f, 0x07]);
        assert_eq!(left.iter().filter(|&&exit| exit == Exit::Interpret).count(), 3, "{left:?}");
    }
}
