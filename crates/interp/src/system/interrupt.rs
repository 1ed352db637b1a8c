//! Delivery of exceptions and interrupts through the IVT or the IDT (SDM vol. 3, chapter 6).
//!
//! [`Cpu::deliver`] delivers one event or raises the exception that its delivery met, with every register as before.
//! Combining the two into a double fault or a shutdown is [`Cpu::deliver_exception`]'s business.

use x86::control::{cr4, dr6};
use x86::descriptor::system;
use x86::exception::{Class, selector_error, vector};
use x86::rflags::{AC, IF, IOPL, NT, RF, TF, VIF, VM};
use x86::state::Activity;
use x86::{Exception, Mode, Segment, SegmentIndex, Selector};

use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::system::segment::{Descriptor, null_stack};

/// Where an event comes from, which decides about privilege checks and error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// INT n: the gate's DPL is checked, and virtual-8086 mode has a say.
    IntN,
    /// INT3 and INTO: the gate's DPL is checked.
    Software,
    /// An exception.
    Exception,
    /// An external interrupt or NMI.
    External,
}

impl Origin {
    /// Whether the return address is behind the instruction, and nothing about the event is external to the program.
    fn is_software(self) -> bool {
        matches!(self, Self::IntN | Self::Software)
    }
}

/// An event to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) vector: u8,
    pub(crate) origin: Origin,
    pub(crate) error: Option<u32>,
}

/// A gate of the IDT, parsed.
struct Gate {
    kind: u16,
    target: Selector,
    offset: u64,
    ist: u8,
}

impl Gate {
    fn clears_if(&self) -> bool {
        matches!(self.kind, system::INTERRUPT_GATE | system::INTERRUPT_GATE16)
    }

    /// The width of what is pushed, outside long mode.
    fn size(&self) -> u8 {
        if matches!(self.kind, system::INTERRUPT_GATE | system::TRAP_GATE) { 4 } else { 2 }
    }
}

impl Delivery {
    /// The error code that names this vector's gate.
    fn gate_error(&self) -> u32 {
        u32::from(self.vector) << 3 | selector_error::IDT
    }
}

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;

impl Cpu {
    /// Delivers an exception; what goes wrong on the way becomes the next exception, a double fault or a shutdown
    /// (SDM vol. 3, table 6-5).
    pub(crate) fn deliver_exception(&mut self, first: Exception) {
        let mut exception = first;
        loop {
            self.note_exception(&exception);
            let delivery =
                Delivery { vector: exception.vector, origin: Origin::Exception, error: exception.error };
            if self.deliver(delivery).is_ok() {
                return;
            }
            let Some(second) = self.fault.take() else { return };
            exception = match combine(&exception, second) {
                Some(next) => next,
                None => {
                    self.activity = Activity::Shutdown;
                    return;
                }
            };
        }
    }

