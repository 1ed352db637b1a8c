//! Operands as types: the shapes that hot handlers are specialised for, and one that handles everything.

use x86::bits::low8;

use crate::cpu::Cpu;
use crate::op::{Break, HIGH_BYTE, IMMEDIATE, MEMORY, Op};
use crate::width::Width;

/// A place an operand is read from.
pub(crate) trait Source {
    /// The operand, zero-extended.
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break>;
}

/// A register named by [`Op::src`].
pub(crate) struct SrcReg;
/// The memory operand.
pub(crate) struct SrcMem;
/// The immediate, already sign-extended to the operand size.
pub(crate) struct SrcImm;
/// Whatever [`Op::src`] says.
pub(crate) struct SrcAny;

impl Source for SrcReg {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break> {
        Ok(cpu.get_reg::<W>(op.src))
    }
}

impl Source for SrcMem {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break> {
        cpu.load::<W>(op)
    }
}

impl Source for SrcImm {
    #[inline(always)]
    fn get<W: Width>(_: &mut Cpu, op: &Op) -> Result<u64, Break> {
        Ok(op.imm & W::MASK)
    }
}

impl Source for SrcAny {
    #[inline]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break> {
        cpu.get::<W>(op, op.src)
    }
}

impl Cpu {
    /// Reads any operand by its code, zero-extended.
    #[inline]
    pub(crate) fn get<W: Width>(&mut self, op: &Op, code: u8) -> Result<u64, Break> {
        match code {
            MEMORY => self.load::<W>(op),
            IMMEDIATE => Ok(op.imm & W::MASK),
            _ => Ok(self.get_reg::<W>(code)),
        }
    }

    /// Reads a register by its operand code.
    #[inline]
    pub(crate) fn get_reg<W: Width>(&self, code: u8) -> u64 {
        if W::BITS == 8 && code & HIGH_BYTE != 0 {
            self.reg(code & 3) >> 8 & 0xff
        } else {
            self.reg(code) & W::MASK
        }
    }

    /// Writes a register by its operand code: a 32-bit write clears the upper half, narrower ones keep the rest.
    #[inline(always)]
    pub(crate) fn put_reg<W: Width>(&mut self, code: u8, value: u64) {
        if W::BITS >= 32 {
            *self.reg_mut(code) = value & W::MASK;
        } else if W::BITS == 8 && code & HIGH_BYTE != 0 {
            let slot = self.reg_mut(code & 3);
            *slot = *slot & !0xff00 | u64::from(low8(value)) << 8;
        } else {
            let slot = self.reg_mut(code);
            *slot = *slot & !W::MASK | value & W::MASK;
        }
    }

    /// Writes any operand by its code.
    #[inline]
    pub(crate) fn put<W: Width>(&mut self, op: &Op, code: u8, value: u64) -> Result<(), Break> {
        if code == MEMORY {
            self.store::<W>(op, value)
        } else {
            self.put_reg::<W>(code, value);
            Ok(())
        }
    }
}

/// A destination that is read, changed and written back.
pub(crate) trait Destination {
    /// Applies `f` to the operand; `f` returns the new value. Nothing is written if locating the operand faults.
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Cpu, u64) -> Result<u64, Break>,
    ) -> Result<(), Break>;
}

/// A register named by [`Op::dst`].
pub(crate) struct DstReg;
/// The memory operand.
pub(crate) struct DstMem;
/// Whatever [`Op::dst`] says.
pub(crate) struct DstAny;

impl Destination for DstReg {
    #[inline(always)]
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Cpu, u64) -> Result<u64, Break>,
    ) -> Result<(), Break> {
        let old = cpu.get_reg::<W>(op.dst);
        let new = f(cpu, old)?;
        cpu.put_reg::<W>(op.dst, new);
        Ok(())
    }
}

impl Destination for DstMem {
    #[inline(always)]
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Cpu, u64) -> Result<u64, Break>,
    ) -> Result<(), Break> {
        let slot = cpu.modify::<W>(op)?;
        let old = cpu.read_at::<W>(slot);
        let new = f(cpu, old)?;
        cpu.write_at::<W>(slot, new);
        Ok(())
    }
}

impl Destination for DstAny {
    #[inline]
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Cpu, u64) -> Result<u64, Break>,
    ) -> Result<(), Break> {
        if op.dst == MEMORY { DstMem::update::<W>(cpu, op, f) } else { DstReg::update::<W>(cpu, op, f) }
    }
}
