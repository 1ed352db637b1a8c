//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and the primitives that calls and gates use.
//!
//! The width of the stack pointer comes from the mode and SS.B, the width of what is pushed from the instruction.

use x86::SegmentIndex;
use x86::bits::mask_of;

use crate::cpu::Cpu;
use crate::op::{Break, MEMORY, Op, Step};
use crate::operand::{Source, SrcAny};
use crate::width::Width;

const SS: u8 = SegmentIndex::Ss as u8;
const RSP: u8 = 4;
const RBP: u8 = 5;

impl Cpu {
    /// The stack pointer, cut to the stack's width.
    #[inline(always)]
    pub(crate) fn stack_pointer(&self) -> u64 {
        if self.flat { self.reg(RSP) } else { self.reg(RSP) & mask_of(self.stack_bytes()) }
    }

    /// Sets the stack pointer; on a 16-bit stack the upper bits stay.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        if self.flat {
            *self.reg_mut(RSP) = value;
        } else {
            let mask = mask_of(self.stack_bytes());
            // A write to ESP clears the upper half as every 32-bit write does.
            let keep = if mask == 0xffff { !mask & 0xffff_ffff } else { 0 };
            let slot = self.reg_mut(RSP);
            *slot = *slot & keep | value & mask;
        }
    }

    #[inline(always)]
    fn stack_offset(&self, delta: u64) -> u64 {
        let sum = self.reg(RSP).wrapping_add(delta);
        if self.flat { sum } else { sum & mask_of(self.stack_bytes()) }
    }

    /// Pushes a word.
    #[inline(always)]
    pub(crate) fn push<W: Width>(&mut self, value: u64) -> Result<(), Break> {
        let offset = self.stack_offset(W::SIZE.wrapping_neg());
        self.store_at::<W>(SS, offset, value & W::MASK)?;
        self.set_stack_pointer(offset);
        Ok(())
    }

    /// Reads the word `depth` bytes above the top of the stack.
    #[inline(always)]
    pub(crate) fn peek<W: Width>(&mut self, depth: u64) -> Result<u64, Break> {
        let offset = self.stack_offset(depth);
        self.load_at::<W>(SS, offset)
    }

    /// Takes bytes off the stack.
    #[inline(always)]
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        self.set_stack_pointer(self.stack_offset(bytes));
    }

    /// Pops a word.
    #[inline(always)]
    pub(crate) fn pop<W: Width>(&mut self) -> Result<u64, Break> {
        let value = self.peek::<W>(0)?;
        self.drop_stack(W::SIZE);
        Ok(value)
    }
}

/// PUSH r/m/imm. PUSH RSP pushes the value from before.
pub(crate) fn push<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = SrcAny::get::<W>(cpu, op)?;
    cpu.push::<W>(value)
}

/// PUSH of a segment register: a 32-bit push writes 16 bits only (SDM vol. 2, PUSH), a 64-bit one extends.
pub(crate) fn push_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = u64::from(cpu.seg.get(op.src as usize).map_or(0, |s| s.selector.0));
    if W::BITS != 32 {
        return cpu.push::<W>(selector);
    }
    let offset = cpu.stack_offset(W::SIZE.wrapping_neg());
    cpu.store_at::<u16>(SS, offset, selector)?;
    cpu.set_stack_pointer(offset);
    Ok(())
}

/// POP r/m. A memory destination is addressed with the stack pointer from after the pop.
pub(crate) fn pop<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.peek::<W>(0)?;
    if op.dst != MEMORY {
        cpu.drop_stack(W::SIZE);
        cpu.put_reg::<W>(op.dst, value);
        return Ok(());
    }
    let before = cpu.reg(RSP);
    cpu.drop_stack(W::SIZE);
    let stored = cpu.store::<W>(op, value);
    if stored.is_err() {
        *cpu.reg_mut(RSP) = before;
    }
    stored
}

/// PUSHA and PUSHAD.
pub(crate) fn push_all<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let before = cpu.reg(RSP);
    for slot in 0..8 {
        let value = if slot == RSP { before } else { cpu.reg(slot) };
        if let Err(fault) = cpu.push::<W>(value) {
            *cpu.reg_mut(RSP) = before;
            return Err(fault);
        }
    }
    Ok(())
}

/// POPA and POPAD.
pub(crate) fn pop_all<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let mut values = [0; 8];
    for (depth, value) in (0..).zip(&mut values) {
        *value = cpu.peek::<W>(depth * W::SIZE)?;
    }
    cpu.drop_stack(8 * W::SIZE);
    for (slot, value) in (0..8).rev().zip(values) {
        if slot != RSP {
            cpu.put_reg::<W>(slot, value);
        }
    }
    Ok(())
}

/// ENTER: the frame size is the immediate's low 16 bits, the nesting level stands above it.
pub(crate) fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let before = (cpu.reg(RSP), cpu.reg(RBP));
    let result = enter_frame::<W>(cpu, op.imm & 0xffff, op.imm >> 16 & 31);
    if result.is_err() {
        (*cpu.reg_mut(RSP), *cpu.reg_mut(RBP)) = before;
    }
    result
}

fn enter_frame<W: Width>(cpu: &mut Cpu, size: u64, level: u64) -> Step {
    let stack_mask = mask_of(cpu.stack_bytes());
    cpu.push::<W>(cpu.reg(RBP))?;
    let frame = cpu.reg(RSP);
    for i in 1..level {
        let link = cpu.reg(RBP).wrapping_sub(i * W::SIZE) & stack_mask;
        let value = cpu.load_at::<W>(SS, link)?;
        cpu.push::<W>(value)?;
    }
    if level > 0 {
        cpu.push::<W>(frame)?;
    }
    let top = cpu.reg(RSP).wrapping_sub(size);
    // The new top must be writable, or the fault would come too late to restart (SDM vol. 2, ENTER).
    let va = cpu.linear(SS, top & stack_mask, W::SIZE, true)?;
    cpu.check_canonical(SS, va, 1)?;
    cpu.check_alignment(va, W::SIZE)?;
    cpu.slot(va, 1, mmu::Access::Write, cpu.privilege)?;
    cpu.put_reg::<W>(RBP, frame);
    cpu.set_stack_pointer(top & stack_mask);
    Ok(())
}

/// LEAVE.
pub(crate) fn leave<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let frame = cpu.reg(RBP) & mask_of(cpu.stack_bytes());
    let saved = cpu.load_at::<W>(SS, frame)?;
    cpu.set_stack_pointer(frame);
    cpu.drop_stack(W::SIZE);
    cpu.put_reg::<W>(RBP, saved);
    Ok(())
}
