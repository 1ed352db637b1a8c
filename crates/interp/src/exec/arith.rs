//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, ADCX, ADOX.

use x86::rflags::{CF, OF, STATUS};

use crate::alu::{self, Flagged};
use crate::cpu::Cpu;
use crate::op::{Break, Handler, IMMEDIATE, MEMORY, Op, Step};
use crate::operand::{Destination, DstAny, DstMem, DstReg, Source, SrcAny, SrcImm, SrcMem, SrcReg};
use crate::width::{Width, by_width};

/// A two-operand operation.
pub(crate) trait Binary {
    /// Result and status flags of `a op b` with the flags before.
    fn apply<W: Width>(a: u64, b: u64, flags: u64) -> Flagged;
}

macro_rules! binary {
    ($($name:ident: |$a:ident, $b:ident, $flags:ident| $result:expr;)*) => {$(
        pub(crate) struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<W: Width>($a: u64, $b: u64, $flags: u64) -> Flagged {
                let _ = $flags;
                $result
            }
        }
    )*};
}

binary! {
    Add: |a, b, flags| alu::add::<W>(a, b, 0);
    Adc: |a, b, flags| alu::add::<W>(a, b, flags & CF);
    Sub: |a, b, flags| alu::sub::<W>(a, b, 0);
    Sbb: |a, b, flags| alu::sub::<W>(a, b, flags & CF);
    And: |a, b, flags| alu::logic::<W>(a & b);
    Or: |a, b, flags| alu::logic::<W>(a | b);
    Xor: |a, b, flags| alu::logic::<W>(a ^ b);
}

fn binary<W: Width, O: Binary, D: Destination, S: Source>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = S::get::<W>(cpu, op)?;
    let flags = cpu.flags;
    let mut status = 0;
    D::update::<W>(cpu, op, |_, a| {
        let (result, new) = O::apply::<W>(a, b, flags);
        status = new;
        Ok(result)
    })?;
    cpu.set_status(status);
    Ok(())
}

/// CMP and TEST: flags only.
fn compare<W: Width, O: Binary, D: Source, S: Source>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = D::get::<W>(cpu, op)?;
    let b = S::get::<W>(cpu, op)?;
    let (_, status) = O::apply::<W>(a, b, cpu.flags);
    cpu.set_status(status);
    Ok(())
}

/// The first operand as a source.
struct FirstReg;
struct FirstAny;

impl Source for FirstReg {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break> {
        Ok(cpu.get_reg::<W>(op.dst))
    }
}

impl Source for FirstAny {
    #[inline]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break> {
        cpu.get::<W>(op, op.dst)
    }
}

fn locked<W: Width, O: Binary>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let flags = cpu.flags;
    let slot = cpu.modify::<W>(op)?;
    let old = cpu.update_at::<W>(slot, |a| O::apply::<W>(a, b, flags).0);
    cpu.set_status(O::apply::<W>(old, b, flags).1);
    Ok(())
}

/// The operand shapes that get a handler of their own: 32- and 64-bit full registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
    Any,
}

fn shape(op: &Op) -> Shape {
    if op.size < 4 {
        return Shape::Any;
    }
    match (op.dst, op.src) {
        (MEMORY, IMMEDIATE) => Shape::MemImm,
        (MEMORY, _) => Shape::MemReg,
        (_, MEMORY) => Shape::RegMem,
        (_, IMMEDIATE) => Shape::RegImm,
        _ => Shape::RegReg,
    }
}

/// The handler of a two-operand instruction that writes its first operand.
pub(crate) fn select<O: Binary>(op: &Op) -> Handler {
    if op.locked() {
        return by_width!(op.size, locked, O);
    }
    match (shape(op), op.size == 4) {
        (Shape::RegReg, true) => binary::<u32, O, DstReg, SrcReg>,
        (Shape::RegReg, false) => binary::<u64, O, DstReg, SrcReg>,
        (Shape::RegImm, true) => binary::<u32, O, DstReg, SrcImm>,
        (Shape::RegImm, false) => binary::<u64, O, DstReg, SrcImm>,
        (Shape::RegMem, true) => binary::<u32, O, DstReg, SrcMem>,
        (Shape::RegMem, false) => binary::<u64, O, DstReg, SrcMem>,
        (Shape::MemReg, true) => binary::<u32, O, DstMem, SrcReg>,
        (Shape::MemReg, false) => binary::<u64, O, DstMem, SrcReg>,
        (Shape::MemImm, true) => binary::<u32, O, DstMem, SrcImm>,
        (Shape::MemImm, false) => binary::<u64, O, DstMem, SrcImm>,
        (Shape::Any, _) => by_width!(op.size, binary, O, DstAny, SrcAny),
    }
}

