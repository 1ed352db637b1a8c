//! String instructions: the host's own, over pieces that lie within pages.
//!
//! A repeated instruction's state is RCX, RSI and RDI, and it may stop between any two elements (SDM vol. 2, REP). So it
//! is translated to a loop over *pieces*: as many elements as RCX says and both pages hold. A piece's pages are looked up
//! once, then the host's own instruction runs on host addresses, at the host's own speed and in its own order, which is
//! the guest's also where the two operands overlap. Between pieces the guest's registers say exactly how far it came:
//! whoever wants attention gets it there, and a fault of the next piece belongs to its first element.
//!
//! What is rare is left to the interpreter: downward strings, an element across two pages, a source in FS or GS, 32-bit
//! addresses in 64-bit code. (In compatibility mode they are the rule, and nothing wraps: [`crate::compat`].)
//!
//! # Two operands
//! The first one's host address is kept while the second is looked up. A miss goes on there only if no page has changed
//! its place meanwhile; else the instruction begins again, with what is done done.
//!
//! # Flags
//! Comparisons set them to the result of the last element that was compared; if there was none, or the instruction
//! faults, they are what they were before it.

use iced_x86::{Code, Instruction, MemoryOperand, OpKind, Register};
use x86::rflags;

use crate::asm::{Condition, Op, Repeat};
use crate::branch::poll_freely;
use crate::compat::is_string_operand;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

/// A string instruction with addresses as wide as the mode's, its source in a segment whose base is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StringOp {
    kind: Kind,
    /// Binary logarithm of an element's bytes.
    shift: u8,
    repeat: Option<Repeat>,
}

/// An operand: the guest register with its address, and whether it is written.
type Operand = (Gpr, bool);

/// The host's address of the first operand, or of the only one, subtracted from the guest's.
const DISTANCE: i32 = at::TEMP;
/// How many elements a piece has.
const COUNT: i32 = at::TEMP + 8;

/// Translates a string instruction; `Err` if it is none, or one that is left to the interpreter.
pub(crate) fn string(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let op = StringOp::of(insn, e.is_compat())?;
    e.free_flags();
    e.asm.gs_test32(at::SYSTEM_FLAGS, x86::bits::low32(rflags::DF));
    let downward = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(downward);
    match op.repeat {
        Some(repeat) => repeated(e, op, repeat),
        None => once(e, op),
    }
}

impl StringOp {
    fn of(insn: &Instruction, compat: bool) -> Result<Self> {
        let (kind, shift) = kind_and_shift(insn.code())?;
        let plain = |i| match insn.op_kind(i) {
            OpKind::Register => true,
            kind if compat && is_string_operand(kind) => {
                !matches!(insn.memory_segment(), Register::FS | Register::GS | Register::CS)
            }
            OpKind::MemorySegRSI => !matches!(insn.memory_segment(), Register::FS | Register::GS),
            OpKind::MemoryESRDI => true,
            _ => false,
        };
        if !(0..insn.op_count()).all(plain) {
            return Err(Unsupported);
        }
        let repeat = match (insn.has_rep_prefix(), insn.has_repne_prefix()) {
            (false, false) => None,
            // Where nothing is compared both mean the same.
            (false, true) if matches!(kind, Kind::Scas | Kind::Cmps) => Some(Repeat::WhileUnequal),
            _ => Some(Repeat::WhileEqual),
        };
        Ok(Self { kind, shift, repeat })
    }

    fn bytes(self) -> usize {
        1 << self.shift
    }

    /// The opcode for elements of more than a byte.
    const fn opcode(self) -> u8 {
        match self.kind {
            Kind::Movs => 0xa5,
            Kind::Cmps => 0xa7,
            Kind::Stos => 0xab,
            Kind::Lods => 0xad,
            Kind::Scas => 0xaf,
        }
    }
}

fn kind_and_shift(code: Code) -> Result<(Kind, u8)> {
    Ok(match code {
        Code::Movsb_m8_m8 => (Kind::Movs, 0),
        Code::Movsw_m16_m16 => (Kind::Movs, 1),
        Code::Movsd_m32_m32 => (Kind::Movs, 2),
        Code::Movsq_m64_m64 => (Kind::Movs, 3),
        Code::Stosb_m8_AL => (Kind::Stos, 0),
        Code::Stosw_m16_AX => (Kind::Stos, 1),
        Code::Stosd_m32_EAX => (Kind::Stos, 2),
        Code::Stosq_m64_RAX => (Kind::Stos, 3),
        Code::Lodsb_AL_m8 => (Kind::Lods, 0),
        Code::Lodsw_AX_m16 => (Kind::Lods, 1),
        Code::Lodsd_EAX_m32 => (Kind::Lods, 2),
        Code::Lodsq_RAX_m64 => (Kind::Lods, 3),
        Code::Scasb_AL_m8 => (Kind::Scas, 0),
        Code::Scasw_AX_m16 => (Kind::Scas, 1),
        Code::Scasd_EAX_m32 => (Kind::Scas, 2),
        Code::Scasq_RAX_m64 => (Kind::Scas, 3),
        Code::Cmpsb_m8_m8 => (Kind::Cmps, 0),
        Code::Cmpsw_m16_m16 => (Kind::Cmps, 1),
        Code::Cmpsd_m32_m32 => (Kind::Cmps, 2),
        Code::Cmpsq_m64_m64 => (Kind::Cmps, 3),
        _ => return Err(Unsupported),
    })
}

