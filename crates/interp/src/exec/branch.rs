//! Conditions and near transfers of control.
//!
//! Outside 64-bit mode a target beyond the CS limit is #GP(0) before any register changes; in 64-bit mode a target that
//! is not canonical is (SDM vol. 2, JMP and CALL). RIP holds the address of the next instruction while a handler
//! runs, so relative targets are sums.

use x86::Gva;
use x86::bits::{low32, mask_of};
use x86::rflags::{CF, OF, PF, SF, ZF};

use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::operand::{Source, SrcAny};
use crate::width::Width;

/// The stack pointer.
const RSP: u8 = 4;

/// Whether condition code `CC` (0 to 15, as in the opcode) holds.
#[inline(always)]
pub(crate) fn condition<const CC: u8>(flags: u64) -> bool {
    let less = || (flags & SF != 0) != (flags & OF != 0);
    let holds = match CC >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => less(),
        _ => flags & ZF != 0 || less(),
    };
    holds != (CC & 1 != 0)
}

impl Cpu {
    /// Checks a near target, cut to `size` bytes, and returns it.
    #[inline(always)]
    pub(crate) fn near_target(&mut self, target: u64, size: u8) -> Result<u64, Break> {
        if self.flat {
            if Gva(target).is_canonical() { Ok(target) } else { Err(self.gp0()) }
        } else {
            let target = target & mask_of(u32::from(size));
            if target <= u64::from(self.seg[1].limit) { Ok(target) } else { Err(self.gp0()) }
        }
    }

    #[inline(always)]
    fn relative(&mut self, op: &Op) -> Step {
        let target = self.near_target(self.rip().wrapping_add(op.imm), op.size)?;
        self.set_rip(target);
        Ok(())
    }
}

/// Jcc.
pub(crate) fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    if condition::<CC>(cpu.flags) { cpu.relative(op) } else { Ok(()) }
}

/// JMP rel.
pub(crate) fn jmp(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.relative(op)
}

/// JMP r/m.
pub(crate) fn jmp_indirect<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = SrcAny::get::<W>(cpu, op)?;
    let target = cpu.near_target(target, op.size)?;
    cpu.set_rip(target);
    Ok(())
}

/// CALL rel.
pub(crate) fn call<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    call_to::<W>(cpu, op, cpu.rip().wrapping_add(op.imm))
}

/// Near CALL through a register or memory.
pub(crate) fn call_indirect<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = SrcAny::get::<W>(cpu, op)?;
    call_to::<W>(cpu, op, target)
}

/// In this order, as processors do: a fault of the stack comes before a bad target.
fn call_to<W: Width>(cpu: &mut Cpu, op: &Op, target: u64) -> Step {
    let stack = cpu.reg(RSP);
    cpu.push::<W>(cpu.rip())?;
    match cpu.near_target(target, op.size) {
        Ok(target) => cpu.set_rip(target),
        Err(fault) => {
            *cpu.reg_mut(RSP) = stack;
            return Err(fault);
        }
    }
    Ok(())
}

/// RET, with the immediate's bytes dropped from the stack.
pub(crate) fn ret<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.peek::<W>(0)?;
    let target = cpu.near_target(target, op.size)?;
    cpu.drop_stack(W::SIZE.wrapping_add(op.imm));
    cpu.set_rip(target);
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jcxz(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.reg(1) << op.mem.cut == 0 { cpu.relative(op) } else { Ok(()) }
}

/// LOOP (2), LOOPE (1) and LOOPNE (0): counts down, then jumps.
pub(crate) fn loop_while<const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let zero = cpu.flag(ZF);
    let condition = match KIND {
        0 => !zero,
        1 => zero,
        _ => true,
    };
    let count = cpu.reg(1).wrapping_sub(1);
    let left = count << op.mem.cut;
    if left != 0 && condition {
        cpu.relative(op)?;
    }
    cpu.put_address_reg(op, 1, count);
    Ok(())
}

impl Cpu {
    /// Writes a register in the address size, as string and loop instructions do.
    #[inline(always)]
    pub(crate) fn put_address_reg(&mut self, op: &Op, slot: u8, value: u64) {
        match op.mem.cut {
            0 => *self.reg_mut(slot) = value,
            32 => *self.reg_mut(slot) = u64::from(low32(value)),
            _ => self.put_reg::<u16>(slot, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_and_their_negations() {
        assert!(condition::<4>(ZF) && !condition::<5>(ZF));
        assert!(condition::<0xc>(SF) && condition::<0xc>(OF) && !condition::<0xc>(SF | OF));
        assert!(condition::<0xf>(0) && !condition::<0xf>(ZF));
        assert!(condition::<6>(CF) && condition::<7>(0));
    }
}
