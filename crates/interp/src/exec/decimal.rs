//! Decimal adjustment (outside 64-bit mode): AAA, AAS, AAM, AAD, DAA, DAS.

use x86::Exception;
use x86::exception::vector;
use x86::rflags::{AF, CF, OF, STATUS};

use crate::alu::szp;
use crate::cpu::Cpu;
use crate::op::{Op, Step};

/// AAA (`ADD`) and AAS.
pub(crate) fn ascii_adjust<const ADD: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let ax = cpu.reg(0) & 0xffff;
    let adjust = ax & 0xf > 9 || cpu.flag(AF);
    let ax = match (adjust, ADD) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
    };
    let result = ax & 0xff0f;
    cpu.put_reg::<u16>(0, result);
    cpu.set_status(if adjust { AF | CF } else { 0 } | szp::<u8>(result & 0xff));
    Ok(())
}

/// AAM: divides AL by the immediate; #DE if that is zero.
pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> Step {
    let (al, base) = (cpu.reg(0) & 0xff, op.imm & 0xff);
    if base == 0 {
        return Err(cpu.raise(Exception::plain(vector::DE)));
    }
    cpu.put_reg::<u16>(0, (al / base) << 8 | (al % base));
    cpu.set_status(szp::<u8>(al % base));
    Ok(())
}

/// AAD.
pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> Step {
    let ax = cpu.reg(0);
    let al = (ax & 0xff).wrapping_add((ax >> 8 & 0xff) * (op.imm & 0xff)) & 0xff;
    cpu.put_reg::<u16>(0, al);
    cpu.set_status(szp::<u8>(al));
    Ok(())
}

/// DAA (`ADD`) and DAS.
pub(crate) fn decimal_adjust<const ADD: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let al = cpu.reg(0) & 0xff;
    let carry = cpu.flag(CF);
    let (mut result, mut flags) = (al, 0);
    let step = |value: u64, by: u64| if ADD { value.wrapping_add(by) } else { value.wrapping_sub(by) };
    if al & 0xf > 9 || cpu.flag(AF) {
        // The carry out of the low digit counts for subtraction only: for addition it implies the second test.
        let borrowed = if ADD { al + 6 > 0xff } else { al < 6 };
        flags |= AF | if carry || borrowed { CF } else { 0 };
        result = step(result, 6);
    }
    if al > 0x99 || carry {
        result = step(result, 0x60);
        flags |= CF;
    }
    let result = result & 0xff;
    cpu.put_reg::<u8>(0, result);
    cpu.set_flags(STATUS & !OF, flags | szp::<u8>(result));
    Ok(())
}