/// The handler of CMP ([`Sub`]) and TEST ([`And`]).
pub(crate) fn select_compare<O: Binary>(op: &Op) -> Handler {
    match (shape(op), op.size == 4) {
        (Shape::RegReg, true) => compare::<u32, O, FirstReg, SrcReg>,
        (Shape::RegReg, false) => compare::<u64, O, FirstReg, SrcReg>,
        (Shape::RegImm, true) => compare::<u32, O, FirstReg, SrcImm>,
        (Shape::RegImm, false) => compare::<u64, O, FirstReg, SrcImm>,
        (Shape::RegMem, true) => compare::<u32, O, FirstReg, SrcMem>,
        (Shape::RegMem, false) => compare::<u64, O, FirstReg, SrcMem>,
        (Shape::MemReg, true) => compare::<u32, O, SrcMem, SrcReg>,
        (Shape::MemReg, false) => compare::<u64, O, SrcMem, SrcReg>,
        (Shape::MemImm, true) => compare::<u32, O, SrcMem, SrcImm>,
        (Shape::MemImm, false) => compare::<u64, O, SrcMem, SrcImm>,
        (Shape::Any, _) => by_width!(op.size, compare, O, FirstAny, SrcAny),
    }
}

/// A one-operand operation.
pub(crate) trait Unary {
    /// The flags it writes.
    const WRITTEN: u64;
    /// Result and flags.
    fn apply<W: Width>(a: u64) -> Flagged;
}

macro_rules! unary {
    ($($name:ident writes $written:expr, |$a:ident| $result:expr;)*) => {$(
        pub(crate) struct $name;
        impl Unary for $name {
            const WRITTEN: u64 = $written;
            #[inline(always)]
            fn apply<W: Width>($a: u64) -> Flagged {
                $result
            }
        }
    )*};
}

unary! {
    Inc writes STATUS & !CF, |a| alu::add::<W>(a, 1, 0);
    Dec writes STATUS & !CF, |a| alu::sub::<W>(a, 1, 0);
    Neg writes STATUS, |a| alu::sub::<W>(0, a, 0);
    Not writes 0, |a| (!a & W::MASK, 0);
}

fn unary<W: Width, O: Unary, D: Destination>(cpu: &mut Cpu, op: &Op) -> Step {
    let mut flags = 0;
    D::update::<W>(cpu, op, |_, a| {
        let (result, new) = O::apply::<W>(a);
        flags = new;
        Ok(result)
    })?;
    cpu.set_flags(O::WRITTEN, flags);
    Ok(())
}

fn unary_locked<W: Width, O: Unary>(cpu: &mut Cpu, op: &Op) -> Step {
    let slot = cpu.modify::<W>(op)?;
    let old = cpu.update_at::<W>(slot, |a| O::apply::<W>(a).0);
    cpu.set_flags(O::WRITTEN, O::apply::<W>(old).1);
    Ok(())
}

/// The handler of INC, DEC, NEG and NOT.
pub(crate) fn select_unary<O: Unary>(op: &Op) -> Handler {
    match (op.locked(), op.dst, op.size) {
        (true, ..) => by_width!(op.size, unary_locked, O),
        (_, MEMORY, 4) => unary::<u32, O, DstMem>,
        (_, MEMORY, 8) => unary::<u64, O, DstMem>,
        (_, _, 4) => unary::<u32, O, DstReg>,
        (_, _, 8) => unary::<u64, O, DstReg>,
        _ => by_width!(op.size, unary, O, DstAny),
    }
}

/// ADCX and ADOX: add with the carry in, and out to, one flag.
pub(crate) fn add_carry<W: Width, const FLAG: u64>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let carry = u64::from(cpu.flag(FLAG));
    let a = cpu.get_reg::<W>(op.dst);
    let (result, flags) = alu::add::<W>(a, b, carry);
    cpu.put_reg::<W>(op.dst, result);
    cpu.put_flag(FLAG, flags & CF != 0);
    Ok(())
}

/// ADCX.
pub(crate) fn adcx<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    add_carry::<W, CF>(cpu, op)
}

/// ADOX.
pub(crate) fn adox<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    add_carry::<W, OF>(cpu, op)
}
