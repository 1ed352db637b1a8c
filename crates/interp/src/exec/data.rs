//! Moves, extensions, exchanges of data between registers and memory.

use x86::bits::sign_extend;

use crate::cpu::Cpu;
use crate::op::{Handler, IMMEDIATE, MEMORY, Op, Step};
use crate::operand::{Destination, DstAny, Source, SrcAny, SrcImm, SrcMem, SrcReg};
use crate::width::{Width, by_width};

fn mov_reg<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = S::get::<W>(cpu, op)?;
    cpu.put_reg::<W>(op.dst, value);
    Ok(())
}

fn mov_mem<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = S::get::<W>(cpu, op)?;
    cpu.store::<W>(op, value)
}

/// The handler of MOV between general registers, memory and immediates.
pub(crate) fn select_mov(op: &Op) -> Handler {
    match (op.dst, op.src, op.size) {
        (MEMORY, IMMEDIATE, 4) => mov_mem::<u32, SrcImm>,
        (MEMORY, IMMEDIATE, 8) => mov_mem::<u64, SrcImm>,
        (MEMORY, _, 4) => mov_mem::<u32, SrcReg>,
        (MEMORY, _, 8) => mov_mem::<u64, SrcReg>,
        (MEMORY, ..) => by_width!(op.size, mov_mem, SrcAny),
        (_, MEMORY, 4) => mov_reg::<u32, SrcMem>,
        (_, MEMORY, 8) => mov_reg::<u64, SrcMem>,
        (_, IMMEDIATE, 4) => mov_reg::<u32, SrcImm>,
        (_, IMMEDIATE, 8) => mov_reg::<u64, SrcImm>,
        (_, _, 4) => mov_reg::<u32, SrcReg>,
        (_, _, 8) => mov_reg::<u64, SrcReg>,
        _ => by_width!(op.size, mov_reg, SrcAny),
    }
}

/// MOVZX from `F` to the operand size.
fn movzx<F: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<F>(cpu, op)?;
    put_sized(cpu, op, value);
    Ok(())
}

/// MOVSX and MOVSXD from `F` to the operand size.
fn movsx<F: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<F>(cpu, op)?;
    put_sized(cpu, op, sign_extend(value, F::BITS));
    Ok(())
}

/// Writes the destination register in the operand size, which here is data and not a type.
fn put_sized(cpu: &mut Cpu, op: &Op, value: u64) {
    match op.size {
        2 => cpu.put_reg::<u16>(op.dst, value),
        4 => cpu.put_reg::<u32>(op.dst, value),
        _ => cpu.put_reg::<u64>(op.dst, value),
    }
}

/// The handler of MOVZX from an operand of `from` bytes.
pub(crate) fn select_movzx(from: u8) -> Handler {
    by_width!(from, movzx)
}

/// The handler of MOVSX and MOVSXD from an operand of `from` bytes.
pub(crate) fn select_movsx(from: u8) -> Handler {
    by_width!(from, movsx)
}

/// LEA: the offset, cut or zero-extended to the operand size.
pub(crate) fn lea<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let offset = cpu.offset_of(&op.mem);
    cpu.put_reg::<W>(op.dst, offset);
    Ok(())
}

/// MOVBE: a move that reverses bytes.
pub(crate) fn movbe<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    cpu.put::<W>(op, op.dst, value.swap_bytes() >> (64 - W::BITS))
}

/// BSWAP. With a 16-bit operand the result is undefined; processors give zero.
pub(crate) fn bswap<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.get_reg::<W>(op.dst);
    let swapped = if W::BITS == 16 { 0 } else { value.swap_bytes() >> (64 - W::BITS) };
    cpu.put_reg::<W>(op.dst, swapped);
    Ok(())
}

/// CBW, CWDE, CDQE: sign-extends the lower half of the accumulator into all of it.
pub(crate) fn extend_accumulator<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let value = sign_extend(cpu.reg(0), W::BITS / 2);
    cpu.put_reg::<W>(0, value);
    Ok(())
}

/// CWD, CDQ, CQO: fills the data register with the accumulator's sign.
pub(crate) fn extend_to_data<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let negative = cpu.reg(0) >> (W::BITS - 1) & 1 != 0;
    cpu.put_reg::<W>(2, if negative { u64::MAX } else { 0 });
    Ok(())
}

/// XLATB.
pub(crate) fn xlat(cpu: &mut Cpu, op: &Op) -> Step {
    let mut mem = op.mem;
    (mem.disp, mem.index) = (cpu.reg(0) & 0xff, crate::op::ZERO);
    let offset = cpu.offset_of(&mem);
    let value = cpu.load_at::<u8>(mem.seg, offset)?;
    cpu.put_reg::<u8>(0, value);
    Ok(())
}

/// CMOVcc: memory is read whatever the condition, and a 32-bit destination is cleared above even if not moved.
pub(crate) fn cmov<W: Width, const CC: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    let value = if super::branch::condition::<CC>(cpu.flags) { value } else { cpu.get_reg::<W>(op.dst) };
    cpu.put_reg::<W>(op.dst, value);
    Ok(())
}

/// SETcc.
pub(crate) fn setcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = u64::from(super::branch::condition::<CC>(cpu.flags));
    cpu.put::<u8>(op, op.dst, value)
}

/// XCHG: with memory always locked (SDM vol. 3, 9.1.2.1).
pub(crate) fn xchg<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (reg, other) = if op.dst == MEMORY { (op.src, op.dst) } else { (op.dst, op.src) };
    let value = cpu.get_reg::<W>(reg);
    if other == MEMORY {
        let slot = cpu.modify::<W>(op)?;
        let old = cpu.update_at::<W>(slot, |_| value);
        cpu.put_reg::<W>(reg, old);
    } else {
        let old = cpu.get_reg::<W>(other);
        cpu.put_reg::<W>(other, value);
        cpu.put_reg::<W>(reg, old);
    }
    Ok(())
}

/// MOV from a segment register; to memory it is 16 bits wide.
pub(crate) fn mov_from_segment(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = u64::from(cpu.seg.get(op.src as usize).map_or(0, |s| s.selector.0));
    if op.dst == MEMORY {
        return cpu.store::<u16>(op, selector);
    }
    put_sized(cpu, op, selector);
    Ok(())
}

/// XADD.
pub(crate) fn xadd<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = cpu.get_reg::<W>(op.src);
    let old = if op.locked() {
        let slot = cpu.modify::<W>(op)?;
        cpu.update_at::<W>(slot, |a| a.wrapping_add(b) & W::MASK)
    } else {
        let mut old = 0;
        DstAny::update::<W>(cpu, op, |cpu, a| {
            old = a;
            if op.dst != MEMORY {
                // With one register as both operands the sum wins.
                cpu.put_reg::<W>(op.src, a);
            }
            Ok(a.wrapping_add(b) & W::MASK)
        })?;
        old
    };
    if op.dst == MEMORY {
        cpu.put_reg::<W>(op.src, old);
    }
    let (_, flags) = crate::alu::add::<W>(old, b, 0);
    cpu.set_status(flags);
    Ok(())
}
