//! Far jumps, calls and returns, call gates among them (SDM vol. 2, JMP, CALL, RET; vol. 3, 5.8).

use x86::descriptor::system;
use x86::exception::vector;
use x86::{Exception, Gva, Mode, Segment, SegmentIndex, Selector};

use crate::cpu::Cpu;
use crate::op::{Break, IMMEDIATE, Op, Step};
use crate::system::segment::{Descriptor, null_stack, v86_segment};

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;

/// A far pointer operand, from the instruction or from memory.
fn far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(Selector, u64), Break> {
    if op.dst == IMMEDIATE {
        return Ok((Selector(x86::bits::low16(op.imm >> 32)), op.imm & 0xffff_ffff));
    }
    let offset = cpu.offset_of(&op.mem);
    let size = u64::from(op.size);
    let target = match op.size {
        2 => cpu.load_at::<u16>(op.mem.seg, offset)?,
        4 => cpu.load_at::<u32>(op.mem.seg, offset)?,
        _ => cpu.load_at::<u64>(op.mem.seg, offset)?,
    };
    let selector = cpu.load_at::<u16>(op.mem.seg, offset.wrapping_add(size))?;
    Ok((Selector(x86::bits::low16(selector)), target))
}

/// A call gate, parsed.
struct Gate {
    target: Selector,
    offset: u64,
    params: u64,
    size: u8,
}

impl Cpu {
    fn gp_selector(&mut self, selector: Selector) -> Break {
        self.raise(Exception::gp(selector.error_code()))
    }

    /// Loads CS outside protected mode.
    fn load_cs_real(&mut self, selector: Selector) {
        self.seg[CS] = match self.mode {
            Mode::V86 => v86_segment(selector),
            _ => self.real_segment(SegmentIndex::Cs, selector),
        };
    }

    /// Checks an offset against a code segment about to be entered.
    pub(crate) fn check_entry(&mut self, segment: &Segment, offset: u64) -> Result<(), Break> {
        let fits = if self.long_active() && segment.long() {
            Gva(offset).is_canonical()
        } else {
            offset <= u64::from(segment.limit)
        };
        if fits { Ok(()) } else { Err(self.gp0()) }
    }

    /// A code segment that is both 64-bit and 32-bit does not exist in long mode.
    pub(crate) fn check_code_bits(&mut self, segment: &Segment) -> Result<(), Break> {
        if self.long_active() && segment.long() && segment.big() {
            return Err(self.raise(Exception::gp(segment.selector.error_code())));
        }
        Ok(())
    }

    /// Enters code segment `found` at privilege level `cpl`.
    pub(crate) fn enter_code(&mut self, found: &mut Descriptor, cpl: u8, offset: u64) -> Result<(), Break> {
        self.check_entry(&found.segment, offset)?;
        self.mark_accessed(found)?;
        self.seg[CS] = Segment { selector: found.segment.selector.with_rpl(cpl), ..found.segment };
        self.set_rip(offset);
        Ok(())
    }

