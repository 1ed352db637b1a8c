//! Instructions that need more than new names for their operands.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::asm::{Condition, Op};
use crate::block::{Form, Mode};
use crate::clock::{processor_id, time_stamp};
use crate::copy::at_address;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;
use crate::mxcsr::mxcsr;
use crate::pause::pause;
use crate::strings::string;

/// Translates one of them; `Err` if it is none.
pub(crate) fn special(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    use Mnemonic as M;
    match insn.mnemonic() {
        // Hints, and markers of features that no model has.
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw => Ok(()),
        M::Div => divide(e, insn, false),
        M::Idiv => divide(e, insn, true),
        M::Bt | M::Bts | M::Btr | M::Btc
            if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
        {
            bit_string(e, insn)
        }
        M::Cmpxchg8b | M::Cmpxchg16b => wide_exchange(e, insn),
        M::Cld | M::Std => {
            direction(e, insn.mnemonic() == M::Std);
            Ok(())
        }
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr => mxcsr(e, insn),
        M::Rdtsc | M::Rdtscp if e.mode.has(Mode::TSC) => time_stamp(e, insn.mnemonic() == M::Rdtscp),
        M::Rdpid => processor_id(e, insn),
        M::Pause => pause(e, insn),
        _ if insn.is_string_instruction() => string(e, insn),
        _ => Err(Unsupported),
    }
}

/// The direction flag is in memory, always: the host's own stays clear.
fn direction(e: &mut Emitter<'_>, down: bool) {
    const DF: i32 = 1 << 10;
    e.free_flags();
    let (op, mask) = if down { (Op::Or, DF) } else { (Op::And, !DF) };
    e.asm.gs_op_imm(op, crate::context::at::SYSTEM_FLAGS, mask);
}

/// DIV and IDIV of 32 and 64 bits. What might raise #DE is left to the interpreter: whatever does not divide RDX:RAX
/// with RDX below the divisor, or, signed, does not divide a sign-extended RAX by something other than 0 and -1.
///
/// The flags are undefined; they stay, as in the interpreter.
fn divide(e: &mut Emitter<'_>, insn: &Instruction, signed: bool) -> Result {
    let bytes = match insn.op0_kind() {
        OpKind::Memory => insn.memory_size().size(),
        OpKind::Register => insn.op0_register().size(),
        _ => return Err(Unsupported),
    };
    if bytes != 4 && bytes != 8 {
        return Err(Unsupported);
    }
    let wide = bytes == 8;
    e.free_flags();
    if insn.op0_kind() == OpKind::Memory {
        let displacement = e.reach_operand(insn)?;
        if wide {
            e.asm.load(Gpr::RCX, Gpr::RAX, displacement);
        } else {
            e.asm.load32(Gpr::RCX, Gpr::RAX, displacement);
        }
    } else {
        let divisor = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
        e.read_into(Gpr::RCX, divisor);
    }
    let dividend = Gpr::RAX.home().ok_or(Unsupported)?;
    let compare =
        |e: &mut Emitter<'_>, a, b| if wide { e.asm.op(Op::Cmp, a, b) } else { e.asm.op32(Op::Cmp, a, b) };
    if signed {
        e.asm.mov(Gpr::RAX, dividend);
        e.asm.sar(wide, Gpr::RAX, if wide { 63 } else { 31 });
        compare(e, Gpr::RAX, Gpr::RDX);
        let hole = e.asm.jcc(Condition::NOT_EQUAL);
        e.interpret_from(hole);
        if wide {
            e.asm.lea(Gpr::RAX, Gpr::RCX, 1);
            e.asm.op_imm(Op::Cmp, Gpr::RAX, 1);
        } else {
            e.asm.lea32(Gpr::RAX, Gpr::RCX, 1);
            e.asm.op32_imm(Op::Cmp, Gpr::RAX, 1);
        }
        let hole = e.asm.jcc(Condition::BELOW_EQUAL);
        e.interpret_from(hole);
    } else {
        compare(e, Gpr::RDX, Gpr::RCX);
        let hole = e.asm.jcc(Condition::ABOVE_EQUAL);
        e.interpret_from(hole);
    }
    e.asm.mov(Gpr::RAX, dividend);
    let code = match (signed, wide) {
        (false, false) => Code::Div_rm32,
        (false, true) => Code::Div_rm64,
        (true, false) => Code::Idiv_rm32,
        (true, true) => Code::Idiv_rm64,
    };
    let divisor = Gpr::RCX.sized(bytes);
    e.encode(&Instruction::with1(code, divisor).map_err(|_| Unsupported)?)?;
    e.asm.mov(dividend, Gpr::RAX);
    Ok(())
}