// ---- one element -------------------------------------------------------------------------------------------------

/// Loads, stores and comparisons by the logarithm of their size.
const LOAD: [Code; 4] = [Code::Mov_r8_rm8, Code::Mov_r16_rm16, Code::Mov_r32_rm32, Code::Mov_r64_rm64];
const STORE: [Code; 4] = [Code::Mov_rm8_r8, Code::Mov_rm16_r16, Code::Mov_rm32_r32, Code::Mov_rm64_r64];
/// The register less the memory.
const COMPARE: [Code; 4] = [Code::Cmp_r8_rm8, Code::Cmp_r16_rm16, Code::Cmp_r32_rm32, Code::Cmp_r64_rm64];
/// The memory less the register.
const COMPARE_TO: [Code; 4] = [Code::Cmp_rm8_r8, Code::Cmp_rm16_r16, Code::Cmp_rm32_r32, Code::Cmp_rm64_r64];

/// One of these between a register and the memory at RAX.
fn access(e: &mut Emitter<'_>, op: StringOp, codes: [Code; 4], register: Gpr) -> Result {
    let code = *codes.get(usize::from(op.shift)).ok_or(Unsupported)?;
    let register = register.sized(op.bytes());
    let memory = MemoryOperand::with_base(Register::RAX);
    let insn = if codes == LOAD || codes == COMPARE {
        Instruction::with2(code, register, memory)
    } else {
        Instruction::with2(code, memory, register)
    };
    e.encode(&insn.map_err(|_| Unsupported)?)
}

fn once(e: &mut Emitter<'_>, op: StringOp) -> Result {
    let accumulator = Gpr::RAX.home().ok_or(Unsupported)?;
    match op.kind {
        Kind::Movs => {
            hold(e, op, Gpr::RSI)?;
            locate(e, op, (Gpr::RDI, true))?;
            access(e, op, STORE, Gpr::RCX)?;
        }
        Kind::Stos => {
            locate(e, op, (Gpr::RDI, true))?;
            access(e, op, STORE, accumulator)?;
        }
        Kind::Lods => {
            locate(e, op, (Gpr::RSI, false))?;
            access(e, op, LOAD, accumulator)?;
        }
        Kind::Scas => {
            locate(e, op, (Gpr::RDI, false))?;
            access(e, op, COMPARE, accumulator)?;
            e.flags_computed(None);
        }
        Kind::Cmps => {
            // In this order, as in the interpreter.
            hold(e, op, Gpr::RDI)?;
            locate(e, op, (Gpr::RSI, false))?;
            access(e, op, COMPARE_TO, Gpr::RCX)?;
            e.flags_computed(None);
        }
    }
    let bytes = i32::try_from(op.bytes()).map_err(|_| Unsupported)?;
    if matches!(op.kind, Kind::Movs | Kind::Cmps | Kind::Lods) {
        e.asm.lea(Gpr::RSI, Gpr::RSI, bytes);
    }
    if op.kind != Kind::Lods {
        e.asm.lea(Gpr::RDI, Gpr::RDI, bytes);
    }
    Ok(())
}

/// RAX = the host address of an operand's next element.
fn locate(e: &mut Emitter<'_>, op: StringOp, (register, write): Operand) -> Result {
    e.asm.mov(Gpr::RAX, register);
    e.check_kept(op.bytes(), write)
}

/// Reads an operand into RCX.
fn hold(e: &mut Emitter<'_>, op: StringOp, register: Gpr) -> Result {
    locate(e, op, (register, false))?;
    access(e, op, LOAD, Gpr::RCX)
}

// ---- many --------------------------------------------------------------------------------------------------------

fn repeated(e: &mut Emitter<'_>, op: StringOp, repeat: Repeat) -> Result {
    let count = Gpr::RCX.home().ok_or(Unsupported)?;
    e.asm.op_imm(Op::Cmp, count, 0);
    let none = e.asm.jcc(Condition::EQUAL);
    let again = e.asm.here();
    count_piece(e, op, count);
    match op.kind {
        Kind::Movs => two_operands(e, op, repeat, [(Gpr::RSI, false), (Gpr::RDI, true)])?,
        Kind::Stos => one_operand(e, op, repeat, true)?,
        Kind::Scas => one_operand(e, op, repeat, false)?,
        Kind::Cmps => two_operands(e, op, repeat, [(Gpr::RDI, false), (Gpr::RSI, false)])?,
        // Nobody needs any but the last element.
        Kind::Lods => return Err(Unsupported),
    }
    let stop = match (op.kind, repeat) {
        (Kind::Movs | Kind::Stos | Kind::Lods, _) => {
            e.asm.op_imm(Op::Cmp, count, 0);
            let done = e.asm.jcc(Condition::EQUAL);
            go_on(e, again);
            e.asm.land(none);
            e.asm.land(done);
            return Ok(());
        }
        (_, Repeat::WhileEqual) => Condition::NOT_EQUAL,
        (_, Repeat::WhileUnequal) => Condition::EQUAL,
    };
    // RCX holds how many elements of the piece were not looked at. The flags are the result as it stands.
    e.asm.lea_indexed(true, count, Some(count), Gpr::RCX, 0, 0);
    let stopped = e.asm.jcc(stop);
    e.asm.mov(Gpr::RCX, count);
    let done = e.asm.jrcxz();
    go_on(e, again);
    e.asm.land(none);
    e.load_flags();
    e.asm.land(stopped);
    if !e.asm.fill_short(done) {
        return Err(Unsupported);
    }
    e.flags_computed(None);
    Ok(())
}

