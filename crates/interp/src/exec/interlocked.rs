//! CMPXCHG and its double-width forms.

use x86::bits::{high64, low64};
use x86::rflags::ZF;

use crate::alu;
use crate::cpu::Cpu;
use crate::op::{MEMORY, Op, Step};
use crate::width::Width;

/// CMPXCHG. The destination is written in either case, so a read-only page faults even when the comparison fails.
pub(crate) fn cmpxchg<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let expected = cpu.get_reg::<W>(0);
    let new = cpu.get_reg::<W>(op.src);
    let found = if op.dst != MEMORY {
        let found = cpu.get_reg::<W>(op.dst);
        if found == expected {
            cpu.put_reg::<W>(op.dst, new);
        }
        found
    } else {
        let slot = cpu.modify::<W>(op)?;
        cpu.exchange_at::<W>(slot, expected, new).err().unwrap_or(expected)
    };
    if found != expected {
        cpu.put_reg::<W>(0, found);
    }
    let (_, flags) = alu::sub::<W>(expected, found, 0);
    cpu.set_status(flags);
    Ok(())
}

/// CMPXCHG8B.
pub(crate) fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Step {
    let pair = |cpu: &Cpu, high: u8, low: u8| cpu.get_reg::<u32>(high) << 32 | cpu.get_reg::<u32>(low);
    let (expected, new) = (pair(cpu, 2, 0), pair(cpu, 1, 3));
    let slot = cpu.modify::<u64>(op)?;
    let result = cpu.exchange_at::<u64>(slot, expected, new);
    if let Err(found) = result {
        cpu.put_reg::<u32>(0, found);
        cpu.put_reg::<u32>(2, found >> 32);
    }
    cpu.put_flag(ZF, result.is_ok());
    Ok(())
}

/// CMPXCHG16B: #GP(0) unless aligned to 16 bytes.
pub(crate) fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Step {
    let pair = |cpu: &Cpu, high: u8, low: u8| u128::from(cpu.reg(high)) << 64 | u128::from(cpu.reg(low));
    let (expected, new) = (pair(cpu, 2, 0), pair(cpu, 1, 3));
    let offset = cpu.offset_of(&op.mem);
    let va = cpu.linear(op.mem.seg, offset, 16, true)?;
    cpu.check_access(op.mem.seg, va, 16, 1, true)?;
    if va % 16 != 0 {
        return Err(cpu.gp0());
    }
    let slot = cpu.slot(va, 16, mmu::Access::Write, cpu.privilege)?;
    let result = cpu.exchange_128(slot, expected, new);
    if let Err(found) = result {
        *cpu.reg_mut(0) = low64(found);
        *cpu.reg_mut(2) = high64(found);
    }
    cpu.put_flag(ZF, result.is_ok());
    Ok(())
}