    /// Delivers an interrupt; a fault on the way is delivered in its place.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) {
        let delivery = Delivery { vector, origin: Origin::External, error: None };
        if self.deliver(delivery).is_err()
            && let Some(exception) = self.fault.take()
        {
            self.deliver_exception(exception);
        }
    }

    /// The registers that an exception sets before its handler runs.
    fn note_exception(&mut self, exception: &Exception) {
        self.stats.exceptions += 1;
        if let Some(address) = exception.cr2 {
            self.cr2 = address;
        }
        if exception.vector == vector::DB {
            self.dr6 = self.dr6 & !dr6::B | exception.dr6 | dr6::FIXED;
            self.dr7 &= !x86::control::dr7::GD;
        }
        // A fault's handler returns to the faulting instruction, which then must not meet its breakpoint again.
        if exception.is_fault() {
            self.flags |= RF;
        }
    }

    /// Delivers one event.
    pub(crate) fn deliver(&mut self, delivery: Delivery) -> Result<(), Break> {
        let result = self.transact(|cpu| match cpu.mode {
            Mode::Real => cpu.deliver_real(delivery),
            _ if cpu.long_active() => cpu.deliver_long(delivery),
            _ => cpu.deliver_protected(delivery),
        });
        if !delivery.origin.is_software() {
            // Whatever goes wrong on the way, in the new task too, is external to the program (SDM vol. 3, 6.13).
            [&mut self.fault, &mut self.pending.exception].into_iter().flatten().for_each(mark_external);
        }
        result
    }

    fn deliver_real(&mut self, delivery: Delivery) -> Step {
        let at = u64::from(delivery.vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            // There are no error codes in real mode.
            return Err(self.raise(Exception::plain(vector::GP)));
        }
        let entry = self.load_system::<u32>(self.idtr.base.wrapping_add(at))?;
        self.push::<u16>(self.flags)?;
        self.push::<u16>(u64::from(self.seg[CS].selector.0))?;
        self.push::<u16>(self.rip())?;
        let selector = Selector(x86::bits::low16(entry >> 16));
        self.seg[CS] = self.real_segment(SegmentIndex::Cs, selector);
        self.flags &= !(IF | TF | AC | RF);
        self.set_rip(entry & 0xffff);
        Ok(())
    }

    /// Reads and checks the gate of a vector.
    fn gate(&mut self, delivery: &Delivery) -> Result<Gate, Break> {
        let long = self.long_active();
        let step = if long { 16 } else { 8 };
        let at = u64::from(delivery.vector) * step;
        let error = delivery.gate_error();
        if at + step - 1 > u64::from(self.idtr.limit) {
            return Err(self.raise(Exception::gp(error)));
        }
        let raw = self.load_system::<u64>(self.idtr.base.wrapping_add(at))?;
        let upper =
            if long { self.load_system::<u64>(self.idtr.base.wrapping_add(at + 8))? << 32 } else { 0 };
        let gate = Segment::from_descriptor(Selector(0), raw);
        let kind = gate.attr & 0x1f;
        let known = match kind {
            system::INTERRUPT_GATE | system::TRAP_GATE => true,
            system::INTERRUPT_GATE16 | system::TRAP_GATE16 | system::TASK_GATE => !long,
            _ => false,
        };
        if !known || delivery.origin.is_software() && gate.dpl() < self.cpl {
            return Err(self.raise(Exception::gp(error)));
        }
        if !gate.usable() {
            return Err(self.raise(Exception::np(error)));
        }
        let wide = matches!(kind, system::INTERRUPT_GATE | system::TRAP_GATE);
        let offset = raw & 0xffff | if wide { raw >> 32 & 0xffff_0000 } else { 0 } | upper;
        let target = Selector(x86::bits::low16(raw >> 16));
        Ok(Gate { kind, target, offset, ist: x86::bits::low8(raw >> 32) & 7 })
    }

    /// Checks the code segment behind a gate; returns it with the privilege level it will run at.
    fn handler_code(&mut self, gate: &Gate) -> Result<(Descriptor, u8), Break> {
        let selector = gate.target;
        if selector.is_null() {
            return Err(self.gp0());
        }
        let found = self.descriptor(selector, Exception::gp)?;
        let segment = found.segment;
        let long = self.long_active();
        let right_size = !long || segment.long() && !segment.big();
        if !segment.is_code() || segment.dpl() > self.cpl || !right_size {
            return Err(self.raise(Exception::gp(selector.error_code())));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(selector.error_code())));
        }
        let cpl = if segment.is_conforming() { self.cpl } else { segment.dpl() };
        if self.mode == Mode::V86 && cpl != 0 {
            return Err(self.raise(Exception::gp(selector.error_code())));
        }
        Ok((found, cpl))
    }

    fn deliver_long(&mut self, delivery: Delivery) -> Step {
        let gate = self.gate(&delivery)?;
        let (mut code, cpl) = self.handler_code(&gate)?;
        let old = (self.seg[SS].selector, self.regs[4], self.seg[CS].selector, self.rip());
        let pointer = if gate.ist != 0 || cpl < self.cpl { self.tss_stack64(cpl, gate.ist)? } else { old.1 };
        let flags = self.flags;
        if cpl != self.cpl {
            self.seg[SS] = null_stack(Selector(u16::from(cpl)), cpl);
        }
        self.seg[CS] = code.segment;
        self.regs[4] = pointer & !0xf;
        self.refresh();
        for value in [u64::from(old.0.0), old.1, flags, u64::from(old.2.0), old.3] {
            self.push::<u64>(value)?;
        }
        if let Some(error) = delivery.error {
            self.push::<u64>(u64::from(error))?;
        }
        self.flags &= !(TF | NT | RF | VM | if gate.clears_if() { IF } else { 0 });
        self.enter_code(&mut code, cpl, gate.offset)
    }

    fn deliver_protected(&mut self, delivery: Delivery) -> Step {
        if self.mode == Mode::V86 && delivery.origin == Origin::IntN && self.redirect_v86(&delivery)? {
            return Ok(());
        }
        let gate = self.gate(&delivery)?;
        if gate.kind == system::TASK_GATE {
            return self.interrupt_task(gate.target, delivery.error);
        }
        let (mut code, cpl) = self.handler_code(&gate)?;
        let size = gate.size();
        let from_v86 = self.mode == Mode::V86;
        let data = [SegmentIndex::Gs, SegmentIndex::Fs, SegmentIndex::Ds, SegmentIndex::Es]
            .map(|index| u64::from(self.seg[index as usize].selector.0));
        let old_stack = (u64::from(self.seg[SS].selector.0), self.stack_pointer());
        let old_code = (u64::from(self.seg[CS].selector.0), self.rip());
        let (flags, before) = (self.flags, self.cpl);
        if cpl < before {
            self.flags &= !VM;
            self.switch_stack(cpl)?;
            if from_v86 {
                self.push_framed(size, &data)?;
            }
            self.push_framed(size, &[old_stack.0, old_stack.1])?;
        }
        let frame = [flags, old_code.0, old_code.1, u64::from(delivery.error.unwrap_or(0))];
        let words = if delivery.error.is_some() { &frame[..] } else { &frame[..3] };
        if cpl < before {
            self.push_framed(size, words)?;
        } else {
            words.iter().try_for_each(|&word| self.push_sized(size, word))?;
        }
        if from_v86 {
            for index in [SegmentIndex::Gs, SegmentIndex::Fs, SegmentIndex::Ds, SegmentIndex::Es] {
                self.seg[index as usize] = Segment::null(Selector(0));
            }
        }
        self.flags &= !(TF | NT | RF | VM | if gate.clears_if() { IF } else { 0 });
        self.enter_code(&mut code, cpl, gate.offset)
    }

    /// INT n in virtual-8086 mode: the IVT directly with VME's redirection bitmap, #GP(0) with IOPL < 3, or the
    /// IDT (`false`). SDM vol. 3, table 21-2.
    fn redirect_v86(&mut self, delivery: &Delivery) -> Result<bool, Break> {
        let redirected = self.cr4 & cr4::VME != 0 && !self.redirection_bit(delivery.vector)?;
        if !redirected {
            return if self.iopl() < 3 { Err(self.gp0()) } else { Ok(false) };
        }
        let entry = self.load_system::<u32>(u64::from(delivery.vector) * 4)?;
        let (mut image, mut cleared) = (self.flags, TF | NT);
        if self.iopl() == 3 {
            cleared |= IF;
        } else {
            image = image & !IF | IOPL | if self.flag(VIF) { IF } else { 0 };
            cleared |= VIF;
        }
        self.push::<u16>(image)?;
        self.push::<u16>(u64::from(self.seg[CS].selector.0))?;
        self.push::<u16>(self.rip())?;
        self.flags &= !cleared;
        self.seg[CS] = super::segment::v86_segment(Selector(x86::bits::low16(entry >> 16)));
        self.set_rip(entry & 0xffff);
        Ok(true)
    }

    /// A bit of the interrupt redirection bitmap, the 32 bytes below the I/O bitmap.
    fn redirection_bit(&mut self, vector: u8) -> Result<bool, Break> {
        let map = self.load_system::<u16>(self.tr.base.wrapping_add(0x66))?;
        let byte = self.tr.base.wrapping_add(map).wrapping_sub(32).wrapping_add(u64::from(vector / 8));
        Ok(self.load_system::<u8>(byte)? >> (vector % 8) & 1 != 0)
    }
}

