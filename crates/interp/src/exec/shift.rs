//! Shifts and rotates, SHLD and SHRD, and their flagless BMI2 forms.

use x86::bits::low32;
use x86::rflags::CF;

use crate::alu::{self, Shifted};
use crate::cpu::Cpu;
use crate::op::Op;
use crate::op::Step;
use crate::operand::{Destination, DstAny, Source, SrcAny};
use crate::width::Width;

/// The count as the processor masks it: 6 bits for 64-bit operands, else 5 (SDM vol. 2, SAL).
#[inline]
fn masked<W: Width>(count: u64) -> u32 {
    low32(count & if W::BITS == 64 { 63 } else { 31 })
}

/// Count from CL or the immediate, by [`Op::src`].
fn count<W: Width>(cpu: &mut Cpu, op: &Op, code: u8) -> Result<u32, crate::op::Break> {
    Ok(masked::<W>(cpu.get::<u8>(op, code)?))
}

fn finish<W: Width>(cpu: &mut Cpu, op: &Op, shift: impl FnOnce(&Cpu, u64) -> Shifted) -> Step {
    let mut flags = (0, 0);
    DstAny::update::<W>(cpu, op, |cpu, a| {
        let shifted = shift(cpu, a);
        flags = (shifted.written, shifted.flags);
        Ok(shifted.result)
    })?;
    cpu.set_flags(flags.0, flags.1);
    Ok(())
}

macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
            let n = count::<W>(cpu, op, op.src)?;
            finish::<W>(cpu, op, |_, a| alu::$name::<W>(a, n))
        }
    )*};
}

shifts! {
    /// SHL.
    shl;
    /// SHR.
    shr;
    /// SAR.
    sar;
    /// ROL.
    rol;
    /// ROR.
    ror;
}

/// RCL.
pub(crate) fn rcl<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let n = count::<W>(cpu, op, op.src)?;
    finish::<W>(cpu, op, |cpu, a| alu::rcl::<W>(a, n, cpu.flags & CF))
}

/// RCR.
pub(crate) fn rcr<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let n = count::<W>(cpu, op, op.src)?;
    finish::<W>(cpu, op, |cpu, a| alu::rcr::<W>(a, n, cpu.flags & CF))
}

/// SHLD: the filler register is [`Op::src`], the count [`Op::src2`].
pub(crate) fn shld<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let n = count::<W>(cpu, op, op.src2)?;
    let fill = cpu.get_reg::<W>(op.src);
    finish::<W>(cpu, op, |_, a| alu::shld::<W>(a, fill, n))
}

/// SHRD.
pub(crate) fn shrd<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let n = count::<W>(cpu, op, op.src2)?;
    let fill = cpu.get_reg::<W>(op.src);
    finish::<W>(cpu, op, |_, a| alu::shrd::<W>(a, fill, n))
}

macro_rules! flagless {
    ($($(#[$doc:meta])* $name:ident = |$a:ident, $n:ident| $result:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
            let $a = SrcAny::get::<W>(cpu, op)?;
            let $n = masked::<W>(cpu.get::<W>(op, op.src2)?);
            cpu.put_reg::<W>(op.dst, $result);
            Ok(())
        }
    )*};
}

flagless! {
    /// SHLX.
    shlx = |a, n| a << n;
    /// SHRX.
    shrx = |a, n| a >> n;
    /// SARX.
    sarx = |a, n| (x86::bits::sign_extend(a, W::BITS).cast_signed() >> n).cast_unsigned();
    /// RORX: the count is an immediate.
    rorx = |a, n| alu::ror::<W>(a, n).result;
}