    /// Checks the code descriptor of a direct far jump or call.
    fn check_direct_code(&mut self, found: &Descriptor) -> Result<(), Break> {
        let (segment, selector) = (&found.segment, found.segment.selector);
        let allowed = if segment.is_conforming() {
            segment.dpl() <= self.cpl
        } else {
            selector.rpl() <= self.cpl && segment.dpl() == self.cpl
        };
        if !allowed {
            return Err(self.gp_selector(selector));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(selector.error_code())));
        }
        self.check_code_bits(segment)
    }

    /// Checks a call gate and parses it.
    fn call_gate(&mut self, found: &Descriptor) -> Result<Gate, Break> {
        let gate = found.segment;
        let selector = gate.selector;
        if gate.dpl() < self.cpl.max(selector.rpl()) {
            return Err(self.gp_selector(selector));
        }
        if !gate.usable() {
            return Err(self.raise(Exception::np(selector.error_code())));
        }
        let raw = found.raw;
        let wide = gate.kind() == system::CALL_GATE;
        let low = raw & 0xffff | if wide { raw >> 32 & 0xffff_0000 } else { 0 };
        let high = self.upper_base(found, Exception::gp)?;
        let size = match (self.long_active(), wide) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        };
        let target = Selector(x86::bits::low16(raw >> 16));
        Ok(Gate { target, offset: low | high, params: raw >> 32 & 31, size })
    }

    /// The code segment behind a call gate.
    fn gate_target(&mut self, gate: &Gate) -> Result<Descriptor, Break> {
        if gate.target.is_null() {
            return Err(self.gp0());
        }
        let found = self.descriptor(gate.target, Exception::gp)?;
        let segment = found.segment;
        let right_size = !self.long_active() || segment.long() && !segment.big();
        if !segment.is_code() || segment.dpl() > self.cpl || !right_size {
            return Err(self.gp_selector(gate.target));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(gate.target.error_code())));
        }
        Ok(found)
    }

    fn is_call_gate(&self, segment: &Segment) -> bool {
        segment.is_system(system::CALL_GATE) || segment.is_system(system::CALL_GATE16) && !self.long_active()
    }

    pub(crate) fn jump_protected(&mut self, selector: Selector, offset: u64) -> Step {
        if selector.is_null() {
            return Err(self.gp0());
        }
        let mut found = self.descriptor(selector, Exception::gp)?;
        if found.segment.is_code() {
            self.check_direct_code(&found)?;
            return self.enter_code(&mut found, self.cpl, offset);
        }
        if self.is_call_gate(&found.segment) {
            let gate = self.call_gate(&found)?;
            let mut target = self.gate_target(&gate)?;
            if !target.segment.is_conforming() && target.segment.dpl() != self.cpl {
                return Err(self.gp_selector(gate.target));
            }
            return self.enter_code(&mut target, self.cpl, gate.offset);
        }
        self.jump_task(&found, super::task::Entry::Jump)
    }

    fn call_protected(&mut self, selector: Selector, offset: u64, size: u8) -> Step {
        if selector.is_null() {
            return Err(self.gp0());
        }
        let mut found = self.descriptor(selector, Exception::gp)?;
        if found.segment.is_code() {
            self.check_direct_code(&found)?;
            self.push_return(size)?;
            return self.enter_code(&mut found, self.cpl, offset);
        }
        if self.is_call_gate(&found.segment) {
            let gate = self.call_gate(&found)?;
            return self.call_through(&gate);
        }
        self.jump_task(&found, super::task::Entry::Call)
    }

    fn push_return(&mut self, size: u8) -> Step {
        let (cs, rip) = (u64::from(self.seg[CS].selector.0), self.rip());
        self.push_sized(size, cs)?;
        self.push_sized(size, rip)
    }

    /// Pushes a word whose width is data.
    pub(crate) fn push_sized(&mut self, size: u8, value: u64) -> Step {
        match size {
            2 => self.push::<u16>(value),
            4 => self.push::<u32>(value),
            _ => self.push::<u64>(value),
        }
    }

    /// Pops a word whose width is data.
    pub(crate) fn pop_sized(&mut self, size: u8) -> Result<u64, Break> {
        match size {
            2 => self.pop::<u16>(),
            4 => self.pop::<u32>(),
            _ => self.pop::<u64>(),
        }
    }

    fn call_through(&mut self, gate: &Gate) -> Step {
        let mut target = self.gate_target(gate)?;
        let dpl = target.segment.dpl();
        let (cs, rip) = (u64::from(self.seg[CS].selector.0), self.rip());
        if target.segment.is_conforming() || dpl == self.cpl {
            // The stack is used with the new code segment's mode.
            self.seg[CS] = target.segment;
            self.refresh();
            self.push_sized(gate.size, cs)?;
            self.push_sized(gate.size, rip)?;
            return self.enter_code(&mut target, self.cpl, gate.offset);
        }
        let old_stack = (self.seg[SS].selector, self.stack_pointer());
        let mut params = [0; 31];
        let count = x86::bits::index(if gate.size == 8 { 0 } else { gate.params });
        for (depth, param) in (0..).zip(params.iter_mut().take(count)) {
            *param = match gate.size {
                2 => self.peek::<u16>(depth * 2)?,
                _ => self.peek::<u32>(depth * 4)?,
            };
        }
        self.switch_stack(dpl)?;
        self.seg[CS] = target.segment;
        self.refresh();
        self.push_framed(gate.size, &[u64::from(old_stack.0.0), old_stack.1])?;
        for param in params.iter().take(count).rev() {
            self.push_framed(gate.size, &[*param])?;
        }
        self.push_framed(gate.size, &[cs, rip])?;
        self.enter_code(&mut target, dpl, gate.offset)
    }

    /// Pushes words onto a stack that has just been switched to: #SS names it if there is no room.
    pub(crate) fn push_framed(&mut self, size: u8, words: &[u64]) -> Step {
        for &word in words {
            if let Err(reason) = self.push_sized(size, word) {
                if let Some(fault) = self.fault.as_mut().filter(|fault| fault.vector == vector::SS) {
                    fault.error = Some(self.seg[SS].selector.error_code());
                }
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Loads SS and RSP of ring `cpl` from the TSS.
    pub(crate) fn switch_stack(&mut self, cpl: u8) -> Step {
        if self.long_active() {
            let pointer = self.tss_stack64(cpl, 0)?;
            self.seg[SS] = null_stack(Selector(u16::from(cpl)), cpl);
            self.regs[4] = pointer;
        } else {
            let stack = self.tss_stack(cpl)?;
            self.seg[SS] = self.stack_segment(stack.selector, cpl, false, Exception::ts)?;
            self.regs[4] = stack.pointer;
        }
        self.refresh();
        Ok(())
    }

    /// RETF: to the same or an outer ring.
    fn return_far(&mut self, size: u8, drop: u64) -> Step {
        let offset = self.pop_sized(size)?;
        let selector = Selector(x86::bits::low16(self.pop_sized(size)?));
        self.return_to(selector, offset, size, drop)
    }

    /// The common part of RETF: CS and RIP are off the stack.
    fn return_to(&mut self, selector: Selector, offset: u64, size: u8, drop: u64) -> Step {
        if !self.protected() {
            if offset > u64::from(self.seg[CS].limit) {
                return Err(self.gp0());
            }
            self.load_cs_real(selector);
            self.set_rip(offset);
            self.drop_stack(drop);
            return Ok(());
        }
        let mut found = self.return_code(selector)?;
        let rpl = selector.rpl();
        if rpl == self.cpl {
            self.drop_stack(drop);
            return self.enter_code(&mut found, rpl, offset);
        }
        self.drop_stack(drop);
        let pointer = self.pop_sized(size)?;
        let stack = Selector(x86::bits::low16(self.pop_sized(size)?));
        self.enter_code(&mut found, rpl, offset)?;
        self.return_stack(stack, pointer, rpl)?;
        self.drop_stack(drop);
        self.drop_privileged_segments();
        Ok(())
    }

    /// Checks the code segment that RETF or IRET returns to.
    pub(crate) fn return_code(&mut self, selector: Selector) -> Result<Descriptor, Break> {
        if selector.is_null() {
            return Err(self.gp0());
        }
        let found = self.descriptor(selector, Exception::gp)?;
        let (segment, rpl) = (found.segment, selector.rpl());
        let dpl_fits = if segment.is_conforming() { segment.dpl() <= rpl } else { segment.dpl() == rpl };
        if rpl < self.cpl || !segment.is_code() || !dpl_fits {
            return Err(self.gp_selector(selector));
        }
        self.check_code_bits(&segment)?;
        if !segment.usable() {
            return Err(self.raise(Exception::np(selector.error_code())));
        }
        Ok(found)
    }

    /// Loads the outer stack at a return. CS is the new one already; a null SS is legal for 64-bit code below CPL 3.
    pub(crate) fn return_stack(&mut self, selector: Selector, pointer: u64, cpl: u8) -> Step {
        let long = self.long_active() && self.seg[CS].long();
        self.seg[SS] = self.stack_segment(selector, cpl, long, Exception::gp)?;
        self.refresh();
        self.set_stack_pointer(pointer);
        Ok(())
    }
}

fn transfer_real(cpu: &mut Cpu, selector: Selector, offset: u64) -> Step {
    if offset > u64::from(cpu.seg[CS].limit) {
        return Err(cpu.gp0());
    }
    cpu.load_cs_real(selector);
    cpu.set_rip(offset);
    Ok(())
}

/// JMP far.
pub(crate) fn jump(cpu: &mut Cpu, op: &Op) -> Step {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.transact(|cpu| {
        if cpu.protected() {
            cpu.jump_protected(selector, offset)
        } else {
            transfer_real(cpu, selector, offset)
        }
    })
}

/// CALL far.
pub(crate) fn call(cpu: &mut Cpu, op: &Op) -> Step {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.transact(|cpu| {
        if cpu.protected() {
            cpu.call_protected(selector, offset, op.size)
        } else {
            cpu.push_return(op.size)?;
            transfer_real(cpu, selector, offset)
        }
    })
}

/// RETF.
pub(crate) fn ret(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.transact(|cpu| cpu.return_far(op.size, op.imm))
}
