//! Bit tests and scans, population count, BMI1 and BMI2.

use x86::bits::{low8, low32, sign_extend};
use x86::rflags::{CF, OF, STATUS, ZF};

use crate::alu::szp;
use crate::cpu::Cpu;
use crate::op::{IMMEDIATE, MEMORY, Op, Step};
use crate::operand::{Source, SrcAny};
use crate::width::Width;

/// What BT and its kin do to the bit: KIND 0 tests, 1 sets, 2 resets, 3 complements.
#[inline]
fn change<const KIND: u8>(value: u64, bit: u64) -> u64 {
    match KIND {
        1 => value | bit,
        2 => value & !bit,
        3 => value ^ bit,
        _ => value,
    }
}

/// BT, BTS, BTR, BTC. A register offset into memory reaches beyond the operand, with its sign.
pub(crate) fn bit_test<W: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let offset = cpu.get::<W>(op, op.src)?;
    let bit = 1u64 << (offset & u64::from(W::BITS - 1));
    let old = if op.dst != MEMORY {
        let old = cpu.get_reg::<W>(op.dst);
        if KIND != 0 {
            cpu.put_reg::<W>(op.dst, change::<KIND>(old, bit));
        }
        old
    } else {
        bit_test_memory::<W, KIND>(cpu, op, offset, bit)?
    };
    cpu.put_flag(CF, old & bit != 0);
    Ok(())
}

fn bit_test_memory<W: Width, const KIND: u8>(
    cpu: &mut Cpu,
    op: &Op,
    offset: u64,
    bit: u64,
) -> Result<u64, crate::op::Break> {
    let mut op = op.clone();
    if op.src != IMMEDIATE {
        let words = sign_extend(offset, W::BITS).cast_signed() >> W::BITS.trailing_zeros();
        op.mem.disp = op.mem.disp.wrapping_add(words.cast_unsigned().wrapping_mul(W::SIZE));
    }
    if KIND == 0 {
        return cpu.load::<W>(&op);
    }
    let slot = cpu.modify::<W>(&op)?;
    if op.locked() {
        return Ok(cpu.update_at::<W>(slot, |value| change::<KIND>(value, bit)));
    }
    let old = cpu.read_at::<W>(slot);
    cpu.write_at::<W>(slot, change::<KIND>(old, bit));
    Ok(old)
}

/// BSF: a zero source leaves the destination as it is, which both vendors do.
pub(crate) fn bsf<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    scan(cpu, value == 0);
    if value != 0 {
        cpu.put_reg::<W>(op.dst, u64::from(value.trailing_zeros()));
    }
    Ok(())
}

/// BSR.
pub(crate) fn bsr<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    scan(cpu, value == 0);
    if value != 0 {
        cpu.put_reg::<W>(op.dst, u64::from(63 - value.leading_zeros()));
    }
    Ok(())
}

fn scan(cpu: &mut Cpu, zero: bool) {
    cpu.set_flags(ZF, if zero { ZF } else { 0 });
}

/// TZCNT: ZF says whether the result is zero, CF whether the source was.
pub(crate) fn tzcnt<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    let count = value.trailing_zeros().min(W::BITS);
    count_result::<W>(cpu, op, count, value == 0);
    Ok(())
}

/// LZCNT.
pub(crate) fn lzcnt<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    let count = value.leading_zeros() - (64 - W::BITS);
    count_result::<W>(cpu, op, count, value == 0);
    Ok(())
}

fn count_result<W: Width>(cpu: &mut Cpu, op: &Op, count: u32, empty: bool) {
    cpu.put_reg::<W>(op.dst, u64::from(count));
    let zero = if count == 0 { ZF } else { 0 };
    cpu.set_flags(ZF | CF, zero | u64::from(empty));
}

/// POPCNT: all status flags but ZF are cleared.
pub(crate) fn popcnt<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    cpu.put_reg::<W>(op.dst, u64::from(value.count_ones()));
    cpu.set_status(if value == 0 { ZF } else { 0 });
    Ok(())
}

/// ANDN: the inverted operand is [`Op::src2`].
pub(crate) fn andn<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let result = !cpu.get_reg::<W>(op.src2) & b & W::MASK;
    cpu.put_reg::<W>(op.dst, result);
    cpu.set_status(szp::<W>(result));
    Ok(())
}

/// BEXTR: start and length in bytes 0 and 1 of [`Op::src2`].
pub(crate) fn bextr<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    let control = cpu.get_reg::<W>(op.src2);
    let (start, length) = (u32::from(low8(control)), u32::from(low8(control >> 8)));
    let shifted = if start < W::BITS { value >> start } else { 0 };
    let result = keep_low(shifted, length);
    cpu.put_reg::<W>(op.dst, result);
    cpu.set_status(szp::<W>(result) & ZF);
    Ok(())
}

/// BZHI: CF says that the index was beyond the operand.
pub(crate) fn bzhi<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    let index = u32::from(low8(cpu.get_reg::<W>(op.src2)));
    let result = keep_low(value, index);
    cpu.put_reg::<W>(op.dst, result);
    cpu.set_status(szp::<W>(result) | u64::from(index >= W::BITS));
    Ok(())
}

fn keep_low(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

macro_rules! lowest_bit {
    ($($(#[$doc:meta])* $name:ident = |$a:ident| $result:expr, carry $carry:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
            let $a = SrcAny::get::<W>(cpu, op)?;
            let result = $result & W::MASK;
            cpu.put_reg::<W>(op.dst, result);
            cpu.set_flags(STATUS & !(x86::rflags::AF | x86::rflags::PF) | OF, szp::<W>(result) | u64::from($carry));
            Ok(())
        }
    )*};
}

lowest_bit! {
    /// BLSI: isolates the lowest set bit.
    blsi = |a| a & a.wrapping_neg(), carry a != 0;
    /// BLSR: clears it.
    blsr = |a| a & a.wrapping_sub(1), carry a == 0;
    /// BLSMSK: the mask up to it.
    blsmsk = |a| a ^ a.wrapping_sub(1), carry a == 0;
}

/// PDEP: the mask is the r/m operand, the bits come from [`Op::src2`].
pub(crate) fn pdep<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let mut mask = SrcAny::get::<W>(cpu, op)?;
    let mut bits = cpu.get_reg::<W>(op.src2);
    let mut result = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if bits & 1 != 0 {
            result |= lowest;
        }
        bits >>= 1;
        mask ^= lowest;
    }
    cpu.put_reg::<W>(op.dst, result);
    Ok(())
}

/// PEXT.
pub(crate) fn pext<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let mut mask = SrcAny::get::<W>(cpu, op)?;
    let bits = cpu.get_reg::<W>(op.src2);
    let (mut result, mut at) = (0u64, 0u32);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(bits & lowest != 0) << at;
        at += 1;
        mask ^= lowest;
    }
    debug_assert!(low32(result) == low32(result & W::MASK));
    cpu.put_reg::<W>(op.dst, result);
    Ok(())
}