/// The next piece, unless somebody wants attention.
fn go_on(e: &mut Emitter<'_>, again: u32) {
    // A shadow lies over the first piece only.
    let shadow = std::mem::replace(&mut e.shadow, false);
    poll_freely(e);
    e.shadow = shadow;
    let hole = e.asm.jmp();
    e.asm.fill(hole, again);
}

/// How many elements there are, and are in the pages of all operands; none if the next one lies in two pages. RAX and
/// RCX are lost.
fn count_piece(e: &mut Emitter<'_>, op: StringOp, count: Gpr) {
    let two = matches!(op.kind, Kind::Movs | Kind::Cmps);
    // The room in a page, negative: of two the larger, as numbers without sign, is the smaller room.
    let room = |e: &mut Emitter<'_>, to, address| {
        e.asm.op32(Op::Mov, to, address);
        e.asm.op32_imm(Op::Or, to, -4096);
    };
    room(e, Gpr::RAX, Gpr::RDI);
    if two {
        room(e, Gpr::RCX, Gpr::RSI);
        e.asm.op32(Op::Cmp, Gpr::RAX, Gpr::RCX);
        e.asm.cmov(Condition::BELOW, Gpr::RAX, Gpr::RCX);
    }
    e.asm.neg32(Gpr::RAX);
    if op.shift != 0 {
        e.asm.shr(Gpr::RAX, op.shift);
    }
    e.asm.op(Op::Cmp, Gpr::RAX, count);
    e.asm.cmov(Condition::ABOVE, Gpr::RAX, count);
    e.asm.gs_store(COUNT, Gpr::RAX);
}

/// RCX = the piece's elements, which will have been done.
fn take_count(e: &mut Emitter<'_>) -> Result {
    let count = Gpr::RCX.home().ok_or(Unsupported)?;
    e.asm.gs_load(Gpr::RCX, COUNT);
    e.asm.op(Op::Sub, count, Gpr::RCX);
    Ok(())
}

/// A piece at RDI. Flags are those of the host's instruction, RCX too.
fn one_operand(e: &mut Emitter<'_>, op: StringOp, repeat: Repeat, write: bool) -> Result {
    let accumulator = Gpr::RAX.home().ok_or(Unsupported)?;
    locate(e, op, (Gpr::RDI, write))?;
    e.asm.op(Op::Sub, Gpr::RDI, Gpr::RAX);
    e.asm.xchg(Gpr::RAX, Gpr::RDI);
    e.asm.gs_store(DISTANCE, Gpr::RAX);
    take_count(e)?;
    e.asm.mov(Gpr::RAX, accumulator);
    e.asm.string(op.opcode(), op.shift, repeat);
    e.asm.gs_load(Gpr::RAX, DISTANCE);
    e.asm.lea_indexed(true, Gpr::RDI, Some(Gpr::RDI), Gpr::RAX, 0, 0);
    Ok(())
}

/// A piece at RSI and RDI, looked up in this order. Flags are those of the host's instruction, RCX too.
fn two_operands(e: &mut Emitter<'_>, op: StringOp, repeat: Repeat, operands: [Operand; 2]) -> Result {
    let [first, second] = operands;
    locate(e, op, first)?;
    e.asm.mov(Gpr::RCX, first.0);
    e.asm.op(Op::Sub, Gpr::RCX, Gpr::RAX);
    locate(e, op, second)?;
    // From here on nothing leaves.
    e.asm.gs_store(DISTANCE, Gpr::RCX);
    e.asm.op(Op::Sub, first.0, Gpr::RCX);
    e.asm.op(Op::Sub, second.0, Gpr::RAX);
    e.asm.xchg(Gpr::RAX, second.0);
    take_count(e)?;
    e.asm.string(op.opcode(), op.shift, repeat);
    e.asm.lea_indexed(true, second.0, Some(second.0), Gpr::RAX, 0, 0);
    e.asm.gs_load(Gpr::RAX, DISTANCE);
    e.asm.lea_indexed(true, first.0, Some(first.0), Gpr::RAX, 0, 0);
    Ok(())
}

#[cfg(test)]
mod tests;