/// BT and its kin with a bit number in a register and the bits in memory: the number is signed and reaches beyond the
/// operand (SDM vol. 2, 3.1.1.9).
fn bit_string(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let register = insn.op1_register();
    let guest = Gpr::of(register).ok_or(Unsupported)?;
    let bytes = register.size();
    let shift = match bytes {
        8 => 6,
        4 => 5,
        _ => return Err(Unsupported),
    };
    e.free_flags();
    e.linear_address(insn)?;
    let number = e.read(guest, Gpr::RCX);
    if bytes == 8 {
        e.asm.mov(Gpr::RCX, number);
    } else {
        e.asm.movsxd(Gpr::RCX, number);
    }
    e.asm.sar(true, Gpr::RCX, shift);
    let scale = shift - 3;
    e.asm.lea_indexed(!e.is_compat(), Gpr::RAX, Some(Gpr::RAX), Gpr::RCX, scale, 0);
    e.check(bytes, insn.mnemonic() != Mnemonic::Bt)?;
    let number = e.read(guest, Gpr::RCX);
    e.asm.mov(Gpr::RCX, number);
    // Only CF changes. The others are in memory, and stay there until somebody needs them in the host's flags.
    e.asm.op32_imm(Op::And, Gpr::RCX, i32::from(8 * u8::try_from(bytes).map_err(|_| Unsupported)? - 1));
    merge_carry(e, insn, bytes)
}

/// Executes the instruction on [RAX] and the bit number in RCX with the guest's flags in the host's.
fn merge_carry(e: &mut Emitter<'_>, insn: &Instruction, bytes: usize) -> Result {
    let mut host = *insn;
    if e.form == Form::Dead {
        at_address(&mut host, Gpr::RAX, 0);
        host.set_op1_register(Gpr::RCX.sized(bytes));
    } else {
        // Loading the flags takes RAX: the address changes places with a register that is put back.
        e.asm.gs_store(crate::context::at::TEMP, Gpr::RDX);
        e.asm.mov(Gpr::RDX, Gpr::RAX);
        e.load_flags();
        at_address(&mut host, Gpr::RDX, 0);
        host.set_op1_register(Gpr::RCX.sized(bytes));
    }
    e.encode(&host)?;
    if e.form != Form::Dead {
        e.asm.gs_load(Gpr::RDX, crate::context::at::TEMP);
    }
    e.flags_computed(None);
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B: RAX and RCX are operands, so the address takes R12's place for a moment.
fn wide_exchange(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let (a, c) = (Gpr::RAX.home().ok_or(Unsupported)?, Gpr::RCX.home().ok_or(Unsupported)?);
    let bytes = insn.memory_size().size();
    e.free_flags();
    e.linear_address(insn)?;
    if bytes == 16 {
        e.asm.test_low_bits(Gpr::RAX, 15);
        let misaligned = e.asm.jcc(Condition::NOT_EQUAL);
        e.interpret_from(misaligned);
    }
    e.check(bytes, true)?;
    e.asm.gs_store(crate::context::at::TEMP, Gpr::R12);
    e.asm.mov(Gpr::R12, Gpr::RAX);
    // Only ZF changes.
    e.load_flags();
    e.asm.mov(Gpr::RAX, a);
    e.asm.mov(Gpr::RCX, c);
    let mut host = *insn;
    at_address(&mut host, Gpr::R12, 0);
    e.encode(&host)?;
    e.asm.mov(a, Gpr::RAX);
    e.asm.gs_load(Gpr::R12, crate::context::at::TEMP);
    e.flags_computed(None);
    Ok(())
}
