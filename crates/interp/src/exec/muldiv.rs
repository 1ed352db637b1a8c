//! Multiplication and division.

use x86::Exception;
use x86::bits::{high64, low64, sign_extend};
use x86::exception::vector;
use x86::rflags::{CF, OF};

use crate::alu::szp;
use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::operand::{Source, SrcAny};
use crate::width::Width;

const RAX: u8 = 0;
const RDX: u8 = 2;

fn signed<W: Width>(value: u64) -> i128 {
    i128::from(sign_extend(value, W::BITS).cast_signed())
}

/// Writes a double-width product or dividend: AX for bytes, else DX:AX and its wider kin.
fn put_double<W: Width>(cpu: &mut Cpu, low: u64, high: u64) {
    if W::BITS == 8 {
        cpu.put_reg::<u16>(RAX, low & 0xff | (high & 0xff) << 8);
    } else {
        cpu.put_reg::<W>(RAX, low);
        cpu.put_reg::<W>(RDX, high);
    }
}

fn get_double<W: Width>(cpu: &Cpu) -> u128 {
    if W::BITS == 8 {
        u128::from(cpu.reg(RAX) & 0xffff)
    } else {
        u128::from(cpu.reg(RDX) & W::MASK) << W::BITS | u128::from(cpu.reg(RAX) & W::MASK)
    }
}

/// CF and OF say whether the product needed its upper half; SF, ZF, AF and PF are undefined.
fn product_flags<W: Width>(cpu: &mut Cpu, low: u64, lost: bool) {
    let carry = if lost { CF | OF } else { 0 };
    cpu.set_status(szp::<W>(low) & !x86::rflags::ZF | carry);
}

/// MUL.
pub(crate) fn mul<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let product = u128::from(cpu.reg(RAX) & W::MASK) * u128::from(b);
    let (low, high) = (low64(product) & W::MASK, low64(product >> W::BITS));
    put_double::<W>(cpu, low, high);
    product_flags::<W>(cpu, low, high != 0);
    Ok(())
}

/// IMUL with one operand.
pub(crate) fn imul<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let product = signed::<W>(cpu.reg(RAX)) * signed::<W>(b);
    let bits = product.cast_unsigned();
    let low = low64(bits) & W::MASK;
    put_double::<W>(cpu, low, low64(bits >> W::BITS) & W::MASK);
    product_flags::<W>(cpu, low, signed::<W>(low) != product);
    Ok(())
}

fn imul_truncated<W: Width>(cpu: &mut Cpu, op: &Op, a: u64, b: u64) {
    let product = signed::<W>(a) * signed::<W>(b);
    let low = low64(product.cast_unsigned()) & W::MASK;
    cpu.put_reg::<W>(op.dst, low);
    product_flags::<W>(cpu, low, signed::<W>(low) != product);
}

/// IMUL r, r/m.
pub(crate) fn imul2<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let a = cpu.get_reg::<W>(op.dst);
    imul_truncated::<W>(cpu, op, a, b);
    Ok(())
}

/// IMUL r, r/m, imm.
pub(crate) fn imul3<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = SrcAny::get::<W>(cpu, op)?;
    imul_truncated::<W>(cpu, op, a, op.imm);
    Ok(())
}

/// MULX: no flags. [`Op::dst`] takes the upper half, [`Op::src2`] the lower; the same register keeps the upper.
pub(crate) fn mulx<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = SrcAny::get::<W>(cpu, op)?;
    let product = u128::from(cpu.reg(RDX) & W::MASK) * u128::from(b);
    cpu.put_reg::<W>(op.src2, low64(product));
    cpu.put_reg::<W>(op.dst, low64(product >> W::BITS));
    Ok(())
}

fn divide_error(cpu: &mut Cpu) -> Break {
    cpu.raise(Exception::plain(vector::DE))
}

/// DIV: #DE on zero and on a quotient that does not fit. Flags are undefined (kept).
pub(crate) fn div<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let divisor = u128::from(SrcAny::get::<W>(cpu, op)?);
    let dividend = get_double::<W>(cpu);
    let Some(quotient) = dividend.checked_div(divisor) else { return Err(divide_error(cpu)) };
    if quotient > u128::from(W::MASK) {
        return Err(divide_error(cpu));
    }
    put_double::<W>(cpu, low64(quotient), low64(dividend % divisor));
    Ok(())
}

/// IDIV.
pub(crate) fn idiv<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let divisor = SrcAny::get::<W>(cpu, op)?;
    let divisor = signed::<W>(divisor);
    let raw = get_double::<W>(cpu);
    let shift = 128 - 2 * W::BITS;
    let dividend = (raw << shift).cast_signed() >> shift;
    let (Some(quotient), Some(rest)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
        return Err(divide_error(cpu));
    };
    let low = low64(quotient.cast_unsigned()) & W::MASK;
    if signed::<W>(low) != quotient {
        return Err(divide_error(cpu));
    }
    put_double::<W>(cpu, low, low64(rest.cast_unsigned()) & W::MASK);
    Ok(())
}

/// CRC32 over the Castagnoli polynomial (SDM vol. 2, CRC32), `W` wide; the destination is a full register.
pub(crate) fn crc32<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    const REVERSED_POLYNOMIAL: u64 = 0x82f6_3b78;
    let data = SrcAny::get::<W>(cpu, op)?;
    let mut crc = u128::from(cpu.reg(op.dst) & 0xffff_ffff) ^ u128::from(data);
    for _ in 0..W::BITS {
        let low = crc & 1;
        crc = (crc >> 1) ^ (low * u128::from(REVERSED_POLYNOMIAL));
    }
    cpu.put_reg::<u64>(op.dst, low64(crc));
    debug_assert_eq!(high64(crc), 0);
    Ok(())
}