/// Sets the EXT bit of an error code that has one.
fn mark_external(fault: &mut Exception) {
    if let (vector::TS | vector::NP | vector::SS | vector::GP, Some(code)) = (fault.vector, &mut fault.error)
    {
        *code |= selector_error::EXT;
    }
}

/// What two exceptions in a row make; `None` is a shutdown.
fn combine(first: &Exception, second: Exception) -> Option<Exception> {
    let double = Exception::with_error(vector::DF, 0);
    match (first.class(), second.class()) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => None,
        (Class::Contributory, Class::Contributory) => Some(double),
        (Class::PageFault, Class::Contributory | Class::PageFault) => Some(double),
        _ => Some(second),
    }
}

fn software(cpu: &mut Cpu, vector: u8, origin: Origin) -> Step {
    cpu.step_suppressed = true;
    cpu.deliver(Delivery { vector, origin, error: None })
}

/// INT n.
pub(crate) fn int(cpu: &mut Cpu, op: &Op) -> Step {
    software(cpu, x86::bits::low8(op.imm), Origin::IntN)
}

/// INT3.
pub(crate) fn int3(cpu: &mut Cpu, _: &Op) -> Step {
    software(cpu, vector::BP, Origin::Software)
}

/// INT1: a #DB that is not checked against the gate's DPL.
pub(crate) fn int1(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.fault = Some(Exception::debug(0));
    Err(Break::Trap)
}

/// INTO.
pub(crate) fn into(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.flag(x86::rflags::OF) { software(cpu, vector::OF, Origin::Software) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_combine_as_the_table_says() {
        let (pf, gp, ud) = (Exception::page_fault(0, 0), Exception::gp(0), Exception::ud());
        let df = Exception::with_error(vector::DF, 0);
        assert_eq!(combine(&gp, pf), Some(pf), "contributory, then page fault: in series");
        assert_eq!(combine(&gp, gp), Some(df));
        assert_eq!(combine(&pf, gp), Some(df));
        assert_eq!(combine(&pf, pf), Some(df));
        assert_eq!(combine(&ud, gp), Some(gp));
        assert_eq!(combine(&df, pf), None);
    }
}
